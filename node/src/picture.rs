//! The typed picture of the map that planners and the agent share, brought forward by one watch.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use skein_control::view::{Changed, View};
use skein_raft_store::{Difference, Event, Handle, Moved, ReadError, State, TokioRuntime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::clients::Clients;
use crate::members::Members;

/// The picture of this node's replica. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Picture {
    inner: Arc<Mutex<Inner>>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    view: View,
    /// What changed since a planner last took it. Only kept while somebody plans.
    changed: Option<Changed>,
}

impl Picture {
    pub(crate) fn new() -> Picture {
        Picture { inner: Arc::default(), revision: watch::Sender::new(0) }
    }

    /// The picture now; O(1).
    pub(crate) fn view(&self) -> View {
        self.lock().view.clone()
    }

    /// Begins to note what changes: everything is new to whoever begins.
    pub(crate) fn begin_noting(&self) {
        self.lock().changed = Some(Changed::All);
    }

    pub(crate) fn stop_noting(&self) {
        self.lock().changed = None;
    }

    /// The picture and what changed since the last call.
    pub(crate) fn take_changed(&self) -> (View, Changed) {
        let mut inner = self.lock();
        let changed = inner.changed.as_mut().map(std::mem::take).unwrap_or_default();
        (inner.view.clone(), changed)
    }

    /// Wakes whenever the picture moves.
    pub(crate) fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Follows the store until `stopping`; `members` and `clients` follow along.
    ///
    /// It does so on a thread of its own: what it decodes holds up nobody who carries Raft.
    pub(crate) async fn follow(
        self,
        store: Handle<TokioRuntime>,
        members: Members,
        clients: Clients,
        stopping: CancellationToken,
    ) {
        let here = tokio::runtime::Handle::current();
        let following = tokio::task::spawn_blocking(move || {
            here.block_on(self.keep_up(store, members, clients, stopping));
        });
        if let Err(error) = following.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }

    async fn keep_up(
        self,
        store: Handle<TokioRuntime>,
        members: Members,
        clients: Clients,
        stopping: CancellationToken,
    ) {
        let Ok(mut tail) = store.tail() else { return };
        members.load(tail.state());
        clients.load(tail.state());
        self.begin(tail.state());
        loop {
            let moved = tokio::select! {
                moved = tail.next() => moved,
                () = stopping.cancelled() => return,
            };
            let Some(moved) = moved else { return };
            let revision = tail.state().revision();
            if let Moved::Jump(differences) = &moved {
                // A snapshot was installed, or more was written than is kept while this was busy.
                debug!(revision, keys = differences.len(), "the picture jumps");
            }
            let changes: Vec<Changing<'_>> = match &moved {
                Moved::Events(events) => events.iter().map(Changing::of).collect(),
                Moved::Jump(differences) => {
                    differences.iter().map(|difference| Changing::by(difference, revision)).collect()
                }
            };
            for Changing { key, value, .. } in &changes {
                members.apply(key, *value);
                clients.apply(key, *value);
            }
            self.take(&changes, revision);
        }
    }

    /// Shows `state` from its beginning.
    fn begin(&self, state: &State) {
        let mut view = View::default();
        for (key, object) in state.range("", None) {
            view.apply(key, Some(&object.value), object.mod_rev);
        }
        for (key, fault) in view.faults() {
            warn!(key, error = fault, "an object cannot be read and is left out");
        }
        let mut inner = self.lock();
        inner.view = view;
        if let Some(changed) = &mut inner.changed {
            *changed = Changed::All;
        }
        drop(inner);
        self.revision.send_replace(state.revision());
    }

    /// Takes over what has changed until `revision`. Nobody but the one who follows does.
    pub(crate) fn take(&self, changes: &[Changing<'_>], revision: u64) {
        // Decoding takes its time, and others want to look.
        let (mut view, mut changed) = (self.view(), Changed::default());
        for Changing { key, value, since, written } in changes {
            changed.add(view.apply_written(key, *value, *since, *written));
        }
        let mut inner = self.lock();
        inner.view = view;
        if let Some(noted) = &mut inner.changed {
            noted.merge(changed);
        }
        drop(inner);
        self.revision.send_replace(revision);
    }

    /// Waits until the picture has all that was answered by anybody before.
    ///
    /// * `limit`: how long the leader may take to say what that is.
    pub(crate) async fn catch_up(
        &self,
        store: &Handle<TokioRuntime>,
        limit: Duration,
    ) -> Result<(), ReadError> {
        self.reach(store.read_index(limit).await?).await;
        Ok(())
    }

    /// Waits until the picture contains `revision`.
    pub(crate) async fn reach(&self, revision: u64) {
        let mut revisions = self.revisions();
        // Fails only when the picture is gone, and then nobody waits for it.
        let _ = revisions.wait_for(|now| *now >= revision).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key that is not as it was: what it is now, and since which revision.
pub(crate) struct Changing<'a> {
    key: &'a str,
    value: Option<&'a [u8]>,
    since: u64,
    /// When, where that is known.
    written: Option<Timestamp>,
}

impl<'a> Changing<'a> {
    pub(crate) fn of(event: &'a Event) -> Self {
        // Zero while nobody knew the time.
        let stamp = i64::try_from(event.stamp_ms).ok().filter(|stamp_ms| *stamp_ms > 0);
        let written = stamp.and_then(|stamp_ms| Timestamp::from_millisecond(stamp_ms).ok());
        Changing { key: &event.key, value: event.value.as_deref(), since: event.revision, written }
    }

    /// By a jump to `revision`: when exactly a key went is not known.
    fn by(Difference { key, object }: &'a Difference, revision: u64) -> Self {
        let value = object.as_ref().map(|object| &*object.value);
        let since = object.as_ref().map_or(revision, |object| object.mod_rev);
        Changing { key, value, since, written: None }
    }
}
