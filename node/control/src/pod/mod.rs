//! A pod's life on its node: one state machine per pod, from the binding to the last process.
//!
//! The shell performs the [`Effect`]s in order and returns at once; whatever takes time comes back as an
//! [`Input`]. Every order to a container carries its attempt, and answers of another attempt are ignored.
//!
//! Order of calls: [`PodLife::new`] or [`PodLife::adopt`], then [`PodLife::handle`] with
//! [`Input::Desired`] first, and from then on with whatever happens, until [`Effect::Gone`].

mod adopt;
mod backoff;
mod life;
mod probe;
pub mod report;
mod status;
mod tell;
mod unit;

#[cfg(test)]
mod tests;

pub use life::PodLife;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod, PodStatus, Probe};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::time::Instant;

/// Whether its node is done with a pod that a finalizer holds: there is nothing left to run or to stop.
pub fn is_given_up(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && pod.metadata.deletion_grace_period_seconds == Some(0)
}

/// Counts the sandboxes that were asked for: a late answer to an older one is ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SandboxAttempt(pub u32);

/// Counts the starts of one container; it is the container's restart count, and names its log file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(pub u32);

/// Counts the pulls of one container's image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PullAttempt(pub u32);

/// What happens to a pod on its node.
#[derive(Clone, Debug)]
pub enum Input {
    /// The pod as the map has it now; `None` if it is gone, or bound to another node, or its name belongs
    /// to another uid: then it is stopped at once and no object is deleted for it.
    Desired(Option<Arc<Pod>>),
    /// The sandbox is up (network attached), or could not be made.
    Sandbox {
        /// The attempt that this answers.
        attempt: SandboxAttempt,
        /// The sandbox, or why there is none.
        result: Result<Sandbox, String>,
    },
    /// Everything of the sandbox is gone.
    SandboxRemoved,
    /// An image is here, or could not be had.
    Image {
        /// Whose image.
        container: String,
        /// The pull that this answers.
        pull: PullAttempt,
        /// The image, or why there is none.
        result: Result<Image, ImageError>,
    },
    /// A container became something else.
    Container {
        /// Its name.
        name: String,
        /// Which start of it.
        attempt: Attempt,
        /// What it is now.
        state: ContainerState,
    },
    /// A probe asked for by [`Effect::Probe`] has its answer.
    Probed {
        /// Whose probe.
        container: String,
        /// The start of the container that was probed.
        attempt: Attempt,
        /// Which of its probes.
        kind: ProbeKind,
        /// Why it failed, if it did. A probe that ran out of time has failed.
        result: Result<(), String>,
    },
    /// A hook asked for by [`Effect::RunHook`] is over.
    Hooked {
        /// Whose hook.
        container: String,
        /// The start of the container that it was run for.
        attempt: Attempt,
        /// Which of its hooks.
        hook: Hook,
        /// Why it failed, if it did. One that ran out of time has failed.
        result: Result<(), String>,
    },
    /// The moment asked for by [`Effect::WakeAt`] came.
    Woken,
}

/// A sandbox that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The pod's addresses, the primary one first.
    pub addresses: Vec<String>,
}

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its digest, as `imageID` shows it.
    pub id: String,
}

/// Why an image could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It is not here, and the policy forbids to fetch it.
    #[error("image is not present with pull policy of Never")]
    NeverPull,
    /// The reference says nothing that could be looked for.
    #[error("couldn't parse image name: {0}")]
    InvalidName(String),
    /// No registry and no peer gave it.
    #[error("{0}")]
    Pull(String),
}

/// What a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Its process runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// Its process ended.
    Exited(Exit),
    /// It could not be started; nothing of it is left.
    Failed(StartError),
    /// It ran, and how it ended is not known: its shim was killed, or the machine was.
    Lost {
        /// When that was noticed.
        noticed_at: Timestamp,
    },
}

/// How a container's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + signal where a signal ended it.
    pub code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// The kernel killed it for memory.
    pub oom_killed: bool,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// What it left in its termination message file, or its last lines of log if it asked for those.
    pub message: Option<String>,
}

/// Why a container could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    /// The reason that users see, as kubelet says it: `CreateContainerConfigError`,
    /// `CreateContainerError`, `RunContainerError`, or `ContainerCreating` while a volume is not there.
    pub reason: String,
    /// The text beside it.
    pub message: String,
}

/// When a container's image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry each time.
    Always,
    /// Only if it is not here.
    IfNotPresent,
    /// Never.
    Never,
}

/// A container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Until it succeeds, no other probe runs.
    Startup,
    /// Says whether the container is ready.
    Readiness,
    /// Says whether it must be restarted.
    Liveness,
}

/// A container's hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Right after it has started, beside its own program. Until it has ended, the container is not ready and
    /// nothing is probed; if it fails, the container is stopped.
    PostStart,
    /// Before it is asked to stop, within its grace.
    PreStop,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hook::PostStart => "postStart",
            Hook::PreStop => "preStop",
        })
    }
}

/// What the shell must do. Nothing here waits: answers come back as inputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make namespaces and network; answer with [`Input::Sandbox`].
    MakeSandbox {
        /// Comes back with the answer.
        attempt: SandboxAttempt,
    },
    /// Have the image here; answer with [`Input::Image`].
    PullImage {
        /// For which container.
        container: String,
        /// Comes back with the answer.
        pull: PullAttempt,
        /// The reference in the spec.
        image: String,
        /// Whether to ask the registry.
        policy: PullPolicy,
    },
    /// Start the container from this image by [`crate::container::plan`]; answer with [`Input::Container`].
    /// A plan that cannot be made is answered with [`ContainerState::Failed`].
    StartContainer {
        /// Its name in the spec.
        name: String,
        /// Comes back with every answer.
        attempt: Attempt,
        /// What [`Input::Image`] brought.
        image: Image,
    },
    /// Ask it to stop (its stop signal, once). The machine says itself when the grace is over.
    StopContainer {
        /// Its name in the spec.
        name: String,
        /// Which start of it.
        attempt: Attempt,
        /// How long it has; for what runs before the signal.
        grace: Duration,
    },
    /// Kill it now, with all its processes.
    KillContainer {
        /// Its name in the spec.
        name: String,
        /// Which start of it.
        attempt: Attempt,
    },
    /// Remove an ended container: all but its log. Unknown ones are no error.
    RemoveContainer {
        /// Its name in the spec.
        name: String,
        /// Which start of it.
        attempt: Attempt,
    },
    /// Take down network, namespaces, volumes and ended containers; answer with [`Input::SandboxRemoved`].
    RemoveSandbox,
    /// Run a probe once; answer with [`Input::Probed`] within `timeout`.
    Probe {
        /// Whose probe.
        container: String,
        /// Comes back with the answer.
        attempt: Attempt,
        /// Comes back with the answer.
        kind: ProbeKind,
        /// What to do: `exec`, `httpGet`, `tcpSocket` or `grpc`.
        probe: Box<Probe>,
        /// After which it has failed.
        timeout: Duration,
    },
    /// Run a hook; answer with [`Input::Hooked`] within `limit`.
    RunHook {
        /// Whose hook.
        container: String,
        /// Comes back with the answer.
        attempt: Attempt,
        /// Comes back with the answer.
        hook: Hook,
        /// What to do: `exec`, `httpGet` or `sleep`.
        handler: Box<LifecycleHandler>,
        /// After which it has failed.
        limit: Duration,
    },
    /// Tell users what happened: an Event about the pod, or about this part of it.
    Tell {
        /// `spec.containers{main}`; `None` for the whole pod.
        part: Option<String>,
        /// Something that should not be.
        warning: bool,
        /// One word, as kubelet says it.
        reason: &'static str,
        /// A sentence, as kubelet says it.
        message: String,
    },
    /// The pod's status is now this; the latest one wins.
    Report(Box<PodStatus>),
    /// Nothing of the pod is left here; forget this machine.
    Gone {
        /// Delete the object, if it still has this pod's uid: its deletion waited for this.
        delete: bool,
    },
    /// Give [`Input::Woken`] at this moment; replaces every earlier wish.
    WakeAt(Instant),
}

/// What was found of a pod when the daemon came back: nothing of it restarts for that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The sandbox, if it stands.
    pub sandbox: Option<Sandbox>,
    /// The newest start of each container that left a trace.
    pub containers: Vec<FoundContainer>,
}

/// One container that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundContainer {
    /// Its name in the spec.
    pub name: String,
    /// Which start of it.
    pub attempt: Attempt,
    /// Its image, if known.
    pub image: Option<Image>,
    /// What it is.
    pub state: ContainerState,
}
