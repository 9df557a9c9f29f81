//! A layer's archive as a directory that overlayfs understands.
//!
//! A layer that has others below it is applied to an overlay mount of them, in a mount namespace that
//! ends with the thread: whiteouts become the kernel's own, a parent directory that the archive leaves
//! out keeps its mode and owner, and a path through a link of a lower layer (`lib` -> `usr/lib`) leads
//! where it leads in the container. What comes out is the upper directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use super::apart::{self, Stack};
use super::digest::Hashing;
use super::room::Room;
use super::tar_reader::{Entry, Kind, Reader, Time, read_up_to};
use super::{Digest, Error, Limits, Unfinished};
use crate::opening::place_of;
use crate::record::Durability;
use crate::rootfs::overlay;
use crate::sys::mount::{Attributes, open_at};

/// Directories of one path; deeper ones are no file system's.
const DEPTH_MAX: usize = 256;
/// Attributes of one file and their size, as Linux bounds them.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// Paths that are kept in mind until the layer is whole, as bytes: some hundred thousand of them.
const KEPT_IN_MIND_BYTES_MAX: usize = 64 << 20;
/// The window of xz at its highest level, and some.
const XZ_MEMORY_KIB_MAX: u32 = 80 << 10;
const PIECE_BYTES: usize = 64 << 10;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks the file `blob` on top of `lower` (the topmost first) into the new directory `target`.
///
/// * `room`: for this process to do it itself; without, another one does ([`apart`]).
pub(super) fn layer(
    blob: &Path,
    diff_id: &Digest,
    lower: &[PathBuf],
    target: &Path,
    limits: &Limits,
    room: Option<&Room>,
) -> Result<(), Error> {
    let make = || Error::io("make a layer's directory");
    fs::create_dir(target).map_err(make())?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o755)).map_err(make())?;
    let [work, merged, links] =
        ["work", "merged", "links"].map(|name| Unfinished(Some(target.with_extension(name))));
    let mut stack = None;
    if !lower.is_empty() {
        for dir in [&work, &merged] {
            fs::create_dir(dir.path()).map_err(make())?;
        }
        let layers = overlay::Layers {
            lower: lower.to_vec(),
            upper: target.to_owned(),
            work: work.path().to_owned(),
            links: links.path().to_owned(),
            user_attributes: crate::in_user_namespace(),
        };
        stack = Some(Stack { layers, merged: merged.path().to_owned() });
    }
    let Some(room) = room else {
        return apart::layer(blob, diff_id, target, stack, *limits);
    };
    let blob = File::open(blob).map_err(Error::io(format!("open the blob of layer {diff_id}")))?;
    let Some(Stack { layers, merged }) = stack else {
        return apply(blob, diff_id, target, None, limits, room);
    };
    std::thread::scope(|scope| {
        let on_top = || {
            overlay::mount_alone(&layers, &merged, Attributes::NO_SUID, Durability::Durable)
                .map_err(Error::io("stack the layers below"))?;
            apply(blob, diff_id, &merged, Some(target), limits, room)
        };
        scope
            .spawn(on_top)
            .join()
            .unwrap_or_else(|_| Err(Error::invalid(format!("layer {diff_id}"), "unpacking it failed")))
    })
}

/// By the first bytes, for the media type is only somebody's word: gzip, zstd, xz, bzip2 or none of them.
pub(super) fn decompress<'a>(mut from: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut magic = [0; 6];
    let count = read_up_to(&mut from, &mut magic)?;
    let whole = io::Cursor::new(magic[..count].to_vec()).chain(from);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        // A frame, or one to be skipped, with which parallel writers of zstd begin.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::Decoder::new(whole)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(whole, true, XZ_MEMORY_KIB_MAX))
        }
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Box::new(bzip2::read::MultiBzDecoder::new(whole)),
        _ => Box::new(whole),
    })
}

/// Applies an archive to the directory `root`; where that shows other layers too, `own` is the layer's own one.
pub(super) fn apply(
    blob: File,
    diff_id: &Digest,
    root: &Path,
    own: Option<&Path>,
    limits: &Limits,
    room: &Room,
) -> Result<(), Error> {
    let what = format!("layer {diff_id}");
    let damaged = |error: io::Error| Error::invalid(&what, error);
    let reader = decompress(blob).map_err(Error::io(format!("read layer {diff_id}")))?;
    // One byte more than allowed shows that there is more.
    let mut counted = Hashing::new(reader.take(limits.layer_bytes_max + 1));
    let open = Error::io("open a layer's directory");
    let mut layer = Layer::new(root, own, room).map_err(open)?;
    let applied = add_all(&mut counted, &mut layer, &what, limits);
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
    let mut archive = Reader::new(from);
    let mut count = 0;
    while let Some(entry) = archive.next().map_err(|error| Error::invalid(what, error))? {
        count += 1;
        if count > limits.layer_entries_max {
            let reason = format!("it has more than {} entries", limits.layer_entries_max);
            return Err(Error::invalid(what, reason));
        }
        // A hole costs no bytes here, and as many wherever the file is copied to.
        if entry.size > limits.layer_bytes_max {
            return Err(Error::TooLarge { what: what.to_owned(), limit: limits.layer_bytes_max });
        }
        layer.add(&entry, &mut archive).map_err(|error| of_entry(what, &entry.path, error))?;
    }
    layer.finish().map_err(|(path, error)| of_entry(what, &path, error))
}

fn of_entry(what: &str, path: &[u8], error: io::Error) -> Error {
    let path: String = String::from_utf8_lossy(path).chars().take(256).collect();
    Error::invalid(format!("{what}, entry {path:?}"), error)
}

/// The directory a layer is written to. Every path is resolved inside it by the kernel.
struct Layer<'a> {
    root: OwnedFd,
    room: &'a Room,
    /// What lies below, if anything does.
    below: Option<Below>,
    /// Times of the layer's directories are set last: writing into one changes its time.
    directory_times: BTreeMap<Vec<u8>, Time>,
    /// Hard links that came before the file they lead to, by path.
    early_links: BTreeMap<Vec<u8>, Vec<u8>>,
    kept_in_mind: KeptInMind,
    piece: Vec<u8>,
    /// In a user namespace with a single user nothing can be given to another one.
    may_own: bool,
}

/// The layers below, as far as this one must tell them from itself.
struct Below {
    /// Where the stack of all layers lies, as the kernel knows it.
    stack: PathBuf,
    /// What is this layer's own.
    own: OwnedFd,
    /// What the kernel copied up from below, for a hard link to it.
    copied: BTreeSet<PathBuf>,
    /// Directories in which nothing from below is left.
    emptied: BTreeSet<PathBuf>,
}

/// How much is kept in mind of a layer: its archive may be long, and this process has other things to do.
#[derive(Default)]
struct KeptInMind(usize);

impl KeptInMind {
    fn add(&mut self, path: &[u8]) -> io::Result<()> {
        self.0 += path.len() + std::mem::size_of::<(Vec<u8>, Vec<u8>)>();
        if self.0 > KEPT_IN_MIND_BYTES_MAX {
            return Err(refused("a layer whose directories and links have so many long names"));
        }
        Ok(())
    }
}

impl<'a> Layer<'a> {
    fn new(root: &Path, own: Option<&Path>, room: &'a Room) -> io::Result<Layer<'a>> {
        let open = |path: &Path| {
            rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        };
        let root = open(root)?;
        let below = own.map(|own| {
            let (copied, emptied) = Default::default();
            io::Result::Ok(Below { stack: place_of(&root)?, own: open(own)?, copied, emptied })
        });
        let may_own = !fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().nth(2).is_some_and(|count| count == "1"));
        Ok(Layer {
            root,
            room,
            below: below.transpose()?,
            directory_times: BTreeMap::new(),
            early_links: BTreeMap::new(),
            kept_in_mind: KeptInMind::default(),
            piece: vec![0; PIECE_BYTES],
            may_own,
        })
    }

    fn add(&mut self, entry: &Entry, content: &mut Reader<impl Read>) -> io::Result<()> {
        let parts = parts(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            // The root itself: only what it is like.
            return self.dress_directory(entry, &[]);
        };
        // Each takes at least a block of the disk, whatever is in it.
        self.room.take(4096)?;
        let parent = self.parent(parents)?;
        if *name == OPAQUE {
            return self.hide_below(&parent);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return match hidden {
                b"" | b"." | b".." => Err(refused("a whiteout of no file")),
                hidden => self.hide(&parent, hidden),
            };
        }
        let path = parts.join(&b'/');
        self.early_links.remove(&path);
        let here = within(&parent, name);
        if entry.kind == Kind::Directory {
            let exists = fs::symlink_metadata(&here).is_ok_and(|found| found.is_dir());
            if !exists {
                self.replace(&parent, name)?;
                rustix::fs::mkdirat(&parent, *name, Mode::from_raw_mode(0o755))?;
            }
            return self.dress_directory(entry, &parts);
        }
        self.replace(&parent, name)?;
        match entry.kind {
            Kind::File => self.write(entry, content, &parent, name)?,
            Kind::Link if entry.link.is_empty() => return Err(refused("a link to nothing")),
            Kind::Link => rustix::fs::symlinkat(entry.link.as_slice(), &parent, *name)?,
            Kind::HardLink => {
                return match self.link(&parent, name, &entry.link) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.kept_in_mind.add(&path)?;
                        self.kept_in_mind.add(&entry.link)?;
                        self.early_links.insert(path, entry.link.clone());
                        Ok(())
                    }
                    other => other,
                };
            }
            Kind::Fifo => {
                rustix::fs::mknodat(&parent, *name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
            }
            // Those a container may use are in its own `/dev`.
            Kind::CharacterDevice | Kind::BlockDevice => return Ok(()),
            Kind::Directory => {}
        }
        self.dress(entry, &parent, name)
    }

    fn write(
        &mut self,
        entry: &Entry,
        content: &mut Reader<impl Read>,
        parent: &OwnedFd,
        name: &[u8],
    ) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
        let mut ends_in_hole = false;
        loop {
            let hole = content.skip_hole();
            if hole > 0 {
                file.seek(SeekFrom::Current(hole.cast_signed()))?;
                ends_in_hole = true;
            }
            match content.read(&mut self.piece) {
                Ok(0) => break,
                Ok(count) => {
                    self.room.take(count as u64)?;
                    file.write_all(&self.piece[..count])?;
                    ends_in_hole = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if ends_in_hole { file.set_len(entry.size) } else { Ok(()) }
    }

    /// Owner, mode and times are those of the file it links to.
    fn link(&mut self, parent: &OwnedFd, name: &[u8], target: &[u8]) -> io::Result<()> {
        let target = self::parts(target)?;
        let (last, above) = target.split_last().ok_or_else(|| refused("a hard link to the root"))?;
        let from = self.directory(above)?;
        if let Some(below) = &mut self.below {
            let place = below.place(&from, last)?;
            if !below.is_own(&place)? {
                self.kept_in_mind.add(place.as_os_str().as_bytes())?;
                below.copied.insert(place);
            }
        }
        Ok(rustix::fs::linkat(&from, *last, parent, name, AtFlags::empty())?)
    }

    /// Makes way for an entry: of two with one name the later one counts.
    fn replace(&mut self, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        remove(parent, name)?;
        if let Some(below) = self.below.as_mut().filter(|below| !below.copied.is_empty()) {
            let place = below.place(parent, name)?;
            below.copied.remove(&place);
        }
        Ok(())
    }

    /// Hides what is at `name` in the layers below. What this one has there stays, whether it came before or
    /// comes later.
    fn hide(&mut self, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        // With nothing below there is nothing to hide.
        let Some(below) = &mut self.below else { return Ok(()) };
        let place = below.place(parent, name)?;
        if !below.is_own(&place)? {
            return remove(parent, name);
        }
        let here = within(parent, name);
        if !fs::symlink_metadata(&here).is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        self.hide_below(&directory)?;
        // One that is only here because something in it was hidden before goes, too.
        if !self.directory_times.contains_key(place.as_os_str().as_bytes()) {
            match fs::remove_dir(&here) {
                Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Hides everything that layers below have in a directory.
    fn hide_below(&mut self, directory: &OwnedFd) -> io::Result<()> {
        let Some(below) = &mut self.below else { return Ok(()) };
        let place = below.place(directory, b"")?;
        if place.components().count() > DEPTH_MAX {
            return Err(refused("a path that no file system takes"));
        }
        self.kept_in_mind.add(place.as_os_str().as_bytes())?;
        if !below.emptied.insert(place) {
            return Ok(());
        }
        for entry in fs::read_dir(within(directory, b"."))? {
            self.hide(directory, entry?.file_name().as_bytes())?;
        }
        Ok(())
    }

    fn dress_directory(&mut self, entry: &Entry, parts: &[&[u8]]) -> io::Result<()> {
        let path = parts.join(&b'/');
        self.kept_in_mind.add(&path)?;
        self.directory_times.insert(path, entry.modified);
        match parts.split_last() {
            Some((name, parents)) => {
                let parent = self.parent(parents)?;
                self.dress(entry, &parent, name)
            }
            None => {
                let root = self.directory(&[])?;
                self.dress(entry, &root, b".")
            }
        }
    }

    /// Owner first: changing it clears set-uid bits and capabilities.
    fn dress(&self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        if self.may_own {
            let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
            let (Some(uid), Some(gid)) = (id(entry.uid), id(entry.gid)) else {
                return Err(refused("an owner beyond 32 bits"));
            };
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if entry.kind != Kind::Link {
            let here = within(parent, name);
            // The last part was made above or is a directory, and this layer's root moves with nobody: no link is followed.
            fs::set_permissions(&here, fs::Permissions::from_mode(entry.mode & 0o7777))?;
            set_attributes(entry, &here)?;
        }
        if entry.kind != Kind::Directory {
            let times = timestamps(entry.modified);
            rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
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
        let within = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        let path = Path::new(OsStr::from_bytes(&path));
        open_at(self.root.as_fd(), path, libc::O_PATH | libc::O_DIRECTORY, within)
    }

    /// What had to wait for the rest. The error comes with the entry it is about.
    fn finish(&mut self) -> Result<(), (Vec<u8>, io::Error)> {
        for (path, target) in std::mem::take(&mut self.early_links) {
            self.link_late(&path, &target).map_err(|error| (path, error))?;
        }
        // The deepest first, though nothing is written any more: setting a time of one changes no other one.
        for (path, time) in std::mem::take(&mut self.directory_times).into_iter().rev() {
            self.set_time(&path, time).map_err(|error| (path, error))?;
        }
        Ok(())
    }

    fn link_late(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let parts = parts(path)?;
        let (name, parents) =
            parts.split_last().ok_or_else(|| refused("a hard link in place of the root"))?;
        let parent = self.parent(parents)?;
        self.link(&parent, name, target).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let target = String::from_utf8_lossy(target);
                io::Error::other(format!("it is a hard link to {target:?}, which is in no layer"))
            }
            _ => error,
        })
    }

    fn set_time(&self, path: &[u8], time: Time) -> io::Result<()> {
        // A later entry may have replaced the directory.
        if let Ok(directory) = self.directory(&parts(path)?) {
            rustix::fs::utimensat(&directory, c".", &timestamps(time), AtFlags::empty())?;
        }
        Ok(())
    }
}

impl Below {
    /// The path of `name` in an open directory of the stack, from its root on and without any link.
    fn place(&self, directory: &OwnedFd, name: &[u8]) -> io::Result<PathBuf> {
        let place = place_of(directory)?;
        let inside = place.strip_prefix(&self.stack).map_err(io::Error::other)?;
        Ok(if name.is_empty() { inside.to_owned() } else { inside.join(OsStr::from_bytes(name)) })
    }

    /// Whether this layer itself has something there.
    fn is_own(&self, place: &Path) -> io::Result<bool> {
        if self.copied.contains(place) {
            return Ok(false);
        }
        let strictly = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
        match open_at(self.own.as_fd(), place, libc::O_PATH | libc::O_NOFOLLOW, strictly) {
            Ok(found) => {
                // Overlayfs marks what is hidden by a device that nobody has.
                let found = rustix::fs::fstat(&found)?;
                let kind = FileType::from_raw_mode(found.st_mode);
                Ok(kind != FileType::CharacterDevice || found.st_rdev != 0)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

fn set_attributes(entry: &Entry, path: &Path) -> io::Result<()> {
    let bytes: usize = entry.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > XATTR_BYTES_MAX {
        return Err(refused("too many extended attributes"));
    }
    for (name, value) in &entry.attributes {
        // What overlayfs says to itself, which could uncover what a lower layer hides. Tools that pack the directories
        // of another machine's layers leave it in.
        if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        match rustix::fs::setxattr(path, name.as_slice(), value, XattrFlags::empty()) {
            // What this disk or this user cannot keep (labels of another machine's policy), the image can do without.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
    Path::new(&open).join(OsStr::from_bytes(name))
}

fn remove(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    super::remove_all(&within(parent, name))
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn refused(what: &str) -> io::Error {
    io::Error::other(format!("{what} is not allowed"))
}
