//! How nodes go: the shell of [`departure`], and the end of a node that is no member any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender};
use openraft::AsyncRuntime;
use openraft::async_runtime::{Instant as _, Select2};
use skein_api::write::Write;
use skein_control::node::departure::{self, Cause, Electorate, Quorum, Refusal};
use skein_net::identity::NodeId;
use skein_net::tls::Standing;
use skein_raft_store::sim::SimRt;
use skein_raft_store::{Metrics, Options, Outcome, VoterId};

use crate::plan::Mutation;
use crate::world::{Asked, Now, Site, World, node_name, number_of};
use crate::{authorities, gossip, joining, planner};

/// How long a leader is waited for.
const LEADER_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const READ_MAX: Duration = Duration::from_secs(5);
/// Somebody else may write the same record.
const TRIES: usize = 8;

/// What hangs on each voter. `None` until a leader has looked.
pub(crate) type Needs = Option<Arc<Quorum>>;

/// What the leader knows of the log; nothing while another one leads, or before it has looked at the voters.
pub(crate) fn electorate(site: &Site, metrics: &Metrics) -> Electorate {
    let needs = site.needs.lock().unwrap().clone();
    let Some(needs) = needs.filter(|_| metrics.leads()) else { return Electorate::default() };
    let id = |voter: &VoterId| NodeId(voter.node).to_string();
    let holders = match site.world.plan.mutation {
        Some(Mutation::HoldersNotAsked) => metrics.voters.iter().map(|voter| NodeId(voter.node)).collect(),
        _ => authorities::keeping(&site.store.state()),
    };
    let in_log = site.store.voter_sets().into_iter().flatten().chain(metrics.learners.iter().copied());
    Electorate {
        leader: id(&metrics.voter),
        voters: metrics.voters.iter().map(id).collect(),
        in_log: in_log.map(|voter| id(&voter)).chain(metrics.voters.iter().map(id)).collect(),
        holders: holders.iter().map(NodeId::to_string).collect(),
        quorum: (*needs).clone(),
    }
}

/// Somebody at the node `asker` wants a member to go, and thinks better of it after a while perhaps.
pub(crate) async fn let_go(
    world: Arc<World>,
    asker: usize,
    number: usize,
    cause: Cause,
    regrets_after: Option<Duration>,
) {
    let limit = LEADER_MAX + Duration::from_secs(6);
    let asked = world.ask_for(asker, limit, move |site| Box::pin(ask(site, node_name(number), cause)));
    match asked.await {
        Asked::Answer(Some(Ok(()))) => world.count(match cause {
            Cause::Leave => "leaves",
            Cause::Removal => "removals",
            Cause::RemovalNow | Cause::Stolen => "removals at once",
        }),
        Asked::Answer(Some(Err(refusal))) => {
            world.note(&format!("node {number} does not go: {refusal}"));
            return world.count("departures refused");
        }
        Asked::Answer(None) | Asked::NotRunning | Asked::Lost => return,
    }
    let Some(after) = regrets_after else { return };
    SimRt::sleep(after).await;
    let cancelled = world.ask_for(asker, limit, move |site| Box::pin(cancel(site, node_name(number))));
    if let Asked::Answer(true) = cancelled.await {
        world.count("departures taken back");
    }
}

/// Has the leader decide whether a member may go; `None` if nobody did.
async fn ask(site: Site, name: String, cause: Cause) -> Option<Result<(), Refusal>> {
    let until = Now::now() + LEADER_MAX;
    loop {
        let answer = match site.store.metrics().leader.map(|leader| NodeId(leader.node)) {
            Some(leader) if leader == site.id => decide(&site, &name, cause).await,
            Some(leader) => {
                let name = name.clone();
                let decided = site.world.call(site.number, leader, move |site| {
                    Box::pin(async move { decide(&site, &name, cause).await })
                });
                decided.await.flatten()
            }
            None => None,
        };
        if answer.is_some() || Now::now() > until {
            return answer;
        }
        SimRt::sleep(LOOK_AGAIN).await;
    }
}

/// Decides as the leader.
async fn decide(site: &Site, name: &str, cause: Cause) -> Option<Result<(), Refusal>> {
    for _ in 0..TRIES {
        let metrics = site.store.metrics();
        site.catch_up(READ_MAX).await?;
        let electorate = electorate(site, &metrics);
        if electorate.leader.is_empty() {
            return None;
        }
        let (view, verdicts) = (site.picture.view(), site.verdicts.lock().unwrap().clone());
        let asked = departure::ask(&view, &electorate, &verdicts, site.store.stamp_ms(), name, cause);
        let writes = match asked {
            Ok(writes) => writes,
            Err(refusal) => return Some(Err(refusal)),
        };
        if writes.is_empty() || write(site, writes, Some(metrics.term)).await? {
            return Some(Ok(()));
        }
    }
    None
}

/// Whether a wish was taken back.
async fn cancel(site: Site, name: String) -> bool {
    for _ in 0..TRIES {
        if site.catch_up(READ_MAX).await.is_none() {
            return false;
        }
        let Ok(writes) = departure::cancel(&site.picture.view(), &name) else { return false };
        match write(&site, writes, None).await {
            Some(true) => return true,
            Some(false) => {}
            None => return false,
        }
    }
    false
}

/// Whether all of it was done, and is seen here; `None`: nobody knows.
async fn write(site: &Site, writes: Vec<Write>, only_in_term: Option<u64>) -> Option<bool> {
    let options = Options { only_in_term, ..Options::default() };
    let answer = site.store.propose(writes.into_iter().map(planner::op).collect(), options).await.ok()?;
    site.picture.reach(answer.revision).await;
    let done = |outcome: &Outcome| matches!(outcome, Outcome::Done { .. } | Outcome::Unchanged { .. });
    Some(answer.outcomes.iter().all(done))
}

/// Parts with nodes that were removed, as soon as the map says so; and ends this one when it is no member any more: by
/// its own replica, or by the word of one that refuses it.
pub(crate) async fn follow(
    site: Site,
    gossip: UnboundedSender<gossip::In>,
    mut dismissed: UnboundedReceiver<()>,
) {
    let mut moves = site.picture.moves();
    let (mut parted, mut looked_at) = (BTreeSet::new(), None);
    loop {
        let edition = site.picture.edition();
        if looked_at != Some(edition) {
            looked_at = Some(edition);
            for (node, record) in site.picture.records() {
                if !record.removed || !parted.insert(node) {
                    continue;
                }
                // It ends with this process.
                let _ = gossip.unbounded_send(gossip::In::Forget(node));
                if site.store.metrics().leads() && site.store.end_session(node.0).await.is_err() {
                    site.world.count("sessions kept longer");
                }
            }
        }
        let minds = site.world.plan.mutation != Some(Mutation::RemovedAdmitted);
        if minds && site.picture.standing(site.id) == Standing::Removed {
            break;
        }
        if let Select2::First(Some(())) = SimRt::select2(dismissed.next(), moves.next()).await {
            site.world.count("nodes dismissed");
            break;
        }
    }
    // Who ends a process is not a part of it.
    let _ = site.world.outs.unbounded_send((site.number, site.id));
}

/// A node that was off until all others that it knew had gone is told nothing by anybody: somebody looks at it once all
/// is mended, and starts its machine anew.
pub(crate) async fn look_after_the_forgotten(world: Arc<World>) {
    loop {
        SimRt::sleep(Duration::from_secs(1)).await;
        for number in 0..world.plan.nodes {
            let Some(site) = world.site(number).filter(|_| world.is_healed() && !world.is_member(number))
            else {
                continue;
            };
            let is_there = |node: &NodeId| *node != site.id && world.id(number_of(*node)) == *node;
            if !site.picture.roster().keys().any(is_there) {
                world.count("nodes forgotten");
                let _ = world.outs.unbounded_send((number, site.id));
            }
        }
    }
}

/// Ends nodes that are out; their machines come back as new ones.
pub(crate) async fn see_out(world: Arc<World>, mut outs: UnboundedReceiver<(usize, NodeId)>) {
    while let Some((number, id)) = outs.next().await {
        if world.out(number, id) && !world.is_gone(number) {
            drop(SimRt::spawn(joining::come_back(world.clone(), number)));
        }
    }
}
