//! Seals anew what lies sealed by a data key of before, or in clear because an older build wrote it.
//!
//! The leader does it, a bounded batch at a time, each object on the condition that it is as it was read: whoever
//! writes it meanwhile seals it by the key in force anyway.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use skein_api::sealed;
use skein_control::node::authority::TRUST;
use skein_net::ca::{DataKey, DataKeyId};
use skein_raft_store::{
    Change, Expect, Handle, OBJECT_BYTES_MAX, Op, Options, State, TokioRuntime, WatchError,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Vault, seal_object, sealed_by, wrap_all};
use crate::admission::all_done;

/// What one command seals anew, unless a single object is larger.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_OBJECTS: usize = 64;
/// After what could not be done.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// While something was left out.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(300);
const READ_MAX: Duration = Duration::from_secs(5);

/// How far the leader has looked.
#[derive(Default)]
struct Looked {
    /// Everything up to this revision is sealed by this key, or left out.
    at: Option<(DataKeyId, u64)>,
    /// What cannot be sealed anew as it is: place and revision.
    left_out: BTreeSet<(String, u64)>,
}

/// One object that is due: where, its revision, and its value.
type Due = (String, u64, Bytes);

impl Vault {
    /// Seals anew what is due, as the leader, until `stopping`.
    pub(crate) async fn run(self, store: Handle<TokioRuntime>, stopping: CancellationToken) {
        let mut changes = store.on_change();
        let mut looked = Looked::default();
        loop {
            let revision = store.state().revision();
            let watches = (store.watch(sealed::PREFIX, revision), store.watch(TRUST, revision));
            let (mut secrets, mut trust) = match watches {
                (Ok(secrets), Ok(trust)) => (secrets, trust),
                (Err(WatchError::Stopped), _) | (_, Err(WatchError::Stopped)) => return,
                _ => continue,
            };
            let pause = match store.metrics().leads() {
                true => match self.reseal(&store, &mut looked).await {
                    Ok(true) => continue,
                    Ok(false) if looked.left_out.is_empty() => Duration::MAX,
                    Ok(false) => LOOK_AGAIN_AFTER,
                    Err(error) => {
                        debug!(error, "Secrets could not be sealed anew yet");
                        RETRY_AFTER
                    }
                },
                false => {
                    looked = Looked::default();
                    Duration::MAX
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = secrets.next() => {}
                _ = trust.next() => {}
                changed = changes.changed() => if !changed { return },
                () = sleep(pause) => looked = Looked::default(),
            }
        }
    }

    /// Seals one batch; `false`: nothing is due any more.
    async fn reseal(&self, store: &Handle<TokioRuntime>, looked: &mut Looked) -> Result<bool, String> {
        let key = self.inner.authority.data_key_in_force().ok_or("the authorities are not here yet")?;
        let state = store.state();
        let since = looked.at.filter(|(id, _)| *id == key.id()).map_or(0, |(_, revision)| revision);
        let (id, left_out) = (key.id(), std::mem::take(&mut looked.left_out));
        let seen = state.revision();
        let found = tokio::task::spawn_blocking(move || (due(&state, since, id, &left_out), left_out)).await;
        let (batch, left_out) = found.map_err(|error| error.to_string())?;
        looked.left_out = left_out;
        if batch.is_empty() {
            looked.at = Some((key.id(), seen));
            return Ok(false);
        }
        let mut ops = Vec::new();
        for (place, revision, value) in &batch {
            match self.sealed_anew(place, value, &key).await {
                Ok(value) if value.len() > OBJECT_BYTES_MAX => {
                    warn!(place, "a Secret is too large to be sealed and stays as it is; make it smaller");
                    looked.left_out.insert((place.clone(), *revision));
                }
                Ok(value) => ops.push(Op {
                    key: place.as_str().into(),
                    expect: Expect::Revision(*revision),
                    change: Change::Put(value),
                }),
                Err(error) => {
                    warn!(place, error, "a Secret cannot be sealed anew and stays as it is");
                    looked.left_out.insert((place.clone(), *revision));
                }
            }
        }
        let count = ops.len();
        if count > 0 {
            let answer = store.propose(ops, Options::default()).await.map_err(|error| error.to_string())?;
            store.wait_revision(answer.revision, READ_MAX).await;
            if !all_done(&answer) {
                return Err("somebody else was faster, or the store is full".into());
            }
            info!(count, "sealed Secrets by the data key in force");
        }
        Ok(true)
    }

    async fn sealed_anew(&self, place: &str, value: &[u8], key: &DataKey) -> Result<Bytes, String> {
        let mut object = [serde_json::from_slice::<Value>(value).map_err(|error| error.to_string())?];
        self.open(&mut object).await?;
        let [mut object] = object;
        let places = [place.to_owned()];
        let new = wrap_all(key, &places)?;
        seal_object(place, &mut object, &new[0]);
        Ok(object.to_string().into())
    }
}

/// What is not sealed by this key, of what was written after `since`: as much as one command takes.
fn due(state: &State, since: u64, key: DataKeyId, left_out: &BTreeSet<(String, u64)>) -> Vec<Due> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for (place, object) in state.range(sealed::PREFIX, None) {
        if object.mod_rev <= since || left_out.contains(&(place.to_string(), object.mod_rev)) {
            continue;
        }
        // What is no object at all is nothing to seal.
        let Ok(value) = serde_json::from_slice::<Value>(&object.value) else { continue };
        if sealed_by(&value) == Some(key) {
            continue;
        }
        bytes += object.value.len();
        if !batch.is_empty() && (bytes > BATCH_BYTES || batch.len() == BATCH_OBJECTS) {
            break;
        }
        batch.push((place.to_string(), object.mod_rev, object.value.clone()));
    }
    batch
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;
    use skein_net::ca::ClusterCa;

    use super::*;

    const OTHER: &str = "core/configmaps/default/other";

    fn data_key() -> DataKey {
        ClusterCa::create("home", SystemTime::now()).unwrap().data_key()
    }

    fn secret(name: &str, sealed_by: Option<&DataKey>) -> (String, Bytes) {
        let place = format!("{}default/{name}", sealed::PREFIX);
        let metadata = json!({ "name": name, "namespace": "default" });
        let mut object = json!({ "metadata": metadata, "data": { "word": "aHVudGVyMg==" } });
        if let Some(key) = sealed_by {
            seal_object(&place, &mut object, &wrap_all(key, std::slice::from_ref(&place)).unwrap()[0]);
        }
        (place, object.to_string().into())
    }

    fn state(objects: impl IntoIterator<Item = (String, Bytes)>) -> State {
        let put = |(key, value): (String, Bytes)| Op {
            key: key.as_str().into(),
            expect: Expect::Any,
            change: Change::Put(value),
        };
        State::default().next_life(1, objects.into_iter().map(put).collect())
    }

    fn places(batch: &[Due]) -> Vec<&str> {
        batch.iter().map(|(place, ..)| place.rsplit('/').next().unwrap()).collect()
    }

    #[test]
    fn what_is_clear_or_under_another_key_is_due_until_it_is_looked_at_or_left_out() {
        let (before, key) = (data_key(), data_key());
        let all = [secret("clear", None), secret("old", Some(&before)), secret("right", Some(&key))];
        let state = state(all.into_iter().chain([(OTHER.to_owned(), Bytes::from_static(b"{}"))]));
        let none = BTreeSet::new();
        let batch = due(&state, 0, key.id(), &none);
        assert_eq!(places(&batch), ["clear", "old"]);
        assert_eq!(places(&due(&state, 0, before.id(), &none)), ["clear", "right"]);
        assert!(due(&state, state.revision(), key.id(), &none).is_empty());
        let (place, revision, _) = &batch[0];
        let left_out = |revision| BTreeSet::from([(place.clone(), revision)]);
        assert_eq!(places(&due(&state, 0, key.id(), &left_out(*revision))), ["old"]);
        // Written again, it is another value.
        assert_eq!(places(&due(&state, 0, key.id(), &left_out(revision + 1))), ["clear", "old"]);
    }

    #[test]
    fn one_command_takes_so_many_and_at_least_one() {
        let key = data_key();
        let many = state((0..BATCH_OBJECTS + 1).map(|number| secret(&format!("s{number:03}"), None)));
        assert_eq!(due(&many, 0, key.id(), &BTreeSet::new()).len(), BATCH_OBJECTS);
        let large = |name: &str| {
            let (place, value) = secret(name, None);
            let padded = [&value[..], &vec![b' '; BATCH_BYTES]].concat();
            (place, Bytes::from(padded))
        };
        let large = state([large("a"), large("b")]);
        assert_eq!(places(&due(&large, 0, key.id(), &BTreeSet::new())), ["a"]);
    }
}
