//! The server's TLS: a certificate that can be replaced while it runs, and client certificates that
//! are verified when shown but not demanded, because `/healthz` and `/version` are open.

use std::fmt;
use std::sync::{Arc, RwLock};

use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
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

/// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1.
///
/// `certificate` is asked at each handshake; a [`SwappableCertificate`] can be replaced at any time.
/// A client certificate that does not chain to `client_roots` or is out of date ends the handshake.
pub fn server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    client_roots: RootCertStore,
) -> Result<ServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(client_roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(Error::ClientCa)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Protocol)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
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
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(certificate);
    }
}

impl ResolvesServerCert for SwappableCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone())
    }
}

impl fmt::Debug for SwappableCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwappableCertificate")
    }
}
