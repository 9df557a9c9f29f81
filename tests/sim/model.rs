//! The committed objects as the checks see them, in the order of revisions: I13 and I14.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use skein_api::scheduling::UNREACHABLE;
use skein_raft_store::{Event, State};

/// Whatever else is in the map is the clients' own.
const OBSERVED: [&str; 4] = ["core/pods/", "apps/replicasets/", "apps/deployments/", "core/nodes//"];

#[derive(Default)]
pub(crate) struct Model {
    pods: BTreeMap<String, Pod>,
    key_of_uid: BTreeMap<String, String>,
    /// The node of every uid that was ever bound.
    bound: BTreeMap<String, String>,
    /// How many pods each ReplicaSet wants, and whose it is.
    sets: BTreeMap<String, Set>,
    /// How many pods each Deployment may have at once.
    limits: BTreeMap<String, i64>,
    key_to_uid: BTreeMap<String, String>,
    unreachable: BTreeSet<String>,
}

struct Pod {
    uid: String,
    node: Option<String>,
    owner: Option<String>,
    /// It neither ends nor has ended.
    counts: bool,
}

struct Set {
    wants: i64,
    deployment: Option<String>,
}

/// What must hold when all events of one batch are applied: a batch may end no earlier than a command.
#[derive(Default)]
struct Touched {
    created_in: BTreeSet<String>,
    grown: BTreeSet<String>,
    wanted_most: BTreeMap<String, i64>,
    limit_most: BTreeMap<String, i64>,
}

impl Model {
    /// Returns the nodes that these events call unreachable.
    pub(crate) fn apply(&mut self, events: &[Event], wrong: &mut Vec<String>) -> Vec<String> {
        let mut touched = Touched::default();
        for (uid, set) in &self.sets {
            touched.wanted_most.insert(uid.clone(), set.wants);
        }
        touched.limit_most.clone_from(&self.limits);
        let mut lost = Vec::new();
        for event in events {
            self.apply_one(&event.key, event.value.as_deref(), &mut touched, &mut lost, wrong);
        }
        let revision = events.last().map_or(0, |event| event.revision);
        self.check(&touched, revision, wrong);
        lost
    }

    pub(crate) fn load(&mut self, state: &State, wrong: &mut Vec<String>) {
        let bound = std::mem::take(&mut self.bound);
        *self = Model { bound, ..Model::default() };
        for (key, object) in state.range("", None) {
            self.apply_one(key, Some(&object.value), &mut Touched::default(), &mut Vec::new(), wrong);
        }
    }

    /// Whether the committed map wants this pod to run on this node.
    pub(crate) fn wants(&self, uid: &str, node: &str) -> bool {
        let pod = self.key_of_uid.get(uid).and_then(|key| self.pods.get(key));
        pod.is_some_and(|pod| pod.counts && pod.uid == uid && pod.node.as_deref() == Some(node))
    }

    /// The pods that neither end nor have ended, by uid, and where each is bound.
    pub(crate) fn living(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let living = self.pods.values().filter(|pod| pod.counts);
        living.map(|pod| (pod.uid.as_str(), pod.node.as_deref()))
    }

    pub(crate) fn node_of(&self, uid: &str) -> Option<&str> {
        self.bound.get(uid).map(String::as_str)
    }

    fn apply_one(
        &mut self,
        key: &str,
        value: Option<&[u8]>,
        touched: &mut Touched,
        lost: &mut Vec<String>,
        wrong: &mut Vec<String>,
    ) {
        if !OBSERVED.iter().any(|prefix| key.starts_with(prefix)) {
            return;
        }
        let json: Option<Value> = value.and_then(|value| serde_json::from_slice(value).ok());
        let json = json.as_ref();
        if key.starts_with("core/pods/") {
            self.apply_pod(key, json, touched, wrong);
        } else if key.starts_with("apps/replicasets/") {
            self.apply_set(key, json, touched);
        } else if key.starts_with("apps/deployments/") {
            self.apply_deployment(key, json, touched);
        } else if let Some(name) = key.strip_prefix("core/nodes//") {
            let taints = json.and_then(|node| node["spec"]["taints"].as_array());
            let marked = taints.into_iter().flatten().any(|taint| taint["key"] == UNREACHABLE);
            if !marked {
                self.unreachable.remove(name);
            } else if self.unreachable.insert(name.to_owned()) {
                lost.push(name.to_owned());
            }
        }
    }

    fn apply_pod(&mut self, key: &str, json: Option<&Value>, touched: &mut Touched, wrong: &mut Vec<String>) {
        let before = self.pods.remove(key);
        let Some(json) = json else { return };
        let uid = text(&json["metadata"]["uid"]);
        let node = json["spec"]["nodeName"].as_str().map(str::to_owned);
        let owner = owner(json);
        let phase = json["status"]["phase"].as_str().unwrap_or_default();
        let ends = !json["metadata"]["deletionTimestamp"].is_null();
        let counts = !ends && phase != "Failed" && phase != "Succeeded";
        if before.as_ref().is_none_or(|before| before.uid != uid) {
            touched.created_in.extend(owner.clone());
        }
        if let Some(node) = &node {
            let first = self.bound.entry(uid.clone()).or_insert_with(|| node.clone());
            if first != node {
                wrong.push(format!("I13: pod {key} with uid {uid} was bound to {first} and then to {node}"));
            }
        } else if let Some(first) = self.bound.get(&uid) {
            wrong.push(format!("I13: pod {key} with uid {uid} was bound to {first} and then to no node"));
        }
        self.key_of_uid.insert(uid.clone(), key.to_owned());
        self.pods.insert(key.to_owned(), Pod { uid, node, owner, counts });
    }

    fn apply_set(&mut self, key: &str, json: Option<&Value>, touched: &mut Touched) {
        let Some(json) = json else {
            if let Some(uid) = self.key_to_uid.remove(key) {
                self.sets.remove(&uid);
            }
            return;
        };
        let uid = text(&json["metadata"]["uid"]);
        let wants = json["spec"]["replicas"].as_i64().unwrap_or(1);
        let deployment = owner(json);
        let before = self.sets.get(&uid).map_or(0, |set| set.wants);
        if wants > before {
            touched.grown.extend(deployment.clone());
        }
        let most = touched.wanted_most.entry(uid.clone()).or_default();
        *most = wants.max(*most);
        self.key_to_uid.insert(key.to_owned(), uid.clone());
        self.sets.insert(uid, Set { wants, deployment });
    }

    fn apply_deployment(&mut self, key: &str, json: Option<&Value>, touched: &mut Touched) {
        let Some(json) = json else {
            if let Some(uid) = self.key_to_uid.remove(key) {
                self.limits.remove(&uid);
            }
            return;
        };
        let uid = text(&json["metadata"]["uid"]);
        let wants = json["spec"]["replicas"].as_i64().unwrap_or(1);
        // Kubernetes' default surge: a quarter, rounded up.
        let limit = wants + (wants + 3) / 4;
        let most = touched.limit_most.entry(uid.clone()).or_default();
        *most = limit.max(*most);
        self.key_to_uid.insert(key.to_owned(), uid.clone());
        self.limits.insert(uid, limit);
    }

    /// I14: nobody makes a pod too many, and no rollout grows beyond its surge.
    fn check(&self, touched: &Touched, revision: u64, wrong: &mut Vec<String>) {
        for uid in &touched.created_in {
            let Some(most) = touched.wanted_most.get(uid) else { continue };
            let of_set = |pod: &&Pod| pod.counts && pod.owner.as_ref() == Some(uid);
            let count = self.pods.values().filter(of_set).count() as i64;
            if count > *most {
                wrong.push(format!("I14: at {revision} set {uid} made its pods {count}, it wants {most}"));
            }
        }
        for uid in &touched.grown {
            let Some(limit) = touched.limit_most.get(uid) else { continue };
            let sets = self.sets.values().filter(|set| set.deployment.as_ref() == Some(uid));
            let sum: i64 = sets.map(|set| set.wants).sum();
            if sum > *limit {
                wrong.push(format!(
                    "I14: at {revision} deployment {uid} grew to {sum}, at most {limit} may be"
                ));
            }
        }
    }
}

fn owner(json: &Value) -> Option<String> {
    let owners = json["metadata"]["ownerReferences"].as_array()?;
    let controller = owners.iter().find(|owner| owner["controller"] == true)?;
    controller["uid"].as_str().map(str::to_owned)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
