//! Where machines are: each has one address, as a router gives them out. While everything is off it may give others.
//!
//! Packets between nodes pass whatever the addresses are, as those find each other by their beacons. Only probes go
//! to an address: there is no other way to a kernel whose daemon says nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Where nodes speak to each other.
const PORT: u16 = 7946;
/// Where each serves its API.
const API_PORT: u16 = 6443;
/// Hosts of the router's ranges.
const RANGES: [[u8; 3]; 2] = [[192, 0, 2], [198, 51, 100]];

/// What a router does with its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    /// Everybody gets the one it had.
    Kept,
    /// The same addresses go to others.
    Dealt,
    /// All are of another network, and no route leads to the old one.
    Moved,
}

pub(crate) struct Lan(Mutex<Inner>);

struct Inner {
    /// Where each machine's daemon was when it last started, as the others may remember it.
    seen: Vec<Option<SocketAddr>>,
    range: usize,
    /// The last number of each machine's address.
    hosts: Vec<u8>,
}

impl Lan {
    pub(crate) fn new(machines: usize) -> Lan {
        Lan(Mutex::new(Inner { seen: vec![None; machines], range: 0, hosts: (1..=machines as u8).collect() }))
    }

    /// Gives out all addresses anew.
    pub(crate) fn give_out(&self, lease: Lease, chance: &mut StdRng) {
        let mut inner = self.0.lock().unwrap();
        match lease {
            Lease::Kept => {}
            Lease::Dealt => inner.hosts.shuffle(chance),
            Lease::Moved => inner.range = (inner.range + 1) % RANGES.len(),
        }
    }

    /// Where a machine's node speaks to others, and where it serves its API.
    pub(crate) fn addresses(&self, number: usize) -> (SocketAddr, SocketAddr) {
        let inner = self.0.lock().unwrap();
        let [a, b, c] = RANGES[inner.range];
        let ip = IpAddr::V4(Ipv4Addr::new(a, b, c, inner.hosts[number]));
        (SocketAddr::new(ip, PORT), SocketAddr::new(ip, API_PORT))
    }

    /// A machine's daemon starts: where it is now is known from now on.
    pub(crate) fn note_start(&self, number: usize) {
        let (_, api) = self.addresses(number);
        self.0.lock().unwrap().seen[number] = Some(api);
    }

    /// Where a machine's daemon was when it last started.
    pub(crate) fn seen(&self, number: usize) -> Option<SocketAddr> {
        self.0.lock().unwrap().seen[number]
    }

    /// Whether a route leads to an address. Machines have none but that to their own network.
    pub(crate) fn has_route(&self, to: SocketAddr) -> bool {
        let range = RANGES[self.0.lock().unwrap().range];
        matches!(to.ip(), IpAddr::V4(ip) if ip.octets()[..3] == range)
    }

    /// Whose an address is now.
    pub(crate) fn holder(&self, of: SocketAddr) -> Option<usize> {
        let machines = self.0.lock().unwrap().hosts.len();
        (0..machines).find(|number| self.addresses(*number).1.ip() == of.ip())
    }
}
