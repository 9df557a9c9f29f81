//! The benchmarks: each forms its own cluster, measures, and takes it down.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use skein_chaos::api::{self, Api};
use skein_chaos::cluster::{Cluster, Placed, lab_config};
use skein_chaos::interrupted;

use crate::What;
use crate::figures::Figures;

const NODES: [&str; 3] = ["one", "two", "three"];
const REPLICAS: u64 = 6;
/// How long an idle cluster is watched in one run.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// As many pods as a node takes by default.
const PODS_MAX: u64 = 110;
/// Changes a second that are no concern of the pods of the node that is watched.
const FOREIGN_RATE: u32 = 300;
const FOREIGN_FOR: Duration = Duration::from_secs(20);
/// Each is a client of its own, which waits for its answers.
const FOREIGN_CLIENTS: u32 = 10;
/// How long one run of writes lasts.
const WRITE_FOR: Duration = Duration::from_secs(5);
/// How long a leader's end is watched: several elections.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(5);
/// The outage that each minute of abuse holds: the one that the judge's defaults survive.
const OUTAGE: Duration = Duration::from_secs(2);

type Failure = Box<dyn std::error::Error>;

/// Measures `what` and prints it.
pub(crate) fn run(what: What, runs: usize, json: Option<&Path>) -> Result<(), Failure> {
    let program = build()?;
    let mut figures = Figures::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            measured = measure(what, &program, runs, &mut figures) => measured,
            () = interrupted() => Err("interrupted; the machines it measured are gone".into()),
        }
    })?;
    print!("{}", figures.text());
    if let Some(path) = json {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let name = format!("{what:?}").to_lowercase();
        let all = json!({ "bench": name, "runs": runs, "cores": cores, "figures": figures.json() });
        fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}

async fn measure(what: What, program: &Path, runs: usize, figures: &mut Figures) -> Result<(), Failure> {
    match what {
        What::Failover => failover(program, runs, figures).await,
        What::Writes => writes(program, runs, figures).await,
        What::Deploy => deploy(program, runs, figures).await,
        What::Join => join(program, runs, figures).await,
        What::Idle => idle(program, runs, figures).await,
        What::Foreign => foreign(program, runs, figures).await,
        What::Takeover => takeover(program, runs, figures).await,
        What::Abuse => abuse(program, runs, figures).await,
    }
}

/// The program beside this one, built with the same profile.
fn build() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    let program = own.with_file_name("skein");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "-p", "skein"]);
    if own.components().any(|part| part.as_os_str() == "release") {
        cargo.arg("--release");
    }
    match cargo.status() {
        Ok(status) if status.success() && program.exists() => Ok(program),
        // Away from the sources the program that lies here is the one to measure.
        _ if program.exists() => Ok(program),
        _ => Err("cannot build skein; run this from its sources, with cargo in PATH".into()),
    }
}

struct Formed {
    cluster: Cluster,
    _dir: tempfile::TempDir,
}

fn machines(program: &Path, names: &[&str]) -> Result<Formed, Failure> {
    let dir = tempfile::Builder::new().prefix("skein-bench-").tempdir()?;
    let cluster = Cluster::new(lab_config(program.to_owned(), dir.path().to_owned()), names)?;
    Ok(Formed { cluster, _dir: dir })
}

async fn formed(program: &Path, names: &[&str]) -> Result<Formed, Failure> {
    let mut formed = machines(program, names)?;
    formed.cluster.form().await?;
    Ok(formed)
}

async fn failover(program: &Path, runs: usize, figures: &mut Figures) -> Result<(), Failure> {
    let mut formed = formed(program, &NODES).await?;
    let cluster = &mut formed.cluster;
    cluster.deploy("one", "web", REPLICAS).await?;
    cluster.until_running("one", "web", REPLICAS).await?;
    for run in 0..2 * runs {
        let leader = cluster.leader().await.ok_or("no leader")?;
        let worker = NODES.iter().find(|name| **name != leader).copied().unwrap_or(NODES[0]);
        let victim = if run % 2 == 0 { worker.to_owned() } else { leader };
        let failover = cluster.power_cut(&victim, "web", REPLICAS).await?;
        let role = if failover.led { "leader" } else { "worker" };
        figures.add_time(&format!("{role} noticed"), failover.noticed);
        figures.add_time(&format!("{role} replaced"), failover.replaced);
        figures.add_time(&format!("{role} running"), failover.running);
        note(&format!("{role} {victim}: running after {} ms", failover.running.as_millis()));
        cluster.power_back(&victim)?;
        cluster.until_caught_up(&victim).await?;
        cluster.until_whole().await?;
    }
    Ok(())
}

async fn writes(program: &Path, runs: usize, figures: &mut Figures) -> Result<(), Failure> {
    let formed = formed(program, &NODES).await?;
    for run in 0..runs {
        for clients in [1, 64] {
            let calls = NODES.iter().enumerate().map(|(at, name)| {
                // The clients are spread over the nodes; one alone changes its node from run to run.
                let here =
                    clients / NODES.len() + usize::from((at + run) % NODES.len() < clients % NODES.len());
                let api = formed.cluster.api(name);
                async move {
                    let body = json!({ "clients": here, "bytes": 512, "seconds": WRITE_FOR.as_secs() });
                    api.post("/skein/v1/load", &body).await
                }
            });
            let answers = futures::future::try_join_all(calls).await?;
            let sum = |field: &str| answers.iter().filter_map(|answer| answer[field].as_f64()).sum::<f64>();
            figures.add(&format!("{clients} clients"), "writes/s", sum("writes") / WRITE_FOR.as_secs_f64());
            for answer in &answers {
                for (field, name) in [("p50_ms", "p50"), ("p99_ms", "p99")] {
                    if let Some(value) = answer[field].as_f64() {
                        figures.add(&format!("{clients} clients, {name}"), "ms", value);
                    }
                }
            }
        }
        figures.add("the disk's fdatasync, p50", "ms", fdatasync_p50(formed._dir.path())?);
        note(&format!("run {}", run + 1));
    }
    Ok(())
}

async fn deploy(program: &Path, runs: usize, figures: &mut Figures) -> Result<(), Failure> {
    let formed = formed(program, &NODES).await?;
    let cluster = &formed.cluster;
    for run in 0..runs {
        for (replicas, what) in [(1, "one replica running"), (100, "100 replicas running")] {
            let name = format!("load-{run}-{replicas}");
            let through = NODES[run % NODES.len()];
            let began = Instant::now();
            cluster.deploy(through, &name, replicas).await?;
            cluster.until_running(through, &name, replicas).await?;
            figures.add_time(what, began.elapsed());
            note(&format!("{what} after {} ms", began.elapsed().as_millis()));
            let api = cluster.api(through);
            api.delete(&format!("/apis/apps/v1/namespaces/default/deployments/{name}")).await?;
            let pods = format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{name}");
            cluster
                .until("the end of the pods", async |_| {
                    api.get(&pods).await.is_ok_and(|list| list["items"].as_array().is_some_and(Vec::is_empty))
                })
                .await?;
        }
    }
    Ok(())
}

async fn join(program: &Path, runs: usize, figures: &mut Figures) -> Result<(), Failure> {
    for run in 0..runs {
        let mut formed = machines(program, &NODES)?;
        formed.cluster.found().await?;
        let token = formed.cluster.token(2).await?;
        for name in &NODES[1..] {
            let began = Instant::now();
            formed.cluster.join(name, &token)?;
            let ready = |status: &serde_json::Value| {
                let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
                nodes.iter().any(|node| node["name"] == *name && node["ready"] == true)
            };
            formed
                .cluster
                .until("a ready node", async |cluster| {
                    cluster.status("one").await.is_some_and(|status| ready(&status))
                })
                .await?;
            figures.add_time("join until Ready", began.elapsed());
        }
        let began = Instant::now();
        formed.cluster.until_whole().await?;
        figures.add_time("then until all vote", began.elapsed());
        note(&format!("run {}", run + 1));
    }
    Ok(())
}

async fn idle(program: &Path, runs: usize, figures: &mut Figures) -> Result<(), Failure> {
    let mut formed = formed(program, &NODES).await?;
    let cluster = &mut formed.cluster;
    cluster.deploy("one", "web", 10).await?;
    cluster.until_running("one", "web", 10).await?;
    // What the start left to do (first renewals, caches that shrink) is not idleness.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let daemons: Vec<i32> =
        NODES.iter().filter_map(|name| Some(cluster.lab().machine_mut(name).daemon()?.pid())).collect();
    for run in 0..runs {
        let before: Vec<Usage> = daemons.iter().filter_map(|pid| Usage::of(*pid)).collect();
        tokio::time::sleep(IDLE_FOR).await;
        for (pid, before) in daemons.iter().zip(before) {
            let Some(after) = Usage::of(*pid) else { continue };
            let cpu = (after.cpu - before.cpu).as_secs_f64() / IDLE_FOR.as_secs_f64() * 100.0;
            figures.add("daemon, processor", "% of a core", cpu);
            figures.add("daemon, memory (PSS)", "MiB", after.pss_kib as f64 / 1024.0);
            figures.add(
                "daemon, written to disk",
                "KiB/min",
                (after.written - before.written) as f64 / 1024.0 * 2.0,
            );
        }
        for pid in shims(formed._dir.path()) {
            if let Some(usage) = Usage::of(pid) {
                figures.add("shim, memory (PSS)", "MiB", usage.pss_kib as f64 / 1024.0);
            }
        }
        note(&format!("run {}", run + 1));
    }
    Ok(())
}

/// Two nodes, so that the one that is watched neither leads nor votes: what it does, it does for its pods and its
/// picture. Without pods it shows what the picture alone costs.
async fn foreign(program: &Path, runs: usize, figures: &mut Figures) -> Result<(), Failure> {
    let mut formed = formed(program, &NODES[..2]).await?;
    let cluster = &mut formed.cluster;
    let watched = cluster.lab().machine_mut(NODES[1]).daemon().ok_or("the node has no daemon")?.pid();
    for pods in [0, PODS_MAX] {
        if pods > 0 {
            let mut deployment = skein_chaos::cluster::deployment("web", pods);
            let pod = &mut deployment["spec"]["template"]["spec"];
            pod["nodeSelector"] = json!({ "kubernetes.io/hostname": NODES[1] });
            let api = cluster.api(NODES[0]);
            api.post("/apis/apps/v1/namespaces/default/deployments", &deployment).await?;
            cluster.until_running(NODES[0], "web", pods).await?;
        }
        // What the start left to do is not what is measured.
        tokio::time::sleep(Duration::from_secs(10)).await;
        for run in 0..runs {
            let (idle, _) = share_of(watched, 0, &cluster.api(NODES[0])).await?;
            let (busy, rate) = share_of(watched, FOREIGN_RATE, &cluster.api(NODES[0])).await?;
            figures.add(&format!("{pods} pods, idle"), "% of a core", idle);
            figures.add(&format!("{pods} pods, others write"), "% of a core", busy);
            figures.add(&format!("{pods} pods, because they do"), "% of a core", busy - idle);
            figures.add("others' writes", "1/s", rate);
            note(&format!(
                "run {}, {pods} pods: idle {idle:.1} %, at {rate:.0} writes/s {busy:.1} %",
                run + 1
            ));
        }
    }
    Ok(())
}

/// Which share of a core, in percent, the process takes while so many objects a second are written through `api`; and
/// how many were.
async fn share_of(pid: i32, rate: u32, api: &Api) -> Result<(f64, f64), Failure> {
    let ended = "the daemon that is watched has ended";
    let (began, before) = (Instant::now(), Usage::of(pid).ok_or(ended)?);
    let clients = (0..FOREIGN_CLIENTS).map(|client| write_at_pace(api, client, rate / FOREIGN_CLIENTS));
    let written: u32 = futures::future::try_join_all(clients).await?.into_iter().sum();
    let (took, after) = (began.elapsed().as_secs_f64(), Usage::of(pid).ok_or(ended)?);
    Ok(((after.cpu - before.cpu).as_secs_f64() / took * 100.0, f64::from(written) / took))
}

/// Writes one object again and again, `rate` times a second or as fast as it is answered, and says how often.
async fn write_at_pace(api: &Api, client: u32, rate: u32) -> Result<u32, Failure> {
    let all = "/api/v1/namespaces/default/configmaps";
    let (name, text) = (format!("foreign-{client}"), "x".repeat(512));
    let (began, mut written) = (tokio::time::Instant::now(), 0);
    for number in 0..rate * FOREIGN_FOR.as_secs() as u32 {
        tokio::time::sleep_until(began + Duration::from_secs(1) / rate * number).await;
        if began.elapsed() > FOREIGN_FOR {
            break;
        }
        let data = json!({ "number": number.to_string(), "text": text });
        let object = json!({ "metadata": { "name": name }, "data": data });
        match api.merge(&format!("{all}/{name}"), &object).await {
            Err(api::Error::Refused { status, .. }) if status.as_u16() == 404 => {
                api.post(all, &object).await?;
            }
            answer => drop(answer?),
        }
        written += 1;
    }
    tokio::time::sleep_until(began + FOREIGN_FOR).await;
    Ok(written)
}

async fn takeover(program: &Path, runs: usize, figures: &mut Figures) -> Result<(), Failure> {
    let mut formed = formed(program, &NODES).await?;
    let cluster = &mut formed.cluster;
    for run in 0..runs {
        for (how, signal) in [("killed", Signal::SIGKILL), ("stopped", Signal::SIGTERM)] {
            let leader = cluster.leader().await.ok_or("no leader")?;
            let others: Vec<&str> = NODES.into_iter().filter(|name| *name != leader).collect();
            let through = cluster.api(others[run % others.len()]);
            let daemon = cluster.lab().machine_mut(&leader).daemon().ok_or("the leader has no daemon")?;
            let pause = longest_pause(&through, || daemon.signal(signal)).await?;
            figures.add_time(&format!("leader {how}, no write for"), pause);
            note(&format!("leader {how}: no write for {} ms", pause.as_millis()));
            daemon.wait()?;
            cluster.up(&leader)?;
            cluster.until_caught_up(&leader).await?;
            cluster.until_whole().await?;
        }
    }
    Ok(())
}

/// Writes one after another, does `act` in between, and says how long the longest time between two
/// accepted writes was.
async fn longest_pause(api: &Api, act: impl FnOnce()) -> Result<Duration, Failure> {
    let object = "/api/v1/namespaces/default/configmaps";
    // Whatever it was, it is there now.
    let _ = api.post(object, &json!({ "metadata": { "name": "pulse" } })).await;
    let (began, mut act) = (Instant::now(), Some(act));
    let (mut last, mut longest, mut written) = (began, Duration::ZERO, 0_u64);
    while began.elapsed() < TAKEOVER_WITHIN {
        if began.elapsed() > Duration::from_millis(500)
            && let Some(act) = act.take()
        {
            act();
        }
        let patch = json!({ "data": { "beat": written.to_string() } });
        if api.merge(&format!("{object}/pulse"), &patch).await.is_ok() {
            written += 1;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }
    // A cluster that never took another write has paused until now.
    Ok(longest.max(last.elapsed()))
}

async fn abuse(program: &Path, minutes: usize, figures: &mut Figures) -> Result<(), Failure> {
    let mut formed = formed(program, &NODES).await?;
    let cluster = &mut formed.cluster;
    cluster.deploy("one", "web", REPLICAS).await?;
    let pods = |pods: Vec<Placed>| -> BTreeMap<String, Placed> {
        pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect()
    };
    let before = pods(cluster.until_running("one", "web", REPLICAS).await?);
    let leader = cluster.leader().await.ok_or("no leader")?;
    let victim = NODES.into_iter().find(|name| *name != leader).unwrap_or(NODES[0]);
    cluster.lab().machine_mut(victim).throttle(Some(5))?;
    cluster.lab().lose(victim, 20)?;
    let mut term = 0;
    for minute in 1..=minutes {
        cluster.lab().plug(victim, false)?;
        tokio::time::sleep(OUTAGE).await;
        cluster.lab().plug(victim, true)?;
        tokio::time::sleep(Duration::from_secs(60) - OUTAGE).await;
        let after = pods(cluster.until_running(&leader, "web", REPLICAS).await?);
        let moved = before.keys().filter(|uid| !after.contains_key(*uid)).count();
        let restarted = after
            .iter()
            .filter(|(uid, pod)| before.get(*uid).is_some_and(|before| before.restarts != pod.restarts));
        let status = cluster.status(&leader).await.unwrap_or_default();
        let now = status["term"].as_u64().unwrap_or_default();
        if minute > 1 {
            figures.add("elections", "a minute", now.saturating_sub(term) as f64);
        }
        term = now;
        figures.add("pods moved so far", "pods", moved as f64);
        figures.add("containers restarted so far", "containers", restarted.count() as f64);
        note(&format!("minute {minute}: {moved} pods moved, term {now}"));
    }
    Ok(())
}

/// What a process has used so far, from `/proc`.
struct Usage {
    cpu: Duration,
    pss_kib: u64,
    written: u64,
}

impl Usage {
    fn of(pid: i32) -> Option<Usage> {
        let field = |file: &str, name: &str| -> Option<u64> {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; fields count from behind it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        // USER_HZ is 100 on every Linux that runs containers.
        let cpu = Duration::from_millis(ticks * 10);
        Some(Usage { cpu, pss_kib: field("smaps_rollup", "Pss")?, written: field("io", "write_bytes")? })
    }
}

/// Processes that were started as shims for something below `dir`.
fn shims(dir: &Path) -> Vec<i32> {
    let dir = dir.display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        words.get(1).is_some_and(|verb| verb.contains("shim"))
            && words.iter().any(|word| word.starts_with(&dir))
    })
    .collect()
}

fn fdatasync_p50(dir: &Path) -> Result<f64, Failure> {
    let mut file = fs::File::create(dir.join("sync"))?;
    let mut times = Vec::new();
    for _ in 0..100 {
        file.write_all(&[7; 512])?;
        let began = Instant::now();
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Progress goes to standard error: the figures are what standard output is for.
fn note(text: &str) {
    eprintln!("  {text}");
}
