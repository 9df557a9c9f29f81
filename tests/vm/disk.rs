//! The files that a kernel finds in memory when it starts: an archive of the form "newc".
//!
//! Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

pub(crate) struct Writer {
    file: BufWriter<File>,
    inode: u32,
}

impl Writer {
    pub(crate) fn create(path: &Path) -> io::Result<Writer> {
        Ok(Writer { file: BufWriter::new(File::create(path)?), inode: 0 })
    }

    pub(crate) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY, (0, 0), b"")
    }

    pub(crate) fn program(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.entry(name, PROGRAM, (0, 0), bytes)
    }

    /// What the first process prints to before it can have made anything itself.
    pub(crate) fn console(&mut self) -> io::Result<()> {
        self.entry("dev/console", CHARACTER_DEVICE, (5, 1), b"")
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), b"")?;
        self.file.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), bytes: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let name_size = name.len() as u32 + 1;
        // inode, mode, uid, gid, links, time, size, device of the file system (2), device (2), name, checksum
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let header = fields.map(|field| format!("{field:08x}")).concat();
        write!(self.file, "070701{header}{name}\0")?;
        // Header and name together, and then the content, are filled up to four bytes.
        self.fill(6 + header.len() + name.len() + 1)?;
        self.file.write_all(bytes)?;
        self.fill(bytes.len())
    }

    fn fill(&mut self, written: usize) -> io::Result<()> {
        self.file.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}
