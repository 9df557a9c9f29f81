//! This machine's network interfaces as the kernel has them, and which of its addresses lead to other machines.
//!
//! [`kernel`] reads them and hears of changes; [`reach`], pure, says which addresses others are told, best
//! first, and on which links the beacon speaks; [`experience`], pure, knows which addresses work. What an interface is for is decided by what it *is* (its kind,
//! its ports, its routes), never by its name: `docker1` may be an uplink, and `br-lan` is one on every OpenWrt.

mod experience;
mod kernel;
mod reach;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr};

pub use self::kernel::{Changes, ROUTES_MAX, read};
pub(crate) use self::{
    experience::{Evidence, Experience},
    reach::{Link, links, reachable},
};

/// What the kernel says at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// By index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// All but those of the table `local`, which only repeat the addresses; IPv4 first, at most
    /// [`ROUTES_MAX`] of each family.
    pub routes: Vec<Route>,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, for people.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The bridge or bond that it is a port of.
    pub port_of: Option<u32>,
    /// The interface below it: that of a VLAN, say.
    pub over: Option<u32>,
    /// Whether its other end, or what is below it, lies in another network namespace.
    pub far_elsewhere: bool,
    /// Whether it is switched on.
    pub is_up: bool,
    /// Whether what is sent to a group passes.
    pub has_multicast: bool,
    /// Whether what is sent to all passes.
    pub has_broadcast: bool,
    /// Longest packet, in bytes.
    pub mtu: u32,
    /// In the kernel's order.
    pub addresses: Vec<Address>,
}

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The machine itself.
    Loopback,
    /// Hardware, or what looks like it to this machine.
    Card,
    /// A bridge; what it leads to, its ports say.
    Bridge,
    /// Several cards that act as one.
    Bond,
    /// A VLAN or another part of the interface below it.
    Part,
    /// One end of a pair; containers have the other one.
    Veth,
    /// Over another network: WireGuard, a tunnel, a modem's session.
    Tunnel,
    /// For this machine alone, or for other software's own network: `dummy`, `vxlan`.
    Inner,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// How many of its leading bits all machines on its network share.
    pub prefix: u8,
    /// Whether it may be used for new connections: neither deprecated, nor still being checked, nor found to be
    /// another machine's.
    pub is_usable: bool,
    /// Of IPv6: changed every day, so that others cannot follow it. Of IPv4: one more in the same network.
    pub is_secondary: bool,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads to.
    pub network: IpAddr,
    /// Leading bits of `network` that count.
    pub prefix: u8,
    /// By which interface; none where it refuses.
    pub interface: Option<u32>,
    /// The next machine on the way.
    pub gateway: Option<IpAddr>,
    /// Lower ones are preferred.
    pub metric: u32,
    /// Who made it (`/etc/iproute2/rt_protos`): 2 is the kernel itself.
    pub protocol: u8,
    /// The table it stands in: 254 is the main one.
    pub table: u32,
}

impl Interfaces {
    /// Every address of an interface that is on, the loopback's included.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        let on = self.interfaces.values().filter(|interface| interface.is_up);
        on.flat_map(|interface| interface.addresses.iter().map(|address| address.ip))
    }

    /// Whether an address is another machine's on a link of this one: reached without a gateway.
    pub fn is_on_link(&self, ip: IpAddr) -> bool {
        let networks = self.interfaces.values().filter(|interface| interface.is_up);
        let mut networks = networks.flat_map(|interface| &interface.addresses);
        !self.has(ip) && networks.any(|own| own.shares_network_with(ip))
    }

    /// Whether an address is this machine's.
    pub fn has(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.ips().any(|own| own == ip)
    }
}

impl Address {
    fn shares_network_with(&self, ip: IpAddr) -> bool {
        // Of the bits that differ none may be among the leading ones.
        match (self.ip, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                (own.to_bits() ^ ip.to_bits()).leading_zeros() >= self.prefix.into()
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                (own.to_bits() ^ ip.to_bits()).leading_zeros() >= self.prefix.into()
            }
            _ => false,
        }
    }
}
