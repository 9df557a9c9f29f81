//! Sockets that listen. At `[::]` they speak IPv4 as well, whatever the system's default is, and on a kernel
//! without IPv6 they speak IPv4 alone.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
        sockopt,
    },
};

/// Connections that wait to be accepted, as the standard library has it.
const BACKLOG: i32 = 128;

/// A UDP socket at `at`.
pub fn udp(at: SocketAddr) -> io::Result<UdpSocket> {
    open(at, SockType::Datagram).map(UdpSocket::from)
}

/// A TCP socket at `at` that takes connections; not blocking, as tokio wants it.
pub fn tcp(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(at, SockType::Stream)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn open(at: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    match open_at(at, kind) {
        Err(Errno::EAFNOSUPPORT) if at.is_ipv6() && at.ip().is_unspecified() => {
            Ok(open_at(SocketAddr::from((Ipv4Addr::UNSPECIFIED, at.port())), kind)?)
        }
        opened => Ok(opened?),
    }
}

fn open_at(at: SocketAddr, kind: SockType) -> Result<OwnedFd, Errno> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if at.is_ipv6() && at.ip().is_unspecified() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    if kind == SockType::Stream {
        // Connections of the process before, which linger for a minute, keep nobody from the port.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpStream, time::Duration};

    use super::*;

    const ANY: &str = "[::]:0";

    #[test]
    fn all_addresses_are_those_of_both_families() {
        let socket = udp(ANY.parse().unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let port = socket.local_addr().unwrap().port();
        let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
        caller.send_to(b"hello", ("127.0.0.1", port)).unwrap();
        let mut bytes = [0; 8];
        let (length, from) = socket.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..length], from.port()), (&b"hello"[..], caller.local_addr().unwrap().port()));
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_refused_and_one_that_was_left_is_not() {
        let first = tcp(ANY.parse().unwrap()).unwrap();
        let at = first.local_addr().unwrap();
        assert_eq!(tcp(at).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let caller = TcpStream::connect(("127.0.0.1", at.port())).unwrap();
        first.set_nonblocking(false).unwrap();
        // Closed from this side first, so that the port lingers.
        drop(first.accept().unwrap());
        assert_eq!((&caller).read(&mut [0; 1]).unwrap(), 0);
        drop((caller, first));
        tcp(at).unwrap();
    }
}
