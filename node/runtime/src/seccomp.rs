//! Which system calls a container may make, compiled in the daemon so that a shim only loads bytes.
//!
//! Two filters are stacked, because a compiled filter has one answer for what it does not let through:
//! - the allow list; everything else gets EPERM;
//! - on top, ENOSYS for `clone3` (its flags lie behind a pointer, which no filter can read; the C
//!   library then falls back to `clone`) and for calls newer than our table, so that programs that try
//!   the newest call first fall back as on an older kernel.
//!
//! Limit: programs of another architecture (32 bit on 64 bit) are killed.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::capability;
use crate::oci;

mod files;
mod table;

/// Flags of `clone` that make namespaces.
const CLONE_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u64;

/// The values of `personality` that change nothing a filter relies on: Linux, 32 bit addresses, old `uname`, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Sockets to the hypervisor leave every network namespace behind.
const AF_VSOCK: u64 = 40;

/// The newest system call our table was made with; higher numbers get ENOSYS.
// `mseal` of Linux 6.10.
const NEWEST: u32 = 462;

/// Compiled filters, to be loaded in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filters(Vec<Vec<u8>>);

impl Filters {
    /// The default filters for a container with these capabilities (a mask).
    pub(crate) fn runtime_default(capabilities: u64) -> Self {
        Self(vec![encode(&allow_list(capabilities)), encode(&not_implemented())])
    }

    /// The filter for a process that does nothing but read and write files; the rest gets EPERM.
    pub(crate) fn for_files() -> Self {
        Self(vec![encode(&compile(files::CALLS.iter().map(|call| (*call, Vec::new())).collect()))])
    }

    /// Loads them for this thread, which must have given up new privileges, and for all it will execute.
    pub(crate) fn load(&self) -> std::io::Result<()> {
        self.0.iter().try_for_each(|filter| crate::sys::seccomp::load(filter))
    }

    /// One file for all: each filter behind its length.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for filter in &self.0 {
            let len = u32::try_from(filter.len()).expect("at most 4096 instructions of 8 bytes");
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(filter);
        }
        bytes
    }

    /// The filters in such a file, still in one piece of memory; `None` where it is damaged.
    pub(crate) fn split(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
        let mut filters = Vec::new();
        while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
            let (filter, rest) = rest.split_at_checked(u32::from_le_bytes(*len).try_into().ok()?)?;
            filters.push(filter);
            bytes = rest;
        }
        bytes.is_empty().then_some(filters)
    }
}

/// The same list in the words of `config.json`.
pub(crate) fn oci_profile(capabilities: u64) -> oci::SeccompProfile {
    let allow = |names, args| oci::SeccompRule { names, action: "SCMP_ACT_ALLOW", errno_ret: None, args };
    let argument = |value, value_two, op| vec![oci::SeccompArgument { index: 0, value, value_two, op }];
    let mut syscalls = vec![allow(allowed(capabilities).map(|(name, _)| name).collect(), Vec::new())];
    if !has(capabilities, "SYS_ADMIN") {
        syscalls.push(allow(vec!["clone"], argument(CLONE_NAMESPACES, 0, "SCMP_CMP_MASKED_EQ")));
    }
    for value in PERSONALITIES {
        syscalls.push(allow(vec!["personality"], argument(value, 0, "SCMP_CMP_EQ")));
    }
    syscalls.push(allow(vec!["socket"], argument(AF_VSOCK, 0, "SCMP_CMP_NE")));
    // Whoever is told EPERM gives up instead of falling back to `clone`.
    syscalls.push(oci::SeccompRule {
        names: vec!["clone3"],
        action: "SCMP_ACT_ERRNO",
        errno_ret: Some(libc::ENOSYS),
        args: Vec::new(),
    });
    oci::SeccompProfile { default_action: "SCMP_ACT_ERRNO", default_errno_ret: libc::EPERM, syscalls }
}

/// Calls that are let through whatever their arguments.
fn allowed(capabilities: u64) -> impl Iterator<Item = (&'static str, i64)> {
    let by_capability = table::BY_CAPABILITY.iter().filter(move |(name, _)| has(capabilities, name));
    table::ALWAYS.iter().chain(table::OLD).chain(by_capability.flat_map(|(_, calls)| *calls)).copied()
}

fn allow_list(capabilities: u64) -> BpfProgram {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        allowed(capabilities).map(|(_, call)| (call, Vec::new())).collect();
    if !has(capabilities, "SYS_ADMIN") {
        rules.insert(libc::SYS_clone, vec![first_argument(SeccompCmpOp::MaskedEq(CLONE_NAMESPACES), 0)]);
    }
    let personalities = PERSONALITIES.map(|value| first_argument(SeccompCmpOp::Eq, value));
    rules.insert(libc::SYS_personality, personalities.into());
    rules.insert(libc::SYS_socket, vec![first_argument(SeccompCmpOp::Ne, AF_VSOCK)]);

    compile(rules)
}

/// EPERM for all that no rule lets through.
fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>) -> BpfProgram {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .expect("a 64 bit architecture that the filter compiler knows");
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, eperm, SeccompAction::Allow, arch);
    let program = filter.and_then(BpfProgram::try_from);
    program.expect("a constant table with two different actions compiles")
}

fn first_argument(operator: SeccompCmpOp, value: u64) -> SeccompRule {
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value);
    condition.and_then(|condition| SeccompRule::new(vec![condition])).expect("argument 0 exists")
}

/// ENOSYS for `clone3` and everything newer than [`NEWEST`].
fn not_implemented() -> BpfProgram {
    let instruction = |code: u32, jt, jf, k| seccompiler::sock_filter {
        code: u16::try_from(code).expect("codes of classic BPF have 16 bits"),
        jt,
        jf,
        k,
    };
    let compare = |operator| libc::BPF_JMP | operator | libc::BPF_K;
    let clone3 = u32::try_from(libc::SYS_clone3).expect("a small number");
    let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        // The number of the call is the first word of what a filter sees.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(compare(libc::BPF_JGT), 2, 0, NEWEST),
        instruction(compare(libc::BPF_JEQ), 1, 0, clone3),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, enosys),
    ]
}

fn has(capabilities: u64, name: &str) -> bool {
    capabilities & capability::mask([name]) != 0
}

fn encode(program: &BpfProgram) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_come_back_from_their_file_and_a_damaged_one_is_refused() {
        let filters = Filters::runtime_default(0);
        let bytes = filters.to_bytes();
        let split = Filters::split(&bytes).expect("a whole file");
        assert_eq!(split.len(), 2);
        assert!(split.iter().all(|filter| !filter.is_empty() && filter.len() % 8 == 0));
        assert_eq!(Filters::split(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn mounting_needs_the_capability() {
        let names = |mask| allowed(mask).map(|(name, _)| name).collect::<Vec<_>>();
        assert!(!names(0).contains(&"mount"));
        assert!(names(capability::mask(["SYS_ADMIN"])).contains(&"mount"));
    }
}
