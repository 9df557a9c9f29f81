//! Room on the disk that images must leave to others: the node's own log, the pods' files.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statvfs::statvfs;

/// How much is written between two looks at the disk.
const STEP_BYTES: u64 = 16 << 20;

/// See the module.
pub(super) struct Room {
    dir: PathBuf,
    free_bytes_min: u64,
    /// What may be written before the next look.
    granted: AtomicU64,
}

impl Room {
    pub(super) fn new(dir: &Path, free_bytes_min: u64) -> Room {
        Room { dir: dir.to_owned(), free_bytes_min, granted: AtomicU64::new(0) }
    }

    /// A writer that fails before the disk is fuller than it may be.
    pub(super) fn guard<W: Write>(&self, to: W) -> Guarded<'_, W> {
        Guarded { room: self, to }
    }

    /// Fails if `bytes` more would be too many.
    pub(super) fn take(&self, bytes: u64) -> io::Result<()> {
        let take = |granted: u64| granted.checked_sub(bytes);
        if self.granted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return Ok(());
        }
        let disk = statvfs(&self.dir)?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        if free < self.free_bytes_min.saturating_add(bytes) {
            let (dir, least) = (self.dir.display(), self.free_bytes_min >> 20);
            let text = format!("the disk of {dir} would have less than {least} MiB free; make room there");
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        self.granted.store(STEP_BYTES.min(free - self.free_bytes_min - bytes), Ordering::Relaxed);
        Ok(())
    }
}

/// See [`Room::guard`].
pub(super) struct Guarded<'a, W> {
    room: &'a Room,
    to: W,
}

impl<W: Write> Write for Guarded<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.room.take(bytes.len() as u64)?;
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
