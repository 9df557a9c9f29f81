//! Nodes find each other again after their addresses changed.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::failover::{NODES, REPLICAS, lives, with_pods};
use crate::formation::up;
use crate::house::{House, wait};
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    addresses_change_one_after_another_and_no_pod_moves,
    all_addresses_change_at_once_and_no_pod_moves,
    a_cluster_wakes_up_at_other_addresses_in_any_order,
    where_nothing_but_names_leads_to_the_others_names_are_enough,
];

/// An address that no machine of the lab begins with.
fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, number)
}

/// What every node says of every node: its address as `status` prints it, if it is alive.
fn addresses(house: &House) -> Vec<Option<String>> {
    let mut seen = Vec::new();
    for through in NODES {
        let Some(status) = wait(house.cluster.status(through)) else { return Vec::new() };
        for name in NODES {
            let node =
                status["nodes"].as_array().and_then(|nodes| nodes.iter().find(|node| node["name"] == name));
            let alive = node.filter(|node| node["state"] == "alive" && node["ready"] == true);
            seen.push(alive.and_then(|node| node["address"].as_str()).map(str::to_owned));
        }
    }
    seen
}

/// Waits until every node calls every node alive at the address that its machine has now.
fn until_all_are_seen_where_they_are(house: &House) {
    let at = |name: &&str| Some(format!("{}:7946", house.lab().machine(name).address()));
    let wanted: Vec<Option<String>> = NODES.iter().flat_map(|_| NODES.iter().map(at)).collect();
    house.until("the new addresses everywhere", || (addresses(house) == wanted).then_some(()));
}

fn internal_ip(node: &Value) -> Option<&str> {
    let addresses = node["status"]["addresses"].as_array()?;
    addresses.iter().find(|address| address["type"] == "InternalIP")?["address"].as_str()
}

fn addresses_change_one_after_another_and_no_pod_moves() {
    let mut house = with_pods();
    let before = lives(&house, "one");
    for (number, name) in (101..).zip(NODES) {
        house.cluster.lab().readdress(name, address(number)).expect("the machine is ours");
        until_all_are_seen_where_they_are(&house);
        house.until("the Node object with the new address", || {
            let node = house.get("two", &format!("/api/v1/nodes/{name}"));
            (internal_ip(&node) == Some(&address(number).to_string())).then_some(())
        });
    }
    house.until_whole();
    for through in NODES {
        assert_eq!(lives(&house, through), before, "pods were touched\n{}", house.logs());
    }
}

fn all_addresses_change_at_once_and_no_pod_moves() {
    let mut house = with_pods();
    let before = lives(&house, "one");
    for (number, name) in (101..).zip(NODES) {
        house.cluster.lab().readdress(name, address(number)).expect("the machine is ours");
    }
    until_all_are_seen_where_they_are(&house);
    house.until_whole();
    for through in NODES {
        assert_eq!(lives(&house, through), before, "pods were touched\n{}", house.logs());
    }
}

fn a_cluster_wakes_up_at_other_addresses_in_any_order() {
    let mut house = with_pods();
    for (round, order) in [["three", "one", "two"], ["one", "two", "three"]].into_iter().enumerate() {
        for name in NODES {
            house.cluster.lab().power_off(name).expect("the machine is ours");
        }
        for (number, name) in (101 + 10 * round as u8..).zip(NODES) {
            house.cluster.lab().readdress(name, address(number)).expect("it is off");
        }
        for name in order {
            house.cluster.power_back(name).expect("the machine starts");
        }
        house.until_whole();
        until_all_are_seen_where_they_are(&house);
        house.until_running("one", REPLICAS);
    }
}

/// A file of names for some machines, in the place of their `/etc/hosts`.
fn hosts(house: &House, machines: &[&str]) -> PathBuf {
    let file = house.dir().join("hosts");
    fs::write(&file, "").expect("the directory is ours");
    for machine in machines {
        let mut mount = house.lab().machine(machine).command("mount");
        let mounted = mount.arg("--bind").arg(&file).arg("/etc/hosts").status().expect("it has mount");
        assert!(mounted.success());
    }
    file
}

fn where_nothing_but_names_leads_to_the_others_names_are_enough() {
    let mut house = with_pods();
    house.cluster.lab().filter_multicast().expect("nft filters");
    for (number, name) in (101..).zip(NODES) {
        house.cluster.lab().power_off(name).expect("the machine is ours");
        house.cluster.lab().readdress(name, address(number)).expect("it is off");
        house.cluster.lab().power_on(name).expect("the machine starts");
    }
    let hosts = hosts(&house, &["one", "three"]);
    // Where it was: the name exists, and nobody is there.
    fs::write(&hosts, "198.51.100.2 two.lab\n").expect("the directory is ours");
    for name in ["one", "three"] {
        up(&mut house, name, &["up", "--peer", "nowhere.invalid:7", "--peer", "two.lab"]);
    }
    up(&mut house, "two", &["up"]);
    let alone = |house: &House, name: &str| {
        let status = wait(house.cluster.status(name))?;
        let nodes = status["nodes"].as_array()?;
        (nodes.iter().filter(|node| node["state"] == "alive").count() == 1).then_some(())
    };
    for name in NODES {
        house.until("a node that answers and has nobody", || alone(&house, name));
    }
    // Ten questions and calls later still nobody.
    std::thread::sleep(Duration::from_secs(5));
    for name in NODES {
        assert!(alone(&house, name).is_some(), "how did {name} find anybody?\n{}", house.logs());
    }
    fs::write(&hosts, format!("{} two.lab\n", house.lab().machine("two").address())).expect("it is ours");
    house.until_whole();
    until_all_are_seen_where_they_are(&house);
    house.until_running("one", REPLICAS);
}
