//! Gives each waiting pod a node.
//!
//! Filters say where a pod can run, scores where it should. A pod that can run nowhere is told why, in
//! kubectl's words, once. Preemption and spread constraints across zones are not here.

mod company;
mod filter;
mod queue;
mod score;

#[cfg(test)]
mod tests;

pub(crate) use company::apart;
pub(crate) use filter::host_ports;

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, PodSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::draft::Draft;
use crate::meta;
use crate::resources::{Amounts, QosClass, asked_by, devices_asked_by};
use crate::view::{Key, Siblings, View, told_to_wait_for};
use company::Company;
use filter::Reason;
use queue::Queue;

const WHO: &str = "default-scheduler";

/// A node with what is left of it in this plan.
struct Candidate {
    name: String,
    node: Arc<Node>,
    offered: Amounts,
    used: Amounts,
    /// See [`filter::is_plain`].
    is_plain: bool,
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

/// Writes a binding for each pod that fits somewhere, most urgent first, then oldest first; and the reasons
/// for each that does not.
///
/// A pod that has a node keeps it: a uid is bound once, ever.
///
/// Cost: all nodes and the pods that its affinities name, for each pod that finds a node, and after that for each kind
/// of pods that wait for one in vain ([`Queue`]).
pub(crate) fn plan(draft: &mut Draft<'_>) {
    let before = draft.view().clone();
    let mut queue = Queue::of(&before, draft.changed());
    if queue.is_empty() {
        return;
    }
    let mut nodes = candidates(&before);
    let mut spread = Spread::new();
    while let Some((turn, refused)) = queue.next() {
        if draft.is_full() {
            return;
        }
        let key = turn.key();
        let Some(pod) = before.get::<Pod>(key) else { continue };
        if let Some(why) = refused {
            refuse(draft, key, pod, &why);
            queue.refuse(&turn, why);
            continue;
        }
        match place(draft.view(), &nodes, &mut spread, pod) {
            Ok(at) => {
                if !bind(draft, key, pod, &nodes[at].name) {
                    queue.pass(&turn);
                    continue;
                }
                // There is less room now, and other company.
                queue.ask_anew(&turn);
                nodes[at].used = nodes[at].used.plus(asked_by(pod));
                if let Some(owner) = meta::controller(&pod.metadata) {
                    let counts = spread.entry(owner.uid.clone()).or_default();
                    *counts.entry(nodes[at].name.clone()).or_default() += 1;
                }
            }
            Err(why) => {
                refuse(draft, key, pod, &why);
                queue.refuse(&turn, why.into());
            }
        }
    }
}

/// Which of the nodes is best for the pod; or why none can take it.
fn place(view: &View, nodes: &[Candidate], spread: &mut Spread, pod: &Pod) -> Result<usize, String> {
    let none = PodSpec::default();
    let asking = Asking::of(view, pod, pod.spec.as_ref().unwrap_or(&none));
    let mut refusals: BTreeMap<Reason, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    // Most pods ask for little of a node, and most nodes refuse for want of room: that is numbers alone.
    let is_undemanding = filter::is_undemanding(&asking);
    let mut lacking = [0_usize; 1 << filter::LACKS.len()];
    for (at, candidate) in nodes.iter().enumerate() {
        if is_undemanding && candidate.is_plain {
            let lacks = filter::lacks(candidate, asking.amounts);
            if lacks != 0 {
                lacking[lacks] += 1;
                continue;
            }
        }
        match filter::refusals(view, candidate, &asking) {
            reasons if reasons.is_empty() => fitting.push(at),
            reasons => reasons.into_iter().for_each(|reason| *refusals.entry(reason).or_default() += 1),
        }
    }
    for (lacks, count) in lacking.into_iter().enumerate().filter(|(_, count)| *count > 0) {
        filter::named(lacks).for_each(|reason| *refusals.entry(reason).or_default() += count);
    }
    let beside = beside(view, spread, pod);
    score::best(nodes, &fitting, &asking, beside).ok_or_else(|| explanation(nodes.len(), refusals))
}

fn candidates(view: &View) -> Vec<Candidate> {
    let candidate = |node: &Arc<Node>| {
        let name = meta::name(&node.metadata);
        Candidate {
            name: name.to_owned(),
            offered: view.offered_by(name),
            used: view.used_on(name),
            is_plain: filter::is_plain(node),
            node: node.clone(),
        }
    };
    view.all::<Node>().map(|(_, node)| candidate(node)).collect()
}

/// How many pods of the same owner each node has already.
fn beside<'s>(view: &View, spread: &'s mut Spread, pod: &Pod) -> Option<&'s BTreeMap<String, usize>> {
    let owner = &meta::controller(&pod.metadata)?.uid;
    let counts = spread.entry(owner.clone()).or_insert_with(|| {
        let on = view.siblings(owner).into_iter().flat_map(Siblings::on);
        on.map(|(node, count)| (node.to_string(), count)).collect()
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
    if told_to_wait_for(pod) == Some(why) {
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
fn explanation(nodes: usize, refusals: BTreeMap<Reason, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut reasons: Vec<String> =
        refusals.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}
