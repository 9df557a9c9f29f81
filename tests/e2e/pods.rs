//! Pods as real processes: what they share, what they are limited to, how they end.

use serde_json::{Value, json};

use crate::house::House;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    pods_reach_each_other_across_nodes,
    containers_of_a_pod_share_localhost,
    a_container_above_its_memory_limit_is_killed_and_named,
    exit_codes_and_restart_policies_are_kept,
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
