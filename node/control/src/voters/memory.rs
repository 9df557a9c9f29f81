//! What a node sees of each store, and what it remembers of it from one look to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Member, Membership, Standing};
use crate::time::Instant;

/// Entries by which a store may lag and still count as caught up.
const LAG_MAX: u64 = 64;
/// Or this much time: on a long way more than that is always under way.
const LAG_TIME_MAX: Duration = Duration::from_secs(1);
/// A voter that has not acknowledged what was written so long ago is not there, whatever else it answers: on a way
/// where small packets pass and full ones do not, heartbeats do not tell. Longer than an election and a retry.
pub const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// A member as the map records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<Id> {
    /// The store that its node has now.
    pub store: Id,
    /// See [`Member::fresh`].
    pub fresh: bool,
    /// See [`Member::removals`].
    pub removals: u32,
    /// It asked to leave, or was removed.
    pub leaving: bool,
    /// See [`Member::domain`].
    pub domain: String,
}

/// What a node sees of one store by gossip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its node is alive or suspect, and names no other store as its own; not looked at for the store that looks.
    pub alive: bool,
    /// Its node says that the disk under its log takes nothing more: its vote and its copy count for nothing then.
    pub disk_failed: bool,
    /// Its node names another store as its own.
    pub disowned: bool,
}

/// What is known of one store at one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting<Id> {
    /// See [`Member::standing`].
    pub standing: Standing<Id>,
    /// See [`Seen`].
    pub seen: Seen,
    /// See [`Member::fresh`].
    pub fresh: bool,
    /// See [`Member::removals`].
    pub removals: u32,
    /// See [`Member::domain`].
    pub domain: String,
}

/// Each store of the membership and of the members, with what the map and gossip say of it.
///
/// * `records`: everybody who is a member or was one.
/// * `node_of`: whose store one is. A store whose node has another one by its record was lost.
pub fn sightings<Id: Copy + Ord, Node: Ord>(
    membership: &Membership<Id>,
    records: &BTreeMap<Node, Record<Id>>,
    node_of: impl Fn(&Id) -> Node,
    seen: impl Fn(&Id) -> Seen,
) -> BTreeMap<Id, Sighting<Id>> {
    let present = records.values().filter(|record| !record.leaving).map(|record| record.store);
    let known: BTreeSet<Id> =
        membership.voters.iter().chain(&membership.learners).copied().chain(present).collect();
    let sighting = |id: Id| {
        let record = records.get(&node_of(&id));
        let standing = match record {
            None => Standing::Unknown,
            Some(record) if record.leaving => Standing::Leaving,
            Some(record) if record.store == id => Standing::Member,
            Some(record) => Standing::Lost { successor: record.store },
        };
        let (fresh, removals) = record.map_or((false, 0), |record| (record.fresh, record.removals));
        let domain = record.map(|record| record.domain.clone()).unwrap_or_default();
        (id, Sighting { standing, seen: seen(&id), fresh, removals, domain })
    };
    known.into_iter().map(sighting).collect()
}

/// What a node remembers of the stores between two looks.
///
/// Who is up, and since when, every node sees for itself and all the time, so that a new leader knows at once whom
/// to trust. How the logs move only a leader sees, and that ends with its office.
#[derive(Debug, Clone)]
pub struct Memory<Id> {
    seen: BTreeMap<Id, (bool, Instant)>,
    office: Option<Office<Id>>,
}

#[derive(Debug, Clone)]
struct Office<Id> {
    term: u64,
    logs: BTreeMap<Id, Log>,
    last_voluntary: Option<Instant>,
}

/// How the log of one store moves.
#[derive(Debug, Clone, Copy)]
struct Log {
    matched: u64,
    progressed_at: Instant,
    /// The leader's last entry at a look, waited for since.
    mark: (u64, Instant),
    /// The look up to which it has everything, the first one where that is not known yet.
    complete_at: Instant,
    has_acknowledged: bool,
}

/// What a leader sees of the logs at one look.
#[derive(Debug, Clone, Copy)]
pub struct Logs<'a, Id> {
    /// In which term it leads.
    pub term: u64,
    /// Its own last entry.
    pub last: u64,
    /// Up to which entry the log of each other store agrees with its own.
    pub matched: &'a BTreeMap<Id, u64>,
}

impl<Id> Default for Memory<Id> {
    fn default() -> Self {
        Memory { seen: BTreeMap::new(), office: None }
    }
}

impl<Id: Copy + Ord> Memory<Id> {
    /// Takes what the store `me` sees at `now`, and says how each store stands and since when.
    ///
    /// * `logs`: on a leader only. Without it nothing is known of any log, and nothing is to be planned.
    pub fn look(
        &mut self,
        now: Instant,
        me: Id,
        sightings: BTreeMap<Id, Sighting<Id>>,
        logs: Option<Logs<'_, Id>>,
    ) -> BTreeMap<Id, Member<Id>> {
        let before = std::mem::take(&mut self.seen);
        match (&logs, &self.office) {
            (None, _) => self.office = None,
            (Some(logs), Some(office)) if office.term == logs.term => {}
            (Some(logs), _) => {
                self.office = Some(Office { term: logs.term, logs: BTreeMap::new(), last_voluntary: None });
            }
        }
        let before_logs =
            self.office.as_mut().map(|office| std::mem::take(&mut office.logs)).unwrap_or_default();
        let mut members = BTreeMap::new();
        for (id, sighting) in sightings {
            let Sighting { standing, seen, fresh, removals, domain } = sighting;
            let is_there = seen.alive && !seen.disk_failed && !matches!(standing, Standing::Lost { .. });
            let up = id == me || is_there;
            let since = match before.get(&id) {
                Some((was_up, since)) if *was_up == up => *since,
                _ => now,
            };
            self.seen.insert(id, (up, since));
            let log = logs.map(|logs| {
                let matched = if id == me { Some(logs.last) } else { logs.matched.get(&id).copied() };
                Log::moved(before_logs.get(&id), now, logs.last, matched.unwrap_or(0), up)
            });
            if let (Some(office), Some(log)) = (&mut self.office, log) {
                office.logs.insert(id, log);
            }
            members.insert(
                id,
                Member {
                    standing,
                    up,
                    since,
                    progressed_at: log.map_or(now, |log| log.progressed_at),
                    caught_up: id == me
                        || logs.zip(log).is_some_and(|(logs, log)| log.has_all(now, logs.last)),
                    disowned: seen.disowned,
                    behind: id != me
                        && log.is_some_and(|log| now.since(log.complete_at) > ACKNOWLEDGED_WITHIN),
                    fresh,
                    removals,
                    domain,
                },
            );
        }
        members
    }

    /// When the last voluntary change was made in this office.
    pub fn last_voluntary(&self) -> Option<Instant> {
        self.office.as_ref().and_then(|office| office.last_voluntary)
    }

    /// A voluntary change was made.
    pub fn changed_voluntarily(&mut self, now: Instant) {
        if let Some(office) = &mut self.office {
            office.last_voluntary = Some(now);
        }
    }
}

impl Log {
    /// How it stands at `now`, after it stood as `before`.
    fn moved(before: Option<&Log>, now: Instant, last: u64, matched: u64, up: bool) -> Log {
        let fresh =
            Log { matched, progressed_at: now, mark: (last, now), complete_at: now, has_acknowledged: false };
        let mut log = before.copied().unwrap_or(fresh);
        // A log that has everything cannot move: being complete counts as moving.
        if matched > log.matched || (up && matched + LAG_MAX >= last) {
            log.progressed_at = now;
        }
        log.matched = matched;
        let (marked, marked_at) = log.mark;
        if matched >= marked {
            log.complete_at = if matched >= last { now } else { log.complete_at.max(marked_at) };
            log.mark = (last, now);
            log.has_acknowledged = matched > 0;
        }
        log
    }

    fn has_all(&self, now: Instant, last: u64) -> bool {
        let is_near = self.has_acknowledged && now.since(self.complete_at) <= LAG_TIME_MAX;
        self.matched > 0 && (self.matched + LAG_MAX >= last || is_near)
    }
}
