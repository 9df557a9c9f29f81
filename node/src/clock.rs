//! The two clocks of a node.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use skein_control::time::{Instant, Now};

/// Now on the boot clock, which counts while the machine sleeps: timers, leases and silence hang on it.
pub(crate) fn boot() -> Instant {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    Instant(Duration::from(now).as_millis() as u64)
}

/// Now on the wall clock, which only stamps objects.
pub(crate) fn wall() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// Both.
pub(crate) fn now() -> Now {
    Now { boot: boot(), wall: wall() }
}

/// Sleeps until `at` on the boot clock; `None` never comes.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(boot())).await,
        None => std::future::pending().await,
    }
}

/// The wall clock, as certificates are judged by it.
#[derive(Debug)]
pub(crate) struct WallTime;

impl WallTime {
    pub(crate) fn provider() -> Arc<dyn TimeProvider> {
        Arc::new(WallTime)
    }
}

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Some(UnixTime::since_unix_epoch(since))
    }
}
