//! Gives each waiting pod a node.
//!
//! Filters say where a pod can run, scores where it should. A pod that can run nowhere is told why, in
//! kubectl's words, once. Preemption and spread constraints across zones are not here.

mod filter;
mod score;

#[cfg(test)]
mod tests;

pub(crate) use filter::apart;

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::draft::Draft;
use crate::meta;
use crate::resources::{Amounts, asked_by, offered_by};
use crate::view::{Changed, Key, Kind, View};

const WHO: &str = "default-scheduler";

/// A node with what is left of it in this plan.
struct Candidate {
    name: String,
    node: Arc<Node>,
    offered: Amounts,
    used: Amounts,
}

/// How many pods of one owner each node has.
type Spread = BTreeMap<String, BTreeMap<String, usize>>;

/// Writes a binding for each pod that fits somewhere, most urgent first, then oldest first; and the reasons
/// for each that does not.
///
/// A pod that has a node keeps it: a uid is bound once, ever.
pub(crate) fn plan(draft: &mut Draft<'_>) {
    let mut waiting = waiting(draft.view(), draft.changed());
    if waiting.is_empty() {
        return;
    }
    waiting.sort_by_key(|(key, pod)| {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        (Reverse(priority), meta::created(&pod.metadata), key.clone())
    });
    let mut nodes = candidates(draft.view());
    let mut spread = Spread::new();
    for (key, pod) in waiting {
        if draft.is_full() {
            return;
        }
        let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
        let mut fitting = Vec::new();
        for candidate in &nodes {
            match filter::refusals(draft.view(), candidate, &pod) {
                reasons if reasons.is_empty() => fitting.push(candidate),
                reasons => reasons.into_iter().for_each(|reason| *refusals.entry(reason).or_default() += 1),
            }
        }
        let beside = beside(draft.view(), &mut spread, &pod);
        match score::best(&fitting, &pod, beside) {
            Some(name) => {
                let name = name.to_owned();
                if !bind(draft, &key, &pod, &name) {
                    continue;
                }
                if let Some(candidate) = nodes.iter_mut().find(|candidate| candidate.name == name) {
                    candidate.used = candidate.used.plus(asked_by(&pod));
                }
                if let Some(owner) = meta::controller(&pod.metadata) {
                    *spread.entry(owner.uid.clone()).or_default().entry(name).or_default() += 1;
                }
            }
            None => refuse(draft, &key, &pod, &explanation(nodes.len(), refusals)),
        }
    }
}

/// The pods to find a node for: all that wait if room may have come, else those that changed.
fn waiting(view: &View, changed: &Changed) -> Vec<(Key, Arc<Pod>)> {
    let is_ours = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        let scheduler = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(WHO);
        let gated = spec.is_some_and(|spec| spec.scheduling_gates.iter().flatten().next().is_some());
        scheduler == WHO && !gated && !meta::is_ending(&pod.metadata)
    };
    let all = || view.unbound().filter(|(_, pod)| is_ours(pod)).map(|(key, pod)| (key.clone(), pod.clone()));
    let Changed::Some { keys, .. } = changed else { return all().collect() };
    let pods = || keys.iter().filter(|key| key.starts_with(Pod::PREFIX));
    let waits =
        |key: &Key| view.get::<Pod>(key).filter(|pod| meta::node_of(pod).is_none() && meta::is_active(pod));
    if changed.any_under(Node::PREFIX) || pods().any(|key| waits(key).is_none()) {
        return all().collect();
    }
    let touched = pods().filter_map(|key| Some((key.clone(), waits(key)?.clone())));
    touched.filter(|(_, pod)| is_ours(pod)).collect()
}

fn candidates(view: &View) -> Vec<Candidate> {
    let candidate = |node: &Arc<Node>| {
        let name = meta::name(&node.metadata);
        Candidate {
            name: name.to_owned(),
            offered: offered_by(node),
            used: view.used_on(name),
            node: node.clone(),
        }
    };
    view.all::<Node>().map(|(_, node)| candidate(node)).collect()
}

/// How many pods of the same owner each node has already.
fn beside<'s>(view: &View, spread: &'s mut Spread, pod: &Pod) -> Option<&'s BTreeMap<String, usize>> {
    let owner = &meta::controller(&pod.metadata)?.uid;
    let counts = spread.entry(owner.clone()).or_insert_with(|| {
        let mut counts = BTreeMap::new();
        let active = view.controlled_by::<Pod>(owner).filter(|(_, pod)| meta::is_active(pod));
        for node in active.filter_map(|(_, pod)| meta::node_of(pod)) {
            *counts.entry(node.to_owned()).or_default() += 1;
        }
        counts
    });
    Some(counts)
}

/// Whether the plan has it.
fn bind(draft: &mut Draft<'_>, key: &Key, pod: &Pod, node: &str) -> bool {
    let now = draft.now;
    let (namespace, name) = (meta::namespace(&pod.metadata), meta::name(&pod.metadata));
    let text = format!("Successfully assigned {namespace}/{name} to {node}");
    draft.together(|draft| {
        draft.edit::<Pod>(key, |pod| {
            pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
            let scheduled = PodCondition {
                type_: "PodScheduled".to_owned(),
                status: "True".to_owned(),
                ..PodCondition::default()
            };
            meta::set_condition(pod.status.get_or_insert_default(), scheduled, now);
        });
        draft.event(pod, WHO, false, "Scheduled", &text);
    })
}

/// Says why a pod waits; says it again only when the reasons have changed.
fn refuse(draft: &mut Draft<'_>, key: &Key, pod: &Pod, why: &str) {
    let held = meta::condition(pod.status.as_ref(), "PodScheduled");
    if held.is_some_and(|held| held.status == "False" && held.message.as_deref() == Some(why)) {
        return;
    }
    let now = draft.now;
    draft.together(|draft| {
        draft.edit::<Pod>(key, |pod| {
            let unscheduled = PodCondition {
                type_: "PodScheduled".to_owned(),
                status: "False".to_owned(),
                reason: Some("Unschedulable".to_owned()),
                message: Some(why.to_owned()),
                ..PodCondition::default()
            };
            meta::set_condition(pod.status.get_or_insert_default(), unscheduled, now);
        });
        draft.event(pod, WHO, true, "FailedScheduling", why);
    });
}

/// `0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu.`
fn explanation(nodes: usize, refusals: BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut reasons: Vec<String> =
        refusals.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}
