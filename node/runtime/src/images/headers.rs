//! An archive whose headers cost no memory.
//!
//! A name, a link or a list of attributes may stand in an entry of its own before the file it belongs to,
//! and whoever reads the archive takes such an entry into memory as a whole. A few kilobytes, compressed,
//! may hold gigabytes of it; a map of a sparse file may be as long, and the file it makes longer still.
//! So headers are looked at before the archive's reader sees them.

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};

/// Names, links and attributes of one file: Linux takes 4 KiB of path and 64 KiB of attributes.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
const BLOCK_BYTES: usize = 512;

/// Passes an archive on, and fails at a header that nobody should believe.
pub(super) struct Bounded<R> {
    from: R,
    block: [u8; BLOCK_BYTES],
    /// The part of `block` that was not handed on yet.
    left: std::ops::Range<usize>,
    stage: Stage,
    /// Attributes of the next file, as they come, and its size where they give one.
    attributes: Vec<u8>,
    size: Option<u64>,
}

enum Stage {
    /// A header comes next.
    Header,
    /// So many bytes of an entry; `keep` those of its attributes.
    Content { left: u64, keep: u64 },
    /// The archive has ended: what follows means nothing.
    Trailer,
}

impl<R: Read> Bounded<R> {
    pub(super) fn new(from: R) -> Bounded<R> {
        Bounded {
            from,
            block: [0; BLOCK_BYTES],
            left: 0..0,
            stage: Stage::Header,
            attributes: Vec::new(),
            size: None,
        }
    }

    fn read_header(&mut self) -> io::Result<()> {
        let mut count = 0;
        while count < BLOCK_BYTES {
            match self.from.read(&mut self.block[count..]) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.left = 0..count;
        if count == 0 || self.block.iter().all(|byte| *byte == 0) {
            self.stage = Stage::Trailer;
            return Ok(());
        }
        let header = Header::from_byte_slice(&self.block);
        // Before anything else of it is believed, or quoted in an error.
        if count < BLOCK_BYTES || header.cksum().ok() != Some(checksum(&self.block)) {
            return Err(io::Error::other("it is no tar archive, or damaged or cut off"));
        }
        let kind = header.entry_type();
        let mut size = header.entry_size()?;
        let extends = matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        );
        if kind.is_gnu_sparse() {
            return Err(io::Error::other("a sparse file in an archive is not allowed"));
        }
        if extends && size > EXTENSION_BYTES_MAX {
            let text = format!("a name or attribute of more than {EXTENSION_BYTES_MAX} bytes is not allowed");
            return Err(io::Error::other(text));
        }
        // The reader's own rule: a size among the attributes counts for the next real entry.
        if !extends {
            size = self.size.unwrap_or(size);
        }
        if !extends || kind == EntryType::XGlobalHeader {
            self.size = None;
        }
        let padded = size.checked_next_multiple_of(BLOCK_BYTES as u64);
        let padded = padded.ok_or_else(|| io::Error::other("an entry of that size is not allowed"))?;
        let keep = if kind == EntryType::XHeader { size } else { 0 };
        self.attributes.clear();
        self.stage = if padded == 0 { Stage::Header } else { Stage::Content { left: padded, keep } };
        Ok(())
    }

    fn note_size(&mut self) -> io::Result<()> {
        for attribute in PaxExtensions::new(&self.attributes) {
            let attribute = attribute?;
            if attribute.key_bytes() == b"size" {
                self.size = attribute.value().ok().and_then(|text| text.parse().ok());
            }
        }
        self.attributes.clear();
        Ok(())
    }
}

/// Of a header, with blanks where it stands itself (POSIX.1-1988 ustar).
fn checksum(block: &[u8; BLOCK_BYTES]) -> u32 {
    const OWN: std::ops::Range<usize> = 148..156;
    let byte = |(at, byte): (usize, &u8)| u32::from(if OWN.contains(&at) { b' ' } else { *byte });
    block.iter().enumerate().map(byte).sum()
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.is_empty() && matches!(self.stage, Stage::Header) {
            self.read_header()?;
        }
        if !self.left.is_empty() {
            let count = buffer.len().min(self.left.len());
            buffer[..count].copy_from_slice(&self.block[self.left.start..][..count]);
            self.left.start += count;
            return Ok(count);
        }
        let Stage::Content { left, keep } = &mut self.stage else { return self.from.read(buffer) };
        let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.from.read(&mut buffer[..wanted])?;
        let kept = usize::try_from(*keep).unwrap_or(usize::MAX).min(count);
        self.attributes.extend_from_slice(&buffer[..kept]);
        *keep -= kept as u64;
        *left -= count as u64;
        let (is_whole, is_over) = (kept > 0 && *keep == 0, *left == 0);
        if is_over {
            self.stage = Stage::Header;
        }
        if is_whole {
            self.note_size()?;
        }
        Ok(count)
    }
}
