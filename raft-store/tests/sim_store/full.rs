//! A disk that is full stops neither reads nor leadership, says so to writers at once, and recovers by itself.

use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use openraft::async_runtime::Instant;
use skein_raft_store::log::Health;
use skein_raft_store::sim::SimRt;
use skein_raft_store::{Change, Expect, Op, Options, Outcome, ProposeError};

use crate::world::{Now, Plan, Store, World};

/// What a log sets aside for the day its disk is full.
const RESERVE: u64 = 16 << 20;
/// How soon users may write again.
const AGAIN: Duration = Duration::from_secs(5);

fn put(key: &str, bytes: usize) -> Vec<Op> {
    let change = Change::Put(Bytes::from(vec![b'x'; bytes]));
    vec![Op { key: key.into(), expect: Expect::Any, change }]
}

/// Fills the disk to the last byte but for `room` of what its log has set aside.
fn fill(world: &World, number: usize, room: u64) {
    let disk = world.disk(number);
    disk.set_capacity(disk.used() - RESERVE + room);
}

/// Writes as the leader itself does until its log has noticed that the disk is full.
async fn notice(store: &Store) {
    for serial in 0.. {
        if store.metrics().disk == Health::Full {
            return;
        }
        judge(store, 1000 + serial).await;
    }
}

/// A write of the leader that is bound to its term.
async fn judge(store: &Store, serial: usize) {
    let options = Options { only_in_term: Some(store.metrics().term), ..Options::default() };
    let answer = store.propose(put("judged", 100 + serial), options).await.expect("it leads");
    assert!(matches!(answer.outcomes[0], Outcome::Done { .. }), "{answer:?}");
}

#[test]
fn writers_are_told_at_once_whose_disk_is_full_and_write_again_soon_after_there_is_space() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan::quiet()).await;
        let (leader, before) = world.leader().await;
        let (leading, other) = (world.running(leader).await, world.running((leader + 1) % 3).await);
        let mut watcher = other.watch("judged", 0).unwrap();
        fill(&world, leader, 1 << 20);
        notice(&leading).await;

        for store in [&leading, &other] {
            let began = Now::now();
            let refused = store.propose(put("user", 10), Options::default()).await;
            assert_eq!(refused, Err(ProposeError::DiskFull { voter: world.voter(leader) }));
            assert!(began.elapsed() < Duration::from_millis(100), "refused, not waited out");
            let revision = store.read_index(AGAIN).await.expect("reads go on");
            assert!(store.wait_revision(revision, AGAIN).await && store.state().get("user").is_none());
        }
        judge(&leading, 0).await;
        while !watcher
            .next()
            .await
            .unwrap()
            .events
            .iter()
            .any(|event| event.value.as_ref().unwrap().len() == 100)
        {}
        SimRt::sleep(Duration::from_secs(30)).await;
        let (still, after) = world.leader().await;
        assert_eq!((still, after.term), (leader, before.term), "a full disk costs no leadership");

        world.disk(leader).set_capacity(u64::MAX);
        let began = Now::now();
        while other.propose(put("user", 10), Options::default()).await.is_err() {
            assert!(began.elapsed() < AGAIN, "users may write again within 5 s");
            SimRt::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_full_disk_of_a_follower_keeps_nobody_from_writing() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan::quiet()).await;
        let (leader, _) = world.leader().await;
        let number = (leader + 1) % 3;
        let (leading, full) = (world.running(leader).await, world.running(number).await);
        fill(&world, number, 1 << 10);
        for serial in 0..20 {
            full.propose(put("user", 100 + serial), Options::default()).await.expect("two others have room");
        }
        assert_eq!((full.metrics().disk, leading.metrics().disk), (Health::Full, Health::Good));
        world.disk(number).set_capacity(u64::MAX);
        assert!(full.wait_revision(leading.state().revision(), AGAIN).await, "it has all again");
    });
}

/// Openraft takes an error of a snapshot for the end of the store. So a disk that was full when the log
/// became heavy stopped the voter for good, and with it the cutting short of the log that makes space.
#[test]
fn a_snapshot_waits_for_space_and_the_store_goes_on() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan::quiet()).await;
        let (leader, _) = world.leader().await;
        let leading = world.running(leader).await;
        leading.propose(put("large", 200_000), Options::default()).await.unwrap();
        // Room for the log, not for a snapshot.
        fill(&world, leader, 100_000);
        notice(&leading).await;
        for serial in 0..100 {
            judge(&leading, serial).await;
        }
        let snapshots = || world.disk(leader).names().iter().filter(|name| name.ends_with(".snap")).count();
        SimRt::sleep(Duration::from_secs(10)).await;
        assert_eq!((leading.metrics().failed, snapshots()), (None, 0));
        world.disk(leader).set_capacity(u64::MAX);
        SimRt::sleep(AGAIN).await;
        assert!(snapshots() > 0);
        leading.propose(put("user", 10), Options::default()).await.expect("users write again");
    });
}

#[test]
fn a_snapshot_of_the_leader_waits_for_space_on_the_disk_of_who_needs_it() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan::quiet()).await;
        let (leader, _) = world.leader().await;
        let number = (leader + 1) % 3;
        let (leading, behind) = (world.running(leader).await, world.running(number).await);
        world.isolate(number, false, false, true);
        for serial in 0..200 {
            leading.propose(put("user", 10_000 + serial), Options::default()).await.unwrap();
        }
        // Not even the reserve holds it.
        let disk = world.disk(number);
        disk.set_capacity(disk.used() - RESERVE);
        world.isolate(number, false, false, false);
        SimRt::sleep(Duration::from_secs(20)).await;
        assert_eq!(behind.metrics().failed, None);
        disk.set_capacity(u64::MAX);
        assert!(behind.wait_revision(leading.state().revision(), Duration::from_secs(20)).await);
    });
}
