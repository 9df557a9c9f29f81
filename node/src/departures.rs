//! How nodes go: wishes to the leader, and the word of it when this node itself is no member any more.
//!
//! What a wish leads to is decided by [`departure`]; the leader's planner writes it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use skein_control::node::departure::{self, Cause, Progress, Refusal};
use skein_control::node::roster::Record;
use skein_net::endpoint::Endpoint;
use skein_net::gossip::{self, service};
use skein_net::identity::NodeId;
use skein_raft_store::{Handle, Options, TokioRuntime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::admission::all_done;
use crate::cluster::op;
use crate::leader::{Needs, electorate};
use crate::members::Members;
use crate::picture::Picture;
use crate::watchfulness::Verdicts;
use crate::wire::{self, Answer, Ask};

/// How long a leader is waited for.
const LEADER_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Somebody else may write the same record.
const TRIES: usize = 8;

/// Why this node is no member any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Out {
    /// It left, as was asked of it.
    Left,
    /// Others ended its membership.
    Removed,
}

impl fmt::Display for Out {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Out::Left => "this node has left its cluster",
            Out::Removed => "others have removed this node from its cluster",
        })
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Departures {
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) endpoint: Endpoint,
    pub(crate) gossip: service::Handle,
    pub(crate) members: Members,
    pub(crate) picture: Picture,
    pub(crate) verdicts: watch::Receiver<Verdicts>,
    pub(crate) needs: watch::Receiver<Needs>,
    /// That this node has been asked to leave, from before anybody else knows it until its replica shows it: the others may
    /// let an empty node go before that.
    pub(crate) leaves: Arc<AtomicBool>,
}

impl Departures {
    /// Asks the leader to let the member `name` go. Refused is what would fail; nothing was done then.
    pub(crate) async fn ask(&self, name: &str, cause: Cause) -> Result<(), String> {
        if cause != Cause::Leave {
            return self.ask_leader(name, cause).await;
        }
        // Only a node itself is asked to leave.
        self.leaves.store(true, Ordering::Release);
        let asked = tokio::select! {
            asked = self.ask_leader(name, cause) => asked,
            () = self.endpoint.dismissed() => return Ok(()),
        };
        self.leaves.store(false, Ordering::Release);
        asked
    }

    async fn ask_leader(&self, name: &str, cause: Cause) -> Result<(), String> {
        let until = Instant::now() + LEADER_MAX;
        loop {
            let answer = match self.store.metrics().leader.map(|leader| NodeId(leader.node)) {
                Some(leader) if leader == self.endpoint.node() => self.decide(name, cause).await,
                Some(leader) => {
                    let ask = Ask::Depart { name: name.to_owned(), cause };
                    wire::ask(&self.endpoint, leader, &ask).await.and_then(|answer| answer)
                }
                None => Err("no node leads".to_owned()),
            };
            match answer {
                Ok(decided) => {
                    decided.map_err(|refusal| refusal.to_string())?;
                    return self.catch_up(name).await;
                }
                Err(error) if Instant::now() > until => {
                    return Err(format!("nothing was decided: {error}; {}", self.who_is_missed()));
                }
                Err(error) => debug!(name, error, "could not ask for a departure yet"),
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until what the leader has written is seen here.
    async fn catch_up(&self, name: &str) -> Result<(), String> {
        match timeout(LEADER_MAX, self.picture.catch_up(&self.store, LEADER_MAX)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(format!(
                "{name:?} was asked to go, and this node does not hear the others now; see: skein status"
            )),
        }
    }

    /// Decides as the leader.
    pub(crate) async fn decide(&self, name: &str, cause: Cause) -> Answer<Result<(), Refusal>> {
        for _ in 0..TRIES {
            let term = self.store.metrics().term;
            let seen = self.picture.catch_up(&self.store, Duration::from_secs(5)).await;
            seen.map_err(|error| error.to_string())?;
            let electorate = electorate(&self.store, &self.needs.borrow().clone());
            if electorate.leader.is_empty() {
                return Err("leadership has just changed".into());
            }
            let (view, verdicts) = (self.picture.view(), self.verdicts.borrow().clone());
            let asked = departure::ask(&view, &electorate, &verdicts, self.store.stamp_ms(), name, cause);
            let writes = match asked {
                Ok(writes) => writes,
                Err(refusal) => return Ok(Err(refusal)),
            };
            if writes.is_empty() || self.write(writes, Some(term)).await? {
                return Ok(Ok(()));
            }
        }
        Err("its record changes all the time".into())
    }

    /// Takes a wish back.
    pub(crate) async fn cancel(&self, name: &str) -> Result<(), String> {
        for _ in 0..TRIES {
            let seen = self.picture.catch_up(&self.store, Duration::from_secs(5)).await;
            seen.map_err(|error| format!("nothing was changed: {error}; {}", self.who_is_missed()))?;
            let writes =
                departure::cancel(&self.picture.view(), name).map_err(|refusal| refusal.to_string())?;
            if self.write(writes, None).await? {
                return Ok(());
            }
        }
        Err("its record changes all the time; try again".into())
    }

    /// How far the departure of `node` has come, as this node's picture shows it.
    pub(crate) fn progress(&self, node: NodeId) -> Progress {
        departure::progress(&self.picture.view(), &node.to_string())
    }

    /// Which voters do not answer, in words.
    pub(crate) fn who_is_missed(&self) -> String {
        let gossiped = self.gossip.members().borrow().clone();
        let metrics = self.store.metrics();
        let silent = metrics.voters.iter().map(|voter| NodeId(voter.node)).filter(|node| {
            let state = gossiped.get(node).map(|member| member.state);
            *node != self.endpoint.node() && state != Some(gossip::State::Alive)
        });
        let names = silent.map(|node| {
            self.members.ever(node).map_or_else(|| node.to_string(), |record| format!("{:?}", record.name))
        });
        let names: Vec<String> = names.collect();
        match &*names {
            [] => "try again in a moment".to_owned(),
            [one] => format!("of the voters {one} does not answer"),
            more => format!("of the voters {} do not answer", more.join(" and ")),
        }
    }

    async fn write(
        &self,
        writes: Vec<skein_api::write::Write>,
        only_in_term: Option<u64>,
    ) -> Result<bool, String> {
        let options = Options { only_in_term, ..Options::default() };
        let answer = self.store.propose(writes.into_iter().map(op).collect(), options).await;
        let answer = answer.map_err(|error| error.to_string())?;
        self.picture.reach(answer.revision).await;
        Ok(all_done(&answer))
    }
}

/// Waits until this node is no member any more: by its own replica, or by the word of a member that refuses it.
pub(crate) async fn until_out(endpoint: Endpoint, members: Members, leaves: Arc<AtomicBool>) -> Out {
    let me = endpoint.node();
    let mut editions = members.editions();
    let mut dismissed = std::pin::pin!(endpoint.dismissed());
    loop {
        let record = members.ever(me);
        if let Some(record) = record.as_ref().filter(|record| record.removed) {
            return if record.expelled { Out::Removed } else { Out::Left };
        }
        tokio::select! {
            () = &mut dismissed => {
                // Its replica stands still from then on; what it last read tells whether that was asked for, unless it
                // was asked a moment ago.
                let asked = record.and_then(|record: Record<_, _, _>| record.departure);
                let left = asked.is_some_and(|departure| departure.cause == Cause::Leave);
                return if left || leaves.load(Ordering::Acquire) { Out::Left } else { Out::Removed };
            }
            _ = editions.changed() => {}
        }
    }
}
