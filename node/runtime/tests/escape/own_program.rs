//! Towards the program of the machine that makes containers, while a process of it becomes a container's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use skein_runtime::{ContainerId, ContainerSpec, LogOptions};

use super::{Outcome, ensure, outcome, refused, ways};
use crate::isolation::exec;
use crate::world::{PATIENCE, World};

ways![
    an_entrypoint_that_names_the_runtime_itself_is_not_executed: ProgramExecutable,
    whoever_finds_the_program_of_a_helper_cannot_change_it: ProgramOfTheMachine,
    nobody_in_a_container_looks_into_a_helper: Dumpable,
    a_helper_is_seen_in_a_container_without_the_machines_rights: HelpersSeenEarly,
];

/// Where the script that is this executable's own lies in the image.
const SCRIPT: &str = "/run-the-runtime";

/// What this executable says when it is executed by that script.
const EXECUTED: &str = "executed";

/// Plays the runtime that was started from inside of a container.
pub(super) fn is_script() -> bool {
    let is_script = std::env::args().nth(1).as_deref() == Some(SCRIPT);
    if is_script {
        println!("{EXECUTED}");
    }
    is_script
}

fn an_entrypoint_that_names_the_runtime_itself_is_not_executed(world: &World) -> Result<(), String> {
    let script = world.dir.path().join("image/top").join(SCRIPT.trim_start_matches('/'));
    fs::write(&script, "#!/proc/self/exe\n").expect("a file");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its permissions");
    let pod = world.pod("a");
    let with_entrypoint = |name: &str, program: &str| {
        let spec = world.container(&pod, name, &[]);
        ContainerSpec { command: Some(vec![program.to_owned()]), ..spec }
    };
    refused(outcome(world, with_entrypoint("script", SCRIPT)), "EACCES")?;
    // By its name it is refused in any case.
    match outcome(world, with_entrypoint("name", "/proc/self/exe")) {
        Outcome::Refused(_) => Ok(()),
        Outcome::Ran(code, text) => Err(format!("{code}: {text}")),
    }
}

/// A container that may look into everybody, and exec probes in it.
fn whoever_finds_the_program_of_a_helper_cannot_change_it(world: &World) -> Result<(), String> {
    let own = Path::new("/proc/self/exe");
    let before = fs::metadata(own).expect("this program").permissions();
    let looked = look(world, "program: Ok(Err(Os { code: 30", |spec| {
        spec.security.capabilities.add = ["SYS_PTRACE".to_owned()].into();
    });
    let after = fs::metadata(own).expect("this program").permissions();
    fs::set_permissions(own, before.clone()).expect("its permissions");
    ensure(before == after, || format!("this program has mode {:o}", after.mode()))?;
    looked
}

fn nobody_in_a_container_looks_into_a_helper(world: &World) -> Result<(), String> {
    look(world, "program: Err(Os { code: 13", |_| ())
}

fn a_helper_is_seen_in_a_container_without_the_machines_rights(world: &World) -> Result<(), String> {
    look(world, "rights: 00000000a00405fb", |_| ())
}

/// How often a helper must be seen until all was seen of it.
const SEEN_ENOUGH: usize = 10;

/// Lets a container look at the helpers that run programs in it, and makes sure that each time it sees `what`.
pub(super) fn look(world: &World, what: &str, change: impl FnOnce(&mut ContainerSpec)) -> Result<(), String> {
    let pod = world.pod("a");
    let mut spec = world.container(&pod, "looker", &["look-at-helpers", "0777"]);
    change(&mut spec);
    let id = spec.id.clone();
    world.start(spec);
    world.wait_for_output(&id, "looking");
    // As many as it takes: it is not always quick enough.
    for _ in 0..3000 {
        let said = world.log(&id, LogOptions::default());
        let mut seen = said.lines().filter(|line| line.starts_with("its "));
        if let Some(other) = seen.clone().find(|line| !line.contains(what)) {
            return Err(other.to_owned());
        }
        if seen.by_ref().count() >= SEEN_ENOUGH {
            return Ok(());
        }
        exec_true(world, &id);
    }
    panic!("helpers were seen too seldom: {}", world.log(&id, LogOptions::default()))
}

fn exec_true(world: &World, id: &ContainerId) {
    let ran = exec(world, id, &["print", "x"], PATIENCE).expect("it runs");
    let said = || {
        format!(
            "{} {:?}",
            world.log(id, LogOptions::default()),
            world.run(crate::world::state(world.engine(), id))
        )
    };
    assert_eq!(ran.code, 0, "{} {}", String::from_utf8_lossy(&ran.output), said());
}
