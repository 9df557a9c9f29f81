//! The shell of the gossip core.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use openraft::AsyncRuntime;
use skein_net::gossip::core::{Core, Effect, Input, Instant, Mutation as Broken, Tuning};
use skein_net::gossip::{Change, List, Metadata};
use skein_net::identity::NodeId;
use skein_raft_store::log::Health;
use skein_raft_store::sim::SimRt;

use crate::air::Post;
use crate::plan::Mutation;
use crate::world::{Site, node_name};

pub(crate) enum In {
    Packet {
        from: NodeId,
        packet: Bytes,
    },
    Asked {
        from: NodeId,
        list: List,
    },
    Answered(List),
    /// A node was removed from the cluster.
    Forget(NodeId),
}

/// What a member whose disk has failed says of itself: as a node does.
const DISK: &str = "disk";
const FAILED: &str = "failed";

pub(crate) fn has_failed(metadata: &Metadata) -> bool {
    metadata.labels.get(DISK).is_some_and(|word| word == FAILED)
}

/// Runs one core until its process ends.
pub(crate) async fn run(site: Site, seed: u64, mut inbox: UnboundedReceiver<In>) {
    let me = site.id;
    let (address, api) = site.world.lan.addresses(site.number);
    let mut metadata = Metadata {
        name: node_name(site.number),
        addresses: vec![address],
        api_address: Some(api),
        version: "0.1.0".into(),
        ..Metadata::default()
    };
    let instance = seed as u32 ^ site.generation as u32;
    let mut core = Core::new(me, site.generation, instance, seed, Tuning::default(), metadata.clone());
    if site.world.plan.mutation == Some(Mutation::NoGossipGuard) {
        core.mutate(Broken::NoSuspicionGuard);
    }
    // Whom the map names, and whom this node has seen: as a daemon that starts.
    let members = site.picture.roster().into_keys().chain(site.book.nodes());
    let contacts: BTreeSet<NodeId> = members.filter(|node| *node != me).collect();
    let mut wake_at = None;
    let mut effects = Vec::new();
    let mut input = Input::Contacts(contacts.into_iter().collect());
    loop {
        core.handle(Instant(site.clock.boot().0), input, &mut effects);
        for effect in effects.drain(..) {
            perform(&site, effect, &mut wake_at);
        }
        *site.members.lock().unwrap() = core.members().clone();
        let failed = matches!(site.store.disk(), Health::Failed(_));
        if failed != has_failed(&metadata) {
            metadata.labels.insert(DISK.into(), FAILED.into());
            input = Input::Describe(metadata.clone());
            continue;
        }
        input = loop {
            let wake = wake_at.unwrap_or(Instant(site.clock.boot().0 + 10_000));
            let wake = site.clock.moment(skein_control::time::Instant(wake.0));
            match SimRt::timeout_at(wake, inbox.next()).await {
                Ok(Some(In::Packet { from, packet })) => break Input::Packet { from, packet },
                Ok(Some(In::Asked { from, list })) => {
                    // As it was before it takes the other's in.
                    site.world.air.send(me, from, Post::Answered(core.list()));
                    break Input::Listed(list);
                }
                Ok(Some(In::Answered(list))) => break Input::Listed(list),
                Ok(Some(In::Forget(node))) => break Input::Forget(node),
                Ok(None) => return,
                Err(_) if wake_at.is_some() => {
                    wake_at = None;
                    break Input::Woken;
                }
                Err(_) => {}
            }
        };
    }
}

fn perform(site: &Site, effect: Effect, wake_at: &mut Option<Instant>) {
    let air = &site.world.air;
    match effect {
        // A process that came back calls its own earlier starts, which it knows as down. No way leads there.
        Effect::Send { to, .. } if to == site.id => site.world.count("calls to itself"),
        Effect::Send { to, packet } => air.send(site.id, to, Post::Gossip(packet)),
        Effect::WakeAt(at) => *wake_at = Some(at),
        Effect::Exchange { with, list } => air.send(site.id, with, Post::Asked(list)),
        Effect::Changed { member, change } => {
            let own = member.node() == site.id;
            if let Some(metadata) = member.metadata.as_deref().filter(|_| !own) {
                site.book.learn(member.node(), &metadata.name, &metadata.addresses);
                site.store.introduce(site.book.nodes().into_iter().map(|node| node.0).collect());
            }
            match change {
                Change::Rejoined if own => site.world.rejoined(site.number),
                Change::Down => site.world.count("down in gossip"),
                Change::Suspect => site.world.count("suspected in gossip"),
                _ => {}
            }
        }
        Effect::Refused { reason, .. } => site.world.wrong(format!("gossip refused a packet: {reason}")),
        Effect::Deposed(why) => {
            site.world.wrong(format!("I11: node {} was deposed: {why}", site.number));
        }
    }
}
