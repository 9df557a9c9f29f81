//! Departures, one row each.

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::json;

use super::super::authority::Trust;
use super::*;
use crate::meta;
use crate::world::{World, bare_pod, deployment};

/// Nodes that all vote and hold the authorities; the first one leads.
fn cluster(names: &[&str]) -> World {
    let mut world = World::with_nodes(names);
    let all: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
    let (leader, quorum) = (names[0].to_owned(), Quorum::default());
    world.electorate = Electorate { leader, voters: all.clone(), in_log: all.clone(), holders: all, quorum };
    world
}

/// Its answers count only while it is a member, and until its vote has gone nothing is decided without them.
#[test]
fn a_living_voter_that_makes_the_majority_gives_its_vote_away_before_it_is_removed_at_once() {
    let mut world = cluster(&["a", "b", "c"]);
    world.electorate.quorum.critical = down(&["a", "c"]);
    wish(&mut world, "c", Cause::RemovalNow).unwrap();
    world.live(|_| {});
    assert!(world.member("c").leaving && !world.member("c").removed);
    until_at_rest(&mut world);
    assert!(world.member("c").removed);
}

fn hold(world: &mut World, name: &str, holds: bool) {
    let holders = &mut world.electorate.holders;
    match holds {
        true => holders.insert(name.to_owned()),
        false => holders.remove(name),
    };
    world.changed = crate::view::Changed::All;
}

fn now_ms(world: &World) -> u64 {
    world.now.as_millisecond() as u64
}

fn wish(world: &mut World, name: &str, cause: Cause) -> Result<(), Refusal> {
    let now = now_ms(world);
    let writes = ask(&world.view, &world.electorate, &world.verdicts, now, name, cause)?;
    world.write(writes);
    Ok(())
}

fn stage(world: &World, name: &str) -> Option<Stage> {
    world.member(name).departure.map(|departure| departure.stage)
}

fn is_cordoned(world: &World, name: &str) -> bool {
    world.node(name).spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
}

/// What `leader::Voters` does where nothing is in the way: whoever stays votes, and a lost leader has an heir.
fn votes_move(world: &mut World) {
    let members: Vec<Record> = world.view.all::<Member>().map(|(_, member)| member.record.clone()).collect();
    let (go, stay): (Vec<Record>, Vec<Record>) =
        members.into_iter().partition(|record| record.leaving || record.removed);
    let stay: BTreeSet<String> = stay.into_iter().map(|record| record.node).collect();
    let electorate = &mut world.electorate;
    if go.iter().any(|record| record.node == electorate.leader) {
        electorate.leader = stay.first().cloned().unwrap_or_default();
    }
    electorate.voters = stay.clone();
    electorate.in_log = stay;
}

fn until_at_rest(world: &mut World) {
    for _ in 0..10 {
        world.live(|_| {});
        votes_move(world);
    }
    world.live(|_| {});
}

fn obstacle_of(refused: Result<(), Refusal>) -> Obstacle {
    match refused {
        Err(Refusal::Obstacle { obstacle, .. }) => obstacle,
        other => panic!("{other:?}"),
    }
}

/// Of a pod that goes to b if it can.
fn on_b() -> serde_json::Value {
    json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}}]}}})
}

fn down(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_node_that_leaves_is_emptied_first_and_its_object_goes_with_its_membership() {
    let mut world = cluster(&["a", "b", "c"]);
    world.put(deployment("web", 6, json!({})));
    world.live(|_| {});
    wish(&mut world, "b", Cause::Leave).unwrap();
    let plan = world.round();
    assert!(is_cordoned(&world, "b"));
    assert_eq!(stage(&world, "b"), Some(Stage::Draining));
    assert!(world.events(&plan).contains(&"Draining".to_owned()));
    assert!(!world.member("b").leaving, "it keeps its vote until it is empty");
    world.live(|_| {});
    assert_eq!(stage(&world, "b"), Some(Stage::Leaving));
    assert!(world.member("b").leaving);
    assert!(world.view.named::<Node>("", "b").is_some(), "not before it has no part in the log");
    votes_move(&mut world);
    world.live(|_| {});
    let gone = world.member("b");
    assert!(gone.removed && !gone.leaving && gone.departure.is_none() && !gone.expelled);
    assert!(world.view.named::<Node>("", "b").is_none());
    assert_eq!(world.spread().values().sum::<usize>(), 6);
    assert_eq!(progress(&world.view, "b"), Progress::Gone);
}

#[test]
fn a_bare_pod_is_made_anew_under_its_name_once_it_has_ended_and_never_beside_itself() {
    let mut world = cluster(&["a", "b"]);
    world.put(bare_pod("always", on_b()));
    let mut once = on_b();
    once["restartPolicy"] = "Never".into();
    world.put(bare_pod("once", once));
    world.live(|_| {});
    let before = world.pod("always");
    wish(&mut world, "b", Cause::Leave).unwrap();
    world.round();
    world.settle();
    assert_eq!(world.pod("always").metadata.uid, before.metadata.uid, "it ends still");
    world.live(|_| {});
    let after = world.pod("always");
    assert_ne!(after.metadata.uid, before.metadata.uid);
    assert_eq!((meta::node_of(&after), &after.metadata.finalizers), (Some("a"), &None));
    assert!(world.view.named::<Pod>("default", "once").is_none());
}

/// Whoever tells nobody that a pod has ended may do so with its power gone.
#[test]
fn a_bare_pod_of_a_node_that_dies_while_it_is_emptied_is_made_anew_all_the_same() {
    let mut world = cluster(&["a", "b", "c"]);
    world.put(bare_pod("always", on_b()));
    world.live(|_| {});
    let before = world.pod("always");
    assert_eq!(meta::node_of(&before), Some("b"));
    wish(&mut world, "b", Cause::Leave).unwrap();
    world.round();
    world.lose("b");
    world.settle();
    let after = world.pod("always");
    assert_ne!(after.metadata.uid, before.metadata.uid);
    assert_ne!(meta::node_of(&after), Some("b"));
    assert!(world.member("b").removed, "who is lost need not be waited for");
}

#[test]
fn pods_that_do_not_end_in_time_are_left_behind_and_made_elsewhere() {
    let mut world = cluster(&["a", "b"]);
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    wish(&mut world, "b", Cause::Leave).unwrap();
    let plan = world.round();
    assert_eq!(stage(&world, "b"), Some(Stage::Draining));
    assert_eq!(world.seconds_until(&plan), Some(60));
    world.pass_seconds(60);
    world.round();
    assert_eq!(stage(&world, "b"), Some(Stage::Leaving));
    votes_move(&mut world);
    world.settle();
    assert!(world.member("b").removed);
    assert_eq!(world.spread().into_iter().collect::<Vec<_>>(), [("a".to_owned(), 2)]);
}

#[test]
fn who_asked_first_goes_first_and_nobody_else_is_touched_meanwhile() {
    let mut world = cluster(&["a", "b", "c", "d", "e"]);
    for name in ["d", "b", "c"] {
        wish(&mut world, name, Cause::Leave).unwrap();
        world.pass_seconds(1);
    }
    world.settle();
    assert_eq!(stage(&world, "d"), Some(Stage::Leaving));
    for name in ["b", "c"] {
        assert!(!is_cordoned(&world, name));
        assert_eq!(stage(&world, name), Some(Stage::Waiting));
    }
    let waits = Progress::Waiting { behind: vec!["d".into(), "b".into()], obstacle: None };
    assert_eq!(progress(&world.view, "c"), waits);
    assert_eq!(waits.to_string(), "waits for d and b to leave first");
    until_at_rest(&mut world);
    for name in ["b", "c", "d"] {
        assert!(world.member(name).removed, "{name}");
    }
}

/// All three at once: leadership went round for a minute, all refused, and all stayed cordoned.
#[test]
fn the_last_one_that_stays_is_refused_before_anything_is_done() {
    let mut world = cluster(&["a", "b", "c"]);
    wish(&mut world, "a", Cause::Leave).unwrap();
    wish(&mut world, "b", Cause::Leave).unwrap();
    assert_eq!(obstacle_of(wish(&mut world, "c", Cause::Leave)), Obstacle::LastOne);
    until_at_rest(&mut world);
    assert!(world.member("a").removed && world.member("b").removed);
    assert!(!is_cordoned(&world, "c"));
    assert_eq!(world.member("c").departure, None);
}

/// Asked in the same moment on a leader that had seen neither.
#[test]
fn the_last_one_stays_also_if_its_wish_was_taken() {
    let mut world = cluster(&["a", "b"]);
    let now = now_ms(&world);
    let ask = |name| ask(&world.view, &world.electorate, &world.verdicts, now, name, Cause::Leave).unwrap();
    let both = [ask("a"), ask("b")].concat();
    world.write(both);
    until_at_rest(&mut world);
    let kept = ["a", "b"].map(|name| world.member(name)).into_iter().find(|record| !record.removed).unwrap();
    assert_eq!(kept.kept.map(|kept| kept.obstacle), Some(Obstacle::LastOne));
    assert!(!is_cordoned(&world, &kept.name));
}

#[test]
fn a_voter_without_which_no_majority_is_up_is_refused_with_the_names_of_those_that_are_off() {
    let mut world = cluster(&["a", "b"]);
    world.electorate.quorum.needs = [("a".to_owned(), down(&["b"]))].into();
    let obstacle = obstacle_of(wish(&mut world, "a", Cause::Leave));
    assert_eq!(obstacle, Obstacle::Majority(down(&["b"])));
    assert!(obstacle.to_string().contains(r#"while "b" does not answer"#), "{obstacle}");
    assert!(!is_cordoned(&world, "a"));
    assert_eq!(obstacle_of(wish(&mut world, "a", Cause::RemovalNow)), Obstacle::Majority(down(&["b"])));
}

#[test]
fn what_was_done_to_a_node_is_undone_if_it_cannot_go_after_all() {
    for was_cordoned in [false, true] {
        let mut world = cluster(&["a", "b", "c"]);
        if was_cordoned {
            world.edit::<Node>("core/nodes//b", |node| {
                node.spec.get_or_insert_default().unschedulable = Some(true);
            });
        }
        wish(&mut world, "b", Cause::Leave).unwrap();
        world.settle();
        assert_eq!(stage(&world, "b"), Some(Stage::Leaving));
        // One of the others loses its power while the vote is on its way.
        world.electorate.quorum.needs = [("b".to_owned(), down(&["c"]))].into();
        world.changed = crate::view::Changed::All;
        let plan = world.round();
        assert_eq!(world.seconds_until(&plan), Some(30));
        assert_eq!(
            progress(&world.view, "b").to_string(),
            "gives its part in the log away; waits for c to answer"
        );
        world.pass_seconds(29);
        world.settle();
        assert!(world.member("b").departure.is_some());
        world.pass_seconds(1);
        let plan = world.round();
        assert!(world.events(&plan).contains(&"NotLeaving".to_owned()));
        let record = world.member("b");
        assert!(record.departure.is_none() && !record.leaving && !record.removed);
        assert_eq!(record.kept.map(|kept| kept.obstacle), Some(Obstacle::Majority(down(&["c"]))));
        assert_eq!(is_cordoned(&world, "b"), was_cordoned, "only what this has cordoned");
        assert!(matches!(progress(&world.view, "b"), Progress::Kept(_)));
        // The next wish begins anew.
        world.electorate.quorum.needs.clear();
        wish(&mut world, "b", Cause::Leave).unwrap();
        until_at_rest(&mut world);
        assert!(world.member("b").removed);
    }
}

#[test]
fn an_obstacle_that_goes_away_was_none() {
    let mut world = cluster(&["a", "b", "c"]);
    wish(&mut world, "c", Cause::Leave).unwrap();
    world.electorate.quorum.needs = [("c".to_owned(), down(&["b"]))].into();
    world.round();
    assert_eq!(stage(&world, "c"), Some(Stage::Waiting));
    assert!(!is_cordoned(&world, "c"), "nothing is done before its turn");
    world.pass_seconds(29);
    world.electorate.quorum.needs.clear();
    until_at_rest(&mut world);
    assert!(world.member("c").removed);
}

#[test]
fn a_wish_is_taken_back_with_all_that_it_did() {
    let mut world = cluster(&["a", "b"]);
    assert_eq!(cancel(&world.view, "b"), Err(Refusal::NotLeaving("b".into())));
    assert_eq!(cancel(&world.view, "x"), Err(Refusal::NoMember("x".into())));
    wish(&mut world, "b", Cause::Leave).unwrap();
    world.settle();
    assert!(is_cordoned(&world, "b"));
    let writes = cancel(&world.view, "b").unwrap();
    world.write(writes);
    world.settle();
    assert!(!is_cordoned(&world, "b"));
    assert_eq!(world.member("b"), cluster(&["a", "b"]).member("b"));
}

#[test]
fn a_wish_that_is_repeated_goes_on_and_may_become_more_urgent() {
    let mut world = cluster(&["a", "b", "c"]);
    wish(&mut world, "c", Cause::Leave).unwrap();
    world.round();
    let begun = world.member("c");
    wish(&mut world, "c", Cause::Leave).unwrap();
    assert_eq!(world.member("c"), begun);
    wish(&mut world, "c", Cause::RemovalNow).unwrap();
    world.settle();
    let gone = world.member("c");
    assert!(gone.removed && gone.expelled);
}

#[test]
fn who_is_lost_goes_in_one_command_and_waits_for_nobody() {
    let mut world = cluster(&["a", "b", "c", "d"]);
    world.put(deployment("web", 8, json!({})));
    world.live(|_| {});
    wish(&mut world, "b", Cause::Leave).unwrap();
    world.settle();
    world.lose("c");
    world.settle();
    wish(&mut world, "c", Cause::Removal).unwrap();
    let plan = world.round();
    let gone = world.member("c");
    assert!(gone.removed && gone.expelled);
    assert!(world.electorate.in_log.contains("c"), "its vote is replaced afterwards");
    assert!(world.view.named::<Node>("", "c").is_none());
    assert!(plan.rest.is_none());
    assert_eq!(stage(&world, "b"), Some(Stage::Draining), "the queue goes on as it was");
}

/// Admitted, and never seen: it has no Node object either.
#[test]
fn a_member_that_never_came_can_be_taken_out() {
    let mut world = cluster(&["a", "b"]);
    world.delete("core/nodes//b");
    world.verdicts.remove("b");
    world.electorate.voters.remove("b");
    hold(&mut world, "b", false);
    wish(&mut world, "b", Cause::Removal).unwrap();
    world.settle();
    assert!(world.member("b").removed);
}

#[test]
fn a_living_one_goes_at_once_only_if_that_is_said_and_a_leader_never_throws_itself_out() {
    let mut world = cluster(&["a", "b", "c"]);
    world.put(deployment("web", 6, json!({})));
    world.live(|_| {});
    wish(&mut world, "b", Cause::RemovalNow).unwrap();
    world.settle();
    assert!(world.member("b").removed);
    assert_eq!(world.spread().values().sum::<usize>(), 6);
    wish(&mut world, "a", Cause::RemovalNow).unwrap();
    assert!(hands_over(&world.member("a")));
    world.settle();
    assert!(!world.member("a").removed);
    votes_move(&mut world);
    world.settle();
    assert!(world.member("a").removed && world.member("a").expelled);
}

#[test]
fn the_last_holder_of_the_authorities_stays_until_a_voter_that_stays_holds_them() {
    let mut world = cluster(&["a", "b"]);
    hold(&mut world, "b", false);
    world.electorate.voters.remove("b");
    wish(&mut world, "a", Cause::Leave).unwrap();
    world.settle();
    assert!(!is_cordoned(&world, "a"), "nothing is done before another one has them");
    assert_eq!(
        progress(&world.view, "a").to_string(),
        "is to leave; waits for another node to hold the authorities"
    );
    hold(&mut world, "b", true);
    world.settle();
    assert!(world.member("a").leaving);
    // The vote has moved, and what the new voter holds is gone again.
    hold(&mut world, "b", false);
    let (voters, in_log) = (down(&["b"]), down(&["b"]));
    world.electorate = Electorate { leader: "b".into(), voters, in_log, ..world.electorate.clone() };
    world.changed = crate::view::Changed::All;
    world.settle();
    assert!(!world.member("a").removed);
    hold(&mut world, "b", true);
    world.settle();
    assert!(world.member("a").removed);
}

#[test]
fn authorities_that_only_a_lost_one_holds_are_given_up_only_if_that_is_said() {
    let mut world = cluster(&["a", "b", "c"]);
    for name in ["a", "b"] {
        hold(&mut world, name, false);
    }
    world.lose("c");
    world.settle();
    assert_eq!(obstacle_of(wish(&mut world, "c", Cause::Removal)), Obstacle::Authorities);
    wish(&mut world, "c", Cause::RemovalNow).unwrap();
    world.settle();
    assert!(world.member("c").removed);
}

fn authorities(world: &World) -> Trust {
    world.view.get::<Authorities>(TRUST).expect("there is a record").trust.clone()
}

/// No moment lies between the end of a thief's membership and the wish for what it must not know.
#[test]
fn a_stolen_machine_goes_in_the_command_that_has_all_authorities_made_anew() {
    let mut world = cluster(&["a", "b", "c"]);
    wish(&mut world, "b", Cause::Removal).unwrap();
    // More is said than before, and less changes nothing.
    for cause in [Cause::RemovalNow, Cause::Stolen, Cause::RemovalNow] {
        wish(&mut world, "b", cause).unwrap();
    }
    world.round();
    assert!(!world.member("b").removed, "nobody has said yet what is in force");
    world.found_authorities();
    let before = authorities(&world);
    assert!(!before.is_ending());
    let plan = world.round();
    let keys: Vec<&str> = plan.writes.iter().map(|write| write.key.as_str()).collect();
    assert!(keys.contains(&TRUST) && keys.contains(&"skein/members//b"), "{keys:?}");
    assert!(world.member("b").removed && world.member("b").expelled);
    let wished = Trust { wish: authorities(&world).wish, ..before };
    assert!(authorities(&world) == wished && wished.is_ending());
    assert_eq!(wished.wish.map(|wish| wish.overlap_ms), Some(None));
    world.settle();
    assert_eq!(authorities(&world), wished, "once");
}

/// Whatever only it holds is worth nothing from now on, so nobody waits for a copy of that.
#[test]
fn a_stolen_machine_goes_also_with_the_last_copy_of_the_authorities() {
    for is_lost in [true, false] {
        let mut world = cluster(&["a", "b", "c"]);
        world.found_authorities();
        for name in ["a", "b"] {
            hold(&mut world, name, false);
        }
        if is_lost {
            world.lose("c");
            world.settle();
        }
        wish(&mut world, "c", Cause::Stolen).unwrap();
        world.settle();
        assert!(world.member("c").removed && authorities(&world).is_ending());
    }
    // A leader lets another one lead first.
    let mut world = cluster(&["a", "b", "c"]);
    world.found_authorities();
    wish(&mut world, "a", Cause::Stolen).unwrap();
    assert!(hands_over(&world.member("a")));
    world.settle();
    assert!(!world.member("a").removed && !authorities(&world).is_ending());
    votes_move(&mut world);
    world.electorate.leader = "b".into();
    world.changed = crate::view::Changed::All;
    world.settle();
    assert!(world.member("a").removed && authorities(&world).is_ending());
}

#[test]
fn without_office_nothing_is_decided() {
    let mut world = cluster(&["a", "b"]);
    wish(&mut world, "b", Cause::RemovalNow).unwrap();
    world.electorate = Electorate::default();
    world.settle();
    assert!(!world.member("b").removed);
}

#[test]
fn an_older_build_that_only_says_that_it_leaves_is_let_go_once_it_is_out() {
    let mut world = cluster(&["a", "b", "c"]);
    world.edit::<Member>("skein/members//c", |member| member.record.leaving = true);
    world.settle();
    assert!(!world.member("c").removed);
    votes_move(&mut world);
    world.changed = crate::view::Changed::All;
    world.settle();
    assert!(world.member("c").removed && !world.member("c").expelled);
}

#[test]
fn a_deleted_node_means_the_end_of_a_lost_member_and_is_refused_for_a_living_one() {
    let mut world = cluster(&["a", "b"]);
    let now = now_ms(&world);
    assert_eq!(node_deletion(&world.view, "x", now), Ok(NodeDeletion::Object));
    let refused = node_deletion(&world.view, "b", now).unwrap_err();
    assert!(refused.contains("skein remove b") && refused.contains("kubectl drain b"), "{refused}");
    world.lose("b");
    world.settle();
    let Ok(NodeDeletion::Membership(writes)) = node_deletion(&world.view, "b", now) else {
        panic!("it is lost")
    };
    world.write(writes);
    assert_eq!(node_deletion(&world.view, "b", now), Ok(NodeDeletion::Membership(Vec::new())));
    world.settle();
    assert!(world.member("b").removed && world.member("b").expelled);
    assert!(world.view.named::<Node>("", "b").is_none());
    world.lose("a");
    world.settle();
    assert!(node_deletion(&world.view, "a", now).unwrap_err().contains("--end-cluster"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whoever asks, dies and comes back: at most one living node is taken up at a time, somebody who holds the
    /// authorities always stays, and in the end nothing is left half done.
    #[test]
    fn whatever_is_asked_one_goes_at_a_time_and_a_holder_stays(
        steps in prop::collection::vec((0..4_usize, 0..6_u8), 1..24),
    ) {
        let names = ["a", "b", "c", "d"];
        let mut world = cluster(&names);
        for (which, what) in steps {
            let name = names[which];
            let cause = [Cause::Leave, Cause::Removal, Cause::RemovalNow][usize::from(what) % 3];
            match what {
                0..=2 => drop(wish(&mut world, name, cause)),
                3 => if let Ok(writes) = cancel(&world.view, name) { world.write(writes) },
                // A leader that is lost has a successor.
                4 if world.electorate.leader != name => world.lose(name),
                _ => if world.verdicts.contains_key(name) {
                    world.verdicts.insert(name.to_owned(), Verdict::Alive);
                },
            }
            world.pass_seconds(3);
            world.settle();
            votes_move(&mut world);
            let records: Vec<Record> = names.iter().map(|name| world.member(name)).collect();
            let present = || records.iter().filter(|record| !record.removed);
            prop_assert!(present().next().is_some());
            let begun = present().filter(|record| {
                record.departure.as_ref().is_some_and(|departure| departure.stage != Stage::Waiting)
            });
            prop_assert!(begun.count() <= 1);
            prop_assert!(present().any(|record| world.electorate.holders.contains(&record.node)));
        }
        for name in names {
            if world.verdicts.contains_key(name) {
                world.verdicts.insert(name.to_owned(), Verdict::Alive);
            }
        }
        for _ in 0..8 {
            world.pass_seconds(60);
            until_at_rest(&mut world);
        }
        for (_, member) in world.view.all::<Member>() {
            let record = &member.record;
            prop_assert!(record.departure.is_none(), "{record:?}");
            let node = world.view.named::<Node>("", &record.name);
            prop_assert_eq!(node.is_some(), !record.removed);
            let is_cordoned = node.is_some_and(|node| {
                node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
            });
            prop_assert!(!is_cordoned);
        }
    }
}
