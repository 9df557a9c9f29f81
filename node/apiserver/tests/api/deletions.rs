//! DELETE of one object and of many; eviction.

use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Client, DEPLOYMENTS, PODS, config_map, deployment, labelled, pod};

async fn with_bound_pod() -> Client {
    let client = Client::new();
    client.post(PODS, &pod("web")).await.ok();
    client
        .post(&format!("{PODS}/web/binding"), &json!({ "target": { "kind": "Node", "name": "n1" } }))
        .await
        .ok();
    client
}

#[tokio::test]
async fn an_object_without_ties_goes_at_once_and_the_answer_names_its_uid() {
    let client = Client::new();
    let object = client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let deleted = client.delete(&format!("{CONFIG_MAPS}/a"), &Value::Null).await.ok();
    assert_eq!(
        (&deleted["status"], &deleted["details"]["uid"]),
        (&json!("Success"), &object["metadata"]["uid"])
    );
    assert_eq!(client.delete(&format!("{CONFIG_MAPS}/a"), &Value::Null).await.code, 404);
}

#[tokio::test]
async fn a_deletion_may_be_bound_to_uid_and_version() {
    let client = Client::new();
    let object = client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let (uid, version) = (&object["metadata"]["uid"], &object["metadata"]["resourceVersion"]);
    let path = format!("{CONFIG_MAPS}/a");
    for preconditions in [json!({ "uid": "another" }), json!({ "uid": uid, "resourceVersion": "1" })] {
        let refused = client.delete(&path, &json!({ "preconditions": preconditions })).await;
        assert_eq!((refused.code, refused.reason()), (409, "Conflict"));
    }
    client.delete(&path, &json!({ "preconditions": { "uid": uid, "resourceVersion": version } })).await.ok();
}

#[tokio::test]
async fn a_pod_on_a_node_gets_its_grace_and_a_forced_one_does_not() {
    let client = with_bound_pod().await;
    let path = format!("{PODS}/web");
    let going = client.delete(&path, &json!({ "gracePeriodSeconds": 7 })).await.ok();
    assert_eq!(
        (&going["kind"], &going["metadata"]["deletionGracePeriodSeconds"]),
        (&json!("Pod"), &json!(7))
    );
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    // Once more changes nothing; a shorter time hurries it; none at all ends it.
    let again = client.delete(&path, &Value::Null).await;
    assert_eq!(again.version().to_string(), going["metadata"]["resourceVersion"].as_str().unwrap());
    let sooner = client.delete(&format!("{path}?gracePeriodSeconds=2"), &Value::Null).await.ok();
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 2);
    client.delete(&path, &json!({ "gracePeriodSeconds": 0 })).await.ok();
    assert_eq!(client.get(&path).await.code, 404);
    // A pod that has no node has nothing to finish.
    client.post(PODS, &pod("idle")).await.ok();
    client.delete(&format!("{PODS}/idle"), &Value::Null).await.ok();
    assert_eq!(client.get(&format!("{PODS}/idle")).await.code, 404);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let client = Client::new();
    let mut body = config_map("a");
    body["metadata"]["finalizers"] = json!(["example.org/hold"]);
    client.post(CONFIG_MAPS, &body).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    let held = client.delete(&path, &Value::Null).await.ok();
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    client.patch(&path, "merge", &json!({ "metadata": { "finalizers": null } })).await.ok();
    assert_eq!(client.get(&path).await.code, 404);
}

#[tokio::test]
async fn the_policy_says_what_becomes_of_dependents() {
    let client = Client::new();
    for (policy, finalizers) in [("Foreground", json!(["foregroundDeletion"])), ("Orphan", json!(["orphan"]))]
    {
        let name = policy.to_lowercase();
        client.post(DEPLOYMENTS, &deployment(&name)).await.ok();
        let path = format!("{DEPLOYMENTS}/{name}");
        let held = client.delete(&path, &json!({ "propagationPolicy": policy })).await.ok();
        assert_eq!(held["metadata"]["finalizers"], finalizers);
    }
    client.post(DEPLOYMENTS, &deployment("web")).await.ok();
    let path = format!("{DEPLOYMENTS}/web");
    assert_eq!(client.delete(&format!("{path}?propagationPolicy=Sideways"), &Value::Null).await.code, 400);
    client.delete(&format!("{path}?propagationPolicy=Background"), &Value::Null).await.ok();
    assert_eq!(client.get(&path).await.code, 404);
}

#[tokio::test]
async fn a_namespace_terminates_and_goes_when_it_is_finalized() {
    let client = Client::new();
    client.post("/api/v1/namespaces", &json!({ "metadata": { "name": "brief" } })).await.ok();
    let path = "/api/v1/namespaces/brief";
    let mut going = client.delete(path, &Value::Null).await.ok();
    assert_eq!(going["status"]["phase"], "Terminating");
    going["spec"]["finalizers"] = json!([]);
    client.put(&format!("{path}/finalize"), &going).await.ok();
    assert_eq!(client.get(path).await.code, 404);
    let kept = client.delete("/api/v1/namespaces/default", &Value::Null).await;
    assert_eq!((kept.code, kept.reason()), (403, "Forbidden"));
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let client = Client::new();
    for (name, app) in [("a", "web"), ("b", "db"), ("c", "web")] {
        client.post(CONFIG_MAPS, &labelled(name, app)).await.ok();
    }
    let gone = client.delete(&format!("{CONFIG_MAPS}?labelSelector=app%3Dweb"), &Value::Null).await;
    assert_eq!(gone.names(), ["a", "c"]);
    assert_eq!(client.get(CONFIG_MAPS).await.names(), ["b"]);
    assert_eq!(client.delete("/api/v1/namespaces", &Value::Null).await.code, 405);
}
