//! Which addresses lead others here, best first, and which links carry what is for all of them. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::{Address, Evidence, Interface, Interfaces, Kind, Route};
use crate::gossip::metadata::ADDRESSES_MAX;

/// Interfaces stacked on each other: a VLAN on a bridge on a bond of cards is four.
const STACK_MAX: usize = 8;
const MAIN_TABLE: u32 = 254;
/// What VirtualBox and QEMU give every machine behind their own translation: each has the same address, and
/// nobody comes in.
const USER_NETWORK: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 2));

/// Where an interface leads, the likeliest way to other machines first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// A card, or what ends in one, with the default route.
    Default,
    /// One without. Two networks of cards are ordered by their routes, then by name.
    Card,
    /// The default route goes through a tunnel: mostly somebody's way to the Internet.
    DefaultTunnel,
    /// Whoever is in the tunnel as well is reached.
    Tunnel,
    /// To a container, mostly; where this machine is the container, it has the default route.
    Veth,
}

/// The lowest is best.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    is_doubtful: bool,
    /// Not the first of its kind on its interface.
    is_spare: bool,
    way: Way,
    /// An IPv4 default route counts before one of IPv6: routers announce the latter for every network.
    metric: (bool, u32),
    name: &'a str,
    /// Of one interface IPv4 comes first, which all software speaks; then what stays when the provider gives
    /// another prefix.
    sort: Sort,
    place: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    V4,
    /// fc00::/7
    UniqueLocal,
    Global,
}

impl Sort {
    fn of(ip: IpAddr) -> Sort {
        match ip {
            IpAddr::V4(_) => Sort::V4,
            IpAddr::V6(ip) if ip.is_unique_local() => Sort::UniqueLocal,
            IpAddr::V6(_) => Sort::Global,
        }
    }
}

/// Where others may reach a socket bound to `listen`, best first, at most [`ADDRESSES_MAX`].
///
/// A socket bound to one address is reachable there alone. Without any other address it is the loopback,
/// which is right for several nodes on one machine without a network.
pub(crate) fn reachable(machine: &Interfaces, listen: SocketAddr, evidence: &Evidence) -> Vec<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return vec![listen];
    }
    let mut ranked: Vec<(Rank<'_>, IpAddr)> = Vec::new();
    for (index, interface) in &machine.interfaces {
        let Some(way) = machine.way(*index) else { continue };
        let metric = machine.metric(*index);
        let mut firsts = BTreeMap::new();
        for (place, address) in interface.addresses.iter().enumerate() {
            let is_spoken = address.ip.is_ipv4() || listen.is_ipv6();
            if !is_spoken || !is_for_others(address) {
                continue;
            }
            let sort = Sort::of(address.ip);
            let is_extra = interface.is_extra(address);
            let is_user_network =
                machine.is_user_network(*index, address.ip) && !evidence.proven.contains(&address.ip);
            let rank = Rank {
                is_doubtful: is_user_network || evidence.doubtful.contains(&address.ip),
                is_spare: is_extra || *firsts.entry(sort).or_insert(place) != place,
                way,
                metric,
                name: &interface.name,
                sort,
                place,
            };
            ranked.push((rank, address.ip));
        }
    }
    ranked.sort();
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for (_, ip) in ranked {
        let address = SocketAddr::new(ip, listen.port());
        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        addresses.push(SocketAddr::from(([127, 0, 0, 1], listen.port())));
    }
    addresses
}

/// Whether others can be told this address, and it is theirs to use tomorrow.
fn is_for_others(address: &Address) -> bool {
    let is_known_elsewhere = match address.ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        // Without its zone such an address means nothing to others. A temporary one changes every day.
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !address.is_secondary,
    };
    let ip = address.ip;
    let is_one_machines = !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast();
    address.is_usable && is_known_elsewhere && is_one_machines
}

impl Interface {
    /// Whether it is one more of the same network, or of no network beside one that has one: such an address
    /// often moves from machine to machine (keepalived).
    fn is_extra(&self, address: &Address) -> bool {
        let is_bare = |address: &Address| address.ip.is_ipv4() && address.prefix == 32;
        let mut others = self.addresses.iter().filter(|other| other.ip.is_ipv4());
        address.is_secondary || (is_bare(address) && others.any(|other| !is_bare(other)))
    }
}

impl Interfaces {
    /// Where an interface leads; `None` where it leads to no other machine.
    fn way(&self, index: u32) -> Option<Way> {
        let interface = self.interfaces.get(&index)?;
        if !interface.is_up || interface.kind == Kind::Loopback {
            return None;
        }
        let is_tunnel = interface.kind == Kind::Tunnel;
        match self.default_routes(index).next().is_some() {
            true if is_tunnel => Some(Way::DefaultTunnel),
            true => Some(Way::Default),
            false if is_tunnel => Some(Way::Tunnel),
            false if !self.leads_out(index, STACK_MAX) => None,
            false if interface.kind == Kind::Veth => Some(Way::Veth),
            false => Some(Way::Card),
        }
    }

    /// Whether it ends in a card, or in a pair whose other end is somewhere else.
    fn leads_out(&self, index: u32, stack: usize) -> bool {
        let Some(interface) = self.interfaces.get(&index).filter(|_| stack > 0) else { return false };
        match interface.kind {
            Kind::Card => true,
            // A port of a bridge leads to a container of this machine.
            Kind::Veth => interface.far_elsewhere && interface.port_of.is_none(),
            Kind::Part => {
                interface.far_elsewhere
                    || interface.over.is_some_and(|below| self.leads_out(below, stack - 1))
            }
            Kind::Bridge | Kind::Bond => {
                let mut ports = self.interfaces.iter().filter(|(_, port)| port.port_of == Some(index));
                ports.any(|(port, _)| self.leads_out(*port, stack - 1))
            }
            Kind::Loopback | Kind::Tunnel | Kind::Inner => false,
        }
    }

    fn default_routes(&self, index: u32) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(move |route| {
            route.prefix == 0 && route.table == MAIN_TABLE && route.interface == Some(index)
        })
    }

    /// Of its best default route, see [`Rank::metric`].
    fn metric(&self, index: u32) -> (bool, u32) {
        let of = self.default_routes(index).map(|route| (route.network.is_ipv6(), route.metric));
        of.min().unwrap_or((true, u32::MAX))
    }

    /// Whether it is the address that user-mode networks of virtual machines give to each of them.
    fn is_user_network(&self, index: u32, ip: IpAddr) -> bool {
        let (guest, gateway) = USER_NETWORK;
        match ip {
            IpAddr::V4(ip) => {
                let gateway = Some(IpAddr::V4(gateway));
                ip == guest && self.default_routes(index).any(|route| route.gateway == gateway)
            }
            // Site-local, given up in 2004; QEMU gives fec0::/64.
            IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfec0,
        }
    }
}

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

/// The links over which a socket bound to `listen` reaches other machines unasked-for, by name.
pub(crate) fn links(machine: &Interfaces, listen: SocketAddr) -> Vec<Link> {
    let link = |(index, interface): (&u32, &Interface)| {
        machine.way(*index).filter(|_| interface.has_multicast)?;
        let bound = |ip: &IpAddr| listen.ip().is_unspecified() || listen.ip() == *ip;
        let (mut v4, mut v6) = (Vec::new(), false);
        for ip in interface.addresses.iter().map(|address| address.ip).filter(bound) {
            match ip {
                // A dual-stack socket speaks both, one bound to an address that one's family.
                IpAddr::V4(ip) => v4.push(ip),
                IpAddr::V6(_) => v6 |= listen.is_ipv6(),
            }
        }
        let speaks = v6 || !v4.is_empty();
        let has_broadcast = interface.has_broadcast;
        speaks.then(|| Link { name: interface.name.clone(), index: *index, v4, v6, has_broadcast })
    };
    let mut links: Vec<Link> = machine.interfaces.iter().filter_map(link).collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links
}
