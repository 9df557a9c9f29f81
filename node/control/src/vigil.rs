//! One node's part in watching over the others: it renews with the leader, probes whom the leader asks
//! about, and judges while it leads itself, also whether another one should lead.
//!
//! [`Vigil`] is a state machine between the messages of other nodes, the ends of its tries, and timers.
//! Call order: what has arrived is handed in ([`Vigil::hear`], [`Vigil::tried`], [`Vigil::learned`],
//! [`Vigil::gateway_tried`]) before a timer runs; [`Vigil::look`] whenever leader or term may have changed, [`Vigil::renew`] every
//! [`RENEWAL`](judge::RENEWAL), [`Vigil::step`] when it is [due](Vigil::step_due), [`Vigil::probe`] every
//! [`PROBE_STEP`], [`Vigil::learn`] every [`LEARN_EVERY`]. The shell performs the [`Effect`]s.
//!
//! It does not say what silence means (that is [`judge`]) and writes nothing: verdicts go to the planner.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::judge::{self, Answer, Cause, Judge, Report, Settings};
use crate::node_health::Verdict;
use crate::own_link::{LinkProof, OwnLink};
use crate::probe::Probe;
use crate::succession::{self, Succession};
use crate::time::Instant;

/// How often [`Vigil::probe`] is called while something is probed; tries are due every 100 ms.
pub const PROBE_STEP: Duration = Duration::from_millis(25);
/// How often the kernels of healthy members are tried, to learn which ones answer at all.
pub const LEARN_EVERY: Duration = Duration::from_secs(60);
/// How long a try at leisure may take: enough for any link that works.
pub const LEARN_LIMIT: Duration = Duration::from_secs(2);
/// Without a grant for so long a node sends its renewals through others too.
const GRANT_MISSED: Duration = Duration::from_secs(1);
/// Through all voters, and where these are fewer, through so many healthy members: a leader that votes alone
/// must not lose a node over one bad link either.
const RELAYS_MIN: usize = 4;
/// Two renewals without a grant: from here on the leader's kernel is probed.
const LEADER_SILENT: Duration = Duration::from_millis(500);
/// Contact counts for so long after the last sign of it.
const CONTACT_MAX: Duration = Duration::from_secs(2);
/// Voters a node may name. There are five, and five others while the set changes.
const REACHES_MAX: usize = 10;
/// How soon after its choice a new leader was chosen, rather than elected for another reason.
const CHOSEN_MAX: Duration = Duration::from_secs(5);

/// What nodes tell each other. Small, and a lost one is repaired by the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<Id> {
    /// "I am here."
    Renewal {
        /// Who is; another member may pass it on.
        origin: Id,
        /// The term it knows.
        term: u64,
        /// The newest moment heard of the leader of this term, on the leader's clock.
        tick: Option<Instant>,
        /// What it says of itself.
        word: Word<Id>,
    },
    /// The leader's answer to a renewal.
    Grant {
        /// Whose renewal it was.
        origin: Id,
        /// The leader's term.
        term: u64,
        /// The leader's present moment.
        tick: Instant,
        /// Somebody does not reach the leader: every node greets all voters, to say whom it reaches.
        survey: bool,
    },
    /// "Probe that node and tell me", from the leader.
    Probe {
        /// The leader's term.
        term: u64,
        /// The silent node.
        about: Id,
    },
    /// An observer's report.
    Report {
        /// The term of the leader that asked.
        term: u64,
        /// The silent node.
        about: Id,
        /// What the observer knows.
        report: Report,
    },
    /// To a voter: answer, so that it is known that the two reach each other.
    Greeting,
    /// The answer.
    Greeted,
    /// To the voter that is to lead instead of the sender.
    Chosen,
}

/// What a node says of itself to the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word<Id> {
    /// The revision that it shows.
    pub revision: u64,
    /// Its log takes entries: the disk under it has room and works.
    pub writable: bool,
    /// Voters that it is in contact with, both ways; beside the leader it knows them only in a survey.
    pub reaches: Vec<Id>,
}

/// What the store of this node says of leadership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership<Id> {
    /// Who leads, if known.
    pub leader: Option<Id>,
    /// The latest term.
    pub term: u64,
    /// Who votes.
    pub voters: BTreeSet<Id>,
    /// The revision that this node shows.
    pub revision: u64,
    /// The log of this node takes entries.
    pub writable: bool,
    /// While this node leads: how long ago a quorum last acknowledged it; `None` if none has since the election.
    pub quorum_acked_age: Option<Duration>,
}

/// What this node's gossip believes of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gossip {
    /// It answers.
    Alive,
    /// It is suspected, or not known.
    Unsure,
    /// It is down, or has left.
    Down,
}

/// What a vigil looks up in the rest of its node.
pub trait Sight<Id> {
    /// Who leads, as the store has it now.
    fn leadership(&self) -> Leadership<Id>;
    /// Everybody admitted and not removed, this node included, and whether the log calls them unreachable.
    fn members(&self) -> Vec<(Id, bool)>;
    /// What gossip believes of `node`.
    fn gossip(&self, node: Id) -> Gossip;
    /// The highest round trip seen to `node` of late; zero if none was.
    fn rtt(&self, node: Id) -> Duration;
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<Id> {
    /// Send it as a datagram.
    Send {
        /// The receiver, never this node.
        to: Id,
        /// What to send.
        message: Message<Id>,
    },
    /// Try once to reach a node's kernel, within [`Probe::limit`]; hand the end to [`Vigil::tried`]. A try
    /// that failed on this machine (no file descriptor, no route) is no try: nothing is handed in.
    Try {
        /// The silent node.
        about: Id,
        /// When the try began: part of the answer.
        began: Instant,
        /// Whether to ask anew first who it is on the link ([`Probe::asks_anew`]).
        anew: bool,
    },
    /// Try within [`LEARN_LIMIT`] whether a healthy node's kernel answers; for [`Vigil::learned`].
    Learn(Id),
    /// Try once to reach the gateway on this node's link to another one; hand the end to
    /// [`Vigil::gateway_tried`]. Where there is no gateway, or this machine could not try, nothing is handed in.
    TryGateway {
        /// The other one of two nodes.
        beside: Id,
        /// When the try began: part of the answer.
        began: Instant,
        /// How long it may take.
        limit: Duration,
    },
    /// The gateway on the link to the other one of two nodes is known to answer from now on: its loss can be
    /// told from a cut of this node.
    GatewayAnswers {
        /// The other node.
        beside: Id,
    },
    /// A member that renewed shows this revision; only its leader is told.
    Shows {
        /// The node.
        node: Id,
        /// What it shows.
        revision: u64,
    },
    /// This node's judge took office.
    TookOffice {
        /// In which term.
        term: u64,
    },
    /// Its office is over, and its verdicts with it.
    LeftOffice {
        /// The term of the office.
        term: u64,
    },
    /// A verdict has changed: the node is lost.
    Lost {
        /// The lost node.
        node: Id,
        /// Why.
        cause: Cause,
        /// How long it had been silent.
        silent_for: Duration,
    },
    /// A verdict has changed: a node that the log calls lost is back.
    Back(Id),
    /// Let this voter lead: it reaches more members, or has space.
    HandOver(Id),
}

/// See the module.
#[derive(Debug)]
pub struct Vigil<Id> {
    me: Id,
    settings: Settings,
    granted: Option<Granted>,
    /// When the leader itself granted, not through another member.
    granted_directly: Option<Instant>,
    /// When each voter last answered a greeting.
    greeted: BTreeMap<Id, Instant>,
    /// Until then the leader wants to know who reaches whom.
    survey_until: Instant,
    /// When this node was chosen to lead.
    chosen_at: Option<Instant>,
    probes: BTreeMap<Id, Probe>,
    /// The leader that asked last, and its term: who gets the reports.
    asked_by: Option<(Id, u64)>,
    /// Whether a node's kernel answered while it was healthy; assumed until learned.
    answers: BTreeMap<Id, bool>,
    /// The other one of two nodes, and what the gateway on the link to it says of this link.
    lone: Option<(Id, LinkProof)>,
    office: Option<Office<Id>>,
    /// The last leader that was another node, and when it was last heard here.
    last_leader: Option<(Id, Instant)>,
    #[cfg(feature = "mutations")]
    mutation: Option<judge::Mutation>,
}

/// The newest grant.
#[derive(Clone, Copy, Debug)]
struct Granted {
    term: u64,
    tick: Instant,
}

#[derive(Debug)]
struct Office<Id> {
    term: u64,
    since: Instant,
    judge: Judge<Id>,
    verdicts: BTreeMap<Id, Verdict>,
    succession: Succession<Id>,
    /// What each member last said of itself, and when.
    words: BTreeMap<Id, (Instant, Word<Id>)>,
    survey: bool,
}

impl<Id: Copy + Ord> Vigil<Id> {
    /// The vigil of node `me` since its daemon started: it has heard nobody yet.
    pub fn new(me: Id, settings: Settings) -> Vigil<Id> {
        Vigil {
            me,
            settings,
            granted: None,
            granted_directly: None,
            greeted: BTreeMap::new(),
            survey_until: Instant::default(),
            chosen_at: None,
            probes: BTreeMap::new(),
            asked_by: None,
            answers: BTreeMap::new(),
            lone: None,
            office: None,
            last_leader: None,
            #[cfg(feature = "mutations")]
            mutation: None,
        }
    }

    /// Puts a known bug back into its judges, for tests that prove it would be noticed.
    #[cfg(feature = "mutations")]
    pub fn mutate(&mut self, mutation: judge::Mutation) {
        self.mutation = Some(mutation);
    }

    /// What the judge has said in this office, by node; nothing while another node leads.
    pub fn verdicts(&self) -> impl Iterator<Item = (Id, Verdict)> {
        self.office.iter().flat_map(|office| office.verdicts.iter().map(|(node, verdict)| (*node, *verdict)))
    }

    /// When [`step`](Self::step) has to be called next; `None` while another node leads.
    pub fn step_due(&self) -> Option<Instant> {
        self.office.as_ref().map(|office| office.judge.due())
    }

    /// Whether [`probe`](Self::probe) has anything to do.
    pub fn is_probing(&self) -> bool {
        !self.probes.is_empty()
    }

    /// A message of `from` came.
    pub fn hear(
        &mut self,
        now: Instant,
        from: Id,
        message: Message<Id>,
        sight: &impl Sight<Id>,
        effects: &mut Vec<Effect<Id>>,
    ) {
        match message {
            Message::Renewal { origin, term, tick, mut word } => match &mut self.office {
                Some(office) => {
                    let seen = tick.filter(|_| term == office.term);
                    if office.judge.renewed(now, origin, seen, sight.rtt(origin)) {
                        effects.push(Effect::Shows { node: origin, revision: word.revision });
                        word.reaches.truncate(REACHES_MAX);
                        office.words.insert(origin, (now, word));
                    }
                    let (term, survey) = (office.term, office.survey);
                    effects.push(Effect::Send {
                        to: from,
                        message: Message::Grant { origin, term, tick: now, survey },
                    });
                }
                // Passed on once: a relayed one comes from somebody else than its origin.
                None if from == origin => {
                    let message = Message::Renewal { origin, term, tick, word };
                    self.send_to_leader(sight.leadership().leader, message, effects);
                }
                None => {}
            },
            Message::Grant { origin, term, tick, survey } if origin == self.me => {
                let leader = sight.leadership().leader.filter(|leader| *leader != self.me);
                if survey {
                    self.survey_until = now.after(CONTACT_MAX);
                }
                if leader == Some(from) {
                    self.granted_directly = Some(now);
                }
                let newest = self.granted.map_or((0, Instant(0)), |granted| (granted.term, granted.tick));
                if (term, tick) >= newest {
                    self.granted = Some(Granted { term, tick });
                    self.last_leader = leader.map(|leader| (leader, now)).or(self.last_leader);
                }
            }
            // The leader's answer to a renewal that was passed on from here.
            Message::Grant { origin, .. } => effects.push(Effect::Send { to: origin, message }),
            Message::Greeting => effects.push(Effect::Send { to: from, message: Message::Greeted }),
            Message::Greeted => drop(self.greeted.insert(from, now)),
            Message::Chosen => self.chosen_at = Some(now),
            Message::Probe { term, about } => {
                self.asked_by = Some((from, term));
                self.ask_probe(now, about);
            }
            Message::Report { term, about, report } => {
                if let Some(office) = self.office.as_mut().filter(|office| office.term == term) {
                    office.judge.reported(now, from, about, report);
                }
            }
        }
    }

    /// `node` said that it restarts on purpose.
    pub fn announced(&mut self, now: Instant, node: Id) {
        if let Some(office) = &mut self.office {
            office.judge.announced(now, node);
        }
    }

    /// A try that began at `began` ended. The first answer vetoes: it is reported at once.
    pub fn tried(
        &mut self,
        now: Instant,
        about: Id,
        began: Instant,
        answer: Option<Answer>,
        sight: &impl Sight<Id>,
        effects: &mut Vec<Effect<Id>>,
    ) {
        let Some(probe) = self.probes.get_mut(&about) else { return };
        if probe.ended(began, now, answer) {
            self.report(now, about, sight, effects);
        }
    }

    /// Whether the kernel of a healthy node answered.
    pub fn learned(&mut self, about: Id, answers: bool) {
        self.answers.insert(about, answers);
    }

    /// A try of the gateway that began at `began` ended.
    pub fn gateway_tried(&mut self, began: Instant, answered: bool, effects: &mut Vec<Effect<Id>>) {
        let Some((lone, proof)) = &mut self.lone else { return };
        let was_unknown = proof.verdict(began, self.settings.outage_survived) == OwnLink::Unknown;
        proof.ended(began, answered);
        if was_unknown && answered {
            effects.push(Effect::GatewayAnswers { beside: *lone });
        }
    }

    /// Takes or leaves office as the store says, and notes who leads.
    pub fn look(&mut self, now: Instant, sight: &impl Sight<Id>, effects: &mut Vec<Effect<Id>>) {
        self.follow(now, &sight.leadership(), effects);
    }

    /// Tells the leader that this node is here.
    pub fn renew(&mut self, now: Instant, sight: &impl Sight<Id>, effects: &mut Vec<Effect<Id>>) {
        let leadership = sight.leadership();
        self.follow(now, &leadership, effects);
        if self.office.is_some() {
            return;
        }
        // A leader that grants nothing any more is probed unasked: whoever leads next then knows already
        // for how long its kernel has not answered.
        if let Some((leader, heard_at)) = self.last_leader
            && now.since(heard_at) > LEADER_SILENT
        {
            self.ask_probe(now, leader);
        }
        let tick = self.granted.filter(|granted| granted.term == leadership.term).map(|granted| granted.tick);
        let message = Message::Renewal {
            origin: self.me,
            term: leadership.term,
            tick,
            word: self.word(now, &leadership),
        };
        self.send_to_leader(leadership.leader, message.clone(), effects);
        let missed = self.granted_directly.is_none_or(|at| now.since(at) > GRANT_MISSED);
        let is_other = |node: &Id| *node != self.me && Some(*node) != leadership.leader;
        if missed {
            for to in relays(&leadership.voters, sight).into_iter().filter(is_other) {
                effects.push(Effect::Send { to, message: message.clone() });
            }
        }
        if missed || now < self.survey_until {
            for to in leadership.voters.iter().copied().filter(is_other) {
                effects.push(Effect::Send { to, message: Message::Greeting });
            }
        }
    }

    fn word(&mut self, now: Instant, leadership: &Leadership<Id>) -> Word<Id> {
        let is_fresh = |at: Instant| now.since(at) <= CONTACT_MAX;
        self.greeted.retain(|node, at| is_fresh(*at) && leadership.voters.contains(node));
        let leader = leadership.leader.filter(|_| self.granted_directly.is_some_and(is_fresh));
        Word {
            revision: leadership.revision,
            writable: leadership.writable,
            reaches: self.greeted.keys().copied().chain(leader).take(REACHES_MAX).collect(),
        }
    }

    /// Judges, while in office.
    pub fn step(&mut self, now: Instant, sight: &impl Sight<Id>, effects: &mut Vec<Effect<Id>>) {
        let me = self.me;
        let Some(office) = &mut self.office else { return };
        let answers = &self.answers;
        let members = sight.members();
        note_lone_node(&mut self.lone, now, me, &members, effects);
        let leadership = sight.leadership();
        if let Some(to) = office.successor(now, me, &members, &leadership) {
            effects.push(Effect::Send { to, message: Message::Chosen });
            effects.push(Effect::HandOver(to));
        }
        office.judge.set_members(
            now,
            members
                .into_iter()
                .map(|(node, marked)| (node, marked, answers.get(&node).copied().unwrap_or(true))),
        );
        // Winning the election was the first contact with a quorum.
        let acked = leadership.quorum_acked_age.unwrap_or(Duration::MAX);
        let quorum_age = acked.min(now.since(office.since));
        let outage = self.settings.outage_survived;
        let own_link = self.lone.as_ref().map_or(OwnLink::Unknown, |(_, proof)| proof.verdict(now, outage));
        let term = office.term;
        let mut asked = Vec::new();
        for effect in office.judge.step(now, quorum_age, own_link) {
            match effect {
                judge::Effect::Ask { observer, about } if observer == me => asked.push(about),
                judge::Effect::Ask { observer, about } => {
                    effects.push(Effect::Send { to: observer, message: Message::Probe { term, about } });
                }
                judge::Effect::Declare { node, cause, silent_for } => {
                    if office.verdicts.insert(node, Verdict::Unreachable) != Some(Verdict::Unreachable) {
                        effects.push(Effect::Lost { node, cause, silent_for });
                    }
                }
                judge::Effect::Welcome(node) => {
                    if office.verdicts.insert(node, Verdict::Alive) != Some(Verdict::Alive) {
                        effects.push(Effect::Back(node));
                    }
                }
            }
        }
        for about in asked {
            self.asked_by = Some((me, term));
            if let Some((_, proof)) = &mut self.lone {
                proof.wanted(now);
            }
            self.ask_probe(now, about);
        }
    }

    /// Begins the tries that are due and reports what is known.
    pub fn probe(&mut self, now: Instant, sight: &impl Sight<Id>, effects: &mut Vec<Effect<Id>>) {
        self.probes.retain(|_, probe| !probe.is_over(now));
        let due: Vec<(Id, bool)> = self
            .probes
            .iter_mut()
            .filter_map(|(about, probe)| probe.begin(now).then(|| (*about, probe.asks_anew())))
            .collect();
        for (about, anew) in due {
            effects.push(Effect::Try { about, began: now, anew });
            self.report(now, about, sight, effects);
        }
        if let Some((lone, proof)) = &mut self.lone
            && proof.begin(now)
        {
            effects.push(Effect::TryGateway {
                beside: *lone,
                began: now,
                limit: Probe::limit(Duration::ZERO),
            });
        }
    }

    /// Asks which members' kernels answer while all is well: a firewall in between is learned now, not when
    /// the node is silent. The same for the gateway beside the other one of two.
    pub fn learn(&self, now: Instant, sight: &impl Sight<Id>, effects: &mut Vec<Effect<Id>>) {
        let others = sight.members().into_iter().filter(|(node, _)| *node != self.me);
        for (node, _) in others.filter(|(node, _)| sight.gossip(*node) == Gossip::Alive) {
            effects.push(Effect::Learn(node));
            if self.lone.as_ref().is_some_and(|(lone, _)| *lone == node) {
                effects.push(Effect::TryGateway { beside: node, began: now, limit: LEARN_LIMIT });
            }
        }
    }

    fn follow(&mut self, now: Instant, leadership: &Leadership<Id>, effects: &mut Vec<Effect<Id>>) {
        let leads = leadership.leader == Some(self.me);
        // A leader that is newly known was heard just now.
        if let Some(leader) = leadership.leader
            && leader != self.me
            && self.last_leader.is_none_or(|(last, _)| last != leader)
        {
            self.last_leader = Some((leader, now));
            self.granted_directly = None;
        }
        if let Some(office) = self.office.take_if(|office| !leads || office.term != leadership.term) {
            effects.push(Effect::LeftOffice { term: office.term });
        }
        if leads && self.office.is_none() {
            let term = leadership.term;
            // Whoever led before this office did not lead before the next one.
            let judge = Judge::new(self.me, now, self.last_leader.take(), self.settings);
            #[cfg(feature = "mutations")]
            let judge = {
                let mut judge = judge;
                judge.mutate(self.mutation);
                judge
            };
            let mut succession = Succession::new(self.me);
            if self.chosen_at.take().is_some_and(|at| now.since(at) < CHOSEN_MAX) {
                succession.given(now);
            }
            self.office = Some(Office {
                term,
                since: now,
                judge,
                verdicts: BTreeMap::new(),
                succession,
                words: BTreeMap::new(),
                survey: false,
            });
            effects.push(Effect::TookOffice { term });
        }
    }

    fn ask_probe(&mut self, now: Instant, about: Id) {
        self.probes.entry(about).or_insert_with(|| Probe::new(now)).asked(now);
    }

    fn report(&mut self, now: Instant, about: Id, sight: &impl Sight<Id>, effects: &mut Vec<Effect<Id>>) {
        let (Some(probe), Some((leader, term))) = (self.probes.get(&about), self.asked_by) else { return };
        let report = probe.report(now, sight.gossip(about) == Gossip::Down);
        if leader != self.me {
            effects.push(Effect::Send { to: leader, message: Message::Report { term, about, report } });
        } else if let Some(office) = self.office.as_mut().filter(|office| office.term == term) {
            office.judge.reported(now, leader, about, report);
        }
    }

    fn send_to_leader(&self, leader: Option<Id>, message: Message<Id>, effects: &mut Vec<Effect<Id>>) {
        if let Some(to) = leader.filter(|leader| *leader != self.me) {
            effects.push(Effect::Send { to, message });
        }
    }
}

impl<Id: Copy + Ord> Office<Id> {
    /// Who should lead instead, by what the members said of themselves lately.
    fn successor(
        &mut self,
        now: Instant,
        me: Id,
        members: &[(Id, bool)],
        leadership: &Leadership<Id>,
    ) -> Option<Id> {
        self.words.retain(|node, _| members.iter().any(|(member, _)| member == node));
        let fresh = self.words.iter().filter(|(_, (at, _))| now.since(*at) <= CONTACT_MAX);
        let mut heard: BTreeMap<Id, succession::Member<Id>> = fresh
            .map(|(node, (_, word))| {
                let votes = leadership.voters.contains(node);
                let reaches = word.reaches.iter().copied().collect();
                (*node, succession::Member { votes, writable: word.writable, reaches })
            })
            .collect();
        let writable = leadership.writable;
        self.survey = !writable || heard.values().any(|member| !member.reaches.contains(&me));
        // Contact has two ends: whoever reaches this leader is reached by it.
        let reaches = heard.iter().filter(|(_, member)| member.votes && member.reaches.contains(&me));
        let reaches = reaches.map(|(node, _)| *node).collect();
        heard.insert(me, succession::Member { votes: true, writable, reaches });
        self.succession.step(now, &heard, &leadership.voters)
    }
}

/// Who may pass a renewal on.
fn relays<Id: Copy + Ord>(voters: &BTreeSet<Id>, sight: &impl Sight<Id>) -> BTreeSet<Id> {
    let mut relays = voters.clone();
    let members = sight.members().into_iter().map(|(node, _)| node);
    let healthy = members.filter(|node| !voters.contains(node) && sight.gossip(*node) == Gossip::Alive);
    // This node and the leader are among them, and relay nothing.
    relays.extend(healthy.take((RELAYS_MIN + 2).saturating_sub(voters.len())));
    relays
}

/// In a cluster of two nobody else says whose link is down, but perhaps the gateway.
fn note_lone_node<Id: Copy + Ord>(
    lone: &mut Option<(Id, LinkProof)>,
    now: Instant,
    me: Id,
    members: &[(Id, bool)],
    effects: &mut Vec<Effect<Id>>,
) {
    let mut others = members.iter().map(|(node, _)| *node).filter(|node| *node != me);
    let only = others.next().filter(|_| others.next().is_none());
    if lone.as_ref().map(|(lone, _)| *lone) != only {
        *lone = only.map(|only| (only, LinkProof::default()));
        effects.extend(only.map(|beside| Effect::TryGateway { beside, began: now, limit: LEARN_LIMIT }));
    }
}

#[cfg(test)]
mod tests;
