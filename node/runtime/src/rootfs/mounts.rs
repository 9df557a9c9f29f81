//! The mounts of `config.json`, each attached to a descriptor of its place.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::{SFlag, fstat};

use super::destination::{self, Kind};
use crate::broken;
use crate::oci;
use crate::opening;
use crate::sys::mount::{
    Attributes, NewFileSystem, add_attributes, attach, change_attributes, clone_tree, clone_tree_of,
};

/// Adds one mount to the tree at `root`; returns a descriptor of it.
pub(super) fn add(root: BorrowedFd<'_>, entry: &oci::Mount) -> io::Result<OwnedFd> {
    let options = Options::parse(&entry.options);
    let (mount, kind) = match entry.kind.as_str() {
        "bind" => bind(entry, &options)?,
        "sysfs" if broken!(SysWritable) => (new_file_system("sysfs", &Options::parse(&[]))?, Kind::Directory),
        "sysfs" => (system_files(&options)?, Kind::Directory),
        kind => (new_file_system(kind, &options)?, Kind::Directory),
    };
    let target = destination::mount_point(root, Path::new(&entry.destination), kind)?;
    attach(mount.as_fd(), target.as_fd())?;
    Ok(mount)
}

/// The options of a mount: attributes of the mount itself, and words for the file system.
struct Options<'a> {
    attributes: Attributes,
    recursive: bool,
    words: Vec<&'a str>,
}

impl<'a> Options<'a> {
    fn parse(options: &'a [String]) -> Self {
        let mut parsed = Self { attributes: Attributes::default(), recursive: false, words: Vec::new() };
        for option in options {
            match option.as_str() {
                "ro" => parsed.attributes = parsed.attributes.with(Attributes::READ_ONLY),
                "nosuid" => parsed.attributes = parsed.attributes.with(Attributes::NO_SUID),
                "nodev" => parsed.attributes = parsed.attributes.with(Attributes::NO_DEV),
                "noexec" => parsed.attributes = parsed.attributes.with(Attributes::NO_EXEC),
                "rbind" => parsed.recursive = true,
                // Private is what every mount here is.
                "rw" | "bind" | "rprivate" | "private" => {}
                word => parsed.words.push(word),
            }
        }
        parsed
    }
}

fn bind(entry: &oci::Mount, options: &Options<'_>) -> io::Result<(OwnedFd, Kind)> {
    let mount = match &entry.beneath {
        // Programs may write in there at this moment: a link must not make us mount the machine.
        Some(beneath) => {
            let inside = entry.source.strip_prefix(beneath).map_err(io::Error::other)?;
            let beneath = super::open_root(beneath)?;
            let source = destination::open_without_links(beneath.as_fd(), inside)?;
            clone_tree_of(source.as_fd(), options.recursive)?
        }
        None => clone_tree(&entry.source, options.recursive)?,
    };
    if broken!(MountFlagsLost) {
        let all = Attributes::NO_SUID.with(Attributes::NO_DEV).with(Attributes::NO_EXEC);
        change_attributes(mount.as_fd(), options.attributes, all, options.recursive)?;
    } else if options.attributes != Attributes::default() {
        add_attributes(mount.as_fd(), options.attributes, options.recursive)?;
    }
    let kind = kind_of(mount.as_fd())?;
    Ok((mount, kind))
}

/// A user namespace that does not own its network may not mount sysfs; it may show the one there is.
fn system_files(options: &Options<'_>) -> io::Result<OwnedFd> {
    let new = new_file_system("sysfs", options);
    if !new.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        return new;
    }
    let mount = clone_tree(Path::new("/sys"), true)?;
    add_attributes(mount.as_fd(), options.attributes, true)?;
    Ok(mount)
}

fn new_file_system(kind: &str, options: &Options<'_>) -> io::Result<OwnedFd> {
    let file_system = NewFileSystem::open(kind)?;
    for word in &options.words {
        match word.split_once('=') {
            Some((key, value)) => file_system.set(key, &CString::new(value)?),
            None => file_system.set_flag(word),
        }
        .map_err(|error| io::Error::new(error.kind(), format!("option {word}: {error}")))?;
    }
    file_system.mount(options.attributes)
}

/// What a mount must be to lie over `fd`.
pub(super) fn kind_of(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let is_directory = opening::kind(&fstat(fd)?) == SFlag::S_IFDIR;
    Ok(if is_directory { Kind::Directory } else { Kind::File })
}
