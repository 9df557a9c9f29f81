//! When to ask where the missing members are, whom to answer, and whom to believe: a pure state machine.
//!
//! No clock, no chance but the seed, no I/O, no key: datagrams come in as they were received, and what to
//! sign and send goes out as [`Effect`].
//!
//! A node speaks while it misses members, and when its own addresses changed; ever more seldom, so that a
//! member that is gone for good costs one small datagram a minute and link. A cluster that is whole is
//! silent. A word is believed only of a known member, only if it is signed, and only if it is newer than
//! the last one of that member: what an eavesdropper repeats or makes up can lead at worst to one vain
//! attempt to connect.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng, rngs::SmallRng};

use super::codec::{Message, Nonce, Said, Short, WANTED_MAX, Word, short};
use crate::{gossip::core::Instant, identity::NodeId, incarnation::Tag};

/// The beacon's constants. Where one follows from another part, that part is named.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// How long the addresses that are known are tried alone: ten handshakes on a local network.
    pub patience: Duration,
    /// The first pause between two questions; each following one is twice as long.
    pub pause_min: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// After a change of the own addresses: time for the next change of the same burst.
    pub settle: Duration,
    /// How often this node tells of its new addresses, since a datagram may get lost.
    pub announcements: u8,
    /// Pause between two answers to one member.
    pub answer_every: Duration,
    /// Pause between two attempts to connect to one missing member.
    pub found_every: Duration,
    /// How long nothing more is said of a node of another cluster.
    pub stranger_every: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            patience: Duration::from_millis(300),
            pause_min: Duration::from_millis(500),
            pause_max: Duration::from_secs(60),
            settle: Duration::from_millis(50),
            announcements: 2,
            answer_every: Duration::from_millis(200),
            found_every: Duration::from_secs(1),
            stranger_every: Duration::from_secs(3600),
        }
    }
}

/// Nodes of other clusters that are remembered, so that each is told of once in a while only.
const STRANGERS_MAX: usize = 64;

/// What can happen.
#[derive(Debug)]
pub(super) enum Input<'a> {
    /// Who is a member, and who of them is not there.
    Members { known: BTreeSet<NodeId>, missing: BTreeSet<NodeId> },
    /// This machine has other addresses or links than before.
    Moved,
    /// A datagram came.
    Datagram { from: SocketAddr, bytes: &'a [u8] },
    /// The moment asked for by [`Effect::WakeAt`] came.
    Woken,
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Sign a question and send it on every link and to every name.
    Ask { count: u32, wanted: Vec<Short> },
    /// Sign an answer and send it there.
    Answer { to: SocketAddr, count: u32 },
    /// Tell a machine of no cluster that there is one.
    Here { to: SocketAddr, nonce: Nonce },
    /// Tell another process with this node's key, in a signed answer, that this one runs.
    Mine { to: SocketAddr, nonce: Nonce },
    /// Tell a process with the key of a member where that member is.
    Seen { to: SocketAddr, nonce: Nonce, node: NodeId },
    /// A member is at these addresses, the likeliest first; if it is missing, look there now.
    Learn { node: NodeId, addresses: Vec<SocketAddr>, is_missing: bool },
    /// A node of another cluster speaks here.
    Stranger { node: NodeId, from: SocketAddr },
    /// Give [`Input::Woken`] at this moment. Replaces what was asked for before.
    WakeAt(Instant),
}

/// See the module. Fed in the order of time.
pub(super) struct Core {
    me: NodeId,
    tag: Tag,
    tuning: Tuning,
    known: BTreeSet<NodeId>,
    missing: BTreeSet<NodeId>,
    heard: BTreeMap<NodeId, Heard>,
    strangers: BTreeMap<NodeId, Instant>,
    /// Words spoken since this start.
    count: u32,
    ask_at: Option<Instant>,
    pause: Duration,
    announcements: u8,
    /// Signatures checked, answers given: each costs a tenth of a millisecond.
    checks: Budget,
    stranger_checks: Budget,
    answers: Budget,
    heres: Budget,
    rng: SmallRng,
}

/// What was last heard of a member.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// Generation and count.
    order: (u64, u32),
    answered_at: Option<Instant>,
    found_at: Option<Instant>,
}

impl Core {
    /// A node that has heard of nobody yet. `seed` is for the pauses alone.
    pub(super) fn new(me: NodeId, tag: Tag, tuning: Tuning, seed: u64) -> Core {
        Core {
            me,
            tag,
            pause: tuning.pause_min,
            tuning,
            known: BTreeSet::new(),
            missing: BTreeSet::new(),
            heard: BTreeMap::new(),
            strangers: BTreeMap::new(),
            count: 0,
            ask_at: None,
            announcements: 0,
            // A cluster of a hundred answers one question with a hundred words.
            checks: Budget::new(100, 200),
            stranger_checks: Budget::new(1, 5),
            answers: Budget::new(50, 100),
            heres: Budget::new(10, 20),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Takes one input at `now` (never earlier than the last one) and adds what the shell must do.
    ///
    /// Cost: a signature's verification for a new word of a member; otherwise a hash and a look-up.
    pub(super) fn handle(&mut self, now: Instant, input: Input<'_>, effects: &mut Vec<Effect>) {
        let asked_for = self.ask_at;
        match input {
            Input::Members { known, missing } => self.handle_members(now, known, missing),
            Input::Moved => self.handle_moved(now),
            Input::Datagram { from, bytes } => self.handle_datagram(now, from, bytes, effects),
            Input::Woken => self.handle_woken(now, effects),
        }
        if let Some(at) = self.ask_at.filter(|_| self.ask_at != asked_for) {
            effects.push(Effect::WakeAt(at));
        }
    }

    fn handle_members(&mut self, now: Instant, known: BTreeSet<NodeId>, missing: BTreeSet<NodeId>) {
        let misses_more = missing.difference(&self.missing).next().is_some();
        self.heard.retain(|node, _| known.contains(node));
        (self.known, self.missing) = (known, missing);
        if misses_more {
            self.pause = self.tuning.pause_min;
            let at = now + self.spread(self.tuning.patience);
            self.ask_at = Some(self.ask_at.map_or(at, |planned| planned.min(at)));
        } else if self.missing.is_empty() && self.announcements == 0 {
            self.ask_at = None;
        }
    }

    fn handle_moved(&mut self, now: Instant) {
        self.announcements = self.tuning.announcements;
        self.pause = self.tuning.pause_min;
        self.ask_at = Some(now + self.tuning.settle);
    }

    fn handle_woken(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.ask_at.is_none_or(|at| now < at) {
            return;
        }
        // News of this node is for all; so is the question of one that has nobody.
        let few = self.missing.len() <= WANTED_MAX && self.missing.len() < self.known.len();
        let wanted = match few && self.announcements == 0 {
            true => self.missing.iter().copied().map(short).collect(),
            false => Vec::new(),
        };
        self.announcements = self.announcements.saturating_sub(1);
        effects.push(Effect::Ask { count: self.next_count(), wanted });
        let goes_on = !self.missing.is_empty() || self.announcements > 0;
        self.ask_at = goes_on.then(|| now + self.spread(self.pause));
        self.pause = (self.pause * 2).min(self.tuning.pause_max);
    }

    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8], effects: &mut Vec<Effect>) {
        match Message::decode(bytes) {
            Ok(Message::Word(word)) => self.hear(now, from, &word, effects),
            Ok(Message::Anyone { nonce }) => {
                if self.heres.take(now) {
                    effects.push(Effect::Here { to: from, nonce });
                }
            }
            Ok(Message::Twin(word)) => self.hear_twin(now, from, &word, effects),
            // A node has its cluster, and asked for its twin before it was one.
            Ok(Message::Here { .. } | Message::Seen { .. }) => {}
            // Of a later version or of no version: nothing to be done about it.
            Err(_) => {}
        }
    }

    fn hear(&mut self, now: Instant, from: SocketAddr, word: &Word, effects: &mut Vec<Effect>) {
        let node = word.node();
        if node == self.me {
            return;
        }
        // A known member of another incarnation is looked for all the same, so that the two tell each other.
        let is_ours = word.is_of(&self.tag);
        if !is_ours && !self.known.contains(&node) {
            return self.hear_stranger(now, from, word, effects);
        }
        let said = word.said();
        let order = (said.generation, said.count);
        let before = self.heard.get(&node).copied();
        let is_new = before.is_none_or(|before| before.order < order);
        if !self.known.contains(&node) || !is_new || !self.checks.take(now) || !word.is_signed() {
            return;
        }
        let is_due = |last: Option<Instant>, pause| last.is_none_or(|last| now.since(last) >= pause);
        let mut heard =
            Heard { order, ..before.unwrap_or(Heard { order, answered_at: None, found_at: None }) };
        if is_ours
            && self.is_asked(said)
            && is_due(heard.answered_at, self.tuning.answer_every)
            && self.answers.take(now)
        {
            heard.answered_at = Some(now);
            effects.push(Effect::Answer { to: from, count: self.next_count() });
        }
        let is_missing = self.missing.contains(&node) && is_due(heard.found_at, self.tuning.found_every);
        if !is_ours && !is_missing {
            return;
        }
        if is_missing {
            heard.found_at = Some(now);
        }
        self.heard.insert(node, heard);
        let addresses = std::iter::once(from).chain(said.addresses.iter().copied()).collect();
        effects.push(Effect::Learn { node, addresses, is_missing });
    }

    /// Somebody who is about to start asks whether the key is in use.
    fn hear_twin(&mut self, now: Instant, from: SocketAddr, word: &Word, effects: &mut Vec<Effect>) {
        let (node, nonce) = (word.node(), word.salt());
        let is_there = self.known.contains(&node) && !self.missing.contains(&node);
        if !word.said().asks || !(node == self.me || is_there) || !self.checks.take(now) || !word.is_signed()
        {
            return;
        }
        effects.push(match node == self.me {
            true => Effect::Mine { to: from, nonce },
            false => Effect::Seen { to: from, nonce, node },
        });
    }

    fn is_asked(&self, said: &Said) -> bool {
        said.asks && (said.wanted.is_empty() || said.wanted.contains(&short(self.me)))
    }

    fn hear_stranger(&mut self, now: Instant, from: SocketAddr, word: &Word, effects: &mut Vec<Effect>) {
        let node = word.node();
        let told = self.strangers.get(&node);
        if told.is_some_and(|at| now.since(*at) < self.tuning.stranger_every)
            || !self.stranger_checks.take(now)
            || !word.is_signed()
        {
            return;
        }
        if self.strangers.len() >= STRANGERS_MAX
            && let Some((oldest, _)) = self.strangers.iter().min_by_key(|(_, at)| **at)
        {
            let oldest = *oldest;
            self.strangers.remove(&oldest);
        }
        self.strangers.insert(node, now);
        effects.push(Effect::Stranger { node, from });
    }

    fn next_count(&mut self) -> u32 {
        self.count = self.count.saturating_add(1);
        self.count
    }

    /// About this long, so that nodes that woke together do not speak together for ever.
    fn spread(&mut self, about: Duration) -> Duration {
        about.mul_f64(self.rng.random_range(0.75..1.25))
    }
}

/// How often something may be done: so many times a second, and so many at once.
#[derive(Clone, Copy, Debug)]
struct Budget {
    per_second: u64,
    burst: u64,
    /// Thousandths left.
    left: u64,
    at: Instant,
}

impl Budget {
    fn new(per_second: u64, burst: u64) -> Budget {
        Budget { per_second, burst, left: burst * 1000, at: Instant(0) }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = (now.0.saturating_sub(self.at.0)).saturating_mul(self.per_second);
        self.left = self.left.saturating_add(gained).min(self.burst * 1000);
        self.at = now;
        let is_left = self.left >= 1000;
        if is_left {
            self.left -= 1000;
        }
        is_left
    }
}
