//! What else travels over the one UDP port: small datagrams beside QUIC's, for who has no connection yet.
//!
//! Every QUIC packet has the bit 0x40 of its first byte set (RFC 9000 §17.2), unless both ends agreed to
//! play with it (RFC 9287), which this endpoint never offers. So a datagram without it is ours.
//!
//! Not here: what they say (`beacon`). They may come from anybody and carry no proof.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use quinn::udp;
use tokio::sync::mpsc;

use super::socket::Socket;
use crate::address_book::plain;

/// The bit of a datagram's first byte that QUIC always sets.
pub(crate) const QUIC_BIT: u8 = 0x40;
/// Longest datagram beside QUIC's; longer ones are dropped unread.
pub(crate) const BESIDE_BYTES_MAX: usize = 400;
/// Datagrams received and not yet looked at; more than a cluster of fifty answers at once.
const INBOX_MAX: usize = 128;

/// A datagram and where it came from.
pub(crate) type Received = (SocketAddr, Bytes);

/// The way out and in beside QUIC, on the same socket.
pub(crate) struct Beside {
    socket: Arc<UdpSocket>,
    received: Mutex<Option<mpsc::Receiver<Received>>>,
}

/// Splits `socket`: what QUIC shall use, and what goes beside it. Needs a tokio runtime.
pub(super) fn share(socket: UdpSocket) -> io::Result<(Arc<Socket>, Beside)> {
    let beside = socket.try_clone()?;
    beside.set_broadcast(true)?;
    let (inbox, received) = mpsc::channel(INBOX_MAX);
    let shared = Arc::new(Socket::new(socket, Inbox(inbox))?);
    Ok((shared, Beside { socket: Arc::new(beside), received: Mutex::new(Some(received)) }))
}

impl Beside {
    /// What comes in. There is one reader: later calls get nothing.
    pub(crate) fn received(&self) -> Option<mpsc::Receiver<Received>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The socket itself, for sending and for its memberships in groups.
    pub(crate) fn socket(&self) -> Arc<UdpSocket> {
        self.socket.clone()
    }
}

/// Sends a datagram, at once or not at all. `source`, an address of this machine, also chooses the link for
/// a receiver that is a group or all of a link.
pub(crate) fn send(
    socket: &UdpSocket,
    bytes: &[u8],
    to: SocketAddr,
    source: Option<Ipv4Addr>,
) -> io::Result<()> {
    debug_assert!(bytes.first().is_some_and(|first| first & QUIC_BIT == 0), "that would be QUIC");
    let to = match (socket.local_addr()?, to) {
        // A dual-stack socket takes IPv4 addresses in their mapped form only.
        (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
            SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
        }
        (_, to) => to,
    };
    let info = source.map(|source| libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from(source).to_be() },
        ipi_addr: libc::in_addr { s_addr: 0 },
    });
    let control: Vec<ControlMessage<'_>> = info.iter().map(ControlMessage::Ipv4PacketInfo).collect();
    let to = SockaddrStorage::from(to);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}

/// Where what comes beside QUIC goes to.
#[derive(Debug)]
pub(super) struct Inbox(mpsc::Sender<Received>);

impl Inbox {
    /// Takes what is not QUIC's out of what has just been received.
    pub(super) fn sort(&self, bufs: &[IoSliceMut<'_>], metas: &mut [udp::RecvMeta]) {
        for (meta, buf) in metas.iter_mut().zip(bufs) {
            let mut ours = false;
            // The kernel may hand over several datagrams of one sender as one, all but the last of them of
            // one length.
            for datagram in buf[..meta.len].chunks(meta.stride.max(1)) {
                if datagram[0] & QUIC_BIT == 0 {
                    ours = true;
                    self.take(plain(meta.addr), datagram);
                }
            }
            // Between others it stays where it is: QUIC drops what lacks the bit.
            if ours && meta.len <= meta.stride {
                meta.len = 0;
            }
        }
    }

    fn take(&self, from: SocketAddr, datagram: &[u8]) {
        if datagram.len() <= BESIDE_BYTES_MAX {
            // Lost when nobody reads or too many wait, as any datagram may be.
            let _ = self.0.try_send((from, Bytes::copy_from_slice(datagram)));
        }
    }
}
