//! This very program, started again as a shim or a helper.
//!
//! Such a process is seen in a container while it becomes the container's program, and `/proc/<pid>/exe` leads
//! from it to the machine's own executable: to run it there, to change its permissions, to write to it once
//! nobody runs it. So it is executed from a copy of its mount that lies nowhere, is read-only and knows no set-uid
//! bits, and from which nothing more can be executed before anything of a container is touched. The file is the
//! same one, so all processes share its pages.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;

use crate::broken;
use crate::sys::mount::{Attributes, add_attributes, clone_tree};
use crate::sys::process;

/// What it is called in lists of processes.
const NAME: &str = "skein-shim";

/// A command that executes this program, with nothing of our environment; [`begin`] is the first thing it does.
pub(crate) fn command() -> io::Result<Command> {
    let copy = clone_executable()?;
    let least = Attributes::READ_ONLY.with(Attributes::NO_SUID).with(Attributes::NO_DEV);
    add_attributes(copy.as_fd(), least, false)?;
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let mut command = Command::new(if broken!(ProgramOfTheMachine) { "/proc/self/exe" } else { &path });
    // It is handed on, because only who is executing it already can take the right to execute it away: for whoever
    // starts us, that we were started does not say that all of the program has been mapped.
    command.arg0(NAME).env_clear().current_dir("/").stdin(Stdio::from(copy));
    #[cfg(feature = "mutations")]
    crate::mutation::tell(&mut command);
    Ok(command)
}

/// In the process that was started: out of the sight of containers, and with an empty standard input, from here on.
pub(crate) fn begin() -> io::Result<()> {
    if !broken!(Dumpable) {
        process::set_not_dumpable()?;
    }
    if !broken!(ProgramExecutable) {
        let copy = open("/proc/self/fd/0", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        add_attributes(copy.as_fd(), Attributes::NO_EXEC, false)?;
    }
    let (empty, _) = pipe2(OFlag::O_CLOEXEC)?;
    nix::unistd::dup2_stdin(empty)?;
    // The kernel named us after the descriptor we were executed from.
    fs::write("/proc/self/comm", NAME)
}

/// A mount of nothing but our executable, attached nowhere.
fn clone_executable() -> io::Result<OwnedFd> {
    let own = Path::new("/proc/self/exe");
    clone_tree(own, false).or_else(|error| {
        // It was executed from a mount of another mount namespace, which has its copy in ours: find it by name.
        let path = fs::read_link(own)?;
        let (found, running) = (fs::metadata(&path)?, fs::metadata(own)?);
        if (found.dev(), found.ino()) == (running.dev(), running.ino()) {
            clone_tree(&path, false)
        } else {
            Err(error)
        }
    })
}
