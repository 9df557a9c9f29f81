//! The `log` of a pod.

use serde_json::json;
use skein_apiserver::testing::LogText;
use tokio::sync::watch;

use crate::harness::{Client, PODS, pod};

async fn with_running_pod() -> (Client, watch::Sender<LogText>) {
    let client = Client::new();
    client.post(PODS, &pod("web")).await.ok();
    client
        .post(&format!("{PODS}/web/binding"), &json!({ "target": { "kind": "Node", "name": "n1" } }))
        .await
        .ok();
    let status = json!({ "status": { "containerStatuses": [{
        "name": "main", "ready": true, "restartCount": 0, "image": "", "imageID": "",
        "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
    }] } });
    client.patch(&format!("{PODS}/web/status"), "merge", &status).await.ok();
    let (logs, text) = watch::channel(LogText { text: "one\ntwo\nthree\n".into(), ended: false });
    client.cluster.set_logs("default/web/main", text);
    (client, logs)
}

#[tokio::test]
async fn the_output_so_far_is_answered_whole_or_from_its_end() {
    let (client, _logs) = with_running_pod().await;
    let whole = client.get(&format!("{PODS}/web/log")).await;
    assert_eq!((whole.code, whole.header("content-type")), (200, "text/plain"));
    assert_eq!(whole.bytes, b"one\ntwo\nthree\n");
    let tail = client.get(&format!("{PODS}/web/log?tailLines=1&container=main")).await;
    assert_eq!(tail.bytes, b"three\n");
}

#[tokio::test]
async fn a_follower_sees_each_line_as_it_is_printed_until_the_container_ends() {
    let (client, logs) = with_running_pod().await;
    let mut stream = client.open(&format!("{PODS}/web/log?follow=true&tailLines=1")).await;
    assert_eq!(stream.line().await.as_deref(), Some("three"));
    logs.send_modify(|logs| logs.text.push_str("four\n"));
    assert_eq!(stream.line().await.as_deref(), Some("four"));
    logs.send_modify(|logs| logs.ended = true);
    assert_eq!(stream.line().await, None);
}

#[tokio::test]
async fn what_cannot_be_shown_is_said_why() {
    let (client, _logs) = with_running_pod().await;
    client.post(PODS, &pod("idle")).await.ok();
    for (path, code, why) in [
        ("nobody/log", 404, "pods \"nobody\" not found"),
        ("idle/log", 400, "does not have a host assigned"),
        ("web/log?container=other", 400, "container other is not valid for pod web"),
        ("web/log?previous=true", 400, "previous terminated container"),
        ("web/log?tailLines=-1", 400, "tailLines"),
        ("web/log?sinceTime=yesterday", 400, "RFC 3339"),
        ("web/log?sinceTime=2026-01-01T00:00:00Z&sinceSeconds=1", 422, "at most one of"),
    ] {
        let refused = client.get(&format!("{PODS}/{path}")).await;
        assert_eq!(refused.code, code, "{path}: {}", refused.message());
        assert!(refused.message().contains(why), "{path}: {}", refused.message());
    }
}
