//! Facts about one pod that several deciders need: what it asks for, how it is, which template made it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, Pod, PodCondition, PodSpec, PodTemplateSpec, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::quantity::Quantity;

/// The label by which a Deployment tells the ReplicaSets of its templates apart.
pub const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// Opts a bare pod out of being recreated elsewhere when its node is lost: value `false`.
pub const RESCHEDULE_ANNOTATION: &str = "skein.dev/reschedule";

/// Letters of names made by the server: no vowels, so no words, and nothing that looks like another.
pub const SAFE_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The name of a kernel parameter with dots between its parts, as the one with slashes has it too.
///
/// Source: sysctl.d(5): what comes first, a dot or a slash, separates; the other one stands for itself in a part.
pub fn sysctl_name(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name[first..].starts_with('/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// Processor and memory: what is fitted into a node.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: i64,
    /// Bytes.
    pub memory_bytes: i64,
}

impl Resources {
    /// Both amounts, each held at the largest number.
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
        }
    }

    /// Reads `cpu` and `memory`; what is absent or malformed asks for nothing.
    pub fn from_map(amounts: Option<&BTreeMap<String, Text>>) -> Self {
        let amount = |name: &str| {
            amounts.and_then(|amounts| amounts.get(name)).and_then(|text| Quantity::try_from(text).ok())
        };
        Self {
            cpu_millis: amount("cpu").unwrap_or(Quantity::ZERO).millis().max(0),
            memory_bytes: amount("memory").unwrap_or(Quantity::ZERO).units().max(0),
        }
    }
}

/// What the pod asks of its node: its containers together, or what its init containers need at their
/// worst moment if that is more; what `spec.resources` says for the pod as a whole overrides both.
pub fn requests(spec: &PodSpec) -> Resources {
    let of = |resources: &ResourceRequirements| Resources::from_map(resources.requests.as_ref());
    let of_container = |container: &Container| container.resources.as_ref().map(of).unwrap_or_default();
    let running = spec.containers.iter().map(of_container).fold(Resources::default(), Resources::plus);
    let mut sidecars = Resources::default();
    let mut worst_init = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container);
        if container.restart_policy.as_deref() == Some("Always") {
            // A sidecar goes on running beside all that start after it.
            sidecars = sidecars.plus(own);
            worst_init = worst_init.max(sidecars);
        } else {
            worst_init = worst_init.max(sidecars.plus(own));
        }
    }
    let mut total = running.plus(sidecars).max(worst_init);
    if let Some(whole) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let whole_amount = Resources::from_map(Some(whole));
        if whole.contains_key("cpu") {
            total.cpu_millis = whole_amount.cpu_millis;
        }
        if whole.contains_key("memory") {
            total.memory_bytes = whole_amount.memory_bytes;
        }
    }
    total.plus(Resources::from_map(spec.overhead.as_ref()))
}

/// `Guaranteed` if every container's processor and memory limits equal its requests, `BestEffort` if none
/// says anything, `Burstable` otherwise.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let containers: Vec<&Container> =
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).collect();
    let amount = |amounts: &Option<BTreeMap<String, Text>>, name: &str| {
        amounts
            .as_ref()
            .and_then(|amounts| amounts.get(name))
            .and_then(|text| Quantity::try_from(text).ok())
            .filter(|amount| *amount > Quantity::ZERO)
    };
    let empty = ResourceRequirements::default();
    let (mut anything, mut guaranteed) = (false, true);
    let whole = spec.resources.as_ref();
    let all: Vec<&ResourceRequirements> = match whole {
        Some(whole) => vec![whole],
        None => containers.iter().map(|container| container.resources.as_ref().unwrap_or(&empty)).collect(),
    };
    for resources in &all {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(&resources.requests, name), amount(&resources.limits, name));
            anything |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (anything, guaranteed && !all.is_empty()) {
        (_, true) => "Guaranteed",
        (true, false) => "Burstable",
        (false, false) => "BestEffort",
    }
}

/// The condition of this type.
pub fn condition<'p>(pod: &'p Pod, type_: &str) -> Option<&'p PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Whether the pod says that it can serve.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// `Pending`, `Running`, ...; empty before anything is known.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether all of its containers ended for good.
pub fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether its deletion has begun.
pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The node it is bound to.
pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Ten letters that tell templates apart: equal templates have equal hashes, on every node and in every build.
///
/// `collisions` is the owner's `status.collisionCount`: raised when another template has the same hash.
/// The label with the hash itself is left out.
pub fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut plain = template.clone();
    if let Some(labels) = plain.metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
        labels.remove(TEMPLATE_HASH_LABEL);
    }
    // Through a Value, whose fields are in order whatever the order in the struct.
    let text = serde_json::to_value(&plain)
        .expect("a template has text keys only, so it can be written")
        .to_string();
    let collisions = if collisions > 0 { format!("#{collisions}") } else { String::new() };
    let mut hash = fnv1a(text.bytes().chain(collisions.bytes()));
    let letters = SAFE_ALPHABET.len() as u64;
    (0..10)
        .map(|_| {
            let letter = SAFE_ALPHABET[(hash % letters) as usize];
            hash /= letters;
            char::from(letter)
        })
        .collect()
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn container(cpu: &str, memory: &str) -> Value {
        json!({ "name": "c", "resources": { "requests": { "cpu": cpu, "memory": memory } } })
    }

    #[test]
    fn a_pod_asks_for_its_containers_together_or_its_worst_init_container() {
        let mib = |n: i64| n << 20;
        let both = json!([container("100m", "64Mi"), container("0.2", "64Mi")]);
        assert_eq!(
            requests(&spec(json!({ "containers": both }))),
            Resources { cpu_millis: 300, memory_bytes: mib(128) }
        );
        let init = json!([container("1", "32Mi")]);
        assert_eq!(
            requests(&spec(json!({ "containers": both, "initContainers": init }))),
            Resources { cpu_millis: 1000, memory_bytes: mib(128) }
        );
        let mut sidecar = container("500m", "100Mi");
        sidecar["restartPolicy"] = json!("Always");
        assert_eq!(
            requests(&spec(
                json!({ "containers": both, "initContainers": [sidecar, container("1", "32Mi")], "overhead": { "memory": "1Mi" } })
            )),
            Resources { cpu_millis: 1500, memory_bytes: mib(229) }
        );
        assert_eq!(requests(&spec(json!({ "containers": [{ "name": "c" }] }))), Resources::default());
    }

    #[test]
    fn the_quality_class_follows_from_requests_and_limits() {
        let with =
            |resources: Value| spec(json!({ "containers": [{ "name": "c", "resources": resources }] }));
        for (resources, expect) in [
            (json!({}), "BestEffort"),
            (json!({ "requests": { "cpu": "1" } }), "Burstable"),
            (json!({ "limits": { "cpu": "1" } }), "Burstable"),
            (json!({ "limits": { "cpu": "1", "memory": "1Gi" } }), "Guaranteed"),
            (
                json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1000m", "memory": "1Gi" } }),
                "Guaranteed",
            ),
            (
                json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "500m" } }),
                "Burstable",
            ),
        ] {
            assert_eq!(qos_class(&with(resources.clone())), expect, "{resources}");
        }
    }

    #[test]
    fn a_template_keeps_its_hash_until_it_changes() {
        let template = |image: &str, labels: Value| -> PodTemplateSpec {
            serde_json::from_value(json!({ "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": image }] } })).unwrap()
        };
        let one = template_hash(&template("a", json!({ "app": "web" })), 0);
        assert_eq!(one.len(), 10);
        assert!(one.bytes().all(|letter| SAFE_ALPHABET.contains(&letter)));
        let labelled = template("a", json!({ "app": "web", TEMPLATE_HASH_LABEL: one.clone() }));
        assert_eq!(one, template_hash(&labelled, 0));
        assert_ne!(one, template_hash(&labelled, 1));
        assert_ne!(one, template_hash(&template("b", json!({ "app": "web" })), 0));
    }

    #[test]
    fn a_pod_is_ready_by_its_condition_only() {
        let pod = |status: Value| -> Pod { serde_json::from_value(json!({ "status": status })).unwrap() };
        assert!(is_ready(&pod(json!({ "conditions": [{ "type": "Ready", "status": "True" }] }))));
        assert!(!is_ready(&pod(
            json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "False" }] })
        )));
        assert!(has_ended(&pod(json!({ "phase": "Failed" }))));
    }
}
