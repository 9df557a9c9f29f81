//! What the tests of trust share: a cluster's authorities, nodes on loopback with real QUIC and TLS, a
//! clock that stands where it is put, a node set that is told what to think.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

use crate::ca::{Chain, ClusterCa, ClusterId};
use crate::identity::{Identity, NodeId};
use crate::incarnation::{Incarnation, IncarnationId, Tag};
use crate::tls::{Standing, Tls, Trust};

/// When all tests begin: some day in 2027.
pub(crate) const START: Duration = Duration::from_secs(1_800_000_000);

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Of some cluster, in its incarnation of this number.
pub(crate) const fn tag(cluster: u8, number: u64) -> Tag {
    let incarnation = Incarnation { number, id: IncarnationId([3; 16]) };
    Tag { cluster: ClusterId([cluster; 16]), incarnation }
}

pub(crate) fn start() -> SystemTime {
    UNIX_EPOCH + START
}

#[derive(Debug, Clone)]
pub(crate) struct Clock(Arc<Mutex<Duration>>);

impl Clock {
    pub(crate) fn at(after_start: Duration) -> Clock {
        Clock(Arc::new(Mutex::new(START + after_start)))
    }

    pub(crate) fn provider(&self) -> Arc<dyn TimeProvider> {
        Arc::new(self.clone())
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(*self.0.lock().expect("not poisoned")))
    }
}

/// Knows nobody until told.
#[derive(Default)]
pub(crate) struct NodeSet(Mutex<BTreeMap<NodeId, Standing>>);

impl NodeSet {
    pub(crate) fn set(&self, node: NodeId, standing: Standing) {
        self.0.lock().expect("not poisoned").insert(node, standing);
    }
}

impl Trust for NodeSet {
    fn judge(&self, node: NodeId) -> Standing {
        self.0.lock().expect("not poisoned").get(&node).copied().unwrap_or(Standing::Unknown)
    }
}

/// A node on loopback, with a certificate made at the start and a clock that is `after_start` from there.
pub(crate) struct Node {
    pub(crate) identity: Identity,
    pub(crate) trust: Arc<NodeSet>,
    pub(crate) tag: Tag,
    pub(crate) tls: Tls,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) address: SocketAddr,
}

impl Node {
    pub(crate) fn of(ca: &ClusterCa) -> Node {
        Node::at(ca, Duration::ZERO)
    }

    pub(crate) fn at(ca: &ClusterCa, after_start: Duration) -> Node {
        let identity = Identity::ephemeral().expect("a key");
        let csr = identity.csr().expect("a request");
        let chain = ca.issue_member(&csr, start()).expect("a certificate");
        Node::with(identity, &chain, ca, after_start)
    }

    pub(crate) fn with(identity: Identity, chain: &Chain, ca: &ClusterCa, after_start: Duration) -> Node {
        let trust = Arc::new(NodeSet::default());
        let clock = Clock::at(after_start).provider();
        let tls = Tls::new(&identity, chain, ca.public().members, Arc::clone(&trust) as _, clock)
            .expect("a certificate for the key");
        let endpoint = serving(tls.server_config());
        let address = endpoint.local_addr().expect("bound");
        let cluster = ca.cluster().id;
        let tag = Tag { cluster, incarnation: Incarnation::unnamed(cluster) };
        Node { identity, trust, tag, tls, endpoint, address }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.identity.node()
    }

    pub(crate) fn client_config(&self) -> quinn::ClientConfig {
        client_config(self.tls.client_config())
    }
}

pub(crate) fn founded() -> ClusterCa {
    ClusterCa::create("home", start()).expect("a cluster")
}

pub(crate) fn client_config(tls: Arc<rustls::ClientConfig>) -> quinn::ClientConfig {
    let tls = QuicClientConfig::try_from(tls).expect("fit for QUIC");
    quinn::ClientConfig::new(Arc::new(tls))
}

/// An endpoint on a free port of loopback.
pub(crate) fn serving(tls: Arc<rustls::ServerConfig>) -> quinn::Endpoint {
    let tls = QuicServerConfig::try_from(tls).expect("fit for QUIC");
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).expect("loopback")
}

/// An endpoint that only calls.
pub(crate) fn calling() -> quinn::Endpoint {
    quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("loopback")
}
