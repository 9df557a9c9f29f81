//! Takes the pods off a node that lives and is to go: each ends in its own time, and one that nobody owns and that
//! is to run always is made anew under its name, never beside the old one.
//!
//! That a pod is to be made anew is a finalizer on it: so it is remembered for as long as the pod takes to end,
//! whatever happens to daemons and leaders meanwhile.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::draft::Draft;
use crate::meta;
use crate::node_health::{successor, unreachable_since};
use crate::pod::is_given_up;
use crate::view::{Changed, Key, Kind};

/// Holds a pod that has ended until another one takes its name.
pub(crate) const FINALIZER: &str = "skein.dev/make-anew";

const WHO: &str = "membership-controller";

/// Asks every pod of the node to end.
pub(crate) fn empty(draft: &mut Draft<'_>, node: &str) {
    let pods: Vec<(Key, Arc<Pod>)> = draft
        .view()
        .pods_on(node)
        .filter(|(_, pod)| !meta::is_ending(&pod.metadata))
        .map(|(key, pod)| (key.clone(), pod.clone()))
        .collect();
    for (key, pod) in pods {
        let text = format!("Node {node} leaves the cluster; the pod ends here");
        draft.together(|draft| {
            if successor(&pod).is_some() {
                draft.edit::<Pod>(&key, |pod| {
                    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
                });
            }
            draft.delete_pod(&key);
            draft.event(&*pod, WHO, false, "Draining", &text);
        });
    }
}

/// Makes those anew that have ended by [`empty`].
pub(crate) fn make_anew(draft: &mut Draft<'_>) {
    for key in marked(draft) {
        let Some(pod) = draft.view().get::<Pod>(&key).cloned() else { continue };
        if !has_ended(draft, &pod) {
            continue;
        }
        let mut before = (*pod).clone();
        before.metadata.finalizers.iter_mut().for_each(|held| held.retain(|one| one != FINALIZER));
        before.metadata.finalizers = before.metadata.finalizers.filter(|held| !held.is_empty());
        // Its phase says that it is over, which it is only here.
        before.status.iter_mut().for_each(|status| status.phase = None);
        match successor(&before) {
            Some(new) => {
                let uid = draft.chance.of(meta::uid(&pod.metadata)).uid();
                draft.together(|draft| {
                    draft.delete(&key);
                    draft.create(new, uid);
                });
            }
            None if before.metadata.finalizers.is_none() => draft.delete(&key),
            // Somebody else holds it as well.
            None => {
                draft.edit::<Pod>(&key, |pod| pod.metadata.finalizers = before.metadata.finalizers);
            }
        }
    }
}

/// Pods that carry the mark and end; a node that is gone may have left some.
fn marked(draft: &Draft<'_>) -> Vec<Key> {
    let is_marked =
        |pod: &Pod| meta::is_ending(&pod.metadata) && meta::has_finalizer(&pod.metadata, FINALIZER);
    let view = draft.view();
    match draft.changed() {
        Changed::Some { keys, .. } if !draft.changed().any_under(Node::PREFIX) => {
            let pods = keys.iter().filter(|key| key.starts_with(Pod::PREFIX));
            pods.filter(|key| view.get::<Pod>(key).is_some_and(|pod| is_marked(pod))).cloned().collect()
        }
        _ => view.all::<Pod>().filter(|(_, pod)| is_marked(pod)).map(|(key, _)| key.clone()).collect(),
    }
}

/// Its node said so, or is not there to say it.
fn has_ended(draft: &Draft<'_>, pod: &Pod) -> bool {
    let node = meta::node_of(pod).and_then(|name| draft.view().named::<Node>("", name));
    is_given_up(pod) || node.is_none_or(|node| unreachable_since(node).is_some())
}
