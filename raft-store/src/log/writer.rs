//! The one task that writes: batch after batch, each one write and one sync.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use openraft::async_runtime::{Instant, Oneshot};

use super::segment::{DIRECTORY, file_name};
use super::stream::Batch;
use super::{Health, Shared, Waiter};
use crate::files::{Files, is_full};

/// Space that is given up when the disk is full.
const RESERVE: &str = "reserve";
/// How often a full disk is asked again: users may write 5 s after there is space.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Writes what the stream has until the log is closed or the disk fails.
pub(super) async fn run<Rt: AsyncRuntime, F: Files>(shared: Arc<Shared<Rt, F>>, files: F) {
    let mut writer = Writer { shared, files, unsynced: None, full_until: Rt::Instant::now() };
    if let Err(error) = writer.write_all().await {
        tracing::error!(%error, "the raft log stops");
        let (failure, waiting, crowd) = {
            let mut state = writer.shared.state();
            let (failure, waiting) = state.stream.fail(&error);
            (failure, waiting, std::mem::take(&mut state.crowd))
        };
        waiting.into_iter().for_each(|waiter| waiter.tell(Err(failure.to_error())));
        drop(crowd);
    }
    // Closing only ever waits.
    let _ = writer.files.close().await;
}

struct Writer<Rt: AsyncRuntime, F: Files> {
    shared: Arc<Shared<Rt, F>>,
    files: F,
    /// A segment with bytes that no sync has covered.
    unsynced: Option<u32>,
    /// A full disk is not asked again before.
    full_until: Rt::Instant,
}

impl<Rt: AsyncRuntime, F: Files> Writer<Rt, F> {
    async fn write_all(&mut self) -> io::Result<()> {
        self.take_reserve().await?;
        while let Some(mut batch) = self.next().await {
            let result = self.write(&mut batch).await;
            let told = result.as_ref().err().map(|error| (error.kind(), error.to_string()));
            for waiter in std::mem::take(&mut batch.waiting) {
                waiter.tell(match &told {
                    None => Ok(()),
                    Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
                });
            }
            result?;
            self.written(batch).await?;
        }
        // Closed on purpose: the next start should find the commit point too.
        self.sync().await
    }

    /// The next batch; none when the log is closed and all is written.
    async fn next(&mut self) -> Option<Batch<Waiter<Rt>>> {
        loop {
            // By the clock, not by silence: a log that is written to all the time recovers too.
            if self.shared.state().stream.health == Health::Full && Rt::Instant::now() >= self.full_until {
                // A failure here shows at the next write.
                let _ = self.take_reserve().await;
            }
            let (wake, full) = {
                let mut state = self.shared.state();
                if let Some(batch) = state.stream.take() {
                    return Some(batch);
                }
                if state.stream.closing {
                    return None;
                }
                let (sleeper, wake) = Rt::Oneshot::channel();
                state.sleeper = Some(sleeper);
                (wake, state.stream.health == Health::Full)
            };
            // A dropped sleeper is as good as a sent one, and the end of the wait too: look again.
            if full {
                let _ = Rt::timeout_at(self.full_until, wake).await;
            } else {
                let _ = wake.await;
            }
        }
    }

    async fn write(&mut self, batch: &mut Batch<Waiter<Rt>>) -> io::Result<()> {
        let parts = batch.parts.len();
        for (number, part) in batch.parts.iter_mut().enumerate() {
            let begins = part.offset == 0;
            if begins {
                // A younger segment must not outlive the end of an older one.
                self.sync().await?;
            }
            let sync = (batch.sync || number + 1 < parts) && !crate::broken!(AcknowledgedBeforeSync);
            let name = file_name(part.sequence);
            let bytes = Bytes::from(std::mem::take(&mut part.bytes));
            self.append(&name, part.offset, bytes, sync).await?;
            self.unsynced = (!sync).then_some(part.sequence);
            if begins && !crate::broken!(NoDirectorySync) {
                self.files.sync_directory(DIRECTORY).await?;
            }
        }
        Ok(())
    }

    /// Appends, waiting for as long as the disk is full.
    async fn append(&mut self, name: &str, offset: u64, bytes: Bytes, sync: bool) -> io::Result<()> {
        loop {
            let error = match self.files.append(name, offset, bytes.clone(), sync).await {
                Err(error) if is_full(&error) => error,
                result => return result,
            };
            let closing = {
                let mut state = self.shared.state();
                if state.stream.health != Health::Full {
                    let path = self.files.describe(name);
                    tracing::error!(%path, %error, "the disk is full; free some space, writes wait until then");
                }
                state.stream.health = Health::Full;
                state.stream.closing
            };
            self.full_until = Rt::Instant::now() + FULL_RETRY;
            if closing {
                return Err(error);
            }
            // The reserve helps once. After that somebody else has to make room.
            if self.reserved().await {
                self.files.remove(RESERVE).await?;
            } else {
                Rt::sleep(FULL_RETRY).await;
            }
        }
    }

    /// Notes that `batch` is in its files, and removes segments that nobody needs any more.
    async fn written(&mut self, batch: Batch<Waiter<Rt>>) -> io::Result<()> {
        let (removable, crowd) = {
            let mut state = self.shared.state();
            state.stream.written(&batch);
            drop(batch);
            (state.stream.removable(), std::mem::take(&mut state.crowd))
        };
        // Each looks for itself whether there is room now.
        drop(crowd);
        if removable.is_empty() {
            return Ok(());
        }
        // What says that they are not needed must be durable before they go.
        self.sync().await?;
        for sequence in removable {
            let name = file_name(sequence);
            if let Err(error) = self.files.remove(&name).await {
                let path = self.files.describe(&name);
                tracing::warn!(%path, %error, "could not remove an old segment of the raft log, will try again");
                break;
            }
            self.shared.state().stream.forget(sequence);
        }
        Ok(())
    }

    async fn sync(&mut self) -> io::Result<()> {
        match self.unsynced.take() {
            Some(_) if crate::broken!(NoSyncBetweenSegments) => Ok(()),
            Some(sequence) => self.files.sync(&file_name(sequence)).await,
            None => Ok(()),
        }
    }

    /// Sets aside the reserve; while there is no room for it the disk counts as full.
    async fn take_reserve(&mut self) -> io::Result<()> {
        let bytes = self.shared.limits.reserve_bytes;
        self.full_until = Rt::Instant::now() + FULL_RETRY;
        if bytes > 0 && !self.reserved().await {
            match self.files.reserve(RESERVE, bytes).await {
                Err(error) if is_full(&error) => {
                    self.files.remove(RESERVE).await?;
                    self.shared.state().stream.health = Health::Full;
                    return Ok(());
                }
                result => result?,
            }
        }
        let was = std::mem::replace(&mut self.shared.state().stream.health, Health::Good);
        if was == Health::Full {
            tracing::info!("the disk has space again, writes go on");
        }
        Ok(())
    }

    async fn reserved(&self) -> bool {
        let listed = self.files.list("").await.unwrap_or_default();
        listed.iter().any(|file| file.name == RESERVE)
    }
}
