//! Which hierarchies are mounted where.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Hierarchy, Version};

/// Controllers of version 1 whose groups we make; `cpuset`, say, would need values we have no say in.
const V1_USED: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "devices", "freezer"];

/// Controllers of version 2 that we pass down.
const V2_USED: [&str; 3] = ["cpu", "memory", "pids"];

/// The hierarchies mounted at or below `mount`.
pub(super) fn hierarchies(mount: &Path) -> io::Result<Vec<Hierarchy>> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found = parse(&mountinfo, mount);
    for hierarchy in found.iter_mut().filter(|hierarchy| hierarchy.version == Version::V2) {
        hierarchy.controllers = v2_controllers(&hierarchy.mount);
    }
    Ok(found)
}

/// The controllers a group of version 2 may pass down, of those we use.
pub(super) fn v2_controllers(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    text.split_ascii_whitespace().filter(|name| V2_USED.contains(name)).map(str::to_owned).collect()
}

/// A line is `id parent major:minor root mountpoint options .. - type source superoptions`.
fn parse(mountinfo: &str, below: &Path) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
        if !mount.starts_with(below) {
            continue;
        }
        let (version, controllers) = match kind {
            "cgroup2" => (Version::V2, Vec::new()),
            "cgroup" => {
                let used = |option: &&str| V1_USED.contains(option) || *option == "name=systemd";
                (Version::V1, options.split(',').filter(used).map(str::to_owned).collect::<Vec<_>>())
            }
            _ => continue,
        };
        if version == Version::V1 && controllers.is_empty() {
            continue;
        }
        // A later mount hides an earlier one at the same place.
        found.retain(|hierarchy| hierarchy.mount != mount);
        found.push(Hierarchy { mount, version, controllers });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_has_both_versions() {
        let mountinfo = "\
24 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:38 / /elsewhere/unified rw,relatime - cgroup2 cgroup2 rw
";
        let found = parse(mountinfo, Path::new("/sys/fs/cgroup"));
        let hierarchy = |name: &str, version, controllers: &[&str]| Hierarchy {
            mount: Path::new("/sys/fs/cgroup").join(name),
            version,
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
        };
        let cpu = hierarchy("cpu,cpuacct", Version::V1, &["cpu", "cpuacct"]);
        let systemd = hierarchy("systemd", Version::V1, &["name=systemd"]);
        assert_eq!(found, [cpu, systemd, hierarchy("unified", Version::V2, &[])]);
    }

    #[test]
    fn a_line_that_is_no_mount_is_passed_over() {
        assert_eq!(parse("\n - \n1 2 3 - cgroup\nx - cgroup2 cgroup2 rw\n", Path::new("/")), []);
    }
}
