//! What the engine knows at the moment, in memory.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{RwLock, mpsc, watch};

use crate::engine::{
    Container, ContainerId, ContainerState, Error, Exit, Exits, PodUid, Running, SandboxSpec,
};
use crate::sys::process;

/// Sandboxes, containers and who wants to hear of their ends.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<Rows>);

#[derive(Debug, Default)]
struct Rows {
    sandboxes: BTreeMap<PodUid, SandboxSpec>,
    containers: BTreeMap<ContainerId, Row>,
    subscribers: Vec<mpsc::UnboundedSender<(ContainerId, Exit)>>,
    locks: BTreeMap<PodUid, Arc<RwLock<()>>>,
}

#[derive(Debug)]
struct Row {
    state: ContainerState,
    labels: BTreeMap<String, String>,
    live: Option<Live>,
    ended: watch::Sender<bool>,
}

/// What can be done with a container that runs.
#[derive(Clone, Debug)]
pub(super) struct Live {
    /// Its first process; `None` if it is gone and its shim is about to say so.
    pub(super) pidfd: Option<Arc<OwnedFd>>,
    pub(super) stop_signal: i32,
    pub(super) started_at_ms: u64,
    /// Becomes true when it has ended.
    pub(super) ended: watch::Receiver<bool>,
}

impl Live {
    /// Sends a signal to the first process. One that is just ending takes none, and needs none.
    pub(super) fn signal(&self, signal: i32) {
        if let Some(pidfd) = &self.pidfd {
            let _ = process::pidfd_signal(pidfd.as_fd(), signal);
        }
    }
}

/// A container that runs, as it is put into the table.
#[derive(Debug)]
pub(super) struct NewLive {
    pub(super) running: Running,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) stop_signal: i32,
    pub(super) started_at_ms: u64,
}

impl Table {
    /// Starts in a pod hold it together; making and removing the pod hold it alone.
    pub(super) fn pod_lock(&self, pod: &PodUid) -> Arc<RwLock<()>> {
        let mut rows = self.rows();
        // Those nobody holds or waits for are as good as new ones.
        rows.locks.retain(|other, lock| other == pod || Arc::strong_count(lock) > 1);
        Arc::clone(rows.locks.entry(pod.clone()).or_default())
    }

    pub(super) fn add_sandbox(&self, spec: SandboxSpec) {
        self.rows().sandboxes.insert(spec.pod.clone(), spec);
    }

    pub(super) fn sandbox(&self, pod: &PodUid) -> Option<SandboxSpec> {
        self.rows().sandboxes.get(pod).cloned()
    }

    pub(super) fn sandboxes(&self) -> Vec<SandboxSpec> {
        self.rows().sandboxes.values().cloned().collect()
    }

    /// Forgets a pod and its containers.
    pub(super) fn remove_sandbox(&self, pod: &PodUid) {
        let mut rows = self.rows();
        rows.sandboxes.remove(pod);
        rows.containers.retain(|id, _| id.pod != *pod);
    }

    pub(super) fn containers(&self, pod: &PodUid) -> Vec<Container> {
        let rows = self.rows();
        let of_pod = rows.containers.iter().filter(|(id, _)| id.pod == *pod);
        let container = |(id, row): (&ContainerId, &Row)| Container {
            id: id.clone(),
            state: row.state.clone(),
            labels: row.labels.clone(),
        };
        of_pod.map(container).collect()
    }

    pub(super) fn running(&self, pod: &PodUid) -> Vec<ContainerId> {
        let rows = self.rows();
        let running = rows.containers.iter().filter(|(id, row)| id.pod == *pod && row.live.is_some());
        running.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn add_live(&self, id: ContainerId, new: NewLive) {
        let (sender, ended) = watch::channel(false);
        let NewLive { running, labels, pidfd, stop_signal, started_at_ms } = new;
        let live = Live { pidfd: pidfd.map(Arc::new), stop_signal, started_at_ms, ended };
        let row = Row { state: ContainerState::Running(running), labels, live: Some(live), ended: sender };
        self.rows().containers.insert(id, row);
    }

    /// A container that had ended before this daemon came.
    pub(super) fn add_ended(&self, id: ContainerId, labels: BTreeMap<String, String>, exit: Exit) {
        let row =
            Row { state: ContainerState::Ended(exit), labels, live: None, ended: watch::channel(true).0 };
        self.rows().containers.insert(id, row);
    }

    /// The container, if it runs.
    pub(super) fn live(&self, id: &ContainerId) -> Option<Live> {
        self.rows().containers.get(id)?.live.clone()
    }

    /// How a container that does not run ended.
    pub(super) fn ended(&self, id: &ContainerId) -> Result<Exit, Error> {
        match self.rows().containers.get(id).map(|row| &row.state) {
            Some(ContainerState::Ended(exit)) => Ok(exit.clone()),
            Some(ContainerState::Running(_)) => Err(Error::StillRunning(id.clone())),
            None => Err(Error::NoContainer(id.clone())),
        }
    }

    /// Notes an end and tells everybody.
    pub(super) fn end(&self, id: &ContainerId, exit: Exit) {
        let mut rows = self.rows();
        let Some(row) = rows.containers.get_mut(id) else { return };
        row.state = ContainerState::Ended(exit.clone());
        row.live = None;
        row.ended.send_replace(true);
        rows.subscribers.retain(|subscriber| subscriber.send((id.clone(), exit.clone())).is_ok());
    }

    pub(super) fn remove(&self, id: &ContainerId) {
        self.rows().containers.remove(id);
    }

    pub(super) fn subscribe(&self) -> Exits {
        let (sender, exits) = Exits::channel();
        let mut rows = self.rows();
        for (id, row) in &rows.containers {
            if let ContainerState::Ended(exit) = &row.state {
                let _ = sender.send((id.clone(), exit.clone()));
            }
        }
        rows.subscribers.push(sender);
        exits
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        // No code here panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
