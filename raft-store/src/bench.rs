//! Doors for the benchmarks to what is private.

use std::sync::Arc;
use std::task::{Context, Waker};

use crate::replica::Replica;
use crate::{Command, RingLimits, State, Watcher};

/// A state with watchers, without Raft around it.
pub struct Watched {
    state: State,
    replica: Arc<Replica>,
    watchers: Vec<Watcher>,
}

impl Watched {
    /// `count` watchers of the same prefix.
    pub fn new(count: usize, prefix: &str) -> Self {
        let replica = Replica::new(State::default(), 0, RingLimits::default());
        let watcher = |_| replica.watch(prefix, 0).expect("nothing is compacted yet");
        let watchers = (0..count).map(watcher).collect();
        Watched { state: State::default(), replica, watchers }
    }

    /// Applies, publishes, and lets every watcher read: the number of events they got.
    pub fn change(&mut self, command: Command) -> usize {
        let (_, events) = self.state.apply(1, command);
        self.replica.publish(self.state.clone(), events);
        let mut cx = Context::from_waker(Waker::noop());
        let read = |watcher: &mut Watcher| match watcher.poll_next(&mut cx) {
            std::task::Poll::Ready(Ok(batch)) => batch.events.len(),
            _ => 0,
        };
        self.watchers.iter_mut().map(read).sum()
    }
}
