//! Whether another voter should lead, because the present leader is out of some member's reach.
//!
//! A pair of machines that do not reach each other is a nuisance while both reach everybody else, and an
//! outage for one of them if the other leads: a node writes through the leader, a voter votes for it.
//! Nothing is lost by such a pair, so nothing is judged dead; leadership moves to who reaches more.
//!
//! Every member says by itself which voters it is in contact with, both ways, and a leader counts like any
//! other. Source: DESIGN "Leader that cannot reach B, while C can".

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::time::Instant;

/// How long another voter must have reached more members: after an outage of two seconds a connection over a
/// link that loses every fifth packet takes three more to come back, and not all come back at once.
pub const BETTER_MIN: Duration = Duration::from_secs(5);
/// How long it must have been better than a leader that cannot write at all.
pub const WRITES_MIN: Duration = Duration::from_secs(2);
/// After a move, or one that was tried, leadership stays where it is: what moves all the time leads nobody.
pub const HOLD: Duration = Duration::from_secs(30);

/// What is known of one member that was heard lately, the leader included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member<Id> {
    /// It may lead.
    pub votes: bool,
    /// Its log takes entries. A cluster that it leads takes no writes otherwise.
    pub writable: bool,
    /// Voters that it is in contact with, both ways, by its own word.
    pub reaches: BTreeSet<Id>,
}

/// What one leader remembers while it leads.
#[derive(Debug, Clone)]
pub struct Succession<Id> {
    me: Id,
    /// Since when each voter would be better.
    better: BTreeMap<Id, Instant>,
    hold_until: Instant,
}

/// How good a leader somebody is or would be: whether it can write at all, then whom it reaches.
type Worth = (bool, usize);

impl<Id: Copy + Ord> Succession<Id> {
    /// The memory of `me`, which leads from now on.
    pub fn new(me: Id) -> Succession<Id> {
        Succession { me, better: BTreeMap::new(), hold_until: Instant::default() }
    }

    /// Leadership was given to this node by this rule: it stays here for a while.
    pub fn given(&mut self, now: Instant) {
        self.hold_until = now.after(HOLD);
    }

    /// Who should lead instead, if anybody. Called every so often with everybody heard lately.
    ///
    /// * `voters`: all of them, heard or not.
    ///
    /// A voter is asked for only if it can write, a majority of the voters reaches it, and it was worth
    /// strictly more than this leader without a break for [`BETTER_MIN`], or [`WRITES_MIN`]. Of several the best.
    pub fn step(
        &mut self,
        now: Instant,
        members: &BTreeMap<Id, Member<Id>>,
        voters: &BTreeSet<Id>,
    ) -> Option<Id> {
        let own = worth(self.me, members);
        let is_fit = |id: &Id| {
            let heard = voters.iter().filter(|voter| are_in_contact(**voter, *id, members)).count();
            2 * heard > voters.len()
        };
        let better: BTreeMap<Id, Worth> = members
            .iter()
            .filter(|(id, member)| **id != self.me && member.votes && member.writable && is_fit(id))
            .map(|(id, _)| (*id, worth(*id, members)))
            .filter(|(_, worth)| *worth > own)
            .collect();
        self.better.retain(|id, _| better.contains_key(id));
        for id in better.keys() {
            self.better.entry(*id).or_insert(now);
        }
        if now < self.hold_until {
            return None;
        }
        let least = if own.0 { BETTER_MIN } else { WRITES_MIN };
        let lasting = better.iter().filter(|(id, _)| now.since(self.better[id]) >= least);
        let (best, _) = lasting.max_by_key(|(id, worth)| (**worth, std::cmp::Reverse(**id)))?;
        self.hold_until = now.after(HOLD);
        Some(*best)
    }
}

fn worth<Id: Copy + Ord>(id: Id, members: &BTreeMap<Id, Member<Id>>) -> Worth {
    let writes = members.get(&id).is_some_and(|member| member.writable);
    (writes, members.keys().filter(|other| are_in_contact(**other, id, members)).count())
}

/// Whether the voter `id` would hear `other` and be heard, by the word of `other`; each is in contact with itself.
fn are_in_contact<Id: Copy + Ord>(other: Id, id: Id, members: &BTreeMap<Id, Member<Id>>) -> bool {
    other == id || members.get(&other).is_some_and(|member| member.reaches.contains(&id))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Voters 0, 1 and 2, of which 0 leads, and workers 8 and 9. Everybody reaches every voter.
    fn all() -> BTreeMap<u8, Member<u8>> {
        let reaches = |id: u8| (0..3).filter(|voter| *voter != id).collect();
        [0, 1, 2, 8, 9]
            .into_iter()
            .map(|id| (id, Member { votes: id < 3, writable: true, reaches: reaches(id) }))
            .collect()
    }

    /// The same with some pairs that do not reach each other.
    fn without(pairs: &[(u8, u8)]) -> BTreeMap<u8, Member<u8>> {
        let mut members = all();
        for (a, b) in pairs {
            members.get_mut(a).unwrap().reaches.remove(b);
            members.get_mut(b).unwrap().reaches.remove(a);
        }
        members
    }

    /// Who is asked for after this has lasted for `seconds`.
    fn after(seconds: u64, members: &BTreeMap<u8, Member<u8>>) -> Option<u8> {
        let mut succession = Succession::new(0);
        let voters = [0, 1, 2].into();
        (0..=seconds * 20).find_map(|step| succession.step(Instant(step * 50), members, &voters))
    }

    #[test]
    fn a_leader_that_all_reach_stays() {
        assert_eq!(after(60, &all()), None);
    }

    #[test]
    fn a_leader_out_of_a_voters_reach_gives_way_to_one_that_all_reach() {
        assert_eq!(after(6, &without(&[(0, 1)])), Some(2));
    }

    #[test]
    fn a_leader_out_of_a_workers_reach_gives_way_to_one_that_all_reach() {
        assert_eq!(after(6, &without(&[(0, 9)])), Some(1));
    }

    #[test]
    fn of_two_that_reach_more_the_one_that_reaches_most_is_taken() {
        assert_eq!(after(6, &without(&[(0, 8), (0, 9), (1, 9)])), Some(2));
    }

    #[test]
    fn nobody_takes_over_who_reaches_as_many() {
        assert_eq!(after(60, &without(&[(0, 8), (1, 9), (2, 9)])), None);
    }

    #[test]
    fn whom_nobody_reaches_is_no_reason() {
        assert_eq!(after(60, &without(&[(0, 9), (1, 9), (2, 9)])), None);
    }

    #[test]
    fn who_is_not_heard_at_all_is_no_reason() {
        let mut members = all();
        members.remove(&1);
        assert_eq!(after(60, &members), None);
    }

    #[test]
    fn nobody_takes_over_whom_no_majority_of_voters_reaches() {
        // One that all workers reach, and no other voter.
        assert_eq!(after(60, &without(&[(0, 8), (0, 9), (1, 0), (1, 2), (2, 8), (2, 9)])), None);
    }

    #[test]
    fn an_outage_of_less_than_five_seconds_is_waited_out() {
        let (whole, cut) = (all(), without(&[(0, 1)]));
        let mut succession = Succession::new(0);
        let voters = [0, 1, 2].into();
        for step in 0..1000 {
            let members = if step % 100 < 99 { &cut } else { &whole };
            assert_eq!(succession.step(Instant(step * 50), members, &voters), None);
        }
    }

    #[test]
    fn leadership_that_was_given_by_this_rule_stays_for_a_while() {
        let members = without(&[(0, 1)]);
        let mut succession = Succession::new(0);
        succession.given(Instant(0));
        let voters = [0, 1, 2].into();
        let moves: Vec<u64> = (0..120 * 20)
            .map(|step| step * 50)
            .filter(|now| succession.step(Instant(*now), &members, &voters).is_some())
            .collect();
        // And one that is asked for in vain is not asked for all the time.
        assert_eq!(moves, [30_000, 60_000, 90_000]);
    }

    #[test]
    fn a_leader_without_space_gives_way_to_one_that_has_some() {
        let mut members = without(&[(1, 9)]);
        members.get_mut(&0).unwrap().writable = false;
        assert_eq!(after(3, &members), Some(2));
        members.get_mut(&2).unwrap().writable = false;
        assert_eq!(after(3, &members), Some(1), "it reaches less, but it writes");
        members.get_mut(&1).unwrap().writable = false;
        assert_eq!(after(60, &members), None);
    }
}
