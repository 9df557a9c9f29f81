//! The whole cluster as its users meet it: the real program on machines in namespaces, unmodified kubectl.
//!
//! One cluster of three is shared by everything that leaves it as it was; what starts, stops or breaks
//! nodes has machines of its own. In reading order: [`house`] is a cluster in a lab, [`user`] is
//! somebody with a kubectl, [`archive`] makes images, then the subjects.

mod addresses;
mod archive;
mod authorities;
mod backup;
mod disk;
mod failover;
mod finding;
mod follow;
mod formation;
mod hooks;
mod house;
mod identity;
mod images;
mod kubectl;
mod members;
mod neighbours;
mod pods;
mod recovery;
mod remains;
mod secrets;
mod user;
mod voters;
mod watching;
mod words;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Tests by name: a function that panics when it fails.
type Tests = &'static [(&'static str, fn())];

macro_rules! tests {
    ($($name:ident),+ $(,)?) => { &[$((concat!(module_path!(), "::", stringify!($name)), $name as fn())),+] };
}
pub(crate) use tests;

fn main() -> ExitCode {
    if let Some(code) = watching::main_if_program() {
        return code;
    }
    let arguments = Arguments::from_args();
    // An ordinary user is root of a namespace where the kernel allows it; only before there are threads.
    let allowed = house::enter_namespaces();
    if let Err(reason) = &allowed {
        eprintln!("skipped: these tests need machines in namespaces; {reason}");
    }
    let mut trials: Vec<Trial> = [
        formation::TESTS,
        identity::TESTS,
        authorities::TESTS,
        pods::TESTS,
        hooks::TESTS,
        secrets::TESTS,
        images::TESTS,
        failover::TESTS,
        finding::TESTS,
        words::TESTS,
        members::TESTS,
        remains::TESTS,
        addresses::TESTS,
        neighbours::TESTS,
        disk::TESTS,
        follow::TESTS,
        recovery::TESTS,
        backup::TESTS,
        watching::TESTS,
        voters::TESTS,
    ]
    .into_iter()
    .flatten()
    .map(|(name, test)| {
        let name = name.split_once("::").map_or(*name, |(_, name)| name);
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        trial.with_ignored_flag(allowed.is_err() || !house::can(name))
    })
    .collect();
    for kubectl in user::kubectls() {
        for (name, test) in kubectl::TESTS {
            let path = kubectl.path.clone();
            let trial = Trial::test(format!("kubectl::{}::{name}", kubectl.from), move || {
                test(&path);
                Ok(())
            });
            trials.push(trial.with_ignored_flag(allowed.is_err() || !kubectl.path.exists()));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    house::leave();
    if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
