//! The cluster's authorities on this node, and certificates from whoever holds them.
//!
//! Voters hold them: the founder made them, every later voter asks a holder over mTLS and keeps them sealed to
//! its own key. They never enter the replicated map. Everybody else asks a voter. What is done with them when
//! is decided by [`skein_control::node::authority`]; [`keeper`] does it.

mod keeper;
pub(crate) mod rotation;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skein_control::node::authority::{
    Edition, Fingerprint, HOLDERS, Holder, Kept, Span, TRUST, Trust, keepers,
};
use skein_net::ca::{ApiNames, Chain, ClusterCa, DataKey, Public, TrustBundle, Validity};
use skein_net::endpoint::Endpoint;
use skein_net::identity::{Identity, NodeId};
use skein_raft_store::{Handle, State, TokioRuntime};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::info;

use crate::backup::{NO_RECOVERY_KEY, Recipient};
use crate::clock;
use crate::home::{Home, Slot};
use crate::members::{Members, Record};
use crate::secrets::{self, NewKey, ObjectKey, Wrapped};
use crate::wire::{self, Answer, Ask, Client, Sealed};

/// After this the next voter is asked as well.
const NEXT_AFTER: Duration = Duration::from_millis(300);

/// See the module. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Authority {
    inner: Arc<Inner>,
}

struct Inner {
    home: Home,
    identity: Identity,
    founding: Public,
    members: Members,
    store: Handle<TokioRuntime>,
    endpoint: Endpoint,
    shelf: Mutex<Shelf>,
    trusted: watch::Sender<Arc<Trusted>>,
}

/// Whose certificates count now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Trusted {
    /// The roots, those of the edition in force first.
    pub(crate) public: Public,
    /// The members' root in force, signed by the one before it, while that one counts as well.
    cross: Option<CertificateDer<'static>>,
}

impl Trusted {
    /// By what the map says; by `founding` before it says anything.
    fn of(state: &State, founding: &Public) -> Trusted {
        let said = trust_of(state).and_then(|(_, trust)| {
            let (mut members, mut clients) = (Vec::new(), Vec::new());
            for (member, client) in trust.roots() {
                members.push(certificate(member)?);
                clients.push(certificate(client)?);
            }
            let public = Public {
                cluster: founding.cluster.clone(),
                members: TrustBundle::new(without_repeats(members)).ok()?,
                clients: TrustBundle::new(without_repeats(clients)).ok()?,
            };
            let cross = trust.anchors.first()?.cross.as_deref().and_then(certificate);
            Some(Trusted { public, cross })
        });
        said.unwrap_or_else(|| Trusted { public: founding.clone(), cross: None })
    }

    /// The root of members in force.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        self.public.members.roots().first().expect("a bundle is never empty")
    }
}

/// What this node keeps: in memory what [`Home`] has on the disk.
#[derive(Clone, Default)]
struct Shelf {
    current: Option<Arc<ClusterCa>>,
    next: Option<Arc<ClusterCa>>,
}

impl Shelf {
    fn kept(&self) -> Kept {
        Kept { current: self.current.as_deref().map(edition_of), next: self.next.as_deref().map(edition_of) }
    }
}

impl Authority {
    /// Loads what this node keeps.
    pub(crate) fn load(
        home: Home,
        identity: Identity,
        founding: Public,
        members: Members,
        store: Handle<TokioRuntime>,
        endpoint: Endpoint,
    ) -> Result<Authority, crate::home::Error> {
        let load = |slot| Ok::<_, crate::home::Error>(home.authority(&identity, slot)?.map(Arc::new));
        let shelf = Shelf { current: load(Slot::Current)?, next: load(Slot::Next)? };
        let shelf = Mutex::new(shelf);
        let trusted = watch::Sender::new(Arc::new(Trusted::of(&store.state(), &founding)));
        let inner = Inner { home, identity, founding, members, store, endpoint, shelf, trusted };
        Ok(Authority { inner: Arc::new(inner) })
    }

    /// Whose certificates count, now and whenever that changes.
    pub(crate) fn trusted(&self) -> watch::Receiver<Arc<Trusted>> {
        self.inner.trusted.subscribe()
    }

    /// The roots that count now.
    pub(crate) fn public(&self) -> Public {
        self.inner.trusted.borrow().public.clone()
    }

    /// Whether a certificate of this node need not be made anew: in its first half, and under the root in force, with
    /// what others may need to believe that.
    pub(crate) fn fits(&self, chain: &Chain) -> bool {
        let trusted = self.inner.trusted.borrow().clone();
        let vouched = trusted.cross.as_ref().is_none_or(|cross| chain.certificates().contains(cross));
        chain.is_under(trusted.root()) && vouched && !chain.validity().is_due(clock::system())
    }

    /// The authorities to issue by: those in force, where this node keeps them.
    pub(crate) fn held(&self) -> Option<Arc<ClusterCa>> {
        let trust = trust_of(&self.inner.store.state()).map(|(_, trust)| trust);
        let shelf = self.shelf();
        shelf.kept().may_issue(trust.as_ref()).then(|| shelf.current.clone()).flatten()
    }

    /// Who is to keep the authorities, as it is known here.
    fn keepers(&self) -> BTreeSet<NodeId> {
        let voters = self.inner.store.metrics().voters.iter().map(|voter| NodeId(voter.node)).collect();
        let staying = self.inner.members.present().into_values().filter(Record::stays);
        keepers(&voters, &staying.map(|record| record.node).collect())
    }

    /// Answers the questions about the authorities themselves: only who is to keep them gets them.
    ///
    /// * `fingerprint`: of which edition; whatever this node issues by otherwise.
    pub(crate) fn answer_edition(&self, asker: NodeId, fingerprint: Option<&str>) -> Answer<Vec<u8>> {
        let given = match fingerprint {
            None => self.authority()?,
            Some(fingerprint) => {
                let Shelf { current, next } = self.shelf().clone();
                let mut kept = current.into_iter().chain(next);
                let found = kept.find(|authority| authority.fingerprint() == fingerprint);
                found.ok_or("this node does not keep these authorities")?
            }
        };
        if !self.keepers().contains(&asker) || self.member(asker).is_none() {
            return Err("only voters hold the authorities".into());
        }
        Ok(given.to_bytes())
    }

    /// The record of a member, by the map itself; to be read after the authorities that it is given something by. Those
    /// that are made anew because it was stolen are on nobody's shelf before the map says that it is out, and
    /// `members` may be a moment behind.
    fn member(&self, node: NodeId) -> Option<Record> {
        let state = self.inner.store.state();
        let record: Record = serde_json::from_slice(&state.get(&Record::key(node))?.value).ok()?;
        (!record.removed).then_some(record)
    }

    /// The authorities in force for a backup: whoever carries them cannot open them.
    pub(crate) fn answer_sealed(&self, asker: NodeId) -> Answer<Sealed> {
        let authority = self.authority()?;
        if self.member(asker).is_none() {
            return Err("only members make backups".into());
        }
        let recipient = Recipient::of(&self.inner.store.state()).ok_or(NO_RECOVERY_KEY)?;
        info!(peer = %asker, recipient = recipient.recipient, "seals the authorities for a backup");
        Ok(Sealed { fingerprint: authority.fingerprint(), bytes: recipient.seal(&authority.to_bytes())? })
    }

    /// A new certificate for a member's own key.
    pub(crate) fn answer_renew(&self, asker: NodeId, csr: &[u8]) -> Answer<Chain> {
        let authority = self.authority()?;
        let is_member = self.member(asker).is_some();
        let node = skein_net::ca::request_node(csr).map_err(|error| error.to_string())?;
        // The connection proves the key; a member's dates do not matter, and nobody else may ask.
        if node != asker || !is_member {
            return Err(format!("node {asker} may not renew a certificate of node {node}"));
        }
        self.certify(&authority, csr)
    }

    /// A member certificate by the authorities in force.
    pub(crate) fn certify(&self, authority: &ClusterCa, csr: &[u8]) -> Answer<Chain> {
        let chain = authority.issue_member(csr, clock::system()).map_err(|error| error.to_string())?;
        Ok(self.vouched(chain))
    }

    /// A certificate for a member's API server. Its names are what clients check: those of the asker only.
    pub(crate) fn answer_api(&self, asker: NodeId, csr: &[u8], names: &ApiNames) -> Answer<Chain> {
        let authority = self.authority()?;
        let record = self.member(asker).ok_or("only members have an API server")?;
        if names.names.iter().any(|name| *name != record.name && name != "localhost") {
            return Err(format!("node {asker} is called {:?}, not {:?}", record.name, names.names));
        }
        let chain = authority.issue_api_server(csr, names, clock::system());
        Ok(self.vouched(chain.map_err(|error| error.to_string())?))
    }

    /// A client certificate for an administrator: for whoever is root on a member.
    pub(crate) fn answer_client(&self, asker: NodeId, user: &str) -> Answer<Client> {
        let authority = self.authority()?;
        if self.member(asker).is_none() {
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
    ) -> Answer<T> {
        let me = self.inner.identity.node();
        let mut refusal = match here(self, me) {
            Ok(answer) => return Ok(answer),
            Err(refusal) => refusal,
        };
        let metrics = self.inner.store.metrics();
        for voter in metrics.leader.iter().chain(&metrics.voters).filter(|voter| voter.node != me.0) {
            match wire::ask::<Answer<T>>(&self.inner.endpoint, NodeId(voter.node), ask).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) | Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// The same, of all voters soon: one that is down or cut off delays the others' answers only for a moment.
    pub(crate) async fn ask_any<T: DeserializeOwned>(
        &self,
        ask: &Ask,
        here: impl FnOnce(&Authority, NodeId) -> Answer<T>,
    ) -> Answer<T> {
        let me = self.inner.identity.node();
        let refusal = match here(self, me) {
            Ok(answer) => return Ok(answer),
            Err(refusal) => refusal,
        };
        let metrics = self.inner.store.metrics();
        let mut voters: Vec<NodeId> = Vec::new();
        for voter in metrics.leader.iter().chain(&metrics.voters).map(|voter| NodeId(voter.node)) {
            if voter != me && !voters.contains(&voter) {
                voters.push(voter);
            }
        }
        let asked = voters.into_iter().zip(0u32..).map(|(voter, place)| {
            Box::pin(async move {
                sleep(NEXT_AFTER * place).await;
                wire::ask::<Answer<T>>(&self.inner.endpoint, voter, ask).await.and_then(|answer| answer)
            })
        });
        let asked: Vec<_> = asked.collect();
        if asked.is_empty() {
            return Err(refusal);
        }
        futures::future::select_ok(asked).await.map(|(answer, _)| answer)
    }

    /// The keys of sealed objects, for a member's API or pods.
    pub(crate) fn answer_open(&self, asker: NodeId, wrapped: &[Wrapped]) -> Answer<Vec<ObjectKey>> {
        let Shelf { current, next } = self.shelf().clone();
        let kept = current.iter().chain(&next);
        let keys: Vec<DataKey> = kept.flat_map(|authority| authority.data_keys()).collect();
        if self.member(asker).is_none() {
            return Err("only members open what is sealed".into());
        }
        secrets::unwrap_all(&keys, wrapped)
    }

    /// New keys for what a member's API is about to write.
    pub(crate) fn answer_new_keys(&self, asker: NodeId, places: &[String]) -> Answer<Vec<NewKey>> {
        // While others come into force, what was in force still seals: the leader seals it anew.
        let current = self.held().or_else(|| self.shelf().current.clone());
        let current = current.ok_or("this node does not hold the cluster's authorities (yet)")?;
        if self.member(asker).is_none() {
            return Err("only members seal".into());
        }
        secrets::wrap_all(&current.data_key(), places)
    }

    /// What everything is to be sealed with, where this node keeps the authorities in force.
    pub(crate) fn data_key_in_force(&self) -> Option<DataKey> {
        self.held().map(|authority| authority.data_key())
    }

    /// For `skein status`.
    pub(crate) fn status(&self) -> Value {
        let state = self.inner.store.state();
        let Some((_, trust)) = trust_of(&state) else { return Value::Null };
        let names = self.inner.members.present();
        let holders = keeping(&state).into_iter();
        let mut holders: Vec<String> =
            holders.filter_map(|node| Some(names.get(&node)?.name.clone())).collect();
        holders.sort_unstable();
        json!({
            "edition": trust.number,
            "fingerprint": trust.current.0,
            "since": timestamp(trust.since_ms),
            "holders": holders,
            "changing": trust.next.is_some() || trust.wish.is_some(),
            "oldUntil": trust.overlap_until().map(timestamp),
        })
    }

    /// With what who knows only the root before needs to believe it.
    fn vouched(&self, chain: Chain) -> Chain {
        match self.inner.trusted.borrow().cross.clone() {
            Some(cross) => chain.vouched_by(cross),
            None => chain,
        }
    }

    fn authority(&self) -> Answer<Arc<ClusterCa>> {
        self.held().ok_or_else(|| "this node does not hold the cluster's authorities (yet)".into())
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.inner.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who says that it keeps what, and the revision of that.
fn holders_of(state: &State) -> BTreeMap<NodeId, (u64, Holder)> {
    let holders = state.range(HOLDERS, None).filter_map(|(key, object)| {
        let node = key.strip_prefix(HOLDERS)?.parse().ok()?;
        Some((node, (object.mod_rev, serde_json::from_slice(&object.value).ok()?)))
    });
    holders.collect()
}

/// Who says that it keeps what is in force.
pub(crate) fn keeping(state: &State) -> BTreeSet<NodeId> {
    let trust = trust_of(state).map(|(_, trust)| trust);
    let keeps = |holder: &Holder| trust.as_ref().is_some_and(|trust| holder.holds.contains(&trust.current));
    holders_of(state).into_iter().filter(|(_, (_, holder))| keeps(holder)).map(|(node, _)| node).collect()
}

/// Under which number client certificates of this chain go on record; `None` if no root in `state` signed them.
pub(crate) fn clients_number(state: &State, chain: &Chain) -> Option<u64> {
    let Some((_, trust)) = trust_of(state) else { return Some(1) };
    let is_above = |root: &str| certificate(root).is_some_and(|root| chain.is_under(&root));
    trust.anchors.iter().find(|anchor| is_above(&anchor.clients)).map(|anchor| anchor.number)
}

/// A certificate as records hold it.
fn certificate(text: &str) -> Option<CertificateDer<'static>> {
    STANDARD.decode(text).ok().map(CertificateDer::from)
}

/// A renewed edition on its way has the roots of the one before.
fn without_repeats(certificates: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
    let mut seen = Vec::new();
    for certificate in certificates {
        if !seen.contains(&certificate) {
            seen.push(certificate);
        }
    }
    seen
}

/// What the map says of the authorities, and its revision.
pub(crate) fn trust_of(state: &State) -> Option<(u64, Trust)> {
    let object = state.get(TRUST)?;
    Some((object.mod_rev, serde_json::from_slice(&object.value).ok()?))
}

fn edition_of(authority: &ClusterCa) -> Edition {
    let span = |Validity { from, until }| Span { from_ms: millis(from), until_ms: millis(until) };
    Edition {
        fingerprint: Fingerprint(authority.fingerprint()),
        issuing: span(authority.issuing_validity()),
        roots: span(authority.roots_validity()),
    }
}

fn millis(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn timestamp(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

fn moment(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}
