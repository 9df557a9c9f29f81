//! Pods as real processes: what they share, what they are limited to, how they end.

use serde_json::{Value, json};

use crate::house::{House, wait};
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    pods_reach_each_other_across_nodes,
    containers_of_a_pod_share_localhost,
    config_maps_and_secrets_are_files_and_variables,
    an_empty_directory_is_shared_by_containers_and_outlives_them,
    a_container_above_its_memory_limit_is_killed_and_named,
    exit_codes_and_restart_policies_are_kept,
    a_server_that_is_asked_to_end_is_not_waited_for,
];

fn container(name: &str, words: &[&str]) -> Value {
    json!({ "name": name, "image": "skein.dev/tiny", "args": words })
}

fn on(node: &str) -> Value {
    json!({ "kubernetes.io/hostname": node })
}

fn pods_reach_each_other_across_nodes() {
    let space = House::shared().namespace("reach");
    space.run("server", json!({ "nodeSelector": on("one"), "containers": [container("main", &["serve"])] }));
    let server = space.until_ready("server");
    let address = server["status"]["podIP"].as_str().expect("a running pod has an address").to_owned();
    for node in ["one", "two", "three"] {
        let name = format!("client-{node}");
        let fetch = container("main", &["fetch", &address, "8080"]);
        space
            .run(&name, json!({ "nodeSelector": on(node), "restartPolicy": "Never", "containers": [fetch] }));
    }
    for node in ["one", "two", "three"] {
        let name = format!("client-{node}");
        space.until(&name, "done", |status| status["phase"] == "Succeeded");
        assert_eq!(space.logs(&name, ""), "server\n");
    }
}

fn containers_of_a_pod_share_localhost() {
    let space = House::shared().namespace("localhost");
    let pair =
        [container("server", &["serve", "9000"]), container("client", &["fetch", "127.0.0.1", "9000"])];
    space.run("pair", json!({ "restartPolicy": "OnFailure", "containers": pair }));
    space.until("pair", "fetched", |status| {
        let statuses = status["containerStatuses"].as_array().into_iter().flatten();
        statuses.into_iter().any(|status| status["state"]["terminated"]["exitCode"] == 0)
    });
    assert_eq!(space.logs("pair", "-c client"), "pair\n");
}

fn config_maps_and_secrets_are_files_and_variables() {
    let space = House::shared().namespace("config");
    space.create(
        "configmaps",
        &json!({ "metadata": { "name": "settings" }, "data": { "color": "red", "size": "9" } }),
    );
    space.create(
        "secrets",
        &json!({ "metadata": { "name": "keys" }, "stringData": { "door": "open sesame" } }),
    );
    let files = |name: &str, words: &[&str]| {
        let mut reads = container(name, words);
        reads["volumeMounts"] = json!([
            { "name": "settings", "mountPath": "/settings" },
            { "name": "keys", "mountPath": "/keys", "readOnly": true },
        ]);
        reads
    };
    let mut variables = container("variables", &["env", "COLOR", "DOOR", "ALL_size"]);
    variables["env"] = json!([
        { "name": "COLOR", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "color" } } },
        { "name": "DOOR", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "door" } } },
    ]);
    variables["envFrom"] = json!([{ "prefix": "ALL_", "configMapRef": { "name": "settings" } }]);
    let volumes = json!([
        { "name": "settings", "configMap": { "name": "settings" } },
        { "name": "keys", "secret": { "secretName": "keys", "items": [{ "key": "door", "path": "deep/door" }] } },
    ]);
    let readers = json!([
        files("files", &["read", "/settings/color", "/keys/deep/door"]),
        files("writer", &["write", "/settings/color", "blue"]),
        variables,
    ]);
    space.run("reader", json!({ "restartPolicy": "Never", "containers": readers, "volumes": volumes }));
    space.until("reader", "done", |status| status["phase"] == "Failed");
    assert_eq!(space.logs("reader", "-c files"), "red\nopen sesame\n");
    assert_eq!(space.logs("reader", "-c variables"), "red\nopen sesame\n9\n");
    assert!(
        space.logs("reader", "-c writer").contains("Read-only file system"),
        "nobody writes to a config map"
    );

    // A pod whose config map is missing waits for it.
    let late = json!([{ "name": "late", "configMap": { "name": "late" } }]);
    let mut reads = container("main", &["read", "/late/word"]);
    reads["volumeMounts"] = json!([{ "name": "late", "mountPath": "/late" }]);
    space.run("waits", json!({ "restartPolicy": "Never", "containers": [reads], "volumes": late }));
    space.until("waits", "waiting", |status| {
        status["containerStatuses"][0]["state"]["waiting"]["reason"].is_string()
    });
    space.create("configmaps", &json!({ "metadata": { "name": "late" }, "data": { "word": "here" } }));
    space.until("waits", "done", |status| status["phase"] == "Succeeded");
    assert_eq!(space.logs("waits", ""), "here\n");
}

fn an_empty_directory_is_shared_by_containers_and_outlives_them() {
    let space = House::shared().namespace("scratch");
    let mounted = |name: &str, words: &[&str]| {
        let mut one = container(name, words);
        one["volumeMounts"] = json!([{ "name": "scratch", "mountPath": "/scratch" }]);
        one
    };
    let both = json!([
        mounted("reads", &["read", "/scratch/word"]),
        mounted("writes", &["write", "/scratch/word", "hello"])
    ]);
    space.run("pair", json!({ "containers": both, "volumes": [{ "name": "scratch", "emptyDir": {} }] }));
    // The reader ends and is started again: what it reads then was written before its time.
    space.until("pair", "read twice", |status| {
        let statuses = status["containerStatuses"].as_array().into_iter().flatten();
        let mut reader = statuses.filter(|status| status["name"] == "reads");
        reader.any(|status| {
            status["restartCount"].as_u64() >= Some(1) && status["lastState"]["terminated"]["exitCode"] == 0
        })
    });
    assert_eq!(space.logs("pair", "-c reads --previous"), "hello\n");
}

fn a_container_above_its_memory_limit_is_killed_and_named() {
    let space = House::shared().namespace("memory");
    let mut greedy = container("main", &["fill", "256"]);
    greedy["resources"] = json!({ "limits": { "memory": "48Mi" } });
    space.run("greedy", json!({ "restartPolicy": "Never", "containers": [greedy] }));
    let pod = space.until("greedy", "dead", |status| status["phase"] == "Failed");
    let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&end["reason"], &end["exitCode"]), (&json!("OOMKilled"), &json!(137)));
}

fn exit_codes_and_restart_policies_are_kept() {
    let space = House::shared().namespace("ends");
    let pod = |policy: &str, code: &str| json!({ "restartPolicy": policy, "containers": [container("main", &["exit", code])] });
    space.run("never", pod("Never", "7"));
    space.run("calm", pod("OnFailure", "0"));
    space.run("again", pod("Always", "5"));
    let never = space.until("never", "failed", |status| status["phase"] == "Failed");
    let ended = &never["status"]["containerStatuses"][0];
    assert_eq!((&ended["state"]["terminated"]["exitCode"], &ended["restartCount"]), (&json!(7), &json!(0)));
    space.until("calm", "done", |status| status["phase"] == "Succeeded");
    let again = space.until("again", "backing off", |status| {
        status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let again = &again["status"]["containerStatuses"][0];
    assert_eq!(again["lastState"]["terminated"]["exitCode"], 5);
}

fn a_server_that_is_asked_to_end_is_not_waited_for() {
    let space = House::shared().namespace("asked");
    // Far longer than the test waits: only SIGTERM can end it.
    let spec = json!({ "terminationGracePeriodSeconds": 600, "containers": [container("main", &["serve"])] });
    space.create("pods", &json!({ "metadata": { "name": "server" }, "spec": spec }));
    space.until_ready("server");
    let path = format!("{}/server", space.pods());
    wait(space.house.cluster.api("one").delete(&path)).expect("it is deleted");
    space.house.until("its end", || space.pod("server").is_null().then_some(()));
}
