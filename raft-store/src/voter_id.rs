//! The name under which a node votes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A node's key together with the id of its data directory.
///
/// Raft trusts that a voter remembers every vote and entry it ever synced. A node whose disk was lost
/// keeps its key but draws a new `store`, so it comes back as somebody else and can break no promise
/// it forgot.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VoterId {
    /// First 16 bytes of the SHA-256 of the node's public key.
    pub node: [u8; 16],
    /// Drawn once, when the data directory is made.
    pub store: [u8; 8],
}

impl fmt::Display for VoterId {
    /// `<node in hex>.<store in hex>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.node.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(".")?;
        self.store.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VoterId {
    /// As [`Display`](fmt::Display): logs are read by people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Openraft's storage suite makes its voters from numbers.
#[cfg(test)]
impl From<u64> for VoterId {
    fn from(number: u64) -> Self {
        let mut node = [0; 16];
        node[8..].copy_from_slice(&number.to_be_bytes());
        VoterId { node, store: [0; 8] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voter_shows_its_node_and_its_directory_in_hex() {
        let voter = VoterId { node: [0xab; 16], store: [1; 8] };
        assert_eq!(voter.to_string(), "abababababababababababababababab.0101010101010101");
        assert_eq!(format!("{voter:?}"), voter.to_string());
    }
}
