//! Finding and making a place inside somebody else's file tree without being led out of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use crate::broken;
use crate::opening::{self, place_of};
use crate::sys::mount::open_at;

/// What a place must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// What a link on the way to a place does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// It leads to where it would lead if the root were `/`; one of `/proc` that leads anywhere does not lead.
    Inside,
    /// It is an error.
    Refused,
}

impl Links {
    fn resolve(self) -> u64 {
        match self {
            Self::Inside if broken!(LinksOutOfImages) => 0,
            Self::Refused if broken!(LinksOutOfVolumes) => 0,
            Self::Inside => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
            Self::Refused => libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS,
        }
    }
}

/// Where the kernel's own file systems lie in a container.
const KERNELS: [&str; 3] = ["proc", "sys", "dev"];

/// Opens `path` below `root` for use as a place of its own; `None` if it is not there.
pub(crate) fn open_if_there(root: BorrowedFd<'_>, path: &Path, links: Links) -> io::Result<Option<OwnedFd>> {
    match open_at(root, &relative(path)?, libc::O_PATH, links.resolve()) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens `path` below `root`, making it and the directories above it where they are absent.
pub(crate) fn open_or_make(
    root: BorrowedFd<'_>,
    path: &Path,
    kind: Kind,
    links: Links,
) -> io::Result<OwnedFd> {
    let place = Place { links, replaces_dangling: false, check: &|_| Ok(()) };
    place.open_or_make(root, path, kind)
}

/// Opens the place of a mount in the root file system `root` of a container, making it where it is absent.
///
/// Whoever could choose where `/proc` lies could have it without what hides its secrets. So no link takes part
/// in finding `/proc`, `/sys`, `/dev` and what is below them, and none leads from elsewhere to there. A link that
/// leads nowhere in the image gives way to the place: images come with `/etc/resolv.conf` as one.
pub(crate) fn mount_point(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let top = relative(path)?.components().next().map(|part| PathBuf::from(part.as_os_str()));
    if top.is_some_and(|top| is_kernels(&top)) && !broken!(LinksToKernelFiles) {
        return open_or_make(root, path, kind, Links::Refused).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => {
                io::Error::other("a part of it is a link, and may be none in /proc, /sys and /dev")
            }
            _ => error,
        });
    }
    let place_of_root = place_of(root)?;
    let stays_outside = |here: BorrowedFd<'_>| {
        if broken!(LinksOutOfImages) {
            return Ok(());
        }
        let place = place_of(here)?;
        let inside = place.strip_prefix(&place_of_root).map_err(io::Error::other)?;
        let guards_off = [broken!(VolumesOverKernelFiles), broken!(LinksToKernelFiles)];
        if is_kernels(inside) && !guards_off.contains(&true) {
            let inside = inside.display();
            return Err(io::Error::other(format!(
                "a link leads it to /{inside}; mount it there by that name"
            )));
        }
        Ok(())
    };
    let place = Place { links: Links::Inside, replaces_dangling: true, check: &stays_outside };
    place.open_or_make(root, path, kind)
}

/// Whether a path relative to the root of a container is, or is below, a place of the kernel's.
fn is_kernels(inside: &Path) -> bool {
    KERNELS.iter().any(|top| inside.starts_with(top))
}

/// How a place is looked for, and made.
struct Place<'a> {
    links: Links,
    /// Whether a link that leads nowhere is replaced, rather than refused.
    replaces_dangling: bool,
    /// Asked before anything is made, and at the end.
    check: &'a dyn Fn(BorrowedFd<'_>) -> io::Result<()>,
}

impl Place<'_> {
    /// Opens each part of `path` in turn and makes those that are absent.
    fn open_or_make(&self, root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
        if let Some(found) = open_if_there(root, path, self.links)? {
            (self.check)(found.as_fd())?;
            return Ok(found);
        }
        let path = relative(path)?;
        let mut above = PathBuf::from(".");
        let mut parent = open_at(root, &above, libc::O_PATH, self.links.resolve())?;
        let count = path.components().count();
        for (index, part) in path.components().enumerate() {
            above.push(part);
            let here = match open_if_there(root, &above, self.links)? {
                Some(found) => found,
                None => {
                    (self.check)(parent.as_fd())?;
                    let name = Path::new(part.as_os_str());
                    if self.replaces_dangling {
                        remove_link(root, parent.as_fd(), name)?;
                    }
                    let kind = if index + 1 == count { kind } else { Kind::Directory };
                    make(parent.as_fd(), name, kind)?;
                    // Looked up from the top again, so that a link put there meanwhile stays inside, too.
                    open_at(root, &above, libc::O_PATH, self.links.resolve())?
                }
            };
            parent = here;
        }
        (self.check)(parent.as_fd())?;
        Ok(parent)
    }
}

/// Removes a link of the image itself: what lies in a volume belongs to others, too.
fn remove_link(root: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    let found =
        nix::fcntl::openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    let is_link = match found {
        Ok(found) => opening::kind(&fstat(&found)?) == SFlag::S_IFLNK,
        Err(nix::Error::ENOENT) => false,
        Err(error) => return Err(error.into()),
    };
    if is_link && fstat(parent)?.st_dev == fstat(root)?.st_dev {
        nix::unistd::unlinkat(parent, name, nix::unistd::UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(())
}

/// Opens `path` below `root` where no part of it is a link.
pub(crate) fn open_without_links(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    open_at(root, &relative(path)?, libc::O_PATH, Links::Refused.resolve())
}

/// `path` as seen from the root, `.` for the root itself. Two dots lead nowhere.
fn relative(path: &Path) -> io::Result<PathBuf> {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Ok(if inside.as_os_str().is_empty() { PathBuf::from(".") } else { inside })
}

fn make(parent: BorrowedFd<'_>, name: &Path, kind: Kind) -> io::Result<()> {
    let made = match kind {
        Kind::Directory => mkdirat(parent, name, Mode::from_bits_truncate(0o755)),
        Kind::File => {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
            nix::fcntl::openat(parent, name, flags, Mode::from_bits_truncate(0o644)).map(drop)
        }
    };
    match made {
        // A link that leads nowhere is there and is not: we do not make what it points at.
        Err(nix::Error::EEXIST) => {
            let text = format!("{} is a link that leads nowhere", name.display());
            Err(io::Error::other(text))
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_hostile_link_never_leads_out_of_the_root() {
        let dir = tempfile::tempdir().expect("a directory");
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(&root).expect("a directory");
        fs::create_dir_all(&outside).expect("a directory");
        symlink(&outside, root.join("absolute")).expect("a link");
        symlink("../../outside", root.join("relative")).expect("a link");
        let fd = File::open(&root).expect("the root");

        for path in ["/absolute/new", "/relative/new", "/relative/../../../outside/new"] {
            // Refused or made inside; never made outside.
            let _ = open_or_make(fd.as_fd(), Path::new(path), Kind::Directory, Links::Inside);
            assert_eq!(fs::read_dir(&outside).expect("a listing").count(), 0, "{path}");
        }
    }

    #[test]
    fn links_inside_the_root_are_followed_and_missing_parts_are_made() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("run")).expect("a directory");
        fs::create_dir_all(dir.path().join("var")).expect("a directory");
        symlink("/run", dir.path().join("var/run")).expect("a link");
        let fd = File::open(dir.path()).expect("the root");
        open_or_make(fd.as_fd(), Path::new("/var/run/secrets/token"), Kind::File, Links::Inside)
            .expect("a place");
        assert!(dir.path().join("run/secrets/token").is_file());
        open_or_make(fd.as_fd(), Path::new("/var/run/secrets"), Kind::Directory, Links::Inside)
            .expect("the same place");
    }

    #[test]
    fn a_link_that_leads_nowhere_gives_way_to_a_mount_and_to_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let (etc, var) = (dir.path().join("etc"), dir.path().join("var"));
        [&etc, &var].into_iter().for_each(|part| fs::create_dir(part).expect("a directory"));
        symlink("../run/systemd/stub.conf", etc.join("resolv.conf")).expect("a link");
        symlink("/run", var.join("run")).expect("a link");
        let fd = File::open(dir.path()).expect("the root");
        for (path, kind) in [("/etc/resolv.conf", Kind::File), ("/var/run/secrets", Kind::Directory)] {
            let refused = open_or_make(fd.as_fd(), Path::new(path), kind, Links::Inside).expect_err("a link");
            assert!(refused.to_string().contains("leads nowhere"), "{refused}");
            mount_point(fd.as_fd(), Path::new(path), kind).expect("a place");
        }
        assert!(fs::symlink_metadata(etc.join("resolv.conf")).expect("a file").is_file());
        assert!(fs::symlink_metadata(var.join("run")).expect("a directory").is_dir());
        assert!(!dir.path().join("run").exists(), "nothing is made where they led");
    }
}
