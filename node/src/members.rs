//! The replicated node set ([`roster`]) as the shells read it: who is trusted, and under which name.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use skein_control::node::roster::{self, PREFIX};
use skein_net::identity::{NodeId, StoreId};
use skein_net::tls::{Standing, Trust};
use skein_podnet::Subnet;
use skein_raft_store::{State, VoterId};
use tokio::sync::watch;

/// What the cluster remembers of one node.
pub(crate) type Record = roster::Record<NodeId, StoreId, Subnet>;

/// The name under which a node votes.
pub(crate) fn voter(record: &Record) -> VoterId {
    VoterId { node: record.node.0, store: record.store.0 }
}

/// The node set as this node's replica has it. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Members {
    records: Arc<RwLock<BTreeMap<NodeId, Record>>>,
    edition: Arc<watch::Sender<u64>>,
}

impl Members {
    /// Takes over everything in `state`.
    pub(crate) fn load(&self, state: &State) {
        let records =
            state.range(PREFIX, None).filter_map(|(_, object)| serde_json::from_slice(&object.value).ok());
        *self.write() = records.map(|record: Record| (record.node, record)).collect();
        self.edition.send_modify(|edition| *edition += 1);
    }

    /// Takes over one change of the map, if it is about a member. Returns whether it was.
    pub(crate) fn apply(&self, key: &str, value: Option<&[u8]>) -> bool {
        let Some(node) = key.strip_prefix(PREFIX).and_then(|id| id.parse().ok()) else { return false };
        match value.and_then(|bytes| serde_json::from_slice(bytes).ok()) {
            Some(record) => self.write().insert(node, record),
            None => self.write().remove(&node),
        };
        self.edition.send_modify(|edition| *edition += 1);
        true
    }

    /// Wakes with each change of the set.
    pub(crate) fn editions(&self) -> watch::Receiver<u64> {
        self.edition.subscribe()
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

    /// Everybody who is a member or was one, by id.
    pub(crate) fn all(&self) -> BTreeMap<NodeId, Record> {
        self.records.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<Record> {
        self.ever(node).filter(|record| !record.removed)
    }

    /// Also of one that is no member any more.
    pub(crate) fn ever(&self, node: NodeId) -> Option<Record> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        records.get(&node).cloned()
    }

    /// Everybody who was a member and is none any more.
    pub(crate) fn removed(&self) -> BTreeMap<NodeId, Record> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let removed = records.iter().filter(|(_, record)| record.removed);
        removed.map(|(id, record)| (*id, record.clone())).collect()
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
