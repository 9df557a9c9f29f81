//! Engines put to the test: the contract on the fake and on this machine, then what only a kernel can show.
//!
//! This executable plays every part: it is the tests, the shim of the containers they start, the program
//! inside of those containers, and the daemon that is killed. Tests that need a kernel feature this machine
//! lacks are left out by name, with the reason on standard error.

mod adoption;
mod contract;
#[path = "../escape/mod.rs"]
mod escape;
mod isolation;
mod limits;
mod logs;
mod oracle;
mod program;
mod unpacking;
mod user;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use world::World;

fn main() -> ExitCode {
    if let Some(code) = skein_runtime::main_if_shim() {
        return code;
    }
    if let Some(code) = adoption::main_if_daemon() {
        return code;
    }
    if let Some(code) = escape::main_if_try() {
        return code;
    }
    if let Some(code) = user::main_if_user() {
        return code;
    }
    if let Some(code) = program::main_if_program() {
        return code;
    }
    let arguments = Arguments::from_args();
    let mut trials = contract::trials_on_the_fake();
    let real = [
        contract::on_this_machine(),
        isolation::TESTS,
        limits::TESTS,
        logs::TESTS,
        adoption::TESTS,
        oracle::TESTS,
        unpacking::TESTS,
        user::TESTS,
    ]
    .concat();
    match World::reason_to_skip() {
        None => {
            trials.extend(real.into_iter().map(to_trial));
            trials.extend(escape::trials());
        }
        Some(reason) if !arguments.list => {
            let names = real.iter().map(|test| test.name).chain(escape::names());
            names.for_each(|name| eprintln!("skipped {name}: {reason}"));
        }
        Some(_) => {}
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test that gets a machine of its own, and must leave nothing of it behind.
#[derive(Clone, Copy)]
struct Test {
    name: &'static str,
    run: fn(&World),
}

/// Names the functions after themselves.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[crate::Test] = &[$(crate::Test { name: stringify!($name), run: $name }),*];
    };
}
use tests;

fn to_trial(test: Test) -> Trial {
    Trial::test(test.name, move || {
        let world = World::new();
        (test.run)(&world);
        world.finish().map_err(Failed::from)
    })
}
