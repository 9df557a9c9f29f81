//! From an archive that has taken over what reads it. The part of that is played by the unpacker itself, which tries
//! all it must not be able to do once it is shut in.

use super::{ensure, ways};
use crate::world::World;

ways![
    an_unpacker_sees_nothing_but_its_place: UnpackerSeesMachine,
    an_unpacker_is_on_no_network: UnpackerOnTheNetwork,
    an_unpacker_has_the_rights_that_files_take: UnpackerKeepsCapabilities,
    an_unpacker_makes_the_calls_that_files_take: UnpackerMakesAnyCall,
    an_unpacker_has_an_end_of_memory: UnpackerUnlimited,
];

fn never_reaches(world: &World, what: &[&str]) -> Result<(), String> {
    let store = world.dir.path().join("store");
    std::fs::create_dir(&store).expect("a directory");
    let reached = skein_runtime::images::reached_by_an_unpacker(&store).expect("it tries");
    ensure(!reached.iter().any(|reached| what.contains(&reached.as_str())), || reached.join(", "))
}

fn an_unpacker_sees_nothing_but_its_place(world: &World) -> Result<(), String> {
    never_reaches(world, &["the machine's files", "other processes"])
}

fn an_unpacker_is_on_no_network(world: &World) -> Result<(), String> {
    never_reaches(world, &["the machine's network"])
}

fn an_unpacker_has_the_rights_that_files_take(world: &World) -> Result<(), String> {
    never_reaches(world, &["capabilities that files do not take", "device nodes"])
}

fn an_unpacker_makes_the_calls_that_files_take(world: &World) -> Result<(), String> {
    never_reaches(world, &["calls that files do not take"])
}

fn an_unpacker_has_an_end_of_memory(world: &World) -> Result<(), String> {
    never_reaches(world, &["memory without a limit"])
}
