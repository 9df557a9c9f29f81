//! Cutting a program's output into records and files; runs in the shim.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::record::{self, Output, TEXT_BYTES_MAX};
use super::{ROTATED_MAX, rotated};

/// The size at which a log file is put aside: with four older ones at most 50 MiB per attempt.
pub(crate) const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;

/// Collects the bytes of one output until they are a line.
pub(crate) struct LineCutter {
    output: Output,
    pending: Vec<u8>,
}

impl LineCutter {
    pub(crate) fn new(output: Output) -> Self {
        Self { output, pending: Vec::new() }
    }

    /// Adds a record to `out` for each line that `bytes` completes or makes too long.
    pub(crate) fn push(&mut self, now: SystemTime, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = TEXT_BYTES_MAX - self.pending.len();
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            match newline {
                Some(end) if end <= room => {
                    self.pending.extend_from_slice(&bytes[..end]);
                    self.flush(now, true, out);
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() < room => {
                    self.pending.extend_from_slice(bytes);
                    return;
                }
                _ => {
                    self.pending.extend_from_slice(&bytes[..room]);
                    self.flush(now, false, out);
                    bytes = &bytes[room..];
                }
            }
        }
    }

    /// Ends the last line, which had no newline.
    pub(crate) fn finish(&mut self, now: SystemTime, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.flush(now, true, out);
        }
    }

    fn flush(&mut self, now: SystemTime, ends_line: bool, out: &mut Vec<u8>) {
        record::write(out, now, self.output, ends_line, &self.pending);
        self.pending.clear();
    }
}

/// The file being written and its older brothers.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl LogFile {
    /// Opens or makes the file at `path`; a new one follows once it holds `bytes_max`.
    pub(crate) fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, bytes_max })
    }

    /// Appends whole records.
    ///
    /// A full disk loses them: a program must never stand still because nobody can keep its words.
    pub(crate) fn append(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        if self.bytes > 0 && self.bytes + records.len() as u64 > self.bytes_max {
            // If the new file cannot be made, the old one grows on: better too long than lost.
            let _ = self.rotate();
        }
        if self.file.write_all(records).is_ok() {
            self.bytes += records.len() as u64;
        }
    }

    /// Renames from the oldest on, so that at any moment each file has one name.
    fn rotate(&mut self) -> io::Result<()> {
        for age in (0..ROTATED_MAX).rev() {
            match fs::rename(rotated(&self.path, age), rotated(&self.path, age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        *self = Self::open(&self.path, self.bytes_max)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_long_line_becomes_pieces_and_its_end() {
        let mut cutter = LineCutter::new(Output::Stdout);
        let mut out = Vec::new();
        let mut line = vec![b'x'; 40_000];
        line.push(b'\n');
        for chunk in line.chunks(7_000) {
            cutter.push(UNIX_EPOCH, chunk, &mut out);
        }
        let records: Vec<_> = out.split(|byte| *byte == b'\n').filter_map(record::parse).collect();
        let sizes: Vec<_> = records.iter().map(|record| (record.text.len(), record.ends_line)).collect();
        assert_eq!(sizes, [(16_384, false), (16_384, false), (7_232, true)]);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_one_record_and_an_unfinished_one_is_kept() {
        let mut cutter = LineCutter::new(Output::Stdout);
        let mut out = Vec::new();
        cutter.push(UNIX_EPOCH, &[b'x'; TEXT_BYTES_MAX - 1], &mut out);
        cutter.push(UNIX_EPOCH, b"y\n\nend", &mut out);
        cutter.finish(UNIX_EPOCH, &mut out);
        let records: Vec<_> = out.split(|byte| *byte == b'\n').filter_map(record::parse).collect();
        let sizes: Vec<_> = records.iter().map(|record| (record.text.len(), record.ends_line)).collect();
        assert_eq!(sizes, [(TEXT_BYTES_MAX, true), (0, true), (3, true)]);
    }

    #[test]
    fn rotation_keeps_five_files_and_each_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, 100).expect("a log");
        for n in 0..100 {
            log.append(format!("record number {n:04}\n").as_bytes());
        }
        for age in 0..=ROTATED_MAX {
            let bytes = fs::metadata(rotated(&path, age)).expect("a file").len();
            assert!((1..=100).contains(&bytes), "{age}: {bytes}");
        }
        assert!(!rotated(&path, ROTATED_MAX + 1).exists());
        assert!(fs::read_to_string(&path).expect("text").ends_with("record number 0099\n"));
    }
}
