//! The whole member list, told over a stream: at join, after being cut off, and now and then.
//!
//! A packet carries about forty members, so a newcomer to a larger cluster would otherwise hear of the
//! rest only bit by bit (a minute at 300 members).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    codec::{self, Error, FORMAT},
    member::{MEMBERS_MAX, MemberId},
    metadata::Described,
};

/// Longest encoded list: the frame limit of the stream that carries it.
pub(super) const LIST_BYTES_MAX: usize = 2 * 1024 * 1024;

/// All that one member knows about all members, itself included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(pub(super) Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) id: MemberId,
    pub(super) incarnation: u16,
    pub(super) state: Believed,
    pub(super) described: Option<Described>,
}

/// foca's three states, in a form whose bytes are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Believed {
    Alive,
    Suspect,
    Down,
}

impl From<foca::State> for Believed {
    fn from(state: foca::State) -> Self {
        match state {
            foca::State::Alive => Believed::Alive,
            foca::State::Suspect => Believed::Suspect,
            foca::State::Down => Believed::Down,
        }
    }
}

impl From<Believed> for foca::State {
    fn from(state: Believed) -> Self {
        match state {
            Believed::Alive => foca::State::Alive,
            Believed::Suspect => foca::State::Suspect,
            Believed::Down => foca::State::Down,
        }
    }
}

impl List {
    /// The bytes for the stream.
    pub fn encode(&self) -> Bytes {
        let mut bytes = vec![FORMAT];
        bytes.extend(codec::encode(&self.0));
        bytes.into()
    }

    /// Reads what [`List::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (&format, entries) =
            bytes.split_first().ok_or_else(|| Error::Malformed { reason: "an empty member list".into() })?;
        if format != FORMAT {
            return Err(Error::Format { found: format });
        }
        if entries.len() > LIST_BYTES_MAX {
            return Err(Error::Malformed { reason: format!("a member list of {} bytes", entries.len()) });
        }
        let entries: Vec<Entry> = codec::decode_all(entries)?;
        if entries.len() > MEMBERS_MAX {
            return Err(Error::Malformed { reason: format!("a list of {} members", entries.len()) });
        }
        Ok(Self(entries))
    }
}
