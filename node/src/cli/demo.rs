//! `skein demo`: three real nodes on this machine, a Deployment, two power cuts, told as it happens.

use std::io::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use skein_chaos::cluster::{Cluster, Failover, lab_config};
use skein_chaos::{interrupted, lab};

use super::secret;
use crate::daemon::Failure;

const NODES: [&str; 3] = ["one", "two", "three"];
const REPLICAS: u64 = 6;
const DEPLOYMENT: &str = "web";

#[derive(Debug, Clone, Args)]
pub(super) struct Demo {
    /// Leave the cluster running until Ctrl-C, and print how to run kubectl against it.
    #[arg(long)]
    keep: bool,
    /// Print one JSON object for each event instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(demo: Demo) -> Result<(), Failure> {
    let limited = !nix::unistd::geteuid().is_root();
    if limited {
        lab::become_root_of_a_user_namespace()?;
    }
    if let [missing, ..] = &*skein_runtime::missing() {
        return Err(format!("no container can start on this machine. {missing}").into());
    }
    let story = Story { began: Instant::now(), json: demo.json };
    let dir = tempfile::Builder::new().prefix("skein-demo-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told = runtime.block_on(async {
        tokio::select! {
            // First: a cluster that was kept ends by the same signal, and well.
            biased;
            told = tell(&story, &demo, dir.path(), limited) => told,
            () = interrupted() => Err("interrupted; everything the demo started is gone".into()),
        }
    });
    if told.is_err() {
        story.tell("done", "", json!({ "ok": false, "failovers": [] }));
    }
    told
}

async fn tell(story: &Story, demo: &Demo, dir: &std::path::Path, limited: bool) -> Result<(), Failure> {
    let program = std::env::current_exe()?;
    story.say("skein demo: three machines in network namespaces of their own, on this one machine");
    if limited {
        story.say("  (as an ordinary user: limits on memory and processor are not enforced)");
    }
    let mut cluster = Cluster::new(lab_config(program, dir.to_owned()), &NODES)?;
    for name in NODES {
        let address = cluster.lab().machine(name).address().to_string();
        story.tell(
            "machine",
            &format!("machine {name:<6} {address}  on"),
            json!({ "node": name, "address": address }),
        );
    }
    cluster.found().await?;
    story.tell("founded", "one    founded the cluster", json!({ "node": "one" }));
    let token = cluster.token(2).await?;
    story.tell(
        "token",
        &format!("one    made a token: {}..", &token[..token.len().min(24)]),
        json!({ "node": "one" }),
    );
    for name in &NODES[1..] {
        cluster.join(name, &token)?;
        story.tell("joining", &format!("{name:<6} joins with it"), json!({ "node": name }));
    }
    cluster.until_whole().await?;
    let leader = cluster.leader().await.unwrap_or_default();
    story.tell(
        "formed",
        &format!("all three are ready and vote; {leader} leads"),
        json!({ "leader": leader }),
    );

    cluster.deploy("one", DEPLOYMENT, REPLICAS).await?;
    story.tell(
        "applied",
        &format!("Deployment {DEPLOYMENT} of {REPLICAS} replicas applied"),
        json!({ "replicas": REPLICAS }),
    );
    let pods = cluster.until_running("one", DEPLOYMENT, REPLICAS).await?;
    story.tell(
        "running",
        &format!("all {REPLICAS} run: {}", spread(&pods)),
        json!({ "spread": spread(&pods) }),
    );

    let leader = cluster.leader().await.unwrap_or_default();
    let worker = NODES.iter().find(|name| **name != leader).copied().unwrap_or(NODES[0]);
    let mut failovers = vec![lose_and_return(story, &mut cluster, worker).await?];
    let leader = cluster.leader().await.ok_or("the cluster has no leader")?;
    failovers.push(lose_and_return(story, &mut cluster, &leader).await?);

    if demo.keep {
        keep(story, &mut cluster, dir).await?;
    }
    drop(cluster);
    story.say("cleaned up");
    let failovers: Vec<Value> = failovers.iter().map(fields).collect();
    story.tell("done", "", json!({ "ok": true, "failovers": failovers }));
    Ok(())
}

async fn lose_and_return(story: &Story, cluster: &mut Cluster, victim: &str) -> Result<Failover, Failure> {
    let role =
        if cluster.leader().await.as_deref() == Some(victim) { "the leader's machine" } else { "a worker" };
    story.tell("power-cut", &format!("POWER CUT: {victim} ({role}) is off"), json!({ "node": victim }));
    let failover = cluster.power_cut(victim, DEPLOYMENT, REPLICAS).await?;
    let ms = |duration: Duration| duration.as_millis();
    story.tell(
        "failover",
        &format!(
            "  noticed after {} ms, replaced after {} ms, all {REPLICAS} running again after {} ms",
            ms(failover.noticed),
            ms(failover.replaced),
            ms(failover.running)
        ),
        fields(&failover),
    );
    cluster.power_back(victim)?;
    story.tell("power-back", &format!("{victim:<6} has its power back"), json!({ "node": victim }));
    cluster.until_caught_up(victim).await?;
    cluster.until_whole().await?;
    story.tell("caught-up", &format!("{victim:<6} is back and has caught up"), json!({ "node": victim }));
    Ok(failover)
}

async fn keep(story: &Story, cluster: &mut Cluster, dir: &std::path::Path) -> Result<(), Failure> {
    let config = cluster.api(NODES[0]).get("/skein/v1/kubeconfig").await?;
    let path = dir.join("kubeconfig");
    let config = serde_norway::to_string(&config["kubeconfig"])?;
    secret::write_file(&path, |file| Ok(file.write_all(config.as_bytes())?))?;
    let line =
        format!("{} kubectl --kubeconfig {} get pods -o wide", cluster.lab().entrance(), path.display());
    story.tell(
        "kept",
        &format!("The cluster goes on until Ctrl-C. In another terminal:\n\n  {line}\n"),
        json!({ "kubectl": line }),
    );
    interrupted().await;
    Ok(())
}

fn fields(failover: &Failover) -> Value {
    json!({
        "role": if failover.led { "leader" } else { "worker" },
        "node": failover.node,
        "noticed_ms": failover.noticed.as_millis() as u64,
        "replaced_ms": failover.replaced.as_millis() as u64,
        "running_ms": failover.running.as_millis() as u64,
    })
}

fn spread(pods: &[skein_chaos::cluster::Placed]) -> String {
    let on = |name: &str| pods.iter().filter(|pod| pod.node.as_deref() == Some(name)).count();
    NODES.iter().map(|name| format!("{} on {name}", on(name))).collect::<Vec<_>>().join(", ")
}

/// Text for people or lines for machines, with the time since the start.
struct Story {
    began: Instant,
    json: bool,
}

impl Story {
    /// Something only people want to read.
    fn say(&self, text: &str) {
        if !self.json {
            println!("{:>8.3} s  {text}", self.began.elapsed().as_secs_f64());
        }
    }

    fn tell(&self, event: &str, text: &str, fields: Value) {
        if !self.json {
            if !text.is_empty() {
                self.say(text);
            }
            return;
        }
        let mut line = json!({ "event": event, "ms": self.began.elapsed().as_millis() as u64 });
        if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields) {
            line.extend(fields);
        }
        println!("{line}");
    }
}
