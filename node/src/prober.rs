//! Tries to reach another node's kernel: a TCP connect to its API port and an ICMP echo.
//!
//! The answers come from below the daemon, so a paused or starved one still answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};
use skein_control::judge::Answer;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One try: what answered within `limit`, if anything.
///
/// Errors: this machine itself could not try (no descriptor, no route, no permission). That is no answer
/// and no silence either.
pub(crate) async fn try_once(api: SocketAddr, limit: Duration) -> io::Result<Option<Answer>> {
    let (connected, echoed) = tokio::join!(connect(api, limit), echo(api.ip(), limit));
    match connected? {
        Some(answer) => Ok(Some(answer)),
        None => Ok(echoed.then_some(Answer::Echo)),
    }
}

async fn connect(api: SocketAddr, limit: Duration) -> io::Result<Option<Answer>> {
    match timeout(limit, TcpStream::connect(api)).await {
        Ok(Ok(_)) => Ok(Some(Answer::Accepts)),
        Ok(Err(error)) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED | Errno::ECONNRESET) => Ok(Some(Answer::Refused)),
            // The neighbour does not answer: that is the other machine's silence, not ours.
            Some(Errno::EHOSTUNREACH | Errno::ETIMEDOUT) => Ok(None),
            _ => Err(error),
        },
        Err(_) => Ok(None),
    }
}

/// Whether an echo came back. Where this user may not send one, none does: the connect decides alone.
async fn echo(address: IpAddr, limit: Duration) -> bool {
    let IpAddr::V4(address) = address else { return false };
    // A raw socket waits in a thread: tries are few, and only while somebody is silent.
    tokio::task::spawn_blocking(move || ping(address, limit).unwrap_or(false)).await.unwrap_or(false)
}

fn ping(address: Ipv4Addr, limit: Duration) -> io::Result<bool> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::Icmp,
    )?;
    // The socket's number is unique in this process, and the process' id among those of the machine.
    let id = (std::process::id() as u16) ^ (socket.as_raw_fd() as u16).rotate_left(8);
    let request = request(id);
    sendto(
        socket.as_raw_fd(),
        &request,
        &SockaddrIn::from(SocketAddrV4::new(address, 0)),
        MsgFlags::empty(),
    )?;
    let end = std::time::Instant::now() + limit;
    while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
        if !readable(&socket, left)? {
            return Ok(false);
        }
        let mut packet = [0; 128];
        let length = match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if is_answer(&packet[..length], address, id) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn readable(socket: &OwnedFd, left: Duration) -> io::Result<bool> {
    let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], wait) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// An echo request (RFC 792): type 8, code 0, checksum, identifier, sequence 1.
fn request(id: u16) -> [u8; 8] {
    let [high, low] = id.to_be_bytes();
    let mut packet = [8, 0, 0, 0, high, low, 0, 1];
    let sum =
        packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

/// Whether `packet`, with its IP header, is the echo reply of `address` to `id`.
fn is_answer(packet: &[u8], address: Ipv4Addr, id: u16) -> bool {
    let Some(header) = packet.first().map(|first| usize::from(first & 0x0f) * 4) else { return false };
    let from_there = packet.get(12..16) == Some(address.octets().as_slice());
    let reply = packet.get(header..header + 8);
    from_there && reply.is_some_and(|reply| reply[0] == 0 && reply[4..6] == id.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_carries_a_checksum_that_sums_to_ones() {
        for id in [0, 1, 0xbeef, 0xffff] {
            let packet = request(id);
            let sum: u32 =
                packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{id}");
        }
    }

    #[test]
    fn only_the_reply_of_that_address_to_that_request_counts() {
        let address = Ipv4Addr::new(10, 0, 0, 7);
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 7, 10, 0, 0, 1];
        packet.extend([0, 0, 0, 0, 0x12, 0x34, 0, 1]);
        assert!(is_answer(&packet, address, 0x1234));
        assert!(!is_answer(&packet, address, 0x1235));
        assert!(!is_answer(&packet, Ipv4Addr::new(10, 0, 0, 8), 0x1234));
        assert!(!is_answer(&packet[..27], address, 0x1234));
        packet[20] = 8;
        assert!(!is_answer(&packet, address, 0x1234));
        assert!(!is_answer(&[], address, 0));
    }

    #[tokio::test]
    async fn a_listening_port_accepts_and_a_closed_one_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limit = Duration::from_secs(10);
        assert_eq!(try_once(address, limit).await.unwrap(), Some(Answer::Accepts));
        drop(listener);
        assert_eq!(try_once(address, limit).await.unwrap(), Some(Answer::Refused));
    }
}
