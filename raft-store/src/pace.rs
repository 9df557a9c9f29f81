//! Lets Raft sleep while all is well.
//!
//! Openraft's ticker asks fifty times a second whether a heartbeat or an election is due, on every store. On a
//! small machine that is most of what an idle node does. So here the ticker runs only where an election may be
//! due soon; a leader's heartbeats come from one timer, and a follower that hears them wakes a few times a second.

use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::{Instant, WatchReceiver};

use crate::handle::Handle;
use crate::standing;

/// Nothing happens then; any change wakes before.
const REST: Duration = Duration::from_secs(60);

/// What a store has to do next.
enum Pace {
    /// Remind the others of it.
    Beat,
    /// Nothing until something changes: it leads only itself, or has no vote.
    Rest,
    /// Nothing for so long: its leader was heard.
    Sleep(Duration),
    /// Ask all the time whether to become the leader.
    Tick,
}

/// Runs until Raft ends.
pub(crate) async fn run<Rt: AsyncRuntime>(handle: Handle<Rt>) {
    let mut changes = handle.raft().server_metrics();
    let beat = handle.timings().heartbeat();
    loop {
        let pace = handle.pace();
        handle.raft().runtime_config().tick(matches!(pace, Pace::Tick));
        let pause = match pace {
            Pace::Beat => {
                if handle.raft().trigger().heartbeat().await.is_err() {
                    return;
                }
                beat
            }
            Pace::Rest => REST,
            Pace::Sleep(time) => time,
            // Ticks wake oftener than this.
            Pace::Tick => beat,
        };
        if let Ok(Err(_)) = Rt::timeout(pause, changes.changed()).await {
            return;
        }
    }
}

impl<Rt: AsyncRuntime> Handle<Rt> {
    fn pace(&self) -> Pace {
        let me = self.voter();
        let raft = self.raft().server_metrics().borrow_watched().clone();
        let members = raft.membership_config.membership();
        if standing::leader::<Rt>(&raft) == Some(me) {
            let is_alone = members.voter_ids().chain(members.learner_ids()).all(|id| id == me);
            return if is_alone { Pace::Rest } else { Pace::Beat };
        }
        if !members.voter_ids().any(|id| id == me) {
            return Pace::Rest;
        }
        // The ticker has to run again before the shortest election timeout is over.
        let quiet = self.timings().election_min() - self.timings().heartbeat() / 2;
        match self.last_heard().map(|heard| heard.elapsed()) {
            Some(silence) if silence < quiet => Pace::Sleep(quiet - silence),
            _ => Pace::Tick,
        }
    }
}
