//! Where a pod can run.

use k8s_openapi::api::core::v1::{Node, PodSpec, Taint};
use skein_api::scheduling::{MEMORY_PRESSURE, NOT_READY, UNREACHABLE, UNSCHEDULABLE, selects, tolerates};
use std::borrow::Cow;
use std::collections::BTreeSet;

use super::{Asking, Candidate};
use crate::meta;
use crate::resources::{Amounts, QosClass, device_offered};
use crate::view::View;

/// Why a node does not take a pod, in kubectl's words.
pub(super) type Reason = Cow<'static, str>;

/// Why the pod cannot run on this node: all reasons of the first filter that refuses; empty if it can.
pub(super) fn refusals(view: &View, candidate: &Candidate, asking: &Asking<'_>) -> Vec<Reason> {
    let one = |reason: &'static str| vec![Reason::from(reason)];
    let (node, spec) = (&*candidate.node, asking.spec);
    if asking.pod.spec.is_none() {
        return one("node(s) cannot run a pod without spec");
    }
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
        && !tolerated(spec, &taint(UNSCHEDULABLE, "NoSchedule"))
    {
        return one("node(s) were unschedulable");
    }
    if let Some(taint) = untolerated(asking, node) {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key).into()];
    }
    if !selects(spec, node) {
        return one("node(s) didn't match Pod's node affinity/selector");
    }
    let is_taken = |(port, protocol): &(i32, &str)| view.host_port_is_taken(&candidate.name, *port, protocol);
    if asking.host_ports.iter().any(is_taken) {
        return one("node(s) didn't have free ports for the requested pod ports");
    }
    let short = shortages(candidate, asking);
    if !short.is_empty() {
        return short;
    }
    asking.company.refusal(node).map(one).unwrap_or_default()
}

/// Whether only its resources and its pods keep others from a node.
pub(super) fn is_plain(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let is_soft = |taint: &Taint| taint.effect != "NoSchedule" && taint.effect != "NoExecute";
    spec.is_none_or(|spec| spec.unschedulable != Some(true) && spec.taints.iter().flatten().all(is_soft))
        && meta::node_is(node, "Ready")
}

/// Whether a pod asks of a node for nothing but counted resources and company.
pub(super) fn is_undemanding(asking: &Asking<'_>) -> bool {
    let affinity = asking.spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    asking.pod.spec.is_some()
        && asking.spec.node_selector.iter().flatten().next().is_none()
        && required.is_none()
        && asking.host_ports.is_empty()
        && asking.devices.is_empty()
}

/// The first taint that keeps the pod away. A node that is not ready counts as tainted even before anybody
/// has written that down.
fn untolerated(asking: &Asking<'_>, node: &Node) -> Option<Taint> {
    let held = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    let hard = held.filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute").cloned();
    let hard: Vec<Taint> = hard.collect();
    // Who may stay on a lost node for a while must still not be sent to one.
    if let Some(lost) = hard.iter().find(|taint| taint.key == UNREACHABLE) {
        return Some(lost.clone());
    }
    let not_ready = (!meta::node_is(node, "Ready")).then(|| taint(NOT_READY, "NoSchedule"));
    // Who asks for its memory has it: only those that ask for nothing are kept from a node that is short of it.
    let copes = |taint: &Taint| taint.key == MEMORY_PRESSURE && asking.qos != QosClass::BestEffort;
    hard.into_iter().chain(not_ready).find(|taint| !tolerated(asking.spec, taint) && !copes(taint))
}

/// True if some toleration of the pod covers this taint.
pub(super) fn tolerated(spec: &PodSpec, taint: &Taint) -> bool {
    spec.tolerations.iter().flatten().any(|toleration| tolerates(toleration, taint))
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.to_owned(), effect: effect.to_owned(), time_added: None, value: None }
}

/// The ports of the machine that a pod asks for, each of which one pod can hold.
pub(crate) fn host_ports(spec: &PodSpec) -> BTreeSet<(i32, &str)> {
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let held = ports.filter_map(|port| Some((port.host_port?, port.protocol.as_deref().unwrap_or("TCP"))));
    held.filter(|(port, _)| *port > 0).collect()
}

/// What each bit of [`lacks`] means.
pub(super) const LACKS: [&str; 4] =
    ["Too many pods", "Insufficient cpu", "Insufficient memory", "Insufficient ephemeral-storage"];

/// What of the counted resources the node has too little of, one bit each.
pub(super) fn lacks(candidate: &Candidate, asked: Amounts) -> usize {
    let free = candidate.offered.minus(candidate.used);
    // Who asks for nothing fits even on a node that is overcommitted already.
    let is_short = |asked: i64, free: i64| asked > 0 && asked > free;
    usize::from(asked.pods > free.pods)
        | usize::from(is_short(asked.cpu_millis, free.cpu_millis)) << 1
        | usize::from(is_short(asked.memory_bytes, free.memory_bytes)) << 2
        | usize::from(is_short(asked.storage_bytes, free.storage_bytes)) << 3
}

/// The names of these bits.
pub(super) fn named(lacks: usize) -> impl Iterator<Item = Reason> {
    let is_set = move |(bit, _): &(usize, &str)| lacks & 1 << *bit != 0;
    LACKS.into_iter().enumerate().filter(is_set).map(|(_, name)| name.into())
}

fn shortages(candidate: &Candidate, asking: &Asking<'_>) -> Vec<Reason> {
    let is_missing = |(name, asked): &(&&str, &i64)| **asked > device_offered(&candidate.node, name);
    let missing = asking.devices.iter().filter(is_missing);
    let missing = missing.map(|(name, _)| Reason::from(format!("Insufficient {name}")));
    named(lacks(candidate, asking.amounts)).chain(missing).collect()
}
