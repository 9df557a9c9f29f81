//! Who votes, chosen by the leader. Every node runs it; while another one leads it only looks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use itertools::Itertools as _;
use skein_control::node::departure::{self, Electorate, Quorum};
use skein_control::node::roster::PREFIX;
use skein_control::voters::{self, Logs, Member, Membership, Memory, Seen, Waiting};
use skein_net::gossip::service::Members as Gossiped;
use skein_net::identity::NodeId;
use skein_raft_store::{Change, Expect, Handle, MemberChange, Metrics, Op, Options, TokioRuntime, VoterId};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::authority::keeping;
use crate::clock;
use crate::disk;
use crate::members::{self, Members, Record};
use crate::picture::Picture;
use crate::quorum;
use crate::voting::{Voting, Wait};

/// How often the leader looks at the voters.
const VOTERS_EVERY: Duration = Duration::from_millis(250);
/// How often the others look, beside each change of who votes: who takes office then knows since when who is silent.
const SEE_EVERY: Duration = Duration::from_secs(2);
/// How long a new leader tries at once to learn what was answered before.
const OFFICE_MAX: Duration = Duration::from_secs(5);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// What hangs on each voter. `None` until a leader has looked.
pub(crate) type Needs = Option<Arc<Quorum>>;

/// What the leader knows of the log; nothing while another one leads, or before it has looked at the voters.
pub(crate) fn electorate(store: &Handle<TokioRuntime>, needs: &Needs) -> Electorate {
    let metrics = store.metrics();
    let Some(needs) = needs.as_ref().filter(|_| metrics.leads()) else { return Electorate::default() };
    let id = |voter: &VoterId| NodeId(voter.node).to_string();
    let in_log = store.voter_sets().into_iter().flatten().chain(metrics.learners);
    Electorate {
        leader: id(&metrics.voter),
        voters: metrics.voters.iter().map(id).collect(),
        in_log: in_log.map(|voter| id(&voter)).chain(metrics.voters.iter().map(id)).collect(),
        holders: keeping(&store.state()).iter().map(NodeId::to_string).collect(),
        quorum: (**needs).clone(),
    }
}

/// A change for the log.
fn words(change: &voters::Change<VoterId>, name: impl Fn(&VoterId) -> Option<String>) -> String {
    let name = |store: &VoterId| name(store).unwrap_or_else(|| NodeId(store.node).short());
    match change {
        voters::Change::AddLearner(store) => format!("{} copies the log, to vote later", name(store)),
        voters::Change::RemoveLearner(store) => format!("{} copies the log no more", name(store)),
        voters::Change::Voters { voters, .. } => format!("voters: {}", voters.iter().map(name).format(", ")),
    }
}

/// Chooses the voters.
pub(crate) struct Voters {
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) members: Members,
    pub(crate) picture: Picture,
    pub(crate) gossiped: watch::Receiver<Arc<Gossiped>>,
    /// What the leader says of the voters; `None` while another node leads.
    pub(crate) voting: watch::Sender<Option<Voting>>,
    pub(crate) needs: watch::Sender<Needs>,
}

impl Voters {
    /// Runs until `stopping`.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let mut memory = Memory::default();
        let mut changes = self.store.on_change();
        // The term in which this node leads and has seen all that was answered before.
        let mut office = None;
        loop {
            let metrics = self.store.metrics();
            let leads = metrics.leads();
            if leads && office != Some(metrics.term) {
                office = tokio::select! {
                    biased;
                    () = stopping.cancelled() => return,
                    office = self.take_office(metrics.term) => office,
                };
            }
            match office.filter(|term| leads && *term == metrics.term) {
                Some(_) => {
                    self.look(&mut memory).await;
                    self.hand_over().await;
                }
                None => {
                    self.see(&mut memory, &metrics);
                    self.tell(None);
                }
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(if leads { VOTERS_EVERY } else { SEE_EVERY }) => {}
                changed = changes.changed(), if !leads => if !changed { return },
            }
        }
    }

    /// Waits until this node has seen all that was answered before its `term`: a record that is older than the
    /// membership would name a store that is gone, or one that is not there yet.
    async fn take_office(&self, term: u64) -> Option<u64> {
        if let Err(error) = self.picture.catch_up(&self.store, OFFICE_MAX).await {
            debug!(term, %error, "the voters are not looked at yet");
            return None;
        }
        let metrics = self.store.metrics();
        (metrics.leads() && metrics.term == term).then_some(term)
    }

    /// Lets another one lead if this node is on its way out.
    async fn hand_over(&self) {
        let record = self.members.get(NodeId(self.store.voter().node));
        if record.is_some_and(|record| departure::hands_over(&record)) {
            self.store.transfer_leader(None).await;
        }
    }

    /// Notes what hangs on each voter now.
    fn tell(&self, needs: Needs) {
        self.needs.send_if_modified(|known| {
            let is_new = *known != needs;
            *known = needs;
            is_new
        });
    }

    /// How every store stands as this node sees it, and since when.
    fn see(&self, memory: &mut Memory<VoterId>, metrics: &Metrics) -> BTreeMap<VoterId, Member<VoterId>> {
        let gossiped = self.gossiped.borrow().clone();
        let record = |record: Record| voters::Record {
            store: members::voter(&record),
            fresh: record.fresh,
            removals: record.removals_ms.iter().filter(|at| **at + DAY_MS > clock::now_ms()).count() as u32,
            leaving: record.leaving || record.removed,
            domain: String::new(),
        };
        let records = self.members.all().into_iter().map(|(node, known)| (node, record(known))).collect();
        let seen = |store: &VoterId| {
            let member = gossiped.get(&NodeId(store.node)).filter(|member| member.state.is_active());
            let said = member.and_then(|member| member.metadata.as_deref());
            let disowned = *store != metrics.voter && !quorum::has_store(said, *store);
            Seen { alive: member.is_some() && !disowned, disk_failed: disk::has_failed(said), disowned }
        };
        let sightings = voters::sightings(&membership(metrics), &records, |store| NodeId(store.node), seen);
        let logs = Logs { term: metrics.term, last: metrics.last_log, matched: &metrics.matched };
        let leads = metrics.leads();
        self.voting.send_if_modified(|voting| !leads && voting.take().is_some());
        memory.look(clock::boot(), metrics.voter, sightings, leads.then_some(logs))
    }

    async fn look(&self, memory: &mut Memory<VoterId>) {
        let metrics = self.store.metrics();
        let members = self.see(memory, &metrics);
        if !metrics.leads() {
            return;
        }
        let (now, me, membership) = (clock::boot(), metrics.voter, membership(&metrics));
        let name = |store: &VoterId| self.members.get(NodeId(store.node)).map(|record| record.name);
        let needs = membership.voters.iter().filter_map(|voter| {
            let needed = voters::needed_to_let_go(now, me, &members, &membership, *voter);
            let names: BTreeSet<String> = needed.iter().filter_map(name).collect();
            (!needed.is_empty()).then(|| (NodeId(voter.node).to_string(), names))
        });
        let is_healthy = |store: &VoterId| members.get(store).is_some_and(Member::is_healthy);
        let critical = voters::critical(&self.store.voter_sets(), is_healthy);
        let critical = critical.into_iter().map(|voter| NodeId(voter.node).to_string()).collect();
        self.tell(Some(Arc::new(Quorum { needs: needs.collect(), critical })));
        let last_voluntary = memory.last_voluntary();
        self.say(&voters::waiting(now, me, &members, &membership, last_voluntary), &members, now);
        let change = voters::plan(now, me, &members, &membership, voters::LEARNERS_MAX, last_voluntary);
        let Some(change) = change else { return };
        let on = metrics.membership;
        let result = match &change {
            voters::Change::AddLearner(id) => self.store.add_learner(*id).await,
            voters::Change::RemoveLearner(id) => {
                self.store.change_members(MemberChange::RemoveLearner(*id), on).await
            }
            voters::Change::Voters { .. } if metrics.joint => {
                self.store.change_members(MemberChange::FinishJoint, on).await
            }
            voters::Change::Voters { voters, .. } => {
                self.store.change_members(MemberChange::Voters(voters.clone()), on).await
            }
        };
        match result {
            Ok(()) => {
                info!(term = metrics.term, "{}", words(&change, name));
                if let voters::Change::Voters { voters, voluntary, replaced } = &change {
                    if *voluntary {
                        memory.changed_voluntarily(now);
                    }
                    self.note(&membership.voters, voters, replaced).await;
                }
            }
            Err(error) => warn!(%error, "tried in vain to change who votes: {}", words(&change, name)),
        }
    }

    /// Lets this node and others show how the voters stand.
    fn say(
        &self,
        waiting: &[Waiting<VoterId>],
        members: &BTreeMap<VoterId, Member<VoterId>>,
        now: skein_control::time::Instant,
    ) {
        let is_healthy = |store: &VoterId| members.get(store).is_some_and(Member::is_healthy);
        let failures_survived = voters::failures_survived(&self.store.voter_sets(), is_healthy) as u64;
        let waits = waiting.iter().map(|waiting| Wait::new(waiting, now)).collect();
        self.voting.send_replace(Some(Voting { failures_survived, waits }));
    }

    /// Writes into the records who has voted now, who no more, and who was replaced: what later choices depend on.
    async fn note(
        &self,
        before: &BTreeSet<VoterId>,
        after: &BTreeSet<VoterId>,
        replaced: &BTreeSet<VoterId>,
    ) {
        let state = self.store.state();
        let mut ops = Vec::new();
        for (key, object) in state.range(PREFIX, None) {
            let Ok(record) = serde_json::from_slice::<Record>(&object.value) else { continue };
            if record.removed {
                continue;
            }
            let (mut next, voter) = (record.clone(), members::voter(&record));
            next.fresh = voters::is_fresh_after(&voter, record.fresh, before, after, replaced);
            if replaced.iter().any(|store| store.node == record.node.0) {
                next.removals_ms.retain(|at| at + DAY_MS > clock::now_ms());
                next.removals_ms.push(clock::now_ms());
            }
            if next != record {
                let (expect, change) =
                    (Expect::Revision(object.mod_rev), Change::Put(next.to_bytes().into()));
                ops.push(Op { key: key.clone(), expect, change });
            }
        }
        if ops.is_empty() {
            return;
        }
        // One that changed meanwhile is noted at the next change; the choice is no worse than before.
        let options = Options { atomic: false, ..Options::default() };
        if let Err(error) = self.store.propose(ops, options).await {
            warn!(%error, "could not note who votes");
        }
    }
}

fn membership(metrics: &Metrics) -> Membership<VoterId> {
    let (voters, learners) = (metrics.voters.clone(), metrics.learners.clone());
    Membership { voters, learners, joint: metrics.joint }
}
