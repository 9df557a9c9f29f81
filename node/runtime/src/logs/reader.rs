//! Reading a log that is being written and rotated.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::record::{self, TEXT_BYTES_MAX};
use super::select::is_before;
use super::{LogOptions, LogStream, ROTATED_MAX, Selection, rotated};

/// How often a follower looks for more: soon enough for eyes, and one `read` of nothing costs little.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// The most that is handed on at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// The longest line a file of ours can hold, with stamp and tags.
const LINE_BYTES_MAX: usize = TEXT_BYTES_MAX + 64;

/// Streams the log at `newest`, following it until `ended` says true if asked to.
pub(crate) fn stream(
    newest: PathBuf,
    options: LogOptions,
    ended: watch::Receiver<bool>,
) -> io::Result<LogStream> {
    let mut cursor = match options.tail_bytes {
        Some(bytes) => Cursor::open_near_end(&newest, bytes)?,
        None => Cursor::open(&newest)?,
    };
    // Who does not follow sees what was there when they asked: a busy program would never let them end.
    let end = if options.follow { None } else { End::of(&newest)? };
    cursor.end = end;
    let (sender, stream) = LogStream::channel(4);
    tokio::spawn(async move {
        let follow = options.follow;
        let counted = tokio::task::spawn_blocking(move || {
            let selection =
                Selection::new(&options, SystemTime::now(), |limit| count_lines(&newest, limit, end));
            cursor.selection = Some(selection);
            cursor
        });
        let Ok(cursor) = counted.await else { return };
        if let Err(Some(error)) = run(cursor, follow, ended, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok(stream)
}

/// Err(None): nobody listens any more.
async fn run(
    mut cursor: Cursor,
    follow: bool,
    ended: watch::Receiver<bool>,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), Option<io::Error>> {
    loop {
        // Asked before reading: what was written before the end is then read after it.
        let is_last_look = !follow || *ended.borrow();
        let read = tokio::task::spawn_blocking(move || {
            let chunk = cursor.next_chunk();
            (cursor, chunk)
        });
        let chunk;
        (cursor, chunk) = read.await.map_err(|error| Some(io::Error::other(error)))?;
        let chunk = chunk.map_err(Some)?;
        let at_end = chunk.is_none();
        if let Some(chunk) = chunk.filter(|chunk| !chunk.is_empty()) {
            sender.send(Ok(chunk.into())).await.map_err(|_| None)?;
        }
        if cursor.is_done() || (at_end && is_last_look) {
            return Ok(());
        }
        if at_end {
            tokio::select! {
                () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
                () = sender.closed() => return Err(None),
            }
        }
    }
}

/// Where the newest file ended at some moment; it may have been renamed since.
#[derive(Clone, Copy)]
struct End {
    inode: u64,
    bytes: u64,
}

impl End {
    fn of(newest: &Path) -> io::Result<Option<End>> {
        let Some(file) = open_if_there(newest)? else { return Ok(None) };
        let metadata = file.metadata()?;
        Ok(Some(End { inode: metadata.ino(), bytes: metadata.len() }))
    }
}

/// A place in a set of files that are renamed under its feet.
struct Cursor {
    newest: PathBuf,
    file: File,
    inode: u64,
    /// Bytes read of this file.
    offset: u64,
    /// Nothing is read from there on.
    end: Option<End>,
    /// Bytes of a line whose end is not written yet.
    partial: Vec<u8>,
    /// Whether it began within a line, which is passed over.
    torn: bool,
    selection: Option<Selection>,
}

impl Cursor {
    /// Stands at the beginning of the oldest file.
    fn open(newest: &Path) -> io::Result<Self> {
        let file = open_oldest(newest)?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            newest: newest.to_owned(),
            file,
            inode,
            offset: 0,
            end: None,
            partial: Vec::new(),
            torn: false,
            selection: None,
        })
    }

    /// Stands so many bytes before the end of what is written, or at the beginning.
    fn open_near_end(newest: &Path, bytes: u64) -> io::Result<Self> {
        let mut cursor = None;
        let mut left = bytes;
        for age in 0..=ROTATED_MAX {
            let Some(mut file) = open_if_there(&rotated(newest, age))? else { continue };
            let metadata = file.metadata()?;
            let offset = metadata.len().saturating_sub(left);
            file.seek(SeekFrom::Start(offset))?;
            left = left.saturating_sub(metadata.len());
            cursor = Some(Self {
                newest: newest.to_owned(),
                file,
                inode: metadata.ino(),
                offset,
                end: None,
                partial: Vec::new(),
                torn: offset > 0,
                selection: None,
            });
            if left == 0 {
                break;
            }
        }
        cursor.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn is_done(&self) -> bool {
        self.selection.as_ref().is_some_and(Selection::is_done)
    }

    /// Reads on. `None` at the end of what is written so far; an empty chunk where nothing was wanted.
    fn next_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let left = match self.end {
            Some(end) if end.inode == self.inode => end.bytes.saturating_sub(self.offset),
            _ => u64::MAX,
        };
        if left == 0 {
            return Ok(None);
        }
        let mut buffer = vec![0; usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
        let mut read = self.file.read(&mut buffer)?;
        if read == 0 {
            let Some(next) = self.newer_file()? else { return Ok(None) };
            // The writer may have added to this file between our read and its rename.
            read = self.file.read(&mut buffer)?;
            if read == 0 {
                self.inode = next.metadata()?.ino();
                self.file = next;
                self.offset = 0;
                return Ok(Some(Vec::new()));
            }
        }
        self.offset += read as u64;
        let mut out = Vec::new();
        for byte_line in buffer[..read].split_inclusive(|byte| *byte == b'\n') {
            let Some(line) = byte_line.strip_suffix(b"\n") else {
                if self.partial.len() + byte_line.len() <= LINE_BYTES_MAX {
                    self.partial.extend_from_slice(byte_line);
                }
                continue;
            };
            self.partial.extend_from_slice(line);
            if std::mem::take(&mut self.torn) {
                self.partial.clear();
                continue;
            }
            if let Some(selection) = &mut self.selection {
                selection.push(&self.partial, &mut out);
            }
            self.partial.clear();
        }
        Ok(Some(out))
    }

    /// The file after this one; `None` while this one is being written.
    fn newer_file(&self) -> io::Result<Option<File>> {
        for age in 0..=ROTATED_MAX {
            let Some(file) = open_if_there(&rotated(&self.newest, age))? else { continue };
            if file.metadata()?.ino() == self.inode {
                let newer = age.checked_sub(1).map(|age| rotated(&self.newest, age));
                return newer.map_or(Ok(None), |path| open_if_there(&path));
            }
        }
        // So many rotations went by that ours is deleted: the oldest that is left comes next.
        open_oldest(&self.newest).map(Some).or_else(none_if_absent)
    }
}

/// Lines of the program from `not_before` on, up to `end`.
fn count_lines(newest: &Path, not_before: Option<SystemTime>, end: Option<End>) -> u64 {
    let mut seen = Vec::new();
    let (mut lines, mut lines_after_end) = (0, 0);
    for age in 0..=ROTATED_MAX {
        let Ok(Some(file)) = open_if_there(&rotated(newest, age)) else { continue };
        let Ok(inode) = file.metadata().map(|metadata| metadata.ino()) else { continue };
        // A rotation during this loop shows one file twice.
        if !seen.contains(&inode) {
            seen.push(inode);
            let end = end.filter(|end| end.inode == inode);
            if end.is_some() {
                // From the newest to the oldest: what was counted so far is newer than the end.
                lines_after_end = lines;
            }
            lines += count_lines_in(file, not_before, end.map_or(u64::MAX, |end| end.bytes));
        }
    }
    lines - lines_after_end
}

fn count_lines_in(mut file: File, not_before: Option<SystemTime>, bytes: u64) -> u64 {
    use std::io::BufRead as _;
    if file.seek(SeekFrom::Start(0)).is_err() {
        return 0;
    }
    let mut reader = io::BufReader::with_capacity(CHUNK_BYTES, file.take(bytes));
    let (mut line, mut lines) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = reader.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line);
        if !read.is_ok_and(|read| read > 0) {
            return lines;
        }
        let record = line.strip_suffix(b"\n").and_then(record::parse);
        lines += u64::from(record.is_some_and(|record| record.ends_line && !is_before(&record, not_before)));
    }
}

fn open_oldest(newest: &Path) -> io::Result<File> {
    for age in (0..=ROTATED_MAX).rev() {
        if let Some(file) = open_if_there(&rotated(newest, age))? {
            return Ok(file);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    File::open(path).map(Some).or_else(none_if_absent)
}

fn none_if_absent<T>(error: io::Error) -> io::Result<Option<T>> {
    if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    fn write(path: &Path, lines: &[&str]) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        for line in lines {
            writeln!(file, "2026-01-01T00:00:00.000000000Z stdout F {line}").unwrap();
        }
    }

    fn read_near_end(newest: &Path, bytes: u64) -> String {
        let mut cursor = Cursor::open_near_end(newest, bytes).unwrap();
        let options = LogOptions::default();
        cursor.selection = Some(Selection::new(&options, SystemTime::now(), |_| 0));
        let mut read = Vec::new();
        while let Some(chunk) = cursor.next_chunk().unwrap() {
            read.extend(chunk);
        }
        String::from_utf8(read).unwrap()
    }

    #[test]
    fn the_end_of_a_log_is_found_without_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let newest = directory.path().join("0.log");
        write(&rotated(&newest, 1), &["one", "two"]);
        write(&newest, &["three", "four"]);
        let len = |age| fs::metadata(rotated(&newest, age)).unwrap().len();
        // A line is whole only where the byte before it is read as well.
        assert_eq!(read_near_end(&newest, len(0) - 1), "four\n");
        assert_eq!(read_near_end(&newest, len(0)), "three\nfour\n");
        assert_eq!(read_near_end(&newest, len(0) + 10), "three\nfour\n");
        assert_eq!(read_near_end(&newest, len(0) + len(1) - 1), "two\nthree\nfour\n");
        assert_eq!(read_near_end(&newest, u64::MAX), "one\ntwo\nthree\nfour\n");
        // Of what is in front, not even that it is no text is noticed.
        fs::remove_file(rotated(&newest, 1)).unwrap();
        fs::create_dir(rotated(&newest, 1)).unwrap();
        assert_eq!(read_near_end(&newest, len(0)), "three\nfour\n");
    }

    #[test]
    fn what_is_written_after_the_question_is_neither_counted_nor_read() {
        let directory = tempfile::tempdir().unwrap();
        let newest = directory.path().join("0.log");
        write(&newest, &["one", "two", "three"]);
        let end = End::of(&newest).unwrap();
        write(&newest, &["four"]);
        fs::rename(&newest, rotated(&newest, 1)).unwrap();
        write(&newest, &["five"]);

        let options = LogOptions { tail_lines: Some(2), ..LogOptions::default() };
        let selection = Selection::new(&options, SystemTime::now(), |limit| count_lines(&newest, limit, end));
        let mut cursor = Cursor::open(&newest).unwrap();
        (cursor.end, cursor.selection) = (end, Some(selection));
        let mut read = Vec::new();
        while let Some(chunk) = cursor.next_chunk().unwrap() {
            read.extend(chunk);
        }
        assert_eq!(String::from_utf8(read).unwrap(), "two\nthree\n");
    }
}
