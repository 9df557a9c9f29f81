//! What the leader says of the voters to whoever shows it: how many losses they survive, and why they are not changed.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skein_control::time::Instant;
use skein_control::voters::{Reason, Waiting};
use skein_net::identity::NodeId;
use skein_raft_store::VoterId;

/// How the voters stand, as the leader sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Voting {
    /// How many more nodes may be lost before no majority is there.
    pub(crate) failures_survived: u64,
    pub(crate) waits: Vec<Wait>,
}

/// One place among the voters that is not well filled. The reason is a word, so that newer leaders may know more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wait {
    reason: String,
    voter: Option<NodeId>,
    taker: Option<NodeId>,
    /// Milliseconds from now.
    left_ms: Option<u64>,
}

impl Wait {
    pub(crate) fn new(waiting: &Waiting<VoterId>, now: Instant) -> Wait {
        let node = |store: VoterId| NodeId(store.node);
        Wait {
            reason: word(waiting.reason).to_owned(),
            voter: waiting.voter.map(node),
            taker: waiting.taker.map(node),
            left_ms: waiting.until.map(|until| until.since(now).as_millis() as u64),
        }
    }

    /// Nothing changes at all, for this reason.
    pub(crate) fn at_all(reason: Reason) -> Wait {
        Wait { reason: word(reason).to_owned(), voter: None, taker: None, left_ms: None }
    }

    /// For `skein status`: typed for programs, and a sentence for people.
    pub(crate) fn shown(&self, now: SystemTime, name: impl Fn(NodeId) -> String) -> Value {
        let (voter, taker) = (self.voter.map(&name), self.taker.map(&name));
        let left = self.left_ms.map(Duration::from_millis);
        let until = left.and_then(|left| jiff::Timestamp::try_from(now + left).ok());
        let until = until.and_then(|until| jiff::Timestamp::from_second(until.as_second()).ok());
        let sentence = sentence(&self.reason, voter.as_deref(), taker.as_deref());
        let message = match (until, left) {
            (Some(until), Some(left)) => format!("{sentence}, at {until} (in {} s)", left.as_secs()),
            _ => sentence,
        };
        json!({
            "reason": self.reason,
            "voter": voter,
            "taker": taker,
            "until": until.map(|until| until.to_string()),
            "seconds": left.map(|left| left.as_secs()),
            "message": message,
        })
    }
}

/// The reason as `status -o json` has it.
fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::NoMajority => "NoMajority",
        Reason::MajorityLost => "MajorityLost",
        Reason::VoterDown => "VoterDown",
        Reason::VoterBehind => "VoterBehind",
        Reason::CopiesLog => "CopiesLog",
        Reason::SpareUp => "SpareUp",
        Reason::NoSpare => "NoSpare",
        Reason::ChangedLately => "ChangedLately",
    }
}

/// What happens next, and why not yet; the time of it goes behind.
fn sentence(reason: &str, voter: Option<&str>, taker: Option<&str>) -> String {
    let taker = taker.unwrap_or("another node");
    match (reason, voter) {
        ("NoMajority", _) => "no vote moves before a majority of the voters is back".to_owned(),
        ("MajorityLost", _) => {
            "so many voters lost their stores that no majority can be back: no vote moves any more".to_owned()
        }
        ("VoterDown", Some(voter)) => format!("{voter} is down; {taker} gets its vote unless it comes back"),
        ("VoterBehind", Some(voter)) => format!(
            "{voter} answers but does not take what is written; look at its disk, and whether large packets reach it"
        ),
        ("CopiesLog", Some(voter)) if voter == taker => {
            format!("{voter} lost its store; its new one votes as soon as it has copied the log")
        }
        ("CopiesLog", Some(voter)) => {
            format!("{voter} is down; {taker} gets its vote as soon as it has copied the log")
        }
        ("CopiesLog", None) => format!("{taker} gets a vote as soon as it has copied the log"),
        ("SpareUp", Some(voter)) => {
            format!("{voter} is down; {taker}, which was away lately, gets its vote if it stays up")
        }
        ("SpareUp", None) => format!("{taker}, which was away lately, gets a vote if it stays up"),
        ("NoSpare", Some(voter)) => {
            format!("{voter} is down and nobody can vote in its place; bring it back, or add a node")
        }
        ("NoSpare", None) => "too few nodes are up for more voters; bring them back, or add some".to_owned(),
        ("ChangedLately", _) => format!("{taker} gets a vote; the voters were changed a short while ago"),
        (other, Some(voter)) => format!("the vote of {voter} waits: {other}"),
        (other, None) => format!("a vote for {taker} waits: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(node: u8) -> VoterId {
        VoterId { node: [node; 16], store: [1; 8] }
    }

    fn shown(reason: Reason, voter: Option<u8>, taker: Option<u8>, until: Option<u64>) -> Value {
        let until = until.map(Instant);
        let waiting = Waiting { reason, voter: voter.map(store), taker: taker.map(store), until };
        let wait = Wait::new(&waiting, Instant(1000));
        wait.shown(SystemTime::UNIX_EPOCH + Duration::from_secs(60), |node| format!("n{}", node.0[0]))
    }

    #[test]
    fn what_is_waited_for_is_told_with_its_end() {
        let told = shown(Reason::SpareUp, Some(2), Some(4), Some(213_900));
        assert_eq!(
            told["message"],
            "n2 is down; n4, which was away lately, gets its vote if it stays up, at 1970-01-01T00:04:32Z (in 212 s)"
        );
        assert_eq!(
            (&told["reason"], &told["voter"], &told["taker"]),
            (&"SpareUp".into(), &"n2".into(), &"n4".into())
        );
        assert_eq!((&told["until"], &told["seconds"]), (&"1970-01-01T00:04:32Z".into(), &212.into()));
    }

    #[test]
    fn a_lost_store_is_told_from_another_nodes_place() {
        let told = shown(Reason::CopiesLog, Some(2), Some(2), None);
        assert_eq!(told["message"], "n2 lost its store; its new one votes as soon as it has copied the log");
        let told = shown(Reason::CopiesLog, Some(2), Some(3), None);
        assert_eq!(told["message"], "n2 is down; n3 gets its vote as soon as it has copied the log");
        assert_eq!(told["until"], Value::Null);
    }
}
