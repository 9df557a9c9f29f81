//! What a store is started with, and what follows from it for Raft.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use openraft::SnapshotPolicy;

use crate::log::Limits;
use crate::network::SNAPSHOT_TIMEOUT;
use crate::watch::RingLimits;
use crate::{ClusterTag, Session, VoterId};

/// What one store needs to know.
#[derive(Clone)]
pub struct Config {
    /// Under which name this data directory votes.
    pub voter: VoterId,
    /// Which cluster this store is of, as its files say: it speaks to no other.
    pub tag: ClusterTag,
    /// Generation of this start; its proposals are told from those of earlier starts by it.
    pub generation: u64,
    /// Wall clock in ms since 1970, for the stamps a leader puts on commands; 0 while nobody knows the time.
    pub clock: Clock,
    /// How patient elections must be.
    pub timings: Timings,
    /// How much of the past watches may ask for.
    pub ring: RingLimits,
    /// Sizes of the log's files and buffers.
    pub log: Limits,
    /// When the log is cut short.
    pub compaction: Compaction,
}

/// When a snapshot is taken, and how much stays behind it for others to catch up with; whichever bound is met first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Entries since the last snapshot.
    pub every_entries: u64,
    /// Entries kept behind a snapshot.
    pub keep_entries: u64,
    /// Bytes of commands since the last snapshot.
    pub every_bytes: u64,
    /// Bytes of commands kept behind a snapshot.
    pub keep_bytes: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        // Replaying 50,000 small entries takes 0.2 s, and 64 MiB as long; 5,000 are the writes of a restart in a busy
        // cluster.
        Compaction { every_entries: 50_000, keep_entries: 5_000, every_bytes: 64 << 20, keep_bytes: 32 << 20 }
    }
}

/// Wall time in ms since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

impl Config {
    /// The defaults, with the clock of this machine.
    pub fn new(voter: VoterId, tag: ClusterTag, generation: u64) -> Self {
        let clock = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            // Before 1970 there is no time worth telling; the last stamp is counted on from then.
            since.map_or(0, |since| since.as_millis() as u64)
        };
        Config {
            voter,
            tag,
            generation,
            clock: Arc::new(clock),
            timings: Timings::default(),
            ring: RingLimits::default(),
            log: Limits::default(),
            compaction: Compaction::default(),
        }
    }

    pub(crate) fn session(&self) -> Session {
        Session { node: self.voter.node, generation: self.generation }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("voter", &self.voter)
            .field("tag", &self.tag)
            .field("generation", &self.generation)
            .field("timings", &self.timings)
            .field("ring", &self.ring)
            .field("log", &self.log)
            .field("compaction", &self.compaction)
            .finish_non_exhaustive()
    }
}

/// What was measured of this machine's disk and of the ways to the other voters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// 99th percentile of a small synced write; zero where not measured.
    pub sync_p99: Duration,
    /// The longest round trip to another voter; zero where not measured.
    pub rtt_max: Duration,
}

const HEARTBEAT: Duration = Duration::from_millis(100);
const ELECTION_MIN: Duration = Duration::from_millis(300);
const ELECTION_MIN_MAX: Duration = Duration::from_secs(5);

impl Timings {
    /// The shortest silence of a leader that starts an election; twice that is the longest, and the lease.
    ///
    /// A vote is answered only when synced, and openraft waits for votes this long: with a sync as
    /// slow as the timeout nobody is ever elected.
    pub fn election_min(&self) -> Duration {
        let for_disk = self.sync_p99 * 3 + Duration::from_millis(100);
        let for_network = self.rtt_max * 5 / 2;
        for_disk.max(for_network).clamp(ELECTION_MIN, ELECTION_MIN_MAX)
    }

    /// Openraft gives a heartbeat up after this long, so it must exceed a round trip.
    pub fn heartbeat(&self) -> Duration {
        (self.rtt_max * 6 / 5).clamp(HEARTBEAT, self.election_min() / 2)
    }

    pub(crate) fn raft(&self) -> openraft::Config {
        let ms = |duration: Duration| duration.as_millis() as u64;
        let config = openraft::Config {
            cluster_name: "skein".into(),
            heartbeat_interval: ms(self.heartbeat()),
            election_timeout_min: ms(self.election_min()),
            election_timeout_max: ms(self.election_min() * 2),
            install_snapshot_timeout: ms(SNAPSHOT_TIMEOUT),
            max_payload_entries: 1024,
            // Both as the state machine says, by entries and by bytes.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            // The defaults reserve 65,536 places each: 25 MiB for nothing.
            api_channel_size: Some(2048),
            api_batch_capacity: 1024,
            notification_channel_size: Some(2048),
            state_machine_channel_size: Some(1024),
            enable_pre_vote: Some(true),
            backoff: "20ms 50ms 100ms 200ms ...1s".into(),
            // A leader that lost unsynced entries in a power cut would lead again in the same term
            // and give their indices to other commands. It must be elected anew.
            enable_leader_restore: Some(crate::broken!(LeaderRestored)),
            ..openraft::Config::default()
        };
        config.validate().expect("the clamps above keep heartbeat < election_min < election_max")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sync_ms: u64, rtt_ms: u64, heartbeat_ms: u64, election_ms: u64) {
        let ms = Duration::from_millis;
        let timings = Timings { sync_p99: ms(sync_ms), rtt_max: ms(rtt_ms) };
        assert_eq!((timings.heartbeat(), timings.election_min()), (ms(heartbeat_ms), ms(election_ms)));
        timings.raft();
    }

    #[test]
    fn elections_wait_for_the_disk_and_for_the_network() {
        check(0, 0, 100, 300);
        check(50, 100, 120, 300);
        check(300, 0, 100, 1000);
        check(10_000, 0, 100, 5000);
        check(0, 1000, 1200, 2500);
        check(0, 60_000, 2500, 5000);
    }
}
