//! A new daemon finds what an earlier one left.
//!
//! | `state.json` | `exit.json` | shim | machine | what it means |
//! |---|---|---|---|---|
//! | any | yes | any | any | ended, as written |
//! | yes | no | lives | same boot | runs: take it up |
//! | yes | no | gone | same boot | lost: kill what is left, write it down |
//! | yes | no | any | restarted | lost |
//! | no | no | any | any | its creation was cut off: it never ran, and leaves no trace |

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::bundle;
use super::table::NewLive;
use super::{Doing, Inner, SANDBOX_FILE};
use crate::cgroup;
use crate::engine::{ContainerId, Error, PodUid, Running, SandboxSpec};
use crate::record::{self, ExitRecord, State};
use crate::sandbox;
use crate::sys::process;

/// Fills the table from disk and kernel. Returns the containers that run, each with its shim to watch.
pub(super) fn adopt(inner: &Inner) -> Result<Vec<(ContainerId, OwnedFd)>, Error> {
    let mut running = Vec::new();
    let mut known = BTreeSet::new();
    for (pod, dir) in children(&inner.config.data_dir.join("pods")) {
        let uid = pod.parse::<PodUid>().ok();
        let spec = record::read::<SandboxSpec>(&dir, SANDBOX_FILE).ok().flatten();
        match (uid, spec) {
            (Some(uid), Some(spec)) if spec.pod == uid => {
                known.insert(uid);
                inner.table.add_sandbox(spec.clone());
                adopt_containers(inner, &spec, &dir, &mut running)?;
            }
            _ => discard_pod(inner, &dir)?,
        }
    }
    for id in known.iter().flat_map(|pod| inner.cgroups.containers(pod)) {
        if inner.table.live(&id).is_none() {
            let dirs = inner.cgroups.container(&id);
            let gone = cgroup::kill(&dirs).and_then(|()| cgroup::remove(&dirs));
            gone.doing(|| format!("remove what was left of container {id}"))?;
        }
    }
    for pod in inner.cgroups.pods().into_iter().filter(|pod| !known.contains(pod)) {
        inner
            .cgroups
            .remove_pod(&pod)
            .doing(|| format!("remove the cgroups of pod {pod}, which nobody knows"))?;
    }
    let trash = inner.config.data_dir.join("trash");
    sandbox::unmount_below(&trash).doing(|| format!("unmount below {}", trash.display()))?;
    for (_, dir) in children(&trash) {
        fs::remove_dir_all(&dir).doing(|| format!("remove {}", dir.display()))?;
    }
    Ok(running)
}

fn adopt_containers(
    inner: &Inner,
    spec: &SandboxSpec,
    pod_dir: &Path,
    running: &mut Vec<(ContainerId, OwnedFd)>,
) -> Result<(), Error> {
    for (name, dir) in children(&pod_dir.join("c")) {
        let Some(id) = ContainerId::from_dir_name(&spec.pod, &name) else {
            inner.discard(&dir).doing(|| format!("remove {}", dir.display()))?;
            continue;
        };
        let Some(state) =
            record::read::<State>(&dir, record::STATE_FILE).doing(|| format!("read {}", dir.display()))?
        else {
            if let Some(exit) = exit_of(&dir) {
                inner.table.add_ended(id, bundle::read_labels(&dir), exit.into_exit());
            } else {
                discard_cut_off(inner, spec, &id, &dir)?;
            }
            continue;
        };
        // Opened before the record is looked for: a shim that ends between the two is then seen either way.
        let shim = is_same(inner, &state).then(|| process::pidfd_open(state.shim.pid).ok()).flatten();
        let shim = shim.filter(|_| state.shim.is_alive());
        if let Some(exit) = exit_of(&dir) {
            inner.table.add_ended(id, bundle::read_labels(&dir), exit.into_exit());
            continue;
        }
        take_up(inner, id.clone(), &state, &dir);
        match shim {
            Some(shim) => running.push((id, shim)),
            None => inner.finish(&id),
        }
    }
    Ok(())
}

fn is_same(inner: &Inner, state: &State) -> bool {
    state.boot == inner.boot
}

fn exit_of(dir: &Path) -> Option<ExitRecord> {
    record::read(dir, record::EXIT_FILE).ok().flatten()
}

/// Puts a container that had been started into the table as one that runs.
fn take_up(inner: &Inner, id: ContainerId, state: &State, dir: &Path) {
    let container = is_same(inner, state).then(|| process::pidfd_open(state.container.pid).ok()).flatten();
    let container = container.filter(|_| state.container.is_alive());
    let live = NewLive {
        running: Running { pid: state.container.pid, started_at: record::from_ms(state.started_at_ms) },
        labels: bundle::read_labels(dir),
        pidfd: container,
        stop_signal: bundle::read_stop_signal(dir),
        started_at_ms: state.started_at_ms,
    };
    inner.table.add_live(id, live);
}

/// A container whose program was never executed: away with it, and with a shim that may still be at work.
fn discard_cut_off(inner: &Inner, spec: &SandboxSpec, id: &ContainerId, dir: &Path) -> Result<(), Error> {
    // Under another name its shim cannot write `state.json` any more, so it will not execute the program.
    // One that wrote it just before is killed by the cgroup, or by number.
    let hidden = dir.with_file_name(format!(".cut-{}", id.dir_name()));
    fs::rename(dir, &hidden).doing(|| format!("take {} away", dir.display()))?;
    if let Some(state) = record::read::<State>(&hidden, record::STATE_FILE).ok().flatten() {
        for process in [state.shim, state.container].into_iter().filter(|process| process.is_alive()) {
            let _ = process::pidfd_open(process.pid)
                .and_then(|fd| process::pidfd_signal(std::os::fd::AsFd::as_fd(&fd), libc::SIGKILL));
        }
    }
    let dirs = inner.cgroups.container(id);
    let gone = cgroup::kill(&dirs).and_then(|()| cgroup::remove(&dirs));
    gone.doing(|| format!("remove what was left of container {id}"))?;
    let _ = fs::remove_file(inner.log(spec, &id.name, id.attempt));
    inner.discard(&hidden).doing(|| format!("remove {}", hidden.display()))
}

/// A pod whose creation or removal was cut off.
fn discard_pod(inner: &Inner, dir: &Path) -> Result<(), Error> {
    sandbox::unmount_below(dir).doing(|| format!("unmount below {}", dir.display()))?;
    inner.discard(dir).doing(|| format!("remove {}", dir.display()))
}

/// Directories in `dir` by name.
fn children(dir: &Path) -> BTreeMap<String, std::path::PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
}
