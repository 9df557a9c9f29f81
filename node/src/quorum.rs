//! Who of the voters is there, as far as this node can see, and what that is enough for.

use std::time::Duration;

use skein_control::voters;
use skein_net::gossip::{self, service};
use skein_net::identity::NodeId;
use skein_raft_store::log::Health;
use skein_raft_store::{Handle, TokioRuntime, VoterId};

use crate::disk;

/// Heartbeats come every 100 ms; an election takes three.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(1500);

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

/// How many more nodes may be lost before no majority is there.
pub(crate) fn failures_survived(store: &Handle<TokioRuntime>, gossip: &service::Handle) -> usize {
    voters::failures_survived(&store.voter_sets(), up(store, gossip))
}

fn up(store: &Handle<TokioRuntime>, gossip: &service::Handle) -> impl Fn(&VoterId) -> bool + use<> {
    let (me, disk) = (store.voter(), store.disk());
    let members = gossip.members().borrow().clone();
    move |voter| {
        if *voter == me {
            return !matches!(disk, Health::Failed(_));
        }
        members.get(&NodeId(voter.node)).is_some_and(|member| {
            member.state == gossip::State::Alive && !disk::has_failed(member.metadata.as_deref())
        })
    }
}
