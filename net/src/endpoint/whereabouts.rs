//! Where this node is: what it tells others of its addresses, and on which links it speaks, kept true.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::{Endpoint, code};
use crate::{
    interfaces::{self, Changes, Experience, Interfaces, Link},
    timer,
};

/// How often the interfaces are looked at although the kernel told of no change.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The same where it cannot tell.
const LOOK_BLINDLY_EVERY: Duration = Duration::from_secs(5);
/// Changes come in bursts: an address goes, another one comes, a link is up.
const SETTLE: Duration = Duration::from_millis(100);
/// Where they never end (containers that start and stop, a router's routes) and none concerns this node.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Whereabouts {
    listen: SocketAddr,
    /// What the operator wants others to be told instead; empty for what is found.
    advertised: Vec<SocketAddr>,
    experience: Mutex<Experience>,
    /// Something new was experienced.
    learned: Notify,
    machine: watch::Sender<Arc<Interfaces>>,
    addresses: watch::Sender<Vec<SocketAddr>>,
    links: watch::Sender<Vec<Link>>,
}

impl Whereabouts {
    /// Those of a socket bound to `listen`.
    pub(super) fn new(listen: SocketAddr, advertised: Vec<SocketAddr>) -> Whereabouts {
        let whereabouts = Whereabouts {
            listen,
            advertised,
            experience: Mutex::default(),
            learned: Notify::new(),
            machine: watch::Sender::default(),
            addresses: watch::Sender::default(),
            links: watch::Sender::default(),
        };
        whereabouts.look();
        whereabouts.tell();
        whereabouts
    }

    pub(super) fn addresses(&self) -> &watch::Sender<Vec<SocketAddr>> {
        &self.addresses
    }

    pub(super) fn links(&self) -> &watch::Sender<Vec<Link>> {
        &self.links
    }

    pub(super) fn machine(&self) -> &watch::Sender<Arc<Interfaces>> {
        &self.machine
    }

    /// Another member was in touch over this address of this machine.
    pub(super) fn prove(&self, ip: IpAddr) {
        if self.experience(|experience| experience.prove(std::time::Instant::now(), ip.to_canonical())) {
            self.learned.notify_one();
        }
    }

    /// Takes up what the kernel says now. Returns whether anything is new.
    fn look(&self) -> bool {
        match interfaces::read() {
            Ok(machine) => {
                self.experience(|experience| experience.follow(std::time::Instant::now(), machine.ips()));
                replace_if_new(&self.machine, Arc::new(machine))
            }
            Err(error) => {
                tracing::debug!(%error, "could not read this machine's interfaces; what was known is kept");
                false
            }
        }
    }

    /// Says what follows from all that is known. Returns when experience will say more.
    fn tell(&self) -> Option<Instant> {
        let now = std::time::Instant::now();
        let (evidence, due) = self.experience(|experience| experience.evidence(now));
        let machine = self.machine.borrow().clone();
        let addresses = match &self.advertised[..] {
            [] => interfaces::reachable(&machine, self.listen, &evidence),
            advertised => advertised.to_vec(),
        };
        replace_if_new(&self.addresses, addresses);
        replace_if_new(&self.links, interfaces::links(&machine, self.listen));
        due.map(Instant::from_std)
    }

    fn experience<T>(&self, work: impl FnOnce(&mut Experience) -> T) -> T {
        // Each method leaves it whole, so a panic elsewhere cannot have torn it.
        work(&mut self.experience.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Keeps what the endpoint says of its addresses and links true, until it ends.
pub(super) async fn follow(endpoint: Endpoint) {
    let whereabouts = &endpoint.0.whereabouts;
    let mut changes = Changes::of_interfaces();
    if let Err(error) = &changes {
        tracing::debug!(%error, "the kernel does not tell when addresses change; looking now and then");
    }
    let pause = if changes.is_ok() { LOOK_EVERY } else { LOOK_BLINDLY_EVERY };
    let mut settle = SETTLE;
    let mut due = None;
    loop {
        let change = async {
            match &mut changes {
                Ok(changes) => changes.next().await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = change => sleep(settle).await,
            () = sleep(pause) => {}
            () = timer::until(due) => {}
            () = whereabouts.learned.notified() => {
                due = whereabouts.tell();
                continue;
            }
        }
        let is_new = whereabouts.look();
        settle = if is_new { SETTLE } else { (settle * 2).min(SETTLE_MAX) };
        due = whereabouts.tell();
        endpoint.leave_lost_addresses();
    }
}

impl Endpoint {
    /// Drops connections to addresses that this machine no longer has.
    fn leave_lost_addresses(&self) {
        let machine = self.0.whereabouts.machine.borrow().clone();
        // None at all: nothing could be read, or nobody is reached anyway.
        let is_here = |ip: IpAddr| machine.interfaces.is_empty() || machine.has(ip);
        let homeless = self.links().take_homeless(is_here);
        for link in homeless {
            tracing::debug!(peer = %link.peer, "dropped a connection to an address that is gone");
            link.connection.close(code::STALE, b"moved");
        }
    }
}

fn replace_if_new<T: PartialEq>(told: &watch::Sender<T>, seen: T) -> bool {
    told.send_if_modified(|told| {
        let is_new = *told != seen;
        *told = seen;
        is_new
    })
}
