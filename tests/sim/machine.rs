//! What runs on one machine: it outlives the daemon, and ends with the power.

use std::collections::BTreeMap;

use jiff::Timestamp;
use skein_control::pod::{Attempt, ContainerState, Exit, Found, FoundContainer, Image, Sandbox};

/// The digest of every image.
pub(crate) const DIGEST: &str = "sha256:5f";

#[derive(Default)]
pub(crate) struct Machine {
    pods: BTreeMap<String, Pod>,
}

#[derive(Default)]
struct Pod {
    ready: bool,
    containers: BTreeMap<(String, Attempt), ContainerState>,
}

impl Machine {
    pub(crate) fn uids(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }

    /// Uids of pods of which something runs.
    pub(crate) fn running(&self) -> Vec<String> {
        let runs = |pod: &Pod| pod.containers.values().any(is_running);
        self.pods.iter().filter(|(_, pod)| runs(pod)).map(|(uid, _)| uid.clone()).collect()
    }

    pub(crate) fn make_sandbox(&mut self, uid: &str) -> Sandbox {
        self.pods.entry(uid.to_owned()).or_default().ready = true;
        sandbox()
    }

    /// Starts a container; an error if another start of it still runs, or its sandbox does not stand.
    pub(crate) fn start(
        &mut self,
        uid: &str,
        name: &str,
        attempt: Attempt,
        now: Timestamp,
    ) -> Result<(), String> {
        let pod = self.pods.get_mut(uid).filter(|pod| pod.ready).ok_or("no sandbox stands")?;
        let runs =
            |((other, _), state): (&(String, Attempt), &ContainerState)| other == name && is_running(state);
        if pod.containers.iter().any(runs) {
            return Err("an earlier start still runs".into());
        }
        pod.containers.insert((name.to_owned(), attempt), ContainerState::Running { started_at: now });
        Ok(())
    }

    /// Ends a container if it runs. Returns its end, if it has one now.
    pub(crate) fn end(
        &mut self,
        uid: &str,
        name: &str,
        attempt: Attempt,
        code: i32,
        now: Timestamp,
    ) -> Option<ContainerState> {
        let state = self.pods.get_mut(uid)?.containers.get_mut(&(name.to_owned(), attempt))?;
        if let ContainerState::Running { started_at } = state {
            let started_at = *started_at;
            *state = ContainerState::Exited(Exit {
                code,
                signal: (code > 128).then_some(code - 128),
                oom_killed: false,
                started_at,
                finished_at: now,
                message: None,
            });
        }
        Some(state.clone())
    }

    pub(crate) fn remove_container(&mut self, uid: &str, name: &str, attempt: Attempt) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.containers.remove(&(name.to_owned(), attempt));
        }
    }

    pub(crate) fn remove_sandbox(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// Whether anything of the pod runs.
    pub(crate) fn runs(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|pod| pod.containers.values().any(is_running))
    }

    /// What a daemon that comes back finds of a pod.
    pub(crate) fn found(&self, uid: &str) -> Option<Found> {
        let pod = self.pods.get(uid)?;
        let mut newest = BTreeMap::new();
        for ((name, attempt), state) in &pod.containers {
            newest.insert(name.clone(), (*attempt, state.clone()));
        }
        let containers = newest.into_iter().map(|(name, (attempt, state))| FoundContainer {
            name,
            attempt,
            image: Some(Image { id: DIGEST.into() }),
            state,
        });
        Some(Found { sandbox: pod.ready.then(sandbox), containers: containers.collect() })
    }

    /// The power is cut: nothing runs any more, and what is left of it on the disk says so.
    pub(crate) fn power_cut(&mut self, now: Timestamp) {
        for pod in self.pods.values_mut() {
            pod.ready = false;
            for state in pod.containers.values_mut().filter(|state| is_running(state)) {
                *state = ContainerState::Lost { noticed_at: now };
            }
        }
    }
}

fn sandbox() -> Sandbox {
    Sandbox { addresses: vec!["10.1.0.2".into()] }
}

fn is_running(state: &ContainerState) -> bool {
    matches!(state, ContainerState::Running { .. })
}
