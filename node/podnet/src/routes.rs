//! Routes: to each pod of this node, and to the subnets of the other nodes.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::Subnet;
use crate::netlink::{Mode, Netlink};

/// The mark of our routes (`ip route show proto 117`); routes of any other protocol are not ours.
pub const PROTOCOL: u8 = 117;
/// Any other route to the same network wins over ours, whoever made it and however bad it is.
const METRIC: u32 = 3_900_000_000;
/// Lets every real route win over the cluster-wide one that refuses.
const REFUSING_METRIC: u32 = 4_000_000_000;

/// Where the pods of another node are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its pods' subnet.
    pub subnet: Subnet,
    /// Its address on a link that both nodes share; of IPv6 it may be too.
    pub via: IpAddr,
}

/// One of ours in the main table. By all of it the kernel finds the very route again: what is somebody else's is
/// neither replaced nor removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    subnet: Subnet,
    metric: u32,
    /// None: it refuses.
    via: Option<IpAddr>,
}

impl Route {
    fn refusing(cluster: Subnet) -> Route {
        Route { subnet: cluster, metric: REFUSING_METRIC, via: None }
    }
}

impl From<&Peer> for Route {
    fn from(peer: &Peer) -> Route {
        Route { subnet: peer.subnet, metric: METRIC, via: Some(peer.via) }
    }
}

/// Makes the kernel's routes to other nodes equal to `peers`: missing ones are added first, then those
/// no longer wanted go. Addresses of `cluster` that belong to nobody are refused, never sent to the
/// machine's default gateway.
///
/// Errors: the first refusal of the kernel, after everything was tried.
pub(crate) fn reconcile(netlink: &mut Netlink, cluster: Subnet, peers: &BTreeSet<Peer>) -> io::Result<()> {
    let mut refusal = None;
    let wanted: BTreeSet<Route> = peers.iter().map(Route::from).chain([Route::refusing(cluster)]).collect();
    let present = ours(netlink)?;
    let mut gone: BTreeSet<Route> = present.difference(&wanted).copied().collect();
    // One at a time: a peer on a link we do not share must not keep the others from being reached.
    for route in wanted.difference(&present) {
        match netlink.batch(vec![(RouteNetlinkMessage::NewRoute(message(route)), Mode::Append)]) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                refusal.get_or_insert(error);
                // The way so far may still be right.
                gone.retain(|old| old.subnet != route.subnet);
            }
            _ => {}
        }
    }
    for route in gone {
        if let Err(error) = remove(netlink, &route) {
            refusal.get_or_insert(error);
        }
    }
    refusal.map_or(Ok(()), Err)
}

/// Removes all our routes to subnets.
pub(crate) fn clear(netlink: &mut Netlink) -> io::Result<()> {
    for route in ours(netlink)? {
        remove(netlink, &route)?;
    }
    Ok(())
}

fn remove(netlink: &mut Netlink, route: &Route) -> io::Result<()> {
    match netlink.batch(vec![(RouteNetlinkMessage::DelRoute(message(route)), Mode::Plain)]) {
        // It went with its link.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        removed => removed,
    }
}

/// Our routes to subnets. Routes to single pods go with their link and are left out.
fn ours(netlink: &mut Netlink) -> io::Result<BTreeSet<Route>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    let routes = netlink.dump(RouteNetlinkMessage::GetRoute(request))?;
    let subnet = |message: RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = message else {
            return None;
        };
        let is_ours =
            header.protocol == RouteProtocol::Other(PROTOCOL) && header.destination_prefix_length < 32;
        let (mut destination, mut metric, mut via) = (None, 0, None);
        for attribute in attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(address),
                RouteAttribute::Priority(priority) => metric = priority,
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(IpAddr::V4(address)),
                RouteAttribute::Via(RouteVia::Inet6(address)) => via = Some(IpAddr::V6(address)),
                _ => {}
            }
        }
        let subnet = Subnet::new(destination.filter(|_| is_ours)?, header.destination_prefix_length);
        Some(Route { subnet, metric, via })
    };
    Ok(routes.into_iter().filter_map(subnet).collect())
}

/// The route to one pod of this node.
pub(crate) fn host_route(address: Ipv4Addr, link: u32) -> RouteNetlinkMessage {
    let mut message = empty(Subnet::new(address, 32));
    message.header.scope = RouteScope::Link;
    message.attributes.extend([RouteAttribute::Oif(link), RouteAttribute::Priority(METRIC)]);
    RouteNetlinkMessage::NewRoute(message)
}

fn message(route: &Route) -> RouteMessage {
    let mut message = empty(route.subnet);
    message.attributes.push(RouteAttribute::Priority(route.metric));
    match route.via {
        Some(IpAddr::V4(gateway)) => {
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)))
        }
        // The neighbour is found by IPv6; what is sent to it is IPv4 all the same (RFC 5549).
        Some(IpAddr::V6(gateway)) => message.attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway))),
        None => message.header.kind = RouteType::Unreachable,
    }
    message
}

fn empty(subnet: Subnet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    message.header.destination_prefix_length = subnet.prefix();
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(subnet.base()))];
    message
}
