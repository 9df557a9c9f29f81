//! The majority of the voters is gone for good, and the cluster goes on with what is left.

use serde_json::{Value, json};

use crate::house::{House, Said, life, wait};
use crate::{Tests, tests};

pub(crate) const TESTS: Tests = tests![
    a_voter_that_is_left_goes_on_and_those_that_come_back_follow_when_they_are_told,
    a_node_without_a_vote_has_the_voter_that_is_left_go_on,
];

pub(crate) const MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub(crate) fn write(house: &House, node: &str, name: &str) {
    house.create(node, MAPS, &json!({ "metadata": { "name": name } }));
}

/// The names of what was written, as this node shows it.
pub(crate) fn written(house: &House, node: &str) -> Vec<String> {
    let maps = house.get(node, MAPS);
    let names = maps["items"].as_array().into_iter().flatten().map(|map| &map["metadata"]["name"]);
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

/// Recovers through this node, as soon as it is seen there who is gone.
fn recover(house: &House, node: &str) -> Said {
    house.until("the recovery", || {
        let said = house.skein(node, &["recover", "--yes"]);
        let too_early = ["does not answer now", "nothing to recover", "wait a moment"];
        match said.code {
            0 => Some(said),
            _ if too_early.iter().any(|reason| said.err.contains(reason)) => None,
            _ => panic!("{said:?}\n{}", house.logs()),
        }
    })
}

fn power_off(house: &mut House, names: &[String]) {
    for name in names {
        house.cluster.lab().power_off(name).expect("the machine is ours");
    }
}

/// The names of the nodes that vote, or that do not, as `node` sees them.
fn voters(house: &House, node: &str, vote: bool) -> Vec<String> {
    house.nodes(node, |node| node["voter"] == vote)
}

fn incarnation(house: &House, node: &str) -> Value {
    house.status(node)["incarnation"]["number"].clone()
}

pub(crate) fn revision(list: &Value) -> u64 {
    list["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("a list's revision")
}

fn a_voter_that_is_left_goes_on_and_those_that_come_back_follow_when_they_are_told() {
    let mut house = House::formed(&["one", "two", "three"]);
    write(&house, "one", "before");
    let before = house.run_pod("one");
    let early = house.skein("one", &["recover", "--yes"]);
    assert!(early.code == 1 && early.err.contains("nothing to recover"), "{early:?}");
    let known = revision(&house.get("one", MAPS));

    power_off(&mut house, &["two".into(), "three".into()]);
    let said = house.until("that it is known who is gone", || {
        let said = house.skein("one", &["recover"]);
        said.err.contains("--yes").then_some(said)
    });
    for word in ["incarnation 2", "only three, two had, is lost"] {
        assert!(said.code == 1 && said.out.contains(word), "{word}: {said:?}");
    }
    assert_eq!(incarnation(&house, "one"), 1, "nothing was done yet");
    let wrong = house.skein("one", &["recover", "--yes", "--off", "nobody"]);
    assert!(wrong.code == 1 && wrong.err.contains("nobody"), "{wrong:?}");
    let said = house.skein("one", &["recover", "--yes", "--off", "three"]);
    assert!(said.code == 0 && said.out.contains("is in incarnation 2"), "{said:?}\n{}", house.logs());

    // What was there is there, what is new is ahead of all that was known, and no pod noticed.
    assert_eq!(incarnation(&house, "one"), 2);
    write(&house, "one", "after");
    assert!(revision(&house.get("one", MAPS)) > known + (1 << 32));
    assert!(written(&house, "one").contains(&"before".to_owned()));
    let old = format!("{MAPS}?watch=true&resourceVersion={known}&timeoutSeconds=1");
    let gone = wait(house.cluster.api("one").get(&old)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(gone["object"]["code"], 410, "{gone}");
    assert_eq!(life(&house.ready_pod("one")), life(&before), "the pod was left alone");

    // Those that come back, one by one, are left alone and say why, and follow when they are told.
    for name in ["two", "three"] {
        house.cluster.power_back(name).expect("the machine starts");
        house.until("that it was met", || {
            let told = house.skein(name, &["status"]);
            told.out.contains("to give up what this node holds and follow: skein recover").then_some(())
        });
        assert_eq!(
            (incarnation(&house, name), house.status(name)["quorum"].clone()),
            (1.into(), false.into())
        );
        write(&house, "one", &format!("before-{name}-follows"));
        let said = recover(&house, name);
        assert!(said.out.contains("is put aside"), "{said:?}");
        assert_eq!(incarnation(&house, name), 2);
    }
    house.until_whole();
    for name in ["before", "after", "before-two-follows", "before-three-follows"] {
        assert!(written(&house, "three").contains(&name.to_owned()), "{name}");
    }
    assert_eq!(life(&house.ready_pod("one")), life(&before), "the pod was left alone");
}

fn a_node_without_a_vote_has_the_voter_that_is_left_go_on() {
    let mut house = House::formed(&["one", "two", "three", "four"]);
    house.until("three votes", || (voters(&house, "one", true).len() == 3).then_some(()));
    let spare = voters(&house, "one", false).remove(0);
    write(&house, &spare, "before");
    let before = house.run_pod(&spare);
    let mut lost = voters(&house, "one", true);
    let left = lost.remove(0);
    power_off(&mut house, &lost);

    recover(&house, &spare);
    for name in [&left, &spare] {
        house.until("the next incarnation", || (incarnation(&house, name) == 2).then_some(()));
    }
    write(&house, &spare, "after");
    for name in ["before", "after"] {
        assert!(written(&house, &left).contains(&name.to_owned()), "{name}");
    }
    assert_eq!(life(&house.ready_pod(&spare)), life(&before), "the pod was left alone");
}
