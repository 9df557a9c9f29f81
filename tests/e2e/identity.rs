//! What a data directory is, and what may be asked of it.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::formation::{token, up};
use crate::house::{House, wait};
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    a_machine_that_has_left_joins_another_cluster_and_brings_nothing_along,
    a_member_is_asked_in_vain_to_be_something_else,
];

/// What lies in the machine's data directory, but for its past.
fn present(house: &House, name: &str) -> Vec<String> {
    let entries = fs::read_dir(house.lab().machine(name).disk()).expect("the disk is ours").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "former").collect()
}

/// What was set aside there, in order.
fn former(house: &House, name: &str) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(house.lab().machine(name).disk().join("former")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn runs(house: &House, name: &str) {
    house.until("the daemon", || (house.skein(name, &["status"]).code == 0).then_some(()));
}

/// Waits for the end of the machine's daemon.
fn ended(house: &mut House, name: &str) {
    let daemon = house.cluster.lab().machine_mut(name).daemon().expect("it was started");
    assert_eq!(daemon.wait().expect("it is ours").code(), Some(0));
}

fn stop(house: &mut House, name: &str) {
    house.cluster.lab().machine_mut(name).daemon().expect("it was started").signal(Signal::SIGTERM);
    ended(house, name);
}

fn write(house: &House, node: &str, name: &str) {
    let object = json!({ "metadata": { "name": name }, "data": { "from": node } });
    house.create(node, "/api/v1/namespaces/default/configmaps", &object);
}

fn holds(house: &House, node: &str, name: &str) -> bool {
    !house.get(node, &format!("/api/v1/namespaces/default/configmaps/{name}")).is_null()
}

/// Its log was the longer one, and it was elected: what the others had acknowledged was gone.
fn a_machine_that_has_left_joins_another_cluster_and_brings_nothing_along() {
    let mut house = House::new(&["one", "two"]);
    up(&mut house, "two", &["up", "--new-cluster", "--cluster", "old"]);
    runs(&house, "two");
    for number in 0..50 {
        write(&house, "two", &format!("old-{number}"));
    }
    let key_of_before = house.status("two")["id"].clone();
    let said = house.skein_ok("two", &["leave", "--end-cluster"]);
    ended(&mut house, "two");
    let [past] = &former(&house, "two")[..] else { panic!("one past") };
    assert!(said.contains(&past.display().to_string()) && past.to_string_lossy().ends_with("-old"), "{said}");
    for part in ["node.key", "cluster.json", "authority.sealed", "store/log"] {
        assert!(past.join(part).exists(), "{part}");
    }
    assert_eq!(present(&house, "two"), [""; 0]);

    up(&mut house, "one", &["up", "--new-cluster", "--cluster", "new"]);
    runs(&house, "one");
    write(&house, "one", "new");
    let word = token(&house, &[]);
    up(&mut house, "two", &["join", &word]);
    wait(house.cluster.until_whole()).unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
    let status = house.status("two");
    assert_eq!(status["cluster"], "new");
    assert_ne!(status["id"], key_of_before, "it has a new key");
    assert!(status["incarnation"]["number"] == 1 && status["incarnation"]["id"].is_string(), "{status}");
    house.until("the state of the new cluster", || holds(&house, "two", "new").then_some(()));
    assert!(!holds(&house, "one", "old-0") && !holds(&house, "two", "old-0"));

    // The key that was removed does not come back; a new one may, under the same name.
    let key_of_before = status["id"].clone();
    house.skein_ok("two", &["leave"]);
    ended(&mut house, "two");
    assert_eq!(former(&house, "two").len(), 2);
    let word = token(&house, &[]);
    up(&mut house, "two", &["join", &word]);
    wait(house.cluster.until_whole()).unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
    assert_ne!(house.status("two")["id"], key_of_before);

    // Without what says where it belongs, its store is nobody's: not this cluster's, and no other one's.
    stop(&mut house, "two");
    let cluster = house.lab().machine("two").disk().join("cluster.json");
    let kept = fs::read(&cluster).expect("it is a member");
    fs::remove_file(&cluster).expect("the disk is ours");
    let word = token(&house, &[]);
    for words in [&["up"][..], &["up", "--new-cluster"], &["join", &word]] {
        let said = house.skein("two", words);
        assert!(
            said.code == 1 && said.err.contains("cluster.json") && said.err.contains("a store"),
            "{said:?}"
        );
    }
    fs::write(&cluster, kept).expect("the disk is ours");
    up(&mut house, "two", &["up"]);
    wait(house.cluster.until_caught_up("two")).unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
}

fn a_member_is_asked_in_vain_to_be_something_else() {
    let mut house = House::new(&["one", "two"]);
    for name in ["one", "two"] {
        up(&mut house, name, &["up", "--new-cluster", "--cluster", name]);
        runs(&house, name);
    }
    let word = token(&house, &["--uses", "5"]);
    stop(&mut house, "two");
    let before = present(&house, "two");
    for (words, what) in [
        (&["up", "--new-cluster"][..], "no cluster is founded"),
        (&["up", "--name", "other"], "--name"),
        (&["up", "--cluster", "one"], "--cluster"),
        (&["join", &word], "already belongs to cluster \"two\""),
    ] {
        let said = house.skein("two", words);
        let told: Vec<&str> = said.err.lines().filter(|line| line.starts_with("skein: ")).collect();
        let [told] = told[..] else { panic!("one sentence: {said:?}") };
        assert!(said.code == 1 && told.contains(what) && told.contains("skein leave"), "{said:?}");
    }
    assert_eq!(present(&house, "two"), before);
    assert!(house.skein_ok("one", &["token", "list"]).contains("good"), "the token was not used");
    up(&mut house, "two", &["up", "--cluster", "two"]);
    runs(&house, "two");

    // Somebody else's files are left alone.
    let elsewhere = house.dir().join("elsewhere");
    fs::create_dir(&elsewhere).expect("the lab's directory is ours");
    fs::write(elsewhere.join("notes.txt"), b"mine").expect("the lab's directory is ours");
    let dir = elsewhere.display().to_string();
    for words in [&["up", "--new-cluster"][..], &["join", &word]] {
        let said = house.skein("two", &[&["--data-dir", &dir], words].concat());
        assert!(said.code == 1 && said.err.contains("notes.txt"), "{said:?}");
    }
    assert_eq!(fs::read_dir(&elsewhere).expect("it is there").count(), 1);
}
