//! The cluster's authorities: by whose clock what they have signed ends.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::house::{House, wait};
use crate::user::User;
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![one_clock_that_is_ten_years_ahead_changes_nothing,];

const NODES: [&str; 3] = ["one", "two", "three"];
const DAY: i64 = 24 * 60 * 60;

fn until_whole(house: &House) {
    wait(house.cluster.until_whole()).unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
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
    until_whole(&house);
    let warnings = house.status("one")["warnings"].to_string();
    assert!(warnings.contains("3652 days ahead of those of most members"), "{warnings}");
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
