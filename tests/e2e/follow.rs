//! Nodes beyond the voters and their two spares: they have no log, and nobody notices.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::house::{House, life, wait};
use crate::user::User;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    a_node_without_a_log_works_like_any_and_takes_the_place_of_a_spare,
    a_node_without_a_log_wakes_up_alone_and_keeps_its_pods,
];

const NODES: [&str; 8] = ["one", "two", "three", "four", "five", "six", "seven", "eight"];

/// The names of the nodes that `role` is true of, as the leader sees them.
fn those(house: &House, role: impl Fn(&Value) -> bool) -> Vec<String> {
    let leader = house.until("a leader", || wait(house.cluster.leader()));
    house.nodes(&leader, role)
}

fn is_follower(node: &Value) -> bool {
    node["voter"] == false && node["learner"] == false
}

/// A cluster of which one node has no log, and that node.
fn formed() -> (House, String) {
    let house = House::formed(&NODES);
    house.until("five votes, two spares and one without a log", || {
        let learners = those(&house, |node| node["learner"] == true);
        (learners.len() == 2 && those(&house, is_follower).len() == 1).then_some(())
    });
    let follower = those(&house, is_follower).remove(0);
    (house, follower)
}

fn a_node_without_a_log_works_like_any_and_takes_the_place_of_a_spare() {
    let (mut house, follower) = formed();
    assert!(house.skein_ok(&follower, &["status"]).contains("follower"));
    house.until("that it has everything", || {
        those(&house, |node| is_follower(node) && node["lag"] == 0).first().map(drop)
    });

    // What is written through it is read there at once.
    let user = User::of(&house, Path::new("kubectl"), &follower, "default");
    for number in 0..5 {
        let name = format!("map-{number}");
        user.run(&["create", "configmap", &name, &format!("--from-literal=number={number}")]);
        let read = user.run(&["get", "configmap", &name, "-o", "jsonpath={.data.number}"]);
        assert_eq!(read, number.to_string());
    }

    let before = house.run_pod(&follower);
    // Its daemon dies and finds everything again.
    house.cluster.lab().machine_mut(&follower).kill_daemon();
    house.cluster.up(&follower).expect("the daemon starts");
    house.until_caught_up(&follower);
    let user = User::of(&house, Path::new("kubectl"), &follower, "default");
    user.run(&["create", "configmap", "after"]);
    assert_eq!(life(&house.ready_pod(&follower)), life(&before), "it was adopted");
    assert_eq!(those(&house, is_follower), std::slice::from_ref(&follower));

    // A voter that leaves is replaced by a spare, and the follower becomes one.
    let leader = house.until("a leader", || wait(house.cluster.leader()));
    let gone = those(&house, |node| node["voter"] == true && node["name"] != leader.as_str()).remove(0);
    let said = house.skein(&gone, &["leave"]);
    assert_eq!(said.code, 0, "{said:?}\n{}", house.logs());
    house.until("five votes and two spares again", || {
        let voters = those(&house, |node| node["voter"] == true);
        let learners = those(&house, |node| node["learner"] == true);
        (voters.len() == 5 && !voters.contains(&gone) && learners.len() == 2).then_some(())
    });
    assert!(those(&house, |node| node["learner"] == true).contains(&follower));
    user.run(&["create", "configmap", "as-a-spare"]);
    assert_eq!(life(&house.ready_pod(&follower)), life(&before), "nothing of it touched the pod");
}

fn a_node_without_a_log_wakes_up_alone_and_keeps_its_pods() {
    let (mut house, follower) = formed();
    let before = house.run_pod(&follower);
    let lab = house.cluster.lab();
    let daemon = lab.machine_mut(&follower).daemon().expect("it runs");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().expect("it is ours").code(), Some(0));
    for name in NODES.iter().filter(|name| **name != follower) {
        lab.power_off(name).expect("the machine is ours");
    }

    // What it followed is on its disk, so it shows the pod and touches nothing, for as long as it is alone.
    house.cluster.up(&follower).expect("the daemon starts");
    house.until("the pod, as it was", || {
        let pod = house.get(&follower, "/api/v1/namespaces/default/pods/here?resourceVersion=0");
        (pod["metadata"]["uid"] == before["metadata"]["uid"]).then_some(())
    });
    let log = house.lab().machine(&follower).log();
    house.until("that it goes on without the others", || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        said.contains("without a quorum: what runs goes on").then_some(())
    });
    assert_eq!(house.status(&follower)["quorum"], false);

    for name in NODES.iter().filter(|name| **name != follower) {
        house.cluster.power_back(name).expect("the machine starts");
    }
    house.until_whole();
    let user = User::of(&house, Path::new("kubectl"), &follower, "default");
    user.run(&["create", "configmap", "after"]);
    assert_eq!(life(&house.ready_pod(&follower)), life(&before), "it ran all the time");
}
