//! Whether this node still leads, asked of a quorum anew: what makes a read index true.
//!
//! Openraft has a read index of its own, which counts any acknowledgement of an append or a heartbeat. It
//! knows an answer by the position in the log that it names, though, and an append without entries (how a
//! leader tells what is committed) has the same position as the one before it: an answer to the older one
//! counts as one to the younger. A leader that came back from a cut, long replaced, took answers from before
//! the cut for a quorum of now. So reads ask with heartbeats of their own, whose answers carry the number of
//! their question.
//!
//! Reads that come while a round is under way share the next one.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::oneshot;
use futures::stream::FuturesUnordered;
use openraft::AsyncRuntime;
use openraft::raft::AppendEntriesRequest;

use crate::calls::Links;
use crate::handle::{Core, Handle};
use crate::transport::Lane;
use crate::wire::{Request, Response};
use crate::{TypeConfig, Vote, VoterId};

/// Readers of this store that wait for a round.
#[derive(Default)]
pub(crate) struct Rounds(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    waiting: Vec<(Vote, oneshot::Sender<bool>)>,
    /// A task asks, and takes those who wait when its round is over.
    asking: bool,
}

impl Rounds {
    /// Waits for a round that begins after this call. Whether a quorum then acknowledged `vote`, under
    /// which this node leads.
    pub(crate) async fn confirm<Rt: AsyncRuntime>(&self, handle: &Handle<Rt>, vote: Vote) -> bool {
        let (tell, told) = oneshot::channel();
        let begins = {
            let mut inner = self.lock();
            inner.waiting.push((vote, tell));
            !std::mem::replace(&mut inner.asking, true)
        };
        if begins {
            drop(Rt::spawn(ask_on(handle.clone())));
        }
        told.await.unwrap_or(false)
    }

    /// Those who wait; when there are none, the asking ends.
    fn take(&self) -> Vec<(Vote, oneshot::Sender<bool>)> {
        let mut inner = self.lock();
        let waiting = std::mem::take(&mut inner.waiting);
        inner.asking = !waiting.is_empty();
        waiting
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One round after another, as long as anybody waits for one.
async fn ask_on<Rt: AsyncRuntime>(handle: Handle<Rt>) {
    let shared = &handle.shared;
    loop {
        let waiting = shared.rounds.take();
        let Some(newest) = waiting.iter().map(|(vote, _)| *vote).max_by_key(|vote| vote.leader_id.term)
        else {
            return;
        };
        // Openraft's lease: who hears nothing for longer leads no more.
        let limit = shared.timings.election_min() * 2;
        let acknowledged = acknowledged(&shared.raft, &shared.links, newest, limit).await;
        for (vote, tell) in waiting {
            if !acknowledged {
                crate::seen!("read index refused");
            }
            // The reader may have given up.
            let _ = tell.send(acknowledged && vote == newest);
        }
    }
}

/// Whether a majority of each set of voters answers within `limit` that it follows the leader of `vote`.
async fn acknowledged<Rt: AsyncRuntime>(
    raft: &Core<Rt>,
    links: &Links<Rt>,
    vote: Vote,
    limit: Duration,
) -> bool {
    let sets = raft.with_raft_state(|state| {
        (*state.vote_ref(), state.membership_state.effective().membership().get_joint_config().clone())
    });
    let Ok((current, sets)) = sets.await else { return false };
    if current != vote {
        return false;
    }
    let me = vote.leader_id.voted_for;
    let others: BTreeSet<VoterId> = sets.iter().flatten().copied().filter(|voter| *voter != me).collect();
    let mut answers: FuturesUnordered<_> = others
        .into_iter()
        .map(|voter| async move { (voter, links.call(voter, Lane::Control, heartbeat(vote)).await) })
        .collect();
    let mut acknowledged = BTreeSet::from([me]);
    let has_quorum = |acknowledged: &BTreeSet<VoterId>| {
        sets.iter().all(|set| set.intersection(acknowledged).count() * 2 > set.len())
    };
    let asking = async {
        while !has_quorum(&acknowledged) {
            match answers.next().await {
                Some((voter, Ok(Response::Heartbeat(Ok(_))))) => drop(acknowledged.insert(voter)),
                Some(_) => {}
                None => return false,
            }
        }
        true
    };
    Rt::timeout(limit, asking).await.unwrap_or(false)
}

/// An append that changes nothing; a follower of the leader of `vote` acknowledges it, nobody else does.
fn heartbeat<Rt: AsyncRuntime>(vote: Vote) -> Request<Rt> {
    Request::Heartbeat(AppendEntriesRequest::<TypeConfig<Rt>> {
        vote,
        prev_log_id: None,
        leader_commit: None,
        entries: Vec::new(),
    })
}
