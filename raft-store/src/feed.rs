//! What a replica without a log is fed with, and the feeding of it.
//!
//! On [`Lane::Follow`](crate::Lane) the follower says [`From`] which revision it goes on; the other end, a
//! voter or learner, answers with [`Word`]s: how things stand, at once, on every change and once a second;
//! a snapshot where the events after that revision are gone; then events, each revision once and in order.
//! A follower that reads too slowly for the ring of events is dropped, and begins anew with a snapshot.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use openraft::AsyncRuntime;
use openraft::async_runtime::{Instant, Select2, WatchReceiver};
use serde::{Deserialize, Serialize};

use crate::calls::frames;
use crate::handle::Handle;
use crate::standing::{self, Told, is_outside};
use crate::state::Event;
use crate::transport::{Broken, Pipe, PipeTx};
use crate::watch::{WatchError, Watcher};
use crate::wire::{frame, parse};

/// Between two signs of life.
pub(crate) const SIGN_EVERY: Duration = Duration::from_secs(1);
/// A leader counts as one for so long after a quorum was last known to hear it.
const LEADER_MAX: Duration = Duration::from_secs(3);
/// How long the first frame of a follower may take.
const BEGIN_MAX: Duration = Duration::from_secs(5);
/// Followers fed at once. A cluster has 256 nodes at most, shared among its voters and learners.
const FOLLOWERS_MAX: usize = 256;
/// Events gathered into one frame, beyond the first.
const FRAME_BYTES: usize = 1 << 20;

/// What a follower asks for. Append-only.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum From {
    /// The changes after this revision.
    Revision(u64),
}

/// One frame for a follower. Append-only, and its parts are frozen.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Word {
    /// How things stand now; also a sign of life.
    Standing(Told),
    /// A record of a snapshot, which replaces what the follower has.
    Record(Bytes),
    /// That was the last record.
    Whole,
    /// Changes, the first one after the last told.
    Events(Vec<Step>),
    /// The other end is no voter and no learner: it has told what it knows, ask one of those.
    Elsewhere,
}

/// One change of one key. What the key was before, the follower knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) revision: u64,
    pub(crate) key: Arc<str>,
    pub(crate) value: Option<Bytes>,
    pub(crate) stamp_ms: u64,
}

impl Step {
    fn of(event: Event) -> Step {
        Step { revision: event.revision, key: event.key, value: event.value, stamp_ms: event.stamp_ms }
    }

    fn size(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

impl<Rt: AsyncRuntime> Handle<Rt> {
    /// Feeds one follower until either end goes away.
    pub(crate) async fn serve_follower(&self, pipe: Pipe) -> Result<(), String> {
        let Pipe { mut tx, rx } = pipe;
        let mut frames = frames(rx);
        let first =
            Rt::timeout(BEGIN_MAX, frames.next()).await.map_err(|_| "a follower that asks nothing")?;
        let From::Revision(after) = parse(&first.ok_or("a follower that went away")?.map_err(why)?)?;
        if !self.is_member() || self.shared.followers.load(Ordering::Relaxed) >= FOLLOWERS_MAX {
            tell(&mut *tx, &Word::Standing(self.word())).await?;
            tell(&mut *tx, &Word::Elsewhere).await?;
            tx.finish();
            return Ok(());
        }
        let _seat = Seat::take(self);
        if self.word().leader.is_none() {
            // Nobody has followed for a while, so nobody has asked.
            self.confirm_leader().await;
        }
        let mut told = self.word();
        tell(&mut *tx, &Word::Standing(told.clone())).await?;
        let mut watcher = match self.watch("", after) {
            Ok(watcher) => watcher,
            Err(WatchError::Compacted { .. }) => self.feed_snapshot(&mut *tx).await?,
            Err(WatchError::Stopped) => return Ok(()),
        };
        let mut changes = self.on_change();
        let mut sign_at = Rt::Instant::now() + SIGN_EVERY;
        loop {
            let news = Rt::select2(watcher.next(), Rt::select2(changes.0.changed(), frames.next()));
            match Rt::timeout_at(sign_at, news).await {
                Ok(Select2::First(batch)) => {
                    feed_events(&mut *tx, batch.map_err(|error| error.to_string())?.events).await?;
                }
                Ok(Select2::Second(Select2::First(_))) | Err(_) => {}
                // A follower says nothing more: this is its end, or none of ours.
                Ok(Select2::Second(Select2::Second(_))) => return Ok(()),
            }
            if self.shared.replica.is_stopped() || !self.is_member() {
                return Ok(());
            }
            let now = self.word();
            if now != told || Rt::Instant::now() >= sign_at {
                tell(&mut *tx, &Word::Standing(now.clone())).await?;
                told = now;
                sign_at = Rt::Instant::now() + SIGN_EVERY;
            }
        }
    }

    /// Sends the state as it is, and returns a watch of what comes after it.
    async fn feed_snapshot(&self, tx: &mut dyn PipeTx) -> Result<Watcher, String> {
        let state = self.state().for_followers();
        // Before the records: it holds its place in the ring while they are on their way.
        let watcher = self.watch("", state.revision()).map_err(|error| error.to_string())?;
        for record in state.records() {
            tell(tx, &Word::Record(record.into())).await?;
        }
        tell(tx, &Word::Whole).await?;
        Ok(watcher)
    }

    /// What this store tells its followers: a leader only while that is known to have a quorum.
    fn word(&self) -> Told {
        let raft = self.raft().server_metrics().borrow_watched().clone();
        let state = self.state();
        let term = raft.vote.leader_id.term;
        let leader = standing::leader::<Rt>(&raft)
            .filter(|leader| !self.raft_failed() && self.is_confirmed(*leader, term));
        let members = (*raft.committed_membership_config).clone();
        Told { term, leader, members, level: state.level(), stamp_ms: state.stamp_ms() }
    }

    /// Notes that a quorum heard this leader now.
    pub(crate) fn confirmed(&self, leader: crate::VoterId, term: u64) {
        let mut confirmed = self.shared.confirmed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *confirmed = Some(Confirmed { leader, term, at: Rt::Instant::now() });
    }

    pub(crate) fn is_confirmed(&self, leader: crate::VoterId, term: u64) -> bool {
        let mut confirmed = self.shared.confirmed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*confirmed {
            Some(known) if (known.leader, known.term) == (leader, term) => known.at.elapsed() < LEADER_MAX,
            // One that is new has just been elected, by a quorum.
            _ => {
                *confirmed = Some(Confirmed { leader, term, at: Rt::Instant::now() });
                true
            }
        }
    }

    fn is_member(&self) -> bool {
        let raft = self.raft().server_metrics();
        let members = raft.borrow_watched().committed_membership_config.clone();
        members.log_id().is_some() && !is_outside(&members, self.voter()) && !self.raft_failed()
    }
}

/// A leader that a quorum was known to hear at that moment.
pub(crate) struct Confirmed<I> {
    pub(crate) leader: crate::VoterId,
    pub(crate) term: u64,
    pub(crate) at: I,
}

/// One of the followers that are fed, until dropped.
struct Seat<'a, Rt: AsyncRuntime>(&'a Handle<Rt>);

impl<'a, Rt: AsyncRuntime> Seat<'a, Rt> {
    fn take(handle: &'a Handle<Rt>) -> Self {
        handle.shared.followers.fetch_add(1, Ordering::Relaxed);
        Seat(handle)
    }
}

impl<Rt: AsyncRuntime> Drop for Seat<'_, Rt> {
    fn drop(&mut self) {
        self.0.shared.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends events in frames of about 1 MiB: a batch of the ring may hold hundreds of large values.
async fn feed_events(tx: &mut dyn PipeTx, events: Vec<Event>) -> Result<(), String> {
    let (mut steps, mut bytes) = (Vec::new(), 0);
    for step in events.into_iter().map(Step::of) {
        bytes += step.size();
        steps.push(step);
        if bytes >= FRAME_BYTES {
            tell(tx, &Word::Events(std::mem::take(&mut steps))).await?;
            bytes = 0;
        }
    }
    if steps.is_empty() { Ok(()) } else { tell(tx, &Word::Events(steps)).await }
}

async fn tell(tx: &mut dyn PipeTx, word: &Word) -> Result<(), String> {
    tx.send(frame(word)).await.map_err(why)
}

pub(crate) fn why(Broken(why): Broken) -> String {
    why
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, encode};

    /// If this fails, nodes of two builds no longer understand each other: add a variant instead.
    #[test]
    fn the_first_format_of_a_feed_never_changes() {
        let step = Step { revision: 7, key: "k".into(), value: Some(Bytes::from_static(b"v")), stamp_ms: 9 };
        let deleted = Step { value: None, ..step.clone() };
        let told = Told { term: 3, leader: None, members: Default::default(), level: 1, stamp_ms: 2 };
        let words: [(Word, &[u8]); 5] = [
            (Word::Standing(told), &[1, 0, 3, 0, 0, 0, 0, 1, 2]),
            (Word::Record(Bytes::from_static(b"r")), &[1, 1, 1, b'r']),
            (Word::Whole, &[1, 2]),
            (Word::Events(vec![step, deleted]), &[1, 3, 2, 7, 1, b'k', 1, 1, b'v', 9, 7, 1, b'k', 0, 9]),
            (Word::Elsewhere, &[1, 4]),
        ];
        for (word, bytes) in words {
            assert_eq!(encode(&word), bytes);
            assert_eq!(decode::<Word>(bytes).unwrap(), word);
        }
        assert_eq!(encode(&From::Revision(300)), [1, 0, 251, 44, 1]);
    }
}
