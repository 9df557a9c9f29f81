//! What this node knows of the network around it, for `skein status`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use skein_control::pod_network::Trouble;
use skein_control::reachability::{Sight, complaints};
use skein_net::endpoint::Endpoint;
use skein_net::gossip;
use skein_net::identity::NodeId;
use skein_net::interfaces::{Interface, Interfaces};
use skein_podnet::overlap::{self, Overlap, Present, Range};
use skein_podnet::{Subnet, routes};
use tokio::sync::watch;

use crate::daemon::{POD_NETWORK, SERVICE_NETWORK};
use crate::members::Members;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) endpoint: Endpoint,
    pub(crate) gossip: gossip::service::Handle,
    pub(crate) members: Members,
    pub(crate) is_advertised: bool,
    /// What keeps pods of this machine from the network.
    pub(crate) troubles: watch::Receiver<Vec<Trouble>>,
}

impl Surroundings {
    /// What is wrong now, a sentence each.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let troubles: Vec<String> =
            self.troubles.borrow().iter().map(|trouble| trouble.message.clone()).collect();
        // Those inside of a range are among the troubles.
        let around =
            overlaps(&self.endpoint.machine().borrow()).into_iter().filter(|overlap| !overlap.is_inside());
        let around = around.map(|overlap| format!("{overlap}: what is there in that range is out of reach"));
        complaints(&self.sight()).into_iter().chain(troubles).chain(around).collect()
    }

    fn sight(&self) -> Sight {
        let name = |node: NodeId| self.members.get(node).map(|record| record.name);
        let gossiped = self.gossip.members().borrow().clone();
        let there = gossiped.values().filter(|member| member.state.is_active());
        let api = |member: &gossip::Member| member.metadata.as_ref().and_then(|said| said.api_address);
        let seen_as = self.endpoint.seen_as().into_iter();
        Sight {
            listen: Some(self.endpoint.local_address()),
            ips: self.endpoint.machine().borrow().ips().collect(),
            told: self.endpoint.reachable_addresses(),
            is_advertised: self.is_advertised,
            members: there.filter_map(|member| Some((name(member.node())?, api(member)))).collect(),
            seen_as: seen_as.filter_map(|(node, at)| Some((name(node)?, at))).collect(),
        }
    }
}

/// The machine's networks that lie in the cluster's ranges or around them; what is ours is left out.
pub(crate) fn overlaps(machine: &Interfaces) -> Vec<Overlap> {
    let range =
        |network: &str, whose| Range { network: network.parse().expect("a network in CIDR notation"), whose };
    let ranges = [range(POD_NETWORK, "pods"), range(SERVICE_NETWORK, "Services")];
    let present = |ip: IpAddr, prefix: u8, interface: Option<&Interface>| match ip {
        IpAddr::V4(ip) => {
            Some(Present { network: Subnet::new(ip, prefix), interface: interface.map(|it| it.name.clone()) })
        }
        IpAddr::V6(_) => None,
    };
    let on = machine.interfaces.values().filter(|interface| interface.is_up);
    let addresses = on.flat_map(|interface| {
        let networks = interface.addresses.iter();
        networks.filter_map(move |own| present(own.ip, own.prefix, Some(interface)))
    });
    let routes =
        machine.routes.iter().filter(|route| route.protocol != routes::PROTOCOL).filter_map(|route| {
            present(
                route.network,
                route.prefix,
                route.interface.and_then(|index| machine.interfaces.get(&index)),
            )
        });
    overlap::overlaps(&ranges, addresses.chain(routes))
}

/// The interfaces with the addresses that others are told.
pub(crate) fn uplinks(machine: &Interfaces, told: &[SocketAddr]) -> Vec<String> {
    let told: BTreeSet<IpAddr> = told.iter().map(SocketAddr::ip).filter(|ip| !ip.is_loopback()).collect();
    let has = |interface: &&Interface| interface.addresses.iter().any(|own| told.contains(&own.ip));
    machine.interfaces.values().filter(has).map(|interface| interface.name.clone()).collect()
}
