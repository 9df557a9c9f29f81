//! A pod's namespaces (network, IPC, host name), kept without a process.
//!
//! A thread of its own steps into new namespaces, sets them up from inside, and pins them by bind mounts
//! of `/proc/thread-self/ns/*` on files; then it ends. These three kinds belong to a thread, not to a
//! process, so neither a fork nor another program is needed, and nothing of the daemon changes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{FsType, statfs};

use crate::engine::{Network, SandboxSpec};
use crate::sys::interface;

/// The namespaces of a pod with its own network; one on the machine's network only has its own IPC.
const KINDS: [&str; 3] = ["net", "ipc", "uts"];

/// What a bind-mounted namespace says it is.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// The memory a pod may share by `/dev/shm`.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// Settings whose values belong to a namespace that the pod does not share with the machine.
const SYSCTLS_OWN: [&str; 6] =
    ["net.", "kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.", "kernel.hostname"];

/// The file that holds a namespace of the sandbox in `dir`.
pub(crate) fn pin(dir: &Path, kind: &str) -> PathBuf {
    dir.join("ns").join(kind)
}

/// Where the pod's `/dev/shm` lies.
pub(crate) fn shm(dir: &Path) -> PathBuf {
    dir.join("shm")
}

/// The namespaces a pod has of its own.
pub(crate) fn kinds(network: Network) -> &'static [&'static str] {
    match network {
        Network::Pod => &KINDS,
        Network::Machine => &KINDS[1..2],
    }
}

/// The first setting that would change the machine and not the pod.
pub(crate) fn foreign_sysctl(spec: &SandboxSpec) -> Option<&str> {
    let is_own = |name: &&String| {
        let own = SYSCTLS_OWN.iter().any(|prefix| name.starts_with(prefix));
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/'));
        own && plain && !name.contains("..") && (spec.network == Network::Pod || !name.starts_with("net."))
    };
    spec.sysctls.keys().find(|name| !is_own(name)).map(String::as_str)
}

/// Makes the namespaces of `spec` and pins them below `dir`. Pins that exist are kept.
pub(crate) fn create(dir: &Path, spec: &SandboxSpec) -> io::Result<()> {
    if is_ready(dir, spec.network) {
        return Ok(());
    }
    fs::create_dir_all(dir.join("ns"))?;
    let (dir, spec) = (dir.to_owned(), spec.clone());
    // Not a thread of a pool: it comes out changed for good.
    let thread = std::thread::Builder::new().name("sandbox".to_owned()).spawn(move || {
        let own_network = spec.network == Network::Pod;
        let network = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
        unshare(CloneFlags::CLONE_NEWIPC | if own_network { network } else { CloneFlags::empty() })?;
        if own_network {
            nix::unistd::sethostname(&spec.hostname)?;
            interface::set_loopback_up()?;
            open_network_to_users();
        }
        set_sysctls(&spec.sysctls)?;
        kinds(spec.network).iter().try_for_each(|kind| pin_own(&dir, kind))?;
        mount_shm(&dir)
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes namespaces panicked")))
}

/// Whether all pins of the sandbox hold a namespace; after a restart of the machine they are plain files.
pub(crate) fn is_ready(dir: &Path, network: Network) -> bool {
    let is_namespace =
        |kind: &&str| statfs(&pin(dir, kind)).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC);
    kinds(network).iter().all(is_namespace)
}

/// Unmounts everything at and below `dir`, deepest first: pins, shared memory, volumes in memory.
pub(crate) fn unmount_below(dir: &Path) -> io::Result<()> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    unmount(&mounts_below(&mountinfo, dir))
}

/// Unmounts all of these, given in the order they were mounted.
pub(crate) fn unmount(targets: &[PathBuf]) -> io::Result<()> {
    for target in targets.iter().rev() {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Not mounted any more.
            Err(nix::Error::EINVAL | nix::Error::ENOENT) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Mount points at or below `dir`, in the order they were mounted.
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    mounts(mountinfo).filter(|target| target.starts_with(dir)).collect()
}

/// All mount points, in the order they were mounted.
pub(crate) fn mounts(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape)
}

/// The kernel writes blank, tab, newline and backslash in a path as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (escaped, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escaped, character);
    }
    PathBuf::from(plain)
}

/// Low ports and `ping` without capabilities: in a network of their own they take nothing from anybody.
fn open_network_to_users() {
    // Kernels without the setting just keep their rule.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    // A user namespace knows fewer groups than the largest range names.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
        .or_else(|_| fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0"));
}

fn set_sysctls(sysctls: &BTreeMap<String, String>) -> io::Result<()> {
    for (name, value) in sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("sysctl {name}={value}: {error}"));
        fs::write(path, value).map_err(named)?;
    }
    Ok(())
}

/// Pins a namespace of the calling thread.
fn pin_own(dir: &Path, kind: &str) -> io::Result<()> {
    let target = pin(dir, kind);
    File::create(&target)?;
    let source = format!("/proc/thread-self/ns/{kind}");
    Ok(mount(Some(source.as_str()), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

fn mount_shm(dir: &Path) -> io::Result<()> {
    let target = shm(dir);
    fs::create_dir_all(&target)?;
    mount_tmpfs(&target, SHM_OPTIONS)
}

/// Mounts memory on a directory of ours, where no program of a container can have put anything.
pub(crate) fn mount_tmpfs(target: &Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_whole_path_parts_and_unescaped() {
        let mountinfo = "\
1 0 8:1 / / rw - ext4 x rw
2 1 0:4 net:[1] /data/pods/a/ns/net rw - nsfs nsfs rw
3 1 0:4 net:[2] /data/pods/ab/ns/net rw - nsfs nsfs rw
4 1 0:5 / /data/pods/a/volumes/with\\040blank rw - tmpfs tmpfs rw
";
        let found = mounts_below(mountinfo, Path::new("/data/pods/a"));
        assert_eq!(found, [Path::new("/data/pods/a/ns/net"), Path::new("/data/pods/a/volumes/with blank")]);
    }

    #[test]
    fn only_settings_of_the_pods_own_namespaces_are_taken() {
        let spec = |network, name: &str| SandboxSpec {
            pod: "a".parse().expect("a uid"),
            namespace: String::new(),
            name: String::new(),
            hostname: String::new(),
            network,
            sysctls: BTreeMap::from([(name.to_owned(), "1".to_owned())]),
            resources: Default::default(),
            labels: BTreeMap::new(),
        };
        for (network, name, own) in [
            (Network::Pod, "net.ipv4.ip_forward", true),
            (Network::Machine, "net.ipv4.ip_forward", false),
            (Network::Machine, "kernel.shmmax", true),
            (Network::Pod, "kernel.panic", false),
            (Network::Pod, "net.../../kernel/panic", false),
        ] {
            assert_eq!(foreign_sysctl(&spec(network, name)).is_none(), own, "{name}");
        }
    }
}
