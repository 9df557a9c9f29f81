//! One pod: the shell around its life. Effects are performed at once or in a task; answers come back
//! as messages, so that nothing makes the worker deaf.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use skein_control::container::{self, Facts};
use skein_control::event::{Notice, container_path};
use skein_control::pod::{
    Attempt, ContainerState, Effect, Exit, Found, FoundContainer, Image, ImageError, Input, PodLife,
    PullPolicy, SandboxAttempt, StartError,
};
use skein_control::view::View;
use skein_runtime::images::{self, Images};
use skein_runtime::{ContainerId, End, Network, PodUid};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use super::status::{Name, Report};
use super::volumes::{self, Volumes};
use super::{Tools, probes};
use crate::clock;
use crate::report::Chain;

/// Output of a container that stands in for its last words.
const LAST_WORDS_LINES: usize = 80;
/// As much as kubelet keeps of them.
const LAST_WORDS_BYTES: usize = 2048;
/// What is read of the log for that: some of the largest records, and more short ones than are kept.
const LAST_WORDS_BYTES_READ: u64 = 64 << 10;

/// What a worker is told at once. Who tells it waits while there are so many: nothing of it can be left out, and there
/// is at most one answer to each effect, and one end of each start of a container.
const INBOX_MAX: usize = 64;

/// What a worker is told.
pub(super) enum Message {
    /// A container ended.
    Exited(ContainerId, skein_runtime::Exit),
    /// An answer to an effect.
    Input(Input),
    /// What its volumes' files are made from has changed.
    Outdated,
}

/// Where a worker is told things. Cheap to clone.
#[derive(Clone)]
pub(super) struct Address {
    desired: watch::Sender<Option<Arc<Pod>>>,
    inbox: mpsc::Sender<Message>,
    volumes: Arc<Volumes>,
}

impl Address {
    /// Has files made anew that `view` shows to be outdated. `false` if the worker could not be told now.
    pub(super) fn look_at_files(&self, view: &View) -> bool {
        let pod = self.desired.borrow().clone();
        let is_outdated = pod.is_some_and(|pod| self.volumes.are_outdated(view, &pod));
        !is_outdated || !matches!(self.inbox.try_send(Message::Outdated), Err(TrySendError::Full(_)))
    }

    /// The pod as the map has it; `None`: not bound here any more. What it was before does not matter.
    pub(super) fn want(&self, pod: Option<Arc<Pod>>) {
        self.desired.send_if_modified(|held| {
            let is_news = held.as_ref().map(Arc::as_ptr) != pod.as_ref().map(Arc::as_ptr);
            *held = pod;
            is_news
        });
    }

    /// A container ended. A worker that has ended does not want to know.
    pub(super) async fn exited(self, id: ContainerId, exit: skein_runtime::Exit) {
        let _ = self.inbox.send(Message::Exited(id, exit)).await;
    }
}

/// See the module.
pub(super) struct Worker {
    uid: PodUid,
    pod: Arc<Pod>,
    life: PodLife,
    tools: Tools,
    desired: watch::Receiver<Option<Arc<Pod>>>,
    inbox: mpsc::Receiver<Message>,
    address: Address,
    stopping: CancellationToken,
    wake_at: Option<skein_control::time::Instant>,
    /// The map still wants it here.
    bound: bool,
    addresses: Arc<Mutex<Vec<String>>>,
    /// Paths of the machine that stand for volumes.
    host_paths: Arc<Mutex<BTreeMap<String, PathBuf>>>,
}

impl Worker {
    /// A worker for a pod bound here; `found` is what ran of it already. On `stopping` its containers go on.
    pub(super) fn new(
        uid: PodUid,
        pod: Arc<Pod>,
        found: Option<skein_runtime::Sandbox>,
        tools: Tools,
        stopping: CancellationToken,
    ) -> Worker {
        let host_ips = vec![tools.endpoint.host_address().to_string()];
        let address = tools.network.lock().unwrap_or_else(PoisonError::into_inner).address(uid.as_str());
        let addresses: Vec<String> = match &found {
            Some(sandbox) if sandbox.spec.network == Network::Machine => host_ips.clone(),
            Some(_) => address.iter().map(ToString::to_string).collect(),
            None => Vec::new(),
        };
        let volumes = if found.is_some() { Volumes::adopted() } else { Volumes::default() };
        let life = match found {
            Some(sandbox) => {
                PodLife::adopt(pod.clone(), host_ips, adopted(sandbox, &addresses), clock::now())
            }
            None => PodLife::new(pod.clone(), host_ips, clock::now()),
        };
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let (wanted, mut desired) = watch::channel(Some(pod.clone()));
        desired.mark_changed();
        let addresses = Arc::new(Mutex::new(addresses));
        Worker {
            uid,
            pod,
            life,
            tools,
            desired,
            inbox,
            address: Address { desired: wanted, inbox: sender, volumes: Arc::new(volumes) },
            stopping,
            wake_at: None,
            bound: true,
            addresses,
            host_paths: Arc::default(),
        }
    }

    pub(super) fn address(&self) -> Address {
        self.address.clone()
    }

    /// Runs until nothing of the pod is left, or the daemon stops.
    pub(super) async fn run(mut self) {
        let pod = format!("{}/{}", self.namespace(), self.name());
        let span = info_span!("pod", %pod, uid = %self.uid);
        async {
            loop {
                let input = tokio::select! {
                    biased;
                    () = self.stopping.cancelled() => return,
                    Ok(()) = self.desired.changed() => {
                        let desired = self.desired.borrow_and_update().clone();
                        self.bound = desired.is_some();
                        if let Some(pod) = &desired {
                            self.pod = pod.clone();
                            self.look_at_files();
                        }
                        Input::Desired(desired)
                    }
                    Some(message) = self.inbox.recv() => match message {
                        Message::Outdated => {
                            self.look_at_files();
                            continue;
                        }
                        Message::Exited(id, exit) => self.ended(id, exit).await,
                        Message::Input(input) => input,
                    },
                    () = clock::sleep_until(self.wake_at) => {
                        self.wake_at = None;
                        Input::Woken
                    }
                };
                let mut effects = Vec::new();
                self.life.handle(clock::now(), input, &mut effects);
                for effect in effects {
                    if self.perform(effect) {
                        return;
                    }
                }
            }
        }
        .instrument(span)
        .await;
    }

    /// Returns whether the worker is done.
    fn perform(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::MakeSandbox { attempt } => self.spawn(make_sandbox(self.scene(), attempt)),
            Effect::PullImage { container, pull, image, policy } => {
                let scene = self.scene();
                self.spawn(async move {
                    let result = have_image(&scene, &container, &image, policy).await;
                    Some(Input::Image { container, pull, result })
                });
            }
            Effect::StartContainer { name, attempt, image } => {
                let scene = self.scene();
                self.spawn(async move {
                    let state = match start(&scene, &name, attempt, &image).await {
                        Ok(started_at) => ContainerState::Running { started_at },
                        Err(error) => ContainerState::Failed(error),
                    };
                    Some(Input::Container { name, attempt, state })
                });
            }
            Effect::StopContainer { name, attempt, grace } => {
                let scene = self.scene();
                self.spawn(async move {
                    let id = scene.id(&name, attempt)?;
                    // The exit comes by the stream of exits as well; whichever is first counts.
                    if let Err(error) = scene.tools.engine.stop(&id, grace).await {
                        debug!(container = %id, error = %Chain(&error), "could not stop a container");
                    }
                    None
                });
            }
            Effect::KillContainer { name, attempt } => {
                let scene = self.scene();
                self.spawn(async move {
                    let id = scene.id(&name, attempt)?;
                    match scene.tools.engine.kill(&id).await {
                        Ok(_) => None,
                        // Nothing of it is there: that is what was asked for, and the life must hear so.
                        Err(skein_runtime::Error::NoContainer(_) | skein_runtime::Error::NoSandbox(_)) => {
                            let state = ContainerState::Lost { noticed_at: clock::wall() };
                            Some(Input::Container { name, attempt, state })
                        }
                        Err(error) => {
                            warn!(container = %id, error = %Chain(&error), "could not kill a container");
                            None
                        }
                    }
                });
            }
            Effect::RemoveContainer { name, attempt } => {
                let scene = self.scene();
                self.spawn(async move {
                    let id = scene.id(&name, attempt)?;
                    if let Err(error) = scene.tools.engine.remove(&id).await {
                        debug!(container = %id, error = %Chain(&error), "could not remove a container");
                    }
                    None
                });
            }
            // A pod that merely finished keeps its records and logs: people ask why it did. All of it goes
            // with its object.
            Effect::RemoveSandbox if self.bound && self.pod.metadata.deletion_timestamp.is_none() => {
                let scene = self.scene();
                self.spawn(async move {
                    detach(&scene).await;
                    Some(Input::SandboxRemoved)
                });
            }
            Effect::RemoveSandbox => {
                let scene = self.scene();
                self.spawn(async move {
                    remove_sandbox(&scene).await;
                    Some(Input::SandboxRemoved)
                });
            }
            Effect::Probe { container, attempt, kind, probe, timeout } => {
                let scene = self.scene();
                self.spawn(async move {
                    let done = match scene.target(&container, attempt) {
                        Some(target) => probes::probe(&target, &probe, timeout).await,
                        None => Err("the pod has no such container".to_owned()),
                    };
                    if let Ok(Some(warning)) = &done {
                        let message = format!("{kind:?} probe warning: {warning}");
                        scene.tell(Some(container_path(false, &container)), true, "ProbeWarning", &message);
                    }
                    Some(Input::Probed { container, attempt, kind, result: done.map(drop) })
                });
            }
            Effect::RunHook { container, attempt, hook, handler, limit } => {
                let scene = self.scene();
                self.spawn(async move {
                    let result = match scene.target(&container, attempt) {
                        Some(target) => probes::hook(&target, &handler, limit).await,
                        None => Err("the pod has no such container".to_owned()),
                    };
                    if let Err(reason) = &result {
                        warn!(container, %hook, reason, "a hook failed");
                    }
                    Some(Input::Hooked { container, attempt, hook, result })
                });
            }
            Effect::Tell { part, warning, reason, message } => {
                self.scene().tell(part, warning, reason, &message);
            }
            Effect::Report(status) => self.report(Report::Status(status)),
            Effect::Gone { delete } => {
                let (scene, status, name) = (self.scene(), self.tools.status.clone(), self.status_name());
                self.spawn(async move {
                    remove_sandbox(&scene).await;
                    if delete {
                        status.send(name, Report::Delete);
                    }
                    None
                });
                return true;
            }
            Effect::WakeAt(at) => self.wake_at = Some(at),
        }
        false
    }

    fn look_at_files(&self) {
        if self.address.volumes.are_outdated(&self.tools.picture.view(), &self.pod) {
            let scene = self.scene();
            self.spawn(async move {
                volumes::update(&scene).await;
                None
            });
        }
    }

    fn report(&self, report: Report) {
        self.tools.status.send(self.status_name(), report);
    }

    fn status_name(&self) -> Name {
        Name {
            namespace: self.namespace().to_owned(),
            name: self.name().to_owned(),
            uid: self.uid.as_str().to_owned(),
        }
    }

    /// The end of a container in the words of the life.
    async fn ended(&self, id: ContainerId, exit: skein_runtime::Exit) -> Input {
        let wants_output = container::takes_last_words_from_log(&self.pod, &id.name);
        let failed = !matches!(exit.end, End::Exited { code: 0, .. });
        let output = match wants_output && failed && exit.message.is_none() {
            true => last_words(&self.tools, &id).await,
            false => None,
        };
        Input::Container { name: id.name, attempt: Attempt(id.attempt), state: state_of(exit, output) }
    }

    fn spawn(&self, work: impl Future<Output = Option<Input>> + Send + 'static) {
        let inbox = self.address.inbox.clone();
        let answer = async move {
            if let Some(input) = work.await {
                // The worker may have ended meanwhile; then nobody wants to know.
                let _ = inbox.send(Message::Input(input)).await;
            }
        };
        tokio::spawn(answer.in_current_span());
    }

    fn scene(&self) -> Scene {
        Scene {
            uid: self.uid.clone(),
            pod: self.pod.clone(),
            tools: self.tools.clone(),
            addresses: self.addresses.clone(),
            host_paths: self.host_paths.clone(),
            volumes: self.address.volumes.clone(),
        }
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }
}

/// What a task of a worker needs.
pub(super) struct Scene {
    pub(super) uid: PodUid,
    pub(super) pod: Arc<Pod>,
    pub(super) tools: Tools,
    addresses: Arc<Mutex<Vec<String>>>,
    pub(super) host_paths: Arc<Mutex<BTreeMap<String, PathBuf>>>,
    pub(super) volumes: Arc<Volumes>,
}

impl Scene {
    fn id(&self, name: &str, attempt: Attempt) -> Option<ContainerId> {
        ContainerId::new(self.uid.clone(), name, attempt.0).ok()
    }

    /// What probes and hooks of a container are done to.
    fn target(&self, name: &str, attempt: Attempt) -> Option<probes::Target> {
        let spec = self.pod.spec.as_ref()?;
        let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        Some(probes::Target {
            engine: self.tools.engine.clone(),
            id: self.id(name, attempt)?,
            container: all.find(|container| container.name == name)?.clone(),
            address: addresses.first().cloned(),
        })
    }

    /// An Event about the pod, or about a part of it.
    pub(super) fn tell(&self, part: Option<String>, warning: bool, reason: &str, message: &str) {
        let mut notice = Notice::about::<Pod>(&self.pod.metadata, "kubelet", reason, message);
        notice.about.field_path = part;
        notice.host = Some(self.tools.node.to_string());
        notice.warning = warning;
        self.tools.events.tell(notice);
    }

    /// What the pod's references lead to, its Secrets opened.
    pub(super) async fn view(&self) -> Result<View, String> {
        let mut view = self.tools.picture.view();
        self.tools.vault.open_for(&mut view, &self.pod).await?;
        Ok(view)
    }

    pub(super) fn facts(&self) -> Facts {
        Facts {
            pod_ips: self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            host_ips: vec![self.tools.endpoint.host_address().to_string()],
        }
    }
}

async fn make_sandbox(scene: Scene, attempt: SandboxAttempt) -> Option<Input> {
    let result = async {
        let plan = container::sandbox(&scene.pod);
        if plan.needs_resolver() && skein_runtime::resolver().is_empty {
            let message = "the machine's /etc/resolv.conf names no server that a pod reaches (those on the loopback are the \
                           machine's own): nothing is found by name in this pod; name one in its dnsConfig, or on the node";
            scene.tell(None, true, "DNSConfigForming", message);
        }
        let spec = super::container::sandbox(&scene.uid, &scene.pod, &plan);
        let sandbox =
            scene.tools.engine.create_sandbox(spec).await.map_err(|error| Chain(&error).to_string())?;
        let addresses = match sandbox.netns {
            None => vec![scene.tools.endpoint.host_address().to_string()],
            Some(netns) => {
                let (network, uid) = (scene.tools.network.clone(), scene.uid.clone());
                let attached = tokio::task::spawn_blocking(move || {
                    network.lock().unwrap_or_else(PoisonError::into_inner).attach(uid.as_str(), &netns)
                });
                let address = attached.await.map_err(|error| error.to_string())?;
                vec![address.map_err(|error| Chain(&error).to_string())?.to_string()]
            }
        };
        *scene.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses.clone();
        Ok(skein_control::pod::Sandbox { addresses })
    };
    let result = result.await;
    Some(Input::Sandbox { attempt, result })
}

/// Takes the pod off the network; what cannot be done now is done when it is removed.
async fn detach(scene: &Scene) {
    let (network, uid) = (scene.tools.network.clone(), scene.uid.clone());
    let detached = tokio::task::spawn_blocking(move || {
        network.lock().unwrap_or_else(PoisonError::into_inner).detach(uid.as_str())
    });
    if let Ok(Err(error)) = detached.await {
        warn!(error = %Chain(&error), "could not take the pod off the network");
    }
}

/// Removes everything of the pod, trying on until it can: the pod's object waits for it.
async fn remove_sandbox(scene: &Scene) {
    loop {
        detach(scene).await;
        match scene.tools.engine.remove_sandbox(&scene.uid).await {
            Ok(()) => return,
            Err(error) => warn!(error = %Chain(&error), "could not remove the pod's sandbox, trying on"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn have_image(
    scene: &Scene,
    container: &str,
    image: &str,
    policy: PullPolicy,
) -> Result<Image, ImageError> {
    if let Err(error) = Images::full_name(image) {
        return Err(ImageError::InvalidName(error.to_string()));
    }
    let cluster = &scene.tools.images;
    let tell = |reason: &str, message: &str| {
        let init = scene.pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let part = container_path(init.into_iter().any(|init| init.name == container), container);
        scene.tell(Some(part), false, reason, message);
    };
    let here = policy != PullPolicy::Always && cluster.is_here(image).await;
    if !here && policy != PullPolicy::Never {
        tell("Pulling", &format!("Pulling image {image:?}"));
    }
    let began = tokio::time::Instant::now();
    let had = match policy {
        PullPolicy::Never => match cluster.present(image).await {
            Ok(None) => return Err(ImageError::NeverPull),
            Ok(Some(image)) => Ok(image),
            Err(error) => Err(error),
        },
        policy => {
            let view = scene.view().await.map_err(ImageError::Pull)?;
            let credentials: Vec<_> = container::pull_credentials(&view, &scene.pod, image)
                .into_iter()
                .map(|held| images::Credentials { user: held.user, password: held.password })
                .collect();
            cluster.ensure(image, policy == PullPolicy::Always, &credentials).await
        }
    };
    let had = had.map_err(|error| ImageError::Pull(Chain(&error).to_string()))?;
    match here {
        true => tell("Pulled", &format!("Container image {image:?} already present on machine")),
        false => {
            let took = began.elapsed().as_secs_f64();
            tell("Pulled", &format!("Successfully pulled image {image:?} in {took:.3}s"));
        }
    }
    Ok(Image { id: had.digest.to_string() })
}

async fn start(scene: &Scene, name: &str, attempt: Attempt, image: &Image) -> Result<Timestamp, StartError> {
    let refused = |reason: &str, message: String| StartError { reason: reason.to_owned(), message };
    let view = scene.view().await.map_err(|error| refused("CreateContainerConfigError", error))?;
    let facts = scene.facts();
    let _used = volumes::make(scene, &view).await?;
    let plan =
        container::plan(&view, &scene.pod, name, &facts).map_err(container::Error::into_start_error)?;
    let reference = image_reference(&scene.pod, name).unwrap_or_default();
    let unpacked = scene.tools.images.unpacked(&reference, &image.id).await;
    let unpacked = unpacked.map_err(|error| refused("CreateContainerError", Chain(&error).to_string()))?;
    let unpacked = unpacked.ok_or_else(|| {
        refused("CreateContainerError", format!("image {reference} is gone from this machine"))
    })?;
    let sandbox = container::sandbox(&scene.pod);
    let id = ContainerId::new(scene.uid.clone(), name, attempt.0)
        .map_err(|error| refused("CreateContainerError", error.to_string()))?;
    let host_paths = scene.host_paths.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let around = super::container::Surroundings {
        id,
        image: &image.id,
        rootfs: unpacked.rootfs,
        volumes: &host_paths,
        hostname: sandbox.hostname.clone(),
        pod_ip: facts.pod_ips.first().and_then(|address| address.parse().ok()),
        sandbox: &sandbox,
    };
    let running = scene.tools.engine.start(super::container::container(plan, around)).await;
    let running = running.map_err(|error| match &error {
        skein_runtime::Error::Refused { .. } => refused("CreateContainerConfigError", error.to_string()),
        _ => refused("RunContainerError", Chain(&error).to_string()),
    })?;
    Ok(timestamp(running.started_at))
}

fn image_reference(pod: &Pod, name: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.find(|container| container.name == name)?.image.clone()
}

async fn last_words(tools: &Tools, id: &ContainerId) -> Option<String> {
    let options = skein_runtime::LogOptions { tail_bytes: Some(LAST_WORDS_BYTES_READ), ..Default::default() };
    let mut log = tools.engine.logs(&id.pod, &id.name, options).await.ok()?;
    let mut words = Vec::new();
    while let Some(Ok(piece)) = log.next().await {
        keep_last(&mut words, &piece);
    }
    let words = last_lines(&words);
    Some(String::from_utf8_lossy(words).into_owned()).filter(|words| !words.is_empty())
}

/// The last lines of some text, of which the last one may have no end.
fn last_lines(text: &[u8]) -> &[u8] {
    let whole = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = whole.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(LAST_WORDS_LINES - 1).map_or(text, |start| &text[start..])
}

/// Adds a piece, and drops what is too much at the front: what never ends a line is all of one log's size.
fn keep_last(words: &mut Vec<u8>, piece: &[u8]) {
    let piece = &piece[piece.len().saturating_sub(LAST_WORDS_BYTES)..];
    let surplus = (words.len() + piece.len()).saturating_sub(LAST_WORDS_BYTES);
    words.drain(..surplus);
    words.extend_from_slice(piece);
}

fn adopted(sandbox: skein_runtime::Sandbox, addresses: &[String]) -> Found {
    let mut newest: BTreeMap<String, skein_runtime::Container> = BTreeMap::new();
    for container in sandbox.containers {
        // In order of attempt: the last one stays.
        newest.insert(container.id.name.clone(), container);
    }
    let containers = newest.into_values().map(|container| FoundContainer {
        name: container.id.name.clone(),
        attempt: Attempt(container.id.attempt),
        image: container.labels.get(super::container::IMAGE).map(|id| Image { id: id.clone() }),
        state: match container.state {
            skein_runtime::ContainerState::Running(running) => {
                ContainerState::Running { started_at: timestamp(running.started_at) }
            }
            skein_runtime::ContainerState::Ended(exit) => state_of(exit, None),
        },
    });
    let sandbox = sandbox.ready.then(|| skein_control::pod::Sandbox { addresses: addresses.to_vec() });
    Found { sandbox, containers: containers.collect() }
}

fn state_of(exit: skein_runtime::Exit, output: Option<String>) -> ContainerState {
    let finished_at = timestamp(exit.finished_at);
    match exit.end {
        End::Exited { code, signal, oom } => ContainerState::Exited(Exit {
            code,
            signal,
            oom_killed: oom,
            started_at: exit.started_at.map_or(finished_at, timestamp),
            finished_at,
            message: exit.message.or(output),
        }),
        End::Lost => ContainerState::Lost { noticed_at: finished_at },
        End::Failed { reason } => {
            ContainerState::Failed(StartError { reason: "RunContainerError".to_owned(), message: reason })
        }
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_so_many_lines_whether_the_last_one_is_whole_or_not() {
        assert_eq!(last_lines(b""), b"");
        assert_eq!(last_lines(b"one\ntwo\n"), b"one\ntwo\n");
        let many: String = (0..100).map(|line| format!("{line}\n")).collect();
        let kept = String::from_utf8_lossy(last_lines(many.as_bytes())).into_owned();
        assert_eq!((kept.lines().next(), kept.lines().count()), (Some("20"), LAST_WORDS_LINES));
        let kept = String::from_utf8_lossy(last_lines(many.trim_end().as_bytes())).into_owned();
        assert_eq!((kept.lines().next(), kept.lines().count()), (Some("20"), LAST_WORDS_LINES));
    }
}
