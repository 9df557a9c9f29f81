//! Which of this machine's addresses have been seen to work. Pure.
//!
//! An address is proven by another member that reached this machine there, or was reached from it. One that is
//! not, although another one is, becomes doubtful after a while: it may be the same on every machine (a virtual
//! machine's translated network) or behind a firewall. Proven once, it stays so until it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

/// How long an address may go without proof from when another one is proven: who knows them all tries the next
/// one after 100 ms, so that a few of these tries may fail for other reasons.
const TIME_TO_PROVE: Duration = Duration::from_secs(10);

/// What is known of them so far.
#[derive(Debug, Default)]
pub(crate) struct Experience {
    addresses: BTreeMap<IpAddr, Address>,
}

#[derive(Debug)]
struct Address {
    since: Instant,
    proven_at: Option<Instant>,
}

/// What follows from experience.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// At these other members reach this machine, or from these it reaches them.
    pub(crate) proven: BTreeSet<IpAddr>,
    /// At these nobody does, although there was time to.
    pub(crate) doubtful: BTreeSet<IpAddr>,
}

impl Experience {
    /// These are the machine's addresses at `now`. What is known of others is forgotten.
    pub(crate) fn follow(&mut self, now: Instant, ips: impl Iterator<Item = IpAddr>) {
        let ips: BTreeSet<IpAddr> = ips.collect();
        self.addresses.retain(|ip, _| ips.contains(ip));
        for ip in ips {
            self.addresses.entry(ip).or_insert(Address { since: now, proven_at: None });
        }
    }

    /// Another member was in touch over `ip`. Says whether that is new; it never is of an address of others.
    pub(crate) fn prove(&mut self, now: Instant, ip: IpAddr) -> bool {
        match self.addresses.get_mut(&ip) {
            Some(address) => address.proven_at.replace(address.proven_at.unwrap_or(now)).is_none(),
            None => false,
        }
    }

    /// What follows at `now`, and when more will.
    pub(crate) fn evidence(&self, now: Instant) -> (Evidence, Option<Instant>) {
        let proven = self.addresses.iter().filter(|(_, address)| address.proven_at.is_some());
        let mut evidence = Evidence { proven: proven.map(|(ip, _)| *ip).collect(), ..Evidence::default() };
        let Some(first) = self.addresses.values().filter_map(|address| address.proven_at).min() else {
            return (evidence, None);
        };
        let mut next = None;
        for (ip, address) in self.addresses.iter().filter(|(_, address)| address.proven_at.is_none()) {
            let due = address.since.max(first) + TIME_TO_PROVE;
            if due <= now {
                evidence.doubtful.insert(*ip);
            } else {
                next = Some(next.map_or(due, |next: Instant| next.min(due)));
            }
        }
        (evidence, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(last: impl IntoIterator<Item = u8>) -> impl Iterator<Item = IpAddr> {
        last.into_iter().map(|last| IpAddr::from([192, 0, 2, last]))
    }

    fn doubtful(experience: &Experience, now: Instant) -> Vec<u8> {
        let last = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => unreachable!("none was given"),
        };
        experience.evidence(now).0.doubtful.iter().map(last).collect()
    }

    #[test]
    fn an_address_that_nobody_uses_is_doubtful_once_others_had_their_time() {
        let (mut experience, start) = (Experience::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        experience.follow(start, ips([1, 2]));
        assert_eq!(experience.evidence(after(1000)), (Evidence::default(), None), "nobody came at all");
        assert!(experience.prove(after(1000), [192, 0, 2, 2].into()));
        assert!(!experience.prove(after(1001), [192, 0, 2, 2].into()), "no news");
        assert_eq!(experience.evidence(after(1001)).1, Some(after(1010)));
        assert!(doubtful(&experience, after(1009)).is_empty());
        assert_eq!(doubtful(&experience, after(1010)), [1]);
        assert!(experience.prove(after(1011), [192, 0, 2, 1].into()));
        assert!(doubtful(&experience, after(2000)).is_empty());
    }

    #[test]
    fn an_address_that_came_later_has_its_time_from_then_on() {
        let (mut experience, start) = (Experience::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        experience.follow(start, ips([1]));
        experience.prove(start, [192, 0, 2, 1].into());
        experience.follow(after(100), ips([1, 2]));
        assert!(doubtful(&experience, after(109)).is_empty());
        assert_eq!(doubtful(&experience, after(110)), [2]);
        // The proven one has gone: nothing is known to work, so nothing is worse than another.
        experience.follow(after(200), ips([2, 3]));
        assert_eq!(experience.evidence(after(300)), (Evidence::default(), None));
    }

    #[test]
    fn an_address_of_somebody_else_proves_nothing() {
        let mut experience = Experience::default();
        let now = Instant::now();
        experience.follow(now, ips([1]));
        assert!(!experience.prove(now, [203, 0, 113, 1].into()));
        assert_eq!(experience.evidence(now), (Evidence::default(), None));
    }
}
