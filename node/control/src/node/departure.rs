//! How a membership ends: by the node's own wish (`leave`), or by somebody else's (`remove`).
//!
//! ```text
//! asked ──▶ Waiting ──its turn──▶ Draining ──empty, or 60 s──▶ Leaving ──no part in the log──▶ removed
//!              │                                                  │
//!              └───────── an obstacle for 30 s: kept ◀────────────┘
//! ```
//!
//! A wish is an entry in the member's record, so that it outlives daemons and leaders, and [`plan`] takes it on
//! from wherever it stands. One is taken up at a time, whoever asked first goes first: so a majority is never asked
//! to let itself go. Whoever is lost, or is to go `--now`, waits for nobody: its membership ends in one command,
//! and its vote is replaced afterwards. Only a living voter without which there is no majority gives its
//! vote away first, drained of nothing.
//!
//! The command that ends a membership also deletes the Node; pods still bound there are replaced by the same plan.
//! It is not made before a voter that stays holds the authorities, unless nobody could give them any more.
//! Of a stolen machine it also has all authorities made anew ([`super::authority::Trust::stolen`]): no moment lies between the two, so a
//! crash cannot leave one without the other, and what is made anew is made when the thief is no member any more.
//!
//! Not here: who votes instead ([`crate::voters`]), and the end of what runs on the machine.
//!
//! A pod that may have one writer only, once there are such, must not be freed by this: its lease ends by time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};
use skein_api::write::{Change, Expect, NodeDeletion, Write};

use super::authority::{Authorities, TRUST};
use super::drain;
use super::roster::{self, Member, Record};
use crate::draft::Draft;
use crate::node_health::{Verdict, unreachable_since};
use crate::view::{Key, View, key_of};

/// How long the pods of a node may take to end before it goes anyway.
pub const DRAIN_MAX: Duration = Duration::from_secs(60);
/// How long an obstacle is waited out: longer than an election, a restart, or a new voter's catching up.
pub const PATIENCE: Duration = Duration::from_secs(30);

const WHO: &str = "membership-controller";

/// A member on its way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// When it was asked for, in milliseconds since 1970 by the leader's stamp: who asked first goes first.
    pub asked_ms: u64,
    /// Who asked, and how urgently.
    pub cause: Cause,
    /// How far it has come.
    pub stage: Stage,
    /// When this stage began, or the obstacle in it.
    pub since_ms: u64,
    /// Its Node was made unschedulable by this, and by nobody before.
    #[serde(default)]
    pub cordoned: bool,
    /// What keeps it from going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<Obstacle>,
}

/// Why a membership ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The node itself asked to leave.
    Leave,
    /// Somebody else takes it out, drained first if it lives.
    Removal,
    /// Somebody else takes it out at once, whatever runs there.
    RemovalNow,
    /// The same, and whoever has its disk may know all that it knew: the authorities are made anew with it.
    Stolen,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Leave => "it leaves",
            Cause::Removal => "it is removed",
            Cause::RemovalNow => "it is removed at once",
            Cause::Stolen => "it was stolen",
        })
    }
}

impl Cause {
    /// Whether nothing is waited for that only its own good needs.
    pub fn is_now(self) -> bool {
        match self {
            Cause::Leave | Cause::Removal => false,
            Cause::RemovalNow | Cause::Stolen => true,
        }
    }

    /// Whether a wish for this cause says more than one for `other`.
    fn is_more_than(self, other: Cause) -> bool {
        let urgency = |cause| match cause {
            Cause::Leave | Cause::Removal => 0,
            Cause::RemovalNow => 1,
            Cause::Stolen => 2,
        };
        urgency(self) > urgency(other)
    }
}

/// How far a departure has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// For its turn. Nothing was done to the node.
    Waiting,
    /// Its pods end and are made anew elsewhere; it takes no new ones.
    Draining,
    /// It is empty, and gives its part in the log away.
    Leaving,
}

/// What keeps a member from going.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// Nobody would be left.
    LastOne,
    /// Without it no majority of the voters is up; these would have to be.
    Majority(BTreeSet<String>),
    /// Nobody who stays holds the authorities yet.
    Authorities,
    /// Its part in the log has not been given away yet.
    Log,
}

/// Why a member that was to go is still here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Milliseconds since 1970, by the leader's stamp.
    pub at_ms: u64,
    /// What was in the way to the last.
    pub obstacle: Obstacle,
}

/// What the leader knows of the log, and the map does not say. Nodes by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Electorate {
    /// Who leads.
    pub leader: String,
    /// Who votes.
    pub voters: BTreeSet<String>,
    /// Who has any part in the log: voters and learners of each set that still counts.
    pub in_log: BTreeSet<String>,
    /// Who has confirmed that it keeps the cluster's authorities.
    pub holders: BTreeSet<String>,
    /// What hangs on each of them.
    pub quorum: Quorum,
}

/// What hangs on single voters now. Nodes by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    /// Of each voter that cannot be let go the names of those that would have to be up for it.
    pub needs: BTreeMap<String, BTreeSet<String>>,
    /// Without the answers of any of these there is no majority. While one of them has its vote it has to stay a member.
    pub critical: BTreeSet<String>,
}

/// Why nobody is let go. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// There is none of that name.
    #[error("there is no member called {0:?}; see: skein status")]
    NoMember(String),
    /// It cannot go.
    #[error("{name:?} stays a member: {obstacle}")]
    Obstacle {
        /// Its name.
        name: String,
        /// What is in the way.
        obstacle: Obstacle,
    },
    /// It is not on its way out.
    #[error("{0:?} is not leaving")]
    NotLeaving(String),
}

/// How a departure stands, for whoever waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// It is a member, and nobody wants it to go.
    Member,
    /// It was to go, and is kept.
    Kept(Kept),
    /// It waits, for these to go first or for an obstacle.
    Waiting {
        /// Names of those before it.
        behind: Vec<String>,
        /// What is in its own way.
        obstacle: Option<Obstacle>,
    },
    /// Its pods end.
    Draining {
        /// How many are left.
        pods: usize,
    },
    /// It gives its vote away.
    Leaving {
        /// What is in its way.
        obstacle: Option<Obstacle>,
    },
    /// It is no member any more.
    Gone,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::LastOne => f.write_str(
                "it is the only node that stays: all that runs and all objects end with it; if that is meant, run on it: \
                 skein leave --end-cluster",
            ),
            Obstacle::Majority(down) => {
                let names: Vec<String> = down.iter().map(|name| format!("{name:?}")).collect();
                let names = names.join(" and ");
                write!(f, "without it no majority of the voters is up while {names} does not answer; start what is off, or end its membership first with: skein remove NAME")
            }
            Obstacle::Authorities => f.write_str(
                "no node that stays holds the cluster's authorities yet; check that the others run and reach it, then \
                 try again",
            ),
            Obstacle::Log => {
                f.write_str("its vote could not be given away in time; check that the other nodes run, then try again")
            }
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waits = |f: &mut fmt::Formatter<'_>, obstacle: &Option<Obstacle>| match obstacle {
            Some(Obstacle::Majority(down)) => {
                let names: Vec<&str> = down.iter().map(String::as_str).collect();
                write!(f, "; waits for {} to answer", names.join(" and "))
            }
            Some(Obstacle::Authorities) => f.write_str("; waits for another node to hold the authorities"),
            Some(Obstacle::LastOne | Obstacle::Log) | None => Ok(()),
        };
        match self {
            Progress::Member => f.write_str("a member"),
            Progress::Kept(kept) => write!(f, "stays a member: {}", kept.obstacle),
            Progress::Waiting { behind, obstacle } if behind.is_empty() => {
                f.write_str("is to leave")?;
                waits(f, obstacle)
            }
            Progress::Waiting { behind, .. } => {
                write!(f, "waits for {} to leave first", behind.join(" and "))
            }
            Progress::Draining { pods } => {
                write!(f, "its pods move: {pods} {} to end", if *pods == 1 { "has" } else { "have" })
            }
            Progress::Leaving { obstacle } => {
                f.write_str("gives its part in the log away")?;
                waits(f, obstacle)
            }
            Progress::Gone => f.write_str("no member any more"),
        }
    }
}

/// What a wish that `name` shall go writes, if it may go. One that is on its way already goes on, more urgently if
/// `cause` says so.
///
/// * `verdicts`: the judge's, by name. `now_ms`: the leader's stamp.
/// * Refused is what can be known to fail before anything is done to the node.
pub fn ask(
    view: &View,
    electorate: &Electorate,
    verdicts: &BTreeMap<String, Verdict>,
    now_ms: u64,
    name: &str,
    cause: Cause,
) -> Result<Vec<Write>, Refusal> {
    let mut record = roster::named(view, name).cloned().ok_or_else(|| Refusal::NoMember(name.to_owned()))?;
    let refused = |obstacle| Err(Refusal::Obstacle { name: name.to_owned(), obstacle });
    if let Some(departure) = &mut record.departure {
        if !cause.is_more_than(departure.cause) {
            return Ok(Vec::new());
        }
        departure.cause = cause;
    } else {
        let picture = Picture { view, electorate, verdicts };
        if !picture.stay_without(&record).any(|_| true) {
            return refused(Obstacle::LastOne);
        }
        let is_lost = picture.is_lost(&record);
        let is_first = departing(view).next().is_none();
        match picture.needs(&record) {
            // What holds while others go says little about later.
            Some(obstacle) if is_first && !is_lost => return refused(obstacle),
            _ => {}
        }
        if is_lost && !cause.is_now() && picture.takes_the_authorities_along(&record) {
            return refused(Obstacle::Authorities);
        }
        wish(&mut record, now_ms, cause);
    }
    Ok(vec![replace(view, record)])
}

/// A new wish that a member shall go.
fn wish(record: &mut Record, now_ms: u64, cause: Cause) {
    record.departure = Some(Departure {
        asked_ms: now_ms,
        cause,
        stage: Stage::Waiting,
        since_ms: now_ms,
        cordoned: false,
        obstacle: None,
    });
    record.kept = None;
}

/// What takes a wish back: the record, and the Node as it was before.
pub fn cancel(view: &View, name: &str) -> Result<Vec<Write>, Refusal> {
    let mut record = roster::named(view, name).cloned().ok_or_else(|| Refusal::NoMember(name.to_owned()))?;
    let departure = record.departure.take().ok_or_else(|| Refusal::NotLeaving(name.to_owned()))?;
    record.leaving = false;
    let mut writes = vec![replace(view, record)];
    let node_key = key_of::<Node>("", name);
    if let Some(mut node) = view.get::<Node>(&node_key).map(|node| (**node).clone())
        && departure.cordoned
        && uncordon(&mut node)
    {
        let bytes = serde_json::to_vec(&node).expect("a Node is made of strings, numbers and maps");
        writes.push(put(view, &node_key, bytes));
    }
    Ok(writes)
}

/// How the departure of the node with this id stands.
pub fn progress(view: &View, node: &str) -> Progress {
    let Some(member) = view.named::<Member>("", node).filter(|member| !member.record.removed) else {
        return Progress::Gone;
    };
    let record = &member.record;
    let Some(departure) = &record.departure else {
        return record.kept.clone().map_or(Progress::Member, Progress::Kept);
    };
    let obstacle = departure.obstacle.clone();
    match departure.stage {
        Stage::Waiting => {
            let mut before: Vec<_> = departing(view)
                .filter(|(other, at)| (at.asked_ms, &other.node) < (departure.asked_ms, &record.node))
                .collect();
            before.sort_by_key(|(other, at)| (at.asked_ms, other.node.clone()));
            let behind = before.into_iter().map(|(other, _)| other.name.clone()).collect();
            Progress::Waiting { behind, obstacle }
        }
        Stage::Draining => Progress::Draining { pods: view.pods_on(&record.name).count() },
        Stage::Leaving => Progress::Leaving { obstacle },
    }
}

/// Whether a leader with this record lets another voter lead: it cannot see itself out.
pub fn hands_over<N, S, P>(record: &Record<N, S, P>) -> bool {
    let at_once = record.departure.as_ref().is_some_and(|departure| departure.cause.is_now());
    record.leaving || at_once
}

/// The state of a record in a word or three, if it is not simply a member's.
pub fn word<N, S, P>(record: &Record<N, S, P>) -> Option<&'static str> {
    let stage = record.departure.as_ref().map(|departure| departure.stage);
    match stage {
        _ if record.removed => Some("removed"),
        Some(Stage::Waiting) => Some("waiting to leave"),
        Some(Stage::Draining) => Some("draining"),
        Some(Stage::Leaving) => Some("leaving"),
        None => record.leaving.then_some("leaving"),
    }
}

/// Says what `kubectl delete node` means. Of a living member it must not end healthy pods, a cordon and labels.
pub fn node_deletion(view: &View, name: &str, now_ms: u64) -> Result<NodeDeletion, String> {
    let Some(record) = roster::named(view, name) else { return Ok(NodeDeletion::Object) };
    let node = view.named::<Node>("", name);
    let is_lost = node.is_some_and(|node| unreachable_since(node).is_some());
    if !is_lost && record.departure.is_none() {
        return Err(format!(
            "node {name:?} is alive; to end its membership: skein remove {name}, to empty it and keep it: kubectl drain {name}"
        ));
    }
    if !roster::present(view).any(|other| other.departure.is_none() && other.name != name) {
        return Err(format!("node {name:?} is a member, and {}", Obstacle::LastOne));
    }
    if record.departure.is_some() {
        return Ok(NodeDeletion::Membership(Vec::new()));
    }
    let mut record = record.clone();
    wish(&mut record, now_ms, Cause::Removal);
    Ok(NodeDeletion::Membership(vec![replace(view, record)]))
}

/// Takes departures on from where they stand.
pub(crate) fn plan(draft: &mut Draft<'_>, electorate: &Electorate, verdicts: &BTreeMap<String, Verdict>) {
    drain::make_anew(draft);
    // Who has part in the log is known in office only.
    if electorate.leader.is_empty() {
        return;
    }
    let view = draft.view().clone();
    let picture = Picture { view: &view, electorate, verdicts };
    let mut queue: Vec<(Key, Record, Departure)> = Vec::new();
    for (record, departure) in departing(&view) {
        let key = key_of::<Member>("", &record.node);
        if picture.ends_at_once(record, departure) {
            end(draft, &key, departure.cause);
        } else {
            queue.push((key, record.clone(), departure.clone()));
        }
    }
    // A build that knows no queue asked by this word alone.
    for record in roster::present(&view) {
        let is_out = record.leaving && record.departure.is_none() && picture.is_out(record);
        if is_out && !picture.takes_the_authorities_along(record) {
            end(draft, &key_of::<Member>("", &record.node), Cause::Leave);
        }
    }
    let order = |(_, record, departure): &(Key, Record, Departure)| {
        (departure.stage == Stage::Waiting, departure.asked_ms, record.node.clone())
    };
    let Some((key, record, departure)) = queue.into_iter().min_by_key(order) else { return };
    let mut step = Step { draft, picture, key, record, departure };
    match step.departure.stage {
        Stage::Waiting => step.begin(),
        Stage::Draining => step.drain(),
        Stage::Leaving => step.leave(),
    }
}

/// The map and what the leader knows beside it.
#[derive(Clone, Copy)]
struct Picture<'a> {
    view: &'a View,
    electorate: &'a Electorate,
    verdicts: &'a BTreeMap<String, Verdict>,
}

impl<'a> Picture<'a> {
    /// Members that nobody wants to go, without `leaver`.
    fn stay_without(&self, leaver: &Record) -> impl Iterator<Item = &'a Record> + use<'a> {
        let leaver = leaver.node.clone();
        roster::present(self.view).filter(move |record| record.stays() && record.node != leaver)
    }

    /// Its silence has lasted, by the judge, or it never said that it is here.
    fn is_lost(&self, record: &Record) -> bool {
        let node = self.view.named::<Node>("", &record.name);
        let is_marked = node.is_some_and(|node| unreachable_since(node).is_some());
        match self.verdicts.get(&record.name) {
            Some(Verdict::Unreachable) => true,
            Some(Verdict::Alive) => false,
            None => is_marked || node.is_none(),
        }
    }

    fn is_out(&self, record: &Record) -> bool {
        !self.electorate.in_log.contains(&record.node)
    }

    /// Whether the last copy of the authorities, or the last that votes, would go with it.
    fn takes_the_authorities_along(&self, record: &Record) -> bool {
        self.lacks_heir(record, |node| self.electorate.voters.contains(node))
    }

    /// Whether nobody who stays holds the authorities and is one of `heirs`, while this one may hold them.
    fn lacks_heir(&self, record: &Record, heirs: impl Fn(&str) -> bool) -> bool {
        let Electorate { holders, voters, .. } = self.electorate;
        let may_hold = holders.contains(&record.node) || voters.contains(&record.node);
        let is_heir = |other: &Record| holders.contains(&other.node) && heirs(&other.node);
        may_hold && !self.stay_without(record).any(is_heir)
    }

    fn needs(&self, record: &Record) -> Option<Obstacle> {
        self.electorate.quorum.needs.get(&record.node).cloned().map(Obstacle::Majority)
    }

    /// Whether nothing could be decided any more, not even who votes in its place, once nobody hears it.
    fn is_critical(&self, record: &Record) -> bool {
        self.electorate.quorum.critical.contains(&record.node)
    }

    /// The same of one that goes for `cause`: those of a stolen machine are worth nothing any more.
    fn strands(&self, record: &Record, cause: Cause) -> bool {
        cause != Cause::Stolen && self.takes_the_authorities_along(record)
    }

    /// What keeps it from giving its vote away.
    fn obstacle(&self, record: &Record, cause: Cause) -> Option<Obstacle> {
        if self.stay_without(record).next().is_none() {
            return Some(Obstacle::LastOne);
        }
        // Any holder who stays could give them to a voter.
        let lacks_heir = || cause != Cause::Stolen && self.lacks_heir(record, |_| true);
        self.needs(record).or_else(|| lacks_heir().then_some(Obstacle::Authorities))
    }

    /// Whoever is lost has no pods to drain and answers nobody; whoever is to go now is not asked. But a leader
    /// does not throw itself out.
    fn ends_at_once(&self, record: &Record, departure: &Departure) -> bool {
        let is_now = departure.cause.is_now();
        if record.node == self.electorate.leader || self.stay_without(record).next().is_none() {
            return false;
        }
        match (self.is_lost(record), self.strands(record, departure.cause)) {
            (true, true) => is_now,
            (true, false) => true,
            (false, takes_them) => {
                is_now && !takes_them && self.needs(record).is_none() && !self.is_critical(record)
            }
        }
    }
}

/// In the order of their ids.
fn departing(view: &View) -> impl Iterator<Item = (&Record, &Departure)> {
    roster::present(view).filter_map(|record| Some((record, record.departure.as_ref()?)))
}

/// The one that is taken on.
struct Step<'d, 'b, 'p> {
    draft: &'d mut Draft<'b>,
    picture: Picture<'p>,
    key: Key,
    record: Record,
    departure: Departure,
}

impl Step<'_, '_, '_> {
    /// Its turn has come.
    fn begin(&mut self) {
        if let Some(obstacle) = self.picture.obstacle(&self.record, self.departure.cause) {
            return self.wait(obstacle);
        }
        let stage = match self.departure.cause {
            Cause::RemovalNow | Cause::Stolen => Stage::Leaving,
            Cause::Leave | Cause::Removal => Stage::Draining,
        };
        let (node_key, mut cordoned) = (key_of::<Node>("", &self.record.name), false);
        let (key, mut record) = (self.key.clone(), self.record.clone());
        let since_ms = self.now_ms();
        let begun = self.draft.together(|draft| {
            // Whether it was this that made the Node take no new pods.
            draft.edit::<Node>(&node_key, |node| {
                let spec = node.spec.get_or_insert_default();
                cordoned = spec.unschedulable != Some(true);
                spec.unschedulable = Some(true);
            });
            if let Some(departure) = &mut record.departure {
                *departure = Departure { stage, since_ms, cordoned, obstacle: None, ..departure.clone() };
            }
            draft.edit::<Member>(&key, |member| member.record = record.clone());
        });
        if !begun {
            return;
        }
        self.departure = record.departure.clone().unwrap_or_else(|| self.departure.clone());
        self.record = record;
        match stage {
            Stage::Draining => self.drain(),
            Stage::Waiting | Stage::Leaving => self.leave(),
        }
    }

    fn drain(&mut self) {
        drain::empty(self.draft, &self.record.name);
        let is_empty = self.draft.view().pods_on(&self.record.name).next().is_none();
        if is_empty || self.is_over(DRAIN_MAX) {
            self.enter(Stage::Leaving);
            self.leave();
        }
    }

    fn leave(&mut self) {
        if self.record.leaving && self.picture.is_out(&self.record) {
            if self.picture.strands(&self.record, self.departure.cause) {
                return self.wait(Obstacle::Authorities);
            }
            return end(self.draft, &self.key, self.departure.cause);
        }
        match self.picture.obstacle(&self.record, self.departure.cause) {
            Some(obstacle) => self.wait(obstacle),
            None => {
                self.edit(|record| record.leaving = true);
                self.wait(Obstacle::Log);
            }
        }
    }

    /// Notes what is in the way, and gives up when it has been for too long.
    fn wait(&mut self, obstacle: Obstacle) {
        let is_same_kind = self
            .departure
            .obstacle
            .as_ref()
            .is_some_and(|known| std::mem::discriminant(known) == std::mem::discriminant(&obstacle));
        if is_same_kind && self.is_over(PATIENCE) || obstacle == Obstacle::LastOne {
            return self.keep(obstacle);
        }
        let since_ms = if is_same_kind { self.departure.since_ms } else { self.now_ms() };
        self.change(|departure| {
            departure.obstacle = Some(obstacle);
            departure.since_ms = since_ms;
        });
        // It may be the only thing that changes.
        self.wake_after(PATIENCE);
    }

    /// It stays: what was done to it is undone.
    fn keep(&mut self, obstacle: Obstacle) {
        let (key, node_key) = (&self.key, key_of::<Node>("", &self.record.name));
        let (at_ms, cordoned) = (self.now_ms(), self.departure.cordoned);
        let text = format!("Node {} stays a member: {obstacle}", self.record.name);
        self.draft.together(|draft| {
            if cordoned {
                draft.edit::<Node>(&node_key, |node| {
                    uncordon(node);
                });
            }
            draft.edit::<Member>(key, |member| {
                member.record.leaving = false;
                member.record.departure = None;
                member.record.kept = Some(Kept { at_ms, obstacle });
            });
            if let Some(node) = draft.view().get::<Node>(&node_key).cloned() {
                draft.event(&*node, WHO, true, "NotLeaving", &text);
            }
        });
    }

    fn enter(&mut self, stage: Stage) {
        let since_ms = self.now_ms();
        self.change(|departure| {
            *departure = Departure { stage, since_ms, obstacle: None, ..departure.clone() };
        });
    }

    fn change(&mut self, change: impl FnOnce(&mut Departure)) {
        change(&mut self.departure);
        let departure = self.departure.clone();
        self.edit(|record| record.departure = Some(departure));
    }

    fn edit(&mut self, edit: impl FnOnce(&mut Record)) {
        edit(&mut self.record);
        let record = self.record.clone();
        self.draft.edit::<Member>(&self.key, |member| member.record = record);
    }

    /// Whether this stage, or its obstacle, has lasted for `max`; if not, the end of that wakes the planner.
    fn is_over(&mut self, max: Duration) -> bool {
        let is_over = self.now_ms() >= self.ends_ms(max);
        if !is_over {
            self.wake_after(max);
        }
        is_over
    }

    fn wake_after(&mut self, max: Duration) {
        if let Ok(at) = jiff::Timestamp::from_millisecond(self.ends_ms(max) as i64) {
            self.draft.wake(&self.key, at);
        }
    }

    fn ends_ms(&self, max: Duration) -> u64 {
        self.departure.since_ms.saturating_add(max.as_millis() as u64)
    }

    fn now_ms(&self) -> u64 {
        self.draft.now.as_millisecond().max(0) as u64
    }
}

/// Ends a membership: nobody trusts the key from this commit on, and the name is free.
fn end(draft: &mut Draft<'_>, key: &Key, cause: Cause) {
    let Some(name) = draft.view().get::<Member>(key).map(|member| member.record.name.clone()) else { return };
    if cause == Cause::Stolen && draft.view().get::<Authorities>(TRUST).is_none() {
        // A leader of before there was a record says first what is in force; that wakes the planner.
        return;
    }
    let now_ms = draft.now.as_millisecond().max(0) as u64;
    draft.together(|draft| {
        if cause == Cause::Stolen {
            draft.edit::<Authorities>(TRUST, |authorities| {
                authorities.trust = authorities.trust.stolen(now_ms)
            });
        }
        draft.edit::<Member>(key, |member| member.record = ended(&member.record, cause));
        draft.delete(&key_of::<Node>("", &name));
    });
}

/// The record of a membership that has ended.
pub(super) fn ended(record: &Record, cause: Cause) -> Record {
    Record {
        removed: true,
        expelled: cause != Cause::Leave,
        leaving: false,
        departure: None,
        kept: None,
        labels: BTreeMap::new(),
        ..record.clone()
    }
}

/// Whether there was anything to undo.
fn uncordon(node: &mut Node) -> bool {
    let Some(spec) = node.spec.as_mut().filter(|spec| spec.unschedulable == Some(true)) else { return false };
    spec.unschedulable = None;
    true
}

fn replace(view: &View, record: Record) -> Write {
    put(view, &key_of::<Member>("", &record.node), record.to_bytes())
}

fn put(view: &View, key: &str, bytes: Vec<u8>) -> Write {
    let expect = view.stored(key).map_or(Expect::Absent, |stored| Expect::Revision(stored.revision));
    Write { key: key.to_owned(), expect, change: Change::Put(bytes) }
}

#[cfg(test)]
mod tests;
