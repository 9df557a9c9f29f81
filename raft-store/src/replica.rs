//! What readers of this node see: the applied state, the ring of events, and who waits for them.
//!
//! State and ring change under one lock, so that a watch begun at the revision of a list misses
//! nothing and repeats nothing. The lock is held for copies of pointers only, never across a wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::state::Event;
use crate::state::State;
use crate::watch::{Ring, RingLimits, WatchError, Watcher};

/// The published side of one store. Only the state machine of Raft writes to it.
pub(crate) struct Replica {
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    ring: Ring,
    /// By (revision waited for, number of the waiter): woken in this order.
    waiting: BTreeMap<(u64, u64), Waker>,
    next_waiter: u64,
    stopped: bool,
}

impl Replica {
    pub(crate) fn new(state: State, limits: RingLimits) -> Arc<Self> {
        let ring = Ring::new(limits, state.revision());
        let inner = Inner { state, ring, waiting: BTreeMap::new(), next_waiter: 0, stopped: false };
        Arc::new(Replica { inner: Mutex::new(inner) })
    }

    /// The applied state; costs the copy of a few pointers.
    pub(crate) fn state(&self) -> State {
        self.lock().state.clone()
    }

    pub(crate) fn revision(&self) -> u64 {
        self.lock().state.revision()
    }

    pub(crate) fn stamp_ms(&self) -> u64 {
        self.lock().state.stamp_ms()
    }

    /// Shows `state` and the events that led to it to all readers at once.
    pub(crate) fn publish(&self, state: State, events: Vec<Event>) {
        self.change(state, |ring, revision| ring.push(events, revision));
    }

    /// Shows a state that came as a snapshot: the events in between are unknown here.
    pub(crate) fn publish_snapshot(&self, state: State) {
        self.change(state, |ring, revision| ring.restart(revision));
    }

    fn change(&self, state: State, apply: impl FnOnce(&mut Ring, u64) -> Vec<Waker>) {
        let (mut wake, old) = {
            let mut inner = self.lock();
            let revision = state.revision();
            let old = std::mem::replace(&mut inner.state, state);
            let mut wake = apply(&mut inner.ring, revision);
            let later = inner.waiting.split_off(&(revision + 1, 0));
            wake.extend(std::mem::replace(&mut inner.waiting, later).into_values());
            (wake, old)
        };
        // Outside the lock: both may run foreign code or take a while.
        wake.drain(..).for_each(Waker::wake);
        drop(old);
    }

    /// Ends every watch and wait. Reads of the state stay possible.
    pub(crate) fn stop(&self) {
        let wake: Vec<Waker> = {
            let mut inner = self.lock();
            inner.stopped = true;
            let mut wake = inner.ring.stop();
            wake.extend(std::mem::take(&mut inner.waiting).into_values());
            wake
        };
        wake.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Completes once `revision` is applied here; `false` if the store stopped before.
    pub(crate) fn wait(self: &Arc<Self>, revision: u64) -> Applied {
        Applied { replica: self.clone(), revision, waiter: None }
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: &str, after: u64) -> Result<Watcher, WatchError> {
        let prefix: Arc<str> = prefix.into();
        let id = self.with_ring(|ring| ring.subscribe(&prefix, after))?;
        Ok(Watcher::new(self.clone(), prefix, id))
    }

    pub(crate) fn with_ring<T>(&self, read: impl FnOnce(&mut Ring) -> T) -> T {
        read(&mut self.lock().ring)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under this lock leaves no half-done change: every update is one assignment.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait for a revision; see [`Replica::wait`].
pub(crate) struct Applied {
    replica: Arc<Replica>,
    revision: u64,
    waiter: Option<u64>,
}

impl Future for Applied {
    type Output = bool;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let this = &mut *self;
        let mut inner = this.replica.lock();
        if inner.state.revision() >= this.revision {
            return Poll::Ready(true);
        }
        if inner.stopped {
            return Poll::Ready(false);
        }
        let waiter = *this.waiter.get_or_insert_with(|| {
            inner.next_waiter += 1;
            inner.next_waiter
        });
        inner.waiting.insert((this.revision, waiter), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            self.replica.lock().waiting.remove(&(self.revision, waiter));
        }
    }
}
