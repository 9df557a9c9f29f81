//! What travels beside QUIC: at most 400 bytes, told apart by their first six.
//!
//! A word of a member is signed with the node's key, and the node's id is the hash of that key, so it needs
//! no certificate: whether the key is a member's, the receiver knows. The cluster's id does not travel, only
//! a keyed hash of a fresh salt: who does not know the id and the incarnation cannot tell which cluster speaks.

use std::net::SocketAddr;

use ring::{hmac, signature};
use serde::{Deserialize, Serialize};

use crate::{
    encoding,
    endpoint::beside::{BESIDE_BYTES_MAX, QUIC_BIT},
    gossip::metadata::ADDRESSES_MAX,
    identity::{self, Identity, NodeId},
    incarnation::Tag,
};

/// The first byte lacks QUIC's bit and is none of STUN, DTLS, TURN or RTP (RFC 9443).
const MAGIC: [u8; 6] = *b"\x05skein";
const _: () = assert!(MAGIC[0] & QUIC_BIT == 0);
const VERSION: u8 = 1;
/// Signed in front of a word, so that the signature means nothing elsewhere.
const CONTEXT: &[u8] = b"skein beacon word v1\0";

/// Missing members that a word names; who misses more asks everybody.
pub(super) const WANTED_MAX: usize = 8;
/// The longest signature of ECDSA P-256 in DER.
const SIGNATURE_BYTES_MAX: usize = 72;
/// What stands before the point in every P-256 key in SPKI (RFC 5480).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point.
const POINT_BYTES: usize = 65;

/// Eight hex digits of a node's id: enough to name one of a few.
pub(super) type Short = [u8; 4];

pub(super) fn short(node: NodeId) -> Short {
    *node.0.first_chunk().expect("an id has 16 bytes")
}

/// Drawn for each question, and given back with its answer.
pub(super) type Nonce = [u8; 16];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message {
    /// A member says where it is.
    Word(Word),
    /// A machine of no cluster asks whether there is any.
    Anyone { nonce: Nonce },
    /// There is: the answer to it.
    Here { nonce: Nonce },
    /// A process asks whether another one runs with its key, and that one answers with the same salt.
    Twin(Word),
    /// Somebody does, and this is where it was last seen.
    Seen { nonce: Nonce, at: SocketAddr },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Word {
    claim: Claim,
    signature: Vec<u8>,
}

/// The signed part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    salt: Nonce,
    /// Keyed hash of the salt; the key is the cluster's id and incarnation.
    tag: [u8; 16],
    /// The speaker's public key, SPKI in DER.
    key: Vec<u8>,
    said: Said,
}

/// What a member says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    /// Which start of the node and which word since then: the order of its words.
    pub(super) generation: u64,
    pub(super) count: u32,
    /// Whether it wants to hear where the others are.
    pub(super) asks: bool,
    /// Whom it misses; empty for everybody.
    pub(super) wanted: Vec<Short>,
    /// Where it listens, best first.
    pub(super) addresses: Vec<SocketAddr>,
}

/// Why a datagram is none of ours. Nothing was taken from it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("not a word of this program")]
    Foreign,
    #[error(transparent)]
    Encoding(#[from] encoding::DecodeError),
    #[error("a word beyond its limits")]
    TooMuch,
    #[error("a key that is not of P-256")]
    Key,
}

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        let bytes = [&MAGIC[..], &encoding::encode(VERSION, self)].concat();
        debug_assert!(bytes.len() <= BESIDE_BYTES_MAX, "{} bytes", bytes.len());
        bytes
    }

    /// Takes a datagram apart; nothing in it is proved yet.
    pub(super) fn decode(bytes: &[u8]) -> Result<Message, Error> {
        let body = bytes.strip_prefix(&MAGIC).ok_or(Error::Foreign)?;
        if bytes.len() > BESIDE_BYTES_MAX {
            return Err(Error::TooMuch);
        }
        let message: Message = encoding::decode(VERSION, body)?;
        if let Message::Word(word) | Message::Twin(word) = &message {
            let said = &word.claim.said;
            if said.addresses.len() > ADDRESSES_MAX
                || said.wanted.len() > WANTED_MAX
                || word.signature.len() > SIGNATURE_BYTES_MAX
            {
                return Err(Error::TooMuch);
            }
            let point = word.claim.key.strip_prefix(&SPKI_PREFIX).ok_or(Error::Key)?;
            if point.len() != POINT_BYTES {
                return Err(Error::Key);
            }
        }
        Ok(message)
    }
}

impl Word {
    /// Signs what this node says to its cluster. Costs one signature.
    pub(super) fn sign(
        identity: &Identity,
        belongs: &Tag,
        salt: Nonce,
        mut said: Said,
    ) -> Result<Word, identity::Error> {
        said.addresses.truncate(ADDRESSES_MAX);
        said.wanted.truncate(WANTED_MAX);
        let claim = Claim { salt, tag: tag(belongs, &salt), key: identity.public_key(), said };
        let signature = identity.sign(&claim.signed())?;
        Ok(Word { claim, signature })
    }

    /// Who claims to speak.
    pub(super) fn node(&self) -> NodeId {
        NodeId::of_public_key(&self.claim.key)
    }

    /// Drawn by whoever spoke first: an answer to a question has the question's.
    pub(super) fn salt(&self) -> Nonce {
        self.claim.salt
    }

    pub(super) fn said(&self) -> &Said {
        &self.claim.said
    }

    /// Whether the speaker knows this cluster's id and belongs to this incarnation of it. Costs one hash.
    pub(super) fn is_of(&self, belongs: &Tag) -> bool {
        self.claim.tag == tag(belongs, &self.claim.salt)
    }

    /// Whether [`Word::node`] signed it. Costs one verification of a signature.
    pub(super) fn is_signed(&self) -> bool {
        let point = &self.claim.key[SPKI_PREFIX.len().min(self.claim.key.len())..];
        let key = signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, point);
        key.verify(&self.claim.signed(), &self.signature).is_ok()
    }
}

impl Claim {
    fn signed(&self) -> Vec<u8> {
        [CONTEXT, &encoding::encode(VERSION, self)].concat()
    }
}

fn tag(belongs: &Tag, salt: &Nonce) -> [u8; 16] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &belongs.to_bytes());
    let tag = hmac::sign(&key, &[b"skein beacon\0".as_slice(), salt].concat());
    *tag.as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use proptest::prelude::*;

    use super::*;
    use crate::loopback;

    const OURS: Tag = loopback::tag(7, 1);

    fn word(identity: &Identity, said: Said) -> Word {
        Word::sign(identity, &OURS, [9; 16], said).unwrap()
    }

    fn long() -> Said {
        let address = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from([0xff; 16]), u16::MAX, 0, 0));
        Said {
            generation: u64::MAX,
            count: u32::MAX,
            asks: true,
            wanted: vec![[0xff; 4]; WANTED_MAX + 1],
            addresses: vec![address; ADDRESSES_MAX + 1],
        }
    }

    #[test]
    fn a_word_says_who_speaks_to_which_cluster_and_that_nobody_changed_it() {
        let identity = Identity::ephemeral().unwrap();
        let said = Said { generation: 3, count: 1, asks: true, ..Said::default() };
        let bytes = Message::Word(word(&identity, said.clone())).encode();
        let Message::Word(heard) = Message::decode(&bytes).unwrap() else { panic!("a word") };
        assert_eq!((heard.node(), heard.said()), (identity.node(), &said));
        assert!(heard.is_of(&OURS));
        for other in [loopback::tag(8, 1), loopback::tag(7, 2)] {
            assert!(!heard.is_of(&other));
        }
        assert!(heard.is_signed());
        let stolen = Claim { key: Identity::ephemeral().unwrap().public_key(), ..heard.claim.clone() };
        assert!(!Word { claim: stolen, ..heard }.is_signed());
    }

    #[test]
    fn the_longest_word_fits() {
        let identity = Identity::ephemeral().unwrap();
        // Signatures differ in length from one to the next.
        let longest = (0..50).map(|_| Message::Word(word(&identity, long())).encode().len()).max().unwrap();
        assert!(longest <= BESIDE_BYTES_MAX, "{longest}");
    }

    #[test]
    fn the_question_of_a_stranger_is_as_long_as_its_answer() {
        let ask = Message::Anyone { nonce: [1; 16] }.encode();
        let answer = Message::Here { nonce: [1; 16] }.encode();
        assert_eq!(ask.len(), answer.len(), "nobody can make us send more than it sends");
    }

    #[test]
    fn what_is_beyond_its_limits_is_refused() {
        let identity = Identity::ephemeral().unwrap();
        let good = word(&identity, Said::default());
        let with = |change: &dyn Fn(&mut Word)| {
            let mut word = good.clone();
            change(&mut word);
            let bytes = [&MAGIC[..], &encoding::encode(VERSION, &Message::Word(word))].concat();
            Message::decode(&bytes)
        };
        assert!(with(&|_| {}).is_ok());
        assert!(with(&|word| word.claim.said.wanted = vec![[0; 4]; WANTED_MAX + 1]).is_err());
        assert!(with(&|word| word.claim.said.addresses = long().addresses).is_err());
        assert!(with(&|word| word.signature = vec![0; SIGNATURE_BYTES_MAX + 1]).is_err());
        assert!(with(&|word| word.claim.key.push(0)).is_err());
        assert!(with(&|word| word.claim.key[5] ^= 1).is_err());
        let mut newer = Message::Word(good.clone()).encode();
        newer[MAGIC.len()] = VERSION + 1;
        assert!(Message::decode(&newer).unwrap_err().to_string().contains("version 2"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_word_of_ours_by_chance(
            bytes in proptest::collection::vec(any::<u8>(), 0..500),
            led in any::<bool>(),
        ) {
            let bytes = if led { [&MAGIC[..], &[VERSION], &bytes].concat() } else { bytes };
            if let Ok(Message::Word(word)) = Message::decode(&bytes) {
                prop_assert!(!word.is_of(&OURS) && !word.is_signed());
            }
        }

        #[test]
        fn a_word_with_any_bit_changed_or_its_end_cut_off_is_none(
            place in 0usize..400,
            bit in 0u8..8,
            keep in 0usize..400,
        ) {
            let identity = Identity::ephemeral().unwrap();
            let whole = Message::Word(word(&identity, long())).encode();
            let mut changed = whole.clone();
            let place = place % changed.len();
            changed[place] ^= 1 << bit;
            if let Ok(Message::Word(word)) = Message::decode(&changed) {
                prop_assert!(!(word.is_of(&OURS) && word.is_signed()));
            }
            prop_assert!(Message::decode(&whole[..keep.min(whole.len() - 1)]).is_err());
        }
    }
}
