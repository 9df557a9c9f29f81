//! The recent events of the map, and the cursors that read them.
//!
//! A watcher is a cursor on one shared ring, not a queue of its own: a slow one costs nothing and,
//! once the ring has passed it, ends with [`WatchError::Compacted`] and lists again. The ring knows
//! neither time nor tasks; whoever changes it wakes the [`Waker`]s it hands back, in a fixed order,
//! so that a simulated run repeats.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::replica::Replica;
use crate::state::Event;

/// How much of the past the ring keeps; whichever bound is met first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLimits {
    /// Events, at most.
    pub events_max: usize,
    /// Keys and values of these events together. A single larger event is still kept until the next.
    pub bytes_max: usize,
}

impl Default for RingLimits {
    fn default() -> Self {
        // 8 MiB is a minute of a busy small cluster: 60 s x 60 changes/s x 2 KiB = 7 MiB.
        RingLimits { events_max: 65_536, bytes_max: 8 << 20 }
    }
}

/// Events one call of [`Watcher::next`] returns at most, so that a watcher far behind neither holds
/// the ring's lock for long nor builds one huge answer.
const BATCH_MAX: usize = 512;

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Events after the watcher's cursor are gone from the ring.
    #[error("events up to revision {floor} are no longer kept; list again and watch from there")]
    Compacted {
        /// Events after this revision are still there.
        floor: u64,
    },
    /// The store of this node was shut down.
    #[error("the store has stopped; watch through another node")]
    Stopped,
}

/// Events in revision order, and how far the watcher has now come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Matching events, each revision once, ascending.
    pub events: Vec<Event>,
    /// Every matching event up to this revision has been delivered by this batch or an earlier one.
    pub revision: u64,
}

/// A cursor over the events whose key starts with one prefix. Dropping it ends the watch.
pub struct Watcher {
    replica: Arc<Replica>,
    prefix: Arc<str>,
    id: u64,
}

impl Watcher {
    pub(crate) fn new(replica: Arc<Replica>, prefix: Arc<str>, id: u64) -> Self {
        Watcher { replica, prefix, id }
    }

    /// Waits for at least one matching event and returns all that are there, up to a few hundred.
    ///
    /// Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Result<Batch, WatchError> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// How far this watcher has come: no event up to here is still to be delivered. What a bookmark
    /// may say. It moves without [`next`](Self::next) being polled, as long as nothing matches.
    pub fn revision(&self) -> u64 {
        self.replica.with_ring(|ring| ring.cursor(&self.prefix, self.id))
    }

    /// As [`next`](Self::next), for callers that poll by hand.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Batch, WatchError>> {
        self.replica.with_ring(|ring| ring.poll(&self.prefix, self.id, cx.waker()))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.replica.with_ring(|ring| ring.forget(&self.prefix, self.id));
    }
}

/// The ring itself and where each watcher stands.
///
/// Invariants: events ascend by revision; `floor <= revision`; every event in `(floor, revision]`
/// is present; a slot whose waker is set has no matching event in `(cursor, revision]`.
pub(crate) struct Ring {
    limits: RingLimits,
    events: VecDeque<Event>,
    bytes: usize,
    floor: u64,
    revision: u64,
    stopped: bool,
    /// Grouped by prefix: many watchers share few prefixes, and each new event is compared once per prefix.
    groups: BTreeMap<Arc<str>, BTreeMap<u64, Slot>>,
    next_id: u64,
}

struct Slot {
    cursor: u64,
    waker: Option<Waker>,
}

impl Ring {
    pub(crate) fn new(limits: RingLimits, revision: u64) -> Self {
        Ring {
            limits,
            events: VecDeque::new(),
            bytes: 0,
            floor: revision,
            revision,
            stopped: false,
            groups: BTreeMap::new(),
            next_id: 0,
        }
    }

    /// Adds a watcher of the events after `after`; one from the future waits for it.
    pub(crate) fn subscribe(&mut self, prefix: &Arc<str>, after: u64) -> Result<u64, WatchError> {
        if self.stopped {
            return Err(WatchError::Stopped);
        }
        if after < self.floor {
            return Err(WatchError::Compacted { floor: self.floor });
        }
        self.next_id += 1;
        let slot = Slot { cursor: after, waker: None };
        self.groups.entry(prefix.clone()).or_default().insert(self.next_id, slot);
        Ok(self.next_id)
    }

    /// All events after `after`, which the ring must still hold.
    pub(crate) fn since(&self, after: u64) -> Vec<Event> {
        let first = self.events.partition_point(|event| event.revision <= after);
        self.events.range(first..).cloned().collect()
    }

    /// Appends the events of applied commands and moves to `revision`.
    ///
    /// Returns whom to wake: the watchers with something to read, in the order of prefix and age.
    pub(crate) fn push(&mut self, events: Vec<Event>, revision: u64) -> Vec<Waker> {
        debug_assert!(events.windows(2).all(|pair| pair[0].revision < pair[1].revision));
        let before = self.revision;
        let mut wake = Vec::new();
        for (prefix, slots) in &mut self.groups {
            let last_match = events
                .iter()
                .rev()
                .find(|event| event.key.starts_with(&**prefix))
                .map(|event| event.revision);
            for slot in slots.values_mut().filter(|slot| slot.cursor >= before || slot.waker.is_some()) {
                match last_match {
                    Some(last) if last > slot.cursor => wake.extend(slot.waker.take()),
                    // Nothing for this one: it has seen everything without being woken.
                    _ => slot.cursor = slot.cursor.max(revision),
                }
            }
        }
        for event in events {
            self.bytes += size(&event);
            self.events.push_back(event);
        }
        self.revision = revision;
        while self.events.len() > self.limits.events_max
            || (self.bytes > self.limits.bytes_max && self.events.len() > 1)
        {
            let oldest = self.events.pop_front().expect("the loop's condition says there is one");
            self.bytes -= size(&oldest);
            self.floor = oldest.revision;
        }
        wake
    }

    /// Forgets the past: a snapshot was installed, and what lies between is unknown here.
    pub(crate) fn restart(&mut self, revision: u64) -> Vec<Waker> {
        self.events.clear();
        self.bytes = 0;
        if !crate::broken!(EventsLostAtSnapshot) {
            self.floor = revision;
        }
        self.revision = revision;
        self.wake_all()
    }

    /// Ends every watch.
    pub(crate) fn stop(&mut self) -> Vec<Waker> {
        self.stopped = true;
        self.wake_all()
    }

    fn wake_all(&mut self) -> Vec<Waker> {
        self.groups
            .values_mut()
            .flat_map(|slots| slots.values_mut())
            .filter_map(|slot| slot.waker.take())
            .collect()
    }

    fn poll(&mut self, prefix: &Arc<str>, id: u64, waker: &Waker) -> Poll<Result<Batch, WatchError>> {
        let Some(slot) = self.groups.get_mut(prefix).and_then(|slots| slots.get_mut(&id)) else {
            return Poll::Ready(Err(WatchError::Stopped));
        };
        if self.stopped {
            return Poll::Ready(Err(WatchError::Stopped));
        }
        if slot.cursor < self.floor {
            return Poll::Ready(Err(WatchError::Compacted { floor: self.floor }));
        }
        let first = self.events.partition_point(|event| event.revision <= slot.cursor);
        let events: Vec<Event> = self
            .events
            .range(first..)
            .filter(|event| event.key.starts_with(&**prefix))
            .take(BATCH_MAX)
            .cloned()
            .collect();
        if events.len() == BATCH_MAX {
            slot.cursor = events[BATCH_MAX - 1].revision;
        } else {
            slot.cursor = slot.cursor.max(self.revision);
        }
        if events.is_empty() {
            slot.waker = Some(waker.clone());
            return Poll::Pending;
        }
        slot.waker = None;
        let mut events = events;
        if crate::broken!(WatchEventSkipped) {
            events.remove(0);
        }
        if crate::broken!(WatchEventsSwapped) && events.len() > 1 {
            events.swap(0, 1);
        }
        if crate::broken!(WatchEventRepeated) {
            events.extend(events.last().cloned());
        }
        Poll::Ready(Ok(Batch { events, revision: slot.cursor }))
    }

    fn cursor(&self, prefix: &Arc<str>, id: u64) -> u64 {
        self.groups.get(prefix).and_then(|slots| slots.get(&id)).map_or(0, |slot| slot.cursor)
    }

    fn forget(&mut self, prefix: &Arc<str>, id: u64) {
        if let Some(slots) = self.groups.get_mut(prefix) {
            slots.remove(&id);
            if slots.is_empty() {
                self.groups.remove(prefix);
            }
        }
    }

    /// Events and bytes kept at present, for the metrics.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.events.len(), self.bytes)
    }
}

fn size(event: &Event) -> usize {
    // An update keeps two values alive, the new and the one it replaced.
    let values = [&event.value, &event.previous];
    event.key.len() + values.into_iter().flatten().map(|value| value.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn event(revision: u64, key: &str) -> Event {
        Event {
            revision,
            key: key.into(),
            value: Some(Bytes::from_static(b"1234567890")),
            previous: None,
            stamp_ms: 0,
        }
    }

    fn poll(ring: &mut Ring, prefix: &Arc<str>, id: u64) -> Poll<Result<Vec<u64>, WatchError>> {
        ring.poll(prefix, id, Waker::noop())
            .map(|result| result.map(|batch| batch.events.iter().map(|event| event.revision).collect()))
    }

    fn ring() -> Ring {
        Ring::new(RingLimits { events_max: 4, bytes_max: 1 << 20 }, 0)
    }

    #[test]
    fn a_watcher_sees_each_matching_event_once_and_in_order() {
        let (mut ring, prefix) = (ring(), Arc::from("pods/"));
        let id = ring.subscribe(&prefix, 0).unwrap();
        ring.push(vec![event(1, "pods/a"), event(2, "nodes/b")], 2);
        ring.push(vec![event(3, "pods/c")], 3);
        assert_eq!(poll(&mut ring, &prefix, id), Poll::Ready(Ok(vec![1, 3])));
        assert_eq!(poll(&mut ring, &prefix, id), Poll::Pending);
        ring.push(vec![event(4, "pods/a")], 4);
        assert_eq!(poll(&mut ring, &prefix, id), Poll::Ready(Ok(vec![4])));
    }

    #[test]
    fn a_watcher_of_quiet_keys_stays_up_to_date_while_others_fill_the_ring() {
        let (mut ring, prefix) = (ring(), Arc::from("pods/"));
        let id = ring.subscribe(&prefix, 0).unwrap();
        assert_eq!(poll(&mut ring, &prefix, id), Poll::Pending);
        for revision in 1..=20 {
            assert!(ring.push(vec![event(revision, "nodes/n")], revision).is_empty());
        }
        assert_eq!(ring.cursor(&prefix, id), 20);
        assert_eq!(ring.push(vec![event(21, "pods/a")], 21).len(), 1);
        assert_eq!(poll(&mut ring, &prefix, id), Poll::Ready(Ok(vec![21])));
    }

    #[test]
    fn a_watcher_the_ring_has_passed_is_told_to_list_again() {
        let (mut ring, prefix) = (ring(), Arc::from("pods/"));
        let id = ring.subscribe(&prefix, 0).unwrap();
        for revision in 1..=6 {
            ring.push(vec![event(revision, "pods/a")], revision);
        }
        assert_eq!(poll(&mut ring, &prefix, id), Poll::Ready(Err(WatchError::Compacted { floor: 2 })));
        assert_eq!(ring.subscribe(&prefix, 1), Err(WatchError::Compacted { floor: 2 }));
        assert!(ring.subscribe(&prefix, 2).is_ok());
    }

    #[test]
    fn a_watch_from_the_future_waits_for_it() {
        let (mut ring, prefix) = (ring(), Arc::from(""));
        let id = ring.subscribe(&prefix, 2).unwrap();
        assert_eq!(poll(&mut ring, &prefix, id), Poll::Pending);
        for revision in 1..=2 {
            ring.push(vec![event(revision, "a")], revision);
            assert_eq!(poll(&mut ring, &prefix, id), Poll::Pending);
        }
        ring.push(vec![event(3, "a")], 3);
        assert_eq!(poll(&mut ring, &prefix, id), Poll::Ready(Ok(vec![3])));
    }

    #[test]
    fn one_push_that_spans_a_future_cursor_delivers_only_what_lies_beyond_it() {
        let (mut ring, prefix) = (ring(), Arc::from(""));
        let id = ring.subscribe(&prefix, 2).unwrap();
        assert_eq!(poll(&mut ring, &prefix, id), Poll::Pending);
        assert_eq!(ring.push((1..=3).map(|revision| event(revision, "a")).collect(), 3).len(), 1);
        assert_eq!(poll(&mut ring, &prefix, id), Poll::Ready(Ok(vec![3])));
    }

    #[test]
    fn an_installed_snapshot_lifts_the_floor() {
        let (mut ring, prefix) = (ring(), Arc::from(""));
        let (old, ahead) = (ring.subscribe(&prefix, 0).unwrap(), ring.subscribe(&prefix, 100).unwrap());
        assert_eq!(poll(&mut ring, &prefix, old), Poll::Pending);
        assert_eq!(ring.restart(100).len(), 1);
        assert_eq!(poll(&mut ring, &prefix, old), Poll::Ready(Err(WatchError::Compacted { floor: 100 })));
        ring.push(vec![event(101, "a")], 101);
        assert_eq!(poll(&mut ring, &prefix, ahead), Poll::Ready(Ok(vec![101])));
    }

    #[test]
    fn the_ring_is_bounded_by_bytes_but_keeps_the_latest_event() {
        let mut ring = Ring::new(RingLimits { events_max: 100, bytes_max: 25 }, 0);
        ring.push(vec![event(1, "a"), event(2, "a"), event(3, "a")], 3);
        assert_eq!((ring.floor, ring.size()), (1, (2, 22)));
        let mut ring = Ring::new(RingLimits { events_max: 100, bytes_max: 5 }, 0);
        ring.push(vec![event(1, "a")], 1);
        assert_eq!(ring.size().0, 1);
    }
}
