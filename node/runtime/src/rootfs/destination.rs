//! Finding and making a place inside somebody else's file tree without being led out of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, mkdirat};

use crate::sys::mount::open_at;

/// What a place must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Links lead to where they would lead if `root` were `/`; those of `/proc` that lead anywhere do not lead.
const IN_ROOT: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;

/// Opens `path` below `root` for use as a mount point; `None` if it is not there.
pub(crate) fn open_if_there(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    match open_at(root, path, libc::O_PATH, IN_ROOT) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens `path` below `root`, making it and the directories above it where they are absent.
pub(crate) fn open_or_make(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    if let Some(found) = open_if_there(root, path)? {
        return Ok(found);
    }
    let mut above = PathBuf::from(".");
    let mut parent = open_at(root, &above, libc::O_PATH, IN_ROOT)?;
    let parts: Vec<_> = path.components().filter_map(normal).collect();
    for (index, part) in parts.iter().enumerate() {
        above.push(part);
        let here = match open_if_there(root, &above)? {
            Some(found) => found,
            None => {
                let is_last = index + 1 == parts.len();
                make(parent.as_fd(), part, if is_last { kind } else { Kind::Directory })?;
                // Looked up from the top again, so that a link put there meanwhile stays inside, too.
                open_at(root, &above, libc::O_PATH, IN_ROOT)?
            }
        };
        parent = here;
    }
    Ok(parent)
}

/// Opens `path` below `root` where no part of it is a link.
pub(crate) fn open_without_links(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    open_at(root, path, libc::O_PATH, libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS)
}

fn normal(part: Component<'_>) -> Option<PathBuf> {
    match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        _ => None,
    }
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
            let text = format!("{} is a link that leads nowhere in the image", name.display());
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
            let _ = open_or_make(fd.as_fd(), Path::new(path), Kind::Directory);
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
        open_or_make(fd.as_fd(), Path::new("/var/run/secrets/token"), Kind::File).expect("a place");
        assert!(dir.path().join("run/secrets/token").is_file());
        open_or_make(fd.as_fd(), Path::new("/var/run/secrets"), Kind::Directory).expect("the same place");
    }
}
