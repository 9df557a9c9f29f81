//! The [`Engine`] of a real Linux machine.
//!
//! ```text
//! <data>/pods/<uid>/sandbox.json                what was asked for
//! <data>/pods/<uid>/ns/{net,ipc,uts}            its namespaces, pinned
//! <data>/pods/<uid>/{shm,volumes/<name>}        what its containers share
//! <data>/pods/<uid>/c/<name>-<attempt>/         one container: see `bundle` and `record`
//! <data>/trash                                  on its way out
//! <logs>/<namespace>_<name>_<uid>/<container>/<attempt>.log
//! ```
//!
//! What is in memory here can be read back from those files and the kernel at any moment; that is what
//! [`Machine::open`] does. Blocking work runs on tokio's blocking threads, and in tasks of its own, so
//! that a caller who loses patience cuts nothing in half.

mod adopt;
mod bundle;
mod exec;
mod probe;
mod remains;
mod start;
mod table;
mod trial;
mod volume;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::cgroup::{self, Cgroups};
use crate::engine::{
    ContainerId, ContainerSpec, End, Engine, Error, Exit, Exits, Network, PodUid, Ran, Running, Sandbox,
    SandboxSpec, Stats, Volume,
};
use crate::logs::{self, LogOptions, LogStream};
use crate::record::{self, Boot, Durability, ExitRecord};
use crate::sandbox;
use crate::shim;
use crate::sys::process;

pub use probe::{CGROUP_MOUNT, Probe, in_user_namespace, missing};
pub use remains::{Remains, unmount_below};
use table::Table;
pub use trial::try_directory;

/// What the pod was made of.
const SANDBOX_FILE: &str = "sandbox.json";

/// Where an engine lives. Two engines on one machine differ in every field but the cgroup mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Everything about pods lies below it: records, namespaces, volumes, writable layers. Local disk.
    pub data_dir: PathBuf,
    /// Logs lie below it, as `<namespace>_<pod>_<uid>/<container>/<attempt>.log`.
    pub logs_dir: PathBuf,
    /// Our cgroup below the root of each hierarchy, such as `skein/<node id>`.
    pub cgroup: PathBuf,
    /// Whose the cgroup is, in a few letters and digits: written into it, and held while this engine lives, so that what
    /// runs there is known by it when nothing else tells ([`Remains`]). `None`: nobody's.
    pub owner: Option<String>,
    /// Where the cgroup file systems are mounted: [`CGROUP_MOUNT`].
    pub cgroup_mount: PathBuf,
    /// Whether containers that say nothing of capabilities have MKNOD and NET_RAW, as under other runtimes.
    pub usual_capabilities: bool,
}

/// The containers of this machine. Clones are handles on the same engine.
#[derive(Clone, Debug)]
pub struct Machine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    cgroups: Cgroups,
    boot: Boot,
    user_namespace: bool,
    table: Table,
    /// What says that this engine's owner is alive.
    _held: Vec<File>,
    /// Where containers are watched: it must outlive whoever happens to call.
    runtime: tokio::runtime::Handle,
}

impl Machine {
    /// Takes up what runs already, cleans up what was cut off, and is ready for calls.
    ///
    /// Containers that ended meanwhile are listed with their end. Must be called within a tokio runtime.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        let inner = blocking(move || Inner::open(config, runtime)).await?;
        let machine = Self(Arc::new(inner));
        let found = machine.clone();
        let running = blocking(move || adopt::adopt(&found.0)).await?;
        for (id, shim) in running {
            machine.watch(id, shim, None);
        }
        Ok(machine)
    }

    /// What this machine can do for containers, tried out.
    pub fn probe(config: &Config) -> Probe {
        probe::probe(config)
    }

    /// Where the engine lives.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Removes every sandbox, and our own cgroups: nothing of this engine is left but empty directories.
    pub async fn purge(&self) -> Result<(), Error> {
        for sandbox in self.list().await? {
            self.remove_sandbox(&sandbox.spec.pod).await?;
        }
        let inner = Arc::clone(&self.0);
        blocking(move || inner.cgroups.remove_ours().doing(|| "remove our cgroups".to_owned())).await
    }

    /// Waits in the background until the shim of a running container has ended.
    fn watch(&self, id: ContainerId, shim: OwnedFd, child: Option<Child>) {
        let inner = Arc::clone(&self.0);
        self.0.runtime.spawn(async move {
            if let Err(error) = process::ended(shim).await {
                tracing::error!(container = %id, %error, "cannot wait for a shim; its container counts as lost");
            }
            let finished = tokio::task::spawn_blocking(move || {
                if let Some(mut child) = child {
                    let _ = child.wait();
                }
                inner.finish(&id);
            });
            let _ = finished.await;
        });
    }
}

impl Inner {
    fn open(config: Config, runtime: tokio::runtime::Handle) -> Result<Self, Error> {
        for dir in [&config.data_dir.join("pods"), &config.data_dir.join("trash"), &config.logs_dir] {
            fs::create_dir_all(dir).doing(|| format!("make directory {}", dir.display()))?;
        }
        let data_dir =
            fs::canonicalize(&config.data_dir).doing(|| format!("find {}", config.data_dir.display()))?;
        let logs_dir =
            fs::canonicalize(&config.logs_dir).doing(|| format!("find {}", config.logs_dir.display()))?;
        let config = Config { data_dir, logs_dir, ..config };
        let cgroups =
            Cgroups::open(&config.cgroup_mount, &config.cgroup).doing(|| "find cgroups".to_owned())?;
        let held = match config.owner.as_deref().map_or(Ok(Vec::new()), |owner| cgroups.claim(owner)) {
            // Two engines in one group would end each other's containers.
            Err(source) if source.kind() == io::ErrorKind::ResourceBusy => {
                return Err(Error::Io { doing: format!("take cgroup {}", config.cgroup.display()), source });
            }
            Err(error) => {
                tracing::warn!(%error, "could not mark our cgroup; what is left here is not found without our files");
                Vec::new()
            }
            Ok(held) => held,
        };
        let boot = Boot::current().doing(|| "read the boot id from /proc".to_owned())?;
        Ok(Self {
            config,
            cgroups,
            boot,
            user_namespace: in_user_namespace(),
            table: Table::default(),
            _held: held,
            runtime,
        })
    }

    fn pod_dir(&self, pod: &PodUid) -> PathBuf {
        self.config.data_dir.join("pods").join(pod.as_str())
    }

    fn container_dir(&self, id: &ContainerId) -> PathBuf {
        self.pod_dir(&id.pod).join("c").join(id.dir_name())
    }

    fn pod_logs(&self, spec: &SandboxSpec) -> PathBuf {
        self.config.logs_dir.join(format!("{}_{}_{}", spec.namespace, spec.name, spec.pod))
    }

    fn log(&self, spec: &SandboxSpec, name: &str, attempt: u32) -> PathBuf {
        self.pod_logs(spec).join(name).join(format!("{attempt}.log"))
    }

    /// Moves a directory out of everybody's sight in one step, then deletes it.
    fn discard(&self, dir: &Path) -> io::Result<()> {
        let name = dir.strip_prefix(&self.config.data_dir).unwrap_or(dir).to_string_lossy().replace('/', "_");
        let trash = self.config.data_dir.join("trash").join(name);
        match fs::rename(dir, &trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // An earlier try is still there.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => {
                remove_all(&trash)?;
                fs::rename(dir, &trash)?;
            }
            other => other?,
        }
        remove_all(&trash)
    }

    /// The end of a container whose shim has ended: as the shim wrote it, else lost.
    fn finish(&self, id: &ContainerId) {
        let dir = self.container_dir(id);
        let record = record::read::<ExitRecord>(&dir, record::EXIT_FILE).unwrap_or_default();
        let exit = record.unwrap_or_else(|| self.finish_lost(id, &dir));
        self.table.end(id, exit.into_exit());
    }

    /// Makes sure that nothing of a lost container runs, and notes it.
    fn finish_lost(&self, id: &ContainerId, dir: &Path) -> ExitRecord {
        let started_at_ms = self.table.live(id).map(|live| live.started_at_ms);
        self.kill_processes(id);
        let dirs = self.cgroups.container(id);
        if let Err(error) = cgroup::kill(&dirs).and_then(|()| cgroup::remove(&dirs)) {
            tracing::error!(container = %id, %error, "a container without its shim does not end");
        }
        let exit = ExitRecord::new(End::Lost, started_at_ms);
        if let Err(error) = record::write(dir, record::EXIT_FILE, &exit, Durability::Durable) {
            tracing::warn!(container = %id, %error, "could not write down that a container was lost");
        }
        exit
    }

    /// Kills all of a container: by its first process, with which its pid namespace dies, and by cgroup.
    fn kill_processes(&self, id: &ContainerId) {
        if let Some(live) = self.table.live(id) {
            live.signal(libc::SIGKILL);
        }
        if let Err(error) = cgroup::kill(&self.cgroups.container(id)) {
            tracing::warn!(container = %id, %error, "killing a container takes long");
        }
    }

    fn create_sandbox(&self, spec: &SandboxSpec) -> Result<(), Error> {
        check_sandbox(spec)?;
        let dir = self.pod_dir(&spec.pod);
        for part in ["c", "volumes"] {
            fs::create_dir_all(dir.join(part))
                .doing(|| format!("make directory {}", dir.join(part).display()))?;
        }
        // First, so that whatever follows is found and removed if we are cut off.
        let written = record::write(&dir, SANDBOX_FILE, spec, Durability::Durable);
        written.doing(|| format!("write {}", dir.join(SANDBOX_FILE).display()))?;
        self.cgroups.create_pod(&spec.pod, &spec.resources).doing(|| format!("limit pod {}", spec.pod))?;
        if !sandbox::is_ready(&dir, spec.network) {
            // Half of one, or files left of one from before the machine was restarted.
            for part in ["ns", "shm"] {
                sandbox::unmount_below(&dir.join(part))
                    .doing(|| format!("unmount {}", dir.join(part).display()))?;
            }
            sandbox::create(&dir, spec).doing(|| format!("make the namespaces of pod {}", spec.pod))?;
        }
        Ok(())
    }

    fn remove_sandbox(&self, pod: &PodUid) -> Result<(), Error> {
        let dir = self.pod_dir(pod);
        self.cgroups.remove_pod(pod).doing(|| format!("remove the cgroups of pod {pod}"))?;
        sandbox::unmount_below(&dir).doing(|| format!("unmount below {}", dir.display()))?;
        if let Some(spec) = self.table.sandbox(pod) {
            remove_all(&self.pod_logs(&spec)).doing(|| format!("remove the logs of pod {pod}"))?;
        }
        self.discard(&dir).doing(|| format!("remove {}", dir.display()))?;
        self.table.remove_sandbox(pod);
        Ok(())
    }

    fn to_sandbox(&self, spec: SandboxSpec) -> Sandbox {
        let dir = self.pod_dir(&spec.pod);
        let netns = (spec.network == Network::Pod).then(|| sandbox::pin(&dir, "net"));
        let ready = sandbox::is_ready(&dir, spec.network);
        let containers = self.table.containers(&spec.pod);
        Sandbox { spec, netns, ready, containers }
    }

    fn list(&self) -> Vec<Sandbox> {
        self.table.sandboxes().into_iter().map(|spec| self.to_sandbox(spec)).collect()
    }

    /// The newest attempt of a container that has a log, or the one before it.
    fn newest_log(&self, spec: &SandboxSpec, container: &str, previous: bool) -> Option<u32> {
        let entries = fs::read_dir(self.pod_logs(spec).join(container)).into_iter().flatten().flatten();
        let attempt = |name: &str| name.strip_suffix(".log")?.parse::<u32>().ok();
        let mut attempts: Vec<_> = entries.filter_map(|entry| attempt(entry.file_name().to_str()?)).collect();
        attempts.sort_unstable_by(|a, b| b.cmp(a));
        attempts.get(usize::from(previous)).copied()
    }
}

#[async_trait]
impl Engine for Machine {
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, Error> {
        let inner = Arc::clone(&self.0);
        detached(async move {
            let _alone = inner.table.pod_lock(&spec.pod).write_owned().await;
            let known = inner.table.sandbox(&spec.pod).unwrap_or(spec);
            blocking(move || {
                inner.create_sandbox(&known)?;
                inner.table.add_sandbox(known.clone());
                Ok(inner.to_sandbox(known))
            })
            .await
        })
        .await
    }

    async fn remove_sandbox(&self, pod: &PodUid) -> Result<(), Error> {
        let (machine, pod) = (self.clone(), pod.clone());
        detached(async move {
            let _alone = machine.0.table.pod_lock(&pod).write_owned().await;
            for container in machine.0.table.containers(&pod) {
                machine.kill(&container.id).await?;
            }
            let inner = Arc::clone(&machine.0);
            blocking(move || inner.remove_sandbox(&pod)).await
        })
        .await
    }

    async fn put_volume(&self, pod: &PodUid, name: &str, volume: Volume) -> Result<PathBuf, Error> {
        let (inner, pod, name) = (Arc::clone(&self.0), pod.clone(), name.to_owned());
        detached(async move {
            let _shared = inner.table.pod_lock(&pod).read_owned().await;
            blocking(move || {
                inner.table.sandbox(&pod).ok_or_else(|| Error::NoSandbox(pod.clone()))?;
                volume::put(&inner.pod_dir(&pod).join("volumes"), &name, &volume)
            })
            .await
        })
        .await
    }

    async fn start(&self, spec: ContainerSpec) -> Result<Running, Error> {
        let machine = self.clone();
        detached(async move {
            let _shared = machine.0.table.pod_lock(&spec.id.pod).read_owned().await;
            let inner = Arc::clone(&machine.0);
            let id = spec.id.clone();
            let started = blocking(move || start::start(&inner, spec)).await?;
            machine.watch(id, started.shim, Some(started.child));
            Ok(started.running)
        })
        .await
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<Exit, Error> {
        let Some(live) = self.0.table.live(id) else { return self.0.table.ended(id) };
        live.signal(live.stop_signal);
        if tokio::time::timeout(grace, ended(live.ended.clone())).await.is_err() {
            return self.kill(id).await;
        }
        self.0.table.ended(id)
    }

    async fn kill(&self, id: &ContainerId) -> Result<Exit, Error> {
        let Some(live) = self.0.table.live(id) else { return self.0.table.ended(id) };
        let (inner, container) = (Arc::clone(&self.0), id.clone());
        detached(async move {
            let killing = move || {
                inner.kill_processes(&container);
                Ok(())
            };
            blocking(killing).await?;
            ended(live.ended.clone()).await;
            Ok(())
        })
        .await?;
        self.0.table.ended(id)
    }

    async fn exec(&self, id: &ContainerId, command: &[String], limit: Duration) -> Result<Ran, Error> {
        if self.0.table.live(id).is_none() {
            return Err(self.0.table.ended(id).map_or_else(|error| error, |_| Error::NotRunning(id.clone())));
        }
        exec::run(id, &self.0.container_dir(id), command, limit).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        let (inner, id) = (Arc::clone(&self.0), id.clone());
        detached(async move {
            let _shared = inner.table.pod_lock(&id.pod).read_owned().await;
            if inner.table.live(&id).is_some() {
                return Err(Error::StillRunning(id));
            }
            blocking(move || {
                let dirs = inner.cgroups.container(&id);
                cgroup::remove(&dirs).doing(|| format!("remove the cgroup of container {id}"))?;
                let dir = inner.container_dir(&id);
                inner.discard(&dir).doing(|| format!("remove {}", dir.display()))?;
                inner.table.remove(&id);
                Ok(())
            })
            .await
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Sandbox>, Error> {
        let inner = Arc::clone(&self.0);
        blocking(move || Ok(inner.list())).await
    }

    fn exits(&self) -> Exits {
        self.0.table.subscribe()
    }

    async fn stats(&self, pod: &PodUid) -> Result<Stats, Error> {
        let (inner, pod) = (Arc::clone(&self.0), pod.clone());
        blocking(move || {
            inner.table.sandbox(&pod).ok_or_else(|| Error::NoSandbox(pod.clone()))?;
            let ids = inner.table.running(&pod).into_iter();
            let containers =
                ids.map(|id| (id.clone(), inner.cgroups.usage(&inner.cgroups.container(&id)))).collect();
            Ok(Stats { pod: inner.cgroups.usage(&inner.cgroups.pod(&pod)), containers })
        })
        .await
    }

    async fn logs(&self, pod: &PodUid, container: &str, options: LogOptions) -> Result<LogStream, Error> {
        let (inner, pod, container) = (Arc::clone(&self.0), pod.clone(), container.to_owned());
        blocking(move || {
            let spec = inner.table.sandbox(&pod).ok_or_else(|| Error::NoSandbox(pod.clone()))?;
            let attempt = inner.newest_log(&spec, &container, options.previous);
            let missing = || Error::NoLog { pod: pod.clone(), container: container.clone(), attempt };
            let attempt = attempt.ok_or_else(missing)?;
            let id = ContainerId { pod: pod.clone(), name: container.clone(), attempt };
            let ended =
                inner.table.live(&id).map_or_else(|| watch::channel(true).1, |live| live.ended.clone());
            let log = inner.log(&spec, &container, attempt);
            match logs::reader::stream(log, options, ended) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
                other => other.doing(|| format!("read the log of container {id}")),
            }
        })
        .await
    }
}

/// Does the work of a shim if this process was started as one; the program's `main` calls it first.
///
/// `None`: it is the program itself. Nothing must run before this, least of all other threads.
pub fn main_if_shim() -> Option<ExitCode> {
    shim::main_if_asked()
}

/// Waits for the end; a table that is gone ends everything.
async fn ended(mut ended: watch::Receiver<bool>) {
    let _ = ended.wait_for(|ended| *ended).await;
}

/// What goes into paths and namespaces, checked before anything is made.
fn check_sandbox(spec: &SandboxSpec) -> Result<(), Error> {
    let refused = |what: String, why: &str| Err(Error::Refused { what, why: why.to_owned() });
    for name in [&spec.namespace, &spec.name] {
        if name.is_empty() || name.len() > 253 || name.contains('/') || name.starts_with('.') {
            return refused(format!("pod name {name:?}"), "it must be a name as Kubernetes has them");
        }
    }
    if spec.hostname.len() > 64 {
        return refused(format!("hostname {:?}", spec.hostname), "Linux takes at most 64 bytes");
    }
    if let Some(name) = sandbox::foreign_sysctl(spec) {
        return refused(
            format!("sysctl {name:?}"),
            "it belongs to the whole machine; only settings of the pod's own namespaces can be set",
        );
    }
    Ok(())
}

/// Deletes a directory; one that is not there is deleted.
fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Says what was tried when a step failed.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Io { doing: what(), source })
    }
}

/// Runs blocking work on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    joined(tokio::task::spawn_blocking(work)).await
}

/// Runs work that must be finished once it is begun, even if the caller goes away.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    joined(tokio::spawn(work)).await
}

async fn joined<T>(task: tokio::task::JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    let lost =
        |error| Error::Io { doing: "finish what was begun".to_owned(), source: io::Error::other(error) };
    task.await.unwrap_or_else(|error| Err(lost(error)))
}
