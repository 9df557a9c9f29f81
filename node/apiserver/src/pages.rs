//! Lists in pages: every page of a list shows the state at one revision.
//!
//! A page that is not the last leaves its snapshot here, which costs little: snapshots share what did
//! not change between them. The token says revision and last name; it is good on any node where the
//! revision is still held, or where nothing of that kind has changed since.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use skein_api::status::Status;
use tokio::time::Instant;

use crate::cluster::Snapshot;

/// Snapshots held for pages to come. Each is from another revision, so that many clients can page at once.
const SNAPSHOTS_MAX: usize = 32;

/// What upstream's clients count on: its compaction comes every 5 minutes.
const SNAPSHOT_TIME: Duration = Duration::from_secs(300);

/// Where the next page begins.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Token {
    /// The form of the token, for builds to come.
    v: u8,
    /// The revision of the whole list.
    pub(crate) rv: u64,
    /// The last key shown, without the prefix that all keys of the list have: a token never leads out
    /// of what its request may see.
    pub(crate) after: String,
}

impl Token {
    pub(crate) fn new(rv: u64, after: &str) -> Self {
        Token { v: 1, rv, after: after.to_owned() }
    }

    /// As it travels. Clients must not look inside, so it does not invite them.
    pub(crate) fn encode(&self) -> String {
        URL_SAFE_NO_PAD
            .encode(serde_json::to_vec(self).expect("two numbers and a text can be written as JSON"))
    }

    pub(crate) fn decode(text: &str) -> Result<Self, Status> {
        let token: Option<Token> =
            URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        token.filter(|token| token.v == 1).ok_or_else(|| {
            Status::bad_request("continue key is not valid; start a new list without the continue parameter")
        })
    }
}

/// The list cannot go on from its token.
pub(crate) fn expired() -> Status {
    Status::expired(
        "The provided continue parameter is too old to display a consistent list result. \
         You must start a new list without the continue parameter.",
    )
}

/// The snapshots of lists that are not yet read to their end.
#[derive(Default)]
pub(crate) struct Pages(Mutex<VecDeque<(Instant, Arc<dyn Snapshot>)>>);

impl Pages {
    /// Holds `snapshot` for the next page.
    pub(crate) fn hold(&self, snapshot: &Arc<dyn Snapshot>, now: Instant) {
        let mut held = self.tidied(now);
        // A list that goes on stays young.
        held.retain(|(_, known)| known.revision() != snapshot.revision());
        if held.len() == SNAPSHOTS_MAX {
            held.pop_front();
        }
        held.push_back((now, snapshot.clone()));
    }

    /// The state at `revision`, if it is held.
    pub(crate) fn at(&self, revision: u64, now: Instant) -> Option<Arc<dyn Snapshot>> {
        self.tidied(now).iter().find(|(_, held)| held.revision() == revision).map(|(_, held)| held.clone())
    }

    fn tidied(&self, now: Instant) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Arc<dyn Snapshot>)>> {
        let mut held = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        held.retain(|(since, _)| now.duration_since(*since) < SNAPSHOT_TIME);
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryCluster;

    #[test]
    fn a_token_reads_back_and_anything_else_is_refused() {
        let token = Token::new(7, "default/web-1");
        assert_eq!(Token::decode(&token.encode()), Ok(token));
        for text in ["", "!!", "e30", &URL_SAFE_NO_PAD.encode(r#"{"v":2,"rv":1,"after":""}"#)] {
            assert_eq!(Token::decode(text).unwrap_err().code(), 400, "{text}");
        }
    }

    #[test]
    fn snapshots_are_held_for_a_time_and_not_without_end() {
        let (pages, cluster, start) = (Pages::default(), MemoryCluster::default(), Instant::now());
        let mut revisions = Vec::new();
        for number in 0..=SNAPSHOTS_MAX {
            cluster.put(&format!("core/configmaps/a/{number}"), "{}");
            let snapshot = cluster.snapshot();
            revisions.push(snapshot.revision());
            pages.hold(&snapshot, start);
        }
        assert!(pages.at(revisions[0], start).is_none());
        assert!(pages.at(revisions[1], start).is_some());
        assert!(pages.at(revisions[1], start + SNAPSHOT_TIME).is_none());
    }
}
