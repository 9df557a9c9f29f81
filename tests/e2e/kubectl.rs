//! Unmodified kubectl, old and new, against any node.

use std::path::Path;

use serde_json::json;

use crate::house::{House, Namespace, until};
use crate::user::User;

/// A test's name and what it does with a kubectl.
type Test = (&'static str, fn(&Path));

/// Each is run with every kubectl.
pub(crate) const TESTS: &[Test] = &[
    ("objects_are_applied_changed_and_deleted", objects_are_applied_changed_and_deleted),
    ("a_deployment_rolls_out_and_back", a_deployment_rolls_out_and_back),
    ("logs_are_printed_and_followed", logs_are_printed_and_followed),
    ("what_happens_to_a_pod_is_told", what_happens_to_a_pod_is_told),
    ("mistakes_are_explained", mistakes_are_explained),
    ("a_namespace_goes_with_its_content", a_namespace_goes_with_its_content),
    (
        "a_certificate_that_is_taken_back_is_out_everywhere",
        a_certificate_that_is_taken_back_is_out_everywhere,
    ),
];

/// A namespace for this test and this kubectl.
fn namespace(test: &str, program: &Path) -> Namespace {
    let from = if program.starts_with(env!("CARGO_MANIFEST_DIR")) { "debian" } else { "own" };
    House::shared().namespace(&format!("{test}-{from}"))
}

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: skein.dev/tiny, env: [{name: COLOR, value: red}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

fn objects_are_applied_changed_and_deleted(program: &Path) {
    let space = namespace("objects", program);
    let user = User::of(&space.house, program, "two", &space.name);
    let serving = || space.house.get("two", "/api/v1/namespaces/default/endpoints/kubernetes");
    let all = || serving()["subsets"][0]["addresses"].as_array().map(Vec::len) == Some(3);
    until("every node serves the API", || all().then_some(())).unwrap_or_else(|| panic!("{}", serving()));
    let file = user.write("web.yaml", WEB);
    let applied = user.run(&["apply", "-f", &file]);
    assert!(applied.contains("deployment.apps/web created") && applied.contains("service/web created"));
    assert_eq!(user.run(&["apply", "-f", &file]).matches("unchanged").count(), 2);
    let changed = user.write("web.yaml", &WEB.replace("red", "blue"));
    assert!(user.run(&["apply", "-f", &changed]).contains("deployment.apps/web configured"));
    user.run(&["wait", "--for=condition=Available", "deploy/web", "--timeout=100s"]);

    let mut watching = user.start(&["get", "configmaps", "-w"]);
    user.run(&["create", "configmap", "settings", "--from-literal=a=1"]);
    watching.line("settings");
    drop(watching);
    user.run(&["create", "secret", "generic", "key", "--from-literal=a=1"]);
    assert!(user.run(&["get", "cm", "settings", "-o", "yaml"]).contains("a: \"1\""));
    assert!(user.run(&["get", "deploy,svc", "-o", "wide"]).contains("skein.dev/tiny"));
    assert!(user.run(&["get", "pods", "-A", "-o", "wide"]).contains("NODE"));
    assert!(user.run(&["get", "all"]).contains("deployment.apps/web"));

    user.run(&["label", "deploy", "web", "tier=front"]);
    user.run(&["annotate", "deploy", "web", "note=hello"]);
    user.run(&[
        "patch",
        "deploy",
        "web",
        "-p",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","imagePullPolicy":"IfNotPresent"}]}}}}"#,
    ]);
    user.run(&[
        "patch",
        "deploy",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/replicas","value":3}]"#,
    ]);
    user.run(&["patch", "deploy", "web", "--type=merge", "-p", r#"{"metadata":{"labels":{"tier":null}}}"#]);
    user.run(&["scale", "deploy/web", "--current-replicas=3", "--replicas=1"]);
    let mut edit = user.command(&["edit", "deploy", "web"]);
    let edited = crate::house::said(edit.env("EDITOR", "sed -i s/note:.hello/note:\\ edited/").output());
    assert_eq!(edited.code, 0, "{edited:?}");
    let web = user.json(&["get", "deploy", "web"]);
    assert_eq!(
        (&web["spec"]["replicas"], &web["metadata"]["annotations"]["note"]),
        (&json!(1), &json!("edited"))
    );
    assert_eq!(web["metadata"]["labels"], json!({ "app": "web" }));
    let container = &web["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["env"][0]["value"]),
        (&json!("skein.dev/tiny"), &json!("blue"))
    );

    assert!(user.run(&["describe", "deploy", "web"]).contains("1 desired"));
    assert!(user.run(&["describe", "node", "two"]).contains("Ready"));
    // Pods of the former template are on their way out; the one that stays is the one to look at.
    let one = || {
        let pods = user.run(&["get", "pods", "-l", "app=web", "-o", "name"]);
        (pods.lines().count() == 1).then(|| pods.trim().to_owned())
    };
    let pod = crate::house::until("one pod", one).expect("one pod is left");
    assert!(user.run(&["describe", &pod]).contains("skein.dev/tiny"));
    assert!(user.run(&["delete", "-f", &changed]).contains("deleted"));
    assert!(user.fail(&["get", "deploy", "web"]).contains("NotFound"));
    space.house.until("no pod left", || user.run(&["get", "pods", "-o", "name"]).is_empty().then_some(()));
}

fn a_deployment_rolls_out_and_back(program: &Path) {
    let space = namespace("rollout", program);
    let user = User::of(&space.house, program, "three", &space.name);
    let file = user.write("web.yaml", WEB);
    user.run(&["apply", "-f", &file]);
    assert!(user.run(&["rollout", "status", "deploy/web"]).contains("successfully rolled out"));
    user.run(&["set", "env", "deploy/web", "COLOR=green"]);
    assert!(user.run(&["rollout", "status", "deploy/web"]).contains("successfully rolled out"));
    assert!(user.run(&["rollout", "history", "deploy/web"]).lines().count() >= 3);
    user.run(&["rollout", "undo", "deploy/web"]);
    assert!(user.run(&["rollout", "status", "deploy/web"]).contains("successfully rolled out"));
    let web = user.json(&["get", "deploy", "web"]);
    assert_eq!(web["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"], "red");
    user.run(&["delete", "deploy", "web"]);
}

fn logs_are_printed_and_followed(program: &Path) {
    let space = namespace("logs", program);
    let user = User::of(&space.house, program, "one", &space.name);
    let container =
        |name: &str, words: &[&str]| json!({ "name": name, "image": "skein.dev/tiny", "args": words });
    space.run(
        "talks",
        json!({ "nodeSelector": { "kubernetes.io/hostname": "three" }, "containers": [
            container("first", &["print", "tick", "100000", "100"]),
            container("second", &["serve", "9090"]),
        ] }),
    );
    space.until_ready("talks");
    let mut following = user.start(&["logs", "-f", "talks", "-c", "first"]);
    following.line("tick 1");
    following.line("tick 20");
    drop(following);
    assert_eq!(user.run(&["logs", "talks", "-c", "first", "--tail=2"]).lines().count(), 2);
    assert!(user.run(&["logs", "talks", "-c", "first", "--since=1h"]).starts_with("tick 1\n"));
    assert!(user.run(&["logs", "talks", "-c", "second"]).contains("listens on port 9090"));
    assert!(user.fail(&["logs", "talks", "-c", "second", "--previous"]).contains("previous terminated"));

    space.run("again", json!({ "containers": [container("main", &["exit", "3"])] }));
    space.until("again", "restarted", |status| {
        status["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    });
    user.run(&["logs", "again", "--previous"]);
    user.run(&["delete", "pod", "talks", "again"]);
}

fn what_happens_to_a_pod_is_told(program: &Path) {
    let space = namespace("told", program);
    let user = User::of(&space.house, program, "two", &space.name);
    space.run(
        "well",
        json!({ "containers": [{
            "name": "main", "image": "skein.dev/tiny", "args": ["serve", "80"],
            "readinessProbe": { "tcpSocket": { "port": 81 }, "periodSeconds": 1 },
        }] }),
    );
    space.run(
        "ill",
        json!({ "containers": [{ "name": "main", "image": "skein.dev/tiny", "args": ["exit", "3"] }] }),
    );
    space.run("nowhere", json!({ "nodeSelector": { "kubernetes.io/hostname": "mars" }, "containers": [{ "name": "main", "image": "x" }] }));
    let tells = |pod: &str, words: &[&str]| {
        let mut described = String::new();
        let told = until("told", || {
            described = user.run(&["describe", "pod", pod]);
            let events = described.split("Events:").nth(1).unwrap_or_default();
            words.iter().all(|word| events.contains(word)).then_some(())
        });
        told.unwrap_or_else(|| panic!("{pod}: not all of {words:?} in {described}"));
    };
    tells("well", &["Scheduled", "Pulled", "Created", "Started container main", "Readiness probe failed"]);
    tells("ill", &["Back-off restarting failed container main"]);
    tells("nowhere", &["FailedScheduling", "nodes are available"]);
    // The same thing is one Event, with a count that goes up.
    let unhealthy = || {
        let events = user.json(&["get", "events", "--field-selector=reason=Unhealthy"]);
        let events = events["items"].as_array().expect("a list").clone();
        assert_eq!(events.len(), 1, "{events:?}");
        events[0]["count"].as_u64().expect("a number")
    };
    let before = unhealthy();
    until("counted", || (unhealthy() > before).then_some(())).expect("it is counted");
    user.run(&["delete", "pod", "well", "ill", "nowhere"]);
    tells_of_killing(&user);
}

fn tells_of_killing(user: &User<'_>) {
    let killing = || user.run(&["get", "events", "--field-selector=reason=Killing"]);
    until("told", || killing().contains("Stopping container main").then_some(())).expect("it is told");
}

fn mistakes_are_explained(program: &Path) {
    let space = namespace("mistakes", program);
    let user = User::of(&space.house, program, "two", &space.name);
    let broken = user.write("broken.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}\n");
    assert!(user.fail(&["apply", "-f", &broken]).contains("metadata.name"));
    let unknown = user.write("unknown.yaml", "apiVersion: v1\nkind: Unicorn\nmetadata: {name: a}\n");
    assert!(user.fail(&["apply", "-f", &unknown]).contains("Unicorn"));
    let misspelled = user.write("misspelled.yaml", &WEB.replace("replicas", "replicsa"));
    // A new kubectl asks the server for strictness; an old one checks by the server's schemas itself.
    let strict = user.say(&["apply", "-f", &misspelled]);
    assert!(strict.code != 0 && strict.err.contains("replicsa"), "{strict:?}");
    let asks = user.say(&["apply", "--validate=warn", "--dry-run=server", "-f", &misspelled]).code == 0;
    if asks {
        let warned = user.say(&["apply", "--validate=warn", "-f", &misspelled]);
        assert!(warned.code == 0 && warned.err.contains("unknown field"), "{warned:?}");
    }
    let ignored = user.say(&["apply", "--validate=false", "-f", &misspelled]);
    assert_eq!(ignored.code, 0, "{ignored:?}");
    user.run(&["delete", "-f", &misspelled]);
    let big = user.write("big.txt", &"x".repeat(1_600_000));
    assert!(!user.fail(&["create", "configmap", "big", &format!("--from-file={big}")]).is_empty());
    assert!(user.fail(&["get", "cm", "big"]).contains("NotFound"));
    user.run(&["create", "configmap", "a"]);
    assert!(user.fail(&["create", "configmap", "a"]).contains("already exists"));
    assert!(user.fail(&["delete", "namespace", "default"]).contains("may not be deleted"));
}

fn a_namespace_goes_with_its_content(program: &Path) {
    let space = namespace("leaving", program);
    let user = User::of(&space.house, program, "three", &space.name);
    let file = user.write("web.yaml", WEB);
    user.run(&["apply", "-f", &file]);
    user.run(&["rollout", "status", "deploy/web"]);
    user.run(&["delete", "namespace", &space.name]);
    assert!(user.fail(&["get", "namespace", &space.name]).contains("NotFound"));
    assert_eq!(user.run(&["get", "deploy,rs,pods,svc", "-o", "name"]), "");
}

fn a_certificate_that_is_taken_back_is_out_everywhere(program: &Path) {
    let space = namespace("trust", program);
    let house = &space.house;
    let [ann, bob] = ["ann", "bob"].map(|name| format!("{name}@{}", space.name));
    let user = |name: &str| {
        let config = house.skein_ok("one", &["kubeconfig", "--user", name]);
        User::with(house, program, "two", &space.name, &config)
    };
    let (of_ann, of_bob) = (user(&ann), user(&bob));
    of_ann.run(&["get", "nodes"]);
    let state = |name: &str| {
        let listed = house.skein_ok("three", &["kubeconfig", "list"]);
        let line = listed.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{listed}"));
        if line.contains("revoked") { "revoked" } else { "good" }
    };
    assert_eq!((state(&ann), state(&bob)), ("good", "good"));

    let mut watching = of_ann.start(&["get", "configmaps", "-w"]);
    watching.line("kube-root-ca.crt");
    let revoked = house.skein_ok("three", &["kubeconfig", "revoke", "--user", &ann]);
    assert!(revoked.contains(&format!("of {ann} revoked")), "{revoked}");
    watching.end();
    let refused = of_ann.fail(&["get", "nodes"]);
    assert!(refused.contains("must be logged in"), "{refused}");
    of_bob.run(&["get", "nodes"]);
    assert_eq!((state(&ann), state(&bob)), ("revoked", "good"));

    let unknown = house.skein("two", &["kubeconfig", "revoke", "--user", "nobody"]);
    assert!(unknown.code == 1 && unknown.err.contains("kubeconfig list"), "{unknown:?}");
    let reserved = house.skein("two", &["kubeconfig", "--user", "system:masters"]);
    assert_eq!(reserved.code, 1, "{reserved:?}");
    assert_eq!(house.skein("two", &["kubeconfig", "revoke"]).code, 2);
}
