//! Who asks, and whether they may.
//!
//! Before there is RBAC there are two answers: cluster administrators and nodes may everything,
//! everybody else may only ask how the server is. DESIGN "Who may, before RBAC".

use std::net::IpAddr;

use async_trait::async_trait;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
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

    /// What `certificate`, whose chain was verified, says of its holder, and what is asked about it. `None` if it is
    /// unreadable or names nobody: its holder is anonymous.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<(Self, Shown)> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let subject = parsed.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups =
            subject.iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned)).collect();
        let serial = Serial(parsed.raw_serial().to_vec());
        // One from before 1970 has ended long ago.
        let until = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let shown = Shown { serial, sha256: Sha256::digest(certificate).into(), until };
        Some((Identity { user, groups }, shown))
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

/// A client's certificate as the cluster has it on record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shown {
    /// By which it is found.
    pub serial: Serial,
    /// SHA-256 of the whole certificate: another one of the same serial is another certificate.
    pub sha256: [u8; 32],
    /// The last second since 1970 in which it counts.
    pub until: u64,
}

/// What the cluster says of a certificate whose signature and dates are good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It was given out.
    Good,
    /// It was taken back, or what it was signed by counts no more.
    Revoked,
    /// Nobody has said that it was given out, as far as is known here.
    Unknown,
}

/// Why nobody can say how a certificate stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Unconfirmed {
    /// Its address has asked too often.
    TooOften,
    /// No majority answers.
    NoMajority(String),
}

/// Says whether a verified client certificate counts.
#[async_trait]
pub trait WhoMay: Send + Sync + 'static {
    /// How a certificate stands, by what is known here. Asked before each request, so that it is effective on
    /// connections that are already open.
    fn standing(&self, shown: &Shown) -> Standing;

    /// The same by the cluster's newest word: for one that is unknown here, where that word may not have come
    /// yet. Bounded for each address, because who has no good certificate may ask as well.
    async fn confirm(&self, shown: &Shown, from: IpAddr) -> Result<Standing, Unconfirmed>;

    /// Ends when a certificate is taken back, or was good and is so no more: what goes on without asking, a watch,
    /// must end then.
    async fn until_ended(&self, shown: &Shown);
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
        let bytes = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
        assert_eq!(Identity::of_certificate(&bytes), None);
    }
}
