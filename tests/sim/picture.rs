//! One node's typed picture of the map, brought forward by a watch that the checks look at as well.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use openraft::AsyncRuntime;
use openraft::async_runtime::{Watch, WatchReceiver, WatchSender};
use skein_control::node::roster::PREFIX;
use skein_control::view::{Changed, View};
use skein_net::identity::NodeId;
use skein_net::tls::Standing;
use skein_raft_store::sim::SimRt;
use skein_raft_store::{Difference, Moved, State, WatchError};

use crate::members::Record;
use crate::world::Site;

type Channel = <SimRt as AsyncRuntime>::Watch;

#[derive(Clone)]
pub(crate) struct Picture {
    inner: Arc<Mutex<Inner>>,
    moved: <Channel as Watch>::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    view: View,
    /// All records of members in the map, of former ones as well.
    records: BTreeMap<NodeId, Record>,
    /// Counts their changes.
    edition: u64,
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

    /// Everybody who is a member, by the map.
    pub(crate) fn roster(&self) -> BTreeMap<NodeId, Record> {
        let mut records = self.records();
        records.retain(|_, record| !record.removed);
        records
    }

    /// The same with everybody who was a member.
    pub(crate) fn records(&self) -> BTreeMap<NodeId, Record> {
        self.inner.lock().unwrap().records.clone()
    }

    /// Another number with each change of the records.
    pub(crate) fn edition(&self) -> u64 {
        self.inner.lock().unwrap().edition
    }

    /// Whether a node is a member, by the map.
    pub(crate) fn standing(&self, node: NodeId) -> Standing {
        match self.inner.lock().unwrap().records.get(&node) {
            Some(record) if record.removed => Standing::Removed,
            Some(_) => Standing::Member,
            None => Standing::Unknown,
        }
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

    /// Shows `state` from its beginning.
    fn begin(&self, state: &State) {
        let mut view = View::default();
        for (key, object) in state.range("", None) {
            view.apply(key, Some(&object.value), object.mod_rev);
        }
        let mut inner = self.inner.lock().unwrap();
        (inner.view, inner.revision) = (view, state.revision());
        inner.records.clear();
        inner.edition += 1;
        for (key, object) in state.range(PREFIX, None) {
            inner.enroll(key, Some(&object.value));
        }
        if inner.changed.is_some() {
            inner.changed = Some(Changed::All);
        }
        drop(inner);
        self.wake();
    }

    /// Takes over changes: of each a key, what it is now, and since which revision.
    fn apply<'a>(&self, changes: impl Iterator<Item = (&'a str, Option<&'a [u8]>, u64)>, revision: u64) {
        let mut inner = self.inner.lock().unwrap();
        let inner = &mut *inner;
        for (key, value, since) in changes {
            inner.enroll(key, value);
            let touched = inner.view.apply(key, value, since);
            if let Some(changed) = &mut inner.changed {
                changed.add(touched);
            }
        }
        inner.revision = inner.revision.max(revision);
        self.wake();
    }
}

impl Inner {
    fn enroll(&mut self, key: &str, value: Option<&[u8]>) {
        let Some(node) = key.strip_prefix(PREFIX).and_then(|id| id.parse().ok()) else { return };
        let record: Option<Record> = value.and_then(|bytes| serde_json::from_slice(bytes).ok());
        self.edition += 1;
        match record {
            Some(record) => self.records.insert(node, record),
            None => self.records.remove(&node),
        };
    }
}

/// Follows the store of `site` until it stops.
pub(crate) async fn follow(site: Site) {
    let state = site.store.state();
    site.picture.begin(&state);
    // Behind what this node has applied the history may know nothing yet: a restart replays the log.
    let seen = site.world.history.lock().unwrap().revision();
    let tail = match site.store.tail_after(seen.min(state.revision())) {
        Err(WatchError::Compacted { .. }) => site.store.tail(),
        known => known,
    };
    let Ok(mut tail) = tail else { return };
    let mut after = tail.state().revision();
    site.world.history.lock().unwrap().load(tail.state());
    while let Some(moved) = tail.next().await {
        let revision = tail.state().revision();
        match moved {
            Moved::Events(events) => {
                for event in &events {
                    if event.revision != after + 1 {
                        let text =
                            format!("I5: node {} delivered {} after {after}", site.number, event.revision);
                        site.world.wrong(text);
                    }
                    after = event.revision;
                }
                site.world.saw(site.number, &events);
                let new = events.iter().filter(|event| event.revision > state.revision());
                site.picture
                    .apply(new.map(|event| (&*event.key, event.value.as_deref(), event.revision)), revision);
            }
            Moved::Jump(differences) => {
                site.world.count("watches compacted");
                site.world.history.lock().unwrap().load(tail.state());
                for Difference { key, object } in &differences {
                    let mut history = site.world.history.lock().unwrap();
                    object.iter().for_each(|object| history.jumped(site.number, key, object));
                }
                let changes = differences.iter().map(|Difference { key, object }| match object {
                    Some(object) => (&**key, Some(&*object.value), object.mod_rev),
                    None => (&**key, None, revision),
                });
                site.picture.apply(changes, revision);
                after = revision;
            }
        }
    }
}
