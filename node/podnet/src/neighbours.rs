//! What the kernel remembers of who has which address on a link.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::{Mode, Netlink};

/// Lets the kernel forget the neighbour `address`, so that the next packet to it begins with the question
/// who has it. An entry that was made by hand stays; of an address behind a router there is none.
///
/// A machine whose link was gone for a moment has forgotten its neighbours and asks for them only once a
/// second: it hears us and cannot answer. Whoever is *asked* who it is learns from the question who asks
/// (RFC 826), and can.
///
/// Errors: this user may not (`CAP_NET_ADMIN`).
pub fn ask_again(address: IpAddr) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let mut everything = NeighbourMessage::default();
    everything.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let wanted = NeighbourAttribute::Destination(match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    });
    for known in netlink.dump(RouteNetlinkMessage::GetNeighbour(everything))? {
        let RouteNetlinkMessage::NewNeighbour(known) = known else { continue };
        // Neither what somebody wrote down nor what other software has learnt for the kernel (EVPN).
        let by_hand = matches!(known.header.state, NeighbourState::Permanent | NeighbourState::Noarp)
            || known.header.flags.contains(NeighbourFlags::ExtLearned);
        if by_hand || !known.attributes.contains(&wanted) {
            continue;
        }
        let mut forget = NeighbourMessage::default();
        (forget.header.family, forget.header.ifindex) = (known.header.family, known.header.ifindex);
        forget.attributes = vec![wanted.clone()];
        match netlink.batch(vec![(RouteNetlinkMessage::DelNeighbour(forget), Mode::Plain)]) {
            // The kernel was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}
