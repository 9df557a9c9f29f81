//! An object's way through create, update, status and deletion.

#[allow(dead_code, reason = "each test binary uses its part")]
mod common;

use common::{UID, context, created, decoded, kind};
use serde_json::{Value, json};
use skein_api::decode::{self, Format, Validation};
use skein_api::object::{self, DeleteOptions, Deletion, Propagation, Update};
use skein_api::status::{Reason, Status};

fn deployment(image: &str) -> Value {
    json!({
        "metadata": { "name": "web" },
        "spec": {
            "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": image }] } },
        },
    })
}

fn updated(name: &str, old: &Value, new: Value) -> Result<(Update, Value), Status> {
    let kind = kind(name);
    let mut new = decoded(kind, &new)?;
    let update = object::prepare_update(kind, old, &mut new, &context(kind.namespaced.then_some("default")))?;
    Ok((update, new))
}

#[test]
fn a_new_object_gets_what_only_the_server_can_give() {
    let object = created("ConfigMap", json!({ "metadata": { "generateName": "settings-", "uid": "mine", "managedFields": [] }, "data": { "a": "1" } })).unwrap();
    assert_eq!(
        object,
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "1" },
            "metadata": { "name": "settings-x7k2p", "generateName": "settings-", "namespace": "default", "uid": UID, "creationTimestamp": "2026-01-02T03:04:05Z" },
        })
    );
}

#[test]
fn what_a_client_may_not_say_on_create_is_refused() {
    for (body, code) in [
        (json!({ "metadata": { "name": "a", "resourceVersion": "5" } }), 400),
        (json!({ "metadata": { "name": "a", "namespace": "other" } }), 400),
        (json!({ "kind": "Secret", "metadata": { "name": "a" } }), 400),
        (json!({ "apiVersion": "apps/v1", "metadata": { "name": "a" } }), 400),
        (json!({ "metadata": {} }), 422),
        (json!({ "metadata": { "name": "A" } }), 422),
        (json!({ "metadata": { "name": "a", "labels": { "-": "x" } } }), 422),
        (json!({ "metadata": { "name": "a" }, "data": { "../x": "" } }), 422),
        (json!([]), 400),
        (json!({ "metadata": "x" }), 400),
    ] {
        let error = created("ConfigMap", body.clone()).unwrap_err();
        assert_eq!(error.code(), code, "{body}: {error}");
    }
}

#[test]
fn unknown_and_duplicate_fields_are_named_with_their_paths() {
    let body = br#"{"metadata":{"name":"a"},"spec":{"contaners":[],"containers":[{"name":"c","imgae":"x","name":"c"}]}}"#;
    let expect = [
        "unknown field \"spec.containers[0].imgae\"",
        "unknown field \"spec.contaners\"",
        "duplicate field \"spec.containers[0].name\"",
    ];
    let pods = kind("Pod");
    let warned = decode::decode(pods, body, Format::Json, Validation::Warn).unwrap();
    for text in expect {
        assert!(warned.warnings.iter().any(|warning| warning == text), "{text}: {:?}", warned.warnings);
    }
    assert!(warned.object["spec"].get("contaners").is_none(), "what is unknown is not kept");
    let strict = decode::decode(pods, body, Format::Json, Validation::Strict).unwrap_err();
    assert_eq!(strict.reason(), Reason::BadRequest);
    assert!(strict.message().starts_with(
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field"
    ));
    assert!(decode::decode(pods, body, Format::Json, Validation::Ignore).unwrap().warnings.is_empty());
}

#[test]
fn yaml_says_the_same_as_json() {
    let yaml = b"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: c\n    image: x:1\n    resources: {limits: {cpu: 1, memory: 64Mi}}\n";
    let decoded = decode::decode(kind("Pod"), yaml, Format::Yaml, Validation::Strict).unwrap();
    assert_eq!(decoded.object["spec"]["containers"][0]["resources"]["limits"]["cpu"], "1");
}

#[test]
fn a_wrong_type_is_refused_with_its_path() {
    let error = created("Pod", json!({ "metadata": { "name": "a" }, "spec": { "terminationGracePeriodSeconds": "soon", "containers": [] } })).unwrap_err();
    assert_eq!(error.code(), 400);
    assert!(error.message().contains("spec.terminationGracePeriodSeconds"), "{error}");
}

#[test]
fn an_update_that_changes_nothing_makes_no_event() {
    let old = created("Deployment", deployment("x:1")).unwrap();
    assert_eq!(old["metadata"]["generation"], 1);
    let (update, new) = updated("Deployment", &old, deployment("x:1")).unwrap();
    assert_eq!(update, Update::Unchanged);
    assert_eq!(new, old);
}

#[test]
fn the_generation_counts_changes_of_the_spec_only() {
    let old = created("Deployment", deployment("x:1")).unwrap();
    let (update, new) = updated("Deployment", &old, deployment("x:2")).unwrap();
    assert_eq!((update, &new["metadata"]["generation"]), (Update::Changed, &json!(2)));
    let mut labelled = deployment("x:1");
    labelled["metadata"]["labels"] = json!({ "tier": "front" });
    let (update, new) = updated("Deployment", &old, labelled).unwrap();
    assert_eq!((update, &new["metadata"]["generation"]), (Update::Changed, &json!(1)));
}

#[test]
fn spec_and_status_are_written_apart() {
    let kind = kind("Deployment");
    let old = created("Deployment", deployment("x:1")).unwrap();
    let mut claim = deployment("x:2");
    claim["status"] = json!({ "replicas": 7 });
    let (_, new) = updated("Deployment", &old, claim.clone()).unwrap();
    assert_eq!(new["status"], old["status"]);
    let mut observed = decoded(kind, &claim).unwrap();
    let update = object::prepare_status_update(kind, &old, &mut observed, &context(Some("default"))).unwrap();
    assert_eq!(update, Update::Changed);
    assert_eq!(observed["status"]["replicas"], 7);
    assert_eq!(observed["spec"], old["spec"]);
    assert_eq!(observed["metadata"]["generation"], 1);
}

#[test]
fn what_the_server_owns_cannot_be_changed() {
    let old = created("ConfigMap", json!({ "metadata": { "name": "a" } })).unwrap();
    let mut new = json!({ "metadata": { "name": "a", "creationTimestamp": "2020-01-01T00:00:00Z", "deletionTimestamp": "2020-01-01T00:00:00Z", "generation": 9 }, "data": { "k": "v" } });
    let (_, stored) = updated("ConfigMap", &old, new.clone()).unwrap();
    assert_eq!(stored["metadata"], old["metadata"]);
    new["metadata"]["uid"] = json!("another");
    assert_eq!(updated("ConfigMap", &old, new).unwrap_err().reason(), Reason::Conflict);
    let renamed = json!({ "metadata": { "name": "b" } });
    assert_eq!(updated("ConfigMap", &old, renamed).unwrap_err().reason(), Reason::BadRequest);
}

#[test]
fn immutable_fields_stay() {
    let old = created("Deployment", deployment("x:1")).unwrap();
    let mut new = deployment("x:1");
    new["spec"]["selector"] = json!({ "matchLabels": { "app": "web", "tier": "a" } });
    new["spec"]["template"]["metadata"]["labels"]["tier"] = json!("a");
    let error = updated("Deployment", &old, new).unwrap_err();
    assert!(
        error.message().contains("spec.selector: Invalid value: \"app=web,tier=a\": field is immutable"),
        "{error}"
    );

    let old = created(
        "Secret",
        json!({ "metadata": { "name": "a" }, "immutable": true, "stringData": { "k": "v" } }),
    )
    .unwrap();
    assert_eq!(old["data"]["k"], "dg==");
    let new = json!({ "metadata": { "name": "a" }, "immutable": true, "stringData": { "k": "w" } });
    assert_eq!(updated("Secret", &old, new).unwrap_err().code(), 422);

    let old = created("Service", json!({ "metadata": { "name": "a" }, "spec": { "clusterIP": "10.96.0.7", "ports": [{ "port": 80 }] } })).unwrap();
    let new = json!({ "metadata": { "name": "a" }, "spec": { "clusterIP": "10.96.0.8", "ports": [{ "port": 80 }] } });
    assert_eq!(updated("Service", &old, new).unwrap_err().code(), 422);
}

#[test]
fn an_object_without_finalizers_goes_at_once_and_one_with_waits() {
    let kind = kind("ConfigMap");
    let now = context(None).now;
    let plain = created("ConfigMap", json!({ "metadata": { "name": "a" } })).unwrap();
    assert_eq!(object::prepare_delete(kind, &plain, &DeleteOptions::default(), now), Ok(Deletion::Remove));

    let held = created("ConfigMap", json!({ "metadata": { "name": "a", "finalizers": ["example.com/x"] } }))
        .unwrap();
    let Ok(Deletion::Mark(marked)) = object::prepare_delete(kind, &held, &DeleteOptions::default(), now)
    else {
        panic!("a finalizer holds the object");
    };
    assert!(object::is_deleting(&marked));
    assert_eq!(object::prepare_delete(kind, &marked, &DeleteOptions::default(), now), Ok(Deletion::Underway));
    let freed = json!({ "metadata": { "name": "a" } });
    assert_eq!(updated("ConfigMap", &marked, freed).unwrap().0, Update::Removed);
    let more = json!({ "metadata": { "name": "a", "finalizers": ["example.com/x", "example.com/y"] } });
    assert_eq!(updated("ConfigMap", &marked, more).unwrap_err().reason(), Reason::Invalid);
}

#[test]
fn the_propagation_policy_becomes_a_finalizer() {
    let kind = kind("Deployment");
    let object = created("Deployment", deployment("x:1")).unwrap();
    for (propagation, expect) in [
        (Propagation::Foreground, Some("foregroundDeletion")),
        (Propagation::Orphan, Some("orphan")),
        (Propagation::Background, None),
    ] {
        let options = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
        let deletion = object::prepare_delete(kind, &object, &options, context(None).now).unwrap();
        match (deletion, expect) {
            (Deletion::Mark(marked), Some(finalizer)) => {
                assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
                assert_eq!(marked["metadata"]["generation"], 2);
            }
            (Deletion::Remove, None) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_deletion_of_another_uid_is_a_conflict() {
    let object = created("ConfigMap", json!({ "metadata": { "name": "a" } })).unwrap();
    let options = DeleteOptions { uid: Some("other".into()), ..DeleteOptions::default() };
    let error = object::prepare_delete(kind("ConfigMap"), &object, &options, context(None).now).unwrap_err();
    assert_eq!(error.reason(), Reason::Conflict);
}

#[test]
fn a_pod_on_a_node_gets_time_to_end() {
    let kind = kind("Pod");
    let now = context(None).now;
    let mut pod = created(
        "Pod",
        json!({ "metadata": { "name": "a" }, "spec": { "containers": [{ "name": "c", "image": "x" }] } }),
    )
    .unwrap();
    let delete = |pod: &Value, grace: Option<i64>| {
        let options = DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() };
        object::prepare_delete(kind, pod, &options, now).unwrap()
    };
    assert_eq!(delete(&pod, None), Deletion::Remove, "nothing runs where no node is");
    pod["spec"]["nodeName"] = json!("kitchen");
    let Deletion::Mark(marked) = delete(&pod, None) else { panic!("30 s by default") };
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-02T03:04:35Z");
    assert_eq!(delete(&marked, Some(60)), Deletion::Underway, "a second deletion never slows the first");
    let Deletion::Mark(hurried) = delete(&marked, Some(5)) else { panic!("but may hurry it") };
    assert_eq!(hurried["metadata"]["deletionTimestamp"], "2026-01-02T03:04:10Z");
    assert_eq!(delete(&hurried, Some(0)), Deletion::Remove, "--force");
    pod["status"]["phase"] = json!("Succeeded");
    assert_eq!(delete(&pod, None), Deletion::Remove, "nothing is left to end");
}

#[test]
fn a_namespace_waits_until_it_is_empty() {
    let namespace = created("Namespace", json!({ "metadata": { "name": "shop" } })).unwrap();
    assert_eq!(namespace["status"]["phase"], "Active");
    assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "shop");
    let deletion =
        object::prepare_delete(kind("Namespace"), &namespace, &DeleteOptions::default(), context(None).now);
    let Ok(Deletion::Mark(marked)) = deletion else { panic!("its finalizer holds it") };
    assert_eq!(marked["status"]["phase"], "Terminating");
    assert!(!object::may_vanish(kind("Namespace"), &marked));
}

#[test]
fn delete_options_are_read_from_a_body() {
    let options = DeleteOptions::from_body(Some(&json!({ "gracePeriodSeconds": 0, "propagationPolicy": "Foreground", "preconditions": { "uid": "u" }, "dryRun": ["All"] }))).unwrap();
    let expect = DeleteOptions {
        grace_period_seconds: Some(0),
        uid: Some("u".into()),
        resource_version: None,
        propagation: Some(Propagation::Foreground),
        dry_run: true,
    };
    assert_eq!(options, expect);
    for body in [json!({ "gracePeriodSeconds": "x" }), json!({ "propagationPolicy": "x" }), json!([])] {
        assert!(DeleteOptions::from_body(Some(&body)).is_err(), "{body}");
    }
}

#[test]
fn the_version_is_never_stored() {
    let mut object = json!({ "metadata": { "name": "a" } });
    object::put_resource_version(&mut object, 42);
    assert_eq!(object["metadata"]["resourceVersion"], "42");
    assert_eq!(object::take_resource_version(&mut object), Ok(Some(42)));
    assert_eq!(object, json!({ "metadata": { "name": "a" } }));
    assert!(object::take_resource_version(&mut json!({ "metadata": { "resourceVersion": "x" } })).is_err());
}

#[test]
fn an_object_beyond_the_limit_is_413() {
    let value = "x".repeat(400 * 1024);
    let annotations = json!({ "metadata": { "name": "a", "annotations": { "k": value } } });
    assert_eq!(created("ConfigMap", annotations).unwrap_err().code(), 422);
    let containers: Vec<Value> = (0..10)
        .map(|n| json!({ "name": format!("c{n}"), "image": "x", "env": [{ "name": "A", "value": "x".repeat(200 * 1024) }] }))
        .collect();
    let pod = json!({ "metadata": { "name": "a" }, "spec": { "containers": containers } });
    assert_eq!(created("Pod", pod).unwrap_err().code(), 413);
}

/// Blocks of YAML hold line ends, and encoders leave bits of the last letter set.
#[test]
fn bytes_may_be_written_in_lines_and_are_kept_in_one_way() {
    let yaml = b"metadata: {name: a}\ntype: Opaque\ndata:\n  k: |\n    aGVs\n    bG8=\n  l: YR==\n";
    let decoded = decode::decode(kind("Secret"), yaml, Format::Yaml, Validation::Strict).unwrap();
    assert_eq!(decoded.object["data"], json!({ "k": "aGVsbG8=", "l": "YQ==" }));
    let binary = json!({ "metadata": { "name": "a" }, "binaryData": { "k": "aGVs\r\nbG8=\n" } });
    assert_eq!(created("ConfigMap", binary).unwrap()["binaryData"]["k"], "aGVsbG8=");
    let error =
        created("Secret", json!({ "metadata": { "name": "a" }, "data": { "k": "pass word" } })).unwrap_err();
    assert_eq!(error.code(), 400);
    assert_eq!(
        error.message(),
        "Secret in version \"v1\" cannot be handled as a Secret: data.k: illegal base64 data at input byte 4"
    );
}
