//! What the judge's verdicts do to nodes and their pods.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, PodStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use skein_api::pod::RESCHEDULE_ANNOTATION;
use skein_api::scheduling::{
    DISK_PRESSURE, MEMORY_PRESSURE, NETWORK_UNAVAILABLE, PID_PRESSURE, UNREACHABLE, UNSCHEDULABLE,
    toleration_seconds,
};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::draft::Draft;
use crate::meta;
use crate::replicaset::stamp;
use crate::resources::QosClass;
use crate::time::seconds_after;
use crate::view::{Key, Kind, key_of};

/// What the judge says about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It renews, or its silence is still too short to say anything.
    Alive,
    /// Its silence has lasted: replace its pods.
    Unreachable,
}

const WHO: &str = "node-controller";
/// Conditions that keep new pods away, and the taint that says so.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", MEMORY_PRESSURE),
    ("DiskPressure", DISK_PRESSURE),
    ("PIDPressure", PID_PRESSURE),
    ("NetworkUnavailable", NETWORK_UNAVAILABLE),
];

/// Marks nodes by their verdict. What is marked in the map stays to be emptied, whoever leads by then.
pub(crate) fn mark(draft: &mut Draft<'_>, verdicts: &BTreeMap<String, Verdict>) {
    let nodes = draft.view().all::<Node>().map(|(key, node)| (key.clone(), node.clone()));
    let nodes: Vec<(Key, Arc<Node>)> = nodes.collect();
    for (key, node) in &nodes {
        let name = meta::name(&node.metadata);
        match verdicts.get(name) {
            Some(Verdict::Unreachable) => mark_unreachable(draft, key, node),
            Some(Verdict::Alive) if unreachable_since(node).is_some() => mark_reachable(draft, key),
            Some(Verdict::Alive) | None => {}
        }
        mirror(draft, key, node, UNSCHEDULABLE, is_cordoned(node));
        for (condition, taint) in PRESSURES {
            mirror(draft, key, node, taint, meta::node_is(node, condition));
        }
    }
}

/// Takes the pods off nodes that are marked as lost, or are gone.
pub(crate) fn empty_lost(draft: &mut Draft<'_>) {
    let nodes = draft.view().all::<Node>().map(|(_, node)| node);
    let lost =
        nodes.filter_map(|node| Some((meta::name(&node.metadata).to_owned(), unreachable_since(node)?)));
    let lost: Vec<(String, Timestamp)> = lost.collect();
    for (name, since) in lost {
        empty(draft, &name, Some(since));
    }
    // Pods of a node that was removed altogether.
    if draft.changed().any_under(Node::PREFIX) || draft.changed().any_under(Pod::PREFIX) {
        let view = draft.view();
        let gone = view.nodes_with_pods().filter(|name| view.named::<Node>("", name).is_none());
        let gone: Vec<Arc<str>> = gone.cloned().collect();
        for name in gone {
            empty(draft, &name, None);
        }
    }
}

/// Since when a node has the taint, if it has.
pub(crate) fn unreachable_since(node: &Node) -> Option<Timestamp> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let taint =
        taints.into_iter().flatten().find(|taint| taint.key == UNREACHABLE && taint.effect == "NoExecute")?;
    Some(taint.time_added.as_ref().map_or(Timestamp::MIN, |time| time.0))
}

fn mark_unreachable(draft: &mut Draft<'_>, key: &Key, node: &Arc<Node>) {
    if unreachable_since(node).is_some() {
        return;
    }
    let now = draft.now;
    let mark = |node: &mut Node| {
        let taints = node.spec.get_or_insert_default().taints.get_or_insert_default();
        taints.push(Taint {
            key: UNREACHABLE.to_owned(),
            effect: "NoExecute".to_owned(),
            time_added: stamp(now),
            value: None,
        });
        let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
        if !conditions.iter().any(|condition| condition.type_ == "Ready") {
            conditions.push(NodeCondition { type_: "Ready".to_owned(), ..NodeCondition::default() });
        }
        for condition in conditions.iter_mut() {
            // Nobody hears the node: whatever it said last is not known to hold.
            if condition.status != "Unknown" {
                condition.status = "Unknown".to_owned();
                condition.last_transition_time = stamp(now);
            }
            condition.reason = Some("NodeStatusUnknown".to_owned());
            condition.message = Some("the node does not answer; its pods are replaced elsewhere".to_owned());
        }
    };
    let text = format!("Node {} status is now: NodeNotReady", meta::name(&node.metadata));
    draft.together(|draft| {
        draft.edit::<Node>(key, mark);
        draft.event(&**node, WHO, false, "NodeNotReady", &text);
    });
}

fn mark_reachable(draft: &mut Draft<'_>, key: &Key) {
    let Some(node) = draft.view().get::<Node>(key).cloned() else { return };
    let text = format!("Node {} status is now: NodeReady", meta::name(&node.metadata));
    draft.together(|draft| {
        draft.event(&*node, WHO, false, "NodeReady", &text);
        draft.edit::<Node>(key, |node| {
            if let Some(spec) = &mut node.spec
                && let Some(taints) = &mut spec.taints
            {
                taints.retain(|taint| taint.key != UNREACHABLE);
                if taints.is_empty() {
                    spec.taints = None;
                }
            }
        });
    });
}

/// A node that takes no new pods says so by a taint: the scheduler and tools look for that.
fn mirror(draft: &mut Draft<'_>, key: &Key, node: &Node, taint: &str, wanted: bool) {
    if has_taint(node, taint) == wanted {
        return;
    }
    let now = draft.now;
    draft.edit::<Node>(key, |node| {
        let spec = node.spec.get_or_insert_default();
        let mut taints = spec.taints.take().unwrap_or_default();
        if wanted {
            taints.push(Taint {
                key: taint.to_owned(),
                effect: "NoSchedule".to_owned(),
                time_added: stamp(now),
                value: None,
            });
        } else {
            taints.retain(|held| held.key != taint);
        }
        spec.taints = Some(taints).filter(|taints| !taints.is_empty());
    });
}

fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
}

fn has_taint(node: &Node, key: &str) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().any(|taint| taint.key == key)
}

/// Takes the pods off a lost node: those that may go, once their tolerations have run out.
/// `since` is `None` for a node that no longer exists, which nobody tolerates.
fn empty(draft: &mut Draft<'_>, node: &str, since: Option<Timestamp>) {
    let pods: Vec<(Key, Arc<Pod>)> =
        draft.view().pods_on(node).map(|(key, pod)| (key.clone(), pod.clone())).collect();
    for (key, pod) in pods {
        if draft.is_full() {
            return;
        }
        if meta::is_ending(&pod.metadata) {
            // The node that should stop it cannot be asked; if it returns, it kills what is not bound to it.
            draft.remove(&key);
            continue;
        }
        let leaves_at = match since {
            None => Some(Timestamp::MIN),
            Some(since) => leaves_at(&pod, since),
        };
        match leaves_at {
            Some(at) if at <= draft.now => replace(draft, &key, &pod, since.is_none()),
            Some(at) => {
                draft.wake(&key_of::<Node>("", node), at);
                not_ready(draft, &key);
            }
            None => not_ready(draft, &key),
        }
    }
}

/// When a pod leaves a node that has been unreachable since `since`; `None`: never.
///
/// Without a toleration that names the taint it leaves at once: the cluster judges slowly enough itself.
fn leaves_at(pod: &Pod, since: Timestamp) -> Option<Timestamp> {
    let lost = Taint { key: UNREACHABLE.to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() };
    let seconds = pod.spec.as_ref().map_or(Some(0), |spec| toleration_seconds(spec, &lost))?;
    Some(seconds_after(since, seconds))
}

/// Removes a pod that its node can no longer run, so that its owner makes a new one; a bare pod that is to
/// run always is made anew under its own name.
fn replace(draft: &mut Draft<'_>, key: &Key, pod: &Arc<Pod>, node_is_gone: bool) {
    let owned = meta::controller(&pod.metadata).is_some();
    if is_pinned(pod) {
        return not_ready(draft, key);
    }
    if owned || meta::has_ended(pod) && node_is_gone {
        draft.remove(key);
    } else if meta::has_ended(pod) {
        // It is over and asks for nothing; its record stays for whoever reads it.
    } else if let Some(successor) = successor(pod) {
        let uid = draft.chance.of(meta::uid(&pod.metadata)).uid();
        let node = meta::node_of(pod).unwrap_or_default();
        let text = format!("Node {node} is lost; the pod is made anew");
        // Nobody else would make it again.
        draft.together(|draft| {
            draft.remove(key);
            draft.event(&**pod, WHO, false, "Rescheduled", &text);
            draft.create(successor, uid);
        });
    } else if node_is_gone {
        draft.remove(key);
    } else {
        not_ready(draft, key);
    }
}

/// A template or a user that names the node itself would name it again: such a pod waits for its node.
pub(crate) fn is_pinned(pod: &Pod) -> bool {
    meta::condition(pod.status.as_ref(), "PodScheduled").is_none()
}

/// The same pod again, unbound and with nothing of its past: what takes its place when its node goes for good, if it
/// is to run always, nobody owns it, and nobody has forbidden it.
pub fn successor(pod: &Pod) -> Option<Pod> {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    let moves = meta::controller(&pod.metadata).is_none()
        && policy.unwrap_or("Always") == "Always"
        && meta::annotation(&pod.metadata, RESCHEDULE_ANNOTATION) != Some("false")
        && pod.metadata.finalizers.iter().flatten().next().is_none()
        && !is_pinned(pod)
        && !meta::has_ended(pod);
    moves.then(|| anew(pod))
}

fn anew(pod: &Pod) -> Pod {
    let mut spec = pod.spec.clone().unwrap_or_default();
    spec.node_name = None;
    let qos_class = QosClass::of(&spec).name().to_owned();
    Pod {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            annotations: pod.metadata.annotations.clone(),
            owner_references: pod.metadata.owner_references.clone(),
            generate_name: pod.metadata.generate_name.clone(),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: Some(PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(qos_class),
            ..PodStatus::default()
        }),
    }
}

/// A pod that stays on a lost node serves nobody as long as that lasts. Its agent says otherwise on return.
fn not_ready(draft: &mut Draft<'_>, key: &Key) {
    let now = draft.now;
    draft.edit::<Pod>(key, |pod| {
        if meta::is_ready(pod) {
            let condition = PodCondition {
                type_: "Ready".to_owned(),
                status: "False".to_owned(),
                reason: Some("NodeNotReady".to_owned()),
                last_transition_time: Some(Time(now)),
                ..PodCondition::default()
            };
            meta::set_condition(pod.status.get_or_insert_default(), condition, now);
        }
    });
}
