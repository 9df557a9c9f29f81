//! A machine for one test: directories, cgroups and a tokio runtime of its own, and a look at what is left of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use skein_runtime::{
    Config, ContainerId, ContainerSpec, ContainerState, End, Engine, Exit, ImageConfig, LogOptions, Machine,
    Network, NetworkFiles, PodUid, Resources, RootfsSource, Running, SandboxSpec, Security, User,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::program;

/// How long a test waits for anything: other tests starve this one, they do not stop it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    runtime: Runtime,
    pub(crate) dir: TempDir,
    pub(crate) config: Config,
    machine: Machine,
}

impl World {
    /// One sentence, if this machine cannot run containers.
    pub(crate) fn reason_to_skip() -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("Containers of these tests need root.".to_owned());
        }
        let dir = tempfile::tempdir().expect("a directory");
        let config = config(dir.path());
        let probe = Machine::probe(&config);
        remove_cgroups(&config);
        probe.missing.into_iter().next()
    }

    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config(dir.path());
        make_image(dir.path());
        let runtime = Runtime::new().expect("a runtime");
        let machine = runtime.block_on(Machine::open(config.clone())).expect("an engine");
        Self { runtime, dir, config, machine }
    }

    pub(crate) fn engine(&self) -> &Machine {
        &self.machine
    }

    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let patient = async { tokio::time::timeout(PATIENCE, work).await };
        self.runtime.block_on(patient).expect("it takes too long")
    }

    /// A second daemon on the same directories, as after a restart.
    pub(crate) fn reopen(&self) -> Machine {
        self.run(Machine::open(self.config.clone())).expect("an engine")
    }

    /// Makes a pod with nothing special.
    pub(crate) fn pod(&self, uid: &str) -> PodUid {
        self.run(self.machine.create_sandbox(sandbox(uid))).expect("a sandbox").spec.pod
    }

    pub(crate) fn container(&self, pod: &PodUid, name: &str, args: &[&str]) -> ContainerSpec {
        container(self.dir.path(), pod, name, args)
    }

    pub(crate) fn start(&self, spec: ContainerSpec) -> Running {
        self.run(self.machine.start(spec)).expect("a start")
    }

    /// Waits for the end of a container.
    pub(crate) fn end(&self, id: &ContainerId) -> Exit {
        let mut exits = self.machine.exits();
        self.run(async {
            loop {
                let (ended, exit) = exits.next().await.expect("the engine lives");
                if ended == *id {
                    return exit;
                }
            }
        })
    }

    /// Runs a container to its end; what it printed, on condition that all went well.
    pub(crate) fn output(&self, spec: ContainerSpec) -> String {
        let id = spec.id.clone();
        self.start(spec);
        let exit = self.end(&id);
        let text = self.log(&id, LogOptions::default());
        assert_eq!(exit.end, End::Exited { code: 0, signal: None, oom: false }, "{text}");
        text
    }

    pub(crate) fn log(&self, id: &ContainerId, options: LogOptions) -> String {
        self.log_of(&self.machine, id, options)
    }

    fn log_of(&self, engine: &Machine, id: &ContainerId, options: LogOptions) -> String {
        self.run(async {
            let mut stream = engine.logs(&id.pod, &id.name, options).await.expect("a log");
            let mut text = Vec::new();
            while let Some(chunk) = stream.next().await {
                text.extend_from_slice(&chunk.expect("readable"));
            }
            String::from_utf8(text).expect("text")
        })
    }

    /// Waits until the container has printed `text`.
    pub(crate) fn wait_for_output(&self, id: &ContainerId, text: &str) {
        self.wait_for_output_of(&self.machine, id, text);
    }

    /// The same through another daemon.
    pub(crate) fn wait_for_output_of(&self, engine: &Machine, id: &ContainerId, text: &str) {
        wait_until(|| self.log_of(engine, id, LogOptions::default()).contains(text));
    }

    /// Waits until a file below the world's directory holds `text`.
    pub(crate) fn wait_for_file(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        wait_until(|| fs::read_to_string(&path).is_ok_and(|found| found.contains(text)));
    }

    /// The files of a container's cgroup for `controller`.
    pub(crate) fn cgroup(&self, controller: &str, id: &ContainerId) -> PathBuf {
        let mount = &self.config.cgroup_mount;
        let v1 = mount.join(controller);
        let hierarchy = if v1.join("cgroup.procs").exists() { &v1 } else { mount };
        let below = self.config.cgroup.join(format!("pod{}", id.pod));
        hierarchy.join(below).join(format!("{}-{}", id.name, id.attempt))
    }

    /// Takes everything down, and says what is left.
    pub(crate) fn finish(&self) -> Result<(), String> {
        self.run(self.machine.purge()).map_err(|error| format!("purge: {error}"))?;
        let dir = self.dir.path();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut left: Vec<_> =
            mounts.lines().filter(|line| line.contains(&*dir.to_string_lossy())).map(str::to_owned).collect();
        left.extend(processes_of(dir).iter().map(|pid| format!("process {pid}")));
        left.extend(cgroups_of(&self.config).iter().map(|path| path.display().to_string()));
        for part in ["data/pods", "data/trash", "logs"] {
            left.extend(
                fs::read_dir(dir.join(part))
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path().display().to_string()),
            );
        }
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:#?}")) }
    }
}

impl Drop for World {
    /// After a test that failed, too.
    fn drop(&mut self) {
        // A daemon that knows everything on disk, also what another daemon of the test made.
        let _ = self.runtime.block_on(async { Machine::open(self.config.clone()).await?.purge().await });
        remove_cgroups(&self.config);
    }
}

pub(crate) fn config(dir: &Path) -> Config {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Config {
        data_dir: dir.join("data"),
        logs_dir: dir.join("logs"),
        cgroup: PathBuf::from(format!("skein-test/{}-{number}", std::process::id())),
        owner: None,
        cgroup_mount: PathBuf::from("/sys/fs/cgroup"),
        usual_capabilities: false,
    }
}

pub(crate) fn sandbox(uid: &str) -> SandboxSpec {
    SandboxSpec {
        pod: uid.parse().expect("a uid"),
        namespace: "default".to_owned(),
        name: format!("pod-{uid}"),
        hostname: format!("pod-{uid}"),
        network: Network::Pod,
        sysctls: BTreeMap::new(),
        resources: Resources::default(),
        labels: BTreeMap::from([("color".to_owned(), "green".to_owned())]),
    }
}

/// A container of the image in `dir` with `args` for the program; attempt 0.
pub(crate) fn container(dir: &Path, pod: &PodUid, name: &str, args: &[&str]) -> ContainerSpec {
    ContainerSpec {
        id: ContainerId::new(pod.clone(), name, 0).expect("a name"),
        rootfs: RootfsSource {
            lower: vec![dir.join("image/top"), dir.join("image/base")],
            config: ImageConfig { entrypoint: vec![program::PATH.to_owned()], ..ImageConfig::default() },
        },
        command: None,
        args: Some(args.iter().map(|arg| (*arg).to_owned()).collect()),
        env: Vec::new(),
        workdir: None,
        user: User::default(),
        mounts: Vec::new(),
        network_files: NetworkFiles::default(),
        resources: Resources::default(),
        security: Security::default(),
        oom_score_adj: None,
        stop_signal: None,
        termination_message_path: None,
        labels: BTreeMap::from([("shape".to_owned(), "round".to_owned())]),
    }
}

/// What the program is told to do, one thing after another: `status Uid ; list /dev`.
pub(crate) fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

/// Some of each kind.
pub(crate) fn limits() -> Resources {
    Resources {
        cpu_request_millis: 500,
        cpu_limit_millis: Some(750),
        memory_limit_bytes: Some(64 << 20),
        pids_max: Some(33),
    }
}

/// Two layers: this executable below, a little on top.
pub(crate) fn make_image(dir: &Path) {
    let (base, top) = (dir.join("image/base"), dir.join("image/top"));
    fs::create_dir_all(base.join("etc")).expect("a directory");
    fs::create_dir_all(top.join("etc")).expect("a directory");
    let own = std::env::current_exe().expect("an executable");
    let program = base.join(program::PATH.trim_start_matches('/'));
    fs::hard_link(&own, &program).or_else(|_| fs::copy(&own, &program).map(drop)).expect("a program");
    fs::write(base.join("etc/passwd"), "root:x:0:0::/root:\nweb:x:1234:2345::/srv:\n").expect("a file");
    fs::write(base.join("etc/group"), "logs:x:77:web\n").expect("a file");
    fs::write(base.join("etc/motd"), "base").expect("a file");
    fs::write(top.join("etc/motd"), "top").expect("a file");
}

/// Waits for a condition that nothing announces.
#[track_caller]
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it takes too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The state of a container in the list of an engine.
pub(crate) async fn state(engine: &dyn Engine, id: &ContainerId) -> Option<ContainerState> {
    let sandboxes = engine.list().await.expect("a list");
    let containers = sandboxes.into_iter().flat_map(|sandbox| sandbox.containers);
    containers.into_iter().find(|container| container.id == *id).map(|container| container.state)
}

/// Shims of the engine in `dir`.
pub(crate) fn processes_of(dir: &Path) -> Vec<u32> {
    let dir = dir.to_string_lossy();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of_ours = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() && String::from_utf8_lossy(&line).contains(&*dir)
    };
    pids.filter(of_ours).collect()
}

fn cgroups_of(config: &Config) -> Vec<PathBuf> {
    let mounts = fs::read_dir(&config.cgroup_mount).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = mounts.chain([config.cgroup_mount.clone()]).map(|mount| mount.join(&config.cgroup));
    all.filter(|path| path.exists()).collect()
}

fn remove_cgroups(config: &Config) {
    for path in cgroups_of(config) {
        let _ = fs::remove_dir(path.join("shims"));
        let _ = fs::remove_dir(&path);
        let _ = path.parent().map(fs::remove_dir);
    }
}
