//! Looks whether packets of pods pass this machine, mends what it may, and says the rest: in `status`, in the
//! Node's NetworkUnavailable condition, and by Events.
//!
//! The kernel tells when a rule, a switch, an address or a route changes. Only the firewall of old tells nobody:
//! where it filters, it is asked every few seconds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use skein_control::event::Notice;
use skein_control::pod_network::{Effect, Findings, PodNetwork, Trouble};
use skein_control::time::Instant;
use skein_net::endpoint::Endpoint;
use skein_net::interfaces::Changes;
use skein_podnet::{Network, Probe, forwarding};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::events;
use crate::clock;
use crate::daemon::POD_NETWORK;
use crate::picture::Picture;
use crate::surroundings;

/// How long a packet may take through a busy machine.
const PASSES_WITHIN: Duration = Duration::from_secs(1);
/// The same between ends that were just made, and do not know yet where the other one is.
const FIRST_PASSES_WITHIN: Duration = Duration::from_secs(3);
/// Firewalls change in bursts.
const SETTLE: Duration = Duration::from_millis(300);
/// How often the old firewall is looked for, and asked if it is there.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// A packet is sent every 30 s although nothing changed: there are ways to drop it that nobody is told of.
const ASKED_UNTIL_SENT: u32 = 6;

/// What the look works with.
pub(super) struct Forwarding {
    /// The node's name.
    pub(super) node: Arc<str>,
    /// What the network was opened with: the tag of its links, and its pods' addresses.
    pub(super) tag: String,
    pub(super) subnet: skein_podnet::Subnet,
    pub(super) network: Arc<Mutex<Network>>,
    pub(super) endpoint: Endpoint,
    pub(super) picture: Picture,
    pub(super) events: events::Sender,
    pub(super) troubles: watch::Sender<Vec<Trouble>>,
}

impl Forwarding {
    /// Looks until `stopping`.
    pub(super) async fn keep(self, stopping: CancellationToken) {
        let mut changes = Changes::of_forwarding().inspect_err(|error| {
            debug!(%error, "the kernel does not tell when its firewall changes; looking now and then");
        });
        let mut machine = self.endpoint.machine();
        let mut probe = None;
        let mut state = PodNetwork::default();
        loop {
            machine.mark_unchanged();
            let findings;
            (findings, probe) = self.look(probe).await;
            let mut effects = Vec::new();
            state.handle(clock::boot(), &findings, POD_NETWORK, &mut effects);
            let next = self.perform(effects);
            let troubles = state.troubles().to_vec();
            self.troubles.send_if_modified(|told| {
                let is_new = *told != troubles;
                *told = troubles;
                is_new
            });
            let change = async {
                match &mut changes {
                    Ok(changes) => changes.next().await,
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                () = change => sleep(SETTLE).await,
                Ok(()) = machine.changed() => sleep(SETTLE).await,
                () = clock::sleep_until(next) => {}
                () = until_due() => {}
            }
        }
    }

    /// What there is to be found, with a packet of `probe`, which is made where there is none.
    async fn look(&self, probe: Option<Probe>) -> (Findings, Option<Probe>) {
        let (taken, uplinks) = {
            let machine = self.endpoint.machine().borrow().clone();
            let told = self.endpoint.reachable_addresses();
            let taken = surroundings::overlaps(&machine);
            let inside =
                taken.iter().filter(|overlap| overlap.is_inside()).map(ToString::to_string).collect();
            (inside, surroundings::uplinks(&machine, &told))
        };
        let (network, tag, subnet) = (self.network.clone(), self.tag.clone(), self.subnet);
        let looked = tokio::task::spawn_blocking(move || {
            let has_pods = network.lock().expect("nobody panics holding it").has_pods();
            let forwards = forwarding::is_on().unwrap_or(true);
            let closed =
                uplinks.into_iter().filter(|uplink| forwards && has_pods && !forwarding::is_on_at(uplink));
            let (passes, probe) = if forwards { send(probe, &tag, subnet) } else { (None, probe) };
            (Findings { has_pods, forwards, closed: closed.collect(), passes, taken }, probe)
        });
        // A panic has been reported where it happened.
        looked.await.unwrap_or((Findings { forwards: true, ..Findings::default() }, None))
    }

    /// Returns when to look again.
    fn perform(&self, effects: Vec<Effect>) -> Option<Instant> {
        let mut next = None;
        for effect in effects {
            match effect {
                Effect::LookAt(at) => next = Some(at),
                Effect::Forward => {
                    if let Err(error) = forwarding::switch_on() {
                        warn!(%error, "could not switch forwarding on, which pods need");
                    }
                }
                Effect::Restored => {
                    let message = "net.ipv4.ip_forward was 0, which pods need; it is 1 again";
                    info!(message, "pod network");
                    self.tell(true, "ForwardingRestored", message);
                }
                Effect::Began(Trouble { reason, message }) => {
                    warn!(%reason, message, "pods have no network");
                    self.tell(true, &reason.to_string(), &message);
                }
                Effect::Ended => {
                    info!("pods have a network again");
                    self.tell(false, "PodNetworkRestored", "packets of pods pass this machine again");
                }
            }
        }
        next
    }

    fn tell(&self, warning: bool, reason: &str, message: &str) {
        let view = self.picture.view();
        if let Some(node) = view.named::<Node>("", &self.node) {
            let notice = Notice::about::<Node>(&node.metadata, "kubelet", reason, message);
            self.events.tell(Notice { warning, host: Some(self.node.to_string()), ..notice });
        }
    }
}

/// Whether a packet passes; without an answer where none could be sent.
fn send(probe: Option<Probe>, tag: &str, subnet: skein_podnet::Subnet) -> (Option<bool>, Option<Probe>) {
    let opened = match probe {
        Some(probe) => Ok((probe, PASSES_WITHIN)),
        None => Probe::open(tag, subnet).map(|probe| (probe, FIRST_PASSES_WITHIN)),
    };
    let (mut probe, limit) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            debug!(error = %crate::report::Chain(&error), "cannot try whether packets of pods pass");
            return (None, None);
        }
    };
    match probe.passes(limit) {
        Ok(passes) => (Some(passes), Some(probe)),
        // Its links were taken away: it is made anew next time.
        Err(error) => {
            debug!(%error, "could not send a packet as a pod does");
            (None, None)
        }
    }
}

/// Until a packet is to be sent although nothing is known to have changed.
async fn until_due() {
    for _ in 0..ASKED_UNTIL_SENT {
        sleep(ASK_EVERY).await;
        if forwarding::has_legacy_filter() {
            return;
        }
    }
}
