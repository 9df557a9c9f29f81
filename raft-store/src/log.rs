//! The durable half of Raft: entries, vote, purge point and commit point, in one stream of records.
//!
//! What must be durable before what needs no rule here: the stream has one order, that of the calls,
//! and a sync covers everything before it. Only three things wait for one: the callback of
//! [`append`](RaftLogStorage::append), [`save_vote`](RaftLogStorage::save_vote), and the removal of a
//! segment. In particular purging does not wait: it would stop the Raft core for as long as the disk.

mod index;
mod record;
mod recovery;
mod segment;
mod stored;
mod stream;
mod writer;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::stream::{StreamExt, TryStreamExt};
use openraft::async_runtime::{Oneshot, OneshotSender};
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{AsyncRuntime, LogState, OptionalSend};

pub use self::recovery::{OpenError, What};
use self::stream::{Piece, Stream};
use crate::VoterId;
use crate::files::Files;
use crate::type_config::{Entry, LogId, TypeConfig, Vote};

/// Sizes of the log. All have working defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A segment that has this many bytes is followed by a new one. Purged entries free space
    /// segment by segment, and a start reads a segment at once.
    pub segment_bytes: u64,
    /// At most about this much is written by one write and one sync.
    pub batch_bytes: usize,
    /// Entries kept in memory for followers and for applying. Those not yet written are kept anyway.
    pub cache_bytes: usize,
    /// Appending waits while this much is still to be written. As large as ten seconds of a stalled
    /// disk under full load, because a leader that waits here stops leading.
    pub queue_bytes_max: usize,
    /// Answers to one request for entries are cut here.
    pub read_bytes_max: usize,
    /// Space held for the day the disk is full, so that the log can still be purged then.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            segment_bytes: 16 << 20,
            batch_bytes: 4 << 20,
            cache_bytes: 4 << 20,
            queue_bytes_max: 128 << 20,
            read_bytes_max: 1 << 20,
            reserve_bytes: 16 << 20,
        }
    }
}

/// Whether the disk under the log does its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Good,
    /// It is full. The log lives from its reserve; new commands of users should be refused.
    Full,
    /// It failed, and every call fails until a new process: the text says how.
    Failed(Arc<str>),
}

/// How much the log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Entries that are not purged.
    pub entries: u64,
    /// Bytes of its segments.
    pub bytes: u64,
}

/// The log of one voter. Clones are the same log; [`close`](Self::close) ends it for all of them.
pub struct Log<Rt: AsyncRuntime, F: Files> {
    shared: Arc<Shared<Rt, F>>,
}

struct Shared<Rt: AsyncRuntime, F: Files> {
    limits: Limits,
    state: Mutex<State<Rt>>,
    /// For reading old entries; gone once the log is closed.
    files: Mutex<Option<F>>,
    writer: Mutex<Option<Rt::JoinHandle<()>>>,
}

struct State<Rt: AsyncRuntime> {
    stream: Stream<Waiter<Rt>>,
    /// Wakes the writer where it sleeps.
    sleeper: Option<SignalOf<Rt, ()>>,
    /// Appends that wait for the queue to get shorter.
    crowd: Vec<SignalOf<Rt, ()>>,
}

type SignalOf<Rt, T> = <<Rt as AsyncRuntime>::Oneshot as Oneshot>::Sender<T>;

/// Who waits for a sync.
enum Waiter<Rt: AsyncRuntime> {
    Append(IOFlushed<TypeConfig<Rt>>),
    Vote(SignalOf<Rt, io::Result<()>>),
}

impl<Rt: AsyncRuntime> Waiter<Rt> {
    fn tell(self, result: io::Result<()>) {
        match self {
            Waiter::Append(flushed) => flushed.io_completed(result),
            // Whoever asked may be gone by now.
            Waiter::Vote(signal) => drop(signal.send(result)),
        }
    }
}

impl<Rt: AsyncRuntime, F: Files> Log<Rt, F> {
    /// Opens the log of `voter`, empty where there is none, and starts its writer.
    ///
    /// `files` must be used for nothing else, because the log [closes](Files::close) it.
    pub async fn open(files: F, voter: VoterId, limits: Limits) -> Result<Self, OpenError> {
        let limits = limits.sane();
        let replay = recovery::recover(&files, voter).await?;
        let stream = Stream::new(voter, limits, replay);
        let shared = Arc::new(Shared {
            limits,
            state: Mutex::new(State { stream, sleeper: None, crowd: Vec::new() }),
            files: Mutex::new(Some(files.beside())),
            writer: Mutex::new(None),
        });
        let writer = Rt::spawn(writer::run(shared.clone(), files));
        *lock(&shared.writer) = Some(writer);
        Ok(Log { shared })
    }

    /// Writes and syncs what is still to be written, and ends the log and its threads. Afterwards the
    /// directory may be opened anew. Later calls fail.
    pub async fn close(&self) {
        {
            let mut state = self.shared.state();
            state.stream.closing = true;
            state.wake();
        }
        let writer = lock(&self.shared.writer).take();
        if let Some(writer) = writer {
            // A panic of the writer has been reported where it happened.
            let _ = writer.await;
        }
        let files = lock(&self.shared.files).take();
        if let Some(files) = files {
            // Closing only ever waits.
            let _ = files.close().await;
        }
    }

    /// Whether the disk does its work.
    pub fn health(&self) -> Health {
        self.shared.state().stream.health.clone()
    }

    /// How much the log holds, for deciding when to purge it.
    pub fn size(&self) -> Size {
        let stream = &self.shared.state().stream;
        Size { entries: stream.index.next() - stream.index.first(), bytes: stream.bytes() }
    }

    /// The entries of `range` that are here, cut at about `bytes_max` bytes but not before the first.
    async fn entries(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        loop {
            let (first, pieces) = {
                let stream = &self.shared.state().stream;
                stream.check()?;
                (stream.index.first(), stream.find(range.clone(), bytes_max))
            };
            match self.collect(pieces).await {
                // What was purged in the meantime was not there to be read; ask again.
                Err(_) if self.shared.state().stream.index.first() > first => {}
                result => return result,
            }
        }
    }

    async fn collect(&self, pieces: Vec<Piece>) -> io::Result<Vec<Entry>> {
        let mut collected = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match piece {
                Piece::Cached(entry) => collected.push((*entry).clone()),
                Piece::Filed { sequence, salt, offset, length, entries } => {
                    let files = lock(&self.shared.files).clone().ok_or_else(closed)?;
                    let name = segment::file_name(sequence);
                    let bytes = files.read(&name, u64::from(offset), length).await?;
                    for (index, slot) in entries {
                        let from = (slot.offset - offset) as usize;
                        let record = bytes.get(from..from + slot.length as usize).unwrap_or_default();
                        let entry = read_entry(record, salt, slot.offset, index).ok_or_else(|| {
                            let (path, at) = (files.describe(&name), slot.offset);
                            let text = format!(
                                "entry {index} of the raft log cannot be read from {path} at offset {at}; \
                                 check the disk, and if it is bad join this node anew with an empty data directory"
                            );
                            io::Error::new(io::ErrorKind::InvalidData, text)
                        })?;
                        collected.push(entry);
                    }
                }
            }
        }
        Ok(collected)
    }

    /// Changes the stream and wakes the writer.
    fn change<T>(&self, change: impl FnOnce(&mut Stream<Waiter<Rt>>) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.shared.state();
        let result = change(&mut state.stream);
        state.wake();
        result
    }

    /// Waits while too much is still to be written.
    async fn wait_for_room(&self) -> io::Result<()> {
        loop {
            let room = {
                let mut state = self.shared.state();
                state.stream.check()?;
                if state.stream.queued_bytes() < self.shared.limits.queue_bytes_max {
                    return Ok(());
                }
                let (signal, room) = Rt::Oneshot::channel();
                state.crowd.push(signal);
                room
            };
            // A dropped signal is as good as a sent one: look again.
            let _ = room.await;
        }
    }
}

impl<Rt: AsyncRuntime, F: Files> RaftLogStorage<TypeConfig<Rt>> for Log<Rt, F> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig<Rt>>> {
        let stream = &self.shared.state().stream;
        stream.check()?;
        Ok(LogState { last_purged_log_id: stream.purged, last_log_id: stream.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (signal, saved) = Rt::Oneshot::channel();
        self.change(|stream| {
            stream.save_vote(*vote)?;
            stream.wait(Waiter::Vote(signal));
            Ok(())
        })?;
        if crate::broken!(VoteBeforeSync) {
            return Ok(());
        }
        saved.await.map_err(|_| closed())?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.change(|stream| stream.save_committed(committed))
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let stream = &self.shared.state().stream;
        stream.check()?;
        Ok(stream.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig<Rt>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.wait_for_room().await?;
        self.change(|stream| {
            stream.append(entries)?;
            stream.wait(Waiter::Append(callback));
            Ok(())
        })
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.change(|stream| stream.truncate_after(last_log_id))
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.change(|stream| stream.purge(log_id))
    }
}

impl<Rt: AsyncRuntime, F: Files> RaftLogReader<TypeConfig<Rt>> for Log<Rt, F> {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.entries(half_open(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.entries(start..end, self.shared.limits.read_bytes_max).await
    }

    /// Reads piece by piece, so that applying a long log takes no more memory than a short one.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl futures::Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.clone();
        let chunks = futures::stream::try_unfold(half_open(&range), move |mut rest| {
            let log = log.clone();
            async move {
                let entries = log.entries(rest.clone(), log.shared.limits.read_bytes_max).await?;
                let Some(last) = entries.last() else { return Ok::<_, io::Error>(None) };
                rest.start = last.log_id.index + 1;
                Ok(Some((futures::stream::iter(entries.into_iter().map(Ok)), rest)))
            }
        });
        chunks.try_flatten().boxed()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let stream = &self.shared.state().stream;
        stream.check()?;
        Ok(stream.vote)
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        let stream = &self.shared.state().stream;
        stream.check()?;
        Ok(stream.index.last_of_each_term(range.start().index..range.end().index + 1))
    }
}

impl<Rt: AsyncRuntime, F: Files> Clone for Log<Rt, F> {
    fn clone(&self) -> Self {
        Log { shared: self.shared.clone() }
    }
}

impl<Rt: AsyncRuntime, F: Files> Shared<Rt, F> {
    fn state(&self) -> MutexGuard<'_, State<Rt>> {
        lock(&self.state)
    }
}

impl<Rt: AsyncRuntime> State<Rt> {
    fn wake(&mut self) {
        if let Some(sleeper) = self.sleeper.take() {
            // A writer that is gone has failed the stream, which says so to everybody.
            let _ = sleeper.send(());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a panic with this lock held has broken the log, so stop here too")
}

fn read_entry(bytes: &[u8], salt: u32, offset: u32, index: u64) -> Option<Entry> {
    let record = record::read(bytes, salt, u64::from(offset)).ok()?;
    let is_it = record.kind == record::Kind::Entry && record.index == index;
    if is_it { stored::read_entry(index, record.payload).ok() } else { None }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the raft log was closed")
}

#[cfg(test)]
mod suite_tests;
#[cfg(all(test, feature = "sim"))]
mod tests;
