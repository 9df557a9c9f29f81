//! What clients asked and saw, and whether it can be true.
//!
//! Revisions give the order of everything, so one pass decides: no search for an order is needed.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use skein_raft_store::{Event, Object};

/// One call of one client, in virtual nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) begin: u64,
    pub(crate) end: u64,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A put of a value nobody else puts, or a deletion.
    Write { key: String, value: Option<String>, outcome: Outcome },
    /// A read behind a read index: the value and the revision of the state it came from.
    Read { key: String, value: Option<String>, revision: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done(u64),
    /// Refused, or certainly not accepted by anybody.
    NotDone,
    /// Already as asked.
    Unchanged,
    Unknown,
}

/// All that happened in one run.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) calls: Vec<Call>,
    /// By revision, from the watchers of all nodes.
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) violations: Vec<String>,
    /// Revisions a node got as part of a whole state, so that it was never told of them one by one.
    pub(crate) hidden: Vec<RangeInclusive<u64>>,
}

/// Of a hundred revisions so many may be known from no node: each weakens what can be said of the rest.
const UNSEEN_MAX: u64 = 5;

impl History {
    /// I2: two nodes never apply different changes under one revision.
    pub(crate) fn saw(&mut self, node: usize, event: Event) {
        let revision = event.revision;
        if let Some(first) = self.events.get(&revision) {
            if *first != event {
                self.violations.push(format!("I2: node {node} applied {event:?}, another one {first:?}"));
            }
        } else {
            self.events.insert(revision, event);
        }
    }

    /// A key as a node has it that jumped over what made it so.
    pub(crate) fn jumped(&mut self, node: usize, key: &str, object: &Object) {
        if let Some(event) = self.events.get(&object.mod_rev)
            && (*event.key != *key || event.value.as_ref() != Some(&object.value))
        {
            self.violations.push(format!("I2: node {node} has {key} as {object:?}, and there was {event:?}"));
        }
    }

    /// How many revisions no node was told of, and how many there are.
    pub(crate) fn unseen(&self) -> (u64, u64) {
        let last = self.events.last_key_value().map_or(0, |(revision, _)| *revision);
        (last - self.events.len() as u64, last)
    }

    /// Everything wrong with this run.
    pub(crate) fn check(&self) -> Vec<String> {
        let mut wrong = self.violations.clone();
        let (unseen, all) = self.unseen();
        if unseen * 100 > all * UNSEEN_MAX {
            wrong.push(format!("of {all} revisions {unseen} were told by no node: too little is checked"));
        }
        self.check_writes(&mut wrong);
        self.check_order(&mut wrong);
        self.check_reads(&mut wrong);
        wrong
    }

    /// I1 and I4.
    fn check_writes(&self, wrong: &mut Vec<String>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut times_of_value: BTreeMap<String, u32> = BTreeMap::new();
        for value in self.events.values().filter_map(|event| event.value.as_deref()) {
            *times_of_value.entry(text(value)).or_default() += 1;
        }
        for call in &self.calls {
            let What::Write { key, value, outcome } = &call.what else { continue };
            let times = value.as_ref().map_or(0, |value| times_of_value.get(value).copied().unwrap_or(0));
            match outcome {
                Outcome::Done(revision) => match self.events.get(revision) {
                    None if self.is_hidden(*revision) => {}
                    Some(event) if *event.key == **key && event.value.as_deref().map(text) == *value => {}
                    other => wrong.push(format!("I1: {call:?} was answered, but there is {other:?}")),
                },
                Outcome::NotDone if times > 0 => {
                    wrong.push(format!("I4: {call:?} was refused and yet applied"))
                }
                _ => {}
            }
            if times > 1 {
                wrong.push(format!("I4: {call:?} was applied {times} times"));
            }
        }
    }

    fn is_hidden(&self, revision: u64) -> bool {
        self.hidden.iter().any(|range| range.contains(&revision))
    }

    /// I3.
    fn check_order(&self, wrong: &mut Vec<String>) {
        let mut by_begin: Vec<&Call> = self.calls.iter().collect();
        by_begin.sort_by_key(|call| call.begin);
        let mut by_end: Vec<&Call> = self.calls.iter().collect();
        by_end.sort_by_key(|call| call.end);
        let mut ended = by_end.into_iter().peekable();
        let mut answered = 0;
        for call in by_begin {
            while let Some(before) = ended.next_if(|before| before.end < call.begin) {
                answered = answered.max(before.revision().unwrap_or(0));
            }
            let (is_write, Some(revision)) = (matches!(call.what, What::Write { .. }), call.revision())
            else {
                continue;
            };
            if revision < answered || (is_write && revision == answered) {
                wrong.push(format!("I3: {call:?} began after revision {answered} was answered"));
            }
        }
    }

    /// A read shows the key as it was at the revision of the state read.
    fn check_reads(&self, wrong: &mut Vec<String>) {
        let mut by_key: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
        for event in self.events.values() {
            by_key.entry(&event.key).or_default().push(event);
        }
        let last = self.events.last_key_value().map_or(0, |(revision, _)| *revision);
        let gap = (1..=last).find(|revision| !self.events.contains_key(revision));
        if let Some(gap) = gap
            && !self.is_hidden(gap)
        {
            wrong.push(format!("I5: revision {gap} was applied by no node that was watched"));
        }
        for call in &self.calls {
            let What::Read { key, value, revision } = &call.what else { continue };
            if gap.is_some_and(|gap| gap <= *revision) {
                continue;
            }
            let events = by_key.get(key.as_str()).map_or(&[][..], Vec::as_slice);
            let until = events.partition_point(|event| event.revision <= *revision);
            let expected = until.checked_sub(1).and_then(|last| events[last].value.as_deref());
            if expected != value.as_ref().map(String::as_bytes) {
                wrong.push(format!("I7: {call:?} should have read {expected:?}"));
            }
        }
    }
}

impl Call {
    fn revision(&self) -> Option<u64> {
        match &self.what {
            What::Write { outcome: Outcome::Done(revision), .. } => Some(*revision),
            What::Write { .. } => None,
            What::Read { revision, .. } => Some(*revision),
        }
    }
}
