//! A pod's life, step by step: inputs in, effects and the status that kubectl would show out.

use super::*;
use crate::time::Now;
use serde_json::{Value, json};

/// A machine with a clock that the test moves.
struct Bench {
    life: PodLife,
    now: Now,
    status: PodStatus,
    /// Reason and message of each Event.
    told: Vec<String>,
}

impl Bench {
    fn new(spec: Value) -> Bench {
        Bench::adopt(pod(spec, json!({})), Found::default())
    }

    fn adopt(pod: Pod, found: Found) -> Bench {
        let now = Now { boot: Instant(0), wall: Timestamp::from_second(1_000_000).expect("in range") };
        let pod = Arc::new(pod);
        let life = PodLife::adopt(pod, vec!["192.0.2.1".to_owned()], found, now);
        Bench { life, now, status: PodStatus::default(), told: Vec::new() }
    }

    fn give(&mut self, input: Input) -> Vec<String> {
        let mut effects = Vec::new();
        self.life.handle(self.now, input, &mut effects);
        effects.into_iter().filter_map(|effect| self.word(effect)).collect()
    }

    /// An effect in one word; reports are kept, wakes are left to the clock.
    fn word(&mut self, effect: Effect) -> Option<String> {
        Some(match effect {
            Effect::MakeSandbox { .. } => "sandbox".to_owned(),
            Effect::PullImage { container, .. } => format!("pull {container}"),
            Effect::StartContainer { name, attempt, .. } => format!("start {name} {}", attempt.0),
            Effect::StopContainer { name, grace, .. } => format!("stop {name} {}", grace.as_secs()),
            Effect::KillContainer { name, .. } => format!("kill {name}"),
            Effect::RemoveContainer { name, attempt } => format!("remove {name} {}", attempt.0),
            Effect::RemoveSandbox => "remove sandbox".to_owned(),
            Effect::Probe { container, kind, .. } => format!("probe {container} {kind:?}"),
            Effect::RunHook { container, hook, limit, .. } => {
                format!("hook {container} {hook:?} {}", limit.as_secs())
            }
            Effect::Report(status) => {
                self.status = *status;
                return None;
            }
            Effect::Tell { reason, message, .. } => {
                self.told.push(format!("{reason}: {message}"));
                return None;
            }
            Effect::Gone { delete } => format!("gone {delete}"),
            Effect::WakeAt(_) => return None,
        })
    }

    fn desired(&mut self) -> Vec<String> {
        let pod = self.life.pod().clone();
        self.give(Input::Desired(Some(pod)))
    }

    fn sandbox_up(&mut self) -> Vec<String> {
        let result = Ok(Sandbox { addresses: vec!["10.42.0.7".to_owned()] });
        self.give(Input::Sandbox { attempt: SandboxAttempt(1), result })
    }

    fn image(&mut self, name: &str, result: Result<Image, ImageError>) -> Vec<String> {
        let pull = self.life.units.iter().find(|unit| unit.name() == name).expect("in the spec").pull;
        self.give(Input::Image { container: name.to_owned(), pull, result })
    }

    fn container(&mut self, name: &str, state: ContainerState) -> Vec<String> {
        let attempt = self.life.units.iter().find(|unit| unit.name() == name).expect("in the spec").attempt;
        self.give(Input::Container { name: name.to_owned(), attempt, state })
    }

    fn has_image(&mut self, name: &str) -> Vec<String> {
        self.image(name, Ok(Image { id: "sha256:1".to_owned() }))
    }

    fn runs(&mut self, name: &str) -> Vec<String> {
        self.container(name, ContainerState::Running { started_at: self.now.wall })
    }

    fn hooked(&mut self, name: &str, hook: Hook, result: Result<(), &str>) -> Vec<String> {
        let attempt = self.life.units.iter().find(|unit| unit.name() == name).expect("in the spec").attempt;
        let result = result.map_err(str::to_owned);
        self.give(Input::Hooked { container: name.to_owned(), attempt, hook, result })
    }

    fn exits(&mut self, name: &str, code: i32) -> Vec<String> {
        let exit = Exit {
            code,
            signal: None,
            oom_killed: false,
            started_at: self.now.wall,
            finished_at: self.now.wall,
            message: None,
        };
        self.container(name, ContainerState::Exited(exit))
    }

    /// Brings a pod with these containers, and no init containers, to Running.
    fn all_run(&mut self, names: &[&str]) {
        self.desired();
        self.sandbox_up();
        for name in names {
            self.has_image(name);
            self.runs(name);
        }
        assert_eq!(self.phase(), "Running");
    }

    fn after(&mut self, seconds: u64) -> Vec<String> {
        self.now.boot = self.now.boot.after(Duration::from_secs(seconds));
        self.now.wall = crate::time::seconds_after(self.now.wall, seconds as i64);
        self.give(Input::Woken)
    }

    fn delete(&mut self, grace: i64) -> Vec<String> {
        let mut pod = (**self.life.pod()).clone();
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now.wall));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.give(Input::Desired(Some(Arc::new(pod))))
    }

    fn phase(&self) -> &str {
        self.status.phase.as_deref().expect("every status has a phase")
    }

    fn ready(&self) -> bool {
        crate::meta::condition(Some(&self.status), "Ready").is_some_and(|ready| ready.status == "True")
    }

    /// What the STATUS column is made from.
    fn shows(&self, name: &str) -> String {
        let statuses = self.status.container_statuses.iter().chain(&self.status.init_container_statuses);
        let status = statuses.flatten().find(|status| status.name == name).expect("in the spec");
        let state = status.state.clone().expect("every container has a state");
        let word = match (state.waiting, state.running, state.terminated) {
            (Some(waiting), ..) => waiting.reason.unwrap_or_default(),
            (_, Some(_), _) => "Running".to_owned(),
            (.., Some(ended)) => format!("{} {}", ended.reason.unwrap_or_default(), ended.exit_code),
            _ => "nothing".to_owned(),
        };
        format!("{word}, {} restarts", status.restart_count)
    }
}

fn pod(spec: Value, status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": spec,
        "status": status,
    }))
    .expect("a pod")
}

fn one(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "x:1"}]})
}

#[test]
fn a_pod_goes_from_sandbox_to_image_to_container_to_ready() {
    let mut bench = Bench::new(one("Always"));
    assert_eq!(bench.desired(), ["sandbox"]);
    assert_eq!((bench.phase(), bench.shows("a").as_str()), ("Pending", "ContainerCreating, 0 restarts"));
    assert_eq!(bench.sandbox_up(), ["pull a"]);
    assert_eq!(bench.has_image("a"), ["start a 0"]);
    assert!(!bench.ready());
    assert!(bench.runs("a").is_empty());
    assert_eq!((bench.phase(), bench.shows("a").as_str()), ("Running", "Running, 0 restarts"));
    assert!(bench.ready());
    assert_eq!(bench.status.pod_ip.as_deref(), Some("10.42.0.7"));
    assert_eq!(bench.status.host_ip.as_deref(), Some("192.0.2.1"));
}

#[test]
fn init_containers_run_one_after_the_other_and_then_the_rest_at_once() {
    let mut bench = Bench::new(json!({
        "initContainers": [{"name": "i", "image": "x:1"}, {"name": "j", "image": "x:1"}],
        "containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "x:1"}],
    }));
    bench.desired();
    assert_eq!(bench.sandbox_up(), ["pull i"]);
    bench.has_image("i");
    bench.runs("i");
    assert_eq!(bench.shows("a"), "PodInitializing, 0 restarts");
    assert_eq!(bench.exits("i", 0), ["pull j"]);
    bench.has_image("j");
    assert_eq!(bench.exits("j", 0), ["pull a", "pull b"]);
    assert_eq!(bench.phase(), "Pending");
}

#[test]
fn a_failed_init_container_fails_the_pod_only_if_nothing_restarts() {
    fn check(policy: &str, phase: &str, effects: &[&str]) {
        let mut bench = Bench::new(json!({
            "restartPolicy": policy,
            "initContainers": [{"name": "i", "image": "x:1"}],
            "containers": [{"name": "a", "image": "x:1"}],
        }));
        bench.desired();
        bench.sandbox_up();
        bench.has_image("i");
        assert_eq!(bench.exits("i", 1), effects, "{policy}");
        assert_eq!(bench.phase(), phase, "{policy}");
    }
    check("Never", "Failed", &["remove sandbox"]);
    check("OnFailure", "Pending", &["remove i 0", "pull i"]);
    check("Always", "Pending", &["remove i 0", "pull i"]);
}

#[test]
fn the_restart_policy_decides_what_follows_an_exit() {
    fn check(policy: &str, code: i32, phase: &str, shows: &str) {
        let mut bench = Bench::new(one(policy));
        bench.all_run(&["a"]);
        bench.exits("a", code);
        assert_eq!((bench.phase(), bench.shows("a").as_str()), (phase, shows), "{policy} {code}");
    }
    check("Always", 0, "Running", "Completed 0, 0 restarts");
    check("Always", 3, "Running", "Error 3, 0 restarts");
    check("OnFailure", 0, "Succeeded", "Completed 0, 0 restarts");
    check("OnFailure", 3, "Running", "Error 3, 0 restarts");
    check("Never", 0, "Succeeded", "Completed 0, 0 restarts");
    check("Never", 3, "Failed", "Error 3, 0 restarts");
}

#[test]
fn the_first_restart_is_at_once_and_the_second_waits_in_crash_loop_back_off() {
    let mut bench = Bench::new(one("Always"));
    bench.all_run(&["a"]);
    assert_eq!(bench.exits("a", 1), ["remove a 0", "pull a"]);
    assert_eq!(bench.has_image("a"), ["start a 1"]);
    bench.runs("a");
    assert_eq!(bench.shows("a"), "Running, 1 restarts");
    assert!(bench.exits("a", 1).is_empty());
    assert_eq!(bench.shows("a"), "CrashLoopBackOff, 1 restarts");
    let statuses = bench.status.container_statuses.clone().expect("one container");
    let waiting = statuses[0].state.clone().and_then(|state| state.waiting).expect("waits");
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 10s restarting failed container=a pod=web_default(u1)")
    );
    assert_eq!(
        statuses[0].last_state.clone().and_then(|last| last.terminated).map(|it| it.exit_code),
        Some(1)
    );
    assert!(bench.after(9).is_empty());
    assert_eq!(bench.after(1), ["remove a 1", "pull a"]);
    assert_eq!(bench.has_image("a"), ["start a 2"]);
}

#[test]
fn an_exit_of_an_older_start_changes_nothing() {
    let mut bench = Bench::new(one("Always"));
    bench.all_run(&["a"]);
    bench.exits("a", 1);
    bench.has_image("a");
    bench.runs("a");
    let state = ContainerState::Lost { noticed_at: bench.now.wall };
    let late = Input::Container { name: "a".to_owned(), attempt: Attempt(0), state };
    assert!(bench.give(late).is_empty());
    assert_eq!(bench.shows("a"), "Running, 1 restarts");
}

#[test]
fn an_image_that_cannot_be_had_is_tried_again_after_ten_seconds() {
    let mut bench = Bench::new(one("Always"));
    bench.desired();
    bench.sandbox_up();
    bench.image("a", Err(ImageError::Pull("no such registry".to_owned())));
    assert_eq!(bench.shows("a"), "ErrImagePull, 0 restarts");
    assert!(bench.after(3).is_empty());
    assert_eq!(bench.shows("a"), "ImagePullBackOff, 0 restarts");
    assert_eq!(bench.after(7), ["pull a"]);
    bench.image("a", Err(ImageError::NeverPull));
    assert_eq!(bench.shows("a"), "ErrImageNeverPull, 0 restarts");
    assert!(bench.after(19).is_empty());
    assert_eq!(bench.after(1), ["pull a"]);
}

#[test]
fn a_container_without_its_config_map_waits_and_starts_once_it_is_there() {
    let mut bench = Bench::new(one("Always"));
    bench.desired();
    bench.sandbox_up();
    bench.has_image("a");
    let error = crate::container::Error::NoConfigMap("c".to_owned()).into_start_error();
    bench.container("a", ContainerState::Failed(error));
    assert_eq!(bench.shows("a"), "CreateContainerConfigError, 0 restarts");
    assert_eq!(bench.after(5), ["pull a"]);
    assert_eq!(bench.has_image("a"), ["start a 0"]);
}

#[test]
fn a_program_that_cannot_be_executed_counts_as_a_failed_start() {
    let mut bench = Bench::new(one("Never"));
    bench.desired();
    bench.sandbox_up();
    bench.has_image("a");
    let error =
        StartError { reason: "RunContainerError".to_owned(), message: "exec \"/no\": ENOENT".to_owned() };
    bench.container("a", ContainerState::Failed(error));
    assert_eq!((bench.phase(), bench.shows("a").as_str()), ("Failed", "StartError 128, 0 restarts"));
}

#[test]
fn deleting_a_pod_stops_it_in_its_grace_and_removes_the_object_last() {
    let mut bench = Bench::new(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    bench.all_run(&["a", "b"]);
    assert_eq!(bench.delete(20), ["stop b 20", "stop a 20"]);
    assert!(bench.exits("a", 0).is_empty());
    assert!(bench.after(19).is_empty());
    assert_eq!(bench.after(1), ["kill b"]);
    assert_eq!(bench.exits("b", 137), ["remove sandbox"]);
    assert_eq!(bench.give(Input::SandboxRemoved), ["gone true"]);
    assert!(bench.desired().is_empty(), "the machine is done");
}

#[test]
fn a_shorter_grace_brings_the_kill_forward_and_a_longer_one_does_not_put_it_off() {
    let mut bench = Bench::new(one("Always"));
    bench.all_run(&["a"]);
    assert_eq!(bench.delete(30), ["stop a 30"]);
    assert!(bench.delete(300).is_empty());
    assert!(bench.delete(2).is_empty());
    assert_eq!(bench.after(2), ["kill a"]);
}

#[test]
fn a_pod_that_is_no_longer_bound_here_is_killed_and_its_object_left_alone() {
    let mut bench = Bench::new(one("Always"));
    bench.all_run(&["a"]);
    assert_eq!(bench.give(Input::Desired(None)), ["stop a 1"]);
    assert_eq!(bench.after(1), ["kill a"]);
    assert_eq!(bench.exits("a", 137), ["remove sandbox"]);
    assert_eq!(bench.give(Input::SandboxRemoved), ["gone false"]);
}

#[test]
fn another_uid_under_the_same_name_is_another_pod() {
    let mut bench = Bench::new(one("Always"));
    bench.all_run(&["a"]);
    let mut other = (**bench.life.pod()).clone();
    other.metadata.uid = Some("u2".to_owned());
    assert_eq!(bench.give(Input::Desired(Some(Arc::new(other)))), ["stop a 1"]);
}

#[test]
fn a_pod_deleted_before_it_began_is_gone_at_once() {
    let mut bench = Bench::new(one("Always"));
    assert_eq!(bench.delete(30), ["gone true"]);
}

#[test]
fn a_pod_deleted_while_its_sandbox_is_made_waits_for_it_and_starts_nothing() {
    let mut bench = Bench::new(one("Always"));
    bench.desired();
    assert!(bench.delete(30).is_empty());
    assert_eq!(bench.sandbox_up(), ["remove sandbox"]);
    assert_eq!(bench.give(Input::SandboxRemoved), ["gone true"]);
}

#[test]
fn a_start_that_succeeds_after_the_deletion_is_stopped() {
    let mut bench = Bench::new(one("Always"));
    bench.desired();
    bench.sandbox_up();
    bench.has_image("a");
    assert!(bench.delete(30).is_empty());
    assert_eq!(bench.runs("a"), ["stop a 30"]);
}

#[test]
fn a_finished_pod_gives_its_sandbox_back_and_keeps_its_status() {
    let mut bench = Bench::new(one("Never"));
    bench.all_run(&["a"]);
    assert_eq!(bench.exits("a", 0), ["remove sandbox"]);
    assert!(bench.give(Input::SandboxRemoved).is_empty());
    assert_eq!(bench.phase(), "Succeeded");
    assert_eq!(bench.status.pod_ip.as_deref(), Some("10.42.0.7"));
    assert_eq!(bench.delete(30), ["gone true"]);
}

#[test]
fn a_sidecar_starts_before_the_main_containers_and_stops_after_them() {
    let mut bench = Bench::new(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "s", "image": "x:1", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "x:1"}],
    }));
    bench.desired();
    assert_eq!(bench.sandbox_up(), ["pull s"]);
    bench.has_image("s");
    assert_eq!(bench.runs("s"), ["pull a"]);
    bench.has_image("a");
    bench.runs("a");
    assert_eq!(bench.exits("a", 0), ["stop s 30"]);
    assert_eq!(bench.exits("s", 143), ["remove sandbox"]);
    assert_eq!(bench.phase(), "Succeeded");
}

fn probed(ok: bool) -> Result<(), String> {
    if ok { Ok(()) } else { Err("it answered 503".to_owned()) }
}

/// A program that is up after three seconds is ready then, and not at the end of its probe's period.
#[test]
fn until_a_probe_has_passed_once_it_is_asked_every_second_and_that_costs_no_failure() {
    let probe = json!({"tcpSocket": {"port": 80}, "periodSeconds": 10, "failureThreshold": 2});
    for (field, kind) in [("startupProbe", ProbeKind::Startup), ("readinessProbe", ProbeKind::Readiness)] {
        let mut bench = Bench::new(json!({"containers": [{"name": "a", field: probe}]}));
        bench.desired();
        bench.sandbox_up();
        bench.has_image("a");
        let asks = format!("probe a {kind:?}");
        assert_eq!(bench.runs("a"), [&*asks]);
        bench.told.clear();
        let answer =
            |ok| Input::Probed { container: "a".to_owned(), attempt: Attempt(0), kind, result: probed(ok) };
        for _ in 0..9 {
            assert!(bench.give(answer(false)).is_empty(), "nothing is stopped");
            assert_eq!(bench.after(1), [&*asks]);
        }
        assert_eq!(bench.told.len(), 1, "what is asked in between is not told: {:?}", bench.told);
        bench.give(answer(true));
        assert!(bench.ready());
        // From then on it has its period; a startup probe is over.
        let next = if kind == ProbeKind::Readiness { vec![asks] } else { vec![] };
        assert!(bench.after(9).is_empty());
        assert_eq!(bench.after(1), next);
    }
}

#[test]
fn readiness_follows_its_probe_and_nothing_restarts_for_it() {
    let mut bench = Bench::new(json!({"containers": [
        {"name": "a", "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 5, "failureThreshold": 2}}
    ]}));
    bench.desired();
    bench.sandbox_up();
    bench.has_image("a");
    assert_eq!(bench.runs("a"), ["probe a Readiness"]);
    assert!(!bench.ready());
    let answer = |ok| Input::Probed {
        container: "a".to_owned(),
        attempt: Attempt(0),
        kind: ProbeKind::Readiness,
        result: probed(ok),
    };
    assert!(bench.give(answer(true)).is_empty());
    assert!(bench.ready());
    assert!(bench.after(4).is_empty());
    assert_eq!(bench.after(1), ["probe a Readiness"]);
    bench.give(answer(false));
    assert!(bench.ready(), "one failure of two");
    bench.after(5);
    bench.give(answer(false));
    assert!(!bench.ready());
    assert_eq!(bench.shows("a"), "Running, 0 restarts");
}

#[test]
fn a_failed_liveness_probe_restarts_the_container() {
    let mut bench = Bench::new(json!({"terminationGracePeriodSeconds": 7, "containers": [
        {"name": "a", "livenessProbe": {"exec": {"command": ["x"]}, "initialDelaySeconds": 3, "failureThreshold": 1}}
    ]}));
    bench.desired();
    bench.sandbox_up();
    bench.has_image("a");
    assert!(bench.runs("a").is_empty());
    assert_eq!(bench.after(3), ["probe a Liveness"]);
    let failed = Input::Probed {
        container: "a".to_owned(),
        attempt: Attempt(0),
        kind: ProbeKind::Liveness,
        result: probed(false),
    };
    assert_eq!(bench.give(failed), ["stop a 7"]);
    assert_eq!(bench.after(7), ["kill a"]);
    assert_eq!(bench.exits("a", 137), ["remove a 0", "pull a"]);
}

#[test]
fn no_other_probe_runs_before_the_startup_probe_has_passed() {
    let probe = json!({"tcpSocket": {"port": 80}, "periodSeconds": 1});
    let mut bench = Bench::new(json!({"containers": [
        {"name": "a", "startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe}
    ]}));
    bench.desired();
    bench.sandbox_up();
    bench.has_image("a");
    assert_eq!(bench.runs("a"), ["probe a Startup"]);
    let passed = Input::Probed {
        container: "a".to_owned(),
        attempt: Attempt(0),
        kind: ProbeKind::Startup,
        result: Ok(()),
    };
    assert_eq!(bench.give(passed), ["probe a Readiness", "probe a Liveness"]);
}

/// A pod of one container with this hook, which is `true` in both cases.
fn hooking(hook: &str) -> Value {
    let exec = json!({ "exec": { "command": ["true"] } });
    json!({ "terminationGracePeriodSeconds": 30, "containers": [{
        "name": "a", "image": "x", "lifecycle": { hook: exec },
        "readinessProbe": { "tcpSocket": { "port": 80 }, "periodSeconds": 1 },
    }] })
}

#[test]
fn a_hook_after_the_start_holds_back_probes_and_its_failure_restarts_the_container() {
    let mut bench = Bench::new(hooking("postStart"));
    bench.desired();
    bench.sandbox_up();
    bench.has_image("a");
    assert_eq!(bench.runs("a"), ["hook a PostStart 600"]);
    assert_eq!(bench.after(5), Vec::<String>::new());
    assert_eq!(bench.hooked("a", Hook::PostStart, Ok(())), ["probe a Readiness"]);

    let mut bench = Bench::new(hooking("postStart"));
    bench.desired();
    bench.sandbox_up();
    bench.has_image("a");
    bench.runs("a");
    assert_eq!(bench.hooked("a", Hook::PostStart, Err("no")), ["stop a 30"]);
    bench.exits("a", 143);
    let last = &bench.status.container_statuses.as_ref().expect("one")[0];
    let shown = last.state.as_ref().and_then(|state| state.terminated.as_ref());
    assert_eq!(shown.and_then(|end| end.message.as_deref()), Some("PostStartHook failed: no"));
}

#[test]
fn a_hook_before_the_stop_runs_within_the_grace() {
    let mut bench = Bench::new(hooking("preStop"));
    bench.all_run(&["a"]);
    assert_eq!(bench.delete(30), ["hook a PreStop 30"]);
    bench.now.boot = bench.now.boot.after(Duration::from_secs(10));
    assert_eq!(bench.hooked("a", Hook::PreStop, Err("failed all the same")), ["stop a 20"]);
    assert_eq!(bench.after(19), Vec::<String>::new());
    assert_eq!(bench.after(1), ["kill a"]);
    assert_eq!(bench.after(5), Vec::<String>::new());
}

#[test]
fn a_hook_that_takes_all_of_the_grace_leaves_the_container_two_seconds() {
    let mut bench = Bench::new(hooking("preStop"));
    bench.all_run(&["a"]);
    bench.delete(5);
    assert_eq!(bench.after(5), ["stop a 2"]);
    assert_eq!(bench.after(1), Vec::<String>::new());
    // Too late to matter.
    assert_eq!(bench.hooked("a", Hook::PreStop, Ok(())), Vec::<String>::new());
    assert_eq!(bench.after(1), ["kill a"]);

    let mut bench = Bench::new(hooking("preStop"));
    bench.all_run(&["a"]);
    assert_eq!(bench.delete(0), ["stop a 0", "kill a"]);
}

#[test]
fn a_daemon_that_comes_back_runs_no_hook_a_second_time() {
    let mut bench = Bench::adopt(pod(hooking("postStart"), json!({})), found(vec![running(0)]));
    assert_eq!(bench.desired(), ["probe a Readiness"]);
}

#[test]
fn a_pod_that_runs_beyond_its_deadline_fails() {
    let mut bench = Bench::new(json!({
        "activeDeadlineSeconds": 90, "terminationGracePeriodSeconds": 0, "containers": [{"name": "a"}],
    }));
    bench.all_run(&["a"]);
    assert!(bench.after(60).is_empty());
    assert_eq!(bench.after(30), ["stop a 0", "kill a"]);
    assert_eq!(bench.exits("a", 137), ["remove sandbox"]);
    assert_eq!(bench.phase(), "Failed");
    assert_eq!(bench.status.reason.as_deref(), Some("DeadlineExceeded"));
}

#[test]
fn a_container_killed_for_memory_says_so() {
    let mut bench = Bench::new(one("Never"));
    bench.all_run(&["a"]);
    let exit = Exit {
        code: 137,
        signal: Some(9),
        oom_killed: true,
        started_at: bench.now.wall,
        finished_at: bench.now.wall,
        message: None,
    };
    bench.container("a", ContainerState::Exited(exit));
    assert_eq!(bench.shows("a"), "OOMKilled 137, 0 restarts");
}

fn running(attempt: u32) -> FoundContainer {
    FoundContainer {
        name: "a".to_owned(),
        attempt: Attempt(attempt),
        image: Some(Image { id: "sha256:1".to_owned() }),
        state: ContainerState::Running { started_at: Timestamp::from_second(999_000).expect("in range") },
    }
}

fn found(containers: Vec<FoundContainer>) -> Found {
    Found { sandbox: Some(Sandbox { addresses: vec!["10.42.0.7".to_owned()] }), containers }
}

#[test]
fn a_daemon_that_comes_back_restarts_nothing_that_runs() {
    let mut bench = Bench::adopt(pod(one("Always"), json!({})), found(vec![running(2)]));
    assert!(bench.desired().is_empty());
    assert_eq!(bench.shows("a"), "Running, 2 restarts");
    assert!(bench.ready());
    assert_eq!(bench.life.running("a"), Some(Attempt(2)));
}

#[test]
fn what_ended_while_the_daemon_was_away_is_reported_and_restarted() {
    let exit = Exit {
        code: 4,
        signal: None,
        oom_killed: false,
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: Timestamp::UNIX_EPOCH,
        message: None,
    };
    let ended = FoundContainer { state: ContainerState::Exited(exit), ..running(0) };
    let mut bench = Bench::adopt(pod(one("Always"), json!({})), found(vec![ended.clone()]));
    assert_eq!(bench.desired(), ["remove a 0", "pull a"]);
    assert_eq!(bench.shows("a"), "Error 4, 0 restarts");
    let mut bench = Bench::adopt(pod(one("Never"), json!({})), found(vec![ended]));
    assert_eq!(bench.desired(), ["remove sandbox"]);
    assert_eq!(bench.phase(), "Failed");
}

#[test]
fn after_a_reboot_the_count_of_restarts_goes_on_and_nothing_waits_for_it() {
    let status = json!({"phase": "Running", "containerStatuses": [{
        "name": "a", "image": "x:1", "imageID": "sha256:1", "ready": true, "restartCount": 3,
        "state": {"running": {"startedAt": "2024-01-01T00:00:00Z"}},
    }]});
    let mut bench = Bench::adopt(pod(one("Always"), status), Found::default());
    assert_eq!(bench.desired(), ["sandbox"]);
    assert_eq!(bench.sandbox_up(), ["remove a 3", "pull a"]);
    bench.has_image("a");
    bench.runs("a");
    assert_eq!(bench.shows("a"), "Running, 4 restarts");
    bench.exits("a", 1);
    assert_eq!(bench.shows("a"), "CrashLoopBackOff, 4 restarts");
}

#[test]
fn a_pod_that_was_over_stays_over() {
    let mut bench = Bench::adopt(pod(one("Never"), json!({"phase": "Succeeded"})), Found::default());
    assert!(bench.desired().is_empty());
    assert_eq!(bench.delete(30), ["gone true"]);
}

#[test]
fn the_status_is_reported_only_when_it_changes_or_somebody_else_changed_it() {
    let mut bench = Bench::new(one("Always"));
    bench.all_run(&["a"]);
    let mut known = (**bench.life.pod()).clone();
    known.status = Some(bench.status.clone());
    let mut effects = Vec::new();
    bench.life.handle(bench.now, Input::Desired(Some(Arc::new(known.clone()))), &mut effects);
    assert!(effects.is_empty(), "{effects:?}");
    for condition in known.status.iter_mut().filter_map(|status| status.conditions.as_mut()).flatten() {
        condition.status = "False".to_owned();
    }
    bench.life.handle(bench.now, Input::Desired(Some(Arc::new(known))), &mut effects);
    assert!(matches!(&effects[..], [Effect::Report(_)]), "{effects:?}");
}

#[test]
fn the_scheduler_s_condition_stays_in_every_report() {
    let status = json!({"conditions": [{"type": "PodScheduled", "status": "True"}]});
    let mut bench = Bench::adopt(pod(one("Always"), status), Found::default());
    bench.all_run(&["a"]);
    assert!(crate::meta::condition(Some(&bench.status), "PodScheduled").is_some());
}

#[test]
fn users_are_told_in_kubelet_s_words() {
    let mut bench = Bench::new(one("Always"));
    bench.all_run(&["a"]);
    assert_eq!(bench.told, ["Created: Created container: a", "Started: Started container a"]);
    bench.told.clear();
    bench.exits("a", 1);
    bench.has_image("a");
    bench.runs("a");
    bench.exits("a", 1);
    let backoff = "BackOff: Back-off restarting failed container a in pod ";
    assert!(bench.told.last().is_some_and(|told| told.starts_with(backoff)), "{:?}", bench.told);
    bench.told.clear();
    bench.after(60);
    bench.image("a", Err(ImageError::Pull("no route".to_owned())));
    assert_eq!(
        bench.told,
        [
            "Failed: Failed to pull image \"x:1\": no route",
            "Failed: Error: ErrImagePull",
            "BackOff: Back-off pulling image \"x:1\"",
        ]
    );
    bench.told.clear();
    bench.after(60);
    bench.has_image("a");
    bench.runs("a");
    bench.told.clear();
    bench.delete(30);
    bench.after(1);
    assert_eq!(bench.told, ["Killing: Stopping container a"], "once");
}

#[test]
fn an_unhealthy_container_is_told_about_before_it_is_stopped() {
    let mut bench = Bench::new(json!({"containers": [{"name": "a", "image": "x:1",
        "livenessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 2}}]}));
    bench.all_run(&["a"]);
    bench.told.clear();
    for _ in 0..2 {
        bench.after(1);
        bench.give(Input::Probed {
            container: "a".to_owned(),
            attempt: Attempt(0),
            kind: ProbeKind::Liveness,
            result: probed(false),
        });
    }
    assert_eq!(
        bench.told,
        [
            "Unhealthy: Liveness probe failed: it answered 503",
            "Unhealthy: Liveness probe failed: it answered 503",
            "Killing: Container a failed liveness probe, will be restarted",
        ]
    );
}

#[test]
fn a_sandbox_that_cannot_be_made_is_told_about() {
    let mut bench = Bench::new(one("Always"));
    bench.desired();
    let result = Err("no address is left".to_owned());
    bench.give(Input::Sandbox { attempt: SandboxAttempt(1), result });
    assert_eq!(bench.told, ["FailedCreatePodSandBox: Failed to create pod sandbox: no address is left"]);
}
