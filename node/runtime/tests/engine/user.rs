//! The engine inside of a user namespace, as an ordinary user has it: no limits, no device files, one user.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use skein_runtime::{Engine, LogOptions, Machine, Volume};

use crate::program;
use crate::world::{World, config, container, sandbox};

crate::tests![containers_run_inside_of_a_user_namespace];

/// First arguments of this executable when it steps into the namespaces, and when it is inside.
const OUTSIDE: &str = "test-user-outside";
const INSIDE: &str = "test-user-inside";

/// Who the ordinary user is, and where it may write.
const NOBODY: u32 = 65_534;
const HOME: &str = "home";

/// Plays the ordinary user.
pub(crate) fn main_if_user() -> Option<ExitCode> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [OUTSIDE, dir] => Some(step_in(dir)),
        [INSIDE, dir] => Some(run_containers(Path::new(dir))),
        _ => None,
    }
}

/// Makes the namespaces; the next process is the first one of the new pid namespace, and with it all ends.
fn step_in(dir: &str) -> ExitCode {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET;
    unshare(flags).expect("namespaces");
    fs::write("/proc/self/setgroups", "deny").expect("no groups");
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).expect("a user");
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).expect("a group");
    let inside = Command::new("/proc/self/exe").args([INSIDE, dir]).status().expect("a process");
    if inside.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_containers(dir: &Path) -> ExitCode {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).expect("our own /proc");
    let config = config(&dir.join(HOME));
    let probe = Machine::probe(&config);
    assert_eq!(probe.missing, Vec::<String>::new());
    assert!(!probe.limits && !probe.weaker.is_empty(), "{probe:?}");
    assert!(skein_runtime::in_user_namespace());

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let engine = Machine::open(config).await.expect("an engine");
        let pod = engine.create_sandbox(sandbox("u")).await.expect("a sandbox").spec.pod;
        let memory = Volume::Memory { size_bytes: Some(1 << 20) };
        engine.put_volume(&pod, "memory", memory).await.expect("a volume");
        let spec = container(dir, &pod, "main", &["status", "Uid", ";", "list", "/dev"]);
        let id = spec.id.clone();
        engine.start(spec).await.expect("a start");
        let (ended, exit) = engine.exits().next().await.expect("an end");
        let mut log = engine.logs(&pod, "main", LogOptions::default()).await.expect("a log");
        let text = log.next().await.expect("a chunk").expect("readable");
        println!("{ended} {exit:?} {}", String::from_utf8_lossy(&text));
        assert_eq!(ended, id);
        let text = String::from_utf8_lossy(&text);
        let (user, devices) = text.split_once('\n').expect("two lines");
        let devices = devices.trim_start_matches("core ");
        assert!(user == "0\t0\t0\t0" && devices.starts_with("fd full mqueue null "), "{text:?}");
        let spec = container(dir, &pod, "long", &["wait-deaf"]);
        let id = spec.id.clone();
        engine.start(spec).await.expect("a start");
        let words = [program::PATH, "exit", "4"].map(str::to_owned);
        let ran = engine.exec(&id, &words, crate::world::PATIENCE).await.expect("it runs");
        assert_eq!((ran.code, String::from_utf8_lossy(&ran.output).as_ref()), (4, ""));
        engine.purge().await.expect("a purge");
    });
    ExitCode::SUCCESS
}

fn containers_run_inside_of_a_user_namespace(world: &World) {
    let allowed = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if allowed.trim() == "0" {
        eprintln!("left out: this kernel allows no user namespaces");
        return;
    }
    let dir = world.dir.path();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("open to all");
    fs::create_dir(dir.join(HOME)).expect("a directory");
    // As if it had unpacked the image itself.
    for owned in [HOME, "image/base", "image/base/etc", "image/top", "image/top/etc"] {
        chown(dir.join(owned), Some(NOBODY), Some(NOBODY)).expect("a new owner");
    }
    // By a path that everybody may walk.
    let mut program = Command::new(dir.join("image/base").join(program::PATH.trim_start_matches('/')));
    let ran =
        program.arg(OUTSIDE).arg(dir).uid(NOBODY).gid(NOBODY).current_dir("/").output().expect("a process");
    assert!(
        ran.status.success(),
        "{}{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
}
