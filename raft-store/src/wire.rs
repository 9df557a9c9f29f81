//! What travels on the lanes, and how it becomes frames.
//!
//! On [`Lane::Control`](crate::Lane) and [`Lane::Forward`](crate::Lane) a frame is a batch of numbered
//! requests or responses; on `Append` it is one request of openraft or the result of one; on `Snapshot`
//! an [`Offer`] and then records of a state; for `Follow` see [`crate::feed`].

use bytes::Bytes;
use openraft::impls::EmptyNode;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
    VoteResponse,
};
use openraft::storage::SnapshotMeta;
use openraft::{AsyncRuntime, LogIdOptionExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::transport::FRAME_BYTES_MAX;
use crate::{Answer, Command, CommittedLeaderId, TypeConfig, Vote, VoterId, decode, encode};

/// What identifies a snapshot for openraft.
pub(crate) type Meta = SnapshotMeta<CommittedLeaderId, VoterId, EmptyNode>;

/// A question to one other store. Append-only.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum Request<Rt: AsyncRuntime> {
    Vote(VoteRequest<TypeConfig<Rt>>),
    PreVote(VoteRequest<TypeConfig<Rt>>),
    Heartbeat(AppendEntriesRequest<TypeConfig<Rt>>),
    TransferLeader(TransferLeaderRequest<TypeConfig<Rt>>),
    Propose(Command),
    ReadIndex,
    /// Whether the store asked leads in this term and a quorum hears it.
    Confirm {
        term: u64,
    },
}

/// The answer to the request of the same number. Append-only.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum Response<Rt: AsyncRuntime> {
    Vote(VoteResponse<TypeConfig<Rt>>),
    Heartbeat(StreamAppendResult<TypeConfig<Rt>>),
    TransferLeader(TransferLeaderResponse<TypeConfig<Rt>>),
    Proposed(Answer),
    /// Everything answered before the question was asked is part of this revision.
    ReadIndex(u64),
    /// Nothing was done, and nothing will be; ask this voter, if one is named.
    Redirect(Option<VoterId>),
    /// The command may or may not take effect; ask again with the same serial.
    Uncertain,
    /// More is asked than this store can keep in mind. Nothing was done.
    Busy,
    /// The request is not for this lane or not in the name of its sender, or the store has stopped.
    Refused,
    /// The leader's disk is full. Nothing was done, and nothing will be.
    Full,
    /// Whether it leads in the term asked about, heard by a quorum.
    Confirmed(bool),
}

/// The first frame of a snapshot.
#[derive(Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) vote: Vote,
    pub(crate) meta: Meta,
}

impl<Rt: AsyncRuntime> Request<Rt> {
    /// About how many bytes it takes, to close a batch in time.
    pub(crate) fn size(&self) -> usize {
        match self {
            Request::Propose(command) => command.size(),
            _ => 128,
        }
    }
}

pub(crate) fn frame<T: Serialize>(value: &T) -> Bytes {
    encode(value).into()
}

/// Whether the entries follow each other and what they say they follow. A log with a hole could never be mended.
pub(crate) fn check_run<Rt: AsyncRuntime>(
    request: &AppendEntriesRequest<TypeConfig<Rt>>,
) -> Result<(), String> {
    for (next, entry) in (request.prev_log_id.next_index()..).zip(&request.entries) {
        if entry.log_id.index != next {
            return Err(format!("entry {} does not follow: {next} is next", entry.log_id.index));
        }
    }
    Ok(())
}

/// Reads a frame; anything a peer may send that is not one ends its pipe.
pub(crate) fn parse<T: DeserializeOwned>(frame: &[u8]) -> Result<T, String> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(format!("a frame of {} bytes, at most {FRAME_BYTES_MAX} are allowed", frame.len()));
    }
    decode(frame).map_err(|error| error.to_string())
}
