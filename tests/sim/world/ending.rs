//! The end of a run: everything is mended, and must be well within a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use openraft::AsyncRuntime;
use openraft::async_runtime::Instant as _;
use skein_net::gossip::State;
use skein_net::identity::NodeId;
use skein_raft_store::sim::{SimRt, Weather};
use skein_raft_store::{Expect, VoterId};

use super::{Now, SYNC_MAX, SYNC_MIN, Site, World, node_name, number_of_voter};
use crate::history::{Outcome, What};
use crate::{authorities, clients, watch};

/// With everything up and connected, all must be well again by then.
const HEALED_WITHIN: Duration = Duration::from_secs(20);

impl World {
    pub(super) async fn heal(self: &Arc<Self>) {
        self.healed.store(true, Ordering::Relaxed);
        self.air.clear();
        self.network.heal_all();
        self.set_weather(Weather::LAN);
        for number in self.present() {
            self.set_sync_time(number, SYNC_MIN, SYNC_MAX);
            if self.has_broken_disk(number) {
                self.mend_disk(number);
            }
            let mut slot = self.slots[number].lock().unwrap();
            slot.paused = false;
            let process = slot.process.clone();
            drop(slot);
            if let Some(process) = process {
                process.resume();
            }
            self.power_on(number);
        }
        let began = Now::now();
        let healed = async {
            for number in self.present() {
                let value = format!("{{\"last\":{number}}}");
                let key = "core/configmaps/default/last";
                let written = || clients::write(self, number, key.into(), Expect::Any, value.clone());
                while !matches!(written().await, Some(What::Write { outcome: Outcome::Done(_), .. })) {
                    SimRt::sleep(Duration::from_millis(20)).await;
                }
            }
            while self.unwell().is_some() {
                SimRt::sleep(Duration::from_millis(50)).await;
            }
        };
        match SimRt::timeout(HEALED_WITHIN, healed).await {
            Ok(()) => {
                let took_ms = began.elapsed().as_millis() as u64;
                self.counts.lock().unwrap().insert("ms to heal", took_ms);
            }
            Err(_) => {
                for number in self.present() {
                    let metrics =
                        self.site(number).map(|site| (site.store.voter_sets(), site.store.metrics()));
                    self.note(&format!("node {number}: {metrics:?}"));
                }
                self.wrong(format!("not well {HEALED_WITHIN:?} after all faults: {:?}", self.unwell()));
            }
        }
    }

    /// What is not as it should be when nothing is broken.
    pub(super) fn unwell(&self) -> Option<String> {
        let mut sites = Vec::new();
        for number in self.present() {
            let is_member = self.is_member(number);
            match self.site(number) {
                Some(site) if is_member => sites.push(site),
                // It has not been told to join yet.
                None if !is_member && !self.is_healed() => {}
                _ if is_member => return Some(format!("node {number} does not run")),
                _ => return Some(format!("node {number} is no member")),
            }
        }
        if let Some(name) = self.history.lock().unwrap().departing() {
            return Some(format!("{name} is on its way out"));
        }
        if let Some(amiss) = authorities::check(self, true) {
            return Some(amiss);
        }
        if let Some(amiss) = self.voters_amiss(&sites[0].store.metrics().voters) {
            return Some(amiss);
        }
        if let Some(number) = self.present().into_iter().find(|number| self.has_lost_vote(*number)) {
            return Some(format!("the lost store of node {number} still has its vote"));
        }
        self.states_differ(&sites)
            .or_else(|| sites.iter().find_map(|site| self.suspects(site)))
            .or_else(|| self.pods_amiss(&sites[0]))
    }

    /// As many as the members ask for, or three where machines are gone; most of them are there.
    fn voters_amiss(&self, voters: &BTreeSet<VoterId>) -> Option<String> {
        let wanted = skein_control::voters::target(self.members().len());
        let gone = voters.iter().filter(|voter| self.is_gone(number_of_voter(voter))).count();
        let present = self.members().into_iter().filter(|number| !self.is_gone(*number)).count();
        let is_few = present < wanted && voters.len() == 3;
        // One that has had a vote, and lost it when others went, has to be there for longer than a run lasts.
        let history = self.history.lock().unwrap();
        let votes = |node: &NodeId| voters.iter().any(|voter| voter.node == node.0);
        let new =
            history.records.values().filter(|record| record.stays() && record.fresh && !votes(&record.node));
        let is_few = is_few || new.count() < 2;
        let is_well = (is_few || voters.len() == wanted) && gone * 2 < voters.len();
        (!is_well).then(|| format!("{} nodes vote, {gone} of them gone, and {wanted} should", voters.len()))
    }

    fn states_differ(&self, sites: &[Site]) -> Option<String> {
        let revisions: Vec<u64> = sites.iter().map(|site| site.picture.revision()).collect();
        let states: Vec<_> = sites.iter().map(|site| site.store.state()).collect();
        if states
            .iter()
            .zip(&revisions)
            .any(|(state, seen)| state.revision() != *seen || *seen != revisions[0])
        {
            return Some(format!("the replicas are at {revisions:?}"));
        }
        let digests: BTreeSet<_> = states.iter().map(|state| state.digest()).collect();
        if digests.len() > 1 {
            // No time heals this.
            self.wrong(format!("I2: at revision {} the states differ: {digests:?}", revisions[0]));
        }
        None
    }

    fn suspects(&self, site: &Site) -> Option<String> {
        let members = site.members.lock().unwrap();
        let fine = |number: &usize| {
            let seen = members.get(&self.id(*number)).map(|member| member.state);
            match self.is_gone(*number) || !self.is_member(*number) {
                true => !seen.is_some_and(State::is_active),
                false => seen == Some(State::Alive),
            }
        };
        let suspect = (0..self.plan.nodes).find(|number| !fine(number))?;
        let seen = members.get(&self.id(suspect)).map(|member| member.state);
        Some(format!("node {} believes node {suspect} {seen:?}", site.number))
    }

    /// Every Deployment has its pods, each runs where it is bound, and nothing else runs.
    fn pods_amiss(&self, site: &Site) -> Option<String> {
        let view = site.picture.view();
        for number in 0..self.plan.nodes {
            let name = node_name(number);
            let (is_member, object) = (self.is_member(number), view.named::<Node>("", &name));
            if object.is_some() != is_member {
                return Some(format!(
                    "{name} is a member: {is_member}, and has an object: {}",
                    object.is_some()
                ));
            }
            if object
                .is_some_and(|node| node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)))
            {
                return Some(format!("{name} takes no pods, and nobody wants it to go"));
            }
            let is_gone = self.is_gone(number) && is_member;
            let is_marked = watch::is_called_unreachable(&view, &name);
            if is_marked != is_gone {
                return Some(format!("{name} is called unreachable: {is_marked}, and gone: {is_gone}"));
            }
            let running: BTreeSet<String> =
                self.machine(number, |machine| machine.running()).into_iter().collect();
            let bound: BTreeSet<String> =
                view.pods_on(&name).filter_map(|(_, pod)| pod.metadata.uid.clone()).collect();
            if running != bound {
                return Some(format!("on {name} run {running:?}, and {bound:?} should"));
            }
        }
        if let Some((key, _)) = view.unbound().next() {
            return Some(format!("{key} has no node"));
        }
        for (key, deployment) in view.all::<Deployment>() {
            let wanted = deployment.spec.replicas.unwrap_or(1);
            let app = deployment.metadata.name.as_deref().unwrap_or_default();
            let is_ours = |pod: &Pod| {
                let labels = pod.metadata.labels.as_ref();
                labels.and_then(|labels| labels.get("app")).is_some_and(|label| label == app)
            };
            let have = view.all::<Pod>().filter(|(_, pod)| is_ours(pod)).count() as i32;
            let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
            if have != wanted || ready != wanted {
                return Some(format!("{key} wants {wanted} pods, has {have}, {ready} ready"));
            }
        }
        None
    }
}
