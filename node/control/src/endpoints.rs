//! Who answers for service `default/kubernetes`: every node that is there, since each serves the API.
//!
//! Services of users have no endpoints yet: nothing carries their traffic.

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Namespace, Node, Service,
};
use k8s_openapi::api::discovery::v1::{self as discovery, Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::draft::Draft;
use crate::meta;
use crate::node_health::unreachable_since;
use crate::view::{Changed, Key, Kind, Object, Other, View};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";
const PORT_NAME: &str = "https";

const SLICE: &str = "discovery.k8s.io/endpointslices/default/kubernetes";
const ENDPOINTS: &str = "core/endpoints/default/kubernetes";

/// Brings both forms of the service's endpoints up to date: the slice, and the older one that kubectl before
/// 1.31 reads.
pub(crate) fn plan(draft: &mut Draft<'_>) {
    if !touched(draft.changed()) || draft.view().named::<Service>(NAMESPACE, NAME).is_none() {
        return;
    }
    if draft.view().named::<Namespace>("", NAMESPACE).is_none() {
        return;
    }
    let serving = serving(draft.view());
    // A slice has one list of ports for all, so nodes on another port than most have one of their own.
    let mut kept = BTreeSet::new();
    for (at, (port, addresses)) in by_port(&serving).into_iter().enumerate() {
        let key: Key = if at == 0 { SLICE.into() } else { format!("{SLICE}-{port}").into() };
        put(draft, &key, slice(&key, port, &addresses));
        kept.insert(key);
    }
    let is_ours = |key: &Key| {
        let port = key.strip_prefix(SLICE).and_then(|rest| rest.strip_prefix('-'));
        **key == *SLICE || port.is_some_and(|port| port.parse::<u16>().is_ok())
    };
    let old: Vec<Key> =
        draft.view().keys_under(SLICE).filter(|key| is_ours(key) && !kept.contains(*key)).cloned().collect();
    for key in old {
        draft.delete(&key);
    }
    put(draft, &ENDPOINTS.into(), endpoints(&serving));
}

fn touched(changed: &Changed) -> bool {
    match changed {
        Changed::All => true,
        Changed::Some { keys, .. } => keys.iter().any(|key| {
            key.starts_with(Node::PREFIX)
                || key.starts_with(SLICE)
                || matches!(&**key, ENDPOINTS | "core/services/default/kubernetes")
        }),
    }
}

/// Address and port of each node that is ready, in the order of addresses.
fn serving(view: &View) -> BTreeMap<String, i32> {
    let ready = view
        .all::<Node>()
        .filter(|(_, node)| unreachable_since(node).is_none() && meta::node_is(node, "Ready"));
    let address = |node: &Node| {
        let port = meta::api_port(node).unwrap_or(i32::from(meta::API_PORT));
        Some((meta::internal_ips(node).next()?.to_owned(), port))
    };
    ready.filter_map(|(_, node)| address(node)).collect()
}

/// The ports with their addresses, the port that most have first.
fn by_port(serving: &BTreeMap<String, i32>) -> Vec<(i32, Vec<&str>)> {
    let mut ports: BTreeMap<i32, Vec<&str>> = BTreeMap::new();
    for (address, port) in serving {
        ports.entry(*port).or_default().push(address);
    }
    let mut ports: Vec<(i32, Vec<&str>)> = ports.into_iter().collect();
    ports.sort_by_key(|(port, addresses)| (std::cmp::Reverse(addresses.len()), *port));
    ports
}

fn slice(key: &Key, port: i32, addresses: &[&str]) -> EndpointSlice {
    let endpoint = |address: &&str| Endpoint {
        addresses: vec![(*address).to_owned()],
        conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
        ..Endpoint::default()
    };
    let name = key.rsplit('/').next().unwrap_or_default();
    let mut metadata = metadata(name);
    metadata.labels = Some(BTreeMap::from([("kubernetes.io/service-name".to_owned(), NAME.to_owned())]));
    EndpointSlice {
        metadata,
        address_type: family(addresses).to_owned(),
        endpoints: Some(addresses.iter().map(endpoint).collect()),
        ports: Some(vec![discovery::EndpointPort {
            name: Some(PORT_NAME.to_owned()),
            port: Some(port),
            protocol: Some("TCP".to_owned()),
            ..discovery::EndpointPort::default()
        }]),
    }
}

fn family(addresses: &[&str]) -> &'static str {
    if addresses.iter().any(|address| address.contains(':')) { "IPv6" } else { "IPv4" }
}

fn endpoints(serving: &BTreeMap<String, i32>) -> Endpoints {
    let subsets = by_port(serving).into_iter().map(|(port, addresses)| EndpointSubset {
        addresses: Some(
            addresses
                .into_iter()
                .map(|address| EndpointAddress { ip: address.to_owned(), ..EndpointAddress::default() })
                .collect(),
        ),
        ports: Some(vec![EndpointPort {
            name: Some(PORT_NAME.to_owned()),
            port,
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }]),
        ..EndpointSubset::default()
    });
    let subsets: Vec<EndpointSubset> = subsets.collect();
    let mut metadata = metadata(NAME);
    // Whoever makes slices of such objects leaves this one alone: its slice is there.
    metadata.labels =
        Some(BTreeMap::from([("endpointslice.kubernetes.io/skip-mirror".to_owned(), "true".to_owned())]));
    Endpoints { metadata, subsets: Some(subsets).filter(|subsets| !subsets.is_empty()) }
}

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), namespace: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() }
}

/// Writes the object if it says anything else than what is there; its identity and what others added to its
/// metadata stay.
fn put(draft: &mut Draft<'_>, key: &Key, object: impl Serialize) {
    let mut json = serde_json::to_value(object).expect("endpoints are made of strings and numbers");
    let mut metadata: ObjectMeta =
        serde_json::from_value(json["metadata"].clone()).expect("written from metadata");
    match draft.view().stored(key) {
        Some(held) => {
            let wanted = metadata.labels.take();
            metadata = held.object.metadata().clone();
            metadata.labels.get_or_insert_default().extend(wanted.unwrap_or_default());
        }
        None => {
            metadata.uid = Some(draft.chance.of(key).uid());
            metadata.creation_timestamp = Some(Time(draft.now));
        }
    }
    json["metadata"] = serde_json::to_value(&metadata).expect("metadata is made of strings and numbers");
    let object = Object::Other(Arc::new(Other { metadata, json }));
    if draft.view().stored(key).is_none_or(|held| held.object != object) {
        draft.put(key.clone(), object);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::world::World;

    fn stored(world: &World, key: &str) -> Value {
        match world.view.stored(key).map(|stored| &stored.object) {
            Some(Object::Other(other)) => other.json.clone(),
            other => panic!("{key}: {other:?}"),
        }
    }

    fn addresses(world: &World, key: &str) -> Vec<String> {
        let slice = stored(world, key);
        let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints.iter().map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned()).collect()
    }

    fn serve(world: &mut World, node: &str, address: &str, port: i32) {
        let key = format!("core/nodes//{node}");
        world.edit::<Node>(&key, |node| {
            let status = node.status.get_or_insert_default();
            status.addresses =
                serde_json::from_value(json!([{ "type": "InternalIP", "address": address }])).unwrap();
            status.daemon_endpoints =
                serde_json::from_value(json!({ "kubeletEndpoint": { "Port": port } })).unwrap();
        });
    }

    #[test]
    fn every_node_that_is_there_answers_for_the_api() {
        let mut world = World::with_nodes(&["a", "b", "c"]);
        for (node, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")] {
            serve(&mut world, node, address, 6443);
        }
        world.settle();
        assert_eq!(addresses(&world, SLICE), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        let old = stored(&world, ENDPOINTS);
        assert_eq!(old["subsets"][0]["addresses"].as_array().map(Vec::len), Some(3));
        let uid = stored(&world, SLICE)["metadata"]["uid"].clone();

        world.lose("b");
        world.settle();
        assert_eq!(addresses(&world, SLICE), ["10.0.0.1", "10.0.0.3"]);
        assert_eq!(stored(&world, SLICE)["metadata"]["uid"], uid);
    }

    #[test]
    fn a_node_on_a_port_of_its_own_has_a_slice_of_its_own() {
        let mut world = World::with_nodes(&["a", "b", "c"]);
        for (node, address, port) in
            [("a", "10.0.0.1", 6443), ("b", "10.0.0.2", 7443), ("c", "10.0.0.3", 6443)]
        {
            serve(&mut world, node, address, port);
        }
        world.settle();
        let own = format!("{SLICE}-7443");
        assert_eq!(addresses(&world, SLICE), ["10.0.0.1", "10.0.0.3"]);
        assert_eq!(addresses(&world, &own), ["10.0.0.2"]);
        serve(&mut world, "b", "10.0.0.2", 6443);
        world.settle();
        assert_eq!(addresses(&world, SLICE).len(), 3);
        assert!(world.view.stored(&own).is_none());
    }

    #[test]
    fn what_somebody_deleted_or_changed_comes_back() {
        let mut world = World::with_nodes(&["a"]);
        serve(&mut world, "a", "10.0.0.1", 6443);
        world.settle();
        for key in [SLICE, ENDPOINTS] {
            let before = stored(&world, key);
            world.delete(key);
            world.settle();
            let after = stored(&world, key);
            assert_eq!((&before["endpoints"], &before["subsets"]), (&after["endpoints"], &after["subsets"]));
        }
    }
}
