//! [`Files`] on a disk.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use futures::channel::oneshot;

use crate::files::{Files, Listed, Pending, is_full};

/// The lock that keeps a second process out.
const LOCK: &str = "LOCK";
/// Files kept open: the log's last segment, a snapshot under way, a segment or two being read.
const OPEN_MAX: usize = 6;

/// Why a store directory does not open. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The directory or its lock could not be made.
    #[error(
        "could not open the store directory {path}; check that the disk is mounted and that this user may write there"
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error(
        "the store directory {path} is in use by process {holder}; stop that process or choose another data directory"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its process id, as far as it could be read.
        holder: String,
    },
}

/// A store directory on a disk, locked against other processes for as long as any handle lives.
///
/// Each handle from [`open`](Self::open) or [`beside`](Files::beside) has a thread of its own, made
/// when first needed and joined by [`close`](Files::close) or when the last clone goes: no write is
/// still on its way when somebody opens the directory anew.
#[derive(Clone)]
pub struct DiskFiles {
    directory: Arc<Directory>,
    lane: Arc<Lane>,
}

impl DiskFiles {
    /// Opens `root`, making it (for this user only) when missing, and takes its lock. Blocks.
    pub fn open(root: &Path) -> Result<Self, DirectoryError> {
        let failed = |source| DirectoryError::Open { path: root.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
        let mut lock = private_file().open(root.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let read = lock.take(20).read_to_string(&mut holder);
                let holder = match read {
                    Ok(bytes) if bytes > 0 => holder.trim().to_owned(),
                    _ => String::from("unknown"),
                };
                return Err(DirectoryError::InUse { path: root.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // For the message above only, so a full disk is no reason to stop.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        let directory =
            Directory { root: root.to_owned(), open: Mutex::default(), failed: OnceLock::new(), lock };
        Ok(DiskFiles { directory: Arc::new(directory), lane: Arc::default() })
    }

    fn perform<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> io::Result<T> + Send + 'static,
    ) -> Pending<T> {
        let directory = self.directory.clone();
        let (done, result) = oneshot::channel();
        let sent = self.lane.send(Box::new(move || {
            let _ = done.send(work(&directory));
        }));
        Box::pin(async move {
            sent?;
            result.await.map_err(|_| closed())?
        })
    }
}

impl Files for DiskFiles {
    fn beside(&self) -> Self {
        DiskFiles { directory: self.directory.clone(), lane: Arc::default() }
    }

    fn describe(&self, file: &str) -> String {
        self.directory.root.join(file).display().to_string()
    }

    fn make_directory(&self, directory: &str) -> Pending<()> {
        let name = directory.to_owned();
        self.perform(move |directory| {
            DirBuilder::new().recursive(true).mode(0o700).create(directory.root.join(name))
        })
    }

    fn list(&self, directory: &str) -> Pending<Vec<Listed>> {
        let name = directory.to_owned();
        self.perform(move |directory| directory.list(&name))
    }

    fn read(&self, file: &str, at: u64, length: usize) -> Pending<Bytes> {
        let file = file.to_owned();
        self.perform(move |directory| directory.read(&file, at, length))
    }

    fn append(&self, file: &str, at: u64, bytes: Bytes, sync: bool) -> Pending<()> {
        let file = file.to_owned();
        self.perform(move |directory| directory.append(&file, at, &bytes, sync))
    }

    fn sync(&self, file: &str) -> Pending<()> {
        let file = file.to_owned();
        self.perform(move |directory| directory.sync(&file))
    }

    fn cut(&self, file: &str, length: u64) -> Pending<()> {
        let file = file.to_owned();
        self.perform(move |directory| directory.file(&file, false)?.set_len(length))
    }

    fn reserve(&self, file: &str, bytes: u64) -> Pending<()> {
        let file = file.to_owned();
        self.perform(move |directory| directory.reserve(&file, bytes))
    }

    fn rename(&self, from: &str, to: &str) -> Pending<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.perform(move |directory| {
            directory.forget(&[&from, &to]);
            fs::rename(directory.root.join(from), directory.root.join(to))
        })
    }

    fn remove(&self, file: &str) -> Pending<()> {
        let file = file.to_owned();
        self.perform(move |directory| directory.remove(&file))
    }

    fn sync_directory(&self, directory: &str) -> Pending<()> {
        let name = directory.to_owned();
        self.perform(move |directory| {
            directory.check()?;
            let opened = File::open(directory.root.join(name))?;
            opened.sync_all().map_err(|error| directory.fail(error))
        })
    }

    fn close(&self) -> Pending<()> {
        let ended = self.perform(|_| Ok(()));
        let lane = self.lane.clone();
        Box::pin(async move {
            // The thread has nothing left to do after this, so joining it does not block for long.
            let _ = ended.await;
            lane.end();
            Ok(())
        })
    }
}

/// What all handles on a directory share.
struct Directory {
    root: PathBuf,
    open: Mutex<BTreeMap<String, Arc<File>>>,
    /// The first write or sync that failed for good.
    failed: OnceLock<(io::ErrorKind, String)>,
    lock: File,
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Closing alone would leave the lock with a child that is between its fork and its exec.
        let _ = self.lock.unlock();
    }
}

impl Directory {
    fn list(&self, name: &str) -> io::Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for entry in fs::read_dir(self.root.join(name))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                listed.push(Listed { name, bytes: metadata.len() });
            }
        }
        listed.sort();
        Ok(listed)
    }

    fn read(&self, name: &str, at: u64, length: usize) -> io::Result<Bytes> {
        let file = self.file(name, false)?;
        // The length asked for is not allocated before the file is seen to have it.
        let there = file.metadata()?.len().saturating_sub(at);
        let mut bytes = vec![0; length.min(usize::try_from(there).unwrap_or(usize::MAX))];
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], at + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(read);
        Ok(bytes.into())
    }

    fn append(&self, name: &str, at: u64, bytes: &[u8], sync: bool) -> io::Result<()> {
        self.check()?;
        let file = self.file(name, true)?;
        file.write_all_at(bytes, at).map_err(|error| match is_full(&error) {
            true => error,
            false => self.fail(error),
        })?;
        if sync { file.sync_data().map_err(|error| self.fail(error)) } else { Ok(()) }
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.check()?;
        self.file(name, false)?.sync_data().map_err(|error| self.fail(error))
    }

    fn reserve(&self, name: &str, bytes: u64) -> io::Result<()> {
        let file = self.file(name, true)?;
        let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
        match nix::fcntl::fallocate(&*file, nix::fcntl::FallocateFlags::empty(), 0, length) {
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => Ok(()),
            result => result.map_err(io::Error::from),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.forget(&[name]);
        match fs::remove_file(self.root.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn file(&self, name: &str, create: bool) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().expect("nothing panics while it holds this lock");
        if let Some(file) = open.get(name) {
            return Ok(file.clone());
        }
        let file = Arc::new(private_file().create(create).open(self.root.join(name))?);
        while open.len() >= OPEN_MAX {
            open.pop_first();
        }
        open.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    /// Drops the open files of these names, which will mean something else from now on.
    fn forget(&self, names: &[&str]) {
        let mut open = self.open.lock().expect("nothing panics while it holds this lock");
        names.iter().for_each(|&name| drop(open.remove(name)));
    }

    fn check(&self) -> io::Result<()> {
        self.failed.get().map_or(Ok(()), |failed| Err(again(failed)))
    }

    /// Remembers `error` for good. Its kind never reads as "full", because repeating cannot help.
    fn fail(&self, error: io::Error) -> io::Error {
        let kind = if is_full(&error) { io::ErrorKind::Other } else { error.kind() };
        again(self.failed.get_or_init(|| (kind, error.to_string())))
    }
}

fn again((kind, text): &(io::ErrorKind, String)) -> io::Error {
    io::Error::new(*kind, format!("the disk failed ({text}); look at it, then start this node again"))
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the store directory was closed")
}

/// A thread that works off what it is sent, in order.
#[derive(Default)]
struct Lane(Mutex<Worker>);

#[derive(Default)]
enum Worker {
    #[default]
    NotYet,
    Running {
        jobs: mpsc::Sender<Job>,
        thread: JoinHandle<()>,
    },
    Ended,
}

type Job = Box<dyn FnOnce() + Send>;

impl Lane {
    fn send(&self, job: Job) -> io::Result<()> {
        let mut worker = self.0.lock().expect("nothing panics while it holds this lock");
        if let Worker::NotYet = *worker {
            let (jobs, queue) = mpsc::channel::<Job>();
            let thread = thread::Builder::new()
                .name(String::from("store-files"))
                .spawn(move || queue.into_iter().for_each(|job| job()))?;
            *worker = Worker::Running { jobs, thread };
        }
        match &*worker {
            Worker::Running { jobs, .. } => jobs.send(job).map_err(|_| closed()),
            Worker::NotYet | Worker::Ended => Err(closed()),
        }
    }

    fn end(&self) {
        let ended = std::mem::replace(
            &mut *self.0.lock().expect("nothing panics while it holds this lock"),
            Worker::Ended,
        );
        if let Worker::Running { jobs, thread } = ended {
            drop(jobs);
            // A panic of the thread is already reported by the operation that met it.
            let _ = thread.join();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    #[test]
    fn what_was_written_is_read_listed_renamed_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let files = DiskFiles::open(root.path()).unwrap();
        block_on(async {
            files.make_directory("d").await.unwrap();
            files.append("d/a", 0, Bytes::from_static(b"hello"), true).await.unwrap();
            files.append("d/a", 5, Bytes::from_static(b" you"), false).await.unwrap();
            files.sync("d/a").await.unwrap();
            assert_eq!(files.beside().read("d/a", 1, 100).await.unwrap(), "ello you");
            files.cut("d/a", 2).await.unwrap();
            files.rename("d/a", "d/b").await.unwrap();
            files.sync_directory("d").await.unwrap();
            assert_eq!(
                files.list("d").await.unwrap(),
                [Listed { name: "b".into(), bytes: 2 }],
                "a cut and renamed file"
            );
            files.remove("d/b").await.unwrap();
            files.remove("d/b").await.unwrap();
            assert_eq!(files.read("d/b", 0, 1).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn a_second_opener_is_told_who_holds_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let first = DiskFiles::open(root.path()).unwrap();
        let refused = DiskFiles::open(root.path()).err().expect("the lock is held").to_string();
        assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
        drop(first);
        DiskFiles::open(root.path()).unwrap();
    }

    #[test]
    fn the_lock_lives_as_long_as_any_handle() {
        let root = tempfile::tempdir().unwrap();
        let first = DiskFiles::open(root.path()).unwrap();
        let beside = first.beside();
        drop(first);
        assert!(matches!(DiskFiles::open(root.path()), Err(DirectoryError::InUse { .. })));
        drop(beside);
        DiskFiles::open(root.path()).unwrap();
    }

    #[test]
    fn a_closed_handle_does_no_more() {
        let root = tempfile::tempdir().unwrap();
        let files = DiskFiles::open(root.path()).unwrap();
        block_on(files.append("a", 0, Bytes::from_static(b"x"), true)).unwrap();
        block_on(files.close()).unwrap();
        assert!(block_on(files.append("a", 1, Bytes::from_static(b"y"), true)).is_err());
        assert_eq!(block_on(files.beside().read("a", 0, 9)).unwrap(), "x");
    }

    #[test]
    fn a_failed_sync_is_final() {
        let root = tempfile::tempdir().unwrap();
        let files = DiskFiles::open(root.path()).unwrap();
        files.directory.fail(io::Error::from_raw_os_error(libc::ENOSPC));
        let error = block_on(files.append("a", 0, Bytes::from_static(b"x"), true)).unwrap_err();
        assert!(!is_full(&error), "{error}");
        assert!(block_on(files.beside().sync("a")).is_err());
    }
}
