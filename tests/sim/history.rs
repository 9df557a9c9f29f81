//! What clients asked and saw, what the map was at each revision, and whether all of it can be true.
//!
//! Revisions give the order of everything, so one pass decides.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use skein_control::node::authority::{TRUST, Trust};
use skein_control::node::roster::PREFIX;
use skein_net::identity::NodeId;
use skein_raft_store::{Event, Object, State};

use crate::members::Record;
use crate::model::Model;

/// One call of one client, in virtual nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) begin: u64,
    pub(crate) end: u64,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A put of a value that nobody else puts.
    Write { key: String, value: String, outcome: Outcome },
    /// A read behind a read index: the value, and the revision of the state it came from.
    Read { key: String, value: Option<String>, revision: u64 },
    /// A list of all keys with a prefix, put together from pages of one state.
    List { prefix: &'static str, found: Vec<(String, String)>, revision: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done(u64),
    NotDone,
    Unknown,
}

/// Of a hundred revisions so many may be told by no node: each weakens what can be said of the rest.
const UNSEEN_MAX: u64 = 5;

#[derive(Default)]
pub(crate) struct History {
    pub(crate) calls: Vec<Call>,
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) model: Model,
    /// What the newest revision says of each node that was ever a member.
    pub(crate) records: BTreeMap<NodeId, Record>,
    /// The authorities by the newest revision.
    pub(crate) trust: Option<Trust>,
    /// When each membership ended, in virtual nanoseconds.
    removed_at: BTreeMap<NodeId, u64>,
    /// When somebody's vote was last to be given away, in the same.
    going_at: BTreeMap<NodeId, u64>,
    /// What is shown of the clock, in the same.
    pub(crate) now: u64,
    /// What was said once and need not be said again.
    pub(crate) said: BTreeSet<String>,
    /// What became of members, and was not told yet.
    pub(crate) news: Vec<String>,
    pub(crate) wrong: Vec<String>,
    /// Revisions that no watcher delivered before they were loaded as part of a state.
    hidden: Vec<RangeInclusive<u64>>,
    revision: u64,
}

impl History {
    /// Up to here nothing is missing.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes what one node delivered. Returns the nodes that were called unreachable by it.
    pub(crate) fn saw(&mut self, number: usize, events: &[Event]) -> Vec<String> {
        for event in events {
            match self.events.get(&event.revision) {
                Some(first) if first != event => {
                    let text = format!("I2: node {number} applied {event:?}, another one {first:?}");
                    self.wrong.push(text);
                }
                Some(_) => {}
                None => drop(self.events.insert(event.revision, event.clone())),
            }
        }
        let first = self.revision + 1;
        let next: Vec<Event> = self
            .events
            .range(first..)
            .zip(first..)
            .take_while(|((revision, _), expected)| **revision == *expected)
            .map(|((_, event), _)| event.clone())
            .collect();
        self.revision += next.len() as u64;
        for event in &next {
            self.enroll(&event.key, event.value.as_deref());
        }
        self.model.apply(&next, &mut self.wrong)
    }

    /// Takes over a state whose last revisions nobody delivered.
    pub(crate) fn load(&mut self, state: &State) {
        if state.revision() > self.revision {
            self.hidden.push(self.revision + 1..=state.revision());
            self.revision = state.revision();
            self.model.load(state, &mut self.wrong);
            for (key, object) in state.range("skein/", None) {
                self.enroll(key, Some(&object.value));
            }
        }
    }

    fn enroll(&mut self, key: &str, value: Option<&[u8]>) {
        if key == TRUST {
            self.trust = value.and_then(|bytes| serde_json::from_slice(bytes).ok());
        }
        let Some(node) = key.strip_prefix(PREFIX).and_then(|id| id.parse().ok()) else { return };
        let Some(record) = value.and_then(|bytes| serde_json::from_slice::<Record>(bytes).ok()) else {
            return self.wrong.push(format!("I24: the record of node {node} is gone"));
        };
        let before = self.records.insert(node, record.clone());
        if record.leaving || before.as_ref().is_some_and(|before| before.leaving) {
            self.going_at.insert(node, self.now);
        }
        let stage = |record: &Record| {
            let departure = record.departure.as_ref();
            let departure = departure.map(|going| (going.cause, going.stage, going.obstacle.clone()));
            (record.removed, record.leaving, departure, record.kept.is_some())
        };
        let is = stage(&record);
        if before.as_ref().map(stage) != Some(is.clone()) {
            self.news.push(format!("{} ({node}), removed, leaving, going, kept: {is:?}", record.name));
        }
        if record.removed {
            self.removed_at.entry(node).or_insert(self.now);
        }
        if !record.removed && before.is_some_and(|before| before.removed) {
            self.wrong.push(format!("I24: node {node} is a member again, which was removed"));
        }
    }

    /// Whether a node was removed at least so long ago.
    pub(crate) fn was_removed_before(&self, node: NodeId, time: Duration) -> bool {
        self.removed_at.get(&node).is_some_and(|at| at + time.as_nanos() as u64 <= self.now)
    }

    /// Whether a node was removed until then.
    pub(crate) fn was_removed_by(&self, node: NodeId, then: u64) -> bool {
        self.removed_at.get(&node).is_some_and(|at| *at <= then)
    }

    /// Whether a node was to give its vote away of late, or is no member any more.
    pub(crate) fn was_going(&self, node: NodeId, time: Duration) -> bool {
        let is_new = |at: &u64| at + time.as_nanos() as u64 >= self.now;
        let is = |record: &Record| record.leaving || record.removed;
        self.records.get(&node).is_some_and(is) || self.going_at.get(&node).is_some_and(is_new)
    }

    /// The name of one that is on its way out.
    pub(crate) fn departing(&self) -> Option<String> {
        self.records.values().find(|record| record.departure.is_some()).map(|record| record.name.clone())
    }

    /// How many members nobody wants to go.
    pub(crate) fn staying(&self) -> usize {
        self.records.values().filter(|record| record.stays()).count()
    }

    /// Who is a member.
    pub(crate) fn members(&self) -> impl Iterator<Item = NodeId> {
        self.records.iter().filter(|(_, record)| !record.removed).map(|(node, _)| *node)
    }

    /// A key as a node has it that jumped over what made it so.
    pub(crate) fn jumped(&mut self, number: usize, key: &str, object: &Object) {
        if let Some(event) = self.events.get(&object.mod_rev)
            && (*event.key != *key || event.value.as_ref() != Some(&object.value))
        {
            self.wrong.push(format!("I2: node {number} has {key} as {object:?}, and there was {event:?}"));
        }
    }

    /// How many revisions no node was told of.
    pub(crate) fn unseen(&self) -> u64 {
        let told = self.events.range(..=self.revision).count() as u64;
        self.revision - told
    }

    /// Everything wrong with this run, which `is_over` or not: then what was answered of late need not have
    /// been delivered yet.
    pub(crate) fn check(&self, is_over: bool) -> Vec<String> {
        let mut wrong = self.wrong.clone();
        if self.unseen() * 100 > self.revision * UNSEEN_MAX {
            let (unseen, all) = (self.unseen(), self.revision);
            wrong.push(format!("of {all} revisions {unseen} were told by no node: too little is checked"));
        }
        self.check_writes(is_over, &mut wrong);
        self.check_order(&mut wrong);
        self.check_reads(&mut wrong);
        self.check_lists(&mut wrong);
        wrong
    }

    /// I1 and I4.
    fn check_writes(&self, is_over: bool, wrong: &mut Vec<String>) {
        let mut times_of_value: BTreeMap<&[u8], u32> = BTreeMap::new();
        for value in self.events.values().filter_map(|event| event.value.as_deref()) {
            *times_of_value.entry(value).or_default() += 1;
        }
        for call in &self.calls {
            let What::Write { key, value, outcome } = &call.what else { continue };
            let times = times_of_value.get(value.as_bytes()).copied().unwrap_or(0);
            match outcome {
                Outcome::Done(revision) => match self.events.get(revision) {
                    None if self.is_hidden(*revision) => {}
                    None if !is_over && *revision > self.revision => {}
                    Some(event)
                        if *event.key == **key && event.value.as_deref() == Some(value.as_bytes()) => {}
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
            let is_write = matches!(call.what, What::Write { .. });
            let Some(revision) = call.revision() else { continue };
            if revision < answered || (is_write && revision == answered) {
                wrong.push(format!("I3: {call:?} began after revision {answered} was answered"));
            }
        }
    }

    /// Up to here every event is known.
    fn complete_until(&self) -> u64 {
        self.hidden.first().map_or(self.revision, |range| range.start() - 1)
    }

    /// A read shows the key as it was at the revision of the state read.
    fn check_reads(&self, wrong: &mut Vec<String>) {
        let read: BTreeSet<&str> = self
            .calls
            .iter()
            .filter_map(|call| match &call.what {
                What::Read { key, .. } => Some(key.as_str()),
                What::Write { .. } | What::List { .. } => None,
            })
            .collect();
        let mut by_key: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
        for event in self.events.values().filter(|event| read.contains(&*event.key)) {
            by_key.entry(&event.key).or_default().push(event);
        }
        let complete_until = self.complete_until();
        for call in &self.calls {
            let What::Read { key, value, revision } = &call.what else { continue };
            if *revision > complete_until {
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

    /// So does a list, whatever was written between its pages.
    fn check_lists(&self, wrong: &mut Vec<String>) {
        let mut lists = Vec::new();
        for call in &self.calls {
            if let What::List { prefix, found, revision } = &call.what {
                lists.push((*revision, *prefix, found));
            }
        }
        lists.sort();
        let complete_until = self.complete_until();
        let mut events = self.events.values().peekable();
        let mut state: BTreeMap<&str, &[u8]> = BTreeMap::new();
        for (revision, prefix, found) in lists {
            if revision > complete_until {
                return;
            }
            while let Some(event) = events.next_if(|event| event.revision <= revision) {
                match &event.value {
                    Some(value) => drop(state.insert(&event.key, value)),
                    None => drop(state.remove(&*event.key)),
                }
            }
            let expected = state.range(prefix..).take_while(|(key, _)| key.starts_with(prefix));
            let found_too = found.iter().map(|(key, value)| (key.as_str(), value.as_bytes()));
            if !expected.map(|(key, value)| (*key, *value)).eq(found_too) {
                wrong.push(format!("I7: a list of {prefix} at {revision} shows {found:?}"));
            }
        }
    }
}

impl Call {
    fn revision(&self) -> Option<u64> {
        match &self.what {
            What::Write { outcome: Outcome::Done(revision), .. } => Some(*revision),
            What::Write { .. } => None,
            What::Read { revision, .. } | What::List { revision, .. } => Some(*revision),
        }
    }
}
