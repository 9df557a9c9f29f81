//! When a machine is short of something and takes no new pods: memory, disk, processes.
//!
//! The thresholds are kubelet's hard ones, but a share of a large machine is never more than a fixed amount: a disk of
//! four terabytes with a tenth of it free is not full. What is short stays so for five minutes after it was last
//! seen, as with kubelet, so that a node on the edge is not tainted twice a minute. Nothing is killed for it here: a
//! pod has its own limits, and the kernel looks after the rest.
//!
//! Source: Kubernetes, "Node-pressure Eviction" (hard eviction thresholds, `eviction-pressure-transition-period`).

use std::time::Duration;

use crate::time::Instant;

const LASTS: Duration = Duration::from_secs(300);

/// How much there is of something and how much of that is free. A total of zero says that nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// What is there in all.
    pub total: u64,
    /// What could be had now.
    pub free: u64,
}

impl Level {
    /// Whether less than this share of it is free, and less than `enough`.
    fn is_short(self, percent: u64, enough: u64) -> bool {
        self.total > 0 && self.free < (self.total / 100 * percent).min(enough)
    }
}

/// What a machine has at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// Bytes of memory.
    pub memory: Level,
    /// Bytes of the file system with the images and what containers write.
    pub disk: Level,
    /// Files that this file system can still take.
    pub files: Level,
    /// Processes and threads.
    pub processes: Level,
}

/// What it is short of, or was a few minutes ago.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    /// MemoryPressure.
    pub memory: bool,
    /// DiskPressure.
    pub disk: bool,
    /// PIDPressure.
    pub processes: bool,
}

/// Remembers what was short of late. One for each machine.
#[derive(Debug, Default)]
pub struct Gauge {
    /// Memory, disk, processes.
    short_until: [Option<Instant>; 3],
}

impl Gauge {
    /// What is to be said after this reading.
    pub fn read(&mut self, now: Instant, readings: &Readings) -> Pressures {
        let short = [
            readings.memory.is_short(10, 100 << 20),
            readings.disk.is_short(10, 2 << 30) || readings.files.is_short(5, 100_000),
            readings.processes.is_short(5, 1000),
        ];
        for (until, short) in self.short_until.iter_mut().zip(short) {
            *until = if short { Some(now.after(LASTS)) } else { until.filter(|until| now < *until) };
        }
        let [memory, disk, processes] = self.short_until.map(|until| until.is_some());
        Pressures { memory, disk, processes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Pressures = Pressures { memory: false, disk: false, processes: false };

    fn level(total: u64, free: u64) -> Level {
        Level { total, free }
    }

    /// The least that is no pressure is `free`, of `total`.
    #[track_caller]
    fn check(total: u64, free: u64, readings: impl Fn(Level) -> Readings, pressed: Pressures) {
        for (free, expect) in [(free, CALM), (free - 1, pressed)] {
            let readings = readings(level(total, free));
            assert_eq!(Gauge::default().read(Instant(0), &readings), expect, "{readings:?}");
        }
    }

    #[test]
    fn small_machines_go_by_their_share_and_large_ones_by_what_is_enough() {
        let memory = |memory| Readings { memory, ..Readings::default() };
        let disk = |disk| Readings { disk, ..Readings::default() };
        let files = |files| Readings { files, ..Readings::default() };
        let processes = |processes| Readings { processes, ..Readings::default() };
        let (short_memory, short_disk) =
            (Pressures { memory: true, ..CALM }, Pressures { disk: true, ..CALM });
        check(500 << 20, 50 << 20, memory, short_memory);
        check(64 << 30, 100 << 20, memory, short_memory);
        check(8_000_000_000, 800_000_000, disk, short_disk);
        check(4 << 40, 2 << 30, disk, short_disk);
        check(1_000_000, 50_000, files, short_disk);
        check(4000, 200, processes, Pressures { processes: true, ..CALM });
        check(4 << 20, 1000, processes, Pressures { processes: true, ..CALM });
    }

    #[test]
    fn what_nobody_knows_is_no_pressure() {
        assert_eq!(Gauge::default().read(Instant(0), &Readings::default()), CALM);
    }

    #[test]
    fn pressure_is_told_at_once_and_taken_back_after_five_minutes_without_it() {
        let mut gauge = Gauge::default();
        let mut at = |seconds: u64, free: u64| {
            let readings = Readings { disk: level(1000, free), ..Readings::default() };
            gauge.read(Instant(seconds * 1000), &readings).disk
        };
        assert!(!at(0, 100));
        assert!(at(10, 99));
        assert!(at(200, 500));
        assert!(at(210, 99));
        assert!(at(509, 500));
        assert!(!at(510, 500));
        assert!(!at(520, 500));
    }
}
