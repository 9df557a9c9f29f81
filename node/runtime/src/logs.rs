//! What containers wrote: files in the format that Kubernetes log collectors read.
//!
//! ```text
//! <logs>/<namespace>_<pod>_<uid>/<container>/<attempt>.log      newest
//! <logs>/<namespace>_<pod>_<uid>/<container>/<attempt>.log.1    the one before, up to .4
//! ```
//!
//! The shim writes ([`writer`]), the daemon reads ([`reader`]); they share nothing but the files, so a
//! log can be followed across a restart of the daemon and after the container has ended.

pub(crate) mod reader;
pub(crate) mod record;
mod select;
pub(crate) mod writer;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::mpsc;

pub(crate) use select::{Selection, is_before};

/// Which part of a log, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container has ended.
    pub follow: bool,
    /// The attempt before the newest one.
    pub previous: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only whole lines of the last bytes as they lie on disk, time and stream included; the rest is not read.
    pub tail_bytes: Option<u64>,
    /// Only what is not older than this.
    pub since: Option<Duration>,
    /// Only what was written from this moment on.
    pub since_time: Option<SystemTime>,
    /// End after this many bytes, if need be within a line.
    pub limit_bytes: Option<u64>,
    /// Put the time in front of each line.
    pub timestamps: bool,
}

/// A log, in chunks. Ends with `None`; dropping it ends the reading.
#[derive(Debug)]
pub struct LogStream(mpsc::Receiver<std::io::Result<Bytes>>);

impl LogStream {
    /// A stream and its sending end.
    pub(crate) fn channel(capacity: usize) -> (mpsc::Sender<std::io::Result<Bytes>>, Self) {
        let (sender, receiver) = mpsc::channel(capacity);
        (sender, Self(receiver))
    }

    /// The next chunk; `None` at the end of the log. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        self.0.recv().await
    }
}

/// How many older files are kept beside the newest one.
pub(crate) const ROTATED_MAX: u32 = 4;

/// The file `age` rotations old; 0 is the one being written.
pub(crate) fn rotated(newest: &Path, age: u32) -> PathBuf {
    if age == 0 {
        return newest.to_owned();
    }
    let mut name = newest.as_os_str().to_owned();
    name.push(format!(".{age}"));
    PathBuf::from(name)
}
