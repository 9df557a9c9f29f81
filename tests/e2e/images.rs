//! Images from archives and registries: on every node, and never in halves.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tar::EntryType;

use crate::archive::{self, Tar, busybox};
use crate::house::{House, Namespace, REGISTRY, is_ready, said, until, wait};

pub(crate) const TESTS: crate::Tests = crate::tests![
    an_image_loaded_on_one_node_runs_on_all,
    an_archive_of_docker_save_comes_in_by_a_pipe,
    an_image_loaded_here_is_here_only,
    images_go_when_they_are_told_to_and_no_pod_needs_them,
    a_loaded_image_reaches_late_joiners_and_outlives_its_first_node,
    a_hostile_archive_is_refused_and_leaves_nothing,
    a_registry_is_asked_as_the_policy_says,
    a_registry_that_is_gone_stops_nothing_that_is_here,
    a_registry_of_this_machine_needs_no_setting,
    a_registry_with_a_lock_opens_to_the_pods_secret,
];

/// A pod's spec of one container.
fn spec(image: &str, policy: Option<&str>, node: Option<&str>) -> Value {
    let mut spec = json!({ "containers": [{ "name": "main", "image": image }] });
    if let Some(policy) = policy {
        spec["containers"][0]["imagePullPolicy"] = policy.into();
    }
    if let Some(node) = node {
        spec["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    }
    spec
}

/// What the pod's web server says, asked from the lab.
fn page(house: &House, pod: &Value) -> String {
    let address = pod["status"]["podIP"].as_str().expect("a running pod has an address");
    let node = pod["spec"]["nodeName"].as_str().expect("a running pod has a node");
    // From its own node: the lab has no route to pods.
    let url = format!("http://{address}:8080/");
    let machine = house.lab().machine(node);
    until("a page", || {
        let said = said(machine.command("busybox").args(["wget", "-q", "-O", "-", &url]).output());
        (said.code == 0).then_some(said.out)
    })
    .unwrap_or_else(|| panic!("{url} says nothing"))
}

fn write(house: &House, name: &str, bytes: &[u8]) -> String {
    let path = house.dir().join(name);
    fs::write(&path, bytes).expect("the archive is written");
    path.display().to_string()
}

/// The images that the node has.
fn names(house: &House, node: &str) -> Vec<String> {
    let said = house.skein_ok(node, &["image", "list", "-o", "name"]);
    said.lines().map(str::to_owned).collect()
}

/// Why the pod's container waits.
fn waits(status: &Value) -> (String, String) {
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&waiting["reason"]), text(&waiting["message"]))
}

fn an_image_loaded_on_one_node_runs_on_all() {
    let house = House::shared();
    let space = house.namespace("loaded");
    let name = "example.org/loaded:1";
    let file = write(&house, "loaded.tar", &archive::good_oci(name, &[busybox("from an oci archive")]));
    let printed = house.skein_ok("two", &["image", "load", &file]);
    assert!(printed.contains(name) && printed.contains("sha256:"), "{printed}");
    let template = json!({
        "metadata": { "labels": { "app": "loaded" } },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [{ "name": "web", "image": name }] },
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "loaded" },
        "spec": { "replicas": 6, "selector": { "matchLabels": { "app": "loaded" } }, "template": template },
    });
    house.create("one", &format!("/apis/apps/v1/namespaces/{}/deployments", space.name), &deployment);
    let pods = house.until("six ready pods", || {
        let list = house.get("three", &space.pods());
        let ready = list["items"].as_array()?.iter().filter(|pod| is_ready(&pod["status"])).cloned();
        Some(ready.collect::<Vec<_>>()).filter(|ready| ready.len() == 6)
    });
    let nodes: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    for pod in &pods {
        assert_eq!(page(&house, pod), "from an oci archive\n");
        let id = pod["status"]["containerStatuses"][0]["imageID"].as_str().unwrap_or_default();
        assert!(id.contains("sha256:"), "{id}");
    }
}

fn an_archive_of_docker_save_comes_in_by_a_pipe() {
    let house = House::shared();
    let space = house.namespace("piped");
    let archive =
        archive::docker("piped:2", &[busybox("from docker save"), Tar::new().file("x", b"").bytes()]);
    let said = house.skein_fed("three", &["image", "load", "-"], &archive);
    assert_eq!(said.code, 0, "{said:?}");
    // A short name is Docker's: what stands in the manifest need not be spelled as it was loaded.
    space.run("web", spec("docker.io/library/piped:2", None, Some("one")));
    assert_eq!(page(&house, &space.until_ready("web")), "from docker save\n");
}

fn an_image_loaded_here_is_here_only() {
    let house = House::shared();
    let space = house.namespace("here");
    let name = "example.org/here:1";
    let file = write(&house, "here.tar", &archive::good_oci(name, &[busybox("only here")]));
    house.skein_ok("two", &["image", "load", "--here", &file]);
    assert!(names(&house, "two").contains(&name.to_owned()));
    space.run("here", spec(name, Some("Never"), Some("two")));
    space.run("there", spec(name, Some("Never"), Some("one")));
    assert_eq!(page(&house, &space.until_ready("here")), "only here\n");
    space.until("there", "without its image", |status| waits(status).0 == "ErrImageNeverPull");
    assert!(!names(&house, "one").contains(&name.to_owned()));
}

fn images_go_when_they_are_told_to_and_no_pod_needs_them() {
    let house = Arc::new(House::formed(&["one"]));
    let space = house.namespace("going");
    let load = |name: &str, here: &[&str]| {
        let file = write(&house, "going.tar", &archive::good_oci(name, &[busybox(name)]));
        house.skein_ok("one", &[&["image", "load"], here, &[&file]].concat());
    };
    let (used, spare, kept) = ("example.org/used:1", "example.org/spare:1", "example.org/kept:1");
    load(used, &["--here"]);
    load(spare, &["--here"]);
    load(kept, &[]);
    space.run("web", spec(used, Some("Never"), None));
    space.until_ready("web");
    let refused = house.skein("one", &["image", "rm", used]);
    assert!(refused.code != 0 && refused.err.contains("/web"), "{refused:?}");
    // What a pod needs stays, and what the cluster was given to keep.
    let pruned = house.skein_ok("one", &["image", "prune"]);
    assert_eq!(pruned, format!("removed {spare}\n"));
    assert_eq!(names(&house, "one"), [kept, used]);
    house.skein_ok("one", &["image", "rm", kept]);
    assert_eq!(names(&house, "one"), [used]);
    let unknown = house.skein("one", &["image", "rm", kept]);
    assert!(unknown.code != 0 && unknown.err.contains("skein image list"), "{unknown:?}");
    wait(house.cluster.api("one").delete(&format!("{}/web", space.pods()))).expect("it is deleted");
    house.until("the image without pods", || {
        (house.skein("one", &["image", "rm", used]).code == 0).then_some(())
    });
    assert!(names(&house, "one").is_empty());
    let blobs = house.lab().machine("one").disk().join("images/blobs/sha256");
    assert_eq!(fs::read_dir(blobs).expect("the disk is ours").count(), 0);
}

fn a_loaded_image_reaches_late_joiners_and_outlives_its_first_node() {
    let mut house = House::new(&["one", "two", "three"]);
    wait(house.cluster.found()).expect("the first node is up");
    let name = "example.org/early:1";
    let file = write(&house, "early.tar", &archive::good_oci(name, &[busybox("loaded before you came")]));
    house.skein_ok("one", &["image", "load", &file]);
    let token = wait(house.cluster.token(2)).expect("a token");
    for late in ["two", "three"] {
        house.cluster.join(late, &token).expect("it starts");
    }
    house.until_whole();
    for late in ["two", "three"] {
        house.until("the image on a late joiner", || {
            names(&house, late).contains(&name.to_owned()).then_some(())
        });
    }
    house.cluster.lab().power_off("one").expect("the power goes");
    house.until("another leader", || {
        let two = house.skein("two", &["status", "-o", "json"]);
        let status: Value = serde_json::from_str(&two.out).ok()?;
        (status["quorum"] == true && status["leader"] != "one").then_some(())
    });
    let pod = json!({ "metadata": { "name": "web" }, "spec": spec(name, None, Some("three")) });
    house.until("a pod is taken", || {
        wait(house.cluster.api("two").post("/api/v1/namespaces/default/pods", &pod)).ok()
    });
    let pod = house.until("a ready pod", || {
        let pod = house.get("two", "/api/v1/namespaces/default/pods/web");
        is_ready(&pod["status"]).then_some(pod)
    });
    assert_eq!(page(&house, &pod), "loaded before you came\n");
}

/// Whether the image could not be pulled, and the reason has this word in it.
fn is_refused(status: &Value, word: &str) -> bool {
    let (reason, message) = waits(status);
    matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff") && message.contains(word)
}

/// Everything below the node's image store, with sizes.
fn store(house: &House) -> BTreeSet<(PathBuf, u64)> {
    fn walk(dir: &Path, found: &mut BTreeSet<(PathBuf, u64)>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let metadata = fs::symlink_metadata(entry.path()).expect("nobody else changes the store");
            if metadata.is_dir() {
                walk(&entry.path(), found);
            }
            found.insert((entry.path(), if metadata.is_dir() { 0 } else { metadata.len() }));
        }
    }
    let mut found = BTreeSet::new();
    walk(&house.lab().machine("one").disk().join("images"), &mut found);
    found
}

fn a_hostile_archive_is_refused_and_leaves_nothing() {
    let mut house = House::new(&["one"]);
    wait(house.cluster.found()).expect("the node is up");
    let name = "example.org/hostile:1";
    let with = |layer: Tar| archive::good_oci(name, &[layer.bytes()]);
    let flipped = |kind: &'static str| {
        archive::oci(name, &[busybox("x")], move |blob, mut bytes| {
            if blob.starts_with(kind) {
                let last = bytes.len() - 10;
                bytes[last] ^= 1;
            }
            bytes
        })
    };
    let good = archive::good_oci(name, &[busybox("good")]);
    let outside = house.dir().join("outside");
    let outside_text = outside.display().to_string();
    // 128 MiB of zeros, of which gzip leaves little; this cluster allows a layer 64.
    let bomb = Tar::new().file("zeros", &vec![0; 128 << 20]);
    let before = store(&house);
    let cases: [(&str, Vec<u8>, &str); 11] = [
        ("a layer with another digest", flipped("layer"), "damaged"),
        ("a manifest with another digest", flipped("manifest"), "damaged"),
        ("a configuration with another digest", flipped("config"), "damaged"),
        ("a path that leads up", with(Tar::new().file("../../evil", b"x")), "\"..\""),
        (
            "a hard link that leads up",
            with(Tar::new().entry(EntryType::Link, "a", "../../etc/passwd", b"")),
            "\"..\"",
        ),
        (
            "a file behind an absolute link",
            with(Tar::new().link("out", &outside_text).file("out/evil", b"x")),
            "out/evil",
        ),
        (
            "a name without end",
            with(Tar::new().entry(EntryType::GNULongName, "n", "", &vec![b'a'; 4 << 20])),
            "not allowed",
        ),
        ("a bomb", with(bomb), "larger than 67108864 bytes"),
        ("a truncated file", good[..good.len() / 2].to_vec(), "cut off"),
        ("no archive", b"hello".to_vec(), "image archive"),
        ("an empty file", Vec::new(), "index.json"),
    ];
    for (what, bytes, word) in cases {
        let file = write(&house, "hostile.tar", &bytes);
        let said = house.skein("one", &["image", "load", &file]);
        assert_eq!(said.code, 1, "{what}: {said:?}");
        assert!(said.err.contains(word) && said.err.lines().count() == 1, "{what}: {}", said.err);
        assert_eq!(store(&house), before, "{what} left something");
        assert_eq!(names(&house, "one"), Vec::<String>::new(), "{what}");
    }
    assert!(!outside.exists());
    let said = house.skein("one", &["image", "load", "/no/such/file"]);
    assert!(said.code == 1 && said.err.contains("/no/such/file"), "{said:?}");
    // The daemon took no harm.
    let file = write(&house, "good.tar", &good);
    house.skein_ok("one", &["image", "load", &file]);
    assert_eq!(names(&house, "one"), [name]);
}

/// The password "goose", as a registry keeps it (bcrypt).
const GOOSE: &str = "$2b$05$abcdefghijklmnopqrstuuqxYoWeh0v/aFBSClKsVuSBlDys0s4c6";

/// A registry, as Debian packs it; it ends when dropped.
struct Registry {
    address: String,
    /// The machine it runs on; the lab itself if there is none.
    machine: Option<&'static str>,
    server: Child,
    dir: tempfile::TempDir,
}

impl Registry {
    fn start(house: &House, machine: Option<&'static str>, address: &str, auth: Value) -> Registry {
        let dir = tempfile::tempdir_in(house.dir()).expect("a directory for the registry");
        let config = json!({
            "version": 0.1,
            "storage": { "filesystem": { "rootdirectory": dir.path().join("data") } },
            "http": { "addr": address },
            "auth": auth,
        });
        // JSON is YAML.
        let config = if auth.is_null() { without(config, "auth") } else { config };
        let file = dir.path().join("config.yml");
        fs::write(&file, config.to_string()).expect("the configuration is written");
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        let mut command = Self::command_on(house, machine, "timeout");
        // In the foreground: else `timeout` leaves the process group that is killed in the end.
        command.args(["--foreground", "300", "docker-registry", "serve"]).arg(&file).stdin(Stdio::null());
        let command = command.stdout(Stdio::null()).stderr(log).process_group(0);
        let server = command.spawn().expect("the registry starts");
        Registry { address: address.to_owned(), machine, server, dir }
    }

    fn command_on(house: &House, machine: Option<&'static str>, program: &str) -> Command {
        match machine {
            Some(machine) => house.lab().machine(machine).command(program),
            None => house.lab().command(program),
        }
    }

    /// Pushes an image that serves `text`, and returns its digest.
    fn push(&self, house: &House, name: &str, text: &str, credentials: Option<&str>) -> String {
        let file = self.dir.path().join("pushed.tar");
        fs::write(&file, archive::good_oci("pushed:1", &[busybox(text)])).expect("the archive is written");
        let digest_file = self.dir.path().join("digest");
        let said = until("a push", || {
            let mut command = Self::command_on(house, self.machine, "timeout");
            command.args(["60", "skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false"]);
            command.args(credentials.iter().flat_map(|held| ["--dest-creds", held]));
            command.arg("--digestfile").arg(&digest_file);
            command.arg(format!("oci-archive:{}:pushed:1", file.display()));
            let said = said(command.arg(format!("docker://{}/{name}", self.address)).output());
            // It may not listen yet.
            (said.code == 0 || !said.err.contains("refused")).then_some(said)
        });
        let said = said.expect("the registry listens");
        assert_eq!(said.code, 0, "{said:?}");
        fs::read_to_string(&digest_file).expect("skopeo says the digest").trim().to_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.server.id() as i32), Signal::SIGKILL);
        let _ = self.server.wait();
    }
}

fn without(mut object: Value, field: &str) -> Value {
    object.as_object_mut().expect("an object").remove(field);
    object
}

/// The shared cluster, a namespace, and a registry that its nodes know as one without TLS.
fn house_with_registry(name: &str, port: u16, auth: Value) -> (Arc<House>, Namespace, Registry) {
    let house = House::shared();
    let space = house.namespace(name);
    let registry = Registry::start(&house, None, &format!("{REGISTRY}:{port}"), auth);
    (house, space, registry)
}

fn a_registry_is_asked_as_the_policy_says() {
    let (house, space, registry) = house_with_registry("policies", 5000, Value::Null);
    let image = format!("{}/team/app:1", registry.address);
    let first = registry.push(&house, "team/app:1", "the first", None);
    space.run("first", spec(&image, Some("IfNotPresent"), Some("one")));
    let pod = space.until_ready("first");
    assert_eq!(page(&house, &pod), "the first\n");
    let id = pod["status"]["containerStatuses"][0]["imageID"].as_str().unwrap_or_default();
    assert!(id.contains(&first), "{id} is not {first}");

    let second = registry.push(&house, "team/app:1", "the second", None);
    assert_ne!(first, second);
    space.run("same", spec(&image, Some("IfNotPresent"), Some("one")));
    assert_eq!(page(&house, &space.until_ready("same")), "the first\n");
    space.run("newer", spec(&image, Some("Always"), Some("one")));
    assert_eq!(page(&house, &space.until_ready("newer")), "the second\n");
    let by_digest = format!("{}/team/app@{first}", registry.address);
    space.run("exact", spec(&by_digest, None, Some("two")));
    assert_eq!(page(&house, &space.until_ready("exact")), "the first\n");

    space.run("never", spec(&image, Some("Never"), Some("three")));
    space.until("never", "refused", |status| waits(status).0 == "ErrImageNeverPull");
    space.run("missing", spec(&format!("{}/team/app:none", registry.address), None, Some("three")));
    space.until("missing", "refused with the registry's words", |status| {
        is_refused(status, "manifest unknown")
    });
    space.until("missing", "backing off", |status| waits(status).0 == "ImagePullBackOff");
    space.run("wrong", spec("UPPER/case", None, None));
    space.until("wrong", "refused", |status| waits(status).0 == "InvalidImageName");
}

fn a_registry_that_is_gone_stops_nothing_that_is_here() {
    let house = House::shared();
    let space = house.namespace("gone");
    // On a machine of the lab, so that no other test's registry answers there.
    let registry = Registry::start(&house, Some("two"), "127.0.0.1:5001", Value::Null);
    let image = format!("{}/app:latest", registry.address);
    registry.push(&house, "app:latest", "still here", None);
    space.run("before", spec(&image, None, Some("two")));
    assert_eq!(page(&house, &space.until_ready("before")), "still here\n");
    drop(registry);
    // `latest` means Always.
    space.run("after", spec(&image, None, Some("two")));
    assert_eq!(page(&house, &space.until_ready("after")), "still here\n");
    space.run("elsewhere", spec(&image, None, Some("three")));
    space.until("elsewhere", "refused with the reason", |status| is_refused(status, "Connection refused"));
}

fn a_registry_of_this_machine_needs_no_setting() {
    let mut house = House::new(&["one"]);
    house.cluster.set_options(&[]);
    wait(house.cluster.found()).expect("the node is up");
    let registry = Registry::start(&house, Some("one"), "127.0.0.1:5002", Value::Null);
    registry.push(&house, "app:1", "from next door", None);
    let other = Registry::start(&house, Some("one"), "198.51.100.1:5003", Value::Null);
    other.push(&house, "app:1", "from the network", None);
    let run = |name: &str, image: String| {
        let pod = json!({ "metadata": { "name": name }, "spec": spec(&image, None, None) });
        house.create("one", "/api/v1/namespaces/default/pods", &pod);
    };
    run("near", "127.0.0.1:5002/app:1".to_owned());
    run("far", "198.51.100.1:5003/app:1".to_owned());
    let pod = house.until("a ready pod", || {
        let pod = house.get("one", "/api/v1/namespaces/default/pods/near");
        is_ready(&pod["status"]).then_some(pod)
    });
    assert_eq!(page(&house, &pod), "from next door\n");
    house.until("a refusal that says what to do", || {
        let pod = house.get("one", "/api/v1/namespaces/default/pods/far");
        is_refused(&pod["status"], "--insecure-registry").then_some(())
    });
}

fn a_registry_with_a_lock_opens_to_the_pods_secret() {
    let lock = tempfile::tempdir().expect("a directory");
    let passwords = lock.path().join("htpasswd");
    fs::write(&passwords, format!("flock:{GOOSE}\n")).expect("written");
    let auth = json!({ "htpasswd": { "realm": "flock", "path": passwords } });
    let (house, space, registry) = house_with_registry("locked", 5004, auth);
    registry.push(&house, "private:1", "for the flock", Some("flock:goose"));
    let image = format!("{}/private:1", registry.address);
    let user = crate::user::User::of(&house, Path::new("kubectl"), "one", &space.name);
    for (name, password) in [("right", "goose"), ("wrong", "duck")] {
        let server = format!("--docker-server={}", registry.address);
        let password = format!("--docker-password={password}");
        user.run(&[
            "create",
            "secret",
            "docker-registry",
            name,
            &server,
            "--docker-username=flock",
            &password,
        ]);
    }
    let with = |secrets: Value| {
        let mut spec = spec(&image, Some("Always"), Some("one"));
        spec["imagePullSecrets"] = secrets;
        spec
    };
    space.run("nobody", with(json!([])));
    space.run("stranger", with(json!([{ "name": "wrong" }])));
    for name in ["nobody", "stranger"] {
        space.until(name, "refused", |status| is_refused(status, "uthoriz"));
    }
    space.run("member", with(json!([{ "name": "wrong" }, { "name": "right" }])));
    assert_eq!(page(&house, &space.until_ready("member")), "for the flock\n");
    // As most people set it up: once, for all pods of the namespace.
    user.run(&["patch", "serviceaccount", "default", "-p", r#"{"imagePullSecrets":[{"name":"right"}]}"#]);
    space.run("heir", with(json!([])));
    assert_eq!(page(&house, &space.until_ready("heir")), "for the flock\n");
}
