//! All authorities made anew because somebody said so.

use std::time::Duration;

use skein_control::node::authority::{NotRotated, PREFIX, Trust, Wish};
use skein_raft_store::{Options, State};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::keeper::trust_op;
use super::{Authority, timestamp, trust_of};
use crate::admission::{all_done, tokens};
use crate::clock;

const READ_MAX: Duration = Duration::from_secs(5);
/// Somebody else may write the record at the same moment.
const TRIES: usize = 8;
/// The voters that are there take the new authorities in a second; one that does not is waited for a minute.
pub(crate) const CHANGE_MAX: Duration = Duration::from_secs(90);

/// What has come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rotated {
    /// Which edition is in force.
    pub(crate) edition: u64,
    /// How many tokens have ended that were good.
    pub(crate) tokens_ended: usize,
    /// Until when kubeconfigs of before are good; they have ended with `None`.
    pub(crate) old_until: Option<String>,
}

/// Why it did not happen, or is not over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be granted; nothing was changed.
    #[error(transparent)]
    Refused(#[from] NotRotated),
    /// The cluster did not answer in time.
    #[error("{0}")]
    Unavailable(String),
    /// It goes on, and is granted when it can be.
    #[error(
        "the new authorities are not in force yet: a majority of the voters has to take them; it goes on by itself, see: skein status"
    )]
    GoesOn,
}

/// See [`Authority::before_theft`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct BeforeTheft {
    number: u64,
    tokens: usize,
}

impl Authority {
    /// Has all authorities made anew, and waits until they are in force.
    ///
    /// * `overlap`: for how long kubeconfigs of before are good; with `None` they end at once.
    pub(crate) async fn rotate(&self, overlap: Option<Duration>) -> Result<Rotated, Error> {
        let overlap_ms = overlap.map(|overlap| u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX));
        let tokens_ended = good_tokens(&self.inner.store.state());
        let before = self.wish(Wish { since_ms: clock::now_ms(), overlap_ms }).await?;
        let overlap_s = overlap.unwrap_or_default().as_secs();
        warn!(overlap_s, "all authorities of the cluster are to be made anew");
        let after = self.until_rotated(&before).await.ok_or(Error::GoesOn)?;
        let old_until = after.overlap_until().map(timestamp);
        Ok(Rotated { edition: after.number, tokens_ended, old_until })
    }

    /// Writes the wish down. Returns the record as it was before.
    async fn wish(&self, wish: Wish) -> Result<Trust, Error> {
        let unavailable = |error: &dyn std::fmt::Display| Error::Unavailable(error.to_string());
        let store = &self.inner.store;
        for _ in 0..TRIES {
            store.read_index(READ_MAX).await.map_err(|error| unavailable(&error))?;
            let Some((revision, trust)) = trust_of(&store.state()) else {
                // A new leader says first which authorities are in force.
                sleep(Duration::from_millis(500)).await;
                continue;
            };
            let op = trust_op(Some(revision), &trust.with_wish(wish)?);
            let answer =
                store.propose(vec![op], Options::default()).await.map_err(|error| unavailable(&error))?;
            if all_done(&answer) {
                return Ok(trust);
            }
        }
        Err(Error::Unavailable(
            "the leader has not said yet which authorities are in force; try again".into(),
        ))
    }

    /// What there is before all is made anew by a stolen machine's removal; see [`Authority::rotated_since`].
    pub(crate) fn before_theft(&self) -> BeforeTheft {
        let state = self.inner.store.state();
        let number = trust_of(&state).map_or(0, |(_, trust)| trust.clients_number());
        BeforeTheft { number, tokens: good_tokens(&state) }
    }

    /// What has come of it, once other authorities are in force and nothing more is wished.
    pub(crate) fn rotated_since(&self, before: &BeforeTheft) -> Option<Rotated> {
        let (_, trust) = trust_of(&self.inner.store.state())?;
        let is_done = trust.clients_number() > before.number && !trust.is_ending();
        is_done.then_some(Rotated { edition: trust.number, tokens_ended: before.tokens, old_until: None })
    }

    /// The record once other roots are in force than `before`, and nothing more is wished.
    async fn until_rotated(&self, before: &Trust) -> Option<Trust> {
        let (store, until) = (&self.inner.store, Instant::now() + CHANGE_MAX);
        loop {
            let state = store.state();
            let (_, trust) = trust_of(&state)?;
            if trust.clients_number() > before.clients_number() && trust.wish.is_none() {
                return Some(trust);
            }
            let mut records = store.watch(PREFIX, state.revision()).ok()?;
            let _ = timeout_at(until, records.next()).await.ok()?;
        }
    }
}

/// How many tokens let machines in now.
fn good_tokens(state: &State) -> usize {
    let now = clock::system();
    tokens(state).into_iter().filter(|token| token.ended(now).is_none()).count()
}
