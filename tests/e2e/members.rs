//! Machines leave, are taken out, and are told so.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::failover::{leader, lives};
use crate::formation::{token, up};
use crate::house::{House, Said, is_ready, program, said};
use crate::user::User;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    of_three_that_leave_at_once_two_go_and_the_last_one_serves_on,
    the_founder_of_two_hands_everything_over_before_it_goes,
    who_cannot_be_let_go_is_refused_before_anything_is_done_to_it,
    a_leave_goes_on_after_its_daemon_and_is_taken_back_by_ctrl_c,
    a_lost_machine_is_taken_out_and_stays_out_when_it_is_back,
    a_living_machine_is_taken_out_by_name_and_not_by_its_object,
    a_reinstalled_machine_takes_the_place_of_the_lost_one_of_its_name,
    of_a_stolen_machine_nothing_counts_any_more_and_the_others_go_on,
];

/// How a daemon ends whose membership others have ended: no service manager is to start it again.
const REMOVED: i32 = 4;
const SLOW: &str = "/api/v1/namespaces/default/pods/slow";

/// The states of all nodes, as `through` sees them.
fn states(house: &House, through: &str) -> Vec<(String, String)> {
    let status = house.status(through);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let state = |node: &Value| match node["departure"].as_str() {
        Some(departure) => departure.to_owned(),
        None => text(&node["state"]),
    };
    let nodes = status["nodes"].as_array().expect("a list of nodes");
    nodes.iter().map(|node| (text(&node["name"]), state(node))).collect()
}

fn names(house: &House, through: &str) -> Vec<String> {
    house.nodes(through, |_| true)
}

fn is_cordoned(house: &House, through: &str, name: &str) -> bool {
    house.get(through, &format!("/api/v1/nodes/{name}"))["spec"]["unschedulable"] == true
}

/// The machine is lost, and all know it.
fn lose(house: &mut House, name: &str) {
    house.cluster.lab().power_off(name).expect("the machine is ours");
    house.until("the loss", || {
        let node = house.get("one", &format!("/api/v1/nodes/{name}"));
        node["spec"]["taints"].to_string().contains("unreachable").then_some(())
    });
}

/// Its disk is empty, as after a reinstallation.
fn wipe(house: &House, name: &str) {
    let disk = house.lab().machine(name).disk();
    for file in std::fs::read_dir(&disk).expect("the disk is ours").flatten() {
        let removed = match file.path().is_dir() {
            true => std::fs::remove_dir_all(file.path()),
            false => std::fs::remove_file(file.path()),
        };
        removed.expect("the disk is ours");
    }
}

/// A pod that hears no SIGTERM, on `node`.
fn run_slow_pod(house: &House, node: &str) {
    let spec = json!({
        "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "preference": { "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": [node] },
            ] },
        }] } },
        "terminationGracePeriodSeconds": 15,
        "containers": [{ "name": "main", "image": "skein.dev/tiny", "args": ["print", "here", "9999", "1000"] }],
    });
    let pod = json!({ "metadata": { "name": "slow" }, "spec": spec });
    house.create("one", "/api/v1/namespaces/default/pods", &pod);
    house.until("the slow pod", || {
        let pod = house.get("one", SLOW);
        (is_ready(&pod["status"]) && pod["spec"]["nodeName"] == node).then_some(())
    });
}

fn of_three_that_leave_at_once_two_go_and_the_last_one_serves_on() {
    let mut house = House::with_pods(&["one", "two", "three"], 3);
    let all = ["one", "two", "three"];
    let results: Vec<Said> = std::thread::scope(|scope| {
        let leaving: Vec<_> = all.map(|name| scope.spawn(|| house.skein(name, &["leave"]))).into();
        leaving.into_iter().map(|leaving| leaving.join().expect("it ends")).collect()
    });
    let stayed: Vec<&str> =
        all.iter().zip(&results).filter(|(_, said)| said.code != 0).map(|(name, _)| *name).collect();
    let [last] = stayed[..] else { panic!("{results:?}\n{}", house.logs()) };
    let refused = results.iter().find(|said| said.code != 0).expect("one of them");
    assert!(refused.err.contains("skein leave --end-cluster"), "{refused:?}");
    for name in all.iter().filter(|name| **name != last) {
        assert_eq!(house.ended(name), Some(0));
    }
    assert_eq!(names(&house, last), [last]);
    assert!(!is_cordoned(&house, last, last));
    house.until_running(last, 3);
    // It holds the authorities: others may join it.
    house.skein_ok(last, &["token", "create"]);
    house.skein_ok(last, &["kubeconfig"]);
}

fn the_founder_of_two_hands_everything_over_before_it_goes() {
    let mut house = House::with_pods(&["one", "two"], 4);
    let said = house.skein("one", &["leave"]);
    assert_eq!(said.code, 0, "{said:?}\n{}", house.logs());
    assert_eq!(house.ended("one"), Some(0));
    house.until("one node", || (names(&house, "two") == ["two"]).then_some(()));
    let status = house.status("two");
    assert_eq!((&status["leader"], &status["quorum"]), (&"two".into(), &true.into()), "{status}");
    // What only a holder of the authorities can give.
    let user = User::of(&house, "kubectl".as_ref(), "two", "default");
    assert_eq!(user.run(&["get", "nodes", "-o", "name"]).lines().collect::<Vec<_>>(), ["node/two"]);
    house.until_running("two", 4);
    house.skein_ok("two", &["leave", "--end-cluster"]);
}

fn who_cannot_be_let_go_is_refused_before_anything_is_done_to_it() {
    let mut house = House::formed(&["one", "two"]);
    // One leads and votes; the other one is off for good.
    house.cluster.lab().power_off("two").expect("the machine is ours");
    house.until("the loss", || states(&house, "one").contains(&("two".into(), "down".into())).then_some(()));
    let refused = house.skein("one", &["leave"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains(r#""two""#) && refused.err.contains("skein remove"), "{refused:?}");
    assert!(!is_cordoned(&house, "one", "one"));
    let refused = house.skein("one", &["leave", "--end-cluster"]);
    assert!(refused.code == 1 && refused.err.contains("--force"), "{refused:?}");
    let forced = house.skein("one", &["leave", "--end-cluster", "--force"]);
    assert!(forced.code == 0 && forced.err.contains("two"), "{forced:?}");
    assert_eq!(house.ended("one"), Some(0));
}

/// A `skein leave` that goes on, and its pid on its machine.
fn leaving(house: &House, name: &str) -> (Child, String) {
    let machine = house.lab().machine(name);
    let mut client = machine
        .command("sh")
        .args(["-c", r#"echo $$; exec "$0" leave"#])
        .arg(program())
        .env("SKEIN_DATA_DIR", machine.disk())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client starts");
    let mut pid = String::new();
    let output = client.stdout.take().expect("piped above");
    BufReader::new(output).read_line(&mut pid).expect("it says its pid");
    (client, pid.trim().to_owned())
}

fn a_leave_goes_on_after_its_daemon_and_is_taken_back_by_ctrl_c() {
    let mut house = House::formed(&["one", "two", "three"]);
    run_slow_pod(&house, "three");
    let draining = |house: &House| {
        house.until("the drain", || {
            states(house, "one").contains(&("three".into(), "draining".into())).then_some(())
        });
    };
    let (client, pid) = leaving(&house, "three");
    draining(&house);
    assert!(is_cordoned(&house, "one", "three"));
    // As Ctrl-C does.
    let machine = house.lab().machine("three");
    assert_eq!(said(machine.command("kill").args(["-INT", &pid]).output()).code, 0);
    let told = said(client.wait_with_output());
    assert!(told.code == 1 && told.err.contains("taken back"), "{told:?}");
    house.until("no cordon", || (!is_cordoned(&house, "one", "three")).then_some(()));
    assert!(states(&house, "one").iter().all(|(_, state)| state == "alive"));

    // Nobody owns the pod: it is made anew under its name once it has ended, here or elsewhere.
    let first = house.get("one", SLOW)["metadata"]["uid"].clone();
    house.until("the pod anew", || {
        let pod = house.get("one", SLOW);
        (pod["metadata"]["uid"] != first && is_ready(&pod["status"])).then_some(())
    });

    // This time the daemon dies in the middle of it, and nobody waits for the end.
    let node = house.get("one", SLOW)["spec"]["nodeName"].as_str().expect("it runs").to_owned();
    let other = if node == "one" { "two" } else { "one" };
    let (mut client, _) = leaving(&house, &node);
    house.until("the drain", || {
        states(&house, other).contains(&(node.clone(), "draining".into())).then_some(())
    });
    house.cluster.lab().machine_mut(&node).kill_daemon();
    client.wait().expect("it notices");
    up(&mut house, &node, &["up"]);
    house.until("the end of it", || (!names(&house, other).contains(&node)).then_some(()));
    assert_eq!(house.ended(&node), Some(0));
}

fn a_lost_machine_is_taken_out_and_stays_out_when_it_is_back() {
    let mut house = House::with_pods(&["one", "two", "three"], 6);
    // A kubeconfig that was made there, and a copy of it may be anywhere.
    let config = house.skein_ok("three", &["kubeconfig", "--user", "ann"]);
    let ann = User::with(&house, "kubectl".as_ref(), "one", "default", &config);
    assert_eq!(ann.run(&["get", "nodes", "-o", "name"]).lines().count(), 3);
    drop(ann);
    lose(&mut house, "three");
    let removed = house.skein("one", &["remove", "three"]);
    assert!(removed.code == 0 && removed.out.contains("ann"), "{removed:?}\n{}", house.logs());
    assert_eq!(house.get("one", "/api/v1/nodes/three"), Value::Null);
    let unknown = house.skein("one", &["remove", "three"]);
    assert!(unknown.code == 1 && unknown.err.contains("no member called"), "{unknown:?}");
    for node in ["one", "two"] {
        let ann = User::with(&house, "kubectl".as_ref(), node, "default", &config);
        house.until("the end of her kubeconfig", || {
            let said = said(ann.command(&["get", "nodes"]).output());
            (said.code != 0).then_some(())
        });
    }
    house.until("two members with a majority", || {
        let status = house.status("one");
        let nodes = status["nodes"].as_array()?;
        (nodes.len() == 2 && status["quorum"] == true).then_some(())
    });

    // It comes back, and is told so once.
    house.cluster.lab().power_on("three").expect("the machine is ours");
    up(&mut house, "three", &["up"]);
    assert_eq!(house.ended("three"), Some(REMOVED));
    let log = house.log("three");
    let told = log.lines().filter(|line| line.contains("was removed from cluster")).count();
    assert_eq!(told, 1, "{log}");
    // With its key it gets nowhere; with a new one its old name is free.
    let token = token(&house, &[]);
    wipe(&house, "three");
    up(&mut house, "three", &["join", &token]);
    // Whoever votes again, and when, is another matter: the second node has not been up for long.
    house.until("the newcomer", || {
        let nodes = house.status("one")["nodes"].as_array()?.clone();
        let is_there = |node: &&Value| node["ready"] == true && node["state"] == "alive";
        (nodes.iter().filter(is_there).count() == 3).then_some(())
    });
}

fn a_living_machine_is_taken_out_by_name_and_not_by_its_object() {
    let mut house = House::with_pods(&["one", "two", "three"], 6);
    let user = User::of(&house, "kubectl".as_ref(), "one", "default");
    user.run(&["label", "node", "three", "shelf=top"]);
    let before = lives(&house, "one");
    let refused = said(user.command(&["delete", "node", "three"]).output());
    for word in ["skein remove three", "kubectl drain three"] {
        assert!(refused.code != 0 && refused.err.contains(word), "{refused:?}");
    }
    assert_eq!(lives(&house, "one"), before, "no pod of it was touched");
    assert_eq!(house.get("one", "/api/v1/nodes/three")["metadata"]["labels"]["shelf"], "top");
    drop(user);

    // Drained first; the leader itself, taken out by another.
    let leader = leader(&house);
    let other = ["one", "two", "three"].into_iter().find(|name| *name != leader).expect("there are three");
    let removed = house.skein(other, &["remove", &leader]);
    assert_eq!(removed.code, 0, "{removed:?}\n{}", house.logs());
    assert!(removed.err.contains("its pods move"), "{removed:?}");
    assert_eq!(house.ended(&leader), Some(REMOVED), "its daemon is told");
    assert_eq!(names(&house, other).len(), 2);
    house.until_running(other, 6);
}

fn a_reinstalled_machine_takes_the_place_of_the_lost_one_of_its_name() {
    let mut house = House::with_pods(&["one", "two", "three"], 6);
    let user = User::of(&house, "kubectl".as_ref(), "one", "default");
    user.run(&["label", "node", "three", "shelf=top"]);
    drop(user);
    let node = |house: &House| house.get("one", "/api/v1/nodes/three");
    let before = node(&house);
    let alive = house.skein("one", &["token", "create", "--replace", "three"]);
    assert!(alive.code == 1 && alive.err.contains("skein remove three"), "{alive:?}");

    lose(&mut house, "three");
    house.cluster.lab().power_on("three").expect("the machine is ours");
    wipe(&house, "three");
    let plain = token(&house, &[]);
    let refused = house.skein("three", &["join", &plain, "--name", "three"]);
    assert!(refused.code == 1 && refused.err.contains("--replace three"), "{refused:?}");
    let token = token(&house, &["--replace", "three"]);
    let other = house.skein("three", &["join", &token, "--name", "four"]);
    assert!(other.code == 1 && other.err.contains("--name three"), "{other:?}");
    // The refusals left a key of their own in some files.
    wipe(&house, "three");
    up(&mut house, "three", &["join", &token]);
    house.until_whole();
    assert_eq!(names(&house, "one").len(), 3);
    house.until("the labels", || (node(&house)["metadata"]["labels"]["shelf"] == "top").then_some(()));
    let after = node(&house);
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["spec"]["podCIDR"], before["spec"]["podCIDR"]);
    house.until_running("one", 6);
    assert!(house.skein_ok("one", &["token", "list"]).contains("three"), "whose place it gave");
}

/// Of the leader, which holds the authorities and lives: whoever has it may know all that any node knew.
fn of_a_stolen_machine_nothing_counts_any_more_and_the_others_go_on() {
    let mut house = House::with_pods(&["one", "two", "three"], 6);
    house.until("the authorities on all voters", || {
        let holders = house.status("one")["authorities"]["holders"].as_array()?.len();
        (holders == 3).then_some(())
    });
    let thief = leader(&house);
    let [a, b] = *["one", "two", "three"].into_iter().filter(|name| *name != thief).collect::<Vec<_>>()
    else {
        panic!("{thief} is one of three")
    };
    let kept = |house: &House| -> Vec<Value> {
        let pods = house.get(a, "/api/v1/namespaces/default/pods")["items"].clone();
        let pods = pods.as_array().cloned().unwrap_or_default();
        pods.iter()
            .filter(|pod| pod["spec"]["nodeName"] != *thief)
            .map(|pod| pod["metadata"]["uid"].clone())
            .collect()
    };
    let stay = kept(&house);
    let old = house.skein_ok(b, &["kubeconfig", "--user", "ann"]);
    let token_of = |house: &House| house.skein_ok(a, &["token", "create"]).trim().to_owned();
    let token = token_of(&house);
    let asked = house.skein(a, &["remove", "--stolen", &thief]);
    assert!(
        asked.code == 1 && asked.err.contains("ALL kubeconfigs") && asked.err.contains("--yes"),
        "{asked:?}"
    );
    let itself = house.skein(&thief, &["remove", "--stolen", "--yes", &thief]);
    assert!(itself.code == 1 && itself.err.contains("on another one"), "{itself:?}");

    let removed = house.skein(a, &["remove", "--stolen", "--yes", &thief]);
    assert_eq!(removed.code, 0, "{removed:?}\n{}", house.logs());
    for word in ["TOKENS OF BEFORE HAVE ENDED", "KUBECONFIGS OF BEFORE HAVE ENDED"] {
        assert!(removed.out.contains(word), "{removed:?}");
    }
    assert_eq!(house.ended(&thief), Some(REMOVED), "its daemon is told");
    let nodes = |config: &str, through| {
        let user = User::with(&house, "kubectl".as_ref(), through, "default", config);
        user.say(&["get", "nodes", "-o", "name"])
    };
    let new = house.skein_ok(b, &["kubeconfig", "--user", "ann"]);
    for name in [a, b] {
        house.until("the new kubeconfig to be believed", || (nodes(&new, name).code == 0).then_some(()));
        house.until("the old one to be refused", || (nodes(&old, name).code != 0).then_some(()));
    }
    // With all that lies on its disk but the key it is a machine like any other: a token of before is worth nothing.
    wipe(&house, &thief);
    let refused = house.skein(&thief, &["join", &token, "--name", &thief]);
    assert_eq!(refused.code, 1, "{refused:?}");
    let now = kept(&house);
    assert!(stay.iter().all(|uid| now.contains(uid)), "pods elsewhere were left alone");
    house.until_running(a, 6);
    let token = token_of(&house);
    wipe(&house, &thief);
    up(&mut house, &thief, &["join", &token]);
    house.until("the newcomer", || (names(&house, a).len() == 3).then_some(()));
    house.until("keys with the voters alone", || {
        let status = house.status(a);
        let holders = status["authorities"]["holders"].as_array()?.len();
        (status["authorities"]["changing"] == false && holders >= 1).then_some(())
    });
}
