//! The schema of every type that objects are made of, by the name upstream gives it.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::document::unpacked;
use crate::kinds::{KINDS, Kind, SCALE_KIND};
use crate::patch::{List, list_strategy};

/// Written by `build.rs`.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schemas.json.gz"));

/// What kubectl finds a kind's schema by.
pub(super) const KIND_EXTENSION: &str = "x-kubernetes-group-version-kind";
const STRATEGY: &str = "x-kubernetes-patch-strategy";
const MERGE_KEY: &str = "x-kubernetes-patch-merge-key";

/// Maps whose fields exclude each other: what a patch does not name goes.
const RETAIN_KEYS: &[(&str, &str)] = &[("Deployment", "spec.strategy"), ("Pod", "spec.volumes")];

pub(super) const REF: &str = "#/components/schemas/";

const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

/// The name of the schema of this kind: `io.k8s.api.core.v1.Pod`.
pub(super) fn name_of(group: &str, version: &str, kind: &str) -> String {
    let group = match group {
        "" => "core",
        // Upstream keeps this group's types elsewhere.
        "apiextensions.k8s.io" => {
            return format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}");
        }
        group => group.split('.').next().unwrap_or_default(),
    };
    format!("io.k8s.api.{group}.{version}.{kind}")
}

/// All schemas, as version 3 of OpenAPI writes them.
pub(super) fn all() -> Map<String, Value> {
    let mut all: Map<String, Value> =
        serde_json::from_slice(&unpacked(PACKED)).expect("the build wrote schemas as an object");
    for kind in KINDS.iter().chain([&SCALE_KIND]) {
        let name = name_of(kind.group, kind.version, kind.kind);
        let list = list_of(&name, kind);
        if let Some(schema) = all.get_mut(&name) {
            schema[KIND_EXTENSION] = extension(kind, kind.kind);
            // Our types cannot be without; whoever writes a manifest may leave it to the defaults.
            not_required(schema, "metadata");
        }
        all.insert(name_of(kind.group, kind.version, &kind.list_kind()), list);
        say_strategies(&mut all, kind);
    }
    put(
        &mut all,
        INT_OR_STRING,
        json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] }),
    );
    put(&mut all, QUANTITY, json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }));
    all
}

/// The schema of a list of these objects, which our types do not have.
fn list_of(item: &str, kind: &Kind) -> Value {
    let text = |description: &str| json!({ "description": description, "type": "string" });
    let list = kind.list_kind();
    json!({
        "description": format!("{list} is a list of {}", kind.plural),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": text("The version of the schema of this list."),
            "kind": text("What this is: the name of the kind with List."),
            "metadata": { "$ref": format!("{REF}{LIST_META}") },
            "items": {
                "description": format!("The {}.", kind.plural),
                "type": "array",
                "items": { "$ref": format!("{REF}{item}") },
            },
        },
        KIND_EXTENSION: extension(kind, &list),
    })
}

fn extension(kind: &Kind, named: &str) -> Value {
    json!([{ "group": kind.group, "version": kind.version, "kind": named }])
}

/// Those of `all` that the roots lead to.
pub(super) fn reachable(all: &Map<String, Value>, roots: Vec<String>) -> Map<String, Value> {
    let mut found = Map::new();
    let mut open = roots;
    while let Some(name) = open.pop() {
        let Some(schema) = all.get(&name).filter(|_| !found.contains_key(&name)) else { continue };
        references(schema, &mut open);
        found.insert(name, schema.clone());
    }
    found
}

/// The schema as version 2 writes it: a reference stands alone, and nothing is one of several types.
pub(super) fn for_version_2(schema: &mut Value) {
    match schema {
        Value::Array(elements) => elements.iter_mut().for_each(for_version_2),
        Value::Object(fields) => {
            if let Some(only) = fields.remove("allOf").and_then(|all| all.get(0)?.get("$ref").cloned()) {
                fields.insert("$ref".into(), only);
            }
            if fields.remove("oneOf").is_some() {
                fields.insert("type".into(), "string".into());
            }
            if let Some(Value::String(reference)) = fields.get_mut("$ref") {
                *reference = reference.replace(REF, "#/definitions/");
            }
            fields.values_mut().for_each(for_version_2);
        }
        _ => {}
    }
}

fn references(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Array(elements) => elements.iter().for_each(|element| references(element, found)),
        Value::Object(fields) => {
            if let Some(name) =
                fields.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix(REF))
            {
                found.push(name.to_owned());
            }
            fields.values().for_each(|value| references(value, found));
        }
        _ => {}
    }
}

/// Gives a schema another type, and leaves its description.
fn put(all: &mut Map<String, Value>, name: &str, mut schema: Value) {
    if let Some(known) = all.get_mut(name) {
        schema["description"] = known["description"].clone();
        *known = schema;
    }
}

fn not_required(schema: &mut Value, field: &str) {
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|name| name != field);
        if required.is_empty()
            && let Some(fields) = schema.as_object_mut()
        {
            fields.remove("required");
        }
    }
}

/// Says of each list in the kind's objects how a strategic patch treats it: clients compute patches by that,
/// and must see it as the server does.
fn say_strategies(all: &mut Map<String, Value>, kind: &Kind) {
    let mut open = vec![(name_of(kind.group, kind.version, kind.kind), String::new())];
    let mut seen = BTreeSet::new();
    while let Some((name, path)) = open.pop() {
        // Wherever a type stands in a kind, its lists merge alike; and some types hold themselves.
        if !seen.insert(name.clone()) {
            continue;
        }
        let Some(Value::Object(properties)) =
            all.get_mut(&name).and_then(|schema| schema.get_mut("properties"))
        else {
            continue;
        };
        for (field, schema) in properties {
            let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
            say_strategy(schema, kind, &path);
            let below = [&schema["allOf"][0], &schema["items"]];
            let below = below.iter().find_map(|below| below["$ref"].as_str()?.strip_prefix(REF));
            open.extend(below.map(|below| (below.to_owned(), path)));
        }
    }
}

fn say_strategy(schema: &mut Value, kind: &Kind, path: &str) {
    let retain = RETAIN_KEYS.iter().any(|(of, field)| *of == kind.kind && *field == path);
    let list = if schema["type"] == "array" { list_strategy(kind, path) } else { List::Atomic };
    let (strategy, key) = match (list, retain) {
        (List::Atomic, false) => return,
        (List::Atomic, true) => ("retainKeys", None),
        (List::Set, _) => ("merge", None),
        (List::Keyed(key), false) => ("merge", Some(key)),
        (List::Keyed(key), true) => ("merge,retainKeys", Some(key)),
    };
    // The same type in a pod and in a template: the first kind that knows more has said it.
    if schema[STRATEGY].is_null() || retain {
        schema[STRATEGY] = strategy.into();
    }
    if let Some(key) = key {
        schema[MERGE_KEY] = key.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_and_every_reference_leads_to_one() {
        let all = all();
        for kind in KINDS.iter().chain([&SCALE_KIND]) {
            let name = name_of(kind.group, kind.version, kind.kind);
            let schema = all.get(&name).unwrap_or_else(|| panic!("{name} has no schema; add it to build.rs"));
            assert_eq!(schema[KIND_EXTENSION][0]["kind"], kind.kind);
        }
        let mut names = Vec::new();
        all.values().for_each(|schema| references(schema, &mut names));
        for name in names {
            assert!(all.contains_key(&name), "{name}");
        }
    }

    #[test]
    fn lists_say_how_patches_merge_them() {
        let all = all();
        let said = |name: &str, field: &str| {
            let property = &all[name]["properties"][field];
            let text = |field: &str| property[field].as_str().unwrap_or_default().to_owned();
            (text(STRATEGY), text(MERGE_KEY))
        };
        for (name, field, strategy, key) in [
            ("io.k8s.api.core.v1.PodSpec", "containers", "merge", "name"),
            ("io.k8s.api.core.v1.PodSpec", "volumes", "merge,retainKeys", "name"),
            ("io.k8s.api.core.v1.PodSpec", "tolerations", "", ""),
            ("io.k8s.api.core.v1.Container", "ports", "merge", "containerPort"),
            ("io.k8s.api.core.v1.Container", "env", "merge", "name"),
            ("io.k8s.api.core.v1.ServiceSpec", "ports", "merge", "port"),
            ("io.k8s.api.apps.v1.DeploymentSpec", "strategy", "retainKeys", ""),
            ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers", "merge", ""),
            ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences", "merge", "uid"),
        ] {
            assert_eq!(said(name, field), (strategy.to_owned(), key.to_owned()), "{name}.{field}");
        }
    }

    #[test]
    fn version_2_has_references_and_types_of_its_own() {
        let mut all = all();
        all.values_mut().for_each(for_version_2);
        let pod = &all["io.k8s.api.core.v1.Pod"]["properties"];
        assert_eq!(pod["spec"]["$ref"], "#/definitions/io.k8s.api.core.v1.PodSpec");
        assert!(pod["spec"]["description"].is_string());
        assert_eq!(all[INT_OR_STRING]["type"], "string");
        assert_eq!(all[INT_OR_STRING]["format"], "int-or-string");
    }
}
