//! What a node does with the authorities, one case after another. Nodes are numbers.

use super::*;

const NOW: u64 = 1_760_000_000 * SECOND;

fn fingerprint(name: &str) -> Fingerprint {
    Fingerprint(name.into())
}

/// An edition that was made `days` ago.
fn edition(name: &str, days: u64) -> Edition {
    let from_ms = NOW - days * DAY;
    let span = |life: u64| Span { from_ms, until_ms: from_ms + life * DAY };
    Edition { fingerprint: fingerprint(name), issuing: span(90), roots: span(3652) }
}

fn made(name: &str) -> Made {
    Made {
        fingerprint: fingerprint(name),
        members: format!("m-{name}"),
        clients: format!("c-{name}"),
        cross: None,
    }
}

fn holder(names: &[&str]) -> Holder {
    Holder { holds: names.iter().map(|name| fingerprint(name)).collect() }
}

/// A sight with everything of its own, to be changed by a test.
#[derive(Clone)]
struct Scene {
    me: u8,
    leads: bool,
    now_ms: Option<u64>,
    voters: BTreeSet<u8>,
    joint: bool,
    staying: BTreeSet<u8>,
    members: BTreeSet<u8>,
    alive: BTreeSet<u8>,
    trust: Option<Trust>,
    holders: BTreeMap<u8, Holder>,
    kept: Kept,
}

impl Scene {
    /// Three voters of four members, all hold edition "a", made ten days ago; this is voter 1, which leads.
    fn calm() -> Scene {
        Scene {
            me: 1,
            leads: true,
            now_ms: Some(NOW),
            voters: [1, 2, 3].into(),
            joint: false,
            staying: [1, 2, 3, 4].into(),
            members: [1, 2, 3, 4].into(),
            alive: [1, 2, 3, 4].into(),
            trust: Some(Trust::founded(made("a"), NOW - 10 * DAY)),
            holders: [1, 2, 3].map(|node| (node, holder(&["a"]))).into(),
            kept: Kept { current: Some(edition("a", 10)), next: None },
        }
    }

    /// The same as node 4 sees it, which does not vote and keeps nothing.
    fn of_another() -> Scene {
        Scene { me: 4, leads: false, kept: Kept::default(), ..Scene::calm() }
    }

    fn trust(&mut self) -> &mut Trust {
        self.trust.as_mut().expect("there is a record")
    }

    fn plan(&self) -> Vec<Act<u8>> {
        plan(&Sight {
            me: self.me,
            leads: self.leads,
            now_ms: self.now_ms,
            voters: &self.voters,
            joint: self.joint,
            keepers: &keepers(&self.voters, &self.staying),
            members: &self.members,
            alive: &self.alive,
            trust: self.trust.as_ref(),
            holders: &self.holders,
            kept: &self.kept,
        })
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Scene), expected: &[Act<u8>]) {
    let mut scene = Scene::calm();
    change(&mut scene);
    assert_eq!(scene.plan(), expected);
}

#[track_caller]
fn check_another(change: impl FnOnce(&mut Scene), expected: &[Act<u8>]) {
    let mut scene = Scene::of_another();
    change(&mut scene);
    assert_eq!(scene.plan(), expected);
}

fn rotation(overlap_ms: Option<u64>) -> Change {
    Change::Rotation(Wish { since_ms: NOW, overlap_ms })
}

#[test]
fn a_calm_cluster_does_nothing() {
    check(|_| {}, &[]);
    check_another(|_| {}, &[]);
}

#[test]
fn a_leader_says_first_what_is_in_force() {
    check(|scene| (scene.trust, scene.holders) = (None, [].into()), &[Act::Found]);
    check(|scene| (scene.trust, scene.leads) = (None, false), &[]);
}

#[test]
fn a_new_voter_takes_the_authorities_from_who_says_that_it_has_them_the_living_first() {
    let fetch = |from: &[u8]| Act::Fetch { edition: Some(fingerprint("a")), from: from.into() };
    let new = |scene: &mut Scene| {
        scene.voters.insert(4);
    };
    check_another(new, &[fetch(&[1, 2, 3])]);
    let one_is_down = |scene: &mut Scene| {
        new(scene);
        scene.alive.remove(&1);
    };
    check_another(one_is_down, &[fetch(&[2, 3, 1])]);
    let before_there_are_records = |scene: &mut Scene| {
        new(scene);
        (scene.trust, scene.holders) = (None, [].into());
    };
    check_another(before_there_are_records, &[Act::Fetch { edition: None, from: vec![1, 2, 3] }]);
}

#[test]
fn a_voter_says_what_it_keeps_once_it_keeps_it() {
    check(|scene| drop(scene.holders.remove(&1)), &[Act::Announce(holder(&["a"]))]);
    let lost = |scene: &mut Scene| scene.kept = Kept::default();
    check(lost, &[Act::Fetch { edition: Some(fingerprint("a")), from: vec![2, 3] }]);
    let all_lost = |scene: &mut Scene| {
        lost(scene);
        scene.holders.retain(|node, _| *node == 1);
    };
    check(all_lost, &[Act::Announce(Holder::default())]);
}

#[test]
fn who_votes_no_more_drops_its_copy_while_a_voter_that_is_there_keeps_one() {
    let demoted = |scene: &mut Scene| {
        scene.kept.current = Some(edition("a", 10));
        scene.holders.insert(4, holder(&["a"]));
    };
    check_another(demoted, &[Act::Withdraw { witness: 1 }]);
    let before = |scene: &mut Scene| {
        demoted(scene);
        scene.holders.remove(&4);
    };
    check_another(before, &[Act::Withdraw { witness: 1 }]);
    let during = |scene: &mut Scene| {
        demoted(scene);
        scene.joint = true;
    };
    check_another(during, &[]);
}

#[test]
fn the_last_copy_that_can_be_reached_stays_where_it_is() {
    let last = |scene: &mut Scene| {
        scene.kept.current = Some(edition("a", 10));
        scene.holders = [(4, holder(&["a"]))].into();
    };
    check_another(last, &[]);
    let the_others_are_down = |scene: &mut Scene| {
        last(scene);
        scene.holders = Scene::calm().holders;
        scene.alive = [4].into();
    };
    check_another(the_others_are_down, &[]);
    let another_that_votes_no_more = |scene: &mut Scene| {
        last(scene);
        scene.holders.insert(5, holder(&["a"]));
    };
    check_another(another_that_votes_no_more, &[]);
    let an_older_one = |scene: &mut Scene| {
        last(scene);
        scene.holders.insert(1, holder(&["older"]));
    };
    check_another(an_older_one, &[]);
}

#[test]
fn the_issuing_certificate_is_renewed_at_half_of_its_life_by_the_leader() {
    let aged = |days| move |scene: &mut Scene| scene.kept.current = Some(edition("a", days));
    check(aged(44), &[]);
    check(aged(45), &[Act::Make(Change::Renewal)]);
    check(aged(400), &[Act::Make(Change::Renewal)]);
    let follower = |scene: &mut Scene| {
        aged(45)(scene);
        scene.leads = false;
    };
    check(follower, &[]);
    let nobody_knows_the_time = |scene: &mut Scene| {
        aged(45)(scene);
        scene.now_ms = None;
    };
    check(nobody_knows_the_time, &[]);
}

#[test]
fn what_was_made_by_a_clock_that_was_ahead_is_made_anew() {
    let ten_years = 3652 * DAY;
    let ahead = |scene: &mut Scene| {
        let mut edition = edition("a", 0);
        edition.issuing.from_ms += ten_years;
        edition.issuing.until_ms += ten_years;
        scene.kept.current = Some(edition);
    };
    check(ahead, &[Act::Make(Change::Renewal)]);
    let roots_ahead = |scene: &mut Scene| {
        let mut edition = edition("a", 0);
        edition.roots.from_ms += ten_years;
        scene.kept.current = Some(edition);
    };
    check(roots_ahead, &[Act::Make(Change::Renewal)]);
}

#[test]
fn a_leader_without_the_edition_in_force_renews_nothing() {
    let fetches = Act::Fetch { edition: Some(fingerprint("a")), from: vec![2, 3] };
    check(|scene| scene.kept.current = Some(edition("older", 90)), &[fetches]);
}

/// The next edition on its way, made a second ago by voter 1.
fn with_next(change: Change) -> impl Fn(&mut Scene) {
    move |scene| {
        let trust = scene.trust().with_next(made("b"), change, NOW - SECOND);
        scene.trust = Some(trust);
        scene.kept.next = Some(edition("b", 0));
        scene.holders.insert(1, holder(&["a", "b"]));
    }
}

#[test]
fn the_next_edition_goes_to_all_voters_before_it_is_in_force() {
    let next = with_next(Change::Renewal);
    check(&next, &[]);
    let as_two = |scene: &mut Scene| {
        next(scene);
        (scene.me, scene.leads, scene.kept.next) = (2, false, None);
    };
    check(as_two, &[Act::FetchNext { edition: fingerprint("b"), from: vec![1] }]);
    let two_has_it = |scene: &mut Scene| {
        as_two(scene);
        scene.kept.next = Some(edition("b", 0));
    };
    check(two_has_it, &[Act::Announce(holder(&["a", "b"]))]);
}

#[track_caller]
fn in_force(change: impl FnOnce(&mut Scene)) -> (Trust, bool) {
    let mut scene = Scene::calm();
    change(&mut scene);
    match &*scene.plan() {
        [Act::Write { trust, tokens_end }] => (trust.clone(), *tokens_end),
        other => panic!("{other:?}"),
    }
}

fn held_by(scene: &mut Scene, nodes: &[u8]) {
    for node in nodes {
        scene.holders.insert(*node, holder(&["a", "b"]));
    }
}

#[test]
fn a_renewed_edition_is_in_force_when_all_voters_that_are_there_hold_it() {
    let next = with_next(Change::Renewal);
    let two = |scene: &mut Scene| {
        next(scene);
        held_by(scene, &[2]);
    };
    check(two, &[]);
    let all = |scene: &mut Scene| {
        next(scene);
        held_by(scene, &[2, 3]);
    };
    let (trust, tokens_end) = in_force(all);
    assert_eq!((trust.number, &*trust.current.0, tokens_end), (2, "b", false));
    let anchor =
        Anchor { number: 1, members: "m-b".into(), clients: "c-b".into(), cross: None, until_ms: None };
    assert_eq!((trust.anchors, trust.next), (vec![anchor], None));

    let two_and_three_is_down = |scene: &mut Scene| {
        two(scene);
        scene.alive.remove(&3);
    };
    assert_eq!(in_force(two_and_three_is_down).0.number, 2);
    let the_others_are_down = |scene: &mut Scene| {
        next(scene);
        scene.alive = [1].into();
    };
    check(the_others_are_down, &[]);
    let half_of_a_change = |scene: &mut Scene| {
        all(scene);
        scene.joint = true;
    };
    check(half_of_a_change, &[]);
}

#[test]
fn a_voter_that_does_not_take_the_next_edition_is_waited_for_a_minute() {
    let next = with_next(Change::Renewal);
    let waited = |ms: u64| {
        let next = &next;
        move |scene: &mut Scene| {
            next(scene);
            held_by(scene, &[2]);
            scene.now_ms = Some(NOW - SECOND + ms);
        }
    };
    check(waited(HAND_OVER_MAX - 1), &[]);
    assert_eq!(in_force(waited(HAND_OVER_MAX)).0.number, 2);
    let made_by_a_clock_ahead = |scene: &mut Scene| {
        next(scene);
        held_by(scene, &[2]);
        scene.now_ms = Some(NOW - 365 * DAY);
    };
    assert_eq!(in_force(made_by_a_clock_ahead).0.number, 2);
}

#[test]
fn an_edition_that_was_lost_with_its_maker_is_given_up_and_its_remains_with_it() {
    let next = with_next(Change::Renewal);
    let as_two = |ms: u64| {
        let next = &next;
        move |scene: &mut Scene| {
            next(scene);
            (scene.me, scene.kept.next) = (2, None);
            scene.alive.remove(&1);
            scene.now_ms = Some(NOW - SECOND + ms);
        }
    };
    let fetch = Act::FetchNext { edition: fingerprint("b"), from: vec![1] };
    check(as_two(0), std::slice::from_ref(&fetch));
    let given_up = Act::Write { trust: Trust::founded(made("a"), NOW - 10 * DAY), tokens_end: false };
    check(as_two(HAND_OVER_MAX), &[fetch, given_up]);
    let one_is_back = |scene: &mut Scene| {
        scene.kept.next = Some(edition("b", 0));
        scene.holders.insert(1, holder(&["a", "b"]));
        scene.leads = false;
    };
    check(one_is_back, &[Act::Discard]);
}

#[test]
fn what_has_come_into_force_is_kept_as_that() {
    let promoted = |scene: &mut Scene| {
        scene.trust = Some(Trust::founded(made("b"), NOW));
        scene.kept.next = Some(edition("b", 0));
        held_by(scene, &[1, 2, 3]);
    };
    check(promoted, &[Act::Promote]);
    let after = |scene: &mut Scene| {
        promoted(scene);
        scene.kept = Kept { current: Some(edition("b", 0)), next: None };
    };
    check(after, &[Act::Announce(holder(&["b"]))]);
}

#[test]
fn a_wish_is_granted_once_and_old_roots_count_as_long_as_was_wished() {
    let wish = Wish { since_ms: NOW, overlap_ms: Some(OVERLAP) };
    let wished = |scene: &mut Scene| *scene.trust() = scene.trust().with_wish(wish).expect("granted");
    check(wished, &[Act::Make(rotation(Some(OVERLAP)))]);
    let all = |scene: &mut Scene| {
        wished(scene);
        with_next(rotation(Some(OVERLAP)))(scene);
        held_by(scene, &[2, 3]);
    };
    let (trust, tokens_end) = in_force(all);
    assert!(tokens_end && trust.wish.is_none());
    let known: Vec<_> =
        trust.anchors.iter().map(|anchor| (anchor.number, &*anchor.members, anchor.until_ms)).collect();
    assert_eq!(known, [(2, "m-b", None), (1, "m-a", Some(NOW + OVERLAP))]);
    assert!(trust.counts(1) && trust.counts(2) && trust.clients_number() == 2);
    let again = trust.with_wish(Wish { since_ms: NOW, overlap_ms: Some(DAY) });
    assert_eq!(again, Err(NotRotated::Overlap { until_ms: NOW + OVERLAP }));

    assert_eq!(trust.without_ended(NOW + OVERLAP - 1), None);
    let after = trust.without_ended(NOW + OVERLAP).expect("something has ended");
    assert!(after.counts(2) && !after.counts(1) && after.anchors.len() == 1);
}

#[test]
fn a_wish_for_now_leaves_no_old_root() {
    let all = |scene: &mut Scene| {
        *scene.trust() = scene.trust().with_wish(Wish { since_ms: NOW, overlap_ms: None }).expect("granted");
        with_next(rotation(None))(scene);
        held_by(scene, &[2, 3]);
    };
    let (trust, _) = in_force(all);
    assert_eq!(trust.roots().collect::<Vec<_>>(), [("m-b", "c-b")]);
    assert!(!trust.counts(1));
}

/// What is under way when a machine is stolen was handed to it, too.
#[test]
fn what_is_made_because_of_a_theft_is_made_after_it() {
    let now = Wish { since_ms: NOW, overlap_ms: None };
    for change in [Change::Renewal, rotation(None), rotation(Some(DAY)), Change::Rotation(now)] {
        let mut scene = Scene::calm();
        with_next(change)(&mut scene);
        let trust = scene.trust().stolen(NOW);
        assert!(trust.is_ending());
        let next = trust.next.clone().expect("it is under way");
        let after = trust.with_next_in_force(&next, NOW);
        assert!(after.wish.is_some_and(|wish| wish.overlap_ms.is_none()), "{change:?}: {after:?}");
        let wish = after.wish.expect("it is wished");
        let made = after.with_next(made("c"), Change::Rotation(wish), NOW);
        let end = made.with_next_in_force(made.next.as_ref().expect("made"), NOW);
        assert!(end.wish.is_none() && end.anchors.len() == 1 && !end.is_ending(), "{end:?}");
    }
}

#[test]
fn tokens_end_with_the_wish_where_all_that_was_made_is_to_end_at_once() {
    let calm = Scene::calm().trust.expect("there is a record");
    let wished = |overlap_ms| calm.with_wish(Wish { since_ms: NOW, overlap_ms }).expect("granted");
    assert!(!calm.is_ending() && !wished(Some(DAY)).is_ending() && wished(None).is_ending());
    let under_way = wished(None).with_next(made("b"), rotation(None), NOW);
    assert!(Trust { wish: None, ..under_way }.is_ending());
}

#[test]
fn the_roots_of_the_next_edition_are_trusted_before_anybody_issues_by_it() {
    let mut scene = Scene::calm();
    with_next(rotation(None))(&mut scene);
    let trust = scene.trust();
    assert_eq!(trust.roots().collect::<Vec<_>>(), [("m-a", "c-a"), ("m-b", "c-b")]);
    let by_next = Kept { current: Some(edition("b", 0)), next: None };
    assert!(!by_next.may_issue(Some(trust)));
    assert!(scene.kept.may_issue(scene.trust.as_ref()) && by_next.may_issue(None));
}

#[test]
fn one_rotation_at_a_time_unless_all_is_to_end_now() {
    let trust = Trust::founded(made("a"), NOW);
    let wish = |overlap_ms| Wish { since_ms: NOW, overlap_ms };
    let wished = trust.with_wish(wish(Some(DAY))).expect("granted");
    assert_eq!(wished.with_wish(wish(Some(DAY))), Err(NotRotated::UnderWay));
    assert_eq!(wished.with_wish(wish(None)).expect("granted").wish, Some(wish(None)));
    assert_eq!(trust.with_wish(wish(Some(OVERLAP_MAX + 1))), Err(NotRotated::TooLong));
    // The wish that came while another was granted is granted next.
    let on_its_way = wished.with_next(made("b"), rotation(Some(DAY)), NOW).with_wish(wish(None)).unwrap();
    let next = on_its_way.next.clone().unwrap();
    assert_eq!(on_its_way.with_next_in_force(&next, NOW).wish, Some(wish(None)));
}

#[test]
fn authorities_that_nobody_keeps_any_more_are_made_without_them_on_a_wish() {
    let lost = |scene: &mut Scene| {
        (scene.kept, scene.holders) = (Kept::default(), [].into());
    };
    check(lost, &[]);
    let wished = |scene: &mut Scene| {
        lost(scene);
        scene.trust().wish = Some(Wish { since_ms: NOW, overlap_ms: None });
    };
    check(wished, &[Act::Make(rotation(None))]);
    let a_holder_is_down = |scene: &mut Scene| {
        wished(scene);
        scene.holders.insert(3, holder(&["a"]));
        scene.alive.remove(&3);
    };
    check(a_holder_is_down, &[Act::Fetch { edition: Some(fingerprint("a")), from: vec![3] }]);
}

#[test]
fn records_of_nodes_that_are_no_members_go() {
    let gone = |scene: &mut Scene| {
        scene.members.remove(&3);
    };
    check(gone, &[Act::Forget(vec![3])]);
}

#[test]
fn an_end_that_a_wrong_clock_wrote_is_set_right() {
    let mut trust = Trust::founded(made("a"), NOW);
    let old = Anchor { until_ms: Some(NOW + 3652 * DAY), ..trust.anchors[0].clone() };
    trust.anchors.push(old);
    let right = trust.without_ended(NOW).expect("it was wrong");
    assert_eq!(right.anchors[1].until_ms, Some(NOW + OVERLAP));
}

/// They were lost with the only voter of two when it left before the other one had asked.
#[test]
fn those_who_stay_take_them_over_where_no_voter_stays() {
    let fetch = Act::Fetch { edition: Some(fingerprint("a")), from: vec![1] };
    let leaves = |scene: &mut Scene| {
        (scene.voters, scene.staying) = ([1].into(), [4].into());
        scene.holders = [(1, holder(&["a"]))].into();
    };
    check_another(leaves, &[fetch]);
    check(leaves, &[]);
    let has_them = |scene: &mut Scene| {
        leaves(scene);
        scene.kept.current = Some(edition("a", 10));
        scene.holders.insert(4, holder(&["a"]));
    };
    check_another(has_them, &[]);
    let stays_after_all = |scene: &mut Scene| {
        has_them(scene);
        scene.staying = [1, 4].into();
    };
    check_another(stays_after_all, &[Act::Withdraw { witness: 1 }]);
}

#[test]
fn the_record_of_an_older_build_is_read() {
    let old =
        r#"{"number":1,"current":"a","since_ms":5,"anchors":[{"number":1,"members":"m-a","clients":"c-a"}]}"#;
    let read: Trust = serde_json::from_str(old).expect("a record");
    assert_eq!(read, Trust::founded(made("a"), 5));
    assert_eq!(serde_json::to_string(&read).expect("plain data"), old);
}
