//! What `kubectl rollout status` reads.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};

use super::sets::Sets;
use super::{bounds, wanted};
use crate::draft::Draft;
use crate::meta;
use crate::replicaset::stamp;
use crate::time::seconds_after;
use crate::view::Key;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// Brings the Deployment's status up to date.
pub(super) fn report(draft: &mut Draft<'_>, key: &Key) {
    let Some(deployment) = draft.view().get::<Deployment>(key).cloned() else { return };
    let sets = Sets::of(draft, &deployment);
    if let Some(at) = sets.all().filter_map(|set| set.tally.next_available).min() {
        draft.wake(key, at);
    }
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = counted(&deployment, &sets, &before);
    let now = draft.now;
    let availability = available(&deployment, &status);
    set_condition(&mut status, availability, now);
    progress(draft, key, &deployment, &sets, &before, &mut status);
    draft.edit::<Deployment>(key, |deployment| deployment.status = Some(status));
}

/// True if every wanted pod is there, new, and available, as the status says.
pub(super) fn is_complete(deployment: &Deployment) -> bool {
    deployment.status.as_ref().is_some_and(|status| complete(deployment, status))
}

/// Notes that the rollout has moved, so that its deadline starts anew.
pub(super) fn note_progress(draft: &mut Draft<'_>, key: &Key, reason: &str, message: &str) {
    let now = draft.now;
    draft.edit::<Deployment>(key, |deployment| {
        let condition = condition(PROGRESSING, "True", reason, message);
        set_condition(deployment.status.get_or_insert_default(), condition, now);
    });
}

fn counted(deployment: &Deployment, sets: &Sets, before: &DeploymentStatus) -> DeploymentStatus {
    let replicas = sets.sum(|tally| tally.replicas);
    let available = sets.sum(|tally| tally.available);
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(replicas),
        updated_replicas: Some(sets.new.as_ref().map_or(0, |new| new.tally.replicas)),
        ready_replicas: Some(sets.sum(|tally| tally.ready)),
        available_replicas: Some(available),
        unavailable_replicas: Some((wanted(deployment).max(replicas) - available).max(0)),
        terminating_replicas: Some(sets.sum(|tally| tally.terminating)),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
    }
}

fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(wanted(deployment));
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn available(deployment: &Deployment, status: &DeploymentStatus) -> DeploymentCondition {
    let least = wanted(deployment) - bounds(deployment).1;
    if status.available_replicas.unwrap_or(0) >= least {
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        condition(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    }
}

/// The condition `Progressing`: complete, moving, stuck beyond its deadline, or paused.
fn progress(
    draft: &mut Draft<'_>,
    key: &Key,
    deployment: &Deployment,
    sets: &Sets,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
) {
    let Some(deadline) = deployment.spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)
    else {
        status
            .conditions
            .get_or_insert_default()
            .retain(|condition| condition.type_.as_deref() != Some(PROGRESSING));
        return;
    };
    let now = draft.now;
    let held = find(before, PROGRESSING).cloned();
    let reason = held.as_ref().and_then(|held| held.reason.as_deref()).unwrap_or_default();
    if deployment.spec.paused == Some(true) {
        if reason != TIMED_OUT {
            set_condition(
                status,
                condition(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused"),
                now,
            );
        }
        return;
    }
    let subject = match &sets.new {
        Some(new) => format!("ReplicaSet \"{}\"", new.name()),
        None => format!("Deployment \"{}\"", meta::name(&deployment.metadata)),
    };
    if status.replicas == status.updated_replicas && reason == COMPLETE {
        // A rollout that was once complete stays so while its pods come and go; only a new one is watched.
        return;
    }
    if complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set_condition(status, condition(PROGRESSING, "True", COMPLETE, &message), now);
    } else if moved(before, status) {
        let message = format!("{subject} is progressing.");
        let mut moving = condition(PROGRESSING, "True", "ReplicaSetUpdated", &message);
        moving.last_update_time = stamp(now);
        force_condition(status, moving, now);
    } else if reason == "DeploymentPaused" {
        set_condition(
            status,
            condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed"),
            now,
        );
    } else if held.is_none() {
        let message = match &sets.new {
            Some(new) => format!("Found new replica set \"{}\"", new.name()),
            None => format!("{subject} has no replica set yet"),
        };
        set_condition(status, condition(PROGRESSING, "True", "FoundNewReplicaSet", &message), now);
    }
    watch_deadline(draft, key, status, &subject, i64::from(deadline));
}

/// True if this status is nearer to the end than the one before it.
fn moved(before: &DeploymentStatus, status: &DeploymentStatus) -> bool {
    let old = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    status.updated_replicas.unwrap_or(0) > before.updated_replicas.unwrap_or(0)
        || old(status) < old(before)
        || status.ready_replicas.unwrap_or(0) > before.ready_replicas.unwrap_or(0)
        || status.available_replicas.unwrap_or(0) > before.available_replicas.unwrap_or(0)
}

/// Says so when a rollout has not moved for `deadline`, and wants to be woken for that.
fn watch_deadline(
    draft: &mut Draft<'_>,
    key: &Key,
    status: &mut DeploymentStatus,
    subject: &str,
    deadline: i64,
) {
    let Some(held) = find(status, PROGRESSING) else { return };
    if matches!(held.reason.as_deref(), Some(COMPLETE | TIMED_OUT)) {
        return;
    }
    let since = held.last_update_time.as_ref().map_or(draft.now, |time| time.0);
    let until = seconds_after(since, deadline);
    // Upstream counts the deadline as missed once it lies in the past.
    if until < draft.now {
        let message = format!("{subject} has timed out progressing.");
        set_condition(status, condition(PROGRESSING, "False", TIMED_OUT, &message), draft.now);
    } else {
        draft.wake(key, seconds_after(until, 1));
    }
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..DeploymentCondition::default()
    }
}

fn find<'s>(status: &'s DeploymentStatus, kind: &str) -> Option<&'s DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_.as_deref() == Some(kind))
}

/// Sets a condition, unless status and reason are as they were; transitions are times of a new status.
fn set_condition(status: &mut DeploymentStatus, wanted: DeploymentCondition, now: Timestamp) {
    let held = find(status, wanted.type_.as_deref().unwrap_or_default());
    if held.is_some_and(|held| held.status == wanted.status && held.reason == wanted.reason) {
        return;
    }
    force_condition(status, wanted, now);
}

fn force_condition(status: &mut DeploymentStatus, mut wanted: DeploymentCondition, now: Timestamp) {
    wanted.last_update_time = stamp(now);
    wanted.last_transition_time = stamp(now);
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|held| held.type_ == wanted.type_) {
        Some(held) => {
            if held.status == wanted.status && held.last_transition_time.is_some() {
                wanted.last_transition_time = held.last_transition_time.clone();
            }
            *held = wanted;
        }
        None => conditions.push(wanted),
    }
}
