//! Everything is gone but a file: the cluster of a backup begins anew on a bare machine.

use serde_json::{Value, json};

use crate::house::{House, wait};
use crate::recovery::{MAPS, revision, write, written};
use crate::user::{User, kubectls};
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    a_backup_from_a_node_without_a_vote_becomes_the_cluster_again_on_a_bare_machine,
    a_backup_that_cannot_be_made_or_opened_says_why_and_changes_nothing,
];

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

/// The key that the founding printed.
fn recovery_key(house: &House) -> String {
    let log = house.log("one");
    let key = log.split_whitespace().find(|word| word.starts_with("AGE-SECRET-KEY-"));
    key.unwrap_or_else(|| panic!("the founding prints it\n{log}")).to_owned()
}

fn a_backup_from_a_node_without_a_vote_becomes_the_cluster_again_on_a_bare_machine() {
    let mut house = House::new(&["one", "two", "three"]);
    wait(house.cluster.found()).expect("it founds");
    let token = wait(house.cluster.token(1)).expect("a token");
    house.cluster.join("two", &token).expect("it starts");
    house.until_up("two");
    wait(house.cluster.deploy("one", "web", 2)).expect("the Deployment is created");
    house.until_running("one", 2);
    house.run_pod("one");
    write(&house, "one", "before");
    let secret = json!({ "metadata": { "name": "db" }, "stringData": { "word": "hunter2" } });
    house.create("two", SECRETS, &secret);
    let [kubectl, _] = kubectls();
    let config = house.skein_ok("one", &["kubeconfig"]);
    let unspent = wait(house.cluster.token(1)).expect("a token");
    house.until("that two has no vote", || {
        (house.nodes("two", |node| node["voter"] == true) == ["one"]).then_some(())
    });

    let file = house.dir().join("home.backup");
    let path = file.to_str().expect("UTF-8");
    let said = house.skein_ok("two", &["backup", path]);
    assert!(said.contains("recovery key of age1"), "{said}");
    let known = revision(&house.get("one", MAPS));
    write(&house, "one", "after");
    for name in ["one", "two"] {
        house.cluster.lab().power_off(name).expect("the machine is ours");
    }
    // The first one gets a new disk: nobody there knows anything.
    let disk = house.lab().machine("one").disk_from_outside();
    std::fs::remove_dir_all(&disk).and_then(|()| std::fs::create_dir(&disk)).expect("an empty disk");
    house.cluster.lab().power_on("one").expect("the machine starts");

    let key = house.dir().join("key");
    std::fs::write(&key, recovery_key(&house)).expect("the key is kept");
    let key = key.to_str().expect("UTF-8");
    let asked = house.skein("one", &["restore", path, "--key-file", key]);
    assert!(asked.code == 1 && asked.sentence().contains("--yes"), "{asked:?}");
    for word in ["Its nodes were one, two", "no kubeconfig and no token of then counts"] {
        assert!(asked.out.contains(word), "{word}: {asked:?}");
    }
    house.cluster.start("one", &["restore", path, "--key-file", key, "--yes"]).expect("it starts");
    house.until_up("one");

    // What people wrote is there up to the backup, at revisions that nobody has seen, and runs here.
    let (maps, names) = (house.get("one", MAPS), written(&house, "one"));
    let holds = |name: &str| names.contains(&name.to_owned());
    assert!(holds("before") && !holds("after"), "{names:?}");
    assert!(revision(&maps) > known + (1 << 32), "{known}");
    assert_eq!(house.get("one", &format!("{SECRETS}/db"))["data"]["word"], "aHVudGVyMg==", "it opens");
    house.until("the pods", || {
        let pods = house.get("one", "/api/v1/pods");
        let pods = pods["items"].as_array()?;
        let runs = |pod: &&Value| pod["status"]["phase"] == "Running" && pod["spec"]["nodeName"] == "one";
        (pods.len() == 3 && pods.iter().filter(runs).count() == 3).then_some(())
    });
    assert_eq!(house.nodes("one", |_| true), ["one"]);
    assert!(house.status("one")["incarnation"]["number"].as_u64() > Some(1_000));

    // Nothing that gave a right then gives one now; what is given now does, under the same authorities.
    let refused = User::with(&house, &kubectl.path, "one", "default", &config).fail(&["get", "nodes"]);
    assert!(refused.contains("Unauthorized") || refused.contains("must be logged in"), "{refused}");
    let late = house.skein("three", &["join", &unspent]);
    assert!(late.code == 1 && late.sentence().contains("token"), "{late:?}");
    let anew = house.skein_ok("one", &["kubeconfig"]);
    let nodes = User::with(&house, &kubectl.path, "one", "default", &anew).run(&["get", "nodes"]);
    assert!(nodes.contains("one"), "{nodes}");
    let authority = |config: &str| {
        let config: Value = serde_norway::from_str(config).expect("YAML");
        config["clusters"][0]["cluster"]["certificate-authority-data"].clone()
    };
    assert_eq!(authority(&anew), authority(&config));

    // A node of then is no member, whatever it still believes.
    house.cluster.power_back("two").expect("the machine starts");
    house.until("that they met", || {
        let left_alone = house.log("one").contains("a node of another cluster is on this network");
        (left_alone && house.status("two")["quorum"] == false).then_some(())
    });
    assert_eq!(house.nodes("one", |_| true), ["one"]);
    write(&house, "one", "goes-on");
}

fn a_backup_that_cannot_be_made_or_opened_says_why_and_changes_nothing() {
    let mut house = House::new(&["one", "two"]);
    wait(house.cluster.found()).expect("it founds");
    let file = house.dir().join("home.backup");
    let path = file.to_str().expect("UTF-8");
    let nowhere = house.dir().join("nowhere/home.backup");
    let said = house.skein("one", &["backup", nowhere.to_str().expect("UTF-8")]);
    assert!(said.code == 1 && said.sentence().contains("check that the directory is there"), "{said:?}");
    let asked = house.skein("one", &["backup", path, "--passphrase"]);
    assert!(asked.code == 1 && asked.sentence().contains("--passphrase-file"), "{asked:?}");
    let short = house.skein_fed("one", &["backup", path, "--passphrase-file", "-"], b"hunter2");
    assert!(short.code == 1 && short.sentence().contains("12 characters"), "{short:?}");
    assert!(!file.exists(), "nothing is half done");

    let made = house.skein_fed("one", &["backup", path, "--passphrase-file", "-"], b"four words are enough");
    assert_eq!(made.code, 0, "{made:?}");
    let member =
        house.skein_fed("one", &["restore", path, "--key-file", "-", "--yes"], b"four words are enough");
    // The daemon has the directory.
    assert_eq!(member.code, 1, "{member:?}");
    let entries = || std::fs::read_dir(house.lab().machine("two").disk()).map_or(0, Iterator::count);
    let before = entries();
    for (words, secret, expect) in [
        (
            ["restore", path, "--key-file", "-", "--yes"],
            "four other words are",
            "does not open with this passphrase",
        ),
        (["restore", path, "--key-file", "-", "--yes"], recovery_key(&house).as_str(), "give the passphrase"),
        (["restore", "/dev/null", "--key-file", "-", "--yes"], "four words are enough", "no backup of skein"),
        (["restore", path, "--key-file", "-", "--yes"], "four words are enough", "--beside"),
    ] {
        let said = house.skein_fed("two", &words, secret.as_bytes());
        assert!(said.code == 1 && said.sentence().contains(expect), "{expect}: {said:?}");
    }
    assert_eq!(entries(), before, "nothing was made");

    // The key of the founding was lost.
    let printed = house.skein_ok("one", &["ca", "recovery-key", "--yes"]);
    let new = printed.trim();
    assert!(new.starts_with("AGE-SECRET-KEY-") && new != recovery_key(&house), "{printed}");
    house.skein_ok("one", &["backup", path]);
    let old = recovery_key(&house);
    let said = house.skein_fed("two", &["restore", path, "--key-file", "-", "--yes"], old.as_bytes());
    assert!(said.sentence().contains("does not open with this recovery key"), "{said:?}");
    let said = house.skein_fed("two", &["restore", path, "--key-file", "-", "--yes"], new.as_bytes());
    assert!(said.sentence().contains("--beside"), "it opens, and another cluster is there: {said:?}");
}
