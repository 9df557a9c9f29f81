//! What a container sees, shares and cannot reach.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use skein_runtime::{
    Capabilities, ContainerId, ContainerSpec, End, Engine, Error, LogOptions, Mount, MountSource,
    NetworkFiles, Ran, Seccomp, Security, User, Volume, VolumeFile,
};

use crate::world::{PATIENCE, World, sandbox, wait_until, words};

crate::tests![
    two_containers_of_a_pod_share_localhost_and_a_volume,
    a_program_finds_itself_as_the_image_and_the_manifest_say,
    a_container_sees_its_own_files_and_processes_only,
    layers_are_stacked_and_never_written,
    a_program_that_is_not_root_opens_its_own_outputs_by_name,
    the_default_rights_are_few_and_filtered,
    escalation_and_capabilities_follow_the_manifest,
    the_root_has_no_devices_and_no_set_uid_programs_where_nothing_may_be_gained,
    links_of_the_image_that_lead_nowhere_give_way_to_mounts,
    files_of_a_volume_are_seen_and_read_only_ones_refuse,
    a_part_of_a_volume_or_of_the_machine_is_seen_and_made_where_it_is_absent,
    the_manifest_says_the_stop_signal_the_groups_and_what_is_hidden,
    last_words_are_kept,
    a_specification_that_cannot_be_done_is_refused_untouched,
    processes_left_behind_by_a_program_are_killed,
    one_more_program_is_as_confined_as_the_first,
    one_more_program_ends_with_its_time_and_with_its_container,
];

pub(crate) fn exec(world: &World, id: &ContainerId, words: &[&str], limit: Duration) -> Result<Ran, Error> {
    let words = [&[crate::program::PATH], words].concat();
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    world.run(world.engine().exec(id, &words, limit))
}

fn the_root_has_no_devices_and_no_set_uid_programs_where_nothing_may_be_gained(world: &World) {
    let pod = world.pod("a");
    for (name, escalation, read_only) in
        [("plain", true, false), ("fixed", false, false), ("still", false, true)]
    {
        let mut spec = world.container(&pod, name, &["cat", "/proc/self/mountinfo"]);
        spec.security.privilege_escalation = escalation;
        spec.security.read_only_root = read_only;
        let id = spec.id.clone();
        world.start(spec);
        world.end(&id);
        let text = world.log(&id, LogOptions::default());
        let root = text.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("a root");
        let options: Vec<_> = root.split(' ').nth(5).expect("options").split(',').collect();
        assert!(options.contains(&"nodev"), "{root}");
        assert_eq!(options.contains(&"nosuid"), !escalation, "{root}");
        assert_eq!(options.contains(&"ro"), read_only, "{root}");
    }
}

fn links_of_the_image_that_lead_nowhere_give_way_to_mounts(world: &World) {
    let top = world.dir.path().join("image/top");
    fs::create_dir(top.join("var")).expect("a directory");
    for (link, target) in [
        ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        ("etc/hosts", "/nowhere/hosts"),
        ("var/run", "/nowhere"),
    ] {
        symlink(target, top.join(link)).expect("a link");
    }
    let pod = world.pod("a");
    world.run(world.engine().put_volume(&pod, "v", Volume::Directory)).expect("a volume");
    let looks = "cat /etc/resolv.conf ; cat /etc/hosts ; list /var/run ; write /var/run/v/file x ; list /";
    let mut spec = world.container(&pod, "main", &words(looks));
    spec.network_files.nameservers = vec!["192.0.2.53".parse().expect("an address")];
    spec.mounts = vec![volume("v", None, "/var/run/v", false)];
    let id = spec.id.clone();
    world.start(spec);
    world.end(&id);
    let text = world.log(&id, LogOptions::default());
    assert!(text.contains("nameserver 192.0.2.53") && text.contains("localhost"), "{text}");
    assert!(text.contains("v") && !text.contains("nowhere"), "{text}");
    assert!(
        fs::symlink_metadata(top.join("var/run")).expect("a link").is_symlink(),
        "the layer is as it was"
    );
}

/// What only the kernel knows of a process, and the same of one that joined it later.
fn one_more_program_is_as_confined_as_the_first(world: &World) {
    let pod = world.pod("a");
    let looks = words(
        "status Uid ; status Gid ; status Groups ; status CapEff ; status CapBnd ; \
         status NoNewPrivs ; status Seccomp ; status Seccomp_filters ; cat /proc/self/cgroup ; \
         cat /proc/self/uid_map ; list / ; list /dev ; cat /etc/hostname ; hostname ; cwd ; \
         env COLOR ; list /proc/self/fd ; refuses-write /proc/sys/kernel/hostname",
    );
    for (name, escalation) in [("plain", true), ("fixed", false)] {
        let mut spec = world.container(&pod, name, &[&looks[..], &[";", "wait"]].concat());
        spec.rootfs.config.user = "web".to_owned();
        spec.env = vec![("COLOR".to_owned(), "blue".to_owned())];
        spec.workdir = Some("/srv".to_owned());
        spec.security.privilege_escalation = escalation;
        let id = spec.id.clone();
        world.start(spec);
        world.wait_for_output(&id, "waiting");
        let first = world.log(&id, LogOptions::default());
        let second = exec(world, &id, &looks, PATIENCE).expect("it runs");
        assert_eq!(second.code, 0, "{}", String::from_utf8_lossy(&second.output));
        assert_eq!(String::from_utf8_lossy(&second.output), first.trim_end_matches("waiting\n"), "{name}");
    }
}

fn one_more_program_ends_with_its_time_and_with_its_container(world: &World) {
    let pod = world.pod("a");
    let spec = world.container(&pod, "main", &["wait"]);
    let id = spec.id.clone();
    world.start(spec);
    let late = exec(world, &id, &["wait-deaf"], Duration::from_millis(300));
    assert!(matches!(late, Err(Error::TooLong { .. })), "{late:?}");
    // Its place in the cgroup is free again, and the container lives.
    let procs = world.cgroup("pids", &id).join("cgroup.procs");
    wait_until(|| fs::read_to_string(&procs).is_ok_and(|pids| pids.lines().count() == 1));
    let much = exec(world, &id, &["print-many", "1000"], PATIENCE).expect("it runs");
    assert_eq!((much.code, much.output.len()), (0, 10 << 10));

    let engine = world.engine().clone();
    let killed = id.clone();
    let killer = std::thread::spawn(move || {
        wait_until(|| fs::read_to_string(&procs).is_ok_and(|pids| pids.lines().count() == 2));
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(engine.kill(&killed)).expect("an end");
    });
    assert_eq!(exec(world, &id, &["wait-deaf"], PATIENCE).expect("it ran").code, 137);
    killer.join().expect("it was killed");
}

pub(crate) fn volume(name: &str, sub_path: Option<&str>, destination: &str, read_only: bool) -> Mount {
    let source = MountSource::Volume { name: name.to_owned(), sub_path: sub_path.map(str::to_owned) };
    Mount { source, destination: destination.to_owned(), read_only }
}

fn two_containers_of_a_pod_share_localhost_and_a_volume(world: &World) {
    let pod = world.pod("a");
    world.run(world.engine().put_volume(&pod, "shared", Volume::Directory)).expect("a volume");
    let mounts = vec![volume("shared", None, "/shared", false)];
    let server =
        world.container(&pod, "server", &["write", "/shared/note", "from the server", ";", "serve", "80"]);
    world.start(ContainerSpec { mounts: mounts.clone(), ..server });
    let client =
        world.container(&pod, "client", &["fetch", "80", ";", "cat", "/shared/note", ";", "hostname"]);
    let text = world.output(ContainerSpec { mounts, ..client });
    assert_eq!(text, "hello from the neighbour\nfrom the server\npod-a\n");
}

fn a_program_finds_itself_as_the_image_and_the_manifest_say(world: &World) {
    let pod = world.pod("a");
    let looks = words(
        "status Uid ; status Gid ; status Groups ; env HOME ; env COLOR ; cwd ; cat /etc/hosts ; \
         cat /etc/resolv.conf",
    );
    let mut spec = world.container(&pod, "main", &looks);
    spec.rootfs.config.user = "web".to_owned();
    spec.rootfs.config.env = vec!["COLOR=red".to_owned()];
    spec.rootfs.config.workdir = "/not/there/yet".to_owned();
    spec.env = vec![("COLOR".to_owned(), "blue".to_owned())];
    spec.user = User { groups: BTreeSet::from([500]), ..User::default() };
    let address = "10.9.8.7".parse().expect("an address");
    spec.network_files = NetworkFiles {
        hosts: vec![(address, vec!["pod-a".to_owned()])],
        nameservers: vec![address],
        ..NetworkFiles::default()
    };
    let text = world.output(spec);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..6],
        ["1234\t1234\t1234\t1234", "2345\t2345\t2345\t2345", "77 500", "/srv", "blue", "/not/there/yet"]
    );
    assert!(text.contains("10.9.8.7\tpod-a") && text.ends_with("nameserver 10.9.8.7\n"), "{text}");
}

fn a_container_sees_its_own_files_and_processes_only(world: &World) {
    let pod = world.pod("a");
    let script = words(
        "status NSpid ; list / ; list /dev ; cat /proc/1/cmdline ; \
         refuses-write /proc/sys/kernel/domainname ; refuses-write /sys/x ; list /sys/firmware",
    );
    let text = world.output(world.container(&pod, "main", &script));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "1");
    assert_eq!(lines[1], "dev etc proc program sys");
    // A kernel may lack its own memory's file.
    assert_eq!(
        lines[2].trim_start_matches("core "),
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert!(lines[3].starts_with("/program"));
    assert_eq!(
        lines[4..],
        ["read-only filesystem or storage medium", "read-only filesystem or storage medium", ""]
    );
}

fn layers_are_stacked_and_never_written(world: &World) {
    let pod = world.pod("a");
    let text = world.output(world.container(
        &pod,
        "one",
        &["cat", "/etc/motd", ";", "write", "/etc/motd", "mine", ";", "cat", "/etc/motd"],
    ));
    assert_eq!(text, "top\nmine\n");
    let mut read_only =
        world.container(&pod, "two", &["cat", "/etc/motd", ";", "refuses-write", "/etc/motd"]);
    read_only.security.read_only_root = true;
    assert_eq!(world.output(read_only), "top\nread-only filesystem or storage medium\n");
    assert_eq!(fs::read_to_string(world.dir.path().join("image/top/etc/motd")).expect("a file"), "top");
}

fn a_program_that_is_not_root_opens_its_own_outputs_by_name(world: &World) {
    let pod = world.pod("a");
    let script = ["write", "/dev/stdout", "by name\n", ";", "write", "/dev/stderr", "this too\n"];
    let mut spec = world.container(&pod, "main", &[&script[..], &[";", "wait"]].concat());
    spec.rootfs.config.user = "web".to_owned();
    let id = spec.id.clone();
    world.start(spec);
    world.wait_for_output(&id, "waiting");
    let said = world.log(&id, LogOptions::default());
    assert!(said.contains("by name") && said.contains("this too"), "{said}");
    let ran = exec(world, &id, &script, PATIENCE).expect("it runs");
    assert_eq!(String::from_utf8_lossy(&ran.output), "by name\nthis too\n");
}

const RIGHTS: [&str; 11] =
    ["status", "CapEff", ";", "status", "CapBnd", ";", "status", "NoNewPrivs", ";", "status", "Seccomp"];

fn rights(world: &World, name: &str, change: impl FnOnce(&mut ContainerSpec)) -> Vec<String> {
    let pod = world.pod("a");
    let mut spec = world.container(&pod, name, &RIGHTS);
    change(&mut spec);
    world.output(spec).lines().map(str::to_owned).collect()
}

fn the_default_rights_are_few_and_filtered(world: &World) {
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT AUDIT_WRITE SETFCAP
    const MASK: &str = "00000000a00405fb";
    assert_eq!(rights(world, "main", |_| {}), [MASK, MASK, "0", "2"]);
    let pod = world.pod("a");
    let text = world.output(world.container(&pod, "blocked", &["unshare"]));
    assert_eq!(text, "EPERM: Operation not permitted\n");
}

fn escalation_and_capabilities_follow_the_manifest(world: &World) {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let narrow = rights(world, "narrow", |spec| {
        spec.security = Security {
            capabilities: Capabilities { add: set(&["NET_BIND_SERVICE"]), drop: set(&["ALL"]) },
            privilege_escalation: false,
            ..Security::default()
        };
    });
    assert_eq!(narrow, ["0000000000000400", "0000000000000400", "1", "2"]);
    let user = rights(world, "user", |spec| spec.user.uid = Some(1000));
    assert_eq!(user[0], "0000000000000000");
    let open = rights(world, "open", |spec| spec.security.seccomp = Seccomp::Unconfined);
    assert_eq!(open[3], "0");
    let privileged = rights(world, "privileged", |spec| spec.security.privileged = true);
    assert_eq!(privileged[3], "0");
    assert!(privileged[0].ends_with("ffffff"), "{privileged:?}");
}

fn files_of_a_volume_are_seen_and_read_only_ones_refuse(world: &World) {
    let pod = world.pod("a");
    let file = |text: &str, mode| VolumeFile { content: text.as_bytes().to_vec(), mode };
    let files = BTreeMap::from([
        ("key".to_owned(), file("value", 0o444)),
        ("deep/er".to_owned(), file("deeper", 0o600)),
    ]);
    let put = |files, group| {
        let files = Volume::Files { files, secret: true, group };
        world.run(world.engine().put_volume(&pod, "config", files)).expect("a volume");
    };
    put(files.clone(), None);
    let script = [
        "cat",
        "/config/key",
        ";",
        "cat",
        "/one",
        ";",
        "refuses-write",
        "/config/key",
        ";",
        "list",
        "/config",
    ];
    let mut spec = world.container(&pod, "main", &script);
    spec.mounts =
        vec![volume("config", None, "/config", true), volume("config", Some("deep/er"), "/one", true)];
    let output = world.output(spec);
    let (words, list) = output.trim_end().rsplit_once('\n').expect("some lines");
    assert_eq!(words, "value\ndeeper\nread-only filesystem or storage medium");
    // Beside the files there is where they lie, as kubelet lays them out.
    assert!(list.starts_with("..") && list.ends_with(" ..data deep key"), "{list}");

    // A file that only its owner may read, for a user who is in the volume's group, and for one who is not.
    for (name, group, code) in [("stranger", None, 99), ("friend", Some(500), 0)] {
        put(files.clone(), group);
        let mut spec = world.container(&pod, name, &["cat", "/config/deep/er"]);
        spec.mounts = vec![volume("config", None, "/config", true)];
        spec.user = User { uid: Some(1234), groups: BTreeSet::from([500]), ..User::default() };
        let id = spec.id.clone();
        world.start(spec);
        assert_eq!(world.end(&id).end, End::Exited { code, signal: None, oom: false }, "{name}");
    }
}

fn a_part_of_a_volume_or_of_the_machine_is_seen_and_made_where_it_is_absent(world: &World) {
    let pod = world.pod("a");
    world.run(world.engine().put_volume(&pod, "v", Volume::Directory)).expect("a volume");
    let machine = world.dir.path().join("machine");
    fs::create_dir_all(machine.join("logs")).expect("a directory");
    fs::write(machine.join("logs/old"), "from the machine").expect("a file");
    let part = |sub_path: &str, destination: &str| Mount {
        source: MountSource::Machine { path: machine.clone(), sub_path: Some(sub_path.to_owned()) },
        destination: destination.to_owned(),
        read_only: false,
    };
    let script =
        ["cat", "/old", ";", "write", "/new/file", "1", ";", "write", "/v/file", "2", ";", "list", "/v"];
    let mut spec = world.container(&pod, "main", &script);
    spec.mounts =
        vec![part("logs/old", "/old"), part("made/here", "/new"), volume("v", Some("deep/er"), "/v", false)];
    // The volume is everybody's, and so is a part of it.
    let other = ContainerSpec {
        args: Some(["write", "/v/file", "3"].map(str::to_owned).to_vec()),
        mounts: vec![volume("v", Some("made/for"), "/v", false)],
        user: User { uid: Some(1234), ..User::default() },
        ..world.container(&pod, "other", &[])
    };
    assert_eq!(world.output(spec), "from the machine\nfile\n");
    assert_eq!(fs::read_to_string(machine.join("made/here/file")).expect("written"), "1");
    world.output(other);

    symlink("/etc", machine.join("way-out")).expect("a link");
    let mut spec = world.container(&pod, "out", &["list", "/seen"]);
    spec.mounts = vec![part("way-out/ssl", "/seen")];
    let refused = world.run(world.engine().start(spec)).expect_err("a refusal");
    assert!(matches!(refused, Error::Io { .. } | Error::Start { .. }), "{refused}");
}

fn the_manifest_says_the_stop_signal_the_groups_and_what_is_hidden(world: &World) {
    let pod = world.pod("a");
    let mut spec = world.container(&pod, "main", &["status", "Groups", ";", "wait"]);
    spec.rootfs.config.user = "web".to_owned();
    // Nobody catches it, and no first process of a pid namespace dies of what it does not catch.
    spec.rootfs.config.stop_signal = Some("SIGUSR1".to_owned());
    spec.stop_signal = Some("SIGTERM".to_owned());
    spec.user = User { groups: BTreeSet::from([500]), only_these_groups: true, ..User::default() };
    let id = spec.id.clone();
    world.start(spec);
    world.wait_for_output(&id, "500\nwaiting");
    let exit = world.run(world.engine().stop(&id, PATIENCE)).expect("a stop");
    assert_eq!(exit.end, End::Exited { code: 0, signal: None, oom: false });

    // Whatever else lies there, this belongs to the pod.
    let script = ["write", "/proc/sys/kernel/hostname", "renamed", ";", "hostname"];
    let mut spec = world.container(&pod, "unmasked", &script);
    spec.security.unmasked_proc = true;
    assert_eq!(world.output(spec), "renamed\n");
}

fn last_words_are_kept(world: &World) {
    let pod = world.pod("a");
    let mut spec = world.container(
        &pod,
        "main",
        &["write", "/dev/termination-log", "it was the disk", ";", "exit", "2"],
    );
    spec.termination_message_path = Some("/dev/termination-log".to_owned());
    let id = spec.id.clone();
    world.start(spec);
    let exit = world.end(&id);
    assert_eq!(exit.message.as_deref(), Some("it was the disk"));
    assert_eq!(exit.end, End::Exited { code: 2, signal: None, oom: false });
}

fn a_specification_that_cannot_be_done_is_refused_untouched(world: &World) {
    let pod = world.pod("a");
    let good = world.container(&pod, "main", &["exit", "0"]);
    let with = |change: fn(&mut ContainerSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec
    };
    for spec in [
        with(|spec| spec.rootfs.config.user = "stranger".to_owned()),
        with(|spec| spec.security.run_as_non_root = true),
        with(|spec| spec.mounts = vec![volume("v", None, "/a/../../b", false)]),
        with(|spec| spec.mounts = vec![volume("v", None, "/", false)]),
        with(|spec| spec.mounts = vec![volume("v", Some("../other"), "/x", false)]),
        with(|spec| spec.rootfs.config.stop_signal = Some("SIGNOTHING".to_owned())),
        with(|spec| spec.security.capabilities.add = BTreeSet::from(["FLY".to_owned()])),
        with(|spec| spec.env = vec![("A=B".to_owned(), String::new())]),
    ] {
        let refused = world.run(world.engine().start(spec));
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    }
    let mut foreign = sandbox("b");
    foreign.sysctls.insert("kernel.panic".to_owned(), "1".to_owned());
    assert!(matches!(world.run(world.engine().create_sandbox(foreign)), Err(Error::Refused { .. })));
    world.start(good);
}

fn processes_left_behind_by_a_program_are_killed(world: &World) {
    let pod = world.pod("a");
    let spec = world.container(&pod, "main", &["child", "wait-deaf", ";", "print", "gone", ";", "exit", "0"]);
    let id = spec.id.clone();
    let cgroup = world.cgroup("pids", &id);
    world.start(spec);
    world.end(&id);
    assert!(!cgroup.exists());
}
