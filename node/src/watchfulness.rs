//! The shell of the judge: renewals to the leader, probes for it, and, on the leader, the judge itself.
//!
//! Nothing here decides: [`Judge`] does, and the planner writes what it says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skein_api::scheduling::UNREACHABLE;
use skein_control::judge::{self, Answer, Effect, Judge, Settings};
use skein_control::node_health::Verdict;
use skein_control::own_link::{LinkProof, OwnLink};
use skein_control::probe::Probe;
use skein_control::time::Instant;
use skein_net::endpoint::Endpoint;
use skein_net::gossip;
use skein_net::gossip::service::Members as Gossiped;
use skein_net::identity::NodeId;
use skein_raft_store::{Handle, TokioRuntime};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock;
use crate::gateway::Gateway;
use crate::members::Members;
use crate::picture::Picture;
use crate::prober;
use crate::wire::{self, Report, Watchfulness};

/// Datagrams between a node and the leader's judge.
pub(crate) const WATCH_DATAGRAM: u8 = 40;

/// Messages waiting for the loop; a lost one is repaired by the next.
const INBOX_MAX: usize = 1024;
/// Without a grant for so long a node sends its renewals through all voters.
const GRANT_MISSED: Duration = Duration::from_secs(1);
/// Two renewals without a grant: from here on the leader's kernel is probed.
const LEADER_SILENT: Duration = Duration::from_millis(500);
/// How often the kernels of healthy members are tried, to learn which ones answer at all.
const LEARN_EVERY: Duration = Duration::from_secs(60);
/// How long such a try may take.
const LEARN_LIMIT: Duration = Duration::from_secs(2);
/// A probing loop's step; tries are due every 100 ms.
const PROBE_STEP: Duration = Duration::from_millis(25);

/// What the judge of this node says, for the planner; empty while another one leads.
pub(crate) type Verdicts = Arc<BTreeMap<String, Verdict>>;

/// The way in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inbox {
    inputs: mpsc::Sender<Input>,
    shown: Shown,
}

/// On the leader: the revision each node showed when it last said that it is here.
type Shown = Arc<Mutex<BTreeMap<NodeId, u64>>>;

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
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }
}

/// See the module.
pub(crate) struct Watch {
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) endpoint: Endpoint,
    pub(crate) members: Members,
    pub(crate) picture: Picture,
    pub(crate) gossiped: watch::Receiver<Arc<Gossiped>>,
    verdicts: watch::Sender<Verdicts>,
    inbox: mpsc::Receiver<Input>,
    back: mpsc::WeakSender<Input>,
    me: NodeId,
    /// The newest tick of the leader of this term, and when it came.
    granted: Option<(u64, u64, Instant)>,
    probes: BTreeMap<NodeId, Probe>,
    /// The term whose leader asked last: who gets the reports.
    asked_by: Option<(NodeId, u64)>,
    /// Whether a node's kernel answered while it was healthy; assumed until learned.
    answers: BTreeMap<NodeId, bool>,
    /// The other one of two nodes, and what the gateway on the link to it says of this link.
    lone: Option<(NodeId, LinkProof)>,
    office: Option<Office>,
    shown: Shown,
    /// The last leader that was another node, and when it was last heard here.
    last_leader: Option<(NodeId, Instant)>,
}

struct Office {
    term: u64,
    since: Instant,
    judge: Judge<NodeId>,
}

impl Watch {
    pub(crate) fn new(
        store: Handle<TokioRuntime>,
        endpoint: Endpoint,
        members: Members,
        picture: Picture,
        gossiped: watch::Receiver<Arc<Gossiped>>,
    ) -> (Watch, Inbox, watch::Receiver<Verdicts>) {
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let (verdicts, seen) = watch::channel(Verdicts::default());
        let shown = Shown::default();
        let watch = Watch {
            me: endpoint.node(),
            store,
            endpoint,
            members,
            picture,
            gossiped,
            verdicts,
            inbox,
            back: sender.downgrade(),
            granted: None,
            probes: BTreeMap::new(),
            asked_by: None,
            answers: BTreeMap::new(),
            lone: None,
            office: None,
            shown: shown.clone(),
            last_leader: None,
        };
        (watch, Inbox { inputs: sender, shown }, seen)
    }

    /// One loop until `stopping`.
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        let every = |period| {
            let mut timer = interval(period);
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer
        };
        let mut changes = self.store.on_change();
        let (mut renew, mut learn) = (every(judge::RENEWAL), every(LEARN_EVERY));
        let (mut step, mut probe) = (every(judge::STEP), every(PROBE_STEP));
        loop {
            // What has arrived is read before anybody is judged by a timer.
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                Some(input) = self.inbox.recv() => self.handle(input),
                changed = changes.changed() => {
                    if !changed {
                        return;
                    }
                    self.take_or_leave_office();
                }
                _ = renew.tick() => self.renew(),
                _ = step.tick(), if self.office.is_some() => self.step(),
                _ = probe.tick(), if !self.probes.is_empty() => self.probe(),
                _ = learn.tick() => self.learn(),
            }
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Message { from, message } => self.hear(from, message),
            Input::Announced(node) => {
                if let Some(office) = &mut self.office {
                    office.judge.announced(clock::boot(), node);
                }
            }
            Input::Tried { about, began, answer } => self.tried(about, began, answer),
            Input::Learned { about, answers } => drop(self.answers.insert(about, answers)),
            Input::GatewayTried { began, answered } => self.gateway_tried(began, answered),
        }
    }

    fn hear(&mut self, from: NodeId, message: Watchfulness) {
        let now = clock::boot();
        match message {
            Watchfulness::Renewal { origin, term, tick, revision } => {
                let rtt = self.endpoint.rtt(origin).unwrap_or_default();
                match &mut self.office {
                    Some(office) => {
                        let seen = tick.filter(|_| term == office.term).map(Instant);
                        office.judge.renewed(now, origin, seen, rtt);
                        self.shown.lock().unwrap_or_else(PoisonError::into_inner).insert(origin, revision);
                        let grant = Watchfulness::Grant { origin, term: office.term, tick: now.0 };
                        self.send(from, &grant);
                    }
                    // Passed on once: a relayed one comes from somebody else than its origin.
                    None if from == origin => {
                        let relayed = Watchfulness::Renewal { origin, term, tick, revision };
                        self.send_to_leader(&relayed);
                    }
                    None => {}
                }
            }
            Watchfulness::Grant { origin, term, tick } if origin == self.me => {
                let newer = self.granted.is_none_or(|(known, at, _)| (term, tick) >= (known, at));
                if newer {
                    self.granted = Some((term, tick, now));
                    self.last_leader = self.leader().map(|leader| (leader, now)).or(self.last_leader);
                }
            }
            Watchfulness::Grant { origin, term, tick } => {
                // The leader's answer to a renewal that was passed on from here.
                self.send(origin, &Watchfulness::Grant { origin, term, tick });
            }
            Watchfulness::Probe { term, about } => {
                self.asked_by = Some((from, term));
                self.probes.entry(about).or_insert_with(|| Probe::new(now)).asked(now);
            }
            Watchfulness::Report { term, about, report } => {
                if let Some(office) = self.office.as_mut().filter(|office| office.term == term) {
                    office.judge.reported(now, from, about, report.into());
                }
            }
        }
    }

    /// Every 250 ms: notices a change of leader, and tells the leader that this node is here.
    fn renew(&mut self) {
        self.take_or_leave_office();
        if self.office.is_some() {
            return;
        }
        self.probe_silent_leader();
        let metrics = self.store.metrics();
        let term = metrics.term;
        let tick = self.granted.filter(|(granted, ..)| *granted == term).map(|(_, tick, _)| tick);
        let revision = metrics.revision;
        let renewal = Watchfulness::Renewal { origin: self.me, term, tick, revision };
        self.send_to_leader(&renewal);
        let missed = self.granted.is_none_or(|(.., at)| clock::boot().since(at) > GRANT_MISSED);
        if missed {
            for voter in metrics.voters.iter().map(|voter| NodeId(voter.node)) {
                if voter != self.me && Some(voter) != self.leader() {
                    self.send(voter, &renewal);
                }
            }
        }
    }

    /// A leader that grants nothing any more is probed unasked: whoever leads next then knows already for
    /// how long its kernel has not answered.
    fn probe_silent_leader(&mut self) {
        let now = clock::boot();
        if let Some((leader, heard_at)) = self.last_leader
            && now.since(heard_at) > LEADER_SILENT
        {
            self.probes.entry(leader).or_insert_with(|| Probe::new(now)).asked(now);
        }
    }

    fn take_or_leave_office(&mut self) {
        let metrics = self.store.metrics();
        // A leader that is newly known was heard just now.
        if let Some(leader) = metrics.leader.map(|leader| NodeId(leader.node))
            && self.last_leader.is_none_or(|(last, _)| last != leader)
            && leader != self.me
        {
            self.last_leader = Some((leader, clock::boot()));
        }
        match &self.office {
            Some(office) if !metrics.leads() || office.term != metrics.term => {
                info!(term = office.term, "no longer leads");
                self.office = None;
                self.shown.lock().unwrap_or_else(PoisonError::into_inner).clear();
                self.verdicts.send_replace(Verdicts::default());
            }
            _ => {}
        }
        if self.office.is_none() && metrics.leads() {
            let now = clock::boot();
            let previous = self.last_leader.filter(|(leader, _)| *leader != self.me);
            info!(term = metrics.term, "leads");
            let judge = Judge::new(self.me, now, previous, Settings::default());
            self.office = Some(Office { term: metrics.term, since: now, judge });
        }
    }

    fn step(&mut self) {
        let names: BTreeMap<NodeId, String> =
            self.members.present().into_iter().map(|(id, record)| (id, record.name)).collect();
        self.note_lone_node(&names);
        let metrics = self.store.metrics();
        let Some(office) = self.office.as_mut() else { return };
        let term = office.term;
        let now = clock::boot();
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).retain(|node, _| names.contains_key(node));
        let view = self.picture.view();
        let answers = &self.answers;
        office.judge.set_members(
            names
                .iter()
                .map(|(id, name)| (*id, is_marked(&view, name), answers.get(id).copied().unwrap_or(true))),
        );
        // Winning the election was the first contact with a quorum.
        let quorum_age = metrics.quorum_acked_age.unwrap_or(Duration::MAX).min(now.since(office.since));
        let outage = Settings::default().outage_survived;
        let own_link = self.lone.as_ref().map_or(OwnLink::Unknown, |(_, proof)| proof.verdict(now, outage));
        let effects = office.judge.step(now, quorum_age, own_link);
        let mut verdicts = (**self.verdicts.borrow()).clone();
        for effect in effects {
            match effect {
                Effect::Ask { observer, about } if observer == self.me => {
                    self.asked_by = Some((self.me, term));
                    if let Some((_, proof)) = &mut self.lone {
                        proof.wanted(now);
                    }
                    self.probes.entry(about).or_insert_with(|| Probe::new(now)).asked(now);
                }
                Effect::Ask { observer, about } => {
                    let ask = wire::encode(&Watchfulness::Probe { term, about });
                    self.endpoint.datagram(observer, WATCH_DATAGRAM, ask);
                }
                Effect::Declare { node, cause, silent_for } => {
                    let Some(name) = names.get(&node) else { continue };
                    if verdicts.insert(name.clone(), Verdict::Unreachable) != Some(Verdict::Unreachable) {
                        let silent_ms = silent_for.as_millis() as u64;
                        warn!(peer = %node, name, ?cause, silent_ms, "a node is lost");
                    }
                }
                Effect::Welcome(node) => {
                    let Some(name) = names.get(&node) else { continue };
                    if verdicts.insert(name.clone(), Verdict::Alive) != Some(Verdict::Alive) {
                        info!(peer = %node, name, "a lost node is back");
                    }
                }
            }
        }
        self.verdicts.send_if_modified(|current| {
            let changed = **current != verdicts;
            if changed {
                *current = Arc::new(verdicts);
            }
            changed
        });
    }

    /// In a cluster of two nobody else says whose link is down, but perhaps the gateway.
    fn note_lone_node(&mut self, members: &BTreeMap<NodeId, String>) {
        let mut others = members.keys().copied().filter(|id| *id != self.me);
        let lone = others.next().filter(|_| others.next().is_none());
        if self.lone.as_ref().map(|(lone, _)| *lone) != lone {
            self.lone = lone.map(|lone| (lone, LinkProof::default()));
            if let Some(lone) = lone {
                self.try_gateway(lone, LEARN_LIMIT);
            }
        }
    }

    fn gateway_tried(&mut self, began: Instant, answered: bool) {
        let outage = Settings::default().outage_survived;
        let Some((lone, proof)) = &mut self.lone else { return };
        let was_unknown = proof.verdict(began, outage) == OwnLink::Unknown;
        proof.ended(began, answered);
        if was_unknown && answered {
            info!(peer = %lone, "the gateway answers: the loss of the other node can be told from a cut of this one");
        }
    }

    /// Begins the tries that are due and reports what is known.
    fn probe(&mut self) {
        let now = clock::boot();
        self.probes.retain(|_, probe| !probe.is_over(now));
        let due: Vec<NodeId> =
            self.probes.iter_mut().filter_map(|(about, probe)| probe.begin(now).then_some(*about)).collect();
        for about in due {
            let Some(api) = self.api_of(about) else { continue };
            let limit = Probe::limit(self.endpoint.rtt(about).unwrap_or_default());
            self.try_kernel(api, limit, move |tried| match tried {
                Ok(answer) => Some(Input::Tried { about, began: now, answer }),
                Err(error) => {
                    debug!(peer = %about, %error, "could not try to reach a node");
                    None
                }
            });
            self.report(about, now);
        }
        if let Some((lone, proof)) = &mut self.lone
            && proof.begin(now)
        {
            let lone = *lone;
            self.try_gateway(lone, Probe::limit(Duration::ZERO));
        }
    }

    fn tried(&mut self, about: NodeId, began: Instant, answer: Option<Answer>) {
        let now = clock::boot();
        let Some(probe) = self.probes.get_mut(&about) else { return };
        // The first answer vetoes: it goes out at once.
        if probe.ended(began, now, answer) {
            self.report(about, now);
        }
    }

    fn report(&mut self, about: NodeId, now: Instant) {
        let gossip_down = self
            .gossiped
            .borrow()
            .get(&about)
            .is_some_and(|member| matches!(member.state, gossip::State::Down | gossip::State::Left));
        let (Some(probe), Some((leader, term))) = (self.probes.get(&about), self.asked_by) else { return };
        let report = probe.report(now, gossip_down);
        match &mut self.office {
            Some(office) if leader == self.me => office.judge.reported(now, self.me, about, report),
            _ => self.send(leader, &Watchfulness::Report { term, about, report: report.into() }),
        }
    }

    /// Once a minute, while all is well: which members' kernels answer at all? A firewall in between is
    /// learned now, not when the node is silent.
    fn learn(&mut self) {
        for about in self.members.present().into_keys().filter(|about| *about != self.me) {
            let alive =
                self.gossiped.borrow().get(&about).is_some_and(|member| member.state == gossip::State::Alive);
            let Some(api) = self.api_of(about).filter(|_| alive) else { continue };
            self.try_kernel(api, LEARN_LIMIT, move |tried| {
                Some(Input::Learned { about, answers: tried.ok()?.is_some() })
            });
            if self.lone.as_ref().is_some_and(|(lone, _)| *lone == about) {
                self.try_gateway(about, LEARN_LIMIT);
            }
        }
    }

    /// Tries the gateway on the link to the other one of two nodes. Where there is none nothing is learned.
    fn try_gateway(&self, lone: NodeId, limit: Duration) {
        let Some(gateway) = self.api_of(lone).and_then(|api| Gateway::beside(api.ip())) else { return };
        let (back, began) = (self.back.clone(), clock::boot());
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

    fn try_kernel(
        &self,
        api: SocketAddr,
        limit: Duration,
        then: impl FnOnce(std::io::Result<Option<Answer>>) -> Option<Input> + Send + 'static,
    ) {
        let back = self.back.clone();
        tokio::spawn(async move {
            let tried = prober::try_once(api, limit).await;
            if let (Some(input), Some(back)) = (then(tried), back.upgrade()) {
                let _ = back.try_send(input);
            }
        });
    }

    fn api_of(&self, node: NodeId) -> Option<SocketAddr> {
        self.gossiped.borrow().get(&node)?.metadata.as_ref()?.api_address
    }

    fn leader(&self) -> Option<NodeId> {
        self.store.metrics().leader.map(|leader| NodeId(leader.node))
    }

    fn send_to_leader(&self, message: &Watchfulness) {
        if let Some(leader) = self.leader().filter(|leader| *leader != self.me) {
            self.send(leader, message);
        }
    }

    fn send(&self, to: NodeId, message: &Watchfulness) {
        self.endpoint.datagram(to, WATCH_DATAGRAM, wire::encode(message));
    }
}

/// Whether the log calls the node unreachable.
fn is_marked(view: &skein_control::view::View, name: &str) -> bool {
    let node = view.named::<k8s_openapi::api::core::v1::Node>("", name);
    let taints = node.and_then(|node| node.spec.as_ref()).and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == UNREACHABLE))
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
