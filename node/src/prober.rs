//! Tries to reach another node's kernel: a TCP connect to its API port and an ICMP echo.
//!
//! The answers come from below the daemon, so a paused or starved one still answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use skein_control::judge::Answer;
use skein_podnet::neighbours;
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tracing::debug;

/// One try: what answered within `limit`, if anything.
///
/// Errors: this machine itself could not try (no descriptor, no route, no permission). That is no answer
/// and no silence either.
pub(crate) async fn try_once(api: SocketAddr, limit: Duration) -> io::Result<Option<Answer>> {
    try_over(None, api, limit).await
}

/// Lets the kernel ask anew who `address` is on the link.
pub(crate) async fn ask_anew(address: IpAddr) {
    let asked = tokio::task::spawn_blocking(move || neighbours::ask_again(address));
    if let Ok(Err(error)) = asked.await {
        // An ordinary user may not; the try that follows is worth as much as before.
        debug!(%address, %error, "could not ask anew who a neighbour is");
    }
}

/// One try over one link only, whatever the routes say.
pub(crate) async fn try_over(
    interface: Option<&str>,
    at: SocketAddr,
    limit: Duration,
) -> io::Result<Option<Answer>> {
    let (connected, echoed) = tokio::join!(connect(interface, at, limit), echo(interface, at, limit));
    match connected? {
        Some(answer) => Ok(Some(answer)),
        None => Ok(echoed.then_some(Answer::Echo)),
    }
}

async fn connect(interface: Option<&str>, at: SocketAddr, limit: Duration) -> io::Result<Option<Answer>> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    match timeout(limit, socket.connect(at)).await {
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
async fn echo(interface: Option<&str>, at: SocketAddr, limit: Duration) -> bool {
    let interface = interface.map(str::to_owned);
    // A raw socket waits in a thread: tries are few, and only while somebody is silent.
    let pinged = tokio::task::spawn_blocking(move || ping(interface.as_deref(), at, limit).unwrap_or(false));
    pinged.await.unwrap_or(false)
}

fn ping(interface: Option<&str>, at: SocketAddr, limit: Duration) -> io::Result<bool> {
    let (family, protocol) = match at {
        SocketAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        SocketAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)?;
    if let Some(interface) = interface {
        setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
    }
    // The socket's number is unique in this process, and the process' id among those of the machine.
    let id = (std::process::id() as u16) ^ (socket.as_raw_fd() as u16).rotate_left(8);
    let mut to = at;
    // Of a raw socket the port is the protocol, and none is right.
    to.set_port(0);
    sendto(socket.as_raw_fd(), &request(at.ip(), id), &SockaddrStorage::from(to), MsgFlags::empty())?;
    let end = std::time::Instant::now() + limit;
    while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
        if !readable(&socket, left)? {
            return Ok(false);
        }
        let mut packet = [0; 128];
        let (length, from) = match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut packet) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if from.and_then(|from| ip_of(&from)) == Some(at.ip()) && is_reply(&packet[..length], at.ip(), id) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(v4.ip().into()),
        (_, Some(v6)) => Some(v6.ip().into()),
        (None, None) => None,
    }
}

fn readable(socket: &OwnedFd, left: Duration) -> io::Result<bool> {
    let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], wait) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// An echo request (RFC 792, RFC 4443): type, code 0, checksum, identifier, sequence 1.
fn request(to: IpAddr, id: u16) -> [u8; 8] {
    let [high, low] = id.to_be_bytes();
    // Of ICMPv6 the kernel makes the checksum, which covers the addresses too.
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let mut packet = [kind, 0, 0, 0, high, low, 0, 1];
    let sum =
        packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

/// Whether `packet` is an echo reply to `id`: with its IP header where it came over IPv4, without over IPv6.
fn is_reply(packet: &[u8], from: IpAddr, id: u16) -> bool {
    let (header, kind) = match from {
        IpAddr::V4(_) => (packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4), 0),
        IpAddr::V6(_) => (0, 129),
    };
    let reply = packet.get(header..header + 8);
    reply.is_some_and(|reply| reply[0] == kind && reply[4..6] == id.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    #[test]
    fn an_echo_request_carries_a_checksum_that_sums_to_ones() {
        for id in [0, 1, 0xbeef, 0xffff] {
            let packet = request(V4, id);
            let sum: u32 =
                packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{id}");
        }
    }

    #[test]
    fn only_a_reply_to_that_request_counts() {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 7, 10, 0, 0, 1];
        packet.extend([0, 0, 0, 0, 0x12, 0x34, 0, 1]);
        assert!(is_reply(&packet, V4, 0x1234));
        assert!(!is_reply(&packet, V4, 0x1235));
        assert!(!is_reply(&packet[..27], V4, 0x1234));
        packet[20] = 8;
        assert!(!is_reply(&packet, V4, 0x1234));
        assert!(!is_reply(&[], V4, 0));
        assert!(is_reply(&[129, 0, 0, 0, 0x12, 0x34, 0, 1], V6, 0x1234));
        assert!(!is_reply(&[128, 0, 0, 0, 0x12, 0x34, 0, 1], V6, 0x1234));
        assert!(!is_reply(&[129, 0, 0], V6, 0x1234));
    }

    #[test]
    fn a_kernel_answers_an_echo_over_the_link_it_was_asked_on() {
        for ip in [V4, V6] {
            let at = SocketAddr::new(ip, 53);
            match ping(Some("lo"), at, Duration::from_secs(10)) {
                Ok(answered) => assert!(answered, "{ip}"),
                // An ordinary user may not; a machine may have no IPv6.
                Err(error) => eprintln!("skipped {ip}: {error}"),
            }
        }
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
