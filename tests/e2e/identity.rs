//! What a data directory is, and what may be asked of it.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;

use crate::formation::{stop, token, up};
use crate::house::House;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    a_machine_that_has_left_joins_another_cluster_and_brings_nothing_along,
    a_member_is_asked_in_vain_to_be_something_else,
    a_try_that_is_refused_leaves_nothing_here_and_there,
    a_node_with_a_number_for_a_name_is_one_like_others,
    a_copied_disk_waits_for_the_one_that_runs_and_never_deposes_it,
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

fn write(house: &House, node: &str, name: &str) {
    // A new cluster makes its namespaces once it has a leader.
    house.until("the namespace", || (!house.get(node, "/api/v1/namespaces/default").is_null()).then_some(()));
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
    house.until_up("two");
    for number in 0..50 {
        write(&house, "two", &format!("old-{number}"));
    }
    let key_of_before = house.status("two")["id"].clone();
    let said = house.skein_ok("two", &["leave", "--end-cluster"]);
    assert_eq!(house.ended("two"), Some(0));
    let [past] = &former(&house, "two")[..] else { panic!("one past") };
    assert!(said.contains(&past.display().to_string()) && past.to_string_lossy().ends_with("-old"), "{said}");
    for part in ["node.key", "cluster.json", "authority.sealed", "store/log"] {
        assert!(past.join(part).exists(), "{part}");
    }
    assert_eq!(present(&house, "two"), [""; 0]);

    up(&mut house, "one", &["up", "--new-cluster", "--cluster", "new"]);
    house.until_up("one");
    write(&house, "one", "new");
    let word = token(&house, &[]);
    up(&mut house, "two", &["join", &word]);
    house.until_whole();
    let status = house.status("two");
    assert_eq!(status["cluster"], "new");
    assert_ne!(status["id"], key_of_before, "it has a new key");
    assert!(status["incarnation"]["number"] == 1 && status["incarnation"]["id"].is_string(), "{status}");
    house.until("the state of the new cluster", || holds(&house, "two", "new").then_some(()));
    assert!(!holds(&house, "one", "old-0") && !holds(&house, "two", "old-0"));

    // The key that was removed does not come back; a new one may, under the same name.
    let key_of_before = status["id"].clone();
    house.skein_ok("two", &["leave"]);
    assert_eq!(house.ended("two"), Some(0));
    assert_eq!(former(&house, "two").len(), 2);
    let word = token(&house, &[]);
    up(&mut house, "two", &["join", &word]);
    house.until_whole();
    assert_ne!(house.status("two")["id"], key_of_before);

    // Without what says where it belongs, its store is nobody's: not this cluster's, and no other one's.
    assert_eq!(stop(&mut house, "two"), Some(0));
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
    house.until_caught_up("two");
}

fn a_member_is_asked_in_vain_to_be_something_else() {
    let mut house = House::new(&["one", "two"]);
    for name in ["one", "two"] {
        up(&mut house, name, &["up", "--new-cluster", "--cluster", name]);
        house.until_up(name);
    }
    let word = token(&house, &["--uses", "5"]);
    assert_eq!(stop(&mut house, "two"), Some(0));
    let before = present(&house, "two");
    for (words, what) in [
        (&["up", "--new-cluster"][..], "no cluster is founded"),
        (&["up", "--name", "other"], "--name"),
        (&["up", "--cluster", "one"], "--cluster"),
        (&["join", &word], "already belongs to cluster \"two\""),
    ] {
        let said = house.skein("two", words);
        let told = said.sentence();
        assert!(said.code == 1 && told.contains(what) && told.contains("skein leave"), "{said:?}");
    }
    assert_eq!(present(&house, "two"), before);
    assert!(house.skein_ok("one", &["token", "list"]).contains("good"), "the token was not used");
    up(&mut house, "two", &["up", "--cluster", "two"]);
    house.until_up("two");

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

/// The token was spent, a member that never came stayed in the list, and the directory could not be used again.
fn a_try_that_is_refused_leaves_nothing_here_and_there() {
    let mut house = House::new(&["one", "two"]);
    up(&mut house, "one", &["up", "--new-cluster"]);
    house.until_up("one");
    let word = token(&house, &[]);
    let elsewhere = |name: &str| house.dir().join("elsewhere").join(name).display().to_string();
    // Other programs have its ports.
    let mut other = house.lab().machine("two").command(crate::house::program());
    let other_dir = elsewhere("other");
    other.args(["up", "--new-cluster", "--name", "other", "--data-dir", &other_dir]);
    let mut other = other.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("the daemon starts");
    let runs = || house.skein("two", &["status", "--data-dir", &other_dir]).code == 0;
    house.until("the other daemon", || runs().then_some(()));

    let long = elsewhere(&"long".repeat(25));
    let (backslash, line) = (elsewhere("back\\slash"), elsewhere("two\nlines"));
    let many: Vec<String> = (0..17).map(|number| format!("--peer=192.0.2.{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (words, what) in [
        (&[][..], "6443"),
        (&["--api-listen", "[::]:16443"], "7946"),
        (&["--name", "Not a name"], "--name"),
        (&["--data-dir", &long], "--data-dir"),
        (&["--data-dir", &backslash], "--data-dir"),
        (&["--data-dir", &line], "--data-dir"),
        (&many, "--peer"),
        (&["--advertise", "0.0.0.0"], "advertise"),
    ] {
        for verb in [&["up", "--new-cluster"][..], &["join", &word]] {
            let said = house.skein("two", &[verb, words].concat());
            let told = said.sentence();
            assert!(said.code == 1 && told.contains(what), "{words:?}: {said:?}");
            assert_eq!(present(&house, "two"), [""; 0], "{words:?}");
        }
    }
    assert!(house.skein_ok("one", &["token", "list"]).contains("good"), "the token was not used");
    assert_eq!(house.status("one")["nodes"].as_array().map(Vec::len), Some(1), "nobody has joined");
    let beside = fs::read_dir(house.dir().join("elsewhere")).expect("the other one is there");
    assert_eq!(beside.count(), 1);

    house.skein_ok("two", &["leave", "--end-cluster", "--data-dir", &other_dir]);
    other.wait().expect("it is ours");
    up(&mut house, "two", &["join", &word]);
    house.until_whole();
}

/// Its API never got a certificate: what may be read as an address is no host's name.
fn a_node_with_a_number_for_a_name_is_one_like_others() {
    let mut house = House::new(&["one", "two"]);
    let relative = house.dir().join("relative");
    fs::create_dir(&relative).expect("the lab's directory is ours");
    up(&mut house, "one", &["up", "--new-cluster", "--cluster", "42"]);
    house.until_up("one");
    for name in ["123", "7", "0x10"] {
        let word = token(&house, &[]);
        // A directory is where it was when it was named, wherever the daemon goes.
        let mut daemon = house.lab().machine("two").command("sh");
        let program = crate::house::program();
        let line = "cd \"$0\" && exec \"$1\" join \"$2\" --name \"$3\" --data-dir data";
        daemon.args(["-c", line]).arg(&relative).arg(program).args([&word, name]);
        let mut daemon =
            daemon.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("the daemon starts");
        let dir = relative.join("data").display().to_string();
        let ready = || {
            let status = house.status("one");
            let node = status["nodes"].as_array()?.iter().find(|node| node["name"] == name)?.clone();
            (node["ready"] == true).then_some(())
        };
        house.until("the node", ready);
        let said = house.skein_ok("two", &["status", "--data-dir", &dir]);
        assert!(said.contains(name), "{said}");
        house.skein_ok("two", &["leave", "--data-dir", &dir]);
        assert_eq!(daemon.wait().expect("it is ours").code(), Some(0));
    }
}

/// The copy, started later, was taken for the node, and the one that had run until then ended.
fn a_copied_disk_waits_for_the_one_that_runs_and_never_deposes_it() {
    let mut house = House::new(&["one", "two", "three", "copy"]);
    up(&mut house, "one", &["up", "--new-cluster"]);
    house.until_up("one");
    let word = token(&house, &["--uses", "2"]);
    for name in ["two", "three"] {
        up(&mut house, name, &["join", &word]);
    }
    let alive = |house: &House| {
        let status = house.status("one");
        let nodes = status["nodes"].as_array().expect("a list of nodes").clone();
        (nodes.len() == 3 && nodes.iter().all(|node| node["state"] == "alive" && node["voter"] == true))
            .then_some(())
    };
    house.until("all nodes", || alive(&house));

    // While it runs: as a snapshot of a virtual machine is.
    let (from, to) = (house.lab().machine("two").disk(), house.lab().machine("copy").disk());
    // By these the copy sees that it is one of three.
    house.until("the addresses of the others on its disk", || {
        let text = fs::read_to_string(from.join("addresses.json")).unwrap_or_default();
        let status = house.status("one");
        let ids = status["nodes"].as_array().expect("a list of nodes").iter();
        let mut others = ids.filter(|node| node["name"] != "two").map(|node| node["id"].as_str());
        others.all(|id| text.contains(id.expect("a node has an id"))).then_some(())
    });
    for part in ["node.key", "node.json", "cluster.json", "member.json", "addresses.json", "store"] {
        let copied =
            std::process::Command::new("cp").arg("-a").args([from.join(part), to.join(part)]).status();
        assert!(copied.expect("cp is there").success(), "{part}");
    }
    let as_it_was = fs::read(to.join("node.json")).expect("it was copied");
    let said = house.skein("copy", &["up", "--twin-wait", "1s"]);
    assert_eq!(said.code, 3, "{said:?}");
    let told = said.sentence();
    let status = house.status("two");
    let nodes = status["nodes"].as_array().expect("a list of nodes");
    let at = nodes.iter().find(|node| node["name"] == "two").expect("it is there")["address"].as_str();
    assert!(told.contains(at.expect("an address")) && told.contains("--data-dir"), "{told}");
    assert_eq!(fs::read(to.join("node.json")).expect("it was copied"), as_it_was, "no start was counted");

    // Once that one has ended the disk has moved, and its node goes on here.
    let copy = house.cluster.lab().machine_mut("copy");
    let (disk, cgroup) = (copy.disk().display().to_string(), copy.cgroup().to_owned());
    copy.start(&["up", "--data-dir", &disk, "--cgroup", &cgroup]).expect("the daemon starts");
    house.until("its waiting", || house.log("copy").contains("waiting for its end").then_some(()));
    alive(&house).expect("the node that runs did not notice");
    assert_eq!(stop(&mut house, "two"), Some(0));
    house.until("the node at its new place", || {
        let status = house.skein("copy", &["status", "-o", "json"]);
        (status.code == 0 && status.out.contains("\"node\": \"two\"")).then_some(())
    });
    house.until("all nodes", || alive(&house));
    // Not with the votes of the copy.
    let [past] = &former(&house, "copy")[..] else { panic!("one past") };
    assert!(past.join("store/log").exists(), "{past:?}");
}
