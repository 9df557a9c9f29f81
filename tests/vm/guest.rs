//! Inside of the machine: its first process, and the tests that are no other program's.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use skein_chaos::api::Api;
use tokio::runtime::Runtime;

/// Begins the last line of the machine; what follows is [`WELL`], or what failed.
pub(crate) const VERDICT: &str = "verdict: ";
pub(crate) const WELL: &str = "well";
/// What a node needs of this kernel's modules, in the order of loading.
pub(crate) const MODULES: [&str; 7] = ["overlay", "veth", "llc", "stp", "bridge", "tun", "dummy"];

const TESTS: &str = "tests";
/// The machine's own address: of documentation (RFC 5737).
const ADDRESS: &str = "198.51.100.1";
const DISK: &str = "/var/lib/skein";
/// Everything takes ten times as long here as elsewhere.
const PATIENCE: Duration = Duration::from_secs(120);

/// Plays a part inside of the machine, if this process was started for one.
pub(crate) fn main_if_inside() -> Option<ExitCode> {
    if std::process::id() == 1 {
        let verdict = first_process().unwrap_or_else(|error| format!("the machine did not start: {error}"));
        println!("{VERDICT}{verdict}");
        let _ = reboot(RebootMode::RB_POWER_OFF);
        return Some(ExitCode::FAILURE);
    }
    if std::env::args().nth(1).as_deref() != Some(TESTS) {
        return None;
    }
    let failed = tests();
    for failure in &failed {
        println!("failed: {failure}");
    }
    Some(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sets the machine up, has the tests run by another process, and reaps whoever else ends meanwhile.
fn first_process() -> io::Result<String> {
    leave_the_first_disk()?;
    for (kind, target) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("cgroup2", "/sys/fs/cgroup")]
    {
        mount_new(kind, target)?;
    }
    for module in MODULES {
        let made = if module == "dummy" { "numdummies=1" } else { "" };
        busybox(&["insmod", &format!("/modules/{module}.ko"), made])?;
    }
    busybox(&["ip", "link", "set", "lo", "up"])?;
    busybox(&["ip", "address", "add", &format!("{ADDRESS}/24"), "dev", "dummy0"])?;
    busybox(&["ip", "link", "set", "dummy0", "up"])?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("up after {} on Linux {}", uptime(), kernel.trim());

    let tests = Command::new("/init").arg(TESTS).spawn()?;
    let tests = Pid::from_raw(tests.id() as i32);
    loop {
        match waitpid(Pid::from_raw(-1), None)? {
            WaitStatus::Exited(pid, 0) if pid == tests => return Ok(WELL.to_owned()),
            WaitStatus::Exited(pid, code) if pid == tests => {
                return Ok(format!("the tests ended with {code}"));
            }
            WaitStatus::Signaled(pid, signal, _) if pid == tests => {
                return Ok(format!("the tests were killed by {signal}"));
            }
            _ => {}
        }
    }
}

/// Moves to a file system of its own: the one a kernel starts with cannot be exchanged for another one, and
/// that is what every container begins with.
fn leave_the_first_disk() -> io::Result<()> {
    fs::create_dir("/new")?;
    mount_new("tmpfs", "/new")?;
    fs::set_permissions("/new", std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    for dir in ["bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "tmp", "var/lib"] {
        fs::create_dir_all(Path::new("/new").join(dir))?;
    }
    let modules = MODULES.map(|module| format!("modules/{module}.ko"));
    for file in
        ["init", "engine", "skein", "bin/busybox"].into_iter().chain(modules.iter().map(String::as_str))
    {
        fs::copy(Path::new("/").join(file), Path::new("/new").join(file))?;
        fs::remove_file(Path::new("/").join(file))?;
    }
    symlink("busybox", "/new/bin/sh")?;
    std::env::set_current_dir("/new")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")
}

fn mount_new(kind: &str, target: &str) -> io::Result<()> {
    let mounted = mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>);
    mounted.map_err(|error| io::Error::other(format!("mount {kind} at {target}: {error}")))
}

fn busybox(words: &[&str]) -> io::Result<()> {
    let words: Vec<&&str> = words.iter().filter(|word| !word.is_empty()).collect();
    let status = Command::new("/bin/busybox").args(&words).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{words:?}: {status}"))) }
}

fn uptime() -> String {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    format!("{} s", text.split(' ').next().unwrap_or_default())
}

/// Runs everything, and says what failed.
fn tests() -> Vec<String> {
    let mut failed = Vec::new();
    // The fake needs no kernel; a log that is rotated needs much time and no other kernel; runc is not here.
    let skipped = ["fake::", "rotation", "runc"].into_iter().flat_map(|name| ["--skip", name]);
    let words = ["--color", "never", "--test-threads", "2"];
    let mut engine = Command::new("/engine");
    engine.args(skipped).args(words).env("RUST_BACKTRACE", "0").env("SKEIN_ESCAPE_WITH_GUARDS_ONLY", "1");
    match engine.status() {
        Ok(status) if status.success() => {}
        other => failed.push(format!("the runtime's tests: {other:?}")),
    }
    println!("the runtime's tests ended after {}", uptime());
    let node = std::panic::catch_unwind(a_node_runs_pods_within_their_limits);
    println!("test a_node_runs_pods_within_their_limits ... {}", if node.is_ok() { "ok" } else { "FAILED" });
    if node.is_err() {
        println!("{}", fs::read_to_string("/var/log").unwrap_or_default());
        failed.push("a_node_runs_pods_within_their_limits".to_owned());
    }
    println!("all ended after {}", uptime());
    failed
}

/// The program as a user starts it; killed when dropped.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_node_runs_pods_within_their_limits() {
    let runtime = Runtime::new().expect("a runtime");
    let log = fs::File::create("/var/log").expect("a log");
    let listen = format!("{ADDRESS}:7946");
    let node = Command::new("/skein")
        .args(["up", "--name", "vm", "--listen", &listen, "--data-dir", DISK])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    let mut node = Node(node.expect("the program starts"));
    let api = Api::of(Path::new(DISK));
    let get = |path: &str| runtime.block_on(api.get(path)).unwrap_or_default();
    until("the node is ready", || {
        let nodes = get("/api/v1/nodes");
        let conditions = nodes["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True").then_some(())
    });
    // The first plan of the first leader makes it, which may be a moment later.
    until("the namespace is there", || {
        get("/api/v1/namespaces/default")["metadata"].is_object().then_some(())
    });

    let run = |name: &str, args: &[&str], limits: Value| {
        let container = json!({ "name": "main", "image": "skein.dev/tiny", "args": args, "resources": { "limits": limits } });
        let spec = json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container] });
        let pod = json!({ "metadata": { "name": name }, "spec": spec });
        runtime.block_on(api.post("/api/v1/namespaces/default/pods", &pod)).expect("the pod is taken");
    };
    let pod = |name: &str| get(&format!("/api/v1/namespaces/default/pods/{name}"));
    run("greedy", &["fill", "256"], json!({ "memory": "48Mi" }));
    run("steady", &["serve"], json!({ "memory": "64Mi", "cpu": "200m" }));
    let end = until("the greedy pod is killed", || {
        let end = pod("greedy")["status"]["containerStatuses"][0]["state"]["terminated"].clone();
        end.is_object().then_some(end)
    });
    assert_eq!((&end["reason"], &end["exitCode"]), (&json!("OOMKilled"), &json!(137)));

    let steady = until("the steady pod runs", || {
        let pod = pod("steady");
        (pod["status"]["phase"] == "Running").then_some(pod)
    });
    let uid = steady["metadata"]["uid"].as_str().expect("a uid");
    let group = cgroup_of(uid).expect("a pod has a cgroup");
    let read =
        |file: &str| fs::read_to_string(group.join(file)).unwrap_or_else(|error| format!("{file}: {error}"));
    assert_eq!(read("main-0/cpu.max"), "20000 100000\n");
    assert_eq!(read("main-0/memory.max"), "67108864\n");
    assert_eq!(read("main-0/memory.swap.max"), "0\n");
    assert_eq!(read("main-0/memory.oom.group"), "1\n");
    assert_eq!(read("memory.max"), "67108864\n");
    assert_eq!(read("pids.max"), "4096\n");
    assert_eq!(read("main-0/cgroup.procs").lines().count(), 1);
    let address = steady["status"]["podIP"].as_str().expect("an address");
    let page = Command::new("/bin/busybox")
        .args(["wget", "-q", "-O", "-", &format!("http://{address}:8080/")])
        .output();
    assert_eq!(String::from_utf8_lossy(&page.expect("busybox runs").stdout), "steady\n");

    kill(Pid::from_raw(node.0.id() as i32), Signal::SIGTERM).expect("it runs");
    assert_eq!(node.0.wait().expect("it ends").code(), Some(0));
    // The pod is none of the daemon's processes.
    assert_eq!(read("main-0/cgroup.procs").lines().count(), 1);
}

/// The pod's cgroup below that of the node, whose name is the node's.
fn cgroup_of(uid: &str) -> Option<PathBuf> {
    let ours = fs::read_dir("/sys/fs/cgroup/skein").ok()?;
    ours.flatten().map(|node| node.path().join(format!("pod{uid}"))).find(|path| path.is_dir())
}

fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
