//! The pod network on the real kernel, in network namespaces that live as long as a thread of the test.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use nix::sched::{CloneFlags, unshare};

use crate::netlink::{Mode, Netlink};
use crate::{Config, Network, Peer, Subnet, link, neighbours};

const LOOPBACK: u32 = 1;

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
        let namespace = Namespace::new()?;
        namespace.run(|| {
            // A machine has an address of its own; without one its kernel could not talk to its pods.
            let address = link::address_of(LOOPBACK, Ipv4Addr::new(192, 0, 2, 100), 32);
            let up = link::up(LOOPBACK);
            Netlink::open().unwrap().batch(vec![(up, Mode::Plain), (address, Mode::Create)]).unwrap();
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
        Peer { subnet: left.subnet, via: Ipv4Addr::new(192, 0, 2, 1) },
        Peer { subnet: right.subnet, via: Ipv4Addr::new(192, 0, 2, 2) },
    ];
    for node in [&left, &right] {
        node.with_network(move |network| network.set_peers(&peers.into()).unwrap());
    }
    greet(&a, &b, ip_b);

    let stranger = SocketAddr::from(([10, 42, 77, 1], 80));
    let error = left.namespace.run(move || TcpStream::connect(stranger).unwrap_err());
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");

    left.with_network(|network| network.set_peers(&BTreeSet::new()).unwrap());
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
    assert_eq!(answer(), ErrorKind::ConnectionRefused);
    asked.run(|| neighbours::ask_again(Ipv4Addr::new(192, 0, 2, 1).into()).unwrap());
    assert_eq!(answer(), ErrorKind::TimedOut);
    asker.run(|| neighbours::ask_again(Ipv4Addr::new(192, 0, 2, 2).into()).unwrap());
    assert_eq!(answer(), ErrorKind::ConnectionRefused);
}
