//! A node's share of the pods: their lives, the machine's effects, their status, and the Node object.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use openraft::AsyncRuntime;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use skein_control::pod::{ContainerState, Effect, Image, Input, PodLife, StartError};
use skein_control::time::Instant;
use skein_raft_store::sim::SimRt;
use skein_raft_store::{Change, Expect, Op, Options, Outcome, State};

use crate::machine::DIGEST;
use crate::watch::is_marked;
use crate::world::{Site, node_name};

const LOOK_EVERY: Duration = Duration::from_millis(20);
const SETTLE_MAX: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(200);
const BATCH_MAX: usize = 500;

/// What to do to one pod's object.
enum Report {
    Status(Box<PodStatus>),
    Delete,
}

/// Key and uid of a pod.
type Name = (String, String);
type Reports = Arc<Mutex<BTreeMap<Name, Report>>>;

struct Life {
    life: PodLife,
    key: String,
    wake_at: Option<Instant>,
}

struct Agent {
    site: Site,
    chance: StdRng,
    lives: BTreeMap<String, Life>,
    reports: Reports,
    back: UnboundedSender<(String, Input)>,
}

/// Runs the pods bound here until the process ends; what runs goes on.
pub(crate) async fn run(site: Site, seed: u64) {
    let reports = Reports::default();
    drop(SimRt::spawn(write(site.clone(), reports.clone())));
    drop(SimRt::spawn(keep_node(site.clone())));
    if let Ok(revision) = site.store.read_index(SETTLE_MAX).await {
        site.picture.reach(revision).await;
    }
    let (back, mut inbox) = unbounded();
    let chance = StdRng::seed_from_u64(seed);
    let mut agent = Agent { site, chance, lives: BTreeMap::new(), reports, back };
    let strays = agent.look(true);
    for uid in strays {
        agent.site.world.count("strays removed");
        agent.site.world.machine(agent.site.number, |machine| machine.remove_sandbox(&uid));
    }
    let mut looked_at = agent.site.picture.revision();
    loop {
        if let Ok(next) = SimRt::timeout(LOOK_EVERY, inbox.next()).await {
            let Some((uid, input)) = next else { return };
            agent.handle(&uid, input);
        }
        let revision = agent.site.picture.revision();
        if revision != looked_at {
            looked_at = revision;
            agent.look(false);
        }
        let now = agent.site.clock.boot();
        let is_due = |life: &Life| life.wake_at.is_some_and(|at| at <= now);
        let due: Vec<String> =
            agent.lives.iter().filter(|(_, life)| is_due(life)).map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            if let Some(life) = agent.lives.get_mut(&uid) {
                life.wake_at = None;
            }
            agent.handle(&uid, Input::Woken);
        }
    }
}

impl Agent {
    /// Tells every life what the map says. Returns, at the start, what runs here and is bound elsewhere.
    fn look(&mut self, at_start: bool) -> Vec<String> {
        let view = self.site.picture.view();
        let mut bound: BTreeMap<String, (String, Arc<Pod>)> = BTreeMap::new();
        for (key, pod) in view.pods_on(&node_name(self.site.number)) {
            if let Some(uid) = &pod.metadata.uid {
                bound.insert(uid.clone(), (key.to_string(), pod.clone()));
            }
        }
        let mut strays = Vec::new();
        if at_start {
            strays = self.site.world.machine(self.site.number, |machine| machine.uids());
            strays.retain(|uid| !bound.contains_key(uid));
        }
        for (uid, (key, pod)) in &bound {
            if !self.lives.contains_key(uid) {
                let found = self.site.world.machine(self.site.number, |machine| machine.found(uid));
                self.site.world.count(if found.is_some() { "pods adopted" } else { "pods new" });
                let (ips, now) = (vec!["192.0.2.1".to_owned()], self.site.clock.now());
                let life = PodLife::adopt(pod.clone(), ips, found.unwrap_or_default(), now);
                self.lives.insert(uid.clone(), Life { life, key: key.clone(), wake_at: None });
            }
            self.handle(uid, Input::Desired(Some(pod.clone())));
        }
        let unbound: Vec<String> =
            self.lives.keys().filter(|uid| !bound.contains_key(*uid)).cloned().collect();
        for uid in unbound {
            self.handle(&uid, Input::Desired(None));
        }
        strays
    }

    fn handle(&mut self, uid: &str, input: Input) {
        let Some(life) = self.lives.get_mut(uid) else { return };
        let mut effects = Vec::new();
        life.life.handle(self.site.clock.now(), input, &mut effects);
        for effect in effects {
            self.perform(uid, effect);
        }
    }

    fn perform(&mut self, uid: &str, effect: Effect) {
        let site = self.site.clone();
        let pod = uid.to_owned();
        match effect {
            Effect::MakeSandbox { attempt } => self.after(10..60, uid, move || {
                let sandbox = site.world.machine(site.number, |machine| machine.make_sandbox(&pod));
                Some(Input::Sandbox { attempt, result: Ok(sandbox) })
            }),
            Effect::PullImage { container, pull, .. } => self.after(5..200, uid, move || {
                Some(Input::Image { container, pull, result: Ok(Image { id: DIGEST.into() }) })
            }),
            Effect::StartContainer { name, attempt, .. } => self.after(10..150, uid, move || {
                let started_at = site.clock.wall();
                let started = site.world.start_container(site.number, &pod, &name, attempt, started_at);
                let state = match started {
                    Ok(()) => ContainerState::Running { started_at },
                    Err(message) => {
                        let reason = "RunContainerError".to_owned();
                        ContainerState::Failed(StartError { reason, message })
                    }
                };
                Some(Input::Container { name, attempt, state })
            }),
            Effect::StopContainer { name, attempt, .. } => self.after(5..300, uid, move || {
                let state = site.world.end_container(site.number, &pod, &name, attempt, 143)?;
                Some(Input::Container { name, attempt, state })
            }),
            Effect::KillContainer { name, attempt } => self.after(1..20, uid, move || {
                let state = site.world.end_container(site.number, &pod, &name, attempt, 137);
                let lost = ContainerState::Lost { noticed_at: site.clock.wall() };
                Some(Input::Container { name, attempt, state: state.unwrap_or(lost) })
            }),
            Effect::RemoveContainer { name, attempt } => {
                site.world.machine(site.number, |machine| machine.remove_container(&pod, &name, attempt));
            }
            Effect::RemoveSandbox => self.after(5..50, uid, move || {
                site.world.remove_sandbox(site.number, &pod);
                Some(Input::SandboxRemoved)
            }),
            Effect::Probe { container, attempt, kind, .. } => {
                self.after(1..20, uid, move || Some(Input::Probed { container, attempt, kind, ok: true }))
            }
            // Nobody reads what pods went through; the log has enough to do.
            Effect::Tell { .. } => {}
            Effect::Report(status) => self.report(uid, Report::Status(status)),
            Effect::Gone { delete } => {
                if delete {
                    self.report(uid, Report::Delete);
                }
                self.lives.remove(uid);
            }
            Effect::WakeAt(at) => {
                if let Some(life) = self.lives.get_mut(uid) {
                    life.wake_at = Some(at);
                }
            }
        }
    }

    /// Does `work` a little later, unless the daemon is killed before, and tells the life what came of it.
    fn after(
        &mut self,
        ms: std::ops::Range<u64>,
        uid: &str,
        work: impl FnOnce() -> Option<Input> + Send + 'static,
    ) {
        let time = Duration::from_millis(self.chance.random_range(ms));
        let (back, uid) = (self.back.clone(), uid.to_owned());
        drop(SimRt::spawn(async move {
            SimRt::sleep(time).await;
            if let Some(input) = work() {
                // The agent ends with this process, and then nobody wants to know.
                let _ = back.unbounded_send((uid, input));
            }
        }));
    }

    fn report(&self, uid: &str, report: Report) {
        let Some(life) = self.lives.get(uid) else { return };
        let name = (life.key.clone(), uid.to_owned());
        let mut reports = self.reports.lock().unwrap();
        // After the order to delete there is nothing more to say.
        if !matches!(reports.get(&name), Some(Report::Delete)) {
            reports.insert(name, report);
        }
    }
}

/// Writes what the pods do, one batch at a time.
async fn write(site: Site, reports: Reports) {
    loop {
        SimRt::sleep(LOOK_EVERY).await;
        let state = site.store.state();
        let mut batch = Vec::new();
        let mut ops = Vec::new();
        while ops.len() < BATCH_MAX {
            let Some((name, report)) = reports.lock().unwrap().pop_first() else { break };
            if let Some(op) = operation(&state, &name, &report) {
                ops.push(op);
                batch.push((name, report));
            }
        }
        if ops.is_empty() {
            continue;
        }
        let options = Options { atomic: false, ..Options::default() };
        match site.store.propose(ops, options).await {
            Ok(answer) => {
                for ((name, report), outcome) in batch.into_iter().zip(answer.outcomes) {
                    if let Outcome::Refused(_) = outcome {
                        site.world.count("status refused");
                        reports.lock().unwrap().entry(name).or_insert(report);
                    }
                }
                site.picture.reach(answer.revision).await;
            }
            Err(_) => {
                let mut reports = reports.lock().unwrap();
                for (name, report) in batch {
                    reports.entry(name).or_insert(report);
                }
            }
        }
        SimRt::sleep(RETRY / 10).await;
    }
}

fn operation(state: &State, (key, uid): &Name, report: &Report) -> Option<Op> {
    let object = state.get(key)?;
    let mut json: Value = serde_json::from_slice(&object.value).ok()?;
    if json["metadata"]["uid"] != uid.as_str() {
        return None;
    }
    let change = match report {
        Report::Delete => Change::Delete,
        Report::Status(status) => {
            let mut status = serde_json::to_value(status).expect("a status is plain data");
            keep_what_others_say(&json["status"], &mut status);
            json["status"] = status;
            Change::Put(json.to_string().into())
        }
    };
    Some(Op { key: key.as_str().into(), expect: Expect::Revision(object.mod_rev), change })
}

/// Conditions of others, such as the scheduler's, stay; so does what only they set.
fn keep_what_others_say(old: &Value, new: &mut Value) {
    for field in ["startTime", "qosClass"] {
        if new[field].is_null() && !old[field].is_null() {
            new[field] = old[field].clone();
        }
    }
    let known: Vec<Value> = new["conditions"].as_array().cloned().unwrap_or_default();
    let said = |kind: &Value| known.iter().any(|condition| condition["type"] == *kind);
    let others = old["conditions"].as_array().into_iter().flatten();
    let others: Vec<Value> = others.filter(|condition| !said(&condition["type"])).cloned().collect();
    if !others.is_empty() {
        new["conditions"] = others.into_iter().chain(known).collect();
    }
}

/// Keeps this machine's Node object: there, and Ready unless the judge says otherwise.
async fn keep_node(site: Site) {
    let name = node_name(site.number);
    let key = format!("core/nodes//{name}");
    loop {
        SimRt::sleep(RETRY).await;
        let state = site.store.state();
        let object = state.get(&key);
        let before = object.and_then(|object| serde_json::from_slice::<Value>(&object.value).ok());
        let after = match &before {
            None => new_node(&name),
            Some(_) if is_marked(&site.picture.view(), &name) => continue,
            Some(node) if node["status"]["conditions"][0]["status"] == "True" => continue,
            Some(node) => {
                let mut node = node.clone();
                node["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
                node
            }
        };
        let expect = object.map_or(Expect::Absent, |object| Expect::Revision(object.mod_rev));
        let change = Change::Put(after.to_string().into());
        let op = Op { key: key.as_str().into(), expect, change };
        // Looked at again in a moment, whatever came of it.
        if let Ok(answer) = site.store.propose(vec![op], Options::default()).await {
            site.picture.reach(answer.revision).await;
        }
    }
}

fn new_node(name: &str) -> Value {
    let offered = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "uid": format!("uid-of-{name}"), "generation": 1,
            "creationTimestamp": "2025-10-09T08:53:20Z",
            "labels": {"kubernetes.io/hostname": name},
        },
        "spec": {},
        "status": {
            "capacity": offered, "allocatable": offered,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}
