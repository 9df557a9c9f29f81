//! One conditional change of the cluster's ordered map, and what became of it.

/// One operation on the map. Several travel as one command and happen all or not at all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// The key's text, as [`ObjectKey`](crate::key::ObjectKey) prints it.
    pub key: String,
    /// What must be true of the key for the change to happen.
    pub expect: Expect,
    /// What happens then.
    pub change: Change,
}

/// What a write expects of its key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key holds no object.
    Absent,
    /// The key holds an object.
    Present,
    /// The key holds the object that was written at this revision.
    Revision(u64),
}

/// What a write does to its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Stores these bytes: the object's JSON without `metadata.resourceVersion`.
    Put(Vec<u8>),
    /// Removes the object.
    Delete,
    /// Changes nothing; the other writes of the command depend on the expectation.
    Check,
}

/// What the deletion of a Node object means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NodeDeletion {
    /// It belongs to nobody: only the object goes.
    Object,
    /// It is a lost member's, whose membership ends with it: these writes see to both.
    Membership(Vec<Write>),
}

/// What became of one write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    /// The change happened and has this revision.
    Done {
        /// The key's new revision.
        revision: u64,
    },
    /// The expectation held and nothing had to change.
    Unchanged {
        /// The key's revision, as before.
        revision: u64,
    },
    /// Nothing happened.
    Refused(Refusal),
}

/// Why a write did not happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// `Absent` was expected, and there is an object.
    Exists {
        /// Its revision.
        revision: u64,
    },
    /// An object was expected, and there is none.
    Absent,
    /// Another revision was expected.
    Conflict {
        /// The revision that is there.
        revision: u64,
    },
    /// Another write of the same command was refused.
    NotTried,
}

impl Write {
    /// Creates the object, unless one is there.
    pub fn create(key: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { key: key.into(), expect: Expect::Absent, change: Change::Put(bytes) }
    }

    /// Replaces the object that was read at `revision`.
    pub fn replace(key: impl Into<String>, revision: u64, bytes: Vec<u8>) -> Self {
        Self { key: key.into(), expect: Expect::Revision(revision), change: Change::Put(bytes) }
    }

    /// Removes the object that was read at `revision`.
    pub fn delete(key: impl Into<String>, revision: u64) -> Self {
        Self { key: key.into(), expect: Expect::Revision(revision), change: Change::Delete }
    }

    /// Lets the command happen only while the key is as expected.
    pub fn check(key: impl Into<String>, expect: Expect) -> Self {
        Self { key: key.into(), expect, change: Change::Check }
    }
}
