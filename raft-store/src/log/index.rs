//! Where each entry lies, and of which term it is.

use std::collections::VecDeque;
use std::ops::Range;

use super::stored::log_id;
use crate::type_config::LogId;

/// Place of an entry's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) sequence: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// The log's entries without their payloads: a run of indices without holes, behind the purge point.
///
/// Invariant: `terms` holds the first index of each run of one term, rising in both; its first run
/// may begin before `first`.
#[derive(Debug, Default)]
pub(super) struct Index {
    first: u64,
    slots: VecDeque<Slot>,
    terms: VecDeque<(u64, u64)>,
}

impl Index {
    /// Adds the entry at [`next`](Self::next). Returns false, changing nothing, where the term falls.
    pub(super) fn push(&mut self, term: u64, slot: Slot) -> bool {
        match self.terms.back() {
            Some(&(_, last)) if last > term => return false,
            Some(&(_, last)) if last == term => {}
            _ => self.terms.push_back((self.next(), term)),
        }
        self.slots.push_back(slot);
        true
    }

    /// Drops the entries from index `from` on.
    pub(super) fn truncate(&mut self, from: u64) {
        if from < self.first {
            return self.restart(from);
        }
        self.slots.truncate(usize::try_from(from - self.first).unwrap_or(usize::MAX));
        while self.terms.back().is_some_and(|&(start, _)| start >= self.next()) {
            self.terms.pop_back();
        }
    }

    /// Drops the entries up to index `upto`; the next one is behind `upto` in any case.
    pub(super) fn purge(&mut self, upto: u64) {
        if upto >= self.next() {
            return self.restart(upto + 1);
        }
        if upto >= self.first {
            let gone = usize::try_from(upto + 1 - self.first).expect("fewer than there are slots");
            self.slots.drain(..gone);
            self.first = upto + 1;
        }
        while self.terms.get(1).is_some_and(|&(start, _)| start <= self.first) {
            self.terms.pop_front();
        }
        if self.slots.is_empty() {
            self.terms.clear();
        }
    }

    /// No entries; the next one will have index `first`.
    pub(super) fn restart(&mut self, first: u64) {
        *self = Index { first, ..Index::default() };
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The index behind the last entry.
    pub(super) fn next(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn slot(&self, index: u64) -> Option<Slot> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.slots.get(at).copied()
    }

    pub(super) fn log_id(&self, index: u64) -> Option<LogId> {
        self.slot(index)?;
        let run = self.terms.partition_point(|&(start, _)| start <= index).checked_sub(1)?;
        Some(log_id(self.terms[run].1, index))
    }

    pub(super) fn last(&self) -> Option<LogId> {
        self.log_id(self.next().checked_sub(1)?)
    }

    /// The last entry of each term within `range`.
    pub(super) fn last_of_each_term(&self, range: Range<u64>) -> Vec<LogId> {
        let ends = self.terms.iter().skip(1).map(|&(start, _)| start).chain([u64::MAX]);
        let runs = self.terms.iter().zip(ends);
        runs.filter(|&(&(start, _), end)| start < range.end && end > range.start)
            .map(|(&(_, term), end)| log_id(term, end.min(range.end) - 1))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot { sequence: 1, offset: 0, length: 1 };

    fn of_terms(first: u64, terms: &[u64]) -> Index {
        let mut index = Index::default();
        index.restart(first);
        terms.iter().for_each(|&term| assert!(index.push(term, SLOT)));
        index
    }

    #[test]
    fn entries_know_their_terms() {
        let index = of_terms(5, &[1, 1, 3, 4]);
        assert_eq!((index.first(), index.next(), index.last()), (5, 9, Some(log_id(4, 8))));
        assert_eq!(index.log_id(6), Some(log_id(1, 6)));
        assert_eq!(index.log_id(7), Some(log_id(3, 7)));
        assert_eq!((index.log_id(4), index.log_id(9)), (None, None));
    }

    #[test]
    fn a_term_never_falls() {
        assert!(!of_terms(0, &[2]).push(1, SLOT));
    }

    #[test]
    fn truncation_forgets_terms_too() {
        let mut index = of_terms(5, &[1, 1, 3, 4]);
        index.truncate(7);
        assert_eq!(index.last(), Some(log_id(1, 6)));
        assert!(index.push(2, SLOT));
        assert_eq!(index.last(), Some(log_id(2, 7)));
        index.truncate(5);
        assert_eq!((index.last(), index.next()), (None, 5));
        assert!(index.push(1, SLOT));
    }

    #[test]
    fn purging_keeps_the_terms_of_what_is_left() {
        let mut index = of_terms(0, &[1, 1, 3, 4]);
        index.purge(1);
        assert_eq!(index.last_of_each_term(2..4), [log_id(3, 2), log_id(4, 3)]);
        index.purge(0);
        assert_eq!(index.first(), 2);
        index.purge(9);
        assert_eq!((index.first(), index.next(), index.last()), (10, 10, None));
    }

    #[test]
    fn the_last_of_each_term_stays_within_the_range() {
        let index = of_terms(5, &[1, 1, 3, 4, 4]);
        assert_eq!(index.last_of_each_term(5..10), [log_id(1, 6), log_id(3, 7), log_id(4, 9)]);
        assert_eq!(index.last_of_each_term(6..9), [log_id(1, 6), log_id(3, 7), log_id(4, 8)]);
        assert_eq!(index.last_of_each_term(8..9), [log_id(4, 8)]);
    }
}
