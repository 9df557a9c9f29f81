//! Every change of the map: read, decide, and write on the condition that what was read still holds.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use skein_api::object;
use skein_api::sealed;
use skein_api::status::{Reason, Status};
use skein_api::write::{Expect, Refusal, Write, Written};

use crate::api::Api;
use crate::cluster::{Freshness, Snapshot, Unavailable};

/// How often a change is computed anew because somebody else was faster. Upstream's count for patches.
const TRIES: usize = 6;

/// What a change comes to, decided on one picture of the map.
pub(crate) enum Step {
    /// Write this, all or nothing. The first write is that of the object.
    Write {
        /// The object's write first, then what it depends on.
        writes: Vec<Write>,
        /// What the client gets to see, without a resource version.
        object: Value,
    },
    /// The object is as it should be.
    Unchanged {
        /// The object.
        object: Value,
        /// Its revision.
        revision: u64,
    },
}

/// A change that is done.
#[derive(Debug)]
pub(crate) struct Committed {
    /// The object with its resource version.
    pub(crate) object: Value,
}

impl Api {
    /// Carries out what `decide` says.
    ///
    /// The first picture is whatever this node has, which costs no round to the leader: a write holds
    /// only if the picture was right. What cannot be checked by writing (an error, no change at all, a
    /// dry run) is decided on the newest picture instead. `taken` is the answer when somebody else was
    /// faster each time. `changed` is the key of the object that `decide` changes: it is shown opened.
    pub(crate) async fn commit<D>(
        &self,
        dry_run: bool,
        taken: Status,
        changed: Option<&str>,
        mut decide: D,
    ) -> Result<Committed, Status>
    where
        D: FnMut(&dyn Snapshot) -> Result<Step, Status> + Send,
    {
        for attempt in 0..TRIES {
            let checked_by_writing = attempt == 0 && !dry_run;
            let at = if checked_by_writing { Freshness::Any } else { Freshness::Latest };
            let snapshot: Arc<dyn Snapshot> = self.cluster.read(at).await.map_err(unavailable)?;
            let opened = self.opened(snapshot, changed).await?;
            match decide(&opened) {
                Ok(Step::Write { writes, mut object }) if dry_run => {
                    // The version that it was computed from: what differs is what the change would change.
                    if let Some(Expect::Revision(revision)) = writes.first().map(|write| &write.expect) {
                        object::put_resource_version(&mut object, *revision);
                    }
                    return Ok(Committed { object });
                }
                Ok(Step::Write { writes, mut object }) => {
                    if let Some(revision) = self.write(writes).await? {
                        object::put_resource_version(&mut object, revision);
                        return Ok(Committed { object });
                    }
                }
                _ if checked_by_writing => {}
                Ok(Step::Unchanged { mut object, revision }) => {
                    object::put_resource_version(&mut object, revision);
                    return Ok(Committed { object });
                }
                Err(status) => return Err(status),
            }
        }
        Err(taken)
    }

    /// `snapshot`, in which the object at `key` is opened if it is sealed.
    async fn opened(&self, snapshot: Arc<dyn Snapshot>, key: Option<&str>) -> Result<Opened, Status> {
        let sealed = key.filter(|key| sealed::is_due(key)).and_then(|key| Some((key, snapshot.get(key)?)));
        let Some((key, (bytes, revision))) = sealed else {
            return Ok(Opened { snapshot, object: None });
        };
        let mut object = [object::read(&bytes)?];
        self.cluster.open(&mut object).await.map_err(unavailable)?;
        let [object] = &object;
        let object = Some((key.to_owned(), object::encode(object).into(), revision));
        Ok(Opened { snapshot, object })
    }

    /// The revision of the first write; `None` if an expectation did not hold.
    async fn write(&self, writes: Vec<Write>) -> Result<Option<u64>, Status> {
        let outcomes = self.cluster.propose(writes).await.map_err(unavailable)?;
        let refused = outcomes.iter().any(|outcome| {
            matches!(
                outcome,
                Written::Refused(
                    Refusal::Exists { .. } | Refusal::Absent | Refusal::Conflict { .. } | Refusal::NotTried
                )
            )
        });
        match outcomes.first() {
            _ if refused => Ok(None),
            Some(Written::Done { revision } | Written::Unchanged { revision }) => Ok(Some(*revision)),
            _ => Err(Status::internal("the store answered a command without saying what became of it")),
        }
    }
}

/// A picture in which one object is as its owner wrote it.
struct Opened {
    snapshot: Arc<dyn Snapshot>,
    object: Option<(String, Bytes, u64)>,
}

impl Snapshot for Opened {
    fn revision(&self) -> u64 {
        self.snapshot.revision()
    }

    fn get(&self, key: &str) -> Option<(Bytes, u64)> {
        match &self.object {
            Some((known, bytes, revision)) if known == key => Some((bytes.clone(), *revision)),
            _ => self.snapshot.get(key),
        }
    }

    fn range(&self, prefix: &str, after_key: Option<&str>, limit: usize) -> Vec<(Arc<str>, Bytes, u64)> {
        self.snapshot.range(prefix, after_key, limit)
    }
}

/// The cluster cannot answer, in the client's words.
pub(crate) fn unavailable(why: Unavailable) -> Status {
    match why {
        // Both come after a long wait. A client that is told when to try again would do so ten times, in silence,
        // and a write that happened would be refused the second time.
        Unavailable::NoQuorum(text) => Status::unavailable(text),
        Unavailable::Timeout(text) => Status::timeout(text),
        Unavailable::NotYet { asked, current } => Status::version_too_large(asked, current),
        Unavailable::Full(text) => Status::new(Reason::InsufficientStorage, text),
    }
}
