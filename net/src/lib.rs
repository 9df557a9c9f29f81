//! Who is there, whom do I trust, and bytes between nodes.
//!
//! Owns: a node's key and the id that follows from it, the cluster's certificate authorities, join
//! tokens, TLS between nodes; the one QUIC endpoint of a node and membership by gossip. Imports none
//! of our crates and does not know what a pod is. What a peer sends is parsed once, at the door, under
//! a limit.
//!
//! Trust, in reading order:
//!
//! * [`identity`]: a node is a key, kept in its data directory; so is the number of its starts.
//! * [`incarnation`]: which life of which cluster a node belongs to.
//! * [`ca`]: the cluster's authorities, and the certificates they give by their own templates.
//! * [`token`]: the word an operator pastes on the next machine, and what the store keeps of it.
//! * [`tls`]: who may speak on which protocol of the one UDP port.
//! * [`join`]: how a machine with a token becomes a member.
//!
//! Talking, in reading order:
//!
//! * [`interfaces`]: where this machine is, as its kernel has it.
//! * [`address_book`]: where each node was seen.
//! * [`listen`]: sockets that listen, of both families.
//! * [`endpoint`]: the one UDP port: connections by node id, framed streams, datagrams.
//! * [`stream`]: frames on a stream, each under a limit.
//! * [`gossip`]: who is alive; a pure core and its loop.
//! * [`beacon`]: how members find each other when all addresses have changed.

pub mod address_book;
pub mod beacon;
pub mod ca;
mod encoding;
pub mod endpoint;
pub mod gossip;
pub mod identity;
mod ids;
pub mod incarnation;
pub mod interfaces;
pub mod join;
pub mod listen;
#[cfg(test)]
mod loopback;
pub mod stream;
mod timer;
pub mod tls;
pub mod token;
