//! The leader's work: plans for the objects, and the voters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use openraft::AsyncRuntime;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skein_api::write::{self, Write};
use skein_control::chance::Chance;
use skein_control::node::departure::{self, Quorum};
use skein_control::node::roster::PREFIX;
use skein_control::plan::{Agenda, Fate, Next, Round};
use skein_control::voters::{self, Logs, Member, Membership, Memory, Seen, Standing};
use skein_net::identity::{NodeId, StoreId};
use skein_raft_store::sim::SimRt;
use skein_raft_store::{
    Change, Expect, MemberChange, Metrics, Op, Options, Outcome, ProposeError, ReadError, VoterId,
};

use crate::gossip::has_failed;
use crate::plan::Mutation;
use crate::world::{Site, node_name, number_of_voter};
use crate::{departures, members};

const VOTERS_EVERY: Duration = Duration::from_millis(250);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Plans whenever this node leads, until its process ends.
pub(crate) async fn run(site: Site, seed: u64) {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut changes = site.store.on_change();
    loop {
        let metrics = site.store.metrics();
        if metrics.leads() {
            if !lead(&site, metrics.term, &mut chance).await {
                return;
            }
        } else if !changes.changed().await {
            return;
        }
    }
}

/// Whether the store goes on.
async fn lead(site: &Site, term: u64, chance: &mut StdRng) -> bool {
    let revision = match site.store.read_index(Duration::from_secs(10)).await {
        Ok(revision) => revision,
        Err(error) => return error != ReadError::Stopped,
    };
    site.picture.begin_noting();
    site.picture.reach(revision).await;
    let (mut moves, mut changes) = (site.picture.moves(), site.store.on_change());
    let mut agenda = Agenda::default();
    loop {
        let metrics = site.store.metrics();
        if metrics.term != term || !metrics.leads() {
            break;
        }
        let (view, changed) = site.picture.take_changed();
        agenda.add(changed);
        let verdicts = site.verdicts.lock().unwrap().clone();
        let (now, chance) = (stamp(site), Chance(chance.random()));
        let electorate = match site.world.plan.mutation {
            Some(Mutation::WishesForgotten) => departure::Electorate::default(),
            _ => departures::electorate(site, &metrics),
        };
        let round = Round {
            now,
            chance,
            verdicts: &verdicts,
            electorate: &electorate,
            ca_pem: "ca",
            kubernetes_ip: "10.0.0.1",
        };
        let mut plan = agenda.plan(&view, &round);
        let next = if plan.writes.is_empty() {
            Next::Wait
        } else {
            match commit(site, term, std::mem::take(&mut plan.writes)).await {
                Ok(fate) => agenda.became(&plan, fate),
                Err(Over::Term) => break,
                Err(Over::Store) => return false,
            }
        };
        match next {
            Next::Plan => {}
            Next::Settle => match settle(site, term).await {
                Ok(()) => {}
                Err(Over::Term) => break,
                Err(Over::Store) => return false,
            },
            Next::Wait => {
                let something = SimRt::select2(moves.next(), changes.changed());
                // Time alone is a reason to look as well.
                let _ = SimRt::timeout(agenda.wake_in(stamp(site)), something).await;
            }
        }
    }
    site.picture.stop_noting();
    true
}

/// Nothing more can be planned in this term, or by this store.
enum Over {
    Term,
    Store,
}

/// Commits a plan in the term that made it, and waits until the picture shows what became of it.
async fn commit(site: &Site, term: u64, writes: Vec<Write>) -> Result<Fate, Over> {
    site.world.count("plans");
    let mut ops: Vec<Op> = writes.into_iter().map(op).collect();
    let mut options = Options { only_in_term: Some(term), ..Options::default() };
    if site.world.plan.mutation == Some(Mutation::UnconditionalPlan) {
        options.only_in_term = None;
        for op in &mut ops {
            op.expect = Expect::Any;
        }
    }
    let answer = match site.store.propose(ops, options).await {
        Ok(answer) => answer,
        Err(ProposeError::NotLeader { .. }) => {
            site.world.count("plans of an old term");
            return Err(Over::Term);
        }
        Err(ProposeError::Stopped) => return Err(Over::Store),
        Err(ProposeError::Unknown(_)) => {
            site.world.count("plans of unknown outcome");
            return Ok(Fate::Unknown);
        }
        Err(error @ (ProposeError::TooLarge(_) | ProposeError::BadKey(_))) => {
            site.world.wrong(format!("a plan was not taken: {error}"));
            return Ok(Fate::NotTaken);
        }
        Err(_) => return Ok(Fate::NotDone),
    };
    site.picture.reach(answer.revision).await;
    if answer.outcomes.contains(&Outcome::WrongTerm) {
        return Err(Over::Term);
    }
    let done = |outcome: &Outcome| matches!(outcome, Outcome::Done { .. } | Outcome::Unchanged { .. });
    if answer.outcomes.iter().all(done) {
        return Ok(Fate::Committed);
    }
    site.world.count("plans refused");
    Ok(Fate::Outdated)
}

/// Waits until whatever was proposed before is decided, and shown by the picture.
async fn settle(site: &Site, term: u64) -> Result<(), Over> {
    loop {
        let nothing = Op { key: "skein/settled".into(), expect: Expect::Any, change: Change::Check };
        let options = Options { only_in_term: Some(term), ..Options::default() };
        match site.store.propose(vec![nothing], options).await {
            Ok(answer) if answer.outcomes.contains(&Outcome::WrongTerm) => return Err(Over::Term),
            Ok(answer) => {
                site.world.count("plans settled");
                site.picture.reach(answer.revision).await;
                return Ok(());
            }
            Err(ProposeError::NotLeader { .. }) => return Err(Over::Term),
            Err(ProposeError::Stopped) => return Err(Over::Store),
            Err(_) => SimRt::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Never earlier than what was stamped before.
pub(crate) fn stamp(site: &Site) -> Timestamp {
    Timestamp::from_millisecond(site.store.stamp_ms() as i64).unwrap_or_default()
}

/// An operation of the store for a write of the API or of a planner.
pub(crate) fn op(write: Write) -> Op {
    let expect = match write.expect {
        write::Expect::Any => Expect::Any,
        write::Expect::Absent => Expect::Absent,
        write::Expect::Present => Expect::Present,
        write::Expect::Revision(revision) => Expect::Revision(revision),
    };
    let change = match write.change {
        write::Change::Put(bytes) => Change::Put(bytes.into()),
        write::Change::Delete => Change::Delete,
        write::Change::Check => Change::Check,
    };
    Op { key: write.key.into(), expect, change }
}

/// Chooses the voters whenever this node leads.
pub(crate) async fn choose_voters(site: Site) {
    let mut memory = Memory::default();
    let mut office = None;
    loop {
        SimRt::sleep(VOTERS_EVERY).await;
        let metrics = site.store.metrics();
        if metrics.leads() && office != Some(metrics.term) {
            office = take_office(&site, metrics.term).await;
        }
        let metrics = site.store.metrics();
        let members = see(&site, &metrics, &mut memory);
        if !metrics.leads() || office != Some(metrics.term) {
            *site.needs.lock().unwrap() = None;
            continue;
        }
        let (now, on) = (site.clock.boot(), metrics.membership);
        let (members, membership, last) = (members, membership(&metrics), memory.last_voluntary());
        note_needs(&site, &metrics, &members, &membership);
        let change = voters::plan(now, metrics.voter, &members, &membership, voters::LEARNERS_MAX, last);
        let Some(change) = change else {
            hand_over(&site).await;
            continue;
        };
        let done = match &change {
            voters::Change::AddLearner(id) => site.store.add_learner(*id).await,
            voters::Change::RemoveLearner(id) => {
                site.store.change_members(MemberChange::RemoveLearner(*id), on).await
            }
            voters::Change::Voters { .. } if metrics.joint => {
                site.world.count("joint sets finished");
                site.store.change_members(MemberChange::FinishJoint, on).await
            }
            voters::Change::Voters { voters, .. } => {
                site.store.change_members(MemberChange::Voters(voters.clone()), on).await
            }
        };
        site.world.count(match (&change, &done) {
            (_, Err(_)) => "changes of members failed",
            (voters::Change::Voters { .. }, Ok(())) => "voters changed",
            (_, Ok(())) => "learners changed",
        });
        if let (Ok(()), voters::Change::Voters { voters, voluntary, replaced }) = (&done, &change) {
            if *voluntary {
                memory.changed_voluntarily(now);
            }
            note_voters(&site, &membership.voters, voters, replaced).await;
        }
        hand_over(&site).await;
    }
}

/// Waits until this node has seen all that was answered before its term.
async fn take_office(site: &Site, term: u64) -> Option<u64> {
    let revision = site.store.read_index(Duration::from_secs(5)).await.ok()?;
    site.picture.reach(revision).await;
    Some(term)
}

fn see(site: &Site, metrics: &Metrics, memory: &mut Memory<VoterId>) -> BTreeMap<VoterId, Member<VoterId>> {
    let (world, stamp_ms) = (&site.world, site.store.stamp_ms());
    let records = site.picture.records().into_iter().map(|(node, record)| {
        let removals = record.removals_ms.iter().filter(|at| **at + DAY_MS > stamp_ms).count() as u32;
        let record = voters::Record {
            store: VoterId { node: record.node.0, store: record.store.0 },
            fresh: record.fresh,
            removals,
            leaving: record.leaving || record.removed,
            domain: String::new(),
        };
        (node, record)
    });
    let gossiped = site.members.lock().unwrap().clone();
    let seen = |store: &VoterId| {
        let member = gossiped.get(&NodeId(store.node)).filter(|member| member.state.is_active());
        let metadata = member.and_then(|member| member.metadata.as_deref());
        let disk_failed = metadata.is_some_and(has_failed);
        Seen { alive: member.is_some(), disk_failed, disowned: false }
    };
    let mut sightings =
        voters::sightings(&membership(metrics), &records.collect(), |store| NodeId(store.node), seen);
    if world.plan.mutation == Some(Mutation::AbsenceIsLeaving) {
        for sighting in sightings.values_mut().filter(|sighting| sighting.standing != Standing::Member) {
            sighting.standing = Standing::Leaving;
        }
    }
    let logs = Logs { term: metrics.term, last: metrics.last_log, matched: &metrics.matched };
    memory.look(site.clock.boot(), metrics.voter, sightings, metrics.leads().then_some(logs))
}

/// Notes what hangs on each voter now.
fn note_needs(
    site: &Site,
    metrics: &Metrics,
    members: &BTreeMap<VoterId, Member<VoterId>>,
    membership: &Membership<VoterId>,
) {
    let now = site.clock.boot();
    let needs = membership.voters.iter().filter_map(|voter| {
        let needed = voters::needed_to_let_go(now, metrics.voter, members, membership, *voter);
        let names: BTreeSet<String> = needed.iter().map(|of| node_name(number_of_voter(of))).collect();
        (!names.is_empty()).then(|| (NodeId(voter.node).to_string(), names))
    });
    let is_healthy = |store: &VoterId| members.get(store).is_some_and(Member::is_healthy);
    let critical = match site.world.plan.mutation {
        Some(Mutation::CriticalVotersGo) => BTreeSet::new(),
        _ => voters::critical(&site.store.voter_sets(), is_healthy),
    };
    let critical = critical.into_iter().map(|voter| NodeId(voter.node).to_string()).collect();
    let quorum = Quorum { needs: needs.collect(), critical };
    let mut known = site.needs.lock().unwrap();
    if known.as_deref() != Some(&quorum) {
        *known = Some(Arc::new(quorum));
        drop(known);
        site.picture.wake();
    }
}

/// Lets another one lead if this node is on its way out.
async fn hand_over(site: &Site) {
    let record = site.picture.roster().remove(&site.id);
    if record.is_some_and(|record| departure::hands_over(&record)) && site.store.metrics().leads() {
        site.world.count("leaders that go");
        site.store.transfer_leader(None).await;
    }
}

/// Writes into the records who has voted now and who was replaced: what later choices depend on.
async fn note_voters(
    site: &Site,
    before: &BTreeSet<VoterId>,
    after: &BTreeSet<VoterId>,
    replaced: &BTreeSet<VoterId>,
) {
    let (state, stamp_ms) = (site.store.state(), site.store.stamp_ms());
    let mut ops = Vec::new();
    for (key, object) in state.range(PREFIX, None) {
        let Ok(record) = serde_json::from_slice::<members::Record>(&object.value) else { continue };
        if record.removed {
            continue;
        }
        let mut next = record.clone();
        let store = VoterId { node: record.node.0, store: record.store.0 };
        next.fresh = voters::is_fresh_after(&store, record.fresh, before, after, replaced);
        if replaced.iter().any(|store| store.node == record.node.0) {
            next.removals_ms.retain(|at| at + DAY_MS > stamp_ms);
            next.removals_ms.push(stamp_ms);
        }
        if next != record {
            let (expect, change) = (Expect::Revision(object.mod_rev), Change::Put(next.to_bytes().into()));
            ops.push(Op { key: key.clone(), expect, change });
        }
    }
    // One that changed meanwhile is noted at the next change.
    if !ops.is_empty()
        && site.store.propose(ops, Options { atomic: false, ..Options::default() }).await.is_err()
    {
        site.world.count("voters not noted");
    }
}

fn membership(metrics: &Metrics) -> Membership<VoterId> {
    let (voters, learners) = (metrics.voters.clone(), metrics.learners.clone());
    Membership { voters, learners, joint: metrics.joint }
}

/// Tells the cluster that this node's store was lost and made anew.
pub(crate) async fn name_store(site: Site) {
    let own = StoreId(site.store.voter().store);
    loop {
        if site.store.read_index(Duration::from_secs(10)).await == Err(ReadError::Stopped) {
            return;
        }
        let Some((revision, record)) = members::read(&site.store.state(), site.id) else {
            // The cluster is not founded yet.
            SimRt::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if record.store == own || record.removed {
            return;
        }
        let change = Change::Put(members::Record { store: own, ..record }.to_bytes().into());
        let op = Op { key: members::key(site.id).into(), expect: Expect::Revision(revision), change };
        if let Ok(answer) = site.store.propose(vec![op], Options::default()).await {
            site.picture.reach(answer.revision).await;
        }
    }
}
