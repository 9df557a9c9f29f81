//! All planners, in order, until none has anything more to say: one batch for the log.
//!
//! A plan is made from the view alone. Its writes carry the revisions they were made from, so a batch that
//! comes too late is refused as a whole and planned anew; no planner remembers what it once decided.

use jiff::Timestamp;
use skein_api::write::Write;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::chance::Chance;
use crate::draft::Draft;
use crate::node::roster;
use crate::node_health::Verdict;
use crate::view::{Changed, View};
use crate::{deployment, endpoints, evictions, garbage, namespace, node_health, replicaset, scheduler};

/// What planners are told besides the view.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    /// The leader's stamp: never earlier than the one before it.
    pub now: Timestamp,
    /// Fresh for each round; uids and name suffixes follow from it.
    pub chance: Chance,
    /// What the judge says about each node, by name. A node without a verdict is left as it is.
    pub verdicts: &'a BTreeMap<String, Verdict>,
    /// The certificate authority's PEM, which every namespace gets as `kube-root-ca.crt`.
    pub ca_pem: &'a str,
    /// The address of service `default/kubernetes`: the first of the service range.
    pub kubernetes_ip: &'a str,
}

/// What to do now, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// One command, all or nothing, in this order. Each write names the revision that it was planned from;
    /// where a name changes hands its old object is deleted first and the new one expects `Absent`.
    pub writes: Vec<Write>,
    /// The next moment at which time alone changes something (a progress deadline, a toleration, an Event's
    /// end). Plan with [`Changed::All`] then. [`Agenda`] keeps the earliest of what plans have asked for.
    pub wake_at: Option<Timestamp>,
    /// The batch was cut for its size, or the planners did not come to rest: once it is committed, plan
    /// again with [`Changed::All`].
    pub unfinished: bool,
}

/// Passes before a round is cut. A failover takes four: verdict and deletions, new pods, their bindings and
/// statuses, and a pass that finds nothing.
const PASSES_MAX: u32 = 24;

/// A command stays well below the 8 MiB of a frame between nodes.
const BATCH_BYTES_MAX: usize = 2 << 20;

/// Plans what `changed` calls for.
///
/// * The same view gives the same plan for [`Changed::All`] and for what really changed since a view that
///   had been planned to rest.
/// * Nothing is written twice: planning again on the view with the writes applied gives no writes.
///
/// Cost: what changed and what belongs to it; with [`Changed::All`], one pass over all objects.
pub fn plan(view: &View, changed: &Changed, round: &Round<'_>) -> Plan {
    let mut draft = Draft::new(view, changed.clone(), round.now, round.chance);
    let mut pass = 0;
    let unfinished = loop {
        // Who is there comes first, then what should be, then where.
        roster::plan(&mut draft);
        node_health::plan(&mut draft, round.verdicts);
        evictions::plan(&mut draft);
        namespace::plan(&mut draft, round.ca_pem, round.kubernetes_ip);
        endpoints::plan(&mut draft);
        garbage::plan(&mut draft);
        deployment::plan(&mut draft);
        replicaset::plan(&mut draft);
        scheduler::plan(&mut draft);
        pass += 1;
        if !draft.next_pass() {
            break false;
        }
        if pass == PASSES_MAX || draft.bytes() > BATCH_BYTES_MAX {
            break true;
        }
    };
    let wake_at = draft.wanted_wake();
    Plan { writes: draft.finish(), wake_at, unfinished }
}

/// A wake-up that a plan asked for is never further away than this: clocks jump.
const WAKE_MAX: Duration = Duration::from_secs(60);
/// Objects are stamped in whole seconds: a moment of this second may seem to be over already.
const WAKE_MIN: Duration = Duration::from_millis(100);

/// What a leader still has to plan: what changed, and when time alone changes something.
///
/// One round: [`add`](Agenda::add) what the picture noted, [`plan`](Agenda::plan), commit the writes in the
/// leader's term, then say what came of it: [`committed`](Agenda::committed) or [`failed`](Agenda::failed).
/// A plan that was refused, because somebody wrote meanwhile, stays pending: it is planned again with what is
/// new as well. Then wait for something new, or for [`wake_in`](Agenda::wake_in) to pass and call
/// [`woken`](Agenda::woken).
#[derive(Clone, Debug)]
pub struct Agenda {
    pending: Changed,
    wake_at: Option<Timestamp>,
}

impl Default for Agenda {
    /// Everything is new to a new leader.
    fn default() -> Self {
        Agenda { pending: Changed::All, wake_at: None }
    }
}

impl Agenda {
    /// Adds what changed since the last call.
    pub fn add(&mut self, changed: Changed) {
        self.pending.merge(changed);
    }

    /// Whether nothing has changed. Verdicts may have, and the time.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Plans what has to be planned. A plan without writes has dealt with it.
    pub fn plan(&mut self, view: &View, round: &Round<'_>) -> Plan {
        let plan = plan(view, &self.pending, round);
        self.remember(&plan);
        if plan.writes.is_empty() {
            self.pending = Changed::default();
        }
        plan
    }

    fn remember(&mut self, plan: &Plan) {
        self.wake_at = self.wake_at.into_iter().chain(plan.wake_at).min();
    }

    /// All writes of the plan are done. Returns whether the next round should follow at once.
    pub fn committed(&mut self, plan: &Plan) -> bool {
        self.pending = if plan.unfinished { Changed::All } else { Changed::default() };
        plan.unfinished
    }

    /// Nobody knows whether the plan was committed.
    pub fn failed(&mut self) {
        self.pending = Changed::All;
    }

    /// How long to wait at most, with the wall clock at `now`.
    pub fn wake_in(&self, now: Timestamp) -> Duration {
        let wanted = self.wake_at.map(|at| Duration::try_from(now.duration_until(at)).unwrap_or_default());
        wanted.map_or(WAKE_MAX, |wanted| wanted.clamp(WAKE_MIN, WAKE_MAX))
    }

    /// That time has passed with nothing new.
    pub fn woken(&mut self) {
        self.pending = Changed::All;
        self.wake_at = None;
    }
}

#[cfg(test)]
mod tests;
