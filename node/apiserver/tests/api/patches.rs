//! The three forms of PATCH.

use http::Method;
use serde_json::json;

use crate::harness::{CONFIG_MAPS, Client, DEPLOYMENTS, config_map, deployment, request};

#[tokio::test]
async fn each_form_changes_what_it_names() {
    let client = Client::new();
    client.post(DEPLOYMENTS, &deployment("web")).await.ok();
    let path = format!("{DEPLOYMENTS}/web");
    let template = |image: &str| json!({ "spec": { "template": { "spec": { "containers": [{ "name": "main", "image": image }] } } } });
    let strategic = client.patch(&path, "strategic-merge", &template("skein.dev/tiny:2")).await.ok();
    let container = &strategic["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "skein.dev/tiny:2");
    assert_eq!(strategic["metadata"]["generation"], 2);
    let merge = client
        .patch(&path, "merge", &json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "replicas": 4 } }))
        .await
        .ok();
    assert_eq!((&merge["metadata"]["labels"]["a"], &merge["spec"]["replicas"]), (&json!("b"), &json!(4)));
    let json_patch = json!([
        { "op": "test", "path": "/spec/replicas", "value": 4 },
        { "op": "replace", "path": "/spec/replicas", "value": 5 },
        { "op": "remove", "path": "/metadata/labels/a" },
    ]);
    let patched = client.patch(&path, "json", &json_patch).await.ok();
    assert_eq!(patched["spec"]["replicas"], 5);
    let failed = client.patch(&path, "json", &json_patch).await;
    assert_eq!((failed.code, failed.reason()), (422, "Invalid"));
}

#[tokio::test]
async fn a_patch_that_changes_nothing_keeps_the_version() {
    let client = Client::new();
    let version = client.post(CONFIG_MAPS, &config_map("a")).await.version();
    let same = client.patch(&format!("{CONFIG_MAPS}/a"), "merge", &json!({ "data": { "a": "1" } })).await;
    assert_eq!(same.version(), version);
}

#[tokio::test]
async fn a_patch_is_computed_anew_when_somebody_else_was_faster() {
    let client = Client::new();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let mut left = 4;
    client.cluster.before_propose(move |cluster, writes| {
        if left > 0 {
            left -= 1;
            cluster.put(&writes[0].key, &format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a","namespace":"default"}},"data":{{"theirs":"{left}"}}}}"#));
        }
    });
    let patched =
        client.patch(&format!("{CONFIG_MAPS}/a"), "merge", &json!({ "data": { "ours": "1" } })).await;
    assert_eq!(patched.ok()["data"], json!({ "theirs": "0", "ours": "1" }));
}

#[tokio::test]
async fn a_patch_may_say_which_version_it_is_for() {
    let client = Client::new();
    let version = client.post(CONFIG_MAPS, &config_map("a")).await.version();
    let path = format!("{CONFIG_MAPS}/a");
    let patch = json!({ "metadata": { "resourceVersion": version.to_string() }, "data": { "b": "2" } });
    client.patch(&path, "merge", &patch).await.ok();
    let late = client.patch(&path, "merge", &patch).await;
    assert_eq!((late.code, late.reason()), (409, "Conflict"));
    let test = json!([{ "op": "test", "path": "/metadata/resourceVersion", "value": version.to_string() }]);
    assert_eq!(client.patch(&path, "json", &test).await.code, 422);
}

#[tokio::test]
async fn unknown_fields_of_a_patch_are_treated_as_asked() {
    let client = Client::new();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let patch = json!({ "dataa": { "b": "2" } });
    let strict = client.patch(&format!("{CONFIG_MAPS}/a?fieldValidation=Strict"), "merge", &patch).await;
    assert_eq!(strict.code, 400);
    let warned = client.patch(&format!("{CONFIG_MAPS}/a"), "merge", &patch).await;
    assert_eq!(warned.header("warning"), "299 - \"unknown field \\\"dataa\\\"\"");
}

#[tokio::test]
async fn other_forms_are_refused_by_name() {
    let client = Client::new();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    for (media, hint) in [
        ("application/apply-patch+yaml", "apply without --server-side"),
        ("application/json", "strategic-merge-patch"),
    ] {
        let refused = client.send(request(Method::PATCH, &path, media, "{}")).await;
        assert_eq!((refused.code, refused.reason()), (415, "UnsupportedMediaType"), "{media}");
        assert!(refused.message().contains(hint), "{}", refused.message());
    }
    assert_eq!(client.patch(&format!("{CONFIG_MAPS}/b"), "merge", &json!({})).await.code, 404);
    let broken = client.send(request(Method::PATCH, &path, "application/merge-patch+json", "{")).await;
    assert_eq!(broken.code, 400);
}
