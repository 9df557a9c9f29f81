//! The shell of the judge: renewals to the leader, probes for it, and, on the leader, the judge itself.
//!
//! Nothing here decides: [`Vigil`] does, and the planner writes what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use skein_control::judge::{self, Answer, Settings};
use skein_control::node_health::Verdict;
use skein_control::places::{self, Known, Place};
use skein_control::probe::Probe;
use skein_control::time::Instant;
use skein_control::vigil::{
    Effect, Gossip, LEARN_EVERY, LEARN_LIMIT, Leadership, Message, PROBE_STEP, Sight, Vigil, Word,
};
use skein_net::address_book::AddressBook;
use skein_net::endpoint::Endpoint;
use skein_net::gossip;
use skein_net::gossip::service::Members as Gossiped;
use skein_net::identity::NodeId;
use skein_raft_store::log::Health;
use skein_raft_store::{Handle, TokioRuntime};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock;
use crate::gateway::Gateway;
use crate::members::{Members, Record};
use crate::picture::Picture;
use crate::prober;
use crate::wire::{self, NodeWord, Report, Watchfulness};

/// Datagrams between a node and the leader's judge.
pub(crate) const WATCH_DATAGRAM: u8 = 40;

/// Messages waiting for the loop; a lost one is repaired by the next.
const INBOX_MAX: usize = 1024;

/// What the judge of this node says, for the planner; empty while another one leads.
pub(crate) type Verdicts = Arc<BTreeMap<String, Verdict>>;

/// The way in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inbox {
    inputs: mpsc::Sender<Input>,
    shown: Shown,
}

/// On the leader: the revision each node showed when it last said that it is here.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<BTreeMap<NodeId, u64>>>);

impl Shown {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Input {
    Message { from: NodeId, message: Watchfulness },
    Announced(NodeId),
    Tried { about: NodeId, began: Instant, answer: Option<Answer> },
    Learned { about: NodeId, answers: bool },
    GatewayTried { began: Instant, answered: bool },
}

impl Inbox {
    /// A datagram of kind [`WATCHFULNESS`]. One that does not parse, or comes when too many wait, is dropped.
    pub(crate) fn datagram(&self, from: NodeId, bytes: &[u8]) {
        if let Ok(message) = wire::decode(bytes) {
            let _ = self.inputs.try_send(Input::Message { from, message });
        }
    }

    /// `node` said that it restarts.
    pub(crate) fn announced(&self, node: NodeId) {
        let _ = self.inputs.try_send(Input::Announced(node));
    }

    /// The revision that `node` showed lately; only the leader is told.
    pub(crate) fn shown(&self, node: NodeId) -> Option<u64> {
        self.shown.lock().get(&node).copied()
    }
}

/// See the module.
pub(crate) struct Watch {
    node: Node,
    vigil: Vigil<NodeId>,
    verdicts: watch::Sender<Verdicts>,
    shown: Shown,
    inbox: mpsc::Receiver<Input>,
    back: mpsc::WeakSender<Input>,
}

/// What the vigil looks up.
struct Node {
    store: Handle<TokioRuntime>,
    endpoint: Endpoint,
    members: Members,
    picture: Picture,
    gossiped: watch::Receiver<Arc<Gossiped>>,
    book: AddressBook,
}

impl Node {
    /// Where the kernel of `node` may be tried.
    fn places(&self, node: NodeId) -> Vec<Place> {
        let gossiped = self.gossiped.borrow().clone();
        let api_of = |member: &gossip::Member| member.metadata.as_ref()?.api_address;
        let lives = |member: &&gossip::Member| member.state == gossip::State::Alive && member.node() != node;
        let held =
            |member| api_of(member).into_iter().flat_map(|api| places::held_by(api, member.addresses()));
        let taken: BTreeSet<_> = gossiped.values().filter(lives).flat_map(held).collect();
        let (record, view) = (self.members.get(node), self.picture.view());
        let (name, joined) = record.map(|record| (record.name, record.addresses)).unwrap_or_default();
        let known = Known {
            gossiped: gossiped.get(&node).and_then(api_of),
            seen: &self.book.addresses(node),
            node: places::node_of(&view, &node.to_string(), &name).map(|node| &**node),
            joined: &joined,
        };
        places::of(&known, &taken)
    }

    /// The names of the Node objects of all members.
    fn names(&self) -> BTreeMap<NodeId, String> {
        let view = self.picture.view();
        let name = |(id, record): (NodeId, Record)| {
            let node = places::node_of(&view, &id.to_string(), &record.name);
            (id, node.and_then(|node| node.metadata.name.clone()).unwrap_or(record.name))
        };
        self.members.present().into_iter().map(name).collect()
    }
}

impl Sight<NodeId> for Node {
    fn leadership(&self) -> Leadership<NodeId> {
        let metrics = self.store.metrics();
        Leadership {
            leader: metrics.leader.map(|leader| NodeId(leader.node)),
            term: metrics.term,
            voters: metrics.voters.iter().map(|voter| NodeId(voter.node)).collect(),
            revision: metrics.revision,
            writable: metrics.disk == Health::Good,
            quorum_acked_age: metrics.quorum_acked_age,
        }
    }

    fn members(&self) -> Vec<(NodeId, bool)> {
        let view = self.picture.view();
        let is_marked = |id: NodeId, name: &str| {
            let node = places::node_of(&view, &id.to_string(), name);
            node.is_some_and(|node| places::is_called_unreachable(node))
        };
        let members = self.members.present().into_iter();
        members.map(|(id, record)| (id, is_marked(id, &record.name))).collect()
    }

    fn gossip(&self, node: NodeId) -> Gossip {
        match self.gossiped.borrow().get(&node).map(|member| member.state) {
            Some(gossip::State::Alive) => Gossip::Alive,
            Some(gossip::State::Down | gossip::State::Left) => Gossip::Down,
            Some(gossip::State::Suspect) | None => Gossip::Unsure,
        }
    }

    fn rtt(&self, node: NodeId) -> Duration {
        self.endpoint.rtt(node).unwrap_or_default()
    }
}

impl Watch {
    pub(crate) fn new(
        store: Handle<TokioRuntime>,
        endpoint: Endpoint,
        members: Members,
        picture: Picture,
        gossiped: watch::Receiver<Arc<Gossiped>>,
        book: AddressBook,
    ) -> (Watch, Inbox, watch::Receiver<Verdicts>) {
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let (verdicts, seen) = watch::channel(Verdicts::default());
        let vigil = Vigil::new(endpoint.node(), Settings::default());
        let node = Node { store, endpoint, members, picture, gossiped, book };
        let shown = Shown::default();
        let back = sender.downgrade();
        let watch = Watch { node, vigil, verdicts, shown: shown.clone(), inbox, back };
        (watch, Inbox { inputs: sender, shown }, seen)
    }

    /// One loop until `stopping`.
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        let every = |period| {
            let mut timer = interval(period);
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer
        };
        let mut changes = self.node.store.on_change();
        let (mut renew, mut learn) = (every(judge::RENEWAL), every(LEARN_EVERY));
        let mut probe = every(PROBE_STEP);
        let mut effects = Vec::new();
        loop {
            let step_due = self.vigil.step_due();
            let step_in = step_due.map(|due| due.since(clock::boot())).unwrap_or_default();
            // What has arrived is read before anybody is judged by a timer.
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                Some(input) = self.inbox.recv() => self.handle(input, &mut effects),
                changed = changes.changed() => {
                    if !changed {
                        return;
                    }
                    self.vigil.look(clock::boot(), &self.node, &mut effects);
                }
                _ = renew.tick() => self.vigil.renew(clock::boot(), &self.node, &mut effects),
                () = sleep(step_in), if step_due.is_some() => {
                    self.vigil.step(clock::boot(), &self.node, &mut effects);
                }
                _ = probe.tick(), if self.vigil.is_probing() => {
                    self.vigil.probe(clock::boot(), &self.node, &mut effects);
                }
                _ = learn.tick() => self.vigil.learn(clock::boot(), &self.node, &mut effects),
            }
            effects.drain(..).for_each(|effect| self.perform(effect));
        }
    }

    fn handle(&mut self, input: Input, effects: &mut Vec<Effect<NodeId>>) {
        let now = clock::boot();
        match input {
            Input::Message { from, message } => {
                self.vigil.hear(now, from, message.into(), &self.node, effects);
            }
            Input::Announced(node) => self.vigil.announced(now, node),
            Input::Tried { about, began, answer } => {
                self.vigil.tried(now, about, began, answer, &self.node, effects);
            }
            Input::Learned { about, answers } => self.vigil.learned(about, answers),
            Input::GatewayTried { began, answered } => self.vigil.gateway_tried(began, answered, effects),
        }
    }

    fn perform(&self, effect: Effect<NodeId>) {
        match effect {
            Effect::Send { to, message } => {
                let message = wire::encode(&Watchfulness::from(message));
                self.node.endpoint.datagram(to, WATCH_DATAGRAM, message);
            }
            Effect::Try { about, began, anew } => {
                let limit = Probe::limit(self.node.rtt(about));
                self.try_kernel(about, anew, limit, move |tried| match tried {
                    Ok(answer) => Some(Input::Tried { about, began, answer }),
                    Err(error) => {
                        debug!(peer = %about, %error, "could not try to reach a node");
                        None
                    }
                });
            }
            Effect::Learn(about) => self.try_kernel(about, false, LEARN_LIMIT, move |tried| {
                Some(Input::Learned { about, answers: tried.ok()?.is_some() })
            }),
            Effect::TryGateway { beside, began, limit } => self.try_gateway(beside, began, limit),
            Effect::GatewayAnswers { beside } => {
                info!(peer = %beside, "the gateway answers: the loss of the other node can be told from a cut of this one");
            }
            Effect::Shows { node, revision } => drop(self.shown.lock().insert(node, revision)),
            Effect::TookOffice { term } => info!(term, "leads"),
            Effect::LeftOffice { term } => {
                info!(term, "no longer leads");
                self.shown.lock().clear();
                self.publish();
            }
            Effect::Lost { node, cause, silent_for } => {
                let silent_ms = silent_for.as_millis() as u64;
                warn!(peer = %node, name = self.name_of(node), %cause, silent_ms, "a node is lost");
                self.publish();
            }
            Effect::HandOver(node) => self.hand_over(node),
            Effect::Back(node) => {
                info!(peer = %node, name = self.name_of(node), "a lost node is back");
                self.publish();
            }
        }
    }

    /// Lets another voter lead; the loop has other things to do meanwhile.
    fn hand_over(&self, peer: NodeId) {
        let store = self.node.store.clone();
        let Some(voter) = store.metrics().voters.into_iter().find(|voter| voter.node == peer.0) else {
            return;
        };
        info!(%peer, "hands leadership to a voter that reaches more members or has space");
        tokio::spawn(async move {
            if !store.transfer_leader(Some(voter)).await {
                warn!(%peer, "leadership did not go over");
            }
        });
    }

    /// Tells the planner what the judge says now.
    fn publish(&self) {
        let names = self.node.names();
        let named = |(node, verdict)| Some((names.get(&node)?.clone(), verdict));
        self.verdicts.send_replace(Arc::new(self.vigil.verdicts().filter_map(named).collect()));
    }

    fn name_of(&self, node: NodeId) -> String {
        self.node.members.get(node).map(|record| record.name).unwrap_or_default()
    }

    fn try_kernel(
        &self,
        about: NodeId,
        anew: bool,
        limit: Duration,
        then: impl FnOnce(std::io::Result<Option<Answer>>) -> Option<Input> + Send + 'static,
    ) {
        let places = self.node.places(about);
        if places.is_empty() {
            return;
        }
        let back = self.back.clone();
        tokio::spawn(async move {
            let tries = places.iter().map(|place| async move {
                if anew {
                    prober::ask_anew(place.api.ip()).await;
                }
                let answer = prober::try_once(place.api, limit).await?;
                std::io::Result::Ok(answer.map(|answer| place.means(answer)))
            });
            let tried = places::together(join_all(tries).await);
            if let (Some(input), Some(back)) = (then(tried), back.upgrade()) {
                let _ = back.try_send(input);
            }
        });
    }

    fn try_gateway(&self, beside: NodeId, began: Instant, limit: Duration) {
        let places = self.node.places(beside);
        let Some(gateway) = places.iter().find_map(|place| Gateway::beside(place.api.ip())) else { return };
        let back = self.back.clone();
        tokio::spawn(async move {
            match (gateway.answers(limit).await, back.upgrade()) {
                (Ok(answered), Some(back)) => {
                    let _ = back.try_send(Input::GatewayTried { began, answered });
                }
                // What this machine could not try is no try.
                (Err(error), _) => debug!(?gateway, %error, "could not try to reach the gateway"),
                (Ok(_), None) => {}
            }
        });
    }
}

impl From<judge::Report> for Report {
    fn from(report: judge::Report) -> Report {
        let ms = |duration: Duration| duration.as_millis() as u64;
        Report {
            unanswered: report.unanswered,
            unanswered_for: ms(report.unanswered_for),
            answer: report.answer.map(|(answer, age)| (answer as u8, ms(age))),
            gossip_down: report.gossip_down,
        }
    }
}

impl From<Report> for judge::Report {
    fn from(report: Report) -> judge::Report {
        let kind = |byte| {
            [Answer::Echo, Answer::Refused, Answer::Accepts].into_iter().find(|kind| *kind as u8 == byte)
        };
        judge::Report {
            unanswered: report.unanswered,
            unanswered_for: Duration::from_millis(report.unanswered_for),
            answer: report.answer.and_then(|(byte, age)| Some((kind(byte)?, Duration::from_millis(age)))),
            gossip_down: report.gossip_down,
        }
    }
}

impl From<Message<NodeId>> for Watchfulness {
    fn from(message: Message<NodeId>) -> Watchfulness {
        match message {
            Message::Renewal { origin, term, tick, word: Word { revision, writable, reaches } } => {
                let word = NodeWord { revision, writable, reaches };
                Watchfulness::Renewal { origin, term, tick: tick.map(|tick| tick.0), word }
            }
            Message::Grant { origin, term, tick, survey } => {
                Watchfulness::Grant { origin, term, tick: tick.0, survey }
            }
            Message::Probe { term, about } => Watchfulness::Probe { term, about },
            Message::Report { term, about, report } => {
                Watchfulness::Report { term, about, report: report.into() }
            }
            Message::Greeting => Watchfulness::Greeting,
            Message::Greeted => Watchfulness::Greeted,
            Message::Chosen => Watchfulness::Chosen,
        }
    }
}

impl From<Watchfulness> for Message<NodeId> {
    fn from(message: Watchfulness) -> Message<NodeId> {
        match message {
            Watchfulness::Renewal { origin, term, tick, word: NodeWord { revision, writable, reaches } } => {
                let word = Word { revision, writable, reaches };
                Message::Renewal { origin, term, tick: tick.map(Instant), word }
            }
            Watchfulness::Grant { origin, term, tick, survey } => {
                Message::Grant { origin, term, tick: Instant(tick), survey }
            }
            Watchfulness::Probe { term, about } => Message::Probe { term, about },
            Watchfulness::Report { term, about, report } => {
                Message::Report { term, about, report: report.into() }
            }
            Watchfulness::Greeting => Message::Greeting,
            Watchfulness::Greeted => Message::Greeted,
            Watchfulness::Chosen => Message::Chosen,
        }
    }
}
