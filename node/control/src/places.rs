//! Where a silent node's kernel may be tried, and which Node object is a member's.
//!
//! A node that runs says in gossip where its API is. Of one that has not come back since everything was off,
//! gossip knows nothing: then every address counts at which it was ever seen, from the address book on this
//! node's disk, its Node object and its record as a member. Such an address is a guess: another machine may have it
//! by now, and what that one answers would speak for a machine that is off. So addresses of nodes that live are
//! left out. What else answers there is believed, as the address of a stranger cannot be told from the node's own:
//! that only makes the verdict later.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::judge::Answer;
use crate::meta::{self, API_PORT};
use crate::node_health::unreachable_since;
use crate::view::View;

/// The annotation of a Node object that names the member it belongs to.
pub const NODE_ID: &str = "skein.dev/node-id";
/// Places tried at once for one node: four addresses it may announce.
pub const PLACES_MAX: usize = 4;

/// One address at which a node's kernel may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its API, as far as is known.
    pub api: SocketAddr,
    /// Whether the port is what the node once said, and not what most nodes have.
    pub is_its_port: bool,
}

impl Place {
    /// What an answer from there says of the node. That nobody listens on a port that was guessed says that the
    /// kernel lives, and nothing of the daemon.
    pub fn means(&self, answer: Answer) -> Answer {
        match answer {
            Answer::Refused if !self.is_its_port => Answer::Echo,
            answer => answer,
        }
    }
}

/// All that one node knows of another one's addresses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    /// Where its API is, by its own word in gossip.
    pub gossiped: Option<SocketAddr>,
    /// Where it was seen, best guess first; the ports are those of traffic between nodes.
    pub seen: &'a [SocketAddr],
    /// Its Node object.
    pub node: Option<&'a Node>,
    /// Where it was when it joined, as `seen`.
    pub joined: &'a [SocketAddr],
}

/// The places to try for a node, best guess first, at most [`PLACES_MAX`]; none if nothing is known.
///
/// * `taken`: the addresses of this node and of the others that live, each with the port of that node's API:
///   see [`held_by`].
pub fn of(known: &Known<'_>, taken: &BTreeSet<SocketAddr>) -> Vec<Place> {
    if let Some(api) = known.gossiped.filter(|api| !taken.contains(api) && is_dialable(*api)) {
        return vec![Place { api, is_its_port: true }];
    }
    let port = known.node.and_then(api_port);
    let in_object = known.node.into_iter().flat_map(addresses_of);
    let guesses = known.seen.iter().copied().chain(in_object).chain(known.joined.iter().copied());
    let mut places: Vec<Place> = Vec::new();
    for mut api in guesses {
        api.set_port(port.unwrap_or(API_PORT));
        // Who shares an address with another node differs from it by its port, if that is known.
        let is_others = match port {
            Some(_) => taken.contains(&api),
            None => taken.iter().any(|held| held.ip() == api.ip()),
        };
        if !is_others && is_dialable(api) && !places.iter().any(|place| place.api == api) {
            places.push(Place { api, is_its_port: port.is_some() });
        }
    }
    places.truncate(PLACES_MAX);
    places
}

/// The addresses that a node which lives holds, for [`of`]: each with the port of its API.
pub fn held_by(api: SocketAddr, addresses: &[SocketAddr]) -> impl Iterator<Item = SocketAddr> {
    let others = addresses.iter().map(move |address| SocketAddr::new(address.ip(), api.port()));
    std::iter::once(api).chain(others)
}

/// What tries at several places say together: the best answer. In vain is what was in vain anywhere; only where
/// this machine itself could try nowhere, there was no try.
///
/// Panics without any try.
pub fn together<E>(tries: impl IntoIterator<Item = Result<Option<Answer>, E>>) -> Result<Option<Answer>, E> {
    let both = |one, other| match (one, other) {
        (Ok(one), Ok(other)) => Ok(Option::max(one, other)),
        (Ok(answer), Err(_)) | (Err(_), Ok(answer)) => Ok(answer),
        (Err(error), Err(_)) => Err(error),
    };
    tries.into_iter().reduce(both).expect("whoever tries has a place to try")
}

/// The Node object of a member: the one of its name, and if there is none the one that carries its id.
pub fn node_of<'v>(view: &'v View, id: &str, name: &str) -> Option<&'v Arc<Node>> {
    let is_its = |node: &Arc<Node>| {
        let annotations = node.metadata.annotations.as_ref();
        annotations.and_then(|annotations| annotations.get(NODE_ID)).is_some_and(|named| named == id)
    };
    let named = || view.all::<Node>().map(|(_, node)| node).find(|node| is_its(node));
    view.named::<Node>("", name).or_else(named)
}

/// Whether the log calls the node unreachable.
pub fn is_called_unreachable(node: &Node) -> bool {
    unreachable_since(node).is_some()
}

/// The port of its API, if the object says one that can be.
fn api_port(node: &Node) -> Option<u16> {
    u16::try_from(meta::api_port(node)?).ok().filter(|port| *port != 0)
}

fn addresses_of(node: &Node) -> Vec<SocketAddr> {
    meta::internal_ips(node)
        .filter_map(|address| Some(SocketAddr::new(address.parse().ok()?, API_PORT)))
        .collect()
}

fn is_dialable(address: SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn all(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| at(text)).collect()
    }

    fn node(addresses: &[&str], port: Option<i32>) -> Node {
        let addresses = addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip}));
        let mut status = json!({ "addresses": addresses.collect::<Vec<_>>() });
        if let Some(port) = port {
            status["daemonEndpoints"] = json!({ "kubeletEndpoint": { "Port": port } });
        }
        serde_json::from_value(json!({ "metadata": { "name": "a" }, "status": status })).expect("a Node")
    }

    /// What is tried, and whether the port is the node's own.
    #[track_caller]
    fn check(known: Known<'_>, taken: &[&str], expected: &[(&str, bool)]) {
        let found = of(&known, &all(taken).into_iter().collect());
        let found: Vec<(String, bool)> =
            found.iter().map(|place| (place.api.to_string(), place.is_its_port)).collect();
        let expected: Vec<(String, bool)> =
            expected.iter().map(|(api, is_its_port)| ((*api).to_owned(), *is_its_port)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_node_that_gossip_knows_is_tried_where_it_says_that_its_api_is() {
        let (seen, node) = (all(&["192.0.2.9:7946"]), node(&["192.0.2.8"], Some(7443)));
        let known =
            Known { gossiped: Some(at("192.0.2.1:7443")), seen: &seen, node: Some(&node), joined: &seen };
        check(known, &["192.0.2.2:6443"], &[("192.0.2.1:7443", true)]);
    }

    #[test]
    fn one_that_gossip_does_not_know_is_tried_wherever_it_was_seen_on_the_port_that_its_object_names() {
        let (seen, joined) =
            (all(&["192.0.2.9:7946", "192.0.2.7:7946"]), all(&["192.0.2.6:7946", "192.0.2.9:1"]));
        let node = node(&["192.0.2.8", "192.0.2.7"], Some(7443));
        let known = Known { gossiped: None, seen: &seen, node: Some(&node), joined: &joined };
        check(
            known,
            &[],
            &[
                ("192.0.2.9:7443", true),
                ("192.0.2.7:7443", true),
                ("192.0.2.8:7443", true),
                ("192.0.2.6:7443", true),
            ],
        );
    }

    #[test]
    fn each_source_alone_is_enough() {
        let (addresses, object) = (all(&["192.0.2.9:7946"]), node(&["192.0.2.9"], Some(7443)));
        check(Known { seen: &addresses, ..Known::default() }, &[], &[("192.0.2.9:6443", false)]);
        check(Known { joined: &addresses, ..Known::default() }, &[], &[("192.0.2.9:6443", false)]);
        check(Known { node: Some(&object), ..Known::default() }, &[], &[("192.0.2.9:7443", true)]);
        check(Known::default(), &[], &[]);
    }

    #[test]
    fn an_object_without_a_port_or_with_one_that_cannot_be_leaves_the_usual_one() {
        for port in [None, Some(0), Some(-1), Some(70_000)] {
            let object = node(&["192.0.2.9"], port);
            check(Known { node: Some(&object), ..Known::default() }, &[], &[("192.0.2.9:6443", false)]);
        }
    }

    /// After a power cut the router gave the address of the one that stays off to another node.
    #[test]
    fn an_address_that_another_node_has_by_now_is_left_out() {
        let seen = all(&["192.0.2.9:7946", "192.0.2.7:7946"]);
        let object = node(&["192.0.2.9"], Some(6443));
        for node in [None, Some(&object)] {
            let known = Known { seen: &seen, node, ..Known::default() };
            check(known, &["192.0.2.9:6443"], &[("192.0.2.7:6443", node.is_some())]);
        }
    }

    /// As on every virtual machine whose first interface is 10.0.2.15.
    #[test]
    fn a_node_that_calls_an_address_of_this_one_its_own_is_tried_where_it_was_seen() {
        let seen = all(&["192.168.56.3:7946"]);
        let known = Known { gossiped: Some(at("10.0.2.15:6443")), seen: &seen, ..Known::default() };
        check(known, &["10.0.2.15:6443"], &[("192.168.56.3:6443", false)]);
    }

    #[test]
    fn nodes_that_share_an_address_are_told_apart_by_their_ports() {
        let (seen, object) = (all(&["127.0.0.1:7947"]), node(&["127.0.0.1"], Some(6444)));
        let taken = ["127.0.0.1:6443"];
        check(
            Known { gossiped: Some(at("127.0.0.1:6444")), ..Known::default() },
            &taken,
            &[("127.0.0.1:6444", true)],
        );
        let known = Known { seen: &seen, node: Some(&object), ..Known::default() };
        check(known, &taken, &[("127.0.0.1:6444", true)]);
        check(Known { node: None, ..known }, &taken, &[]);
    }

    #[test]
    fn what_cannot_be_dialled_is_left_out_and_there_are_never_more_than_four() {
        let seen =
            all(&["0.0.0.0:1", "[ff02::1]:1", "[fe80::1%3]:1", "192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]);
        let more = all(&["192.0.2.4:1"]);
        let known =
            Known { gossiped: Some(at("0.0.0.0:6443")), seen: &seen, joined: &more, ..Known::default() };
        let ours = |text| (text, false);
        check(
            known,
            &[],
            &[
                ours("[fe80::1%3]:6443"),
                ours("192.0.2.1:6443"),
                ours("192.0.2.2:6443"),
                ours("192.0.2.3:6443"),
            ],
        );
    }

    #[test]
    fn a_node_that_lives_holds_all_its_addresses_with_the_port_of_its_api() {
        let held: Vec<SocketAddr> = held_by(at("192.0.2.1:7443"), &all(&["198.51.100.1:7946"])).collect();
        assert_eq!(held, all(&["192.0.2.1:7443", "198.51.100.1:7443"]));
    }

    #[test]
    fn nobody_listening_on_a_guessed_port_is_no_word_about_the_daemon() {
        let guessed = Place { api: at("192.0.2.1:6443"), is_its_port: false };
        let known = Place { is_its_port: true, ..guessed };
        assert_eq!(guessed.means(Answer::Refused), Answer::Echo);
        assert_eq!(known.means(Answer::Refused), Answer::Refused);
        for answer in [Answer::Echo, Answer::Accepts] {
            assert_eq!((guessed.means(answer), known.means(answer)), (answer, answer));
        }
    }

    #[test]
    fn tries_at_several_places_are_one_try() {
        let (none, echo, accepts) = (Ok(None), Ok(Some(Answer::Echo)), Ok(Some(Answer::Accepts)));
        assert_eq!(together([none, echo, accepts]), accepts);
        assert_eq!(together([Err("no route"), none]), none);
        assert_eq!(together([echo, Err("no route")]), echo);
        assert_eq!(together::<&str>([Err("no route"), Err("no device")]), Err("no route"));
    }

    fn view(nodes: &[(&str, &str)]) -> View {
        let mut view = View::default();
        for (revision, (name, id)) in (1..).zip(nodes) {
            let node = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": name, "uid": name, "annotations": { NODE_ID: id } },
                "spec": {}, "status": {},
            });
            view.apply(&format!("core/nodes//{name}"), Some(node.to_string().as_bytes()), revision);
        }
        view
    }

    #[test]
    fn the_object_of_a_member_is_the_one_of_its_name_or_else_the_one_that_carries_its_id() {
        let view = view(&[("old", "1"), ("kitchen", "2")]);
        let name = |id, name| node_of(&view, id, name).and_then(|node| node.metadata.name.clone());
        assert_eq!(name("2", "kitchen").as_deref(), Some("kitchen"));
        assert_eq!(name("1", "renamed").as_deref(), Some("old"));
        assert_eq!(name("3", "kitchen").as_deref(), Some("kitchen"), "taken over, and not written anew yet");
        assert_eq!(name("3", "cellar"), None);
    }
}
