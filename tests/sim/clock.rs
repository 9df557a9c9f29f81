//! A node's clocks: boot time that runs a little too fast or slow, wall time that is off by hours.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use jiff::Timestamp;
use openraft::async_runtime::Instant as _;
use rand::RngExt;
use rand::rngs::StdRng;
use skein_control::time::{self, Instant};

use crate::world::Now;

/// When the simulated world begins.
const EPOCH_MS: i64 = 1_760_000_000_000;

#[derive(Clone)]
pub(crate) struct Clock {
    began: Now,
    boot_offset_ms: u64,
    wall_offset_ms: Arc<AtomicI64>,
    /// Parts in a million by which it is fast.
    fast_ppm: i64,
}

impl Clock {
    /// 1 ± 500 ppm; one clock in twenty is off by 5 %.
    pub(crate) fn draw(began: Now, chance: &mut StdRng) -> Clock {
        let bad = chance.random_bool(0.05);
        let fast_ppm = if bad { 50_000 } else { 500 };
        Clock {
            began,
            boot_offset_ms: chance.random_range(100_000..10_000_000),
            wall_offset_ms: Arc::new(AtomicI64::new(chance.random_range(-3_600_000..3_600_000))),
            fast_ppm: chance.random_range(-fast_ppm..=fast_ppm),
        }
    }

    pub(crate) fn boot(&self) -> Instant {
        let micros = self.began.elapsed().as_micros() as i64;
        let own = micros + micros * self.fast_ppm / 1_000_000;
        Instant(self.boot_offset_ms + own as u64 / 1000)
    }

    /// The moment of the world at which this clock shows `at`.
    pub(crate) fn moment(&self, at: Instant) -> Now {
        let own = at.0.saturating_sub(self.boot_offset_ms) as i64 * 1000;
        // Rounded up, and the microsecond that `boot` may lose.
        let micros = own * 1_000_000 / (1_000_000 + self.fast_ppm) + 2;
        self.began + Duration::from_micros(micros as u64)
    }

    pub(crate) fn wall(&self) -> Timestamp {
        Timestamp::from_millisecond(self.wall_ms() as i64).expect("within the century")
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        (EPOCH_MS + self.wall_offset_ms.load(Relaxed) + self.began.elapsed().as_millis() as i64) as u64
    }

    pub(crate) fn jump(&self, by_ms: i64) {
        self.wall_offset_ms.fetch_add(by_ms, Relaxed);
    }

    pub(crate) fn now(&self) -> time::Now {
        time::Now { boot: self.boot(), wall: self.wall() }
    }
}
