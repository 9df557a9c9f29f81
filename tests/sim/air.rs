//! The network of datagrams, and the kernels that answer probes.
//!
//! One task carries everything, in the order of arrival. A packet waits in its receiver's inbox while the
//! receiving process stands still, as in a socket's buffer, and is lost with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender};
use openraft::AsyncRuntime;
use openraft::async_runtime::Instant as _;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use skein_net::gossip::List;
use skein_net::identity::NodeId;
use skein_raft_store::sim::{SimRt, Weather};

use crate::watch::Message;
use crate::world::{Now, World, number_of};

const LATEST_DUPLICATE: Duration = Duration::from_secs(2);

/// What one node sends to another.
#[derive(Clone, Debug)]
pub(crate) enum Post {
    Gossip(Bytes),
    /// A member list over a stream, and the answer.
    Asked(List),
    Answered(List),
    Watch(Message),
    /// "I restart", from a daemon that was asked to stop.
    Restarting,
}

/// This machine has no route to an address: it could not try.
#[derive(Debug)]
pub(crate) struct NoRoute;

impl Post {
    /// Streams repeat what is lost.
    fn is_stream(&self) -> bool {
        matches!(self, Post::Asked(_) | Post::Answered(_) | Post::Restarting)
    }
}

pub(crate) struct Letter {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) post: Post,
}

pub(crate) struct Air {
    inner: Mutex<Inner>,
    sent: UnboundedSender<(Now, Letter)>,
}

struct Inner {
    chance: StdRng,
    weather: Weather,
    duplicates: f64,
    cut: BTreeMap<(usize, usize), u32>,
    /// Whose cable is out.
    unplugged: BTreeSet<usize>,
    /// Whether the router answers.
    gateway: bool,
}

impl Air {
    pub(crate) fn new(seed: u64) -> (Air, UnboundedReceiver<(Now, Letter)>) {
        let (sent, carried) = futures::channel::mpsc::unbounded();
        let chance = StdRng::seed_from_u64(seed ^ 0xa1 << 56);
        let inner = Inner {
            chance,
            weather: Weather::LAN,
            duplicates: 0.0,
            cut: BTreeMap::new(),
            unplugged: BTreeSet::new(),
            gateway: true,
        };
        (Air { inner: Mutex::new(inner), sent }, carried)
    }

    pub(crate) fn send(&self, from: NodeId, to: NodeId, post: Post) {
        let mut inner = self.inner.lock().unwrap();
        let loss = inner.weather.loss;
        let (one, other) = (number_of(from), number_of(to));
        if inner.is_cut(one, other) || (!post.is_stream() && inner.chance.random_bool(loss)) {
            return;
        }
        if post.is_stream() && inner.is_cut(other, one) {
            return;
        }
        let arrives = Now::now() + inner.travel_time();
        let duplicates = if post.is_stream() { 0.0 } else { inner.duplicates };
        if duplicates > 0.0 && inner.chance.random_bool(duplicates) {
            let again = arrives + LATEST_DUPLICATE.mul_f64(inner.chance.random_range(0.0..1.0));
            let _ = self.sent.unbounded_send((again, Letter { from, to, post: post.clone() }));
        }
        // The carrier ends with the run.
        let _ = self.sent.unbounded_send((arrives, Letter { from, to, post }));
    }

    /// A connect and an echo from one kernel to another: which of the two came back, and after how long.
    pub(crate) fn try_kernel(&self, from: usize, to: usize) -> (bool, bool, Duration) {
        let mut inner = self.inner.lock().unwrap();
        let time = inner.travel_time() + inner.travel_time();
        let passes = !inner.is_cut(from, to) && !inner.is_cut(to, from);
        let there_and_back = (1.0 - inner.weather.loss).powi(2);
        let connected = passes && inner.chance.random_bool(there_and_back);
        let echoed = passes && inner.chance.random_bool(there_and_back);
        (connected, echoed, time)
    }

    /// The same to the router.
    pub(crate) fn try_gateway(&self, from: usize) -> (bool, Duration) {
        let mut inner = self.inner.lock().unwrap();
        let time = inner.travel_time() + inner.travel_time();
        let lost = inner.weather.loss;
        let answers = inner.gateway && !inner.unplugged.contains(&from);
        // A connect and an echo, each there and back.
        let one_fails = 1.0 - (1.0 - lost).powi(2);
        (answers && !inner.chance.random_bool(one_fails * one_fails), time)
    }

    pub(crate) fn plug(&self, number: usize, plugged: bool) {
        let mut inner = self.inner.lock().unwrap();
        match plugged {
            true => inner.unplugged.remove(&number),
            false => inner.unplugged.insert(number),
        };
    }

    pub(crate) fn is_plugged(&self, number: usize) -> bool {
        !self.inner.lock().unwrap().unplugged.contains(&number)
    }

    pub(crate) fn has_gateway(&self) -> bool {
        self.inner.lock().unwrap().gateway
    }

    pub(crate) fn set_gateway(&self, answers: bool) {
        self.inner.lock().unwrap().gateway = answers;
    }

    pub(crate) fn rtt(&self) -> Duration {
        self.inner.lock().unwrap().weather.delay.1 * 2
    }

    pub(crate) fn weather(&self) -> Weather {
        self.inner.lock().unwrap().weather
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.inner.lock().unwrap().weather = weather;
    }

    pub(crate) fn set_duplicates(&self, share: f64) {
        self.inner.lock().unwrap().duplicates = share;
    }

    /// Cuts are counted: one that begins within another ends by itself.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        *self.inner.lock().unwrap().cut.entry((from, to)).or_default() += 1;
    }

    /// Returns whether the direction is whole again.
    pub(crate) fn mend(&self, from: usize, to: usize) -> bool {
        let mut inner = self.inner.lock().unwrap();
        let count = inner.cut.entry((from, to)).or_default();
        *count = count.saturating_sub(1);
        *count == 0
    }

    pub(crate) fn passes_both_ways(&self, a: usize, b: usize) -> bool {
        let inner = self.inner.lock().unwrap();
        !inner.is_cut(a, b) && !inner.is_cut(b, a)
    }

    /// Directions in which nothing passes.
    pub(crate) fn cuts(&self) -> Vec<(usize, usize)> {
        let inner = self.inner.lock().unwrap();
        inner.cut.iter().filter(|(_, count)| **count > 0).map(|(direction, _)| *direction).collect()
    }

    pub(crate) fn clear(&self) -> BTreeSet<(usize, usize)> {
        let mut inner = self.inner.lock().unwrap();
        inner.weather = Weather::LAN;
        inner.duplicates = 0.0;
        inner.unplugged.clear();
        inner.gateway = true;
        std::mem::take(&mut inner.cut).into_keys().collect()
    }
}

impl Inner {
    fn is_cut(&self, from: usize, to: usize) -> bool {
        let unplugged = [from, to].iter().any(|end| self.unplugged.contains(end));
        unplugged || self.cut.get(&(from, to)).is_some_and(|count| *count > 0)
    }

    fn travel_time(&mut self) -> Duration {
        let (shortest, longest) = self.weather.delay;
        shortest + (longest - shortest).mul_f64(self.chance.random_range(0.0..1.0))
    }
}

/// Carries letters for as long as anybody may send one.
pub(crate) async fn carry(world: std::sync::Arc<World>, mut sent: UnboundedReceiver<(Now, Letter)>) {
    let mut under_way: BTreeMap<(Now, u64), Letter> = BTreeMap::new();
    let mut number = 0;
    loop {
        let next = under_way.first_key_value().map(|((at, _), _)| *at);
        let until = next.unwrap_or_else(|| Now::now() + Duration::from_secs(3600));
        match SimRt::timeout_at(until, sent.next()).await {
            Ok(Some((at, letter))) => {
                number += 1;
                under_way.insert((at, number), letter);
            }
            Ok(None) => return,
            Err(_) => {
                if let Some((_, letter)) = under_way.pop_first() {
                    world.deliver(letter);
                }
            }
        }
    }
}
