//! OpenAPI documents: what there is, what may be done with it, and what its fields mean.
//!
//! `kubectl explain` prints them. kubectl before 1.27 validates by the document of version 2, from 1.27 on it
//! looks in that of version 3 whether the server validates. Both compute strategic patches by what the
//! schemas say of lists, so the schemas say what our own patches do.

mod document;
mod protobuf;
mod schemas;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

pub use self::document::Document;
use self::schemas::{KIND_EXTENSION, REF};
use crate::discovery::{KUBERNETES_MINOR, group_versions};
use crate::kinds::{KINDS, Kind};
use crate::patch;

/// What an old kubectl asks for at `/openapi/v2`.
pub const V2_ACCEPT: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// What it is answered: with dots, as it cannot parse the form it asks with.
pub const V2_CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The documents are made when they are first asked for: most nodes are never asked.
static V3: LazyLock<BTreeMap<String, Document>> = LazyLock::new(|| {
    let all = schemas::all();
    let of = |(group, version)| {
        (root(group, version), Document::new(v3_value(group, version, &all).to_string().as_bytes()))
    };
    group_versions().into_iter().map(of).collect()
});

static V2: LazyLock<[Document; 2]> = LazyLock::new(|| {
    let document = v2_value();
    [document.to_string().into_bytes(), protobuf::encode(&document)].map(|plain| Document::new(&plain))
});

/// The document of version 2 for those who ask for JSON.
pub fn v2_json() -> &'static Document {
    &V2[0]
}

/// The document of version 2 in protobuf.
pub fn v2_protobuf() -> &'static Document {
    &V2[1]
}

/// The answer at `/openapi/v3`: where the document of each group and version is. The hash in the address
/// lets clients keep a document for good.
pub fn v3_index() -> Value {
    let entry = |(path, document): (&String, &Document)| {
        let url = format!("/openapi/v3/{path}?hash={}", document.hash());
        (path.clone(), json!({ "serverRelativeURL": url }))
    };
    json!({ "paths": V3.iter().map(entry).collect::<Map<_, _>>() })
}

/// The answer at `/openapi/v3/api/v1` and `/openapi/v3/apis/<group>/<version>`.
pub fn v3_document(group: &str, version: &str) -> Option<&'static Document> {
    V3.get(&root(group, version))
}

fn v3_value(group: &str, version: &str, all: &Map<String, Value>) -> Value {
    let mut paths = Map::new();
    let mut roots = vec![DELETE_OPTIONS.to_owned(), STATUS.to_owned()];
    for path in KINDS.iter().filter(|kind| kind.group == group && kind.version == version).flat_map(paths_of)
    {
        roots.extend([path.schema(), path.list_schema()]);
        let mut item =
            json!({ "parameters": path.path_parameters().into_iter().map(v3_parameter).collect::<Vec<_>>() });
        for operation in path.operations() {
            let mut held = operation.common();
            held["parameters"] = operation.query_parameters().map(v3_parameter).collect();
            let content = |media: &str, schema: &str| {
                (media.to_owned(), json!({ "schema": { "$ref": format!("{REF}{schema}") } }))
            };
            if let Some((media, schema)) = operation.body() {
                let content: Map<_, _> = media.iter().map(|media| content(media, &schema)).collect();
                held["requestBody"] = json!({ "content": content, "required": operation.method != "delete" });
            }
            let answer: Map<_, _> = [content("application/json", &operation.answer())].into_iter().collect();
            held["responses"] = json!({ operation.code(): { "description": "OK", "content": answer } });
            item[operation.method] = held;
        }
        paths.insert(path.text.clone(), item);
    }
    let schemas = schemas::reachable(all, roots);
    json!({ "openapi": "3.0.0", "info": info(), "paths": paths, "components": { "schemas": schemas } })
}

fn v2_value() -> Value {
    let mut paths = Map::new();
    for path in KINDS.iter().flat_map(paths_of) {
        let mut item =
            json!({ "parameters": path.path_parameters().into_iter().map(v2_parameter).collect::<Vec<_>>() });
        let reference = |schema: &str| json!({ "$ref": format!("#/definitions/{schema}") });
        for operation in path.operations() {
            let mut held = operation.common();
            let mut parameters: Vec<Value> = operation.query_parameters().map(v2_parameter).collect();
            if let Some((media, schema)) = operation.body() {
                held["consumes"] = json!(media);
                let required = operation.method != "delete";
                parameters.push(json!({ "name": "body", "in": "body", "required": required, "schema": reference(&schema) }));
            }
            held["produces"] = json!(["application/json"]);
            held["parameters"] = parameters.into();
            let answer = reference(&operation.answer());
            held["responses"] = json!({ operation.code(): { "description": "OK", "schema": answer } });
            item[operation.method] = held;
        }
        paths.insert(path.text.clone(), item);
    }
    let mut definitions = Value::Object(schemas::all());
    schemas::for_version_2(&mut definitions);
    json!({ "swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions })
}

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// One path of a kind: its collection, one object, or what lies below an object.
struct PathOf {
    kind: &'static Kind,
    text: String,
    named: bool,
    verbs: &'static [&'static str],
    /// Group, version and kind of what travels there.
    carries: [&'static str; 3],
}

fn paths_of(kind: &'static Kind) -> Vec<PathOf> {
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("/{}{scope}/{}", root(kind.group, kind.version), kind.plural);
    let one = format!("{collection}/{{name}}");
    let carries = [kind.group, kind.version, kind.kind];
    let mut paths = vec![PathOf { kind, text: collection, named: false, verbs: kind.verbs, carries }];
    if !kind.is_question() {
        paths.push(PathOf { kind, text: one.clone(), named: true, verbs: kind.verbs, carries });
    }
    // A log is text and has no schema.
    paths.extend(kind.subresources.iter().filter(|below| below.name != "log").map(|below| PathOf {
        kind,
        text: format!("{one}/{}", below.name),
        named: true,
        verbs: below.verbs,
        carries: [below.group, below.version, below.kind],
    }));
    paths
}

/// Name, place, and whether the request cannot be without it.
type Parameter = (&'static str, &'static str, bool);

impl PathOf {
    fn schema(&self) -> String {
        let [group, version, kind] = self.carries;
        schemas::name_of(group, version, kind)
    }

    fn list_schema(&self) -> String {
        schemas::name_of(self.kind.group, self.kind.version, &self.kind.list_kind())
    }

    fn path_parameters(&self) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        if self.named {
            parameters.push(("name", "path", true));
        }
        if self.kind.namespaced {
            parameters.push(("namespace", "path", true));
        }
        parameters
    }

    fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        let below = self.carries[2] != self.kind.kind || self.verbs != self.kind.verbs;
        let offered: &[(&str, &str)] = match (self.named, below) {
            (false, _) => &[("get", "list"), ("post", "create"), ("delete", "deletecollection")],
            (true, false) => &[("get", "get"), ("put", "update"), ("patch", "patch"), ("delete", "delete")],
            (true, true) => &[("get", "get"), ("put", "update"), ("patch", "patch"), ("post", "create")],
        };
        let offered = offered.iter().filter(|(_, verb)| self.verbs.contains(verb));
        offered.map(|(method, verb)| Operation { path: self, method, verb })
    }
}

/// A method of a path, and the verb it is.
struct Operation<'a> {
    path: &'a PathOf,
    method: &'static str,
    verb: &'static str,
}

impl Operation<'_> {
    fn common(&self) -> Value {
        // Upstream names the action by the method where there is one for it.
        let action = match self.verb {
            "create" => "post",
            "update" => "put",
            verb => verb,
        };
        let [group, version, kind] = self.path.carries;
        let below = self.path.text.rsplit('/').next().filter(|_| self.path.named).unwrap_or_default();
        let below = if below == "{name}" { String::new() } else { capital(below) };
        let scope = if self.path.kind.namespaced { "Namespaced" } else { "" };
        let of = format!("{}{}", capital(self.path.kind.group), capital(self.path.kind.version));
        json!({
            "operationId": format!("{action}{of}{scope}{}{below}", self.path.kind.kind),
            "x-kubernetes-action": action,
            KIND_EXTENSION: { "group": group, "version": version, "kind": kind },
        })
    }

    fn query_parameters(&self) -> impl Iterator<Item = Parameter> + use<> {
        let names: &[&str] = match self.verb {
            "create" | "update" | "patch" => &["dryRun", "fieldManager", "fieldValidation"],
            "delete" => &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"],
            "deletecollection" => &["dryRun", "fieldSelector", "labelSelector", "propagationPolicy"],
            "list" => &[
                "allowWatchBookmarks",
                "continue",
                "fieldSelector",
                "labelSelector",
                "limit",
                "resourceVersion",
                "resourceVersionMatch",
                "sendInitialEvents",
                "timeoutSeconds",
                "watch",
            ],
            _ => &[],
        };
        names.iter().map(|name| (*name, "query", false))
    }

    /// The forms a body may have, and its schema.
    fn body(&self) -> Option<(&'static [&'static str], String)> {
        match self.verb {
            "create" | "update" => Some((&["application/json", "application/yaml"], self.path.schema())),
            "patch" => Some((patch::MEDIA_TYPES, self.path.schema())),
            "delete" | "deletecollection" => Some((&["application/json"], DELETE_OPTIONS.to_owned())),
            _ => None,
        }
    }

    fn code(&self) -> &'static str {
        if self.verb == "create" { "201" } else { "200" }
    }

    fn answer(&self) -> String {
        match self.verb {
            "list" => self.path.list_schema(),
            "delete" | "deletecollection" => STATUS.to_owned(),
            _ => self.path.schema(),
        }
    }
}

fn v3_parameter((name, place, required): Parameter) -> Value {
    let mut parameter =
        json!({ "name": name, "in": place, "schema": { "type": "string", "uniqueItems": true } });
    if required {
        parameter["required"] = true.into();
    }
    parameter
}

fn v2_parameter((name, place, required): Parameter) -> Value {
    let mut parameter = json!({ "name": name, "in": place, "type": "string", "uniqueItems": true });
    if required {
        parameter["required"] = true.into();
    }
    parameter
}

/// A word as part of an operation's id: `Apps`, `Core` for the group without name.
fn capital(word: &str) -> String {
    let first = word.split('.').next().unwrap_or_default();
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
    use std::collections::BTreeSet;

    use super::*;

    fn v3(group: &str, version: &str) -> Value {
        serde_json::from_slice(&v3_document(group, version).unwrap().plain()).unwrap()
    }

    #[test]
    fn kubectl_finds_field_validation_for_every_kind() {
        for kind in KINDS {
            let document = v3(kind.group, kind.version);
            let paths = document["paths"].as_object().unwrap();
            let finds = |method: &str| {
                paths.values().any(|item| {
                    item[method][KIND_EXTENSION]["kind"] == kind.kind
                        && item[method]["parameters"].as_array().is_some_and(|parameters| {
                            parameters.iter().any(|parameter| parameter["name"] == "fieldValidation")
                        })
                })
            };
            assert_eq!(finds("patch"), kind.verbs.contains(&"patch"), "{kind:?}");
            assert_eq!(finds("post"), kind.verbs.contains(&"create"), "{kind:?}");
        }
        assert!(v3_document("none", "v1").is_none());
    }

    #[test]
    fn every_document_is_whole() {
        let mut ids = BTreeSet::new();
        for (group, version) in group_versions() {
            let document = v3(group, version);
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let text = document.to_string();
            for reference in text.split(&format!("\"{REF}")).skip(1) {
                let name = reference.split('"').next().unwrap();
                assert!(schemas.contains_key(name), "{group}: {name}");
            }
            for item in document["paths"].as_object().unwrap().values() {
                for id in item.as_object().unwrap().values().filter_map(|held| held["operationId"].as_str()) {
                    assert!(ids.insert(id.to_owned()), "{id} is twice there");
                }
            }
        }
        let old = v2_value();
        assert_eq!(old["swagger"], "2.0");
        for reference in old.to_string().split("\"#/definitions/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(old["definitions"][name].is_object(), "{name}");
        }
    }

    #[test]
    fn the_index_names_a_document_for_every_group_and_its_hash() {
        let index = v3_index();
        for (path, group) in [("api/v1", ""), ("apis/apps/v1", "apps")] {
            let hash = v3_document(group, "v1").unwrap().hash();
            assert_eq!(index["paths"][path]["serverRelativeURL"], format!("/openapi/v3/{path}?hash={hash}"));
        }
    }

    #[test]
    fn the_documents_are_small_on_the_wire() {
        // What a kubectl fetches before its first apply, and what a node keeps once it was asked.
        let all: usize = V3.values().chain(V2.iter()).map(|document| document.gzip().len()).sum();
        assert!(all < 500 << 10, "{all} bytes");
    }
}
