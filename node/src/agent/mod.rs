//! This node's share of the pods: what the map binds here runs here, and nothing else does.
//!
//! One task per pod owns its [`PodLife`](skein_control::pod::PodLife) and performs its effects; the agent
//! only tells them what the map says. All of it is found again after a restart: the runtime lists what
//! runs, the picture says what should.

mod container;
mod events;
mod forwarding;
mod images;
mod logs;
mod node;
mod pod;
mod probes;
mod status;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skein_api::sealed;
use skein_control::event::Notice;
use skein_control::homecoming::{self, Homecoming};
use skein_control::pod::is_given_up;
use skein_control::pod_network::Trouble;
use skein_control::pressure::Pressures;
use skein_control::view::PodsOf;
use skein_net::endpoint::Endpoint;
use skein_net::gossip::service::Members as Gossiped;
use skein_net::interfaces::Interfaces;
use skein_podnet::{Network, Peer, Subnet};
use skein_raft_store::log::Health;
use skein_raft_store::{Handle, TokioRuntime, WatchError};
use skein_runtime::{Engine, PodUid, Sandbox};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::clock;
use crate::members::Members;
use crate::picture::Picture;
use crate::secrets::Vault;
use crate::surroundings;

pub(crate) use images::ClusterImages;
pub(crate) use logs::Logs;
pub(crate) use node::Offer;

/// Between tries to end a pod that is not bound here any more.
/// How soon after a change files of pods follow it, at least: kubelet takes up to a minute.
const FILES_EVERY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
/// Between tries to have the Secrets of pods opened.
const LEARN_AGAIN: Duration = Duration::from_secs(30);
/// How long the picture may lag behind the map at start before what is not bound here is stopped: a
/// rebooted node must not kill pods it merely has not read about yet.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// What an agent works with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) node: Arc<str>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) images: ClusterImages,
    pub(crate) network: Arc<std::sync::Mutex<Network>>,
    pub(crate) picture: Picture,
    pub(crate) vault: Vault,
    pub(crate) status: status::Outbox,
    pub(crate) endpoint: Endpoint,
    pub(crate) events: events::Sender,
}

/// See the module.
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) images: ClusterImages,
    pub(crate) network: Network,
    pub(crate) picture: Picture,
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) vault: Vault,
    pub(crate) endpoint: Endpoint,
    pub(crate) members: Members,
    pub(crate) gossiped: watch::Receiver<Arc<Gossiped>>,
    pub(crate) offer: Offer,
    pub(crate) disk: watch::Receiver<Health>,
    pub(crate) pressures: watch::Receiver<Pressures>,
    /// The mark of its links.
    pub(crate) tag: String,
    /// Its pods' addresses.
    pub(crate) subnet: Subnet,
    /// Told of what keeps pods from the network.
    pub(crate) troubles: watch::Sender<Vec<Trouble>>,
}

impl Agent {
    /// Runs until `stopping`. Pods go on when it ends: they are no part of the daemon.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let tasks = TaskTracker::new();
        let status = status::Outbox::default();
        tasks.spawn(self.images.clone().follow(stopping.clone()));
        let (events, notices) = events::channel();
        let tools = Tools {
            node: self.name.as_str().into(),
            engine: self.engine.clone(),
            images: self.images,
            network: Arc::new(std::sync::Mutex::new(self.network)),
            picture: self.picture.clone(),
            vault: self.vault,
            status: status.clone(),
            endpoint: self.endpoint.clone(),
            events,
        };
        tasks.spawn(events::write(self.store.clone(), notices, stopping.clone()));
        tasks.spawn(learn_secrets(tools.clone(), self.store.clone(), stopping.clone()));
        tasks.spawn(status::write(self.store.clone(), self.picture.clone(), status, stopping.clone()));
        let (home, is_home) = watch::channel(false);
        tasks.spawn(node::keep(
            is_home,
            self.store.clone(),
            self.picture.clone(),
            self.endpoint.clone(),
            self.offer,
            self.disk,
            self.pressures,
            self.troubles.subscribe(),
            stopping.clone(),
        ));
        let forwarding = forwarding::Forwarding {
            node: tools.node.clone(),
            tag: self.tag,
            subnet: self.subnet,
            network: tools.network.clone(),
            endpoint: self.endpoint.clone(),
            picture: self.picture.clone(),
            events: tools.events.clone(),
            troubles: self.troubles,
        };
        tasks.spawn(forwarding.keep(stopping.clone()));
        tasks.spawn(routes(
            tools.network.clone(),
            self.endpoint,
            self.members,
            self.gossiped,
            stopping.clone(),
        ));
        let settled = tokio::select! {
            settled = picture_is_settled(&self.store, &self.picture) => settled,
            () = stopping.cancelled() => return tasks_end(tasks).await,
        };
        pods(tools, &self.store, settled, home, &stopping).await;
        tasks_end(tasks).await;
    }
}

async fn tasks_end(tasks: TaskTracker) {
    tasks.close();
    tasks.wait().await;
}

/// Waits until the picture shows what was committed before this start, or, without a quorum, for a
/// while: then what was bound here last time is bound here still. Returns whether the picture is complete.
async fn picture_is_settled(store: &Handle<TokioRuntime>, picture: &Picture) -> bool {
    picture.catch_up(store, SETTLE_MAX).await.is_ok()
}

/// Waits for as long as that takes.
async fn settle(store: Handle<TokioRuntime>, picture: Picture) {
    while !picture_is_settled(&store, &picture).await {
        // It took its time already, unless the store has stopped.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whether this node's own log holds everything that its pods were started by.
fn has_log(store: &Handle<TokioRuntime>) -> bool {
    let metrics = store.metrics();
    metrics.has_log(metrics.voter)
}

/// One task for each pod bound here or found here. What [`Homecoming`] decides about those found comes first; when it
/// is over, `home` says so.
async fn pods(
    tools: Tools,
    store: &Handle<TokioRuntime>,
    settled: bool,
    home: watch::Sender<bool>,
    stopping: &CancellationToken,
) {
    let mut settled = settled;
    let mut settling = Box::pin(settle(store.clone(), tools.picture.clone()));
    if !settled {
        warn!("without a quorum: what runs goes on, and nothing is removed until there is one");
    }
    let mut exits = tools.engine.exits();
    let mut found: BTreeMap<PodUid, Sandbox> = match tools.engine.list().await {
        Ok(found) => found.into_iter().map(|sandbox| (sandbox.spec.pod.clone(), sandbox)).collect(),
        Err(error) => {
            warn!(%error, "could not find what runs on this machine");
            BTreeMap::new()
        }
    };
    if !found.is_empty() {
        info!(count = found.len(), "found what runs");
    }
    let mut homecoming = Homecoming::new(found.keys().cloned());
    let here = tools.picture.view().pods_of(&tools.node);
    let mut input = settled.then(|| homecoming::Input::Settled(by_uid(&here).into_keys().collect()));
    let (mut effects, mut wake_at) = (Vec::new(), None);
    let live: BTreeSet<String> = found.keys().map(|uid| uid.as_str().to_owned()).collect();
    let network = tools.network.clone();
    let retained =
        tokio::task::spawn_blocking(move || network.lock().expect("nobody panics holding it").retain(&live));
    if let Ok(Err(error)) = retained.await {
        warn!(%error, "could not clear links of pods that are gone");
    }
    let mut running: BTreeMap<PodUid, pod::Address> = BTreeMap::new();
    let tasks = TaskTracker::new();
    // One word of each worker, and of each that ends what nobody wants.
    let (gone, mut ended) = mpsc::unbounded_channel::<PodUid>();
    let mut revisions = tools.picture.revisions();
    // When to look whether what files of pods are made from has changed.
    let (mut changes, mut look_at) = (tools.picture.revisions(), None);
    loop {
        if let Some(input) = input.take() {
            homecoming.handle(clock::boot(), input, &mut effects);
        }
        for effect in effects.drain(..) {
            match effect {
                homecoming::Effect::End(uid) => {
                    // One that went on without a quorum has a worker, which hears below that it is not bound here.
                    if let Some(sandbox) = found.remove(&uid) {
                        tell_end(&tools, &sandbox);
                        let (tools, gone, stopping) = (tools.clone(), gone.clone(), stopping.clone());
                        tasks.spawn(async move {
                            remove_stray(&tools, &uid, &stopping).await;
                            let _ = gone.send(uid);
                        });
                    }
                }
                homecoming::Effect::WakeAt(at) => wake_at = Some(at),
                homecoming::Effect::Home { left } => {
                    for uid in left {
                        warn!(%uid, "a pod that was replaced elsewhere does not end; this node goes on without waiting for it");
                    }
                    wake_at = None;
                    home.send_replace(true);
                }
            }
        }
        let here = tools.picture.view().pods_of(&tools.node);
        let mut bound = by_uid(&here);
        let has_log = homecoming.is_home() || has_log(store);
        let all = bound.len();
        bound.retain(|uid, _| running.contains_key(uid) || homecoming.may_begin(uid, has_log));
        let some_wait = bound.len() < all;
        bound.retain(|uid, pod| !is_given_up(pod) || running.contains_key(uid) || found.contains_key(uid));
        for (uid, pod) in &bound {
            let address = running.entry(uid.clone()).or_insert_with(|| {
                let (found, tools, stopping) = (found.remove(uid), tools.clone(), stopping.clone());
                let worker = pod::Worker::new(uid.clone(), pod.clone(), found, tools, stopping);
                let (address, gone, uid) = (worker.address(), gone.clone(), uid.clone());
                tasks.spawn(async move {
                    worker.run().await;
                    let _ = gone.send(uid);
                });
                address
            });
            // A worker that is about to end takes no more; its end is on the way here.
            address.want(Some(pod.clone()));
        }
        for (_, address) in running.iter().filter(|(uid, _)| !bound.contains_key(*uid)) {
            address.want(None);
        }
        tokio::select! {
            () = stopping.cancelled() => break,
            () = &mut settling, if !settled => {
                settled = true;
                let here = tools.picture.view().pods_of(&tools.node);
                input = Some(homecoming::Input::Settled(by_uid(&here).into_keys().collect()));
            }
            () = clock::sleep_until(wake_at) => {
                wake_at = None;
                input = Some(homecoming::Input::Woken);
            }
            Ok(()) = changes.changed(), if look_at.is_none() => {
                look_at = Some(tokio::time::Instant::now() + FILES_EVERY);
            }
            () = tokio::time::sleep_until(look_at.unwrap_or_else(tokio::time::Instant::now)), if look_at.is_some() => {
                let view = tools.picture.view();
                let busy = running.values().filter(|address| !address.look_at_files(&view)).count();
                look_at = (busy > 0).then(|| tokio::time::Instant::now() + FILES_EVERY);
            }
            // Whether those that wait may begin depends on more than the pods.
            () = news(&tools, &mut revisions, (!some_wait).then_some(&here)) => {}
            Some(uid) = ended.recv() => {
                running.remove(&uid);
                input = Some(homecoming::Input::Ended(uid));
            }
            Some((id, exit)) = exits.next() => {
                if let Some(address) = running.get(&id.pod) {
                    tasks.spawn(address.clone().exited(id, exit));
                }
            }
        }
    }
    // Workers stop where they are; their containers go on.
    tasks.close();
    tasks.wait().await;
}

/// Waits until the picture has other pods on this node than these, or until it moves at all. What happens elsewhere
/// costs one comparison.
async fn news(tools: &Tools, revisions: &mut watch::Receiver<u64>, than: Option<&PodsOf>) {
    while revisions.changed().await.is_ok() {
        if than.is_none_or(|than| !tools.picture.view().pods_of(&tools.node).is_same(than)) {
            return;
        }
    }
    // The picture is gone, and with it all news.
    std::future::pending().await
}

/// Pods that run, or may run, on this node.
fn by_uid(here: &PodsOf) -> BTreeMap<PodUid, Arc<Pod>> {
    let pods = here.iter().filter_map(|(_, pod)| {
        let uid = pod.metadata.uid.as_deref()?.parse().ok()?;
        Some((uid, pod.clone()))
    });
    pods.collect()
}

/// Says that a pod ends here: the one that took its place runs elsewhere, and nobody asked for this end.
fn tell_end(tools: &Tools, sandbox: &Sandbox) {
    let spec = &sandbox.spec;
    info!(uid = %spec.pod, namespace = spec.namespace, name = spec.name, "ends a pod that is not bound here any more");
    let metadata = ObjectMeta {
        namespace: Some(spec.namespace.clone()),
        name: Some(spec.name.clone()),
        uid: Some(spec.pod.to_string()),
        ..ObjectMeta::default()
    };
    let message = "Stopping what is left of a pod that was replaced or deleted while its node was away";
    let mut notice = Notice::about::<Pod>(&metadata, "kubelet", "Killing", message);
    notice.host = Some(tools.node.to_string());
    tools.events.tell(notice);
}

/// Ends a pod of which nothing is to be left, and tries until that is so.
async fn remove_stray(tools: &Tools, uid: &PodUid, stopping: &CancellationToken) {
    while let Err(error) = tools.engine.remove_sandbox(uid).await {
        warn!(%uid, error = %crate::report::Chain(&error), "could not end a pod, trying on");
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    let (network, pod) = (tools.network.clone(), uid.as_str().to_owned());
    let detached =
        tokio::task::spawn_blocking(move || network.lock().expect("nobody panics holding it").detach(&pod));
    if let Ok(Err(error)) = detached.await {
        warn!(%uid, %error, "could not take a pod off the network");
    }
}

/// Keeps what opens the Secrets of this node's pods as it changes, for when a pod starts and no voter answers.
async fn learn_secrets(tools: Tools, store: Handle<TokioRuntime>, stopping: CancellationToken) {
    let mut shown = tools.picture.revisions();
    loop {
        let revision = store.state().revision();
        let mut changes = match store.watch(sealed::PREFIX, revision) {
            Ok(changes) => changes,
            Err(WatchError::Compacted { .. }) => continue,
            Err(WatchError::Stopped) => return,
        };
        let learn = async {
            if shown.wait_for(|shown| *shown >= revision).await.is_err() {
                // The picture is gone, and with it all news.
                std::future::pending::<()>().await;
            }
            let view = tools.picture.view();
            tools.vault.learn(&view, &view.pods_of(&tools.node)).await
        };
        let learned = tokio::select! {
            () = stopping.cancelled() => return,
            learned = learn => learned,
        };
        let again = match &learned {
            Ok(()) => Duration::MAX,
            Err(error) => {
                debug!(error, "the Secrets of pods here cannot be opened now");
                LEARN_AGAIN
            }
        };
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = changes.next() => {}
            () = tokio::time::sleep(again) => {}
        }
    }
}

/// Keeps the routes to other nodes' pods as gossip has the nodes' addresses.
async fn routes(
    network: Arc<std::sync::Mutex<Network>>,
    endpoint: Endpoint,
    members: Members,
    mut gossiped: watch::Receiver<Arc<Gossiped>>,
    stopping: CancellationToken,
) {
    let mut set = None;
    let mut addresses = endpoint.addresses();
    let machine = endpoint.machine();
    // Members come by the map, addresses by gossip: whichever is later, a second later all is known.
    let mut timer = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = gossiped.changed() => if changed.is_err() { return },
            // The kernel drops routes with the last address of their link, and refuses those to a network
            // that this machine has no address in yet.
            Ok(()) = addresses.changed() => set = None,
            _ = timer.tick() => {}
        }
        let peers: BTreeSet<Peer> = members
            .present()
            .into_values()
            .filter(|record| record.node != endpoint.node())
            .filter_map(|record| {
                let known = gossiped.borrow().get(&record.node).map(|member| member.addresses().to_vec());
                let addresses = known.filter(|known| !known.is_empty()).unwrap_or(record.addresses);
                let via = gateway(&machine.borrow(), &addresses)?;
                Some(Peer { subnet: record.subnet, via })
            })
            .collect();
        // Around the cluster's range every pod would lie in it: only what is inside is somebody's own.
        let overlaps = surroundings::overlaps(&machine.borrow());
        let inside = overlaps.iter().filter(|overlap| overlap.is_inside());
        let taken: BTreeSet<Subnet> = inside.map(|overlap| overlap.present.network).collect();
        let wanted = (peers, taken);
        if set.as_ref() == Some(&wanted) {
            continue;
        }
        // Trying the same again every second would say the same, should the kernel refuse some of it.
        set = Some(wanted.clone());
        let (network, (peers, taken)) = (network.clone(), wanted);
        let done = tokio::task::spawn_blocking(move || {
            network.lock().expect("nobody panics holding it").set_peers(&peers, &taken)
        });
        match done.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(error = %crate::report::Chain(&error), "pods of some nodes cannot be reached");
            }
            Err(_) => return,
        }
    }
}

/// Where packets for the pods of a node at these addresses go: to the first that is on a link of this machine.
fn gateway(machine: &Interfaces, addresses: &[SocketAddr]) -> Option<IpAddr> {
    let theirs = || addresses.iter().map(SocketAddr::ip).filter(|ip| !machine.has(*ip));
    // The kernel says what is wrong with another one.
    theirs().find(|ip| machine.is_on_link(*ip)).or_else(|| theirs().next())
}
