//! Machines are lost, cut off, paused and restarted; pods move exactly when they should.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::house::{House, said, wait};
use crate::user::User;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    a_machine_without_power_is_replaced_whether_it_led_or_not,
    a_machine_that_is_cut_off_is_replaced_and_gives_back_its_extra_pods,
    a_leader_cut_off_from_one_node_gives_way_and_no_pod_moves,
    five_machines_survive_the_loss_of_three_one_after_another,
    pods_outlive_their_daemon,
    a_daemon_that_stays_dead_is_replaced_although_its_machine_answers,
    a_paused_daemon_keeps_its_pods,
    a_paused_machine_that_has_forgotten_its_neighbours_keeps_its_pods,
    a_starved_machine_on_a_bad_link_keeps_its_pods,
    a_cluster_wakes_up_in_any_order,
    a_machine_that_stays_off_after_everything_was_off_is_replaced,
    a_machine_that_is_switched_off_while_it_stops_is_replaced_as_fast,
    a_daemon_that_comes_back_ends_what_runs_elsewhere_before_its_node_is_ready,
    of_two_nodes_the_one_without_power_is_replaced_if_the_gateway_answers,
    of_two_nodes_the_one_whose_own_cable_is_out_leaves_the_other_alone,
    of_two_nodes_the_one_that_stays_off_after_both_were_off_is_replaced,
];

pub(crate) const NODES: [&str; 3] = ["one", "two", "three"];
pub(crate) const REPLICAS: u64 = 6;
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods?labelSelector=app%3Dweb";

/// What shows that a pod was left alone: its node, and when each of its containers started.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Life {
    pub(crate) node: String,
    restarts: u64,
    pub(crate) started: String,
}

pub(crate) fn with_pods() -> House {
    with_pods_on(&NODES)
}

fn with_pods_on(nodes: &[&str]) -> House {
    House::with_pods(nodes, REPLICAS)
}

/// The pods that run, by uid, as `through` sees them.
pub(crate) fn lives(house: &House, through: &str) -> BTreeMap<String, Life> {
    let list = house.get(through, PODS);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list["items"].as_array().into_iter().flatten();
    pods.map(|pod| {
        let status = &pod["status"]["containerStatuses"][0];
        let life = Life {
            node: text(&pod["spec"]["nodeName"]),
            restarts: status["restartCount"].as_u64().unwrap_or_default(),
            started: text(&status["state"]["running"]["startedAt"]),
        };
        (text(&pod["metadata"]["uid"]), life)
    })
    .collect()
}

fn off(lives: &BTreeMap<String, Life>, node: &str) -> BTreeMap<String, Life> {
    lives
        .iter()
        .filter(|(_, life)| life.node != node)
        .map(|(uid, life)| (uid.clone(), life.clone()))
        .collect()
}

fn all_run_off(house: &House, through: &str, node: &str) -> bool {
    let elsewhere = off(&lives(house, through), node);
    elsewhere.values().filter(|life| !life.started.is_empty()).count() == REPLICAS as usize
}

/// Some node that does not lead.
fn worker(leader: &str) -> &'static str {
    NODES.into_iter().find(|name| *name != leader).expect("there are three")
}

pub(crate) fn leader(house: &House) -> String {
    house.until("a leader", || wait(house.cluster.leader()))
}

/// Kills the daemon of a node that does not lead, until its pods run elsewhere: which one, and the pods before that.
fn lose_a_daemon(house: &mut House) -> (&'static str, BTreeMap<String, Life>) {
    let leader = leader(house);
    let victim = worker(&leader);
    let before = lives(house, &leader);
    house.cluster.lab().machine_mut(victim).kill_daemon();
    house.until("replacements", || all_run_off(house, &leader, victim).then_some(()));
    (victim, before)
}

/// Nothing changes for `span`: every look shows the same pods.
fn nothing_moves(house: &House, through: &str, before: &BTreeMap<String, Life>, span: Duration) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        assert_eq!(&lives(house, through), before, "pods were touched\n{}", house.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn a_machine_without_power_is_replaced_whether_it_led_or_not() {
    let mut house = with_pods();
    for led in [false, true] {
        let leader = leader(&house);
        let victim = NODES.into_iter().find(|name| (*name == leader) == led).expect("there are both");
        let through = NODES.into_iter().find(|name| *name != victim).expect("there are three");
        let before = lives(&house, through);
        let failover = wait(house.cluster.power_cut(victim, "web", REPLICAS));
        let failover = failover.unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
        assert_eq!(failover.led, led);
        // Two voters are left of three, and both are needed.
        let survives_none = || (house.status(through)["failuresSurvived"] == 0).then_some(());
        house.until("nobody else may be lost", survives_none);
        let healthy = off(&before, victim);
        let after = lives(&house, through);
        assert!(healthy.iter().all(|(uid, life)| after.get(uid) == Some(life)), "{before:#?}\n{after:#?}");
        house.cluster.power_back(victim).expect("the machine starts");
        house.until_caught_up(victim);
        house.until_whole();
        house.until("no pod too many", || (lives(&house, through).len() == REPLICAS as usize).then_some(()));
        let healed = lives(&house, through);
        assert!(healthy.iter().all(|(uid, life)| healed.get(uid) == Some(life)), "{healthy:#?}\n{healed:#?}");
    }
}

fn a_machine_that_is_cut_off_is_replaced_and_gives_back_its_extra_pods() {
    let mut house = with_pods();
    let leader = leader(&house);
    let victim = worker(&leader);
    let before = lives(&house, &leader);
    for other in NODES.into_iter().filter(|name| *name != victim) {
        house.cluster.lab().cut(victim, other).expect("nft cuts");
    }
    house.until("replacements", || all_run_off(&house, &leader, victim).then_some(()));
    let replaced = off(&lives(&house, &leader), victim);
    let healthy = off(&before, victim);
    assert!(healthy.iter().all(|(uid, life)| replaced.get(uid) == Some(life)), "{healthy:#?}\n{replaced:#?}");
    house.cluster.lab().mend().expect("nft mends");
    house.until_whole();
    house.until("no pod too many", || (lives(&house, victim) == replaced).then_some(()));
}

/// The pair reaches everybody else, so nobody is lost; and yet the node could not write while that one leads.
fn a_leader_cut_off_from_one_node_gives_way_and_no_pod_moves() {
    let mut house = with_pods_on(&["one", "two", "three", "four"]);
    for (votes, both_ways) in [(false, true), (true, true), (true, false)] {
        let leader = leader(&house);
        let status = house.status(&leader);
        let nodes = status["nodes"].as_array().expect("a list of nodes");
        let is_it = |node: &&Value| node["voter"] == votes && node["name"] != leader.as_str();
        let victim =
            nodes.iter().find(is_it).expect("there are both")["name"].as_str().expect("a name").to_owned();
        let before = lives(&house, &victim);
        match both_ways {
            true => house.cluster.lab().cut(&leader, &victim).expect("nft cuts"),
            false => house.cluster.lab().cut_one_way(&leader, &victim).expect("nft cuts"),
        }
        // One by one: where only answers are lost, each of them arrives.
        let mut maps = 0;
        house.until("a write through the node that was cut off", || {
            maps += 1;
            let map = json!({ "metadata": { "name": format!("from-{victim}-{both_ways}-{maps}") } });
            wait(house.cluster.api(&victim).post("/api/v1/namespaces/default/configmaps", &map)).ok()
        });
        assert_ne!(house.until("a leader", || wait(house.cluster.leader())), leader, "{}", house.logs());
        nothing_moves(&house, &victim, &before, Duration::from_secs(5));
        house.cluster.lab().mend().expect("nft mends");
        house.until_whole();
        nothing_moves(&house, &victim, &before, Duration::from_secs(2));
    }
}

/// Two of five may go at once; for the third the cluster must first have become one of three.
fn five_machines_survive_the_loss_of_three_one_after_another() {
    let nodes = ["one", "two", "three", "four", "five"];
    let mut house = with_pods_on(&nodes);
    let mut lost = Vec::new();
    for losses in 1..=3 {
        let victim = leader(&house);
        lost.push(victim.clone());
        let failover = wait(house.cluster.power_cut(&victim, "web", REPLICAS));
        let failover = failover.unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
        assert!(failover.led);
        let left =
            nodes.into_iter().find(|name| !lost.iter().any(|gone| gone == name)).expect("two are left");
        let voters = if losses < 2 { 5 } else { 3 };
        house.until(&format!("{voters} voters after {losses} losses"), || {
            let status = house.status(left);
            let voting = status["nodes"].as_array()?.iter().filter(|node| node["voter"] == true).count();
            (voting == voters && status["quorum"] == true).then_some(())
        });
    }
    for name in &lost {
        house.cluster.power_back(name).expect("the machine starts");
    }
    for name in &lost {
        house.until_caught_up(name);
    }
    house.until("no pod too many", || (lives(&house, "one").len() == REPLICAS as usize).then_some(()));
}

fn pods_outlive_their_daemon() {
    let mut house = with_pods();
    let before = lives(&house, "one");
    house.cluster.lab().machine_mut("two").kill_daemon();
    nothing_moves(&house, "one", &before, Duration::from_secs(2));
    house.cluster.up("two").expect("the daemon starts");
    house.until_caught_up("two");
    nothing_moves(&house, "two", &before, Duration::from_secs(3));
}

fn a_daemon_that_stays_dead_is_replaced_although_its_machine_answers() {
    let mut house = with_pods();
    let (victim, before) = lose_a_daemon(&mut house);
    house.cluster.up(victim).expect("the daemon starts");
    house.until_caught_up(victim);
    house.until("no pod too many", || (lives(&house, victim).len() == REPLICAS as usize).then_some(()));
    let after = lives(&house, victim);
    let healthy = off(&before, victim);
    assert!(healthy.iter().all(|(uid, life)| after.get(uid) == Some(life)), "{healthy:#?}\n{after:#?}");
}

fn a_starved_machine_on_a_bad_link_keeps_its_pods() {
    let mut house = with_pods();
    let leader = leader(&house);
    let victim = worker(&leader);
    let before = lives(&house, &leader);
    house.cluster.lab().machine_mut(victim).throttle(Some(5)).expect("a cgroup limits it");
    house.cluster.lab().lose(victim, 20).expect("nft loses");
    for _ in 0..2 {
        house.cluster.lab().plug(victim, false).expect("the cable is pulled");
        // Below the 2 s that are survived, by as much as a busy machine may be late with the plug. That the
        // whole 2 s are survived, at every moment, is shown where time is simulated.
        std::thread::sleep(Duration::from_millis(1500));
        house.cluster.lab().plug(victim, true).expect("the cable is plugged");
        nothing_moves(&house, &leader, &before, Duration::from_secs(8));
    }
    house.cluster.lab().machine_mut(victim).throttle(None).expect("a cgroup lets it go");
    house.cluster.lab().mend().expect("nft mends");
    house.until_caught_up(victim);
    nothing_moves(&house, victim, &before, Duration::from_secs(2));
}

fn a_paused_daemon_keeps_its_pods() {
    let mut house = with_pods();
    let leader = leader(&house);
    let victim = worker(&leader);
    let before = lives(&house, &leader);
    let daemon = house.cluster.lab().machine_mut(victim).daemon().expect("it runs");
    daemon.signal(Signal::SIGSTOP);
    nothing_moves(&house, &leader, &before, Duration::from_secs(20));
    house.cluster.lab().machine_mut(victim).daemon().expect("it runs").signal(Signal::SIGCONT);
    house.until_caught_up(victim);
    nothing_moves(&house, victim, &before, Duration::from_secs(2));
}

/// As after a moment without its link, when its own questions who the others are got lost.
fn a_paused_machine_that_has_forgotten_its_neighbours_keeps_its_pods() {
    let mut house = with_pods();
    let leader = leader(&house);
    let victim = worker(&leader);
    let before = lives(&house, &leader);
    let machine = house.cluster.lab().machine_mut(victim);
    machine.daemon().expect("it runs").signal(Signal::SIGSTOP);
    let forget = "cd /proc/sys/net/ipv4/neigh/eth0 && echo 0 > mcast_solicit && echo 0 > ucast_solicit && \
                  ip neigh flush all";
    let forgot = said(machine.command("sh").args(["-c", forget]).output());
    assert_eq!(forgot.code, 0, "{forgot:?}");
    nothing_moves(&house, &leader, &before, Duration::from_secs(8));
}

fn a_cluster_wakes_up_in_any_order() {
    let mut house = with_pods();
    // Made while there is somebody to sign it.
    let config = house.skein_ok("three", &["kubeconfig"]);
    for name in NODES {
        house.cluster.lab().power_off(name).expect("the machine is ours");
    }
    house.cluster.power_back("three").expect("the machine starts");
    alone_it_shows_what_it_knew(&house, &config);
    for name in ["one", "two"] {
        house.cluster.power_back(name).expect("the machine starts");
    }
    house.until_whole();
    house.until_running("one", REPLICAS);
}

/// Gossip has never heard of it since: it is tried where the others remember it.
fn a_machine_that_stays_off_after_everything_was_off_is_replaced() {
    let mut house = with_pods();
    for name in NODES {
        house.cluster.lab().power_off(name).expect("the machine is ours");
    }
    for name in ["one", "two"] {
        house.cluster.power_back(name).expect("the machine starts");
    }
    house.until("replacements", || all_run_off(&house, "one", "three").then_some(()));
    let probed = ["one", "two"].iter().any(|name| house.log(name).contains("does not answer"));
    assert!(probed, "it could be probed\n{}", house.logs());
    house.cluster.power_back("three").expect("the machine starts");
    house.until_whole();
    house.until("no pod too many", || (lives(&house, "three").len() == REPLICAS as usize).then_some(()));
}

/// It said that it restarts, which would give it half a minute if it still answered.
fn a_machine_that_is_switched_off_while_it_stops_is_replaced_as_fast() {
    let mut house = with_pods();
    let leader = leader(&house);
    let victim = worker(&leader);
    house.cluster.lab().machine_mut(victim).daemon().expect("it runs").signal(Signal::SIGTERM);
    house.until("its end", || house.log(victim).contains("stopping").then_some(()));
    let failover = wait(house.cluster.power_cut(victim, "web", REPLICAS));
    let failover = failover.unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
    assert!(failover.noticed < Duration::from_secs(20), "{failover:?}\n{}", house.logs());
}

fn a_daemon_that_comes_back_ends_what_runs_elsewhere_before_its_node_is_ready() {
    let mut house = with_pods();
    let (victim, before) = lose_a_daemon(&mut house);
    let length = house.log(victim).len();
    house.cluster.up(victim).expect("the daemon starts");
    house.until_caught_up(victim);
    let log = house.log(victim).split_off(length);
    let ready = log.find("ready node=").unwrap_or_else(|| panic!("it never said that it is ready\n{log}"));
    let ends: Vec<usize> =
        log.match_indices("ends a pod that is not bound here any more").map(|(at, _)| at).collect();
    let here = before.values().filter(|life| life.node == victim).count();
    assert!(here > 0, "they spread");
    assert_eq!(ends.len(), here, "{log}");
    assert!(ends.iter().all(|at| *at < ready), "{log}");
    house.until("an Event of each", || {
        let events = house.get(victim, "/api/v1/namespaces/default/events");
        let is_end = |event: &&Value| {
            event["reason"] == "Killing"
                && event["message"].as_str().is_some_and(|text| text.contains("while its node was away"))
        };
        (events["items"].as_array()?.iter().filter(is_end).count() == here).then_some(())
    });
}

/// One of three: whoever looks sees its map and is warned; whoever writes is told at once that nothing happened.
fn alone_it_shows_what_it_knew(house: &House, config: &str) {
    let user = User::with(house, Path::new("kubectl"), "three", "default", config);
    house.until("its API", || (user.say(&["get", "--raw", "/version"]).code == 0).then_some(()));
    let shown = user.say(&["get", "pods", "--no-headers"]);
    assert_eq!((shown.code, shown.out.lines().count()), (0, REPLICAS as usize), "{shown:?}");
    assert!(shown.err.contains("Warning: this may be out of date"), "{shown:?}");
    let refused = user.fail(&["create", "configmap", "late"]);
    assert!(refused.contains("nothing was written"), "{refused}");
}

/// Two nodes and a router that answers, as in most homes; the first one leads.
fn two_with_a_gateway() -> House {
    let mut house = House::new(&["one", "two"]);
    house.cluster.lab().add_gateway();
    for name in ["one", "two"] {
        house.cluster.lab().power_off(name).expect("the machine is ours");
        house.cluster.lab().power_on(name).expect("the machine starts");
    }
    wait(house.cluster.form()).unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
    wait(house.cluster.deploy("one", "web", REPLICAS)).expect("the Deployment is created");
    house.until_running("one", REPLICAS);
    // Learned while all is well, at the latest with the next look a minute later.
    house.until("a gateway that answers", || house.log("one").contains("the gateway answers").then_some(()));
    house
}

fn of_two_nodes_the_one_without_power_is_replaced_if_the_gateway_answers() {
    let mut house = two_with_a_gateway();
    let failover = wait(house.cluster.power_cut("two", "web", REPLICAS));
    let failover = failover.unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
    // 2.75 s on a machine with nothing else to do; without the gateway's word it would be 30.
    assert!(failover.noticed < Duration::from_secs(20), "{failover:?}\n{}", house.logs());
    house.cluster.power_back("two").expect("the machine starts");
    house.until_caught_up("two");
}

fn of_two_nodes_the_one_whose_own_cable_is_out_leaves_the_other_alone() {
    let mut house = two_with_a_gateway();
    let before = lives(&house, "one");
    house.cluster.lab().plug("one", false).expect("the cable is ours");
    // Longer than a node gets whose silence nobody can explain.
    nothing_moves(&house, "one", &before, Duration::from_secs(36));
    house.cluster.lab().plug("one", true).expect("the cable is ours");
    house.until_caught_up("two");
    nothing_moves(&house, "two", &before, Duration::from_secs(3));
}

/// The one that is left votes alone and leads at once; the gateway proves that its own link works.
fn of_two_nodes_the_one_that_stays_off_after_both_were_off_is_replaced() {
    let mut house = two_with_a_gateway();
    for name in ["one", "two"] {
        house.cluster.lab().power_off(name).expect("the machine is ours");
    }
    house.cluster.power_back("one").expect("the machine starts");
    house.until("replacements", || all_run_off(&house, "one", "two").then_some(()));
    let log = house.log("one");
    let lost = log.lines().find(|line| line.contains("a node is lost")).unwrap_or_default();
    let silent_ms =
        lost.split("silent_ms=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    assert!(silent_ms.is_some_and(|ms: u64| ms < 20_000), "{lost}\n{log}");
}
