//! Whole stores under a seed: virtual time, faults, clients, and a checker of what they saw.
//!
//! `SKEIN_SEED=n cargo test -p skein-raft-store --test sim_store one_seed` runs one seed again,
//! `SKEIN_SEEDS=n .. no_fault_breaks_an_invariant` the first n.

mod follow;
mod foreign;
mod full;
mod history;
mod recovery;
mod traps;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::Instant;
use skein_raft_store::sim::{Mutation, SimRt};
use world::{Faults, Now, Outcomes, Plan, World, run};

fn plan(seed: u64) -> Plan {
    let nodes = if seed.is_multiple_of(4) { 5 } else { 3 };
    Plan {
        seed,
        nodes,
        followers: 0,
        clients: 4,
        faults_for: Duration::from_secs(15),
        faults: Faults::All,
        ..Plan::quiet()
    }
}

fn check(plan: Plan) -> Outcomes {
    let outcomes = run(plan);
    let wrong = &outcomes.wrong;
    assert!(wrong.is_empty(), "SKEIN_SEED={} breaks the store:\n{}", plan.seed, wrong.join("\n"));
    outcomes
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// Whether the checker finds something wrong in one of `seeds` with the rule broken.
fn caught(mutation: Mutation, faults: Faults, seeds: std::ops::Range<u64>) -> bool {
    Mutation::set(Some(mutation));
    let caught = seeds.into_iter().any(|seed| !run(Plan { faults, ..plan(seed) }).wrong.is_empty());
    Mutation::set(None);
    caught
}

#[test]
fn without_faults_every_write_is_taken() {
    let outcomes = check(Plan { faults: Faults::None, ..plan(1) });
    assert!(outcomes.counts["done"] > 500, "{:?}", outcomes.counts);
    assert!(!outcomes.counts.contains_key("unknown"), "{:?}", outcomes.counts);
}

/// Virtual time, so a figure: whoever wrote to the leader of before goes to the next one at once.
#[test]
fn a_hand_over_of_leadership_holds_no_write_up() {
    for seed in 1..=10 {
        let longest = SimRt::with_seed(seed).block_on(longest_write_during_a_hand_over());
        assert!(longest < Duration::from_millis(30), "seed {seed}: {longest:?}");
    }
}

async fn longest_write_during_a_hand_over() -> Duration {
    let world = World::formed(Plan::quiet()).await;
    let (leader, _) = world.leader().await;
    let writers: Vec<_> = (0..3)
        .map(|number| {
            let world = world.clone();
            SimRt::spawn(async move {
                let mut longest = Duration::ZERO;
                for serial in 0..100 {
                    let began = Now::now();
                    assert!(world.put(number, &format!("key{number}"), &format!("{serial}")).await);
                    longest = longest.max(began.elapsed());
                }
                longest
            })
        })
        .collect();
    SimRt::sleep(Duration::from_millis(50)).await;
    assert!(world.running(leader).await.transfer_leader(None).await);
    let mut longest = Duration::ZERO;
    for writer in writers {
        longest = longest.max(writer.await.expect("a writer does not panic"));
    }
    longest
}

#[test]
fn no_fault_breaks_an_invariant() {
    let seeds = number("SKEIN_SEEDS", 6);
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 1..=seeds {
        for (what, times) in check(plan(seed)).counts {
            *counts.entry(what).or_default() += times;
        }
    }
    println!("{counts:?}");
    for what in [
        "killed",
        "power cut",
        "paused",
        "isolated",
        "bad weather",
        "slow disk",
        "all off",
        "bytes lost",
        "store lost",
        "store replaced",
        "slow links",
        "jumped",
        "log was heavy",
    ] {
        assert!(counts.contains_key(what), "no {what}: {counts:?}");
    }
}

#[test]
fn one_seed() {
    println!("{:?}", check(plan(number("SKEIN_SEED", 4711))).counts);
}

#[test]
fn one_seed_has_one_course() {
    let plan = Plan { faults_for: Duration::from_secs(10), ..plan(3) };
    assert_eq!(run(plan).trace, run(plan).trace);
}

#[test]
fn the_checker_sees_a_read_without_read_index() {
    assert!(caught(Mutation::NoReadIndex, Faults::Cuts, 1..60));
}

#[test]
fn the_checker_sees_a_stale_read() {
    assert!(caught(Mutation::StaleRead, Faults::None, 1..4));
}

#[test]
fn the_checker_sees_a_request_applied_twice() {
    assert!(caught(Mutation::NewSerialOnRetry, Faults::Cuts, 1..60));
}

#[test]
fn the_checker_sees_a_skipped_watch_event() {
    assert!(caught(Mutation::WatchEventSkipped, Faults::None, 1..4));
}

#[test]
fn the_checker_sees_a_repeated_watch_event() {
    assert!(caught(Mutation::WatchEventRepeated, Faults::None, 1..4));
}

/// Nobody asks again within such a run, so only the digest of all that a state machine holds tells.
#[test]
fn the_checker_sees_a_snapshot_without_sessions() {
    assert!(caught(Mutation::SnapshotWithoutSessions, Faults::All, 1..10));
}

/// Openraft's default lets a leader that lost unsynced entries lead on in the same term, and gives
/// the indices of those entries to other commands.
#[test]
fn a_restored_leader_breaks_the_store_and_so_must_be_elected_anew() {
    assert!(caught(Mutation::LeaderRestored, Faults::PowerCuts, 1..80));
}
