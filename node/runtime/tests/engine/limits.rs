//! Limits in the kernel's own files, and what happens at them.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use skein_runtime::{ContainerSpec, End, Engine, Machine, Resources};

use crate::world::{World, limits, sandbox};

crate::tests![
    limits_stand_in_the_kernels_files,
    a_container_beyond_its_memory_is_killed_and_says_so,
    a_container_dies_as_a_whole_and_sees_its_own_limit_on_cgroup_2,
    a_container_cannot_have_more_processes_than_allowed,
    use_is_counted_for_the_pod_and_each_container,
];

/// Whether this machine can enforce limits; says so if not.
fn is_limited(world: &World) -> bool {
    let probe = Machine::probe(&world.config);
    if !probe.limits {
        eprintln!("left out: {}", probe.weaker.join(" "));
    }
    probe.limits
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn limits_stand_in_the_kernels_files(world: &World) {
    if !is_limited(world) {
        return;
    }
    let pod = world.pod("a");
    let spec = ContainerSpec { resources: limits(), ..world.container(&pod, "main", &["wait-deaf"]) };
    let id = spec.id.clone();
    world.start(spec);
    let value = |controller: &str, file: &str| read(&world.cgroup(controller, &id).join(file));
    let either = |v1: Option<String>, v2: Option<String>| v1.or(v2);
    let quota = either(value("cpu", "cpu.cfs_quota_us"), value("cpu", "cpu.max"));
    assert!(matches!(quota.as_deref(), Some("75000" | "75000 100000")), "{quota:?}");
    let share = either(value("cpu", "cpu.shares"), value("cpu", "cpu.weight"));
    assert!(matches!(share.as_deref(), Some("512" | "20")), "{share:?}");
    let memory = either(value("memory", "memory.limit_in_bytes"), value("memory", "memory.max"));
    assert_eq!(memory.as_deref(), Some("67108864"));
    assert_eq!(value("pids", "pids.max").as_deref(), Some("33"));
}

fn a_container_beyond_its_memory_is_killed_and_says_so(world: &World) {
    if !is_limited(world) {
        return;
    }
    let pod = world.pod("a");
    let resources = Resources { memory_limit_bytes: Some(32 << 20), ..Resources::default() };
    let spec =
        ContainerSpec { resources, ..world.container(&pod, "main", &["eat", "200", ";", "exit", "0"]) };
    let id = spec.id.clone();
    world.start(spec);
    assert_eq!(world.end(&id).end, End::Exited { code: 137, signal: Some(9), oom: true });

    // The same by the limit of the pod.
    let mut small = sandbox("small");
    small.resources = resources;
    let pod = world.run(world.engine().create_sandbox(small)).expect("a sandbox").spec.pod;
    let spec = world.container(&pod, "main", &["eat", "200"]);
    let id = spec.id.clone();
    world.start(spec);
    assert!(matches!(world.end(&id).end, End::Exited { code: 137, signal: Some(9), .. }));
}

fn a_container_dies_as_a_whole_and_sees_its_own_limit_on_cgroup_2(world: &World) {
    if !world.config.cgroup_mount.join("cgroup.controllers").exists() {
        eprintln!("left out: this machine has cgroups of version 1");
        return;
    }
    let pod = world.pod("a");
    let resources = Resources { memory_limit_bytes: Some(32 << 20), ..Resources::default() };
    let looks = ["cat", "/sys/fs/cgroup/memory.max", ";", "refuses-write", "/sys/fs/cgroup/memory.max"];
    let spec = ContainerSpec { resources, ..world.container(&pod, "looks", &looks) };
    assert_eq!(world.output(spec), "33554432\nread-only filesystem or storage medium\n");
    // The child is the greedy one; its parent would wait for ever.
    let spec = ContainerSpec {
        resources,
        ..world.container(&pod, "main", &["child", "eat", "200", ";", "wait-deaf"])
    };
    let id = spec.id.clone();
    world.start(spec);
    assert_eq!(world.end(&id).end, End::Exited { code: 137, signal: Some(9), oom: true });
}

fn a_container_cannot_have_more_processes_than_allowed(world: &World) {
    if !is_limited(world) {
        return;
    }
    let pod = world.pod("a");
    let resources = Resources { pids_max: Some(1), ..Resources::default() };
    let spec = ContainerSpec { resources, ..world.container(&pod, "main", &["child", "wait-deaf"]) };
    let id = spec.id.clone();
    world.start(spec);
    assert_eq!(world.end(&id).end, End::Exited { code: 99, signal: None, oom: false });
}

fn use_is_counted_for_the_pod_and_each_container(world: &World) {
    if !is_limited(world) {
        return;
    }
    let pod = world.pod("a");
    let spec = world.container(&pod, "main", &["eat", "8", ";", "wait"]);
    let id = spec.id.clone();
    let before = SystemTime::now();
    let running = world.start(spec);
    assert!(running.started_at >= before - std::time::Duration::from_millis(1));
    world.wait_for_output(&id, "waiting");
    let stats = world.run(world.engine().stats(&pod)).expect("stats");
    let container = stats.containers[&id];
    assert_eq!(container.pids, 1);
    assert!(!container.cpu.is_zero() && container.memory_bytes > 0, "{container:?}");
    assert!(stats.pod.cpu >= container.cpu && stats.pod.memory_bytes > 0, "{stats:?}");
    // Memory is not compared: between two looks the kernel may take back what it had charged ahead for each
    // processor, up to 64 pages.
}
