//! Reports of pods' status: gathered while one batch is under way, written as the next one.
//!
//! Only the latest status of a pod counts. Each operation of a batch may fail alone (somebody else
//! wrote the pod meanwhile); it is then computed anew from the pod as it is.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::Value;
use skein_api::key::ObjectKey;
use skein_raft_store::{Change, Expect, Handle, Op, Options, Outcome, ProposeError, State, TokioRuntime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::picture::Picture;

/// Pods in one batch; the rest waits for the next.
const BATCH_MAX: usize = 500;
/// Before a failed batch is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// The same while the leader's disk is full: somebody has to make room first.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// What to do to one pod's object.
#[derive(Debug, Clone)]
pub(crate) enum Report {
    Status(Box<PodStatus>),
    /// Its deletion waited for the end of its processes.
    Delete,
}

/// Where workers report to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sender(mpsc::UnboundedSender<(Name, Report)>);

/// A pod, whose uid must still be this when something is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Sender {
    pub(crate) fn send(&self, pod: Name, report: Report) {
        // The writer ends with the daemon; a report after that comes again after its restart.
        let _ = self.0.send((pod, report));
    }
}

pub(crate) fn channel() -> (Sender, mpsc::UnboundedReceiver<(Name, Report)>) {
    // One pending report per pod is kept below; the channel holds what comes during one batch.
    let (sender, receiver) = mpsc::unbounded_channel();
    (Sender(sender), receiver)
}

/// Writes until `stopping`, one batch at a time.
pub(crate) async fn write(
    store: Handle<TokioRuntime>,
    picture: Picture,
    mut reports: mpsc::UnboundedReceiver<(Name, Report)>,
    stopping: CancellationToken,
) {
    let mut pending: BTreeMap<Name, Report> = BTreeMap::new();
    let mut failing = false;
    loop {
        if pending.is_empty() {
            tokio::select! {
                () = stopping.cancelled() => return,
                first = reports.recv() => match first {
                    Some((name, report)) => note(&mut pending, name, report),
                    None => return,
                },
            }
        }
        while let Ok((name, report)) = reports.try_recv() {
            note(&mut pending, name, report);
        }
        let state = store.state();
        let mut batch = Vec::new();
        let mut ops = Vec::new();
        while let Some((name, report)) = pending.pop_first() {
            // A pod that is gone, or another one by now, needs no report.
            if let Some(op) = operation(&state, &name, &report) {
                ops.push(op);
                batch.push((name, report));
            }
            if batch.len() == BATCH_MAX {
                break;
            }
        }
        if ops.is_empty() {
            continue;
        }
        let options = Options { atomic: false, ..Options::default() };
        let proposed = tokio::select! {
            () = stopping.cancelled() => return,
            proposed = store.propose(ops, options) => proposed,
        };
        match proposed {
            Ok(answer) => {
                failing = false;
                for ((name, report), outcome) in batch.into_iter().zip(answer.outcomes) {
                    if let Outcome::Refused(refusal) = outcome {
                        debug!(pod = name.name, ?refusal, "a status came too late and is computed anew");
                        pending.entry(name).or_insert(report);
                    }
                }
                // What refused it must be seen here before trying again.
                picture.reach(answer.revision).await;
            }
            Err(error) => {
                // Once for a row of failures: the next tries say the same.
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, count = batch.len(), "could not report what pods do");
                }
                for (name, report) in batch {
                    pending.entry(name).or_insert(report);
                }
                let pause = if matches!(error, ProposeError::DiskFull { .. }) { FULL_RETRY } else { RETRY };
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

fn note(pending: &mut BTreeMap<Name, Report>, name: Name, report: Report) {
    // After the order to delete there is nothing more to say.
    if !matches!(pending.get(&name), Some(Report::Delete)) {
        pending.insert(name, report);
    }
}

fn operation(state: &State, pod: &Name, report: &Report) -> Option<Op> {
    let key = ObjectKey::new("", "pods", &pod.namespace, &pod.name).to_string();
    let object = state.get(&key)?;
    let mut json: Value = serde_json::from_slice(&object.value).ok()?;
    if json["metadata"]["uid"] != pod.uid.as_str() {
        return None;
    }
    let change = match report {
        Report::Delete => Change::Delete,
        Report::Status(status) => {
            let mut status = serde_json::to_value(status).expect("a status is plain data");
            keep_what_others_say(&json["status"], &mut status);
            json["status"] = status;
            Change::Put(serde_json::to_vec(&json).expect("JSON is written without error").into())
        }
    };
    Some(Op { key: key.into(), expect: Expect::Revision(object.mod_rev), change })
}

/// Conditions that this node does not know of (readiness gates, the scheduler's) and the start time stay.
fn keep_what_others_say(old: &Value, new: &mut Value) {
    if new["startTime"].is_null() && !old["startTime"].is_null() {
        new["startTime"] = old["startTime"].clone();
    }
    if new["qosClass"].is_null() && !old["qosClass"].is_null() {
        new["qosClass"] = old["qosClass"].clone();
    }
    let known: Vec<Value> = new["conditions"].as_array().cloned().unwrap_or_default();
    let said = |kind: &Value| known.iter().any(|condition| condition["type"] == *kind);
    let others = old["conditions"].as_array().into_iter().flatten();
    let others: Vec<Value> = others.filter(|condition| !said(&condition["type"])).cloned().collect();
    if !others.is_empty() {
        new["conditions"] = others.into_iter().chain(known).collect();
    }
}
