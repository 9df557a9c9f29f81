//! What openraft's generic types are made of here.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use openraft::impls::{BoxedErrorSource, EmptyNode, InlineBatch, ProgressResponder};
use openraft::vote::leader_id_std;
use openraft::{AsyncRuntime, OptionalSend, RaftTypeConfig};

use crate::{Answer, Command, VoterId};

/// Openraft's types over the runtime `Rt`: tokio in a node, virtual time in the simulator.
///
/// A member has no address here ([`EmptyNode`]): addresses are gossip's, so a machine that wakes
/// with a new one needs no entry in the log. One leader a term, as in the Raft paper.
pub struct TypeConfig<Rt>(PhantomData<fn() -> Rt>);

/// A log position: the term of the leader that proposed the entry, and the index.
pub type LogId = openraft::LogId<CommittedLeaderId>;
/// A leader known to have won its election: its term says it all.
pub type CommittedLeaderId = leader_id_std::CommittedLeaderId<u64>;
/// A voter's promise.
pub type Vote = openraft::Vote<leader_id_std::LeaderId<u64, VoterId>>;
/// What an entry carries: nothing (a new leader), a command, or a membership.
pub type Payload = openraft::EntryPayload<Command, VoterId, EmptyNode>;
/// One entry of the log.
pub type Entry = openraft::Entry<CommittedLeaderId, Payload>;
/// The voters and learners.
pub type Membership = openraft::Membership<VoterId, EmptyNode>;

impl<Rt: AsyncRuntime> RaftTypeConfig for TypeConfig<Rt> {
    type D = Command;
    type R = Answer;
    type NodeId = VoterId;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, VoterId>;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = Rt;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

// By hand, because a derive would ask all of this of `Rt` as well.
impl<Rt> Clone for TypeConfig<Rt> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<Rt> Copy for TypeConfig<Rt> {}
impl<Rt> Default for TypeConfig<Rt> {
    fn default() -> Self {
        TypeConfig(PhantomData)
    }
}
impl<Rt> fmt::Debug for TypeConfig<Rt> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}
impl<Rt> PartialEq for TypeConfig<Rt> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<Rt> Eq for TypeConfig<Rt> {}
impl<Rt> PartialOrd for TypeConfig<Rt> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<Rt> Ord for TypeConfig<Rt> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}
