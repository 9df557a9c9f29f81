//! Making connections: all known addresses of a node at once, a little apart, the first that answers.

use std::{net::SocketAddr, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};

use super::{
    Class, DIAL_MAX, Endpoint, OpenError, accept,
    link::{Dial, Link, Links},
};
use crate::{identity::NodeId, tls};

/// Between the first packets to two addresses: time for an answer on a local network, so that mostly only
/// the address that worked last is tried.
const STAGGER: Duration = Duration::from_millis(100);

impl Endpoint {
    /// Joins the dial under way towards `peer`, or begins one.
    pub(super) fn dial(&self, links: &mut Links, peer: NodeId, class: Class) -> Dial {
        let (dial, is_new) = links.join_dial(peer, class);
        if is_new {
            let endpoint = self.clone();
            self.spawn(async move {
                match endpoint.reach(peer).await {
                    Ok((connection, address)) => {
                        endpoint.book().worked(peer, address);
                        let link = Link::new(endpoint.node(), peer, connection, Some(class));
                        accept::attend(&endpoint, link);
                    }
                    Err(error) => endpoint.links().fail_dial(peer, class, error),
                }
            });
        }
        dial
    }

    /// Connects to `peer` at any of its addresses, also those that become known meanwhile.
    async fn reach(&self, peer: NodeId) -> Result<(quinn::Connection, SocketAddr), OpenError> {
        let mut editions = self.book().editions();
        let mut tried = self.book().addresses(peer);
        if tried.is_empty() {
            return Err(OpenError::NoAddress { peer });
        }
        let mut reason = String::from("no answer at any known address");
        let attempt = async |nth: u32, address| {
            sleep(STAGGER * nth).await;
            self.reach_at(peer, address).await.map(|connection| (connection, address))
        };
        let mut attempts: FuturesUnordered<_> =
            (0..).zip(tried.clone()).map(|(nth, address)| attempt(nth, address)).collect();
        let first = async {
            loop {
                tokio::select! {
                    outcome = attempts.next() => match outcome {
                        Some(Ok(found)) => return Some(found),
                        Some(Err(error)) => reason = error,
                        None => return None,
                    },
                    Ok(()) = editions.changed() => {
                        let known = self.book().addresses(peer);
                        let new: Vec<SocketAddr> =
                            known.into_iter().filter(|address| !tried.contains(address)).collect();
                        attempts.extend(new.iter().map(|address| attempt(0, *address)));
                        tried.extend(new);
                    }
                }
            }
        };
        match timeout(DIAL_MAX, first).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) | Err(_) => Err(OpenError::Unreachable { peer, reason }),
        }
    }

    async fn reach_at(&self, peer: NodeId, address: SocketAddr) -> Result<quinn::Connection, String> {
        let describe = |error: &dyn std::fmt::Display| format!("{address}: {error}");
        let connecting = self
            .0
            .quinn
            .connect_with(self.0.client.clone(), address, &tls::server_name(peer))
            .map_err(|error| describe(&error))?;
        let connection = connecting.await.map_err(|error| {
            self.0.strangers.meet(address, &error);
            describe(&error)
        })?;
        match tls::peer(&connection) {
            Some(found) if found == peer => Ok(connection),
            Some(found) => Err(format!("{address}: node {found} is there now")),
            None => Err(format!("{address}: a certificate that names no node")),
        }
    }
}
