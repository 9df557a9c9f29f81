//! Who may speak on which protocol of the one UDP port.
//!
//! | protocol | the server shows | the client shows | who is let in |
//! |---|---|---|---|
//! | `skein/1` | its member certificate | its member certificate | [`Standing::Member`] by its key alone; unknown nodes by chain and dates |
//! | `skein-join/1` | its member certificate, with the root | nothing | anybody who finishes the handshake; the token decides (`join`) |
//!
//! One port for both means that TLS itself must allow clients without a certificate. So whoever accepts
//! a connection asks [`accepted`] first, and closes what it refuses.
//!
//! Every handshake is a full one: no tickets and no 0-RTT, so that a removed node is judged each time and
//! nothing is replayed. It costs 1 ms for both ends together; a resumed one costs 0.87.
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate: its `connect` succeeds
//! although it is about to be refused. Only a first answer of the server means that one is let in.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::ca::{self, Chain, Pin, TrustBundle};
use crate::identity::{Identity, NodeId};

/// Members among themselves; both ends show a certificate.
pub const MEMBER_ALPN: &[u8] = b"skein/1";

/// A machine with a token asks to become a member.
pub const JOIN_ALPN: &[u8] = b"skein-join/1";

/// What the cluster thinks of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In the replicated node set: its key is enough, whatever its certificate's dates say.
    Member,
    /// Was taken out of the node set: nothing it shows helps.
    Removed,
    /// Not in the node set as far as is known here: its certificate must be of this cluster and in date.
    Unknown,
}

/// The replicated node set, as far as it is known here. Asked in every handshake, so it must not wait.
pub trait Trust: Send + Sync + 'static {
    /// What the cluster thinks of `node` now.
    fn judge(&self, node: NodeId) -> Standing;
}

/// Why TLS could not be set up. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate given is for another key than the one given.
    #[error("the certificate is not for this key; ask a member for a new one")]
    WrongKey,
    /// rustls refused the key or the protocol versions.
    #[error("cannot set up TLS")]
    Rustls(#[from] rustls::Error),
}

/// Why an accepted connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// A member protocol without a certificate: TLS lets it through for the joiners' sake.
    #[error("member traffic without a certificate")]
    NoCertificate,
    /// No protocol of ours was agreed on; the handshake is not over or not ours.
    #[error("no known protocol")]
    UnknownProtocol,
}

/// What an incoming connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Traffic of this node, which proved to hold its key.
    Member(NodeId),
    /// A machine that wants to join; give it to `join::serve`.
    Joiner,
}

/// What an incoming connection is for, once its handshake is over. Close it on an error.
pub fn accepted(connection: &quinn::Connection) -> Result<Accepted, NotAdmitted> {
    match protocol(connection).as_deref() {
        Some(MEMBER_ALPN) => peer(connection).map(Accepted::Member).ok_or(NotAdmitted::NoCertificate),
        Some(JOIN_ALPN) => Ok(Accepted::Joiner),
        _ => Err(NotAdmitted::UnknownProtocol),
    }
}

/// The node at the other end of a connection; `None` if it showed no certificate.
pub fn peer(connection: &quinn::Connection) -> Option<NodeId> {
    peer_node(&peer_chain(connection)?)
}

/// The certificates the other end showed, leaf first: what a renewal is judged by.
pub fn peer_chain(connection: &quinn::Connection) -> Option<Vec<CertificateDer<'static>>> {
    let identity = connection.peer_identity()?;
    identity.downcast::<Vec<CertificateDer<'static>>>().ok().map(|chain| *chain)
}

/// The node that a chain of certificates, leaf first, stands for: the hash of the leaf's key.
pub fn peer_node(certificates: &[CertificateDer<'_>]) -> Option<NodeId> {
    certificates.first().and_then(ca::node_of)
}

/// The name under which a node is called in TLS. Never bare hex: one id in three million is all digits,
/// which is no host name.
pub fn server_name(node: NodeId) -> String {
    format!("{node}.node.skein")
}

/// The only crypto provider of the house, named explicitly wherever one is needed: with a second one in
/// the dependency tree the process-wide default would be ambiguous.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A certificate with its key that can be exchanged while connections are open: they keep the old one,
/// new ones get the new one. Cheap to share.
pub struct Certificates {
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Serves `chain`, whose leaf must be for `key`.
    pub fn new(chain: &Chain, key: &PrivateKeyDer<'static>) -> Result<Certificates, Error> {
        Ok(Certificates { current: RwLock::new(certified(chain, key)?) })
    }

    /// Serves `chain` from now on; the old one stays if this fails.
    pub fn replace(&self, chain: &Chain, key: &PrivateKeyDer<'static>) -> Result<(), Error> {
        let next = certified(chain, key)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// What is served now.
    pub fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl rustls::client::ResolvesClientCert for Certificates {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A member's side of TLS, for both protocols. Cheap to clone; clones share certificate and bundle.
#[derive(Clone)]
pub struct Tls {
    node: NodeId,
    key: Arc<PrivateKeyDer<'static>>,
    certificates: Arc<Certificates>,
    bundle: Arc<RwLock<TrustBundle>>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    stateless_reset_key: [u8; 64],
}

impl Tls {
    /// Sets up TLS for this node.
    ///
    /// * `chain`: the node's member certificate, up to and including the root.
    /// * `bundle`: the roots whose certificates count for unknown nodes.
    /// * `clock`: the wall time by which unknown nodes' certificates are in date.
    pub fn new(
        identity: &Identity,
        chain: &Chain,
        bundle: TrustBundle,
        trust: Arc<dyn Trust>,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Tls, Error> {
        let key = Arc::new(identity.private_key());
        let certificates = Arc::new(Certificates::new(chain, &key)?);
        let bundle = Arc::new(RwLock::new(bundle));
        let verifier = Arc::new(MemberVerifier { trust, bundle: Arc::clone(&bundle), provider: provider() });
        Ok(Tls {
            node: identity.node(),
            key,
            server: Arc::new(server_config(&verifier, &certificates, &clock)?),
            client: Arc::new(client_config(&verifier, &certificates, clock)?),
            certificates,
            bundle,
            stateless_reset_key: identity.derive("quic stateless reset"),
        })
    }

    /// Who this node is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// For accepting: both protocols. A client certificate is optional here; ask [`accepted`].
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For calling a member by [`server_name`]; whoever answers must be that node.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// The same after a restart, so that peers notice the restart at once instead of by their timeout.
    pub fn stateless_reset_key(&self) -> [u8; 64] {
        self.stateless_reset_key
    }

    /// Shows `chain` in handshakes from now on. Open connections live on.
    pub fn replace_certificate(&self, chain: &Chain) -> Result<(), Error> {
        self.certificates.replace(chain, &self.key)
    }

    /// Trusts the roots of `bundle`, and no others, in handshakes from now on.
    pub fn replace_bundle(&self, bundle: TrustBundle) {
        *self.bundle.write().unwrap_or_else(PoisonError::into_inner) = bundle;
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("node", &self.node).finish_non_exhaustive()
    }
}

/// A joiner's side of TLS: the other end must hold a certificate of the pinned authority.
pub fn join_config(pin: Pin, clock: Arc<dyn TimeProvider>) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = Arc::new(PinVerifier { pin, provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn server_config(
    verifier: &Arc<MemberVerifier>,
    certificates: &Arc<Certificates>,
    clock: &Arc<dyn TimeProvider>,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_details(provider(), Arc::clone(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::clone(verifier) as _)
        .with_cert_resolver(Arc::clone(certificates) as _);
    config.alpn_protocols = vec![MEMBER_ALPN.to_vec(), JOIN_ALPN.to_vec()];
    // A resumed session would skip the verifier, and with it the removal of a node.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn client_config(
    verifier: &Arc<MemberVerifier>,
    certificates: &Arc<Certificates>,
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(verifier) as _)
        .with_client_cert_resolver(Arc::clone(certificates) as _);
    config.alpn_protocols = vec![MEMBER_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

fn certified(chain: &Chain, key: &PrivateKeyDer<'static>) -> Result<Arc<CertifiedKey>, Error> {
    let key = rustls::crypto::ring::sign::any_supported_type(key)?;
    let certified = CertifiedKey::new(chain.certificates().to_vec(), key);
    certified.keys_match().map_err(|_| Error::WrongKey)?;
    Ok(Arc::new(certified))
}

fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let handshake = connection.handshake_data()?;
    handshake.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// Members judge each other by key, strangers by certificate.
struct MemberVerifier {
    trust: Arc<dyn Trust>,
    bundle: Arc<RwLock<TrustBundle>>,
    provider: Arc<CryptoProvider>,
}

impl MemberVerifier {
    /// The node that holds the key of `leaf`; that it does hold it, the handshake's signature shows.
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        authorities: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<NodeId, rustls::Error> {
        let node = ca::node_of(leaf).ok_or(CertificateError::BadEncoding)?;
        match self.trust.judge(node) {
            Standing::Member => Ok(node),
            Standing::Removed => Err(CertificateError::Revoked.into()),
            Standing::Unknown => {
                let bundle = self.bundle.read().unwrap_or_else(PoisonError::into_inner);
                bundle.check_member(leaf, authorities, now)
            }
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }
}

impl fmt::Debug for MemberVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberVerifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let node = self.judge(end_entity, intermediates, now)?;
        if called(server_name) != Some(node) {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for MemberVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, now).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Joiners know one hash: some authority in the presented chain must have it, and must vouch for the leaf.
#[derive(Debug)]
struct PinVerifier {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|certificate| Pin::of(certificate) == Some(self.pin));
        let mut roots = RootCertStore::empty();
        roots.add(pinned.ok_or(CertificateError::UnknownIssuer)?.clone().into_owned())?;
        // Anybody can send the genuine root along; only the chain of signatures says that it is his.
        ca::verify_chain(&roots, &ParsedCertificate::try_from(end_entity)?, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The node that was called: the first label of the name, with or without the rest.
fn called(name: &ServerName<'_>) -> Option<NodeId> {
    match name {
        ServerName::DnsName(name) => name.as_ref().split('.').next()?.parse().ok(),
        _ => None,
    }
}

fn only_tls13() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic)
}

#[cfg(test)]
mod tests;
