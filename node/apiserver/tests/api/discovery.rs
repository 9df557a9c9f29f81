//! What clients ask before anything else, as they were recorded.

use http::Method;
use serde_json::json;

use crate::harness::{Client, PODS, request};

/// kubectl from 1.27 on asks `/api` and `/apis` so.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// kubectl 1.20 asks `/openapi/v2` so.
const OLD_OPENAPI: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

#[tokio::test]
async fn one_answer_names_every_resource_to_those_who_ask_for_it() {
    let client = Client::new();
    for (path, group) in [("/api", json!(null)), ("/apis", json!("apiextensions.k8s.io"))] {
        let reply = client.get_as(path, AGGREGATED).await;
        assert_eq!(
            reply.header("content-type"),
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        );
        let list = reply.ok();
        assert_eq!(list["kind"], "APIGroupDiscoveryList");
        assert_eq!(list["items"][0]["metadata"]["name"], group);
    }
    let older = AGGREGATED.split_once(',').unwrap().1;
    let reply = client.get_as("/apis", older).await;
    assert_eq!(
        reply.header("content-type"),
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
    );
}

#[tokio::test]
async fn old_clients_walk_from_group_to_group() {
    let client = Client::new();
    let accept = "application/json, */*";
    let versions = client.get_as("/api", accept).await;
    assert_eq!(versions.header("content-type"), "application/json");
    assert_eq!(versions.ok()["versions"], json!(["v1"]));
    let groups = client.get_as("/apis", accept).await.ok();
    for group in groups["groups"].as_array().unwrap() {
        let path = format!("/apis/{}", group["preferredVersion"]["groupVersion"].as_str().unwrap());
        let resources = client.get_as(&path, accept).await.ok();
        assert_eq!(resources["kind"], "APIResourceList", "{path}");
        assert!(!resources["resources"].as_array().unwrap().is_empty(), "{path}");
    }
    assert_eq!(client.get_as("/apis/apps", accept).await.ok()["kind"], "APIGroup");
    assert_eq!(client.get_as("/api/v1", accept).await.ok()["groupVersion"], "v1");
}

#[tokio::test]
async fn an_old_kubectl_gets_the_protobuf_without_which_it_creates_nothing() {
    let client = Client::new();
    let reply = client.get_as("/openapi/v2?timeout=32s", OLD_OPENAPI).await;
    assert_eq!(reply.code, 200);
    // With dots: the form it asks with cannot be parsed as a media type.
    assert_eq!(reply.header("content-type"), "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    // What is in it, real kubectl says: here only that it is the message, with its paths and definitions.
    assert!(reply.bytes.starts_with(b"\x0a\x032.0") && reply.bytes.len() > 100_000);
    assert_eq!(client.get("/openapi/v2").await.ok()["swagger"], "2.0");
}

#[tokio::test]
async fn a_new_kubectl_finds_out_that_the_server_validates() {
    let client = Client::new();
    let index = client.get("/openapi/v3").await.ok();
    for (path, entry) in index["paths"].as_object().unwrap() {
        let document = client.get(entry["serverRelativeURL"].as_str().unwrap()).await.ok();
        assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{path}");
        let validates = document["paths"].as_object().unwrap().values().any(|path| {
            ["patch", "post"].iter().any(|method| path[*method].to_string().contains("fieldValidation"))
        });
        assert_eq!(validates, path != "apis/apiextensions.k8s.io/v1", "{path}");
    }
    assert_eq!(client.get("/openapi/v3/apis/nobody/v1").await.code, 404);
    assert_eq!(client.get_as("/openapi/v3", "text/html").await.code, 406);
}

#[tokio::test]
async fn a_document_is_fetched_once_until_it_changes() {
    let client = Client::new();
    let index = client.get("/openapi/v3").await.ok();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let (path, hash) = url.split_once("?hash=").unwrap();
    let kept = client.get(url).await;
    assert!(kept.header("cache-control").contains("immutable"), "{}", kept.header("cache-control"));
    assert_eq!(kept.header("etag"), format!("\"{hash}\""));
    let plain = client.get(path).await;
    assert!(!plain.header("cache-control").contains("immutable"));
    let old = client.get(&format!("{path}?hash=0")).await;
    assert_eq!((old.code, old.header("location")), (301, url));
    let mut again = request(Method::GET, path, "", "");
    again.headers_mut().insert("if-none-match", plain.header("etag").parse().unwrap());
    let again = client.send(again).await;
    assert_eq!((again.code, again.bytes.len()), (304, 0));
    let mut packed = request(Method::GET, path, "", "");
    packed.headers_mut().insert("accept-encoding", "gzip".parse().unwrap());
    let packed = client.send(packed).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert!(packed.bytes.len() < plain.bytes.len() / 3);
}

#[tokio::test]
async fn the_version_reads_as_one_of_kubernetes() {
    let version = Client::new().get("/version").await.ok();
    let text = version["gitVersion"].as_str().unwrap();
    assert!(text.starts_with("v1.") && text.contains("+skein."), "{text}");
}

#[tokio::test]
async fn the_root_names_the_other_paths() {
    let client = Client::new();
    let paths = client.get("/").await.ok();
    for path in paths["paths"].as_array().unwrap() {
        assert_eq!(client.get(path.as_str().unwrap()).await.code, 200, "{path}");
    }
}

#[tokio::test]
async fn every_resource_that_discovery_names_is_served() {
    let client = Client::new();
    for root in ["/api", "/apis"] {
        let list = client.get_as(root, AGGREGATED).await.ok();
        for item in list["items"].as_array().unwrap() {
            for resource in item["versions"][0]["resources"].as_array().unwrap() {
                let group =
                    item["metadata"]["name"].as_str().map_or(String::new(), |group| format!("/{group}"));
                let path = format!("{root}{group}/v1/{}", resource["resource"].as_str().unwrap());
                let can_list = resource["verbs"].as_array().unwrap().contains(&json!("list"));
                assert_eq!(client.get(&path).await.code, if can_list { 200 } else { 405 }, "{path}");
            }
        }
    }
    let pretty = client.get(&format!("{PODS}?pretty=true")).await;
    assert!(pretty.bytes.iter().filter(|byte| **byte == b'\n').count() > 3);
}
