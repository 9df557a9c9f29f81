//! Strategic merge patch: a merge patch in which some lists are maps by a key of their elements.
//!
//! Which lists, by which key, says a table of this module, written after the API reference's
//! "patch strategy" and "patch merge key". All other lists are replaced whole.
//!
//! Directives of a patch:
//! `$patch: replace|delete|merge` in a map; `$patch: delete` in an element of a keyed list, which takes away all of its
//! key; `$patch: replace` in any element of one, by which the patch's other elements are the list;
//! `$retainKeys: [..]`: the map keeps these fields only;
//! `$deleteFromPrimitiveList/<field>: [..]`: these leave the list of plain values;
//! `$setElementOrder/<field>: [..]`: the list's order afterwards; without it that of the patch's list.
//!
//! A key that several elements of the object share (port 53 of UDP and of TCP) means the first of them to what merges.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{Budget, Error};
use crate::kinds::Kind;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

pub(super) fn apply(
    kind: &Kind,
    object: &mut Value,
    patch: &Value,
    budget: &mut Budget,
) -> Result<(), Error> {
    let (Value::Object(fields), Value::Object(changes)) = (object, patch) else {
        return Err(Error::Malformed("a strategic merge patch is an object".into()));
    };
    budget.spend_on(patch)?;
    Merge { kind, budget }.map(fields, changes, "")
}

/// How the elements of a list meet those of a patch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum List {
    /// They do not: the patch's list replaces the other.
    Atomic,
    /// Plain values: those of the patch that are missing are added.
    Set,
    /// Objects: those of equal key are merged.
    Keyed(&'static str),
}

/// The strategy of the list at this path, which names fields only: `spec.containers.ports`.
pub(crate) fn list_strategy(kind: &Kind, path: &str) -> List {
    let (owner, path) = match path.strip_prefix("spec.template.") {
        Some(path) if kind.group == "apps" => ("Pod", path),
        _ => (kind.kind, path),
    };
    match (owner, path) {
        (_, "metadata.ownerReferences") => List::Keyed("uid"),
        (_, "metadata.finalizers") => List::Set,
        (_, "status.conditions") => List::Keyed("type"),
        ("Node", "status.addresses") => List::Keyed("type"),
        ("Node", "spec.podCIDRs") => List::Set,
        ("Service", "spec.ports") => List::Keyed("port"),
        ("ServiceAccount", "secrets") => List::Keyed("name"),
        ("Namespace" | "PersistentVolumeClaim", "spec.finalizers") => List::Atomic,
        ("Pod", path) => pod_strategy(path),
        _ => List::Atomic,
    }
}

fn pod_strategy(path: &str) -> List {
    if let Some((list, field)) = path.strip_prefix("spec.").and_then(|path| path.split_once('.'))
        && matches!(list, "containers" | "initContainers" | "ephemeralContainers")
    {
        return match field {
            "env" => List::Keyed("name"),
            "ports" => List::Keyed("containerPort"),
            "volumeMounts" => List::Keyed("mountPath"),
            "volumeDevices" => List::Keyed("devicePath"),
            _ => List::Atomic,
        };
    }
    match path {
        "spec.containers"
        | "spec.initContainers"
        | "spec.ephemeralContainers"
        | "spec.volumes"
        | "spec.imagePullSecrets"
        | "spec.schedulingGates"
        | "spec.resourceClaims"
        | "status.resourceClaimStatuses" => List::Keyed("name"),
        "spec.hostAliases" | "status.podIPs" | "status.hostIPs" => List::Keyed("ip"),
        "spec.topologySpreadConstraints" => List::Keyed("topologyKey"),
        _ => List::Atomic,
    }
}

struct Merge<'a> {
    kind: &'a Kind,
    budget: &'a mut Budget,
}

impl Merge<'_> {
    fn map(
        &mut self,
        target: &mut Map<String, Value>,
        patch: &Map<String, Value>,
        path: &str,
    ) -> Result<(), Error> {
        match directive(patch)? {
            Directive::Merge => {}
            Directive::Replace => target.clear(),
            Directive::Delete => {
                target.clear();
                return Ok(());
            }
        }
        if let Some(retained) = patch.get(RETAIN_KEYS) {
            let retained: BTreeSet<&str> =
                list_of(RETAIN_KEYS, retained)?.iter().filter_map(Value::as_str).collect();
            target.retain(|field, _| retained.contains(field.as_str()));
        }
        for (field, removed) in patch {
            if let Some(field) = field.strip_prefix(DELETE_FROM) {
                let removed: BTreeSet<String> =
                    list_of(DELETE_FROM, removed)?.iter().map(Value::to_string).collect();
                if let Some(Value::Array(elements)) = target.get_mut(field) {
                    self.budget.spend(elements.len())?;
                    elements.retain(|element| !removed.contains(&element.to_string()));
                }
            }
        }
        let before: BTreeMap<&str, Value> = self.lists_to_order(target, patch)?;
        for (field, change) in patch {
            if !field.starts_with('$') {
                let below = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
                self.field(target, field, change, &below)?;
            }
        }
        for (field, order) in patch {
            if let Some(field) = field.strip_prefix(ORDER)
                && let Some(Value::Array(elements)) = target.get_mut(field)
            {
                let below = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
                let before = before.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                self.budget.spend(elements.len())?;
                *elements = ordered(
                    std::mem::take(elements),
                    list_of(ORDER, order)?,
                    before,
                    list_strategy(self.kind, &below),
                );
            }
        }
        Ok(())
    }

    /// The lists whose order the patch says, as they are before it.
    fn lists_to_order<'p>(
        &mut self,
        target: &Map<String, Value>,
        patch: &'p Map<String, Value>,
    ) -> Result<BTreeMap<&'p str, Value>, Error> {
        let mut lists = BTreeMap::new();
        for field in patch.keys().filter_map(|field| field.strip_prefix(ORDER)) {
            if let Some(list) = target.get(field) {
                self.budget.spend_on(list)?;
                lists.insert(field, list.clone());
            }
        }
        Ok(lists)
    }

    fn field(
        &mut self,
        target: &mut Map<String, Value>,
        field: &str,
        change: &Value,
        path: &str,
    ) -> Result<(), Error> {
        match change {
            Value::Null => {
                target.remove(field);
            }
            Value::Object(changes) => {
                let mut below = match target.remove(field) {
                    Some(Value::Object(fields)) => fields,
                    _ => Map::new(),
                };
                self.map(&mut below, changes, path)?;
                target.insert(field.to_owned(), Value::Object(below));
            }
            Value::Array(changes) => {
                let merged = match target.remove(field) {
                    Some(Value::Array(elements)) => self.list(elements, changes, path)?,
                    _ => self.new_list(changes, path)?,
                };
                target.insert(field.to_owned(), Value::Array(merged));
            }
            plain => {
                target.insert(field.to_owned(), plain.clone());
            }
        }
        Ok(())
    }

    fn list(&mut self, elements: Vec<Value>, changes: &[Value], path: &str) -> Result<Vec<Value>, Error> {
        let strategy = list_strategy(self.kind, path);
        let before = match strategy {
            List::Atomic => return Ok(changes.to_vec()),
            List::Set | List::Keyed(_) => elements.clone(),
        };
        self.budget.spend(elements.len())?;
        let (merged, before) = match strategy {
            List::Keyed(key) => self.keyed_list(elements, changes, key, path)?,
            List::Atomic | List::Set => (set(elements, changes), before),
        };
        Ok(ordered(merged, changes, &before, strategy))
    }

    /// The list, and what of it was there before and stays.
    fn keyed_list(
        &mut self,
        mut elements: Vec<Value>,
        changes: &[Value],
        key: &str,
        path: &str,
    ) -> Result<(Vec<Value>, Vec<Value>), Error> {
        let mut merging: Vec<(&Map<String, Value>, String)> = Vec::new();
        let (mut deleted, mut replaced) = (BTreeSet::new(), false);
        for change in changes {
            let change = change.as_object().ok_or_else(|| {
                Error::Malformed(format!("{path}: each element of the patch must be an object"))
            })?;
            let directive = element_directive(change, path)?;
            if directive == Directive::Replace {
                replaced = true;
                continue;
            }
            let value = change.get(key).filter(|value| !value.is_null()).ok_or_else(|| {
                Error::Malformed(format!("{path}: an element of the patch lacks its merge key {key:?}"))
            })?;
            match directive {
                Directive::Delete => drop(deleted.insert(value.to_string())),
                Directive::Merge | Directive::Replace => merging.push((change, value.to_string())),
            }
        }
        if replaced {
            let whole =
                merging.iter().map(|(change, _)| self.made_of(change, path)).collect::<Result<_, _>>()?;
            return Ok((whole, Vec::new()));
        }
        let identity = |element: &Value| element.get(key).map(Value::to_string);
        elements.retain(|element| identity(element).is_none_or(|value| !deleted.contains(&value)));
        let before = elements.clone();
        let mut places = places(elements.iter().map(|element| identity(element).unwrap_or_default()));
        for (change, value) in merging {
            if let Some(place) = places.get(&value) {
                if let Value::Object(fields) = &mut elements[*place] {
                    self.map(fields, change, path)?;
                }
            } else {
                places.insert(value, elements.len());
                let made = self.made_of(change, path)?;
                elements.push(made);
            }
        }
        Ok((elements, before))
    }

    /// A list that was not there: as it was sent, so that elements of one key stay apart.
    fn new_list(&mut self, changes: &[Value], path: &str) -> Result<Vec<Value>, Error> {
        if list_strategy(self.kind, path) == List::Atomic {
            return Ok(changes.to_vec());
        }
        let mut elements = Vec::new();
        for change in changes {
            match change {
                Value::Object(fields) if element_directive(fields, path)? != Directive::Merge => {}
                Value::Object(fields) => elements.push(self.made_of(fields, path)?),
                plain => elements.push(plain.clone()),
            }
        }
        Ok(elements)
    }

    /// Merged into nothing, so that no directive and no null stays in it.
    fn made_of(&mut self, change: &Map<String, Value>, path: &str) -> Result<Value, Error> {
        let mut fields = Map::new();
        self.map(&mut fields, change, path)?;
        Ok(Value::Object(fields))
    }
}

/// Those of `changes` that are missing join.
fn set(mut elements: Vec<Value>, changes: &[Value]) -> Vec<Value> {
    let mut there: BTreeSet<String> = elements.iter().map(Value::to_string).collect();
    let added = changes.iter().filter(|change| there.insert(change.to_string()));
    elements.extend(added.cloned());
    elements
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Directive {
    Merge,
    Replace,
    Delete,
}

fn directive(patch: &Map<String, Value>) -> Result<Directive, Error> {
    match patch.get(PATCH) {
        None => Ok(Directive::Merge),
        Some(Value::String(text)) if text == "merge" => Ok(Directive::Merge),
        Some(Value::String(text)) if text == "replace" => Ok(Directive::Replace),
        Some(Value::String(text)) if text == "delete" => Ok(Directive::Delete),
        Some(other) => Err(Error::Malformed(format!("unknown patch type {other} in the patch"))),
    }
}

/// The same of an element in a list, which cannot say that lists are merged: they are.
fn element_directive(patch: &Map<String, Value>, path: &str) -> Result<Directive, Error> {
    match directive(patch)? {
        Directive::Merge if patch.contains_key(PATCH) => {
            Err(Error::Malformed(format!("{path}: merging lists cannot yet be specified in the patch")))
        }
        directive => Ok(directive),
    }
}

fn list_of<'v>(directive: &str, value: &'v Value) -> Result<&'v [Value], Error> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| Error::Malformed(format!("the value of {directive:?} must be a list")))
}

/// The elements in the asked order. One that the order does not name keeps its place relative to those
/// that it stood before on the server.
fn ordered(elements: Vec<Value>, order: &[Value], before: &[Value], list: List) -> Vec<Value> {
    let identity = |element: &Value| match list {
        List::Keyed(key) => element.get(key).unwrap_or(&Value::Null).to_string(),
        List::Atomic | List::Set => element.to_string(),
    };
    let wanted = places(order.iter().map(identity));
    let server = places(before.iter().map(identity));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        elements.into_iter().partition(|element| wanted.contains_key(&identity(element)));
    named.sort_by_key(|element| wanted.get(&identity(element)).copied());

    let mut result = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for element in named {
        if let Some(own) = server.get(&identity(&element)) {
            while let Some(other) =
                others.next_if(|other| server.get(&identity(other)).is_some_and(|place| place < own))
            {
                result.push(other);
            }
        }
        result.push(element);
    }
    result.extend(others);
    result
}

fn places(identities: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut places = BTreeMap::new();
    for (place, identity) in identities.enumerate() {
        places.entry(identity).or_insert(place);
    }
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::kinds;

    fn patched(kind: &str, object: Value, patch: Value) -> Result<Value, Error> {
        let group = if kind == "Deployment" { "apps" } else { "" };
        let mut object = object;
        apply(kinds::by_kind(group, kind).unwrap(), &mut object, &patch, &mut Budget::default())
            .map(|()| object)
    }

    fn check_pod(spec: Value, patch: Value, expect: Value) {
        let found = patched("Pod", json!({ "spec": spec }), json!({ "spec": patch.clone() }));
        assert_eq!(found, Ok(json!({ "spec": expect })), "{patch}");
    }

    #[test]
    fn lists_with_a_merge_key_merge_by_it() {
        let spec = json!({ "containers": [{ "name": "a", "image": "x", "env": [{ "name": "K", "value": "1" }] }, { "name": "b" }] });
        check_pod(
            spec.clone(),
            json!({ "containers": [{ "name": "a", "env": [{ "name": "L", "value": "2" }, { "name": "K", "value": "3" }] }] }),
            // In the order of the patch.
            json!({ "containers": [{ "name": "a", "image": "x", "env": [{ "name": "L", "value": "2" }, { "name": "K", "value": "3" }] }, { "name": "b" }] }),
        );
        check_pod(
            spec.clone(),
            json!({ "containers": [{ "name": "b", "$patch": "delete" }] }),
            json!({ "containers": [spec["containers"][0].clone()] }),
        );
        check_pod(
            spec.clone(),
            json!({ "containers": [{ "$patch": "replace" }, { "name": "c" }] }),
            json!({ "containers": [{ "name": "c" }] }),
        );
        check_pod(
            spec,
            json!({ "containers": [{ "name": "a", "$patch": "replace", "image": "y" }, { "name": "c" }] }),
            json!({ "containers": [{ "name": "c" }] }),
        );
    }

    /// Port 53 is served over UDP and over TCP by most name servers.
    #[test]
    fn elements_that_share_a_key_are_deleted_together_and_kept_apart() {
        let port = |protocol: &str| json!({ "port": 53, "protocol": protocol });
        let ports = json!([port("UDP"), { "port": 9153 }, port("TCP")]);
        let check = |before: &Value, patch: Value, expect: Value| {
            let service = json!({ "spec": { "ports": before } });
            let found = patched("Service", service, json!({ "spec": patch.clone() })).unwrap();
            assert_eq!(found["spec"]["ports"], expect, "{patch}");
        };
        check(&ports, json!({ "ports": [{ "port": 53, "$patch": "delete" }] }), json!([{ "port": 9153 }]));
        // What is deleted and sent again is new.
        check(
            &ports,
            json!({ "ports": [{ "port": 53, "name": "dns" }, { "port": 53, "$patch": "delete" }] }),
            json!([{ "port": 53, "name": "dns" }, { "port": 9153 }]),
        );
        check(
            &Value::Null,
            json!({ "ports": [port("UDP"), port("TCP")] }),
            json!([port("UDP"), port("TCP")]),
        );
        check(
            &Value::Null,
            json!({ "ports": [{ "port": 1, "$patch": "delete" }, { "port": 2, "name": null }] }),
            json!([{ "port": 2 }]),
        );
        // The first of them is what a change means.
        check(
            &ports,
            json!({ "ports": [{ "port": 53, "name": "dns" }] }),
            json!([{ "port": 53, "protocol": "UDP", "name": "dns" }, port("TCP"), { "port": 9153 }]),
        );
    }

    #[test]
    fn a_list_takes_the_order_of_the_one_that_was_sent() {
        check_pod(
            json!({ "containers": [{ "name": "a" }, { "name": "b" }] }),
            json!({ "containers": [{ "name": "new" }, { "name": "a", "image": "y" }] }),
            json!({ "containers": [{ "name": "new" }, { "name": "a", "image": "y" }, { "name": "b" }] }),
        );
        let finalizers = |list: Value| json!({ "metadata": { "finalizers": list } });
        assert_eq!(
            patched("Pod", finalizers(json!(["a", "b"])), finalizers(json!(["c", "b"]))),
            Ok(finalizers(json!(["c", "a", "b"])))
        );
    }

    #[test]
    fn lists_without_one_are_replaced() {
        check_pod(
            json!({ "tolerations": [{ "key": "a" }], "containers": [{ "name": "a", "args": ["1"], "ports": [{ "containerPort": 80, "name": "http" }] }] }),
            json!({ "tolerations": [{ "key": "b" }], "containers": [{ "name": "a", "args": ["2"], "ports": [{ "containerPort": 80, "protocol": "TCP" }] }] }),
            json!({ "tolerations": [{ "key": "b" }], "containers": [{ "name": "a", "args": ["2"], "ports": [{ "containerPort": 80, "name": "http", "protocol": "TCP" }] }] }),
        );
    }

    #[test]
    fn each_directive_does_what_it_says() {
        check_pod(
            json!({ "securityContext": { "runAsUser": 1, "runAsGroup": 2 } }),
            json!({ "securityContext": { "$patch": "replace", "runAsUser": 3 } }),
            json!({ "securityContext": { "runAsUser": 3 } }),
        );
        check_pod(
            json!({ "volumes": [{ "name": "v", "emptyDir": {} }] }),
            json!({ "volumes": [{ "name": "v", "$retainKeys": ["name", "configMap"], "configMap": { "name": "c" } }] }),
            json!({ "volumes": [{ "name": "v", "configMap": { "name": "c" } }] }),
        );
        check_pod(
            json!({ "containers": [{ "name": "server" }, { "name": "a" }, { "name": "b" }] }),
            json!({ "$setElementOrder/containers": [{ "name": "c" }, { "name": "b" }, { "name": "a" }], "containers": [{ "name": "c" }] }),
            json!({ "containers": [{ "name": "c" }, { "name": "server" }, { "name": "b" }, { "name": "a" }] }),
        );
        let object =
            json!({ "metadata": { "finalizers": ["a", "b"] }, "spec": { "containers": [{ "name": "a" }] } });
        assert_eq!(
            patched(
                "Pod",
                json!({ "metadata": object["metadata"] }),
                json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["b", "c"] } })
            ),
            Ok(json!({ "metadata": { "finalizers": ["b", "c"] } }))
        );
        for patch in [
            json!({ "$patch": "x" }),
            json!({ "$retainKeys": 1 }),
            json!([]),
            json!({ "spec": { "containers": [{ "image": "x" }] } }),
            json!({ "spec": { "containers": [1] } }),
        ]
        .into_iter()
        .chain(
            [json!("merge"), json!("x")]
                .map(|directive| json!({ "spec": { "containers": [{ "name": "a", "$patch": directive }] } })),
        ) {
            assert!(
                matches!(patched("Pod", object.clone(), patch.clone()), Err(Error::Malformed(_))),
                "{patch}"
            );
        }
    }

    #[test]
    fn a_deployment_merges_its_template_as_a_pod() {
        let object = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "a", "image": "x" }] } }, "strategy": { "type": "RollingUpdate", "rollingUpdate": {} } } });
        let patch = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "a", "image": "y" }] } }, "strategy": { "$retainKeys": ["type"], "type": "Recreate" } } });
        assert_eq!(
            patched("Deployment", object, patch),
            Ok(
                json!({ "spec": { "template": { "spec": { "containers": [{ "name": "a", "image": "y" }] } }, "strategy": { "type": "Recreate" } } })
            )
        );
    }

    #[test]
    fn null_removes_a_field_and_leaves_nothing_in_a_new_one() {
        let patch = json!({ "metadata": { "labels": { "a": null } }, "spec": { "nodeSelector": { "x": null, "y": "1" } } });
        assert_eq!(
            patched("Pod", json!({ "metadata": { "labels": { "a": "1", "b": "2" } } }), patch),
            Ok(json!({ "metadata": { "labels": { "b": "2" } }, "spec": { "nodeSelector": { "y": "1" } } }))
        );
    }

    prop_compose! {
        fn containers()(images in prop::collection::btree_map("[a-e]", ("[x-z]", prop::collection::btree_map("[K-N]", "[0-9]", 0..4)), 0..5)) -> Vec<Value> {
            images.into_iter().map(|(name, (image, env))| {
                let env: Vec<Value> = env.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
                json!({ "name": name, "image": image, "env": env })
            }).collect()
        }
    }

    /// The difference as a client computes it: what changed of each element, gone ones by directive, the order after it.
    fn diff(old: &[Value], new: &[Value]) -> Value {
        let env = |container: &Value| container["env"].as_array().cloned().unwrap_or_default();
        let mut changes: Vec<Value> = new
            .iter()
            .map(|container| {
                let mut change = container.clone();
                let before =
                    old.iter().find(|old| old["name"] == container["name"]).map(env).unwrap_or_default();
                let is_gone = |known: &Value| env(container).iter().all(|new| new["name"] != known["name"]);
                let gone = before.iter().filter(|known| is_gone(known));
                let gone = gone.map(|known| json!({ "name": known["name"], "$patch": "delete" }));
                change["env"] = env(container).into_iter().chain(gone).collect();
                change["$setElementOrder/env"] =
                    env(container).iter().map(|variable| json!({ "name": variable["name"] })).collect();
                change
            })
            .collect();
        for gone in old.iter().filter(|old| new.iter().all(|new| new["name"] != old["name"])) {
            changes.push(json!({ "name": gone["name"], "$patch": "delete" }));
        }
        let order: Vec<Value> = new.iter().map(|container| json!({ "name": container["name"] })).collect();
        json!({ "spec": { "containers": changes, "$setElementOrder/containers": order } })
    }

    proptest! {
        #[test]
        fn the_difference_of_two_objects_makes_one_of_the_other(old in containers(), new in containers().prop_shuffle()) {
            let patch = diff(&old, &new);
            prop_assert_eq!(patched("Pod", json!({ "spec": { "containers": old } }), patch), Ok(json!({ "spec": { "containers": new } })));
        }
    }
}
