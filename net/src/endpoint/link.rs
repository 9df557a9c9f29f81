//! The connections to each peer: which one to use, and which one is no good any more.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{Class, Endpoint, OpenError, code};
use crate::{address_book::plain, identity::NodeId};

/// Datagrams that wait for a connection under way, per peer.
const QUEUE_MAX: usize = 16;
/// Connections of one peer; two of each class are normal for a moment, more only if it is ill.
const LINKS_MAX: usize = 8;
/// Two connections that began within this time were dialled at the same time from both ends.
const SAME_TIME: Duration = Duration::from_secs(3);
/// A connection is not used longer: certificates expire and nodes are removed meanwhile.
const AGE_MAX: Duration = Duration::from_secs(12 * 3600);
/// After that its last streams have this long to end.
const RETIREMENT: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(500);
/// Ticks without a packet from a peer that owes us one: 2 s.
const SILENT_TICKS_MAX: u32 = 4;

/// One connection.
pub(super) struct Link {
    pub(super) peer: NodeId,
    pub(super) connection: quinn::Connection,
    /// Whether this node dialled.
    dialled: bool,
    /// Whether it was dialled by the lower of the two nodes: on that both ends agree.
    is_preferred: bool,
    since: Instant,
    /// What for. The accepting end learns it from the hello; before that the connection only receives.
    pub(super) class: OnceLock<Class>,
    /// The peer's process, from its hello.
    pub(super) instance: OnceLock<u32>,
    /// Where the peer sees this node, from its hello.
    pub(super) seen_as: OnceLock<SocketAddr>,
    pulse: Mutex<Pulse>,
}

/// Packets out and in, as last looked at.
#[derive(Default)]
struct Pulse {
    received: u64,
    sent_at_last_receipt: u64,
    silent_ticks: u32,
    remote: Option<SocketAddr>,
}

impl Link {
    /// `dialled`: what for, if this node dialled.
    pub(super) fn new(
        me: NodeId,
        peer: NodeId,
        connection: quinn::Connection,
        dialled: Option<Class>,
    ) -> Arc<Self> {
        let class = OnceLock::new();
        if let Some(dialled) = dialled {
            class.set(dialled).expect("a new cell is empty");
        }
        Arc::new(Self {
            peer,
            connection,
            dialled: dialled.is_some(),
            is_preferred: dialled.is_some() == (me < peer),
            since: Instant::now(),
            class,
            instance: OnceLock::new(),
            seen_as: OnceLock::new(),
            pulse: Mutex::default(),
        })
    }

    fn is_usable(&self, class: Class) -> bool {
        self.class.get() == Some(&class)
            && self.connection.close_reason().is_none()
            && self.since.elapsed() < AGE_MAX
    }

    /// Whether the peer has been silent too long for one that has something to acknowledge.
    ///
    /// One packet more than was sent up to the last receipt may be our own last acknowledgement; of two, one
    /// asks for an answer, and QUIC repeats it at ever longer intervals.
    fn is_silent(&self) -> bool {
        let stats = self.connection.stats();
        let (sent, received) = (stats.udp_tx.datagrams, stats.udp_rx.datagrams);
        let Ok(mut pulse) = self.pulse.lock() else { return false };
        if received != pulse.received {
            *pulse = Pulse { received, sent_at_last_receipt: sent, silent_ticks: 0, remote: pulse.remote };
        } else if sent >= pulse.sent_at_last_receipt + 2 {
            pulse.silent_ticks += 1;
        }
        pulse.silent_ticks >= SILENT_TICKS_MAX
    }

    /// The peer's address, if it changed since this was last asked.
    fn moved_to(&self) -> Option<SocketAddr> {
        let remote = self.connection.remote_address();
        let before = self.pulse.lock().ok()?.remote.replace(remote);
        before.filter(|before| *before != remote).map(|_| remote)
    }
}

/// Whoever waits for a connection watches this; it changes once.
pub(super) type Dial = watch::Receiver<Option<Outcome>>;
pub(super) type Outcome = Result<Arc<Link>, OpenError>;

/// All connections, and those being made.
#[derive(Default)]
pub(super) struct Links {
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Default)]
struct Peer {
    /// Oldest first.
    links: Vec<Arc<Link>>,
    dials: BTreeMap<Class, watch::Sender<Option<Outcome>>>,
    queue: VecDeque<Bytes>,
}

impl Links {
    /// The connection to use for this class: the newest, which knows best where the peer is.
    ///
    /// Only if both ends dialled at once they must agree on one, or each would use its own for ever.
    pub(super) fn best(&self, peer: NodeId, class: Class) -> Option<Arc<Link>> {
        let links = &self.peers.get(&peer)?.links;
        let mut usable = links.iter().rev().filter(|link| link.is_usable(class));
        let newest = usable.next()?;
        let rival = usable.next().filter(|rival| {
            rival.dialled != newest.dialled
                && rival.is_preferred
                && newest.since.duration_since(rival.since) < SAME_TIME
        });
        Some(rival.unwrap_or(newest).clone())
    }

    pub(super) fn connected(&self) -> Vec<NodeId> {
        self.peers.iter().filter(|(_, peer)| !peer.links.is_empty()).map(|(node, _)| *node).collect()
    }

    /// Where each peer sees this node, over its newest connection.
    pub(super) fn seen_as(&self) -> BTreeMap<NodeId, SocketAddr> {
        let seen = |peer: &Peer| peer.links.iter().rev().find_map(|link| link.seen_as.get().copied());
        self.peers.iter().filter_map(|(node, peer)| Some((*node, seen(peer)?))).collect()
    }

    /// Adds a connection; the oldest of too many are closed. It is used once its class is known, see
    /// [`Links::settle`].
    pub(super) fn add(&mut self, link: &Arc<Link>) {
        let links = &mut self.peers.entry(link.peer).or_default().links;
        links.push(link.clone());
        while links.len() > LINKS_MAX {
            links.remove(0).connection.close(code::TOO_MANY, b"too many connections");
        }
    }

    /// The class of `link` is known: serves whom waited for such a connection.
    pub(super) fn settle(&mut self, link: &Arc<Link>) {
        let (Some(class), Some(peer)) = (link.class.get(), self.peers.get_mut(&link.peer)) else { return };
        if let Some(dial) = peer.dials.remove(class) {
            dial.send_replace(Some(Ok(link.clone())));
        }
        if *class == Class::Prompt {
            for datagram in peer.queue.drain(..) {
                // Lost if the connection broke again, as datagrams may be.
                let _ = link.connection.send_datagram(datagram);
            }
        }
    }

    /// The peer said which process it is: connections to earlier ones are dead.
    pub(super) fn outdated_by(&mut self, link: &Arc<Link>) -> Vec<Arc<Link>> {
        let Some(instance) = link.instance.get() else { return Vec::new() };
        self.take(link.peer, |other| {
            other.since < link.since && other.instance.get().is_some_and(|other| other != instance)
        })
    }

    pub(super) fn take_other_instances(&mut self, peer: NodeId, instance: u32) -> Vec<Arc<Link>> {
        self.take(peer, |link| link.instance.get().is_some_and(|other| *other != instance))
    }

    /// Connections to an address that this machine no longer has: nothing is sent over them any more.
    pub(super) fn take_homeless(&mut self, is_here: impl Fn(IpAddr) -> bool) -> Vec<Arc<Link>> {
        let is_homeless = |link: &Arc<Link>| {
            // Known of accepted ones; a dialled one goes on from whatever address there is.
            link.connection.local_ip().is_some_and(|ip| !is_here(ip.to_canonical()))
        };
        let homeless: Vec<Arc<Link>> = self.all().into_iter().filter(is_homeless).collect();
        for link in &homeless {
            self.remove(link);
        }
        homeless
    }

    /// Connections to a peer at an address other than these.
    pub(super) fn take_elsewhere(&mut self, peer: NodeId, addresses: &[SocketAddr]) -> Vec<Arc<Link>> {
        self.take(peer, |link| !addresses.contains(&plain(link.connection.remote_address())))
    }

    pub(super) fn take_all(&mut self, peer: NodeId) -> Vec<Arc<Link>> {
        self.take(peer, |_| true)
    }

    pub(super) fn remove(&mut self, link: &Arc<Link>) {
        self.take(link.peer, |other| Arc::ptr_eq(other, link));
    }

    fn take(&mut self, node: NodeId, which: impl Fn(&Arc<Link>) -> bool) -> Vec<Arc<Link>> {
        let Some(peer) = self.peers.get_mut(&node) else { return Vec::new() };
        let taken = peer.links.extract_if(.., |link| which(link)).collect();
        self.tidy(node);
        taken
    }

    /// Joins the dial under way, or begins one: then `true`, and the caller has to carry it out.
    pub(super) fn join_dial(&mut self, node: NodeId, class: Class) -> (Dial, bool) {
        let peer = self.peers.entry(node).or_default();
        let is_new = !peer.dials.contains_key(&class);
        (peer.dials.entry(class).or_default().subscribe(), is_new)
    }

    /// The dial found nobody. (One that succeeded ends by [`Links::settle`].)
    pub(super) fn fail_dial(&mut self, node: NodeId, class: Class, error: OpenError) {
        if let Some(peer) = self.peers.get_mut(&node) {
            if let Some(dial) = peer.dials.remove(&class) {
                dial.send_replace(Some(Err(error)));
            }
            if class == Class::Prompt {
                peer.queue.clear();
            }
            self.tidy(node);
        }
    }

    /// Keeps a datagram for the connection being made.
    pub(super) fn queue(&mut self, node: NodeId, datagram: Bytes) {
        let queue = &mut self.peers.entry(node).or_default().queue;
        if queue.len() == QUEUE_MAX {
            queue.pop_front();
        }
        queue.push_back(datagram);
    }

    fn tidy(&mut self, node: NodeId) {
        if self.peers.get(&node).is_some_and(|peer| peer.links.is_empty() && peer.dials.is_empty()) {
            self.peers.remove(&node);
        }
    }

    fn all(&self) -> Vec<Arc<Link>> {
        self.peers.values().flat_map(|peer| peer.links.iter().cloned()).collect()
    }
}

/// Looks after all connections twice a second: drops the silent and the old, notes who moved.
pub(super) async fn keep_house(endpoint: Endpoint) {
    let mut ticks = interval(TICK);
    // Ticks missed while this process stood still say nothing about the peers.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let links = endpoint.links().all();
        for link in links {
            if link.is_silent() {
                tracing::debug!(peer = %link.peer, "dropped a connection that no longer answers");
                endpoint.links().remove(&link);
                link.connection.close(code::STALE, b"no answer");
            } else if link.since.elapsed() > AGE_MAX + RETIREMENT {
                link.connection.close(code::STALE, b"old");
            } else if let Some(remote) = link.moved_to() {
                endpoint.book().worked(link.peer, remote);
            }
        }
    }
}
