//! The loop that gives the beacon time, chance, keys and links.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use itertools::Itertools as _;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    codec::{Message, Nonce, Said, Short, Word},
    core::{Core, Effect, Input, Tuning},
    links::Links,
    name::PeerName,
};
use crate::{
    endpoint::{Endpoint, PORT, beside},
    gossip,
    identity::{Identity, NodeId},
    timer,
    tls::Standing,
};

/// Ports that are asked at: nodes may listen elsewhere than this one.
const PORTS_MAX: usize = 4;
/// Names that are asked at.
pub const PEERS_MAX: usize = 16;
/// How long the names may take to become addresses.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// What the beacon needs.
pub struct Config {
    /// The port it shares.
    pub endpoint: Endpoint,
    /// Signs what this node says.
    pub identity: Identity,
    /// Says who is missing, and looks where the beacon found somebody.
    pub gossip: gossip::Handle,
    /// Where members may be, whatever their addresses are: asked while any is missing. At most
    /// [`PEERS_MAX`] are used.
    pub peers: Vec<PeerName>,
    /// When to speak.
    pub tuning: Tuning,
}

/// See the module.
pub struct Beacon {
    endpoint: Endpoint,
    identity: Identity,
    gossip: gossip::Handle,
    peers: Arc<[PeerName]>,
    core: Core,
    started: Instant,
    wake_at: Option<Instant>,
    links: Links,
    missing: BTreeSet<NodeId>,
    resolving: Option<JoinHandle<()>>,
}

impl Beacon {
    /// A beacon that is silent until it runs.
    pub fn new(config: Config) -> Beacon {
        let mut peers = config.peers;
        peers.truncate(PEERS_MAX);
        Beacon {
            core: Core::new(config.endpoint.node(), config.endpoint.tag(), config.tuning, rand::random()),
            links: Links::new(config.endpoint.beside().socket()),
            endpoint: config.endpoint,
            identity: config.identity,
            gossip: config.gossip,
            peers: peers.into(),
            started: Instant::now(),
            wake_at: None,
            missing: BTreeSet::new(),
            resolving: None,
        }
    }

    /// Speaks and listens until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let Some(mut received) = self.endpoint.beside().received() else { return };
        let (mut links, mut addresses) = (self.endpoint.interfaces(), self.endpoint.addresses());
        let (mut members, mut editions) = (self.gossip.members(), self.endpoint.book().editions());
        self.links.follow(links.borrow_and_update().clone());
        self.tell_members();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some((from, bytes)) = received.recv() => self.handle(Input::Datagram { from, bytes: &bytes }),
                Ok(()) = members.changed() => self.tell_members(),
                Ok(()) = editions.changed() => self.tell_members(),
                Ok(()) = links.changed() => {
                    self.links.follow(links.borrow_and_update().clone());
                    self.handle(Input::Moved);
                }
                Ok(()) = addresses.changed() => self.handle(Input::Moved),
                () = timer::until(self.wake_at) => {
                    self.wake_at = None;
                    self.handle(Input::Woken);
                }
            }
        }
    }

    /// Who is a member the address book knows; who of them is there, gossip.
    fn tell_members(&mut self) {
        let me = self.endpoint.node();
        let is_known = |node: &NodeId| *node != me && self.endpoint.judge(*node) != Standing::Removed;
        let known: BTreeSet<NodeId> = self.endpoint.book().nodes().into_iter().filter(is_known).collect();
        let gossiped = self.gossip.members().borrow().clone();
        let is_there = |node: &NodeId| gossiped.get(node).is_some_and(|member| member.state.is_active());
        let missing: BTreeSet<NodeId> = known.iter().filter(|node| !is_there(node)).copied().collect();
        self.missing.clone_from(&missing);
        self.handle(Input::Members { known, missing });
    }

    fn handle(&mut self, input: Input<'_>) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut effects = Vec::new();
        self.core.handle(gossip::core::Instant(now), input, &mut effects);
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::WakeAt(at) => self.wake_at = Some(self.started + Duration::from_millis(at.0)),
            Effect::Ask { count, wanted } => {
                if let Some(word) = self.word(count, true, wanted) {
                    self.send_to_all(&word);
                    self.send_to_names(word);
                }
            }
            Effect::Answer { to, count } => {
                if let Some(word) = self.word(count, false, Vec::new()) {
                    self.links.send(&word, to);
                }
            }
            Effect::Here { to, nonce } => {
                tracing::debug!(%to, "a machine of no cluster asked whether there is one");
                self.links.send(&Message::Here { nonce }.encode(), to);
            }
            Effect::Mine { to, nonce } => {
                tracing::warn!(%to, "a process with this node's key asks whether it is in use; it is told so");
                if let Some(answer) = self.sign(nonce, self.said(0, false, Vec::new())) {
                    self.links.send(&Message::Twin(answer).encode(), to);
                }
            }
            Effect::Seen { to, nonce, node } => {
                if let Some(at) = self.gossip.addresses(node).first() {
                    self.links.send(&Message::Seen { nonce, at: *at }.encode(), to);
                }
            }
            Effect::Learn { node, addresses, is_missing } => self.learn(node, &addresses, is_missing),
            Effect::Stranger { node, from } => {
                tracing::warn!(peer = %node, %from, "a node of another cluster is on this network; it is left alone");
            }
        }
    }

    fn word(&self, count: u32, asks: bool, wanted: Vec<Short>) -> Option<Vec<u8>> {
        let word = self.sign(rand::random(), self.said(count, asks, wanted))?;
        Some(Message::Word(word).encode())
    }

    fn said(&self, count: u32, asks: bool, wanted: Vec<Short>) -> Said {
        let (generation, addresses) = (self.identity.generation(), self.endpoint.reachable_addresses());
        Said { generation, count, asks, wanted, addresses }
    }

    fn sign(&self, salt: Nonce, said: Said) -> Option<Word> {
        match Word::sign(&self.identity, &self.endpoint.tag(), salt, said) {
            Ok(word) => Some(word),
            Err(error) => {
                tracing::debug!(%error, "could not sign a word for the others");
                None
            }
        }
    }

    /// A member said where it is. `addresses`: from where it spoke, then what it said.
    fn learn(&self, node: NodeId, addresses: &[SocketAddr], is_missing: bool) {
        if is_missing {
            tracing::info!(peer = %node, addresses = %addresses.iter().format(", "), "a missing member says where it is");
        }
        self.endpoint.book().learn(node, "", addresses);
        if is_missing {
            self.gossip.found(node);
        } else if addresses.get(1..).is_some_and(|said| *said != self.gossip.addresses(node)[..]) {
            self.endpoint.leave_old_addresses(node, addresses);
        }
    }

    fn send_to_all(&self, word: &[u8]) {
        let own = self.endpoint.local_address().port();
        let known = self.missing.iter().flat_map(|node| self.endpoint.book().addresses(*node));
        self.links.send_to_all(word, &ports([own, PORT], known));
    }

    /// Names become addresses anew each time: that is what they are for.
    fn send_to_names(&mut self, word: Vec<u8>) {
        let is_busy = self.resolving.as_ref().is_some_and(|task| !task.is_finished());
        if self.peers.is_empty() || is_busy {
            return;
        }
        let (socket, peers) = (self.endpoint.beside().socket(), self.peers.clone());
        self.resolving = Some(tokio::spawn(async move {
            futures::future::join_all(peers.iter().map(|name| tell(&socket, &word, name))).await;
        }));
    }
}

/// Sends to all addresses that a name has now.
async fn tell(socket: &UdpSocket, word: &[u8], name: &PeerName) {
    match timeout(RESOLVE_MAX, name.resolve()).await {
        Ok(Ok(addresses)) => {
            for to in addresses {
                // As lost as any datagram may be.
                let _ = beside::send(socket, word, to, None);
            }
        }
        Ok(Err(error)) => tracing::debug!(%name, %error, "could not find out where a peer is"),
        Err(_) => tracing::debug!(%name, "no answer to where a peer is"),
    }
}

/// At most four: the given ones, then those of `known` addresses.
pub(super) fn ports(given: [u16; 2], known: impl Iterator<Item = SocketAddr>) -> Vec<u16> {
    let mut ports: Vec<u16> = Vec::new();
    for port in given.into_iter().chain(known.map(|address| address.port())) {
        if ports.len() < PORTS_MAX && !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}
