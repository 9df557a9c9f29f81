//! Secrets are sealed before they are proposed, and opened where somebody may see them.
//!
//! Each has a key of its own, which lies beside it, wrapped by the cluster's data key. The data key comes with the
//! authorities ([`crate::authority`]): who holds those wraps and unwraps, everybody else asks one of them, for the keys
//! of single objects only. Those are remembered in memory; those of the Secrets that pods here use are kept on the disk
//! as well, sealed to this node's key, so that these pods start while no voter can be reached (design/0014).

mod envelope;
mod reseal;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use rand::random;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skein_api::sealed;
use skein_api::write::{Change, Write};
use skein_apiserver::cluster::Unavailable;
use skein_control::container;
use skein_control::view::{PodsOf, View};
use skein_net::ca::{DataKey, DataKeyId};
use skein_net::identity::Identity;
use skein_raft_store::{OBJECT_BYTES_MAX, State};
use tokio::time::timeout;
use tracing::warn;

pub(crate) use envelope::ObjectKey;

use crate::authority::Authority;
use crate::home::Home;
use crate::report;
use crate::wire::{Answer, Ask};

/// How long somebody waits for a voter that opens or seals.
const ASK_MAX: Duration = Duration::from_secs(5);
/// Keys asked for at a time.
pub(crate) const KEYS_MAX: usize = 512;
/// The longest place of an object that a key is made for: namespace and name have 63 and 253 characters.
const PLACE_BYTES_MAX: usize = 512;
/// Keys remembered in memory.
const REMEMBERED_MAX: usize = 8192;

/// A wrapped key and the place of the object that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wrapped {
    /// The object's key in the map.
    pub(crate) place: String,
    /// Opaque without the data key.
    pub(crate) bytes: Vec<u8>,
}

/// A key to seal an object with: see [`Ask::NewKeys`].
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct NewKey {
    key: ObjectKey,
    wrapped: Vec<u8>,
}

/// Of each Secret that a pod here uses: the key it was last opened with, and how that lies in its envelope.
type Kept = BTreeMap<String, (Vec<u8>, ObjectKey)>;

/// See the module. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Vault {
    inner: Arc<Inner>,
}

struct Inner {
    authority: Authority,
    home: Home,
    identity: Identity,
    remembered: Mutex<HashMap<Vec<u8>, ObjectKey>>,
    kept: Mutex<Kept>,
    /// The disk has not all that is kept.
    behind: Mutex<bool>,
}

impl Vault {
    pub(crate) fn new(authority: Authority, home: Home, identity: Identity) -> Vault {
        // What is lost of it is asked for again.
        let kept = home.pods_keys(&identity).unwrap_or_else(|error| {
            warn!(error = %report::Chain(&error), "the keys of pods' Secrets are not readable and are asked for again");
            None
        });
        let kept = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let (remembered, kept, behind) = (Mutex::default(), Mutex::new(kept), Mutex::default());
        Vault { inner: Arc::new(Inner { authority, home, identity, remembered, kept, behind }) }
    }

    /// Seals what is to be sealed of these writes; what is sealed already stays as it is.
    pub(crate) async fn seal(&self, writes: &mut [Write]) -> Result<(), Unavailable> {
        let mut clear = Vec::new();
        for write in writes.iter_mut().filter(|write| sealed::is_due(&write.key)) {
            let Change::Put(bytes) = &mut write.change else { continue };
            let object: Value = serde_json::from_slice(bytes).expect("the API writes objects");
            if sealed::envelope(&object).is_none() {
                clear.push((write.key.clone(), object, bytes));
            }
        }
        if clear.is_empty() {
            return Ok(());
        }
        let places = clear.iter().map(|(place, ..)| place.clone()).collect();
        let keys = self.new_keys(places).await.map_err(|error| {
            Unavailable::NoQuorum(format!(
                "nothing was written: Secrets are sealed with a key that voters hold, and none could be asked for it \
                 ({error}); see: skein status"
            ))
        })?;
        for ((place, mut object, bytes), key) in clear.into_iter().zip(keys) {
            seal_object(&place, &mut object, &key);
            *bytes = object.to_string().into_bytes();
            if bytes.len() > OBJECT_BYTES_MAX {
                return Err(Unavailable::Full(format!(
                    "nothing was written: sealed, the Secret has {} bytes, and an object may have {OBJECT_BYTES_MAX}; \
                     make its values or annotations smaller",
                    bytes.len()
                )));
            }
        }
        Ok(())
    }

    /// Opens those of these objects that are sealed.
    pub(crate) async fn open(&self, objects: &mut [Value]) -> Result<(), String> {
        self.open_all(objects).await.map(drop)
    }

    /// The same; returns by which keys.
    async fn open_all(&self, objects: &mut [Value]) -> Result<Kept, String> {
        let sealed = objects.iter_mut().filter_map(|object| {
            let envelope = sealed::envelope(object)?;
            Some((place_of(object), object, envelope))
        });
        let sealed: Vec<_> = sealed.collect();
        let mut wrapped = Vec::with_capacity(sealed.len());
        for (place, _, envelope) in &sealed {
            let bytes = envelope::wrapped(envelope).map_err(|error| damaged(place, &error))?;
            wrapped.push(Wrapped { place: place.clone(), bytes: bytes.to_vec() });
        }
        let keys = self.keys(&wrapped).await.map_err(|error| {
            format!("a Secret's value is sealed, and no voter could be asked to open it ({error}); see: skein status")
        })?;
        let mut opened = Kept::new();
        for (((place, object, envelope), key), Wrapped { bytes, .. }) in
            sealed.into_iter().zip(keys).zip(wrapped)
        {
            let taken = envelope::open(&place, &key, &envelope).map_err(|error| damaged(&place, &error))?;
            sealed::restore(object, &taken).map_err(|error| damaged(&place, &error))?;
            opened.insert(place, (bytes, key));
        }
        Ok(opened)
    }

    /// Opens in `view` the Secrets that a pod of this node uses, and keeps what that takes for when no voter is there.
    pub(crate) async fn open_for(&self, view: &mut View, pod: &Pod) -> Result<(), String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let names = container::secrets(view, pod);
        let held = names.iter().filter_map(|name| view.named::<Secret>(namespace, name));
        let held = held.filter_map(|secret| serde_json::to_value(&**secret).ok());
        let mut objects: Vec<Value> = held.filter(|object| sealed::envelope(object).is_some()).collect();
        if objects.is_empty() {
            return Ok(());
        }
        let opened = self.open_all(&mut objects).await?;
        self.keep(opened, view).await;
        for object in objects {
            let place = place_of(&object);
            let revision = view.stored(&place).map_or(0, |stored| stored.revision);
            view.apply(&place, Some(object.to_string().as_bytes()), revision);
        }
        Ok(())
    }

    /// Keeps what opens the Secrets that these pods use, as they are now: they may be sealed by other keys than when
    /// the pods began.
    pub(crate) async fn learn(&self, view: &View, pods: &PodsOf) -> Result<(), String> {
        let mut used = BTreeMap::new();
        for (_, pod) in pods.iter() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for name in container::secrets(view, pod) {
                let secret = view.named::<Secret>(namespace, &name);
                let envelope = secret.and_then(|secret| secret.data.as_ref()?.get(sealed::ENTRY));
                if let Some(Ok(bytes)) = envelope.map(|envelope| envelope::wrapped(&envelope.0)) {
                    used.insert(format!("{}{namespace}/{name}", sealed::PREFIX), bytes.to_vec());
                }
            }
        }
        let used: Vec<Wrapped> = used.into_iter().map(|(place, bytes)| Wrapped { place, bytes }).collect();
        let keys = self.keys(&used).await?;
        let opened = used.into_iter().zip(keys).map(|(Wrapped { place, bytes }, key)| (place, (bytes, key)));
        self.keep(opened.collect(), view).await;
        Ok(())
    }

    /// Keeps the keys of Secrets that pods use, and none of Secrets that are gone.
    async fn keep(&self, opened: Kept, view: &View) {
        let this = self.clone();
        let there: BTreeSet<String> =
            self.kept().keys().filter(|place| view.stored(place).is_some()).cloned().collect();
        let kept = tokio::task::spawn_blocking(move || {
            // One after the other, so that an older list never replaces a newer one; nobody who reads waits for a disk.
            let mut behind = this.inner.behind.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = {
                let mut kept = this.kept();
                let before = kept.clone();
                kept.retain(|place, _| there.contains(place));
                kept.extend(opened);
                *behind |= *kept != before;
                serde_json::to_vec(&*kept).expect("plain data with texts as keys")
            };
            if *behind {
                this.inner.home.set_pods_keys(&this.inner.identity, &bytes)?;
                *behind = false;
            }
            Ok::<_, crate::home::Error>(())
        });
        if let Ok(Err(error)) = kept.await {
            warn!(error = %report::Chain(&error), "could not keep the keys of pods' Secrets for when no voter is there");
        }
    }

    /// The keys of these objects, in their order.
    async fn keys(&self, wrapped: &[Wrapped]) -> Answer<Vec<ObjectKey>> {
        let known = |one: &Wrapped| {
            let remembered = self.remembered().get(&one.bytes).copied();
            remembered.or_else(|| {
                let kept = self.kept();
                kept.get(&one.place).filter(|(bytes, _)| *bytes == one.bytes).map(|(_, key)| *key)
            })
        };
        let mut found: Vec<Option<ObjectKey>> = wrapped.iter().map(known).collect();
        let missing: Vec<usize> = (0..found.len()).filter(|at| found[*at].is_none()).collect();
        for some in missing.chunks(KEYS_MAX) {
            let asked: Vec<Wrapped> = some.iter().map(|at| wrapped[*at].clone()).collect();
            let ask = Ask::OpenKeys(asked.clone());
            let keys = self.ask(&ask, |authority, me| authority.answer_open(me, &asked)).await?;
            if keys.len() != asked.len() {
                return Err("it answered something else".into());
            }
            for ((at, key), Wrapped { bytes, .. }) in some.iter().zip(keys).zip(asked) {
                found[*at] = Some(key);
                let mut remembered = self.remembered();
                if remembered.len() >= REMEMBERED_MAX {
                    remembered.clear();
                }
                remembered.insert(bytes, key);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// A key for each of these places.
    async fn new_keys(&self, places: Vec<String>) -> Answer<Vec<NewKey>> {
        let ask = Ask::NewKeys(places.clone());
        let keys = self.ask(&ask, |authority, me| authority.answer_new_keys(me, &places)).await?;
        if keys.len() == places.len() { Ok(keys) } else { Err("it answered something else".into()) }
    }

    async fn ask<T: serde::de::DeserializeOwned + Send>(
        &self,
        ask: &Ask,
        here: impl FnOnce(&Authority, skein_net::identity::NodeId) -> Answer<T>,
    ) -> Answer<T> {
        let asked = timeout(ASK_MAX, self.inner.authority.ask_any(ask, here)).await;
        asked.unwrap_or_else(|_| Err(format!("no answer in {} s", ASK_MAX.as_secs())))
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<Vec<u8>, ObjectKey>> {
        self.inner.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys of these objects, by whoever has the data keys.
pub(crate) fn unwrap_all(data_keys: &[DataKey], wrapped: &[Wrapped]) -> Answer<Vec<ObjectKey>> {
    if wrapped.len() > KEYS_MAX {
        return Err(format!("at most {KEYS_MAX} keys are opened at a time"));
    }
    let one = |wrapped: &Wrapped| match envelope::unwrap(data_keys, &wrapped.place, &wrapped.bytes) {
        Some(opened) => opened.map_err(|error| damaged(&wrapped.place, &error)),
        None => Err("this node does not have the data key that it is sealed by (yet)".into()),
    };
    wrapped.iter().map(one).collect()
}

/// A new key for each of these places.
pub(crate) fn wrap_all(data_key: &DataKey, places: &[String]) -> Answer<Vec<NewKey>> {
    if places.len() > KEYS_MAX {
        return Err(format!("at most {KEYS_MAX} keys are made at a time"));
    }
    let one = |place: &String| {
        if !sealed::is_due(place) || place.len() > PLACE_BYTES_MAX {
            return Err(format!("nothing at {place:.64?} is sealed"));
        }
        let key = random();
        Ok(NewKey { key, wrapped: envelope::wrap(data_key, place, &key, random()) })
    };
    places.iter().map(one).collect()
}

fn seal_object(place: &str, object: &mut Value, key: &NewKey) {
    let taken = sealed::take(object);
    let envelope = envelope::seal(place, &key.key, &key.wrapped, taken, random());
    sealed::put_envelope(object, &envelope);
}

/// By which data key an object is sealed, if it is.
pub(crate) fn sealed_by(object: &Value) -> Option<DataKeyId> {
    envelope::data_key_of(envelope::wrapped(&sealed::envelope(object)?).ok()?)
}

/// By which data keys there is something sealed.
pub(crate) fn data_keys_in_use(state: &State) -> BTreeSet<DataKeyId> {
    let objects =
        state.range(sealed::PREFIX, None).map(|(_, object)| serde_json::from_slice(&object.value).ok());
    objects.filter_map(|object| sealed_by(&object?)).collect()
}

/// Where an object lies in the map.
fn place_of(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}{}/{}", sealed::PREFIX, text("namespace"), text("name"))
}

fn damaged(place: &str, error: &dyn std::error::Error) -> String {
    let name = place.strip_prefix(sealed::PREFIX).unwrap_or(place);
    format!("the value of the Secret {name} cannot be opened: {error}; delete it and create it again")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;
    use skein_net::ca::ClusterCa;

    use super::*;

    const PLACE: &str = "core/secrets/default/db";

    #[test]
    fn who_has_the_data_keys_opens_what_they_sealed_within_bounds() {
        let before = ClusterCa::create("home", SystemTime::now()).unwrap();
        let after =
            ClusterCa::anew(before.cluster(), SystemTime::now()).unwrap().following(&before, |_| false);
        let secret = json!({ "metadata": { "name": "db", "namespace": "default" }, "data": { "word": "aHVudGVyMg==" } });
        let new = wrap_all(&before.data_key(), &[PLACE.to_owned()]).unwrap().remove(0);
        let mut object = secret.clone();
        seal_object(PLACE, &mut object, &new);
        assert_eq!((sealed_by(&object), place_of(&object)), (Some(before.data_key().id()), PLACE.to_owned()));
        assert_eq!(sealed_by(&secret), None);

        let wrapped = Wrapped { place: PLACE.into(), bytes: new.wrapped.clone() };
        for authority in [&before, &after] {
            let keys = unwrap_all(&authority.data_keys(), std::slice::from_ref(&wrapped)).unwrap();
            let taken = envelope::open(PLACE, &keys[0], &sealed::envelope(&object).unwrap()).unwrap();
            let mut opened = object.clone();
            sealed::restore(&mut opened, &taken).unwrap();
            assert_eq!(opened, secret);
        }
        let stranger = ClusterCa::create("home", SystemTime::now()).unwrap();
        assert!(
            unwrap_all(&stranger.data_keys(), std::slice::from_ref(&wrapped)).unwrap_err().contains("(yet)")
        );
        let elsewhere = Wrapped { place: "core/secrets/other/db".into(), ..wrapped.clone() };
        let refused = unwrap_all(&before.data_keys(), &[elsewhere]).unwrap_err();
        assert!(refused.contains("other/db") && refused.contains("belongs elsewhere"), "{refused}");

        assert!(unwrap_all(&before.data_keys(), &vec![wrapped; KEYS_MAX + 1]).is_err());
        let wrap = |place: &str, count| wrap_all(&before.data_key(), &vec![place.to_owned(); count]);
        assert!(wrap(PLACE, KEYS_MAX).is_ok() && wrap(PLACE, KEYS_MAX + 1).is_err());
        assert!(wrap("core/configmaps/default/db", 1).is_err());
        assert!(wrap(&format!("{PLACE}{}", "x".repeat(PLACE_BYTES_MAX)), 1).is_err());
    }
}
