//! What is written about a container, and how a later daemon knows whether it still holds.
//!
//! Each file is replaced as a whole. The shim writes [`State`] before the program is executed and
//! [`ExitRecord`] after it ended, so (notes on the truth table are at `machine::adopt`):
//! no state: the program was never executed; state and no exit: it runs, or nobody saw it end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::{End, Exit};

/// What the shim is told besides `config.json`.
pub(crate) const SHIM_FILE: &str = "shim.json";
/// The bundle's configuration.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// The compiled system call filters.
pub(crate) const SECCOMP_FILE: &str = "seccomp.bpf";
/// [`State`].
pub(crate) const STATE_FILE: &str = "state.json";
/// [`ExitRecord`].
pub(crate) const EXIT_FILE: &str = "exit.json";

/// Raised when a field changes its meaning; readers take older ones and refuse newer ones.
pub(crate) const VERSION: u32 = 1;

/// No file of ours comes near this.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Whether two moments were in the same life of the machine.
///
/// The boot id alone does not say: machines of a lab share one kernel, and each has a pid namespace of
/// its own, which goes when its power is cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Boot {
    boot_id: String,
    pid_namespace: u64,
}

impl Boot {
    pub(crate) fn current() -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let pid_namespace = fs::metadata("/proc/self/ns/pid")?.ino();
        Ok(Self { boot_id, pid_namespace })
    }
}

/// One process, also after its number was given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Clock ticks after boot.
    start_time: u64,
}

impl ProcessId {
    /// The process that has this number now; `None` if it is gone or a zombie.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, even parentheses.
        let after_name = &stat[stat.iter().rposition(|byte| *byte == b')')? + 1..];
        let mut fields = std::str::from_utf8(after_name).ok()?.split_ascii_whitespace();
        let state = fields.next()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, start_time })
    }

    /// Whether this very process still runs.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// A container whose program was, or is just about to be, executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    pub(crate) version: u32,
    pub(crate) boot: Boot,
    pub(crate) shim: ProcessId,
    pub(crate) container: ProcessId,
    pub(crate) started_at_ms: u64,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExitRecord {
    pub(crate) version: u32,
    pub(crate) end: End,
    pub(crate) started_at_ms: Option<u64>,
    pub(crate) finished_at_ms: u64,
    pub(crate) message: Option<String>,
}

impl ExitRecord {
    pub(crate) fn new(end: End, started_at_ms: Option<u64>) -> Self {
        Self { version: VERSION, end, started_at_ms, finished_at_ms: now_ms(), message: None }
    }

    pub(crate) fn into_exit(self) -> Exit {
        Exit {
            end: self.end,
            started_at: self.started_at_ms.map(from_ms),
            finished_at: from_ms(self.finished_at_ms),
            message: self.message,
        }
    }
}

/// Milliseconds of the wall clock.
pub(crate) fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// The inverse of [`now_ms`]; a moment no clock can show becomes the epoch.
pub(crate) fn from_ms(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

/// How sure a write must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Whole or not at all for other processes; a power cut makes it worthless anyway.
    UntilPowerCut,
    /// Whole or not at all, for good.
    Durable,
}

/// Replaces `dir/name`. Fails, and changes nothing, if `dir` is gone.
pub(crate) fn write<T: Serialize>(
    dir: &Path,
    name: &str,
    value: &T,
    durability: Durability,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    write_bytes(dir, name, &bytes, durability)
}

/// The same for bytes.
pub(crate) fn write_bytes(dir: &Path, name: &str, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    // Environments of containers are among them.
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    if durability == Durability::Durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, dir.join(name))?;
    if durability == Durability::Durable {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Reads `dir/name`. `None` if it is absent or was cut off by a power cut, which means the same here.
pub(crate) fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> io::Result<Option<T>> {
    let file = match File::open(dir.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_mistaken_for_an_earlier_one_of_its_number() {
        let me =
            ProcessId::of(i32::try_from(std::process::id()).expect("a pid")).expect("this process lives");
        assert!(me.is_alive());
        assert!(!ProcessId { start_time: me.start_time + 1, ..me }.is_alive());
        assert_eq!(ProcessId::of(-1), None);
    }

    #[test]
    fn a_record_survives_the_disk_and_a_torn_one_counts_as_absent() {
        let dir = tempfile::tempdir().expect("a directory");
        let record = ExitRecord::new(End::Exited { code: 137, signal: Some(9), oom: true }, Some(5));
        write(dir.path(), EXIT_FILE, &record, Durability::Durable).expect("a write");
        assert_eq!(read(dir.path(), EXIT_FILE).expect("a read"), Some(record));
        fs::write(dir.path().join(EXIT_FILE), b"{\"version\":1,\"en").expect("a write");
        assert_eq!(read::<ExitRecord>(dir.path(), EXIT_FILE).expect("a read"), None);
        assert_eq!(read::<ExitRecord>(dir.path(), STATE_FILE).expect("a read"), None);
    }

    #[test]
    fn a_record_that_does_not_fit_its_place_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let gone = dir.path().join("gone");
        assert!(write(&gone, STATE_FILE, &1, Durability::UntilPowerCut).is_err());
        assert!(!gone.exists());
    }
}
