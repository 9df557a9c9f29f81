//! The replicated map, and the only code that changes it.
//!
//! [`State::apply`] is a function of the state, the entry's term and the command: every node that
//! applies the same log holds the same state, byte for byte. It reads no clock and parses no value.

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use openraft::StoredMembership;
use openraft::impls::EmptyNode;
use serde::{Deserialize, Serialize};

use crate::feed::Step;
use crate::incarnation::REVISION_STEP;
use crate::sessions::{Ledger, Sessions, Standing};
use crate::{
    Answer, Change, Command, CommittedLeaderId, DecodeError, Expect, LogId, Op, Outcome, Refusal, VoterId,
    decode, encode,
};

/// Largest value of one key: 1.5 MiB, as etcd's default for a request.
pub const OBJECT_BYTES_MAX: usize = 3 << 19;

/// Keys and values together. A full copy must fit the memory of a small machine beside everything else.
pub const STORE_BYTES_MAX: u64 = 256 << 20;

/// What each object is charged beside its key and value: a node of the map, two counters, two lengths.
const OBJECT_OVERHEAD_BYTES: u64 = 130;

/// Keys of the store's own settings start with this byte; they are no objects and have no events.
const RESERVED: char = '\0';
const SESSION_KEY: &str = "\0session/";
const LEVEL_KEY: &str = "\0level";

/// Who votes and who follows, and since which entry.
pub type Members = StoredMembership<CommittedLeaderId, VoterId, EmptyNode>;

/// A value and when it changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// The bytes as they were put.
    pub value: Bytes,
    /// Revision of the change that made the key.
    pub create_rev: u64,
    /// Revision of the latest change.
    pub mod_rev: u64,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Of this change alone: no two events share one.
    pub revision: u64,
    /// Whose value changed.
    pub key: Arc<str>,
    /// The value now; `None` if the key was deleted.
    pub value: Option<Bytes>,
    /// The value before; `None` if the key is new.
    pub previous: Option<Bytes>,
    /// The leader's wall time of the change, in ms since 1970.
    pub stamp_ms: u64,
}

/// A key that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which key.
    pub key: Arc<str>,
    /// What it is now; `None` if it is gone.
    pub object: Option<Object>,
}

impl Difference {
    pub(crate) fn size(&self) -> usize {
        self.key.len() + self.object.as_ref().map_or(0, |object| object.value.len())
    }
}

/// A picture of the whole map at one revision. Cloning costs a few pointers, whatever its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    objects: OrdMap<Arc<str>, Object>,
    sessions: Sessions,
    head: Head,
    bytes: u64,
}

/// Everything that is not a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    revision: u64,
    stamp_ms: u64,
    level: u32,
    applied: Option<LogId>,
    /// Shared, because the state is cloned for each batch and the members hardly ever change.
    members: Arc<Members>,
}

impl State {
    /// Applies one command whose entry is of `term`: its answer, and the events in revision order.
    ///
    /// A command seen before has no second effect and gives the first answer. One whose session is
    /// over has no effect and answers nothing (no outcomes): nobody waits for it.
    pub fn apply(&mut self, term: u64, command: Command) -> (Answer, Vec<Event>) {
        let Command { session, serial, unanswered_from, stamp_ms, only_in_term, atomic, ops } = command;
        match self.sessions.standing(session, serial) {
            Standing::Repeated(first) => return (Answer::clone(&first), Vec::new()),
            Standing::Over => {
                return (Answer { revision: self.head.revision, outcomes: Vec::new() }, Vec::new());
            }
            Standing::New => {}
        }
        self.head.stamp_ms = self.head.stamp_ms.max(stamp_ms);
        let (outcomes, events) = if only_in_term.is_some_and(|only| only != term) {
            (vec![Outcome::WrongTerm; ops.len()], Vec::new())
        } else if atomic && ops.len() > 1 {
            self.apply_atomic(ops)
        } else {
            let mut events = Vec::new();
            (ops.into_iter().map(|op| self.apply_op(op, &mut events)).collect(), events)
        };
        let answer = Answer { revision: self.head.revision, outcomes };
        self.sessions.record(session, serial, unanswered_from, answer.clone());
        (answer, events)
    }

    fn apply_atomic(&mut self, ops: Vec<Op>) -> (Vec<Outcome>, Vec<Event>) {
        let before = self.clone();
        let count = ops.len();
        let (mut outcomes, mut events) = (Vec::with_capacity(count), Vec::new());
        for op in ops {
            let outcome = self.apply_op(op, &mut events);
            if matches!(outcome, Outcome::Done { .. } | Outcome::Unchanged { .. }) {
                outcomes.push(outcome);
                continue;
            }
            *self = before;
            let mut refused = vec![Outcome::Refused(Refusal::NotTried); count];
            refused[outcomes.len()] = outcome;
            return (refused, Vec::new());
        }
        (outcomes, events)
    }

    fn apply_op(&mut self, op: Op, events: &mut Vec<Event>) -> Outcome {
        let Op { key, expect, change } = op;
        if key.starts_with(RESERVED) {
            return self.apply_reserved(&key, &change);
        }
        let current = self.objects.get(&*key);
        let refusal = match (expect, current) {
            (Expect::Absent, Some(object)) => Some(Refusal::Exists { revision: object.mod_rev }),
            (Expect::Present | Expect::Revision(_), None) => Some(Refusal::Absent),
            (Expect::Revision(expected), Some(object)) if object.mod_rev != expected => {
                Some(Refusal::Conflict { revision: object.mod_rev })
            }
            _ => None,
        };
        if let Some(refusal) = refusal {
            return Outcome::Refused(refusal);
        }
        let unchanged = Outcome::Unchanged { revision: current.map_or(0, |object| object.mod_rev) };
        let value = match (change, current) {
            (Change::Check, _) | (Change::Delete, None) => return unchanged,
            (Change::Put(value), Some(object)) if value == object.value => return unchanged,
            (Change::Put(value), _) => Some(value),
            (Change::Delete, Some(_)) => None,
        };
        let freed = current.map_or(0, |object| charge(&key, &object.value));
        let needed = value.as_ref().map_or(0, |value| charge(&key, value));
        let bytes = self.bytes - freed + needed;
        let too_large = value.as_ref().is_some_and(|value| value.len() > OBJECT_BYTES_MAX);
        if too_large || (needed > freed && bytes > STORE_BYTES_MAX) {
            return Outcome::Full;
        }

        self.head.revision += 1;
        let revision = self.head.revision;
        let previous = self.put(&key, value.clone(), revision);
        events.push(Event { revision, key, value, previous, stamp_ms: self.head.stamp_ms });
        Outcome::Done { revision }
    }

    /// The store's own settings; see [`end_session`] and [`raise_level`].
    fn apply_reserved(&mut self, key: &str, change: &Change) -> Outcome {
        let unchanged = Outcome::Unchanged { revision: self.head.revision };
        match change {
            Change::Delete => {
                if let Some(node) = key.strip_prefix(SESSION_KEY).and_then(node_from_hex) {
                    self.sessions.end(node);
                }
            }
            Change::Put(value) if key == LEVEL_KEY => {
                if let Ok(bytes) = <[u8; 4]>::try_from(&value[..]) {
                    self.head.level = self.head.level.max(u32::from_le_bytes(bytes));
                }
            }
            Change::Put(_) | Change::Check => {}
        }
        unchanged
    }

    /// Repeats a change that another store has applied and tells: the replica of a node without a log.
    /// Must be the next one. Returns the event as that store had it. The state has no place in the log any more.
    pub(crate) fn follow(&mut self, step: Step) -> Event {
        let Step { revision, key, value, stamp_ms } = step;
        debug_assert_eq!(revision, self.head.revision + 1);
        let previous = self.put(&key, value.clone(), revision);
        self.arrive(revision, stamp_ms);
        self.head.applied = None;
        Event { revision, key, value, previous, stamp_ms }
    }

    /// Which keys are not in `later` as they are here. Parts that both share are not looked at.
    pub(crate) fn differences<'a>(&'a self, later: &'a State) -> impl Iterator<Item = Difference> + 'a {
        use imbl::ordmap::DiffItem::{Add, Remove, Update};
        self.objects.diff(&later.objects).map(|item| match item {
            Add(key, object) | Update { new: (key, object), .. } => {
                Difference { key: key.clone(), object: Some(object.clone()) }
            }
            Remove(key, _) => Difference { key: key.clone(), object: None },
        })
    }

    /// Makes one key what another store says it is by now. The state is none before [`arrive`](Self::arrive).
    pub(crate) fn change(&mut self, Difference { key, object }: Difference) {
        self.set(&key, object);
    }

    /// The key has this value from `revision` on; returns the one of before.
    fn put(&mut self, key: &Arc<str>, value: Option<Bytes>, revision: u64) -> Option<Bytes> {
        let create_rev = self.objects.get(&**key).map_or(revision, |object| object.create_rev);
        let object = value.map(|value| Object { value, create_rev, mod_rev: revision });
        self.set(key, object).map(|object| object.value)
    }

    /// Returns what was there, and keeps count of the bytes.
    fn set(&mut self, key: &Arc<str>, object: Option<Object>) -> Option<Object> {
        let needed = object.as_ref().map_or(0, |object| charge(key, &object.value));
        let before = match object {
            Some(object) => self.objects.insert(key.clone(), object),
            None => self.objects.remove(&**key),
        };
        self.bytes = self.bytes + needed - before.as_ref().map_or(0, |object| charge(key, &object.value));
        before
    }

    /// All that differs was changed: this is the map at `revision`.
    pub(crate) fn arrive(&mut self, revision: u64, stamp_ms: u64) {
        self.head.revision = revision;
        self.head.stamp_ms = self.head.stamp_ms.max(stamp_ms);
    }

    /// The map before `events`, which were its last ones. A key that they touched has its value of then, and no
    /// revision: that is not known any more.
    pub(crate) fn before(&self, events: &[Event]) -> State {
        let mut state = self.clone();
        for Event { key, previous, .. } in events.iter().rev() {
            let object = previous.clone().map(|value| Object { value, create_rev: 0, mod_rev: 0 });
            state.change(Difference { key: key.clone(), object });
        }
        state.head.revision -= events.len() as u64;
        state
    }

    /// Takes over what another store tells beside changes. A state that has taken anything has no place in the log.
    pub(crate) fn follow_head(&mut self, level: u32, stamp_ms: u64, members: &Arc<Members>) {
        let head = &mut self.head;
        if level > head.level || stamp_ms > head.stamp_ms || head.members.log_id() < members.log_id() {
            head.applied = None;
        }
        head.level = head.level.max(level);
        head.stamp_ms = head.stamp_ms.max(stamp_ms);
        if head.members.log_id() < members.log_id() {
            head.members = members.clone();
        }
    }

    /// The membership of the last membership entry applied, for sharing.
    pub(crate) fn shared_members(&self) -> Arc<Members> {
        self.head.members.clone()
    }

    /// The same without what only Raft's state machine needs: sessions and its place in the log.
    pub fn for_followers(&self) -> State {
        let head = Head { applied: None, ..self.head.clone() };
        State { objects: self.objects.clone(), sessions: Sessions::default(), head, bytes: self.bytes }
    }

    /// What an incarnation of the cluster begins with that is later by `incarnations`, after `ops` of its founder: the
    /// same objects, at revisions that no incarnation before has reached. Sessions, members and the place in the log end
    /// here.
    pub fn next_life(&self, incarnations: u64, ops: Vec<Op>) -> State {
        let mut state = self.for_followers();
        let step = REVISION_STEP.saturating_mul(incarnations);
        state.head.revision = state.head.revision.saturating_add(step);
        state.set_members(Members::default());
        let mut untold = Vec::new();
        for op in ops {
            state.apply_op(op, &mut untold);
        }
        state
    }

    pub(crate) fn set_applied(&mut self, log_id: LogId) {
        self.head.applied = Some(log_id);
    }

    pub(crate) fn set_members(&mut self, members: Members) {
        self.head.members = Arc::new(members);
    }

    /// The number of changes ever made, plus what `recover` and `restore` added. It never goes back.
    pub fn revision(&self) -> u64 {
        self.head.revision
    }

    /// The latest wall time any leader stamped, in ms since 1970.
    pub fn stamp_ms(&self) -> u64 {
        self.head.stamp_ms
    }

    /// What every replica can do; raised by the leader once all members announce it.
    pub fn level(&self) -> u32 {
        self.head.level
    }

    /// The last entry that is part of this state.
    pub fn applied(&self) -> Option<LogId> {
        self.head.applied
    }

    /// The membership of the last membership entry applied.
    pub fn members(&self) -> &Members {
        &self.head.members
    }

    /// Objects held.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether no object is held.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// What counts against [`STORE_BYTES_MAX`].
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The object under `key`.
    pub fn get(&self, key: &str) -> Option<&Object> {
        self.objects.get(key)
    }

    /// Objects whose key starts with `prefix`, in key order; with `after`, only those behind that key.
    pub fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Object)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = match after {
            Some(after) if after >= prefix => Excluded(after),
            _ => Included(prefix),
        };
        let left_out = usize::from(after.is_some() && crate::broken!(IncompleteList));
        let objects = self.objects.range::<_, str>((start, Unbounded)).skip(left_out);
        objects.take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// A checksum of the objects and the revision: equal on all nodes at one revision, whatever
    /// entries without a change they have applied since.
    pub fn digest(&self) -> u32 {
        let revision = crc32c::crc32c(&self.head.revision.to_le_bytes());
        self.object_records().fold(revision, |crc, record| crc32c::crc32c_append(crc, &record))
    }

    /// A checksum of all but the objects, which [`digest`](Self::digest) covers: equal on all stores whose state
    /// machines have applied the same entries.
    pub fn head_digest(&self) -> u32 {
        self.head_records().fold(0, |crc, record| crc32c::crc32c_append(crc, &record))
    }

    /// The state as a row of encoded records of about 1 MiB, for a snapshot.
    pub fn records(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let taken = if crate::broken!(SnapshotWithoutSessions) { 1 } else { usize::MAX };
        self.head_records().take(taken).chain(self.object_records())
    }

    fn head_records(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let head = std::iter::once_with(|| encode(&Record::Head(self.head.clone())));
        let sessions =
            self.sessions.iter().map(|(node, ledger)| encode(&Record::Session(*node, ledger.clone())));
        head.chain(sessions)
    }

    fn object_records(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let mut objects = self.objects.iter();
        std::iter::from_fn(move || {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            for (key, object) in objects.by_ref() {
                batch.push((key.clone(), object.clone()));
                bytes += key.len() + object.value.len();
                if bytes >= RECORD_BYTES {
                    break;
                }
            }
            (!batch.is_empty()).then(|| encode(&Record::Objects(batch)))
        })
    }

    /// Puts together what [`records`](Self::records) took apart.
    pub fn from_records<B: AsRef<[u8]>>(records: impl IntoIterator<Item = B>) -> Result<Self, DecodeError> {
        let mut state = State::default();
        for record in records {
            state.add_record(record.as_ref())?;
        }
        Ok(state)
    }

    /// Adds one record; a state is complete after the last.
    pub fn add_record(&mut self, record: &[u8]) -> Result<(), DecodeError> {
        match decode(record)? {
            Record::Head(head) => self.head = head,
            Record::Session(node, ledger) => self.sessions.insert(node, ledger),
            Record::Objects(batch) => {
                for (key, object) in batch {
                    self.bytes += charge(&key, &object.value);
                    self.objects.insert(key, object);
                }
            }
        }
        Ok(())
    }
}

/// A batch is closed once it holds this much, so one record is at most this and one object more.
const RECORD_BYTES: usize = 1 << 20;

/// A piece of a snapshot. Append-only.
#[derive(Serialize, Deserialize)]
enum Record {
    Head(Head),
    Session([u8; 16], Ledger),
    Objects(Vec<(Arc<str>, Object)>),
}

/// The operation that forgets the session of a node which has left for good.
pub(crate) fn end_session(node: [u8; 16]) -> Op {
    let hex: String = node.iter().map(|byte| format!("{byte:02x}")).collect();
    Op { key: format!("{SESSION_KEY}{hex}").into(), expect: Expect::Any, change: Change::Delete }
}

/// The operation that lets `apply` use what came with `level`. A lower one than the present has no effect.
pub(crate) fn raise_level(level: u32) -> Op {
    let value = Bytes::copy_from_slice(&level.to_le_bytes());
    Op { key: LEVEL_KEY.into(), expect: Expect::Any, change: Change::Put(value) }
}

fn node_from_hex(hex: &str) -> Option<[u8; 16]> {
    let digits = hex.as_bytes();
    if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u128::from_str_radix(hex, 16).ok().map(u128::to_be_bytes)
}

fn charge(key: &str, value: &Bytes) -> u64 {
    key.len() as u64 + value.len() as u64 + OBJECT_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Session;

    fn op(key: &str, expect: Expect, change: Change) -> Op {
        Op { key: key.into(), expect, change }
    }

    fn put(key: &str, value: &str) -> Op {
        op(key, Expect::Any, Change::Put(Bytes::copy_from_slice(value.as_bytes())))
    }

    fn command(serial: u64, atomic: bool, ops: Vec<Op>) -> Command {
        let session = Session { node: [7; 16], generation: 1 };
        Command {
            session,
            serial,
            unanswered_from: serial,
            stamp_ms: serial,
            only_in_term: None,
            atomic,
            ops,
        }
    }

    fn done(revision: u64) -> Outcome {
        Outcome::Done { revision }
    }

    /// Applies the operations one by one to an empty map and compares the outcomes.
    fn check(ops: Vec<Op>, expect: &[Outcome]) {
        let (answer, _) = State::default().apply(1, command(1, false, ops));
        assert_eq!(answer.outcomes, expect);
    }

    #[test]
    fn each_expectation_is_judged_against_the_key_as_it_is() {
        let delete = |key, expect| op(key, expect, Change::Delete);
        check(vec![put("a", "1"), put("a", "2")], &[done(1), done(2)]);
        check(
            vec![put("a", "1"), op("a", Expect::Absent, Change::Put(Bytes::new()))],
            &[done(1), Outcome::Refused(Refusal::Exists { revision: 1 })],
        );
        check(vec![delete("a", Expect::Present)], &[Outcome::Refused(Refusal::Absent)]);
        check(vec![delete("a", Expect::Revision(1))], &[Outcome::Refused(Refusal::Absent)]);
        check(vec![delete("a", Expect::Any)], &[Outcome::Unchanged { revision: 0 }]);
        check(vec![put("a", "1"), delete("a", Expect::Revision(1))], &[done(1), done(2)]);
        check(
            vec![put("a", "1"), delete("a", Expect::Revision(9))],
            &[done(1), Outcome::Refused(Refusal::Conflict { revision: 1 })],
        );
        check(
            vec![put("a", "1"), op("a", Expect::Present, Change::Check)],
            &[done(1), Outcome::Unchanged { revision: 1 }],
        );
    }

    #[test]
    fn equal_bytes_spend_no_revision_and_make_no_event() {
        let mut state = State::default();
        state.apply(1, command(1, false, vec![put("a", "1")]));
        let (answer, events) = state.apply(1, command(2, false, vec![put("a", "1")]));
        assert_eq!((answer.outcomes, answer.revision), (vec![Outcome::Unchanged { revision: 1 }], 1));
        assert!(events.is_empty());
    }

    #[test]
    fn an_event_carries_the_value_before_and_each_has_its_own_revision() {
        let mut state = State::default();
        let (_, events) = state.apply(1, command(1, true, vec![put("a", "1"), put("a", "2"), put("b", "3")]));
        assert_eq!(events.iter().map(|event| event.revision).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(events[1].previous.as_deref(), Some(&b"1"[..]));
        let object = state.get("a").unwrap();
        assert_eq!((object.create_rev, object.mod_rev), (1, 2));
    }

    #[test]
    fn an_atomic_command_does_all_or_nothing() {
        let mut state = State::default();
        let refused = op("b", Expect::Present, Change::Delete);
        let (answer, events) =
            state.apply(1, command(1, true, vec![put("a", "1"), refused.clone(), put("c", "1")]));
        let not_tried = Outcome::Refused(Refusal::NotTried);
        assert_eq!(answer.outcomes, [not_tried, Outcome::Refused(Refusal::Absent), not_tried]);
        assert!(events.is_empty() && state.is_empty() && state.revision() == 0 && state.bytes() == 0);
        let (answer, _) = state.apply(1, command(2, false, vec![put("a", "1"), refused]));
        assert_eq!(answer.outcomes, [done(1), Outcome::Refused(Refusal::Absent)]);
    }

    #[test]
    fn what_was_judged_in_one_term_is_refused_in_the_next() {
        let mut state = State::default();
        let mut judged = command(1, true, vec![put("a", "1")]);
        judged.only_in_term = Some(4);
        assert_eq!(state.clone().apply(5, judged.clone()).0.outcomes, [Outcome::WrongTerm]);
        assert_eq!(state.apply(4, judged).0.outcomes, [done(1)]);
    }

    #[test]
    fn a_repeated_command_has_one_effect_and_one_answer() {
        let mut state = State::default();
        let once = command(1, true, vec![op("a", Expect::Absent, Change::Put(Bytes::new()))]);
        let (first, _) = state.apply(1, once.clone());
        let (again, events) = state.apply(2, once);
        assert_eq!(first, again);
        assert!(events.is_empty());
    }

    #[test]
    fn an_object_or_a_store_beyond_its_limit_is_refused_and_deleting_never_is() {
        let mut state = State::default();
        let large = |key: &str, len| op(key, Expect::Any, Change::Put(Bytes::from(vec![0; len])));
        let (answer, _) = state.apply(1, command(1, false, vec![large("a", OBJECT_BYTES_MAX + 1)]));
        assert_eq!(answer.outcomes, [Outcome::Full]);
        let value = Bytes::from(vec![0; OBJECT_BYTES_MAX]);
        let count = STORE_BYTES_MAX / OBJECT_BYTES_MAX as u64;
        let fill =
            (0..count + 1).map(|n| op(&format!("{n:03}"), Expect::Any, Change::Put(value.clone()))).collect();
        let (answer, _) = state.apply(1, command(2, false, fill));
        assert_eq!(answer.outcomes.last(), Some(&Outcome::Full));
        assert!(state.bytes() <= STORE_BYTES_MAX);
        let (answer, _) = state.apply(1, command(3, false, vec![op("000", Expect::Present, Change::Delete)]));
        assert!(matches!(answer.outcomes[0], Outcome::Done { .. }));
    }

    #[test]
    fn a_range_starts_behind_the_given_key_and_ends_with_the_prefix() {
        let mut state = State::default();
        state.apply(1, command(1, false, ["a/1", "a/2", "a/3", "b/1"].map(|key| put(key, "")).into()));
        let keys =
            |prefix, after| state.range(prefix, after).map(|(key, _)| key.to_string()).collect::<Vec<_>>();
        assert_eq!(keys("a/", None), ["a/1", "a/2", "a/3"]);
        assert_eq!(keys("a/", Some("a/1")), ["a/2", "a/3"]);
        assert_eq!(keys("", Some("a/3")), ["b/1"]);
        assert_eq!(keys("b/", Some("a/3")), ["b/1"]);
    }

    #[test]
    fn records_carry_the_whole_state() {
        let mut state = State::default();
        let value = "x".repeat(300_000);
        for serial in 1..=10 {
            state.apply(1, command(serial, true, vec![put(&format!("k{serial}"), &value), raise_level(3)]));
        }
        let records: Vec<_> = state.records().collect();
        assert!(records.len() > 3);
        let copy = State::from_records(&records).unwrap();
        assert_eq!(copy, state);
        assert_eq!((copy.digest(), copy.level()), (state.digest(), 3));
    }

    #[test]
    fn who_follows_the_events_holds_the_same_objects_and_sees_the_same_events() {
        let mut leader = State::default();
        let mut follower = State::default();
        let changes = [
            vec![put("a", "1"), put("b", "22"), put("c", "333")],
            vec![put("a", "4444"), op("b", Expect::Present, Change::Delete)],
            vec![op("c", Expect::Any, Change::Delete), put("c", "again"), put("a", "4444")],
        ];
        for (serial, ops) in changes.into_iter().enumerate() {
            let (_, events) = leader.apply(1, command(serial as u64 + 1, false, ops));
            for event in events {
                let Event { revision, key, value, stamp_ms, .. } = event.clone();
                assert_eq!(follower.follow(Step { revision, key, value, stamp_ms }), event);
            }
            assert_eq!(follower.objects, leader.objects);
            let held = |state: &State| (state.digest(), state.bytes(), state.stamp_ms());
            assert_eq!(held(&follower), held(&leader));
        }
        let whole = leader.for_followers();
        assert_eq!((whole.digest(), whole.bytes()), (leader.digest(), leader.bytes()));
        assert_eq!(whole.records().count(), 2, "a head and the objects, no sessions");
    }

    #[test]
    fn the_session_of_a_removed_node_ends() {
        let mut state = State::default();
        state.apply(1, command(1, true, vec![put("a", "1")]));
        let mut remove = command(1, true, vec![end_session([7; 16])]);
        remove.session.node = [8; 16];
        state.apply(1, remove);
        assert!(matches!(
            state.sessions.standing(Session { node: [7; 16], generation: 1 }, 1),
            Standing::New
        ));
    }
}
