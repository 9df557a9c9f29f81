//! A reader of tar archives, from front to back, that believes nothing it reads.
//!
//! It takes what image tools write: V7, ustar (POSIX.1-1988), pax (POSIX.1-2001) and GNU tar with its long names,
//! binary numbers and sparse files (old GNU, 0.0, 0.1 and 1.0). Where the standards leave something open it
//! does as the reader of Docker and containerd does, so that an image means the same here.
//!
//! Whatever a header says costs bounded memory: names, attributes and maps of sparse files have maxima, and
//! content is handed on in the reader's pieces.

use std::io::{self, Read};
use std::ops::Range;

/// Names, links and attributes of one file: Linux takes 4 KiB of path and 64 KiB of attributes.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Headers that extend one entry: a long name, a long link, attributes.
const EXTENSIONS_MAX: usize = 16;
/// Runs of data of one sparse file.
const RUNS_MAX: usize = 1 << 16;
const BLOCK_BYTES: usize = 512;
/// The year 9999: beyond it, either way, is a mistake and not a time.
const SECONDS_MAX: i64 = 253_402_300_799;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Link,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// What an archive says about one file; its content follows from the [`Reader`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    /// Where a link leads; empty for anything else.
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) modified: Time,
    /// Major and minor number of a device.
    pub(super) device: (u32, u32),
    /// Extended attributes, by their names on the file system.
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// The length of the file, holes included.
    pub(super) size: u64,
}

/// A moment, before 1970 too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Time {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// An archive on its way; as a `Read`, the content of the entry that [`next`](Self::next) returned last.
pub(super) struct Reader<R> {
    from: R,
    /// Where the entry before lies, for the words of an error.
    last: Option<String>,
    /// What the archive still has of this entry, content and padding.
    stored: u64,
    content: Content,
    ended: bool,
}

/// How the content of a file lies in the archive: runs of data, and holes between them.
#[derive(Default)]
struct Content {
    runs: Vec<Range<u64>>,
    /// The run that comes next, or is being read.
    next: usize,
    at: u64,
    size: u64,
}

/// What the headers before an entry say about it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

/// The attributes of a pax header that count.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    modified: Option<Time>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// GNU's attributes of sparse files, of all three versions.
#[derive(Default)]
struct Sparse {
    /// 1.0: the map comes first in the content.
    map_in_content: bool,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// 0.0 and 0.1: offset and length in turn.
    map: Option<Vec<u64>>,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R) -> Reader<R> {
        Reader { from, last: None, stored: 0, content: Content::default(), ended: false }
    }

    /// The next file of the archive, whatever was read of the one before.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let next = self.read_entry().map_err(|error| match &self.last {
            Some(last) => io::Error::new(error.kind(), format!("after entry {last:?}: {error}")),
            None => error,
        })?;
        if let Some(entry) = &next {
            self.last = Some(String::from_utf8_lossy(&entry.path).chars().take(256).collect());
        }
        Ok(next)
    }

    /// Passes the hole that comes next in the content, if one does, and returns its length.
    pub(super) fn skip_hole(&mut self) -> u64 {
        let hole = self.content.hole();
        self.content.at += hole;
        hole
    }

    fn read_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        for _ in 0..=EXTENSIONS_MAX {
            self.skip_stored()?;
            let Some(header) = self.read_header()? else { return Ok(None) };
            match header.kind() {
                b'L' => extensions.path = Some(until_nul(&self.read_extension(&header)?).to_vec()),
                b'K' => extensions.link = Some(until_nul(&self.read_extension(&header)?).to_vec()),
                b'x' | b'X' => extensions.pax = Pax::parse(&self.read_extension(&header)?)?,
                // Comments of the tool that wrote the archive.
                b'g' => drop(self.read_extension(&header)?),
                _ => return self.begin(&header, extensions).map(Some),
            }
        }
        Err(invalid("more headers for one file than any tool writes"))
    }

    /// `None` at the end of the archive.
    fn read_header(&mut self) -> io::Result<Option<Header>> {
        if self.ended {
            return Ok(None);
        }
        let mut header = Header([0; BLOCK_BYTES]);
        let count = read_up_to(&mut self.from, &mut header.0)?;
        if count == 0 || header.0.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        // Before anything else of it is believed, or quoted in an error.
        if count < BLOCK_BYTES || !header.is_whole() {
            return Err(invalid("it is no tar archive, or damaged or cut off"));
        }
        Ok(Some(header))
    }

    fn read_extension(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let size = header.size()?;
        if size > EXTENSION_BYTES_MAX {
            let text = format!("a name or attribute of more than {EXTENSION_BYTES_MAX} bytes is not allowed");
            return Err(invalid(text));
        }
        self.stored = padded(size)?;
        let mut bytes = vec![0; size as usize];
        self.read_stored(&mut bytes)?;
        Ok(bytes)
    }

    fn begin(&mut self, header: &Header, extensions: Extensions) -> io::Result<Entry> {
        let Extensions { path, link, pax } = extensions;
        let mut path = pax.path.or(path).unwrap_or_else(|| header.path());
        let kind = match header.kind() {
            // V7 had no directories but names that end so.
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Link,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let (path, kind) = (String::from_utf8_lossy(&path).into_owned(), char::from(other));
                return Err(invalid(format!("entry {path:?} is of kind {kind:?}, which no image has")));
            }
        };
        // What has no content has none, whatever size stands there.
        let mut stored = if kind == Kind::File { pax.size.map_or_else(|| header.size(), Ok)? } else { 0 };
        self.stored = padded(stored)?;
        let (mut size, mut runs) = (stored, std::iter::once(0..stored).collect());
        if kind == Kind::File && header.kind() == b'S' {
            let map = self.read_gnu_map(header)?;
            size = header.number(Header::REAL_SIZE)?;
            runs = checked_runs(&map, size, stored)?;
        } else if kind == Kind::File && (pax.sparse.map_in_content || pax.sparse.map.is_some()) {
            let sparse = pax.sparse;
            size = sparse.size.ok_or_else(|| invalid("a sparse file without its size"))?;
            path = sparse.name.unwrap_or(path);
            let map = match sparse.map {
                Some(map) if !sparse.map_in_content => map,
                _ => self.read_pax_map(&mut stored)?,
            };
            runs = checked_runs(&map, size, stored)?;
        }
        self.content = Content { runs, next: 0, at: 0, size };
        Ok(Entry {
            kind,
            path,
            link: match kind {
                Kind::HardLink | Kind::Link => pax.link.or(link).unwrap_or_else(|| header.link()),
                _ => Vec::new(),
            },
            mode: header.number(Header::MODE)? as u32,
            uid: pax.uid.map_or_else(|| header.number(Header::UID), Ok)?,
            gid: pax.gid.map_or_else(|| header.number(Header::GID), Ok)?,
            modified: pax.modified.map_or_else(|| header.modified(), Ok)?,
            device: match kind {
                Kind::CharacterDevice | Kind::BlockDevice => header.device()?,
                _ => (0, 0),
            },
            attributes: pax.attributes,
            size,
        })
    }

    /// The map of an old GNU sparse file: four runs in the header, more in blocks behind it.
    fn read_gnu_map(&mut self, header: &Header) -> io::Result<Vec<u64>> {
        let mut map = Vec::new();
        let mut add = |block: &[u8], from: Range<usize>| -> io::Result<()> {
            for field in block[from].chunks_exact(12) {
                if map.len() >= 2 * RUNS_MAX {
                    return Err(too_many_runs());
                }
                map.push(unsigned(field)?);
            }
            Ok(())
        };
        add(&header.0, 386..482)?;
        let mut more = header.0[482] != 0;
        while more {
            let mut block = [0; BLOCK_BYTES];
            if read_up_to(&mut self.from, &mut block)? < BLOCK_BYTES {
                return Err(cut_off());
            }
            add(&block, 0..504)?;
            more = block[504] != 0;
        }
        Ok(map)
    }

    /// The map of a sparse file of version 1.0: lines of numbers in blocks before the data.
    fn read_pax_map(&mut self, stored: &mut u64) -> io::Result<Vec<u64>> {
        let (mut map, mut count, mut number) = (Vec::new(), None, None::<u64>);
        loop {
            let mut block = [0; BLOCK_BYTES];
            *stored = stored
                .checked_sub(BLOCK_BYTES as u64)
                .ok_or_else(|| invalid("a sparse file without its map"))?;
            self.read_stored(&mut block)?;
            for byte in block {
                match (byte, number, count) {
                    (b'0'..=b'9', so_far, _) => {
                        let more = so_far.unwrap_or(0).checked_mul(10);
                        number = more.and_then(|more| more.checked_add(u64::from(byte - b'0')));
                        number.ok_or_else(|| invalid("a map of a sparse file that is none"))?;
                    }
                    (b'\n', Some(value), None) if value <= RUNS_MAX as u64 => count = Some(value as usize),
                    (b'\n', Some(_), None) => return Err(too_many_runs()),
                    (b'\n', Some(value), Some(_)) => map.push(value),
                    _ => return Err(invalid("a map of a sparse file that is none")),
                }
                if byte == b'\n' {
                    number = None;
                }
                // What fills up the block means nothing.
                if count.is_some_and(|count| map.len() == 2 * count) {
                    return Ok(map);
                }
            }
        }
    }

    fn read_stored(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let count = read_up_to(&mut self.from, bytes)?;
        self.stored = self.stored.saturating_sub(count as u64);
        if count < bytes.len() { Err(cut_off()) } else { Ok(()) }
    }

    fn skip_stored(&mut self) -> io::Result<()> {
        self.content = Content::default();
        let skipped = io::copy(&mut (&mut self.from).take(self.stored), &mut io::sink())?;
        if skipped < self.stored {
            return Err(cut_off());
        }
        self.stored = 0;
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let fits = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX).min(buffer.len());
        let hole = fits(self.content.hole());
        if hole > 0 {
            buffer[..hole].fill(0);
            self.content.at += hole as u64;
            return Ok(hole);
        }
        let wanted = fits(self.content.data());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.from.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(cut_off());
        }
        self.stored = self.stored.saturating_sub(count as u64);
        self.content.at += count as u64;
        Ok(count)
    }
}

impl Content {
    /// The length of the hole at this place.
    fn hole(&mut self) -> u64 {
        self.pass_runs();
        self.runs.get(self.next).map_or(self.size, |run| run.start).saturating_sub(self.at)
    }

    /// The length of the data at this place.
    fn data(&mut self) -> u64 {
        self.pass_runs();
        self.runs.get(self.next).filter(|run| run.start <= self.at).map_or(0, |run| run.end - self.at)
    }

    fn pass_runs(&mut self) {
        while self.runs.get(self.next).is_some_and(|run| run.end <= self.at) {
            self.next += 1;
        }
    }
}

/// Runs of data from a map of offsets and lengths, in order and within the file, which the archive has as a whole.
fn checked_runs(map: &[u64], size: u64, stored: u64) -> io::Result<Vec<Range<u64>>> {
    let mut runs: Vec<Range<u64>> = Vec::with_capacity(map.len() / 2);
    let (mut end, mut data) = (0, 0u64);
    for pair in map.chunks_exact(2) {
        let (start, len) = (pair[0], pair[1]);
        // Tools fill up a map, and mark the end of the file, with runs of nothing.
        if len == 0 {
            continue;
        }
        let next = start.checked_add(len).filter(|next| start >= end && *next <= size);
        end = next.ok_or_else(|| invalid("a map of a sparse file that leaves the file"))?;
        data += len;
        runs.push(start..end);
    }
    if !map.len().is_multiple_of(2) || data != stored {
        return Err(invalid("a map of a sparse file that does not fit its content"));
    }
    Ok(runs)
}

/// The first block of an entry.
struct Header([u8; BLOCK_BYTES]);

impl Header {
    const MODE: Range<usize> = 100..108;
    const UID: Range<usize> = 108..116;
    const GID: Range<usize> = 116..124;
    const SIZE: Range<usize> = 124..136;
    const MODIFIED: Range<usize> = 136..148;
    const CHECKSUM: Range<usize> = 148..156;
    const LINK: Range<usize> = 157..257;
    const MAGIC: Range<usize> = 257..263;
    const MAJOR: Range<usize> = 329..337;
    const MINOR: Range<usize> = 337..345;
    const PREFIX: Range<usize> = 345..500;
    /// The same of a program named star, which keeps times behind it.
    const PREFIX_OF_STAR: Range<usize> = 345..476;
    const STAR: Range<usize> = 508..512;
    const REAL_SIZE: Range<usize> = 483..495;

    /// Whether its checksum is that of its bytes, which some old tools took for signed ones.
    fn is_whole(&self) -> bool {
        let byte = |(at, byte): (usize, &u8)| if Self::CHECKSUM.contains(&at) { b' ' } else { *byte };
        let bytes = || self.0.iter().enumerate().map(byte);
        let unsigned_sum: i64 = bytes().map(i64::from).sum();
        let signed_sum: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        number(&self.0[Self::CHECKSUM]).is_ok_and(|sum| sum == unsigned_sum || sum == signed_sum)
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        if &self.0[Self::MAGIC] != b"ustar\0" {
            return name.to_vec();
        }
        let is_star = &self.0[Self::STAR] == b"tar\0";
        let prefix = if is_star { Self::PREFIX_OF_STAR } else { Self::PREFIX };
        let prefix = until_nul(&self.0[prefix]);
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }

    fn link(&self) -> Vec<u8> {
        until_nul(&self.0[Self::LINK]).to_vec()
    }

    fn size(&self) -> io::Result<u64> {
        self.number(Self::SIZE)
    }

    fn number(&self, field: Range<usize>) -> io::Result<u64> {
        unsigned(&self.0[field])
    }

    fn modified(&self) -> io::Result<Time> {
        let seconds = number(&self.0[Self::MODIFIED])?.clamp(-SECONDS_MAX, SECONDS_MAX);
        Ok(Time { seconds, nanoseconds: 0 })
    }

    fn device(&self) -> io::Result<(u32, u32)> {
        let part = |field| {
            let number = self.number(field)?;
            u32::try_from(number).map_err(|_| invalid("a device number that no kernel has"))
        };
        Ok((part(Self::MAJOR)?, part(Self::MINOR)?))
    }
}

impl Pax {
    /// Records of the form `length key=value` and a new line, the length that of the whole record.
    fn parse(mut bytes: &[u8]) -> io::Result<Pax> {
        let mut pax = Pax::default();
        while !bytes.is_empty() {
            let damaged = || invalid("attributes that are damaged");
            let blank = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(damaged)?;
            let len = decimal(&bytes[..blank]).and_then(|len| usize::try_from(len).ok());
            let len = len.filter(|len| *len > blank + 1 && *len <= bytes.len()).ok_or_else(damaged)?;
            let (record, rest) = bytes.split_at(len);
            let record = record[blank + 1..].strip_suffix(b"\n").ok_or_else(damaged)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(damaged)?;
            pax.take(&record[..equals], &record[equals + 1..])?;
            bytes = rest;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let wrong = || {
            let key = String::from_utf8_lossy(key).into_owned();
            invalid(format!("attribute {key:?} has a value that it cannot have"))
        };
        let number = || decimal(value).map(Some).ok_or_else(wrong);
        match key {
            // An empty value takes back what a global header said, and those count for nothing here.
            _ if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") => {}
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.modified = Some(time(value).ok_or_else(wrong)?),
            b"GNU.sparse.major" => self.sparse.map_in_content = number()? == Some(1),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = number()?,
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').map(|part| decimal(part).ok_or_else(wrong));
                self.sparse.map = Some(numbers.take(2 * RUNS_MAX + 1).collect::<io::Result<_>>()?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse.map.get_or_insert_default().push(decimal(value).ok_or_else(wrong)?);
            }
            // A file without any data has a map without any record.
            b"GNU.sparse.numblocks" => drop(self.sparse.map.get_or_insert_default()),
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attributes.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        match &self.sparse.map {
            Some(map) if map.len() > 2 * RUNS_MAX => Err(too_many_runs()),
            _ => Ok(()),
        }
    }
}

/// A number of a header: octal digits among blanks, or binary with the first bit set. Blanks alone are 0.
fn number(field: &[u8]) -> io::Result<i64> {
    let wrong = || invalid("a number in its header is none");
    if let Some(first) = field.first().filter(|first| **first & 0x80 != 0) {
        // Two's complement, sign-extended from the seven bits of the first byte.
        let mut value = i128::from((first << 1).cast_signed() >> 1);
        for byte in &field[1..] {
            value = (value << 8) | i128::from(*byte);
            // Twelve bytes at most: nothing is lost on the way.
        }
        return i64::try_from(value).map_err(|_| wrong());
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(is_blank).unwrap_or(digits.len())];
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => Ok((value << 3) | i64::from(digit - b'0')),
        _ => Err(wrong()),
    })
}

fn unsigned(field: &[u8]) -> io::Result<u64> {
    u64::try_from(number(field)?).map_err(|_| invalid("a number in its header is negative"))
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds since 1970 as a decimal fraction, perhaps negative.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (is_before, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let seconds = whole.parse().map_or(SECONDS_MAX, |seconds: i64| seconds.min(SECONDS_MAX));
    let nanoseconds = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (is_before, nanoseconds) {
        (false, nanoseconds) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, nanoseconds) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

fn padded(size: u64) -> io::Result<u64> {
    // Beyond it lies nothing that a file can be, and sums of sizes stay sums.
    let possible = size <= i64::MAX as u64 - BLOCK_BYTES as u64;
    possible
        .then(|| size.next_multiple_of(BLOCK_BYTES as u64))
        .ok_or_else(|| invalid("an entry of that size is not allowed"))
}

/// Reads until `bytes` is full or nothing more comes.
pub(super) fn read_up_to(from: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < bytes.len() {
        match from.read(&mut bytes[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut off")
}

fn too_many_runs() -> io::Error {
    invalid(format!("a sparse file of more than {RUNS_MAX} pieces is not allowed"))
}

#[cfg(test)]
mod tests;
