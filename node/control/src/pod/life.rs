//! The state machine itself.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::probe::{self, Finding};
use super::tell::{self, tale};
use super::unit::{How, Role, Stage, Step, Stop, Unit};
use super::{
    Attempt, ContainerState, Effect, Exit, Found, Hook, Image, ImageError, Input, ProbeKind, PullAttempt,
    Sandbox, SandboxAttempt, StartError, adopt, status,
};
use crate::meta;
use crate::time::{Instant, Now, seconds_after};

/// What a pod gets that is no longer bound here: its replacement may run already, or somebody said "force".
const GRACE_OF_THE_UNBOUND: Duration = Duration::from_secs(1);
/// kubelet's grace where a pod says nothing.
const GRACE_DEFAULT_SECONDS: i64 = 30;
/// How long a failed start or sandbox waits; users watch these, so the wait grows no further.
const RETRY: Duration = Duration::from_secs(5);
/// `ErrImagePull` is shown this long before it becomes `ImagePullBackOff`.
pub(super) const PULL_ERROR_SHOWN: Duration = Duration::from_secs(2);
/// What a container gets at least after its hook, also when that took all of the grace: kubelet's number.
const GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);
/// A hook that takes longer has failed. Kubernetes waits for ever.
const POST_START_MAX: Duration = Duration::from_secs(600);

/// One pod's life on this node. See the module for the order of calls.
///
/// Invariant: at most one start of each container is alive. A new one is asked for only after the end of
/// the last one was an input.
pub struct PodLife {
    pub(super) pod: Arc<Pod>,
    pub(super) host_ips: Vec<String>,
    pub(super) sandbox: SandboxStage,
    /// The newest sandbox's addresses; they are shown also after it is gone.
    pub(super) addresses: Vec<String>,
    sandbox_attempt: SandboxAttempt,
    /// In the order of their start: init containers, then the others.
    pub(super) units: Vec<Unit>,
    pub(super) ending: Option<Ending>,
    pub(super) started_at: Timestamp,
    /// The pod was over before this machine knew it: its status stands.
    pub(super) over: Option<PodStatus>,
    reported: Option<PodStatus>,
    wake_at: Option<Instant>,
    /// What users are still to be told; goes out with the other effects of the same input.
    tales: Vec<Effect>,
    gone: bool,
}

/// Where the sandbox is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SandboxStage {
    None,
    Making,
    Up(Sandbox),
    Failed { until: Instant, message: String },
    Removing,
    Removed,
}

/// Why everything stops, and when it is killed.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) why: Why,
    kill_at: Instant,
}

/// Why everything stops. Later ones override earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// All main containers have ended for good, or an init container has failed for good.
    Finished,
    /// It ran longer than it may.
    DeadlineExceeded,
    /// Its object waits to be deleted.
    Deleted,
    /// It is not this node's pod any more.
    Unbound,
}

impl PodLife {
    /// A pod that was just bound to this node.
    pub fn new(pod: Arc<Pod>, host_ips: Vec<String>, now: Now) -> PodLife {
        PodLife::adopt(pod, host_ips, Found::default(), now)
    }

    /// A pod that was bound here before the daemon started, with what was found of it: what runs goes on,
    /// what has ended in the meantime is treated as if it ended now.
    pub fn adopt(pod: Arc<Pod>, host_ips: Vec<String>, found: Found, now: Now) -> PodLife {
        let none = PodSpec::default();
        let mut units = Unit::all(pod.spec.as_ref().unwrap_or(&none));
        let over = meta::has_ended(&pod).then(|| pod.status.clone().unwrap_or_default());
        let started_at = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let started_at = started_at.map_or(now.wall, |time| time.0);
        adopt::restore(&mut units, &pod, &found, now);
        let addresses = match &found.sandbox {
            Some(sandbox) => sandbox.addresses.clone(),
            None if over.is_some() => pod.status.iter().filter_map(|status| status.pod_ip.clone()).collect(),
            None => Vec::new(),
        };
        let sandbox = match found.sandbox {
            Some(sandbox) => SandboxStage::Up(sandbox),
            None => SandboxStage::None,
        };
        let mut life = PodLife {
            pod,
            host_ips,
            sandbox,
            addresses,
            sandbox_attempt: SandboxAttempt(0),
            units,
            ending: None,
            started_at,
            over,
            reported: None,
            wake_at: None,
            tales: Vec::new(),
            gone: false,
        };
        if life.over.is_some() {
            life.end(Why::Finished, Duration::ZERO, now.boot);
        }
        for at in 0..life.units.len() {
            // What ended while nobody looked: by now its restart policy decides.
            if life.units[at].is_done() {
                life.decide_restart(at, now.boot);
            }
        }
        life
    }

    /// Takes one input at `now` (never earlier than the last one) and adds what the shell must do.
    pub fn handle(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) {
        if self.gone {
            return;
        }
        match input {
            Input::Desired(Some(pod)) if pod.metadata.uid == self.pod.metadata.uid => {
                self.desired(pod, now.boot)
            }
            Input::Desired(_) => self.end(Why::Unbound, GRACE_OF_THE_UNBOUND, now.boot),
            Input::Sandbox { attempt, result } => self.sandbox_made(attempt, result, now.boot),
            Input::SandboxRemoved => self.sandbox = SandboxStage::Removed,
            Input::Image { container, pull, result } => {
                self.image(&container, pull, result, now.boot, effects)
            }
            Input::Container { name, attempt, state } => self.container(&name, attempt, state, now, effects),
            Input::Probed { container, attempt, kind, result } => {
                self.probed(&container, attempt, kind, result, now.boot, effects);
            }
            Input::Hooked { container, attempt, hook, result } => {
                self.hooked(&container, attempt, hook, result, now.boot, effects);
            }
            Input::Woken => self.wake_at = None,
        }
        self.advance(now, effects);
        effects.append(&mut self.tales);
        self.report(now, effects);
        if self.is_gone() {
            self.gone = true;
            let delete = self.ending.as_ref().is_some_and(|ending| ending.why == Why::Deleted);
            effects.push(Effect::Gone { delete });
        } else {
            self.ask_to_be_woken(now, effects);
        }
    }

    /// The pod as it was last wanted.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// The status that was last reported.
    pub fn status(&self) -> Option<&PodStatus> {
        self.reported.as_ref()
    }

    /// The start of a container that runs now, for logs and exec.
    pub fn running(&self, container: &str) -> Option<Attempt> {
        self.units.iter().find(|unit| unit.name() == container && unit.is_running()).map(|unit| unit.attempt)
    }

    /// The newest start of a container that has left a log, running or ended.
    pub fn newest_start(&self, container: &str) -> Option<Attempt> {
        let unit = self.units.iter().find(|unit| unit.name() == container)?;
        if unit.is_running() { Some(unit.attempt) } else { unit.ended.as_ref().map(|ended| ended.attempt) }
    }

    /// The start before that one.
    pub fn previous_start(&self, container: &str) -> Option<Attempt> {
        let newest = self.newest_start(container)?;
        newest.0.checked_sub(1).map(Attempt)
    }

    // Inputs.

    fn desired(&mut self, pod: Arc<Pod>, now: Instant) {
        if let Some(spec) = &pod.spec {
            // Only the image can change; the next start takes it.
            let all = spec.init_containers.iter().flatten().chain(&spec.containers);
            for (unit, wanted) in self.units.iter_mut().zip(all) {
                if unit.name() == wanted.name {
                    unit.spec.image.clone_from(&wanted.image);
                }
            }
        }
        if meta::is_ending(&pod.metadata) {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or_else(|| grace_seconds(&pod));
            self.end(Why::Deleted, Duration::from_secs(u64::try_from(grace).unwrap_or(0)), now);
        }
        // Somebody else wrote the status (the judge, while this node was silent), or our word was lost.
        let shown = |status: Option<&PodStatus>| {
            let ready = meta::condition(status, "Ready").map(|ready| ready.status.clone());
            (status.and_then(|status| status.phase.clone()), ready)
        };
        if self.over.is_none() && shown(pod.status.as_ref()) != shown(self.reported.as_ref()) {
            self.reported = None;
        }
        self.pod = pod;
    }

    fn sandbox_made(&mut self, attempt: SandboxAttempt, result: Result<Sandbox, String>, now: Instant) {
        if attempt != self.sandbox_attempt || self.sandbox != SandboxStage::Making {
            return;
        }
        self.sandbox = match result {
            Ok(sandbox) => {
                self.addresses.clone_from(&sandbox.addresses);
                SandboxStage::Up(sandbox)
            }
            Err(message) => {
                let text = format!("Failed to create pod sandbox: {message}");
                self.tales.push(tale(None, true, "FailedCreatePodSandBox", text));
                SandboxStage::Failed { until: now.after(RETRY), message }
            }
        };
    }

    fn image(
        &mut self,
        container: &str,
        pull: PullAttempt,
        result: Result<Image, ImageError>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let stops = self.ending.is_some();
        let Some(unit) = self.units.iter_mut().find(|unit| unit.name() == container) else { return };
        if unit.pull != pull || !matches!(unit.stage, Stage::Pulling) {
            return;
        }
        match result {
            // Nothing starts any more once the pod is on its way out.
            Ok(_) if stops => unit.stage = Stage::Waiting,
            Ok(image) => {
                unit.pull_backoff.reset();
                unit.image = Some(image.clone());
                unit.stage = Stage::Starting;
                effects.push(Effect::StartContainer {
                    name: unit.name().to_owned(),
                    attempt: unit.attempt,
                    image,
                });
            }
            Err(error) => {
                self.tales.extend(tell::no_image(unit, &error));
                let wait = unit.pull_backoff.next_but_never_at_once(now);
                unit.stage = Stage::PullWait { failed_at: now, until: now.after(wait), error };
            }
        }
    }

    fn container(
        &mut self,
        name: &str,
        attempt: Attempt,
        state: ContainerState,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Some(at) = self.units.iter().position(|unit| unit.name() == name) else { return };
        let unit = &mut self.units[at];
        if unit.attempt != attempt || !unit.is_alive() {
            return;
        }
        match state {
            ContainerState::Running { started_at } => {
                if matches!(unit.stage, Stage::Starting) {
                    self.tales.extend(tell::started(unit));
                    let handler = unit.handler(Hook::PostStart);
                    let begun = handler.is_none();
                    unit.stage = Stage::Running { started_at, since: now.boot, begun, stop: None };
                    if let Some(handler) = handler {
                        effects.push(run_hook(unit, Hook::PostStart, handler, POST_START_MAX));
                    }
                }
            }
            ContainerState::Exited(exit) => {
                unit.end(exit, How::Seen);
                self.decide_restart(at, now.boot);
            }
            ContainerState::Lost { noticed_at } => {
                let started_at = match unit.stage {
                    Stage::Running { started_at, .. } => started_at,
                    _ => noticed_at,
                };
                unit.end(lost(started_at, noticed_at), How::Unseen);
                self.decide_restart(at, now.boot);
            }
            ContainerState::Failed(error) => self.start_failed(at, error, now),
        }
    }

    /// What cannot be prepared is tried again; a program that cannot be executed counts as one that ended.
    fn start_failed(&mut self, at: usize, error: StartError, now: Now) {
        self.tales.push(tell::not_started(&self.units[at], &error));
        if error.reason != "RunContainerError" {
            self.units[at].stage = Stage::StartWait { until: now.boot.after(RETRY), error };
            return;
        }
        let exit = Exit {
            code: 128,
            signal: None,
            oom_killed: false,
            started_at: now.wall,
            finished_at: now.wall,
            message: Some(error.message),
        };
        self.units[at].end(exit, How::NeverRan);
        self.decide_restart(at, now.boot);
    }

    fn probed(
        &mut self,
        container: &str,
        attempt: Attempt,
        kind: ProbeKind,
        result: Result<(), String>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let grace = self.grace();
        let Some(unit) = self.units.iter_mut().find(|unit| unit.name() == container) else { return };
        if unit.attempt != attempt || !unit.is_running() {
            return;
        }
        let finding = unit.probes.answered(&unit.spec, kind, result.is_ok());
        if let Err(reason) = result
            && finding != Finding::TooEarly
        {
            self.tales.push(tell::probe_failed(unit, kind, &reason));
        }
        if finding == Finding::Unhealthy {
            let probe =
                if kind == ProbeKind::Startup { &unit.spec.startup_probe } else { &unit.spec.liveness_probe };
            let own = probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
            let grace = own.and_then(|own| u64::try_from(own).ok()).map_or(grace, Duration::from_secs);
            if stop(unit, grace, now, effects) {
                self.tales.push(tell::killed_by_probe(unit, kind));
            }
        }
    }

    fn hooked(
        &mut self,
        container: &str,
        attempt: Attempt,
        hook: Hook,
        result: Result<(), String>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let grace = self.grace();
        let Some(unit) = self.units.iter_mut().find(|unit| unit.name() == container) else { return };
        if unit.attempt != attempt {
            return;
        }
        let Stage::Running { begun, stop: stopping, .. } = &mut unit.stage else { return };
        match (hook, result) {
            (Hook::PostStart, Ok(())) => *begun = true,
            (Hook::PostStart, Err(error)) => {
                self.tales.push(tell::hook_failed(unit, hook, &error));
                unit.hook_error = Some(error);
                stop(unit, grace, now, effects);
            }
            // One that failed has had its chance, too.
            (Hook::PreStop, result) => {
                if let Some(Stop { kill_at, step: step @ Step::Hook }) = stopping {
                    let left = kill_at.since(now).max(GRACE_AFTER_HOOK);
                    *step = if *kill_at < now.after(left) { Step::AskedLate } else { Step::Asked };
                    *kill_at = now.after(left);
                    effects.push(ask_to_stop(unit, left));
                }
                self.tales.extend(result.err().map(|error| tell::hook_failed(unit, hook, &error)));
            }
        }
    }

    // What follows.

    fn advance(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.watch_deadline(now);
        if self.ending.is_none() && self.is_finished() {
            self.end(Why::Finished, self.grace(), now.boot);
        }
        self.kill_the_late(now.boot, effects);
        if self.ending.is_some() {
            self.wind_down(now.boot, effects);
        } else if self.has_sandbox(now.boot, effects) {
            self.start_in_order(now, effects);
        }
    }

    fn has_sandbox(&mut self, now: Instant, effects: &mut Vec<Effect>) -> bool {
        match self.sandbox {
            SandboxStage::Up(_) => return true,
            SandboxStage::Failed { until, .. } if until > now => return false,
            SandboxStage::None | SandboxStage::Failed { .. } => {}
            SandboxStage::Making | SandboxStage::Removing | SandboxStage::Removed => return false,
        }
        self.sandbox_attempt.0 += 1;
        self.sandbox = SandboxStage::Making;
        effects.push(Effect::MakeSandbox { attempt: self.sandbox_attempt });
        false
    }

    /// Init containers one after the other, sidecars among them; then all the others at once.
    fn start_in_order(&mut self, now: Now, effects: &mut Vec<Effect>) {
        for unit in &mut self.units {
            drive(unit, now.boot, effects);
            let next_may_start = match unit.role {
                Role::Init => unit.succeeded(),
                Role::Sidecar => unit.is_started(),
                Role::Main => true,
            };
            if !next_may_start {
                break;
            }
        }
        // Sidecars behind the first unfinished init container wait, but what runs is looked after.
        for unit in self.units.iter_mut().filter(|unit| unit.is_running()) {
            ask_probes(unit, now.boot, effects);
        }
    }

    /// After an end: does the container start again, and when?
    fn decide_restart(&mut self, at: usize, now: Instant) {
        let policy = restart_policy(&self.pod).to_owned();
        let stops = self.ending.is_some();
        let unit = &mut self.units[at];
        let failed = unit.ended.as_ref().is_none_or(|ended| ended.exit.code != 0);
        let again = match unit.role {
            _ if stops => false,
            Role::Sidecar => true,
            Role::Init => failed && policy != "Never",
            Role::Main => policy == "Always" || failed && policy == "OnFailure",
        };
        if !again {
            unit.stage = Stage::Done;
            return;
        }
        let wait = unit.restart_backoff.next(now);
        if !wait.is_zero() {
            self.tales.push(tell::waits_to_restart(unit, &self.pod));
        }
        unit.attempt.0 += 1;
        unit.stage = if wait.is_zero() {
            Stage::Waiting
        } else {
            Stage::RestartWait { until: now.after(wait), wait_seconds: wait.as_secs() }
        };
    }

    /// True if nothing of the pod is left to do: no main container comes back, or none can ever start.
    fn is_finished(&self) -> bool {
        let of = |role: Role| self.units.iter().filter(move |unit| unit.role == role);
        of(Role::Init).any(|unit| unit.is_done() && !unit.succeeded()) || of(Role::Main).all(Unit::is_done)
    }

    fn watch_deadline(&mut self, now: Now) {
        if self.deadline().is_some_and(|deadline| deadline <= now.wall) {
            let text = "Pod was active on the node longer than the specified deadline";
            self.tales.push(tale(None, false, "DeadlineExceeded", text));
            self.end(Why::DeadlineExceeded, self.grace(), now.boot);
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        self.ending.is_none().then(|| seconds_after(self.started_at, seconds))
    }

    /// Begins the end, or hastens one that has begun; a longer grace than before changes nothing.
    fn end(&mut self, why: Why, grace: Duration, now: Instant) {
        let kill_at = now.after(grace);
        match &mut self.ending {
            Some(ending) => {
                // A pod that merely finished has no claim to the time it did not need.
                if why > ending.why {
                    ending.why = why;
                }
                ending.kill_at = ending.kill_at.min(kill_at);
            }
            None => self.ending = Some(Ending { why, kill_at }),
        }
    }

    /// Stops the main containers, then the sidecars in reverse, then takes the sandbox down.
    fn wind_down(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Some(ending) = self.ending.clone() else { return };
        let grace = ending.kill_at.since(now);
        let mut later_ones_live = false;
        for unit in self.units.iter_mut().rev() {
            let its_turn = unit.role != Role::Sidecar || !later_ones_live;
            if its_turn && stop(unit, grace, now, effects) {
                self.tales.push(tell::stops(unit));
            }
            later_ones_live |= unit.is_alive();
            if ending.kill_at <= now && unit.is_alive() {
                end_the_late(unit, now, effects);
            }
        }
        if self.units.iter().any(Unit::is_alive) {
            return;
        }
        match self.sandbox {
            SandboxStage::None => self.sandbox = SandboxStage::Removed,
            SandboxStage::Up(_) | SandboxStage::Failed { .. } => {
                self.sandbox = SandboxStage::Removing;
                effects.push(Effect::RemoveSandbox);
            }
            // The answer to what was asked for comes first.
            SandboxStage::Making | SandboxStage::Removing | SandboxStage::Removed => {}
        }
    }

    /// Kills what was asked to stop and did not in its time.
    fn kill_the_late(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for unit in &mut self.units {
            if matches!(unit.stage, Stage::Running { stop: Some(_), .. }) {
                end_the_late(unit, now, effects);
            }
        }
    }

    fn is_gone(&self) -> bool {
        let leaves = self.ending.as_ref().is_some_and(|ending| ending.why >= Why::Deleted);
        leaves && self.sandbox == SandboxStage::Removed
    }

    fn report(&mut self, now: Now, effects: &mut Vec<Effect>) {
        // Nobody reads about a pod that is not bound here, and its name may belong to another.
        if self.over.is_some() || self.ending.as_ref().is_some_and(|ending| ending.why == Why::Unbound) {
            return;
        }
        let status = status::of(self, self.reported.as_ref(), now);
        if self.reported.as_ref() != Some(&status) {
            self.reported = Some(status.clone());
            effects.push(Effect::Report(Box::new(status)));
        }
    }

    /// The earliest moment at which time alone changes something.
    fn ask_to_be_woken(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let mut at: Option<Instant> = None;
        let mut want = |moment: Instant| {
            if moment > now.boot {
                at = Some(at.map_or(moment, |at| at.min(moment)));
            }
        };
        for unit in &self.units {
            match &unit.stage {
                Stage::PullWait { failed_at, until, .. } => {
                    want(failed_at.after(PULL_ERROR_SHOWN));
                    want(*until);
                }
                Stage::StartWait { until, .. } | Stage::RestartWait { until, .. } => want(*until),
                Stage::Running { since, begun, stop, .. } => {
                    if let Some(stop) = stop.filter(|stop| stop.step != Step::Killed) {
                        want(stop.kill_at);
                    }
                    let probed = *begun && stop.is_none();
                    if let Some(next) = unit.probes.next(&unit.spec, *since).filter(|_| probed) {
                        want(next);
                    }
                }
                Stage::Waiting | Stage::Pulling | Stage::Starting | Stage::Done => {}
            }
        }
        if let SandboxStage::Failed { until, .. } = self.sandbox {
            want(until);
        }
        match &self.ending {
            Some(ending) => want(ending.kill_at),
            None => {
                if let Some(deadline) = self.deadline() {
                    // Wall time may be set by hand, so it is looked at again each minute.
                    let left = deadline.as_second().saturating_sub(now.wall.as_second()).clamp(1, 60);
                    want(now.boot.after(Duration::from_secs(left.unsigned_abs())));
                }
            }
        }
        if let Some(at) = at
            && self.wake_at != Some(at)
        {
            self.wake_at = Some(at);
            effects.push(Effect::WakeAt(at));
        }
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(u64::try_from(grace_seconds(&self.pod)).unwrap_or(0))
    }
}

/// Brings a container whose turn has come one step on.
fn drive(unit: &mut Unit, now: Instant, effects: &mut Vec<Effect>) {
    let due = match unit.stage {
        Stage::Waiting => true,
        Stage::PullWait { until, .. } | Stage::StartWait { until, .. } | Stage::RestartWait { until, .. } => {
            until <= now
        }
        Stage::Pulling | Stage::Starting | Stage::Running { .. } | Stage::Done => false,
    };
    if !due {
        return;
    }
    // The start before this one is of no use any more, except for its log.
    if let Some(ended) = unit.ended.as_ref().filter(|ended| ended.attempt < unit.attempt)
        && matches!(unit.stage, Stage::Waiting | Stage::RestartWait { .. })
    {
        effects.push(Effect::RemoveContainer { name: unit.spec.name.clone(), attempt: ended.attempt });
    }
    unit.pull.0 += 1;
    unit.stage = Stage::Pulling;
    effects.push(Effect::PullImage {
        container: unit.name().to_owned(),
        pull: unit.pull,
        image: unit.spec.image.clone().unwrap_or_default(),
        policy: unit.pull_policy(),
    });
}

fn ask_probes(unit: &mut Unit, now: Instant, effects: &mut Vec<Effect>) {
    let Stage::Running { since, begun: true, stop: None, .. } = unit.stage else { return };
    for (kind, probe) in unit.probes.due(&unit.spec, since, now) {
        effects.push(Effect::Probe {
            container: unit.spec.name.clone(),
            attempt: unit.attempt,
            kind,
            probe: Box::new(probe.clone()),
            timeout: probe::timeout(probe),
        });
    }
}

/// Stops a running container, once, its hook first; a shorter grace than before brings its kill forward. Says
/// whether this was the time it was asked.
fn stop(unit: &mut Unit, grace: Duration, now: Instant, effects: &mut Vec<Effect>) -> bool {
    // In a hurry there is no time for hooks: a pod is forced to go, or its replacement may run already.
    let handler = unit.handler(Hook::PreStop).filter(|_| grace >= GRACE_AFTER_HOOK);
    let Stage::Running { stop, .. } = &mut unit.stage else { return false };
    let kill_at = now.after(grace);
    match stop {
        // That little more is not taken back: the grace was over before.
        Some(Stop { step: Step::AskedLate, .. }) => false,
        Some(stop) => {
            stop.kill_at = stop.kill_at.min(kill_at);
            false
        }
        None => {
            let step = if handler.is_some() { Step::Hook } else { Step::Asked };
            *stop = Some(Stop { kill_at, step });
            effects.push(match handler {
                Some(handler) => run_hook(unit, Hook::PreStop, handler, grace),
                None => ask_to_stop(unit, grace),
            });
            true
        }
    }
}

/// Kills a container whose time is up. One that has not been asked yet, because its hook still runs, is asked
/// now; one whose turn had not come at all is killed.
fn end_the_late(unit: &mut Unit, now: Instant, effects: &mut Vec<Effect>) {
    let Stage::Running { stop, .. } = &mut unit.stage else { return };
    let stop = stop.get_or_insert(Stop { kill_at: now, step: Step::Asked });
    if stop.kill_at > now {
        return;
    }
    match stop.step {
        Step::Hook => {
            *stop = Stop { kill_at: now.after(GRACE_AFTER_HOOK), step: Step::AskedLate };
            effects.push(ask_to_stop(unit, GRACE_AFTER_HOOK));
        }
        Step::Asked | Step::AskedLate => {
            stop.step = Step::Killed;
            effects.push(Effect::KillContainer { name: unit.spec.name.clone(), attempt: unit.attempt });
        }
        Step::Killed => {}
    }
}

fn ask_to_stop(unit: &Unit, grace: Duration) -> Effect {
    Effect::StopContainer { name: unit.spec.name.clone(), attempt: unit.attempt, grace }
}

fn run_hook(
    unit: &Unit,
    hook: Hook,
    handler: Box<k8s_openapi::api::core::v1::LifecycleHandler>,
    limit: Duration,
) -> Effect {
    Effect::RunHook { container: unit.spec.name.clone(), attempt: unit.attempt, hook, handler, limit }
}

pub(super) fn restart_policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
}

fn grace_seconds(pod: &Pod) -> i64 {
    let seconds = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    seconds.unwrap_or(GRACE_DEFAULT_SECONDS).max(0)
}

/// The end of a container that nobody saw: kubelet shows it as killed.
pub(super) fn lost(started_at: Timestamp, noticed_at: Timestamp) -> Exit {
    Exit {
        code: 137,
        signal: None,
        oom_killed: false,
        started_at,
        finished_at: noticed_at,
        message: Some("The container could not be located when the pod was looked for".to_owned()),
    }
}

/// Restores the waits of a container that has been started again before.
pub(super) fn resume_backoff(unit: &mut Unit, now: Instant) {
    unit.restart_backoff = Backoff::resumed(unit.attempt.0, now);
}
