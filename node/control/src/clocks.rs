//! What time it is in the cluster: by the clocks of its members together, not by that of whoever leads.
//!
//! Clocks of machines are wrong by minutes often, and by years now and then: one without a battery wakes in 1970,
//! one whose firmware lost its settings in 2036. Timers do not care, they hang on boot time; but certificates,
//! tokens and everything else that ends at a date would end, or never end, by the clock of one machine.
//!
//! So every member tells the leader what its clock shows, the leader goes by the median, and tells everybody what
//! time that makes it. Each node then counts on by its boot clock, also while nobody leads. A clock that was
//! never set has no say, and a median is one only if a majority of the voters has told its clock.
//!
//! [`Clocks`] is a state machine: [`Clocks::hear`] takes what other nodes say, [`Clocks::step`] is called every
//! [`STEP`] and whenever leader, term or voters may have changed. What the cluster's newest stamp has to say about it
//! is judged where stamps are made: the leader's [`clock`](Clocks::clock) goes in there, and what comes out is handed
//! back by [`Clocks::stamped`].
//!
//! All wall times are milliseconds since 1970.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// How often clocks are told: a boot clock that is off by 5 % goes wrong by a quarter of a second meanwhile.
pub const STEP: Duration = Duration::from_secs(5);
/// A clock counts for so long after it was told: five words may be lost.
const FRESH: Duration = Duration::from_secs(30);
/// A leader whose voters tell it nothing goes by its own clock after this long: they are of a build that tells none.
const ALONE_MAX: Duration = Duration::from_secs(10);
/// 2025-10-01: a clock that shows less was never set, for no build of this program is older.
pub const SET_SINCE_MS: u64 = 1_759_276_800_000;

/// What nodes tell each other, also on the wire. A lost one is repaired by the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// To the leader: what the sender's clock shows.
    Clock {
        /// Which is that.
        wall_ms: u64,
    },
    /// The leader's answer.
    Time {
        /// Its term.
        term: u64,
        /// What time it is in the cluster.
        now_ms: u64,
    },
}

/// Who leads and who votes, as the store has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership<Id> {
    /// Who leads, if known.
    pub leader: Option<Id>,
    /// The latest term.
    pub term: u64,
    /// Who votes.
    pub voters: BTreeSet<Id>,
}

/// A message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send<Id> {
    /// The receiver, never this node.
    pub to: Id,
    /// What to send.
    pub message: Message,
}

/// See the module.
#[derive(Debug)]
pub struct Clocks<Id> {
    me: Id,
    /// Wall time less this node's boot time, of each member that told its clock, this node among them.
    told: BTreeMap<Id, Told>,
    /// The term in which this node leads, and since when.
    office: Option<(u64, Instant)>,
    /// The same difference for the cluster's time: as the leader said last, or as this node stamped last.
    cluster: Option<i64>,
    /// As the leader: what the members' clocks make of it.
    median: Option<i64>,
    /// As the leader: enough have told their clocks, and none was ever set.
    none_is_set: bool,
    /// To whom this node told its clock last, and in which term.
    told_to: Option<(Id, u64)>,
    next_step: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    difference: i64,
    at: Instant,
}

impl<Id: Copy + Ord> Clocks<Id> {
    /// The clocks as node `me` knows them since its daemon started: it has heard of none.
    pub fn new(me: Id) -> Clocks<Id> {
        Clocks {
            me,
            told: BTreeMap::new(),
            office: None,
            cluster: None,
            median: None,
            none_is_set: false,
            told_to: None,
            next_step: Instant::default(),
        }
    }

    /// A message of `from` came.
    ///
    /// * `last_ms`: the newest stamp in the store, 0 if there is none.
    pub fn hear(
        &mut self,
        now: Instant,
        from: Id,
        message: Message,
        last_ms: u64,
        leadership: &Leadership<Id>,
        sends: &mut Vec<Send<Id>>,
    ) {
        match message {
            Message::Clock { wall_ms } => {
                let Some((term, _)) = self.office else { return };
                self.told.insert(from, Told { difference: difference(wall_ms, now), at: now });
                self.weigh(now, last_ms, leadership);
                if let Some(now_ms) = self.now(now) {
                    sends.push(Send { to: from, message: Message::Time { term, now_ms } });
                }
            }
            Message::Time { term, now_ms } => {
                if leadership.leader == Some(from) && leadership.term == term && from != self.me {
                    self.cluster = Some(difference(now_ms, now));
                }
            }
        }
    }

    /// Tells this node's clock, or takes it into account as the leader.
    ///
    /// * `wall_ms`: what this machine's clock shows.
    /// * `last_ms`: see [`hear`](Self::hear).
    /// * `members`: who is a member; others have no say.
    pub fn step(
        &mut self,
        now: Instant,
        wall_ms: u64,
        last_ms: u64,
        leadership: &Leadership<Id>,
        members: &BTreeSet<Id>,
        sends: &mut Vec<Send<Id>>,
    ) {
        let leads = leadership.leader == Some(self.me);
        let is_due = now >= self.next_step;
        if is_due {
            self.next_step = now.after(STEP);
        }
        if !leads {
            (self.office, self.median, self.none_is_set) = (None, None, false);
            self.told.clear();
            let to = leadership.leader.map(|leader| (leader, leadership.term));
            if let Some((leader, _)) = to.filter(|to| is_due || self.told_to != Some(*to)) {
                sends.push(Send { to: leader, message: Message::Clock { wall_ms } });
            }
            self.told_to = to;
            return;
        }
        self.told_to = None;
        if self.office.is_none_or(|(term, _)| term != leadership.term) {
            self.office = Some((leadership.term, now));
            (self.median, self.none_is_set) = (None, false);
            self.told.clear();
        }
        self.told.insert(self.me, Told { difference: difference(wall_ms, now), at: now });
        self.told.retain(|node, told| members.contains(node) && now.since(told.at) <= FRESH);
        self.weigh(now, last_ms, leadership);
    }

    /// What the clock that stamps are made by shows: `None` while nobody knows.
    pub fn clock(&self, now: Instant) -> Option<u64> {
        self.median.or(self.cluster).map(|difference| wall(difference, now))
    }

    /// What has been made of [`clock`](Self::clock) is the cluster's time, while this node leads. Where no clock was
    /// ever set, that is what is counted on from the last stamp.
    pub fn stamped(&mut self, now: Instant, stamp_ms: u64) {
        if self.office.is_some() && (self.clock(now).is_some() || self.none_is_set) {
            self.cluster = Some(difference(stamp_ms, now));
        }
    }

    /// What time it is in the cluster, if this node has heard.
    pub fn now(&self, now: Instant) -> Option<u64> {
        self.cluster.or(self.median).map(|difference| wall(difference, now))
    }

    /// The median of what was told, if that is enough to go by; what was known before otherwise.
    fn weigh(&mut self, now: Instant, last_ms: u64, leadership: &Leadership<Id>) {
        let fresh = |node: &Id| self.told.get(node).is_some_and(|told| now.since(told.at) <= FRESH);
        let voters = leadership.voters.iter().filter(|voter| fresh(voter)).count();
        if voters * 2 > leadership.voters.len() {
            let set = self.told.values().filter(|told| now.since(told.at) <= FRESH);
            let set = set.filter(|told| wall(told.difference, now) >= SET_SINCE_MS);
            let mut set: Vec<i64> = set.map(|told| told.difference).collect();
            set.sort_unstable();
            let expected = self.cluster.unwrap_or_else(|| difference(last_ms, now));
            self.median = median(&set, expected);
            self.none_is_set = set.is_empty();
        } else if self.cluster.or(self.median).is_none()
            && self.office.is_some_and(|(_, since)| now.since(since) >= ALONE_MAX)
        {
            self.median = self.told.get(&self.me).map(|told| told.difference);
        }
    }
}

/// The one in the middle of a sorted row; of the two in the middle the one nearer to what was expected.
fn median(sorted: &[i64], expected: i64) -> Option<i64> {
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some(if low.abs_diff(expected) <= high.abs_diff(expected) { *low } else { *high })
}

fn difference(wall_ms: u64, now: Instant) -> i64 {
    i64::try_from(wall_ms).unwrap_or(i64::MAX).saturating_sub_unsigned(now.0)
}

fn wall(difference: i64, now: Instant) -> u64 {
    now.0.saturating_add_signed(difference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    const NOW: u64 = SET_SINCE_MS + 1_000_000_000;
    const YEAR: u64 = 365 * 24 * 60 * 60 * 1000;
    const BOOT: Instant = Instant(5_000_000);

    fn leads(leader: u8, voters: &[u8]) -> Leadership<u8> {
        Leadership { leader: Some(leader), term: 3, voters: voters.iter().copied().collect() }
    }

    fn members() -> BTreeSet<u8> {
        (1..=5).collect()
    }

    /// Node 1 leads and its clock is right but for `own`; the others are told in one moment.
    fn median_of(own: i64, others: &[(u8, i64)], voters: &[u8], last_ms: u64) -> Option<u64> {
        let mut clocks = Clocks::new(1);
        let leadership = leads(1, voters);
        clocks.step(BOOT, NOW.saturating_add_signed(own), last_ms, &leadership, &members(), &mut Vec::new());
        for (node, off) in others {
            let message = Message::Clock { wall_ms: NOW.saturating_add_signed(*off) };
            clocks.hear(BOOT, *node, message, last_ms, &leadership, &mut Vec::new());
        }
        clocks.clock(BOOT)
    }

    #[test]
    fn the_median_is_the_time_whoever_leads() {
        let years = 10 * YEAR as i64;
        assert_eq!(median_of(years, &[(2, 0), (3, 7)], &[1, 2, 3], 0), Some(NOW + 7));
        assert_eq!(median_of(0, &[(2, years), (3, -years)], &[1, 2, 3], 0), Some(NOW));
        assert_eq!(median_of(years, &[(2, 1), (3, years), (4, 2), (5, 3)], &[1, 2, 3], 0), Some(NOW + 3));
    }

    #[test]
    fn a_clock_that_was_never_set_has_no_say() {
        let in_1970 = -(NOW as i64);
        assert_eq!(median_of(0, &[(2, in_1970), (3, in_1970)], &[1, 2, 3], 0), Some(NOW));
        assert_eq!(median_of(in_1970, &[(2, in_1970), (3, in_1970)], &[1, 2, 3], 0), None);
    }

    #[test]
    fn a_minority_of_the_voters_makes_no_median() {
        assert_eq!(median_of(0, &[], &[1, 2, 3], 0), None);
        assert_eq!(median_of(0, &[(4, 0), (5, 0)], &[1, 2, 3], 0), None, "they do not vote");
        assert_eq!(median_of(0, &[(2, 0)], &[1, 2, 3], 0), Some(NOW));
        assert_eq!(median_of(5, &[], &[1], 0), Some(NOW + 5), "a single voter is a majority");
    }

    #[test]
    fn of_two_clocks_the_one_nearer_to_the_last_stamp_is_believed() {
        let (ahead, behind) = (YEAR as i64, -1_000_000_000);
        assert_eq!(median_of(ahead, &[(2, 0)], &[1], NOW - 1000), Some(NOW));
        assert_eq!(median_of(0, &[(2, ahead)], &[1], NOW - 1000), Some(NOW));
        assert_eq!(median_of(0, &[(2, behind)], &[1], NOW - 1000), Some(NOW));
    }

    #[test]
    fn a_leader_whose_voters_tell_nothing_goes_by_its_own_clock_after_a_while() {
        let mut clocks = Clocks::new(1);
        let leadership = leads(1, &[1, 2, 3]);
        let mut step = |after: Duration| {
            let now = BOOT.after(after);
            clocks.step(now, NOW, 0, &leadership, &members(), &mut Vec::new());
            clocks.clock(now)
        };
        assert_eq!(step(Duration::ZERO), None);
        assert_eq!(step(ALONE_MAX / 2), None);
        assert_eq!(step(ALONE_MAX), Some(NOW));
    }

    #[test]
    fn a_new_leader_counts_on_from_what_the_last_one_said() {
        let mut clocks = Clocks::new(1);
        let time = Message::Time { term: 3, now_ms: NOW };
        clocks.hear(BOOT, 2, time, 0, &leads(2, &[1, 2, 3]), &mut Vec::new());
        assert_eq!(clocks.now(BOOT.after(STEP)), Some(NOW + 5000));
        let stale = Message::Time { term: 2, now_ms: NOW + YEAR };
        clocks.hear(BOOT, 2, stale, 0, &leads(2, &[1, 2, 3]), &mut Vec::new());
        let stranger = Message::Time { term: 3, now_ms: NOW + YEAR };
        clocks.hear(BOOT, 3, stranger, 0, &leads(2, &[1, 2, 3]), &mut Vec::new());
        // It takes office with a clock of its own that is ten years ahead.
        let now = BOOT.after(2 * STEP);
        clocks.step(now, NOW + 10 * YEAR, 0, &leads(1, &[1, 2, 3]), &members(), &mut Vec::new());
        assert_eq!((clocks.clock(now), clocks.now(now)), (Some(NOW + 10_000), Some(NOW + 10_000)));
    }

    #[test]
    fn a_clock_is_told_at_once_to_a_new_leader_and_every_five_seconds() {
        let mut clocks = Clocks::new(1);
        let mut told = |after_ms: u64, leadership: Leadership<u8>| {
            let (now, mut sends) = (Instant(BOOT.0 + after_ms), Vec::new());
            clocks.step(now, NOW, 0, &leadership, &members(), &mut sends);
            sends
        };
        let clock = |to| vec![Send { to, message: Message::Clock { wall_ms: NOW } }];
        assert_eq!(told(0, leads(2, &[1, 2, 3])), clock(2));
        assert_eq!(told(1000, leads(2, &[1, 2, 3])), []);
        assert_eq!(told(2000, leads(3, &[1, 2, 3])), clock(3));
        assert_eq!(told(2001, Leadership { term: 4, ..leads(3, &[1, 2, 3]) }), clock(3));
        assert_eq!(told(5000, Leadership { term: 4, ..leads(3, &[1, 2, 3]) }), clock(3));
        assert_eq!(told(5001, Leadership { leader: None, ..leads(3, &[1]) }), []);
    }

    #[test]
    fn a_leader_answers_with_what_its_stamps_say() {
        let mut clocks = Clocks::new(1);
        let leadership = leads(1, &[1, 2, 3]);
        let mut sends = Vec::new();
        clocks.step(BOOT, NOW, 0, &leadership, &members(), &mut sends);
        let clock = Message::Clock { wall_ms: NOW };
        clocks.hear(BOOT, 2, clock, 0, &leadership, &mut sends);
        let time = |now_ms| Send { to: 2, message: Message::Time { term: 3, now_ms } };
        assert_eq!(sends, [time(NOW)]);
        // The clock is behind the last stamp, which is counted on from.
        clocks.stamped(BOOT, NOW + 60_000);
        clocks.hear(BOOT, 2, clock, 0, &leadership, &mut sends);
        assert_eq!(sends[1..], [time(NOW + 60_000)]);
    }

    #[test]
    fn where_no_clock_was_ever_set_the_stamps_are_the_time() {
        let mut clocks = Clocks::new(1);
        let mut stamped = |voters: &[u8]| {
            clocks.step(BOOT, 1000, NOW, &leads(1, voters), &members(), &mut Vec::new());
            clocks.stamped(BOOT, NOW);
            clocks.now(BOOT)
        };
        assert_eq!(stamped(&[1, 2, 3]), None, "perhaps one of the others is set");
        assert_eq!(stamped(&[1]), Some(NOW));
    }

    #[test]
    fn what_was_told_long_ago_or_by_no_member_has_no_say() {
        let mut clocks = Clocks::new(1);
        let leadership = leads(1, &[1, 2, 3]);
        clocks.step(BOOT, NOW, 0, &leadership, &members(), &mut Vec::new());
        for (node, off) in [(2, 10), (3, 20), (9, 30), (8, 30)] {
            let message = Message::Clock { wall_ms: NOW + off };
            clocks.hear(BOOT, node, message, 0, &leadership, &mut Vec::new());
        }
        clocks.step(BOOT, NOW, 0, &leadership, &members(), &mut Vec::new());
        assert_eq!(clocks.clock(BOOT), Some(NOW + 10));
        // What is known goes on where too little is told.
        let later = BOOT.after(FRESH * 2);
        clocks.step(later, NOW + 9 * YEAR, 0, &leadership, &members(), &mut Vec::new());
        assert_eq!(clocks.clock(later), Some(NOW + 10 + 60_000));
    }
    /// A node of the simulation below. Its boot time began at a moment of its own.
    struct Machine {
        booted: u64,
        off: i64,
        clocks: Clocks<u8>,
    }

    impl Machine {
        fn boot(&self, truth: u64) -> Instant {
            Instant(truth - self.booted)
        }

        /// What its clock shows; one that was never set counts from 1970.
        fn wall(&self, truth: u64) -> u64 {
            truth.saturating_add_signed(self.off)
        }
    }

    /// Ten minutes of five machines, whose leader changes and which restart, alone and all at once. One clock is off
    /// by years, the others by a minute at most. A fifth of all messages is lost.
    fn ten_minutes(seed: u128) {
        let mut draws = Chance(seed).of("clocks");
        let mut draw = |below: u64| draws.number() % below;
        let years = 10 * YEAR as i64;
        let wrong = draw(5) as u8;
        let off = [years, -years, -(NOW as i64)][draw(3) as usize];
        let mut truth = NOW;
        let boot = |node: u8, truth: u64| (truth - 1000 * u64::from(node), Clocks::new(node));
        let mut machines: Vec<Machine> = (0..5)
            .map(|node| {
                let (booted, clocks) = boot(node, truth);
                let off = if node == wrong { off } else { draw(120_000) as i64 - 60_000 };
                Machine { booted, off, clocks }
            })
            .collect();
        let members: BTreeSet<u8> = (0..5).collect();
        let (mut leadership, mut last) = (leads(draw(3) as u8, &[0, 1, 2]), NOW);
        leadership.term = 1;
        let mut calm_since = truth;
        for _ in 0..600 {
            truth += 1000;
            let mut restart = Vec::new();
            match draw(40) {
                0..2 => {
                    (leadership.leader, leadership.term) = (Some(draw(3) as u8), leadership.term + 1);
                }
                2 => restart.push(draw(5) as u8),
                3 if draw(4) == 0 => restart.extend(0..5),
                _ => {}
            }
            for node in restart {
                let machine = &mut machines[usize::from(node)];
                (machine.booted, machine.clocks) = boot(node, truth);
                calm_since = truth;
            }
            let mut mail: Vec<(u8, Send<u8>)> = Vec::new();
            for (node, machine) in (0..).zip(&mut machines) {
                let (now, wall, mut sends) = (machine.boot(truth), machine.wall(truth), Vec::new());
                machine.clocks.step(now, wall, last, &leadership, &members, &mut sends);
                mail.extend(sends.into_iter().map(|send| (node, send)));
            }
            while let Some((from, Send { to, message })) = mail.pop() {
                if draw(5) == 0 {
                    continue;
                }
                let machine = &mut machines[usize::from(to)];
                let (now, mut sends) = (machine.boot(truth), Vec::new());
                machine.clocks.hear(now, from, message, last, &leadership, &mut sends);
                mail.extend(sends.into_iter().map(|send| (to, send)));
            }
            let leader = &mut machines[usize::from(leadership.leader.expect("somebody leads"))];
            let now = leader.boot(truth);
            last = leader.clocks.clock(now).map_or(last, |clock| last.max(clock));
            leader.clocks.stamped(now, last);
            for (node, machine) in machines.iter().enumerate() {
                match machine.clocks.now(machine.boot(truth)) {
                    Some(told) => assert!(told.abs_diff(truth) < 65_000, "node {node}: {told} at {truth}"),
                    // It asks every five seconds; a third of its questions goes without an answer.
                    None => assert!(truth - calm_since < 60_000, "node {node} does not know the time"),
                }
            }
        }
    }

    #[test]
    fn one_clock_that_is_off_by_years_moves_nobodys_time_whoever_leads() {
        for seed in 0..200 {
            ten_minutes(seed);
        }
    }
}
