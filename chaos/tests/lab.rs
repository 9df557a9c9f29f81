//! The lab itself, on the real kernel. Skipped by name where this user may not make namespaces.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use skein_chaos::lab::{Config, Lab};

/// What a connect to a closed port tells.
#[derive(Debug, PartialEq)]
enum Answer {
    Refused,
    Silence,
}

struct Fixture {
    lab: Lab,
    // After the lab: the machines' files may go when the machines have gone.
    _dir: tempfile::TempDir,
}

fn lab() -> Option<Fixture> {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        program: env!("CARGO_BIN_EXE_skein-chaos").into(),
        dir: dir.path().to_owned(),
        network: Ipv4Addr::new(192, 0, 2, 0),
    };
    match Lab::new(config) {
        Ok(mut lab) => {
            for name in ["one", "two"] {
                lab.add(name);
                lab.power_on(name).unwrap();
            }
            Some(Fixture { lab, _dir: dir })
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Asks the kernel of the machine at `target`, from wherever `command` runs. No listener is needed: the
/// kernel of a machine that is reached refuses the connection.
fn ask(command: &mut Command, target: Ipv4Addr) -> Answer {
    let script = format!("exec 3<>/dev/tcp/{target}/9");
    let status = command.args(["1", "bash", "-c", &script]).stderr(Stdio::null()).status().unwrap();
    match status.code() {
        Some(124) => Answer::Silence,
        Some(1) => Answer::Refused,
        other => panic!("unexpected exit {other:?}"),
    }
}

/// Asks until the answer is the wanted one: after a cut a kernel takes seconds to look for its neighbour again.
#[track_caller]
fn until(wanted: Answer, mut asked: impl FnMut() -> Answer) {
    assert!((0..30).any(|_| asked() == wanted), "never {wanted:?}");
}

#[test]
fn machines_have_names_and_processes_of_their_own_and_reach_each_other() {
    let Some(Fixture { lab, _dir }) = lab() else { return };
    let output = lab.machine("two").command("cat").arg("/proc/sys/kernel/hostname").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "two\n");
    let first = lab.machine("one").command("cat").arg("/proc/1/comm").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&first.stdout), "skein-chaos\n");
    let two = lab.machine("two").address();
    assert_eq!(ask(&mut lab.machine("one").command("timeout"), two), Answer::Refused);
    assert_eq!(ask(&mut lab.command("timeout"), two), Answer::Refused);
}

#[test]
fn a_power_cut_ends_every_process_and_a_machine_comes_back_with_its_disk() {
    let Some(Fixture { mut lab, _dir }) = lab() else { return };
    let disk = lab.machine("one").disk();
    std::fs::write(disk.join("kept"), "x").unwrap();
    let mut running = lab.machine("one").command("sleep").arg("600").spawn().unwrap();
    lab.power_off("one").unwrap();
    running.wait().unwrap();
    assert_eq!(
        ask(&mut lab.machine("two").command("timeout"), lab.machine("one").address()),
        Answer::Silence
    );
    lab.readdress("one", Ipv4Addr::new(192, 0, 2, 77)).unwrap();
    lab.power_on("one").unwrap();
    assert!(disk.join("kept").exists());
    let moved = Ipv4Addr::new(192, 0, 2, 77);
    until(Answer::Refused, || ask(&mut lab.machine("two").command("timeout"), moved));
}

#[test]
fn a_running_machine_gets_another_address_and_keeps_its_gateway() {
    let Some(Fixture { mut lab, _dir }) = lab() else { return };
    lab.add_gateway();
    lab.power_off("one").unwrap();
    lab.power_on("one").unwrap();
    let (old, moved) = (lab.machine("one").address(), Ipv4Addr::new(192, 0, 2, 77));
    lab.readdress("one", moved).unwrap();
    until(Answer::Refused, || ask(&mut lab.machine("two").command("timeout"), moved));
    assert_eq!(ask(&mut lab.machine("two").command("timeout"), old), Answer::Silence);
    let routes = lab.machine("one").command("cat").arg("/proc/net/route").output().unwrap();
    // Destination, then gateway: 0.0.0.0 through 192.0.2.254, as the kernel writes it.
    assert!(String::from_utf8_lossy(&routes.stdout).contains("eth0\t00000000\tFE0200C0"), "{routes:?}");
}

#[test]
fn a_pulled_cable_is_silent_and_a_plugged_one_works_again() {
    let Some(Fixture { lab, _dir }) = lab() else { return };
    let (one, two) = (lab.machine("one").address(), lab.machine("two"));
    lab.plug("one", false).unwrap();
    assert_eq!(ask(&mut two.command("timeout"), one), Answer::Silence);
    lab.plug("one", true).unwrap();
    until(Answer::Refused, || ask(&mut two.command("timeout"), one));
}

#[test]
fn a_cut_pair_still_reaches_everybody_else() {
    let Some(Fixture { mut lab, _dir }) = lab() else { return };
    if Command::new("nft").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: the program nft is missing");
        return;
    }
    let (one, two) = (lab.machine("one").address(), lab.machine("two").address());
    lab.cut("one", "two").unwrap();
    assert_eq!(ask(&mut lab.machine("one").command("timeout"), two), Answer::Silence);
    assert_eq!(ask(&mut lab.command("timeout"), one), Answer::Refused);
    lab.mend().unwrap();
    until(Answer::Refused, || ask(&mut lab.machine("one").command("timeout"), two));
}
