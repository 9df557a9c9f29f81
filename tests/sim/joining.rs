//! How machines come: the shell of [`admission`]. Whoever has a token that is good is let in; tokens themselves are
//! not here.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::Instant as _;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skein_control::node::admission::{self, Newcomer, Place, Refusal, is_haunted};
use skein_net::address_book::{Page, Pages};
use skein_net::identity::NodeId;
use skein_raft_store::sim::SimRt;
use skein_raft_store::{Change, Expect, Op, Options, Outcome};

use crate::authorities;
use crate::members::{self, Record};
use crate::plan::Mutation;
use crate::planner;
use crate::world::{Now, Site, World, node_id, node_name};

const READ_MAX: Duration = Duration::from_secs(5);
/// How long the pods of a node of the same name that has gone are waited for.
const HAUNTED_MAX: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(200);
const TRIES: usize = 8;
/// Who asks to be let in is in by then, if all are there and nothing is wrong.
const JOINED_WITHIN: Duration = Duration::from_secs(8);

/// What a machine asks a member for.
#[derive(Clone, Copy)]
struct Claim {
    number: usize,
    node: NodeId,
    /// Its machine was a member before, with another key.
    is_another: bool,
    /// Its token gives it the place of the lost member of its name.
    replaces: bool,
}

/// Why a machine was not let in.
enum Denied {
    /// Nobody decided.
    Unavailable,
    Refused(Refusal),
}

/// A machine that has left, or was thrown out, joins again after a while: with a key of its own.
pub(crate) async fn come_back(world: Arc<World>, number: usize) {
    let mut chance = StdRng::seed_from_u64(world.plan.seed ^ world.elapsed());
    let until = Now::now() + Duration::from_millis(chance.random_range(100..12_000));
    while Now::now() < until && !world.is_healed() {
        SimRt::sleep(AGAIN).await;
    }
    join(world, number, false).await;
}

/// A machine with an empty directory asks one member after another until it is let in.
pub(crate) async fn join(world: Arc<World>, number: usize, replaces: bool) {
    let node = world.next_id(number);
    let claim = Claim { number, node, is_another: node != node_id(number, 1), replaces };
    let asked = Now::now();
    loop {
        let members: Vec<usize> = world.members().into_iter().filter(|member| *member != number).collect();
        for member in members {
            if world.is_gone(number) {
                return;
            }
            if !world.is_powered(number) {
                break;
            }
            let told = world.call(number, world.id(member), move |site| Box::pin(admit(site, claim)));
            match told.await {
                Some(Ok(told)) => {
                    world.note(&format!("node {number} joins as {}", claim.node));
                    world.count(if replaces { "places taken" } else { "joins" });
                    return world.settle_in(number, claim.node, told);
                }
                Some(Err(Denied::Refused(refusal))) => {
                    world.note(&format!("node {number} is not let in: {refusal}"));
                    world.count("joins refused");
                }
                Some(Err(Denied::Unavailable)) | None => {}
            }
        }
        let steady = world.truth.lock().unwrap().steady_and_well().min(asked.elapsed());
        if steady > JOINED_WITHIN {
            world.wrong(format!("I26: node {number} asks to be let in while all is well for {steady:?}"));
            return;
        }
        SimRt::sleep(AGAIN).await;
    }
}

/// As the member that is asked.
async fn admit(site: Site, claim: Claim) -> Result<Pages, Denied> {
    let leader = site.store.metrics().leader.ok_or(Denied::Unavailable)?;
    if leader == site.store.voter() {
        return decide(&site, claim).await;
    }
    let decided = site.world.call(site.number, NodeId(leader.node), move |site| {
        Box::pin(async move { decide(&site, claim).await })
    });
    decided.await.ok_or(Denied::Unavailable)?
}

/// Judges a claim as the leader.
async fn decide(site: &Site, claim: Claim) -> Result<Pages, Denied> {
    let ignored = site.world.plan.mutation == Some(Mutation::ClaimsNotDecided) && claim.is_another;
    if ignored || !site.store.metrics().leads() || !authorities::may_issue(site) {
        return Err(Denied::Unavailable);
    }
    for _ in 0..TRIES {
        // What a former claim changed must be seen before this one is judged.
        site.catch_up(READ_MAX).await.ok_or(Denied::Unavailable)?;
        let (ops, record) = plan(site, claim)?;
        let answer = site.store.propose(ops, Options::default()).await.map_err(|_| Denied::Unavailable)?;
        site.picture.reach(answer.revision).await;
        if !answer
            .outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Done { .. } | Outcome::Unchanged { .. }))
        {
            continue;
        }
        let not_haunted = async {
            let mut moves = site.picture.moves();
            while is_haunted(&site.picture.view(), &record.name) {
                moves.next().await;
            }
        };
        if SimRt::timeout(HAUNTED_MAX, not_haunted).await.is_err() {
            return Err(Denied::Unavailable);
        }
        let members = site.picture.roster().into_values().filter(|member| member.node != claim.node);
        let pages = members.map(|member| {
            let seen = site.book.addresses(member.node);
            let addresses = if seen.is_empty() { member.addresses } else { seen };
            (member.node, Page { name: member.name, addresses })
        });
        return Ok(Pages(pages.collect()));
    }
    Err(Denied::Unavailable)
}

/// The command that writes the record.
fn plan(site: &Site, claim: Claim) -> Result<(Vec<Op>, Record), Denied> {
    let (name, id) = (node_name(claim.number), claim.node.to_string());
    let newcomer = Newcomer { node: &id, name: &name, replaces: claim.replaces.then_some(&*name) };
    let place = admission::place(&site.picture.view(), &newcomer).map_err(Denied::Refused)?;
    let state = site.store.state();
    let before = members::read(&state, claim.node);
    let mut record = members::record(claim.node, site.world.lan.addresses(claim.number).0);
    record.joined_ms = site.store.stamp_ms();
    record.fresh = before.is_none();
    let mut ops = Vec::new();
    match place {
        Place::Of(former) => {
            ops.extend(former.writes.into_iter().map(planner::op));
            record.labels = former.labels;
        }
        Place::Again | Place::New => {}
    }
    let expect = before.map_or(Expect::Absent, |(revision, _)| Expect::Revision(revision));
    let change = Change::Put(record.to_bytes().into());
    ops.push(Op { key: members::key(claim.node).into(), expect, change });
    Ok((ops, record))
}
