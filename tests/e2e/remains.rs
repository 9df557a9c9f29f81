//! A data directory that is deleted under its node: what that has left running is found, and ended with a word.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::formation::cgroups;
use crate::house::{House, Said, said};
use crate::{Tests, tests};

pub(crate) const TESTS: Tests =
    tests![what_runs_of_a_deleted_data_directory_is_ended_by_the_next_node_and_by_leave];

/// A data directory below the machine's disk, so that it can go as a whole.
fn data(house: &House) -> PathBuf {
    house.lab().machine("one").disk().join("data")
}

fn life(house: &House, number: u32) -> String {
    format!("{}/life{number}", house.lab().machine("one").cgroup())
}

/// Starts a daemon in that directory, with a cgroup for this life of it.
fn start(house: &mut House, number: u32) {
    let (data, cgroup) = (data(house).display().to_string(), life(house, number));
    let words = ["up", "--new-cluster", "--name", "one", "--data-dir", &data, "--cgroup", &cgroup];
    house.cluster.lab().machine_mut("one").start(&words).expect("the daemon starts");
    house.until("the daemon", || (skein(house, &["status"]).code == 0).then_some(()));
}

fn skein(house: &House, words: &[&str]) -> Said {
    let data = data(house).display().to_string();
    house.skein("one", &[words, &["--data-dir", &data]].concat())
}

/// Runs a pod on a node that has just founded its cluster.
fn run_pod(house: &House, node: &str) -> Value {
    house.until("the namespace", || house.get(node, "/api/v1/namespaces/default").is_object().then_some(()));
    house.run_pod(node)
}

/// Away with the directory, as far as the kernel lets go of it: pins of namespaces in it are mounts.
fn delete(house: &House) {
    let (data, gone) = (data(house), house.lab().machine("one").disk().join("gone"));
    let script =
        format!("rm -rf {0} 2>/dev/null; [ ! -e {0} ] || mv {0} {1}", data.display(), gone.display());
    let removed = said(house.lab().machine("one").command("sh").args(["-c", &script]).output());
    assert!(removed.code == 0 && !data.exists(), "{removed:?}");
}

/// The host's ends of pods' links.
fn links(house: &House) -> usize {
    let links =
        said(house.lab().machine("one").command("ip").args(["-o", "link", "show", "type", "veth"]).output());
    links.out.lines().filter(|link| link.contains(": sk")).count()
}

fn mounts_of(house: &House, uid: &str) -> usize {
    let mounts = said(house.lab().machine("one").command("cat").arg("/proc/self/mountinfo").output());
    mounts.out.lines().filter(|mount| mount.contains(uid)).count()
}

fn what_runs_of_a_deleted_data_directory_is_ended_by_the_next_node_and_by_leave() {
    let mut house = House::new(&["one", "two"]);
    // The lab looks for the daemon's socket there.
    let disk = house.lab().machine("one").disk();
    symlink(Path::new("data/skein.sock"), disk.join("skein.sock")).expect("the disk is ours");
    // A node beside it, on the same kernel: whatever happens to the other one, it is left alone.
    crate::formation::up(&mut house, "two", &["up", "--new-cluster"]);
    house.until_up("two");
    let neighbour = run_pod(&house, "two");

    start(&mut house, 1);
    let pod = run_pod(&house, "one");
    let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
    delete(&house);
    for words in [&["up", "--new-cluster"][..], &["leave", "--end-cluster"]] {
        let refused = skein(&house, words);
        assert_eq!(refused.code, 1, "{refused:?}");
        let sentence = refused.sentence();
        assert!(sentence.contains("is the daemon of a node") && sentence.contains("(kill "), "{sentence}");
        assert!(!data(&house).exists(), "a refused try leaves nothing");
    }
    house.cluster.lab().machine_mut("one").kill_daemon();
    assert_eq!(links(&house), 1);
    assert!(!cgroups(&format!("{}/pod{uid}", life(&house, 1))).is_empty());

    start(&mut house, 2);
    assert!(house.log("one").contains("had left running: 1 pod in cgroup"), "{}", house.log("one"));
    assert_eq!(cgroups(&life(&house, 1)), Vec::<PathBuf>::new());
    house.until("no links", || (links(&house) == 0).then_some(()));
    assert_eq!(mounts_of(&house, &uid), 0);

    let pod = run_pod(&house, "one");
    let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
    // A directory of this life is what is left behind this time.
    std::fs::remove_dir_all(disk.join("gone")).ok();
    house.cluster.lab().machine_mut("one").kill_daemon();
    delete(&house);
    let left = skein(&house, &["leave", "--end-cluster"]);
    assert!(left.code == 0 && left.out.contains("had left running: 1 pod in cgroup"), "{left:?}");
    assert_eq!((cgroups(&life(&house, 2)), links(&house), mounts_of(&house, &uid)), (Vec::new(), 0, 0));
    assert!(!data(&house).exists());
    let nothing = skein(&house, &["leave", "--end-cluster"]);
    assert_eq!(nothing.code, 1, "{nothing:?}");

    let now = house.ready_pod("two");
    assert_eq!(crate::house::life(&now), crate::house::life(&neighbour));
}
