//! A socket and the links it speaks on: what is said to all of each link, and the groups it listens to.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    sync::Arc,
};

use crate::{endpoint::beside, interfaces::Link};

/// Of the range for whoever wants one within a site (RFC 2365); datagrams to it stay on the link.
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 255, 79, 46);
/// Of this link, assigned by nobody (RFC 4291 §2.7): "skein" in ASCII.
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0x73, 0x6b65, 0x696e);

/// See the module.
pub(super) struct Links {
    socket: Arc<UdpSocket>,
    /// Whether what is sent to groups reaches the socket: not where it is bound to one address.
    hears_groups: bool,
    links: Vec<Link>,
    /// By link, the address its group was joined by.
    v4: BTreeMap<u32, Ipv4Addr>,
    v6: BTreeSet<u32>,
}

impl Links {
    pub(super) fn new(socket: Arc<UdpSocket>) -> Links {
        let hears_groups = socket.local_addr().is_ok_and(|listen| listen.ip().is_unspecified());
        Links { socket, hears_groups, links: Vec::new(), v4: BTreeMap::new(), v6: BTreeSet::new() }
    }

    /// From now on these are the links.
    pub(super) fn follow(&mut self, links: Vec<Link>) {
        if self.hears_groups {
            self.follow_v4(&links);
            self.follow_v6(&links);
        }
        self.links = links;
    }

    /// The same for one that listens to no group.
    pub(super) fn speak_on(&mut self, links: Vec<Link>) {
        self.links = links;
    }

    fn follow_v4(&mut self, links: &[Link]) {
        // A membership is of a link, but is named by an address: when that goes it is left, or it could not
        // be joined anew.
        let stays = |index: &u32, by: &Ipv4Addr| {
            links.iter().any(|link| link.index == *index && link.v4.contains(by))
        };
        for (_, by) in self.v4.extract_if(.., |index, by| !stays(index, by)) {
            let _ = self.socket.leave_multicast_v4(&GROUP_V4, &by);
        }
        for link in links {
            if let (Some(by), false) = (link.v4.first(), self.v4.contains_key(&link.index)) {
                match self.socket.join_multicast_v4(&GROUP_V4, by) {
                    Ok(()) => drop(self.v4.insert(link.index, *by)),
                    Err(error) => not_joined(link, &error),
                }
            }
        }
    }

    fn follow_v6(&mut self, links: &[Link]) {
        let stays = |index: &u32| links.iter().any(|link| link.index == *index && link.v6);
        for index in self.v6.extract_if(.., |index| !stays(index)) {
            let _ = self.socket.leave_multicast_v6(&GROUP_V6, index);
        }
        for link in links {
            if link.v6 && !self.v6.contains(&link.index) {
                match self.socket.join_multicast_v6(&GROUP_V6, link.index) {
                    Ok(()) => drop(self.v6.insert(link.index)),
                    Err(error) => not_joined(link, &error),
                }
            }
        }
    }

    /// Sends to the group and to all of each link, from each of this machine's addresses there: a receiver
    /// in a network of its own may drop what comes from another one.
    pub(super) fn send_to_all(&self, bytes: &[u8], ports: &[u16]) {
        for (link, port) in self.links.iter().flat_map(|link| ports.iter().map(move |port| (link, *port))) {
            for source in &link.v4 {
                self.send_from(bytes, (GROUP_V4, port).into(), Some(*source));
                if link.has_broadcast {
                    self.send_from(bytes, (Ipv4Addr::BROADCAST, port).into(), Some(*source));
                }
            }
            if link.v6 {
                self.send_from(bytes, SocketAddrV6::new(GROUP_V6, port, 0, link.index).into(), None);
            }
        }
    }

    /// Sends to one.
    pub(super) fn send(&self, bytes: &[u8], to: SocketAddr) {
        self.send_from(bytes, to, None);
    }

    fn send_from(&self, bytes: &[u8], to: SocketAddr, source: Option<Ipv4Addr>) {
        // As lost as any datagram may be.
        if let Err(error) = beside::send(&self.socket, bytes, to, source) {
            tracing::trace!(%to, %error, "could not send beside QUIC");
        }
    }
}

fn not_joined(link: &Link, error: &io::Error) {
    tracing::debug!(link = link.name, %error, "could not join the group in which nodes look for each other");
}
