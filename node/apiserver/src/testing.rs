//! A cluster of one node in memory, for tests of whoever speaks HTTP to the API.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;
use skein_api::sealed;
use skein_api::write::{Change, Expect, Refusal, Write, Written};
use tokio::sync::watch;

use crate::cluster::{
    AT_LEAST_WAIT, Batch, Cluster, Event, Events, Freshness, LogError, LogRequest, LogStream, Snapshot,
    Unavailable, WatchError,
};

/// A map with revisions, conditions and a log of changes: what the replicated store promises, without
/// disk or network.
#[derive(Clone, Default)]
pub struct MemoryCluster(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
    chance: AtomicU64,
    /// Why nothing is answered, if so.
    broken: Mutex<Option<Unavailable>>,
    /// Why nothing sealed is opened, if so.
    sealed: Mutex<Option<Unavailable>>,
    /// Called with each command before it is decided.
    before_propose: Mutex<Option<Hook>>,
    logs: Mutex<HashMap<String, watch::Receiver<LogText>>>,
}

type Hook = Box<dyn FnMut(&MemoryCluster, &[Write]) + Send>;

/// What a container has printed so far, and whether it will print more.
#[derive(Clone, Debug, Default)]
pub struct LogText {
    /// All of it.
    pub text: String,
    /// Nothing follows.
    pub ended: bool,
}

#[derive(Clone, Default)]
struct State {
    revision: u64,
    objects: Arc<BTreeMap<Arc<str>, (Bytes, u64)>>,
    events: Vec<Event>,
    /// Events up to here were thrown away.
    floor: u64,
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            state: Mutex::default(),
            revision: watch::channel(0).0,
            chance: AtomicU64::new(0),
            broken: Mutex::default(),
            sealed: Mutex::default(),
            before_propose: Mutex::default(),
            logs: Mutex::default(),
        }
    }
}

impl MemoryCluster {
    /// A cluster with the namespace `default`.
    pub fn with_default_namespace() -> Self {
        let cluster = MemoryCluster::default();
        cluster.put(
            "core/namespaces//default",
            r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"default","uid":"ns-default","creationTimestamp":"2026-01-01T00:00:00Z","labels":{"kubernetes.io/metadata.name":"default"}},"spec":{"finalizers":["kubernetes"]},"status":{"phase":"Active"}}"#,
        );
        cluster
    }

    /// Writes without conditions.
    pub fn put(&self, key: &str, value: &str) -> u64 {
        let change = Change::Put(value.as_bytes().to_vec());
        match self.apply(&[Write { key: key.into(), expect: Expect::Any, change }])[0] {
            Written::Done { revision } | Written::Unchanged { revision } => revision,
            Written::Refused(refusal) => unreachable!("a write without conditions was refused: {refusal:?}"),
        }
    }

    /// Removes without conditions.
    pub fn remove(&self, key: &str) {
        self.apply(&[Write { key: key.into(), expect: Expect::Any, change: Change::Delete }]);
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<serde_json::Value> {
        self.snapshot().get(key).and_then(|(bytes, _)| serde_json::from_slice(&bytes).ok())
    }

    /// The state as it is.
    pub fn snapshot(&self) -> Arc<dyn Snapshot> {
        let state = lock(&self.0.state);
        Arc::new(Picture { revision: state.revision, objects: state.objects.clone() })
    }

    /// Forgets all changes so far, as a full ring does.
    pub fn compact(&self) {
        let mut state = lock(&self.0.state);
        state.events.clear();
        state.floor = state.revision;
        drop(state);
        self.0.revision.send_modify(|_| {});
    }

    /// Answers nothing any more but with `why`; `None` makes it well again.
    pub fn break_down(&self, why: Option<Unavailable>) {
        *lock(&self.0.broken) = why;
    }

    /// Calls `hook` before each command is decided: the place where somebody else is faster.
    pub fn before_propose(&self, hook: impl FnMut(&MemoryCluster, &[Write]) + Send + 'static) {
        *lock(&self.0.before_propose) = Some(Box::new(hook));
    }

    /// The output of the container `<namespace>/<pod>/<container>` comes from here.
    pub fn set_logs(&self, container: &str, logs: watch::Receiver<LogText>) {
        lock(&self.0.logs).insert(container.to_owned(), logs);
    }

    /// Opens nothing that is sealed any more; `None`: it does again.
    pub fn keep_sealed(&self, why: Option<Unavailable>) {
        *lock(&self.0.sealed) = why;
    }

    fn check(&self) -> Result<(), Unavailable> {
        lock(&self.0.broken).clone().map_or(Ok(()), Err)
    }

    fn apply(&self, writes: &[Write]) -> Vec<Written> {
        let mut state = lock(&self.0.state);
        let outcomes = state.apply(writes);
        let revision = state.revision;
        drop(state);
        self.0.revision.send_replace(revision);
        outcomes
    }

    fn next_chance(&self) -> u64 {
        // SplitMix64: well spread and the same in each run.
        let mut z =
            self.0.chance.fetch_add(1, Ordering::Relaxed).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl State {
    fn apply(&mut self, writes: &[Write]) -> Vec<Written> {
        let refusals: Vec<Option<Refusal>> = writes.iter().map(|write| self.refusal(write)).collect();
        if refusals.iter().any(Option::is_some) {
            return refusals
                .into_iter()
                .map(|refusal| Written::Refused(refusal.unwrap_or(Refusal::NotTried)))
                .collect();
        }
        writes.iter().map(|write| self.perform(write)).collect()
    }

    fn refusal(&self, write: &Write) -> Option<Refusal> {
        let found = self.objects.get(write.key.as_str()).map(|(_, revision)| *revision);
        match (write.expect, found) {
            (Expect::Any, _) | (Expect::Absent, None) | (Expect::Present, Some(_)) => None,
            (Expect::Revision(asked), Some(revision)) if asked == revision => None,
            (Expect::Absent, Some(revision)) => Some(Refusal::Exists { revision }),
            (Expect::Present | Expect::Revision(_), None) => Some(Refusal::Absent),
            (Expect::Revision(_), Some(revision)) => Some(Refusal::Conflict { revision }),
        }
    }

    fn perform(&mut self, write: &Write) -> Written {
        let key: Arc<str> = write.key.as_str().into();
        let previous = self.objects.get(&key).cloned();
        let value = match &write.change {
            Change::Check => None,
            Change::Put(value) if previous.as_ref().is_some_and(|(known, _)| known == value) => None,
            Change::Delete if previous.is_none() => None,
            Change::Put(value) => Some(Some(Bytes::from(value.clone()))),
            Change::Delete => Some(None),
        };
        let Some(value) = value else {
            return Written::Unchanged { revision: previous.map_or(self.revision, |(_, revision)| revision) };
        };
        self.revision += 1;
        let objects = Arc::make_mut(&mut self.objects);
        match &value {
            Some(value) => objects.insert(key.clone(), (value.clone(), self.revision)),
            None => objects.remove(&key),
        };
        let previous = previous.map(|(value, _)| value);
        self.events.push(Event { revision: self.revision, key, value, previous });
        Written::Done { revision: self.revision }
    }
}

#[async_trait]
impl Cluster for MemoryCluster {
    async fn propose(&self, writes: Vec<Write>) -> Result<Vec<Written>, Unavailable> {
        self.check()?;
        // Taken out while it runs, so that it may write itself.
        let hook = lock(&self.0.before_propose).take();
        if let Some(mut hook) = hook {
            hook(self, &writes);
            lock(&self.0.before_propose).get_or_insert(hook);
        }
        Ok(self.apply(&writes.into_iter().map(sealed_write).collect::<Vec<_>>()))
    }

    async fn read(&self, at: Freshness) -> Result<Arc<dyn Snapshot>, Unavailable> {
        if at != Freshness::Any {
            self.check()?;
        }
        if let Freshness::AtLeast(asked) = at {
            let mut revision = self.0.revision.subscribe();
            let reached =
                tokio::time::timeout(AT_LEAST_WAIT, revision.wait_for(|revision| *revision >= asked)).await;
            if reached.is_err() {
                return Err(Unavailable::NotYet { asked, current: self.snapshot().revision() });
            }
        }
        Ok(self.snapshot())
    }

    async fn open(&self, objects: &mut [Value]) -> Result<(), Unavailable> {
        for object in objects {
            if let Some(envelope) = sealed::envelope(object) {
                lock(&self.0.sealed).clone().map_or(Ok(()), Err)?;
                sealed::restore(object, &turned(envelope)).expect("what was sealed here");
            }
        }
        Ok(())
    }

    async fn watch(&self, prefix: &str, after: u64) -> Result<Box<dyn Events>, WatchError> {
        let floor = lock(&self.0.state).floor;
        if after < floor {
            return Err(WatchError::Compacted { floor });
        }
        let revision = self.0.revision.subscribe();
        Ok(Box::new(Cursor { cluster: self.clone(), prefix: prefix.to_owned(), after, revision }))
    }

    async fn logs(&self, _node: &str, request: LogRequest) -> Result<LogStream, LogError> {
        self.check()?;
        let name = format!("{}/{}/{}", request.namespace, request.pod, request.container);
        let Some(logs) = lock(&self.0.logs).get(&name).cloned() else {
            return Err(LogError::NotFound(format!("container {name:?} has printed nothing here")));
        };
        let skipped = request.tail_lines.map_or(0, |lines| {
            let text = &logs.borrow().text;
            let starts: Vec<usize> = std::iter::once(0)
                .chain(text.match_indices('\n').map(|(at, _)| at + 1))
                .filter(|at| *at < text.len())
                .collect();
            let lines = usize::try_from(lines).unwrap_or(usize::MAX).min(starts.len());
            starts.get(starts.len() - lines).copied().unwrap_or(text.len())
        });
        let follow = request.follow;
        let pieces = futures::stream::unfold((logs, skipped), move |(mut logs, sent)| async move {
            loop {
                let now = logs.borrow_and_update().clone();
                if now.text.len() > sent {
                    let piece = Bytes::copy_from_slice(&now.text.as_bytes()[sent..]);
                    return Some((Ok(piece), (logs, now.text.len())));
                }
                if !follow || now.ended || logs.changed().await.is_err() {
                    return None;
                }
            }
        });
        Ok(pieces.boxed())
    }

    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    fn uid(&self) -> String {
        let (high, low) = (self.next_chance(), self.next_chance());
        format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            low >> 52,
            low & 0xffff_ffff_ffff
        )
    }

    fn suffix(&self) -> String {
        const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut chance = self.next_chance();
        (0..5)
            .map(|_| {
                let letter = char::from(ALPHABET[(chance % 27) as usize]);
                chance /= 27;
                letter
            })
            .collect()
    }
}

/// A cipher for tests: it only makes bytes look otherwise.
fn turned(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().map(|byte| byte ^ 0x55).collect()
}

/// The write as it goes into the map: sealed if it is to be.
fn sealed_write(mut write: Write) -> Write {
    if let (true, Change::Put(bytes)) = (sealed::is_due(&write.key), &mut write.change) {
        let mut object = serde_json::from_slice(bytes).expect("an object");
        if sealed::envelope(&object).is_none() {
            let taken = sealed::take(&mut object);
            sealed::put_envelope(&mut object, &turned(taken));
            *bytes = object.to_string().into_bytes();
        }
    }
    write
}

struct Picture {
    revision: u64,
    objects: Arc<BTreeMap<Arc<str>, (Bytes, u64)>>,
}

impl Snapshot for Picture {
    fn revision(&self) -> u64 {
        self.revision
    }

    fn get(&self, key: &str) -> Option<(Bytes, u64)> {
        self.objects.get(key).cloned()
    }

    fn range(&self, prefix: &str, after_key: Option<&str>, limit: usize) -> Vec<(Arc<str>, Bytes, u64)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let from = match after_key {
            Some(key) if key >= prefix => Excluded(key),
            _ => Included(prefix),
        };
        self.objects
            .range::<str, _>((from, Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, (value, revision))| (key.clone(), value.clone(), *revision))
            .collect()
    }
}

struct Cursor {
    cluster: MemoryCluster,
    prefix: String,
    after: u64,
    revision: watch::Receiver<u64>,
}

impl Cursor {
    fn ready(&mut self) -> Result<Batch, WatchError> {
        let state = lock(&self.cluster.0.state);
        if self.after < state.floor {
            return Err(WatchError::Compacted { floor: state.floor });
        }
        let new = state.events.iter().filter(|event| event.revision > self.after);
        let events = new.filter(|event| event.key.starts_with(&self.prefix)).cloned().collect();
        Ok(Batch { events, revision: state.revision })
    }
}

#[async_trait]
impl Events for Cursor {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            self.revision.borrow_and_update();
            let batch = self.ready()?;
            self.after = self.after.max(batch.revision);
            if !batch.events.is_empty() {
                return Ok(batch);
            }
            if self.revision.changed().await.is_err() {
                return Err(Unavailable::NoQuorum("the cluster in memory has ended".into()).into());
            }
        }
    }

    fn revision(&self) -> u64 {
        let state = lock(&self.cluster.0.state);
        let waiting = state
            .events
            .iter()
            .find(|event| event.revision > self.after && event.key.starts_with(&self.prefix));
        match waiting {
            Some(_) => self.after,
            None => self.after.max(state.revision),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
