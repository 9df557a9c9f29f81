//! What the silence of a node means: the leader's one judge.
//!
//! That a daemon is silent does not say that its machine is gone, and pods outlive their daemon. So the
//! judge hears three kinds of witness: the node's own renewals, answers of its *kernel* to probes of
//! several observers, and, where a firewall swallows probes, gossip. Any answer vetoes the quick verdict.
//!
//! [`Judge`] holds what was heard; [`verdict`] is the rule, a pure function with one row for each kind of
//! silence. Call order: [`Judge::new`] on taking office; [`Judge::renewed`] and [`Judge::reported`] as
//! they arrive; [`Judge::step`] when it is [`due`](Judge::due), after everything that has arrived was handed in.
//! A judge ends with its term.
//!
//! Source: SWIM §4.2 (suspicion); Gray & Cheriton 1989 (leases). The arithmetic stands at the constants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::own_link::OwnLink;
use crate::time::Instant;

/// How often [`Judge::step`] is due while somebody is silent.
pub const STEP: Duration = Duration::from_millis(50);
/// And how often while all renew: an idle leader need not wake for each of them.
const CALM_STEP: Duration = Duration::from_millis(250);
/// How often a node renews.
pub const RENEWAL: Duration = Duration::from_millis(250);
/// Silence from which observers are asked: what is left of the quick row's 2.75 s after its 2.25 s of tries.
const ASK_AFTER: Duration = Duration::from_millis(500);
/// How often each question is asked anew.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Two renewals, one of them lost, and a quarter second of delay on top of the outage to survive.
const RENEWALS_LOST: Duration = Duration::from_millis(750);
/// The time limit of one try on top of the outage: a starved node may be late already when its link fails.
const TRY_LIMIT: Duration = Duration::from_millis(250);
/// One try fails with 13 % at 20 % loss, five with 4e-5. Their duration counts as well, see [`TRY_LIMIT`].
const TRIES_MIN: u32 = 5;
/// The daemon is gone and its supervisor will start it again.
const REFUSED: Duration = Duration::from_secs(5);
/// It has this much of it from the first refusal on: what it was silent for before had another reason. Asking begins
/// after [`ASK_AFTER`], and the first tries may be lost.
const REFUSED_SEEN: Duration = Duration::from_secs(4);
/// Paused, starved or stuck on a disk: its pods still serve. And whoever nothing is known of that would say more.
const STUCK: Duration = Duration::from_secs(30);
/// A node that was silent for so long in all, while this leader heard a quorum, has been forgiven often enough: its
/// silence counts whole. Twice the longest row, so that whoever is on the way back after half a minute is back before.
const FORGIVEN_MAX: Duration = Duration::from_secs(60);
/// A node that no probe ever reached is judged by gossip, which needs its own 2.5 s.
const FIREWALLED: Duration = Duration::from_secs(3);
/// A report older than this says nothing of now.
const REPORT_VALID: Duration = Duration::from_millis(700);
/// How long one answer of the kernel vetoes: three tries of 500 ms after an answer.
const ANSWER_VALID: Duration = Duration::from_millis(1500);
/// An observer must have renewed itself within this time.
const OBSERVER_FRESH: Duration = Duration::from_secs(1);
/// Without a younger acknowledgement of a quorum, silence is as likely the leader's own.
const QUORUM_FRESH: Duration = Duration::from_millis(600);
/// A loop that ran this late has read nothing for as long.
const STALL: Duration = Duration::from_millis(200);
/// One that ran later still slept rather than listened.
const LATE_MAX: Duration = Duration::from_secs(1);
/// What arrived during a stall is read within this time after it.
const STALL_GRACE: Duration = Duration::from_millis(300);
/// From here on a silent node counts towards a mass silence.
const MASS: Duration = Duration::from_secs(2);
/// A renewal must name a tick of the leader this young: one who hears nothing would renew for ever.
const TICK_VALID: Duration = Duration::from_secs(2);
/// The old leader's last heartbeat counts, but may be long ago: at most this much before taking office.
const BEFORE_OFFICE: Duration = Duration::from_secs(1);

/// What an operator may set.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The longest outage of a node's network that moves no pod; every verdict on a dead machine waits
    /// 750 ms longer. A longer outage looks like a power cut to any rule as fast as this one.
    pub outage_survived: Duration,
    /// How long a leader waits for a node that it has never heard in its office and that nobody can probe: after
    /// everything was off, one whose addresses all lead nowhere. One that can be probed is judged like any other,
    /// from the beginning of the office.
    pub never_heard: Duration,
}

impl Default for Settings {
    /// * `outage_survived` 2 s: a switch that restarts a port, a Wi-Fi roam, a cable moved to another socket.
    /// * `never_heard` 10 s: a member that runs finds its leader in one or two, and no start of a machine is waited
    ///   for here, as none is where probes tell that it is off.
    fn default() -> Self {
        Settings { outage_survived: Duration::from_secs(2), never_heard: Duration::from_secs(10) }
    }
}

/// How a node's kernel answered a probe, the most alive last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// An ICMP echo only. A stopped daemon's backlog fills and then drops connects, so this counts like
    /// [`Answer::Accepts`]; between the two stands what a REJECT rule would fake.
    Echo,
    /// The API port refused: no daemon.
    Refused,
    /// The API port accepted.
    Accepts,
}

/// What one observer says of one silent node. Times are as long ago as they were when the report left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Tries since the last answer that nobody answered.
    pub unanswered: u32,
    /// The age of the oldest of these.
    pub unanswered_for: Duration,
    /// The newest answer and its age.
    pub answer: Option<(Answer, Duration)>,
    /// Whether the observer's gossip says Down.
    pub gossip_down: bool,
}

/// What the rule says of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Renews, or is silent for less time than its kind of silence needs.
    Keep,
    /// Its replaceable pods may run elsewhere now.
    Lost(Cause),
}

/// Which row of the rule spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nobody got any answer: machine or link lost.
    NoAnswer,
    /// The kernel answers, the daemon is gone and did not come back.
    DaemonGone,
    /// The machine lives, its daemon does nothing.
    Stuck,
    /// Probes never reached it; gossip of two observers says Down.
    GossipDown,
    /// It was not heard in this office, and nobody could probe it.
    NeverHeard,
    /// It fell silent, and too few could probe it to say why.
    Unwitnessed,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::NoAnswer => "its machine does not answer",
            Cause::DaemonGone => "its daemon has ended, and did not come back",
            Cause::Stuck => "its machine answers, its daemon does nothing",
            Cause::GossipDown => "others say that it is down",
            Cause::NeverHeard => "it did not come back, and nobody knows where it is",
            Cause::Unwitnessed => "it is silent, and too few could look why",
        })
    }
}

/// All that [`verdict`] looks at: one node's silence and what is around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// How long it has not renewed.
    pub lasts: Duration,
    /// Whether it was ever heard in this office.
    pub heard: bool,
    /// The age of the newest answer of its kernel in this silence, whoever told of it and however long ago.
    pub answered: Option<Duration>,
    /// How long ago its port first refused, without a sign of a daemon since; zero if it does not.
    pub refused_for: Duration,
    /// Reports of this office young enough to count, by observer.
    pub reports: Vec<Report>,
    /// How many observers must agree: two, or all where fewer than two others live.
    pub observers_needed: usize,
    /// The round trip to it, at least 0.
    pub rtt: Duration,
    /// Whether probes ever reached it while it was healthy.
    pub probes_reach_it: bool,
    /// It said that it restarts.
    pub announced: bool,
    /// Over half of the members are silent as well.
    pub mass: bool,
    /// What is known of the own link of a lone observer, which may be the one that is cut off. Nothing of it
    /// matters where others observe too: then it is [`OwnLink::Proven`].
    pub own_link: OwnLink,
}

/// The rule. It assumes that the leader hears a quorum and is awake: [`Judge::step`] does not ask otherwise.
///
/// Cost: one pass over the reports.
pub fn verdict(silence: &Silence, settings: &Settings) -> Verdict {
    let after = |limit: Duration, cause| {
        let limit = if silence.mass { limit.max(STUCK) } else { limit };
        if silence.lasts >= limit { Verdict::Lost(cause) } else { Verdict::Keep }
    };
    // Who said that it restarts is waited for while its kernel answers, or would not be heard if it did.
    let unless_announced = |limit: Duration| if silence.announced { limit.max(STUCK) } else { limit };
    // Any answer proves the own link; where there is none, something else has to.
    let unanswered_after = |limit: Duration, cause| match silence.own_link {
        OwnLink::Proven => after(limit, cause),
        OwnLink::Unknown => after(limit.max(STUCK), cause),
        OwnLink::Unproven | OwnLink::Cut => Verdict::Keep,
    };
    let agree = |says: &dyn Fn(&Report) -> bool| {
        silence.reports.iter().filter(|report| says(report)).count() >= silence.observers_needed
    };
    let tried_for = settings.outage_survived + TRY_LIMIT + silence.rtt;
    let in_vain = |report: &Report| report.unanswered >= TRIES_MIN && report.unanswered_for >= tried_for;
    let answers = silence.reports.iter().filter_map(|report| report.answer);
    let best = answers.filter(|(_, age)| *age <= ANSWER_VALID).map(|(answer, _)| answer).max();
    match best {
        Some(Answer::Accepts) => after(STUCK, Cause::Stuck),
        Some(Answer::Refused) if silence.refused_for < REFUSED_SEEN => Verdict::Keep,
        Some(Answer::Refused) => after(unless_announced(REFUSED), Cause::DaemonGone),
        Some(Answer::Echo) => after(STUCK, Cause::Stuck),
        None if silence.probes_reach_it && agree(&in_vain) => {
            unanswered_after(settings.outage_survived + RENEWALS_LOST, Cause::NoAnswer)
        }
        None if !silence.probes_reach_it && agree(&|report| report.gossip_down) => {
            unanswered_after(unless_announced(FIREWALLED), Cause::GossipDown)
        }
        None => match silence.answered {
            // Somebody reaches it, and his reports may just be lost.
            Some(age) if age < STUCK => Verdict::Keep,
            None if !silence.heard => unanswered_after(settings.never_heard, Cause::NeverHeard),
            Some(_) | None => unanswered_after(STUCK, Cause::Unwitnessed),
        },
    }
}

/// Bugs that tests put back on purpose, to see that they are noticed.
#[cfg(feature = "mutations")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// One observer's word is enough.
    OneObserver,
    /// Who was never heard and cannot be probed is waited for, for ever.
    NeverHeardForgotten,
}

/// What the leader's shell must do after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<Id> {
    /// Ask `observer` to probe `about` and to report, now and until it is not asked for 700 ms.
    Ask {
        /// The node that probes; it may be the leader itself.
        observer: Id,
        /// The silent node.
        about: Id,
    },
    /// Commit that the node is lost, in this term only.
    Declare {
        /// The lost node.
        node: Id,
        /// Why.
        cause: Cause,
        /// How long it had been silent.
        silent_for: Duration,
    },
    /// Commit that a node declared lost is back.
    Welcome(Id),
}

/// The leader's memory of one term: who renewed when, and what observers said.
#[derive(Debug)]
pub struct Judge<Id> {
    settings: Settings,
    me: Id,
    in_office_since: Instant,
    nodes: BTreeMap<Id, Node<Id>>,
    due: Instant,
    /// Silence counts from here on, at the earliest.
    heard_nothing_until: Instant,
    deaf_until: Instant,
    mass: bool,
    stepped_at: Instant,
    #[cfg(feature = "mutations")]
    mutation: Option<Mutation>,
}

#[derive(Debug)]
struct Node<Id> {
    /// Since when this judge could have heard it.
    judged_since: Instant,
    heard_at: Option<Instant>,
    /// How long it was silent in all since it was last heard, whatever was forgiven: the time in which this leader
    /// ran and heard a quorum.
    unheard: Duration,
    declared: bool,
    announced: bool,
    probes_reach_it: bool,
    rtt: Duration,
    asked_at: Option<Instant>,
    observers: BTreeSet<Id>,
    /// The observer's report and when it came.
    reports: BTreeMap<Id, (Instant, Report)>,
    /// When the port last accepted, and when it first refused after that: in this silence.
    accepted_at: Option<Instant>,
    refused_at: Option<Instant>,
    /// When its kernel last answered anybody, in this silence.
    answered_at: Option<Instant>,
}

impl<Id> Node<Id> {
    fn new(now: Instant) -> Node<Id> {
        Node {
            judged_since: now,
            heard_at: None,
            unheard: Duration::ZERO,
            declared: false,
            announced: false,
            probes_reach_it: false,
            rtt: Duration::ZERO,
            asked_at: None,
            observers: BTreeSet::new(),
            reports: BTreeMap::new(),
            accepted_at: None,
            refused_at: None,
            answered_at: None,
        }
    }

    fn was_heard_since(&self, moment: Instant) -> bool {
        self.heard_at.is_some_and(|at| at >= moment)
    }

    /// Its port answered so at that time. Observers may tell late.
    fn answered(&mut self, at: Instant, answer: Answer) {
        self.answered_at = self.answered_at.max(Some(at));
        match answer {
            Answer::Accepts => {
                self.accepted_at = self.accepted_at.max(Some(at));
                self.refused_at = self.refused_at.filter(|refused| *refused > at);
            }
            Answer::Refused if self.accepted_at < Some(at) => {
                self.refused_at = Some(self.refused_at.map_or(at, |refused| refused.min(at)));
            }
            Answer::Refused | Answer::Echo => {}
        }
    }
}

impl<Id: Copy + Ord> Judge<Id> {
    /// A judge that took office at `now`. `previous` is the leader before it and when its last heartbeat
    /// was heard here: it has been silent since then, not since this office began.
    pub fn new(me: Id, now: Instant, previous: Option<(Id, Instant)>, settings: Settings) -> Judge<Id> {
        let mut judge = Judge {
            settings,
            me,
            in_office_since: now,
            nodes: BTreeMap::new(),
            due: now,
            heard_nothing_until: Instant(0),
            deaf_until: Instant(0),
            mass: false,
            stepped_at: now,
            #[cfg(feature = "mutations")]
            mutation: None,
        };
        if let Some((leader, heard_at)) = previous {
            let earliest = now.before(BEFORE_OFFICE);
            let silent = Node { heard_at: Some(heard_at.clamp(earliest, now)), ..Node::new(now) };
            judge.nodes.insert(leader, silent);
        }
        judge
    }

    /// Puts a known bug back, for tests that prove it would be noticed.
    #[cfg(feature = "mutations")]
    pub fn mutate(&mut self, mutation: Option<Mutation>) {
        self.mutation = mutation;
    }

    /// Makes the judged nodes exactly `members`: (node, declared lost in the log, whether probes reach it
    /// while it is healthy). One that is new is silent from now on at the earliest.
    pub fn set_members(&mut self, now: Instant, members: impl IntoIterator<Item = (Id, bool, bool)>) {
        let members: BTreeMap<Id, (bool, bool)> =
            members.into_iter().map(|(id, declared, reached)| (id, (declared, reached))).collect();
        self.nodes.retain(|id, _| members.contains_key(id));
        for (id, (declared, probes_reach_it)) in members {
            let node = self.nodes.entry(id).or_insert_with(|| Node::new(now));
            node.declared = declared;
            node.probes_reach_it = probes_reach_it;
        }
    }

    /// A renewal of `from` came at `now`, naming the leader's tick `seen` (a moment of this clock).
    /// Returns whether it counts; the leader answers every renewal with its tick either way.
    pub fn renewed(&mut self, now: Instant, from: Id, seen: Option<Instant>, rtt: Duration) -> bool {
        let fresh =
            seen.is_some_and(|tick| tick >= self.in_office_since && now.since(tick) <= TICK_VALID + 2 * rtt);
        let Some(node) = self.nodes.get_mut(&from).filter(|_| fresh) else { return false };
        node.heard_at = Some(now);
        node.unheard = Duration::ZERO;
        node.rtt = rtt;
        node.announced = false;
        node.asked_at = None;
        node.observers.clear();
        node.reports.clear();
        (node.accepted_at, node.refused_at, node.answered_at) = (None, None, None);
        true
    }

    /// `from` said that it restarts: it gets 30 s, as long as its kernel answers.
    pub fn announced(&mut self, now: Instant, from: Id) {
        if let Some(node) = self.nodes.get_mut(&from) {
            node.heard_at = Some(now);
            node.unheard = Duration::ZERO;
            node.announced = true;
        }
    }

    /// An observer's report about a node it was asked about in this office.
    pub fn reported(&mut self, now: Instant, observer: Id, about: Id, report: Report) {
        if let Some(node) = self.nodes.get_mut(&about).filter(|node| node.asked_at.is_some()) {
            if let Some((answer, age)) = report.answer {
                node.answered(now.before(age), answer);
            }
            node.reports.insert(observer, (now, report));
        }
    }

    /// When the next [`step`](Self::step) is due; it may come earlier.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// One round.
    ///
    /// * `quorum_age`: the age of the last acknowledgement by a quorum; zero for a single voter.
    /// * `own_link`: what the gateway's answers say of this node's own link.
    pub fn step(&mut self, now: Instant, quorum_age: Duration, own_link: OwnLink) -> Vec<Effect<Id>> {
        let late = now.since(self.due);
        if late > STALL {
            self.deaf_until = now.after(STALL_GRACE);
        }
        // A leader without a quorum goes on leading and comes back in the same term: the silence it saw
        // meanwhile was its own. So is what it missed while its cable was out: when that ends, the other one's
        // kernel answers before its next renewal comes.
        let is_sure_of_itself = matches!(own_link, OwnLink::Proven | OwnLink::Unknown);
        if quorum_age > QUORUM_FRESH || own_link == OwnLink::Cut {
            self.heard_nothing_until = now;
        } else if is_sure_of_itself && late <= LATE_MAX {
            let passed = now.since(self.stepped_at);
            self.nodes.values_mut().for_each(|node| node.unheard += passed);
        }
        self.stepped_at = now;
        self.weigh_mass_silence(now);
        let mut effects = Vec::new();
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            if id != self.me {
                self.step_node(now, id, own_link, &mut effects);
            } else if self.nodes[&id].declared && quorum_age <= QUORUM_FRESH {
                // It was declared lost, came back and was elected: nobody else is left to say so.
                effects.push(Effect::Welcome(id));
            }
        }
        self.due = now.after(self.calm_for(now).clamp(STEP, CALM_STEP));
        effects
    }

    /// How long from now on nobody can be silent for so long that observers are asked.
    fn calm_for(&self, now: Instant) -> Duration {
        // Of those that are declared lost nobody asks; they may be off for days.
        let judged = self.nodes.iter().filter(|(_, node)| !node.declared);
        let longest = judged.map(|(id, _)| self.silence(now, *id)).max().unwrap_or_default();
        ASK_AFTER.saturating_sub(longest)
    }

    fn step_node(&mut self, now: Instant, id: Id, own_link: OwnLink, effects: &mut Vec<Effect<Id>>) {
        let lasts = self.silence(now, id);
        let node = &self.nodes[&id];
        if node.declared {
            // The log still calls it lost; what it renewed in this office says otherwise.
            if node.was_heard_since(self.in_office_since) && lasts < ASK_AFTER {
                effects.push(Effect::Welcome(id));
            }
            return;
        }
        if lasts < ASK_AFTER {
            return;
        }
        let forgives = node.unheard < FORGIVEN_MAX;
        self.ask(now, id, effects);
        // One that is always late would otherwise never judge anybody.
        let deaf = forgives && now < self.deaf_until;
        if deaf || self.heard_nothing_until == now {
            return;
        }
        let others = self.nodes.keys().filter(|other| **other != id && **other != self.me);
        let living = others.filter(|other| self.silence(now, **other) <= OBSERVER_FRESH).count();
        let node = &self.nodes[&id];
        let valid = REPORT_VALID + 2 * node.rtt;
        let fresh = node.reports.values().filter(|(at, _)| now.since(*at) <= valid);
        let reports: Vec<Report> = fresh.map(|(at, report)| report.older_by(now.since(*at))).collect();
        #[cfg(feature = "mutations")]
        let reports = self.believed(reports);
        let silence = Silence {
            lasts,
            heard: node.was_heard_since(self.in_office_since),
            answered: node.answered_at.map(|at| now.since(at)),
            refused_for: node.refused_at.map_or(Duration::ZERO, |at| now.since(at)),
            reports,
            observers_needed: self.observers_needed(living),
            rtt: node.rtt,
            probes_reach_it: node.probes_reach_it,
            announced: node.announced,
            mass: self.mass,
            own_link: if living == 0 { own_link } else { OwnLink::Proven },
        };
        if let Verdict::Lost(cause) = verdict(&silence, &self.settings) {
            #[cfg(feature = "mutations")]
            if cause == Cause::NeverHeard && self.mutation == Some(Mutation::NeverHeardForgotten) {
                return;
            }
            effects.push(Effect::Declare { node: id, cause, silent_for: lasts });
        }
    }

    /// Two, or all there are.
    fn observers_needed(&self, others_that_live: usize) -> usize {
        #[cfg(feature = "mutations")]
        if self.mutation == Some(Mutation::OneObserver) {
            return 1;
        }
        (1 + others_that_live).min(2)
    }

    /// The one report that says the worst, if one observer is enough.
    #[cfg(feature = "mutations")]
    fn believed(&self, reports: Vec<Report>) -> Vec<Report> {
        if self.mutation != Some(Mutation::OneObserver) {
            return reports;
        }
        reports
            .into_iter()
            .max_by_key(|report| (report.answer.is_none(), report.unanswered_for))
            .into_iter()
            .collect()
    }

    /// Asks this node and every other one that lives, two of them in a large cluster: the same ones while
    /// they answer, because a new observer's tries start at none.
    fn ask(&mut self, now: Instant, about: Id, effects: &mut Vec<Effect<Id>>) {
        let node = &self.nodes[&about];
        if node.asked_at.is_some_and(|at| now.since(at) < ASK_EVERY) {
            return;
        }
        let mut observers = node.observers.clone();
        observers.retain(|observer| {
            let silent = node.reports.get(observer).is_none_or(|(at, _)| now.since(*at) > REPORT_VALID);
            !silent || self.silence(now, *observer) <= REPORT_VALID
        });
        observers.insert(self.me);
        for other in self.nodes.keys().filter(|other| **other != about) {
            // The leader and two others.
            if observers.len() >= 3 {
                break;
            }
            if *other == self.me || self.silence(now, *other) <= OBSERVER_FRESH {
                observers.insert(*other);
            }
        }
        effects.extend(observers.iter().map(|observer| Effect::Ask { observer: *observer, about }));
        let node = self.nodes.get_mut(&about).expect("who is asked about is judged");
        node.asked_at = Some(now);
        node.reports.retain(|observer, _| observers.contains(observer));
        node.observers = observers;
    }

    /// How long `id` has not renewed, counted from when this judge could have heard it, and whole where too much of
    /// it has been forgiven.
    fn silence(&self, now: Instant, id: Id) -> Duration {
        if id == self.me {
            return Duration::ZERO;
        }
        // An observer that is no member any more was heard at some time before this office.
        let Some(node) = self.nodes.get(&id) else { return now.since(self.in_office_since) };
        let heard_at = node.heard_at.unwrap_or(node.judged_since);
        let lasts = now.since(heard_at.max(self.heard_nothing_until));
        if node.unheard < FORGIVEN_MAX { lasts } else { lasts.max(node.unheard) }
    }

    fn weigh_mass_silence(&mut self, now: Instant) {
        let judged: Vec<Id> = self
            .nodes
            .iter()
            .filter(|(id, node)| **id != self.me && !node.declared)
            .map(|(id, _)| *id)
            .collect();
        let silent = judged.iter().filter(|id| self.silence(now, **id) > MASS).count();
        // This node speaks for itself. In a cluster of two the other one alone is half, never more.
        let mass = 2 * silent > judged.len() + 1;
        if self.mass && !mass {
            // It ends for all at once: who is still on the way back must not be judged by the old clock.
            self.heard_nothing_until = now;
        }
        self.mass = mass;
    }
}

impl Report {
    /// The same report, as it reads `later` after it came.
    fn older_by(mut self, later: Duration) -> Report {
        if let Some((_, age)) = &mut self.answer {
            *age += later;
        }
        self
    }
}

#[cfg(test)]
mod tests;
