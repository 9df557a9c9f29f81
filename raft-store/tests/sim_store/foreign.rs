//! A store of another cluster, or of another incarnation of this one, under the name of a known voter.
//!
//! A machine once left its cluster, joined another one with the store it had, and was elected there by its
//! longer log: what the others had acknowledged was gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use skein_raft_store::sim::{Mutation, Process, SimNetwork, SimRt, Weather, start};
use skein_raft_store::sim_files::SimDisk;
use skein_raft_store::{Change, ClusterTag, Config, Expect, Op, Options, VoterId};

use crate::world::{Plan, Store, TAG, World, fast_disk};

/// Other clusters and other incarnations than the world's.
const FOREIGN: [ClusterTag; 4] = [
    ClusterTag { cluster: [8; 16], ..TAG },
    ClusterTag { number: 0, ..TAG },
    ClusterTag { number: 2, incarnation: [8; 16], ..TAG },
    ClusterTag { incarnation: [8; 16], ..TAG },
];

/// How many entries more than the world's its log has.
const LONGER: u64 = 200;
/// How often it was started: each is a term.
const STARTS: u64 = 6;

/// The disk of a store that led a cluster of its own for long.
async fn foreign_disk(voter: VoterId, tag: ClusterTag, seed: u64) -> SimDisk {
    let disk = fast_disk(seed);
    for generation in 1..=STARTS {
        let network = SimNetwork::<SimRt>::new(Weather::LAN);
        let (transport, _incoming) = network.connect(voter);
        let config = Config::new(voter, tag, generation);
        let process = Process::new(format!("the foreign store, start {generation}"));
        let files = disk.files::<SimRt>();
        let lived = process.spawn(async move {
            let store: Store = start(config, files, Arc::new(transport)).await.expect("a sound disk");
            if generation == 1 {
                store.bootstrap().await.expect("an empty disk");
            }
            for serial in 0..LONGER / STARTS {
                let key = format!("foreign-{generation}-{serial}").as_str().into();
                let op = Op { key, expect: Expect::Any, change: Change::Put(Bytes::from_static(b"foreign")) };
                store.propose(vec![op], Options::default()).await.expect("it is alone");
            }
            store.shutdown().await;
        });
        lived.await.expect("it ends well");
        process.kill();
    }
    disk
}

/// What got across between the world and a foreign store that has the name of its third voter.
async fn gets_across(seed: u64, tag: ClusterTag) -> Vec<String> {
    let world = World::formed(Plan { seed, ..Plan::quiet() }).await;
    let mut wrong = Vec::new();
    world.put(0, "before", "all three").await;
    world.power_off(2);
    world.put_foreign_disk(2, foreign_disk(world.voter(2), tag, seed).await, tag);
    world.start(2);
    let foreign = world.running(2).await;
    let term = foreign.metrics().term;
    if !world.put(0, "acknowledged", "by two").await {
        wrong.push("two of three voters take no write".to_owned());
    }
    // Time to follow, to ask for votes, and to be sent entries.
    SimRt::sleep(Duration::from_secs(5)).await;
    for gone in [0, 1] {
        world.power_off(gone);
        if world.put(1 - gone, "with a foreign vote", "never").await {
            wrong.push(format!("the foreign store votes while {gone} is off"));
        }
        world.start(gone);
        world.running(gone).await;
        if !world.put(gone, "again", &format!("after {gone}")).await {
            wrong.push(format!("no write is taken after {gone} is back"));
        }
    }
    for number in [0, 1] {
        let store = world.running(number).await;
        // Behind everything that was acknowledged.
        if store.read_index(Duration::from_secs(4)).await.is_err() {
            wrong.push(format!("{number} hears no leader in the end"));
        }
        let state = store.state();
        if state.get("acknowledged").is_none() {
            wrong.push(format!("{number} has lost an acknowledged write"));
        }
        if state.range("foreign-", None).next().is_some() {
            wrong.push(format!("{number} holds entries of the foreign store"));
        }
        if store.metrics().failed.is_some() {
            wrong.push(format!("the store of {number} has stopped"));
        }
    }
    let state = foreign.state();
    if ["before", "acknowledged", "again"].iter().any(|key| state.get(key).is_some()) {
        wrong.push("the foreign store holds entries of this cluster".to_owned());
    }
    let metrics = foreign.metrics();
    if metrics.leader.is_some_and(|leader| leader != metrics.voter) || metrics.follows.is_some() {
        wrong.push(format!("the foreign store hears a leader of this cluster: {metrics:?}"));
    }
    // Alone in its own membership it leads on, as it always did, and nobody else's term moves it.
    if metrics.term > term + 1 {
        wrong.push(format!("the foreign store was moved from term {term} to {}", metrics.term));
    }
    wrong
}

#[test]
fn a_foreign_store_under_a_known_name_gets_no_vote_and_no_entry_and_gives_none() {
    for (seed, tag) in (1..).zip(FOREIGN) {
        let wrong = SimRt::with_seed(seed).block_on(gets_across(seed, tag));
        assert!(wrong.is_empty(), "{tag}: {wrong:#?}");
    }
}

#[test]
fn a_foreign_store_that_is_taken_for_this_clusters_is_noticed() {
    Mutation::set(Some(Mutation::ForeignStoresTaken));
    let noticed = (1..).zip(FOREIGN).all(|(seed, tag)| {
        let told = std::panic::catch_unwind(|| SimRt::with_seed(seed).block_on(gets_across(seed, tag)));
        told.is_err() || told.is_ok_and(|wrong| !wrong.is_empty())
    });
    Mutation::set(None);
    assert!(noticed, "this test would not notice");
}
