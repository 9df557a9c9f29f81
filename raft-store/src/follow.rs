//! A replica without a log: what a store shows while its own Raft hears nothing.
//!
//! One task per store looks whether Raft lives here. Where it does not (this store is no member, is cut off
//! from the leader, or its disk failed under the log), the task follows a voter or learner it reaches, and
//! goes on to another one when that breaks, falls silent, falls behind, or knows of no leader. What it is fed
//! goes to readers and watchers of this node and never to Raft, whose log and sessions are its own: a store that becomes
//! a learner starts from those. Readers see whichever of the two is ahead, so a revision never goes back.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use openraft::AsyncRuntime;
use openraft::async_runtime::{Instant, Select2, WatchReceiver};

use crate::VoterId;
use crate::calls::frames;
use crate::feed::{From, SIGN_EVERY, Word, why};
use crate::handle::Handle;
use crate::replica::check;
use crate::shelf::Copies;
use crate::standing::{self, Told, is_outside};
use crate::state::{Members, STORE_BYTES_MAX, State};
use crate::transport::{Broken, Lane, Pipe};
use crate::wire::{Request, Response, frame, parse};

/// How long one store is tried before the next one is.
const OPEN_MAX: Duration = Duration::from_millis(1500);
/// Three signs of life and a bit: a busy source is not a silent one.
const SILENCE_MAX: Duration = Duration::from_millis(3500);
/// The same while a snapshot comes: a record of 1 MiB takes a while on a slow link.
const SNAPSHOT_SILENCE_MAX: Duration = Duration::from_secs(30);
/// A source that knows of no leader, or does not show what is known to be written, is left after this.
const PATIENCE: Duration = Duration::from_secs(2);
/// What was told counts for so long after the source is gone: its leader mostly still leads.
const TOLD_MAX: Duration = Duration::from_secs(6);
/// After each source in vain, up to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A changed copy is written at most this often: an SD card lives from writes that do not happen.
const KEEP_EVERY: Duration = Duration::from_secs(10 * 60);

/// What is known by following. Part of the store's shared state.
pub(crate) struct Followed<I> {
    /// What was told last, and when anything was heard last.
    pub(crate) told: Option<(Told, I)>,
    /// The newest membership that was ever told.
    pub(crate) members: Option<Arc<Members>>,
    pub(crate) source: Option<VoterId>,
    /// Nodes that may be asked where no membership is known, or none of its stores answers.
    pub(crate) introduced: Vec<[u8; 16]>,
}

impl<I> Default for Followed<I> {
    fn default() -> Self {
        Followed { told: None, members: None, source: None, introduced: Vec::new() }
    }
}

impl<I: Instant> Followed<I> {
    /// What was told, while it still counts.
    pub(crate) fn told(&self) -> Option<&Told> {
        self.told.as_ref().filter(|(_, heard)| heard.elapsed() < TOLD_MAX).map(|(told, _)| told)
    }
}

/// Why a source was left.
enum Left {
    /// Raft lives here and has caught up.
    Raft,
    /// The membership has changed, and another store is nearer to this one now.
    Moved,
    /// It hung up without a word.
    Speechless,
    /// It is silent, or speaks and is of no use.
    Unfit(String),
    Stopped,
}

/// Follows whenever Raft does not live here, until the store stops. `copy` is where what was followed is
/// kept for the next start.
pub(crate) async fn run<Rt: AsyncRuntime>(handle: Handle<Rt>, copy: Arc<dyn Copies>) {
    let mut keeper = Keeper::<Rt>::new(copy, handle.state().revision());
    let (mut turn, mut pause) = (0_usize, PAUSE);
    // Stores that did not understand what they were asked: those of an older build.
    let mut older = BTreeSet::new();
    while !handle.shared.replica.is_stopped() {
        // That nothing was heard for a while changes how things stand, too.
        handle.look();
        if handle.raft_lives() {
            (turn, pause) = (0, PAUSE);
            if handle.shared.followers.load(Ordering::Relaxed) > 0 {
                handle.confirm_leader().await;
            }
            handle.rest(SIGN_EVERY).await;
            continue;
        }
        let candidates = handle.candidates();
        let Some(source) = candidates.get(turn % candidates.len().max(1)).copied() else {
            handle.rest(pause).await;
            continue;
        };
        let revision = handle.shared.replica.revision();
        let from = match older.contains(&source) {
            true => From::Revision(revision),
            false => From::Jumping(revision),
        };
        let left = handle.follow(source, from, &mut keeper).await;
        // It may have been the way to it; what it understands is asked anew next time.
        let knew_better = older.remove(&source);
        match left {
            Left::Raft => keeper.forget().await,
            Left::Stopped => break,
            Left::Moved => turn = 0,
            Left::Speechless if !knew_better => drop(older.insert(source)),
            Left::Speechless => {
                turn += 1;
                handle.rest(pause).await;
            }
            Left::Unfit(why) => {
                tracing::debug!(%source, why, "left a store that was followed");
                turn += 1;
                handle.rest(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        if handle.followed().told().is_some_and(|told| told.leader.is_some()) {
            pause = PAUSE;
        }
    }
    if !handle.has_log() {
        keeper.keep_now(&handle).await;
    }
    keeper.join().await;
}

impl<Rt: AsyncRuntime> Handle<Rt> {
    /// Names nodes whose stores may be followed before this one knows who votes. Looked at again whenever
    /// no known voter or learner answers.
    pub fn introduce(&self, nodes: Vec<[u8; 16]>) {
        self.followed().introduced = nodes;
    }

    /// Whether Raft on this node has stopped for good: a disk that failed it, mostly.
    pub(crate) fn raft_failed(&self) -> bool {
        self.raft().metrics().borrow_watched().running_state.is_err()
    }

    /// Whether Raft on this node leads with a quorum, or hears who leads.
    pub(crate) fn raft_lives(&self) -> bool {
        if self.raft_failed() {
            return false;
        }
        if standing::leader::<Rt>(&self.raft().server_metrics().borrow_watched()) == Some(self.voter()) {
            return self.has_quorum();
        }
        self.last_heard().is_some_and(|heard| heard.elapsed() < self.patience())
    }

    /// How long Raft may be silent and lives still: longer than an election that goes well, so that nobody
    /// starts to follow in each of them.
    fn patience(&self) -> Duration {
        (self.timings().election_min() * 4).min(Duration::from_secs(8))
    }

    /// Whether a quorum heard this leader lately, or has just elected it.
    pub(crate) fn has_quorum(&self) -> bool {
        let raft = self.raft().metrics();
        let (alone, acked, term) = {
            let raft = raft.borrow_watched();
            let alone = raft.membership_config.membership().voter_ids().eq([self.voter()]);
            (alone, raft.last_quorum_acked.map(|acked| acked.into_inner()), raft.current_term)
        };
        match acked {
            _ if alone => true,
            Some(acked) => acked.elapsed() < self.patience(),
            // Just elected, and that by a quorum.
            None => self.is_confirmed(self.voter(), term),
        }
    }

    /// When Raft last heard a leader.
    pub(crate) fn last_heard(&self) -> Option<Rt::Instant> {
        *self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a leader was heard by Raft.
    pub(crate) fn heard(&self) {
        *self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Rt::Instant::now());
    }

    /// Asks the leader whether a quorum hears it: that heartbeats arrive here does not say so.
    pub(crate) async fn confirm_leader(&self) {
        let raft = self.raft().server_metrics().borrow_watched().clone();
        let (Some(leader), term) = (standing::leader::<Rt>(&raft), raft.vote.leader_id.term) else { return };
        let leads = if leader == self.voter() {
            self.has_quorum()
        } else {
            let asked = self.shared.links.call(leader, Lane::Forward, Request::Confirm { term });
            matches!(Rt::timeout(SIGN_EVERY, asked).await, Ok(Ok(Response::Confirmed(true))))
        };
        if leads {
            self.confirmed(leader, term);
        }
        self.look();
    }

    /// Who may be followed: voters and learners in an order of this node's own, so that a crowd of
    /// followers spreads over them, the leader last, which has enough to do.
    fn candidates(&self) -> Vec<VoterId> {
        let standing = self.look();
        let me = self.voter();
        let members = standing.members.membership();
        let known = members.voter_ids().chain(members.learner_ids()).filter(|id| id.node != me.node);
        let mut candidates: Vec<VoterId> = known.collect();
        candidates.sort_by_key(|id| (Some(*id) == standing.leader, spread(me.node, id.node), *id));
        let mut introduced = self.followed().introduced.clone();
        introduced.sort_by_key(|node| spread(me.node, *node));
        let unknown = |node: &[u8; 16]| *node != me.node && candidates.iter().all(|id| id.node != *node);
        // Which store a node has does not matter for following it.
        let strangers: Vec<VoterId> =
            introduced.into_iter().filter(unknown).map(|node| VoterId { node, store: [0; 8] }).collect();
        candidates.extend(strangers);
        candidates
    }

    /// Follows `source` for as long as that is of use.
    async fn follow(&self, source: VoterId, from: From, keeper: &mut Keeper<Rt>) -> Left {
        let opening = async {
            let pipe = self.shared.links.open(source, Lane::Follow).await.map_err(|error| error.reason)?;
            let Pipe { mut tx, rx } = pipe;
            tx.send(frame(&from)).await.map_err(why)?;
            Ok::<_, String>((tx, rx))
        };
        let (_tx, rx) = match Rt::timeout(OPEN_MAX, opening).await {
            Ok(Ok(pipe)) => pipe,
            Ok(Err(why)) => return Left::Unfit(why),
            Err(_) => return Left::Unfit("no connection".into()),
        };
        let mut frames = frames(rx);
        let mut feeding = Feeding::<Rt> {
            members: self.look().members,
            at: from.revision(),
            coming: None,
            bytes: 0,
            has_spoken: false,
            moved: Rt::Instant::now(),
            led: Rt::Instant::now(),
            heard: Rt::Instant::now(),
        };
        let left = loop {
            let stop = self.shared.replica.wait(u64::MAX);
            match Rt::timeout(PATIENCE / 4, Rt::select2(frames.next(), stop)).await {
                Ok(Select2::First(Some(Ok(bytes)))) => {
                    if let Err(left) = self.take(source, &bytes, &mut feeding) {
                        break left;
                    }
                    if feeding.coming.is_none() {
                        keeper.keep(self);
                    }
                }
                Ok(Select2::First(Some(Err(_)) | None)) if !feeding.has_spoken => break Left::Speechless,
                Ok(Select2::First(Some(Err(Broken(why))))) => break Left::Unfit(why),
                Ok(Select2::First(None)) => break Left::Unfit("it feeds us no more".into()),
                Ok(Select2::Second(_)) => break Left::Stopped,
                Err(_) => drop(self.look()),
            }
            if let Some(left) = self.judge(source, &feeding) {
                break left;
            }
        };
        self.followed().source = None;
        self.look();
        left
    }

    /// Takes one frame of `source`.
    fn take(&self, source: VoterId, bytes: &Bytes, feeding: &mut Feeding<Rt>) -> Result<(), Left> {
        feeding.heard = Rt::Instant::now();
        feeding.has_spoken = true;
        match parse(bytes).map_err(Left::Unfit)? {
            Word::Standing(told) => {
                let leads = told.leader.is_some();
                if self.note(source, told) && leads {
                    feeding.led = feeding.heard;
                }
            }
            Word::Record(record) => {
                feeding.add(record.len())?;
                let state = feeding.coming.get_or_insert_default();
                state.add_record(&record).map_err(|error| Left::Unfit(error.to_string()))?;
            }
            Word::Whole => {
                let state = feeding.coming.take().ok_or(Left::Unfit("a snapshot without records".into()))?;
                self.arrive(state, feeding);
            }
            Word::Events(steps) => {
                let last = steps.last().map_or(0, |step| step.revision);
                self.shared.replica.show(steps).map_err(Left::Unfit)?;
                feeding.at = feeding.at.max(last);
                feeding.moved = feeding.heard;
            }
            Word::Changed(differences) => {
                let mut state = self.coming(feeding)?;
                for difference in differences {
                    feeding.add(difference.size())?;
                    let value = difference.object.as_ref().map(|object| &object.value);
                    check(&difference.key, value, &state).map_err(Left::Unfit)?;
                    state.change(difference);
                }
                feeding.coming = Some(state);
            }
            Word::Arrived { revision, stamp_ms } => {
                let mut state = self.coming(feeding)?;
                if revision < state.revision() {
                    return Err(Left::Unfit(format!("it went back to revision {revision}")));
                }
                state.arrive(revision, stamp_ms);
                self.arrive(state, feeding);
            }
            Word::Elsewhere => return Err(Left::Unfit("it is no voter and no learner".into())),
        }
        if feeding.coming.is_none() {
            let mut followed = self.followed();
            if let Some((_, heard)) = &mut followed.told {
                *heard = feeding.heard;
            }
        }
        Ok(())
    }

    /// The state that is on its way, or that which the source believes this store to have: what differs from that is
    /// of no use to one that was shown more by another.
    fn coming(&self, feeding: &mut Feeding<Rt>) -> Result<State, Left> {
        let state = feeding.coming.take().unwrap_or_else(|| self.state().for_followers());
        match state.revision() == feeding.at {
            true => Ok(state),
            false => Err(Left::Unfit(format!("it tells what differs from revision {}", feeding.at))),
        }
    }

    /// Shows a state that has come whole.
    fn arrive(&self, state: State, feeding: &mut Feeding<Rt>) {
        feeding.at = state.revision();
        feeding.bytes = 0;
        feeding.moved = feeding.heard;
        self.shared.replica.show_snapshot(state);
    }

    /// Notes how things stand by the word of `source`, unless that is of an earlier term than one that is
    /// fresh: a source may be behind another one. Returns whether it counts.
    fn note(&self, source: VoterId, told: Told) -> bool {
        let counts = {
            let mut followed = self.followed();
            followed.source = Some(source);
            let newest = followed.members.as_ref().filter(|known| known.log_id() >= told.members.log_id());
            let newest = newest.cloned().unwrap_or_else(|| Arc::new(told.members.clone()));
            self.shared.replica.show_head(told.level, told.stamp_ms, &newest);
            followed.members = Some(newest);
            let counts = followed.told().is_none_or(|known| told.term >= known.term);
            if counts {
                followed.told = Some((told.clone(), Rt::Instant::now()));
            }
            counts
        };
        self.look();
        counts
    }

    /// Whether to leave the source, and why.
    fn judge(&self, source: VoterId, feeding: &Feeding<Rt>) -> Option<Left> {
        let replica = &self.shared.replica;
        if self.raft_lives() && replica.raft_is_ahead() {
            return Some(Left::Raft);
        }
        let silent = feeding.heard.elapsed();
        if feeding.coming.is_some() {
            return (silent > SNAPSHOT_SILENCE_MAX).then(|| Left::Unfit("silence in a snapshot".into()));
        }
        if silent > SILENCE_MAX {
            return Some(Left::Unfit("silence".into()));
        }
        if feeding.led.elapsed() > PATIENCE {
            return Some(Left::Unfit("it knows of no leader with a quorum".into()));
        }
        let moved = self.look().members.log_id() != feeding.members.log_id();
        if moved && self.candidates().first().is_some_and(|best| best.node != source.node) {
            return Some(Left::Moved);
        }
        let wanted = self.shared.known_revision.load(Ordering::Relaxed);
        let behind = replica.revision() < wanted && feeding.moved.elapsed() > PATIENCE;
        behind.then_some(Left::Unfit("it is behind".into()))
    }

    /// Whether this store votes or learns, so that its log holds what it shows.
    fn has_log(&self) -> bool {
        let members = self.look().members;
        members.log_id().is_some() && !is_outside(&members, self.voter()) && !self.raft_failed()
    }

    /// Waits for `time`, or until the store stops.
    async fn rest(&self, time: Duration) {
        let stop = self.shared.replica.wait(u64::MAX);
        let _ = Rt::timeout(time, stop).await;
    }
}

/// A source while it is followed.
struct Feeding<Rt: AsyncRuntime> {
    /// The membership at its beginning.
    members: Arc<Members>,
    /// Up to which revision the source has told.
    at: u64,
    /// A state that is coming, whole or as what differs; the bytes of it so far.
    coming: Option<State>,
    bytes: u64,
    has_spoken: bool,
    /// When it last told anything, anything new, and of a leader.
    heard: Rt::Instant,
    moved: Rt::Instant,
    led: Rt::Instant,
}

impl<Rt: AsyncRuntime> Feeding<Rt> {
    fn add(&mut self, bytes: usize) -> Result<(), Left> {
        self.bytes += bytes as u64;
        match self.bytes > 2 * STORE_BYTES_MAX {
            true => Err(Left::Unfit("a state larger than any store".into())),
            false => Ok(()),
        }
    }
}

/// Keeps a copy of what was followed, so that a start without a quorum knows what was there.
struct Keeper<Rt: AsyncRuntime> {
    copy: Arc<dyn Copies>,
    /// Revision of the newest copy.
    kept: u64,
    kept_at: Option<Rt::Instant>,
    writing: Option<(Arc<AtomicBool>, Rt::JoinHandle<()>)>,
}

impl<Rt: AsyncRuntime> Keeper<Rt> {
    fn new(copy: Arc<dyn Copies>, kept: u64) -> Self {
        Keeper { copy, kept, kept_at: None, writing: None }
    }

    /// Writes a copy if there is something new and the last one is old, beside the following.
    fn keep(&mut self, handle: &Handle<Rt>) {
        let under_way = self.writing.as_ref().is_some_and(|(done, _)| !done.load(Ordering::Relaxed));
        let is_due = self.kept_at.is_none_or(|at| at.elapsed() >= KEEP_EVERY);
        let state = handle.state();
        if under_way || !is_due || state.revision() == self.kept || handle.has_log() {
            return;
        }
        (self.kept, self.kept_at) = (state.revision(), Some(Rt::Instant::now()));
        let (copy, done) = (self.copy.clone(), Arc::new(AtomicBool::new(false)));
        let written = done.clone();
        let writing = Rt::spawn(async move {
            save(&*copy, &state).await;
            written.store(true, Ordering::Relaxed);
        });
        self.writing = Some((done, writing));
    }

    /// Writes what is new now, and waits for it.
    async fn keep_now(&mut self, handle: &Handle<Rt>) {
        self.join().await;
        let state = handle.state();
        if state.revision() > self.kept {
            save(&*self.copy, &state).await;
        }
    }

    /// Removes the copy: Raft's own files hold all of it.
    async fn forget(&mut self) {
        self.join().await;
        if let Err(error) = self.copy.clear().await {
            tracing::debug!(%error, "could not remove the copy of what was followed");
        }
        (self.kept, self.kept_at) = (0, None);
    }

    async fn join(&mut self) {
        if let Some((_, writing)) = self.writing.take() {
            // A panic of the writer has been reported where it happened.
            let _ = writing.await;
        }
    }
}

/// A number that differs for each pair without order: by it each node prefers others in its own way.
fn spread(me: [u8; 16], other: [u8; 16]) -> u64 {
    let pair = u64::from(crc32c::crc32c(&me)) << 32 | u64::from(crc32c::crc32c(&other));
    // Sums are linear, so two of them differ alike for every `me`; a product is not (splitmix64's end).
    let pair = (pair ^ pair >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let pair = (pair ^ pair >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    pair ^ pair >> 31
}

async fn save(copy: &dyn Copies, state: &State) {
    // Without it the next start knows a little less until it reaches somebody.
    if let Err(error) = copy.save(state).await {
        tracing::warn!(%error, "could not keep a copy of what was followed");
    }
}
