//! Gossip over real QUIC on loopback: what the simulation cannot see, the loop and the endpoint together.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use tokio::{runtime::Runtime, time::timeout};

use super::{
    core::{Deposed, Tuning},
    member::{Member, State},
    metadata::Metadata,
    service::{Config, DATAGRAM_KIND, Gossip, Handle, Members, STREAM_KIND},
};
use crate::{
    address_book::AddressBook,
    ca::ClusterCa,
    endpoint::{self, Endpoint, Service},
    identity::NodeId,
    loopback::{Node, founded},
    stream::Stream,
};

/// Far above what anything here takes, so that only a real fault reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Router(OnceLock<Handle>);

impl Service for Router {
    fn stream(&self, peer: NodeId, kind: u8, stream: Stream) {
        if let (STREAM_KIND, Some(gossip)) = (kind, self.0.get()) {
            gossip.stream(peer, stream);
        }
    }

    fn datagram(&self, peer: NodeId, kind: u8, data: Bytes) {
        if let (DATAGRAM_KIND, Some(gossip)) = (kind, self.0.get()) {
            gossip.datagram(peer, data);
        }
    }
}

/// A node for a test that is not itself in a runtime.
pub(crate) fn node(ca: &ClusterCa) -> Node {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    Node::of(ca)
}

/// A node in a runtime of its own, which can be killed without a goodbye.
pub(crate) struct Machine {
    pub(crate) runtime: Runtime,
    pub(crate) endpoint: Endpoint,
    pub(crate) gossip: Handle,
}

impl Machine {
    pub(crate) fn start(node: &Node, name: &str, generation: u64, book: AddressBook) -> Machine {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (endpoint, gossip) = runtime.block_on(async {
            let endpoint = Endpoint::bind(endpoint::Config {
                listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
                tag: node.tag,
                tls: node.tls.clone(),
                trust: node.trust.clone(),
                book,
                advertise: Vec::new(),
                admission: None,
            })
            .unwrap();
            let gossip = Gossip::start(Config {
                endpoint: endpoint.clone(),
                generation,
                metadata: Metadata { name: name.into(), version: "0.1.0".into(), ..Metadata::default() },
                follow_interfaces: true,
                api_follows: false,
                tuning: Tuning::default(),
            })
            .unwrap();
            let router = Router::default();
            assert!(router.0.set(gossip.clone()).is_ok());
            endpoint.serve(Arc::new(router));
            (endpoint, gossip)
        });
        Machine { runtime, endpoint, gossip }
    }

    /// Waits until this machine's picture fits.
    fn sees(&self, what: &str, condition: impl FnMut(&Arc<Members>) -> bool) {
        let mut members = self.gossip.members();
        let waited =
            self.runtime.block_on(async { timeout(PATIENCE, members.wait_for(condition)).await.is_ok() });
        assert!(
            waited,
            "{what}: not within {PATIENCE:?}; the picture is {:?}",
            self.gossip.members().borrow()
        );
    }

    pub(crate) fn sees_alive(&self, count: usize) {
        self.sees("all alive", |members| {
            members
                .values()
                .filter(|member| member.state == State::Alive && member.metadata.is_some())
                .count()
                == count
        });
    }

    fn sees_member(&self, what: &str, node: NodeId, condition: impl Fn(&Member) -> bool) {
        self.sees(what, |members| members.get(&node).is_some_and(&condition));
    }

    fn kill(self) {
        self.runtime.shutdown_timeout(PATIENCE);
    }
}

fn book_with(machine: &Machine) -> AddressBook {
    let book = AddressBook::default();
    book.worked(machine.endpoint.node(), machine.endpoint.local_address());
    book
}

#[test]
fn three_nodes_meet_lose_one_and_get_it_back_at_another_port() {
    let ca = founded();
    let [one, two, three] = [(); 3].map(|()| node(&ca));
    let a = Machine::start(&one, "a", 1, AddressBook::default());
    let b = Machine::start(&two, "b", 1, book_with(&a));
    let c = Machine::start(&three, "c", 1, book_with(&a));
    for machine in [&a, &b, &c] {
        machine.sees_alive(3);
    }
    a.sees_member("the name", three.id(), |member| member.name() == Some("c"));
    assert_eq!(a.gossip.addresses(three.id()), [c.endpoint.local_address()]);

    // Power off; nobody is told.
    c.kill();
    for machine in [&a, &b] {
        machine.sees_member("its death", three.id(), |member| member.state == State::Down);
    }

    // It comes back at another port, knowing only one of the others.
    let c = Machine::start(&three, "c", 2, book_with(&b));
    let address = c.endpoint.local_address();
    for machine in [&a, &b, &c] {
        machine.sees_alive(3);
        machine.sees_member("its new start", three.id(), |member| {
            member.id.generation == 2 && member.addresses() == [address]
        });
        assert_eq!(machine.gossip.members().borrow().len(), 3, "renamed, not added");
    }
    // The book is written when the member list has been shown already.
    let (book, mut editions) = (a.endpoint.book(), a.endpoint.book().editions());
    let noted = editions.wait_for(|_| book.addresses(three.id()).first() == Some(&address));
    a.runtime.block_on(async { timeout(PATIENCE, noted).await }).expect("it is noted").unwrap();

    // A goodbye is understood as one.
    c.runtime.block_on(c.gossip.leave());
    for machine in [&a, &b] {
        machine.sees_member("its leaving", three.id(), |member| member.state == State::Left);
    }
}

#[test]
fn what_a_node_says_about_itself_reaches_the_others() {
    let ca = founded();
    let (one, two) = (node(&ca), node(&ca));
    let a = Machine::start(&one, "a", 1, AddressBook::default());
    let b = Machine::start(&two, "b", 1, book_with(&a));
    a.sees_alive(2);
    let mut metadata = Metadata { name: "b".into(), level: 3, ..Metadata::default() };
    metadata.labels.insert("zone".into(), "attic".into());
    b.runtime.block_on(b.gossip.set_metadata(metadata)).unwrap();
    a.sees_member("the news", two.id(), |member| {
        member
            .metadata
            .as_ref()
            .is_some_and(|metadata| metadata.level == 3 && metadata.labels["zone"] == "attic")
    });
    b.runtime.block_on(b.gossip.set_label("disk", Some("full")));
    a.sees_member("a label beside the others", two.id(), |member| {
        member.metadata.as_ref().is_some_and(|metadata| metadata.level == 3 && metadata.labels.len() == 2)
    });
    b.runtime.block_on(b.gossip.set_label("disk", None));
    a.sees_member("its end", two.id(), |member| {
        member.metadata.as_ref().is_some_and(|metadata| metadata.labels.keys().eq(["zone"]))
    });
    let nameless = b.runtime.block_on(b.gossip.set_metadata(Metadata::default()));
    assert!(nameless.is_err());
}

#[test]
fn a_second_process_with_the_same_key_is_refused_and_the_first_goes_on() {
    let ca = founded();
    let [one, two] = [(); 2].map(|()| node(&ca));
    let a = Machine::start(&one, "a", 1, AddressBook::default());
    let b = Machine::start(&two, "b", 1, book_with(&a));
    a.sees_alive(2);
    let clone = Machine::start(&two, "b", 1, book_with(&a));
    let deposed = clone.runtime.block_on(async { timeout(PATIENCE, clone.gossip.deposed()).await });
    assert_eq!(deposed.expect("it learns it"), Deposed::InUse { generation: 1 });
    clone.kill();
    a.sees_member("the first", two.id(), |member| member.id.instance == b.endpoint.instance());
    b.sees_alive(2);
}
