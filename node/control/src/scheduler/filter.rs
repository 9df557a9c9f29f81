//! Where a pod can run.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodAffinityTerm, PodSpec, Taint};
use skein_api::scheduling::{MEMORY_PRESSURE, NOT_READY, UNREACHABLE, UNSCHEDULABLE, selects, tolerates};
use std::collections::BTreeSet;

use super::Candidate;
use crate::meta;
use crate::resources::{QosClass, asked_by, device_offered, devices_asked_by};
use crate::view::View;

/// Why `pod` cannot run on this node: all reasons of the first filter that refuses; empty if it can.
pub(super) fn refusals(view: &View, candidate: &Candidate, pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else { return vec!["node(s) cannot run a pod without spec".to_owned()] };
    let one = |reason: &str| vec![reason.to_owned()];
    let node = &*candidate.node;
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
        && !tolerated(spec, &taint(UNSCHEDULABLE, "NoSchedule"))
    {
        return one("node(s) were unschedulable");
    }
    if let Some(taint) = untolerated(spec, node) {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)];
    }
    if !selects(spec, node) {
        return one("node(s) didn't match Pod's node affinity/selector");
    }
    if !ports_are_free(view, spec, &candidate.name) {
        return one("node(s) didn't have free ports for the requested pod ports");
    }
    let short = shortages(candidate, pod, spec);
    if !short.is_empty() {
        return short;
    }
    affinity_refusal(view, candidate, pod, spec).map(one).unwrap_or_default()
}

/// The first taint that keeps the pod away. A node that is not ready counts as tainted even before anybody
/// has written that down.
fn untolerated(spec: &PodSpec, node: &Node) -> Option<Taint> {
    let held = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    let hard = held.filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute").cloned();
    let hard: Vec<Taint> = hard.collect();
    // Who may stay on a lost node for a while must still not be sent to one.
    if let Some(lost) = hard.iter().find(|taint| taint.key == UNREACHABLE) {
        return Some(lost.clone());
    }
    let not_ready = (!meta::node_is(node, "Ready")).then(|| taint(NOT_READY, "NoSchedule"));
    // Who asks for its memory has it: only those that ask for nothing are kept from a node that is short of it.
    let copes = |taint: &Taint| taint.key == MEMORY_PRESSURE && QosClass::of(spec) != QosClass::BestEffort;
    hard.into_iter().chain(not_ready).find(|taint| !tolerated(spec, taint) && !copes(taint))
}

/// True if some toleration of the pod covers this taint.
pub(super) fn tolerated(spec: &PodSpec, taint: &Taint) -> bool {
    spec.tolerations.iter().flatten().any(|toleration| tolerates(toleration, taint))
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.to_owned(), effect: effect.to_owned(), time_added: None, value: None }
}

/// A port of the machine can be held by one pod only.
fn ports_are_free(view: &View, spec: &PodSpec, node: &str) -> bool {
    let wanted = host_ports(spec);
    wanted.is_empty()
        || view
            .pods_on(node)
            .filter(|(_, pod)| !meta::has_ended(pod))
            .filter_map(|(_, pod)| pod.spec.as_ref())
            .all(|other| host_ports(other).is_disjoint(&wanted))
}

fn host_ports(spec: &PodSpec) -> BTreeSet<(i32, &str)> {
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let held = ports.filter_map(|port| Some((port.host_port?, port.protocol.as_deref().unwrap_or("TCP"))));
    held.filter(|(port, _)| *port > 0).collect()
}

fn shortages(candidate: &Candidate, pod: &Pod, spec: &PodSpec) -> Vec<String> {
    let asked = asked_by(pod);
    let free = candidate.offered.minus(candidate.used);
    let mut short = Vec::new();
    if asked.pods > free.pods {
        short.push("Too many pods".to_owned());
    }
    let counted = [
        ("cpu", asked.cpu_millis, free.cpu_millis),
        ("memory", asked.memory_bytes, free.memory_bytes),
        ("ephemeral-storage", asked.storage_bytes, free.storage_bytes),
    ];
    // Who asks for nothing fits even on a node that is overcommitted already.
    short.extend(
        counted
            .iter()
            .filter(|(_, asked, free)| *asked > 0 && asked > free)
            .map(|(name, ..)| format!("Insufficient {name}")),
    );
    let devices = devices_asked_by(spec);
    let missing = devices.iter().filter(|(name, asked)| **asked > device_offered(&candidate.node, name));
    short.extend(missing.map(|(name, _)| format!("Insufficient {name}")));
    short
}

/// What the pod demands of the company it keeps, and what its neighbours-to-be demand of it.
fn affinity_refusal(view: &View, candidate: &Candidate, pod: &Pod, spec: &PodSpec) -> Option<&'static str> {
    let affinity = spec.affinity.as_ref();
    let together = affinity
        .and_then(|affinity| affinity.pod_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    for term in together.into_iter().flatten() {
        // The first of a group that wants to be together has nobody to join yet.
        let first =
            picks(view, term, pod, pod) && !view.all_bound().any(|other| picks(view, term, pod, other));
        if !first && !domain(view, candidate, &term.topology_key).any(|other| picks(view, term, pod, other)) {
            return Some("node(s) didn't match pod affinity rules");
        }
    }
    for term in apart(spec) {
        if domain(view, candidate, &term.topology_key).any(|other| picks(view, term, pod, other)) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
    }
    let refused = view.wary().any(|other| {
        let terms = other.spec.as_ref().into_iter().flat_map(apart);
        let here = |key: &str| {
            let node = meta::node_of(other).unwrap_or_default();
            same_domain(view, candidate, node, key)
        };
        terms.into_iter().any(|term| here(&term.topology_key) && picks(view, term, other, pod))
    });
    refused.then_some("node(s) didn't satisfy existing pods anti-affinity rules")
}

/// The terms by which a pod keeps others away.
pub(crate) fn apart(spec: &PodSpec) -> impl Iterator<Item = &PodAffinityTerm> {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .flatten()
}

/// The pods on all nodes that share this label's value with the candidate.
fn domain<'v>(view: &'v View, candidate: &'v Candidate, key: &'v str) -> impl Iterator<Item = &'v Pod> {
    view.all_bound().filter(move |pod| {
        let node = meta::node_of(pod).unwrap_or_default();
        same_domain(view, candidate, node, key)
    })
}

fn same_domain(view: &View, candidate: &Candidate, node: &str, key: &str) -> bool {
    let of = |node: &Node| node.metadata.labels.as_ref().and_then(|labels| labels.get(key).cloned());
    let Some(here) = of(&candidate.node) else { return false };
    node == candidate.name
        || view.named::<Node>("", node).and_then(|node| of(node)).is_some_and(|there| there == here)
}

/// True if `term`, written in `by`, means `other`.
fn picks(view: &View, term: &PodAffinityTerm, by: &Pod, other: &Pod) -> bool {
    let namespace = meta::namespace(&other.metadata);
    let listed = term.namespaces.iter().flatten().any(|name| name == namespace);
    let selected = term.namespace_selector.as_ref().is_some_and(|selector| {
        let everything = selector.match_labels.is_none() && selector.match_expressions.is_none();
        let labels = view.named::<Namespace>("", namespace).and_then(|held| held.metadata.labels.as_ref());
        everything || meta::selects(selector, labels)
    });
    let own = term.namespaces.iter().flatten().next().is_none()
        && term.namespace_selector.is_none()
        && namespace == meta::namespace(&by.metadata);
    (listed || selected || own)
        && term
            .label_selector
            .as_ref()
            .is_some_and(|selector| meta::selects(selector, other.metadata.labels.as_ref()))
}
