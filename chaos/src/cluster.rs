//! A cluster of real nodes in a lab, and what can be done to it: formed, loaded with pods, robbed of a
//! machine, healed. `skein demo`, the end-to-end tests and the benchmarks all tell their story with this.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{self, Api, Watch};
use crate::lab::{self, Lab};

/// The image that every node has: the program itself.
pub const TINY: &str = "skein.dev/tiny";
/// Between two looks at something that has no watch.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why a scenario did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lab could not do its part.
    #[error(transparent)]
    Lab(#[from] lab::Error),
    /// A node did not answer, or refused.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// Something was waited for in vain.
    #[error("{what} did not happen within {} s; the nodes' logs are in {}", limit.as_secs(), logs.display())]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
        /// The lab's directory.
        logs: PathBuf,
    },
    /// A watch ended before its time.
    #[error("a node ended a watch too early")]
    WatchEnded,
}

/// How long each step of a failover took, from the power cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// The machine that lost its power.
    pub node: String,
    /// Whether it led.
    pub led: bool,
    /// Until the verdict was committed.
    pub noticed: Duration,
    /// Until every replacement was bound to a node.
    pub replaced: Duration,
    /// Until all were Running in the API.
    pub running: Duration,
}

/// See the module.
pub struct Cluster {
    lab: Lab,
    names: Vec<String>,
    options: Vec<String>,
}

impl Cluster {
    /// Machines `names`, switched on, with nothing running on them.
    pub fn new(config: lab::Config, names: &[&str]) -> Result<Cluster, Error> {
        let mut lab = Lab::new(config)?;
        for name in names {
            lab.add(name);
            lab.power_on(name)?;
        }
        let names = names.iter().map(ToString::to_string).collect();
        Ok(Cluster { lab, names, options: Vec::new() })
    }

    /// Options that every node is started with from now on, such as `--insecure-registry`.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(ToString::to_string).collect();
    }

    /// The lab, for faults of other kinds.
    pub fn lab(&mut self) -> &mut Lab {
        &mut self.lab
    }

    /// The lab, to look around in it.
    pub fn machines(&self) -> &Lab {
        &self.lab
    }

    /// All machines, in the order they were named.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A client of one node.
    pub fn api(&self, name: &str) -> Api {
        Api::of(&self.lab.machine(name).disk_from_outside())
    }

    /// Starts a new cluster on the first machine, and waits until its API answers.
    pub async fn found(&mut self) -> Result<(), Error> {
        let first = self.names[0].clone();
        self.start(&first, &["up", "--new-cluster", "--cluster", "demo"])?;
        self.until(&format!("the start of {first}"), async |cluster| cluster.status(&first).await.is_some())
            .await
    }

    /// A token for `uses` machines, from the first node.
    pub async fn token(&self, uses: u64) -> Result<String, Error> {
        let made = self.api(&self.names[0]).post("/skein/v1/tokens", &json!({ "uses": uses })).await?;
        Ok(made["token"].as_str().unwrap_or_default().to_owned())
    }

    /// Starts `skein join` on the machine; returns at once.
    pub fn join(&mut self, name: &str, token: &str) -> Result<(), Error> {
        self.start(name, &["join", token])
    }

    /// Starts `skein up` on a machine that is a member already; returns at once.
    pub fn up(&mut self, name: &str) -> Result<(), Error> {
        self.start(name, &["up"])
    }

    /// Forms the whole cluster: the first founds, the others join, all are ready and vote as they should.
    pub async fn form(&mut self) -> Result<(), Error> {
        self.found().await?;
        let token = self.token(self.names.len() as u64).await?;
        for name in self.names.clone().iter().skip(1) {
            self.join(name, &token)?;
        }
        self.until_whole().await
    }

    /// Waits until every machine that is on is ready, and the cluster has as many voters as it can have.
    pub async fn until_whole(&self) -> Result<(), Error> {
        let voters = match self.names.len() {
            0..=2 => 1,
            3..=4 => 3,
            _ => 5,
        };
        self.until("a whole cluster", async |cluster| {
            let mut leaders = BTreeSet::new();
            for name in &cluster.names {
                let Some(status) = cluster.status(name).await else { return false };
                let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
                let ready =
                    nodes.iter().filter(|node| node["ready"] == true && node["state"] == "alive").count();
                let voting = nodes.iter().filter(|node| node["voter"] == true).count();
                // Less while the last change of the voters is not committed.
                let survived = status["failuresSurvived"].as_u64();
                let settled = survived == Some((voters as u64 - 1) / 2);
                if ready != cluster.names.len() || voting != voters || !settled {
                    return false;
                }
                leaders.insert(status["leader"].to_string());
            }
            leaders.len() == 1
        })
        .await
    }

    /// Waits until the machine is back as what it was: ready, alive for the leader, and with the whole log.
    pub async fn until_caught_up(&self, name: &str) -> Result<(), Error> {
        self.until(&format!("the return of {name}"), async |cluster| {
            if cluster.status(name).await.is_none() {
                return false;
            }
            let Some(leader) = cluster.leader().await else { return false };
            let Some(status) = cluster.status(&leader).await else { return false };
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            nodes.iter().any(|node| {
                let here = node["name"] == name && node["ready"] == true && node["state"] == "alive";
                here && (leader == name || node["voter"] != true || node["lag"] == 0)
            })
        })
        .await
    }

    /// What the node's `status` says; `None` if it does not answer.
    pub async fn status(&self, name: &str) -> Option<Value> {
        self.api(name).get("/skein/v1/status").await.ok()
    }

    /// Who leads, by the word of a majority that includes the leader itself.
    pub async fn leader(&self) -> Option<String> {
        let mut votes: BTreeMap<String, usize> = BTreeMap::new();
        for name in &self.names {
            if let Some(leader) =
                self.status(name).await.and_then(|status| Some(status["leader"].as_str()?.to_owned()))
            {
                *votes.entry(leader).or_default() += 1;
            }
        }
        let (leader, _) = votes.into_iter().max_by_key(|(_, count)| *count)?;
        let own = self.status(&leader).await?;
        (own["leader"] == leader.as_str() && own["quorum"] == true).then_some(leader)
    }

    /// Creates a Deployment of the built-in image.
    pub async fn deploy(&self, through: &str, name: &str, replicas: u64) -> Result<(), Error> {
        self.api(through)
            .post("/apis/apps/v1/namespaces/default/deployments", &deployment(name, replicas))
            .await?;
        Ok(())
    }

    /// Waits until all of the Deployment's replicas run, as `through` sees it.
    pub async fn until_running(
        &self,
        through: &str,
        name: &str,
        replicas: u64,
    ) -> Result<Vec<Placed>, Error> {
        let mut watched = Watched::open(&self.api(through), name).await?;
        let limit = Duration::from_secs(120);
        let running = async {
            while watched.running() != replicas as usize {
                watched.next().await?;
            }
            Ok(watched.pods.values().cloned().collect())
        };
        let waited = tokio::time::timeout(limit, running).await;
        waited.unwrap_or_else(|_| Err(self.late(format!("{replicas} running pods of {name}"), limit)))
    }

    /// Cuts the power of `victim` and measures until the Deployment is whole again elsewhere.
    pub async fn power_cut(
        &mut self,
        victim: &str,
        deployment: &str,
        replicas: u64,
    ) -> Result<Failover, Error> {
        let led = self.leader().await.as_deref() == Some(victim);
        let survivor = self.names.iter().find(|name| *name != victim && self.lab.machine(name).is_on());
        let survivor = survivor.cloned().unwrap_or_default();
        let api = self.api(&survivor);
        let mut pods = Watched::open(&api, deployment).await?;
        let mut nodes =
            api.watch(&format!("/api/v1/nodes?watch=true&fieldSelector=metadata.name%3D{victim}")).await?;
        let began = Instant::now();
        self.lab.power_off(victim)?;
        let (mut noticed, mut replaced) = (None, None);
        let limit = Duration::from_secs(60);
        let story = async {
            loop {
                let elsewhere =
                    pods.pods.values().filter(|pod| pod.node.as_deref().is_some_and(|node| node != victim));
                if replaced.is_none() && noticed.is_some() && elsewhere.count() == replicas as usize {
                    replaced = Some(began.elapsed());
                }
                if replaced.is_some() && pods.running_off(victim) == replicas as usize {
                    return Ok(began.elapsed());
                }
                tokio::select! {
                    event = nodes.next() => {
                        let event = event?.ok_or(Error::WatchEnded)?;
                        let taints = event["object"]["spec"]["taints"].as_array().cloned().unwrap_or_default();
                        let lost = taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/unreachable");
                        if lost && noticed.is_none() {
                            noticed = Some(began.elapsed());
                        }
                    }
                    moved = pods.next() => moved?,
                }
            }
        };
        let running = tokio::time::timeout(limit, story)
            .await
            .unwrap_or_else(|_| Err(self.late(format!("the failover of {victim}"), limit)))?;
        let node = victim.to_owned();
        let (noticed, replaced) = (noticed.unwrap_or(running), replaced.unwrap_or(running));
        Ok(Failover { node, led, noticed, replaced, running })
    }

    /// Gives the machine its power back and starts its daemon.
    pub fn power_back(&mut self, name: &str) -> Result<(), Error> {
        self.lab.power_on(name)?;
        self.up(name)
    }

    /// Waits for `condition`, looking again and again; fails after two minutes.
    pub async fn until(&self, what: &str, condition: impl AsyncFn(&Cluster) -> bool) -> Result<(), Error> {
        let limit = Duration::from_secs(120);
        let deadline = Instant::now() + limit;
        while !condition(self).await {
            if Instant::now() > deadline {
                return Err(self.late(what.to_owned(), limit));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn late(&self, what: String, limit: Duration) -> Error {
        Error::Late { what, limit, logs: self.lab.dir().to_owned() }
    }

    /// Starts `skein` with `words` as the machine's daemon, for its disk; returns at once.
    pub fn start(&mut self, name: &str, words: &[&str]) -> Result<(), Error> {
        let share = self.names.len().to_string();
        let machine = self.lab.machine_mut(name);
        let (disk, cgroup) = (machine.disk().display().to_string(), machine.cgroup().to_owned());
        let own = ["--name", name, "--data-dir", &disk, "--cgroup", &cgroup, "--share", &share];
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        // A member that comes back keeps its name.
        Ok(machine.start(&[words, &own, &options].concat())?)
    }
}

/// A pod of a Deployment, as far as a scenario cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its name.
    pub name: String,
    /// Its uid: another one is another pod.
    pub uid: String,
    /// Its node, once bound.
    pub node: Option<String>,
    /// Whether it runs and is ready.
    pub running: bool,
    /// How often its containers were started again.
    pub restarts: u64,
}

/// The pods of one Deployment, followed by a watch.
struct Watched {
    pods: BTreeMap<String, Placed>,
    watch: Watch,
}

impl Watched {
    async fn open(api: &Api, deployment: &str) -> Result<Watched, Error> {
        let path = format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{deployment}");
        let list = api.get(&path).await?;
        let pods = list["items"].as_array().into_iter().flatten().map(placed);
        let pods = pods.map(|pod| (pod.uid.clone(), pod)).collect();
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let watch = api.watch(&format!("{path}&watch=true&resourceVersion={version}")).await?;
        Ok(Watched { pods, watch })
    }

    async fn next(&mut self) -> Result<(), Error> {
        let event = self.watch.next().await?.ok_or(Error::WatchEnded)?;
        let pod = placed(&event["object"]);
        match event["type"].as_str() {
            Some("DELETED") => drop(self.pods.remove(&pod.uid)),
            Some("ADDED" | "MODIFIED") => drop(self.pods.insert(pod.uid.clone(), pod)),
            _ => {}
        }
        Ok(())
    }

    fn running(&self) -> usize {
        self.pods.values().filter(|pod| pod.running).count()
    }

    fn running_off(&self, node: &str) -> usize {
        self.pods.values().filter(|pod| pod.running && pod.node.as_deref() != Some(node)).count()
    }
}

fn placed(pod: &Value) -> Placed {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready =
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    Placed {
        name: text(&pod["metadata"]["name"]),
        uid: text(&pod["metadata"]["uid"]),
        node: pod["spec"]["nodeName"].as_str().map(str::to_owned),
        running: ready
            && pod["status"]["phase"] == "Running"
            && pod["metadata"]["deletionTimestamp"].is_null(),
        restarts: statuses.iter().filter_map(|status| status["restartCount"].as_u64()).sum(),
    }
}

/// A Deployment of the built-in image, spread as the scheduler likes.
pub fn deployment(name: &str, replicas: u64) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "terminationGracePeriodSeconds": 1, "containers": [{ "name": "web", "image": TINY }] },
            },
        },
    })
}

/// A lab's settings below `dir`, with an address range of documentation (RFC 5737): nobody's home has it.
pub fn lab_config(program: PathBuf, dir: PathBuf) -> lab::Config {
    lab::Config { program, dir, network: Ipv4Addr::new(198, 51, 100, 0) }
}
