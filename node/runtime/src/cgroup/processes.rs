//! Putting processes into groups, and getting rid of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as signal_process};
use nix::unistd::Pid;

use super::limits::field;

/// How long killed processes may take to vanish: one in a slow disk operation ends with it.
const VANISH_MAX: Duration = Duration::from_secs(10);

/// Between two looks at whether they have.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Puts the calling process into each of the groups.
pub(crate) fn join(dirs: &[PathBuf]) -> io::Result<()> {
    dirs.iter().try_for_each(|dir| fs::write(dir.join("cgroup.procs"), "0"))
}

/// Kills every process in the groups and below, and waits until they are gone.
///
/// Groups that do not exist hold nobody.
pub(crate) fn kill(dirs: &[PathBuf]) -> io::Result<()> {
    let deadline = Instant::now() + VANISH_MAX;
    loop {
        let pids = processes(dirs);
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let left = pids.len();
            return Err(io::Error::other(format!(
                "{left} killed processes do not end; they may hang on a disk"
            )));
        }
        kill_once(dirs, &pids);
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn kill_once(dirs: &[PathBuf], pids: &[i32]) {
    // A group at 1 % of a core takes seconds to die of its own death; let it run.
    write_all(dirs, "cpu.cfs_quota_us", "-1");
    write_all(dirs, "cpu.max", "max");
    // Version 2 kills a group as a whole. Where it cannot, freezing first keeps it from forking on.
    if write_all(dirs, "cgroup.kill", "1") {
        return;
    }
    write_all(dirs, "freezer.state", "FROZEN");
    for pid in pids {
        let _ = signal_process(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    write_all(dirs, "freezer.state", "THAWED");
}

/// Removes the groups and all below. They must be empty of processes.
pub(crate) fn remove(dirs: &[PathBuf]) -> io::Result<()> {
    let deadline = Instant::now() + VANISH_MAX;
    for dir in dirs {
        // A process that ended may count for another moment.
        while let Err(error) = remove_tree(dir) {
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
    Ok(())
}

/// How many processes of the group the kernel killed because its memory limit was reached.
pub(crate) fn oom_kills(dirs: &[PathBuf]) -> u64 {
    let counts = dirs.iter().map(|dir| {
        let v1 = field(dir, "memory.oom_control", "oom_kill");
        v1.or_else(|| field(dir, "memory.events", "oom_kill")).unwrap_or(0)
    });
    counts.sum()
}

/// All processes in the groups and below; the same one counts in each hierarchy, and is named once.
fn processes(dirs: &[PathBuf]) -> Vec<i32> {
    let mut pids = Vec::new();
    dirs.iter().for_each(|dir| collect_processes(dir, &mut pids));
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn collect_processes(dir: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process that our pid namespace does not show: not one of ours.
    pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 0));
    children(dir).iter().for_each(|child| collect_processes(child, pids));
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    children(dir).iter().try_for_each(|child| remove_tree(child))?;
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Writes to the file in each group that has it; whether any did.
fn write_all(dirs: &[PathBuf], file: &str, value: &str) -> bool {
    let mut any = false;
    for path in dirs.iter().map(|dir| dir.join(file)).filter(|path| path.exists()) {
        any |= fs::write(path, value).is_ok();
    }
    any
}
