//! What breaks in a world, and how it is mended again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::Instant as _;
use rand::SeedableRng;
use rand::rngs::StdRng;
use skein_control::node::departure::Cause;
use skein_raft_store::sim::{SimRt, Weather};
use skein_raft_store::sim_files::Broken;

use super::{Asked, Now, SYNC_MAX, SYNC_MIN, World, number_of, number_of_voter};
use crate::plan::{Fault, Kind, Victim};
use crate::{authorities, clients, departures, joining};

/// Whether the machines and the network show to whoever looks that this goes on: then it is known what has to come in
/// time all the same.
fn shows_from_outside(kind: &Kind) -> bool {
    match kind {
        Kind::Kill(_) | Kind::Power(_) | Kind::AllOff | Kind::Outage { .. } | Kind::Gone(_) => true,
        Kind::Stop { .. } | Kind::Pause(_) | Kind::PauseUnseen(_) => true,
        Kind::CutPair { .. } | Kind::Isolate { .. } | Kind::Unplug(_) | Kind::RouterDown => true,
        Kind::Loss(_) | Kind::Delay(_) | Kind::ClockJump { .. } => true,
        Kind::SlowDisk { .. } | Kind::SlowDisks(_) | Kind::FailingDisk { .. } | Kind::LostStore(_) => false,
        Kind::SlowLinks { .. } | Kind::Narrow { .. } | Kind::Burst { .. } | Kind::Duplicates(_) => false,
        Kind::Rotate { .. }
        | Kind::Depart { .. }
        | Kind::RemoveDead { .. }
        | Kind::Reinstall(_)
        | Kind::Join(_) => false,
    }
}

impl World {
    pub(super) async fn break_things(self: &Arc<Self>, until: Now) {
        let began = Now::now();
        for fault in self.plan.faults() {
            SimRt::sleep_until(began + fault.at).await;
            self.begin(fault);
        }
        SimRt::sleep_until(until).await;
    }

    /// Whether one more node may be taken down: a majority is mostly up.
    fn may_take(&self, number: usize) -> bool {
        self.is_member(number) && !self.is_down(number) && self.down() < (self.plan.nodes - 1) / 2
    }

    /// Whether one may stay off while the others are there: a majority of those that vote is left.
    fn may_stay_off(&self, number: usize) -> bool {
        self.may_lose(number) && self.down() <= (self.plan.nodes - 1) / 2
    }

    /// Whether somebody else holds the authorities in force, and will.
    fn leaves_authorities(&self, number: usize) -> bool {
        let Some(trust) = self.history.lock().unwrap().trust.clone() else { return false };
        let voters: Vec<usize> = self.truth.lock().unwrap().voters().map(number_of_voter).collect();
        let holders = self.holding(&trust.current).into_iter().map(number_of);
        holders.filter(|holder| *holder != number && voters.contains(holder)).count() > 0
    }

    /// How many members are down.
    fn down(&self) -> usize {
        self.members().into_iter().filter(|number| self.is_down(*number)).count()
    }

    /// The first member from this one on that does not lead, while anybody does.
    fn follower(&self, number: usize) -> Option<usize> {
        let leader = self.leader()?;
        let others = (0..self.plan.nodes).map(|further| (number + further) % self.plan.nodes);
        others.into_iter().find(|number| *number != leader && self.is_member(*number))
    }

    /// Whether one more member may go: so many stay that the other faults find somebody.
    fn may_part(&self, number: usize) -> bool {
        let stay = self.history.lock().unwrap().staying();
        self.is_member(number) && stay > self.plan.nodes / 2
    }

    /// A running member other than this one: whoever looks for one asks there.
    fn bystander(&self, number: usize) -> Option<usize> {
        self.members().into_iter().find(|other| *other != number && !self.is_down(*other))
    }

    /// Nothing is expected to come in time for a while.
    fn trouble(&self, lasts: Duration) {
        let mut until = self.troubled_until.lock().unwrap();
        *until = (*until).max(Now::now() + lasts);
    }

    /// Whether one may go for good: a majority of those that vote now stays up.
    fn may_lose(&self, number: usize) -> bool {
        let Some(leader) = self.leader().and_then(|leader| self.site(leader)) else { return false };
        let voters = leader.store.metrics().voters;
        let left =
            voters.iter().map(number_of_voter).filter(|voter| *voter != number && !self.is_down(*voter));
        let has_majority = left.count() * 2 > voters.len();
        self.is_member(number) && !self.is_down(number) && has_majority && self.leaves_authorities(number)
    }

    fn is_down(&self, number: usize) -> bool {
        let lost_vote = self.has_lost_vote(number);
        let slot = self.slots[number].lock().unwrap();
        slot.running.is_none() || slot.paused || slot.disk.is_broken() || lost_vote
    }

    fn begin(self: &Arc<Self>, fault: Fault) {
        self.note(&format!("{fault:?}"));
        let victim = |victim| match victim {
            Victim::Node(number) => Some(number),
            Victim::Leader => self.leader(),
            Victim::Follower(number) => self.follower(number),
        };
        if !shows_from_outside(&fault.kind) {
            self.trouble(fault.lasts);
        }
        match fault.kind {
            Kind::Kill(which) => {
                let Some(number) = victim(which).filter(|number| self.may_take(*number)) else { return };
                self.count("kills");
                self.kill(number);
                self.afterwards(fault.lasts, move |world| world.start(number));
            }
            Kind::Power(which) => {
                // Of two, one may go as long as the other one votes.
                let may_take = |number: &usize| match self.plan.nodes {
                    2 => self.may_stay_off(*number),
                    _ => self.may_take(*number),
                };
                let Some(number) = victim(which).filter(may_take) else { return };
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
            Kind::Outage { absent, late, lease } => {
                let Some(absent) = victim(absent).filter(|number| self.may_stay_off(*number)) else { return };
                self.count("all off but one on");
                for number in 0..self.plan.nodes {
                    self.power_off(number);
                    let lasts = match number == absent {
                        true => fault.lasts + late,
                        false => fault.lasts + Duration::from_millis(90 * number as u64),
                    };
                    self.afterwards(lasts, move |world| world.power_on(number));
                }
                let mut chance = StdRng::seed_from_u64(self.plan.seed ^ fault.at.as_millis() as u64);
                self.lan.give_out(lease, &mut chance);
            }
            Kind::Stop { victim: which, off_after } => {
                let Some(number) = victim(which).filter(|number| self.may_stay_off(*number)) else { return };
                self.stop(number);
                if let Some(after) = off_after {
                    self.afterwards(after, move |world| world.power_off(number));
                }
                self.afterwards(fault.lasts, move |world| {
                    world.power_on(number);
                    world.start(number);
                });
            }
            Kind::Unplug(which) => {
                let Some(number) = victim(which) else { return };
                self.count(if self.leader() == Some(number) {
                    "leaders unplugged"
                } else {
                    "followers unplugged"
                });
                self.air.plug(number, false);
                let others = (0..self.plan.nodes).filter(|other| *other != number);
                let directions = others.flat_map(|other| [(number, other), (other, number)]);
                self.cut(directions.collect(), fault.lasts);
                self.afterwards(fault.lasts, move |world| world.air.plug(number, true));
            }
            Kind::RouterDown => {
                self.count("routers down");
                self.air.set_gateway(false);
                self.afterwards(fault.lasts, |world| world.air.set_gateway(true));
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
            Kind::Depart { victim: which, cause, regrets_after } => {
                let may = |number: &usize| self.may_part(*number) && !self.is_gone(*number);
                let Some(number) = victim(which).filter(may) else { return };
                let asker = match cause {
                    Cause::Leave => Some(number),
                    Cause::Removal | Cause::RemovalNow | Cause::Stolen => self.bystander(number),
                };
                let Some(asker) = asker else { return };
                if number == 0 && self.id(0) == self.founder() {
                    self.count("founders asked to go");
                }
                if self.leader() == Some(number) {
                    self.count("leaders asked to go");
                }
                let going = departures::let_go(self.clone(), asker, number, cause, regrets_after);
                drop(SimRt::spawn(going));
            }
            Kind::RemoveDead { victim: which, after, cause } => {
                let may = |number: &usize| self.may_part(*number) && self.may_stay_off(*number);
                let Some(number) = victim(which).filter(may) else { return };
                self.power_off(number);
                self.afterwards(after, move |world| {
                    let Some(asker) = world.bystander(number) else { return };
                    world.count("dead members to be removed");
                    drop(SimRt::spawn(departures::let_go(world.clone(), asker, number, cause, None)));
                });
                self.afterwards(fault.lasts, move |world| world.power_on(number));
            }
            Kind::Reinstall(which) => {
                let may = |number: &usize| self.may_part(*number) && self.may_stay_off(*number);
                let Some(number) = victim(which).filter(may) else { return };
                self.count("machines reinstalled");
                self.power_off(number);
                self.empty(number);
                let (world, until) = (self.clone(), Now::now() + fault.lasts);
                drop(SimRt::spawn(async move {
                    while Now::now() < until && !world.is_healed() {
                        SimRt::sleep(Duration::from_millis(100)).await;
                    }
                    world.power_on(number);
                    joining::join(world, number, true).await;
                }));
            }
            Kind::Rotate { overlap_ms } => {
                let Some(number) = self.bystander(self.plan.nodes) else { return };
                let world = self.clone();
                drop(SimRt::spawn(async move {
                    let asked =
                        world.ask(number, move |site| Box::pin(authorities::rotate(site, overlap_ms)));
                    if let Asked::Answer(true) = asked.await {
                        world.count("rotations asked for");
                    }
                }));
            }
            Kind::Join(number) => {
                self.count("latecomers");
                drop(SimRt::spawn(joining::join(self.clone(), number, false)));
            }
            Kind::Gone(which) => {
                let Some(number) = self.victim_for_good(which) else { return };
                self.count("machines gone");
                self.power_off(number);
                self.gone.lock().unwrap().insert(number);
            }
            Kind::LostStore(which) => {
                // The store of the only voter is all that there is.
                let may = |number: &usize| self.may_take(*number) && self.may_lose(*number);
                let Some(number) = victim(which).filter(may) else { return };
                self.count("stores lost");
                self.kill(number);
                let mut slot = self.slots[number].lock().unwrap();
                slot.stores += 1;
                self.new_disk(&mut slot, number);
                drop(slot);
                self.afterwards(fault.lasts, move |world| world.start(number));
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
            Kind::SlowLinks { rate } => {
                self.count("slow links");
                self.network.set_rate(Some(rate));
                self.afterwards(fault.lasts, |world| world.network.set_rate(None));
            }
            Kind::Narrow { to } => {
                let Some(leader) = self.leader().filter(|leader| *leader != to) else { return };
                self.count("narrow links");
                let (from, to) = (self.voter_of(leader), self.voter_of(to));
                self.network.set_narrow(from, to, true);
                self.afterwards(fault.lasts, move |world| world.network.set_narrow(from, to, false));
            }
            Kind::Burst { pause } => {
                self.count("bursts");
                drop(SimRt::spawn(clients::burst(self.clone(), pause, Now::now() + fault.lasts)));
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

    fn victim_for_good(&self, which: Victim) -> Option<usize> {
        let first = match which {
            Victim::Node(number) => number,
            Victim::Leader => self.leader()?,
            Victim::Follower(number) => self.follower(number)?,
        };
        // Whoever was drawn may be gone already.
        let others = (0..self.plan.nodes).map(|further| (first + further) % self.plan.nodes);
        others.into_iter().find(|number| self.may_lose(*number))
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
            self.network.cut(self.voter_of(*from), self.voter_of(*to));
        }
        self.afterwards(lasts, move |world| {
            for (from, to) in directions {
                if world.air.mend(from, to) {
                    world.network.heal(world.voter_of(from), world.voter_of(to));
                }
            }
        });
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.air.set_weather(weather);
        self.network.set_weather(weather);
    }

    fn slow_disk(self: &Arc<Self>, number: usize, longest: Duration, lasts: Duration) {
        self.set_sync_time(number, longest / 4, longest);
        self.afterwards(lasts, move |world| world.set_sync_time(number, SYNC_MIN, SYNC_MAX));
    }

    pub(super) fn set_sync_time(&self, number: usize, shortest: Duration, longest: Duration) {
        self.slots[number].lock().unwrap().disk.set_sync_time(shortest, longest);
    }

    pub(super) fn has_broken_disk(&self, number: usize) -> bool {
        self.slots[number].lock().unwrap().disk.is_broken()
    }

    /// What one process could not write, only another one may try again.
    pub(super) fn mend_disk(&self, number: usize) {
        self.slots[number].lock().unwrap().disk.set_broken(None);
        self.kill(number);
    }
}
