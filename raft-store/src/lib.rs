//! Order, durability, revisions and watches: the cluster's one replicated map.
//!
//! Owns the log, the vote, snapshots, the ordered map and the ring of its events, and the Raft that
//! keeps them equal on every node, behind a plain handle. Imports no other crate of the house: bytes
//! travel over a trait of this crate, and what a key or a value means is nobody's business here.

mod codec;
mod command;
mod type_config;
mod voter_id;

pub use codec::{DecodeError, VALUE_BYTES_MAX, decode, encode, encode_into};
pub use command::{Answer, Change, Command, Expect, Op, Outcome, Refusal, Session};
pub use type_config::{CommittedLeaderId, Entry, LogId, Membership, Payload, TypeConfig, Vote};
pub use voter_id::VoterId;
