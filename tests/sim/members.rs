//! The members' records in the map.

use std::net::SocketAddr;

use skein_control::node::roster;
use skein_net::identity::{NodeId, StoreId};
use skein_raft_store::State;

use crate::world::{node_name, number_of, voter_id};

/// A record as a node reads it.
pub(crate) type Record = roster::Record<NodeId, StoreId>;

pub(crate) fn key(node: NodeId) -> String {
    Record::key(node)
}

/// What a node's replica says of a member, and its revision.
pub(crate) fn read(state: &State, node: NodeId) -> Option<(u64, Record)> {
    let object = state.get(&key(node))?;
    Some((object.mod_rev, serde_json::from_slice(&object.value).ok()?))
}

/// Of a machine that has just been let in, and that is at this address.
pub(crate) fn record(node: NodeId, address: SocketAddr) -> Record {
    let store = StoreId(voter_id(node, 1).store);
    Record::new(node, store, node_name(number_of(node)), vec![address], String::new(), 0)
}
