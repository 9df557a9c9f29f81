//! Whether this machine's kernel passes packets on from one interface to another, which pods need.
//!
//! The switch is the machine's (`net.ipv4.ip_forward`): it is set when a pod needs it, and never set back, since
//! other software may have come to rely on it.

use std::fs::{self, OpenOptions};
use std::io;

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";

/// Whether this process may set the switch.
pub(crate) fn check() -> io::Result<()> {
    OpenOptions::new().write(true).open(SWITCH).map(drop)
}

/// Whether the kernel passes packets on at all.
pub fn is_on() -> io::Result<bool> {
    Ok(fs::read_to_string(SWITCH)?.trim() != "0")
}

/// Lets the kernel pass packets on. Nothing is written where it does: a write would touch each interface anew.
pub fn switch_on() -> io::Result<()> {
    if is_on()? { Ok(()) } else { fs::write(SWITCH, "1") }
}

/// Whether what comes in by an interface is passed on. Somebody may have switched that off for one alone.
pub fn is_on_at(interface: &str) -> bool {
    let switch = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{interface}/forwarding"));
    // An interface that has just gone passes nothing on, and nothing comes in by it.
    switch.map_or(true, |switch| switch.trim() != "0")
}

/// Whether the firewall of old (`iptables-legacy`) filters here. Nobody is told when its rules change.
pub fn has_legacy_filter() -> bool {
    fs::read_to_string("/proc/net/ip_tables_names")
        .is_ok_and(|tables| tables.lines().any(|table| table == "filter"))
}
