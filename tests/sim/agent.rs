//! A node's share of the pods: their lives, the machine's effects, their status, and the Node object.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::channel::oneshot;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use openraft::AsyncRuntime;
use openraft::async_runtime::Select2;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use skein_api::write::{Change, Expect, Write};
use skein_control::homecoming::{self, Homecoming};
use skein_control::node::roster::as_member;
use skein_control::pod::report::{Name, Report, Reports};
use skein_control::pod::{ContainerState, Effect, Image, Input, PodLife, StartError, is_given_up};
use skein_control::time::Instant;
use skein_raft_store::sim::SimRt;
use skein_raft_store::{Options, Outcome};

use crate::machine::DIGEST;
use crate::watch::is_called_unreachable;
use crate::world::{Site, node_name};
use crate::{members, planner};

const SETTLE_MAX: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(200);

struct Life {
    life: PodLife,
    name: Name,
    wake_at: Option<Instant>,
}

struct Agent {
    site: Site,
    chance: StdRng,
    lives: BTreeMap<String, Life>,
    homecoming: Homecoming<String>,
    wake_at: Option<Instant>,
    home: Option<oneshot::Sender<()>>,
    reports: UnboundedSender<(Name, Report)>,
    back: UnboundedSender<In>,
}

/// What comes back to an agent.
enum In {
    /// Of one life, by its uid.
    Life(String, Input),
    /// The picture is complete.
    Settled,
    /// Nothing is left of a pod that is not bound here any more.
    Ended(String),
}

/// Runs the pods bound here until the process ends; what runs goes on.
pub(crate) async fn run(site: Site, seed: u64) {
    let (reports, reported) = unbounded();
    drop(SimRt::spawn(write(site.clone(), reported)));
    let (home, is_home) = oneshot::channel();
    drop(SimRt::spawn(keep_node(site.clone(), is_home)));
    let settled = picture_is_settled(&site).await;
    let (back, mut inbox) = unbounded();
    let mut agent = Agent {
        site: site.clone(),
        chance: StdRng::seed_from_u64(seed),
        lives: BTreeMap::new(),
        homecoming: Homecoming::new(site.world.machine(site.number, |machine| machine.uids())),
        wake_at: None,
        home: Some(home),
        reports,
        back,
    };
    if settled {
        agent.settled();
    } else {
        site.world.count("starts without a quorum");
        drop(SimRt::spawn(settle(site.clone(), agent.back.clone())));
    }
    let mut moves = site.picture.moves();
    let mut looked_at = None;
    loop {
        let seen = (agent.homecoming.is_home(), site.picture.revision());
        if looked_at != Some(seen) {
            looked_at = Some(seen);
            agent.look();
        }
        let idle = site.clock.boot().after(SETTLE_MAX);
        let wakes = agent.lives.values().filter_map(|life| life.wake_at).chain(agent.wake_at);
        let wake = wakes.min().unwrap_or(idle);
        let input = SimRt::select2(inbox.next(), moves.next());
        match SimRt::timeout_at(site.clock.moment(wake), input).await {
            Ok(Select2::First(Some(In::Settled))) => agent.settled(),
            Ok(Select2::First(Some(In::Ended(uid)))) => agent.come_home(homecoming::Input::Ended(uid)),
            Ok(Select2::First(Some(In::Life(uid, input)))) => agent.handle(&uid, input),
            Ok(Select2::First(None)) => return,
            Ok(Select2::Second(())) | Err(_) => {}
        }
        let now = site.clock.boot();
        if agent.wake_at.is_some_and(|at| at <= now) {
            agent.wake_at = None;
            agent.come_home(homecoming::Input::Woken);
        }
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

/// Whether the picture shows what was committed before this start; waits for that, without a quorum not for ever.
async fn picture_is_settled(site: &Site) -> bool {
    match site.store.read_index(SETTLE_MAX).await {
        Ok(revision) => {
            site.picture.reach(revision).await;
            true
        }
        Err(_) => false,
    }
}

async fn settle(site: Site, back: UnboundedSender<In>) {
    while !picture_is_settled(&site).await {
        SimRt::sleep(RETRY).await;
    }
    // The agent ends with this process.
    let _ = back.unbounded_send(In::Settled);
}

/// Whether this node's own log holds everything that its pods were started by.
fn has_log(site: &Site) -> bool {
    let metrics = site.store.metrics();
    metrics.has_log(metrics.voter)
}

impl Agent {
    fn bound_here(&self) -> BTreeMap<String, Arc<Pod>> {
        let (view, name) = (self.site.picture.view(), node_name(self.site.number));
        let pods = view.pods_on(&name);
        pods.filter_map(|(_, pod)| Some((pod.metadata.uid.clone()?, pod.clone()))).collect()
    }

    fn settled(&mut self) {
        let bound = self.bound_here().into_keys().collect();
        self.come_home(homecoming::Input::Settled(bound));
    }

    fn come_home(&mut self, input: homecoming::Input<String>) {
        let mut effects = Vec::new();
        self.homecoming.handle(self.site.clock.boot(), input, &mut effects);
        for effect in effects {
            match effect {
                // One that went on without a quorum has a life, which hears that it is not bound here.
                homecoming::Effect::End(uid) if self.lives.contains_key(&uid) => {}
                homecoming::Effect::End(uid) => {
                    self.site.world.count("strays removed");
                    let (site, back) = (self.site.clone(), self.back.clone());
                    let time = Duration::from_millis(self.chance.random_range(5..50));
                    drop(SimRt::spawn(async move {
                        SimRt::sleep(time).await;
                        site.world.remove_sandbox(site.number, &uid);
                        // The agent ends with this process.
                        let _ = back.unbounded_send(In::Ended(uid));
                    }));
                }
                homecoming::Effect::WakeAt(at) => self.wake_at = Some(at),
                homecoming::Effect::Home { left } => {
                    if !left.is_empty() {
                        self.site.world.count("strays left");
                    }
                    self.wake_at = None;
                    // Nobody waits for it in a node that has just ended.
                    let _ = self.home.take().map(|home| home.send(()));
                }
            }
        }
    }

    /// Tells every life what the map says.
    fn look(&mut self) {
        let mut bound = self.bound_here();
        let has_log = self.homecoming.is_home() || has_log(&self.site);
        bound.retain(|uid, _| self.lives.contains_key(uid) || self.homecoming.may_begin(uid, has_log));
        let runs =
            |uid: &String| self.site.world.machine(self.site.number, |machine| machine.found(uid).is_some());
        bound.retain(|uid, pod| !is_given_up(pod) || self.lives.contains_key(uid) || runs(uid));
        for (uid, pod) in &bound {
            if !self.lives.contains_key(uid) {
                let found = self.site.world.machine(self.site.number, |machine| machine.found(uid));
                self.site.world.count(if found.is_some() { "pods adopted" } else { "pods new" });
                let (ips, now) = (vec!["192.0.2.1".to_owned()], self.site.clock.now());
                let life = PodLife::adopt(pod.clone(), ips, found.unwrap_or_default(), now);
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let (namespace, name) = (text(&pod.metadata.namespace), text(&pod.metadata.name));
                let name = Name { namespace, name, uid: uid.clone() };
                self.lives.insert(uid.clone(), Life { life, name, wake_at: None });
            }
            self.handle(uid, Input::Desired(Some(pod.clone())));
        }
        let unbound: Vec<String> =
            self.lives.keys().filter(|uid| !bound.contains_key(*uid)).cloned().collect();
        for uid in unbound {
            self.handle(&uid, Input::Desired(None));
        }
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
            Effect::Probe { container, attempt, kind, .. } => self
                .after(1..20, uid, move || Some(Input::Probed { container, attempt, kind, result: Ok(()) })),
            // No Deployment here has one; it would take its time as probes do.
            Effect::RunHook { container, attempt, hook, .. } => self
                .after(1..20, uid, move || Some(Input::Hooked { container, attempt, hook, result: Ok(()) })),
            // Nobody reads what pods went through; the log has enough to do.
            Effect::Tell { .. } => {}
            Effect::Report(status) => self.report(uid, Report::Status(status)),
            Effect::Gone { delete } => {
                if delete {
                    self.report(uid, Report::Delete);
                }
                self.lives.remove(uid);
                // The agent is alive: this is a part of it.
                let _ = self.back.unbounded_send(In::Ended(uid.to_owned()));
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
                let _ = back.unbounded_send(In::Life(uid, input));
            }
        }));
    }

    fn report(&self, uid: &str, report: Report) {
        if let Some(life) = self.lives.get(uid) {
            // The writer ends with this process.
            let _ = self.reports.unbounded_send((life.name.clone(), report));
        }
    }
}

/// Writes what the pods do, one batch at a time.
async fn write(site: Site, mut inbox: UnboundedReceiver<(Name, Report)>) {
    let mut reports = Reports::default();
    loop {
        if reports.is_empty() {
            let Some((pod, report)) = inbox.next().await else { return };
            reports.note(pod, report);
        }
        while let Some(Some((pod, report))) = inbox.next().now_or_never() {
            reports.note(pod, report);
        }
        let state = site.store.state();
        let batch = reports.batch(|key| state.get(key).map(|object| (object.mod_rev, &*object.value)));
        if batch.writes.is_empty() {
            continue;
        }
        let ops = batch.writes.into_iter().map(planner::op).collect();
        match site.store.propose(ops, Options { atomic: false, ..Options::default() }).await {
            Ok(answer) => {
                let refused = batch.reports.into_iter().zip(answer.outcomes);
                let refused = refused.filter(|(_, outcome)| matches!(outcome, Outcome::Refused(_)));
                reports.give_back(refused.map(|(report, _)| {
                    site.world.count("status refused");
                    report
                }));
                site.picture.reach(answer.revision).await;
            }
            Err(_) => {
                reports.give_back(batch.reports);
                SimRt::sleep(RETRY).await;
            }
        }
    }
}

/// Keeps this machine's Node object: there, and Ready unless the judge says otherwise, once the node is home.
async fn keep_node(site: Site, is_home: oneshot::Receiver<()>) {
    if is_home.await.is_err() {
        return;
    }
    let name = node_name(site.number);
    let key = format!("core/nodes//{name}");
    let mut moves = site.picture.moves();
    loop {
        let state = site.store.state();
        let object = state.get(&key);
        let before = object.and_then(|object| serde_json::from_slice::<Value>(&object.value).ok());
        let after = match &before {
            None => described(&site, new_node(&name)),
            Some(node) => described(&site, node.clone()),
        };
        if before.as_ref() == Some(&after) {
            moves.next().await;
            continue;
        }
        let expect = object.map_or(Expect::Absent, |object| Expect::Revision(object.mod_rev));
        let write = Write { key: key.clone(), expect, change: Change::Put(after.to_string().into()) };
        let member = members::key(site.id);
        let held = state.get(&member).map(|object| (object.mod_rev, &*object.value));
        let Some(writes) = as_member(&member, held, write) else {
            moves.next().await;
            continue;
        };
        match site.store.propose(writes.map(planner::op).into(), Options::default()).await {
            Ok(answer) => site.picture.reach(answer.revision).await,
            Err(_) => SimRt::sleep(RETRY).await,
        }
    }
}

/// What this node says of itself: where it is, and that it is Ready unless the judge says otherwise.
fn described(site: &Site, mut node: Value) -> Value {
    let (_, api) = site.world.lan.addresses(site.number);
    node["status"]["addresses"] = json!([{"type": "InternalIP", "address": api.ip()}]);
    node["status"]["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": api.port()}});
    if !is_called_unreachable(&site.picture.view(), &node_name(site.number)) {
        node["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    }
    node
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
