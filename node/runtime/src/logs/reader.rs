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
    let mut cursor = Cursor::open(&newest)?;
    let (sender, stream) = LogStream::channel(4);
    tokio::spawn(async move {
        let follow = options.follow;
        let counted = tokio::task::spawn_blocking(move || {
            let selection = Selection::new(&options, SystemTime::now(), |limit| count_lines(&newest, limit));
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

/// A place in a set of files that are renamed under its feet.
struct Cursor {
    newest: PathBuf,
    file: File,
    inode: u64,
    /// Bytes of a line whose end is not written yet.
    partial: Vec<u8>,
    selection: Option<Selection>,
}

impl Cursor {
    /// Stands at the beginning of the oldest file.
    fn open(newest: &Path) -> io::Result<Self> {
        let file = open_oldest(newest)?;
        let inode = file.metadata()?.ino();
        Ok(Self { newest: newest.to_owned(), file, inode, partial: Vec::new(), selection: None })
    }

    fn is_done(&self) -> bool {
        self.selection.as_ref().is_some_and(Selection::is_done)
    }

    /// Reads on. `None` at the end of what is written so far; an empty chunk where nothing was wanted.
    fn next_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut read = self.file.read(&mut buffer)?;
        if read == 0 {
            let Some(next) = self.newer_file()? else { return Ok(None) };
            // The writer may have added to this file between our read and its rename.
            read = self.file.read(&mut buffer)?;
            if read == 0 {
                self.inode = next.metadata()?.ino();
                self.file = next;
                return Ok(Some(Vec::new()));
            }
        }
        let mut out = Vec::new();
        for byte_line in buffer[..read].split_inclusive(|byte| *byte == b'\n') {
            let Some(line) = byte_line.strip_suffix(b"\n") else {
                if self.partial.len() + byte_line.len() <= LINE_BYTES_MAX {
                    self.partial.extend_from_slice(byte_line);
                }
                continue;
            };
            self.partial.extend_from_slice(line);
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

/// Lines of the program from `not_before` on.
fn count_lines(newest: &Path, not_before: Option<SystemTime>) -> u64 {
    let mut seen = Vec::new();
    let mut lines = 0;
    for age in 0..=ROTATED_MAX {
        let Ok(Some(file)) = open_if_there(&rotated(newest, age)) else { continue };
        let Ok(inode) = file.metadata().map(|metadata| metadata.ino()) else { continue };
        // A rotation during this loop shows one file twice.
        if !seen.contains(&inode) {
            seen.push(inode);
            lines += count_lines_in(file, not_before);
        }
    }
    lines
}

fn count_lines_in(mut file: File, not_before: Option<SystemTime>) -> u64 {
    use std::io::BufRead as _;
    if file.seek(SeekFrom::Start(0)).is_err() {
        return 0;
    }
    let mut reader = io::BufReader::with_capacity(CHUNK_BYTES, file);
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
