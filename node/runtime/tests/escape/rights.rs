//! Towards more rights than the manifest and the defaults give.

use nix::unistd::{Gid, setgroups};
use skein_runtime::{ContainerSpec, Seccomp, User};

use super::own_program::look;
use super::{Outcome, ensure, outcome, printed, ways};
use crate::world::{World, words};

ways![
    the_groups_of_the_daemon_are_not_handed_on: GroupsKept,
    what_a_program_may_never_have_is_taken_from_it: BoundingSetKept,
    what_becomes_a_program_has_its_rights_before: CapabilitiesKept,
    set_uid_bits_give_nothing_where_the_manifest_says_so: NewPrivileges,
    a_system_call_that_is_not_let_through_is_refused: AllSystemCalls,
];

fn the_groups_of_the_daemon_are_not_handed_on(world: &World) -> Result<(), String> {
    setgroups(&[Gid::from_raw(4242)]).expect("groups");
    let pod = world.pod("a");
    let spec = world.container(&pod, "main", &words("status Groups"));
    let text =
        printed(outcome(world, ContainerSpec { user: User { uid: Some(1234), ..User::default() }, ..spec }));
    // Those of the image.
    ensure(text == "77\n", || text)
}

fn what_a_program_may_never_have_is_taken_from_it(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    let text =
        printed(outcome(world, world.container(&pod, "main", &words("status CapBnd ; status CapEff"))));
    ensure(text == "00000000a00405fb\n00000000a00405fb\n", || text)
}

fn what_becomes_a_program_has_its_rights_before(world: &World) -> Result<(), String> {
    look(world, "rights: 00000000a00405fb", |_| ())
}

fn set_uid_bits_give_nothing_where_the_manifest_says_so(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    let mut spec = world.container(&pod, "main", &words("status NoNewPrivs"));
    spec.security.privilege_escalation = false;
    // To load a filter without this takes a right that is gone by then, so that the start would fail.
    spec.security.seccomp = Seccomp::Unconfined;
    let text = printed(outcome(world, spec));
    ensure(text == "1\n", || text)
}

fn a_system_call_that_is_not_let_through_is_refused(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    match outcome(world, world.container(&pod, "main", &["unshare"])) {
        Outcome::Ran(0, text) if text.contains("EPERM") => Ok(()),
        Outcome::Ran(_, text) => Err(text),
        Outcome::Refused(reason) => panic!("{reason}"),
    }
}
