//! The API in this process, without sockets.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use skein_apiserver::limits::Limits;
use skein_apiserver::testing::MemoryCluster;
use skein_apiserver::{Api, Body, Identity, Settings, full};
use tokio_util::sync::CancellationToken;

/// Longer than anything takes on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The API as an administrator sees it.
pub(crate) struct Client {
    pub(crate) cluster: MemoryCluster,
    pub(crate) api: Arc<Api>,
    pub(crate) stop: CancellationToken,
}

/// An answer that has come to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
    /// The body, where it is JSON.
    pub(crate) value: Value,
}

impl Reply {
    /// The reason in a `Status`.
    pub(crate) fn reason(&self) -> &str {
        self.value["reason"].as_str().unwrap_or_default()
    }

    pub(crate) fn message(&self) -> &str {
        self.value["message"].as_str().unwrap_or_default()
    }

    pub(crate) fn version(&self) -> u64 {
        self.value["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    }

    /// The object, which must have been answered with success.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!((200..300).contains(&self.code), "{}: {}", self.code, self.value);
        self.value
    }

    /// The names of a list's items.
    #[track_caller]
    pub(crate) fn names(self) -> Vec<String> {
        let list = self.ok();
        let items = list["items"].as_array().unwrap_or_else(|| panic!("no list: {list}"));
        items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Client {
    pub(crate) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        Self::over(MemoryCluster::with_default_namespace(), limits)
    }

    /// A client of another API over the same cluster.
    pub(crate) fn another_node(&self) -> Self {
        Self::over(self.cluster.clone(), Limits::default())
    }

    /// A client that works inside of a cluster, as controllers and nodes do.
    pub(crate) fn on(cluster: MemoryCluster) -> Self {
        Self::over(cluster, Limits::default())
    }

    fn over(cluster: MemoryCluster, limits: Limits) -> Self {
        let stop = CancellationToken::new();
        let api = Api::new(Arc::new(cluster.clone()), Settings::default(), limits, stop.clone());
        Client { cluster, api: Arc::new(api), stop }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(request(Method::GET, path, "", "")).await
    }

    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Reply {
        let mut request = request(Method::GET, path, "", "");
        request.headers_mut().insert("accept", accept.parse().unwrap());
        self.send(request).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(request(Method::POST, path, "application/json", &body.to_string())).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Reply {
        self.send(request(Method::PUT, path, "application/json", &body.to_string())).await
    }

    /// `form`: `json`, `merge` or `strategic-merge`.
    pub(crate) async fn patch(&self, path: &str, form: &str, body: &Value) -> Reply {
        let media = format!("application/{form}-patch+json");
        self.send(request(Method::PATCH, path, &media, &body.to_string())).await
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Reply {
        let body = if options.is_null() { String::new() } else { options.to_string() };
        self.send(request(Method::DELETE, path, "application/json", &body)).await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        self.send_as(&Identity::administrator("admin"), request).await
    }

    pub(crate) async fn send_as(&self, caller: &Identity, request: Request<Body>) -> Reply {
        let answer = async {
            let (head, body) = self.api.answer(request, caller, &caller.user).await.into_parts();
            (head, body.collect().await.unwrap().to_bytes().to_vec())
        };
        let (head, bytes) = tokio::time::timeout(PATIENCE, answer).await.expect("an answer comes in time");
        let value = serde_json::from_slice(&bytes).unwrap_or_default();
        Reply { code: head.status.as_u16(), headers: head.headers, bytes, value }
    }

    /// An open stream.
    pub(crate) async fn open(&self, path: &str) -> Stream {
        self.open_as(path, "application/json").await
    }

    pub(crate) async fn open_as(&self, path: &str, accept: &str) -> Stream {
        let mut request = request(Method::GET, path, "", "");
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let caller = Identity::administrator("admin");
        let answer = self.api.answer(request, &caller, &caller.user);
        let response = tokio::time::timeout(PATIENCE, answer).await.expect("an answer comes in time");
        assert_eq!(response.status(), 200);
        Stream { body: response.into_body(), rest: Vec::new() }
    }
}

pub(crate) fn request(method: Method, path: &str, media: &str, body: &str) -> Request<Body> {
    let builder = Request::builder().method(method).uri(path);
    let builder = if media.is_empty() { builder } else { builder.header("content-type", media) };
    builder.body(full(body.to_owned())).unwrap()
}

/// The lines of a stream.
pub(crate) struct Stream {
    body: Body,
    rest: Vec<u8>,
}

impl Stream {
    /// The next line as JSON; `None` when the stream has ended.
    pub(crate) async fn event(&mut self) -> Option<Value> {
        self.line().await.map(|line| serde_json::from_str(&line).unwrap())
    }

    /// Type, name and version of the next event.
    pub(crate) async fn change(&mut self) -> (String, String, u64) {
        let event = self.event().await.expect("the watch goes on");
        let metadata = &event["object"]["metadata"];
        let version = metadata["resourceVersion"].as_str().unwrap_or("0").parse().unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&metadata["name"]), version)
    }

    /// The next line.
    pub(crate) async fn line(&mut self) -> Option<String> {
        tokio::time::timeout(PATIENCE, self.next_line()).await.expect("the stream says something in time")
    }

    async fn next_line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(String::from_utf8(line).unwrap().trim_end().to_owned());
            }
            let piece = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(&piece.into_data().unwrap());
        }
    }
}

pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";
pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub(crate) const SERVICES: &str = "/api/v1/namespaces/default/services";
pub(crate) const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

pub(crate) fn config_map(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "data": { "a": "1" } })
}

pub(crate) fn labelled(name: &str, app: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { "app": app } } })
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "main", "image": "skein.dev/tiny" }] },
    })
}

pub(crate) fn deployment(name: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": 2, "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "main", "image": "skein.dev/tiny" }] },
            },
        },
    })
}

pub(crate) fn service(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "selector": { "app": name }, "ports": [{ "port": 80 }] } })
}
