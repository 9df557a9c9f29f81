//! The one task that gives the gossip core time, chance and a network.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use itertools::Itertools as _;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use super::{
    core::{Core, Deposed, Effect, Input, Tuning},
    list::{LIST_BYTES_MAX, List},
    member::{Change, Member},
    metadata::{self, Metadata},
};
use crate::{
    endpoint::Endpoint,
    identity::NodeId,
    stream::{self, Stream},
    timer,
};

/// Kind of the datagrams that carry gossip.
pub const DATAGRAM_KIND: u8 = 1;
/// Kind of the streams over which two members exchange their lists.
pub const STREAM_KIND: u8 = 1;

/// Packets and calls not yet looked at: three seconds of gossip in a cluster of a hundred.
const INBOX_MAX: usize = 1024;
/// Changes a slow subscriber may lag behind before it has to look at the whole picture again.
const CHANGES_MAX: usize = 1024;
/// Dial, ask, answer.
const EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// How long the last words of a leaving node may take to go out.
const LEAVE_MAX: Duration = Duration::from_millis(200);

/// What gossip needs.
pub struct Config {
    /// The way to the others.
    pub endpoint: Endpoint,
    /// This start's number: higher than at every earlier start, durably.
    pub generation: u64,
    /// What this node says about itself.
    pub metadata: Metadata,
    /// Whether `metadata.addresses` follow those of the endpoint; else they stay.
    pub follow_interfaces: bool,
    /// Whether the API is served on all addresses of the machine, so that its address is the best of these.
    pub api_follows: bool,
    /// The protocol's constants.
    pub tuning: Tuning,
}

/// Every known member by node, this one included.
pub type Members = BTreeMap<NodeId, Member>;

/// Starts gossip.
pub struct Gossip {
    core: Core,
    endpoint: Endpoint,
    metadata: Metadata,
    follow_interfaces: bool,
    api_follows: bool,
    started: Instant,
    wake_at: Option<Instant>,
    exchanging: BTreeSet<NodeId>,
    inbox: mpsc::Receiver<Message>,
    back: mpsc::WeakSender<Message>,
    outlet: Arc<Outlet>,
}

/// What the task tells.
struct Outlet {
    members: watch::Sender<Arc<Members>>,
    changes: broadcast::Sender<(Member, Change)>,
    deposed: watch::Sender<Option<Deposed>>,
}

/// To the task.
enum Message {
    Packet {
        from: NodeId,
        packet: Bytes,
    },
    /// Another member's list, and where ours shall go.
    Asked {
        list: List,
        answer: oneshot::Sender<List>,
    },
    /// An exchange of ours ended.
    Answered {
        with: NodeId,
        list: Option<List>,
    },
    Describe(Metadata),
    Label(String, Option<String>),
    Contacts(Vec<NodeId>),
    Found(NodeId),
    Forget(NodeId),
    Leave(oneshot::Sender<()>),
}

/// The way to a running gossip. Cheap to clone; gossip ends when the last one is dropped or it leaves.
#[derive(Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
    outlet: Arc<Outlet>,
}

impl Gossip {
    /// Begins to gossip, at first with the nodes in the endpoint's address book, tried until one answers.
    ///
    /// The endpoint's service must pass what comes with [`DATAGRAM_KIND`] and [`STREAM_KIND`] to
    /// [`Handle::datagram`] and [`Handle::stream`].
    pub fn start(config: Config) -> Result<Handle, metadata::Error> {
        let mut metadata = config.metadata;
        if config.follow_interfaces {
            metadata.addresses = config.endpoint.reachable_addresses();
        }
        metadata.check()?;
        let core = Core::new(
            config.endpoint.node(),
            config.generation,
            config.endpoint.instance(),
            rand::random(),
            config.tuning,
            metadata.clone(),
        );
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let outlet = Arc::new(Outlet {
            members: watch::Sender::new(Arc::new(core.members().clone())),
            changes: broadcast::Sender::new(CHANGES_MAX),
            deposed: watch::Sender::new(None),
        });
        let gossip = Gossip {
            core,
            endpoint: config.endpoint,
            metadata,
            follow_interfaces: config.follow_interfaces,
            api_follows: config.api_follows,
            started: Instant::now(),
            wake_at: None,
            exchanging: BTreeSet::new(),
            inbox,
            back: sender.downgrade(),
            outlet: outlet.clone(),
        };
        tokio::spawn(gossip.run());
        Ok(Handle { inbox: sender, outlet })
    }

    async fn run(mut self) {
        let mut addresses = self.endpoint.addresses();
        self.handle(Input::Contacts(self.endpoint.book().nodes()));
        loop {
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(Message::Leave(done)) => return self.leave(done).await,
                    Some(message) => self.take(message),
                    None => return,
                },
                () = timer::until(self.wake_at) => {
                    self.wake_at = None;
                    self.handle(Input::Woken);
                }
                Ok(()) = addresses.changed(), if self.follow_interfaces => {
                    let addresses = addresses.borrow_and_update().clone();
                    self.follow(addresses);
                }
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Packet { from, packet } => self.handle(Input::Packet { from, packet }),
            Message::Asked { list, answer } => {
                // Nobody waits any more if the stream broke meanwhile.
                let _ = answer.send(self.core.list());
                self.handle(Input::Listed(list));
            }
            Message::Answered { with, list } => {
                self.exchanging.remove(&with);
                if let Some(list) = list {
                    self.handle(Input::Listed(list));
                }
            }
            Message::Describe(metadata) => self.describe(metadata),
            Message::Label(name, value) => self.label(name, value),
            Message::Contacts(nodes) => self.handle(Input::Contacts(nodes)),
            Message::Found(node) => self.handle(Input::Found(node)),
            Message::Forget(node) => self.handle(Input::Forget(node)),
            Message::Leave(_) => unreachable!("the loop ends with it"),
        }
    }

    fn handle(&mut self, input: Input) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut effects = Vec::new();
        self.core.handle(super::core::Instant(now), input, &mut effects);
        if effects.iter().any(|effect| matches!(effect, Effect::Changed { .. })) {
            self.outlet.members.send_replace(Arc::new(self.core.members().clone()));
        }
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, packet } => self.endpoint.datagram(to, DATAGRAM_KIND, packet),
            Effect::WakeAt(at) => self.wake_at = Some(self.started + Duration::from_millis(at.0)),
            Effect::Exchange { with, list } => self.exchange(with, &list),
            Effect::Changed { member, change } => self.tell(member, change),
            Effect::Refused { from: Some(peer), reason } => tracing::debug!(%peer, reason, "refused gossip"),
            Effect::Refused { from: None, reason } => tracing::trace!(reason, "gossip out of order"),
            Effect::Deposed(deposed) => {
                tracing::error!(error = %deposed, "gossip stopped");
                self.outlet.deposed.send_replace(Some(deposed));
            }
        }
    }

    fn tell(&mut self, member: Member, change: Change) {
        let node = member.node();
        if node != self.endpoint.node() {
            tracing::info!(peer = %node, name = member.name(), incarnation = member.incarnation, "{change}");
            if let Some(metadata) = &member.metadata {
                self.endpoint.book().learn(node, &metadata.name, &metadata.addresses);
            }
            if change == Change::Restarted {
                self.endpoint.keep_only(node, member.id.instance);
            }
        }
        // Fails only if nobody listens.
        let _ = self.outlet.changes.send((member, change));
    }

    /// Asks another member for its list, unless that is under way.
    fn exchange(&mut self, with: NodeId, list: &List) {
        if !self.exchanging.insert(with) {
            return;
        }
        let (endpoint, back, list) = (self.endpoint.clone(), self.back.clone(), list.encode());
        tokio::spawn(async move {
            let list = match timeout(EXCHANGE_MAX, ask(&endpoint, with, list)).await {
                Ok(Ok(list)) => Some(list),
                Ok(Err(error)) => {
                    tracing::debug!(peer = %with, %error, "could not exchange member lists");
                    None
                }
                Err(_) => {
                    tracing::debug!(peer = %with, "no answer with a member list");
                    None
                }
            };
            if let Some(back) = back.upgrade() {
                // Fails only after gossip has ended.
                let _ = back.send(Message::Answered { with, list }).await;
            }
        });
    }

    /// This machine has other addresses than before.
    fn follow(&mut self, addresses: Vec<SocketAddr>) {
        // Without any there is nobody to tell, and the loopback would be no news to them.
        if addresses == self.metadata.addresses || addresses.iter().all(|at| at.ip().is_loopback()) {
            return;
        }
        tracing::info!(addresses = %addresses.iter().format(", "), "this machine's addresses changed");
        let api_address = self.metadata.api_address.map(|api| match self.api_follows {
            true => SocketAddr::new(self.endpoint.host_address(), api.port()),
            false => api,
        });
        self.describe(Metadata { addresses, api_address, ..self.metadata.clone() });
    }

    fn describe(&mut self, metadata: Metadata) {
        let addresses =
            if self.follow_interfaces { self.endpoint.reachable_addresses() } else { metadata.addresses };
        let metadata = Metadata { addresses, ..metadata };
        match metadata.check() {
            Ok(()) => {
                self.metadata = metadata.clone();
                self.handle(Input::Describe(metadata));
            }
            // The caller's part was checked; longer addresses or a label have made it too long.
            Err(error) => tracing::warn!(%error, "kept the old metadata"),
        }
    }

    fn label(&mut self, name: String, value: Option<String>) {
        let mut metadata = self.metadata.clone();
        match value {
            Some(value) => metadata.labels.insert(name, value),
            None => metadata.labels.remove(&name),
        };
        self.describe(metadata);
    }

    async fn leave(mut self, done: oneshot::Sender<()>) {
        self.handle(Input::Leave);
        // Datagrams leave with the endpoint's next turn; there is nothing to wait for but that.
        tokio::time::sleep(LEAVE_MAX).await;
        let _ = done.send(());
    }
}

/// Why two lists were not exchanged. Nothing changed; the core asks again.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error(transparent)]
    Open(#[from] crate::endpoint::OpenError),
    #[error(transparent)]
    Stream(#[from] stream::Error),
    #[error(transparent)]
    List(#[from] super::codec::Error),
    #[error("the stream ended without a list; the other node may be stopping")]
    Empty,
}

async fn ask(endpoint: &Endpoint, with: NodeId, list: Bytes) -> Result<List, ExchangeError> {
    let mut stream = endpoint.open(with, STREAM_KIND).await?;
    stream.tx.send(list).await?;
    stream.tx.finish()?;
    receive_list(&mut stream).await
}

async fn receive_list(stream: &mut Stream) -> Result<List, ExchangeError> {
    stream.rx.limit(LIST_BYTES_MAX + 1);
    let bytes = stream.rx.recv().await?.ok_or(ExchangeError::Empty)?;
    Ok(List::decode(&bytes)?)
}

async fn answer(mut stream: Stream, inbox: mpsc::Sender<Message>) -> Result<(), ExchangeError> {
    let list = receive_list(&mut stream).await?;
    let (answer, ours) = oneshot::channel();
    inbox.send(Message::Asked { list, answer }).await.map_err(|_| ExchangeError::Empty)?;
    let ours = ours.await.map_err(|_| ExchangeError::Empty)?;
    stream.tx.send(ours.encode()).await?;
    stream.tx.finish()?;
    Ok(())
}

impl Handle {
    /// The picture: a new map whenever anything changed.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.outlet.members.subscribe()
    }

    /// Each change from now on. Who lags behind too far gets an error and should look at
    /// [`Handle::members`].
    pub fn subscribe(&self) -> broadcast::Receiver<(Member, Change)> {
        self.outlet.changes.subscribe()
    }

    /// Says something new about this node to all.
    pub async fn set_metadata(&self, metadata: Metadata) -> Result<(), metadata::Error> {
        metadata.check()?;
        // Fails only after gossip has ended; then there is nobody to tell.
        let _ = self.inbox.send(Message::Describe(metadata)).await;
        Ok(())
    }

    /// Sets one of this node's labels, or removes it; the rest of what it says stays as it is. One that would
    /// make the metadata too long is left out.
    pub async fn set_label(&self, name: &str, value: Option<&str>) {
        let message = Message::Label(name.to_owned(), value.map(str::to_owned));
        // Fails only after gossip has ended; then there is nobody to tell.
        let _ = self.inbox.send(message).await;
    }

    /// Names nodes that may be found at the addresses in the book: members of the replicated node set, or
    /// those a join told of.
    pub async fn introduce(&self, nodes: Vec<NodeId>) {
        let _ = self.inbox.send(Message::Contacts(nodes)).await;
    }

    /// Names a member that was just heard of, at an address that is in the book by now: it is looked for there
    /// at once. Lost when too many messages wait, as the word of it may be.
    pub fn found(&self, node: NodeId) {
        let _ = self.inbox.try_send(Message::Found(node));
    }

    /// Drops a node that was removed from the cluster.
    pub async fn forget(&self, node: NodeId) {
        let _ = self.inbox.send(Message::Forget(node)).await;
    }

    /// Says goodbye, so that nobody has to find out; returns when the last words are on their way.
    pub async fn leave(&self) {
        let (done, gone) = oneshot::channel();
        if self.inbox.send(Message::Leave(done)).await.is_ok() {
            let _ = gone.await;
        }
    }

    /// Waits until this process has to give up its identity, and says why. Never returns otherwise.
    pub async fn deposed(&self) -> Deposed {
        let mut deposed = self.outlet.deposed.subscribe();
        match deposed.wait_for(Option::is_some).await.map(|reason| *reason) {
            Ok(Some(reason)) => reason,
            // The outlet is held by this handle.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Takes a datagram of kind [`DATAGRAM_KIND`]. When too many wait it is dropped, as any may be.
    pub fn datagram(&self, from: NodeId, packet: Bytes) {
        let _ = self.inbox.try_send(Message::Packet { from, packet });
    }

    /// Takes a stream of kind [`STREAM_KIND`]: another member wants to exchange lists.
    pub fn stream(&self, from: NodeId, stream: Stream) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            match timeout(EXCHANGE_MAX, answer(stream, inbox)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(peer = %from, %error, "could not answer with the member list")
                }
                Err(_) => tracing::debug!(peer = %from, "a member list took too long"),
            }
        });
    }

    /// Where a member says it is, best first; empty if it is unknown.
    pub fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        self.outlet.members.borrow().get(&node).map(|member| member.addresses().to_vec()).unwrap_or_default()
    }
}
