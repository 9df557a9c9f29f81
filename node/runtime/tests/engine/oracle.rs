//! Our containers beside those of runc: the same bundle, and what the kernel says of each.
//!
//! The bundle is what the engine wrote for its own shim; only the root (mounted here) and the cgroup's path are
//! runc's own. Left out where runc is not there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use skein_runtime::{ContainerId, ContainerSpec, End, Engine, LogOptions, Machine, Seccomp, Volume};

use crate::isolation::volume;
use crate::world::{World, limits, wait_until, words};

crate::tests![
    programs_find_the_same_surroundings_as_under_runc,
    programs_end_with_the_same_code_as_under_runc,
    limits_are_the_same_as_under_runc,
];

fn is_there() -> bool {
    let there = Command::new("runc").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        eprintln!("left out: runc is not there; run tests/install");
    }
    there
}

/// A bundle for runc; unmounted and removed when dropped.
struct Bundle {
    dir: PathBuf,
    id: String,
    /// Below the root of each hierarchy.
    cgroup: PathBuf,
}

impl Bundle {
    /// What our engine wrote for `id`, for runc.
    fn of(world: &World, id: &ContainerId) -> Bundle {
        let base = world.dir.path();
        let theirs = base.join(format!("data/pods/{}/c/{}-{}/config.json", id.pod, id.name, id.attempt));
        let mut config: Value =
            serde_json::from_slice(&fs::read(theirs).expect("a bundle")).expect("it is JSON");
        let dir = base.join(format!("runc-{}", id.name));
        for part in ["upper", "work", "root"] {
            fs::create_dir_all(dir.join(part)).expect("a directory");
        }
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        let layers = format!(
            "lowerdir={0}/top:{0}/base,upperdir={1},workdir={2}",
            base.join("image").display(),
            upper.display(),
            work.display()
        );
        let root = dir.join("root");
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
            .expect("a mounted root");
        let cgroup = world.config.cgroup.join(format!("runc-{}", id.name));
        config["root"]["path"] = root.display().to_string().into();
        config["linux"]["cgroupsPath"] = Path::new("/").join(&cgroup).display().to_string().into();
        // Raising it takes a right that even root may lack: ours then keeps what there is, runc gives up.
        config["process"]["rlimits"] = Value::Array(Vec::new());
        fs::write(dir.join("config.json"), config.to_string()).expect("a file");
        let id = format!("skein-{}-{}", std::process::id(), id.name);
        Bundle { dir, id, cgroup }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.dir.join("state")).args(words).stdin(Stdio::null());
        command
    }

    /// Runs it to its end: its code and what it printed.
    fn run(&self) -> (i32, String) {
        let ran =
            self.command(&["run", "--bundle"]).arg(&self.dir).arg(&self.id).output().expect("runc runs");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(!said.contains("level=error"), "{said}");
        (ran.status.code().unwrap_or(-1), String::from_utf8_lossy(&ran.stdout).into_owned())
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.id]).stderr(Stdio::null()).status();
        let _ = umount2(&self.dir.join("root"), MntFlags::MNT_DETACH);
        // It removes its own group and leaves those above, also in hierarchies that we do not use.
        let mounts = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in mounts.chain([PathBuf::from("/sys/fs/cgroup")]) {
            for group in self.cgroup.ancestors().filter(|group| !group.as_os_str().is_empty()) {
                let _ = fs::remove_dir(hierarchy.join(group));
            }
        }
    }
}

/// Runs it under our engine: its code and what it printed.
fn run_ours(world: &World, spec: ContainerSpec) -> (i32, String) {
    let id = spec.id.clone();
    world.start(spec);
    match world.end(&id).end {
        End::Exited { code, .. } => (code, world.log(&id, LogOptions::default())),
        other => panic!("{other:?}"),
    }
}

/// Everything the kernel says of a process that it may say of another one too.
const LOOKS: &str = "status Uid ; status Gid ; status Groups ; status Umask ; status CapInh ; status CapPrm ; \
                     status CapEff ; status CapBnd ; status CapAmb ; status NoNewPrivs ; status Seccomp ; \
                     status SigBlk ; cat /proc/self/uid_map ; cat /proc/self/gid_map ; \
                     cat /proc/self/oom_score_adj ; cat /proc/self/limits ; list / ; list /dev ; \
                     list /proc/self/fd ; cwd ; hostname ; env HOME ; env PATH ; cat /etc/hosts ; \
                     print mounts ; cat /proc/self/mountinfo";

/// Where something is mounted, as which file system, and what may be done there.
fn mounts(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let lines = text.lines().skip_while(|line| *line != "mounts").skip(1);
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let fields: Vec<&str> = left.split(' ').collect();
        let kind = right.split(' ').next()?.to_owned();
        let target = fields.get(4)?.to_string();
        // How the root was mounted is for whoever hands it to runc, which forgets it where it makes it read-only.
        let is_root = target == "/";
        let is_ours = |option: &str| is_root && matches!(option, "nodev" | "nosuid");
        let options = fields.get(5)?.split(',').filter(|option| *option != "relatime" && !is_ours(option));
        let options = options.map(str::to_owned);
        // What is hidden lies behind nothing at all, which is the machine's device or, as ours, more read-only.
        let is_kernels = target.starts_with("/proc/") || target.starts_with("/sys/");
        if is_kernels && matches!(kind.as_str(), "tmpfs" | "devtmpfs") {
            return Some((target, ("hidden".to_owned(), Vec::new())));
        }
        Some((target, (kind, options.collect())))
    };
    lines.filter_map(parse).collect()
}

/// All that was printed before the mounts, but for the limit that runc was not asked for.
fn without_mounts(text: &str) -> String {
    let lines = text.lines().take_while(|line| *line != "mounts");
    lines.filter(|line| !line.starts_with("Max open files")).collect::<Vec<_>>().join("\n")
}

fn programs_find_the_same_surroundings_as_under_runc(world: &World) {
    if !is_there() {
        return;
    }
    let pod = world.pod("a");
    world.run(world.engine().put_volume(&pod, "v", Volume::Directory)).expect("a volume");
    let locked = world.dir.path().join("image/base/locked");
    fs::create_dir(&locked).expect("a directory");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).expect("permissions");
    let base = |name: &str| world.container(&pod, name, &words(LOOKS));
    let with = |name: &str, change: fn(&mut ContainerSpec)| {
        let mut spec = base(name);
        change(&mut spec);
        spec
    };
    for spec in [
        base("plain"),
        with("user", |spec| {
            spec.rootfs.config.user = "web".to_owned();
            spec.user.groups = [500].into();
            spec.workdir = Some("/srv/deep".to_owned());
        }),
        with("fixed", |spec| {
            spec.security.privilege_escalation = false;
            spec.security.read_only_root = true;
            spec.security.capabilities.drop = ["ALL".to_owned()].into();
            spec.security.capabilities.add = ["NET_BIND_SERVICE".to_owned()].into();
            spec.mounts = vec![volume("v", None, "/data", false), volume("v", None, "/data-ro", true)];
        }),
        // A directory that root kept to itself, and one that is absent where nothing can be written.
        with("locked", |spec| {
            spec.rootfs.config.user = "web".to_owned();
            spec.security.capabilities.drop = ["ALL".to_owned()].into();
            spec.workdir = Some("/locked".to_owned());
        }),
        with("absent", |spec| {
            spec.rootfs.config.user = "web".to_owned();
            spec.security.capabilities.drop = ["ALL".to_owned()].into();
            spec.security.read_only_root = true;
            spec.workdir = Some("/absent/deep".to_owned());
        }),
        with("open", |spec| {
            spec.security.seccomp = Seccomp::Unconfined;
            spec.security.unmasked_proc = true;
            spec.security.capabilities.add = ["SYS_TIME".to_owned()].into();
            spec.oom_score_adj = Some(500);
        }),
    ] {
        let id = spec.id.clone();
        let ours = run_ours(world, spec);
        let theirs = Bundle::of(world, &id).run();
        assert_eq!(ours.0, theirs.0, "{}: {}{}", id.name, ours.1, theirs.1);
        assert_eq!(without_mounts(&ours.1), without_mounts(&theirs.1), "{}", id.name);
        assert_eq!(mounts(&ours.1), mounts(&theirs.1), "{}", id.name);
    }
}

fn programs_end_with_the_same_code_as_under_runc(world: &World) {
    if !is_there() {
        return;
    }
    let pod = world.pod("a");
    for (name, words) in [
        ("well", &["print", "done"][..]),
        ("badly", &["complain", "oh", ";", "exit", "7"]),
        ("abort", &["abort"]),
        ("unknown", &["no-such-verb"]),
        ("filtered", &["unshare"]),
        ("orphan", &["child", "wait-deaf", ";", "exit", "3"]),
    ] {
        let spec = world.container(&pod, name, words);
        let id = spec.id.clone();
        let (code, text) = run_ours(world, spec);
        let theirs = Bundle::of(world, &id).run();
        assert_eq!(code, theirs.0, "{name}");
        // Our log holds both outputs.
        assert!(text.contains(&theirs.1), "{name}: {text:?} {:?}", theirs.1);
    }
}

fn limits_are_the_same_as_under_runc(world: &World) {
    if !is_there() || !Machine::probe(&world.config).limits {
        return;
    }
    let pod = world.pod("a");
    let spec = ContainerSpec { resources: limits(), ..world.container(&pod, "main", &["wait-deaf"]) };
    let id = spec.id.clone();
    world.start(spec);
    let bundle = Bundle::of(world, &id);
    let mut theirs =
        bundle.command(&["run", "--bundle"]).arg(&bundle.dir).arg(&bundle.id).spawn().expect("it runs");
    let hierarchy = |controller: &str| {
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        if v1.join("cgroup.procs").exists() { v1 } else { PathBuf::from("/sys/fs/cgroup") }
    };
    // Its program runs when all of it is set.
    let procs = hierarchy("pids").join(&bundle.cgroup).join("cgroup.procs");
    let runs = || {
        let pids = fs::read_to_string(&procs).unwrap_or_default();
        pids.lines().any(|pid| {
            let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.contains("wait-deaf")
        })
    };
    wait_until(|| runs() || theirs.try_wait().is_ok_and(|ended| ended.is_some()));
    let mut compared = 0;
    for (controller, file) in [
        ("cpu", "cpu.shares"),
        ("cpu", "cpu.cfs_quota_us"),
        ("cpu", "cpu.cfs_period_us"),
        ("cpu", "cpu.weight"),
        ("cpu", "cpu.max"),
        ("memory", "memory.limit_in_bytes"),
        ("memory", "memory.max"),
        ("memory", "memory.swap.max"),
        ("pids", "pids.max"),
        ("devices", "devices.list"),
    ] {
        let Ok(ours) = fs::read_to_string(world.cgroup(controller, &id).join(file)) else { continue };
        let path = hierarchy(controller).join(&bundle.cgroup).join(file);
        let sorted = |text: &str| {
            // Older runc lets every container make tunnels, 10:200, without being asked.
            let mut lines: Vec<_> =
                text.lines().filter(|line| !line.contains("10:200")).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let found = sorted(&fs::read_to_string(&path).unwrap_or_else(|error| error.to_string()));
        assert_eq!(sorted(&ours), found, "{file}");
        compared += 1;
    }
    assert!(compared >= 4, "{compared} files");
    let killed = bundle.command(&["kill", &bundle.id, "KILL"]).status().expect("runc runs");
    assert!(killed.success());
    assert_eq!(theirs.wait().expect("it ends").code(), Some(137));
}
