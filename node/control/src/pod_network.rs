//! Whether pods of this machine have a network: what is mended, and what is said while it cannot be.
//!
//! Other software on a machine may switch forwarding off, let a firewall drop what is passed on (Docker does), or
//! bring a network that lies where pods have their addresses. Nothing breaks loudly then; packets vanish.

use std::fmt;
use std::time::Duration;

use crate::time::Instant;

/// How long after a packet was missed the next one is sent: a machine may be busy for a moment.
const DOUBT: Duration = Duration::from_secs(1);
/// How long the switch has to show that it was set.
const SETTLE: Duration = Duration::from_millis(200);

/// What was found at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Whether any pod has an address here.
    pub has_pods: bool,
    /// Whether the kernel passes packets on at all.
    pub forwards: bool,
    /// Interfaces that lead to other nodes, for which alone that is switched off.
    pub closed: Vec<String>,
    /// Whether a packet went the way that a pod's takes; `None` if none could be sent.
    pub passes: Option<bool>,
    /// Networks of the machine that lie where pods have their addresses: a sentence each.
    pub taken: Vec<String>,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Forwarding is off and does not stay on.
    ForwardingOff,
    /// Packets are dropped on their way through the machine.
    ForwardingBlocked,
    /// The machine's own network has addresses of pods.
    PodRangeTaken,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One thing that keeps pods from the network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trouble {
    /// What it is, for machines.
    pub reason: Reason,
    /// A sentence for people.
    pub message: String,
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Switch forwarding on.
    Forward,
    /// Look again at this moment, if nothing happens before.
    LookAt(Instant),
    /// Tell users that this began.
    Began(Trouble),
    /// Tell users that nothing is wrong any more.
    Ended,
    /// Tell users that forwarding was off, and that it was switched on again.
    Restored,
}

/// See the module. One for each machine.
#[derive(Debug, Default)]
pub struct PodNetwork {
    /// Forwarding was off at the last look, and was to be switched on.
    switched: bool,
    /// A packet was missed at the last look.
    missed: bool,
    /// Packets are dropped.
    blocked: bool,
    troubles: Vec<Trouble>,
}

impl PodNetwork {
    /// Takes what was found at `now` and adds what the shell must do. `pods` is how people write the pods' range.
    pub fn handle(&mut self, now: Instant, findings: &Findings, pods: &str, effects: &mut Vec<Effect>) {
        let mut troubles = Vec::new();
        // Without pods the switch is nobody's but its owner's.
        let is_off = findings.has_pods && !findings.forwards;
        if is_off {
            if self.switched {
                let message = "net.ipv4.ip_forward is 0 and does not stay 1: other software sets it, or this process may not; pods reach nobody";
                troubles.push(Trouble { reason: Reason::ForwardingOff, message: message.into() });
            } else {
                effects.push(Effect::Restored);
                effects.push(Effect::LookAt(now.after(SETTLE)));
            }
            effects.push(Effect::Forward);
        }
        self.switched = is_off;
        for interface in &findings.closed {
            let message = format!(
                "net.ipv4.conf.{interface}.forwarding is 0: what other nodes send to pods here is dropped; set it to 1"
            );
            troubles.push(Trouble { reason: Reason::ForwardingOff, message });
        }
        match findings.passes.filter(|_| findings.forwards) {
            Some(true) => (self.missed, self.blocked) = (false, false),
            Some(false) if self.missed => self.blocked = true,
            Some(false) => {
                self.missed = true;
                effects.push(Effect::LookAt(now.after(DOUBT)));
            }
            // Nothing is passed on, so nothing is known of what would be dropped; without pods nobody minds.
            None if !findings.forwards && !findings.has_pods => (self.missed, self.blocked) = (false, false),
            None => {}
        }
        if self.blocked {
            let message = format!(
                "packets of pods are dropped on their way through this machine: a firewall here does that, mostly by the policy DROP of FORWARD; let {pods} pass in both directions (iptables -I FORWARD -s {pods} -j ACCEPT; iptables -I FORWARD -d {pods} -j ACCEPT)"
            );
            troubles.push(Trouble { reason: Reason::ForwardingBlocked, message });
        }
        let taken = findings.taken.iter().map(|sentence| Trouble {
            reason: Reason::PodRangeTaken,
            message: format!("{sentence}: pods there are not reached; give the machine another network"),
        });
        troubles.extend(taken);
        let began = troubles.iter().filter(|trouble| !self.troubles.contains(trouble));
        effects.extend(began.cloned().map(Effect::Began));
        if troubles.is_empty() && !self.troubles.is_empty() {
            effects.push(Effect::Ended);
        }
        self.troubles = troubles;
    }

    /// What is wrong now.
    pub fn troubles(&self) -> &[Trouble] {
        &self.troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Findings = Findings {
        has_pods: true,
        forwards: true,
        closed: Vec::new(),
        passes: Some(true),
        taken: Vec::new(),
    };

    fn at(ms: u64) -> Instant {
        Instant(ms)
    }

    fn look(network: &mut PodNetwork, ms: u64, findings: &Findings) -> Vec<Effect> {
        let mut effects = Vec::new();
        network.handle(at(ms), findings, "10.42.0.0/16", &mut effects);
        effects
    }

    fn reasons(network: &PodNetwork) -> Vec<Reason> {
        network.troubles().iter().map(|trouble| trouble.reason).collect()
    }

    #[test]
    fn where_packets_pass_there_is_nothing_to_do() {
        let mut network = PodNetwork::default();
        assert!(look(&mut network, 0, &FINE).is_empty() && network.troubles().is_empty());
    }

    #[test]
    fn forwarding_is_switched_on_for_pods_only() {
        let mut network = PodNetwork::default();
        let off = Findings { forwards: false, passes: None, ..FINE };
        assert!(look(&mut network, 0, &Findings { has_pods: false, ..off.clone() }).is_empty());
        assert_eq!(
            look(&mut network, 100, &off),
            [Effect::Restored, Effect::LookAt(at(300)), Effect::Forward]
        );
        assert!(network.troubles().is_empty(), "that is mended");
        assert!(look(&mut network, 300, &FINE).is_empty());
        // Somebody sets it every minute.
        assert!(look(&mut network, 60_000, &off).contains(&Effect::Restored));
    }

    #[test]
    fn forwarding_that_does_not_stay_on_is_told_and_tried_on() {
        let mut network = PodNetwork::default();
        let off = Findings { forwards: false, passes: None, ..FINE };
        look(&mut network, 0, &off);
        let effects = look(&mut network, 200, &off);
        let [Effect::Forward, Effect::Began(trouble)] = &effects[..] else { panic!("{effects:?}") };
        assert!(trouble.message.contains("net.ipv4.ip_forward"), "{trouble:?}");
        assert_eq!(look(&mut network, 5000, &off), [Effect::Forward], "told once");
        assert_eq!(look(&mut network, 6000, &FINE), [Effect::Ended]);
    }

    #[test]
    fn packets_that_are_dropped_twice_are_told_of_and_one_that_passes_takes_it_back() {
        let mut network = PodNetwork::default();
        let dropped = Findings { passes: Some(false), ..FINE };
        assert_eq!(look(&mut network, 0, &dropped), [Effect::LookAt(at(1000))]);
        assert!(network.troubles().is_empty(), "a machine may be busy for a moment");
        let effects = look(&mut network, 1000, &dropped);
        let [Effect::Began(trouble)] = &effects[..] else { panic!("{effects:?}") };
        assert!(trouble.message.contains("FORWARD") && trouble.message.contains("10.42.0.0/16"));
        assert!(look(&mut network, 6000, &dropped).is_empty());
        // That none could be sent says nothing.
        assert!(look(&mut network, 7000, &Findings { passes: None, ..FINE }).is_empty());
        assert_eq!(reasons(&network), [Reason::ForwardingBlocked]);
        assert_eq!(look(&mut network, 8000, &FINE), [Effect::Ended]);
        assert_eq!(look(&mut network, 9000, &dropped), [Effect::LookAt(at(10_000))], "from the beginning");
    }

    #[test]
    fn nobody_is_kept_away_from_a_machine_that_has_no_pods_and_forwards_nothing() {
        let mut network = PodNetwork::default();
        let dropped = Findings { passes: Some(false), ..FINE };
        look(&mut network, 0, &dropped);
        look(&mut network, 1000, &dropped);
        // The first pod switches it on, and then it is seen whether packets pass.
        let idle = Findings { has_pods: false, forwards: false, passes: None, ..FINE };
        assert_eq!(look(&mut network, 2000, &idle), [Effect::Ended]);
    }

    #[test]
    fn each_interface_and_each_network_in_the_way_is_named() {
        let mut network = PodNetwork::default();
        let findings = Findings {
            closed: vec!["eth0".into()],
            taken: vec![
                "10.42.7.0/24 (eth1) of this machine overlaps 10.42.0.0/16, the addresses of pods".into(),
            ],
            ..FINE
        };
        assert_eq!(look(&mut network, 0, &findings).len(), 2);
        assert_eq!(reasons(&network), [Reason::ForwardingOff, Reason::PodRangeTaken]);
        assert!(network.troubles()[0].message.contains("net.ipv4.conf.eth0.forwarding"));
        let one = Findings { closed: Vec::new(), ..findings };
        assert!(look(&mut network, 1, &one).is_empty(), "some of it goes on");
        assert_eq!(look(&mut network, 2, &FINE), [Effect::Ended]);
    }
}
