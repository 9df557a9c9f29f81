//! Where a pod should run.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorTerm, PodSpec};
use skein_api::scheduling::matches;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Asking, Candidate, filter};
use crate::resources::Amounts;

/// What upstream assumes of a pod that asks for nothing, so that such pods spread too.
const ASSUMED: Amounts = Amounts { cpu_millis: 100, memory_bytes: 200 << 20, storage_bytes: 0, pods: 1 };

/// The best of the nodes that fit: few pods of the same owner, then the pod's own wishes, then room. The
/// name decides between equals, so that the same view gives the same answer.
///
/// * `fitting`: places in `nodes`, and so is the answer.
pub(super) fn best(
    nodes: &[Candidate],
    fitting: &[usize],
    asking: &Asking<'_>,
    beside: Option<&BTreeMap<String, usize>>,
) -> Option<usize> {
    let rank = |at: &usize| {
        let candidate = &nodes[*at];
        let siblings = beside.and_then(|counts| counts.get(&candidate.name)).copied().unwrap_or(0);
        (
            siblings,
            Reverse(wishes(candidate, asking.spec)),
            Reverse(room(candidate, asking.amounts)),
            candidate.used.pods,
            &candidate.name,
        )
    };
    fitting.iter().copied().min_by_key(rank)
}

/// The weights of all preferences that the node fulfils, less one for each taint it would rather not break.
fn wishes(candidate: &Candidate, spec: &PodSpec) -> i64 {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let preferred = affinity
        .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .flatten();
    let fulfilled = preferred.filter(|wish| fulfils(candidate, &wish.preference));
    let weight: i64 = fulfilled.map(|wish| i64::from(wish.weight)).sum();
    let taints = candidate.node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    let soft = taints.filter(|taint| taint.effect == "PreferNoSchedule");
    weight - soft.filter(|taint| !filter::tolerated(spec, taint)).count() as i64
}

fn fulfils(candidate: &Candidate, wish: &NodeSelectorTerm) -> bool {
    matches(&NodeSelector { node_selector_terms: vec![wish.clone()] }, &candidate.node)
}

/// How much of the node stays free with the pod on it, in thousandths, cpu and memory counting alike.
fn room(candidate: &Candidate, asked: Amounts) -> i64 {
    let or = |asked: i64, assumed: i64| if asked > 0 { asked } else { assumed };
    let share = |offered: i64, used: i64, asked: i64| {
        let free = i128::from(offered) - i128::from(used) - i128::from(asked);
        if offered > 0 { (free.max(0) * 1000 / i128::from(offered)) as i64 } else { 0 }
    };
    let cpu = share(
        candidate.offered.cpu_millis,
        candidate.used.cpu_millis,
        or(asked.cpu_millis, ASSUMED.cpu_millis),
    );
    let memory = share(
        candidate.offered.memory_bytes,
        candidate.used.memory_bytes,
        or(asked.memory_bytes, ASSUMED.memory_bytes),
    );
    cpu + memory
}
