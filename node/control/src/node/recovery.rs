//! What a cluster goes on with when the majority of its voters is gone for good.
//!
//! Every node that can be reached says what it has ([`Report`]); [`decide`] says which of them founds the next
//! incarnation of the cluster, or why there is nothing to recover. [`successor`] is for a node that was away: whether
//! the cluster goes on without it, and in which incarnation.
//!
//! **Which state is the newest.** Of logs the one that Raft would elect: the higher term of the last entry, then the
//! longer one. It is taken whole: its last entries may have been acknowledged by voters that are gone, and one that
//! was not has an outcome that nobody was told. Nodes without a log show only what was committed. Both begin
//! alike, so the higher revision has more; but where somebody was told of a later term than the log ends in, that
//! end may be of a leader that nobody followed, and only what is known to be committed counts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The key of what is kept of one recovery; the number of the incarnation that it began follows.
pub const RECOVERIES: &str = "skein/recoveries//";

/// What one node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report<Voter: Ord> {
    /// Its store.
    pub store: Voter,
    /// A leader with a quorum answers it, or it is one.
    pub is_led: bool,
    /// Its log, if it has one that can be read.
    pub log: Option<Log>,
    /// The revision it shows; all up to there is committed.
    pub shown: u64,
    /// The latest term it was told of by others.
    pub told_term: u64,
    /// Term and index of the membership that it knows.
    pub membership: (u64, u64),
    /// Of each of these a majority decides, by that membership.
    pub voter_sets: Vec<BTreeSet<Voter>>,
    /// It keeps the cluster's authorities.
    pub keeps_authorities: bool,
}

/// A log, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Log {
    /// Term of its last entry.
    pub term: u64,
    /// Index of its last entry.
    pub index: u64,
    /// The revision up to which it is known to be committed.
    pub certain: u64,
    /// The revision it leads to with all its entries.
    pub whole: u64,
}

/// A member, as the node that asks sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<Voter: Ord> {
    /// What people call it.
    pub name: String,
    /// Gossip says that it is there.
    pub is_alive: bool,
    /// What it says; `None` if it did not answer.
    pub report: Option<Report<Voter>>,
}

/// Which of the states of a node is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Basis {
    /// What it shows its readers.
    Shown,
    /// What its whole log leads to.
    Log,
}

/// How the cluster goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<Node> {
    /// Whose state it is, and who alone votes at first.
    pub founder: Node,
    /// Which of its states.
    pub basis: Basis,
    /// Up to this revision everything is there.
    pub revision: u64,
    /// Of that, so many changes are in a log and not known to be committed.
    pub unconfirmed: u64,
    /// Who else answered: they follow.
    pub followers: Vec<Node>,
    /// Who did not answer: members still, but of the incarnation before.
    pub absent: Vec<Node>,
}

/// Why nothing is recovered. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The cluster works.
    #[error("a majority of the voters answers {by}, so there is nothing to recover; see: skein status")]
    Led {
        /// The node that is answered.
        by: String,
    },
    /// It will work in a moment.
    #[error(
        "{there} of {of} voters answer, and they are enough to elect a leader by themselves; wait a moment, and look at their logs if none is elected"
    )]
    Quorum {
        /// Voters that answer.
        there: usize,
        /// All of them.
        of: usize,
    },
    /// Nobody may be passed over who is there.
    #[error(
        "{name} was there a moment ago and does not answer now; try again, or say that the machine is off: --off {name}"
    )]
    Silent {
        /// Its name.
        name: String,
    },
    /// `--off` of nobody.
    #[error("no member is called {name:?}; see: skein status")]
    NoMember {
        /// What was given.
        name: String,
    },
    /// `--off` of somebody who is there.
    #[error("{name} answers, so it is not off; leave out --off {name}, or stop it first")]
    NotOff {
        /// Its name.
        name: String,
    },
    /// All that is left are nodes without certificates to give.
    #[error("none of the nodes that answer keeps the cluster's authorities; start one of those that vote")]
    NoAuthorities,
    /// Whoever answers knows nothing of the cluster.
    #[error("none of the nodes that answer has anything of the cluster's state; start one that has")]
    Nothing,
}

/// The cluster was recovered twice, by nodes that knew nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this cluster was recovered more than once, and two incarnations {number} of it are there; stop the nodes of the one that is to end, then try again"
)]
pub struct Twins {
    /// The number that both have.
    pub number: u64,
}

/// How a cluster goes on with the members that answer.
///
/// * `members`: all of them, the one that asks too.
/// * `off`: names of members that somebody says are off.
pub fn decide<Node: Copy + Ord, Voter: Ord>(
    members: &BTreeMap<Node, Seen<Voter>>,
    off: &BTreeSet<String>,
) -> Result<Decision<Node>, Refusal> {
    for name in off {
        let member = members.values().find(|member| member.name == *name);
        let member = member.ok_or_else(|| Refusal::NoMember { name: name.clone() })?;
        if member.report.is_some() {
            return Err(Refusal::NotOff { name: name.clone() });
        }
    }
    let reports = || members.iter().filter_map(|(node, member)| Some((*node, member.report.as_ref()?)));
    if let Some(led) = members.values().find(|member| member.report.as_ref().is_some_and(|said| said.is_led))
    {
        return Err(Refusal::Led { by: led.name.clone() });
    }
    check_quorum(reports().map(|(_, report)| report))?;
    let silent =
        |member: &&Seen<Voter>| member.is_alive && member.report.is_none() && !off.contains(&member.name);
    if let Some(silent) = members.values().find(silent) {
        return Err(Refusal::Silent { name: silent.name.clone() });
    }
    if !reports().any(|(_, report)| report.keeps_authorities) {
        return Err(Refusal::NoAuthorities);
    }
    let newest = newest(reports()).ok_or(Refusal::Nothing)?;
    let answer = |wanted: bool| {
        let those = members
            .iter()
            .filter(move |(node, member)| member.report.is_some() == wanted && **node != newest.founder);
        those.map(|(node, _)| *node).collect()
    };
    Ok(Decision { followers: answer(true), absent: answer(false), ..newest })
}

/// Nothing may be recovered that goes on by itself: the voters that are there could elect a leader.
fn check_quorum<'a, Voter: Ord + 'a>(
    reports: impl Iterator<Item = &'a Report<Voter>> + Clone,
) -> Result<(), Refusal> {
    // A store without a log that can be read answers, and does not vote.
    let voting: BTreeSet<&Voter> =
        reports.clone().filter(|report| report.log.is_some()).map(|report| &report.store).collect();
    let Some(known) = reports.max_by_key(|report| report.membership) else { return Ok(()) };
    let there = |set: &BTreeSet<Voter>| set.iter().filter(|voter| voting.contains(voter)).count();
    let lacking = known.voter_sets.iter().any(|set| 2 * there(set) <= set.len());
    match known.voter_sets.first().filter(|_| !lacking) {
        Some(set) => Err(Refusal::Quorum { there: there(set), of: set.len() }),
        None => Ok(()),
    }
}

/// Who has the newest state. Of equals one that keeps the authorities, then the lowest id.
fn newest<'a, Node: Copy + Ord + 'a, Voter: Ord + 'a>(
    reports: impl Iterator<Item = (Node, &'a Report<Voter>)> + Clone,
) -> Option<Decision<Node>> {
    let last = reports.clone().filter_map(|(_, report)| report.log).map(|log| (log.term, log.index)).max();
    let told = reports.clone().map(|(_, report)| report.told_term).max().unwrap_or(0);
    let of = |basis, revision, unconfirmed, node, report: &Report<Voter>| {
        let decision = Decision {
            founder: node,
            basis,
            revision,
            unconfirmed,
            followers: Vec::new(),
            absent: Vec::new(),
        };
        ((revision, basis, report.keeps_authorities, Reverse(node)), decision)
    };
    let logs = reports.clone().filter_map(|(node, report)| {
        let log = report.log.filter(|log| Some((log.term, log.index)) == last && log.term >= told)?;
        Some(of(Basis::Log, log.whole, log.whole - log.certain.min(log.whole), node, report))
    });
    let shown = reports.map(|(node, report)| of(Basis::Shown, report.shown, 0, node, report));
    let (_, newest) = logs.chain(shown).max_by_key(|(rank, _)| *rank)?;
    (newest.revision > 0).then_some(newest)
}

/// In which incarnation the cluster goes on without a node of incarnation `own`; `None`: in no other, as far as
/// `met`, the incarnations of members that were met, can say.
pub fn successor<Id: Copy + Eq>(
    own: u64,
    met: impl IntoIterator<Item = (u64, Id)>,
) -> Result<Option<(u64, Id)>, Twins> {
    let mut newest: Option<(u64, Id)> = None;
    let mut twins = None;
    for (number, id) in met.into_iter().filter(|(number, _)| *number > own) {
        match newest {
            Some((known, _)) if known > number => {}
            Some((known, same)) if known == number => {
                if same != id {
                    twins = Some(number);
                }
            }
            _ => (newest, twins) = (Some((number, id)), None),
        }
    }
    match twins {
        Some(number) => Err(Twins { number }),
        None => Ok(newest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Members = BTreeMap<u8, Seen<u8>>;

    const VOTERS: [u8; 3] = [1, 2, 3];

    /// Node `n` is called `node n`; its store has its number.
    fn name(node: u8) -> String {
        format!("node {node}")
    }

    fn log(term: u64, index: u64, certain: u64, whole: u64) -> Option<Log> {
        Some(Log { term, index, certain, whole })
    }

    fn report(node: u8, log: Option<Log>, shown: u64, told_term: u64) -> Report<u8> {
        Report {
            store: node,
            is_led: false,
            log,
            shown,
            told_term,
            membership: (1, 7),
            voter_sets: vec![VOTERS.into()],
            keeps_authorities: VOTERS.contains(&node),
        }
    }

    /// Six members, of which only those of `reports` answer.
    fn members(reports: impl IntoIterator<Item = Report<u8>>) -> Members {
        let mut members: Members =
            (1..=6).map(|node| (node, Seen { name: name(node), is_alive: false, report: None })).collect();
        for report in reports {
            let member = members.get_mut(&report.store).expect("one of six");
            (member.is_alive, member.report) = (true, Some(report));
        }
        members
    }

    fn decided(members: &Members) -> Result<Decision<u8>, Refusal> {
        decide(members, &BTreeSet::new())
    }

    #[track_caller]
    fn chosen(reports: impl IntoIterator<Item = Report<u8>>, founder: u8, basis: Basis, revision: u64) {
        let decision = decided(&members(reports)).expect("nothing stands against it");
        assert_eq!((decision.founder, decision.basis, decision.revision), (founder, basis, revision));
    }

    #[test]
    fn the_last_voter_goes_on_with_its_whole_log() {
        let decision = decided(&members([report(2, log(4, 90, 50, 53), 50, 0)])).unwrap();
        let expect = Decision {
            founder: 2,
            basis: Basis::Log,
            revision: 53,
            unconfirmed: 3,
            followers: vec![],
            absent: vec![1, 3, 4, 5, 6],
        };
        assert_eq!(decision, expect);
    }

    #[test]
    fn of_two_logs_the_later_term_wins_then_the_longer_one() {
        let five =
            |node, log| Report { voter_sets: vec![[1, 2, 3, 4, 5].into()], ..report(node, log, 50, 0) };
        chosen([five(1, log(4, 99, 50, 60)), five(2, log(5, 90, 50, 52))], 2, Basis::Log, 52);
        chosen([five(1, log(5, 91, 50, 53)), five(2, log(5, 90, 50, 52))], 1, Basis::Log, 53);
    }

    #[test]
    fn a_node_without_a_log_that_saw_more_wins() {
        chosen([report(2, log(4, 90, 50, 53), 50, 0), report(4, None, 54, 4)], 4, Basis::Shown, 54);
        chosen([report(2, log(4, 90, 50, 53), 50, 0), report(4, None, 53, 4)], 2, Basis::Log, 53);
    }

    #[test]
    fn the_end_of_a_log_that_a_later_leader_may_have_replaced_counts_for_nothing() {
        chosen([report(2, log(4, 90, 50, 60), 50, 0), report(4, None, 51, 5)], 4, Basis::Shown, 51);
        // Of what is committed it may still know the most.
        chosen([report(2, log(4, 90, 50, 60), 50, 0), report(4, None, 49, 5)], 2, Basis::Shown, 50);
        // It followed others itself after its log ended.
        chosen([report(2, log(4, 90, 50, 60), 55, 5)], 2, Basis::Shown, 55);
    }

    #[test]
    fn of_equals_the_one_with_the_authorities_founds() {
        let keeper = Report { keeps_authorities: true, ..report(6, None, 50, 1) };
        chosen([report(4, None, 50, 1), report(5, None, 50, 1), keeper], 6, Basis::Shown, 50);
    }

    #[test]
    fn nothing_is_recovered_while_a_leader_answers_anybody() {
        let led = Report { is_led: true, ..report(4, None, 50, 1) };
        let refused = decided(&members([report(2, log(4, 90, 50, 53), 50, 0), led])).unwrap_err();
        assert_eq!(refused, Refusal::Led { by: name(4) });
    }

    #[test]
    fn nothing_is_recovered_while_enough_voters_are_there() {
        let [one, two] = [1, 2].map(|node| report(node, log(4, 90, 50, 53), 50, 0));
        let refused = |reports| decided(&members(reports)).unwrap_err();
        assert_eq!(refused(vec![one.clone(), two.clone()]), Refusal::Quorum { there: 2, of: 3 });
        // One of them lost its log, or its disk failed.
        let without = Report { log: None, ..two.clone() };
        assert!(decided(&members([one.clone(), without])).is_ok());
        // The newest membership counts: since then there are five voters, or it is being changed to others.
        let newer = |voter_sets| Report { membership: (1, 8), voter_sets, ..two.clone() };
        assert!(decided(&members([one.clone(), newer(vec![[1, 2, 3, 4, 5].into()])])).is_ok());
        assert!(decided(&members([one, newer(vec![VOTERS.into(), [4, 5, 6].into()])])).is_ok());
    }

    #[test]
    fn nobody_is_passed_over_who_is_there() {
        let mut members = members([report(2, log(4, 90, 50, 53), 50, 0)]);
        members.get_mut(&3).unwrap().is_alive = true;
        assert_eq!(decided(&members).unwrap_err(), Refusal::Silent { name: name(3) });
        assert!(decide(&members, &[name(3)].into()).is_ok(), "somebody has looked");
    }

    #[test]
    fn only_members_that_do_not_answer_are_off() {
        let members = members([report(2, log(4, 90, 50, 53), 50, 0)]);
        for (wrong, expect) in
            [(name(9), Refusal::NoMember { name: name(9) }), (name(2), Refusal::NotOff { name: name(2) })]
        {
            assert_eq!(decide(&members, &[wrong].into()).unwrap_err(), expect);
        }
    }

    #[test]
    fn a_cluster_needs_its_authorities_and_something_to_go_on_with() {
        assert_eq!(decided(&members([report(4, None, 54, 4)])).unwrap_err(), Refusal::NoAuthorities);
        assert_eq!(decided(&members([report(2, None, 0, 0)])).unwrap_err(), Refusal::Nothing);
    }

    #[test]
    fn a_node_that_was_away_follows_the_newest_incarnation_unless_there_are_two() {
        for (met, expect) in [
            (vec![], Ok(None)),
            (vec![(1, 'a'), (2, 'x')], Ok(None)),
            (vec![(3, 'a'), (3, 'a')], Ok(Some((3, 'a')))),
            (vec![(3, 'a'), (4, 'b'), (3, 'c')], Ok(Some((4, 'b')))),
            (vec![(3, 'a'), (3, 'c'), (4, 'b')], Ok(Some((4, 'b')))),
            (vec![(3, 'a'), (4, 'b'), (4, 'c')], Err(Twins { number: 4 })),
        ] {
            assert_eq!(successor(2, met), expect);
        }
    }
}
