//! Writes what the pods do: [`Reports`] gathers it, one batch is under way at a time.

use std::time::Duration;

use skein_control::pod::report::Reports;
pub(crate) use skein_control::pod::report::{Name, Report};
use skein_raft_store::{Handle, Options, Outcome, ProposeError, TokioRuntime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::cluster::op;
use crate::picture::Picture;

/// Before a failed batch is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// The same while the leader's disk is full: somebody has to make room first.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Where workers report to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sender(mpsc::UnboundedSender<(Name, Report)>);

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
    let mut pending = Reports::default();
    let mut failing = false;
    loop {
        if pending.is_empty() {
            tokio::select! {
                () = stopping.cancelled() => return,
                first = reports.recv() => match first {
                    Some((pod, report)) => pending.note(pod, report),
                    None => return,
                },
            }
        }
        while let Ok((pod, report)) = reports.try_recv() {
            pending.note(pod, report);
        }
        let state = store.state();
        let batch = pending.batch(|key| state.get(key).map(|object| (object.mod_rev, &*object.value)));
        if batch.writes.is_empty() {
            continue;
        }
        let options = Options { atomic: false, ..Options::default() };
        let proposed = tokio::select! {
            () = stopping.cancelled() => return,
            proposed = store.propose(batch.writes.into_iter().map(op).collect(), options) => proposed,
        };
        match proposed {
            Ok(answer) => {
                failing = false;
                let reports = batch.reports.into_iter().zip(answer.outcomes);
                let refused = reports.filter(|(_, outcome)| matches!(outcome, Outcome::Refused(_)));
                pending.give_back(refused.map(|((pod, report), outcome)| {
                    debug!(pod = pod.name, ?outcome, "a status came too late and is computed anew");
                    (pod, report)
                }));
                // What refused it must be seen here before trying again.
                picture.reach(answer.revision).await;
            }
            Err(error) => {
                // Once for a row of failures: the next tries say the same.
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, count = batch.reports.len(), "could not report what pods do");
                }
                pending.give_back(batch.reports);
                let pause = if matches!(error, ProposeError::DiskFull { .. }) { FULL_RETRY } else { RETRY };
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}
