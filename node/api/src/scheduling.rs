//! Which nodes a pod accepts: taints and tolerations, node selector, required node affinity.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use crate::selector::{Operator, Requirement};

/// The taint of a node that is lost.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The taint of a node that says it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint of a node that was cordoned.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The taint of a node whose disk is full, or nearly, or has failed.
pub const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
/// The taint of a node with little memory left.
pub const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
/// The taint of a node that can take few processes more.
pub const PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
/// The taint of a node whose pods reach nobody.
pub const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";

/// Whether the toleration accepts the taint. For how long is another question.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    let operator = toleration.operator.as_deref().unwrap_or("Equal");
    if key.is_empty() {
        // Only "Exists" may go without a key, and then it accepts every taint.
        return operator == "Exists";
    }
    if key != taint.key {
        return false;
    }
    let (wanted, found) =
        (toleration.value.as_deref().unwrap_or_default(), taint.value.as_deref().unwrap_or_default());
    match operator {
        "Exists" => true,
        "" | "Equal" => wanted == found,
        "Gt" => compare(found, wanted).is_some_and(|(found, wanted)| found > wanted),
        "Lt" => compare(found, wanted).is_some_and(|(found, wanted)| found < wanted),
        _ => false,
    }
}

/// The first taint that forbids to schedule the pod here, or to let it run (`PreferNoSchedule` forbids nothing).
pub fn untolerated<'t>(spec: &PodSpec, taints: &'t [Taint]) -> Option<&'t Taint> {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    taints
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// How many seconds the pod stays beside a `NoExecute` taint: `None` for ever, otherwise the shortest of
/// the tolerations that accept it, and 0 if none does.
pub fn toleration_seconds(spec: &PodSpec, taint: &Taint) -> Option<i64> {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let mut accepted = false;
    let mut shortest: Option<i64> = None;
    for toleration in tolerations.iter().filter(|toleration| tolerates(toleration, taint)) {
        accepted = true;
        if let Some(seconds) = toleration.toleration_seconds {
            shortest = Some(shortest.map_or(seconds, |before| before.min(seconds)).max(0));
        }
    }
    if accepted { shortest } else { Some(0) }
}

/// Whether the node is as the pod's node selector and required node affinity ask.
pub fn selects(spec: &PodSpec, node: &Node) -> bool {
    let label = |key: &str| node.metadata.labels.as_ref()?.get(key).map(String::as_str);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| label(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| matches(required, node))
}

/// Whether any term of the node selector holds.
pub fn matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| matches_term(term, node))
}

fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        // A term that asks for nothing selects nothing.
        return false;
    }
    let label = |key: &str| node.metadata.labels.as_ref()?.get(key).map(String::as_str);
    expressions.iter().all(|expression| matches_requirement(expression, label(&expression.key)))
        && fields.iter().all(|field| {
            field.key == "metadata.name" && matches_requirement(field, node.metadata.name.as_deref())
        })
}

fn matches_requirement(wanted: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let operator = match wanted.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::Gt,
        "Lt" => Operator::Lt,
        _ => return false,
    };
    let values = wanted.values.iter().flatten().cloned().collect();
    Requirement { key: wanted.key.clone(), operator, values }.matches(found)
}

fn compare(found: &str, wanted: &str) -> Option<(i64, i64)> {
    Some((found.parse().ok()?, wanted.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint { key: key.into(), value: Some(value.into()), effect: effect.into(), time_added: None }
    }

    #[test]
    fn a_toleration_accepts_the_taints_it_names() {
        let taint = taint("disk", "slow", "NoExecute");
        for (toleration, expect) in [
            (json!({ "key": "disk", "value": "slow" }), true),
            (json!({ "key": "disk", "operator": "Equal", "value": "slow", "effect": "NoExecute" }), true),
            (json!({ "key": "disk", "value": "fast" }), false),
            (json!({ "key": "disk", "operator": "Exists" }), true),
            (json!({ "key": "disk", "operator": "Exists", "effect": "NoSchedule" }), false),
            (json!({ "operator": "Exists" }), true),
            (json!({ "operator": "Equal" }), false),
            (json!({ "key": "other", "operator": "Exists" }), false),
        ] {
            let parsed: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&parsed, &taint), expect, "{toleration}");
        }
    }

    #[test]
    fn a_pod_stays_as_long_as_its_shortest_toleration_says() {
        let spec = |tolerations: serde_json::Value| -> PodSpec {
            serde_json::from_value(json!({ "containers": [], "tolerations": tolerations })).unwrap()
        };
        let taint = taint(UNREACHABLE, "", "NoExecute");
        let exists = |seconds: Option<i64>| json!({ "key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": seconds });
        for (tolerations, expect) in [
            (json!([]), Some(0)),
            (json!([exists(Some(0))]), Some(0)),
            (json!([exists(Some(60)), exists(Some(30))]), Some(30)),
            (json!([exists(Some(-5))]), Some(0)),
            (json!([exists(None)]), None),
        ] {
            assert_eq!(toleration_seconds(&spec(tolerations.clone()), &taint), expect, "{tolerations}");
        }
        assert!(untolerated(&spec(json!([])), std::slice::from_ref(&taint)).is_some());
        assert!(untolerated(&spec(json!([exists(Some(0))])), &[taint]).is_none());
        assert!(untolerated(&spec(json!([])), &[self::taint("a", "", "PreferNoSchedule")]).is_none());
    }

    #[test]
    fn a_node_must_be_as_selector_and_affinity_ask() {
        let node: Node = serde_json::from_value(
            json!({ "metadata": { "name": "kitchen", "labels": { "disk": "ssd", "cores": "4" } } }),
        )
        .unwrap();
        let affinity = |term: serde_json::Value| json!({ "containers": [], "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] } } } });
        for (spec, expect) in [
            (json!({ "containers": [] }), true),
            (json!({ "containers": [], "nodeSelector": { "disk": "ssd" } }), true),
            (json!({ "containers": [], "nodeSelector": { "disk": "hdd" } }), false),
            (
                affinity(
                    json!({ "matchExpressions": [{ "key": "cores", "operator": "Gt", "values": ["2"] }] }),
                ),
                true,
            ),
            (
                affinity(
                    json!({ "matchExpressions": [{ "key": "disk", "operator": "NotIn", "values": ["ssd"] }] }),
                ),
                false,
            ),
            (
                affinity(
                    json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["kitchen"] }] }),
                ),
                true,
            ),
            (affinity(json!({})), false),
        ] {
            let parsed: PodSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(selects(&parsed, &node), expect, "{spec}");
        }
    }
}
