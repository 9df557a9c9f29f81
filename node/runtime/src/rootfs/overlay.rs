//! The layers of an image as one file system, with a writable one on top.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use super::{Failure, Step, open_root};
use crate::sys::mount::{Attributes, NewFileSystem, attach, c_path};

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

/// Mounts the layers on the directory `target`; returns its root.
pub(crate) fn mount_at(layers: &Layers, target: &Path) -> Result<OwnedFd, Failure> {
    let made = mount_by_descriptor(layers, target);
    if made.as_ref().is_err_and(is_unknown_option) {
        // Kernels before 6.5 take all layers as one text of at most a page.
        mount_by_text(layers, target).step(|| "mount the layers of the image".to_owned())?;
    } else {
        made.step(|| "mount the layers of the image".to_owned())?;
    }
    open_root(target).step(|| "open the root file system".to_owned())
}

fn mount_by_descriptor(layers: &Layers, target: &Path) -> io::Result<()> {
    let overlay = NewFileSystem::open("overlay")?;
    for lower in &layers.lower {
        overlay.set("lowerdir+", &c_path(lower)?)?;
    }
    overlay.set("upperdir", &c_path(&layers.upper)?)?;
    overlay.set("workdir", &c_path(&layers.work)?)?;
    if layers.user_attributes {
        overlay.set_flag("userxattr")?;
    }
    // What a container wrote goes when it goes: no sync is worth waiting for.
    overlay.set_flag("volatile")?;
    let mounted = overlay.mount(Attributes::default())?;
    attach(mounted.as_fd(), open_root(target)?.as_fd())
}

/// Short names through links in a directory of their own, relative to it: 500 layers fit into a page.
fn mount_by_text(layers: &Layers, target: &Path) -> io::Result<()> {
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
    let text = text_options(layers.lower.len(), layers.user_attributes);
    let before = std::env::current_dir()?;
    std::env::set_current_dir(&layers.links)?;
    let mounted = mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(text.as_str()));
    std::env::set_current_dir(before)?;
    Ok(mounted?)
}

fn text_options(lower_count: usize, user_attributes: bool) -> String {
    let names: Vec<_> = (0..lower_count).map(|index| index.to_string()).collect();
    let user = if user_attributes { ",userxattr" } else { "" };
    format!("lowerdir={},upperdir=u,workdir=w,volatile{user}", names.join(":"))
}

fn is_unknown_option(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_layers_fit_into_the_page_the_kernel_gives_their_names() {
        assert_eq!(text_options(2, true), "lowerdir=0:1,upperdir=u,workdir=w,volatile,userxattr");
        // 500 is the most the kernel stacks.
        assert!(text_options(500, true).len() < 4096);
    }
}
