//! The machine's own addresses, as far as others may reach it there.

use std::net::{IpAddr, SocketAddr};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use crate::gossip::metadata::ADDRESSES_MAX;

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
        .filter(|(name, ip)| is_outward(name, ip) && (listen.is_ipv6() || ip.is_ipv4()))
        .map(|(name, ip)| (ip.is_ipv6(), name, ip))
        .collect();
    found.sort();
    let mut addresses: Vec<SocketAddr> =
        found.into_iter().map(|(_, _, ip)| SocketAddr::new(ip, listen.port())).take(ADDRESSES_MAX).collect();
    if addresses.is_empty() {
        addresses.push(SocketAddr::from(([127, 0, 0, 1], listen.port())));
    }
    addresses
}

/// Interface name and address of all interfaces that are up and are not the loopback.
fn own() -> Vec<(String, IpAddr)> {
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
            Some((interface.interface_name, ip))
        })
        .collect()
}

/// Bridges and links that other container software makes for itself.
const INWARD: [&str; 8] = ["docker", "br-", "veth", "cni", "virbr", "podman", "flannel", "skein"];

fn is_outward(name: &str, ip: &IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        // Without its zone such an address means nothing to others.
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !is_link_local && !INWARD.iter().any(|prefix| name.starts_with(prefix))
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
