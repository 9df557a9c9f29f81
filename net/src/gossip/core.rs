//! Membership as a pure state machine: foca, its guard, and everything decided around it.
//!
//! No clock, no chance but the seed, no I/O: time and packets come in as [`Input`], what to do goes out
//! as [`Effect`]. The same inputs under the same seed give the same effects, byte for byte.
//!
//! What is decided here beyond foca:
//! * The sender in a packet must be the one whose certificate brought it.
//! * A suspicion that was refuted in time is dropped before foca sees its timer ([`Core::fire`]).
//! * Who is alone asks for the member list; so does, now and then, who is not ([`Effect::Exchange`]).
//! * A process that finds its own node id in use by another process stops speaking ([`Effect::Deposed`]).
//! * After standing still (a stopped process, a sleeping machine) nobody is judged before what has
//!   arrived meanwhile was read.
//!
//! Not here: connections, addresses that worked, who may be a member at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::{NonZeroU8, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use foca::{Foca, Notification, OwnedNotification, PeriodicParams};
use rand::{Rng as _, RngExt as _, SeedableRng, rngs::SmallRng};

use super::{
    codec::{self, Codec, Peek},
    list::{Entry, List},
    member::{Change, MEMBERS_MAX, Member, MemberId, State},
    metadata::{Broadcasts, Described, Descriptions, Metadata},
};
use crate::identity::NodeId;

/// A moment of the pure world: milliseconds since a start that the shell chose. Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub u64);

impl std::ops::Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, after: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Instant {
    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The protocol's constants. The defaults were measured (notes on gossip); change them only to repeat that.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// One member is probed in each; doubled above [`Tuning::large_from`] members.
    pub probe_period: Duration,
    /// A probe not answered by then is repeated through others. Below half of the period.
    pub probe_rtt: Duration,
    /// Periods a suspect has for refuting; 6 in a large cluster.
    pub suspicion_periods: u32,
    /// How often each news is passed on; foca's own 6 at 50 members misses somebody in several percent.
    pub transmissions: u8,
    /// Time between two rounds of gossip, and how many members each goes to.
    pub gossip_every: Duration,
    /// See [`Tuning::gossip_every`].
    pub gossip_fanout: usize,
    /// Time between asking a random member whom it knows.
    pub announce_every: Duration,
    /// Time between calling two members that are down: how the halves of a healed cut find each other.
    pub call_down_every: Duration,
    /// How long the dead are remembered.
    pub remember_down: Duration,
    /// Mean time between exchanging the whole list with a random member.
    pub exchange_every: Duration,
    /// Time between tries to find anybody, while alone.
    pub seek_every: Duration,
    /// A round later than this means that this process stood still.
    pub late: Duration,
    /// What such a process waits before it goes on judging others, so that it first reads its post.
    pub grace: Duration,
    /// From so many members on the cluster is large.
    pub large_from: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(500),
            probe_rtt: Duration::from_millis(200),
            suspicion_periods: 4,
            transmissions: 12,
            gossip_every: Duration::from_millis(100),
            gossip_fanout: 3,
            announce_every: Duration::from_secs(10),
            call_down_every: Duration::from_secs(10),
            remember_down: Duration::from_secs(3600),
            exchange_every: Duration::from_secs(60),
            seek_every: Duration::from_secs(1),
            late: Duration::from_millis(250),
            grace: Duration::from_millis(300),
            large_from: 200,
        }
    }
}

/// A QUIC datagram under an initial MTU of 1200 B has room for 1162 B, of which the endpoint takes one.
pub const PACKET_BYTES_MAX: usize = 1150;

impl Tuning {
    fn for_foca(&self, members: usize) -> foca::Config {
        let is_large = self.is_large(members);
        let periods = if is_large { self.suspicion_periods * 3 } else { self.suspicion_periods };
        let transmissions = if is_large { self.transmissions.saturating_add(4) } else { self.transmissions };
        let periodic = |frequency, members| {
            let num_members = NonZeroUsize::new(members).unwrap_or(NonZeroUsize::MIN);
            Some(PeriodicParams { frequency, num_members })
        };
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: NonZeroUsize::new(3).expect("three is not zero"),
            max_transmissions: NonZeroU8::new(transmissions).unwrap_or(NonZeroU8::MIN),
            suspect_to_down_after: self.probe_period * periods,
            remove_down_after: Some(self.remember_down),
            max_packet_size: NonZeroUsize::new(PACKET_BYTES_MAX).expect("1150 is not zero"),
            notify_down_members: true,
            periodic_announce: periodic(self.announce_every, 1),
            periodic_announce_to_down_members: periodic(self.call_down_every, 2),
            periodic_gossip: periodic(self.gossip_every, self.gossip_fanout),
        }
    }

    fn is_large(&self, members: usize) -> bool {
        members >= self.large_from
    }
}

/// What can happen to the core.
#[derive(Clone, Debug)]
pub enum Input {
    /// A datagram came over a connection whose certificate is that of `from`.
    Packet {
        /// By its certificate.
        from: NodeId,
        /// As it was sent.
        packet: Bytes,
    },
    /// The moment asked for by [`Effect::WakeAt`] came.
    Woken,
    /// Nodes that may be out there: known from the disk or from the replicated node set.
    Contacts(Vec<NodeId>),
    /// A node that may be out there was just heard of at a place where it can be reached.
    Found(NodeId),
    /// Another member's list came over a stream: the answer to [`Effect::Exchange`], or its own asking.
    Listed(List),
    /// This node has something new to say about itself. It must have passed [`Metadata::check`].
    Describe(Metadata),
    /// A node was removed from the cluster for good: it is down here, whatever gossip says.
    Forget(NodeId),
    /// This node leaves on purpose: its last words go out, then it is silent.
    Leave,
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a datagram; it may get lost.
    Send {
        /// The receiver.
        to: NodeId,
        /// At most [`PACKET_BYTES_MAX`].
        packet: Bytes,
    },
    /// Give [`Input::Woken`] at this moment. Replaces what was asked for before.
    WakeAt(Instant),
    /// Send `list` over a stream and give the answer back as [`Input::Listed`]. May fail; the core asks
    /// again, perhaps somebody else.
    ///
    /// The other end answers with its [`Core::list`] as it was *before* it takes this one in: so a clone
    /// still finds the one whose place it would take.
    Exchange {
        /// The other member.
        with: NodeId,
        /// What this one knows.
        list: List,
    },
    /// The picture changed: [`Core::members`] already shows it.
    Changed {
        /// As it is now (as it was, if forgotten).
        member: Member,
        /// How.
        change: Change,
    },
    /// A packet or list was refused; nothing was taken from it.
    Refused {
        /// Whose certificate brought it, where that is known.
        from: Option<NodeId>,
        /// For the log.
        reason: String,
    },
    /// This process must not go on under its node id. It sends nothing any more.
    Deposed(Deposed),
}

/// Why a process may not use its node id any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Deposed {
    /// Another live process has the same key (a cloned disk, or a second start).
    #[error(
        "this identity is in use by another process (start {generation}); stop that one, or give this machine an empty data directory and join again"
    )]
    InUse {
        /// The other one's generation.
        generation: u64,
    },
    /// The others remember a later start than this process knows of: its disk was rolled back.
    #[error(
        "the cluster remembers start {generation} of this node, this disk knows only earlier ones; it was restored from a copy, so it starts again as a newer one"
    )]
    RolledBack {
        /// The generation the others remember.
        generation: u64,
    },
}

/// Bugs that tests put back on purpose, to see that they are noticed.
#[cfg(any(test, feature = "mutations"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Hand foca every suspicion timer: a member that refuted in time is told that it is down.
    NoSuspicionGuard,
}

/// One node's membership. Made by [`Core::new`], then fed with [`Core::handle`] in the order of time.
pub struct Core {
    me: MemberId,
    tuning: Tuning,
    foca: Membership,
    descriptions: Descriptions,
    /// The picture as last published, this node included.
    members: BTreeMap<NodeId, Member>,
    /// Nodes to try while alone.
    contacts: BTreeSet<NodeId>,
    timers: Timers,
    /// foca's next round of gossip, which is due and has nothing to tell yet.
    resting: Option<foca::Timer<MemberId>>,
    rng: SmallRng,
    stage: Stage,
    /// Mean time until the next exchange; grows from [`Tuning::seek_every`] to [`Tuning::exchange_every`].
    exchange_after: Duration,
    /// How often this node has described itself.
    words: u32,
    /// Members of whom foca's list may differ from `members`.
    touched: BTreeSet<NodeId>,
    was_large: bool,
    #[cfg(any(test, feature = "mutations"))]
    mutation: Option<Mutation>,
}

type Membership = Foca<MemberId, Codec, SmallRng, Broadcasts>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nobody has been met yet: the moment to find out that one's identity is taken.
    Fresh,
    Joined,
    /// Left or deposed: deaf and mute.
    Gone,
}

impl Core {
    /// A node that knows nobody yet.
    ///
    /// * `generation`: higher than at every earlier start of this node, durably.
    /// * `instance`: truly random in a real node, since it tells clones of a disk apart.
    /// * `seed`: for all other chance.
    /// * `metadata`: must have passed [`Metadata::check`].
    pub fn new(
        node: NodeId,
        generation: u64,
        instance: u32,
        seed: u64,
        tuning: Tuning,
        metadata: Metadata,
    ) -> Self {
        let me = MemberId { node, generation, instance, renewal: 0 };
        let mut rng = SmallRng::seed_from_u64(seed);
        let descriptions = Descriptions::default();
        let broadcasts = Broadcasts { me: node, descriptions: descriptions.clone() };
        let foca_rng = SmallRng::seed_from_u64(rng.next_u64());
        let mut core = Self {
            me,
            foca: Foca::with_custom_broadcast(me, tuning.for_foca(1), foca_rng, Codec, broadcasts),
            descriptions,
            members: BTreeMap::new(),
            contacts: BTreeSet::new(),
            timers: Timers::default(),
            resting: None,
            rng,
            stage: Stage::Fresh,
            exchange_after: tuning.seek_every,
            words: 0,
            touched: BTreeSet::from([node]),
            was_large: false,
            tuning,
            #[cfg(any(test, feature = "mutations"))]
            mutation: None,
        };
        core.describe(metadata);
        core.publish(&mut Vec::new());
        core
    }

    /// Puts a known bug back, for tests that prove it would be noticed.
    #[cfg(any(test, feature = "mutations"))]
    pub fn mutate(&mut self, mutation: Mutation) {
        self.mutation = Some(mutation);
    }

    /// Takes one input at `now` (never earlier than the last one) and adds what the shell must do.
    ///
    /// Cost: one pass over the members when the input changed any; else their number's logarithm, apart
    /// from what foca does.
    pub fn handle(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        if self.stage == Stage::Gone {
            return;
        }
        self.forgive_standstill(now);
        match input {
            Input::Packet { from, packet } => self.handle_packet(now, from, &packet, effects),
            Input::Woken => self.handle_woken(now, effects),
            Input::Contacts(nodes) => self.handle_contacts(now, nodes, effects),
            Input::Found(node) => self.handle_found(node, effects),
            Input::Listed(list) => self.handle_list(now, list, effects),
            Input::Describe(metadata) => self.describe(metadata),
            Input::Forget(node) => self.forget(now, node, effects),
            Input::Leave => self.leave(now, effects),
        }
        self.publish(effects);
        if self.has_news()
            && let Some(timer) = self.resting.take()
        {
            self.timers.add(now, Task::Foca(timer));
        }
        if self.stage != Stage::Gone
            && let Some(at) = self.timers.newly_earliest()
        {
            effects.push(Effect::WakeAt(at));
        }
    }

    /// This process's present identity.
    pub fn me(&self) -> MemberId {
        self.me
    }

    /// Everybody known, this node included, the dead for an hour.
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// All that this node knows, itself included: the answer to another one's [`Effect::Exchange`].
    pub fn list(&self) -> List {
        let mut list = self.list_of_others();
        // foca keeps its own incarnation to itself; zero is right for "at least alive".
        list.0.push(self.entry(&foca::Member::alive(self.me)));
        list
    }

    fn list_of_others(&self) -> List {
        // Of this node foca keeps earlier starts, as down.
        let others = self.foca.iter_membership_state().filter(|member| member.id().node != self.me.node);
        List(others.take(MEMBERS_MAX - 1).map(|member| self.entry(member)).collect())
    }

    fn entry(&self, member: &foca::Member<MemberId>) -> Entry {
        Entry {
            id: *member.id(),
            incarnation: member.incarnation(),
            state: member.state().into(),
            described: self.descriptions.lock().newest.get(&member.id().node).cloned(),
        }
    }

    fn exchange(&self, with: NodeId, effects: &mut Vec<Effect>) {
        // Who does not know yet whether its identity is free does not announce itself.
        let list = if self.stage == Stage::Fresh { self.list_of_others() } else { self.list() };
        effects.push(Effect::Exchange { with, list });
    }

    fn handle_packet(&mut self, now: Instant, from: NodeId, packet: &Bytes, effects: &mut Vec<Effect>) {
        let peek = match codec::peek(packet) {
            Ok(peek) => peek,
            Err(error) => return effects.push(refused(Some(from), error)),
        };
        if let Err(reason) = self.check_packet(from, &peek) {
            return effects.push(refused(Some(from), reason));
        }
        if let Some(deposed) =
            peek.updates.iter().find_map(|update| self.deposed_by(update.id(), update.state()))
        {
            return self.depose(deposed, effects);
        }
        self.touch(&peek);
        let told_down = peek.header.message == foca::Message::TurnUndead && peek.header.dst == self.me;
        self.drive(now, effects, |foca, out| foca.handle_data(packet, out));
        if told_down {
            // The sender may know of a later process of this node; its list will say so.
            self.exchange(from, effects);
        }
        self.plan_description(now, &peek, from);
    }

    fn check_packet(&self, from: NodeId, peek: &Peek) -> Result<(), String> {
        let sender = peek.header.src.node;
        if sender != from {
            return Err(format!("a packet of {sender} came over a connection of {from}"));
        }
        let strangers =
            peek.updates.iter().filter(|update| !self.members.contains_key(&update.id().node)).count();
        if self.members.len() + strangers >= MEMBERS_MAX {
            return Err(format!("more than {MEMBERS_MAX} members"));
        }
        Ok(())
    }

    /// Notes the members of whom the packet says something new. Most say nothing new, since each news
    /// arrives a dozen times.
    fn touch(&mut self, peek: &Peek) {
        let sender = foca::Member::new(peek.header.src, peek.header.src_incarnation, foca::State::Alive);
        for update in peek.updates.iter().chain([&sender]) {
            if self.differs(update.id(), update.incarnation(), update.state()) {
                self.touched.insert(update.id().node);
            }
        }
    }

    fn differs(&self, id: &MemberId, incarnation: u16, state: foca::State) -> bool {
        let Some(known) = self.members.get(&id.node) else { return true };
        let is_same = match state {
            foca::State::Alive => known.state == State::Alive && known.incarnation >= incarnation,
            foca::State::Suspect => known.state.is_active() && known.incarnation > incarnation,
            foca::State::Down => !known.state.is_active(),
        };
        known.id != *id || !is_same
    }

    /// Whether an update says that this process has to give way.
    fn deposed_by(&self, other: &MemberId, state: foca::State) -> Option<Deposed> {
        if other.node != self.me.node || other.same_process(&self.me) {
            return None;
        }
        let is_active = state != foca::State::Down;
        // Who has met nobody yet gives way to a living clone with the same generation, whatever their
        // order: the second to come is refused, and the first does not even notice.
        let yields = self.stage == Stage::Fresh && is_active && other.generation == self.me.generation;
        if *other < self.me && !yields {
            return None;
        }
        let generation = other.generation;
        Some(if is_active { Deposed::InUse { generation } } else { Deposed::RolledBack { generation } })
    }

    fn depose(&mut self, deposed: Deposed, effects: &mut Vec<Effect>) {
        self.stage = Stage::Gone;
        effects.push(Effect::Deposed(deposed));
    }

    /// Asks for the metadata of members that came without: they cannot be dialled before.
    fn plan_description(&mut self, now: Instant, peek: &Peek, ask: NodeId) {
        let heard = self.descriptions.lock();
        let nodes = peek.updates.iter().map(|update| update.id().node).chain([peek.header.src.node]);
        for node in nodes {
            if node != self.me.node && !heard.newest.contains_key(&node) && !self.members.contains_key(&node)
            {
                // Mostly it comes by itself with the next packet.
                self.timers.add(now + Duration::from_millis(300), Task::FetchDescription { node, ask });
            }
        }
    }

    /// Whoever did not run for a while must not judge others by answers it has not read yet.
    ///
    /// Before anything else, whatever wakes it: what its post lets it plan is of now, and put off by the time it
    /// stood still it would come after hours.
    fn forgive_standstill(&mut self, now: Instant) {
        if let Some(due) = self.timers.earliest()
            && now.since(due) > self.tuning.late
        {
            self.timers.postpone(now.since(due) + self.tuning.grace);
        }
    }

    fn handle_woken(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        // That wake is over: a task for this same moment needs another one.
        self.timers.told = None;
        while let Some(task) = self.timers.take_due(now) {
            self.fire(now, task, effects);
        }
    }

    fn fire(&mut self, now: Instant, task: Task, effects: &mut Vec<Effect>) {
        match task {
            // It would send nothing and come back ten times a second.
            Task::Foca(timer @ foca::Timer::PeriodicGossip(_)) if !self.has_news() => {
                self.resting = Some(timer);
            }
            Task::Foca(timer) => {
                if self.may_fire(&timer) {
                    if let foca::Timer::RemoveDown(id) = &timer {
                        self.touched.insert(id.node);
                    }
                    self.drive(now, effects, |foca, out| foca.handle_timer(timer, out));
                }
            }
            Task::Seek => self.seek(now, effects),
            Task::Exchange => {
                if let Some(with) = self.random_member() {
                    self.exchange(with, effects);
                }
                self.plan_exchange(now);
            }
            Task::FetchDescription { node, ask } => {
                if !self.descriptions.lock().newest.contains_key(&node) && self.members.contains_key(&node) {
                    self.exchange(ask, effects);
                    if let Some(ask) = self.random_member() {
                        self.timers.add(now + self.tuning.seek_every, Task::FetchDescription { node, ask });
                    }
                }
            }
        }
    }

    fn has_news(&self) -> bool {
        self.foca.updates_backlog() + self.foca.custom_broadcast_backlog() > 0
    }

    fn random_member(&mut self) -> Option<NodeId> {
        let others: Vec<NodeId> = self.foca.iter_members().map(|member| member.id().node).collect();
        (!others.is_empty()).then(|| others[self.rng.random_range(0..others.len())])
    }

    /// The guard against a flaw of foca 2.0: when a suspicion's time is up it announces to the suspect
    /// that it is down, even if the suspicion was refuted meanwhile and the member counts as alive
    /// everywhere. Under 10 % loss that made healthy members rejoin twenty times an hour.
    fn may_fire(&self, timer: &foca::Timer<MemberId>) -> bool {
        #[cfg(any(test, feature = "mutations"))]
        if self.mutation == Some(Mutation::NoSuspicionGuard) {
            return true;
        }
        let foca::Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else { return true };
        self.foca.iter_membership_state().any(|member| {
            member.id() == member_id
                && member.incarnation() == *incarnation
                && member.state() == foca::State::Suspect
        })
    }

    fn handle_contacts(&mut self, now: Instant, nodes: Vec<NodeId>, effects: &mut Vec<Effect>) {
        let was_empty = self.contacts.is_empty();
        self.contacts.extend(nodes.into_iter().filter(|node| *node != self.me.node));
        while self.contacts.len() > MEMBERS_MAX {
            self.contacts.pop_last();
        }
        if was_empty && !self.contacts.is_empty() {
            self.seek(now, effects);
        }
    }

    /// Looks there at once, unless that node is known to be there.
    fn handle_found(&mut self, node: NodeId, effects: &mut Vec<Effect>) {
        let is_there = self.members.get(&node).is_some_and(|member| member.state.is_active());
        if node != self.me.node && !is_there {
            self.exchange(node, effects);
        }
    }

    /// While nobody is there: asks up to three contacts for their list, and again in a second.
    fn seek(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.foca.num_members() == 0 {
            let mut untried: Vec<NodeId> = self.contacts.iter().copied().collect();
            for _ in 0..3.min(untried.len()) {
                let with = untried.swap_remove(self.rng.random_range(0..untried.len()));
                self.exchange(with, effects);
            }
        }
        self.timers.replace(now + self.tuning.seek_every, Task::Seek);
    }

    /// Plans the next exchange: soon after joining, when many may have started together and every list is
    /// short, then ever less often.
    fn plan_exchange(&mut self, now: Instant) {
        let mean = self.exchange_after;
        self.exchange_after = (mean * 2).min(self.tuning.exchange_every);
        let mean_ms = u64::try_from(mean.as_millis()).unwrap_or(u64::MAX).max(2);
        // Spread, so that nodes that started together do not ask together for ever.
        let after = Duration::from_millis(self.rng.random_range(mean_ms / 2..mean_ms + mean_ms / 2));
        self.timers.replace(now + after, Task::Exchange);
    }

    fn handle_list(&mut self, now: Instant, list: List, effects: &mut Vec<Effect>) {
        let strangers = list.0.iter().filter(|entry| !self.members.contains_key(&entry.id.node)).count();
        if self.members.len() + strangers > MEMBERS_MAX {
            return effects.push(refused(None, format!("a list that makes more than {MEMBERS_MAX} members")));
        }
        if let Some(deposed) = list.0.iter().find_map(|entry| self.deposed_by(&entry.id, entry.state.into()))
        {
            return self.depose(deposed, effects);
        }
        for word in list.0.iter().filter_map(|entry| entry.described.clone()) {
            self.descriptions.learn(self.me.node, word);
        }
        self.contacts.extend(list.0.iter().map(|entry| entry.id.node).filter(|node| *node != self.me.node));
        let was_alone = self.foca.num_members() == 0;
        let updates: Vec<foca::Member<MemberId>> = list
            .0
            .iter()
            .map(|entry| foca::Member::new(entry.id, entry.incarnation, entry.state.into()))
            .collect();
        self.touched.extend(list.0.iter().map(|entry| entry.id.node));
        // What a newcomer learns is no news to the others, and would only drown its own first words.
        self.drive(now, effects, |foca, out| foca.apply_many(updates.into_iter(), !was_alone, out));
        if was_alone && self.foca.num_members() > 0 {
            // Every packet says that its sender lives, so this is how the others hear of the newcomer.
            self.drive(now, effects, |foca, out| foca.gossip(out));
            self.repeat_own_word();
        }
    }

    fn describe(&mut self, metadata: Metadata) {
        self.words = self.words.saturating_add(1);
        self.say(false, Arc::new(metadata));
    }

    fn say(&mut self, leaving: bool, metadata: Arc<Metadata>) {
        self.descriptions.say(Described { of: self.me, count: self.words, leaving, metadata });
        self.repeat_own_word();
    }

    /// Spreads what this node last said about itself, once more.
    fn repeat_own_word(&mut self) {
        let word = self.descriptions.lock().newest.get(&self.me.node).cloned();
        if let Some(word) = word {
            // Fails only for words longer than a packet, which `Metadata::check` rules out.
            let _ = self.foca.add_broadcast(&codec::encode(&word));
        }
    }

    fn forget(&mut self, now: Instant, node: NodeId, effects: &mut Vec<Effect>) {
        self.contacts.remove(&node);
        let Some(id) = self.members.get(&node).map(|member| member.id).filter(|id| id.node != self.me.node)
        else {
            return;
        };
        self.touched.insert(node);
        self.drive(now, effects, |foca, out| {
            foca.apply_many([foca::Member::down(id)].into_iter(), true, out)
        });
        self.drive(now, effects, |foca, out| foca.handle_timer(foca::Timer::RemoveDown(id), out));
    }

    fn leave(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let metadata = self.descriptions.lock().newest.get(&self.me.node).map(|word| word.metadata.clone());
        self.words = self.words.saturating_add(1);
        self.say(true, metadata.unwrap_or_default());
        // Three rounds of three: with one packet in five lost, all nine are one time in two million.
        self.drive(now, effects, |foca, out| foca.leave_cluster(out));
        self.drive(now, effects, |foca, out| foca.gossip(out));
        self.drive(now, effects, |foca, out| foca.gossip(out));
        self.stage = Stage::Gone;
    }

    /// Runs one call of foca and does what it asks for.
    fn drive(
        &mut self,
        now: Instant,
        effects: &mut Vec<Effect>,
        call: impl FnOnce(&mut Membership, &mut Out<'_>) -> Result<(), foca::Error>,
    ) {
        let stretch = if self.was_large { 2 } else { 1 };
        let noticed = Vec::new();
        let mut out =
            Out { now, stretch, timers: &mut self.timers, touched: &mut self.touched, effects, noticed };
        let mut result = call(&mut self.foca, &mut out);
        if out.noticed.iter().any(|notice| matches!(notice, OwnedNotification::Rejoin(_))) {
            // After changing its identity foca stays silent until somebody speaks to it. Wake it.
            result = result.and(self.foca.apply_many(std::iter::empty(), true, &mut out));
        }
        let noticed = out.noticed;
        if let Err(error) = result {
            // foca goes on after each of its errors; most are packets that came late or twice.
            effects.push(refused(None, error));
        }
        for notice in noticed {
            self.take_notice(now, notice);
        }
    }

    fn take_notice(&mut self, now: Instant, notice: OwnedNotification<MemberId>) {
        match notice {
            OwnedNotification::Rejoin(id) => {
                self.me = id;
                self.touched.insert(id.node);
                self.repeat_own_word();
            }
            OwnedNotification::Active => {
                self.stage = Stage::Joined;
                self.exchange_after = self.tuning.seek_every;
                self.plan_exchange(now);
            }
            // What changed among the others is found by comparing, see `publish`.
            _ => {}
        }
    }

    /// Brings the picture up to what foca and the words say, and tells the difference.
    fn publish(&mut self, effects: &mut Vec<Effect>) {
        let mut nodes = std::mem::take(&mut self.touched);
        nodes.append(&mut self.descriptions.lock().changed);
        for node in nodes {
            self.publish_one(node, effects);
        }
        self.fit_tuning();
    }

    fn publish_one(&mut self, node: NodeId, effects: &mut Vec<Effect>) {
        let Some(now) = self.look_up(node) else {
            if let Some(member) = self.members.remove(&node) {
                self.descriptions.lock().newest.remove(&node);
                effects.push(Effect::Changed { member, change: Change::Forgotten });
            }
            return;
        };
        for change in changes(self.members.get(&node), &now).into_iter().flatten() {
            effects.push(Effect::Changed { member: now.clone(), change });
        }
        self.members.insert(node, now);
    }

    /// What foca and the node's own word say of it now.
    fn look_up(&self, node: NodeId) -> Option<Member> {
        let myself = foca::Member::alive(self.me);
        let member = if node == self.me.node {
            // Of this node foca knows earlier starts only.
            &myself
        } else {
            self.foca.iter_membership_state().find(|member| member.id().node == node)?
        };
        let heard = self.descriptions.lock();
        let word = heard.newest.get(&node);
        let is_leaving = word.is_some_and(|word| word.leaving && word.of.same_process(member.id()));
        Some(Member {
            id: *member.id(),
            incarnation: member.incarnation(),
            state: match member.state() {
                foca::State::Alive => State::Alive,
                foca::State::Suspect => State::Suspect,
                foca::State::Down if is_leaving => State::Left,
                foca::State::Down => State::Down,
            },
            metadata: word.map(|word| word.metadata.clone()),
        })
    }

    /// Whether comparing everything would find what telling only the difference has missed.
    #[cfg(test)]
    pub(super) fn picture_is_true(&self) -> bool {
        let nodes = self.foca.iter_membership_state().map(|member| member.id().node);
        nodes
            .chain(self.members.keys().copied())
            .all(|node| self.look_up(node).as_ref() == self.members.get(&node))
    }

    fn fit_tuning(&mut self) {
        let is_large = self.tuning.is_large(self.foca.num_members());
        if is_large != self.was_large {
            self.was_large = is_large;
            let config = self.tuning.for_foca(self.foca.num_members());
            self.foca.set_config(config).expect("only fields that foca lets change have changed");
        }
    }
}

/// What happened between two pictures of one member, in the order to tell it.
fn changes(before: Option<&Member>, now: &Member) -> [Option<Change>; 3] {
    let state = match now.state {
        State::Alive => Change::Alive,
        State::Suspect => Change::Suspect,
        State::Down => Change::Down,
        State::Left => Change::Left,
    };
    let Some(before) = before else { return [Some(state), None, None] };
    let renamed = if before.id.same_process(&now.id) {
        (before.id != now.id).then_some(Change::Rejoined)
    } else {
        Some(Change::Restarted)
    };
    [
        renamed,
        (before.state != now.state).then_some(state),
        (before.metadata != now.metadata).then_some(Change::Described),
    ]
}

fn refused(from: Option<NodeId>, reason: impl ToString) -> Effect {
    Effect::Refused { from, reason: reason.to_string() }
}

/// foca's way out: everything becomes an effect or a timer.
struct Out<'a> {
    now: Instant,
    stretch: u32,
    timers: &'a mut Timers,
    touched: &'a mut BTreeSet<NodeId>,
    effects: &'a mut Vec<Effect>,
    noticed: Vec<OwnedNotification<MemberId>>,
}

impl foca::Runtime<MemberId> for Out<'_> {
    fn notify(&mut self, notification: Notification<'_, MemberId>) {
        self.noticed.push(notification.to_owned());
    }

    fn send_to(&mut self, to: MemberId, data: &[u8]) {
        self.effects.push(Effect::Send { to: to.node, packet: Bytes::copy_from_slice(data) });
    }

    fn submit_after(&mut self, event: foca::Timer<MemberId>, after: Duration) {
        // foca tells of no suspicion, but each begins with the first of these timers and ends, if it is
        // not refuted by a packet, with the second.
        if let foca::Timer::ChangeSuspectToDown { member_id: id, .. } | foca::Timer::RemoveDown(id) = &event {
            self.touched.insert(id.node);
        }
        // foca cannot change its period while it runs, but its timers are ours.
        let is_period = matches!(event, foca::Timer::ProbeRandomMember(_));
        let after = if is_period { after * self.stretch } else { after };
        self.timers.add(self.now + after, Task::Foca(event));
    }
}

/// What to do at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Task {
    Foca(foca::Timer<MemberId>),
    Seek,
    Exchange,
    FetchDescription { node: NodeId, ask: NodeId },
}

/// All moments this node waits for, in order; those of one moment in the order they were asked for.
#[derive(Default)]
struct Timers {
    queue: BTreeMap<(Instant, u64), Task>,
    asked: u64,
    told: Option<Instant>,
}

impl Timers {
    fn add(&mut self, at: Instant, task: Task) {
        self.asked += 1;
        self.queue.insert((at, self.asked), task);
    }

    /// Adds a task of which there is at most one.
    fn replace(&mut self, at: Instant, task: Task) {
        self.queue.retain(|_, waiting| *waiting != task);
        self.add(at, task);
    }

    fn earliest(&self) -> Option<Instant> {
        self.queue.keys().next().map(|(at, _)| *at)
    }

    fn take_due(&mut self, now: Instant) -> Option<Task> {
        let first = self.queue.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Moves every moment by `by`, as if time had stood still.
    fn postpone(&mut self, by: Duration) {
        let queue = std::mem::take(&mut self.queue);
        self.queue = queue.into_iter().map(|((at, number), task)| ((at + by, number), task)).collect();
    }

    /// The earliest moment, if it is another one than was told last.
    fn newly_earliest(&mut self) -> Option<Instant> {
        let earliest = self.earliest();
        let is_new = earliest != self.told;
        self.told = earliest;
        earliest.filter(|_| is_new)
    }
}
