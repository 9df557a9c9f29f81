//! What the API needs of the cluster below it: change the map, read it, follow it, reach a node's logs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::Value;
use skein_api::write::{NodeDeletion, Write, Written};

/// The cluster as the API sees it. Any node can be asked; each of its methods ends in bounded time.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// Changes the map, all or nothing, as one command of the log.
    ///
    /// What is to be sealed is sealed here, before anybody else has it. The outcomes are in the order of `writes`. If one of them is `Refused`, nothing has happened.
    async fn propose(&self, writes: Vec<Write>) -> Result<Vec<Written>, Unavailable>;

    /// A consistent picture of the map, as fresh as asked for.
    async fn read(&self, at: Freshness) -> Result<Arc<dyn Snapshot>, Unavailable>;

    /// The changes after revision `after` whose key starts with `prefix`. An `after` that lies in the
    /// future is waited for.
    async fn watch(&self, prefix: &str, after: u64) -> Result<Box<dyn Events>, WatchError>;

    /// Opens objects that lie sealed in the map, as [`propose`](Self::propose) sealed them
    /// ([`skein_api::sealed`]); others stay as they are. If one cannot be opened now, none is to be shown.
    async fn open(&self, objects: &mut [Value]) -> Result<(), Unavailable>;

    /// What a container printed, from the node that runs it.
    async fn logs(&self, node: &str, request: LogRequest) -> Result<LogStream, LogError>;

    /// What the deletion of a Node object means by `snapshot`; the error is for the client.
    fn node_deletion(&self, _snapshot: &dyn Snapshot, _name: &str) -> Result<NodeDeletion, String> {
        Ok(NodeDeletion::Object)
    }

    /// The time that goes into objects.
    fn now(&self) -> jiff::Timestamp;

    /// A new uid: a random UUID in its usual text form.
    fn uid(&self) -> String;

    /// Five random characters for `generateName`, of the alphabet `bcdfghjklmnpqrstvwxz2456789`.
    fn suffix(&self) -> String;
}

/// How fresh a picture must be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Freshness {
    /// It contains every write that was answered before the reading began.
    Latest,
    /// Whatever this node has, at once.
    Any,
    /// It contains at least this revision. Waits up to 3 s, then [`Unavailable::NotYet`].
    AtLeast(u64),
}

/// The map at one revision. Holding it costs little; nobody changes it any more.
pub trait Snapshot: Send + Sync {
    /// The revision of the newest change in the picture.
    fn revision(&self) -> u64;

    /// The value of `key` and the revision that wrote it.
    fn get(&self, key: &str) -> Option<(Bytes, u64)>;

    /// Up to `limit` entries in the order of their keys: those that start with `prefix` and come after
    /// `after_key`.
    fn range(&self, prefix: &str, after_key: Option<&str>, limit: usize) -> Vec<(Arc<str>, Bytes, u64)>;
}

/// A cursor over changes. It holds no queue: whoever reads slowly costs nothing until the changes
/// are no longer kept. Dropping it ends the watch.
#[async_trait]
pub trait Events: Send {
    /// Waits for the next changes. An empty batch only says that the revision has moved.
    ///
    /// Dropping the future loses nothing: the next call delivers what this one would have.
    async fn next(&mut self) -> Result<Batch, WatchError>;

    /// Every change up to this revision has been delivered. It moves without [`next`](Self::next)
    /// being called as long as nothing matches: what a bookmark may say.
    fn revision(&self) -> u64;
}

/// Some changes, in the order of their revisions.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Each matching change once, ascending.
    pub events: Vec<Event>,
    /// Every matching change up to here is in this batch or was in an earlier one.
    pub revision: u64,
}

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Event {
    /// The revision it made.
    pub revision: u64,
    /// What was changed.
    pub key: Arc<str>,
    /// The value from now on; `None` if it was deleted.
    pub value: Option<Bytes>,
    /// The value until now; `None` if there was none.
    pub previous: Option<Bytes>,
}

/// The cluster cannot answer now. The texts go to the client as they are.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unavailable {
    /// There is no leader, or it is out of reach. A write that was under way may or may not happen.
    #[error("{0}")]
    NoQuorum(String),
    /// No answer in time. A write may or may not have happened.
    #[error("{0}")]
    Timeout(String),
    /// This node did not reach the revision asked for in time.
    #[error("revision {asked} is not known here yet, the newest is {current}; ask again or ask another node")]
    NotYet {
        /// The revision asked for.
        asked: u64,
        /// The newest one of this node.
        current: u64,
    },
    /// The store is full or its disk is. Nothing was written.
    #[error("{0}")]
    Full(String),
}

/// A watch cannot begin or go on.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WatchError {
    /// The changes after the asked revision are no longer kept.
    #[error("too old resource version; changes are kept from revision {floor} on, list again")]
    Compacted {
        /// Changes after this revision are still kept.
        floor: u64,
    },
    /// The cluster cannot answer now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Which part of which container's output.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LogRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid: a pod of the same name is another pod.
    pub uid: String,
    /// The container's name.
    pub container: String,
    /// Go on as more is printed, until the container ends.
    pub follow: bool,
    /// The output of the container's previous run.
    pub previous: bool,
    /// A time in front of each line.
    pub timestamps: bool,
    /// Only that many lines, counted from the end.
    pub tail_lines: Option<u64>,
    /// Only what was printed since then.
    pub since: Option<jiff::Timestamp>,
    /// Not more than that many bytes.
    pub limit_bytes: Option<u64>,
}

/// What a container printed, in pieces of any size. An error ends the stream.
pub type LogStream = BoxStream<'static, Result<Bytes, std::io::Error>>;

/// There is no output to show.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LogError {
    /// The node answered that it has no such output; the text says of what.
    #[error("{0}")]
    NotFound(String),
    /// The node cannot be asked.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// How long [`Freshness::AtLeast`] waits. DESIGN "Reads".
pub const AT_LEAST_WAIT: Duration = Duration::from_secs(3);
