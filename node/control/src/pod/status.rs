//! What users see of a pod.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::time::Duration;

use super::life::{PULL_ERROR_SHOWN, PodLife, SandboxStage, Why, restart_policy};
use super::unit::{Ended, How, Role, Stage, Unit};
use super::{Attempt, ImageError};
use crate::meta;
use crate::resources::QosClass;
use crate::time::{Now, whole_seconds};

/// The conditions that a node decides; all others are kept as they are.
const OURS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];

/// The status of a pod. Times of transition are kept from `before` or, at the start, from the object.
pub(super) fn of(life: &PodLife, before: Option<&PodStatus>, now: Now) -> PodStatus {
    let held = life.pod.status.as_ref();
    let addresses = life.addresses.clone();
    let is_main = |unit: &&Unit| unit.role == Role::Main;
    let statuses = |init: bool| {
        let units = life.units.iter().filter(|unit| is_main(unit) != init);
        let statuses: Vec<ContainerStatus> = units.map(|unit| container(life, unit, now)).collect();
        Some(statuses).filter(|statuses| !statuses.is_empty())
    };
    let mut status = PodStatus {
        phase: Some(phase(life).to_owned()),
        container_statuses: statuses(false),
        init_container_statuses: statuses(true),
        host_ip: life.host_ips.first().cloned(),
        host_ips: some(life.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: addresses.first().cloned(),
        pod_ips: some(addresses.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: Some(Time(whole_seconds(life.started_at))),
        qos_class: life.pod.spec.as_ref().map(|spec| QosClass::of(spec).name().to_owned()),
        observed_generation: life.pod.metadata.generation,
        nominated_node_name: None,
        // The map knows conditions that are not ours: the scheduler's, readiness gates.
        conditions: held.and_then(|held| held.conditions.clone()),
        ..PodStatus::default()
    };
    if let Some(ending) = &life.ending
        && ending.why == Why::DeadlineExceeded
    {
        status.reason = Some("DeadlineExceeded".to_owned());
        status.message = Some("Pod was active on the node longer than the specified deadline".to_owned());
    }
    let earlier = before.and_then(|before| before.conditions.clone());
    if let (Some(conditions), Some(earlier)) = (&mut status.conditions, earlier) {
        conditions.retain(|condition| !OURS.contains(&condition.type_.as_str()));
        conditions.extend(earlier.into_iter().filter(|condition| OURS.contains(&condition.type_.as_str())));
    }
    for condition in conditions(life) {
        meta::set_condition(&mut status, condition, whole_seconds(now.wall));
    }
    status
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

/// The pod's phase, from its containers: kubelet's rules.
fn phase(life: &PodLife) -> &'static str {
    let failed_for_good = |unit: &Unit| unit.is_done() && !unit.succeeded();
    let of = |role: Role| life.units.iter().filter(move |unit| unit.role == role);
    if let Some(ending) = &life.ending
        && ending.why == Why::DeadlineExceeded
        && !life.units.iter().any(Unit::is_alive)
    {
        return "Failed";
    }
    if of(Role::Init).any(failed_for_good) {
        return if life.units.iter().any(Unit::is_alive) { "Pending" } else { "Failed" };
    }
    let started = |unit: &Unit| unit.is_running() || unit.ended.is_some();
    if !of(Role::Init).all(Unit::is_done) || !of(Role::Main).all(started) {
        return "Pending";
    }
    let over = of(Role::Main).all(Unit::is_done) && !life.units.iter().any(Unit::is_alive);
    match (over, of(Role::Main).all(Unit::succeeded)) {
        (true, true) => "Succeeded",
        // A pod that restarts its containers ends only when it is stopped, and then nobody failed it.
        (true, false) if restart_policy(&life.pod) == "Always" && !is_leaving(life) => "Running",
        (true, false) => "Failed",
        (false, _) => "Running",
    }
}

fn is_leaving(life: &PodLife) -> bool {
    life.ending.as_ref().is_some_and(|ending| ending.why >= Why::Deleted)
}

fn conditions(life: &PodLife) -> Vec<PodCondition> {
    let over = matches!(phase(life), "Succeeded" | "Failed");
    let names = |units: Vec<&Unit>| units.iter().map(|unit| unit.name()).collect::<Vec<_>>().join(" ");
    let uninitialized: Vec<&Unit> = life
        .units
        .iter()
        .filter(|unit| match unit.role {
            Role::Init => !unit.succeeded(),
            Role::Sidecar => !unit.is_started() && !over,
            Role::Main => false,
        })
        .collect();
    let unready: Vec<&Unit> =
        life.units.iter().filter(|unit| unit.role != Role::Init && !unit.is_ready()).collect();
    let initialized = if uninitialized.is_empty() {
        condition("Initialized", true, None)
    } else {
        let text = format!("containers with incomplete status: [{}]", names(uninitialized));
        condition("Initialized", false, Some(("ContainersNotInitialized", text)))
    };
    let why_not = |phase: &str| match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        _ if unready.is_empty() => None,
        _ => Some((
            "ContainersNotReady",
            format!("containers with unready status: [{}]", names(unready.clone())),
        )),
    };
    let containers = why_not(phase(life));
    let gate = closed_gate(life);
    let pod = match (&containers, gate) {
        (None, Some(gate)) => Some((
            "ReadinessGatesNotReady",
            format!("corresponding condition of pod readiness gate \"{gate}\" is not True"),
        )),
        (containers, _) => containers.clone(),
    };
    vec![
        condition("PodReadyToStartContainers", matches!(life.sandbox, SandboxStage::Up(_)), None),
        initialized,
        condition("ContainersReady", containers.is_none(), containers),
        condition("Ready", pod.is_none(), pod),
    ]
}

/// The first readiness gate that somebody else has not opened.
fn closed_gate(life: &PodLife) -> Option<&str> {
    let gates = life.pod.spec.as_ref()?.readiness_gates.iter().flatten();
    let open = |kind: &str| {
        meta::condition(life.pod.status.as_ref(), kind).is_some_and(|condition| condition.status == "True")
    };
    gates.map(|gate| gate.condition_type.as_str()).find(|kind| !open(kind))
}

fn condition(kind: &str, holds: bool, why: Option<(&str, String)>) -> PodCondition {
    PodCondition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: why.as_ref().map(|(reason, _)| (*reason).to_owned()),
        message: why.map(|(_, message)| message).filter(|message| !message.is_empty()),
        ..PodCondition::default()
    }
}

fn container(life: &PodLife, unit: &Unit, now: Now) -> ContainerStatus {
    // A container that has ended and not come back yet is shown as ended, unless it waits.
    let shows_end = unit.ended.is_some()
        && matches!(unit.stage, Stage::Done | Stage::Waiting | Stage::Pulling | Stage::Starting);
    let last = if shows_end { unit.ended_before.as_ref() } else { unit.ended.as_ref() };
    let state = match &unit.stage {
        Stage::Running { started_at, .. } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(whole_seconds(*started_at))) }),
            ..ContainerState::default()
        },
        _ if shows_end => unit.ended.as_ref().map(|ended| terminated(life, unit, ended)).unwrap_or_default(),
        _ => waiting(life, unit, now),
    };
    let attempt =
        if unit.is_running() { Some(unit.attempt) } else { unit.ended.as_ref().map(|ended| ended.attempt) };
    ContainerStatus {
        name: unit.name().to_owned(),
        image: unit.spec.image.clone().unwrap_or_default(),
        image_id: unit.image.as_ref().map(|image| image.id.clone()).unwrap_or_default(),
        container_id: attempt.map(|attempt| id(life, unit, attempt)),
        ready: unit.is_ready(),
        started: Some(unit.is_started()),
        restart_count: attempt.map_or(0, |attempt| i32::try_from(attempt.0).unwrap_or(i32::MAX)),
        state: Some(state),
        last_state: Some(last.map(|ended| terminated(life, unit, ended)).unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

fn waiting(life: &PodLife, unit: &Unit, now: Now) -> ContainerState {
    let (reason, message) = match &unit.stage {
        Stage::PullWait { failed_at, error, .. } => pull_error(unit, error, now.boot.since(*failed_at)),
        Stage::StartWait { error, .. } => (error.reason.clone(), Some(error.message.clone())),
        Stage::RestartWait { wait_seconds, .. } => {
            ("CrashLoopBackOff".to_owned(), Some(back_off(life, unit, *wait_seconds)))
        }
        _ => match &life.sandbox {
            SandboxStage::Failed { message, .. } => ("ContainerCreating".to_owned(), Some(message.clone())),
            _ if has_init(life) => ("PodInitializing".to_owned(), None),
            _ => ("ContainerCreating".to_owned(), None),
        },
    };
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason), message }),
        ..ContainerState::default()
    }
}

fn has_init(life: &PodLife) -> bool {
    life.units.iter().any(|unit| unit.role != Role::Main)
}

fn pull_error(unit: &Unit, error: &ImageError, age: Duration) -> (String, Option<String>) {
    let image = unit.spec.image.as_deref().unwrap_or_default();
    match error {
        ImageError::NeverPull => (
            "ErrImageNeverPull".to_owned(),
            Some(format!("Container image \"{image}\" is not present with pull policy of Never")),
        ),
        ImageError::InvalidName(text) => (
            "InvalidImageName".to_owned(),
            Some(format!("Failed to apply default image tag \"{image}\": couldn't parse image name: {text}")),
        ),
        ImageError::Pull(text) if age < PULL_ERROR_SHOWN => ("ErrImagePull".to_owned(), Some(text.clone())),
        ImageError::Pull(text) => (
            "ImagePullBackOff".to_owned(),
            Some(format!("Back-off pulling image \"{image}\": ErrImagePull: {text}")),
        ),
    }
}

fn back_off(life: &PodLife, unit: &Unit, seconds: u64) -> String {
    let wait = match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    };
    let metadata = &life.pod.metadata;
    format!(
        "back-off {wait} restarting failed container={} pod={}_{}({})",
        unit.name(),
        meta::name(metadata),
        meta::namespace(metadata),
        meta::uid(metadata)
    )
}

fn terminated(life: &PodLife, unit: &Unit, ended: &Ended) -> ContainerState {
    let exit = &ended.exit;
    let reason = match exit {
        _ if ended.how == How::Unseen => "ContainerStatusUnknown",
        _ if ended.how == How::NeverRan => "StartError",
        exit if exit.oom_killed => "OOMKilled",
        exit if exit.code == 0 => "Completed",
        _ => "Error",
    };
    let time = |at: Timestamp| Some(Time(whole_seconds(at)));
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(id(life, unit, ended.attempt)),
            exit_code: exit.code,
            signal: None,
            reason: Some(reason.to_owned()),
            message: exit.message.clone(),
            started_at: time(exit.started_at),
            finished_at: time(exit.finished_at),
        }),
        ..ContainerState::default()
    }
}

/// Names one start of a container, as `containerID` does.
fn id(life: &PodLife, unit: &Unit, attempt: Attempt) -> String {
    format!("skein://{}/{}/{}", meta::uid(&life.pod.metadata), unit.name(), attempt.0)
}
