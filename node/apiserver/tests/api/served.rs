//! An API over TLS on loopback, with a client CA and a kubeconfig in a directory of its own.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use skein_apiserver::identity::{Identity, Shown, Standing, Unconfirmed, WhoMay};
use skein_apiserver::limits::Limits;
use skein_apiserver::testing::MemoryCluster;
use skein_apiserver::tls::{ApiTls, SwappableCertificate};
use skein_apiserver::{Config, Server, Settings};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A running server. Dropping it stops the server and removes the directory.
pub(crate) struct Served {
    pub(crate) cluster: MemoryCluster,
    pub(crate) address: SocketAddr,
    pub(crate) server: Server,
    pub(crate) certificate: Arc<SwappableCertificate>,
    pub(crate) tls: ApiTls,
    pub(crate) record: Arc<Record>,
    pub(crate) time: Arc<Time>,
    /// Resolves when the server has stopped.
    pub(crate) running: Option<tokio::task::JoinHandle<()>>,
    pub(crate) stop: CancellationToken,
    ca: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

/// The time by which certificates count; that of the machine unless set ahead.
#[derive(Debug, Default)]
pub(crate) struct Time {
    pub(crate) ahead_seconds: AtomicU64,
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let ahead = Duration::from_secs(self.ahead_seconds.load(Ordering::Relaxed));
        Some(UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + ahead))
    }
}

/// What is known of certificates; all others are good.
#[derive(Default)]
pub(crate) struct Record {
    /// Those that are not good here.
    pub(crate) here: watch::Sender<Vec<(Shown, Standing)>>,
    /// What the cluster's newest word on an unknown one is, and how often it was asked for.
    pub(crate) elsewhere: Mutex<(Option<Result<Standing, Unconfirmed>>, usize)>,
}

impl Record {
    /// From now on this is known here of the certificate.
    pub(crate) fn say(&self, certificate: &CertificateDer<'_>, standing: Standing) {
        let (_, shown) = Identity::of_certificate(certificate).unwrap();
        self.here.send_modify(|here| {
            here.retain(|(known, _)| *known != shown);
            here.push((shown, standing));
        });
    }

    fn find(here: &[(Shown, Standing)], shown: &Shown) -> Standing {
        let found = here.iter().find(|(known, _)| known == shown);
        found.map_or(Standing::Good, |(_, standing)| *standing)
    }
}

#[async_trait::async_trait]
impl WhoMay for Record {
    fn standing(&self, shown: &Shown) -> Standing {
        Self::find(&self.here.borrow(), shown)
    }

    async fn confirm(&self, _: &Shown, from: IpAddr) -> Result<Standing, Unconfirmed> {
        assert!(from.is_loopback());
        let mut elsewhere = self.elsewhere.lock().unwrap();
        elsewhere.1 += 1;
        elsewhere.0.clone().unwrap_or(Ok(Standing::Unknown))
    }

    async fn until_ended(&self, shown: &Shown) {
        let ended = |here: &Vec<_>| Self::find(here, shown) == Standing::Revoked;
        self.here.subscribe().wait_for(ended).await.unwrap();
    }
}

/// A certificate with its key.
pub(crate) struct Issued {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) certificate_pem: String,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) key_pem: String,
}

impl Clone for Issued {
    fn clone(&self) -> Self {
        Issued {
            certificate: self.certificate.clone(),
            certificate_pem: self.certificate_pem.clone(),
            key: self.key.clone_key(),
            key_pem: self.key_pem.clone(),
        }
    }
}

impl Served {
    pub(crate) async fn new(cluster: MemoryCluster, limits: Limits) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();

        let certificate = Arc::new(SwappableCertificate::new(certified(&issue_server(&ca))));
        let time = Arc::new(Time::default());
        let tls = ApiTls::new(certificate.clone(), roots, time.clone()).unwrap();
        let record = Arc::new(Record::default());
        let stop = CancellationToken::new();
        let config =
            Config { tls: tls.clone(), who_may: record.clone(), settings: Settings::default(), limits };
        let server = Server::new(config, Arc::new(cluster.clone()), stop.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let runner = server.clone();
        let running = Some(tokio::spawn(async move { runner.run(listener).await }));
        let directory = tempfile::tempdir().unwrap();
        Served { cluster, address, server, certificate, tls, record, time, running, stop, ca, directory }
    }

    /// A certificate for the API of this address, as after a restart or a renewal.
    pub(crate) fn new_server_certificate(&self) -> (CertifiedKey, CertificateDer<'static>) {
        let issued = issue_server(&self.ca);
        (certified(&issued), issued.certificate)
    }

    pub(crate) fn issue_client(&self, user: &str, group: &str) -> Issued {
        issue_client(&self.ca, user, group)
    }

    /// One that counts until the end of 2199, and with it the last second.
    pub(crate) fn issue_client_until_2200(&self) -> (Issued, u64) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ann");
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.not_after = rcgen::date_time_ymd(2200, 1, 1);
        (issued(params, &self.ca), 7_258_118_400)
    }

    pub(crate) fn ca(&self) -> CertificateDer<'static> {
        self.ca.der().clone()
    }

    /// Writes a kubeconfig for an administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let admin = self.issue_client("admin", "system:masters");
        let write = |name: &str, text: &str| {
            let path = self.directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (ca, certificate, key) = (
            write("ca.pem", &self.ca.pem()),
            write("admin.pem", &admin.certificate_pem),
            write("admin.key", &admin.key_pem),
        );
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: 'https://{}', certificate-authority: '{ca}'}}}}]\n\
             users: [{{name: admin, user: {{client-certificate: '{certificate}', client-key: '{key}'}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]\n",
            self.address
        );
        PathBuf::from(write("kubeconfig", &text))
    }

    /// The server's directory, for files of a test.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn issue_server(ca: &CertifiedIssuer<'static, KeyPair>) -> Issued {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "api");
    issued(params, ca)
}

fn issue_client(ca: &CertifiedIssuer<'static, KeyPair>, user: &str, group: &str) -> Issued {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    issued(params, ca)
}

fn issued(params: CertificateParams, ca: &CertifiedIssuer<'static, KeyPair>) -> Issued {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    Issued {
        certificate: certificate.der().clone(),
        certificate_pem: certificate.pem(),
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        key_pem: key.serialize_pem(),
    }
}

fn certified(issued: &Issued) -> CertifiedKey {
    let key = ring::sign::any_supported_type(&issued.key).unwrap();
    CertifiedKey::new(vec![issued.certificate.clone()], key)
}
