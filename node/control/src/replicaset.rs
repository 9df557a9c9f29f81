//! ReplicaSet -> Pod: keeps as many pods as were asked for, no more and no fewer.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use skein_api::owner::controller_reference;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::draft::Draft;
use crate::meta;
use crate::resources::QosClass;
use crate::time::seconds_after;
use crate::view::{Changed, Key, Kind, Siblings, Standing, View};

const WHO: &str = "replicaset-controller";

/// Upstream makes at most this many pods in one go; the next pass goes on.
const BURST: usize = 500;

/// Writes what brings each ReplicaSet that was touched to its number of pods, and its status up to date.
pub(crate) fn plan(draft: &mut Draft<'_>) {
    for key in touched(draft.view(), draft.changed()) {
        if draft.is_full() {
            return;
        }
        let Some(set) = draft.view().get::<ReplicaSet>(&key).cloned() else { continue };
        adopt_and_release(draft, &set);
        if !meta::is_ending(&set.metadata) {
            bring_to_size(draft, &set);
        }
        report(draft, &key);
    }
}

/// ReplicaSets to look at: changed ones, owners of changed pods, and where a pod without a controller
/// changed, all of its namespace.
fn touched(view: &View, changed: &Changed) -> BTreeSet<Key> {
    let (keys, uids) = match changed {
        Changed::All => return view.all::<ReplicaSet>().map(|(key, _)| key.clone()).collect(),
        Changed::Some { keys, uids, .. } => (keys, uids),
    };
    let mut found: BTreeSet<Key> = uids
        .iter()
        .filter_map(|uid| view.key_of_uid(uid))
        .chain(keys)
        .filter(|key| key.starts_with(ReplicaSet::PREFIX))
        .cloned()
        .collect();
    for key in keys.iter().filter(|key| key.starts_with(Pod::PREFIX)) {
        if let Some(pod) = view.get::<Pod>(key)
            && meta::controller(&pod.metadata).is_none()
        {
            let namespace = meta::namespace(&pod.metadata);
            let selecting = view.in_namespace::<ReplicaSet>(namespace);
            found.extend(selecting.filter(|(_, set)| selects(set, pod)).map(|(key, _)| key.clone()));
        }
    }
    found
}

fn selects(set: &ReplicaSet, pod: &Pod) -> bool {
    meta::selects(&set.spec.selector, pod.metadata.labels.as_ref())
}

/// Takes in pods that match and have no controller; lets go of owned ones that no longer match.
fn adopt_and_release(draft: &mut Draft<'_>, set: &Arc<ReplicaSet>) {
    let uid = meta::uid(&set.metadata);
    for key in &draft.replicas_of(set).strangers {
        draft.edit::<Pod>(key, |pod| {
            let owners = pod.metadata.owner_references.get_or_insert_default();
            owners.retain(|owner| owner.uid != uid);
            if owners.is_empty() {
                pod.metadata.owner_references = None;
            }
        });
    }
    if meta::is_ending(&set.metadata) {
        return;
    }
    let orphans = draft.view().orphans_like(meta::namespace(&set.metadata), &set.spec.selector);
    let orphans = orphans.filter(|(_, pod)| meta::is_active(pod)).map(|(key, _)| key.clone());
    let orphans: BTreeSet<Key> = orphans.collect();
    for key in orphans {
        draft.edit::<Pod>(&key, |pod| {
            pod.metadata
                .owner_references
                .get_or_insert_default()
                .push(controller_reference::<ReplicaSet>(&set.metadata));
        });
    }
}

fn bring_to_size(draft: &mut Draft<'_>, set: &Arc<ReplicaSet>) {
    let held = draft.replicas_of(set).tally.replicas as usize;
    let wanted = wanted(set);
    if held < wanted {
        if draft.is_ending_namespace(meta::namespace(&set.metadata)) {
            return;
        }
        create(draft, set, (wanted - held).min(BURST));
    } else if held > wanted {
        for key in surplus(&active(draft.view(), set), wanted) {
            let name = key.rsplit('/').next().unwrap_or_default().to_owned();
            draft.together(|draft| {
                draft.delete_pod(&key);
                draft.event(&**set, WHO, false, "SuccessfulDelete", &format!("Deleted pod: {name}"));
            });
            if draft.is_full() {
                return;
            }
        }
    }
}

pub(crate) fn wanted(set: &ReplicaSet) -> usize {
    usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0)
}

fn create(draft: &mut Draft<'_>, set: &ReplicaSet, count: usize) {
    let uid = meta::uid(&set.metadata);
    // A set that makes pods in two passes of one plan must not draw the same twice.
    let had = draft.view().dependents_count(uid);
    let mut draws = draft.chance.of(&format!("{uid} had {had}"));
    for _ in 0..count {
        let mut pod = pod_of(set);
        let base = pod.metadata.generate_name.clone().unwrap_or_default();
        let namespace = meta::namespace(&set.metadata).to_owned();
        // 27^5 names: the loop ends at the first free one, and nobody has 14 million pods here.
        let name = loop {
            let name = format!("{base}{}", draws.suffix());
            if draft.view().named::<Pod>(&namespace, &name).is_none() {
                break name;
            }
        };
        pod.metadata.name = Some(name.clone());
        let uid = draws.uid();
        let created = draft.together(|draft| {
            draft.create(pod, uid);
            draft.event(set, WHO, false, "SuccessfulCreate", &format!("Created pod: {name}"));
        });
        if !created {
            // No room for it in this command, or in any.
            return;
        }
    }
}

/// A pod as the template wants it, still without name and uid.
fn pod_of(set: &ReplicaSet) -> Pod {
    let template = set.spec.template.clone().unwrap_or_default();
    let given = template.metadata.unwrap_or_default();
    let mut spec = template.spec.unwrap_or_default();
    // What the API adds to a pod that a user creates; templates do not have these.
    let account = spec.service_account_name.get_or_insert_with(|| "default".to_owned()).clone();
    spec.service_account = Some(account);
    spec.enable_service_links.get_or_insert(true);
    spec.priority.get_or_insert(0);
    spec.preemption_policy.get_or_insert_with(|| "PreemptLowerPriority".to_owned());
    let qos_class = QosClass::of(&spec).name().to_owned();
    // Room for the suffix within the 63 characters that a host name has.
    let base: String = meta::name(&set.metadata).chars().take(57).collect();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{base}-")),
            namespace: set.metadata.namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![controller_reference::<ReplicaSet>(&set.metadata)]),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: Some(PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(qos_class),
            ..PodStatus::default()
        }),
    }
}

/// Its pods that count.
fn active(view: &View, set: &ReplicaSet) -> Vec<(Key, Arc<Pod>)> {
    let pods = view.pods_controlled_by(meta::uid(&set.metadata));
    pods.filter(|(_, pod)| meta::is_active(pod)).map(|(key, pod)| (key.clone(), pod.clone())).collect()
}

/// Whom to delete so that `wanted` stay: who serves least goes first, and among equals the newest.
/// Order: ReplicaSet documentation, "Scaling a ReplicaSet".
fn surplus(active: &[(Key, Arc<Pod>)], wanted: usize) -> Vec<Key> {
    let too_many = active.len().saturating_sub(wanted);
    if too_many == 0 {
        return Vec::new();
    }
    let mut neighbours: BTreeMap<String, usize> = BTreeMap::new();
    for (_, pod) in active {
        *neighbours.entry(meta::node_of(pod).unwrap_or_default().to_owned()).or_default() += 1;
    }
    let mut active: Vec<&(Key, Arc<Pod>)> = active.iter().collect();
    active.sort_by_cached_key(|(key, pod)| {
        let node = meta::node_of(pod);
        let phase = match meta::phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let cost = meta::annotation(&pod.metadata, "controller.kubernetes.io/pod-deletion-cost");
        let cost: i32 = cost.and_then(|cost| cost.parse().ok()).unwrap_or(0);
        let ready_since = meta::condition(pod.status.as_ref(), "Ready")
            .filter(|ready| ready.status == "True")
            .and_then(|ready| ready.last_transition_time.as_ref())
            .map_or(Timestamp::MIN, |time| time.0);
        (
            (node.is_some(), phase, meta::is_ready(pod), cost),
            Reverse(neighbours.get(node.unwrap_or_default()).copied()),
            (
                Reverse(ready_since),
                Reverse(restarts(pod)),
                Reverse(meta::created(&pod.metadata)),
                key.clone(),
            ),
        )
    });
    active.into_iter().take(too_many).map(|(key, _)| key.clone()).collect()
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().filter_map(|status| status.container_statuses.as_ref()).flatten();
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}

/// The pods of a ReplicaSet, as they are counted.
#[derive(Debug)]
pub(crate) struct Replicas {
    set: Arc<ReplicaSet>,
    pub(crate) tally: Tally,
    /// Those that it does not select any more.
    strangers: Vec<Key>,
}

impl Replicas {
    /// Cost: the kinds of its pods that differ in what is counted, and those that are ready and not yet available.
    pub(crate) fn of(view: &View, set: &Arc<ReplicaSet>, now: Timestamp) -> Replicas {
        let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
        let template =
            set.spec.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
        let mut tally = Tally::default();
        let mut strangers = Vec::new();
        let siblings = view.siblings(meta::uid(&set.metadata));
        for alike in siblings.into_iter().flat_map(Siblings::kinds) {
            if !meta::selects(&set.spec.selector, alike.labels) {
                strangers.extend(alike.keys().cloned());
            }
            let count = alike.count();
            match alike.standing {
                Standing::Ended => continue,
                Standing::Ending => {
                    tally.terminating += count;
                    continue;
                }
                Standing::Unready | Standing::Ready | Standing::ReadySince => tally.replicas += count,
            }
            let has = |(key, value): (&String, &String)| {
                alike.labels.and_then(|labels| labels.get(key)) == Some(value)
            };
            tally.fully_labeled += if template.into_iter().flatten().all(has) { count } else { 0 };
            if !alike.standing.is_ready() {
                continue;
            }
            tally.ready += count;
            if min_ready <= 0 {
                tally.available += count;
            } else if alike.standing == Standing::ReadySince {
                let (waiting, first) = alike.ready_after(seconds_after(now, -i64::from(min_ready)));
                tally.available += count - waiting;
                let next = first.map(|first| seconds_after(first, i64::from(min_ready)));
                tally.next_available = tally.next_available.into_iter().chain(next).min();
            }
        }
        strangers.sort();
        Replicas { set: set.clone(), tally, strangers }
    }

    /// Whether a look at the same pods for `set` would find the same.
    pub(crate) fn are_of(&self, set: &Arc<ReplicaSet>) -> bool {
        Arc::ptr_eq(&self.set, set) || self.set.metadata.uid == set.metadata.uid && self.set.spec == set.spec
    }
}

/// How many pods a ReplicaSet has, counted from the pods themselves: a status in the map may be older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    pub(crate) terminating: i32,
    /// When the next ready pod becomes available.
    pub(crate) next_available: Option<Timestamp>,
}

fn report(draft: &mut Draft<'_>, key: &Key) {
    let Some(set) = draft.view().get::<ReplicaSet>(key) else { return };
    let tally = draft.replicas_of(set).tally;
    if let Some(at) = tally.next_available {
        draft.wake(key, at);
    }
    draft.edit::<ReplicaSet>(key, |set| {
        let conditions = set.status.as_ref().and_then(|status| status.conditions.clone());
        set.status = Some(ReplicaSetStatus {
            replicas: tally.replicas,
            fully_labeled_replicas: Some(tally.fully_labeled),
            ready_replicas: Some(tally.ready),
            available_replicas: Some(tally.available),
            terminating_replicas: Some(tally.terminating),
            observed_generation: set.metadata.generation,
            conditions,
        });
    });
}

/// A moment as objects carry it.
pub(crate) fn stamp(now: Timestamp) -> Option<Time> {
    Some(Time(now))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2023-11-14T22:13:30Z";

    /// What [`Replicas::of`] finds, by looking at each pod.
    fn walk(view: &View, set: &ReplicaSet, now: Timestamp) -> (Tally, Vec<Key>) {
        let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
        let template = set.spec.template.as_ref().and_then(|template| template.metadata.as_ref());
        let template = template.and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
        let (mut tally, mut strangers) = (Tally::default(), Vec::new());
        let is_ours = |pod: &Pod| {
            meta::controller(&pod.metadata).map(|owner| &*owner.uid) == set.metadata.uid.as_deref()
        };
        for (key, pod) in view.all::<Pod>().filter(|(_, pod)| is_ours(pod)) {
            if !selects(set, pod) {
                strangers.push(key.clone());
            }
            if meta::has_ended(pod) {
                continue;
            }
            if meta::is_ending(&pod.metadata) {
                tally.terminating += 1;
                continue;
            }
            tally.replicas += 1;
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            tally.fully_labeled +=
                i32::from(template.iter().all(|(key, value)| labels.get(key) == Some(value)));
            tally.ready += i32::from(meta::is_ready(pod));
            match available_from(pod, min_ready) {
                Some(from) if from <= now => tally.available += 1,
                Some(from) => {
                    tally.next_available = Some(tally.next_available.map_or(from, |next| next.min(from)));
                }
                None => {}
            }
        }
        (tally, strangers)
    }

    /// The moment from which a pod counts as available (ready for `min_ready_seconds`), if it is ready.
    fn available_from(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
        let ready = meta::condition(pod.status.as_ref(), "Ready").filter(|ready| ready.status == "True")?;
        if min_ready_seconds <= 0 {
            return Some(Timestamp::MIN);
        }
        let since = ready.last_transition_time.as_ref()?.0;
        Some(seconds_after(since, i64::from(min_ready_seconds)))
    }

    /// A pod without a name.
    fn pod() -> impl Strategy<Value = Value> {
        let owner = prop_oneof![4 => Just(json!("set")), 1 => Just(json!("other")), 1 => Just(Value::Null)];
        let labels = (prop::bool::weighted(0.8), any::<bool>());
        let phase = prop_oneof![6 => Just("Running"), 1 => Just("Failed")];
        let ready = (any::<bool>(), prop::option::weighted(0.9, 20..32_u8));
        (owner, labels, (phase, prop::bool::weighted(0.1)), ready, prop::option::of(0..3_u8)).prop_map(
            |(owner, (selected, full), (phase, ending), (ready, since), node)| {
                let owner = (owner != Value::Null).then(|| {
                    json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}])
                });
                let mut labels = json!({"app": if selected { "web" } else { "old" }});
                if full {
                    labels["tier"] = "front".into();
                }
                let condition = json!({
                    "type": "Ready", "status": if ready { "True" } else { "False" },
                    "lastTransitionTime": since.map(|since| format!("2023-11-14T22:13:{since}Z")),
                });
                json!({
                    "metadata": {
                        "namespace": "default", "labels": labels, "ownerReferences": owner,
                        "deletionTimestamp": ending.then_some(NOW),
                    },
                    "spec": {"containers": [], "nodeName": node.map(|node| format!("n{node}"))},
                    "status": {"phase": phase, "conditions": [condition]},
                })
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Pods come, change in all that is counted, and go: no count may keep what has gone.
        #[test]
        fn replicas_counted_while_they_come_and_go_are_those_that_a_look_at_every_pod_finds(
            deeds in prop::collection::vec((prop::option::weighted(0.85, pod()), 0..8_u8), 1..40),
            min_ready in prop::sample::select(vec![0, 1, 5]),
        ) {
            let set = json!({
                "metadata": {"namespace": "default", "name": "set", "uid": "set"},
                "spec": {
                    "minReadySeconds": min_ready, "selector": {"matchLabels": {"app": "web"}},
                    "template": {"metadata": {"labels": {"app": "web", "tier": "front"}}},
                },
            });
            let set: Arc<ReplicaSet> = Arc::new(serde_json::from_value(set).expect("a ReplicaSet"));
            let now = NOW.parse().expect("a time");
            let mut view = View::default();
            for (pod, at) in deeds {
                let key = format!("core/pods/default/p{at}");
                let bytes = pod.map(|mut pod| {
                    pod["metadata"]["name"] = format!("p{at}").into();
                    pod.to_string()
                });
                view.apply(&key, bytes.as_ref().map(String::as_bytes), 1);
                let found = Replicas::of(&view, &set, now);
                prop_assert_eq!((found.tally, found.strangers), walk(&view, &set, now));
                let orphans: BTreeSet<&Key> =
                    view.orphans_like("default", &set.spec.selector).map(|(key, _)| key).collect();
                let without = view.all::<Pod>().filter(|(_, pod)| meta::controller(&pod.metadata).is_none());
                let without = without.filter(|(_, pod)| selects(&set, pod)).map(|(key, _)| key);
                prop_assert_eq!(orphans, without.collect());
                let mut on: BTreeMap<&str, usize> = BTreeMap::new();
                let active = view.pods_controlled_by("set").filter(|(_, pod)| meta::is_active(pod));
                active.filter_map(|(_, pod)| meta::node_of(pod)).for_each(|node| *on.entry(node).or_default() += 1);
                let counted = view.siblings("set").into_iter().flat_map(Siblings::on);
                prop_assert_eq!(counted.map(|(node, count)| (&**node, count)).collect::<BTreeMap<_, _>>(), on);
                let dependents = view.all::<Pod>().filter(|(_, pod)| {
                    meta::controller(&pod.metadata).is_some_and(|owner| owner.uid == "set")
                });
                prop_assert_eq!(view.dependents_count("set"), dependents.count());
            }
        }
    }
}
