//! What one run is made of: drawn from its seed before it begins, so that it can be read, replayed and
//! made shorter.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skein_control::node::departure::Cause;
use skein_control::voters::SPARE_UP_MIN;

use crate::lan::Lease;

/// From one machine lost for good to the next, where nothing else goes wrong.
pub(crate) const LOSS_EVERY: Duration = Duration::from_secs(60);

/// So that a short run has one with all of its consequences.
const FIRST_OUTAGE: Duration = Duration::from_secs(3);

/// A bug that is put back, to see that the checks notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// The judge takes one observer's word for everybody's.
    OneObserver,
    /// It never judges a node that it has not heard in its office and that nobody can probe.
    NeverHeardForgotten,
    /// Plans are committed whatever has changed since they were made.
    UnconditionalPlan,
    /// Nobody minds that a member was removed, itself included.
    RemovedAdmitted,
    /// A voter that makes the majority is removed at once as any other.
    CriticalVotersGo,
    /// The leader takes it that every voter holds the authorities, and lets the last one that does go.
    HoldersNotAsked,
    /// The leader plans no departures.
    WishesForgotten,
    /// Nobody decides about a machine that was a member before.
    ClaimsNotDecided,
    /// A voter whose node has another store, or that no record knows, is let go as if it had left.
    AbsenceIsLeaving,
    /// Gossip tells members that refuted in time that they are down.
    NoGossipGuard,
    /// One of the store's own.
    Store(skein_raft_store::sim::Mutation),
}

/// Which faults a run draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    Nothing,
    Everything,
    /// A stopped daemon whose machine the leader alone cannot reach.
    OneBlindObserver,
    /// Old leaders with plans under way: cut off, with slow disks around them.
    LeadersAtWork,
    /// One packet in five, all the time.
    Loss,
    /// Power cuts of all at once, on disks so slow that each has something to lose.
    PowerCuts,
    /// Nodes alone for so long that the log they miss is gone when they are back.
    LongAbsence,
    /// Stores emptied under their daemons, one after another.
    LostStores,
    /// Pairs that do not reach each other, for so long that a leader gives way.
    LongPairCuts,
    /// Everything goes off, and one machine stays off for a while.
    Outages,
    /// Daemons that are asked to stop, and machines that are then switched off.
    Stops,
    /// What happens to two nodes beside a router, of which one votes.
    Pair,
    /// Machines that come, go, are thrown out and replaced.
    Members,
    /// One voter is off, and both that do not lead are thrown out at the same moment.
    VotersRemoved,
    /// Leaders that leave while what they keep is long on its way to the others.
    KeysOnTheWay,
    /// Machines lost for good, one after another, until two are left. In a cluster with spares they have been there
    /// for long enough to be trusted.
    LossesForGood,
}

impl Aim {
    pub(crate) const ALL: [Aim; 16] = {
        use Aim::*;
        [
            Nothing,
            Everything,
            OneBlindObserver,
            LeadersAtWork,
            Loss,
            PowerCuts,
            LongAbsence,
            LostStores,
            LongPairCuts,
            Outages,
            Stops,
            Pair,
            Members,
            VotersRemoved,
            KeysOnTheWay,
            LossesForGood,
        ]
    };
}

/// One fault: when it begins, how long it lasts, what it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
    pub(crate) kind: Kind,
}

/// Nodes are numbers; [`Victim::Leader`] is whoever leads when the fault begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Node(usize),
    Leader,
    /// One that does not lead, the next after this one.
    Follower(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// SIGKILL of the daemon; it starts again afterwards. Its pods live on.
    Kill(Victim),
    /// Power off, and on afterwards.
    Power(Victim),
    AllOff,
    /// The same, and one machine comes back long after the others; the router may give out other addresses.
    Outage {
        absent: Victim,
        late: Duration,
        lease: Lease,
    },
    /// SIGTERM of the daemon, which starts again afterwards; its machine may be switched off after a while.
    Stop {
        victim: Victim,
        off_after: Option<Duration>,
    },
    /// A cable is out: nothing reaches the machine, nor it the router.
    Unplug(Victim),
    /// The router answers nobody.
    RouterDown,
    /// SIGSTOP of the daemon, SIGCONT afterwards.
    Pause(Victim),
    /// The same, and the leader does not reach its machine.
    PauseUnseen(usize),
    /// Nothing passes from one to the other, or between both.
    CutPair {
        from: usize,
        to: usize,
        both: bool,
    },
    Isolate {
        victim: Victim,
        hears: bool,
        is_heard: bool,
    },
    Loss(f64),
    Delay(Duration),
    SlowDisk {
        node: usize,
        longest: Duration,
    },
    SlowDisks(Duration),
    /// Every sync ends with EIO, or every write as well. Afterwards somebody mends the disk and starts the daemon
    /// anew.
    FailingDisk {
        node: usize,
        writes: bool,
    },
    /// Its daemon is killed, and what lay in its store is gone when it starts again: it has another one.
    LostStore(Victim),
    /// So many bytes a second for entries, snapshots and events, on each pipe.
    SlowLinks {
        rate: u64,
    },
    /// Only small packets pass from the leader to this node.
    Narrow {
        to: usize,
    },
    /// Somebody writes much, with such a pause after each write.
    Burst {
        pause: Duration,
    },
    /// Its wall clock is set to another time, and right again afterwards.
    ClockJump {
        node: usize,
        hours: i64,
    },
    /// This share of the datagrams comes twice, up to two seconds apart.
    Duplicates(f64),
    /// Somebody wants a member to go, or does until then. Its machine comes back as another one when it has gone.
    Depart {
        victim: Victim,
        cause: Cause,
        regrets_after: Option<Duration>,
    },
    /// A machine is off, and after a while its membership is ended. It is on again afterwards.
    RemoveDead {
        victim: Victim,
        after: Duration,
        cause: Cause,
    },
    /// A machine goes off with all that it has, and takes its own place again with an empty disk.
    Reinstall(Victim),
    /// Somebody wants the authorities made anew, with an overlap or none.
    Rotate {
        overlap_ms: Option<u64>,
    },
    /// One that was never there joins.
    Join(usize),
    /// Power off for good: nobody repairs it, and nobody says so to the cluster.
    Gone(Victim),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) aim: Aim,
    pub(crate) faults_for: Duration,
    pub(crate) mutation: Option<Mutation>,
}

fn draw_lease(chance: &mut StdRng) -> Lease {
    [Lease::Kept, Lease::Dealt, Lease::Moved][chance.random_range(0..3)]
}

fn draw_regret(chance: &mut StdRng) -> Option<Duration> {
    chance.random_bool(0.2).then(|| Duration::from_millis(chance.random_range(0..2000)))
}

fn draw_removal(node: usize, chance: &mut StdRng) -> Kind {
    let after = Duration::from_millis(chance.random_range(0..6000));
    let cause = if chance.random_bool(0.7) { Cause::Removal } else { Cause::RemovalNow };
    Kind::RemoveDead { victim: Victim::Node(node), after, cause }
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Plan {
        let nodes = if seed.is_multiple_of(3) { 5 } else { 3 };
        let faults_for = Duration::from_secs(60);
        Plan { seed, nodes, aim: Aim::Everything, faults_for, mutation: None }
    }

    /// The faults in the order of time.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = self.frequent();
        if self.aim == Aim::Everything {
            faults.extend((0..14).filter_map(|which| self.rare(which)));
        }
        faults.extend(self.joins());
        faults.sort_by_key(|fault| fault.at);
        faults
    }

    /// How many machines are not there from the beginning.
    pub(crate) fn latecomers(&self) -> usize {
        let mut chance = StdRng::seed_from_u64(self.seed ^ 0x1a << 56);
        let some = matches!(self.aim, Aim::Everything | Aim::Members) && chance.random_bool(0.3);
        if some { self.nodes / 2 } else { 0 }
    }

    fn joins(&self) -> impl Iterator<Item = Fault> {
        let mut chance = StdRng::seed_from_u64(self.seed ^ 0x1b << 56);
        let (late, faults_for) = (self.nodes - self.latecomers()..self.nodes, self.faults_for);
        late.map(move |number| {
            let at = faults_for.mul_f64(chance.random_range(0.02..0.5));
            Fault { at, lasts: Duration::from_secs(3), kind: Kind::Join(number) }
        })
    }

    /// What most runs do without. Each has draws of its own: the other faults of a seed do not depend on it.
    fn rare(&self, which: u64) -> Option<Fault> {
        let mut chance = StdRng::seed_from_u64(self.seed ^ (0x01 + which) << 56);
        if !chance.random_bool(0.3) {
            return None;
        }
        let at = self.faults_for.mul_f64(chance.random_range(0.1..0.8));
        let lasts = Duration::from_millis(chance.random_range(1000..20_000));
        let node = chance.random_range(0..self.nodes);
        let kind = match which {
            0 => Kind::FailingDisk { node, writes: chance.random_bool(0.5) },
            1 => {
                let hours = if chance.random_bool(0.3) { 10 * 365 * 24 } else { 1 };
                let back = chance.random_bool(0.5);
                Kind::ClockJump { node, hours: if back { -hours } else { hours } }
            }
            2 => Kind::Duplicates(chance.random_range(0.02..0.3)),
            4 => Kind::LostStore(Victim::Node(node)),
            5 => Kind::SlowLinks { rate: chance.random_range(10_000..200_000) },
            6 => Kind::Narrow { to: node },
            7 => Kind::Burst { pause: Duration::from_millis(chance.random_range(5..30)) },
            8 => Kind::Outage { absent: Victim::Node(node), late: lasts, lease: draw_lease(&mut chance) },
            9 => {
                let off_after =
                    chance.random_bool(0.5).then(|| Duration::from_millis(chance.random_range(0..4000)));
                Kind::Stop { victim: Victim::Node(node), off_after }
            }
            10 => Kind::Depart {
                victim: Victim::Node(node),
                cause: if chance.random_bool(0.5) { Cause::Removal } else { Cause::RemovalNow },
                regrets_after: None,
            },
            11 => draw_removal(node, &mut chance),
            12 => Kind::Reinstall(Victim::Node(node)),
            13 => Kind::Rotate { overlap_ms: chance.random_bool(0.5).then_some(20_000) },
            // Of three, the two others could lose nobody else.
            _ if self.nodes < 5 => return None,
            _ => Kind::Gone(Victim::Node(node)),
        };
        Some(Fault { at, lasts, kind })
    }

    fn frequent(&self) -> Vec<Fault> {
        let mut chance = StdRng::seed_from_u64(self.seed ^ 0xfau64 << 56);
        let mut at = Duration::ZERO;
        let mut faults = Vec::new();
        loop {
            let pause = match self.aim {
                Aim::Nothing => return faults,
                Aim::Everything => 300..4000,
                Aim::OneBlindObserver => 8000..12_000,
                Aim::LeadersAtWork | Aim::PowerCuts => 1000..3000,
                Aim::LongAbsence => 7000..9000,
                Aim::LostStores => 5000..9000,
                Aim::Members => 2000..7000,
                Aim::VotersRemoved => 13_000..15_000,
                Aim::KeysOnTheWay => 1000..6000,
                Aim::Outages => 24_000..26_000,
                Aim::Stops => 12_000..14_000,
                Aim::Pair => 16_000..20_000,
                Aim::LongPairCuts => 13_000..15_000,
                Aim::Loss => {
                    let kind = Kind::Loss(0.2);
                    return vec![Fault { at, lasts: self.faults_for, kind }];
                }
                Aim::LossesForGood => return self.losses_for_good(&mut chance),
            };
            at += Duration::from_millis(chance.random_range(pause));
            if self.aim == Aim::Outages && faults.is_empty() {
                at = FIRST_OUTAGE;
            }
            if at >= self.faults_for {
                return faults;
            }
            self.draw(at, &mut chance, &mut faults);
        }
    }

    fn losses_for_good(&self, chance: &mut StdRng) -> Vec<Fault> {
        let spares = self.nodes > skein_control::voters::target(self.nodes);
        let first = if spares { SPARE_UP_MIN + LOSS_EVERY } else { Duration::ZERO };
        let lasts = Duration::ZERO;
        (1..self.nodes as u32 - 1)
            .map(|nth| {
                let leads = chance.random_bool(0.5);
                let victim =
                    if leads { Victim::Leader } else { Victim::Node(chance.random_range(0..self.nodes)) };
                Fault { at: first + LOSS_EVERY * nth, lasts, kind: Kind::Gone(victim) }
            })
            .collect()
    }

    fn draw(&self, at: Duration, chance: &mut StdRng, faults: &mut Vec<Fault>) {
        let node = chance.random_range(0..self.nodes);
        let other = (node + chance.random_range(1..self.nodes)) % self.nodes;
        let victim = if chance.random_bool(0.4) { Victim::Leader } else { Victim::Node(node) };
        let mut lasts = Duration::from_millis(chance.random_range(200..6000));
        let kind = match self.aim {
            Aim::Nothing | Aim::Loss | Aim::LossesForGood => return,
            Aim::OneBlindObserver => {
                lasts = Duration::from_secs(7);
                Kind::PauseUnseen(node)
            }
            Aim::LeadersAtWork => {
                let slow = Duration::from_millis(chance.random_range(50..250));
                faults.push(Fault { at, lasts, kind: Kind::SlowDisks(slow) });
                lasts = Duration::from_millis(chance.random_range(1000..3000));
                Kind::Isolate { victim: Victim::Leader, hears: false, is_heard: false }
            }
            Aim::PowerCuts => {
                let slow = Duration::from_millis(chance.random_range(5..60));
                faults.push(Fault { at, lasts: Duration::from_secs(60), kind: Kind::SlowDisks(slow) });
                lasts = Duration::from_millis(chance.random_range(0..500));
                Kind::AllOff
            }
            Aim::LongAbsence => {
                lasts = Duration::from_secs(6);
                Kind::Isolate { victim: Victim::Node(node), hears: false, is_heard: false }
            }
            Aim::LostStores => {
                lasts = Duration::from_millis(chance.random_range(100..3000));
                Kind::LostStore(victim)
            }
            Aim::Members => match chance.random_range(0..8) {
                0..3 => Kind::Depart { victim, cause: Cause::Leave, regrets_after: draw_regret(chance) },
                3 => Kind::Depart { victim, cause: Cause::Removal, regrets_after: None },
                4 => Kind::Depart { victim, cause: Cause::RemovalNow, regrets_after: None },
                5 => {
                    lasts = Duration::from_millis(chance.random_range(3000..12_000));
                    draw_removal(node, chance)
                }
                6 => {
                    lasts = Duration::from_millis(chance.random_range(500..12_000));
                    Kind::Reinstall(victim)
                }
                _ => {
                    lasts = Duration::from_millis(chance.random_range(100..3500));
                    Kind::Kill(victim)
                }
            },
            Aim::VotersRemoved => {
                let later = at + Duration::from_secs(4);
                for number in 0..self.nodes {
                    let at = later + Duration::from_millis(chance.random_range(0..20));
                    let (victim, cause) = (Victim::Follower(number), Cause::RemovalNow);
                    let kind = Kind::Depart { victim, cause, regrets_after: None };
                    faults.push(Fault { at, lasts: Duration::from_secs(5), kind });
                }
                lasts = Duration::from_secs(9);
                Kind::Power(Victim::Follower(node))
            }
            Aim::KeysOnTheWay => {
                let overlap_ms = chance.random_bool(0.5).then_some(20_000);
                faults.push(Fault { at, lasts, kind: Kind::Rotate { overlap_ms } });
                let at = at + Duration::from_millis(chance.random_range(0..3000));
                let kind = Kind::Depart { victim: Victim::Leader, cause: Cause::Leave, regrets_after: None };
                return faults.push(Fault { at, lasts, kind });
            }
            Aim::Outages => {
                lasts = Duration::from_millis(chance.random_range(200..1500));
                let late = Duration::from_secs(20);
                Kind::Outage { absent: victim, late, lease: draw_lease(chance) }
            }
            Aim::Stops => {
                lasts = Duration::from_secs(10);
                let off_after = chance.random_bool(0.7);
                let off_after = off_after.then(|| Duration::from_millis(chance.random_range(0..2500)));
                Kind::Stop { victim: Victim::Follower(node), off_after }
            }
            Aim::Pair => {
                lasts = Duration::from_secs(12);
                let follower = Victim::Follower(node);
                match chance.random_range(0..6) {
                    0 | 1 => Kind::Power(follower),
                    2 => Kind::Outage { absent: follower, late: lasts, lease: draw_lease(chance) },
                    3 => Kind::Unplug(Victim::Leader),
                    4 => Kind::Unplug(follower),
                    _ => {
                        faults.push(Fault { at, lasts, kind: Kind::RouterDown });
                        Kind::Power(follower)
                    }
                }
            }
            Aim::LongPairCuts => {
                lasts = Duration::from_secs(11);
                Kind::CutPair { from: node, to: other, both: chance.random_bool(0.5) }
            }
            Aim::Everything => match chance.random_range(0..16) {
                // Restarted by its supervisor before anybody may miss it, or long after.
                0 | 1 => {
                    if chance.random_bool(0.6) {
                        lasts = Duration::from_millis(chance.random_range(100..3500));
                    } else {
                        lasts = Duration::from_millis(chance.random_range(7000..15_000));
                    }
                    Kind::Kill(victim)
                }
                2 | 3 => {
                    lasts = Duration::from_millis(chance.random_range(500..12_000));
                    Kind::Power(victim)
                }
                4 | 5 => {
                    lasts = Duration::from_millis(chance.random_range(200..20_000));
                    Kind::Pause(victim)
                }
                6 | 7 => Kind::CutPair { from: node, to: other, both: chance.random_bool(0.5) },
                8 | 9 => {
                    let (hears, is_heard) =
                        [(true, false), (false, true), (false, false)][chance.random_range(0..3)];
                    if chance.random_bool(0.5) {
                        // An outage that moves no pod.
                        lasts = Duration::from_millis(chance.random_range(100..1800));
                    }
                    Kind::Isolate { victim, hears, is_heard }
                }
                10 => Kind::Loss(chance.random_range(0.02..0.2)),
                11 => Kind::Delay(Duration::from_millis(chance.random_range(5..250))),
                12 | 13 => {
                    let longest = Duration::from_millis(chance.random_range(20..3000));
                    Kind::SlowDisk { node, longest }
                }
                14 => Kind::Depart { victim, cause: Cause::Leave, regrets_after: draw_regret(chance) },
                _ if chance.random_bool(0.4) => {
                    lasts = Duration::from_millis(chance.random_range(0..3000));
                    Kind::AllOff
                }
                _ => Kind::PauseUnseen(node),
            },
        };
        faults.push(Fault { at, lasts, kind });
    }
}
