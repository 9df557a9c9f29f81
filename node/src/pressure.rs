//! What this machine is short of.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use skein_control::pressure::{Gauge, Level, Pressures, Readings};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;

/// As often as kubelet looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Looks until `stopping`, and lets others here wait for it to change. `dir` lies on the disk that images fill.
pub(crate) fn watch(
    tasks: &TaskTracker,
    dir: PathBuf,
    stopping: CancellationToken,
) -> watch::Receiver<Pressures> {
    let mut gauge = Gauge::default();
    let mut look = move || gauge.read(clock::boot(), &readings(&dir));
    let (tell, told) = watch::channel(look());
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let pressures = look();
            tell.send_if_modified(|told| std::mem::replace(told, pressures) != pressures);
        }
    });
    told
}

/// What the kernel does not say is a level of zero.
fn readings(dir: &Path) -> Readings {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let number = |path: &str| file(path).trim().parse::<u64>().ok();
    let (disk, files) = statvfs(dir).map_or_else(
        |_| Default::default(),
        |held| {
            let bytes = |blocks: u64| blocks * held.fragment_size();
            (
                Level { total: bytes(held.blocks()), free: bytes(held.blocks_available()) },
                Level { total: held.files(), free: held.files_available() },
            )
        },
    );
    let limits = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    let total = limits.into_iter().flatten().min().unwrap_or(0);
    Readings { memory: memory(), disk, files, processes: processes(&file("/proc/loadavg"), total) }
}

/// How much memory this machine has.
pub(crate) fn memory() -> Level {
    memory_in(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn memory_in(meminfo: &str) -> Level {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    match (bytes("MemTotal"), bytes("MemAvailable")) {
        (Some(total), Some(free)) => Level { total, free },
        _ => Level::default(),
    }
}

/// The fourth field is how many run of how many there are (proc_loadavg(5)).
fn processes(loadavg: &str, total: u64) -> Level {
    let there = loadavg.split_whitespace().nth(3).and_then(|field| field.split_once('/')?.1.parse().ok());
    there.map_or_else(Level::default, |there: u64| Level { total, free: total.saturating_sub(there) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let meminfo = "MemTotal:        2000 kB\nMemFree:          100 kB\nMemAvailable:     1500 kB\n";
        assert_eq!(memory_in(meminfo), Level { total: 2_048_000, free: 1_536_000 });
        assert_eq!(memory_in("MemTotal: 2000 kB\n"), Level::default());
        assert_eq!(processes("0.1 0.2 0.3 2/300 4711\n", 1000), Level { total: 1000, free: 700 });
        assert_eq!(processes("", 1000), Level::default());
    }

    #[test]
    fn this_machine_has_all_of_it() {
        let Readings { memory, disk, processes, .. } = readings(Path::new("/"));
        for level in [memory, disk, processes] {
            assert!(level.total > 0 && level.free <= level.total, "{level:?}");
        }
    }
}
