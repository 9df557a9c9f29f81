//! Deaths of the daemon and of shims (RELIABILITY I17).

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_runtime::{Config, ContainerId, ContainerState, End, Engine, Machine, Remains};

use crate::world::{World, container, processes_of, sandbox, state, wait_until};

crate::tests![
    containers_outlive_the_daemon_and_are_taken_up_again,
    an_end_while_no_daemon_runs_is_reported_by_the_next,
    a_container_whose_shim_is_killed_ends_as_lost,
    a_container_whose_shim_was_killed_without_a_daemon_is_lost_too,
    what_a_cut_off_creation_left_is_cleaned_up,
    after_a_restart_of_the_machine_everything_is_lost_and_sandboxes_are_not_ready,
    a_shim_takes_little_memory,
    what_runs_of_a_directory_that_is_gone_is_known_by_its_mark_and_ended,
];

/// The first argument of this executable when it is the daemon that will be killed.
const DAEMON: &str = "test-daemon";

/// Acts as a daemon: starts a pod with containers and waits to be killed.
pub(crate) fn main_if_daemon() -> Option<ExitCode> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [first, dir, cgroup, uid] = arguments.as_slice() else { return None };
    if first != DAEMON {
        return None;
    }
    let dir = Path::new(dir);
    let config = Config {
        data_dir: dir.join("data"),
        logs_dir: dir.join("logs"),
        cgroup: PathBuf::from(cgroup),
        owner: Some(owner(dir)),
        cgroup_mount: PathBuf::from("/sys/fs/cgroup"),
        usual_capabilities: false,
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let engine = Machine::open(config).await.expect("an engine");
        let pod = engine.create_sandbox(sandbox(uid)).await.expect("a sandbox").spec.pod;
        for (name, args) in
            [("long", &["print", "begun", ";", "wait"][..]), ("short", &["wait", ";", "exit", "5"])]
        {
            engine.start(container(dir, &pod, name, args)).await.expect("a start");
        }
        println!("up");
        std::future::pending::<()>().await;
    });
    None
}

/// The mark of a test's directory.
fn owner(dir: &Path) -> String {
    let name = dir.file_name().expect("a name").to_string_lossy();
    name.chars().filter(char::is_ascii_alphanumeric).collect()
}

/// A daemon in a process of its own, killed at the latest when the test ends.
struct Daemon(Child);

impl Daemon {
    fn start(world: &World) -> Self {
        Self::start_with(world, "a")
    }

    /// One whose pod has this uid.
    fn start_with(world: &World, uid: &str) -> Self {
        let child = Command::new(std::env::current_exe().expect("an executable"))
            .arg(DAEMON)
            .arg(world.dir.path())
            .arg(&world.config.cgroup)
            .arg(uid)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut daemon = Self(child);
        let mut line = String::new();
        let stdout = daemon.0.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "up\n");
        daemon
    }

    fn kill(mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("waited for");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn id(name: &str) -> ContainerId {
    ContainerId::new("a".parse().expect("a uid"), name, 0).expect("a name")
}

fn pid_of(world: &World, engine: &Machine, name: &str) -> i32 {
    match world.run(state(engine, &id(name))) {
        Some(ContainerState::Running(running)) => running.pid,
        other => panic!("{other:?}"),
    }
}

fn shim_of(world: &World, name: &str) -> i32 {
    let state =
        fs::read(world.dir.path().join(format!("data/pods/a/c/{name}-0/state.json"))).expect("a state");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("json");
    i32::try_from(state["shim"]["pid"].as_i64().expect("a pid")).expect("a pid")
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("signalled");
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn containers_outlive_the_daemon_and_are_taken_up_again(world: &World) {
    let daemon = Daemon::start(world);
    let shims = processes_of(world.dir.path());
    daemon.kill();
    let engine = world.reopen();
    let sandboxes = world.run(engine.list()).expect("a list");
    assert!(sandboxes[0].ready);
    assert_eq!(sandboxes[0].containers.len(), 2);
    assert_eq!(sandboxes[0].containers[0].labels["shape"], "round");
    assert!(shims.iter().filter(|pid| is_alive(i32::try_from(**pid).expect("a pid"))).count() >= 2);
    let first = pid_of(world, &engine, "long");
    assert!(is_alive(first));
    // It is the same program, not a new one, and it can be stopped by the new daemon.
    world.wait_for_output_of(&engine, &id("long"), "begun\nwaiting");
    let exit = world.run(engine.stop(&id("long"), Duration::from_secs(50))).expect("a stop");
    assert_eq!(exit.end, End::Exited { code: 0, signal: None, oom: false });
    assert!(!is_alive(first));
    world.run(engine.purge()).expect("a purge");
}

fn an_end_while_no_daemon_runs_is_reported_by_the_next(world: &World) {
    let daemon = Daemon::start(world);
    world.wait_for_file("logs/default_pod-a_a/short/0.log", "waiting");
    let state = fs::read(world.dir.path().join("data/pods/a/c/short-0/state.json")).expect("a state");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("json");
    let pid = i32::try_from(state["container"]["pid"].as_i64().expect("a pid")).expect("a pid");
    daemon.kill();
    signal(pid, Signal::SIGTERM);
    let record = world.dir.path().join("data/pods/a/c/short-0/exit.json");
    wait_until(|| record.exists());
    let engine = world.reopen();
    let (ended, exit) = world.run(engine.exits().next()).expect("an end");
    assert_eq!((ended, exit.end), (id("short"), End::Exited { code: 5, signal: None, oom: false }));
    assert!(matches!(world.run(state_of(&engine, "long")), Some(ContainerState::Running(_))));
    world.run(engine.purge()).expect("a purge");
}

async fn state_of(engine: &Machine, name: &str) -> Option<ContainerState> {
    state(engine, &id(name)).await
}

fn a_container_whose_shim_is_killed_ends_as_lost(world: &World) {
    let pod = world.pod("a");
    let running = world.start(world.container(&pod, "long", &["child", "wait-deaf", ";", "wait-deaf"]));
    signal(shim_of(world, "long"), Signal::SIGKILL);
    let exit = world.end(&id("long"));
    assert_eq!(exit.end, End::Lost);
    // Its memory and files are gone, but a process leaves its cgroup some instructions before it becomes a zombie.
    wait_until(|| !is_alive(running.pid));
    assert!(!world.cgroup("pids", &id("long")).exists());
    // Another daemon says the same.
    let again = world.reopen();
    assert!(matches!(world.run(state_of(&again, "long")), Some(ContainerState::Ended(same)) if same == exit));
}

fn a_container_whose_shim_was_killed_without_a_daemon_is_lost_too(world: &World) {
    let daemon = Daemon::start(world);
    let shim = shim_of(world, "long");
    daemon.kill();
    signal(shim, Signal::SIGKILL);
    let engine = world.reopen();
    // Found dead, or taken up while dying.
    let (ended, exit) = world.run(engine.exits().next()).expect("an end");
    assert_eq!((ended, exit.end), (id("long"), End::Lost));
    assert!(matches!(world.run(state_of(&engine, "short")), Some(ContainerState::Running(_))));
    world.run(engine.purge()).expect("a purge");
}

fn what_a_cut_off_creation_left_is_cleaned_up(world: &World) {
    let pod = world.pod("a");
    let data = world.dir.path().join("data");
    // A container as the daemon leaves it before its shim has written anything.
    let cut = data.join("pods/a/c/cut-0");
    fs::create_dir_all(cut.join("upper")).expect("a directory");
    let cgroup = world.cgroup("pids", &id("cut"));
    fs::create_dir_all(&cgroup).expect("a cgroup");
    // A pod that has no record, with a mount.
    let half = data.join("pods/half");
    fs::create_dir_all(half.join("shm")).expect("a directory");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &half.join("shm"), Some("tmpfs"), flags, None::<&str>).expect("a mount");
    // Something that was on its way out.
    fs::create_dir_all(data.join("trash/old/x")).expect("a directory");

    let engine = world.reopen();
    let sandboxes = world.run(engine.list()).expect("a list");
    assert_eq!(sandboxes.len(), 1);
    assert_eq!(sandboxes[0].containers, []);
    assert!(!cut.exists() && !cgroup.exists() && !half.exists());
    assert_eq!(fs::read_dir(data.join("trash")).expect("a listing").count(), 0);
    world
        .run(engine.start(world.container(&pod, "cut", &["exit", "0"])))
        .expect("the attempt was never made");
    wait_until(|| matches!(world.run(state_of(&engine, "cut")), Some(ContainerState::Ended(_))));
    world.run(engine.purge()).expect("a purge");
}

fn after_a_restart_of_the_machine_everything_is_lost_and_sandboxes_are_not_ready(world: &World) {
    let pod = world.pod("a");
    world.start(world.container(&pod, "long", &["wait-deaf"]));
    let dir = world.dir.path().join("data/pods/a");
    // As the disk looks after a power cut: nothing runs, nothing is mounted, the record is from another life.
    world.run(world.engine().kill(&id("long"))).expect("an end");
    fs::remove_file(dir.join("c/long-0/exit.json")).expect("removed");
    let path = dir.join("c/long-0/state.json");
    let text = fs::read_to_string(&path).expect("a state");
    let mut state: serde_json::Value = serde_json::from_str(&text).expect("json");
    state["boot"]["bootId"] = "another-life".into();
    // Its number belongs to somebody else now, who must not be harmed.
    state["container"]["pid"] = std::process::id().into();
    fs::write(&path, state.to_string()).expect("written");
    for kind in ["net", "ipc", "uts"] {
        nix::mount::umount(&dir.join("ns").join(kind)).expect("unmounted");
    }

    let engine = world.reopen();
    let sandboxes = world.run(engine.list()).expect("a list");
    assert!(!sandboxes[0].ready);
    assert!(
        matches!(&sandboxes[0].containers[0].state, ContainerState::Ended(exit) if exit.end == End::Lost)
    );
    let again = world.run(engine.create_sandbox(sandbox("a"))).expect("a sandbox");
    assert!(again.ready);
    world.run(engine.start(world.container(&pod, "fresh", &["exit", "0"]))).expect("a start");
    wait_until(|| matches!(world.run(state_of(&engine, "fresh")), Some(ContainerState::Ended(_))));
    world.run(engine.purge()).expect("a purge");
}

fn a_shim_takes_little_memory(world: &World) {
    let pod = world.pod("a");
    world.start(world.container(&pod, "long", &["wait-deaf"]));
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", shim_of(world, "long"))).expect("smaps");
    let kib = |name: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(name)).expect("a line");
        line.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    };
    let private = kib("Private_Dirty:") + kib("Private_Clean:");
    eprintln!("shim: pss {} KiB, private {private} KiB", kib("Pss:"));
    // PSS also counts the executable, which one shim alone does not share with anybody.
    assert!(private < 1024, "{rollup}");
}

/// A data directory deleted under a node, and `skein up` in an empty one: nothing on disk tells of what runs.
fn what_runs_of_a_directory_that_is_gone_is_known_by_its_mark_and_ended(world: &World) {
    let mount = &world.config.cgroup_mount;
    let mark = owner(world.dir.path());
    let find = || Remains::find(mount, &mark, None).expect("cgroups can be read");
    // Of no other test: mounts are known by it.
    let uid = format!("remains-{}", std::process::id());
    let mounts = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("Linux tells of mounts");
        mounts.lines().filter(|line| line.contains(&uid)).count()
    };
    let daemon = Daemon::start_with(world, &uid);
    let shims = processes_of(world.dir.path());
    let other = tempfile::tempdir().expect("a directory");
    let others = Config {
        owner: Some(owner(other.path())),
        data_dir: other.path().join("data"),
        logs_dir: other.path().join("logs"),
        cgroup: format!("{}-other", world.config.cgroup.display()).into(),
        ..world.config.clone()
    };
    let neighbour = world.run(Machine::open(others.clone())).expect("an engine");
    let theirs = world.run(neighbour.create_sandbox(sandbox("theirs"))).expect("a sandbox").spec.pod;
    let running = container(world.dir.path(), &theirs, "main", &["wait"]);
    world.run(neighbour.start(running.clone())).expect("a start");

    // While its daemon lives it is left alone, and the daemon named.
    let [held]: [Remains; 1] = find().try_into().expect("one group");
    assert_eq!((held.daemon(), held.pods()), (Some(Some(daemon.0.id())), 1));
    held.end().expect_err("its daemon lives");
    let refused = Config { owner: Some("stranger".into()), ..world.config.clone() };
    world.run(Machine::open(refused)).expect_err("a living daemon has the cgroup");
    assert!(shims.iter().all(|pid| is_alive(i32::try_from(*pid).expect("a pid"))));

    daemon.kill();
    fs::remove_dir_all(world.dir.path().join("logs")).expect("removed");
    // Pins are mounts, so this directory cannot be removed, but moved.
    let moved = world.dir.path().join("moved");
    fs::rename(world.dir.path().join("data"), &moved).expect("moved");
    assert!(mounts() > 0, "the pod has namespaces");
    assert!(Remains::find(mount, &mark, Some(&world.config.cgroup)).expect("readable").is_empty());
    let [left]: [Remains; 1] = find().try_into().expect("one group");
    assert_eq!((left.daemon(), left.cgroup()), (None, &*world.config.cgroup));
    left.end().expect("nothing holds it");
    wait_until(|| !shims.iter().any(|pid| is_alive(i32::try_from(*pid).expect("a pid"))));
    assert_eq!((find().len(), mounts()), (0, 0));
    fs::remove_dir_all(&moved).expect("nothing is mounted there");

    let theirs = world.run(state(&neighbour, &running.id));
    assert!(matches!(theirs, Some(ContainerState::Running(_))), "{theirs:?}");
    world.run(neighbour.purge()).expect("a purge");
}
