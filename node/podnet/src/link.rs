//! The veth pair of one pod.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, setns};

use crate::netlink::{Mode, Netlink};
use crate::routes::host_route;

/// 1420 bytes pass through every path a pair of nodes may use later (WireGuard over IPv6, a QUIC
/// datagram), so no pod has to be touched when its node changes the path.
const MTU: u32 = 1420;
/// The pod's gateway. Nobody owns it: a permanent neighbour entry leads to the host's end of the pair.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Locally administered, the same at every host end: each pair is a link of its own.
const HOST_MAC: [u8; 6] = [0x0a, 0x58, 0xa9, 0xfe, 0x01, 0x01];
/// In a network namespace that was just made, `lo` is 1 and the first device is 2.
const POD_INDEX: u32 = 2;

/// Gives the network namespace `netns` an `eth0` with `address` and a default route, its other end
/// as `host_end` in the caller's namespace, and routes `address` there. A leftover `host_end` goes first.
///
/// The peer is created inside the pod's namespace: moving a device there later waits for two RCU grace
/// periods and queues behind every other move on the machine.
pub(crate) fn attach(
    netlink: &mut Netlink,
    netns: &File,
    host_end: &str,
    address: Ipv4Addr,
) -> io::Result<()> {
    detach(netlink, host_end)?;

    let mut peer = LinkMessage::default();
    peer.header.index = POD_INDEX;
    peer.attributes = vec![
        LinkAttribute::IfName("eth0".into()),
        LinkAttribute::Mtu(MTU),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    let mut pair = LinkMessage::default();
    pair.header.flags = LinkFlags::Up;
    pair.header.change_mask = LinkFlags::Up;
    pair.attributes = vec![
        LinkAttribute::IfName(host_end.into()),
        LinkAttribute::Mtu(MTU),
        LinkAttribute::Address(HOST_MAC.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    netlink.batch(vec![(RouteNetlinkMessage::NewLink(pair), Mode::Create)])?;
    // While nothing can be sent by the pod: its end is down.
    shut_host_end(host_end)?;

    let mut inside = in_namespace(netns, || {
        heed_no_advertisements()?;
        Netlink::open()
    })?;
    inside.batch(vec![
        (up(POD_INDEX), Mode::Plain),
        (address_of(POD_INDEX, address, 32), Mode::Replace),
        (gateway_neighbour(), Mode::Replace),
        (gateway_route(), Mode::Replace),
        (default_route(), Mode::Replace),
    ])?;
    let index = index_of(netlink, host_end)?.ok_or(io::ErrorKind::NotFound)?;
    if !has_ipv4(netlink)? {
        // Without an address of its own this machine could not talk to its pods: it is their gateway then.
        netlink.batch(vec![(address_of(index, GATEWAY, 32), Mode::Create)])?;
    }
    netlink.batch(vec![(host_route(address, index), Mode::Create)])
}

/// What comes from a pod comes from the pod's own address, and no pod tells this machine where its routers are.
///
/// Limit: strict checks need `net.ipv4.conf.all.rp_filter` not to be 2, for the kernel takes the greater of both.
fn shut_host_end(name: &str) -> io::Result<()> {
    set(&format!("ipv4/conf/{name}/rp_filter"), "1")?;
    // Pods have IPv4; by this no neighbour is asked for, no advertisement heard and nothing passed on.
    set(&format!("ipv6/conf/{name}/disable_ipv6"), "1")
}

/// In a pod's namespace: whatever another one sends, its routes are those it was given.
fn heed_no_advertisements() -> io::Result<()> {
    // What is there already, and what comes later.
    ["eth0", "all", "default"].into_iter().try_for_each(|which| {
        set(&format!("ipv6/conf/{which}/accept_ra"), "0")?;
        set(&format!("ipv6/conf/{which}/accept_redirects"), "0")?;
        set(&format!("ipv4/conf/{which}/accept_redirects"), "0")
    })
}

/// Sets what the kernel may not have at all, without IPv6.
fn set(setting: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new("/proc/sys/net").join(setting), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether this machine has an IPv4 address that others could answer to. The gateway's is none.
fn has_ipv4(netlink: &mut Netlink) -> io::Result<bool> {
    let mut all = AddressMessage::default();
    all.header.family = AddressFamily::Inet;
    let addresses = netlink.dump(RouteNetlinkMessage::GetAddress(all))?;
    Ok(addresses.into_iter().any(|message| match message {
        RouteNetlinkMessage::NewAddress(address) => {
            address.attributes.iter().any(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(ip)) => !ip.is_loopback() && *ip != GATEWAY,
                _ => false,
            })
        }
        _ => false,
    }))
}

/// Deletes `host_end` and with it the pod's end and the route; nothing to do if it is not there.
pub(crate) fn detach(netlink: &mut Netlink, host_end: &str) -> io::Result<()> {
    let Some(index) = index_of(netlink, host_end)? else { return Ok(()) };
    let mut link = LinkMessage::default();
    link.header.index = index;
    match netlink.batch(vec![(RouteNetlinkMessage::DelLink(link), Mode::Plain)]) {
        // It went with its pod's namespace between the two calls.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Every link of the caller's namespace by name.
pub(crate) fn names(netlink: &mut Netlink) -> io::Result<Vec<(String, u32)>> {
    Ok(links(netlink)?.into_iter().filter_map(name_of).collect())
}

/// Every link of the caller's namespace that is one end of a pair, by name.
pub(crate) fn pairs(netlink: &mut Netlink) -> io::Result<Vec<String>> {
    let is_pair = |link: &LinkMessage| {
        link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(about) => about.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => false,
        })
    };
    let links = links(netlink)?.into_iter().filter(is_pair);
    Ok(links.filter_map(name_of).map(|(name, _)| name).collect())
}

fn links(netlink: &mut Netlink) -> io::Result<Vec<LinkMessage>> {
    let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let link = |message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    };
    Ok(links.into_iter().filter_map(link).collect())
}

fn name_of(link: LinkMessage) -> Option<(String, u32)> {
    let index = link.header.index;
    link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some((name, index)),
        _ => None,
    })
}

fn index_of(netlink: &mut Netlink, name: &str) -> io::Result<Option<u32>> {
    Ok(names(netlink)?.into_iter().find_map(|(found, index)| (found == name).then_some(index)))
}

/// Runs `work` in another network namespace, on a thread of its own that ends with it: a thread that
/// has changed its namespace must never go back to a pool.
pub(crate) fn in_namespace<T: Send>(
    namespace: impl AsFd + Sync,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        });
        entered
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread inside the pod's network ended early")))
    })
}

pub(crate) fn up(index: u32) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(link)
}

/// An address of a link, with the prefix of the network it is in.
pub(crate) fn address_of(index: u32, address: Ipv4Addr, prefix: u8) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes =
        vec![AddressAttribute::Local(IpAddr::V4(address)), AddressAttribute::Address(IpAddr::V4(address))];
    RouteNetlinkMessage::NewAddress(message)
}

fn gateway_neighbour() -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = POD_INDEX;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(GATEWAY)),
        NeighbourAttribute::LinkLayerAddress(HOST_MAC.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

fn gateway_route() -> RouteNetlinkMessage {
    let mut route = pod_route();
    route.header.destination_prefix_length = 32;
    route.header.scope = RouteScope::Link;
    route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(GATEWAY)));
    RouteNetlinkMessage::NewRoute(route)
}

fn default_route() -> RouteNetlinkMessage {
    let mut route = pod_route();
    route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY)));
    RouteNetlinkMessage::NewRoute(route)
}

fn pod_route() -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN;
    route.header.kind = RouteType::Unicast;
    route.header.scope = RouteScope::Universe;
    route.attributes = vec![RouteAttribute::Oif(POD_INDEX)];
    route
}
