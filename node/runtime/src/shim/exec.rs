//! One more program in a container that runs: what `exec` probes and hooks are made of.
//!
//! A process of its own beside the shim, because stepping into namespaces takes one of a single thread. Its
//! child is the program; it waits, ends with the program's code, and when it is killed the program dies too.
//! What both print goes where the daemon reads.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Config, READY, child, pipe, read, read_filters};
use crate::cgroup;
use crate::oci;
use crate::record::{self, Boot, State};
use crate::rootfs::{Failure, Step};
use crate::sys::process::{self, Fork};

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

    // From here to `execve` nobody in the container may look into this copy of the daemon's program.
    process::set_not_dumpable().step(|| "hide from ptrace".to_owned())?;
    let ended = || Failure("find the container's first process: it has ended".to_owned());
    let first = process::pidfd_open(state.container.pid).map_err(|_| ended())?;
    // Only now the number can mean no other process any more.
    let boot = Boot::current().step(|| "read the boot id".to_owned())?;
    if state.boot != boot || !state.container.is_alive() {
        return Err(ended());
    }
    let (held, mut hold) = pipe()?;
    // Does not move us, but our next child.
    setns(&first, CloneFlags::CLONE_NEWPID).step(|| "step into the pid namespace".to_owned())?;
    match process::fork().step(|| "fork".to_owned())? {
        Fork::Child => {
            drop(hold);
            let Err(Failure(reason)) = become_program(&spec, &config, &filters, &first, held);
            eprintln!("{reason}");
            std::process::exit(NOT_EXECUTED.into())
        }
        Fork::Parent { child } => {
            drop(held);
            // A child that could not be set up is gone, and its code says so.
            let _ = hold.write_all(&[READY]);
            let code = match waitpid(Pid::from_raw(child), None).step(|| "wait for the program".to_owned())? {
                WaitStatus::Exited(_, code) => code,
                WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
                other => return Err(Failure(format!("wait for the program: {other:?}"))),
            };
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(NOT_EXECUTED)))
        }
    }
}

fn become_program(
    spec: &oci::Spec,
    config: &Config,
    filters: &[u8],
    first: &std::os::fd::OwnedFd,
    mut held: File,
) -> Result<Infallible, Failure> {
    // By paths of the machine, so before its files go out of sight.
    cgroup::join(&config.cgroups).step(|| "join the container's cgroup".to_owned())?;
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if child::has_new(spec, "cgroup") {
        namespaces |= CloneFlags::CLONE_NEWCGROUP;
    }
    setns(first, namespaces).step(|| "step into the container".to_owned())?;
    let program = child::settle(&spec.process, filters)?;
    // Who waits for us may have died before we were tied to it.
    held.read_exact(&mut [0]).step(|| "wait for the daemon".to_owned())?;
    child::execute(&program, &spec.process)
}
