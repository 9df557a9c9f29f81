//! What a daemon that comes back makes of what it finds.
//!
//! Running containers run on. Ended ones are taken as if they had ended just now. Of what left no trace
//! (the machine was restarted) the object's status still knows how often it was started.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::life::{lost, resume_backoff};
use super::unit::{Ended, How, Role, Stage, Unit};
use super::{Attempt, ContainerState, Exit, Found, FoundContainer, Image};
use crate::time::Now;

/// Puts each unit where its container was found.
pub(super) fn restore(units: &mut [Unit], pod: &Pod, found: &Found, now: Now) {
    let sandbox_stands = found.sandbox.is_some();
    for unit in units {
        let seen = found.containers.iter().find(|container| container.name == unit.name());
        let told = told(pod, unit);
        if let Some(told) = told {
            recall(unit, told);
        }
        match seen {
            Some(seen) => resume(unit, seen, now),
            None => {
                if let Some(told) = told {
                    infer(unit, told, now);
                }
            }
        }
        // Where the sandbox is gone the machine took the container with it: it did not fail, and owes no wait.
        if sandbox_stands {
            resume_backoff(unit, now.boot);
        }
        // A new sandbox is a new start: what prepared the old one has to prepare it again.
        if !sandbox_stands && unit.role == Role::Init && unit.is_done() {
            unit.attempt.0 += 1;
            unit.stage = Stage::Waiting;
        }
    }
}

/// What the object says about a container.
fn told<'p>(pod: &'p Pod, unit: &Unit) -> Option<&'p ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = match unit.role {
        Role::Main => &status.container_statuses,
        Role::Init | Role::Sidecar => &status.init_container_statuses,
    };
    all.iter().flatten().find(|told| told.name == unit.name())
}

/// Takes over what only the object still knows: how the start before the newest one ended.
fn recall(unit: &mut Unit, told: &ContainerStatus) {
    let last = told.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let attempt = Attempt(u32::try_from(told.restart_count).unwrap_or(0));
    if let Some(last) = last {
        unit.ended = Some(Ended {
            attempt: Attempt(attempt.0.saturating_sub(1)),
            exit: exit_of(last),
            how: how_of(last),
        });
    }
    if !told.image_id.is_empty() {
        unit.image = Some(Image { id: told.image_id.clone() });
    }
}

fn resume(unit: &mut Unit, seen: &FoundContainer, now: Now) {
    unit.attempt = seen.attempt;
    if unit.ended.as_ref().is_some_and(|ended| ended.attempt >= seen.attempt) {
        unit.ended = None;
    }
    if seen.image.is_some() {
        unit.image.clone_from(&seen.image);
    }
    match &seen.state {
        ContainerState::Running { started_at } => {
            // Its hook ran, or was cut off with the last daemon: a second time might do harm.
            unit.stage = Stage::Running { started_at: *started_at, since: now.boot, begun: true, stop: None };
        }
        ContainerState::Exited(exit) => {
            unit.end(exit.clone(), How::Seen);
            unit.stage = Stage::Done;
        }
        ContainerState::Lost { noticed_at } => {
            unit.end(lost(*noticed_at, *noticed_at), How::Unseen);
            unit.stage = Stage::Done;
        }
        ContainerState::Failed(error) => {
            unit.stage = Stage::StartWait { until: now.boot, error: error.clone() };
        }
    }
}

/// Nothing was found of a container that had been started: it is over, as it was told or unseen.
fn infer(unit: &mut Unit, told: &ContainerStatus, now: Now) {
    let Some(state) = &told.state else { return };
    unit.attempt = Attempt(u32::try_from(told.restart_count).unwrap_or(0));
    if let Some(terminated) = &state.terminated {
        unit.ended_before = unit.ended.take();
        unit.ended =
            Some(Ended { attempt: unit.attempt, exit: exit_of(terminated), how: how_of(terminated) });
        unit.stage = Stage::Done;
    } else if let Some(running) = &state.running {
        let started_at = running.started_at.as_ref().map_or(now.wall, |time| time.0);
        unit.end(lost(started_at, now.wall), How::Unseen);
        unit.stage = Stage::Done;
    } else if let Some(ended) = &mut unit.ended {
        // It was waiting for its next start; the count is still that of the last one.
        ended.attempt = unit.attempt;
        unit.attempt.0 += 1;
    }
}

fn how_of(told: &ContainerStateTerminated) -> How {
    match told.reason.as_deref() {
        Some("ContainerStatusUnknown") => How::Unseen,
        Some("StartError") => How::NeverRan,
        _ => How::Seen,
    }
}

fn exit_of(told: &ContainerStateTerminated) -> Exit {
    let time = |held: &Option<Time>| held.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    Exit {
        code: told.exit_code,
        signal: told.signal,
        oom_killed: told.reason.as_deref() == Some("OOMKilled"),
        started_at: time(&told.started_at),
        finished_at: time(&told.finished_at),
        message: told.message.clone(),
    }
}
