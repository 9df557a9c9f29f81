//! Capabilities of a process, as bit masks.

use std::io;

use super::check;

/// Version 3 of the interface: two words of 32 bits per set.
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the effective and permitted set of this thread to `mask` and clears the inheritable one.
pub(crate) fn set(mask: u64) -> io::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let word = |bits: u64| {
        let bits = u32::try_from(bits & u64::from(u32::MAX)).expect("masked to 32 bits");
        Word { effective: bits, permitted: bits, inheritable: 0 }
    };
    let words = [word(mask), word(mask >> 32)];
    // SAFETY: header and both words have the layout of version 3 and live during the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) }).map(drop)
}

/// The permitted set of this thread.
pub(crate) fn permitted() -> io::Result<u64> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut words = [Word::default(); 2];
    // SAFETY: header and both words have the layout of version 3 and live during the call.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, words.as_mut_ptr()) })?;
    Ok(u64::from(words[0].permitted) | u64::from(words[1].permitted) << 32)
}

/// Takes everything outside `mask` from what any later program may get.
pub(crate) fn limit_bounding(mask: u64) -> io::Result<()> {
    for capability in 0..64_u64 {
        let zero: libc::c_ulong = 0;
        // SAFETY: both calls take integers, no pointers.
        let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, zero, zero, zero) };
        if known < 0 {
            // The kernel knows no higher ones.
            return Ok(());
        }
        if known == 1 && mask & (1 << capability) == 0 {
            // SAFETY: as above.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, zero, zero, zero) }.into())?;
        }
    }
    Ok(())
}
