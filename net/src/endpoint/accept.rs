//! What comes in: connections, and on each of them the hello, streams and datagrams.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Buf;
use tokio::{sync::Semaphore, time::timeout};

use quinn::VarInt;

use super::{
    CONNECTION_WINDOW_BYTES, Endpoint, Service, code,
    hello::{self, Hello},
    link::Link,
};
use crate::{
    address_book::plain,
    identity::NodeId,
    incarnation::{Incarnation, Tag},
    join,
    stream::{Receiver, Sender, Stream},
    tls::{self, Accepted, Standing},
};

/// A handshake takes two round trips; this is ten bad ones.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// From so many handshakes at once on, callers must first prove their address.
const HANDSHAKES_UNPROVED: usize = 64;
const HANDSHAKES_MAX: usize = 256;
/// The same of one address, whose senders anybody may pretend to be; and how many it may have once it has proved that it
/// is there.
const HANDSHAKES_UNPROVED_OF_ONE: usize = 8;
const HANDSHAKES_MAX_OF_ONE: usize = 16;
/// Machines that join at the same time; each costs a signature and a commit.
const JOINS_MAX: usize = 16;
/// How long a stream may take to say its kind.
const KIND_MAX: Duration = Duration::from_secs(5);
/// How long a connection may take to say hello: with it comes the rest.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// How long it stays open for a node of elsewhere, until that one has heard so.
const PARTING_MAX: Duration = Duration::from_millis(500);
/// The TLS alert `certificate_revoked`, with which a server refuses a removed client (RFC 8446 §6.2).
const CERTIFICATE_REVOKED: u8 = 44;

/// Takes connections until the endpoint shuts down.
pub(super) async fn run(endpoint: Endpoint) {
    // Whoever calls before anybody can answer waits in the handshake queue.
    endpoint.0.service.wait().await;
    let handshakes = Handshakes::default();
    let joins = Arc::new(Semaphore::new(JOINS_MAX));
    while let Some(incoming) = endpoint.0.quinn.accept().await {
        let proof = match (incoming.remote_address_validated(), incoming.may_retry()) {
            (true, _) => Proof::Given,
            (false, true) => Proof::Possible,
            (false, false) => Proof::None,
        };
        let under_way = match handshakes.begin(incoming.remote_address(), proof) {
            Begun::Yes(under_way) => under_way,
            Begun::Prove => {
                // Fails only if it may not retry.
                let _ = incoming.retry();
                continue;
            }
            Begun::No => {
                incoming.refuse();
                continue;
            }
        };
        let (joins, this) = (joins.clone(), endpoint.clone());
        endpoint.spawn(async move {
            let from = incoming.remote_address();
            let Ok(connecting) = incoming.accept() else { return };
            match timeout(HANDSHAKE_MAX, connecting).await {
                Ok(Ok(connection)) => {
                    drop(under_way);
                    admit(&this, connection, &joins).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%from, %error, "refused a connection");
                    this.0.strangers.meet(from, &error);
                }
                Err(_) => tracing::debug!(%from, "a handshake took too long"),
            }
        });
    }
}

/// Handshakes under way, in all and by address. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
struct Handshakes(Arc<Mutex<HashMap<(IpAddr, bool), usize>>>);

/// Whether a caller has shown that it gets what is sent to its address.
#[derive(Clone, Copy, PartialEq)]
enum Proof {
    Given,
    Possible,
    None,
}

/// What becomes of a caller.
enum Begun {
    Yes(UnderWay),
    /// It is to prove its address first.
    Prove,
    No,
}

/// One handshake, until it is dropped.
struct UnderWay {
    all: Handshakes,
    key: (IpAddr, bool),
}

impl Handshakes {
    fn begin(&self, from: SocketAddr, proof: Proof) -> Begun {
        let key = (origin(from.ip()), proof == Proof::Given);
        let mut counts = self.counts();
        let (all, own) = (counts.values().sum::<usize>(), counts.get(&key).copied().unwrap_or(0));
        if proof == Proof::Possible && (all >= HANDSHAKES_UNPROVED || own >= HANDSHAKES_UNPROVED_OF_ONE) {
            return Begun::Prove;
        }
        if all >= HANDSHAKES_MAX || own >= HANDSHAKES_MAX_OF_ONE {
            return Begun::No;
        }
        *counts.entry(key).or_default() += 1;
        drop(counts);
        Begun::Yes(UnderWay { all: self.clone(), key })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<(IpAddr, bool), usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut counts = self.all.counts();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// What counts as one address: an IPv6 host may take any of its network of 64 bits.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

async fn admit(endpoint: &Endpoint, connection: quinn::Connection, joins: &Semaphore) {
    match tls::accepted(&connection) {
        Ok(Accepted::Joiner) => admit_joiner(endpoint, connection, joins).await,
        Ok(Accepted::Member(peer)) => admit_member(endpoint, peer, connection),
        Err(reason) => connection.close(code::NOT_ADMITTED, reason.to_string().as_bytes()),
    }
}

async fn admit_joiner(endpoint: &Endpoint, connection: quinn::Connection, joins: &Semaphore) {
    let (Some(admission), Ok(_permit)) = (&endpoint.0.admission, joins.try_acquire()) else {
        connection.close(code::NOT_JOINING, b"this node lets nobody join now; try another one");
        return;
    };
    let reached_at = connection.local_ip();
    if let (true, Some(ip)) = (join::serve(connection, admission.as_ref()).await, reached_at) {
        endpoint.0.whereabouts.prove(ip);
    }
}

fn admit_member(endpoint: &Endpoint, peer: NodeId, connection: quinn::Connection) {
    if peer == endpoint.node() {
        return connection.close(code::MYSELF, b"this node does not call itself");
    }
    if endpoint.0.trust.judge(peer) == Standing::Removed {
        return connection.close(code::REMOVED, b"removed from the cluster");
    }
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
    endpoint.book().worked(peer, connection.remote_address());
    if let Some(ip) = connection.local_ip() {
        endpoint.0.whereabouts.prove(ip);
    }
    attend(endpoint, Link::new(endpoint.node(), peer, connection, None));
}

/// Puts a new connection to use and looks after it until it ends.
pub(super) fn attend(endpoint: &Endpoint, link: Arc<Link>) {
    endpoint.links().add(&link);
    endpoint.links().settle(&link);
    let this = endpoint.clone();
    endpoint.spawn(async move {
        if let Err(error) = talk(&this, &link).await {
            tracing::debug!(peer = %link.peer, %error, "a connection ended");
            if is_dismissal(&error) {
                tracing::debug!(peer = %link.peer, "a member says that this node was removed");
                this.0.dismissed.cancel();
            }
        }
        this.links().remove(&link);
    });
}

async fn talk(endpoint: &Endpoint, link: &Arc<Link>) -> Result<(), quinn::ConnectionError> {
    let connection = &link.connection;
    let own = endpoint.0.tag;
    let hello = Hello {
        class: link.class.get().copied(),
        instance: endpoint.instance(),
        seen_as: Some(plain(connection.remote_address())),
        tag: Some(own),
    };
    let said = tokio::spawn(say(connection.clone(), hello));
    let Ok(Some(hello)) = timeout(HELLO_MAX, hear(connection)).await else {
        // What the other end gave as its reason: closing it here as well would put another one in its place.
        if let Some(reason) = connection.close_reason() {
            return Err(reason);
        }
        connection.close(code::NOT_ADMITTED, b"no hello");
        return Err(connection.closed().await);
    };
    let unnamed = || Tag { incarnation: Incarnation::unnamed(own.cluster), ..own };
    let theirs = hello.tag.unwrap_or_else(unnamed);
    if let Err(foreign) = own.check(&theirs) {
        endpoint.0.estranged.meet(link.peer, foreign, theirs);
        // The other end is to know as well, by this end's hello; a connection that is closed cannot be read.
        let _ = timeout(PARTING_MAX, async { (said.await, connection.closed().await) }).await;
        connection.close(code::FOREIGN, foreign.to_string().as_bytes());
        return Err(connection.closed().await);
    }
    endpoint.0.estranged.forgive(link.peer);
    greet(endpoint, link, hello);
    let service = endpoint.0.service.wait().await.clone();
    loop {
        tokio::select! {
            datagram = connection.read_datagram() => {
                let mut datagram = datagram?;
                if datagram.has_remaining() {
                    let kind = datagram.get_u8();
                    service.datagram(link.peer, kind, datagram);
                }
            }
            stream = connection.accept_bi() => {
                let (send, receive) = stream?;
                endpoint.spawn(hand_over(service.clone(), link.clone(), send, receive));
            }
        }
    }
}

/// Whether the member at the other end of this connection has said that this node was removed. Both have proved who
/// they are by then: a refusal in the middle of a handshake could be anybody's.
fn is_dismissal(error: &quinn::ConnectionError) -> bool {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => close.error_code == code::REMOVED,
        quinn::ConnectionError::ConnectionClosed(close) => {
            close.error_code == quinn::TransportErrorCode::crypto(CERTIFICATE_REVOKED)
        }
        _ => false,
    }
}

/// Reads a stream's kind and gives it to the service.
async fn hand_over(
    service: Arc<dyn Service>,
    link: Arc<Link>,
    send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) {
    // From here on a stream that is dropped is refused.
    let tx = Sender::new(send);
    let mut kind = [0];
    if let Ok(Ok(())) = timeout(KIND_MAX, receive.read_exact(&mut kind)).await {
        service.stream(link.peer, kind[0], Stream { tx, rx: Receiver::new(receive) });
    }
}

/// Says hello, and stays until it has arrived.
async fn say(connection: quinn::Connection, hello: Hello) {
    // Failing, the connection is gone, which others notice.
    if let Ok(mut stream) = connection.open_uni().await
        && stream.write_all(&hello.to_bytes()).await.is_ok()
    {
        let _ = stream.finish();
        // Until it has arrived, so that dropping the stream cannot cut it off.
        let _ = stream.stopped().await;
    }
}

async fn hear(connection: &quinn::Connection) -> Option<Hello> {
    let mut stream = connection.accept_uni().await.ok()?;
    Hello::parse(&stream.read_to_end(hello::BYTES_MAX).await.ok()?)
}

/// The peer belongs here: its connection is used from now on, and those to earlier processes of it are not.
fn greet(endpoint: &Endpoint, link: &Arc<Link>, hello: Hello) {
    // Set before or not, what was said first counts.
    let _ = link.instance.set(hello.instance);
    if let Some(seen_as) = hello.seen_as {
        let _ = link.seen_as.set(seen_as);
        endpoint.0.whereabouts.prove(seen_as.ip());
    }
    if let Some(class) = hello.class {
        let _ = link.class.set(class);
    }
    let outdated = endpoint.links().outdated_by(link);
    for old in outdated {
        old.connection.close(code::STALE, b"restarted");
    }
    endpoint.links().settle(link);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(handshakes: &Handshakes, from: &str, proof: Proof) -> Begun {
        handshakes.begin(SocketAddr::new(from.parse().unwrap(), 7946), proof)
    }

    fn held(handshakes: &Handshakes, from: &str, proof: Proof, count: usize) -> Vec<UnderWay> {
        let begun = (0..count).map(|_| match begin(handshakes, from, proof) {
            Begun::Yes(under_way) => under_way,
            Begun::Prove | Begun::No => panic!("{from} is not let in"),
        });
        begun.collect()
    }

    #[test]
    fn one_address_leaves_room_for_others() {
        let handshakes = Handshakes::default();
        let _held = held(&handshakes, "192.0.2.1", Proof::Given, HANDSHAKES_MAX_OF_ONE);
        assert!(matches!(begin(&handshakes, "192.0.2.1", Proof::Given), Begun::No));
        assert!(matches!(begin(&handshakes, "192.0.2.2", Proof::Given), Begun::Yes(_)));
    }

    /// Whoever pretends to be at a member's address does not keep it out.
    #[test]
    fn who_proves_to_be_there_does_not_count_with_those_that_did_not() {
        let handshakes = Handshakes::default();
        let pretended = held(&handshakes, "192.0.2.1", Proof::Possible, HANDSHAKES_UNPROVED_OF_ONE);
        assert!(matches!(begin(&handshakes, "192.0.2.1", Proof::Possible), Begun::Prove));
        assert!(matches!(begin(&handshakes, "192.0.2.1", Proof::Given), Begun::Yes(_)));
        drop(pretended);
        assert!(matches!(begin(&handshakes, "192.0.2.1", Proof::Possible), Begun::Yes(_)));
    }

    #[test]
    fn in_all_there_are_so_many_and_who_left_is_forgotten() {
        let handshakes = Handshakes::default();
        let one = |number: usize| format!("192.0.2.{number}");
        let all: Vec<_> = (0..HANDSHAKES_MAX / HANDSHAKES_MAX_OF_ONE)
            .flat_map(|number| held(&handshakes, &one(number), Proof::Given, HANDSHAKES_MAX_OF_ONE))
            .collect();
        assert!(matches!(begin(&handshakes, "192.0.2.200", Proof::Given), Begun::No));
        assert!(matches!(begin(&handshakes, "192.0.2.200", Proof::Possible), Begun::Prove));
        drop(all);
        assert!(handshakes.counts().is_empty());
    }

    #[test]
    fn a_network_of_64_bits_is_one_address() {
        let handshakes = Handshakes::default();
        let _held = held(&handshakes, "2001:db8::1", Proof::Given, HANDSHAKES_MAX_OF_ONE);
        assert!(matches!(begin(&handshakes, "2001:db8::2:1", Proof::Given), Begun::No));
        assert!(matches!(begin(&handshakes, "2001:db8:0:1::1", Proof::Given), Begun::Yes(_)));
    }
}
