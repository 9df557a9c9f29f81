//! Logs of real programs: whole, followed, across rotation and attempts.

use skein_runtime::{Engine, LogOptions};

use crate::world::World;

crate::tests![
    both_outputs_are_kept_with_their_times,
    a_follower_sees_every_line_across_rotation_and_ends_with_the_container,
    the_log_of_the_attempt_before_is_kept_and_older_ones_go,
];

fn both_outputs_are_kept_with_their_times(world: &World) {
    let pod = world.pod("a");
    let spec = world.container(&pod, "main", &["print", "out", ";", "complain", "err", ";", "print", "end"]);
    let id = spec.id.clone();
    let text = world.output(spec);
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["end", "err", "out"]);
    let stamped =
        world.log(&id, LogOptions { timestamps: true, tail_lines: Some(1), ..LogOptions::default() });
    let (stamp, _) = stamped.split_once(' ').expect("a stamp");
    assert!(stamp.len() == "2026-01-02T03:04:05.000000006Z".len() && stamp.ends_with('Z'), "{stamp}");
    let file = world.dir.path().join("logs/default_pod-a_a/main/0.log");
    assert!(std::fs::read_to_string(file).expect("a log").contains(" stderr F err\n"));
}

fn a_follower_sees_every_line_across_rotation_and_ends_with_the_container(world: &World) {
    const LINES: usize = 150_000; // 18 MB with stamps: at least one rotation.
    let pod = world.pod("a");
    let spec = world.container(&pod, "main", &["print-many", &LINES.to_string()]);
    let id = spec.id.clone();
    world.start(spec);
    let text = world.log(&id, LogOptions { follow: true, ..LogOptions::default() });
    let mut expected = 0;
    for line in text.lines() {
        assert!(line.starts_with(&format!("line {expected:06} ")), "{line} is not number {expected}");
        expected += 1;
    }
    assert_eq!(expected, LINES);
    assert!(world.dir.path().join("logs/default_pod-a_a/main/0.log.1").exists());
    let tail = world.log(&id, LogOptions { tail_lines: Some(2), ..LogOptions::default() });
    assert!(tail.starts_with("line 149998 ") && tail.lines().count() == 2, "{tail}");
}

fn the_log_of_the_attempt_before_is_kept_and_older_ones_go(world: &World) {
    let pod = world.pod("a");
    let mut spec = world.container(&pod, "main", &[]);
    for attempt in 0..3 {
        spec.id.attempt = attempt;
        spec.args = Some(vec!["print".to_owned(), format!("attempt {attempt}")]);
        world.output(spec.clone());
        world.run(world.engine().remove(&spec.id)).expect("a removal");
    }
    assert_eq!(world.log(&spec.id, LogOptions::default()), "attempt 2\n");
    assert_eq!(world.log(&spec.id, LogOptions { previous: true, ..LogOptions::default() }), "attempt 1\n");
    assert!(!world.dir.path().join("logs/default_pod-a_a/main/0.log").exists());
}
