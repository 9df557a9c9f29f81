//! How long a container that keeps failing waits.

use std::time::Duration;

use crate::time::Instant;

/// kubelet's numbers: 10 s, doubled each time, at most 5 min.
const FIRST: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(300);
/// After 10 min without a failure the past is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// The waits of one container, of its restarts or of its pulls.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    /// How long the last wait was, and when it ended. `None`: nothing has failed lately.
    last: Option<(Duration, Instant)>,
}

impl Backoff {
    /// The state of a container that had been started `attempts` times again when the daemon came back.
    pub(super) fn resumed(attempts: u32, now: Instant) -> Backoff {
        let waited = match attempts {
            0 => return Backoff::default(),
            1 => Duration::ZERO,
            _ => (FIRST * 2_u32.saturating_pow((attempts - 2).min(8))).min(MOST),
        };
        Backoff { last: Some((waited, now)) }
    }

    /// How long to wait after a failure at `now`, the first time not at all.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        let wait = match self.last {
            None => Duration::ZERO,
            Some((_, ended)) if now.since(ended) >= FORGOTTEN_AFTER => Duration::ZERO,
            Some((Duration::ZERO, _)) => FIRST,
            Some((waited, _)) => (waited * 2).min(MOST),
        };
        self.last = Some((wait, now.after(wait)));
        wait
    }

    /// The same where already the first failure waits.
    pub(super) fn next_but_never_at_once(&mut self, now: Instant) -> Duration {
        match self.next(now) {
            Duration::ZERO => self.next(now),
            wait => wait,
        }
    }

    /// Forgets the past.
    pub(super) fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_the_waits_double_up_to_five_minutes() {
        let mut backoff = Backoff::default();
        let mut now = Instant(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = backoff.next(now);
            waits.push(wait.as_secs());
            now = now.after(wait + Duration::from_secs(1));
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_quiet_minutes_forget_all_failures() {
        let mut backoff = Backoff::default();
        backoff.next(Instant(0));
        assert_eq!(backoff.next(Instant(1_000)), Duration::from_secs(10));
        assert_eq!(backoff.next(Instant(11_000 + 600_000)), Duration::ZERO);
    }

    #[test]
    fn a_daemon_that_comes_back_goes_on_where_the_waits_were() {
        let mut live = Backoff::default();
        for attempts in 1..9 {
            live.next(Instant(0));
            assert_eq!(
                Backoff::resumed(attempts, Instant(0)).next(Instant(0)),
                live.clone().next(Instant(0))
            );
        }
    }
}
