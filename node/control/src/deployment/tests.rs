use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use super::{bounds, wanted};
use crate::meta;
use crate::world::{World, deployment};

const WEB: &str = "apps/deployments/default/web";

/// What `kubectl rollout status` and `kubectl get deployment` read.
fn numbers(world: &World) -> (i32, i32, i32, i32) {
    let status = world.deployment("web").status.clone().unwrap_or_default();
    let number = |held: Option<i32>| held.unwrap_or(0);
    (
        number(status.replicas),
        number(status.updated_replicas),
        number(status.ready_replicas),
        number(status.available_replicas),
    )
}

fn condition(world: &World, kind: &str) -> String {
    let status = world.deployment("web").status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition.type_.as_deref() == Some(kind));
    found.map_or("none".to_owned(), |held| {
        format!("{} {}", held.status.unwrap_or_default(), held.reason.unwrap_or_default())
    })
}

fn revision(world: &World) -> Option<String> {
    let deployment = world.deployment("web");
    meta::annotation(&deployment.metadata, super::sets::REVISION).map(str::to_owned)
}

#[test]
fn a_manifest_becomes_bound_pods_in_one_round() {
    let mut world = World::with_nodes(&["a", "b"]);
    world.put(deployment("web", 4, json!({})));
    let plan = world.round();
    assert_eq!(plan.rest, None);
    assert_eq!(world.spread().into_values().collect::<Vec<_>>(), [2, 2]);
    assert_eq!(numbers(&world), (4, 4, 0, 0));
    assert_eq!(condition(&world, "Available"), "False MinimumReplicasUnavailable");
    // Each pod is written once, already bound.
    let pods = plan.writes.iter().filter(|write| write.key.starts_with("core/pods/"));
    assert_eq!(pods.count(), 4);
    world.live(|_| {});
    assert_eq!(numbers(&world), (4, 4, 4, 4));
    assert_eq!(condition(&world, "Available"), "True MinimumReplicasAvailable");
    assert_eq!(condition(&world, "Progressing"), "True NewReplicaSetAvailable");
    assert_eq!(revision(&world).as_deref(), Some("1"));
}

#[test]
fn pods_and_replica_sets_carry_the_template_s_hash() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 1, json!({})));
    world.settle();
    let set = &world.sets()[0];
    let hash = set.metadata.labels.as_ref().expect("labels")["pod-template-hash"].clone();
    assert_eq!(meta::name(&set.metadata), format!("web-{hash}"));
    let (_, pod) = &world.pods()[0];
    assert_eq!(pod.metadata.labels.as_ref().expect("labels")["pod-template-hash"], hash);
    assert!(meta::name(&pod.metadata).starts_with(&format!("web-{hash}-")));
    let owner = meta::controller(&pod.metadata).expect("an owner");
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("ReplicaSet", meta::uid(&set.metadata)));
}

#[test]
fn a_rolling_update_keeps_within_its_bounds_at_every_step() {
    for (surge, unavailable) in
        [(json!(1), json!(0)), (json!(0), json!(1)), (json!("25%"), json!("25%")), (json!(3), json!(2))]
    {
        let mut world = World::with_nodes(&["a", "b", "c"]);
        let bounds_wanted = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        let strategy = json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": bounds_wanted}});
        world.put(deployment("web", 6, strategy));
        world.live(|_| {});
        world.roll(WEB, "x:2");
        world.live(|world| {
            let deployment = world.deployment("web");
            let (surge, unavailable) = bounds(&deployment);
            let wanted = wanted(&deployment);
            let active: Vec<_> = world.pods().into_iter().filter(|(_, pod)| meta::is_active(pod)).collect();
            let ready = active.iter().filter(|(_, pod)| meta::is_ready(pod)).count() as i32;
            assert!(active.len() as i32 <= wanted + surge, "{} pods", active.len());
            assert!(ready >= wanted - unavailable, "{ready} ready");
        });
        assert_eq!(world.images().into_iter().collect::<Vec<_>>(), ["x:2"]);
        assert_eq!(numbers(&world), (6, 6, 6, 6));
        assert_eq!(revision(&world).as_deref(), Some("2"));
    }
}

#[test]
fn recreate_lets_all_old_pods_go_before_the_first_new_one_comes() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 3, json!({"strategy": {"type": "Recreate"}})));
    world.live(|_| {});
    world.roll(WEB, "x:2");
    world.live(|world| {
        let mut images: Vec<_> = world
            .pods()
            .iter()
            .filter_map(|(_, pod)| pod.spec.as_ref()?.containers[0].image.clone())
            .collect();
        images.dedup();
        images.sort();
        images.dedup();
        assert!(images.len() <= 1, "{images:?}");
    });
    assert_eq!(world.images().into_iter().collect::<Vec<_>>(), ["x:2"]);
    assert_eq!(numbers(&world), (3, 3, 3, 3));
}

#[test]
fn undoing_a_rollout_takes_the_old_replica_set_back_under_a_new_revision() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    world.roll(WEB, "x:2");
    world.live(|_| {});
    world.roll(WEB, "x:1");
    world.live(|_| {});
    assert_eq!(world.sets().len(), 2);
    assert_eq!(revision(&world).as_deref(), Some("3"));
    assert_eq!(world.images().into_iter().collect::<Vec<_>>(), ["x:1"]);
    let annotations: Vec<_> =
        world.sets().iter().filter_map(|set| set.metadata.annotations.clone()).collect();
    assert!(
        annotations
            .iter()
            .any(
                |held| held.get("deployment.kubernetes.io/revision-history").map(String::as_str) == Some("1")
            )
    );
}

#[test]
fn scaling_makes_and_deletes_pods_without_a_new_revision() {
    let mut world = World::with_nodes(&["a", "b"]);
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    for size in [5, 1, 0, 3] {
        world.scale(WEB, size);
        world.live(|_| {});
        assert_eq!(numbers(&world), (size, size, size, size));
        assert_eq!(world.pods().len() as i32, size);
    }
    assert_eq!(revision(&world).as_deref(), Some("1"));
    let observed = world.deployment("web").status.as_ref().and_then(|status| status.observed_generation);
    assert_eq!(observed, world.deployment("web").metadata.generation);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    world.edit::<Deployment>(WEB, |deployment| deployment.spec.paused = Some(true));
    world.roll(WEB, "x:2");
    world.scale(WEB, 4);
    world.live(|_| {});
    assert_eq!(world.images().into_iter().collect::<Vec<_>>(), ["x:1"]);
    assert_eq!(world.pods().len(), 4);
    assert_eq!(condition(&world, "Progressing"), "Unknown DeploymentPaused");
    world.edit::<Deployment>(WEB, |deployment| deployment.spec.paused = None);
    world.live(|_| {});
    assert_eq!(world.images().into_iter().collect::<Vec<_>>(), ["x:2"]);
}

#[test]
fn a_rollout_that_does_not_move_misses_its_deadline() {
    let mut world = World::new();
    world.put(deployment("web", 1, json!({"progressDeadlineSeconds": 30})));
    let plan = world.round();
    world.settle();
    assert_eq!(world.seconds_until(&plan), Some(31), "the deadline is watched");
    world.pass_seconds(31);
    world.settle();
    assert_eq!(condition(&world, "Progressing"), "False ProgressDeadlineExceeded");
    // A node comes: the rollout moves again.
    world.add_node("a");
    world.live(|_| {});
    assert_eq!(condition(&world, "Progressing"), "True NewReplicaSetAvailable");
}

#[test]
fn old_replica_sets_are_forgotten_beyond_the_limit() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 1, json!({"revisionHistoryLimit": 2})));
    for n in 1..6 {
        world.roll(WEB, &format!("x:{n}"));
        world.live(|_| {});
    }
    assert_eq!(world.sets().len(), 3);
    assert_eq!(revision(&world).as_deref(), Some("5"));
}

#[test]
fn resizing_in_the_middle_of_a_rollout_shares_by_proportion() {
    let mut world = World::with_nodes(&["a"]);
    let strategy = json!({"strategy": {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}});
    world.put(deployment("web", 10, strategy));
    world.live(|_| {});
    world.roll(WEB, "x:2");
    // The new pods never become ready.
    world.settle();
    let sizes = |world: &World| {
        let mut sizes: Vec<i32> = world.sets().iter().map(|set| set.spec.replicas.unwrap_or(0)).collect();
        sizes.sort_unstable();
        sizes
    };
    assert_eq!(sizes(&world), [5, 8]);
    world.scale(WEB, 15);
    world.settle();
    // The example of the Deployment documentation, "Proportional scaling": 18 pods, most to the larger set.
    assert_eq!(sizes(&world).iter().sum::<i32>(), 18);
    assert_eq!(sizes(&world), [7, 11]);
}

#[test]
fn pods_count_as_available_only_after_min_ready_seconds() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 1, json!({"minReadySeconds": 10})));
    world.settle();
    world.nodes_work();
    let plan = world.round();
    assert_eq!(numbers(&world), (1, 1, 1, 0));
    assert_eq!(world.seconds_until(&plan), Some(10));
    world.pass_seconds(10);
    world.settle();
    assert_eq!(numbers(&world), (1, 1, 1, 1));
}

#[test]
fn an_old_replica_set_of_the_same_template_is_adopted() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    // Deleted with --cascade=orphan, then applied again.
    let set = format!("apps/replicasets/default/{}", meta::name(&world.sets()[0].metadata));
    world.edit::<k8s_openapi::api::apps::v1::ReplicaSet>(&set, |set| set.metadata.owner_references = None);
    world.delete(WEB);
    world.settle();
    let before: Vec<_> = world.pods().into_iter().map(|(key, _)| key).collect();
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    let after: Vec<_> = world.pods().into_iter().map(|(key, _)| key).collect();
    assert_eq!(before, after);
    assert_eq!(world.sets().len(), 1);
}

#[test]
fn a_replica_set_that_no_longer_matches_is_let_go_and_replaced() {
    let mut world = World::with_nodes(&["a"]);
    world.put(deployment("web", 2, json!({})));
    world.live(|_| {});
    let name = meta::name(&world.sets()[0].metadata).to_owned();
    let key = format!("apps/replicasets/default/{name}");
    world.edit::<k8s_openapi::api::apps::v1::ReplicaSet>(&key, |set| {
        set.metadata.labels = Some([("app".to_owned(), "mine".to_owned())].into());
    });
    world.live(|_| {});
    let sets = world.sets();
    assert_eq!(sets.len(), 2);
    let old = sets.iter().find(|set| meta::name(&set.metadata) == name).expect("it goes on by itself");
    assert!(old.metadata.owner_references.is_none());
    assert_eq!(numbers(&world), (2, 2, 2, 2), "the deployment has pods of its own again");
    assert_eq!(world.pods().len(), 4);
}

#[test]
fn shares_round_up_for_surplus_and_down_for_gaps_and_are_never_both_nothing() {
    fn check(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value, expect: (i32, i32)) {
        let strategy =
            json!({"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}});
        let deployment: Deployment =
            serde_json::from_value(deployment("web", replicas, strategy)).expect("a deployment");
        assert_eq!(bounds(&deployment), expect);
    }
    check(10, json!("25%"), json!("25%"), (3, 2));
    check(1, json!("25%"), json!("25%"), (1, 0));
    check(4, json!(0), json!("10%"), (0, 1));
    check(4, json!(0), json!(0), (0, 1));
    check(0, json!("50%"), json!("50%"), (0, 0));
    check(3, json!("100%"), json!(9), (3, 3));
}
