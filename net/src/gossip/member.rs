//! A member as gossip sees it, and the identity under which it is spoken of.

use std::{net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::metadata::Metadata;
use crate::identity::NodeId;

/// Members one node will remember, the dead included. Far above what the protocol is made for (1,000),
/// low enough that a member gone mad cannot fill the memory of the others (4096 x 0.6 KiB).
pub const MEMBERS_MAX: usize = 4096;

/// One start of one node: what foca calls an identity.
///
/// The node is its address, so a restart or a rejoin renames a member and never adds a second one. Of two
/// identities of a node the greater stays; the order of the fields is that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MemberId {
    /// The node.
    pub node: NodeId,
    /// Raised durably at each start of the node.
    pub generation: u64,
    /// Drawn at each start, so that two processes with one key *and* one generation (clones of a disk)
    /// can be told apart. Which of them wins is chance, but the same for all who judge.
    pub instance: u32,
    /// Raised each time this process had to rejoin after the others had declared it down.
    pub renewal: u32,
}

impl MemberId {
    /// Whether both are of one process: then they differ in their renewals at most.
    pub fn same_process(&self, other: &Self) -> bool {
        (self.node, self.generation, self.instance) == (other.node, other.generation, other.instance)
    }
}

impl foca::Identity for MemberId {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        let renewal = self.renewal.checked_add(1)?;
        Some(Self { renewal, ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self > adversary
    }
}

/// What gossip believes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It answers, or nobody has said otherwise.
    Alive,
    /// Somebody got no answer; it has four probe periods to refute.
    Suspect,
    /// It did not refute. A hint, not a verdict.
    Down,
    /// It said goodbye.
    Left,
}

impl State {
    /// Whether the member takes part: alive or merely suspected.
    pub fn is_active(self) -> bool {
        matches!(self, State::Alive | State::Suspect)
    }
}

/// One member in the picture that gossip paints. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node, and which start of it is meant.
    pub id: MemberId,
    /// Raised by the member itself to refute a suspicion.
    pub incarnation: u16,
    /// What is believed of it.
    pub state: State,
    /// What it says about itself; `None` for the moments until that has arrived.
    pub metadata: Option<Arc<Metadata>>,
}

impl Member {
    /// The node.
    pub fn node(&self) -> NodeId {
        self.id.node
    }

    /// The name it gives itself, once known.
    pub fn name(&self) -> Option<&str> {
        self.metadata.as_ref().map(|metadata| metadata.name.as_str())
    }

    /// Where it says it listens for other nodes, best first.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.metadata.as_ref().map_or(&[], |metadata| &metadata.addresses)
    }
}

/// How a member changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// New here, back from `Down` or `Left`, or a suspicion was refuted.
    Alive,
    /// It has to refute, or it will be down.
    Suspect,
    /// It is believed dead.
    Down,
    /// It said goodbye.
    Left,
    /// The same node in a new process: connections to the old one are dead.
    Restarted,
    /// The same process under a new identity, because others had declared it down.
    Rejoined,
    /// It says something new about itself.
    Described,
    /// Down or gone for so long that it is no longer spoken of.
    Forgotten,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Change::Alive => "is alive",
            Change::Suspect => "is suspected to be down",
            Change::Down => "is down",
            Change::Left => "says goodbye",
            Change::Restarted => "was started anew",
            Change::Rejoined => "is back, after others had taken it for down",
            Change::Described => "says something new about itself",
            Change::Forgotten => "is no longer spoken of",
        })
    }
}
