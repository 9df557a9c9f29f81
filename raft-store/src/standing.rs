//! Who leads and who votes, as this store knows it: by its own Raft, or by the store it follows.

use std::sync::Arc;

use openraft::async_runtime::{Watch, WatchReceiver};
use openraft::metrics::RaftServerMetrics;
use openraft::{AsyncRuntime, ServerState};
use serde::{Deserialize, Serialize};

use crate::state::Members;
use crate::{TypeConfig, VoterId};

/// What callers wait for changes of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) leader: Option<VoterId>,
    pub(crate) term: u64,
    pub(crate) members: Arc<Members>,
    /// Whether the membership is committed.
    pub(crate) committed: bool,
    /// The store has stopped; nothing changes any more.
    pub(crate) stopped: bool,
}

/// What this store's own Raft says.
pub(crate) struct Own {
    pub(crate) standing: Standing,
    /// It leads with a quorum, or hears who does. Raft itself never forgets a leader that fell silent.
    pub(crate) lives: bool,
    /// It stopped for good, because the disk under it failed: it leads nobody and knows nothing new.
    pub(crate) failed: bool,
}

/// What a store tells those who follow it about the rest of the cluster. Frozen: see [`crate::feed::Word`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) term: u64,
    /// `None` also where there is one that has no quorum.
    pub(crate) leader: Option<VoterId>,
    /// The committed membership.
    pub(crate) members: Members,
    pub(crate) level: u32,
    pub(crate) stamp_ms: u64,
}

impl Standing {
    pub(crate) fn by_raft<Rt: AsyncRuntime>(raft: &RaftServerMetrics<TypeConfig<Rt>>) -> Standing {
        Standing {
            leader: leader::<Rt>(raft),
            term: raft.vote.leader_id.term,
            members: raft.membership_config.clone(),
            committed: raft.membership_config == raft.committed_membership_config,
            stopped: false,
        }
    }

    /// Puts together what Raft says and what was told, `told` being `None` where nothing was told lately.
    ///
    /// The newer membership holds. Whoever is not part of it has no Raft that knows anything, and nor has
    /// who lost it; a member believes its own Raft as long as that lives, and what is told only if no older.
    pub(crate) fn of(me: VoterId, own: Own, told: Option<&Told>, known: Option<&Arc<Members>>) -> Standing {
        let Own { standing: own, lives, failed } = own;
        let (members, committed) = match known {
            Some(known) if known.log_id() > own.members.log_id() => (known.clone(), true),
            _ => (own.members.clone(), own.committed),
        };
        let outside = failed || is_outside(&members, me);
        let standing = Standing { members, committed, ..own };
        match told {
            Some(told) if !lives && (outside || told.term >= standing.term) => {
                // Nobody but its own Raft makes a store lead.
                Standing { leader: told.leader.filter(|leader| *leader != me), term: told.term, ..standing }
            }
            _ if failed => Standing { leader: None, ..standing },
            None if outside && known.is_some() => Standing { leader: None, ..standing },
            _ => standing,
        }
    }
}

/// Who leads, by what this store's own Raft says.
///
/// Whoever led, and finds itself outside of the members when it starts again, still holds the vote it won:
/// openraft takes that back only for a member, and names the store as the leader that it is no more.
pub(crate) fn leader<Rt: AsyncRuntime>(raft: &RaftServerMetrics<TypeConfig<Rt>>) -> Option<VoterId> {
    raft.current_leader.filter(|leader| *leader != raft.id || raft.state == ServerState::Leader)
}

/// Whether there is a membership, and `me` is no part of it.
pub(crate) fn is_outside(members: &Members, me: VoterId) -> bool {
    members.log_id().is_some() && members.membership().get_node(&me).is_none()
}

/// Wakes when leader, term or membership change.
pub struct Changes<Rt: AsyncRuntime>(pub(crate) <Rt::Watch as Watch>::Receiver<Standing>);

impl<Rt: AsyncRuntime> Changes<Rt> {
    /// Waits for the next change; several may come as one. `false` when the store has stopped.
    pub async fn changed(&mut self) -> bool {
        !self.are_over() && self.0.changed().await.is_ok() && !self.are_over()
    }

    /// Whether the store has stopped.
    pub(crate) fn are_over(&self) -> bool {
        self.0.borrow_watched().stopped
    }

    pub(crate) fn leader(&self) -> Option<VoterId> {
        self.0.borrow_watched().leader
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use openraft::StoredMembership;
    use openraft::impls::EmptyNode;

    use super::*;
    use crate::{CommittedLeaderId, LogId, Membership};

    fn voter(number: u8) -> VoterId {
        VoterId { node: [number; 16], store: [1; 8] }
    }

    /// The membership of `voters`, which is that of entry `index`.
    fn members(index: u64, voters: &[u8]) -> Arc<Members> {
        let ids: BTreeSet<VoterId> = voters.iter().map(|number| voter(*number)).collect();
        let nodes: BTreeMap<VoterId, EmptyNode> = ids.iter().map(|id| (*id, EmptyNode::default())).collect();
        let membership = Membership::new(vec![ids], nodes).expect("voters are nodes");
        Arc::new(StoredMembership::new(Some(LogId::new(CommittedLeaderId::new(1), index)), membership))
    }

    fn own(leader: Option<u8>, term: u64, members: Arc<Members>, lives: bool) -> Own {
        let standing = Standing { leader: leader.map(voter), term, members, committed: true, stopped: false };
        Own { standing, lives, failed: false }
    }

    fn told(leader: Option<u8>, term: u64, members: &Arc<Members>) -> Told {
        Told { term, leader: leader.map(voter), members: (**members).clone(), level: 1, stamp_ms: 0 }
    }

    #[test]
    fn whoever_started_again_outside_of_the_members_does_not_lead_by_the_vote_it_once_won() {
        let mut raft = RaftServerMetrics::<TypeConfig<crate::TokioRuntime>> {
            id: voter(1),
            vote: crate::Vote::new_committed(4, voter(1)),
            state: ServerState::Learner,
            current_leader: Some(voter(1)),
            membership_config: members(3, &[2]),
            committed_membership_config: members(3, &[2]),
        };
        assert_eq!(leader::<crate::TokioRuntime>(&raft), None);
        raft.current_leader = Some(voter(2));
        assert_eq!(leader::<crate::TokioRuntime>(&raft), Some(voter(2)));
        raft = RaftServerMetrics { current_leader: Some(voter(1)), state: ServerState::Leader, ..raft };
        assert_eq!(leader::<crate::TokioRuntime>(&raft), Some(voter(1)));
    }

    /// Leader and term as node 1 sees them.
    #[track_caller]
    fn check(own: Own, told: Option<Told>, known: Option<&Arc<Members>>, leader: Option<u8>, term: u64) {
        let standing = Standing::of(voter(1), own, told.as_ref(), known);
        assert_eq!((standing.leader, standing.term), (leader.map(voter), term));
    }

    #[test]
    fn a_member_believes_its_own_raft_while_that_lives() {
        let all = members(1, &[1, 2, 3]);
        check(own(Some(2), 5, all.clone(), true), Some(told(Some(3), 6, &all)), Some(&all), Some(2), 5);
        check(own(Some(2), 5, all.clone(), false), Some(told(Some(3), 6, &all)), Some(&all), Some(3), 6);
    }

    #[test]
    fn a_member_believes_nothing_older_than_its_own_raft() {
        let all = members(1, &[1, 2, 3]);
        check(own(None, 7, all.clone(), false), Some(told(Some(3), 6, &all)), Some(&all), None, 7);
    }

    #[test]
    fn who_is_out_believes_what_it_is_told_whatever_its_raft_remembers() {
        let (old, new) = (members(1, &[1, 2, 3]), members(9, &[2, 3, 4]));
        check(own(Some(2), 7, old.clone(), false), Some(told(Some(4), 6, &new)), Some(&new), Some(4), 6);
        // Told nothing lately, it knows of no leader any more.
        check(own(Some(2), 7, old, false), None, Some(&new), None, 7);
    }

    #[test]
    fn who_lost_its_raft_believes_what_it_is_told_and_never_what_that_knew_last() {
        let all = members(1, &[1, 2, 3]);
        let failed = |leader| Own { failed: true, ..own(leader, 7, all.clone(), false) };
        check(failed(Some(1)), Some(told(Some(2), 6, &all)), Some(&all), Some(2), 6);
        check(failed(Some(1)), None, None, None, 7);
        check(failed(Some(3)), None, Some(&all), None, 7);
    }

    #[test]
    fn nobody_is_made_leader_by_hearsay() {
        let all = members(1, &[1, 2, 3]);
        check(own(None, 5, all.clone(), false), Some(told(Some(1), 6, &all)), Some(&all), None, 6);
    }

    #[test]
    fn the_newer_membership_holds_whoever_knows_it() {
        let (old, new) = (members(1, &[1]), members(9, &[1, 2, 3]));
        let of = |raft: &Arc<Members>, told: &Arc<Members>| {
            Standing::of(voter(1), own(None, 1, raft.clone(), true), None, Some(told)).members
        };
        assert_eq!((of(&old, &new), of(&new, &old)), (new.clone(), new));
    }
}
