//! The shell of the vigil: renewals, probes, and on the leader the judge itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender};
use k8s_openapi::api::core::v1::Node;
use openraft::AsyncRuntime;
use openraft::async_runtime::{Instant as _, Select2};
use skein_control::judge::{self, Answer, Cause, RENEWAL, Settings};
use skein_control::places::{self, Known, Place};
use skein_control::probe::Probe;
use skein_control::time::Instant;
use skein_control::view::View;
use skein_control::vigil::{
    self, Effect, Gossip, LEARN_EVERY, LEARN_LIMIT, Leadership, PROBE_STEP, Sight, Vigil,
};
use skein_net::gossip::{Member, State};
use skein_net::identity::NodeId;
use skein_raft_store::log::Health;
use skein_raft_store::sim::SimRt;

use crate::air::{NoRoute, Post};
use crate::members::Record;
use crate::plan::Mutation;
use crate::world::{Now, Site, node_name, number_of};

/// What nodes tell each other.
pub(crate) type Message = vigil::Message<NodeId>;

pub(crate) enum In {
    Message {
        from: NodeId,
        message: Message,
    },
    Tried {
        about: NodeId,
        began: Instant,
        answer: Option<Answer>,
    },
    Learned {
        about: NodeId,
        answers: bool,
    },
    GatewayTried {
        began: Instant,
        answered: bool,
    },
    /// A node said that it restarts.
    Announced {
        from: NodeId,
    },
}

pub(crate) struct Watch {
    site: Site,
    vigil: Vigil<NodeId>,
    inbox: UnboundedReceiver<In>,
    back: UnboundedSender<In>,
}

impl Sight<NodeId> for Site {
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
        let roster = self.picture.roster().into_iter();
        roster.map(|(node, record)| (node, is_marked(&view, &record))).collect()
    }

    fn gossip(&self, node: NodeId) -> Gossip {
        match self.members.lock().unwrap().get(&node).map(|member| member.state) {
            Some(State::Alive) => Gossip::Alive,
            Some(State::Down | State::Left) => Gossip::Down,
            Some(State::Suspect) | None => Gossip::Unsure,
        }
    }

    fn rtt(&self, _: NodeId) -> Duration {
        self.world.air.rtt()
    }
}

impl Watch {
    pub(crate) fn new(site: Site, inbox: UnboundedReceiver<In>, back: UnboundedSender<In>) -> Watch {
        let mut vigil = Vigil::new(site.id, Settings::default());
        match site.world.plan.mutation {
            Some(Mutation::OneObserver) => vigil.mutate(judge::Mutation::OneObserver),
            Some(Mutation::NeverHeardForgotten) => vigil.mutate(judge::Mutation::NeverHeardForgotten),
            _ => {}
        }
        Watch { site, vigil, inbox, back }
    }

    /// What has arrived is read before anybody is judged by a timer.
    pub(crate) async fn run(mut self) {
        let mut changes = self.site.store.on_change();
        let mut due = [RENEWAL, PROBE_STEP, LEARN_EVERY].map(|_| Now::now());
        let mut effects = Vec::new();
        loop {
            let next = self.next(&due);
            let input = {
                let (arrived, changed) = (self.inbox.next(), changes.changed());
                SimRt::timeout_at(next, SimRt::select2(arrived, changed)).await
            };
            if self.site.world.was_stopped(self.site.number) {
                // It ends before the others are told: whoever renews is no more about to restart.
                return;
            }
            let later = |due: &mut Now, every: Duration| {
                let is_due = *due <= Now::now();
                if is_due {
                    *due = Now::now() + every;
                }
                is_due
            };
            match input {
                Ok(Select2::First(Some(input))) => self.handle(input, &mut effects),
                Ok(Select2::Second(true)) => {
                    self.vigil.look(self.site.clock.boot(), &self.site, &mut effects);
                }
                Ok(Select2::First(None) | Select2::Second(false)) => return,
                Err(_) => {
                    let now = self.site.clock.boot();
                    if later(&mut due[0], RENEWAL) {
                        self.vigil.renew(now, &self.site, &mut effects);
                    }
                    if self.vigil.step_due().is_some_and(|due| due <= now) {
                        self.vigil.step(now, &self.site, &mut effects);
                    }
                    if self.vigil.is_probing() && later(&mut due[1], PROBE_STEP) {
                        self.vigil.probe(now, &self.site, &mut effects);
                    }
                    if later(&mut due[2], LEARN_EVERY) {
                        self.vigil.learn(now, &self.site, &mut effects);
                    }
                }
            }
            effects.drain(..).for_each(|effect| self.perform(effect));
        }
    }

    /// The earliest timer that has anything to do.
    fn next(&self, [renew, probe, learn]: &[Now; 3]) -> Now {
        let mut next = *renew.min(learn);
        if let Some(due) = self.vigil.step_due() {
            next = next.min(self.site.clock.moment(due));
        }
        if self.vigil.is_probing() {
            next = next.min(*probe);
        }
        next
    }

    fn handle(&mut self, input: In, effects: &mut Vec<Effect<NodeId>>) {
        let now = self.site.clock.boot();
        match input {
            In::Message { from, message } => self.vigil.hear(now, from, message, &self.site, effects),
            In::Tried { about, began, answer } => {
                self.vigil.tried(now, about, began, answer, &self.site, effects);
            }
            In::Learned { about, answers } => self.vigil.learned(about, answers),
            In::GatewayTried { began, answered } => self.vigil.gateway_tried(began, answered, effects),
            In::Announced { from } => self.vigil.announced(now, from),
        }
    }

    fn perform(&self, effect: Effect<NodeId>) {
        let (world, me) = (&self.site.world, self.site.number);
        match effect {
            Effect::Send { to, message } => world.air.send(self.site.id, to, Post::Watch(message)),
            Effect::Try { about, began, .. } => {
                let limit = Probe::limit(world.air.rtt());
                self.try_kernel(about, limit, move |answer| In::Tried { about, began, answer });
            }
            Effect::Learn(about) => self.try_kernel(about, LEARN_LIMIT, move |answer| In::Learned {
                about,
                answers: answer.is_some(),
            }),
            // For `skein status`.
            Effect::Shows { .. } => {}
            Effect::TryGateway { beside, began, limit } => self.try_gateway(beside, began, limit),
            Effect::GatewayAnswers { .. } => world.count("gateways found"),
            Effect::TookOffice { term } => world.note(&format!("node {me} leads in term {term}")),
            Effect::LeftOffice { .. } => self.publish(),
            Effect::Lost { node, cause, silent_for } => {
                let node = number_of(node);
                world.note(&format!("node {me} judges node {node}: {cause:?} after {silent_for:?}"));
                world.count(match cause {
                    Cause::NoAnswer => "lost: no answer",
                    Cause::DaemonGone => "lost: daemon gone",
                    Cause::Stuck => "lost: stuck",
                    Cause::GossipDown => "lost: gossip",
                    Cause::NeverHeard => "lost: never heard",
                    Cause::Unwitnessed => "lost: unwitnessed",
                });
                self.publish();
            }
            Effect::HandOver(node) => self.hand_over(node),
            Effect::Back(node) => {
                world.note(&format!("node {me} welcomes node {}", number_of(node)));
                self.publish();
            }
        }
    }

    fn hand_over(&self, node: NodeId) {
        let (world, store) = (self.site.world.clone(), self.site.store.clone());
        world.note(&format!("node {} lets node {} lead", self.site.number, number_of(node)));
        let voters = store.metrics().voters;
        let Some(to) = voters.into_iter().find(|voter| voter.node == node.0) else { return };
        drop(SimRt::spawn(async move {
            let moved = store.transfer_leader(Some(to)).await;
            world.count(if moved { "leadership handed over" } else { "leadership not handed over" });
        }));
    }

    fn publish(&self) {
        let verdicts = self.vigil.verdicts().map(|(node, verdict)| (node_name(number_of(node)), verdict));
        *self.site.verdicts.lock().unwrap() = verdicts.collect::<BTreeMap<_, _>>();
        self.site.picture.wake();
    }

    /// Where the kernel of a node may be tried, by what this one knows.
    fn places(&self, about: NodeId) -> Vec<Place> {
        let site = &self.site;
        let gossiped = site.members.lock().unwrap();
        let api_of = |member: &Member| member.metadata.as_ref()?.api_address;
        let lives = |member: &&Member| member.state == State::Alive && member.node() != about;
        let held =
            |member| api_of(member).into_iter().flat_map(|api| places::held_by(api, member.addresses()));
        let taken: BTreeSet<_> = gossiped.values().filter(lives).flat_map(held).collect();
        let (view, record) = (site.picture.view(), site.picture.roster().remove(&about));
        let known = Known {
            gossiped: gossiped.get(&about).and_then(api_of),
            seen: &site.book.addresses(about),
            node: record.as_ref().and_then(|record| object_of(&view, record)),
            joined: record.as_ref().map_or(&[], |record| &record.addresses),
        };
        places::of(&known, &taken)
    }

    fn try_kernel(
        &self,
        about: NodeId,
        limit: Duration,
        then: impl FnOnce(Option<Answer>) -> In + Send + 'static,
    ) {
        let places = self.places(about);
        if places.is_empty() {
            return self.site.world.count("nowhere to try");
        }
        let (world, back, from) = (self.site.world.clone(), self.back.clone(), self.site.number);
        drop(SimRt::spawn(async move {
            let tries = places.iter().map(|place| {
                let (answer, time) = world.try_kernel(from, place.api)?;
                let answer = answer.filter(|_| time <= limit).map(|answer| place.means(answer));
                Ok((answer, time.min(limit)))
            });
            let tries: Vec<Result<(Option<Answer>, Duration), NoRoute>> = tries.collect();
            let time = tries.iter().flatten().map(|(_, time)| *time).max().unwrap_or_default();
            SimRt::sleep(time).await;
            match places::together(tries.into_iter().map(|tried| tried.map(|(answer, _)| answer))) {
                // The watch may have ended.
                Ok(answer) => drop(back.unbounded_send(then(answer))),
                Err(NoRoute) => world.count("no route to try"),
            }
        }));
    }

    fn try_gateway(&self, beside: NodeId, began: Instant, limit: Duration) {
        let (world, back, me) = (self.site.world.clone(), self.back.clone(), self.site.number);
        // The one on the link to the other node, as the routes have it.
        if !self.places(beside).iter().any(|place| world.lan.has_route(place.api)) {
            return;
        }
        drop(SimRt::spawn(async move {
            let (answered, time) = world.air.try_gateway(me);
            SimRt::sleep(time.min(limit)).await;
            let answered = answered && time <= limit;
            let _ = back.unbounded_send(In::GatewayTried { began, answered });
        }));
    }
}

/// The Node object of a member.
fn object_of<'v>(view: &'v View, record: &Record) -> Option<&'v Node> {
    places::node_of(view, &record.node.to_string(), &record.name).map(|node| &**node)
}

/// Whether the log calls a member unreachable.
fn is_marked(view: &View, record: &Record) -> bool {
    object_of(view, record).is_some_and(places::is_called_unreachable)
}

/// Whether the log calls the node of this name unreachable.
pub(crate) fn is_called_unreachable(view: &View, name: &str) -> bool {
    view.named::<Node>("", name).is_some_and(|node| places::is_called_unreachable(node))
}
