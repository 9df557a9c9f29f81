//! Towards the machine's devices.

use skein_runtime::{Config, ContainerSpec, Engine, Error, Machine};

use super::{ensure, outcome, printed, ways};
use crate::world::{World, container, sandbox};

ways![
    a_device_that_is_made_inside_is_not_opened: AllDevices,
    nothing_starts_where_nothing_denies_devices: NoDeviceFilter,
];

fn a_device_that_is_made_inside_is_not_opened(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    // Its own, for a start, then the kernel's memory and a serial line.
    for (name, major, minor, says) in [
        ("zero", "1", "5", "read 1\n"),
        ("memory", "1", "1", "permission denied\n"),
        ("serial", "4", "64", "permission denied\n"),
    ] {
        let mut spec = world.container(&pod, name, &["mknod-and-read", major, minor]);
        spec.security.capabilities.add.insert("MKNOD".to_owned());
        let text = printed(outcome(world, spec));
        ensure(text == says, || format!("{major}:{minor}: {text}"))?;
    }
    Ok(())
}

/// An engine of its own, on a machine whose cgroups are hidden.
fn nothing_starts_where_nothing_denies_devices(world: &World) -> Result<(), String> {
    let dir = world.dir.path();
    let config = Config {
        data_dir: dir.join("hidden/data"),
        logs_dir: dir.join("hidden/logs"),
        cgroup_mount: dir.join("hidden/cgroup"),
        ..world.config.clone()
    };
    let probe = Machine::probe(&config);
    assert!(probe.missing.iter().any(|sentence| sentence.contains("devices")), "{probe:?}");
    let started = world.run(async {
        let engine = Machine::open(config).await.expect("an engine");
        let pod = engine.create_sandbox(sandbox("h")).await.expect("a sandbox").spec.pod;
        let spec: ContainerSpec = container(dir, &pod, "main", &["print", "x"]);
        let started = engine.start(spec).await;
        engine.purge().await.expect("a purge");
        started
    });
    match started {
        Ok(_) => Err("a container runs".to_owned()),
        Err(Error::Start { reason, .. }) => {
            assert!(reason.contains("devices"), "{reason}");
            Ok(())
        }
        Err(other) => panic!("{other}"),
    }
}
