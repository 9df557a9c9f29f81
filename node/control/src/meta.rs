//! Short questions about one object's metadata and status.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use std::collections::BTreeMap;

pub(crate) use skein_api::owner::controller_of as controller;
pub(crate) use skein_api::pod::{has_ended, is_ready, node_name as node_of};

pub(crate) fn uid(metadata: &ObjectMeta) -> &str {
    metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or_default()
}

pub(crate) fn created(metadata: &ObjectMeta) -> Timestamp {
    metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0)
}

pub(crate) fn is_ending(metadata: &ObjectMeta) -> bool {
    metadata.deletion_timestamp.is_some()
}

pub(crate) fn has_finalizer(metadata: &ObjectMeta, wanted: &str) -> bool {
    metadata.finalizers.iter().flatten().any(|finalizer| finalizer == wanted)
}

pub(crate) fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// True for a pod that counts as a replica: neither over nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !has_ended(pod) && !is_ending(&pod.metadata)
}

pub(crate) fn condition<'a>(status: Option<&'a PodStatus>, kind: &str) -> Option<&'a PodCondition> {
    status?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub(crate) fn node_condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Whether a condition of the node is said to hold.
pub(crate) fn node_is(node: &Node, kind: &str) -> bool {
    node_condition(node, kind).is_some_and(|condition| condition.status == "True")
}

/// Where the API of a node is that does not say so.
pub(crate) const API_PORT: u16 = 6443;

/// The port of a node's API, as its object says.
pub(crate) fn api_port(node: &Node) -> Option<i32> {
    let endpoints = node.status.as_ref()?.daemon_endpoints.as_ref()?;
    Some(endpoints.kubelet_endpoint.as_ref()?.port)
}

/// The addresses at which other nodes reach it, best first.
pub(crate) fn internal_ips(node: &Node) -> impl Iterator<Item = &str> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.filter(|address| address.type_ == "InternalIP").map(|address| &*address.address)
}

/// Sets a condition of a pod; the time of transition moves only with the status.
pub(crate) fn set_condition(status: &mut PodStatus, mut wanted: PodCondition, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|condition| condition.type_ == wanted.type_) {
        Some(held) => {
            wanted.last_transition_time =
                if held.status == wanted.status && held.last_transition_time.is_some() {
                    held.last_transition_time.clone()
                } else {
                    Some(Time(now))
                };
            wanted.last_probe_time = held.last_probe_time.clone();
            *held = wanted;
        }
        None => {
            wanted.last_transition_time = Some(Time(now));
            conditions.push(wanted);
        }
    }
}

/// True if `selector` picks `labels`. An empty selector picks nothing here: a controller that owned every
/// pod of its namespace would be a mistake (the API refuses it too).
pub(crate) fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let equal = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    if equal.clone().next().is_none() && expressions.clone().next().is_none() {
        return false;
    }
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    equal.into_iter().all(|(key, value)| label(key) == Some(value))
        && expressions.into_iter().all(|wanted| {
            let held = label(&wanted.key);
            let listed =
                || held.is_some_and(|held| wanted.values.iter().flatten().any(|value| value == held));
            match wanted.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => held.is_some(),
                "DoesNotExist" => held.is_none(),
                _ => false,
            }
        })
}
