//! Whose a group is, and whether that one is alive: an empty group `of-<owner>` in our part of each hierarchy.
//!
//! The owner is a data directory, as its user calls it (a few letters and digits). A mark in the group itself is as old as
//! what runs there and ends with it, whatever becomes of the directory meanwhile. The daemon holds a lock on it, which the
//! kernel gives up at its death. So three things can be told apart: what a living daemon runs, what one that is away has
//! left for its next start (it knows its own group), and what nobody will ever take up again: a group of a directory that
//! is another node's now.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::processes::children;
use super::{Hierarchy, detect};

/// The start of a mark's name.
const PREFIX: &str = "of-";
/// How deep groups of ours are looked for: service managers nest theirs by five or six.
const DEPTH_MAX: usize = 10;

/// Marks `ours` in each hierarchy as a living daemon's, for as long as what this returns is kept.
///
/// Fails where another living daemon has the group. A mark of one that is dead goes: its group is the caller's now.
pub(super) fn claim(hierarchies: &[Hierarchy], ours: &Path, owner: &str) -> io::Result<Vec<File>> {
    let mut held = Vec::new();
    for group in hierarchies.iter().map(|hierarchy| hierarchy.mount.join(ours)) {
        let own = group.join(format!("{PREFIX}{owner}"));
        for other in marks(&group).filter(|mark| *mark != own) {
            lock(&other)?;
            fs::remove_dir(&other)?;
        }
        match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => held.push(lock(&own)?),
        }
    }
    Ok(held)
}

/// The groups of `owner` below `mount`, by their paths below each hierarchy's root, in order.
///
/// A group with a mark of somebody else as well is left out: nobody can say whose it is.
pub(crate) fn groups_of(mount: &Path, owner: &str) -> io::Result<Vec<PathBuf>> {
    let mark = format!("{PREFIX}{owner}");
    let mut found = Vec::new();
    for hierarchy in detect::hierarchies(mount)? {
        let mut groups = Vec::new();
        collect(&hierarchy.mount, &mark, DEPTH_MAX, &mut groups);
        found.extend(
            groups.iter().filter_map(|group| Some(group.strip_prefix(&hierarchy.mount).ok()?.to_owned())),
        );
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Whether a living process has one of these groups, and its number if that can be told.
pub(crate) fn holder(groups: &[PathBuf]) -> Option<Holder> {
    let held = |mark: PathBuf| {
        lock(&mark).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy).then_some(mark)
    };
    let mark = groups.iter().flat_map(|group| marks(group)).find_map(held)?;
    Some(Holder { pid: fs::metadata(mark).ok().and_then(|mark| locked_by(mark.dev(), mark.ino())) })
}

/// A process that has a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) pid: Option<u32>,
}

fn marks(group: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let is_mark = |dir: &PathBuf| {
        dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX))
    };
    children(group).into_iter().filter(is_mark)
}

fn lock(mark: &Path) -> io::Result<File> {
    let dir = File::open(mark)?;
    match dir.try_lock() {
        Ok(()) => Ok(dir),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("another node that runs has the group {}", mark.display()),
        )),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn collect(dir: &Path, mark: &str, depth: usize, found: &mut Vec<PathBuf>) {
    let marks: Vec<PathBuf> = marks(dir).collect();
    match &*marks {
        [only] if only.ends_with(mark) => found.push(dir.to_owned()),
        // What lies below a node's group is its pods': they may make groups of any name.
        [_, ..] => {}
        [] if depth > 0 => children(dir).iter().for_each(|child| collect(child, mark, depth - 1, found)),
        [] => {}
    }
}

/// Whose lock lies on a file: a line is `1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF`.
fn locked_by(dev: u64, inode: u64) -> Option<u32> {
    let place = format!("{:02x}:{:02x}:{inode}", libc::major(dev), libc::minor(dev));
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // 0 is a process that our pid namespace does not show.
        (words.get(5) == Some(&&*place)).then(|| words[4].parse().ok()).flatten().filter(|pid| *pid > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Version;

    fn hierarchy(mount: &Path) -> Hierarchy {
        Hierarchy { mount: mount.to_owned(), version: Version::V1, controllers: vec!["cpu".to_owned()] }
    }

    fn found(root: &Path, owner: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(root, &format!("{PREFIX}{owner}"), DEPTH_MAX, &mut found);
        found
    }

    #[test]
    fn a_group_is_its_owners_and_held_while_that_one_lives() {
        let root = tempfile::tempdir().expect("a directory");
        let (ours, group) = (Path::new("skein/n1"), root.path().join("skein/n1"));
        fs::create_dir_all(group.join("shims")).expect("a directory");
        assert_eq!(found(root.path(), "a1"), Vec::<PathBuf>::new());
        let hierarchies = [hierarchy(root.path())];
        let held = claim(&hierarchies, ours, "a1").expect("it is free");
        assert_eq!(found(root.path(), "a1"), std::slice::from_ref(&group));
        assert_eq!(found(root.path(), "a"), Vec::<PathBuf>::new());
        let groups = [group.clone()];
        assert_eq!(holder(&groups), Some(Holder { pid: Some(std::process::id()) }));
        for owner in ["a1", "b2"] {
            let error = claim(&hierarchies, ours, owner).expect_err("it is another's");
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        }
        drop(held);
        assert_eq!(holder(&groups), None);
        // Whoever takes a dead one's group has it alone.
        let _held = claim(&hierarchies, ours, "b2").expect("it is free");
        assert_eq!((found(root.path(), "a1"), found(root.path(), "b2")), (Vec::new(), vec![group]));
    }

    #[test]
    fn what_a_pod_calls_its_groups_marks_nothing_and_two_marks_are_nobodys() {
        let root = tempfile::tempdir().expect("a directory");
        for path in ["skein/n1/of-b2", "skein/n1/poduid/main-0/of-a1", "skein/n2/of-a1", "skein/n2/of-b2"] {
            fs::create_dir_all(root.path().join(path)).expect("a directory");
        }
        assert_eq!(found(root.path(), "a1"), Vec::<PathBuf>::new());
        assert_eq!(found(root.path(), "b2"), [root.path().join("skein/n1")]);
    }
}
