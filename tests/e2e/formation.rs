//! Machines become a cluster, with the words of the README.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::house::{House, Said, is_ready, program, said};
use crate::user::User;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    three_machines_become_a_cluster_by_hand,
    a_token_that_is_no_good_changes_nothing,
    a_machine_that_lost_its_disk_founds_no_second_cluster_by_accident,
    a_damaged_data_directory_is_named_and_not_used,
    a_node_that_leaves_is_gone_for_all,
    a_cluster_ends_with_its_last_node_and_leaves_nothing,
    the_demo_tells_its_story_to_machines,
    a_benchmark_that_is_interrupted_leaves_nothing,
];

/// The words that start a daemon of `house` by hand.
pub(crate) fn up(house: &mut House, name: &str, words: &[&str]) {
    let machine = house.cluster.lab().machine_mut(name);
    let (disk, cgroup) = (machine.disk().display().to_string(), machine.cgroup().to_owned());
    let own = ["--name", name, "--data-dir", &disk, "--cgroup", &cgroup];
    machine.start(&[words, &own].concat()).expect("the daemon starts");
}

/// Asks the daemon to stop, and says how it ended.
pub(crate) fn stop(house: &mut House, name: &str) -> Option<i32> {
    let daemon = house.cluster.lab().machine_mut(name).daemon().expect("it was started");
    daemon.signal(Signal::SIGTERM);
    house.ended(name)
}

pub(crate) fn token(house: &House, words: &[&str]) -> String {
    let printed = house.skein_ok("one", &[&["token", "create"], words].concat());
    let token = printed.strip_suffix('\n').expect("a line").to_owned();
    assert!(!token.contains(char::is_whitespace), "a token and nothing else: {printed:?}");
    token
}

/// A `join` that must be refused: one sentence, exit code 1, and the machine belongs to nobody.
fn refused(house: &House, name: &str, token: &str) -> Said {
    let said = house.skein(name, &["join", token, "--name", name]);
    assert_eq!(said.code, 1, "{said:?}");
    said.sentence();
    assert!(!house.lab().machine(name).disk().join("cluster.json").exists());
    said
}

fn names(house: &House) -> Vec<String> {
    house.nodes("one", |_| true)
}

fn three_machines_become_a_cluster_by_hand() {
    let mut house = House::new(&["one", "two", "three"]);
    let none = house.skein("one", &["status"]);
    assert!(none.code == 1 && none.err.contains("skein up"), "{none:?}");
    up(&mut house, "one", &["up"]);
    house.until_up("one");
    let twice = house.skein("one", &["up"]);
    assert!(twice.code == 1 && twice.err.contains("runs already"), "{twice:?}");
    let token = token(&house, &["--uses", "2"]);
    for name in ["two", "three"] {
        up(&mut house, name, &["join", &token]);
    }
    house.until_whole();

    for name in ["one", "two", "three"] {
        let status = house.status(name);
        assert!(status["cluster"].is_string() && status["leader"].is_string() && status["term"].is_u64());
        assert_eq!((&status["node"], &status["quorum"]), (&name.into(), &true.into()));
        // Of an ordinary user nothing is limited, and it says so.
        let warnings = status["warnings"].as_array().expect("a list");
        assert_eq!(warnings.is_empty(), !skein_chaos::lab::in_user_namespace(), "{warnings:?}");
        let nodes = status["nodes"].as_array().expect("a list of nodes");
        assert_eq!(nodes.len(), 3);
        for node in nodes {
            assert!(node["id"].is_string() && node["pods"].is_u64(), "{node}");
            assert!(node["address"].as_str().is_some_and(|address| address.ends_with(":7946")), "{node}");
            let good = node["state"] == "alive" && node["voter"] == true && node["ready"] == true;
            assert!(good, "{node}");
        }
        // Each context of each node's kubeconfig is answered.
        let user = User::of(&house, "kubectl".as_ref(), name, "default");
        assert_eq!(user.run(&["get", "nodes", "-o", "name"]).lines().count(), 3);
    }
    let text = house.skein_ok("two", &["status"]);
    assert!(text.contains("quorum       yes") && text.contains("survives     1 more failure"), "{text}");
    assert_eq!(house.skein("one", &["status", "--nonsense"]).code, 2);
    assert_eq!(house.skein("one", &["fly"]).code, 2);

    let taken = house.skein("two", &["join", &token]);
    assert!(taken.code == 1 && taken.err.contains("runs already"), "{taken:?}");
    let elsewhere = house.dir().join("elsewhere").display().to_string();
    let mut words = vec!["--data-dir", &elsewhere, "up", "--new-cluster", "--name", "other"];
    let busy = house.skein("one", &words);
    assert!(busy.code == 1 && busy.err.contains("6443"), "{busy:?}");
    words.extend(["--api-listen", "127.0.0.1:16443"]);
    let busy = house.skein("one", &words);
    assert!(busy.code == 1 && busy.err.contains("7946"), "{busy:?}");

    assert_eq!(stop(&mut house, "three"), Some(0));
    up(&mut house, "three", &["up"]);
    house.until_caught_up("three");
}

fn a_token_that_is_no_good_changes_nothing() {
    let mut house = House::new(&["one", "two", "three"]);
    up(&mut house, "one", &["up"]);
    house.until_up("one");

    let good = token(&house, &[]);
    let last = if good.ends_with('x') { 'y' } else { 'x' };
    let mistyped = format!("{}{last}", &good[..good.len() - 1]);
    refused(&house, "two", &mistyped);
    refused(&house, "two", "nonsense");

    let ids = |house: &House| house.skein_ok("one", &["token", "list", "-o", "name"]);
    let known = ids(&house);
    let revoked = token(&house, &[]);
    let now = ids(&house);
    let id = now.lines().find(|id| !known.contains(*id)).expect("a new token has an id").to_owned();
    house.skein_ok("one", &["token", "revoke", &id]);
    assert!(refused(&house, "two", &revoked).err.contains("revoked"));
    assert!(house.skein_ok("one", &["token", "list"]).contains("revoked"));
    assert_eq!(house.skein("one", &["token", "revoke", "unheardof"]).code, 1);

    let short = token(&house, &["--ttl", "1s"]);
    house.until("the token's end", || {
        house.skein_ok("one", &["token", "list"]).contains("expired").then_some(())
    });
    assert!(refused(&house, "two", &short).err.contains("expired"));

    up(&mut house, "two", &["join", &good]);
    house.until("the second node", || (names(&house).len() == 2).then_some(()));
    assert!(refused(&house, "three", &good).err.contains("use"));

    assert_eq!(names(&house), ["one", "two"]);
}

fn a_machine_that_lost_its_disk_founds_no_second_cluster_by_accident() {
    let mut house = House::new(&["one", "two"]);
    // Nobody else is here: it founds after it has asked.
    up(&mut house, "one", &["up"]);
    house.until_up("one");

    let disk = house.lab().machine("two").disk();
    // Asked from where members would be, and by a socket of one address at a port of its own.
    for words in [["up", "--name", "two"], ["up", "--listen", "198.51.100.2:7999"]] {
        let said = house.skein("two", &words);
        assert_eq!(said.code, 1, "{said:?}");
        for word in ["198.51.100.1:7946", "skein token create", "skein join TOKEN", "--new-cluster"] {
            assert!(said.sentence().contains(word), "{word}: {said:?}");
        }
        assert_eq!(fs::read_dir(&disk).expect("the disk is ours").count(), 0, "nothing was made");
    }

    up(&mut house, "two", &["up", "--new-cluster"]);
    house.until_up("two");
    let fingerprint = |name: &str| house.status(name)["fingerprint"].clone();
    assert_ne!(fingerprint("one"), fingerprint("two"));

    // A member needs no such word, and each cluster leaves the other alone, saying so once.
    assert_eq!(stop(&mut house, "two"), Some(0));
    up(&mut house, "two", &["up"]);
    house.until_up("two");
    for last in [102, 103] {
        house.cluster.lab().readdress("two", [198, 51, 100, last].into()).expect("the machine is ours");
        house.until("the new address", || {
            let address = house.status("two")["nodes"][0]["address"].clone();
            address.as_str()?.starts_with(&format!("198.51.100.{last}:")).then_some(())
        });
    }
    let told = || house.log("one").matches("a node of another cluster is on this network").count();
    house.until("the word of another cluster", || (told() > 0).then_some(()));
    assert_eq!(told(), 1);
    assert_eq!(names(&house), ["one"]);
}

fn a_damaged_data_directory_is_named_and_not_used() {
    let mut house = House::new(&["one"]);
    up(&mut house, "one", &["up"]);
    house.until_up("one");
    assert_eq!(stop(&mut house, "one"), Some(0));

    let disk = house.lab().machine("one").disk();
    let cluster = disk.join("cluster.json");
    let whole = fs::read(&cluster).expect("it was founded");
    fs::write(&cluster, &whole[..whole.len() / 2]).expect("the disk is ours");
    let said = house.skein("one", &["up", "--name", "one"]);
    assert!(said.code == 1 && said.err.contains("cluster.json is damaged"), "{said:?}");
    fs::write(&cluster, &whole).expect("the disk is ours");

    let log = first_segment(&disk.join("store/log"));
    let mut bytes = fs::read(&log).expect("the log is there");
    // In the first record: what follows it is sound, so this is no torn end.
    bytes[64] ^= 0x40;
    fs::write(&log, &bytes).expect("the disk is ours");
    let said = house.skein("one", &["up", "--name", "one"]);
    assert!(said.code == 1, "{said:?}");
    let named = log.file_name().expect("a file").to_string_lossy().into_owned();
    assert!(said.err.contains(&named), "{said:?}");
    assert_eq!(fs::read(&log).expect("still there"), bytes, "what is damaged is left as it is");
}

fn first_segment(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir).expect("the log is there").flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|end| end == "seg")).min().expect("a log has a segment")
}

fn a_node_that_leaves_is_gone_for_all() {
    let mut house = House::formed(&["one", "two", "three"]);
    let names_of_pods = ["bare-0", "bare-1", "bare-2"];
    let pod =
        |house: &House, name: &str| house.get("one", &format!("/api/v1/namespaces/default/pods/{name}"));
    let runs = |house: &House, name: &str| is_ready(&pod(house, name)["status"]);
    for name in names_of_pods {
        let spec = json!({ "containers": [{ "name": "main", "image": "skein.dev/tiny" }] });
        house.create(
            "one",
            "/api/v1/namespaces/default/pods",
            &json!({ "metadata": { "name": name }, "spec": spec }),
        );
        house.until("a pod", || runs(&house, name).then_some(()));
    }
    let on_three = |house: &House| {
        names_of_pods.iter().filter(|name| pod(house, name)["spec"]["nodeName"] == "three").count()
    };
    assert!(on_three(&house) > 0, "they spread");
    house.skein_ok("three", &["leave"]);
    house.until("two nodes", || (names(&house) == ["one", "two"]).then_some(()));
    // Nobody owns them, and they are to run always.
    let moved =
        || (on_three(&house) == 0 && names_of_pods.iter().all(|name| runs(&house, name))).then_some(());
    house.until("its pods elsewhere", moved);
    nothing_is_left(&mut house, "three");
    let user = User::of(&house, "kubectl".as_ref(), "two", "default");
    house.until("two nodes in the API", || {
        (user.run(&["get", "nodes", "-o", "name"]).lines().count() == 2).then_some(())
    });
    house.until("no vote left behind", || {
        let status = house.status("two");
        let voters = status["nodes"].as_array()?.iter().filter(|node| node["voter"] == true).count();
        (voters <= 2 && status["quorum"] == true).then_some(())
    });
}

fn a_cluster_ends_with_its_last_node_and_leaves_nothing() {
    let mut house = House::with_pods(&["one", "two"], 4);
    let refused = house.skein("one", &["leave", "--end-cluster"]);
    assert!(refused.code == 1 && refused.err.contains("other nodes"), "{refused:?}");
    house.skein_ok("two", &["leave"]);
    nothing_is_left(&mut house, "two");
    house.until("one node", || (names(&house) == ["one"]).then_some(()));
    let refused = house.skein("one", &["leave"]);
    assert!(refused.code == 1 && refused.err.contains("only node"), "{refused:?}");
    house.skein_ok("one", &["leave", "--end-cluster"]);
    nothing_is_left(&mut house, "one");
    let none = house.skein("one", &["status"]);
    assert_eq!(none.code, 1, "{none:?}");
}

/// Of a node that has left: its daemon ends, and nothing of its pods stays in the kernel.
fn nothing_is_left(house: &mut House, name: &str) {
    assert_eq!(house.ended(name), Some(0));
    let machine = house.lab().machine(name);
    let routes = said(machine.command("ip").args(["route", "show", "proto", "117"]).output());
    let links = said(machine.command("ip").args(["-o", "link", "show", "type", "veth"]).output());
    assert_eq!(
        (&*routes.out, links.out.lines().filter(|link| link.contains(": sk")).count()),
        ("", 0),
        "{links:?}"
    );
    assert_eq!(cgroups(machine.cgroup()), Vec::<PathBuf>::new());
}

fn the_demo_tells_its_story_to_machines() {
    let said = said(Command::new("timeout").arg("300").arg(program()).args(["demo", "--json"]).output());
    assert_eq!(said.code, 0, "{said:?}");
    let events: Vec<serde_json::Value> =
        said.out.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    assert!(events.iter().all(|event| event["event"].is_string() && event["ms"].is_u64()));
    let done = events.last().expect("it says something");
    assert_eq!((&done["event"], &done["ok"]), (&"done".into(), &true.into()));
    let roles: Vec<_> =
        done["failovers"].as_array().expect("a list").iter().map(|one| one["role"].clone()).collect();
    assert_eq!(roles, ["worker", "leader"]);
}

fn a_benchmark_that_is_interrupted_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory for the benchmark's own");
    // Away from the sources it measures the program that lies beside it.
    let mut bench = Command::new(program().with_file_name("skein-chaos"))
        .args(["bench", "join", "--runs", "1000"])
        .current_dir("/")
        .env("TMPDIR", dir.path())
        .stderr(Stdio::null())
        .spawn()
        .expect("the benchmarks are built beside the program");
    let own =
        || std::fs::read_dir(dir.path()).expect("it is there").flatten().map(|entry| entry.path()).next();
    let runs =
        crate::house::until("a machine", || own()?.join("one/disk/cluster.json").exists().then_some(()));
    let groups = format!("skein-lab-{}-0", bench.id());
    kill(Pid::from_raw(bench.id() as i32), Signal::SIGTERM).expect("it is ours");
    let ended = bench.wait().expect("it is ours");
    assert!(runs.is_some(), "no machine of the benchmark founded a cluster");
    assert_eq!((ended.code(), own()), (Some(1), None));
    assert_eq!(cgroups(&groups), Vec::<PathBuf>::new());
}

/// Where there is a cgroup of that name: in the one hierarchy of version 2, or in any of version 1.
pub(crate) fn cgroups(group: &str) -> Vec<PathBuf> {
    let mount = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(&mount).expect("Linux has cgroups").flatten().map(|entry| entry.path());
    let dirs = hierarchies.chain([mount]).map(|hierarchy| hierarchy.join(group));
    dirs.filter(|dir| dir.exists()).collect()
}
