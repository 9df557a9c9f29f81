//! The small process beside each container.
//!
//! It makes the container, tells the daemon that the program runs, copies the program's output into the
//! log, and writes down how it ended. It outlives the daemon and needs nothing from it: all it knows
//! stands in the container's directory. One thread, little memory: whatever can be computed before is
//! computed in the daemon.
//!
//! Order, each step durable or visible before the next (what a later daemon concludes: `machine::adopt`):
//! 1. the child builds the container and says *ready*, or why not;
//! 2. `state.json` names shim and child; this fails if somebody has taken the directory away, and then
//!    the program never runs;
//! 3. the child is let go and executes the program; a failure becomes `exit.json`;
//! 4. the daemon is answered on standard output;
//! 5. the program ends; what is left of the container is killed; `exit.json`.

mod child;
mod exec;
mod supervise;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::engine::End;
use crate::images;
use crate::logs::writer::{FILE_BYTES_MAX, LogFile};
use crate::oci;
use crate::own_program;
use crate::record::{self, Boot, Durability, ExitRecord, ProcessId, State};
use crate::rootfs::overlay::Layers;
use crate::rootfs::{Failure, Step};
use crate::sys::process::{self, Fork};

/// The first argument of a process that is a shim; the second is the container's directory.
pub(crate) const ARGUMENT: &str = "container-shim";

/// The first argument of a process that runs one more program in a container; the second is the container's
/// directory, and the program with its arguments follows.
pub(crate) const EXEC_ARGUMENT: &str = "container-exec";

/// What the shim answers when the program runs; anything else is why it does not.
pub(crate) const ANSWER_RUNNING: &[u8] = b"running";

/// What the child says when only the program itself is missing.
const READY: u8 = 0;

/// The shim survives when the machine runs out of memory: without it the end of its container is lost.
const OOM_SCORE_ADJ: &str = "-998";

/// What a shim is told besides `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    pub(crate) version: u32,
    pub(crate) layers: Layers,
    pub(crate) log: PathBuf,
    /// The groups of the container, one per hierarchy.
    pub(crate) cgroups: Vec<PathBuf>,
    /// The groups the shim itself goes to.
    pub(crate) shim_cgroups: Vec<PathBuf>,
    /// The program's last words, as a file of the machine.
    pub(crate) termination_message: Option<PathBuf>,
}

/// Does the work of a shim, if the arguments of this process say so.
pub(crate) fn main_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let ours = [ARGUMENT, EXEC_ARGUMENT, images::UNPACKER_ARGUMENT];
    let verb = arguments.next().filter(|verb| ours.iter().any(|ours| verb == ours))?;
    let Some(dir) = arguments.next().map(PathBuf::from) else {
        eprintln!("{} needs the directory of a container; it is started by the daemon only", verb.display());
        return Some(ExitCode::from(2));
    };
    if let Err(error) = own_program::begin() {
        eprintln!("begin as a process beside a container, which only the daemon starts: {error}");
        return Some(ExitCode::FAILURE);
    }
    if verb == images::UNPACKER_ARGUMENT {
        return Some(images::main_of_unpacker(&dir.to_string_lossy()));
    }
    if verb == EXEC_ARGUMENT {
        return Some(exec::main(&dir, arguments.map(|word| word.to_string_lossy().into_owned()).collect()));
    }
    Some(match run(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(reason)) => {
            answer(reason.as_bytes());
            ExitCode::FAILURE
        }
    })
}

fn run(dir: &Path) -> Result<(), Failure> {
    leave_daemon();
    let config: Config = read(dir, record::SHIM_FILE)?;
    let spec: oci::Spec = read(dir, record::CONFIG_FILE)?;
    // A service manager that stops the daemon's group must not stop us. Without cgroups there is no such manager.
    cgroup::join(&config.shim_cgroups).step(|| "leave the daemon's cgroup".to_owned())?;
    let filters = read_filters(dir)?;
    let log = LogFile::open(&config.log, FILE_BYTES_MAX).step(|| format!("open {}", config.log.display()))?;

    let mut container = spawn(&spec, &config, &filters)?;
    // Not needed any more; a shim lives as long as its container.
    drop((spec, filters));
    if let Err(failure) = release(dir, &mut container) {
        // Whatever went wrong, the child must not run on.
        let _ = process::pidfd_signal(container.pidfd.as_fd(), libc::SIGKILL);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(container.id.pid), None);
        let _ = cgroup::remove(&config.cgroups);
        return Err(failure);
    }
    answer(ANSWER_RUNNING);
    supervise::until_the_end(dir, &config, container, log).step(|| "supervise".to_owned())
}

/// A child that has not executed its program yet.
struct Container {
    id: ProcessId,
    pidfd: OwnedFd,
    stdout: File,
    stderr: File,
    /// What the child says; ends when the program is executed.
    status: File,
    /// Lets the child go on.
    go: Option<File>,
    started_at_ms: u64,
}

/// Makes the child and waits until it is ready to execute its program.
fn spawn(spec: &oci::Spec, config: &Config, filters: &[u8]) -> Result<Container, Failure> {
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let (mut status, child_status) = pipe()?;
    let (child_go, go) = pipe()?;
    let namespaces = child::open_namespaces(&spec.linux.namespaces)?;

    // Does not move us; our next child is the first process of the new namespace.
    unshare(CloneFlags::CLONE_NEWPID).step(|| "make a pid namespace".to_owned())?;
    let child = match process::fork().step(|| "fork".to_owned())? {
        Fork::Parent { child } => child,
        Fork::Child(_) => {
            // Its own copy of our ends would keep it from noticing our death.
            drop((stdout, stderr, status, go));
            let ends = child::Ends {
                stdout: child_stdout,
                stderr: child_stderr,
                status: child_status,
                go: child_go,
            };
            child::become_program(spec, config, filters, &namespaces, ends)
        }
    };
    drop((child_stdout, child_stderr, child_status, child_go, namespaces));
    let pidfd = process::pidfd_open(child).step(|| "open the container's first process".to_owned())?;

    let mut said = [READY];
    let is_ready =
        status.read(&mut said).step(|| "hear from the container".to_owned())? == 1 && said[0] == READY;
    let id = ProcessId::of(child).filter(|_| is_ready);
    let Some(id) = id else {
        let mut reason = if is_ready { Vec::new() } else { vec![said[0]] };
        let _ = status.take(4096).read_to_end(&mut reason);
        let _ = process::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None);
        let _ = cgroup::kill(&config.cgroups).and_then(|()| cgroup::remove(&config.cgroups));
        return Err(Failure(text_or(&reason, "its first process was killed while it was being made")));
    };
    Ok(Container { id, pidfd, stdout, stderr, status, go: Some(go), started_at_ms: record::now_ms() })
}

/// Writes down who runs, lets the child go, and waits until its program is executed.
fn release(dir: &Path, container: &mut Container) -> Result<(), Failure> {
    let boot = Boot::current().step(|| "read the boot id".to_owned())?;
    let me = i32::try_from(std::process::id()).step(|| "read my pid".to_owned())?;
    let shim = ProcessId::of(me).ok_or_else(|| Failure("find myself in /proc; is it mounted?".to_owned()))?;
    let started_at_ms = container.started_at_ms;
    let state = State { version: record::VERSION, boot, shim, container: container.id, started_at_ms };
    let written = record::write(dir, record::STATE_FILE, &state, Durability::UntilPowerCut);
    written.step(|| "write state.json".to_owned())?;

    let mut go = container.go.take().ok_or_else(|| Failure("the program was let go before".to_owned()))?;
    go.write_all(&[READY]).step(|| "let the program go".to_owned())?;
    let mut reason = Vec::new();
    (&container.status).take(4096).read_to_end(&mut reason).step(|| "hear from the container".to_owned())?;
    if reason.is_empty() {
        return Ok(());
    }
    let reason = text_or(&reason, "");
    let exit = ExitRecord::new(End::Failed { reason: reason.clone() }, None);
    let _ = record::write(dir, record::EXIT_FILE, &exit, Durability::Durable);
    Err(Failure(reason))
}

/// A session of our own, and a life that does not end with the daemon's.
fn leave_daemon() {
    // Each may be refused, to an ordinary user or by a supervisor; none is a reason not to start.
    let _ = nix::unistd::setsid();
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    let _ = std::env::set_current_dir("/");
}

/// Tells the daemon, which may be gone, and lets go of the pipe to it.
fn answer(text: &[u8]) {
    let mut stdout = io::stdout();
    let _ = stdout.write_all(text).and_then(|()| stdout.flush());
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}

fn read<T: serde::de::DeserializeOwned>(dir: &Path, name: &str) -> Result<T, Failure> {
    let found = record::read(dir, name).step(|| format!("read {name}"))?;
    found.ok_or_else(|| Failure(format!("{name} is missing or damaged")))
}

/// The compiled filters; none for a container that may make every call.
fn read_filters(dir: &Path) -> Result<Vec<u8>, Failure> {
    match fs::read(dir.join(record::SECCOMP_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.step(|| "read the system call filter".to_owned()),
    }
}

fn pipe() -> Result<(File, File), Failure> {
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).step(|| "make a pipe".to_owned())?;
    Ok((read.into(), write.into()))
}

fn text_or(bytes: &[u8], otherwise: &str) -> String {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if text.is_empty() { otherwise.to_owned() } else { text }
}
