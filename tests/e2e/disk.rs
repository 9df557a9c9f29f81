//! Disks that are full.

use serde_json::json;

use crate::house::{House, said, wait};
use crate::user::User;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    a_full_disk_refuses_writes_by_its_name_until_there_is_space,
    a_leader_whose_disk_is_full_gives_way_to_one_that_has_space,
];

/// Holds the files of a node with the built-in image of a debug build, and what the log sets aside.
const DISK_BYTES: u64 = 512 << 20;

fn a_full_disk_refuses_writes_by_its_name_until_there_is_space() {
    // Of two nodes one votes: the founder, whose disk is the small one.
    let mut house = House::new(&["one", "two"]);
    let lab = house.cluster.lab();
    lab.power_off("one").expect("the machine is ours");
    lab.machine_mut("one").limit_disk(DISK_BYTES);
    lab.power_on("one").unwrap_or_else(|error| panic!("{error}"));
    wait(house.cluster.form()).unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
    let user = User::of(&house, "kubectl".as_ref(), "two", "default");
    user.run(&["create", "configmap", "before"]);
    let mut watching = user.start(&["get", "configmaps", "--watch", "-o", "name"]);
    watching.line("before");
    let term = house.status("two")["term"].clone();

    let ballast = house.lab().machine("one").disk().join("ballast");
    let on_one =
        |script: String| said(house.lab().machine("one").command("sh").args(["-c", &script]).output());
    let filled = on_one(format!("cat /dev/zero > {}", ballast.display()));
    assert!(filled.err.contains("No space left"), "{filled:?}");
    let mut written = 0;
    let refused = house.until("a refusal", || {
        written += 1;
        let said = user.say(&["create", "configmap", &format!("map-{written}")]);
        (said.code != 0).then_some(said.err)
    });
    let map = json!({ "metadata": { "name": "one-more" } });
    let answer = wait(house.cluster.api("two").post("/api/v1/namespaces/default/configmaps", &map));
    let answer = answer.expect_err("it is still full").to_string();
    assert!(answer.starts_with("507"), "{answer}");
    assert!(refused.contains("the disk of node \"one\"") && refused.contains("free some space"), "{refused}");

    // Everything else goes on: reads that ask the leader, watches, membership, leadership.
    assert_eq!(user.run(&["get", "configmap", "before", "-o", "name"]), "configmap/before\n");
    let status = house.until("that all are told", || {
        let status = house.status("two");
        let nodes = status["nodes"].as_array().expect("a list of nodes").clone();
        nodes.iter().any(|node| node["name"] == "one" && node["disk"] == "full").then_some(status)
    });
    assert_eq!((&status["leader"], &status["term"]), (&"one".into(), &term));
    assert!(house.skein_ok("one", &["status"]).contains("disk of one  FULL"));

    assert_eq!(on_one(format!("rm {}", ballast.display())).code, 0);
    house.until("writes again", || (user.say(&["create", "configmap", "after"]).code == 0).then_some(()));
    watching.line("after");
    house.until("that all are told", || (!house.skein_ok("two", &["status"]).contains("FULL")).then_some(()));
}

fn a_leader_whose_disk_is_full_gives_way_to_one_that_has_space() {
    let names = ["one", "two", "three"];
    let mut house = House::new(&names);
    let lab = house.cluster.lab();
    for name in names {
        lab.power_off(name).expect("the machine is ours");
        lab.machine_mut(name).limit_disk(DISK_BYTES);
        lab.power_on(name).unwrap_or_else(|error| panic!("{error}"));
    }
    wait(house.cluster.form()).unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
    let leader = house.until("a leader", || wait(house.cluster.leader()));
    let machine = house.lab().machine(&leader);
    let fill = format!("cat /dev/zero > {}", machine.disk().join("ballast").display());
    let filled = said(machine.command("sh").args(["-c", &fill]).output());
    assert!(filled.err.contains("No space left"), "{filled:?}");

    let user = User::of(&house, "kubectl".as_ref(), &leader, "default");
    // The disk is known to be full once somebody wants to write, and from then on nobody waits for long.
    let mut written = 0;
    let next = house.until("another leader", || {
        written += 1;
        user.say(&["create", "configmap", &format!("map-{written}")]);
        wait(house.cluster.leader()).filter(|next| *next != leader)
    });
    house.until("a write through the node whose disk is full", || {
        (user.say(&["create", "configmap", "through"]).code == 0).then_some(())
    });
    assert_eq!(house.until("a leader", || wait(house.cluster.leader())), next);
}
