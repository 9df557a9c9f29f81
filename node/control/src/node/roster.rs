//! Who is a member: the replicated node set.
//!
//! One record a node, `skein/members//<node id>`, never deleted: a removed node's record says so for ever,
//! because its key must not come back. What it says decides trust between nodes; liveness is elsewhere.
//!
//! A Node object is the member's face in the API and nothing more: it goes with the membership, and one that
//! belongs to nobody is deleted ([`plan`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use skein_api::write::{Change, Expect, Write};

use super::departure::{Departure, Kept};
use crate::draft::Draft;
use crate::meta;
use crate::view::{Key, Kind, View, key_of};

/// The start of every record's key; the node's id follows.
pub const PREFIX: &str = "skein/members//";

/// What the cluster remembers of one node.
///
/// Planners take ids for text; shells read the same JSON with ids of their own types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<Node = String, Store = String, Subnet = String> {
    /// Its id: what its key makes it.
    pub node: Node,
    /// Its data directory: with the node id, its name as a voter.
    pub store: Store,
    /// What people call it, and its Node object.
    pub name: String,
    /// Where it was when it joined; gossip knows better soon.
    pub addresses: Vec<SocketAddr>,
    /// Its pods' addresses.
    pub subnet: Subnet,
    /// Milliseconds since 1970, the leader's stamp.
    pub joined_ms: u64,
    /// When it was taken out of the voters, the newest last, within a day.
    #[serde(default)]
    pub removals_ms: Vec<u64>,
    /// It never lost a vote by being down, and has none now: growing with it is formation
    /// ([`crate::voters::is_fresh_after`]).
    pub fresh: bool,
    /// Its vote is to be given to another, and its copy of the log with it.
    #[serde(default)]
    pub leaving: bool,
    /// It is no member any more.
    #[serde(default)]
    pub removed: bool,
    /// Others ended its membership: certificates that were issued there ended with it.
    #[serde(default)]
    pub expelled: bool,
    /// It is on its way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub departure: Option<Departure>,
    /// Why it is still here, though it was to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// What its Node is still to get: the labels of the one whose place it has taken.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl<N, S, P> Record<N, S, P> {
    /// Of a machine that was let in now, and has not voted yet.
    pub fn new(
        node: N,
        store: S,
        name: String,
        addresses: Vec<SocketAddr>,
        subnet: P,
        joined_ms: u64,
    ) -> Record<N, S, P> {
        Record {
            node,
            store,
            name,
            addresses,
            subnet,
            joined_ms,
            removals_ms: Vec::new(),
            fresh: true,
            leaving: false,
            removed: false,
            expelled: false,
            departure: None,
            kept: None,
            labels: BTreeMap::new(),
        }
    }

    /// The same of a cluster's first member, which votes from the beginning.
    pub fn founder(self) -> Record<N, S, P> {
        Record { fresh: false, ..self }
    }

    /// The key of a node's record.
    pub fn key(node: N) -> String
    where
        N: Display,
    {
        format!("{PREFIX}{node}")
    }

    /// Whether it is a member, and nobody wants it to go.
    pub fn stays(&self) -> bool {
        !self.removed && !self.leaving && self.departure.is_none()
    }

    /// The record in a new incarnation of the cluster: nobody but its founder has voted there yet.
    pub fn reborn(self) -> Self {
        Record { removals_ms: Vec::new(), fresh: true, ..self }
    }

    /// What the map keeps.
    pub fn to_bytes(&self) -> Vec<u8>
    where
        N: Serialize,
        S: Serialize,
        P: Serialize,
    {
        serde_json::to_vec(self).expect("plain data has no key that is not a text")
    }
}

/// A record as the view keeps it: an object like others, of which no user sees anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Record", into = "Record")]
pub struct Member {
    /// Empty: a record has no owners, no labels, no namespace.
    pub metadata: ObjectMeta,
    /// What it says.
    pub record: Record,
}

impl From<Record> for Member {
    fn from(record: Record) -> Member {
        Member { metadata: ObjectMeta::default(), record }
    }
}

impl From<Member> for Record {
    fn from(member: Member) -> Record {
        member.record
    }
}

/// `write` in the name of a member: it takes effect only while the record is as it was `held`, so that nothing
/// is written for a node that has gone meanwhile. `None` if it is no member.
///
/// * `key`, `held`: the record's key, its revision and its bytes, as the writer knows them.
pub fn as_member(key: &str, held: Option<(u64, &[u8])>, write: Write) -> Option<[Write; 2]> {
    let (revision, bytes) = held?;
    let record: Record = serde_json::from_slice(bytes).ok()?;
    let still = Write { key: key.to_owned(), expect: Expect::Revision(revision), change: Change::Check };
    (!record.removed).then_some([still, write])
}

/// Everybody who is a member, in the order of their ids.
pub(crate) fn present(view: &View) -> impl Iterator<Item = &Record> {
    view.all::<Member>().map(|(_, member)| &member.record).filter(|record| !record.removed)
}

/// The member of this name.
pub(crate) fn named<'v>(view: &'v View, name: &str) -> Option<&'v Record> {
    present(view).find(|record| record.name == name)
}

/// Deletes each Node that is no member's: of one that has left, or made by hand. Its pods follow from that. Gives the
/// labels that a member has inherited to its Node, once that is there.
pub(crate) fn plan(draft: &mut Draft<'_>) {
    if !draft.changed().any_under(Node::PREFIX) && !draft.changed().any_under(Member::PREFIX) {
        return;
    }
    let names: BTreeSet<&str> = present(draft.view()).map(|record| record.name.as_str()).collect();
    let nodes = draft.view().all::<Node>();
    let nobodys: Vec<Key> = nodes
        .filter(|(_, node)| !names.contains(meta::name(&node.metadata)))
        .map(|(key, _)| key.clone())
        .collect();
    for key in &nobodys {
        draft.delete(key);
    }
    let heirs = present(draft.view()).filter(|record| !record.labels.is_empty());
    let heirs: Vec<Record> = heirs.cloned().collect();
    for record in heirs {
        let (key, node_key) = (key_of::<Member>("", &record.node), key_of::<Node>("", &record.name));
        if draft.view().get::<Node>(&node_key).is_none() {
            continue;
        }
        draft.together(|draft| {
            draft.edit::<Node>(&node_key, |node| {
                let labels = node.metadata.labels.get_or_insert_default();
                for (label, value) in &record.labels {
                    labels.entry(label.clone()).or_insert_with(|| value.clone());
                }
            });
            draft.edit::<Member>(&key, |member| member.record.labels.clear());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(removed: bool) -> Record {
        let subnet = "10.42.0.0/24".into();
        Record { removed, ..Record::new("0a".into(), "0b".into(), "one".into(), Vec::new(), subnet, 1) }
    }

    #[test]
    fn a_record_of_an_older_build_is_read() {
        let old = br#"{"node":"0a","store":"0b","name":"one","addresses":["192.0.2.1:7946"],"subnet":"10.42.0.0/24","joined_ms":1,"fresh":true}"#;
        let read: Record = serde_json::from_slice(old).unwrap();
        assert_eq!(read, Record { addresses: vec!["192.0.2.1:7946".parse().unwrap()], ..record(false) });
    }

    #[test]
    fn inherited_labels_come_to_the_node_once_it_is_there_and_never_over_its_own() {
        let mut world = crate::world::World::with_nodes(&["a", "b"]);
        let node = world.node("b");
        world.delete("core/nodes//b");
        let inherited = [("shelf", "top"), ("kubernetes.io/hostname", "x")];
        let inherited = inherited.map(|(label, value)| (label.to_owned(), value.to_owned()));
        world.edit::<Member>("skein/members//b", |member| member.record.labels = inherited.into());
        world.settle();
        assert!(!world.member("b").labels.is_empty());
        let mut labels = node.metadata.labels.clone().unwrap_or_default();
        labels.insert("kubernetes.io/hostname".into(), "b".into());
        let mut node = (*node).clone();
        node.metadata.labels = Some(labels.clone());
        world.put(serde_json::to_value(&node).unwrap());
        world.settle();
        assert!(world.member("b").labels.is_empty());
        labels.insert("shelf".into(), "top".into());
        assert_eq!(world.node("b").metadata.labels, Some(labels));
    }

    #[test]
    fn a_node_writes_as_a_member_only_while_it_is_one() {
        let write = || Write::delete("core/nodes//one", 3);
        let key = Record::<String>::key("0a".into());
        let bytes = record(false).to_bytes();
        let [still, own] = as_member(&key, Some((7, &bytes)), write()).unwrap();
        assert_eq!(
            (still.key, still.expect, still.change),
            (key.clone(), Expect::Revision(7), Change::Check)
        );
        assert_eq!(own, write());
        assert_eq!(as_member(&key, Some((7, &record(true).to_bytes())), write()), None);
        assert_eq!(as_member(&key, Some((7, b"{")), write()), None);
        assert_eq!(as_member(&key, None, write()), None);
    }
}
