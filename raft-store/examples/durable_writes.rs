//! Durable writes per second: three stores in one process, each on its own directory.
//!
//! `cargo run --release -p skein-raft-store --features sim --example durable_writes [directory]`

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use skein_raft_store::sim::{SimNetwork, Weather};
use skein_raft_store::{
    Change, ClusterTag, Config, DiskFiles, Expect, Handle, MemberChange, Op, Options, TokioRuntime, VoterId,
    start, sync_times,
};

type Store = Handle<TokioRuntime>;

const VALUE: usize = 512;
const FOR: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let network = SimNetwork::<TokioRuntime>::new(Weather::CALM);
    let mut directories = Vec::new();
    let mut stores: Vec<Store> = Vec::new();
    for number in 1..=3 {
        let directory = tempfile::tempdir_in(&place)?;
        let files = DiskFiles::open(directory.path())?;
        if number == 1 {
            let times = sync_times::measure::<TokioRuntime, _>(&files).await?;
            println!("fdatasync: p50 {:?}, p99 {:?}", times.p50, times.p99);
        }
        let voter = VoterId { node: [number; 16], store: [1; 8] };
        let (transport, mut incoming) = network.connect(voter);
        let store: Store =
            start(Config::new(voter, ClusterTag::default(), 1), files, Arc::new(transport)).await?;
        let serving = store.clone();
        tokio::spawn(async move {
            while let Some((from, lane, pipe)) = incoming.next().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.serve(from, lane, pipe).await });
            }
        });
        directories.push(directory);
        stores.push(store);
    }
    stores[0].bootstrap().await?;
    stores[0].propose(vec![put(0, 0)], Options::default()).await?;
    for store in &stores[1..] {
        stores[0].add_learner(store.voter()).await?;
    }
    let voters: BTreeSet<VoterId> = stores.iter().map(Handle::voter).collect();
    stores[0].change_members(MemberChange::Voters(voters), stores[0].metrics().membership).await?;
    for clients in [1, 64, 1000] {
        measure(&stores, clients).await;
    }
    for store in &stores {
        store.shutdown().await;
    }
    Ok(())
}

/// Each client writes through a store of its own choice, forwarding included.
async fn measure(stores: &[Store], clients: usize) {
    let written = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + FOR;
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (store, written) = (stores[client % stores.len()].clone(), written.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < until {
                    let began = Instant::now();
                    store
                        .propose(vec![put(client, times.len())], Options::default())
                        .await
                        .expect("a quorum");
                    times.push(began.elapsed());
                    written.fetch_add(1, Ordering::Relaxed);
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("clients do not panic"));
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let rate = written.load(Ordering::Relaxed) as f64 / FOR.as_secs_f64();
    println!("{clients} clients, {VALUE} B: {rate:.0}/s, p50 {:?}, p99 {:?}", at(0.5), at(0.99));
}

fn put(client: usize, serial: usize) -> Op {
    let value = Bytes::from(serial.to_le_bytes().repeat(VALUE / 8));
    Op { key: format!("client/{client}").into(), expect: Expect::Any, change: Change::Put(value) }
}
