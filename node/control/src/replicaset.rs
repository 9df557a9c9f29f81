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
use crate::view::{Changed, Key, Kind, View};

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
    let orphans = draft.view().orphans::<Pod>(meta::namespace(&set.metadata));
    let orphans = orphans.filter(|(_, pod)| meta::is_active(pod) && selects(set, pod));
    let orphans: Vec<Key> = orphans.map(|(key, _)| key.clone()).collect();
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
    let replicas = draft.replicas_of(set);
    let wanted = wanted(set);
    if replicas.active.len() < wanted {
        if draft.is_ending_namespace(meta::namespace(&set.metadata)) {
            return;
        }
        create(draft, set, (wanted - replicas.active.len()).min(BURST));
    } else {
        for key in surplus(&replicas.active, wanted) {
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
    let had = draft.view().dependents(uid).count();
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

/// The pods of a ReplicaSet, gone through once.
#[derive(Debug)]
pub(crate) struct Replicas {
    set: Arc<ReplicaSet>,
    pub(crate) tally: Tally,
    /// Those that count.
    active: Vec<(Key, Arc<Pod>)>,
    /// Those that it does not select any more.
    strangers: Vec<Key>,
}

impl Replicas {
    /// Cost: one pass over its pods.
    pub(crate) fn of(view: &View, set: &Arc<ReplicaSet>, now: Timestamp) -> Replicas {
        let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
        let template =
            set.spec.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
        let mut tally = Tally::default();
        let (mut active, mut strangers) = (Vec::new(), Vec::new());
        for (key, pod) in view.pods_controlled_by(meta::uid(&set.metadata)) {
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
            active.push((key.clone(), pod.clone()));
            tally.replicas += 1;
            let labels = pod.metadata.labels.as_ref();
            let has = |key: &String, value: &String| labels.and_then(|labels| labels.get(key)) == Some(value);
            tally.fully_labeled +=
                i32::from(template.into_iter().flatten().all(|(key, value)| has(key, value)));
            tally.ready += i32::from(meta::is_ready(pod));
            match meta::available_from(pod, min_ready) {
                Some(from) if from <= now => tally.available += 1,
                Some(from) => {
                    tally.next_available = Some(tally.next_available.map_or(from, |next| next.min(from)));
                }
                None => {}
            }
        }
        Replicas { set: set.clone(), tally, active, strangers }
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
