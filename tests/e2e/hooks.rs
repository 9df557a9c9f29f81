//! What a manifest says about a container besides its image: hooks, probes by program, parts of volumes.

use serde_json::{Value, json};

use crate::archive::{self, busybox};
use crate::house::{House, Namespace};

pub(crate) const TESTS: crate::Tests = crate::tests![
    hooks_of_a_busybox_image_run_after_the_start_and_before_the_stop,
    probes_by_program_of_a_busybox_image_decide_readiness_and_restarts,
    parts_of_volumes_are_seen_by_a_busybox_image,
    what_is_not_supported_is_said,
];

const IMAGE: &str = "example.org/shell:1";

/// The shared cluster with an image that has a shell.
fn space(name: &str) -> Namespace {
    let house = House::shared();
    let archive = archive::good_oci(IMAGE, &[busybox("a shell")]);
    let said = house.skein_fed("one", &["image", "load", "-"], &archive);
    assert_eq!(said.code, 0, "{said:?}");
    house.namespace(name)
}

fn shell(script: &str) -> Value {
    json!({ "name": "main", "image": IMAGE, "command": ["/bin/sh", "-c", script] })
}

fn sh(script: &str) -> Value {
    json!({ "exec": { "command": ["/bin/busybox", "sh", "-c", script] } })
}

/// Goes on until it is asked to stop, and says so.
const WAITS: &str = "trap 'echo asked; exit 0' TERM; while :; do /bin/busybox sleep 0.1; done";

fn hooks_of_a_busybox_image_run_after_the_start_and_before_the_stop() {
    let space = space("hooks");
    let mut container = shell(WAITS);
    container["lifecycle"] = json!({
        "postStart": sh("echo $HOSTNAME > /proc/1/fd/1"),
        "preStop": sh("echo before; echo before > /proc/1/fd/1"),
    });
    let spec = json!({ "terminationGracePeriodSeconds": 30, "containers": [container] });
    let house = &space.house;
    space.create("pods", &json!({ "metadata": { "name": "polite" }, "spec": spec }));
    space.until_ready("polite");
    let user = crate::user::User::of(house, std::path::Path::new("kubectl"), "one", &space.name);
    let mut log = user.start(&["logs", "-f", "polite"]);
    log.line("polite");
    user.run(&["delete", "pod", "polite", "--wait=false"]);
    log.line("before");
    log.line("asked");
    house.until("the pod is gone", || space.pod("polite").is_null().then_some(()));

    let mut failing = shell(WAITS);
    failing["lifecycle"] = json!({ "postStart": sh("echo not today; exit 3") });
    space.run("failing", json!({ "containers": [failing] }));
    let pod = space.until("failing", "restarted", |status| {
        status["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    });
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["message"];
    let said = last.as_str().unwrap_or_default();
    assert!(said.contains("PostStartHook") && said.contains("not today"), "{last}");
}

fn probes_by_program_of_a_busybox_image_decide_readiness_and_restarts() {
    let space = space("programs");
    let mut slow = shell(&format!("/bin/busybox sleep 2; /bin/busybox touch /tmp/up; {WAITS}"));
    slow["readinessProbe"] = json!({ "exec": sh("test -e /tmp/up")["exec"], "periodSeconds": 1 });
    slow["volumeMounts"] = json!([{ "name": "tmp", "mountPath": "/tmp" }]);
    let volumes = json!([{ "name": "tmp", "emptyDir": {} }]);
    space.run("slow", json!({ "containers": [slow], "volumes": volumes }));
    let mut sick = shell(WAITS);
    sick["livenessProbe"] =
        json!({ "exec": sh("exit 1")["exec"], "periodSeconds": 1, "failureThreshold": 2 });
    space.run("sick", json!({ "containers": [sick] }));
    space.until_ready("slow");
    space.until("sick", "restarted", |status| {
        status["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    });
}

fn parts_of_volumes_are_seen_by_a_busybox_image() {
    let space = space("parts");
    let data = json!({ "app.conf": "color=blue", "other.conf": "x" });
    space.create("configmaps", &json!({ "metadata": { "name": "settings" }, "data": data }));
    let mut container = shell(
        "/bin/busybox cat /etc/app.conf; echo; /bin/busybox cat /etc/resolv.conf; echo mine > /logs/log; /bin/busybox ls /all",
    );
    container["env"] =
        json!([{ "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }]);
    container["volumeMounts"] = json!([
        { "name": "settings", "mountPath": "/etc/app.conf", "subPath": "app.conf" },
        { "name": "scratch", "mountPath": "/logs", "subPathExpr": "$(POD)" },
        { "name": "scratch", "mountPath": "/all" },
    ]);
    let volumes = json!([{ "name": "settings", "configMap": { "name": "settings" } }, { "name": "scratch", "emptyDir": {} }]);
    let spec = json!({
        "restartPolicy": "Never", "containers": [container], "volumes": volumes,
        "dnsPolicy": "None", "dnsConfig": { "nameservers": ["192.0.2.53"], "searches": ["lan"] },
    });
    space.run("parts", spec);
    space.until("parts", "done", |status| status["phase"] == "Succeeded");
    assert_eq!(space.logs("parts", ""), "color=blue\nnameserver 192.0.2.53\nsearch lan\nparts\n");
}

fn what_is_not_supported_is_said() {
    let space = House::shared().namespace("refused");
    let container = json!({ "name": "main", "image": "skein.dev/tiny" });
    space.run("peeping", json!({ "hostPID": true, "containers": [container] }));
    space.until("peeping", "refused by name", |status| {
        let waiting = &status["containerStatuses"][0]["state"]["waiting"];
        let message = waiting["message"].as_str().unwrap_or_default();
        waiting["reason"] == "CreateContainerConfigError" && message.starts_with("hostPID is not supported")
    });
}
