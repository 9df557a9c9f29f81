//! The files of one store directory, as few verbs as a log and a snapshot need.
//!
//! In a node they lie on a disk ([`DiskFiles`](crate::DiskFiles)); in the simulator in memory, with
//! a disk's bad habits. Names are relative to the store directory, `/` between directory and file.
//!
//! What is *not* promised: that anything survives a power cut before [`sync`](Files::sync) of the
//! file, or, for a name that was made, changed or removed, before
//! [`sync_directory`](Files::sync_directory) of its directory.

use std::io;

use bytes::Bytes;
use futures::future::BoxFuture;

/// One operation under way. It runs to its end even when dropped.
pub type Pending<T> = BoxFuture<'static, io::Result<T>>;

/// A store directory that nobody else has open.
///
/// The operations of one handle and its clones happen one after the other, in the order of the
/// calls. After the first failed sync every further append and sync of the directory fails: the
/// kernel forgets the pages it could not write, so a later success would be a lie.
pub trait Files: Clone + Send + Sync + 'static {
    /// A handle on the same directory whose operations do not wait behind those of this one.
    fn beside(&self) -> Self;

    /// The name by which an operator finds `file`.
    fn describe(&self, file: &str) -> String;

    /// Makes a directory and leaves one alone that is there.
    fn make_directory(&self, directory: &str) -> Pending<()>;

    /// The files of `directory`, sorted by name.
    fn list(&self, directory: &str) -> Pending<Vec<Listed>>;

    /// Up to `length` bytes from offset `at`; fewer only where the file ends.
    fn read(&self, file: &str, at: u64, length: usize) -> Pending<Bytes>;

    /// Writes `bytes` at offset `at`, at most the file's length, making the file when there is none;
    /// with `sync` they are durable afterwards, and all before them in this file.
    ///
    /// An error of which [`is_full`] is true is not final: the same call may be repeated.
    fn append(&self, file: &str, at: u64, bytes: Bytes, sync: bool) -> Pending<()>;

    /// Makes all bytes and the length of `file` durable.
    fn sync(&self, file: &str) -> Pending<()>;

    /// Cuts `file` to `length` bytes.
    fn cut(&self, file: &str, length: u64) -> Pending<()>;

    /// Takes up `bytes` of space for a new `file`, for worse times. Does nothing where the file
    /// system cannot.
    fn reserve(&self, file: &str, bytes: u64) -> Pending<()>;

    /// Renames, replacing what was there.
    fn rename(&self, from: &str, to: &str) -> Pending<()>;

    /// Removes `file`; fine if there is none.
    fn remove(&self, file: &str) -> Pending<()>;

    /// Makes the names of `directory` durable.
    fn sync_directory(&self, directory: &str) -> Pending<()>;

    /// Ends what is under way through this handle and its clones; later operations fail.
    fn close(&self) -> Pending<()>;
}

/// One file of [`Files::list`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Name within its directory.
    pub name: String,
    /// Length.
    pub bytes: u64,
}

/// Whether `error` says that the disk is full, which passes, rather than broken, which does not.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
