use serde_json::{Value, json};

use crate::meta;
use crate::world::{World, asking, bare_pod, deployment};
use k8s_openapi::api::core::v1::{Node, NodeCondition};

/// A bare pod with this spec, on nodes a and b, lands there; `Err` is kubectl's explanation.
fn check(prepare: impl Fn(&mut World), spec: Value, expect: Result<&str, &str>) {
    let mut world = World::with_nodes(&["a", "b"]);
    prepare(&mut world);
    world.put(bare_pod("p", spec));
    world.settle();
    let pod = world.pod("p");
    let got = match meta::node_of(&pod) {
        Some(node) => Ok(node.to_owned()),
        None => Err(world.why_unscheduled("p").unwrap_or_default()),
    };
    assert_eq!(got, expect.map(str::to_owned).map_err(str::to_owned));
}

fn edit_node(world: &mut World, name: &str, edit: impl Fn(&mut Node)) {
    world.edit::<Node>(&format!("core/nodes//{name}"), edit);
}

fn label(world: &mut World, name: &str, key: &str, value: &str) {
    edit_node(world, name, |node| {
        node.metadata.labels.get_or_insert_default().insert(key.to_owned(), value.to_owned());
    });
}

fn taint(world: &mut World, name: &str, key: &str) {
    edit_node(world, name, |node| {
        let taint = serde_json::from_value(json!({"key": key, "value": "v", "effect": "NoSchedule"}));
        node.spec.get_or_insert_default().taints.get_or_insert_default().push(taint.expect("a taint"));
    });
}

#[test]
fn a_pod_goes_where_there_is_room() {
    check(|world| drop(world.put(bare_pod("big", asking("3")))), asking("2"), Ok("b"));
    check(|_| {}, asking("5"), Err("0/2 nodes are available: 2 Insufficient cpu."));
}

#[test]
fn each_reason_is_counted_and_they_are_in_order() {
    check(
        |world| taint(world, "b", "dedicated"),
        asking("5"),
        Err("0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {dedicated: v}."),
    );
}

#[test]
fn a_cordoned_or_unready_node_takes_nothing() {
    let cordon = |world: &mut World| {
        edit_node(world, "a", |node| node.spec.get_or_insert_default().unschedulable = Some(true));
    };
    check(cordon, json!({}), Ok("b"));
    let unready = |world: &mut World| {
        for name in ["a", "b"] {
            edit_node(world, name, |node| {
                node.status = node.status.clone().map(|mut status| {
                    status.conditions = None;
                    status
                })
            });
        }
    };
    check(
        unready,
        json!({}),
        Err("0/2 nodes are available: 2 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."),
    );
}

#[test]
fn a_taint_keeps_out_whoever_does_not_tolerate_it() {
    let both = |world: &mut World| ["a", "b"].into_iter().for_each(|name| taint(world, name, "dedicated"));
    let tolerating = |toleration: Value| json!({"tolerations": [toleration]});
    check(both, tolerating(json!({"key": "dedicated", "value": "v"})), Ok("a"));
    check(both, tolerating(json!({"key": "dedicated", "operator": "Exists"})), Ok("a"));
    check(both, tolerating(json!({"operator": "Exists"})), Ok("a"));
    let refused = Err("0/2 nodes are available: 2 node(s) had untolerated taint {dedicated: v}.");
    check(both, tolerating(json!({"key": "dedicated", "value": "w"})), refused);
    check(
        both,
        tolerating(json!({"key": "dedicated", "operator": "Exists", "effect": "NoExecute"})),
        refused,
    );
}

#[test]
fn selectors_and_affinities_pick_nodes_by_label() {
    let disk = |world: &mut World| label(world, "b", "disk", "ssd");
    let refused = Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.");
    check(disk, json!({"nodeSelector": {"disk": "ssd"}}), Ok("b"));
    check(disk, json!({"nodeSelector": {"disk": "tape"}}), refused);
    let required = |expression: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [expression]}],
        }}}})
    };
    check(disk, required(json!({"key": "disk", "operator": "In", "values": ["ssd", "nvme"]})), Ok("b"));
    check(disk, required(json!({"key": "disk", "operator": "DoesNotExist"})), Ok("a"));
    check(disk, required(json!({"key": "disk", "operator": "NotIn", "values": ["ssd"]})), Ok("a"));
    check(disk, required(json!({"key": "disk", "operator": "Gt", "values": ["3"]})), refused);
    let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 5, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}},
    ]}}});
    check(disk, preferred, Ok("b"));
}

#[test]
fn pods_can_ask_for_company_and_for_solitude() {
    let neighbour = |world: &mut World| {
        world.put(bare_pod("n", json!({"nodeSelector": {"kubernetes.io/hostname": "b"}})));
        world.settle();
    };
    let term =
        json!({"labelSelector": {"matchLabels": {"app": "n"}}, "topologyKey": "kubernetes.io/hostname"});
    let required =
        |kind: &str| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
    check(neighbour, required("podAffinity"), Ok("b"));
    check(neighbour, required("podAntiAffinity"), Ok("a"));
    check(
        |_| {},
        required("podAffinity"),
        Err("0/2 nodes are available: 2 node(s) didn't match pod affinity rules."),
    );
    let shy = |world: &mut World| {
        let all = json!({"labelSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]},
            "topologyKey": "kubernetes.io/hostname"});
        world.put(bare_pod(
            "shy",
            json!({"affinity": {"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [all]}}}),
        ));
        world.settle();
    };
    check(shy, json!({}), Ok("b"));
}

#[test]
fn a_port_of_the_machine_is_given_once() {
    let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    let taken = |world: &mut World| {
        for name in ["x", "y"] {
            world.put(bare_pod(name, port.clone()));
        }
        world.settle();
    };
    check(
        taken,
        port.clone(),
        Err("0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports."),
    );
}

#[test]
fn replicas_of_one_owner_spread_over_the_nodes() {
    let mut world = World::with_nodes(&["a", "b", "c"]);
    world.put(bare_pod("big", asking("3")));
    world.put(deployment("web", 9, json!({})));
    world.settle();
    let mut spread = world.spread();
    *spread.get_mut("a").expect("it has the big one and three") -= 1;
    assert_eq!(spread.into_values().collect::<Vec<_>>(), [3, 3, 3]);
}

#[test]
fn pods_that_ask_for_nothing_spread_too() {
    let mut world = World::with_nodes(&["a", "b"]);
    for n in 0..10 {
        world.put(bare_pod(&format!("p{n}"), json!({})));
    }
    world.settle();
    assert_eq!(world.spread().into_values().collect::<Vec<_>>(), [5, 5]);
}

#[test]
fn a_full_node_takes_no_more_pods_than_it_offers() {
    let mut world = World::new();
    world.add_node("a");
    edit_node(&mut world, "a", |node| {
        let status = node.status.get_or_insert_default();
        for held in [&mut status.allocatable, &mut status.capacity] {
            held.get_or_insert_default().insert(
                "pods".to_owned(),
                k8s_openapi::apimachinery::pkg::api::resource::Quantity("2".to_owned()),
            );
        }
    });
    for name in ["p", "q", "r"] {
        world.put(bare_pod(name, json!({})));
    }
    world.settle();
    assert_eq!(world.why_unscheduled("r").as_deref(), Some("0/1 nodes are available: 1 Too many pods."));
}

#[test]
fn the_reasons_are_told_once_and_again_only_when_they_change() {
    let mut world = World::new();
    world.put(bare_pod("p", json!({})));
    let plan = world.round();
    assert_eq!(world.events(&plan), ["FailedScheduling"]);
    assert_eq!(world.why_unscheduled("p").as_deref(), Some("no nodes available to schedule pods"));
    world.pass_seconds(60);
    assert!(world.round().writes.is_empty());
    world.add_node("a");
    let plan = world.round();
    assert_eq!(world.events(&plan), ["Scheduled"]);
}

#[test]
fn a_waiting_pod_is_bound_when_another_one_leaves() {
    let mut world = World::with_nodes(&["a"]);
    let first = world.put(bare_pod("first", asking("3")));
    world.settle();
    world.put(bare_pod("p", asking("3")));
    world.settle();
    assert!(world.why_unscheduled("p").is_some());
    world.delete(&first);
    world.settle();
    assert_eq!(meta::node_of(&world.pod("p")), Some("a"));
}

/// Replicas that fit nowhere are looked at once for all; what the others are told follows what happens.
#[test]
fn replicas_that_wait_are_told_the_same_and_bound_as_room_comes() {
    let mut world = World::with_nodes(&["a"]);
    let first = world.put(bare_pod("first", asking("2")));
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": asking("2")});
    world.put(deployment("web", 3, json!({"template": template})));
    world.settle();
    let waiting = |world: &World| {
        let pods = world.pods().into_iter().filter(|(_, pod)| meta::node_of(pod).is_none());
        let why = |name: &str| world.why_unscheduled(name).unwrap_or_default();
        pods.map(|(_, pod)| why(meta::name(&pod.metadata))).collect::<Vec<_>>()
    };
    assert_eq!(waiting(&world), ["0/1 nodes are available: 1 Insufficient cpu."; 2]);
    world.delete(&first);
    world.settle();
    assert_eq!(waiting(&world), ["0/1 nodes are available: 1 Insufficient cpu."]);
    edit_node(&mut world, "a", |node| node.spec.get_or_insert_default().unschedulable = Some(true));
    world.settle();
    assert_eq!(waiting(&world), ["0/1 nodes are available: 1 node(s) were unschedulable."]);
}

#[test]
fn the_more_urgent_pod_is_bound_first() {
    let mut world = World::with_nodes(&["a"]);
    let with = |priority: i32| {
        let mut spec = asking("3");
        spec["priority"] = json!(priority);
        spec
    };
    world.put(bare_pod("early", with(0)));
    world.put(bare_pod("urgent", with(10)));
    world.settle();
    assert!(meta::node_of(&world.pod("urgent")).is_some());
    assert!(meta::node_of(&world.pod("early")).is_none());
}

#[test]
fn a_gated_pod_and_one_of_another_scheduler_wait_unexplained() {
    let mut world = World::with_nodes(&["a"]);
    world.put(bare_pod("gated", json!({"schedulingGates": [{"name": "g"}]})));
    world.put(bare_pod("other", json!({"schedulerName": "mine"})));
    world.settle();
    assert_eq!(world.why_unscheduled("gated"), None);
    assert!(meta::node_of(&world.pod("other")).is_none());
}

#[test]
fn who_asks_for_memory_may_run_where_little_is_left() {
    let only_a_and_it_is_short = |world: &mut World| {
        edit_node(world, "b", |node| node.spec.get_or_insert_default().unschedulable = Some(true));
        edit_node(world, "a", |node| {
            let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
            conditions.push(NodeCondition {
                type_: "MemoryPressure".to_owned(),
                status: "True".to_owned(),
                ..NodeCondition::default()
            });
        });
    };
    check(only_a_and_it_is_short, asking("1"), Ok("a"));
    let why = "0/2 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/memory-pressure: }, \
               1 node(s) were unschedulable.";
    check(only_a_and_it_is_short, json!({}), Err(why));
}
