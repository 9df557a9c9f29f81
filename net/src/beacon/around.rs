//! Whether there is a cluster on this network already: what a machine that belongs to none asks before it
//! founds one.
//!
//! Members answer strangers with nothing but that they are here. Two machines that ask at the same time
//! hear each other, and the one with the higher nonce gives way. What is heard proves nothing: whoever is
//! on the link can hold up a founding, and no more.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    codec::{Message, Nonce},
    links::Links,
    service::ports,
};
use crate::endpoint::{PORT, beside::BESIDE_BYTES_MAX};
use crate::{interfaces, listen, timer};

/// When the question is asked, from the first time on: any of them may get lost.
const ASK_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(450)];
/// How long answers may take: a member answers within milliseconds, a busy one on a Pi within some tens.
const LISTEN: Duration = Duration::from_millis(800);
/// After the first answer, for those of others: their addresses help whoever reads the refusal.
const GATHER: Duration = Duration::from_millis(100);
/// How long a machine that is just booting may take to get an address, if it has none yet: DHCP takes three
/// to eight seconds.
const NETWORK_MAX: Duration = Duration::from_secs(10);
const NETWORK_EVERY: Duration = Duration::from_millis(100);
/// Words of members that are looked at; each costs a signature's verification.
const WORDS_MAX: usize = 16;
/// Addresses that are told of.
const HEARD_MAX: usize = 4;

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Around {
    /// Members of a cluster, at these addresses; of which one nobody tells a stranger.
    Cluster(Vec<SocketAddr>),
    /// A machine at this address that belongs to no cluster either, asks at this moment, and goes first.
    Founder(SocketAddr),
}

/// Asks for up to 0.8 s who is on the links of a socket that would listen at `listen`; `None` if nobody
/// answers. A machine without an address waits up to ten seconds for one first. Cluster nodes that listen
/// at another port than this one and 7946 are not heard.
///
/// Errors: this machine could not ask. Needs a tokio runtime.
pub async fn look_around(listen: SocketAddr) -> io::Result<Option<Around>> {
    // A node for this machine alone has no network to ask.
    if listen.ip().is_loopback() {
        return Ok(None);
    }
    let socket = bind(listen)?;
    let local = socket.local_addr()?;
    let mut links = Links::new(Arc::new(socket.try_clone()?));
    links.follow(network(local).await);
    let ports = ports([listen.port(), PORT], std::iter::empty());
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    let mut asker = Asker::new(rand::random());
    let ask = Message::Anyone { nonce: asker.nonce }.encode();
    let began = Instant::now();
    let mut asks = ASK_AFTER.iter().map(|after| began + *after).peekable();
    let mut end = began + LISTEN;
    let mut bytes = [0; BESIDE_BYTES_MAX + 1];
    loop {
        tokio::select! {
            () = timer::until(asks.peek().copied()) => {
                asks.next();
                links.send_to_all(&ask, &ports);
            }
            received = timeout_at(end, socket.recv_from(&mut bytes)) => match received {
                Ok(Ok((length, from))) => {
                    let was_alone = asker.outcome().is_none();
                    if let Some(answer) = asker.hear(from, &bytes[..length]) {
                        links.send(&answer, from);
                    }
                    if was_alone && asker.outcome().is_some() {
                        end = end.min(Instant::now() + GATHER);
                    }
                }
                // What an earlier datagram met on its way (nobody there) is reported here.
                Ok(Err(_)) => {}
                Err(_) => return Ok(asker.outcome()),
            }
        }
    }
}

/// Where members would send to, or, if that is taken (by a node of this machine, perhaps), anywhere.
fn bind(listen: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = listen::udp(listen).or_else(|_| listen::udp(SocketAddr::new(listen.ip(), 0)))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The links, as soon as there are any.
async fn network(listen: SocketAddr) -> Vec<interfaces::Link> {
    let end = Instant::now() + NETWORK_MAX;
    let look = || interfaces::links(&interfaces::read().unwrap_or_default(), listen);
    let mut links = look();
    if links.is_empty() {
        tracing::info!("this machine has no network yet; waiting a little, to ask it for a cluster");
    }
    while links.is_empty() && Instant::now() < end {
        sleep(NETWORK_EVERY).await;
        links = look();
    }
    links
}

/// What was heard so far.
struct Asker {
    nonce: Nonce,
    members: Vec<SocketAddr>,
    founder: Option<SocketAddr>,
    words: usize,
}

impl Asker {
    fn new(nonce: Nonce) -> Asker {
        Asker { nonce, members: Vec::new(), founder: None, words: 0 }
    }

    /// Takes a datagram; returns what to answer.
    fn hear(&mut self, from: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        match Message::decode(bytes).ok()? {
            Message::Here { nonce } if nonce == self.nonce => self.member(from),
            Message::Here { .. } | Message::Twin(_) | Message::Seen { .. } => {}
            Message::Word(word) => {
                self.words += 1;
                if self.words <= WORDS_MAX && word.is_signed() {
                    self.member(from);
                }
            }
            // The own question comes back as well.
            Message::Anyone { nonce } if nonce == self.nonce => {}
            Message::Anyone { nonce } if nonce < self.nonce => drop(self.founder.get_or_insert(from)),
            // It may have begun to ask after this one's last question.
            Message::Anyone { .. } => return Some(Message::Anyone { nonce: self.nonce }.encode()),
        }
        None
    }

    fn member(&mut self, at: SocketAddr) {
        let at = crate::address_book::plain(at);
        if self.members.len() < HEARD_MAX && !self.members.contains(&at) {
            self.members.push(at);
        }
    }

    fn outcome(&self) -> Option<Around> {
        match (self.members.is_empty(), self.founder) {
            (false, _) => Some(Around::Cluster(self.members.clone())),
            (true, Some(founder)) => Some(Around::Founder(founder)),
            (true, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::{Said, Word};
    use super::*;
    use crate::{identity::Identity, loopback};

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], PORT))
    }

    fn anyone(nonce: u8) -> Vec<u8> {
        Message::Anyone { nonce: [nonce; 16] }.encode()
    }

    #[test]
    fn an_answer_to_the_own_question_is_a_cluster_and_its_own_echo_is_nobody() {
        let mut asker = Asker::new([5; 16]);
        assert_eq!(asker.hear(at(1), &anyone(5)), None);
        assert_eq!(asker.hear(at(2), &Message::Here { nonce: [6; 16] }.encode()), None);
        assert_eq!(asker.outcome(), None);
        for member in [3, 4, 3] {
            assert_eq!(asker.hear(at(member), &Message::Here { nonce: [5; 16] }.encode()), None);
        }
        assert_eq!(asker.outcome(), Some(Around::Cluster(vec![at(3), at(4)])));
    }

    #[test]
    fn a_member_that_looks_for_others_is_a_cluster_too() {
        let mut asker = Asker::new([5; 16]);
        let identity = Identity::ephemeral().unwrap();
        let word = Word::sign(&identity, &loopback::tag(1, 1), [2; 16], Said::default()).unwrap();
        asker.hear(at(1), &Message::Word(word).encode());
        assert_eq!(asker.outcome(), Some(Around::Cluster(vec![at(1)])));
    }

    #[test]
    fn of_two_that_ask_at_the_same_time_one_gives_way_even_if_it_began_later() {
        let (mut low, mut high) = (Asker::new([1; 16]), Asker::new([2; 16]));
        let answer = low.hear(at(2), &anyone(2)).expect("the later one hears of the earlier one");
        assert_eq!(low.outcome(), None);
        assert_eq!(high.hear(at(1), &answer), None);
        assert_eq!(high.outcome(), Some(Around::Founder(at(1))));
        // A cluster that is heard as well matters more.
        high.hear(at(3), &Message::Here { nonce: [2; 16] }.encode());
        assert_eq!(high.outcome(), Some(Around::Cluster(vec![at(3)])));
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut asker = Asker::new([5; 16]);
        for last in 0..=255 {
            asker.hear(at(last), &Message::Here { nonce: [5; 16] }.encode());
            assert_eq!(asker.hear(at(last), b"\x05skein nonsense"), None);
        }
        let Some(Around::Cluster(heard)) = asker.outcome() else { panic!("a cluster") };
        assert_eq!(heard.len(), HEARD_MAX);
    }

    #[tokio::test]
    async fn on_the_loopback_alone_there_is_nobody_to_ask() {
        let begin = Instant::now();
        assert_eq!(look_around("127.0.0.1:0".parse().unwrap()).await.unwrap(), None);
        assert!(begin.elapsed() < LISTEN, "it did not even listen");
    }
}
