//! Pods leave a node whose `NoExecute` taint they do not tolerate, at once or after their `tolerationSeconds`.
//!
//! The taint of a node that cannot be reached is not looked at here: nobody there can stop a pod, so
//! [`crate::node_health`] replaces its pods.
//!
//! Source: Kubernetes, "Taints and Tolerations", taint-based evictions.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use skein_api::scheduling::{UNREACHABLE, toleration_seconds};
use std::sync::Arc;

use crate::draft::Draft;
use crate::meta;
use crate::replicaset::stamp;
use crate::time::seconds_after;
use crate::view::Key;

const WHO: &str = "taint-eviction-controller";

/// Notes since when nodes have such taints, and deletes pods whose time beside one is over.
pub(crate) fn plan(draft: &mut Draft<'_>) {
    let tainted: Vec<Key> = draft
        .view()
        .all::<Node>()
        .filter(|(_, node)| evicting(node).next().is_some())
        .map(|(key, _)| key.clone())
        .collect();
    for node_key in tainted {
        let now = draft.now;
        draft.edit::<Node>(&node_key, |node| {
            let taints = node.spec.as_mut().and_then(|spec| spec.taints.as_mut());
            for taint in taints.into_iter().flatten().filter(|taint| evicts(taint)) {
                taint.time_added = taint.time_added.take().or(stamp(now));
            }
        });
        let Some(node) = draft.view().get::<Node>(&node_key).cloned() else { continue };
        let pods: Vec<(Key, Arc<Pod>)> = draft
            .view()
            .pods_on(meta::name(&node.metadata))
            .filter(|(_, pod)| !meta::is_ending(&pod.metadata) && !meta::has_ended(pod))
            .map(|(key, pod)| (key.clone(), pod.clone()))
            .collect();
        for (key, pod) in pods {
            if draft.is_full() {
                return;
            }
            match leaves_at(&pod, &node) {
                Some(at) if at <= now => {
                    let (namespace, name) = (meta::namespace(&pod.metadata), meta::name(&pod.metadata));
                    let text = format!("Marking for deletion Pod {namespace}/{name}");
                    draft.together(|draft| {
                        draft.event(&*pod, WHO, false, "TaintManagerEviction", &text);
                        draft.delete_pod(&key);
                    });
                }
                Some(at) => draft.wake(&node_key, at),
                None => {}
            }
        }
    }
}

fn evicting(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| evicts(taint))
}

fn evicts(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && taint.key != UNREACHABLE
}

/// When the first of the node's taints has been beside the pod for longer than it bears; `None`: never.
fn leaves_at(pod: &Pod, node: &Node) -> Option<Timestamp> {
    let spec = pod.spec.as_ref()?;
    let scheduled = meta::condition(pod.status.as_ref(), "PodScheduled");
    let since = scheduled.and_then(|scheduled| scheduled.last_transition_time.as_ref());
    let since = since.or(pod.metadata.creation_timestamp.as_ref()).map_or(Timestamp::MIN, |time| time.0);
    let leaves = |taint: &Taint| {
        let seconds = toleration_seconds(spec, taint)?;
        let added = taint.time_added.as_ref().map_or(Timestamp::MIN, |time| time.0);
        Some(seconds_after(since.max(added), seconds))
    };
    evicting(node).filter_map(leaves).min()
}
