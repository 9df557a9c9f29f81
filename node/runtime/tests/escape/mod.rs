//! Ways out of a container, one per guard, each tried twice: with the guard, where it must lead nowhere, and
//! without it, where it must be noticed. Only then does the first say anything.
//!
//! A guard is taken out of a whole process, so each try has one of its own, which is also the daemon.

mod devices;
mod images;
mod kernel_files;
mod own_program;
mod paths;
mod rights;
mod unpacker;
mod users;

use std::io::Write;
use std::process::{Command, ExitCode};

use libtest_mimic::{Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use skein_runtime::mutation::{Mutation, VARIABLE};
use skein_runtime::{ContainerSpec, End, Engine, Error, LogOptions};

use crate::world::World;

/// First argument of this executable when it tries a way out; the second is its name.
const TRY: &str = "test-escape";

/// Set where a machine is too slow to try also without the guards, which says nothing about its kernel.
const WITH_GUARDS_ONLY: &str = "SKEIN_ESCAPE_WITH_GUARDS_ONLY";

/// What a try ends with where the way leads out.
const OUT: u8 = 3;

/// A way out, and the guard against it.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    guard: Mutation,
    /// `Err` says how it got out. A panic is a test that could not be carried out.
    run: fn(&World) -> Result<(), String>,
}

/// Names the functions after themselves.
macro_rules! ways {
    ($($name:ident: $guard:ident),* $(,)?) => {
        pub(super) const WAYS: &[super::Way] = &[$(super::Way {
            name: stringify!($name),
            guard: skein_runtime::mutation::Mutation::$guard,
            run: $name,
        }),*];
    };
}
use ways;

fn all() -> impl Iterator<Item = Way> {
    [
        devices::WAYS,
        images::WAYS,
        kernel_files::WAYS,
        own_program::WAYS,
        paths::WAYS,
        rights::WAYS,
        unpacker::WAYS,
        users::WAYS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Plays the daemon of one try.
pub(crate) fn main_if_try() -> Option<ExitCode> {
    if own_program::is_script() {
        return Some(ExitCode::SUCCESS);
    }
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().filter(|first| first == TRY).and_then(|_| arguments.next())?;
    let way = all().find(|way| way.name == name).expect("a way out");
    mounts_of_its_own().expect("a mount namespace");
    let world = World::new();
    Some(match (way.run)(&world) {
        Ok(()) => {
            world.finish().expect("nothing is left");
            ExitCode::SUCCESS
        }
        Err(how) => {
            eprintln!("it got out: {how}");
            ExitCode::from(OUT)
        }
    })
}

/// What is mounted in a try is seen by nobody else. Its mounts are shared, as those of most machines are: what
/// is made in a copy of them, and not kept to it, appears here.
fn mounts_of_its_own() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    for kind in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | kind, None::<&str>)?;
    }
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    all().map(|way| Trial::test(format!("escape::{}", way.name), move || check(way))).collect()
}

pub(crate) fn names() -> Vec<&'static str> {
    all().map(|way| way.name).collect()
}

fn check(way: Way) -> Result<(), Failed> {
    let (code, said) = attempt(way, None);
    if code != Some(0) {
        return Err(format!("{code:?}: {said}").into());
    }
    if std::env::var_os(WITH_GUARDS_ONLY).is_some() {
        return Ok(());
    }
    let (code, said) = attempt(way, Some(way.guard));
    if code != Some(OUT.into()) {
        return Err(format!("without its guard {:?} nothing is noticed: {code:?}: {said}", way.guard).into());
    }
    Ok(())
}

fn attempt(way: Way, without: Option<Mutation>) -> (Option<i32>, String) {
    let mut command = Command::new("/proc/self/exe");
    command.args([TRY, way.name]);
    if let Some(guard) = without {
        command.env(VARIABLE, guard.name());
    }
    let ran = command.output().expect("a process");
    let mut said = ran.stdout;
    said.write_all(&ran.stderr).expect("memory");
    (ran.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// What became of a container.
enum Outcome {
    /// It was not started, for this reason.
    Refused(String),
    /// Its program ended with this code, having printed this.
    Ran(i32, String),
}

/// Starts a container and waits for its end.
fn outcome(world: &World, spec: ContainerSpec) -> Outcome {
    let id = spec.id.clone();
    match world.run(world.engine().start(spec)) {
        Err(Error::Start { reason, .. }) => Outcome::Refused(reason),
        Err(error @ Error::Refused { .. }) => Outcome::Refused(error.to_string()),
        Err(other) => panic!("{other}"),
        Ok(_) => match world.end(&id).end {
            End::Exited { code, .. } => Outcome::Ran(code, world.log(&id, LogOptions::default())),
            other => panic!("{other:?}"),
        },
    }
}

/// The program is not even executed, and `words` say why.
fn refused(outcome: Outcome, words: &str) -> Result<(), String> {
    match outcome {
        Outcome::Refused(reason) => {
            assert!(reason.contains(words), "{reason}");
            Ok(())
        }
        Outcome::Ran(code, text) => Err(format!("it ran, and ended with {code}: {text}")),
    }
}

/// What the program prints, which must end well.
fn printed(outcome: Outcome) -> String {
    match outcome {
        Outcome::Ran(0, text) => text,
        Outcome::Ran(code, text) => panic!("{code}: {text}"),
        Outcome::Refused(reason) => panic!("{reason}"),
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
