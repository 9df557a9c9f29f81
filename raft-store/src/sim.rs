//! A world for stores to live in: virtual time, processes that can be killed and paused, and a
//! network that delays, loses and cuts. For tests of this crate and of the whole cluster.
//!
//! With one seed everything here happens in the same order, at the same virtual moments.

mod mutation;
mod network;
mod process;
mod runtime;

pub use mutation::Mutation;
pub use network::{Incoming, SimNetwork, SimTransport, Weather};
pub use process::Process;
pub use runtime::{SimJoinHandle, SimRt};
