//! Order, durability, revisions and watches: the cluster's one replicated map.
//!
//! Owns the log, the vote, snapshots, the ordered map and the ring of its events, and the Raft that
//! keeps them equal on every node, behind a plain handle. Imports no other crate of the house: bytes
//! travel over a trait of this crate, and what a key or a value means is nobody's business here.

#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod bench;
mod calls;
mod codec;
mod command;
mod config;
mod confirm;
mod disk_files;
mod feed;
mod files;
mod follow;
mod handle;
mod head;
mod incarnation;
pub mod log;
mod machine;
mod network;
mod pace;
mod replica;
mod serve;
mod sessions;
mod shelf;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "sim")]
pub mod sim_files;
mod snapshot_file;
mod stamp;
mod standing;
mod state;
mod store;
pub mod store_id;
pub mod sync_times;
mod tag;
mod tail;
mod transport;
mod type_config;
mod voter_id;
mod watch;
mod wire;

/// Whether a bug was put back on purpose; never without the simulator.
macro_rules! broken {
    ($mutation:ident) => {{
        #[cfg(feature = "sim")]
        let broken = crate::sim::Mutation::$mutation.is_set();
        #[cfg(not(feature = "sim"))]
        let broken = false;
        broken
    }};
}
pub(crate) use broken;

/// Notes that a rare branch was taken, for the simulator's account of what its runs have covered.
macro_rules! seen {
    ($what:literal) => {{
        #[cfg(feature = "sim")]
        crate::sim::see($what);
    }};
}
pub(crate) use seen;

/// What `apply` must never look at; for the mutation that does.
#[cfg(feature = "sim")]
fn own_clock_ms() -> u64 {
    sim::now_ms()
}

#[cfg(not(feature = "sim"))]
fn own_clock_ms() -> u64 {
    0
}

pub use codec::{DecodeError, VALUE_BYTES_MAX, decode, encode, encode_into};
pub use command::{Answer, Change, Command, Expect, Op, Outcome, Refusal, Session};
pub use config::{Clock, Compaction, Config, Timings};
pub use disk_files::{DirectoryError, DiskFiles};
pub use files::{Files, Listed, Pending, is_full};
pub use handle::{
    COMMAND_BYTES_MAX, ChangeError, Handle, KEY_BYTES_MAX, MemberChange, Metrics, OPS_MAX, Options,
    ProposeError, ReadError,
};
pub use incarnation::{BeginError, Legacy, Logged, REVISION_STEP, begin, begin_as_follower};
pub use log::Log;
pub use openraft_rt_tokio::TokioRuntime;
pub use shelf::LoadError;
pub use snapshot_file::{SnapshotError, SnapshotReader, SnapshotWriter, Snapshots};
pub use stamp::SET_SINCE_MS;
pub use standing::Changes;
pub use state::{Difference, Event, Members, OBJECT_BYTES_MAX, Object, STORE_BYTES_MAX, State};
pub use store::{StartError, start};
pub use sync_times::{SyncTimes, measure};
pub use tag::{ClusterTag, Foreign};
pub use tail::{Moved, Tail};
pub use transport::{
    Broken, CHUNK_BYTES, FRAME_BYTES_MAX, Lane, Pipe, PipeRx, PipeTx, Transport, Unreachable,
};
pub use type_config::{CommittedLeaderId, Entry, LogId, Membership, Payload, TypeConfig, Vote};
pub use voter_id::VoterId;
pub use watch::{Batch, RingLimits, WatchError, Watcher};
