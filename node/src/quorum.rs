//! Who of the voters is there, as far as this node can see, and what that is enough for.
//!
//! A voter is a store, not a node: one whose store was lost is there and its vote is not. Which store a node has it
//! says by gossip, so that this is seen also where no majority is left to write it down.

use std::time::Duration;

use skein_control::voters;
use skein_net::gossip::{self, Metadata, service};
use skein_net::identity::{NodeId, StoreId};
use skein_raft_store::log::Health;
use skein_raft_store::{Handle, TokioRuntime, VoterId};

use crate::disk;
use crate::voting::{Voting, Wait};

/// Heartbeats come every 100 ms; an election takes three.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(1500);

/// The label by which a node says which store it has.
pub(crate) const STORE_LABEL: &str = "store";

/// The value of [`STORE_LABEL`] for this store.
pub(crate) fn store_label(store: VoterId) -> String {
    StoreId(store.store).to_string()
}

/// Whether a node that says this of itself has this store. An older build says nothing of it.
pub(crate) fn has_store(metadata: Option<&Metadata>, store: VoterId) -> bool {
    let said = metadata.and_then(|metadata| metadata.labels.get(STORE_LABEL));
    said.is_none_or(|said| *said == store_label(store))
}

/// Whether a majority of the voters is there.
pub(crate) fn is_there(store: &Handle<TokioRuntime>, gossip: &service::Handle) -> bool {
    let metrics = store.metrics();
    if metrics.leads() {
        return metrics.quorum_acked_age.is_some_and(|age| age < ACKNOWLEDGED_WITHIN);
    }
    let up = up(store, gossip);
    let alive = metrics.voters.iter().filter(|voter| up(voter)).count();
    metrics.leader.is_some_and(|leader| up(&leader)) && 2 * alive > metrics.voters.len()
}

/// How the voters stand, by this node's own sight: for a node that no leader tells.
pub(crate) fn voting(store: &Handle<TokioRuntime>, gossip: &service::Handle) -> Voting {
    let failures_survived = failures_survived(store, gossip) as u64;
    let up = up(store, gossip);
    let lost = |voter: &VoterId| is_lost(*voter, store.voter(), gossip);
    let reason = store.voter_sets().iter().find_map(|set| voters::standstill(set, &up, lost));
    Voting { failures_survived, waits: reason.map(Wait::at_all).into_iter().collect() }
}

/// Whether the node of this voter has another store now, by its own word. `me` is the store of this node.
pub(crate) fn is_lost(voter: VoterId, me: VoterId, gossip: &service::Handle) -> bool {
    if voter.node == me.node {
        return voter != me;
    }
    let members = gossip.members().borrow().clone();
    let said = members.get(&NodeId(voter.node)).and_then(|member| member.metadata.as_deref());
    !has_store(said, voter)
}

/// How many more nodes may be lost before no majority is there, as far as gossip tells. The leader knows better: what
/// answers may still not take what is written.
pub(crate) fn failures_survived(store: &Handle<TokioRuntime>, gossip: &service::Handle) -> usize {
    voters::failures_survived(&store.voter_sets(), up(store, gossip))
}

fn up(store: &Handle<TokioRuntime>, gossip: &service::Handle) -> impl Fn(&VoterId) -> bool + use<> {
    let (me, disk) = (store.voter(), store.disk());
    let members = gossip.members().borrow().clone();
    move |voter| {
        if voter.node == me.node {
            return *voter == me && !matches!(disk, Health::Failed(_));
        }
        members.get(&NodeId(voter.node)).is_some_and(|member| {
            let said = member.metadata.as_deref();
            member.state == gossip::State::Alive && !disk::has_failed(said) && has_store(said, *voter)
        })
    }
}
