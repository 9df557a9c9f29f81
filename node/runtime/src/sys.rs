//! System calls the standard library and `nix` have no safe name for.
//!
//! The only `unsafe` of the project. Each module is one family of calls, each function one call; what it
//! relies on stands above the block. Nothing here decides anything.

#![expect(unsafe_code, reason = "the kernel's interface; everything above this module is safe code")]

pub(crate) mod bpf;
pub(crate) mod capability;
pub(crate) mod interface;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod seccomp;

use std::io;

/// The result of a raw system call, or the error the kernel left in `errno`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
