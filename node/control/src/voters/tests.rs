use super::*;

/// A cluster in virtual time: node 0.. of which some are up; the lowest voter that is up leads. A store is named as
/// its node, one that was made anew by [`NEXT`] more.
struct Cluster {
    now: Instant,
    members: BTreeMap<u8, Member<u8>>,
    membership: Membership<u8>,
    last_voluntary: Option<Instant>,
    changes: usize,
}

const NEXT: u8 = 50;

/// A place that waits: why, whose it is, who takes it, and in how many seconds.
type Told = (Reason, Option<u8>, Option<u8>, Option<u64>);

fn member(now: Instant) -> Member<u8> {
    Member {
        standing: Standing::Member,
        up: true,
        since: now,
        progressed_at: now,
        caught_up: true,
        disowned: false,
        behind: false,
        fresh: true,
        removals: 0,
        domain: String::new(),
    }
}

impl Cluster {
    fn new() -> Cluster {
        let now = Instant(1_000_000);
        let membership = Membership { voters: [0].into(), ..Membership::default() };
        Cluster { now, members: [(0, member(now))].into(), membership, last_voluntary: None, changes: 0 }
    }

    /// Formed by `count` joins, one after another, and up for an hour.
    fn formed(count: u8) -> Cluster {
        let mut cluster = Cluster::new();
        for id in 1..count {
            cluster.members.insert(id, member(cluster.now));
            cluster.pass(10);
        }
        cluster.pass(3600);
        cluster
    }

    fn has_majority(&self) -> bool {
        let up =
            self.membership.voters.iter().filter(|id| self.members.get(id).is_some_and(|m| m.up)).count();
        2 * up > self.membership.voters.len()
    }

    fn lose(&mut self, id: u8) {
        let node = self.members.get_mut(&id).unwrap();
        (node.up, node.since) = (false, self.now);
    }

    /// Its node is there again at once, with another store.
    fn lose_store(&mut self, id: u8) {
        self.lose(id);
        let successor = id + NEXT;
        self.members.get_mut(&id).unwrap().standing = Standing::Lost { successor };
        let anew = Member { caught_up: false, fresh: false, ..member(self.now) };
        self.members.insert(successor, anew);
    }

    fn leave(&mut self, id: u8) {
        self.members.get_mut(&id).unwrap().standing = Standing::Leaving;
    }

    /// It stays after all.
    fn stay(&mut self, id: u8) {
        self.members.get_mut(&id).unwrap().standing = Standing::Member;
    }

    fn waiting(&self) -> Vec<Told> {
        let found = waiting(self.now, self.leader(), &self.members, &self.membership, self.last_voluntary);
        let left = |until: Instant| until.since(self.now).as_secs();
        found.into_iter().map(|it| (it.reason, it.voter, it.taker, it.until.map(left))).collect()
    }

    fn leader(&self) -> u8 {
        let up = |id: &&u8| self.members.get(id).is_some_and(|member| member.up);
        self.membership.voters.iter().find(up).copied().unwrap_or_default()
    }

    fn bring_back(&mut self, id: u8) {
        let node = self.members.get_mut(&id).unwrap();
        (node.up, node.since) = (true, self.now);
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now = self.now.after(Duration::from_secs(1));
            for member in self.members.values_mut().filter(|member| member.up) {
                member.progressed_at = self.now;
            }
            self.step();
        }
    }

    /// Voters become fewer only because one leaves, or five were down to three.
    fn check_count(&self, voters: &BTreeSet<u8>) {
        let before = &self.membership.voters;
        let leaves =
            before.iter().any(|id| self.members.get(id).is_some_and(|m| m.standing == Standing::Leaving));
        let is_rule_3 = (before.len(), voters.len()) == (5, 3);
        assert!(voters.len() >= before.len() || leaves || is_rule_3, "{before:?} became {voters:?}");
    }

    fn step(&mut self) {
        let up = |id: &&u8| self.members.get(id).is_some_and(|member| member.up);
        let Some(leader) = self.membership.voters.iter().find(up).copied() else { return };
        if !self.has_majority() {
            return;
        }
        let change = plan(self.now, leader, &self.members, &self.membership, 2, self.last_voluntary);
        match change {
            None => {}
            Some(Change::AddLearner(id)) => drop(self.membership.learners.insert(id)),
            Some(Change::RemoveLearner(id)) => drop(self.membership.learners.remove(&id)),
            Some(Change::Voters { voters, voluntary, replaced }) => {
                assert!(!voters.len().is_multiple_of(2), "{voters:?}");
                let before = &self.membership.voters;
                for (id, member) in &mut self.members {
                    member.removals += u32::from(replaced.contains(id));
                    member.fresh = is_fresh_after(id, member.fresh, before, &voters, &replaced);
                }
                self.check_count(&voters);
                self.membership.learners.retain(|id| !voters.contains(id));
                self.membership.voters = voters;
                self.changes += 1;
                if voluntary {
                    self.last_voluntary = Some(self.now);
                }
            }
        }
    }
}

#[test]
fn a_cluster_has_one_three_or_five_voters_by_its_size_as_soon_as_they_have_joined() {
    for (members, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (7, 5)] {
        let mut cluster = Cluster::new();
        for id in 1..members {
            cluster.members.insert(id, member(cluster.now));
        }
        cluster.pass(20);
        assert_eq!(cluster.membership.voters.len(), voters, "{members} members");
        assert_eq!(cluster.membership.learners.len(), (members as usize - voters).min(2));
    }
}

/// `leave`, and a change of mind when the vote is another's already, or nobody's: also the voter that went with it, for
/// two have no use for two votes, votes as before at once.
#[test]
fn a_leave_that_is_taken_back_costs_nobody_a_vote() {
    for members in [3, 4, 5] {
        let mut cluster = Cluster::formed(members);
        // Young nodes, which nobody would trust with a vote yet.
        let now = cluster.now;
        cluster.members.values_mut().for_each(|member| member.since = now);
        let size = cluster.membership.voters.len();
        let leaver = *cluster.membership.voters.last().unwrap();
        cluster.leave(leaver);
        cluster.pass(10);
        assert!(!cluster.membership.voters.contains(&leaver));
        cluster.stay(leaver);
        cluster.pass(3);
        assert_eq!(cluster.membership.voters.len(), size, "of {members}");
        assert_eq!(cluster.waiting(), []);
    }
    // Also where all that may learn are others, which nobody trusts with a vote yet; its log takes a while to copy.
    let mut cluster = Cluster::formed(5);
    let now = cluster.now;
    cluster.membership.voters = [0].into();
    cluster.membership.learners = [1, 2].into();
    for id in 1..5 {
        let member = cluster.members.get_mut(&id).unwrap();
        (member.fresh, member.since) = (id > 2, now);
        member.caught_up = id < 3;
    }
    cluster.pass(5);
    assert_eq!(cluster.membership.learners, [1, 2, 3, 4].into());
    cluster.members.values_mut().for_each(|member| member.caught_up = true);
    cluster.pass(2);
    assert_eq!(cluster.membership.voters, [0, 3, 4].into());
    // Whoever was down is another matter, whatever others do meanwhile.
    let mut cluster = Cluster::formed(4);
    cluster.lose(2);
    cluster.pass(60);
    assert_eq!(cluster.membership.voters, [0, 1, 3].into());
    cluster.bring_back(2);
    cluster.leave(1);
    cluster.pass(10);
    cluster.stay(1);
    cluster.pass(10);
    assert_eq!(cluster.membership.voters, [0, 1, 3].into());
}

#[test]
fn a_member_that_has_not_the_whole_log_does_not_vote() {
    let mut cluster = Cluster::new();
    for id in 1..3 {
        cluster.members.insert(id, Member { caught_up: id == 1, ..member(cluster.now) });
    }
    cluster.pass(20);
    assert_eq!(cluster.membership.voters, [0].into());
    cluster.members.get_mut(&2).unwrap().caught_up = true;
    cluster.pass(2);
    assert_eq!(cluster.membership.voters, [0, 1, 2].into());
}

#[test]
fn a_voter_that_is_down_for_half_a_minute_is_replaced_and_returns_as_a_spare() {
    let mut cluster = Cluster::formed(4);
    let spare = *cluster.membership.learners.first().unwrap();
    let lost = *cluster.membership.voters.last().unwrap();
    cluster.lose(lost);
    cluster.pass(29);
    assert!(cluster.membership.voters.contains(&lost));
    cluster.pass(2);
    assert!(cluster.membership.voters.contains(&spare) && !cluster.membership.voters.contains(&lost));
    cluster.bring_back(lost);
    let voters = cluster.membership.voters.clone();
    cluster.pass(3600);
    assert_eq!(cluster.membership.voters, voters);
    assert!(cluster.membership.learners.contains(&lost));
}

#[test]
fn a_voter_whose_log_still_moves_is_not_replaced_whatever_gossip_says() {
    let mut cluster = Cluster::formed(4);
    let lost = *cluster.membership.voters.last().unwrap();
    cluster.lose(lost);
    for _ in 0..60 {
        cluster.members.get_mut(&lost).unwrap().progressed_at = cluster.now;
        cluster.pass(1);
    }
    assert!(cluster.membership.voters.contains(&lost));
}

#[test]
fn five_become_three_when_just_three_are_left_and_three_never_become_one() {
    let mut cluster = Cluster::formed(5);
    cluster.lose(4);
    cluster.pass(60);
    assert_eq!(cluster.membership.voters.len(), 5);
    cluster.lose(3);
    cluster.pass(60);
    assert_eq!(cluster.membership.voters, [0, 1, 2].into());
    cluster.lose(2);
    cluster.pass(3600);
    assert_eq!(cluster.membership.voters, [0, 1, 2].into());
    assert!(cluster.has_majority());
}

/// RELIABILITY §5's table: how many losses, a minute apart and never repaired, leave a majority.
#[test]
fn losses_one_after_another_are_survived_as_far_as_the_table_says() {
    for (nodes, survived) in [(3, 1), (4, 2), (5, 3), (7, 5)] {
        // Whichever are lost: every choice of the order of losses, by a rotation.
        for first in 0..nodes {
            let mut cluster = Cluster::formed(nodes);
            for loss in 0..survived {
                cluster.lose((first + loss) % nodes);
                cluster.pass(60);
                assert!(cluster.has_majority(), "{nodes} nodes, from {first}, loss {}", loss + 1);
            }
        }
    }
}

#[test]
fn without_a_majority_nothing_changes() {
    let mut cluster = Cluster::formed(3);
    let before = cluster.membership.clone();
    let members = cluster.members.clone();
    cluster.lose(1);
    cluster.lose(2);
    cluster.now = cluster.now.after(Duration::from_secs(3600));
    assert_eq!(plan(cluster.now, 0, &cluster.members, &before, 2, None), None);
    assert_eq!(plan(cluster.now, 0, &members, &before, 2, None), None);
}

#[test]
fn a_joint_set_is_finished_first() {
    let mut cluster = Cluster::formed(5);
    cluster.membership.joint = true;
    let voters = cluster.membership.voters.clone();
    let change = plan(cluster.now, 0, &cluster.members, &cluster.membership, 2, None);
    assert_eq!(change, Some(Change::Voters { voters, voluntary: false, replaced: BTreeSet::new() }));
}

#[test]
fn a_node_that_leaves_gives_its_vote_to_a_spare_or_the_set_becomes_smaller() {
    let mut four = Cluster::formed(4);
    let leaver = *four.membership.voters.last().unwrap();
    four.leave(leaver);
    four.pass(2);
    assert_eq!(four.membership.voters.len(), 3);
    assert!(!four.membership.voters.contains(&leaver));

    let mut three = Cluster::formed(3);
    three.leave(2);
    three.pass(2);
    assert_eq!(three.membership.voters, [0].into());
    three.members.remove(&2);
    three.pass(2);
    assert_eq!(three.membership.learners, [1].into());
}

#[test]
fn a_flapping_node_changes_the_set_once_and_then_waits_ever_longer() {
    let mut cluster = Cluster::formed(5);
    cluster.members.insert(5, member(cluster.now));
    cluster.pass(3600);
    let before = cluster.changes;
    for _ in 0..1000 {
        cluster.lose(4);
        cluster.pass(20);
        cluster.bring_back(4);
        cluster.pass(60);
    }
    assert_eq!(cluster.changes, before, "20 s are no loss");
    for _ in 0..100 {
        cluster.lose(4);
        cluster.pass(40);
        cluster.bring_back(4);
        cluster.pass(60);
    }
    assert_eq!(cluster.changes, before + 1, "a node that is never up for five minutes stays a spare");
}

#[test]
fn a_spare_of_another_failure_domain_is_taken_first() {
    let mut cluster = Cluster::formed(5);
    for (id, member) in &mut cluster.members {
        member.domain = if *id < 3 { "garage" } else { "attic" }.into();
    }
    cluster.membership = Membership { voters: [0, 1, 2].into(), learners: [3, 4].into(), joint: false };
    cluster.members.get_mut(&3).unwrap().domain = "garage".into();
    cluster.lose(2);
    cluster.pass(40);
    assert!(cluster.membership.voters.contains(&4));
}

#[test]
fn once_the_voters_are_complete_two_more_copy_the_log_and_the_rest_do_not() {
    for members in [8, 9, 50] {
        let mut cluster = Cluster::new();
        for id in 1..members {
            cluster.members.insert(id, member(cluster.now));
        }
        cluster.pass(60);
        assert_eq!((cluster.membership.voters.len(), cluster.membership.learners.len()), (5, 2));
    }
}

/// Each round is a membership change, and each voter is a loss that the cluster survives sooner.
#[test]
fn eight_that_join_at_once_form_as_quickly_as_five() {
    let rounds = |members: u8| {
        let mut cluster = Cluster::new();
        for id in 1..members {
            cluster.members.insert(id, member(cluster.now));
        }
        (1..).find(|_| {
            cluster.pass(1);
            cluster.membership.voters.len() == 5
        })
    };
    assert_eq!(rounds(8), rounds(5));
    assert_eq!(rounds(5), Some(6), "two learn and vote, and two more");
}

#[test]
fn learners_of_an_older_build_are_let_go_the_worst_first() {
    let mut cluster = Cluster::formed(5);
    for id in 5..9 {
        cluster.members.insert(id, member(cluster.now));
        cluster.membership.learners.insert(id);
    }
    cluster.members.get_mut(&5).unwrap().removals = 1;
    cluster.members.get_mut(&6).unwrap().up = false;
    cluster.pass(1);
    assert_eq!(cluster.membership.learners, [5, 7, 8].into(), "who is down goes before who was removed");
    cluster.pass(1);
    assert_eq!(cluster.membership.learners, [7, 8].into());
    cluster.pass(600);
    assert_eq!(cluster.membership.learners, [7, 8].into());
}

#[test]
fn a_lost_learner_makes_room_for_who_only_followed() {
    let mut cluster = Cluster::formed(8);
    assert_eq!(cluster.membership.learners, [5, 6].into());
    cluster.lose(5);
    cluster.pass(29);
    assert_eq!(cluster.membership.learners, [5, 6].into());
    cluster.pass(3);
    assert_eq!(cluster.membership.learners, [6, 7].into());
    cluster.bring_back(5);
    cluster.pass(3600);
    assert_eq!(cluster.membership.learners, [6, 7].into(), "nobody changes places for nothing");
}

#[test]
fn five_stay_five_while_somebody_can_still_learn() {
    let mut cluster = Cluster::formed(8);
    for id in [5, 6] {
        cluster.lose(id);
    }
    cluster.pass(1);
    for id in [3, 4] {
        cluster.lose(id);
    }
    cluster.pass(40);
    assert_eq!(cluster.membership.voters.len(), 5);
    assert!(cluster.membership.voters.contains(&7), "{:?}", cluster.membership);
}

#[test]
fn a_store_that_was_lost_is_replaced_by_its_successor_in_one_change() {
    for nodes in [3, 5] {
        let mut cluster = Cluster::formed(nodes);
        let (voters, changes) = (cluster.membership.voters.clone(), cluster.changes);
        cluster.lose_store(1);
        cluster.pass(10);
        assert_eq!(cluster.membership.voters, voters, "it has not the log yet");
        assert_eq!(cluster.membership.learners, [1 + NEXT].into());
        assert_eq!(cluster.waiting(), [(Reason::CopiesLog, Some(1), Some(1 + NEXT), None)]);
        cluster.members.get_mut(&(1 + NEXT)).unwrap().caught_up = true;
        cluster.pass(1);
        let expected: BTreeSet<u8> = voters.iter().copied().filter(|id| *id != 1).chain([1 + NEXT]).collect();
        assert_eq!((&cluster.membership.voters, cluster.waiting()), (&expected, vec![]));
        assert_eq!(cluster.members[&1].removals, 0);
        cluster.pass(3600);
        assert_eq!((cluster.membership.voters, cluster.changes), (expected, changes + 1));
    }
}

#[test]
fn a_successor_that_does_not_come_is_outrun_by_a_spare() {
    let mut cluster = Cluster::formed(4);
    cluster.lose_store(1);
    cluster.pass(29);
    assert!(cluster.membership.voters.contains(&1));
    cluster.pass(2);
    assert_eq!(cluster.membership.voters, [0, 2, 3].into());
    assert!(cluster.membership.learners.contains(&(1 + NEXT)));
}

#[test]
fn the_successor_of_a_lost_store_learns_also_where_spares_took_all_the_room() {
    let mut cluster = Cluster::formed(7);
    assert_eq!(cluster.membership.learners.len(), LEARNERS_MAX);
    cluster.lose_store(1);
    cluster.pass(2);
    assert!(cluster.membership.learners.contains(&(1 + NEXT)));
    cluster.members.get_mut(&(1 + NEXT)).unwrap().caught_up = true;
    cluster.pass(5);
    assert!(cluster.membership.voters.contains(&(1 + NEXT)));
    assert_eq!(cluster.membership.learners.len(), LEARNERS_MAX);
}

#[test]
fn of_three_voters_that_lost_two_stores_nothing_changes_ever() {
    let mut cluster = Cluster::formed(3);
    let before = cluster.membership.clone();
    cluster.lose_store(1);
    cluster.lose_store(2);
    for id in [1 + NEXT, 2 + NEXT] {
        cluster.members.get_mut(&id).unwrap().caught_up = true;
    }
    // Whoever leads: it would not even be elected.
    let change = plan(cluster.now.after(DOWN_MIN * 100), 0, &cluster.members, &before, 2, None);
    assert_eq!(change, None);
    assert_eq!(cluster.waiting(), [(Reason::MajorityLost, None, None, None)]);
    let mut three = Cluster::formed(3);
    (1..3).for_each(|id| three.lose(id));
    assert_eq!(three.waiting(), [(Reason::NoMajority, None, None, None)]);
    // Nobody can write down that their nodes have other stores; they say so themselves.
    (1..3).for_each(|id| three.members.get_mut(&id).unwrap().disowned = true);
    assert_eq!(three.waiting(), [(Reason::MajorityLost, None, None, None)]);
}

#[test]
fn of_five_voters_two_lost_stores_are_replaced_one_after_the_other() {
    let mut cluster = Cluster::formed(5);
    cluster.lose_store(1);
    cluster.lose_store(2);
    cluster.pass(40);
    for id in [1 + NEXT, 2 + NEXT] {
        cluster.members.get_mut(&id).unwrap().caught_up = true;
    }
    cluster.pass(2);
    assert_eq!(cluster.membership.voters, [0, 3, 4, 1 + NEXT, 2 + NEXT].into());
}

#[test]
fn a_store_that_is_lost_again_and_again_keeps_its_place_until_one_has_the_log() {
    let mut cluster = Cluster::formed(3);
    for _ in 0..2 {
        cluster.lose_store(1);
        cluster.pass(5);
        // Its record names the newest store only.
        let anew = cluster.members.remove(&(1 + NEXT)).unwrap();
        let lost = Member { up: false, standing: Standing::Lost { successor: 1 + 2 * NEXT }, ..anew.clone() };
        cluster.members.insert(1 + NEXT, lost);
        cluster.members.get_mut(&1).unwrap().standing = Standing::Lost { successor: 1 + 2 * NEXT };
        cluster.members.insert(1 + 2 * NEXT, anew);
        cluster.pass(5);
        assert_eq!(cluster.membership.voters, [0, 1, 2].into());
        assert_eq!(cluster.membership.learners, [1 + 2 * NEXT].into(), "nobody copies to what is gone");
    }
    cluster.members.get_mut(&(1 + 2 * NEXT)).unwrap().caught_up = true;
    cluster.pass(1);
    assert_eq!(cluster.membership.voters, [0, 2, 1 + 2 * NEXT].into());
}

#[test]
fn a_voter_that_no_record_knows_is_absent_and_does_not_leave() {
    let mut cluster = Cluster::formed(4);
    let voters = cluster.membership.voters.clone();
    let unknown = *voters.last().unwrap();
    cluster.members.get_mut(&unknown).unwrap().standing = Standing::Unknown;
    cluster.pass(3600);
    assert_eq!(cluster.membership.voters, voters, "it is there");
    cluster.lose(unknown);
    cluster.pass(29);
    assert_eq!(cluster.membership.voters, voters);
    cluster.pass(2);
    assert!(cluster.membership.voters.len() == 3 && !cluster.membership.voters.contains(&unknown));
    // Not even the sight of it is needed.
    let mut three = Cluster::formed(3);
    three.members.remove(&2);
    three.pass(3600);
    assert_eq!(three.membership.voters, [0, 1, 2].into());
}

#[test]
fn one_that_leaves_while_a_store_is_lost_takes_only_itself_out() {
    let mut cluster = Cluster::formed(5);
    cluster.lose_store(1);
    cluster.leave(4);
    cluster.pass(2);
    assert_eq!(cluster.membership.voters.len(), 3, "of four members three vote");
    cluster.members.remove(&4);
    cluster.pass(10);
    cluster.members.get_mut(&(1 + NEXT)).unwrap().caught_up = true;
    cluster.pass(60);
    let up = cluster.membership.voters.iter().filter(|id| cluster.members[id].up).count();
    assert_eq!((cluster.membership.voters.len(), up), (3, 3));
}

#[test]
fn a_new_machine_takes_a_lost_voters_place_as_soon_as_that_is_lost_and_it_has_the_log() {
    let mut cluster = Cluster::formed(3);
    cluster.lose(2);
    cluster.pass(20);
    assert_eq!(cluster.waiting(), [(Reason::NoSpare, Some(2), None, None)]);
    cluster.members.insert(3, member(cluster.now));
    cluster.pass(1);
    assert_eq!(cluster.waiting(), [(Reason::VoterDown, Some(2), Some(3), Some(9))]);
    cluster.pass(11);
    assert_eq!(cluster.membership.voters, [0, 1, 3].into());
    // One that comes later need not wait at all.
    cluster.lose(1);
    cluster.pass(300);
    cluster.members.insert(4, member(cluster.now));
    cluster.pass(2);
    assert_eq!(cluster.membership.voters, [0, 3, 4].into());
}

#[test]
fn a_spare_that_was_away_waits_until_it_was_up_for_five_minutes_and_that_is_said() {
    let mut cluster = Cluster::formed(4);
    cluster.members.get_mut(&3).unwrap().fresh = false;
    cluster.lose(3);
    cluster.pass(60);
    cluster.bring_back(3);
    cluster.lose(2);
    cluster.pass(100);
    assert_eq!(cluster.waiting(), [(Reason::SpareUp, Some(2), Some(3), Some(200))]);
    cluster.pass(199);
    assert!(cluster.membership.voters.contains(&2));
    cluster.pass(2);
    assert_eq!(cluster.membership.voters, [0, 1, 3].into());
}

/// Of three one was lost, and its machine reinstalled: the other two would have had one vote between them.
#[test]
fn the_vote_of_one_that_was_removed_is_that_of_the_machine_that_took_its_place() {
    let mut cluster = Cluster::formed(3);
    cluster.lose(2);
    cluster.pass(5);
    cluster.leave(2);
    // Nobody has heard of it yet, and then it has to copy the log.
    cluster.members.insert(3, Member { up: false, caught_up: false, ..member(cluster.now) });
    cluster.pass(2);
    cluster.bring_back(3);
    cluster.pass(5);
    assert_eq!(cluster.membership.voters, [0, 1, 2].into());
    assert_eq!(cluster.membership.learners, [3].into());
    cluster.members.get_mut(&3).unwrap().caught_up = true;
    cluster.pass(1);
    assert_eq!(cluster.membership.voters, [0, 1, 3].into());
}

#[test]
fn a_machine_that_never_comes_is_not_waited_for() {
    let mut cluster = Cluster::formed(3);
    cluster.leave(2);
    cluster.members.insert(3, Member { up: false, caught_up: false, ..member(cluster.now) });
    cluster.pass(20);
    assert_eq!(cluster.membership.voters, [0, 1, 2].into());
    cluster.pass(20);
    assert_eq!(cluster.membership.voters, [0].into());
}

/// One of three left, so that one votes; then another machine comes in its place.
#[test]
fn a_set_that_became_smaller_by_a_leave_grows_at_once_with_the_next_new_member() {
    let mut cluster = Cluster::formed(3);
    cluster.leave(2);
    cluster.pass(2);
    cluster.members.remove(&2);
    assert_eq!((cluster.membership.voters.len(), cluster.members[&1].removals), (1, 0), "it was not down");
    cluster.pass(600);
    cluster.members.insert(3, member(cluster.now));
    cluster.pass(3);
    assert_eq!(cluster.membership.voters, [0, 1, 3].into());
}

#[test]
fn what_missing_voters_wait_for_is_said() {
    let mut cluster = Cluster::formed(5);
    (3..5).for_each(|id| cluster.lose(id));
    cluster.pass(40);
    assert_eq!(cluster.membership.voters, [0, 1, 2].into());
    assert_eq!(cluster.waiting(), [(Reason::NoSpare, None, None, None)]);
    (3..5).for_each(|id| cluster.bring_back(id));
    cluster.pass(10);
    // Ten minutes, doubled because they were replaced.
    assert_eq!(cluster.waiting(), [(Reason::SpareUp, None, Some(4), Some(1190))]);
    cluster.last_voluntary = Some(cluster.now.after(Duration::from_secs(1000)));
    assert_eq!(cluster.waiting(), [(Reason::ChangedLately, None, Some(4), Some(1600))]);
    cluster.last_voluntary = None;
    cluster.members.get_mut(&4).unwrap().caught_up = false;
    assert_eq!(cluster.waiting(), [(Reason::CopiesLog, None, Some(4), None)]);
}

#[test]
fn a_voter_that_acknowledges_nothing_is_named() {
    let mut cluster = Cluster::formed(3);
    assert_eq!(cluster.waiting(), []);
    cluster.members.get_mut(&1).unwrap().behind = true;
    assert_eq!(cluster.waiting(), [(Reason::VoterBehind, Some(1), None, None)]);
    assert!(!cluster.members[&1].is_healthy() && cluster.members[&2].is_healthy());
}

/// Whatever happens: what has an end comes at it, and what has none does not come by time alone.
#[test]
fn what_is_waited_for_comes_when_it_was_said() {
    let mut draw = 1_u64;
    let mut chance = move |of: u64| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (draw >> 33) % of
    };
    let (mut timed, mut endless) = (0, 0);
    for _ in 0..60 {
        let nodes = 3 + chance(5) as u8;
        let mut cluster = Cluster::formed(nodes);
        for _ in 0..12 {
            let id = chance(u64::from(nodes)) as u8;
            match chance(4) {
                0 | 1
                    if cluster.members[&id].up && cluster.members.values().filter(|m| !m.up).count() < 2 =>
                {
                    cluster.lose(id);
                }
                2 | 3 if !cluster.members[&id].up => cluster.bring_back(id),
                _ => {}
            }
            cluster.pass(chance(200));
            let Some(first) = cluster.waiting().into_iter().min_by_key(|it| it.3.unwrap_or(u64::MAX)) else {
                continue;
            };
            let before = cluster.changes;
            if let (reason, _, _, Some(seconds)) = first {
                cluster.pass(seconds.saturating_sub(1));
                assert_eq!(cluster.changes, before, "too early: {first:?}");
                cluster.pass(2);
                assert!(
                    cluster.changes > before,
                    "{first:?} {:?}: {:?}",
                    cluster.waiting(),
                    cluster.membership
                );
                timed += u32::from(reason != Reason::VoterDown);
            } else {
                cluster.pass(1000);
                assert_eq!(cluster.changes, before, "{first:?}");
                endless += 1;
            }
        }
    }
    assert!(timed > 20 && endless > 20, "{timed} {endless}");
}

fn sighting(alive: bool) -> Sighting<u8> {
    let (standing, seen) = (Standing::Member, Seen { alive, disk_failed: false, disowned: false });
    Sighting { standing, seen, fresh: false, removals: 0, domain: String::new() }
}

/// What the leader, node 0, sees of node 1, whose log has `matched` of its 1000 entries.
fn look(memory: &mut Memory<u8>, at: u64, seen: Sighting<u8>, last: u64, matched: u64) -> Member<u8> {
    let (sightings, matched) = ([(0, sighting(false)), (1, seen)].into(), [(1, matched)].into());
    let logs = Logs { term: 1, last, matched: &matched };
    let members = memory.look(Instant(at), 0, sightings, Some(logs));
    assert!(members[&0].up && members[&0].caught_up && !members[&0].behind, "the leader sees itself");
    members[&1].clone()
}

#[test]
fn a_leader_remembers_since_when_a_member_is_down_and_when_its_log_last_moved() {
    let mut memory = Memory::default();
    let mut look = |at, up, matched| look(&mut memory, at, sighting(up), 1000, matched);
    look(1000, true, 200);
    let member = look(2000, true, 300);
    assert_eq!((member.since, member.progressed_at, member.caught_up), (Instant(1000), Instant(2000), false));
    look(3000, false, 300);
    let member = look(4000, false, 300);
    assert_eq!((member.since, member.progressed_at), (Instant(3000), Instant(2000)));
    let member = look(5000, true, 1000 - 64);
    assert!(member.caught_up);
    assert_eq!(look(6000, true, 1000 - 64).progressed_at, Instant(6000));
}

#[test]
fn a_voter_that_answers_and_whose_disk_has_failed_is_down() {
    let mut memory = Memory::default();
    let mut look = |at, disk_failed| {
        look(
            &mut memory,
            at,
            Sighting { seen: Seen { alive: true, disk_failed, disowned: false }, ..sighting(true) },
            1000,
            300,
        )
    };
    assert!(look(1000, false).up);
    let member = look(2000, true);
    assert_eq!((member.up, member.since), (false, Instant(2000)));
}

#[test]
fn a_voter_whose_node_has_another_store_is_down_whatever_gossip_says() {
    let mut memory = Memory::default();
    let lost = Sighting { standing: Standing::Lost { successor: 9 }, ..sighting(true) };
    assert!(!look(&mut memory, 1000, lost, 1000, 300).up);
}

/// Heartbeats pass, appends do not: gossip calls it alive, and it has nothing of what is written.
#[test]
fn a_voter_that_has_not_acknowledged_what_was_written_for_a_while_is_behind() {
    let mut memory = Memory::default();
    // Ten entries a second, and each of them acknowledged within the second.
    let of = |second: u64| 1000 + 10 * second;
    for second in 0..60 {
        let member = look(&mut memory, 1000 * second, sighting(true), of(second), of(second) - 8);
        assert!(!member.behind && member.caught_up, "at {second}");
    }
    let stuck = of(59) - 8;
    for second in 60..110 {
        let member = look(&mut memory, 1000 * second, sighting(true), of(second), stuck);
        assert_eq!(member.behind, second > 63, "at {second}");
    }
    assert!(!look(&mut memory, 110_000, sighting(true), of(110), of(110)).behind, "it has all again");
    // Where nothing is written, nothing can be missing.
    assert!(!look(&mut memory, 900_000, sighting(true), of(110), of(110)).behind);
}

/// On a long way hundreds of entries are always under way.
#[test]
fn a_learner_that_is_a_moment_behind_has_caught_up() {
    let mut memory = Memory::default();
    let mut caught_up = false;
    for quarter in 0..8 {
        let last = 10_000 + 125 * quarter;
        caught_up = look(&mut memory, 250 * quarter, sighting(true), last, last - 100).caught_up;
    }
    assert!(caught_up);
    // The same distance, and it does not come nearer.
    for quarter in 8..16 {
        let last = 10_000 + 125 * quarter;
        caught_up = look(&mut memory, 250 * quarter, sighting(true), last, 10_000 + 125 * 8 - 100).caught_up;
    }
    assert!(!caught_up);
}

#[test]
fn a_new_leader_knows_since_when_the_others_are_up_and_nothing_of_their_logs() {
    let mut memory = Memory::default();
    let sightings = || BTreeMap::from([(0, sighting(true)), (1, sighting(true))]);
    memory.look(Instant(1000), 0, sightings(), None);
    let matched = [(1, 0)].into();
    let logs = |term| Some(Logs { term, last: 1000, matched: &matched });
    let member = memory.look(Instant(400_000), 0, sightings(), logs(3))[&1].clone();
    assert_eq!((member.since, member.progressed_at), (Instant(1000), Instant(400_000)));
    assert!(!member.caught_up && !member.behind);
    memory.changed_voluntarily(Instant(400_000));
    assert!(memory.last_voluntary().is_some());
    let member = memory.look(Instant(500_000), 0, sightings(), logs(4))[&1].clone();
    assert_eq!((member.progressed_at, member.behind), (Instant(500_000), false), "another office");
    assert_eq!(memory.last_voluntary(), None);
}

#[test]
fn each_store_is_seen_as_the_records_say_whose_it_is() {
    let record = |store, leaving| Record { store, fresh: true, removals: 1, leaving, domain: String::new() };
    let membership = Membership { voters: [0, 1, 2, 3].into(), learners: [4].into(), joint: false };
    // Node 1 has another store now, 2 leaves, 3 and 4 are unknown, 5 is a member without a log, 6 was removed.
    let records = [(0, record(0, false)), (1, record(1 + NEXT, false)), (2, record(2, true))];
    let records = records.into_iter().chain([(5, record(5, false)), (6, record(6, true))]).collect();
    let node_of = |id: &u8| id % NEXT;
    let seen = |id: &u8| Seen { alive: *id != 3, disk_failed: false, disowned: false };
    let found = sightings(&membership, &records, node_of, seen);
    let standings: Vec<_> = found.iter().map(|(id, sighting)| (*id, sighting.standing)).collect();
    let lost = Standing::Lost { successor: 1 + NEXT };
    assert_eq!(
        standings,
        [
            (0, Standing::Member),
            (1, lost),
            (2, Standing::Leaving),
            (3, Standing::Unknown),
            (4, Standing::Unknown),
            (5, Standing::Member),
            (1 + NEXT, Standing::Member),
        ]
    );
    assert!(!found[&3].seen.alive && found[&4].seen.alive);
}

#[test]
fn a_cluster_survives_as_many_losses_as_leave_a_majority_of_every_set() {
    let survives = |sets: &[&[u8]], down: &[u8]| {
        let sets: Vec<BTreeSet<u8>> = sets.iter().map(|set| set.iter().copied().collect()).collect();
        failures_survived(&sets, |id| !down.contains(id))
    };
    assert_eq!(survives(&[&[1, 2, 3]], &[]), 1);
    assert_eq!(survives(&[&[1, 2, 3]], &[2]), 0);
    assert_eq!(survives(&[&[1, 2, 3]], &[2, 3]), 0);
    assert_eq!(survives(&[&[1, 2, 3, 4, 5]], &[5]), 1);
    // On the way from five voters to three, and from one to three.
    assert_eq!(survives(&[&[1, 2, 3, 4, 5], &[1, 2, 3]], &[]), 1);
    assert_eq!(survives(&[&[1], &[1, 2, 3]], &[]), 0);
    assert_eq!(survives(&[], &[]), 0);
}
