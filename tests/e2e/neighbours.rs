//! Other software on a node's machine: networks where pods have their addresses, firewalls, switches.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::addresses::{founded, ip, network};
use crate::formation::{token, up};
use crate::house::{House, said};
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    a_network_among_the_pods_addresses_is_refused_before_anything_is_made,
    a_network_that_comes_later_keeps_its_route_and_is_named,
    a_firewall_that_drops_what_pods_send_is_named_until_it_lets_them_pass,
    the_old_firewall_is_noticed_too_by_iptables_legacy,
    forwarding_that_somebody_switched_off_is_switched_on_again,
];

/// From the change to its word, and a second of a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(11);

fn run(house: &House, name: &str, words: &str) {
    let mut words = words.split_whitespace();
    let program = words.next().expect("a program");
    let said = said(house.lab().machine(name).command(program).args(words).output());
    assert_eq!(said.code, 0, "{program} on {name}: {said:?}");
}

/// The condition, as the other node sees it: its status and its reason.
fn unavailable(house: &House, name: &str) -> Option<(String, String)> {
    let node = house.get("one", &format!("/api/v1/nodes/{name}"));
    let conditions = node["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable")?;
    let word = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    Some((word("status"), word("reason")))
}

fn until_unavailable(house: &House, name: &str, reason: &str) {
    let began = Instant::now();
    let wanted = ("True".to_owned(), reason.to_owned());
    house.until(reason, || (unavailable(house, name)? == wanted).then_some(()));
    assert!(began.elapsed() < NOTICED_WITHIN, "{:?}", began.elapsed());
    house.until("a word in status", || (!network(house, name).is_empty()).then_some(()));
    house.until("the taint", || {
        let node = house.get("one", &format!("/api/v1/nodes/{name}"));
        let taints = node["spec"]["taints"].as_array()?;
        taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/network-unavailable").then_some(())
    });
    house.until("an Event", || told(house, reason).then_some(()));
}

fn until_available(house: &House, name: &str) {
    house.until("a network for pods", || (unavailable(house, name)?.0 == "False").then_some(()));
    house.until("no word in status", || network(house, name).is_empty().then_some(()));
    house.until("no taint", || {
        let node = house.get("one", &format!("/api/v1/nodes/{name}"));
        node["spec"]["taints"].is_null().then_some(())
    });
}

fn told(house: &House, reason: &str) -> bool {
    let events = house.get("one", "/api/v1/namespaces/default/events");
    let mut events = events["items"].as_array().into_iter().flatten();
    events.any(|event| event["reason"] == reason && event["involvedObject"]["kind"] == "Node")
}

fn routes(house: &House, name: &str) -> Vec<String> {
    let said = said(house.lab().machine(name).command("ip").args(["-4", "route"]).output());
    said.out.lines().map(|line| line.trim().to_owned()).collect()
}

/// Two nodes with a pod on each.
fn with_pods() -> House {
    let house = House::with_pods(&["one", "two"], 2);
    for name in ["one", "two"] {
        until_available(&house, name);
    }
    house
}

fn a_network_among_the_pods_addresses_is_refused_before_anything_is_made() {
    let mut house = House::new(&["one", "two"]);
    ip(&house, "one", "addr add 10.43.200.9/24 dev eth0");
    let refused = house.skein("one", &["up", "--new-cluster"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    for word in ["10.43.200.0/24 (eth0)", "10.43.0.0/16", "Services"] {
        assert!(refused.err.contains(word), "{refused:?}");
    }
    let made = |name: &str| fs::read_dir(house.lab().machine(name).disk()).expect("the disk is ours").count();
    assert_eq!(made("one"), 0);
    ip(&house, "one", "addr del 10.43.200.9/24 dev eth0");
    founded(&mut house, "one", &[]);

    let token = token(&house, &[]);
    ip(&house, "two", "addr add 10.42.1.9/24 dev eth0");
    let refused = house.skein("two", &["join", &token]);
    assert!(refused.code == 1 && refused.err.contains("10.42.1.0/24 (eth0)"), "{refused:?}");
    assert!(refused.err.contains("10.42.0.0/16"), "{refused:?}");
    assert_eq!(fs::read_dir(house.lab().machine("two").disk()).expect("the disk is ours").count(), 0);
    // The token was not spent.
    ip(&house, "two", "addr del 10.42.1.9/24 dev eth0");
    up(&mut house, "two", &["join", &token]);
    house.until_whole();
}

fn a_network_that_comes_later_keeps_its_route_and_is_named() {
    let mut house = with_pods();
    let subnet = |house: &House, name: &str| {
        let node = house.get("one", &format!("/api/v1/nodes/{name}"));
        node["spec"]["podCIDR"].as_str().expect("every node has one").to_owned()
    };
    let theirs = subnet(&house, "one");
    let ours = format!("{theirs} via 198.51.100.1 dev eth0 proto 117");
    let has_ours = |house: &House| routes(house, "two").iter().any(|route| route.starts_with(&ours));
    house.until("the way to the other node's pods", || has_ours(&house).then_some(()));
    let own: Ipv4Addr = theirs.replace("0/24", "9").parse().expect("an address of that network");
    let lan = format!("{theirs} dev lan7 proto kernel scope link src {own}");
    house.cluster.lab().add_card("two", "lan7", own, None).expect("the machine is ours");
    until_unavailable(&house, "two", "PodRangeTaken");
    assert!(network(&house, "two").iter().any(|said| said.contains("lan7") && said.contains("10.42.0.0/16")));
    house.until("the LAN's route alone", || {
        let routes = routes(&house, "two");
        (routes.contains(&lan) && !has_ours(&house)).then_some(())
    });
    ip(&house, "two", "link del lan7");
    until_available(&house, "two");
    house.until("the way to the other node's pods again", || has_ours(&house).then_some(()));
    assert!(told(&house, "PodNetworkRestored"));

    // What leaves takes its own routes along, and nobody else's.
    house.cluster.lab().add_card("two", "lan7", own, None).expect("the machine is ours");
    house.skein_ok("two", &["leave"]);
    house.until("the end of the daemon", || (house.skein("two", &["status"]).code == 1).then_some(()));
    house.until("its own routes alone", || {
        let routes = routes(&house, "two");
        (routes.contains(&lan) && !routes.iter().any(|route| route.contains("proto 117"))).then_some(())
    });
}

fn a_firewall_that_drops_what_pods_send_is_named_until_it_lets_them_pass() {
    let house = with_pods();
    // As Docker sets it.
    run(&house, "two", "nft add table ip filter");
    run(
        &house,
        "two",
        "nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }",
    );
    until_unavailable(&house, "two", "ForwardingBlocked");
    assert!(network(&house, "two").iter().any(|said| said.contains("FORWARD")));
    assert_eq!(unavailable(&house, "one").map(|(status, _)| status).as_deref(), Some("False"));
    // As the word of it advises.
    for rule in ["ip saddr 10.42.0.0/16 accept", "ip daddr 10.42.0.0/16 accept"] {
        run(&house, "two", &format!("nft insert rule ip filter FORWARD {rule}"));
    }
    until_available(&house, "two");
}

fn the_old_firewall_is_noticed_too_by_iptables_legacy() {
    let house = with_pods();
    run(&house, "two", "iptables-legacy -P FORWARD DROP");
    until_unavailable(&house, "two", "ForwardingBlocked");
    run(&house, "two", "iptables-legacy -P FORWARD ACCEPT");
    until_available(&house, "two");
}

fn forwarding_that_somebody_switched_off_is_switched_on_again() {
    let house = with_pods();
    let switch = |house: &House| {
        said(house.lab().machine("two").command("sysctl").args(["-n", "net.ipv4.ip_forward"]).output()).out
    };
    run(&house, "two", "sysctl -q -w net.ipv4.ip_forward=0");
    let began = Instant::now();
    house.until("the switch", || (switch(&house).trim() == "1").then_some(()));
    assert!(began.elapsed() < NOTICED_WITHIN, "{:?}", began.elapsed());
    house.until("an Event", || told(&house, "ForwardingRestored").then_some(()));
    until_available(&house, "two");
    let status: Value = house.status("two");
    assert_eq!(status["network"], serde_json::json!([]));

    // Of one interface alone it is somebody's wish: said, and left as it is.
    run(&house, "two", "sysctl -q -w net.ipv4.conf.eth0.forwarding=0");
    until_unavailable(&house, "two", "ForwardingOff");
    assert!(network(&house, "two").iter().any(|said| said.contains("net.ipv4.conf.eth0.forwarding")));
    run(&house, "two", "sysctl -q -w net.ipv4.conf.eth0.forwarding=1");
    until_available(&house, "two");
}
