//! One observer's tries to reach the kernel of one silent node.
//!
//! The shell does the tries: a fresh TCP connect to the node's API port and an ICMP echo, together one
//! try, bounded by [`Probe::limit`]. A try that failed on *this* machine (no file descriptor, no route,
//! no permission) is no try: it is not handed in.

use std::time::Duration;

use crate::judge::{Answer, Report};
use crate::time::Instant;

/// How often a node that does not answer is tried.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// How often one that answers is tried.
const TRY_ANSWERING_EVERY: Duration = Duration::from_millis(500);
/// The time limit of a try on a link without delay.
const LIMIT: Duration = Duration::from_millis(200);
/// The leader asks every 100 ms: an observer that was not asked for so long stops.
const ASKED_VALID: Duration = Duration::from_millis(700);

/// What this observer knows of one node since it was first asked about it.
#[derive(Debug, Clone)]
pub struct Probe {
    asked_at: Instant,
    next_try: Instant,
    begun: u32,
    unanswered: u32,
    unanswered_since: Option<Instant>,
    answer: Option<(Answer, Instant)>,
}

impl Probe {
    /// Begins at `now`: the first try is due at once.
    pub fn new(now: Instant) -> Probe {
        Probe { asked_at: now, next_try: now, begun: 0, unanswered: 0, unanswered_since: None, answer: None }
    }

    /// The leader asked again.
    pub fn asked(&mut self, now: Instant) {
        self.asked_at = now;
    }

    /// Whether nobody wants to know any more.
    pub fn is_over(&self, now: Instant) -> bool {
        now.since(self.asked_at) > ASKED_VALID
    }

    /// Whether a try should begin now; if so, the next one is due later. Tries overlap: a silent node's
    /// limit is longer than the pause between them.
    pub fn begin(&mut self, now: Instant) -> bool {
        let due = now >= self.next_try;
        if due {
            self.next_try = now.after(TRY_EVERY);
            self.begun = self.begun.wrapping_add(1);
        }
        due
    }

    /// Whether the try that just began should first ask anew who the node is on the link: a machine whose link
    /// was gone for a moment may need that question to be able to answer. Not each one, so that where a question
    /// to all takes its time (Wi-Fi) the next one does not undo it.
    pub fn asks_anew(&self) -> bool {
        self.unanswered > 0 && self.begun.is_multiple_of(2)
    }

    /// How long a try may take, given the highest round trip seen to the node.
    pub fn limit(rtt: Duration) -> Duration {
        LIMIT + rtt + rtt / 2
    }

    /// A try that began at `began` ended. Returns whether this is the first answer: it is reported at once.
    pub fn ended(&mut self, began: Instant, now: Instant, answer: Option<Answer>) -> bool {
        match answer {
            Some(answer) => {
                let first = self.answer.is_none() || self.unanswered > 0;
                self.answer = Some((answer, now));
                self.unanswered = 0;
                self.unanswered_since = None;
                self.next_try = now.after(TRY_ANSWERING_EVERY);
                first
            }
            // It began before the last answer came: the answer knows better.
            None if self.answer.is_some_and(|(_, at)| at >= began) => false,
            None => {
                self.unanswered = self.unanswered.saturating_add(1);
                self.unanswered_since.get_or_insert(began);
                false
            }
        }
    }

    /// What to tell the leader now.
    pub fn report(&self, now: Instant, gossip_down: bool) -> Report {
        Report {
            unanswered: self.unanswered,
            unanswered_for: self.unanswered_since.map_or(Duration::ZERO, |since| now.since(since)),
            answer: self.answer.map(|(answer, at)| (answer, now.since(at))),
            gossip_down,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_try_of_a_node_that_does_not_answer_asks_anew_who_it_is() {
        let mut probe = Probe::new(Instant(0));
        let mut asked = Vec::new();
        for now in (0..1000).step_by(100) {
            assert!(probe.begin(Instant(now)));
            asked.extend(probe.asks_anew().then_some(now));
            probe.ended(Instant(now), Instant(now + 50), (now >= 600).then_some(Answer::Echo));
            probe.next_try = Instant(now + 100);
        }
        assert_eq!(asked, [100, 300, 500]);
    }

    #[test]
    fn an_answer_ends_the_row_of_unanswered_tries_and_slows_the_next_one() {
        let mut probe = Probe::new(Instant(1000));
        for now in [1000, 1100, 1200] {
            assert!(probe.begin(Instant(now)));
            probe.ended(Instant(now), Instant(now + 200), None);
        }
        assert_eq!(probe.report(Instant(1400), false).unanswered, 3);
        assert_eq!(probe.report(Instant(1400), false).unanswered_for, Duration::from_millis(400));
        assert!(probe.ended(Instant(1300), Instant(1400), Some(Answer::Echo)));
        let report = probe.report(Instant(1500), false);
        assert_eq!((report.unanswered, report.answer), (0, Some((Answer::Echo, Duration::from_millis(100)))));
        assert!(!probe.begin(Instant(1899)));
        assert!(probe.begin(Instant(1900)));
    }

    #[test]
    fn a_try_that_began_before_the_last_answer_does_not_count() {
        let mut probe = Probe::new(Instant(0));
        probe.ended(Instant(0), Instant(300), Some(Answer::Accepts));
        probe.ended(Instant(100), Instant(310), None);
        assert_eq!(probe.report(Instant(310), false).unanswered, 0);
    }

    #[test]
    fn an_observer_that_is_not_asked_stops() {
        let mut probe = Probe::new(Instant(0));
        assert!(!probe.is_over(Instant(700)));
        assert!(probe.is_over(Instant(701)));
        probe.asked(Instant(701));
        assert!(!probe.is_over(Instant(1000)));
    }
}
