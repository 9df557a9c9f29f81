//! The replicated node set: who was admitted, and what became of them.
//!
//! One record a node, `skein/members//<node id>`, never deleted: a removed node's record says so for ever,
//! because its key must not come back. What it says decides trust between nodes; liveness is elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use skein_net::identity::{NodeId, StoreId};
use skein_net::tls::{Standing, Trust};
use skein_podnet::Subnet;
use skein_raft_store::{State, VoterId};

pub(crate) const PREFIX: &str = "skein/members//";

/// What the cluster remembers of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) node: NodeId,
    /// Its data directory: with the node id, its name as a voter.
    pub(crate) store: StoreId,
    pub(crate) name: String,
    /// Where it was when it joined; gossip knows better soon.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Its pods' addresses.
    pub(crate) subnet: Subnet,
    /// Milliseconds since 1970, the leader's stamp.
    pub(crate) joined_ms: u64,
    /// When it was taken out of the voters, the newest last, within a day.
    #[serde(default)]
    pub(crate) removals_ms: Vec<u64>,
    /// It never voted: growing with it is formation.
    pub(crate) fresh: bool,
    /// It asked to leave.
    #[serde(default)]
    pub(crate) leaving: bool,
    /// It is no member any more.
    #[serde(default)]
    pub(crate) removed: bool,
}

impl Record {
    pub(crate) fn key(node: NodeId) -> String {
        format!("{PREFIX}{node}")
    }

    pub(crate) fn voter(&self) -> VoterId {
        VoterId { node: self.node.0, store: self.store.0 }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data has no key that is not a text")
    }
}

/// The node set as this node's replica has it. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Members {
    records: Arc<RwLock<BTreeMap<NodeId, Record>>>,
}

impl Members {
    /// Takes over everything in `state`.
    pub(crate) fn load(&self, state: &State) {
        let records =
            state.range(PREFIX, None).filter_map(|(_, object)| serde_json::from_slice(&object.value).ok());
        *self.write() = records.map(|record: Record| (record.node, record)).collect();
    }

    /// Takes over one change of the map, if it is about a member. Returns whether it was.
    pub(crate) fn apply(&self, key: &str, value: Option<&[u8]>) -> bool {
        let Some(node) = key.strip_prefix(PREFIX).and_then(|id| id.parse().ok()) else { return false };
        match value.and_then(|bytes| serde_json::from_slice(bytes).ok()) {
            Some(record) => self.write().insert(node, record),
            None => self.write().remove(&node),
        };
        true
    }

    /// Everybody who is a member, by id.
    pub(crate) fn present(&self) -> BTreeMap<NodeId, Record> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        records
            .iter()
            .filter(|(_, record)| !record.removed)
            .map(|(id, record)| (*id, record.clone()))
            .collect()
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<Record> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        records.get(&node).filter(|record| !record.removed).cloned()
    }

    /// Everybody who was a member and is none any more.
    pub(crate) fn removed(&self) -> BTreeSet<NodeId> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        records.iter().filter(|(_, record)| record.removed).map(|(id, _)| *id).collect()
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<Record> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        records.values().find(|record| !record.removed && record.name == name).cloned()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<NodeId, Record>> {
        self.records.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trust for Members {
    fn judge(&self, node: NodeId) -> Standing {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        match records.get(&node) {
            Some(record) if record.removed => Standing::Removed,
            Some(_) => Standing::Member,
            None => Standing::Unknown,
        }
    }
}
