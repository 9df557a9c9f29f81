//! What deciding costs in a cluster of 100 nodes and 10,000 pods: 100 Deployments of 100 replicas, each pod ready.
//!
//! `cargo bench -p skein-control --bench planning`
//!
//! Measured on one core of a shared virtual machine that was busy with other work, both columns of one line at the same
//! time, so mostly the ratios mean something: when the machine was calm, the same took two thirds. Before is what was
//! there before pods that ask for the same were asked for once, and replicas counted while they come and go.
//!
//! | what changed | before | after |
//! |---|---|---|
//! | a pod is not ready any more | 0.57 ms | 0.35 ms |
//! | a bare pod comes | 0.32 ms | 0.35 ms |
//! | a bare pod comes that must be with 100 others | 0.73 ms | 0.70 ms |
//! | a pod is gone and replaced | 1.7 ms | 0.62 ms |
//! | the same where each Deployment keeps its pods apart | 1.6 ms | 0.91 ms |
//! | the same while 500 pods of one Deployment wait in vain | 4.4 ms | 0.85 ms |
//! | the same while 500 pods wait in vain, no two alike | not measured | 7.7 ms |
//! | the same beside 2,000 pods without an owner | not measured | 1.1 ms |
//! | one of 10,000 replicas is not ready any more | not measured | 0.36 ms |
//! | one of 10,000 replicas is gone and replaced | not measured | 0.96 ms |
//! | a Node's object changes | not measured | 1.5 ms |
//!
//! An agent hears of a change elsewhere in 0.07 µs. Where no two of the pods that wait are alike, each is still held
//! against all nodes, by numbers alone: nobody but a test has made so many of them yet.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use skein_api::write::Change;
use skein_control::chance::Chance;
use skein_control::node::departure::Electorate;
use skein_control::node_health::Verdict;
use skein_control::plan::{Bounds, Plan, Round, plan};
use skein_control::pod::{Input, PodLife};
use skein_control::time::{Instant, Now};
use skein_control::view::{Changed, Key, View};

const NODES: usize = 100;
const DEPLOYMENTS: usize = 100;
const REPLICAS: usize = 100;

#[derive(Clone)]
struct Cluster {
    view: View,
    changed: Changed,
    verdicts: BTreeMap<String, Verdict>,
    electorate: Electorate,
    revision: u64,
    rounds: u128,
}

impl Cluster {
    fn new() -> Cluster {
        Cluster::of(DEPLOYMENTS, REPLICAS)
    }

    fn of(deployments: usize, replicas: usize) -> Cluster {
        let mut cluster = Cluster {
            view: View::default(),
            changed: Changed::All,
            verdicts: BTreeMap::new(),
            electorate: Electorate { leader: "nobody".to_owned(), ..Electorate::default() },
            revision: 0,
            rounds: 0,
        };
        cluster.rest();
        (0..NODES).for_each(|number| cluster.add_node(number));
        for number in 0..deployments {
            cluster.put(
                &format!("apps/deployments/default/d{number}"),
                &deployment(number, replicas, &json!({})),
            );
        }
        cluster.rest();
        cluster.start_all();
        cluster.rest();
        assert_eq!(cluster.view.unbound().count(), 0, "every pod has a node");
        cluster
    }

    /// The same cluster, had everything in it always been made with `affinity`.
    fn with_affinity(&self, affinity: &Value) -> Cluster {
        let mut cluster = self.clone();
        let is_one = |key: &&Key| key.starts_with("apps/") || key.starts_with("core/pods/");
        let keys: Vec<Key> = cluster.view.keys_in_namespace("default").filter(is_one).cloned().collect();
        for key in keys {
            let stored = cluster.view.stored(&key).expect("it is listed");
            let mut object: Value =
                serde_json::from_slice(&stored.object.to_bytes().expect("no Event")).expect("JSON");
            let app = object["metadata"]["labels"]["app"].as_str().or(object["metadata"]["name"].as_str());
            let affinity = of_app(affinity, app.expect("a label or a name"));
            let spec = if key.starts_with("apps/") {
                &mut object["spec"]["template"]["spec"]
            } else {
                &mut object["spec"]
            };
            spec["affinity"] = affinity;
            cluster.put(&key, &object);
        }
        assert_eq!(cluster.round(), 0, "nothing follows from it");
        cluster
    }

    fn add_node(&mut self, number: usize) {
        let name = format!("n{number}");
        let record = json!({
            "node": name, "store": "", "name": name, "addresses": [], "subnet": "", "joined_ms": 0, "fresh": false,
        });
        self.put(&format!("skein/members//{name}"), &record);
        let offered = json!({"cpu": "64", "memory": "256Gi", "pods": "110"});
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name, "uid": format!("node {number}"),
                "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            },
            "spec": {},
            "status": {
                "capacity": offered, "allocatable": offered,
                "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        self.put(&format!("core/nodes//{name}"), &node);
        self.verdicts.insert(name, Verdict::Alive);
    }

    fn put(&mut self, key: &str, object: &Value) {
        self.store(key, Some(object.to_string().as_bytes()));
    }

    fn store(&mut self, key: &str, value: Option<&[u8]>) {
        self.revision += 1;
        let touched = self.view.apply(key, value, self.revision);
        self.changed.add(touched);
    }

    fn plan(&self, changed: &Changed) -> Plan {
        let round = Round {
            now: Timestamp::from_second(1_700_000_000).expect("in range"),
            chance: Chance(self.rounds),
            verdicts: &self.verdicts,
            electorate: &self.electorate,
            ca_pem: "pem",
            kubernetes_ip: "10.43.0.1",
        };
        plan(&self.view, changed, &round, &Bounds::default())
    }

    /// One round of the leader: the number of writes.
    fn round(&mut self) -> usize {
        self.rounds += 1 << 64;
        let changed = std::mem::take(&mut self.changed);
        let plan = self.plan(&changed);
        for write in &plan.writes {
            match &write.change {
                Change::Put(bytes) => self.store(&write.key, Some(bytes)),
                Change::Delete => self.store(&write.key, None),
                Change::Check => {}
            }
        }
        if let Some(rest) = plan.rest {
            self.changed.merge(rest);
        }
        plan.writes.len()
    }

    fn rest(&mut self) {
        while self.round() > 0 {}
    }

    /// Every pod that is bound becomes ready.
    fn start_all(&mut self) {
        let bound: Vec<(String, Pod)> = self
            .view
            .all::<Pod>()
            .filter(|(_, pod)| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()))
            .map(|(key, pod)| (key.to_string(), (**pod).clone()))
            .collect();
        for (key, pod) in bound {
            self.store(&key, Some(&ready(&pod, true)));
        }
    }

    fn some_pod(&self) -> (String, Pod) {
        let (key, pod) = self.view.all::<Pod>().nth(4711).expect("there are 10,000");
        (key.to_string(), (**pod).clone())
    }

    /// What changed by `change`, with everything before it planned to rest.
    fn after(&self, change: impl FnOnce(&mut Cluster)) -> Cluster {
        let mut cluster = self.clone();
        cluster.changed = Changed::default();
        change(&mut cluster);
        cluster
    }
}

fn deployment(number: usize, replicas: usize, spec: &Value) -> Value {
    let app = format!("d{number}");
    let mut pod = json!({
        "containers": [{
            "name": "main", "image": "registry.example/team/app:1.2.3", "imagePullPolicy": "IfNotPresent",
            "args": ["--listen", ":8080", "--verbose"],
            "env": [{"name": "MODE", "value": "production"}, {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 10},
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        pod[field] = of_app(value, &app);
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": "default", "name": app, "uid": format!("uid of {app}"), "generation": 1},
        "spec": {
            "replicas": replicas, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
            "selector": {"matchLabels": {"app": app}},
            "template": {"metadata": {"labels": {"app": app, "tier": "web"}}, "spec": pod},
        },
    })
}

/// Each Deployment keeps its own pods apart, or together.
fn of_app(value: &Value, app: &str) -> Value {
    serde_json::from_str(&value.to_string().replace("APP", app)).expect("it was JSON")
}

/// The pod's bytes with this readiness.
fn ready(pod: &Pod, ready: bool) -> Vec<u8> {
    let mut json = serde_json::to_value(pod).expect("a pod is plain data");
    let word = if ready { "True" } else { "False" };
    let since = "2023-11-14T22:13:20Z";
    json["status"]["phase"] = "Running".into();
    json["status"]["podIP"] = "10.42.1.7".into();
    json["status"]["startTime"] = since.into();
    json["status"]["conditions"] = json!([
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": since},
        {"type": "Initialized", "status": "True", "lastTransitionTime": since},
        {"type": "ContainersReady", "status": word, "lastTransitionTime": since},
        {"type": "Ready", "status": word, "lastTransitionTime": since},
    ]);
    json["status"]["containerStatuses"] = json!([{
        "name": "main", "ready": ready, "started": true, "restartCount": 0, "image": "registry.example/team/app:1.2.3",
        "imageID": "sha256:0", "containerID": "skein://0", "state": {"running": {"startedAt": since}},
    }]);
    json.to_string().into_bytes()
}

/// 500 pods of one Deployment that ask for more than any node has.
fn with_waiting(cluster: &Cluster) -> Cluster {
    let mut cluster = cluster.clone();
    let greedy =
        json!({"containers": [{"name": "main", "image": "x:1", "resources": {"requests": {"cpu": "100"}}}]});
    cluster.put("apps/deployments/default/greedy", &deployment(777, 500, &greedy));
    cluster.rest();
    assert_eq!(cluster.view.unbound().count(), 500);
    cluster
}

/// 500 pods without an owner, each of which asks for more than any node has, and none for the same as another.
fn with_unlike_waiting(cluster: &Cluster) -> Cluster {
    let mut cluster = cluster.clone();
    for number in 0..500 {
        let resources = json!({"requests": {"cpu": (100 + number).to_string()}});
        let greedy = json!({"containers": [{"name": "main", "image": "x:1", "resources": resources}]});
        let name = format!("greedy{number}");
        cluster.put(&format!("core/pods/default/{name}"), &bare(&name, &greedy));
    }
    cluster.rest();
    assert_eq!(cluster.view.unbound().count(), 500);
    cluster
}

/// All pods are of one Deployment.
fn with_one_large() -> Cluster {
    Cluster::of(1, DEPLOYMENTS * REPLICAS)
}

/// 2,000 more pods, which have a node and no owner.
fn with_loose(cluster: &Cluster) -> Cluster {
    let mut cluster = cluster.clone();
    for number in 0..2_000 {
        let name = format!("loose{number}");
        let spec = json!({"nodeName": format!("n{}", number % NODES)});
        let mut pod = bare(&name, &spec);
        pod["metadata"]["labels"] = json!({"app": "none"});
        cluster.put(&format!("core/pods/default/{name}"), &pod);
    }
    cluster.rest();
    cluster
}

fn bare(name: &str, spec: &Value) -> Value {
    let made = deployment(7, 1, spec);
    let template = &made["spec"]["template"];
    let metadata =
        json!({"namespace": "default", "name": name, "uid": name, "labels": template["metadata"]["labels"]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

fn benches(criterion: &mut Criterion) {
    let plain = Cluster::new();
    let waiting = with_waiting(&plain);
    let unlike = with_unlike_waiting(&plain);
    let one_large = with_one_large();
    let loose = with_loose(&plain);
    let apart_all = plain
        .with_affinity(&json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "APP"}}}]}}));
    let together = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "APP"}}}]}}});
    let (key, pod) = plain.some_pod();
    let (apart_key, _) = apart_all.some_pod();
    let fails = |cluster: &mut Cluster| cluster.store(&key, Some(&ready(&pod, false)));

    let mut planned = |name: &str, cluster: Cluster| {
        let writes = cluster.plan(&cluster.changed).writes.len();
        println!("{name}: {writes} writes");
        criterion.bench_function(name, |bencher| bencher.iter(|| cluster.plan(black_box(&cluster.changed))));
    };
    planned("a pod is not ready any more", plain.after(fails));
    planned("a pod is not ready any more while 500 wait in vain", waiting.after(fails));
    planned("a pod is gone and replaced", plain.after(|cluster| cluster.store(&key, None)));
    planned(
        "a pod is gone and replaced while 500 wait in vain",
        waiting.after(|cluster| cluster.store(&key, None)),
    );
    planned(
        "a pod is gone and replaced while 500 of 500 kinds wait in vain",
        unlike.after(|cluster| cluster.store(&key, None)),
    );
    planned(
        "a pod is gone and replaced among 2,000 without an owner",
        loose.after(|cluster| cluster.store(&key, None)),
    );
    let (large_key, large_pod) = one_large.some_pod();
    planned(
        "one of 10,000 replicas is not ready any more",
        one_large.after(|cluster| cluster.store(&large_key, Some(&ready(&large_pod, false)))),
    );
    planned(
        "one of 10,000 replicas is gone and replaced",
        one_large.after(|cluster| cluster.store(&large_key, None)),
    );
    planned(
        "a node says something",
        plain.after(|cluster| {
            let node = cluster.view.named::<Node>("", "n7").expect("it is there").clone();
            let mut node = serde_json::to_value(&*node).expect("a node is plain data");
            node["status"]["nodeInfo"]["machineID"] = "another".into();
            cluster.put("core/nodes//n7", &node);
        }),
    );
    planned(
        "a bare pod comes",
        plain.after(|cluster| cluster.put("core/pods/default/bare", &bare("bare", &json!({})))),
    );
    planned(
        "a bare pod comes that wants to be with others",
        plain.after(|cluster| cluster.put("core/pods/default/bare", &bare("bare", &together))),
    );
    planned(
        "a pod is gone and replaced where all keep apart",
        apart_all.after(|cluster| cluster.store(&apart_key, None)),
    );
    planned(
        "something foreign changes",
        plain.after(|cluster| {
            cluster.put(
                "core/configmaps/default/c",
                &json!({"metadata": {"namespace": "default", "name": "c"}}),
            );
        }),
    );
    planned(
        "a node is lost",
        plain.after(|cluster| {
            cluster.verdicts.insert("n7".to_owned(), Verdict::Unreachable);
        }),
    );
    planned("a new leader looks at everything", Cluster { changed: Changed::All, ..plain.clone() });

    let here = plain.view.pods_of("n7");
    criterion.bench_function("an agent hears that something changed elsewhere", |bencher| {
        bencher.iter(|| black_box(&plain.view).pods_of("n7").is_same(&here));
    });
    let now = Now { boot: Instant(1), wall: Timestamp::from_second(1_700_000_000).expect("in range") };
    let mut life = PodLife::new(Arc::new(pod.clone()), vec!["192.0.2.7".into()], now);
    criterion.bench_function("a pod hears of its object", |bencher| {
        let object = Arc::new(pod.clone());
        bencher.iter(|| {
            let mut effects = Vec::new();
            life.handle(now, Input::Desired(Some(object.clone())), &mut effects);
            effects
        });
    });

    let bytes = ready(&pod, false);
    criterion.bench_function("the picture takes over a pod", |bencher| {
        let view = || plain.view.clone();
        bencher.iter_batched(
            view,
            |mut view| {
                view.apply(&key, Some(&bytes), 1 << 40);
                view
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(planning, benches);
criterion_main!(planning);
