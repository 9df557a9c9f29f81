//! Exactly once: which proposals were answered, and how.
//!
//! A proposer repeats a proposal under the same serial until it has an answer, through any number of
//! leaders; here the repetition gets the first answer instead of a second effect. What the proposer
//! has seen it never asks for again, so only the answers at and above its lowest unanswered serial are kept.

use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::{Answer, Session};

/// The sessions of all nodes; part of the replicated state, so its copies cost nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    by_node: OrdMap<[u8; 16], Ledger>,
}

/// The present session of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    generation: u64,
    /// Below lie only serials whose answer has arrived, or whose proposer has given up on them.
    unanswered_from: u64,
    answers: OrdMap<u64, Arc<Answer>>,
}

/// What to do with a proposal.
pub(crate) enum Standing {
    /// It is the first with this serial.
    New,
    /// It was applied before, with this answer.
    Repeated(Arc<Answer>),
    /// Its session is over, or its proposer no longer waits for this serial: it has no effect.
    Over,
}

impl Sessions {
    pub(crate) fn standing(&self, session: Session, serial: u64) -> Standing {
        match self.by_node.get(&session.node) {
            Some(ledger) if session.generation < ledger.generation => Standing::Over,
            Some(ledger) if session.generation == ledger.generation => match ledger.answers.get(&serial) {
                Some(answer) => Standing::Repeated(answer.clone()),
                None if serial < ledger.unanswered_from => Standing::Over,
                None => Standing::New,
            },
            _ => Standing::New,
        }
    }

    /// Keeps `answer` and forgets what the proposer says it has seen. A newer generation replaces the older.
    pub(crate) fn record(&mut self, session: Session, serial: u64, unanswered_from: u64, answer: Answer) {
        let fresh = || Ledger { generation: session.generation, unanswered_from: 0, answers: OrdMap::new() };
        let ledger = self.by_node.entry(session.node).or_insert_with(fresh);
        if ledger.generation < session.generation {
            *ledger = fresh();
        }
        ledger.answers.insert(serial, Arc::new(answer));
        // A retry may arrive with an older mark than one applied before it.
        ledger.unanswered_from = ledger.unanswered_from.max(unanswered_from);
        while let Some(oldest) = ledger.answers.get_min().map(|(oldest, _)| *oldest)
            && oldest < ledger.unanswered_from
        {
            ledger.answers.remove(&oldest);
        }
    }

    /// Ends the session of a node that left for good. Returns whether there was one.
    pub(crate) fn end(&mut self, node: [u8; 16]) -> bool {
        self.by_node.remove(&node).is_some()
    }

    pub(crate) fn insert(&mut self, node: [u8; 16], ledger: Ledger) {
        self.by_node.insert(node, ledger);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8; 16], &Ledger)> {
        self.by_node.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: [u8; 16] = [1; 16];

    fn session(generation: u64) -> Session {
        Session { node: NODE, generation }
    }

    fn answer(revision: u64) -> Answer {
        Answer { revision, outcomes: Vec::new() }
    }

    fn is_new(sessions: &Sessions, generation: u64, serial: u64) -> bool {
        matches!(sessions.standing(session(generation), serial), Standing::New)
    }

    #[test]
    fn a_repeated_proposal_gets_its_first_answer() {
        let mut sessions = Sessions::default();
        assert!(is_new(&sessions, 1, 4));
        sessions.record(session(1), 4, 4, answer(9));
        assert!(matches!(sessions.standing(session(1), 4), Standing::Repeated(first) if first.revision == 9));
        assert!(is_new(&sessions, 1, 5));
    }

    #[test]
    fn answers_the_proposer_has_seen_are_forgotten_and_never_applied_again() {
        let mut sessions = Sessions::default();
        sessions.record(session(1), 1, 1, answer(1));
        sessions.record(session(1), 2, 1, answer(2));
        sessions.record(session(1), 3, 3, answer(3));
        assert_eq!(sessions.by_node[&NODE].answers.len(), 1);
        assert!(matches!(sessions.standing(session(1), 2), Standing::Over));
        // An older mark that arrives late takes nothing back.
        sessions.record(session(1), 4, 1, answer(4));
        assert!(matches!(sessions.standing(session(1), 2), Standing::Over));
    }

    #[test]
    fn a_newer_generation_ends_the_older_session() {
        let mut sessions = Sessions::default();
        sessions.record(session(1), 7, 7, answer(1));
        assert!(is_new(&sessions, 2, 1));
        sessions.record(session(2), 1, 1, answer(2));
        assert!(matches!(sessions.standing(session(1), 8), Standing::Over));
        assert!(sessions.end(NODE) && !sessions.end(NODE));
    }
}
