//! A cluster on a table, for tests: the map with its preconditions, and nodes that do as they are told.
//!
//! Each round is planned twice, from what changed and from everything, and both must agree.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use skein_api::write::{Change, Expect};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::chance::Chance;
use crate::deployment;
use crate::meta;
use crate::node::authority::{Fingerprint, Made, TRUST, Trust};
use crate::node::departure::Electorate;
use crate::node::roster::{Member, Record};
use crate::node_health::Verdict;
use crate::plan::{Bounds, Plan, Round, Wakes, plan};
use crate::replicaset::wanted;
use crate::size::{OBJECT_BYTES_MAX, Size};
use crate::time::seconds_after;
use crate::view::{Changed, Kind, View};

pub(crate) struct World {
    pub(crate) view: View,
    pub(crate) changed: Changed,
    pub(crate) verdicts: BTreeMap<String, Verdict>,
    pub(crate) electorate: Electorate,
    pub(crate) now: Timestamp,
    pub(crate) bounds: Bounds,
    wakes: Wakes,
    revision: u64,
    rounds: u128,
    /// The node of each uid that was ever bound.
    bound: BTreeMap<String, String>,
}

impl World {
    /// A cluster without nodes, at rest.
    pub(crate) fn new() -> World {
        let mut world = World {
            view: View::default(),
            changed: Changed::All,
            verdicts: BTreeMap::new(),
            electorate: Electorate { leader: "nobody".to_owned(), ..Electorate::default() },
            now: Timestamp::from_second(1_700_000_000).expect("in range"),
            bounds: Bounds::default(),
            wakes: Wakes::default(),
            revision: 0,
            rounds: 0,
            bound: BTreeMap::new(),
        };
        world.settle();
        world
    }

    /// The same with nodes of 4 cores, 8 GiB and 110 pods.
    pub(crate) fn with_nodes(names: &[&str]) -> World {
        let mut world = World::new();
        for name in names {
            world.add_node(name);
        }
        world.settle();
        world
    }

    pub(crate) fn add_node(&mut self, name: &str) {
        self.add_node_for(name, 110);
    }

    pub(crate) fn add_node_for(&mut self, name: &str, pods: u32) {
        self.add_member(name);
        let offered = json!({"cpu": "4", "memory": "8Gi", "pods": pods.to_string()});
        self.put(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name, "uid": format!("node-{name}"), "labels": {"kubernetes.io/hostname": name},
            },
            "spec": {},
            "status": {
                "capacity": offered, "allocatable": offered,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }));
        self.verdicts.insert(name.to_owned(), Verdict::Alive);
    }

    /// Its membership, under an id that is its name.
    fn add_member(&mut self, name: &str) {
        let none = String::new;
        let record = Record::new(name.to_owned(), none(), name.to_owned(), Vec::new(), none(), 0).founder();
        self.store(&Record::<String>::key(name.to_owned()), Some(&record.to_bytes()));
    }

    /// Says that some authorities are in force, as a first leader does.
    pub(crate) fn found_authorities(&mut self) {
        let made = Made {
            fingerprint: Fingerprint("first".to_owned()),
            members: "members".to_owned(),
            clients: "clients".to_owned(),
            cross: None,
        };
        let trust = Trust::founded(made, 0);
        self.store(TRUST, Some(&serde_json::to_vec(&trust).expect("plain data")));
    }

    /// Stores an object as a user would, under a uid of its own.
    pub(crate) fn put(&mut self, mut object: Value) -> String {
        let resource = match object["kind"].as_str().expect("a kind") {
            "Pod" => "core/pods",
            "Node" => "core/nodes",
            "Namespace" => "core/namespaces",
            "ConfigMap" => "core/configmaps",
            "Event" => "core/events",
            "ReplicaSet" => "apps/replicasets",
            "Deployment" => "apps/deployments",
            kind => panic!("no test knows kind {kind}"),
        };
        let clustered = matches!(resource, "core/nodes" | "core/namespaces");
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        if !clustered {
            metadata.entry("namespace").or_insert(json!("default"));
        }
        let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = format!("{resource}/{namespace}/{}", metadata["name"].as_str().expect("a name"));
        metadata.entry("uid").or_insert(json!(format!("uid of {key} at {}", self.revision)));
        metadata.entry("creationTimestamp").or_insert(json!(self.now.to_string()));
        metadata.entry("generation").or_insert(json!(1));
        self.store(&key, Some(object.to_string().as_bytes()));
        key
    }

    /// Changes a typed object as a user or a node would.
    pub(crate) fn edit<K: Kind + serde::Serialize>(&mut self, key: &str, edit: impl FnOnce(&mut K)) {
        let mut object = (**self.view.get::<K>(key).expect("it is there")).clone();
        edit(&mut object);
        self.store(key, Some(&serde_json::to_vec(&object).expect("serializes")));
    }

    /// Stores what is no object.
    pub(crate) fn break_object(&mut self, key: &str) {
        self.store(key, Some(b"{\"spec\": 7"));
    }

    pub(crate) fn delete(&mut self, key: &str) {
        self.store(key, None);
    }

    /// Sets a Deployment's or ReplicaSet's size and counts its generation up, as the API does.
    pub(crate) fn scale(&mut self, key: &str, replicas: i32) {
        self.edit::<Deployment>(key, |deployment| {
            deployment.spec.replicas = Some(replicas);
            deployment.metadata.generation = Some(deployment.metadata.generation.unwrap_or(0) + 1);
        });
    }

    /// Sets the image of a Deployment's template.
    pub(crate) fn roll(&mut self, key: &str, image: &str) {
        self.edit::<Deployment>(key, |deployment| {
            let spec = deployment.spec.template.spec.as_mut().expect("a template");
            spec.containers[0].image = Some(image.to_owned());
            deployment.metadata.generation = Some(deployment.metadata.generation.unwrap_or(0) + 1);
        });
    }

    fn store(&mut self, key: &str, value: Option<&[u8]>) {
        self.revision += 1;
        let touched = self.view.apply_written(key, value, self.revision, Some(self.now));
        self.changed.add(touched);
    }

    /// One round of the leader: plan, commit.
    pub(crate) fn round(&mut self) -> Plan {
        self.rounds += 1;
        let round = Round {
            now: self.now,
            chance: Chance(self.rounds << 64),
            verdicts: &self.verdicts,
            electorate: &self.electorate,
            ca_pem: "pem",
            kubernetes_ip: "10.43.0.1",
        };
        let mut changed = std::mem::take(&mut self.changed);
        self.wakes.take_due(self.now).into_iter().for_each(|key| changed.add_key(key));
        let made = plan(&self.view, &changed, &round, &self.bounds);
        let of_all = plan(&self.view, &Changed::All, &round, &self.bounds);
        // One that was cut may have begun with something else.
        if made.rest.is_none() {
            assert_same(&words(&made), &words(&of_all));
        }
        self.wakes.replace(&made.wakes);
        self.commit(&made);
        if let Some(rest) = &made.rest {
            self.changed.merge(rest.clone());
        }
        made
    }

    /// Applies a plan under the rules of the store.
    pub(crate) fn commit(&mut self, plan: &Plan) {
        let size = plan.writes.iter().map(Size::of).fold(Size::default(), Size::plus);
        assert!(size.fits(Size::COMMAND_MAX), "no command holds {size:?}");
        assert!(size.fits(plan.size), "{size:?} in a plan of {:?}", plan.size);
        let before = self.view.clone();
        for write in &plan.writes {
            let held = self.view.stored(&write.key).map(|stored| stored.revision);
            let holds = match write.expect {
                Expect::Any => true,
                Expect::Absent => held.is_none(),
                Expect::Present => held.is_some(),
                Expect::Revision(revision) => held == Some(revision),
            };
            assert!(holds, "{} expected {:?}, found {held:?}", write.key, write.expect);
            match &write.change {
                Change::Put(bytes) => {
                    assert!(bytes.len() <= OBJECT_BYTES_MAX, "{} has {} bytes", write.key, bytes.len());
                    self.store(&write.key, Some(bytes));
                }
                Change::Delete => self.store(&write.key, None),
                Change::Check => {}
            }
        }
        let mut bound = std::mem::take(&mut self.bound);
        for (key, pod) in self.pods() {
            if let Some(node) = meta::node_of(&pod) {
                let uid = meta::uid(&pod.metadata).to_owned();
                let is_lost = self.verdicts.get(node) == Some(&Verdict::Unreachable);
                let is_ours = meta::condition(pod.status.as_ref(), "PodScheduled").is_some();
                assert!(
                    bound.contains_key(&uid) || !is_lost || !is_ours,
                    "{key} is sent to {node}, which is lost"
                );
                let first = bound.entry(uid).or_insert(node.to_owned());
                assert_eq!(first, node, "{key} was bound twice");
            }
        }
        self.bound = bound;
        self.check_sizes(&before);
        assert_eq!(self.view.faults().count(), before.faults().count(), "all of it can be read back");
    }

    /// No command, whatever it leaves to the next, makes a ReplicaSet's pods too many or a rollout too wide.
    fn check_sizes(&self, before: &View) {
        let counts = |view: &View, set: &ReplicaSet| {
            let pods =
                view.pods_controlled_by(meta::uid(&set.metadata)).filter(|(_, pod)| meta::is_active(pod));
            pods.count()
        };
        for (key, set) in self.view.all::<ReplicaSet>() {
            let (was, is) = (counts(before, set), counts(&self.view, set));
            assert!(is <= was.max(wanted(set)), "{key} has {is} pods, had {was} and wants {}", wanted(set));
        }
        let sizes = |view: &View, deployment: &Deployment| {
            let sets = view.controlled_by::<ReplicaSet>(meta::uid(&deployment.metadata));
            sets.map(|(_, set)| wanted(set)).sum::<usize>()
        };
        for (key, deployment) in self.view.all::<Deployment>() {
            let (was, is) = (sizes(before, deployment), sizes(&self.view, deployment));
            let size = usize::try_from(deployment.spec.replicas.unwrap_or(1)).unwrap_or(0);
            let surge = usize::try_from(deployment::bounds(deployment).0).unwrap_or(0);
            let most = size + surge;
            assert!(is <= was.max(most), "{key} grew from {was} to {is} pods, at most {most} may be");
        }
    }

    pub(crate) fn member(&self, name: &str) -> Record {
        self.view.named::<Member>("", name).expect("it was a member").record.clone()
    }

    /// Writes as the API or the daemon would, on the view that they were made from.
    pub(crate) fn write(&mut self, writes: Vec<skein_api::write::Write>) {
        let size = writes.iter().map(Size::of).fold(Size::default(), Size::plus);
        self.commit(&Plan { writes, size, ..Plan::default() });
    }

    /// Rounds until nothing is written any more.
    pub(crate) fn settle(&mut self) {
        // A cluster that is planned bit by bit takes longer.
        self.settle_within(if self.bounds.limit == Bounds::LIMIT { 20 } else { 1000 });
    }

    /// The same, with so many commands at most. Returns how many there were.
    pub(crate) fn settle_within(&mut self, rounds: usize) -> usize {
        for done in 0..=rounds {
            let plan = self.round();
            if plan.writes.is_empty() {
                return done;
            }
        }
        panic!("the planners do not come to rest");
    }

    /// What the agents of all nodes that are alive do: run what is bound, stop what is ending.
    pub(crate) fn nodes_work(&mut self) {
        for (key, pod) in self.pods() {
            let Some(node) = meta::node_of(&pod) else { continue };
            if self.verdicts.get(node) == Some(&Verdict::Unreachable) {
                continue;
            }
            let is_held = pod.metadata.finalizers.iter().flatten().next().is_some();
            if meta::is_ending(&pod.metadata) && is_held {
                if pod.metadata.deletion_grace_period_seconds == Some(0) {
                    continue;
                }
                self.edit::<Pod>(&key, |pod| pod.metadata.deletion_grace_period_seconds = Some(0));
            } else if meta::is_ending(&pod.metadata) {
                self.delete(&key);
            } else if !meta::is_ready(&pod) && !meta::has_ended(&pod) {
                self.set_ready(&key, true);
            }
        }
    }

    pub(crate) fn set_ready(&mut self, key: &str, ready: bool) {
        let now = self.now;
        self.edit::<Pod>(key, |pod| {
            let status = pod.status.get_or_insert_default();
            status.phase = Some("Running".to_owned());
            let condition = k8s_openapi::api::core::v1::PodCondition {
                type_: "Ready".to_owned(),
                status: if ready { "True" } else { "False" }.to_owned(),
                ..Default::default()
            };
            meta::set_condition(status, condition, now);
        });
    }

    /// Rounds and work of the nodes until all is at rest. `watch` sees the world after each step.
    pub(crate) fn live(&mut self, mut watch: impl FnMut(&World)) {
        for _ in 0..if self.bounds.limit == Bounds::LIMIT { 100 } else { 3000 } {
            let idle = self.round().writes.is_empty();
            watch(self);
            self.nodes_work();
            if idle && self.changed.is_empty() {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// In how many seconds a plan wants to be woken.
    pub(crate) fn seconds_until(&self, plan: &Plan) -> Option<i64> {
        Some(plan.wakes.next()?.as_second() - self.now.as_second())
    }

    /// Lets time pass. Only what asked to be woken by then is planned anew.
    pub(crate) fn pass_seconds(&mut self, seconds: i64) {
        self.now = seconds_after(self.now, seconds);
    }

    pub(crate) fn lose(&mut self, node: &str) {
        self.verdicts.insert(node.to_owned(), Verdict::Unreachable);
    }

    pub(crate) fn pods(&self) -> Vec<(String, Arc<Pod>)> {
        self.view.all::<Pod>().map(|(key, pod)| (key.to_string(), pod.clone())).collect()
    }

    pub(crate) fn pod(&self, name: &str) -> Arc<Pod> {
        self.view.named::<Pod>("default", name).expect("the pod is there").clone()
    }

    pub(crate) fn node(&self, name: &str) -> Arc<Node> {
        self.view.named::<Node>("", name).expect("the node is there").clone()
    }

    pub(crate) fn deployment(&self, name: &str) -> Arc<Deployment> {
        self.view.named::<Deployment>("default", name).expect("the deployment is there").clone()
    }

    pub(crate) fn sets(&self) -> Vec<Arc<ReplicaSet>> {
        self.view.all::<ReplicaSet>().map(|(_, set)| set.clone()).collect()
    }

    /// How many pods that count each node has.
    pub(crate) fn spread(&self) -> BTreeMap<String, usize> {
        let mut spread = BTreeMap::new();
        for (_, pod) in self.pods().iter().filter(|(_, pod)| meta::is_active(pod)) {
            *spread.entry(meta::node_of(pod).unwrap_or("-").to_owned()).or_default() += 1;
        }
        spread
    }

    /// The images of the pods that count.
    pub(crate) fn images(&self) -> BTreeSet<String> {
        let image = |pod: &Pod| pod.spec.as_ref()?.containers.first()?.image.clone();
        self.pods().iter().filter(|(_, pod)| meta::is_active(pod)).filter_map(|(_, pod)| image(pod)).collect()
    }

    pub(crate) fn why_unscheduled(&self, name: &str) -> Option<String> {
        let pod = self.pod(name);
        let condition = meta::condition(pod.status.as_ref(), "PodScheduled")?;
        condition.message.clone().filter(|_| condition.status == "False")
    }

    /// Reasons of all Events, oldest first.
    pub(crate) fn events(&self, plan: &Plan) -> Vec<String> {
        let events = plan.writes.iter().filter(|write| write.key.starts_with("core/events/"));
        let reason = |write: &skein_api::write::Write| match &write.change {
            Change::Put(bytes) => {
                let event: Value = serde_json::from_slice(bytes).expect("an Event");
                event["reason"].as_str().map(str::to_owned)
            }
            _ => None,
        };
        events.filter_map(reason).collect()
    }
}

/// Fails with the first write that is in one plan only.
fn assert_same(of_changed: &[String], of_all: &[String]) {
    let differs = of_changed.iter().zip(of_all).find(|(one, other)| one != other);
    let lengths = (of_changed.len(), of_all.len());
    assert!(differs.is_none() && lengths.0 == lengths.1, "two plans of one change: {differs:#?} {lengths:?}");
}

/// A plan's writes, readable in a failed assertion.
fn words(plan: &Plan) -> Vec<String> {
    let word = |write: &skein_api::write::Write| {
        let change = match &write.change {
            Change::Put(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Change::Delete => "delete".to_owned(),
            Change::Check => "check".to_owned(),
        };
        format!("{} {:?} {change}", write.key, write.expect)
    };
    plan.writes.iter().map(word).collect()
}

/// A Deployment of `replicas` pods labelled `app: <name>`; `spec` is laid over the rest.
pub(crate) fn deployment(name: &str, replicas: i32, spec: Value) -> Value {
    let mut whole = json!({
        "replicas": replicas,
        "progressDeadlineSeconds": 600,
        "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "x:1"}], "restartPolicy": "Always"},
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": whole})
}

/// A bare pod; `spec` is laid over a container without requests.
pub(crate) fn bare_pod(name: &str, spec: Value) -> Value {
    let mut whole = json!({"containers": [{"name": "c", "image": "x:1"}], "restartPolicy": "Always"});
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    let metadata = json!({"name": name, "labels": {"app": name}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": whole})
}

/// A container list that asks for so much cpu.
pub(crate) fn asking(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "x:1", "resources": {"requests": {"cpu": cpu}}}]})
}
