//! Who votes: 1, 3 or 5 of the members, chosen, replaced and spread by the leader alone.
//!
//! [`plan`] is a function of what the leader sees now; all that must be remembered (when a node was
//! removed, when the set last changed) comes in as an argument. It proposes one change at a time, and
//! none that would need a majority which is not up: neither of the old set nor of the new one.
//!
//! Source: Ongaro's thesis §4 (membership changes); the numbers: RELIABILITY §5, from 20,000 simulated
//! sequences of losses.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::time::Instant;

/// A voter that is silent for this long and makes no progress is replaced: longer than any reboot that
/// deserves to be waited for costs more than one change.
pub const DOWN_MIN: Duration = Duration::from_secs(30);
/// A spare must have been up for this long, so that a flapping node is not let in; doubled by each removal.
pub const SPARE_UP_MIN: Duration = Duration::from_secs(5 * 60);
/// The longest a node removed often has to stay up.
pub const SPARE_UP_MAX: Duration = Duration::from_secs(60 * 60);
/// A cluster that lost a voter for good grows again after its members were up for this long.
pub const REGROW_MIN: Duration = Duration::from_secs(10 * 60);
/// Members beyond the voters that copy the log, to take a lost voter's place. The rest follow events.
pub const LEARNERS_MAX: usize = 2;
/// Time between two changes that nobody's death asked for.
pub const VOLUNTARY_EVERY: Duration = Duration::from_secs(10 * 60);

/// What the leader knows of one member. `Id` orders equal candidates, so that two plans agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// It is there and its log can grow (for a leader: always).
    pub up: bool,
    /// Since when `up` is as it is, on the leader's clock.
    pub since: Instant,
    /// When its log last moved forward; for a voter that is down but still copies, nothing is wrong.
    pub progressed_at: Instant,
    /// It has the whole log, as far as a running leader can say.
    pub caught_up: bool,
    /// It joined and was never a voter nor removed: growing with it is formation, not a change of mind.
    pub fresh: bool,
    /// How often it was removed from the voters within the last day.
    pub removals: u32,
    /// It asked to leave.
    pub leaving: bool,
    /// Where it stands (rack, room, power strip); empty if nobody said.
    pub domain: String,
}

/// Who votes and who follows now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership<Id> {
    /// The voters; of a joint configuration, the new set.
    pub voters: BTreeSet<Id>,
    /// Followers with a log and without a vote.
    pub learners: BTreeSet<Id>,
    /// A change was begun and is not finished.
    pub joint: bool,
}

/// The next change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<Id> {
    /// Let it copy the log, so that it can become a voter.
    AddLearner(Id),
    /// Stop copying to it: it left, died as a learner, or is one too many.
    RemoveLearner(Id),
    /// Make exactly these the voters; those that go are removed, not kept as learners.
    Voters {
        /// The new set.
        voters: BTreeSet<Id>,
        /// Nobody's death or leave asked for it: counts against [`VOLUNTARY_EVERY`].
        voluntary: bool,
    },
}

/// How many of `members` should vote. Two nodes have one voter: with two, either loss would stop both.
pub fn target(members: usize) -> usize {
    match members {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// How many more nodes a cluster can lose at once that needs a majority of each of `sets`; whoever is not `up` is
/// lost already.
pub fn failures_survived<Id>(sets: &[BTreeSet<Id>], up: impl Fn(&Id) -> bool) -> usize {
    let left = |set: &BTreeSet<Id>| {
        let majority = set.len() / 2 + 1;
        set.iter().filter(|id| up(id)).count().saturating_sub(majority)
    };
    sets.iter().map(left).min().unwrap_or(0)
}

/// Entries by which a member may lag and still count as caught up.
const LAG_MAX: u64 = 64;

/// What the leader sees of one member at one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Gossip calls it alive or suspect; not looked at for the leader itself.
    pub alive: bool,
    /// It says that the disk under its log takes nothing more: its vote and its copy count for nothing then.
    pub disk_failed: bool,
    /// Up to which entry its log agrees with the leader's; 0 if that is not known.
    pub matched: u64,
    /// See [`Member::fresh`].
    pub fresh: bool,
    /// See [`Member::removals`].
    pub removals: u32,
    /// See [`Member::leaving`].
    pub leaving: bool,
    /// See [`Member::domain`].
    pub domain: String,
}

/// What a leader remembers between two looks. It ends with its term: another leader's clock is its own.
#[derive(Debug, Clone)]
pub struct Memory<Id> {
    seen: BTreeMap<Id, Seen>,
    /// When the last voluntary change was made in this office.
    pub last_voluntary: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    up: bool,
    since: Instant,
    matched: u64,
    progressed_at: Instant,
}

impl<Id: Copy + Ord> Default for Memory<Id> {
    fn default() -> Self {
        Memory { seen: BTreeMap::new(), last_voluntary: None }
    }
}

impl<Id: Copy + Ord> Memory<Id> {
    /// Takes what is seen at `now` and says since when each member is as it is.
    ///
    /// * `last_log`: the index of the leader's last entry.
    pub fn look(
        &mut self,
        now: Instant,
        leader: Id,
        last_log: u64,
        sightings: impl IntoIterator<Item = (Id, Sighting)>,
    ) -> BTreeMap<Id, Member> {
        let before = std::mem::take(&mut self.seen);
        let mut members = BTreeMap::new();
        for (id, sighting) in sightings {
            let (up, matched) = match id == leader {
                true => (true, last_log),
                false => (sighting.alive && !sighting.disk_failed, sighting.matched),
            };
            let was =
                before.get(&id).copied().unwrap_or(Seen { up, since: now, matched, progressed_at: now });
            let is_complete = matched + LAG_MAX >= last_log;
            // A log that has everything cannot move: being complete counts as moving.
            let moves = matched > was.matched || (up && is_complete);
            let since = if was.up == up { was.since } else { now };
            let progressed_at = if moves { now } else { was.progressed_at };
            self.seen.insert(id, Seen { up, since, matched, progressed_at });
            let Sighting { fresh, removals, leaving, domain, .. } = sighting;
            let caught_up = is_complete && matched > 0;
            members
                .insert(id, Member { up, since, progressed_at, caught_up, fresh, removals, leaving, domain });
        }
        members
    }
}

/// The next change of the voters, if one is due.
///
/// * `members`: everybody admitted and not removed, the leader included.
/// * `learners_max`: how many members without a vote copy the log, so that one of them can take a lost
///   voter's place at once. While voters are missing there may be as many as are missing.
/// * `last_voluntary`: when the last voluntary change was made.
///
/// Cost: a few passes over the members.
pub fn plan<Id: Copy + Ord>(
    now: Instant,
    leader: Id,
    members: &BTreeMap<Id, Member>,
    membership: &Membership<Id>,
    learners_max: usize,
    last_voluntary: Option<Instant>,
) -> Option<Change<Id>> {
    let picture = Picture { now, leader, members, membership };
    if membership.joint {
        let voters = membership.voters.clone();
        return picture.allowed(Change::Voters { voters, voluntary: false });
    }
    if let Some(gone) = membership.learners.iter().find(|id| picture.is_leaving(id)) {
        return Some(Change::RemoveLearner(*gone));
    }
    let voluntary_now = last_voluntary.is_none_or(|at| now.since(at) >= VOLUNTARY_EVERY);
    picture
        .let_go()
        .or_else(|| picture.replace())
        .or_else(|| picture.grow(voluntary_now))
        .or_else(|| picture.shrink())
        .and_then(|change| picture.allowed(change))
        .or_else(|| picture.learn(picture.room(learners_max)))
}

struct Picture<'a, Id> {
    now: Instant,
    leader: Id,
    members: &'a BTreeMap<Id, Member>,
    membership: &'a Membership<Id>,
}

impl<Id: Copy + Ord> Picture<'_, Id> {
    /// Voters that leave, or were removed, go; the rest of the set is filled up or made smaller to fit
    /// the members that stay.
    fn let_go(&self) -> Option<Change<Id>> {
        if !self.membership.voters.iter().any(|id| self.is_leaving(id)) {
            return None;
        }
        let mut voters: BTreeSet<Id> =
            self.membership.voters.iter().copied().filter(|id| !self.is_leaving(id)).collect();
        let staying = self.members.values().filter(|member| !member.leaving).count();
        let wanted = target(staying);
        for spare in self.spares(|_, member| member.up && member.caught_up) {
            if voters.len() < wanted {
                voters.insert(spare);
            }
        }
        // An even set survives no more than the odd one below it and needs one more voter for a majority.
        let size = wanted.min(voters.len()).max(1);
        let size = if size.is_multiple_of(2) { size - 1 } else { size };
        while voters.len() > size {
            let dispensable = voters.iter().copied().filter(|id| *id != self.leader);
            let worst = dispensable.min_by_key(|id| (self.is_up(id), self.members[id].caught_up, *id))?;
            voters.remove(&worst);
        }
        (!voters.is_empty()).then_some(Change::Voters { voters, voluntary: false })
    }

    /// One voter that is down by a spare.
    fn replace(&self) -> Option<Change<Id>> {
        let down = self.membership.voters.iter().copied().find(|id| self.is_lost(id))?;
        let mut voters = self.membership.voters.clone();
        voters.remove(&down);
        let spare = self.spares(|_, member| self.is_trusted(member, SPARE_UP_MIN)).into_iter().next()?;
        voters.insert(spare);
        Some(Change::Voters { voters, voluntary: false })
    }

    /// Up to the target: at once with fresh members, later with returned ones. Only ever to an odd number.
    fn grow(&self, voluntary_now: bool) -> Option<Change<Id>> {
        let voters = &self.membership.voters;
        let members = self.members.values().filter(|member| !member.leaving).count();
        let wanted = target(members);
        let to = |candidates: Vec<Id>| {
            let reachable = wanted.min(voters.len() + candidates.len());
            let size = if reachable.is_multiple_of(2) { reachable - 1 } else { reachable };
            let missing = size.checked_sub(voters.len()).filter(|missing| *missing > 0)?;
            Some(voters.iter().copied().chain(candidates.into_iter().take(missing)).collect())
        };
        let formation = self.spares(|_, member| member.up && member.caught_up && member.fresh);
        if let Some(voters) = to(formation) {
            return Some(Change::Voters { voters, voluntary: false });
        }
        let patient = self.spares(|_, member| self.is_trusted(member, REGROW_MIN));
        let voters = to(patient).filter(|_| voluntary_now)?;
        Some(Change::Voters { voters, voluntary: true })
    }

    /// Five to three, when just three are left and nobody can take the places: the next loss would end
    /// the majority. Never three to one: two nodes that see each other no longer would both do it.
    fn shrink(&self) -> Option<Change<Id>> {
        let voters = &self.membership.voters;
        let up: BTreeSet<Id> = voters.iter().copied().filter(|id| self.is_up(id)).collect();
        let rest_is_lost = voters.difference(&up).all(|id| self.is_lost(id));
        // Who only has to copy the log first is a spare as well.
        let copied =
            |member: &Member| self.is_trusted(&Member { caught_up: true, ..member.clone() }, SPARE_UP_MIN);
        let nobody_waits = !self.waiting().iter().any(|id| copied(&self.members[id]));
        let five_to_three = voters.len() == 5 && up.len() == 3 && rest_is_lost && nobody_waits;
        five_to_three.then_some(Change::Voters { voters: up, voluntary: false })
    }

    /// How many may copy the log now. In a formation all missing voters learn at once.
    fn room(&self, learners_max: usize) -> usize {
        let members = self.members.values().filter(|member| !member.leaving).count();
        learners_max.max(target(members).saturating_sub(self.membership.voters.len()))
    }

    /// The best member that copies nothing yet, if there is room; dead learners make room. Learners beyond
    /// that go, the worst first: an older build let everybody copy.
    fn learn(&self, room: usize) -> Option<Change<Id>> {
        let learners = &self.membership.learners;
        let lost = learners.iter().find(|learner| self.is_lost(learner)).copied();
        if learners.len() > room {
            let worst = || self.spares(|_, _| true).pop();
            return lost.or_else(worst).map(Change::RemoveLearner);
        }
        let best = self.waiting().first().copied()?;
        if learners.len() < room {
            return Some(Change::AddLearner(best));
        }
        lost.map(Change::RemoveLearner)
    }

    /// Members that neither vote nor copy the log and could begin to, best first.
    fn waiting(&self) -> Vec<Id> {
        let Membership { voters, learners, .. } = self.membership;
        let idle = |id: &Id| !voters.contains(id) && !learners.contains(id);
        self.best_first(|id, member| member.up && !member.leaving && idle(id))
    }

    /// Learners that may become voters, best first.
    fn spares(&self, may: impl Fn(&Id, &Member) -> bool) -> Vec<Id> {
        self.best_first(|id, member| {
            self.membership.learners.contains(id) && !member.leaving && may(id, member)
        })
    }

    /// Up before down, another failure domain than the voters', seldom removed, longest so.
    fn best_first(&self, may: impl Fn(&Id, &Member) -> bool) -> Vec<Id> {
        let taken: BTreeSet<&str> = self
            .membership
            .voters
            .iter()
            .filter_map(|id| self.members.get(id))
            .map(|member| member.domain.as_str())
            .filter(|domain| !domain.is_empty())
            .collect();
        let mut found: Vec<(&Id, &Member)> =
            self.members.iter().filter(|(id, member)| may(id, member)).collect();
        found.sort_by_key(|(id, member)| {
            (!member.up, taken.contains(member.domain.as_str()), member.removals, member.since, **id)
        });
        found.into_iter().map(|(id, _)| *id).collect()
    }

    /// Up for `hold`, doubled by each removal of the last day, and in possession of the log.
    fn is_trusted(&self, member: &Member, hold: Duration) -> bool {
        let doubled = hold.saturating_mul(1 << member.removals.min(10));
        let hold = doubled.min(SPARE_UP_MAX.max(hold));
        member.up && member.caught_up && self.now.since(member.since) >= hold
    }

    fn is_up(&self, id: &Id) -> bool {
        *id == self.leader || self.members.get(id).is_some_and(|member| member.up)
    }

    /// Down for long enough by gossip *and* by its log: either alone may be wrong.
    fn is_lost(&self, id: &Id) -> bool {
        self.members.get(id).is_none_or(|member| {
            *id != self.leader
                && !member.up
                && self.now.since(member.since) >= DOWN_MIN
                && self.now.since(member.progressed_at) >= DOWN_MIN
        })
    }

    fn is_leaving(&self, id: &Id) -> bool {
        self.members.get(id).is_none_or(|member| member.leaving)
    }

    /// A change of the voters needs a majority of both sets; without one it would hang half done.
    fn allowed(&self, change: Change<Id>) -> Option<Change<Id>> {
        let majority_up =
            |voters: &BTreeSet<Id>| 2 * voters.iter().filter(|id| self.is_up(id)).count() > voters.len();
        match &change {
            Change::Voters { voters, .. } if !majority_up(voters) => None,
            Change::Voters { .. } if !majority_up(&self.membership.voters) => None,
            _ => Some(change),
        }
    }
}

#[cfg(test)]
mod tests;
