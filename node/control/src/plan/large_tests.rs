//! Plans that are larger than a command. Before commands had a size such a plan ended all planning, for good and without
//! a word: it was refused, and made again.
//!
//! `World` applies every command under the store's real limits.

use k8s_openapi::api::core::v1::{Event, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use skein_api::write::{Change, Write};
use std::collections::BTreeMap;

use super::{Agenda, Fate, Next, Plan, Round};
use crate::chance::Chance;
use crate::meta;
use crate::size::{OBJECT_BYTES_MAX, Size};
use crate::world::{World, bare_pod, deployment};

fn annotated(bytes: usize) -> Value {
    json!({"metadata": {"labels": {"app": "web"}, "annotations": {"fat": "x".repeat(bytes)}},
        "spec": {"containers": [{"name": "c", "image": "x:1"}], "restartPolicy": "Always"}})
}

/// A Deployment whose pods have so many bytes each, in whatever namespace.
fn fat(replicas: i32, bytes: usize) -> Value {
    let mut template = annotated(bytes);
    template["metadata"]["labels"] = json!({"app": "fat"});
    deployment("fat", replicas, json!({"selector": {"matchLabels": {"app": "fat"}}, "template": template}))
}

/// Commands until the planners rest, with the bytes of each.
fn run(world: &mut World) -> Vec<usize> {
    let mut sizes = Vec::new();
    loop {
        let plan = world.round();
        if plan.writes.is_empty() {
            return sizes;
        }
        sizes.push(plan.writes.iter().map(Size::of).map(|size| size.bytes).sum());
        assert!(sizes.len() < 500, "{sizes:?}");
    }
}

fn bound(world: &World) -> usize {
    world.pods().iter().filter(|(_, pod)| meta::node_of(pod).is_some()).count()
}

#[test]
fn many_pods_of_a_large_template_come_in_several_commands() {
    for (replicas, bytes, most) in [(330, 8 << 10, 10), (40, 100 << 10, 10)] {
        let mut world = World::new();
        for node in ["a", "b", "c", "d"] {
            world.add_node_for(node, 110);
        }
        world.put(fat(replicas, bytes));
        let sizes = run(&mut world);
        assert_eq!(bound(&world), replicas as usize);
        // Each pod is bound by the command that makes it.
        let total: usize = sizes.iter().sum();
        let pods = replicas as usize * (bytes + 2000);
        assert!(total < pods + pods / 4, "{total} bytes for {pods} of pods: {sizes:?}");
        assert!(sizes.len() > 1 && sizes.len() < most, "{sizes:?}");
    }
}

#[test]
fn a_lost_node_of_many_fat_pods_is_emptied_bit_by_bit() {
    let mut world = World::new();
    world.add_node_for("a", 1000);
    world.put(fat(250, 40 << 10));
    for n in 0..250 {
        let mut pod = bare_pod(&format!("bare-{n}"), json!({}));
        pod["metadata"]["annotations"] = json!({"fat": "x".repeat(40 << 10)});
        world.put(pod);
    }
    run(&mut world);
    world.nodes_work();
    run(&mut world);
    assert_eq!(world.spread(), BTreeMap::from([("a".to_owned(), 500)]));
    world.add_node_for("b", 1000);
    world.lose("a");
    let first = world.round();
    assert!(first.rest.is_some());
    assert!(world.spread()["b"] > 0, "the first command has pods running elsewhere already");
    let sizes = run(&mut world);
    assert_eq!(world.spread(), BTreeMap::from([("b".to_owned(), 500)]));
    let total: usize = sizes.iter().sum();
    assert!(total < 500 * 50_000, "no pod is written twice: {total} bytes");
}

/// A node that is lost and not yet marked is no place for the pods of one that is.
#[test]
fn all_lost_nodes_are_marked_before_anything_is_sent_anywhere() {
    let mut world = World::new();
    ["a", "b", "c"].iter().for_each(|node| world.add_node(node));
    world.put(deployment("web", 9, json!({})));
    world.live(|_| {});
    world.bounds.limit = Size { bytes: 3000, ops: 4 };
    world.lose("a");
    world.lose("b");
    // `World` refuses bindings to nodes that the judge calls lost.
    world.settle();
    assert_eq!(world.spread(), BTreeMap::from([("c".to_owned(), 9)]));
}

#[test]
fn a_namespace_of_fifty_thousand_objects_ends() {
    let mut world = World::new();
    world.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "big"},
        "spec": {"finalizers": ["kubernetes"]}}));
    for n in 0..50_000 {
        world.put(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("c{n}"), "namespace": "big"}}));
    }
    world.settle();
    let now = world.now;
    world.edit::<Namespace>("core/namespaces//big", |namespace| {
        namespace.metadata.deletion_timestamp = Some(Time(now));
    });
    let commands = run(&mut world).len();
    assert!(world.view.stored("core/namespaces//big").is_none());
    assert_eq!(world.view.keys_in_namespace("big").count(), 0);
    assert!((10..40).contains(&commands), "{commands}");
}

fn told(plan: &Plan, reason: &str) -> Vec<String> {
    let events = plan.writes.iter().filter_map(|write| match &write.change {
        Change::Put(bytes) if write.key.starts_with("core/events/") => {
            serde_json::from_slice::<Event>(bytes).ok()
        }
        _ => None,
    });
    let wanted = events.filter(|event| event.reason.as_deref() == Some(reason));
    wanted
        .map(|event| format!("{:?}: {}", event.involved_object.kind, event.message.unwrap_or_default()))
        .collect()
}

#[test]
fn what_can_never_be_written_is_left_out_and_said_and_everything_else_goes_on() {
    let mut world = World::with_nodes(&["a"]);
    // The ReplicaSet is larger than its Deployment, by labels and selector.
    world.put(fat(3, OBJECT_BYTES_MAX - 700));
    world.put(deployment("web", 2, json!({})));
    let plan = world.round();
    assert_eq!(world.pods().len(), 2, "the others go on");
    // Neither its ReplicaSet nor its own status.
    assert_eq!(plan.left_out.len(), 2);
    assert!(plan.left_out.iter().all(|left_out| &*left_out.about == "apps/deployments/default/fat"));
    let texts = told(&plan, "TooLarge");
    assert!(!texts.is_empty());
    for text in texts {
        assert!(text.contains("Deployment") && text.contains("at most 1572864 are kept"), "{text}");
    }
    // It is said once, and the planners rest.
    world.settle();
    world.scale("apps/deployments/default/web", 5);
    assert!(told(&world.round(), "TooLarge").is_empty());
    assert_eq!(world.pods().len(), 5);
    // Somebody makes it smaller.
    world.put(fat(3, 1000));
    world.settle();
    assert_eq!(world.pods().len(), 8);
}

#[test]
fn a_pod_that_its_binding_makes_too_large_is_told_and_stays() {
    let mut world = World::with_nodes(&["a"]);
    let mut pod = bare_pod("huge", json!({}));
    pod["metadata"]["annotations"] = json!({"fat": "x".repeat(OBJECT_BYTES_MAX - 420)});
    world.put(pod);
    world.put(bare_pod("small", json!({})));
    let plan = world.round();
    assert_eq!(meta::node_of(&world.pod("small")), Some("a"));
    assert_eq!(meta::node_of(&world.pod("huge")), None);
    assert_eq!(told(&plan, "TooLarge").len(), 1);
    world.settle();
}

#[test]
fn an_object_that_cannot_be_read_keeps_nobody_else_from_being_planned() {
    let mut world = World::with_nodes(&["a"]);
    world.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "odd"}}));
    world.break_object("core/serviceaccounts/odd/default");
    world.put(deployment("web", 2, json!({})));
    // The store would refuse to make what is there.
    let plan = world.round();
    assert_eq!(plan.left_out.len(), 1);
    assert_eq!(world.pods().len(), 2);
    world.settle();
}

/// A leader at work on a world: what the store says to each command is up to the test.
struct Leader {
    world: World,
    agenda: Agenda,
    rounds: u128,
}

impl Leader {
    fn of(world: World) -> Leader {
        Leader { world, agenda: Agenda::default(), rounds: 1 << 64 }
    }

    fn plan(&mut self) -> Plan {
        self.rounds += 1;
        let world = &mut self.world;
        self.agenda.add(std::mem::take(&mut world.changed));
        let round = Round {
            now: world.now,
            chance: Chance(self.rounds),
            verdicts: &world.verdicts,
            electorate: &world.electorate,
            ca_pem: "pem",
            kubernetes_ip: "10.43.0.1",
        };
        self.agenda.plan(&world.view, &round)
    }

    /// Plans until it is to wait. `judge` may change the world before a command, and refuse it. Returns how many were
    /// refused.
    fn work(&mut self, mut judge: impl FnMut(&mut World, &Plan) -> Fate) -> usize {
        let mut refused = 0;
        for _ in 0..1000 {
            let plan = self.plan();
            if plan.writes.is_empty() {
                return refused;
            }
            let fate = judge(&mut self.world, &plan);
            match fate {
                Fate::Committed => self.world.commit(&plan),
                _ => refused += 1,
            }
            if self.agenda.became(&plan, fate) == Next::Wait && fate != Fate::Committed {
                return refused;
            }
        }
        panic!("the leader does not come to rest");
    }
}

fn size(plan: &Plan) -> Size {
    plan.writes.iter().map(Size::of).fold(Size::default(), Size::plus)
}

#[test]
fn a_batch_that_is_refused_for_its_size_all_the_same_is_halved() {
    let mut world = World::new();
    world.add_node_for("a", 1000);
    world.settle();
    world.put(deployment("web", 100, json!({})));
    let mut huge = bare_pod("huge", json!({}));
    huge["metadata"]["annotations"] = json!({"fat": "x".repeat(50_000)});
    world.put(huge);
    let mut leader = Leader::of(world);
    // A store of an older build, say, that takes less.
    let least = Size { bytes: 20_000, ops: 30 };
    let refused =
        leader.work(|_, plan| if size(plan).fits(least) { Fate::Committed } else { Fate::NotTaken });
    assert!((2..20).contains(&refused), "{refused}");
    assert_eq!(bound(&leader.world), 100, "all but the one that the store does not take");
}

/// Agents report all the time what a large plan is about to change.
#[test]
fn a_plan_that_others_overtake_again_and_again_becomes_smaller_until_it_is_through() {
    let mut world = World::new();
    world.add_node_for("a", 1000);
    world.put(deployment("web", 200, json!({})));
    world.settle();
    world.delete("apps/deployments/default/web");
    let mut leader = Leader::of(world);
    let mut turn = 0;
    let refused = leader.work(|world, plan| {
        turn += 1;
        // One pod of 200 changes between each plan and its command.
        let pods = world.pods();
        if pods.is_empty() {
            return Fate::Committed;
        }
        let (key, pod) = &pods[turn * 7 % pods.len()];
        world.set_ready(key, !meta::is_ready(pod));
        if plan.writes.iter().any(|write| write.key == *key) { Fate::Outdated } else { Fate::Committed }
    });
    assert!(refused < 200, "{refused}");
    assert!(leader.world.pods().iter().all(|(_, pod)| meta::is_ending(&pod.metadata)));
}

#[test]
fn a_full_store_takes_what_frees_room_and_the_rest_is_tried_again() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 5, json!({})));
    world.live(|_| {});
    world.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "old"}}));
    for n in 0..10 {
        world.put(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("c{n}"), "namespace": "old"}}));
    }
    world.settle();
    let now = world.now;
    world.edit::<Namespace>("core/namespaces//old", |namespace| {
        namespace.metadata.deletion_timestamp = Some(Time(now));
        namespace.status.get_or_insert_default().phase = Some("Terminating".to_owned());
    });
    world.put(bare_pod("late", json!({})));
    let mut leader = Leader::of(world);
    let grows = |world: &World, write: &Write| match &write.change {
        Change::Put(bytes) => {
            let stored = world.view.stored(&write.key).and_then(|stored| stored.object.to_bytes());
            bytes.len() > stored.map_or(0, |bytes| bytes.len())
        }
        Change::Delete | Change::Check => false,
    };
    let full = |world: &mut World, plan: &Plan| {
        if plan.writes.iter().any(|write| grows(world, write)) { Fate::StoreFull } else { Fate::Committed }
    };
    leader.work(full);
    assert_eq!(leader.world.view.keys_in_namespace("old").count(), 0);
    assert_eq!(meta::node_of(&leader.world.pod("late")), None);
    assert!(!leader.agenda.is_empty());
    assert!(leader.agenda.wake_in(now) <= std::time::Duration::from_secs(5), "it is tried again");
    leader.work(|_, _| Fate::Committed);
    assert_eq!(meta::node_of(&leader.world.pod("late")), Some("a"));
}
