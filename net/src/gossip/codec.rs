//! Packets as bytes: a format number, then foca's header, updates and the members' words about themselves.
//!
//! Every decoder is bounded by the packet it reads from and refuses trailing bytes where none may be.

use bytes::{Buf, BufMut, Bytes, TryGetError};
use foca::{Header, Message};
use serde::{Serialize, de::DeserializeOwned};

use super::member::MemberId;
use crate::identity::NodeId;

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

/// Decodes one value that must fill `bytes`.
pub(super) fn decode_all<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match bincode::serde::decode_from_slice(bytes, config()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(Error::Malformed { reason: format!("{} bytes too many", bytes.len() - used) }),
        Err(error) => Err(Error::Malformed { reason: error.to_string() }),
    }
}

/// foca's way to bytes. Headers and updates are most of the traffic, so they are written out by hand, in
/// fields of fixed size, big end first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codec;

impl foca::Codec<MemberId> for Codec {
    type Error = Error;

    fn encode_header(&mut self, header: &Header<MemberId>, mut buf: impl BufMut) -> Result<(), Error> {
        need_room(&buf, HEADER_BYTES_MAX)?;
        buf.put_u8(FORMAT);
        put_id(&mut buf, &header.src);
        buf.put_u16(header.src_incarnation);
        put_id(&mut buf, &header.dst);
        let (number, probe, third) = match &header.message {
            Message::Announce => (0, None, None),
            Message::Feed => (1, None, None),
            Message::Gossip => (2, None, None),
            Message::Broadcast => (3, None, None),
            Message::TurnUndead => (4, None, None),
            Message::Ping(probe) => (5, Some(probe), None),
            Message::Ack(probe) => (6, Some(probe), None),
            Message::PingReq { target, probe_number } => (7, Some(probe_number), Some(target)),
            Message::IndirectPing { origin, probe_number } => (8, Some(probe_number), Some(origin)),
            Message::IndirectAck { target, probe_number } => (9, Some(probe_number), Some(target)),
            Message::ForwardedAck { origin, probe_number } => (10, Some(probe_number), Some(origin)),
        };
        buf.put_u8(number);
        if let Some(probe) = probe {
            buf.put_u8(*probe);
        }
        if let Some(third) = third {
            put_id(&mut buf, third);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<MemberId>, Error> {
        match buf.try_get_u8() {
            Ok(FORMAT) => {}
            Ok(found) => return Err(Error::Format { found }),
            Err(error) => return Err(error.into()),
        }
        let src = take_id(&mut buf)?;
        let src_incarnation = buf.try_get_u16()?;
        let dst = take_id(&mut buf)?;
        let message = match buf.try_get_u8()? {
            0 => Message::Announce,
            1 => Message::Feed,
            2 => Message::Gossip,
            3 => Message::Broadcast,
            4 => Message::TurnUndead,
            5 => Message::Ping(buf.try_get_u8()?),
            6 => Message::Ack(buf.try_get_u8()?),
            7 => Message::PingReq { probe_number: buf.try_get_u8()?, target: take_id(&mut buf)? },
            8 => Message::IndirectPing { probe_number: buf.try_get_u8()?, origin: take_id(&mut buf)? },
            9 => Message::IndirectAck { probe_number: buf.try_get_u8()?, target: take_id(&mut buf)? },
            10 => Message::ForwardedAck { probe_number: buf.try_get_u8()?, origin: take_id(&mut buf)? },
            other => return Err(Error::Malformed { reason: format!("message number {other}") }),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(&mut self, member: &foca::Member<MemberId>, mut buf: impl BufMut) -> Result<(), Error> {
        need_room(&buf, UPDATE_BYTES)?;
        put_id(&mut buf, member.id());
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            foca::State::Alive => 0,
            foca::State::Suspect => 1,
            foca::State::Down => 2,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<foca::Member<MemberId>, Error> {
        let id = take_id(&mut buf)?;
        let incarnation = buf.try_get_u16()?;
        let state = match buf.try_get_u8()? {
            0 => foca::State::Alive,
            1 => foca::State::Suspect,
            2 => foca::State::Down,
            other => return Err(Error::Malformed { reason: format!("state number {other}") }),
        };
        Ok(foca::Member::new(id, incarnation, state))
    }
}

const ID_BYTES: usize = 16 + 8 + 4 + 4;
const UPDATE_BYTES: usize = ID_BYTES + 2 + 1;
/// Format, sender, incarnation, receiver, message with probe and third party.
const HEADER_BYTES_MAX: usize = 1 + ID_BYTES + 2 + ID_BYTES + 1 + 1 + ID_BYTES;

impl From<TryGetError> for Error {
    fn from(error: TryGetError) -> Self {
        Error::Malformed { reason: error.to_string() }
    }
}

fn need_room(buf: &impl BufMut, bytes: usize) -> Result<(), Error> {
    if buf.remaining_mut() < bytes { Err(Error::Full) } else { Ok(()) }
}

fn put_id(buf: &mut impl BufMut, id: &MemberId) {
    buf.put_slice(&id.node.0);
    buf.put_u64(id.generation);
    buf.put_u32(id.instance);
    buf.put_u32(id.renewal);
}

fn take_id(buf: &mut impl Buf) -> Result<MemberId, Error> {
    let mut node = NodeId([0; 16]);
    buf.try_copy_to_slice(&mut node.0)?;
    Ok(MemberId {
        node,
        generation: buf.try_get_u64()?,
        instance: buf.try_get_u32()?,
        renewal: buf.try_get_u32()?,
    })
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

#[cfg(test)]
mod tests {
    use foca::Codec as _;

    use super::*;

    fn id(number: u8) -> MemberId {
        MemberId { node: NodeId([number; 16]), generation: 7 << 40, instance: u32::MAX, renewal: 2 }
    }

    #[test]
    fn every_header_comes_back_as_it_was() {
        let (probe_number, target, origin) = (9, id(3), id(3));
        let messages = [
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::Broadcast,
            Message::TurnUndead,
            Message::Ping(probe_number),
            Message::Ack(probe_number),
            Message::PingReq { target, probe_number },
            Message::IndirectPing { origin, probe_number },
            Message::IndirectAck { target, probe_number },
            Message::ForwardedAck { origin, probe_number },
        ];
        for message in messages {
            let header = Header { src: id(1), src_incarnation: 500, dst: id(2), message };
            let mut bytes = Vec::new();
            Codec.encode_header(&header, &mut bytes).unwrap();
            assert!(bytes.len() <= HEADER_BYTES_MAX);
            let mut rest = &bytes[..];
            assert_eq!(Codec.decode_header(&mut rest).unwrap(), header);
            assert!(rest.is_empty());
            for cut in 0..bytes.len() {
                assert!(Codec.decode_header(&bytes[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn every_update_comes_back_as_it_was() {
        for state in [foca::State::Alive, foca::State::Suspect, foca::State::Down] {
            let member = foca::Member::new(id(4), 3, state);
            let mut bytes = Vec::new();
            Codec.encode_member(&member, &mut bytes).unwrap();
            assert_eq!(bytes.len(), UPDATE_BYTES);
            assert_eq!(Codec.decode_member(&bytes[..]).unwrap(), member);
        }
    }

    #[test]
    fn an_update_that_does_not_fit_leaves_the_packet_clean() {
        let mut packet = Vec::new();
        let mut room = (&mut packet).limit(UPDATE_BYTES - 1);
        assert!(matches!(Codec.encode_member(&foca::Member::alive(id(1)), &mut room), Err(Error::Full)));
        assert!(packet.is_empty());
    }

    #[test]
    fn a_packet_of_another_format_is_named_as_such() {
        assert!(matches!(peek(&Bytes::from_static(&[9, 1, 2])), Err(Error::Format { found: 9 })));
    }
}
