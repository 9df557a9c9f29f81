//! Unmodified kubectl against the API: the one in PATH, and those that `SKEIN_KUBECTL` names (several,
//! separated by colons). Without any, the recorded requests of the other files stand for them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use skein_apiserver::limits::Limits;
use skein_apiserver::testing::{LogText, MemoryCluster};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::harness::{Client, DEPLOYMENTS, PATIENCE, PODS, deployment, pod};
use crate::served::Served;

/// One kubectl with a server of its own.
struct Kubectl {
    program: PathBuf,
    served: Served,
    /// What the cluster's own parts would do: controllers, nodes.
    inside: Client,
}

/// A kubectl that goes on running; killed when dropped.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// Every kubectl there is.
async fn all() -> Vec<Kubectl> {
    let named = std::env::var("SKEIN_KUBECTL").unwrap_or_default();
    let path = std::env::var("PATH").unwrap_or_default();
    let in_path =
        path.split(':').map(|directory| Path::new(directory).join("kubectl")).find(|path| path.is_file());
    let programs: Vec<PathBuf> =
        named.split(':').filter(|name| !name.is_empty()).map(PathBuf::from).chain(in_path).collect();
    let mut all = Vec::new();
    for program in programs {
        let cluster = MemoryCluster::with_default_namespace();
        let served = Served::new(cluster.clone(), Limits::default()).await;
        served.kubeconfig();
        all.push(Kubectl { program, served, inside: Client::on(cluster) });
    }
    all
}

impl Kubectl {
    fn command(&self, arguments: &[&str]) -> Command {
        let directory = self.served.directory();
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(directory)
            .env("HOME", directory)
            .env("KUBECONFIG", directory.join("kubeconfig"))
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn finish(&self, arguments: &[&str]) -> (bool, String, String) {
        let output = self.command(arguments).output();
        let output = timeout(PATIENCE, output)
            .await
            .unwrap_or_else(|_| panic!("{arguments:?} takes too long"))
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    /// What it prints, after it ended well.
    async fn run(&self, arguments: &[&str]) -> String {
        let (ok, out, err) = self.finish(arguments).await;
        assert!(ok, "{} {arguments:?}:\n{out}{err}", self.program.display());
        out
    }

    /// What it complains of, after it ended badly.
    async fn fail(&self, arguments: &[&str]) -> String {
        let (ok, out, err) = self.finish(arguments).await;
        assert!(!ok, "{} {arguments:?} should fail:\n{out}{err}", self.program.display());
        err
    }

    fn start(&self, arguments: &[&str]) -> Running {
        let mut child = self.command(arguments).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.served.directory().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Running {
    /// The next line that contains `text`.
    async fn line(&mut self, text: &str) -> String {
        timeout(PATIENCE, async {
            loop {
                let line =
                    self.lines.next_line().await.unwrap().unwrap_or_else(|| panic!("ended before {text:?}"));
                if line.contains(text) {
                    return line;
                }
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{text:?} is not printed in time"))
    }

    async fn ends_well(mut self) {
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends in time").unwrap();
        assert!(status.success());
    }
}

const MANIFEST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: main, image: 'skein.dev/tiny:1', ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_applied_changed_and_deleted() {
    for kubectl in all().await {
        let file = kubectl.write("web.yaml", MANIFEST);
        let applied = kubectl.run(&["apply", "-f", &file]).await;
        assert!(
            applied.contains("deployment.apps/web created") && applied.contains("service/web created"),
            "{applied}"
        );
        assert_eq!(kubectl.run(&["apply", "-f", &file]).await.matches("unchanged").count(), 2);
        let file = kubectl.write("web.yaml", &MANIFEST.replace("tiny:1", "tiny:2"));
        assert!(kubectl.run(&["apply", "-f", &file]).await.contains("deployment.apps/web configured"));
        let wide = kubectl.run(&["get", "deploy,svc", "-o", "wide"]).await;
        assert!(
            wide.contains("IMAGES") && wide.contains("skein.dev/tiny:2") && wide.contains("10.43.0.2"),
            "{wide}"
        );

        kubectl.run(&["scale", "deploy/web", "--replicas=5"]).await;
        kubectl.run(&["scale", "deploy/web", "--current-replicas=5", "--replicas=6"]).await;
        kubectl.run(&["label", "deploy", "web", "tier=front"]).await;
        kubectl.run(&["annotate", "deploy", "web", "note=hello"]).await;
        kubectl.run(&["patch", "deploy", "web", "-p", r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","image":"skein.dev/tiny:3"}]}}}}"#]).await;
        kubectl
            .run(&[
                "patch",
                "deploy",
                "web",
                "--type=json",
                "-p",
                r#"[{"op":"replace","path":"/spec/replicas","value":7}]"#,
            ])
            .await;
        kubectl
            .run(&[
                "patch",
                "deploy",
                "web",
                "--type=merge",
                "-p",
                r#"{"metadata":{"labels":{"tier":null}}}"#,
            ])
            .await;
        kubectl.run(&["set", "env", "deploy/web", "COLOR=blue"]).await;
        let edit = kubectl
            .command(&["edit", "deploy", "web"])
            .env("EDITOR", "sed -i s/note:.hello/note:\\ edited/")
            .output();
        assert!(timeout(PATIENCE, edit).await.unwrap().unwrap().status.success());
        let object: Value =
            serde_json::from_str(&kubectl.run(&["get", "deploy", "web", "-o", "json"]).await).unwrap();
        assert_eq!(object["spec"]["replicas"], 7);
        assert_eq!(object["metadata"]["annotations"]["note"], "edited");
        assert_eq!(object["metadata"]["labels"], json!({ "app": "web" }));
        let container = &object["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(
            (&container["image"], &container["env"][0]["value"]),
            (&json!("skein.dev/tiny:3"), &json!("blue"))
        );

        kubectl.run(&["create", "configmap", "settings", "--from-literal=a=1"]).await;
        kubectl.run(&["create", "secret", "generic", "key", "--from-literal=a=1"]).await;
        kubectl.run(&["create", "namespace", "team"]).await;
        kubectl.run(&["create", "deployment", "other", "--image=skein.dev/tiny", "-n", "team"]).await;
        assert!(kubectl.run(&["get", "deploy", "-A"]).await.contains("team"));
        assert!(kubectl.run(&["describe", "deploy", "web"]).await.contains("7 desired"));
        assert!(kubectl.run(&["get", "cm", "settings", "-o", "yaml"]).await.contains("a: \"1\""));
        assert!(kubectl.run(&["get", "all"]).await.contains("deployment.apps/web"));
        assert!(kubectl.run(&["delete", "-f", &file]).await.contains("deleted"));
        assert!(kubectl.fail(&["get", "deploy", "web"]).await.contains("NotFound"));
        assert!(kubectl.run(&["delete", "cm", "--all"]).await.contains("settings"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_explained() {
    for kubectl in all().await {
        let broken =
            kubectl.write("broken.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}\n");
        assert!(kubectl.fail(&["apply", "-f", &broken]).await.contains("metadata.name"));
        let unknown = kubectl.write("unknown.yaml", "apiVersion: v1\nkind: Unicorn\nmetadata: {name: a}\n");
        let refused = kubectl.fail(&["apply", "-f", &unknown]).await;
        assert!(refused.contains("no matches for kind \"Unicorn\" in version \"v1\""), "{refused}");
        kubectl.run(&["create", "configmap", "a"]).await;
        assert!(kubectl.fail(&["create", "configmap", "a"]).await.contains("already exists"));
        assert!(kubectl.fail(&["delete", "namespace", "default"]).await.contains("may not be deleted"));
        assert!(kubectl.fail(&["create", "configmap", "a", "-n", "nowhere"]).await.contains("not found"));
    }
}

/// Every form that a field may have, so that no client finds fault with what the server would take.
const FORMS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: forms, creationTimestamp: null}
spec:
  replicas: 1
  selector: {matchLabels: {app: forms}}
  strategy: {rollingUpdate: {maxSurge: 25%, maxUnavailable: 1}}
  template:
    metadata: {labels: {app: forms}, creationTimestamp: null}
    spec:
      volumes:
      - {name: scratch, emptyDir: {sizeLimit: 10Mi}}
      - {name: settings, configMap: {name: settings, defaultMode: 420, items: [{key: a, path: a}]}}
      containers:
      - name: main
        image: skein.dev/tiny
        resources: {limits: {cpu: 1, memory: 64Mi}, requests: {cpu: 0.5}}
        livenessProbe: {httpGet: {path: /, port: 80}}
        readinessProbe: {httpGet: {path: /, port: web}}
        ports: [{name: web, containerPort: 80}]
        volumeMounts: [{name: scratch, mountPath: /scratch}]
        securityContext: {runAsUser: 1000, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Secret
metadata: {name: forms}
data: {a: YQ==}
stringData: {b: b}
";

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_explained_and_checked() {
    for kubectl in all().await {
        let pod = kubectl.run(&["explain", "pod"]).await;
        assert!(pod.contains("Pod is a collection of containers") && pod.contains("spec"), "{pod}");
        let replicas = kubectl.run(&["explain", "deployment.spec.replicas"]).await;
        assert!(replicas.contains("integer") && replicas.contains("Number of desired pods"), "{replicas}");
        let limits = kubectl.run(&["explain", "pods.spec.containers.resources.limits"]).await;
        assert!(limits.contains("map[string]"), "{limits}");
        for kind in ["cm", "secret", "svc", "ns", "no", "sa", "ev", "rs", "lease"] {
            assert!(kubectl.run(&["explain", kind, "--recursive"]).await.contains("metadata"), "{kind}");
        }
        assert!(kubectl.fail(&["explain", "pod.spec.unicorns"]).await.contains("unicorns"));

        let file = kubectl.write("forms.yaml", FORMS);
        assert_eq!(
            kubectl.run(&["apply", "--dry-run=server", "-f", &file]).await.matches("created").count(),
            2
        );
        kubectl.run(&["apply", "-f", &file]).await;
        kubectl.run(&["apply", "-f", &file]).await;
        assert_eq!(kubectl.run(&["get", "deploy", "forms", "-o=jsonpath={.metadata.generation}"]).await, "1");
        kubectl.run(&["diff", "-f", &file]).await;
        let changed = kubectl.write("changed.yaml", &FORMS.replace("replicas: 1", "replicas: 4"));
        let (ok, shown, _) = kubectl.finish(&["diff", "-f", &changed]).await;
        assert!(!ok && shown.contains("+  replicas: 4") && !shown.contains("-  resourceVersion"), "{shown}");

        // Lists merge by their keys: what others added stays, what the manifest no longer has goes.
        let port = r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","ports":[{"containerPort":81}]},{"name":"other","image":"x"}]}}}}"#;
        kubectl.run(&["patch", "deploy", "forms", "-p", port]).await;
        let fewer = kubectl.write(
            "fewer.yaml",
            &FORMS.replace(
                "ports: [{name: web, containerPort: 80}]",
                "ports: [{name: web, containerPort: 82}]",
            ),
        );
        kubectl.run(&["apply", "-f", &fewer]).await;
        let ports = "-o=jsonpath={.spec.template.spec.containers[*].ports[*].containerPort} {.spec.template.spec.containers[*].name}";
        assert_eq!(kubectl.run(&["get", "deploy", "forms", ports]).await, "82 81 main other");

        for (from, to, complaint) in [
            ("replicas: 1", "replicsa: 1", "replicsa"),
            ("replicas: 1", "replicas: many", "replicas"),
            ("image: skein.dev/tiny", "images: skein.dev/tiny", "images"),
        ] {
            let wrong = kubectl.write("wrong.yaml", &FORMS.replace(from, to));
            let refused = kubectl.fail(&["apply", "-f", &wrong]).await;
            assert!(refused.contains(complaint), "{to}: {refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_watched_and_waited_for() {
    for kubectl in all().await {
        kubectl.inside.post(PODS, &pod("web")).await.ok();
        kubectl.inside.post(DEPLOYMENTS, &deployment("web")).await.ok();

        let mut watching = kubectl.start(&["get", "pods", "-w"]);
        watching.line("web").await;
        kubectl.inside.post(PODS, &pod("later")).await.ok();
        watching.line("later").await;
        drop(watching);

        let waiting = kubectl.start(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
        let mut following = kubectl.start(&["rollout", "status", "deploy/web"]);
        following.line("Waiting").await;
        let ready = json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
        kubectl.inside.patch(&format!("{PODS}/web/status"), "merge", &ready).await.ok();
        let available = json!({ "status": {
            "observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2,
        } });
        kubectl.inside.patch(&format!("{DEPLOYMENTS}/web/status"), "merge", &available).await.ok();
        waiting.ends_well().await;
        following.line("successfully rolled out").await;

        // A pod on a node goes when its node says so, and kubectl waits for that.
        kubectl
            .inside
            .post(&format!("{PODS}/web/binding"), &json!({ "target": { "kind": "Node", "name": "n1" } }))
            .await
            .ok();
        let mut deleting = kubectl.start(&["delete", "pod", "web"]);
        deleting.line("deleted").await;
        let gone = kubectl.start(&["wait", "--for=delete", "pod/web", "--timeout=60s"]);
        kubectl.inside.delete(&format!("{PODS}/web?gracePeriodSeconds=0"), &Value::Null).await.ok();
        deleting.ends_well().await;
        gone.child.wait_with_output().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_undone() {
    for kubectl in all().await {
        let kubectl = &kubectl;
        let owner = kubectl.inside.post(DEPLOYMENTS, &deployment("web")).await.ok();
        for (revision, image) in [("1", "skein.dev/tiny:1"), ("2", "skein.dev/tiny:2")] {
            let mut set = deployment(&format!("web-{revision}"));
            set["metadata"]["annotations"] = json!({ "deployment.kubernetes.io/revision": revision });
            set["metadata"]["labels"] = json!({ "app": "web" });
            set["metadata"]["ownerReferences"] = json!([{
                "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": owner["metadata"]["uid"], "controller": true,
            }]);
            set["spec"]["selector"] = json!({ "matchLabels": { "app": "web" } });
            set["spec"]["template"]["metadata"]["labels"] = json!({ "app": "web" });
            set["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
            kubectl.inside.post("/apis/apps/v1/namespaces/default/replicasets", &set).await.ok();
        }
        let mark = json!({ "metadata": { "annotations": { "deployment.kubernetes.io/revision": "2" } } });
        kubectl.inside.patch(&format!("{DEPLOYMENTS}/web"), "merge", &mark).await.ok();
        assert!(kubectl.run(&["rollout", "history", "deploy/web"]).await.contains('1'));
        kubectl.run(&["rollout", "undo", "deploy/web"]).await;
        let object = kubectl.inside.get(&format!("{DEPLOYMENTS}/web")).await.ok();
        assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["image"], "skein.dev/tiny:1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_printed_and_followed() {
    for kubectl in all().await {
        kubectl.inside.post(PODS, &pod("web")).await.ok();
        kubectl
            .inside
            .post(&format!("{PODS}/web/binding"), &json!({ "target": { "kind": "Node", "name": "n1" } }))
            .await
            .ok();
        let status = json!({ "status": { "phase": "Running", "containerStatuses": [{
            "name": "main", "ready": true, "restartCount": 0, "image": "", "imageID": "",
            "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
        }] } });
        kubectl.inside.patch(&format!("{PODS}/web/status"), "merge", &status).await.ok();
        let (logs, text) = watch::channel(LogText { text: "one\ntwo\n".into(), ended: false });
        kubectl.served.cluster.set_logs("default/web/main", text);
        assert_eq!(kubectl.run(&["logs", "web"]).await, "one\ntwo\n");
        assert_eq!(kubectl.run(&["logs", "web", "-c", "main", "--tail=1"]).await, "two\n");
        let mut following = kubectl.start(&["logs", "-f", "web"]);
        following.line("two").await;
        logs.send_modify(|logs| logs.text.push_str("three\n"));
        following.line("three").await;
        logs.send_modify(|logs| logs.ended = true);
        following.ends_well().await;
        assert!(kubectl.fail(&["logs", "web", "--previous"]).await.contains("previous terminated container"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_cordoned() {
    for kubectl in all().await {
        kubectl.inside.post("/api/v1/nodes", &json!({ "metadata": { "name": "kitchen" } })).await.ok();
        kubectl.run(&["cordon", "kitchen"]).await;
        assert!(kubectl.run(&["get", "nodes"]).await.contains("SchedulingDisabled"));
        kubectl.run(&["uncordon", "kitchen"]).await;
        assert!(!kubectl.run(&["get", "nodes"]).await.contains("SchedulingDisabled"));
    }
}
