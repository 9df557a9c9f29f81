//! The log in memory: what it holds, and the bytes still to be written, in order.
//!
//! This is the log's pure middle. Whatever changes the log becomes a record here, gets its place in
//! its segment at once, and joins the last batch of the queue. The writer takes batch after batch,
//! and says when one is written. So the order of the file is the order of the calls.
//!
//! `D` is what waits for a batch to be durable.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::index::{Index, Slot};
use super::record::{self, Kind};
use super::recovery::{Replay, Segment};
use super::segment::{HEADER, Header};
use super::stored::{self, StoredLogId, StoredState, StoredVote};
use super::{Health, Limits};
use crate::VoterId;
use crate::codec::{self, VALUE_BYTES_MAX};
use crate::type_config::{Entry, LogId, Vote};

pub(super) struct Stream<D> {
    voter: VoterId,
    limits: Limits,
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
    pub(super) index: Index,
    cache: Cache,
    segments: BTreeMap<u32, Segment>,
    /// Where the next record goes.
    tail: Position,
    /// Up to where the files have it.
    written: Position,
    /// Up to where the purge is in the files.
    purged_written: Option<u64>,
    queue: VecDeque<Batch<D>>,
    queued_bytes: usize,
    /// Whether the last batch that was taken ends with a sync.
    taken_is_synced: bool,
    pub(super) health: Health,
    pub(super) closing: bool,
    failure: Option<Failure>,
}

/// A place in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) sequence: u32,
    pub(super) offset: u64,
}

/// What is written, and synced, at once.
pub(super) struct Batch<D> {
    /// One for each segment it touches.
    pub(super) parts: Vec<Part>,
    pub(super) waiting: Vec<D>,
    /// Somebody relies on it; else it may lie in the page cache.
    pub(super) sync: bool,
    bytes: usize,
    end: Position,
    purged: Option<u64>,
    /// The batch before ended with a sync.
    follows_sync: bool,
}

/// Bytes for one place of one segment.
pub(super) struct Part {
    pub(super) sequence: u32,
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// An [`io::Error`] that can be told to many.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    kind: io::ErrorKind,
    text: Arc<str>,
}

/// Where some entries are found.
pub(super) enum Piece {
    Cached(Arc<Entry>),
    /// Entries of one segment, from `offset` on, `length` bytes in all, other records between them.
    Filed {
        sequence: u32,
        salt: u32,
        offset: u32,
        length: usize,
        entries: Vec<(u64, Slot)>,
    },
}

impl<D> Stream<D> {
    pub(super) fn new(voter: VoterId, limits: Limits, replay: Replay) -> Self {
        let sequence = replay.segments.keys().next_back().copied().unwrap_or(0);
        let tail = Position { sequence, offset: replay.end };
        let mut index = replay.index;
        // An entry before the oldest segment is purged, so the next index is all there is to know.
        if let Some(purged) = replay.purged {
            index.purge(purged.index);
        }
        Stream {
            voter,
            limits,
            vote: replay.vote,
            purged: replay.purged,
            committed: replay.committed,
            index,
            cache: Cache::default(),
            segments: replay.segments,
            tail,
            written: tail,
            purged_written: replay.purged.map(|purged| purged.index),
            queue: VecDeque::new(),
            queued_bytes: 0,
            taken_is_synced: true,
            health: Health::Good,
            closing: false,
            failure: None,
        }
    }

    /// Adds entries, each behind the one before. Refuses a hole, a falling term and a giant without a
    /// trace of the refused entry.
    pub(super) fn append(&mut self, entries: impl IntoIterator<Item = Entry>) -> io::Result<()> {
        self.check()?;
        for entry in entries {
            let LogId { leader_id, index } = entry.log_id;
            let falls = self.index.last().is_some_and(|last| last.leader_id > leader_id);
            if falls || !(index == self.index.next() || self.is_fresh()) {
                let last = self.last().map_or(String::from("nothing"), |last| last.to_string());
                return Err(invalid(format!("entry {} cannot follow {last} in the raft log", entry.log_id)));
            }
            let mut payload = Vec::new();
            stored::write_entry(&entry, &mut payload);
            if payload.len() > VALUE_BYTES_MAX {
                let bytes = payload.len();
                return Err(invalid(format!(
                    "entry {index} has {bytes} bytes, at most {VALUE_BYTES_MAX} are allowed"
                )));
            }
            let slot = self.record(Kind::Entry, index, &payload);
            if self.is_fresh() {
                self.index.restart(index);
            }
            let known = self.index.push(leader_id.term, slot);
            debug_assert!(known, "the term was compared above");
            let segment = self.segments.get_mut(&slot.sequence).expect("the record lies in it");
            segment.highest = segment.highest.max(Some(index));
            self.cache.push(Arc::new(entry), slot);
        }
        self.cache.evict(self.limits.cache_bytes, self.written);
        Ok(())
    }

    pub(super) fn save_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.check()?;
        // Recorded first: a segment that begins here must begin with what held before.
        self.record(Kind::Vote, 0, &codec::encode(&StoredVote::from(vote)));
        self.vote = Some(vote);
        Ok(())
    }

    pub(super) fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.check()?;
        if self.committed != committed {
            self.record(Kind::Committed, 0, &codec::encode(&committed.map(StoredLogId::from)));
            self.committed = committed;
        }
        Ok(())
    }

    /// Drops the entries behind `last`, or all that are not purged.
    pub(super) fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.check()?;
        let kept = if crate::broken!(TruncateInclusive) { 0 } else { 1 };
        let from = last.map_or(0, |last| last.index + kept).max(self.index.first());
        if from < self.index.next() {
            crate::seen!("log truncated");
            self.record(Kind::Truncate, from, &[]);
            self.index.truncate(from);
            self.cache.truncate(self.index.next());
        }
        Ok(())
    }

    /// Drops the entries up to `upto`.
    pub(super) fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.check()?;
        if self.purged < Some(upto) {
            self.record(Kind::Purge, 0, &codec::encode(&StoredLogId::from(upto)));
            self.open_batch().purged = Some(upto.index);
            self.index.purge(upto.index);
            self.purged = Some(upto);
            self.cache.purge(self.index.first(), self.index.next());
        }
        Ok(())
    }

    /// Lets `waiter` wait for all that was recorded so far, and for it to be synced.
    pub(super) fn wait(&mut self, waiter: D) {
        let batch = self.open_batch();
        batch.waiting.push(waiter);
        batch.sync = true;
    }

    /// The next batch to write. The one before must be [`written`](Self::written).
    pub(super) fn take(&mut self) -> Option<Batch<D>> {
        let batch = self.queue.pop_front()?;
        self.queued_bytes -= batch.bytes;
        self.taken_is_synced = batch.sync;
        Some(batch)
    }

    /// Notes that `batch` is in its files.
    pub(super) fn written(&mut self, batch: &Batch<D>) {
        self.written = self.written.max(batch.end);
        self.purged_written = self.purged_written.max(batch.purged);
        self.cache.evict(self.limits.cache_bytes, self.written);
    }

    /// The segments, oldest first, of which nothing is needed any more. Once all that is written is
    /// also synced they may be removed and then [`forgotten`](Self::forget).
    pub(super) fn removable(&self) -> Vec<u32> {
        let is_removable = |(sequence, segment): &(&u32, &Segment)| {
            **sequence < self.written.sequence && segment.highest <= self.purged_written
        };
        self.segments.iter().take_while(is_removable).map(|(&sequence, _)| sequence).collect()
    }

    pub(super) fn forget(&mut self, sequence: u32) {
        self.segments.remove(&sequence);
    }

    /// Ends the log: every call fails from now on. Returns who waited in vain.
    pub(super) fn fail(&mut self, error: &io::Error) -> (Failure, Vec<D>) {
        let failure = Failure { kind: error.kind(), text: error.to_string().into() };
        self.health = Health::Failed(failure.text.clone());
        self.failure = Some(failure.clone());
        self.queued_bytes = 0;
        (failure, self.queue.drain(..).flat_map(|batch| batch.waiting).collect())
    }

    /// Where the entries of `range` are, from its first that is here, up to about `bytes_max` bytes
    /// but at least one entry.
    pub(super) fn find(&self, range: Range<u64>, bytes_max: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut bytes = 0;
        for index in range.start.max(self.index.first())..range.end.min(self.index.next()) {
            let slot = self.index.slot(index).expect("the range is clamped to what is here");
            bytes += slot.length as usize;
            if bytes > bytes_max && !pieces.is_empty() {
                break;
            }
            match self.cache.get(index, self.index.next()) {
                Some(entry) => pieces.push(Piece::Cached(entry.clone())),
                None => self.find_filed(index, slot, &mut pieces),
            }
        }
        pieces
    }

    /// Adds a filed entry to the piece before it where that makes one read of moderate size.
    fn find_filed(&self, index: u64, slot: Slot, pieces: &mut Vec<Piece>) {
        if let Some(Piece::Filed { sequence, offset, length, entries, .. }) = pieces.last_mut() {
            let through = slot.offset.checked_sub(*offset).map(|gap| gap as usize + slot.length as usize);
            if let (true, Some(through @ ..=READ_BYTES_MAX)) = (*sequence == slot.sequence, through) {
                *length = through;
                return entries.push((index, slot));
            }
        }
        let Slot { sequence, offset, length } = slot;
        let salt = self.segments.get(&sequence).map_or(0, |segment| segment.salt);
        let entries = vec![(index, slot)];
        pieces.push(Piece::Filed { sequence, salt, offset, length: length as usize, entries });
    }

    /// The last entry, or the purge point where there is none.
    pub(super) fn last(&self) -> Option<LogId> {
        self.index.last().or(self.purged)
    }

    /// Bytes that wait to be written.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Bytes in files and on their way there.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// Whether the next entry may be the first ever, whose index is the caller's choice.
    fn is_fresh(&self) -> bool {
        self.index.is_empty() && self.purged.is_none()
    }

    pub(super) fn check(&self) -> io::Result<()> {
        match &self.failure {
            Some(failure) => Err(failure.to_error()),
            None if self.closing => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the raft log was closed")),
            None => Ok(()),
        }
    }

    fn record(&mut self, kind: Kind, index: u64, payload: &[u8]) -> Slot {
        if self.segments.is_empty() || self.tail.offset >= self.limits.segment_bytes {
            self.begin_segment();
        }
        self.write(kind, index, payload)
    }

    /// Begins a segment with all that older ones say besides entries.
    fn begin_segment(&mut self) {
        let state = StoredState {
            vote: self.vote.map(StoredVote::from),
            purged: self.purged.map(StoredLogId::from),
            committed: self.committed.map(StoredLogId::from),
            last: self.last().map(StoredLogId::from),
        };
        let sequence = self.tail.sequence.checked_add(1).expect("2^32 segments fill no disk");
        let header = Header { sequence, voter: self.voter };
        let bytes = HEADER as u64;
        self.segments.insert(sequence, Segment { salt: header.salt(), highest: None, bytes });
        self.tail = Position { sequence, offset: bytes };
        let batch = self.open_batch();
        batch.sync = true;
        batch.bytes += HEADER;
        batch.parts.push(Part { sequence, offset: 0, bytes: header.to_bytes().to_vec() });
        self.queued_bytes += HEADER;
        self.write(Kind::State, 0, &codec::encode(&state));
    }

    fn write(&mut self, kind: Kind, index: u64, payload: &[u8]) -> Slot {
        let Position { sequence, offset } = self.tail;
        let salt = self.segments[&sequence].salt;
        let batch = self.open_batch();
        let leads = batch.bytes == 0 && batch.follows_sync;
        batch.sync |= matches!(kind, Kind::Entry | Kind::Vote);
        let part = match batch.parts.last_mut() {
            Some(part) if part.sequence == sequence => part,
            _ => batch.parts.push_mut(Part { sequence, offset, bytes: Vec::new() }),
        };
        let length = record::write(&mut part.bytes, (salt, offset), (kind, index, leads), |bytes| {
            bytes.extend_from_slice(payload);
        });
        batch.bytes += length;
        batch.end = Position { sequence, offset: offset + length as u64 };
        self.tail = batch.end;
        self.queued_bytes += length;
        self.segments.get_mut(&sequence).expect("the tail's").bytes = self.tail.offset;
        Slot {
            sequence,
            offset: u32::try_from(offset).expect("a segment is shorter than 4 GiB"),
            length: u32::try_from(length).expect("a value has at most 16 MiB"),
        }
    }

    /// The batch that takes the next record.
    fn open_batch(&mut self) -> &mut Batch<D> {
        let follows_sync = match self.queue.back() {
            Some(last) if last.bytes < self.limits.batch_bytes => None,
            Some(full) => Some(full.sync),
            None => Some(self.taken_is_synced),
        };
        if let Some(follows_sync) = follows_sync {
            let (parts, waiting) = (Vec::new(), Vec::new());
            let end = Position::default();
            let fresh = Batch { parts, waiting, sync: false, bytes: 0, end, purged: None, follows_sync };
            self.queue.push_back(fresh);
        }
        self.queue.back_mut().expect("there is one now")
    }
}

/// A read of filed entries spans at most this, if it is more than one entry.
const READ_BYTES_MAX: usize = 1 << 20;

impl Limits {
    /// The limits with nonsense taken out.
    pub(super) fn sane(self) -> Self {
        Limits { segment_bytes: self.segment_bytes.clamp(HEADER as u64, 1 << 30), ..self }
    }
}

impl Failure {
    pub(super) fn to_error(&self) -> io::Error {
        io::Error::new(self.kind, &*self.text)
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// The youngest entries, ready to be sent or applied.
///
/// Holds at least the entries that are not in a file yet, whatever their size.
#[derive(Default)]
struct Cache {
    entries: VecDeque<(Arc<Entry>, Slot)>,
    bytes: usize,
}

impl Cache {
    fn push(&mut self, entry: Arc<Entry>, slot: Slot) {
        self.bytes += slot.length as usize;
        self.entries.push_back((entry, slot));
    }

    fn get(&self, index: u64, next: u64) -> Option<&Arc<Entry>> {
        let first = next - self.entries.len() as u64;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        self.entries.get(at).map(|(entry, _)| entry)
    }

    fn truncate(&mut self, next: u64) {
        while self.entries.back().is_some_and(|(entry, _)| entry.log_id.index >= next) {
            let gone = self.entries.pop_back();
            self.bytes -= gone.map_or(0, |(_, slot)| slot.length as usize);
        }
    }

    fn purge(&mut self, first: u64, next: u64) {
        let kept = usize::try_from(next - first).unwrap_or(usize::MAX);
        while self.entries.len() > kept {
            self.pop_front();
        }
    }

    fn evict(&mut self, bytes_max: usize, written: Position) {
        while let (true, Some((_, slot))) = (self.bytes > bytes_max, self.entries.front()) {
            let end = u64::from(slot.offset) + u64::from(slot.length);
            if (Position { sequence: slot.sequence, offset: end }) > written {
                return;
            }
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        let gone = self.entries.pop_front();
        self.bytes -= gone.map_or(0, |(_, slot)| slot.length as usize);
    }
}
