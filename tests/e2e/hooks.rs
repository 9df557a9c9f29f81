//! What a manifest says about a container besides its image: hooks, probes by program, parts of volumes.

use serde_json::{Value, json};

use crate::archive::{self, busybox};
use crate::house::{House, Namespace};

pub(crate) const TESTS: crate::Tests = crate::tests![
    hooks_of_a_busybox_image_run_after_the_start_and_before_the_stop,
    probes_by_program_of_a_busybox_image_decide_readiness_and_restarts,
    parts_of_volumes_are_seen_by_a_busybox_image,
    files_of_volumes_follow_what_they_are_made_from,
    a_part_of_a_volume_waits_for_its_key,
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

/// What a running program reads changes, all of it at once; what it has by `subPath` and by variable stays.
fn files_of_volumes_follow_what_they_are_made_from() {
    let space = space("files");
    let user = crate::user::User::of(&space.house, std::path::Path::new("kubectl"), "two", &space.name);
    space.create(
        "configmaps",
        &json!({ "metadata": { "name": "settings" }, "data": { "color": "red", "old": "x" } }),
    );
    space.create("secrets", &json!({ "metadata": { "name": "keys" }, "stringData": { "door": "oak" } }));
    let mut reads = shell(
        "cd /all; while :; do echo $(for file in settings/color keys/door me/labels /part; do /bin/busybox cat $file; echo; \
         done; /bin/busybox ls settings) $COLOR; /bin/busybox sleep 0.1; done",
    );
    reads["env"] = json!([{ "name": "COLOR", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "color" } } }]);
    reads["volumeMounts"] = json!([
        { "name": "settings", "mountPath": "/all/settings" },
        { "name": "settings", "mountPath": "/part", "subPath": "color" },
        { "name": "keys", "mountPath": "/all/keys" },
        { "name": "me", "mountPath": "/all/me" },
    ]);
    let labels = json!({ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } });
    let volumes = json!([
        { "name": "settings", "configMap": { "name": "settings" } },
        { "name": "keys", "projected": { "sources": [{ "secret": { "name": "keys" } }] } },
        { "name": "me", "downwardAPI": { "items": [labels] } },
    ]);
    space.run("reads", json!({ "nodeSelector": { "kubernetes.io/hostname": "one" }, "containers": [reads], "volumes": volumes }));
    space.until_ready("reads");
    let mut log = user.start(&["logs", "-f", "reads"]);
    log.line("red oak app=\"reads\" red color old red");
    user.run(&[
        "patch",
        "configmap",
        "settings",
        "--type=merge",
        "-p",
        r#"{"data": {"color": "blue", "old": null, "new": "y"}}"#,
    ]);
    // All of a change is seen, or nothing of it.
    log.line("blue oak app=\"reads\" red color new red");
    user.run(&["patch", "secret", "keys", "-p", r#"{"stringData": {"door": "elm"}}"#]);
    log.line("blue elm app=\"reads\" red color new red");
    user.run(&["label", "pod", "reads", "tier=front"]);
    log.line("blue elm app=\"reads\" tier=\"front\" red color new red");
    let pod = space.pod("reads");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");

    // What has gone stays as it was, and that is told.
    user.run(&["delete", "secret", "keys"]);
    space.house.until("that it is told", || {
        let events = user.run(&["get", "events", "--field-selector", "reason=FailedMount"]);
        events.contains("secret \"keys\" not found").then_some(())
    });
    log.line("blue elm ");
}

/// A directory was made in the place of the key, and the pod stuck for ever when the key came.
fn a_part_of_a_volume_waits_for_its_key() {
    let space = space("late-keys");
    space.create("configmaps", &json!({ "metadata": { "name": "settings" }, "data": {} }));
    let with = |name: &str, optional: bool| {
        let mut reads = shell("/bin/busybox cat /etc/word 2> /dev/null || echo none");
        reads["volumeMounts"] = json!([{ "name": "settings", "mountPath": "/etc/word", "subPath": "word" }]);
        let settings =
            json!({ "name": "settings", "configMap": { "name": "settings", "optional": optional } });
        space.run(name, json!({ "restartPolicy": "Never", "containers": [reads], "volumes": [settings] }));
    };
    with("waits", false);
    with("does-not", true);
    space.until("does-not", "done", |status| status["phase"] == "Succeeded");
    assert_eq!(space.logs("does-not", ""), "none\n");
    space.until("waits", "waiting for its key", |status| {
        let waiting = &status["containerStatuses"][0]["state"]["waiting"];
        waiting["message"].as_str().is_some_and(|message| message.contains("subPath \"word\""))
    });
    let user = crate::user::User::of(&space.house, std::path::Path::new("kubectl"), "one", &space.name);
    user.run(&["patch", "configmap", "settings", "-p", r#"{"data": {"word": "here"}}"#]);
    space.until("waits", "done", |status| status["phase"] == "Succeeded");
    assert_eq!(space.logs("waits", "").trim_end(), "here");
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
