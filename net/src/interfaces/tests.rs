//! Machines as people have them, written down as `ip address` and `ip route` show them.

use std::net::{IpAddr, SocketAddr};

use super::{Address, Evidence, Interface, Interfaces, Kind, Route, links, reachable};

/// A machine by lines of words: an interface with its kind and properties, or what it has: addresses and routes.
///
/// ```text
/// br0 bridge              NAME KIND, then any of: in NAME (port of it), over NAME, elsewhere, down
///   192.0.2.1/24          an address, then any of: secondary, deprecated
///   default 192.0.2.254 metric 100
/// ```
fn machine(text: &str) -> Interfaces {
    let mut found = Interfaces::default();
    let mut names: Vec<String> = Vec::new();
    let index = |names: &mut Vec<String>, name: &str| match names.iter().position(|known| known == name) {
        Some(place) => place as u32 + 1,
        None => {
            names.push(name.to_owned());
            names.len() as u32
        }
    };
    let mut current = 0;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word: &str| {
            words.iter().position(|found| *found == word).and_then(|place| words.get(place + 1)).copied()
        };
        match words[0] {
            "default" => {
                let gateway: Option<IpAddr> = words.get(1).and_then(|word| word.parse().ok());
                let is_v6 = gateway.is_some_and(|gateway| gateway.is_ipv6());
                found.routes.push(Route {
                    network: if is_v6 { "::".parse().unwrap() } else { "0.0.0.0".parse().unwrap() },
                    prefix: 0,
                    interface: Some(current),
                    gateway,
                    metric: after("metric").map_or(0, |metric| metric.parse().unwrap()),
                    protocol: 4,
                    table: 254,
                });
            }
            word if word.contains('/') => {
                let (ip, prefix) = word.split_once('/').unwrap();
                found.interfaces.get_mut(&current).unwrap().addresses.push(Address {
                    ip: ip.parse().unwrap(),
                    prefix: prefix.parse().unwrap(),
                    is_usable: !words.contains(&"deprecated"),
                    is_secondary: words.contains(&"secondary"),
                });
            }
            name => {
                current = index(&mut names, name);
                let kind = match words[1] {
                    "loopback" => Kind::Loopback,
                    "card" => Kind::Card,
                    "bridge" => Kind::Bridge,
                    "bond" => Kind::Bond,
                    "part" => Kind::Part,
                    "veth" => Kind::Veth,
                    "tunnel" => Kind::Tunnel,
                    "inner" => Kind::Inner,
                    other => panic!("no kind {other}"),
                };
                let interface = Interface {
                    name: name.to_owned(),
                    kind,
                    port_of: after("in").map(|name| index(&mut names, name)),
                    over: after("over").map(|name| index(&mut names, name)),
                    far_elsewhere: words.contains(&"elsewhere"),
                    is_up: !words.contains(&"down"),
                    has_multicast: kind != Kind::Tunnel,
                    has_broadcast: kind != Kind::Tunnel,
                    mtu: 1500,
                    addresses: Vec::new(),
                };
                found.interfaces.insert(current, interface);
            }
        }
    }
    found
}

fn told(machine: &Interfaces, evidence: &Evidence) -> String {
    let listen = SocketAddr::from(([0; 16], 7946));
    let told = reachable(machine, listen, evidence);
    told.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" ")
}

/// What others are told of a machine, and on which links it looks for them.
fn check(what: &str, text: &str, addresses: &str, on: &str) {
    let machine = machine(text);
    assert_eq!(told(&machine, &Evidence::default()), addresses, "{what}");
    let listen = SocketAddr::from(([0; 16], 7946));
    let names: Vec<String> = links(&machine, listen).into_iter().map(|link| link.name).collect();
    assert_eq!(names.join(" "), on, "{what}");
}

#[test]
fn others_are_told_the_address_that_leads_to_them() {
    check(
        "a machine with one card",
        "lo loopback
           127.0.0.1/8
           ::1/128
         eth0 card
           192.168.1.7/24
           fe80::7/64
           default 192.168.1.1",
        "192.168.1.7",
        "eth0",
    );
    check(
        "VirtualBox with a translated card and a host-only one: the former is the same on every machine",
        "enp0s3 card
           10.0.2.15/24
           default 10.0.2.2 metric 100
         enp0s8 card
           192.168.56.11/24",
        "192.168.56.11 10.0.2.15",
        "enp0s3 enp0s8",
    );
    check(
        "OpenWrt: the LAN is a bridge without a default route, the WAN has one",
        "eth0 card
         lan1 card in br-lan
         phy0-ap0 card in br-lan
         br-lan bridge
           192.168.1.1/24
           fd12:3456::1/60
         wan card
           203.0.113.9/24
           default 203.0.113.1",
        "203.0.113.9 192.168.1.1 fd12:3456::1",
        "br-lan wan",
    );
    check(
        "an access point whose only address is the bridge's",
        "eth0 card in br-lan
         br-lan bridge
           192.168.1.2/24
           default 192.168.1.1",
        "192.168.1.2",
        "br-lan",
    );
    check(
        "Proxmox: the machine's address is a bridge's, other bridges are for guests alone",
        "eno1 card in vmbr0
         tap100i0 tunnel in vmbr0
         veth101i0 veth in vmbr1 elsewhere
         vmbr0 bridge
           10.1.0.5/24
           default 10.1.0.1
         vmbr1 bridge
           10.99.0.1/24",
        "10.1.0.5",
        "vmbr0",
    );
    check(
        "a Docker host",
        "enp3s0 card
           192.168.1.20/24
           default 192.168.1.1
         docker0 bridge
           172.17.0.1/16
         br-4f1c2d bridge
           172.18.0.1/16
         veth12 veth in docker0 elsewhere",
        "192.168.1.20",
        "enp3s0",
    );
    check(
        "an uplink that is called like Docker's bridges",
        "docker1 card
           192.168.1.20/24
           default 192.168.1.1
         virbr9 bridge
           192.168.2.20/24
         eth1 card in virbr9",
        "192.168.1.20 192.168.2.20",
        "docker1 virbr9",
    );
    check(
        "Tailscale beside a translated card",
        "eth0 card
           10.0.2.15/24
           default 10.0.2.2
         tailscale0 tunnel
           100.101.102.103/32
           fd7a:115c:a1e0::1/128",
        "100.101.102.103 fd7a:115c:a1e0::1 10.0.2.15",
        "eth0",
    );
    check(
        "Tailscale alone",
        "tailscale0 tunnel
           100.101.102.103/32",
        "100.101.102.103",
        "",
    );
    check(
        "Ethernet and Wi-Fi: the route that is used",
        "wlan0 card
           192.168.1.31/24
           default 192.168.1.1 metric 600
         eth0 card
           192.168.1.30/24
           default 192.168.1.1 metric 100",
        "192.168.1.30 192.168.1.31",
        "eth0 wlan0",
    );
    check(
        "IPv6 alone: the address of the house before the provider's, and not the one of the day",
        "eth0 card
           2001:db8:1::aaaa/64 secondary
           2001:db8:1::7/64
           fd00:1::bbbb/64 secondary
           fd00:1::7/64
           2001:db8:9::7/64 deprecated
           fe80::7/64
           default fe80::1 metric 1024",
        "fd00:1::7 2001:db8:1::7",
        "eth0",
    );
    check(
        "what k3s left behind",
        "eth0 card
           192.168.1.40/24
           default 192.168.1.1
         flannel.1 inner
           10.42.0.0/32
         cni0 bridge
           10.42.0.1/24
         veth55 veth in cni0 elsewhere
         kube-ipvs0 inner down
           10.43.0.10/32",
        "192.168.1.40",
        "eth0",
    );
    check(
        "a VLAN on a bond, and a bridge on another VLAN",
        "eno1 card in bond0
         eno2 card in bond0
         bond0 bond
         bond0.10 part over bond0
           10.10.0.5/24
           default 10.10.0.1
         bond0.20 part over bond0 in br20
         br20 bridge
           10.20.0.5/24",
        "10.10.0.5 10.20.0.5",
        "bond0.10 br20",
    );
    check(
        "a container, or a machine of the lab",
        "lo loopback
           127.0.0.1/8
         eth0 veth elsewhere
           198.51.100.1/24",
        "198.51.100.1",
        "eth0",
    );
    check(
        "a macvlan beside its card, and one that a container was given",
        "eth0 card
           192.168.1.5/24
           default 192.168.1.1
         shim part over eth0
           192.168.1.6/32
         lan part elsewhere
           192.168.3.6/24",
        "192.168.1.5 192.168.3.6 192.168.1.6",
        "eth0 lan shim",
    );
    check(
        "an edge site: nodes on a LAN of their own, the Internet by a modem's session",
        "eth0 card
           10.5.0.3/24
         ppp0 tunnel
           100.70.1.2/32
           default metric 50",
        "10.5.0.3 100.70.1.2",
        "eth0",
    );
    check(
        "a virtual address that keepalived may move elsewhere any time",
        "eth0 card
           192.168.1.250/32
           192.168.1.8/24
           192.168.1.251/24 secondary
           default 192.168.1.1",
        "192.168.1.8 192.168.1.250 192.168.1.251",
        "eth0",
    );
    check("no network at all", "lo loopback\n 127.0.0.1/8", "127.0.0.1", "");
    check(
        "link-local addresses alone mean nothing to others",
        "eth0 card
           fe80::7/64
           169.254.7.7/16",
        "127.0.0.1",
        "eth0",
    );
    check(
        "many addresses: each network's own first",
        "eth0 card
           10.0.0.1/24
           10.0.1.1/24
           10.0.2.1/24
           10.0.3.1/24
           default 10.0.0.254
         eth1 card
           10.1.0.1/24",
        "10.0.0.1 10.1.0.1 10.0.1.1 10.0.2.1",
        "eth0 eth1",
    );
}

#[test]
fn experience_goes_before_appearance() {
    let machine = machine(
        "eth0 card
           10.7.0.5/24
           default 10.7.0.1
         eth1 card
           192.168.56.11/24",
    );
    assert_eq!(told(&machine, &Evidence::default()), "10.7.0.5 192.168.56.11");
    let doubtful = Evidence { doubtful: ["10.7.0.5".parse().unwrap()].into(), ..Evidence::default() };
    assert_eq!(told(&machine, &doubtful), "192.168.56.11 10.7.0.5");
}

#[test]
fn a_network_that_only_looks_like_that_of_virtual_machines_is_one_like_any_other_once_somebody_came() {
    let machine = machine(
        "eth0 card
           10.0.2.15/24
           default 10.0.2.2
         eth1 card
           192.168.56.11/24",
    );
    let proven = Evidence { proven: ["10.0.2.15".parse().unwrap()].into(), ..Evidence::default() };
    assert_eq!(told(&machine, &proven), "10.0.2.15 192.168.56.11");
}

#[test]
fn a_socket_bound_to_one_address_is_reachable_there_alone() {
    let listen = SocketAddr::from(([192, 0, 2, 1], 7946));
    let machine = machine("eth0 card\n 192.0.2.1/24\n 192.0.2.2/24");
    assert_eq!(reachable(&machine, listen, &Evidence::default()), [listen]);
    assert_eq!(links(&machine, listen)[0].v4, ["192.0.2.1".parse::<std::net::Ipv4Addr>().unwrap()]);
}

#[test]
fn a_socket_of_ipv4_tells_no_address_of_ipv6() {
    let machine = machine("eth0 card\n fd00::1/64\n 192.0.2.1/24\n default 192.0.2.254");
    let listen = SocketAddr::from(([0, 0, 0, 0], 7946));
    let found = reachable(&machine, listen, &Evidence::default());
    assert_eq!(found, [SocketAddr::from(([192, 0, 2, 1], 7946))]);
    assert!(!links(&machine, listen)[0].v6);
}

#[test]
fn interfaces_that_stand_on_each_other_in_a_circle_lead_nowhere() {
    let machine = machine(
        "a part over b
           192.0.2.1/24
         b part over a
         c bridge in c
           192.0.2.2/24",
    );
    assert_eq!(told(&machine, &Evidence::default()), "127.0.0.1");
}

#[test]
fn others_on_a_link_are_those_of_its_networks_but_this_machine_itself() {
    let machine = machine(
        "eth0 card
           10.0.2.15/24
           fd00::7/64
         eth1 card
           192.168.56.11/24
         eth2 card down
           192.168.9.1/24",
    );
    for (ip, is_on_link) in [
        ("10.0.2.16", true),
        ("10.0.3.16", false),
        ("192.168.56.12", true),
        ("fd00::8", true),
        ("fd00:0:0:1::8", false),
        ("192.168.9.2", false),
        ("10.0.2.15", false),
    ] {
        assert_eq!(machine.is_on_link(ip.parse().unwrap()), is_on_link, "{ip}");
    }
}
