//! The cluster's authorities: which are in force, whose certificates count until when, and which nodes keep
//! the private keys.
//!
//! Authorities come in *editions*: keys and certificates that were made together, never change, and are called
//! by their fingerprint. The map holds what everybody may know: [`Trust`], and a [`Holder`] for each node that
//! keeps the keys. The keys go from a holder to a voter, and never into the map.
//!
//! ```text
//!             made by the leader               the voters hold it
//!   in force ────────────────────▶ with a next ──────────────────▶ the next is in force,
//!                                       │ nobody holds it            old roots are trusted for a while
//!                                       ▼
//!                                    in force, as before
//! ```
//!
//! Everybody trusts the roots of the next edition before anybody issues by it, and nobody issues by it before
//! a majority of the voters can. So no certificate is refused for being new, and no edition is lost with one
//! machine.
//!
//! [`plan`] is a function of what one node sees: what it should do next as one that is to keep them, as one that
//! is not any more, and as the leader. The shell performs that and asks again; whatever it writes is conditional on the
//! records that it was planned by, so that an old picture does no harm.
//!
//! Times are milliseconds since 1970 on the cluster's clock. A moment in the future was written by a clock that
//! was wrong, and counts as long past: nothing waits for years because of one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// The start of the keys of all records here.
pub const PREFIX: &str = "skein/authorities/";
/// The key of the [`Trust`] record.
pub const TRUST: &str = "skein/authorities//trust";
/// The start of the key of a client certificate's record; its serial follows.
pub const CLIENTS: &str = "skein/clients//";
/// The start of a [`Holder`] record's key; the node's id follows.
pub const HOLDERS: &str = "skein/authorities/holders/";

const SECOND: u64 = 1000;
const DAY: u64 = 24 * 60 * 60 * SECOND;

/// For so long the next edition waits for voters that are there and do not take it: more than any that works
/// needs, and the others wait for nobody's broken disk.
const HAND_OVER_MAX: u64 = 60 * SECOND;
/// How long kubeconfigs of before a rotation go on being good, unless told otherwise.
pub const OVERLAP: u64 = 30 * DAY;
/// The longest that may be asked for: a year is the life of a client's certificate.
pub const OVERLAP_MAX: u64 = 366 * DAY;

/// The name of one edition: a hash over its certificates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub String);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The moments between which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Not valid before.
    pub from_ms: u64,
    /// Not valid after.
    pub until_ms: u64,
}

impl Span {
    /// Whether it is time for the next one: half of its life is over, or it was made by a clock that was ahead.
    pub fn is_due(self, now_ms: u64) -> bool {
        let half = self.from_ms + self.until_ms.saturating_sub(self.from_ms) / 2;
        (now_ms < self.from_ms && !is_broken(Mutation::ClockAheadBelieved)) || now_ms >= half
    }
}

/// An edition that this node keeps, as far as planning needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edition {
    /// Which.
    pub fingerprint: Fingerprint,
    /// Of the certificate that signs nodes' certificates.
    pub issuing: Span,
    /// Of the root that ends first.
    pub roots: Span,
}

impl Edition {
    fn is_due(&self, now_ms: u64) -> bool {
        self.issuing.is_due(now_ms) || self.roots.is_due(now_ms)
    }
}

/// What of an edition everybody may know. Certificates are opaque here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Which edition.
    pub fingerprint: Fingerprint,
    /// The root of nodes' and API servers' certificates.
    pub members: String,
    /// The root of API clients' certificates.
    pub clients: String,
    /// The new members' root, signed by the one before: shown along to those who know only that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross: Option<String>,
}

/// Two roots that belong together, and until when they count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The number of the edition that brought their keys.
    pub number: u64,
    /// See [`Made::members`].
    pub members: String,
    /// See [`Made::clients`].
    pub clients: String,
    /// See [`Made::cross`]; gone when the root before is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross: Option<String>,
    /// Certificates by them count until then; always while they are in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
}

/// What the next edition changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new issuing certificate, and roots that say the same of the same keys for longer: nobody notices.
    Renewal,
    /// Other keys for everything, as somebody wished.
    Rotation(Wish),
}

/// Somebody wants all authorities made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// When it was said.
    pub since_ms: u64,
    /// For how long the old roots still count; `None`: they end with the change.
    pub overlap_ms: Option<u64>,
}

/// An edition on its way into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// Its public part: its roots are trusted already.
    pub made: Made,
    /// What it is for.
    pub change: Change,
    /// When it was made.
    pub since_ms: u64,
}

/// What the map says of the authorities, for everybody: [`TRUST`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// How many editions have been in force, this one included.
    pub number: u64,
    /// The edition in force.
    pub current: Fingerprint,
    /// When it came into force.
    pub since_ms: u64,
    /// All roots that count, newest first; the first are those of the edition in force. Never empty.
    pub anchors: Vec<Anchor>,
    /// The edition that follows, while it is handed to the voters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// See [`Wish`]; until an edition made for it is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wish: Option<Wish>,
}

impl Trust {
    /// The first record of a cluster, whose authorities are older than it.
    pub fn founded(made: Made, now_ms: u64) -> Trust {
        let Made { fingerprint, members, clients, cross } = made;
        let anchor = Anchor { number: 1, members, clients, cross, until_ms: None };
        Trust {
            number: 1,
            current: fingerprint,
            since_ms: now_ms,
            anchors: vec![anchor],
            next: None,
            wish: None,
        }
    }

    /// The record with the next edition on its way.
    pub fn with_next(&self, made: Made, change: Change, now_ms: u64) -> Trust {
        Trust { next: Some(Next { made, change, since_ms: now_ms }), ..self.clone() }
    }

    /// The record with a wish in it, or why it cannot be granted.
    pub fn with_wish(&self, wish: Wish) -> Result<Trust, NotRotated> {
        let under_way = self.next.as_ref().filter(|next| matches!(next.change, Change::Rotation(_)));
        match wish.overlap_ms {
            Some(_) if self.wish.is_some() || under_way.is_some() => return Err(NotRotated::UnderWay),
            // One more old root would need a longer chain of certificates than others take.
            Some(_) if self.overlap_until().is_some() && !is_broken(Mutation::TwoOverlaps) => {
                return Err(NotRotated::Overlap { until_ms: self.overlap_until().unwrap_or_default() });
            }
            Some(overlap_ms) if overlap_ms > OVERLAP_MAX => return Err(NotRotated::TooLong),
            _ => {}
        }
        Ok(Trust { wish: Some(wish), ..self.clone() })
    }

    /// The record with a wish for other keys at once, made after all that anybody holds now: what a thief has is worth
    /// nothing then. Nothing that is under way is that, so it is granted only by an edition that is made from here on.
    pub fn stolen(&self, now_ms: u64) -> Trust {
        let under_way = self.next.as_ref().and_then(|next| match next.change {
            Change::Rotation(wish) => Some(wish.since_ms),
            Change::Renewal => None,
        });
        let since_ms = under_way.map_or(now_ms, |since_ms| now_ms.max(since_ms + 1));
        let overlap_ms = is_broken(Mutation::TheftWithOverlap).then_some(OVERLAP);
        Trust { wish: Some(Wish { since_ms, overlap_ms }), ..self.clone() }
    }

    /// Whether everything that was made by the authorities so far is about to end at once: join tokens count no more from
    /// that wish on, and not only from when it is granted.
    pub fn is_ending(&self) -> bool {
        let under_way = self.next.as_ref().and_then(|next| match next.change {
            Change::Rotation(wish) => Some(wish),
            Change::Renewal => None,
        });
        self.wish.iter().chain(&under_way).any(|wish| wish.overlap_ms.is_none())
    }

    /// Until when certificates by older roots count, if any do.
    pub fn overlap_until(&self) -> Option<u64> {
        self.anchors.iter().filter_map(|anchor| anchor.until_ms).max()
    }

    /// All roots that count now: of members, and of API clients. Those of the edition in force come first.
    pub fn roots(&self) -> impl Iterator<Item = (&str, &str)> {
        let anchors = self.anchors.iter().map(|anchor| (&*anchor.members, &*anchor.clients));
        anchors.chain(self.next.iter().map(|next| (&*next.made.members, &*next.made.clients)))
    }

    /// Whether API clients' certificates recorded under `number` count.
    pub fn counts(&self, number: u64) -> bool {
        self.anchors.iter().any(|anchor| anchor.number == number)
    }

    /// The number to record API clients' certificates under.
    pub fn clients_number(&self) -> u64 {
        self.anchors.first().map_or(self.number, |anchor| anchor.number)
    }

    /// The next edition comes into force.
    fn with_next_in_force(&self, next: &Next, now_ms: u64) -> Trust {
        let number = self.number + 1;
        let Made { fingerprint, members, clients, cross } = next.made.clone();
        let mut anchors = self.anchors.clone();
        match next.change {
            Change::Renewal => {
                if let Some(first) = anchors.first_mut() {
                    (first.members, first.clients) = (members, clients);
                }
            }
            Change::Rotation(Wish { overlap_ms, .. }) => {
                match overlap_ms {
                    None => anchors.clear(),
                    Some(overlap_ms) => {
                        for anchor in &mut anchors {
                            anchor.until_ms.get_or_insert(now_ms.saturating_add(overlap_ms));
                        }
                    }
                }
                anchors.insert(0, Anchor { number, members, clients, cross, until_ms: None });
            }
        }
        let granted = |wish: &Wish| next.change == Change::Rotation(*wish);
        let wish = self.wish.filter(|wish| !granted(wish));
        Trust { number, current: fingerprint, since_ms: now_ms, anchors, next: None, wish }
    }

    /// The record without roots whose time is over; `None` if none is. An end further away than any that may be
    /// asked for was written by a clock that was wrong.
    fn without_ended(&self, now_ms: u64) -> Option<Trust> {
        let mut trust = self.clone();
        trust.anchors.retain(|anchor| anchor.until_ms.is_none_or(|until_ms| until_ms > now_ms));
        for until_ms in trust.anchors.iter_mut().filter_map(|anchor| anchor.until_ms.as_mut()) {
            if *until_ms > now_ms.saturating_add(OVERLAP_MAX + DAY) {
                *until_ms = now_ms.saturating_add(OVERLAP);
            }
        }
        if let [anchor] = &mut *trust.anchors {
            anchor.cross = None;
        }
        (trust != *self).then_some(trust)
    }
}

/// The [`Trust`] record as the view keeps it: an object like others, of which no user sees anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Trust", into = "Trust")]
pub struct Authorities {
    /// Empty: a record has no owners, no labels, no namespace.
    pub metadata: ObjectMeta,
    /// What it says.
    pub trust: Trust,
}

impl From<Trust> for Authorities {
    fn from(trust: Trust) -> Authorities {
        Authorities { metadata: ObjectMeta::default(), trust }
    }
}

impl From<Authorities> for Trust {
    fn from(authorities: Authorities) -> Trust {
        authorities.trust
    }
}

/// Why no rotation begins. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRotated {
    /// One is going on.
    #[error("the authorities are being made anew already; see: skein status")]
    UnderWay,
    /// Kubeconfigs of before the last one are still good.
    #[error(
        "kubeconfigs of before the last rotation are still good; rotate when they have ended, or end them all with --now"
    )]
    Overlap {
        /// Until then.
        until_ms: u64,
    },
    /// Longer than any certificate lives.
    #[error("old kubeconfigs can stay good for a year at most; give a shorter --overlap")]
    TooLong,
}

/// What a node says that it keeps: it is on its disk before this is in the map, and the record is gone before
/// the keys are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The editions.
    pub holds: BTreeSet<Fingerprint>,
}

/// What lies on this node's disk, sealed to its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// What it issues by, if that is in force.
    pub current: Option<Edition>,
    /// What may come into force.
    pub next: Option<Edition>,
}

impl Kept {
    fn editions(&self) -> impl Iterator<Item = &Edition> {
        self.current.iter().chain(&self.next)
    }

    fn holder(&self) -> Holder {
        Holder { holds: self.editions().map(|edition| edition.fingerprint.clone()).collect() }
    }

    /// Whether this node may issue certificates. A cluster that was founded before there was a record issues by
    /// what it has.
    pub fn may_issue(&self, trust: Option<&Trust>) -> bool {
        let in_force = |edition: &Edition| trust.is_none_or(|trust| trust.current == edition.fingerprint);
        self.current.as_ref().is_some_and(in_force)
    }
}

/// What one node sees.
#[derive(Clone, Debug)]
pub struct Sight<'a, Id> {
    /// Who this node is.
    pub me: Id,
    /// It leads.
    pub leads: bool,
    /// The cluster's time; `None` while nobody knows it: then nothing is due.
    pub now_ms: Option<u64>,
    /// Who votes.
    pub voters: &'a BTreeSet<Id>,
    /// A change of who votes is half done.
    pub joint: bool,
    /// Who is to keep the authorities: see [`keepers`].
    pub keepers: &'a BTreeSet<Id>,
    /// Who is a member.
    pub members: &'a BTreeSet<Id>,
    /// Who of them is there; this node is.
    pub alive: &'a BTreeSet<Id>,
    /// What the map says; `None` before anybody has said it.
    pub trust: Option<&'a Trust>,
    /// Who says that it keeps what.
    pub holders: &'a BTreeMap<Id, Holder>,
    /// What this node keeps.
    pub kept: &'a Kept,
}

/// What a node should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act<Id> {
    /// Write the first record: what this node keeps is in force.
    Found,
    /// Ask these, one after the other, for an edition, and keep it as the current one.
    Fetch {
        /// Which; `None`: whatever a voter has, where nobody has said yet what is in force.
        edition: Option<Fingerprint>,
        /// Whom.
        from: Vec<Id>,
    },
    /// The same for the next one.
    FetchNext {
        /// Which.
        edition: Fingerprint,
        /// Whom.
        from: Vec<Id>,
    },
    /// The next one is in force: keep it as the current one, and what that was no more.
    Promote,
    /// The next one will never be in force: keep it no more.
    Discard,
    /// Say what this node keeps.
    Announce(Holder),
    /// Take this node's record back, on condition that the witness's record is as it is; then delete the keys.
    Withdraw {
        /// A voter that keeps what is in force.
        witness: Id,
    },
    /// Make the next edition, keep it, and write it into the record.
    Make(Change),
    /// Write the record. With `tokens_end` all join tokens go in the same command: they pin a root that is not in
    /// force any more.
    Write {
        /// What it says from now on.
        trust: Trust,
        /// See above.
        tokens_end: bool,
    },
    /// Delete the records of nodes that are no members.
    Forget(Vec<Id>),
}

/// What this node should do now: at most one thing for what it keeps and one as the leader. Nothing is left to
/// do when it is empty.
pub fn plan<Id: Copy + Ord>(sight: &Sight<'_, Id>) -> Vec<Act<Id>> {
    let own = if sight.keepers.contains(&sight.me) { as_keeper(sight) } else { as_other(sight) };
    let led = if sight.leads { as_leader(sight) } else { None };
    own.into_iter().chain(led).collect()
}

/// Who is to keep the authorities: the voters, and where all of those are going, whoever stays.
pub fn keepers<Id: Copy + Ord>(voters: &BTreeSet<Id>, staying: &BTreeSet<Id>) -> BTreeSet<Id> {
    if voters.is_disjoint(staying) { voters | staying } else { voters.clone() }
}

/// A keeper keeps what is in force and what may come, and says so.
fn as_keeper<Id: Copy + Ord>(sight: &Sight<'_, Id>) -> Option<Act<Id>> {
    let kept = sight.kept;
    let Some(trust) = sight.trust else {
        let from = first_the_living(sight, sight.voters.iter().copied());
        return (kept.current.is_none() && !from.is_empty()).then_some(Act::Fetch { edition: None, from });
    };
    let is = |slot: &Option<Edition>, edition: &Fingerprint| {
        slot.as_ref().is_some_and(|kept| kept.fingerprint == *edition)
    };
    if is(&kept.next, &trust.current) {
        return Some(Act::Promote);
    }
    let wanted = trust.next.as_ref().map(|next| &next.made.fingerprint);
    if kept.next.as_ref().is_some_and(|edition| wanted != Some(&edition.fingerprint)) {
        return Some(Act::Discard);
    }
    let from = |edition| first_the_living(sight, holding(edition, sight.holders));
    if !is(&kept.current, &trust.current) {
        let from = from(&trust.current);
        if !from.is_empty() {
            return Some(Act::Fetch { edition: Some(trust.current.clone()), from });
        }
    }
    if let Some(edition) = wanted.filter(|edition| !is(&kept.next, edition)) {
        let from = from(edition);
        if !from.is_empty() {
            return Some(Act::FetchNext { edition: edition.clone(), from });
        }
    }
    let held = kept.holder();
    let said = sight.holders.get(&sight.me).unwrap_or(&Holder { holds: BTreeSet::new() }) == &held;
    (!said).then_some(Act::Announce(held))
}

/// Nobody else keeps anything, unless it is the last that could give it to a voter.
fn as_other<Id: Copy + Ord>(sight: &Sight<'_, Id>) -> Option<Act<Id>> {
    let keeps = sight.kept.editions().next().is_some() || sight.holders.contains_key(&sight.me);
    if !keeps || sight.joint {
        return None;
    }
    let mut witnesses = holding(&sight.trust?.current, sight.holders);
    let is_good = |node: &Id| {
        let votes = sight.voters.contains(node) && sight.alive.contains(node);
        (*node != sight.me && votes) || is_broken(Mutation::AnyWitness)
    };
    witnesses.find(is_good).map(|witness| Act::Withdraw { witness })
}

fn as_leader<Id: Copy + Ord>(sight: &Sight<'_, Id>) -> Option<Act<Id>> {
    let Some(trust) = sight.trust else {
        return sight.kept.current.is_some().then_some(Act::Found);
    };
    let strangers = sight.holders.keys().filter(|node| !sight.members.contains(node));
    let strangers: Vec<Id> = strangers.copied().collect();
    if !strangers.is_empty() {
        return Some(Act::Forget(strangers));
    }
    let now_ms = sight.now_ms?;
    if let Some(trust) = trust.without_ended(now_ms) {
        return Some(Act::Write { trust, tokens_end: false });
    }
    if let Some(next) = &trust.next {
        return hand_over(sight, trust, next, now_ms);
    }
    let in_force = sight.kept.current.as_ref().filter(|edition| edition.fingerprint == trust.current);
    if let Some(wish) = trust.wish {
        // Where nobody keeps the old keys any more, new ones are made without them.
        let is_lost = holding(&trust.current, sight.holders).next().is_none();
        return (in_force.is_some() || is_lost).then_some(Act::Make(Change::Rotation(wish)));
    }
    in_force.filter(|edition| edition.is_due(now_ms)).map(|_| Act::Make(Change::Renewal))
}

/// The next edition comes into force when the voters hold it, and is given up when nobody does.
fn hand_over<Id: Copy + Ord>(
    sight: &Sight<'_, Id>,
    trust: &Trust,
    next: &Next,
    now_ms: u64,
) -> Option<Act<Id>> {
    let holders: BTreeSet<Id> = holding(&next.made.fingerprint, sight.holders).collect();
    let has_waited = has_passed(next.since_ms, HAND_OVER_MAX, now_ms);
    let missing = sight.voters.iter().any(|voter| sight.alive.contains(voter) && !holders.contains(voter));
    let majority = sight.voters.intersection(&holders).count() * 2 > sight.voters.len()
        || is_broken(Mutation::NoMajority);
    if majority && !sight.joint && (!missing || has_waited) {
        let tokens_end = matches!(next.change, Change::Rotation(_));
        return Some(Act::Write { trust: trust.with_next_in_force(next, now_ms), tokens_end });
    }
    let is_lost = holders.is_disjoint(sight.alive);
    (is_lost && has_waited)
        .then(|| Act::Write { trust: Trust { next: None, ..trust.clone() }, tokens_end: false })
}

/// Who says that it keeps `edition`.
fn holding<Id: Copy + Ord>(
    edition: &Fingerprint,
    holders: &BTreeMap<Id, Holder>,
) -> impl Iterator<Item = Id> {
    holders.iter().filter(|(_, holder)| holder.holds.contains(edition)).map(|(node, _)| *node)
}

/// The others among `nodes`, those that are there first.
fn first_the_living<Id: Copy + Ord>(sight: &Sight<'_, Id>, nodes: impl Iterator<Item = Id>) -> Vec<Id> {
    let mut nodes: Vec<Id> = nodes.filter(|node| *node != sight.me).collect();
    nodes.sort_by_key(|node| (!sight.alive.contains(node), *node));
    nodes
}

/// Bugs that the simulation puts back, to prove that it would notice them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    /// A copy is dropped on anybody's word, its own as well.
    AnyWitness,
    /// An edition comes into force that one node has.
    NoMajority,
    /// What is not valid yet is not due.
    ClockAheadBelieved,
    /// What a thief knows counts for a while.
    TheftWithOverlap,
    /// A second rotation begins while kubeconfigs of before the first are good.
    TwoOverlaps,
}

#[cfg(test)]
use simulation::is_broken;

#[cfg(not(test))]
const fn is_broken(_: Mutation) -> bool {
    false
}

/// Whether `span_ms` have passed since a moment; one that lies ahead is long past.
fn has_passed(since_ms: u64, span_ms: u64, now_ms: u64) -> bool {
    now_ms.checked_sub(since_ms).is_none_or(|passed| passed >= span_ms)
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
