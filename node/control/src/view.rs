//! A typed, indexed picture of the map: what every planner looks at.
//!
//! One per node, brought forward by watch events. Objects are decoded here, once, and shared from then
//! on; a clone costs a few pointers. What cannot be decoded is kept aside as a fault, so that one broken
//! object never stops the planning of all others.

mod siblings;

pub(crate) use siblings::{Siblings, Standing};

use imbl::{OrdMap, OrdSet};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, Node, Pod, PodAffinityTerm, Secret, Service, ServiceAccount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use crate::event::{Notice, Told};
use crate::node::authority::{Authorities, TRUST};
use crate::node::roster::Member;
use crate::resources::{self, Amounts};
use crate::scheduler::{apart, host_ports};

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
    by_owner: OrdMap<Uid, OrdSet<Key>>,
    by_namespace: Index,
    /// Node name -> pods bound to it.
    by_node: OrdMap<Arc<str>, PodsOf>,
    /// Uid of a controller -> its pods.
    by_controller: OrdMap<Uid, PodsOf>,
    /// The same pods, counted.
    siblings: OrdMap<Uid, Siblings>,
    /// Label of a pod, as `namespace/key=value` -> the pods that have it.
    by_label: Index,
    /// The same of the pods without a controller.
    orphans_by_label: Index,
    /// Port of a machine, as `node/protocol/port` -> the pod that has it.
    by_host_port: Index,
    used: OrdMap<Arc<str>, Amounts>,
    /// What each node offers.
    offered: OrdMap<Arc<str>, Amounts>,
    /// Pods without a node that have not ended, by what they ask for ([`like`]).
    unbound: OrdMap<Arc<str>, Alike>,
    /// What bound pods keep away from themselves. Thousands of pods have few different such terms.
    apart: OrdMap<Arc<str>, Apart>,
    /// Pods and ReplicaSets without a controller: what may be adopted, or recreated under its own name.
    orphans: OrdSet<Key>,
    /// Events by the time of their last occurrence.
    events: OrdSet<(Timestamp, Key)>,
    faults: OrdMap<Key, Arc<str>>,
}

/// The pods bound to one node or made by one controller, as they were when this was taken.
#[derive(Clone, Default)]
pub struct PodsOf(OrdMap<Key, Arc<Pod>>);

impl PodsOf {
    /// Whether these are the pods of `other`, and none has changed. One comparison: it may say no where a new picture
    /// was made from the same map.
    pub fn is_same(&self, other: &PodsOf) -> bool {
        self.0.ptr_eq(&other.0)
    }

    /// In the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<Pod>)> {
        self.0.iter()
    }
}

/// Pods that wait for a node and ask for the same, so that what keeps one of them from all nodes keeps all of them:
/// thousands of pods wait for few different reasons.
#[derive(Clone, Default)]
pub(crate) struct Alike {
    /// What each was last told to wait for; no words for one that was told nothing yet. Oldest first.
    by_reason: OrdMap<Option<Arc<str>>, OrdSet<Waiting>>,
}

/// When a pod that waits was made, and its key: the older one comes first.
pub(crate) type Waiting = (Timestamp, Key);

impl Alike {
    /// The first of them after `than`, or of all, without those that have heard `reason`.
    pub(crate) fn next(&self, than: Option<&Waiting>, reason: Option<&str>) -> Option<&Waiting> {
        let others =
            self.by_reason.iter().filter(|(heard, _)| reason.is_none() || heard.as_deref() != reason);
        let next = others.filter_map(|(_, pods)| match than {
            Some(than) => {
                let behind: (Bound<&Waiting>, Bound<&Waiting>) = (Bound::Excluded(than), Bound::Unbounded);
                pods.range::<_, Waiting>(behind).next()
            }
            None => pods.get_min(),
        });
        next.min()
    }

    /// Adds a pod.
    pub(crate) fn insert(&mut self, key: &Key, pod: &Pod) {
        let heard = told_to_wait_for(pod).map(Arc::from);
        self.by_reason.entry(heard).or_default().insert((crate::meta::created(&pod.metadata), key.clone()));
    }

    fn remove(&mut self, key: &Key, pod: &Pod) {
        let heard = told_to_wait_for(pod).map(Arc::from);
        if let Some(pods) = self.by_reason.get_mut(&heard) {
            pods.remove(&(crate::meta::created(&pod.metadata), key.clone()));
            if pods.is_empty() {
                self.by_reason.remove(&heard);
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Key> {
        self.by_reason.values().flatten().map(|(_, key)| key)
    }
}

/// A required anti-affinity term of bound pods.
#[derive(Clone)]
pub(crate) struct Apart {
    /// The namespace of the pods that have it.
    pub(crate) namespace: Arc<str>,
    pub(crate) term: Arc<PodAffinityTerm>,
    /// How many pods on each node have it.
    nodes: OrdMap<Arc<str>, usize>,
}

impl Apart {
    /// The nodes that have such pods.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(|name| &**name)
    }
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
    Authorities(Arc<Authorities>),
    /// Only who and when: thousands of Events are kept, and nobody plans by their text.
    Event(Arc<EventMark>),
    Other(Arc<Other>),
}

/// What the view keeps of an Event.
#[derive(Clone, Debug, PartialEq)]
pub struct EventMark {
    /// What is needed to tell the same again.
    pub told: Told,
    /// When it was last written: from then on it is kept for a while.
    pub written: Timestamp,
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
    Authorities at "skein/authorities/",
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
/// What nodes keep for themselves; of it planners see who is a member, and which authorities are in force.
const OURS: &str = "skein/";

/// What one change touched, so that planners look only there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    key: Option<Key>,
    uid: Option<Uid>,
    /// Owners before and after.
    owners: Vec<Uid>,
    /// Pods that wait may fit now, or for other reasons not: what some node holds is not what it was.
    moves: bool,
}

impl Touched {
    /// Uids of the owners before and after.
    pub(crate) fn owners(&self) -> &[Uid] {
        &self.owners
    }
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
        /// Some node holds other pods than before, or the same with other labels or requests.
        moves: bool,
    },
}

impl Default for Changed {
    fn default() -> Self {
        Changed::Some { keys: BTreeSet::new(), uids: BTreeSet::new(), moves: false }
    }
}

impl Changed {
    /// Adds what one [`View::apply`] touched.
    pub fn add(&mut self, touched: Touched) {
        if let Changed::Some { keys, uids, moves } = self {
            keys.extend(touched.key);
            uids.extend(touched.uid);
            uids.extend(touched.owners);
            *moves |= touched.moves;
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
            (
                Changed::Some { keys, uids, moves },
                Changed::Some { keys: more_keys, uids: more_uids, moves: more_moves },
            ) => {
                keys.extend(more_keys);
                uids.extend(more_uids);
                *moves |= more_moves;
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
        self.apply_written(key, value, revision, None)
    }

    /// The same where it is known when it was `written`. Else that is taken from what the object says of itself.
    pub fn apply_written(
        &mut self,
        key: &str,
        value: Option<&[u8]>,
        revision: u64,
        written: Option<Timestamp>,
    ) -> Touched {
        self.revision = self.revision.max(revision);
        if key.starts_with(OURS) && !key.starts_with(Member::PREFIX) && key != TRUST {
            return Touched::default();
        }
        let key: Key = Arc::from(key);
        match value.map(|bytes| Object::decode(&key, bytes)) {
            Some(Ok(mut object)) => {
                if let (Object::Event(mark), Some(written)) = (&mut object, written) {
                    Arc::make_mut(mark).written = written;
                }
                self.put(key, object, revision)
            }
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
        self.by_owner.get(owner).into_iter().flatten()
    }

    /// How many of them there are. O(1).
    pub(crate) fn dependents_count(&self, owner: &str) -> usize {
        self.by_owner.get(owner).map_or(0, OrdSet::len)
    }

    /// Objects of a kind whose controller has this uid.
    pub fn controlled_by<'a, K: Kind + 'a>(
        &'a self,
        controller: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<K>)> {
        self.dependents(controller).filter_map(move |key| {
            let object = self.get::<K>(key)?;
            (crate::meta::controller(object.metadata())?.uid == controller).then_some((key, object))
        })
    }

    /// Pods bound to a node.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = (&Key, &Arc<Pod>)> {
        self.by_node.get(node).into_iter().flat_map(PodsOf::iter)
    }

    /// The same to keep, for whoever wants to know later whether they have changed. O(1).
    pub fn pods_of(&self, node: &str) -> PodsOf {
        self.by_node.get(node).cloned().unwrap_or_default()
    }

    /// Names of nodes that pods are bound to, whether the node exists or not.
    pub fn nodes_with_pods(&self) -> impl Iterator<Item = &Arc<str>> {
        self.used.keys()
    }

    /// Pods whose controller has this uid.
    pub fn pods_controlled_by(&self, controller: &str) -> impl Iterator<Item = (&Key, &Arc<Pod>)> {
        self.by_controller.get(controller).into_iter().flat_map(PodsOf::iter)
    }

    /// The same pods, counted.
    pub(crate) fn siblings(&self, controller: &str) -> Option<&Siblings> {
        self.siblings.get(controller)
    }

    /// What the pods bound to a node ask for together; pods that have ended ask for nothing.
    pub fn used_on(&self, node: &str) -> Amounts {
        self.used.get(node).copied().unwrap_or_default()
    }

    /// Pods that wait for a node.
    pub fn unbound(&self) -> impl Iterator<Item = (&Key, &Arc<Pod>)> {
        self.unbound.values().flat_map(Alike::iter).filter_map(|key| Some((key, self.get::<Pod>(key)?)))
    }

    /// The same, those together that ask for the same.
    pub(crate) fn alike(&self) -> impl Iterator<Item = &Alike> {
        self.unbound.values()
    }

    /// What a node offers to pods.
    pub(crate) fn offered_by(&self, node: &str) -> Amounts {
        self.offered.get(node).copied().unwrap_or_default()
    }

    /// Whether a pod on this node holds this port of the machine.
    pub(crate) fn host_port_is_taken(&self, node: &str, port: i32, protocol: &str) -> bool {
        of_index(&self.by_host_port, &host_port(node, port, protocol)).next().is_some()
    }

    /// What bound pods keep away from themselves.
    pub(crate) fn apart(&self) -> impl Iterator<Item = &Apart> {
        self.apart.values()
    }

    /// The pods of a namespace that `selector` picks; an empty one picks nothing.
    ///
    /// Cost: the pods that fulfil the rarest of its requirements, or all of the namespace where it only says which
    /// labels must not be there.
    pub fn pods_like<'a>(
        &'a self,
        namespace: &str,
        selector: &'a LabelSelector,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Pod>)> + use<'a> {
        let pod = |key: &'a Key| Some((key, self.get::<Pod>(key)?));
        let found = labelled(&self.by_label, namespace, selector);
        let found =
            found.unwrap_or_else(|| self.in_namespace::<Pod>(namespace).map(|(key, _)| key).collect());
        let found = found.into_iter().filter_map(pod);
        found.filter(|(_, pod)| crate::meta::selects(selector, pod.metadata.labels.as_ref()))
    }

    /// The pods of a namespace that `selector` picks and that have no controller. Cost: as of [`View::pods_like`], among
    /// these.
    pub(crate) fn orphans_like(
        &self,
        namespace: &str,
        selector: &LabelSelector,
    ) -> impl Iterator<Item = (&Key, &Arc<Pod>)> {
        let found = labelled(&self.orphans_by_label, namespace, selector);
        let found = found.unwrap_or_else(|| self.orphans::<Pod>(namespace).map(|(key, _)| key).collect());
        let found = found.into_iter().filter_map(|key| Some((key, self.get::<Pod>(key)?)));
        found.filter(|(_, pod)| crate::meta::selects(selector, pod.metadata.labels.as_ref()))
    }

    /// Keys of all objects whose key begins so.
    pub(crate) fn keys_under(&self, prefix: &str) -> impl Iterator<Item = &Key> {
        self.under(prefix).map(|(key, _)| key)
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
        let mut touched = Touched { key: Some(key.clone()), ..Touched::default() };
        let before = self.objects.get(&key).map(|stored| stored.object.clone());
        touched.note(before.as_ref().map(Object::metadata));
        touched.note(Some(object.metadata()));
        // Most writes say what a pod does, and no index knows about that.
        if before.as_ref().is_none_or(|before| !is_indexed_alike(before, &object)) {
            touched.moves = before.as_ref().is_some_and(is_on_a_node) || is_on_a_node(&object);
            if let Some(before) = &before {
                self.unindex(&key, before);
            }
            self.index(&key, &object);
        } else if let (Some(Object::Pod(before)), Object::Pod(pod)) = (&before, &object) {
            self.keep_pod(&key, pod);
            if !siblings::count_alike(before, pod) {
                self.count_no_more(&key, before);
                self.count(&key, pod);
            }
        }
        self.objects.insert(key, Stored { object, revision });
        touched
    }

    /// Takes away whatever is at `key`.
    pub(crate) fn remove(&mut self, key: &Key) -> Touched {
        self.faults.remove(key);
        let mut touched = Touched { key: Some(key.clone()), ..Touched::default() };
        if let Some(Stored { object, .. }) = self.objects.remove(key) {
            touched.note(Some(object.metadata()));
            touched.moves = is_on_a_node(&object);
            self.unindex(key, &object);
        }
        touched
    }

    fn index(&mut self, key: &Key, object: &Object) {
        for (index, word) in words(object) {
            self.of(index).insert((word, key.clone()));
        }
        let metadata = object.metadata();
        if let Some(uid) = &metadata.uid {
            self.by_uid.insert(uid.as_str().into(), key.clone());
        }
        if is_orphan(object) {
            self.orphans.insert(key.clone());
        }
        for owner in owner_uids(metadata) {
            self.by_owner.entry(owner.into()).or_default().insert(key.clone());
        }
        if let Object::Pod(pod) = object {
            self.keep_pod(key, pod);
            self.count(key, pod);
        }
        match object {
            Object::Pod(pod) if crate::meta::has_ended(pod) => {}
            Object::Pod(pod) => match crate::meta::node_of(pod) {
                Some(node) => {
                    self.use_node(node, self.used_on(node).plus(resources::asked_by(pod)));
                    self.keep_apart(pod, node);
                }
                None => self.unbound.entry(like(pod)).or_default().insert(key, pod),
            },
            Object::Node(node) => {
                let name = crate::meta::name(&node.metadata);
                self.offered.insert(name.into(), resources::offered_by(node));
            }
            Object::Event(event) => drop(self.events.insert((event.written, key.clone()))),
            _ => {}
        }
    }

    fn unindex(&mut self, key: &Key, object: &Object) {
        for (index, word) in words(object) {
            self.of(index).remove(&(word, key.clone()));
        }
        if let Some(uid) = &object.metadata().uid
            && self.by_uid.get(&**uid) == Some(key)
        {
            self.by_uid.remove(&**uid);
        }
        self.orphans.remove(key);
        for owner in owner_uids(object.metadata()) {
            let Some(dependents) = self.by_owner.get_mut(owner) else { continue };
            dependents.remove(key);
            if dependents.is_empty() {
                self.by_owner.remove(owner);
            }
        }
        if let Object::Pod(pod) = object {
            self.drop_pod(key, pod);
            self.count_no_more(key, pod);
        }
        match object {
            Object::Pod(pod) if crate::meta::has_ended(pod) => {}
            Object::Pod(pod) => match crate::meta::node_of(pod) {
                Some(node) => {
                    self.use_node(node, self.used_on(node).minus(resources::asked_by(pod)));
                    self.keep_apart_no_more(pod, node);
                }
                None => self.waits_no_more(key, pod),
            },
            Object::Node(node) => drop(self.offered.remove(crate::meta::name(&node.metadata))),
            Object::Event(event) => drop(self.events.remove(&(event.written, key.clone()))),
            _ => {}
        }
    }

    fn keep_pod(&mut self, key: &Key, pod: &Arc<Pod>) {
        let node = crate::meta::node_of(pod).map(|node| (&mut self.by_node, node));
        let owner = crate::meta::controller(&pod.metadata);
        let owner = owner.map(|owner| (&mut self.by_controller, owner.uid.as_str()));
        for (index, word) in node.into_iter().chain(owner) {
            match index.get_mut(word) {
                Some(pods) => drop(pods.0.insert(key.clone(), pod.clone())),
                None => drop(index.insert(word.into(), PodsOf(OrdMap::unit(key.clone(), pod.clone())))),
            }
        }
    }

    fn drop_pod(&mut self, key: &Key, pod: &Pod) {
        let node = crate::meta::node_of(pod).map(|node| (&mut self.by_node, node));
        let owner = crate::meta::controller(&pod.metadata);
        let owner = owner.map(|owner| (&mut self.by_controller, owner.uid.as_str()));
        for (index, word) in node.into_iter().chain(owner) {
            let Some(pods) = index.get_mut(word) else { continue };
            pods.0.remove(key);
            if pods.0.is_empty() {
                index.remove(word);
            }
        }
    }

    fn count(&mut self, key: &Key, pod: &Pod) {
        let Some(owner) = crate::meta::controller(&pod.metadata) else { return };
        self.siblings.entry(owner.uid.as_str().into()).or_default().add(key, pod);
    }

    fn count_no_more(&mut self, key: &Key, pod: &Pod) {
        let owner = crate::meta::controller(&pod.metadata).map(|owner| owner.uid.as_str());
        let Some(siblings) = owner.and_then(|owner| self.siblings.get_mut(owner)) else { return };
        siblings.remove(key, pod);
        if siblings.is_empty() {
            owner.map(|owner| self.siblings.remove(owner));
        }
    }

    fn use_node(&mut self, node: &str, sum: Amounts) {
        if sum.pods == 0 {
            self.used.remove(node);
        } else {
            self.used.insert(node.into(), sum);
        }
    }

    fn waits_no_more(&mut self, key: &Key, pod: &Pod) {
        let like = like(pod);
        let Some(alike) = self.unbound.get_mut(&like) else { return };
        alike.remove(key, pod);
        if alike.by_reason.is_empty() {
            self.unbound.remove(&like);
        }
    }

    fn keep_apart(&mut self, pod: &Pod, node: &str) {
        let namespace = crate::meta::namespace(&pod.metadata);
        for term in pod.spec.iter().flat_map(apart) {
            let apart = self.apart.entry(in_words(namespace, term)).or_insert_with(|| Apart {
                namespace: namespace.into(),
                term: Arc::new(term.clone()),
                nodes: OrdMap::new(),
            });
            *apart.nodes.entry(node.into()).or_insert(0) += 1;
        }
    }

    fn keep_apart_no_more(&mut self, pod: &Pod, node: &str) {
        for term in pod.spec.iter().flat_map(apart) {
            let word = in_words(crate::meta::namespace(&pod.metadata), term);
            let Some(apart) = self.apart.get_mut(&word) else { continue };
            match apart.nodes.get_mut(node) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(apart.nodes.remove(node)),
            }
            if apart.nodes.is_empty() {
                self.apart.remove(&word);
            }
        }
    }

    fn of(&mut self, index: Which) -> &mut Index {
        match index {
            Which::Namespace => &mut self.by_namespace,
            Which::Label => &mut self.by_label,
            Which::OrphanLabel => &mut self.orphans_by_label,
            Which::HostPort => &mut self.by_host_port,
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
    Namespace,
    Label,
    OrphanLabel,
    HostPort,
}

/// The index entries of an object.
fn words(object: &Object) -> Vec<(Which, Arc<str>)> {
    let metadata = object.metadata();
    let mut words: Vec<(Which, Arc<str>)> = Vec::new();
    let namespace = crate::meta::namespace(metadata);
    if !namespace.is_empty() {
        words.push((Which::Namespace, namespace.into()));
    }
    if let Object::Pod(pod) = object {
        let labels = metadata.labels.iter().flatten();
        for (key, value) in labels {
            let word = label(namespace, key, value);
            if is_orphan(object) {
                words.push((Which::OrphanLabel, word.clone()));
            }
            words.push((Which::Label, word));
        }
        if let Some(node) = crate::meta::node_of(pod) {
            let spec = pod.spec.as_ref().filter(|_| !crate::meta::has_ended(pod));
            let ports: BTreeSet<(i32, &str)> = spec.map(host_ports).unwrap_or_default();
            words.extend(
                ports.into_iter().map(|(port, protocol)| (Which::HostPort, host_port(node, port, protocol))),
            );
        }
    }
    words
}

fn label(namespace: &str, key: &str, value: &str) -> Arc<str> {
    format!("{namespace}/{key}={value}").into()
}

fn host_port(node: &str, port: i32, protocol: &str) -> Arc<str> {
    format!("{node}/{protocol}/{port}").into()
}

/// What keeps a pod from nodes, in words: those of two pods are the same where no node can tell them apart.
pub(crate) fn like(pod: &Pod) -> Arc<str> {
    let metadata = &pod.metadata;
    let asked = (&metadata.namespace, crate::meta::is_ending(metadata), &metadata.labels, &pod.spec);
    serde_json::to_string(&asked).expect("a pod is made of strings, lists and maps with string keys").into()
}

/// Why a pod has no node, as its status says.
pub(crate) fn told_to_wait_for(pod: &Pod) -> Option<&str> {
    let held = crate::meta::condition(pod.status.as_ref(), "PodScheduled");
    held.filter(|held| held.status == "False")?.message.as_deref()
}

fn in_words(namespace: &str, term: &PodAffinityTerm) -> Arc<str> {
    let term =
        serde_json::to_string(term).expect("a term is made of strings, lists and maps with string keys");
    format!("{namespace}/{term}").into()
}

/// Whether all indices have the same of both, which are at the same key.
fn is_indexed_alike(one: &Object, other: &Object) -> bool {
    let (a, b) = (one.metadata(), other.metadata());
    let alike = a.uid == b.uid
        && a.namespace == b.namespace
        && a.labels == b.labels
        && a.owner_references == b.owner_references;
    alike
        && match (one, other) {
            (Object::Pod(one), Object::Pod(other)) => {
                crate::meta::has_ended(one) == crate::meta::has_ended(other)
                    && one.spec == other.spec
                    && (crate::meta::node_of(one).is_some() || waits_alike(one, other))
            }
            (Object::Event(one), Object::Event(other)) => one.written == other.written,
            (Object::Node(_), _) => false,
            _ => true,
        }
}

/// Whether two pods that have no node stand at the same place among those that wait.
fn waits_alike(one: &Pod, other: &Pod) -> bool {
    told_to_wait_for(one) == told_to_wait_for(other)
        && one.metadata.creation_timestamp == other.metadata.creation_timestamp
        && crate::meta::is_ending(&one.metadata) == crate::meta::is_ending(&other.metadata)
}

/// Whether a node keeps room for it.
fn is_on_a_node(object: &Object) -> bool {
    matches!(object, Object::Pod(pod) if crate::meta::node_of(pod).is_some() && !crate::meta::has_ended(pod))
}

impl Touched {
    fn note(&mut self, metadata: Option<&ObjectMeta>) {
        let Some(metadata) = metadata else { return };
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
        let said = [
            event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0),
            event.last_timestamp.as_ref().map(|time| time.0),
            event.event_time.as_ref().map(|time| time.0),
            // What a client says of the past does not make it older than it is.
            event.metadata.creation_timestamp.as_ref().map(|time| time.0),
        ];
        EventMark {
            told: Told::of(&event),
            written: said.into_iter().flatten().max().unwrap_or(Timestamp::MIN),
        }
    }
}

fn is_orphan(object: &Object) -> bool {
    matches!(object, Object::Pod(_) | Object::ReplicaSet(_))
        && crate::meta::controller(object.metadata()).is_none()
}

fn owner_uids(metadata: &ObjectMeta) -> BTreeSet<&str> {
    owners(metadata).map(|owner| owner.uid.as_str()).collect()
}

fn owners(metadata: &ObjectMeta) -> impl Iterator<Item = &OwnerReference> {
    metadata.owner_references.iter().flatten()
}

fn of_index<'a>(index: &'a Index, word: &str) -> impl Iterator<Item = &'a Key> + use<'a> {
    let word: Arc<str> = word.into();
    index.range((word.clone(), Key::from(""))..).take_while(move |(at, _)| *at == word).map(|(_, key)| key)
}

/// Keys of all words with this start.
fn under<'a>(index: &'a Index, prefix: &str) -> impl Iterator<Item = &'a Key> + use<'a> {
    let prefix: Arc<str> = prefix.into();
    index
        .range((prefix.clone(), Key::from(""))..)
        .take_while(move |(at, _)| at.starts_with(&*prefix))
        .map(|(_, key)| key)
}

/// Those in an index by labels that fulfil the requirement of the selector which fewest do; `None` if it only says which
/// labels must not be there.
fn labelled<'v>(index: &'v Index, namespace: &str, selector: &LabelSelector) -> Option<Vec<&'v Key>> {
    let with = |key: &str, value: &str| of_index(index, &label(namespace, key, value));
    let equal = selector.match_labels.iter().flatten();
    let equal = equal.map(|(key, value)| Box::new(with(key, value)) as Box<dyn Iterator<Item = &Key>>);
    let listed = selector.match_expressions.iter().flatten().filter_map(|wanted| {
        let values: BTreeSet<&String> = wanted.values.iter().flatten().collect();
        match wanted.operator.as_str() {
            "In" => Some(Box::new(values.into_iter().flat_map(|value| with(&wanted.key, value))) as Box<_>),
            "Exists" => Some(Box::new(under(index, &label(namespace, &wanted.key, ""))) as Box<_>),
            _ => None,
        }
    });
    let mut ways: Vec<(_, Vec<&Key>)> = equal.chain(listed).map(|way| (way, Vec::new())).collect();
    if ways.is_empty() {
        return None;
    }
    // All of them at the same pace: the shortest ends first.
    loop {
        for (way, found) in &mut ways {
            match way.next() {
                Some(key) => found.push(key),
                None => return Some(std::mem::take(found)),
            }
        }
    }
}

fn typed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn apply(view: &mut View, object: Option<Value>) -> bool {
        let bytes = object.map(|object| object.to_string());
        let mut changed = Changed::default();
        changed.add(view.apply("core/pods/default/p", bytes.as_ref().map(String::as_bytes), 1));
        matches!(changed, Changed::Some { moves: true, .. })
    }

    /// Each word of a pod about itself made the scheduler look for a node for all that wait.
    #[test]
    fn pods_that_wait_are_looked_at_only_when_what_a_node_holds_has_changed() {
        let pod = |node: Option<&str>, app: &str, phase: &str| {
            let requests = json!({"requests": {"cpu": "1"}});
            Some(json!({
                "metadata": {"name": "p", "namespace": "default", "uid": "u", "labels": {"app": app}},
                "spec": {"nodeName": node, "containers": [{"name": "c", "resources": requests}]},
                "status": {"phase": phase},
            }))
        };
        let mut view = View::default();
        let steps = [
            (pod(None, "a", "Pending"), false, "it waits"),
            (pod(Some("n"), "a", "Pending"), true, "it is bound"),
            (pod(Some("n"), "a", "Running"), false, "it runs"),
            (pod(Some("n"), "b", "Running"), true, "it is other company"),
            (pod(Some("n"), "b", "Failed"), true, "it has ended"),
            (pod(Some("n"), "a", "Failed"), false, "nobody minds it any more"),
            (None, false, "it is gone"),
            (pod(Some("n"), "a", "Running"), true, "another one comes"),
            (None, true, "that one goes"),
        ];
        for (object, moves, why) in steps {
            let is_held = object.as_ref().is_some_and(|object| {
                object["spec"]["nodeName"] == "n" && object["status"]["phase"] != "Failed"
            });
            assert_eq!(apply(&mut view, object), moves, "{why}");
            assert_eq!(view.used_on("n").cpu_millis, if is_held { 1000 } else { 0 }, "{why}");
        }
    }

    #[test]
    fn the_pods_of_a_node_are_the_same_until_one_of_them_is_another() {
        let put = |view: &mut View, name: &str, node: Option<&str>, phase: &str| {
            let pod = json!({
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase},
            });
            view.apply(&format!("core/pods/default/{name}"), Some(pod.to_string().as_bytes()), 1);
        };
        let mut view = View::default();
        let none = view.pods_of("n");
        put(&mut view, "elsewhere", Some("m"), "Running");
        put(&mut view, "waiting", None, "Pending");
        assert!(view.pods_of("n").is_same(&none));
        put(&mut view, "p", Some("n"), "Pending");
        let one = view.pods_of("n");
        assert!(!one.is_same(&none));
        put(&mut view, "elsewhere", Some("m"), "Failed");
        view.apply("core/pods/default/waiting", None, 1);
        assert!(view.pods_of("n").is_same(&one), "nothing has happened here");
        put(&mut view, "p", Some("n"), "Running");
        assert!(!view.pods_of("n").is_same(&one));
        let phases = |pods: &PodsOf| {
            let phases = pods.iter().map(|(_, pod)| crate::meta::phase(pod).to_owned());
            phases.collect::<Vec<_>>()
        };
        assert_eq!(
            (phases(&one), phases(&view.pods_of("n"))),
            (vec!["Pending".into()], vec!["Running".into()])
        );
        view.apply("core/pods/default/p", None, 1);
        assert!(view.pods_of("n").is_same(&none));
    }

    #[test]
    fn a_port_of_a_machine_is_taken_as_long_as_its_pod_runs() {
        let pod = |phase: &str| {
            let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
            Some(json!({
                "metadata": {"name": "p", "namespace": "default"},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": ports}]},
                "status": {"phase": phase},
            }))
        };
        let mut view = View::default();
        apply(&mut view, pod("Running"));
        assert!(view.host_port_is_taken("n", 8080, "TCP"));
        let others = [("m", 8080, "TCP"), ("n", 8081, "TCP"), ("n", 8080, "UDP")];
        assert!(!others.iter().any(|(node, port, protocol)| view.host_port_is_taken(node, *port, protocol)));
        apply(&mut view, pod("Succeeded"));
        assert!(!view.host_port_is_taken("n", 8080, "TCP"));
    }
}
