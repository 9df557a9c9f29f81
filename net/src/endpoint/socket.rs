//! The UDP socket as QUIC has it: without what comes [`beside`](super::beside) it.
//!
//! The kernel says that a UDP socket takes more after every packet that has left it. Quinn's own wrapping
//! listens to that, so each packet sent wakes an idle process once more; this one listens only while the socket
//! is full.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use quinn::{AsyncUdpSocket, UdpPoller, udp};
use tokio::io::{Interest, unix::AsyncFd};

use super::beside::Inbox;

/// A socket without a wait for space. Needs a tokio runtime.
#[derive(Debug)]
pub(super) struct Socket {
    io: AsyncFd<UdpSocket>,
    state: udp::UdpSocketState,
    beside: Inbox,
    /// It took nothing when something was last sent.
    full: AtomicBool,
}

/// One sender's wait for space.
#[derive(Debug)]
struct Space {
    socket: Arc<Socket>,
    /// The same socket, while it is full.
    waiting: Option<AsyncFd<UdpSocket>>,
}

impl Socket {
    pub(super) fn new(socket: UdpSocket, beside: Inbox) -> io::Result<Socket> {
        // Makes it non-blocking, too.
        let state = udp::UdpSocketState::new((&socket).into())?;
        Ok(Socket { io: listen(socket, Interest::READABLE)?, state, beside, full: AtomicBool::new(false) })
    }
}

#[expect(
    deprecated,
    reason = "the one to use instead is unsafe, for types that close their descriptor early"
)]
fn listen(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Space { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &udp::Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.io.get_ref().into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.full.store(true, Ordering::Release);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.io.poll_read_ready(cx))?;
            if let Ok(received) = ready.try_io(|io| self.state.recv(io.get_ref().into(), bufs, metas)) {
                let count = received?;
                self.beside.sort(bufs, &mut metas[..count]);
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl UdpPoller for Space {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.socket.full.load(Ordering::Acquire) {
            let waiting = match &mut this.waiting {
                Some(waiting) => waiting,
                none => {
                    let same = this.socket.io.get_ref().try_clone()?;
                    none.insert(listen(same, Interest::WRITABLE)?)
                }
            };
            ready!(waiting.poll_write_ready(cx))?.retain_ready();
            this.socket.full.store(false, Ordering::Release);
        }
        this.waiting = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr};

    use super::*;
    use crate::endpoint::beside::share;

    fn socket() -> Arc<Socket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of loopback");
        share(socket).expect("a socket like any other").0
    }

    async fn receive(socket: &Socket) -> Vec<u8> {
        let (mut bytes, mut metas) = ([0; 64], [udp::RecvMeta::default()]);
        let received =
            poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut bytes)], &mut metas)).await;
        assert_eq!(received.expect("it is open"), 1);
        bytes[..metas[0].len].to_vec()
    }

    fn send(from: &Socket, to: &Socket, contents: &[u8]) {
        let destination = to.local_addr().expect("it is bound");
        let transmit = udp::Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None };
        from.try_send(&transmit).expect("there is room");
    }

    #[tokio::test]
    async fn what_one_sends_the_other_receives_also_when_it_waited_before() {
        let (one, other) = (socket(), socket());
        let waiting = tokio::spawn({
            let other = other.clone();
            async move { receive(&other).await }
        });
        tokio::task::yield_now().await;
        send(&one, &other, b"first");
        assert_eq!(waiting.await.expect("it does not panic"), b"first");
        send(&one, &other, b"second");
        assert_eq!(receive(&other).await, b"second");
    }

    #[tokio::test]
    async fn nobody_waits_for_space_unless_there_was_none() {
        let socket = socket();
        let mut space = Space { socket: socket.clone(), waiting: None };
        poll_fn(|cx| Pin::new(&mut space).poll_writable(cx)).await.expect("it is open");
        assert!(space.waiting.is_none());
        socket.full.store(true, Ordering::Release);
        poll_fn(|cx| Pin::new(&mut space).poll_writable(cx)).await.expect("there is space again");
        assert!(!socket.full.load(Ordering::Acquire) && space.waiting.is_none());
    }
}
