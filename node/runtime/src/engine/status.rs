//! What an engine tells about sandboxes and containers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{ContainerId, SandboxSpec};

/// A pod's surroundings as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// What was asked for.
    pub spec: SandboxSpec,
    /// The file that holds the pod's network namespace; `None` with the machine's network.
    pub netns: Option<PathBuf>,
    /// Whether its namespaces still exist. After a restart of the machine they do not: remove it and make it anew.
    pub ready: bool,
    /// In order of name and attempt.
    pub containers: Vec<Container>,
}

/// A container as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Which.
    pub id: ContainerId,
    /// How it is.
    pub state: ContainerState,
    /// The caller's own notes.
    pub labels: BTreeMap<String, String>,
}

/// How a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Its program runs.
    Running(Running),
    /// It runs no more.
    Ended(Exit),
}

/// A program that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its first process, as the machine numbers it; 0 in the fake.
    pub pid: i32,
    /// When the program was executed.
    pub started_at: SystemTime,
}

/// How and when a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// How.
    pub end: End,
    /// When its program was executed, as far as known.
    pub started_at: Option<SystemTime>,
    /// When it ended, or for [`End::Lost`] when that was noticed.
    pub finished_at: SystemTime,
    /// What it left in its termination message file, at most 4096 bytes.
    pub message: Option<String>,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum End {
    /// Its first process ended.
    Exited {
        /// As a shell shows it: 128 + signal for a killed one.
        code: i32,
        /// The signal that killed it.
        signal: Option<i32>,
        /// Whether the kernel killed in it because its memory limit was reached.
        oom: bool,
    },
    /// Nobody saw how: its shim was killed or the machine was restarted. Nothing of it runs.
    Lost,
    /// Its program was never executed.
    Failed {
        /// The step that failed and the kernel's word for it.
        reason: String,
    },
}

/// What came of a program that was run inside of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// As a shell shows it: 128 + signal for a killed one.
    pub code: i32,
    /// The first 10 KiB of what it printed, on either output. More is read and dropped.
    pub output: Vec<u8>,
}

/// The ends of containers as they come.
#[derive(Debug)]
pub struct Exits(mpsc::UnboundedReceiver<(ContainerId, Exit)>);

impl Exits {
    /// A stream and its sending end. Unbounded is bounded here: each container sends once.
    pub(crate) fn channel() -> (mpsc::UnboundedSender<(ContainerId, Exit)>, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, Self(receiver))
    }

    /// The next end; `None` once the engine is gone. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<(ContainerId, Exit)> {
        self.0.recv().await
    }

    /// The next end that has already come.
    pub fn try_next(&mut self) -> Option<(ContainerId, Exit)> {
        self.0.try_recv().ok()
    }
}

/// What a pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// All its containers together.
    pub pod: Usage,
    /// Each container that runs.
    pub containers: BTreeMap<ContainerId, Usage>,
}

/// What processes have used and hold. All zero where the machine does not count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since the start.
    pub cpu: Duration,
    /// Memory and page cache.
    pub memory_bytes: u64,
    /// Memory without the page cache that could go at once: what limits and `kubectl top` mean.
    pub working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}
