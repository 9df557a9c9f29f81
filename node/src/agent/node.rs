//! This machine's own Node object: made when the node joins, kept true, and said to be Ready while its
//! agent runs. No heartbeat is written: whether a node lives is the judge's business.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};
use skein_api::write::{Change, Expect, Write};
use skein_control::node::roster::as_member;
use skein_control::places::NODE_ID;
use skein_control::pod_network::Trouble;
use skein_control::pressure::Pressures;
use skein_net::endpoint::Endpoint;
use skein_raft_store::log::Health;
use skein_raft_store::{Handle, Options, Outcome, State, TokioRuntime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock;
use crate::cluster::op;
use crate::members::Record;
use crate::picture::Picture;
use crate::pressure;

const RETRY: Duration = Duration::from_millis(500);
/// A full disk is told to the log of a leader who may have no room for it.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Of the disk so much is offered to pods, as kubelet has it: the rest is what pressure begins at.
const ALLOCATABLE_PERCENT: u64 = 90;
/// Pods one node takes, as kubelet has it.
const PODS_MAX: u64 = 110;

/// What this machine offers.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) name: String,
    pub(crate) node_id: String,
    pub(crate) api_port: u16,
    pub(crate) subnet: String,
    /// Of this many nodes on one machine each offers its share.
    pub(crate) share: u64,
    /// What the disk of the data directory holds.
    pub(crate) disk_kib: u64,
}

/// Keeps the Node object until `stopping`, from when this node `is_home`: before that it has pods that run elsewhere.
#[expect(
    clippy::too_many_arguments,
    reason = "what a Node object says comes from many places, and nobody else calls it"
)]
pub(crate) async fn keep(
    mut is_home: watch::Receiver<bool>,
    store: Handle<TokioRuntime>,
    picture: Picture,
    endpoint: Endpoint,
    offer: Offer,
    mut disk: watch::Receiver<Health>,
    mut pressures: watch::Receiver<Pressures>,
    mut troubles: watch::Receiver<Vec<Trouble>>,
    stopping: CancellationToken,
) {
    let mut pause = RETRY;
    let mut addresses = endpoint.addresses();
    let key = format!("core/nodes//{}", offer.name);
    let member = Record::key(endpoint.node());
    let mut revisions = picture.revisions();
    let mut said_ready = false;
    tokio::select! {
        () = stopping.cancelled() => return,
        is_home = is_home.wait_for(|is_home| *is_home) => if is_home.is_err() { return },
    }
    loop {
        let state = store.state();
        let object = state.get(&key);
        let before = object.and_then(|object| serde_json::from_slice::<Value>(&object.value).ok());
        let (health, pressed) = (disk.borrow_and_update().clone(), *pressures.borrow_and_update());
        let ips = internal_ips(&addresses.borrow_and_update());
        let trouble = troubles.borrow_and_update().first().cloned();
        let after = offer.node(before.as_ref(), &ips, &health, pressed, trouble.as_ref());
        let write = Write {
            key: key.clone(),
            expect: object.map_or(Expect::Absent, |object| Expect::Revision(object.mod_rev)),
            change: Change::Put(serde_json::to_vec(&after).expect("JSON is written without error")),
        };
        // A node that has left says nothing more: its object would outlive it.
        let membership = state.get(&member);
        let held = membership.map(|object| (object.mod_rev, &*object.value));
        let writes = as_member(&member, held, write).filter(|_| before.as_ref() != Some(&after));
        if let Some(writes) = writes {
            let ops = writes.into_iter().map(op).collect();
            let proposed = tokio::select! {
                () = stopping.cancelled() => return,
                proposed = store.propose(ops, Options::default()) => proposed,
            };
            match proposed {
                Ok(answer) => {
                    pause = RETRY;
                    picture.reach(answer.revision).await;
                    if !said_ready && matches!(answer.outcomes[..], [_, Outcome::Done { .. }]) {
                        info!(node = offer.name, "ready");
                        said_ready = true;
                    }
                    continue;
                }
                Err(error) => {
                    warn!(%error, "could not write this node's object, trying on");
                    tokio::select! {
                        () = stopping.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(RETRY_MAX);
                    continue;
                }
            }
        }
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = revisions.changed() => if changed.is_err() { return },
                Ok(()) = addresses.changed() => break,
                Ok(()) = disk.changed() => break,
                Ok(()) = pressures.changed() => break,
                Ok(()) = troubles.changed() => break,
            }
            let now = store.state();
            let revision = |state: &State, key: &str| state.get(key).map(|object| object.mod_rev);
            if [&key, &member].iter().any(|key| revision(&now, key) != revision(&state, key)) {
                break;
            }
        }
    }
}

impl Offer {
    /// The object as it should be, given what is there: spec, labels and taints are others' to change.
    fn node(
        &self,
        before: Option<&Value>,
        ips: &[IpAddr],
        disk: &Health,
        pressures: Pressures,
        trouble: Option<&Trouble>,
    ) -> Value {
        let mut node = before.cloned().unwrap_or_else(|| self.new_node());
        let labels = [
            ("kubernetes.io/hostname", self.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", architecture()),
        ];
        for (label, value) in labels {
            node["metadata"]["labels"][label] = value.into();
        }
        node["metadata"]["annotations"][NODE_ID] = self.node_id.as_str().into();
        node["spec"]["podCIDR"] = self.subnet.as_str().into();
        node["spec"]["podCIDRs"] = json!([self.subnet]);
        node["status"]["capacity"] = self.capacity(100);
        node["status"]["allocatable"] = self.capacity(ALLOCATABLE_PERCENT);
        let ips = ips.iter().map(|ip| json!({ "type": "InternalIP", "address": ip.to_string() }));
        let name = json!({ "type": "Hostname", "address": self.name });
        node["status"]["addresses"] = ips.chain([name]).collect();
        node["status"]["daemonEndpoints"] = json!({ "kubeletEndpoint": { "Port": self.api_port } });
        node["status"]["nodeInfo"] = node_info();
        set_conditions(&mut node, disk, pressures, trouble);
        node
    }

    fn new_node(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "uid": uid(),
                "creationTimestamp": now(),
                "generation": 1,
            },
            "spec": {},
            "status": {},
        })
    }

    /// What there is; of the disk only `disk_percent`.
    fn capacity(&self, disk_percent: u64) -> Value {
        let cpu_millis =
            std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64) * 1000 / self.share;
        let memory_kib = pressure::memory().total / 1024 / self.share;
        let cpu = if cpu_millis.is_multiple_of(1000) {
            (cpu_millis / 1000).to_string()
        } else {
            format!("{cpu_millis}m")
        };
        json!({
            "cpu": cpu,
            "memory": format!("{memory_kib}Ki"),
            "pods": PODS_MAX.to_string(),
            "ephemeral-storage": format!("{}Ki", self.disk_kib / self.share * disk_percent / 100),
        })
    }
}

/// What others are told of where this node is, best first, as a Node object has it: one address of each family.
fn internal_ips(told: &[SocketAddr]) -> Vec<IpAddr> {
    let Some(best) = told.first().map(SocketAddr::ip) else { return Vec::new() };
    let other = told.iter().map(SocketAddr::ip).find(|ip| ip.is_ipv4() != best.is_ipv4());
    [Some(best), other].into_iter().flatten().collect()
}

/// The conditions that `kubectl` shows. Ready is taken back by the judge's verdict only, and given
/// back here once the taint of that verdict is gone.
fn set_conditions(node: &mut Value, disk: &Health, pressures: Pressures, trouble: Option<&Trouble>) {
    let unreachable = node["spec"]["taints"]
        .as_array()
        .is_some_and(|taints| taints.iter().any(|taint| taint["key"] == skein_api::scheduling::UNREACHABLE));
    if unreachable {
        return;
    }
    let disk = match disk {
        Health::Good => pressures.disk.then_some("little space is left on the disk"),
        Health::Full => Some("the disk is full"),
        Health::Failed(_) => Some("the disk has failed"),
    };
    let memory = pressures.memory.then_some("little memory is left");
    let processes = pressures.processes.then_some("few processes more can be started");
    // Kubelet's words, for whoever looks for them.
    let told = |kind, short: Option<&'static str>, pressed, calm, enough| match short {
        Some(why) => (kind, "True", pressed, why),
        None => (kind, "False", calm, enough),
    };
    let network = trouble.map(|trouble| (trouble.reason.to_string(), &*trouble.message));
    let network = network.as_ref().map_or(
        ("NetworkUnavailable", "False", "PodNetworkIsUp", "packets of pods pass this machine"),
        |(reason, message)| ("NetworkUnavailable", "True", reason, message),
    );
    let wanted = [
        network,
        told(
            "MemoryPressure",
            memory,
            "KubeletHasInsufficientMemory",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        told(
            "DiskPressure",
            disk,
            "KubeletHasDiskPressure",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        told(
            "PIDPressure",
            processes,
            "KubeletHasInsufficientPID",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ];
    let mut conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for (kind, status, reason, message) in wanted {
        let place = conditions.iter().position(|condition| condition["type"] == kind);
        if place.is_some_and(|place| {
            conditions[place]["status"] == status && conditions[place]["message"] == message
        }) {
            continue;
        }
        let condition = json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": now(), "lastHeartbeatTime": now(),
        });
        match place {
            Some(place) => conditions[place] = condition,
            None => conditions.push(condition),
        }
    }
    node["status"]["conditions"] = conditions.into();
}

fn node_info() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let release = read("/etc/os-release");
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    json!({
        "architecture": architecture(),
        "bootID": read("/proc/sys/kernel/random/boot_id"),
        "containerRuntimeVersion": concat!("skein://", env!("CARGO_PKG_VERSION")),
        "kernelVersion": read("/proc/sys/kernel/osrelease"),
        "kubeProxyVersion": "",
        "kubeletVersion": format!("v1.{}.0+skein.{}", skein_api::discovery::KUBERNETES_MINOR, env!("CARGO_PKG_VERSION")),
        "machineID": read("/etc/machine-id"),
        "operatingSystem": "linux",
        "osImage": pretty.trim_matches('"'),
        "systemUUID": "",
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn now() -> String {
    let seconds = jiff::Timestamp::from_second(clock::wall().as_second()).unwrap_or_default();
    seconds.to_string()
}

fn uid() -> String {
    skein_control::chance::Chance(rand::random()).of("node").uid()
}
