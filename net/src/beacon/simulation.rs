//! Cores on one simulated link in virtual time, with real words: who finds whom, how soon, and how much is
//! said about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng, rngs::SmallRng};

use super::{
    codec::{Message, Said, Word},
    core::{Core, Effect, Input, Tuning},
};
use crate::{
    gossip::core::Instant,
    identity::{Identity, NodeId},
    incarnation::Tag,
    loopback,
};

const OURS: Tag = loopback::tag(7, 1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

struct Machine {
    identity: Identity,
    core: Core,
    address: SocketAddr,
    generation: u64,
    is_on: bool,
    wake_at: Option<Instant>,
    /// Where it believes the others to be.
    book: BTreeMap<NodeId, SocketAddr>,
    missing: BTreeSet<NodeId>,
}

/// A link, what is under way on it, and the machines.
struct Air {
    machines: Vec<Machine>,
    now: Instant,
    under_way: Vec<(Instant, usize, SocketAddr, Vec<u8>)>,
    rng: SmallRng,
    /// Percent.
    loss: u32,
    asked: usize,
    answered: usize,
    dialled: usize,
    strangers: Vec<(NodeId, SocketAddr)>,
}

fn at(number: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::try_from(number).unwrap()], 7946))
}

impl Air {
    /// `count` machines that are on and know of each other, none where the others believe it to be.
    fn new(count: usize, seed: u64) -> Air {
        let machines = (0..count).map(Machine::new).collect();
        let mut air = Air {
            machines,
            now: Instant(0),
            under_way: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
            loss: 0,
            asked: 0,
            answered: 0,
            dialled: 0,
            strangers: Vec::new(),
        };
        for number in 0..count {
            air.restart(number);
        }
        air
    }

    /// The machine begins anew and has nobody.
    fn restart(&mut self, number: usize) {
        let all: BTreeSet<NodeId> = self.machines.iter().map(|machine| machine.identity.node()).collect();
        let seed = self.rng.random();
        let machine = &mut self.machines[number];
        machine.is_on = true;
        machine.generation += 1;
        machine.core = Core::new(machine.identity.node(), OURS, Tuning::default(), seed);
        machine.wake_at = None;
        machine.missing = all;
        machine.missing.remove(&machine.identity.node());
        self.tell_members(number);
    }

    fn tell_members(&mut self, number: usize) {
        let known: BTreeSet<NodeId> = self.machines.iter().map(|machine| machine.identity.node()).collect();
        let missing = self.machines[number].missing.clone();
        self.give(number, Input::Members { known, missing });
    }

    fn give(&mut self, number: usize, input: Input<'_>) {
        let mut effects = Vec::new();
        self.machines[number].core.handle(self.now, input, &mut effects);
        for effect in effects {
            self.perform(number, effect);
        }
    }

    fn perform(&mut self, number: usize, effect: Effect) {
        match effect {
            Effect::WakeAt(at) => self.machines[number].wake_at = Some(at),
            Effect::Ask { count, wanted } => {
                self.asked += 1;
                let word = self.machines[number].word(count, true, wanted);
                for other in 0..self.machines.len() {
                    self.send(number, other, word.clone());
                }
            }
            Effect::Answer { to, count } => {
                self.answered += 1;
                let word = self.machines[number].word(count, false, Vec::new());
                if let Some(other) = self.machines.iter().position(|machine| machine.address == to) {
                    self.send(number, other, word);
                }
            }
            Effect::Learn { node, addresses, is_missing } => {
                self.machines[number].book.insert(node, addresses[0]);
                if is_missing {
                    self.dialled += 1;
                    self.dial(number, node, addresses[0]);
                }
            }
            Effect::Stranger { node, from } => self.strangers.push((node, from)),
            Effect::Here { .. } | Effect::Mine { .. } | Effect::Seen { .. } => {}
        }
    }

    /// Who is found finds back: a connection has two ends.
    fn dial(&mut self, number: usize, node: NodeId, address: SocketAddr) {
        let found = self.machines.iter().position(|machine| {
            machine.is_on && machine.address == address && machine.identity.node() == node
        });
        let Some(found) = found else { return };
        let caller = self.machines[number].identity.node();
        for (one, other) in [(number, node), (found, caller)] {
            if self.machines[one].missing.remove(&other) {
                self.tell_members(one);
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        if self.rng.random_range(0..100) >= self.loss {
            let arrives = self.now + Duration::from_millis(self.rng.random_range(1..5));
            self.under_way.push((arrives, to, self.machines[from].address, bytes));
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let wakes = self.machines.iter().filter(|machine| machine.is_on).filter_map(|one| one.wake_at);
            let arrivals = self.under_way.iter().map(|(at, ..)| *at);
            let Some(next) = wakes.chain(arrivals).min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            let now = self.now;
            for (_, to, from, bytes) in
                self.under_way.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>()
            {
                if self.machines[to].is_on {
                    self.give(to, Input::Datagram { from, bytes: &bytes });
                }
            }
            for number in 0..self.machines.len() {
                let machine = &mut self.machines[number];
                if machine.is_on && machine.wake_at.is_some_and(|at| at <= now) {
                    machine.wake_at = None;
                    self.give(number, Input::Woken);
                }
            }
        }
        self.now = end;
    }

    fn is_whole(&self) -> bool {
        self.machines.iter().filter(|machine| machine.is_on).all(|machine| machine.missing.is_empty())
    }

    fn said(&self) -> usize {
        self.asked + self.answered
    }
}

impl Machine {
    fn new(number: usize) -> Machine {
        let identity = Identity::ephemeral().unwrap();
        Machine {
            core: Core::new(identity.node(), OURS, Tuning::default(), 0),
            identity,
            address: at(number),
            generation: 0,
            is_on: true,
            wake_at: None,
            book: BTreeMap::new(),
            missing: BTreeSet::new(),
        }
    }

    fn word(&self, count: u32, asks: bool, wanted: Vec<[u8; 4]>) -> Vec<u8> {
        let said = Said { generation: self.generation, count, asks, wanted, addresses: vec![self.address] };
        Message::Word(Word::sign(&self.identity, &OURS, [1; 16], said).unwrap()).encode()
    }
}

#[test]
fn machines_that_all_moved_find_each_other_within_a_second_and_then_are_silent() {
    for seed in 0..20 {
        let mut air = Air::new(5, seed);
        air.run(SECOND);
        assert!(air.is_whole(), "seed {seed}");
        let said = air.said();
        air.run(60 * MINUTE);
        assert_eq!(air.said(), said, "a whole cluster has nothing to say");
    }
}

#[test]
fn a_loss_of_half_of_all_datagrams_only_takes_longer() {
    for seed in 0..20 {
        let mut air = Air::new(5, seed);
        air.loss = 50;
        air.run(15 * SECOND);
        assert!(air.is_whole(), "seed {seed}");
    }
}

#[test]
fn whoever_wakes_last_asks_first_however_long_the_others_have_waited() {
    let mut air = Air::new(3, 1);
    air.machines[2].is_on = false;
    air.run(600 * MINUTE);
    assert!(!air.is_whole());
    air.machines[2].address = at(77);
    air.restart(2);
    air.run(SECOND);
    assert!(air.is_whole());
}

#[test]
fn a_member_that_is_gone_for_good_costs_a_question_a_minute_and_no_answer() {
    let mut air = Air::new(10, 2);
    air.machines[9].is_on = false;
    air.run(10 * MINUTE);
    let (asked, answered) = (air.asked, air.answered);
    air.run(60 * MINUTE);
    let hourly = (air.asked - asked) / 9;
    assert!((45..=75).contains(&hourly), "{hourly} an hour");
    assert_eq!(air.answered, answered, "it was named, and nobody else feels asked");
}

#[test]
fn a_machine_that_moves_tells_all_before_anybody_misses_it() {
    let mut air = Air::new(4, 3);
    air.run(10 * SECOND);
    assert!(air.is_whole());
    air.machines[1].address = at(50);
    air.give(1, Input::Moved);
    air.run(SECOND);
    let moved = air.machines[1].identity.node();
    for number in [0, 2, 3] {
        assert_eq!(air.machines[number].book[&moved], at(50));
    }
    let said = air.said();
    air.run(60 * MINUTE);
    assert_eq!(air.said(), said);
}

#[test]
fn only_newer_signed_words_of_members_are_believed() {
    let mut air = Air::new(2, 4);
    let (one, other) = (air.machines[0].identity.node(), air.machines[1].identity.node());
    let learned = |air: &mut Air, bytes: &[u8], from| {
        air.now = air.now + SECOND;
        let mut effects = Vec::new();
        air.machines[0].core.handle(air.now, Input::Datagram { from, bytes }, &mut effects);
        effects.retain(|effect| !matches!(effect, Effect::WakeAt(_)));
        effects
    };
    let old = air.machines[1].word(1, true, Vec::new());
    let new = air.machines[1].word(2, true, Vec::new());
    let seen = learned(&mut air, &new, at(1));
    assert!(
        matches!(&seen[..], [Effect::Answer { .. }, Effect::Learn { node, is_missing: true, .. }] if *node == other)
    );
    // Repeated, older, or not for everybody and not for this one.
    assert_eq!(learned(&mut air, &new, at(66)), []);
    assert_eq!(learned(&mut air, &old, at(66)), []);
    let named = air.machines[1].word(3, true, vec![[0xee; 4]]);
    assert!(matches!(&learned(&mut air, &named, at(1))[..], [Effect::Learn { .. }]));
    // Of a later start; then nothing of an earlier one counts, however high its number.
    air.machines[1].generation = 9;
    let restarted = air.machines[1].word(1, false, Vec::new());
    assert!(matches!(&learned(&mut air, &restarted, at(1))[..], [Effect::Learn { .. }]));
    air.machines[1].generation = 8;
    let rolled_back = air.machines[1].word(1000, true, Vec::new());
    assert_eq!(learned(&mut air, &rolled_back, at(1)), []);
    // Somebody who knows the cluster's id and is no member; and this node's own echo.
    let outsider = Machine::new(3).word(1, true, Vec::new());
    assert_eq!(learned(&mut air, &outsider, at(3)), []);
    let echo = air.machines[0].word(1000, true, Vec::new());
    assert_eq!(learned(&mut air, &echo, at(0)), []);
    assert_ne!(one, other);
}

#[test]
fn an_attempt_to_connect_is_made_once_a_second_however_often_a_member_speaks() {
    let mut air = Air::new(2, 5);
    let mut attempts = 0;
    for count in 1..=200 {
        air.now = air.now + Duration::from_millis(10);
        let bytes = air.machines[1].word(count, true, Vec::new());
        let mut effects = Vec::new();
        // From where nobody is: it stays missing.
        air.machines[0].core.handle(air.now, Input::Datagram { from: at(66), bytes: &bytes }, &mut effects);
        attempts +=
            effects.iter().filter(|effect| matches!(effect, Effect::Learn { is_missing: true, .. })).count();
        air.answered += effects.iter().filter(|effect| matches!(effect, Effect::Answer { .. })).count();
    }
    assert_eq!(attempts, 2, "in two seconds");
    assert_eq!(air.answered, 10, "five a second");
}

#[test]
fn a_node_of_another_cluster_is_told_of_once_an_hour_and_nothing_else() {
    let mut air = Air::new(1, 6);
    let other = Machine::new(9);
    let foreign = |count| {
        let said = Said { generation: 1, count, asks: true, ..Said::default() };
        let word = Word::sign(&other.identity, &loopback::tag(8, 1), [3; 16], said).unwrap();
        Message::Word(word).encode()
    };
    for count in 1..=100 {
        air.now = air.now + SECOND;
        let bytes = foreign(count);
        air.give(0, Input::Datagram { from: at(9), bytes: &bytes });
    }
    assert_eq!(air.strangers, [(other.identity.node(), at(9))]);
    assert_eq!(air.said(), 0);
    air.now = air.now + 60 * MINUTE;
    let bytes = foreign(101);
    air.give(0, Input::Datagram { from: at(9), bytes: &bytes });
    assert_eq!(air.strangers.len(), 2);
}

/// The cluster was recovered while it was off: it is to hear so, and from then on to be left alone.
#[test]
fn a_missing_member_of_another_incarnation_is_looked_for_and_not_answered() {
    let mut air = Air::new(2, 8);
    let (member, address) = (air.machines[1].identity.node(), air.machines[1].address);
    let older = |air: &Air, count| {
        let said = Said { generation: 7, count, asks: true, ..Said::default() };
        let word = Word::sign(&air.machines[1].identity, &loopback::tag(7, 0), [3; 16], said).unwrap();
        Message::Word(word).encode()
    };
    let hear = |air: &mut Air, bytes: &[u8]| {
        let mut effects = Vec::new();
        air.machines[0].core.handle(air.now, Input::Datagram { from: address, bytes }, &mut effects);
        effects
    };
    let bytes = older(&air, 1);
    let looks = Effect::Learn { node: member, addresses: vec![address], is_missing: true };
    assert_eq!(hear(&mut air, &bytes), [looks]);
    let bytes = older(&air, 2);
    assert_eq!(hear(&mut air, &bytes), [], "at most once a second");
    air.machines[0].missing.clear();
    air.tell_members(0);
    air.now = air.now + 10 * SECOND;
    let bytes = older(&air, 3);
    assert_eq!(hear(&mut air, &bytes), [], "who is not missing is not looked for");
}

#[test]
fn a_flood_of_questions_is_answered_a_few_times_a_second() {
    let mut air = Air::new(1, 7);
    let ask = Message::Anyone { nonce: [5; 16] }.encode();
    let mut answers = Vec::new();
    for _ in 0..10_000 {
        air.now = air.now + Duration::from_millis(1);
        air.machines[0].core.handle(air.now, Input::Datagram { from: at(1), bytes: &ask }, &mut answers);
    }
    assert!(answers.iter().all(|effect| *effect == Effect::Here { to: at(1), nonce: [5; 16] }));
    assert!((100..=120).contains(&answers.len()), "{} in ten seconds", answers.len());
}
