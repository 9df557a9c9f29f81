//! One test for each row of the rule, then a small world in virtual time: nodes that renew, kernels that
//! answer or do not, links that are cut, and one leader with a judge.

use super::*;
use crate::own_link::LinkProof;
use crate::probe::Probe;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A silence of `lasts_ms` about which two observers say the same.
fn silence(lasts_ms: u64, report: Report) -> Silence {
    Silence {
        lasts: ms(lasts_ms),
        heard: true,
        answered: report.answer.map(|(_, age)| age),
        refused_for: ms(lasts_ms.saturating_sub(600)),
        reports: vec![report; 2],
        observers_needed: 2,
        rtt: Duration::ZERO,
        probes_reach_it: true,
        announced: false,
        mass: false,
        own_link: OwnLink::Proven,
    }
}

fn in_vain() -> Report {
    Report { unanswered: 20, unanswered_for: ms(2250), answer: None, gossip_down: false }
}

fn answered(answer: Answer) -> Report {
    Report {
        unanswered: 0,
        unanswered_for: Duration::ZERO,
        answer: Some((answer, ms(400))),
        gossip_down: true,
    }
}

/// The rule speaks at exactly `limit_ms`.
#[track_caller]
fn check(at: impl Fn(u64) -> Silence, limit_ms: u64, cause: Cause) {
    let settings = Settings::default();
    assert_eq!(verdict(&at(limit_ms - 1), &settings), Verdict::Keep);
    assert_eq!(verdict(&at(limit_ms), &settings), Verdict::Lost(cause));
}

#[test]
fn nothing_answered_to_two_observers_is_a_lost_machine() {
    check(|lasts| silence(lasts, in_vain()), 2750, Cause::NoAnswer);
}

#[test]
fn a_refused_port_is_a_daemon_that_may_come_back() {
    check(|lasts| silence(lasts, answered(Answer::Refused)), 5000, Cause::DaemonGone);
}

#[test]
fn a_daemon_that_was_there_a_moment_ago_has_its_time_to_come_back_whatever_it_was_silent_for_before() {
    let refused =
        |refused_ms| Silence { refused_for: ms(refused_ms), ..silence(29_000, answered(Answer::Refused)) };
    check(refused, 4000, Cause::DaemonGone);
}

#[test]
fn an_accepting_port_or_an_echo_is_a_machine_that_still_serves() {
    check(|lasts| silence(lasts, answered(Answer::Accepts)), 30_000, Cause::Stuck);
    check(|lasts| silence(lasts, answered(Answer::Echo)), 30_000, Cause::Stuck);
}

#[test]
fn a_firewalled_node_is_judged_by_gossip() {
    let firewalled = |lasts| Silence {
        probes_reach_it: false,
        ..silence(lasts, Report { gossip_down: true, ..in_vain() })
    };
    check(firewalled, 3000, Cause::GossipDown);
}

#[test]
fn any_answer_vetoes_and_the_most_alive_answer_wins() {
    let settings = Settings::default();
    let mut mixed = silence(29_000, in_vain());
    mixed.reports[1] = answered(Answer::Echo);
    assert_eq!(verdict(&mixed, &settings), Verdict::Keep);
    mixed.reports[0] = answered(Answer::Refused);
    assert_eq!(verdict(&mixed, &settings), Verdict::Lost(Cause::DaemonGone));
    mixed.reports[1] = answered(Answer::Accepts);
    assert_eq!(verdict(&mixed, &settings), Verdict::Keep);
}

#[test]
fn an_old_answer_no_longer_vetoes() {
    let old = Report { answer: Some((Answer::Accepts, ms(1501))), ..in_vain() };
    check(|lasts| silence(lasts, old), 2750, Cause::NoAnswer);
}

/// An observer that could not try at all: it knows no address, or has no route there.
fn blind() -> Report {
    Report { unanswered: 0, unanswered_for: Duration::ZERO, answer: None, gossip_down: false }
}

/// All that reports may say without being enough for a quick verdict.
fn too_little() -> Vec<Vec<Report>> {
    let few = Report { unanswered: 4, ..in_vain() };
    let short = Report { unanswered_for: ms(2249), ..in_vain() };
    vec![
        vec![],
        vec![blind()],
        vec![blind(), blind()],
        vec![in_vain()],
        vec![in_vain(), blind()],
        vec![few, few],
        vec![short, short],
        vec![in_vain(), few],
    ]
}

#[test]
fn a_node_that_fell_silent_and_that_too_few_could_probe_waits_half_a_minute() {
    for reports in too_little() {
        check(
            |lasts| Silence { reports: reports.clone(), ..silence(lasts, blind()) },
            30_000,
            Cause::Unwitnessed,
        );
    }
}

#[test]
fn a_node_that_was_never_heard_in_this_office_and_that_too_few_could_probe_waits_as_long_as_is_set() {
    for reports in too_little() {
        let never = |lasts| Silence { heard: false, reports: reports.clone(), ..silence(lasts, blind()) };
        check(never, 10_000, Cause::NeverHeard);
        let settings = Settings { never_heard: ms(60_000), ..Settings::default() };
        assert_eq!(verdict(&never(59_999), &settings), Verdict::Keep);
        assert_eq!(verdict(&never(60_000), &settings), Verdict::Lost(Cause::NeverHeard));
    }
}

#[test]
fn a_node_that_was_never_heard_and_can_be_probed_is_judged_like_any_other() {
    let never = |lasts, report| Silence { heard: false, ..silence(lasts, report) };
    check(|lasts| never(lasts, in_vain()), 2750, Cause::NoAnswer);
    check(|lasts| never(lasts, answered(Answer::Refused)), 5000, Cause::DaemonGone);
    check(|lasts| never(lasts, answered(Answer::Accepts)), 30_000, Cause::Stuck);
}

/// After everything was off an observer has not learned yet that a firewall swallows its probes, or remembers it,
/// and gossip knows nothing of a node that has not come back.
#[test]
fn a_firewalled_node_that_gossip_does_not_know_is_lost_all_the_same() {
    let unknown = |lasts, heard| Silence { heard, probes_reach_it: false, ..silence(lasts, in_vain()) };
    check(|lasts| unknown(lasts, false), 10_000, Cause::NeverHeard);
    check(|lasts| unknown(lasts, true), 30_000, Cause::Unwitnessed);
}

#[test]
fn somebody_who_reached_it_vetoes_for_half_a_minute_though_his_reports_are_lost() {
    let settings = Settings::default();
    for heard in [true, false] {
        let reached = |age| Silence {
            heard,
            answered: Some(ms(age)),
            reports: vec![in_vain()],
            ..silence(3_600_000, in_vain())
        };
        assert_eq!(verdict(&reached(29_999), &settings), Verdict::Keep);
        assert_eq!(verdict(&reached(30_000), &settings), Verdict::Lost(Cause::Unwitnessed));
    }
}

#[test]
fn an_announced_restart_shields_while_the_kernel_answers_or_could_not_be_heard() {
    let announced = |lasts, report| Silence { announced: true, ..silence(lasts, report) };
    check(|lasts| announced(lasts, answered(Answer::Refused)), 30_000, Cause::DaemonGone);
    let firewalled = |lasts| Silence {
        probes_reach_it: false,
        ..announced(lasts, Report { gossip_down: true, ..in_vain() })
    };
    check(firewalled, 30_000, Cause::GossipDown);
}

#[test]
fn an_announced_stop_does_not_shield_a_machine_that_does_not_answer() {
    check(|lasts| Silence { announced: true, ..silence(lasts, in_vain()) }, 2750, Cause::NoAnswer);
}

#[test]
fn mass_silence_and_a_lone_observer_that_knows_nothing_of_its_link_wait_half_a_minute() {
    let calm: [fn(&mut Silence); 2] = [
        |silence| silence.mass = true,
        |silence| {
            silence.own_link = OwnLink::Unknown;
            silence.observers_needed = 1;
        },
    ];
    for make in calm {
        let at = |lasts| {
            let mut silence = silence(lasts, in_vain());
            make(&mut silence);
            silence
        };
        check(at, 30_000, Cause::NoAnswer);
        check(|lasts| Silence { heard: false, reports: vec![], ..at(lasts) }, 30_000, Cause::NeverHeard);
    }
}

#[test]
fn a_lone_observer_that_is_cut_off_itself_calls_nobody_lost() {
    let settings = Settings::default();
    for (reached, own_link) in
        [true, false].into_iter().flat_map(|reached| [(reached, OwnLink::Cut), (reached, OwnLink::Unproven)])
    {
        let report = Report { gossip_down: true, ..in_vain() };
        let mut silence = Silence { probes_reach_it: reached, ..silence(3_600_000, report) };
        silence.own_link = own_link;
        silence.observers_needed = 1;
        assert_eq!(verdict(&silence, &settings), Verdict::Keep);
        let never = Silence { heard: false, reports: vec![], ..silence };
        assert_eq!(verdict(&never, &settings), Verdict::Keep);
    }
}

#[test]
fn an_answer_of_the_other_kernel_proves_the_own_link_whatever_the_gateway_does() {
    for own_link in [OwnLink::Unknown, OwnLink::Unproven] {
        let alone =
            |lasts, answer| Silence { own_link, observers_needed: 1, ..silence(lasts, answered(answer)) };
        check(|lasts| alone(lasts, Answer::Refused), 5000, Cause::DaemonGone);
        check(|lasts| alone(lasts, Answer::Accepts), 30_000, Cause::Stuck);
    }
}

#[test]
fn a_longer_outage_to_survive_makes_every_verdict_that_much_later() {
    let settings = Settings { outage_survived: ms(10_000), ..Settings::default() };
    let tried = Report { unanswered_for: ms(10_250), ..in_vain() };
    assert_eq!(verdict(&silence(10_749, tried), &settings), Verdict::Keep);
    assert_eq!(verdict(&silence(10_750, tried), &settings), Verdict::Lost(Cause::NoAnswer));
    assert_eq!(verdict(&silence(10_750, in_vain()), &settings), Verdict::Keep);
}

/// What a node is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Power {
    Running,
    /// Its daemon is stopped; the kernel accepts connects until the backlog is full.
    Stopped,
    /// Its daemon is dead; the kernel refuses.
    DaemonDead,
    Off,
}

/// Nodes 0..count; node 0 leads. Times are milliseconds.
struct World {
    now: u64,
    judge: Judge<u8>,
    power: Vec<Power>,
    /// Directions that lose everything.
    cut: BTreeSet<(u8, u8)>,
    /// The leader's tick each node saw last.
    tick: Vec<Option<u64>>,
    phase: u64,
    asked: BTreeMap<(u8, u8), Probe>,
    tries: Vec<(u64, u64, u8, u8)>,
    declared: Vec<(u64, u8, Cause)>,
    quorum: bool,
    /// The leader's view of a gateway; `None` where there is none.
    gateway: Option<LinkProof>,
    /// Whether the leader's cable is plugged in.
    plugged: bool,
}

impl World {
    fn new(count: u8, phase: u64) -> World {
        let mut judge = Judge::new(0, Instant(0), None, Settings::default());
        judge.set_members(Instant(0), (0..count).map(|id| (id, false, true)));
        World {
            now: 0,
            judge,
            power: vec![Power::Running; count as usize],
            cut: BTreeSet::new(),
            tick: vec![None; count as usize],
            phase,
            asked: BTreeMap::new(),
            tries: Vec::new(),
            declared: Vec::new(),
            quorum: true,
            gateway: None,
            plugged: true,
        }
    }

    /// A leader and one more node, with a gateway that has been seen to answer.
    fn of_two(phase: u64) -> World {
        let mut gateway = LinkProof::default();
        gateway.ended(Instant(0), true);
        World { gateway: Some(gateway), ..World::new(2, phase) }
    }

    fn passes(&self, from: u8, to: u8) -> bool {
        let plugged = self.plugged || (from != 0 && to != 0);
        plugged && !self.cut.contains(&(from, to)) && self.power[to as usize] != Power::Off
    }

    fn isolate(&mut self, node: u8) {
        for other in (0..self.power.len() as u8).filter(|other| *other != node) {
            self.cut.extend([(node, other), (other, node)]);
        }
    }

    fn run_until(&mut self, end: u64) {
        while self.now < end {
            self.now += 10;
            self.renewals();
            self.probes();
            let (now, plugged) = (Instant(self.now), self.plugged);
            if let Some(gateway) = &mut self.gateway
                && gateway.begin(now)
            {
                gateway.ended(now, plugged);
            }
            if self.now.is_multiple_of(STEP.as_millis() as u64) {
                self.step();
            }
        }
    }

    fn renewals(&mut self) {
        for node in 1..self.power.len() as u8 {
            let due = (self.now + self.phase + 70 * u64::from(node)).is_multiple_of(250);
            if !due || self.power[node as usize] != Power::Running || !self.passes(node, 0) {
                continue;
            }
            let tick = self.tick[node as usize].map(Instant);
            self.judge.renewed(Instant(self.now), node, tick, Duration::ZERO);
            if self.passes(0, node) {
                self.tick[node as usize] = Some(self.now);
            }
        }
    }

    fn probes(&mut self) {
        let now = Instant(self.now);
        self.asked.retain(|_, probe| !probe.is_over(now));
        for ((observer, about), probe) in &mut self.asked {
            let alive = self.power[*observer as usize] == Power::Running;
            if alive && probe.begin(now) {
                self.tries.push((self.now, self.now + 200, *observer, *about));
            }
        }
        let tries = std::mem::take(&mut self.tries);
        for (began, limit, observer, about) in tries {
            let back_and_forth = self.passes(observer, about) && self.passes(about, observer);
            let answer = match self.power[about as usize] {
                Power::Running | Power::Stopped => Answer::Accepts,
                Power::DaemonDead => Answer::Refused,
                Power::Off => Answer::Echo,
            };
            let answer = (back_and_forth && self.power[about as usize] != Power::Off).then_some(answer);
            if answer.is_none() && self.now < limit {
                self.tries.push((began, limit, observer, about));
                continue;
            }
            if let Some(probe) = self.asked.get_mut(&(observer, about)) {
                probe.ended(Instant(began), now, answer);
                let report = probe.report(now, false);
                if self.passes(observer, 0) {
                    self.judge.reported(now, observer, about, report);
                }
            }
        }
    }

    fn step(&mut self) {
        if self.power[0] != Power::Running {
            return;
        }
        let now = Instant(self.now);
        let age = if self.quorum { Duration::ZERO } else { ms(601) };
        let outage = Settings::default().outage_survived;
        let own_link = self.gateway.as_ref().map_or(OwnLink::Unknown, |gateway| gateway.verdict(now, outage));
        for effect in self.judge.step(now, age, own_link) {
            match effect {
                Effect::Ask { observer, about } => {
                    if let Some(gateway) = &mut self.gateway {
                        gateway.wanted(now);
                    }
                    if observer == 0 || self.passes(0, observer) {
                        let probe = self.asked.entry((observer, about));
                        probe.or_insert_with(|| Probe::new(now)).asked(now);
                    }
                }
                Effect::Declare { node, cause, .. } => {
                    self.declared.push((self.now, node, cause));
                    self.judge.nodes.get_mut(&node).unwrap().declared = true;
                }
                Effect::Welcome(node) => self.judge.nodes.get_mut(&node).unwrap().declared = false,
            }
        }
    }
}

/// Runs `fault` at 10 s in clusters of 3, 5 and 10, at 25 phases of the renewal, until `end`.
fn in_every_phase(end: u64, fault: impl Fn(&mut World), check: impl Fn(&World)) {
    for count in [3, 5, 10] {
        for phase in (0..250).step_by(10) {
            let mut world = World::new(count, phase);
            world.run_until(10_000);
            fault(&mut world);
            world.run_until(end);
            check(&world);
        }
    }
}

fn nothing_declared(world: &World) {
    assert_eq!(world.declared, [], "{} nodes, phase {}", world.power.len(), world.phase);
}

#[test]
fn a_power_cut_at_any_phase_is_declared_within_3300_ms() {
    in_every_phase(
        20_000,
        |world| world.power[2] = Power::Off,
        |world| {
            let [(at, node, cause)] = world.declared[..] else { panic!("{:?}", world.declared) };
            assert_eq!((node, cause), (2, Cause::NoAnswer));
            assert!((12_500..=13_300).contains(&at), "declared at {at}");
        },
    );
}

/// The same for a cluster of two with a gateway.
fn of_two_in_every_phase(end: u64, fault: impl Fn(&mut World), check: impl Fn(&World)) {
    for phase in (0..250).step_by(10) {
        let mut world = World::of_two(phase);
        world.run_until(10_000);
        fault(&mut world);
        world.run_until(end);
        check(&world);
    }
}

#[test]
fn of_two_nodes_the_lost_one_is_declared_as_fast_if_the_gateway_answers() {
    of_two_in_every_phase(
        20_000,
        |world| world.power[1] = Power::Off,
        |world| {
            let [(at, 1, Cause::NoAnswer)] = world.declared[..] else { panic!("{:?}", world.declared) };
            assert!((12_500..=13_300).contains(&at), "declared at {at}");
        },
    );
    of_two_in_every_phase(
        16_000,
        |world| world.power[1] = Power::DaemonDead,
        |world| assert_eq!(world.declared.len(), 1, "{:?}", world.declared),
    );
}

#[test]
fn of_two_nodes_the_one_whose_own_cable_is_out_declares_nobody_however_long_it_takes() {
    for back_at in [11_000, 12_000, 12_400, 12_800, 13_500, 20_000, 60_000, 120_000] {
        let pulled = |world: &mut World| {
            world.plugged = false;
            world.run_until(back_at);
            world.plugged = true;
        };
        of_two_in_every_phase(back_at + 10_000, pulled, nothing_declared);
    }
}

#[test]
fn of_two_nodes_without_a_gateway_the_lost_one_is_declared_after_half_a_minute() {
    let off = |world: &mut World| {
        world.gateway = None;
        world.power[1] = Power::Off;
    };
    of_two_in_every_phase(39_500, off, nothing_declared);
    of_two_in_every_phase(42_000, off, |world| assert_eq!(world.declared.len(), 1));
}

#[test]
fn an_outage_of_two_seconds_at_any_phase_moves_nothing() {
    let burst = |world: &mut World| {
        world.isolate(2);
        world.run_until(12_000);
        world.cut.clear();
    };
    in_every_phase(40_000, burst, nothing_declared);
}

#[test]
fn an_outage_of_the_leader_or_of_half_of_the_members_moves_nothing() {
    let leader = |world: &mut World| {
        world.isolate(0);
        world.quorum = false;
        world.run_until(12_000);
        world.cut.clear();
        world.quorum = true;
    };
    in_every_phase(40_000, leader, nothing_declared);
    let half = |world: &mut World| {
        for node in 1..=(world.power.len() as u8 / 2) {
            world.isolate(node);
        }
        world.run_until(12_000);
        world.cut.clear();
    };
    in_every_phase(40_000, half, nothing_declared);
}

#[test]
fn when_most_fall_silent_nobody_is_declared_for_half_a_minute() {
    let most = |world: &mut World| {
        for node in 1..world.power.len() as u8 {
            world.isolate(node);
        }
    };
    in_every_phase(39_000, most, nothing_declared);
    in_every_phase(
        38_000,
        |world| {
            most(world);
            world.run_until(35_000);
            world.cut.clear();
        },
        nothing_declared,
    );
}

/// Each end of a mass silence forgives everybody: one weak link would otherwise keep the dead alive for ever.
#[test]
fn a_node_that_comes_and_goes_does_not_keep_the_lost_ones_from_being_called_so() {
    for phase in (0..250).step_by(50) {
        let mut world = World::new(4, phase);
        world.run_until(10_000);
        (world.power[2], world.power[3]) = (Power::Off, Power::Off);
        for until in (10_000..100_000).step_by(2900) {
            world.isolate(1);
            world.run_until(until + 2500);
            world.cut.clear();
            world.run_until(until + 2900);
        }
        let lost: BTreeSet<u8> = world.declared.iter().map(|(_, node, _)| *node).collect();
        assert_eq!(lost, [2, 3].into(), "phase {phase}: {:?}", world.declared);
    }
}

#[test]
fn nor_does_a_quorum_that_comes_and_goes() {
    let mut world = World::new(3, 0);
    world.run_until(10_000);
    world.power[2] = Power::Off;
    for until in (10_000..100_000).step_by(2500) {
        world.quorum = false;
        world.run_until(until + 700);
        world.quorum = true;
        world.run_until(until + 2500);
    }
    assert_eq!(world.declared.len(), 1, "{:?}", world.declared);
}

/// A judge whose steps are all late has always just stalled.
#[test]
fn nor_does_a_loop_that_is_always_late() {
    let mut judge = Judge::new(0, Instant(0), None, Settings::default());
    judge.set_members(Instant(0), [(0, false, true), (1, false, true), (2, false, true)]);
    let mut declared = None;
    for now in (0..100_000).step_by(270).map(Instant) {
        judge.renewed(now, 1, Some(now), Duration::ZERO);
        let effects = judge.step(now, Duration::ZERO, OwnLink::Unknown);
        for effect in effects {
            match effect {
                Effect::Ask { observer, about } => judge.reported(now, observer, about, in_vain()),
                Effect::Declare { node, .. } => declared = declared.or(Some((node, now.0))),
                Effect::Welcome(_) => {}
            }
        }
    }
    let (lost, at) = declared.expect("it is judged");
    assert!(lost == 2 && at <= 61_000, "{lost} at {at}");
}

#[test]
fn what_was_forgiven_is_forgotten_with_the_first_renewal() {
    let flapping = |world: &mut World| {
        for until in (10_000..80_000).step_by(10_000) {
            world.quorum = false;
            world.isolate(2);
            world.run_until(until + 7_000);
            world.quorum = true;
            world.run_until(until + 8_000);
            world.cut.clear();
            world.run_until(until + 10_000);
        }
    };
    in_every_phase(80_000, flapping, nothing_declared);
}

#[test]
fn a_leader_without_a_quorum_declares_nobody_and_starts_anew_when_it_is_back() {
    let minority = |world: &mut World| {
        world.quorum = false;
        world.power[2] = Power::Off;
        world.run_until(40_000);
        nothing_declared(world);
        world.quorum = true;
    };
    in_every_phase(42_500, minority, nothing_declared);
}

#[test]
fn a_cut_between_the_leader_and_one_node_moves_nothing() {
    for directions in [vec![(0, 2), (2, 0)], vec![(0, 2)], vec![(2, 0)]] {
        in_every_phase(39_000, |world| world.cut.extend(directions.clone()), nothing_declared);
    }
}

#[test]
fn a_stopped_daemon_is_left_alone_for_half_a_minute_also_behind_a_cut_observer() {
    in_every_phase(39_500, |world| world.power[2] = Power::Stopped, nothing_declared);
    let hidden = |world: &mut World| {
        world.power[2] = Power::Stopped;
        world.cut.extend([(1, 2), (2, 1)]);
    };
    in_every_phase(39_500, hidden, nothing_declared);
    in_every_phase(
        45_000,
        |world| world.power[2] = Power::Stopped,
        |world| assert_eq!(world.declared[0].2, Cause::Stuck),
    );
}

#[test]
fn a_killed_daemon_gets_five_seconds_and_a_power_cut_after_it_is_seen_sooner() {
    in_every_phase(
        16_000,
        |world| world.power[2] = Power::DaemonDead,
        |world| {
            let [(at, 2, Cause::DaemonGone)] = world.declared[..] else { panic!("{:?}", world.declared) };
            assert!((14_700..=15_300).contains(&at), "declared at {at}");
        },
    );
    in_every_phase(
        20_000,
        |world| {
            world.power[2] = Power::DaemonDead;
            world.run_until(11_000);
            world.power[2] = Power::Off;
        },
        |world| assert_eq!(world.declared.len(), 1, "{:?}", world.declared),
    );
}

#[test]
fn a_daemon_that_is_killed_while_its_renewals_are_cut_off_has_as_much_time() {
    in_every_phase(
        26_000,
        |world| {
            world.cut.insert((2, 0));
            world.run_until(20_000);
            assert_eq!(world.declared, []);
            world.cut.clear();
            world.power[2] = Power::DaemonDead;
        },
        |world| {
            let [(at, 2, Cause::DaemonGone)] = world.declared[..] else { panic!("{:?}", world.declared) };
            assert!((24_000..=24_800).contains(&at), "declared at {at}");
        },
    );
}

#[test]
fn a_node_that_sends_but_hears_nothing_is_declared_although_it_renews() {
    in_every_phase(
        20_000,
        |world| {
            for other in (0..world.power.len() as u8).filter(|other| *other != 2) {
                world.cut.insert((other, 2));
            }
        },
        |world| {
            let [(at, 2, Cause::NoAnswer)] = world.declared[..] else { panic!("{:?}", world.declared) };
            assert!((14_000..=15_500).contains(&at), "declared at {at}");
        },
    );
}

#[test]
fn one_renewal_brings_a_declared_node_back() {
    let mut world = World::new(3, 0);
    world.power[2] = Power::Off;
    world.run_until(10_000);
    assert_eq!(world.declared.len(), 1);
    world.power[2] = Power::Running;
    world.run_until(11_000);
    assert!(!world.judge.nodes[&2].declared);
}

#[test]
fn a_stalled_loop_reads_what_arrived_before_it_judges() {
    let mut judge = Judge::new(0, Instant(0), None, Settings::default());
    judge.set_members(Instant(0), [(0, false, true), (1, false, true), (2, false, true)]);
    judge.step(Instant(50), Duration::ZERO, OwnLink::Proven);
    let asked = judge.step(Instant(20_000), Duration::ZERO, OwnLink::Proven);
    assert!(asked.iter().all(|effect| matches!(effect, Effect::Ask { .. })), "{asked:?}");
    for observer in [0, 2] {
        judge.reported(Instant(20_000), observer, 1, in_vain());
    }
    let declares = |effects: Vec<Effect<u8>>| {
        effects.into_iter().any(|effect| matches!(effect, Effect::Declare { node: 1, .. }))
    };
    assert!(!declares(judge.step(Instant(20_200), Duration::ZERO, OwnLink::Proven)));
}

#[test]
fn a_judge_is_due_seldom_while_all_renew_and_on_time_when_one_is_silent() {
    let mut judge = Judge::new(0, Instant(1000), None, Settings::default());
    judge.set_members(Instant(1000), [(0, false, true), (1, false, true), (2, true, true)]);
    let mut step = |at: u64, renews: bool| {
        if renews {
            judge.renewed(Instant(at), 1, Some(Instant(at)), Duration::ZERO);
        }
        let asks = !judge.step(Instant(at), Duration::ZERO, OwnLink::Proven).is_empty();
        (judge.due().0 - at, asks)
    };
    assert_eq!(step(1000, true), (250, false));
    assert_eq!(step(1250, true), (250, false));
    assert_eq!(step(1350, false), (250, false));
    assert_eq!(step(1600, false), (150, false));
    assert_eq!(step(1750, false), (50, true));
    assert_eq!(step(1800, false), (50, false), "each question is asked anew after 100 ms");
    assert_eq!(step(1850, false), (50, true));
}

#[test]
fn a_new_leader_counts_the_old_ones_silence_from_its_last_heartbeat_but_not_for_ever() {
    let mut judge = Judge::new(0, Instant(50_000), Some((1, Instant(10_000))), Settings::default());
    judge.set_members(Instant(50_000), [(0, false, true), (1, false, true), (2, false, true)]);
    assert_eq!(judge.silence(Instant(50_000), 1), Duration::from_secs(1));
    assert_eq!(judge.silence(Instant(50_000), 2), Duration::ZERO);
}

#[test]
fn who_joins_late_in_an_office_has_not_been_silent_since_it_began() {
    let mut judge = Judge::new(0, Instant(0), None, Settings::default());
    let all = [(0, false, true), (1, false, true)];
    judge.set_members(Instant(0), all[..1].iter().copied());
    assert_eq!(judge.step(Instant(40_000), Duration::ZERO, OwnLink::Proven), []);
    for now in (40_000..40_500).step_by(50).map(Instant) {
        judge.set_members(now, all);
        assert_eq!(judge.step(now, Duration::ZERO, OwnLink::Proven), []);
    }
    assert_ne!(judge.step(Instant(40_500), Duration::ZERO, OwnLink::Proven), []);
}

/// A cluster called its own leader unreachable for ever: it had been lost, came back, and was elected
/// before its renewals had counted with anybody.
#[test]
fn a_leader_that_was_declared_lost_before_its_election_welcomes_itself_once_it_has_a_quorum() {
    let mut judge = Judge::new(0, Instant(1000), None, Settings::default());
    judge.set_members(Instant(1000), [(0, true, true), (1, false, true)]);
    assert_eq!(judge.step(Instant(1050), ms(10_000), OwnLink::Proven), []);
    assert_eq!(judge.step(Instant(1100), ms(50), OwnLink::Proven), [Effect::Welcome(0)]);
}
