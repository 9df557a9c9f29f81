use super::*;

/// A cluster in virtual time: node 0.. of which some are up; the lowest voter that is up leads.
struct Cluster {
    now: Instant,
    members: BTreeMap<u8, Member>,
    membership: Membership<u8>,
    last_voluntary: Option<Instant>,
    changes: usize,
}

fn member(now: Instant) -> Member {
    Member {
        up: true,
        since: now,
        progressed_at: now,
        caught_up: true,
        fresh: true,
        removals: 0,
        leaving: false,
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
            Some(Change::Voters { voters, voluntary }) => {
                assert!(!voters.len().is_multiple_of(2), "{voters:?}");
                for gone in self.membership.voters.difference(&voters) {
                    if let Some(member) = self.members.get_mut(gone) {
                        member.removals += 1;
                        member.fresh = false;
                    }
                }
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
    assert_eq!(change, Some(Change::Voters { voters, voluntary: false }));
}

#[test]
fn a_node_that_leaves_gives_its_vote_to_a_spare_or_the_set_becomes_smaller() {
    let mut four = Cluster::formed(4);
    let leaver = *four.membership.voters.last().unwrap();
    four.members.get_mut(&leaver).unwrap().leaving = true;
    four.pass(2);
    assert_eq!(four.membership.voters.len(), 3);
    assert!(!four.membership.voters.contains(&leaver));

    let mut three = Cluster::formed(3);
    three.members.get_mut(&2).unwrap().leaving = true;
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

fn sighting(alive: bool, matched: u64) -> Sighting {
    let (disk_failed, fresh, leaving) = (false, false, false);
    Sighting { alive, disk_failed, matched, fresh, removals: 0, leaving, domain: String::new() }
}

#[test]
fn a_leader_remembers_since_when_a_member_is_down_and_when_its_log_last_moved() {
    let mut memory = Memory::default();
    let mut look = |at: u64, up, matched| {
        let sightings = [(0, sighting(false, 0)), (1, sighting(up, matched))];
        let members = memory.look(Instant(at), 0, 1000, sightings);
        assert!(members[&0].up && members[&0].caught_up, "the leader sees itself");
        members[&1].clone()
    };
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
    let mut look = |at: u64, disk_failed| {
        let voter = Sighting { disk_failed, ..sighting(true, 300) };
        memory.look(Instant(at), 0, 1000, [(0, sighting(true, 0)), (1, voter)])[&1].clone()
    };
    assert!(look(1000, false).up);
    let member = look(2000, true);
    assert_eq!((member.up, member.since), (false, Instant(2000)));
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
