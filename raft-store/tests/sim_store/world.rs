//! Nodes with a disk and a clock each, a network between them, clients, and whoever breaks things.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use openraft::async_runtime::Instant;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skein_raft_store::sim::{Process, SimNetwork, SimRt, Weather, start, take_seen};
use skein_raft_store::sim_files::SimDisk;
use skein_raft_store::{
    Change, ClusterTag, Compaction, Config, Difference, Expect, Handle, LogId, MemberChange, Metrics, Moved,
    Op, Options, Outcome as Applied, ProposeError, State, Timings, VoterId,
};

use crate::history::{Call, History, Outcome, What};

pub(crate) type Store = Handle<SimRt>;
pub(crate) type Now = <SimRt as AsyncRuntime>::Instant;

/// What one run is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Those that vote.
    pub(crate) nodes: usize,
    /// Those that have no part in the log.
    pub(crate) followers: usize,
    pub(crate) clients: usize,
    /// Virtual time with faults.
    pub(crate) faults_for: Duration,
    pub(crate) faults: Faults,
    pub(crate) timings: Timings,
    pub(crate) compaction: Compaction,
    /// Events kept for watches and followers.
    pub(crate) ring_events: usize,
}

/// So few entries that snapshots are taken and installed in every run.
pub(crate) const SMALL: Compaction =
    Compaction { every_entries: 60, keep_entries: 20, every_bytes: 16 << 10, keep_bytes: 4 << 10 };
/// And so few events that followers need snapshots, and watches begin anew.
pub(crate) const FEW_EVENTS: usize = 60;

impl Plan {
    /// Three voters, and nothing happens to them.
    pub(crate) fn quiet() -> Plan {
        Plan {
            seed: 7,
            nodes: 3,
            followers: 0,
            clients: 0,
            faults_for: Duration::ZERO,
            faults: Faults::None,
            timings: Timings::default(),
            compaction: SMALL,
            ring_events: FEW_EVENTS,
        }
    }
}

/// Which faults happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Faults {
    None,
    All,
    /// Only cuts that leave an old leader alone: what breaks a missing read index.
    Cuts,
    /// Only power cuts of a majority at once: what breaks a restored leader.
    PowerCuts,
}

/// What came of it.
pub(crate) struct Outcomes {
    pub(crate) wrong: Vec<String>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// A sum over calls and events in order: equal for equal seeds.
    pub(crate) trace: u32,
}

pub(crate) struct World {
    network: SimNetwork<SimRt>,
    nodes: Vec<Arc<Mutex<Node>>>,
    history: Arc<Mutex<History>>,
    counts: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    began: Now,
    plan: Plan,
    digests: Mutex<Digests>,
    /// The first so many nodes vote.
    voters: usize,
}

/// Of whole states by the last entry in them, each with the node that had it first.
type Digests = BTreeMap<LogId, (usize, (u32, u32))>;

struct Node {
    voter: VoterId,
    tag: ClusterTag,
    disk: SimDisk,
    clock_offset_ms: u64,
    generation: u64,
    process: Option<Process>,
    store: Option<Store>,
    /// Its store was lost, and the present one does not vote yet.
    lost_vote: bool,
}

/// Runs the plan from beginning to end in a world of its own.
pub(crate) fn run(plan: Plan) -> Outcomes {
    SimRt::with_seed(plan.seed).block_on(World::live(plan))
}

impl World {
    /// A cluster of voters in which nothing is broken yet.
    pub(crate) async fn formed(plan: Plan) -> Arc<World> {
        let mut chance = StdRng::seed_from_u64(plan.seed);
        let nodes = (1..=(plan.nodes + plan.followers) as u8).map(|number| {
            Arc::new(Mutex::new(Node {
                voter: VoterId { node: [number; 16], store: [1; 8] },
                tag: TAG,
                disk: fast_disk(plan.seed ^ u64::from(number) << 32),
                clock_offset_ms: chance.random_range(0..7_200_000),
                generation: 0,
                process: None,
                store: None,
                lost_vote: false,
            }))
        });
        let world = Arc::new(World {
            nodes: nodes.collect(),
            network: SimNetwork::new(Weather::LAN),
            history: Arc::default(),
            counts: Arc::default(),
            began: Now::now(),
            plan,
            digests: Mutex::default(),
            voters: plan.nodes,
        });
        world.form().await;
        world
    }

    async fn live(plan: Plan) -> Outcomes {
        let world = World::formed(plan).await;
        let mut chance = StdRng::seed_from_u64(plan.seed);
        let until = Now::now() + plan.faults_for;
        let clients: Vec<_> = (0..plan.clients)
            .map(|number| SimRt::spawn(world.clone().client(number, chance.random(), until)))
            .collect();
        let watch = SimRt::spawn(world.clone().watch_leaders(until));
        world.clone().break_things(plan.faults, chance.random(), until).await;
        for client in clients {
            client.await.expect("clients do not panic");
        }
        watch.await.expect("neither does the observer");
        world.heal().await;
        world.outcomes()
    }

    /// One node founds the cluster, the others join as learners and then vote.
    async fn form(self: &Arc<Self>) {
        for number in 0..self.nodes.len() {
            self.start(number);
        }
        let first = self.running(0).await;
        first.bootstrap().await.expect("an empty store");
        let voters: BTreeSet<VoterId> = (0..self.voters).map(|number| self.voter(number)).collect();
        for voter in &voters {
            if *voter != first.voter() {
                until_ok(|| first.add_learner(*voter)).await;
            }
        }
        if voters.len() > 1 {
            let membership = first.metrics().membership;
            first
                .change_members(MemberChange::Voters(voters), membership)
                .await
                .expect("nothing is broken yet");
        }
    }

    /// Waits until a majority agrees on a leader that runs; its number and how it sees things.
    pub(crate) async fn leader(&self) -> (usize, Metrics) {
        loop {
            let seen: Vec<Metrics> =
                (0..self.nodes.len()).filter_map(|n| self.store(n)).map(|s| s.metrics()).collect();
            for (number, metrics) in (0..self.nodes.len()).filter_map(|n| Some((n, self.store(n)?.metrics())))
            {
                let agree =
                    seen.iter().filter(|other| other.leader == metrics.leader && other.term == metrics.term);
                if metrics.leads() && agree.count() * 2 > self.nodes.len() {
                    return (number, metrics);
                }
            }
            SimRt::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether a put through node `number` is taken within a few seconds.
    pub(crate) async fn put(&self, number: usize, key: &str, value: &str) -> bool {
        self.put_revision(number, key, value).await.is_some()
    }

    /// As [`put`](Self::put): the revision that the write was given.
    pub(crate) async fn put_revision(&self, number: usize, key: &str, value: &str) -> Option<u64> {
        match self.write(number, key.into(), Expect::Any, Some(value.into())).await? {
            What::Write { outcome: Outcome::Done(revision), .. } => Some(revision),
            _ => None,
        }
    }

    /// The revision of the state that a read behind a read index through node `number` sees, if it is answered.
    pub(crate) async fn read_revision(&self, number: usize) -> Option<u64> {
        match self.read(number, "key".into()).await? {
            What::Read { revision, .. } => Some(revision),
            What::Write { .. } => None,
        }
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.network.set_weather(weather);
    }

    pub(crate) fn set_rate(&self, rate: Option<u64>) {
        self.network.set_rate(rate);
    }

    pub(crate) fn set_rate_to(&self, number: usize, rate: Option<u64>) {
        self.network.set_rate_to(self.voter(number), rate);
    }

    pub(crate) fn set_narrow(&self, from: usize, to: usize, narrow: bool) {
        self.network.set_narrow(self.voter(from), self.voter(to), narrow);
    }

    pub(crate) fn set_sync_time(&self, number: usize, time: Duration) {
        self.nodes[number].lock().unwrap().disk.set_sync_time(time, time);
    }

    pub(crate) fn disk(&self, number: usize) -> SimDisk {
        self.nodes[number].lock().unwrap().disk.clone()
    }

    pub(crate) fn voter(&self, number: usize) -> VoterId {
        self.nodes[number].lock().unwrap().voter
    }

    /// Puts an empty disk in, with another store id; returns the name of before.
    pub(crate) fn replace_disk(&self, number: usize) -> VoterId {
        let mut node = self.nodes[number].lock().unwrap();
        let old = node.voter;
        node.voter.store = [old.store[0] + 1; 8];
        node.disk = fast_disk(u64::from(old.store[0]));
        old
    }

    /// Puts in the disk of a store that is of another cluster or incarnation and has the same name.
    pub(crate) fn put_foreign_disk(&self, number: usize, disk: SimDisk, tag: ClusterTag) {
        let mut node = self.nodes[number].lock().unwrap();
        assert!(node.process.is_none(), "it must be off");
        (node.disk, node.tag) = (disk, tag);
    }

    pub(crate) async fn running(&self, number: usize) -> Store {
        loop {
            if let Some(store) = self.store(number) {
                return store;
            }
            SimRt::sleep(Duration::from_millis(5)).await;
        }
    }

    fn store(&self, number: usize) -> Option<Store> {
        self.nodes[number].lock().unwrap().store.clone()
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    fn wrong(&self, what: String) {
        self.history.lock().unwrap().violations.push(what);
    }

    pub(crate) fn start(self: &Arc<Self>, number: usize) {
        let mut node = self.nodes[number].lock().unwrap();
        if node.process.is_some() {
            return;
        }
        node.generation += 1;
        let process = Process::new(format!("node {number}, start {}", node.generation));
        node.process = Some(process.clone());
        let (transport, mut incoming) = self.network.connect(node.voter);
        let (files, offset, began) = (node.disk.files::<SimRt>(), node.clock_offset_ms, self.began);
        let tag = node.tag;
        let mut config = Config::new(node.voter, tag, node.generation);
        config.timings = self.plan.timings;
        config.compaction = self.plan.compaction;
        config.ring.events_max = self.plan.ring_events;
        let others = self.nodes.iter().filter(|other| !Arc::ptr_eq(other, &self.nodes[number]));
        let others: Vec<[u8; 16]> = others.map(|other| other.lock().unwrap().voter.node).collect();
        config.clock = Arc::new(move || offset + began.elapsed().as_millis() as u64);
        drop(node);
        let world = self.clone();
        drop(process.spawn(async move {
            let store: Store = match start(config, files, Arc::new(transport)).await {
                Ok(store) => store,
                Err(error) => return world.wrong(format!("node {number} did not start: {error:?}")),
            };
            store.introduce(others);
            world.nodes[number].lock().unwrap().store = Some(store.clone());
            // A foreign store has a history of its own.
            if tag == TAG {
                drop(SimRt::spawn(world.observe(number, store.clone())));
            }
            while let Some((from, lane, pipe)) = incoming.next().await {
                let store = store.clone();
                drop(SimRt::spawn(async move { store.serve(from, lane, pipe).await }));
            }
        }));
    }

    /// Follows everything on one node: I2, I5 and I6.
    async fn observe(self: Arc<Self>, number: usize, store: Store) {
        // What was kept of the beginning, as far as it was.
        let Ok(mut tail) = store.tail_after(0).or_else(|_| store.tail()) else { return };
        let mut after = tail.state().revision();
        self.hide(1, after);
        while let Some(moved) = tail.next().await {
            match moved {
                Moved::Events(events) => {
                    for event in events {
                        if event.revision != after + 1 {
                            let text =
                                format!("I6: node {number} delivered {} after {after}", event.revision);
                            self.wrong(text);
                        }
                        after = event.revision;
                        self.history.lock().unwrap().saw(number, event);
                    }
                }
                Moved::Jump(differences) => {
                    self.count("jumped");
                    let mut history = self.history.lock().unwrap();
                    for Difference { key, object } in &differences {
                        object.iter().for_each(|object| history.jumped(number, key, object));
                    }
                    drop(history);
                    self.hide(after + 1, tail.state().revision());
                    after = tail.state().revision();
                    let shown = store.state();
                    if shown.revision() == after && shown.digest() != tail.state().digest() {
                        self.wrong(format!(
                            "I6: at {after} node {number} was told another map than it shows"
                        ));
                    }
                }
            }
        }
    }

    fn hide(&self, first: u64, last: u64) {
        if first <= last {
            self.history.lock().unwrap().hidden.push(first..=last);
        }
    }

    /// I2, exactly once included: the state machines of two stores that have applied the same entries hold the same.
    fn check_digest(&self, number: usize, state: &State) {
        let Some(applied) = state.applied() else { return };
        let digest = (state.head_digest(), state.digest());
        let first = *self.digests.lock().unwrap().entry(applied).or_insert((number, digest));
        if first.1 != digest {
            self.wrong(format!(
                "I2: up to {applied} node {number} holds something else than node {}",
                first.0
            ));
        }
    }

    /// I5: what a node shows never goes back while it runs. I8: two never lead in one term, and nobody
    /// leads after a restart in the term of before.
    async fn watch_leaders(self: Arc<Self>, until: Now) {
        let mut leader_of: BTreeMap<u64, (VoterId, u64)> = BTreeMap::new();
        let mut shown: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        while Now::now() < until {
            for (number, node) in self.nodes.iter().enumerate() {
                let Some(store) = self.store(number) else { continue };
                let metrics = store.metrics();
                self.check_digest(number, &store.state());
                let generation = node.lock().unwrap().generation;
                let before = shown.insert((number, generation), metrics.revision).unwrap_or(0);
                if before > metrics.revision {
                    let now = metrics.revision;
                    self.wrong(format!("I5: node {number} showed revision {before} and then {now}"));
                }
                if metrics.follows.is_some() {
                    self.count("followed");
                }
                if !metrics.leads() {
                    continue;
                }
                let leader = (metrics.voter, node.lock().unwrap().generation);
                let first = *leader_of.entry(metrics.term).or_insert(leader);
                if first != leader {
                    self.wrong(format!("I8: {first:?} and {leader:?} lead in term {}", metrics.term));
                }
            }
            SimRt::sleep(Duration::from_millis(20)).await;
        }
        self.counts.lock().unwrap().insert("terms", leader_of.len() as u64);
    }

    async fn client(self: Arc<Self>, client: usize, seed: u64, until: Now) {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut serial = 0;
        while Now::now() < until {
            serial += 1;
            let number = chance.random_range(0..self.nodes.len());
            let key = format!("key{}", chance.random_range(0..2));
            let known =
                self.history.lock().unwrap().events.last_key_value().map_or(0, |(revision, _)| *revision);
            let value = format!("client {client}, write {serial}");
            let (expect, value) = match chance.random_range(0..10) {
                0..5 => (Some(Expect::Any), Some(value)),
                5 => (Some(Expect::Revision(known)), Some(value)),
                6 => (Some(Expect::Absent), Some(value)),
                7 => (Some(Expect::Any), None),
                _ => (None, None),
            };
            let begin = self.now();
            let what = match expect {
                Some(expect) => self.write(number, key, expect, value).await,
                None => self.read(number, key).await,
            };
            let call = what.map(|what| Call { begin, end: self.now(), what });
            self.history.lock().unwrap().calls.extend(call);
            SimRt::sleep(Duration::from_millis(chance.random_range(1..40))).await;
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Asks as a task of the node's process: a killed node's clients never hear of it again.
    async fn ask<T: Send + 'static>(
        &self,
        number: usize,
        ask: impl FnOnce(Store) -> futures::future::BoxFuture<'static, T>,
    ) -> Asked<T> {
        let (process, store) = {
            let node = self.nodes[number].lock().unwrap();
            (node.process.clone(), node.store.clone())
        };
        let (Some(process), Some(store)) = (process, store) else {
            return Asked::NotRunning;
        };
        let asking = process.spawn(ask(store));
        match SimRt::timeout(Duration::from_secs(4), asking).await {
            Ok(Ok(answer)) => Asked::Answer(answer),
            Ok(Err(_)) | Err(_) => Asked::Lost,
        }
    }

    async fn write(&self, number: usize, key: String, expect: Expect, value: Option<String>) -> Option<What> {
        let change = value.clone().map_or(Change::Delete, |value| Change::Put(Bytes::from(value)));
        let op = Op { key: key.as_str().into(), expect, change };
        let options = Options { timeout: Duration::from_secs(3), ..Options::default() };
        let asked =
            self.ask(number, |store| Box::pin(async move { store.propose(vec![op], options).await })).await;
        let outcome = match asked {
            Asked::NotRunning => return None,
            Asked::Answer(Ok(answer)) => match answer.outcomes[0] {
                Applied::Done { revision } => Outcome::Done(revision),
                Applied::Unchanged { .. } => Outcome::Unchanged,
                _ => Outcome::NotDone,
            },
            Asked::Answer(Err(ProposeError::NoQuorum(_) | ProposeError::Busy)) => Outcome::NotDone,
            Asked::Answer(Err(_)) | Asked::Lost => Outcome::Unknown,
        };
        self.count(match outcome {
            Outcome::Done(_) => "done",
            Outcome::NotDone => "not done",
            Outcome::Unchanged => "unchanged",
            Outcome::Unknown => "unknown",
        });
        Some(What::Write { key, value, outcome })
    }

    async fn read(&self, number: usize, key: String) -> Option<What> {
        let read_key = key.clone();
        let asked = self.ask(number, |store| {
            Box::pin(async move {
                store.read_index(Duration::from_secs(3)).await.ok()?;
                let state = store.state();
                let value =
                    state.get(&read_key).map(|object| String::from_utf8_lossy(&object.value).into_owned());
                Some((value, state.revision()))
            })
        });
        let Asked::Answer(Some((value, revision))) = asked.await else { return None };
        self.count("read");
        Some(What::Read { key, value, revision })
    }

    /// Breaks one thing after another; each heals by itself after a while.
    async fn break_things(self: Arc<Self>, faults: Faults, seed: u64, until: Now) {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut healing = Vec::new();
        while Now::now() < until {
            SimRt::sleep(Duration::from_millis(chance.random_range(100..1500))).await;
            let fault = match faults {
                Faults::None => continue,
                Faults::All => chance.random_range(0..13),
                Faults::Cuts => 5,
                Faults::PowerCuts => 10,
            };
            let number = chance.random_range(0..self.nodes.len());
            let lasts = Duration::from_millis(chance.random_range(50..3000));
            let world = self.clone();
            match fault {
                // A minority is down at once, whatever the reason; the others see the rest.
                0..=4 if number < self.voters && self.down() >= (self.voters - 1) / 2 => {}
                0 | 1 => {
                    self.stop(number, "killed");
                    healing.push(SimRt::spawn(async move {
                        SimRt::sleep(lasts).await;
                        world.start(number);
                    }));
                }
                2 | 3 => {
                    self.power_off(number);
                    healing.push(SimRt::spawn(async move {
                        SimRt::sleep(lasts).await;
                        world.start(number);
                    }));
                }
                4 => {
                    let Some(process) = self.nodes[number].lock().unwrap().process.clone() else { continue };
                    self.count("paused");
                    process.pause();
                    healing.push(SimRt::spawn(async move {
                        SimRt::sleep(lasts).await;
                        process.resume();
                    }));
                }
                5 | 6 => {
                    self.count("isolated");
                    let (hears, is_heard) = match chance.random_range(0..4) {
                        0 => (true, false),
                        1 => (false, true),
                        _ => (false, false),
                    };
                    let leader =
                        (0..self.nodes.len()).find(|n| self.store(*n).is_some_and(|s| s.metrics().leads()));
                    let number = if chance.random_bool(0.5) { leader.unwrap_or(number) } else { number };
                    self.isolate(number, hears, is_heard, true);
                    healing.push(SimRt::spawn(async move {
                        SimRt::sleep(lasts).await;
                        world.isolate(number, hears, is_heard, false);
                    }));
                }
                7 => {
                    self.count("bad weather");
                    let delay =
                        (Duration::from_millis(1), Duration::from_millis(chance.random_range(2..300)));
                    self.network.set_weather(Weather { delay, loss: chance.random_range(0.0..0.3) });
                    healing.push(SimRt::spawn(async move {
                        SimRt::sleep(lasts).await;
                        world.network.set_weather(Weather::LAN);
                    }));
                }
                8 | 9 => {
                    self.count("slow disk");
                    let disk = self.nodes[number].lock().unwrap().disk.clone();
                    let longest = Duration::from_millis(chance.random_range(20..2000));
                    disk.set_sync_time(longest / 4, longest);
                    healing.push(SimRt::spawn(async move {
                        SimRt::sleep(lasts).await;
                        disk.set_sync_time(SYNC_MIN, SYNC_MAX);
                    }));
                }
                // Of three that lost a store each, nobody would know what was answered.
                11 if number < self.voters && self.down() < (self.voters - 1) / 2 => {
                    self.stop(number, "store lost");
                    let old = self.replace_disk(number);
                    self.nodes[number].lock().unwrap().lost_vote = true;
                    healing.push(SimRt::spawn(async move {
                        SimRt::sleep(lasts).await;
                        world.start(number);
                        world.replace(number, old).await;
                    }));
                }
                11 => {}
                12 => {
                    self.count("slow links");
                    self.network.set_rate(Some(chance.random_range(10_000..1_000_000)));
                    healing.push(SimRt::spawn(async move {
                        SimRt::sleep(lasts).await;
                        world.network.set_rate(None);
                    }));
                }
                _ if chance.random_bool(0.3) || faults == Faults::PowerCuts => {
                    self.count("all off");
                    (0..self.nodes.len()).for_each(|number| self.power_off(number));
                    for number in 0..self.nodes.len() {
                        SimRt::sleep(Duration::from_millis(chance.random_range(0..200))).await;
                        self.start(number);
                    }
                    SimRt::sleep(Duration::from_secs(2)).await;
                }
                _ => {}
            }
        }
        for task in healing {
            task.await.expect("healing does not panic");
        }
    }

    fn down(&self) -> usize {
        let is_down = |node: &&Arc<Mutex<Node>>| {
            let node = node.lock().unwrap();
            node.store.is_none() || node.lost_vote
        };
        self.nodes[..self.voters].iter().filter(is_down).count()
    }

    /// Whoever leads lets the new store of a node learn, and gives it the place of the `old` one in one change.
    async fn replace(self: Arc<Self>, number: usize, old: VoterId) {
        let new = self.voter(number);
        loop {
            SimRt::sleep(Duration::from_millis(20)).await;
            let (leader, metrics) = self.leader().await;
            if !metrics.voters.contains(&old) && !metrics.joint {
                break;
            }
            let has_learnt = metrics.matched.get(&new).is_some_and(|at| at + 10 >= metrics.last_log);
            let change = match () {
                () if metrics.joint => MemberChange::FinishJoint,
                () if has_learnt && metrics.learners.contains(&new) => {
                    let stay = metrics.voters.iter().copied().filter(|voter| *voter != old);
                    MemberChange::Voters(stay.chain([new]).collect())
                }
                () if metrics.learners.contains(&new) => continue,
                () => {
                    // Whoever leads next may see to it.
                    let _ = self
                        .ask(leader, move |store| Box::pin(async move { store.add_learner(new).await }))
                        .await;
                    continue;
                }
            };
            let on = metrics.membership;
            let _ = self
                .ask(leader, move |store| Box::pin(async move { store.change_members(change, on).await }))
                .await;
        }
        self.count("store replaced");
        self.nodes[number].lock().unwrap().lost_vote = false;
    }

    fn stop(&self, number: usize, how: &'static str) -> bool {
        let mut node = self.nodes[number].lock().unwrap();
        let Some(process) = node.process.take() else { return false };
        let store = node.store.take();
        node.disk.kill();
        drop(node);
        self.count(how);
        process.kill();
        drop(store);
        true
    }

    pub(crate) fn power_off(&self, number: usize) {
        if self.stop(number, "power cut") {
            let mut chance = SimRt::thread_rng();
            let lost = self.nodes[number].lock().unwrap().disk.power_cut(&mut chance);
            if lost.bytes > 0 {
                self.count("bytes lost");
            }
            if lost.zeroed > 0 {
                self.count("torn tail");
            }
        }
    }

    /// Cuts both directions between two nodes.
    pub(crate) fn cut(&self, a: usize, b: usize) {
        self.network.cut(self.voter(a), self.voter(b));
        self.network.cut(self.voter(b), self.voter(a));
    }

    /// Undoes every cut.
    pub(crate) fn heal_all(&self) {
        self.network.heal_all();
    }

    pub(crate) fn isolate(&self, number: usize, hears: bool, is_heard: bool, cut: bool) {
        let voter = |number: usize| self.nodes[number].lock().unwrap().voter;
        let change = |from, to| if cut { self.network.cut(from, to) } else { self.network.heal(from, to) };
        for other in (0..self.nodes.len()).filter(|other| *other != number) {
            if !hears {
                change(voter(other), voter(number));
            }
            if !is_heard {
                change(voter(number), voter(other));
            }
        }
    }

    /// With nothing broken any more, a write is taken and all states are equal within 20 s.
    async fn heal(self: &Arc<Self>) {
        self.network.heal_all();
        self.network.set_weather(Weather::LAN);
        for number in 0..self.nodes.len() {
            self.nodes[number].lock().unwrap().disk.set_sync_time(SYNC_MIN, SYNC_MAX);
            self.start(number);
        }
        let healed = async {
            for number in 0..self.nodes.len() {
                self.running(number).await;
                while !self
                    .write(number, "last".into(), Expect::Any, Some(format!("{number}")))
                    .await
                    .is_some_and(|what| matches!(what, What::Write { outcome: Outcome::Done(_), .. }))
                {
                }
            }
            loop {
                let states: Vec<_> = (0..self.nodes.len())
                    .filter_map(|number| self.store(number))
                    .map(|s| s.state())
                    .collect();
                let seen =
                    self.history.lock().unwrap().events.last_key_value().map_or(0, |(revision, _)| *revision);
                let revisions: BTreeSet<_> =
                    states.iter().map(|state| state.revision()).chain([seen]).collect();
                if revisions.len() == 1 && states.len() == self.nodes.len() {
                    return states.iter().map(|state| state.digest()).collect::<BTreeSet<_>>();
                }
                SimRt::sleep(Duration::from_millis(10)).await;
            }
        };
        match SimRt::timeout(Duration::from_secs(20), healed).await {
            Ok(digests) if digests.len() == 1 => {}
            Ok(digests) => self.wrong(format!("I2: the states differ in the end: {digests:?}")),
            Err(_) => {
                let metrics: Vec<_> =
                    (0..self.nodes.len()).map(|n| self.store(n).map(|s| s.metrics())).collect();
                self.wrong(format!("not healed after 20 s: {metrics:#?}"));
            }
        }
    }

    fn outcomes(&self) -> Outcomes {
        let history = self.history.lock().unwrap();
        let mut trace = 0;
        for call in &history.calls {
            trace = crc32c::crc32c_append(trace, format!("{call:?}").as_bytes());
        }
        for event in history.events.values() {
            trace = crc32c::crc32c_append(trace, format!("{event:?}").as_bytes());
        }
        let mut counts = self.counts.lock().unwrap().clone();
        let (unseen, all) = history.unseen();
        counts.extend([("revisions", all), ("revisions unseen", unseen)]);
        counts.extend(take_seen());
        Outcomes { wrong: history.check(), counts, trace }
    }
}

/// Of the cluster that every world is about.
pub(crate) const TAG: ClusterTag = ClusterTag { cluster: [7; 16], number: 1, incarnation: [7; 16] };

const SYNC_MIN: Duration = Duration::from_micros(200);
const SYNC_MAX: Duration = Duration::from_millis(2);

pub(crate) fn fast_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.set_sync_time(SYNC_MIN, SYNC_MAX);
    disk
}

enum Asked<T> {
    Answer(T),
    NotRunning,
    Lost,
}

async fn until_ok<T, E, F: Future<Output = Result<T, E>>>(mut attempt: impl FnMut() -> F) -> T {
    loop {
        if let Ok(value) = attempt().await {
            return value;
        }
        SimRt::sleep(Duration::from_millis(50)).await;
    }
}
