//! A directory stands in for the cgroup file system: what would be written where.

use super::*;

fn v2(mount: &Path) -> Hierarchy {
    let controllers = ["cpu", "memory", "pids"].map(str::to_owned).to_vec();
    Hierarchy { mount: mount.to_owned(), version: Version::V2, controllers }
}

fn v1(mount: &Path, controllers: &[&str]) -> Hierarchy {
    let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
    Hierarchy { mount: mount.to_owned(), version: Version::V1, controllers }
}

fn resources() -> Resources {
    Resources {
        cpu_request_millis: 250,
        cpu_limit_millis: Some(1500),
        memory_limit_bytes: Some(64 << 20),
        pids_max: Some(100),
    }
}

fn id() -> ContainerId {
    ContainerId::new("uid".parse().expect("a uid"), "web", 3).expect("a name")
}

#[track_caller]
fn check(dir: &Path, file: &str, expect: &str) {
    assert_eq!(fs::read_to_string(dir.join(file)).unwrap_or_default(), expect, "{file}");
}

#[test]
fn limits_of_version_1_go_to_their_controllers() {
    let root = tempfile::tempdir().expect("a directory");
    let (cpu, memory) = (root.path().join("cpu"), root.path().join("memory"));
    let hierarchies = vec![v1(&cpu, &["cpu", "cpuacct"]), v1(&memory, &["memory", "pids"])];
    hierarchies.iter().for_each(|hierarchy| fs::create_dir(&hierarchy.mount).expect("a directory"));
    let cgroups = Cgroups::with(hierarchies, Path::new("skein/n1"));
    cgroups.create_pod(&id().pod, &Resources::default()).expect("a pod");
    let path = cgroups.container_path(&id());
    assert_eq!(path, Path::new("skein/n1/poduid/web-3"));
    // The kernel makes this file, on machines that count swap.
    fs::create_dir_all(memory.join(&path)).expect("a directory");
    fs::write(memory.join(&path).join("memory.memsw.limit_in_bytes"), "").expect("a write");
    cgroups.create_container(&id(), &resources(), true).expect("a container");

    check(&cpu.join(&path), "cpu.shares", "256");
    check(&cpu.join(&path), "cpu.cfs_quota_us", "150000");
    check(&cpu.join(&path), "cpu.cfs_period_us", "100000");
    check(&memory.join(&path), "memory.limit_in_bytes", "67108864");
    check(&memory.join(&path), "memory.memsw.limit_in_bytes", "67108864");
    check(&memory.join(&path), "pids.max", "100");
    check(&memory.join("skein/n1/poduid"), "pids.max", "4096");
    assert_eq!(cgroups.pods(), [id().pod]);
}

#[test]
fn limits_of_version_2_are_passed_down_from_the_top() {
    let root = tempfile::tempdir().expect("a directory");
    let ours = Path::new("skein/n1");
    fs::create_dir_all(root.path().join(ours)).expect("a directory");
    fs::write(root.path().join(ours).join("cgroup.controllers"), "cpuset cpu memory pids\n")
        .expect("a write");
    let cgroups = Cgroups::with(vec![v2(root.path())], ours);
    let dir = root.path().join(cgroups.container_path(&id()));
    fs::create_dir_all(&dir).expect("a directory");
    for made_by_kernel in ["memory.swap.max", "memory.oom.group"] {
        fs::write(dir.join(made_by_kernel), "").expect("a write");
    }
    cgroups.create_container(&id(), &resources(), true).expect("a container");

    check(&dir, "cpu.weight", "10");
    check(&dir, "cpu.max", "150000 100000");
    check(&dir, "memory.max", "67108864");
    check(&dir, "memory.swap.max", "0");
    check(&dir, "memory.oom.group", "1");
    check(&dir, "pids.max", "100");
    for above in ["", "skein", "skein/n1", "skein/n1/poduid"] {
        check(&root.path().join(above), "cgroup.subtree_control", "+pids");
    }
    assert!(!dir.join("cgroup.subtree_control").exists());
    assert!(cgroups.controls("memory") && cgroups.filters_devices());
}

#[test]
fn a_machine_without_a_usable_hierarchy_runs_without_limits() {
    let cgroups = Cgroups::with(vec![v2(Path::new("/proc/no-such-mount"))], Path::new("skein/n1"));
    assert!(!cgroups.controls("cpu") && !cgroups.filters_devices());
    cgroups.create_container(&id(), &resources(), false).expect("nothing to do");
    assert_eq!(cgroups.usage(&cgroups.container(&id())), Usage::default());
}

#[test]
fn what_was_used_is_read_from_either_version() {
    let root = tempfile::tempdir().expect("a directory");
    let dirs = [root.path().join("a"), root.path().join("b")];
    dirs.iter().for_each(|dir| fs::create_dir(dir).expect("a directory"));
    let put = |dir: &Path, file: &str, text: &str| fs::write(dir.join(file), text).expect("a write");
    put(&dirs[0], "cpuacct.usage", "1500000000\n");
    put(&dirs[0], "memory.usage_in_bytes", "1000\n");
    put(&dirs[0], "memory.stat", "cache 5\ntotal_inactive_file 300\n");
    put(&dirs[0], "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
    put(&dirs[1], "cpu.stat", "usage_usec 2000000\nuser_usec 1\n");
    put(&dirs[1], "memory.current", "5000\n");
    put(&dirs[1], "memory.stat", "anon 1\ninactive_file 1000\n");
    put(&dirs[1], "memory.events", "low 0\noom 1\noom_kill 1\n");
    put(&dirs[1], "pids.current", "7\n");

    let old = Cgroups {
        hierarchies: vec![v1(root.path(), &["cpuacct", "memory"])],
        device_filter: None,
        ours: PathBuf::new(),
    };
    let usage = old.usage(&dirs[..1]);
    assert_eq!((usage.cpu.as_millis(), usage.memory_bytes, usage.working_set_bytes), (1500, 1000, 700));
    let new = Cgroups { hierarchies: vec![v2(root.path())], device_filter: None, ours: PathBuf::new() };
    let usage = new.usage(&dirs[1..]);
    assert_eq!((usage.cpu.as_secs(), usage.working_set_bytes, usage.pids), (2, 4000, 7));
    assert_eq!((oom_kills(&dirs[..1]), oom_kills(&dirs[1..])), (2, 1));
}
