//! `skein recover`: a way on when the majority of the voters is gone for good.
//!
//! Any node may be asked. It asks the members that it reaches what they have, [`recovery::decide`] says which of them
//! founds the next incarnation, and all that answered are told: the founder to begin, the others to follow it. Each
//! of them does so by itself, between two lives of its daemon ([`Move`], [`turn`]); pods go on meanwhile. Whoever
//! was to follow and has not met the founder stays as it was, and can be asked to recover again: it follows then.

mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skein_control::node::recovery::{self, Basis, Decision, Log, Report, Seen};
use skein_net::endpoint::Endpoint;
use skein_net::gossip;
use skein_net::identity::NodeId;
use skein_net::incarnation::{Incarnation, IncarnationId};
use skein_net::tls::{Standing, Trust};
use skein_raft_store::{Handle, TokioRuntime, VoterId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(crate) use self::turn::{Kept, open, settle, turn};
use crate::authority::Authority;
use crate::home::Membership;
use crate::members::Members;
use crate::wire::{self, Answer, Ask};

/// A leader that is there answers in milliseconds, and one is elected in two seconds.
const LED_WITHIN: Duration = Duration::from_millis(1500);
/// How long a member may take to say what it has.
const REPORT_MAX: Duration = Duration::from_secs(4);
/// How long one that is to follow looks for the founder: the end of one life and the beginning of the next.
const FOLLOW_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What this node does next with its store, between two lives of its daemon.
#[derive(Debug, Clone)]
pub(crate) enum Move {
    /// It founds the next incarnation.
    Found(Box<Founding>),
    /// It goes over to one that is there.
    Follow(Incarnation),
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Move::Found(founding) => {
                write!(f, "founds incarnation {} of its cluster", founding.incarnation.number)
            }
            Move::Follow(next) => write!(f, "goes over to incarnation {} of its cluster", next.number),
        }
    }
}

/// What the founder of an incarnation is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Founding {
    /// Which.
    pub(crate) incarnation: Incarnation,
    /// With which of its states it begins.
    pub(crate) basis: Basis,
    /// The revision that it has, at least.
    pub(crate) revision: u64,
    /// Names of those that follow, of those that did not answer, and of those of them that somebody knows to be off.
    pub(crate) followers: Vec<String>,
    pub(crate) absent: Vec<String>,
    pub(crate) off: Vec<String>,
}

/// "The cluster is being recovered", from the node that was asked to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Word {
    /// Follow that node once it is in that incarnation.
    Follow { incarnation: Incarnation, founder: NodeId },
    /// Begin it.
    Found(Founding),
}

/// What can be done.
#[derive(Debug, Clone)]
enum Way {
    /// The cluster goes on with what is left.
    Found { decision: Decision<NodeId>, names: BTreeMap<NodeId, String> },
    /// It went on already, without this node.
    Follow(Incarnation),
}

/// What the daemon's socket is asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Wish {
    /// Names of members whose machines are off.
    off: BTreeSet<String>,
    /// Do it, instead of saying what would be done.
    go: bool,
}

/// See the module. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Recovery {
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) endpoint: Endpoint,
    pub(crate) gossip: gossip::service::Handle,
    pub(crate) members: Members,
    pub(crate) authority: Authority,
    pub(crate) membership: Membership,
    pub(crate) moves: mpsc::Sender<Move>,
    pub(crate) stopping: CancellationToken,
    /// Whom this node looks for: the last word counts.
    pub(crate) sought: Arc<Mutex<Option<Incarnation>>>,
}

impl Recovery {
    /// Answers the socket: what can be done, or that it is under way.
    pub(crate) async fn verb(&self, wish: Wish) -> Result<Value, (StatusCode, String)> {
        let conflict = |error: String| (StatusCode::CONFLICT, error);
        if wish.go {
            let begun = self.go(&wish.off).await.map_err(conflict)?;
            return Ok(json!({ "number": begun.number, "id": begun.id.to_string() }));
        }
        let own = self.membership.tag().incarnation.number;
        Ok(match self.look(&wish.off).await.map_err(conflict)? {
            Way::Follow(incarnation) => json!({
                "way": "follow",
                "number": incarnation.number,
                "own": own,
                "revision": self.store.state().revision(),
            }),
            Way::Found { decision, names } => {
                let named = |node: &NodeId| names.get(node).cloned();
                let sorted = |nodes: &[NodeId]| nodes.iter().filter_map(named).collect::<BTreeSet<_>>();
                json!({
                    "way": "found",
                    "number": own.saturating_add(1),
                    "own": own,
                    "founder": named(&decision.founder),
                    "revision": decision.revision,
                    "unconfirmed": decision.unconfirmed,
                    "followers": sorted(&decision.followers),
                    "absent": sorted(&decision.absent),
                })
            }
        })
    }

    /// What can be done, by what all say that answer.
    async fn look(&self, off: &BTreeSet<String>) -> Result<Way, String> {
        if let Some(incarnation) = self.successor()? {
            if self.is_led().await {
                return Err(format!(
                    "incarnation {} of this cluster was made while a majority was cut off from it, and that majority is here and works: there is nothing to recover; decide which one goes on; to give up the one here, stop all its nodes, then start and recover them one by one",
                    incarnation.number
                ));
            }
            return Ok(Way::Follow(incarnation));
        }
        let seen = self.survey().await;
        let decision = recovery::decide(&seen, off).map_err(|refusal| refusal.to_string())?;
        let names = seen.into_iter().map(|(node, seen)| (node, seen.name)).collect();
        Ok(Way::Found { decision, names })
    }

    /// Sees to it that it is done. Which incarnation begins, or goes on.
    async fn go(&self, off: &BTreeSet<String>) -> Result<Incarnation, String> {
        match self.look(off).await? {
            Way::Follow(incarnation) => {
                self.turn(Move::Follow(incarnation)).await?;
                Ok(incarnation)
            }
            Way::Found { decision, names } => {
                let incarnation = self.membership.tag().incarnation.next();
                let incarnation = incarnation.map_err(|error| error.to_string())?;
                self.found(incarnation, decision, names, off).await?;
                Ok(incarnation)
            }
        }
    }

    async fn found(
        &self,
        incarnation: Incarnation,
        decision: Decision<NodeId>,
        names: BTreeMap<NodeId, String>,
        off: &BTreeSet<String>,
    ) -> Result<(), String> {
        let Decision { founder, basis, revision, followers, absent, .. } = decision;
        let named = |nodes: &[NodeId]| nodes.iter().filter_map(|node| names.get(node).cloned()).collect();
        let founding = Founding {
            incarnation,
            basis,
            revision,
            followers: named(&followers),
            absent: named(&absent),
            off: off.iter().cloned().collect(),
        };
        let me = self.endpoint.node();
        // First: a founder is of another incarnation as soon as it begins, and tells these nothing any more.
        let word = Ask::Recover(Box::new(Word::Follow { incarnation, founder }));
        let told = followers.iter().filter(|node| **node != me).map(|node| self.tell(*node, &word));
        for (node, told) in
            followers.iter().filter(|node| **node != me).zip(futures::future::join_all(told).await)
        {
            if let Err(error) = told {
                warn!(peer = %node, error, "a node that is left does not follow; let it recover when this is done");
            }
        }
        if founder == me {
            return self.turn(Move::Found(Box::new(founding))).await;
        }
        let began = self.tell(founder, &Ask::Recover(Box::new(Word::Found(founding)))).await;
        began.map_err(|error| {
            let name = names.get(&founder).cloned().unwrap_or_else(|| founder.to_string());
            format!(
                "{name}, which has the newest state, does not begin: {error}; nothing has changed, try again"
            )
        })?;
        self.follow(incarnation, founder);
        Ok(())
    }

    async fn tell(&self, node: NodeId, word: &Ask) -> Result<(), String> {
        let answer: Answer<()> = wire::ask(&self.endpoint, node, word).await?;
        answer
    }

    /// Takes the word of a member that recovers the cluster.
    pub(crate) async fn answer(&self, peer: NodeId, word: Word) -> Answer<()> {
        self.may_ask(peer)?;
        let (Word::Follow { incarnation, .. } | Word::Found(Founding { incarnation, .. })) = &word;
        if incarnation.number <= self.membership.tag().incarnation.number {
            return Err(format!("it is in incarnation {} already", self.membership.tag().incarnation.number));
        }
        if self.is_led().await {
            return Err("a leader answers it".into());
        }
        match word {
            Word::Follow { incarnation, founder } => {
                info!(%peer, %founder, number = incarnation.number, "the cluster is being recovered; this node follows");
                self.follow(incarnation, founder);
                Ok(())
            }
            Word::Found(founding) => {
                let report = self.report().await;
                let has = match founding.basis {
                    Basis::Log => report.log.map_or(0, |log| log.whole),
                    Basis::Shown => report.shown,
                };
                if has < founding.revision {
                    return Err(format!("it has revision {has} and not {} any more", founding.revision));
                }
                self.turn(Move::Found(Box::new(founding))).await
            }
        }
    }

    /// What this node has, for a member that asks.
    pub(crate) async fn answer_report(&self, peer: NodeId) -> Answer<Report<VoterId>> {
        self.may_ask(peer)?;
        Ok(self.report().await)
    }

    fn may_ask(&self, peer: NodeId) -> Answer<()> {
        match self.members.judge(peer) {
            Standing::Member => Ok(()),
            _ => Err("only members may ask that".into()),
        }
    }

    async fn is_led(&self) -> bool {
        self.store.read_index(LED_WITHIN).await.is_ok()
    }

    async fn report(&self) -> Report<VoterId> {
        let (is_led, legacy) = tokio::join!(self.is_led(), self.store.legacy());
        let log = legacy.log.map(|log| Log {
            term: log.last.leader_id.term,
            index: log.last.index,
            certain: log.certain,
            whole: log.whole.revision(),
        });
        Report {
            store: self.store.voter(),
            is_led,
            log,
            shown: legacy.shown.revision(),
            told_term: legacy.told_term,
            membership: self.store.membership_place(),
            voter_sets: self.store.voter_sets(),
            keeps_authorities: self.authority.held().is_some(),
        }
    }

    /// What every member says; one that does not answer in time says nothing.
    async fn survey(&self) -> BTreeMap<NodeId, Seen<VoterId>> {
        let me = self.endpoint.node();
        let members = self.members.present();
        let mut asking = JoinSet::new();
        for node in members.keys().copied().filter(|node| *node != me) {
            let endpoint = self.endpoint.clone();
            asking.spawn(async move {
                let ask = Ask::Survivor;
                let asked = wire::ask::<Answer<Report<VoterId>>>(&endpoint, node, &ask);
                let answer = timeout(REPORT_MAX, asked).await;
                (node, answer.ok().and_then(Result::ok).and_then(Result::ok))
            });
        }
        let mut reports = BTreeMap::from([(me, self.report().await)]);
        while let Some(asked) = asking.join_next().await {
            // A panic has been reported where it happened.
            if let Ok((node, Some(report))) = asked {
                reports.insert(node, report);
            }
        }
        let gossiped = self.gossip.members().borrow().clone();
        let alive = |node| {
            node == me || gossiped.get(&node).is_some_and(|member| member.state == gossip::State::Alive)
        };
        let seen = members.into_iter().map(|(node, record)| {
            (node, Seen { name: record.name, is_alive: alive(node), report: reports.remove(&node) })
        });
        seen.collect()
    }

    /// The incarnation in which the cluster went on without this node, by members that were met.
    fn successor(&self) -> Result<Option<Incarnation>, String> {
        let own = self.membership.tag();
        let met = self.endpoint.estranged_tags().into_iter().filter(|(node, tag)| {
            tag.cluster == own.cluster && self.members.judge(*node) == Standing::Member
        });
        let met = met.map(|(_, tag)| (tag.incarnation.number, tag.incarnation.id));
        let newest: Option<(u64, IncarnationId)> =
            recovery::successor(own.incarnation.number, met).map_err(|twins| twins.to_string())?;
        Ok(newest.map(|(number, id)| Incarnation { number, id }))
    }

    /// Goes over to `incarnation` as soon as `founder` is met in it.
    fn follow(&self, incarnation: Incarnation, founder: NodeId) {
        *self.sought.lock().unwrap_or_else(PoisonError::into_inner) = Some(incarnation);
        let this = self.clone();
        let seeking = async move {
            let until = Instant::now() + FOLLOW_MAX;
            let is_sought =
                || *this.sought.lock().unwrap_or_else(PoisonError::into_inner) == Some(incarnation);
            while is_sought() && Instant::now() < until {
                let met = this.endpoint.estranged_tags().get(&founder).map(|tag| tag.incarnation);
                if met == Some(incarnation) {
                    // Another move may be under way already.
                    let _ = this.moves.try_send(Move::Follow(incarnation));
                    return;
                }
                // Only that it is called matters: the hellos tell both ends what there is to know.
                drop(this.endpoint.open(founder, wire::ASK).await);
                sleep(LOOK_EVERY).await;
            }
            if is_sought() {
                warn!(%founder, "the founder of the new incarnation was not met; when it is there: skein recover");
            }
        };
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = seeking => {}
            }
        });
    }

    async fn turn(&self, next: Move) -> Result<(), String> {
        self.moves.try_send(next).map_err(|_| "a recovery is under way on this node already".into())
    }
}
