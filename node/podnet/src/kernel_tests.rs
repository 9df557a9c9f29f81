//! The pod network on the real kernel, in network namespaces that live as long as a thread of the test.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use nix::sched::{CloneFlags, unshare};

use crate::netlink::{Mode, Netlink};
use crate::{Config, Network, Peer, Probe, Subnet, forwarding, link, neighbours};

const LOOPBACK: u32 = 1;
/// The address of a machine with IPv4.
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const NONE_TAKEN: BTreeSet<Subnet> = BTreeSet::new();

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace held by a thread that does what it is told; both end when it is dropped.
struct Namespace {
    path: PathBuf,
    work: mpsc::Sender<Work>,
}

impl Namespace {
    /// `None` where this process may not make one: the test is then skipped by name.
    fn new() -> Option<Namespace> {
        let (work, orders) = mpsc::channel::<Work>();
        let (ready, started) = mpsc::channel();
        std::thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).is_ok();
            let path = PathBuf::from(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid()));
            let _ = ready.send(made.then_some(path));
            if made {
                orders.into_iter().for_each(|order| order());
            }
        });
        let path = started.recv().ok().flatten();
        if path.is_none() {
            eprintln!("skipped: this user may not make network namespaces");
        }
        path.map(|path| Namespace { path, work })
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, receive) = mpsc::channel();
        self.work
            .send(Box::new(move || drop(send.send(work()))))
            .expect("the thread runs until it is dropped");
        receive.recv().expect("the work inside the namespace panicked")
    }
}

/// A node: a namespace with its pod network open.
struct Node {
    namespace: Namespace,
    dir: tempfile::TempDir,
    subnet: Subnet,
}

impl Node {
    fn new(subnet: &str) -> Option<Node> {
        let node = Node::without_address(subnet)?;
        node.namespace.run(|| {
            // A machine has an address of its own; without one its kernel could not talk to its pods.
            let address = link::address_of(LOOPBACK, NODE, 32);
            Netlink::open().unwrap().batch(vec![(address, Mode::Create)]).unwrap();
        });
        Some(node)
    }

    fn without_address(subnet: &str) -> Option<Node> {
        let namespace = Namespace::new()?;
        namespace.run(|| {
            Netlink::open().unwrap().batch(vec![(link::up(LOOPBACK), Mode::Plain)]).unwrap();
        });
        Some(Node { namespace, dir: tempfile::tempdir().unwrap(), subnet: subnet.parse().unwrap() })
    }

    fn with_network<T: Send + 'static>(&self, work: impl FnOnce(&mut Network) -> T + Send + 'static) -> T {
        let config = Config {
            dir: self.dir.path().to_owned(),
            tag: "0123456789".into(),
            cluster: "10.42.0.0/16".parse().unwrap(),
            subnet: self.subnet,
        };
        self.namespace.run(move || work(&mut Network::open(config).unwrap()))
    }

    fn attach(&self, pod: &'static str, netns: &Namespace) -> Ipv4Addr {
        let path = netns.path.clone();
        self.with_network(move |network| network.attach(pod, &path).unwrap())
    }

    fn links(&self) -> Vec<String> {
        self.namespace.run(|| {
            let names = link::names(&mut Netlink::open().unwrap()).unwrap();
            names.into_iter().map(|(name, _)| name).filter(|name| name.starts_with("sk")).collect()
        })
    }
}

impl Namespace {
    /// Runs a program inside, and returns what it printed. `None` where it is not installed.
    fn program(&self, words: &str) -> Option<String> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let program = words[0].clone();
        let output = self.run(move || std::process::Command::new(&words[0]).args(&words[1..]).output());
        let output = match output {
            Ok(output) => output,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("skipped: {program} is not installed");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        assert!(output.status.success(), "{output:?}");
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The IPv4 routes of the main table, without what only their links decide.
    fn routes(&self) -> Vec<String> {
        let shown = self.program("ip -4 route show table main").unwrap_or_default();
        shown.lines().map(|line| line.trim().to_owned()).collect()
    }
}

/// Opens a listener in `server`, connects from `client`, and returns who the server saw.
fn greet(client: &Namespace, server: &Namespace, address: Ipv4Addr) -> SocketAddr {
    let listener = server.run(move || TcpListener::bind((address, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let accepted = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
        peer
    });
    let heard = client.run(move || {
        let target = SocketAddr::from((address, port));
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(20)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(heard, "hello");
    accepted.join().unwrap()
}

#[test]
fn pods_of_one_node_reach_each_other_and_the_node_reaches_them() {
    let (Some(node), Some(a), Some(b)) = (Node::new("10.42.1.0/24"), Namespace::new(), Namespace::new())
    else {
        return;
    };
    let (ip_a, ip_b) = (node.attach("a", &a), node.attach("b", &b));
    assert_ne!(ip_a, ip_b);
    assert_eq!(greet(&a, &b, ip_b).ip(), ip_a);
    greet(&node.namespace, &a, ip_a);
}

#[test]
fn what_a_pod_sends_under_another_address_goes_nowhere() {
    let (Some(node), Some(pod)) = (Node::new("10.42.1.0/24"), Namespace::new()) else { return };
    let own = node.attach("a", &pod);
    let theirs = Ipv4Addr::new(198, 51, 100, 7);
    pod.run(move || {
        let other = link::address_of(LOOPBACK, theirs, 32);
        let up = (link::up(LOOPBACK), Mode::Plain);
        Netlink::open().unwrap().batch(vec![up, (other, Mode::Create)]).unwrap();
    });
    let here = node.namespace.run(|| UdpSocket::bind((NODE, 0)).unwrap());
    let port = here.local_addr().unwrap().port();
    // The second one is behind the first: where that is there, the other one was not let in.
    for from in [theirs, own] {
        pod.run(move || UdpSocket::bind((from, 0)).unwrap().send_to(b"?", (NODE, port)).unwrap());
    }
    here.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(here.recv_from(&mut [0; 8]).unwrap().1.ip(), own);
}

#[test]
fn no_pod_is_a_router_to_its_machine_or_to_others() {
    let (Some(node), Some(pod)) = (Node::new("10.42.1.0/24"), Namespace::new()) else { return };
    let read = |path: String| std::fs::read_to_string(path).unwrap();
    if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        eprintln!("skipped: this kernel has no IPv6");
        return;
    }
    node.attach("a", &pod);
    let host_end = node.links().remove(0);
    let name = host_end.clone();
    let addresses = node.namespace.run(move || read("/proc/net/if_inet6".to_owned()));
    assert!(!addresses.contains(&host_end), "{addresses}");
    let switch = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    assert_eq!(node.namespace.run(move || read(switch)), "1\n");
    for which in ["eth0", "default"] {
        let heeded = pod.run(move || read(format!("/proc/sys/net/ipv6/conf/{which}/accept_ra")));
        assert_eq!(heeded, "0\n", "{which}");
    }
}

#[test]
fn a_detached_pod_leaves_no_link_and_a_restart_clears_what_a_crash_left() {
    let (Some(node), Some(a), Some(b)) = (Node::new("10.42.1.0/24"), Namespace::new(), Namespace::new())
    else {
        return;
    };
    let address = node.attach("a", &a);
    node.attach("b", &b);
    assert_eq!(node.links().len(), 2);
    assert_eq!(node.with_network(|network| network.address("a")), Some(address));
    node.with_network(|network| network.detach("a").unwrap());
    assert_eq!(node.links().len(), 1);
    node.with_network(|network| network.retain(&BTreeSet::new()).unwrap());
    assert_eq!(node.links(), Vec::<String>::new());
    assert_eq!(node.with_network(|network| network.address("b")), None);
}

/// Its directory was deleted: the table of addresses, and whatever else told of it, is gone.
#[test]
fn links_of_a_node_that_nobody_remembers_go_by_their_tag_and_another_nodes_stay() {
    let (Some(node), Some(a), Some(b)) = (Node::new("10.42.1.0/24"), Namespace::new(), Namespace::new())
    else {
        return;
    };
    node.attach("a", &a);
    let peers = BTreeSet::from([Peer {
        subnet: "10.42.2.0/24".parse().unwrap(),
        via: Ipv4Addr::new(192, 0, 2, 100).into(),
    }]);
    let neighbour = Config {
        dir: node.dir.path().join("neighbour"),
        tag: "ffffffffff".into(),
        cluster: "10.42.0.0/16".parse().unwrap(),
        subnet: "10.42.3.0/24".parse().unwrap(),
    };
    let path = b.path.clone();
    node.namespace.run(move || {
        std::fs::create_dir(&neighbour.dir).unwrap();
        let mut network = Network::open(neighbour).unwrap();
        network.attach("b", &path).unwrap();
        network.set_peers(&peers, &NONE_TAKEN).ok();
    });
    assert_eq!(node.links().len(), 2);
    let routes = node.namespace.routes();
    node.namespace.run(|| crate::clear("0123456789").unwrap());
    assert!(matches!(&*node.links(), [link] if link.starts_with("skfffff")), "{:?}", node.links());
    // Whose the routes to other nodes are nobody can tell while one is here.
    assert_eq!(node.namespace.routes().len(), routes.len() - 1, "{routes:?}");
    node.namespace.run(|| crate::clear("ffffffffff").unwrap());
    assert_eq!((node.links(), node.namespace.routes()), (Vec::<String>::new(), Vec::<String>::new()));
}

#[test]
fn attaching_again_after_a_crash_gives_the_same_address() {
    let (Some(node), Some(a), Some(again)) = (Node::new("10.42.1.0/24"), Namespace::new(), Namespace::new())
    else {
        return;
    };
    let address = node.attach("a", &a);
    assert_eq!(node.attach("a", &again), address);
    greet(&node.namespace, &again, address);
}

#[test]
fn pods_of_two_nodes_reach_each_other_by_route_and_strangers_are_refused() {
    let (Some(left), Some(right)) = (Node::new("10.42.1.0/24"), Node::new("10.42.2.0/24")) else { return };
    let (Some(a), Some(b)) = (Namespace::new(), Namespace::new()) else { return };
    connect(&left.namespace, &right.namespace);
    let (_, ip_b) = (left.attach("a", &a), right.attach("b", &b));
    let peers = [
        Peer { subnet: left.subnet, via: Ipv4Addr::new(192, 0, 2, 1).into() },
        Peer { subnet: right.subnet, via: Ipv4Addr::new(192, 0, 2, 2).into() },
    ];
    for node in [&left, &right] {
        node.with_network(move |network| network.set_peers(&peers.into(), &NONE_TAKEN).unwrap());
    }
    greet(&a, &b, ip_b);

    let stranger = SocketAddr::from(([10, 42, 77, 1], 80));
    let error = left.namespace.run(move || TcpStream::connect(stranger).unwrap_err());
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");

    left.with_network(|network| network.set_peers(&BTreeSet::new(), &NONE_TAKEN).unwrap());
    let error = left.namespace.run(move || TcpStream::connect((ip_b, 80)).unwrap_err());
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
}

/// A link between two nodes: 192.0.2.1 on the left, 192.0.2.2 on the right.
fn connect(left: &Namespace, right: &Namespace) {
    let far_end = right.path.clone();
    left.run(move || {
        use std::os::fd::AsRawFd;
        let far = std::fs::File::open(far_end).unwrap();
        let mut peer = LinkMessage::default();
        peer.attributes = vec![LinkAttribute::IfName("lan0".into()), LinkAttribute::NetNsFd(far.as_raw_fd())];
        let mut pair = LinkMessage::default();
        pair.attributes = vec![
            LinkAttribute::IfName("lan0".into()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        Netlink::open().unwrap().batch(vec![(RouteNetlinkMessage::NewLink(pair), Mode::Create)]).unwrap();
    });
    for (namespace, last) in [(left, 1), (right, 2)] {
        namespace.run(move || {
            let mut netlink = Netlink::open().unwrap();
            let index =
                link::names(&mut netlink).unwrap().into_iter().find(|(name, _)| name == "lan0").unwrap().1;
            let address = link::address_of(index, Ipv4Addr::new(192, 0, 2, last), 24);
            netlink.batch(vec![(link::up(index), Mode::Plain), (address, Mode::Create)]).unwrap();
        });
    }
}

/// As after a moment without its link, when its own question was lost.
#[test]
fn a_machine_that_has_forgotten_its_neighbours_answers_again_once_it_is_asked_who_it_is() {
    let (Some(asker), Some(asked)) = (Namespace::new(), Namespace::new()) else { return };
    connect(&asker, &asked);
    let answer = || {
        asker.run(|| {
            let closed = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 2), 9));
            TcpStream::connect_timeout(&closed, Duration::from_millis(500)).unwrap_err().kind()
        })
    };
    asked.run(|| {
        for questions in ["mcast_solicit", "ucast_solicit"] {
            std::fs::write(format!("/proc/sys/net/ipv4/neigh/lan0/{questions}"), "0").unwrap();
        }
    });
    // Of a link that has just been made the first question may get lost.
    assert!((0..60).any(|_| answer() == ErrorKind::ConnectionRefused));
    asked.run(|| neighbours::ask_again(Ipv4Addr::new(192, 0, 2, 1).into()).unwrap());
    assert_eq!(answer(), ErrorKind::TimedOut);
    asker.run(|| neighbours::ask_again(Ipv4Addr::new(192, 0, 2, 2).into()).unwrap());
    assert_eq!(answer(), ErrorKind::ConnectionRefused);
}

/// A second node's subnet is the LAN of the first one: its kernel's own route stays, and is still there when the
/// node has left.
#[test]
fn a_route_that_is_not_ours_is_neither_replaced_nor_removed() {
    let (Some(node), Some(other)) = (Node::new("10.42.1.0/24"), Namespace::new()) else { return };
    connect(&node.namespace, &other);
    let lan = "10.42.2.0/24 dev lan0 proto kernel scope link src 10.42.2.1";
    let fixed = "10.42.3.0/24 via 192.0.2.2 dev lan0 metric 4000000001";
    for words in
        ["ip addr add 10.42.2.1/24 dev lan0", "ip route add 10.42.3.0/24 via 192.0.2.2 metric 4000000001"]
    {
        let Some(_) = node.namespace.program(words) else { return };
    }
    let before = node.namespace.routes();
    assert!(before.contains(&lan.to_owned()) && before.contains(&fixed.to_owned()), "{before:?}");
    let peer =
        |subnet: &str| Peer { subnet: subnet.parse().unwrap(), via: Ipv4Addr::new(192, 0, 2, 9).into() };
    let peers: BTreeSet<Peer> = ["10.42.2.0/24", "10.42.3.0/24", "10.42.4.0/24"].map(peer).into();
    let wanted = peers.clone();
    node.with_network(move |network| network.set_peers(&wanted, &NONE_TAKEN).unwrap());
    let with_ours = node.namespace.routes();
    assert!(before.iter().all(|route| with_ours.contains(route)), "{with_ours:?}");
    assert_eq!(with_ours.len(), before.len() + 4, "{with_ours:?}");
    // The machine's own network is reached as ever.
    let way = node.namespace.program("ip -4 route get 10.42.2.7").unwrap();
    assert!(way.contains("dev lan0") && !way.contains("via"), "{way}");
    // What is known to be taken gets no route of ours at all.
    let taken: BTreeSet<Subnet> = ["10.42.2.0/25".parse().unwrap()].into();
    node.with_network(move |network| network.set_peers(&peers, &taken).unwrap());
    assert_eq!(node.namespace.routes().len(), before.len() + 3);
    let config = Config {
        dir: node.dir.path().to_owned(),
        tag: "0123456789".into(),
        cluster: "10.42.0.0/16".parse().unwrap(),
        subnet: node.subnet,
    };
    node.namespace.run(move || Network::open(config).unwrap().dismantle().unwrap());
    assert_eq!(node.namespace.routes(), before);
}

#[test]
fn a_route_to_a_node_that_has_moved_takes_the_place_of_the_old_one_and_of_those_of_earlier_builds() {
    let (Some(node), Some(other)) = (Node::new("10.42.1.0/24"), Namespace::new()) else { return };
    connect(&node.namespace, &other);
    // As earlier builds had it.
    let Some(_) = node.namespace.program("ip route add 10.42.2.0/24 via 192.0.2.2 proto 117") else { return };
    for last in [2, 3, 3] {
        let via = Ipv4Addr::new(192, 0, 2, last).into();
        let peers = BTreeSet::from([Peer { subnet: "10.42.2.0/24".parse().unwrap(), via }]);
        node.with_network(move |network| network.set_peers(&peers, &NONE_TAKEN).unwrap());
        let routes = node.namespace.routes();
        let ours: Vec<&String> = routes.iter().filter(|route| route.starts_with("10.42.2.0/24")).collect();
        let [only] = &ours[..] else { panic!("{routes:?}") };
        assert!(only.contains(&format!("via 192.0.2.{last} ")) && only.contains("metric 39"), "{routes:?}");
    }
}

#[test]
fn a_link_that_is_no_pair_is_not_ours_whatever_it_is_called() {
    let Some(node) = Node::new("10.42.1.0/24") else { return };
    let Some(_) = node.namespace.program("ip link add sk01234567 type bridge") else { return };
    node.with_network(|network| network.retain(&BTreeSet::new()).unwrap());
    assert_eq!(node.links(), ["sk01234567"]);
}

#[test]
fn machines_without_ipv4_reach_each_others_pods_and_their_own() {
    let (Some(left), Some(right)) =
        (Node::without_address("10.42.1.0/24"), Node::without_address("10.42.2.0/24"))
    else {
        return;
    };
    let (Some(a), Some(b)) = (Namespace::new(), Namespace::new()) else { return };
    connect(&left.namespace, &right.namespace);
    for (last, node) in [(1, &left), (2, &right)] {
        let words = format!("ip -6 addr add fd00:5::{last}/64 dev lan0 nodad");
        let Some(_) = node.namespace.program(&words) else { return };
        node.namespace.program("ip -4 addr flush dev lan0");
    }
    let (ip_a, ip_b) = (left.attach("a", &a), right.attach("b", &b));
    let via = |last| IpAddr::from([0xfd00, 5, 0, 0, 0, 0, 0, last]);
    let peers = [Peer { subnet: left.subnet, via: via(1) }, Peer { subnet: right.subnet, via: via(2) }];
    for node in [&left, &right] {
        node.with_network(move |network| network.set_peers(&peers.into(), &NONE_TAKEN).unwrap());
    }
    assert_eq!(greet(&a, &b, ip_b).ip(), ip_a);
    greet(&left.namespace, &a, ip_a);
    left.with_network(|network| network.set_peers(&BTreeSet::new(), &NONE_TAKEN).unwrap());
    assert!(!left.namespace.routes().iter().any(|route| route.contains("inet6")));
}

#[test]
fn forwarding_is_switched_on_by_the_first_pod() {
    let (Some(node), Some(pod)) = (Node::new("10.42.1.0/24"), Namespace::new()) else { return };
    let switch = "/proc/sys/net/ipv4/ip_forward";
    node.namespace.run(move || std::fs::write(switch, "0").unwrap());
    assert!(!node.with_network(|network| network.has_pods()));
    assert!(!node.namespace.run(|| forwarding::is_on().unwrap()));
    node.attach("a", &pod);
    assert!(node.namespace.run(|| forwarding::is_on().unwrap()));
    assert!(node.with_network(|network| network.has_pods()));
}

/// What a probe says after each of these words was carried out.
fn probed(node: &Node, words: &[(&'static str, bool)]) {
    let subnet = node.subnet;
    node.namespace.run(|| forwarding::switch_on().unwrap());
    let passes = |probe: &Arc<Mutex<Probe>>, limit| {
        let probe = probe.clone();
        node.namespace.run(move || probe.lock().unwrap().passes(limit).unwrap())
    };
    let probe = node.namespace.run(move || Probe::open("0123456789", subnet).unwrap());
    let probe = Arc::new(Mutex::new(probe));
    // The first question who has the other end's address may get lost; the next one is a second later.
    assert!(passes(&probe, Duration::from_secs(30)), "nothing is in the way");
    for (words, expected) in words {
        let Some(_) = node.namespace.program(words) else { return };
        let limit = if *expected { Duration::from_secs(30) } else { Duration::from_millis(300) };
        assert_eq!(passes(&probe, limit), *expected, "{words}");
    }
    drop(probe);
    let left = node.namespace.run(|| link::pairs(&mut Netlink::open().unwrap()).unwrap());
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_probe_tells_whether_the_firewall_and_the_switch_let_pods_through() {
    let Some(node) = Node::new("10.42.1.0/24") else { return };
    probed(
        &node,
        &[
            ("nft add table inet wall", true),
            (
                "nft add chain inet wall forward { type filter hook forward priority 0 ; policy drop ; }",
                false,
            ),
            ("nft add rule inet wall forward ip saddr 10.42.0.0/16 ip daddr 10.42.0.0/16 accept", true),
            ("nft delete table inet wall", true),
            ("sysctl -q -w net.ipv4.ip_forward=0", false),
            ("sysctl -q -w net.ipv4.ip_forward=1", true),
        ],
    );
}

#[test]
fn a_probe_tells_of_the_old_firewall_too() {
    let Some(node) = Node::new("10.42.1.0/24") else { return };
    probed(&node, &[("iptables-legacy -P FORWARD DROP", false), ("iptables-legacy -P FORWARD ACCEPT", true)]);
}
