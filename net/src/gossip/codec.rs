//! Packets as bytes: a format number, then foca's header, updates and broadcasts in bincode.
//!
//! Every decoder is bounded by the packet it reads from and refuses trailing bytes where none may be.

use bytes::{Buf, BufMut, Bytes};
use foca::{Header, Message};
use serde::{Serialize, de::DeserializeOwned};

use super::member::MemberId;

/// First byte of every packet and list. A build that finds another one drops the packet.
pub(super) const FORMAT: u8 = 1;

/// Most that any decoder here will claim: the whole member list of the largest cluster.
const DECODE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that are no packet of ours. Nothing was taken from them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Written by another format.
    #[error("gossip format {found}, this build speaks {FORMAT}; upgrade the older of the two nodes")]
    Format {
        /// The number found.
        found: u8,
    },
    /// Cut short, too long, or not what it says.
    #[error("gossip bytes cannot be read: {reason}")]
    Malformed {
        /// What the decoder stumbled over.
        reason: String,
    },
    /// There is no room left in the packet.
    #[error("no room left in the packet")]
    Full,
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<DECODE_BYTES_MAX>()
}

pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, config()).expect("plain structs in memory always encode")
}

/// Decodes one value from the front; also returns how many bytes it took.
fn decode_front<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), Error> {
    bincode::serde::decode_from_slice(bytes, config())
        .map_err(|error| Error::Malformed { reason: error.to_string() })
}

/// Decodes one value that must fill `bytes`.
pub(super) fn decode_all<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match decode_front(bytes)? {
        (value, used) if used == bytes.len() => Ok(value),
        (_, used) => Err(Error::Malformed { reason: format!("{} bytes too many", bytes.len() - used) }),
    }
}

/// foca's way to bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codec;

impl foca::Codec<MemberId> for Codec {
    type Error = Error;

    fn encode_header(&mut self, header: &Header<MemberId>, mut buf: impl BufMut) -> Result<(), Error> {
        let bytes = encode(header);
        if buf.remaining_mut() <= bytes.len() {
            return Err(Error::Full);
        }
        buf.put_u8(FORMAT);
        buf.put_slice(&bytes);
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<MemberId>, Error> {
        // foca reads from one slice, so the chunk is all there is.
        match buf.chunk().first() {
            Some(&FORMAT) => buf.advance(1),
            Some(&found) => return Err(Error::Format { found }),
            None => return Err(Error::Malformed { reason: "empty".into() }),
        }
        take(&mut buf)
    }

    fn encode_member(&mut self, member: &foca::Member<MemberId>, mut buf: impl BufMut) -> Result<(), Error> {
        let bytes = encode(member);
        if buf.remaining_mut() < bytes.len() {
            return Err(Error::Full);
        }
        buf.put_slice(&bytes);
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<foca::Member<MemberId>, Error> {
        take(&mut buf)
    }
}

fn take<T: DeserializeOwned>(buf: &mut impl Buf) -> Result<T, Error> {
    let (value, used) = decode_front(buf.chunk())?;
    buf.advance(used);
    Ok(value)
}

/// What the core must know of a packet before foca may see it.
pub(super) struct Peek {
    pub(super) header: Header<MemberId>,
    pub(super) updates: Vec<foca::Member<MemberId>>,
}

/// Reads header and updates in the layout that foca gives a packet.
pub(super) fn peek(packet: &Bytes) -> Result<Peek, Error> {
    use foca::Codec as _;

    let mut rest = &packet[..];
    let header = Codec.decode_header(&mut rest)?;
    let mut updates = Vec::new();
    if rest.len() >= 2 && header.message != Message::Broadcast {
        for _ in 0..rest.get_u16() {
            updates.push(Codec.decode_member(&mut rest)?);
        }
    }
    Ok(Peek { header, updates })
}
