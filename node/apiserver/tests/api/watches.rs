//! Watches.

use std::time::Duration;

use serde_json::{Value, json};
use skein_apiserver::limits::Limits;

use crate::harness::{CONFIG_MAPS, Client, PODS, config_map, labelled, pod};

fn change(event: &str, name: &str, version: u64) -> (String, String, u64) {
    (event.into(), name.into(), version)
}

#[tokio::test]
async fn a_watch_tells_each_change_once_in_order_with_the_version_it_made() {
    let client = Client::new();
    let start = client.get(CONFIG_MAPS).await.version();
    let mut watch = client.open(&format!("{CONFIG_MAPS}?watch=true&resourceVersion={start}")).await;
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    client.post(PODS, &pod("unrelated")).await.ok();
    client.patch(&format!("{CONFIG_MAPS}/a"), "merge", &json!({ "data": { "b": "2" } })).await.ok();
    client.delete(&format!("{CONFIG_MAPS}/a"), &Value::Null).await.ok();
    assert_eq!(watch.change().await, change("ADDED", "a", start + 1));
    assert_eq!(watch.change().await, change("MODIFIED", "a", start + 3));
    let gone = watch.event().await.unwrap();
    assert_eq!(gone["type"], "DELETED");
    // The last state, with the version of the deletion.
    assert_eq!(gone["object"]["data"], json!({ "a": "1", "b": "2" }));
    assert_eq!(gone["object"]["metadata"]["resourceVersion"], (start + 4).to_string());
}

#[tokio::test]
async fn a_watch_resumes_between_any_two_changes() {
    let client = Client::new();
    let start = client.get(CONFIG_MAPS).await.version();
    for name in ["a", "b", "c"] {
        client.post(CONFIG_MAPS, &config_map(name)).await.ok();
    }
    for (skip, expect) in ["a", "b", "c"].into_iter().enumerate() {
        let from = start + skip as u64;
        let mut watch = client.open(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}")).await;
        assert_eq!(watch.change().await, change("ADDED", expect, from + 1));
    }
}

#[tokio::test]
async fn without_a_version_the_present_objects_come_first() {
    let client = Client::new();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    for query in ["watch=1", "watch=1&resourceVersion=0"] {
        let mut watch = client.open(&format!("{CONFIG_MAPS}?{query}")).await;
        assert_eq!(watch.change().await.1, "a", "{query}");
    }
}

#[tokio::test]
async fn what_stops_to_match_is_deleted_and_what_begins_to_is_added() {
    let client = Client::new();
    let start = client.get(CONFIG_MAPS).await.version();
    let mut watch =
        client.open(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={start}&labelSelector=app%3Dweb")).await;
    client.post(CONFIG_MAPS, &labelled("a", "db")).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    for app in ["web", "web2", "web"] {
        client.patch(&path, "merge", &json!({ "metadata": { "labels": { "app": app } } })).await.ok();
    }
    client.patch(&path, "merge", &json!({ "data": { "x": "y" } })).await.ok();
    client.delete(&path, &Value::Null).await.ok();
    assert_eq!(watch.change().await, change("ADDED", "a", start + 2));
    assert_eq!(watch.change().await, change("DELETED", "a", start + 3));
    assert_eq!(watch.change().await, change("ADDED", "a", start + 4));
    assert_eq!(watch.change().await, change("MODIFIED", "a", start + 5));
    assert_eq!(watch.change().await, change("DELETED", "a", start + 6));
}

#[tokio::test]
async fn one_name_is_watched_and_not_those_that_begin_like_it() {
    let client = Client::new();
    let start = client.get(PODS).await.version();
    let mut watch = client
        .open(&format!("{PODS}?watch=1&resourceVersion={start}&fieldSelector=metadata.name%3Dweb"))
        .await;
    client.post(PODS, &pod("web-1")).await.ok();
    client.post(PODS, &pod("web")).await.ok();
    assert_eq!(watch.change().await, change("ADDED", "web", start + 2));
    let nodes = "/api/v1/nodes";
    client.post(nodes, &json!({ "metadata": { "name": "kitchen" } })).await.ok();
    let mut watch = client.open(&format!("{nodes}?watch=1&fieldSelector=metadata.name%3Dkitchen")).await;
    assert_eq!(watch.change().await.1, "kitchen");
}

#[tokio::test]
async fn a_streamed_list_ends_with_its_bookmark_and_goes_on() {
    let client = Client::new();
    // More than one piece of the stream holds.
    for number in 0..300 {
        client.post(CONFIG_MAPS, &config_map(&format!("m{number:03}"))).await.ok();
    }
    let version = client.get(CONFIG_MAPS).await.version();
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    for at in ["", "&resourceVersion=0", &format!("&resourceVersion={version}")] {
        let mut watch = client.open(&format!("{CONFIG_MAPS}?{query}{at}")).await;
        for number in 0..300 {
            let (event, name, _) = watch.change().await;
            assert_eq!((event.as_str(), name), ("ADDED", format!("m{number:03}")));
        }
        let bookmark = watch.event().await.unwrap();
        assert_eq!(bookmark["type"], "BOOKMARK");
        let metadata = &bookmark["object"]["metadata"];
        assert_eq!(metadata["annotations"]["k8s.io/initial-events-end"], "true");
        assert_eq!(metadata["resourceVersion"], version.to_string());
        assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    }
    let mut watch = client.open(&format!("{CONFIG_MAPS}?{query}&labelSelector=none%3Dhere")).await;
    assert_eq!(watch.event().await.unwrap()["type"], "BOOKMARK");
    client
        .post(CONFIG_MAPS, &json!({ "metadata": { "name": "z", "labels": { "none": "here" } } }))
        .await
        .ok();
    assert_eq!(watch.change().await, change("ADDED", "z", version + 1));
}

#[tokio::test]
async fn changes_that_are_no_longer_kept_are_an_error_event() {
    let client = Client::new();
    let start = client.get(CONFIG_MAPS).await.version();
    let mut open = client.open(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={start}")).await;
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    client.cluster.compact();
    for watch in
        [&mut open, &mut client.open(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={start}")).await]
    {
        let event = watch.event().await.unwrap();
        assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
        assert_eq!(event["object"]["reason"], "Expired");
        assert!(watch.event().await.is_none());
    }
}

#[tokio::test]
async fn a_quiet_watch_says_how_far_the_cluster_has_come() {
    let client =
        Client::with_limits(Limits { bookmark_every: Duration::from_millis(20), ..Limits::default() });
    let start = client.get(CONFIG_MAPS).await.version();
    let mut watch =
        client.open(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={start}&allowWatchBookmarks=true")).await;
    client.post(PODS, &pod("unrelated")).await.ok();
    let bookmark = watch.event().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], (start + 1).to_string());
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    assert_eq!(watch.change().await, change("ADDED", "a", start + 2));
}

#[tokio::test]
async fn a_watch_ends_after_the_time_its_client_gave_it_and_when_the_server_stops() {
    let client = Client::new();
    let mut watch = client.open(&format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1")).await;
    assert_eq!(watch.event().await, None);
    let mut watch = client.open(&format!("{CONFIG_MAPS}?watch=1")).await;
    client.stop.cancel();
    assert_eq!(watch.event().await, None);
}

#[tokio::test]
async fn a_version_to_come_is_waited_for() {
    let client = Client::new();
    let start = client.get(CONFIG_MAPS).await.version();
    let mut watch = client.open(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={}", start + 1)).await;
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    client.post(CONFIG_MAPS, &config_map("b")).await.ok();
    assert_eq!(watch.change().await, change("ADDED", "b", start + 2));
}

/// What is not read is not kept for anybody: the client comes too late and is told so.
#[tokio::test]
async fn a_client_that_does_not_read_its_watch_costs_one_batch() {
    let client = Client::new();
    client.post(CONFIG_MAPS, &config_map("first")).await.ok();
    let mut watch = client.open(&format!("{CONFIG_MAPS}?watch=1&allowWatchBookmarks=true")).await;
    assert_eq!(watch.change().await.1, "first");
    for number in 0..50 {
        client.post(CONFIG_MAPS, &config_map(&format!("unread-{number}"))).await.ok();
    }
    // The ring is full meanwhile, and nothing waited in the stream.
    client.cluster.compact();
    let event = watch.event().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(watch.event().await, None);
}

#[tokio::test]
async fn a_watch_of_tables_says_its_columns_once() {
    let client = Client::new();
    let start = client.get(CONFIG_MAPS).await.version();
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let mut watch = client.open_as(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={start}"), table).await;
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    client.post(CONFIG_MAPS, &config_map("b")).await.ok();
    let (first, second) = (watch.event().await.unwrap(), watch.event().await.unwrap());
    assert_eq!((&first["type"], &first["object"]["kind"]), (&json!("ADDED"), &json!("Table")));
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(second["object"]["columnDefinitions"], json!([]));
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}
