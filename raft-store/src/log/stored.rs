//! The frozen forms of what the log keeps, so that a new openraft never reads an old file wrongly.

use std::collections::BTreeSet;

use openraft::EntryPayload;
use openraft::vote::RaftLeaderId;
use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};
use crate::type_config::{CommittedLeaderId, Entry, LogId, Membership, Vote};
use crate::{Command, VoterId};

/// Appends the payload of an entry's record. The index is in the record's head; the term comes
/// first and plainly, because opening the log needs nothing else of an entry.
pub(super) fn write_entry(entry: &Entry, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&entry.log_id.leader_id.term.to_le_bytes());
    let payload = match &entry.payload {
        EntryPayload::Blank => WritePayload::Blank,
        EntryPayload::Normal(command) => WritePayload::Command(command),
        EntryPayload::Membership(membership) => WritePayload::Membership {
            configs: membership.get_joint_config(),
            members: membership.nodes().map(|(&voter, _)| voter).collect(),
        },
    };
    codec::encode_into(&payload, buffer);
}

/// The term of an entry's record.
pub(super) fn read_term(payload: &[u8]) -> Result<u64, DecodeError> {
    let term = payload.first_chunk().ok_or(DecodeError::Empty)?;
    Ok(u64::from_le_bytes(*term))
}

/// The entry of a record.
pub(super) fn read_entry(index: u64, payload: &[u8]) -> Result<Entry, DecodeError> {
    let term = read_term(payload)?;
    let payload = match codec::decode(&payload[8..])? {
        ReadPayload::Blank => EntryPayload::Blank,
        ReadPayload::Command(command) => EntryPayload::Normal(command),
        ReadPayload::Membership { configs, members } => {
            EntryPayload::Membership(Membership::new_with_defaults(configs, members))
        }
    };
    Ok(Entry { log_id: log_id(term, index), payload })
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// Append-only, and like [`ReadPayload`].
#[derive(Serialize)]
enum WritePayload<'a> {
    Blank,
    Command(&'a Command),
    Membership { configs: &'a Vec<BTreeSet<VoterId>>, members: BTreeSet<VoterId> },
}

#[derive(Deserialize)]
enum ReadPayload {
    Blank,
    Command(Command),
    Membership { configs: Vec<BTreeSet<VoterId>>, members: BTreeSet<VoterId> },
}

/// What a segment starts with, so that any older one can be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredState {
    pub(super) vote: Option<StoredVote>,
    pub(super) purged: Option<StoredLogId>,
    pub(super) committed: Option<StoredLogId>,
    /// Last entry, or the purge point where there is none.
    pub(super) last: Option<StoredLogId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredVote {
    term: u64,
    voted_for: VoterId,
    committed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredLogId {
    term: u64,
    index: u64,
}

impl From<Vote> for StoredVote {
    fn from(vote: Vote) -> Self {
        let leader = vote.leader_id;
        StoredVote { term: leader.term, voted_for: leader.voted_for, committed: vote.committed }
    }
}

impl From<StoredVote> for Vote {
    fn from(stored: StoredVote) -> Self {
        Vote { leader_id: RaftLeaderId::new(stored.term, stored.voted_for), committed: stored.committed }
    }
}

impl From<LogId> for StoredLogId {
    fn from(log_id: LogId) -> Self {
        StoredLogId { term: log_id.leader_id.term, index: log_id.index }
    }
}

impl From<StoredLogId> for LogId {
    fn from(stored: StoredLogId) -> Self {
        log_id(stored.term, stored.index)
    }
}
