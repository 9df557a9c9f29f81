//! Which cluster a store belongs to, and which incarnation of it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A cluster, and which of its lives: founding begins the first, each recovery or restoration the next.
///
/// Stores with different tags hold different histories, whatever they are called. So a store has one
/// tag for as long as it lives, in its own files, and speaks only to stores that have the same.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterTag {
    /// The cluster's id.
    pub cluster: [u8; 16],
    /// Which incarnation of it, counted from its founding.
    pub number: u64,
    /// Drawn when the incarnation was made: two that have one number are told apart by it.
    pub incarnation: [u8; 16],
}

/// Two stores that are not of one cluster in one incarnation. They give each other nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("that store is of {theirs}, this one of {ours}")]
pub struct Foreign {
    /// Of the store that says so.
    pub ours: ClusterTag,
    /// Of the other one.
    pub theirs: ClusterTag,
}

impl ClusterTag {
    /// Whether a store of this tag may speak to one of that tag.
    pub(crate) fn check(self, theirs: ClusterTag) -> Result<(), Foreign> {
        match self == theirs || crate::broken!(ForeignStoresTaken) {
            true => Ok(()),
            false => Err(Foreign { ours: self, theirs }),
        }
    }
}

impl fmt::Display for ClusterTag {
    /// The beginnings of both ids are enough to tell them apart by eye.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |id: &[u8; 16]| id[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (cluster, id) = (short(&self.cluster), short(&self.incarnation));
        write!(f, "cluster {cluster} in incarnation {} ({id})", self.number)
    }
}

impl fmt::Debug for ClusterTag {
    /// As [`Display`](fmt::Display): logs are read by people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
