//! A plan in the making: the view with the plan's own writes applied.
//!
//! Planners read it and write to it, so that each sees what the others have decided, and one commit can
//! carry a verdict, the replacements that follow from it and their bindings.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use skein_api::write::{Change, Expect, Write};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::chance::Chance;
use crate::event::Notice;
use crate::meta;
use crate::time::{seconds_after, whole_seconds};
use crate::view::{Changed, Key, Kind, Object, Touched, View};

/// See the module.
pub(crate) struct Draft<'a> {
    base: &'a View,
    view: View,
    /// What this pass looks at.
    looked_at: Changed,
    /// What the plan's own writes touched: the next pass looks there.
    touched: Changed,
    /// What was touched since [`Draft::take_fresh`] was last called.
    fresh: Changed,
    edits: BTreeMap<Key, Edit>,
    events: BTreeMap<Key, Vec<u8>>,
    pub(crate) now: Timestamp,
    pub(crate) chance: Chance,
    wake_at: Option<Timestamp>,
    bytes: usize,
}

/// What became of one key.
#[derive(Default)]
struct Edit {
    /// The object of the base was deleted, whatever came after.
    deleted: bool,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(base: &'a View, changed: Changed, now: Timestamp, chance: Chance) -> Draft<'a> {
        Draft {
            base,
            view: base.clone(),
            looked_at: changed,
            touched: Changed::default(),
            fresh: Changed::default(),
            edits: BTreeMap::new(),
            events: BTreeMap::new(),
            now: whole_seconds(now),
            chance,
            wake_at: None,
            bytes: 0,
        }
    }

    /// The picture with all writes so far.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// What this pass is to look at.
    pub(crate) fn changed(&self) -> &Changed {
        &self.looked_at
    }

    /// Begins the next pass over what this one wrote. False if it wrote nothing.
    pub(crate) fn next_pass(&mut self) -> bool {
        self.looked_at = std::mem::take(&mut self.touched);
        !self.looked_at.is_empty()
    }

    /// What the plan's own writes have touched since this was last asked: for a planner whose decisions
    /// lead to further ones of its own.
    pub(crate) fn take_fresh(&mut self) -> Changed {
        std::mem::take(&mut self.fresh)
    }

    /// About how many bytes the plan has so far.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Asks for another plan at `at`, if no earlier one is wanted.
    pub(crate) fn wake_at(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |wanted| wanted.min(at)));
    }

    pub(crate) fn wanted_wake(&self) -> Option<Timestamp> {
        self.wake_at
    }

    /// Writes a new object. Its uid and creation time are set here; `subject` names what they are drawn for.
    pub(crate) fn create<K: Kind>(&mut self, mut object: K, uid: String) -> Key {
        let now = self.now;
        let metadata = object.metadata_mut();
        metadata.uid = Some(uid);
        metadata.creation_timestamp = Some(Time(now));
        let key = crate::view::key_of::<K>(meta::namespace(object.metadata()), meta::name(object.metadata()));
        self.put(key.clone(), K::into_object(Arc::new(object)));
        key
    }

    /// Changes an object in place; nothing is written if `edit` leaves it as it was, or if there is none.
    pub(crate) fn edit<K: Kind>(&mut self, key: &str, edit: impl FnOnce(&mut K)) {
        let Some(held) = self.view.get::<K>(key) else { return };
        let mut object = (**held).clone();
        edit(&mut object);
        if object != **held {
            self.put(key.into(), K::into_object(Arc::new(object)));
        }
    }

    /// Writes an object of any kind.
    pub(crate) fn put(&mut self, key: Key, object: Object) {
        self.note(&key);
        // A rough count: it only bounds one command, and encoding twice would cost more than it tells.
        self.bytes += 2048;
        let touched = self.view.put(key, object, 0);
        self.add_touched(touched);
    }

    /// Deletes an object at once.
    pub(crate) fn delete(&mut self, key: &Key) {
        if self.view.stored(key).is_none() {
            return;
        }
        self.note(key);
        self.bytes += 64;
        let present = self.base.stored(key).is_some();
        if let Some(edit) = self.edits.get_mut(key) {
            edit.deleted |= present;
        }
        let touched = self.view.remove(key);
        self.add_touched(touched);
    }

    /// Removes an object as far as its finalizers allow: without any it is gone at once.
    pub(crate) fn remove(&mut self, key: &Key) {
        let Some(stored) = self.view.stored(key) else { return };
        let metadata = stored.object.metadata();
        let held = metadata.finalizers.iter().flatten().next().is_some();
        if !held {
            return self.delete(key);
        }
        if !meta::is_ending(metadata) {
            let (mut object, now) = (stored.object.clone(), self.now);
            edit_metadata(&mut object, |metadata| {
                metadata.deletion_timestamp = Some(Time(now));
                metadata.deletion_grace_period_seconds = Some(0);
            });
            self.put(key.clone(), object);
        }
    }

    /// Deletes a pod as a user would: its node stops it in its grace period and then removes the object.
    /// A pod that no node holds is gone at once.
    pub(crate) fn delete_pod(&mut self, key: &Key) {
        let Some(pod) = self.view.get::<Pod>(key).cloned() else { return };
        if meta::is_ending(&pod.metadata) {
            return;
        }
        if meta::node_of(&pod).is_none() {
            return self.remove(key);
        }
        let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let grace = grace.max(0);
        let gone_by = seconds_after(self.now, grace);
        self.edit::<Pod>(key, |pod| {
            pod.metadata.deletion_timestamp = Some(Time(gone_by));
            pod.metadata.deletion_grace_period_seconds = Some(grace);
            pod.metadata.generation = Some(pod.metadata.generation.unwrap_or(0) + 1);
        });
    }

    /// Tells users what was done or cannot be done to `about`.
    pub(crate) fn event<K: Kind + k8s_openapi::Resource>(
        &mut self,
        about: &K,
        by: &str,
        warning: bool,
        reason: &str,
        message: &str,
    ) {
        let mut notice = Notice::about::<K>(about.metadata(), by, reason, message);
        notice.warning = warning;
        // Nothing new comes into a namespace that is ending, or it would never end.
        let namespace = self.view.named::<Namespace>("", notice.namespace());
        if namespace.is_none_or(|held| meta::is_ending(&held.metadata)) {
            return;
        }
        let key = notice.key();
        // Once more within one plan is the same once: the plan may be made twice, and is committed once.
        let told = self.base.stored(&key).and_then(|stored| match &stored.object {
            Object::Event(mark) => Some(&mark.told),
            _ => None,
        });
        let uid = self.chance.of(&key).uid();
        let event = notice.event(told, 1, uid, self.now);
        let bytes = serde_json::to_vec(&event).expect("an Event is made of strings and numbers");
        self.bytes += bytes.len();
        self.events.insert(key, bytes);
    }

    /// The writes in the order of their keys, each under the revision that the plan was made from; Events
    /// last. A name that changes hands within the plan (an old object deleted, a new one with another uid put in
    /// its place) gives two writes in this order.
    pub(crate) fn finish(self) -> Vec<Write> {
        let mut writes = Vec::new();
        for (key, edit) in &self.edits {
            let before = self.base.stored(key);
            let after = self.view.stored(key);
            let write = |expect, change| Write { key: key.to_string(), expect, change };
            let put = |object: &Object| object.to_bytes().map(Change::Put);
            match (before, after) {
                (None, None) => {}
                (None, Some(new)) => {
                    writes.extend(put(&new.object).map(|change| write(Expect::Absent, change)));
                }
                (Some(old), None) => writes.push(write(Expect::Revision(old.revision), Change::Delete)),
                (Some(old), Some(new)) if edit.deleted => {
                    writes.push(write(Expect::Revision(old.revision), Change::Delete));
                    writes.extend(put(&new.object).map(|change| write(Expect::Absent, change)));
                }
                (Some(old), Some(new)) if old.object == new.object => {}
                (Some(old), Some(new)) => {
                    writes
                        .extend(put(&new.object).map(|change| write(Expect::Revision(old.revision), change)));
                }
            }
        }
        for (key, bytes) in self.events {
            writes.push(Write { key: key.to_string(), expect: Expect::Any, change: Change::Put(bytes) });
        }
        writes
    }

    /// The planners that follow in this pass look at it too, as they would if they looked at everything.
    fn add_touched(&mut self, touched: Touched) {
        self.looked_at.add(touched.clone());
        self.fresh.add(touched.clone());
        self.touched.add(touched);
    }

    fn note(&mut self, key: &Key) {
        self.edits.entry(key.clone()).or_default();
    }
}

/// Changes the metadata of an object of any kind.
pub(crate) fn edit_metadata(object: &mut Object, edit: impl FnOnce(&mut ObjectMeta)) {
    match object {
        Object::Pod(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::Node(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::ReplicaSet(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::Deployment(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::Namespace(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::ConfigMap(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::Secret(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::Service(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::ServiceAccount(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::Member(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::Event(object) => edit(&mut Arc::make_mut(object).told.metadata),
        Object::Other(object) => {
            let other = Arc::make_mut(object);
            edit(&mut other.metadata);
            other.json["metadata"] = serde_json::to_value(&other.metadata)
                .expect("metadata is made of strings, numbers and lists");
        }
    }
}
