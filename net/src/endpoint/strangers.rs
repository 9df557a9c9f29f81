//! Nodes of other clusters on the same network: addresses move from one to another. They are told of now
//! and then, and otherwise left alone.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use quinn::{ConnectionError, TransportErrorCode};
use rustls::AlertDescription;
use tokio::time::Instant;

use crate::address_book::plain;

/// How long nothing more is said of one address.
const TELL_EVERY: Duration = Duration::from_secs(3600);
/// Addresses that are remembered for it.
const STRANGERS_MAX: usize = 64;

/// Where they were met, and when that was last told.
#[derive(Default)]
pub(super) struct Strangers(Mutex<BTreeMap<IpAddr, Instant>>);

impl Strangers {
    /// A connection with whoever is at `at` came to nothing: tells the operator if that was for having
    /// another cluster's papers.
    pub(super) fn meet(&self, at: SocketAddr, error: &ConnectionError) {
        if is_foreign(error) && self.is_news(plain(at).ip(), Instant::now()) {
            tracing::warn!(%at, "a node of another cluster, or one that looks for another, is on this network; it is left alone");
        }
    }

    /// How many addresses were told of.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn is_news(&self, ip: IpAddr, now: Instant) -> bool {
        // One value changes at a time, so a panic elsewhere cannot have torn the map.
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| now.duration_since(*at) < TELL_EVERY);
        // More of them at once than this are told of by the first ones.
        let is_news = told.len() < STRANGERS_MAX && !told.contains_key(&ip);
        if is_news {
            told.insert(ip, now);
        }
        is_news
    }
}

/// Whether one end did not know the authority that the other end's certificate comes from.
fn is_foreign(error: &ConnectionError) -> bool {
    let code = match error {
        ConnectionError::TransportError(error) => error.code,
        ConnectionError::ConnectionClosed(close) => close.error_code,
        _ => return false,
    };
    code == TransportErrorCode::crypto(AlertDescription::UnknownCA.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_of_once_an_hour_and_many_are_bounded() {
        let strangers = Strangers::default();
        let now = Instant::now();
        let ip = |last: u16| IpAddr::from([10, 0, (last >> 8) as u8, last as u8]);
        assert!(strangers.is_news(ip(1), now));
        assert!(!strangers.is_news(ip(1), now + TELL_EVERY - Duration::from_secs(1)));
        assert!(strangers.is_news(ip(1), now + TELL_EVERY));
        let told = (0..1000).filter(|last| strangers.is_news(ip(*last), now + TELL_EVERY)).count();
        assert_eq!(told, STRANGERS_MAX - 1);
    }
}
