//! Every bound of the server on its clients, and the count of what each of them has under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The bounds. The defaults fit a homelab and its controllers; a full machine needs no other ones.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections on which a certificate that counts has asked for something; on further ones it is answered
    /// with 429.
    pub connections_max: usize,
    /// The same for one certificate, so that its holder leaves some to others.
    pub connections_per_certificate_max: usize,
    /// All other connections; a newer one takes the place of an older one.
    pub strangers_max: usize,
    /// The same from one address, where IPv6 counts by networks of 64 bits. Clients behind one address that all
    /// connect at the same moment need it for the time of a handshake.
    pub strangers_per_address_max: usize,
    /// How long a connection may go on without a certificate that counts.
    pub stranger_time_max: Duration,
    /// From the acceptance of a connection to the end of its first request's header; and how long a stranger's
    /// connection may be idle.
    pub header_time_max: Duration,
    /// How long a connection may go on without a request under way. Longer than the intervals in which controllers
    /// ask, shorter than what routers remember.
    pub idle_time_max: Duration,
    /// A request's body, from header to last byte.
    pub body_time_max: Duration,
    /// A request's body.
    pub body_bytes_max: usize,
    /// What is read and thrown away of a body that nobody wants, so that its sender gets to see the refusal.
    pub unread_bytes_max: usize,
    /// How long that may take.
    pub unread_time_max: Duration,
    /// Everything but watches and logs that are followed. Less than the minute after which clients give up.
    pub answer_time_max: Duration,
    /// Short requests one client has under way, up to the last byte of the answer; the next one is answered
    /// with 429.
    pub in_flight_max: usize,
    /// Watches and followed logs one client has open; the next one is answered with 429.
    pub streams_max: usize,
    /// How long a watch without `timeoutSeconds` lives, give or take a fifth, so that clients that
    /// began together do not come back together.
    pub watch_time: Duration,
    /// Between two bookmarks of a quiet watch.
    pub bookmark_every: Duration,
    /// What running requests get to end when the server stops.
    pub stop_time_max: Duration,
    /// What a connection gets to end that was idle, or of a stranger, for too long.
    pub overdue_time_max: Duration,
    /// What requests under way get to end when their certificate is revoked.
    pub revoked_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 2_000,
            connections_per_certificate_max: 500,
            // Some 40 KB each.
            strangers_max: 512,
            strangers_per_address_max: 64,
            stranger_time_max: Duration::from_secs(60),
            header_time_max: Duration::from_secs(10),
            // As upstream.
            idle_time_max: Duration::from_secs(90),
            body_time_max: Duration::from_secs(30),
            body_bytes_max: skein_api::limits::REQUEST_BYTES_MAX,
            // What lies between the largest request that is read and a mistake of a size that people make.
            unread_bytes_max: 16 << 20,
            unread_time_max: Duration::from_secs(5),
            answer_time_max: Duration::from_secs(34),
            in_flight_max: 200,
            streams_max: 1_000,
            watch_time: Duration::from_secs(45 * 60),
            bookmark_every: Duration::from_secs(60),
            stop_time_max: Duration::from_secs(5),
            overdue_time_max: Duration::from_secs(1),
            revoked_time_max: Duration::from_secs(1),
        }
    }
}

/// Two kinds of requests are counted apart, so that a client full of watches can still write.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Class {
    Short,
    Stream,
}

/// How many requests each client has under way.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<HashMap<(String, Class), usize>>);

impl InFlight {
    /// Counts one more for `client`, until the ticket is dropped. `None` if it has `max` already.
    pub(crate) fn enter(self: &Arc<Self>, client: &str, class: Class, max: usize) -> Option<Ticket> {
        let key = (client.to_owned(), class);
        let mut counts = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let count = counts.entry(key.clone()).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Ticket { counts: self.clone(), key })
    }
}

/// One request under way.
#[derive(Debug)]
pub(crate) struct Ticket {
    counts: Arc<InFlight>,
    key: (String, Class),
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_at_its_limit_waits_for_nobody_but_itself() {
        let in_flight = Arc::new(InFlight::default());
        let first = in_flight.enter("ann", Class::Short, 1);
        assert!(first.is_some());
        assert!(in_flight.enter("ann", Class::Short, 1).is_none());
        assert!(in_flight.enter("ann", Class::Stream, 1).is_some());
        assert!(in_flight.enter("bob", Class::Short, 1).is_some());
        drop(first);
        assert!(in_flight.enter("ann", Class::Short, 1).is_some());
    }

    #[test]
    fn clients_that_left_are_forgotten() {
        let in_flight = Arc::new(InFlight::default());
        drop(in_flight.enter("ann", Class::Short, 9));
        assert!(in_flight.0.lock().unwrap().is_empty());
    }
}
