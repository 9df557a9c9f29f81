//! What really became of each node, looked at from outside: I8, I9, I10, and F1: a dead machine's pods run elsewhere
//! within a bound, which depends on how it died.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use skein_net::gossip::State;
use skein_net::identity::NodeId;
use skein_raft_store::sim::{SimRt, Weather};
use skein_raft_store::{LogId, VoterId};

use crate::authorities;
use crate::world::{World, node_name, number_of_voter};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longer than the longest silence that any row of the judge waits for.
const REMEMBERED: Duration = Duration::from_secs(60);
/// SWIM with our constants; see RELIABILITY I10.
const DOWN_WITHIN: Duration = Duration::from_secs(6);
/// A verdict may have waited for a quorum or a disk, though not for ever: who has been well for so long is not lost.
const BACK_MAX: Duration = Duration::from_secs(10);
/// After a verdict is due, the pods are bound elsewhere; and what is made then runs after that.
const MOVED_WITHIN: Duration = Duration::from_secs(2);
const RUNS_WITHIN: Duration = Duration::from_secs(3);
/// A change of who votes that was begun is finished by then, whatever else was decided meanwhile.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// Whoever was removed has no part in anything by then, wherever that is known.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(5);
/// A departure is over by then, if all are there and nothing is wrong: its pods end in a second.
const DEPARTED_WITHIN: Duration = Duration::from_secs(15);
/// A voter holds the authorities by then, where nothing is wrong.
const FETCHED_WITHIN: Duration = Duration::from_secs(5);
/// After this long without any fault around, nothing of it lingers.
const CALM: Duration = Duration::from_secs(8);

/// How a node was at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Fine,
    Paused,
    /// No daemon, or one that has not started yet.
    NoDaemon,
    /// Its kernel is out of reach for most.
    Off,
    /// It is no member.
    Outside,
}

#[derive(Default)]
pub(crate) struct Truth {
    looks: Vec<VecDeque<Health>>,
    /// For how long each node has not been paused.
    awake: BTreeMap<usize, Duration>,
    /// At which looks somebody who was well led: nobody else takes a verdict back.
    led: VecDeque<bool>,
    /// Looks since the network was last disturbed.
    calm: u32,
    leader_of: BTreeMap<u64, (usize, u64)>,
    /// The voters by the entry of each committed membership that was seen.
    voters: BTreeMap<LogId, BTreeSet<VoterId>>,
    /// What all that have applied an entry hold beside objects, and which entry each node was looked at.
    digests: BTreeMap<LogId, (usize, u32)>,
    digested: BTreeMap<usize, LogId>,
    /// Looks in which nothing changed, and nothing was wrong that does not show.
    steady: (Scene, u32),
    failovers: Failovers,
    /// Deaths that everybody has noticed and that are not to be counted again.
    noticed: BTreeMap<usize, bool>,
}

/// Looks at all nodes for as long as the run lasts.
pub(crate) async fn observe(world: Arc<World>) {
    loop {
        look(&world);
        SimRt::sleep(LOOK_EVERY).await;
    }
}

fn look(world: &World) {
    let healths: Vec<Health> = (0..world.plan.nodes).map(|number| world.health(number)).collect();
    for number in 0..world.plan.nodes {
        let mut truth = world.truth.lock().unwrap();
        let awake = truth.awake.entry(number).or_default();
        *awake = if world.is_paused(number) { Duration::ZERO } else { *awake + LOOK_EVERY };
    }
    watch_leaders(world);
    watch_voters(world);
    check_sessions(world);
    check_failovers(world, &healths);
    check_departures(world, &healths);
    let patience = FETCHED_WITHIN + authorities::fetch_time(world.plan.aim) * 3;
    let is_calm = world.truth.lock().unwrap().steady_and_well() > patience;
    if let Some(wrong) = authorities::check(world, is_calm) {
        world.wrong_once(wrong);
    }
    let mut truth = world.truth.lock().unwrap();
    let truth = &mut *truth;
    truth.looks.resize_with(healths.len(), VecDeque::new);
    for (looks, health) in truth.looks.iter_mut().zip(&healths) {
        looks.push_front(*health);
        looks.truncate((REMEMBERED.as_millis() / LOOK_EVERY.as_millis()) as usize);
    }
    truth.led.push_front(world.office().is_some_and(|(_, leader)| healths[leader] == Health::Fine));
    truth.led.truncate((REMEMBERED.as_millis() / LOOK_EVERY.as_millis()) as usize);
    let undisturbed = world.air.weather() == Weather::LAN && world.all_connected();
    truth.calm = if undisturbed { truth.calm + 1 } else { 0 };
    check_deaths(world, truth);
}

/// I10: with nothing else wrong, a dead node is Down for all others within 6 s.
fn check_deaths(world: &World, truth: &mut Truth) {
    let looks_of = |time: Duration| (time.as_millis() / LOOK_EVERY.as_millis()) as usize;
    if (truth.calm as usize) < looks_of(CALM) {
        return;
    }
    for dead in 0..truth.looks.len() {
        let state = |node: usize| truth.looks[node].iter();
        let died = state(dead).take_while(|health| matches!(health, Health::NoDaemon | Health::Off)).count();
        if died <= looks_of(DOWN_WITHIN) {
            truth.noticed.remove(&dead);
            continue;
        }
        let is_there = |node: &usize| state(*node).next() != Some(&Health::Outside);
        let others = (0..truth.looks.len()).filter(|other| *other != dead).filter(is_there);
        let all_fine = others.clone().all(|other| {
            let looks = || state(other).take(looks_of(CALM));
            looks().count() == looks_of(CALM) && looks().all(|health| *health == Health::Fine)
        });
        if !all_fine {
            continue;
        }
        if truth.noticed.insert(dead, true).is_none() {
            world.count("deaths noticed");
        }
        for other in others {
            let Some(site) = world.site(other) else { continue };
            let seen = site.members.lock().unwrap().get(&world.id(dead)).map(|member| member.state);
            if seen.is_some_and(State::is_active) {
                let text = format!("I10: node {dead} is dead for 6 s, node {other} believes {seen:?}");
                world.wrong(text);
            }
        }
    }
}

/// What has not changed for a while, so that it is known what must have come of it.
#[derive(Clone, Default, PartialEq, Eq)]
struct Scene {
    office: Option<(u64, usize)>,
    healths: Vec<Health>,
    gateway: bool,
}

#[derive(Default)]
struct Failovers {
    scene: Scene,
    /// Looks at this scene.
    looks: u32,
    /// Pods that were there when it began, and the nodes they were bound to.
    before: BTreeMap<String, Option<String>>,
    /// Pods that came since, and at which look each was first seen.
    born: BTreeMap<String, u32>,
    /// Dead machines whose bound has passed.
    counted: BTreeSet<usize>,
}

/// F1, where nothing else is wrong: counted from office, or from the death if that was later.
fn check_failovers(world: &World, healths: &[Health]) {
    let scene = Scene { office: world.office(), healths: healths.to_vec(), gateway: world.air.has_gateway() };
    let fine = |number: &usize| healths[*number] == Health::Fine;
    let inside: Vec<usize> =
        (0..healths.len()).filter(|number| healths[*number] != Health::Outside).collect();
    let living: Vec<usize> = inside.iter().copied().filter(fine).collect();
    let connected = living.iter().all(|a| living.iter().all(|b| world.air.passes_both_ways(*a, *b)));
    let leads = scene.office.is_some_and(|(_, leader)| fine(&leader));
    let undisturbed = world.air.weather() == Weather::LAN && connected && world.is_untroubled();
    let mut truth = world.truth.lock().unwrap();
    let failovers = &mut truth.failovers;
    if living.len() == inside.len() {
        *failovers = Failovers { scene, ..Failovers::default() };
        return;
    }
    let pods: BTreeMap<String, Option<String>> = {
        let history = world.history.lock().unwrap();
        let living = history.model.living();
        living.map(|(uid, node)| (uid.to_owned(), node.map(str::to_owned))).collect()
    };
    if failovers.scene != scene || !undisturbed || !leads {
        *failovers = Failovers { scene, before: pods, ..Failovers::default() };
        return;
    }
    failovers.looks += 1;
    let mut wrong = Vec::new();
    for dead in inside.iter().copied().filter(|number| !fine(number)) {
        let (kind, row) = row_of(world, healths, dead);
        if LOOK_EVERY * failovers.looks < row + row / 16 + MOVED_WITHIN {
            continue;
        }
        let name = node_name(dead);
        let is_there = |node: &Option<String>| node.as_deref() == Some(&*name);
        if failovers.counted.insert(dead) && failovers.before.values().any(is_there) {
            world.count(kind);
        }
        if let Some((uid, _)) = pods.iter().find(|(_, node)| is_there(node)) {
            let lasts = LOOK_EVERY * failovers.looks;
            wrong.push(format!("F1: {uid} is still bound to {name} ({kind}), which is dead for {lasts:?}"));
        }
    }
    // What takes their places, and whatever else was made meanwhile, runs, unless it went to a machine that is not
    // called lost yet.
    let number_of = |node: &str| (0..healths.len()).find(|number| node_name(*number) == node);
    failovers.born.retain(|uid, _| pods.contains_key(uid));
    for (uid, node) in pods.iter().filter(|(uid, _)| !failovers.before.contains_key(*uid)) {
        let born = *failovers.born.entry(uid.clone()).or_insert(failovers.looks);
        let age = LOOK_EVERY * (failovers.looks - born);
        let is_well = match node.as_deref().and_then(number_of) {
            None => false,
            // One that is no member any more is seen here before its pods are.
            Some(number) => !fine(&number) || world.machine(number, |machine| machine.runs(uid)),
        };
        if age >= RUNS_WITHIN && !is_well {
            wrong.push(format!("F1: {uid} is there for {age:?}, and does not run on {node:?}"));
        }
    }
    if !wrong.is_empty() {
        *failovers = Failovers { scene, before: pods, ..Failovers::default() };
    }
    drop(truth);
    wrong.into_iter().for_each(|wrong| world.wrong(wrong));
}

/// How a machine is dead, and after how long of that it is called lost.
fn row_of(world: &World, healths: &[Health], dead: usize) -> (&'static str, Duration) {
    let inside = healths.iter().filter(|health| **health != Health::Outside).count();
    let silent = healths.iter().filter(|health| !matches!(health, Health::Fine | Health::Outside)).count();
    let patience = Duration::from_secs(30);
    if silent * 2 > inside {
        return ("failovers of most", patience);
    }
    let seen = world.lan.seen(dead);
    let has_route = seen.is_some_and(|api| world.lan.has_route(api));
    // The address that the others remember may be another one's by now, and answer for it.
    let is_taken = seen.and_then(|api| world.lan.holder(api)).is_some_and(|holder| holder != dead);
    match healths[dead] {
        Health::Fine | Health::Outside => unreachable!("it is a dead member"),
        Health::Paused => ("failovers of paused daemons", patience),
        Health::NoDaemon if world.was_stopped(dead) => ("failovers of stopped daemons", patience),
        Health::NoDaemon => ("failovers of dead daemons", Duration::from_secs(5)),
        Health::Off if inside == 2 && !(has_route && world.air.has_gateway()) => {
            ("failovers of two without a gateway", patience)
        }
        Health::Off if is_taken => ("failovers of machines whose address is taken", patience * 2),
        Health::Off if !has_route => ("failovers of machines that nobody can try", Duration::from_secs(10)),
        Health::Off if inside == 2 => ("failovers of two", Duration::from_millis(2750)),
        Health::Off => ("failovers of machines", Duration::from_millis(2750)),
    }
}

/// I8: two never lead in one term, and nobody leads after a restart in the term of before.
fn watch_leaders(world: &World) {
    for number in 0..world.plan.nodes {
        let Some(site) = world.site(number) else { continue };
        let metrics = site.store.metrics();
        if !metrics.leads() {
            continue;
        }
        let leader = (number, site.generation);
        // Who is asleep leads nobody, whatever it remembers.
        let is_awake = world.truth.lock().unwrap().awake.get(&number) > Some(&FORGOTTEN_WITHIN);
        if is_awake && world.history.lock().unwrap().was_removed_before(site.id, FORGOTTEN_WITHIN) {
            world.wrong(format!("I24: node {number} leads, and was removed"));
        }
        let first = *world.truth.lock().unwrap().leader_of.entry(metrics.term).or_insert(leader);
        if first != leader {
            world.wrong(format!("I8: {first:?} and {leader:?} lead in term {}", metrics.term));
        }
    }
}

/// I2, exactly once included: whoever has applied the same entries knows the same answers.
fn check_sessions(world: &World) {
    for number in 0..world.plan.nodes {
        let Some(state) = world.site(number).map(|site| site.store.state()) else { continue };
        let Some(applied) = state.applied() else { continue };
        let mut truth = world.truth.lock().unwrap();
        if truth.digested.insert(number, applied) == Some(applied) {
            continue;
        }
        let digest = state.head_digest();
        let first = *truth.digests.entry(applied).or_insert((number, digest));
        drop(truth);
        if first.1 != digest {
            world.wrong(format!(
                "I2: up to {applied} node {number} knows other answers than node {}",
                first.0
            ));
        }
    }
}

/// Voters become fewer only where a member leaves, or where five have lost two: never by accident. Nobody who was
/// removed is made one.
fn watch_voters(world: &World) {
    for number in 0..world.plan.nodes {
        let Some(site) = world.site(number) else { continue };
        let metrics = site.store.metrics();
        let Some(entry) = metrics.membership.filter(|_| metrics.membership_committed && !metrics.joint)
        else {
            continue;
        };
        let history = world.history.lock().unwrap();
        let mut truth = world.truth.lock().unwrap();
        let is_newest = truth.voters.last_key_value().is_none_or(|(newest, _)| *newest < entry);
        if !is_newest {
            continue;
        }
        let before = truth.voters().copied().collect::<BTreeSet<_>>();
        let after = metrics.voters;
        let has_left = |voter: &VoterId| history.was_going(NodeId(voter.node), CHANGE_MAX);
        let somebody_left = before.difference(&after).any(has_left);
        let is_removed = |voter: &&VoterId| history.was_removed_before(NodeId(voter.node), FORGOTTEN_WITHIN);
        let ghost = after.difference(&before).find(is_removed).copied();
        truth.voters.insert(entry, after.clone());
        drop((history, truth));
        if after.len() < before.len() && !somebody_left && (before.len(), after.len()) != (5, 3) {
            world.wrong(format!("I22: {} voters became {}, and nobody left", before.len(), after.len()));
        }
        if let Some(ghost) = ghost {
            world.wrong(format!("I24: {ghost} votes, and its node was removed"));
        }
    }
}

/// I25: a departure that was asked for ends, and what ended a membership ends its vote, where nothing is wrong.
fn check_departures(world: &World, healths: &[Health]) {
    let scene = Scene { office: world.office(), healths: healths.to_vec(), gateway: world.air.has_gateway() };
    let undisturbed = world.air.weather() == Weather::LAN && world.all_connected() && world.is_untroubled();
    let mut truth = world.truth.lock().unwrap();
    let is_steady = undisturbed && scene.office.is_some() && truth.steady.0 == scene;
    truth.steady = (scene, if is_steady { truth.steady.1 + 1 } else { 0 });
    let steady = truth.steady_and_well();
    if steady < DEPARTED_WITHIN {
        return;
    }
    let voters: BTreeSet<VoterId> = truth.voters().copied().collect();
    let history = world.history.lock().unwrap();
    let going = history.records.values().filter(|record| record.departure.is_some()).count() as u32;
    let is_ghost =
        |voter: &&VoterId| history.records.get(&NodeId(voter.node)).is_some_and(|record| record.removed);
    let ghost = voters.iter().find(is_ghost).map(number_of_voter);
    drop(history);
    if going > 0 && steady > DEPARTED_WITHIN * going {
        truth.steady.1 = 0;
        drop(truth);
        world.wrong(format!("I25: {going} members are on their way out, and all is well for {steady:?}"));
    } else if let Some(ghost) = ghost {
        truth.steady.1 = 0;
        drop(truth);
        world.wrong(format!("I25: the vote of node {ghost}, which was removed, counts for {steady:?}"));
    }
}

impl Truth {
    /// For how long nothing has changed while every member was well.
    pub(crate) fn steady_and_well(&self) -> Duration {
        let (scene, looks) = &self.steady;
        let is_well = |health: &Health| matches!(health, Health::Fine | Health::Outside);
        if scene.healths.iter().all(is_well) { LOOK_EVERY * *looks } else { Duration::ZERO }
    }

    /// Who votes by the newest membership that was seen.
    pub(crate) fn voters(&self) -> impl Iterator<Item = &VoterId> {
        self.voters.last_key_value().into_iter().flat_map(|(_, voters)| voters)
    }

    /// How many terms had a leader.
    pub(crate) fn terms(&self) -> u64 {
        self.leader_of.len() as u64
    }

    /// I9: whether a node may be called unreachable now, given what really happened to it.
    ///
    /// Looks back further than the rules do: a verdict may have waited for a quorum, and as long as nobody leads.
    pub(crate) fn may_be_lost(&self, node: usize) -> bool {
        let looks = |time: Duration| {
            let mut left = time.as_millis() / LOOK_EVERY.as_millis();
            self.looks[node].iter().zip(&self.led).take_while(move |(_, led)| {
                let goes_on = left > 0;
                left -= u128::from(**led && goes_on);
                goes_on
            })
        };
        let within = |time: Duration, which: fn(&Health) -> bool| {
            LOOK_EVERY * looks(time).filter(|(health, _)| which(health)).count() as u32
        };
        let off = within(Duration::from_secs(15), |health| *health == Health::Off);
        let no_daemon = within(Duration::from_secs(17), |health| *health == Health::NoDaemon);
        // Cut off it is as silent, and has no more of a daemon.
        let gone = within(Duration::from_secs(17), |health| matches!(health, Health::NoDaemon | Health::Off));
        let in_all = within(REMEMBERED, |health| *health != Health::Fine);
        let is_back = looks(BACK_MAX).all(|(health, _)| *health == Health::Fine);
        let was_lost = off >= Duration::from_millis(1900)
            || (!no_daemon.is_zero() && gone >= Duration::from_millis(3900))
            || in_all >= Duration::from_secs(27);
        was_lost && !is_back
    }

    /// Whether nothing was wrong with a node, nor with the others, for a while.
    pub(crate) fn all_fine(&self, time: Duration) -> bool {
        let looks = (time.as_millis() / LOOK_EVERY.as_millis()) as usize;
        self.looks
            .iter()
            .filter(|seen| seen.front() != Some(&Health::Outside))
            .all(|seen| seen.len() >= looks && seen.iter().take(looks).all(|health| *health == Health::Fine))
    }
}
