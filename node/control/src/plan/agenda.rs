//! What a leader still has to plan: what changed, when time alone changes something, and what to do about a plan that
//! was not committed.

use jiff::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;

use super::{Bounds, LeftOut, Plan, Round, Wakes, plan};
use crate::size::Size;
use crate::time::{seconds_after, whole_seconds};
use crate::view::{Changed, View};

/// All is looked at so often, whatever has changed: what was overlooked heals itself.
const ALL_EVERY_SECONDS: i64 = 60;
/// A leader looks at its clock at least so often: clocks jump.
const WAKE_MAX: Duration = Duration::from_secs(60);
/// Objects are stamped in whole seconds: a moment of this second may seem to be over already.
const WAKE_MIN: Duration = Duration::from_millis(100);
/// Plans in a row that others' writes made out of date, before the leader pauses. Each is smaller than the one before
/// it, and meets fewer of those writes.
const OUTDATED_MAX: u32 = 16;
/// What was not committed is tried again after so long, and after twice as long each time..
const RETRY_MIN: Duration = Duration::from_millis(100);
/// ..up to this.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// See the module.
///
/// One round: [`add`](Agenda::add) what the picture noted, [`plan`](Agenda::plan), commit the writes in the
/// leader's term, say what [became](Agenda::became) of them, and do what that calls for. A plan that was not committed
/// stays pending: it is planned again with what is new as well. Then wait for something new, or for
/// [`wake_in`](Agenda::wake_in) to pass.
///
/// Timers need nobody to wait for them: each [`plan`](Agenda::plan) looks at what is due by then, so that writes
/// that never cease put no timer off.
///
/// **Of unknown outcome** is a plan that was handed to the log and not answered. It may still be committed, after
/// whatever is planned meanwhile: its deletions and changes name revisions and would be refused, but pods that a
/// ReplicaSet lacks have names by chance, and two plans would make them twice. So nothing is planned before a command
/// that was proposed later in the same term is applied ([`Next::Settle`]): all that stands before it in the log is
/// decided then, and in the picture. A new leader has that from the first entry of its term.
#[derive(Clone, Debug)]
pub struct Agenda {
    pending: Changed,
    wakes: Wakes,
    /// When all is looked at again.
    all_at: Timestamp,
    bounds: Bounds,
    /// What a command is filled with while nothing is refused.
    most: Size,
    /// Plans in a row that were not committed.
    failures: u32,
    /// Nothing may happen that wakes the leader, and yet there is something to do.
    retries: bool,
    /// What has been said of what was left out.
    told: BTreeSet<LeftOut>,
}

/// What became of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// All of it is in the map.
    Committed,
    /// Nothing of it is: somebody had written meanwhile. That is in the picture now.
    Outdated,
    /// Nothing of it is: the store takes no such command, for its size or for what it names.
    NotTaken,
    /// Nothing of it is: the store has no room for more.
    StoreFull,
    /// Nobody knows. It may be committed yet.
    Unknown,
    /// Nothing of it is, nor will be.
    NotDone,
}

/// What to do after a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Plan again at once.
    Plan,
    /// Propose a command that changes nothing, in the same term, until one is answered; then plan again.
    Settle,
    /// Wait for something new.
    Wait,
}

impl Default for Agenda {
    /// Everything is new to a new leader.
    fn default() -> Self {
        Agenda::new(Bounds::default())
    }
}

impl Agenda {
    /// An agenda for commands within these bounds.
    pub fn new(bounds: Bounds) -> Agenda {
        Agenda {
            pending: Changed::All,
            wakes: Wakes::default(),
            all_at: Timestamp::MIN,
            most: bounds.limit,
            bounds,
            failures: 0,
            retries: false,
            told: BTreeSet::new(),
        }
    }

    /// Adds what changed since the last call.
    pub fn add(&mut self, changed: Changed) {
        match &changed {
            Changed::All => self.bounds.aside.clear(),
            Changed::Some { keys, .. } => self.bounds.aside.retain(|key| !keys.contains(key)),
        }
        self.pending.merge(changed);
    }

    /// Whether nothing has changed. Verdicts may have, and the time.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Plans what has to be planned, what is due by now included. A plan without writes has dealt with it.
    /// Of what is left out it tells only what is news.
    pub fn plan(&mut self, view: &View, round: &Round<'_>) -> Plan {
        self.add_due(round.now);
        let mut plan = plan(view, &self.pending, round, &self.bounds);
        self.wakes.replace(&plan.wakes);
        plan.left_out.retain(|left_out| self.told.insert(left_out.clone()));
        if plan.writes.is_empty() {
            self.pending = plan.rest.clone().unwrap_or_default();
            self.retries = plan.rest.is_some();
            self.bounds.thrift = false;
        }
        plan
    }

    fn add_due(&mut self, now: Timestamp) {
        // Planners see whole seconds.
        let now = whole_seconds(now);
        for key in self.wakes.take_due(now) {
            self.pending.add_key(key);
        }
        if self.all_at <= now {
            self.pending = Changed::All;
            self.bounds.aside.clear();
            self.told.clear();
            self.all_at = seconds_after(now, ALL_EVERY_SECONDS);
        }
    }

    /// Notes what became of the plan that was made last, and says what to do next.
    pub fn became(&mut self, plan: &Plan, fate: Fate) -> Next {
        self.retries = false;
        if fate != Fate::Committed {
            self.failures += 1;
        }
        match fate {
            Fate::Committed => {
                let was_thrifty = std::mem::take(&mut self.bounds.thrift);
                if !was_thrifty {
                    self.failures = 0;
                    self.bounds.limit = self.bounds.limit.doubled(self.most);
                }
                self.pending = plan.rest.clone().unwrap_or_default();
                self.retries = was_thrifty && plan.rest.is_some();
                if plan.rest.is_some() && !was_thrifty { Next::Plan } else { Next::Wait }
            }
            Fate::Outdated if self.failures < OUTDATED_MAX => {
                if self.failures > 1 {
                    self.make_smaller_than(plan);
                }
                Next::Plan
            }
            Fate::NotTaken if plan.steps > 1 => {
                self.make_smaller_than(plan);
                self.most = self.bounds.limit;
                Next::Plan
            }
            Fate::NotTaken => {
                self.bounds.aside.extend(plan.first_step.iter().cloned());
                Next::Plan
            }
            Fate::StoreFull if !self.bounds.thrift => {
                self.bounds.thrift = true;
                Next::Plan
            }
            Fate::Unknown => Next::Settle,
            Fate::Outdated | Fate::StoreFull | Fate::NotDone => {
                self.bounds.thrift = false;
                self.retries = true;
                Next::Wait
            }
        }
    }

    fn make_smaller_than(&mut self, plan: &Plan) {
        self.bounds.limit = self.bounds.limit.least(plan.size).halved();
    }

    /// How many plans in a row were not committed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How long to wait at most for something new, with the leader's stamp at `now`.
    pub fn wake_in(&self, now: Timestamp) -> Duration {
        if self.retries {
            return (RETRY_MIN * 2_u32.saturating_pow(self.failures.min(16))).min(RETRY_MAX);
        }
        let wanted = self.wakes.next().map_or(self.all_at, |next| next.min(self.all_at));
        let wanted = Duration::try_from(now.duration_until(wanted)).unwrap_or_default();
        wanted.clamp(WAKE_MIN, WAKE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;
    use crate::view::Key;
    use crate::world::World;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn round(world: &World, now: Timestamp) -> Round<'_> {
        let chance = Chance(now.as_millisecond() as u128);
        Round {
            now,
            chance,
            verdicts: &world.verdicts,
            electorate: &world.electorate,
            ca_pem: "pem",
            kubernetes_ip: "10.43.0.1",
        }
    }

    /// An agenda that has dealt with everything and whose next look at all is 60 s after `now`.
    fn at_rest(world: &World, now: Timestamp) -> Agenda {
        let mut agenda = Agenda::default();
        assert!(agenda.plan(&world.view, &round(world, now)).writes.is_empty());
        agenda.wakes = Wakes::default();
        agenda
    }

    /// A plan that was refused because the picture was too old is made again with the same changes, not only with
    /// what changed since.
    #[test]
    fn what_was_not_committed_stays_pending_and_so_does_the_rest_of_what_was() {
        let mut world = World::with_nodes(&["a"]);
        let mut agenda = at_rest(&world, world.now);
        assert!(agenda.is_empty(), "a settled cluster calls for nothing, and that is dealt with");
        world.put(crate::world::bare_pod("p", json!({})));
        agenda.add(world.changed.clone());
        let plan = agenda.plan(&world.view, &round(&world, world.now));
        assert!(!plan.writes.is_empty());
        let next = [Fate::Outdated, Fate::Unknown, Fate::NotDone].map(|fate| agenda.became(&plan, fate));
        assert_eq!(next, [Next::Plan, Next::Settle, Next::Wait]);
        assert_eq!(agenda.plan(&world.view, &round(&world, world.now)), plan);
        assert_eq!(agenda.became(&plan, Fate::Committed), Next::Wait);
        assert!(agenda.is_empty());
        let cut = Plan { rest: Some(Changed::All), ..plan };
        assert_eq!(agenda.became(&cut, Fate::Committed), Next::Plan);
        assert!(!agenda.is_empty());
    }

    #[test]
    fn a_leader_wakes_at_the_earliest_moment_asked_for_but_at_least_once_a_minute() {
        let world = World::with_nodes(&["a"]);
        let now = world.now.as_second();
        let ms = Duration::from_millis;
        let mut agenda = at_rest(&world, world.now);
        assert_eq!(agenda.wake_in(at(now)), ms(60_000));
        for (key, seconds) in [("x", 30), ("y", 10), ("z", 20)] {
            agenda.wakes.ask(&Key::from(key), at(now + seconds));
        }
        assert_eq!(agenda.wake_in(at(now)), ms(10_000));
        assert_eq!(agenda.wake_in(at(now + 15)), ms(100), "what is overdue is looked at soon");
        agenda.plan(&world.view, &round(&world, at(now + 30)));
        assert_eq!(agenda.wake_in(at(now + 30)), ms(30_000), "until all is looked at");
        agenda.wakes.ask(&Key::from("x"), at(now + 5000));
        assert_eq!(agenda.wake_in(at(now - 86_400)), ms(60_000), "clocks jump");
    }

    /// A hundred writes a second put off every timer: the leader waited anew after each of them, and never so long.
    #[test]
    fn a_timer_comes_while_others_write_all_the_time() {
        let mut world = World::with_nodes(&["a"]);
        world.put(crate::world::deployment("web", 1, json!({"progressDeadlineSeconds": 30})));
        world.settle();
        let mut agenda = Agenda::default();
        let mut timed_out_after = None;
        for tick in 0..6_000_i64 {
            let now = world.now.checked_add(jiff::SignedDuration::from_millis(10 * tick)).expect("in range");
            let touched = world.view.apply("core/configmaps/default/c", Some(b"{}"), 1_000_000 + tick as u64);
            let mut changed = Changed::default();
            changed.add(touched);
            agenda.add(changed);
            let plan = agenda.plan(&world.view, &round(&world, now));
            if !plan.writes.is_empty() {
                timed_out_after = Some(tick / 100);
                break;
            }
            assert!(agenda.is_empty());
        }
        assert_eq!(timed_out_after, Some(31));
    }
}
