//! Stores without a log: they show what the others commit, whoever of those is lost, and become learners and
//! voters and followers again without ever showing an earlier revision.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use skein_raft_store::sim::{Mutation, SimJoinHandle, SimRt, take_seen};
use skein_raft_store::{Change, Expect, MemberChange, Op, Options, Outcome, VoterId};

use crate::world::{Faults, Now, Plan, Store, World};
use crate::{check, number, run};

/// More than any step takes: three signs of life, patience, and an election.
const SOON: Duration = Duration::from_secs(15);

fn plan(nodes: usize, followers: usize) -> Plan {
    Plan { nodes, followers, ..Plan::quiet() }
}

async fn put(store: &Store, key: &str, value: impl ToString) -> u64 {
    let change = Change::Put(Bytes::from(value.to_string()));
    let op = Op { key: key.into(), expect: Expect::Any, change };
    let answer = store.propose(vec![op], Options::default()).await.expect("a quorum is there");
    assert!(matches!(answer.outcomes[0], Outcome::Done { .. }), "{answer:?}");
    answer.revision
}

/// Waits until the condition holds, not for long.
#[track_caller]
fn soon(what: &'static str, mut condition: impl FnMut() -> bool + Send) -> impl Future<Output = ()> {
    let waiting = async move {
        while !condition() {
            SimRt::sleep(Duration::from_millis(20)).await;
        }
    };
    async move { SimRt::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}")) }
}

/// Waits until the store at `number` follows one of `sources`, and returns its number.
async fn follows(world: &World, number: usize, sources: std::ops::Range<usize>) -> usize {
    let store = world.running(number).await;
    let named = |id: VoterId| sources.clone().find(|source| world.voter(*source).node == id.node);
    soon("it follows", || store.metrics().follows.is_some_and(|id| named(id).is_some())).await;
    named(store.metrics().follows.unwrap()).unwrap()
}

#[test]
fn a_follower_takes_writes_and_answers_reads_and_watches_as_any_node() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(3, 5)).await;
        let (_, leading) = world.leader().await;
        for number in 3..8 {
            let store = world.running(number).await;
            soon("it knows the leader", || store.metrics().leader == leading.leader).await;
            let mut watcher = store.watch("key", store.state().revision()).unwrap();
            let revision = put(&store, "key", number).await;
            assert!(store.read_index(SOON).await.unwrap() >= revision);
            assert_eq!(store.state().get("key").unwrap().value, number.to_string());
            let seen = watcher.next().await.unwrap().events.pop().unwrap();
            assert_eq!((seen.revision, seen.value.unwrap()), (revision, Bytes::from(number.to_string())));

            let metrics = store.metrics();
            assert_eq!((&metrics.voters, metrics.term), (&leading.voters, leading.term));
            assert!(metrics.learners.is_empty() && !metrics.leads() && metrics.membership_committed);
            assert_eq!(metrics.last_log, 0, "it has no log");
        }
        let digests: Vec<u32> = {
            let mut digests = Vec::new();
            let revision = world.running(0).await.state().revision();
            for number in 0..8 {
                let store = world.running(number).await;
                assert!(store.wait_revision(revision, SOON).await);
                digests.push(store.state().digest());
            }
            digests
        };
        assert_eq!(BTreeSet::from_iter(digests).len(), 1);
    });
}

#[test]
fn followers_spread_over_those_they_may_follow() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(3, 8)).await;
        let mut sources = BTreeSet::new();
        for number in 3..11 {
            sources.insert(follows(&world, number, 0..3).await);
        }
        let (leader, _) = world.leader().await;
        assert_eq!(sources, (0..3).filter(|number| *number != leader).collect());
    });
}

#[test]
fn a_follower_goes_on_without_a_gap_when_its_source_dies() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(5, 3)).await;
        let store = world.running(6).await;
        let mut watcher = store.watch("key", store.state().revision()).unwrap();
        let mut written = Vec::new();
        // One of the other followers lives through it all.
        for round in 0..2 {
            let source = follows(&world, 6, 0..5).await;
            written.push(put(&store, "key", format!("{round} before")).await);
            world.power_off(source);
            written.push(put(&store, "key", format!("{round} after")).await);
            let revision = store.read_index(SOON).await.expect("a quorum is there");
            assert!(store.wait_revision(revision, SOON).await, "it found another one");
        }
        let mut seen = Vec::new();
        while seen.len() < written.len() {
            seen.extend(watcher.next().await.unwrap().events.into_iter().map(|event| event.revision));
        }
        assert_eq!(seen, written);
    });
}

#[test]
fn a_follower_that_was_away_for_long_begins_anew_with_a_snapshot() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(3, 2)).await;
        let (store, voter) = (world.running(4).await, world.running(0).await);
        put(&store, "gone", "x").await;
        let revision = put(&store, "kept", "x").await;
        assert!(store.wait_revision(revision, SOON).await);
        world.isolate(4, false, false, true);
        for serial in 0..100 {
            put(&voter, "key", serial).await;
        }
        let delete = Op { key: "gone".into(), expect: Expect::Any, change: Change::Delete };
        let last = voter.propose(vec![delete], Options::default()).await.unwrap().revision;
        world.isolate(4, false, false, false);
        assert!(store.wait_revision(last, SOON).await);
        assert_eq!(store.state().digest(), voter.state().digest());
        assert!(store.watch("", last).is_ok() && store.watch("", revision).is_err(), "the past is not there");
    });
}

#[test]
fn a_follower_becomes_learner_and_voter_and_follows_again_when_it_is_let_go() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(3, 5)).await;
        let (leader, _) = world.leader().await;
        let (leading, store) = (world.running(leader).await, world.running(3).await);
        for serial in 0..100 {
            let revision = put(&store, "key", serial).await;
            assert!(store.wait_revision(revision, SOON).await);
        }
        let mut watcher = store.watch("key", store.state().revision()).unwrap();
        let id = world.voter(3);
        leading.add_learner(id).await.unwrap();
        soon("its own Raft has caught up", || store.metrics().follows.is_none()).await;
        assert!(store.metrics().learners.contains(&id) && store.metrics().last_log > 0);

        let voters: BTreeSet<VoterId> = leading.metrics().voters.into_iter().chain([id]).collect();
        let change = |voters: &BTreeSet<VoterId>| MemberChange::Voters(voters.clone());
        leading.change_members(change(&voters), leading.metrics().membership).await.unwrap();
        let first = put(&store, "key", "a voter").await;
        // With one of the four gone its vote is needed for every write.
        world.power_off((leader + 1) % 3);
        let second = put(&leading, "key", "its vote counts").await;
        world.start((leader + 1) % 3);

        let voters: BTreeSet<VoterId> = voters.into_iter().filter(|voter| *voter != id).collect();
        leading.change_members(change(&voters), leading.metrics().membership).await.unwrap();
        let term = leading.metrics().term;
        let third = put(&store, "key", "a follower again").await;
        follows(&world, 3, 0..3).await;
        let metrics = store.metrics();
        assert_eq!((metrics.voters, metrics.leader), (voters, Some(leading.voter())));
        // Its old log says that it votes, and yet it disturbs nobody.
        SimRt::sleep(SOON).await;
        assert_eq!((leading.metrics().term, store.metrics().term), (term, term));

        let mut seen = Vec::new();
        while seen.last() != Some(&third) {
            seen.extend(watcher.next().await.unwrap().events.into_iter().map(|event| event.revision));
        }
        assert_eq!(seen, [first, second, third], "no watcher noticed any of it");
    });
}

#[test]
fn a_follower_of_a_minority_finds_the_majority() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(5, 1)).await;
        let source = follows(&world, 5, 0..5).await;
        let (leader, before) = world.leader().await;
        let minority = BTreeSet::from([leader, source]);
        let store = world.running(5).await;
        // Both still hear each other, and the follower still hears all of them.
        for inside in &minority {
            for outside in (0..5).filter(|number| !minority.contains(number)) {
                world.cut(*inside, outside);
            }
        }
        soon("the new leader is known", || {
            store.metrics().term > before.term && store.metrics().leader.is_some()
        })
        .await;
        let revision = put(&store, "key", "through the majority").await;
        assert!(store.wait_revision(revision, SOON).await);
    });
}

#[test]
fn a_follower_alone_after_a_power_cut_still_shows_what_it_once_had() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(3, 1)).await;
        let store = world.running(3).await;
        let early = put(&store, "early", "x").await;
        assert!(store.wait_revision(early, SOON).await);
        // Long enough for a copy to be due again.
        SimRt::sleep(Duration::from_secs(11 * 60)).await;
        let late = put(&store, "late", "x").await;
        assert!(store.wait_revision(late, SOON).await);
        SimRt::sleep(Duration::from_secs(2)).await;
        let syncs = world.disk(3).syncs();
        SimRt::sleep(Duration::from_secs(2 * 60)).await;
        assert_eq!(world.disk(3).syncs(), syncs, "an idle cluster writes nothing");

        drop(store);
        (0..4).for_each(|number| world.power_off(number));
        world.start(3);
        let store = world.running(3).await;
        assert!(store.state().get("early").is_some() && store.state().get("late").is_some());
        (0..3).for_each(|number| world.start(number));
        let revision = put(&store, "again", "x").await;
        assert!(store.wait_revision(revision, SOON).await);
    });
}

/// A writer of `every` key in turn, until told to stop.
struct Writer {
    goes_on: Arc<AtomicBool>,
    task: SimJoinHandle<u64>,
}

impl Writer {
    fn start(store: Store, keys: usize, bytes: usize, pause: Duration) -> Writer {
        let goes_on = Arc::new(AtomicBool::new(true));
        let told = goes_on.clone();
        let task = SimRt::spawn(async move {
            let mut last = 0;
            for serial in 0_usize.. {
                if !told.load(Ordering::Relaxed) {
                    break;
                }
                last = put(&store, &format!("written{}", serial % keys), value(serial, bytes)).await;
                SimRt::sleep(pause).await;
            }
            last
        });
        Writer { goes_on, task }
    }

    /// The revision of the last write.
    async fn stop(self) -> u64 {
        self.goes_on.store(false, Ordering::Relaxed);
        self.task.await.expect("a writer does not panic")
    }
}

fn value(serial: usize, bytes: usize) -> String {
    format!("{serial:0bytes$}")
}

/// Whether a follower that needs a snapshot, on a link where that takes longer than the ring of events lasts, ever
/// shows what was written meanwhile. In small what 80 MB, 100 Mbit/s and 500 writes a second are.
fn catches_up() -> bool {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(3, 1)).await;
        let voter = world.running(0).await;
        world.power_off(3);
        world.replace_disk(3);
        for serial in 0..400 {
            put(&voter, &format!("key{serial}"), value(serial, 4000)).await;
        }
        // 1.6 s for all of it; 60 events are written in 0.6 s.
        world.set_rate(Some(1_000_000));
        let writer = Writer::start(voter.clone(), 50, 1000, Duration::from_millis(9));
        world.start(3);
        let store = world.running(3).await;
        SimRt::sleep(SOON).await;
        let lag = voter.state().revision() - store.state().revision();
        let last = writer.stop().await;
        let is_near = lag < 100;
        if is_near {
            assert!(store.wait_revision(last, SOON).await);
            assert_eq!(store.state().digest(), voter.state().digest());
        }
        is_near
    })
}

#[test]
fn a_catch_up_that_has_begun_ends_also_while_much_is_written() {
    take_seen();
    assert!(catches_up());
    assert!(take_seen().get("follower jumped").is_some_and(|jumps| (1..20).contains(jumps)));
    Mutation::set(Some(Mutation::CatchUpBeginsAnew));
    let by_beginning_anew = catches_up();
    Mutation::set(None);
    assert!(!by_beginning_anew, "this test would not notice");
}

/// More is written than passes: what was overwritten meanwhile is not sent.
#[test]
fn a_follower_on_a_link_that_is_too_slow_for_all_writes_stays_near() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(Plan { ring_events: 10, ..plan(3, 1) }).await;
        let (voter, store) = (world.running(0).await, world.running(3).await);
        let writer = Writer::start(voter.clone(), 5, 1000, Duration::from_millis(4));
        SimRt::sleep(Duration::from_secs(2)).await;
        // The voters among themselves need a fifth of this for what is written, the follower as much.
        world.set_rate_to(3, Some(100_000));
        for _ in 0..30 {
            SimRt::sleep(Duration::from_secs(1)).await;
            let lag = voter.state().revision() - store.state().revision();
            // What is written while a full pipe empties; all that does not pass in 30 s would be more than 2,000.
            assert!(lag < 800, "{lag}");
        }
        world.set_rate_to(3, None);
        let last = writer.stop().await;
        assert!(store.wait_revision(last, SOON).await);
        assert_eq!(store.state().digest(), voter.state().digest());
    });
}

#[test]
fn no_fault_breaks_an_invariant_of_followers() {
    for seed in 1..=number("SKEIN_SEEDS", 4) {
        let plan =
            Plan { clients: 4, faults_for: Duration::from_secs(15), faults: Faults::All, seed, ..plan(3, 3) };
        let counts = check(plan).counts;
        assert!(counts["followed"] > 100, "{counts:?}");
    }
}

#[test]
fn the_checker_sees_a_node_that_shows_what_was_before() {
    Mutation::set(Some(Mutation::ShownAlthoughBehind));
    let broken = (1..30).any(|seed| {
        let plan =
            Plan { clients: 4, faults_for: Duration::from_secs(15), faults: Faults::All, seed, ..plan(3, 3) };
        !run(plan).wrong.is_empty()
    });
    Mutation::set(None);
    assert!(broken);
}

#[test]
fn one_seed_with_followers_has_one_course() {
    let plan =
        Plan { clients: 4, faults_for: Duration::from_secs(8), faults: Faults::All, seed: 3, ..plan(3, 3) };
    assert_eq!(run(plan).trace, run(plan).trace);
}

/// What takes the time of a new node: nobody has told it anything but the others' names.
#[test]
fn a_new_follower_knows_everything_within_a_second() {
    SimRt::with_seed(7).block_on(async {
        let world = World::formed(plan(3, 1)).await;
        world.power_off(3);
        world.replace_disk(3);
        let revision = put(&world.running(0).await, "key", "x").await;
        SimRt::sleep(SOON).await;
        let began = Now::now();
        world.start(3);
        let store = world.running(3).await;
        assert!(store.wait_revision(revision, SOON).await);
        soon("it knows the leader", || store.metrics().leader.is_some()).await;
        use openraft::async_runtime::Instant;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    });
}
