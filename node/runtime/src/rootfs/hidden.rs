//! What of `/proc` and `/sys` a container may not see, and what it may only read.
//!
//! Done when the mounts of the container are made, in a mount namespace that nobody but us has entered yet:
//! kernels before 6.15 mount nothing below a tree that is not attached itself. Each path is looked up without
//! links below a `/proc` or `/sys` that was seen to be the kernel's, so nothing else can be hidden in its stead.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};

use super::destination::{self, Kind, Links};
use super::mounts::kind_of;
use crate::broken;
use crate::sys::mount::{Attributes, NewFileSystem, add_attributes, attach, clone_tree_of};

/// The inode of the root of both `/proc` and `/sys`.
const ROOT_INODE: u64 = 1;

/// An empty file and an empty directory, which lie over what must not be seen.
///
/// They belong to the container alone. A null device would do as well, but for `chmod`: it changes the device
/// for everybody who has the same one.
pub(super) struct Cover {
    file: OwnedFd,
    directory: OwnedFd,
}

impl Cover {
    /// Makes them on `place`, out of sight below what will be mounted there next.
    pub(super) fn below(place: &Path) -> io::Result<Self> {
        let mount = NewFileSystem::open("tmpfs")?.mount(Attributes::default())?;
        attach(mount.as_fd(), super::open_root(place)?.as_fd())?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = nix::fcntl::openat(&mount, "file", flags, Mode::from_bits_truncate(0o444))?;
        mkdirat(&mount, "directory", Mode::from_bits_truncate(0o555))?;
        let directory = destination::open_without_links(mount.as_fd(), Path::new("directory"))?;
        Ok(Self { file, directory })
    }

    /// A mount that shows nothing and takes nothing.
    fn mount(&self, kind: Kind) -> io::Result<OwnedFd> {
        let mount = match kind {
            Kind::File if broken!(MasksOfTheMachine) => {
                return clone_tree_of(std::fs::File::open("/dev/null")?.as_fd(), false);
            }
            Kind::File => clone_tree_of(self.file.as_fd(), false)?,
            Kind::Directory => clone_tree_of(self.directory.as_fd(), false)?,
        };
        let least = Attributes::READ_ONLY
            .with(Attributes::NO_SUID)
            .with(Attributes::NO_DEV)
            .with(Attributes::NO_EXEC);
        add_attributes(mount.as_fd(), least, false)?;
        Ok(mount)
    }
}

/// Hides `path` in the root file system `root`.
pub(super) fn hide(root: BorrowedFd<'_>, path: &Path, cover: &Cover) -> io::Result<()> {
    let Some(target) = open(root, path)?.filter(|_| !broken!(NothingHidden)) else { return Ok(()) };
    let mount = cover.mount(kind_of(target.as_fd())?)?;
    attach(mount.as_fd(), target.as_fd())
}

/// Mounts `path` over itself, read-only with everything below.
pub(super) fn make_read_only(root: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let Some(target) = open(root, path)?.filter(|_| !broken!(SettingsWritable)) else { return Ok(()) };
    let copy = clone_tree_of(target.as_fd(), true)?;
    add_attributes(copy.as_fd(), Attributes::READ_ONLY, true)?;
    attach(copy.as_fd(), target.as_fd())
}

/// Opens a file of the kernel's; `None` if this kernel does not have it.
fn open(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    if broken!(LinksToKernelFiles) {
        return destination::open_if_there(root, path, Links::Inside);
    }
    for (top, kind) in [("/proc", PROC_SUPER_MAGIC), ("/sys", SYSFS_MAGIC)] {
        if let Ok(inside) = path.strip_prefix(top) {
            let top = open_kernels(root, Path::new(top), kind)?;
            return destination::open_if_there(top.as_fd(), inside, Links::Refused);
        }
    }
    Err(io::Error::other("only what is below /proc and /sys can be hidden"))
}

/// Opens the root of a file system of the kernel's, and makes sure that it is.
fn open_kernels(root: BorrowedFd<'_>, top: &Path, kind: FsType) -> io::Result<OwnedFd> {
    let found = destination::open_without_links(root, top)?;
    if fstatfs(&found)?.filesystem_type() != kind || fstat(&found)?.st_ino != ROOT_INODE {
        return Err(io::Error::other(format!("{} is not the kernel's", top.display())));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_counts_as_absent_only_where_the_kernels_files_are() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("proc")).expect("a directory");
        symlink("/sys", dir.path().join("sys")).expect("a link");
        let fake = File::open(dir.path()).expect("a root");
        for path in ["/proc/none", "/proc/self", "/sys/none", "/sys/kernel", "/etc/none", "/proc", "/"] {
            assert!(open(fake.as_fd(), Path::new(path)).is_err(), "{path}");
        }
        let real = File::open("/").expect("a root");
        for (path, is_there) in [("/proc/none", false), ("/proc/version", true), ("/sys/none/of/it", false)] {
            let found = open(real.as_fd(), Path::new(path)).expect("the kernel's");
            assert_eq!(found.is_some(), is_there, "{path}");
        }
    }
}
