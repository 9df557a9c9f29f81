//! What a node has left running whose data directory is no more, or is another node's now.
//!
//! Nothing on disk tells of it; the kernel does. Groups are found by the mark of their owner
//! ([`crate::cgroup::groups_of`]), with them all processes; pins and shared memory by the pods' uids, which
//! stand in the names of the groups and in the paths of the mounts, wherever the directory was moved to.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Doing;
use crate::cgroup::{self, Cgroups, Holder};
use crate::engine::{Error, PodUid};
use crate::sandbox;

/// What ran under one cgroup of an owner.
#[derive(Debug)]
pub struct Remains {
    group: PathBuf,
    cgroups: Cgroups,
    pods: BTreeSet<PodUid>,
    holder: Option<Holder>,
}

impl Remains {
    /// Everything on this machine that carries the mark `owner` (see [`super::Config::owner`]), but for the group `own`.
    pub fn find(mount: &Path, owner: &str, own: Option<&Path>) -> Result<Vec<Remains>, Error> {
        let looking = || "look for what a former node has left running".to_owned();
        let groups = cgroup::groups_of(mount, owner).doing(looking)?;
        let groups = groups.into_iter().filter(|group| own != Some(group));
        let found = groups.map(|group| {
            let cgroups = Cgroups::present(mount, &group)?;
            let pods = cgroups.pods().into_iter().collect();
            let holder = cgroup::holder(&cgroups.groups());
            Ok(Remains { group, cgroups, pods, holder })
        });
        found.collect::<io::Result<_>>().doing(looking)
    }

    /// The cgroup, below each hierarchy's root.
    pub fn cgroup(&self) -> &Path {
        &self.group
    }

    /// How many pods it has.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    /// The daemon whose it is, if that lives: its number, where this process may see it.
    pub fn daemon(&self) -> Option<Option<u32>> {
        self.holder.map(|holder| holder.pid)
    }

    /// Ends all of it: processes and shims, groups and mounts. Nothing happens while its daemon lives.
    pub fn end(self) -> Result<(), Error> {
        let group = self.group.display();
        if cgroup::holder(&self.cgroups.groups()).is_some() {
            let source = io::Error::new(io::ErrorKind::ResourceBusy, "its daemon lives");
            return Err(Error::Io { doing: format!("end what runs in cgroup {group}"), source });
        }
        self.cgroups.remove_ours().doing(|| format!("end what runs in cgroup {group}"))?;
        unmount_pods(&self.pods).doing(|| format!("unmount what the pods of cgroup {group} had"))
    }
}

/// Unmounts everything at and below `dir`, of which no engine knows any more.
pub fn unmount_below(dir: &Path) -> Result<(), Error> {
    sandbox::unmount_below(dir).doing(|| format!("unmount below {}", dir.display()))
}

/// Unmounts what lies below a directory `pods/<uid>` of one of these, deepest first. A mount whose directory was deleted
/// went with it.
fn unmount_pods(pods: &BTreeSet<PodUid>) -> io::Result<()> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let targets: Vec<PathBuf> = sandbox::mounts(&mountinfo).filter(|target| is_of(target, pods)).collect();
    sandbox::unmount(&targets)
}

fn is_of(target: &Path, pods: &BTreeSet<PodUid>) -> bool {
    let parts: Vec<&str> = target.iter().filter_map(|part| part.to_str()).collect();
    parts.windows(2).any(|pair| pair[0] == "pods" && pods.iter().any(|pod| pod.as_str() == pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_pods_are_known_by_uid_wherever_the_directory_is() {
        let pods = BTreeSet::from(["u1".parse().expect("a uid")]);
        for (target, expected) in [
            ("/data/pods/pods/u1/ns/net", true),
            ("/moved away/pods/u1/shm", true),
            ("/pods/u1", true),
            ("/data/pods/pods/u2/ns/net", false),
            ("/data/u1/ns/net", false),
            ("/data/pods/x/u1", false),
        ] {
            assert_eq!(is_of(Path::new(target), &pods), expected, "{target}");
        }
    }
}
