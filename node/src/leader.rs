//! Who votes, chosen by the leader. Every node runs it; but for the authorities, which each voter holds, it does nothing
//! while another one leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use skein_control::voters::{self, Membership, Memory, Sighting};
use skein_net::endpoint::Endpoint;
use skein_net::gossip::service::Members as Gossiped;
use skein_net::identity::NodeId;
use skein_raft_store::{Change, Expect, Handle, MemberChange, Op, Options, TokioRuntime, VoterId};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::authority::Authority;
use crate::clock;
use crate::disk;
use crate::members::{self, Members, Record};

/// How often the leader looks at the voters.
const VOTERS_EVERY: Duration = Duration::from_millis(250);
/// How often the others look whether they have all that a voter holds, beside each change of who votes.
const HOLD_EVERY: Duration = Duration::from_secs(2);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

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
