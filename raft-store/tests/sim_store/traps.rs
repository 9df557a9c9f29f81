//! The traps of openraft that a simulated cluster has fallen into before, each by itself.

use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::Instant;
use skein_raft_store::sim::{Mutation, SimRt, Weather};
use skein_raft_store::sim_files::Broken;
use skein_raft_store::{
    Change, Compaction, Expect, MemberChange, Metrics, Op, Options, ProposeError, ReadError, Timings, VoterId,
};

use crate::world::{Now, Plan, Store, World};

/// Whether a cluster whose disks all take `sync` elects a leader within 30 s of a full restart.
fn elects(sync: Duration, timings: Timings) -> bool {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan { timings, ..Plan::quiet() }).await;
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
        let world = World::formed(Plan::quiet()).await;
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
        let world = World::formed(Plan::quiet()).await;
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

/// Two acknowledgements of one entry were under way when their leader was cut off. When the link was back,
/// the first one committed the entry, the leader sent an append that says so, and openraft took the second
/// one for the answer to that: the old leader, long replaced, answered a read from its old state.
#[test]
fn acknowledgements_from_before_a_cut_do_not_confirm_that_a_leader_still_leads() {
    Mutation::set(Some(Mutation::OpenraftsReadIndex));
    let by_openraft = (1..=10).any(answers_from_an_old_state);
    Mutation::set(None);
    assert!(by_openraft, "openraft tells the answers apart now: its own read index will do");
    for seed in 1..=10 {
        assert!(!answers_from_an_old_state(seed), "seed {seed}");
    }
}

/// Whether a leader that was cut off with acknowledgements on their way to it, replaced meanwhile, answers a
/// read from its state of before when the link is back.
fn answers_from_an_old_state(seed: u64) -> bool {
    SimRt::with_seed(seed).block_on(async move {
        let world = World::formed(Plan { seed, ..Plan::quiet() }).await;
        let (old, before) = world.leader().await;
        let slow = Duration::from_millis(40);
        world.set_weather(Weather { delay: (slow, slow), loss: 0.0 });
        SimRt::sleep(Duration::from_secs(1)).await;
        let of_put = world.clone();
        let put = SimRt::spawn(async move { of_put.put(old, "key", "before").await });
        SimRt::sleep(Duration::from_millis(60)).await;
        world.isolate(old, false, true, true);
        world.set_weather(Weather::LAN);
        while world.leader().await.1.term == before.term {
            SimRt::sleep(Duration::from_millis(10)).await;
        }
        let written = world.put_revision((old + 1) % 3, "key", "after").await.expect("two of three");
        let of_read = world.clone();
        let read = SimRt::spawn(async move { of_read.read_revision(old).await });
        SimRt::sleep(Duration::from_millis(100)).await;
        // What was sent before is overdue and arrives at once; what the others answer now takes its time.
        world.set_weather(Weather { delay: (slow, slow), loss: 0.0 });
        world.isolate(old, false, true, false);
        assert!(put.await.expect("it does not panic"), "it is tried again until it is taken");
        read.await.expect("it does not panic").expect("all are connected") < written
    })
}

/// Openraft goes on to show who led when it stopped. Whoever plans while it leads planned in a circle then.
#[test]
fn a_leader_whose_disk_fails_does_not_call_itself_the_leader_any_more() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan::quiet()).await;
        let (leader, before) = world.leader().await;
        let failed = world.running(leader).await;
        world.disk(leader).set_broken(Some(Broken::Syncs));
        let others = (leader + 1) % 3;
        while world.put_revision(others, "key", "value").await.is_none() {}
        while world.leader().await.1.term == before.term {
            SimRt::sleep(Duration::from_millis(20)).await;
        }
        let metrics = failed.metrics();
        assert!(metrics.failed.is_some() && !metrics.leads(), "{metrics:?}");
        goes_on_without_a_log(&failed, &world.running(others).await).await;
    });
}

/// Its callers asked on until their time was up, without ever waiting for anything; and later, when they were
/// told that it has stopped, the node's pods went on but nothing new ever reached it.
#[test]
fn a_follower_whose_disk_fails_goes_on_without_a_log() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan::quiet()).await;
        let (leader, _) = world.leader().await;
        let (leading, failed) = (world.running(leader).await, world.running((leader + 1) % 3).await);
        world.disk((leader + 1) % 3).set_broken(Some(Broken::Syncs));
        let mut changes = failed.on_change();
        while world.put_revision(leader, "key", "value").await.is_none() {}
        while failed.metrics().failed.is_none() {
            changes.changed().await;
        }
        goes_on_without_a_log(&failed, &leading).await;
        assert!(leading.metrics().leads());
    });
}

#[test]
fn a_store_that_was_shut_down_says_so_at_once() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan::quiet()).await;
        let store = world.running(2).await;
        let mut changes = store.on_change();
        store.shutdown().await;
        while changes.changed().await {}
        let began = Now::now();
        let op = Op { key: "key".into(), expect: Expect::Any, change: Change::Delete };
        assert_eq!(store.propose(vec![op], Options::default()).await, Err(ProposeError::Stopped));
        assert_eq!(store.read_index(Duration::from_secs(9)).await, Err(ReadError::Stopped));
        assert_eq!(began.elapsed(), Duration::ZERO);
    });
}

/// Reads, watches and writes go through the others from now on, and nobody follows such a store.
async fn goes_on_without_a_log(failed: &Store, other: &Store) {
    let limit = Duration::from_secs(9);
    let before = failed.read_index(limit).await.expect("two of three vote");
    let mut watcher = failed.watch("", before).expect("nothing is compacted");
    let op = |key: &str| Op { key: key.into(), expect: Expect::Any, change: Change::Put("new".into()) };
    let through_itself = failed.propose(vec![op("one")], Options::default()).await.expect("it is forwarded");
    let elsewhere = other.propose(vec![op("two")], Options::default()).await.expect("two of three vote");
    assert!(failed.wait_revision(elsewhere.revision, limit).await);
    assert!(other.wait_revision(elsewhere.revision, limit).await);
    let mut seen = before;
    while seen < elsewhere.revision {
        let events = watcher.next().await.expect("it goes on").events;
        assert_eq!(events[0].revision, seen + 1);
        seen += events.len() as u64;
    }
    assert!((before + 1..elsewhere.revision).contains(&through_itself.revision));
    let metrics = failed.metrics();
    assert_eq!((metrics.leader, metrics.followers), (other.metrics().leader, 0));
    assert_eq!(metrics.follows.map(|source| source.node == metrics.voter.node), Some(false), "{metrics:?}");
    assert_eq!(failed.state().digest(), other.state().digest());
}

/// A cluster that grows from one voter is lost with that one until the change is committed.
#[test]
fn until_a_change_of_the_voters_is_committed_the_set_before_it_counts() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan::quiet()).await;
        let (leader, metrics) = world.leader().await;
        let store = world.running(leader).await;
        assert_eq!(store.voter_sets(), std::slice::from_ref(&metrics.voters));
        world.isolate(leader, false, false, true);
        let alone = MemberChange::Voters([metrics.voter].into());
        let change = store.change_members(alone, metrics.membership);
        assert!(SimRt::timeout(Duration::from_secs(1), change).await.is_err(), "nobody commits it");
        let sizes: Vec<usize> = store.voter_sets().iter().map(|set| set.len()).collect();
        assert!(sizes.contains(&3) && sizes.contains(&1), "{sizes:?}");
    });
}

/// Two changes that were decided on one membership: the second would undo or double the first.
#[test]
fn of_two_changes_of_the_voters_decided_at_once_one_is_refused() {
    assert!(!both_changes_happen());
    Mutation::set(Some(Mutation::MembersUnconditionally));
    let both = both_changes_happen();
    Mutation::set(None);
    assert!(both, "this test would not notice");
}

fn both_changes_happen() -> bool {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan { nodes: 5, ..Plan::quiet() }).await;
        let (leader, metrics) = world.leader().await;
        let store = world.running(leader).await;
        let others: Vec<VoterId> =
            metrics.voters.iter().copied().filter(|voter| *voter != metrics.voter).collect();
        let without = |gone: &[VoterId]| {
            let stays = |voter: &VoterId| !gone.contains(voter);
            MemberChange::Voters(metrics.voters.iter().copied().filter(stays).collect())
        };
        let one = store.change_members(without(&others[3..]), metrics.membership).await;
        let other = store.change_members(without(&others[2..]), metrics.membership).await;
        assert_eq!(one, Ok(()), "nothing is in its way");
        other.is_ok()
    })
}

/// What Raft ignores while it makes a snapshot is not coming: whoever waited for it waited for the next of its own.
#[test]
fn a_heavy_log_is_cut_short_although_a_snapshot_was_under_way() {
    SimRt::with_seed(7).block_on(async {
        let compaction =
            Compaction { every_entries: 1000, keep_entries: 900, every_bytes: 1 << 20, keep_bytes: 1 << 19 };
        let world = World::formed(Plan { compaction, ..Plan::quiet() }).await;
        let store = world.running(0).await;
        let write = async |bytes: usize| {
            let change = Change::Put(vec![b'x'; bytes].into());
            let op = Op { key: format!("key{bytes}").into(), expect: Expect::Any, change };
            store.propose(vec![op], Options::default()).await.expect("all are there");
        };
        // Those that are small make a snapshot by their number, which takes a while.
        for serial in 0..990 {
            write(serial % 10).await;
        }
        (0..3).for_each(|number| world.set_sync_time(number, Duration::from_secs(3)));
        let writes: Vec<_> = (0..20).map(|_| write(4)).collect();
        futures::future::join_all(writes).await;
        SimRt::sleep(Duration::from_millis(500)).await;
        // Those that are large make the log heavy meanwhile, and then nothing is written any more.
        let writes: Vec<_> = (0..30).map(|serial| write(50_000 + serial)).collect();
        futures::future::join_all(writes).await;
        SimRt::sleep(Duration::from_secs(60)).await;
        let metrics = store.metrics();
        let kept = metrics.last_log - metrics.purged;
        assert!(kept < 60, "{kept} entries are kept: {metrics:?}");
    });
}

/// On a way where small packets pass and large ones do not, a voter answers every heartbeat and has nothing of what
/// is written: only what it has acknowledged tells.
#[test]
fn a_voter_that_only_small_packets_reach_hears_its_leader_and_acknowledges_nothing() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan::quiet()).await;
        let (leader, before) = world.leader().await;
        let number = (leader + 1) % 3;
        let (leading, narrow) = (world.running(leader).await, world.voter(number));
        world.set_narrow(leader, number, true);
        for serial in 0..20 {
            assert!(world.put(leader, "key", &format!("{serial:02000}")).await);
        }
        SimRt::sleep(Duration::from_secs(45)).await;
        let metrics = leading.metrics();
        assert!(metrics.matched[&narrow] + 20 <= metrics.last_log, "{metrics:?}");
        let heard = world.running(number).await.metrics();
        assert_eq!((metrics.term, heard.leader), (before.term, before.leader), "heartbeats pass");
        world.set_narrow(leader, number, false);
        let revision = leading.state().revision();
        assert!(world.running(number).await.wait_revision(revision, Duration::from_secs(20)).await);
    });
}
