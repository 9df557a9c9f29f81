//! GET with `watch`: changes as they happen, one JSON line each.
//!
//! Nothing is queued here. The stream asks the cluster's cursor for more when the client has taken
//! what it got, so a client that reads slowly holds one batch; one that reads too slowly finds its
//! changes no longer kept and gets the ERROR event with 410, upon which clients list again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use rand::RngExt;
use serde_json::{Value, json};
use skein_api::kinds::Kind;
use skein_api::object;
use skein_api::status::Status;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::api::{Answer, Api, Call};
use crate::cluster::{Cluster, Event, Events, Freshness, Snapshot, WatchError};
use crate::commit::unavailable;
use crate::negotiate::Form;
use crate::query::{ListOptions, Version};
use crate::read::{Filter, open, stored};
use crate::respond::{self, Body, BodyError};
use crate::view::View;

/// Marks the bookmark that ends the initial events of a streamed list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Objects of the initial state sent at a time.
const CHUNK: usize = 250;

impl Api {
    /// GET of a collection with `watch`.
    pub(crate) async fn watch(&self, call: &Call<'_>, options: &ListOptions) -> Answer {
        let kind = call.kind();
        let filter = Filter::parse(kind, options)?;
        let prefix = prefix(call, &filter);
        let initial = self.initial(options).await?;
        let after = match (&initial, options.version) {
            (Some(snapshot), _) => snapshot.revision(),
            (None, Version::Revision(revision)) => revision,
            (None, Version::Unset) => self.revision(Freshness::Latest).await?,
            (None, Version::Any) => self.revision(Freshness::Any).await?,
        };
        let events = match self.cluster.watch(&prefix, after).await {
            Ok(events) => events,
            Err(WatchError::Unavailable(why)) => return Err(unavailable(why)),
            Err(WatchError::Compacted { floor }) => return Ok(one_line(error_event(&expired(after, floor)))),
        };
        let now = Instant::now();
        let watching = Watching {
            cluster: self.cluster.clone(),
            kind,
            filter,
            view: call.view(),
            prefix,
            events,
            end_of_initial: (options.initial_events == Some(true) && options.bookmarks).then_some(after),
            initial: initial.map(|snapshot| (snapshot, None)),
            bookmarks: options.bookmarks,
            bookmark_every: self.limits.bookmark_every,
            bookmark_at: now + self.limits.bookmark_every,
            said: after,
            until: now + self.watch_time(options),
            stopping: self.stopping.clone(),
            ended: false,
        };
        let lines = futures::stream::unfold(watching, |mut watching| async move {
            watching.lines().await.map(|lines| (Ok::<_, BodyError>(lines), watching))
        });
        Ok(respond::stream(Form::Object.content_type(), lines))
    }

    /// The state that the stream begins with, if the client wants one.
    async fn initial(&self, options: &ListOptions) -> Result<Option<Arc<dyn Snapshot>>, Status> {
        let at = match (options.initial_events, options.version) {
            (Some(true), Version::Revision(revision)) => Freshness::AtLeast(revision),
            (Some(true) | None, Version::Unset) => Freshness::Latest,
            (Some(true) | None, Version::Any) => Freshness::Any,
            (Some(false), _) | (None, Version::Revision(_)) => return Ok(None),
        };
        self.cluster.read(at).await.map(Some).map_err(unavailable)
    }

    async fn revision(&self, at: Freshness) -> Result<u64, Status> {
        Ok(self.cluster.read(at).await.map_err(unavailable)?.revision())
    }

    fn watch_time(&self, options: &ListOptions) -> Duration {
        match options.timeout_seconds {
            // A day is as good as for ever, and cannot overflow the clock.
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(86_400)),
            _ => self.limits.watch_time.mul_f64(rand::rng().random_range(0.8..1.2)),
        }
    }
}

/// One name is a prefix too: others that begin alike are filtered out.
fn prefix(call: &Call<'_>, filter: &Filter) -> String {
    let prefix = call.kind().prefix(call.resource.namespace.as_deref());
    match filter.name() {
        Some(name) if call.resource.namespace.is_some() => format!("{prefix}{name}"),
        // Keys of kinds without namespace have an empty one.
        Some(name) if !call.kind().namespaced => format!("{prefix}/{name}"),
        _ => prefix,
    }
}

/// One open watch.
struct Watching {
    cluster: Arc<dyn Cluster>,
    kind: &'static Kind,
    filter: Filter,
    view: View,
    prefix: String,
    events: Box<dyn Events>,
    /// What is still to be sent of the initial state, and the last key that was.
    initial: Option<(Arc<dyn Snapshot>, Option<String>)>,
    /// The revision of the bookmark that ends the initial state, until it is sent.
    end_of_initial: Option<u64>,
    bookmarks: bool,
    bookmark_every: Duration,
    bookmark_at: Instant,
    /// The newest revision the client knows.
    said: u64,
    until: Instant,
    stopping: CancellationToken,
    ended: bool,
}

/// What a watch waits for.
enum Woken {
    Batch(Result<crate::cluster::Batch, WatchError>),
    Bookmark,
    Over,
}

impl Watching {
    /// The next lines; `None` ends the watch.
    async fn lines(&mut self) -> Option<Bytes> {
        while !self.ended {
            let lines = match self.step().await {
                Ok(lines) => lines,
                Err(status) => {
                    self.ended = true;
                    error_event(&status)
                }
            };
            if !lines.is_empty() {
                return Some(lines.into());
            }
        }
        None
    }

    async fn step(&mut self) -> Result<Vec<u8>, Status> {
        if let Some((snapshot, after)) = self.initial.take() {
            return self.initial_lines(snapshot, after).await;
        }
        if let Some(revision) = self.end_of_initial.take() {
            return Ok(self.bookmark(revision, true));
        }
        let woken = tokio::select! {
            biased;
            () = self.stopping.cancelled() => Woken::Over,
            () = sleep_until(self.until) => Woken::Over,
            batch = self.events.next() => Woken::Batch(batch),
            () = sleep_until(self.bookmark_at), if self.bookmarks => Woken::Bookmark,
        };
        match woken {
            Woken::Batch(Ok(batch)) => {
                let (mut changes, mut objects) = (Vec::new(), Vec::new());
                for event in &batch.events {
                    if let Some((change, object)) = self.seen(event)? {
                        changes.push(change);
                        objects.push(object);
                    }
                }
                open(&*self.cluster, self.kind, &mut objects).await?;
                let mut lines = Vec::new();
                for (change, object) in changes.into_iter().zip(objects) {
                    self.push(change, object, &mut lines);
                }
                Ok(lines)
            }
            Woken::Batch(Err(WatchError::Compacted { floor })) => Err(expired(self.said, floor)),
            Woken::Batch(Err(WatchError::Unavailable(why))) => Err(unavailable(why)),
            Woken::Bookmark => Ok(self.bookmark_if_moved()),
            Woken::Over => {
                self.ended = true;
                Ok(if self.bookmarks { self.bookmark_if_moved() } else { Vec::new() })
            }
        }
    }

    async fn initial_lines(
        &mut self,
        snapshot: Arc<dyn Snapshot>,
        after: Option<String>,
    ) -> Result<Vec<u8>, Status> {
        let chunk = snapshot.range(&self.prefix, after.as_deref(), CHUNK);
        let mut objects = Vec::new();
        for (_, bytes, revision) in &chunk {
            let object = stored(bytes, *revision)?;
            if self.filter.matches(&object) {
                objects.push(object);
            }
        }
        open(&*self.cluster, self.kind, &mut objects).await?;
        let mut lines = Vec::new();
        for object in objects {
            self.push("ADDED", object, &mut lines);
        }
        if let (Some((key, ..)), CHUNK) = (chunk.last(), chunk.len()) {
            self.initial = Some((snapshot, Some(key.to_string())));
        }
        Ok(lines)
    }

    /// What a change means to somebody who sees only the objects that match.
    fn seen(&mut self, event: &Event) -> Result<Option<(&'static str, Value)>, Status> {
        self.said = event.revision;
        let read =
            |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| stored(bytes, event.revision)).transpose();
        let seen = |object: Option<Value>| object.filter(|object| self.filter.matches(object));
        let (before, now) = (seen(read(&event.previous)?), seen(read(&event.value)?));
        Ok(match (before, now) {
            (None, Some(object)) => Some(("ADDED", object)),
            (Some(_), Some(object)) => Some(("MODIFIED", object)),
            (Some(object), None) => Some(("DELETED", object)),
            (None, None) => None,
        })
    }

    fn push(&mut self, event: &str, object: Value, lines: &mut Vec<u8>) {
        let object = self.view.event(self.kind, object, self.cluster.now());
        push_line(&json!({ "type": event, "object": object }), lines);
    }

    fn bookmark_if_moved(&mut self) -> Vec<u8> {
        self.bookmark_at = Instant::now() + self.bookmark_every;
        let revision = self.events.revision();
        if revision > self.said { self.bookmark(revision, false) } else { Vec::new() }
    }

    fn bookmark(&mut self, revision: u64, end_of_initial: bool) -> Vec<u8> {
        self.said = revision;
        let mut object =
            json!({ "kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": {} });
        object::put_resource_version(&mut object, revision);
        if end_of_initial {
            object["metadata"]["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        let object = self.view.bookmark(self.kind, object, self.cluster.now());
        let mut lines = Vec::new();
        push_line(&json!({ "type": "BOOKMARK", "object": object }), &mut lines);
        lines
    }
}

fn push_line(event: &Value, lines: &mut Vec<u8>) {
    serde_json::to_writer(&mut *lines, event).expect("JSON can be written to memory");
    lines.push(b'\n');
}

fn error_event(status: &Status) -> Vec<u8> {
    let mut lines = Vec::new();
    push_line(&json!({ "type": "ERROR", "object": status.to_value() }), &mut lines);
    lines
}

fn one_line(line: Vec<u8>) -> Response<Body> {
    respond::bytes(http::StatusCode::OK, Form::Object.content_type(), line)
}

fn expired(asked: u64, floor: u64) -> Status {
    Status::expired(format!("too old resource version: {asked} ({floor})"))
}
