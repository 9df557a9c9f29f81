//! Writes what the pods do: [`Reports`] gathers it, one batch is under way at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skein_control::pod::report::Reports;
pub(crate) use skein_control::pod::report::{Name, Report};
use skein_raft_store::{Handle, Options, Outcome, ProposeError, TokioRuntime};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::cluster::op;
use crate::picture::Picture;

/// Before a failed batch is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// The same while the leader's disk is full: somebody has to make room first.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Where workers report to: at most one report of each pod waits here, the newest. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Arc<Inner>);

#[derive(Default)]
struct Inner {
    pending: Mutex<Reports>,
    news: Notify,
}

impl Outbox {
    /// The writer ends with the daemon; a report after that comes again after its restart.
    pub(crate) fn send(&self, pod: Name, report: Report) {
        self.pending().note(pod, report);
        self.0.news.notify_one();
    }

    fn pending(&self) -> MutexGuard<'_, Reports> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to write.
    async fn filled(&self) {
        while self.pending().is_empty() {
            self.0.news.notified().await;
        }
    }
}

/// Writes until `stopping`, one batch at a time.
pub(crate) async fn write(
    store: Handle<TokioRuntime>,
    picture: Picture,
    outbox: Outbox,
    stopping: CancellationToken,
) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = outbox.filled() => {}
        }
        let (state, mut due) = (store.state(), std::mem::take(&mut *outbox.pending()));
        // The pods' objects are decoded and encoded, which holds up nobody who carries Raft.
        let made = tokio::task::spawn_blocking(move || {
            let batch = due.batch(|key| state.get(key).map(|object| (object.mod_rev, &*object.value)));
            (batch, due)
        });
        let batch = match made.await {
            Ok((batch, rest)) => {
                outbox.pending().add_older(rest);
                batch
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
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
                outbox.pending().give_back(refused.map(|((pod, report), outcome)| {
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
                outbox.pending().give_back(batch.reports);
                let pause = if matches!(error, ProposeError::DiskFull { .. }) { FULL_RETRY } else { RETRY };
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}
