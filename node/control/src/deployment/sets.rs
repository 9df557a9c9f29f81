//! A Deployment's ReplicaSets: which is the new one, which number each revision has, which may be forgotten.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use skein_api::owner::controller_reference;
use skein_api::pod::{TEMPLATE_HASH_LABEL, template_hash};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{WHO, bounds, wanted};
use crate::draft::Draft;
use crate::meta;
use crate::replicaset::Tally;
use crate::view::{Key, View};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// What describes the Deployment's own manifest and no ReplicaSet of it.
const NOT_COPIED: [&str; 5] =
    ["kubectl.kubernetes.io/last-applied-configuration", REVISION, HISTORY, DESIRED, MAX];

/// One ReplicaSet with its pods counted.
#[derive(Clone)]
pub(super) struct Set {
    pub(super) key: Key,
    pub(super) object: Arc<ReplicaSet>,
    pub(super) tally: Tally,
}

impl Set {
    /// How many pods it is told to have.
    pub(super) fn size(&self) -> i32 {
        self.object.spec.replicas.unwrap_or(1).max(0)
    }

    pub(super) fn name(&self) -> &str {
        meta::name(&self.object.metadata)
    }

    fn revision(&self) -> i64 {
        revision(&self.object.metadata)
    }
}

/// The ReplicaSets of a Deployment: the one of its template, and all others, oldest first.
pub(super) struct Sets {
    pub(super) new: Option<Set>,
    pub(super) old: Vec<Set>,
}

impl Sets {
    pub(super) fn of(draft: &Draft<'_>, deployment: &Deployment) -> Sets {
        let view = draft.view();
        let mut all: Vec<Set> = owned(view, deployment)
            .map(|(key, set)| Set {
                key: key.clone(),
                object: set.clone(),
                tally: draft.replicas_of(set).tally,
            })
            .collect();
        all.sort_by(|a, b| {
            let age = |set: &Set| (meta::created(&set.object.metadata), set.key.clone());
            age(a).cmp(&age(b))
        });
        // Should two have the same template, the older one is the new one, on every node and in every pass.
        let new = all.iter().position(|set| is_made_of(set, &deployment.spec.template));
        let new = new.map(|at| all.remove(at));
        Sets { new, old: all }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().chain(&self.new)
    }

    /// How many pods all of them are told to have.
    pub(super) fn size(&self) -> i32 {
        self.all().map(Set::size).sum()
    }

    pub(super) fn sum(&self, count: fn(&Tally) -> i32) -> i32 {
        self.all().map(|set| count(&set.tally)).sum()
    }
}

fn owned<'v>(
    view: &'v View,
    deployment: &'v Deployment,
) -> impl Iterator<Item = (&'v Key, &'v Arc<ReplicaSet>)> {
    view.controlled_by::<ReplicaSet>(meta::uid(&deployment.metadata))
}

fn is_made_of(set: &Set, template: &PodTemplateSpec) -> bool {
    let alike =
        |held: &PodTemplateSpec| held.spec == template.spec && without_hash(held) == without_hash(template);
    set.object.spec.template.as_ref().is_some_and(alike)
}

fn without_hash(template: &PodTemplateSpec) -> Option<ObjectMeta> {
    let mut metadata = template.metadata.clone();
    if let Some(labels) = metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
        labels.remove(TEMPLATE_HASH_LABEL);
    }
    metadata
}

/// Takes in ReplicaSets that match and have no controller; lets go of owned ones that no longer match.
pub(super) fn adopt_and_release(draft: &mut Draft<'_>, deployment: &Deployment) {
    let uid = meta::uid(&deployment.metadata);
    let strangers = owned(draft.view(), deployment)
        .filter(|(_, set)| !meta::selects(&deployment.spec.selector, set.metadata.labels.as_ref()));
    let strangers: Vec<Key> = strangers.map(|(key, _)| key.clone()).collect();
    for key in strangers {
        draft.edit::<ReplicaSet>(&key, |set| {
            let owners = set.metadata.owner_references.get_or_insert_default();
            owners.retain(|owner| owner.uid != uid);
            if owners.is_empty() {
                set.metadata.owner_references = None;
            }
        });
    }
    let orphans = draft.view().orphans::<ReplicaSet>(meta::namespace(&deployment.metadata));
    let orphans = orphans.filter(|(_, set)| {
        !meta::is_ending(&set.metadata)
            && meta::selects(&deployment.spec.selector, set.metadata.labels.as_ref())
    });
    let orphans: Vec<Key> = orphans.map(|(key, _)| key.clone()).collect();
    for key in orphans {
        draft.edit::<ReplicaSet>(&key, |set| {
            set.metadata
                .owner_references
                .get_or_insert_default()
                .push(controller_reference::<Deployment>(&deployment.metadata));
        });
    }
}

/// Sees to it that the ReplicaSet of the template carries the newest revision number, making one if there is
/// none and `make` says so. A template that was used before gets its old ReplicaSet back: that is a rollback.
pub(super) fn ensure_new(draft: &mut Draft<'_>, key: &Key, deployment: &Deployment, make: bool) {
    let sets = Sets::of(draft, deployment);
    let newest = sets.old.iter().map(Set::revision).max().unwrap_or(0) + 1;
    let revision = match &sets.new {
        Some(new) => {
            let revision = new.revision().max(newest);
            let annotations = annotations(deployment, &new.object.metadata, revision);
            draft.edit::<ReplicaSet>(&new.key, |set| {
                set.metadata.annotations = Some(annotations);
                if set.spec.min_ready_seconds != deployment.spec.min_ready_seconds {
                    set.spec.min_ready_seconds = deployment.spec.min_ready_seconds;
                    raise_generation(&mut set.metadata);
                }
            });
            revision
        }
        None if make && create(draft, key, deployment, &sets, newest) => newest,
        // Or there is no room for it in this command.
        None => return,
    };
    draft.edit::<Deployment>(key, |deployment| {
        deployment
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(REVISION.to_owned(), revision.to_string());
    });
}

/// Makes the ReplicaSet of the template. Whether the plan has it.
fn create(draft: &mut Draft<'_>, key: &Key, deployment: &Deployment, sets: &Sets, revision: i64) -> bool {
    let namespace = meta::namespace(&deployment.metadata);
    let base = meta::name(&deployment.metadata);
    // A name that is taken, by another template with the same hash, moves on to the next.
    let (hash, name) = (0..)
        .map(|collisions| {
            let hash = template_hash(&deployment.spec.template, collisions);
            let name = format!("{base}-{hash}");
            (hash, name)
        })
        .find(|(_, name)| draft.view().named::<ReplicaSet>(namespace, name).is_none())
        .expect("there are more hashes than objects");
    let with_hash = |held: Option<&BTreeMap<String, String>>| {
        let mut labels = held.cloned().unwrap_or_default();
        labels.insert(TEMPLATE_HASH_LABEL.to_owned(), hash.clone());
        labels
    };
    let mut template = deployment.spec.template.clone();
    let metadata = template.metadata.get_or_insert_default();
    let labels = with_hash(metadata.labels.as_ref());
    metadata.labels = Some(labels.clone());
    let selector = LabelSelector {
        match_labels: Some(with_hash(deployment.spec.selector.match_labels.as_ref())),
        match_expressions: deployment.spec.selector.match_expressions.clone(),
    };
    let size = super::rollout::new_size(deployment, 0, sets.size());
    let mut annotations = annotations(deployment, &ObjectMeta::default(), revision);
    note_size(&mut annotations, deployment);
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference::<Deployment>(&deployment.metadata)]),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: deployment.spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    };
    let uid = draft.chance.of(&format!("{}/{name}", meta::uid(&deployment.metadata))).uid();
    let created = draft.together(|draft| {
        draft.create(set, uid);
        if size > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {size}");
            draft.event(deployment, WHO, false, "ScalingReplicaSet", &message);
        }
    });
    if created {
        let message = format!("Created new replica set \"{name}\"");
        super::status::note_progress(draft, key, "NewReplicaSetCreated", &message);
    }
    created
}

/// Sets a ReplicaSet's size, and tells users. Whether the plan has it.
pub(super) fn scale(draft: &mut Draft<'_>, deployment: &Deployment, set: &Set, size: i32) -> bool {
    let held = set.size();
    let mut annotations = annotations(deployment, &set.object.metadata, set.revision());
    note_size(&mut annotations, deployment);
    draft.together(|draft| {
        draft.edit::<ReplicaSet>(&set.key, |object| {
            object.metadata.annotations = Some(annotations);
            if object.spec.replicas != Some(size) {
                object.spec.replicas = Some(size);
                raise_generation(&mut object.metadata);
            }
        });
        if held != size {
            let direction = if size > held { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {} from {held} to {size}", set.name());
            draft.event(deployment, WHO, false, "ScalingReplicaSet", &message);
        }
    })
}

/// Deletes old ReplicaSets beyond `revisionHistoryLimit`, once the rollout is complete.
pub(super) fn forget_old(draft: &mut Draft<'_>, key: &Key) {
    let Some(deployment) = draft.view().get::<Deployment>(key).cloned() else { return };
    let keep = deployment.spec.revision_history_limit.unwrap_or(10);
    if keep == i32::MAX || !super::status::is_complete(&deployment) {
        return;
    }
    let mut idle = Sets::of(draft, &deployment).old;
    idle.retain(|set| set.size() == 0 && set.tally.replicas == 0 && !meta::is_ending(&set.object.metadata));
    idle.sort_by_key(|set| (set.revision(), set.key.clone()));
    let too_many = idle.len().saturating_sub(usize::try_from(keep).unwrap_or(0));
    for set in &idle[..too_many] {
        draft.remove(&set.key);
    }
}

/// The annotations of a ReplicaSet: its own, the Deployment's, and its revision.
fn annotations(deployment: &Deployment, held: &ObjectMeta, new_revision: i64) -> BTreeMap<String, String> {
    let mut annotations = held.annotations.clone().unwrap_or_default();
    let own = deployment.metadata.annotations.iter().flatten();
    annotations.extend(
        own.filter(|(name, _)| !NOT_COPIED.contains(&name.as_str())).map(|(k, v)| (k.clone(), v.clone())),
    );
    let old = revision(held);
    if old > 0 && old != new_revision {
        let history = annotations.entry(HISTORY.to_owned()).or_default();
        if !history.is_empty() {
            history.push(',');
        }
        history.push_str(&old.to_string());
    }
    annotations.insert(REVISION.to_owned(), new_revision.to_string());
    annotations
}

/// Notes the size that a ReplicaSet is scaled for: a later change of it is shared out by these numbers.
fn note_size(annotations: &mut BTreeMap<String, String>, deployment: &Deployment) {
    let size = wanted(deployment);
    annotations.insert(DESIRED.to_owned(), size.to_string());
    annotations.insert(MAX.to_owned(), size.saturating_add(bounds(deployment).0).to_string());
}

/// The size a ReplicaSet's Deployment had when the ReplicaSet was last scaled.
pub(super) fn noted_size(set: &Set) -> Option<i32> {
    meta::annotation(&set.object.metadata, DESIRED)?.parse().ok()
}

/// The most pods its Deployment might have had then.
pub(super) fn noted_max(set: &Set) -> Option<i32> {
    meta::annotation(&set.object.metadata, MAX)?.parse().ok()
}

fn revision(metadata: &ObjectMeta) -> i64 {
    meta::annotation(metadata, REVISION).and_then(|number| number.parse().ok()).unwrap_or(0)
}

pub(super) fn raise_generation(metadata: &mut ObjectMeta) {
    metadata.generation = Some(metadata.generation.unwrap_or(0) + 1);
}
