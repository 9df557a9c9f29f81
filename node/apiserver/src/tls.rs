//! The server's TLS: a certificate that can be replaced while it runs, and client certificates that
//! are verified when shown but not demanded, because `/healthz` and `/version` are open.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::ring;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};

/// The TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client CA is empty or malformed.
    #[error("cannot use the client CA for the API; check the certificates it was made of")]
    ClientCa(#[source] rustls::server::VerifierBuilderError),
    /// Our own protocol choice is not supported by the crypto provider.
    #[error("cannot set up TLS for the API")]
    Protocol(#[source] rustls::Error),
}

/// The server's side of TLS: 1.2 and 1.3, HTTP/2 before HTTP/1.1. Cheap to clone; all clones are one.
///
/// Every handshake is a full one, so that it goes by the roots and the time of then.
#[derive(Clone)]
pub struct ApiTls {
    certificate: Arc<dyn ResolvesServerCert>,
    time: Arc<dyn TimeProvider>,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl ApiTls {
    /// * `certificate` is asked at each handshake; a [`SwappableCertificate`] can be replaced at any time.
    /// * A client certificate that does not chain to `client_roots` or is out of date by `time` ends the handshake.
    pub fn new(
        certificate: Arc<dyn ResolvesServerCert>,
        client_roots: RootCertStore,
        time: Arc<dyn TimeProvider>,
    ) -> Result<ApiTls, Error> {
        let current = server_config(certificate.clone(), client_roots, time.clone())?;
        Ok(ApiTls { certificate, time, current: Arc::new(RwLock::new(Arc::new(current))) })
    }

    /// Lets clients in by these roots from now on; by those of before if this fails.
    pub fn replace_clients(&self, client_roots: RootCertStore) -> Result<(), Error> {
        let next = server_config(self.certificate.clone(), client_roots, self.time.clone())?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(())
    }

    /// What time it is, in seconds since 1970, if anybody knows.
    pub(crate) fn now(&self) -> Option<u64> {
        self.time.current_time().map(|now| now.as_secs())
    }

    /// By what the next handshake goes.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for ApiTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiTls")
    }
}

fn server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    client_roots: RootCertStore,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(client_roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(Error::ClientCa)?;
    let mut config = ServerConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()
        .map_err(Error::Protocol)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would skip the verifier, and let a certificate in that has expired meanwhile.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The server's certificate. Handshakes that begin after [`replace`](Self::replace) see the new one.
pub struct SwappableCertificate(RwLock<Arc<CertifiedKey>>);

impl SwappableCertificate {
    /// Starts with this certificate.
    pub fn new(certificate: CertifiedKey) -> Self {
        SwappableCertificate(RwLock::new(Arc::new(certificate)))
    }

    /// Uses this certificate from now on.
    pub fn replace(&self, certificate: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate);
    }
}

impl ResolvesServerCert for SwappableCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl fmt::Debug for SwappableCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwappableCertificate")
    }
}
