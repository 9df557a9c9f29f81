//! Machines with networks as people have them: others are told the address that leads to each.

use std::net::Ipv4Addr;

use serde_json::Value;

use crate::failover::NODES;
use crate::formation::{stop, token, up};
use crate::house::{House, said, wait};
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    where_every_machine_has_the_same_translated_address_the_other_one_counts,
    a_bridge_with_the_default_route_is_an_uplink,
    what_is_advertised_is_told_to_all_and_kept_until_it_is_taken_back,
    machines_without_ipv4_become_a_cluster,
];

/// Runs words of `ip` on the machine, a line each.
pub(crate) fn ip(house: &House, name: &str, lines: &str) {
    for line in lines.lines() {
        let words = line.split_whitespace();
        let said = said(house.lab().machine(name).command("ip").args(words).output());
        assert_eq!(said.code, 0, "ip {line} on {name}: {said:?}");
    }
}

fn node(house: &House, through: &str, name: &str) -> Option<Value> {
    let status = wait(house.cluster.status(through))?;
    status["nodes"].as_array()?.iter().find(|node| node["name"] == name).cloned()
}

/// What `through` believes of where `name` is, best first.
fn addresses(house: &House, through: &str, name: &str) -> Vec<String> {
    let node = node(house, through, name).unwrap_or_default();
    let addresses = node["addresses"].as_array().into_iter().flatten();
    addresses.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn internal_ips(house: &House, through: &str, name: &str) -> Vec<String> {
    let node = house.get(through, &format!("/api/v1/nodes/{name}"));
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let internal = addresses.filter(|address| address["type"] == "InternalIP");
    internal.filter_map(|address| address["address"].as_str()).map(str::to_owned).collect()
}

/// The complaints of a node about its network.
pub(crate) fn network(house: &House, name: &str) -> Vec<String> {
    let status = wait(house.cluster.status(name)).unwrap_or_default();
    let said = status["network"].as_array().into_iter().flatten();
    said.filter_map(Value::as_str).map(str::to_owned).collect()
}

pub(crate) fn founded(house: &mut House, name: &str, words: &[&str]) {
    up(house, name, &[&["up", "--new-cluster"], words].concat());
    house.until_up(name);
}

/// As machines have it that VirtualBox made: a translated network with the default route, the same on each, and
/// one on which they meet.
fn where_every_machine_has_the_same_translated_address_the_other_one_counts() {
    let mut house = House::new(&NODES);
    let card = |house: &mut House, name: &str, address: [u8; 4]| {
        let [a, b, c, _] = address;
        let gateway = Some(Ipv4Addr::new(a, b, c, 2));
        house.cluster.lab().add_card(name, "enp0s3", address.into(), gateway).expect("the machine is ours");
    };
    // What those programs give themselves is known beforehand; any other one is found out.
    card(&mut house, "one", [10, 0, 2, 15]);
    for name in ["two", "three"] {
        card(&mut house, name, [172, 30, 9, 15]);
    }
    founded(&mut house, "one", &[]);
    assert_eq!(addresses(&house, "one", "one"), ["198.51.100.1:7946", "10.0.2.15:7946"]);
    let token = token(&house, &["--uses", "2"]);
    for name in ["two", "three"] {
        up(&mut house, name, &["join", &token]);
    }
    house.until_whole();
    for (last, name) in (1..).zip(NODES) {
        let right = format!("198.51.100.{last}");
        for through in NODES {
            house.until("the address that leads to it", || {
                let told = addresses(&house, through, name);
                let first = told.first()?.strip_suffix(":7946")?;
                (first == right && internal_ips(&house, through, name) == [&*right]).then_some(())
            });
        }
        let kubeconfig = || house.skein_ok(name, &["kubeconfig"]);
        house.until("kubeconfigs with it", || {
            kubeconfig().contains(&format!("https://{right}:6443")).then_some(())
        });
    }
    for name in NODES {
        house.until("no complaint", || network(&house, name).is_empty().then_some(()));
    }
}

fn a_bridge_with_the_default_route_is_an_uplink() {
    let mut house = House::new(&["one"]);
    ip(
        &house,
        "one",
        "link add br-lan type bridge
         link set br-lan up
         addr flush dev eth0
         link set eth0 master br-lan
         addr add 198.51.100.1/24 dev br-lan
         route add default via 198.51.100.254",
    );
    founded(&mut house, "one", &[]);
    assert_eq!(addresses(&house, "one", "one"), ["198.51.100.1:7946"]);
    assert!(house.skein_ok("one", &["kubeconfig"]).contains("https://198.51.100.1:6443"));
    house.until("the Node object", || (internal_ips(&house, "one", "one") == ["198.51.100.1"]).then_some(()));
}

fn what_is_advertised_is_told_to_all_and_kept_until_it_is_taken_back() {
    let mut house = House::new(&["one", "two"]);
    let refused = house.skein("one", &["up", "--advertise", "fe80::1"]);
    assert!(refused.code == 1 && refused.err.contains("without its link"), "{refused:?}");
    founded(&mut house, "one", &[]);
    let token = token(&house, &[]);
    // Nobody is there: this node calls the others.
    let elsewhere = "198.51.100.77:17946";
    up(&mut house, "two", &["join", &token, "--advertise", elsewhere]);
    house.until_whole();
    let told = |house: &House, wanted: &str| {
        for through in ["one", "two"] {
            house.until("what is told", || (addresses(house, through, "two") == [wanted]).then_some(()));
            let ip = wanted.split(':').next().expect("an address");
            house.until("the Node object", || (internal_ips(house, through, "two") == [ip]).then_some(()));
        }
    };
    told(&house, elsewhere);
    for (words, wanted) in [
        (&["up"][..], elsewhere),
        (&["up", "--advertise", "auto"], "198.51.100.2:7946"),
        (&["up"], "198.51.100.2:7946"),
    ] {
        assert_eq!(stop(&mut house, "two"), Some(0));
        up(&mut house, "two", words);
        told(&house, wanted);
    }
}

fn machines_without_ipv4_become_a_cluster() {
    let mut house = House::new(&NODES);
    for (last, name) in (1..).zip(NODES) {
        ip(&house, name, &format!("-4 addr flush dev eth0\n -6 addr add fd00:5::{last}/64 dev eth0 nodad"));
    }
    founded(&mut house, "one", &[]);
    let token = token(&house, &["--uses", "2"]);
    for name in ["two", "three"] {
        up(&mut house, name, &["join", &token]);
    }
    house.until_whole();
    for (last, name) in (1..).zip(NODES) {
        let right = format!("fd00:5::{last}");
        house.until("its address", || (internal_ips(&house, "two", name) == [&*right]).then_some(()));
        assert_eq!(addresses(&house, "three", name), [format!("[{right}]:7946")]);
    }
}
