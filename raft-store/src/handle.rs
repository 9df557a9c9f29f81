//! The plain handle by which the rest of the house uses the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::async_runtime::{Instant, Select2, Watch, WatchReceiver, WatchSender};
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::impls::EmptyNode;
use openraft::raft::Precondition;
use openraft::raft::linearizable_read::LinearizerOption;
use openraft::{AsyncRuntime, ChangeMembers, LogIdOptionExt, Raft};

use crate::calls::{CallError, Links};
use crate::config::{Clock, Timings};
use crate::confirm::Rounds;
use crate::feed::Confirmed;
use crate::follow::Followed;
use crate::head::Name;
use crate::incarnation::EntriesFrom;
use crate::log::Health;
use crate::machine::Machine;
use crate::replica::Replica;
use crate::stamp::Stamps;
use crate::standing::{Changes, Own, Standing, is_outside};
use crate::state::{OBJECT_BYTES_MAX, State, end_session, raise_level};
use crate::tail::Tail;
use crate::transport::Lane;
use crate::watch::{WatchError, Watcher};
use crate::wire::{Request, Response};
use crate::{Answer, Change, Command, LogId, Op, Session, TypeConfig, Vote, VoterId};

/// Largest command: twice the largest object, as the request that may carry it.
pub const COMMAND_BYTES_MAX: usize = 3 << 20;

/// Operations of one command, at most.
pub const OPS_MAX: usize = 10_000;

/// Longest key.
pub const KEY_BYTES_MAX: usize = 1024;

/// Proposals of this node without an answer. Beyond it callers are told to come back later.
const OPEN_MAX: usize = 4096;

/// Wait before asking again when nobody leads or the leader refused; a change wakes us earlier. Short at first:
/// somebody elected may take its first write a moment after it is known, and long where nobody is.
const RETRY_FIRST: Duration = Duration::from_millis(2);
const RETRY_MAX: Duration = Duration::from_millis(25);

/// From whoever was leader to the one it names, and once more if that one has just lost it.
const HOPS_MAX: u32 = 2;

/// A store on this node. Cheap to clone; all clones are one store.
pub struct Handle<Rt: AsyncRuntime> {
    pub(crate) shared: Arc<Shared<Rt>>,
}

impl<Rt: AsyncRuntime> Clone for Handle<Rt> {
    fn clone(&self) -> Self {
        Handle { shared: self.shared.clone() }
    }
}

pub(crate) type Core<Rt> = Raft<TypeConfig<Rt>, Machine>;
pub(crate) type Closing = Box<dyn FnOnce() -> futures::future::BoxFuture<'static, ()> + Send>;

pub(crate) struct Shared<Rt: AsyncRuntime> {
    pub(crate) name: Name,
    pub(crate) session: Session,
    pub(crate) clock: Clock,
    pub(crate) raft: Core<Rt>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) links: Arc<Links<Rt>>,
    pub(crate) rounds: Rounds,
    pub(crate) timings: Timings,
    /// Whether the disk under the log does its work.
    pub(crate) health: Box<dyn Fn() -> Health + Send + Sync>,
    pub(crate) entries_from: EntriesFrom,
    pub(crate) serials: Mutex<Serials>,
    pub(crate) stopping: AtomicBool,
    /// Who leads and who votes, for those who wait for changes of it.
    pub(crate) standing: Mutex<<Rt::Watch as Watch>::Sender<Standing>>,
    /// When Raft here last heard a leader.
    pub(crate) heard: Mutex<Option<Rt::Instant>>,
    /// The leader that a quorum was last known to hear.
    pub(crate) confirmed: Mutex<Option<Confirmed<Rt::Instant>>>,
    /// What other stores told while Raft heard nothing.
    pub(crate) followed: Mutex<Followed<Rt::Instant>>,
    /// Stores that follow this one now.
    pub(crate) followers: AtomicUsize,
    /// Snapshots that are on their way to such stores.
    pub(crate) snapshots: AtomicUsize,
    /// A revision that exists somewhere, by an answer to this store.
    pub(crate) known_revision: AtomicU64,
    pub(crate) stamps: Mutex<Stamps<Rt::Instant>>,
    /// The task that follows.
    pub(crate) following: Mutex<Option<Rt::JoinHandle<()>>>,
    /// Ends log and files, once.
    pub(crate) closing: Mutex<Option<Closing>>,
}

/// Which proposals of this process have no answer yet.
#[derive(Default)]
pub(crate) struct Serials {
    last: u64,
    open: BTreeSet<u64>,
}

/// How a proposal is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// All operations or none; otherwise each may be refused alone.
    pub atomic: bool,
    /// Only if this node leads in this term, and only if the entry is of it. Such a proposal is never forwarded.
    pub only_in_term: Option<u64>,
    /// Until when to go on trying.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        // Longer than any failover: 3 x (lease 0.6 s + election 0.6 s), and patience for slow disks.
        Options { atomic: true, only_in_term: None, timeout: Duration::from_secs(10) }
    }
}

/// Why a proposal has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was proposed.
    #[error("this node has {OPEN_MAX} writes under way; try again in a moment")]
    Busy,
    /// Nothing was proposed.
    #[error("{0}; split it into smaller writes")]
    TooLarge(String),
    /// Nothing was proposed.
    #[error("keys are 1 to {KEY_BYTES_MAX} bytes without NUL; choose another key than {0:?}")]
    BadKey(String),
    /// Nothing changed, and nothing will.
    #[error("this node does not lead in term {term}; let the present leader judge anew")]
    NotLeader {
        /// The term asked for.
        term: u64,
    },
    /// Nothing changed, and nothing will. Users may write again within 5 s after there is space.
    #[error(
        "the disk of node {} is full; free some space on it, reads go on and writes wait for that",
        hex(voter)
    )]
    DiskFull {
        /// The leader whose disk it is.
        voter: VoterId,
    },
    /// Nothing changed, and nothing will.
    #[error("no leader accepted the write within {0:?}; a majority of the voters must be up and connected")]
    NoQuorum(Duration),
    /// The write may or may not take effect, once, even after this.
    #[error("the write was sent but not answered within {0:?}; read before writing again")]
    Unknown(Duration),
    /// Nothing changed by this proposal, and nothing will.
    #[error("a newer process of this node proposes already; stop this one")]
    SessionOver,
    /// The write may or may not take effect.
    #[error("the store has stopped; start the node again")]
    Stopped,
}

/// Why a read index was not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Only a read that may be stale is possible.
    #[error("no leader confirmed the read within {0:?}; a majority of the voters must be up and connected")]
    NoQuorum(Duration),
    /// The store was shut down.
    #[error("the store has stopped; start the node again")]
    Stopped,
}

/// Why membership did not change as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Nothing changed.
    #[error("this node does not lead; ask {}", leader.map_or("again later".into(), |leader| leader.to_string()))]
    NotLeader {
        /// Who does, if known.
        leader: Option<VoterId>,
    },
    /// Nothing changed by this call.
    #[error("the membership has changed meanwhile; look at it and decide again")]
    Moved,
    /// An earlier change is not complete; a joint set must be finished first.
    #[error("another membership change is under way; try again when it is committed: {0}")]
    InProgress(String),
    /// Nothing changed.
    #[error("the change is not possible: {0}; add new voters as learners first")]
    Impossible(String),
    /// The change may complete under the next leader.
    #[error("leadership was lost during the change; look at the membership and decide again")]
    Unknown,
    /// The store was shut down.
    #[error("the store has stopped; start the node again")]
    Stopped,
}

/// A change of who votes and who follows. Removed voters leave the membership altogether.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Exactly these vote; new ones must be learners already.
    Voters(BTreeSet<VoterId>),
    /// This learner leaves.
    RemoveLearner(VoterId),
    /// Completes a joint set left by a leader that died in a change.
    FinishJoint,
}

/// The store as this node sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// This voter.
    pub voter: VoterId,
    /// Who leads, if known.
    pub leader: Option<VoterId>,
    /// The latest term seen.
    pub term: u64,
    /// All who vote; in a joint set those of both.
    pub voters: BTreeSet<VoterId>,
    /// All who follow without a vote.
    pub learners: BTreeSet<VoterId>,
    /// Whether a change of voters is half done.
    pub joint: bool,
    /// Entry of the membership; guards [`Handle::change_members`].
    pub membership: Option<LogId>,
    /// Whether that entry is committed.
    pub membership_committed: bool,
    /// Index of the last entry applied here.
    pub applied: u64,
    /// Index of the last entry in the log here.
    pub last_log: u64,
    /// Entries up to this index are gone from the log.
    pub purged: u64,
    /// Revision of the state here.
    pub revision: u64,
    /// Keys and values held, in bytes.
    pub bytes: u64,
    /// Events the ring holds for watchers, and their bytes.
    pub ring: (usize, usize),
    /// On the leader: how long ago a quorum last acknowledged it. A single voter is its own quorum.
    pub quorum_acked_age: Option<Duration>,
    /// The store that this one follows, because its own Raft hears nothing.
    pub follows: Option<VoterId>,
    /// Stores that follow this one.
    pub followers: usize,
    /// On the leader: up to which index each other member's log agrees.
    pub matched: BTreeMap<VoterId, u64>,
    /// Whether the disk under the log does its work.
    pub disk: Health,
    /// Why consensus stopped on this node until it is started again, if it did: a failed disk, mostly. The
    /// store follows another one then, as if it had no part in the log.
    pub failed: Option<String>,
}

impl Metrics {
    /// Whether this node leads. A store that has failed does not, whatever it was before.
    pub fn leads(&self) -> bool {
        self.leader == Some(self.voter) && self.failed.is_none()
    }

    /// Whether `store` votes or learns: its log holds what it shows.
    pub fn has_log(&self, store: VoterId) -> bool {
        self.voters.contains(&store) || self.learners.contains(&store)
    }
}

/// What came of asking this node as the leader.
pub(crate) enum Here<T> {
    Done(T),
    /// Nothing was done, and nothing will be.
    Elsewhere(Option<VoterId>),
    /// Nothing was done, and nothing will be: the log has no room.
    Full,
    /// It may or may not take effect.
    Uncertain,
}

impl<T> Here<T> {
    /// As whoever asked is told.
    pub(crate) fn answer<Rt: AsyncRuntime>(self, done: impl FnOnce(T) -> Response<Rt>) -> Response<Rt> {
        match self {
            Here::Done(value) => done(value),
            Here::Elsewhere(leader) => Response::Redirect(leader),
            Here::Full => Response::Full,
            Here::Uncertain => Response::Uncertain,
        }
    }
}

impl<Rt: AsyncRuntime> Handle<Rt> {
    /// Proposes `ops` as one command and waits until it is applied on the leader (and, if this node
    /// leads, here). Works on any voter, learner or follower; retried through leader changes, and applied
    /// at most once.
    ///
    /// * The answer holds one outcome for each operation, in order.
    /// * After [`ProposeError::Unknown`] the command may still be applied, once.
    pub async fn propose(&self, ops: Vec<Op>, options: Options) -> Result<Answer, ProposeError> {
        check(&ops)?;
        self.propose_unchecked(ops, options).await
    }

    /// Forgets the session of a node that has left for good.
    pub async fn end_session(&self, node: [u8; 16]) -> Result<(), ProposeError> {
        self.propose_unchecked(vec![end_session(node)], Options::default()).await.map(drop)
    }

    /// Lets every replica use what came with `level`. Only when all members have announced it.
    pub async fn raise_level(&self, level: u32) -> Result<(), ProposeError> {
        self.propose_unchecked(vec![raise_level(level)], Options::default()).await.map(drop)
    }

    async fn propose_unchecked(&self, ops: Vec<Op>, options: Options) -> Result<Answer, ProposeError> {
        let open = self.open_proposal()?;
        let mut command = Command {
            session: self.shared.session,
            serial: open.serial,
            unanswered_from: 0,
            stamp_ms: 0,
            only_in_term: options.only_in_term,
            atomic: options.atomic,
            ops,
        };
        let mut uncertain = false;
        let mut retry = Retry::new(self, options.timeout);
        loop {
            command.unanswered_from = open.lowest();
            let leader = retry.leader();
            if let Some(term) = options.only_in_term
                && leader != Some(self.shared.name.voter)
            {
                return Err(if uncertain {
                    ProposeError::Unknown(options.timeout)
                } else {
                    ProposeError::NotLeader { term }
                });
            }
            match retry.ask(leader, Request::Propose(command.clone())).await {
                Asked::Answer(Response::Proposed(answer)) if answer.outcomes.is_empty() => {
                    return Err(ProposeError::SessionOver);
                }
                Asked::Answer(Response::Proposed(answer)) => {
                    self.shared.known_revision.fetch_max(answer.revision, Ordering::Relaxed);
                    return Ok(answer);
                }
                Asked::Answer(Response::Redirect(leader)) => retry.hint(leader),
                Asked::Answer(Response::Full) if uncertain => {
                    return Err(ProposeError::Unknown(options.timeout));
                }
                Asked::Answer(Response::Full) => {
                    return Err(ProposeError::DiskFull { voter: leader.unwrap_or(self.shared.name.voter) });
                }
                Asked::Answer(Response::Busy) => {}
                Asked::Answer(Response::Refused) | Asked::NotSent => {}
                Asked::Answer(_) | Asked::Lost => uncertain = true,
                Asked::Stopped => return Err(ProposeError::Stopped),
            }
            if crate::broken!(NewSerialOnRetry) {
                let mut serials = self.shared.serials.lock().unwrap_or_else(PoisonError::into_inner);
                serials.last += 1;
                command.serial = serials.last;
            }
            if !retry.pause().await {
                return Err(match uncertain {
                    true => ProposeError::Unknown(options.timeout),
                    false => ProposeError::NoQuorum(options.timeout),
                });
            }
        }
    }

    /// Fetches the leader's read index and waits until it is applied here: whatever was answered by
    /// anyone before this call is part of [`state`](Self::state) afterwards. Returns its revision.
    pub async fn read_index(&self, timeout: Duration) -> Result<u64, ReadError> {
        if crate::broken!(StaleRead) {
            return Ok(self.shared.replica.revision());
        }
        let mut retry = Retry::new(self, timeout);
        loop {
            let leader = retry.leader();
            match retry.ask(leader, Request::ReadIndex).await {
                Asked::Answer(Response::ReadIndex(revision)) => {
                    self.shared.known_revision.fetch_max(revision, Ordering::Relaxed);
                    return match Rt::timeout_at(retry.deadline, self.shared.replica.wait(revision)).await {
                        Ok(true) => Ok(revision),
                        Ok(false) => Err(ReadError::Stopped),
                        Err(_) => Err(ReadError::NoQuorum(timeout)),
                    };
                }
                Asked::Answer(Response::Redirect(leader)) => retry.hint(leader),
                Asked::Answer(_) | Asked::NotSent | Asked::Lost => {}
                Asked::Stopped => return Err(ReadError::Stopped),
            }
            if !retry.pause().await {
                return Err(ReadError::NoQuorum(timeout));
            }
        }
    }

    /// The state applied on this node, at once; it may lag behind the leader's.
    pub fn state(&self) -> State {
        self.shared.replica.state()
    }

    /// The time that this node, where it leads, stamps on a write now: that of its clock, or a little more than the
    /// last stamp where the clock is behind that by no more than a week. Milliseconds since 1970; it goes on also
    /// while nothing is written.
    pub fn stamp_ms(&self) -> u64 {
        let mut stamps = self.shared.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        stamps.now(self.shared.replica.stamp_ms(), (self.shared.clock)())
    }

    /// Waits until `revision` is applied here. `false` if it was not within `timeout`.
    pub async fn wait_revision(&self, revision: u64, timeout: Duration) -> bool {
        Rt::timeout(timeout, self.shared.replica.wait(revision)).await.unwrap_or(false)
    }

    /// Watches the events after revision `after` whose key starts with `prefix`. One from the future waits for it.
    pub fn watch(&self, prefix: &str, after: u64) -> Result<Watcher, WatchError> {
        self.shared.replica.watch(prefix, after)
    }

    /// Follows every key from now on, and never has to begin anew: see [`Tail`].
    pub fn tail(&self) -> Result<Tail, WatchError> {
        self.shared.replica.tail()
    }

    /// The same from an earlier revision on, if the events since are still there.
    pub fn tail_after(&self, after: u64) -> Result<Tail, WatchError> {
        self.shared.replica.tail_after(after)
    }

    /// The sets of voters of which a majority each is needed now: one, unless a change is under way. Until that is
    /// committed the set before it decides as well, and if that is a single node nothing goes on without it.
    pub fn voter_sets(&self) -> Vec<BTreeSet<VoterId>> {
        let committed = self.shared.raft.metrics().borrow_watched().committed_membership_config.clone();
        let standing = self.look();
        let before = committed.membership().get_joint_config().iter().filter(|_| !standing.committed);
        let mut sets: Vec<_> =
            standing.members.membership().get_joint_config().iter().chain(before).cloned().collect();
        sets.dedup();
        sets
    }

    /// How the store stands, seen from here.
    pub fn metrics(&self) -> Metrics {
        let raft = self.shared.raft.metrics().borrow_watched().clone();
        let standing = self.look();
        let state = self.state();
        let members = standing.members.membership();
        let voter = self.shared.name.voter;
        let leads = standing.leader == Some(voter);
        let alone = members.voter_ids().eq([voter]);
        let acked = raft.last_quorum_acked.map(|acked| acked.into_inner().elapsed());
        let matched = raft.replication.iter().flatten().filter(|(peer, _)| **peer != voter);
        Metrics {
            voter,
            leader: standing.leader,
            term: standing.term,
            voters: members.voter_ids().collect(),
            learners: members.learner_ids().collect(),
            joint: members.get_joint_config().len() > 1,
            membership: *standing.members.log_id(),
            membership_committed: standing.committed,
            follows: self.followed().source,
            followers: self.shared.followers.load(Ordering::Relaxed),
            applied: raft.last_applied.index().unwrap_or(0),
            last_log: raft.last_log_index.unwrap_or(0),
            purged: raft.purged.index().unwrap_or(0),
            revision: state.revision(),
            bytes: state.bytes(),
            ring: self.shared.replica.with_ring(|ring| ring.size()),
            // Openraft counts acknowledgements of others only.
            quorum_acked_age: if leads && alone { Some(Duration::ZERO) } else { acked.filter(|_| leads) },
            matched: matched.map(|(peer, log_id)| (*peer, log_id.index().unwrap_or(0))).collect(),
            disk: self.disk(),
            failed: raft.running_state.err().map(|fatal| fatal.to_string()),
        }
    }

    /// Whether the disk does its work. One that failed a snapshot ends consensus as one does that failed the log.
    pub fn disk(&self) -> Health {
        match ((self.shared.health)(), self.failure()) {
            (Health::Good, Some(failure)) => Health::Failed(failure.into()),
            (health, _) => health,
        }
    }

    fn failure(&self) -> Option<String> {
        let raft = self.shared.raft.metrics();
        raft.borrow_watched().running_state.as_ref().err().map(ToString::to_string)
    }

    /// Wakes when leader, term or membership change.
    pub fn on_change(&self) -> Changes<Rt> {
        Changes(self.seen().subscribe())
    }

    /// Who leads and who votes, as far as this store knows.
    ///
    /// Tells those who wait when that is no longer what it was. It also changes by mere time (a leader that
    /// nobody hears any more), so whoever sees it must have it told: they would wait for a change back that
    /// nobody else sees as one.
    pub(crate) fn look(&self) -> Standing {
        // Under the lock, or of two that look at once the one who saw less might have the last word.
        let seen = self.seen();
        let own = Own {
            lives: self.raft_lives(),
            failed: self.raft_failed(),
            standing: Standing::by_raft::<Rt>(&self.shared.raft.server_metrics().borrow_watched()),
        };
        let standing = {
            let followed = self.followed();
            Standing::of(self.shared.name.voter, own, followed.told(), followed.members.as_ref())
        };
        // Its old log may say that a store votes which is out: others would only refuse it.
        self.shared.raft.runtime_config().elect(!is_outside(&standing.members, self.shared.name.voter));
        seen.send_if_modified(|told| {
            let changed = !told.stopped && *told != standing;
            if changed {
                *told = standing.clone();
            }
            changed
        });
        standing
    }

    /// Looks whenever Raft has something new, and when it has ended.
    pub(crate) async fn mirror(self) {
        let mut raft = self.shared.raft.server_metrics();
        while raft.changed().await.is_ok() {
            self.look();
        }
        self.look();
    }

    fn seen(&self) -> MutexGuard<'_, <Rt::Watch as Watch>::Sender<Standing>> {
        self.shared.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn followed(&self) -> MutexGuard<'_, Followed<Rt::Instant>> {
        self.shared.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under which name this store votes.
    pub fn voter(&self) -> VoterId {
        self.shared.name.voter
    }

    /// By which timings it elects; [`restart`](crate::Store) to change them.
    pub fn timings(&self) -> Timings {
        self.shared.timings
    }

    /// Founds a cluster whose only voter is this store, which must be empty.
    pub async fn bootstrap(&self) -> Result<(), ChangeError> {
        let members = BTreeMap::from([(self.shared.name.voter, EmptyNode::default())]);
        self.shared.raft.initialize(members).await.map_err(|error| match error {
            RaftError::APIError(error) => ChangeError::Impossible(error.to_string()),
            RaftError::Fatal(_) => ChangeError::Stopped,
        })
    }

    /// Lets `voter` follow without a vote. Returns when the membership is committed; whether it has
    /// caught up is in [`Metrics::matched`].
    pub async fn add_learner(&self, voter: VoterId) -> Result<(), ChangeError> {
        self.shared.raft.add_learner(voter, EmptyNode::default(), false).await.map(drop).map_err(change_error)
    }

    /// Changes the voters, unless the membership is no longer that of the entry `on_membership`
    /// (from [`Metrics::membership`]): two who decide at once cannot both have their way.
    pub async fn change_members(
        &self,
        change: MemberChange,
        on_membership: Option<LogId>,
    ) -> Result<(), ChangeError> {
        let members = match change {
            MemberChange::Voters(voters) => ChangeMembers::ReplaceAllVoters(voters),
            MemberChange::RemoveLearner(voter) => ChangeMembers::RemoveNodes(BTreeSet::from([voter])),
            MemberChange::FinishJoint => ChangeMembers::AddVoterIds(BTreeSet::new()),
        };
        let unmoved = Precondition::LastMembershipLogId { last_membership_log_id: on_membership };
        let conditions = (!crate::broken!(MembersUnconditionally)).then_some(unmoved);
        self.shared
            .raft
            .change_membership_if(members, false, conditions)
            .await
            .map(drop)
            .map_err(change_error)
    }

    /// Hands leadership to `to`, or to the voter whose log is most complete. Returns whether another
    /// voter leads within one election timeout; a follower returns at once.
    pub async fn transfer_leader(&self, to: Option<VoterId>) -> bool {
        let metrics = self.metrics();
        if !metrics.leads() {
            return true;
        }
        let best = || {
            let matched = |peer: &&VoterId| metrics.matched.get(*peer).copied().unwrap_or(0);
            metrics.voters.iter().filter(|peer| **peer != metrics.voter).max_by_key(matched).copied()
        };
        let Some(to) = to.or_else(best) else {
            return false;
        };
        let mut changes = self.on_change();
        if self.shared.raft.trigger().transfer_leader(to).await.is_err() {
            return false;
        }
        let moved = async {
            while matches!(changes.leader(), Some(leader) if leader == metrics.voter)
                || changes.leader().is_none()
            {
                if !changes.changed().await {
                    return false;
                }
            }
            true
        };
        Rt::timeout(self.shared.timings.election_min() * 2, moved).await.unwrap_or(false)
    }

    /// Stops the store: hands leadership over if it leads, ends watches, joins every task, and
    /// closes the files, so that the directory may be opened again when this returns.
    pub async fn shutdown(&self) {
        if self.shared.stopping.swap(true, Ordering::Relaxed) {
            return;
        }
        self.transfer_leader(None).await;
        self.shared.replica.stop();
        self.seen().send_if_modified(|told| !std::mem::replace(&mut told.stopped, true));
        let following = self.shared.following.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(following) = following {
            // A panic of it has been reported where it happened.
            let _ = following.await;
        }
        // A task that had already ended by an error has nothing left to join.
        let _ = self.shared.raft.shutdown().await;
        self.shared.links.close();
        let closing = self.shared.closing.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(closing) = closing {
            closing().await;
        }
    }

    pub(crate) fn raft(&self) -> &Core<Rt> {
        &self.shared.raft
    }

    /// Proposes as the leader. What a full disk still takes is kept for what the leader itself has judged:
    /// the pods of a lost node are replaced also then.
    pub(crate) async fn propose_here(&self, mut command: Command) -> Here<Answer> {
        // It had failed before: what is asked of it now never reached anybody.
        if self.raft_failed() {
            return Here::Elsewhere(None);
        }
        if command.only_in_term.is_none() && self.disk() == Health::Full {
            let leader = self.look().leader;
            return if leader == Some(self.shared.name.voter) { Here::Full } else { Here::Elsewhere(leader) };
        }
        command.stamp_ms = self.stamp_ms();
        match self.shared.raft.client_write(command).await {
            Ok(written) => Here::Done(written.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => Here::Elsewhere(to.leader_id),
            // Raft may have failed with it under way: what others have of it the next leader may commit.
            Err(RaftError::APIError(_) | RaftError::Fatal(_)) => Here::Uncertain,
        }
    }

    pub(crate) async fn read_index_here(&self) -> Here<u64> {
        if crate::broken!(NoReadIndex) {
            return Here::Done(self.shared.replica.revision());
        }
        let raft = &self.shared.raft;
        // What is committed, by a leader that was acknowledged of late; whether it still leads is asked below.
        let trusted = crate::broken!(OpenraftsReadIndex);
        let age_max = trusted.then_some(Duration::ZERO);
        let linearizer = match raft.get_read_linearizer(LinearizerOption::new(age_max, true)).await {
            Ok(linearizer) => linearizer,
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                return Here::Elsewhere(to.leader_id);
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) | RaftError::Fatal(_)) => {
                return Here::Elsewhere(None);
            }
        };
        let vote =
            Vote::new_committed(linearizer.read_log_id().committed_leader_id().term, self.shared.name.voter);
        if !trusted && !self.shared.rounds.confirm(self, vote).await {
            return Here::Elsewhere(None);
        }
        match linearizer.await_ready(raft).await {
            Ok(_) => Here::Done(self.shared.replica.revision()),
            Err(_) => Here::Elsewhere(None),
        }
    }

    fn open_proposal(&self) -> Result<OpenProposal<'_>, ProposeError> {
        let mut serials = self.shared.serials.lock().unwrap_or_else(PoisonError::into_inner);
        if serials.open.len() >= OPEN_MAX {
            return Err(ProposeError::Busy);
        }
        serials.last += 1;
        let serial = serials.last;
        serials.open.insert(serial);
        Ok(OpenProposal { serials: &self.shared.serials, serial })
    }
}

/// A serial that is awaited; dropping it says that nobody asks for its answer any more.
struct OpenProposal<'a> {
    serials: &'a Mutex<Serials>,
    serial: u64,
}

impl OpenProposal<'_> {
    fn lowest(&self) -> u64 {
        let serials = self.serials.lock().unwrap_or_else(PoisonError::into_inner);
        serials.open.first().copied().unwrap_or(self.serial)
    }
}

impl Drop for OpenProposal<'_> {
    fn drop(&mut self) {
        self.serials.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&self.serial);
    }
}

/// What came of asking one voter.
enum Asked<Rt: AsyncRuntime> {
    Answer(Response<Rt>),
    /// The question never reached anybody.
    NotSent,
    /// It may have.
    Lost,
    Stopped,
}

/// Whom to ask next, and how long still.
struct Retry<'a, Rt: AsyncRuntime> {
    handle: &'a Handle<Rt>,
    changes: Changes<Rt>,
    deadline: Rt::Instant,
    hint: Option<VoterId>,
    /// Who was asked last.
    asked: Option<VoterId>,
    /// Hints followed without a pause: two voters may each take the other for the leader.
    hops: u32,
    /// How long the next pause lasts.
    pause: Duration,
}

impl<'a, Rt: AsyncRuntime> Retry<'a, Rt> {
    fn new(handle: &'a Handle<Rt>, timeout: Duration) -> Self {
        Retry {
            handle,
            changes: handle.on_change(),
            deadline: Rt::Instant::now() + timeout,
            hint: None,
            asked: None,
            hops: 0,
            pause: RETRY_FIRST,
        }
    }

    fn leader(&mut self) -> Option<VoterId> {
        self.asked = self.hint.take().or_else(|| self.handle.look().leader);
        self.asked
    }

    /// A refusing voter named the leader it knows; ask that one at once.
    fn hint(&mut self, leader: Option<VoterId>) {
        self.hint = leader;
    }

    /// Asks `leader`, and gives it up when another one leads, so that no caller sits out the silence
    /// of a dead machine.
    async fn ask(&mut self, leader: Option<VoterId>, request: Request<Rt>) -> Asked<Rt> {
        // What is waited for here and in a pause would never come, nor let anybody wait.
        if self.changes.are_over() {
            return Asked::Stopped;
        }
        let Some(leader) = leader else {
            return Asked::NotSent;
        };
        let handle = self.handle;
        let asking = async {
            if leader != handle.shared.name.voter {
                return match handle.shared.links.call(leader, Lane::Forward, request).await {
                    Ok(response) => Asked::Answer(response),
                    Err(CallError::Unreachable(_)) => Asked::NotSent,
                    Err(CallError::Broken(_)) => Asked::Lost,
                };
            }
            Asked::Answer(match request {
                Request::Propose(command) => handle.propose_here(command).await.answer(Response::Proposed),
                _ => handle.read_index_here().await.answer(Response::ReadIndex),
            })
        };
        let changes = &mut self.changes;
        let deposed = async {
            loop {
                if !changes.changed().await {
                    return;
                }
                if changes.leader().is_some_and(|now| now != leader) {
                    return;
                }
            }
        };
        let (asking, deposed) = (std::pin::pin!(asking), std::pin::pin!(deposed));
        match Rt::timeout_at(self.deadline, Rt::select2(asking, deposed)).await {
            Ok(Select2::First(asked)) => asked,
            Ok(Select2::Second(())) | Err(_) => Asked::Lost,
        }
    }

    /// Waits for a change of leader or a moment, unless another one leads already; `false` when the time is up.
    async fn pause(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Rt::Instant::now());
        if left.is_zero() || self.handle.shared.stopping.load(Ordering::Relaxed) {
            return false;
        }
        self.hops += 1;
        // A leader that hands over refuses, and knows no other yet.
        if self.hint == self.asked {
            self.hint = None;
        }
        let next = self.hint.or_else(|| self.handle.look().leader).filter(|next| Some(*next) != self.asked);
        if next.is_none() || self.hops > HOPS_MAX {
            self.hops = 0;
            // A store that has stopped and the end of the wait look alike here; the next question tells them apart.
            let _ = Rt::timeout(self.pause.min(left), self.changes.changed()).await;
            self.pause = (2 * self.pause).min(RETRY_MAX);
        }
        true
    }
}

fn change_error<Rt: AsyncRuntime>(
    error: RaftError<TypeConfig<Rt>, ClientWriteError<TypeConfig<Rt>>>,
) -> ChangeError {
    use openraft::errors::ChangeMembershipError;
    match error {
        RaftError::Fatal(_) => ChangeError::Stopped,
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            ChangeError::NotLeader { leader: to.leader_id }
        }
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => ChangeError::Moved,
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => ChangeError::Unknown,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(error) => ChangeError::InProgress(error.to_string()),
            error => ChangeError::Impossible(error.to_string()),
        },
    }
}

/// The node of a voter, as everybody names it.
fn hex(voter: &VoterId) -> String {
    voter.node.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check(ops: &[Op]) -> Result<(), ProposeError> {
    if ops.is_empty() || ops.len() > OPS_MAX {
        return Err(ProposeError::TooLarge(format!(
            "a write has 1 to {OPS_MAX} operations, this one {}",
            ops.len()
        )));
    }
    for op in ops {
        if op.key.is_empty() || op.key.len() > KEY_BYTES_MAX || op.key.contains('\0') {
            return Err(ProposeError::BadKey(op.key.chars().take(80).collect()));
        }
        if let Change::Put(value) = &op.change
            && value.len() > OBJECT_BYTES_MAX
        {
            let (bytes, key) = (value.len(), &op.key);
            return Err(ProposeError::TooLarge(format!(
                "{key} has {bytes} bytes, at most {OBJECT_BYTES_MAX} are kept"
            )));
        }
    }
    let bytes: usize = ops.iter().map(Op::size).sum();
    match bytes > COMMAND_BYTES_MAX {
        true => Err(ProposeError::TooLarge(format!(
            "a write of {bytes} bytes, at most {COMMAND_BYTES_MAX} are taken"
        ))),
        false => Ok(()),
    }
}
