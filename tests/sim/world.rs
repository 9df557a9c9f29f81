//! The nodes, what breaks them, and what must be true when nothing is broken any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crc32c::crc32c_append;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use openraft::AsyncRuntime;
use openraft::async_runtime::{Instant as _, Select2};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skein_control::judge::Answer;
use skein_control::node_health::Verdict;
use skein_control::pod::{Attempt, ContainerState};
use skein_net::gossip::{Member, State};
use skein_net::identity::NodeId;
use skein_raft_store::sim::{
    Mutation as StoreMutation, Process, SimNetwork, SimRt, Weather, start, take_seen,
};
use skein_raft_store::sim_files::{Broken, SimDisk};
use skein_raft_store::{Compaction, Config, Event, Expect, Handle, VoterId};

use crate::air::{Air, Letter, Post, carry};
use crate::clock::Clock;
use crate::history::{History, Outcome, What};
use crate::machine::Machine;
use crate::picture::{self, Picture};
use crate::plan::{Fault, Kind, Mutation, Plan, Victim};
use crate::truth::{self, Health, Truth};
use crate::watch::{self, Watch};
use crate::{agent, clients, gossip, panics, planner};

pub(crate) type Store = Handle<SimRt>;
pub(crate) type Now = <SimRt as AsyncRuntime>::Instant;

const SYNC_MIN: Duration = Duration::from_micros(200);
const SYNC_MAX: Duration = Duration::from_millis(2);
/// With everything up and connected, all must be well again by then.
const HEALED_WITHIN: Duration = Duration::from_secs(20);
const WRITERS: usize = 3;
/// All that happened so far is gone through again.
const LOOK_FOR_WRONG_EVERY: Duration = Duration::from_secs(3);

/// What came of a run.
pub(crate) struct Outcomes {
    pub(crate) wrong: Vec<String>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// A sum over everything that clients and machines did, in order.
    pub(crate) trace: u32,
    pub(crate) lasted: Duration,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) air: Air,
    pub(crate) history: Mutex<History>,
    pub(crate) truth: Mutex<Truth>,
    network: SimNetwork<SimRt>,
    slots: Vec<Mutex<Slot>>,
    machines: Vec<Mutex<Machine>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    trace: Mutex<u32>,
    healed: AtomicBool,
    rejoined: Mutex<u32>,
    /// Who has voted since it joined, and who asked to leave: what the map's member records say in a node.
    voted: Mutex<BTreeSet<usize>>,
    leaving: Mutex<BTreeSet<usize>>,
    /// What happens is printed as well: for whoever looks for the cause of a violation.
    shows: bool,
    began: Now,
}

/// One place for a node: what stays when its process ends.
struct Slot {
    disk: SimDisk,
    clock: Clock,
    generation: u64,
    powered: bool,
    paused: bool,
    process: Option<Process>,
    running: Option<Running>,
}

#[derive(Clone)]
struct Running {
    site: Site,
    gossip: UnboundedSender<gossip::In>,
    watch: UnboundedSender<watch::In>,
}

/// One run of one node's daemon, as its tasks see it.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) world: Arc<World>,
    pub(crate) number: usize,
    pub(crate) generation: u64,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) picture: Picture,
    pub(crate) members: Arc<Mutex<BTreeMap<NodeId, Member>>>,
    pub(crate) verdicts: Arc<Mutex<BTreeMap<String, Verdict>>>,
}

pub(crate) enum Asked<T> {
    Answer(T),
    NotRunning,
    /// The node died, or took too long.
    Lost,
}

pub(crate) fn node_id(number: usize) -> NodeId {
    NodeId([number as u8 + 1; 16])
}

pub(crate) fn number_of(node: NodeId) -> usize {
    usize::from(node.0[0]) - 1
}

pub(crate) fn voter_id(number: usize) -> VoterId {
    VoterId { node: node_id(number).0, store: [1; 8] }
}

pub(crate) fn number_of_voter(voter: &VoterId) -> usize {
    number_of(NodeId(voter.node))
}

pub(crate) fn node_name(number: usize) -> String {
    format!("node-{number}")
}

/// Runs the plan from beginning to end in a world of its own.
pub(crate) fn run(plan: Plan) -> Outcomes {
    let of_store = match plan.mutation {
        Some(Mutation::Store(mutation)) => Some(mutation),
        _ => None,
    };
    StoreMutation::set(of_store);
    // A run before this one may have ended by a panic.
    panics::note();
    take_seen();
    let mut outcomes = SimRt::with_seed(plan.seed).block_on(Box::pin(live(plan)));
    outcomes.wrong.extend(panics::take().into_iter().map(|panic| format!("I20: {panic}")));
    StoreMutation::set(None);
    outcomes
}

async fn live(plan: Plan) -> Outcomes {
    let mut chance = StdRng::seed_from_u64(plan.seed);
    let began = Now::now();
    let (air, sent) = Air::new(plan.seed);
    let slots = (0..plan.nodes).map(|number| {
        let disk = SimDisk::new(plan.seed ^ (number as u64) << 32);
        disk.set_sync_time(SYNC_MIN, SYNC_MAX);
        let clock = Clock::draw(began, &mut chance);
        let (process, running) = (None, None);
        Mutex::new(Slot { disk, clock, generation: 0, powered: true, paused: false, process, running })
    });
    let world = Arc::new(World {
        plan,
        air,
        history: Mutex::default(),
        truth: Mutex::default(),
        network: SimNetwork::new(Weather::LAN),
        slots: slots.collect(),
        machines: (0..plan.nodes).map(|_| Mutex::default()).collect(),
        counts: Mutex::default(),
        trace: Mutex::default(),
        healed: AtomicBool::new(false),
        rejoined: Mutex::default(),
        voted: Mutex::default(),
        leaving: Mutex::default(),
        shows: std::env::var_os("SKEIN_SHOW").is_some(),
        began,
    });
    drop(SimRt::spawn(carry(world.clone(), sent)));
    drop(SimRt::spawn(truth::observe(world.clone())));
    // Whoever looks for one violation does not wait for more.
    let is_over = if plan.mutation.is_some() {
        let (whole, noticed) = (Box::pin(world.whole_course(chance)), Box::pin(world.noticed()));
        matches!(SimRt::select2(whole, noticed).await, Select2::First(()))
    } else {
        world.whole_course(chance).await;
        true
    };
    world.outcomes(is_over)
}

impl World {
    async fn whole_course(self: &Arc<Self>, mut chance: StdRng) {
        self.form().await;
        let until = Now::now() + self.plan.faults_for;
        let mut clients: Vec<_> = (0..WRITERS)
            .map(|client| {
                let client = clients::write_and_read(self.clone(), client, chance.random(), until);
                SimRt::spawn(client)
            })
            .collect();
        clients.push(SimRt::spawn(clients::deploy(self.clone(), chance.random(), until)));
        self.break_things(until).await;
        for client in clients {
            client.await.expect("clients do not panic");
        }
        self.heal().await;
    }

    /// Waits until something is wrong.
    async fn noticed(&self) {
        while self.history.lock().unwrap().check(false).is_empty() && !panics::any() {
            SimRt::sleep(LOOK_FOR_WRONG_EVERY).await;
        }
    }

    pub(crate) fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    pub(crate) fn wrong(&self, what: String) {
        self.history.lock().unwrap().wrong.push(format!("at {:?}: {what}", self.began.elapsed()));
    }

    pub(crate) fn elapsed(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    pub(crate) fn note(&self, what: &str) {
        if self.shows {
            println!("{:10.6} {what}", self.began.elapsed().as_secs_f64());
        }
        let mut trace = self.trace.lock().unwrap();
        *trace = crc32c_append(*trace, &self.elapsed().to_le_bytes());
        *trace = crc32c_append(*trace, what.as_bytes());
    }

    pub(crate) fn site(&self, number: usize) -> Option<Site> {
        self.slots[number].lock().unwrap().running.as_ref().map(|running| running.site.clone())
    }

    // What the member records of the map would say.

    /// It joined and has never voted since.
    pub(crate) fn is_fresh(&self, number: usize) -> bool {
        !self.voted.lock().unwrap().contains(&number)
    }

    pub(crate) fn is_leaving(&self, number: usize) -> bool {
        self.leaving.lock().unwrap().contains(&number)
    }

    pub(crate) fn note_voters(&self, voters: &BTreeSet<VoterId>) {
        self.voted.lock().unwrap().extend(voters.iter().map(number_of_voter));
    }

    fn leave(&self, number: usize) {
        self.count("leaves");
        self.leaving.lock().unwrap().insert(number);
    }

    fn join_again(&self, number: usize) {
        self.leaving.lock().unwrap().remove(&number);
        self.voted.lock().unwrap().remove(&number);
    }

    // Formation, start and end of nodes.

    /// All are members from the beginning; the first one founds the cluster, and its planner makes voters.
    async fn form(self: &Arc<Self>) {
        (0..self.plan.nodes).for_each(|number| self.start(number));
        let first = loop {
            if let Some(site) = self.site(0) {
                break site;
            }
            SimRt::sleep(Duration::from_millis(5)).await;
        };
        first.store.bootstrap().await.expect("an empty store");
        let formed = async {
            while first.store.metrics().voters.len() < self.plan.nodes || self.unwell().is_some() {
                SimRt::sleep(Duration::from_millis(50)).await;
            }
        };
        if SimRt::timeout(Duration::from_secs(30), formed).await.is_err() {
            self.wrong(format!("did not form: {:?}, {:#?}", self.unwell(), first.store.metrics()));
        }
    }

    fn start(self: &Arc<Self>, number: usize) {
        let mut slot = self.slots[number].lock().unwrap();
        if slot.process.is_some() || !slot.powered {
            return;
        }
        slot.generation += 1;
        slot.paused = false;
        let generation = slot.generation;
        let clock = slot.clock.clone();
        let store_clock = clock.clone();
        let process = Process::new(format!("node {number}, start {generation}"));
        slot.process = Some(process.clone());
        let (transport, mut incoming) = self.network.connect(voter_id(number));
        let files = slot.disk.files::<SimRt>();
        drop(slot);
        let mut config = Config::new(voter_id(number), generation);
        config.compaction = Compaction { every_entries: 100, keep_entries: 30 };
        config.clock = Arc::new(move || store_clock.wall_ms());
        let world = self.clone();
        drop(process.spawn(async move {
            let store: Store = match start(config, files, Arc::new(transport)).await {
                Ok(store) => store,
                // Its supervisor tries in vain until the disk is mended.
                Err(_) if world.has_broken_disk(number) => return world.count("starts on a failed disk"),
                Err(error) => return world.wrong(format!("node {number} did not start: {error:?}")),
            };
            let picture = Picture::new();
            let (members, verdicts) = Default::default();
            let store_of_site = store.clone();
            let site = Site {
                world: world.clone(),
                number,
                generation,
                clock,
                store: store_of_site,
                picture,
                members,
                verdicts,
            };
            let mut chance =
                StdRng::seed_from_u64(world.plan.seed ^ (number as u64 + 1) << 40 ^ generation << 48);
            let (gossip, gossiped) = unbounded();
            let (watch, watched) = unbounded();
            drop(SimRt::spawn(picture::follow(site.clone())));
            drop(SimRt::spawn(gossip::run(site.clone(), chance.random(), gossiped)));
            drop(SimRt::spawn(Watch::new(site.clone(), watched, watch.clone()).run()));
            drop(SimRt::spawn(planner::run(site.clone(), chance.random())));
            drop(SimRt::spawn(planner::choose_voters(site.clone())));
            drop(SimRt::spawn(agent::run(site.clone(), chance.random())));
            world.slots[number].lock().unwrap().running = Some(Running { site, gossip, watch });
            while let Some((from, lane, pipe)) = incoming.next().await {
                let store = store.clone();
                drop(SimRt::spawn(async move { store.serve(from, lane, pipe).await }));
            }
        }));
    }

    /// SIGKILL: what runs on the machine goes on.
    fn kill(&self, number: usize) -> bool {
        let mut slot = self.slots[number].lock().unwrap();
        let Some(process) = slot.process.take() else { return false };
        let running = slot.running.take();
        slot.disk.kill();
        slot.paused = false;
        drop(slot);
        process.kill();
        drop(running);
        true
    }

    fn power_off(&self, number: usize) {
        self.kill(number);
        let mut slot = self.slots[number].lock().unwrap();
        if !std::mem::replace(&mut slot.powered, false) {
            return;
        }
        let lost = slot.disk.power_cut(&mut SimRt::thread_rng());
        let now = slot.clock.wall();
        drop(slot);
        self.machines[number].lock().unwrap().power_cut(now);
        self.count("power cuts");
        if lost.bytes > 0 {
            self.count("bytes lost");
        }
        if lost.zeroed > 0 {
            self.count("torn tails");
        }
    }

    fn power_on(self: &Arc<Self>, number: usize) {
        self.slots[number].lock().unwrap().powered = true;
        self.start(number);
    }

    // What nodes do to each other and to their machines.

    pub(crate) fn deliver(&self, letter: Letter) {
        let slot = self.slots[letter.to].lock().unwrap();
        let Some(running) = &slot.running else { return };
        let from = letter.from;
        // An inbox whose reader has just ended takes nothing.
        let _ = match letter.post {
            Post::Gossip(packet) => {
                running.gossip.unbounded_send(gossip::In::Packet { from, packet }).is_ok()
            }
            Post::Asked(list) => running.gossip.unbounded_send(gossip::In::Asked { from, list }).is_ok(),
            Post::Answered(list) => running.gossip.unbounded_send(gossip::In::Answered(list)).is_ok(),
            Post::Watch(message) => {
                running.watch.unbounded_send(watch::In::Message { from, message }).is_ok()
            }
        };
    }

    /// What a kernel answers, and after how long.
    pub(crate) fn try_kernel(&self, from: usize, to: usize) -> (Option<Answer>, Duration) {
        let (connected, echoed, time) = self.air.try_kernel(from, to);
        let slot = self.slots[to].lock().unwrap();
        let answer = match (slot.powered, slot.running.is_some()) {
            (false, _) => None,
            (true, true) if connected => Some(Answer::Accepts),
            (true, false) if connected => Some(Answer::Refused),
            (true, _) => echoed.then_some(Answer::Echo),
        };
        (answer, time)
    }

    /// Takes what a node's watch delivered.
    pub(crate) fn saw(&self, number: usize, events: &[Event]) {
        let lost = self.history.lock().unwrap().saw(number, events);
        for name in lost {
            self.note(&format!("{name} lost"));
            self.count("nodes lost");
            let node = name.trim_start_matches("node-").parse().expect("nodes are numbered");
            if !self.truth.lock().unwrap().may_be_lost(node) {
                self.wrong(format!("I9: {name} is called unreachable though it need not be"));
            }
        }
    }

    /// A member had to come back because the others called it down.
    pub(crate) fn rejoined(&self, number: usize) {
        self.count("rejoined gossip");
        if !self.truth.lock().unwrap().all_fine(Duration::from_secs(10)) || !self.all_connected() {
            return;
        }
        self.count("rejoined gossip though all was well");
        // Measured: once in 12 member-hours at 20 % loss. Twice in a minute is another thing.
        let mut rejoined = self.rejoined.lock().unwrap();
        *rejoined += 1;
        if *rejoined == 2 {
            self.wrong(format!("I9: gossip drives out members that run; now node {number}"));
        }
    }

    pub(crate) fn machine<T>(&self, number: usize, look: impl FnOnce(&mut Machine) -> T) -> T {
        look(&mut self.machines[number].lock().unwrap())
    }

    /// I13, when a container starts.
    pub(crate) fn start_container(
        &self,
        number: usize,
        uid: &str,
        name: &str,
        attempt: Attempt,
        now: Timestamp,
    ) -> Result<(), String> {
        let bound = self.history.lock().unwrap().model.node_of(uid).map(str::to_owned);
        if bound.as_deref() != Some(&*node_name(number)) {
            self.wrong(format!("I13: node {number} starts {uid}, which is bound to {bound:?}"));
        }
        let started = self.machine(number, |machine| machine.start(uid, name, attempt, now));
        self.note(&format!("node {number} starts {uid} {name} {attempt:?}: {started:?}"));
        self.count(if started.is_ok() { "containers started" } else { "starts refused" });
        started
    }

    /// I15, when a container ends.
    pub(crate) fn end_container(
        &self,
        number: usize,
        uid: &str,
        name: &str,
        attempt: Attempt,
        code: i32,
    ) -> Option<ContainerState> {
        self.check_unwanted(number, uid);
        let now = self.slots[number].lock().unwrap().clock.wall();
        self.note(&format!("node {number} ends {uid} {name} {attempt:?}"));
        self.machine(number, |machine| machine.end(uid, name, attempt, code, now))
    }

    pub(crate) fn remove_sandbox(&self, number: usize, uid: &str) {
        self.check_unwanted(number, uid);
        self.machine(number, |machine| machine.remove_sandbox(uid));
    }

    fn check_unwanted(&self, number: usize, uid: &str) {
        let wanted = self.history.lock().unwrap().model.wants(uid, &node_name(number));
        if wanted && self.machine(number, |machine| machine.runs(uid)) {
            self.wrong(format!("I15: node {number} stops {uid}, which is wanted there"));
        }
    }

    /// Asks as a task of the node's process: whoever asks a node that is killed never hears of it again.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        number: usize,
        ask: impl FnOnce(Site) -> futures::future::BoxFuture<'static, T>,
    ) -> Asked<T> {
        let (process, site) = {
            let slot = self.slots[number].lock().unwrap();
            let site = slot.running.as_ref().map(|running| running.site.clone());
            (slot.process.clone(), site)
        };
        let (Some(process), Some(site)) = (process, site) else { return Asked::NotRunning };
        let asking = process.spawn(ask(site));
        match SimRt::timeout(Duration::from_secs(4), asking).await {
            Ok(Ok(answer)) => Asked::Answer(answer),
            Ok(Err(_)) | Err(_) => Asked::Lost,
        }
    }

    // What really happens.

    pub(crate) fn health(&self, number: usize) -> Health {
        let slot = self.slots[number].lock().unwrap();
        let (powered, paused, runs) = (slot.powered, slot.paused, slot.running.is_some());
        drop(slot);
        let others = (0..self.plan.nodes).filter(|other| *other != number);
        let reached = others.filter(|other| {
            self.air.passes_both_ways(number, *other) && self.slots[*other].lock().unwrap().running.is_some()
        });
        if !powered || reached.count() * 2 < self.plan.nodes - 1 {
            Health::Off
        } else if !runs {
            Health::NoDaemon
        } else if paused {
            Health::Paused
        } else {
            Health::Fine
        }
    }

    pub(crate) fn all_connected(&self) -> bool {
        (0..self.plan.nodes).all(|a| (0..a).all(|b| self.air.passes_both_ways(a, b)))
    }

    fn leader(&self) -> Option<usize> {
        let leads = |number: usize| {
            let metrics = self.site(number)?.store.metrics();
            metrics.leads().then_some((metrics.term, number))
        };
        (0..self.plan.nodes).filter_map(leads).max().map(|(_, number)| number)
    }

    // Faults.

    async fn break_things(self: &Arc<Self>, until: Now) {
        let began = Now::now();
        for fault in self.plan.faults() {
            SimRt::sleep_until(began + fault.at).await;
            self.begin(fault);
        }
        SimRt::sleep_until(until).await;
    }

    /// Whether one more node may be taken down: a majority is mostly up.
    fn may_take(&self, number: usize) -> bool {
        let is_down = |number: &usize| {
            let slot = self.slots[*number].lock().unwrap();
            slot.running.is_none() || slot.paused || slot.disk.is_broken()
        };
        let down = (0..self.plan.nodes).filter(is_down).count();
        !is_down(&number) && down < (self.plan.nodes - 1) / 2
    }

    fn begin(self: &Arc<Self>, fault: Fault) {
        self.note(&format!("{fault:?}"));
        let victim = |victim| match victim {
            Victim::Node(number) => Some(number),
            Victim::Leader => self.leader(),
        };
        match fault.kind {
            Kind::Kill(which) => {
                let Some(number) = victim(which).filter(|number| self.may_take(*number)) else { return };
                self.count("kills");
                self.kill(number);
                self.afterwards(fault.lasts, move |world| world.start(number));
            }
            Kind::Power(which) => {
                let Some(number) = victim(which).filter(|number| self.may_take(*number)) else { return };
                self.power_off(number);
                self.afterwards(fault.lasts, move |world| world.power_on(number));
            }
            Kind::AllOff => {
                self.count("all off");
                for number in 0..self.plan.nodes {
                    self.power_off(number);
                    let lasts = fault.lasts + Duration::from_millis(90 * number as u64);
                    self.afterwards(lasts, move |world| world.power_on(number));
                }
            }
            Kind::Pause(which) => {
                let Some(number) = victim(which).filter(|number| self.may_take(*number)) else { return };
                self.pause(number, fault.lasts);
            }
            Kind::PauseUnseen(number) => {
                let Some(leader) = self.leader().filter(|leader| *leader != number) else { return };
                if self.may_take(number) {
                    self.pause(number, fault.lasts);
                    self.cut([(leader, number), (number, leader)].into(), fault.lasts);
                }
            }
            Kind::CutPair { from, to, both } => {
                self.count("pairs cut");
                let mut cut = BTreeSet::from([(from, to)]);
                if both {
                    cut.insert((to, from));
                }
                self.cut(cut, fault.lasts);
            }
            Kind::Isolate { victim: which, hears, is_heard } => {
                let Some(number) = victim(which) else { return };
                self.count("isolations");
                let mut cut = BTreeSet::new();
                for other in (0..self.plan.nodes).filter(|other| *other != number) {
                    if !hears {
                        cut.insert((other, number));
                    }
                    if !is_heard {
                        cut.insert((number, other));
                    }
                }
                self.cut(cut, fault.lasts);
            }
            Kind::Loss(loss) => {
                self.count("loss");
                self.set_weather(Weather { loss, ..Weather::LAN });
                self.afterwards(fault.lasts, |world| world.set_weather(Weather::LAN));
            }
            Kind::Delay(longest) => {
                self.count("delay");
                let delay = (longest / 2, longest);
                self.set_weather(Weather { delay, loss: 0.0 });
                self.afterwards(fault.lasts, |world| world.set_weather(Weather::LAN));
            }
            Kind::SlowDisk { node, longest } => {
                self.count("slow disks");
                self.slow_disk(node, longest, fault.lasts);
            }
            Kind::Leave(number) => {
                if self.leader() != Some(number) && self.leaving.lock().unwrap().is_empty() {
                    self.leave(number);
                    self.afterwards(fault.lasts, move |world| world.join_again(number));
                }
            }
            Kind::FailingDisk { node, writes } => {
                if self.may_take(node) {
                    self.count(if self.leader() == Some(node) {
                        "a leader's disk failed"
                    } else {
                        "disks failed"
                    });
                    let broken = if writes { Broken::Writes } else { Broken::Syncs };
                    self.slots[node].lock().unwrap().disk.set_broken(Some(broken));
                    self.afterwards(fault.lasts, move |world| {
                        world.mend_disk(node);
                        world.start(node);
                    });
                }
            }
            Kind::ClockJump { node, hours } => {
                self.count("clocks jumped");
                let clock = self.slots[node].lock().unwrap().clock.clone();
                let by_ms = hours * 3_600_000;
                clock.jump(by_ms);
                self.afterwards(fault.lasts, move |_| clock.jump(-by_ms));
            }
            Kind::Duplicates(share) => {
                self.count("duplicates");
                self.air.set_duplicates(share);
                self.afterwards(fault.lasts, |world| world.air.set_duplicates(0.0));
            }
            Kind::SlowDisks(longest) => {
                (0..self.plan.nodes).for_each(|node| self.slow_disk(node, longest, fault.lasts));
            }
        }
    }

    /// Undoes a fault after a while, unless everything was healed before.
    fn afterwards(self: &Arc<Self>, lasts: Duration, undo: impl FnOnce(&Arc<World>) + Send + 'static) {
        let world = self.clone();
        drop(SimRt::spawn(async move {
            SimRt::sleep(lasts).await;
            if !world.healed.load(Ordering::Relaxed) {
                undo(&world);
            }
        }));
    }

    fn pause(self: &Arc<Self>, number: usize, lasts: Duration) {
        let mut slot = self.slots[number].lock().unwrap();
        let Some(process) = slot.process.clone() else { return };
        slot.paused = true;
        let generation = slot.generation;
        drop(slot);
        self.count("pauses");
        process.pause();
        self.afterwards(lasts, move |world| {
            let mut slot = world.slots[number].lock().unwrap();
            if slot.generation == generation {
                slot.paused = false;
            }
            drop(slot);
            process.resume();
        });
    }

    fn cut(self: &Arc<Self>, directions: BTreeSet<(usize, usize)>, lasts: Duration) {
        for (from, to) in &directions {
            self.air.cut(*from, *to);
            self.network.cut(voter_id(*from), voter_id(*to));
        }
        self.afterwards(lasts, move |world| {
            for (from, to) in directions {
                if world.air.mend(from, to) {
                    world.network.heal(voter_id(from), voter_id(to));
                }
            }
        });
    }

    fn set_weather(&self, weather: Weather) {
        self.air.set_weather(weather);
        self.network.set_weather(weather);
    }

    fn slow_disk(self: &Arc<Self>, number: usize, longest: Duration, lasts: Duration) {
        self.set_sync_time(number, longest / 4, longest);
        self.afterwards(lasts, move |world| world.set_sync_time(number, SYNC_MIN, SYNC_MAX));
    }

    fn set_sync_time(&self, number: usize, shortest: Duration, longest: Duration) {
        self.slots[number].lock().unwrap().disk.set_sync_time(shortest, longest);
    }

    fn has_broken_disk(&self, number: usize) -> bool {
        self.slots[number].lock().unwrap().disk.is_broken()
    }

    /// What one process could not write, only another one may try again.
    fn mend_disk(&self, number: usize) {
        self.slots[number].lock().unwrap().disk.set_broken(None);
        self.kill(number);
    }

    // The second phase.

    async fn heal(self: &Arc<Self>) {
        self.healed.store(true, Ordering::Relaxed);
        self.air.clear();
        self.network.heal_all();
        self.set_weather(Weather::LAN);
        for number in 0..self.plan.nodes {
            self.join_again(number);
            self.set_sync_time(number, SYNC_MIN, SYNC_MAX);
            if self.has_broken_disk(number) {
                self.mend_disk(number);
            }
            let mut slot = self.slots[number].lock().unwrap();
            slot.paused = false;
            let process = slot.process.clone();
            drop(slot);
            if let Some(process) = process {
                process.resume();
            }
            self.power_on(number);
        }
        let began = Now::now();
        let healed = async {
            for number in 0..self.plan.nodes {
                let value = format!("{{\"last\":{number}}}");
                let key = "core/configmaps/default/last";
                let written = || clients::write(self, number, key.into(), Expect::Any, value.clone());
                while !matches!(written().await, Some(What::Write { outcome: Outcome::Done(_), .. })) {
                    SimRt::sleep(Duration::from_millis(20)).await;
                }
            }
            while self.unwell().is_some() {
                SimRt::sleep(Duration::from_millis(50)).await;
            }
        };
        match SimRt::timeout(HEALED_WITHIN, healed).await {
            Ok(()) => {
                let took_ms = began.elapsed().as_millis() as u64;
                self.counts.lock().unwrap().insert("ms to heal", took_ms);
            }
            Err(_) => self.wrong(format!("not well {HEALED_WITHIN:?} after all faults: {:?}", self.unwell())),
        }
    }

    /// What is not as it should be when nothing is broken.
    fn unwell(&self) -> Option<String> {
        let mut sites = Vec::new();
        for number in 0..self.plan.nodes {
            match self.site(number) {
                Some(site) => sites.push(site),
                None => return Some(format!("node {number} does not run")),
            }
        }
        let voters = sites[0].store.metrics().voters.len();
        let wanted = skein_control::voters::target(self.plan.nodes);
        if voters != wanted {
            return Some(format!("{voters} nodes vote, and {wanted} should"));
        }
        self.states_differ(&sites)
            .or_else(|| sites.iter().find_map(|site| self.suspects(site)))
            .or_else(|| self.pods_amiss(&sites[0]))
    }

    fn states_differ(&self, sites: &[Site]) -> Option<String> {
        let revisions: Vec<u64> = sites.iter().map(|site| site.picture.revision()).collect();
        let states: Vec<_> = sites.iter().map(|site| site.store.state()).collect();
        if states
            .iter()
            .zip(&revisions)
            .any(|(state, seen)| state.revision() != *seen || *seen != revisions[0])
        {
            return Some(format!("the replicas are at {revisions:?}"));
        }
        let digests: BTreeSet<_> = states.iter().map(|state| state.digest()).collect();
        if digests.len() > 1 {
            // No time heals this.
            self.wrong(format!("I2: at revision {} the states differ: {digests:?}", revisions[0]));
        }
        None
    }

    fn suspects(&self, site: &Site) -> Option<String> {
        let members = site.members.lock().unwrap();
        let fine = |number: &usize| {
            members.get(&node_id(*number)).is_some_and(|member| member.state == State::Alive)
        };
        let suspect = (0..self.plan.nodes).find(|number| !fine(number))?;
        let seen = members.get(&node_id(suspect)).map(|member| member.state);
        Some(format!("node {} believes node {suspect} {seen:?}", site.number))
    }

    /// Every Deployment has its pods, each runs where it is bound, and nothing else runs.
    fn pods_amiss(&self, site: &Site) -> Option<String> {
        let view = site.picture.view();
        for number in 0..self.plan.nodes {
            let name = node_name(number);
            if view.named::<k8s_openapi::api::core::v1::Node>("", &name).is_none() {
                return Some(format!("{name} has no object"));
            }
            if watch::is_marked(&view, &name) {
                return Some(format!("{name} is still called unreachable"));
            }
            let running: BTreeSet<String> =
                self.machine(number, |machine| machine.running()).into_iter().collect();
            let bound: BTreeSet<String> =
                view.pods_on(&name).filter_map(|(_, pod)| pod.metadata.uid.clone()).collect();
            if running != bound {
                return Some(format!("on {name} run {running:?}, and {bound:?} should"));
            }
        }
        if let Some((key, _)) = view.unbound().next() {
            return Some(format!("{key} has no node"));
        }
        for (key, deployment) in view.all::<Deployment>() {
            let wanted = deployment.spec.replicas.unwrap_or(1);
            let app = deployment.metadata.name.as_deref().unwrap_or_default();
            let is_ours = |pod: &Pod| {
                let labels = pod.metadata.labels.as_ref();
                labels.and_then(|labels| labels.get("app")).is_some_and(|label| label == app)
            };
            let have = view.all::<Pod>().filter(|(_, pod)| is_ours(pod)).count() as i32;
            let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
            if have != wanted || ready != wanted {
                return Some(format!("{key} wants {wanted} pods, has {have}, {ready} ready"));
            }
        }
        None
    }

    fn outcomes(&self, is_over: bool) -> Outcomes {
        let history = self.history.lock().unwrap();
        let mut trace = *self.trace.lock().unwrap();
        for Event { revision, key, value, previous, stamp_ms } in history.events.values() {
            let numbers = [*revision, *stamp_ms, value.is_some().into(), previous.is_some().into()];
            trace = numbers.iter().fold(trace, |crc, number| crc32c_append(crc, &number.to_le_bytes()));
            for bytes in [key.as_bytes()].into_iter().chain(value.as_deref()).chain(previous.as_deref()) {
                trace = crc32c_append(trace, bytes);
            }
        }
        let mut counts = self.counts.lock().unwrap().clone();
        counts.extend(take_seen());
        counts.insert("terms", self.truth.lock().unwrap().terms());
        counts.insert("revisions", history.revision());
        Outcomes { wrong: history.check(is_over), counts, trace, lasted: self.began.elapsed() }
    }
}
