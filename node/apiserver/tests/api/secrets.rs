//! Secrets, which lie sealed in the map.

use serde_json::{Value, json};
use skein_apiserver::cluster::Unavailable;

use crate::harness::Client;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn secret(name: &str) -> Value {
    let metadata =
        json!({ "name": name, "labels": { "app": "web" }, "annotations": { APPLIED: "aHVudGVyMg==" } });
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": { "word": "aHVudGVyMg==" } })
}

fn nobody_opens(client: &Client) {
    client.cluster.keep_sealed(Some(Unavailable::NoQuorum("no voter could be asked".into())));
}

#[tokio::test]
async fn every_answer_is_as_if_nothing_were_sealed_and_the_map_shows_no_value() {
    let client = Client::new();
    let start = client.get(SECRETS).await.version();
    let made = client.post(SECRETS, &secret("db")).await.ok();
    let path = format!("{SECRETS}/db");
    let kept = || client.cluster.value("core/secrets/default/db").unwrap();
    assert!(!kept().to_string().contains("aHVudGVyMg=="), "{}", kept());
    assert_eq!(kept()["metadata"]["labels"], json!({ "app": "web" }));

    let read = client.get(&path).await.ok();
    assert_eq!(read, made);
    assert_eq!(read["data"], json!({ "word": "aHVudGVyMg==" }));
    assert_eq!(read["metadata"]["annotations"][APPLIED], "aHVudGVyMg==");
    let list = client.get(&format!("{SECRETS}?labelSelector=app%3Dweb")).await.ok();
    assert_eq!(list["items"][0]["data"], read["data"]);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let row = client.get_as(SECRETS, table).await.ok()["rows"][0]["cells"].clone();
    assert_eq!((&row[0], &row[2]), (&json!("db"), &json!(1)));

    // The same once more changes nothing, a change of something else leaves the values.
    let same = client.put(&path, &secret("db")).await;
    assert_eq!(same.version(), client.get(&path).await.version());
    let patched = client.patch(&path, "merge", &json!({ "data": { "more": "YQ==" } })).await.ok();
    assert_eq!(patched["data"], json!({ "more": "YQ==", "word": "aHVudGVyMg==" }));
    let fixed = client.patch(&path, "merge", &json!({ "immutable": true })).await.ok();
    assert_eq!(fixed["data"], patched["data"]);
    let refused = client.patch(&path, "merge", &json!({ "data": { "word": "YQ==" } })).await;
    assert_eq!(refused.code, 422, "{}", refused.value);
    assert!(!kept().to_string().contains("aHVudGVyMg=="), "{}", kept());
    let smuggled = json!({ "metadata": { "name": "b" }, "data": { "/sealed": "YQ==" } });
    assert_eq!(client.post(SECRETS, &smuggled).await.code, 422);

    client.delete(&path, &Value::Null).await.ok();
    let mut watch = client.open(&format!("{SECRETS}?watch=1&resourceVersion={start}")).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let event = watch.event().await.unwrap();
        seen.push((event["type"].clone(), event["object"]["data"].as_object().map_or(0, |data| data.len())));
    }
    let all = [("ADDED", 1), ("MODIFIED", 2), ("MODIFIED", 2), ("DELETED", 2)];
    assert_eq!(seen, all.map(|(event, count)| (json!(event), count)));
}

#[tokio::test]
async fn what_an_older_build_wrote_in_clear_is_read_as_it_is_and_sealed_when_it_is_written() {
    let client = Client::new();
    let mut clear = secret("db");
    clear["metadata"]["namespace"] = "default".into();
    clear["type"] = "Opaque".into();
    client.cluster.put("core/secrets/default/db", &clear.to_string());
    let path = format!("{SECRETS}/db");
    assert_eq!(client.get(&path).await.ok()["data"]["word"], "aHVudGVyMg==");
    client.patch(&path, "merge", &json!({ "metadata": { "labels": { "app": "db" } } })).await.ok();
    assert!(!client.cluster.value("core/secrets/default/db").unwrap().to_string().contains("aHVudGVyMg=="));
    assert_eq!(client.get(&path).await.ok()["data"]["word"], "aHVudGVyMg==");
}

#[tokio::test]
async fn where_nobody_opens_it_a_secret_is_not_shown_and_can_be_deleted() {
    let client = Client::new();
    let mut held = secret("held");
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    client.post(SECRETS, &secret("db")).await.ok();
    client.post(SECRETS, &held).await.ok();
    nobody_opens(&client);
    for path in [SECRETS.to_owned(), format!("{SECRETS}/db")] {
        let refused = client.get(&path).await;
        assert_eq!((refused.code, refused.message()), (503, "no voter could be asked"), "{path}");
    }
    let refused = client.patch(&format!("{SECRETS}/db"), "merge", &json!({ "data": { "a": "YQ==" } })).await;
    assert_eq!(refused.code, 503);
    let mut watch = client.open(&format!("{SECRETS}?watch=1")).await;
    let event = watch.event().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(503)));

    client.delete(&format!("{SECRETS}/db"), &Value::Null).await.ok();
    let going = client.delete(&format!("{SECRETS}/held"), &Value::Null).await.ok();
    assert!(going["metadata"]["deletionTimestamp"].is_string() && going["data"].is_null(), "{going}");
    client.cluster.keep_sealed(None);
    assert_eq!(client.get(&format!("{SECRETS}/held")).await.ok()["data"]["word"], "aHVudGVyMg==");
}
