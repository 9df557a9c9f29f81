//! Who is there: SWIM membership over the endpoint's datagrams.
//!
//! [`core`] decides and is pure; [`service`] is the one task that gives it time, chance and a network.
//! What gossip says is a hint: it spreads membership, addresses and suspicion, and moves no pod.

mod codec;
pub mod core;
mod list;
pub mod member;
pub mod metadata;
#[cfg(test)]
pub(crate) mod real;
pub mod service;
#[cfg(test)]
mod simulation;

pub use self::list::List;
pub use self::member::{Change, Member, State};
pub use self::metadata::Metadata;
pub use self::service::{Config, Gossip, Handle};
