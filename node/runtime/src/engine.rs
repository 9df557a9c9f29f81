//! What a container engine promises, whatever it is made of.
//!
//! [`Machine`](crate::Machine) keeps the promise with Linux, [`Fake`](crate::Fake) in memory; one suite
//! of tests (`tests/contract.rs`) holds both to it.

mod id;
mod spec;
mod status;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

pub(crate) use id::check_name;
pub use id::{ContainerId, InvalidName, PodUid};
pub use spec::{
    Capabilities, ContainerSpec, ImageConfig, Mount, MountSource, Network, NetworkFiles, Resources,
    RootfsSource, SandboxSpec, Seccomp, Security, User, Volume, VolumeFile,
};
pub use status::{Container, ContainerState, End, Exit, Exits, Ran, Running, Sandbox, Stats, Usage};

use crate::logs::{LogOptions, LogStream};

/// Sandboxes and containers of one machine.
///
/// Order of calls for a pod: [`create_sandbox`](Engine::create_sandbox), then its address is attached
/// to [`Sandbox::netns`] by others, then [`put_volume`](Engine::put_volume) for each volume, then
/// [`start`](Engine::start) for each container, and in the end
/// [`remove_sandbox`](Engine::remove_sandbox), which takes everything along.
///
/// Every call may be cut off by the death of the daemon at any instruction: what it had begun is then
/// either complete (and found by [`list`](Engine::list)) or cleaned up at the next start.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Makes the namespaces, cgroup and directories of a pod. Doing it twice gives the same sandbox.
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, Error>;

    /// Kills every container of the pod and removes all that belongs to it: cgroups, mounts, namespaces,
    /// volumes, records and logs. A pod that is not there is fine: the wish has come true.
    async fn remove_sandbox(&self, pod: &PodUid) -> Result<(), Error>;

    /// Makes or replaces a volume of the pod. Returns where it lies on this machine.
    ///
    /// A directory or memory volume that exists keeps its content; files are replaced as a whole.
    async fn put_volume(&self, pod: &PodUid, name: &str, volume: Volume) -> Result<PathBuf, Error>;

    /// Creates and starts a container; returns once its program has really been executed.
    ///
    /// An attempt is started at most once, ever: a second call with the same id gives
    /// [`Error::Exists`], also after the daemon was restarted in between.
    async fn start(&self, spec: ContainerSpec) -> Result<Running, Error>;

    /// Asks the container to end, waits up to `grace`, then kills it. Returns its end.
    ///
    /// A container that has ended already gives that end again. Dropping the future takes the kill
    /// back, not the signal.
    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<Exit, Error>;

    /// Kills every process of the container at once. Returns its end.
    async fn kill(&self, id: &ContainerId) -> Result<Exit, Error>;

    /// Runs a program inside of a running container, as the container's user and with its rights, and waits
    /// for its end. It counts for the container's limits, and ends with it.
    ///
    /// A program that is not there, or may not be executed, has ended with 127. One that runs longer than
    /// `limit` is killed: [`Error::TooLong`]. Dropping the future kills it as well.
    async fn exec(&self, id: &ContainerId, command: &[String], limit: Duration) -> Result<Ran, Error>;

    /// Forgets a container that has ended; its log stays until two newer attempts exist or the pod goes.
    async fn remove(&self, id: &ContainerId) -> Result<(), Error>;

    /// All sandboxes and their containers, in order of their ids.
    async fn list(&self) -> Result<Vec<Sandbox>, Error>;

    /// Every end of a container from now on, preceded by the ends of those that are still listed.
    ///
    /// So a subscriber misses nothing, whenever it comes, and may hear of an end twice over two
    /// subscriptions. In order of arrival.
    fn exits(&self) -> Exits;

    /// What the pod and each of its containers use.
    async fn stats(&self, pod: &PodUid) -> Result<Stats, Error>;

    /// The output of the newest attempt of a container (or the one before it) as it was written.
    async fn logs(&self, pod: &PodUid, container: &str, options: LogOptions) -> Result<LogStream, Error>;
}

/// Why an engine did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was changed.
    #[error("pod {0} has no sandbox on this machine; create it first")]
    NoSandbox(PodUid),
    /// Nothing was changed.
    #[error("container {0} is not on this machine")]
    NoContainer(ContainerId),
    /// Nothing was changed; the first start of this attempt counts.
    #[error("container {0} was started before; a new start needs the next attempt number")]
    Exists(ContainerId),
    /// Nothing was changed.
    #[error("container {0} is still running; stop it first")]
    StillRunning(ContainerId),
    /// Nothing was changed.
    #[error("container {0} is not running")]
    NotRunning(ContainerId),
    /// The program was killed.
    #[error("a program in container {id} did not end within {limit:?}")]
    TooLong {
        /// The container.
        id: ContainerId,
        /// How long it had.
        limit: Duration,
    },
    /// Nothing was changed.
    #[error("no log of container {container:?} of pod {pod} (attempt {attempt:?})")]
    NoLog {
        /// The pod that was asked for.
        pod: PodUid,
        /// The name of the container.
        container: String,
        /// The attempt, where it is known.
        attempt: Option<u32>,
    },
    /// Nothing was changed: the specification itself cannot be done.
    #[error("cannot use {what}: {why}")]
    Refused {
        /// The part of the specification, with its value.
        what: String,
        /// Why, and what would be accepted.
        why: String,
    },
    /// The container never ran its program; nothing of it is left.
    #[error("could not start container {id}: {reason}")]
    Start {
        /// The container.
        id: ContainerId,
        /// The step that failed and the kernel's word for it.
        reason: String,
    },
    /// What was begun is cleaned up at the next start or by `remove_sandbox`.
    #[error("could not {doing}")]
    Io {
        /// What was tried, and on which path.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
