//! Who keeps which edition of the cluster's authorities: the shell of [`authority`]. Certificates are words here; what
//! lies on a disk is real, and goes from one to the other only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::Select2;
use skein_control::node::authority::{
    self, Act, Edition, Fingerprint, HOLDERS, Holder, Kept, Made, PREFIX, Sight, Span, TRUST, Trust, Wish,
};
use skein_net::identity::NodeId;
use skein_net::tls::Standing;
use skein_raft_store::sim::SimRt;
use skein_raft_store::{Change, Expect, Op, Options, Outcome, State, WatchError};

use crate::plan::Aim;
use crate::world::{Site, World, number_of};

/// So short that each run sees some editions.
const LIFE_MS: u64 = 60_000;
/// Roots live for longer than what they sign for nodes.
const ROOTS_LIFE_MS: u64 = 4 * LIFE_MS;
/// Time alone changes little here.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// After what could not be done.
const RETRY_AFTER: Duration = Duration::from_secs(2);
const READ_MAX: Duration = Duration::from_secs(5);
/// More than one change asks of one node; what is left is done at the next look.
const ROUNDS_MAX: usize = 8;
/// A link that is hardly there.
const SLOW_FETCH: Duration = Duration::from_secs(4);
/// A file is written and renamed.
const WRITTEN_AFTER: Duration = Duration::from_millis(3);

/// What a node plans by, from one state of the map.
struct Scene {
    leads: bool,
    now_ms: u64,
    voters: BTreeSet<NodeId>,
    joint: bool,
    keepers: BTreeSet<NodeId>,
    members: BTreeSet<NodeId>,
    alive: BTreeSet<NodeId>,
    trust: Option<(u64, Trust)>,
    holders: BTreeMap<NodeId, Holder>,
    revisions: BTreeMap<NodeId, u64>,
    kept: Kept,
}

/// Something could not be done now.
struct Failed;

/// An edition made at a moment, of which the world has made so many before.
pub(crate) fn edition(number: u64, now_ms: u64) -> Edition {
    let span = |life_ms| Span { from_ms: now_ms, until_ms: now_ms + life_ms };
    Edition {
        fingerprint: Fingerprint(format!("edition-{number}")),
        issuing: span(LIFE_MS),
        roots: span(ROOTS_LIFE_MS),
    }
}

/// Who says that it keeps what is in force.
pub(crate) fn keeping(state: &State) -> BTreeSet<NodeId> {
    let Some((_, trust)) = trust_of(state) else { return BTreeSet::new() };
    let holders = holders_of(state).into_iter();
    holders.filter(|(_, (_, holder))| holder.holds.contains(&trust.current)).map(|(node, _)| node).collect()
}

/// Whether this node may let machines in.
pub(crate) fn may_issue(site: &Site) -> bool {
    let trust = trust_of(&site.store.state()).map(|(_, trust)| trust);
    site.world.kept(site.number).may_issue(trust.as_ref())
}

/// Keeps what this node should keep, and as the leader renews what has to be.
pub(crate) async fn keep(site: Site) {
    let (mut changes, mut moves) = (site.store.on_change(), site.picture.moves());
    loop {
        let mut records = match site.store.watch(PREFIX, site.store.state().revision()) {
            Ok(records) => records,
            Err(WatchError::Compacted { .. }) => continue,
            Err(WatchError::Stopped) => return,
        };
        let pause = if work(&site).await.is_ok() { LOOK_EVERY } else { RETRY_AFTER };
        // Who is to keep them hangs on who stays.
        let edition = site.picture.edition();
        let members_change = async {
            while site.picture.edition() == edition {
                moves.next().await;
            }
        };
        let records_change = SimRt::select2(Box::pin(records.next()), Box::pin(members_change));
        let something = SimRt::select2(records_change, Box::pin(changes.changed()));
        if let Ok(Select2::Second(false)) = SimRt::timeout(pause, something).await {
            return;
        }
    }
}

/// Somebody wants all authorities made anew.
pub(crate) async fn rotate(site: Site, overlap_ms: Option<u64>) -> bool {
    let Some((revision, trust)) = trust_of(&site.store.state()) else { return false };
    let wish = Wish { since_ms: site.store.stamp_ms(), overlap_ms };
    let Ok(trust) = trust.with_wish(wish) else { return false };
    propose(&site, vec![trust_op(Some(revision), &trust)]).await.is_ok()
}

async fn work(site: &Site) -> Result<(), Failed> {
    for _ in 0..ROUNDS_MAX {
        if look(site).plan(site).is_empty() {
            return Ok(());
        }
        // What is deleted must be useless by the newest word, not only by what has arrived here.
        site.store.read_index(READ_MAX).await.map_err(|_| Failed)?;
        let scene = look(site);
        let mut done = Ok(());
        for act in scene.plan(site) {
            let what = format!("{act:?}");
            let performed = perform(site, &scene, act).await;
            let came = if performed.is_ok() { "did" } else { "could not" };
            site.world.note(&format!("node {} {came} {what}", site.number));
            done = performed.and(done);
        }
        done?;
    }
    Ok(())
}

fn look(site: &Site) -> Scene {
    let (state, metrics) = (site.store.state(), site.store.metrics());
    let holders = holders_of(&state);
    let members: BTreeSet<NodeId> = site.picture.roster().into_keys().collect();
    let gossiped = site.members.lock().unwrap();
    let is_there =
        |node: &NodeId| *node == site.id || gossiped.get(node).is_some_and(|member| member.state.is_active());
    Scene {
        leads: metrics.leads(),
        now_ms: site.store.stamp_ms(),
        voters: metrics.voters.iter().map(|voter| NodeId(voter.node)).collect(),
        joint: metrics.joint,
        keepers: keepers(site),
        alive: members.iter().copied().filter(is_there).collect(),
        members,
        trust: trust_of(&state),
        revisions: holders.iter().map(|(node, (revision, _))| (*node, *revision)).collect(),
        holders: holders.into_iter().map(|(node, (_, holder))| (node, holder)).collect(),
        kept: site.world.kept(site.number),
    }
}

/// Who is to keep the authorities, as it is known here.
fn keepers(site: &Site) -> BTreeSet<NodeId> {
    let voters = site.store.metrics().voters.iter().map(|voter| NodeId(voter.node)).collect();
    let staying = site.picture.roster().into_values().filter(|record| record.stays());
    authority::keepers(&voters, &staying.map(|record| record.node).collect())
}

impl Scene {
    fn plan(&self, site: &Site) -> Vec<Act<NodeId>> {
        authority::plan(&Sight {
            me: site.id,
            leads: self.leads,
            now_ms: Some(self.now_ms),
            voters: &self.voters,
            joint: self.joint,
            keepers: &self.keepers,
            members: &self.members,
            alive: &self.alive,
            trust: self.trust.as_ref().map(|(_, trust)| trust),
            holders: &self.holders,
            kept: &self.kept,
        })
    }

    fn trust_revision(&self) -> Option<u64> {
        self.trust.as_ref().map(|(revision, _)| *revision)
    }
}

async fn perform(site: &Site, scene: &Scene, act: Act<NodeId>) -> Result<(), Failed> {
    match act {
        Act::Found => {
            let current = scene.kept.current.as_ref().ok_or(Failed)?;
            let trust = Trust::founded(made(current, None), scene.now_ms);
            propose(site, vec![trust_op(scene.trust_revision(), &trust)]).await
        }
        Act::Fetch { edition, from } => {
            let edition = fetch(site, edition, from).await?;
            on_disk(site, |kept| kept.current = Some(edition)).await;
            Ok(())
        }
        Act::FetchNext { edition, from } => {
            let edition = fetch(site, Some(edition), from).await?;
            on_disk(site, |kept| kept.next = Some(edition)).await;
            Ok(())
        }
        Act::Promote => {
            on_disk(site, |kept| kept.current = kept.next.take()).await;
            Ok(())
        }
        Act::Discard => {
            on_disk(site, |kept| kept.next = None).await;
            Ok(())
        }
        Act::Announce(holder) => {
            propose(site, vec![op(holder_key(site.id), Expect::Any, put(serde_json::to_vec(&holder)))]).await
        }
        Act::Withdraw { witness } => {
            let said = scene.revisions.get(&witness).ok_or(Failed)?;
            let ops = vec![
                op(holder_key(witness), Expect::Revision(*said), Change::Check),
                op(TRUST.to_owned(), unchanged(scene.trust_revision()), Change::Check),
                op(holder_key(site.id), Expect::Any, Change::Delete),
            ];
            propose(site, ops).await?;
            on_disk(site, |kept| *kept = Kept::default()).await;
            site.world.count("authorities given up");
            Ok(())
        }
        Act::Make(change) => {
            let (_, trust) = scene.trust.as_ref().ok_or(Failed)?;
            let next = edition(site.world.next_edition(), scene.now_ms);
            let cross = match change {
                authority::Change::Rotation(Wish { overlap_ms: Some(_), .. }) => {
                    Some("vouched for".to_owned())
                }
                authority::Change::Rotation(_) | authority::Change::Renewal => None,
            };
            let trust = trust.with_next(made(&next, cross), change, scene.now_ms);
            // On the disk first: what the map says is made must not be lost with this process.
            on_disk(site, |kept| kept.next = Some(next)).await;
            propose(site, vec![trust_op(scene.trust_revision(), &trust)]).await
        }
        Act::Write { trust, .. } => {
            propose(site, vec![trust_op(scene.trust_revision(), &trust)]).await?;
            let before = scene.trust.as_ref().map(|(_, trust)| trust);
            let is_renewed = before.is_some_and(|before| before.number != trust.number);
            let is_rotated = before.is_some_and(|before| before.clients_number() != trust.clients_number());
            site.world.count(match (is_rotated, is_renewed) {
                (true, _) => "authorities rotated",
                (false, true) => "authorities renewed",
                (false, false) => "authorities tidied",
            });
            Ok(())
        }
        Act::Forget(nodes) => {
            let gone = nodes.into_iter().map(|node| op(holder_key(node), Expect::Any, Change::Delete));
            propose(site, gone.collect()).await
        }
    }
}

/// How long what is fetched is on its way, beside what any call takes.
pub(crate) fn fetch_time(aim: Aim) -> Duration {
    if aim == Aim::KeysOnTheWay { SLOW_FETCH } else { Duration::ZERO }
}

/// Asks one after the other until one gives what is wanted.
async fn fetch(site: &Site, wanted: Option<Fingerprint>, from: Vec<NodeId>) -> Result<Edition, Failed> {
    SimRt::sleep(fetch_time(site.world.plan.aim)).await;
    for peer in from {
        let (asker, wanted) = (site.id, wanted.clone());
        let given = site.world.call(site.number, peer, move |site| {
            Box::pin(async move { given(&site, asker, wanted.as_ref()) })
        });
        if let Some(Some(edition)) = given.await {
            site.world.count("authorities handed over");
            return Ok(edition);
        }
    }
    Err(Failed)
}

/// What a node gives to one that asks: only who is to keep them gets any.
fn given(site: &Site, asker: NodeId, wanted: Option<&Fingerprint>) -> Option<Edition> {
    if !keepers(site).contains(&asker) || site.picture.standing(asker) != Standing::Member {
        return None;
    }
    let kept = site.world.kept(site.number);
    match wanted {
        None => kept.current.filter(|_| may_issue(site)),
        Some(wanted) => {
            kept.current.into_iter().chain(kept.next).find(|edition| edition.fingerprint == *wanted)
        }
    }
}

/// A disk takes its time; the node may be killed before anything is there.
async fn on_disk(site: &Site, change: impl FnOnce(&mut Kept)) {
    SimRt::sleep(WRITTEN_AFTER).await;
    site.world.change_kept(site.number, change);
}

async fn propose(site: &Site, ops: Vec<Op>) -> Result<(), Failed> {
    let answer = site.store.propose(ops, Options::default()).await.map_err(|_| Failed)?;
    // What is planned next is planned by what was just written.
    site.store.wait_revision(answer.revision, READ_MAX).await;
    let done = |outcome: &Outcome| matches!(outcome, Outcome::Done { .. } | Outcome::Unchanged { .. });
    if answer.outcomes.iter().all(done) { Ok(()) } else { Err(Failed) }
}

fn holders_of(state: &State) -> BTreeMap<NodeId, (u64, Holder)> {
    let holders = state.range(HOLDERS, None).filter_map(|(key, object)| {
        let node = key.strip_prefix(HOLDERS)?.parse().ok()?;
        Some((node, (object.mod_rev, serde_json::from_slice(&object.value).ok()?)))
    });
    holders.collect()
}

fn trust_of(state: &State) -> Option<(u64, Trust)> {
    let object = state.get(TRUST)?;
    Some((object.mod_rev, serde_json::from_slice(&object.value).ok()?))
}

fn made(edition: &Edition, cross: Option<String>) -> Made {
    let root = |of: &str| format!("{of} of {}", edition.fingerprint);
    Made {
        fingerprint: edition.fingerprint.clone(),
        members: root("members"),
        clients: root("clients"),
        cross,
    }
}

fn trust_op(revision: Option<u64>, trust: &Trust) -> Op {
    op(TRUST.to_owned(), unchanged(revision), put(serde_json::to_vec(trust)))
}

fn unchanged(revision: Option<u64>) -> Expect {
    revision.map_or(Expect::Absent, Expect::Revision)
}

fn holder_key(node: NodeId) -> String {
    format!("{HOLDERS}{node}")
}

fn put(json: serde_json::Result<Vec<u8>>) -> Change {
    Change::Put(json.expect("plain data has no key that is not a text").into())
}

fn op(key: String, expect: Expect, change: Change) -> Op {
    Op { key: key.into(), expect, change }
}

/// I23: what is in force lies on the disk of a member, and where nothing is wrong on those of all voters.
pub(crate) fn check(world: &World, all_voters: bool) -> Option<String> {
    let history = world.history.lock().unwrap();
    let trust = history.trust.clone()?;
    drop(history);
    let holders = world.holding(&trust.current);
    if holders.is_empty() {
        return Some(format!("I23: nobody holds {}, which is in force", trust.current));
    }
    let voters: Vec<NodeId> = world.truth.lock().unwrap().voters().map(|voter| NodeId(voter.node)).collect();
    let is_there = |voter: &NodeId| !world.is_gone(number_of(*voter));
    let without = voters.into_iter().find(|voter| is_there(voter) && !holders.contains(voter));
    without.filter(|_| all_voters).map(|node| format!("I23: {node} votes without {}", trust.current))
}
