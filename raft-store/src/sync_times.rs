//! How long the disk takes to make a vote durable.
//!
//! A voter answers a vote request only after a sync, and the candidate waits no longer than its
//! shortest election timeout: where the disks of a majority are slower than that, nobody is ever
//! elected. So the timeouts follow what is measured here, at start and now and then.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use openraft::async_runtime::Instant;

use crate::files::Files;

const FILE: &str = "sync-times.tmp";
/// A vote's record and a bit.
const VOTE_BYTES: usize = 96;
const ROUNDS: usize = 40;
/// Enough for a disk of 100 ms a sync to show itself, and all a start should wait.
const TIME_MAX: Duration = Duration::from_secs(2);

/// Times of small synced appends, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncTimes {
    /// The fastest.
    pub min: Duration,
    /// The middle one.
    pub p50: Duration,
    /// The slowest of a hundred; of fewer measured, the slowest.
    pub p99: Duration,
}

/// Appends and syncs up to 40 times, for two seconds at most but once in any case.
///
/// Goes through a handle [beside](Files::beside) `files`, so that it shares the disk with the log,
/// as a vote does, but not the queue.
pub async fn measure<Rt: AsyncRuntime, F: Files>(files: &F) -> io::Result<SyncTimes> {
    let files = files.beside();
    let times = measure_appends::<Rt, F>(&files).await;
    let removed = files.remove(FILE).await;
    files.close().await?;
    removed?;
    let mut times = times?;
    times.sort();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    Ok(SyncTimes { min: times[0], p50: at(50), p99: at(99) })
}

async fn measure_appends<Rt: AsyncRuntime, F: Files>(files: &F) -> io::Result<Vec<Duration>> {
    // What an interrupted run left behind is not to be overwritten in place but gone.
    files.remove(FILE).await?;
    let vote = Bytes::from_static(&[0xA5; VOTE_BYTES]);
    let begun = Rt::Instant::now();
    let mut times = Vec::with_capacity(ROUNDS);
    while times.len() < ROUNDS && (times.is_empty() || begun.elapsed() < TIME_MAX) {
        let start = Rt::Instant::now();
        files.append(FILE, (times.len() * VOTE_BYTES) as u64, vote.clone(), true).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use openraft_rt_sim::SimRuntime;

    use super::*;
    use crate::sim_files::SimDisk;

    #[test]
    fn a_fast_disk_is_measured_often_and_a_slow_one_not_for_long() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            let [fast, slow] = [Duration::from_millis(2), Duration::from_millis(30)];
            disk.set_sync_time(fast, slow);
            let times = measure::<SimRuntime, _>(&disk.files::<SimRuntime>()).await.unwrap();
            assert!(fast <= times.min && times.min < times.p50 && times.p50 < times.p99 && times.p99 <= slow);
            assert_eq!(disk.syncs(), ROUNDS as u64);

            let slow = Duration::from_secs(10);
            disk.set_sync_time(slow, slow);
            let times = measure::<SimRuntime, _>(&disk.files::<SimRuntime>()).await.unwrap();
            assert_eq!(times, SyncTimes { min: slow, p50: slow, p99: slow });
            assert_eq!(disk.syncs(), ROUNDS as u64 + 1);
            assert_eq!(disk.names(), Vec::<String>::new());
        });
    }
}
