//! The whole cluster under a seed: stores, gossip, judge, planners, voters and pods on three or five
//! nodes, in one process and in virtual time, with clients, faults, and checks of what everybody saw.
//!
//! Real in it: `skein-raft-store` whole, the gossip core, the judge and its probes, the planners, the choice of
//! voters, pod life, the API's rules for Deployments. Simulated: network, disks, clocks, chance, kernels, containers.
//! The wiring is this test's own and as thin as the node's. Not in it: fenced pods, joining, pod network, HTTP.
//!
//! `SKEIN_SEED=n cargo test -p skein-tests --test sim one_seed` runs one seed again; `SKEIN_SEEDS=n .. no_fault`
//! as many fixed ones, `SKEIN_DAY=d` moves those of the day.

mod agent;
mod air;
mod clients;
mod clock;
mod gossip;
mod history;
mod machine;
mod model;
mod picture;
mod plan;
mod planner;
mod truth;
mod watch;
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use plan::{Aim, Mutation, Plan};
use skein_raft_store::sim::Mutation as StoreMutation;
use world::{Outcomes, run};

/// Runs the plan; a violation fails the test with the command that shows it again.
fn check(plan: Plan) -> Outcomes {
    let outcomes = run(plan);
    let shown = outcomes.wrong.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        outcomes.wrong.is_empty(),
        "SKEIN_SEED={} cargo test -p skein-tests --test sim one_seed\n{shown}\nfaults:\n{}",
        plan.seed,
        plan.faults().iter().map(|fault| format!("{fault:?}\n")).collect::<String>(),
    );
    outcomes
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs all seeds and adds up what happened in them.
fn check_all(seeds: impl Iterator<Item = u64>) -> BTreeMap<&'static str, u64> {
    let began = std::time::Instant::now();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut simulated = Duration::ZERO;
    for seed in seeds {
        let outcomes = check(Plan::new(seed));
        simulated += outcomes.lasted;
        for (what, times) in outcomes.counts {
            *counts.entry(what).or_default() += times;
        }
    }
    let speed = simulated.as_secs_f64() / began.elapsed().as_secs_f64();
    println!("{:.0} simulated s, {speed:.0} a second\n{counts:#?}", simulated.as_secs_f64());
    counts
}

#[test]
fn no_fault_breaks_an_invariant() {
    let seeds = number("SKEIN_SEEDS").unwrap_or(SEEDS);
    let counts = check_all(1..=seeds);
    for (what, least) in LEAST {
        let least = (least * seeds).div_ceil(20);
        let times = counts.get(what).copied().unwrap_or(0);
        assert!(times >= least, "{what} only {times} times, at least {least} are expected");
    }
}

/// Fixed seeds of a run without other wish: what a debug build does within the patience of a developer.
const SEEDS: u64 = 8;

/// What 20 seeds must have seen at least, or they prove little: about half of what was measured.
const LEAST: [(&str, u64); 18] = [
    ("all off", 8),
    ("bytes lost", 40),
    ("torn tails", 5),
    ("kills", 25),
    ("power cuts", 50),
    ("pauses", 15),
    ("pairs cut", 30),
    ("isolations", 30),
    ("loss", 10),
    ("delay", 10),
    ("slow disks", 20),
    ("nodes lost", 20),
    ("lost: no answer", 14),
    ("lost: daemon gone", 3),
    ("pods adopted", 100),
    ("strays removed", 30),
    ("rejoined gossip", 20),
    ("writes unknown", 40),
];

#[test]
fn no_fault_of_today_breaks_an_invariant() {
    let today =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    let first = number("SKEIN_DAY").unwrap_or(today) * 100_000;
    let seeds = number("SKEIN_SEEDS").unwrap_or(SEEDS) / 2;
    check_all(first..first + seeds);
}

#[test]
fn one_seed() {
    let outcomes = check(Plan::new(number("SKEIN_SEED").unwrap_or(4711)));
    println!("{:#?}", outcomes.counts);
}

#[test]
fn one_seed_has_one_course() {
    for seed in [3, 4] {
        let plan = Plan { faults_for: Duration::from_secs(20), ..Plan::new(seed) };
        let (one, other) = (run(plan), run(plan));
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_eq!(one.counts, other.counts, "seed {seed}");
    }
}

#[test]
fn without_faults_nobody_is_suspected_and_every_write_is_taken() {
    let outcomes = check(Plan { aim: Aim::Nothing, faults_for: Duration::from_secs(30), ..Plan::new(1) });
    let never = ["down in gossip", "writes unknown", "lost: no answer", "lost: daemon gone", "lost: stuck"];
    for what in never {
        assert!(!outcomes.counts.contains_key(what), "{what}: {:?}", outcomes.counts);
    }
}

/// Whether the checks find `invariant` broken in one of `seeds` when the rule is.
fn caught(mutation: Mutation, aim: Aim, invariant: &str, seeds: std::ops::Range<u64>) -> bool {
    let caught = |seed| {
        let mutation = Some(mutation);
        let plan = Plan { aim, mutation, faults_for: Duration::from_secs(30), ..Plan::new(seed) };
        run(plan).wrong.iter().any(|wrong| wrong.contains(invariant))
    };
    seeds.into_iter().any(caught)
}

#[test]
fn the_checks_see_a_judge_that_believes_one_observer() {
    assert!(caught(Mutation::OneObserver, Aim::OneBlindObserver, "I9", 1..20));
}

#[test]
fn the_checks_see_plans_committed_unconditionally() {
    assert!(caught(Mutation::UnconditionalPlan, Aim::LeadersAtWork, "I14", 1..40));
}

#[test]
fn the_checks_see_gossip_without_its_guard() {
    assert!(caught(Mutation::NoGossipGuard, Aim::Loss, "I9", 1..20));
}

#[test]
fn the_checks_see_a_skipped_watch_event() {
    assert!(caught(Mutation::Store(StoreMutation::WatchEventSkipped), Aim::Nothing, "I5", 1..4));
}
