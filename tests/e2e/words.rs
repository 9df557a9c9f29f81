//! What skein says to people: its log, its tables, the kubeconfigs that it makes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::archive::{self, Tar};
use crate::house::{House, Said};
use crate::user::User;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests =
    tests![a_kubeconfig_is_merged_and_is_given_without_a_majority, the_log_and_the_tables_are_for_people,];

fn certificate(config: &str) -> Value {
    let config: Value = serde_norway::from_str(config).expect("the kubeconfig is YAML");
    config["users"][0]["user"]["client-certificate-data"].clone()
}

/// Of two nodes one votes. When that is lost, the other one gives what it made last, and says so.
fn a_kubeconfig_is_merged_and_is_given_without_a_majority() {
    let mut house = House::formed(&["one", "two"]);
    let voter = house.nodes("one", |node| node["voter"] == true).remove(0);
    let left = if voter == "one" { "two" } else { "one" };

    let folder = house.dir().join("home/.kube");
    let file = folder.join("config");
    let merge = format!("--merge={}", file.display());
    let said = house.skein_ok(left, &["kubeconfig", &merge]);
    assert!(said.contains("one") && said.contains("two") && said.contains("kubectl uses"), "{said}");
    let mode = |path| fs::metadata(path).expect("it was made").permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
    let merged = fs::read_to_string(&file).expect("it is there");
    // Somebody else's cluster stays, and stays the current one.
    let theirs = merged.replace("tls-server-name", "x").replace("demo-", "work-").replace("fingerprint", "y");
    fs::write(&file, theirs).expect("the file is ours");
    let said = house.skein_ok(left, &["kubeconfig", &merge]);
    assert!(said.contains("kubectl uses work") && said.contains("use-context demo"), "{said}");
    let merged = fs::read_to_string(&file).expect("it is there");
    assert!(merged.contains("work-one") && merged.contains("demo-one"), "{merged}");
    fs::write(&file, "kind: Pod\n").expect("the file is ours");
    let refused = house.skein(left, &["kubeconfig", &merge]);
    assert!(refused.code == 1 && refused.sentence().contains("left as it was"), "{refused:?}");
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "kind: Pod\n");

    let before = house.skein_ok(left, &["kubeconfig"]);
    house.cluster.lab().power_off(&voter).expect("the machine is ours");
    house.until("that the voter is known to be down", || {
        let status = house.status(left);
        let nodes = status["nodes"].as_array().expect("a list of nodes");
        let lost = nodes.iter().find(|node| node["name"] == voter).expect("it is a member").clone();
        let told = (&status["quorum"], &status["leader"], &lost["ready"]);
        (told == (&false.into(), &Value::Null, &false.into())).then_some(())
    });
    let given: Said = house.skein(left, &["kubeconfig"]);
    assert!(given.code == 0 && given.err.contains("no new certificate can be made"), "{given:?}");
    assert_eq!(certificate(&given.out), certificate(&before));
    let user = User::with(&house, "kubectl".as_ref(), left, "default", &given.out);
    assert!(user.run(&["get", "nodes", "-o", "name"]).contains("node/two"));
    // Of others nothing is kept.
    let other = house.skein(left, &["kubeconfig", "--user", "ann"]);
    assert_eq!(other.code, 1, "{other:?}");
}

/// Lines of the log had the marks of a program, and tables did not fit on a terminal.
fn the_log_and_the_tables_are_for_people() {
    let house = House::formed(&["one", "two", "three"]);
    house.skein_ok("one", &["kubeconfig"]);
    let file = house.dir().join("app.tar");
    let name = "registry.example.org/somebody/application:2.10.3-alpine";
    let image = archive::good_oci(name, &[Tar::new().file("x", b"").bytes()]);
    fs::write(&file, image).expect("the lab's directory is ours");
    house.skein_ok("one", &["image", "load", &file.display().to_string()]);
    house.skein_ok("one", &["token", "create"]);
    for table in [&["kubeconfig", "list"][..], &["image", "list"], &["token", "list"]] {
        let said = house.skein_ok("one", table);
        assert!(said.lines().count() > 1, "{table:?}: {said}");
        let wide = said.lines().find(|line| line.len() > 80);
        assert_eq!(wide, None, "{table:?}");
    }
    house.skein_ok("three", &["leave"]);
    for name in ["one", "two", "three"] {
        let log = house.log(name);
        let programs =
            |line: &&str| ["Some(", " { ", "[[", "::", "Ok("].iter().any(|mark| line.contains(mark));
        // Addresses of IPv6 have two colons as well.
        let line = log.lines().find(|line| programs(&line.replace("[::]", "").as_str()));
        assert_eq!(line, None, "of {name}");
        assert!(log.lines().count() > 3, "of {name}: {log}");
    }
    let upgrade = house.skein("one", &["upgrade", "skein.new", "--all"]);
    assert!(upgrade.code == 1 && upgrade.sentence().contains("one node after another"), "{upgrade:?}");
    let level = house.skein("three", &["up", "--log-level", "loud"]);
    assert!(level.code == 2 && level.err.contains("no level"), "{level:?}");
}
