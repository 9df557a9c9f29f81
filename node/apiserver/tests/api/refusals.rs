//! Bad input, bad callers, bad days.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use http::{HeaderName, Method, Request};
use http_body_util::StreamBody;
use hyper::body::{Body as _, Frame};
use serde_json::{Value, json};
use skein_apiserver::limits::Limits;
use skein_apiserver::{Identity, body_from};

use crate::harness::{CONFIG_MAPS, Client, PODS, config_map, pod, request};

#[tokio::test]
async fn a_path_that_names_nothing_is_a_status_of_404() {
    let client = Client::new();
    for path in [
        "/nothing",
        "/api/v1/unicorns",
        "/apis/nobody.example/v1/things",
        "/apis/nobody.example",
        "/api/v1/namespaces/a/pods/b/fly",
    ] {
        let reply = client.get(path).await;
        assert_eq!((reply.code, reply.reason()), (404, "NotFound"), "{path}");
        assert_eq!(reply.value["kind"], "Status", "{path}");
    }
}

#[tokio::test]
async fn a_verb_that_the_resource_has_not_is_405() {
    let client = Client::new();
    for (method, path) in [
        (Method::POST, "/api/v1/namespaces/default/pods/web"),
        (Method::PUT, "/api/v1/namespaces/default/pods"),
        (Method::DELETE, "/api/v1/namespaces/default/pods/web/status"),
        (Method::POST, "/version"),
        (Method::OPTIONS, "/api/v1/namespaces/default/pods"),
    ] {
        let reply = client.send(request(method.clone(), path, "application/json", "{}")).await;
        assert_eq!((reply.code, reply.reason()), (405, "MethodNotAllowed"), "{method} {path}");
    }
}

#[tokio::test]
async fn what_every_client_knows_and_is_not_here_says_what_to_do_instead() {
    let client = Client::new();
    client.post(PODS, &pod("web")).await.ok();
    for (method, path, instead) in [
        (Method::POST, "pods/web/exec?command=ls&stdout=true", "kubectl run"),
        (Method::GET, "pods/web/exec?command=ls&stdout=true", "kubectl run"),
        (Method::POST, "pods/web/attach?container=main", "kubectl logs -f"),
        (Method::POST, "pods/web/portforward", "at its address"),
        (Method::GET, "services/web/proxy/index.html", "at its address"),
        (Method::PATCH, "pods/web/ephemeralcontainers", "kubectl run"),
        (Method::POST, "serviceaccounts/default/token", "skein kubeconfig"),
    ] {
        let path = format!("/api/v1/namespaces/default/{path}");
        let reply = client.send(request(method, &path, "application/json", "{}")).await;
        assert_eq!((reply.code, reply.reason()), (405, "MethodNotAllowed"), "{path}");
        assert!(reply.message().contains("is not served") && reply.message().contains(instead), "{path}");
    }
}

#[tokio::test]
async fn strangers_learn_how_the_server_is_and_nothing_else() {
    let client = Client::new();
    let user = Identity { user: "eve".into(), groups: vec!["developers".into()] };
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping", "/version"] {
        assert_eq!(client.send_as(&user, request(Method::GET, path, "", "")).await.code, 200, "{path}");
    }
    for path in [PODS, "/api", "/apis", "/openapi/v3", "/nothing", "/api/v1/namespaces/default/pods/web/log"]
    {
        let reply = client.send_as(&user, request(Method::GET, path, "", "")).await;
        assert_eq!((reply.code, reply.reason()), (403, "Forbidden"), "{path}");
        assert!(reply.message().contains("User \"eve\" cannot get"), "{}", reply.message());
    }
    let node = Identity { user: "system:node:n1".into(), groups: vec!["system:nodes".into()] };
    assert_eq!(client.send_as(&node, request(Method::GET, PODS, "", "")).await.code, 200);
}

#[tokio::test]
async fn bodies_and_objects_beyond_their_bounds_are_413() {
    let client = Client::new();
    let big = |bytes: usize| json!({ "metadata": { "name": "a" }, "data": { "a": "x".repeat(bytes) } });
    let body = client.post(CONFIG_MAPS, &big(4 << 20)).await;
    assert_eq!((body.code, body.reason()), (413, "RequestEntityTooLarge"));
    let object = client.post(CONFIG_MAPS, &big(2 << 20)).await;
    assert!([413, 422].contains(&object.code), "{}", object.code);
    assert!(client.cluster.value("core/configmaps/default/a").is_none());
}

#[tokio::test]
async fn a_body_that_never_comes_ends_its_request() {
    let short = Duration::from_millis(50);
    let limits = Limits { body_time_max: short, unread_time_max: short, ..Limits::default() };
    let client = Client::with_limits(limits);
    let never = StreamBody::new(futures::stream::pending::<Result<Frame<bytes::Bytes>, std::io::Error>>());
    let request = Request::post(CONFIG_MAPS).body(body_from(never)).unwrap();
    let reply = client.send(request).await;
    assert_eq!((reply.code, reply.reason()), (504, "Timeout"));
}

/// curl reported a broken stream instead of the refusal: the answer went out while it was still sending.
#[tokio::test]
async fn a_refused_body_is_read_to_its_end_before_the_answer_within_bounds() {
    const PIECE: usize = 64 << 10;
    let limits = Limits {
        body_bytes_max: 2 * PIECE,
        unread_bytes_max: 8 * PIECE,
        unread_time_max: Duration::from_millis(200),
        ..Limits::default()
    };
    let client = Client::with_limits(limits);
    let sent = |pieces: usize, then_stall: bool| {
        let read = Arc::new(AtomicUsize::new(0));
        let count = read.clone();
        let frames = futures::stream::iter(0..pieces).map(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Frame::data(bytes::Bytes::from_static(&[b'x'; PIECE])))
        });
        let frames = frames.chain(futures::stream::pending().take(usize::from(then_stall)));
        (read, body_from(StreamBody::new(frames)))
    };
    for (method, path, pieces, stall, code, read) in [
        (Method::PUT, PODS, 5, false, 405, 5),
        (Method::POST, "/api/v1/unicorns", 5, false, 404, 5),
        (Method::POST, CONFIG_MAPS, 5, false, 413, 5),
        // Whoever sends on and on, or stops in the middle, is answered all the same.
        (Method::PUT, PODS, 1000, false, 405, 9),
        (Method::PUT, PODS, 5, true, 405, 5),
    ] {
        let (seen, body) = sent(pieces, stall);
        let request = Request::builder().method(method.clone()).uri(path).body(body).unwrap();
        assert_eq!(client.send(request).await.code, code, "{method} {path}");
        assert_eq!(seen.load(Ordering::Relaxed), read, "{method} {path}");
    }
}

#[tokio::test]
async fn hostile_bodies_are_refused_in_words() {
    let client = Client::new();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        "",
        "null",
        "[]",
        "7",
        "\"x\"",
        "{\"metadata\":7}",
        "{\"metadata\":{\"name\":7}}",
        "\u{0}",
        &deep,
        "{\"data\":{\"a\":{}},\"metadata\":{\"name\":\"a\"}}",
    ] {
        for path in [CONFIG_MAPS, &format!("{PODS}/web/binding"), &format!("{PODS}/web/eviction")] {
            let reply = client.send(request(Method::POST, path, "application/json", body)).await;
            assert!((400..500).contains(&reply.code), "{path} {body:.40}: {}", reply.code);
            assert_eq!(reply.value["kind"], "Status");
        }
    }
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let path = format!("{CONFIG_MAPS}/a");
    for (method, media) in [
        (Method::PUT, "json"),
        (Method::DELETE, "json"),
        (Method::PATCH, "merge-patch+json"),
        (Method::PATCH, "json-patch+json"),
        (Method::PATCH, "strategic-merge-patch+json"),
    ] {
        for body in ["null", "7", "[7]", &deep, "{\"metadata\":7}", "{\"metadata\":{\"finalizers\":7}}"] {
            let reply =
                client.send(request(method.clone(), &path, &format!("application/{media}"), body)).await;
            assert!(reply.code < 500, "{method} {media} {body:.40}: {} {}", reply.code, reply.message());
            client.post(CONFIG_MAPS, &config_map("a")).await;
        }
    }
}

#[tokio::test]
async fn forms_that_cannot_be_served_are_406() {
    let client = Client::new();
    for accept in ["application/vnd.kubernetes.protobuf", "text/html"] {
        let reply = client.get_as(PODS, accept).await;
        assert_eq!((reply.code, reply.reason()), (406, "NotAcceptable"), "{accept}");
    }
    assert_eq!(client.get_as(PODS, "application/vnd.kubernetes.protobuf, */*").await.code, 200);
}

#[tokio::test]
async fn a_client_with_too_much_under_way_is_asked_to_wait() {
    let client = Client::with_limits(Limits { streams_max: 1, ..Limits::default() });
    let path = format!("{CONFIG_MAPS}?watch=1");
    let open = client.open(&path).await;
    let refused = client.get(&path).await;
    assert_eq!(
        (refused.code, refused.reason(), refused.header("retry-after")),
        (429, "TooManyRequests", "1")
    );
    assert_eq!(client.get(CONFIG_MAPS).await.code, 200);
    drop(open);
    let mut again = client.open(&path).await;
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    assert_eq!(again.change().await.1, "a");
}

/// Answers that nobody reads stayed in memory, as many as a client asked for.
#[tokio::test]
async fn an_answer_is_under_way_until_it_is_read() {
    let client = Client::with_limits(Limits { in_flight_max: 1, ..Limits::default() });
    let caller = Identity::administrator("admin");
    let unread = client.api.answer(request(Method::GET, CONFIG_MAPS, "", ""), &caller, "admin").await;
    assert_eq!(unread.status(), 200);
    assert!(unread.body().size_hint().exact().is_some(), "its length is known");
    assert_eq!(client.get(CONFIG_MAPS).await.code, 429);
    drop(unread);
    assert_eq!(client.get(CONFIG_MAPS).await.code, 200);
}

#[tokio::test]
async fn a_panic_ends_its_request_and_nothing_else() {
    let client = Client::new();
    client.cluster.before_propose(|_, _| panic!("a state nobody thought of"));
    let broken = client.post(CONFIG_MAPS, &config_map("a")).await;
    assert_eq!((broken.code, broken.reason()), (500, "InternalError"));
    assert!(!broken.message().contains("nobody thought"), "what the log says is not for clients");
    assert_eq!(client.get(CONFIG_MAPS).await.ok()["items"], json!([]));
    assert_eq!(client.post(CONFIG_MAPS, &config_map("a")).await.code, 201);
}

#[tokio::test]
async fn a_damaged_object_is_our_fault_and_names_none_of_the_others() {
    let client = Client::new();
    client.cluster.put("core/configmaps/default/bad", "{");
    let reply = client.get(&format!("{CONFIG_MAPS}/bad")).await;
    assert_eq!((reply.code, reply.reason()), (500, "InternalError"));
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    assert_eq!(client.get(&format!("{CONFIG_MAPS}/a")).await.ok()["data"]["a"], "1");
}

/// `kubectl delete --as=nobody` deleted, with all rights of whoever called it.
#[tokio::test]
async fn nobody_gets_their_own_rights_who_asks_for_those_of_another() {
    let client = Client::new();
    client.post(CONFIG_MAPS, &config_map("kept")).await.ok();
    let path = format!("{CONFIG_MAPS}/kept");
    for (name, value) in [
        ("Impersonate-User", "nobody"),
        ("Impersonate-Group", "developers"),
        ("Impersonate-Uid", "1"),
        ("Impersonate-Extra-scopes", "view"),
        ("X-Remote-User", "nobody"),
    ] {
        for (method, path) in [(Method::DELETE, path.as_str()), (Method::GET, "/healthz")] {
            let mut request = request(method, path, "", "");
            request.headers_mut().insert(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
            let reply = client.send(request).await;
            assert_eq!((reply.code, reply.reason()), (403, "Forbidden"), "{name}");
            assert!(reply.message().contains(&name.to_lowercase()), "{}", reply.message());
        }
    }
    client.get(&path).await.ok();
}

#[tokio::test]
async fn a_token_is_refused_and_not_passed_over() {
    let client = Client::new();
    let with_token = || {
        let mut request = request(Method::GET, "/version", "", "");
        request.headers_mut().insert("authorization", "Bearer abc".parse().unwrap());
        request
    };
    let reply = client.send_as(&Identity::anonymous(), with_token()).await;
    assert_eq!((reply.code, reply.reason()), (401, "Unauthorized"));
    // As upstream, whoever shows a good certificate is known by that.
    assert_eq!(client.send(with_token()).await.code, 200);
}

/// `kubectl run -i --rm` took the refusal for the end of its pod, and deleted it while it ran.
#[tokio::test]
async fn whoever_attaches_to_what_has_just_begun_is_refused_when_it_has_ended() {
    let client = Client::new();
    let attach = || client.get("/api/v1/namespaces/default/pods/job/attach?container=main&stdout=true");
    assert_eq!(attach().await.code, 404);
    let mut job = client.post(PODS, &pod("job")).await.ok();
    let now = jiff::Timestamp::now();
    let mut becomes = async |state: Value| {
        job["status"] = json!({ "phase": "Running", "containerStatuses": [
            { "name": "main", "ready": true, "restartCount": 0, "image": "x", "imageID": "x", "state": state },
        ] });
        job["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        client.put(&format!("{PODS}/job/status"), &job).await.ok();
    };
    let running = |seconds: i64| {
        let began = now - jiff::SignedDuration::from_secs(seconds);
        json!({ "running": { "startedAt": began.to_string() } })
    };
    becomes(running(3600)).await;
    assert_eq!(attach().await.code, 405, "nobody waits for what has run for long");
    becomes(running(0)).await;
    let mut attached = Box::pin(attach());
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut attached).await.is_err());
    client.post(PODS, &pod("job-2")).await.ok();
    client.cluster.compact();
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut attached).await.is_err());
    becomes(json!({ "terminated": { "exitCode": 0 } })).await;
    let reply = attached.await;
    assert_eq!((reply.code, reply.reason()), (405, "MethodNotAllowed"));
    becomes(running(0)).await;
    let attached = attach();
    let (path, at_once) = (format!("{PODS}/job"), json!({ "gracePeriodSeconds": 0 }));
    let removed = client.delete(&path, &at_once);
    let (reply, _) = tokio::join!(attached, removed);
    assert_eq!(reply.code, 405);
}
