//! Secrets: no disk shows their values, and every node that has to reads them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::house::{House, wait};
use crate::user::{User, kubectls};
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![values_are_read_through_any_node_and_shown_by_no_file,];

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Values that no file may have, as text and as the API writes them.
const MARKS: [(&str, &str); 2] = [
    ("hunter2-before-the-change", "aHVudGVyMi1iZWZvcmUtdGhlLWNoYW5nZ"),
    ("swordfish-after-the-change", "c3dvcmRmaXNoLWFmdGVyLXRoZS1jaGFuZ2"),
];
/// What is no secret, so that it is known that it would be found.
const READABLE: &str = "readable-by-everybody";

/// The files below a directory that hold one of these texts, and which.
fn holding(dir: &Path, texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind of file"));
        if kind.is_dir() {
            found.extend(holding(&path, texts));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let held = texts.iter().filter(|mark| text.contains(**mark));
            found.extend(held.map(|mark| format!("{}: {mark}", path.display())));
        }
    }
    found
}

fn disk_of(house: &House, name: &str) -> std::path::PathBuf {
    house.lab().machine(name).disk_from_outside()
}

fn no_file_shows_a_value(house: &House) {
    for name in ["one", "two"] {
        let disk = disk_of(house, name);
        assert!(!holding(&disk, &[READABLE]).is_empty(), "what is not sealed is on the disk of {name}");
        let marks: Vec<&str> = MARKS.iter().flat_map(|(text, base64)| [*text, *base64]).collect();
        assert_eq!(holding(&disk, &marks), Vec::<String>::new());
    }
}

fn values_are_read_through_any_node_and_shown_by_no_file() {
    let mut house = House::new(&["one", "two"]);
    wait(house.cluster.found()).expect("it founds");
    let token = wait(house.cluster.token(1)).expect("a token");
    house.cluster.join("two", &token).expect("it starts");
    house.until_up("two");
    house.until("that two has no vote", || {
        (house.nodes("two", |node| node["voter"] == true) == ["one"]).then_some(())
    });
    let [kubectl, _] = kubectls();
    let [one, two] = ["one", "two"].map(|node| User::of(&house, &kubectl.path, node, "default"));

    // Written through a node that cannot open anything, the way of a manifest: the annotation repeats the values.
    let manifest = |value: &str| {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "db", "labels": { "app": READABLE } },
            "stringData": { "word": value },
        });
        two.write("db.json", &secret.to_string())
    };
    let file = manifest(MARKS[0].0);
    two.run(&["apply", "-f", &file]);
    let value = |user: &User<'_>| user.json(&["get", "secret", "db", "-o", "json"])["data"]["word"].clone();
    assert!(value(&one).as_str().is_some_and(|text| text.starts_with(MARKS[0].1)));
    assert_eq!(value(&two), value(&one));
    let table = one.run(&["get", "secrets", "-l", &format!("app={READABLE}")]);
    assert!(table.lines().any(|line| line.split_whitespace().take(3).eq(["db", "Opaque", "1"])), "{table}");

    // A pod on the node without a vote reads one; what it prints is another's value.
    let shown = json!({ "metadata": { "name": "shown" }, "stringData": { "word": "open sesame" } });
    house.create("one", SECRETS, &shown);
    let pod = json!({
        "metadata": { "name": "reader" },
        "spec": {
            "restartPolicy": "Never", "nodeSelector": { "kubernetes.io/hostname": "two" },
            "containers": [{
                "name": "main", "image": "skein.dev/tiny", "args": ["read", "/shown/word"],
                "volumeMounts": [{ "name": "shown", "mountPath": "/shown" }, { "name": "db", "mountPath": "/db" }],
            }],
            "volumes": [
                { "name": "shown", "secret": { "secretName": "shown" } },
                { "name": "db", "secret": { "secretName": "db" } },
            ],
        },
    });
    house.create("two", "/api/v1/namespaces/default/pods", &pod);
    house.until("the pod's end", || {
        let pod = house.get("two", "/api/v1/namespaces/default/pods/reader");
        (pod["status"]["phase"] == "Succeeded").then_some(())
    });
    assert_eq!(two.run(&["logs", "reader"]), "open sesame\n");
    no_file_shows_a_value(&house);

    // Changed, patched, taken away: no trace of either value.
    manifest(MARKS[1].0);
    two.run(&["apply", "-f", &file]);
    one.run(&["patch", "secret", "db", "-p", r#"{"metadata":{"labels":{"more":"yes"}}}"#]);
    assert!(value(&one).as_str().is_some_and(|text| text.starts_with(MARKS[1].1)));
    assert_eq!(value(&two), value(&one));

    let keys_of_pods = || fs::read(disk_of(&house, "two").join("secrets.sealed")).expect("two keeps them");
    let keys_before = keys_of_pods();
    // All keys are made anew, and what was sealed by the old one is sealed anew and opens as before.
    house.skein_ok("one", &["ca", "rotate", "--yes"]);
    house.until("that all is sealed anew", || {
        house.log("one").contains("sealed Secrets by the data key in force").then_some(())
    });
    house.until("that two reads it", || {
        let word = house.get("two", &format!("{SECRETS}/db"))["data"]["word"].clone();
        word.as_str()?.starts_with(MARKS[1].1).then_some(())
    });
    house.until("that two keeps what opens its pods' Secrets now", || {
        (keys_of_pods() != keys_before).then_some(())
    });

    // Enough else is written for a snapshot to take the place of the log.
    house.create("one", MAPS, &json!({ "metadata": { "name": "large" } }));
    for number in 0..70 {
        let patch = json!({ "data": { "large": format!("{number:07}").repeat(140_000) } });
        wait(house.cluster.api("one").merge(&format!("{MAPS}/large"), &patch)).expect("it is written");
    }
    house.until("a snapshot", || {
        (!holding(&disk_of(&house, "one").join("store/snap"), &[READABLE]).is_empty()).then_some(())
    });
    no_file_shows_a_value(&house);
    wait(house.cluster.api("two").delete(&format!("{SECRETS}/db"))).expect("it is deleted");
    no_file_shows_a_value(&house);

    // With no voter left, and after a restart, what nobody can open is refused with a reason. What pods of the node use
    // is there.
    house.create("one", SECRETS, &json!({ "metadata": { "name": "hidden" }, "stringData": { "word": "x" } }));
    house.until_caught_up("two");
    house.cluster.lab().power_off("one").expect("the machine is ours");
    house.cluster.lab().power_off("two").expect("the machine is ours");
    house.cluster.power_back("two").expect("the machine starts");
    house.until_up("two");
    let ask = |name: &str| wait(house.cluster.api("two").get(&format!("{SECRETS}/{name}?resourceVersion=0")));
    assert_eq!(ask("shown").expect("a pod uses it")["data"]["word"], "b3BlbiBzZXNhbWU=");
    let refused = ask("hidden").expect_err("nobody opens it").to_string();
    assert!(refused.contains("503") && refused.contains("no voter could be asked to open it"), "{refused}");
    assert_eq!(
        house.get("two", &format!("{MAPS}/large?resourceVersion=0"))["kind"],
        Value::from("ConfigMap")
    );
}
