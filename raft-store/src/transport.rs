//! The one way out: framed, ordered pipes to other voters and learners.
//!
//! This crate does not know how bytes travel. `node` implements [`Transport`] over its network, the
//! tests and the simulator over channels. Whatever comes in on an accepted pipe is handed to
//! [`Handle::serve`](crate::Handle::serve).

use async_trait::async_trait;
use bytes::Bytes;

use crate::VoterId;

/// Largest frame on any lane but [`Lane::Snapshot`], whose frames are chunks of [`CHUNK_BYTES`].
/// An append carries at most 1 MiB of entries plus one object more; 8 MiB leaves room.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Size of a piece of a snapshot on [`Lane::Snapshot`].
pub const CHUNK_BYTES: usize = 1 << 20;

/// What a pipe is for. Each has a stream of its own, so that a long append or a snapshot never
/// delays a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lane {
    /// Votes, heartbeats, hand-over of leadership: small, and late ones cost an election.
    Control = 1,
    /// Log entries, pipelined.
    Append = 2,
    /// One whole snapshot per pipe.
    Snapshot = 3,
    /// Writes and read indices on their way to the leader.
    Forward = 4,
    /// Events for replicas without a log.
    Follow = 5,
}

impl TryFrom<u8> for Lane {
    type Error = u8;

    fn try_from(byte: u8) -> Result<Self, u8> {
        [Lane::Control, Lane::Append, Lane::Snapshot, Lane::Forward, Lane::Follow]
            .into_iter()
            .find(|lane| *lane as u8 == byte)
            .ok_or(byte)
    }
}

/// A pipe could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not reach voter {to}: {reason}")]
pub struct Unreachable {
    /// The voter that was dialled.
    pub to: VoterId,
    /// What went wrong, for the log.
    pub reason: String,
}

/// An open pipe broke; what was sent last may or may not have arrived.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection broke: {0}")]
pub struct Broken(pub String);

/// Opens pipes to other stores. Cloned freely; one connection may carry many pipes.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Opens a pipe for `lane`. The other end hands its half to `Handle::serve` of the store `to`; for
    /// [`Lane::Follow`] to that of any store of that node.
    ///
    /// An open pipe must break by itself, within seconds, when the other end is gone.
    async fn open(&self, to: VoterId, lane: Lane) -> Result<Pipe, Unreachable>;
}

/// Both directions of one stream. Frames arrive whole, once, and in the order sent.
pub struct Pipe {
    /// The way out.
    pub tx: Box<dyn PipeTx>,
    /// The way in.
    pub rx: Box<dyn PipeRx>,
}

/// The sending half. Dropping it without [`finish`](Self::finish) breaks the pipe for the other end.
#[async_trait]
pub trait PipeTx: Send + Sync + 'static {
    /// Queues one frame, waiting while the other end does not read. Never cancelled half way.
    async fn send(&mut self, frame: Bytes) -> Result<(), Broken>;

    /// Says that no further frame comes: the other end reads `None` after the last one.
    fn finish(&mut self);
}

/// The receiving half.
#[async_trait]
pub trait PipeRx: Send + Sync + 'static {
    /// The next frame, or `None` when the other end finished.
    async fn recv(&mut self) -> Result<Option<Bytes>, Broken>;
}
