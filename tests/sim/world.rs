//! The nodes, what they run on, and the course of a run.

mod ending;
mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crc32c::crc32c_append;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use jiff::Timestamp;
use openraft::AsyncRuntime;
use openraft::async_runtime::{Instant as _, Select2};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skein_control::judge::Answer;
use skein_control::node::authority::{Fingerprint, Kept};
use skein_control::node_health::Verdict;
use skein_control::pod::{Attempt, ContainerState};
use skein_net::address_book::{AddressBook, Pages};
use skein_net::gossip::Member;
use skein_net::identity::NodeId;
use skein_net::tls::Standing;
use skein_raft_store::sim::{
    Mutation as StoreMutation, Process, SimNetwork, SimRt, Weather, start, take_seen,
};
use skein_raft_store::sim_files::SimDisk;
use skein_raft_store::{Change, ClusterTag, Compaction, Config, Event, Expect, Handle, Op, Options, VoterId};

use crate::air::{Air, Letter, NoRoute, Post, carry};
use crate::clock::Clock;
use crate::history::History;
use crate::lan::Lan;
use crate::machine::Machine;
use crate::picture::{self, Picture};
use crate::plan::{Aim, Mutation, Plan};
use crate::truth::{self, Health, Truth};
use crate::watch::{self, Watch};
use crate::{agent, authorities, clients, departures, gossip, joining, members, panics, planner};

pub(crate) type Store = Handle<SimRt>;
pub(crate) type Now = <SimRt as AsyncRuntime>::Instant;

const SYNC_MIN: Duration = Duration::from_micros(200);
const SYNC_MAX: Duration = Duration::from_millis(2);
const WRITERS: usize = 3;
/// So little that each run takes and installs snapshots, and a node that was away for some seconds has missed events
/// that nobody keeps.
const SMALL: Compaction =
    Compaction { every_entries: 100, keep_entries: 30, every_bytes: 256 << 10, keep_bytes: 64 << 10 };
const RING_EVENTS: usize = 250;
/// After minutes without any other fault a machine has so many pods that replacing them, which is one command, would
/// pass that ring on all nodes at once. A daemon's ring is larger than any command.
const RING_EVENTS_OF_LONG_RUNS: usize = 2000;
/// What a daemon does before it ends takes so long.
const STOPS_WITHIN: Duration = Duration::from_millis(200);
/// An address book is written down at most so often.
const ADDRESSES_EVERY: Duration = Duration::from_secs(5);
/// Whoever is called and does not answer is given up.
const UNREACHED_AFTER: Duration = Duration::from_secs(1);
/// So long an answer is waited for.
const CALL_MAX: Duration = Duration::from_secs(10);
/// Nothing is taken of whoever was removed so long ago.
const DEAD_WITHIN: Duration = Duration::from_secs(1);
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
    pub(crate) lan: Lan,
    pub(crate) history: Mutex<History>,
    pub(crate) truth: Mutex<Truth>,
    network: SimNetwork<SimRt>,
    slots: Vec<Mutex<Slot>>,
    machines: Vec<Mutex<Machine>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    trace: Mutex<u32>,
    healed: AtomicBool,
    rejoined: Mutex<u32>,
    /// Nodes that found out that they are no members any more.
    pub(crate) outs: UnboundedSender<(usize, NodeId)>,
    /// How many editions of the authorities were made.
    editions: Mutex<u64>,
    /// Machines that never come back.
    gone: Mutex<BTreeSet<usize>>,
    /// Daemons that were asked to stop, and have not been started since.
    stopped: Mutex<BTreeSet<usize>>,
    /// Until then something goes on that nobody sees from outside, like a slow disk.
    troubled_until: Mutex<Now>,
    /// What happens is printed as well: for whoever looks for the cause of a violation.
    shows: bool,
    began: Now,
}

/// One machine: what stays when its daemon ends.
struct Slot {
    disk: SimDisk,
    /// As how many nodes it has joined: each time with a key of its own.
    lives: u8,
    /// It has the directory of a member, or of one that does not know yet that it is none any more.
    is_inside: bool,
    /// How many stores it has had in this life, the present one included.
    stores: u8,
    /// The authorities on its disk.
    kept: Kept,
    /// What the address book was when it was last written down.
    book: Pages,
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
    /// Who it is in this life of its machine.
    pub(crate) id: NodeId,
    pub(crate) generation: u64,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) picture: Picture,
    pub(crate) book: AddressBook,
    pub(crate) members: Arc<Mutex<BTreeMap<NodeId, Member>>>,
    pub(crate) verdicts: Arc<Mutex<BTreeMap<String, Verdict>>>,
    pub(crate) needs: Arc<Mutex<departures::Needs>>,
    /// Tells this node that others refuse it for good.
    dismissed: UnboundedSender<()>,
}

pub(crate) enum Asked<T> {
    Answer(T),
    NotRunning,
    /// The node died, or took too long.
    Lost,
}

/// Who a machine is the `nth` time it joins, from 1 on.
pub(crate) fn node_id(number: usize, nth: u8) -> NodeId {
    let mut id = [number as u8 + 1; 16];
    id[15] = nth;
    NodeId(id)
}

pub(crate) fn number_of(node: NodeId) -> usize {
    usize::from(node.0[0]) - 1
}

/// The `nth` store of a node, from 1 on.
pub(crate) fn voter_id(node: NodeId, nth: u8) -> VoterId {
    VoterId { node: node.0, store: [nth; 8] }
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
    let lan = Lan::new(plan.nodes);
    let slots = (0..plan.nodes).map(|number| {
        let disk = SimDisk::new(plan.seed ^ (number as u64) << 32);
        disk.set_sync_time(SYNC_MIN, SYNC_MAX);
        let clock = Clock::draw(began, &mut chance);
        Mutex::new(Slot {
            disk,
            lives: 0,
            is_inside: false,
            stores: 1,
            kept: Kept::default(),
            book: Pages::default(),
            clock,
            generation: 0,
            powered: true,
            paused: false,
            process: None,
            running: None,
        })
    });
    let (outs, are_out) = unbounded();
    let world = Arc::new(World {
        plan,
        air,
        lan,
        history: Mutex::default(),
        truth: Mutex::default(),
        network: SimNetwork::new(Weather::LAN),
        slots: slots.collect(),
        machines: (0..plan.nodes).map(|_| Mutex::default()).collect(),
        counts: Mutex::default(),
        trace: Mutex::default(),
        healed: AtomicBool::new(false),
        rejoined: Mutex::default(),
        outs,
        editions: Mutex::default(),
        gone: Mutex::default(),
        stopped: Mutex::default(),
        troubled_until: Mutex::new(began),
        shows: std::env::var_os("SKEIN_SHOW").is_some(),
        began,
    });
    drop(SimRt::spawn(carry(world.clone(), sent)));
    drop(SimRt::spawn(departures::see_out(world.clone(), are_out)));
    drop(SimRt::spawn(departures::look_after_the_forgotten(world.clone())));
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

impl Site {
    /// Waits until the picture shows all that was answered by anybody before; `None` without a quorum.
    pub(crate) async fn catch_up(&self, limit: Duration) -> Option<()> {
        let revision = self.store.read_index(limit).await.ok()?;
        self.picture.reach(revision).await;
        Some(())
    }
}

/// Writes the address book down, seldom, as a daemon does. What a power cut takes is what came since.
async fn keep_addresses(site: Site) {
    loop {
        let pages = site.book.pages();
        site.world.slots[site.number].lock().unwrap().book = pages;
        SimRt::sleep(ADDRESSES_EVERY).await;
    }
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

    /// What is wrong for a while is said when it begins.
    pub(crate) fn wrong_once(&self, what: String) {
        let mut history = self.history.lock().unwrap();
        if history.said.insert(what.clone()) {
            drop(history);
            self.wrong(what);
        }
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

    /// Whether the time of faults is over.
    pub(crate) fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    pub(crate) fn site(&self, number: usize) -> Option<Site> {
        self.slots[number].lock().unwrap().running.as_ref().map(|running| running.site.clone())
    }

    // Who is a member.

    /// Machines that are members, by all that was committed.
    pub(crate) fn members(&self) -> BTreeSet<usize> {
        self.history.lock().unwrap().members().map(number_of).collect()
    }

    pub(crate) fn is_member(&self, number: usize) -> bool {
        self.history.lock().unwrap().members().any(|node| number_of(node) == number)
    }

    /// Who a machine is now, or was last.
    pub(crate) fn id(&self, number: usize) -> NodeId {
        node_id(number, self.slots[number].lock().unwrap().lives)
    }

    /// Who founded the cluster.
    fn founder(&self) -> NodeId {
        node_id(0, 1)
    }

    /// Who it will be when it joins.
    pub(crate) fn next_id(&self, number: usize) -> NodeId {
        node_id(number, self.slots[number].lock().unwrap().lives + 1)
    }

    pub(crate) fn is_paused(&self, number: usize) -> bool {
        self.slots[number].lock().unwrap().paused
    }

    pub(crate) fn is_powered(&self, number: usize) -> bool {
        self.slots[number].lock().unwrap().powered
    }

    pub(crate) fn is_gone(&self, number: usize) -> bool {
        self.gone.lock().unwrap().contains(&number)
    }

    /// Those that are there, or will be again.
    fn present(&self) -> Vec<usize> {
        (0..self.plan.nodes).filter(|number| !self.is_gone(*number)).collect()
    }

    /// The store that a node has now.
    pub(crate) fn voter_of(&self, number: usize) -> VoterId {
        let slot = self.slots[number].lock().unwrap();
        voter_id(node_id(number, slot.lives), slot.stores)
    }

    /// Whether a machine's vote is gone with its store, or with the node that it was: its present one does not vote yet.
    fn has_lost_vote(&self, number: usize) -> bool {
        let (own, truth) = (self.voter_of(number), self.truth.lock().unwrap());
        truth.voters().any(|voter| number_of_voter(voter) == number && *voter != own)
    }

    // Formation, start and end of nodes.

    /// The first one founds the cluster, the others join it, and its planner makes voters.
    async fn form(self: &Arc<Self>) {
        self.settle_in(0, self.next_id(0), Pages::default());
        let now_ms = self.slots[0].lock().unwrap().clock.wall_ms();
        let authorities = authorities::edition(self.next_edition(), now_ms);
        self.change_kept(0, |kept| kept.current = Some(authorities));
        let first = loop {
            if let Some(site) = self.site(0) {
                break site;
            }
            SimRt::sleep(Duration::from_millis(5)).await;
        };
        first.store.bootstrap().await.expect("an empty store");
        let record = members::record(first.id, self.lan.addresses(0).0);
        let change = Change::Put(record.to_bytes().into());
        let op = Op { key: members::key(first.id).into(), expect: Expect::Absent, change };
        first.store.propose(vec![op], Options::default()).await.expect("the founder writes");
        for number in 1..self.plan.nodes - self.plan.latecomers() {
            joining::join(self.clone(), number, false).await;
        }
        let formed = async {
            while self.unwell().is_some() {
                SimRt::sleep(Duration::from_millis(50)).await;
            }
        };
        if SimRt::timeout(Duration::from_secs(30), formed).await.is_err() {
            self.wrong(format!("did not form: {:?}, {:#?}", self.unwell(), first.store.metrics()));
        }
    }

    /// A machine has been let in, and begins a life as a node.
    pub(crate) fn settle_in(self: &Arc<Self>, number: usize, id: NodeId, told: Pages) {
        let mut slot = self.slots[number].lock().unwrap();
        slot.lives += 1;
        slot.stores = 1;
        slot.is_inside = true;
        slot.book = told;
        if slot.lives > 1 {
            self.new_disk(&mut slot, number);
        }
        drop(slot);
        // Cables are cut, whatever runs at their ends.
        for (from, to) in self.air.cuts().into_iter().filter(|(from, to)| [*from, *to].contains(&number)) {
            let id_of = |end| voter_id(if end == number { id } else { self.id(end) }, 1);
            self.network.cut(id_of(from), id_of(to));
        }
        self.start(number);
    }

    /// A node is no member any more, and knows it: what runs on its machine ends, and its directory goes.
    /// Whether it was that until now.
    pub(crate) fn out(&self, number: usize, id: NodeId) -> bool {
        if self.id(number) != id || !self.slots[number].lock().unwrap().is_inside {
            return false;
        }
        self.note(&format!("node {number} is out"));
        self.kill(number);
        self.empty(number);
        true
    }

    /// Nothing of what a machine had is left.
    fn empty(&self, number: usize) {
        self.machine(number, |machine| *machine = Machine::default());
        let mut slot = self.slots[number].lock().unwrap();
        slot.is_inside = false;
        slot.kept = Kept::default();
    }

    /// The authorities on a machine's disk.
    pub(crate) fn kept(&self, number: usize) -> Kept {
        self.slots[number].lock().unwrap().kept.clone()
    }

    pub(crate) fn change_kept(&self, number: usize, change: impl FnOnce(&mut Kept)) {
        change(&mut self.slots[number].lock().unwrap().kept);
    }

    pub(crate) fn next_edition(&self) -> u64 {
        let mut editions = self.editions.lock().unwrap();
        *editions += 1;
        *editions
    }

    /// Members on whose disks an edition of the authorities lies; machines that never come back do not count.
    pub(crate) fn holding(&self, edition: &Fingerprint) -> BTreeSet<NodeId> {
        let members: Vec<NodeId> = self.history.lock().unwrap().members().collect();
        let holds = |node: &NodeId| {
            let number = number_of(*node);
            let slot = self.slots[number].lock().unwrap();
            let mut kept = slot.kept.current.iter().chain(&slot.kept.next);
            let is_there = slot.is_inside && node_id(number, slot.lives) == *node;
            is_there && kept.any(|kept| kept.fingerprint == *edition)
        };
        members.into_iter().filter(holds).filter(|node| !self.is_gone(number_of(*node))).collect()
    }

    fn new_disk(&self, slot: &mut Slot, number: usize) {
        let seed = self.plan.seed ^ u64::from(slot.stores) << 24 ^ u64::from(slot.lives) << 16;
        slot.disk = SimDisk::new(seed ^ (number as u64) << 32);
        slot.disk.set_sync_time(SYNC_MIN, SYNC_MAX);
    }

    fn start(self: &Arc<Self>, number: usize) {
        let mut slot = self.slots[number].lock().unwrap();
        if slot.process.is_some() || !slot.powered || !slot.is_inside {
            return;
        }
        slot.generation += 1;
        slot.paused = false;
        self.stopped.lock().unwrap().remove(&number);
        self.lan.note_start(number);
        let generation = slot.generation;
        let clock = slot.clock.clone();
        let store_clock = clock.clone();
        let process = Process::new(format!("node {number}, start {generation}"));
        slot.process = Some(process.clone());
        let id = node_id(number, slot.lives);
        let voter = voter_id(id, slot.stores);
        let (transport, mut incoming) = self.network.connect(voter);
        let files = slot.disk.files::<SimRt>();
        drop(slot);
        let mut config = Config::new(voter, ClusterTag::default(), generation);
        config.compaction = SMALL;
        config.ring.events_max = match self.plan.aim {
            Aim::LossesForGood => RING_EVENTS_OF_LONG_RUNS,
            _ => RING_EVENTS,
        };
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
            let book = AddressBook::new(world.slots[number].lock().unwrap().book.clone());
            store.introduce(book.nodes().into_iter().map(|node| node.0).collect());
            let (members, verdicts, needs) = Default::default();
            let store_of_site = store.clone();
            let (dismissed, is_dismissed) = unbounded();
            let site = Site {
                world: world.clone(),
                number,
                id,
                generation,
                clock,
                store: store_of_site,
                picture,
                book,
                members,
                verdicts,
                needs,
                dismissed,
            };
            let mut chance =
                StdRng::seed_from_u64(world.plan.seed ^ (number as u64 + 1) << 40 ^ generation << 48);
            let (gossip, gossiped) = unbounded();
            let (watch, watched) = unbounded();
            drop(SimRt::spawn(picture::follow(site.clone())));
            drop(SimRt::spawn(keep_addresses(site.clone())));
            drop(SimRt::spawn(gossip::run(site.clone(), chance.random(), gossiped)));
            drop(SimRt::spawn(Watch::new(site.clone(), watched, watch.clone()).run()));
            drop(SimRt::spawn(planner::run(site.clone(), chance.random())));
            drop(SimRt::spawn(planner::choose_voters(site.clone())));
            drop(SimRt::spawn(planner::name_store(site.clone())));
            drop(SimRt::spawn(agent::run(site.clone(), chance.random())));
            drop(SimRt::spawn(authorities::keep(site.clone())));
            drop(SimRt::spawn(departures::follow(site.clone(), gossip.clone(), is_dismissed)));
            world.slots[number].lock().unwrap().running = Some(Running { site: site.clone(), gossip, watch });
            while let Some((from, lane, pipe)) = incoming.next().await {
                if !world.admits(&site, NodeId(from)) {
                    continue;
                }
                let store = store.clone();
                drop(SimRt::spawn(async move { store.serve(from, lane, pipe).await }));
            }
        }));
    }

    /// SIGTERM: the daemon hands over what it leads, and says that it restarts.
    fn stop(self: &Arc<Self>, number: usize) {
        let Some(process) = self.slots[number].lock().unwrap().process.clone() else { return };
        let Some(site) = self.site(number) else { return };
        self.count("stops");
        self.stopped.lock().unwrap().insert(number);
        let world = self.clone();
        drop(process.spawn(async move {
            if site.store.metrics().leads() {
                site.store.transfer_leader(None).await;
            }
            let leader = site.store.metrics().leader.map(|leader| NodeId(leader.node));
            if let Some(leader) = leader.filter(|leader| *leader != site.id) {
                world.air.send(site.id, leader, Post::Restarting);
            }
        }));
        let (world, generation) = (self.clone(), self.slots[number].lock().unwrap().generation);
        drop(SimRt::spawn(async move {
            SimRt::sleep(STOPS_WITHIN).await;
            if world.slots[number].lock().unwrap().generation == generation {
                world.kill(number);
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
        if self.is_gone(number) {
            return;
        }
        self.slots[number].lock().unwrap().powered = true;
        self.start(number);
    }

    // What nodes do to each other and to their machines.

    /// Whether a node lets another one speak to it. One that it knows to be removed is told so: by the end of the
    /// handshake, if that gets back.
    fn admits(&self, site: &Site, from: NodeId) -> bool {
        if self.plan.mutation == Some(Mutation::RemovedAdmitted)
            || site.picture.standing(from) != Standing::Removed
        {
            return true;
        }
        self.count("removed nodes refused");
        let number = number_of(from);
        if self.air.passes_both_ways(site.number, number)
            && let Some(refused) = self.site(number).filter(|refused| refused.id == from)
        {
            // It may know already, and be ending.
            let _ = refused.dismissed.unbounded_send(());
        }
        false
    }

    pub(crate) fn deliver(&self, letter: Letter) {
        let slot = self.slots[number_of(letter.to)].lock().unwrap();
        let Some(running) = slot.running.clone() else { return };
        drop(slot);
        let from = letter.from;
        if running.site.id != letter.to || !self.admits(&running.site, from) {
            return;
        }
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
            Post::Restarting => running.watch.unbounded_send(watch::In::Announced { from }).is_ok(),
        };
    }

    /// What the kernel at an address answers, and after how long.
    pub(crate) fn try_kernel(
        &self,
        from: usize,
        api: SocketAddr,
    ) -> Result<(Option<Answer>, Duration), NoRoute> {
        if !self.lan.has_route(api) {
            return Err(NoRoute);
        }
        let Some(to) = self.lan.holder(api) else { return Ok((None, Duration::MAX)) };
        let (connected, echoed, time) = self.air.try_kernel(from, to);
        let slot = self.slots[to].lock().unwrap();
        let answer = match (slot.powered, slot.running.is_some()) {
            (false, _) => None,
            (true, true) if connected => Some(Answer::Accepts),
            (true, false) if connected => Some(Answer::Refused),
            (true, _) => echoed.then_some(Answer::Echo),
        };
        Ok((answer, time))
    }

    /// Takes what a node's watch delivered.
    pub(crate) fn saw(&self, number: usize, events: &[Event]) {
        let now = self.elapsed();
        let mut history = self.history.lock().unwrap();
        history.now = now;
        let lost = history.saw(number, events);
        let news = std::mem::take(&mut history.news);
        drop(history);
        news.iter().for_each(|news| self.note(news));
        for name in lost {
            self.note(&format!("{name} lost"));
            self.count("nodes lost");
            let node = name.trim_start_matches("node-").parse().expect("nodes are numbered");
            if !self.truth.lock().unwrap().may_be_lost(node) {
                self.wrong(format!("I9: {name} is called unreachable though it need not be"));
            }
        }
    }

    /// I24: a write that began at `begin` was taken from a node.
    pub(crate) fn wrote(&self, by: Option<NodeId>, begin: u64) {
        let Some(node) = by else { return };
        if self
            .history
            .lock()
            .unwrap()
            .was_removed_by(node, begin.saturating_sub(DEAD_WITHIN.as_nanos() as u64))
        {
            self.wrong(format!("I24: node {} wrote, and was removed before", number_of(node)));
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
        self.ask_for(number, Duration::from_secs(4), ask).await
    }

    /// The same with a limit of its own.
    pub(crate) async fn ask_for<T: Send + 'static>(
        &self,
        number: usize,
        limit: Duration,
        ask: impl FnOnce(Site) -> futures::future::BoxFuture<'static, T>,
    ) -> Asked<T> {
        let (process, site) = {
            let slot = self.slots[number].lock().unwrap();
            let site = slot.running.as_ref().map(|running| running.site.clone());
            (slot.process.clone(), site)
        };
        let (Some(process), Some(site)) = (process, site) else { return Asked::NotRunning };
        let asking = process.spawn(ask(site));
        match SimRt::timeout(limit, asking).await {
            Ok(Ok(answer)) => Asked::Answer(answer),
            Ok(Err(_)) | Err(_) => Asked::Lost,
        }
    }

    /// Asks over the network, from one machine to a node. `None` if it is not reached, or its answer is lost.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        from: usize,
        to: NodeId,
        ask: impl FnOnce(Site) -> futures::future::BoxFuture<'static, T>,
    ) -> Option<T> {
        let number = number_of(to);
        let passes = || from == number || self.air.passes_both_ways(from, number);
        let is_there = || self.site(number).is_some_and(|site| site.id == to);
        SimRt::sleep(self.air.rtt() / 2).await;
        if !passes() || !is_there() {
            SimRt::sleep(UNREACHED_AFTER).await;
            return None;
        }
        let Asked::Answer(answer) = self.ask_for(number, CALL_MAX, ask).await else { return None };
        SimRt::sleep(self.air.rtt() / 2).await;
        passes().then_some(answer)
    }

    // What really happens.

    pub(crate) fn health(&self, number: usize) -> Health {
        let slot = self.slots[number].lock().unwrap();
        let (powered, paused, runs) = (slot.powered, slot.paused, slot.running.is_some());
        drop(slot);
        let mut others = self.members();
        if !others.remove(&number) {
            return Health::Outside;
        }
        others.retain(|other| !self.is_gone(*other));
        let reached = others.iter().filter(|other| {
            self.air.passes_both_ways(number, **other)
                && self.slots[**other].lock().unwrap().running.is_some()
        });
        // Of two neither reaches more than the other: only whose own cable is out is cut off.
        let is_reached = match self.plan.aim {
            Aim::Pair => self.air.is_plugged(number),
            _ => reached.count() * 2 >= others.len(),
        };
        if !powered || !is_reached {
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
        self.office().map(|(_, number)| number)
    }

    /// Who leads, and in which term.
    pub(crate) fn office(&self) -> Option<(u64, usize)> {
        let leads = |number: usize| {
            let metrics = self.site(number)?.store.metrics();
            metrics.leads().then_some((metrics.term, number))
        };
        (0..self.plan.nodes).filter_map(leads).max()
    }

    /// Whether a node's daemon was asked to stop, and has not been started since.
    pub(crate) fn was_stopped(&self, number: usize) -> bool {
        self.stopped.lock().unwrap().contains(&number)
    }

    /// Whether nothing goes on that only slows everything down.
    pub(crate) fn is_untroubled(&self) -> bool {
        Now::now() >= *self.troubled_until.lock().unwrap()
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
        counts.insert("revisions unseen", history.unseen());
        Outcomes { wrong: history.check(is_over), counts, trace, lasted: self.began.elapsed() }
    }
}
