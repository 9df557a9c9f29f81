//! How one incarnation of a cluster begins with what another one left: recovery and restoration.
//!
//! Of a cluster that has lost its majority each store that is left says what it has ([`Handle::legacy`]). One of
//! them becomes the beginning: [`State::next_life`] of what it has, as the first entry of a log of its own
//! ([`begin`]). The others begin as replicas without a log ([`begin_as_follower`]): they show what they had until
//! they reach the new store, and no entry of theirs is ever asked for.
//!
//! Entries of the old log that were never known to be committed may be part of the beginning: a majority that is
//! gone may have acknowledged them. That is decided elsewhere; here is both, with and without them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use futures::future::BoxFuture;
use openraft::async_runtime::WatchReceiver;
use openraft::impls::EmptyNode;
use openraft::{AsyncRuntime, EntryPayload, StoredMembership};

use crate::files::Files;
use crate::handle::Handle;
use crate::machine::Shelf;
use crate::shelf::{Copies, Followed};
use crate::snapshot_file::{SnapshotError, Snapshots};
use crate::state::{Members, State};
use crate::store_id::{self, StoreIdError};
use crate::{ClusterTag, CommittedLeaderId, Entry, LogId, Membership, VoterId};

/// By how much an incarnation's revisions are ahead of those of the one before: whoever knows a revision of the old one, also of a part of
/// it that was cut off and goes on, is told that it is too old instead of missing something.
pub const REVISION_STEP: u64 = 1 << 32;

/// Reads the log's entries from this index on.
pub(crate) type EntriesFrom = Box<dyn Fn(u64) -> BoxFuture<'static, io::Result<Vec<Entry>>> + Send + Sync>;

/// What one store has, for an incarnation that may begin with it.
#[derive(Clone, Debug)]
pub struct Legacy {
    /// By its own log; `None` if it has none that can be read.
    pub log: Option<Logged>,
    /// What it shows its readers, by its log or by the store that it followed. All of that is committed.
    pub shown: State,
    /// The latest term in which it was told so.
    pub told_term: u64,
}

/// What a log leads to.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Its last entry.
    pub last: LogId,
    /// Up to this revision it is known to be committed.
    pub certain: u64,
    /// With every entry applied, those too of which that is not known.
    pub whole: State,
}

/// Why an incarnation could not begin in a directory. What was written to it is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Whose store it is could not be written, or it is somebody's already.
    #[error(transparent)]
    StoreId(#[from] StoreIdError),
    /// The state could not be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The same.
    #[error("could not write the state of the new store; check the disk and the free space on it")]
    State(#[source] io::Error),
}

impl<Rt: AsyncRuntime> Handle<Rt> {
    /// What this store has, for an incarnation that may begin with it.
    pub async fn legacy(&self) -> Legacy {
        let told_term = self.followed().told.as_ref().map_or(0, |(told, _)| told.term);
        Legacy { log: self.logged().await, shown: self.state(), told_term }
    }

    async fn logged(&self) -> Option<Logged> {
        if self.raft_failed() {
            return None;
        }
        let applied = self.raft().with_state_machine(|machine| Box::pin(std::future::ready(machine.state())));
        let applied: State = applied.await.ok()?;
        let next = applied.applied().map_or(0, |last| last.index + 1);
        let tail = (self.shared.entries_from)(next).await.ok()?;
        let last = tail.last().map(|entry| entry.log_id).or(applied.applied())?;
        let certain = applied.revision();
        Some(Logged { last, certain, whole: with_tail(applied, tail) })
    }

    /// The term and index of the membership by which this store judges who votes.
    pub fn membership_place(&self) -> (u64, u64) {
        let members = self.look().members;
        members.log_id().map_or((0, 0), |at| (at.leader_id.term, at.index))
    }

    /// Index of the last entry in the log, also after the store has stopped.
    pub fn last_log_index(&self) -> Option<u64> {
        self.raft().metrics().borrow_watched().last_log_index
    }
}

/// `state` with the entries behind it applied, whether they are committed or not.
fn with_tail(mut state: State, tail: Vec<Entry>) -> State {
    for entry in tail {
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(command) => drop(state.apply(entry.log_id.leader_id.term, command)),
            EntryPayload::Membership(members) => {
                state.set_members(StoredMembership::new(Some(entry.log_id), members));
            }
        }
        state.set_applied(entry.log_id);
    }
    state
}

/// Makes the empty directory in `files` the store of `voter`, the only one that votes in the incarnation `tag`,
/// which begins with `state`. Durable when this returns.
pub async fn begin<F: Files>(
    files: &F,
    voter: VoterId,
    tag: ClusterTag,
    mut state: State,
) -> Result<(), BeginError> {
    let first = LogId::new(CommittedLeaderId::new(0), 0);
    let nodes = BTreeMap::from([(voter, EmptyNode::default())]);
    let alone = Membership::new(vec![BTreeSet::from([voter])], nodes).expect("the voter is a node");
    state.set_members(StoredMembership::new(Some(first), alone));
    state.set_applied(first);
    store_id::load_or_create(files, voter.node, voter.store, tag).await?;
    Snapshots::open(files.clone()).await?.save(&state).await.map_err(BeginError::State)
}

/// Makes the empty directory in `files` the store of `voter` in the incarnation `tag`, in which it has no part in
/// the log yet. It shows `state`, which is of an earlier incarnation, until it follows somebody.
pub async fn begin_as_follower<F: Files>(
    files: &F,
    voter: VoterId,
    tag: ClusterTag,
    mut state: State,
) -> Result<(), BeginError> {
    // Who voted then is nobody's business now; its place in a log that has ended would look newer than any.
    state.set_members(Members::default());
    store_id::load_or_create(files, voter.node, voter.store, tag).await?;
    let (copies, _) = Followed::open(files.clone()).await?;
    Ok(copies.save(&state).await?)
}
