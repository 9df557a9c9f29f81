//! The root file system of a container: layers, what is mounted over them, and what is hidden.
//!
//! Runs in the container's own mount namespace, in the process that will become its program: every mount
//! made here is seen by nobody else and goes with that namespace, so there is nothing to clean up.

pub(crate) mod destination;
pub(crate) mod overlay;
pub(crate) mod passwd;

mod devices;
mod hidden;
mod mounts;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::broken;
use crate::oci;
use crate::record::Durability;
use crate::sys::mount::{Attributes, add_attributes, open_at};
use destination::{Kind, Links};
use hidden::Cover;

/// A step that failed, in words for the operator.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

/// Says at which step an error came up.
pub(crate) trait Step<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> Step<T> for Result<T, E> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("{}: {error}", what())))
    }
}

/// Makes the root file system and steps into it. Returns the container's own null device, opened.
///
/// The caller is alone in a new mount namespace and already in the container's other namespaces.
pub(crate) fn enter(spec: &oci::Spec, layers: &overlay::Layers) -> Result<Option<OwnedFd>, Failure> {
    // Nothing we mount may appear on the machine, nothing the machine mounts later may appear here.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    if !broken!(MountsShared) {
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .step(|| "make mounts private".to_owned())?;
    }
    let cover = Cover::below(&spec.root.path).step(|| "make what hides files".to_owned())?;
    let attributes = if spec.process.no_new_privileges { Attributes::NO_SUID } else { Attributes::default() };
    let root = overlay::mount_at(layers, &spec.root.path, attributes, Durability::UntilPowerCut)?;
    let mut null = None;
    for entry in &spec.mounts {
        let mounted = mounts::add(root.as_fd(), entry).step(|| format!("mount {:?}", entry.destination))?;
        if entry.destination == "/dev" && entry.kind == "tmpfs" {
            null = Some(devices::fill(mounted.as_fd())?);
        }
    }
    for path in &spec.linux.readonly_paths {
        hidden::make_read_only(root.as_fd(), Path::new(path)).step(|| format!("make {path} read-only"))?;
    }
    for path in &spec.linux.masked_paths {
        hidden::hide(root.as_fd(), Path::new(path), &cover).step(|| format!("hide {path}"))?;
    }
    pivot(&root).step(|| "change the root".to_owned())?;
    let cwd = &spec.process.cwd;
    // While the root may be written. What is there and cannot be entered is for the program's user to try.
    match directory(Path::new(cwd)) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied && !is_loop(&error) => {
            return Err(error).step(|| format!("make directory {cwd}, where the program starts"));
        }
        _ => {}
    }
    if spec.root.readonly {
        let root = File::open("/").step(|| "open /".to_owned())?;
        let read_only = add_attributes(root.as_fd(), Attributes::READ_ONLY, false);
        read_only.step(|| "make the root file system read-only".to_owned())?;
    }
    Ok(null)
}

/// A link of `/proc`, or too many of others.
pub(crate) fn is_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ELOOP)
}

/// Opens a directory of this process's root, making it where it is absent. No descriptor that leads out of the
/// root, by a link of `/proc`, counts as a directory in it.
pub(crate) fn directory(path: &Path) -> io::Result<OwnedFd> {
    let root = open_root(Path::new("/"))?;
    let resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    open_at(root.as_fd(), path, libc::O_PATH | libc::O_DIRECTORY, resolve).or_else(|error| {
        match error.kind() {
            io::ErrorKind::NotFound => {
                destination::open_or_make(root.as_fd(), path, Kind::Directory, Links::Inside)
            }
            _ => Err(error),
        }
    })
}

/// Makes `root` the root of this process and lets go of the machine's.
pub(crate) fn pivot(root: &OwnedFd) -> io::Result<()> {
    // Both may be the same directory: the old root then lies on top of the new one until it is detached.
    nix::unistd::fchdir(root)?;
    nix::unistd::pivot_root(".", ".")?;
    if !broken!(OldRootKept) {
        umount2(".", MntFlags::MNT_DETACH)?;
    }
    Ok(nix::unistd::chdir("/")?)
}

/// A descriptor for looking up paths in a root, not for reading.
pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let here = File::open("/")?;
    open_at(here.as_fd(), path, libc::O_PATH | libc::O_DIRECTORY, 0)
}
