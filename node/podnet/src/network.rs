//! The pod network of one node, as its agent uses it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use tracing::debug;

use crate::ipam::Ipam;
use crate::netlink::Netlink;
use crate::routes::{self, Peer};
use crate::{Subnet, forwarding, link};

/// The start of the name of each pod's link.
const PREFIX: &str = "sk";

/// What [`Network::open`] needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory for the table of addresses; it must exist.
    pub dir: PathBuf,
    /// Whose the links are; its first five characters are part of each one's name, so that nodes that share a network
    /// namespace do not take each other's for leftovers. To be that of the data directory rather than the node's: what
    /// a node has left whose directory was deleted is known to the next one by it.
    pub tag: String,
    /// All pods of the cluster.
    pub cluster: Subnet,
    /// The pods of this node.
    pub subnet: Subnet,
}

/// Errors of the pod network. Each is safe to retry: attach and detach begin by clearing what a
/// former try left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address was taken.
    #[error("no free pod address in {subnet}; delete pods of this node or move them elsewhere")]
    Full {
        /// This node's pod subnet.
        subnet: Subnet,
    },
    /// Nothing was changed.
    #[error("could not write the table of pod addresses; check the data directory's disk")]
    Table(#[source] io::Error),
    /// Parts of the link may exist; a retry clears them.
    #[error("could not {action} the network of pod {pod}")]
    Link {
        /// `attach` or `detach`.
        action: &'static str,
        /// The pod's uid.
        pod: String,
        /// The kernel's words.
        #[source]
        source: io::Error,
    },
    /// Some of the routes may be set.
    #[error("could not set the routes to other nodes' pods; they need a link shared with this node")]
    Routes(#[source] io::Error),
    /// Nothing is left of it.
    #[error("could not make the two ends between which packets of pods are tried")]
    Probe(#[source] io::Error),
    /// Nothing was changed.
    #[error(
        "cannot use the pod network; it needs rights over this network namespace (run as root, or in a user namespace)"
    )]
    Unusable(#[source] io::Error),
}

/// Links, addresses and routes of one node's pods.
pub struct Network {
    config: Config,
    ipam: Ipam,
    netlink: Netlink,
}

impl Network {
    /// Opens the table of addresses. Nothing changes in the kernel before there is a pod.
    pub fn open(config: Config) -> Result<Network, Error> {
        let netlink = Netlink::open().map_err(Error::Unusable)?;
        forwarding::check().map_err(Error::Unusable)?;
        let ipam = Ipam::open(&config.dir.join("addresses.json"), config.subnet);
        Ok(Network { config, ipam, netlink })
    }

    /// Connects the namespace at `netns` as `pod` (its uid) and returns its address: the same one at
    /// every call. Undo with [`Network::detach`].
    pub fn attach(&mut self, pod: &str, netns: &Path) -> Result<Ipv4Addr, Error> {
        let address = self
            .ipam
            .address(pod)
            .map_err(Error::Table)?
            .ok_or(Error::Full { subnet: self.config.subnet })?;
        let host_end = self.link_name(pod);
        let attached = File::open(netns)
            .and_then(|netns| link::attach(&mut self.netlink, &netns, &host_end, address))
            .and_then(|()| forwarding::switch_on());
        attached.map_err(|source| Error::Link { action: "attach", pod: pod.to_owned(), source })?;
        debug!(pod, %address, link = host_end, "pod attached");
        Ok(address)
    }

    /// The address of `pod`, if it has one: what a restarted daemon asks for a pod it adopts.
    pub fn address(&self, pod: &str) -> Option<Ipv4Addr> {
        self.ipam.pods().find_map(|(uid, address)| (uid == pod).then_some(address))
    }

    /// Takes `pod` off the network and frees its address. Nothing to do for an unknown pod.
    pub fn detach(&mut self, pod: &str) -> Result<(), Error> {
        let host_end = self.link_name(pod);
        link::detach(&mut self.netlink, &host_end).map_err(|source| Error::Link {
            action: "detach",
            pod: pod.to_owned(),
            source,
        })?;
        self.ipam.release(pod).map_err(Error::Table)
    }

    /// Detaches every pod that is not in `live` and deletes links of ours that belong to no pod: what a
    /// daemon does once at start, for whatever a crash left behind.
    pub fn retain(&mut self, live: &BTreeSet<String>) -> Result<(), Error> {
        let gone: Vec<String> =
            self.ipam.pods().map(|(pod, _)| pod.to_owned()).filter(|pod| !live.contains(pod)).collect();
        for pod in gone {
            self.detach(&pod)?;
        }
        let kept: BTreeSet<String> = live.iter().map(|pod| self.link_name(pod)).collect();
        detach_links(&mut self.netlink, |name| {
            name.starts_with(&prefix(&self.config.tag)) && !kept.contains(name)
        })
    }

    /// Whether any pod has an address here.
    pub fn has_pods(&self) -> bool {
        self.ipam.pods().next().is_some()
    }

    /// Makes the routes to other nodes equal to `peers`, but for those whose pods have addresses of a network
    /// that is this machine's own, of which `taken` are all.
    pub fn set_peers(&mut self, peers: &BTreeSet<Peer>, taken: &BTreeSet<Subnet>) -> Result<(), Error> {
        let is_taken = |subnet: Subnet| taken.iter().any(|taken| taken.overlaps(&subnet));
        let wanted = peers.iter().copied();
        let wanted =
            wanted.filter(|peer| peer.subnet != self.config.subnet && !is_taken(peer.subnet)).collect();
        routes::reconcile(&mut self.netlink, self.config.cluster, &wanted).map_err(Error::Routes)
    }

    /// Takes every pod off the network and removes our links and routes: what a node does that has left.
    pub fn dismantle(mut self) -> Result<(), Error> {
        self.retain(&BTreeSet::new())?;
        routes::clear(&mut self.netlink).map_err(Error::Routes)
    }

    /// At most 15 bytes (`IFNAMSIZ` less its end): `sk`, the tag, 32 bits of the pod's uid.
    fn link_name(&self, pod: &str) -> String {
        // FNV-1a: the same name for the same pod after every restart, without a table.
        let hash = pod
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        format!("{}{hash:08x}", prefix(&self.config.tag))
    }
}

/// Removes every link with this [`Config::tag`], for a node of which nothing else is known any more. Routes tell nobody
/// whose they are; they go with the last link of any node here.
pub fn clear(tag: &str) -> Result<(), Error> {
    let mut netlink = Netlink::open().map_err(Error::Unusable)?;
    detach_links(&mut netlink, |name| name.starts_with(&prefix(tag)))?;
    let links = link::pairs(&mut netlink).map_err(Error::Unusable)?;
    match links.iter().any(|name| name.starts_with(PREFIX)) {
        true => Ok(()),
        false => routes::clear(&mut netlink).map_err(Error::Routes),
    }
}

fn prefix(tag: &str) -> String {
    format!("{PREFIX}{tag:.5}")
}

fn detach_links(netlink: &mut Netlink, is_gone: impl Fn(&str) -> bool) -> Result<(), Error> {
    let links = link::pairs(netlink).map_err(Error::Unusable)?;
    for name in links.into_iter().filter(|name| is_gone(name)) {
        link::detach(netlink, &name).map_err(|source| Error::Link { action: "detach", pod: name, source })?;
    }
    Ok(())
}
