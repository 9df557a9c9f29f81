//! A plan in the making: the view with the plan's own writes applied.
//!
//! Planners read it and write to it, so that each sees what the others have decided, and one commit can
//! carry a verdict, the replacements that follow from it and their bindings.
//!
//! A command has a size. So a plan is made of steps, each all or nothing, and ends after any of them: every write is a
//! step of its own, unless it is made [together](Draft::together) with others. This is safe because a planner takes
//! each step from what the draft shows, as if all steps before it were committed, which they are, in the same command;
//! what was left out follows from what is then in the map. It need not be remembered, and a new leader goes on where
//! the old one stopped: the taint of a lost node calls for the rest of its pods to be taken off, an ending namespace
//! for the rest of its objects, an owner that is gone for the rest of its dependents.
//! Together come: a deed and the Event that tells it; an object that goes and the one that takes its name; all writes
//! of one object.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use skein_api::write::{Change, Expect, Write};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::chance::Chance;
use crate::event::Notice;
use crate::meta;
use crate::plan::{Bounds, Plan, Wakes};
use crate::replicaset::Replicas;
use crate::size::{OBJECT_BYTES_MAX, Size};
use crate::time::{seconds_after, whole_seconds};
use crate::view::{Changed, Key, Kind, Object, Stored, Touched, Uid, View};

/// Who tells about what cannot be written.
const WHO: &str = "skein";

/// See the module.
pub(crate) struct Draft<'a> {
    base: &'a View,
    bounds: &'a Bounds,
    view: View,
    /// What this pass looks at.
    looked_at: Changed,
    /// What the plan's own writes touched: the next pass looks there.
    touched: Changed,
    /// What was touched since [`Draft::take_fresh`] was last called.
    fresh: Changed,
    /// All that was looked at in any pass.
    seen: Changed,
    /// What was found of each ReplicaSet's pods, by its uid, until one of them is touched: planners ask again and again.
    replicas: RefCell<BTreeMap<Uid, Arc<Replicas>>>,
    edits: BTreeMap<Key, Edit>,
    events: BTreeMap<Key, Vec<u8>>,
    /// Owners of what is created: it comes only while they are as the plan knew them.
    owners: BTreeSet<Key>,
    pub(crate) now: Timestamp,
    pub(crate) chance: Chance,
    wakes: Wakes,
    used: Size,
    /// What may be filled for now.
    limit: Size,
    /// A step found no room within it.
    full: bool,
    /// Something was left to the next command.
    cut: bool,
    /// Something was left for when there is room in the store.
    postponed: bool,
    steps: usize,
    /// The keys of the first step.
    first_step: Vec<Key>,
    /// The step that is being made.
    step: Option<Step>,
    /// Keys that cannot be written, found out in this plan.
    aside: BTreeSet<Key>,
    left_out: Vec<LeftOut>,
}

/// What became of one key.
#[derive(Default)]
struct Edit {
    /// The object of the base was deleted, whatever came after.
    deleted: bool,
    /// What that comes to, as of the last step.
    deed: Deed,
}

/// What a plan does to one key.
#[derive(Default)]
enum Deed {
    #[default]
    Nothing,
    Put(Vec<u8>),
    Delete,
    /// Another object takes the name.
    Renew(Vec<u8>),
}

/// How to undo a step, and what it touched.
#[derive(Default)]
struct Step {
    /// What was at each key, and what the plan did to it.
    before: Vec<(Key, Option<Stored>, Option<Edit>)>,
    events: Vec<(Key, Option<Vec<u8>>)>,
    owners: Vec<Key>,
    touched: Vec<Touched>,
    /// Why nothing of it can be written.
    spoiled: Option<LeftOut>,
    is_aside: bool,
}

/// What a plan leaves out for good, because it cannot be written; everything else goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// The object, or the owner of one that was to be made.
    pub about: Key,
    /// What is wrong with it.
    pub why: Obstacle,
}

/// Why something cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// It would be larger than what is kept of one object, or taken in one command.
    TooLarge {
        /// How large it would be.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// What is there cannot be read.
    Unreadable,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::TooLarge { bytes, bytes_max } => {
                write!(f, "it would have {bytes} bytes, at most {bytes_max} are kept; make it smaller")
            }
            Obstacle::Unreadable => write!(f, "what is stored there cannot be read; delete it"),
        }
    }
}

impl Deed {
    fn size(&self, key: &str) -> Size {
        match self {
            Deed::Nothing => Size::default(),
            Deed::Put(bytes) => Size::of_op(key, bytes.len()),
            Deed::Delete => Size::of_op(key, 0),
            Deed::Renew(bytes) => Size::of_op(key, bytes.len()).plus(Size::of_op(key, 0)),
        }
    }

    fn value_bytes(&self) -> usize {
        match self {
            Deed::Put(bytes) | Deed::Renew(bytes) => bytes.len(),
            Deed::Nothing | Deed::Delete => 0,
        }
    }
}

impl<'a> Draft<'a> {
    pub(crate) fn new(
        base: &'a View,
        changed: Changed,
        now: Timestamp,
        chance: Chance,
        bounds: &'a Bounds,
    ) -> Draft<'a> {
        Draft {
            base,
            bounds,
            view: base.clone(),
            seen: changed.clone(),
            looked_at: changed,
            touched: Changed::default(),
            fresh: Changed::default(),
            replicas: RefCell::default(),
            edits: BTreeMap::new(),
            events: BTreeMap::new(),
            owners: BTreeSet::new(),
            now: whole_seconds(now),
            chance,
            wakes: Wakes::default(),
            used: Size::default(),
            limit: bounds.limit,
            full: false,
            cut: false,
            postponed: false,
            steps: 0,
            first_step: Vec::new(),
            step: None,
            aside: BTreeSet::new(),
            left_out: Vec::new(),
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

    /// The pods of a ReplicaSet.
    pub(crate) fn replicas_of(&self, set: &Arc<ReplicaSet>) -> Arc<Replicas> {
        let uid = meta::uid(&set.metadata);
        let mut known = self.replicas.borrow_mut();
        if let Some(held) = known.get(uid).filter(|held| held.are_of(set)) {
            return held.clone();
        }
        let found = Arc::new(Replicas::of(&self.view, set, self.now));
        known.insert(uid.into(), found.clone());
        found
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

    /// From here on the command may be filled to its half: what is made now is to be bound in the same command, or
    /// each pod would be written twice.
    pub(crate) fn fill_half(&mut self) {
        (self.limit, self.full) = (self.bounds.limit.halved(), false);
    }

    /// From here on the command may be filled whole.
    pub(crate) fn fill_whole(&mut self) {
        (self.limit, self.full) = (self.bounds.limit, false);
    }

    /// There is no room for a further step: whatever planners would do now, they do in the next command.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// Something was left to the next command, for want of room in this one.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Asks for the object at `key` to be planned again when it is `at`, if nothing earlier is asked for it.
    pub(crate) fn wake(&mut self, key: &Key, at: Timestamp) {
        self.wakes.ask(key, at);
    }

    /// Makes one step of all that `work` does: all of it is in the plan afterwards, or nothing. Which of both.
    pub(crate) fn together(&mut self, work: impl FnOnce(&mut Self)) -> bool {
        if self.step.is_some() {
            work(self);
            return true;
        }
        if self.full {
            self.cut = true;
            return false;
        }
        self.step = Some(Step::default());
        work(self);
        let step = self.step.take().expect("only this function takes it");
        self.finish_step(step)
    }

    /// Writes a new object. Its uid and creation time are set here. If something owns it, that must still be as the
    /// plan knows it when the command is applied.
    pub(crate) fn create<K: Kind>(&mut self, mut object: K, uid: String) {
        let now = self.now;
        let metadata = object.metadata_mut();
        metadata.uid = Some(uid);
        metadata.creation_timestamp = Some(Time(now));
        let owner = meta::controller(object.metadata()).and_then(|owner| self.view.key_of_uid(&owner.uid));
        let owner = owner.cloned();
        let key = crate::view::key_of::<K>(meta::namespace(object.metadata()), meta::name(object.metadata()));
        self.together(|draft| {
            draft.put(key, K::into_object(Arc::new(object)));
            owner.into_iter().for_each(|owner| draft.rely_on(owner));
        });
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

    /// Whether the namespace is being deleted: nothing new is made in it.
    pub(crate) fn is_ending_namespace(&self, namespace: &str) -> bool {
        let held = self.view.named::<Namespace>("", namespace);
        held.is_some_and(|held| meta::is_ending(&held.metadata))
    }

    /// Writes an object of any kind. A new one in a namespace that ends is left out: it would have to go at once.
    pub(crate) fn put(&mut self, key: Key, object: Object) {
        let namespace = meta::namespace(object.metadata());
        if self.is_ending_namespace(namespace) && self.view.stored(&key).is_none() {
            return;
        }
        self.together(|draft| {
            if draft.may_touch(&key) {
                draft.note(&key, false);
                let touched = draft.view.put(key, object, 0);
                draft.forget_replicas(&touched);
                draft.touch(touched);
            }
        });
    }

    /// Deletes an object at once.
    pub(crate) fn delete(&mut self, key: &Key) {
        if self.view.stored(key).is_none() {
            return;
        }
        self.together(|draft| {
            if draft.may_touch(key) {
                draft.note(key, draft.base.stored(key).is_some());
                let touched = draft.view.remove(key);
                draft.forget_replicas(&touched);
                draft.touch(touched);
            }
        });
    }

    /// Removes an object as far as its finalizers allow: without any it is gone at once.
    pub(crate) fn remove(&mut self, key: &Key) {
        let Some(stored) = self.view.stored(key) else { return };
        let metadata = stored.object.metadata();
        let held = metadata.finalizers.iter().flatten().next().is_some();
        if !held {
            return self.delete(key);
        }
        if meta::is_ending(metadata) {
            return;
        }
        let (mut object, now) = (stored.object.clone(), self.now);
        edit_metadata(&mut object, |metadata| {
            metadata.deletion_timestamp = Some(Time(now));
            metadata.deletion_grace_period_seconds = Some(0);
        });
        self.put(key.clone(), object);
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
        self.tell(&notice);
    }

    fn tell(&mut self, notice: &Notice) {
        // Nothing new comes into a namespace that is ending, or it would never end; nor into a store that is full.
        let namespace = self.view.named::<Namespace>("", notice.namespace());
        if self.bounds.thrift || namespace.is_none_or(|held| meta::is_ending(&held.metadata)) {
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
        self.together(|draft| {
            let before = draft.events.insert(key.clone(), bytes);
            draft.the_step().events.push((key, before));
        });
    }

    /// What the command comes to, and what is left of the work.
    ///
    /// The writes are in the order of their keys, each under the revision that the plan was made from; checks of owners
    /// come first and Events last. A name that changes hands within the plan (an old object deleted, a new one with
    /// another uid put in its place) gives two writes in this order.
    ///
    /// * `came_to_rest`: whether the planners have nothing left to do but what this draft had no room for.
    pub(crate) fn finish(self, came_to_rest: bool) -> Plan {
        let revision = |key: &Key| self.base.stored(key).map(|stored| stored.revision);
        let mut writes = Vec::with_capacity(self.used.ops);
        for key in &self.owners {
            let is_written = self.edits.get(key).is_some_and(|edit| !matches!(edit.deed, Deed::Nothing));
            if let Some(revision) = revision(key).filter(|_| !is_written) {
                writes.push(Write::check(&**key, Expect::Revision(revision)));
            }
        }
        for (key, Edit { deed, .. }) in self.edits {
            let expect = revision(&key).map_or(Expect::Absent, Expect::Revision);
            let write = |expect, change| Write { key: key.to_string(), expect, change };
            match deed {
                Deed::Nothing => {}
                Deed::Put(bytes) => writes.push(write(expect, Change::Put(bytes))),
                Deed::Delete => writes.push(write(expect, Change::Delete)),
                Deed::Renew(bytes) => {
                    writes.push(write(expect, Change::Delete));
                    writes.push(write(Expect::Absent, Change::Put(bytes)));
                }
            }
        }
        for (key, bytes) in self.events {
            writes.push(Write { key: key.to_string(), expect: Expect::Any, change: Change::Put(bytes) });
        }
        // For want of room in this command, or until the store has room again.
        let is_unfinished = !came_to_rest || self.cut || self.postponed;
        Plan {
            writes,
            wakes: self.wakes,
            rest: is_unfinished.then_some(self.seen),
            left_out: self.left_out,
            size: self.used,
            steps: self.steps,
            first_step: self.first_step,
        }
    }

    /// Whether the key can be written at all; if not, nothing of the step is.
    fn may_touch(&mut self, key: &Key) -> bool {
        let is_aside = self.aside.contains(key) || self.bounds.aside.contains(key);
        let is_unreadable = self.base.is_faulty(key);
        let step = self.the_step();
        step.is_aside |= is_aside;
        if is_unreadable {
            step.spoiled = Some(LeftOut { about: key.clone(), why: Obstacle::Unreadable });
        }
        !step.is_aside && step.spoiled.is_none()
    }

    /// Remembers how to undo what the step is about to do to a key.
    fn note(&mut self, key: &Key, deletes: bool) {
        let is_noted = self.the_step().before.iter().any(|(noted, ..)| noted == key);
        if !is_noted {
            let edit = self.edits.get_mut(key).map(std::mem::take);
            let deleted = edit.as_ref().is_some_and(|edit| edit.deleted);
            self.edits.insert(key.clone(), Edit { deleted, deed: Deed::Nothing });
            let stored = self.view.stored(key).cloned();
            self.the_step().before.push((key.clone(), stored, edit));
        }
        if let Some(edit) = self.edits.get_mut(key) {
            edit.deleted |= deletes;
        }
    }

    fn touch(&mut self, touched: Touched) {
        self.the_step().touched.push(touched);
    }

    fn forget_replicas(&mut self, touched: &Touched) {
        let known = self.replicas.get_mut();
        touched.owners().iter().for_each(|owner| drop(known.remove(owner)));
    }

    fn rely_on(&mut self, owner: Key) {
        if self.owners.insert(owner.clone()) {
            self.the_step().owners.push(owner);
        }
    }

    fn the_step(&mut self) -> &mut Step {
        self.step.as_mut().expect("writes are made in a step")
    }

    /// Takes the step into the plan if it can be written and there is room for it.
    fn finish_step(&mut self, step: Step) -> bool {
        if step.before.is_empty() && step.events.is_empty() && step.spoiled.is_none() {
            return !step.is_aside;
        }
        let mut used = self.used;
        let mut obstacle = step.spoiled.clone();
        let mut grows = false;
        for (key, _, before) in &step.before {
            let deed = self.deed_at(key);
            let (is, was) =
                (deed.size(key), before.as_ref().map_or(Size::default(), |edit| edit.deed.size(key)));
            used = used.plus(is).minus(was);
            if deed.value_bytes() > OBJECT_BYTES_MAX {
                let why = Obstacle::TooLarge { bytes: deed.value_bytes(), bytes_max: OBJECT_BYTES_MAX };
                obstacle = obstacle.or(Some(LeftOut { about: key.clone(), why }));
            }
            grows |= self.bounds.thrift && deed.value_bytes() > self.stored_bytes(key);
            if let Some(edit) = self.edits.get_mut(key) {
                edit.deed = deed;
            }
        }
        for (key, before) in &step.events {
            let size = |bytes: &Vec<u8>| Size::of_op(key, bytes.len());
            used = used.plus(self.events.get(key).map_or(Size::default(), size));
            used = used.minus(before.as_ref().map_or(Size::default(), size));
        }
        used = step.owners.iter().fold(used, |used, owner| used.plus(Size::of_op(owner, 0)));
        // What is larger than the limit goes alone, if any command can take it.
        let alone = self.used.is_nothing();
        if obstacle.is_none() && alone && !used.fits(Size::COMMAND_MAX) {
            let about = step.before.first().map_or_else(|| "".into(), |(key, ..)| key.clone());
            let why = Obstacle::TooLarge { bytes: used.bytes, bytes_max: Size::COMMAND_MAX.bytes };
            obstacle = Some(LeftOut { about, why });
        }
        if step.is_aside || obstacle.is_some() || grows {
            self.postponed |= grows;
            let wanted = obstacle.as_ref().and_then(|obstacle| self.view.stored(&obstacle.about));
            let wanted = wanted.map(|stored| stored.object.clone());
            self.undo(step);
            if let Some(obstacle) = obstacle {
                self.leave_out(obstacle, wanted);
            }
            return false;
        }
        if !alone && !used.fits(self.limit) {
            self.undo(step);
            (self.full, self.cut) = (true, true);
            return false;
        }
        self.used = used;
        self.steps += 1;
        if self.steps == 1 {
            self.first_step = step.before.into_iter().map(|(key, ..)| key).collect();
        }
        for touched in step.touched {
            self.add_touched(touched);
        }
        true
    }

    /// What the plan does to a key so far, with its bytes as they are stored.
    fn deed_at(&self, key: &Key) -> Deed {
        let deleted = self.edits.get(key).is_some_and(|edit| edit.deleted);
        match (self.base.stored(key), self.view.stored(key)) {
            (None, None) => Deed::Nothing,
            (Some(_), None) => Deed::Delete,
            (Some(old), Some(new)) if !deleted && old.object == new.object => Deed::Nothing,
            (Some(_), Some(new)) if deleted => new.object.to_bytes().map_or(Deed::Delete, Deed::Renew),
            (_, Some(new)) => new.object.to_bytes().map_or(Deed::Nothing, Deed::Put),
        }
    }

    fn stored_bytes(&self, key: &Key) -> usize {
        self.base.stored(key).and_then(|stored| stored.object.to_bytes()).map_or(0, |bytes| bytes.len())
    }

    fn undo(&mut self, step: Step) {
        for (key, stored, edit) in step.before.into_iter().rev() {
            let touched = match stored {
                Some(stored) => self.view.put(key.clone(), stored.object, stored.revision),
                None => self.view.remove(&key),
            };
            self.forget_replicas(&touched);
            match edit {
                Some(edit) => drop(self.edits.insert(key, edit)),
                None => drop(self.edits.remove(&key)),
            }
        }
        for (key, before) in step.events.into_iter().rev() {
            match before {
                Some(bytes) => drop(self.events.insert(key, bytes)),
                None => drop(self.events.remove(&key)),
            }
        }
        for owner in step.owners {
            self.owners.remove(&owner);
        }
    }

    /// Says what cannot be written: to whoever runs the cluster, and in an Event to whoever looks at the object, or at
    /// the owner of one that cannot be made. Once as long as that Event is kept.
    fn leave_out(&mut self, left_out: LeftOut, wanted: Option<Object>) {
        let LeftOut { about: key, why } = left_out;
        if !self.aside.insert(key.clone()) {
            return;
        }
        let owner = wanted.as_ref().and_then(|object| meta::controller(object.metadata()));
        let held = self.view.stored(&key).map(|_| key.clone());
        let about = held.or_else(|| self.view.key_of_uid(&owner?.uid).cloned());
        if let Some(stored) = about.as_ref().and_then(|about| self.view.stored(about))
            && let Some(mut notice) =
                stored.object.notice(WHO, "TooLarge", &format!("cannot write {key}: {why}"))
        {
            notice.warning = true;
            if self.base.stored(&notice.key()).is_none() {
                self.tell(&notice);
            }
        }
        self.left_out.push(LeftOut { about: about.unwrap_or(key), why });
    }

    /// The planners that follow in this pass look at it too, as they would if they looked at everything.
    fn add_touched(&mut self, touched: Touched) {
        for changed in [&mut self.looked_at, &mut self.fresh, &mut self.seen] {
            changed.add(touched.clone());
        }
        self.touched.add(touched);
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
        Object::Authorities(object) => edit(&mut Arc::make_mut(object).metadata),
        Object::Event(object) => edit(&mut Arc::make_mut(object).told.metadata),
        Object::Other(object) => {
            let other = Arc::make_mut(object);
            edit(&mut other.metadata);
            other.json["metadata"] = serde_json::to_value(&other.metadata)
                .expect("metadata is made of strings, numbers and lists");
        }
    }
}
