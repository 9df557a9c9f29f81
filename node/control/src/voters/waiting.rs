//! Why the voters are not changed at once, for people.

use std::collections::{BTreeMap, BTreeSet};

use super::{Member, Membership, Picture, REGROW_MIN, VOLUNTARY_EVERY, lost_at, target, trusted_at};
use crate::time::Instant;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Fewer than a majority of the voters are there: nothing changes until they are back.
    NoMajority,
    /// So many stores were lost that a majority of the voters can never be back.
    MajorityLost,
    /// A voter is down, and may come back before another store takes its place.
    VoterDown,
    /// A voter answers and acknowledges nothing of what is written.
    VoterBehind,
    /// The next voter copies the log first.
    CopiesLog,
    /// The next voter was away, and has to be up for a while before it is trusted.
    SpareUp,
    /// Nobody is there that could vote instead. Of five voters, two such places are given up in the end.
    NoSpare,
    /// Changes that nobody's death asked for come one at a time.
    ChangedLately,
}

/// A place among the voters that is not well filled, and what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting<Id> {
    /// What is waited for.
    pub reason: Reason,
    /// The voter that should be replaced; `None` where voters are missing.
    pub voter: Option<Id>,
    /// The store that will take the place, as far as that is known.
    pub taker: Option<Id>,
    /// When it will happen if all stays as it is; `None` where that is not a matter of time.
    pub until: Option<Instant>,
}

/// Why the set of voters is as it is and not as it should be; empty where all is well, or the next change is due.
///
/// Takes what [`plan`](super::plan) takes, and agrees with it: what has an end here is planned then.
pub fn waiting<Id: Copy + Ord>(
    now: Instant,
    leader: Id,
    members: &BTreeMap<Id, Member<Id>>,
    membership: &Membership<Id>,
    last_voluntary: Option<Instant>,
) -> Vec<Waiting<Id>> {
    let picture = Picture { now, leader, members, membership };
    let is_disowned = |id: &Id| members.get(id).is_some_and(|member| member.disowned);
    let is_lost = |id: &Id| is_disowned(id) || picture.lost_stores().any(|(lost, _)| lost == *id);
    if let Some(reason) = standstill(&membership.voters, |id| picture.is_up(id), is_lost) {
        return vec![Waiting { reason, voter: None, taker: None, until: None }];
    }
    let places = membership.voters.iter().filter_map(|voter| picture.place(*voter));
    places.chain(picture.growth(last_voluntary)).collect()
}

/// Why none of the voters may be changed at all: no majority of them is there.
///
/// * `is_lost`: a voter whose node has another store now.
pub fn standstill<Id>(
    voters: &BTreeSet<Id>,
    is_up: impl Fn(&Id) -> bool,
    is_lost: impl Fn(&Id) -> bool,
) -> Option<Reason> {
    let is_majority = |count: usize| 2 * count > voters.len();
    match () {
        () if !is_majority(voters.iter().filter(|id| !is_lost(id)).count()) => Some(Reason::MajorityLost),
        () if !is_majority(voters.iter().filter(|id| is_up(id)).count()) => Some(Reason::NoMajority),
        () => None,
    }
}

impl<Id: Copy + Ord> Picture<'_, Id> {
    /// What the place of this voter waits for.
    fn place(&self, voter: Id) -> Option<Waiting<Id>> {
        let member = self.members.get(&voter).filter(|_| voter != self.leader)?;
        let waits = |reason, taker, until| Some(Waiting { reason, voter: Some(voter), taker, until });
        if member.up {
            return if member.behind { waits(Reason::VoterBehind, None, None) } else { None };
        }
        let successor = self.lost_stores().find(|(lost, _)| *lost == voter).map(|(_, successor)| successor);
        if let Some(successor) = successor.filter(|successor| self.is_up(successor)) {
            return waits(Reason::CopiesLog, Some(successor), None);
        }
        let lost_at = lost_at(member);
        match self.next_spare() {
            None => waits(Reason::NoSpare, None, self.shrinks_at()),
            Some((taker, at)) if self.now < lost_at && at.is_none_or(|at| at <= lost_at) => {
                waits(Reason::VoterDown, Some(taker), Some(lost_at))
            }
            Some((taker, None)) => waits(Reason::CopiesLog, Some(taker), None),
            Some((taker, Some(at))) if self.now < at => waits(Reason::SpareUp, Some(taker), Some(at)),
            Some(_) => None,
        }
    }

    /// When five voters become three, because nobody can take the places of two that are down.
    fn shrinks_at(&self) -> Option<Instant> {
        let voters = &self.membership.voters;
        let down = voters.iter().filter(|id| !self.is_up(id)).filter_map(|id| self.members.get(id));
        let ends: Vec<Instant> = down.map(lost_at).collect();
        ends.iter().max().copied().filter(|_| (voters.len(), ends.len()) == (5, 2))
    }

    /// What voters that are missing wait for. An even set is none, so two come at once.
    fn growth(&self, last_voluntary: Option<Instant>) -> Option<Waiting<Id>> {
        let count = self.membership.voters.len();
        if count >= target(self.staying()) {
            return None;
        }
        let waits = |reason, taker, until| Some(Waiting { reason, voter: None, taker, until });
        let step = if count.is_multiple_of(2) { 1 } else { 2 };
        let candidates = self.candidates();
        let learning = candidates.iter().find(|(_, member)| !member.caught_up);
        if candidates.len() < step {
            return waits(Reason::NoSpare, None, None);
        }
        let has_come = candidates.iter().any(|(_, member)| member.fresh);
        let mut ready: Vec<(Instant, Id)> = candidates
            .iter()
            .filter(|(_, member)| member.caught_up)
            .filter_map(|(id, member)| match has_come {
                true => Some((self.ready_at(member)?, *id)),
                false => Some((trusted_at(member, REGROW_MIN), *id)),
            })
            .collect();
        ready.sort();
        let Some((at, taker)) = ready.get(step - 1).copied() else {
            return waits(Reason::CopiesLog, learning.map(|(id, _)| *id), None);
        };
        let allowed_at = last_voluntary.filter(|_| !has_come).map(|last| last.after(VOLUNTARY_EVERY));
        match allowed_at.filter(|allowed| *allowed > at && *allowed > self.now) {
            Some(allowed) => waits(Reason::ChangedLately, Some(taker), Some(allowed)),
            None if self.now < at => waits(Reason::SpareUp, Some(taker), Some(at)),
            None => None,
        }
    }

    /// The store that may take a lost voter's place first, and when; `None` if it has not the log yet.
    fn next_spare(&self) -> Option<(Id, Option<Instant>)> {
        let candidates = self.candidates().into_iter().map(|(id, member)| (id, self.ready_at(member)));
        candidates.min_by_key(|(_, at)| at.unwrap_or(Instant(u64::MAX)))
    }

    /// Members that are up and have no vote, best first.
    fn candidates(&self) -> Vec<(Id, &Member<Id>)> {
        let ids = self.best_first(|id, member| member.up && !self.membership.voters.contains(id));
        ids.into_iter().map(|id| (id, &self.members[&id])).collect()
    }
}
