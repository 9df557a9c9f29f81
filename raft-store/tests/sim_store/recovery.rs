//! Recoveries of a cluster whose majority was only cut off: both sides go on, each in an incarnation of its own,
//! and meet again under the names they had.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use skein_raft_store::sim::{Mutation, SimRt};
use skein_raft_store::{
    Change, ClusterTag, Expect, Legacy, Op, REVISION_STEP, WatchError, begin, begin_as_follower,
};

use crate::world::{Plan, Store, TAG, World, fast_disk};

const NEXT: ClusterTag = ClusterTag { number: 2, incarnation: [8; 16], ..TAG };
/// The two that were cut off, and the node without a log on the recovered side.
const MAJORITY: [usize; 2] = [1, 2];
const FOLLOWER: usize = 3;

/// Of one store: whether it holds the key.
fn holds(store: &Store, key: &str) -> bool {
    store.state().get(key).is_some()
}

fn marker() -> Op {
    let change = Change::Put(Bytes::from_static(b"two"));
    Op { key: "incarnation".into(), expect: Expect::Absent, change }
}

/// Puts what `legacy` leads to in the place of the store of `number`, which is off.
async fn begin_anew(world: &World, number: usize, legacy: &Legacy) {
    let disk = fast_disk(number as u64 + 100);
    let (files, voter) = (disk.files::<SimRt>(), world.voter(number));
    let begun = match (number, &legacy.log) {
        (FOLLOWER, _) => begin_as_follower(&files, voter, NEXT, legacy.shown.clone()).await,
        (_, log) => {
            let whole = &log.as_ref().expect("its log is sound").whole;
            begin(&files, voter, NEXT, whole.next_life(1, vec![marker()])).await
        }
    };
    begun.expect("an empty disk");
    world.put_foreign_disk(number, disk, NEXT);
}

/// What went wrong where node 0 is recovered without the other two, which go on.
async fn recovered(seed: u64) -> Vec<String> {
    let world = World::formed(Plan { seed, followers: 1, ..Plan::quiet() }).await;
    let mut wrong = Vec::new();
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            wrong.push(what.to_owned());
        }
    };
    let written = world.put_revision(0, "before", "all three").await.unwrap_or(u64::MAX);
    let shown = world.running(FOLLOWER).await.wait_revision(written, Duration::from_secs(10)).await;
    expect(shown, "three voters take no write, or nobody follows them");
    for other in MAJORITY {
        world.cut(0, other);
        world.cut(FOLLOWER, other);
    }
    // If it led it may append this and never commit it; nobody was told that it did not.
    expect(!world.put(0, "unanswered", "by one").await, "one of three voters takes a write");
    expect(world.put(1, "first", "by the other two").await, "the majority takes no write");

    let legacy = [0, FOLLOWER].map(async |number| (number, world.running(number).await.legacy().await));
    let mut before = 0;
    for legacy in legacy {
        let (number, legacy) = legacy.await;
        before = before.max(legacy.shown.revision());
        expect(legacy.shown.get("before").is_some(), "what was acknowledged is not in the legacy");
        expect((number == FOLLOWER) == legacy.log.is_none(), "who has a log");
        world.power_off(number);
        begin_anew(&world, number, &legacy).await;
        world.start(number);
    }
    let founder = world.running(0).await;
    expect(world.put(0, "second", "by the recovered one").await, "the recovered store takes no write");
    let revision = founder.state().revision();
    expect(revision > before + REVISION_STEP, "its revisions are not ahead");
    let watch = founder.watch("", before).map(|mut watch| {
        let polled = watch.poll_next(&mut Context::from_waker(Waker::noop()));
        matches!(polled, Poll::Ready(Err(WatchError::Compacted { .. })))
    });
    let ends = match watch {
        Ok(compacted) => compacted,
        Err(error) => matches!(error, WatchError::Compacted { .. }),
    };
    expect(ends, "a watch of before the recovery goes on");

    // They meet again, and both sides write on.
    world.heal_all();
    SimRt::sleep(Duration::from_secs(5)).await;
    expect(world.put(1, "first", "after they met").await, "the majority takes no write after they met");
    expect(world.put(0, "second", "after they met").await, "the recovered store takes none after they met");
    let follower = world.running(FOLLOWER).await;
    follower.wait_revision(founder.state().revision(), Duration::from_secs(10)).await;
    for (store, name) in [(&founder, "the recovered store"), (&follower, "its follower")] {
        for key in ["before", "incarnation", "second"] {
            expect(holds(store, key), &format!("{name} lacks {key:?}"));
        }
        expect(!holds(store, "first"), &format!("{name} holds what the majority wrote"));
    }
    for number in MAJORITY {
        let store = world.running(number).await;
        let _ = store.read_index(Duration::from_secs(4)).await;
        for key in ["incarnation", "second"] {
            expect(!holds(&store, key), &format!("{number} of the majority holds {key:?}"));
        }
        expect(holds(&store, "first"), &format!("{number} of the majority lacks what it wrote"));
        expect(store.metrics().failed.is_none(), &format!("the store of {number} has stopped"));
    }
    let metrics = founder.metrics();
    expect(metrics.leads() && metrics.voters.len() == 1, &format!("the recovered store: {metrics:?}"));
    // What follows gets a vote again, as any other store would.
    expect(
        founder.add_learner(world.voter(FOLLOWER)).await.is_ok(),
        "the follower does not become a learner",
    );
    wrong
}

#[test]
fn a_recovered_cluster_and_a_majority_that_was_only_cut_off_never_mix() {
    for seed in 1..=12 {
        let wrong = SimRt::with_seed(seed).block_on(recovered(seed));
        assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
    }
}

#[test]
fn incarnations_that_mix_are_noticed() {
    Mutation::set(Some(Mutation::ForeignStoresTaken));
    let noticed = (1..=4).all(|seed| {
        let told = std::panic::catch_unwind(|| SimRt::with_seed(seed).block_on(recovered(seed)));
        told.is_err() || told.is_ok_and(|wrong| !wrong.is_empty())
    });
    Mutation::set(None);
    assert!(noticed, "this test would not notice");
}
