//! Who has a connection open: strangers, few and for a short time, and holders of certificates, each with a share.
//!
//! A connection begins as a stranger's and stays one until a certificate that counts has asked for something on it.
//! Where strangers have all their places, a newer one takes the place of an older one, so that nobody can keep the
//! door closed by holding it: whoever shows a certificate needs a place for the time of a handshake only.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::limits::Limits;

/// SHA-256 of a certificate.
type Fingerprint = [u8; 32];

/// All open connections of a server. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    book: Arc<Mutex<Book>>,
    strangers_max: usize,
    strangers_per_address_max: usize,
    known_max: usize,
    known_per_certificate_max: usize,
}

#[derive(Debug, Default)]
struct Book {
    /// Grows with each connection: the least one is the oldest.
    next: u64,
    strangers: BTreeMap<u64, Stranger>,
    known: HashMap<Fingerprint, usize>,
}

#[derive(Debug)]
struct Stranger {
    origin: IpAddr,
    pushed_out: CancellationToken,
}

/// A certificate, or all of them together, has as many connections as it may.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Full {
    /// That many.
    pub(crate) max: usize,
}

impl Door {
    pub(crate) fn new(limits: &Limits) -> Self {
        Door {
            book: Arc::default(),
            strangers_max: limits.strangers_max,
            strangers_per_address_max: limits.strangers_per_address_max,
            known_max: limits.connections_max,
            known_per_certificate_max: limits.connections_per_certificate_max,
        }
    }

    /// A place for a new connection from `address`, at the cost of the oldest stranger from there, or from where
    /// most of them are, if there is no other.
    pub(crate) fn enter(&self, address: IpAddr) -> Place {
        let (origin, pushed_out) = (origin(address), CancellationToken::new());
        let mut book = self.book();
        if book.strangers.values().filter(|stranger| stranger.origin == origin).count()
            >= self.strangers_per_address_max
        {
            book.push_out(origin);
        } else if book.strangers.len() >= self.strangers_max {
            let mut counts = BTreeMap::<IpAddr, usize>::new();
            for stranger in book.strangers.values() {
                *counts.entry(stranger.origin).or_default() += 1;
            }
            if let Some((&most, _)) = counts.iter().max_by_key(|(_, count)| **count) {
                book.push_out(most);
            }
        }
        let number = book.next;
        book.next += 1;
        book.strangers.insert(number, Stranger { origin, pushed_out: pushed_out.clone() });
        drop(book);
        Place { door: self.clone(), held: Mutex::new(Held::Stranger(number)), pushed_out }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn push_out(&mut self, origin: IpAddr) {
        let oldest = self.strangers.iter().find(|(_, stranger)| stranger.origin == origin);
        if let Some(number) = oldest.map(|(number, _)| *number)
            && let Some(stranger) = self.strangers.remove(&number)
        {
            stranger.pushed_out.cancel();
        }
    }
}

/// What counts as one place: an IPv6 host may take any address of its network of 64 bits.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

/// One connection's place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    door: Door,
    held: Mutex<Held>,
    pushed_out: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
enum Held {
    Stranger(u64),
    Known(Fingerprint),
}

impl Place {
    /// Moves the connection among those of a certificate that counts, where no stranger pushes it out.
    ///
    /// Errors: it stays among the strangers.
    pub(crate) fn make_known(&self, certificate: Fingerprint) -> Result<(), Full> {
        let mut held = self.held();
        let Held::Stranger(number) = *held else { return Ok(()) };
        let mut book = self.door.book();
        let of_all = Full { max: self.door.known_max };
        if book.known.values().sum::<usize>() >= of_all.max {
            return Err(of_all);
        }
        let of_one = Full { max: self.door.known_per_certificate_max };
        let count = book.known.entry(certificate).or_default();
        if *count >= of_one.max {
            return Err(of_one);
        }
        *count += 1;
        book.strangers.remove(&number);
        *held = Held::Known(certificate);
        Ok(())
    }

    pub(crate) fn is_known(&self) -> bool {
        matches!(*self.held(), Held::Known(_))
    }

    /// Ends when a newer stranger has taken this place.
    pub(crate) async fn until_pushed_out(&self) {
        self.pushed_out.cancelled().await;
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = *self.held();
        let mut book = self.door.book();
        match held {
            Held::Stranger(number) => drop(book.strangers.remove(&number)),
            Held::Known(certificate) => {
                if let Some(count) = book.known.get_mut(&certificate) {
                    *count -= 1;
                    if *count == 0 {
                        book.known.remove(&certificate);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: Fingerprint = [1; 32];
    const BOB: Fingerprint = [2; 32];

    fn door() -> Door {
        Door::new(&Limits {
            strangers_max: 4,
            strangers_per_address_max: 2,
            connections_max: 3,
            connections_per_certificate_max: 2,
            ..Limits::default()
        })
    }

    fn enter(door: &Door, address: &str) -> Place {
        door.enter(address.parse().unwrap())
    }

    fn are_in(places: &[&Place]) -> Vec<bool> {
        places.iter().map(|place| !place.pushed_out.is_cancelled()).collect()
    }

    #[test]
    fn a_stranger_takes_the_place_of_the_oldest_from_its_own_address() {
        let door = door();
        let other = enter(&door, "192.0.2.2");
        let places = ["192.0.2.1"; 3].map(|address| enter(&door, address));
        assert_eq!(are_in(&[&other, &places[0], &places[1], &places[2]]), [true, false, true, true]);
    }

    #[test]
    fn strangers_from_many_addresses_push_out_those_of_the_address_that_has_most() {
        let door = door();
        let places = ["192.0.2.9", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]
            .map(|address| enter(&door, address));
        assert_eq!(are_in(&places.each_ref()), [true, false, true, true, true]);
    }

    #[test]
    fn a_network_of_64_bits_is_one_address_and_a_mapped_one_is_that_of_version_4() {
        let door = door();
        let places = ["2001:db8::1", "2001:db8::2:1", "2001:db8::3"].map(|address| enter(&door, address));
        assert_eq!(are_in(&places.each_ref()), [false, true, true]);
        let places =
            ["192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"].map(|address| enter(&door, address));
        assert_eq!(are_in(&places.each_ref()), [true, true, true]);
        enter(&door, "192.0.2.1");
        assert_eq!(are_in(&places.each_ref()), [false, true, true]);
    }

    #[test]
    fn whoever_is_known_is_pushed_out_by_nobody() {
        let door = door();
        let known = enter(&door, "192.0.2.1");
        known.make_known(ANN).unwrap();
        let _strangers: Vec<_> = (0..9).map(|_| enter(&door, "192.0.2.1")).collect();
        assert_eq!((are_in(&[&known]), known.is_known()), (vec![true], true));
    }

    #[test]
    fn a_certificate_leaves_places_to_others() {
        let door = door();
        let places = [(); 4].map(|()| enter(&door, "192.0.2.1"));
        assert_eq!(places[0].make_known(ANN), Ok(()));
        assert_eq!(places[0].make_known(ANN), Ok(()), "it is known already");
        assert_eq!(places[1].make_known(ANN), Ok(()));
        assert_eq!(places[2].make_known(ANN), Err(Full { max: 2 }));
        assert_eq!(places[2].make_known(BOB), Ok(()));
        assert_eq!(places[3].make_known(BOB), Err(Full { max: 3 }));
    }

    #[test]
    fn who_left_is_forgotten() {
        let door = door();
        let (one, two) = (enter(&door, "192.0.2.1"), enter(&door, "192.0.2.1"));
        one.make_known(ANN).unwrap();
        drop((one, two));
        let book = door.book();
        assert!(book.strangers.is_empty() && book.known.is_empty());
    }
}
