//! The beacon with real sockets, keys and gossip on loopback, where no group and no link is: by name only.
//! Groups and links are for the end-to-end tests, which have machines.

use std::net::{SocketAddr, UdpSocket};

use tokio_util::sync::CancellationToken;

use super::{Beacon, Config, PeerName, Tuning};
use crate::{
    address_book::AddressBook,
    gossip::real::{Machine, node},
    identity::NodeId,
    loopback::{Node, founded},
};

fn beacon(machine: &Machine, node: &Node, peers: Vec<PeerName>) {
    let beacon = Beacon::new(Config {
        endpoint: machine.endpoint.clone(),
        identity: node.identity.clone(),
        gossip: machine.gossip.clone(),
        peers,
        tuning: Tuning::default(),
    });
    machine.runtime.spawn(beacon.run(CancellationToken::new()));
}

fn book(node: NodeId, at: SocketAddr) -> AddressBook {
    let book = AddressBook::default();
    book.worked(node, at);
    book
}

#[test]
fn members_that_know_no_right_address_of_each_other_meet_by_a_name() {
    let ca = founded();
    let (one, two) = (node(&ca), node(&ca));
    // Takes everything and answers nothing.
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let lost = nobody.local_addr().unwrap();
    let a = Machine::start(&one, "a", 1, book(two.id(), lost));
    let b = Machine::start(&two, "b", 1, book(one.id(), lost));
    beacon(&b, &two, Vec::new());
    let name = b.endpoint.local_address().to_string().parse().unwrap();
    beacon(&a, &one, vec![name]);
    for machine in [&a, &b] {
        machine.sees_alive(2);
    }
}
