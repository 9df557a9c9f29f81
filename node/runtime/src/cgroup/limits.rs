//! Limits as the kernel's files want them, and what was used.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Hierarchy, Version};
use crate::engine::{Resources, Usage};

/// The time over which the processor quota is counted.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;

/// The kernel refuses a quota below 1 ms per period.
const CPU_QUOTA_US_MIN: u64 = 1_000;

/// Bounds of `cpu.shares` in the kernel.
const CPU_SHARES_MIN: u64 = 2;
const CPU_SHARES_MAX: u64 = 262_144;

/// Whose limits they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Pod,
    Container,
}

/// Version 1: 1024 shares are one core's worth.
pub(crate) fn cpu_shares(request_millis: u64) -> u64 {
    (request_millis.saturating_mul(1024) / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX)
}

/// Version 2: the same share on a scale from 1 to 10,000.
fn cpu_weight(request_millis: u64) -> u64 {
    1 + (cpu_shares(request_millis) - CPU_SHARES_MIN) * 9_999 / (CPU_SHARES_MAX - CPU_SHARES_MIN)
}

/// Microseconds per period.
pub(crate) fn cpu_quota_us(limit_millis: u64) -> u64 {
    limit_millis.saturating_mul(CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN)
}

/// Writes the limits into the files of the group `dir`.
pub(super) fn apply(
    hierarchy: &Hierarchy,
    dir: &Path,
    resources: &Resources,
    level: Level,
) -> io::Result<()> {
    match hierarchy.version {
        Version::V1 => apply_v1(hierarchy, dir, resources),
        Version::V2 => apply_v2(hierarchy, dir, resources, level),
    }
}

fn apply_v1(hierarchy: &Hierarchy, dir: &Path, resources: &Resources) -> io::Result<()> {
    if hierarchy.controls("cpu") {
        set(dir, "cpu.shares", &cpu_shares(resources.cpu_request_millis).to_string())?;
        if let Some(limit) = resources.cpu_limit_millis {
            set(dir, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
            set(dir, "cpu.cfs_quota_us", &cpu_quota_us(limit).to_string())?;
        }
    }
    if hierarchy.controls("memory") {
        // Without it the limit of a pod would not count what its containers use. Newer kernels know
        // nothing else and may refuse the write.
        let _ = set(dir, "memory.use_hierarchy", "1");
        if let Some(limit) = resources.memory_limit_bytes {
            set(dir, "memory.limit_in_bytes", &limit.to_string())?;
            // Memory and swap together no more than memory alone: no swap. Absent where swap is not counted.
            if dir.join("memory.memsw.limit_in_bytes").exists() {
                set(dir, "memory.memsw.limit_in_bytes", &limit.to_string())?;
            }
        }
    }
    if let Some(limit) = resources.pids_max.filter(|_| hierarchy.controls("pids")) {
        set(dir, "pids.max", &limit.to_string())?;
    }
    Ok(())
}

fn apply_v2(hierarchy: &Hierarchy, dir: &Path, resources: &Resources, level: Level) -> io::Result<()> {
    if hierarchy.controls("cpu") {
        set(dir, "cpu.weight", &cpu_weight(resources.cpu_request_millis).to_string())?;
        if let Some(limit) = resources.cpu_limit_millis {
            set(dir, "cpu.max", &format!("{} {CPU_PERIOD_US}", cpu_quota_us(limit)))?;
        }
    }
    if hierarchy.controls("memory") {
        if let Some(limit) = resources.memory_limit_bytes {
            set(dir, "memory.max", &limit.to_string())?;
            if dir.join("memory.swap.max").exists() {
                set(dir, "memory.swap.max", "0")?;
            }
        }
        if level == Level::Container && dir.join("memory.oom.group").exists() {
            // A container that lost one of its processes to the limit is neither alive nor dead.
            set(dir, "memory.oom.group", "1")?;
        }
    }
    if let Some(limit) = resources.pids_max.filter(|_| hierarchy.controls("pids")) {
        set(dir, "pids.max", &limit.to_string())?;
    }
    Ok(())
}

/// Adds up what each hierarchy counts; `dirs` are the group's directories in the order of `hierarchies`.
pub(super) fn usage(hierarchies: &[Hierarchy], dirs: &[PathBuf]) -> Usage {
    let mut usage = Usage::default();
    for (hierarchy, dir) in hierarchies.iter().zip(dirs) {
        let (cpu, memory, inactive) = match hierarchy.version {
            Version::V1 => {
                let cpu = number(dir, "cpuacct.usage").map(Duration::from_nanos);
                (cpu, "memory.usage_in_bytes", "total_inactive_file")
            }
            Version::V2 => {
                let cpu = field(dir, "cpu.stat", "usage_usec").map(Duration::from_micros);
                (cpu.filter(|_| hierarchy.controls("cpu")), "memory.current", "inactive_file")
            }
        };
        usage.cpu = cpu.unwrap_or(usage.cpu);
        if let Some(bytes) = number(dir, memory) {
            usage.memory_bytes = bytes;
            usage.working_set_bytes = bytes.saturating_sub(field(dir, "memory.stat", inactive).unwrap_or(0));
        }
        usage.pids = number(dir, "pids.current").unwrap_or(usage.pids);
    }
    usage
}

fn set(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = dir.join(file);
    let named =
        |error| io::Error::new(io::Error::kind(&error), format!("{value:?} to {}: {error}", path.display()));
    fs::write(&path, value).map_err(named)
}

fn number(dir: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
}

/// The number behind `name` in a file of `name number` lines.
pub(super) fn field(dir: &Path, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_become_shares_and_weights_within_the_kernels_bounds() {
        for (millis, shares, weight) in
            [(0, 2, 1), (100, 102, 4), (1000, 1024, 39), (u64::MAX, 262_144, 10_000)]
        {
            assert_eq!((cpu_shares(millis), cpu_weight(millis)), (shares, weight), "{millis}");
        }
        assert_eq!((cpu_quota_us(500), cpu_quota_us(1)), (50_000, 1_000));
    }
}
