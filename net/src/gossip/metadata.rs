//! What a member says about itself, and how the newest word of each travels with the gossip.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{
    codec,
    member::{MEMBERS_MAX, MemberId},
};
use crate::identity::NodeId;

/// Encoded length that a member's metadata may have: two of them and a few updates fit one packet.
pub const METADATA_BYTES_MAX: usize = 400;
/// Addresses a member may give for itself.
pub const ADDRESSES_MAX: usize = 4;
const NAME_BYTES_MAX: usize = 63;
const LABELS_MAX: usize = 16;

/// What a member says about itself. Not for pod data: every change is told to everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The node's name; 1 to 63 characters of a DNS label.
    pub name: String,
    /// Where the node listens for other nodes, best first, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
    /// Where it serves the Kubernetes API.
    pub api_address: Option<SocketAddr>,
    /// Version of the program.
    pub version: String,
    /// The highest level of replicated state this build knows; see DESIGN "Upgrades".
    pub level: u32,
    /// Small facts for others to read (capacity summary, store id, zone); at most 16.
    pub labels: BTreeMap<String, String>,
}

/// Why metadata cannot be spread. Nothing was changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// It would not fit the packets.
    #[error(
        "the node's metadata has {bytes} bytes, the limit is {METADATA_BYTES_MAX}; shorten or remove labels"
    )]
    TooLong {
        /// Encoded length.
        bytes: usize,
    },
    /// More than four addresses.
    #[error(
        "the node's metadata names {count} addresses, the limit is {ADDRESSES_MAX}; give the ones others can reach"
    )]
    TooManyAddresses {
        /// How many were given.
        count: usize,
    },
    /// Port 0 or an unspecified address: nobody could dial it.
    #[error("{address} is no address to dial; advertise a concrete address and port")]
    NotDialable {
        /// The useless address.
        address: SocketAddr,
    },
    /// Empty, too long, or with characters a name must not have.
    #[error("{name:?} is no node name; use 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, '-' and '.'")]
    BadName {
        /// The name as given.
        name: String,
    },
    /// More than 16 labels.
    #[error("the node's metadata has {count} labels, the limit is {LABELS_MAX}; remove some")]
    TooManyLabels {
        /// How many were given.
        count: usize,
    },
}

impl Metadata {
    /// Checks every limit; the receivers of gossip apply the same check and drop what fails it.
    pub fn check(&self) -> Result<(), Error> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || !self.name.chars().all(plain) {
            return Err(Error::BadName { name: self.name.clone() });
        }
        if self.addresses.len() > ADDRESSES_MAX {
            return Err(Error::TooManyAddresses { count: self.addresses.len() });
        }
        if let Some(address) = self.addresses.iter().find(|address| !is_dialable(address)) {
            return Err(Error::NotDialable { address: *address });
        }
        if self.labels.len() > LABELS_MAX {
            return Err(Error::TooManyLabels { count: self.labels.len() });
        }
        let bytes = codec::encode(self).len();
        if bytes > METADATA_BYTES_MAX {
            return Err(Error::TooLong { bytes });
        }
        Ok(())
    }
}

fn is_dialable(address: &SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

/// Orders what one node said at different times, across its restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) generation: u64,
    pub(super) instance: u32,
    pub(super) count: u32,
}

/// One word of one node, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Described {
    /// Who speaks; only its start matters here, not its renewals.
    pub(super) of: MemberId,
    pub(super) count: u32,
    /// Its last word: it leaves the cluster on purpose.
    pub(super) leaving: bool,
    pub(super) metadata: Arc<Metadata>,
}

impl Described {
    pub(super) fn version(&self) -> Version {
        Version { generation: self.of.generation, instance: self.of.instance, count: self.count }
    }
}

/// The newest word of each node. Shared between the core and the handler inside foca, which offers no
/// way to reach its handler; both live on one thread, so the lock is never contended.
#[derive(Clone, Default)]
pub(super) struct Descriptions(Arc<Mutex<Heard>>);

#[derive(Default)]
pub(super) struct Heard {
    pub(super) newest: BTreeMap<NodeId, Described>,
    /// Nodes of which something new was heard since the core last looked.
    pub(super) changed: BTreeSet<NodeId>,
}

impl Descriptions {
    pub(super) fn lock(&self) -> MutexGuard<'_, Heard> {
        // The map is whole between any two statements, so a panic elsewhere cannot have torn it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what another member told; says whether it was news.
    pub(super) fn learn(&self, me: NodeId, word: Described) -> bool {
        // Nobody else knows better what this node has to say.
        if word.of.node == me || word.metadata.check().is_err() {
            return false;
        }
        let mut heard = self.lock();
        let is_news = match heard.newest.get(&word.of.node) {
            Some(known) => known.version() < word.version(),
            None => heard.newest.len() < MEMBERS_MAX,
        };
        if is_news {
            heard.changed.insert(word.of.node);
            heard.newest.insert(word.of.node, word);
        }
        is_news
    }

    /// Takes this node's own word, whatever was there before.
    pub(super) fn say(&self, word: Described) {
        let mut heard = self.lock();
        heard.changed.insert(word.of.node);
        heard.newest.insert(word.of.node, word);
    }
}

/// Takes part in foca: judges the words that come with packets.
pub(super) struct Broadcasts {
    pub(super) me: NodeId,
    pub(super) descriptions: Descriptions,
}

/// A newer word of a node ends the spreading of its older ones.
pub(super) struct Key {
    node: NodeId,
    version: Version,
}

impl foca::Invalidates for Key {
    fn invalidates(&self, other: &Self) -> bool {
        self.node == other.node && self.version >= other.version
    }
}

impl foca::BroadcastHandler<MemberId> for Broadcasts {
    type Key = Key;
    type Error = codec::Error;

    fn receive_item(&mut self, data: &[u8], sender: Option<&MemberId>) -> Result<Option<Key>, codec::Error> {
        let word: Described = codec::decode_all(data)?;
        let key = Key { node: word.of.node, version: word.version() };
        // Without a sender it is this node's own word, already noted, now to be spread (again).
        let spread = sender.is_none() || self.descriptions.learn(self.me, word);
        Ok(spread.then_some(key))
    }
}
