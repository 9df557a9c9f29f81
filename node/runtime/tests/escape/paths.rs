//! Towards the machine's files: by links, by mounts, by what the daemon has open.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;

use nix::fcntl::{FcntlArg, fcntl};
use nix::mount::{MsFlags, mount, umount};
use skein_runtime::{ContainerSpec, Engine, Error, Mount, MountSource, Volume};

use super::{Outcome, ensure, outcome, printed, ways};
use crate::isolation::volume;
use crate::world::World;

ways![
    a_link_in_the_image_leads_no_mount_out_of_it: LinksOutOfImages,
    a_link_in_a_volume_leads_no_part_of_it_out_of_it: LinksOutOfVolumes,
    a_mount_keeps_what_is_forbidden_on_the_machine: MountFlagsLost,
    what_a_container_mounts_is_not_mounted_on_the_machine: MountsShared,
    the_machines_files_do_not_lie_beneath_the_containers: OldRootKept,
    a_descriptor_of_the_daemon_is_no_directory_to_start_in: DirectoryAnywhere,
    a_descriptor_of_the_daemon_is_not_handed_on: DescriptorsKept,
];

fn a_link_in_the_image_leads_no_mount_out_of_it(world: &World) -> Result<(), String> {
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).expect("a directory");
    let top = world.dir.path().join("image/top");
    symlink(&outside, top.join("absolute")).expect("a link");
    symlink(format!("../../../../../../../../../..{}", outside.display()), top.join("relative"))
        .expect("a link");
    symlink(format!("/proc/1/root{}", outside.display()), top.join("magic")).expect("a link");
    let pod = world.pod("a");
    world.run(world.engine().put_volume(&pod, "v", Volume::Directory)).expect("a volume");
    for name in ["absolute", "relative", "magic"] {
        let mut spec = world.container(&pod, name, &["list", "/"]);
        spec.mounts = vec![volume("v", None, &format!("/{name}/in"), false)];
        // Made inside of the image's own root, or refused with a reason.
        if let Outcome::Refused(reason) = outcome(world, spec) {
            assert!(reason.contains("mount"), "{reason}");
        }
        let made = fs::read_dir(&outside).expect("a listing").count();
        ensure(made == 0, || format!("{name} led to {}", outside.display()))?;
    }
    Ok(())
}

fn a_link_in_a_volume_leads_no_part_of_it_out_of_it(world: &World) -> Result<(), String> {
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).expect("a directory");
    fs::write(outside.join("secret"), "").expect("a file");
    let pod = world.pod("a");
    let dir = world.run(world.engine().put_volume(&pod, "v", Volume::Directory)).expect("a volume");
    symlink(&outside, dir.join("way-out")).expect("a link");
    let mut spec = world.container(&pod, "main", &["list", "/seen"]);
    spec.mounts = vec![volume("v", Some("way-out"), "/seen", false)];
    let id = spec.id.clone();
    // Refused by the daemon or by the shim.
    match world.run(world.engine().start(spec)) {
        Err(Error::Io { .. } | Error::Start { .. }) => Ok(()),
        Err(other) => panic!("{other}"),
        Ok(_) => {
            world.end(&id);
            Err(world.log(&id, Default::default()))
        }
    }
}

fn a_mount_keeps_what_is_forbidden_on_the_machine(world: &World) -> Result<(), String> {
    let path = world.dir.path().join("careful");
    fs::create_dir(&path).expect("a directory");
    let forbidden = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), &path, Some("tmpfs"), forbidden, None::<&str>).expect("a mount");
    let pod = world.pod("a");
    let mut spec = world.container(&pod, "main", &["cat", "/proc/self/mountinfo"]);
    let source = MountSource::Machine { path: path.clone(), sub_path: None };
    spec.mounts = vec![Mount { source, destination: "/careful".to_owned(), read_only: false }];
    let text = printed(outcome(world, spec));
    umount(&path).expect("nobody is there");
    let line = text.lines().find(|line| line.contains(" /careful ")).expect("it is mounted");
    ensure(["nosuid", "nodev", "noexec"].iter().all(|flag| line.contains(flag)), || line.to_owned())
}

fn what_a_container_mounts_is_not_mounted_on_the_machine(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    let spec = world.container(&pod, "main", &["wait"]);
    // One that runs, or that was taken back: where its mounts are shared, they are not its own to step into.
    let started = world.run(world.engine().start(spec));
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts of this machine");
    let of_container = mounts.lines().find(|line| line.contains("main-0/rootfs"));
    ensure(of_container.is_none(), || of_container.unwrap_or_default().to_owned())?;
    started.map(drop).expect("it runs");
    Ok(())
}

/// One step up from the root is the root, unless something is mounted there.
fn the_machines_files_do_not_lie_beneath_the_containers(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    let text = printed(outcome(world, world.container(&pod, "main", &["list", "/", ";", "list", "/.."])));
    let lines: Vec<_> = text.lines().collect();
    ensure(lines[0] == lines[1], || text.clone())
}

fn a_descriptor_of_the_daemon_is_no_directory_to_start_in(world: &World) -> Result<(), String> {
    let leak = Leak::of_root();
    let pod = world.pod("a");
    for (name, below) in [("itself", ""), ("below", "/tmp")] {
        let workdir = Some(format!("/proc/self/fd/{}{below}", leak.number()));
        let spec = world.container(&pod, name, &["list", "."]);
        match outcome(world, ContainerSpec { workdir, ..spec }) {
            Outcome::Refused(reason) => assert!(reason.contains("change to directory"), "{reason}"),
            Outcome::Ran(code, text) => return Err(format!("{code}: {text}")),
        }
    }
    Ok(())
}

fn a_descriptor_of_the_daemon_is_not_handed_on(world: &World) -> Result<(), String> {
    let leak = Leak::of_root();
    let pod = world.pod("a");
    let path = format!("/proc/self/fd/{}", leak.number());
    match outcome(world, world.container(&pod, "main", &["list", &path])) {
        Outcome::Ran(99, text) if text.contains("entity not found") || text.contains("No such file") => {
            Ok(())
        }
        Outcome::Ran(_, text) => Err(text),
        Outcome::Refused(reason) => panic!("{reason}"),
    }
}

/// A directory of the machine that the daemon has open, and forgot to close when it executes others.
struct Leak(File);

impl Leak {
    fn of_root() -> Self {
        let root = File::open("/").expect("a directory");
        fcntl(root.as_fd(), FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("its flags");
        Self(root)
    }

    fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}
