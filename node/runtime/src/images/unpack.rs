//! A layer's archive as a directory that overlayfs understands.
//!
//! A layer that has others below it is applied to an overlay mount of them, in a mount namespace that
//! ends with the thread: whiteouts become the kernel's own, a parent directory that the archive leaves
//! out keeps its mode and owner, and a path through a link of a lower layer (`lib` -> `usr/lib`) leads
//! where it leads in the container. What comes out is the upper directory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use tar::{Entry, EntryType};

use super::digest::Hashing;
use super::headers::Bounded;
use super::room::Room;
use super::{Digest, Error, Limits, Unfinished};

/// Directories of one path; deeper ones are no file system's.
const DEPTH_MAX: usize = 256;
/// Attributes of one file and their size, as Linux bounds them.
const XATTR_BYTES_MAX: usize = 64 << 10;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks `blob` on top of `lower` (the topmost first) into the new directory `target`.
pub(super) fn layer(
    blob: File,
    diff_id: &Digest,
    lower: &[PathBuf],
    target: &Path,
    limits: &Limits,
    room: &Room,
) -> Result<(), Error> {
    fs::create_dir(target).map_err(Error::io("make a layer's directory"))?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o755))
        .map_err(Error::io("make a layer's directory"))?;
    let reader = decompress(blob).map_err(Error::io(format!("read layer {diff_id}")))?;
    if lower.is_empty() {
        return apply(reader, diff_id, target, limits, room);
    }
    let work = Unfinished(Some(target.with_extension("work")));
    let merged = Unfinished(Some(target.with_extension("merged")));
    for dir in [&work, &merged] {
        fs::create_dir(dir.path()).map_err(Error::io("make a layer's directory"))?;
    }
    std::thread::scope(|scope| {
        let on_top = || {
            unshare(CloneFlags::CLONE_NEWNS)
                .map_err(|error| Error::io("make a mount namespace")(error.into()))?;
            mount_stack(lower, target, work.path(), merged.path())
                .map_err(Error::io("stack the layers below"))?;
            apply(reader, diff_id, merged.path(), limits, room)
        };
        scope
            .spawn(on_top)
            .join()
            .unwrap_or_else(|_| Err(Error::invalid(format!("layer {diff_id}"), "unpacking it failed")))
    })
}

/// Mounts an overlay of `lower` (the topmost first) with `upper` at `merged`, for this thread's mount
/// namespace only. One option per layer: a single string of all of them must fit a page.
fn mount_stack(lower: &[PathBuf], upper: &Path, work: &Path, merged: &Path) -> io::Result<()> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount,
    };
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in lower {
        fsconfig_set_string(&overlay, "lowerdir+", layer)?;
    }
    fsconfig_set_string(&overlay, "upperdir", upper)?;
    fsconfig_set_string(&overlay, "workdir", work)?;
    if is_user_namespace() {
        fsconfig_set_flag(&overlay, "userxattr")?;
    }
    fsconfig_create(&overlay)?;
    let mount = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(move_mount(&mount, "", rustix::fs::CWD, merged, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn is_user_namespace() -> bool {
    !fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// Gzip, zstd or neither, by the first bytes: the media type is only somebody's word.
pub(super) fn decompress<'a>(mut from: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut magic = [0; 4];
    let mut count = 0;
    while count < magic.len() {
        match from.read(&mut magic[count..])? {
            0 => break,
            more => count += more,
        }
    }
    let whole = io::Cursor::new(magic[..count].to_vec()).chain(from);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

fn apply(
    reader: Box<dyn Read + Send + '_>,
    diff_id: &Digest,
    root: &Path,
    limits: &Limits,
    room: &Room,
) -> Result<(), Error> {
    let what = format!("layer {diff_id}");
    let damaged = |error: io::Error| Error::invalid(&what, error);
    // One byte more than allowed shows that there is more.
    let mut counted = Hashing::new(reader.take(limits.layer_bytes_max + 1));
    let mut layer = Layer::new(root, room)?;
    let applied = add_all(&mut counted, &mut layer, &what, limits);
    let applied = applied.and_then(|()| layer.finish().map_err(damaged));
    let applied = applied.and_then(|()| io::copy(&mut counted, &mut io::sink()).map_err(damaged));
    let (found, bytes) = counted.finish();
    // First: what was cut off at the limit also looks damaged.
    if bytes > limits.layer_bytes_max {
        return Err(Error::TooLarge { what, limit: limits.layer_bytes_max });
    }
    applied?;
    if found != *diff_id {
        return Err(Error::Digest { what: "a layer".into(), wanted: *diff_id, found });
    }
    Ok(())
}

fn add_all(from: impl Read, layer: &mut Layer<'_>, what: &str, limits: &Limits) -> Result<(), Error> {
    let damaged = |error: io::Error| Error::invalid(what, error);
    let mut archive = tar::Archive::new(Bounded::new(from));
    for (number, entry) in archive.entries().map_err(damaged)?.enumerate() {
        if number as u64 >= limits.layer_entries_max {
            return Err(Error::invalid(
                what,
                format!("it has more than {} entries", limits.layer_entries_max),
            ));
        }
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path_bytes().into_owned();
        layer.add(&path, &mut entry).map_err(|error| {
            Error::invalid(format!("{what}, entry {:?}", String::from_utf8_lossy(&path)), error)
        })?;
    }
    Ok(())
}

/// The directory a layer is written to. Every path is resolved inside it by the kernel.
struct Layer<'a> {
    root: OwnedFd,
    room: &'a Room,
    /// Times of directories are set last: writing into one changes its time.
    directory_times: Vec<(Vec<u8>, SystemTime)>,
    /// In a user namespace with a single user nothing can be given to another one, and no device made.
    may_own: bool,
}

impl<'a> Layer<'a> {
    fn new(root: &Path, room: &'a Room) -> Result<Layer<'a>, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|error| Error::io("open a layer's directory")(error.into()))?;
        let may_own = !fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().nth(2).is_some_and(|count| count == "1"));
        Ok(Layer { root, room, directory_times: Vec::new(), may_own })
    }

    fn add(&mut self, path: &[u8], entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let parts = parts(path)?;
        let Some((name, parents)) = parts.split_last() else {
            // The root itself: only what it is like.
            return self.dress_directory(entry, &[]);
        };
        let kind = entry.header().entry_type();
        // Each takes at least a block of the disk, whatever is in it.
        self.room.take(4096)?;
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let parent = self.parent(parents)?;
        if *name == OPAQUE {
            return empty(&parent);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return if hidden.is_empty() {
                Err(refused("a whiteout of nothing"))
            } else {
                remove(&parent, hidden)
            };
        }
        let here = within(&parent, name);
        if kind.is_dir() {
            let exists = fs::symlink_metadata(&here).is_ok_and(|found| found.is_dir());
            if !exists {
                remove(&parent, name)?;
                rustix::fs::mkdirat(&parent, *name, Mode::from_raw_mode(0o755))?;
            }
            return self.dress_directory(entry, &parts);
        }
        remove(&parent, name)?;
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, *name, flags, Mode::from_raw_mode(0o600))?;
                io::copy(entry, &mut self.room.guard(File::from(file)))?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| refused("a link to nothing"))?;
                rustix::fs::symlinkat(target.as_ref(), &parent, *name)?;
            }
            EntryType::Link => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| refused("a link to nothing"))?.into_owned();
                let target = self::parts(&target)?;
                let (last, above) = target.split_last().ok_or_else(|| refused("a link to the root"))?;
                let from = self.directory(above)?;
                rustix::fs::linkat(&from, *last, &parent, *name, AtFlags::empty())?;
                // Owner, mode and times are those of the file it links to.
                return Ok(());
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let (kind, device) = match kind {
                    EntryType::Fifo => (FileType::Fifo, 0),
                    _ if !self.may_own => return Ok(()),
                    kind => {
                        let number = |part: io::Result<Option<u32>>| part.map(Option::unwrap_or_default);
                        let (major, minor) =
                            (number(entry.header().device_major())?, number(entry.header().device_minor())?);
                        let kind = if kind == EntryType::Char {
                            FileType::CharacterDevice
                        } else {
                            FileType::BlockDevice
                        };
                        (kind, rustix::fs::makedev(major, minor))
                    }
                };
                rustix::fs::mknodat(&parent, *name, kind, Mode::from_raw_mode(0o600), device)?;
            }
            other => return Err(refused(&format!("an entry of kind {other:?}"))),
        }
        self.dress(entry, &parent, name, kind)
    }

    fn dress_directory(&mut self, entry: &mut Entry<'_, impl Read>, parts: &[&[u8]]) -> io::Result<()> {
        self.directory_times.push((parts.join(&b'/'), modified(entry)?));
        match parts.split_last() {
            Some((name, parents)) => {
                let parent = self.parent(parents)?;
                self.dress(entry, &parent, name, EntryType::Directory)
            }
            None => {
                let root = self.directory(&[])?;
                self.dress(entry, &root, b".", EntryType::Directory)
            }
        }
    }

    /// Owner first: changing it clears set-uid bits and capabilities.
    fn dress(
        &self,
        entry: &mut Entry<'_, impl Read>,
        parent: &OwnedFd,
        name: &[u8],
        kind: EntryType,
    ) -> io::Result<()> {
        if self.may_own {
            let (uid, gid) = (entry.header().uid()?, entry.header().gid()?);
            let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
            let (Some(uid), Some(gid)) = (id(uid), id(gid)) else {
                return Err(refused("an owner beyond 32 bits"));
            };
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if kind == EntryType::Symlink {
            return Ok(());
        }
        let here = within(parent, name);
        // The last part was made above or is a directory, and this layer's root moves with nobody: no link is followed.
        fs::set_permissions(&here, fs::Permissions::from_mode(entry.header().mode()? & 0o7777))?;
        self.set_attributes(entry, &here)?;
        if kind != EntryType::Directory {
            let times = timestamps(modified(entry)?);
            rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn set_attributes(&self, entry: &mut Entry<'_, impl Read>, path: &Path) -> io::Result<()> {
        let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
        let mut bytes = 0;
        for extension in extensions {
            let extension = extension?;
            let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
            bytes += name.len() + extension.value_bytes().len();
            if bytes > XATTR_BYTES_MAX {
                return Err(refused("too many extended attributes"));
            }
            // An archive that speaks overlayfs' own language could uncover what a lower layer hides.
            if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
                return Err(refused("an extended attribute of overlayfs"));
            }
            match rustix::fs::setxattr(path, name, extension.value_bytes(), XattrFlags::empty()) {
                // What this disk or this user cannot keep (labels of another machine's policy), the image can do without.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The directory at `parts`, made where it is missing: archives may leave parents out.
    fn parent(&self, parts: &[&[u8]]) -> io::Result<OwnedFd> {
        match self.directory(parts) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (name, above) = parts.split_last().ok_or(error)?;
                let above = self.parent(above)?;
                match rustix::fs::mkdirat(&above, *name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => self.directory(parts),
                    Err(error) => Err(error.into()),
                }
            }
            other => other,
        }
    }

    fn directory(&self, parts: &[&[u8]]) -> io::Result<OwnedFd> {
        let path = if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(&self.root, path, flags, Mode::empty(), within)?)
    }

    fn finish(&mut self) -> io::Result<()> {
        for (path, time) in std::mem::take(&mut self.directory_times).into_iter().rev() {
            // A later entry may have replaced the directory.
            if let Ok(directory) = self.directory(&parts(&path)?) {
                rustix::fs::utimensat(&directory, c".", &timestamps(time), AtFlags::empty())?;
            }
        }
        Ok(())
    }
}

/// `path` without `/`, `.` and empty parts. `..` is refused: no honest image has it.
fn parts(path: &[u8]) -> io::Result<Vec<&[u8]>> {
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(refused("a path with \"..\""));
    }
    if parts.len() > DEPTH_MAX || parts.iter().any(|part| part.contains(&0)) {
        return Err(refused("a path that no file system takes"));
    }
    Ok(parts)
}

/// The path of `name` in an open directory: the directory is the open one, whatever its name leads to by now.
fn within(directory: impl AsFd, name: &[u8]) -> PathBuf {
    let open = format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd());
    Path::new(&open).join(std::ffi::OsStr::from_bytes(name))
}

fn remove(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    if name == b".." {
        return Err(refused("a whiteout of \"..\""));
    }
    super::remove_all(&within(parent, name))
}

fn empty(directory: &OwnedFd) -> io::Result<()> {
    for entry in fs::read_dir(within(directory, b"."))? {
        super::remove_all(&entry?.path())?;
    }
    Ok(())
}

fn modified(entry: &Entry<'_, impl Read>) -> io::Result<SystemTime> {
    // Beyond the year 9999 is a mistake, not a time.
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(entry.header().mtime()?.min(253_402_300_799)))
}

fn timestamps(time: SystemTime) -> Timestamps {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = Timespec { tv_sec: seconds as i64, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn refused(what: &str) -> io::Error {
    io::Error::other(format!("{what} is not allowed"))
}
