//! Whose turn it is.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::WHO;
use crate::meta;
use crate::view::{Alike, Changed, Key, Kind, View, Waiting, like};

/// The pods that wait for a node, most urgent first, then oldest first.
///
/// Of pods that ask for the same one is asked for: its answer is that of all others, until some pod gets a node. Those
/// that have heard that answer already are passed over, however many they are.
pub(super) struct Queue<'v> {
    groups: Vec<Group<'v>>,
    /// The next of each group that has one.
    turns: BTreeSet<Turn>,
}

/// Pods that ask for the same.
struct Group<'v> {
    pods: Cow<'v, Alike>,
    urgency: Reverse<i32>,
    turn: Option<Turn>,
    /// Why no node takes them now, once that is known.
    refused: Option<Arc<str>>,
}

/// A pod's place in the queue, and its group.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    urgency: Reverse<i32>,
    pod: Waiting,
    group: usize,
}

impl Turn {
    pub(super) fn key(&self) -> &Key {
        &self.pod.1
    }
}

impl<'v> Queue<'v> {
    /// All pods that wait if a node, or what it holds, is not what it was; else those that changed.
    pub(super) fn of(view: &'v View, changed: &Changed) -> Queue<'v> {
        let mut queue = Queue { groups: Vec::new(), turns: BTreeSet::new() };
        match changed {
            Changed::Some { keys, moves: false, .. }
                // Some affinities go by the labels of namespaces.
                if !changed.any_under(Node::PREFIX) && !changed.any_under(Namespace::PREFIX) =>
            {
                let pods = keys.iter().filter(|key| key.starts_with(Pod::PREFIX));
                let mut groups: BTreeMap<Arc<str>, Alike> = BTreeMap::new();
                for key in pods {
                    if let Some(pod) = view.get::<Pod>(key).filter(|pod| waits(pod)) {
                        groups.entry(like(pod)).or_default().insert(key, pod);
                    }
                }
                groups.into_values().for_each(|pods| queue.add(view, Cow::Owned(pods)));
            }
            _ => view.alike().for_each(|pods| queue.add(view, Cow::Borrowed(pods))),
        }
        queue
    }

    fn add(&mut self, view: &View, pods: Cow<'v, Alike>) {
        let one = pods.next(None, None).and_then(|(_, key)| view.get::<Pod>(key));
        let Some(one) = one.filter(|pod| is_ours(pod)) else { return };
        let urgency = Reverse(one.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0));
        self.groups.push(Group { pods, urgency, turn: None, refused: None });
        self.let_in(self.groups.len() - 1, None);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// The next pod, and why no node takes it, if that is known.
    pub(super) fn next(&mut self) -> Option<(Turn, Option<Arc<str>>)> {
        let turn = self.turns.pop_first()?;
        let group = &mut self.groups[turn.group];
        group.turn = None;
        Some((turn, group.refused.clone()))
    }

    /// No node takes the one whose turn it was, nor any like it.
    pub(super) fn refuse(&mut self, turn: &Turn, why: Arc<str>) {
        self.groups[turn.group].refused = Some(why);
        self.let_in(turn.group, Some(&turn.pod));
    }

    /// Nothing follows from the turn that was.
    pub(super) fn pass(&mut self, turn: &Turn) {
        self.let_in(turn.group, Some(&turn.pod));
    }

    /// The one whose turn it was has a node: what is known of those behind it may be true no more.
    pub(super) fn ask_anew(&mut self, turn: &Turn) {
        self.let_in(turn.group, Some(&turn.pod));
        for at in 0..self.groups.len() {
            let group = &mut self.groups[at];
            if group.refused.take().is_some() {
                match group.urgency.cmp(&turn.urgency) {
                    Ordering::Less => {}
                    Ordering::Equal => self.let_in(at, Some(&turn.pod)),
                    Ordering::Greater => self.let_in(at, None),
                }
            }
        }
    }

    /// Gives the first of a group behind `than` its turn, of those that have to hear something.
    fn let_in(&mut self, at: usize, than: Option<&Waiting>) {
        let group = &mut self.groups[at];
        if let Some(turn) = group.turn.take() {
            self.turns.remove(&turn);
        }
        let next = group.pods.next(than, group.refused.as_deref());
        group.turn = next.map(|pod| Turn { urgency: group.urgency, pod: pod.clone(), group: at });
        self.turns.extend(group.turn.clone());
    }
}

/// Whether it is to be given a node.
fn waits(pod: &Pod) -> bool {
    meta::node_of(pod).is_none() && meta::is_active(pod)
}

/// Whether it is for this scheduler to do that.
fn is_ours(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let scheduler = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(WHO);
    let gated = spec.is_some_and(|spec| spec.scheduling_gates.iter().flatten().next().is_some());
    scheduler == WHO && !gated && !meta::is_ending(&pod.metadata)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::chance::Chance;
    use crate::draft::Draft;
    use crate::plan::{Bounds, Plan};
    use crate::scheduler::{Spread, asked_by, bind, candidates, place, plan, refuse};
    use skein_api::write::{Change, Write};

    /// What [`plan`] does, by looking at each pod in turn.
    fn walk(draft: &mut Draft<'_>) {
        let view = draft.view().clone();
        let is_touched = |key: &Key| match draft.changed() {
            Changed::Some { keys, moves: false, .. } => {
                draft.changed().any_under(Node::PREFIX) || keys.contains(key)
            }
            _ => true,
        };
        let waiting = view.all::<Pod>().filter(|(key, pod)| is_touched(key) && waits(pod) && is_ours(pod));
        let mut waiting: Vec<(&Key, &Arc<Pod>)> = waiting.collect();
        waiting.sort_by_key(|(key, pod)| {
            let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
            (Reverse(priority), meta::created(&pod.metadata), (*key).clone())
        });
        let mut nodes = candidates(&view);
        // By all filters, without the short cut.
        nodes.iter_mut().for_each(|node| node.is_plain = false);
        let mut spread = Spread::new();
        for (key, pod) in waiting {
            match place(draft.view(), &nodes, &mut spread, pod) {
                Ok(at) => {
                    bind(draft, key, pod, &nodes[at].name);
                    nodes[at].used = nodes[at].used.plus(asked_by(pod));
                    if let Some(owner) = meta::controller(&pod.metadata) {
                        let counts = spread.entry(owner.uid.clone()).or_default();
                        *counts.entry(nodes[at].name.clone()).or_default() += 1;
                    }
                }
                Err(why) => refuse(draft, key, pod, &why),
            }
        }
    }

    fn planned(view: &View, changed: &Changed, by: fn(&mut Draft<'_>)) -> Plan {
        let bounds = Bounds::default();
        let now = Timestamp::from_second(1_700_000_000).expect("in range");
        let mut draft = Draft::new(view, changed.clone(), now, Chance(1), &bounds);
        by(&mut draft);
        draft.finish(true)
    }

    /// What happens to a pod, of which there are few, or to a node.
    #[derive(Debug, Clone)]
    enum Deed {
        Put { pod: Value, at: BTreeSet<usize> },
        Delete { at: BTreeSet<usize> },
        Node { number: usize, cpu: u8, cordoned: bool },
    }

    const NAMES: usize = 12;

    fn deed() -> impl Strategy<Value = Deed> {
        let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "host", "labelSelector": {"matchLabels": {"app": "a"}}}]}});
        let with = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "host", "labelSelector": {"matchLabels": {"app": "b"}}}]}});
        let affinity = prop_oneof![4 => Just(Value::Null), 1 => Just(apart), 1 => Just(with)];
        // Few different ones, or none would be like another.
        let cpu = prop::sample::select(vec![1, 3]);
        let priority = prop_oneof![4 => Just(0), 1 => Just(1)];
        let spec = (cpu, priority, prop::bool::weighted(0.05), affinity);
        let metadata = (prop::sample::select(vec!["a", "b"]), prop::option::weighted(0.5, 0..2));
        let at = || prop::collection::btree_set(0..NAMES, 1..5);
        let pod = (spec, metadata, prop::bool::weighted(0.05)).prop_map(
            |((cpu, priority, gated, affinity), (app, owner), ending)| {
                let owner = owner.map(|owner| {
                    let name = format!("set{owner}");
                    json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": name, "controller": true}])
                });
                let requests = json!({"requests": {"cpu": cpu.to_string()}});
                json!({
                    "metadata": {
                        "namespace": "default", "labels": {"app": app}, "ownerReferences": owner,
                        "deletionTimestamp": ending.then_some("2023-11-14T22:13:30Z"),
                    },
                    "spec": {
                        "priority": priority, "affinity": affinity,
                        "containers": [{"name": "c", "image": "x:1", "resources": requests}],
                        "schedulingGates": if gated { json!([{"name": "g"}]) } else { Value::Null },
                    },
                })
            },
        );
        prop_oneof![
            6 => (pod, at()).prop_map(|(pod, at)| Deed::Put { pod, at }),
            2 => at().prop_map(|at| Deed::Delete { at }),
            1 => (0..3_usize, 1..7_u8, prop::bool::weighted(0.2))
                .prop_map(|(number, cpu, cordoned)| Deed::Node { number, cpu, cordoned }),
        ]
    }

    struct World {
        view: View,
        changed: Changed,
        revision: u64,
    }

    impl World {
        fn store(&mut self, key: &str, value: Option<&[u8]>) {
            self.revision += 1;
            let touched = self.view.apply(key, value, self.revision);
            self.changed.add(touched);
        }

        fn put(&mut self, key: &str, object: &Value) {
            self.store(key, Some(object.to_string().as_bytes()));
        }

        fn put_node(&mut self, number: usize, cpu: u8, cordoned: bool) {
            let name = format!("n{number}");
            let status = json!({
                "allocatable": {"cpu": cpu.to_string(), "pods": "2"},
                "conditions": [{"type": "Ready", "status": "True"}],
            });
            let metadata = json!({"name": name, "labels": {"host": name}});
            let spec = json!({"unschedulable": cordoned});
            self.put(
                &format!("core/nodes//{name}"),
                &json!({"metadata": metadata, "spec": spec, "status": status}),
            );
        }

        fn take(&mut self, writes: Vec<Write>) {
            for Write { key, change, .. } in writes {
                match change {
                    Change::Put(bytes) => self.store(&key, Some(&bytes)),
                    Change::Delete => self.store(&key, None),
                    Change::Check => {}
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Pods come and go and nodes change, several at once, and in between all is planned to rest or half of it
        /// is: who has heard which reason, and who has been asked after whom, must not show in what is planned.
        #[test]
        fn pods_that_are_asked_together_get_what_each_would_get_alone(
            deeds in prop::collection::vec((deed(), 0..4_u8), 1..40),
        ) {
            let mut world = World { view: View::default(), changed: Changed::default(), revision: 0 };
            world.put("core/namespaces//default", &json!({"metadata": {"name": "default"}}));
            (0..3).for_each(|number| world.put_node(number, 4, false));
            for (deed, fate) in deeds {
                match deed {
                    Deed::Put { pod, at } => {
                        for at in at {
                            let (name, mut pod) = (format!("p{at}"), pod.clone());
                            pod["metadata"]["name"] = name.as_str().into();
                            // Older and younger ones that ask for the same, with others between them.
                            let seconds = (at * 7) % NAMES + 10;
                            pod["metadata"]["creationTimestamp"] = format!("2023-11-14T22:13:{seconds}Z").into();
                            // A pod that has a node keeps it.
                            let key = format!("core/pods/default/{name}");
                            if world.view.get::<Pod>(&key).is_none_or(|held| meta::node_of(held).is_none()) {
                                world.put(&key, &pod);
                            }
                        }
                    }
                    Deed::Delete { at } => {
                        at.into_iter().for_each(|at| world.store(&format!("core/pods/default/p{at}"), None));
                    }
                    Deed::Node { number, cpu, cordoned } => world.put_node(number, cpu, cordoned),
                }
                for changed in [&world.changed, &Changed::All] {
                    let (made, walked) =
                        (planned(&world.view, changed, plan), planned(&world.view, changed, walk));
                    prop_assert_eq!(made, walked);
                }
                // Some are planned together with the next deed.
                if fate > 0 {
                    let changed = std::mem::take(&mut world.changed);
                    let mut writes = planned(&world.view, &changed, plan).writes;
                    if fate == 1 {
                        writes.truncate(writes.len() / 2);
                    }
                    world.take(writes);
                }
            }
        }
    }
}
