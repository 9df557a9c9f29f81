//! Openraft's state machine: committed entries in, published states and answers out.
//!
//! The map lives in memory and is rebuilt from the last snapshot and the log behind it. A snapshot is
//! a clone of a few pointers; only writing it takes time, and that happens beside the applying.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::channel::mpsc;
use futures::{Stream, StreamExt};
use openraft::impls::EmptyNode;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{AsyncRuntime, EntryPayload, LogIdOptionExt, OptionalSend, StoredMembership};

use crate::config::Compaction;
use crate::files::is_full;
use crate::replica::Replica;
use crate::shelf::meta;
use crate::state::{Event, Members, State};
use crate::wire::Meta;
use crate::{Answer, CommittedLeaderId, LogId, TypeConfig, VoterId};

/// Entries applied before readers see them, so that a long replay does not hold everything back.
const PUBLISH_EVERY: usize = 512;

/// Where snapshots are kept.
#[async_trait]
pub(crate) trait Shelf: Send + Sync + 'static {
    /// Makes `state` the latest snapshot. It is durable, and older ones may be gone, when this returns.
    async fn save(&self, state: &State) -> io::Result<()>;
}

type Kept = Snapshot<CommittedLeaderId, VoterId, EmptyNode, State>;

/// The state machine of one store.
pub(crate) struct Machine {
    state: State,
    replica: Arc<Replica>,
    shelf: Arc<dyn Shelf>,
    latest: Arc<Mutex<Option<Kept>>>,
    weight: Weight,
}

/// How much log lies behind the state. Openraft itself counts entries only, and has no notion of two bounds: so it is
/// never asked to decide, and does what it is told.
struct Weight {
    limits: Compaction,
    /// Bytes of all entries applied since the start.
    total: u64,
    /// The total at certain indices, at least a [part](MARKS) of what stays apart.
    marks: VecDeque<(u64, u64)>,
    tell: mpsc::Sender<Heavy>,
    /// Index and total when it was last told that the log is heavy.
    told: (u64, u64),
}

/// The log has become heavy: time for a snapshot, and then to drop entries up to `purge_to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heavy {
    /// Entries up to here are older than what the log should keep for others to catch up.
    pub(crate) purge_to: Option<u64>,
}

/// What stays of the log is known to so many parts.
const MARKS: u64 = 32;

/// How often a full disk is asked whether it takes the snapshot now.
const FULL_RETRY: Duration = Duration::from_secs(1);

impl Machine {
    /// Starts from `state`: that of the latest snapshot, or an empty one.
    pub(crate) fn new(
        state: State,
        replica: Arc<Replica>,
        shelf: Arc<dyn Shelf>,
        limits: Compaction,
        heavy: mpsc::Sender<Heavy>,
    ) -> Self {
        let latest = state.applied().map(|_| Snapshot { meta: meta(&state), snapshot: state.clone() });
        let told = (state.applied().index().unwrap_or(0), 0);
        let weight = Weight { limits, total: 0, marks: VecDeque::new(), tell: heavy, told };
        Machine { state, replica, shelf, latest: Arc::new(Mutex::new(latest)), weight }
    }

    /// What is applied now.
    pub(crate) fn state(&self) -> State {
        self.state.clone()
    }

    fn apply_entry(
        &mut self,
        log_id: LogId,
        payload: EntryPayload<crate::Command, VoterId, EmptyNode>,
        events: &mut Vec<Event>,
    ) -> Answer {
        let answer = match payload {
            EntryPayload::Blank => Answer { revision: self.state.revision(), outcomes: Vec::new() },
            EntryPayload::Normal(mut command) => {
                if crate::broken!(ClockInApply) {
                    command.stamp_ms = crate::own_clock_ms();
                }
                self.weight.add(log_id.index, command.size() as u64);
                let term = log_id.leader_id.term;
                let (answer, new) = match crate::broken!(LostWrite) && command.serial.is_multiple_of(10) {
                    true => (self.state.clone().apply(term, command).0, Vec::new()),
                    false => self.state.apply(term, command),
                };
                events.extend(new);
                answer
            }
            EntryPayload::Membership(membership) => {
                self.state.set_members(StoredMembership::new(Some(log_id), membership));
                Answer { revision: self.state.revision(), outcomes: Vec::new() }
            }
        };
        self.state.set_applied(log_id);
        answer
    }

    /// Readers of this node see a write before its proposer has the answer.
    fn publish<Rt: AsyncRuntime>(
        &self,
        events: &mut Vec<Event>,
        answers: &mut Vec<(ApplyResponder<TypeConfig<Rt>>, Answer)>,
    ) {
        self.replica.publish(self.state.clone(), std::mem::take(events));
        for (responder, answer) in answers.drain(..) {
            responder.send(answer);
        }
    }
}

impl Weight {
    fn add(&mut self, index: u64, bytes: u64) {
        let Compaction { every_entries, keep_entries, every_bytes, keep_bytes } = self.limits;
        self.total += bytes;
        if self.marks.back().is_none_or(|(_, total)| total + keep_bytes / MARKS <= self.total) {
            self.marks.push_back((index, self.total));
        }
        let (told_index, told_total) = self.told;
        if index < told_index + every_entries && self.total < told_total + every_bytes {
            return;
        }
        self.told = (index, self.total);
        let old = self.marks.partition_point(|(_, total)| total + keep_bytes < self.total);
        let too_heavy = self.marks.drain(..old).next_back().map(|(index, _)| index);
        let purge_to = too_heavy.max(index.checked_sub(keep_entries));
        // If the keeper is still busy with the last one, it is told again when as much has come once more.
        let _ = self.tell.try_send(Heavy { purge_to });
    }
}

impl<Rt: AsyncRuntime> RaftStateMachine<TypeConfig<Rt>> for Machine {
    type SnapshotData = State;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Members)> {
        Ok((self.state.applied(), self.state.members().clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig<Rt>>>> + Unpin + OptionalSend,
    {
        let (mut events, mut answers) = (Vec::new(), Vec::new());
        let mut unpublished = 0;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let answer = self.apply_entry(entry.log_id, entry.payload, &mut events);
            answers.extend(responder.map(|responder| (responder, answer)));
            unpublished += 1;
            if unpublished == PUBLISH_EVERY {
                self.publish::<Rt>(&mut events, &mut answers);
                unpublished = 0;
            }
        }
        self.publish::<Rt>(&mut events, &mut answers);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let (replica, shelf) = (self.replica.clone(), self.shelf.clone());
        Builder { state: self.state.clone(), shelf, latest: self.latest.clone(), replica }
    }

    async fn install_snapshot(&mut self, meta: &Meta, snapshot: State) -> io::Result<()> {
        crate::seen!("snapshot installed");
        save::<Rt>(&*self.shelf, &snapshot, &self.replica).await?;
        keep(&self.latest, Snapshot { meta: meta.clone(), snapshot: snapshot.clone() });
        self.state = snapshot;
        self.weight.told = (meta.last_log_id.index().unwrap_or(0), self.weight.total);
        self.replica.publish_snapshot(self.state.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Kept>> {
        Ok(self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// One snapshot in the making.
pub(crate) struct Builder {
    state: State,
    shelf: Arc<dyn Shelf>,
    latest: Arc<Mutex<Option<Kept>>>,
    replica: Arc<Replica>,
}

impl<Rt: AsyncRuntime> RaftSnapshotBuilder<TypeConfig<Rt>> for Builder {
    type SnapshotData = State;

    async fn build_snapshot(&mut self) -> io::Result<Kept> {
        save::<Rt>(&*self.shelf, &self.state, &self.replica).await?;
        let kept = Snapshot { meta: meta(&self.state), snapshot: self.state.clone() };
        keep(&self.latest, kept.clone());
        Ok(kept)
    }
}

/// Saves `state`, waiting for as long as the disk is full: an error would stop consensus for good, and
/// the log cannot be cut short, which frees space, before there is a snapshot.
async fn save<Rt: AsyncRuntime>(shelf: &dyn Shelf, state: &State, replica: &Replica) -> io::Result<()> {
    loop {
        match shelf.save(state).await {
            Err(error) if is_full(&error) && !replica.is_stopped() => {
                tracing::warn!(%error, "a snapshot waits for space on the disk");
                Rt::sleep(FULL_RETRY).await;
            }
            result => return result,
        }
    }
}

/// The latest stays in memory for learners and voters far behind: it shares all that has not changed since.
fn keep(latest: &Mutex<Option<Kept>>, snapshot: Kept) {
    let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
    // A snapshot received while an older one was being built stays.
    if latest.as_ref().is_none_or(|kept| kept.meta.last_log_id <= snapshot.meta.last_log_id) {
        *latest = Some(snapshot);
    }
}
