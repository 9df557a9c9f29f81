//! The shell of the judge: renewals, probes, and on the leader the judge itself.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender};
use k8s_openapi::api::core::v1::Node;
use openraft::AsyncRuntime;
use openraft::async_runtime::Instant as _;
use skein_api::scheduling::UNREACHABLE;
use skein_control::judge::{Answer, Effect, Judge, RENEWAL, Report, STEP, Settings};
use skein_control::node_health::Verdict;
use skein_control::own_link::OwnLink;
use skein_control::probe::Probe;
use skein_control::time::Instant;
use skein_control::view::View;
use skein_net::gossip::State;
use skein_raft_store::sim::SimRt;

use crate::air::Post;
use crate::plan::Mutation;
use crate::world::{Now, Site, node_id, node_name};

/// Without a grant for so long a node sends its renewals through all voters.
const GRANT_MISSED: Duration = Duration::from_secs(1);
const PROBE_STEP: Duration = Duration::from_millis(25);

/// What nodes and the leader's judge tell each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Message {
    Renewal { origin: usize, term: u64, tick: Option<u64> },
    Grant { origin: usize, term: u64, tick: u64 },
    Probe { term: u64, about: usize },
    Report { term: u64, about: usize, report: Report },
}

pub(crate) enum In {
    Message { from: usize, message: Message },
    Tried { about: usize, began: Instant, answer: Option<Answer> },
}

pub(crate) struct Watch {
    site: Site,
    inbox: UnboundedReceiver<In>,
    back: UnboundedSender<In>,
    granted: Option<(u64, u64, Instant)>,
    probes: BTreeMap<usize, Probe>,
    asked_by: Option<(usize, u64)>,
    office: Option<(u64, Judge<usize>)>,
    last_leader: Option<(usize, Instant)>,
}

impl Watch {
    pub(crate) fn new(site: Site, inbox: UnboundedReceiver<In>, back: UnboundedSender<In>) -> Watch {
        let (granted, probes, asked_by) = Default::default();
        Watch { site, inbox, back, granted, probes, asked_by, office: None, last_leader: None }
    }

    /// What has arrived is read before anybody is judged by a timer.
    pub(crate) async fn run(mut self) {
        let mut tick = Now::now();
        let (mut renewed, mut stepped) = (None, None);
        let due = |last: &mut Option<Now>, every: Duration| {
            let now = Now::now();
            let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= every);
            if is_due {
                *last = Some(now);
            }
            is_due
        };
        loop {
            match SimRt::timeout_at(tick, self.inbox.next()).await {
                Ok(Some(input)) => self.handle(input),
                Ok(None) => return,
                Err(_) => {
                    tick = Now::now() + PROBE_STEP;
                    if due(&mut renewed, RENEWAL) {
                        self.renew();
                    }
                    if due(&mut stepped, STEP) {
                        self.step();
                    }
                    self.probe();
                }
            }
        }
    }

    fn handle(&mut self, input: In) {
        match input {
            In::Message { from, message } => self.hear(from, message),
            In::Tried { about, began, answer } => {
                let now = self.site.clock.boot();
                let Some(probe) = self.probes.get_mut(&about) else { return };
                if probe.ended(began, now, answer) {
                    self.report(about, now);
                }
            }
        }
    }

    fn hear(&mut self, from: usize, message: Message) {
        let now = self.site.clock.boot();
        let me = self.site.number;
        match message {
            Message::Renewal { origin, term, tick } => match &mut self.office {
                Some((office, judge)) => {
                    let seen = tick.filter(|_| term == *office).map(Instant);
                    judge.renewed(now, origin, seen, self.site.world.air.rtt());
                    let grant = Message::Grant { origin, term: *office, tick: now.0 };
                    self.send(from, grant);
                }
                None if from == origin => self.send_to_leader(message),
                None => {}
            },
            Message::Grant { origin, term, tick } if origin == me => {
                if self.granted.is_none_or(|(known, at, _)| (term, tick) >= (known, at)) {
                    self.granted = Some((term, tick, now));
                    self.last_leader = self.leader().map(|leader| (leader, now)).or(self.last_leader);
                }
            }
            Message::Grant { origin, .. } => self.send(origin, message),
            Message::Probe { term, about } => {
                self.asked_by = Some((from, term));
                self.probes.entry(about).or_insert_with(|| Probe::new(now)).asked(now);
            }
            Message::Report { term, about, report } => self.reported(now, from, term, about, report),
        }
    }

    fn reported(&mut self, now: Instant, from: usize, term: u64, about: usize, report: Report) {
        let one_is_enough = self.site.world.plan.mutation == Some(Mutation::OneObserver);
        let Some((_, judge)) = self.office.as_mut().filter(|(office, _)| *office == term) else { return };
        judge.reported(now, from, about, report);
        if one_is_enough {
            let others = (0..self.site.world.plan.nodes).filter(|other| *other != about);
            others.for_each(|other| judge.reported(now, other, about, report));
        }
    }

    fn renew(&mut self) {
        self.take_or_leave_office();
        if self.office.is_some() {
            return;
        }
        let metrics = self.site.store.metrics();
        let term = metrics.term;
        let tick = self.granted.filter(|(granted, ..)| *granted == term).map(|(_, tick, _)| tick);
        let renewal = Message::Renewal { origin: self.site.number, term, tick };
        self.send_to_leader(renewal);
        let missed = self.granted.is_none_or(|(.., at)| self.site.clock.boot().since(at) > GRANT_MISSED);
        if missed {
            let leader = self.leader();
            for voter in metrics.voters.iter().map(crate::world::number_of_voter) {
                if voter != self.site.number && Some(voter) != leader {
                    self.send(voter, renewal);
                }
            }
        }
    }

    fn take_or_leave_office(&mut self) {
        let metrics = self.site.store.metrics();
        if self.office.as_ref().is_some_and(|(term, _)| !metrics.leads() || *term != metrics.term) {
            self.office = None;
            self.site.verdicts.lock().unwrap().clear();
        }
        if self.office.is_none() && metrics.leads() {
            let previous = self.last_leader.filter(|(leader, _)| *leader != self.site.number);
            let judge = Judge::new(self.site.number, self.site.clock.boot(), previous, Settings::default());
            self.office = Some((metrics.term, judge));
        }
    }

    fn step(&mut self) {
        let metrics = self.site.store.metrics();
        let me = self.site.number;
        let Some((term, judge)) = self.office.as_mut() else { return };
        let term = *term;
        let now = self.site.clock.boot();
        let view = self.site.picture.view();
        let nodes = 0..self.site.world.plan.nodes;
        judge.set_members(nodes.map(|number| (number, is_marked(&view, &node_name(number)), true)));
        let quorum_age = metrics.quorum_acked_age.unwrap_or(Duration::MAX);
        for effect in judge.step(now, quorum_age, OwnLink::Unknown) {
            match effect {
                Effect::Ask { observer, about } if observer == me => {
                    self.asked_by = Some((me, term));
                    self.probes.entry(about).or_insert_with(|| Probe::new(now)).asked(now);
                }
                Effect::Ask { observer, about } => self.send(observer, Message::Probe { term, about }),
                Effect::Declare { node, cause, .. } => {
                    let verdict = Verdict::Unreachable;
                    let before = self.site.verdicts.lock().unwrap().insert(node_name(node), verdict);
                    if before != Some(verdict) {
                        self.site.world.count(match cause {
                            skein_control::judge::Cause::NoAnswer => "lost: no answer",
                            skein_control::judge::Cause::DaemonGone => "lost: daemon gone",
                            skein_control::judge::Cause::Stuck => "lost: stuck",
                            skein_control::judge::Cause::GossipDown => "lost: gossip",
                        });
                    }
                }
                Effect::Welcome(node) => {
                    self.site.verdicts.lock().unwrap().insert(node_name(node), Verdict::Alive);
                }
            }
        }
    }

    fn probe(&mut self) {
        let now = self.site.clock.boot();
        self.probes.retain(|_, probe| !probe.is_over(now));
        let due: Vec<usize> =
            self.probes.iter_mut().filter_map(|(about, probe)| probe.begin(now).then_some(*about)).collect();
        for about in due {
            let world = self.site.world.clone();
            let limit = Probe::limit(world.air.rtt());
            let (back, from) = (self.back.clone(), self.site.number);
            drop(SimRt::spawn(async move {
                let (answer, time) = world.try_kernel(from, about);
                SimRt::sleep(time.min(limit)).await;
                let answer = answer.filter(|_| time <= limit);
                // The watch may have ended.
                let _ = back.unbounded_send(In::Tried { about, began: now, answer });
            }));
            self.report(about, now);
        }
    }

    fn report(&mut self, about: usize, now: Instant) {
        let gossip_down = self
            .site
            .members
            .lock()
            .unwrap()
            .get(&node_id(about))
            .is_some_and(|member| matches!(member.state, State::Down | State::Left));
        let (Some(probe), Some((leader, term))) = (self.probes.get(&about), self.asked_by) else { return };
        let report = probe.report(now, gossip_down);
        if leader == self.site.number {
            self.reported(now, leader, term, about, report);
        } else {
            self.send(leader, Message::Report { term, about, report });
        }
    }

    fn leader(&self) -> Option<usize> {
        self.site.store.metrics().leader.as_ref().map(crate::world::number_of_voter)
    }

    fn send_to_leader(&self, message: Message) {
        if let Some(leader) = self.leader().filter(|leader| *leader != self.site.number) {
            self.send(leader, message);
        }
    }

    fn send(&self, to: usize, message: Message) {
        self.site.world.air.send(self.site.number, to, Post::Watch(message));
    }
}

/// Whether the log calls the node unreachable.
pub(crate) fn is_marked(view: &View, name: &str) -> bool {
    let node = view.named::<Node>("", name);
    let taints = node.and_then(|node| node.spec.as_ref()).and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == UNREACHABLE))
}
