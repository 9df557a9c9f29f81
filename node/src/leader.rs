//! The leader's work: plans for the objects, and the voters. Every node runs it; it does nothing
//! while another one leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use skein_api::write::Write;
use skein_control::chance::Chance;
use skein_control::plan::{Agenda, Round};
use skein_control::voters::{self, Membership, Memory, Sighting};
use skein_net::endpoint::Endpoint;
use skein_net::gossip::service::Members as Gossiped;
use skein_net::identity::NodeId;
use skein_raft_store::{
    Change, Changes, Expect, Handle, MemberChange, Op, Options, ProposeError, ReadError, TokioRuntime,
    VoterId,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::admission::all_done;
use crate::authority::Authority;
use crate::clock;
use crate::cluster::op;
use crate::disk;
use crate::members::{self, Members, Record};
use crate::picture::Picture;
use crate::watchfulness::Verdicts;

/// How often the leader looks at the voters.
const VOTERS_EVERY: Duration = Duration::from_millis(250);
/// How often the others look whether they have all that a voter holds, beside each change of who votes.
const HOLD_EVERY: Duration = Duration::from_secs(2);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Plans objects, one command after another.
pub(crate) struct Planner {
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) picture: Picture,
    pub(crate) verdicts: watch::Receiver<Verdicts>,
    pub(crate) ca_pem: String,
    pub(crate) kubernetes_ip: String,
}

impl Planner {
    /// Runs until `stopping`.
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        let mut changes = self.store.on_change();
        loop {
            let metrics = self.store.metrics();
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                goes_on = self.lead(metrics.term), if metrics.leads() => if !goes_on { return },
                changed = changes.changed() => if !changed { return },
            }
        }
    }

    /// Plans as the leader of `term` until it is over. Whether the store goes on.
    async fn lead(&mut self, term: u64) -> bool {
        // All that was ever answered must be in the picture before the first plan.
        let revision = match self.store.read_index(Duration::from_secs(10)).await {
            Ok(revision) => revision,
            Err(error) => {
                debug!(term, %error, "could not take office yet");
                return error != ReadError::Stopped;
            }
        };
        self.picture.begin_noting();
        self.picture.reach(revision).await;
        let mut revisions = self.picture.revisions();
        let mut changes = self.store.on_change();
        let mut agenda = Agenda::default();
        loop {
            let (view, changed) = self.picture.take_changed();
            agenda.add(changed);
            let verdicts = self.verdicts.borrow_and_update().clone();
            let round = Round {
                now: self.stamp(),
                chance: Chance(rand::random()),
                verdicts: &verdicts,
                ca_pem: &self.ca_pem,
                kubernetes_ip: &self.kubernetes_ip,
            };
            let mut plan = agenda.plan(&view, &round);
            if !plan.writes.is_empty() {
                match self.commit(term, std::mem::take(&mut plan.writes)).await {
                    // The plan's own writes come back by the watch; they change nothing for planners.
                    Ok(Some(revision)) => {
                        let goes_on = agenda.committed(&plan);
                        self.picture.reach(revision).await;
                        if goes_on {
                            continue;
                        }
                    }
                    // Somebody wrote meanwhile: look again when that is seen here.
                    Ok(None) => {}
                    Err(ProposeError::NotLeader { .. }) => break,
                    Err(ProposeError::Stopped) => return false,
                    Err(error) => {
                        debug!(term, %error, "a plan was not committed");
                        agenda.failed();
                    }
                }
            }
            let metrics = self.store.metrics();
            if metrics.term != term || !metrics.leads() {
                break;
            }
            let wake_at = Instant::now() + agenda.wake_in(self.stamp());
            if self.wait(&mut revisions, &mut changes, wake_at).await {
                agenda.woken();
            }
        }
        self.picture.stop_noting();
        true
    }

    /// Waits for something new. `true` if it is only time that passed.
    async fn wait(
        &mut self,
        revisions: &mut watch::Receiver<u64>,
        changes: &mut Changes<TokioRuntime>,
        wake_at: Instant,
    ) -> bool {
        tokio::select! {
            biased;
            _ = self.verdicts.changed() => false,
            _ = revisions.changed() => false,
            _ = changes.changed() => false,
            () = sleep_until(wake_at) => true,
        }
    }

    /// Commits a plan in the term that made it. `None` if its picture was too old.
    async fn commit(&self, term: u64, writes: Vec<Write>) -> Result<Option<u64>, ProposeError> {
        let count = writes.len();
        let began = Instant::now();
        let options = Options { only_in_term: Some(term), ..Options::default() };
        let answer = self.store.propose(writes.into_iter().map(op).collect(), options).await?;
        let took_ms = began.elapsed().as_millis() as u64;
        debug!(term, count, took_ms, rev = answer.revision, "planned");
        Ok(all_done(&answer).then_some(answer.revision))
    }

    /// The time by which plans are made; never earlier than what was stamped before.
    fn stamp(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.store.stamp_ms() as i64).unwrap_or_default()
    }
}

/// Chooses the voters.
pub(crate) struct Voters {
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) endpoint: Endpoint,
    pub(crate) members: Members,
    pub(crate) authority: Authority,
    pub(crate) gossiped: watch::Receiver<Arc<Gossiped>>,
}

impl Voters {
    /// Runs until `stopping`.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let mut memory = Memory::default();
        let mut changes = self.store.on_change();
        loop {
            self.authority.hold_if_voter(&self.store, &self.endpoint).await;
            let leads = self.store.metrics().leads();
            if leads {
                self.look(&mut memory).await;
            } else {
                // Another leader's clock and memory are its own.
                memory = Memory::default();
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(if leads { VOTERS_EVERY } else { HOLD_EVERY }) => {}
                changed = changes.changed(), if !leads => if !changed { return },
            }
        }
    }

    /// Ends the membership of those who asked to leave, are out, and went away before they could say so.
    async fn let_go(&self, metrics: &skein_raft_store::Metrics) {
        let state = self.store.state();
        let gossiped = self.gossiped.borrow().clone();
        let gone =
            |record: &Record| !gossiped.get(&record.node).is_some_and(|member| member.state.is_active());
        for record in self.members.present().into_values().filter(|record| record.leaving && gone(record)) {
            let voter = members::voter(&record);
            if metrics.has_log(voter) || metrics.joint {
                continue;
            }
            let Some(object) = state.get(&Record::key(record.node)) else { continue };
            let gone = Record { removed: true, ..record.clone() };
            let ops = vec![
                Op {
                    key: Record::key(record.node).into(),
                    expect: Expect::Revision(object.mod_rev),
                    change: Change::Put(gone.to_bytes().into()),
                },
                Op {
                    key: format!("core/nodes//{}", record.name).into(),
                    expect: Expect::Any,
                    change: Change::Delete,
                },
            ];
            match self.store.propose(ops, Options::default()).await {
                Ok(_) => info!(peer = %record.node, name = record.name, "a node left"),
                Err(error) => warn!(peer = %record.node, %error, "could not let a node go yet"),
            }
        }
    }

    async fn look(&self, memory: &mut Memory<VoterId>) {
        let metrics = self.store.metrics();
        let now = clock::boot();
        self.let_go(&metrics).await;
        let records = self.members.present();
        let gossiped = self.gossiped.borrow().clone();
        let sightings = records.values().map(|record| {
            let id = members::voter(record);
            let removals = record.removals_ms.iter().filter(|at| **at + DAY_MS > wall_ms()).count();
            let member = gossiped.get(&record.node).filter(|member| member.state.is_active());
            let sighting = Sighting {
                alive: member.is_some(),
                disk_failed: disk::has_failed(member.and_then(|member| member.metadata.as_deref())),
                matched: metrics.matched.get(&id).copied().unwrap_or(0),
                fresh: record.fresh,
                removals: removals as u32,
                leaving: record.leaving,
                domain: String::new(),
            };
            (id, sighting)
        });
        let members = memory.look(now, metrics.voter, metrics.last_log, sightings);
        let membership = Membership {
            voters: metrics.voters.clone(),
            learners: metrics.learners.clone(),
            joint: metrics.joint,
        };
        let change = voters::plan(
            now,
            metrics.voter,
            &members,
            &membership,
            voters::LEARNERS_MAX,
            memory.last_voluntary,
        );
        let Some(change) = change else { return };
        let result = match &change {
            voters::Change::AddLearner(id) => self.store.add_learner(*id).await,
            voters::Change::RemoveLearner(id) => {
                self.store.change_members(MemberChange::RemoveLearner(*id), metrics.membership).await
            }
            voters::Change::Voters { .. } if metrics.joint => {
                self.store.change_members(MemberChange::FinishJoint, metrics.membership).await
            }
            voters::Change::Voters { voters, .. } => {
                self.store.change_members(MemberChange::Voters(voters.clone()), metrics.membership).await
            }
        };
        match result {
            Ok(()) => {
                info!(?change, term = metrics.term, "changed who votes");
                if let voters::Change::Voters { voters, voluntary } = &change {
                    if *voluntary {
                        memory.last_voluntary = Some(now);
                    }
                    self.note(&metrics.voters, voters, &records).await;
                }
            }
            Err(error) => warn!(?change, %error, "could not change who votes"),
        }
    }

    /// Writes into the records who has voted now and who was removed: what later choices depend on.
    async fn note(
        &self,
        before: &std::collections::BTreeSet<VoterId>,
        after: &std::collections::BTreeSet<VoterId>,
        records: &BTreeMap<NodeId, Record>,
    ) {
        let state = self.store.state();
        let mut ops = Vec::new();
        for record in records.values() {
            let mut next = record.clone();
            let id = members::voter(record);
            if after.contains(&id) {
                next.fresh = false;
            }
            if before.contains(&id) && !after.contains(&id) {
                next.removals_ms.retain(|at| at + DAY_MS > wall_ms());
                next.removals_ms.push(wall_ms());
            }
            let key = Record::key(record.node);
            let Some(object) = state.get(&key).filter(|_| next != *record) else { continue };
            let expect = Expect::Revision(object.mod_rev);
            ops.push(Op { key: key.into(), expect, change: Change::Put(next.to_bytes().into()) });
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

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
