//! The cluster's authorities: who keeps them, what becomes of what they have signed, and by whose clock it ends.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::failover::NODES;
use crate::house::{House, wait};
use crate::user::User;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    every_voter_keeps_the_authorities_and_says_so,
    all_authorities_are_made_anew_while_the_cluster_runs,
    one_clock_that_is_ten_years_ahead_changes_nothing,
    a_cluster_that_was_off_for_longer_than_its_certificates_live_forms_again,
];

const DAY: i64 = 24 * 60 * 60;

/// Who says that it keeps what is in force.
fn holders(house: &House, through: &str) -> Vec<String> {
    let holders = house.status(through)["authorities"]["holders"].clone();
    let holders = holders.as_array().cloned().unwrap_or_default();
    holders.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has_keys(house: &House, name: &str) -> bool {
    house.lab().machine(name).disk_from_outside().join("authority.sealed").exists()
}

/// Starts a daemon whose machine's clock is ahead.
fn up_with_clock_ahead(house: &mut House, name: &str, seconds: i64) {
    house.cluster.set_options(&["--clock-offset", &seconds.to_string()]);
    house.cluster.power_back(name).expect("the machine starts");
    house.cluster.set_options(&[]);
}

fn timestamp(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no time"))
}

fn seconds_from_now(value: &Value) -> i64 {
    timestamp(value).as_second() - Timestamp::now().as_second()
}

fn every_voter_keeps_the_authorities_and_says_so() {
    let house = House::formed(&NODES);
    house.until("three holders", || (holders(&house, "two") == ["one", "three", "two"]).then_some(()));
    assert!(NODES.iter().all(|name| has_keys(&house, name)));
    // The founder goes, and what it has made stays. Of two nodes one votes; the other drops its copy.
    house.skein_ok("one", &["leave"]);
    let only = house.until("one holder", || match &*holders(&house, "two") {
        [name] if name != "one" => Some(name.clone()),
        _ => None,
    });
    // The record goes before the keys do.
    house.until("keys on its disk alone", || {
        NODES.iter().all(|name| has_keys(&house, name) == (*name == only)).then_some(())
    });
    assert!(house.skein_ok("three", &["kubeconfig"]).contains("client-certificate-data"));
}

fn all_authorities_are_made_anew_while_the_cluster_runs() {
    let mut house = House::formed(&NODES);
    house.until("three holders", || (holders(&house, "one").len() == 3).then_some(()));
    let before = house.skein_ok("one", &["kubeconfig"]);
    wait(house.cluster.token(1)).expect("a token");
    let asked = house.skein("one", &["ca", "rotate"]);
    assert!(asked.code == 1 && asked.err.contains("--yes"), "{asked:?}");
    house.cluster.lab().power_off("three").expect("the machine is ours");

    let said = house.skein_ok("one", &["ca", "rotate", "--overlap", "2d", "--yes"]);
    assert!(said.contains("TOKENS OF BEFORE HAVE ENDED"), "{said}");
    assert!(said.contains("KUBECONFIGS OF BEFORE END on"), "{said}");
    let ends = seconds_from_now(&house.status("two")["authorities"]["oldUntil"]);
    assert!((2 * DAY - 600..=2 * DAY).contains(&ends), "{ends}");
    let again = house.skein("two", &["ca", "rotate", "--yes"]);
    assert!(again.code == 1 && again.err.contains("--now"), "{again:?}");

    // Who was away comes back, and everybody's API is believed by old and new kubeconfigs.
    house.cluster.power_back("three").expect("the machine starts");
    house.until_whole();
    let after = house.skein_ok("three", &["kubeconfig"]);
    let nodes = |config: &str, through| {
        let user = User::with(&house, Path::new("kubectl"), through, "default", config);
        user.say(&["get", "nodes", "-o", "name"])
    };
    for name in NODES {
        for (config, which) in [(&before, "before"), (&after, "after")] {
            let answered = || (nodes(config, name).code == 0).then_some(());
            house.until(&format!("{name} to be believed by a kubeconfig of {which}"), answered);
        }
    }
    assert!(!house.skein_ok("two", &["token", "list"]).contains("good"));

    let said = house.skein_ok("two", &["ca", "rotate", "--now", "--yes"]);
    assert!(said.contains("KUBECONFIGS OF BEFORE HAVE ENDED"), "{said}");
    let now = house.skein_ok("one", &["kubeconfig"]);
    for name in NODES {
        house.until("the newest to be believed", || (nodes(&now, name).code == 0).then_some(()));
        for config in [&before, &after] {
            house.until("the others to be refused", || (nodes(config, name).code != 0).then_some(()));
        }
    }
    house.until("three holders", || (holders(&house, "one").len() == 3).then_some(()));
}

fn one_clock_that_is_ten_years_ahead_changes_nothing() {
    let mut house = House::formed(&NODES);
    let before = house.skein_ok("two", &["kubeconfig"]);
    for name in NODES {
        house.cluster.lab().power_off(name).expect("the machine is ours");
    }
    up_with_clock_ahead(&mut house, "one", 3652 * DAY + 3600);
    for name in ["two", "three"] {
        house.cluster.power_back(name).expect("the machine starts");
    }
    house.until_whole();
    // Once most members have told it the time.
    house.until("a word of the clock", || {
        let warnings = house.status("one")["warnings"].to_string();
        warnings.contains("3652 days ahead of those of most members").then_some(())
    });
    assert!(!house.status("two")["warnings"].to_string().contains("ahead"));

    let config = house.skein_ok("one", &["kubeconfig", "--user", "ann"]);
    for (config, through) in [(&before, "one"), (&config, "one"), (&config, "three")] {
        let user = User::with(&house, Path::new("kubectl"), through, "default", config);
        user.run(&["get", "nodes"]);
    }
    let map = json!({ "metadata": { "name": "made-at-one" } });
    house.create("one", "/api/v1/namespaces/default/configmaps", &map);
    let made = house.get("two", "/api/v1/namespaces/default/configmaps/made-at-one");
    let age = -seconds_from_now(&made["metadata"]["creationTimestamp"]);
    assert!((-60..600).contains(&age), "{age}");
    let until = seconds_from_now(&house.status("one")["certificateUntil"]);
    assert!((0..2 * DAY).contains(&until), "{until}");
}

fn a_cluster_that_was_off_for_longer_than_its_certificates_live_forms_again() {
    let mut house = House::new(&["one", "two", "three", "four"]);
    wait(house.cluster.found()).unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
    let token = wait(house.cluster.token(2)).expect("a token");
    for name in ["two", "three"] {
        house.cluster.join(name, &token).expect("it starts");
    }
    house.until("three holders", || (holders(&house, "one").len() == 3).then_some(()));
    for name in NODES {
        house.cluster.lab().power_off(name).expect("the machine is ours");
    }
    for name in NODES {
        up_with_clock_ahead(&mut house, name, 400 * DAY);
    }
    for name in NODES {
        house.until("another edition of the authorities", || {
            let said = house.skein(name, &["status", "-o", "json"]);
            let status: Value = serde_json::from_str(&said.out).ok()?;
            (status["authorities"]["edition"] == 2).then_some(())
        });
        house.until("a certificate that is good", || {
            (seconds_from_now(&house.status(name)["certificateUntil"]) > 400 * DAY).then_some(())
        });
    }
    // Who joins believes nothing but dates and what the token says.
    let token = wait(house.cluster.token(1)).expect("a token");
    house.cluster.set_options(&["--clock-offset", &(400 * DAY).to_string()]);
    house.cluster.join("four", &token).expect("it starts");
    house.until("four nodes", || (house.status("two")["nodes"].as_array()?.len() == 4).then_some(()));
}
