//! Who votes: 1, 3 or 5 of the members, chosen, replaced and spread by the leader alone.
//!
//! What a node sees becomes [`sightings`]; its [`Memory`] of them says since when each store is as it is. From that
//! [`plan`] makes the next change, one at a time, and none that would need a majority which is not up: neither of
//! the old set nor of the new one. [`waiting`] says why a set that is not as it should be is left as it is, and
//! until when.
//!
//! A store leaves the set because somebody said so (its member leaves or was removed), because another one takes
//! its place in the same change, or because five become three. Its absence is no reason: a store that nobody knows,
//! or whose node has a new one, keeps its place until then, so that the set never shrinks by accident.
//!
//! Source: Ongaro's thesis §4 (membership changes); the numbers: RELIABILITY §5, from 20,000 simulated
//! sequences of losses.

mod memory;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use memory::{ACKNOWLEDGED_WITHIN, Logs, Memory, Record, Seen, Sighting, sightings};
pub use waiting::{Reason, Waiting, standstill, waiting};

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

/// Whose store it is, by the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<Id> {
    /// That of a member.
    Member,
    /// That of one that asked to leave, or was removed.
    Leaving,
    /// The node of this store has another one now: what this one knew is gone, and it never answers again.
    Lost {
        /// The store that the node has now.
        successor: Id,
    },
    /// No record names its node. That is absence, and not leaving.
    Unknown,
}

/// What the leader knows of one store. `Id` orders equal candidates, so that two plans agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<Id> {
    /// Whose store it is.
    pub standing: Standing<Id>,
    /// It is there and its log can grow (for a leader: always).
    pub up: bool,
    /// Since when `up` is as it is, on the leader's clock.
    pub since: Instant,
    /// When its log last moved forward; for a voter that is down but still copies, nothing is wrong.
    pub progressed_at: Instant,
    /// It has the whole log, as far as a running leader can say.
    pub caught_up: bool,
    /// Its node says that it has another store now, though the map may not know yet: without a majority it never will.
    pub disowned: bool,
    /// What was in the leader's log for [`ACKNOWLEDGED_WITHIN`] it has not acknowledged, whatever else it answers.
    pub behind: bool,
    /// Nobody has taken its vote for being down since it joined: a vote for it is formation, not a change of mind. See
    /// [`is_fresh_after`].
    pub fresh: bool,
    /// How often it was replaced because it was down, within the last day.
    pub removals: u32,
    /// Where it stands (rack, room, power strip); empty if nobody said.
    pub domain: String,
}

impl<Id> Member<Id> {
    /// Whether a majority may count on it: it is there, and it has what was written.
    pub fn is_healthy(&self) -> bool {
        self.up && !self.behind
    }
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
        /// Those that go because they were down: each has to stay up for longer before it votes again.
        replaced: BTreeSet<Id>,
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

/// Whether a store is [`Member::fresh`] once `after` vote, and before that `before` did; `replaced` were down.
///
/// Whoever has a vote or lost it by being down has to be trusted again before it gets another one. Whose vote went
/// because it was to leave, or because another one was and the set became smaller, has done nothing: where that is
/// taken back, or somebody comes, it votes at once.
pub fn is_fresh_after<Id: Ord>(
    id: &Id,
    was_fresh: bool,
    before: &BTreeSet<Id>,
    after: &BTreeSet<Id>,
    replaced: &BTreeSet<Id>,
) -> bool {
    match () {
        () if after.contains(id) || replaced.contains(id) => false,
        () if before.contains(id) => true,
        () => was_fresh,
    }
}

/// Voters without which one of `sets` had no majority left that is `up`.
pub fn critical<Id: Copy + Ord>(sets: &[BTreeSet<Id>], up: impl Fn(&Id) -> bool) -> BTreeSet<Id> {
    let is_tight = |set: &&BTreeSet<Id>| set.iter().filter(|id| up(id)).count() <= set.len() / 2 + 1;
    sets.iter().filter(is_tight).flatten().filter(|id| up(id)).copied().collect()
}

/// The next change of the voters, if one is due.
///
/// * `members`: the store of everybody admitted and not removed, the leader's included, and every store of `membership`.
/// * `learners_max`: how many members without a vote copy the log, so that one of them can take a lost
///   voter's place at once. While voters are missing there may be as many as are missing.
/// * `last_voluntary`: when the last voluntary change was made.
///
/// Cost: a few passes over the members.
pub fn plan<Id: Copy + Ord>(
    now: Instant,
    leader: Id,
    members: &BTreeMap<Id, Member<Id>>,
    membership: &Membership<Id>,
    learners_max: usize,
    last_voluntary: Option<Instant>,
) -> Option<Change<Id>> {
    let picture = Picture { now, leader, members, membership };
    if !picture.has_majority(&membership.voters) {
        return None;
    }
    if membership.joint {
        return picture.allowed(Change::to(membership.voters.clone()));
    }
    if let Some(gone) = membership.learners.iter().find(|id| picture.has_gone(id)) {
        return Some(Change::RemoveLearner(*gone));
    }
    let voluntary_now = last_voluntary.is_none_or(|at| now.since(at) >= VOLUNTARY_EVERY);
    picture
        .let_go()
        .or_else(|| picture.succeed())
        .or_else(|| picture.replace())
        .or_else(|| picture.grow(voluntary_now))
        .or_else(|| picture.shrink())
        .and_then(|change| picture.allowed(change))
        .or_else(|| picture.learn(picture.room(learners_max)))
}

/// Who would have to be up so that the voter `id` can be let go; empty if it can be, or does not vote.
///
/// A spare that has to catch up first is no obstacle: it will.
pub fn needed_to_let_go<Id: Copy + Ord>(
    now: Instant,
    leader: Id,
    members: &BTreeMap<Id, Member<Id>>,
    membership: &Membership<Id>,
    id: Id,
) -> BTreeSet<Id> {
    if !membership.voters.contains(&id) {
        return BTreeSet::new();
    }
    let mut without = members.clone();
    without.entry(id).and_modify(|member| member.standing = Standing::Leaving);
    let picture = Picture { now, leader, members: &without, membership };
    let down = |ids: &mut dyn Iterator<Item = Id>| -> BTreeSet<Id> {
        ids.filter(|other| *other != id && !picture.is_up(other)).collect()
    };
    match picture.let_go() {
        Some(Change::Voters { voters, .. }) => {
            if picture.allowed(Change::to(voters.clone())).is_some() {
                return BTreeSet::new();
            }
            down(&mut voters.union(&membership.voters).copied())
        }
        _ => {
            let staying = without.iter().filter(|(_, member)| member.standing == Standing::Member);
            let staying: BTreeSet<Id> = staying.map(|(other, _)| *other).collect();
            if staying.iter().any(|other| picture.is_up(other)) {
                return BTreeSet::new();
            }
            down(&mut staying.into_iter())
        }
    }
}

impl<Id: Ord> Change<Id> {
    fn to(voters: BTreeSet<Id>) -> Change<Id> {
        Change::Voters { voters, voluntary: false, replaced: BTreeSet::new() }
    }
}

struct Picture<'a, Id> {
    now: Instant,
    leader: Id,
    members: &'a BTreeMap<Id, Member<Id>>,
    membership: &'a Membership<Id>,
}

impl<Id: Copy + Ord> Picture<'_, Id> {
    /// Voters whose members leave, or were removed, go; the rest of the set is filled up or made smaller to fit
    /// the members that stay.
    fn let_go(&self) -> Option<Change<Id>> {
        if !self.membership.voters.iter().any(|id| self.is_leaving(id)) {
            return None;
        }
        let mut voters: BTreeSet<Id> =
            self.membership.voters.iter().copied().filter(|id| !self.is_leaving(id)).collect();
        let wanted = target(self.staying());
        for spare in self.spares(|member| member.up && member.caught_up) {
            if voters.len() < wanted {
                voters.insert(spare);
            }
        }
        // An even set survives no more than the odd one below it and needs one more voter for a majority.
        let size = odd(wanted.min(voters.len()).max(1));
        // Who has just joined, in the place of the one that goes perhaps, is waited for.
        let joining = self.members.iter().filter(|(id, member)| self.joins(id, member)).count();
        if size < odd(wanted.min(voters.len() + joining)) {
            return None;
        }
        while voters.len() > size {
            let dispensable = voters.iter().copied().filter(|id| *id != self.leader);
            let has_log = |id: &Id| self.members.get(id).is_some_and(|member| member.caught_up);
            let worst = dispensable.min_by_key(|id| (self.is_up(id), has_log(id), *id))?;
            voters.remove(&worst);
        }
        (!voters.is_empty()).then_some(Change::to(voters))
    }

    /// A store that was lost by the one that its node has now, as soon as that has the log.
    fn succeed(&self) -> Option<Change<Id>> {
        let is_ready = |successor: &Id| {
            let learnt = self.membership.learners.contains(successor);
            learnt && self.members.get(successor).is_some_and(|member| member.up && member.caught_up)
        };
        let (lost, successor) = self.lost_stores().find(|(_, successor)| is_ready(successor))?;
        let mut voters = self.membership.voters.clone();
        voters.remove(&lost);
        voters.insert(successor);
        Some(Change::to(voters))
    }

    /// One voter that is down by a spare.
    fn replace(&self) -> Option<Change<Id>> {
        let down = self.membership.voters.iter().copied().find(|id| self.is_lost(id))?;
        let mut voters = self.membership.voters.clone();
        voters.remove(&down);
        voters.insert(self.spares(|member| self.may_replace(member)).into_iter().next()?);
        Some(Change::Voters { voters, voluntary: false, replaced: [down].into() })
    }

    /// Up to the target: at once when a new member has come, later with returned ones. Only ever to an odd number.
    fn grow(&self, voluntary_now: bool) -> Option<Change<Id>> {
        let has_come = |id: &Id| self.members[id].fresh;
        let formation = self.spares(|member| self.may_replace(member));
        if formation.iter().any(has_come)
            && let Some(voters) = self.grown_by(&formation)
        {
            return Some(Change::to(voters));
        }
        let patient = self.spares(|member| self.is_trusted(member, REGROW_MIN));
        let voters = self.grown_by(&patient).filter(|_| voluntary_now)?;
        Some(Change::Voters { voters, voluntary: true, replaced: BTreeSet::new() })
    }

    /// The set with as many of the candidates, best first, as the target asks for and an odd number allows.
    fn grown_by(&self, candidates: &[Id]) -> Option<BTreeSet<Id>> {
        let voters = &self.membership.voters;
        let size = odd(target(self.staying()).min(voters.len() + candidates.len()));
        let missing = size.checked_sub(voters.len()).filter(|missing| *missing > 0)?;
        Some(voters.iter().chain(candidates.iter().take(missing)).copied().collect())
    }

    /// Five to three, when just three are left and nobody can take the places: the next loss would end
    /// the majority. Never three to one: two nodes that see each other no longer would both do it.
    fn shrink(&self) -> Option<Change<Id>> {
        let voters = &self.membership.voters;
        let up: BTreeSet<Id> = voters.iter().copied().filter(|id| self.is_up(id)).collect();
        let down: BTreeSet<Id> = voters.difference(&up).copied().collect();
        let rest_is_lost = down.iter().all(|id| self.is_lost(id));
        let nobody_comes = !self.members.iter().any(|(id, member)| self.comes(id, member));
        let five_to_three = voters.len() == 5 && up.len() == 3 && rest_is_lost && nobody_comes;
        five_to_three.then_some(Change::Voters { voters: up, voluntary: false, replaced: down })
    }

    /// Whether the store only has to copy the log to take a lost one's place.
    fn comes(&self, id: &Id, member: &Member<Id>) -> bool {
        let copied = Member { caught_up: true, ..member.clone() };
        let succeeds = member.up && self.lost_stores().any(|(_, successor)| successor == *id);
        self.may_learn(id, member) && (self.may_replace(&copied) || succeeds)
    }

    /// Whether it is new, and will have the log soon.
    fn joins(&self, id: &Id, member: &Member<Id>) -> bool {
        let has_log = self.membership.learners.contains(id) && member.caught_up;
        let comes = member.up || self.now.since(member.since) < DOWN_MIN;
        self.may_learn(id, member) && member.fresh && !has_log && comes
    }

    /// Whether it is a member without a vote that copies the log, or could begin to.
    fn may_learn(&self, id: &Id, member: &Member<Id>) -> bool {
        let Membership { voters, learners, .. } = self.membership;
        let stands_still = learners.contains(id) && self.now.since(member.progressed_at) >= DOWN_MIN;
        member.standing == Standing::Member && !voters.contains(id) && !stands_still
    }

    /// How many may copy the log now. In a formation all missing voters learn at once, also beside learners that are not
    /// trusted with a vote yet, and the successor of a lost store always does.
    fn room(&self, learners_max: usize) -> usize {
        let mut missing = target(self.staying()).saturating_sub(self.membership.voters.len());
        let comes =
            |(id, member): (&Id, &Member<Id>)| member.fresh && member.up && self.may_learn(id, member);
        if missing > 0 && self.members.iter().any(comes) {
            let learners = self.membership.learners.iter().filter_map(|id| self.members.get(id));
            missing += learners.filter(|member| !self.may_replace(member) && !member.fresh).count();
        }
        let succeeding = self.lost_stores().filter(|(_, successor)| self.is_up(successor)).count();
        learners_max.max(missing) + succeeding
    }

    /// The best member that copies nothing yet, if there is room; dead learners make room. Learners beyond
    /// that go, the worst first: an older build let everybody copy.
    fn learn(&self, room: usize) -> Option<Change<Id>> {
        let learners = &self.membership.learners;
        let lost = learners.iter().find(|learner| self.is_lost(learner)).copied();
        if learners.len() > room {
            let worst = || self.spares(|_| true).pop();
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
        self.best_first(|id, member| member.up && idle(id))
    }

    /// Learners that may become voters, best first.
    fn spares(&self, may: impl Fn(&Member<Id>) -> bool) -> Vec<Id> {
        self.best_first(|id, member| self.membership.learners.contains(id) && may(member))
    }

    /// Members' stores: up before down, the successors of lost ones first, another failure domain than the voters',
    /// seldom removed, longest so.
    fn best_first(&self, may: impl Fn(&Id, &Member<Id>) -> bool) -> Vec<Id> {
        let taken: BTreeSet<&str> = self
            .membership
            .voters
            .iter()
            .filter_map(|id| self.members.get(id))
            .map(|member| member.domain.as_str())
            .filter(|domain| !domain.is_empty())
            .collect();
        let successors: BTreeSet<Id> = self.lost_stores().map(|(_, successor)| successor).collect();
        let is_candidate =
            |(id, member): &(&Id, &Member<Id>)| member.standing == Standing::Member && may(id, member);
        let mut found: Vec<_> = self.members.iter().filter(is_candidate).collect();
        found.sort_by_key(|(id, member)| {
            let (is_none, is_near) = (!successors.contains(id), taken.contains(member.domain.as_str()));
            (!member.up, is_none, is_near, member.removals, member.since, **id)
        });
        found.into_iter().map(|(id, _)| *id).collect()
    }

    /// Voters whose stores were lost, each with the store that its node has now. Never the leader's own.
    fn lost_stores(&self) -> impl Iterator<Item = (Id, Id)> {
        let voters = &self.membership.voters;
        voters.iter().filter(|id| **id != self.leader).filter_map(|id| match self.members.get(id)?.standing {
            Standing::Lost { successor } => (!voters.contains(&successor)).then_some((*id, successor)),
            Standing::Member | Standing::Leaving | Standing::Unknown => None,
        })
    }

    /// Members that do not leave.
    fn staying(&self) -> usize {
        self.members.values().filter(|member| member.standing == Standing::Member).count()
    }

    /// Whether it may take a lost voter's place: one that is new at once, one that was away after a while.
    fn may_replace(&self, member: &Member<Id>) -> bool {
        self.ready_at(member).is_some_and(|at| at <= self.now)
    }

    /// When it may take a lost voter's place, if nothing happens to it until then; `None` while it has not the log.
    fn ready_at(&self, member: &Member<Id>) -> Option<Instant> {
        let has_log = member.up && member.caught_up;
        has_log.then(|| if member.fresh { self.now } else { trusted_at(member, SPARE_UP_MIN) })
    }

    /// Up for `hold`, doubled by each removal of the last day, and in possession of the log.
    fn is_trusted(&self, member: &Member<Id>, hold: Duration) -> bool {
        member.up && member.caught_up && self.now >= trusted_at(member, hold)
    }

    fn is_up(&self, id: &Id) -> bool {
        *id == self.leader || self.members.get(id).is_some_and(|member| member.up)
    }

    /// Down for long enough by gossip *and* by its log: either alone may be wrong.
    fn is_lost(&self, id: &Id) -> bool {
        let is_over = |member: &Member<Id>| !member.up && self.now >= lost_at(member);
        *id != self.leader && self.members.get(id).is_some_and(is_over)
    }

    fn is_leaving(&self, id: &Id) -> bool {
        self.members.get(id).is_some_and(|member| member.standing == Standing::Leaving)
    }

    /// Whether nobody will ever copy the log to this learner again.
    fn has_gone(&self, id: &Id) -> bool {
        let standing = self.members.get(id).map(|member| member.standing);
        matches!(standing, Some(Standing::Leaving | Standing::Lost { .. }))
    }

    /// A change of the voters needs a majority of both sets; without one it would hang half done.
    fn allowed(&self, change: Change<Id>) -> Option<Change<Id>> {
        match &change {
            Change::Voters { voters, .. } if !self.has_majority(voters) => None,
            Change::Voters { .. } if !self.has_majority(&self.membership.voters) => None,
            _ => Some(change),
        }
    }

    fn has_majority(&self, voters: &BTreeSet<Id>) -> bool {
        2 * voters.iter().filter(|id| self.is_up(id)).count() > voters.len()
    }
}

/// When a store that is down counts as lost.
fn lost_at<Id>(member: &Member<Id>) -> Instant {
    member.since.max(member.progressed_at).after(DOWN_MIN)
}

/// When a store that stays up is trusted with a vote.
fn trusted_at<Id>(member: &Member<Id>, hold: Duration) -> Instant {
    let doubled = hold.saturating_mul(1 << member.removals.min(10));
    member.since.after(doubled.min(SPARE_UP_MAX.max(hold)))
}

/// The largest odd number that is not above `size`.
fn odd(size: usize) -> usize {
    if size.is_multiple_of(2) { size.saturating_sub(1) } else { size }
}

#[cfg(test)]
mod tests;
