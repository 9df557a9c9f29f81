//! What others are told about this node's disk.

use std::path::Path;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use skein_net::gossip::{Metadata, service};
use skein_raft_store::{Handle, TokioRuntime, log::Health};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The label of a member whose disk does not do its work, and its values.
const LABEL: &str = "disk";
const FULL: &str = "full";
const FAILED: &str = "failed";
/// How often it is looked at; the log itself asks a full disk as often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One word for people and for others' labels: `ok`, `full` or `failed`.
pub(crate) fn word(health: &Health) -> &'static str {
    match health {
        Health::Good => "ok",
        Health::Full => FULL,
        Health::Failed(_) => FAILED,
    }
}

/// The same by what a member says of itself.
pub(crate) fn word_of(metadata: Option<&Metadata>) -> &'static str {
    match metadata.and_then(|metadata| metadata.labels.get(LABEL)).map(String::as_str) {
        Some(FULL) => FULL,
        Some(FAILED) => FAILED,
        _ => "ok",
    }
}

/// Whether the member says that its disk has failed: it does not copy the log any more.
pub(crate) fn has_failed(metadata: Option<&Metadata>) -> bool {
    word_of(metadata) == FAILED
}

/// How much the file system holds that `dir` lies on.
pub(crate) fn capacity_kib(dir: &Path) -> u64 {
    // A kernel that does not say offers nothing; everything else of the node works.
    statvfs(dir).map_or(0, |held| held.blocks() * held.fragment_size() / 1024)
}

/// Looks at this node's disk until `stopping`, says by gossip what is wrong with it, and lets others here wait
/// for it to change.
pub(crate) fn watch(
    tasks: &TaskTracker,
    store: Handle<TokioRuntime>,
    gossip: service::Handle,
    stopping: CancellationToken,
) -> watch::Receiver<Health> {
    let (tell, told) = watch::channel(Health::Good);
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let health = store.disk();
            let label = (health != Health::Good).then_some(word(&health));
            let changed = tell.send_if_modified(|told| {
                let changed = *told != health;
                *told = health;
                changed
            });
            if changed {
                gossip.set_label(LABEL, label).await;
            }
        }
    });
    told
}
