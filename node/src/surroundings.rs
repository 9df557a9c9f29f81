//! What this node knows of the network around it, for `skein status`.

use skein_control::reachability::{Sight, complaints};
use skein_net::endpoint::Endpoint;
use skein_net::gossip;
use skein_net::identity::NodeId;

use crate::members::Members;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) endpoint: Endpoint,
    pub(crate) gossip: gossip::service::Handle,
    pub(crate) members: Members,
    pub(crate) is_advertised: bool,
}

impl Surroundings {
    /// What is wrong now, a sentence each.
    pub(crate) fn complaints(&self) -> Vec<String> {
        complaints(&self.sight())
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
