//! What is wrong with the ways between the nodes, as one of them sees it: sentences for `skein status`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Names in one sentence; the others are counted.
const NAMES_MAX: usize = 4;

/// What a node knows of where it and the others are.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// Where this node takes packets of others.
    pub listen: Option<SocketAddr>,
    /// Every address of this machine.
    pub ips: BTreeSet<IpAddr>,
    /// What others are told of where this node is, best first.
    pub told: Vec<SocketAddr>,
    /// Whether the operator chose what others are told.
    pub is_advertised: bool,
    /// The members that are there, this one included: name, and where each serves the API.
    pub members: BTreeMap<String, Option<SocketAddr>>,
    /// Where members see this node, by their names.
    pub seen_as: BTreeMap<String, SocketAddr>,
}

/// One sentence for each thing that is wrong.
pub fn complaints(sight: &Sight) -> Vec<String> {
    [nowhere(sight), shared(sight), translated(sight)].concat()
}

/// Others can be told nothing but the loopback.
fn nowhere(sight: &Sight) -> Vec<String> {
    let listens_for_others = sight.listen.is_some_and(|listen| !listen.ip().is_loopback());
    if !listens_for_others || sight.told.iter().any(|at| !at.ip().is_loopback()) {
        return Vec::new();
    }
    let local: Vec<String> =
        sight.ips.iter().filter(|ip| is_link_local(**ip)).map(ToString::to_string).collect();
    let has = match local.is_empty() {
        true => "no address but the loopback".to_owned(),
        false => format!("link-local addresses only ({}), which mean nothing elsewhere", list(&local)),
    };
    vec![format!(
        "this machine has {has}: no other node can be told where it is; give it an IPv4 address, or a unique local or global one of IPv6"
    )]
}

/// Several members say that they are at one place.
fn shared(sight: &Sight) -> Vec<String> {
    let mut at: BTreeMap<SocketAddr, Vec<String>> = BTreeMap::new();
    for (name, api) in &sight.members {
        if let Some(api) = api.filter(|api| !api.ip().is_loopback()) {
            at.entry(api).or_default().push(name.clone());
        }
    }
    let shared = at.into_iter().filter(|(_, names)| names.len() > 1);
    shared
        .map(|(at, names)| {
            format!(
                "{} say that they are at {}: each of them needs an address of its own; give the right one with --advertise",
                list(&names),
                at.ip()
            )
        })
        .collect()
}

/// Others see this node somewhere else than it is.
fn translated(sight: &Sight) -> Vec<String> {
    let mut by: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for (name, at) in &sight.seen_as {
        let is_known = sight.ips.contains(&at.ip()) || sight.told.iter().any(|told| told.ip() == at.ip());
        if !is_known && !at.ip().is_loopback() {
            by.entry(at.ip()).or_default().push(name.clone());
        }
    }
    let port = sight.listen.map_or(0, |listen| listen.port());
    let advice = |ip: &IpAddr| match sight.is_advertised {
        true => String::new(),
        false => {
            format!(
                "; if they do not reach this one, forward UDP port {port} to it and start it with --advertise {ip}"
            )
        }
    };
    by.iter()
        .map(|(ip, names)| {
            let see = if names.len() == 1 { "sees" } else { "see" };
            format!(
                "{} {see} this node at {ip}, which is no address of this machine: something on the way translates addresses{}",
                list(names),
                advice(ip)
            )
        })
        .collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] if names.len() <= NAMES_MAX => format!("{} and {last}", most.join(", ")),
        _ => format!("{} and {} more", names[..NAMES_MAX].join(", "), names.len() - NAMES_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight() -> Sight {
        Sight {
            listen: Some("[::]:7946".parse().unwrap()),
            ips: ["127.0.0.1", "192.0.2.1"].map(|ip| ip.parse().unwrap()).into(),
            told: vec!["192.0.2.1:7946".parse().unwrap()],
            ..Sight::default()
        }
    }

    fn at<const N: usize>(places: [(&str, &str); N]) -> BTreeMap<String, SocketAddr> {
        places.map(|(name, at)| (name.to_owned(), at.parse().unwrap())).into()
    }

    #[track_caller]
    fn one(sight: &Sight, words: &[&str]) {
        let said = complaints(sight);
        let [said] = &said[..] else { panic!("one sentence: {said:?}") };
        for word in words {
            assert!(said.contains(word), "{word:?} in {said:?}");
        }
    }

    #[test]
    fn nothing_is_wrong_where_everybody_is_where_it_says() {
        let members = at([("a", "192.0.2.1:6443"), ("b", "192.0.2.2:6443")]);
        // Two nodes of one machine.
        let members = members.into_iter().chain(at([("c", "192.0.2.2:6444")]));
        let members = members.map(|(name, at)| (name, Some(at))).collect();
        let seen_as = at([("b", "192.0.2.1:7946")]);
        assert_eq!(complaints(&Sight { members, seen_as, ..sight() }), Vec::<String>::new());
    }

    #[test]
    fn nodes_that_say_that_they_are_at_one_place_are_named() {
        let members = at([("a", "10.0.2.15:6443"), ("b", "10.0.2.15:6443"), ("c", "192.0.2.3:6443")]);
        let members = members.into_iter().map(|(name, at)| (name, Some(at))).collect();
        one(&Sight { members, ..sight() }, &["a and b say", "10.0.2.15", "--advertise"]);
    }

    #[test]
    fn a_node_behind_a_translation_says_how_it_is_seen() {
        let seen_as = at([("b", "203.0.113.9:40000"), ("c", "203.0.113.9:40001")]);
        let sight = Sight { seen_as, ..sight() };
        one(&sight, &["b and c see", "203.0.113.9", "forward UDP port 7946", "--advertise 203.0.113.9"]);
        let told = vec!["203.0.113.9:7946".parse().unwrap()];
        assert!(complaints(&Sight { told, is_advertised: true, ..sight.clone() }).is_empty());
        let told = vec!["203.0.113.10:7946".parse().unwrap()];
        let said = complaints(&Sight { told, is_advertised: true, ..sight });
        assert!(said[0].contains("203.0.113.9") && !said[0].contains("--advertise"), "{said:?}");
    }

    #[test]
    fn a_machine_without_an_address_for_others_says_which_it_has() {
        let told = vec!["127.0.0.1:7946".parse().unwrap()];
        let none = Sight { told, ips: ["127.0.0.1".parse().unwrap()].into(), ..sight() };
        one(&none, &["no address but the loopback", "IPv4"]);
        let ips = ["fe80::7".parse().unwrap()].into();
        one(&Sight { ips, ..none.clone() }, &["link-local addresses only (fe80::7)"]);
        // That is what was asked for.
        let listen = Some("127.0.0.1:7946".parse().unwrap());
        assert!(complaints(&Sight { listen, ..none }).is_empty());
    }

    #[test]
    fn many_names_are_counted() {
        let names: Vec<String> = (1..=7).map(|n| format!("n{n}")).collect();
        assert_eq!(list(&names), "n1, n2, n3, n4 and 3 more");
        assert_eq!(list(&names[..3]), "n1, n2 and n3");
    }
}
