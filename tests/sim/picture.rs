//! One node's typed picture of the map, brought forward by a watch that the checks look at as well.

use std::sync::{Arc, Mutex};

use openraft::AsyncRuntime;
use openraft::async_runtime::{Watch, WatchReceiver, WatchSender};
use skein_control::view::{Changed, View};
use skein_raft_store::sim::SimRt;
use skein_raft_store::{State, WatchError};

use crate::world::{Site, Store};

type Channel = <SimRt as AsyncRuntime>::Watch;

#[derive(Clone)]
pub(crate) struct Picture {
    inner: Arc<Mutex<Inner>>,
    moved: <Channel as Watch>::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    view: View,
    revision: u64,
    /// What changed since a planner last took it; kept only while somebody plans.
    changed: Option<Changed>,
}

/// Wakes when the picture moves, or somebody is [woken](Picture::wake).
pub(crate) struct Moves(<Channel as Watch>::Receiver<u64>);

impl Moves {
    pub(crate) async fn next(&mut self) {
        // Fails when the picture is gone; it lives as long as its node.
        let _ = self.0.changed().await;
    }
}

impl Picture {
    pub(crate) fn new() -> Picture {
        Picture { inner: Arc::default(), moved: Channel::channel(0).0 }
    }

    pub(crate) fn view(&self) -> View {
        self.inner.lock().unwrap().view.clone()
    }

    pub(crate) fn revision(&self) -> u64 {
        self.inner.lock().unwrap().revision
    }

    pub(crate) fn begin_noting(&self) {
        self.inner.lock().unwrap().changed = Some(Changed::All);
    }

    pub(crate) fn stop_noting(&self) {
        self.inner.lock().unwrap().changed = None;
    }

    pub(crate) fn take_changed(&self) -> (View, Changed) {
        let mut inner = self.inner.lock().unwrap();
        let changed = inner.changed.as_mut().map(std::mem::take).unwrap_or_default();
        (inner.view.clone(), changed)
    }

    pub(crate) fn moves(&self) -> Moves {
        Moves(self.moved.subscribe())
    }

    /// Lets those who wait look again: something beside the map has changed.
    pub(crate) fn wake(&self) {
        self.moved.send_if_modified(|count| {
            *count += 1;
            true
        });
    }

    pub(crate) async fn reach(&self, revision: u64) {
        let mut moves = self.moves();
        while self.revision() < revision {
            moves.next().await;
        }
    }

    fn restart(&self, state: &State) {
        let mut view = View::default();
        for (key, object) in state.range("", None) {
            view.apply(key, Some(&object.value), object.mod_rev);
        }
        let mut inner = self.inner.lock().unwrap();
        inner.view = view;
        inner.revision = state.revision();
        if inner.changed.is_some() {
            inner.changed = Some(Changed::All);
        }
        drop(inner);
        self.wake();
    }
}

/// Follows the store of `site` until it stops.
pub(crate) async fn follow(site: Site) {
    loop {
        let state = site.store.state();
        site.picture.restart(&state);
        match forward(&site, &site.store, &state).await {
            WatchError::Compacted { .. } => site.world.count("watches compacted"),
            WatchError::Stopped => return,
        }
    }
}

async fn forward(site: &Site, store: &Store, state: &State) -> WatchError {
    // Behind what this node has applied the history may know nothing yet: a restart replays the log.
    let seen = site.world.history.lock().unwrap().revision();
    let mut after = seen.min(state.revision());
    let mut watcher = match store.watch("", after) {
        Ok(watcher) => watcher,
        Err(WatchError::Stopped) => return WatchError::Stopped,
        Err(WatchError::Compacted { .. }) => {
            // It came by a snapshot.
            site.world.history.lock().unwrap().load(state);
            after = state.revision();
            match store.watch("", after) {
                Ok(watcher) => watcher,
                Err(error) => return error,
            }
        }
    };
    loop {
        let batch = match watcher.next().await {
            Ok(batch) => batch,
            Err(error) => return error,
        };
        for event in &batch.events {
            if event.revision != after + 1 {
                let text = format!("I5: node {} delivered {} after {after}", site.number, event.revision);
                site.world.wrong(text);
            }
            after = event.revision;
        }
        site.world.saw(site.number, &batch.events);
        let mut inner = site.picture.inner.lock().unwrap();
        let inner = &mut *inner;
        for event in batch.events.iter().filter(|event| event.revision > state.revision()) {
            let touched = inner.view.apply(&event.key, event.value.as_deref(), event.revision);
            if let Some(changed) = &mut inner.changed {
                changed.add(touched);
            }
        }
        inner.revision = inner.revision.max(batch.revision);
        site.picture.wake();
    }
}
