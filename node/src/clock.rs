//! The clocks of a node: boot time for timers, the cluster's time for dates.
//!
//! One process is one node, so what it knows of time is one as well, and is kept here for all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use skein_control::time::{Instant, Now};

/// No difference of two times.
const UNKNOWN: i64 = i64::MIN;

/// By how much the cluster's time is ahead of this node's boot time, in milliseconds.
static CLUSTER: AtomicI64 = AtomicI64::new(UNKNOWN);
/// The same for the clock that stamps are made by while this node leads.
static STAMPS: AtomicI64 = AtomicI64::new(UNKNOWN);
/// By how much this machine's clock is off, in a lab.
static MACHINE_OFF: AtomicI64 = AtomicI64::new(0);

/// Now on the boot clock, which counts while the machine sleeps: timers, leases and silence hang on it.
pub(crate) fn boot() -> Instant {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    Instant(Duration::from(now).as_millis() as u64)
}

/// What this machine's own clock shows, in milliseconds since 1970. What ends at a date does not go by it.
pub(crate) fn machine_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (since.as_millis() as u64).saturating_add_signed(MACHINE_OFF.load(Relaxed))
}

/// Now in the cluster, in milliseconds since 1970: the median of the members' clocks
/// ([`skein_control::clocks`]), or this machine's until that is known.
pub(crate) fn now_ms() -> u64 {
    match CLUSTER.load(Relaxed) {
        UNKNOWN => machine_ms(),
        ahead => boot().0.saturating_add_signed(ahead),
    }
}

/// [`now_ms`] where the cluster's time is known.
pub(crate) fn known_ms() -> Option<u64> {
    (CLUSTER.load(Relaxed) != UNKNOWN).then(now_ms)
}

/// [`now_ms`] for certificates and tokens.
pub(crate) fn system() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms())
}

/// [`now_ms`] for objects.
pub(crate) fn wall() -> jiff::Timestamp {
    let ms = i64::try_from(now_ms()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX)
}

/// Boot time, and now in the cluster.
pub(crate) fn now() -> Now {
    Now { boot: boot(), wall: wall() }
}

/// What stamps are made by, in milliseconds since 1970; 0 while nobody knows the time.
pub(crate) fn for_stamps_ms() -> u64 {
    match STAMPS.load(Relaxed) {
        UNKNOWN => 0,
        ahead => boot().0.saturating_add_signed(ahead),
    }
}

/// From now on [`for_stamps_ms`] counts on from this.
pub(crate) fn set_for_stamps(now: Instant, ms: Option<u64>) {
    STAMPS.store(ms.map_or(UNKNOWN, |ms| ahead_of(now, ms)), Relaxed);
}

/// From now on [`now_ms`] counts on from this.
pub(crate) fn set_cluster(now: Instant, ms: u64) {
    CLUSTER.store(ahead_of(now, ms), Relaxed);
}

/// For labs: this machine's clock is off.
pub(crate) fn set_machine_off(ms: i64) {
    MACHINE_OFF.store(ms, Relaxed);
}

fn ahead_of(now: Instant, ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).saturating_sub_unsigned(now.0)
}

/// Sleeps until `at` on the boot clock; `None` never comes.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(boot())).await,
        None => std::future::pending().await,
    }
}

/// The cluster's time, as certificates are judged by it.
#[derive(Debug)]
pub(crate) struct ClusterTime;

impl ClusterTime {
    pub(crate) fn provider() -> Arc<dyn TimeProvider> {
        Arc::new(ClusterTime)
    }
}

impl TimeProvider for ClusterTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(now_ms())))
    }
}
