//! Programs that are run inside of running containers.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::Doing;
use crate::engine::{ContainerId, Error, Ran};
use crate::own_program;
use crate::shim;

/// As much as kubelet keeps of what a probe prints.
const OUTPUT_BYTES_MAX: usize = 10 << 10;

pub(super) async fn run(
    id: &ContainerId,
    dir: &Path,
    command: &[String],
    limit: Duration,
) -> Result<Ran, Error> {
    if command.is_empty() || command.iter().any(|word| word.contains('\0')) {
        let (what, why) =
            (format!("command {command:?}"), "it needs a program, and no zero bytes".to_owned());
        return Err(Error::Refused { what, why });
    }
    let doing = || format!("run a program in container {id}");
    let (output, inputs) = pipe_pair().doing(doing)?;
    let [stdout, stderr] = inputs.map(Stdio::from);
    let mut helper = own_program::command().doing(doing)?;
    helper.arg(shim::EXEC_ARGUMENT).arg(dir).args(command).stdout(stdout).stderr(stderr);
    let mut child = Command::from(helper).kill_on_drop(true).spawn().doing(doing)?;
    let running = until_the_end(&mut child, output);
    match tokio::time::timeout(limit, running).await {
        Ok(ran) => ran.doing(doing),
        Err(_) => Err(Error::TooLong { id: id.clone(), limit }),
    }
}

/// One end to read from, two of the other.
fn pipe_pair() -> io::Result<(pipe::Receiver, [OwnedFd; 2])> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, [write.try_clone()?, write]))
}

/// What a program that it left behind prints after its end is not waited for.
async fn until_the_end(child: &mut Child, mut output: pipe::Receiver) -> io::Result<Ran> {
    let mut kept = Vec::new();
    let mut piece = vec![0; 4096];
    let mut keep = |bytes: &[u8]| {
        let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    };
    let mut open = true;
    let status = loop {
        tokio::select! {
            read = output.read(&mut piece), if open => match read? {
                0 => open = false,
                count => keep(&piece[..count]),
            },
            status = child.wait() => break status?,
        }
    };
    while let Ok(count @ 1..) = output.try_read(&mut piece) {
        keep(&piece[..count]);
    }
    // A helper that was killed died with its program, by the daemon's will or with the container.
    Ok(Ran { code: status.code().unwrap_or(128 + libc::SIGKILL), output: kept })
}
