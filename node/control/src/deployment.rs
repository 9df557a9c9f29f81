//! Deployment -> ReplicaSet: rollouts, rollbacks, scaling, and what `kubectl rollout` reads.

mod rollout;
mod sets;
mod status;

#[cfg(test)]
mod tests;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeSet;

use crate::draft::Draft;
use crate::meta;
use crate::view::{Changed, Key, Kind, View};

pub(crate) const WHO: &str = "deployment-controller";

/// Writes what brings each Deployment that was touched one step nearer to its template and size, and its
/// status up to date.
pub(crate) fn plan(draft: &mut Draft<'_>) {
    for key in touched(draft.view(), draft.changed()) {
        if draft.is_full() {
            return;
        }
        let Some(deployment) = draft.view().get::<Deployment>(&key).cloned() else { continue };
        let metadata = &deployment.metadata;
        if meta::is_ending(metadata) || draft.is_ending_namespace(meta::namespace(metadata)) {
            status::report(draft, &key);
            continue;
        }
        sets::adopt_and_release(draft, &deployment);
        rollout::advance(draft, &key);
        status::report(draft, &key);
        sets::forget_old(draft, &key);
    }
}

/// Deployments to look at: changed ones, and owners of changed ReplicaSets or of changed pods' ReplicaSets.
fn touched(view: &View, changed: &Changed) -> BTreeSet<Key> {
    let (keys, uids) = match changed {
        Changed::All => return view.all::<Deployment>().map(|(key, _)| key.clone()).collect(),
        Changed::Some { keys, uids, .. } => (keys, uids),
    };
    let named = uids.iter().filter_map(|uid| view.key_of_uid(uid)).chain(keys);
    let mut found = BTreeSet::new();
    for key in named {
        if key.starts_with(Deployment::PREFIX) {
            found.insert(key.clone());
        } else if let Some(set) = view.get::<ReplicaSet>(key) {
            match meta::controller(&set.metadata) {
                Some(owner) => found.extend(view.key_of_uid(&owner.uid).cloned()),
                None => found.extend(selecting(view, set)),
            }
        }
    }
    found
}

/// Deployments that would take in a ReplicaSet without a controller.
fn selecting<'v>(view: &'v View, set: &'v ReplicaSet) -> impl Iterator<Item = Key> + use<'v> {
    view.in_namespace::<Deployment>(meta::namespace(&set.metadata))
        .filter(|(_, deployment)| meta::selects(&deployment.spec.selector, set.metadata.labels.as_ref()))
        .map(|(key, _)| key.clone())
}

/// How many pods a Deployment wants.
fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1).max(0)
}

/// Whether all old pods go before the first new one comes.
fn recreates(deployment: &Deployment) -> bool {
    deployment.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// How many pods beyond the wanted number may exist, and how many of the wanted number may be missing,
/// while a rollout runs. Shares of the size round up for the surplus and down for the gap, and they are
/// never both nothing: such a rollout could not move.
pub(crate) fn bounds(deployment: &Deployment) -> (i32, i32) {
    if recreates(deployment) {
        return (0, 0);
    }
    let size = wanted(deployment);
    let rolling = deployment.spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
    let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    let surge = share_of(size, surge, true);
    let unavailable = share_of(size, unavailable, false);
    match (surge, unavailable) {
        (0, 0) => (0, 1.min(size)),
        (surge, unavailable) => (surge, unavailable.min(size)),
    }
}

/// A number, or a share of `size`; a quarter where nothing is said.
fn share_of(size: i32, value: Option<&IntOrString>, round_up: bool) -> i32 {
    let percent = match value {
        Some(IntOrString::Int(number)) => return (*number).max(0),
        Some(IntOrString::String(text)) => {
            text.trim_end_matches('%').parse::<i64>().unwrap_or(0).clamp(0, 100_000)
        }
        None => 25,
    };
    let share = i64::from(size) * percent + if round_up { 99 } else { 0 };
    i32::try_from(share / 100).unwrap_or(i32::MAX)
}
