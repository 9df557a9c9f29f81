//! Vigils that talk to each other over a perfect network, in steps of 25 ms.

use std::cell::RefCell;

use super::*;
use crate::judge::{RENEWAL, STEP};

/// What the nodes look up: one truth for all, except that a node may have missed an election.
struct World {
    nodes: u8,
    /// The first so many vote.
    voters: u8,
    leader: Option<u8>,
    term: u64,
    quorum_acked_age: Option<Duration>,
    marked: BTreeSet<u8>,
    /// Pairs that do not reach each other.
    cut: BTreeSet<(u8, u8)>,
    /// Neither the daemon nor the kernel of these says anything.
    off: BTreeSet<u8>,
    down_in_gossip: BTreeSet<u8>,
    /// Gossip has not heard of these since its own start.
    unknown_to_gossip: BTreeSet<u8>,
    /// Nobody knows an address of these that leads anywhere.
    without_address: BTreeSet<u8>,
    /// Whether there is a gateway that answers who is not `unplugged`.
    gateway: bool,
    unplugged: BTreeSet<u8>,
}

impl World {
    fn passes(&self, from: u8, to: u8) -> bool {
        let unplugged = |node| self.unplugged.contains(&node);
        let cut = self.cut.contains(&(from, to)) || self.cut.contains(&(to, from));
        !self.off.contains(&to) && (from == to || !cut && !unplugged(from) && !unplugged(to))
    }
}

impl Sight<u8> for RefCell<World> {
    fn leadership(&self) -> Leadership<u8> {
        let world = self.borrow();
        Leadership {
            leader: world.leader,
            term: world.term,
            voters: (0..world.voters).collect(),
            revision: 7,
            writable: true,
            quorum_acked_age: world.quorum_acked_age,
        }
    }

    fn members(&self) -> Vec<(u8, bool)> {
        let world = self.borrow();
        (0..world.nodes).map(|node| (node, world.marked.contains(&node))).collect()
    }

    fn gossip(&self, node: u8) -> Gossip {
        let world = self.borrow();
        match world.down_in_gossip.contains(&node) {
            true => Gossip::Down,
            false if world.unknown_to_gossip.contains(&node) => Gossip::Unsure,
            false => Gossip::Alive,
        }
    }

    fn rtt(&self, _: u8) -> Duration {
        Duration::ZERO
    }
}

struct Cluster {
    now: Instant,
    world: RefCell<World>,
    vigils: Vec<Vigil<u8>>,
    /// What was sent, in order, and what was said of nodes.
    sent: Vec<(u8, u8, Message<u8>)>,
    said: Vec<(u64, Effect<u8>)>,
}

impl Cluster {
    fn new(leader: u8) -> Cluster {
        Cluster::of(3, leader)
    }

    /// With a gateway.
    fn of(nodes: u8, leader: u8) -> Cluster {
        let world = World {
            nodes,
            voters: nodes,
            leader: Some(leader),
            term: 1,
            quorum_acked_age: Some(Duration::ZERO),
            marked: BTreeSet::new(),
            cut: BTreeSet::new(),
            off: BTreeSet::new(),
            down_in_gossip: BTreeSet::new(),
            unknown_to_gossip: BTreeSet::new(),
            without_address: BTreeSet::new(),
            gateway: true,
            unplugged: BTreeSet::new(),
        };
        Cluster {
            now: Instant(1_000_000),
            world: RefCell::new(world),
            vigils: (0..nodes).map(|node| Vigil::new(node, Settings::default())).collect(),
            sent: Vec::new(),
            said: Vec::new(),
        }
    }

    fn elect(&mut self, leader: Option<u8>) {
        let mut world = self.world.borrow_mut();
        world.leader = leader;
        world.term += 1;
    }

    fn pass(&mut self, time: Duration) {
        for _ in 0..time.as_millis() / PROBE_STEP.as_millis() {
            self.now = self.now.after(PROBE_STEP);
            let due = |every: Duration| u128::from(self.now.0).is_multiple_of(every.as_millis());
            let (renew, step, learn) = (due(RENEWAL), due(STEP), due(LEARN_EVERY));
            let nodes = self.world.borrow().nodes;
            for node in 0..nodes {
                if self.world.borrow().off.contains(&node) {
                    continue;
                }
                let mut effects = Vec::new();
                let (vigil, now) = (&mut self.vigils[usize::from(node)], self.now);
                if renew {
                    vigil.renew(now, &self.world, &mut effects);
                }
                if step {
                    vigil.step(now, &self.world, &mut effects);
                }
                vigil.probe(now, &self.world, &mut effects);
                if learn {
                    vigil.learn(now, &self.world, &mut effects);
                }
                self.perform(node, effects);
            }
        }
    }

    fn perform(&mut self, node: u8, effects: Vec<Effect<u8>>) {
        for effect in effects {
            let mut answers = Vec::new();
            match effect {
                Effect::Send { to, message } => {
                    self.sent.push((node, to, message.clone()));
                    if !self.world.borrow().passes(node, to) {
                        continue;
                    }
                    let vigil = &mut self.vigils[usize::from(to)];
                    vigil.hear(self.now, node, message, &self.world, &mut answers);
                    self.perform(to, answers);
                }
                Effect::Try { about, .. } if self.world.borrow().without_address.contains(&about) => {}
                Effect::Try { about, began, .. } => {
                    let answer = self.world.borrow().passes(node, about).then_some(Answer::Accepts);
                    let vigil = &mut self.vigils[usize::from(node)];
                    vigil.tried(self.now, about, began, answer, &self.world, &mut answers);
                    self.perform(node, answers);
                }
                Effect::TryGateway { began, .. } if self.world.borrow().gateway => {
                    let answered = !self.world.borrow().unplugged.contains(&node);
                    let vigil = &mut self.vigils[usize::from(node)];
                    vigil.gateway_tried(began, answered, &mut answers);
                    self.perform(node, answers);
                }
                said => self.said.push((self.now.0, said)),
            }
        }
    }

    /// When the node was called lost for the last time.
    fn lost_at(&self, lost: u8) -> u64 {
        let said = |said: &Effect<u8>| matches!(said, Effect::Lost { node, .. } if *node == lost);
        self.said.iter().rev().find(|(_, effect)| said(effect)).expect("it was called lost").0
    }

    fn handed_over(&self, to: u8) -> bool {
        self.said.iter().any(|(_, said)| *said == Effect::HandOver(to))
    }

    fn lost(&self) -> Vec<u8> {
        let lost = |(_, effect): &(u64, Effect<u8>)| match effect {
            Effect::Lost { node, .. } => Some(*node),
            _ => None,
        };
        self.said.iter().filter_map(lost).collect()
    }
}

/// A cluster that wakes after everything was off: all vigils are new, and `off` machines do not come back. Gossip has
/// not heard of them, and `known` says whether anybody remembers where they were.
fn woken(nodes: u8, off: &[u8], known: bool) -> Cluster {
    let cluster = Cluster::of(nodes, 0);
    let mut world = cluster.world.borrow_mut();
    world.off.extend(off);
    world.unknown_to_gossip.extend(off);
    if !known {
        world.without_address.extend(off);
    }
    drop(world);
    cluster
}

fn word(reaches: &[u8]) -> Word<u8> {
    Word { revision: 7, writable: true, reaches: reaches.to_vec() }
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn a_machine_that_is_off_is_lost_and_welcomed_when_it_renews() {
    let mut cluster = Cluster::new(0);
    cluster.pass(ms(5000));
    assert!(cluster.lost().is_empty());
    cluster.world.borrow_mut().off.insert(2);
    cluster.pass(ms(2500));
    assert!(cluster.lost().is_empty());
    cluster.pass(ms(750));
    assert_eq!(cluster.lost(), [2]);
    assert_eq!(cluster.vigils[0].verdicts().collect::<Vec<_>>(), [(2, Verdict::Unreachable)]);
    let mut world = cluster.world.borrow_mut();
    world.marked.insert(2);
    world.off.clear();
    drop(world);
    cluster.pass(ms(1000));
    assert!(cluster.said.iter().any(|(_, said)| *said == Effect::Back(2)), "{:?}", cluster.said);
    assert_eq!(cluster.vigils[0].verdicts().collect::<Vec<_>>(), [(2, Verdict::Alive)]);
}

#[test]
fn after_everything_was_off_a_machine_that_stays_off_is_lost_like_any_other_counted_from_office() {
    for (nodes, off) in [(2, &[1][..]), (3, &[2]), (5, &[3, 4]), (7, &[4, 5, 6])] {
        let mut cluster = woken(nodes, off, true);
        cluster.pass(ms(2500));
        assert!(cluster.lost().is_empty(), "of {nodes}");
        cluster.pass(ms(1000));
        assert_eq!(cluster.lost(), off, "of {nodes}");
    }
}

#[test]
fn a_machine_that_stays_off_and_whose_addresses_nobody_knows_is_lost_ten_seconds_from_office() {
    for (nodes, off) in [(3, &[2][..]), (5, &[3, 4]), (7, &[4, 5, 6])] {
        let mut cluster = woken(nodes, off, false);
        cluster.pass(ms(9500));
        assert!(cluster.lost().is_empty(), "of {nodes}");
        cluster.pass(ms(1000));
        assert_eq!(cluster.lost(), off, "of {nodes}");
        let causes = cluster.said.iter().filter_map(|(_, said)| match said {
            Effect::Lost { cause, .. } => Some(*cause),
            _ => None,
        });
        assert!(causes.clone().all(|cause| cause == Cause::NeverHeard), "{:?}", causes.collect::<Vec<_>>());
    }
}

/// Without an address nobody knows which link leads to it either, so no gateway proves that link.
#[test]
fn of_two_nodes_one_that_stays_off_and_whose_addresses_nobody_knows_is_lost_after_half_a_minute() {
    let mut cluster = woken(2, &[1], false);
    cluster.world.borrow_mut().gateway = false;
    cluster.pass(ms(29_500));
    assert!(cluster.lost().is_empty());
    cluster.pass(ms(1000));
    assert_eq!(cluster.lost(), [1]);
}

#[test]
fn when_most_stay_off_they_are_lost_after_half_a_minute_whether_anybody_knows_their_addresses_or_not() {
    for known in [true, false] {
        let mut cluster = woken(7, &[3, 4, 5, 6], known);
        cluster.pass(ms(29_500));
        assert!(cluster.lost().is_empty());
        cluster.pass(ms(1000));
        assert_eq!(cluster.lost(), [3, 4, 5, 6], "known: {known}");
    }
}

/// The leader takes office as soon as a majority is there; the others follow over a minute.
#[test]
fn members_that_start_one_after_another_are_not_lost_if_they_are_back_within_their_row() {
    for (known, late) in [(true, ms(2000)), (false, ms(9000))] {
        let mut cluster = woken(5, &[3, 4], known);
        cluster.pass(late);
        for back in [3, 4] {
            let mut world = cluster.world.borrow_mut();
            world.off.remove(&back);
            world.unknown_to_gossip.remove(&back);
        }
        cluster.pass(ms(60_000));
        assert!(cluster.lost().is_empty(), "known: {known}");
    }
}

#[test]
fn one_that_comes_back_later_than_its_row_is_welcomed() {
    for known in [true, false] {
        let mut cluster = woken(3, &[2], known);
        cluster.pass(ms(15_000));
        assert_eq!(cluster.lost(), [2]);
        let mut world = cluster.world.borrow_mut();
        world.marked.insert(2);
        world.off.clear();
        drop(world);
        cluster.pass(ms(1000));
        assert!(cluster.said.iter().any(|(_, said)| *said == Effect::Back(2)), "{:?}", cluster.said);
    }
}

#[test]
fn a_leader_without_any_view_of_gossip_judges_all_the_same() {
    let mut cluster = Cluster::new(0);
    cluster.world.borrow_mut().unknown_to_gossip.extend([0, 1, 2]);
    cluster.pass(ms(70_000));
    assert!(cluster.lost().is_empty());
    cluster.world.borrow_mut().off.insert(2);
    cluster.pass(ms(3250));
    assert_eq!(cluster.lost(), [2]);
}

/// Its address was known and leads nowhere any more: every try ends with "network is unreachable".
#[test]
fn a_node_that_falls_silent_and_that_nobody_can_probe_is_lost_after_half_a_minute() {
    let mut cluster = Cluster::new(0);
    cluster.pass(ms(5000));
    let mut world = cluster.world.borrow_mut();
    world.off.insert(2);
    world.without_address.insert(2);
    drop(world);
    cluster.pass(ms(29_000));
    assert!(cluster.lost().is_empty());
    cluster.pass(ms(2000));
    assert_eq!(cluster.lost(), [2]);
}

#[test]
fn a_machine_that_announced_its_stop_is_lost_as_soon_as_any_other_once_its_power_is_off() {
    let mut cluster = Cluster::new(0);
    cluster.pass(ms(5000));
    cluster.vigils[0].announced(cluster.now, 2);
    cluster.world.borrow_mut().off.insert(2);
    cluster.pass(ms(2500));
    assert!(cluster.lost().is_empty());
    cluster.pass(ms(750));
    assert_eq!(cluster.lost(), [2]);
}

/// A new leader would otherwise begin to try the old one's kernel at its election, a second too late.
#[test]
fn a_leader_that_grants_nothing_is_probed_before_anybody_asks() {
    let mut cluster = Cluster::new(0);
    cluster.pass(ms(3000));
    cluster.world.borrow_mut().off.insert(0);
    cluster.elect(None);
    cluster.pass(ms(1000));
    assert!(cluster.vigils[1].is_probing() && cluster.vigils[2].is_probing());
    cluster.elect(Some(1));
    let elected_at = cluster.now;
    cluster.pass(ms(2500));
    assert_eq!(cluster.lost(), [0]);
    let at = cluster.lost_at(0);
    assert!(at - elected_at.0 < 2300, "{} ms after the election", at - elected_at.0);
}

/// Openraft shows the quorum's acknowledgement only after the first heartbeat of a term; a judge that takes
/// that for silence forgets what it has heard of the old leader.
#[test]
fn winning_the_election_was_contact_with_a_quorum() {
    let mut cluster = Cluster::new(0);
    cluster.pass(ms(3000));
    cluster.world.borrow_mut().quorum_acked_age = None;
    cluster.world.borrow_mut().off.insert(0);
    cluster.elect(None);
    cluster.pass(ms(1000));
    cluster.elect(Some(1));
    cluster.pass(ms(300));
    cluster.world.borrow_mut().quorum_acked_age = Some(Duration::ZERO);
    let at = cluster.now;
    cluster.pass(ms(2000));
    assert_eq!(cluster.lost(), [0]);
    assert!(cluster.lost_at(0) - at.0 < 2300, "{:?}", cluster.said);
}

#[test]
fn verdicts_end_with_the_office() {
    let mut cluster = Cluster::new(0);
    cluster.world.borrow_mut().off.insert(2);
    cluster.pass(ms(4000));
    assert_eq!(cluster.vigils[0].verdicts().count(), 1);
    cluster.elect(Some(1));
    cluster.pass(RENEWAL);
    assert_eq!(cluster.vigils[0].verdicts().count(), 0);
    assert!(cluster.said.iter().any(|(_, said)| *said == Effect::LeftOffice { term: 1 }));
}

#[test]
fn a_renewal_to_a_voter_that_does_not_lead_is_passed_on_once() {
    let mut cluster = Cluster::new(0);
    let renewal = Message::Renewal { origin: 2, term: 1, tick: None, word: word(&[]) };
    let mut effects = Vec::new();
    cluster.vigils[1].hear(cluster.now, 2, renewal.clone(), &cluster.world, &mut effects);
    assert_eq!(effects, [Effect::Send { to: 0, message: renewal.clone() }]);
    effects.clear();
    cluster.vigils[1].hear(cluster.now, 0, renewal, &cluster.world, &mut effects);
    assert!(effects.is_empty(), "{effects:?}");
}

#[test]
fn a_node_that_hears_no_grant_renews_through_the_other_voters() {
    let mut cluster = Cluster::new(0);
    cluster.pass(ms(2000));
    cluster.sent.clear();
    cluster.pass(ms(500));
    assert!(!cluster.sent.iter().any(|(from, to, _)| (*from, *to) == (1, 2)), "{:?}", cluster.sent);
    cluster.world.borrow_mut().off.insert(0);
    cluster.pass(ms(1500));
    assert!(cluster.sent.iter().any(|(from, to, message)| {
        (*from, *to) == (1, 2) && matches!(message, Message::Renewal { origin: 1, .. })
    }));
}

#[test]
fn a_leader_that_votes_alone_is_renewed_with_through_other_members() {
    let mut cluster = Cluster::new(0);
    cluster.world.borrow_mut().voters = 1;
    cluster.pass(ms(2000));
    cluster.world.borrow_mut().cut.insert((0, 2));
    cluster.sent.clear();
    cluster.pass(ms(60_000));
    assert!(cluster.lost().is_empty());
    let granted = |(from, to, message): &(u8, u8, Message<u8>)| {
        (*from, *to) == (1, 2) && matches!(message, Message::Grant { origin: 2, .. })
    };
    assert!(cluster.sent.iter().any(granted));
    assert!(!cluster.sent.iter().any(|(_, to, message)| *to != 0 && *message == Message::Greeting));
}

#[test]
fn a_grant_of_an_older_term_changes_nothing() {
    let mut cluster = Cluster::new(0);
    cluster.elect(Some(0));
    let mut vigil = Vigil::new(1, Settings::default());
    let mut effects = Vec::new();
    for (term, tick) in [(2, 500), (1, 900)] {
        let grant = Message::Grant { origin: 1, term, tick: Instant(tick), survey: false };
        vigil.hear(cluster.now, 0, grant, &cluster.world, &mut effects);
    }
    vigil.renew(cluster.now, &cluster.world, &mut effects);
    let message = Message::Renewal { origin: 1, term: 2, tick: Some(Instant(500)), word: word(&[0]) };
    assert_eq!(effects, [Effect::Send { to: 0, message }]);
}

#[test]
fn a_report_for_an_older_office_is_dropped() {
    let mut cluster = Cluster::new(0);
    cluster.world.borrow_mut().off.insert(2);
    cluster.pass(ms(2000));
    let in_vain = Report { unanswered: 99, unanswered_for: ms(9000), answer: None, gossip_down: true };
    let old = Message::Report { term: 0, about: 2, report: in_vain };
    let mut effects = Vec::new();
    cluster.vigils[0].hear(cluster.now, 1, old, &cluster.world, &mut effects);
    cluster.vigils[0].step(cluster.now, &cluster.world, &mut effects);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Lost { .. })), "{effects:?}");
}

#[test]
fn only_members_that_gossip_calls_alive_are_tried_to_learn_whether_they_answer() {
    let cluster = Cluster::new(0);
    cluster.world.borrow_mut().down_in_gossip.insert(1);
    let mut effects = Vec::new();
    cluster.vigils[0].learn(cluster.now, &cluster.world, &mut effects);
    assert_eq!(effects, [Effect::Learn(2)]);
}

#[test]
fn of_two_nodes_the_lost_one_is_declared_quickly_while_the_gateway_answers() {
    let mut cluster = Cluster::of(2, 0);
    cluster.pass(ms(5000));
    assert!(cluster.said.iter().any(|(_, said)| *said == Effect::GatewayAnswers { beside: 1 }));
    cluster.world.borrow_mut().off.insert(1);
    cluster.pass(ms(3250));
    assert_eq!(cluster.lost(), [1]);
}

#[test]
fn of_two_nodes_the_one_whose_own_link_is_down_declares_nobody() {
    let mut cluster = Cluster::of(2, 0);
    cluster.pass(ms(5000));
    cluster.world.borrow_mut().unplugged.insert(0);
    cluster.pass(ms(120_000));
    cluster.world.borrow_mut().unplugged.clear();
    cluster.pass(ms(5000));
    assert!(cluster.lost().is_empty());
}

#[test]
fn of_two_nodes_without_a_gateway_the_lost_one_is_declared_after_half_a_minute() {
    let mut cluster = Cluster::of(2, 0);
    cluster.world.borrow_mut().gateway = false;
    cluster.pass(ms(5000));
    cluster.world.borrow_mut().off.insert(1);
    cluster.pass(ms(29_000));
    assert!(cluster.lost().is_empty());
    cluster.pass(ms(2000));
    assert_eq!(cluster.lost(), [1]);
}

#[test]
fn the_gateway_is_tried_once_a_minute_while_all_is_well_and_often_while_the_other_one_is_silent() {
    let tries = |cluster: &Cluster| {
        cluster.said.iter().filter(|(_, said)| matches!(said, Effect::TryGateway { .. })).count()
    };
    let mut cluster = Cluster::of(2, 0);
    // Otherwise what is tried is not noted.
    cluster.world.borrow_mut().gateway = false;
    cluster.pass(ms(300_000));
    assert!((5..=6).contains(&tries(&cluster)), "{} tries in five minutes", tries(&cluster));
    cluster.world.borrow_mut().off.insert(1);
    cluster.pass(ms(2500));
    assert!(tries(&cluster) > 12, "{} tries", tries(&cluster));
}

#[test]
fn beside_more_than_one_other_node_no_gateway_is_tried() {
    let mut cluster = Cluster::of(3, 0);
    cluster.world.borrow_mut().gateway = false;
    cluster.world.borrow_mut().off.insert(1);
    cluster.pass(ms(130_000));
    assert!(!cluster.said.iter().any(|(_, said)| matches!(said, Effect::TryGateway { .. })));
}

#[test]
fn the_leader_is_told_what_each_member_shows_and_nobody_elses_word_counts() {
    let mut cluster = Cluster::new(0);
    cluster.pass(ms(1000));
    let told = |said: &[(u64, Effect<u8>)], node| {
        said.iter().any(|(_, said)| *said == Effect::Shows { node, revision: 7 })
    };
    assert!(told(&cluster.said, 1) && told(&cluster.said, 2));
    let stranger = Message::Renewal { origin: 9, term: 1, tick: None, word: word(&[]) };
    let mut effects = Vec::new();
    cluster.vigils[0].hear(cluster.now, 1, stranger, &cluster.world, &mut effects);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Shows { .. })), "{effects:?}");
}

#[test]
fn a_leader_that_one_node_does_not_reach_hands_over_to_one_that_all_reach() {
    let mut cluster = Cluster::new(0);
    cluster.pass(ms(5000));
    cluster.world.borrow_mut().cut.insert((0, 2));
    cluster.pass(ms(5000));
    assert!(!cluster.handed_over(1), "an outage of some seconds is waited out");
    cluster.pass(ms(4000));
    assert!(cluster.handed_over(1) && !cluster.handed_over(2));
    assert!(cluster.sent.contains(&(0, 1, Message::Chosen)));
    cluster.elect(Some(1));
    cluster.said.clear();
    cluster.pass(ms(60_000));
    assert!(!cluster.handed_over(0) && !cluster.handed_over(2), "all reach it: there it stays");
    assert!(cluster.lost().is_empty());
}

#[test]
fn while_all_reach_the_leader_nobody_greets() {
    let mut cluster = Cluster::new(0);
    cluster.pass(ms(5000));
    cluster.sent.clear();
    cluster.pass(ms(60_000));
    assert!(!cluster.sent.iter().any(|(.., message)| *message == Message::Greeting));
}

#[test]
fn a_node_that_names_more_voters_than_there_can_be_is_cut_short() {
    let mut cluster = Cluster::new(0);
    cluster.pass(ms(1000));
    let many: Vec<u8> = (0..=255).collect();
    let renewal = Message::Renewal { origin: 2, term: 1, tick: Some(cluster.now), word: word(&many) };
    cluster.vigils[0].hear(cluster.now, 2, renewal, &cluster.world, &mut Vec::new());
    let office = cluster.vigils[0].office.as_ref().expect("it leads");
    assert_eq!(office.words[&2].1.reaches.len(), REACHES_MAX);
}
