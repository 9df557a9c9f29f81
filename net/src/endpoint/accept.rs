//! What comes in: connections, and on each of them the hello, streams and datagrams.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use tokio::{sync::Semaphore, time::timeout};

use super::{Class, Endpoint, Service, code, link::Link};
use crate::{
    address_book::plain,
    identity::NodeId,
    join,
    stream::{Receiver, Sender, Stream},
    tls::{self, Accepted, Standing},
};

/// A handshake takes two round trips; this is ten bad ones.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// From so many handshakes at once on, callers must first prove their address.
const HANDSHAKES_UNPROVED: usize = 64;
const HANDSHAKES_MAX: usize = 256;
/// Machines that join at the same time; each costs a signature and a commit.
const JOINS_MAX: usize = 16;
/// How long a stream may take to say its kind.
const KIND_MAX: Duration = Duration::from_secs(5);

const HELLO_VERSION: u8 = 1;
/// Longer than this version's hello, so that a later one may say more.
const HELLO_BYTES_MAX: usize = 64;
/// What a hello says after its first six bytes: a kind, a length, and so many bytes. Unknown kinds are skipped.
const HELLO_SEEN_AS: u8 = 1;

/// Takes connections until the endpoint shuts down.
pub(super) async fn run(endpoint: Endpoint) {
    // Whoever calls before anybody can answer waits in the handshake queue.
    endpoint.0.service.wait().await;
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let joins = Arc::new(Semaphore::new(JOINS_MAX));
    while let Some(incoming) = endpoint.0.quinn.accept().await {
        let under_way = HANDSHAKES_MAX - handshakes.available_permits();
        if under_way >= HANDSHAKES_UNPROVED && !incoming.remote_address_validated() && incoming.may_retry() {
            // Fails only if it may not retry.
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (joins, this) = (joins.clone(), endpoint.clone());
        endpoint.spawn(async move {
            let from = incoming.remote_address();
            let Ok(connecting) = incoming.accept() else { return };
            match timeout(HANDSHAKE_MAX, connecting).await {
                Ok(Ok(connection)) => {
                    drop(permit);
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
        }
        this.links().remove(&link);
    });
}

async fn talk(endpoint: &Endpoint, link: &Arc<Link>) -> Result<(), quinn::ConnectionError> {
    let connection = &link.connection;
    endpoint.spawn(say_hello(connection.clone(), link.class.get().copied(), endpoint.instance()));
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
            hello = connection.accept_uni() => {
                endpoint.spawn(hear_hello(endpoint.clone(), link.clone(), hello?));
            }
        }
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

/// Says which process this is, where the other end is seen from here and, having dialled, what the connection
/// is for.
async fn say_hello(connection: quinn::Connection, class: Option<Class>, instance: u32) {
    let class = match class {
        None => 0,
        Some(Class::Prompt) => 1,
        Some(Class::Bulk) => 2,
    };
    let mut hello = vec![HELLO_VERSION, class];
    hello.extend(instance.to_be_bytes());
    put_seen_as(&mut hello, plain(connection.remote_address()));
    // Failing, the connection is gone, which others notice.
    if let Ok(mut stream) = connection.open_uni().await
        && stream.write_all(&hello).await.is_ok()
    {
        let _ = stream.finish();
        // Until it has arrived, so that dropping the stream cannot cut it off.
        let _ = stream.stopped().await;
    }
}

async fn hear_hello(endpoint: Endpoint, link: Arc<Link>, mut stream: quinn::RecvStream) {
    let Ok(Ok(hello)) = timeout(KIND_MAX, stream.read_to_end(HELLO_BYTES_MAX)).await else { return };
    let mut hello = Bytes::from(hello);
    if hello.len() < 6 {
        return;
    }
    // Later versions only append, so the version itself needs no look.
    let _version = hello.get_u8();
    let class = match hello.get_u8() {
        1 => Some(Class::Prompt),
        2 => Some(Class::Bulk),
        _ => None,
    };
    // Set before or not, what was said first counts.
    let _ = link.instance.set(hello.get_u32());
    if let Some(seen_as) = take_seen_as(hello) {
        let _ = link.seen_as.set(seen_as);
        endpoint.0.whereabouts.prove(seen_as.ip());
    }
    if let Some(class) = class {
        let _ = link.class.set(class);
    }
    let outdated = endpoint.links().outdated_by(&link);
    for old in outdated {
        old.connection.close(code::STALE, b"restarted");
    }
    endpoint.links().settle(&link);
}

fn put_seen_as(hello: &mut Vec<u8>, at: SocketAddr) {
    let ip = match at.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    hello.put_u8(HELLO_SEEN_AS);
    hello.put_u8(ip.len() as u8 + 2);
    hello.put_slice(&ip);
    hello.put_u16(at.port());
}

fn take_seen_as(mut rest: Bytes) -> Option<SocketAddr> {
    while rest.remaining() >= 2 {
        let (kind, length) = (rest.get_u8(), usize::from(rest.get_u8()));
        if length > rest.remaining() {
            return None;
        }
        let mut said = rest.split_to(length);
        let ip: IpAddr = match (kind, length) {
            (HELLO_SEEN_AS, 6) => said.get_u32().to_be_bytes().into(),
            (HELLO_SEEN_AS, 18) => said.get_u128().to_be_bytes().into(),
            _ => continue,
        };
        return Some(plain(SocketAddr::new(ip, said.get_u16())));
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn where_the_other_end_is_seen_is_read_as_it_was_said_whatever_else_is() {
        for at in ["192.0.2.7:7946", "[2001:db8::7]:1"] {
            let at: SocketAddr = at.parse().unwrap();
            let mut hello = vec![200, 3, 1, 2, 3];
            put_seen_as(&mut hello, at);
            hello.extend([201, 0]);
            assert_eq!(take_seen_as(hello.clone().into()), Some(at));
            // One of an earlier version ends before; one that was cut off says nothing.
            assert_eq!(take_seen_as(Bytes::new()), None);
            assert_eq!(take_seen_as(hello[..9].to_vec().into()), None);
        }
    }

    proptest! {
        #[test]
        fn no_hello_is_read_beyond_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..HELLO_BYTES_MAX)) {
            let _ = take_seen_as(bytes.into());
        }
    }
}
