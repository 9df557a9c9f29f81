//! Disks that are full, and one that fails.

use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::failover::{NODES, REPLICAS, leader, lives, with_pods};
use crate::house::{House, said, wait};
use crate::user::User;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    a_full_disk_refuses_writes_by_its_name_until_there_is_space_and_a_nearly_full_one_new_pods,
    a_leader_whose_disk_is_full_gives_way_to_one_that_has_space,
    a_node_whose_disk_fails_keeps_its_pods_and_votes_again_after_a_start,
];

/// Holds the files of a node with the built-in image of a debug build, and what the log sets aside.
const DISK_BYTES: u64 = 512 << 20;

fn a_full_disk_refuses_writes_by_its_name_until_there_is_space_and_a_nearly_full_one_new_pods() {
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

    // Nearly full it takes writes, and no new pods.
    let dir = house.lab().machine("one").disk().to_owned();
    let leaves = 30 << 20;
    let script = format!(
        "head -c $(($(stat -f -c '%a * %S' {}) - {leaves})) /dev/zero > {}",
        dir.display(),
        ballast.display()
    );
    let filled = on_one(script);
    assert_eq!(filled.code, 0, "{filled:?}");
    let why = |node: &serde_json::Value| {
        let tainted = node["spec"]["taints"].to_string().contains("disk-pressure");
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let pressed =
            conditions.into_iter().find(|one| one["type"] == "DiskPressure" && one["status"] == "True");
        pressed.filter(|_| tainted).map(|one| one["message"].clone())
    };
    let told = house.until("a taint", || why(&house.get("two", "/api/v1/nodes/one")));
    assert_eq!(told, "little space is left on the disk");
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

/// Ends every sync of a process with EIO, until dropped.
struct FailingSyncs(Child);

impl FailingSyncs {
    fn of(pid: i32) -> FailingSyncs {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]);
        command.args(["-e", "inject=fsync,fdatasync:error=EIO", "-p", &pid.to_string()]);
        FailingSyncs(command.stdin(Stdio::null()).spawn().expect("tests/install has installed strace"))
    }
}

impl Drop for FailingSyncs {
    fn drop(&mut self) {
        // It has ended by itself if the process has.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_node_whose_disk_fails_keeps_its_pods_and_votes_again_after_a_start() {
    let mut house = with_pods();
    let leader = leader(&house);
    let victim = NODES.into_iter().find(|name| *name != leader).expect("there are three");
    let before = lives(&house, &leader);

    let daemon = house.cluster.lab().machine_mut(victim).daemon().expect("it runs").pid();
    let failing = FailingSyncs::of(daemon);
    let user = User::of(&house, "kubectl".as_ref(), victim, "default");
    let disk_of = |house: &House, node: &str| {
        let nodes = house.status(node)["nodes"].clone();
        let of_victim = nodes.as_array().into_iter().flatten().find(|node| node["name"] == victim).cloned();
        of_victim.map(|node| node["disk"].clone()).unwrap_or_default()
    };
    let mut written = 0;
    for node in NODES {
        house.until("that all are told", || {
            written += 1;
            user.say(&["create", "configmap", &format!("map-{written}")]);
            (disk_of(&house, node) == "failed").then_some(())
        });
    }
    assert!(house.skein_ok(&leader, &["status"]).contains(&format!("disk of {victim}  FAILED")));

    // What its users ask of it goes on. It starts nothing new: that would need its disk.
    user.run(&["create", "configmap", "after"]);
    assert_eq!(user.run(&["get", "configmap", "after", "-o", "name"]), "configmap/after\n");
    let tainted = |node: &serde_json::Value| node["spec"]["taints"].to_string().contains("disk-pressure");
    let path = format!("/api/v1/nodes/{victim}");
    house.until("a taint", || tainted(&house.get(victim, &path)).then_some(()));
    user.run(&["scale", "deployment/web", &format!("--replicas={}", 2 * REPLICAS)]);
    house.until_running(victim, 2 * REPLICAS);
    let after = lives(&house, victim);
    assert!(before.iter().all(|(uid, life)| after.get(uid) == Some(life)), "{before:#?}\n{after:#?}");
    let new = |uid: &String| !before.contains_key(uid);
    assert!(after.iter().all(|(uid, life)| !new(uid) || life.node != victim), "{before:#?}\n{after:#?}");

    // A cable was changed.
    drop(failing);
    house.cluster.lab().machine_mut(victim).kill_daemon();
    house.cluster.up(victim).expect("the daemon starts");
    house.until_caught_up(victim);
    house.until("that all are told", || (disk_of(&house, &leader) == "ok").then_some(()));
    house.until("no taint", || (!tainted(&house.get(victim, &path))).then_some(()));
    assert_eq!(lives(&house, &leader), after, "pods were touched\n{}", house.logs());
}
