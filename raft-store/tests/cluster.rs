//! Whole stores on real time and real files, joined by a network of channels.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skein_raft_store::sim::{SimNetwork, Weather};
use skein_raft_store::{
    Change, ClusterTag, Compaction, Config, DiskFiles, Expect, Handle, MemberChange, Metrics, Op, Options,
    Outcome, ProposeError, TokioRuntime, VoterId, WatchError, start,
};
use tempfile::TempDir;

type Store = Handle<TokioRuntime>;

/// Far beyond anything a loaded machine needs; only a hang takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Machines with a disk each, and a network between them.
struct House {
    network: SimNetwork<TokioRuntime>,
    machines: Vec<Machine>,
}

struct Machine {
    voter: VoterId,
    directory: TempDir,
    generation: u64,
    store: Option<Store>,
}

impl House {
    async fn with_machines(count: u8) -> Self {
        let mut house = House { network: SimNetwork::new(Weather::CALM), machines: Vec::new() };
        for _ in 0..count {
            house.add_machine().await;
        }
        house
    }

    async fn add_machine(&mut self) -> usize {
        let number = self.machines.len();
        self.machines.push(Machine {
            voter: VoterId { node: [number as u8 + 1; 16], store: [1; 8] },
            directory: tempfile::tempdir().expect("a temporary directory"),
            generation: 0,
            store: None,
        });
        self.start(number).await;
        number
    }

    /// A cluster in which all machines vote.
    async fn of_voters(count: u8) -> Self {
        let house = House::with_machines(count).await;
        house.store(0).bootstrap().await.expect("an empty store");
        house.write(0, "first", "").await;
        for number in 1..count as usize {
            house.store(0).add_learner(house.machines[number].voter).await.expect("a leader");
        }
        let voters: BTreeSet<VoterId> = house.machines.iter().map(|machine| machine.voter).collect();
        let membership = house.store(0).metrics().membership;
        house
            .store(0)
            .change_members(MemberChange::Voters(voters), membership)
            .await
            .expect("caught up learners");
        house
    }

    async fn start(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        machine.generation += 1;
        let files = DiskFiles::open(machine.directory.path()).expect("nobody else has it open");
        let (transport, mut incoming) = self.network.connect(machine.voter);
        let mut config = Config::new(machine.voter, ClusterTag::default(), machine.generation);
        config.compaction = Compaction { every_entries: 100, keep_entries: 50, ..Compaction::default() };
        let store: Store = start(config, files, Arc::new(transport)).await.expect("a sound directory");
        let serving = store.clone();
        tokio::spawn(async move {
            while let Some((from, lane, pipe)) = incoming.next().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.serve(from, lane, pipe).await });
            }
        });
        machine.store = Some(store);
    }

    /// Tells a store whom it may follow.
    fn introduce(&self, number: usize) {
        let others = (0..self.machines.len()).filter(|other| *other != number);
        self.store(number).introduce(others.map(|other| self.machines[other].voter.node).collect());
    }

    async fn stop(&mut self, number: usize) {
        if let Some(store) = self.machines[number].store.take() {
            store.shutdown().await;
        }
    }

    async fn stop_all(mut self) {
        for number in 0..self.machines.len() {
            self.stop(number).await;
        }
    }

    fn store(&self, number: usize) -> &Store {
        self.machines[number].store.as_ref().expect("it runs")
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.machines.len()).filter(|number| self.machines[*number].store.is_some())
    }

    async fn write(&self, number: usize, key: &str, value: &str) -> u64 {
        let answer = self.store(number).propose(vec![put(key, value)], patient()).await.expect("a quorum");
        assert!(matches!(answer.outcomes[0], Outcome::Done { .. } | Outcome::Unchanged { .. }), "{answer:?}");
        answer.revision
    }

    /// Waits until all running stores see one leader, and returns its number.
    async fn leader(&self) -> usize {
        let seen = |_: &Metrics| {
            let leaders: BTreeSet<_> =
                self.running().map(|number| self.store(number).metrics().leader).collect();
            leaders.len() == 1 && leaders.iter().flatten().any(|leader| self.number(*leader).is_some())
        };
        self.wait(seen).await;
        self.number(self.store(self.running().next().expect("one runs")).metrics().leader.expect("just seen"))
            .expect("just seen")
    }

    fn number(&self, voter: VoterId) -> Option<usize> {
        self.running().find(|number| self.machines[*number].voter == voter)
    }

    async fn wait(&self, mut condition: impl FnMut(&Metrics) -> bool) {
        let first = self.running().next().expect("one runs");
        let waiting = async {
            while !condition(&self.store(first).metrics()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the condition never held");
    }

    /// Waits until all running stores hold the same state.
    async fn settle(&self) {
        let revision =
            self.running().map(|number| self.store(number).state().revision()).max().expect("one runs");
        for number in self.running() {
            assert!(self.store(number).wait_revision(revision, PATIENCE).await, "store {number} lags");
        }
    }
}

fn put(key: &str, value: &str) -> Op {
    Op { key: key.into(), expect: Expect::Any, change: Change::Put(Bytes::copy_from_slice(value.as_bytes())) }
}

fn patient() -> Options {
    Options { timeout: PATIENCE, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_voter_is_its_own_quorum() {
    let house = House::with_machines(1).await;
    house.store(0).bootstrap().await.unwrap();
    assert_eq!(house.write(0, "a", "1").await, 1);
    assert_eq!(house.store(0).read_index(PATIENCE).await.unwrap(), 1);
    let metrics = house.store(0).metrics();
    assert!(metrics.leads() && metrics.quorum_acked_age == Some(Duration::ZERO));
    assert!(house.store(0).bootstrap().await.is_err());
    house.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_take_writes_reads_and_watches_on_any_of_them() {
    let house = House::of_voters(3).await;
    let mut watcher = house.store(2).watch("pods/", 0).unwrap();
    for number in 0..3 {
        let revision = house.write(number, &format!("pods/{number}"), "x").await;
        let other = (number + 1) % 3;
        assert!(house.store(other).read_index(PATIENCE).await.unwrap() >= revision);
        assert!(house.store(other).state().get(&format!("pods/{number}")).is_some());
    }
    let mut keys = Vec::new();
    while keys.len() < 3 {
        keys.extend(watcher.next().await.unwrap().events.into_iter().map(|event| event.key.to_string()));
    }
    assert_eq!(keys, ["pods/0", "pods/1", "pods/2"]);
    house.settle().await;
    let digests: BTreeSet<u32> = (0..3).map(|number| house.store(number).state().digest()).collect();
    assert_eq!(digests.len(), 1);
    house.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_far_behind_catches_up_by_a_snapshot_and_restarts_from_it() {
    let mut house = House::with_machines(1).await;
    house.store(0).bootstrap().await.unwrap();
    for number in 0..200 {
        house.write(0, &format!("key{number}"), "value").await;
    }
    let number = house.add_machine().await;
    house.store(0).add_learner(house.machines[number].voter).await.unwrap();
    let revision = house.write(0, "last", "1").await;
    assert!(house.store(number).wait_revision(revision, PATIENCE).await);
    assert_eq!(house.store(number).state().digest(), house.store(0).state().digest());
    // It came as a snapshot: the events of the past are not there.
    assert!(matches!(house.store(number).watch("", 0), Err(WatchError::Compacted { .. })));
    house.stop(number).await;
    house.start(number).await;
    assert!(house.store(number).wait_revision(revision, PATIENCE).await);
    assert_eq!(house.store(number).metrics().learners, BTreeSet::from([house.machines[number].voter]));
    house.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_when_the_leader_stops_and_it_catches_up_after() {
    let mut house = House::of_voters(3).await;
    let leader = house.leader().await;
    let follower = (leader + 1) % 3;
    let term = house.store(leader).metrics().term;
    house.stop(leader).await;
    let revision = house.write(follower, "after", "1").await;
    let next = house.leader().await;
    assert!(house.store(next).metrics().term > term);
    house.start(leader).await;
    assert!(house.store(leader).wait_revision(revision, PATIENCE).await);
    assert!(house.store(leader).state().get("after").is_some());
    house.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judgement_of_one_term_is_taken_by_its_leader_only() {
    let house = House::of_voters(3).await;
    let leader = house.leader().await;
    let term = house.store(leader).metrics().term;
    let judged = |term| Options { only_in_term: Some(term), ..patient() };
    let answer = house.store(leader).propose(vec![put("a", "1")], judged(term)).await.unwrap();
    assert!(matches!(answer.outcomes[0], Outcome::Done { .. }));
    let answer = house.store(leader).propose(vec![put("a", "2")], judged(term - 1)).await.unwrap();
    assert_eq!(answer.outcomes, [Outcome::WrongTerm]);
    let refused = house.store((leader + 1) % 3).propose(vec![put("a", "3")], judged(term)).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { term }));
    house.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_to_the_voter_that_is_asked() {
    let house = House::of_voters(3).await;
    let leader = house.leader().await;
    let next = (leader + 1) % 3;
    assert!(house.store(leader).transfer_leader(Some(house.machines[next].voter)).await);
    assert_eq!(house.leader().await, next);
    house.write(leader, "after", "1").await;
    house.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_members_decided_on_an_old_membership_is_refused() {
    let house = House::of_voters(3).await;
    let leader = house.leader().await;
    let old = house.store(leader).metrics().membership;
    let two: BTreeSet<VoterId> = (0..3)
        .filter(|number| *number != (leader + 1) % 3)
        .map(|number| house.machines[number].voter)
        .collect();
    house.store(leader).change_members(MemberChange::Voters(two.clone()), old).await.unwrap();
    let moved = house.store(leader).change_members(MemberChange::Voters(two.clone()), old).await;
    assert_eq!(moved, Err(skein_raft_store::ChangeError::Moved));
    assert_eq!(house.store(leader).metrics().voters, two);
    house.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_all_have_been_off_and_the_ring_is_refilled() {
    let mut house = House::of_voters(3).await;
    for number in 0..20 {
        house.write(number % 3, &format!("key{number}"), "value").await;
    }
    house.settle().await;
    let digest = house.store(0).state().digest();
    for number in 0..3 {
        house.stop(number).await;
    }
    for number in [2, 0, 1] {
        house.start(number).await;
    }
    house.store(1).read_index(PATIENCE).await.unwrap();
    assert_eq!(house.store(1).state().digest(), digest);
    let mut watcher = house.store(1).watch("key", 0).unwrap();
    let mut seen = 0;
    while seen < 20 {
        seen += watcher.next().await.unwrap().events.len();
    }
    house.stop_all().await;
    assert_eq!(watcher.next().await, Err(WatchError::Stopped));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_a_log_works_as_any_and_starts_alone_from_what_it_kept() {
    let mut house = House::of_voters(3).await;
    for number in 0..200 {
        house.write(number % 3, &format!("key{number}"), "value").await;
    }
    let number = house.add_machine().await;
    house.introduce(number);
    let revision = house.write(number, "through it", "1").await;
    assert_eq!(house.store(number).read_index(PATIENCE).await.unwrap(), revision);
    assert_eq!(house.store(number).state().digest(), house.store(0).state().digest());
    let metrics = house.store(number).metrics();
    assert!(metrics.follows.is_some() && metrics.last_log == 0 && metrics.voters.len() == 3);

    for number in 0..4 {
        house.stop(number).await;
    }
    house.start(number).await;
    assert_eq!(house.store(number).state().revision(), revision);
    // Whom to follow it knows as well.
    assert_eq!(house.store(number).metrics().voters, metrics.voters);
    for number in 0..3 {
        house.start(number).await;
    }
    let revision = house.write(number, "again", "1").await;
    assert!(house.store(number).wait_revision(revision, PATIENCE).await);
    house.stop_all().await;
}

/// A follower that restarted used to get heartbeats but no entries, for ever: the append stream had
/// ended with an error where the peer had only finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_never_stall_while_followers_are_stopped_and_started() {
    let mut house = House::of_voters(3).await;
    for round in 0..8 {
        let leader = house.leader().await;
        let follower = (leader + 1 + round % 2) % 3;
        house.stop(follower).await;
        for number in 0..10 {
            house.write(leader, &format!("round{round}/{number}"), "down").await;
        }
        house.start(follower).await;
        let revision = house.write(leader, &format!("round{round}/up"), "up").await;
        assert!(
            house.store(follower).wait_revision(revision, PATIENCE).await,
            "round {round}: the follower got no entries"
        );
    }
    house.stop_all().await;
}
