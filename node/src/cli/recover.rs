//! `skein recover`: what is lost is said before it is done, and asked once.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use super::talk::talk;
use super::verbs::{confirm, lines, text};
use crate::daemon::Failure;

/// How long the next incarnation may take to have a leader: the daemon stops and starts in that time.
const BEGIN_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) fn recover(dir: &Path, yes: bool, off: &[String]) -> Result<(), Failure> {
    let ask = |go: bool| talk(dir, Method::POST, "recovery", Some(json!({ "off": off, "go": go })));
    lines([told(&ask(false)?)])?;
    confirm("This cannot be undone.", yes)?;
    let began = Instant::now();
    let begun = ask(true)?;
    let status = until_led(dir, &begun["id"])?;
    lines([format!(
        "Cluster {:?} is in incarnation {} since {:.1} s; its leader is {}.",
        text(&status["cluster"]),
        begun["number"],
        began.elapsed().as_secs_f64(),
        text(&status["leader"]),
    )])
}

/// What would be done, and what that costs.
fn told(way: &Value) -> String {
    let (own, number, revision) = (&way["own"], &way["number"], &way["revision"]);
    if way["way"] == "follow" {
        return format!(
            "The cluster was recovered without this node and is in incarnation {number}; this node is in {own}.\n\
             It can follow: what it alone holds (it shows revision {revision}) is put aside and not used any more.\n\
             Pods that were replaced meanwhile end, the others go on."
        );
    }
    let names = |key: &str| {
        let names: Vec<String> = way[key].as_array().into_iter().flatten().map(text).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
    };
    let (founder, absent) = (text(&way["founder"]), names("absent"));
    let unconfirmed = match way["unconfirmed"].as_u64() {
        Some(changes @ 1..) => format!(
            " The last {changes} of its changes may be such that nobody was told of as done; they are kept."
        ),
        _ => String::new(),
    };
    format!(
        "No majority of the voters answers. The cluster can go on without it, in incarnation {number} (now {own}).\n\
         The newest state that was found is of {founder}, revision {revision}.{unconfirmed}\n\
         What was written after that, and only {absent} had, is lost.\n\
         {founder} leads and votes alone at first. At once follow: {}.\n\
         {absent}: members still, but of the incarnation before: when they come back they are left alone until\n\
         `skein recover` is run on them, and then give up what they have. If they are not gone but only cut off from\n\
         here, they go on by themselves, and two clusters have parted for good.\n\
         Pods go on; those of members that do not answer are started elsewhere.",
        names("followers"),
    )
}

/// Waits until the daemon is in the incarnation, and that has a leader.
fn until_led(dir: &Path, incarnation: &Value) -> Result<Value, Failure> {
    let until = Instant::now() + BEGIN_MAX;
    loop {
        // While it begins anew nobody answers.
        if let Ok(status) = talk(dir, Method::GET, "status", None)
            && status["incarnation"]["id"] == *incarnation
            && status["quorum"] == true
        {
            return Ok(status);
        }
        if Instant::now() > until {
            return Err("it was begun, and this node is not in it yet; see its log, and: skein status".into());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_lost_is_said() {
        let way = json!({
            "way": "found", "number": 2, "own": 1, "founder": "one", "revision": 90,
            "unconfirmed": 2, "followers": ["four"], "absent": ["three", "two"],
        });
        let said = told(&way);
        for word in ["incarnation 2", "revision 90", "last 2", "only three, two had, is lost", "follow: four"]
        {
            assert!(said.contains(word), "{word} in {said}");
        }
        let way = json!({ "way": "follow", "number": 2, "own": 1, "revision": 80 });
        assert!(told(&way).contains("revision 80"));
    }
}
