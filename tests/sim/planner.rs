//! The leader's work: plans for the objects, and the voters.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use openraft::AsyncRuntime;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skein_api::write::{self, Write};
use skein_control::chance::Chance;
use skein_control::plan::{Plan, Round, plan};
use skein_control::time::Instant;
use skein_control::view::Changed;
use skein_control::voters::{self, Membership};
use skein_raft_store::sim::SimRt;
use skein_raft_store::{Change, Expect, MemberChange, Op, Options, Outcome, ProposeError, VoterId};

use crate::plan::Mutation;
use crate::world::{Site, node_id, voter_id};

/// How often a planner looks whether there is anything new.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const VOTERS_EVERY: Duration = Duration::from_millis(250);
const LAG_MAX: u64 = 64;

/// Plans whenever this node leads, until its process ends.
pub(crate) async fn run(site: Site, seed: u64) {
    let mut chance = StdRng::seed_from_u64(seed);
    loop {
        let metrics = site.store.metrics();
        if metrics.leads() {
            lead(&site, metrics.term, &mut chance).await;
        }
        SimRt::sleep(LOOK_EVERY).await;
    }
}

async fn lead(site: &Site, term: u64, chance: &mut StdRng) {
    let Ok(revision) = site.store.read_index(Duration::from_secs(10)).await else { return };
    site.picture.begin_noting();
    site.picture.reach(revision).await;
    let mut pending = Changed::All;
    let mut verdicts = BTreeMap::new();
    let mut wake_at: Option<Timestamp> = None;
    loop {
        let metrics = site.store.metrics();
        if metrics.term != term || !metrics.leads() {
            break;
        }
        let (view, changed) = site.picture.take_changed();
        pending.merge(changed);
        let now = stamp(site);
        if wake_at.is_some_and(|at| at <= now) {
            wake_at = None;
            pending = Changed::All;
        }
        let judged = site.verdicts.lock().unwrap().clone();
        if pending.is_empty() && judged == verdicts {
            SimRt::sleep(LOOK_EVERY).await;
            continue;
        }
        verdicts = judged;
        let chance = Chance(chance.random());
        let round = Round { now, chance, verdicts: &verdicts, ca_pem: "ca", kubernetes_ip: "10.0.0.1" };
        let Plan { writes, wake_at: wanted, unfinished } = plan(&view, &pending, &round);
        wake_at = wake_at.into_iter().chain(wanted).min();
        if writes.is_empty() {
            pending = Changed::default();
            continue;
        }
        site.world.count("plans");
        match commit(site, term, writes).await {
            Ok(Some(revision)) => {
                pending = if unfinished { Changed::All } else { Changed::default() };
                site.picture.reach(revision).await;
            }
            Ok(None) => {
                site.world.count("plans refused");
                SimRt::sleep(LOOK_EVERY).await;
            }
            Err(ProposeError::NotLeader { .. } | ProposeError::Stopped) => break,
            Err(_) => pending = Changed::All,
        }
    }
    site.picture.stop_noting();
}

/// Commits a plan in the term that made it. `None` if its picture was too old.
async fn commit(site: &Site, term: u64, writes: Vec<Write>) -> Result<Option<u64>, ProposeError> {
    let mut ops: Vec<Op> = writes.into_iter().map(op).collect();
    let mut options = Options { only_in_term: Some(term), ..Options::default() };
    if site.world.plan.mutation == Some(Mutation::UnconditionalPlan) {
        options.only_in_term = None;
        for op in &mut ops {
            op.expect = Expect::Any;
        }
    }
    let answer = site.store.propose(ops, options).await?;
    let done = |outcome: &Outcome| matches!(outcome, Outcome::Done { .. } | Outcome::Unchanged { .. });
    Ok(answer.outcomes.iter().all(done).then_some(answer.revision))
}

/// Never earlier than what was stamped before.
pub(crate) fn stamp(site: &Site) -> Timestamp {
    let last = Timestamp::from_millisecond(site.store.state().stamp_ms() as i64).unwrap_or_default();
    site.clock.wall().max(last)
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

/// What a leader remembers of one member between two looks.
#[derive(Clone, Copy)]
struct Seen {
    up: bool,
    matched: u64,
    since: Instant,
    progressed_at: Instant,
}

/// Chooses the voters whenever this node leads. All nodes of the plan are members from the beginning.
pub(crate) async fn choose_voters(site: Site) {
    let mut seen: BTreeMap<VoterId, Seen> = BTreeMap::new();
    let mut last_voluntary = None;
    loop {
        SimRt::sleep(VOTERS_EVERY).await;
        if !site.store.metrics().leads() {
            seen.clear();
            last_voluntary = None;
            continue;
        }
        let change = look(&site, &mut seen, last_voluntary);
        let Some(change) = change else { continue };
        let metrics = site.store.metrics();
        let done = match &change {
            voters::Change::AddLearner(id) => site.store.add_learner(*id).await,
            voters::Change::RemoveLearner(id) => {
                site.store.change_members(MemberChange::RemoveLearner(*id), metrics.membership).await
            }
            voters::Change::Voters { .. } if metrics.joint => {
                site.store.change_members(MemberChange::FinishJoint, metrics.membership).await
            }
            voters::Change::Voters { voters, .. } => {
                let voters = MemberChange::Voters(voters.clone());
                site.store.change_members(voters, metrics.membership).await
            }
        };
        site.world.count(if done.is_ok() { "voters changed" } else { "change of voters failed" });
        if let (Ok(()), voters::Change::Voters { voluntary: true, .. }) = (&done, &change) {
            last_voluntary = Some(site.clock.boot());
        }
    }
}

fn look(
    site: &Site,
    seen: &mut BTreeMap<VoterId, Seen>,
    last_voluntary: Option<Instant>,
) -> Option<voters::Change<VoterId>> {
    let metrics = site.store.metrics();
    let now = site.clock.boot();
    let gossiped = site.members.lock().unwrap().clone();
    let mut members = BTreeMap::new();
    for number in 0..site.world.plan.nodes {
        let id = voter_id(number);
        let is_leader = id == metrics.voter;
        let known = metrics.matched.get(&id).copied().unwrap_or(0);
        let matched = if is_leader { metrics.last_log } else { known };
        let up = is_leader || gossiped.get(&node_id(number)).is_some_and(|member| member.state.is_active());
        let was = *seen.entry(id).or_insert(Seen { up, matched, since: now, progressed_at: now });
        let since = if was.up == up { was.since } else { now };
        let moves = matched > was.matched || (up && matched + LAG_MAX >= metrics.last_log);
        let progressed_at = if moves { now } else { was.progressed_at };
        seen.insert(id, Seen { up, matched, since, progressed_at });
        let member = voters::Member {
            up,
            since,
            progressed_at,
            caught_up: matched + LAG_MAX >= metrics.last_log && matched > 0,
            fresh: true,
            removals: 0,
            leaving: false,
            domain: String::new(),
        };
        members.insert(id, member);
    }
    let membership = Membership { voters: metrics.voters, learners: metrics.learners, joint: metrics.joint };
    voters::plan(now, metrics.voter, &members, &membership, 250, last_voluntary)
}
