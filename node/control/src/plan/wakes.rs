//! Timers of objects: at which moment to look at which of them again.

use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

use crate::view::Key;

/// At most one moment for each key. Moments are absolute, so that nothing that happens meanwhile puts one off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wakes {
    of: BTreeMap<Key, Timestamp>,
    in_order: BTreeSet<(Timestamp, Key)>,
}

impl Wakes {
    /// Asks for `key` to be looked at when it is `at`, if nothing earlier is asked for it.
    pub(crate) fn ask(&mut self, key: &Key, at: Timestamp) {
        if self.of.get(key).is_none_or(|asked| at < *asked) {
            self.set(key.clone(), at);
        }
    }

    /// Takes over what a later plan asked for. Whoever plans an object knows all of its timers, so the newest word
    /// about it replaces what was asked before.
    pub(crate) fn replace(&mut self, newer: &Wakes) {
        for (key, at) in &newer.of {
            self.set(key.clone(), *at);
        }
    }

    /// The keys whose moment has come by `now`; each is told once.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Vec<Key> {
        let mut due = Vec::new();
        while let Some((at, _)) = self.in_order.first()
            && *at <= now
        {
            let (_, key) = self.in_order.pop_first().expect("it was just looked at");
            self.of.remove(&key);
            due.push(key);
        }
        due
    }

    /// The earliest moment that is asked for.
    pub fn next(&self) -> Option<Timestamp> {
        self.in_order.first().map(|(at, _)| *at)
    }

    fn set(&mut self, key: Key, at: Timestamp) {
        if let Some(before) = self.of.insert(key.clone(), at) {
            self.in_order.remove(&(before, key.clone()));
        }
        self.in_order.insert((at, key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn asked(wanted: &[(&str, i64)]) -> Wakes {
        let mut wakes = Wakes::default();
        wanted.iter().for_each(|(key, second)| wakes.ask(&Key::from(*key), at(*second)));
        wakes
    }

    #[test]
    fn one_plan_asks_for_the_earliest_moment_of_each_key() {
        let mut wakes = asked(&[("a", 30), ("b", 20), ("a", 10), ("a", 40)]);
        assert_eq!(wakes.next(), Some(at(10)));
        assert_eq!(wakes.take_due(at(9)), []);
        assert_eq!(wakes.take_due(at(10)), [Key::from("a")]);
        assert_eq!(wakes.take_due(at(100)), [Key::from("b")]);
        assert_eq!((wakes.next(), wakes.take_due(at(1000))), (None, vec![]));
    }

    #[test]
    fn the_newest_word_about_a_key_replaces_the_one_before() {
        let mut wakes = asked(&[("a", 10), ("b", 20)]);
        wakes.replace(&asked(&[("a", 30)]));
        assert_eq!(wakes.next(), Some(at(20)));
        assert_eq!(wakes.take_due(at(50)), [Key::from("b"), Key::from("a")]);
    }
}
