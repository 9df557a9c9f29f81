//! The time that a leader stamps on what it writes: never back by a little, and never still.

use std::time::Duration;

use openraft::async_runtime::Instant;

/// A clock that is behind the last stamp is waited for at this part of a second in each second.
const SLEW: u32 = 16;

/// 2025-10-01: a clock that shows less was never set, for no build of this program is older.
pub const SET_SINCE_MS: u64 = 1_759_276_800_000;
/// A stamp that is further ahead of a clock that was set was made by one that was wrong. A week: machines without a
/// battery start with the time that they last saved, which is hours old, at most days.
const AHEAD_MAX_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// Counts on from the newest stamp where the clock is behind it, as on a machine that started without a
/// battery under its clock: what waits for a time must not wait until that clock has caught up. It counts a little
/// slow, so that the two meet again. Where they would meet in years the stamp is what was wrong: then the
/// clock is believed, so that one wrong clock changes nothing for good.
pub(crate) struct Stamps<I> {
    /// A stamp, and when it was right: counting begins there.
    base: Option<(u64, I)>,
}

impl<I> Default for Stamps<I> {
    fn default() -> Self {
        Stamps { base: None }
    }
}

impl<I: Instant> Stamps<I> {
    /// What to stamp now; all in milliseconds since 1970.
    ///
    /// * `last`: the newest stamp in the state.
    /// * `clock`: what the clock shows; 0 where nobody knows.
    pub(crate) fn now(&mut self, last: u64, clock: u64) -> u64 {
        let is_wrong = |stamp: u64| clock >= SET_SINCE_MS && stamp > clock + AHEAD_MAX_MS;
        self.base.take_if(|(stamp, at)| is_wrong(*stamp + slowed(at.elapsed())));
        let counted = self.base.as_ref().map_or(0, |(stamp, at)| stamp + slowed(at.elapsed()));
        let told = if is_wrong(last) { clock } else { last.max(clock) };
        if told <= counted {
            return counted;
        }
        self.base = Some((told, I::now()));
        told
    }
}

fn slowed(time: Duration) -> u64 {
    (time - time / SLEW).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use openraft::AsyncRuntime;

    use super::*;
    use crate::sim::SimRt;

    const HOUR: u64 = 3_600_000;

    /// What is stamped after each second, by a clock that is `behind` and starts at 10 h.
    fn stamps(behind: u64, seconds: u64) -> Vec<u64> {
        SimRt::with_seed(1).block_on(async move {
            let mut stamps = Stamps::<<SimRt as AsyncRuntime>::Instant>::default();
            let mut last = 10 * HOUR + behind;
            let mut found = Vec::new();
            for second in 0..seconds {
                last = stamps.now(last, 10 * HOUR + second * 1000);
                found.push(last);
                SimRt::sleep(Duration::from_secs(1)).await;
            }
            found
        })
    }

    #[test]
    fn a_clock_that_is_not_behind_is_believed() {
        assert_eq!(stamps(0, 3), [10 * HOUR, 10 * HOUR + 1000, 10 * HOUR + 2000]);
    }

    #[test]
    fn a_clock_that_is_behind_is_counted_on_from_and_met_again() {
        let stamps = stamps(HOUR, 17 * 3600);
        assert!(stamps.is_sorted());
        let passed = stamps[3600] - stamps[0];
        assert!((HOUR * 9 / 10..HOUR).contains(&passed), "{passed}");
        assert_eq!(*stamps.last().unwrap(), 10 * HOUR + (17 * 3600 - 1) * 1000, "they have met");
    }

    #[test]
    fn however_often_it_is_asked_time_passes() {
        SimRt::with_seed(1).block_on(async {
            let mut stamps = Stamps::<<SimRt as AsyncRuntime>::Instant>::default();
            for _ in 0..3200 {
                stamps.now(5000, 0);
                SimRt::sleep(Duration::from_micros(50)).await;
            }
            assert_eq!(stamps.now(5000, 0), 5150);
        });
    }

    #[test]
    fn what_a_wrong_clock_stamped_is_not_counted_on_from_once_the_clock_is_right() {
        SimRt::with_seed(1).block_on(async {
            const NOW: u64 = SET_SINCE_MS + HOUR;
            const YEARS: u64 = 10 * 365 * 24 * HOUR;
            let mut stamps = Stamps::<<SimRt as AsyncRuntime>::Instant>::default();
            assert_eq!(stamps.now(0, NOW + YEARS), NOW + YEARS);
            // The state never forgets the highest stamp.
            assert_eq!(stamps.now(NOW + YEARS, NOW), NOW);
            SimRt::sleep(Duration::from_secs(1)).await;
            assert_eq!(stamps.now(NOW + YEARS, NOW + 1000), NOW + 1000);
            // A clock that was never set says nothing against a stamp, nor does one that is days behind.
            let mut stamps = Stamps::<<SimRt as AsyncRuntime>::Instant>::default();
            assert_eq!(stamps.now(NOW, 0), NOW);
            assert_eq!(stamps.now(NOW, 1_000_000), NOW);
            assert_eq!(stamps.now(NOW + 5 * 24 * HOUR, NOW), NOW + 5 * 24 * HOUR);
        });
    }

    /// The count may be a little behind a stamp of another leader; that one holds.
    #[test]
    fn a_newer_stamp_of_somebody_else_is_never_passed_under() {
        SimRt::with_seed(1).block_on(async {
            let mut stamps = Stamps::<<SimRt as AsyncRuntime>::Instant>::default();
            assert_eq!(stamps.now(5000, 0), 5000);
            SimRt::sleep(Duration::from_millis(160)).await;
            assert_eq!(stamps.now(5000, 0), 5150);
            assert_eq!(stamps.now(9000, 0), 9000);
        });
    }
}
