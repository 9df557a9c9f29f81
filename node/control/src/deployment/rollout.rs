//! One step of a rollout: which ReplicaSet gets how many pods now.
//!
//! Numbers come from the pods themselves, so a step never rests on a status that is out of date.

use k8s_openapi::api::apps::v1::Deployment;
use std::cmp::Reverse;

use super::sets::{self, Set, Sets, ensure_new, noted_max, noted_size, scale};
use super::{bounds, recreates, wanted};
use crate::draft::Draft;
use crate::meta;
use crate::view::Key;

/// Goes as far as availability and `maxSurge` allow.
pub(super) fn advance(draft: &mut Draft<'_>, key: &Key) {
    let Some(deployment) = draft.view().get::<Deployment>(key).cloned() else { return };
    let paused = deployment.spec.paused == Some(true);
    let sets = Sets::of(draft, &deployment);
    if paused || was_resized(&deployment, &sets) {
        ensure_new(draft, key, &deployment, false);
        let sets = Sets::of(draft, &deployment);
        rescale(draft, &deployment, &sets);
        if paused {
            return;
        }
    }
    if recreates(&deployment) {
        recreate(draft, key, &deployment);
    } else {
        roll(draft, key, &deployment);
    }
}

/// How large the new ReplicaSet should be now, if it is `held` large and all together have `total` pods.
pub(super) fn new_size(deployment: &Deployment, held: i32, total: i32) -> i32 {
    let wanted = wanted(deployment);
    if recreates(deployment) || held >= wanted {
        return wanted;
    }
    let room = wanted.saturating_add(bounds(deployment).0).saturating_sub(total);
    held + room.clamp(0, wanted - held)
}

/// True if the Deployment's size is not the one that its active ReplicaSets were last scaled for.
fn was_resized(deployment: &Deployment, sets: &Sets) -> bool {
    let size = wanted(deployment);
    sets.all().filter(|set| set.size() > 0).any(|set| noted_size(set).is_some_and(|noted| noted != size))
}

/// All old pods first, then the new ones: a node that still stops an old pod holds the new ones back.
fn recreate(draft: &mut Draft<'_>, key: &Key, deployment: &Deployment) {
    let sets = Sets::of(draft, deployment);
    for set in sets.old.iter().filter(|set| set.size() > 0) {
        if !scale(draft, deployment, set, 0) {
            // It would go on making old pods beside the new ones.
            return;
        }
    }
    let old_pods_live = sets.old.iter().any(|set| {
        let uid = meta::uid(&set.object.metadata);
        draft.view().pods_controlled_by(uid).any(|(_, pod)| !meta::has_ended(pod))
    });
    if old_pods_live {
        ensure_new(draft, key, deployment, false);
        return;
    }
    ensure_new(draft, key, deployment, true);
    if let Some(new) = Sets::of(draft, deployment).new
        && new.size() != wanted(deployment)
    {
        scale(draft, deployment, &new, wanted(deployment));
    }
}

fn roll(draft: &mut Draft<'_>, key: &Key, deployment: &Deployment) {
    ensure_new(draft, key, deployment, true);
    let sets = Sets::of(draft, deployment);
    let Some(new) = &sets.new else { return };
    let size = new_size(deployment, new.size(), sets.size());
    if size != new.size() {
        scale(draft, deployment, new, size);
    }
    shrink_old(draft, deployment);
}

/// Takes pods from old ReplicaSets as long as enough stay available: first those that serve nobody anyway.
fn shrink_old(draft: &mut Draft<'_>, deployment: &Deployment) {
    let sets = Sets::of(draft, deployment);
    let Some(new) = &sets.new else { return };
    let least = wanted(deployment) - bounds(deployment).1;
    let new_not_available = (new.size() - new.tally.available).max(0);
    let mut spare = sets.size() - least - new_not_available;
    let mut sizes: Vec<(Set, i32)> = sets.old.iter().map(|set| (set.clone(), set.size())).collect();
    for (set, size) in &mut sizes {
        let idle = (*size - set.tally.available).min(spare).max(0);
        *size -= idle;
        spare -= idle;
    }
    // What is left of the old ones may go only for as many as are available beyond the least.
    let mut spare = sets.sum(|tally| tally.available) - least;
    for (set, size) in &mut sizes {
        let taken = (*size).min(spare).max(0);
        // Of those, some may have gone above already; the rest of the pods are the available ones.
        let available = set.tally.available.min(*size);
        let taken = taken.min(available);
        *size -= taken;
        spare -= taken;
    }
    for (set, size) in sizes.into_iter().filter(|(set, size)| set.size() != *size) {
        scale(draft, deployment, &set, size);
    }
}

/// Brings a resized Deployment's ReplicaSets to the new size, each in proportion to what it had: a rollout
/// that is under way, or paused, keeps its mix.
fn rescale(draft: &mut Draft<'_>, deployment: &Deployment, sets: &Sets) {
    let size = wanted(deployment);
    let active: Vec<&Set> = sets.all().filter(|set| set.size() > 0).collect();
    if let [only] = active[..] {
        scale(draft, deployment, only, size);
        return;
    }
    if active.is_empty() {
        if let Some(latest) = sets.new.as_ref().or(sets.old.last()) {
            scale(draft, deployment, latest, size);
        }
        return;
    }
    let saturated =
        |set: &Set| set.size() == size && noted_size(set) == Some(size) && set.tally.available == size;
    if sets.new.as_ref().is_some_and(saturated) {
        for set in sets.old.iter().filter(|set| set.size() > 0) {
            scale(draft, deployment, set, 0);
        }
        return;
    }
    if recreates(deployment) {
        return;
    }
    let most = if size > 0 { size.saturating_add(bounds(deployment).0) } else { 0 };
    let mut to_add = most - sets.size();
    // Larger ones first, and among equals the newer when growing, the older when shrinking.
    let mut active: Vec<&Set> = active;
    if to_add > 0 {
        active.sort_by_key(|set| {
            (Reverse(set.size()), Reverse(meta::created(&set.object.metadata)), set.key.clone())
        });
    } else {
        active.sort_by_key(|set| (Reverse(set.size()), meta::created(&set.object.metadata), set.key.clone()));
    }
    let mut sizes: Vec<(&Set, i32)> = Vec::new();
    for set in active {
        let share = if to_add == 0 { 0 } else { portion(set, most, to_add) };
        to_add -= share;
        sizes.push((set, set.size() + share));
    }
    if let Some((_, first)) = sizes.first_mut() {
        // What rounding left over.
        *first = (*first + to_add).max(0);
    }
    for (set, size) in sizes {
        sets::scale(draft, deployment, set, size);
    }
}

/// The share of `to_add` pods (or, below zero, of pods to take) that falls to a ReplicaSet.
fn portion(set: &Set, most: i32, to_add: i32) -> i32 {
    let before = i64::from(noted_max(set).filter(|noted| *noted > 0).unwrap_or(set.size()).max(1));
    // Rounded to the nearest.
    let grown = (2 * i64::from(set.size()) * i64::from(most) + before) / (2 * before);
    let share = i32::try_from(grown - i64::from(set.size())).unwrap_or(0);
    if to_add > 0 { share.clamp(0, to_add) } else { share.clamp(to_add, 0) }
}
