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

mod certificate;

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

pub(crate) use self::certificate::verify_chain;
pub use self::certificate::{
    Chain, ClientSubject, Pin, Serial, TrustBundle, Validity, client_subject, node_of,
};
use self::certificate::{check_certificates, public_key_of};
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
/// Longer than any client's certificate lives that was made before a change of the root.
const CROSS_LIFE: Duration = Duration::from_secs(370 * DAY.as_secs());

/// A certificate that ran out this long ago is still good for asking for the next one.
pub const RENEWABLE_AFTER_EXPIRY: Duration = Duration::from_secs(30 * DAY.as_secs());

/// 9999-12-31T00:00:00Z: later moments have no form in a certificate.
const LATEST: Duration = Duration::from_secs(253_402_214_400);

/// A request for a certificate is about 250 bytes.
pub const CSR_BYTES_MAX: usize = 4 << 10;

const FORMAT: u8 = 1;
/// The same with data keys of editions before.
const FORMAT_WITH_FORMER: u8 = 2;

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
    /// Data keys of editions before this one, newest first: there may be something that only they open.
    former: Vec<DataKey>,
}

/// A key that data at rest is sealed with, below every root of members one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataKey {
    id: DataKeyId,
    bytes: [u8; 32],
}

/// What a [`DataKey`] is called: a hash of it, which says nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DataKeyId(pub [u8; 8]);

impl DataKey {
    fn new(bytes: [u8; 32]) -> DataKey {
        let mut hash = Sha256::new();
        hash.update(b"skein data key id v1\0");
        hash.update(bytes);
        let hash: [u8; 32] = hash.finalize().into();
        DataKey { id: DataKeyId(hash[..8].try_into().expect("8 of 32 bytes")), bytes }
    }

    /// What it is called.
    pub fn id(&self) -> DataKeyId {
        self.id
    }

    /// The key itself.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }
}

impl fmt::Debug for DataKey {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({:?})", self.id)
    }
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
        let clients = Authority::self_signed(identity::generate_key()?, &cluster.authority("clients"), now)?;
        ClusterCa::of(cluster, root, clients, now)
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

    /// What this edition of the authorities is called: half of SHA-256 over its certificates, in hex.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for Authority { certificate, .. } in [&self.root, &self.issuing, &self.clients] {
            hash.update((certificate.len() as u64).to_be_bytes());
            hash.update(certificate);
        }
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Between which moments the issuing certificate is valid.
    pub fn issuing_validity(&self) -> Validity {
        self.issuing.validity()
    }

    /// The same of the root that ends first.
    pub fn roots_validity(&self) -> Validity {
        let (members, clients) = (self.root.validity(), self.clients.validity());
        if members.until <= clients.until { members } else { clients }
    }

    /// The next edition with the same roots: a new issuing key, and new certificates for the roots' keys where
    /// it is time. All certificates stay valid, and all tokens.
    pub fn renewed(&self, now: SystemTime) -> Result<ClusterCa, Error> {
        ClusterCa::of(self.cluster.clone(), self.root.renewed(now)?, self.clients.renewed(now)?, now)
    }

    /// An edition of a cluster that exists, with new keys for everything. What it issues is believed by who
    /// knows its roots, or the [cross-signed](ClusterCa::cross_sign) one.
    pub fn anew(cluster: &Cluster, now: SystemTime) -> Result<ClusterCa, Error> {
        let fresh = |what: &str| -> Result<Authority, Error> {
            let key = identity::generate_key()?;
            // Named by its key: no other authority of this cluster has its name.
            let short = NodeId::of_public_key(&key.subject_public_key_info()).short();
            Authority::self_signed(key, &cluster.authority(&format!("{what} {short}")), now)
        };
        ClusterCa::of(cluster.clone(), fresh("root")?, fresh("clients")?, now)
    }

    /// With a new issuing key.
    fn of(
        cluster: Cluster,
        root: Authority,
        clients: Authority,
        now: SystemTime,
    ) -> Result<ClusterCa, Error> {
        let issuing = Authority::issued_by(&root, &cluster.authority("issuing"), now)?;
        Ok(ClusterCa { cluster, root, issuing, clients, former: Vec::new() })
    }

    /// The key that data is sealed with while this edition is in force. It follows from the private key of the
    /// members' root: a renewal keeps it, a rotation brings another, and editions of before there were any have one.
    pub fn data_key(&self) -> DataKey {
        let mut hash = Sha256::new();
        hash.update(b"skein data key v1\0");
        hash.update(self.root.key.serialized_der());
        DataKey::new(hash.finalize().into())
    }

    /// All data keys that come with this edition, its own first.
    pub fn data_keys(&self) -> Vec<DataKey> {
        std::iter::once(self.data_key()).chain(self.former.iter().cloned()).collect()
    }

    /// This edition with what opens data sealed before it: the key in force until now, of `before`, and those
    /// older ones that are `needed` still.
    pub fn following(mut self, before: &ClusterCa, needed: impl Fn(DataKeyId) -> bool) -> ClusterCa {
        let (own, newest) = (self.data_key().id(), before.data_key().id());
        self.former = before.data_keys();
        self.former.retain(|key| key.id() != own && (key.id() == newest || needed(key.id())));
        self
    }

    /// The members' root of a newer edition, signed by the root of this one: for
    /// [`Chain::vouched_by`]. Whoever trusts only this root believes the newer one by it, for a good year.
    pub fn cross_sign(&self, newer: &ClusterCa, now: SystemTime) -> Result<CertificateDer<'static>, Error> {
        let mut params =
            authority_template(&newer.root.name()?, now, CROSS_LIFE, BasicConstraints::Unconstrained)?;
        params.not_after = params.not_after.min(at!(self.root.validity().until));
        Ok(params.signed_by(&newer.root.key, &self.root.issuer()?)?.into())
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
        // Older builds read what holds no key of before.
        match self.former.is_empty() {
            true => encoding::encode(FORMAT, &stored),
            false => encoding::encode(FORMAT_WITH_FORMER, &(stored, &self.former)),
        }
    }

    /// What `to_bytes` gave.
    pub fn from_bytes(bytes: &[u8]) -> Result<ClusterCa, Error> {
        let decoded = match bytes.first() {
            Some(&FORMAT_WITH_FORMER) => encoding::decode(FORMAT_WITH_FORMER, bytes),
            _ => encoding::decode(FORMAT, bytes).map(|stored| (stored, Vec::new())),
        };
        let (stored, former): (Stored, Vec<DataKey>) =
            decoded.map_err(|e| Error::Damaged(encoding::chain_of(&e)))?;
        Ok(ClusterCa {
            former,
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
        let issuing = self.issuing.validity();
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

/// A certificate and the key that may sign others by it; roots sign themselves.
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

    /// The same key, name and rights in a certificate that is valid for longer; the same certificate where its
    /// time has not come.
    fn renewed(&self, now: SystemTime) -> Result<Authority, Error> {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)?;
        if !self.validity().is_due(now) {
            return Ok(Authority { certificate: self.certificate.clone(), key });
        }
        Authority::self_signed(key, &self.name()?, now)
    }

    fn validity(&self) -> Validity {
        Validity::of(&self.certificate).expect("an authority's certificate parses")
    }

    fn name(&self) -> Result<String, Error> {
        let subject = client_subject(&self.certificate);
        Ok(subject.ok_or(Error::MalformedCertificate("an authority without a name"))?.user)
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

fn dns_name(name: &str) -> Result<SanType, Error> {
    match ServerName::try_from(name) {
        Ok(ServerName::DnsName(_)) => {
            name.try_into().map(SanType::DnsName).map_err(|_| Error::Name(name.into()))
        }
        _ => Err(Error::Name(name.into())),
    }
}

/// Whether a name can stand in a certificate: one that may be read as an address, like `123` or `0x10`, cannot.
pub fn is_host_name(name: &str) -> bool {
    dns_name(name).is_ok()
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

#[cfg(test)]
mod tests;
