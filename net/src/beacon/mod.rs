//! How nodes find each other when no address they know is right any more: a small signed datagram to
//! everybody on each link, and to the names an operator gave, beside QUIC on the one UDP port.
//!
//! In reading order: [`codec`] is what travels; [`core`], pure, is when to speak and whom to believe;
//! [`service`] is its loop on the [`links`]. Addresses found go to the address book, and gossip looks there.
//! [`around`] is what a machine of no cluster asks before it founds one, [`twin`] what a member asks before it starts.
//!
//! Where a node listens on one address only, nothing that is sent to a group or to all reaches it: it is
//! found by those who ask it by name.

mod around;
mod codec;
mod core;
mod links;
mod name;
#[cfg(test)]
mod real;
mod service;
#[cfg(test)]
mod simulation;
mod twin;

pub use self::around::{Around, look_around};
pub use self::core::Tuning;
pub use self::name::{ParsePeerNameError, PeerName};
pub use self::service::{Beacon, Config, PEERS_MAX};
pub use self::twin::{Twin, find_twin};
