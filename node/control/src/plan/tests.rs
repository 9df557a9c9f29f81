//! The planners together: a lost node, endings, and properties that hold after whatever users do.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, NodeCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{Value, json};
use skein_api::write::{Change, Expect};

use super::{Bounds, Round, first, plan};
use crate::chance::Chance;
use crate::meta;
use crate::node::roster::Member;
use crate::node_health::Verdict;
use crate::size::Size;
use crate::view::{Changed, View};
use crate::world::{World, asking, bare_pod, deployment};

const WEB: &str = "apps/deployments/default/web";

fn ready(world: &World, node: &str) -> String {
    meta::node_condition(&world.node(node), "Ready").map(|ready| ready.status.clone()).unwrap_or_default()
}

#[test]
fn a_new_cluster_gets_what_clients_wait_for() {
    let world = World::new();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let phase = world.view.named::<Namespace>("", name).and_then(|held| held.status.clone()?.phase);
        assert_eq!(phase.as_deref(), Some("Active"), "{name}");
        for key in ["core/serviceaccounts/NS/default", "core/configmaps/NS/kube-root-ca.crt"] {
            assert!(world.view.stored(&key.replace("NS", name)).is_some(), "{key} in {name}");
        }
    }
    assert!(world.view.stored("core/services/default/kubernetes").is_some());
}

#[test]
fn a_lost_node_its_replacements_and_their_bindings_are_one_batch() {
    let mut world = World::with_nodes(&["a", "b", "c"]);
    world.put(deployment("web", 6, json!({})));
    world.live(|_| {});
    world.lose("a");
    let plan = world.round();
    assert_eq!(plan.rest, None);
    assert_eq!(ready(&world, "a"), "Unknown");
    assert_eq!(world.spread().into_iter().collect::<Vec<_>>(), [("b".to_owned(), 3), ("c".to_owned(), 3)]);
    assert_eq!(world.pods().len(), 6, "the old ones are gone at once");
    assert!(world.round().writes.is_empty(), "nothing is replaced twice");
    world.verdicts.insert("a".to_owned(), Verdict::Alive);
    world.live(|_| {});
    assert!(world.node("a").spec.as_ref().is_none_or(|spec| spec.taints.is_none()));
    assert_eq!(world.spread().len(), 2, "what runs well elsewhere stays there");
    assert_eq!(ready(&world, "a"), "Unknown", "only its agent says that it is ready");
}

/// Its agent had made the object anew a moment after the membership had ended: it was Ready for ever, and pods
/// were bound to it.
#[test]
fn a_node_that_is_no_members_goes_and_its_pods_are_made_elsewhere() {
    let mut world = World::with_nodes(&["a", "b"]);
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    world.edit::<Member>("skein/members//a", |member| member.record.removed = true);
    world.verdicts.remove("a");
    let plan = world.round();
    assert_eq!(plan.rest, None);
    assert!(world.view.stored("core/nodes//a").is_none());
    assert_eq!(world.spread().into_iter().collect::<Vec<_>>(), [("b".to_owned(), 2)]);
    world.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "by-hand"}}));
    world.settle();
    assert!(world.view.stored("core/nodes//by-hand").is_none());
    assert!(world.view.stored("core/nodes//b").is_some());
}

#[test]
fn a_toleration_with_seconds_is_waited_for_and_one_without_for_ever() {
    let mut world = World::with_nodes(&["a"]);
    let tolerating = |seconds: Value| {
        let mut toleration =
            json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"});
        if !seconds.is_null() {
            toleration["tolerationSeconds"] = seconds;
        }
        json!({"tolerations": [toleration]})
    };
    world.put(bare_pod("patient", tolerating(json!(60))));
    world.put(bare_pod("loyal", tolerating(Value::Null)));
    world.live(|_| {});
    let (patient, loyal) = (world.pod("patient"), world.pod("loyal"));
    world.lose("a");
    let plan = world.round();
    assert_eq!(world.seconds_until(&plan), Some(60));
    assert_eq!(world.pod("patient").metadata.uid, patient.metadata.uid);
    assert!(!meta::is_ready(&world.pod("patient")), "it serves nobody meanwhile");
    world.pass_seconds(60);
    world.settle();
    assert_ne!(world.pod("patient").metadata.uid, patient.metadata.uid);
    assert_eq!(world.pod("loyal").metadata.uid, loyal.metadata.uid);
}

#[test]
fn a_bare_pod_that_is_to_run_always_is_made_anew_under_its_name() {
    let mut world = World::with_nodes(&["a", "b"]);
    let on_a = |more: Value| {
        let mut spec = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}}]}}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        spec
    };
    world.put(bare_pod("always", on_a(json!({}))));
    world.put(bare_pod("once", on_a(json!({"restartPolicy": "Never"}))));
    let mut stays = bare_pod("stays", on_a(json!({})));
    stays["metadata"]["annotations"] = json!({"skein.dev/reschedule": "false"});
    world.put(stays);
    world.live(|_| {});
    let before = world.pod("always");
    assert_eq!(meta::node_of(&before), Some("a"));
    world.lose("a");
    let plan = world.round();
    let after = world.pod("always");
    assert_eq!(meta::node_of(&after), Some("b"));
    assert_ne!(after.metadata.uid, before.metadata.uid);
    assert_eq!(after.metadata.labels, before.metadata.labels);
    assert_eq!(meta::node_of(&world.pod("once")), Some("a"));
    assert_eq!(meta::node_of(&world.pod("stays")), Some("a"));
    // The name changes hands: watchers see the old pod go before the new one comes.
    let writes: Vec<_> = plan.writes.iter().filter(|write| write.key.ends_with("/always")).collect();
    assert_eq!(writes.len(), 2);
    assert_eq!(writes[0].change, skein_api::write::Change::Delete);
    assert_eq!(writes[1].expect, skein_api::write::Expect::Absent);
}

#[test]
fn a_template_that_names_a_lost_node_is_not_made_anew_without_end() {
    let mut world = World::with_nodes(&["a"]);
    let template = json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "x:1"}]}});
    world.put(deployment("web", 2, json!({"template": template})));
    world.live(|_| {});
    world.lose("a");
    assert_eq!(world.round().rest, None);
    world.settle();
    assert_eq!(world.pods().len(), 2);
    assert!(world.pods().iter().all(|(_, pod)| !meta::is_ready(pod)));
}

#[test]
fn a_pod_that_tolerates_the_loss_of_its_node_is_not_sent_to_a_lost_one() {
    let mut world = World::with_nodes(&["a"]);
    world.lose("a");
    world.settle();
    world.put(bare_pod("p", json!({"tolerations": [{"operator": "Exists"}]})));
    assert_eq!(world.round().rest, None);
    let why = "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }.";
    assert_eq!(world.why_unscheduled("p").as_deref(), Some(why));
}

#[test]
fn pods_that_a_lost_node_was_stopping_are_gone_at_once() {
    let mut world = World::with_nodes(&["a"]);
    let key = world.put(bare_pod("p", json!({})));
    world.live(|_| {});
    let now = world.now;
    world.edit::<Pod>(&key, |pod| pod.metadata.deletion_timestamp = Some(Time(now)));
    world.settle();
    assert!(world.view.stored(&key).is_some(), "its node stops it");
    world.lose("a");
    world.settle();
    assert!(world.view.stored(&key).is_none());
}

#[test]
fn pods_of_a_removed_node_move() {
    let mut world = World::with_nodes(&["a", "b"]);
    world.put(deployment("web", 4, json!({})));
    world.live(|_| {});
    world.delete("core/nodes//a");
    world.verdicts.remove("a");
    world.settle();
    assert_eq!(world.spread().into_iter().collect::<Vec<_>>(), [("b".to_owned(), 4)]);
}

#[test]
fn cordoning_a_node_taints_it_and_uncordoning_takes_the_taint_away() {
    let mut world = World::with_nodes(&["a"]);
    let taints =
        |world: &World| world.node("a").spec.clone().and_then(|spec| spec.taints).unwrap_or_default();
    world.edit::<Node>("core/nodes//a", |node| node.spec.get_or_insert_default().unschedulable = Some(true));
    world.settle();
    assert_eq!(taints(&world)[0].key, "node.kubernetes.io/unschedulable");
    world.edit::<Node>("core/nodes//a", |node| node.spec.get_or_insert_default().unschedulable = None);
    world.settle();
    assert!(taints(&world).is_empty());
}

/// Sets the node's taints, as a user does.
fn taint(world: &mut World, node: &str, taints: Value) {
    world.edit::<Node>(&format!("core/nodes//{node}"), |node| {
        let taints = serde_json::from_value(taints.clone()).expect("taints");
        node.spec.get_or_insert_default().taints = taints;
    });
}

#[test]
fn pods_leave_a_node_whose_taint_they_do_not_tolerate() {
    let mut world = World::with_nodes(&["a", "b"]);
    let tolerating = |seconds: Value| {
        let mut toleration = json!({"key": "repair", "operator": "Exists", "effect": "NoExecute"});
        toleration["tolerationSeconds"] = seconds;
        json!({"nodeSelector": {"kubernetes.io/hostname": "a"}, "tolerations": [toleration]})
    };
    world.put(deployment("web", 4, json!({})));
    world.put(bare_pod("patient", tolerating(json!(60))));
    world.put(bare_pod("loyal", tolerating(Value::Null)));
    world.live(|_| {});
    let ending = |world: &World, name: &str| meta::is_ending(&world.pod(name).metadata);
    taint(&mut world, "a", json!([{"key": "repair", "effect": "NoSchedule"}]));
    world.settle();
    assert_eq!(world.pods().iter().filter(|(_, pod)| meta::is_ending(&pod.metadata)).count(), 0);
    taint(&mut world, "a", json!([{"key": "repair", "effect": "NoExecute"}]));
    let plan = world.round();
    let left = |(_, pod): &&(_, std::sync::Arc<Pod>)| meta::is_ending(&pod.metadata);
    assert_eq!(world.pods().iter().filter(left).count(), 2, "its node stops them in their grace period");
    assert_eq!(world.seconds_until(&plan), Some(60));
    world.live(|_| {});
    assert_eq!(world.spread(), [("a".to_owned(), 2), ("b".to_owned(), 4)].into());
    // Whoever comes later has its time as well.
    world.pass_seconds(50);
    world.put(bare_pod("late", tolerating(json!(60))));
    world.live(|_| {});
    world.pass_seconds(10);
    world.settle();
    assert_eq!(["patient", "late", "loyal"].map(|name| ending(&world, name)), [true, false, false]);
    world.pass_seconds(50);
    world.settle();
    assert_eq!(["late", "loyal"].map(|name| ending(&world, name)), [true, false]);
}

#[test]
fn a_node_that_is_short_of_something_keeps_its_pods_and_takes_no_new_ones() {
    for condition in ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"] {
        a_short_node_keeps_its_pods_and_takes_no_new_ones(condition);
    }
}

fn a_short_node_keeps_its_pods_and_takes_no_new_ones(condition: &str) {
    let mut world = World::with_nodes(&["a", "b"]);
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    let say = |world: &mut World, status: &str| {
        let condition = NodeCondition {
            type_: condition.to_owned(),
            status: status.to_owned(),
            ..NodeCondition::default()
        };
        world.edit::<Node>("core/nodes//a", |node| {
            let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
            conditions.retain(|held| held.type_ != condition.type_);
            conditions.push(condition.clone());
        });
        world.settle();
    };
    say(&mut world, "True");
    world.edit::<Deployment>(WEB, |web| web.spec.replicas = Some(5));
    world.settle();
    assert_eq!(world.spread(), [("a".to_owned(), 1), ("b".to_owned(), 4)].into());
    say(&mut world, "False");
    assert_eq!(world.node("a").spec.clone().and_then(|spec| spec.taints), None);
    world.edit::<Deployment>(WEB, |web| web.spec.replicas = Some(8));
    world.settle();
    assert_eq!(world.spread(), [("a".to_owned(), 4), ("b".to_owned(), 4)].into());
}

#[test]
fn a_node_without_a_verdict_is_left_as_it_is() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 1, json!({})));
    world.live(|_| {});
    world.lose("a");
    world.settle();
    world.verdicts.clear();
    world.pass_seconds(1);
    assert!(world.round().writes.is_empty());
    assert_eq!(ready(&world, "a"), "Unknown");
}

#[test]
fn deleting_a_deployment_takes_its_replica_sets_and_pods_along() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 3, json!({})));
    world.live(|_| {});
    world.delete(WEB);
    world.settle();
    assert!(world.sets().is_empty());
    assert!(world.pods().iter().all(|(_, pod)| meta::is_ending(&pod.metadata)), "their nodes stop them");
    world.live(|_| {});
    assert!(world.pods().is_empty());
}

/// Asks to delete a Deployment with a finalizer of the garbage collector.
fn delete_with(world: &mut World, finalizer: &str) {
    let now = world.now;
    world.edit::<k8s_openapi::api::apps::v1::Deployment>(WEB, |deployment| {
        deployment.metadata.deletion_timestamp = Some(Time(now));
        deployment.metadata.finalizers = Some(vec![finalizer.to_owned()]);
    });
}

#[test]
fn a_foreground_deletion_waits_for_the_last_pod() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    delete_with(&mut world, "foregroundDeletion");
    world.settle();
    assert!(world.view.stored(WEB).is_some());
    assert_eq!(world.sets().len(), 1);
    assert_eq!(world.pods().len(), 2);
    world.live(|_| {});
    assert!(world.pods().is_empty() && world.sets().is_empty() && world.view.stored(WEB).is_none());
}

#[test]
fn an_orphaning_deletion_leaves_everything_but_the_owner() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    delete_with(&mut world, "orphan");
    world.live(|_| {});
    assert!(world.view.stored(WEB).is_none());
    assert_eq!(world.pods().len(), 2);
    assert!(world.sets()[0].metadata.owner_references.is_none());
}

#[test]
fn an_object_stays_as_long_as_one_of_its_owners_does() {
    let mut world = World::new();
    let owner = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": format!("uid-{name}")});
    let config_map = |metadata: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
    for name in ["one", "two"] {
        world.put(config_map(json!({"name": name, "uid": format!("uid-{name}")})));
    }
    let key =
        world.put(config_map(json!({"name": "owned", "ownerReferences": [owner("one"), owner("two")]})));
    world.settle();
    world.delete("core/configmaps/default/one");
    world.settle();
    let owners = world.view.stored(&key).and_then(|held| held.object.metadata().owner_references.clone());
    assert_eq!(owners.map(|owners| owners.len()), Some(1));
    world.delete("core/configmaps/default/two");
    world.settle();
    assert!(world.view.stored(&key).is_none());
}

#[test]
fn a_namespace_ends_when_everything_in_it_has_ended() {
    let mut world = World::with_nodes(&["a"]);
    world.put(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "team"}, "spec": {"finalizers": ["kubernetes"]}}));
    let mut web = deployment("web", 2, json!({}));
    web["metadata"]["namespace"] = json!("team");
    world.put(web);
    world.live(|_| {});
    assert!(world.view.stored("core/configmaps/team/kube-root-ca.crt").is_some());
    let now = world.now;
    world.edit::<Namespace>("core/namespaces//team", |held| {
        held.metadata.deletion_timestamp = Some(Time(now))
    });
    world.settle();
    let phase = world.view.named::<Namespace>("", "team").and_then(|held| held.status.clone()?.phase);
    assert_eq!(phase.as_deref(), Some("Terminating"));
    let left = |world: &World| world.view.keys_in_namespace("team").cloned().collect::<Vec<_>>();
    let pods = left(&world).iter().filter(|key| key.starts_with("core/pods/")).count();
    assert_eq!(pods, 2, "both still stop, and no new one is made");
    for kept in ["core/configmaps/team/kube-root-ca.crt", "core/serviceaccounts/team/default"] {
        assert!(world.view.stored(kept).is_some(), "pods that stop may still need {kept}");
    }
    assert!(world.view.stored("apps/deployments/team/web").is_some());
    world.live(|_| {});
    assert!(world.view.stored("core/namespaces//team").is_none());
    assert_eq!(world.view.keys_in_namespace("team").count(), 0);
}

/// Its finalizer holds the pod, and that holds what else is in the namespace.
#[test]
fn a_pod_that_somebody_holds_keeps_its_namespace_and_what_is_in_it() {
    let mut world = World::with_nodes(&["a"]);
    world.put(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "team"}, "spec": {"finalizers": ["kubernetes"]}}));
    let mut pod = bare_pod("held", json!({}));
    pod["metadata"]["namespace"] = json!("team");
    pod["metadata"]["finalizers"] = json!(["example.com/account"]);
    world.put(pod);
    world.live(|_| {});
    let now = world.now;
    world.edit::<Namespace>("core/namespaces//team", |held| {
        held.metadata.deletion_timestamp = Some(Time(now))
    });
    world.live(|_| {});
    assert!(world.view.stored("core/pods/team/held").is_some());
    assert!(world.view.stored("core/configmaps/team/kube-root-ca.crt").is_some());
    // What its node has given up goes with its last finalizer, as the API does it.
    world.delete("core/pods/team/held");
    world.live(|_| {});
    assert!(world.view.stored("core/namespaces//team").is_none());
}

/// One written by a client with old times was gone before anybody had seen it.
#[test]
fn the_hour_of_an_event_counts_from_its_last_write_whatever_it_says_itself() {
    let mut world = World::new();
    let event = |world: &World, name: &str, last: &str| {
        let now = world.now.to_string();
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "creationTimestamp": now},
            "involvedObject": {}, "lastTimestamp": last, "firstTimestamp": last})
    };
    for (name, last) in [("past", "2001-01-01T00:00:00Z"), ("future", "2099-01-01T00:00:00Z")] {
        let event = event(&world, name, last);
        world.put(event);
    }
    world.settle();
    assert_eq!(world.view.events().len(), 2);
    // A node that has just started knows what the Event says only.
    let mut fresh = crate::view::View::default();
    let bytes = event(&world, "past", "2001-01-01T00:00:00Z").to_string();
    fresh.apply("core/events/default/past", Some(bytes.as_bytes()), 1);
    assert_eq!(fresh.events().get_min().map(|(written, _)| *written), Some(world.now));
    world.pass_seconds(1800);
    // Told once more, with a time that lies back again.
    let mut again = event(&world, "past", "2001-01-01T00:00:00Z");
    again["count"] = json!(2);
    again["metadata"]["creationTimestamp"] =
        json!((world.now - jiff::SignedDuration::from_secs(1800)).to_string());
    world.put(again);
    world.pass_seconds(1801);
    world.settle();
    assert!(world.view.stored("core/events/default/past").is_some());
    assert!(world.view.stored("core/events/default/future").is_none());
    world.pass_seconds(1800);
    world.settle();
    assert_eq!(world.view.events().len(), 0);
}

#[test]
fn events_end_after_an_hour_and_beyond_five_thousand() {
    let mut world = World::new();
    let event = |world: &mut World, n: usize| {
        let now = world.now.to_string();
        world.put(json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": format!("e{n:05}")},
            "involvedObject": {}, "lastTimestamp": now}));
    };
    event(&mut world, 0);
    let plan = world.round();
    assert_eq!(world.seconds_until(&plan), Some(3660));
    world.pass_seconds(1800);
    for n in 1..=5_002 {
        event(&mut world, n);
    }
    world.settle();
    assert_eq!(world.view.events().len(), 5_000);
    assert!(world.view.stored("core/events/default/e00002").is_none());
    world.pass_seconds(3600);
    world.settle();
    assert_eq!(world.view.events().len(), 0);
}

#[test]
fn bytes_that_are_no_object_are_a_fault_and_nothing_else() {
    let mut world = World::with_nodes(&["a"]);
    world.break_object("core/pods/default/odd");
    assert_eq!(world.view.faults().count(), 1);
    assert!(world.pods().is_empty());
    world.delete("core/pods/default/odd");
    world.put(deployment("web", 1, json!({})));
    world.settle();
    assert_eq!(world.pods().len(), 1);
}

/// What users, nodes and fate do.
#[derive(Clone, Debug)]
enum Deed {
    Scale(i32),
    Roll(u8),
    Lose(usize),
    Return(usize),
    Cordon(usize, bool),
    Taint(usize, bool),
    Fail(usize),
    DeletePod(usize),
    BarePod(u8, bool),
    Pause(bool),
    Work,
    Time(i64),
    DeleteAll,
}

const NODES: [&str; 4] = ["a", "b", "c", "d"];

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => (0..8).prop_map(Deed::Scale),
        3 => (0..4_u8).prop_map(Deed::Roll),
        2 => (0..4_usize).prop_map(Deed::Lose),
        2 => (0..4_usize).prop_map(Deed::Return),
        1 => (0..4_usize, any::<bool>()).prop_map(|(node, on)| Deed::Cordon(node, on)),
        1 => (0..4_usize, any::<bool>()).prop_map(|(node, on)| Deed::Taint(node, on)),
        2 => (0..12_usize).prop_map(Deed::Fail),
        2 => (0..12_usize).prop_map(Deed::DeletePod),
        2 => (0..4_u8, any::<bool>()).prop_map(|(name, big)| Deed::BarePod(name, big)),
        1 => any::<bool>().prop_map(Deed::Pause),
        5 => Just(Deed::Work),
        1 => (1..900_i64).prop_map(Deed::Time),
        1 => Just(Deed::DeleteAll),
    ]
}

impl Deed {
    fn happen(self, world: &mut World) {
        let exists = world.view.stored(WEB).is_some();
        let some_pod = |world: &World, n: usize| {
            let pods = world.pods();
            pods.get(n % pods.len().max(1)).map(|(key, _)| key.clone())
        };
        match self {
            Deed::Scale(size) if exists => world.scale(WEB, size),
            Deed::Scale(size) => drop(world.put(deployment("web", size, json!({})))),
            Deed::Roll(image) if exists => world.roll(WEB, &format!("x:{image}")),
            Deed::Roll(_) => {}
            Deed::Lose(node) => world.lose(NODES[node]),
            Deed::Return(node) => {
                world.verdicts.insert(NODES[node].to_owned(), Verdict::Alive);
                world.edit::<Node>(&format!("core/nodes//{}", NODES[node]), |node| {
                    let conditions = node.status.as_mut().and_then(|status| status.conditions.as_mut());
                    for condition in conditions.into_iter().flatten() {
                        condition.status = "True".to_owned();
                    }
                });
            }
            Deed::Cordon(node, on) => world.edit::<Node>(&format!("core/nodes//{}", NODES[node]), |node| {
                node.spec.get_or_insert_default().unschedulable = Some(on);
            }),
            Deed::Taint(node, on) => {
                let taints = on.then(|| json!([{"key": "repair", "effect": "NoExecute"}]));
                taint(world, NODES[node], taints.unwrap_or_default());
            }
            Deed::Fail(n) => {
                if let Some(key) = some_pod(world, n) {
                    world.set_ready(&key, false);
                }
            }
            Deed::DeletePod(n) => {
                if let Some(key) = some_pod(world, n) {
                    world.delete(&key);
                }
            }
            Deed::BarePod(name, big) => {
                let spec = if big { asking("3") } else { json!({}) };
                let name = format!("bare-{name}");
                if world.view.named::<Pod>("default", &name).is_none() {
                    world.put(bare_pod(&name, spec));
                }
            }
            Deed::Pause(on) if exists => {
                world.edit::<k8s_openapi::api::apps::v1::Deployment>(WEB, |held| held.spec.paused = Some(on));
            }
            Deed::Pause(_) => {}
            Deed::Work => world.nodes_work(),
            Deed::Time(seconds) => world.pass_seconds(seconds),
            Deed::DeleteAll if exists => world.delete(WEB),
            Deed::DeleteAll => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// `World::round` checks that both ways of planning agree, that every write finds what it expects, and
    /// that no uid is bound twice; `settle` that the planners come to rest. Here: never too many pods, and
    /// when the deeds are over, just as many as wanted. All of it also when commands are so small that most plans
    /// are cut.
    #[test]
    fn whatever_happens_the_cluster_stays_within_its_bounds_and_comes_to_rest(
        deeds in prop::collection::vec((deed(), any::<bool>()), 1..40),
        limit in prop_oneof![Just(Bounds::LIMIT), (1..30_usize, 500..20_000_usize).prop_map(|(ops, bytes)| Size { bytes, ops })],
    ) {
        let mut world = World::with_nodes(&NODES);
        world.bounds.limit = limit;
        world.put(deployment("web", 3, json!({})));
        world.settle();
        let mut allowed = 4_usize;
        for (deed, rounds) in deeds {
            deed.happen(&mut world);
            // A smaller size does not unmake what a larger one allowed.
            if let Some(held) = world.view.get::<k8s_openapi::api::apps::v1::Deployment>(WEB) {
                let size = usize::try_from(held.spec.replicas.unwrap_or(1)).unwrap_or(0);
                allowed = size + size.div_ceil(4);
            }
            if rounds {
                world.settle();
                let counts = |pod: &Pod| meta::controller(&pod.metadata).is_some() && meta::is_active(pod);
                let owned = world.pods().iter().filter(|(_, pod)| counts(pod)).count();
                prop_assert!(owned <= allowed, "{} pods, {} allowed", owned, allowed);
            }
        }
        for node in 0..NODES.len() {
            Deed::Return(node).happen(&mut world);
            Deed::Cordon(node, false).happen(&mut world);
            Deed::Taint(node, false).happen(&mut world);
        }
        Deed::Pause(false).happen(&mut world);
        world.live(|_| {});
        if let Some(held) = world.view.get::<k8s_openapi::api::apps::v1::Deployment>(WEB) {
            let wanted = held.spec.replicas.unwrap_or(1);
            let status = held.status.clone().unwrap_or_default();
            prop_assert_eq!(status.available_replicas, Some(wanted));
            prop_assert_eq!(status.updated_replicas, Some(wanted));
        } else {
            prop_assert!(world.sets().is_empty());
        }
    }
}

/// A node was Ready a moment before there was a namespace for anything.
#[test]
fn a_cluster_begins_with_all_that_planners_would_make_of_nothing() {
    let (now, mut view) = (World::new().now, View::default());
    for (at, write) in first(now, Chance(7), "pem", "10.43.0.1").into_iter().enumerate() {
        assert_eq!(write.expect, Expect::Absent);
        let Change::Put(bytes) = &write.change else { panic!("nothing is there to be deleted") };
        view.apply(&write.key, Some(bytes), at as u64 + 1);
    }
    assert!(view.named::<Namespace>("", "default").is_some());
    let (verdicts, electorate) = (Default::default(), Default::default());
    let (ca_pem, kubernetes_ip) = ("pem", "10.43.0.1");
    let round =
        Round { now, chance: Chance(8), verdicts: &verdicts, electorate: &electorate, ca_pem, kubernetes_ip };
    let again = plan(&view, &Changed::All, &round, &Bounds::default());
    assert_eq!(again.writes, [], "nothing is left to do");
}
