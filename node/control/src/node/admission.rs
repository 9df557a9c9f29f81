//! Whose place a machine takes that joins: a new one, its own from before, or that of a lost one.
//!
//! A name is one member's. Another machine of that name is refused, so that two that were set up alike do not throw
//! each other out, unless its token gives it the place of a member that is lost: then one command ends that
//! membership and begins the new one, which goes on with the name, the pods' addresses and the labels.
//!
//! Not here: whether a token is good ([`skein_net::token`] knows).
//!
//! [`skein_net::token`]: https://docs.rs/skein-net

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use skein_api::write::{Change, Expect, Write};

use super::authority::Trust;
use super::departure;
use super::roster::{self, Member, Record};
use crate::node_health::{is_pinned, unreachable_since};
use crate::view::{View, key_of};

/// The start of the key of a token's record; its id follows.
pub const TOKENS: &str = "skein/tokens//";
/// The start of the key by which a node has a range of the pods' addresses; the range's first address follows.
pub const SUBNETS: &str = "skein/subnets//";
/// The start of the key that says which nodes have an image that somebody loaded.
pub const IMAGES: &str = "skein/images//";

/// Labels that each node writes for itself.
const OWN_LABELS: [&str; 2] = ["kubernetes.io/", "node.kubernetes.io/"];

/// A machine whose token is good.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer<'a> {
    /// Its id.
    pub node: &'a str,
    /// What it calls itself.
    pub name: &'a str,
    /// Whose place its token gives, if it does.
    pub replaces: Option<&'a str>,
}

/// Where a machine belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere yet.
    New,
    /// Where it was: its key has a record.
    Again,
    /// Where a lost member was.
    Of(Former),
}

/// A member whose place another machine takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    /// Its id.
    pub node: String,
    /// The labels that were given to its Node.
    pub labels: BTreeMap<String, String>,
    /// What ends its membership; to be written with the new record.
    pub writes: Vec<Write>,
}

/// Why a machine has no place. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A member has its name.
    #[error("another node is called {0:?}")]
    NameTaken(String),
    /// Its key is that of a member whose membership has ended.
    #[error("this node was removed")]
    Removed,
    /// The token is for the place of another one.
    #[error(
        "this token is for the machine that takes the place of {place:?}, and this one is called {name:?}; give it that name with: --name {place}"
    )]
    OtherName {
        /// Whose place the token gives.
        place: String,
        /// What the machine calls itself.
        name: String,
    },
    /// The tokens of before end with the authorities.
    #[error(
        "all authorities of the cluster are being made anew, and the tokens of before have ended with that; take a new one in a moment: skein token create"
    )]
    TokensEnd,
    /// Nobody is lost there.
    #[error("the node {0:?} is alive, and keeps its place; to end its membership first: skein remove {0}")]
    Alive(String),
    /// Nobody is there.
    #[error(
        "there is no member called {0:?}, so its name is free; an ordinary token will do: skein token create"
    )]
    NoMember(String),
}

/// Which range of pods' addresses a new member gets: the first that nobody ever had; once all were given away, of those
/// whose members have gone the one that has been free for the longest, so that who may still take an address for the old
/// pod's has had all the time there is. `None` while members have all of them.
///
/// * `ranges`: all there are.
/// * `records`: every record that there is, with the revision of its last change: that of one that has gone does not
///   change any more. What is decided is to be written on condition that the range's claim is as it was in the same state.
pub fn range<Node, Store, Range: Ord>(
    ranges: impl IntoIterator<Item = Range>,
    records: impl IntoIterator<Item = (u64, Record<Node, Store, Range>)>,
) -> Option<Range> {
    // When the last one that had it went; `None`: a member has it.
    let mut given: BTreeMap<Range, Option<u64>> = BTreeMap::new();
    for (revision, record) in records {
        let gone = record.removed.then_some(revision);
        given
            .entry(record.subnet)
            .and_modify(|since| *since = since.zip(gone).map(|(one, other)| one.max(other)))
            .or_insert(gone);
    }
    let free = ranges.into_iter().filter_map(|range| match given.get(&range) {
        None => Some((0, range)),
        Some(gone) => gone.map(|revision| (revision, range)),
    });
    // The first of those that nobody ever had.
    free.min_by_key(|(revision, _)| *revision).map(|(_, range)| range)
}

/// Whether a token may be made, or used, while `trust` is what the map says of the authorities. Whoever uses one makes its
/// command conditional on that record: a machine that was stolen knows tokens, and must not come back by one.
pub fn may_use_tokens(trust: Option<&Trust>) -> Result<(), Refusal> {
    match trust.is_some_and(Trust::is_ending) {
        true => Err(Refusal::TokensEnd),
        false => Ok(()),
    }
}

/// Says which place a machine takes.
pub fn place(view: &View, newcomer: &Newcomer<'_>) -> Result<Place, Refusal> {
    let &Newcomer { node, name, replaces } = newcomer;
    if let Some(place) = replaces.filter(|place| *place != name) {
        return Err(Refusal::OtherName { place: place.to_owned(), name: name.to_owned() });
    }
    let own = view.named::<Member>("", node);
    if own.is_some_and(|member| member.record.removed) {
        return Err(Refusal::Removed);
    }
    match roster::named(view, name).filter(|record| record.node != node) {
        Some(_) if replaces.is_none() => Err(Refusal::NameTaken(name.to_owned())),
        Some(record) => former(view, record).map(Place::Of),
        None if own.is_some() => Ok(Place::Again),
        None => Ok(Place::New),
    }
}

/// Whether a token may be made that gives the place of the member `name`.
pub fn may_give_place(view: &View, name: &str) -> Result<(), Refusal> {
    let record = roster::named(view, name).ok_or_else(|| Refusal::NoMember(name.to_owned()))?;
    former(view, record).map(drop)
}

/// Whether pods are still bound to a node that is not there yet: to one of its name that has gone. They are replaced
/// before it comes, so that nobody takes them for its own. Those that name the node themselves wait for just that one.
pub fn is_haunted(view: &View, name: &str) -> bool {
    view.named::<Node>("", name).is_none() && view.pods_on(name).any(|(_, pod)| !is_pinned(pod))
}

fn former(view: &View, record: &Record) -> Result<Former, Refusal> {
    let node = view.named::<Node>("", &record.name);
    if node.is_some_and(|node| unreachable_since(node).is_none()) {
        return Err(Refusal::Alive(record.name.clone()));
    }
    let is_given = |label: &str| !OWN_LABELS.iter().any(|own| label.starts_with(own));
    let labels = node.and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
    let labels = labels.into_iter().filter(|(label, _)| is_given(label)).collect();
    let ended = departure::ended(record, departure::Cause::RemovalNow);
    let changes = [
        (key_of::<Member>("", &record.node), Change::Put(ended.to_bytes())),
        (key_of::<Node>("", &record.name), Change::Delete),
    ];
    let writes = changes.into_iter().filter_map(|(key, change)| {
        let expect = Expect::Revision(view.stored(&key)?.revision);
        Some(Write { key: key.to_string(), expect, change })
    });
    Ok(Former { node: record.node.clone(), labels, writes: writes.collect() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::world::World;

    /// The members of a cluster with few ranges, and who of them is gone.
    struct Ranges {
        records: Vec<(u64, Record<usize, (), u8>)>,
        revision: u64,
        /// Those that are free and were given away, the longest free first.
        freed: Vec<u8>,
    }

    impl Ranges {
        const ALL: u8 = 6;

        fn new() -> Ranges {
            Ranges { records: Vec::new(), revision: 1, freed: Vec::new() }
        }

        fn join(&mut self) -> Option<u8> {
            let subnet = range(0..Self::ALL, self.records.iter().cloned())?;
            let record = json!({
                "node": self.records.len(), "store": null, "name": "", "addresses": [], "subnet": subnet,
                "joined_ms": 0, "fresh": true,
            });
            self.revision += 1;
            self.records.push((self.revision, serde_json::from_value(record).unwrap()));
            Some(subnet)
        }

        fn present(&self) -> Vec<usize> {
            (0..self.records.len()).filter(|at| !self.records[*at].1.removed).collect()
        }

        fn go(&mut self, node: usize) {
            self.revision += 1;
            let (revision, record) = &mut self.records[node];
            (*revision, record.removed) = (self.revision, true);
            self.freed.push(record.subnet);
        }
    }

    #[test]
    fn a_range_is_given_again_when_there_is_no_other_and_the_longest_free_one_first() {
        let mut ranges = Ranges::new();
        for expected in 0..4 {
            assert_eq!(ranges.join(), Some(expected));
        }
        for node in [2, 0] {
            ranges.go(node);
        }
        let given: Vec<_> = std::iter::from_fn(|| ranges.join()).collect();
        assert_eq!(given, [4, 5, 2, 0]);
        ranges.go(1);
        assert_eq!((ranges.join(), ranges.join()), (Some(1), None));
    }

    #[test]
    fn a_thousand_machines_come_and_go() {
        let mut ranges = Ranges::new();
        for _ in 0..1000 {
            let subnet = ranges.join().expect("one is free");
            let all = ranges.present();
            if all.len() == usize::from(Ranges::ALL) {
                ranges.go(all[usize::from(subnet) % all.len()]);
            }
        }
    }

    proptest! {
        /// Whoever comes and goes, no two members have one range, and a machine is refused only while members have all.
        #[test]
        fn members_never_share_a_range(steps in prop::collection::vec((any::<bool>(), any::<u16>()), 1..200)) {
            let mut ranges = Ranges::new();
            for (joins, which) in steps {
                let present = ranges.present();
                if joins {
                    let never = !(0..Ranges::ALL).all(|range| ranges.records.iter().any(|(_, it)| it.subnet == range));
                    match ranges.join() {
                        Some(subnet) if !never => prop_assert_eq!(subnet, ranges.freed.remove(0)),
                        Some(_) => {}
                        None => prop_assert_eq!(present.len(), usize::from(Ranges::ALL)),
                    }
                } else if !present.is_empty() {
                    ranges.go(present[usize::from(which) % present.len()]);
                }
                let present = ranges.present();
                let shared: std::collections::BTreeSet<u8> =
                    present.iter().map(|node| ranges.records[*node].1.subnet).collect();
                prop_assert_eq!(shared.len(), present.len());
            }
        }
    }

    fn joins(world: &World, node: &str, name: &str, replaces: Option<&str>) -> Result<Place, Refusal> {
        place(&world.view, &Newcomer { node, name, replaces })
    }

    fn lose(world: &mut World, name: &str) {
        world.lose(name);
        world.settle();
    }

    #[test]
    fn a_new_machine_has_a_place_of_its_own_and_one_that_asks_again_its_old_one() {
        let world = World::with_nodes(&["a", "b"]);
        assert_eq!(joins(&world, "c", "c", None), Ok(Place::New));
        assert_eq!(joins(&world, "b", "b", None), Ok(Place::Again));
        // Under another name, too.
        assert_eq!(joins(&world, "b", "x", None), Ok(Place::Again));
        assert_eq!(joins(&world, "b", "a", None), Err(Refusal::NameTaken("a".into())));
    }

    #[test]
    fn no_token_counts_while_all_that_was_made_is_about_to_end() {
        let mut world = World::with_nodes(&["a"]);
        world.found_authorities();
        let trust = |world: &World| {
            let record =
                world.view.get::<super::super::authority::Authorities>(super::super::authority::TRUST);
            record.expect("there is a record").trust.clone()
        };
        let calm = trust(&world);
        assert_eq!((may_use_tokens(None), may_use_tokens(Some(&calm))), (Ok(()), Ok(())));
        assert_eq!(may_use_tokens(Some(&calm.stolen(1))), Err(Refusal::TokensEnd));
    }

    /// Two machines called `raspberrypi` must not throw each other out.
    #[test]
    fn a_taken_name_is_refused_whether_its_member_is_lost_or_not() {
        let mut world = World::with_nodes(&["a", "b"]);
        assert_eq!(joins(&world, "c", "b", None), Err(Refusal::NameTaken("b".into())));
        lose(&mut world, "b");
        assert_eq!(joins(&world, "c", "b", None), Err(Refusal::NameTaken("b".into())));
    }

    #[test]
    fn a_key_that_was_removed_has_no_place_by_any_token() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.edit::<Member>("skein/members//b", |member| member.record.removed = true);
        assert_eq!(joins(&world, "b", "b", None), Err(Refusal::Removed));
        assert_eq!(joins(&world, "b", "b", Some("b")), Err(Refusal::Removed));
        assert_eq!(joins(&world, "c", "b", None), Ok(Place::New), "the name is free");
    }

    #[test]
    fn a_token_gives_the_place_of_a_lost_member_and_of_no_other() {
        let mut world = World::with_nodes(&["a", "b"]);
        let alive = Err(Refusal::Alive("b".into()));
        assert_eq!(may_give_place(&world.view, "b"), alive);
        assert_eq!(may_give_place(&world.view, "x"), Err(Refusal::NoMember("x".into())));
        assert_eq!(joins(&world, "c", "b", Some("b")).map(drop), alive);
        lose(&mut world, "b");
        assert_eq!(may_give_place(&world.view, "b"), Ok(()));
        assert!(matches!(joins(&world, "c", "b", Some("b")), Ok(Place::Of(former)) if former.node == "b"));
        let other = Refusal::OtherName { place: "b".into(), name: "c".into() };
        assert_eq!(joins(&world, "c", "c", Some("b")), Err(other));
        // It was taken out meanwhile, by other means.
        world.edit::<Member>("skein/members//b", |member| member.record.removed = true);
        world.settle();
        assert_eq!(joins(&world, "c", "b", Some("b")), Ok(Place::New));
    }

    #[test]
    fn the_former_member_goes_with_its_node_and_leaves_the_labels_that_were_given_to_it() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.edit::<Node>("core/nodes//b", |node| {
            let labels = node.metadata.labels.get_or_insert_default();
            labels.insert("shelf".into(), "top".into());
            labels.insert("kubernetes.io/arch".into(), "arm64".into());
        });
        lose(&mut world, "b");
        let Ok(Place::Of(former)) = joins(&world, "c", "b", Some("b")) else { panic!("b is lost") };
        assert_eq!(former.labels, [("shelf".to_owned(), "top".to_owned())].into());
        world.write(former.writes);
        let record = world.member("b");
        assert!(record.removed && record.expelled && record.departure.is_none());
        assert!(world.view.named::<Node>("", "b").is_none());
    }

    #[test]
    fn pods_of_one_that_has_gone_are_waited_for_before_another_one_comes_under_its_name() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.put(crate::world::deployment("web", 4, serde_json::json!({})));
        world.live(|_| {});
        assert!(!is_haunted(&world.view, "b"));
        world.edit::<Member>("skein/members//b", |member| member.record.removed = true);
        world.delete("core/nodes//b");
        assert!(is_haunted(&world.view, "b"));
        world.settle();
        assert!(!is_haunted(&world.view, "b"));
        // Such a one comes back as soon as a node of that name does, and never otherwise.
        world.put(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "pinned", "namespace": "default" },
            "spec": { "nodeName": "b", "containers": [{ "name": "main", "image": "x" }] },
        }));
        world.settle();
        assert_eq!(world.view.pods_on("b").count(), 1);
        assert!(!is_haunted(&world.view, "b"));
    }
}
