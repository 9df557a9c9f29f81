//! Loading a system call filter.

use std::io;

use super::check;

/// Loads `program`, instructions of 8 bytes each, for this thread and all it will execute.
///
/// Unlike `seccompiler::apply_filter` it leaves `no_new_privs` alone: without it the caller needs
/// CAP_SYS_ADMIN, and programs with set-uid bits keep working.
pub(crate) fn load(program: &[u8]) -> io::Result<()> {
    let instructions: Vec<libc::sock_filter> = program.chunks_exact(8).map(instruction).collect();
    let len = u16::try_from(instructions.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: `filter` points to `len` instructions that live during the call; the kernel only reads them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) })
        .map(drop)
}

fn instruction(bytes: &[u8]) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::from_ne_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    }
}
