//! A cluster in a lab, and the one that many tests share.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skein_chaos::cluster::{Cluster, lab_config};
use skein_chaos::lab::{self, Lab};
use tokio::runtime::Runtime;

/// Far longer than anything takes on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Where registries without TLS may listen in every lab: at the lab's own address.
pub(crate) const REGISTRY: &str = "198.51.100.254";
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What outlives the last test, unless it is taken away by hand.
static SHARED: Mutex<Option<Shared>> = Mutex::new(None);
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime needs only threads"));

/// A cluster with the thread that made it. The kernel ends a machine when the *thread* that switched it on
/// ends, and those of the tests come and go.
struct Shared {
    house: Arc<House>,
    done: Sender<()>,
    maker: JoinHandle<()>,
}

/// Machines, the cluster on them, and their files.
pub(crate) struct House {
    pub(crate) cluster: Cluster,
    // After the cluster: the machines' files may go when the machines have gone.
    dir: tempfile::TempDir,
}

impl Shared {
    fn form() -> Shared {
        let (formed, house) = channel();
        let (done, end) = channel::<()>();
        let maker = std::thread::spawn(move || {
            let house = Arc::new(House::formed(&["one", "two", "three"]));
            if formed.send(house).is_ok() {
                let _ = end.recv();
            }
        });
        // If it failed, that thread has said why.
        let house = house.recv().expect("the shared cluster forms");
        Shared { house, done, maker }
    }
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// The one sentence of a refusal.
    pub(crate) fn sentence(&self) -> &str {
        let told: Vec<&str> = self.err.lines().filter(|line| line.starts_with("skein: ")).collect();
        let [told] = told[..] else { panic!("one sentence: {self:?}") };
        told
    }
}

impl House {
    /// Machines that are on, without a cluster.
    pub(crate) fn new(names: &[&str]) -> House {
        let dir = tempfile::Builder::new().prefix("skein-e2e-").tempdir().expect("a directory for the lab");
        let mut cluster = Cluster::new(lab_config(program(), dir.path().to_owned()), names)
            .unwrap_or_else(|error| panic!("no lab: {error}"));
        cluster.set_options(&["--insecure-registry", REGISTRY, "--image-layer-max", "64Mi"]);
        House { cluster, dir }
    }

    /// A cluster that is whole.
    pub(crate) fn formed(names: &[&str]) -> House {
        let mut house = House::new(names);
        wait(house.cluster.form()).unwrap_or_else(|error| panic!("{error}\n{}", house.logs()));
        house
    }

    /// The same, with so many replicas of the Deployment `web` that run.
    pub(crate) fn with_pods(names: &[&str], replicas: u64) -> House {
        let house = House::formed(names);
        wait(house.cluster.deploy("one", "web", replicas)).expect("the Deployment is created");
        house.until_running("one", replicas);
        house
    }

    /// The cluster of three that tests share: they leave it as it was, in namespaces of their own.
    pub(crate) fn shared() -> Arc<House> {
        // A test that panicked while it formed the cluster left nothing here.
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.get_or_insert_with(Shared::form).house.clone()
    }

    pub(crate) fn lab(&self) -> &Lab {
        self.cluster.machines()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `skein` with `words` on the machine, for its data directory.
    pub(crate) fn skein(&self, machine: &str, words: &[&str]) -> Said {
        let machine = self.lab().machine(machine);
        let mut command = machine.command("timeout");
        command.arg("120").arg(program()).args(words).env("SKEIN_DATA_DIR", machine.disk());
        said(command.output())
    }

    /// The same with `input` as its standard input.
    pub(crate) fn skein_fed(&self, machine: &str, words: &[&str], input: &[u8]) -> Said {
        let machine = self.lab().machine(machine);
        let mut command = machine.command("timeout");
        command.arg("120").arg(program()).args(words).env("SKEIN_DATA_DIR", machine.disk());
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("the command starts");
        let mut pipe = child.stdin.take().expect("piped above");
        // A program that has seen enough closes its end before all is written.
        let _ = pipe.write_all(input);
        drop(pipe);
        said(child.wait_with_output())
    }

    /// The same, when it must end well: what it printed.
    pub(crate) fn skein_ok(&self, machine: &str, words: &[&str]) -> String {
        let said = self.skein(machine, words);
        assert_eq!(said.code, 0, "skein {words:?} on {machine}: {said:?}");
        said.out
    }

    /// The machine's view of the cluster, by the program itself.
    pub(crate) fn status(&self, machine: &str) -> Value {
        serde_json::from_str(&self.skein_ok(machine, &["status", "-o", "json"])).expect("status prints JSON")
    }

    /// The names of the nodes that `role` is true of, as `through` sees them.
    pub(crate) fn nodes(&self, through: &str, role: impl Fn(&Value) -> bool) -> Vec<String> {
        let status = self.status(through);
        let nodes = status["nodes"].as_array().expect("a list of nodes").iter();
        let those = nodes.filter(|node| role(node));
        those.map(|node| node["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// All that the machine's daemons have said.
    pub(crate) fn log(&self, machine: &str) -> String {
        std::fs::read_to_string(self.lab().machine(machine).log()).unwrap_or_default()
    }

    /// Waits for the end of the machine's daemon, and says how it ended.
    pub(crate) fn ended(&mut self, machine: &str) -> Option<i32> {
        let daemon = self.cluster.lab().machine_mut(machine).daemon().expect("it was started");
        daemon.wait().expect("it is ours").code()
    }

    /// Waits until the machine's daemon answers.
    pub(crate) fn until_up(&self, machine: &str) {
        self.until("the daemon", || (self.skein(machine, &["status"]).code == 0).then_some(()));
    }

    /// Waits until all nodes are there and vote as they should.
    pub(crate) fn until_whole(&self) {
        wait(self.cluster.until_whole()).unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
    }

    /// Waits until the node has all that the others have.
    pub(crate) fn until_caught_up(&self, node: &str) {
        wait(self.cluster.until_caught_up(node)).unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
    }

    /// Waits until all of so many replicas of `web` run, as `through` sees them.
    pub(crate) fn until_running(&self, through: &str, replicas: u64) {
        wait(self.cluster.until_running(through, "web", replicas))
            .unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
    }

    /// Runs a pod on that node, and returns it once it is ready.
    pub(crate) fn run_pod(&self, node: &str) -> Value {
        let pod = json!({
            "metadata": { "name": "here" },
            "spec": {
                "nodeSelector": { "kubernetes.io/hostname": node },
                "containers": [{ "name": "main", "image": "skein.dev/tiny" }],
            },
        });
        self.create(node, "/api/v1/namespaces/default/pods", &pod);
        self.ready_pod(node)
    }

    /// Waits until that pod is ready as this node sees it.
    pub(crate) fn ready_pod(&self, node: &str) -> Value {
        self.until("the pod", || {
            let pod = self.get(node, "/api/v1/namespaces/default/pods/here");
            is_ready(&pod["status"]).then_some(pod)
        })
    }

    /// An object or a list as this node sees it; null if there is none.
    pub(crate) fn get(&self, node: &str, path: &str) -> Value {
        wait(self.cluster.api(node).get(path)).unwrap_or(Value::Null)
    }

    /// Creates an object through this node.
    pub(crate) fn create(&self, node: &str, path: &str, object: &Value) {
        wait(self.cluster.api(node).post(path, object)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// A namespace for one test. It goes when the guard is dropped.
    pub(crate) fn namespace(self: &Arc<House>, name: &str) -> Namespace {
        self.create("one", "/api/v1/namespaces", &json!({ "metadata": { "name": name } }));
        Namespace { house: self.clone(), name: name.to_owned() }
    }

    /// Waits until `condition` is no longer `None`, and returns what it found.
    pub(crate) fn until<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        until(what, condition).unwrap_or_else(|| panic!("{what}: not within {PATIENCE:?}\n{}", self.logs()))
    }

    /// The end of every machine's log, for a message about a failure.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for name in self.cluster.names() {
            let log = self.log(name);
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(25)..].join("\n")));
        }
        text
    }
}

/// See [`House::namespace`].
pub(crate) struct Namespace {
    pub(crate) house: Arc<House>,
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn pods(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.name)
    }

    pub(crate) fn pod(&self, name: &str) -> Value {
        self.house.get("one", &format!("{}/{name}", self.pods()))
    }

    pub(crate) fn create(&self, plural: &str, object: &Value) {
        self.house.create("one", &format!("/api/v1/namespaces/{}/{plural}", self.name), object);
    }

    /// Creates a pod of the given spec.
    pub(crate) fn run(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["terminationGracePeriodSeconds"] = 1.into();
        self.create(
            "pods",
            &json!({ "metadata": { "name": name, "labels": { "app": name } }, "spec": spec }),
        );
    }

    /// Waits until the pod's status is as wanted, and returns the pod.
    pub(crate) fn until(&self, pod: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        until(what, || {
            last = self.pod(pod);
            condition(&last["status"]).then(|| last.clone())
        })
        .unwrap_or_else(|| panic!("pod {pod}: not {what} within {PATIENCE:?}: {:#}", last["status"]))
    }

    pub(crate) fn until_ready(&self, pod: &str) -> Value {
        self.until(pod, "ready", is_ready)
    }

    /// What a container of the pod printed.
    pub(crate) fn logs(&self, pod: &str, query: &str) -> String {
        let user = crate::user::User::of(&self.house, Path::new("kubectl"), "one", &self.name);
        user.run(
            &[
                &["logs", pod],
                query.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().as_slice(),
            ]
            .concat(),
        )
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = wait(self.house.cluster.api("one").delete(&format!("/api/v1/namespaces/{}", self.name)));
    }
}

/// Whether a pod's status says that it is ready.
pub(crate) fn is_ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// What shows that a pod of one container was left alone.
pub(crate) fn life(pod: &Value) -> [Value; 4] {
    let status = &pod["status"]["containerStatuses"][0];
    let parts = [&pod["metadata"]["uid"], &status["restartCount"], &status["containerID"], &status["state"]];
    parts.map(Value::clone)
}

/// Waits for a future, outside of any.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

/// Looks again and again until there is something; `None` when patience ends.
pub(crate) fn until<T>(_what: &str, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Some(found) => return Some(found),
            None if Instant::now() > deadline => return None,
            None => std::thread::sleep(LOOK_EVERY),
        }
    }
}

pub(crate) fn said(output: std::io::Result<Output>) -> Said {
    let output = output.expect("the command starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

/// The program under test: named by `SKEIN_PROGRAM`, or built beside this test.
pub(crate) fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("SKEIN_PROGRAM") {
        return named.into();
    }
    let test = std::env::current_exe().expect("this test is a file");
    let built = test.parent().and_then(Path::parent).map(|profile| profile.join("skein"));
    built
        .filter(|path| path.is_file())
        .expect("the program skein is not built; run: cargo build -p skein, or name it by SKEIN_PROGRAM")
}

/// Becomes root of a user namespace where that is needed and allowed, and tries a lab.
pub(crate) fn enter_namespaces() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        lab::become_root_of_a_user_namespace().map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Whether this kernel and user can show what the test is about.
pub(crate) fn can(test: &str) -> bool {
    let limits = !lab::in_user_namespace();
    let present = |program: &str| {
        Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .output()
            .is_ok_and(|out| out.status.success())
    };
    match test {
        test if test.contains("memory_limit") => limits,
        test if test.contains("starved") => limits && present("nft"),
        test if test.contains("cut_off") || test.contains("but_names") => present("nft"),
        test if test.contains("iptables_legacy") => limits && present("iptables-legacy"),
        test if test.contains("firewall") => present("nft"),
        test if test.contains("registry") => present("docker-registry") && present("skopeo"),
        test if test.contains("image") || test.contains("archive") => present("busybox"),
        _ => true,
    }
}

/// Takes the shared cluster away.
pub(crate) fn leave() {
    let shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    if let Some(Shared { house, done, maker }) = shared {
        drop(house);
        drop(done);
        let _ = maker.join();
    }
}
