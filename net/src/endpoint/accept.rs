//! What comes in: connections, and on each of them the hello, streams and datagrams.

use std::{sync::Arc, time::Duration};

use bytes::Buf;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Endpoint, Service, code,
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
