//! What goes because its owner or its time has gone.
//!
//! Owners are known by uid. Deleting an owner takes its dependents along (background), or waits for them
//! (finalizer `foregroundDeletion`), or lets them go (finalizer `orphan`).

use k8s_openapi::api::core::v1::{Namespace, Pod};
use std::collections::BTreeSet;

use crate::draft::{Draft, edit_metadata};
use crate::meta;
use crate::time::seconds_after;
use crate::view::{Changed, Key, Kind, Uid, View};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// An Event is kept this long after it was last written.
const EVENT_SECONDS: i64 = 3600;
/// And no more than so many of them.
const EVENTS_MAX: usize = 5_000;
/// Old Events go in batches rather than one by one.
const EVENT_BATCH_SECONDS: i64 = 60;

/// Writes the end of whatever has no owner any more, finishes deletions that wait for it, and expires Events.
pub(crate) fn plan(draft: &mut Draft<'_>) {
    let mut work = touched(draft.view(), draft.changed());
    // What goes takes along what it owned, down to the last generation in one pass.
    while !work.is_empty() {
        draft.take_fresh();
        for key in &work {
            if draft.is_full() {
                return;
            }
            drop_lost_owners(draft, key);
            finish_deletion(draft, key);
        }
        let fresh = draft.take_fresh();
        work = touched(draft.view(), &fresh);
    }
    expire_events(draft);
}

/// Changed objects, their owners, and the dependents of owners that are gone or wait for them: what depends on an owner
/// that stays is none of ours.
fn touched(view: &View, changed: &Changed) -> BTreeSet<Key> {
    let (keys, uids) = match changed {
        Changed::All => return view.keys().filter(|key| matters(view, key)).cloned().collect(),
        Changed::Some { keys, uids, .. } => (keys, uids),
    };
    let left = |uid: &&Uid| view.key_of_uid(uid).is_none() || owner_waits(view, uid);
    let left = uids.iter().filter(left).flat_map(|uid| view.dependents(uid));
    let owners = uids.iter().filter_map(|uid| view.key_of_uid(uid));
    left.chain(owners).chain(keys).filter(|key| matters(view, key)).cloned().collect()
}

fn matters(view: &View, key: &Key) -> bool {
    view.stored(key).is_some_and(|stored| {
        let metadata = stored.object.metadata();
        meta::is_ending(metadata) || metadata.owner_references.iter().flatten().next().is_some()
    })
}

/// Takes away references to owners that are gone; an object that had no other is removed.
fn drop_lost_owners(draft: &mut Draft<'_>, key: &Key) {
    let Some(stored) = draft.view().stored(key) else { return };
    let metadata = stored.object.metadata();
    let owners: Vec<&str> =
        metadata.owner_references.iter().flatten().map(|owner| owner.uid.as_str()).collect();
    let lost: BTreeSet<String> = owners
        .iter()
        .filter(|uid| draft.view().key_of_uid(uid).is_none())
        .map(|uid| (*uid).to_owned())
        .collect();
    // An owner that waits for its dependents holds nobody back.
    let waiting: BTreeSet<String> =
        owners.iter().filter(|uid| owner_waits(draft.view(), uid)).map(|uid| (*uid).to_owned()).collect();
    let solid = owners.iter().filter(|uid| !lost.contains(**uid) && !waiting.contains(**uid)).count();
    if owners.is_empty() || lost.is_empty() && waiting.is_empty() {
        return;
    }
    if solid > 0 {
        let mut object = stored.object.clone();
        edit_metadata(&mut object, |metadata| {
            let owners = metadata.owner_references.get_or_insert_default();
            owners.retain(|owner| !lost.contains(&owner.uid) && !waiting.contains(&owner.uid));
        });
        draft.put(key.clone(), object);
    } else if key.starts_with(Pod::PREFIX) {
        draft.delete_pod(key);
    } else if !meta::is_ending(metadata) {
        let has_dependents = draft.view().dependents(meta::uid(metadata)).next().is_some();
        let mut object = stored.object.clone();
        // Its owner waits for it, so it waits for its own.
        let waits = !waiting.is_empty() && has_dependents && !meta::has_finalizer(metadata, FOREGROUND);
        draft.together(|draft| {
            if waits {
                edit_metadata(&mut object, |metadata| {
                    metadata.finalizers.get_or_insert_default().push(FOREGROUND.to_owned());
                });
                draft.put(key.clone(), object);
            }
            draft.remove(key);
        });
    }
}

fn owner_waits(view: &View, uid: &str) -> bool {
    let owner = view.key_of_uid(uid).and_then(|key| view.stored(key));
    owner.is_some_and(|owner| {
        let metadata = owner.object.metadata();
        meta::is_ending(metadata) && meta::has_finalizer(metadata, FOREGROUND)
    })
}

/// Does what an ending object's finalizers of ours ask for, and removes it when none is left.
fn finish_deletion(draft: &mut Draft<'_>, key: &Key) {
    let Some(stored) = draft.view().stored(key) else { return };
    let metadata = stored.object.metadata();
    if !meta::is_ending(metadata) {
        return;
    }
    let uid = meta::uid(metadata).to_owned();
    if meta::has_finalizer(metadata, ORPHAN) {
        if release_dependents(draft, &uid) {
            drop_finalizer(draft, key, ORPHAN);
        }
        return;
    }
    if meta::has_finalizer(metadata, FOREGROUND) {
        let blocks = |dependent: &Key| {
            let stored = draft.view().stored(dependent);
            let owners = stored.and_then(|stored| stored.object.metadata().owner_references.as_ref());
            owners
                .into_iter()
                .flatten()
                .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
        };
        if !draft.view().dependents(&uid).any(blocks) {
            drop_finalizer(draft, key, FOREGROUND);
        }
        return;
    }
    let held = metadata.finalizers.iter().flatten().next().is_some();
    if !held && !waits_for_its_node(draft.view(), key) && !key.starts_with(Namespace::PREFIX) {
        draft.delete(key);
    }
}

/// A bound pod ends when its node says that nothing of it runs any more.
fn waits_for_its_node(view: &View, key: &str) -> bool {
    view.get::<Pod>(key).is_some_and(|pod| meta::node_of(pod).is_some())
}

/// Whether all of them are released.
fn release_dependents(draft: &mut Draft<'_>, uid: &str) -> bool {
    let dependents: Vec<Key> = draft.view().dependents(uid).cloned().collect();
    for key in dependents {
        let Some(stored) = draft.view().stored(&key) else { continue };
        let mut object = stored.object.clone();
        edit_metadata(&mut object, |metadata| {
            let owners = metadata.owner_references.get_or_insert_default();
            owners.retain(|owner| owner.uid != uid);
            if owners.is_empty() {
                metadata.owner_references = None;
            }
        });
        draft.put(key, object);
    }
    draft.view().dependents(uid).next().is_none()
}

fn drop_finalizer(draft: &mut Draft<'_>, key: &Key, finalizer: &str) {
    let Some(stored) = draft.view().stored(key) else { return };
    let mut object = stored.object.clone();
    edit_metadata(&mut object, |metadata| {
        let finalizers = metadata.finalizers.get_or_insert_default();
        finalizers.retain(|held| held != finalizer);
        if finalizers.is_empty() {
            metadata.finalizers = None;
        }
    });
    let free = object.metadata().finalizers.is_none();
    if free && !waits_for_its_node(draft.view(), key) && !key.starts_with(Namespace::PREFIX) {
        draft.delete(key);
    } else {
        draft.put(key.clone(), object);
    }
}

fn expire_events(draft: &mut Draft<'_>) {
    let events = draft.view().events();
    let too_many = events.len().saturating_sub(EVENTS_MAX);
    let too_old = seconds_after(draft.now, -EVENT_SECONDS);
    let due = |(at, (last, _)): &(usize, &(jiff::Timestamp, Key))| *at < too_many || *last <= too_old;
    let due: Vec<Key> = events.iter().enumerate().take_while(due).map(|(_, (_, key))| key.clone()).collect();
    for key in due {
        draft.delete(&key);
        if draft.is_full() {
            return;
        }
    }
    if let Some((last, oldest)) = draft.view().events().get_min().cloned() {
        draft.wake(&oldest, seconds_after(last, EVENT_SECONDS + EVENT_BATCH_SECONDS));
    }
}
