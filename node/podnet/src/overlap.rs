//! Whether the machine's own networks lie where pods and Services have their addresses. Pure.

use std::fmt;

use crate::Subnet;

/// Wider networks than this are the rest of the world: a default route, or the half of one that a VPN sets.
const WORLD_PREFIX_MAX: u8 = 7;

/// Addresses that the cluster uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// All of them.
    pub network: Subnet,
    /// Whose they are: `pods`, `Services`.
    pub whose: &'static str,
}

/// A network that this machine has an address in or a route to, and that is not ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Present {
    /// Its addresses.
    pub network: Subnet,
    /// The interface that leads there, for people; none where a route refuses.
    pub interface: Option<String>,
}

/// A network of the machine in a range of the cluster, or around it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// The machine's.
    pub present: Present,
    /// The cluster's.
    pub range: Range,
}

impl Overlap {
    /// Whether the machine's network lies in the cluster's range, so that some addresses lead to both. Around it,
    /// only that part of the machine's network is out of reach.
    pub fn is_inside(&self) -> bool {
        self.present.network.prefix() >= self.range.network.prefix()
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overlap { present, range } = self;
        write!(f, "{}", present.network)?;
        if let Some(interface) = &present.interface {
            write!(f, " ({interface})")?;
        }
        write!(f, " of this machine overlaps {}, the addresses of {}", range.network, range.whose)
    }
}

/// Each network of the machine with each range that it overlaps, in order.
pub fn overlaps(ranges: &[Range], present: impl IntoIterator<Item = Present>) -> Vec<Overlap> {
    let narrow = present.into_iter().filter(|present| present.network.prefix() > WORLD_PREFIX_MAX);
    let mut found: Vec<Overlap> = narrow
        .flat_map(|present| {
            let hit = ranges.iter().filter(|range| range.network.overlaps(&present.network));
            hit.map(|range| Overlap { present: present.clone(), range: *range }).collect::<Vec<_>>()
        })
        .collect();
    found.sort();
    // An address and the kernel's route to its network are one.
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(networks: &[(&str, &str)]) -> Vec<String> {
        let ranges = [
            Range { network: "10.42.0.0/16".parse().unwrap(), whose: "pods" },
            Range { network: "10.43.0.0/16".parse().unwrap(), whose: "Services" },
        ];
        let present = networks.iter().map(|(network, interface)| Present {
            network: network.parse().unwrap(),
            interface: Some(interface.to_string()),
        });
        overlaps(&ranges, present).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn networks_elsewhere_and_the_rest_of_the_world_are_no_overlap() {
        let networks = [
            ("192.168.1.0/24", "eth0"),
            ("10.41.0.0/16", "eth1"),
            ("10.44.0.1/32", "eth1"),
            ("0.0.0.0/0", "eth0"),
            ("0.0.0.0/1", "tun0"),
            ("8.0.0.0/7", "wg0"),
        ];
        assert_eq!(found(&networks), Vec::<String>::new());
    }

    #[test]
    fn a_network_in_a_range_or_around_it_is_named_with_the_range() {
        for (network, expected) in [
            (
                "10.42.7.0/24",
                "10.42.7.0/24 (eth0) of this machine overlaps 10.42.0.0/16, the addresses of pods",
            ),
            (
                "10.42.0.0/16",
                "10.42.0.0/16 (eth0) of this machine overlaps 10.42.0.0/16, the addresses of pods",
            ),
            (
                "10.43.1.7/32",
                "10.43.1.7/32 (eth0) of this machine overlaps 10.43.0.0/16, the addresses of Services",
            ),
        ] {
            assert_eq!(found(&[(network, "eth0")]), [expected]);
        }
        assert_eq!(found(&[("10.0.0.0/8", "eth0")]).len(), 2);
        assert_eq!(found(&[("10.42.7.0/24", "eth0"), ("10.42.7.0/24", "eth0")]).len(), 1, "one, told twice");
    }

    #[test]
    fn what_lies_inside_a_range_is_told_from_what_lies_around_it() {
        let range = Range { network: "10.42.0.0/16".parse().unwrap(), whose: "pods" };
        let inside = |network: &str| {
            let present = Present { network: network.parse().unwrap(), interface: None };
            Overlap { present, range }.is_inside()
        };
        assert!(inside("10.42.7.0/24") && inside("10.42.0.0/16"));
        assert!(!inside("10.0.0.0/8"));
    }
}
