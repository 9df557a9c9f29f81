//! The cluster as the API server sees it: this node's replica, and the way to the leader and to other
//! nodes' agents.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use rand::seq::IndexedRandom;
use serde_json::Value;
use skein_api::write::{self, NodeDeletion, Write, Written};
use skein_apiserver::cluster::{
    AT_LEAST_WAIT, Batch, Cluster, Event, Events, Freshness, LogError, LogRequest, LogStream, Snapshot,
    Unavailable, WatchError,
};
use skein_control::node::{departure, roster};
use skein_control::view::View;
use skein_net::endpoint::{Class, Endpoint};
use skein_net::identity::NodeId;
use skein_raft_store::{
    self as store, Change, Expect, Handle, Op, Options, Outcome, ProposeError, ReadError, State,
    TokioRuntime, Watcher,
};

use crate::clock;
use crate::members::Members;
use crate::secrets::Vault;
use crate::wire::{self, Answer, Ask, LogQuestion};

/// How long a read waits for the leader.
const READ_MAX: Duration = Duration::from_secs(5);
/// The same where the last one waited in vain: enough for every leader that a majority follows.
const READ_MAX_IN_DOUBT: Duration = Duration::from_millis(500);
/// Characters of generated names: no vowels, so no words.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// See the module.
pub(crate) struct Here {
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) vault: Vault,
    pub(crate) endpoint: Endpoint,
    pub(crate) members: Members,
    pub(crate) agent: crate::agent::Logs,
    /// The last read or write found no majority: those that follow need not find out as slowly.
    pub(crate) in_doubt: AtomicBool,
}

/// An operation of the store for a write of the API.
pub(crate) fn op(write: Write) -> Op {
    let expect = match write.expect {
        write::Expect::Any => Expect::Any,
        write::Expect::Absent => Expect::Absent,
        write::Expect::Present => Expect::Present,
        write::Expect::Revision(revision) => Expect::Revision(revision),
    };
    let change = match write.change {
        write::Change::Put(bytes) => Change::Put(bytes.into()),
        write::Change::Delete => Change::Delete,
        write::Change::Check => Change::Check,
    };
    Op { key: write.key.into(), expect, change }
}

#[async_trait]
impl Cluster for Here {
    async fn propose(&self, mut writes: Vec<Write>) -> Result<Vec<Written>, Unavailable> {
        if self.in_doubt.load(Ordering::Relaxed) {
            // Of a write that is not sent everybody knows that it did not happen.
            self.confirm()
                .await
                .map_err(|error| Unavailable::NoQuorum(format!("nothing was written: {error}")))?;
        }
        self.vault.seal(&mut writes).await?;
        let ops = writes.into_iter().map(op).collect();
        let proposed = self.store.propose(ops, Options::default()).await;
        if let Err(ProposeError::Unknown(_) | ProposeError::NoQuorum(_)) = proposed {
            self.in_doubt.store(true, Ordering::Relaxed);
        }
        let answer = proposed.map_err(|error| match error {
            ProposeError::Unknown(_) => Unavailable::Timeout(error.to_string()),
            ProposeError::DiskFull { voter } => Unavailable::Full(self.disk_full(NodeId(voter.node))),
            ProposeError::TooLarge(_) | ProposeError::BadKey(_) => Unavailable::Full(error.to_string()),
            _ => Unavailable::NoQuorum(error.to_string()),
        })?;
        // What this client was told it wrote, it reads here.
        self.store.wait_revision(answer.revision, AT_LEAST_WAIT).await;
        answer.outcomes.into_iter().map(written).collect()
    }

    async fn read(&self, at: Freshness) -> Result<Arc<dyn Snapshot>, Unavailable> {
        match at {
            Freshness::Any => {}
            Freshness::Latest => {
                self.confirm().await.map_err(|error| Unavailable::NoQuorum(error.to_string()))?;
            }
            Freshness::AtLeast(asked) => {
                if !self.store.wait_revision(asked, AT_LEAST_WAIT).await {
                    return Err(Unavailable::NotYet { asked, current: self.store.state().revision() });
                }
            }
        }
        Ok(Arc::new(Picture(self.store.state())))
    }

    async fn open(&self, objects: &mut [Value]) -> Result<(), Unavailable> {
        self.vault.open(objects).await.map_err(Unavailable::NoQuorum)
    }

    async fn watch(&self, prefix: &str, after: u64) -> Result<Box<dyn Events>, WatchError> {
        let watcher = self.store.watch(prefix, after).map_err(watch_error)?;
        Ok(Box::new(Cursor(watcher)))
    }

    async fn logs(&self, node: &str, request: LogRequest) -> Result<LogStream, LogError> {
        let unavailable = |reason: String| LogError::Unavailable(Unavailable::NoQuorum(reason));
        let question = LogQuestion {
            uid: request.uid,
            container: request.container,
            follow: request.follow,
            previous: request.previous,
            timestamps: request.timestamps,
            tail_lines: request.tail_lines,
            since_ms: request.since.map(|since| since.as_millisecond()),
            limit_bytes: request.limit_bytes,
        };
        let record =
            self.members.by_name(node).ok_or_else(|| unavailable(format!("node {node:?} is no member")))?;
        if record.node == self.endpoint.node() {
            let stream = self.agent.open(question).await.map_err(LogError::NotFound)?;
            return Ok(futures::stream::unfold(stream, |mut stream| async move {
                let piece = stream.next().await?;
                Some((piece, stream))
            })
            .boxed());
        }
        let mut stream = wire::open(&self.endpoint, record.node, &Ask::Logs(question), Class::Bulk)
            .await
            .map_err(|error| unavailable(format!("node {node:?} cannot be asked: {error}")))?;
        let first = stream.rx.recv().await.map_err(|error| unavailable(error.to_string()))?;
        let first = first.ok_or_else(|| unavailable(format!("node {node:?} did not answer")))?;
        wire::decode::<Answer<()>>(&first).map_err(unavailable)?.map_err(LogError::NotFound)?;
        Ok(futures::stream::unfold(stream, |mut stream| async move {
            let piece = stream.rx.recv().await.map_err(std::io::Error::other).transpose()?;
            Some((piece, stream))
        })
        .boxed())
    }

    fn node_deletion(&self, snapshot: &dyn Snapshot, name: &str) -> Result<NodeDeletion, String> {
        // Of the map only what the decision is about.
        let mut view = View::default();
        for (key, bytes, revision) in snapshot.range(roster::PREFIX, None, usize::MAX) {
            view.apply(&key, Some(&bytes), revision);
        }
        let key = format!("core/nodes//{name}");
        if let Some((bytes, revision)) = snapshot.get(&key) {
            view.apply(&key, Some(&bytes), revision);
        }
        departure::node_deletion(&view, name, self.store.stamp_ms())
    }

    fn now(&self) -> jiff::Timestamp {
        clock::wall()
    }

    fn uid(&self) -> String {
        uid()
    }

    fn suffix(&self) -> String {
        let mut chance = rand::rng();
        (0..5).map(|_| *LETTERS.choose(&mut chance).expect("there are letters") as char).collect()
    }
}

impl Here {
    /// Waits until this node's map has all that was answered by anyone before.
    async fn confirm(&self) -> Result<(), ReadError> {
        let limit = if self.in_doubt.load(Ordering::Relaxed) { READ_MAX_IN_DOUBT } else { READ_MAX };
        let confirmed = self.store.read_index(limit).await;
        self.in_doubt.store(confirmed.is_err(), Ordering::Relaxed);
        confirmed.map(drop)
    }

    /// The same as the store's words, with the name that people gave the node.
    fn disk_full(&self, node: NodeId) -> String {
        let name = self.members.get(node).map_or_else(|| node.to_string(), |record| record.name);
        format!(
            "the disk of node {name:?}, which leads, is full; free some space on it: nothing is lost, reads go on, \
             and writes are taken again a few seconds after there is space"
        )
    }
}

/// A new uid in the form of a random (version 4) UUID.
pub(crate) fn uid() -> String {
    // Version 4, variant 1 (RFC 9562 §5.4).
    let bits = rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn written(outcome: Outcome) -> Result<Written, Unavailable> {
    Ok(match outcome {
        Outcome::Done { revision } => Written::Done { revision },
        Outcome::Unchanged { revision } => Written::Unchanged { revision },
        Outcome::Refused(refusal) => Written::Refused(match refusal {
            store::Refusal::Exists { revision } => write::Refusal::Exists { revision },
            store::Refusal::Absent => write::Refusal::Absent,
            store::Refusal::Conflict { revision } => write::Refusal::Conflict { revision },
            store::Refusal::NotTried => write::Refusal::NotTried,
        }),
        Outcome::Full => {
            let limit_mib = store::STORE_BYTES_MAX >> 20;
            return Err(Unavailable::Full(format!(
                "the cluster's store holds the {limit_mib} MiB that it may hold; delete objects that are no longer \
                 needed, then write again"
            )));
        }
        // Only planners bind their writes to a term.
        Outcome::WrongTerm => {
            return Err(Unavailable::NoQuorum("leadership has just changed; try again".into()));
        }
    })
}

fn watch_error(error: store::WatchError) -> WatchError {
    match error {
        store::WatchError::Compacted { floor } => WatchError::Compacted { floor },
        store::WatchError::Stopped => Unavailable::NoQuorum(error.to_string()).into(),
    }
}

struct Picture(State);

impl Snapshot for Picture {
    fn revision(&self) -> u64 {
        self.0.revision()
    }

    fn get(&self, key: &str) -> Option<(Bytes, u64)> {
        self.0.get(key).map(|object| (object.value.clone(), object.mod_rev))
    }

    fn range(&self, prefix: &str, after_key: Option<&str>, limit: usize) -> Vec<(Arc<str>, Bytes, u64)> {
        let found = self.0.range(prefix, after_key).take(limit);
        found.map(|(key, object)| (key.clone(), object.value.clone(), object.mod_rev)).collect()
    }
}

struct Cursor(Watcher);

#[async_trait]
impl Events for Cursor {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        let batch = self.0.next().await.map_err(watch_error)?;
        let events = batch.events.into_iter().map(|event| Event {
            revision: event.revision,
            key: event.key,
            value: event.value,
            previous: event.previous,
        });
        Ok(Batch { events: events.collect(), revision: batch.revision })
    }

    fn revision(&self) -> u64 {
        self.0.revision()
    }
}
