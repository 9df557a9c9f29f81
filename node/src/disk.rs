//! What others are told about this node's disk.

use std::time::Duration;

use skein_net::gossip::{Metadata, service};
use skein_raft_store::{Handle, TokioRuntime, log::Health};
use tokio_util::sync::CancellationToken;

/// The label of a member whose disk is full, and its value.
const LABEL: &str = "disk";
const FULL: &str = "full";
/// How often it is looked at; the log itself asks a full disk as often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether the member says that its disk is full.
pub(crate) fn is_full(metadata: &Metadata) -> bool {
    metadata.labels.get(LABEL).is_some_and(|word| word == FULL)
}

/// Says by gossip when this node's disk is full and when it is not any more.
pub(crate) async fn tell(store: Handle<TokioRuntime>, gossip: service::Handle, stopping: CancellationToken) {
    let mut told = false;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let full = store.disk() == Health::Full;
        if full == told {
            continue;
        }
        told = full;
        gossip.set_label(LABEL, full.then_some(FULL)).await;
    }
}
