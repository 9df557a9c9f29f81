//! Towards the files by which the kernel speaks of the machine: `/proc`, `/sys`, `/dev`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use skein_runtime::{ContainerSpec, Engine, Security, Volume};

use super::{Outcome, ensure, outcome, printed, refused, ways};
use crate::isolation::{exec, volume};
use crate::world::{PATIENCE, World, words};

ways![
    an_image_cannot_say_where_the_kernels_files_are_mounted: LinksToKernelFiles,
    a_link_in_the_image_leads_no_volume_over_the_kernels_files: VolumesOverKernelFiles,
    a_path_that_a_neighbour_swaps_leads_no_volume_over_the_kernels_files: VolumesOverKernelFiles,
    a_manifest_mounts_nothing_over_proc: VolumesAtProc,
    what_is_hidden_is_not_hidden_by_a_device_of_the_machine: MasksOfTheMachine,
    what_the_kernel_says_of_the_machine_is_hidden: NothingHidden,
    the_settings_of_the_kernel_are_only_read: SettingsWritable,
    the_devices_of_the_kernel_are_only_read: SysWritable,
    standard_input_is_no_device_of_the_machine: InputOfTheMachine,
];

/// All that a manifest can ask for to be safe.
fn strict(spec: ContainerSpec) -> ContainerSpec {
    let mut security = Security { read_only_root: true, privilege_escalation: false, ..Security::default() };
    security.capabilities.drop = ["ALL".to_owned()].into();
    ContainerSpec { security, ..spec }
}

/// The image holds `/real`, and its `/proc` is a link that disappears behind the container's own `/dev`: then
/// procfs lies at `/real` and nothing at `/proc`, so that there is nothing to hide.
fn an_image_cannot_say_where_the_kernels_files_are_mounted(world: &World) -> Result<(), String> {
    let top = world.dir.path().join("image/top");
    for (case, links) in [
        ("proc", &[("dev/p", "/real"), ("proc", "/dev/p")][..]),
        ("plain", &[("proc", "real")]),
        ("sys", &[("sys", "/real")]),
        ("dev", &[("dev", "/real")]),
    ] {
        for part in ["dev", "proc", "sys", "real"] {
            let _ = fs::remove_file(top.join(part)).or_else(|_| fs::remove_dir_all(top.join(part)));
        }
        fs::create_dir(top.join("real")).expect("a directory");
        for (name, target) in links {
            fs::create_dir_all(top.join(name).parent().expect("one above")).expect("a directory");
            symlink(target, top.join(name)).expect("a link");
        }
        let pod = world.pod(case);
        // The name of its own host: what is beside it would be the machine's.
        let script = words("list /real ; write /real/sys/kernel/hostname out");
        refused(outcome(world, strict(world.container(&pod, "main", &script))), "is a link")?;
        let mut shown = world.container(&pod, "shown", &words("list /real"));
        shown.security.unmasked_proc = true;
        refused(outcome(world, shown), "is a link")?;
    }
    Ok(())
}

fn a_link_in_the_image_leads_no_volume_over_the_kernels_files(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    world.run(world.engine().put_volume(&pod, "v", Volume::Directory)).expect("a volume");
    let link = world.dir.path().join("image/top/data");
    for (name, target, below) in [
        ("proc", "/proc", ""),
        ("below", "/proc/sys/kernel", ""),
        ("self", "/proc/self", "/task"),
        ("sys", "sys/firmware", ""),
        ("dev", "../dev", "/made/here"),
    ] {
        symlink(target, &link).expect("a link");
        let mut spec = world.container(&pod, name, &["list", "/data"]);
        spec.mounts = vec![volume("v", None, &format!("/data{below}"), false)];
        spec.security.unmasked_proc = true;
        refused(outcome(world, spec), "a link leads it to")?;
        fs::remove_file(&link).expect("a link");
    }
    Ok(())
}

/// Both containers have the volume; one of them swaps a directory in it with a link while the other starts.
fn a_path_that_a_neighbour_swaps_leads_no_volume_over_the_kernels_files(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    let shared = world.run(world.engine().put_volume(&pod, "v", Volume::Directory)).expect("a volume");
    world.run(world.engine().put_volume(&pod, "w", Volume::Directory)).expect("a volume");
    fs::create_dir(shared.join("place")).expect("a directory");
    symlink("/proc", shared.join("link")).expect("a link");
    let mut swapper = world.container(&pod, "swapper", &["swap", "/v/place", "/v/link"]);
    swapper.mounts = vec![volume("v", None, "/v", false)];
    let swapper_id = swapper.id.clone();
    world.start(swapper);
    world.wait_for_output(&swapper_id, "swapping");
    let (mut ran, mut refusals) = (0, 0);
    for attempt in 0..200 {
        let mut spec = world.container(&pod, &format!("n{attempt}"), &["is-proc", "/proc"]);
        spec.security.unmasked_proc = true;
        spec.mounts = vec![volume("v", None, "/v", false), volume("w", None, "/v/place", false)];
        match outcome(world, spec) {
            Outcome::Refused(reason) => {
                assert!(reason.contains("mount \"/v/place\""), "{reason}");
                refusals += 1;
            }
            Outcome::Ran(0, _) => ran += 1,
            Outcome::Ran(_, text) => return Err(text),
        }
        if ran > 2 && refusals > 2 {
            break;
        }
    }
    world.run(world.engine().stop(&swapper_id, Duration::ZERO)).expect("an end");
    assert!(ran > 0, "none was started");
    Ok(())
}

fn a_manifest_mounts_nothing_over_proc(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    world.run(world.engine().put_volume(&pod, "v", Volume::Directory)).expect("a volume");
    for (name, destination) in [("whole", "/proc"), ("part", "/proc/sys"), ("dots", "//./proc/./self")] {
        let mut spec = world.container(&pod, name, &["list", "/proc"]);
        spec.mounts = vec![volume("v", None, destination, false)];
        spec.security.unmasked_proc = true;
        refused(outcome(world, spec), "kernel's own files")?;
    }
    Ok(())
}

/// Who is root in a container may change the permissions of what belongs to root. 0667 harms nobody.
fn what_is_hidden_is_not_hidden_by_a_device_of_the_machine(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    let hidden: Vec<_> = ["/proc/interrupts", "/proc/keys", "/proc/timer_list", "/proc/kcore"]
        .into_iter()
        .filter(|path| Path::new(path).exists())
        .collect();
    assert!(!hidden.is_empty(), "this kernel has nothing to hide");
    with_null_watched(|| {
        for (index, path) in hidden.iter().enumerate() {
            let script = ["cat", path, ";", "chmod", path, "0667"];
            let text = printed(outcome(world, world.container(&pod, &format!("n{index}"), &script)));
            ensure(text == "\nread-only filesystem or storage medium\n", || format!("{path}: {text}"))?;
        }
        Ok(())
    })
}

fn standard_input_is_no_device_of_the_machine(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    with_null_watched(|| {
        let script = ["chmod", "/proc/self/fd/0", "0667", ";", "chmod", "/dev/null", "0667"];
        let spec = world.container(&pod, "main", &[&script[..], &[";", "wait"]].concat());
        let id = spec.id.clone();
        world.start(spec);
        // Its own device is its own.
        world.wait_for_output(&id, "done\ndone\nwaiting");
        let ran = exec(world, &id, &script, PATIENCE).expect("it runs");
        assert_eq!(String::from_utf8_lossy(&ran.output), "done\ndone\n");
        Ok(())
    })
}

fn what_the_kernel_says_of_the_machine_is_hidden(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    let text = printed(outcome(
        world,
        world.container(&pod, "main", &words("cat /proc/interrupts ; list /sys/firmware")),
    ));
    ensure(text == "\n\n", || text)
}

fn the_settings_of_the_kernel_are_only_read(world: &World) -> Result<(), String> {
    // Its own host's name: what is beside it would be the machine's.
    only_reads(world, "/proc/sys/kernel/hostname")
}

fn the_devices_of_the_kernel_are_only_read(world: &World) -> Result<(), String> {
    only_reads(world, "/sys/module/none")
}

fn only_reads(world: &World, path: &str) -> Result<(), String> {
    let pod = world.pod("a");
    match outcome(world, world.container(&pod, "main", &["refuses-write", path])) {
        Outcome::Ran(0, text) if text == "read-only filesystem or storage medium\n" => Ok(()),
        Outcome::Ran(_, text) => Err(text),
        Outcome::Refused(reason) => panic!("{reason}"),
    }
}

/// Says it if the machine's null device is not what it was, and makes it so again.
fn with_null_watched(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    // Other tries do the same.
    let null = fs::File::open("/dev/null").expect("a null device");
    null.lock().expect("a lock");
    let mode = || fs::metadata("/dev/null").expect("a null device").permissions().mode() & 0o7777;
    let before = mode();
    let worked = work();
    let after = mode();
    fs::set_permissions("/dev/null", fs::Permissions::from_mode(before)).expect("its permissions");
    worked?;
    ensure(after == before, || format!("the machine's /dev/null has mode {after:o}"))
}
