//! The shell of [`skein_control::clocks`]: clocks to the leader, the cluster's time from it.

use std::sync::Arc;

use skein_control::clocks::{Clocks, Leadership, Message, STEP, Send};
use skein_net::endpoint::Endpoint;
use skein_net::identity::NodeId;
use skein_raft_store::{Handle, TokioRuntime};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock;
use crate::members::Members;
use crate::wire;

/// Datagrams between a node and its leader about the time.
pub(crate) const CLOCK_DATAGRAM: u8 = 41;
/// Messages waiting for the loop; a lost one is repaired by the next.
const INBOX_MAX: usize = 256;
/// A clock that is off by more is worth a word.
const OFF_MAX_MS: u64 = 60_000;

/// The way in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inbox(mpsc::Sender<(NodeId, Message)>);

impl Inbox {
    /// A datagram of kind [`CLOCK_DATAGRAM`]. One that does not parse, or comes when too many wait, is dropped.
    pub(crate) fn datagram(&self, from: NodeId, bytes: &[u8]) {
        if let Ok(message) = wire::decode(bytes) {
            let _ = self.0.try_send((from, message));
        }
    }
}

/// See the module.
pub(crate) struct Shell {
    store: Handle<TokioRuntime>,
    endpoint: Endpoint,
    members: Members,
    clocks: Clocks<NodeId>,
    inbox: mpsc::Receiver<(NodeId, Message)>,
    known: Arc<watch::Sender<bool>>,
}

impl Shell {
    /// The shell, the way into it, and whether the cluster's time is known here.
    pub(crate) fn new(
        store: Handle<TokioRuntime>,
        endpoint: Endpoint,
        members: Members,
    ) -> (Shell, Inbox, watch::Receiver<bool>) {
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let (known, is_known) = watch::channel(false);
        let clocks = Clocks::new(endpoint.node());
        let shell = Shell { store, endpoint, members, clocks, inbox, known: Arc::new(known) };
        (shell, Inbox(sender), is_known)
    }

    /// One loop until `stopping`.
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        let mut changes = self.store.on_change();
        let mut sends = Vec::new();
        loop {
            self.step(&mut sends);
            self.publish();
            self.send(&mut sends);
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                Some((from, message)) = self.inbox.recv() => {
                    let (now, last) = (clock::boot(), self.last_ms());
                    self.clocks.hear(now, from, message, last, &self.leadership(), &mut sends);
                }
                changed = changes.changed() => if !changed { return },
                () = sleep(STEP) => {}
            }
        }
    }

    fn step(&mut self, sends: &mut Vec<Send<NodeId>>) {
        let members = self.members.present().into_keys().collect();
        let (now, wall, last) = (clock::boot(), clock::machine_ms(), self.last_ms());
        self.clocks.step(now, wall, last, &self.leadership(), &members, sends);
    }

    /// What is known goes to where the rest of the node looks for it.
    fn publish(&mut self) {
        let now = clock::boot();
        clock::set_for_stamps(now, self.clocks.clock(now));
        self.clocks.stamped(now, self.store.stamp_ms());
        let Some(ms) = self.clocks.now(now) else { return };
        clock::set_cluster(now, ms);
        if !self.known.send_replace(true) {
            let off_ms = off_ms();
            match off_ms.unsigned_abs() {
                0..=OFF_MAX_MS => info!(off_ms, "knows the cluster's time"),
                _ => warn!(off_ms, "this machine's clock is off; dates go by the clocks of the majority"),
            }
        }
    }

    fn send(&self, sends: &mut Vec<Send<NodeId>>) {
        for Send { to, message } in sends.drain(..) {
            self.endpoint.datagram(to, CLOCK_DATAGRAM, wire::encode(&message));
        }
    }

    fn leadership(&self) -> Leadership<NodeId> {
        let metrics = self.store.metrics();
        Leadership {
            leader: metrics.leader.map(|leader| NodeId(leader.node)),
            term: metrics.term,
            voters: metrics.voters.iter().map(|voter| NodeId(voter.node)).collect(),
        }
    }

    fn last_ms(&self) -> u64 {
        self.store.state().stamp_ms()
    }
}

/// By how much this machine's clock is ahead of the cluster's time.
fn off_ms() -> i64 {
    let (machine, cluster) = (clock::machine_ms() as i64, clock::now_ms() as i64);
    machine.saturating_sub(cluster)
}

/// What to say of this machine's clock, if anything.
pub(crate) fn complaint() -> Option<String> {
    let off_ms = off_ms();
    if off_ms.unsigned_abs() <= OFF_MAX_MS {
        return None;
    }
    let direction = if off_ms > 0 { "ahead of" } else { "behind" };
    let seconds = off_ms.unsigned_abs() / 1000;
    let by = match seconds {
        0..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    };
    Some(format!(
        "the clock of this machine is {by} {direction} those of most members, whose time counts; set it"
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_store_and_the_members_call_the_same_clocks_never_set() {
        assert_eq!(skein_control::clocks::SET_SINCE_MS, skein_raft_store::SET_SINCE_MS);
    }
}
