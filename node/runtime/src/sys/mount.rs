//! Mounts and paths by file descriptor: `openat2`, `open_tree`, `move_mount`, `fsopen`, `mount_setattr`.
//!
//! A path is looked up once, into a descriptor, and every later step works on the descriptor. So a link
//! that appears between two steps leads nobody astray.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::check;

/// Attributes of a mount, as in `MOUNT_ATTR_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(pub(crate) u64);

impl Attributes {
    pub(crate) const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    pub(crate) const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    pub(crate) const NO_DEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    pub(crate) const NO_EXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);

    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// For how long a path is looked up again whose steps the kernel could not follow for sure. A pod that renames files all
/// the time makes most lookups of a long path fail; ten thousand tries in a row do not.
const LOOKUPS_MAX: Duration = Duration::from_secs(2);
const LOOKUPS_PAUSE: Duration = Duration::from_micros(20);

/// `openat2`: opens `path` below `dir`, following links as `resolve` (`RESOLVE_*`) says.
///
/// Where a path goes up (`..`) and anything on the machine is renamed or mounted at that moment, the kernel cannot tell
/// whether the path left `dir`, and says `EAGAIN`. On a busy machine that is often, so it is asked again.
pub(crate) fn open_at(dir: BorrowedFd<'_>, path: &Path, flags: i32, resolve: u64) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: an all-zero `open_how` is a valid one; it is an extensible struct of plain integers.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from(flags.unsigned_abs()) | u64::from(libc::O_CLOEXEC.unsigned_abs());
    how.resolve = resolve;
    let how_bytes = std::mem::size_of::<libc::open_how>();
    let look = || {
        // SAFETY: `path` is a C string and `how` a struct of the given size, both alive during the call.
        own(unsafe {
            libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), &raw const how, how_bytes)
        })
    };
    let unsure = |opened: &io::Result<OwnedFd>| {
        opened.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EAGAIN))
    };
    let mut opened = look();
    if unsure(&opened) {
        let until = Instant::now() + LOOKUPS_MAX;
        while unsure(&opened) && Instant::now() < until {
            // Whoever renames all the time has the processor to itself for some milliseconds at most.
            std::thread::sleep(LOOKUPS_PAUSE);
            opened = look();
        }
    }
    opened
}

/// `open_tree` with `OPEN_TREE_CLONE`: a detached copy of the mount at `path`, of all below it if `recursive`.
pub(crate) fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    open_tree(libc::AT_FDCWD, &path, if recursive { libc::AT_RECURSIVE } else { 0 })
}

/// The same for what `fd` is open on.
pub(crate) fn clone_tree_of(fd: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    open_tree(fd.as_raw_fd(), c"", recursive | libc::AT_EMPTY_PATH)
}

fn open_tree(dir: i32, path: &CStr, flags: i32) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | flags.unsigned_abs();
    // SAFETY: `path` is a C string alive during the call.
    own(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

/// `move_mount`: attaches the detached `mount` on what `target` is open on.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let empty = c"".as_ptr();
    // SAFETY: both paths are the empty C string, both descriptors are open.
    let result = unsafe {
        libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), empty, target.as_raw_fd(), empty, flags)
    };
    check(result).map(drop)
}

/// `mount_setattr`: adds attributes to a mount, to all below it if `recursive`. What it has it keeps.
pub(crate) fn add_attributes(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    recursive: bool,
) -> io::Result<()> {
    change_attributes(mount, attributes, Attributes::default(), recursive)
}

/// The same, with attributes that are taken away.
pub(crate) fn change_attributes(
    mount: BorrowedFd<'_>,
    add: Attributes,
    remove: Attributes,
    recursive: bool,
) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: add.0, attr_clr: remove.0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let attr_bytes = std::mem::size_of::<libc::mount_attr>();
    let fd = mount.as_raw_fd();
    // SAFETY: `attr` is a struct of the given size, alive during the call; the path is a C string.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attr, attr_bytes)
    };
    check(result).map(drop)
}

/// A file system being configured: `fsopen`, then options, then [`mount`](Self::mount).
pub(crate) struct NewFileSystem(OwnedFd);

// Commands of `fsconfig`; the C library has no names for them.
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;

impl NewFileSystem {
    /// Begins one of the kernel's type `kind`.
    pub(crate) fn open(kind: &str) -> io::Result<Self> {
        let kind = CString::new(kind)?;
        // SAFETY: `kind` is a C string alive during the call.
        own(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    /// Sets an option that has no value.
    pub(crate) fn set_flag(&self, key: &str) -> io::Result<()> {
        self.configure(FSCONFIG_SET_FLAG, Some(key), None)
    }

    /// Sets an option; a file system adds or replaces as it sees fit.
    pub(crate) fn set(&self, key: &str, value: &CStr) -> io::Result<()> {
        self.configure(FSCONFIG_SET_STRING, Some(key), Some(value))
    }

    /// Makes it; the result is a detached mount.
    pub(crate) fn mount(self, attributes: Attributes) -> io::Result<OwnedFd> {
        self.configure(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: no pointers are passed.
        own(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes.0) })
    }

    fn configure(&self, command: u32, key: Option<&str>, value: Option<&CStr>) -> io::Result<()> {
        let key = key.map(CString::new).transpose()?;
        let key = key.as_ref().map_or(std::ptr::null(), |key| key.as_ptr());
        let value = value.map_or(std::ptr::null(), CStr::as_ptr);
        let fd = self.0.as_fd().as_raw_fd();
        // SAFETY: key and value are null or C strings that live during the call.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key, value, 0) }).map(drop)
    }
}

/// Takes over a descriptor that a system call returned.
fn own(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A path as the kernel wants it.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const LOOKS: usize = 10_000;

    /// A container starts while others start: their mounts and renames must not make its own paths fail.
    #[test]
    fn a_path_that_goes_up_is_opened_although_others_rename_all_the_time() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let root = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        let (began, ended, other) =
            (AtomicBool::new(false), AtomicBool::new(false), tempfile::tempdir().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, two) = (other.path().join("one"), other.path().join("two"));
                fs::create_dir(&one).unwrap();
                while !ended.load(Ordering::Relaxed) {
                    fs::rename(&one, &two).unwrap();
                    fs::rename(&two, &one).unwrap();
                    began.store(true, Ordering::Relaxed);
                }
            });
            while !began.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            // Long enough that others get at it while it is followed.
            let path = "a/b/../../".repeat(100) + "file";
            let look = || open_at(root.as_fd(), Path::new(&path), libc::O_PATH, libc::RESOLVE_IN_ROOT);
            let failed = (0..LOOKS).filter(|_| look().is_err()).count();
            ended.store(true, Ordering::Relaxed);
            assert_eq!(failed, 0, "of {LOOKS}");
        });
    }
}
