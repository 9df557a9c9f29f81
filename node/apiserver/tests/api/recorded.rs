//! What a kubectl of 1.32 really sends, recorded once and replayed wherever there is none.
//!
//! The scenario is a list of commands and of what the cluster's own parts do in between. Recording runs the
//! commands with the kubectl in PATH against an API without TLS that notes each request:
//! `SKEIN_RECORD=1 cargo test -p skein-apiserver --test api recorded`. Replaying sends the noted requests and
//! expects the noted answers: revisions, uids and generated names follow from the order alone.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skein_apiserver::testing::LogText;
use skein_apiserver::{Body, Identity, full};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::harness::{Client, DEPLOYMENTS, PATIENCE, PODS};

/// One request of kubectl, and what it was answered.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Recorded {
    method: String,
    path: String,
    /// Those that decide about the answer.
    headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    body: String,
    /// The body is no text, so it stands here in base64.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    base64: bool,
    code: u16,
    /// The kind of what was answered; nothing for a stream.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    kind: String,
}

const HEADERS: [&str; 2] = ["accept", "content-type"];

enum Step {
    /// A command, and whether it ends well.
    Kubectl(&'static [&'static str], bool),
    /// What controllers and nodes would do.
    Inside(fn(&Client) -> Deed),
}

/// Method, path and body of a request from inside.
type Deed = (Method, String, &'static str, Value);

const MANIFEST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: main, image: 'skein.dev/tiny:1', ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

fn scenario() -> Vec<Step> {
    use Step::{Inside, Kubectl};
    vec![
        Kubectl(&["version"], true),
        Kubectl(&["api-resources"], true),
        Kubectl(&["api-versions"], true),
        Kubectl(&["cluster-info"], true),
        Kubectl(&["auth", "whoami"], true),
        Kubectl(&["auth", "can-i", "create", "pods"], true),
        Kubectl(&["auth", "can-i", "--list"], true),
        Kubectl(&["explain", "deployment.spec.replicas"], true),
        Kubectl(&["apply", "-f", "web.yaml"], true),
        Kubectl(&["apply", "-f", "web.yaml"], true),
        Kubectl(&["diff", "-f", "web.yaml"], true),
        Kubectl(&["diff", "-f", "blue.yaml"], false),
        Kubectl(&["apply", "-f", "blue.yaml", "--dry-run=server"], true),
        Kubectl(&["apply", "-f", "blue.yaml"], true),
        Kubectl(&["apply", "-f", "wrong.yaml"], false),
        Kubectl(&["apply", "-f", "wrong.yaml", "--validate=warn"], true),
        Kubectl(&["apply", "-f", "blue.yaml", "--server-side"], false),
        Kubectl(&["create", "deployment", "other", "--image=skein.dev/tiny"], true),
        Kubectl(&["create", "configmap", "settings", "--from-literal=a=1"], true),
        Kubectl(&["create", "configmap", "settings"], false),
        Kubectl(&["create", "secret", "generic", "key", "--from-literal=a=1"], true),
        Kubectl(&["create", "service", "clusterip", "plain", "--tcp=80"], true),
        Kubectl(&["create", "namespace", "team"], true),
        Kubectl(&["create", "serviceaccount", "robot"], true),
        Kubectl(&["run", "one", "--image=skein.dev/tiny", "--labels=app=one"], true),
        Kubectl(&["expose", "deployment", "web", "--name=web2", "--port=81"], true),
        Kubectl(&["get", "all"], true),
        Kubectl(&["get", "pods,svc", "-A", "-o", "wide"], true),
        Kubectl(&["get", "deploy", "web", "-o", "yaml"], true),
        Kubectl(&["get", "deploy", "-l", "app in (web)", "-o", "json"], true),
        Kubectl(&["get", "pods", "--field-selector=spec.nodeName=", "-o", "name"], true),
        Kubectl(&["get", "cm", "--chunk-size=1"], true),
        Kubectl(&["get", "deploy", "web", "--subresource=scale"], true),
        Kubectl(&["get", "pod", "nobody"], false),
        Kubectl(&["get", "unicorns"], false),
        Kubectl(&["describe", "deploy", "web"], true),
        Kubectl(&["describe", "pod", "one"], true),
        Kubectl(&["describe", "svc", "web"], true),
        Kubectl(&["label", "pod", "one", "tier=front"], true),
        Kubectl(&["annotate", "pod", "one", "note=hello"], true),
        Kubectl(&["edit", "deploy", "web"], true),
        Kubectl(&["patch", "deploy", "web", "-p", r#"{"spec":{"replicas":3}}"#], true),
        Kubectl(
            &["patch", "deploy", "web", "--type=merge", "-p", r#"{"metadata":{"labels":{"a":"b"}}}"#],
            true,
        ),
        Kubectl(
            &[
                "patch",
                "deploy",
                "web",
                "--type=json",
                "-p",
                r#"[{"op":"remove","path":"/metadata/labels/a"}]"#,
            ],
            true,
        ),
        Kubectl(
            &[
                "patch",
                "deploy",
                "web",
                "--subresource=status",
                "--type=merge",
                "-p",
                r#"{"status":{"replicas":3}}"#,
            ],
            true,
        ),
        Kubectl(&["scale", "deploy/web", "--replicas=5"], true),
        Kubectl(&["scale", "deploy/web", "--current-replicas=4", "--replicas=6"], false),
        Kubectl(&["set", "image", "deploy/web", "main=skein.dev/tiny:3"], true),
        Kubectl(&["set", "env", "deploy/web", "COLOR=blue"], true),
        Kubectl(&["set", "resources", "deploy/web", "--limits=cpu=1"], true),
        Kubectl(&["rollout", "pause", "deploy/web"], true),
        Kubectl(&["rollout", "resume", "deploy/web"], true),
        Kubectl(&["rollout", "history", "deploy/web"], true),
        Inside(|_| {
            let status = json!({ "status": {
                "observedGeneration": 100, "replicas": 5, "updatedReplicas": 5, "readyReplicas": 5, "availableReplicas": 5,
                "conditions": [{ "type": "Available", "status": "True" }],
            } });
            (Method::PATCH, format!("{DEPLOYMENTS}/web/status"), "application/merge-patch+json", status)
        }),
        Kubectl(&["rollout", "status", "deploy/web"], true),
        Kubectl(&["wait", "--for=condition=Available", "deploy/web", "--timeout=20s"], true),
        Inside(|_| {
            let target = json!({ "target": { "kind": "Node", "name": "kitchen" } });
            (Method::POST, format!("{PODS}/one/binding"), "application/json", target)
        }),
        Inside(|_| {
            let status = json!({ "status": { "phase": "Running", "containerStatuses": [{
                "name": "one", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
            }] } });
            (Method::PATCH, format!("{PODS}/one/status"), "application/merge-patch+json", status)
        }),
        Kubectl(&["logs", "one"], true),
        Kubectl(&["logs", "-l", "app=one", "--tail=1", "--since=1h", "--timestamps"], true),
        Kubectl(&["logs", "one", "--previous"], false),
        Kubectl(&["exec", "one", "--", "ls"], false),
        Kubectl(&["events"], true),
        Inside(|_| {
            let node = json!({ "metadata": { "name": "kitchen" } });
            (Method::POST, "/api/v1/nodes".to_owned(), "application/json", node)
        }),
        Kubectl(&["cordon", "kitchen"], true),
        Kubectl(&["taint", "node", "kitchen", "a=b:NoSchedule"], true),
        Kubectl(&["drain", "kitchen", "--force", "--timeout=1s"], false),
        Kubectl(&["uncordon", "kitchen"], true),
        Kubectl(&["replace", "-f", "web.yaml"], true),
        Kubectl(&["delete", "pod", "one", "--force"], true),
        Kubectl(&["delete", "cm", "--all"], true),
        Kubectl(&["delete", "svc", "-l", "app=plain", "--wait=false"], true),
        Kubectl(&["delete", "deploy", "other", "--cascade=background"], true),
        Kubectl(&["delete", "-f", "web.yaml"], true),
        Kubectl(&["delete", "pod", "nobody", "--ignore-not-found"], true),
    ]
}

fn client() -> Client {
    let client = Client::new();
    let (logs, text) = watch::channel(LogText { text: "one\ntwo\n".into(), ended: true });
    client.cluster.set_logs("default/one/one", text);
    drop(logs);
    client
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/api/recorded/kubectl-1.32.json")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubectl_that_is_not_here_is_answered_as_it_was() {
    if std::env::var_os("SKEIN_RECORD").is_some() {
        return record().await;
    }
    let text = std::fs::read_to_string(file()).expect("the recording lies beside the tests");
    let recorded: Vec<Vec<Recorded>> = serde_json::from_str(&text).expect("the recording can be read");
    let mut recorded = recorded.into_iter();
    let client = client();
    for step in scenario() {
        match step {
            Step::Inside(deed) => inside(&client, deed).await,
            Step::Kubectl(words, _) => {
                for request in recorded.next().expect("every command was recorded") {
                    let (code, kind) = replay(&client, &request).await;
                    let asked = format!("kubectl {words:?}: {} {}", request.method, request.path);
                    assert_eq!((code, kind), (request.code, request.kind), "{asked}");
                }
            }
        }
    }
    assert!(recorded.next().is_none(), "the scenario was changed; record it again");
}

async fn inside(client: &Client, deed: fn(&Client) -> Deed) {
    let (method, path, media, body) = deed(client);
    client.send(crate::harness::request(method, &path, media, &body.to_string())).await.ok();
}

async fn replay(client: &Client, recorded: &Recorded) -> (u16, String) {
    let mut request = Request::builder().method(recorded.method.as_str()).uri(&recorded.path);
    for (name, value) in &recorded.headers {
        request = request.header(name, value);
    }
    let body = if recorded.base64 {
        STANDARD.decode(&recorded.body).unwrap()
    } else {
        recorded.body.clone().into_bytes()
    };
    let answer = client.api.answer(request.body(full(body)).unwrap(), &admin(), "kubectl").await;
    let code = answer.status().as_u16();
    // Of a watch only that it begins.
    if is_stream(&recorded.path) {
        return (code, String::new());
    }
    let bytes = timeout(PATIENCE, answer.into_body().collect()).await.expect("an answer ends").unwrap();
    (code, kind_of(&bytes.to_bytes()))
}

fn kind_of(bytes: &[u8]) -> String {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    value["kind"].as_str().unwrap_or_default().to_owned()
}

fn is_stream(path: &str) -> bool {
    path.contains("watch=true") || path.contains("watch=1")
}

fn admin() -> Identity {
    Identity::administrator("admin")
}

/// Runs the scenario with the kubectl in PATH and writes what it sent.
async fn record() {
    let client = Arc::new(client());
    let noted: Arc<Mutex<Vec<Recorded>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let (serving, notes) = (client.clone(), noted.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (client, notes) = (serving.clone(), notes.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let (client, notes) = (client.clone(), notes.clone());
                    async move { Ok::<_, Infallible>(note(&client, &notes, request).await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(home.path().join(name), text).unwrap();
    write("web.yaml", MANIFEST.to_owned());
    write("blue.yaml", MANIFEST.replace("tiny:1", "tiny:2"));
    write("wrong.yaml", MANIFEST.replace("replicas", "replicsa"));
    let mut recorded = Vec::new();
    for step in scenario() {
        match step {
            Step::Inside(deed) => inside(&client, deed).await,
            Step::Kubectl(words, well) => {
                let command = Command::new("kubectl")
                    .args(words)
                    .args(["--server", &server])
                    .current_dir(home.path())
                    .env("HOME", home.path())
                    .env("EDITOR", "sed -i s/replicas:.2/replicas:\\ 4/")
                    .env_remove("KUBECONFIG")
                    .stdin(Stdio::null())
                    .output();
                let said = timeout(PATIENCE, command).await;
                let said = said.unwrap_or_else(|_| panic!("kubectl {words:?} does not end")).unwrap();
                assert_eq!(
                    said.status.success(),
                    well,
                    "{words:?}: {}",
                    String::from_utf8_lossy(&said.stderr)
                );
                recorded.push(std::mem::take(&mut *noted.lock().unwrap()));
            }
        }
    }
    let path = file();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, serde_json::to_string_pretty(&recorded).unwrap() + "\n").unwrap();
}

async fn note(client: &Client, notes: &Mutex<Vec<Recorded>>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let path = head.uri.path_and_query().unwrap().as_str().to_owned();
    let text = std::str::from_utf8(&body).ok().map(str::to_owned);
    let headers = HEADERS.iter().filter_map(|name| {
        let value = head.headers.get(*name)?.to_str().ok()?;
        Some(((*name).to_owned(), value.to_owned()))
    });
    let at = {
        let mut notes = notes.lock().unwrap();
        notes.push(Recorded {
            method: head.method.to_string(),
            path: path.clone(),
            headers: headers.collect(),
            base64: text.is_none(),
            body: text.unwrap_or_else(|| STANDARD.encode(&body)),
            code: 0,
            kind: String::new(),
        });
        notes.len() - 1
    };
    let mut plain = Request::builder().method(head.method).uri(head.uri);
    for (name, value) in head.headers.iter().filter(|(name, _)| *name != "accept-encoding") {
        plain = plain.header(name, value);
    }
    let answer = client.api.answer(plain.body(full(body)).unwrap(), &admin(), "kubectl").await;
    let (head, mut body) = answer.into_parts();
    let mut kind = String::new();
    if !is_stream(&path) {
        let whole = body.collect().await.unwrap().to_bytes();
        kind = kind_of(&whole);
        body = full(whole);
    }
    if let Some(recorded) = notes.lock().unwrap().get_mut(at) {
        (recorded.code, recorded.kind) = (head.status.as_u16(), kind);
    }
    Response::from_parts(head, body)
}
