//! Two years of clusters whose nodes die, lose their disks, vote or do not, are off for months, and whose clock
//! is wrong at times: the authorities are never lost, always good, and what somebody holds ends when it was said to.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::chance::{Chance, Draws};

const HOUR: u64 = 60 * 60 * SECOND;
const YEAR: u64 = 365 * DAY;
const BEGAN: u64 = 1_760_000_000 * SECOND;

const ISSUING_LIFE: u64 = 90 * DAY;
/// Shorter than in life, so that roots are renewed within the time that is simulated.
const ROOT_LIFE: u64 = YEAR;
const SERVER_LIFE: u64 = 30 * DAY;
const CLIENT_LIFE: u64 = YEAR;

thread_local! {
    static BROKEN: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Whether this bug is put back.
pub(super) fn is_broken(mutation: Mutation) -> bool {
    BROKEN.get() == Some(mutation)
}

/// The private part of an edition.
#[derive(Clone)]
struct Keys {
    members: u64,
    clients: u64,
    edition: Edition,
}

/// A certificate of an API server.
#[derive(Clone)]
struct Server {
    root: u64,
    /// The older root that vouches for that one.
    cross: Option<u64>,
    span: Span,
}

/// What somebody outside of the cluster has.
struct Kubeconfig {
    /// The members' roots it trusts.
    roots: BTreeSet<u64>,
    number: u64,
    span: Span,
}

#[derive(Default)]
struct Node {
    up: bool,
    kept: Kept,
    server: Option<Server>,
}

/// An act as it was planned, with the revisions that it depends on.
struct Planned {
    node: usize,
    act: Act<usize>,
    trust: Option<u64>,
    witness: Option<u64>,
}

struct World {
    chance: Draws,
    now: u64,
    /// By how much the cluster's clock is off, and until when.
    clock: (i64, u64),
    nodes: Vec<Node>,
    members: BTreeSet<usize>,
    voters: BTreeSet<usize>,
    joint: bool,
    leader: usize,
    revision: u64,
    trust: Option<(u64, Trust)>,
    holders: BTreeMap<usize, (u64, Holder)>,
    editions: BTreeMap<Fingerprint, Keys>,
    kubeconfigs: Vec<Kubeconfig>,
    /// What thieves know.
    stolen: BTreeSet<Fingerprint>,
    counts: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u128, nodes: usize) -> World {
        let mut world = World {
            chance: Chance(seed).of("authorities"),
            now: BEGAN,
            clock: (0, 0),
            nodes: (0..nodes).map(|_| Node { up: true, ..Node::default() }).collect(),
            members: (0..nodes).collect(),
            voters: [0].into(),
            joint: false,
            leader: 0,
            revision: 0,
            trust: None,
            holders: BTreeMap::new(),
            editions: BTreeMap::new(),
            kubeconfigs: Vec::new(),
            stolen: BTreeSet::new(),
            counts: BTreeMap::new(),
        };
        let first = world.make(None);
        world.nodes[0].kept.current = Some(first);
        world
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.chance.number() % below
    }

    /// Once in `times`.
    fn once_in(&mut self, times: u64) -> bool {
        self.draw(times) == 0
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// The cluster's clock.
    fn clock(&self) -> u64 {
        self.now.saturating_add_signed(if self.clock.1 > self.now { self.clock.0 } else { 0 })
    }

    fn quorum(&self) -> bool {
        let up = self.voters.iter().filter(|node| self.nodes[**node].up).count();
        up * 2 > self.voters.len()
    }

    /// New keys, or new certificates for those of `old`.
    fn make(&mut self, old: Option<Keys>) -> Edition {
        let now = self.clock();
        let span = |life: u64| Span { from_ms: now, until_ms: now + life };
        let roots = match &old {
            Some(old) if !old.edition.roots.is_due(now) => old.edition.roots,
            _ => span(ROOT_LIFE),
        };
        let number = self.editions.len() as u64;
        let (members, clients) = old.map_or((number, number), |old| (old.members, old.clients));
        let fingerprint = Fingerprint(format!("e{number}"));
        let edition = Edition { fingerprint: fingerprint.clone(), issuing: span(ISSUING_LIFE), roots };
        self.editions.insert(fingerprint, Keys { members, clients, edition: edition.clone() });
        edition
    }

    fn public(&self, fingerprint: &Fingerprint, cross: Option<u64>) -> Made {
        let keys = &self.editions[fingerprint];
        Made {
            fingerprint: fingerprint.clone(),
            members: keys.members.to_string(),
            clients: keys.clients.to_string(),
            cross: cross.map(|key| key.to_string()),
        }
    }

    fn plan_of(&self, node: usize) -> Vec<Planned> {
        let alive = self.members.iter().copied().filter(|node| self.nodes[*node].up).collect();
        let holders: BTreeMap<usize, Holder> =
            self.holders.iter().map(|(node, (_, holder))| (*node, holder.clone())).collect();
        let acts = plan(&Sight {
            me: node,
            leads: self.leader == node,
            now_ms: Some(self.clock()),
            voters: &self.voters,
            joint: self.joint,
            keepers: &self.voters,
            members: &self.members,
            alive: &alive,
            trust: self.trust.as_ref().map(|(_, trust)| trust),
            holders: &holders,
            kept: &self.nodes[node].kept,
        });
        let acts = acts.into_iter().map(|act| {
            let witness = match &act {
                Act::Withdraw { witness } => Some(self.holders[witness].0),
                _ => None,
            };
            Planned { node, act, trust: self.trust.as_ref().map(|(revision, _)| *revision), witness }
        });
        acts.collect()
    }

    /// Every node plans by the same map; then all of it happens in some order, and some of it only half.
    /// Whether anybody had anything to do.
    fn round(&mut self) -> bool {
        if !self.quorum() {
            return false;
        }
        let mut planned: Vec<Planned> = self
            .members
            .iter()
            .filter(|node| self.nodes[**node].up)
            .flat_map(|node| self.plan_of(*node))
            .collect();
        let busy = !planned.is_empty();
        while !planned.is_empty() {
            let index = self.draw(planned.len() as u64) as usize;
            let planned = planned.swap_remove(index);
            if self.nodes[planned.node].up {
                let dies = self.once_in(40);
                self.perform(planned, dies);
            }
            self.check_always();
        }
        busy
    }

    fn put_trust(&mut self, expected: Option<u64>, trust: Trust) -> bool {
        let fits = self.trust.as_ref().map(|(revision, _)| *revision) == expected;
        if fits {
            self.revision += 1;
            self.trust = Some((self.revision, trust));
        }
        fits
    }

    /// As the shell does: `dies` is a crash between two of its steps.
    fn perform(&mut self, planned: Planned, dies: bool) {
        let Planned { node, act, trust, witness } = planned;
        let now = self.clock();
        match act {
            Act::Found => {
                let fingerprint = self.nodes[node].kept.current.clone().expect("it keeps one").fingerprint;
                self.put_trust(trust, Trust::founded(self.public(&fingerprint, None), now));
            }
            Act::Fetch { edition, from } => {
                let fetched = self.fetch(edition.as_ref(), &from);
                if fetched.is_some() {
                    self.nodes[node].kept.current = fetched;
                }
            }
            Act::FetchNext { edition, from } => {
                let fetched = self.fetch(Some(&edition), &from);
                if fetched.is_some() {
                    self.nodes[node].kept.next = fetched;
                }
            }
            Act::Promote => {
                let kept = &mut self.nodes[node].kept;
                kept.current = kept.next.take();
            }
            Act::Discard => self.nodes[node].kept.next = None,
            Act::Announce(holder) => {
                self.revision += 1;
                self.holders.insert(node, (self.revision, holder));
            }
            Act::Withdraw { witness: of } => {
                let trust_is = self.trust.as_ref().map(|(revision, _)| *revision) == trust;
                if self.holders.get(&of).map(|(revision, _)| *revision) == witness && trust_is {
                    self.holders.remove(&node);
                    if !dies {
                        self.nodes[node].kept = Kept::default();
                        self.count("copies dropped");
                    }
                }
            }
            Act::Make(change) => {
                let current = self.nodes[node].kept.current.as_ref();
                let old = current.map(|edition| self.editions[&edition.fingerprint].clone());
                let (edition, cross) = match change {
                    Change::Renewal => (self.make(old), None),
                    Change::Rotation(wish) => {
                        (self.make(None), wish.overlap_ms.and(old).map(|old| old.members))
                    }
                };
                // A renewed root is vouched for as before.
                let before = self.trust.as_ref().and_then(|(_, trust)| trust.anchors[0].cross.clone());
                let cross = match change {
                    Change::Renewal => before.map(|key| key.parse().expect("a number")),
                    Change::Rotation(_) => cross,
                };
                self.nodes[node].kept.next = Some(edition.clone());
                if !dies {
                    let made = self.public(&edition.fingerprint, cross);
                    let next = self.trust.as_ref().map(|(_, trust)| trust.with_next(made, change, now));
                    self.put_trust(trust, next.expect("there is a record"));
                }
            }
            Act::Write { trust: next, .. } => {
                let before = self.trust.as_ref().expect("there is a record").1.clone();
                if self.put_trust(trust, next.clone()) && next.number > before.number {
                    let rotated = next.clients_number() > before.clients_number();
                    self.count(if rotated { "rotations" } else { "renewals" });
                } else if next.next.is_none() && before.next.is_some() {
                    self.count("editions given up");
                }
            }
            Act::Forget(nodes) => {
                for node in nodes {
                    self.holders.remove(&node);
                }
            }
        }
        if dies {
            self.nodes[node].up = false;
        }
    }

    /// What a node that is up gives of what it keeps.
    fn fetch(&self, edition: Option<&Fingerprint>, from: &[usize]) -> Option<Edition> {
        from.iter().filter(|node| self.nodes[**node].up).find_map(|node| {
            let mut kept = self.nodes[*node].kept.editions();
            kept.find(|kept| edition.is_none_or(|edition| kept.fingerprint == *edition)).cloned()
        })
    }

    /// One holder of the edition in force that is up, and what it issues by.
    fn issuer(&self) -> Option<&Keys> {
        let trust = self.trust.as_ref().map(|(_, trust)| trust);
        let may = |node: &&Node| node.up && node.kept.may_issue(trust);
        let current = self.nodes.iter().find(may)?.kept.current.as_ref()?;
        Some(&self.editions[&current.fingerprint]).filter(|keys| keys.edition.issuing.until_ms > self.clock())
    }

    /// Nodes and people get their certificates.
    fn issue(&mut self) {
        let now = self.clock();
        let Some((keys, (_, trust))) = self.issuer().cloned().zip(self.trust.clone()) else { return };
        let until_ms = (now + SERVER_LIFE).min(keys.edition.issuing.until_ms);
        let cross = trust.anchors[0].cross.as_ref().map(|key| key.parse().expect("a number"));
        let fresh = Server { root: keys.members, cross, span: Span { from_ms: now, until_ms } };
        for node in self.nodes.iter_mut().filter(|node| node.up) {
            let fits = |old: &Server| old.root == fresh.root && !old.span.is_due(now);
            if !node.server.as_ref().is_some_and(fits) {
                node.server = Some(fresh.clone());
            }
        }
        if self.once_in(20) {
            self.kubeconfigs.push(Kubeconfig {
                roots: trust.roots().map(|(members, _)| members.parse().expect("a number")).collect(),
                number: trust.clients_number(),
                span: Span { from_ms: now, until_ms: now + CLIENT_LIFE },
            });
        }
    }

    /// After every single act.
    fn check_always(&self) {
        let Some((_, trust)) = &self.trust else { return };
        let keeps = |node: &Node, edition: &Fingerprint| {
            node.kept.editions().any(|kept| kept.fingerprint == *edition)
        };
        assert!(self.nodes.iter().any(|node| keeps(node, &trust.current)), "nobody keeps {trust:?}");
        let next = trust.next.as_ref().map(|next| &next.made.fingerprint);
        for (node, (_, holder)) in &self.holders {
            for edition in holder.holds.iter().filter(|held| **held == trust.current || Some(*held) == next) {
                assert!(
                    keeps(&self.nodes[*node], edition),
                    "node {node} does not keep {edition}, as it says"
                );
            }
        }
    }

    /// When nobody has anything left to do.
    fn check_settled(&self) {
        let (_, trust) = self.trust.as_ref().expect("there has been a leader");
        let up = |node: &usize| self.nodes[*node].up;
        for node in self.voters.iter().copied().filter(up) {
            let current = self.nodes[node].kept.current.as_ref().expect("a voter keeps the authorities");
            assert_eq!(current.fingerprint, trust.current, "voter {node}");
        }
        for node in self.members.difference(&self.voters).copied().filter(up) {
            let keeps = self.nodes[node].kept.editions().next().is_some();
            assert!(!keeps || self.joint, "node {node} does not vote and keeps the authorities");
        }
        let keys = self.issuer().expect("somebody can issue");
        let issuing = keys.edition.issuing;
        let is_good = |span: Span| span.from_ms <= self.clock() && span.until_ms > self.clock() + DAY;
        assert!(is_good(issuing) && is_good(keys.edition.roots), "{issuing:?} at {}", self.clock());
        assert!(trust.anchors.len() <= 2 && trust.next.is_none() && trust.wish.is_none(), "{trust:?}");
        let known = self.stolen.iter().map(|edition| &self.editions[edition]);
        let known: BTreeSet<String> =
            known.flat_map(|keys| [keys.members, keys.clients]).map(|key| key.to_string()).collect();
        let believed =
            trust.roots().find(|(members, clients)| known.contains(*members) || known.contains(*clients));
        assert_eq!(believed, None, "what a thief has is believed: {trust:?}");
        let is_right = self.clock() == self.now;
        for kubeconfig in self.kubeconfigs.iter().filter(|kubeconfig| trust.counts(kubeconfig.number)) {
            for server in self.members.iter().copied().filter(up).map(|node| &self.nodes[node].server) {
                let server = server.as_ref().expect("each API has a certificate");
                let known = [Some(server.root), server.cross]
                    .iter()
                    .flatten()
                    .any(|key| kubeconfig.roots.contains(key));
                assert!(known, "a kubeconfig under {} does not know {}", kubeconfig.number, server.root);
                assert!(!is_right || is_good(server.span), "{:?} at {}", server.span, self.now);
            }
        }
    }

    /// Something that may happen to machines.
    fn fault(&mut self) {
        let node = self.draw(self.nodes.len() as u64) as usize;
        match self.draw(90) {
            0 => self.steal(node),
            of_machines => self.fault_of(node, of_machines / 10),
        }
        let voters: Vec<usize> = self.voters.iter().copied().filter(|node| self.nodes[*node].up).collect();
        if !voters.contains(&self.leader)
            && let Some(leader) = voters.first()
        {
            self.leader = *leader;
        }
    }

    fn fault_of(&mut self, node: usize, what: u64) {
        match what {
            0..2 => self.nodes[node].up = false,
            2..6 => self.nodes[node].up = true,
            // Several changes in a row are faster than the keys.
            6 => {
                for _ in 0..=self.draw(3) {
                    let node = self.draw(self.nodes.len() as u64) as usize;
                    self.change_voters(node);
                }
            }
            7 => drop(self.lose_disk(node)),
            _ => self.leader = node,
        }
    }

    /// One voter more, or another one once there are enough, while a majority of the old and of the new ones
    /// is up.
    fn change_voters(&mut self, node: usize) {
        if self.joint || !self.quorum() || !self.nodes[node].up || !self.members.contains(&node) {
            return;
        }
        let mut next = self.voters.clone();
        let target = if self.members.len() >= 3 { 3 } else { 1 };
        if next.insert(node) && next.len() > target {
            let goes = next.iter().copied().find(|voter| *voter != node).expect("there are others");
            next.remove(&goes);
        }
        let up = next.iter().filter(|node| self.nodes[**node].up).count();
        if up * 2 > next.len() && next != self.voters {
            self.voters = next;
            self.count("voters changed");
        }
    }

    /// A machine is in strange hands, and taken out with one command that says that it was stolen.
    fn steal(&mut self, node: usize) {
        let Some((revision, trust)) = self.trust.clone() else { return };
        let known: Vec<Fingerprint> =
            self.nodes[node].kept.editions().map(|edition| edition.fingerprint.clone()).collect();
        // Another one takes its place.
        if self.lose_disk(node) {
            self.stolen.extend(known);
            assert!(self.put_trust(Some(revision), trust.stolen(self.clock())));
            self.count("thefts");
        }
    }

    /// A disk is lost while another voter has a copy: what is lost with the last one, no rule can keep. Whether it was.
    fn lose_disk(&mut self, node: usize) -> bool {
        let Some(current) = self.trust.as_ref().map(|(_, trust)| trust.current.clone()) else { return false };
        let has = |other: &usize| {
            let kept = &self.nodes[*other].kept;
            *other != node && kept.editions().any(|kept| kept.fingerprint == current)
        };
        let left = self.voters.iter().filter(|voter| **voter != node).filter(|voter| self.nodes[**voter].up);
        if !self.voters.iter().any(has) || left.count() * 2 <= self.voters.len() {
            return false;
        }
        self.nodes[node] = Node { up: true, ..Node::default() };
        self.voters.remove(&node);
        // The old member is removed, and the machine comes back as another one of the same number.
        self.holders.remove(&node);
        self.count("disks lost");
        true
    }

    /// Until there is nothing to do, with nobody dying.
    fn settle(&mut self) {
        self.joint = false;
        (0..self.nodes.len()).for_each(|node| self.nodes[node].up = true);
        if !self.voters.contains(&self.leader) {
            self.leader = *self.voters.first().expect("somebody votes");
        }
        for _ in 0..60 {
            let busy = self.round();
            (0..self.nodes.len()).for_each(|node| self.nodes[node].up = true);
            self.issue();
            let waits = self.trust.as_ref().is_some_and(|(_, trust)| trust.next.is_some());
            if !busy && !waits {
                return self.check_settled();
            }
            self.now += 5 * SECOND;
        }
        panic!("it never comes to rest: {:?}", self.trust);
    }

    fn step(&mut self) {
        self.now += if self.once_in(3) { self.draw(60) * SECOND } else { self.draw(18) * HOUR };
        if self.once_in(400) {
            let years = [-10, -1, 1, 10][self.draw(4) as usize];
            self.clock = (years * YEAR as i64, self.now + self.draw(48) * HOUR);
            self.count("times of a wrong clock");
        }
        if self.once_in(3) {
            self.fault();
        }
        self.joint = self.once_in(30);
        if self.once_in(150)
            && let Some((revision, trust)) = self.trust.clone()
        {
            let overlap_ms = [None, Some(DAY), Some(OVERLAP)][self.draw(3) as usize];
            if let Ok(wished) = trust.with_wish(Wish { since_ms: self.clock(), overlap_ms }) {
                self.put_trust(Some(revision), wished);
            }
        }
        for _ in 0..self.draw(6) {
            self.round();
        }
        self.issue();
        self.kubeconfigs.retain(|kubeconfig| kubeconfig.span.until_ms > self.now);
    }

    fn run(&mut self, years: u64) {
        self.settle();
        let until = self.now + years * YEAR;
        while self.now < until {
            for _ in 0..20 {
                self.step();
            }
            self.settle();
        }
    }
}

#[test]
fn for_two_years_the_authorities_are_never_lost_and_always_good() {
    let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 0..30 {
        let mut world = World::new(seed, 1 + seed as usize % 5);
        world.run(2);
        for (what, times) in world.counts {
            *sums.entry(what).or_default() += times;
        }
    }
    let least = [
        ("copies dropped", 350),
        ("disks lost", 1300),
        ("editions given up", 200),
        ("renewals", 450),
        ("thefts", 100),
        ("rotations", 600),
        ("times of a wrong clock", 200),
        ("voters changed", 800),
    ];
    for (what, least) in least {
        let times = sums.get(what).copied().unwrap_or(0);
        assert!(times >= least, "{what} only {times} times, at least {least} are expected: {sums:#?}");
    }
}

#[test]
fn the_checks_see_each_bug_that_is_put_back() {
    use Mutation::{AnyWitness, ClockAheadBelieved, NoMajority, TheftWithOverlap, TwoOverlaps};
    for mutation in [AnyWitness, NoMajority, ClockAheadBelieved, TwoOverlaps, TheftWithOverlap] {
        BROKEN.set(Some(mutation));
        let seeds = 0..40;
        let caught = seeds.into_iter().find(|seed| {
            let run = || World::new(*seed, 3 + *seed as usize % 3).run(2);
            catch_unwind(AssertUnwindSafe(run)).is_err()
        });
        BROKEN.set(None);
        assert!(caught.is_some(), "{mutation:?}");
    }
}

#[test]
fn a_cluster_that_was_off_for_longer_than_its_certificates_live_goes_on() {
    for off in [50 * DAY, 100 * DAY, 400 * DAY, 3 * YEAR] {
        let mut world = World::new(7, 3);
        world.run(1);
        world.nodes.iter_mut().for_each(|node| node.up = false);
        world.now += off;
        world.settle();
    }
}

#[test]
fn a_calm_cluster_changes_its_authorities_only_at_half_of_their_life() {
    let mut world = World::new(1, 3);
    world.voters = [0, 1, 2].into();
    world.settle();
    for _ in 0..2 * 365 * 4 {
        world.now += 6 * HOUR;
        while world.round() {
            world.nodes.iter_mut().for_each(|node| node.up = true);
        }
    }
    // In 730 days the issuing certificate every 45 of them, and the roots, which live a year here, four times.
    let renewals = world.counts["renewals"];
    assert!((19..=21).contains(&renewals), "{renewals}");
}
