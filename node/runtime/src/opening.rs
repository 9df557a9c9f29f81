//! Opening what others may have put there: first a look at what it is, then an opening that has effects.
//!
//! To open a device or a FIFO can do something, or wait for ever. What lies in an image, in a volume or in a
//! container can be either, whatever its name says.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::broken;
use crate::sys::mount::open_at;

/// This process's descriptors as files, by which what was looked at is opened for good.
pub(crate) struct Descriptors(OwnedFd);

impl Descriptors {
    /// While the machine's `/proc` is in sight; it may go out of sight afterwards.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open("/proc/self/fd", flags, Mode::empty())?))
    }

    /// Opens what `path` below `dir` is, with links as `resolve` says, if `wanted` wants it; `None` if not.
    pub(crate) fn open_if(
        &self,
        dir: BorrowedFd<'_>,
        path: &Path,
        resolve: u64,
        flags: OFlag,
        wanted: impl FnOnce(&FileStat) -> bool,
    ) -> io::Result<Option<File>> {
        let found = open_at(dir, path, libc::O_PATH, resolve)?;
        if !wanted(&fstat(&found)?) {
            return Ok(None);
        }
        let name = found.as_fd().as_raw_fd().to_string();
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        Ok(Some(nix::fcntl::openat(&self.0, name.as_str(), flags, Mode::empty())?.into()))
    }
}

/// Opens a plain file for reading; `None` if it is anything else.
pub(crate) fn plain_file(dir: BorrowedFd<'_>, path: &Path, resolve: u64) -> io::Result<Option<File>> {
    let is_plain = |found: &FileStat| kind(found) == SFlag::S_IFREG || broken!(DevicesOfImages);
    Descriptors::of_this_process()?.open_if(dir, path, resolve, OFlag::O_RDONLY, is_plain)
}

/// Where an open file lies, as the kernel knows it; the machine's `/proc` must be in sight.
pub(crate) fn place_of(fd: impl AsFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// What kind of file it is.
pub(crate) fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_plain_file_is_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("file"), "text").expect("a file");
        symlink("file", dir.path().join("link")).expect("a link");
        fs::create_dir(dir.path().join("directory")).expect("a directory");
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).expect("a fifo");
        let root = File::open(dir.path()).expect("a root");
        let open = |name: &str| plain_file(root.as_fd(), Path::new(name), libc::RESOLVE_IN_ROOT);
        for name in ["file", "link"] {
            let mut text = String::new();
            open(name).expect("readable").expect("a file").read_to_string(&mut text).expect("text");
            assert_eq!(text, "text");
        }
        for name in ["directory", "fifo"] {
            assert!(open(name).expect("readable").is_none(), "{name}");
        }
        assert!(open("none").is_err());
    }
}
