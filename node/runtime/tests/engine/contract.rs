//! What every engine promises, checked on each.

use std::time::{Duration, SystemTime};

use libtest_mimic::Trial;
use skein_runtime::{
    Behaviour, ContainerId, ContainerSpec, ContainerState, End, Engine, Error, Fake, LogOptions, PodUid,
    Volume,
};

use crate::world::{container, sandbox, state};
use crate::{Test, program};

/// A promise, and how it is checked.
type Promise = (&'static str, fn(&dyn Engine, &Specs));

/// What a promise needs: containers whose programs behave in a certain way on this engine.
pub(crate) struct Specs {
    dir: std::path::PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Specs {
    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { tokio::time::timeout(crate::world::PATIENCE, work).await })
            .expect("in time")
    }

    fn pod(&self, engine: &dyn Engine) -> PodUid {
        self.run(engine.create_sandbox(sandbox("contract"))).expect("a sandbox").spec.pod
    }

    fn spec(&self, pod: &PodUid, args: &[&str]) -> ContainerSpec {
        container(&self.dir, pod, "main", args)
    }

    fn start(&self, engine: &dyn Engine, spec: ContainerSpec) -> ContainerId {
        let id = spec.id.clone();
        self.run(engine.start(spec)).expect("a start");
        id
    }

    fn end(&self, engine: &dyn Engine, id: &ContainerId) -> End {
        let mut exits = engine.exits();
        self.run(async {
            loop {
                let (ended, exit) = exits.next().await.expect("the engine lives");
                if ended == *id {
                    return exit.end;
                }
            }
        })
    }
}

macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        const PROMISES: &[Promise] = &[$((stringify!($name), $name)),*];
        const ON_THIS_MACHINE: &[Test] = &[$(Test {
            name: concat!("machine::", stringify!($name)),
            run: |world| $name(world.engine(), &specs(world.dir.path())),
        }),*];
    };
}

promises![
    an_exit_code_is_reported_and_listed,
    an_attempt_is_started_once_ever,
    a_container_that_runs_cannot_be_removed,
    a_polite_stop_ends_a_program_that_listens,
    a_deaf_program_is_killed_after_its_grace,
    an_end_reaches_subscribers_who_come_late,
    a_program_that_cannot_be_executed_leaves_nothing,
    a_running_container_takes_one_more_program_and_an_ended_one_none,
    removing_a_pod_takes_all_of_it_along,
    what_is_not_there_is_named,
    a_sandbox_made_twice_is_one,
];

pub(crate) fn trials_on_the_fake() -> Vec<Trial> {
    let trial = |(name, promise): &Promise| {
        let promise = *promise;
        Trial::test(format!("fake::{name}"), move || {
            let fake = Fake::new(SystemTime::now, behave).with_commands(|_, words| run(words));
            promise(&fake, &specs(std::path::Path::new("/fake")));
            Ok(())
        })
    };
    PROMISES.iter().map(trial).collect()
}

pub(crate) const fn on_this_machine() -> &'static [Test] {
    ON_THIS_MACHINE
}

fn specs(dir: &std::path::Path) -> Specs {
    Specs { dir: dir.to_owned(), runtime: tokio::runtime::Runtime::new().expect("a runtime") }
}

/// The same for programs that are run inside of containers.
fn run(words: &[String]) -> i32 {
    match words {
        [path, verb, code] if path == program::PATH && verb == "exit" => code.parse().expect("a number"),
        _ => 127,
    }
}

/// The fake's programs do what the real one would do.
fn behave(spec: &ContainerSpec) -> Behaviour {
    if spec.command.is_some() {
        return Behaviour::FailToStart("execute: no such file".to_owned());
    }
    match spec.args.as_deref().unwrap_or_default() {
        [verb, code] if verb == "exit" => Behaviour::Exit(code.parse().expect("a number")),
        [verb] if verb == "wait-deaf" => Behaviour::IgnoreStop,
        _ => Behaviour::Run,
    }
}

/// Until the real program listens, it would be deaf.
fn wait_until_it_listens(engine: &dyn Engine, specs: &Specs, id: &ContainerId) {
    if specs.dir.starts_with("/fake") {
        return;
    }
    specs.run(async {
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut log = engine.logs(&id.pod, &id.name, options).await.expect("a log");
        log.next().await.expect("a line").expect("readable");
    });
}

fn an_exit_code_is_reported_and_listed(engine: &dyn Engine, specs: &Specs) {
    let pod = specs.pod(engine);
    let id = specs.start(engine, specs.spec(&pod, &["exit", "7"]));
    let expect = End::Exited { code: 7, signal: None, oom: false };
    assert_eq!(specs.end(engine, &id), expect);
    match specs.run(state(engine, &id)) {
        Some(ContainerState::Ended(exit)) => {
            assert_eq!(exit.end, expect);
            assert!(exit.started_at.is_some_and(|started| started <= exit.finished_at));
        }
        other => panic!("{other:?}"),
    }
    let sandboxes = specs.run(engine.list()).expect("a list");
    assert_eq!(sandboxes[0].spec.labels["color"], "green");
    assert_eq!(sandboxes[0].containers[0].labels["shape"], "round");
}

fn an_attempt_is_started_once_ever(engine: &dyn Engine, specs: &Specs) {
    let pod = specs.pod(engine);
    let spec = specs.spec(&pod, &["exit", "0"]);
    let id = specs.start(engine, spec.clone());
    assert!(matches!(specs.run(engine.start(spec.clone())), Err(Error::Exists(_))));
    specs.end(engine, &id);
    assert!(matches!(specs.run(engine.start(spec.clone())), Err(Error::Exists(_))));
    specs.run(engine.remove(&id)).expect("a removal");
    assert!(matches!(specs.run(engine.start(spec.clone())), Err(Error::Exists(_))));
    let mut next = spec;
    next.id.attempt = 1;
    specs.start(engine, next);
}

fn a_container_that_runs_cannot_be_removed(engine: &dyn Engine, specs: &Specs) {
    let pod = specs.pod(engine);
    let id = specs.start(engine, specs.spec(&pod, &["wait"]));
    assert!(matches!(specs.run(engine.remove(&id)), Err(Error::StillRunning(_))));
    assert!(matches!(specs.run(state(engine, &id)), Some(ContainerState::Running(_))));
}

fn a_polite_stop_ends_a_program_that_listens(engine: &dyn Engine, specs: &Specs) {
    let pod = specs.pod(engine);
    let id = specs.start(engine, specs.spec(&pod, &["wait"]));
    wait_until_it_listens(engine, specs, &id);
    let exit = specs.run(engine.stop(&id, Duration::from_secs(50))).expect("a stop");
    // The real program catches the signal and ends well; the fake's dies of it.
    assert!(matches!(exit.end, End::Exited { code: 0 | 143, .. }), "{exit:?}");
    assert_eq!(specs.run(engine.stop(&id, Duration::ZERO)).expect("the same end"), exit);
}

fn a_deaf_program_is_killed_after_its_grace(engine: &dyn Engine, specs: &Specs) {
    let pod = specs.pod(engine);
    let id = specs.start(engine, specs.spec(&pod, &["wait-deaf"]));
    let exit = specs.run(engine.stop(&id, Duration::from_millis(50))).expect("a stop");
    assert_eq!(exit.end, End::Exited { code: 137, signal: Some(9), oom: false });
}

fn an_end_reaches_subscribers_who_come_late(engine: &dyn Engine, specs: &Specs) {
    let pod = specs.pod(engine);
    let mut early = engine.exits();
    let id = specs.start(engine, specs.spec(&pod, &["exit", "3"]));
    let (first, exit) = specs.run(early.next()).expect("an end");
    let (second, same) = specs.run(engine.exits().next()).expect("an end");
    assert_eq!((&first, exit), (&id, same));
    assert_eq!(second, id);
}

fn a_program_that_cannot_be_executed_leaves_nothing(engine: &dyn Engine, specs: &Specs) {
    let pod = specs.pod(engine);
    let spec = ContainerSpec { command: Some(vec!["/no/such".to_owned()]), ..specs.spec(&pod, &[]) };
    match specs.run(engine.start(spec.clone())) {
        Err(Error::Start { reason, .. }) => assert!(reason.contains("execute"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(specs.run(state(engine, &spec.id)), None);
    // It never ran, so the same attempt may be made again.
    specs.start(engine, ContainerSpec { command: None, ..specs.spec(&pod, &["exit", "0"]) });
}

fn a_running_container_takes_one_more_program_and_an_ended_one_none(engine: &dyn Engine, specs: &Specs) {
    let pod = specs.pod(engine);
    let id = specs.start(engine, specs.spec(&pod, &["wait"]));
    let exec = |words: &[&str]| {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        specs.run(engine.exec(&id, &words, crate::world::PATIENCE)).map(|ran| ran.code)
    };
    assert!(matches!(exec(&[program::PATH, "exit", "3"]), Ok(3)));
    assert!(matches!(exec(&["/no/such/program"]), Ok(127)));
    specs.run(engine.kill(&id)).expect("an end");
    assert!(matches!(exec(&[program::PATH, "exit", "3"]), Err(Error::NotRunning(_))));
    let other = ContainerId { attempt: 7, ..id.clone() };
    let nobody = specs.run(engine.exec(&other, &["/x".to_owned()], crate::world::PATIENCE));
    assert!(matches!(nobody, Err(Error::NoContainer(_))), "{nobody:?}");
}

fn removing_a_pod_takes_all_of_it_along(engine: &dyn Engine, specs: &Specs) {
    let pod = specs.pod(engine);
    specs.run(engine.put_volume(&pod, "scratch", Volume::Directory)).expect("a volume");
    let memory = Volume::Memory { size_bytes: Some(1 << 20) };
    specs.run(engine.put_volume(&pod, "memory", memory)).expect("a volume");
    specs.start(engine, specs.spec(&pod, &["wait-deaf"]));
    specs.run(engine.remove_sandbox(&pod)).expect("a removal");
    specs.run(engine.remove_sandbox(&pod)).expect("another removal");
    assert_eq!(specs.run(engine.list()).expect("a list"), []);
}

fn what_is_not_there_is_named(engine: &dyn Engine, specs: &Specs) {
    let pod: PodUid = "nobody".parse().expect("a uid");
    let id = ContainerId::new(pod.clone(), "main", 0).expect("a name");
    assert!(matches!(specs.run(engine.start(specs.spec(&pod, &["wait"]))), Err(Error::NoSandbox(_))));
    assert!(matches!(specs.run(engine.put_volume(&pod, "v", Volume::Directory)), Err(Error::NoSandbox(_))));
    assert!(matches!(specs.run(engine.stats(&pod)), Err(Error::NoSandbox(_))));
    assert!(matches!(
        specs.run(engine.stop(&id, Duration::ZERO)),
        Err(Error::NoSandbox(_) | Error::NoContainer(_))
    ));
    let pod = specs.pod(engine);
    let logs = specs.run(engine.logs(&pod, "main", LogOptions::default()));
    assert!(matches!(logs, Err(Error::NoLog { .. })), "{logs:?}");
}

fn a_sandbox_made_twice_is_one(engine: &dyn Engine, specs: &Specs) {
    let first = specs.run(engine.create_sandbox(sandbox("contract"))).expect("a sandbox");
    let id = specs.start(engine, specs.spec(&first.spec.pod, &["wait-deaf"]));
    let second = specs.run(engine.create_sandbox(sandbox("contract"))).expect("a sandbox");
    assert_eq!((first.spec, first.netns, true), (second.spec, second.netns, second.ready));
    assert!(matches!(specs.run(state(engine, &id)), Some(ContainerState::Running(_))));
}
