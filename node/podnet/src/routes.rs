//! Routes: to each pod of this node, and to the subnets of the other nodes.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::Subnet;
use crate::netlink::{Mode, Netlink};

/// The mark of our routes (`ip route show proto 117`); routes of any other protocol are not ours.
pub const PROTOCOL: u8 = 117;
/// Lets every real route win over the cluster-wide one that refuses.
const REFUSING_METRIC: u32 = 4_000_000_000;

/// Where the pods of another node are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its pods' subnet.
    pub subnet: Subnet,
    /// Its address on a link that both nodes share.
    pub via: Ipv4Addr,
}

/// Makes the kernel's routes to other nodes equal to `peers`: missing ones are added first, then those
/// no longer wanted go. Addresses of `cluster` that belong to nobody are refused, never sent to the
/// machine's default gateway. `own` is this node's subnet.
///
/// Errors: the first refusal of the kernel, after everything was tried.
pub(crate) fn reconcile(
    netlink: &mut Netlink,
    cluster: Subnet,
    own: Option<Subnet>,
    peers: &BTreeSet<Peer>,
) -> io::Result<()> {
    let mut refusal = None;
    let mut wanted: BTreeSet<(Subnet, Option<Ipv4Addr>)> = peers
        .iter()
        .filter(|peer| Some(peer.subnet) != own)
        .map(|peer| (peer.subnet, Some(peer.via)))
        .collect();
    wanted.insert((cluster, None));
    let present = ours(netlink)?;
    for (subnet, via) in wanted.difference(&present) {
        // One at a time: a peer on a link we do not share must not keep the others from being reached.
        if let Err(error) = netlink.batch(vec![(route(*subnet, *via), Mode::Replace)]) {
            refusal.get_or_insert(error);
        }
    }
    let kept: BTreeSet<Subnet> = wanted.iter().map(|(subnet, _)| *subnet).collect();
    for (subnet, via) in present.difference(&wanted).filter(|(subnet, _)| !kept.contains(subnet)) {
        if let Err(error) = remove(netlink, *subnet, *via) {
            refusal.get_or_insert(error);
        }
    }
    refusal.map_or(Ok(()), Err)
}

/// Removes all our routes to subnets.
pub(crate) fn clear(netlink: &mut Netlink) -> io::Result<()> {
    for (subnet, via) in ours(netlink)? {
        remove(netlink, subnet, via)?;
    }
    Ok(())
}

fn remove(netlink: &mut Netlink, subnet: Subnet, via: Option<Ipv4Addr>) -> io::Result<()> {
    let RouteNetlinkMessage::NewRoute(message) = route(subnet, via) else { return Ok(()) };
    netlink.batch(vec![(RouteNetlinkMessage::DelRoute(message), Mode::Plain)])
}

/// Our routes to subnets, with their gateway (`None`: the refusing one). Routes to single pods go with
/// their link and are left out.
fn ours(netlink: &mut Netlink) -> io::Result<BTreeSet<(Subnet, Option<Ipv4Addr>)>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    let routes = netlink.dump(RouteNetlinkMessage::GetRoute(request))?;
    Ok(routes
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        })
        .filter(|route| route.header.protocol == RouteProtocol::Other(PROTOCOL))
        .filter(|route| route.header.destination_prefix_length < 32)
        .filter_map(|route| {
            let mut destination = None;
            let mut via = None;
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(address),
                    RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(address),
                    _ => {}
                }
            }
            Some((Subnet::new(destination?, route.header.destination_prefix_length), via))
        })
        .collect())
}

/// The route to one pod of this node.
pub(crate) fn host_route(address: Ipv4Addr, link: u32) -> RouteNetlinkMessage {
    let mut message = empty(Subnet::new(address, 32));
    message.header.scope = RouteScope::Link;
    message.attributes.push(RouteAttribute::Oif(link));
    RouteNetlinkMessage::NewRoute(message)
}

fn route(subnet: Subnet, via: Option<Ipv4Addr>) -> RouteNetlinkMessage {
    let mut message = empty(subnet);
    match via {
        Some(gateway) => message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway))),
        None => {
            message.header.kind = RouteType::Unreachable;
            message.attributes.push(RouteAttribute::Priority(REFUSING_METRIC));
        }
    }
    RouteNetlinkMessage::NewRoute(message)
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
