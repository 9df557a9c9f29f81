//! A pod's `attach`, which is not served: when that is said.
//!
//! `kubectl run -i` attaches as soon as its pod runs. Told that it cannot, it shows what was printed so far and takes the
//! pod for done: with `--rm` it deletes what still runs. So whoever attaches to a container that has just begun is told
//! when the container has ended, and then sees all that it printed.

use jiff::SignedDuration;
use serde_json::Value;
use skein_api::object;
use skein_api::status::Status;

use crate::api::Api;
use crate::cluster::{Freshness, WatchError};
use crate::commit::unavailable;
use crate::logs;
use crate::path::NotServed;

/// Whoever made the pod attaches within moments. Whoever comes later has not made it for this, and hears at once.
const JUST_BEGUN: SignedDuration = SignedDuration::from_secs(30);

/// Whether the container's life goes on, by the bytes of its pod.
type GoesOn<'a> = &'a (dyn Fn(Option<&[u8]>) -> Result<bool, Status> + Sync);

/// A container between two of its starts.
#[derive(Clone, Debug, PartialEq)]
struct Life {
    pod_uid: String,
    began: String,
    restarts: i64,
}

impl Api {
    /// Returns at once, unless the container has just begun: then when that life of it has ended.
    ///
    /// * `container`: the one that was asked for.
    pub(crate) async fn let_it_end(&self, asked: &NotServed, container: Option<&str>) -> Result<(), Status> {
        let key = asked.kind.key(asked.namespace.as_deref().unwrap_or_default(), &asked.name).to_string();
        let missing = || Status::not_found(asked.kind, &asked.name);
        let (snapshot, _) = self.picture(Freshness::Latest).await?;
        let (bytes, _) = snapshot.get(&key).ok_or_else(missing)?;
        let pod = object::read(&bytes)?;
        let container = logs::container(&pod, container)?;
        let Some(life) = life(&pod, &container).filter(|life| self.has_just_begun(life)) else {
            return Ok(());
        };
        let goes_on = |bytes: Option<&[u8]>| -> Result<bool, Status> {
            let pod = bytes.map(object::read).transpose()?;
            Ok(pod.and_then(|pod| self::life(&pod, &container)).is_some_and(|now| now == life))
        };
        let mut snapshot = snapshot;
        while goes_on(snapshot.get(&key).map(|(bytes, _)| bytes).as_deref())? {
            match self.next_change(&key, snapshot.revision(), &goes_on).await {
                Err(WatchError::Compacted { .. }) => snapshot = self.picture(Freshness::Latest).await?.0,
                Err(WatchError::Unavailable(why)) => return Err(unavailable(why)),
                Ok(()) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Waits for a change of the object after which `goes_on` says no.
    async fn next_change(&self, key: &str, after: u64, goes_on: GoesOn<'_>) -> Result<(), WatchError> {
        let mut events = self.cluster.watch(key, after).await?;
        loop {
            let batch = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return Ok(()),
                batch = events.next() => batch?,
            };
            // Keys of other pods may begin like this one.
            let changes = batch.events.iter().filter(|event| *event.key == *key);
            // What cannot be read says nothing of how it goes on.
            if changes.last().is_some_and(|event| !goes_on(event.value.as_deref()).unwrap_or(false)) {
                return Ok(());
            }
        }
    }

    fn has_just_begun(&self, life: &Life) -> bool {
        let began = life.began.parse::<jiff::Timestamp>();
        began.is_ok_and(|began| self.cluster.now().duration_since(began) < JUST_BEGUN)
    }
}

/// The present life of a container that runs.
fn life(pod: &Value, container: &str) -> Option<Life> {
    let statuses = ["containerStatuses", "initContainerStatuses"];
    let mut statuses = statuses.iter().filter_map(|field| pod["status"][field].as_array()).flatten();
    let status = statuses.find(|status| status["name"] == container)?;
    Some(Life {
        pod_uid: pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        began: status["state"]["running"]["startedAt"].as_str()?.to_owned(),
        restarts: status["restartCount"].as_i64().unwrap_or(0),
    })
}
