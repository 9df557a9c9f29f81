//! The cluster's authorities, and the certificates they give.
//!
//! ```text
//! root (10 years; its key hash is in every token)       clients' root (10 years)
//!   └─ issuing (90 days, path length 0)                   └─ client of the API: O=system:masters
//!        ├─ member: a node, both ways, 24 hours
//!        └─ API server: addresses and names, 30 days
//! ```
//!
//! Certificates are made from *our* templates: of a request only the public key is used, after its
//! signature was checked. What else a request asks for is not even read.
//!
//! All times are arguments. Does not decide *who* gets a certificate; `join` and the node do.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::encoding;
use crate::identity::{self, NodeId};
use crate::ids::hex_id;
use crate::tls;

/// Clocks of machines that were just switched on are wrong by minutes: certificates are valid since a
/// little before they were made.
const BACKDATED: Duration = Duration::from_secs(10 * 60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const ROOT_LIFE: Duration = Duration::from_secs(3652 * DAY.as_secs());
const ISSUING_LIFE: Duration = Duration::from_secs(90 * DAY.as_secs());
const MEMBER_LIFE: Duration = DAY;
/// Dates do count for kubectl: a cluster that was off for two weeks still answers it at once.
const API_LIFE: Duration = Duration::from_secs(30 * DAY.as_secs());
const CLIENT_LIFE: Duration = Duration::from_secs(365 * DAY.as_secs());

/// A certificate that ran out this long ago is still good for asking for the next one.
pub const RENEWABLE_AFTER_EXPIRY: Duration = Duration::from_secs(30 * DAY.as_secs());

/// 9999-12-31T00:00:00Z: later moments have no form in a certificate.
const LATEST: Duration = Duration::from_secs(253_402_214_400);

/// A request for a certificate is about 250 bytes.
pub const CSR_BYTES_MAX: usize = 4 << 10;

/// A chain of three P-256 certificates is about 1.5 KiB.
const CERTIFICATE_BYTES_MAX: usize = 8 << 10;
const CHAIN_LENGTH_MAX: usize = 4;

/// Two authorities while one is being replaced; the rest is room.
const BUNDLE_LENGTH_MAX: usize = 8;

const FORMAT: u8 = 1;

/// A moment as certificates write it. A macro, because the type belongs to a crate that is not ours to name.
macro_rules! at {
    ($moment:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + since_epoch($moment)
    };
}

/// Why there is no certificate. No variant changes anything.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is used in certificates, so it must be a DNS label.
    #[error("{0:?} cannot name a cluster; use up to 63 lower-case letters, digits and dashes")]
    ClusterName(String),
    /// The request does not parse, is too large, or its key is not P-256.
    #[error("the certificate request is malformed ({0}); the sender must make a new one")]
    MalformedRequest(&'static str),
    /// Whoever sent the request does not hold the key in it, or it was changed on its way.
    #[error("the certificate request has an invalid signature; the sender must make a new one")]
    RequestSignature,
    /// A name that has no form in a certificate.
    #[error("{0:?} cannot stand in a certificate; use letters, digits, dots and dashes")]
    Name(String),
    /// The issuing authority ran out.
    #[error("the issuing authority expired; check this machine's clock, then renew the issuing authority")]
    AuthorityExpired,
    /// The certificate names a node that must not get a new one.
    #[error("node {0} was removed from the cluster; join again with a new data directory and a new token")]
    Removed(NodeId),
    /// The old certificate ran out too long ago, or does not come from this cluster.
    #[error("the certificate of node {node} cannot be renewed ({reason}); join again with a new token")]
    NotRenewable {
        /// The node that asked.
        node: NodeId,
        /// What is wrong with its old certificate.
        reason: String,
    },
    /// The stored authorities do not decode; the bytes are as they were.
    #[error("the stored certificate authorities are damaged ({0}); restore them from a backup")]
    Damaged(String),
    /// A bundle or chain does not parse.
    #[error("a certificate is malformed ({0}); fetch it again from a member")]
    MalformedCertificate(&'static str),
    /// No key or signature could be made.
    #[error("could not make a key or a signature: {0}; try again")]
    Crypto(String),
}

impl From<identity::Error> for Error {
    fn from(error: identity::Error) -> Error {
        Error::Crypto(error.to_string())
    }
}

impl From<rcgen::Error> for Error {
    fn from(error: rcgen::Error) -> Error {
        Error::Crypto(error.to_string())
    }
}

hex_id!(
    /// Which cluster: the first 16 bytes of SHA-256 of the public key of its first root.
    ClusterId,
    16
);

impl ClusterId {
    /// The id in groups of four hex digits, for comparing by eye.
    pub fn fingerprint(&self) -> String {
        let hex = self.to_string();
        let groups: Vec<&str> = (0..hex.len()).step_by(4).map(|at| &hex[at..at + 4]).collect();
        groups.join("-")
    }
}

/// A cluster's id and name. The id stays for ever; the name is for people and in certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Which cluster.
    pub id: ClusterId,
    /// A DNS label; `<name>.skein` is in every API certificate.
    pub name: String,
}

impl Cluster {
    /// What an authority is called: also by the id, or two clusters of one name that meet would call each
    /// other's certificates forged instead of foreign.
    fn authority(&self, what: &str) -> String {
        format!("skein {} {} {what}", self.name, &self.id.fingerprint()[..9])
    }
}

/// SHA-256 of an authority's public key. The key, not the certificate: so that the certificate can be
/// made anew without another token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// The pin of a certificate's key; `None` if it is no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Pin> {
        Some(Pin(Sha256::digest(public_key_of(certificate)?).into()))
    }
}

/// The node id that follows from a certificate's key; `None` if it is no certificate.
pub fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    public_key_of(certificate).map(|spki| NodeId::of_public_key(&spki))
}

/// A certificate, then those of its authorities up to and *including* the root: a joiner knows the root
/// by its key's hash only and must be sent the certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<u8>>", into = "Vec<Vec<u8>>")]
pub struct Chain(Vec<CertificateDer<'static>>);

impl Chain {
    /// A chain of one to four certificates that each parse, leaf first.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Chain, Error> {
        if certificates.is_empty() || certificates.len() > CHAIN_LENGTH_MAX {
            return Err(Error::MalformedCertificate("a chain has one to four certificates"));
        }
        check_certificates(&certificates)?;
        Ok(Chain(certificates))
    }

    /// The certificate itself.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.0[0]
    }

    /// All certificates, leaf first.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// Between which moments the leaf is valid.
    pub fn validity(&self) -> Validity {
        Validity::of(self.leaf()).expect("checked when the chain was made")
    }

    /// All certificates as PEM, leaf first.
    pub fn to_pem(&self) -> String {
        self.0.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
    }
}

impl TryFrom<Vec<Vec<u8>>> for Chain {
    type Error = Error;

    fn try_from(certificates: Vec<Vec<u8>>) -> Result<Chain, Error> {
        Chain::new(certificates.into_iter().map(CertificateDer::from).collect())
    }
}

impl From<Chain> for Vec<Vec<u8>> {
    fn from(chain: Chain) -> Vec<Vec<u8>> {
        chain.0.into_iter().map(|certificate| certificate.to_vec()).collect()
    }
}

/// The roots whose certificates count. A list from the first day: while a root is replaced there are two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<u8>>", into = "Vec<Vec<u8>>")]
pub struct TrustBundle(Vec<CertificateDer<'static>>);

impl TrustBundle {
    /// A bundle of one to eight roots that each parse.
    pub fn new(roots: Vec<CertificateDer<'static>>) -> Result<TrustBundle, Error> {
        if roots.is_empty() || roots.len() > BUNDLE_LENGTH_MAX {
            return Err(Error::MalformedCertificate("a trust bundle has one to eight roots"));
        }
        check_certificates(&roots)?;
        let bundle = TrustBundle(roots);
        if bundle.store().len() < bundle.0.len() {
            return Err(Error::MalformedCertificate("a root cannot be an anchor of trust"));
        }
        Ok(bundle)
    }

    /// The roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// The roots as rustls takes them.
    pub fn store(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.0.iter().cloned());
        store
    }

    /// Whether one of the roots has this key.
    pub fn contains(&self, pin: Pin) -> bool {
        self.0.iter().any(|root| Pin::of(root) == Some(pin))
    }

    /// The roots as PEM: what a kubeconfig wants as `certificate-authority-data`.
    pub fn to_pem(&self) -> String {
        self.0.iter().map(|root| pem("CERTIFICATE", root)).collect()
    }

    /// The node a member certificate stands for: signed by a root of the bundle, in date at `now`, and
    /// named after its own key, which API certificates are not.
    pub fn check_member(
        &self,
        leaf: &CertificateDer<'_>,
        authorities: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<NodeId, rustls::Error> {
        let node = node_of(leaf).ok_or(rustls::CertificateError::BadEncoding)?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_chain(&self.store(), &parsed, authorities, now)?;
        let name = ServerName::try_from(tls::server_name(node))
            .map_err(|_| rustls::CertificateError::NotValidForName)?;
        verify_server_name(&parsed, &name)?;
        Ok(node)
    }
}

impl TryFrom<Vec<Vec<u8>>> for TrustBundle {
    type Error = Error;

    fn try_from(roots: Vec<Vec<u8>>) -> Result<TrustBundle, Error> {
        TrustBundle::new(roots.into_iter().map(CertificateDer::from).collect())
    }
}

impl From<TrustBundle> for Vec<Vec<u8>> {
    fn from(bundle: TrustBundle) -> Vec<Vec<u8>> {
        bundle.0.into_iter().map(|root| root.to_vec()).collect()
    }
}

/// The moments between which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Not valid before this moment.
    pub from: SystemTime,
    /// Not valid after this moment.
    pub until: SystemTime,
}

impl Validity {
    /// The validity of a certificate; `None` if it is none, or from before 1970.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Validity> {
        let validity = parse_whole(certificate)?.tbs_certificate.validity;
        let moment = |seconds: i64| {
            let seconds = u64::try_from(seconds).ok()?;
            UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        };
        Some(Validity {
            from: moment(validity.not_before.timestamp())?,
            until: moment(validity.not_after.timestamp())?,
        })
    }

    /// Half of the life: time to ask for the next certificate, with as much time left to get it.
    pub fn renew_at(&self) -> SystemTime {
        self.from + self.until.duration_since(self.from).unwrap_or_default() / 2
    }
}

/// Names and addresses under which a node's API is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiNames {
    /// The node's present addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's name and whatever else resolves to it. `<cluster>.skein` is always added.
    pub names: Vec<String>,
}

/// A certificate for a user of the API, with its key.
pub struct ClientCertificate {
    /// Certificate, then the clients' root.
    pub chain: Chain,
    /// The private key, PKCS#8 PEM. It exists nowhere else.
    pub key_pem: String,
    /// By which the certificate is revoked.
    pub serial: Serial,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").field("serial", &self.serial).finish_non_exhaustive()
    }
}

hex_id!(
    /// The serial number of a client certificate.
    Serial,
    16
);

/// Who a client certificate says its holder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSubject {
    /// The common name: the user.
    pub user: String,
    /// The organisations: the user's groups.
    pub groups: Vec<String>,
    /// The serial; `None` where it is not one of ours (16 bytes).
    pub serial: Option<Serial>,
}

/// Who a certificate stands for, as Kubernetes reads it; `None` if it does not parse or has no name.
///
/// Does not check the certificate: TLS did, against the clients' root.
pub fn client_subject(certificate: &CertificateDer<'_>) -> Option<ClientSubject> {
    let parsed = parse_whole(certificate)?;
    let subject = parsed.subject();
    let text =
        |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    Some(ClientSubject {
        user: subject.iter_common_name().next().and_then(text)?,
        groups: subject.iter_organization().filter_map(text).collect(),
        serial: parsed.raw_serial().try_into().ok().map(Serial),
    })
}

/// What every node knows of the authorities: nothing secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Public {
    /// Which cluster.
    pub cluster: Cluster,
    /// The roots of members and API servers.
    pub members: TrustBundle,
    /// The roots of API clients.
    pub clients: TrustBundle,
}

/// The authorities of a cluster with their private keys: whoever holds this is the cluster.
///
/// `to_bytes` for sealing and storing; never logged, never sent in clear.
pub struct ClusterCa {
    cluster: Cluster,
    root: Authority,
    issuing: Authority,
    clients: Authority,
}

impl ClusterCa {
    /// Founds a cluster: draws all keys and signs the authorities' certificates.
    pub fn create(cluster_name: &str, now: SystemTime) -> Result<ClusterCa, Error> {
        if !is_dns_label(cluster_name) {
            return Err(Error::ClusterName(cluster_name.into()));
        }
        let root_key = identity::generate_key()?;
        let hash: [u8; 32] = Sha256::digest(root_key.subject_public_key_info()).into();
        let id = ClusterId(hash[..16].try_into().expect("16 of 32 bytes"));
        let cluster = Cluster { id, name: cluster_name.into() };
        let root = Authority::self_signed(root_key, &cluster.authority("root"), now)?;
        Ok(ClusterCa {
            issuing: Authority::issued_by(&root, &cluster.authority("issuing"), now)?,
            root,
            clients: Authority::self_signed(identity::generate_key()?, &cluster.authority("clients"), now)?,
            cluster,
        })
    }

    /// Which cluster this is the authority of.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What every node may know.
    pub fn public(&self) -> Public {
        Public {
            cluster: self.cluster.clone(),
            members: TrustBundle(vec![self.root.certificate.clone()]),
            clients: TrustBundle(vec![self.clients.certificate.clone()]),
        }
    }

    /// The hash of the root's key: what a token pins.
    pub fn pin(&self) -> Pin {
        Pin::of(&self.root.certificate).expect("an authority's certificate parses")
    }

    /// When to call [`ClusterCa::renew_issuing`]: at half of the issuing authority's life.
    pub fn renew_issuing_at(&self) -> SystemTime {
        Validity::of(&self.issuing.certificate).expect("an authority's certificate parses").renew_at()
    }

    /// Draws a new issuing key and has the root sign it. Certificates of the old one stay valid.
    pub fn renew_issuing(&mut self, now: SystemTime) -> Result<(), Error> {
        self.issuing = Authority::issued_by(&self.root, &self.cluster.authority("issuing"), now)?;
        Ok(())
    }

    /// A member certificate for the key of a request: 24 hours, to be used both ways. Cannot sign others.
    pub fn issue_member(&self, csr: &[u8], now: SystemTime) -> Result<Chain, Error> {
        let key = request_key(csr)?;
        let node = NodeId::of_public_key(&key.subject_public_key_info());
        let mut params = template(&node.to_string(), now, MEMBER_LIFE)?;
        params.subject_alt_names = vec![dns_name(&tls::server_name(node))?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, &key, now)
    }

    /// The next certificate of a node, on the word of its last one, which it proved to hold by TLS.
    ///
    /// A member gets one whatever its old certificate's dates say (DESIGN, "Trust between members"); an
    /// unknown node only if the old one is of this cluster and ran out less than 30 days ago.
    pub fn renew_member(
        &self,
        old: &[CertificateDer<'_>],
        standing: tls::Standing,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<Chain, Error> {
        let node = request_node(csr)?;
        let refuse = |reason: &str| Error::NotRenewable { node, reason: reason.into() };
        let (leaf, authorities) = old.split_first().ok_or_else(|| refuse("there is none"))?;
        if node_of(leaf) != Some(node) {
            return Err(refuse("it is for another key"));
        }
        match standing {
            tls::Standing::Member => {}
            tls::Standing::Removed => return Err(Error::Removed(node)),
            tls::Standing::Unknown => {
                let until = Validity::of(leaf).ok_or_else(|| refuse("it has no validity"))?.until;
                if since_epoch(now) > since_epoch(until) + RENEWABLE_AFTER_EXPIRY {
                    return Err(refuse("it expired more than 30 days ago"));
                }
                let at = UnixTime::since_unix_epoch(since_epoch(now.min(until)));
                self.public()
                    .members
                    .check_member(leaf, authorities, at)
                    .map_err(|e| Error::NotRenewable { node, reason: e.to_string() })?;
            }
        }
        self.issue_member(csr, now)
    }

    /// A certificate for a node's API server: 30 days, for these names only, not good between members.
    pub fn issue_api_server(&self, csr: &[u8], names: &ApiNames, now: SystemTime) -> Result<Chain, Error> {
        let key = request_key(csr)?;
        let cluster_name = format!("{}.skein", self.cluster.name);
        let mut params = template(&cluster_name, now, API_LIFE)?;
        params.subject_alt_names = vec![dns_name(&cluster_name)?];
        for name in &names.names {
            params.subject_alt_names.push(dns_name(name)?);
        }
        params.subject_alt_names.extend(names.addresses.iter().copied().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, &key, now)
    }

    /// A certificate for a user of the API who may everything (O=system:masters): one year.
    pub fn issue_client(&self, user: &str, now: SystemTime) -> Result<ClientCertificate, Error> {
        if user.is_empty() || user.len() > 64 || user.chars().any(char::is_control) {
            return Err(Error::Name(user.into()));
        }
        let key = identity::generate_key()?;
        let serial = random_serial()?;
        let mut params = template(user, now, CLIENT_LIFE)?;
        params.serial_number = Some(SerialNumber::from_slice(&serial.0));
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.clients.issuer()?)?;
        Ok(ClientCertificate {
            chain: Chain(vec![certificate.into(), self.clients.certificate.clone()]),
            key_pem: key.serialize_pem(),
            serial,
        })
    }

    /// All authorities and their private keys, led by a version. Seal before storing.
    pub fn to_bytes(&self) -> Vec<u8> {
        let stored = Stored {
            cluster: self.cluster.clone(),
            root: self.root.to_stored(),
            issuing: self.issuing.to_stored(),
            clients: self.clients.to_stored(),
        };
        encoding::encode(FORMAT, &stored)
    }

    /// What `to_bytes` gave.
    pub fn from_bytes(bytes: &[u8]) -> Result<ClusterCa, Error> {
        let stored: Stored =
            encoding::decode(FORMAT, bytes).map_err(|e| Error::Damaged(encoding::chain_of(&e)))?;
        Ok(ClusterCa {
            cluster: stored.cluster,
            root: Authority::from_stored(stored.root)?,
            issuing: Authority::from_stored(stored.issuing)?,
            clients: Authority::from_stored(stored.clients)?,
        })
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        key: &SubjectPublicKeyInfo,
        now: SystemTime,
    ) -> Result<Chain, Error> {
        let issuing = Validity::of(&self.issuing.certificate).expect("an authority's certificate parses");
        if now > issuing.until {
            return Err(Error::AuthorityExpired);
        }
        // A leaf that outlives its authority would be valid on paper only.
        params.not_after = params.not_after.min(at!(issuing.until));
        let certificate = params.signed_by(key, &self.issuing.issuer()?)?;
        Ok(Chain(vec![certificate.into(), self.issuing.certificate.clone(), self.root.certificate.clone()]))
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// The node that a certificate request is for; its signature holds.
pub fn request_node(csr: &[u8]) -> Result<NodeId, Error> {
    request_key(csr).map(|key| NodeId::of_public_key(&key.subject_public_key_info()))
}

/// A key with a request for it, for whatever is not the node itself: the API server's certificate.
pub fn new_request(subject: &str) -> Result<(PrivateKeyDer<'static>, Vec<u8>), Error> {
    let key = identity::generate_key()?;
    let request = identity::request_for(&key, subject)?;
    Ok((PrivatePkcs8KeyDer::from(key.serialize_der()).into(), request.to_vec()))
}

/// `leaf` is signed by way of `authorities` by one of `roots`, in date, and may act as a server.
pub(crate) fn verify_chain(
    roots: &RootCertStore,
    leaf: &ParsedCertificate<'_>,
    authorities: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(leaf, roots, authorities, now, algorithms)
}

/// A certificate and the key that may sign others by it.
struct Authority {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Authority {
    fn self_signed(key: KeyPair, name: &str, now: SystemTime) -> Result<Authority, Error> {
        let params = authority_template(name, now, ROOT_LIFE, BasicConstraints::Unconstrained)?;
        Ok(Authority { certificate: params.self_signed(&key)?.into(), key })
    }

    fn issued_by(root: &Authority, name: &str, now: SystemTime) -> Result<Authority, Error> {
        let key = identity::generate_key()?;
        let params = authority_template(name, now, ISSUING_LIFE, BasicConstraints::Constrained(0))?;
        Ok(Authority { certificate: params.signed_by(&key, &root.issuer()?)?.into(), key })
    }

    fn issuer(&self) -> Result<Issuer<'_, &KeyPair>, Error> {
        Ok(Issuer::from_ca_cert_der(&self.certificate, &self.key)?)
    }

    fn to_stored(&self) -> StoredAuthority {
        StoredAuthority { certificate: self.certificate.to_vec(), key_pkcs8: self.key.serialize_der() }
    }

    fn from_stored(stored: StoredAuthority) -> Result<Authority, Error> {
        let damaged = |what: &str| Error::Damaged(what.into());
        let certificate = CertificateDer::from(stored.certificate);
        let key = PrivatePkcs8KeyDer::from(stored.key_pkcs8);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| damaged("a private key does not parse"))?;
        check_certificates(std::slice::from_ref(&certificate))?;
        if public_key_of(&certificate) != Some(key.subject_public_key_info()) {
            return Err(damaged("a certificate is not for its key"));
        }
        Ok(Authority { certificate, key })
    }
}

/// [`ClusterCa`] as it is stored; format 1.
#[derive(Serialize, Deserialize)]
struct Stored {
    cluster: Cluster,
    root: StoredAuthority,
    issuing: StoredAuthority,
    clients: StoredAuthority,
}

#[derive(Serialize, Deserialize)]
struct StoredAuthority {
    certificate: Vec<u8>,
    key_pkcs8: Vec<u8>,
}

/// What all our certificates share; the caller adds what the holder may do.
fn template(common_name: &str, now: SystemTime, life: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.not_before = at!(now.checked_sub(BACKDATED).unwrap_or(UNIX_EPOCH));
    params.not_after = at!(now + life);
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()?.0));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    params.is_ca = IsCa::ExplicitNoCa;
    Ok(params)
}

fn authority_template(
    name: &str,
    now: SystemTime,
    life: Duration,
    below: BasicConstraints,
) -> Result<CertificateParams, Error> {
    let mut params = template(name, now, life)?;
    params.is_ca = IsCa::Ca(below);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The key of a request whose signature holds; all else in it is ignored.
fn request_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, Error> {
    if csr.len() > CSR_BYTES_MAX {
        return Err(Error::MalformedRequest("too large"));
    }
    let (rest, request) = X509CertificationRequest::from_der(csr)
        .map_err(|_| Error::MalformedRequest("not a PKCS#10 request"))?;
    if !rest.is_empty() {
        return Err(Error::MalformedRequest("bytes after its end"));
    }
    request.verify_signature().map_err(|_| Error::RequestSignature)?;
    let spki = request.certification_request_info.subject_pki.raw;
    let key =
        SubjectPublicKeyInfo::from_der(spki).map_err(|_| Error::MalformedRequest("unknown kind of key"))?;
    // One key, one encoding, one node id: what will stand in the certificate is what was hashed here.
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.subject_public_key_info() != spki {
        return Err(Error::MalformedRequest("not a P-256 key"));
    }
    Ok(key)
}

fn check_certificates(certificates: &[CertificateDer<'_>]) -> Result<(), Error> {
    for certificate in certificates {
        if certificate.len() > CERTIFICATE_BYTES_MAX {
            return Err(Error::MalformedCertificate("too large"));
        }
        if public_key_of(certificate).is_none() || Validity::of(certificate).is_none() {
            return Err(Error::MalformedCertificate("not an X.509 certificate"));
        }
    }
    Ok(())
}

/// The SubjectPublicKeyInfo in DER.
fn public_key_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(parsed.subject_public_key_info().as_ref().to_vec())
}

fn parse_whole<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Some(parsed),
        _ => None,
    }
}

fn dns_name(name: &str) -> Result<SanType, Error> {
    match ServerName::try_from(name) {
        Ok(ServerName::DnsName(_)) => {
            name.try_into().map(SanType::DnsName).map_err(|_| Error::Name(name.into()))
        }
        _ => Err(Error::Name(name.into())),
    }
}

pub(crate) fn is_dns_label(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty()
        && name.len() <= 63
        && name.chars().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Positive and of full length, so that it reads back as the same 16 bytes.
fn random_serial() -> Result<Serial, Error> {
    let mut bytes: [u8; 16] = identity::random()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(Serial(bytes))
}

/// Seconds since 1970, within what a certificate can say.
fn since_epoch(moment: SystemTime) -> Duration {
    let whole = moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Duration::from_secs(whole).min(LATEST)
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use x509_parser::extensions::GeneralName;

    use super::*;
    use crate::identity::Identity;
    use crate::loopback::{HOUR, founded, start};
    use crate::tls::Standing;

    fn unix(moment: SystemTime) -> UnixTime {
        UnixTime::since_unix_epoch(since_epoch(moment))
    }

    fn check(ca: &ClusterCa, chain: &Chain, at: SystemTime) -> Result<NodeId, rustls::Error> {
        ca.public().members.check_member(chain.leaf(), &chain.certificates()[1..], unix(at))
    }

    fn request() -> (Identity, Vec<u8>) {
        let identity = Identity::ephemeral().expect("a key");
        let csr = identity.csr().expect("a request").to_vec();
        (identity, csr)
    }

    #[test]
    fn a_member_certificate_says_the_node_id_and_lives_a_day() {
        let ca = founded();
        let (identity, csr) = request();
        let chain = ca.issue_member(&csr, start()).expect("issued");
        assert_eq!(node_of(chain.leaf()), Some(identity.node()));
        assert_eq!(check(&ca, &chain, start()), Ok(identity.node()));
        assert!(check(&ca, &chain, start() - BACKDATED).is_ok(), "clocks may be ten minutes behind");
        assert!(check(&ca, &chain, start() - BACKDATED - HOUR).is_err());
        assert!(check(&ca, &chain, start() + MEMBER_LIFE).is_ok());
        assert!(check(&ca, &chain, start() + MEMBER_LIFE + HOUR).is_err());
        let renew_at = chain.validity().renew_at();
        assert!(renew_at > start() + 11 * HOUR && renew_at < start() + 12 * HOUR, "at half life");
    }

    #[test]
    fn the_template_ignores_what_a_hostile_request_asks_for() {
        let ca = founded();
        let (victim, _) = request();
        let key = identity::generate_key().expect("a key");
        let mut wishes = CertificateParams::new(vec![tls::server_name(victim.node())]).expect("names");
        wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wishes.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        wishes.distinguished_name.push(DnType::CommonName, victim.node().to_string());
        wishes.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let csr = wishes.serialize_request(&key).expect("a request");

        let chain = ca.issue_member(csr.der(), start()).expect("issued, on our terms");
        let node = NodeId::of_public_key(&key.subject_public_key_info());
        assert_eq!(check(&ca, &chain, start()), Ok(node));
        let parsed = parse_whole(chain.leaf()).expect("a certificate");
        assert!(!parsed.is_ca());
        assert!(!parsed.key_usage().expect("valid").expect("present").value.key_cert_sign());
        let names = &parsed.subject_alternative_name().expect("valid").expect("present").value.general_names;
        assert_eq!(*names, [GeneralName::DNSName(&tls::server_name(node))]);
        let subject = client_subject(chain.leaf()).expect("a subject");
        assert_eq!((subject.user, subject.groups), (node.to_string(), vec![]));
    }

    #[test]
    fn a_member_cannot_vouch_for_others() {
        let ca = founded();
        let key = identity::generate_key().expect("a key");
        let csr = identity::request_for(&key, "member").expect("a request");
        let chain = ca.issue_member(&csr, start()).expect("issued");
        let member = Issuer::from_ca_cert_der(chain.leaf(), &key).expect("rcgen does not mind");
        let forged_key = identity::generate_key().expect("a key");
        let node = NodeId::of_public_key(&forged_key.subject_public_key_info());
        let mut params = template(&node.to_string(), start(), MEMBER_LIFE).expect("params");
        params.subject_alt_names = vec![dns_name(&tls::server_name(node)).expect("a name")];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let forged = params.signed_by(&forged_key, &member).expect("signed");
        let authorities = chain.certificates();
        assert!(ca.public().members.check_member(forged.der(), authorities, unix(start())).is_err());
    }

    #[test]
    fn a_request_with_a_damaged_signature_is_refused() {
        let ca = founded();
        let (_, mut csr) = request();
        *csr.last_mut().expect("not empty") ^= 1;
        assert!(matches!(ca.issue_member(&csr, start()), Err(Error::RequestSignature)));
        let (_, mut csr) = request();
        csr.push(0);
        assert!(matches!(ca.issue_member(&csr, start()), Err(Error::MalformedRequest(_))));
        assert!(matches!(
            ca.issue_member(&[0x30; CSR_BYTES_MAX + 1], start()),
            Err(Error::MalformedRequest(_))
        ));
    }

    #[test]
    fn a_request_for_another_kind_of_key_is_refused() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let csr = CertificateParams::default().serialize_request(&key).expect("a request");
        assert!(matches!(request_node(csr.der()), Err(Error::MalformedRequest(_))));
    }

    #[test]
    fn a_certificate_of_another_cluster_is_worth_nothing() {
        let (ours, theirs) = (founded(), founded());
        let (_, csr) = request();
        let chain = theirs.issue_member(&csr, start()).expect("issued");
        assert!(check(&ours, &chain, start()).is_err());
        assert_ne!(ours.cluster().id, theirs.cluster().id);
    }

    #[test]
    fn an_api_certificate_has_the_names_asked_for_and_is_no_member_certificate() {
        let ca = founded();
        let (_, csr) = new_request("api").expect("a key");
        let addresses = vec!["10.0.0.7".parse().expect("an address"), "fd00::7".parse().expect("an address")];
        let names = ApiNames { addresses, names: vec!["kitchen".into()] };
        let chain = ca.issue_api_server(&csr, &names, start()).expect("issued");
        let parsed = ParsedCertificate::try_from(chain.leaf()).expect("a certificate");
        for name in ["10.0.0.7", "fd00::7", "kitchen", "home.skein"] {
            let name = ServerName::try_from(name).expect("a name");
            assert!(verify_server_name(&parsed, &name).is_ok(), "{name:?}");
        }
        let other = ServerName::try_from("10.0.0.8").expect("a name");
        assert!(verify_server_name(&parsed, &other).is_err());
        let roots = ca.public().members.store();
        assert!(verify_chain(&roots, &parsed, &chain.certificates()[1..], unix(start())).is_ok());
        assert!(check(&ca, &chain, start()).is_err(), "not named after its key");
        let bad = ApiNames { addresses: vec![], names: vec!["no such name".into()] };
        assert!(matches!(ca.issue_api_server(&csr, &bad, start()), Err(Error::Name(_))));
    }

    #[test]
    fn a_client_certificate_says_user_group_and_serial_and_comes_from_its_own_root() {
        let ca = founded();
        let client = ca.issue_client("ada", start()).expect("issued");
        let subject = client_subject(client.chain.leaf()).expect("a subject");
        assert_eq!(subject.user, "ada");
        assert_eq!(subject.groups, ["system:masters"]);
        assert_eq!(subject.serial, Some(client.serial));
        assert!(client.key_pem.contains("PRIVATE KEY"));
        assert!(check(&ca, &client.chain, start()).is_err(), "a user is no member");

        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            ca.public().clients.store().into(),
            tls::provider(),
        );
        let verifier = verifier.build().expect("a verifier");
        assert!(verifier.verify_client_cert(client.chain.leaf(), &[], unix(start())).is_ok());
        let (_, csr) = request();
        let member = ca.issue_member(&csr, start()).expect("issued");
        let authorities = &member.certificates()[1..];
        assert!(verifier.verify_client_cert(member.leaf(), authorities, unix(start())).is_err());
    }

    #[test]
    fn a_member_renews_with_a_certificate_of_any_age_a_stranger_within_thirty_days() {
        let ca = founded();
        let (identity, csr) = request();
        let chain = ca.issue_member(&csr, start()).expect("issued");
        let old = chain.certificates();
        let renew = |standing, now| ca.renew_member(old, standing, &csr, now);

        let next = renew(Standing::Unknown, start() + 12 * HOUR).expect("in date");
        assert_ne!(next.leaf(), chain.leaf());
        assert_eq!(check(&ca, &next, start() + 30 * HOUR), Ok(identity.node()));
        assert!(renew(Standing::Unknown, start() + 30 * DAY).is_ok());
        let late = start() + 32 * DAY;
        assert!(matches!(renew(Standing::Unknown, late), Err(Error::NotRenewable { .. })));
        assert!(renew(Standing::Member, late).is_ok());
        assert!(matches!(renew(Standing::Removed, start()), Err(Error::Removed(_))));
        let (_, another) = request();
        let stolen = ca.renew_member(old, Standing::Member, &another, start());
        assert!(matches!(stolen, Err(Error::NotRenewable { .. })), "one's own key only");
        let foreign = founded().renew_member(old, Standing::Unknown, &csr, start());
        assert!(matches!(foreign, Err(Error::NotRenewable { .. })));
    }

    #[test]
    fn a_new_issuing_authority_leaves_old_certificates_valid_and_never_signs_past_its_end() {
        let mut ca = founded();
        let (_, csr) = request();
        let before = ca.issue_member(&csr, start()).expect("issued");
        assert!(ca.renew_issuing_at() > start() + 44 * DAY && ca.renew_issuing_at() < start() + 46 * DAY);
        let last = ca.issue_member(&csr, start() + 90 * DAY - HOUR).expect("issued");
        assert!(last.validity().until <= start() + 90 * DAY);
        assert!(matches!(ca.issue_member(&csr, start() + 91 * DAY), Err(Error::AuthorityExpired)));
        ca.renew_issuing(start() + HOUR).expect("renewed");
        assert!(check(&ca, &before, start() + HOUR).is_ok());
        assert!(ca.issue_member(&csr, start() + 90 * DAY).is_ok());
    }

    #[test]
    fn stored_authorities_come_back_as_they_were_and_damage_is_noticed() {
        let ca = founded();
        let bytes = ca.to_bytes();
        let again = ClusterCa::from_bytes(&bytes).expect("whole");
        assert_eq!(again.public(), ca.public());
        let (_, csr) = request();
        let chain = again.issue_member(&csr, start()).expect("issued");
        assert!(check(&ca, &chain, start()).is_ok());
        for cut in 0..bytes.len() {
            assert!(ClusterCa::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut newer = bytes;
        newer[0] = 2;
        let error = ClusterCa::from_bytes(&newer).expect_err("newer");
        assert!(error.to_string().contains("version 2"), "{error}");
    }

    #[test]
    fn a_cluster_has_a_dns_label_for_a_name() {
        for name in ["", "Home", "-home", "home-", "a.b", "a b", &"a".repeat(64)] {
            assert!(matches!(ClusterCa::create(name, start()), Err(Error::ClusterName(_))), "{name:?}");
        }
    }

    #[test]
    fn a_fingerprint_is_the_id_in_groups() {
        let id = ClusterId([0x1f; 16]);
        assert_eq!(id.fingerprint(), ["1f1f"; 8].join("-"));
    }

    #[test]
    fn an_authority_may_be_made_when_the_clock_says_1970() {
        let ca = ClusterCa::create("home", UNIX_EPOCH).expect("a cluster");
        let (_, csr) = request();
        let chain = ca.issue_member(&csr, UNIX_EPOCH).expect("issued");
        assert!(check(&ca, &chain, UNIX_EPOCH + HOUR).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_the_parsers(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let certificate = CertificateDer::from(bytes.clone());
            let _ = request_node(&bytes);
            let _ = ClusterCa::from_bytes(&bytes);
            let _ = (node_of(&certificate), Pin::of(&certificate), Validity::of(&certificate));
            let _ = client_subject(&certificate);
            let _ = Chain::new(vec![certificate.clone()]);
            let _ = TrustBundle::new(vec![certificate]);
        }

        #[test]
        fn no_flipped_byte_panics_the_parsers(at in 0usize..2000, value in proptest::num::u8::ANY) {
            let ca = founded();
            let (_, mut csr) = request();
            let index = at % csr.len();
            csr[index] = value;
            let _ = ca.issue_member(&csr, start());
            let mut root = ca.root.certificate.to_vec();
            let index = at % root.len();
            root[index] = value;
            let root = CertificateDer::from(root);
            let _ = (client_subject(&root), Chain::new(vec![root.clone()]), TrustBundle::new(vec![root]));
        }
    }
}
