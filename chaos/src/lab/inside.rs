//! The two hidden verbs: a machine's init, and the way into a machine.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

const MACHINE: &str = "lab-machine";
const INIT: &str = "lab-init";
const HUB: &str = "lab-hub";
const ENTER: &str = "lab-enter";

/// Does the lab's part if this process was started for it, and returns its exit code. Call it before
/// anything else in `main`: it needs a process of one thread.
pub fn main_if_inside() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next()?;
    let result = match verb.to_str()? {
        MACHINE => machine(args.next().unwrap_or_default()),
        INIT => init(args.next().unwrap_or_default()),
        HUB => hub(),
        ENTER => enter_and_run(args.collect()),
        _ => return None,
    };
    Some(result.unwrap_or_else(|error| {
        eprintln!("{}: {error}", verb.display());
        ExitCode::FAILURE
    }))
}

/// Starts a machine's init. Its standard output says `init <pid>`, then `ready`; it ends with all the
/// machine when its standard input closes.
pub(super) fn start_machine(program: &Path, name: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(MACHINE).arg(name).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Starts a process that holds a network namespace, and says `ready`, until its standard input closes: with
/// the lab, however that ends. (A death signal would come when the *thread* that started it ends.)
pub(super) fn start_hub(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg(HUB).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// A command that runs `inner` in the given namespaces of process `target`. With `pid_file`, the pid of
/// `inner`, as this process sees it, is written there before `inner` has done anything.
pub(super) fn enter(
    program: &Path,
    target: i32,
    namespaces: &[&str],
    pid_file: Option<&Path>,
    inner: &Path,
) -> Command {
    let mut command = Command::new(program);
    command.arg(ENTER).arg(target.to_string()).arg(namespaces.join(","));
    command.arg(pid_file.unwrap_or(Path::new("-"))).arg(inner);
    command
}

fn machine(name: OsString) -> io::Result<ExitCode> {
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )?;
    let mut init = Command::new(std::env::current_exe()?).arg(INIT).arg(name).spawn()?;
    println!("init {}", init.id());
    io::stdout().flush()?;
    init.wait()?;
    Ok(ExitCode::SUCCESS)
}

/// Pid 1 of a machine: an own `/proc`, then reaping until the lab closes the line.
fn init(name: OsString) -> io::Result<ExitCode> {
    nix::unistd::sethostname(&name)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    println!("ready");
    io::stdout().flush()?;
    let mut line = io::stdin();
    loop {
        let mut waits =
            [PollFd::new(line.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waits, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [from_lab, _] = waits.map(|wait| wait.any().unwrap_or(false));
        if from_lab && line.read(&mut [0; 64])? == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        while waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status.pid().is_some())
        {}
    }
}

fn hub() -> io::Result<ExitCode> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    println!("ready");
    io::stdout().flush()?;
    while io::stdin().read(&mut [0; 64])? > 0 {}
    Ok(ExitCode::SUCCESS)
}

fn enter_and_run(args: Vec<OsString>) -> io::Result<ExitCode> {
    let [target, namespaces, pid_file, program, rest @ ..] = args.as_slice() else {
        return Err(io::Error::other("too few words"));
    };
    let target = target.to_string_lossy();
    let files = namespaces
        .to_string_lossy()
        .split(',')
        .map(|kind| File::open(format!("/proc/{target}/ns/{kind}")))
        .collect::<io::Result<Vec<_>>>()?;
    let mut pid_file = match pid_file.to_str() {
        Some("-") => None,
        _ => Some(File::create(pid_file)?),
    };
    // The caller gives the mount namespace last: the others' files were opened by then, in the old one.
    for file in files {
        setns(file.as_fd(), CloneFlags::empty())?;
    }
    let mut child = Command::new(program).args(rest).spawn()?;
    if let Some(file) = &mut pid_file {
        writeln!(file, "{}", child.id())?;
    }
    let status = child.wait()?;
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
