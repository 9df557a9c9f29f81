//! One container of a pod, over all its starts.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::backoff::Backoff;
use super::probe::Probes;
use super::{Attempt, Exit, Hook, Image, ImageError, PullAttempt, PullPolicy, StartError};
use crate::resources::keeps_running;
use crate::time::Instant;

/// A container of the spec and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) spec: Container,
    pub(super) role: Role,
    /// The start that runs, or the next one.
    pub(super) attempt: Attempt,
    pub(super) stage: Stage,
    pub(super) image: Option<Image>,
    pub(super) pull: PullAttempt,
    pub(super) pull_backoff: Backoff,
    pub(super) restart_backoff: Backoff,
    pub(super) probes: Probes,
    /// Why the hook after this start failed.
    pub(super) hook_error: Option<String>,
    /// The newest end, and the one before it.
    pub(super) ended: Option<Ended>,
    pub(super) ended_before: Option<Ended>,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// Starts among the init containers and stays.
    Sidecar,
    /// What the pod is for.
    Main,
}

/// Where a container is in its life.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// Its turn has not come.
    Waiting,
    /// Its image is asked for.
    Pulling,
    /// The image could not be had; another try later.
    PullWait { failed_at: Instant, until: Instant, error: ImageError },
    /// Its start is asked for.
    Starting,
    /// It could not be started; another try later.
    StartWait { until: Instant, error: StartError },
    /// It runs; `begun` once nothing is left to do before it counts as started.
    Running { started_at: Timestamp, since: Instant, begun: bool, stop: Option<Stop> },
    /// It ended and starts again later.
    RestartWait { until: Instant, wait_seconds: u64 },
    /// It ended for good.
    Done,
}

/// It is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) kill_at: Instant,
    pub(super) step: Step,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Its hook runs; it knows nothing yet.
    Hook,
    /// It was asked to stop.
    Asked,
    /// Its hook took all of the grace; it was asked to stop with a little more.
    AskedLate,
    Killed,
}

/// How a start ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) attempt: Attempt,
    pub(super) exit: Exit,
    pub(super) how: How,
}

/// What is known about an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Seen,
    /// Nobody saw it end: its exit code is a guess.
    Unseen,
    /// Its program could not be executed.
    NeverRan,
}

impl Unit {
    pub(super) fn new(spec: Container, role: Role) -> Unit {
        Unit {
            spec,
            role,
            attempt: Attempt(0),
            stage: Stage::Waiting,
            image: None,
            pull: PullAttempt(0),
            pull_backoff: Backoff::default(),
            restart_backoff: Backoff::default(),
            probes: Probes::default(),
            hook_error: None,
            ended: None,
            ended_before: None,
        }
    }

    /// All containers of a spec in the order of their start.
    pub(super) fn all(spec: &k8s_openapi::api::core::v1::PodSpec) -> Vec<Unit> {
        let role = |init: &Container| if keeps_running(init) { Role::Sidecar } else { Role::Init };
        let init = spec.init_containers.iter().flatten().map(|held| Unit::new(held.clone(), role(held)));
        init.chain(spec.containers.iter().map(|held| Unit::new(held.clone(), Role::Main))).collect()
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running { .. })
    }

    /// True while there is, or may soon be, a process.
    pub(super) fn is_alive(&self) -> bool {
        matches!(self.stage, Stage::Running { .. } | Stage::Starting)
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// True if it ended for good, and well.
    pub(super) fn succeeded(&self) -> bool {
        self.is_done() && self.ended.as_ref().is_some_and(|ended| ended.exit.code == 0)
    }

    /// True once its hook and its startup probe, if it has them, have passed.
    pub(super) fn is_started(&self) -> bool {
        self.has_begun() && self.probes.started(&self.spec)
    }

    pub(super) fn has_begun(&self) -> bool {
        matches!(self.stage, Stage::Running { begun: true, .. })
    }

    /// What is to be done at that moment of its life.
    pub(super) fn handler(&self, hook: Hook) -> Option<Box<LifecycleHandler>> {
        let hooks = self.spec.lifecycle.as_ref()?;
        let handler = match hook {
            Hook::PostStart => &hooks.post_start,
            Hook::PreStop => &hooks.pre_stop,
        };
        handler.clone().map(Box::new)
    }

    /// True if it takes requests, or as an init container has done its work.
    pub(super) fn is_ready(&self) -> bool {
        match self.role {
            Role::Init => self.succeeded(),
            Role::Sidecar | Role::Main => self.has_begun() && self.probes.ready(&self.spec),
        }
    }

    /// Notes an end of the start that runs.
    pub(super) fn end(&mut self, mut exit: Exit, how: How) {
        if let Some(error) = self.hook_error.take() {
            // It was stopped for this; what it said in the end is of less use.
            exit.message = Some(format!("PostStartHook failed: {error}"));
        }
        let ended = Ended { attempt: self.attempt, exit, how };
        self.ended_before = self.ended.replace(ended);
        self.probes = Probes::default();
    }

    /// The policy by which its image is fetched; where the spec says nothing, by the tag.
    pub(super) fn pull_policy(&self) -> PullPolicy {
        match self.spec.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            _ if names_latest(self.spec.image.as_deref().unwrap_or_default()) => PullPolicy::Always,
            _ => PullPolicy::IfNotPresent,
        }
    }
}

/// True for a reference without tag and digest, or with the tag `latest`.
fn names_latest(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or_default();
    !image.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}
