//! Moments as the pure crates know them: plain numbers that a test can write down.

use jiff::Timestamp;
pub(crate) use skein_api::time::after as seconds_after;
use std::time::Duration;

/// A moment of this node's boot clock, in milliseconds.
///
/// Boot time also counts while the machine sleeps, and is never set by hand: timers hang on it, wall
/// time only stamps objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// The moment `later` after this one.
    pub fn after(self, later: Duration) -> Instant {
        Instant(self.0.saturating_add(later.as_millis().try_into().unwrap_or(u64::MAX)))
    }

    /// The moment `earlier` before this one.
    pub fn before(self, earlier: Duration) -> Instant {
        Instant(self.0.saturating_sub(earlier.as_millis().try_into().unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Now, on both clocks of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For timers.
    pub boot: Instant,
    /// For what users read.
    pub wall: Timestamp,
}

/// `at` without its fraction: objects carry whole seconds, and a stamp must read back as it was written.
pub(crate) fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).expect("a whole second of a timestamp lies in its range")
}
