//! Capabilities by name.

use std::collections::BTreeSet;

use crate::engine::{Capabilities, Error};

/// Names in the order of their numbers in the kernel.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container may do that says nothing: the usual set without [`LEFT_OUT`].
/// `ping` works without NET_RAW because a sandbox opens `ping_group_range`.
const DEFAULT: [&str; 12] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What other runtimes give as well, and few programs need.
const LEFT_OUT: [&str; 2] = ["MKNOD", "NET_RAW"];

/// Every capability.
pub(crate) fn all() -> BTreeSet<&'static str> {
    NAMES.into()
}

/// The default set with `changes`: `ALL` first, then single names; a name that is dropped stays dropped.
///
/// * `usual`: begin with what other runtimes give.
pub(crate) fn resolve(changes: &Capabilities, usual: bool) -> Result<BTreeSet<&'static str>, Error> {
    let mut result: BTreeSet<_> = DEFAULT.into();
    result.extend(LEFT_OUT.iter().filter(|_| usual));
    let (drop_all, drop) = parse(&changes.drop)?;
    let (add_all, add) = parse(&changes.add)?;
    if drop_all {
        result.clear();
    }
    if add_all {
        result = all();
    }
    result.extend(add);
    result.retain(|name| !drop.contains(name));
    Ok(result)
}

/// The bit mask of some of our names.
pub(crate) fn mask<'a>(names: impl IntoIterator<Item = &'a str>) -> u64 {
    let number = |name: &str| NAMES.iter().position(|known| *known == strip(name));
    names.into_iter().filter_map(number).fold(0, |mask, number| mask | 1 << number)
}

/// The name as OCI writes it.
pub(crate) fn oci_name(name: &str) -> String {
    format!("CAP_{name}")
}

/// Whether `ALL` is among the names, and the others.
fn parse(names: &BTreeSet<String>) -> Result<(bool, BTreeSet<&'static str>), Error> {
    let mut known = BTreeSet::new();
    for name in names.iter().filter(|name| *name != "ALL") {
        let found = NAMES.iter().find(|known| **known == strip(name)).ok_or_else(|| Error::Refused {
            what: format!("capability {name:?}"),
            why: "Linux knows none of that name; write it like NET_ADMIN or ALL".to_owned(),
        })?;
        known.insert(*found);
    }
    Ok((names.contains("ALL"), known))
}

fn strip(name: &str) -> &str {
    name.strip_prefix("CAP_").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(add: &[&str], drop: &[&str], expect: &[&str]) {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let resolved = resolve(&Capabilities { add: set(add), drop: set(drop) }, false).expect("known names");
        assert_eq!(resolved, expect.iter().copied().collect());
    }

    #[test]
    fn changes_apply_to_the_default_set() {
        check(&[], &[], &DEFAULT);
        check(&["NET_BIND_SERVICE"], &["ALL"], &["NET_BIND_SERVICE"]);
        check(&["CAP_SYS_TIME"], &["ALL"], &["SYS_TIME"]);
        check(&["ALL"], &["ALL"], &NAMES);
        check(&["KILL"], &["KILL", "ALL"], &[]);
    }

    #[test]
    fn the_usual_set_is_what_other_runtimes_give() {
        let usual = resolve(&Capabilities::default(), true).expect("no names");
        assert_eq!(usual, DEFAULT.into_iter().chain(LEFT_OUT).collect());
        let drop = ["NET_RAW".to_owned()].into();
        let dropped = resolve(&Capabilities { drop, ..Capabilities::default() }, true).expect("a known name");
        assert!(!dropped.contains("NET_RAW") && dropped.contains("MKNOD"));
    }

    #[test]
    fn an_unknown_name_is_refused_and_not_passed_over() {
        let add = ["NET_ADMON".to_owned()].into();
        assert!(resolve(&Capabilities { add, ..Capabilities::default() }, true).is_err());
    }

    #[test]
    fn the_mask_has_the_kernels_numbers() {
        assert_eq!(mask(["CHOWN", "CAP_SYS_ADMIN", "CHECKPOINT_RESTORE"]), 1 | 1 << 21 | 1 << 40);
    }
}
