//! Pipes over channels, with weather.
//!
//! A pipe behaves as a stream of a real connection: nothing is lost, repeated or reordered within it;
//! lost packets cost a retransmission, and a cut that lasts breaks it. Works over any runtime, so that
//! tests on real time use it too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt, StreamExt};
use openraft::AsyncRuntime;
use openraft::async_runtime::Instant;
use rand::RngExt;

use super::process::outside;
use crate::VoterId;
use crate::transport::{Broken, Lane, Pipe, PipeRx, PipeTx, Transport, Unreachable};

/// Frames under way in one direction before the sender waits.
const WINDOW: usize = 64;

/// A connection that hears nothing for this long is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a standing connection looks whether it is cut.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A lost packet is sent again after this long.
const RETRANSMIT: Duration = Duration::from_millis(60);

/// What fits one packet on a link whose large packets are lost.
const SMALL_MAX: usize = 1000;

/// What a packet may meet on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weather {
    /// Shortest and longest way.
    pub delay: (Duration, Duration),
    /// Share of packets lost, below 1.
    pub loss: f64,
}

impl Weather {
    /// No delay and no loss: for tests on real time.
    pub const CALM: Weather = Weather { delay: (Duration::ZERO, Duration::ZERO), loss: 0.0 };
    /// A wired network of a house.
    pub const LAN: Weather =
        Weather { delay: (Duration::from_micros(100), Duration::from_millis(1)), loss: 0.0 };
}

/// The network between stores. Clones are one network.
pub struct SimNetwork<Rt> {
    inner: Arc<Mutex<Inner>>,
    runtime: std::marker::PhantomData<fn() -> Rt>,
}

struct Inner {
    weather: Weather,
    /// From one node to another, whichever of its stores is there: nothing passes.
    cut: BTreeSet<([u8; 16], [u8; 16])>,
    /// Between which nodes frames above [`SMALL_MAX`] do not pass, from one to the other.
    narrow: BTreeSet<([u8; 16], [u8; 16])>,
    /// Bytes a second on each pipe that may carry much; to some nodes other than to the rest.
    rate: Option<u64>,
    rate_to: BTreeMap<[u8; 16], u64>,
    listening: BTreeMap<VoterId, mpsc::Sender<Arrived>>,
}

type Arrived = ([u8; 16], Lane, Pipe);

/// Pipes that others open to one store.
pub struct Incoming(mpsc::Receiver<Arrived>);

impl Incoming {
    /// The next one: who opened it, for what, and the pipe; for [`Handle::serve`](crate::Handle::serve).
    pub async fn next(&mut self) -> Option<([u8; 16], Lane, Pipe)> {
        self.0.next().await
    }
}

impl<Rt> Clone for SimNetwork<Rt> {
    fn clone(&self) -> Self {
        SimNetwork { inner: self.inner.clone(), runtime: std::marker::PhantomData }
    }
}

impl<Rt: AsyncRuntime> SimNetwork<Rt> {
    /// A network with nobody on it.
    pub fn new(weather: Weather) -> Self {
        let (cut, narrow, rate_to, listening) = Default::default();
        let inner = Inner { weather, cut, narrow, rate: None, rate_to, listening };
        SimNetwork { inner: Arc::new(Mutex::new(inner)), runtime: std::marker::PhantomData }
    }

    /// Connects `voter`, in the place of whatever store its node had before.
    pub fn connect(&self, voter: VoterId) -> (SimTransport<Rt>, Incoming) {
        let (arrived, incoming) = mpsc::channel(WINDOW);
        let mut inner = self.lock();
        inner.listening.retain(|other, _| other.node != voter.node);
        inner.listening.insert(voter, arrived);
        drop(inner);
        (SimTransport { network: self.clone(), voter }, Incoming(incoming))
    }

    /// From now on every packet meets this weather.
    pub fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Lets nothing pass from one's node to the other's; the other direction is not touched.
    pub fn cut(&self, from: VoterId, to: VoterId) {
        self.lock().cut.insert((from.node, to.node));
    }

    /// Undoes [`cut`](Self::cut).
    pub fn heal(&self, from: VoterId, to: VoterId) {
        self.lock().cut.remove(&(from.node, to.node));
    }

    /// From now on a pipe for entries, snapshots or events carries so many bytes a second. What is urgent does not wait
    /// for it: it has streams of its own.
    pub fn set_rate(&self, rate: Option<u64>) {
        self.lock().rate = rate;
    }

    /// The same on the way to one node only.
    pub fn set_rate_to(&self, to: VoterId, rate: Option<u64>) {
        let mut inner = self.lock();
        match rate {
            Some(rate) => inner.rate_to.insert(to.node, rate),
            None => inner.rate_to.remove(&to.node),
        };
    }

    /// Lets only small frames pass from one's node to the other's, or all again.
    pub fn set_narrow(&self, from: VoterId, to: VoterId, narrow: bool) {
        let mut inner = self.lock();
        match narrow {
            true => inner.narrow.insert((from.node, to.node)),
            false => inner.narrow.remove(&(from.node, to.node)),
        };
    }

    /// Undoes every cut, and lets large frames pass everywhere, as fast as may be.
    pub fn heal_all(&self) {
        let mut inner = self.lock();
        inner.cut.clear();
        inner.narrow.clear();
        inner.rate_to.clear();
        inner.rate = None;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self, from: VoterId, to: VoterId) -> bool {
        self.lock().cut.contains(&(from.node, to.node))
    }

    /// A connection dies when either direction is cut: nothing is acknowledged any more.
    fn is_dead(&self, a: VoterId, b: VoterId) -> bool {
        self.is_cut(a, b) || self.is_cut(b, a)
    }

    fn travel_time(&self) -> Duration {
        let Weather { delay: (shortest, longest), loss } = self.lock().weather;
        if longest.is_zero() && loss == 0.0 {
            return Duration::ZERO;
        }
        let mut rng = Rt::thread_rng();
        let mut time = shortest + (longest - shortest).mul_f64(rng.random_range(0.0..1.0));
        while rng.random_bool(loss) {
            time += RETRANSMIT;
        }
        time
    }

    /// How long a frame of this size takes to be on its way at all.
    fn sending_time(&self, lane: Lane, to: VoterId, bytes: usize) -> Duration {
        let carries_much = matches!(lane, Lane::Append | Lane::Snapshot | Lane::Follow);
        let inner = self.lock();
        let rate = inner.rate_to.get(&to.node).copied().or(inner.rate).filter(|_| carries_much);
        rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate as f64))
    }

    fn is_stuck(&self, from: VoterId, to: VoterId, sent: &Sent) -> bool {
        let bytes = if let Sent::Frame(frame) = sent { frame.len() } else { 0 };
        bytes > SMALL_MAX && self.lock().narrow.contains(&(from.node, to.node))
    }

    /// Moves frames from one end to the other until the pipe ends or breaks.
    async fn carry(
        self,
        from: VoterId,
        to: VoterId,
        lane: Lane,
        mut sent: mpsc::Receiver<(Rt::Instant, Sent)>,
        mut arrives: mpsc::Sender<Sent>,
    ) {
        let mut earliest = Rt::Instant::now();
        let mut dead_since = None;
        loop {
            let (sent_at, frame) = match Rt::timeout(LOOK_EVERY, sent.next()).await {
                Ok(Some(next)) => next,
                Ok(None) => (Rt::Instant::now(), Sent::Lost),
                Err(_) => match self.idle(from, to, &mut dead_since) {
                    true => (Rt::Instant::now(), Sent::Lost),
                    false => continue,
                },
            };
            let bytes = if let Sent::Frame(frame) = &frame { frame.len() } else { 0 };
            let sending = self.sending_time(lane, to, bytes);
            if !sending.is_zero() {
                Rt::sleep(sending).await;
            }
            while self.is_stuck(from, to, &frame) && !self.is_dead(from, to) && !arrives.is_closed() {
                Rt::sleep(RETRANSMIT).await;
            }
            let time = self.travel_time();
            if !time.is_zero() {
                earliest = earliest.max(sent_at + time);
                Rt::sleep_until(earliest).await;
            }
            let mut frame = frame;
            while self.is_dead(from, to) {
                if self.idle(from, to, &mut dead_since) {
                    frame = Sent::Lost;
                    break;
                }
                Rt::sleep(RETRANSMIT).await;
            }
            dead_since = None;
            let last = !matches!(frame, Sent::Frame(_));
            if arrives.send(frame).await.is_err() || last {
                return;
            }
        }
    }

    /// Whether the connection has been cut for too long.
    fn idle(&self, from: VoterId, to: VoterId, dead_since: &mut Option<Rt::Instant>) -> bool {
        if !self.is_dead(from, to) {
            *dead_since = None;
            return false;
        }
        let now = Rt::Instant::now();
        let since = *dead_since.get_or_insert(now);
        now.saturating_duration_since(since) >= IDLE_TIMEOUT
    }
}

enum Sent {
    Frame(Bytes),
    /// The sender finished.
    End,
    /// The sender is gone, or the connection.
    Lost,
}

/// The network as one store sees it.
pub struct SimTransport<Rt> {
    network: SimNetwork<Rt>,
    voter: VoterId,
}

#[async_trait]
impl<Rt: AsyncRuntime> Transport for SimTransport<Rt> {
    async fn open(&self, to: VoterId, lane: Lane) -> Result<Pipe, Unreachable> {
        let network = &self.network;
        let (there, back) = (network.travel_time(), network.travel_time());
        if !(there + back).is_zero() {
            Rt::sleep(there + back).await;
        }
        let unreachable = |reason: &str| Unreachable { to, reason: reason.into() };
        // Any store of the node may be followed.
        let named = |id: &&VoterId| **id == to || (lane == Lane::Follow && id.node == to.node);
        let to = network.lock().listening.keys().find(named).copied().unwrap_or(to);
        if network.is_dead(self.voter, to) {
            Rt::sleep(Duration::from_secs(1)).await;
            return Err(unreachable("no answer"));
        }
        let arrived = network.lock().listening.get(&to).cloned();
        let mut arrived = arrived.ok_or_else(|| unreachable("nobody listens"))?;
        let (our_tx, their_rx) = self.direction(self.voter, to, lane);
        let (their_tx, our_rx) = self.direction(to, self.voter, lane);
        let theirs = Pipe { tx: their_tx, rx: their_rx };
        arrived.try_send((self.voter.node, lane, theirs)).map_err(|_| unreachable("nobody answers"))?;
        Ok(Pipe { tx: our_tx, rx: our_rx })
    }
}

impl<Rt: AsyncRuntime> SimTransport<Rt> {
    fn direction(&self, from: VoterId, to: VoterId, lane: Lane) -> (Box<dyn PipeTx>, Box<dyn PipeRx>) {
        let (sent, to_carry) = mpsc::channel(WINDOW);
        let (carried, arrives) = mpsc::channel(WINDOW);
        // The wire belongs to no process: what a killed one has sent still arrives.
        outside(|| drop(Rt::spawn(self.network.clone().carry(from, to, lane, to_carry, carried))));
        (Box::new(Tx::<Rt> { sent: Some(sent) }), Box::new(Rx(arrives)))
    }
}

struct Tx<Rt: AsyncRuntime> {
    sent: Option<mpsc::Sender<(Rt::Instant, Sent)>>,
}

#[async_trait]
impl<Rt: AsyncRuntime> PipeTx for Tx<Rt> {
    async fn send(&mut self, frame: Bytes) -> Result<(), Broken> {
        let closed = || Broken("the connection is closed".into());
        let sent = self.sent.as_mut().ok_or_else(closed)?;
        sent.send((Rt::Instant::now(), Sent::Frame(frame))).await.map_err(|_| closed())
    }

    fn finish(&mut self) {
        if let Some(mut sent) = self.sent.take() {
            // One place is always kept for each sender, so this fails only on a broken pipe.
            let _ = sent.try_send((Rt::Instant::now(), Sent::End));
        }
    }
}

struct Rx(mpsc::Receiver<Sent>);

#[async_trait]
impl PipeRx for Rx {
    async fn recv(&mut self) -> Result<Option<Bytes>, Broken> {
        match self.0.next().await {
            Some(Sent::Frame(frame)) => Ok(Some(frame)),
            Some(Sent::End) => Ok(None),
            Some(Sent::Lost) | None => Err(Broken("the connection was lost".into())),
        }
    }
}
