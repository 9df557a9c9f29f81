//! Whether another process runs with this node's key already: what a member asks before it starts from a disk that
//! may have been copied.
//!
//! Only who has the key can ask, and only who has it can answer: with the question's own nonce, signed. So an answer is
//! of a process that runs at this moment, and one that has just ended gives none. Other members, who know where this
//! node is, say so, and that place is asked. Nobody who hears the question takes the asker for the node.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    codec::{Message, Nonce, Said, Word},
    links::Links,
    service::ports,
};
use crate::{
    address_book::plain,
    endpoint::{PORT, beside::BESIDE_BYTES_MAX},
    identity::{Identity, NodeId},
    incarnation::Tag,
    interfaces, listen, timer,
};

/// When the question is asked, from the first time on: any of them may get lost.
const ASK_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_millis(80), Duration::from_millis(160)];
/// How long answers may take. Each start of a node takes this long more, so it is short: gossip notices later what is
/// missed here.
const LISTEN: Duration = Duration::from_millis(300);
/// Places that are asked.
const PLACES_MAX: usize = 64;

/// Another process with this node's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Twin {
    /// Where it answered.
    pub at: SocketAddr,
    /// Which start of the node it is.
    pub generation: u64,
}

/// Asks on the links of a node that would listen at `listen`, and at `places`, where members or this node itself were
/// last, whether a process runs as this node. Takes 0.3 s if none does.
///
/// Errors: this machine could not ask. Needs a tokio runtime.
pub async fn find_twin(
    identity: &Identity,
    tag: &Tag,
    listen: SocketAddr,
    places: &[SocketAddr],
) -> io::Result<Option<Twin>> {
    let socket = listen::udp(SocketAddr::new(listen.ip(), 0))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    let mut links = Links::new(Arc::new(socket.try_clone()?));
    // The answers come to this socket alone: there is no need to be in the group.
    links.speak_on(interfaces::links(&interfaces::read().unwrap_or_default(), listen));
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    let mut asker = Asker::new(identity.node(), rand::random(), places);
    let ask = asker.question(identity, tag).map_err(io::Error::other)?;
    let began = Instant::now();
    let mut asks = ASK_AFTER.iter().map(|after| began + *after).peekable();
    let mut bytes = [0; BESIDE_BYTES_MAX + 1];
    loop {
        tokio::select! {
            () = timer::until(asks.peek().copied()) => {
                asks.next();
                links.send_to_all(&ask, &ports([listen.port(), PORT], asker.places.iter().copied()));
                asker.places.iter().for_each(|place| links.send(&ask, *place));
            }
            received = timeout_at(began + LISTEN, socket.recv_from(&mut bytes)) => match received {
                Ok(Ok((length, from))) => match asker.hear(from, &bytes[..length]) {
                    Heard::Nothing => {}
                    Heard::Place(place) => links.send(&ask, place),
                    Heard::Twin(twin) => return Ok(Some(twin)),
                },
                // What an earlier datagram met on its way (nobody there) is reported here.
                Ok(Err(_)) => {}
                Err(_) => return Ok(None),
            }
        }
    }
}

/// What was heard so far.
struct Asker {
    me: NodeId,
    nonce: Nonce,
    places: Vec<SocketAddr>,
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    /// There it may be.
    Place(SocketAddr),
    Twin(Twin),
}

impl Asker {
    fn new(me: NodeId, nonce: Nonce, places: &[SocketAddr]) -> Asker {
        let mut asker = Asker { me, nonce, places: Vec::new() };
        for place in places {
            asker.add(*place);
        }
        asker
    }

    fn question(&self, identity: &Identity, tag: &Tag) -> Result<Vec<u8>, crate::identity::Error> {
        let said = Said { asks: true, ..Said::default() };
        Ok(Message::Twin(Word::sign(identity, tag, self.nonce, said)?).encode())
    }

    fn hear(&mut self, from: SocketAddr, bytes: &[u8]) -> Heard {
        match Message::decode(bytes) {
            Ok(Message::Twin(word)) if self.is_answer(&word) => {
                Heard::Twin(Twin { at: plain(from), generation: word.said().generation })
            }
            Ok(Message::Seen { nonce, at }) if nonce == self.nonce && self.add(at) => Heard::Place(at),
            _ => Heard::Nothing,
        }
    }

    /// The own question, which comes back from the links, is none.
    fn is_answer(&self, word: &Word) -> bool {
        word.node() == self.me && word.salt() == self.nonce && !word.said().asks && word.is_signed()
    }

    /// Whether that is a new place, and there is room for it.
    fn add(&mut self, place: SocketAddr) -> bool {
        let is_new = self.places.len() < PLACES_MAX && !self.places.contains(&place);
        if is_new {
            self.places.push(place);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::core::{Core, Effect, Input, Tuning};
    use super::*;
    use crate::{gossip::core::Instant as Moment, loopback};

    const OURS: Tag = loopback::tag(7, 1);

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], PORT))
    }

    fn answer(identity: &Identity, nonce: Nonce) -> Vec<u8> {
        let said = Said { generation: 3, ..Said::default() };
        Message::Twin(Word::sign(identity, &OURS, nonce, said).unwrap()).encode()
    }

    fn told(core: &mut Core, bytes: &[u8]) -> Vec<Effect> {
        let mut effects = Vec::new();
        core.handle(Moment(0), Input::Datagram { from: at(9), bytes }, &mut effects);
        effects
    }

    #[test]
    fn only_a_fresh_answer_with_the_same_key_is_a_twin() {
        let [me, other] = [(); 2].map(|()| Identity::ephemeral().unwrap());
        let mut asker = Asker::new(me.node(), [5; 16], &[at(1)]);
        let question = asker.question(&me, &OURS).unwrap();
        for nothing in [question, answer(&me, [6; 16]), answer(&other, [5; 16])] {
            assert_eq!(asker.hear(at(2), &nothing), Heard::Nothing);
        }
        assert_eq!(asker.hear(at(2), &answer(&me, [5; 16])), Heard::Twin(Twin { at: at(2), generation: 3 }));
    }

    #[test]
    fn a_place_is_asked_once_and_no_flood_makes_it_ask_everywhere() {
        let me = Identity::ephemeral().unwrap();
        let mut asker = Asker::new(me.node(), [5; 16], &[at(1)]);
        let seen = |nonce: u8, port: u16| {
            let at = SocketAddr::from(([192, 0, 2, 1], port));
            (at, Message::Seen { nonce: [nonce; 16], at }.encode())
        };
        let (place, bytes) = seen(5, 1000);
        assert_eq!(asker.hear(at(2), &bytes), Heard::Place(place));
        assert_eq!(asker.hear(at(2), &bytes), Heard::Nothing, "it was asked");
        assert_eq!(asker.hear(at(2), &seen(6, 1001).1), Heard::Nothing, "an answer to somebody else");
        for port in 1002..2000 {
            asker.hear(at(2), &seen(5, port).1);
        }
        assert_eq!(asker.places.len(), PLACES_MAX);
    }

    #[test]
    fn a_process_answers_who_has_its_key_and_a_member_says_where_it_is_and_nobody_learns_anything() {
        let [me, member, stranger] = [(); 3].map(|()| Identity::ephemeral().unwrap());
        let question = |of: &Identity| Asker::new(of.node(), [5; 16], &[]).question(of, &OURS).unwrap();
        let core = |of: &Identity, missing: &[NodeId]| {
            let mut core = Core::new(of.node(), OURS, Tuning::default(), 1);
            let known =
                BTreeSet::from([me.node(), member.node()]).into_iter().filter(|node| *node != of.node());
            let members =
                Input::Members { known: known.collect(), missing: missing.iter().copied().collect() };
            core.handle(Moment(0), members, &mut Vec::new());
            core
        };
        assert_eq!(told(&mut core(&me, &[]), &question(&me)), [Effect::Mine { to: at(9), nonce: [5; 16] }]);
        let seen = Effect::Seen { to: at(9), nonce: [5; 16], node: me.node() };
        assert_eq!(told(&mut core(&member, &[]), &question(&me)), [seen]);
        assert_eq!(told(&mut core(&member, &[me.node()]), &question(&me)), [], "it is not there");
        assert_eq!(told(&mut core(&member, &[]), &question(&stranger)), []);
        assert_eq!(told(&mut core(&me, &[]), &answer(&me, [5; 16])), [], "an answer is no question");
    }
}
