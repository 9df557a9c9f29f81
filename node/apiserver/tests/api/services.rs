//! Addresses and ports of Services.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::{Client, SERVICES, service};

#[tokio::test]
async fn services_created_at_once_get_different_addresses() {
    let client = Client::new();
    let bodies: Vec<_> = (0..12).map(|number| service(&format!("web-{number}"))).collect();
    let replies = futures::future::join_all(bodies.iter().map(|body| client.post(SERVICES, body))).await;
    let addresses: BTreeSet<String> = replies
        .into_iter()
        .map(|reply| reply.ok()["spec"]["clusterIP"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(addresses.len(), 12);
    assert!(addresses.iter().all(|address| address.starts_with("10.43.")), "{addresses:?}");
    assert!(!addresses.contains("10.43.0.0") && !addresses.contains("10.43.0.1"));
}

#[tokio::test]
async fn an_address_somebody_else_gets_in_between_is_not_given_twice() {
    let client = Client::new();
    let other = client.another_node();
    client.cluster.before_propose({
        let mut done = false;
        move |cluster, writes| {
            if !done && writes[0].key.ends_with("/mine") {
                done = true;
                cluster.put("core/services/default/theirs", r#"{"metadata":{"name":"theirs","namespace":"default"},"spec":{"clusterIP":"10.43.0.2"}}"#);
                cluster.put("skein/addresses//last", r#"{"address":"10.43.0.2","for":"theirs"}"#);
            }
        }
    });
    let mine = other.post(SERVICES, &service("mine")).await.ok();
    assert_eq!(mine["spec"]["clusterIP"], "10.43.0.3");
}

#[tokio::test]
async fn an_address_may_be_asked_for_if_it_is_free_and_in_the_range() {
    let client = Client::new();
    let with = |name: &str, address: &str| {
        let mut body = service(name);
        body["spec"]["clusterIP"] = json!(address);
        body
    };
    assert_eq!(
        client.post(SERVICES, &with("a", "10.43.9.9")).await.ok()["spec"]["clusterIPs"],
        json!(["10.43.9.9"])
    );
    let taken = client.post(SERVICES, &with("b", "10.43.9.9")).await;
    assert_eq!((taken.code, taken.reason()), (422, "Invalid"));
    assert!(taken.message().contains("already allocated"), "{}", taken.message());
    let outside = client.post(SERVICES, &with("b", "10.44.0.1")).await;
    assert!(outside.message().contains("not in the valid range"), "{}", outside.message());
    assert_eq!(client.post(SERVICES, &with("c", "None")).await.ok()["spec"]["clusterIP"], "None");
    // What a Service had is free when it is gone.
    client.delete(&format!("{SERVICES}/a"), &serde_json::Value::Null).await.ok();
    client.post(SERVICES, &with("b", "10.43.9.9")).await.ok();
}

#[tokio::test]
async fn a_replacement_that_says_no_address_keeps_it() {
    let client = Client::new();
    let mut body = service("web");
    body["spec"]["type"] = json!("NodePort");
    let created = client.post(SERVICES, &body).await.ok();
    body["metadata"]["labels"] = json!({ "a": "b" });
    let replaced = client.put(&format!("{SERVICES}/web"), &body).await.ok();
    assert_eq!(replaced["spec"]["clusterIP"], created["spec"]["clusterIP"]);
    assert_eq!(replaced["spec"]["ports"], created["spec"]["ports"]);
    body["spec"]["clusterIP"] = json!("10.43.77.7");
    assert_eq!(client.put(&format!("{SERVICES}/web"), &body).await.code, 422);
}

#[tokio::test]
async fn node_ports_are_given_once_and_in_their_range() {
    let client = Client::new();
    let mut body = service("a");
    body["spec"]["type"] = json!("NodePort");
    body["spec"]["ports"] = json!([{ "name": "x", "port": 80 }, { "name": "y", "port": 81 }]);
    let created = client.post(SERVICES, &body).await.ok();
    let ports: Vec<u64> = created["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| port["nodePort"].as_u64().unwrap())
        .collect();
    assert!(ports[0] != ports[1] && ports.iter().all(|port| (30_000..=32_767).contains(port)), "{ports:?}");
    body["metadata"]["name"] = json!("b");
    body["spec"]["ports"] = json!([{ "port": 80, "nodePort": ports[0] }]);
    assert_eq!(client.post(SERVICES, &body).await.code, 422);
}

#[tokio::test]
async fn a_name_for_something_outside_gets_no_address() {
    let client = Client::new();
    let body = json!({ "metadata": { "name": "out" }, "spec": { "type": "ExternalName", "externalName": "example.org" } });
    let created = client.post(SERVICES, &body).await.ok();
    assert_eq!(created["spec"]["clusterIP"], serde_json::Value::Null);
}
