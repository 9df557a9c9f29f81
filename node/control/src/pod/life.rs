//! The state machine itself.

use super::{Effect, Found, Input};
use crate::time::Now;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// One pod's life on this node. See the module for the order of calls.
pub struct PodLife {}

impl PodLife {
    /// A pod that was just bound to this node.
    pub fn new(pod: Arc<Pod>, host_ips: Vec<String>) -> PodLife {
        PodLife::adopt(pod, host_ips, Found::default())
    }

    /// A pod of which something was found when the daemon came back.
    pub fn adopt(_pod: Arc<Pod>, _host_ips: Vec<String>, _found: Found) -> PodLife {
        PodLife {}
    }

    /// Takes one input at `now` (never earlier than the last one) and adds what the shell must do.
    pub fn handle(&mut self, _now: Now, _input: Input, _effects: &mut Vec<Effect>) {}
}
