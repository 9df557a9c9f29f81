//! The lab's cgroups: removing what dead machines left, and starving a daemon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

const MOUNT: &str = "/sys/fs/cgroup";

/// Every cgroup hierarchy's root: one on cgroup v2, one a controller on v1.
fn roots() -> Vec<PathBuf> {
    if Path::new(MOUNT).join("cgroup.controllers").exists() {
        return vec![MOUNT.into()];
    }
    let entries = fs::read_dir(MOUNT).into_iter().flatten().flatten();
    // `cpu` and `cpu,cpuacct` are often links to one hierarchy; removing twice does no harm.
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Removes `group` and everything below it from every hierarchy. What still holds a process stays.
pub(super) fn remove(group: &str) {
    for root in roots() {
        remove_tree(&root.join(group));
    }
}

fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Moves `pid` to `group` with at most `percent` of one core; `None` lifts the limit.
pub(super) fn throttle(group: &str, pid: Pid, percent: Option<u32>) -> io::Result<()> {
    const PERIOD_US: u32 = 100_000;
    let quota = percent.map(|percent| PERIOD_US / 100 * percent);
    let unified = Path::new(MOUNT).join("cgroup.controllers").exists();
    let group = if unified { Path::new(MOUNT).join(group) } else { Path::new(MOUNT).join("cpu").join(group) };
    fs::create_dir_all(&group)?;
    if unified {
        let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
        fs::write(group.join("cpu.max"), format!("{quota} {PERIOD_US}"))?;
    } else {
        fs::write(group.join("cpu.cfs_quota_us"), quota.map_or("-1".to_owned(), |quota| quota.to_string()))?;
    }
    fs::write(group.join("cgroup.procs"), pid.to_string())
}
