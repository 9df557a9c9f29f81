//! A Lease for each Node, where clients look for one: `kubectl describe node` asks for it.
//!
//! Nobody renews it, and it names no time: how a node is, is told and judged without the log. Its owner is the Node,
//! so it goes with it.

use k8s_openapi::Resource;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::draft::Draft;
use crate::meta;
use crate::view::{Changed, Key, Kind, Object, Other, View};

const NAMESPACE: &str = "kube-node-lease";
const PREFIX: &str = "coordination.k8s.io/leases/kube-node-lease/";

/// Makes the Leases that are missing.
pub(crate) fn plan(draft: &mut Draft<'_>) {
    for name in touched(draft.view(), draft.changed()) {
        if draft.is_full() {
            return;
        }
        let Some(node) = draft.view().named::<Node>("", &name).cloned() else { continue };
        let key: Key = format!("{PREFIX}{name}").into();
        let has_place = draft.view().named::<Namespace>("", NAMESPACE).is_some();
        if !has_place || meta::is_ending(&node.metadata) || draft.view().stored(&key).is_some() {
            continue;
        }
        let uid = draft.chance.of(&key).uid();
        let owner = OwnerReference {
            api_version: Node::API_VERSION.to_owned(),
            kind: Node::KIND.to_owned(),
            name: name.clone(),
            uid: meta::uid(&node.metadata).to_owned(),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.to_owned()),
            uid: Some(uid),
            creation_timestamp: Some(Time(draft.now)),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        };
        let spec = LeaseSpec { holder_identity: Some(name), ..LeaseSpec::default() };
        let lease = Lease { metadata: metadata.clone(), spec: Some(spec) };
        let json = serde_json::to_value(lease).expect("a lease is made of strings");
        draft.put(key, Object::Other(Arc::new(Other { metadata, json })));
    }
}

/// Names of Nodes that changed, or whose Leases did. All of them when the namespace did.
fn touched(view: &View, changed: &Changed) -> BTreeSet<String> {
    let all = || view.all::<Node>().map(|(_, node)| meta::name(&node.metadata).to_owned()).collect();
    let Changed::Some { keys, .. } = changed else { return all() };
    let namespace = format!("{}/{NAMESPACE}", Namespace::PREFIX);
    if keys.iter().any(|key| **key == *namespace) {
        return all();
    }
    let named = keys.iter().filter(|key| key.starts_with(Node::PREFIX) || key.starts_with(PREFIX));
    named.filter_map(|key| key.rsplit('/').next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn owner(world: &World, name: &str) -> Option<String> {
        let stored = world.view.stored(&format!("{PREFIX}{name}"))?;
        let owners = stored.object.metadata().owner_references.clone().unwrap_or_default();
        Some(owners[0].uid.clone())
    }

    #[test]
    fn a_node_has_a_lease_that_goes_with_it() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.settle();
        let uid = |world: &World| world.node("a").metadata.uid.clone().unwrap();
        assert_eq!(owner(&world, "a"), Some(uid(&world)));
        world.delete(&format!("{PREFIX}a"));
        world.settle();
        assert_eq!(owner(&world, "a"), Some(uid(&world)), "it is made anew");
        world.delete("core/nodes//a");
        world.settle();
        assert_eq!(owner(&world, "a"), None);
        assert!(owner(&world, "b").is_some());
    }
}
