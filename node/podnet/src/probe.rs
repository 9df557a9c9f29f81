//! Whether packets between pods pass this machine: a packet of our own is sent the same way and looked for.
//!
//! Whatever may drop it (a firewall's policy of any kind, a switch, a route) drops this one as well, so there is
//! nothing to be understood about it. Two network namespaces that are like pods, with the first and the last
//! address of the node's subnet, which no pod has, are held by nothing but open files: they end with this process,
//! however that ends.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use crate::link::{self, in_namespace};
use crate::netlink::Netlink;
use crate::{Error, Subnet};

/// The port for what is to be thrown away (RFC 863).
const PORT: u16 = 9;
const TRY_EVERY: Duration = Duration::from_millis(100);

/// See the module.
pub struct Probe {
    netlink: Netlink,
    /// Names of the host's ends; gone with the namespaces, but not at once.
    ends: [String; 2],
    sender: UdpSocket,
    receiver: UdpSocket,
    /// Packets sent so far.
    count: u64,
}

impl Probe {
    /// Makes both ends. `tag` as in [`crate::Config`].
    pub fn open(tag: &str, subnet: Subnet) -> Result<Probe, Error> {
        let opened = (|| {
            let mut netlink = Netlink::open()?;
            let addresses = [subnet.base(), subnet.last()];
            let ends = [0, 1].map(|end| format!("sp{tag:.5}{end}"));
            let namespaces = [namespace()?, namespace()?];
            for ((namespace, end), address) in namespaces.iter().zip(&ends).zip(addresses) {
                link::attach(&mut netlink, namespace, end, address)?;
            }
            let socket =
                |end: usize| in_namespace(&namespaces[end], || UdpSocket::bind((addresses[end], PORT)));
            let (sender, receiver) = (socket(0)?, socket(1)?);
            sender.connect((addresses[1], PORT))?;
            Ok(Probe { netlink, ends, sender, receiver, count: 0 })
        })();
        opened.map_err(Error::Probe)
    }

    /// Sends packets until one arrives: whether one did within `limit`, for which this blocks at most. Ends that
    /// were just made take up to two seconds until each knows where the other is.
    ///
    /// Errors: they could not even be sent.
    pub fn passes(&mut self, limit: Duration) -> io::Result<bool> {
        let end = Instant::now() + limit;
        while let Some(left) = left_until(end) {
            self.count += 1;
            let sent = self.count.to_be_bytes();
            self.sender.send(&sent)?;
            if self.arrives(&sent, left.min(TRY_EVERY))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn arrives(&self, sent: &[u8], limit: Duration) -> io::Result<bool> {
        let end = Instant::now() + limit;
        let mut heard = [0; 16];
        while let Some(left) = left_until(end) {
            self.receiver.set_read_timeout(Some(left))?;
            match self.receiver.recv_from(&mut heard) {
                // An earlier one that was late says nothing about now.
                Ok((length, _)) if heard[..length] == *sent => return Ok(true),
                Ok(_) => {}
                Err(error) if is_over(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        for end in &self.ends {
            // It goes by itself, a little later.
            let _ = link::detach(&mut self.netlink, end);
        }
    }
}

fn left_until(end: Instant) -> Option<Duration> {
    end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

fn is_over(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// A network namespace that lasts as long as it is open.
fn namespace() -> io::Result<File> {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    });
    made.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes a network ended early")))
}

impl Subnet {
    /// The highest address of the network.
    fn last(&self) -> Ipv4Addr {
        let below = 32 - u32::from(self.prefix());
        Ipv4Addr::from_bits(self.base().to_bits() | u32::MAX.checked_shr(32 - below).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_address_is_the_highest() {
        for (subnet, last) in [
            ("10.42.3.0/24", "10.42.3.255"),
            ("10.42.3.8/29", "10.42.3.15"),
            ("0.0.0.0/0", "255.255.255.255"),
            ("10.0.0.1/32", "10.0.0.1"),
        ] {
            let subnet: Subnet = subnet.parse().unwrap();
            assert_eq!(subnet.last().to_string(), last);
        }
    }
}
