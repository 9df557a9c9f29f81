//! The default gateway on the link to another node, and whether its kernel answers: the third party that
//! tells a cluster of two whose link is down.
//!
//! Only a gateway on the link over which the other node is reached *directly* says anything about that link,
//! and only an answer that came in over it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use crate::prober;

/// A port that routers serve names on. A refused connect is an answer as well.
const PORT: u16 = 53;

/// A gateway and the link it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gateway {
    interface: String,
    address: IpAddr,
}

impl Gateway {
    /// The one on the link to `peer`, by the kernel's routes as they are now.
    pub(crate) fn beside(peer: IpAddr) -> Option<Gateway> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let routes = match peer {
            IpAddr::V4(_) => read("/proc/net/route").lines().filter_map(route_v4).collect(),
            IpAddr::V6(_) => read("/proc/net/ipv6_route").lines().filter_map(route_v6).collect(),
        };
        choose(routes, peer)
    }

    /// Tries it once: whether anything answered within `limit`.
    ///
    /// Errors: this machine itself could not try.
    pub(crate) async fn answers(&self, limit: Duration) -> io::Result<bool> {
        let at = match self.address {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                let scope = nix::net::if_::if_nametoindex(self.interface.as_str())?;
                SocketAddr::V6(SocketAddrV6::new(ip, PORT, 0, scope))
            }
            ip => SocketAddr::new(ip, PORT),
        };
        Ok(prober::try_over(Some(&self.interface), at, limit).await?.is_some())
    }
}

/// One of the kernel's routes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Route {
    interface: String,
    network: IpAddr,
    prefix: u32,
    gateway: Option<IpAddr>,
    metric: u32,
}

impl Route {
    fn leads_to(&self, address: IpAddr) -> bool {
        let shifted = |bits: u128, width: u32| bits.checked_shr(width - self.prefix).unwrap_or(0);
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                shifted(network.to_bits().into(), 32) == shifted(address.to_bits().into(), 32)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                shifted(network.to_bits(), 128) == shifted(address.to_bits(), 128)
            }
            _ => false,
        }
    }
}

/// The gateway of the best default route that leaves by the link of the best route to `peer`, if that route
/// needs no gateway itself.
fn choose(routes: Vec<Route>, peer: IpAddr) -> Option<Gateway> {
    let to_peer = routes
        .iter()
        .filter(|route| route.leads_to(peer))
        .min_by_key(|route| (u32::MAX - route.prefix, route.metric))?;
    if to_peer.gateway.is_some() {
        return None;
    }
    let best = routes
        .iter()
        .filter(|route| route.prefix == 0 && route.interface == to_peer.interface)
        .filter_map(|route| Some((route.metric, route.gateway?)))
        .min()?;
    // A node that is the other one's gateway is no third party.
    (best.1 != peer).then(|| Gateway { interface: to_peer.interface.clone(), address: best.1 })
}

/// A line of `/proc/net/route`: interface, destination, gateway, flags, reference count, use, metric, mask;
/// addresses as the processor reads them.
fn route_v4(line: &str) -> Option<Route> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[interface, network, gateway, flags, _, _, metric, mask, ..] = words.as_slice() else { return None };
    let address = |hex| u32::from_str_radix(hex, 16).ok().map(|bits| Ipv4Addr::from(bits.to_ne_bytes()));
    is_up(flags).then_some(())?;
    let gateway = address(gateway)?;
    Some(Route {
        interface: interface.to_owned(),
        network: address(network)?.into(),
        prefix: address(mask)?.to_bits().count_ones(),
        gateway: (!gateway.is_unspecified()).then_some(gateway.into()),
        metric: metric.parse().ok()?,
    })
}

/// A line of `/proc/net/ipv6_route`: destination and its prefix, source and its prefix, next hop, metric,
/// reference count, use, flags, interface.
fn route_v6(line: &str) -> Option<Route> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[network, prefix, _, _, gateway, metric, _, _, flags, interface] = words.as_slice() else {
        return None;
    };
    let address = |hex| u128::from_str_radix(hex, 16).ok().map(Ipv6Addr::from);
    is_up(flags).then_some(())?;
    let gateway = address(gateway)?;
    Some(Route {
        interface: interface.to_owned(),
        network: address(network)?.into(),
        prefix: u32::from_str_radix(prefix, 16).ok().filter(|prefix| *prefix <= 128)?,
        gateway: (!gateway.is_unspecified()).then_some(gateway.into()),
        metric: u32::from_str_radix(metric, 16).ok()?,
    })
}

/// RTF_UP, and not RTF_REJECT: a route that refuses leads nowhere.
fn is_up(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x201 == 0x1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a little-endian machine writes it.
    #[cfg(target_endian = "little")]
    const V4: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
wlan0\t0001A8C0\t00000000\t0001\t0\t0\t600\t00FFFFFF\t0\t0\t0
*\t00002A0A\t00000000\t0200\t0\t0\t0\t0000FFFF\t0\t0\t0
eth0\t0101330A\t0900A8C0\t0007\t0\t0\t0\tFFFFFFFF\t0\t0\t0
";

    const V6: &str = "\
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

    #[cfg(target_endian = "little")]
    fn beside_v4(peer: &str) -> Option<(String, String)> {
        let routes = V4.lines().filter_map(route_v4).collect();
        choose(routes, peer.parse().unwrap()).map(|found| (found.interface, found.address.to_string()))
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_gateway_is_the_one_on_the_link_to_the_other_node() {
        let on = |interface: &str, gateway: &str| Some((interface.to_owned(), gateway.to_owned()));
        assert_eq!(beside_v4("192.168.0.7"), on("eth0", "192.168.0.1"));
        assert_eq!(beside_v4("192.168.1.7"), on("wlan0", "192.168.1.1"));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_node_behind_a_gateway_or_that_is_the_gateway_has_none_beside_it() {
        assert_eq!(beside_v4("203.0.113.1"), None, "behind the default one");
        assert_eq!(beside_v4("10.51.1.1"), None, "behind another one");
        assert_eq!(beside_v4("192.168.0.1"), None, "is it itself");
    }

    #[test]
    fn a_gateway_of_ipv6_is_found_too() {
        let routes = || V6.lines().filter_map(route_v6).collect();
        let found = choose(routes(), "fd00::7".parse().unwrap()).unwrap();
        assert_eq!((found.interface.as_str(), found.address.to_string().as_str()), ("eth0", "fe80::1"));
        assert_eq!(choose(routes(), "2001:db8::1".parse().unwrap()), None);
        assert_eq!(choose(routes(), "192.0.2.1".parse().unwrap()), None);
    }

    #[test]
    fn lines_of_another_shape_are_no_routes() {
        for line in ["", "eth0", "eth0 x y 0001 0 0 0 z", &"g ".repeat(10)] {
            assert!(route_v4(line).is_none() && route_v6(line).is_none(), "{line}");
        }
    }
}
