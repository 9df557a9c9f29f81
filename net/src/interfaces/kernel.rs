//! Asking the kernel for interfaces, addresses and routes, and hearing that they changed.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::{FutureExt as _, future::select_all};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, Socket, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use super::{Address, Interface, Interfaces, Kind, Route};

/// Routes of one family that are read. A router may have a million; the default ones come first.
pub const ROUTES_MAX: usize = 4096;
/// RTNLGRP_IPV4_NETCONF: `net.ipv4.ip_forward` and the like.
const SWITCHES_GROUP: u32 = 24;
/// NFNLGRP_NFTABLES.
const RULES_GROUP: u32 = 7;
/// The table that repeats the machine's own addresses.
const LOCAL_TABLE: u32 = 255;

/// What there is now. Blocks for a millisecond.
///
/// Errors: the kernel did not answer. What it says in a form that is not understood is left out.
pub fn read() -> io::Result<Interfaces> {
    let mut links = LinkMessage::default();
    // The counters of a link are most of what is said of it.
    links.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = dump(RouteNetlinkMessage::GetLink(links), usize::MAX)?;
    let addresses = dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), usize::MAX)?;
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        routes.extend(dump(RouteNetlinkMessage::GetRoute(all), ROUTES_MAX)?);
    }

    let mut interfaces: BTreeMap<u32, Interface> = links.into_iter().filter_map(interface).collect();
    for (index, address) in addresses.into_iter().filter_map(address) {
        if let Some(interface) = interfaces.get_mut(&index) {
            interface.addresses.push(address);
        }
    }
    Ok(Interfaces { interfaces, routes: routes.into_iter().flat_map(route).collect() })
}

/// At most about `limit` messages of a kind; the kernel stops telling when the socket closes.
fn dump(request: RouteNetlinkMessage, limit: usize) -> io::Result<Vec<RouteNetlinkMessage>> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    while found.len() < limit {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Ok(head) = NetlinkBuffer::new_checked(rest) {
            let length = (head.length() as usize).next_multiple_of(4);
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(message)) => found.push(message),
                Ok(NetlinkPayload::Done(_)) => return Ok(found),
                Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                Ok(_) => {}
                Err(error) => tracing::trace!(%error, "the kernel said something that is not understood"),
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    Ok(found)
}

fn interface(message: RouteNetlinkMessage) -> Option<(u32, Interface)> {
    let RouteNetlinkMessage::NewLink(LinkMessage { header, attributes, .. }) = message else { return None };
    let mut interface = Interface {
        name: String::new(),
        kind: match header.link_layer_type {
            LinkLayerType::Loopback => Kind::Loopback,
            LinkLayerType::Ppp => Kind::Tunnel,
            _ => Kind::Card,
        },
        port_of: None,
        over: None,
        far_elsewhere: false,
        is_up: header.flags.contains(LinkFlags::Up),
        has_multicast: header.flags.contains(LinkFlags::Multicast),
        has_broadcast: header.flags.contains(LinkFlags::Broadcast),
        mtu: 0,
        addresses: Vec::new(),
    };
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Controller(index) => interface.port_of = Some(index),
            // A pair's end names its other one, which may lie elsewhere.
            LinkAttribute::Link(index) if index != 0 => interface.over = Some(index),
            LinkAttribute::LinkNetNsId(_) => interface.far_elsewhere = true,
            LinkAttribute::LinkInfo(about) => {
                for told in about {
                    if let LinkInfo::Kind(kind) = told {
                        interface.kind = Kind::of(&kind);
                    }
                }
            }
            _ => {}
        }
    }
    Some((header.index, interface))
}

impl Kind {
    /// The kernel names a kind for what software made; hardware has none.
    fn of(kind: &InfoKind) -> Kind {
        match kind.to_string().as_str() {
            "bridge" => Kind::Bridge,
            "bond" | "team" => Kind::Bond,
            "vlan" | "macvlan" | "ipvlan" | "macvtap" | "ipvtap" => Kind::Part,
            "veth" => Kind::Veth,
            "tun" | "wireguard" | "ppp" | "gre" | "ip6gre" | "ipip" | "ip6tnl" | "sit" | "vti" | "vti6"
            | "xfrm" | "ovpn" => Kind::Tunnel,
            "dummy" | "ifb" | "nlmon" | "vxlan" | "geneve" | "gretap" | "ip6gretap" | "erspan" | "vrf"
            | "netkit" | "vcan" => Kind::Inner,
            // A port of a switch (`dsa`), a mesh (`batadv`), a modem (`wwan`): more like hardware than not.
            _ => Kind::Card,
        }
    }
}

fn address(message: RouteNetlinkMessage) -> Option<(u32, Address)> {
    let RouteNetlinkMessage::NewAddress(AddressMessage { header, attributes, .. }) = message else {
        return None;
    };
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    let (mut local, mut other) = (None, None);
    for attribute in attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            // Of a point-to-point link this is the other end; otherwise the same.
            AddressAttribute::Address(ip) => other = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    // One that is tentative but optimistic is used meanwhile.
    let is_tentative = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    let is_usable = !is_tentative && !flags.intersects(AddressFlags::Deprecated | AddressFlags::Dadfailed);
    let address = Address {
        ip: local.or(other)?,
        prefix: header.prefix_len,
        is_usable,
        is_secondary: flags.contains(AddressFlags::Secondary),
    };
    Some((header.index, address))
}

/// One for each way it may take.
fn route(message: RouteNetlinkMessage) -> Vec<Route> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = message else {
        return Vec::new();
    };
    let mut route = Route {
        network: match header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        },
        prefix: header.destination_prefix_length,
        interface: None,
        gateway: None,
        metric: 0,
        protocol: header.protocol.into(),
        table: header.table.into(),
    };
    let mut ways = Vec::new();
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.network = ip(&address).unwrap_or(route.network),
            RouteAttribute::Gateway(address) => route.gateway = ip(&address),
            RouteAttribute::Oif(index) => route.interface = Some(index),
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::Table(table) => route.table = table,
            RouteAttribute::MultiPath(hops) => ways = hops,
            _ => {}
        }
    }
    if route.table == LOCAL_TABLE {
        return Vec::new();
    }
    // What refuses leads nowhere, whatever interface it names (that of IPv6 is the loopback).
    if header.kind != RouteType::Unicast {
        return vec![Route { interface: None, gateway: None, ..route }];
    }
    if ways.is_empty() {
        return vec![route];
    }
    let gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        })
    };
    let along = |hop: &netlink_packet_route::route::RouteNextHop| Route {
        interface: Some(hop.interface_index),
        gateway: gateway(&hop.attributes),
        ..route.clone()
    };
    ways.iter().map(along).collect()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// The kernel's word that something changed; what, is looked up afterwards.
pub struct Changes(Vec<TokioSocket>);

impl Changes {
    /// Of interfaces, addresses and routes. Needs a tokio runtime.
    pub fn of_interfaces() -> io::Result<Changes> {
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&netlink_sys::SocketAddr::new(0, groups.unsigned_abs()))?;
        Ok(Changes(vec![socket]))
    }

    /// Of what lets packets pass from one interface to another: the switches, and rules of nftables, as
    /// `iptables` sets them too. Rules of `iptables-legacy` change without a word. Needs a tokio runtime.
    ///
    /// Errors: neither can be heard of.
    pub fn of_forwarding() -> io::Result<Changes> {
        let member = |protocol, group| {
            let mut socket = TokioSocket::new(protocol)?;
            socket.socket_mut().bind_auto()?;
            socket.socket_mut().add_membership(group)?;
            Ok(socket)
        };
        let switches = member(NETLINK_ROUTE, SWITCHES_GROUP);
        match (switches, member(NETLINK_NETFILTER, RULES_GROUP)) {
            (Ok(switches), Ok(rules)) => Ok(Changes(vec![switches, rules])),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(Changes(vec![one])),
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// Waits for the next one; all that were told by then count as one.
    pub async fn next(&mut self) {
        let first = self.0.iter_mut().map(|socket| Box::pin(hear(socket)));
        select_all(first).await;
        for socket in &mut self.0 {
            for _ in 0..1024 {
                if hear(socket).now_or_never().is_none() {
                    break;
                }
            }
        }
    }
}

/// Waits for one message. An error means that the kernel had more to tell than it could keep: a change all the same.
async fn hear(socket: &mut TokioSocket) {
    let _ = socket.recv(&mut Vec::with_capacity(8192)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_loopback_with_an_address() {
        let found = read().expect("the kernel answers");
        let loopback = found.interfaces.values().find(|interface| interface.kind == Kind::Loopback);
        let loopback = loopback.expect("every namespace has one");
        assert_eq!(loopback.name, "lo");
        assert!(loopback.mtu > 0);
        // In a namespace that was just made it is switched off.
        assert!(!loopback.is_up || found.has(Ipv4Addr::LOCALHOST.into()));
    }

    #[test]
    fn what_software_made_is_told_from_hardware_by_the_kernels_word() {
        for (word, kind) in [
            (InfoKind::Bridge, Kind::Bridge),
            (InfoKind::Veth, Kind::Veth),
            (InfoKind::Wireguard, Kind::Tunnel),
            (InfoKind::Tun, Kind::Tunnel),
            (InfoKind::Vxlan, Kind::Inner),
            (InfoKind::Dummy, Kind::Inner),
            (InfoKind::Vlan, Kind::Part),
            (InfoKind::Other("dsa".into()), Kind::Card),
            (InfoKind::Other("ppp".into()), Kind::Tunnel),
        ] {
            assert_eq!(Kind::of(&word), kind, "{word}");
        }
    }
}
