//! Whether this node's own link works: what a lone observer has to know before it calls the other node lost.
//!
//! In a cluster of two the silence of the other one looks the same from both ends of a cut. The default
//! gateway is a third party on the same link: while it answers, it is the other one that is gone. A gateway
//! that answered while all was well and no longer does says that *this* node is cut off. Without a gateway
//! that answers there is no telling.
//!
//! [`LinkProof`] is fed with tries (an echo and a connect, both answered by the gateway's kernel): once a
//! minute while all is well, to know whether it answers at all, and every 200 ms while a lone node is
//! silent ([`LinkProof::wanted`]). A try that failed on *this* machine is no try.

use std::time::Duration;

use crate::time::Instant;

/// How often the gateway is tried while it matters.
const TRY_EVERY: Duration = Duration::from_millis(200);
/// The judge asks again every 100 ms: without that nobody wants to know any more.
const WANTED_VALID: Duration = Duration::from_millis(700);
/// A link that did not answer for longer was away: five tries, each of which fails with 13 % at 20 % loss.
const GAP_MAX: Duration = Duration::from_secs(1);
/// Tries in a row, a minute apart, that a gateway may miss while all is well before it counts as one that
/// does not answer: a router that restarts misses one or two.
const MISSES_MAX: u32 = 5;
/// A gateway that has not answered for so long is gone, rather than this node cut off.
const KNOWN_FOR: Duration = Duration::from_secs(3600);

/// What is known of this node's own link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnLink {
    /// The gateway has been answering all along.
    Proven,
    /// There is no gateway, or none that answers.
    Unknown,
    /// The gateway answered while all was well; now it has not been asked for long enough.
    Unproven,
    /// The gateway answered while all was well and does not any more: it is this node that is cut off.
    Cut,
}

/// What the gateway's answers prove. Fed in the order of time.
#[derive(Debug, Clone, Default)]
pub struct LinkProof {
    /// Since when and until when somebody wants to know.
    wanted: Option<(Instant, Instant)>,
    next_try: Instant,
    /// When the newest answered try began, and the oldest of those without a gap up to it.
    answers: Option<(Instant, Instant)>,
    misses: u32,
}

impl LinkProof {
    /// A lone node is silent at `now`: its gateway is to be tried.
    pub fn wanted(&mut self, now: Instant) {
        let since = self.wanted_since(now).unwrap_or(now);
        self.wanted = Some((since, now));
    }

    /// Whether a try should begin now; if so, the next one is due later.
    pub fn begin(&mut self, now: Instant) -> bool {
        let due = self.wanted_since(now).is_some() && now >= self.next_try;
        if due {
            self.next_try = now.after(TRY_EVERY);
        }
        due
    }

    /// A try that began at `began` ended.
    pub fn ended(&mut self, began: Instant, answered: bool) {
        if answered {
            self.misses = 0;
            self.answers = Some(match self.answers {
                // Answers overtake each other; an older one adds nothing.
                Some((newest, oldest)) if began <= newest => (newest, oldest),
                Some((newest, oldest)) if began.since(newest) <= GAP_MAX => (began, oldest),
                _ => (began, began),
            });
        } else if self.wanted_since(began).is_none() {
            self.misses = self.misses.saturating_add(1);
        }
    }

    /// What is known at `now`. `outage`: the longest outage that moves no pod; the answers must have come for
    /// at least so long, because a link that was away meanwhile took the other node's renewals with it.
    pub fn verdict(&self, now: Instant, outage: Duration) -> OwnLink {
        let Some((newest, oldest)) = self.answers else { return OwnLink::Unknown };
        if now.since(newest) <= GAP_MAX {
            let proven = newest.since(oldest) + TRY_EVERY >= outage;
            return if proven { OwnLink::Proven } else { OwnLink::Unproven };
        }
        if self.misses >= MISSES_MAX || now.since(newest) > KNOWN_FOR {
            return OwnLink::Unknown;
        }
        match self.wanted_since(now) {
            Some(since) if now.since(since) > GAP_MAX => OwnLink::Cut,
            _ => OwnLink::Unproven,
        }
    }

    fn wanted_since(&self, now: Instant) -> Option<Instant> {
        self.wanted.filter(|(_, until)| now.since(*until) <= WANTED_VALID).map(|(since, _)| since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTAGE: Duration = Duration::from_secs(2);

    /// Tries from `from` to `to` ms as the shell does them, answered or not.
    fn silence(proof: &mut LinkProof, from: u64, to: u64, answered: impl Fn(u64) -> bool) {
        for now in (from..to).step_by(25) {
            proof.wanted(Instant(now));
            if proof.begin(Instant(now)) {
                proof.ended(Instant(now), answered(now));
            }
        }
    }

    fn healthy() -> LinkProof {
        let mut proof = LinkProof::default();
        proof.ended(Instant(40_000), true);
        proof
    }

    #[test]
    fn a_gateway_that_answers_all_along_proves_the_link_by_the_time_of_the_quick_verdict() {
        let mut proof = healthy();
        // Silent since 100 s; asked for from 0.5 s on; the verdict falls at 2.75 s.
        silence(&mut proof, 100_500, 102_750, |_| true);
        assert_eq!(proof.verdict(Instant(102_750), OUTAGE), OwnLink::Proven);
    }

    #[test]
    fn one_answer_in_five_tries_is_enough() {
        let mut proof = healthy();
        silence(&mut proof, 100_500, 103_600, |now| (now - 100_500) % 1000 == 0);
        assert_eq!(proof.verdict(Instant(103_600), OUTAGE), OwnLink::Proven);
    }

    #[test]
    fn a_gateway_that_no_longer_answers_says_that_this_node_is_cut_off() {
        let mut proof = healthy();
        silence(&mut proof, 100_500, 160_000, |_| false);
        assert_eq!(proof.verdict(Instant(160_000), OUTAGE), OwnLink::Cut);
    }

    #[test]
    fn a_link_that_was_away_must_prove_itself_anew() {
        let mut proof = healthy();
        silence(&mut proof, 100_500, 102_400, |_| false);
        assert_eq!(proof.verdict(Instant(102_400), OUTAGE), OwnLink::Cut);
        silence(&mut proof, 102_400, 103_500, |_| true);
        assert_eq!(proof.verdict(Instant(103_500), OUTAGE), OwnLink::Unproven);
        silence(&mut proof, 103_500, 104_500, |_| true);
        assert_eq!(proof.verdict(Instant(104_500), OUTAGE), OwnLink::Proven);
    }

    #[test]
    fn nobody_is_called_cut_off_before_the_gateway_was_asked_for_a_while() {
        let mut proof = healthy();
        assert_eq!(proof.verdict(Instant(100_000), OUTAGE), OwnLink::Unproven);
        silence(&mut proof, 100_500, 101_500, |_| false);
        assert_eq!(proof.verdict(Instant(101_500), OUTAGE), OwnLink::Unproven);
        silence(&mut proof, 101_500, 101_600, |_| false);
        assert_eq!(proof.verdict(Instant(101_600), OUTAGE), OwnLink::Cut);
    }

    #[test]
    fn the_answer_before_the_silence_is_no_proof() {
        let mut proof = healthy();
        proof.ended(Instant(99_990), true);
        silence(&mut proof, 100_500, 102_750, |_| false);
        assert_eq!(proof.verdict(Instant(102_750), OUTAGE), OwnLink::Cut);
    }

    #[test]
    fn without_a_gateway_that_answers_nothing_is_known() {
        let mut proof = LinkProof::default();
        silence(&mut proof, 100_500, 102_750, |_| false);
        assert_eq!(proof.verdict(Instant(102_750), OUTAGE), OwnLink::Unknown);
    }

    #[test]
    fn a_gateway_that_stopped_answering_while_all_was_well_proves_nothing_any_more() {
        let mut proof = healthy();
        for minute in 1..=5 {
            assert_eq!(proof.verdict(Instant(100_000), OUTAGE), OwnLink::Unproven);
            proof.ended(Instant(40_000 + 60_000 * minute), false);
        }
        assert_eq!(proof.verdict(Instant(340_000), OUTAGE), OwnLink::Unknown);
        proof.ended(Instant(400_000), true);
        assert_eq!(proof.verdict(Instant(401_000), OUTAGE), OwnLink::Unproven);
    }

    #[test]
    fn after_an_hour_without_an_answer_the_gateway_is_gone() {
        let mut proof = healthy();
        silence(&mut proof, 3_630_000, 3_640_001, |_| false);
        assert_eq!(proof.verdict(Instant(3_640_000), OUTAGE), OwnLink::Cut);
        assert_eq!(proof.verdict(Instant(3_640_001), OUTAGE), OwnLink::Unknown);
    }

    #[test]
    fn it_is_tried_only_while_somebody_wants_to_know() {
        let mut proof = LinkProof::default();
        assert!(!proof.begin(Instant(1000)));
        proof.wanted(Instant(1000));
        assert!(proof.begin(Instant(1000)));
        assert!(!proof.begin(Instant(1100)));
        assert!(proof.begin(Instant(1200)));
        assert!(!proof.begin(Instant(1701)));
    }

    #[test]
    fn an_answer_that_was_overtaken_by_a_later_one_changes_nothing() {
        let mut proof = LinkProof::default();
        for began in [1000, 1400, 1200, 1600] {
            proof.ended(Instant(began), true);
        }
        assert_eq!(proof.answers, Some((Instant(1600), Instant(1000))));
    }
}
