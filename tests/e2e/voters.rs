//! Who votes when a store is lost, or a machine for good.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::failover::{NODES, leader};
use crate::house::{House, wait};
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    a_lost_store_gets_its_vote_back_and_nobody_loses_one,
    two_lost_stores_of_three_are_told_and_change_nothing,
    a_new_machine_votes_in_place_of_a_lost_one_as_soon_as_that_is_lost,
];

/// Kills the daemon and empties its store; the machine and all else on its disk stay as they are.
fn lose_store(house: &mut House, name: &str) {
    let machine = house.cluster.lab().machine_mut(name);
    machine.kill_daemon();
    std::fs::remove_dir_all(machine.disk().join("store")).expect("there is a store");
}

fn voters(status: &Value) -> BTreeSet<String> {
    let nodes = status["nodes"].as_array().into_iter().flatten();
    let voting = nodes.filter(|node| node["voter"] == true);
    voting.filter_map(|node| Some(node["name"].as_str()?.to_owned())).collect()
}

/// Once the leader alone was left as a voter, for good: the next loss was the end.
fn a_lost_store_gets_its_vote_back_and_nobody_loses_one() {
    let mut house = House::formed(&NODES);
    let leader = leader(&house);
    let victim = NODES.into_iter().find(|name| *name != leader).expect("there are three");
    let others: BTreeSet<String> =
        NODES.iter().filter(|name| **name != victim).map(|it| (*it).into()).collect();
    lose_store(&mut house, victim);
    house.cluster.up(victim).expect("the daemon starts");
    let is_lost = |status: &Value| {
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().any(|node| node["name"] == victim && node["storeLost"] == true)
    };
    let mut was_lost = false;
    house.until("its vote", || {
        let status = house.status(&leader);
        assert_eq!(status["voters"], 3, "{status:#}");
        assert!(voters(&status).is_superset(&others), "{status:#}");
        was_lost |= is_lost(&status);
        (was_lost && voters(&status).contains(victim) && !is_lost(&status)).then_some(())
    });
    house.until_whole();
    // Its vote counts: without the leader there is a majority.
    house.cluster.lab().power_off(&leader).expect("the machine is ours");
    let next = crate::failover::leader(&house);
    assert_ne!(next, leader);
}

fn two_lost_stores_of_three_are_told_and_change_nothing() {
    let mut house = House::formed(&NODES);
    let leader = leader(&house);
    let victims: Vec<&str> = NODES.into_iter().filter(|name| *name != leader).collect();
    for victim in &victims {
        lose_store(&mut house, victim);
    }
    for victim in &victims {
        house.cluster.up(victim).expect("the daemon starts");
    }
    let status = house.until("the word of it", || {
        let status = wait(house.cluster.status(&leader))?;
        (status["waiting"][0]["reason"] == "MajorityLost" && status["quorum"] == false).then_some(status)
    });
    assert_eq!(status["failuresSurvived"], 0, "{status:#}");
    assert_eq!((&status["voters"], voters(&status)), (&3.into(), [leader.clone()].into()), "{status:#}");
    let text = house.skein_ok(&leader, &["status"]);
    assert!(text.contains("waits        so many voters lost their stores"), "{text}");
    assert_eq!(text.matches("store lost").count(), 2, "{text}");
}

fn a_new_machine_votes_in_place_of_a_lost_one_as_soon_as_that_is_lost() {
    let mut house = House::new(&["one", "two", "three", "four"]);
    wait(house.cluster.found()).unwrap_or_else(|error| panic!("{error}"));
    let token = wait(house.cluster.token(3)).unwrap_or_else(|error| panic!("{error}"));
    for name in ["two", "three"] {
        house.cluster.join(name, &token).expect("the daemon starts");
    }
    house.until("three voters", || (voters(&house.status("one")).len() == 3).then_some(()));
    house.cluster.lab().power_off("three").expect("the machine is ours");
    let through = house.until("a leader", || {
        ["one", "two"].into_iter().find(|name| {
            let status = house.status(name);
            status["leader"] == *name && status["quorum"] == true
        })
    });
    let status = house.until("the word of it", || {
        let status = house.status(through);
        (status["waiting"][0]["reason"] == "NoSpare").then_some(status)
    });
    assert_eq!((&status["failuresSurvived"], &status["waiting"][0]["voter"]), (&0.into(), &"three".into()));
    house.cluster.join("four", &token).expect("the daemon starts");
    house.until("its vote", || {
        let status = house.status(through);
        (voters(&status) == ["one", "two", "four"].map(String::from).into()).then_some(())
    });
    house.until("all is well", || {
        let status = house.status(through);
        (status["failuresSurvived"] == 1 && status["waiting"].as_array().is_some_and(Vec::is_empty))
            .then_some(())
    });
}
