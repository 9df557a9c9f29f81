//! What a replica without a log is fed with, and the feeding of it.
//!
//! On [`Lane::Follow`](crate::Lane) the follower says [`From`] which revision it goes on; the other end, a
//! voter or learner, answers with [`Word`]s: how things stand, at once, on every change and once a second;
//! a snapshot where the events after that revision are gone; then events, each revision once and in order.
//!
//! A catch-up that has begun ends: while a snapshot is on its way the ring of events may pass it, as it may pass a
//! follower that reads slowly. Then come the keys that are not as they were when it was made, which is less, and what
//! changed meanwhile is less still. What a follower costs here is one picture of the map, of which it shares with the
//! present one all that has not changed since.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use openraft::AsyncRuntime;
use openraft::async_runtime::{Instant, Select2, WatchReceiver};
use serde::{Deserialize, Serialize};

use crate::calls::frames;
use crate::handle::Handle;
use crate::standing::{self, Told, is_outside};
use crate::state::{Difference, Event, State};
use crate::tail::{Moved, Tail};
use crate::transport::{Broken, Pipe, PipeTx};
use crate::watch::WatchError;
use crate::wire::{frame, parse};

/// Between two signs of life.
pub(crate) const SIGN_EVERY: Duration = Duration::from_secs(1);
/// A leader counts as one for so long after a quorum was last known to hear it.
const LEADER_MAX: Duration = Duration::from_secs(3);
/// How long the first frame of a follower may take.
const BEGIN_MAX: Duration = Duration::from_secs(5);
/// Followers fed at once. A cluster has 256 nodes at most, shared among its voters and learners.
const FOLLOWERS_MAX: usize = 256;
/// Snapshots sent at once. Each is a picture of the map of its own; who finds no place asks another store.
const SNAPSHOTS_MAX: usize = 16;
/// Events gathered into one frame, beyond the first: on a slow link each is a sign of life.
const FRAME_BYTES: usize = 256 << 10;

/// What a follower asks for. Append-only.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum From {
    /// The changes after this revision.
    Revision(u64),
    /// The same, and it understands [`Word::Changed`].
    Jumping(u64),
}

impl From {
    pub(crate) fn revision(&self) -> u64 {
        match self {
            From::Revision(revision) | From::Jumping(revision) => *revision,
        }
    }
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
    /// Keys that are not as the follower has them, and what they are. More may come before it has arrived.
    Changed(Vec<Difference>),
    /// All that differed was told.
    Arrived {
        /// What the follower has now is the map at this revision.
        revision: u64,
        stamp_ms: u64,
    },
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
    pub(crate) fn of(event: Event) -> Step {
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
        let from: From = parse(&first.ok_or("a follower that went away")?.map_err(why)?)?;
        let (after, jumps) = (from.revision(), matches!(from, From::Jumping(_)));
        let seat = Seat::take(&self.shared.followers, FOLLOWERS_MAX).filter(|_| self.is_member());
        let Some(_seat) = seat else {
            tell(&mut *tx, &Word::Standing(self.word())).await?;
            tell(&mut *tx, &Word::Elsewhere).await?;
            tx.finish();
            return Ok(());
        };
        if self.word().leader.is_none() {
            // Nobody has followed for a while, so nobody has asked.
            self.confirm_leader().await;
        }
        let mut told = self.word();
        tell(&mut *tx, &Word::Standing(told.clone())).await?;
        let mut changes = self.on_change();
        let mut sign_at = Rt::Instant::now() + SIGN_EVERY;
        // Nothing before this store has come as far as the follower.
        let mut tail = None;
        loop {
            if tail.is_none() && self.shared.replica.revision() >= after {
                tail = match self.tail_after(after) {
                    Ok(tail) => Some(tail),
                    Err(WatchError::Compacted { .. }) => Some(self.feed_snapshot(&mut *tx).await?),
                    Err(WatchError::Stopped) => return Ok(()),
                };
            }
            let news = self.news(tail.as_mut(), after);
            let news = Rt::select2(news, Rt::select2(changes.0.changed(), frames.next()));
            match Rt::timeout_at(sign_at, news).await {
                Ok(Select2::First(Some(Moved::Events(events)))) => feed_events(&mut *tx, events).await?,
                Ok(Select2::First(Some(Moved::Jump(differences))))
                    if jumps && !crate::broken!(CatchUpBeginsAnew) =>
                {
                    let state = tail.as_ref().map(Tail::state).ok_or("a jump from nowhere")?;
                    feed_jump(&mut *tx, differences, state).await?;
                }
                Ok(Select2::First(Some(Moved::Jump(_)))) => return Err("it reads too slowly".into()),
                Ok(Select2::First(None) | Select2::Second(Select2::First(_))) | Err(_) => {}
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

    /// What comes next for a follower; `None` once this store has come as far as it, and when it has stopped.
    async fn news(&self, tail: Option<&mut Tail>, after: u64) -> Option<Moved> {
        match tail {
            Some(tail) => tail.next().await,
            None => {
                self.shared.replica.wait(after).await;
                None
            }
        }
    }

    /// Sends the state as it is, and returns what follows it.
    async fn feed_snapshot(&self, tx: &mut dyn PipeTx) -> Result<Tail, String> {
        let _seat = Seat::take(&self.shared.snapshots, SNAPSHOTS_MAX).ok_or("too many snapshots at once")?;
        let tail = self.tail().map_err(|error| error.to_string())?;
        for record in tail.state().for_followers().records() {
            tell(tx, &Word::Record(record.into())).await?;
        }
        tell(tx, &Word::Whole).await?;
        Ok(tail)
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

/// One of a bounded number of things that go on at once, until dropped.
struct Seat<'a>(&'a AtomicUsize);

impl<'a> Seat<'a> {
    fn take(taken: &'a AtomicUsize, max: usize) -> Option<Self> {
        let seat = Seat(taken);
        (taken.fetch_add(1, Ordering::Relaxed) < max).then_some(seat)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends what differs in frames, and that it is all: the map is `state` then.
async fn feed_jump(tx: &mut dyn PipeTx, differences: Vec<Difference>, state: &State) -> Result<(), String> {
    crate::seen!("follower jumped");
    feed_all(tx, differences.into_iter(), Difference::size, Word::Changed).await?;
    tell(tx, &Word::Arrived { revision: state.revision(), stamp_ms: state.stamp_ms() }).await
}

async fn feed_events(tx: &mut dyn PipeTx, events: Vec<Event>) -> Result<(), String> {
    feed_all(tx, events.into_iter().map(Step::of), Step::size, Word::Events).await
}

/// Sends items in frames: a batch of the ring may hold hundreds of large values.
async fn feed_all<T>(
    tx: &mut dyn PipeTx,
    items: impl Iterator<Item = T>,
    size: impl Fn(&T) -> usize,
    word: impl Fn(Vec<T>) -> Word,
) -> Result<(), String> {
    let (mut frame, mut bytes) = (Vec::new(), 0);
    for item in items {
        bytes += size(&item);
        frame.push(item);
        if bytes >= FRAME_BYTES {
            tell(tx, &word(std::mem::take(&mut frame))).await?;
            bytes = 0;
        }
    }
    if frame.is_empty() { Ok(()) } else { tell(tx, &word(frame)).await }
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
    use crate::{Object, decode, encode};

    /// If this fails, nodes of two builds no longer understand each other: add a variant instead.
    #[test]
    fn the_first_format_of_a_feed_never_changes() {
        let step = Step { revision: 7, key: "k".into(), value: Some(Bytes::from_static(b"v")), stamp_ms: 9 };
        let deleted = Step { value: None, ..step.clone() };
        let told = Told { term: 3, leader: None, members: Default::default(), level: 1, stamp_ms: 2 };
        let object = Object { value: Bytes::from_static(b"v"), create_rev: 3, mod_rev: 7 };
        let changed =
            [("k", Some(object)), ("l", None)].map(|(key, object)| Difference { key: key.into(), object });
        let words: [(Word, &[u8]); 7] = [
            (Word::Standing(told), &[1, 0, 3, 0, 0, 0, 0, 1, 2]),
            (Word::Record(Bytes::from_static(b"r")), &[1, 1, 1, b'r']),
            (Word::Whole, &[1, 2]),
            (Word::Events(vec![step, deleted]), &[1, 3, 2, 7, 1, b'k', 1, 1, b'v', 9, 7, 1, b'k', 0, 9]),
            (Word::Elsewhere, &[1, 4]),
            (Word::Changed(changed.into()), &[1, 5, 2, 1, b'k', 1, 1, b'v', 3, 7, 1, b'l', 0]),
            (Word::Arrived { revision: 8, stamp_ms: 9 }, &[1, 6, 8, 9]),
        ];
        for (word, bytes) in words {
            assert_eq!(encode(&word), bytes);
            assert_eq!(decode::<Word>(bytes).unwrap(), word);
        }
        assert_eq!(encode(&From::Revision(300)), [1, 0, 251, 44, 1]);
        assert_eq!(encode(&From::Jumping(300)), [1, 1, 251, 44, 1]);
    }
}
