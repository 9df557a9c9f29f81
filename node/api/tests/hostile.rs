//! Whatever a user sends, it is refused or taken, and nothing panics.

#[allow(dead_code, reason = "each test binary uses its part")]
mod common;

use common::context;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use skein_api::decode::{self, Format, Validation};
use skein_api::kinds::KINDS;
use skein_api::object::{self, DeleteOptions};
use skein_api::patch::{self, Type};
use skein_api::selector::{FieldSelector, Selector};
use skein_api::table::{self, Include};
use skein_api::{binding, scale};

/// Names that mean something somewhere, so that random objects get past the first check.
fn field() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "metadata",
        "name",
        "generateName",
        "namespace",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
        "deletionTimestamp",
        "spec",
        "status",
        "containers",
        "initContainers",
        "image",
        "env",
        "ports",
        "resources",
        "limits",
        "requests",
        "cpu",
        "memory",
        "volumes",
        "volumeMounts",
        "tolerations",
        "selector",
        "matchLabels",
        "template",
        "strategy",
        "type",
        "replicas",
        "data",
        "stringData",
        "taints",
        "conditions",
        "phase",
        "$patch",
        "$setElementOrder/containers",
        "$retainKeys",
        "livenessProbe",
        "httpGet",
        "port",
        "clusterIP",
        "affinity",
        "target",
    ])
    .prop_map(str::to_owned)
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(vec![
            "a",
            "1Gi",
            "-5m",
            "default",
            "2026-01-01T00:00:00Z",
            "delete",
            "25%",
            "None"
        ])
        .prop_map(Value::from),
    ]
}

fn json() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(6, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(field(), inner, 0..6)
                .prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

/// Like [`json`], but in the shape of an object, so that typed rules are reached.
fn object() -> impl Strategy<Value = Value> {
    (json(), json(), json(), json()).prop_map(|(spec, status, data, labels)| {
        json!({ "metadata": { "name": "a", "labels": labels }, "spec": spec, "status": status, "data": data })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_json_is_created_or_refused(value in prop_oneof![json(), object()], other in object()) {
        for kind in KINDS {
            let context = context(kind.namespaced.then_some("default"));
            let mut created = value.clone();
            let made = object::prepare_create(kind, &mut created, &context);
            let _ = decode::shape(kind, value.clone(), Vec::new(), Validation::Warn);
            let old = if made.is_ok() { created } else { json!({ "metadata": { "name": "a", "namespace": "default" } }) };
            let _ = object::prepare_update(kind, &old, &mut other.clone(), &context);
            let _ = object::prepare_status_update(kind, &old, &mut other.clone(), &context);
            let _ = object::prepare_delete(kind, &old, &DeleteOptions::default(), context.now);
            let _ = table::table(kind, &[value.clone(), old], json!({}), "v1", Include::Object, true, context.now);
        }
        let _ = DeleteOptions::from_body(Some(&value));
        let _ = object::take_resource_version(&mut value.clone());
    }

    #[test]
    fn what_was_created_is_taken_back_unchanged(spec in object()) {
        for kind in KINDS {
            let context = context(kind.namespaced.then_some("default"));
            let mut created = spec.clone();
            if object::prepare_create(kind, &mut created, &context).is_ok() {
                let update = object::prepare_update(kind, &created, &mut created.clone(), &context);
                prop_assert_eq!(update, Ok(object::Update::Unchanged), "{:?} {}", kind, created);
            }
        }
    }

    #[test]
    fn any_patch_is_applied_or_refused(target in object(), change in json()) {
        for kind in KINDS {
            for type_ in [Type::Json, Type::Merge, Type::Strategic] {
                let _ = patch::apply(kind, type_, &target, &change);
            }
        }
    }

    #[test]
    fn any_scale_and_binding_is_taken_or_refused(value in json()) {
        let deployments = common::kind("Deployment");
        let pod = json!({ "metadata": { "name": "a" }, "spec": {} });
        let _ = scale::of(&value);
        let _ = scale::set(deployments, &pod, &value);
        let _ = binding::bind(&pod, &value, context(None).now);
    }

    #[test]
    fn any_selector_is_read_or_refused(text in prop_oneof![".{0,20}", "[a-z!=,() ]{0,24}"]) {
        let _ = Selector::parse(&text).map(|selector| selector.matches_object(&json!({ "metadata": { "labels": { "a": "b" } } })));
        for kind in KINDS {
            let _ = FieldSelector::parse(kind, &text).map(|selector| selector.matches(&json!({ "metadata": { "name": "a" } })));
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
        for format in [Format::Json, Format::Yaml] {
            let _ = decode::parse(&body, format);
        }
    }
}

#[test]
fn a_body_nested_without_end_is_refused() {
    let deep = "[".repeat(100_000);
    assert_eq!(decode::parse(deep.as_bytes(), Format::Json).unwrap_err().code(), 400);
    assert_eq!(decode::parse(deep.as_bytes(), Format::Yaml).unwrap_err().code(), 400);
}

#[test]
fn yaml_that_multiplies_itself_is_refused() {
    let mut yaml = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for n in 1..12 {
        let of = n - 1;
        yaml.push_str(&format!(
            "a{n}: &a{n} [*a{of},*a{of},*a{of},*a{of},*a{of},*a{of},*a{of},*a{of},*a{of},*a{of}]\n"
        ));
    }
    assert_eq!(decode::parse(yaml.as_bytes(), Format::Yaml).unwrap_err().code(), 400);
}
