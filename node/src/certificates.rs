//! The certificates of this node: as a member, and of its API server. Each is renewed at half of its life, and at
//! once when it does not fit any more: another address, another root.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use itertools::Itertools as _;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use skein_apiserver::tls::{ApiTls, SwappableCertificate};
use skein_net::ca::{ApiNames, Chain, Public};
use skein_net::endpoint::Endpoint;
use skein_net::identity::{Identity, NodeId};
use skein_net::tls::Tls;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::authority::Authority;
use crate::daemon::Failure;
use crate::home::{ApiCertificate, Home};
use crate::report::Chain as ErrorChain;
use crate::wire::Ask;

/// Looked at often, because a machine may sleep for a week: timers stand still meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After what could not be done.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// After this long without a certificate for the API its operator should know.
const DOUBT: Duration = Duration::from_secs(10);
/// Every so many failures are told.
const WORTH_A_WORD: u32 = 10;

/// The certificate of this node's API server.
pub(crate) struct ApiCertificates {
    pub(crate) home: Home,
    pub(crate) authority: Authority,
    pub(crate) endpoint: Endpoint,
    pub(crate) name: String,
}

impl ApiCertificates {
    /// The one kept from last time if it still fits, else a new one, asked for until there is one.
    pub(crate) async fn first(&self, stopping: &CancellationToken) -> Result<CertifiedKey, Failure> {
        let names = self.names();
        if let Some(kept) = self.home.api_certificate()?.filter(|kept| self.fits(kept, &names)) {
            return certified(&kept);
        }
        let began = Instant::now();
        let mut is_told = false;
        loop {
            match self.issue(&names).await {
                Ok(certificate) => return certified(&certificate),
                // Members may be starting, too.
                Err(error) if is_told || began.elapsed() < DOUBT => {
                    debug!(error, "no certificate for the API yet");
                }
                Err(error) => {
                    warn!(error, "this node's API waits for its certificate");
                    is_told = true;
                }
            }
            // Without a quorum an old one is better than none: clients that know the names accept it.
            if let Some(kept) = self.home.api_certificate()? {
                return certified(&kept);
            }
            tokio::select! {
                () = stopping.cancelled() => return Err("stopped before the API had a certificate".into()),
                () = sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    /// Replaces it when it fits no more.
    pub(crate) async fn renew(self, resolver: Arc<SwappableCertificate>, stopping: CancellationToken) {
        let mut addresses = self.endpoint.addresses();
        let mut trusted = self.authority.trusted();
        loop {
            let names = self.names();
            let fits = matches!(self.home.api_certificate(), Ok(Some(kept)) if self.fits(&kept, &names));
            let mut pause = LOOK_EVERY;
            if !fits {
                let renewed = self.issue(&names).await;
                match renewed.and_then(|kept| certified(&kept).map_err(|error| error.to_string())) {
                    Ok(certificate) => {
                        info!(addresses = %names.addresses.iter().format(", "), "renewed the API's certificate");
                        resolver.replace(certificate);
                    }
                    Err(error) => {
                        debug!(error, "could not renew the API's certificate yet");
                        pause = RETRY_AFTER;
                    }
                }
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                Ok(()) = addresses.changed() => {}
                Ok(()) = trusted.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn fits(&self, kept: &ApiCertificate, names: &ApiNames) -> bool {
        kept.names == *names && self.authority.fits(&kept.chain)
    }

    async fn issue(&self, names: &ApiNames) -> Result<ApiCertificate, String> {
        let (key, csr) = skein_net::ca::new_request(&self.name).map_err(|error| error.to_string())?;
        let ask = Ask::CertifyApi { csr: csr.clone(), names: names.clone() };
        let here = |authority: &Authority, me: NodeId| authority.answer_api(me, &csr, names);
        let chain: Chain = self.authority.ask(&ask, here).await?;
        let certificate = ApiCertificate { chain, key: key.secret_der().to_vec(), names: names.clone() };
        self.home.set_api_certificate(&certificate).map_err(|error| ErrorChain(&error).to_string())?;
        Ok(certificate)
    }

    fn names(&self) -> ApiNames {
        let mut addresses: Vec<IpAddr> =
            self.endpoint.reachable_addresses().iter().map(|at| at.ip()).collect();
        addresses.extend([Ipv4Addr::LOCALHOST.into(), IpAddr::from(Ipv6Addr::LOCALHOST)]);
        addresses.sort_unstable();
        addresses.dedup();
        let names = [self.name.as_str(), "localhost"].into_iter();
        // A name like 123 is read as an address in any URL, so nobody asks for it.
        let names = names.filter(|name| skein_net::ca::is_host_name(name)).map(str::to_owned).collect();
        ApiNames { addresses, names }
    }
}

fn certified(kept: &ApiCertificate) -> Result<CertifiedKey, Failure> {
    let key = PrivateKeyDer::try_from(kept.key.clone())?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    Ok(CertifiedKey::new(kept.chain.certificates().to_vec(), key))
}

/// Keeps this node's certificate as a member such that others accept it.
pub(crate) struct MemberCertificate {
    pub(crate) home: Home,
    pub(crate) identity: Identity,
    pub(crate) tls: Tls,
    pub(crate) chain: Chain,
    pub(crate) authority: Authority,
}

impl MemberCertificate {
    pub(crate) async fn renew(mut self, stopping: CancellationToken) {
        let mut trusted = self.authority.trusted();
        let mut failures = 0u32;
        loop {
            let mut pause = LOOK_EVERY;
            if !self.authority.fits(&self.chain) {
                match self.next().await {
                    Ok(next) => {
                        info!("renewed this node's certificate");
                        (self.chain, failures) = (next, 0);
                    }
                    // While authorities change hands nobody issues for a moment.
                    Err(error) => {
                        (pause, failures) = (RETRY_AFTER, failures.wrapping_add(1));
                        if failures.is_multiple_of(WORTH_A_WORD) {
                            warn!(error, "could not renew this node's certificate yet");
                        }
                    }
                }
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                Ok(()) = trusted.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    async fn next(&self) -> Result<Chain, String> {
        let csr = self.identity.csr().map_err(|error| error.to_string())?.to_vec();
        let here = |authority: &Authority, me: NodeId| authority.answer_renew(me, &csr);
        let next: Chain = self.authority.ask(&Ask::Renew(csr.clone()), here).await?;
        self.home.set_certificate(&next).map_err(|error| ErrorChain(&error).to_string())?;
        self.tls.replace_certificate(&next).map_err(|error| error.to_string())?;
        Ok(next)
    }
}

/// Lets nodes and API clients in by the roots that count now, and keeps those for the next start.
pub(crate) async fn follow_trust(
    home: Home,
    mut followed: Public,
    authority: Authority,
    tls: Tls,
    api: ApiTls,
    pem: watch::Sender<Arc<str>>,
    stopping: CancellationToken,
) {
    let mut trusted = authority.trusted();
    loop {
        let public = trusted.borrow_and_update().public.clone();
        if public != followed {
            tls.replace_bundle(public.members.clone());
            if let Err(error) = api.replace_clients(public.clients.store()) {
                warn!(error = %ErrorChain(&error), "clients are let in by the roots of before");
            }
            pem.send_replace(public.members.to_pem().into());
            if let Err(error) = home.set_public(&public) {
                warn!(error = %ErrorChain(&error), "could not keep the cluster's roots");
            }
            info!(roots = public.members.roots().len(), "trusts other roots now");
            followed = public;
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = trusted.changed() => if changed.is_err() { return },
        }
    }
}
