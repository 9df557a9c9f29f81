//! Endpoints on loopback with real QUIC and TLS. Every wait is for a condition, with a bound that holds on
//! a busy machine too.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use rustls::{SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};
use tokio::{
    runtime::Runtime,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, sleep, timeout},
};

use super::{Class, Config, Endpoint, OpenError, Service, link::Link};
use crate::{
    address_book::AddressBook,
    ca::ClusterCa,
    identity::NodeId,
    incarnation::Foreign,
    join::{self, Admission, Admitted, Claim, Refusal},
    loopback::{Clock, Node, founded, tag},
    stream::{self, Stream},
    tls::Standing,
};

/// Far above what anything here takes, so that only a real fault reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came in.
enum Heard {
    Stream(NodeId, u8, Stream),
    Datagram(NodeId, u8, Bytes),
}

struct Ear(UnboundedSender<Heard>);

impl Service for Ear {
    fn stream(&self, peer: NodeId, kind: u8, stream: Stream) {
        let _ = self.0.send(Heard::Stream(peer, kind, stream));
    }

    fn datagram(&self, peer: NodeId, kind: u8, data: Bytes) {
        let _ = self.0.send(Heard::Datagram(peer, kind, data));
    }
}

struct Up {
    endpoint: Endpoint,
    heard: UnboundedReceiver<Heard>,
}

fn up_at(node: &Node, listen: SocketAddr) -> Up {
    let endpoint = Endpoint::bind(Config {
        listen,
        tag: node.tag,
        tls: node.tls.clone(),
        trust: node.trust.clone(),
        book: AddressBook::default(),
        advertise: Vec::new(),
        admission: None,
    })
    .expect("loopback is free");
    let (tell, heard) = unbounded_channel();
    endpoint.serve(Arc::new(Ear(tell)));
    Up { endpoint, heard }
}

fn up(node: &Node) -> Up {
    up_at(node, SocketAddr::from(([127, 0, 0, 1], 0)))
}

impl Up {
    fn knows(&self, other: &Up) {
        self.endpoint.book().worked(other.endpoint.node(), other.endpoint.local_address());
    }

    async fn next(&mut self) -> Heard {
        timeout(PATIENCE, self.heard.recv()).await.expect("something comes in").expect("the endpoint lives")
    }

    async fn next_stream(&mut self) -> (NodeId, u8, Stream) {
        loop {
            if let Heard::Stream(peer, kind, stream) = self.next().await {
                return (peer, kind, stream);
            }
        }
    }

    async fn next_datagram(&mut self) -> (NodeId, u8, Bytes) {
        loop {
            if let Heard::Datagram(peer, kind, data) = self.next().await {
                return (peer, kind, data);
            }
        }
    }
}

async fn two() -> (ClusterCa, Up, Up) {
    let ca = founded();
    let (a, b) = (up(&Node::of(&ca)), up(&Node::of(&ca)));
    a.knows(&b);
    (ca, a, b)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn streams_and_datagrams_go_both_ways_over_one_connection() {
    let (_ca, mut a, mut b) = two().await;
    let mut asked = a.endpoint.open(b.endpoint.node(), 7).await.unwrap();
    asked.tx.send(Bytes::from_static(b"question")).await.unwrap();
    asked.tx.finish().unwrap();

    let (peer, kind, mut served) = b.next_stream().await;
    assert_eq!((peer, kind), (a.endpoint.node(), 7));
    assert_eq!(served.rx.recv().await.unwrap().unwrap(), "question");
    assert!(served.rx.recv().await.unwrap().is_none(), "the question is whole");
    served.tx.send(Bytes::from_static(b"answer")).await.unwrap();
    served.tx.finish().unwrap();
    assert_eq!(asked.rx.recv().await.unwrap().unwrap(), "answer");
    assert!(asked.rx.recv().await.unwrap().is_none());

    // The book of `b` is empty but for what it observed: the way back is the same connection.
    until("the hello", || b.endpoint.rtt(a.endpoint.node()).is_some()).await;
    b.endpoint.datagram(a.endpoint.node(), 3, Bytes::from_static(b"tick"));
    let (peer, kind, data) = a.next_datagram().await;
    assert_eq!((peer, kind, &data[..]), (b.endpoint.node(), 3, &b"tick"[..]));
    let _back = b.endpoint.open(a.endpoint.node(), 8).await.unwrap();
    assert_eq!(a.endpoint.0.quinn.open_connections(), 1);
    assert_eq!(b.endpoint.book().addresses(a.endpoint.node()), [a.endpoint.local_address()]);
}

#[tokio::test]
async fn bulk_streams_have_a_connection_of_their_own() {
    let (_ca, a, mut b) = two().await;
    for class in [Class::Prompt, Class::Bulk, Class::Bulk, Class::Prompt] {
        let mut stream = a.endpoint.open_class(b.endpoint.node(), 1, class).await.unwrap();
        stream.tx.send(Bytes::new()).await.unwrap();
        stream.tx.finish().unwrap();
        b.next_stream().await;
    }
    assert_eq!(a.endpoint.0.quinn.open_connections(), 2);
}

#[tokio::test]
async fn a_frame_longer_than_the_limit_is_refused_and_one_of_the_limit_is_not() {
    let (_ca, a, mut b) = two().await;
    let mut asked = a.endpoint.open(b.endpoint.node(), 1).await.unwrap();
    asked.tx.send(Bytes::from(vec![1; 1000])).await.unwrap();
    asked.tx.send(Bytes::from(vec![2; 1001])).await.unwrap();
    let (_, _, mut served) = b.next_stream().await;
    served.rx.limit(1000);
    assert_eq!(served.rx.recv().await.unwrap().unwrap().len(), 1000);
    let refused = served.rx.recv().await.unwrap_err();
    assert!(matches!(refused, stream::Error::TooLong { bytes: 1001, bytes_max: 1000 }), "{refused}");
    let told = timeout(PATIENCE, asked.tx.delivered()).await.expect("the writer hears of it");
    assert!(told.is_err(), "the peer stopped reading");
    let too_long = Bytes::from(vec![0; stream::FRAME_BYTES_MAX + 1]);
    assert!(matches!(asked.tx.send(too_long).await, Err(stream::Error::TooLong { .. })));
}

#[tokio::test]
async fn a_stream_that_is_dropped_unfinished_is_never_taken_for_whole() {
    let (_ca, a, mut b) = two().await;
    let mut asked = a.endpoint.open(b.endpoint.node(), 1).await.unwrap();
    asked.tx.send(Bytes::from_static(b"half")).await.unwrap();
    let (_, _, mut served) = b.next_stream().await;
    assert_eq!(served.rx.recv().await.unwrap().unwrap(), "half");
    drop(asked);
    assert!(matches!(served.rx.recv().await, Err(stream::Error::Broken { .. })));
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn member_traffic_without_a_certificate_is_refused() {
    let ca = founded();
    let (mut b, stranger) = (up(&Node::of(&ca)), Node::of(&ca));
    let mut tls = (*stranger.tls.client_config()).clone();
    tls.client_auth_cert_resolver = Arc::new(NoCertificate);
    let name = crate::tls::server_name(b.endpoint.node());
    let connection = stranger
        .endpoint
        .connect_with(crate::loopback::client_config(Arc::new(tls)), b.endpoint.local_address(), &name)
        .unwrap()
        .await;
    // In TLS 1.3 the client is done before it hears of a refusal.
    if let Ok(connection) = connection {
        let _ = connection.send_datagram(Bytes::from_static(b"\x01hello"));
        timeout(PATIENCE, connection.closed()).await.expect("the connection is closed");
    }
    assert!(b.heard.try_recv().is_err(), "nothing came through");
    assert!(b.endpoint.connected().is_empty());
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_and_told_of_at_both_ends() {
    let (a, b) = (up(&Node::of(&founded())), up(&Node::of(&founded())));
    a.knows(&b);
    for _ in 0..2 {
        let refused = a.endpoint.open(b.endpoint.node(), 1).await.unwrap_err();
        assert!(matches!(refused, OpenError::Unreachable { .. }), "{refused}");
        assert!(b.endpoint.connected().is_empty());
    }
    until("the word at both ends", || [&a, &b].iter().all(|one| one.endpoint.0.strangers.count() == 1)).await;
}

/// Keys, authorities and certificates are the same: only the hello tells.
#[tokio::test]
async fn between_two_incarnations_of_a_cluster_nothing_passes_and_both_know_why() {
    let ca = founded();
    let of = |number| Node { tag: tag(1, number), ..Node::of(&ca) };
    let (mut older, mut newer) = (up(&of(1)), up(&of(2)));
    older.knows(&newer);
    newer.knows(&older);
    for (from, to) in [(&older, &newer), (&newer, &older)] {
        from.endpoint.datagram(to.endpoint.node(), 1, Bytes::from_static(b"x"));
        if let Ok(mut stream) = from.endpoint.open(to.endpoint.node(), 1).await {
            let _ = stream.tx.send(Bytes::from_static(b"x")).await;
            let answer = timeout(PATIENCE, stream.rx.recv()).await.expect("it breaks");
            assert!(answer.is_err());
        }
    }
    until("the word at both ends", || [&older, &newer].iter().all(|one| one.endpoint.estranged().len() == 1))
        .await;
    for (one, other, reason) in [
        (&older, &newer, Foreign::Newer { ours: 1, theirs: 2 }),
        (&newer, &older, Foreign::Older { ours: 2, theirs: 1 }),
    ] {
        let peer = other.endpoint.node();
        assert_eq!(one.endpoint.estranged()[&peer], reason);
        let refused = one.endpoint.open(peer, 1).await.unwrap_err();
        assert_eq!(refused, OpenError::Foreign { peer, reason }, "it is not even called");
    }
    for one in [&mut older, &mut newer] {
        assert!(one.heard.try_recv().is_err(), "nothing came through");
    }
}

#[tokio::test]
async fn a_removed_member_loses_its_connection_and_gets_no_new_one() {
    let ca = founded();
    let (one, two) = (Node::of(&ca), Node::of(&ca));
    let (a, b) = (up(&one), up(&two));
    a.knows(&b);
    b.knows(&a);
    let mut stream = a.endpoint.open(b.endpoint.node(), 1).await.unwrap();
    stream.tx.send(Bytes::from_static(b"x")).await.unwrap();
    until("the connection", || !b.endpoint.connected().is_empty()).await;

    two.trust.set(one.id(), Standing::Removed);
    b.endpoint.close(one.id());
    let broken = timeout(PATIENCE, stream.rx.recv()).await.expect("at once");
    assert!(matches!(broken, Err(stream::Error::Broken { .. })));
    assert_eq!(b.endpoint.open(one.id(), 1).await.unwrap_err(), OpenError::Removed { peer: one.id() });
    // The removed one may dial, but is shown the door.
    if let Ok(mut stream) = a.endpoint.open(b.endpoint.node(), 1).await {
        let _ = stream.tx.send(Bytes::from_static(b"x")).await;
        let answer = timeout(PATIENCE, stream.rx.recv()).await.expect("at once");
        assert!(answer.is_err());
    }
    assert!(b.endpoint.connected().is_empty());
    timeout(PATIENCE, a.endpoint.dismissed()).await.expect("it is told so");
}

/// Its daemon did not run when it was removed, or its disk was copied.
#[tokio::test]
async fn a_removed_member_that_comes_back_is_told_so_by_whoever_it_calls() {
    let ca = founded();
    let (one, two) = (Node::of(&ca), Node::of(&ca));
    let (a, b) = (up(&one), up(&two));
    a.knows(&b);
    two.trust.set(one.id(), Standing::Removed);
    a.endpoint.datagram(b.endpoint.node(), 1, Bytes::from_static(b"x"));
    timeout(PATIENCE, a.endpoint.dismissed()).await.expect("it is told so");
    assert!(b.endpoint.dismissed().now_or_never().is_none());
}

#[tokio::test]
async fn two_that_dial_each_other_at_once_understand_each_other() {
    let ca = founded();
    let (mut a, mut b) = (up(&Node::of(&ca)), up(&Node::of(&ca)));
    a.knows(&b);
    b.knows(&a);
    for number in 0..20u8 {
        a.endpoint.datagram(b.endpoint.node(), 1, Bytes::copy_from_slice(&[number]));
        b.endpoint.datagram(a.endpoint.node(), 1, Bytes::copy_from_slice(&[number]));
        a.next_datagram().await;
        b.next_datagram().await;
    }
    let (to_b, to_a) = (
        a.endpoint.links().best(b.endpoint.node(), Class::Prompt).unwrap(),
        b.endpoint.links().best(a.endpoint.node(), Class::Prompt).unwrap(),
    );
    let same = to_b.connection.side() != to_a.connection.side();
    assert!(same, "both use the same connection");
}

#[tokio::test]
async fn while_dialling_the_newest_sixteen_datagrams_wait() {
    let (_ca, a, mut b) = two().await;
    for number in 0..20u8 {
        a.endpoint.datagram(b.endpoint.node(), 1, Bytes::copy_from_slice(&[number]));
    }
    for number in 4..20u8 {
        assert_eq!(b.next_datagram().await.2[..], [number]);
    }
}

#[tokio::test]
async fn a_silent_address_costs_only_its_own_caller_and_the_right_one_is_found_behind_it() {
    let (ca, a, b) = two().await;
    // A machine that is off: packets to it vanish.
    let off = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (lost, missing) = (Node::of(&ca).id(), off.local_addr().unwrap());
    a.endpoint.book().worked(lost, missing);
    let failing = {
        let endpoint = a.endpoint.clone();
        tokio::spawn(async move { endpoint.open(lost, 1).await })
    };
    a.endpoint.open(b.endpoint.node(), 1).await.expect("others are not kept waiting");
    assert!(!failing.is_finished(), "the other call still tries");
    let refused = timeout(PATIENCE, failing).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(refused, OpenError::Unreachable { .. }), "{refused}");

    a.endpoint.invalidate(b.endpoint.node());
    a.endpoint.book().worked(b.endpoint.node(), missing);
    a.endpoint.open(b.endpoint.node(), 1).await.expect("the second address is right");
    let first = a.endpoint.book().addresses(b.endpoint.node())[0];
    assert_eq!(first, b.endpoint.local_address(), "what worked comes first");
}

#[tokio::test]
async fn who_is_found_at_an_address_must_be_who_was_sought() {
    let (ca, a, b) = two().await;
    let sought = Node::of(&ca).id();
    a.endpoint.book().worked(sought, b.endpoint.local_address());
    let refused = a.endpoint.open(sought, 1).await.unwrap_err();
    assert!(matches!(refused, OpenError::Unreachable { .. }), "{refused}");
    let unknown = Node::of(&ca).id();
    assert_eq!(a.endpoint.open(unknown, 1).await.unwrap_err(), OpenError::NoAddress { peer: unknown });
}

/// A node for a test that is not itself in a runtime.
fn node(ca: &ClusterCa) -> Node {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    Node::of(ca)
}

/// A node in a runtime of its own, which can be killed without a goodbye.
struct Mortal {
    runtime: Runtime,
    up: Up,
}

impl Mortal {
    fn start(node: &Node, listen: SocketAddr) -> Mortal {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let up = runtime.block_on(async { up_at(node, listen) });
        Mortal { runtime, up }
    }

    fn kill(self) -> SocketAddr {
        let address = self.up.endpoint.local_address();
        self.runtime.shutdown_timeout(PATIENCE);
        address
    }
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

async fn talk_to(a: &Up, peer: NodeId) -> Stream {
    let mut stream = a.endpoint.open(peer, 1).await.unwrap();
    stream.tx.send(Bytes::from_static(b"x")).await.unwrap();
    stream
}

/// The connection that stands towards `peer`.
fn standing(a: &Up, peer: NodeId) -> Arc<Link> {
    a.endpoint.links().best(peer, Class::Prompt).expect("a connection stands")
}

/// Speaks on a connection whose other end is dead, until it is given up; how long that took. It may be
/// given up already: what is still unacknowledged speaks by itself.
async fn given_up(old: &Link) -> Duration {
    let begin = Instant::now();
    let _ = old.connection.send_datagram(Bytes::from_static(b"\x01are you there"));
    timeout(PATIENCE, old.connection.closed()).await.expect("it is given up");
    begin.elapsed()
}

#[test]
fn a_process_that_was_killed_and_came_back_is_noticed_at_once() {
    let ca = founded();
    let (one, two) = (node(&ca), node(&ca));
    let a = Mortal::start(&one, ANY);
    let mut b = Mortal::start(&two, ANY);
    a.up.knows(&b.up);
    let _old = a.runtime.block_on(talk_to(&a.up, two.id()));
    b.runtime.block_on(b.up.next_stream());
    let old = standing(&a.up, two.id());
    let address = b.kill();

    let mut b = Mortal::start(&two, address);
    // Whatever is sent on the old connection is answered by the new process with a reset.
    let took = a.runtime.block_on(given_up(&old));
    assert!(took < super::IDLE_MAX / 2, "{took:?}: only the idle timeout noticed");
    let _new = a.runtime.block_on(talk_to(&a.up, two.id()));
    b.runtime.block_on(b.up.next_stream());
}

#[test]
fn a_machine_that_vanished_and_returned_elsewhere_is_reached_again_within_seconds() {
    let ca = founded();
    let (one, two) = (node(&ca), node(&ca));
    let a = Mortal::start(&one, ANY);
    let mut b = Mortal::start(&two, ANY);
    a.up.knows(&b.up);
    let _old = a.runtime.block_on(talk_to(&a.up, two.id()));
    b.runtime.block_on(b.up.next_stream());
    let old = standing(&a.up, two.id());
    let address = b.kill();
    let _silence = UdpSocket::bind(address).expect("the port is free again");

    let mut b = Mortal::start(&two, ANY);
    a.up.endpoint.book().learn(two.id(), "two", &[b.up.endpoint.local_address()]);
    let took = a.runtime.block_on(given_up(&old));
    assert!(took < super::IDLE_MAX / 2, "{took:?}: only the idle timeout noticed");
    let _new = a.runtime.block_on(talk_to(&a.up, two.id()));
    b.runtime.block_on(b.up.next_stream());
}

#[tokio::test]
async fn an_idle_connection_is_not_taken_for_a_dead_one() {
    let (_ca, a, mut b) = two().await;
    let mut asked = talk_to(&a, b.endpoint.node()).await;
    let (_, _, mut served) = b.next_stream().await;
    sleep(Duration::from_secs(5)).await;
    served.tx.send(Bytes::from_static(b"still here")).await.unwrap();
    assert_eq!(asked.rx.recv().await.unwrap().unwrap(), "still here");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let ca = founded();
    let a = up(&Node::of(&ca));
    let node = Node::of(&ca);
    let taken = Endpoint::bind(Config {
        listen: a.endpoint.local_address(),
        tag: node.tag,
        tls: node.tls.clone(),
        trust: node.trust.clone(),
        book: AddressBook::default(),
        advertise: Vec::new(),
        admission: None,
    });
    let text = taken.err().expect("the port is taken").to_string();
    assert!(text.contains(&a.endpoint.local_address().to_string()), "{text}");
}

#[tokio::test]
async fn each_end_learns_where_the_other_one_sees_it() {
    let (_ca, a, mut b) = two().await;
    let _asked = talk_to(&a, b.endpoint.node()).await;
    b.next_stream().await;
    for (here, there) in [(&a, &b), (&b, &a)] {
        let seen = || here.endpoint.seen_as().get(&there.endpoint.node()).copied();
        until("the hello", || seen() == Some(here.endpoint.local_address())).await;
    }
}

#[tokio::test]
async fn what_is_advertised_is_all_that_others_are_told() {
    let node = Node::of(&founded());
    let told: Vec<SocketAddr> = vec!["203.0.113.7:17946".parse().unwrap()];
    let endpoint = Endpoint::bind(Config {
        tag: node.tag,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: node.tls.clone(),
        trust: node.trust.clone(),
        book: AddressBook::default(),
        advertise: told.clone(),
        admission: None,
    })
    .expect("loopback is free");
    assert_eq!(endpoint.reachable_addresses(), told);
    assert_eq!(endpoint.host_address(), told[0].ip());
}

#[tokio::test]
async fn after_the_shutdown_peers_know_and_calls_fail() {
    let (_ca, a, mut b) = two().await;
    let mut asked = talk_to(&a, b.endpoint.node()).await;
    b.next_stream().await;
    timeout(PATIENCE, b.endpoint.shutdown()).await.expect("it ends");
    assert!(timeout(PATIENCE, asked.rx.recv()).await.expect("told").is_err());
    assert_eq!(b.endpoint.open(a.endpoint.node(), 1).await.unwrap_err(), OpenError::ShuttingDown);
}

#[tokio::test]
async fn a_call_under_way_also_tries_addresses_that_become_known_meanwhile() {
    let ca = founded();
    let (a, b) = (up(&Node::of(&ca)), up(&Node::of(&ca)));
    // Takes everything and answers nothing.
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    a.endpoint.book().worked(b.endpoint.node(), nobody.local_addr().unwrap());
    let (endpoint, peer) = (a.endpoint.clone(), b.endpoint.node());
    let calling = tokio::spawn(async move { endpoint.open(peer, 1).await });
    // The first packet is out: the call is under way.
    nobody.set_nonblocking(true).unwrap();
    until("the call", || nobody.recv(&mut [0; 2048]).is_ok()).await;
    a.endpoint.book().learn(peer, "", &[b.endpoint.local_address()]);
    assert!(calling.await.unwrap().is_ok());
}

fn send(from: &Up, bytes: &[u8], to: SocketAddr) {
    super::beside::send(&from.endpoint.beside().socket(), bytes, to, None).unwrap();
}

#[tokio::test]
async fn what_lacks_the_bit_of_quic_travels_beside_it() {
    let (_ca, a, mut b) = two().await;
    let mut beside = b.endpoint.beside().received().unwrap();
    assert!(b.endpoint.beside().received().is_none(), "there is one reader");
    let to = b.endpoint.local_address();
    let long = vec![0x05; super::beside::BESIDE_BYTES_MAX + 1];
    // In between others of its kind and of QUIC, which the kernel may hand over together.
    for count in 0..20u8 {
        send(&a, &long, to);
        send(&a, &[0x05, count], to);
        a.endpoint.datagram(b.endpoint.node(), 1, Bytes::from(vec![count]));
        let (from, bytes) = timeout(PATIENCE, beside.recv()).await.unwrap().unwrap();
        assert_eq!((from, &bytes[..]), (a.endpoint.local_address(), [0x05, count].as_slice()));
        let (peer, _, data) = b.next_datagram().await;
        assert_eq!((peer, &data[..]), (a.endpoint.node(), [count].as_slice()));
    }
}

#[tokio::test]
async fn a_dual_stack_endpoint_speaks_beside_quic_with_both_families() {
    let ca = founded();
    let Ok(probe) = UdpSocket::bind("[::1]:0") else { return eprintln!("skipped: no IPv6 here") };
    drop(probe);
    let four = up(&Node::of(&ca));
    let six = up_at(&Node::of(&ca), "[::1]:0".parse().unwrap());
    let both = up_at(&Node::of(&ca), "[::]:0".parse().unwrap());
    let port = both.endpoint.local_address().port();
    let mut received = both.endpoint.beside().received().unwrap();
    for (one, at) in [(&four, "127.0.0.1"), (&six, "::1")] {
        let at = SocketAddr::new(at.parse().unwrap(), port);
        send(one, &[0x05, 1], at);
        let (from, _) = timeout(PATIENCE, received.recv()).await.unwrap().unwrap();
        assert_eq!(from, one.endpoint.local_address(), "in its plain form");
        let mut answer = one.endpoint.beside().received().unwrap();
        send(&both, &[0x05, 2], from);
        assert_eq!(&timeout(PATIENCE, answer.recv()).await.unwrap().unwrap().1[..], [0x05, 2]);
    }
}

struct Nobody;

#[async_trait::async_trait]
impl Admission for Nobody {
    async fn admit(&self, _: Claim) -> Result<Admitted, Refusal> {
        Err(Refusal::Removed)
    }
}

/// Sixteen of them that nobody knows had 8 MiB each.
#[tokio::test]
async fn whoever_wants_to_join_has_little_under_way_and_a_member_much() {
    let (ca, a, mut b) = two().await;
    let node = Node::of(&ca);
    let lets_join = Endpoint::bind(Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        tag: node.tag,
        tls: node.tls.clone(),
        trust: node.trust.clone(),
        book: AddressBook::default(),
        advertise: Vec::new(),
        admission: Some(Arc::new(Nobody)),
    })
    .expect("loopback is free");
    lets_join.serve(Arc::new(Ear(unbounded_channel().0)));
    let config = join::quinn_config(ca.pin(), Clock::at(Duration::ZERO).provider()).expect("a config");
    let caller = join::caller().expect("a port is free");
    let joiner = caller.connect_with(config, lets_join.local_address(), "join.skein").expect("loopback");
    let joiner = joiner.await.expect("whoever has a token gets this far");
    let piece = vec![0; 16 << 10];
    let (mut sent, mut open) = (0, Vec::new());
    // The first one is read as a claim, and never ends.
    for _ in 0..40 {
        let (mut stream, _) = joiner.open_bi().await.expect("a stream");
        match timeout(Duration::from_millis(200), stream.write_all(&piece)).await {
            Ok(written) => written.expect("it stays open for seconds"),
            Err(_) => break,
        }
        sent += piece.len();
        open.push(stream);
    }
    assert!(sent <= 256 << 10, "{sent} bytes are under way");

    let mut asked = a.endpoint.open(b.endpoint.node(), 7).await.unwrap();
    let (_, _, _unread) = b.next_stream().await;
    for _ in 0..16 {
        asked.tx.send(Bytes::from(vec![0; 64 << 10])).await.unwrap();
    }
}
