//! Which life of which cluster a node belongs to.
//!
//! Founding begins a cluster's first incarnation; each recovery from a lost majority, and each restoration
//! of a backup, the next one. What one incarnation decides, another knows nothing of, although members, keys
//! and authorities are the same. So nodes of different incarnations give each other nothing: every connection
//! begins with both ends' tags ([`endpoint`](crate::endpoint)), and every store says its own at the head of each
//! pipe (`skein-raft-store`).

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ca::ClusterId;
use crate::identity::{self, Error};
use crate::ids::hex_id;

hex_id!(
    /// Drawn when an incarnation is made: two recoveries of one cluster that know nothing of each other make
    /// two incarnations of one number, and are told apart by it.
    IncarnationId,
    16
);

/// One life of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// Counted from the founding, which is 1.
    pub number: u64,
    /// See [`IncarnationId`].
    pub id: IncarnationId,
}

impl Incarnation {
    /// Of a cluster that is founded now.
    pub fn first() -> Result<Incarnation, Error> {
        Ok(Incarnation { number: 1, id: IncarnationId(identity::random()?) })
    }

    /// Of a cluster that was founded by a build which knew of no incarnations: all its members find the same.
    pub fn unnamed(cluster: ClusterId) -> Incarnation {
        let hash = Sha256::digest([b"skein first incarnation\0".as_slice(), &cluster.0].concat());
        let id = hash.first_chunk().expect("SHA-256 has 32 bytes");
        Incarnation { number: 1, id: IncarnationId(*id) }
    }

    /// The one after this: what a recovery makes.
    pub fn next(self) -> Result<Incarnation, Error> {
        self.later(1)
    }

    /// One whose number is greater by `by`.
    pub fn later(self, by: u64) -> Result<Incarnation, Error> {
        Ok(Incarnation { number: self.number.saturating_add(by), id: IncarnationId(identity::random()?) })
    }
}

/// Where a node belongs: a cluster, and which life of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Which incarnation of it.
    pub incarnation: Incarnation,
}

/// Why a node and another one give each other nothing, as the first one says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// Nothing is wrong with either; one of them has the address or the key of a member of the other's.
    #[error("it belongs to another cluster ({})", theirs.fingerprint())]
    Cluster {
        /// Its cluster.
        theirs: ClusterId,
    },
    /// The other node missed a recovery.
    #[error(
        "it belongs to incarnation {theirs} of this cluster, which was recovered since (now {ours}); run `skein recover` on it, and it gives up what it holds and follows"
    )]
    Older {
        /// Number of this node's incarnation.
        ours: u64,
        /// Number of the other one's.
        theirs: u64,
    },
    /// This node missed a recovery.
    #[error(
        "this node belongs to incarnation {ours} of the cluster, which was recovered since (now {theirs}); to give up what this node holds and follow: skein recover"
    )]
    Newer {
        /// Number of this node's incarnation.
        ours: u64,
        /// Number of the other one's.
        theirs: u64,
    },
    /// The cluster was recovered twice, by nodes that knew nothing of each other.
    #[error(
        "it belongs to another incarnation {number} of this cluster: both were recovered apart from each other; decide which one goes on, move the data directories of the other one's nodes away and let them join anew"
    )]
    Twin {
        /// The number that both have.
        number: u64,
    },
}

impl Tag {
    /// Encoded length, for the hello of a connection.
    pub(crate) const BYTES: usize = 16 + 8 + 16;

    /// Whether a node of this tag may have to do with one of that tag.
    pub fn check(&self, theirs: &Tag) -> Result<(), Foreign> {
        let (our, their) = (self.incarnation, theirs.incarnation);
        match () {
            () if self == theirs => Ok(()),
            () if self.cluster != theirs.cluster => Err(Foreign::Cluster { theirs: theirs.cluster }),
            () if their.number < our.number => Err(Foreign::Older { ours: our.number, theirs: their.number }),
            () if their.number > our.number => Err(Foreign::Newer { ours: our.number, theirs: their.number }),
            () => Err(Foreign::Twin { number: our.number }),
        }
    }

    /// In fields of fixed size, big end first.
    pub(crate) fn to_bytes(self) -> [u8; Tag::BYTES] {
        let Incarnation { number, id } = self.incarnation;
        let mut bytes = [0; Tag::BYTES];
        bytes[..16].copy_from_slice(&self.cluster.0);
        bytes[16..24].copy_from_slice(&number.to_be_bytes());
        bytes[24..].copy_from_slice(&id.0);
        bytes
    }

    /// What [`Tag::to_bytes`] gave.
    pub(crate) fn from_bytes(bytes: [u8; Tag::BYTES]) -> Tag {
        let (cluster, rest) = bytes.split_first_chunk().expect("16 of 40 bytes");
        let (number, id) = rest.split_first_chunk().expect("8 of 24 bytes");
        let id = IncarnationId(id.try_into().expect("the last 16 bytes"));
        let incarnation = Incarnation { number: u64::from_be_bytes(*number), id };
        Tag { cluster: ClusterId(*cluster), incarnation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(cluster: u8, number: u64, id: u8) -> Tag {
        let incarnation = Incarnation { number, id: IncarnationId([id; 16]) };
        Tag { cluster: ClusterId([cluster; 16]), incarnation }
    }

    #[test]
    fn only_equal_tags_belong_together_and_each_end_knows_why_not() {
        let own = tag(1, 2, 3);
        for (theirs, expect) in [
            (own, Ok(())),
            (tag(2, 2, 3), Err(Foreign::Cluster { theirs: ClusterId([2; 16]) })),
            (tag(1, 1, 3), Err(Foreign::Older { ours: 2, theirs: 1 })),
            (tag(1, 3, 3), Err(Foreign::Newer { ours: 2, theirs: 3 })),
            (tag(1, 2, 4), Err(Foreign::Twin { number: 2 })),
        ] {
            assert_eq!(own.check(&theirs), expect);
            assert_eq!(theirs.check(&own).is_ok(), expect.is_ok(), "both ends agree");
        }
    }

    #[test]
    fn a_tag_comes_back_from_its_bytes() {
        let tag = tag(1, 1 << 40, 3);
        assert_eq!(Tag::from_bytes(tag.to_bytes()), tag);
    }

    #[test]
    fn a_cluster_that_knew_no_incarnations_has_the_same_first_one_on_every_node() {
        let [one, other] = [ClusterId([1; 16]), ClusterId([2; 16])].map(Incarnation::unnamed);
        assert_eq!(one, Incarnation::unnamed(ClusterId([1; 16])));
        assert_ne!(one.id, other.id);
        let founded = Incarnation::first().expect("randomness");
        assert_eq!((one.number, founded.number, founded.next().expect("randomness").number), (1, 1, 2));
        assert_ne!(founded.id, Incarnation::first().expect("randomness").id);
    }
}
