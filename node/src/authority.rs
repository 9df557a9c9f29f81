//! The cluster's authorities on this node, and certificates from whoever holds them.
//!
//! Voters hold them: the founder made them, every later voter asks an earlier one over mTLS and keeps
//! them sealed to its own key. They never enter the replicated map. Everybody else asks a voter.

use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use skein_net::ca::{ApiNames, Chain, ClusterCa};
use skein_net::endpoint::Endpoint;
use skein_net::identity::{Identity, NodeId};
use skein_net::tls::{Standing, Trust};
use skein_raft_store::{Handle, TokioRuntime};
use tracing::{info, warn};

use crate::clock;
use crate::home::Home;
use crate::members::Members;
use crate::wire::{self, Answer, Ask, Client};

/// See the module. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Authority {
    inner: Arc<Inner>,
}

struct Inner {
    home: Home,
    identity: Identity,
    members: Members,
    held: Mutex<Option<Arc<ClusterCa>>>,
}

impl Authority {
    /// Loads what this node holds.
    pub(crate) fn load(
        home: Home,
        identity: Identity,
        members: Members,
    ) -> Result<Authority, crate::home::Error> {
        let held = home.authority(&identity)?.map(Arc::new);
        Ok(Authority { inner: Arc::new(Inner { home, identity, members, held: Mutex::new(held) }) })
    }

    /// The authorities, where this node holds them.
    pub(crate) fn held(&self) -> Option<Arc<ClusterCa>> {
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fetches the authorities if this node votes and does not hold them yet.
    pub(crate) async fn hold_if_voter(&self, store: &Handle<TokioRuntime>, endpoint: &Endpoint) {
        let metrics = store.metrics();
        if self.held().is_some() || !metrics.voters.contains(&metrics.voter) {
            return;
        }
        for voter in metrics.voters.iter().filter(|voter| **voter != metrics.voter) {
            let peer = NodeId(voter.node);
            let answer: Result<Answer<Vec<u8>>, String> = wire::ask(endpoint, peer, &Ask::Authority).await;
            let Ok(Ok(bytes)) = answer else { continue };
            let taken =
                ClusterCa::from_bytes(&bytes).map_err(|error| error.to_string()).and_then(|authority| {
                    let kept = self.inner.home.set_authority(&self.inner.identity, &authority);
                    kept.map_err(|error| error.to_string()).map(|()| authority)
                });
            match taken {
                Ok(authority) => {
                    info!(%peer, "holds the cluster's authorities now");
                    *self.inner.held.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(Arc::new(authority));
                    return;
                }
                Err(error) => warn!(%peer, error, "could not take over the cluster's authorities"),
            }
        }
    }

    /// Answers the questions about certificates. `chain` is what the asker showed in its handshake.
    pub(crate) fn answer_authority(&self, asker: NodeId, store: &Handle<TokioRuntime>) -> Answer<Vec<u8>> {
        let votes = store.metrics().voters.iter().any(|voter| voter.node == asker.0);
        if !votes || self.inner.members.judge(asker) != Standing::Member {
            return Err("only voters hold the authorities".into());
        }
        self.authority().map(|authority| authority.to_bytes())
    }

    /// A new certificate for a member's own key.
    pub(crate) fn answer_renew(&self, asker: NodeId, csr: &[u8]) -> Answer<Chain> {
        let authority = self.authority()?;
        let standing = self.inner.members.judge(asker);
        let node = skein_net::ca::request_node(csr).map_err(|error| error.to_string())?;
        // The connection proves the key; a member's dates do not matter, and nobody else may ask.
        if node != asker || standing != Standing::Member {
            return Err(format!("node {asker} may not renew a certificate of node {node}"));
        }
        authority.issue_member(csr, clock::system()).map_err(|error| error.to_string())
    }

    /// A certificate for a member's API server. Its names are what clients check: those of the asker only.
    pub(crate) fn answer_api(&self, asker: NodeId, csr: &[u8], names: &ApiNames) -> Answer<Chain> {
        let authority = self.authority()?;
        let record = self.inner.members.get(asker).ok_or("only members have an API server")?;
        if names.names.iter().any(|name| *name != record.name && name != "localhost") {
            return Err(format!("node {asker} is called {:?}, not {:?}", record.name, names.names));
        }
        authority.issue_api_server(csr, names, clock::system()).map_err(|error| error.to_string())
    }

    /// A client certificate for an administrator: for whoever is root on a member.
    pub(crate) fn answer_client(&self, asker: NodeId, user: &str) -> Answer<Client> {
        let authority = self.authority()?;
        if self.inner.members.judge(asker) != Standing::Member {
            return Err("only members may ask for certificates".into());
        }
        let issued = authority.issue_client(user, clock::system()).map_err(|error| error.to_string())?;
        info!(peer = %asker, user, serial = %issued.serial, "issued a client certificate");
        Ok(Client { chain: issued.chain, key_pem: issued.key_pem })
    }

    /// Asks this node itself, then each voter, until one has an answer.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        ask: &Ask,
        here: impl FnOnce(&Authority, NodeId) -> Answer<T>,
        store: &Handle<TokioRuntime>,
        endpoint: &Endpoint,
    ) -> Answer<T> {
        let me = self.inner.identity.node();
        let mut refusal = match here(self, me) {
            Ok(answer) => return Ok(answer),
            Err(refusal) => refusal,
        };
        let metrics = store.metrics();
        for voter in metrics.leader.iter().chain(&metrics.voters).filter(|voter| voter.node != me.0) {
            match wire::ask::<Answer<T>>(endpoint, NodeId(voter.node), ask).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) | Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    fn authority(&self) -> Answer<Arc<ClusterCa>> {
        self.held().ok_or_else(|| "this node does not hold the cluster's authorities (yet)".into())
    }
}
