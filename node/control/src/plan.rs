//! All planners, in order, until none has anything more to say: one batch for the log.
//!
//! A plan is made from the view alone. Its writes carry the revisions they were made from, so a batch that
//! comes too late is refused as a whole and planned anew; no planner remembers what it once decided.

use jiff::Timestamp;
use skein_api::write::Write;
use std::collections::BTreeMap;

use crate::chance::Chance;
use crate::draft::Draft;
use crate::node_health::Verdict;
use crate::view::{Changed, View};
use crate::{deployment, endpoints, garbage, namespace, node_health, replicaset, scheduler};

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
    /// end). Plan with [`Changed::All`] then. The shell keeps the earliest of what plans have asked for.
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
        node_health::plan(&mut draft, round.verdicts);
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

#[cfg(test)]
mod tests;
