//! Creating, reading and replacing one object.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Client, DEPLOYMENTS, PODS, config_map, deployment, pod, request};

#[tokio::test]
async fn what_was_created_is_read_back_with_its_version() {
    let client = Client::new();
    let created = client.post(CONFIG_MAPS, &config_map("a")).await;
    assert_eq!(created.code, 201);
    let (version, created) = (created.version(), created.ok());
    assert_eq!(created["metadata"]["namespace"], "default");
    assert!(created["metadata"]["uid"].is_string() && created["metadata"]["creationTimestamp"].is_string());
    let read = client.get(&format!("{CONFIG_MAPS}/a")).await;
    assert_eq!(read.version(), version);
    assert_eq!(read.value, created);
    // The store holds no version of its own: it would be wrong after the next write.
    let stored = client.cluster.value("core/configmaps/default/a").unwrap();
    assert_eq!(stored["metadata"]["resourceVersion"], Value::Null);
}

#[tokio::test]
async fn a_name_is_given_once() {
    let client = Client::new();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let again = client.post(CONFIG_MAPS, &config_map("a")).await;
    assert_eq!((again.code, again.reason()), (409, "AlreadyExists"));
    assert_eq!(again.message(), "configmaps \"a\" already exists");
}

#[tokio::test]
async fn of_many_who_create_the_same_name_at_once_one_succeeds() {
    let client = Client::new();
    let body = config_map("a");
    let tries = (0..20).map(|_| client.post(CONFIG_MAPS, &body));
    let replies = futures::future::join_all(tries).await;
    assert_eq!(replies.iter().filter(|reply| reply.code == 201).count(), 1);
    assert!(replies.iter().all(|reply| [201, 409].contains(&reply.code)));
}

#[tokio::test]
async fn a_generated_name_that_is_taken_is_drawn_again() {
    let client = Client::new();
    let body = json!({ "metadata": { "generateName": "job-" } });
    let first = client.post(CONFIG_MAPS, &body).await.ok();
    let name = first["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("job-") && name.len() == "job-".len() + 5, "{name}");
    // Somebody takes the very name, between looking and writing.
    let mut taken = Vec::new();
    let (seen, mut done) = (std::sync::Arc::new(std::sync::Mutex::new(Vec::new())), false);
    let names = seen.clone();
    client.cluster.before_propose(move |cluster, writes| {
        names.lock().unwrap().push(writes[0].key.clone());
        if !done {
            cluster.put(&writes[0].key, r#"{"metadata":{"name":"x"}}"#);
            done = true;
        }
    });
    let second = client.post(CONFIG_MAPS, &body).await.ok();
    taken.extend(seen.lock().unwrap().clone());
    assert_eq!(taken.len(), 2);
    assert_ne!(taken[0], taken[1]);
    assert!(taken[1].ends_with(second["metadata"]["name"].as_str().unwrap()));
}

#[tokio::test]
async fn nothing_is_created_in_a_namespace_that_is_not_there_or_goes() {
    let client = Client::new();
    let missing = client.post("/api/v1/namespaces/nowhere/configmaps", &config_map("a")).await;
    assert_eq!((missing.code, missing.message()), (404, "namespaces \"nowhere\" not found"));
    client.post("/api/v1/namespaces", &json!({ "metadata": { "name": "brief" } })).await.ok();
    let inside = "/api/v1/namespaces/brief/configmaps";
    client.post(inside, &config_map("a")).await.ok();
    client.delete("/api/v1/namespaces/brief", &Value::Null).await.ok();
    let late = client.post(inside, &config_map("b")).await;
    assert_eq!((late.code, late.reason()), (403, "Forbidden"));
    assert!(late.message().contains("being terminated"), "{}", late.message());
}

#[tokio::test]
async fn a_namespace_that_goes_while_an_object_is_created_wins() {
    let client = Client::new();
    client.post("/api/v1/namespaces", &json!({ "metadata": { "name": "brief" } })).await.ok();
    client.cluster.before_propose(|cluster, writes| {
        if writes[0].key.starts_with("core/configmaps/") {
            cluster.remove("core/namespaces//brief");
        }
    });
    let late = client.post("/api/v1/namespaces/brief/configmaps", &config_map("a")).await;
    assert_eq!(late.code, 404);
    assert!(client.cluster.value("core/configmaps/brief/a").is_none());
}

#[tokio::test]
async fn a_dry_run_checks_everything_and_writes_nothing() {
    let client = Client::new();
    let path = format!("{CONFIG_MAPS}?dryRun=All");
    let shown = client.post(&path, &config_map("a")).await;
    assert_eq!(shown.code, 201);
    assert_eq!(client.get(&format!("{CONFIG_MAPS}/a")).await.code, 404);
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    assert_eq!(client.post(&path, &config_map("a")).await.code, 409);
    let other = json!({ "metadata": { "name": "a" }, "data": { "b": "2" } });
    assert_eq!(
        client.put(&format!("{CONFIG_MAPS}/a?dryRun=All"), &other).await.ok()["data"],
        json!({ "b": "2" })
    );
    client.delete(&format!("{CONFIG_MAPS}/a?dryRun=All"), &Value::Null).await.ok();
    client.delete(&format!("{CONFIG_MAPS}/a"), &json!({ "dryRun": ["All"] })).await.ok();
    client.delete(&format!("{CONFIG_MAPS}?dryRun=All"), &Value::Null).await.ok();
    let misspelled = client.delete(&format!("{CONFIG_MAPS}/a"), &json!({ "dryRun": ["all"] })).await;
    assert_eq!(misspelled.code, 422);
    assert_eq!(client.get(&format!("{CONFIG_MAPS}/a")).await.ok()["data"], json!({ "a": "1" }));
    assert_eq!(client.post(&format!("{CONFIG_MAPS}?dryRun=Some"), &config_map("b")).await.code, 422);
}

#[tokio::test]
async fn a_replacement_of_an_old_version_conflicts_and_one_without_version_does_not() {
    let client = Client::new();
    let mut object = client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    object["data"]["a"] = json!("2");
    let newer = client.put(&path, &object).await;
    assert!(newer.version() > object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap());
    object["data"]["a"] = json!("3");
    let late = client.put(&path, &object).await;
    assert_eq!((late.code, late.reason()), (409, "Conflict"));
    object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(client.put(&path, &object).await.ok()["data"]["a"], "3");
    assert_eq!(client.put(&format!("{CONFIG_MAPS}/b"), &config_map("b")).await.code, 404);
    assert_eq!(client.put(&path, &config_map("b")).await.code, 400);
}

#[tokio::test]
async fn a_replacement_without_version_is_tried_again_when_somebody_is_faster() {
    let client = Client::new();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let mut left = 3;
    client.cluster.before_propose(move |cluster, writes| {
        if left > 0 {
            left -= 1;
            cluster.put(&writes[0].key, &format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a","namespace":"default"}},"data":{{"left":"{left}"}}}}"#));
        }
    });
    let replaced = client.put(&format!("{CONFIG_MAPS}/a"), &config_map("a")).await;
    assert_eq!(replaced.ok()["data"], json!({ "a": "1" }));
}

#[tokio::test]
async fn a_change_that_always_comes_too_late_is_a_conflict_in_the_end() {
    let client = Client::new();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let mut count = 0;
    client.cluster.before_propose(move |cluster, writes| {
        count += 1;
        cluster.put(&writes[0].key, &format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a","namespace":"default"}},"data":{{"n":"{count}"}}}}"#));
    });
    let late = client.patch(&format!("{CONFIG_MAPS}/a"), "merge", &json!({ "data": { "b": "2" } })).await;
    assert_eq!((late.code, late.reason()), (409, "Conflict"));
}

#[tokio::test]
async fn an_update_that_changes_nothing_keeps_the_version() {
    let client = Client::new();
    let object = client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let same = client.put(&format!("{CONFIG_MAPS}/a"), &object).await.ok();
    assert_eq!(same, object);
}

#[tokio::test]
async fn status_and_the_rest_are_written_apart() {
    let client = Client::new();
    client.post(DEPLOYMENTS, &deployment("web")).await.ok();
    let path = format!("{DEPLOYMENTS}/web");
    let mut object = client.get(&path).await.ok();
    object["spec"]["replicas"] = json!(7);
    object["status"] = json!({ "replicas": 5, "observedGeneration": 1 });
    let after_status = client.put(&format!("{path}/status"), &object).await.ok();
    assert_eq!(
        (&after_status["spec"]["replicas"], &after_status["status"]["replicas"]),
        (&json!(2), &json!(5))
    );
    assert_eq!(after_status["metadata"]["generation"], 1);
    object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    object["status"] = json!({});
    let after_spec = client.put(&path, &object).await.ok();
    assert_eq!((&after_spec["spec"]["replicas"], &after_spec["status"]["replicas"]), (&json!(7), &json!(5)));
    assert_eq!(after_spec["metadata"]["generation"], 2);
    assert_eq!(client.get(&format!("{path}/status")).await.ok()["status"]["replicas"], 5);
}

#[tokio::test]
async fn a_scale_reads_and_sets_the_replicas_in_every_way() {
    let client = Client::new();
    client.post(DEPLOYMENTS, &deployment("web")).await.ok();
    let path = format!("{DEPLOYMENTS}/web/scale");
    let mut scale = client.get(&path).await.ok();
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    assert_eq!(scale["status"]["selector"], "app=web");
    scale["spec"]["replicas"] = json!(3);
    assert_eq!(client.put(&path, &scale).await.ok()["spec"]["replicas"], 3);
    assert_eq!(client.put(&path, &scale).await.reason(), "Conflict");
    let merged = client.patch(&path, "merge", &json!({ "spec": { "replicas": 4 } })).await.ok();
    assert_eq!((&merged["kind"], &merged["spec"]["replicas"]), (&json!("Scale"), &json!(4)));
    let replace = json!([{ "op": "replace", "path": "/spec/replicas", "value": 5 }]);
    assert_eq!(client.patch(&path, "json", &replace).await.ok()["spec"]["replicas"], 5);
    let strategic = client.patch(&path, "strategic-merge", &json!({ "spec": { "replicas": 6 } })).await;
    assert_eq!(strategic.ok()["spec"]["replicas"], 6);
    assert_eq!(client.patch(&path, "merge", &json!({ "spec": { "replicas": -1 } })).await.code, 422);
    assert_eq!(client.get(&format!("{DEPLOYMENTS}/web")).await.ok()["spec"]["replicas"], 6);

    let table = client.get_as(&path, "application/json;as=Table;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(table["columnDefinitions"][1]["name"], "Desired");
    assert_eq!(table["rows"][0]["cells"].as_array().unwrap()[..3], [json!("web"), json!(6), json!(0)]);
    let misspelled = json!({ "spec": { "replicsa": 4 } });
    let strict = client.patch(&format!("{path}?fieldValidation=Strict"), "merge", &misspelled).await;
    assert_eq!(strict.code, 400);
    assert!(strict.message().contains("unknown field \"spec.replicsa\""), "{}", strict.message());
    assert!(client.patch(&path, "merge", &misspelled).await.header("warning").contains("replicsa"));
}

/// `kubectl diff` showed a version that goes: it compares what is there with what a dry run answers.
#[tokio::test]
async fn a_dry_run_of_a_change_keeps_the_version_it_was_computed_from() {
    let client = Client::new();
    let version = client.post(CONFIG_MAPS, &config_map("a")).await.version();
    let path = format!("{CONFIG_MAPS}/a?dryRun=All");
    let change = json!({ "data": { "a": "2" } });
    assert_eq!(client.patch(&path, "merge", &change).await.version(), version);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let client = Client::new();
    client.post(PODS, &pod("web")).await.ok();
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "web" }, "target": { "kind": "Node", "name": "n1" } });
    assert_eq!(client.post(&format!("{PODS}/web/binding"), &binding).await.code, 201);
    let bound = client.get(&format!("{PODS}/web")).await.ok();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let again = client.post(&format!("{PODS}/web/binding"), &binding).await;
    assert_eq!((again.code, again.reason()), (409, "Conflict"));
}

#[tokio::test]
async fn unknown_fields_are_refused_reported_or_dropped_as_the_client_says() {
    let client = Client::new();
    let mut body = config_map("a");
    body["dataa"] = json!({});
    let strict = client.post(&format!("{CONFIG_MAPS}?fieldValidation=Strict"), &body).await;
    assert_eq!((strict.code, strict.reason()), (400, "BadRequest"));
    assert!(strict.message().contains("unknown field \"dataa\""), "{}", strict.message());
    let warned = client.post(&format!("{CONFIG_MAPS}?fieldValidation=Warn"), &body).await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.header("warning"), "299 - \"unknown field \\\"dataa\\\"\"");
    body["metadata"]["name"] = json!("b");
    let ignored = client.post(&format!("{CONFIG_MAPS}?fieldValidation=Ignore"), &body).await;
    assert_eq!((ignored.code, ignored.header("warning")), (201, ""));
    assert_eq!(ignored.value["dataa"], Value::Null);
    assert_eq!(client.post(&format!("{CONFIG_MAPS}?fieldValidation=Loose"), &body).await.code, 400);
}

#[tokio::test]
async fn a_body_is_read_as_what_it_says_it_is() {
    let client = Client::new();
    let yaml = "metadata:\n  name: a\ndata: {b: '2'}\n";
    let posted = client.send(request(Method::POST, CONFIG_MAPS, "application/yaml", yaml)).await;
    assert_eq!(posted.ok()["data"]["b"], "2");
    let cbor = client.send(request(Method::POST, CONFIG_MAPS, "application/cbor", "\u{0}")).await;
    assert_eq!((cbor.code, cbor.reason()), (415, "UnsupportedMediaType"));
    // A ConfigMap with a name, and one value, as clients in Go send it.
    let protobuf =
        "k8s\0\n\u{f}\n\u{2}v1\u{12}\tConfigMap\u{12}\u{d}\n\u{3}\n\u{1}b\u{12}\u{6}\n\u{1}a\u{12}\u{1}1";
    let posted = request(Method::POST, CONFIG_MAPS, "application/vnd.kubernetes.protobuf", protobuf);
    assert_eq!(client.send(posted).await.ok()["data"], json!({ "a": "1" }));
    let broken = client.send(request(Method::POST, CONFIG_MAPS, "application/json", "{\"metadata\":")).await;
    assert_eq!((broken.code, broken.reason()), (400, "BadRequest"));
    let other = client
        .post(CONFIG_MAPS, &json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "c" } }))
        .await;
    assert_eq!(other.code, 400);
}

#[tokio::test]
async fn what_is_kept_and_not_served_yet_is_a_warning() {
    let client = Client::new();
    let mut web = crate::harness::service("web");
    web["spec"]["type"] = json!("NodePort");
    let reply = client.post(crate::harness::SERVICES, &web).await;
    assert!(reply.header("warning").contains("not supported by this cluster yet"), "{reply:?}");
    let path = format!("{}/web", crate::harness::SERVICES);
    let reply = client.patch(&path, "merge", &json!({ "metadata": { "labels": { "a": "b" } } })).await;
    assert!(reply.header("warning").contains("not supported by this cluster yet"), "{reply:?}");
    let reply = client.patch(&path, "merge", &json!({ "spec": { "type": "ClusterIP" } })).await;
    assert_eq!((reply.code, reply.header("warning")), (200, ""));
}
