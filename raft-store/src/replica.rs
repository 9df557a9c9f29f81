//! What readers of this node see: the applied state, the ring of events, and who waits for them.
//!
//! It is shown by Raft's state machine or, where this store follows another one, by what that tells;
//! whichever is ahead. So readers and watchers see each revision once and never an earlier one after it.
//!
//! State and ring change under one lock, so that a watch begun at the revision of a list misses
//! nothing and repeats nothing. The lock is held for copies of pointers only, never across a wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::feed::Step;
use crate::handle::KEY_BYTES_MAX;
use crate::state::{Event, Members, OBJECT_BYTES_MAX, STORE_BYTES_MAX, State};
use crate::tail::Tail;
use crate::watch::{Ring, RingLimits, WatchError, Watcher};

/// The published side of one store.
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
    /// What Raft has applied, which is less than what is shown where this store follows another one.
    raft_revision: u64,
}

impl Replica {
    /// Shows `state`, of which Raft has `raft_revision`.
    pub(crate) fn new(state: State, raft_revision: u64, limits: RingLimits) -> Arc<Self> {
        let ring = Ring::new(limits, state.revision());
        let waiting = BTreeMap::new();
        let inner = Inner { state, ring, waiting, next_waiter: 0, stopped: false, raft_revision };
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

    /// Shows the state that Raft has applied and the events that led to it to all readers at once.
    pub(crate) fn publish(&self, state: State, mut events: Vec<Event>) {
        let mut inner = self.lock();
        inner.raft_revision = state.revision();
        let shown = inner.state.revision();
        if state.revision() < shown && !crate::broken!(ShownAlthoughBehind) {
            return;
        }
        events.retain(|event| event.revision > shown);
        inner.change(state, |ring, revision| ring.push(events, revision)).wake(inner);
    }

    /// Shows a state that came to Raft as a snapshot: the events in between are unknown here.
    pub(crate) fn publish_snapshot(&self, state: State) {
        let mut inner = self.lock();
        inner.raft_revision = state.revision();
        inner.jump(state).wake(inner);
    }

    /// Shows changes that another store told. Those that are shown already are passed over; a gap before
    /// them, or what no store can hold, is an error, and nothing of it is shown.
    pub(crate) fn show(&self, steps: Vec<Step>) -> Result<(), String> {
        let mut inner = self.lock();
        let mut state = inner.state.clone();
        let mut events = Vec::with_capacity(steps.len());
        for step in steps {
            let next = state.revision() + 1;
            if step.revision > next {
                return Err(format!("a gap in what was told: {} after {}", step.revision, next - 1));
            }
            check(&step.key, step.value.as_ref(), &state)?;
            if step.revision == next {
                crate::seen!("event followed");
                events.push(state.follow(step));
            }
        }
        inner.change(state, |ring, revision| ring.push(events, revision)).wake(inner);
        Ok(())
    }

    /// Shows a whole state that another store told, if it is ahead of what is shown.
    pub(crate) fn show_snapshot(&self, state: State) {
        let mut inner = self.lock();
        inner.jump(state).wake(inner);
    }

    /// Takes over from another store what has no revision.
    pub(crate) fn show_head(&self, level: u32, stamp_ms: u64, members: &Arc<Members>) {
        self.lock().state.follow_head(level, stamp_ms, members);
    }

    /// Whether Raft has applied all that is shown.
    pub(crate) fn raft_is_ahead(&self) -> bool {
        let inner = self.lock();
        inner.raft_revision >= inner.state.revision()
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

    /// Follows every key from now on.
    pub(crate) fn tail(self: &Arc<Self>) -> Result<Tail, WatchError> {
        self.tail_after(u64::MAX)
    }

    /// Follows every key from an earlier revision on, if the events since are still there.
    pub(crate) fn tail_after(self: &Arc<Self>, after: u64) -> Result<Tail, WatchError> {
        let (all, mut inner) = (Arc::from(""), self.lock());
        let state = inner.state.clone();
        let id = inner.ring.subscribe(&all, after.min(state.revision()))?;
        let since = inner.ring.since(after);
        drop(inner);
        Ok(Tail::new(self.clone(), Watcher::new(self.clone(), all, id), state.before(&since)))
    }

    pub(crate) fn with_ring<T>(&self, read: impl FnOnce(&mut Ring) -> T) -> T {
        read(&mut self.lock().ring)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under this lock leaves no half-done change: every update is one assignment.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a store may hold what another one tells, beside what it holds already.
pub(crate) fn check(key: &str, value: Option<&Bytes>, held: &State) -> Result<(), String> {
    if key.len() > KEY_BYTES_MAX || value.is_some_and(|value| value.len() > OBJECT_BYTES_MAX) {
        return Err(format!("an object that is too large, {:?}", key.get(..80).unwrap_or(key)));
    }
    match held.bytes() > 2 * STORE_BYTES_MAX {
        true => Err("more objects than any store holds".into()),
        false => Ok(()),
    }
}

impl Inner {
    fn change(&mut self, state: State, apply: impl FnOnce(&mut Ring, u64) -> Vec<Waker>) -> Changed {
        let revision = state.revision();
        let old = std::mem::replace(&mut self.state, state);
        let mut wake = apply(&mut self.ring, revision);
        let later = self.waiting.split_off(&(revision + 1, 0));
        wake.extend(std::mem::replace(&mut self.waiting, later).into_values());
        Changed { wake, old: Some(old) }
    }

    fn jump(&mut self, state: State) -> Changed {
        let shown = self.state.revision();
        match state.revision() {
            revision if revision < shown => Changed { wake: Vec::new(), old: Some(state) },
            // The same for readers; what else it holds may be newer.
            revision if revision == shown => {
                self.change(state, |ring, revision| ring.push(Vec::new(), revision))
            }
            _ => self.change(state, Ring::restart),
        }
    }
}

/// What is left to do after a change, outside the lock: both may run foreign code or take a while.
#[must_use]
struct Changed {
    wake: Vec<Waker>,
    old: Option<State>,
}

impl Changed {
    fn wake(self, lock: MutexGuard<'_, Inner>) {
        drop(lock);
        self.wake.into_iter().for_each(Waker::wake);
        drop(self.old);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, Command, Expect, Op, Session};

    fn step(revision: u64) -> Step {
        let value = Some(Bytes::from(revision.to_string()));
        Step { revision, key: "key".into(), value, stamp_ms: revision }
    }

    /// What Raft has after `count` writes, and the events of the last `last` of them.
    fn applied(count: u64, last: u64) -> (State, Vec<Event>) {
        let (mut state, mut all) = (State::default(), Vec::new());
        for serial in 1..=count {
            let change = Change::Put(Bytes::from(serial.to_string()));
            let ops = vec![Op { key: "key".into(), expect: Expect::Any, change }];
            let session = Session::default();
            let (unanswered_from, stamp_ms, only_in_term, atomic) = (serial, serial, None, true);
            let command = Command { session, serial, unanswered_from, stamp_ms, only_in_term, atomic, ops };
            all.extend(state.apply(1, command).1);
        }
        let events = all.split_off((count - last) as usize);
        (state, events)
    }

    fn replica() -> Arc<Replica> {
        Replica::new(State::default(), 0, RingLimits::default())
    }

    /// The revisions a watcher from the beginning is told.
    fn seen(watcher: &mut Watcher) -> Vec<u64> {
        match watcher.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(batch) => batch.unwrap().events.iter().map(|event| event.revision).collect(),
            Poll::Pending => Vec::new(),
        }
    }

    #[test]
    fn whichever_is_ahead_shows_each_revision_once() {
        let replica = replica();
        let mut watcher = replica.watch("", 0).unwrap();
        replica.show(vec![step(1), step(2), step(3)]).unwrap();
        assert_eq!(seen(&mut watcher), [1, 2, 3]);
        // Raft is behind: nothing goes back.
        let (state, events) = applied(2, 2);
        replica.publish(state, events);
        assert!(replica.revision() == 3 && !replica.raft_is_ahead());
        // It overtakes in the middle of what it applies at once.
        let (state, events) = applied(5, 3);
        replica.publish(state, events);
        assert!(replica.raft_is_ahead());
        replica.show(vec![step(4), step(5), step(6)]).unwrap();
        assert_eq!((seen(&mut watcher), replica.revision()), (vec![4, 5, 6], 6));
        assert_eq!(replica.state().get("key").unwrap().value, "6");
    }

    #[test]
    fn a_snapshot_of_either_takes_nothing_back() {
        let replica = replica();
        replica.show_snapshot(applied(5, 0).0.for_followers());
        let mut watcher = replica.watch("", 5).unwrap();
        replica.publish_snapshot(applied(3, 0).0);
        replica.publish_snapshot(applied(5, 0).0);
        replica.show_snapshot(applied(4, 0).0.for_followers());
        assert_eq!((replica.revision(), replica.raft_is_ahead()), (5, true));
        replica.show(vec![step(6)]).unwrap();
        assert_eq!(seen(&mut watcher), [6], "the watch goes on");
        replica.publish_snapshot(applied(9, 0).0);
        assert!(replica.raft_is_ahead() && replica.watch("", 6).is_err());
    }

    #[test]
    fn a_gap_or_a_giant_shows_nothing() {
        let replica = replica();
        assert!(replica.show(vec![step(1), step(3)]).is_err());
        let value = Some(Bytes::from(vec![0; OBJECT_BYTES_MAX + 1]));
        assert!(replica.show(vec![Step { value, ..step(1) }]).is_err());
        let key = "k".repeat(KEY_BYTES_MAX + 1).into();
        assert!(replica.show(vec![Step { key, ..step(1) }]).is_err());
        assert_eq!(replica.revision(), 0);
    }
}
