//! What the log carries: a command, and the answer its application gives.
//!
//! Every type here is frozen once released, because logs and snapshots outlive builds and the builds
//! of one cluster differ during an upgrade. A new meaning is a new variant at the end of
//! [`Versioned`], which no leader proposes before every replica has said that it knows it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec;

/// One proposal: operations on the map, with what makes them apply alike on every node and only once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Versioned", into = "Versioned")]
pub struct Command {
    /// Who proposes.
    pub session: Session,
    /// Number of this proposal in its session; a repeated one gets the first answer again.
    pub serial: u64,
    /// Answers below this serial have arrived and are forgotten.
    pub unanswered_from: u64,
    /// Wall time of the leader in ms since 1970. Earlier than the stamp before only where a wrong clock made that one.
    pub stamp_ms: u64,
    /// Apply only if the entry is of this term: what a leader judged dies with its leadership.
    pub only_in_term: Option<u64>,
    /// All operations or none.
    pub atomic: bool,
    /// Applied in this order.
    pub ops: Vec<Op>,
}

/// One run of one node's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Session {
    /// The node.
    pub node: [u8; 16],
    /// Raised at each start of the process; a newer one ends the older session.
    pub generation: u64,
}

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// Whose value changes.
    pub key: Arc<str>,
    /// What must hold before.
    pub expect: Expect,
    /// What holds afterwards.
    pub change: Change,
}

/// The precondition of an operation. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key has no value.
    Absent,
    /// The key has a value.
    Present,
    /// The key was last changed at this revision.
    Revision(u64),
}

/// The effect of an operation. Append-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The key has this value.
    Put(Bytes),
    /// The key has no value.
    Delete,
    /// None: only the expectation counts.
    Check,
}

/// What came of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Revision of the map after the command.
    pub revision: u64,
    /// One for each operation, in order.
    pub outcomes: Vec<Outcome>,
}

/// What came of one operation. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The key changed.
    Done {
        /// The key's revision now.
        revision: u64,
    },
    /// The key already was as asked; no revision was spent.
    Unchanged {
        /// The key's revision.
        revision: u64,
    },
    /// The expectation did not hold, and nothing changed.
    Refused(Refusal),
    /// The command was for another term, and nothing changed.
    WrongTerm,
    /// The store has no room for the value, and nothing changed.
    Full,
}

/// Why an expectation did not hold. Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Expected absent.
    Exists {
        /// The key's revision.
        revision: u64,
    },
    /// Expected present, or at a revision.
    Absent,
    /// Expected at another revision.
    Conflict {
        /// The key's revision.
        revision: u64,
    },
    /// Another operation of the same atomic command was refused.
    NotTried,
}

impl Command {
    /// The bytes that go into the log and over the wire.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads what [`encode`](Self::encode) of this or an older build wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, codec::DecodeError> {
        codec::decode(bytes)
    }

    /// Bytes this command takes in memory, the log, and on the wire, within some tens.
    pub fn size(&self) -> usize {
        const FIXED: usize = 64;
        FIXED + self.ops.iter().map(Op::size).sum::<usize>()
    }
}

impl Op {
    /// See [`Command::size`].
    pub fn size(&self) -> usize {
        const FIXED: usize = 24;
        let value = match &self.change {
            Change::Put(value) => value.len(),
            Change::Delete | Change::Check => 0,
        };
        FIXED + self.key.len() + value
    }
}

impl Answer {
    /// The bytes that go into a snapshot and over the wire.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads what [`encode`](Self::encode) of this or an older build wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, codec::DecodeError> {
        codec::decode(bytes)
    }
}

impl fmt::Display for Command {
    /// For openraft's log lines: which proposal it is, not what it says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command {} of {}, {} operations", self.serial, self.session, self.ops.len())
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.node.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "/{}", self.generation)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision {}, {} outcomes", self.revision, self.outcomes.len())
    }
}

/// The command as it is written. Append-only.
#[derive(Serialize, Deserialize)]
enum Versioned {
    V1(V1),
}

#[derive(Serialize, Deserialize)]
struct V1 {
    session: Session,
    serial: u64,
    unanswered_from: u64,
    stamp_ms: u64,
    only_in_term: Option<u64>,
    atomic: bool,
    ops: Vec<Op>,
}

impl From<Command> for Versioned {
    fn from(command: Command) -> Self {
        let Command { session, serial, unanswered_from, stamp_ms, only_in_term, atomic, ops } = command;
        Versioned::V1(V1 { session, serial, unanswered_from, stamp_ms, only_in_term, atomic, ops })
    }
}

impl From<Versioned> for Command {
    fn from(Versioned::V1(v1): Versioned) -> Self {
        let V1 { session, serial, unanswered_from, stamp_ms, only_in_term, atomic, ops } = v1;
        Command { session, serial, unanswered_from, stamp_ms, only_in_term, atomic, ops }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Command {
        let op = |key: &str, expect, change| Op { key: key.into(), expect, change };
        Command {
            session: Session { node: [0x11; 16], generation: 3 },
            serial: 7,
            unanswered_from: 5,
            stamp_ms: 1_800_000_000_000,
            only_in_term: Some(2),
            atomic: true,
            ops: vec![
                op("core/pods/default/a", Expect::Absent, Change::Put(Bytes::from_static(b"{}"))),
                op("core/pods/default/b", Expect::Revision(300), Change::Delete),
                op("core/nodes//n", Expect::Present, Change::Check),
                op("x", Expect::Any, Change::Put(Bytes::new())),
            ],
        }
    }

    #[test]
    fn a_command_and_its_answer_survive_the_round_trip() {
        let command = sample();
        assert_eq!(Command::decode(&command.encode()).unwrap(), command);
        let answer = Answer {
            revision: 9,
            outcomes: vec![
                Outcome::Done { revision: 9 },
                Outcome::Unchanged { revision: 1 },
                Outcome::Refused(Refusal::Conflict { revision: 4 }),
                Outcome::WrongTerm,
                Outcome::Full,
            ],
        };
        assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
    }

    /// If this fails, logs of released builds no longer open: add a version instead.
    #[test]
    fn the_first_format_of_a_command_never_changes() {
        let mut expected = vec![1, 0];
        expected.extend_from_slice(&[0x11; 16]);
        expected.extend_from_slice(&[3, 7, 5]);
        expected.push(253);
        expected.extend_from_slice(&1_800_000_000_000_u64.to_le_bytes());
        expected.extend_from_slice(&[1, 2, 1, 4]);
        expected.push(19);
        expected.extend_from_slice(b"core/pods/default/a");
        expected.extend_from_slice(&[1, 0, 2, b'{', b'}']);
        expected.push(19);
        expected.extend_from_slice(b"core/pods/default/b");
        expected.extend_from_slice(&[3, 251, 44, 1, 1]);
        expected.push(13);
        expected.extend_from_slice(b"core/nodes//n");
        expected.extend_from_slice(&[2, 2]);
        expected.extend_from_slice(&[1, b'x', 0, 0, 0]);
        assert_eq!(sample().encode(), expected);
    }

    #[test]
    fn the_size_of_a_command_is_an_upper_bound_of_its_bytes() {
        let command = sample();
        assert!(command.encode().len() <= command.size());
    }

    #[test]
    fn no_cut_command_decodes() {
        let bytes = sample().encode();
        for end in 0..bytes.len() {
            assert!(Command::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }
}
