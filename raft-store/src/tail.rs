//! A cursor over all changes of the map that never has to begin anew.
//!
//! A [`Watcher`] that the ring of events has passed has lost what lies between, and its owner would have to go through
//! the whole map again; while it does, the ring passes it once more. A [`Tail`] knows the map as it is at its cursor,
//! which costs next to nothing where most of that has not changed since. So what it missed is the difference of two
//! states: one change for each key, however often that was written, and as much less work the less was missed.

use std::sync::Arc;

use crate::feed::Step;
use crate::replica::Replica;
use crate::state::{Difference, Event, State};
use crate::watch::{WatchError, Watcher};

/// Follows every key of one store from a revision on. Dropping it ends that.
pub struct Tail {
    replica: Arc<Replica>,
    watcher: Watcher,
    /// The map at the cursor.
    state: State,
}

/// What a [`Tail`] tells next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moved {
    /// The next changes, each revision once and in order.
    Events(Vec<Event>),
    /// The events in between are gone: these keys are not as they were.
    Jump(Vec<Difference>),
}

impl Tail {
    pub(crate) fn new(replica: Arc<Replica>, watcher: Watcher, state: State) -> Tail {
        Tail { replica, watcher, state }
    }

    /// The map as it is after all that was told so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Waits for what comes next; `None` when the store has stopped. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<Moved> {
        match self.watcher.next().await {
            Ok(batch) => {
                self.advance(&batch.events, batch.revision);
                Some(Moved::Events(batch.events))
            }
            Err(WatchError::Compacted { .. }) => {
                let Tail { watcher, state, .. } = self.replica.tail().ok()?;
                let before = std::mem::replace(&mut self.state, state);
                self.watcher = watcher;
                Some(Moved::Jump(before.differences(&self.state).collect()))
            }
            Err(WatchError::Stopped) => None,
        }
    }

    fn advance(&mut self, events: &[Event], revision: u64) {
        let newest = self.replica.state();
        if newest.revision() == revision {
            // Shares everything with the store again.
            self.state = newest;
            return;
        }
        for event in events {
            self.state.follow(Step::of(event.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;
    use futures::FutureExt;

    use super::*;
    use crate::{Change, Command, Expect, Op, RingLimits, Session};

    /// A store without Raft, and what a tail of it was told.
    struct Told {
        state: State,
        replica: Arc<Replica>,
        serial: u64,
        map: BTreeMap<Arc<str>, Bytes>,
        revision: u64,
        jumps: u32,
    }

    impl Told {
        fn new(events_max: usize) -> Told {
            let limits = RingLimits { events_max, bytes_max: 1 << 20 };
            let replica = Replica::new(State::default(), 0, limits);
            Told { state: State::default(), replica, serial: 0, map: BTreeMap::new(), revision: 0, jumps: 0 }
        }

        /// One write; without a value a deletion.
        fn write(&mut self, key: &str, value: Option<u64>) {
            self.serial += 1;
            let change = value.map_or(Change::Delete, |value| Change::Put(Bytes::from(value.to_string())));
            let ops = vec![Op { key: key.into(), expect: Expect::Any, change }];
            let (session, serial, unanswered_from) = (Session::default(), self.serial, self.serial);
            let (stamp_ms, only_in_term, atomic) = (serial, None, true);
            let command = Command { session, serial, unanswered_from, stamp_ms, only_in_term, atomic, ops };
            let (_, events) = self.state.apply(1, command);
            self.replica.publish(self.state.clone(), events);
        }

        /// Reads what there is to read, at most `batches` times.
        fn read(&mut self, tail: &mut Tail, batches: usize) {
            for _ in 0..batches {
                match tail.next().now_or_never() {
                    None => return,
                    Some(None) => panic!("nobody has stopped the store"),
                    Some(Some(Moved::Events(events))) => {
                        for Event { revision, key, value, .. } in events {
                            assert_eq!(revision, self.revision + 1);
                            self.revision = revision;
                            match value {
                                Some(value) => drop(self.map.insert(key, value)),
                                None => drop(self.map.remove(&key)),
                            }
                        }
                    }
                    Some(Some(Moved::Jump(differences))) => {
                        self.jumps += 1;
                        for Difference { key, object } in differences {
                            match object {
                                Some(object) => drop(self.map.insert(key, object.value)),
                                None => assert!(self.map.remove(&key).is_some(), "{key} was not there"),
                            }
                        }
                        self.revision = tail.state().revision();
                    }
                }
                assert_eq!((tail.state().revision(), &held(tail.state())), (self.revision, &self.map));
            }
        }
    }

    fn held(state: &State) -> BTreeMap<Arc<str>, Bytes> {
        state.range("", None).map(|(key, object)| (key.clone(), object.value.clone())).collect()
    }

    #[test]
    fn whoever_was_passed_is_told_what_differs_and_nothing_else() {
        let mut told = Told::new(2);
        let mut tail = told.replica.tail().unwrap();
        (0..3).for_each(|n| told.write(&format!("key{n}"), Some(n)));
        told.write("key1", None);
        told.write("gone", Some(0));
        told.write("gone", None);
        let Some(Some(Moved::Jump(differences))) = tail.next().now_or_never() else {
            panic!("the ring passed it")
        };
        let keys: Vec<_> = differences.iter().map(|it| (&*it.key, it.object.is_some())).collect();
        assert_eq!(keys, [("key0", true), ("key2", true)]);
        assert_eq!(tail.state(), &told.state);
    }

    /// Small rings, reads at any moment, keys that come and go.
    #[test]
    fn the_map_is_always_what_was_told() {
        let mut draw = 7_u64;
        let mut chance = move |of: u64| {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (draw >> 33) % of
        };
        let mut jumps = 0;
        for ring in [1, 2, 5, 30] {
            let mut told = Told::new(ring);
            let mut tail = told.replica.tail().unwrap();
            for serial in 0..3000 {
                let key = format!("key{}", chance(12));
                let value = (chance(3) > 0).then_some(serial);
                told.write(&key, value);
                if chance(8) == 0 {
                    told.read(&mut tail, chance(3) as usize);
                }
                if chance(200) == 0 {
                    // As after a break of the way to whoever follows.
                    tail = told.replica.tail_after(told.revision).unwrap_or_else(|_| {
                        (told.map, told.revision) = (held(&told.state), told.state.revision());
                        told.replica.tail().unwrap()
                    });
                    assert_eq!(held(tail.state()), told.map);
                }
            }
            told.read(&mut tail, usize::MAX);
            assert!(tail.state().digest() == told.state.digest());
            jumps += told.jumps;
        }
        assert!(jumps > 100, "{jumps}");
    }

    #[test]
    fn a_snapshot_that_was_installed_is_a_jump() {
        let mut told = Told::new(100);
        let mut tail = told.replica.tail().unwrap();
        told.write("a", Some(1));
        told.read(&mut tail, 9);
        let mut other = Told::new(100);
        for (key, value) in [("a", 1), ("b", 2), ("c", 3)] {
            other.write(key, Some(value));
        }
        told.replica.publish_snapshot(other.state.clone());
        told.read(&mut tail, 9);
        assert_eq!((told.jumps, told.map.len(), told.revision), (1, 3, 3));
    }

    #[test]
    fn the_end_of_the_store_ends_it() {
        let told = Told::new(9);
        let mut tail = told.replica.tail().unwrap();
        assert!(tail.next().boxed().poll_unpin(&mut Context::from_waker(Waker::noop())) == Poll::Pending);
        told.replica.stop();
        assert_eq!(tail.next().now_or_never(), Some(None));
    }
}
