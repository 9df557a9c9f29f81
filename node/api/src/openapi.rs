//! OpenAPI documents, as much as kubectl needs to trust the server with validation.
//!
//! From 1.27 on kubectl looks in the v3 document of a group whether PATCH or POST of the kind takes the
//! query parameter `fieldValidation`; before, it wants a v2 document in protobuf and takes an empty one.
//! There are no schemas: a document that offered half of them would make kubectl compute wrong patches
//! from it, where without one it uses what it was built with.

use serde_json::{Map, Value, json};

use crate::discovery::{KUBERNETES_MINOR, group_versions};
use crate::kinds::{KINDS, Kind};

/// What an old kubectl asks for at `/openapi/v2`.
pub const V2_ACCEPT: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// What it is answered: with dots, as it cannot parse the form it asks with.
pub const V2_CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The v2 document in protobuf: field 1 of `openapi.v2.Document`, `swagger`, a text of three bytes.
pub const V2_DOCUMENT: &[u8] = b"\x0a\x032.0";

/// The v2 document for those who ask for JSON.
pub fn v2_json() -> Value {
    json!({ "swagger": "2.0", "info": info(), "paths": {} })
}

/// The answer at `/openapi/v3`: where the document of each group and version is.
pub fn v3_index() -> Value {
    let mut paths = Map::new();
    for (group, version) in group_versions() {
        let path = root(group, version);
        let url = json!({ "serverRelativeURL": format!("/openapi/v3/{path}") });
        paths.insert(path, url);
    }
    json!({ "paths": paths })
}

/// The answer at `/openapi/v3/api/v1` and `/openapi/v3/apis/<group>/<version>`.
pub fn v3_document(group: &str, version: &str) -> Option<Value> {
    let mut paths = Map::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group && kind.version == version) {
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{}{scope}/{}", root(group, version), kind.plural);
        let one = format!("{collection}/{{name}}");
        paths.insert(collection, operations(kind, COLLECTION, kind.namespaced, false));
        if !kind.is_question() {
            paths.insert(one, operations(kind, ONE, kind.namespaced, true));
        }
    }
    if paths.is_empty() {
        return None;
    }
    Some(json!({ "openapi": "3.0.0", "info": info(), "paths": paths, "components": { "schemas": {} } }))
}

/// Method of HTTP, verb of Kubernetes, and what upstream calls the action.
type Operation = (&'static str, &'static str, &'static str);

const COLLECTION: &[Operation] = &[
    ("get", "list", "list"),
    ("post", "create", "post"),
    ("delete", "deletecollection", "deletecollection"),
];

const ONE: &[Operation] = &[
    ("get", "get", "get"),
    ("put", "update", "put"),
    ("patch", "patch", "patch"),
    ("delete", "delete", "delete"),
];

fn operations(kind: &Kind, offered: &[Operation], namespaced: bool, named: bool) -> Value {
    let path_parameter = |name: &str| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "uniqueItems": true } });
    let mut parameters = Vec::new();
    if named {
        parameters.push(path_parameter("name"));
    }
    if namespaced {
        parameters.push(path_parameter("namespace"));
    }
    let mut item = json!({ "parameters": parameters });
    for (method, _, action) in offered.iter().filter(|(_, verb, _)| kind.verbs.contains(verb)) {
        item[*method] = json!({
            "operationId": format!("{action}{}{}", capital(kind.group), kind.kind),
            "parameters": query_parameters(method),
            "responses": { "200": { "description": "OK" } },
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": { "group": kind.group, "version": kind.version, "kind": kind.kind },
        });
    }
    item
}

fn query_parameters(method: &str) -> Vec<Value> {
    let names: &[&str] = match method {
        "post" | "put" | "patch" => &["dryRun", "fieldManager", "fieldValidation"],
        "delete" => &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
        _ => &[],
    };
    names.iter().map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } })).collect()
}

/// `apps` as part of an operation's id: `Apps`.
fn capital(group: &str) -> String {
    let first = group.split('.').next().unwrap_or_default();
    let mut letters = first.chars();
    match letters.next() {
        Some(letter) => letter.to_ascii_uppercase().to_string() + letters.as_str(),
        None => "Core".into(),
    }
}

/// `api/v1`, `apis/apps/v1`: a group's version in paths.
pub(crate) fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn info() -> Value {
    json!({ "title": "Kubernetes", "version": format!("v1.{KUBERNETES_MINOR}.0") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_finds_field_validation_for_every_kind() {
        for kind in KINDS {
            let document = v3_document(kind.group, kind.version).unwrap();
            let paths = document["paths"].as_object().unwrap();
            let finds = |method: &str| {
                paths.values().any(|item| {
                    item[method]["x-kubernetes-group-version-kind"]["kind"] == kind.kind
                        && item[method]["parameters"].as_array().is_some_and(|parameters| {
                            parameters.iter().any(|parameter| parameter["name"] == "fieldValidation")
                        })
                })
            };
            assert_eq!(finds("patch"), kind.verbs.contains(&"patch"), "{kind:?}");
            assert!(finds("post"), "{kind:?}");
        }
        assert!(v3_document("none", "v1").is_none());
    }

    #[test]
    fn the_index_names_a_document_for_every_group() {
        let index = v3_index();
        assert_eq!(index["paths"]["api/v1"]["serverRelativeURL"], "/openapi/v3/api/v1");
        assert_eq!(index["paths"]["apis/apps/v1"]["serverRelativeURL"], "/openapi/v3/apis/apps/v1");
    }

    #[test]
    fn the_old_document_is_a_message_with_one_text() {
        assert_eq!(V2_DOCUMENT, [0x0a, 3, b'2', b'.', b'0']);
    }
}
