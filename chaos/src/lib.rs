//! Faults on real nodes: a lab of machines in namespaces, and what to do to them.
//!
//! Owns: [`lab`] (machines, their links and power), [`api`] (a node as a client sees it), the scenarios
//! that `skein demo`, the end-to-end tests and the benchmarks share. It knows a node only as a process
//! and an API: it imports none of our crates.

pub mod api;
pub mod cluster;
pub mod lab;

use tokio::signal::unix::{SignalKind, signal};

/// Waits for Ctrl-C, or somebody's `kill`: a lab that is then dropped leaves nothing behind.
pub async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
