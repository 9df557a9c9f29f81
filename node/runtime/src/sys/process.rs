//! Processes: fork, pidfds, and the switches of `prctl`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::check;

/// Which side of a fork this is.
pub(crate) enum Fork {
    Parent { child: i32 },
    Child(Alone),
}

/// Says that this process has one thread: it began as a copy of one that had no other.
pub(crate) struct Alone(());

/// `fork`, for a process that has one thread.
///
/// Fails in a process with more: the child would find locks that nobody will ever release.
pub(crate) fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("will not fork with {threads} threads")));
    }
    // SAFETY: this is the only thread, so no lock is held by another one and the child is a whole process.
    which_side(unsafe { libc::fork() }.into())
}

/// Forks a sibling: a child of the parent of this process, which has one thread and must start no other.
pub(crate) fn fork_sibling(_: &Alone) -> io::Result<Fork> {
    let (flags, none) = (libc::CLONE_PARENT | libc::SIGCHLD, 0_usize);
    // SAFETY: no memory is shared and no stack given, so this is a `fork` but for the new process's parent. This is
    // the only thread, as above.
    which_side(unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) })
}

fn which_side(result: libc::c_long) -> io::Result<Fork> {
    match check(result)? {
        0 => Ok(Fork::Child(Alone(()))),
        child => Ok(Fork::Parent { child: i32::try_from(child).map_err(io::Error::other)? }),
    }
}

/// `pidfd_open`: a descriptor that becomes readable when the process ends and never means another one.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

/// Waits, without a thread, until the process behind a pidfd has ended. Needs a tokio runtime.
pub(crate) async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    // SAFETY: an `OwnedFd` stays the same open descriptor until it is dropped, and is dropped after this.
    let pidfd =
        unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(io::Error::from)?;
    pidfd.readable().await.map(drop)
}

/// `pidfd_send_signal`.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null `info` asks for what `kill` would send.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) }).map(drop)
}

/// Marks every descriptor from `first` on to be closed by `execve`.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no pointers are passed; descriptors stay open until the exec.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result).map(drop)
}

/// The signal this process gets when its parent dies; any later change of user clears it.
pub(crate) fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal.unsigned_abs().into())
}

/// Forbids others to look into this process (`ptrace`, `/proc/<pid>/exe`) until the next exec.
pub(crate) fn set_not_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// Whether a change of user keeps the permitted capabilities.
pub(crate) fn set_keep_capabilities(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, keep.into())
}

/// No program executed from now on gains anything by set-uid bits or file capabilities.
pub(crate) fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

fn prctl(option: i32, argument: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used above take integers, no pointers.
    check(unsafe { libc::prctl(option, argument, zero, zero, zero) }.into()).map(drop)
}

/// Sets every signal back to what a fresh process has, and blocks none.
///
/// The Rust runtime ignores SIGPIPE, which an executed program would inherit.
pub(crate) fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid handler; for signals that cannot be set the call just fails.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero set is a valid place for `sigemptyset` to write to.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is a set of ours; the old mask is not asked for.
    let result = unsafe {
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    check(result.into()).map(drop)
}

/// `setrlimit`; `u64::MAX` is no limit.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives during the call; an unknown resource makes it fail.
    check(unsafe { libc::setrlimit64(resource, &raw const limit) }.into()).map(drop)
}
