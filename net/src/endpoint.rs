//! The one UDP port of a node: connections by node id, framed streams, datagrams.
//!
//! A caller names a node; where it is and whether a connection stands is found out here. Connections are
//! made when needed, mutual TLS always, and kept while they are used (30 s). A connection that gives no
//! sign of life although it should is dropped after 2 s, one to a process that is gone as soon as its
//! successor speaks.
//!
//! A connection begins with both ends' hello: which process speaks, what for, and where it belongs. Nothing else
//! is taken from it before; who belongs to another cluster or incarnation is told so and left alone.
//!
//! Streams of class [`Class::Bulk`] have their own connection, so that a snapshot never delays a vote.
//!
//! Not here: what streams and datagrams mean (their `kind` is a number to us), who may be a member
//! ([`Trust`]), who is alive (`gossip`).

mod accept;
pub(crate) mod beside;
mod dial;
mod estranged;
mod hello;
mod link;
mod socket;
mod strangers;
#[cfg(test)]
mod tests;
mod whereabouts;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{IdleTimeout, VarInt};
use tokio::{
    sync::{SetOnce, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    beside::Beside,
    estranged::Estranged,
    link::{Link, Links},
    strangers::Strangers,
    whereabouts::Whereabouts,
};
use crate::{
    address_book::{AddressBook, plain},
    identity::NodeId,
    incarnation::{Foreign, Tag},
    interfaces::{self, Interfaces},
    join::Admission,
    listen,
    stream::{Receiver, Sender, Stream},
    tls::{Standing, Tls, Trust},
};

/// The port for node traffic, unless another one is chosen.
pub const PORT: u16 = 7946;

/// Connections that carry only gossip come and go; 30 s spares most handshakes in clusters up to 100.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How long all addresses of a node together are tried.
const DIAL_MAX: Duration = Duration::from_secs(3);
/// How long a stream waits for one of the [`STREAMS_MAX`] places.
const OPEN_MAX: Duration = Duration::from_secs(2);
/// Streams a peer may have open towards us on one connection. QUIC keeps a record for each of them, used
/// or not: 38 KiB per connection end with 8, 130 KiB with 1024.
const STREAMS_MAX: u32 = 64;
/// What one stream, and one whole connection, may have under way unread.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// The same of a whole connection until it is known to be a member's: a claim to join, and room for the hello.
const STRANGERS_WINDOW_BYTES: u32 = 128 * 1024;
/// Unsent, or received and not yet taken, datagrams of one connection; the oldest are dropped.
const DATAGRAM_BUFFER_BYTES: usize = 128 * 1024;

/// Why a connection was closed, as the other side reads it.
mod code {
    use quinn::VarInt;

    pub(super) const SHUTDOWN: VarInt = VarInt::from_u32(1);
    pub(super) const NOT_ADMITTED: VarInt = VarInt::from_u32(2);
    pub(super) const REMOVED: VarInt = VarInt::from_u32(3);
    pub(super) const STALE: VarInt = VarInt::from_u32(4);
    pub(super) const TOO_MANY: VarInt = VarInt::from_u32(5);
    pub(super) const MYSELF: VarInt = VarInt::from_u32(6);
    pub(super) const NOT_JOINING: VarInt = VarInt::from_u32(7);
    pub(super) const FOREIGN: VarInt = VarInt::from_u32(8);
}

/// What an endpoint needs.
pub struct Config {
    /// Where to listen, UDP. Port 0 takes any free port.
    pub listen: SocketAddr,
    /// Where this node belongs: whoever belongs elsewhere is given nothing, and taken nothing from.
    pub tag: Tag,
    /// Who this node is, and how it proves it.
    pub tls: Tls,
    /// Who may be a member.
    pub trust: Arc<dyn Trust>,
    /// Where the others are; the endpoint adds what it finds out.
    pub book: AddressBook,
    /// What others are told of where this node is, at most four, best first; empty for what is found out.
    pub advertise: Vec<SocketAddr>,
    /// Who lets machines join; without it they are refused.
    pub admission: Option<Arc<dyn Admission>>,
}

/// Takes the place where an endpoint will listen.
pub fn socket(listen: SocketAddr) -> Result<UdpSocket, BindError> {
    listen::udp(listen).map_err(|source| BindError::Listen { listen, source })
}

/// Why the endpoint does not listen. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port is in use or the address is not of this machine.
    #[error(
        "cannot listen on {listen} (UDP) for other nodes; stop what uses the port, or choose another with --listen"
    )]
    Listen {
        /// The address asked for.
        listen: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The TLS side is not fit for QUIC.
    #[error("cannot use the node's TLS configuration for QUIC: {reason}")]
    Tls {
        /// What is missing.
        reason: String,
    },
}

/// Why there is no stream. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No address is known.
    #[error("no address is known for node {peer}; it will be found when it speaks or gossip tells")]
    NoAddress {
        /// The node.
        peer: NodeId,
    },
    /// Nobody proved to be that node at any of its addresses.
    #[error("could not reach node {peer}: {reason}; check that it runs and that UDP gets through")]
    Unreachable {
        /// The node.
        peer: NodeId,
        /// What happened at the best address.
        reason: String,
    },
    /// The connection stands, but all its streams are in use.
    #[error("node {peer} takes no more streams; try again")]
    Busy {
        /// The node.
        peer: NodeId,
    },
    /// It was removed from the cluster.
    #[error("node {peer} was removed from the cluster; let it join again with a new token")]
    Removed {
        /// The node.
        peer: NodeId,
    },
    /// It is of another cluster or incarnation; this is asked again now and then.
    #[error("node {peer} is left alone: {reason}")]
    Foreign {
        /// The node.
        peer: NodeId,
        /// What its hello said.
        reason: Foreign,
    },
    /// A node does not call itself.
    #[error("node {peer} is this node itself")]
    Myself {
        /// This node.
        peer: NodeId,
    },
    /// This endpoint is shutting down.
    #[error("this node is shutting down")]
    ShuttingDown,
}

/// Which connection a stream uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Small and urgent: votes, heartbeats, gossip, forwarded writes.
    Prompt,
    /// Long and patient: snapshots, images, logs.
    Bulk,
}

/// What other nodes send here ends here. Both calls return at once; work goes to tasks of the service.
pub trait Service: Send + Sync + 'static {
    /// `peer` opened a stream of this kind. Dropping it refuses.
    fn stream(&self, peer: NodeId, kind: u8, stream: Stream);
    /// `peer` sent a datagram of this kind.
    fn datagram(&self, peer: NodeId, kind: u8, data: Bytes);
}

/// A node's way to all others. Cheap to clone; lives until [`Endpoint::shutdown`].
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    me: NodeId,
    /// Drawn at each start; by it a peer notices that this process is not the one it knew.
    instance: u32,
    listen: SocketAddr,
    tag: Tag,
    beside: Beside,
    whereabouts: Whereabouts,
    /// A member said that this node was removed.
    dismissed: CancellationToken,
    quinn: quinn::Endpoint,
    client: quinn::ClientConfig,
    trust: Arc<dyn Trust>,
    book: AddressBook,
    admission: Option<Arc<dyn Admission>>,
    service: SetOnce<Arc<dyn Service>>,
    links: Mutex<Links>,
    strangers: Strangers,
    estranged: Estranged,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Endpoint {
    /// Listens, and answers as soon as [`Endpoint::serve`] has said who does. Needs a tokio runtime.
    pub fn bind(config: Config) -> Result<Endpoint, BindError> {
        let socket = socket(config.listen)?;
        Endpoint::on(socket, config)
    }

    /// The same on a [`socket`] that was taken before.
    pub fn on(socket: UdpSocket, config: Config) -> Result<Endpoint, BindError> {
        let failed = |source| BindError::Listen { listen: config.listen, source };
        let unfit = |error: &dyn std::fmt::Display| BindError::Tls { reason: error.to_string() };
        let server = quinn::crypto::rustls::QuicServerConfig::try_from(config.tls.server_config())
            .map_err(|error| unfit(&error))?;
        let client = quinn::crypto::rustls::QuicClientConfig::try_from(config.tls.client_config())
            .map_err(|error| unfit(&error))?;

        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
        let mut for_strangers = transport();
        for_strangers.receive_window(VarInt::from_u32(STRANGERS_WINDOW_BYTES));
        server.transport_config(Arc::new(for_strangers)).max_incoming(256);
        let mut client = quinn::ClientConfig::new(Arc::new(client));
        client.transport_config(Arc::new(transport()));

        let runtime = Arc::new(quinn::TokioRuntime);
        let (socket, beside) = beside::share(socket).map_err(failed)?;
        let quinn =
            quinn::Endpoint::new_with_abstract_socket(memorable(&config.tls), Some(server), socket, runtime)
                .map_err(failed)?;
        let listen = quinn.local_addr().map_err(failed)?;

        let endpoint = Endpoint(Arc::new(Inner {
            me: config.tls.node(),
            instance: rand::random(),
            listen,
            tag: config.tag,
            beside,
            whereabouts: Whereabouts::new(listen, config.advertise),
            dismissed: CancellationToken::new(),
            quinn,
            client,
            trust: config.trust,
            book: config.book,
            admission: config.admission,
            service: SetOnce::new(),
            links: Mutex::default(),
            strangers: Strangers::default(),
            estranged: Estranged::default(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }));
        endpoint.spawn(accept::run(endpoint.clone()));
        endpoint.spawn(link::keep_house(endpoint.clone()));
        endpoint.spawn(whereabouts::follow(endpoint.clone()));
        Ok(endpoint)
    }

    /// Names the receiver of everything that comes in; until then it waits. Only the first call counts.
    pub fn serve(&self, service: Arc<dyn Service>) {
        let _ = self.0.service.set(service);
    }

    /// Opens a stream for small and urgent things. See [`Endpoint::open_class`].
    pub async fn open(&self, peer: NodeId, kind: u8) -> Result<Stream, OpenError> {
        self.open_class(peer, kind, Class::Prompt).await
    }

    /// Opens a stream, over a standing connection or a new one (3 s at most, all addresses tried).
    ///
    /// `Ok` does not yet mean that the peer is there or lets us in, only its answer does. May be cancelled;
    /// a connection under way is then finished for the next caller.
    pub async fn open_class(&self, peer: NodeId, kind: u8, class: Class) -> Result<Stream, OpenError> {
        // A standing connection may turn out dead on the first try; then the second one dials.
        for _ in 0..2 {
            let link = self.link(peer, class).await?;
            match timeout(OPEN_MAX, link.connection.open_bi()).await {
                Ok(Ok((mut send, receive))) => {
                    if send.write_all(&[kind]).await.is_ok() {
                        return Ok(Stream { tx: Sender::new(send), rx: Receiver::new(receive) });
                    }
                    self.drop_link(&link);
                }
                Ok(Err(_)) => self.drop_link(&link),
                Err(_) => return Err(OpenError::Busy { peer }),
            }
        }
        Err(OpenError::Unreachable { peer, reason: "the connection broke twice".into() })
    }

    /// Sends a datagram, which may get lost. While a connection is being made up to 16 wait for it, then
    /// the oldest are dropped.
    ///
    /// `data` may have [`DATAGRAM_BYTES_MAX`] bytes; longer ones are dropped.
    pub fn datagram(&self, peer: NodeId, kind: u8, data: Bytes) {
        if data.len() > DATAGRAM_BYTES_MAX {
            tracing::debug!(%peer, kind, bytes = data.len(), "dropped a datagram that is too long");
            return;
        }
        let mut datagram = BytesMut::with_capacity(1 + data.len());
        datagram.put_u8(kind);
        datagram.put(data);
        self.send_or_queue(peer, datagram.freeze());
    }

    /// The round trip to a peer, if a connection stands.
    pub fn rtt(&self, peer: NodeId) -> Option<Duration> {
        Some(self.links().best(peer, Class::Prompt)?.connection.rtt())
    }

    /// Where a peer is, as its packets show, if a connection stands.
    pub fn remote_address(&self, peer: NodeId) -> Option<SocketAddr> {
        Some(plain(self.links().best(peer, Class::Prompt)?.connection.remote_address()))
    }

    /// Where each peer with a standing connection sees this node: at another address than its own where
    /// something between them translates.
    pub fn seen_as(&self) -> BTreeMap<NodeId, SocketAddr> {
        self.links().seen_as()
    }

    /// Peers with a standing connection.
    pub fn connected(&self) -> Vec<NodeId> {
        self.links().connected()
    }

    /// Drops what stands towards a peer because a call was not answered in time: the next call dials. Its
    /// streams break.
    pub fn invalidate(&self, peer: NodeId) {
        for link in self.links().take_all(peer) {
            link.connection.close(code::STALE, b"not answering");
        }
    }

    /// Drops connections to a peer at addresses that it no longer has; `addresses` are all its present ones.
    pub(crate) fn leave_old_addresses(&self, peer: NodeId, addresses: &[SocketAddr]) {
        for link in self.links().take_elsewhere(peer, addresses) {
            link.connection.close(code::STALE, b"moved");
        }
    }

    /// What the cluster thinks of a node.
    pub(crate) fn judge(&self, node: NodeId) -> Standing {
        self.0.trust.judge(node)
    }

    /// Drops connections to earlier processes of a peer; `instance` is the living one.
    pub fn keep_only(&self, peer: NodeId, instance: u32) {
        for link in self.links().take_other_instances(peer, instance) {
            link.connection.close(code::STALE, b"restarted");
        }
    }

    /// Ends all traffic with a node that was removed. New connections are refused by [`Trust`], so tell it
    /// first.
    pub fn close(&self, peer: NodeId) {
        for link in self.links().take_all(peer) {
            link.connection.close(code::REMOVED, b"removed from the cluster");
        }
        self.0.book.forget(peer);
    }

    /// Nodes met lately that belong to another cluster or incarnation, and how.
    pub fn estranged(&self) -> BTreeMap<NodeId, Foreign> {
        self.0.estranged.all(Instant::now())
    }

    /// Waits until a member says that this node was removed from the cluster, as each one that knows it does when it
    /// is called. A removal is for ever, so one word of it is enough.
    pub async fn dismissed(&self) {
        self.0.dismissed.cancelled().await;
    }

    /// Where those nodes belong, by their own hello.
    pub fn estranged_tags(&self) -> BTreeMap<NodeId, Tag> {
        self.0.estranged.tags(Instant::now())
    }

    /// The address this endpoint listens on, its port resolved.
    pub fn local_address(&self) -> SocketAddr {
        self.0.listen
    }

    /// Addresses of this machine at which others may reach this endpoint, at most four, best first.
    pub fn reachable_addresses(&self) -> Vec<SocketAddr> {
        self.0.whereabouts.addresses().borrow().clone()
    }

    /// The same, and each change of it: a machine that listens on all its addresses may get new ones.
    pub fn addresses(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.0.whereabouts.addresses().subscribe()
    }

    /// The one address of this machine to name where only one can be: the best.
    pub fn host_address(&self) -> IpAddr {
        let addresses = self.0.whereabouts.addresses().borrow();
        addresses.first().map_or(self.0.listen.ip(), |address| address.ip())
    }

    /// This machine's interfaces, and each change of them.
    pub fn machine(&self) -> watch::Receiver<Arc<Interfaces>> {
        self.0.whereabouts.machine().subscribe()
    }

    /// Links to other machines, and each change of them.
    pub(crate) fn interfaces(&self) -> watch::Receiver<Vec<interfaces::Link>> {
        self.0.whereabouts.links().subscribe()
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.0.me
    }

    /// Where this node belongs.
    pub(crate) fn tag(&self) -> Tag {
        self.0.tag
    }

    /// The number of this process, drawn at its start. Gossip tells it to the others.
    pub fn instance(&self) -> u32 {
        self.0.instance
    }

    /// The way to send and receive beside QUIC.
    pub(crate) fn beside(&self) -> &Beside {
        &self.0.beside
    }

    /// The book this endpoint dials by.
    pub fn book(&self) -> &AddressBook {
        &self.0.book
    }

    /// Closes everything and tells the peers. Calls under way fail.
    pub async fn shutdown(&self) {
        self.0.shutdown.cancel();
        self.0.quinn.close(code::SHUTDOWN, b"shutting down");
        self.0.tasks.close();
        self.0.tasks.wait().await;
        // Only so long as a goodbye may take on a good network; nobody waits for a bad one.
        let _ = timeout(Duration::from_millis(500), self.0.quinn.wait_idle()).await;
    }

    /// A connection of this class: the one that stands, or a new one.
    async fn link(&self, peer: NodeId, class: Class) -> Result<Arc<Link>, OpenError> {
        self.check_peer(peer)?;
        let mut dial = {
            let mut links = self.links();
            if let Some(link) = links.best(peer, class) {
                return Ok(link);
            }
            self.dial(&mut links, peer, class)
        };
        let outcome = dial.wait_for(Option::is_some).await.map_err(|_| OpenError::ShuttingDown)?;
        outcome.clone().unwrap_or(Err(OpenError::ShuttingDown))
    }

    fn send_or_queue(&self, peer: NodeId, datagram: Bytes) {
        if self.check_peer(peer).is_err() {
            return;
        }
        let mut links = self.links();
        if let Some(link) = links.best(peer, Class::Prompt) {
            match link.connection.send_datagram(datagram.clone()) {
                Err(quinn::SendDatagramError::ConnectionLost(_)) => links.remove(&link),
                // Too long for this path: a loss like any other.
                Ok(()) | Err(_) => return,
            }
        }
        links.queue(peer, datagram);
        self.dial(&mut links, peer, Class::Prompt);
    }

    fn check_peer(&self, peer: NodeId) -> Result<(), OpenError> {
        if peer == self.0.me {
            return Err(OpenError::Myself { peer });
        }
        if self.0.shutdown.is_cancelled() {
            return Err(OpenError::ShuttingDown);
        }
        match self.0.trust.judge(peer) {
            Standing::Removed => Err(OpenError::Removed { peer }),
            Standing::Member | Standing::Unknown => match self.0.estranged.why(peer, Instant::now()) {
                Some(reason) => Err(OpenError::Foreign { peer, reason }),
                None => Ok(()),
            },
        }
    }

    fn drop_link(&self, link: &Arc<Link>) {
        self.links().remove(link);
        link.connection.close(code::STALE, b"broken");
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        // Each method of `Links` leaves it whole, so a panic elsewhere cannot have torn it.
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task that ends with this endpoint.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.0.shutdown.clone();
        self.0.tasks.spawn(async move {
            let _ = shutdown.run_until_cancelled(task).await;
        });
    }
}

/// Longest payload of a datagram: 1162 B fit one packet of the smallest MTU (1200 B), one says the kind.
pub const DATAGRAM_BYTES_MAX: usize = 1161;

fn transport() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_MAX).expect("30 s fit the field")))
        .keep_alive_interval(None)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        // One for the hello; a spare one, should a later version say more.
        .max_concurrent_uni_streams(VarInt::from_u32(2))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        // The first packet is repeated after three of these: 0.3 s rather than the standard's 1 s.
        .initial_rtt(Duration::from_millis(100));
    transport
}

/// What QUIC answers to packets of a connection that this process does not know.
///
/// All keys follow from the node's key, so the process after a restart recognises the connection ids of
/// the one before and can tell the peers at once that those connections are gone (stateless reset).
fn memorable(tls: &Tls) -> quinn::EndpointConfig {
    let key = tls.stateless_reset_key();
    // The ids' own hash is a weak one, so its key must say nothing about the other.
    let digest = ring::digest::digest(&ring::digest::SHA256, &[b"connection ids", &key[..]].concat());
    let first = digest.as_ref().first_chunk().expect("SHA-256 has more than eight bytes");
    let connection_ids = u64::from_le_bytes(*first);

    let mut config =
        quinn::EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key)));
    config
        .cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(connection_ids)))
        // By this bit what travels beside QUIC is told from it.
        .grease_quic_bit(false);
    config
}
