//! The layers of an image as one file system, with a writable one on top.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::{Failure, Step, open_root};
use crate::broken;
use crate::record::Durability;
use crate::sys::mount::{Attributes, NewFileSystem, add_attributes, attach, c_path};

/// What the file system is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layers {
    /// Read-only layers, the topmost first.
    pub(crate) lower: Vec<PathBuf>,
    /// Takes what is written, and the kernel's scratch space beside it.
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    /// Where the one-page form of the options keeps short names for the layers.
    pub(crate) links: PathBuf,
    /// Deleted files are marked by attributes that an ordinary user may set.
    pub(crate) user_attributes: bool,
}

/// Mounts the layers on the directory `target`; returns its root. No device of an image is one.
///
/// * `attributes`: what is wanted of the mount beyond that.
/// * `durability`: of what is written. What goes with a container anyway needs no sync.
pub(crate) fn mount_at(
    layers: &Layers,
    target: &Path,
    attributes: Attributes,
    durability: Durability,
) -> Result<OwnedFd, Failure> {
    let attributes = if broken!(DevicesInImages) { attributes } else { attributes.with(Attributes::NO_DEV) };
    let made = mount_by_descriptor(layers, target, attributes, durability);
    if made.as_ref().is_err_and(is_unknown_option) {
        // Kernels before 6.5 take all layers as one text of at most a page.
        mount_by_text(layers, target, durability).step(|| "mount the layers of the image".to_owned())?;
        let root = open_root(target).step(|| "open the root file system".to_owned())?;
        add_attributes(root.as_fd(), attributes, false)
            .step(|| "restrict the root file system".to_owned())?;
        return Ok(root);
    }
    made.step(|| "mount the layers of the image".to_owned())?;
    open_root(target).step(|| "open the root file system".to_owned())
}

/// [`mount_at`] for the calling thread alone, which is in a mount namespace of its own from now on.
pub(crate) fn mount_alone(
    layers: &Layers,
    target: &Path,
    attributes: Attributes,
    durability: Durability,
) -> io::Result<()> {
    unshare_mounts()?;
    let mounted = mount_at(layers, target, attributes, durability);
    mounted.map(drop).map_err(|failure| io::Error::other(failure.0))
}

/// From now on nobody but this thread sees what it mounts, and it goes with the thread.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?)
}

/// Read-only layers, the topmost first, as one file system that is attached nowhere: it goes with the descriptor.
pub(crate) fn union(lower: &[PathBuf], user_attributes: bool) -> io::Result<OwnedFd> {
    // The kernel stacks two at least.
    if let [only] = lower {
        return open_root(only);
    }
    let made = union_by_descriptor(lower, user_attributes);
    if made.as_ref().is_err_and(is_unknown_option) {
        return union_by_text(lower, user_attributes);
    }
    made
}

fn union_by_descriptor(lower: &[PathBuf], user_attributes: bool) -> io::Result<OwnedFd> {
    let overlay = NewFileSystem::open("overlay")?;
    for lower in lower {
        overlay.set("lowerdir+", &c_path(lower)?)?;
    }
    if user_attributes {
        overlay.set_flag("userxattr")?;
    }
    overlay.mount(Attributes::READ_ONLY.with(Attributes::NO_SUID).with(Attributes::NO_DEV))
}

/// The same by one text. It is attached to the first layer, for a thread of its own only, and falls off with it.
fn union_by_text(lower: &[PathBuf], user_attributes: bool) -> io::Result<OwnedFd> {
    let at = lower.first().ok_or(io::ErrorKind::InvalidInput)?;
    let mounted = || {
        unshare_mounts()?;
        // Numbers of descriptors are short names: 500 layers fit into a page.
        let roots = lower.iter().map(|layer| open_root(layer)).collect::<io::Result<Vec<_>>>()?;
        std::env::set_current_dir("/proc/thread-self/fd")?;
        let names: Vec<_> = roots.iter().map(|root| root.as_raw_fd().to_string()).collect();
        let user = if user_attributes { ",userxattr" } else { "" };
        let text = format!("lowerdir={}{user}", names.join(":"));
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("overlay"), at, Some("overlay"), flags, Some(text.as_str()))?;
        open_root(at)
    };
    std::thread::scope(|scope| {
        let done = scope.spawn(mounted).join();
        done.unwrap_or_else(|_| Err(io::Error::other("stacking the layers failed")))
    })
}

fn mount_by_descriptor(
    layers: &Layers,
    target: &Path,
    attributes: Attributes,
    durability: Durability,
) -> io::Result<()> {
    let overlay = NewFileSystem::open("overlay")?;
    for lower in &layers.lower {
        overlay.set("lowerdir+", &c_path(lower)?)?;
    }
    overlay.set("upperdir", &c_path(&layers.upper)?)?;
    overlay.set("workdir", &c_path(&layers.work)?)?;
    if layers.user_attributes {
        overlay.set_flag("userxattr")?;
    }
    if durability == Durability::UntilPowerCut {
        overlay.set_flag("volatile")?;
    }
    let mounted = overlay.mount(attributes)?;
    attach(mounted.as_fd(), open_root(target)?.as_fd())
}

/// Short names through links in a directory of their own, relative to it: 500 layers fit into a page.
fn mount_by_text(layers: &Layers, target: &Path, durability: Durability) -> io::Result<()> {
    fs::create_dir_all(&layers.links)?;
    for (index, lower) in layers.lower.iter().enumerate() {
        match symlink(lower, layers.links.join(index.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    for (name, path) in [("u", &layers.upper), ("w", &layers.work)] {
        match symlink(path, layers.links.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let text = text_options(layers.lower.len(), layers.user_attributes, durability);
    let before = std::env::current_dir()?;
    std::env::set_current_dir(&layers.links)?;
    let mounted = mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(text.as_str()));
    std::env::set_current_dir(before)?;
    Ok(mounted?)
}

fn text_options(lower_count: usize, user_attributes: bool, durability: Durability) -> String {
    let names: Vec<_> = (0..lower_count).map(|index| index.to_string()).collect();
    let user = if user_attributes { ",userxattr" } else { "" };
    let volatile = if durability == Durability::UntilPowerCut { ",volatile" } else { "" };
    format!("lowerdir={},upperdir=u,workdir=w{volatile}{user}", names.join(":"))
}

fn is_unknown_option(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_stack_layers_show_the_same() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: stacking layers needs rights to mount");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let layers = ["upper", "lower"].map(|name| dir.path().join(name));
        for layer in &layers {
            fs::create_dir(layer).expect("a directory");
            fs::write(layer.join("file"), layer.as_os_str().as_encoded_bytes()).expect("a file");
        }
        for union in [union_by_descriptor, union_by_text] {
            let root = union(&layers, false).expect("a stack");
            let inside = Path::new("/proc/self/fd").join(root.as_raw_fd().to_string());
            let content = fs::read(inside.join("file")).expect("a file");
            assert_eq!(content, layers[0].as_os_str().as_encoded_bytes());
            assert!(fs::write(inside.join("new"), "").is_err(), "it is read-only");
            assert!(!layers[0].join("new").exists());
        }
    }

    #[test]
    fn many_layers_fit_into_the_page_the_kernel_gives_their_names() {
        let text_options = |count, user| text_options(count, user, Durability::UntilPowerCut);
        assert_eq!(text_options(2, true), "lowerdir=0:1,upperdir=u,workdir=w,volatile,userxattr");
        // 500 is the most the kernel stacks.
        assert!(text_options(500, true).len() < 4096);
    }
}
