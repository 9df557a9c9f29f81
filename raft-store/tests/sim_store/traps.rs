//! The traps of openraft that a simulated cluster has fallen into before, each by itself.

use std::time::Duration;

use openraft::AsyncRuntime;
use skein_raft_store::sim::SimRt;
use skein_raft_store::{Metrics, Timings};

use crate::world::{Faults, Plan, World};

fn plan(timings: Timings) -> Plan {
    Plan { seed: 7, nodes: 3, clients: 0, faults_for: Duration::ZERO, faults: Faults::None, timings }
}

/// Whether a cluster whose disks all take `sync` elects a leader within 30 s of a full restart.
fn elects(sync: Duration, timings: Timings) -> bool {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(timings)).await;
        (0..3).for_each(|number| world.set_sync_time(number, sync));
        (0..3).for_each(|number| world.power_off(number));
        (0..3).for_each(|number| world.start(number));
        SimRt::timeout(Duration::from_secs(30), world.leader()).await.is_ok()
    })
}

/// Voters sync before they answer, and openraft waits for answers as long as the shortest election timeout.
#[test]
fn voters_with_slow_disks_need_the_patience_that_the_measured_sync_gives_them() {
    let sync = Duration::from_millis(400);
    assert!(!elects(sync, Timings::default()));
    assert!(elects(sync, Timings { sync_p99: sync, ..Timings::default() }));
}

/// Purging awaited its sync once, which stopped the Raft core of a leader for as long as its disk.
#[test]
fn a_leader_whose_disk_stalls_keeps_leading_and_purging() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(Timings::default())).await;
        let (number, before) = world.leader().await;
        world.set_sync_time(number, Duration::from_secs(10));
        for serial in 0..300 {
            assert!(world.put((number + 1) % 3, "key", &format!("{serial}")).await, "write {serial}");
        }
        SimRt::sleep(Duration::from_secs(20)).await;
        let (_, after) = world.leader().await;
        assert_eq!(leadership(&after), leadership(&before));
    });
}

fn leadership(metrics: &Metrics) -> (u64, Option<skein_raft_store::VoterId>) {
    (metrics.term, metrics.leader)
}

/// A voter back with an empty disk under its old name has forgotten its promises; under a new name it
/// is nobody's voter until it is made one.
#[test]
fn a_voter_that_lost_its_disk_comes_back_under_another_name_and_does_not_vote() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(Timings::default())).await;
        world.power_off(2);
        let old = world.replace_disk(2);
        world.start(2);
        assert!(world.put(0, "key", "with two of three").await);
        let (_, metrics) = world.leader().await;
        let new = world.voter(2);
        assert!(new != old && metrics.voters.contains(&old) && !metrics.voters.contains(&new));
        world.power_off(1);
        assert!(!world.put(0, "key", "with one of three").await);
        world.start(1);
        assert!(world.put(0, "key", "with two again").await);
    });
}
