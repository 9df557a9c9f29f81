//! What every loop of ours waits for beside its messages.

use tokio::time::{Instant, sleep_until};

/// Sleeps until `at`; `None` never comes.
pub(crate) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
