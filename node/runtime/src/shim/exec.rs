//! One more program in a container that runs: what `exec` probes and hooks are made of.
//!
//! A process of its own beside the shim, because stepping into namespaces takes one of a single thread. Its
//! child is the program; it waits, ends with the program's code, and when it is killed the program dies too.
//! What both print goes where the daemon reads.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{FileStat, SFlag, makedev};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Config, READY, child, pipe, read, read_filters};
use crate::broken;
use crate::cgroup;
use crate::oci;
use crate::opening::{self, Descriptors};
use crate::record::{self, Boot, State};
use crate::rootfs::{Failure, Step, open_root};
use crate::sys::process::{self, Alone, Fork};

/// What a shell says of a program that is not there.
const NOT_EXECUTED: u8 = 127;

pub(super) fn main(dir: &Path, command: Vec<String>) -> ExitCode {
    run(dir, command).unwrap_or_else(|Failure(reason)| {
        eprintln!("{reason}");
        ExitCode::from(NOT_EXECUTED)
    })
}

fn run(dir: &Path, command: Vec<String>) -> Result<ExitCode, Failure> {
    let config: Config = read(dir, record::SHIM_FILE)?;
    let mut spec: oci::Spec = read(dir, record::CONFIG_FILE)?;
    let state: State = read(dir, record::STATE_FILE)?;
    let filters = read_filters(dir)?;
    spec.process.args = command;

    let ended = || Failure("find the container's first process: it has ended".to_owned());
    let first = process::pidfd_open(state.container.pid).map_err(|_| ended())?;
    // Only now the number can mean no other process any more.
    let boot = Boot::current().step(|| "read the boot id".to_owned())?;
    if state.boot != boot || !state.container.is_alive() {
        return Err(ended());
    }
    let (held, mut hold) = pipe()?;
    let child = match process::fork().step(|| "fork".to_owned())? {
        Fork::Parent { child } => Pid::from_raw(child),
        Fork::Child(alone) => {
            drop(hold);
            let Err(Failure(reason)) = become_program(&spec, &config, &filters, &first, held, &alone);
            eprintln!("{reason}");
            std::process::exit(NOT_EXECUTED.into())
        }
    };
    drop(held);
    let waiting = || "wait for the program".to_owned();
    match waitpid(child, None).step(waiting)? {
        // It has left a sibling in the container, which is our child too.
        WaitStatus::Exited(_, 0) => {}
        other => return code_of(other),
    }
    // One that could not go on is gone, and its code says so.
    let _ = hold.write_all(&[READY]);
    code_of(waitpid(None, None).step(waiting)?)
}

fn code_of(status: WaitStatus) -> Result<ExitCode, Failure> {
    let code = match status {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other => return Err(Failure(format!("wait for the program: {other:?}"))),
    };
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(NOT_EXECUTED)))
}

/// Gives up everything of the machine's, and only then takes the step into the container's pid namespace: a
/// program there that may look into others (CAP_SYS_PTRACE) finds nothing that it does not have itself.
fn become_program(
    spec: &oci::Spec,
    config: &Config,
    filters: &[u8],
    first: &OwnedFd,
    mut held: File,
    alone: &Alone,
) -> Result<Infallible, Failure> {
    // By paths of the machine, so before its files go out of sight.
    cgroup::join(&config.cgroups).step(|| "join the container's cgroup".to_owned())?;
    // The pid namespace only counts for the next child.
    setns(first, CloneFlags::CLONE_NEWPID).step(|| "step into the pid namespace".to_owned())?;
    if broken!(HelpersSeenEarly) {
        leave_a_sibling(alone)?;
        // Whoever looks may be slow.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if child::has_new(spec, "cgroup") {
        namespaces |= CloneFlags::CLONE_NEWCGROUP;
    }
    let descriptors = Descriptors::of_this_process().step(|| "open /proc/self/fd".to_owned())?;
    setns(first, namespaces).step(|| "step into the container".to_owned())?;
    if let Some(null) = own_null(&descriptors) {
        nix::unistd::dup2_stdin(null).step(|| "set standard input".to_owned())?;
    }
    let program = child::settle(&spec.process, filters)?;
    if !broken!(HelpersSeenEarly) {
        leave_a_sibling(alone)?;
    }
    child::stand_alone()?;
    // Who waits for us may have died before we were tied to it.
    held.read_exact(&mut [0]).step(|| "wait for the daemon".to_owned())?;
    child::execute(&program, &spec.process)
}

/// The container's own null device, if what has its name is one; an empty pipe will do, too.
fn own_null(descriptors: &Descriptors) -> Option<File> {
    let root = open_root(Path::new("/")).ok()?;
    let is_null = |found: &FileStat| opening::kind(found) == SFlag::S_IFCHR && found.st_rdev == makedev(1, 3);
    let (null, resolve) = (Path::new("dev/null"), libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS);
    descriptors.open_if(root.as_fd(), null, resolve, OFlag::O_RDWR, is_null).ok()?
}

/// Goes on as a new process in the pid namespace that was chosen.
fn leave_a_sibling(alone: &Alone) -> Result<(), Failure> {
    match process::fork_sibling(alone).step(|| "fork".to_owned())? {
        Fork::Parent { .. } => std::process::exit(0),
        Fork::Child(_) => Ok(()),
    }
}
