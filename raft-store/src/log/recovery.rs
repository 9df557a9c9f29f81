//! From files to the log as it was: what opening does.
//!
//! A torn end of the last segment is dropped: nothing in it was ever acknowledged. Everything else
//! that is not as it was written refuses, because a voter that forgot something must not vote.

use std::collections::BTreeMap;
use std::io;

use serde::de::DeserializeOwned;

use super::index::{Index, Slot};
use super::record::{self, Kind, Record};
use super::segment::{self, DIRECTORY, HEADER, Header, file_name, sequence_of};
use super::stored::{self, StoredLogId, StoredState, StoredVote};
use crate::VoterId;
use crate::codec;
use crate::files::Files;
use crate::type_config::{LogId, Vote};

/// Why a log does not open. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk did not do as it was told.
    #[error("could not read or repair the raft log at {path}; check the disk, then start again")]
    Io {
        /// The file or directory.
        path: String,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// Something that was once written is not there as it was written.
    #[error(
        "the raft log is damaged: {what} in {path} at offset {offset}; this node can no longer know what it \
         promised, so move its data directory away and join it anew, the other nodes have everything"
    )]
    Damaged {
        /// The segment.
        path: String,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: What,
    },
    /// A newer build wrote it.
    #[error(
        "the raft log {path} has format {found}, this build reads up to {newest}; start the newer build that wrote it"
    )]
    NewerFormat {
        /// The segment.
        path: String,
        /// The format it has.
        found: u32,
        /// The newest this build knows.
        newest: u32,
    },
    /// A segment was removed or renamed by somebody.
    #[error(
        "the raft log is incomplete: {path} is missing; put it back, or move the data directory away and \
         join this node anew"
    )]
    Missing {
        /// The segment.
        path: String,
    },
}

/// What is wrong with a place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum What {
    /// Not the bytes that were written.
    #[error("a bad checksum")]
    Checksum,
    /// The file ends too early.
    #[error("a missing end")]
    CutShort,
    /// Written by another voter, or for another place in the sequence.
    #[error("a segment of another log")]
    Foreign,
    /// Sound bytes that this build cannot read.
    #[error("a record this build does not know (perhaps of a newer one)")]
    Unknown,
    /// Sound records that do not follow from those before.
    #[error("an entry out of order")]
    OutOfOrder,
}

/// The log as its files tell it.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
    pub(super) index: Index,
    pub(super) segments: BTreeMap<u32, Segment>,
    /// Bytes of the youngest segment, where the next record goes.
    pub(super) end: u64,
    /// Last entry before the oldest segment that is left.
    before: Option<LogId>,
}

/// What is known of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) salt: u32,
    /// The highest index it ever held an entry of; it can go when that is purged.
    pub(super) highest: Option<u64>,
    pub(super) bytes: u64,
}

/// Reads all segments, drops a torn end, and makes durable what is left, since the next start must
/// find at least what this one saw.
pub(super) async fn recover<F: Files>(files: &F, voter: VoterId) -> Result<Replay, OpenError> {
    let failed = |file: &str| {
        let path = files.describe(file);
        move |source| OpenError::Io { path, source }
    };
    files.make_directory(DIRECTORY).await.map_err(failed(DIRECTORY))?;
    files.sync_directory("").await.map_err(failed(""))?;
    let listed = files.list(DIRECTORY).await.map_err(failed(DIRECTORY))?;
    let sequences: Vec<u32> = listed.iter().filter_map(|file| sequence_of(&file.name)).collect();
    if let Some(gap) = sequences.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        return Err(OpenError::Missing { path: files.describe(&file_name(gap[0] + 1)) });
    }

    let mut replay = Replay::default();
    let mut torn = None;
    for &sequence in &sequences {
        let name = file_name(sequence);
        let bytes = files.read(&name, 0, usize::MAX).await.map_err(failed(&name))?;
        let is_last = Some(&sequence) == sequences.last();
        let kept = replay.segment(Header { sequence, voter }, &bytes, is_last).map_err(|damage| {
            let path = files.describe(&name);
            match damage {
                Damage::NewerFormat(found) => OpenError::NewerFormat { path, found, newest: segment::FORMAT },
                Damage::At(offset, what) => OpenError::Damaged { path, offset: offset as u64, what },
            }
        })?;
        torn = (kept < bytes.len()).then_some((name, kept as u64, bytes.len() as u64));
    }
    if let (Some(&oldest), true) = (sequences.first(), replay.misses_entries()) {
        return Err(OpenError::Missing { path: files.describe(&file_name(oldest.saturating_sub(1))) });
    }

    // All is judged; only now is anything changed.
    if let Some((name, kept, bytes)) = torn {
        tracing::info!(file = %files.describe(&name), offset = kept, bytes = bytes - kept,
            "dropped the torn end of the raft log");
        match kept {
            0 => files.remove(&name).await.map_err(failed(&name))?,
            _ => files.cut(&name, kept).await.map_err(failed(&name))?,
        }
    }
    if let Some(&youngest) = replay.segments.keys().next_back() {
        let name = file_name(youngest);
        if !crate::broken!(NoSyncAtOpen) {
            files.sync(&name).await.map_err(failed(&name))?;
        }
    }
    files.sync_directory(DIRECTORY).await.map_err(failed(DIRECTORY))?;
    Ok(replay)
}

/// Why a segment refuses.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Damage {
    NewerFormat(u32),
    At(usize, What),
}

impl Replay {
    /// Takes the next segment and returns how many of its bytes are kept: all, but for the last
    /// segment, whose end may be torn.
    pub(super) fn segment(&mut self, header: Header, bytes: &[u8], is_last: bool) -> Result<usize, Damage> {
        let salt = header.salt();
        let is_torn = |at, fault| is_last && record::is_torn(bytes, salt, at, fault);
        // Only the very first segment can be alone and unborn: an older one goes after a sync of its heir.
        let may_be_unborn = header.sequence == 1 || !self.segments.is_empty();
        match header.check(bytes) {
            Ok(()) => {}
            Err(segment::Fault::NewerFormat(found)) => return Err(Damage::NewerFormat(found)),
            Err(segment::Fault::Foreign) => return Err(Damage::At(0, What::Foreign)),
            Err(segment::Fault::Short) if is_last && may_be_unborn => return Ok(0),
            Err(segment::Fault::Short) => return Err(Damage::At(bytes.len(), What::CutShort)),
            Err(segment::Fault::Damaged) if may_be_unborn && is_torn(0, record::Fault::Head) => return Ok(0),
            Err(segment::Fault::Damaged) => return Err(Damage::At(0, What::Checksum)),
        }

        let mut info = Segment { salt, highest: None, bytes: 0 };
        let mut at = HEADER;
        while at < bytes.len() {
            match record::read(&bytes[at..], salt, at as u64) {
                Ok(record) => {
                    self.record(&header, at, &record, &mut info).map_err(|what| Damage::At(at, what))?;
                    at += record.length;
                }
                Err(fault) if is_torn(at, fault) && (at > HEADER || may_be_unborn) => break,
                Err(record::Fault::Short) => return Err(Damage::At(at, What::CutShort)),
                Err(record::Fault::UnknownKind(_)) => return Err(Damage::At(at, What::Unknown)),
                Err(record::Fault::Head | record::Fault::Body) => return Err(Damage::At(at, What::Checksum)),
            }
        }
        if at == HEADER {
            // The state record was not written to its end, so the segment was never used.
            return if is_last && may_be_unborn { Ok(0) } else { Err(Damage::At(at, What::CutShort)) };
        }
        info.bytes = at as u64;
        self.end = info.bytes;
        self.segments.insert(header.sequence, info);
        Ok(at)
    }

    fn record(
        &mut self,
        header: &Header,
        at: usize,
        record: &Record<'_>,
        segment: &mut Segment,
    ) -> Result<(), What> {
        if (at == HEADER) != (record.kind == Kind::State) {
            return Err(What::OutOfOrder);
        }
        match record.kind {
            Kind::State => self.state(decode(record)?),
            Kind::Entry if record.index == self.index.next() || self.is_fresh() => {
                if self.is_fresh() {
                    self.index.restart(record.index);
                }
                let term = stored::read_term(record.payload).map_err(|_| What::Unknown)?;
                let slot = Slot {
                    sequence: header.sequence,
                    offset: u32::try_from(at).map_err(|_| What::OutOfOrder)?,
                    length: u32::try_from(record.length).map_err(|_| What::OutOfOrder)?,
                };
                segment.highest = segment.highest.max(Some(record.index));
                if self.index.push(term, slot) { Ok(()) } else { Err(What::OutOfOrder) }
            }
            Kind::Entry => Err(What::OutOfOrder),
            Kind::Vote => {
                self.vote = Some(decode::<StoredVote>(record)?.into());
                Ok(())
            }
            Kind::Truncate if record.index <= self.index.next() => {
                self.index.truncate(record.index);
                Ok(())
            }
            Kind::Truncate => Err(What::OutOfOrder),
            Kind::Purge => {
                let purged: LogId = decode::<StoredLogId>(record)?.into();
                self.index.purge(purged.index);
                self.purged = Some(purged);
                Ok(())
            }
            Kind::Committed => {
                self.committed = decode::<Option<StoredLogId>>(record)?.map(LogId::from);
                Ok(())
            }
        }
    }

    /// Takes the state a segment begins with: the oldest one teaches it, later ones must agree.
    fn state(&mut self, state: StoredState) -> Result<(), What> {
        let vote = state.vote.map(Vote::from);
        let [purged, committed, last] =
            [state.purged, state.committed, state.last].map(|log_id| log_id.map(LogId::from));
        if self.segments.is_empty() {
            (self.vote, self.purged, self.committed, self.before) = (vote, purged, committed, last);
            self.index.restart(last.map_or(0, |last| last.index + 1));
            return Ok(());
        }
        let same_state = (self.vote, self.purged, self.committed) == (vote, purged, committed);
        let same_end = match last {
            Some(last) => {
                // The term of an entry that lies before the oldest segment is not known here.
                let same_id = self.index.last().is_none_or(|here| here == last);
                last.index + 1 == self.index.next() && same_id
            }
            None => self.is_fresh(),
        };
        if same_state && same_end { Ok(()) } else { Err(What::OutOfOrder) }
    }

    fn is_fresh(&self) -> bool {
        self.index.is_empty() && self.purged.is_none() && self.before.is_none()
    }

    /// Whether entries that are not purged lie before the oldest segment.
    fn misses_entries(&self) -> bool {
        self.before.map(|before| before.index) > self.purged.map(|purged| purged.index)
    }
}

fn decode<T: DeserializeOwned>(record: &Record<'_>) -> Result<T, What> {
    codec::decode(record.payload).map_err(|_| What::Unknown)
}
