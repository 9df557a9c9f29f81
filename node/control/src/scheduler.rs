//! Gives each waiting pod a node.
//!
//! Filters say where a pod can run, scores where it should. A pod that can run nowhere is told why, in
//! kubectl's words, once. Preemption and spread constraints across zones are not here.

mod company;
mod filter;
mod score;

#[cfg(test)]
mod tests;

pub(crate) use company::apart;
pub(crate) use filter::host_ports;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodCondition, PodSpec};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::draft::Draft;
use crate::meta;
use crate::resources::{Amounts, QosClass, asked_by, devices_asked_by};
use crate::view::{Changed, Key, Kind, View};
use company::Company;

const WHO: &str = "default-scheduler";

/// A node with what is left of it in this plan.
struct Candidate {
    name: String,
    node: Arc<Node>,
    offered: Amounts,
    used: Amounts,
}

/// A pod that waits, with what it asks for.
struct Asking<'p> {
    pod: &'p Pod,
    spec: &'p PodSpec,
    amounts: Amounts,
    devices: BTreeMap<&'p str, i64>,
    host_ports: BTreeSet<(i32, &'p str)>,
    qos: QosClass,
    company: Company,
}

impl<'p> Asking<'p> {
    fn of(view: &View, pod: &'p Pod, spec: &'p PodSpec) -> Asking<'p> {
        Asking {
            pod,
            spec,
            amounts: asked_by(pod),
            devices: devices_asked_by(spec),
            host_ports: host_ports(spec),
            qos: QosClass::of(spec),
            company: Company::of(view, pod, spec),
        }
    }
}

/// How many pods of one owner each node has.
type Spread = BTreeMap<String, BTreeMap<String, usize>>;

/// Pods of which no node could take one, and why: by their owner the last of its pods.
type Refused = BTreeMap<String, (Arc<Pod>, String)>;

/// Writes a binding for each pod that fits somewhere, most urgent first, then oldest first; and the reasons
/// for each that does not.
///
/// A pod that has a node keeps it: a uid is bound once, ever.
///
/// Cost: for each pod that is looked at, all nodes and the pods that its affinities name; replicas of one owner that
/// fit nowhere are looked at once.
pub(crate) fn plan(draft: &mut Draft<'_>) {
    let mut waiting = waiting(draft.view(), draft.changed());
    if waiting.is_empty() {
        return;
    }
    waiting.sort_by_cached_key(|(key, pod)| {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        (Reverse(priority), meta::created(&pod.metadata), key.clone())
    });
    let mut nodes = candidates(draft.view());
    let mut spread = Spread::new();
    let mut refused = Refused::new();
    for (key, pod) in waiting {
        if draft.is_full() {
            return;
        }
        let owner = meta::controller(&pod.metadata).map(|owner| owner.uid.clone());
        if let Some((like, why)) = owner.as_ref().and_then(|owner| refused.get(owner))
            && asks_alike(like, &pod)
        {
            refuse(draft, &key, &pod, why);
            continue;
        }
        let found = place(draft.view(), &nodes, &mut spread, &pod);
        match found {
            Ok(at) => {
                if !bind(draft, &key, &pod, &nodes[at].name) {
                    continue;
                }
                // There is less room now, and other company.
                refused.clear();
                nodes[at].used = nodes[at].used.plus(asked_by(&pod));
                if let Some(owner) = owner {
                    *spread.entry(owner).or_default().entry(nodes[at].name.clone()).or_default() += 1;
                }
            }
            Err(why) => {
                refuse(draft, &key, &pod, &why);
                if let Some(owner) = owner {
                    refused.insert(owner, (pod, why));
                }
            }
        }
    }
}

/// Which of the nodes is best for the pod; or why none can take it.
fn place(view: &View, nodes: &[Candidate], spread: &mut Spread, pod: &Pod) -> Result<usize, String> {
    let none = PodSpec::default();
    let asking = Asking::of(view, pod, pod.spec.as_ref().unwrap_or(&none));
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    for (at, candidate) in nodes.iter().enumerate() {
        match filter::refusals(view, candidate, &asking) {
            reasons if reasons.is_empty() => fitting.push(at),
            reasons => reasons.into_iter().for_each(|reason| *refusals.entry(reason).or_default() += 1),
        }
    }
    let beside = beside(view, spread, pod);
    score::best(nodes, &fitting, &asking, beside).ok_or_else(|| explanation(nodes.len(), refusals))
}

/// Whether what keeps one of two pods from all nodes keeps the other from them, too.
fn asks_alike(one: &Pod, other: &Pod) -> bool {
    one.metadata.labels == other.metadata.labels
        && one.metadata.namespace == other.metadata.namespace
        && one.spec == other.spec
}

/// The pods to find a node for: all that wait if a node, or what it holds, is not what it was; else those that changed.
fn waiting(view: &View, changed: &Changed) -> Vec<(Key, Arc<Pod>)> {
    let is_ours = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        let scheduler = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(WHO);
        let gated = spec.is_some_and(|spec| spec.scheduling_gates.iter().flatten().next().is_some());
        scheduler == WHO && !gated && !meta::is_ending(&pod.metadata)
    };
    let all = || view.unbound().filter(|(_, pod)| is_ours(pod)).map(|(key, pod)| (key.clone(), pod.clone()));
    let Changed::Some { keys, moves, .. } = changed else { return all().collect() };
    // Some affinities go by the labels of namespaces.
    if *moves || changed.any_under(Node::PREFIX) || changed.any_under(Namespace::PREFIX) {
        return all().collect();
    }
    let pods = keys.iter().filter(|key| key.starts_with(Pod::PREFIX));
    let waits =
        |key: &Key| view.get::<Pod>(key).filter(|pod| meta::node_of(pod).is_none() && meta::is_active(pod));
    let touched = pods.filter_map(|key| Some((key.clone(), waits(key)?.clone())));
    touched.filter(|(_, pod)| is_ours(pod)).collect()
}

fn candidates(view: &View) -> Vec<Candidate> {
    let candidate = |node: &Arc<Node>| {
        let name = meta::name(&node.metadata);
        Candidate {
            name: name.to_owned(),
            offered: view.offered_by(name),
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
        let active = view.pods_controlled_by(owner).filter(|(_, pod)| meta::is_active(pod));
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
