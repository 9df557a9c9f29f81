//! How a machine with a token becomes a member: one stream on one QUIC connection.
//!
//! ```text
//! joiner                                        a member (any)                     leader
//!   handshake; the root's key must be the token's
//!   claim: proof, request, name, ports   ──▶    bounds, request's signature
//!                                               Admission::admit        ──▶        proof, spend, sign
//!   checks what it was given             ◀──    certificate, roots, members
//! ```
//!
//! The proof signs the TLS session's exporter and the request, so it is worth nothing on another
//! connection. A member that is not the leader forwards the claim with the exporter value in it: members
//! take each other's word for that.
//!
//! The joiner calls all addresses of the token and sends its request to the first that is there, and the same
//! request to the next one where that comes to nothing, so that a lost answer burns nothing. Does not decide who may join; [`Admission`] does.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures::{StreamExt as _, stream::FuturesUnordered};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, VarInt};
use rustls::AlertDescription;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::address_book::plain;
use crate::ca::{self, Chain, Pin};
use crate::identity::{NodeId, StoreId};
use crate::incarnation::Incarnation;
use crate::token::{self, CsrHash, Proof, Token, TokenId, TokenRecord};
use crate::{encoding, listen, tls};

/// A claim is under 1 KiB; the rest is room for the node's own bytes.
pub const CLAIM_BYTES_MAX: usize = 64 << 10;

/// 1,000 members with four addresses each are about 150 KiB.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How long each side waits for the other.
#[derive(Clone, Copy)]
struct Patience {
    /// A handshake, and a claim on its way, take one round trip each.
    step: Duration,
    /// The leader commits the use of the token; an election may lie in between.
    admit: Duration,
}

const PATIENCE: Patience = Patience { step: Duration::from_secs(5), admit: Duration::from_secs(10) };

/// Between the first packets to two addresses: time for an answer over the Internet, so that mostly one is asked.
const STAGGER: Duration = Duration::from_millis(200);

/// Texts of a refusal are for people.
const TEXT_BYTES_MAX: usize = 512;

const VERSION: u8 = 1;

/// Both ends derive the same 32 bytes from their session, and nobody else can.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-skein-join-v1";

/// Close codes of the join protocol.
const DONE: VarInt = VarInt::from_u32(0);
const BROKEN_CLAIM: VarInt = VarInt::from_u32(1);
const TOO_SLOW: VarInt = VarInt::from_u32(2);
const TOO_OFTEN: VarInt = VarInt::from_u32(3);

/// What a joiner says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The node's name: a DNS name, unique in the cluster.
    pub name: String,
    /// Its data directory.
    pub store: StoreId,
    /// How many times that was started.
    pub generation: u64,
    /// Its port for node traffic; the address is the one the member sees.
    pub listen_port: u16,
    /// Its port for the Kubernetes API.
    pub api_port: u16,
    /// The node's own use; not read here.
    pub extra: Vec<u8>,
}

/// A machine's wish to join, with all that is needed to judge it. Forwarded to the leader as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Which token it is made by.
    pub token: TokenId,
    /// That the token's secret is known.
    pub proof: Proof,
    /// What the proof is bound to; filled in by the member that holds the connection, never by the joiner.
    pub exporter: [u8; 32],
    /// A certificate request in DER.
    pub csr: Vec<u8>,
    /// Who asks.
    pub about: About,
    /// From where the member saw it come.
    pub from: SocketAddr,
}

impl Claim {
    /// The node that the request's key makes; its signature holds.
    pub fn node(&self) -> Result<NodeId, Refusal> {
        ca::request_node(&self.csr).map_err(|e| Refusal::Malformed(e.to_string()))
    }

    /// What the token's use is remembered by.
    pub fn csr_hash(&self) -> CsrHash {
        CsrHash::of(&self.csr)
    }

    /// Judges the claim by the token's record (`None`: there is no such token) and gives the record to
    /// store before a certificate is signed. What is wrong with a token is told only to who knows its secret.
    pub fn spend(&self, record: Option<&TokenRecord>, now: SystemTime) -> Result<TokenRecord, Refusal> {
        let node = self.node()?;
        let record = record.filter(|record| record.id == self.token).ok_or(token::Refusal::Refused)?;
        record.verify(&self.exporter, self.csr_hash(), &self.proof)?;
        Ok(token::spend(record, self.csr_hash(), node, now)?)
    }

    fn check(&self) -> Result<(), Refusal> {
        self.node()?;
        if !is_dns_name(&self.about.name) {
            return Err(Refusal::Malformed(format!(
                "{:?} cannot name a node; use up to 253 lower-case letters, digits, dots and dashes",
                self.about.name.chars().take(80).collect::<String>()
            )));
        }
        Ok(())
    }
}

/// A member as a newcomer needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where it listens for node traffic, best first.
    pub addresses: Vec<SocketAddr>,
}

/// What makes a machine a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Its certificate, up to and including the root.
    pub chain: Chain,
    /// The cluster's name and id, and the roots it trusts.
    pub public: ca::Public,
    /// Everybody, so that the newcomer need not wait for gossip.
    pub members: Vec<Member>,
    /// What later builds have added: see [`Admitted::incarnation`].
    pub extra: Vec<u8>,
}

/// What [`Admitted::extra`] holds. Append-only: its version is raised with each field.
#[derive(Serialize, Deserialize)]
struct Added {
    incarnation: Incarnation,
}

impl Admitted {
    /// The bytes of [`Admitted::extra`].
    pub fn added(incarnation: Incarnation) -> Vec<u8> {
        encoding::encode(VERSION, &Added { incarnation })
    }

    /// Which incarnation of the cluster the newcomer belongs to; `None` if that does not parse.
    pub fn incarnation(&self) -> Option<Incarnation> {
        // The member is of a build that knew of none.
        if self.extra.is_empty() {
            return Some(Incarnation::unnamed(self.public.cluster.id));
        }
        encoding::decode(VERSION, &self.extra).ok().map(|added: Added| added.incarnation)
    }
}

/// Why a machine may not join. Nothing was changed in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The token does not let it in.
    #[error(transparent)]
    Token(#[from] token::Refusal),
    /// The claim does not parse or breaks a limit.
    #[error("malformed claim: {0}")]
    Malformed(String),
    /// Another node has this name.
    #[error(
        "another node is called {0:?}; choose another name with --name, or, if this machine takes the place of that one, ask for a token with: skein token create --replace {0}"
    )]
    NameTaken(String),
    /// The key was taken out of the cluster.
    #[error("this node was removed from the cluster; move its data directory away and join as a new node")]
    Removed,
    /// No leader, or no majority: nothing is wrong with the claim.
    #[error("the cluster cannot admit anybody now ({0}); try again")]
    Unavailable(String),
    /// Whatever else the cluster has against it.
    #[error("{0}")]
    Denied(String),
}

impl Refusal {
    /// Whether the same claim may be accepted later, or by another member.
    pub fn may_pass(&self) -> bool {
        matches!(self, Refusal::Unavailable(_))
    }
}

/// Decides who joins; implemented by the node.
#[async_trait]
pub trait Admission: Send + Sync {
    /// Whether a claim from this address is to be read at all. Asked before its first byte.
    fn welcome(&self, _from: IpAddr) -> bool {
        true
    }

    /// Judges a claim whose request and bounds were checked. May be asked again with the same claim and must
    /// then give the same answer. The use of the token must be durable before a certificate is signed.
    async fn admit(&self, claim: Claim) -> Result<Admitted, Refusal>;
}

/// Answers one joiner, as a member; `connection` speaks the join protocol. Returns when it is served: whether it
/// was let in.
pub async fn serve(connection: quinn::Connection, admission: &dyn Admission) -> bool {
    serve_within(PATIENCE, connection, admission).await
}

async fn serve_within(patience: Patience, connection: quinn::Connection, admission: &dyn Admission) -> bool {
    let from = plain(connection.remote_address());
    if !admission.welcome(from.ip()) {
        tracing::debug!(peer = %from, "refused to read a join claim: too many");
        connection.close(TOO_OFTEN, b"too many attempts");
        return false;
    }
    let (mut tx, claim) = match timeout(patience.step, receive_claim(&connection)).await {
        Ok(Ok(received)) => received,
        Ok(Err(error)) => {
            tracing::debug!(peer = %from, %error, "broken join claim");
            connection.close(BROKEN_CLAIM, b"broken claim");
            return false;
        }
        Err(_) => {
            connection.close(TOO_SLOW, b"too slow");
            return false;
        }
    };
    let answer = judge(patience, claim, admission).await;
    match &answer {
        Ok(admitted) => {
            let node = tls::peer_node(admitted.chain.certificates()).map(tracing::field::display);
            tracing::info!(peer = %from, node, "admitted")
        }
        Err(refusal) => tracing::info!(peer = %from, error = %refusal, "join refused"),
    }
    let is_admitted = answer.is_ok();
    let answer = encoding::encode(VERSION, &answer.map_err(Refusal::shortened));
    // The joiner closes when it has read everything; an unread answer is dropped with the connection.
    let _ = timeout(patience.step, async {
        tx.write_all(&answer).await?;
        let _ = tx.finish();
        let _ = tx.stopped().await;
        Ok::<(), quinn::WriteError>(())
    })
    .await;
    connection.close(DONE, b"");
    is_admitted
}

/// An endpoint to call members from, at whatever family of addresses they are.
pub fn caller() -> io::Result<quinn::Endpoint> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let socket = listen::udp(any)?;
    quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))
}

/// Asks the members named in `token` until one admits this machine or refuses for good: all are called, a little
/// apart, and the first that is there is asked; where that comes to nothing, the others are.
///
/// * `endpoint`: any, see [`caller`]; its own configuration is not used.
/// * `csr`: of [`crate::identity::Identity::csr`]; give the same bytes again to repeat a join.
/// * Returns what a member gave after checking that it fits the token and the request.
pub async fn join(
    endpoint: &quinn::Endpoint,
    token: &Token,
    csr: &[u8],
    about: &About,
    clock: Arc<dyn TimeProvider>,
) -> Result<Admitted, Error> {
    let config = quinn_config(token.pin(), clock)?;
    let mut failures = Vec::new();
    let mut left = token.addresses().to_vec();
    while !left.is_empty() {
        let (address, connection) = match first_of(endpoint, &config, &left).await {
            Ok(reached) => reached,
            Err(unreached) => {
                failures.extend(unreached);
                break;
            }
        };
        let answer = timeout(PATIENCE.step + PATIENCE.admit, ask(&connection, token, csr, about)).await;
        connection.close(DONE, b"");
        match answer.unwrap_or_else(|_| Err(Failure::Unanswered("it took too long".into()))) {
            Ok(Ok(admitted)) => {
                check_admitted(&admitted, token.pin(), csr)?;
                return Ok(admitted);
            }
            Ok(Err(refusal)) if !refusal.may_pass() => {
                return Err(Error::Refused { by: address, refusal, before: Failures(failures) });
            }
            Ok(Err(refusal)) => failures.push((address, Failure::Refused(refusal))),
            Err(failure) => failures.push((address, failure)),
        }
        left.retain(|other| *other != address);
    }
    Err(Error::Failed(Failures(failures)))
}

/// Calls all of these, a little apart: the first that proves to be of the token's cluster, or why none does. The
/// others are left alone.
async fn first_of(
    endpoint: &quinn::Endpoint,
    config: &quinn::ClientConfig,
    addresses: &[SocketAddr],
) -> Result<(SocketAddr, quinn::Connection), Vec<(SocketAddr, Failure)>> {
    let call = async |nth: u32, address: SocketAddr| {
        sleep(STAGGER * nth).await;
        (address, call(endpoint, config.clone(), address).await)
    };
    let mut calls: FuturesUnordered<_> =
        (0..).zip(addresses).map(|(nth, address)| call(nth, *address)).collect();
    let mut failures = Vec::new();
    while let Some((address, called)) = calls.next().await {
        match called {
            Ok(connection) => return Ok((address, connection)),
            Err(failure) => failures.push((address, failure)),
        }
    }
    failures.sort_by_key(|(failed, _)| addresses.iter().position(|address| address == failed));
    Err(failures)
}

/// Why a machine did not become a member. Nothing was changed on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster said no, and would say so again.
    #[error("{by} refused: {refusal}")]
    Refused {
        /// The member that answered.
        by: SocketAddr,
        /// Its reason.
        refusal: Refusal,
        /// What became of asking others before.
        before: Failures,
    },
    /// No address of the token gave an answer to go by.
    #[error("could not join: {0}")]
    Failed(Failures),
    /// A member gave what does not fit the token or the request.
    #[error("the cluster's answer is unusable ({0}); report this, and try another member")]
    BadAnswer(&'static str),
    /// TLS could not be set up on this machine.
    #[error("cannot set up TLS for joining")]
    Tls(#[from] tls::Error),
}

impl Error {
    /// Whether the cluster may have let this machine in all the same: then only the same request, with the same
    /// key, is sure to make no second member of it.
    pub fn may_have_been_granted(&self) -> bool {
        match self {
            Error::Refused { before, .. } => before.may_have_been_granted(),
            Error::Failed(failures) => failures.may_have_been_granted(),
            Error::BadAnswer(_) => true,
            Error::Tls(_) => false,
        }
    }
}

/// What went wrong at each address, in the order they were tried.
#[derive(Debug)]
pub struct Failures(pub Vec<(SocketAddr, Failure)>);

impl Failures {
    fn may_have_been_granted(&self) -> bool {
        // A member that could not say yes may have passed the request on to a leader that did.
        let unknown = |failure: &Failure| matches!(failure, Failure::Unanswered(_) | Failure::Refused(_));
        self.0.iter().any(|(_, failure)| unknown(failure))
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (address, failure)) in self.0.iter().enumerate() {
            write!(f, "{}{address}: {failure}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Why an attempt at one address failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody there, or packets are dropped.
    #[error("nobody answered within 5 s; check that the node runs and that UDP gets through")]
    NoAnswer,
    /// The other end belongs to another cluster.
    #[error("this is not a member of the token's cluster; make a new token on the cluster you mean")]
    WrongCluster,
    /// The other end shows the cluster's root without being of the cluster.
    #[error("somebody there pretends to be a member; check the network between the machines")]
    Impostor,
    /// The other end's certificate is not in date by this machine's clock.
    #[error("a certificate is not in date; set this machine's clock, then try again")]
    Clock,
    /// The other end speaks QUIC, but not ours.
    #[error("whoever listens there is not skein, or a build that does not know this way to join")]
    OtherProtocol,
    /// Too many attempts from this machine.
    #[error("too many attempts from here; wait ten seconds, then try again")]
    TooOften,
    /// A member answered that the cluster cannot admit anybody at the moment.
    #[error("{0}")]
    Refused(Refusal),
    /// The connection broke before anything was asked.
    #[error("the connection broke ({0}); try again")]
    Broken(String),
    /// The request was on its way, and no answer came that can be read.
    #[error("no answer to the request ({0}), which may have been granted; repeat the same join")]
    Unanswered(String),
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Failure {
        match &error {
            ConnectionError::TimedOut | ConnectionError::Reset => Failure::NoAnswer,
            ConnectionError::ApplicationClosed(close) if close.error_code == TOO_OFTEN => Failure::TooOften,
            ConnectionError::TransportError(transport) => {
                alert_of(transport.code).unwrap_or_else(|| Failure::Broken(error.to_string()))
            }
            ConnectionError::ConnectionClosed(close) => {
                alert_of(close.error_code).unwrap_or_else(|| Failure::Broken(error.to_string()))
            }
            _ => Failure::Broken(encoding::chain_of(&error)),
        }
    }
}

/// At most so many claims from an address: five at once, then one every two seconds. Joining by hand never
/// notices; guessing at tokens, or making the leader check signatures all day, does.
#[derive(Debug, Default)]
pub struct RateLimit {
    buckets: BTreeMap<IpAddr, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    claims_left: u32,
    since: Instant,
}

impl RateLimit {
    const BURST: u32 = 5;
    const REFILL: Duration = Duration::from_secs(2);
    /// Bounds the memory; the address that was quiet longest makes room.
    const ADDRESSES_MAX: usize = 1024;

    /// Whether one more claim from `from` may be read at `now` (never earlier than the last one).
    pub fn allow(&mut self, from: IpAddr, now: Instant) -> bool {
        let key = limited_as(from);
        if !self.buckets.contains_key(&key) && self.buckets.len() >= Self::ADDRESSES_MAX {
            self.forget_one();
        }
        let bucket = self.buckets.entry(key).or_insert(Bucket { claims_left: Self::BURST, since: now });
        let refills = now.saturating_duration_since(bucket.since).as_millis() / Self::REFILL.as_millis();
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        if refills > 0 {
            bucket.claims_left = bucket.claims_left.saturating_add(refills).min(Self::BURST);
            bucket.since = now;
        }
        let allowed = bucket.claims_left > 0;
        bucket.claims_left = bucket.claims_left.saturating_sub(1);
        allowed
    }

    fn forget_one(&mut self) {
        let quietest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.since).map(|(key, _)| *key);
        if let Some(key) = quietest {
            self.buckets.remove(&key);
        }
    }
}

/// An admission behind a [`RateLimit`].
pub struct Limited<A> {
    admission: A,
    limit: Mutex<RateLimit>,
}

impl<A: Admission> Limited<A> {
    /// Lets `admission` hear of no more claims than the limit allows.
    pub fn new(admission: A) -> Limited<A> {
        Limited { admission, limit: Mutex::default() }
    }
}

#[async_trait]
impl<A: Admission> Admission for Limited<A> {
    fn welcome(&self, from: IpAddr) -> bool {
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        limit.allow(from, Instant::now()) && self.admission.welcome(from)
    }

    async fn admit(&self, claim: Claim) -> Result<Admitted, Refusal> {
        self.admission.admit(claim).await
    }
}

/// A claim on the wire: all but what the member itself sees.
#[derive(Serialize, Deserialize)]
struct Request {
    token: TokenId,
    proof: Proof,
    csr: Vec<u8>,
    about: About,
}

type Answer = Result<Admitted, Refusal>;

#[derive(Debug, thiserror::Error)]
enum ClaimError {
    #[error("connection: {0}")]
    Connection(#[from] ConnectionError),
    #[error("read: {0}")]
    Read(#[from] quinn::ReadToEndError),
    #[error("decode: {0}")]
    Decode(#[from] encoding::DecodeError),
    #[error("the session has no exporter")]
    Exporter,
}

async fn receive_claim(connection: &quinn::Connection) -> Result<(quinn::SendStream, Claim), ClaimError> {
    let (tx, mut rx) = connection.accept_bi().await?;
    let bytes = rx.read_to_end(CLAIM_BYTES_MAX).await?;
    let Request { token, proof, csr, about } = encoding::decode(VERSION, &bytes)?;
    let exporter = exporter(connection).ok_or(ClaimError::Exporter)?;
    let from = plain(connection.remote_address());
    Ok((tx, Claim { token, proof, exporter, csr, about, from }))
}

async fn judge(patience: Patience, claim: Claim, admission: &dyn Admission) -> Answer {
    claim.check()?;
    match timeout(patience.admit, admission.admit(claim)).await {
        Ok(answer) => answer,
        Err(_) => Err(Refusal::Unavailable("no leader answered in time".into())),
    }
}

async fn call(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
) -> Result<quinn::Connection, Failure> {
    // The name is not checked: the pinned key says more than a name could.
    let connecting = endpoint
        .connect_with(config, address, "join.skein")
        .map_err(|error| Failure::Broken(error.to_string()))?;
    Ok(timeout(PATIENCE.step, connecting).await.map_err(|_| Failure::NoAnswer)??)
}

/// The handshake is over, so the other end is of the token's cluster: now, and only now, the proof goes out.
async fn ask(
    connection: &quinn::Connection,
    token: &Token,
    csr: &[u8],
    about: &About,
) -> Result<Answer, Failure> {
    let exporter = exporter(connection).ok_or_else(|| Failure::Broken("no exporter".into()))?;
    let request = Request {
        token: token.id(),
        proof: token.prove(&exporter, CsrHash::of(csr)),
        csr: csr.to_vec(),
        about: about.clone(),
    };
    let (mut tx, mut rx) = connection.open_bi().await?;
    // A member that has heard enough says why by closing, which reading shows better than writing.
    let _ = tx.write_all(&encoding::encode(VERSION, &request)).await;
    let _ = tx.finish();
    let bytes = match rx.read_to_end(ANSWER_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(lost))) => {
            return Err(match Failure::from(lost) {
                // What else a member says by closing, it says before it judges.
                said @ (Failure::TooOften | Failure::OtherProtocol) => said,
                lost => Failure::Unanswered(lost.to_string()),
            });
        }
        Err(error) => return Err(Failure::Unanswered(error.to_string())),
    };
    encoding::decode(VERSION, &bytes).map_err(|error| Failure::Unanswered(encoding::chain_of(&error)))
}

fn check_admitted(admitted: &Admitted, pin: Pin, csr: &[u8]) -> Result<(), Error> {
    let public = &admitted.public;
    if !public.members.contains(pin) {
        return Err(Error::BadAnswer("its roots are not the token's"));
    }
    if !ca::is_dns_label(&public.cluster.name) {
        return Err(Error::BadAnswer("the cluster's name"));
    }
    if admitted.incarnation().is_none() {
        return Err(Error::BadAnswer("the cluster's incarnation"));
    }
    // The certificate was made a moment ago by another machine's clock: the handshake judged the dates.
    let moment = admitted.chain.validity().renew_at().duration_since(SystemTime::UNIX_EPOCH);
    let moment = UnixTime::since_unix_epoch(moment.map_err(|_| Error::BadAnswer("its dates"))?);
    let (leaf, authorities) = admitted.chain.certificates().split_first().expect("a chain is never empty");
    let node = public
        .members
        .check_member(leaf, authorities, moment)
        .map_err(|_| Error::BadAnswer("its roots do not vouch for the certificate"))?;
    if ca::request_node(csr).ok() != Some(node) {
        return Err(Error::BadAnswer("the certificate is for another key"));
    }
    Ok(())
}

pub(crate) fn quinn_config(pin: Pin, clock: Arc<dyn TimeProvider>) -> Result<quinn::ClientConfig, Error> {
    let tls = QuicClientConfig::try_from(tls::join_config(pin, clock)?)
        .expect("TLS 1.3 with the provider's AES-128-GCM is what QUIC needs");
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .keep_alive_interval(Some(PATIENCE.step / 2));
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn exporter(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let mut value = [0; 32];
    connection.export_keying_material(&mut value, EXPORTER_LABEL, b"").ok()?;
    Some(value)
}

impl Refusal {
    /// Texts cut to what a person reads.
    fn shortened(self) -> Refusal {
        let cut = |mut text: String| {
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
            text
        };
        match self {
            Refusal::Malformed(text) => Refusal::Malformed(cut(text)),
            Refusal::NameTaken(text) => Refusal::NameTaken(cut(text)),
            Refusal::Unavailable(text) => Refusal::Unavailable(cut(text)),
            Refusal::Denied(text) => Refusal::Denied(cut(text)),
            short @ (Refusal::Token(_) | Refusal::Removed) => short,
        }
    }
}

/// What a TLS alert, sent or received, means to a joiner.
fn alert_of(code: quinn::TransportErrorCode) -> Option<Failure> {
    // QUIC carries TLS alerts as 0x100 plus the alert (RFC 9001 §4.8).
    let alert = u8::try_from(u64::from(code).checked_sub(0x100)?).ok()?;
    match AlertDescription::from(alert) {
        AlertDescription::UnknownCA => Some(Failure::WrongCluster),
        AlertDescription::DecryptError | AlertDescription::BadCertificate => Some(Failure::Impostor),
        AlertDescription::CertificateExpired => Some(Failure::Clock),
        AlertDescription::NoApplicationProtocol => Some(Failure::OtherProtocol),
        _ => None,
    }
}

/// A household has one IPv6 /64 or more, so its addresses count as one.
fn limited_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// A name that Kubernetes takes for a node (RFC 1123 subdomain).
fn is_dns_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(ca::is_dns_label)
}

#[cfg(test)]
mod tests;
