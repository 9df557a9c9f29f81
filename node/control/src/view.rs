//! A typed, indexed picture of the map: what every planner looks at.
//!
//! One per node, brought forward by watch events. Objects are decoded here, once, and shared from then
//! on; a clone costs a few pointers. What cannot be decoded is kept aside as a fault, so that one broken
//! object never stops the planning of all others.

use imbl::{OrdMap, OrdSet};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::event::{Notice, Told};
use crate::node::roster::Member;
use crate::resources::{self, Amounts};
use crate::scheduler::apart;

/// An object's key in the map, such as `core/pods/default/web-1`.
pub type Key = Arc<str>;

/// The uid of an object.
pub type Uid = Arc<str>;

/// Indices are sets of (what one looks for, the key of the object that has it).
type Index = OrdSet<(Arc<str>, Key)>;

/// The picture. See the module.
#[derive(Clone, Default)]
pub struct View {
    revision: u64,
    objects: OrdMap<Key, Stored>,
    by_uid: OrdMap<Uid, Key>,
    /// Any owner's uid -> its dependents.
    by_owner: Index,
    by_namespace: Index,
    /// Node name -> pods bound to it.
    by_node: Index,
    used: OrdMap<Arc<str>, Amounts>,
    /// Pods without a node that have not ended.
    unbound: OrdSet<Key>,
    /// Bound pods with required anti-affinity: few, and every new pod must be held against them.
    wary: OrdSet<Key>,
    /// Pods and ReplicaSets without a controller: what may be adopted, or recreated under its own name.
    orphans: OrdSet<Key>,
    /// Events by the time of their last occurrence.
    events: OrdSet<(Timestamp, Key)>,
    faults: OrdMap<Key, Arc<str>>,
}

/// An object with the revision it was read at.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The object.
    pub object: Object,
    /// What a conditional write must name.
    pub revision: u64,
}

/// A decoded object. Kinds that no planner looks into keep their JSON.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is the kind it is named after")]
pub enum Object {
    Pod(Arc<Pod>),
    Node(Arc<Node>),
    ReplicaSet(Arc<ReplicaSet>),
    Deployment(Arc<Deployment>),
    Namespace(Arc<Namespace>),
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
    Service(Arc<Service>),
    ServiceAccount(Arc<ServiceAccount>),
    Member(Arc<Member>),
    /// Only who and when: thousands of Events are kept, and nobody plans by their text.
    Event(Arc<EventMark>),
    Other(Arc<Other>),
}

/// What the view keeps of an Event.
#[derive(Clone, Debug, PartialEq)]
pub struct EventMark {
    /// What is needed to tell the same again.
    pub told: Told,
    /// When it last occurred.
    pub last: Timestamp,
}

/// An object of a kind without a type of its own here.
#[derive(Clone, Debug, PartialEq)]
pub struct Other {
    /// Its metadata, decoded.
    pub metadata: ObjectMeta,
    /// All of it.
    pub json: serde_json::Value,
}

/// A kind that the view decodes into a type.
pub trait Kind: Clone + PartialEq + Sized {
    /// The start of its keys.
    const PREFIX: &'static str;
    /// The object as this kind, if it is one.
    fn of(object: &Object) -> Option<&Arc<Self>>;
    /// The reverse of [`Kind::of`].
    fn into_object(object: Arc<Self>) -> Object;
    /// The object's metadata.
    fn metadata(&self) -> &ObjectMeta;
    /// The object's metadata, to change.
    fn metadata_mut(&mut self) -> &mut ObjectMeta;
}

macro_rules! kinds {
    ($($kind:ident at $prefix:literal),+ $(,)?) => {
        $(impl Kind for $kind {
            const PREFIX: &'static str = $prefix;
            fn of(object: &Object) -> Option<&Arc<Self>> {
                match object { Object::$kind(inner) => Some(inner), _ => None }
            }
            fn into_object(object: Arc<Self>) -> Object { Object::$kind(object) }
            fn metadata(&self) -> &ObjectMeta { &self.metadata }
            fn metadata_mut(&mut self) -> &mut ObjectMeta { &mut self.metadata }
        })+

        impl Object {
            /// The object's metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self {
                    $(Object::$kind(object) => &object.metadata,)+
                    Object::Event(event) => &event.told.metadata,
                    Object::Other(other) => &other.metadata,
                }
            }

            /// The bytes that the map stores. `None` for an Event, of which only a mark is kept.
            pub fn to_bytes(&self) -> Option<Vec<u8>> {
                let bytes = match self {
                    $(Object::$kind(object) => serde_json::to_vec(&**object),)+
                    Object::Event(_) => return None,
                    Object::Other(other) => serde_json::to_vec(&other.json),
                };
                Some(bytes.expect("objects are made of strings, numbers, lists and maps with string keys"))
            }

            fn decode(key: &str, bytes: &[u8]) -> Result<Object, serde_json::Error> {
                $(if key.starts_with($prefix) { return Ok(Object::$kind(Arc::new(typed(bytes)?))); })+
                if key.starts_with(EVENTS) {
                    return Ok(Object::Event(Arc::new(EventMark::of(typed(bytes)?))));
                }
                let json: serde_json::Value = serde_json::from_slice(bytes)?;
                let metadata = json.get("metadata").cloned().unwrap_or_default();
                // An object without metadata has none of what the indices look for; it is kept all the same.
                let metadata: Option<ObjectMeta> = serde_json::from_value(metadata)?;
                let metadata = metadata.unwrap_or_default();
                Ok(Object::Other(Arc::new(Other { metadata, json })))
            }
        }
    };
}

kinds! {
    Pod at "core/pods/",
    Node at "core/nodes/",
    ReplicaSet at "apps/replicasets/",
    Deployment at "apps/deployments/",
    Namespace at "core/namespaces/",
    ConfigMap at "core/configmaps/",
    Secret at "core/secrets/",
    Service at "core/services/",
    ServiceAccount at "core/serviceaccounts/",
    Member at "skein/members/",
}

impl Object {
    /// A notice about the object. `None` for an Event, and for what does not say of which kind it is.
    pub(crate) fn notice(&self, by: &str, reason: &str, message: &str) -> Option<Notice> {
        let json: serde_json::Value = serde_json::from_slice(&self.to_bytes()?).ok()?;
        let text = |field: &str| Some(json[field].as_str()?.to_owned());
        let mut notice = Notice::about::<Pod>(self.metadata(), by, reason, message);
        notice.about.api_version = Some(text("apiVersion")?);
        notice.about.kind = Some(text("kind")?);
        Some(notice)
    }
}

const EVENTS: &str = "core/events/";
/// What nodes keep for themselves; of it planners see the members only.
const OURS: &str = "skein/";

/// What one change touched, so that planners look only there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    key: Option<Key>,
    uid: Option<Uid>,
    /// Owners before and after.
    owners: Vec<Uid>,
}

/// What changed since the last plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Look at everything: a new leader, a wake-up, or a picture from a snapshot.
    All,
    /// Look at these.
    Some {
        /// Objects that came, went, or became different.
        keys: BTreeSet<Key>,
        /// Uids of these objects and of their owners, before and after.
        uids: BTreeSet<Uid>,
    },
}

impl Default for Changed {
    fn default() -> Self {
        Changed::Some { keys: BTreeSet::new(), uids: BTreeSet::new() }
    }
}

impl Changed {
    /// Adds what one [`View::apply`] touched.
    pub fn add(&mut self, touched: Touched) {
        if let Changed::Some { keys, uids } = self {
            keys.extend(touched.key);
            uids.extend(touched.uid);
            uids.extend(touched.owners);
        }
    }

    /// Adds an object to look at again though it is as it was: its time has come.
    pub(crate) fn add_key(&mut self, key: Key) {
        if let Changed::Some { keys, .. } = self {
            keys.insert(key);
        }
    }

    /// Adds all of `other`, for instance of a plan that could not be committed.
    pub fn merge(&mut self, other: Changed) {
        match (&mut *self, other) {
            (Changed::Some { keys, uids }, Changed::Some { keys: more_keys, uids: more_uids }) => {
                keys.extend(more_keys);
                uids.extend(more_uids);
            }
            _ => *self = Changed::All,
        }
    }

    /// True if there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        matches!(self, Changed::Some { keys, .. } if keys.is_empty())
    }

    /// True if any key with this start changed.
    pub(crate) fn any_under(&self, prefix: &str) -> bool {
        match self {
            Changed::All => true,
            Changed::Some { keys, .. } => {
                keys.range(Key::from(prefix)..).next().is_some_and(|key| key.starts_with(prefix))
            }
        }
    }
}

impl View {
    /// Brings the picture forward by one event: the object at `key` is now `value` (`None`: gone), since
    /// `revision`. Says what it touched, for [`Changed::add`].
    ///
    /// Bytes that are no object of their kind leave a fault ([`View::faults`]) and no object.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>, revision: u64) -> Touched {
        self.revision = self.revision.max(revision);
        if key.starts_with(OURS) && !key.starts_with(Member::PREFIX) {
            return Touched::default();
        }
        let key: Key = Arc::from(key);
        match value.map(|bytes| Object::decode(&key, bytes)) {
            Some(Ok(object)) => self.put(key, object, revision),
            Some(Err(error)) => {
                let touched = self.remove(&key);
                self.faults.insert(key, error.to_string().into());
                touched
            }
            None => self.remove(&key),
        }
    }

    /// The newest revision that was applied.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Keys whose bytes could not be decoded, with the reason.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.faults.iter().map(|(key, text)| (&**key, &**text))
    }

    /// Whether there is something at `key` that could not be decoded.
    pub(crate) fn is_faulty(&self, key: &str) -> bool {
        self.faults.contains_key(key)
    }

    /// The object at `key`.
    pub fn stored(&self, key: &str) -> Option<&Stored> {
        self.objects.get(key)
    }

    /// The object at `key`, if it is of this kind.
    pub fn get<K: Kind>(&self, key: &str) -> Option<&Arc<K>> {
        self.objects.get(key).and_then(|stored| K::of(&stored.object))
    }

    /// The object of this kind with this name; `namespace` is empty for kinds without one.
    pub fn named<K: Kind>(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.get(&key_of::<K>(namespace, name))
    }

    /// The key of the object with this uid.
    pub fn key_of_uid(&self, uid: &str) -> Option<&Key> {
        self.by_uid.get(uid)
    }

    /// All objects of a kind, in the order of their keys.
    pub fn all<'a, K: Kind + 'a>(&'a self) -> impl Iterator<Item = (&'a Key, &'a Arc<K>)> {
        self.under(K::PREFIX).filter_map(|(key, stored)| Some((key, K::of(&stored.object)?)))
    }

    /// All objects of a kind in one namespace, in the order of their keys.
    pub fn in_namespace<'a, K: Kind + 'a>(
        &'a self,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<K>)> + use<'a, K> {
        self.under(&format!("{}{namespace}/", K::PREFIX))
            .filter_map(|(key, stored)| Some((key, K::of(&stored.object)?)))
    }

    /// Keys of whatever lives in a namespace, of every kind.
    pub fn keys_in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Key> {
        of_index(&self.by_namespace, namespace)
    }

    /// Keys of whatever names this uid as an owner.
    pub fn dependents(&self, owner: &str) -> impl Iterator<Item = &Key> {
        of_index(&self.by_owner, owner)
    }

    /// Objects of a kind whose controller has this uid.
    pub fn controlled_by<'a, K: Kind + 'a>(
        &'a self,
        controller: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<K>)> {
        of_index(&self.by_owner, controller).filter_map(move |key| {
            let object = self.get::<K>(key)?;
            (crate::meta::controller(object.metadata())?.uid == controller).then_some((key, object))
        })
    }

    /// Pods bound to a node.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = (&Key, &Arc<Pod>)> {
        of_index(&self.by_node, node).filter_map(|key| Some((key, self.get::<Pod>(key)?)))
    }

    /// Names of nodes that pods are bound to, whether the node exists or not.
    pub fn nodes_with_pods(&self) -> impl Iterator<Item = &Arc<str>> {
        self.used.keys()
    }

    /// What the pods bound to a node ask for together; pods that have ended ask for nothing.
    pub fn used_on(&self, node: &str) -> Amounts {
        self.used.get(node).copied().unwrap_or_default()
    }

    /// Pods that wait for a node.
    pub fn unbound(&self) -> impl Iterator<Item = (&Key, &Arc<Pod>)> {
        self.unbound.iter().filter_map(|key| Some((key, self.get::<Pod>(key)?)))
    }

    /// Pods that are bound and have not ended.
    pub(crate) fn all_bound(&self) -> impl Iterator<Item = &Pod> {
        self.by_node
            .iter()
            .filter_map(|(_, key)| Some(&**self.get::<Pod>(key)?))
            .filter(|pod| !crate::meta::has_ended(pod))
    }

    /// Bound pods that keep others away.
    pub(crate) fn wary(&self) -> impl Iterator<Item = &Pod> {
        self.wary.iter().filter_map(|key| Some(&**self.get::<Pod>(key)?))
    }

    /// Objects of a kind in `namespace` that have no controller.
    pub(crate) fn orphans<'a, K: Kind + 'a>(
        &'a self,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<K>)> + use<'a, K> {
        let prefix = format!("{}{namespace}/", K::PREFIX);
        self.orphans
            .range(Key::from(&*prefix)..)
            .take_while(move |key| key.starts_with(&*prefix))
            .filter_map(|key| Some((key, self.get::<K>(key)?)))
    }

    /// Events, oldest first.
    pub(crate) fn events(&self) -> &OrdSet<(Timestamp, Key)> {
        &self.events
    }

    /// All keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }

    fn under(&self, prefix: &str) -> impl Iterator<Item = (&Key, &Stored)> + use<'_> {
        let prefix = prefix.to_owned();
        self.objects.range(Key::from(&*prefix)..).take_while(move |(key, _)| key.starts_with(&*prefix))
    }

    /// Puts a decoded object in place of whatever was at `key`.
    pub(crate) fn put(&mut self, key: Key, object: Object, revision: u64) -> Touched {
        self.faults.remove(&key);
        let mut touched = self.remove(&key);
        touched.note(&key, object.metadata());
        self.index(&key, &object);
        self.objects.insert(key, Stored { object, revision });
        touched
    }

    /// Takes away whatever is at `key`.
    pub(crate) fn remove(&mut self, key: &Key) -> Touched {
        self.faults.remove(key);
        let mut touched = Touched { key: Some(key.clone()), ..Touched::default() };
        if let Some(stored) = self.objects.remove(key) {
            touched.note(key, stored.object.metadata());
            self.unindex(key, &stored.object);
        }
        touched
    }

    fn index(&mut self, key: &Key, object: &Object) {
        for (index, word) in self.words(object) {
            self.of(index).insert((word, key.clone()));
        }
        let metadata = object.metadata();
        if let Some(uid) = &metadata.uid {
            self.by_uid.insert(uid.as_str().into(), key.clone());
        }
        if is_orphan(object) {
            self.orphans.insert(key.clone());
        }
        match object {
            Object::Pod(pod) => {
                self.count(pod, Amounts::plus, key);
                let keeps_away = pod.spec.as_ref().is_some_and(|spec| apart(spec).next().is_some());
                if keeps_away && crate::meta::node_of(pod).is_some() && !crate::meta::has_ended(pod) {
                    self.wary.insert(key.clone());
                }
            }
            Object::Event(event) => drop(self.events.insert((event.last, key.clone()))),
            _ => {}
        }
    }

    fn unindex(&mut self, key: &Key, object: &Object) {
        for (index, word) in self.words(object) {
            self.of(index).remove(&(word, key.clone()));
        }
        if let Some(uid) = &object.metadata().uid
            && self.by_uid.get(&**uid) == Some(key)
        {
            self.by_uid.remove(&**uid);
        }
        self.orphans.remove(key);
        match object {
            Object::Pod(pod) => {
                self.count(pod, Amounts::minus, key);
                self.unbound.remove(key);
                self.wary.remove(key);
            }
            Object::Event(event) => drop(self.events.remove(&(event.last, key.clone()))),
            _ => {}
        }
    }

    /// Notes what a pod uses, and whether it waits for a node.
    fn count(&mut self, pod: &Pod, by: fn(Amounts, Amounts) -> Amounts, key: &Key) {
        if crate::meta::has_ended(pod) {
            return;
        }
        let Some(node) = crate::meta::node_of(pod) else {
            self.unbound.insert(key.clone());
            return;
        };
        let sum = by(self.used_on(node), resources::asked_by(pod));
        if sum.pods == 0 {
            self.used.remove(node);
        } else {
            self.used.insert(node.into(), sum);
        }
    }

    /// The index entries of an object.
    fn words(&self, object: &Object) -> Vec<(Which, Arc<str>)> {
        let metadata = object.metadata();
        let owners: BTreeSet<&str> = owners(metadata).map(|owner| owner.uid.as_str()).collect();
        let mut words: Vec<(Which, Arc<str>)> =
            owners.into_iter().map(|owner| (Which::Owner, owner.into())).collect();
        if let Some(namespace) = metadata.namespace.as_deref().filter(|name| !name.is_empty()) {
            words.push((Which::Namespace, namespace.into()));
        }
        if let Object::Pod(pod) = object
            && let Some(node) = crate::meta::node_of(pod)
        {
            words.push((Which::Node, node.into()));
        }
        words
    }

    fn of(&mut self, index: Which) -> &mut Index {
        match index {
            Which::Owner => &mut self.by_owner,
            Which::Namespace => &mut self.by_namespace,
            Which::Node => &mut self.by_node,
        }
    }
}

/// The key of an object of this kind.
pub fn key_of<K: Kind>(namespace: &str, name: &str) -> Key {
    format!("{}{namespace}/{name}", K::PREFIX).into()
}

/// The indices that are sets of words.
#[derive(Clone, Copy)]
enum Which {
    Owner,
    Namespace,
    Node,
}

impl Touched {
    fn note(&mut self, key: &Key, metadata: &ObjectMeta) {
        self.key = Some(key.clone());
        // A new object under an old name has another uid: both matter.
        if let Some(uid) = metadata.uid.as_deref() {
            match self.uid.as_deref() {
                Some(known) if known != uid => self.owners.push(uid.into()),
                Some(_) => {}
                None => self.uid = Some(uid.into()),
            }
        }
        self.owners.extend(owners(metadata).map(|owner| Uid::from(owner.uid.as_str())));
    }
}

impl EventMark {
    fn of(event: Event) -> EventMark {
        let last = [
            event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0),
            event.last_timestamp.as_ref().map(|time| time.0),
            event.event_time.as_ref().map(|time| time.0),
            event.metadata.creation_timestamp.as_ref().map(|time| time.0),
        ];
        EventMark {
            told: Told::of(&event),
            last: last.into_iter().flatten().next().unwrap_or(Timestamp::MIN),
        }
    }
}

fn is_orphan(object: &Object) -> bool {
    matches!(object, Object::Pod(_) | Object::ReplicaSet(_))
        && crate::meta::controller(object.metadata()).is_none()
}

fn owners(metadata: &ObjectMeta) -> impl Iterator<Item = &OwnerReference> {
    metadata.owner_references.iter().flatten()
}

fn of_index<'a>(index: &'a Index, word: &str) -> impl Iterator<Item = &'a Key> + use<'a> {
    let word: Arc<str> = word.into();
    index.range((word.clone(), Key::from(""))..).take_while(move |(at, _)| *at == word).map(|(_, key)| key)
}

fn typed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(bytes)
}
