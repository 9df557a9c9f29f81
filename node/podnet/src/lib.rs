//! Addresses and links of pods on this machine, and the routes to the pods of other machines.
//!
//! Every pod has one address of its node's subnet, as a /32 behind a routed veth: no bridge, so nothing
//! depends on `br_netfilter`, and a Service address works between two pods of one node. Between nodes
//! there are plain routes today: **not encrypted**, and only for nodes that share a link.
//!
//! Owns: links, addresses and routes that carry this crate's marks (pairs named `sk…` and `sp…`, route
//! protocol [`routes::PROTOCOL`]); it never touches any other, except that [`neighbours`] lets the kernel forget
//! what it can ask again, and that [`forwarding`] is switched on for pods. Another's route to the same addresses
//! wins over ours; where the machine's own networks lie, [`overlap`] says. It imports nothing of ours and does not
//! know what a pod is beyond its uid and its network namespace.
//!
//! Everything here blocks for milliseconds at most (netlink answers at once); call it from a blocking
//! thread. It must run in the network namespace of the node.

pub mod forwarding;
mod ipam;
#[cfg(test)]
mod kernel_tests;
mod link;
pub mod neighbours;
mod netlink;
mod network;
pub mod overlap;
mod probe;
pub mod routes;
mod subnet;

pub use ipam::Ipam;
pub use network::{Config, Error, Network, clear};
pub use probe::Probe;
pub use routes::Peer;
pub use subnet::{Subnet, SubnetError};
