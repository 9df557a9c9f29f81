//! What this machine can do for containers, tried out rather than guessed from versions.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use super::Config;
use crate::cgroup::{self, Cgroups};
use crate::sys::mount::{Attributes, NewFileSystem, add_attributes, open_at};

/// What this machine can do for containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Whether limits on processor, memory and processes are enforced.
    pub limits: bool,
    /// One sentence for each thing without which no container starts. Empty: all is well.
    pub missing: Vec<String>,
    /// One sentence for each thing that is weaker than it should be.
    pub weaker: Vec<String>,
}

/// Whether this process is root only among the users it was given.
///
/// Then layers must have been unpacked with `user.overlay.*` marks, and nothing may belong to users that
/// the namespace does not know.
pub fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<_> = map.split_ascii_whitespace().collect();
    fields != ["0", "0", "4294967295"]
}

/// Where the cgroup file systems of a machine are mounted.
pub const CGROUP_MOUNT: &str = "/sys/fs/cgroup";

/// One sentence for each thing without which no container starts on this machine, whatever runs it. Empty: all is
/// well. Makes nothing.
pub fn missing() -> Vec<String> {
    let mut missing = missing_of_kernel();
    if missing.is_empty() && !in_user_namespace() && !cgroup::could_filter_devices(Path::new(CGROUP_MOUNT)) {
        missing.push(no_device_filter(Path::new(CGROUP_MOUNT)));
    }
    missing
}

/// Why no container starts where root is root of the machine and nothing keeps it from the machine's devices.
pub(super) fn no_device_filter(mount: &Path) -> String {
    let mount = mount.display();
    format!(
        "Nothing would keep containers from the machine's devices: no cgroup hierarchy below {mount} can deny them \
         (version 1 with the devices controller, or version 2 with CONFIG_CGROUP_BPF); mount one there (`ip netns \
         exec` hides them, `nsenter --net=` does not), or run as an ordinary user."
    )
}

fn missing_of_kernel() -> Vec<String> {
    if let Err(error) = try_namespaces() {
        // Nor anything of what follows, and that says nothing about the kernel.
        let text = "run as root, or inside of a user namespace.";
        return vec![format!("This user may not make namespaces ({error}); {text}")];
    }
    let mut missing = Vec::new();
    for feature in ["overlay", "proc", "tmpfs"] {
        if let Err(error) = NewFileSystem::open(feature) {
            missing.push(format!("The kernel does not offer the file system {feature} ({error}); load its module or use a newer kernel."));
        }
    }
    if !has_mount_calls() {
        missing.push("The kernel lacks openat2 or mount_setattr; Linux 5.12 or newer is needed.".to_owned());
    }
    if !Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        missing.push("The kernel has no seccomp filters; it needs CONFIG_SECCOMP_FILTER.".to_owned());
    }
    missing
}

pub(super) fn probe(config: &Config) -> Probe {
    let mut probe = Probe { missing: missing_of_kernel(), ..Probe::default() };
    let cgroups = Cgroups::open(&config.cgroup_mount, &config.cgroup).ok();
    let controls = |name| cgroups.as_ref().is_some_and(|cgroups| cgroups.controls(name));
    let unlimited: Vec<_> = ["cpu", "memory", "pids"].into_iter().filter(|name| !controls(name)).collect();
    probe.limits = unlimited.is_empty();
    if !probe.limits {
        let names = unlimited.join(", ");
        let mount = config.cgroup_mount.display();
        probe.weaker.push(format!(
            "Limits on {names} are not enforced: no cgroup controller for them can be used below {mount}; start this \
             as root where cgroups are mounted there (`ip netns exec` hides them, `nsenter --net=` does not)."
        ));
    }
    match cgroups.is_some_and(|cgroups| cgroups.filters_devices()) {
        true => {}
        false if in_user_namespace() => probe.weaker.push(
            "Access to devices is not filtered by cgroups; file permissions alone protect them.".to_owned(),
        ),
        false => probe.missing.push(no_device_filter(&config.cgroup_mount)),
    }
    probe
}

/// In a thread that ends at once: what it makes goes with it.
fn try_namespaces() -> Result<(), String> {
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    let tried = std::thread::spawn(move || unshare(flags)).join();
    tried.map_err(|_| "a thread panicked".to_owned())?.map_err(|error| error.desc().to_owned())
}

/// Calls that do nothing where they exist.
fn has_mount_calls() -> bool {
    let Ok(root) = fs::File::open("/") else { return false };
    let openat2 = open_at(root.as_fd(), Path::new("."), libc::O_PATH, libc::RESOLVE_IN_ROOT);
    let setattr = add_attributes(root.as_fd(), Attributes::default(), false);
    openat2.is_ok() && !setattr.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS))
}
