//! Events of this node: what its pods went through, written by the way. Nobody waits for them, and what
//! cannot be written for long is left out.

use k8s_openapi::api::core::v1::{Event, Namespace};
use skein_control::event::{Journal, Notice, Told};
use skein_raft_store::{Change, Expect, Handle, Op, Options, Outcome, State, TokioRuntime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::clock;

/// Notices on their way to the writer; what comes when it is full is left out.
const NOTICES_MAX: usize = 1_024;
/// Events of one command.
const BATCH_MAX: usize = 64;

/// Where notices go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sender(mpsc::Sender<Notice>);

impl Sender {
    pub(crate) fn tell(&self, notice: Notice) {
        if self.0.try_send(notice).is_err() {
            debug!("an event was left out: too many at once");
        }
    }
}

pub(crate) fn channel() -> (Sender, mpsc::Receiver<Notice>) {
    let (sender, receiver) = mpsc::channel(NOTICES_MAX);
    (Sender(sender), receiver)
}

/// Writes until `stopping`.
pub(crate) async fn write(
    store: Handle<TokioRuntime>,
    mut notices: mpsc::Receiver<Notice>,
    stopping: CancellationToken,
) {
    let mut journal = Journal::default();
    loop {
        let next = journal.next();
        tokio::select! {
            () = stopping.cancelled() => return,
            notice = notices.recv() => match notice {
                Some(notice) => journal.note(clock::boot(), notice),
                None => return,
            },
            () = clock::sleep_until(next) => {
                for due in journal.due(clock::boot()).chunks(BATCH_MAX) {
                    tell(&store, &mut journal, due).await;
                }
            }
        }
    }
}

async fn tell(store: &Handle<TokioRuntime>, journal: &mut Journal, due: &[(Notice, i32)]) {
    let state = store.state();
    let told: Vec<(&(Notice, i32), Op)> =
        due.iter().filter_map(|told| Some((told, operation(&state, &told.0, told.1)?))).collect();
    if told.is_empty() {
        return;
    }
    let ops = told.iter().map(|(_, op)| op.clone()).collect();
    match store.propose(ops, Options { atomic: false, ..Options::default() }).await {
        Ok(answer) => {
            for ((told, _), outcome) in told.iter().zip(answer.outcomes) {
                // Somebody else counts the same thing, or the Event has just expired.
                if matches!(outcome, Outcome::Refused(_)) {
                    journal.give_back(&told.0, told.1);
                }
            }
        }
        Err(error) => {
            debug!(%error, count = told.len(), "could not write events");
            told.iter().for_each(|(told, _)| journal.give_back(&told.0, told.1));
        }
    }
}

/// `None` in a namespace that is ending: nothing new comes into it, or it would never end.
fn operation(state: &State, notice: &Notice, times: i32) -> Option<Op> {
    let namespace = state.get(&format!("core/namespaces//{}", notice.namespace()))?;
    let namespace: Namespace = serde_json::from_slice(&namespace.value).ok()?;
    if namespace.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let key = notice.key();
    let held = state.get(&key);
    let told =
        held.and_then(|held| serde_json::from_slice::<Event>(&held.value).ok()).map(|held| Told::of(&held));
    let event = notice.event(told.as_ref(), times, crate::cluster::uid(), clock::wall());
    let bytes = serde_json::to_vec(&event).expect("an Event is made of strings and numbers");
    let expect = held.map_or(Expect::Absent, |held| Expect::Revision(held.mod_rev));
    Some(Op { key, expect, change: Change::Put(bytes.into()) })
}
