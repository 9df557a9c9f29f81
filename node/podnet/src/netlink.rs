//! Several route-netlink requests in one `send`, acknowledged one by one.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

/// What the kernel should do if the thing is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Fail with `EEXIST`.
    Create,
    /// Put the new one in its place, whoever made the old one: only where everything is ours.
    Replace,
    /// Let the new one stand behind it; fail with `EEXIST` if they are the same.
    Append,
    /// A request that creates nothing (delete, set).
    Plain,
}

/// A socket of the network namespace in which it was *opened*, whichever thread uses it later.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // Errors then quote the kernel's words, not our request.
        socket.set_cap_ack(true)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends `requests` as one batch and waits for every answer; the first refusal is returned.
    /// Route netlink has no transactions: requests after a refused one are carried out as well.
    pub(crate) fn batch(&mut self, requests: Vec<(RouteNetlinkMessage, Mode)>) -> io::Result<()> {
        let mut waiting = requests.len();
        let mut bytes = Vec::new();
        for (payload, mode) in requests {
            let flags = match mode {
                Mode::Create => NLM_F_CREATE | NLM_F_EXCL,
                Mode::Replace => NLM_F_CREATE | NLM_F_REPLACE,
                Mode::Append => NLM_F_CREATE | NLM_F_APPEND,
                Mode::Plain => 0,
            };
            self.append(&mut bytes, payload, NLM_F_REQUEST | NLM_F_ACK | flags);
        }
        self.send(&bytes)?;
        let mut refusal = None;
        while waiting > 0 {
            for answer in self.receive()? {
                if let NetlinkPayload::Error(error) = answer.payload {
                    waiting = waiting.saturating_sub(1);
                    if error.code.is_some() && refusal.is_none() {
                        refusal = Some(error.to_io());
                    }
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Asks for everything of one kind.
    pub(crate) fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, request, NLM_F_REQUEST | NLM_F_DUMP);
        self.send(&bytes)?;
        let mut found = Vec::new();
        loop {
            for answer in self.receive()? {
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, payload: RouteNetlinkMessage, flags: u16) {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(payload));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The messages of one datagram.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        let mut messages = Vec::new();
        while rest.len() >= 16 {
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            messages.push(message);
            if length < 16 || length >= rest.len() {
                break;
            }
            rest = &rest[length..];
        }
        Ok(messages)
    }
}
