//! Which devices a container may open: the few that every program expects, and terminals.
//!
//! Making device files (`mknod`) is not restricted here; opening them is. Version 1 has a controller,
//! version 2 takes a small program for the kernel's BPF machine.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::{Hierarchy, Version};
use crate::oci;
use crate::sys::bpf;

/// A character device: its name below `/dev` and its numbers.
pub(crate) struct Device {
    pub(crate) name: &'static str,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// The devices in `/dev` of every container.
pub(crate) const DEFAULT_DEVICES: [Device; 6] = [
    Device { name: "null", major: 1, minor: 3 },
    Device { name: "zero", major: 1, minor: 5 },
    Device { name: "full", major: 1, minor: 7 },
    Device { name: "random", major: 1, minor: 8 },
    Device { name: "urandom", major: 1, minor: 9 },
    Device { name: "tty", major: 5, minor: 0 },
];

/// Open besides: `/dev/ptmx`, and every `/dev/pts/N`.
const PTMX: (u32, u32) = (5, 2);
const PTS_MAJOR: u32 = 136;

/// What may be opened, `None` for any minor number.
fn allowed() -> impl Iterator<Item = (u32, Option<u32>)> {
    let named = DEFAULT_DEVICES.iter().map(|device| (device.major, Some(device.minor)));
    named.chain([(PTMX.0, Some(PTMX.1)), (PTS_MAJOR, None)])
}

/// The rules in the words of `config.json`, the last one that fits counts.
pub(crate) fn oci_rules(all_devices: bool) -> Vec<oci::DeviceRule> {
    let rule = |allow, kind: &str, major, minor, access: &str| oci::DeviceRule {
        allow,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
    };
    if all_devices {
        return vec![rule(true, "a", None, None, "rwm")];
    }
    let mut rules = vec![rule(false, "a", None, None, "rwm")];
    rules.extend(["c", "b"].map(|kind| rule(true, kind, None, None, "m")));
    rules.extend(allowed().map(|(major, minor)| rule(true, "c", Some(major), minor, "rwm")));
    rules
}

/// The hierarchy in which devices can be denied.
pub(super) fn filter(hierarchies: &[Hierarchy]) -> Option<&Hierarchy> {
    let by_controller = hierarchies.iter().find(|hierarchy| hierarchy.controls("devices"));
    let v2 = hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2);
    by_controller.or_else(|| v2.filter(|_| bpf::load_device_filter(&v2_program()).is_ok()))
}

/// Denies the group at `path` of the hierarchy all devices but ours.
pub(super) fn restrict(hierarchy: &Hierarchy, path: &Path) -> io::Result<()> {
    let dir = hierarchy.mount.join(path);
    match hierarchy.version {
        Version::V1 => {
            fs::write(dir.join("devices.deny"), "a")?;
            v1_lines().iter().try_for_each(|line| fs::write(dir.join("devices.allow"), line))
        }
        Version::V2 => {
            let program = bpf::load_device_filter(&v2_program())?;
            bpf::attach_device_filter(File::open(dir)?.as_fd(), program.as_fd())
        }
    }
}

fn v1_lines() -> Vec<String> {
    let making = ["c *:* m".to_owned(), "b *:* m".to_owned()];
    let opening = allowed().map(|(major, minor)| match minor {
        Some(minor) => format!("c {major}:{minor} rwm"),
        None => format!("c {major}:* rwm"),
    });
    making.into_iter().chain(opening).collect()
}

// The kernel's side of the filter: `struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }`
// with `access_type = access << 16 | type`.
const DEVICE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;

// Codes of eBPF instructions.
const LOAD_WORD: u8 = 0x61; // dst = *(u32 *)(src + offset)
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const AND_NUMBER: u8 = 0x57;
const SHIFT_RIGHT_NUMBER: u8 = 0x77;
const JUMP_IF_NOT_NUMBER: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Returns 1 for what is allowed, 0 for all else.
fn v2_program() -> Vec<u64> {
    // r1: the context. r2: type, r3: access, r4: major, r5: minor.
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE, 3, 2, 0, 0),
        instruction(AND_NUMBER, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_NUMBER, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
        // Making a device file, and nothing else with it.
        instruction(JUMP_IF_NOT_NUMBER, 3, 0, 2, ACCESS_MKNOD),
        instruction(MOVE_NUMBER, 0, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    for (major, minor) in allowed() {
        // Each condition that fails jumps over the rest of its block, to the next device.
        let minor = minor.map(u32::cast_signed);
        let after = |done: i16| 2 + i16::from(minor.is_some()) - done;
        program.push(instruction(JUMP_IF_NOT_NUMBER, 2, 0, after(0) + 1, DEVICE_CHAR));
        program.push(instruction(JUMP_IF_NOT_NUMBER, 4, 0, after(0), major.cast_signed()));
        if let Some(minor) = minor {
            program.push(instruction(JUMP_IF_NOT_NUMBER, 5, 0, after(1), minor));
        }
        program.push(instruction(MOVE_NUMBER, 0, 0, 0, 1));
        program.push(instruction(EXIT, 0, 0, 0, 0));
    }
    program.push(instruction(MOVE_NUMBER, 0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// `struct bpf_insn`: code, two registers of 4 bits, a jump or address offset, a number.
fn instruction(code: u8, target: u8, source: u8, offset: i16, number: i32) -> u64 {
    // The two registers are bit fields, which big-endian machines fill from the other end.
    let registers = if cfg!(target_endian = "little") { source << 4 | target } else { target << 4 | source };
    let [o0, o1] = offset.to_ne_bytes();
    let [n0, n1, n2, n3] = number.to_ne_bytes();
    u64::from_ne_bytes([code, registers, o0, o1, n0, n1, n2, n3])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, for the few instructions it uses.
    fn run(kind: u32, access: u32, major: u32, minor: u32) -> u64 {
        let context = [u64::from(access << 16 | kind), u64::from(major), u64::from(minor)];
        let mut registers = [0_u64; 11];
        let program = v2_program();
        let mut at = 0;
        loop {
            let [code, regs, o0, o1, n0, n1, n2, n3] = program[at].to_ne_bytes();
            let (target, source) = (usize::from(regs & 15), usize::from(regs >> 4));
            let offset = i16::from_ne_bytes([o0, o1]);
            let number = u64::from(i32::from_ne_bytes([n0, n1, n2, n3]).cast_unsigned());
            at += 1;
            match code {
                LOAD_WORD => {
                    registers[target] = context[usize::try_from(offset / 4).expect("an offset of ours")]
                }
                MOVE => registers[target] = registers[source],
                MOVE_NUMBER => registers[target] = number,
                AND_NUMBER => registers[target] &= number,
                SHIFT_RIGHT_NUMBER => registers[target] >>= number,
                JUMP_IF_NOT_NUMBER if registers[target] != number => {
                    at += usize::try_from(offset).expect("only forward jumps");
                }
                JUMP_IF_NOT_NUMBER => {}
                EXIT => return registers[0],
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_filter_lets_the_usual_devices_through_and_nothing_else() {
        const BLOCK: u32 = 1;
        const CHAR: u32 = 2;
        const MKNOD: u32 = 1;
        const READ_WRITE: u32 = 6;
        for device in &DEFAULT_DEVICES {
            assert_eq!(run(CHAR, READ_WRITE, device.major, device.minor), 1, "{}", device.name);
        }
        for (kind, access, major, minor, expect) in [
            (CHAR, READ_WRITE, 5, 2, 1),
            (CHAR, READ_WRITE, 136, 77, 1),
            (CHAR, READ_WRITE, 4, 64, 0),
            (CHAR, READ_WRITE, 1, 1, 0),
            (BLOCK, READ_WRITE, 1, 3, 0),
            (BLOCK, READ_WRITE, 8, 0, 0),
            (BLOCK, MKNOD, 8, 0, 1),
            (CHAR, MKNOD, 4, 64, 1),
            (BLOCK, MKNOD | READ_WRITE, 8, 0, 0),
        ] {
            assert_eq!(run(kind, access, major, minor), expect, "{kind} {access} {major}:{minor}");
        }
    }

    #[test]
    fn both_versions_allow_the_same() {
        assert_eq!(v1_lines().len(), 2 + allowed().count());
        assert!(v1_lines().contains(&"c 136:* rwm".to_owned()));
        assert_eq!(oci_rules(false).len(), 3 + allowed().count());
    }
}
