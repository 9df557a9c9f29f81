//! Certificates as they are shown, stored and judged: chains, trust bundles, pins, dates.
//!
//! Reading and checking only; what they say is decided in [`super`]. Whatever comes from outside is parsed
//! under a limit when it becomes one of these types.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Error;
use crate::identity::NodeId;
use crate::ids::hex_id;
use crate::tls;

/// A chain of three P-256 certificates is about 1.5 KiB.
const CERTIFICATE_BYTES_MAX: usize = 8 << 10;
const CHAIN_LENGTH_MAX: usize = 4;

/// Two authorities while one is being replaced; the rest is room.
const BUNDLE_LENGTH_MAX: usize = 8;

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
pub struct Chain(pub(super) Vec<CertificateDer<'static>>);

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

    /// The same with one more certificate behind its root: that root, signed by an older one. For whoever trusts
    /// only the older one. A chain that is full already stays as it is.
    pub fn vouched_by(mut self, cross: CertificateDer<'static>) -> Chain {
        if self.0.len() < CHAIN_LENGTH_MAX {
            self.0.push(cross);
        }
        self
    }

    /// Whether the chain goes up to this root.
    pub fn is_under(&self, root: &CertificateDer<'_>) -> bool {
        let key = public_key_of(root);
        key.is_some() && self.0.iter().skip(1).any(|authority| public_key_of(authority) == key)
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
pub struct TrustBundle(pub(super) Vec<CertificateDer<'static>>);

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

    /// Whether it is time for the next certificate. One that is not valid yet was made by a clock that was ahead.
    pub fn is_due(&self, now: SystemTime) -> bool {
        now < self.from || now >= self.renew_at()
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

pub(super) fn check_certificates(certificates: &[CertificateDer<'_>]) -> Result<(), Error> {
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
pub(super) fn public_key_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(parsed.subject_public_key_info().as_ref().to_vec())
}

pub(super) fn parse_whole<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Some(parsed),
        _ => None,
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
