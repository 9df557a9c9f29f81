//! From a specification to a program that runs.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::probe::no_device_filter;
use super::table::NewLive;
use super::{Doing, Inner, bundle};
use crate::broken;
use crate::cgroup;
use crate::engine::{ContainerId, ContainerSpec, Error, Running, SandboxSpec};
use crate::logs::{self, ROTATED_MAX};
use crate::own_program;
use crate::record::{self, State};
use crate::rootfs::passwd::Accounts;
use crate::shim;
use crate::sys::process;

/// How long a shim may take to make a container: long enough for a starved machine with a slow disk.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// The longest answer of a shim.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// A container that runs, and its shim.
pub(super) struct Started {
    pub(super) running: Running,
    pub(super) shim: OwnedFd,
    pub(super) child: Child,
}

/// Starts a container. If it fails, nothing is left of it.
pub(super) fn start(inner: &Inner, spec: ContainerSpec) -> Result<Started, Error> {
    let id = spec.id.clone();
    let sandbox = inner.table.sandbox(&id.pod).ok_or_else(|| Error::NoSandbox(id.pod.clone()))?;
    let dir = inner.container_dir(&id);
    let log = inner.log(&sandbox, &id.name, id.attempt);
    if log.exists() {
        return Err(Error::Exists(id));
    }
    if !inner.user_namespace && !inner.cgroups.filters_devices() && !broken!(NoDeviceFilter) {
        return Err(Error::Start { id, reason: no_device_filter(&inner.config.cgroup_mount) });
    }
    bundle::check_layers(&spec.rootfs.lower)?;
    let accounts = Accounts::read(&spec.rootfs.lower, inner.user_namespace)
        .doing(|| format!("read the image of container {id}"))?;
    let bundle = bundle::Bundle::new(inner, &sandbox, &spec, &accounts)?;
    match fs::create_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists(id)),
        other => other.doing(|| format!("make directory {}", dir.display()))?,
    }
    let started = prepare(inner, &sandbox, &spec, &bundle, &dir).and_then(|()| run_shim(&id, &dir));
    match started {
        Ok((child, state)) => register(inner, spec, &bundle, child, &state),
        Err(error) => {
            give_up(inner, &id, &dir, &log);
            Err(error)
        }
    }
}

/// Everything on disk and in cgroups that the shim relies on.
fn prepare(
    inner: &Inner,
    sandbox: &SandboxSpec,
    spec: &ContainerSpec,
    bundle: &bundle::Bundle,
    dir: &Path,
) -> Result<(), Error> {
    let id = &spec.id;
    bundle.write(dir).doing(|| format!("write the bundle of container {id}"))?;
    let log = inner.log(sandbox, &id.name, id.attempt);
    let logs_of_name = log.parent().unwrap_or(&inner.config.logs_dir);
    fs::create_dir_all(logs_of_name).doing(|| format!("make directory {}", logs_of_name.display()))?;
    forget_old_logs(inner, sandbox, id);
    let limited = inner.cgroups.create_container(id, &spec.resources, spec.security.privileged);
    limited.doing(|| format!("limit container {id}"))
}

/// Starts the shim and waits until the program runs.
fn run_shim(id: &ContainerId, dir: &Path) -> Result<(Child, State), Error> {
    let failed = |reason: String| Error::Start { id: id.clone(), reason };
    let errors =
        File::create(dir.join("shim.err")).doing(|| format!("write {}", dir.join("shim.err").display()))?;
    let starting = || "start a shim from /proc/self/exe".to_owned();
    let mut command = own_program::command().doing(starting)?;
    command.arg(shim::ARGUMENT).arg(dir).stdout(Stdio::piped()).stderr(errors);
    let mut child = command.spawn().doing(starting)?;
    let stdout = child.stdout.take().map(|stdout| File::from(OwnedFd::from(stdout)));
    let answer = stdout.map_or_else(|| Ok(Vec::new()), read_answer);
    let answer = answer.unwrap_or_else(|error| format!("no answer from its shim: {error}").into_bytes());
    let state = record::read::<State>(dir, record::STATE_FILE).ok().flatten();
    match state.filter(|_| answer == shim::ANSWER_RUNNING) {
        Some(state) => Ok((child, state)),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            let said =
                if answer.is_empty() { fs::read(dir.join("shim.err")).unwrap_or_default() } else { answer };
            let said = String::from_utf8_lossy(&said).trim().chars().take(1000).collect::<String>();
            Err(failed(if said.is_empty() { "its shim was killed".to_owned() } else { said }))
        }
    }
}

/// Reads until the shim closes its end, within a time.
fn read_answer(mut pipe: File) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + ANSWER_MAX;
    let mut answer = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        let mut chunk = [0; 1024];
        match pipe.read(&mut chunk)? {
            0 => return Ok(answer),
            read => answer.extend_from_slice(&chunk[..read]),
        }
        if answer.len() as u64 > ANSWER_BYTES_MAX || answer == shim::ANSWER_RUNNING {
            return Ok(answer);
        }
    }
}

fn register(
    inner: &Inner,
    spec: ContainerSpec,
    bundle: &bundle::Bundle,
    child: Child,
    state: &State,
) -> Result<Started, Error> {
    let id = spec.id;
    let open = |pid| process::pidfd_open(pid).doing(|| format!("watch container {id}"));
    // The shim is our child and not waited for yet, so its number is its own.
    let shim = open(state.shim.pid)?;
    let running = Running { pid: state.container.pid, started_at: record::from_ms(state.started_at_ms) };
    // A program that has ended already has no number any more, and another process may have got it.
    let pidfd = open(state.container.pid).ok().filter(|_| state.container.is_alive());
    let live = NewLive {
        running: running.clone(),
        labels: spec.labels,
        pidfd,
        stop_signal: bundle.stop_signal,
        started_at_ms: state.started_at_ms,
    };
    inner.table.add_live(id, live);
    Ok(Started { running, shim, child })
}

/// Takes back a start that failed. What cannot be taken back now is found at the next start of the daemon.
fn give_up(inner: &Inner, id: &ContainerId, dir: &Path, log: &Path) {
    let dirs = inner.cgroups.container(id);
    let taken_back = [
        cgroup::kill(&dirs).and_then(|()| cgroup::remove(&dirs)),
        inner.discard(dir),
        // Without it the attempt never was, and may be tried again.
        fs::remove_file(log)
            .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }),
    ];
    for error in taken_back.into_iter().filter_map(Result::err) {
        tracing::warn!(container = %id, %error, "a failed start left something behind");
    }
}

/// Two attempts keep their logs: this one and the one before.
fn forget_old_logs(inner: &Inner, sandbox: &SandboxSpec, id: &ContainerId) {
    let entries = fs::read_dir(inner.pod_logs(sandbox).join(&id.name)).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let attempt = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u32>().ok());
        let Some(attempt) = attempt.filter(|attempt| attempt.saturating_add(1) < id.attempt) else {
            continue;
        };
        let newest = inner.log(sandbox, &id.name, attempt);
        // The oldest piece first: as long as one is left, the newest one names the attempt.
        for age in (0..=ROTATED_MAX).rev() {
            let _ = fs::remove_file(logs::rotated(&newest, age));
        }
    }
}
