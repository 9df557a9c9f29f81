//! Who asks, and whether they may.
//!
//! Before there is RBAC there are two answers: cluster administrators and nodes may everything,
//! everybody else may only ask how the server is. DESIGN "Who may, before RBAC".

use async_trait::async_trait;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Members of this group may everything.
pub const ADMINISTRATORS: &str = "system:masters";

/// Certificates of nodes carry this group.
pub const NODES: &str = "system:nodes";

/// Everybody whose name is not known is in this group alone.
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// Who asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The name that messages use: a certificate's common name.
    pub user: String,
    /// The groups: a certificate's organizations.
    pub groups: Vec<String>,
}

impl Identity {
    /// Whoever showed no certificate.
    pub fn anonymous() -> Self {
        Identity { user: "system:anonymous".into(), groups: vec![UNAUTHENTICATED.into()] }
    }

    /// An administrator by other means than a certificate, such as access to the daemon's socket.
    pub fn administrator(user: impl Into<String>) -> Self {
        Identity { user: user.into(), groups: vec![ADMINISTRATORS.into()] }
    }

    /// What `certificate`, whose chain was verified, says of its holder. `None` if it is unreadable
    /// or names nobody.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<(Self, Serial)> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups =
            subject.iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned)).collect();
        Some((Identity { user, groups }, Serial(certificate.raw_serial().to_vec())))
    }

    /// Whether anything said who this is.
    pub fn is_known(&self) -> bool {
        !self.groups.iter().any(|group| group == UNAUTHENTICATED)
    }

    /// Whether this identity may use the resources of the API at all.
    pub fn may_everything(&self) -> bool {
        self.groups.iter().any(|group| group == ADMINISTRATORS || group == NODES)
    }
}

/// A certificate's serial number: big-endian bytes, as they stand in the certificate.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Serial(pub Vec<u8>);

/// Says who the holder of a verified client certificate is.
#[async_trait]
pub trait WhoMay: Send + Sync + 'static {
    /// `None`: the certificate says nothing we believe, its holder is anonymous.
    fn identify(&self, certificate: &CertificateDer<'_>) -> Option<(Identity, Serial)> {
        Identity::of_certificate(certificate)
    }

    /// Whether the certificate of this serial was taken back. Asked before each request, so that it
    /// is effective on connections that are already open.
    fn is_revoked(&self, serial: &Serial) -> bool;

    /// Ends when the certificate of this serial is taken back: what goes on without asking, a watch, must
    /// end then.
    async fn until_revoked(&self, serial: &Serial);
}

/// Believes what certificates say and takes none back.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyValidCertificate;

#[async_trait]
impl WhoMay for AnyValidCertificate {
    fn is_revoked(&self, _: &Serial) -> bool {
        false
    }

    async fn until_revoked(&self, _: &Serial) {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn administrators_and_nodes_may_everything_and_nobody_else() {
        let of = |group: &str| Identity { user: "u".into(), groups: vec![group.into()] };
        assert!(of("system:masters").may_everything());
        assert!(of("system:nodes").may_everything());
        assert!(!of("developers").may_everything());
        assert!(!Identity::anonymous().may_everything());
    }

    #[test]
    fn bytes_that_are_no_certificate_name_nobody() {
        assert_eq!(Identity::of_certificate(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])), None);
    }
}
