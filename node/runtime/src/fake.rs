//! An [`Engine`] in memory: the same contract, no kernel, no clock of its own.
//!
//! Programs do what the test says: by default they run until they are stopped. Nothing in here waits for
//! time, so a simulator may drive it with a clock of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::engine::{
    Container, ContainerId, ContainerSpec, ContainerState, End, Engine, Error, Exit, Exits, Network, PodUid,
    Ran, Running, Sandbox, SandboxSpec, Stats, Usage, Volume,
};
use crate::logs::record::{self, Output};
use crate::logs::{LogOptions, LogStream, Selection, is_before};

/// What a program of the fake does once it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Runs until it is stopped, then ends by the signal it was sent.
    Run,
    /// Runs until it is killed; a polite stop does nothing.
    IgnoreStop,
    /// Ends at once with this code.
    Exit(i32),
    /// Is never executed, for this reason.
    FailToStart(String),
}

type Script = dyn Fn(&ContainerSpec) -> Behaviour + Send + Sync;
type Commands = dyn Fn(&ContainerId, &[String]) -> i32 + Send + Sync;
type Clock = dyn Fn() -> SystemTime + Send + Sync;

/// Containers in memory. Clones are handles on the same machine.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    clock: Arc<Clock>,
    script: Arc<Script>,
    commands: Arc<Commands>,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<PodUid, Pod>,
    subscribers: Vec<mpsc::UnboundedSender<(ContainerId, Exit)>>,
}

struct Pod {
    spec: SandboxSpec,
    ready: bool,
    volumes: BTreeMap<String, Volume>,
    containers: BTreeMap<ContainerId, Program>,
    logs: BTreeMap<ContainerId, Log>,
}

struct Program {
    state: ContainerState,
    ignores_stop: bool,
    labels: BTreeMap<String, String>,
}

#[derive(Default)]
struct Log {
    lines: Vec<Vec<u8>>,
    followers: Vec<(Selection, mpsc::Sender<std::io::Result<Bytes>>)>,
}

impl Fake {
    /// A machine without pods, whose clock is `clock` and whose programs do as `script` says.
    pub fn new(
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
        script: impl Fn(&ContainerSpec) -> Behaviour + Send + Sync + 'static,
    ) -> Self {
        Self {
            state: Arc::default(),
            clock: Arc::new(clock),
            script: Arc::new(script),
            commands: Arc::new(|_, _| 0),
        }
    }

    /// Programs run inside of containers end at once with what `commands` says; without it, with 0.
    pub fn with_commands(
        self,
        commands: impl Fn(&ContainerId, &[String]) -> i32 + Send + Sync + 'static,
    ) -> Self {
        Self { commands: Arc::new(commands), ..self }
    }

    /// Ends a program that runs; `false` if there is none.
    pub fn finish(&self, id: &ContainerId, end: End) -> bool {
        self.state().finish(id, end, (self.clock)()).is_some()
    }

    /// Lets a program write one line; `false` if it does not run.
    pub fn print(&self, id: &ContainerId, line: &str) -> bool {
        let now = (self.clock)();
        let mut state = self.state();
        let Some(pod) = state.pods.get_mut(&id.pod) else { return false };
        let runs = pod.containers.get(id).is_some_and(Program::runs);
        if let Some(log) = pod.logs.get_mut(id).filter(|_| runs) {
            log.push(now, line);
        }
        runs
    }

    /// Cuts the power and lets the machine start again: programs are lost, sandboxes not ready.
    pub fn power_cycle(&self) {
        let now = (self.clock)();
        let mut state = self.state();
        let ids: Vec<_> = state.pods.values().flat_map(|pod| pod.containers.keys().cloned()).collect();
        for id in ids {
            state.finish(&id, End::Lost, now);
        }
        state.pods.values_mut().for_each(|pod| pod.ready = false);
    }

    /// The content of a volume.
    pub fn volume(&self, pod: &PodUid, name: &str) -> Option<Volume> {
        self.state().pods.get(pod)?.volumes.get(name).cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code of ours panics with the lock held, and a test that does is over anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_now(&self, id: &ContainerId, signal: impl FnOnce(&Program) -> i32) -> Result<Exit, Error> {
        let mut state = self.state();
        let pod = state.pods.get(&id.pod).ok_or_else(|| Error::NoSandbox(id.pod.clone()))?;
        let program = pod.containers.get(id).ok_or_else(|| Error::NoContainer(id.clone()))?;
        if let ContainerState::Ended(exit) = &program.state {
            return Ok(exit.clone());
        }
        let signal = signal(program);
        let end = End::Exited { code: 128 + signal, signal: Some(signal), oom: false };
        state.finish(id, end, (self.clock)()).ok_or_else(|| Error::NoContainer(id.clone()))
    }
}

impl State {
    /// Notes the end of a program that runs and tells everybody.
    fn finish(&mut self, id: &ContainerId, end: End, now: SystemTime) -> Option<Exit> {
        let pod = self.pods.get_mut(&id.pod)?;
        let program = pod.containers.get_mut(id)?;
        let ContainerState::Running(running) = &program.state else { return None };
        let started_at = Some(running.started_at);
        let exit = Exit { end, started_at, finished_at: now, message: None };
        program.state = ContainerState::Ended(exit.clone());
        if let Some(log) = pod.logs.get_mut(id) {
            log.followers.clear();
        }
        self.subscribers.retain(|subscriber| subscriber.send((id.clone(), exit.clone())).is_ok());
        Some(exit)
    }
}

impl Program {
    fn runs(&self) -> bool {
        matches!(self.state, ContainerState::Running(_))
    }
}

impl Log {
    fn push(&mut self, now: SystemTime, line: &str) {
        let mut bytes = Vec::new();
        record::write(&mut bytes, now, Output::Stdout, true, line.as_bytes());
        bytes.pop();
        self.followers.retain_mut(|(selection, sender)| {
            let mut chunk = Vec::new();
            selection.push(&bytes, &mut chunk);
            sender.try_send(Ok(chunk.into())).is_ok() && !selection.is_done()
        });
        self.lines.push(bytes);
    }
}

impl Pod {
    fn to_sandbox(&self) -> Sandbox {
        let containers = self.containers.iter().map(|(id, program)| Container {
            id: id.clone(),
            state: program.state.clone(),
            labels: program.labels.clone(),
        });
        let netns = (self.spec.network == Network::Pod)
            .then(|| PathBuf::from(format!("/fake/{}/net", self.spec.pod)));
        Sandbox { spec: self.spec.clone(), netns, ready: self.ready, containers: containers.collect() }
    }
}

#[async_trait]
impl Engine for Fake {
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, Error> {
        let mut state = self.state();
        let (containers, volumes, logs) = Default::default();
        let pod = state.pods.entry(spec.pod.clone());
        let pod = pod.or_insert(Pod { spec, ready: true, volumes, containers, logs });
        Ok(pod.to_sandbox())
    }

    async fn remove_sandbox(&self, pod: &PodUid) -> Result<(), Error> {
        let now = (self.clock)();
        let mut state = self.state();
        let ids = state.pods.get(pod).map(|pod| pod.containers.keys().cloned().collect::<Vec<_>>());
        for id in ids.unwrap_or_default() {
            state.finish(&id, End::Exited { code: 137, signal: Some(9), oom: false }, now);
        }
        state.pods.remove(pod);
        Ok(())
    }

    async fn put_volume(&self, pod: &PodUid, name: &str, volume: Volume) -> Result<PathBuf, Error> {
        let mut state = self.state();
        let entry = state.pods.get_mut(pod).ok_or_else(|| Error::NoSandbox(pod.clone()))?;
        entry.volumes.insert(name.to_owned(), volume);
        Ok(PathBuf::from(format!("/fake/{pod}/volumes/{name}")))
    }

    async fn start(&self, spec: ContainerSpec) -> Result<Running, Error> {
        let behaviour = (self.script)(&spec);
        let now = (self.clock)();
        let mut state = self.state();
        let id = spec.id;
        let pod = state.pods.get_mut(&id.pod).ok_or_else(|| Error::NoSandbox(id.pod.clone()))?;
        if pod.containers.contains_key(&id) || pod.logs.contains_key(&id) {
            return Err(Error::Exists(id));
        }
        if let Behaviour::FailToStart(reason) = behaviour {
            return Err(Error::Start { id, reason });
        }
        let running = Running { pid: 0, started_at: now };
        let ignores_stop = behaviour == Behaviour::IgnoreStop;
        let program =
            Program { state: ContainerState::Running(running.clone()), ignores_stop, labels: spec.labels };
        pod.containers.insert(id.clone(), program);
        pod.logs.retain(|other, _| other.name != id.name || other.attempt + 1 >= id.attempt);
        pod.logs.insert(id.clone(), Log::default());
        if let Behaviour::Exit(code) = behaviour {
            state.finish(&id, End::Exited { code, signal: None, oom: false }, now);
        }
        Ok(running)
    }

    async fn stop(&self, id: &ContainerId, _grace: Duration) -> Result<Exit, Error> {
        self.end_now(id, |program| if program.ignores_stop { libc::SIGKILL } else { libc::SIGTERM })
    }

    async fn kill(&self, id: &ContainerId) -> Result<Exit, Error> {
        self.end_now(id, |_| libc::SIGKILL)
    }

    async fn exec(&self, id: &ContainerId, command: &[String], _limit: Duration) -> Result<Ran, Error> {
        let runs = {
            let state = self.state();
            let pod = state.pods.get(&id.pod).ok_or_else(|| Error::NoSandbox(id.pod.clone()))?;
            pod.containers.get(id).ok_or_else(|| Error::NoContainer(id.clone()))?.runs()
        };
        if !runs {
            return Err(Error::NotRunning(id.clone()));
        }
        Ok(Ran { code: (self.commands)(id, command), output: Vec::new() })
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        let mut state = self.state();
        let pod = state.pods.get_mut(&id.pod).ok_or_else(|| Error::NoSandbox(id.pod.clone()))?;
        match pod.containers.get(id) {
            Some(program) if program.runs() => Err(Error::StillRunning(id.clone())),
            Some(_) => {
                pod.containers.remove(id);
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn list(&self) -> Result<Vec<Sandbox>, Error> {
        Ok(self.state().pods.values().map(Pod::to_sandbox).collect())
    }

    fn exits(&self) -> Exits {
        let (sender, exits) = Exits::channel();
        let mut state = self.state();
        for (id, program) in state.pods.values().flat_map(|pod| &pod.containers) {
            if let ContainerState::Ended(exit) = &program.state {
                let _ = sender.send((id.clone(), exit.clone()));
            }
        }
        state.subscribers.push(sender);
        exits
    }

    async fn stats(&self, pod: &PodUid) -> Result<Stats, Error> {
        let state = self.state();
        let pod = state.pods.get(pod).ok_or_else(|| Error::NoSandbox(pod.clone()))?;
        let running = pod.containers.iter().filter(|(_, program)| program.runs());
        let containers = running.map(|(id, _)| (id.clone(), Usage { pids: 1, ..Usage::default() }));
        Ok(Stats { pod: Usage::default(), containers: containers.collect() })
    }

    async fn logs(&self, pod: &PodUid, container: &str, options: LogOptions) -> Result<LogStream, Error> {
        let mut state = self.state();
        let entry = state.pods.get_mut(pod).ok_or_else(|| Error::NoSandbox(pod.clone()))?;
        let newest_first = entry.logs.iter_mut().rev().filter(|(id, _)| id.name == container);
        let chosen =
            newest_first.skip(usize::from(options.previous)).map(|(id, log)| (id.clone(), log)).next();
        let missing = || Error::NoLog { pod: pod.clone(), container: container.to_owned(), attempt: None };
        let (id, log) = chosen.ok_or_else(missing)?;
        let runs = entry.containers.get(&id).is_some_and(Program::runs);

        let count = |not_before| {
            let wanted = log.lines.iter().filter_map(|line| record::parse(line));
            wanted.filter(|record| !is_before(record, not_before)).count() as u64
        };
        let mut selection = Selection::new(&options, (self.clock)(), count);
        let mut chunk = Vec::new();
        log.lines.iter().for_each(|line| selection.push(line, &mut chunk));
        let (sender, stream) = LogStream::channel(1024);
        let _ = sender.try_send(Ok(chunk.into()));
        if options.follow && runs && !selection.is_done() {
            log.followers.push((selection, sender));
        }
        Ok(stream)
    }
}
