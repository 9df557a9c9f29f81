//! While the program runs, and when it has ended.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Config, Container};
use crate::cgroup;
use crate::engine::End;
use crate::logs::record::Output;
use crate::logs::writer::{LineCutter, LogFile};
use crate::opening;
use crate::record::{self, Durability, ExitRecord};

/// How long a process that outlived the program may keep its output open.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// As much as a pipe gives at once in one read, without costing a shim much.
const READ_BYTES: usize = 16 * 1024;

/// The longest last words of a program that are kept.
const MESSAGE_BYTES_MAX: u64 = 4096;

/// Copies output until the program ends, then kills what is left of the container and writes `exit.json`.
pub(super) fn until_the_end(
    dir: &Path,
    config: &Config,
    container: Container,
    log: LogFile,
) -> io::Result<()> {
    let mut copier = Copier::new(log);
    let (mut stdout, mut stderr) = (Some(container.stdout), Some(container.stderr));
    while !copier.step(Some(&container.pidfd), &mut stdout, &mut stderr, PollTimeout::NONE)? {}

    let status = waitpid(Pid::from_raw(container.id.pid), None)?;
    let oom = cgroup::oom_kills(&config.cgroups) > 0;
    let killed = cgroup::kill(&config.cgroups);
    let deadline = Instant::now() + DRAIN_MAX;
    while (stdout.is_some() || stderr.is_some()) && Instant::now() < deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        copier.step(None::<&File>, &mut stdout, &mut stderr, timeout)?;
    }
    copier.finish();

    let end = end_of(status, oom);
    let message = config.termination_message.as_deref().and_then(read_message);
    let record = ExitRecord { message, ..ExitRecord::new(end, Some(container.started_at_ms)) };
    // Before the record, so that whoever reads it finds nothing of the container left. A group that
    // cannot be removed is removed with the pod.
    let _ = killed.and_then(|()| cgroup::remove(&config.cgroups));
    record::write(dir, record::EXIT_FILE, &record, Durability::Durable)
}

/// From two pipes into one log.
struct Copier {
    log: LogFile,
    cutters: [LineCutter; 2],
    buffer: Vec<u8>,
    records: Vec<u8>,
}

impl Copier {
    fn new(log: LogFile) -> Self {
        let cutters = [Output::Stdout, Output::Stderr].map(LineCutter::new);
        Self { log, cutters, buffer: vec![0; READ_BYTES], records: Vec::new() }
    }

    /// Waits for something to happen and copies what there is. Pipes that end become `None`.
    ///
    /// Returns whether `process`, a pidfd, has ended; its last output may still be in the pipes.
    fn step(
        &mut self,
        process: Option<&impl AsFd>,
        stdout: &mut Option<File>,
        stderr: &mut Option<File>,
        timeout: PollTimeout,
    ) -> io::Result<bool> {
        let [has_ended, has_stdout, has_stderr] = {
            let pollable = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let fds = [
                process.map(AsFd::as_fd),
                stdout.as_ref().map(AsFd::as_fd),
                stderr.as_ref().map(AsFd::as_fd),
            ];
            let mut waiting: Vec<PollFd<'_>> = fds.into_iter().flatten().map(pollable).collect();
            match poll(&mut waiting, timeout) {
                Err(nix::Error::EINTR) => return Ok(false),
                other => other?,
            };
            let mut answers = waiting.iter();
            fds.map(|fd| fd.is_some() && answers.next().and_then(PollFd::any).unwrap_or(false))
        };
        for (index, (pipe, ready)) in [(stdout, has_stdout), (stderr, has_stderr)].into_iter().enumerate() {
            if ready && !self.copy(index, pipe.as_mut()) {
                *pipe = None;
            }
        }
        Ok(has_ended)
    }

    /// Copies one read's worth; `false` at the end of the pipe.
    fn copy(&mut self, index: usize, pipe: Option<&mut File>) -> bool {
        let Some(pipe) = pipe else { return false };
        match pipe.read(&mut self.buffer) {
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
            Ok(0) => false,
            Ok(read) => {
                self.cutters[index].push(SystemTime::now(), &self.buffer[..read], &mut self.records);
                self.flush();
                true
            }
        }
    }

    fn finish(&mut self) {
        for cutter in &mut self.cutters {
            cutter.finish(SystemTime::now(), &mut self.records);
        }
        self.flush();
    }

    fn flush(&mut self) {
        self.log.append(&self.records);
        self.records.clear();
    }
}

fn end_of(status: WaitStatus, oom: bool) -> End {
    match status {
        WaitStatus::Exited(_, code) => End::Exited { code, signal: None, oom },
        WaitStatus::Signaled(_, signal, _) => {
            let signal = signal as i32;
            End::Exited { code: 128 + signal, signal: Some(signal), oom }
        }
        _ => End::Lost,
    }
}

fn read_message(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let dir = crate::rootfs::open_root(path.parent()?).ok()?;
    let name = Path::new(path.file_name()?);
    // Made by us, and whatever became of it since.
    let file = opening::plain_file(dir.as_fd(), name, libc::RESOLVE_NO_SYMLINKS).ok()??;
    file.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}
