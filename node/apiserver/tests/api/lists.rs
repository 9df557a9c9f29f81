//! Lists: selectors, pages, versions, forms.

use std::io::Read;

use flate2::read::GzDecoder;
use http::Method;
use serde_json::{Value, json};
use skein_apiserver::cluster::Unavailable;

use crate::harness::{CONFIG_MAPS, Client, PODS, config_map, labelled, pod, request};

async fn with_maps(count: usize) -> Client {
    let client = Client::new();
    for number in 0..count {
        client.post(CONFIG_MAPS, &config_map(&format!("map-{number:03}"))).await.ok();
    }
    client
}

#[tokio::test]
async fn a_list_says_the_version_of_its_state() {
    let client = with_maps(3).await;
    let list = client.get(CONFIG_MAPS).await;
    assert_eq!(list.version(), client.cluster.snapshot().revision());
    let value = list.ok();
    assert_eq!((&value["kind"], &value["apiVersion"]), (&json!("ConfigMapList"), &json!("v1")));
    assert_eq!(value["items"].as_array().unwrap().len(), 3);
    assert!(value["items"][0]["metadata"]["resourceVersion"].is_string());
    let empty = client.get("/api/v1/namespaces/nowhere/pods").await;
    assert_eq!(empty.ok()["items"], json!([]));
}

#[tokio::test]
async fn all_namespaces_are_listed_together() {
    let client = with_maps(1).await;
    client.post("/api/v1/namespaces", &json!({ "metadata": { "name": "other" } })).await.ok();
    client.post("/api/v1/namespaces/other/configmaps", &config_map("there")).await.ok();
    assert_eq!(client.get("/api/v1/configmaps").await.names(), ["map-000", "there"]);
    assert_eq!(client.get(CONFIG_MAPS).await.names(), ["map-000"]);
}

#[tokio::test]
async fn selectors_choose_by_labels_and_fields() {
    let client = Client::new();
    for (name, app) in [("a", "web"), ("b", "db"), ("c", "web")] {
        client.post(CONFIG_MAPS, &labelled(name, app)).await.ok();
    }
    client.post(CONFIG_MAPS, &config_map("d")).await.ok();
    for (query, expect) in [
        ("labelSelector=app%3Dweb", &["a", "c"][..]),
        ("labelSelector=app!%3Dweb", &["b", "d"]),
        ("labelSelector=app%20in%20(db,x)", &["b"]),
        ("labelSelector=!app", &["d"]),
        ("fieldSelector=metadata.name%3Db", &["b"]),
        ("fieldSelector=metadata.name!%3Db", &["a", "c", "d"]),
        ("labelSelector=app%3Dweb&fieldSelector=metadata.name%3Db", &[]),
    ] {
        assert_eq!(client.get(&format!("{CONFIG_MAPS}?{query}")).await.names(), expect, "{query}");
    }
    assert_eq!(client.get(&format!("{CONFIG_MAPS}?labelSelector=%3D%3D")).await.code, 400);
    assert_eq!(client.get(&format!("{CONFIG_MAPS}?fieldSelector=data.a%3D1")).await.code, 400);
}

#[tokio::test]
async fn every_page_shows_the_state_at_the_version_of_the_first() {
    let client = with_maps(7).await;
    let first = client.get(&format!("{CONFIG_MAPS}?limit=3")).await;
    let version = first.version();
    let first = first.ok();
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    let mut names: Vec<String> = Vec::new();
    let mut page = first;
    loop {
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        // What happens in between is not seen.
        client.delete(&format!("{CONFIG_MAPS}/map-005"), &Value::Null).await;
        client.post(CONFIG_MAPS, &config_map(&format!("map-00{}x", names.len()))).await.ok();
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        let next = client.get(&format!("{CONFIG_MAPS}?limit=3&continue={token}")).await;
        assert_eq!(next.version(), version);
        page = next.ok();
    }
    let expect: Vec<String> = (0..7).map(|number| format!("map-{number:03}")).collect();
    assert_eq!(names, expect);
}

#[tokio::test]
async fn a_page_that_ends_with_the_list_has_no_token() {
    let client = with_maps(3).await;
    let list = client.get(&format!("{CONFIG_MAPS}?limit=3")).await.ok();
    assert_eq!(list["metadata"]["continue"], Value::Null);
}

#[tokio::test]
async fn a_page_with_a_selector_is_filled_from_further_on() {
    let client = Client::new();
    for number in 0..9 {
        client
            .post(CONFIG_MAPS, &labelled(&format!("m{number}"), if number % 4 == 0 { "yes" } else { "no" }))
            .await
            .ok();
    }
    let page = client.get(&format!("{CONFIG_MAPS}?limit=2&labelSelector=app%3Dyes")).await.ok();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(page["metadata"]["remainingItemCount"], Value::Null);
    let token = page["metadata"]["continue"].as_str().unwrap();
    let last = client.get(&format!("{CONFIG_MAPS}?limit=2&labelSelector=app%3Dyes&continue={token}")).await;
    assert_eq!(last.names(), ["m8"]);
}

#[tokio::test]
async fn a_token_that_another_node_gave_is_good_while_nothing_of_the_kind_changed() {
    let client = with_maps(4).await;
    let page = client.get(&format!("{CONFIG_MAPS}?limit=3")).await.ok();
    let token = page["metadata"]["continue"].as_str().unwrap();
    let next = format!("{CONFIG_MAPS}?limit=3&continue={token}");
    // A second API over the same cluster holds none of the first one's snapshots.
    let other = client.another_node();
    other.post(PODS, &pod("unrelated")).await.ok();
    assert_eq!(other.get(&next).await.names(), ["map-003"]);
    other.post(CONFIG_MAPS, &config_map("new")).await.ok();
    let expired = other.get(&next).await;
    assert_eq!((expired.code, expired.reason()), (410, "Expired"));
    assert_eq!(client.get(&next).await.names(), ["map-003"]);
    assert_eq!(client.get(&format!("{CONFIG_MAPS}?continue=nonsense")).await.code, 400);
}

#[tokio::test]
async fn a_version_may_be_exact_or_the_oldest_that_will_do() {
    let client = with_maps(2).await;
    let version = client.get(CONFIG_MAPS).await.version();
    client.post(PODS, &pod("unrelated")).await.ok();
    let exact =
        client.get(&format!("{CONFIG_MAPS}?resourceVersion={version}&resourceVersionMatch=Exact")).await;
    assert_eq!(exact.version(), version);
    client.post(CONFIG_MAPS, &config_map("new")).await.ok();
    let exact =
        client.get(&format!("{CONFIG_MAPS}?resourceVersion={version}&resourceVersionMatch=Exact")).await;
    assert_eq!((exact.code, exact.reason()), (410, "Expired"));
    for query in [
        "resourceVersion=0".to_owned(),
        format!("resourceVersion={version}&resourceVersionMatch=NotOlderThan"),
        format!("resourceVersion={version}"),
    ] {
        assert_eq!(client.get(&format!("{CONFIG_MAPS}?{query}")).await.names().len(), 3, "{query}");
    }
    let future = format!("{CONFIG_MAPS}?resourceVersion={}", version + 1_000);
    let refused = client.get(&future).await;
    assert_eq!(refused.code, 504);
    assert!(refused.message().starts_with("Too large resource version"), "{}", refused.message());
    assert_eq!(refused.header("retry-after"), "1");
}

#[tokio::test]
async fn without_quorum_readers_are_warned_and_writers_refused() {
    let client = with_maps(1).await;
    client.cluster.break_down(Some(Unavailable::NoQuorum("no leader; 1 of 3 voters is up".into())));
    for path in [CONFIG_MAPS, &format!("{CONFIG_MAPS}/map-000")] {
        let old = client.get(path).await;
        assert_eq!(old.code, 200);
        let warning = "299 - \"this may be out of date: no leader; 1 of 3 voters is up\"";
        assert_eq!(old.header("warning"), warning);
    }
    let refused = client.post(CONFIG_MAPS, &config_map("b")).await;
    assert_eq!((refused.code, refused.reason()), (503, "ServiceUnavailable"));
    // Else a client asks ten times before it says a word.
    assert_eq!((refused.message(), refused.header("retry-after")), ("no leader; 1 of 3 voters is up", ""));
    let asked = client.get(&format!("{CONFIG_MAPS}?resourceVersion=0")).await;
    assert_eq!(asked.header("warning"), "");
    assert_eq!(asked.names(), ["map-000"]);
    client.cluster.break_down(Some(Unavailable::Full("the store is full".into())));
    let full = client.post(CONFIG_MAPS, &config_map("b")).await;
    assert_eq!((full.code, full.reason()), (507, "InsufficientStorage"));
}

#[tokio::test]
async fn objects_are_shown_as_rows_or_as_metadata_to_those_who_ask() {
    let client = with_maps(2).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let shown = client.get_as(CONFIG_MAPS, table).await.ok();
    assert_eq!((&shown["kind"], &shown["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(shown["columnDefinitions"][0]["name"], "Name");
    assert_eq!(shown["rows"][1]["cells"][0], "map-001");
    assert_eq!(shown["rows"][1]["object"]["kind"], "PartialObjectMetadata");
    let whole = client.get_as(&format!("{CONFIG_MAPS}?includeObject=Object"), table).await.ok();
    assert_eq!(whole["rows"][0]["object"]["data"], json!({ "a": "1" }));
    let bare = client.get_as(&format!("{CONFIG_MAPS}?includeObject=None"), table).await.ok();
    assert_eq!(bare["rows"][0]["object"], Value::Null);
    let one = client.get_as(&format!("{CONFIG_MAPS}/map-000"), table).await.ok();
    assert_eq!(one["rows"].as_array().unwrap().len(), 1);
    let metadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let shown = client.get_as(CONFIG_MAPS, metadata).await.ok();
    assert_eq!(shown["kind"], "PartialObjectMetadataList");
    assert_eq!(shown["items"][0]["data"], Value::Null);
    assert_eq!(shown["items"][0]["metadata"]["name"], "map-000");
}

#[tokio::test]
async fn a_long_list_is_compressed_for_those_who_take_it() {
    let client = Client::new();
    let text = "all work and no play ".repeat(1 << 10);
    for number in 0..10 {
        let object = json!({ "metadata": { "name": format!("a{number}") }, "data": { "a": text } });
        client.post(CONFIG_MAPS, &object).await.ok();
    }
    let as_asked = async |path: &str, encoding: &'static str| {
        let mut request = request(Method::GET, path, "", "");
        request.headers_mut().insert("accept-encoding", encoding.parse().unwrap());
        client.send(request).await
    };
    let plain = as_asked(CONFIG_MAPS, "identity").await;
    assert_eq!(plain.header("content-encoding"), "");
    let packed = as_asked(CONFIG_MAPS, "gzip").await;
    assert_eq!((packed.code, packed.header("content-encoding")), (200, "gzip"));
    assert!(packed.bytes.len() < plain.bytes.len() / 10, "{} bytes", packed.bytes.len());
    let mut unpacked = Vec::new();
    GzDecoder::new(&packed.bytes[..]).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == plain.bytes, "what was packed is the answer");
    let short = as_asked(&format!("{CONFIG_MAPS}/a1"), "gzip").await;
    assert_eq!(short.header("content-encoding"), "", "not worth it");
}
