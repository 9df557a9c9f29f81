//! What is asked of this machine's networks before it becomes anybody's node.

use skein_net::interfaces::{self, Interfaces};
use tracing::debug;

use crate::daemon::Failure;
use crate::surroundings;

/// Whether a node can be made here. Nothing is changed.
pub(super) fn check() -> Result<(), Failure> {
    match interfaces::read() {
        Ok(machine) => unfit(&machine).map_or(Ok(()), |reason| Err(reason.into())),
        Err(error) => {
            debug!(%error, "could not look at this machine's networks");
            Ok(())
        }
    }
}

/// Why none can, in one sentence.
fn unfit(machine: &Interfaces) -> Option<String> {
    let overlaps = surroundings::overlaps(machine);
    if overlaps.is_empty() {
        return None;
    }
    let named: Vec<String> = overlaps.iter().map(ToString::to_string).collect();
    Some(format!(
        "no node can be made here: {}; the cluster's ranges cannot be chosen yet, so give this machine's network other addresses, or take away what leads there",
        named.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use skein_net::interfaces::{Address, Interface, Kind, Route};

    use super::*;

    fn machine(address: &str, is_up: bool) -> Interfaces {
        let (ip, prefix) = address.split_once('/').unwrap();
        let (ip, prefix) = (ip.parse().unwrap(), prefix.parse().unwrap());
        let interface = Interface {
            name: "eth1".into(),
            kind: Kind::Card,
            port_of: None,
            over: None,
            far_elsewhere: false,
            is_up,
            has_multicast: true,
            has_broadcast: true,
            mtu: 1500,
            addresses: vec![Address { ip, prefix, is_usable: true, is_secondary: false }],
        };
        Interfaces { interfaces: BTreeMap::from([(2, interface)]), routes: Vec::new() }
    }

    fn route(network: &str, protocol: u8) -> Interfaces {
        let (ip, prefix) = network.split_once('/').unwrap();
        let route = Route {
            network: ip.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
            interface: None,
            gateway: None,
            metric: 0,
            protocol,
            table: 254,
        };
        Interfaces { routes: vec![route], ..Interfaces::default() }
    }

    #[test]
    fn a_network_among_the_addresses_of_pods_or_services_is_named_with_their_range() {
        let reason = unfit(&machine("10.42.7.9/24", true)).unwrap();
        for word in ["10.42.7.0/24 (eth1)", "10.42.0.0/16", "pods"] {
            assert!(reason.contains(word), "{reason}");
        }
        let reason = unfit(&route("10.43.0.0/17", 4)).unwrap();
        assert!(reason.contains("10.43.0.0/17") && reason.contains("Services"), "{reason}");
        assert!(unfit(&machine("10.0.0.5/8", true)).is_some());
    }

    #[test]
    fn other_networks_what_is_switched_off_and_what_is_ours_are_no_reason() {
        for machine in [
            machine("192.168.1.5/24", true),
            machine("10.42.7.9/24", false),
            machine("fd00::1/64", true),
            route("0.0.0.0/0", 4),
            route("10.42.0.0/16", skein_podnet::routes::PROTOCOL),
        ] {
            assert_eq!(unfit(&machine), None, "{machine:?}");
        }
    }
}
