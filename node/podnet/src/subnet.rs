//! An IPv4 network in CIDR notation.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 network: the address bits below the prefix are always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no [`Subnet`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot read {0:?} as an IPv4 network; write it like 10.42.0.0/16")]
pub struct SubnetError(String);

impl Subnet {
    /// The network of `prefix` bits that contains `address`; `prefix` above 32 counts as 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Subnet {
        let prefix = prefix.min(32);
        Subnet { base: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// The lowest address of the network.
    pub fn base(&self) -> Ipv4Addr {
        self.base
    }

    /// Number of leading bits that all its addresses share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` lies in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.base.to_bits()
    }

    /// Whether any address lies in both.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// The `n`-th subnet of `prefix` bits inside this one, if there are that many.
    pub fn nth_part(&self, prefix: u8, n: u32) -> Option<Subnet> {
        let bits = prefix.checked_sub(self.prefix).filter(|_| prefix <= 32)?;
        (u64::from(n) < 1u64 << bits).then(|| {
            let offset = u64::from(n) << (32 - prefix);
            Subnet::new(Ipv4Addr::from_bits(self.base.to_bits() | offset as u32), prefix)
        })
    }

    /// Addresses a pod may have: all but the first (the network's name) and the last (broadcast).
    pub fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let size = 1u64 << (32 - self.prefix);
        let base = self.base.to_bits();
        (1..size.saturating_sub(1)).map(move |n| Ipv4Addr::from_bits(base + n as u32))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Subnet, SubnetError> {
        let wrong = || SubnetError(text.chars().take(64).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(wrong)?;
        let subnet = Subnet::new(address, prefix);
        // 10.42.1.7/16 is somebody's typing error more often than somebody's wish.
        if subnet.base == address { Ok(subnet) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Subnet, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_is_read_as_it_is_written() {
        for text in ["10.42.0.0/16", "10.42.7.0/24", "0.0.0.0/0", "192.168.1.1/32"] {
            assert_eq!(subnet(text).to_string(), text);
        }
        for text in ["10.42.0.0", "10.42.0.1/16", "10.42.0.0/33", "x/8", "", "10.42.0.0/-1"] {
            assert_eq!(text.parse::<Subnet>(), Err(SubnetError(text.into())), "{text}");
        }
    }

    #[test]
    fn parts_lie_inside_and_end_where_the_network_ends() {
        let cluster = subnet("10.42.0.0/16");
        assert_eq!(cluster.nth_part(24, 0), Some(subnet("10.42.0.0/24")));
        assert_eq!(cluster.nth_part(24, 255), Some(subnet("10.42.255.0/24")));
        assert_eq!(cluster.nth_part(24, 256), None);
        assert_eq!(cluster.nth_part(8, 0), None);
    }

    #[test]
    fn a_subnet_of_24_bits_has_254_pod_addresses() {
        let hosts: Vec<_> = subnet("10.42.1.0/24").hosts().collect();
        assert_eq!(hosts.len(), 254);
        assert_eq!(hosts[0], Ipv4Addr::new(10, 42, 1, 1));
        assert_eq!(hosts[253], Ipv4Addr::new(10, 42, 1, 254));
    }

    #[test]
    fn overlap_is_seen_from_both_sides() {
        assert!(subnet("10.0.0.0/8").overlaps(&subnet("10.42.0.0/16")));
        assert!(subnet("10.42.0.0/16").overlaps(&subnet("10.0.0.0/8")));
        assert!(!subnet("10.42.0.0/16").overlaps(&subnet("10.43.0.0/16")));
    }
}
