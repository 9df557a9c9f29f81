//! The machine's own addresses, as far as others may reach it there, its links, and when they change.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::FutureExt as _;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket, protocols::NETLINK_ROUTE};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
};

use super::Endpoint;
use crate::gossip::metadata::ADDRESSES_MAX;

/// How often the addresses are looked at although the kernel told of no change.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Changes come in bursts: an address goes, another one comes, a link is up.
const SETTLE: Duration = Duration::from_millis(100);

/// A link to other machines, of those that carry what is for a group or for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
    /// This machine's IPv4 addresses on it; empty where the socket speaks IPv6 only.
    pub(crate) v4: Vec<Ipv4Addr>,
    /// Whether the socket speaks IPv6 on it.
    pub(crate) v6: bool,
    pub(crate) has_broadcast: bool,
}

/// Where others may reach a socket bound to `listen`, best first: wired names sort before wireless ones,
/// IPv4 before IPv6, and what only containers see is left out.
///
/// A socket bound to one address is reachable there alone. Without any other address it is the loopback,
/// which is right for several nodes on one machine without a network.
pub(super) fn reachable(listen: SocketAddr) -> Vec<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return vec![listen];
    }
    let mut found: Vec<(bool, String, IpAddr)> = own()
        .into_iter()
        .filter(|own| is_outward(&own.name, &own.ip) && (listen.is_ipv6() || own.ip.is_ipv4()))
        .map(|own| (own.ip.is_ipv6(), own.name, own.ip))
        .collect();
    found.sort();
    let mut addresses: Vec<SocketAddr> =
        found.into_iter().map(|(_, _, ip)| SocketAddr::new(ip, listen.port())).take(ADDRESSES_MAX).collect();
    if addresses.is_empty() {
        addresses.push(SocketAddr::from(([127, 0, 0, 1], listen.port())));
    }
    addresses
}

/// The links over which a socket bound to `listen` reaches other machines unasked-for, by name.
pub(crate) fn links(listen: SocketAddr) -> Vec<Link> {
    let mut links: Vec<Link> = Vec::new();
    for own in own() {
        let is_bound = listen.ip().is_unspecified() || listen.ip() == own.ip;
        if !is_bound || is_inward(&own.name) || !own.flags.contains(InterfaceFlags::IFF_MULTICAST) {
            continue;
        }
        let place = match links.iter().position(|link| link.name == own.name) {
            Some(place) => place,
            None => {
                let Ok(index) = if_nametoindex(own.name.as_str()) else { continue };
                let has_broadcast = own.flags.contains(InterfaceFlags::IFF_BROADCAST);
                links.push(Link { name: own.name, index, v4: Vec::new(), v6: false, has_broadcast });
                links.len() - 1
            }
        };
        match own.ip {
            // A dual-stack socket speaks both, one bound to an address that one's family.
            IpAddr::V4(ip) => links[place].v4.push(ip),
            IpAddr::V6(_) => links[place].v6 |= listen.is_ipv6(),
        }
    }
    links.retain(|link| link.v6 || !link.v4.is_empty());
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links
}

/// Whether an address is this machine's now.
pub(super) fn machine_has() -> impl Fn(IpAddr) -> bool {
    let own: Vec<IpAddr> = own().into_iter().map(|own| own.ip).collect();
    // None at all: nothing could be read, or nobody is reached anyway.
    move |ip| own.is_empty() || ip.is_loopback() || own.contains(&ip)
}

/// Keeps what the endpoint says of its addresses and links true, until it ends.
pub(super) async fn follow(endpoint: Endpoint) {
    let mut changes = Changes::open();
    if let Err(error) = &changes {
        tracing::debug!(%error, "the kernel does not tell when addresses change; looking now and then");
    }
    loop {
        endpoint.look_at_interfaces();
        let change = async {
            match &mut changes {
                Ok(changes) => changes.next().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = change => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// The kernel's word that a link or an address came, went or changed.
struct Changes(TokioSocket);

impl Changes {
    fn open() -> io::Result<Changes> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&netlink_sys::SocketAddr::new(0, groups.unsigned_abs()))?;
        Ok(Changes(socket))
    }

    /// Waits for the next one; all that were told by then count as one.
    async fn next(&mut self) {
        // What changed is looked up afterwards. An error means that the kernel had more to tell than it
        // could keep: a change all the same.
        let mut told = Vec::with_capacity(8192);
        let _ = self.0.recv(&mut told).await;
        for _ in 0..1024 {
            told.clear();
            if self.0.recv(&mut told).now_or_never().is_none() {
                break;
            }
        }
    }
}

/// An address of an interface that is up and is not the loopback.
struct Own {
    name: String,
    flags: InterfaceFlags,
    ip: IpAddr,
}

fn own() -> Vec<Own> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let is_up = |flags: InterfaceFlags| {
        flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
    };
    interfaces
        .filter(|interface| is_up(interface.flags))
        .filter_map(|interface| {
            let address = interface.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (None, Some(v6)) => IpAddr::V6(v6.ip()),
                (None, None) => return None,
            };
            Some(Own { name: interface.interface_name, flags: interface.flags, ip })
        })
        .collect()
}

/// Bridges and links that other container software makes for itself.
const INWARD: [&str; 8] = ["docker", "br-", "veth", "cni", "virbr", "podman", "flannel", "skein"];

fn is_inward(name: &str) -> bool {
    INWARD.iter().any(|prefix| name.starts_with(prefix))
}

fn is_outward(name: &str, ip: &IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        // Without its zone such an address means nothing to others.
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !is_link_local && !is_inward(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_bound_to_one_address_is_reachable_there_alone() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 7946));
        assert_eq!(reachable(listen), [listen]);
    }

    #[test]
    fn addresses_that_only_this_machine_or_link_knows_are_left_out() {
        let outward = |name, ip: &str| is_outward(name, &ip.parse().unwrap());
        assert!(outward("eth0", "192.0.2.1"));
        assert!(outward("wlan0", "2001:db8::1"));
        assert!(!outward("eth0", "fe80::1"));
        assert!(!outward("eth0", "169.254.1.1"));
        assert!(!outward("docker0", "172.17.0.1"));
    }

    #[test]
    fn there_is_always_an_address_with_the_real_port() {
        for listen in ["0.0.0.0:7946", "[::]:7946"] {
            let addresses = reachable(listen.parse().unwrap());
            assert!(!addresses.is_empty() && addresses.len() <= ADDRESSES_MAX);
            assert!(addresses.iter().all(|address| address.port() == 7946 && !address.ip().is_unspecified()));
        }
    }
}
