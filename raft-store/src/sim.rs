//! A world for stores to live in: virtual time, processes that can be killed and paused, and a
//! network that delays, loses and cuts. For tests of this crate and of the whole cluster.
//!
//! With one seed everything here happens in the same order, at the same virtual moments.

mod mutation;
mod network;
mod process;
mod runtime;
mod seen;

pub use mutation::Mutation;
pub use network::{Incoming, SimNetwork, SimTransport, Weather};
pub use process::Process;
pub use runtime::{SimJoinHandle, SimRt};
pub(crate) use seen::see;
pub use seen::take_seen;

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::sim_files::SimFiles;
use crate::{Config, Handle, StartError, Transport};

/// The virtual clock, in ms since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = openraft_rt_sim::SimInstant::try_now().map_or(0, |now| now.elapsed_since_start().as_millis());
    1_760_000_000_000 + since as u64
}

/// As [`start`](crate::start), on a simulated disk. Boxed, so that consensus in virtual time is compiled
/// here once and not again with each test that uses it.
pub fn start(
    config: Config,
    files: SimFiles<SimRt>,
    transport: Arc<dyn Transport>,
) -> BoxFuture<'static, Result<Handle<SimRt>, StartError>> {
    Box::pin(crate::store::start(config, files, transport))
}
