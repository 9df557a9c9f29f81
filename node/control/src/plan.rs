//! All planners, in order, until none has anything more to say: one batch for the log.
//!
//! A plan is made from the view alone. Its writes carry the revisions they were made from, so a batch that
//! comes too late is refused as a whole and planned anew; no planner remembers what it once decided.

mod agenda;
mod wakes;

pub use agenda::{Agenda, Fate, Next};
pub use wakes::Wakes;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use skein_api::write::Write;
use std::collections::{BTreeMap, BTreeSet};

use crate::chance::Chance;
pub use crate::draft::{LeftOut, Obstacle};

use crate::draft::Draft;
use crate::node::departure::{self, Electorate};
use crate::node::roster;
use crate::node_health::Verdict;
use crate::size::Size;
use crate::view::{Changed, Key, Kind, View};
use crate::{
    deployment, endpoints, evictions, garbage, namespace, node_health, node_lease, replicaset, scheduler,
};

/// What planners are told besides the view.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    /// The leader's stamp: never earlier than the one before it.
    pub now: Timestamp,
    /// Fresh for each round; uids and name suffixes follow from it.
    pub chance: Chance,
    /// What the judge says about each node, by name. A node without a verdict is left as it is.
    pub verdicts: &'a BTreeMap<String, Verdict>,
    /// What the leader knows of the log.
    pub electorate: &'a Electorate,
    /// The certificate authority's PEM, which every namespace gets as `kube-root-ca.crt`.
    pub ca_pem: &'a str,
    /// The address of service `default/kubernetes`: the first of the service range.
    pub kubernetes_ip: &'a str,
}

/// Within which bounds a plan is made; [`Agenda`] knows them.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// How much one command is filled with. What is larger alone goes alone.
    pub limit: Size,
    /// The store has no room: only what frees some is planned.
    pub thrift: bool,
    /// What the store has refused to take, and is left out.
    pub aside: BTreeSet<Key>,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { limit: Bounds::LIMIT, thrift: false, aside: BTreeSet::new() }
    }
}

impl Bounds {
    /// Less than the store takes, so that the writes of others need not wait long behind one plan's: 2 MiB are 0.2 s
    /// of a slow SD card. The largest object and what comes with it fit.
    pub const LIMIT: Size = Size { bytes: 2 << 20, ops: 5_000 };
}

/// What to do now, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// One command, all or nothing, in this order. Each write names the revision that it was planned from;
    /// where a name changes hands its old object is deleted first and the new one expects `Absent`. What is made for
    /// an owner comes only if that is as it was.
    pub writes: Vec<Write>,
    /// When time alone changes something (a progress deadline, a toleration, an Event's end), and what: plan with
    /// these keys as changed then. [`Agenda`] keeps them.
    pub wakes: Wakes,
    /// What to plan next, once this is committed: the command was full, the store is, or the planners did not come to
    /// rest.
    pub rest: Option<Changed>,
    /// What cannot be written and was left out. Nothing else waits for it.
    pub left_out: Vec<LeftOut>,
    /// How large the command is.
    pub size: Size,
    /// How many steps it has, each of which could have been the last.
    pub(crate) steps: usize,
    /// The keys of its first step.
    pub(crate) first_step: Vec<Key>,
}

/// Passes before a round is cut. A failover takes four: verdict and deletions, new pods, their bindings and
/// statuses, and a pass that finds nothing.
const PASSES_MAX: u32 = 24;

/// Plans what `changed` calls for, until one command is full.
///
/// * The same view gives the same plan for [`Changed::All`] and for what really changed since a view that
///   had been planned to rest.
/// * Nothing is written twice: planning again on the view with the writes applied gives no writes.
/// * A plan may end after any of its steps (see `draft`): the next one goes on from there.
///
/// Cost: what changed and what belongs to it; with [`Changed::All`], one pass over all objects.
pub fn plan(view: &View, changed: &Changed, round: &Round<'_>, bounds: &Bounds) -> Plan {
    let mut draft = Draft::new(view, changed.clone(), round.now, round.chance, bounds);
    let mut pass = 0;
    let came_to_rest = loop {
        one_pass(&mut draft, round, pass == 0);
        pass += 1;
        if !draft.next_pass() {
            break true;
        }
        if pass == PASSES_MAX || draft.is_cut() {
            break false;
        }
    };
    draft.finish(came_to_rest)
}

/// What a cluster begins with, at the moment of its founding: the planners' own answer to an empty map, so that whoever
/// finds the first node ready finds namespace `default` as well.
pub fn first(now: Timestamp, chance: Chance, ca_pem: &str, kubernetes_ip: &str) -> Vec<Write> {
    let (verdicts, electorate) = (BTreeMap::new(), Electorate::default());
    let round = Round { now, chance, verdicts: &verdicts, electorate: &electorate, ca_pem, kubernetes_ip };
    plan(&View::default(), &Changed::All, &round, &Bounds::default()).writes
}

fn one_pass(draft: &mut Draft<'_>, round: &Round<'_>, is_first: bool) {
    draft.fill_half();
    // Who is there comes first, then what should be, then where.
    departure::plan(draft, round.electorate, round.verdicts);
    roster::plan(draft);
    // Verdicts change between plans only.
    if is_first || draft.changed().any_under(Node::PREFIX) {
        node_health::mark(draft, round.verdicts);
    }
    if draft.is_full() {
        // A node that is not marked yet would be given the pods of one that is.
        return;
    }
    node_health::empty_lost(draft);
    evictions::plan(draft);
    namespace::plan(draft, round.ca_pem, round.kubernetes_ip);
    node_lease::plan(draft);
    endpoints::plan(draft);
    garbage::plan(draft);
    deployment::plan(draft);
    replicaset::plan(draft);
    draft.fill_whole();
    scheduler::plan(draft);
}

#[cfg(test)]
mod large_tests;
#[cfg(test)]
mod tests;
