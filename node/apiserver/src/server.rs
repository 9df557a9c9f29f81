//! Connections: accepting, TLS, who is at the other end, HTTP, and stopping.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use skein_api::status::{Reason, Status};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::api::{Api, Settings};
use crate::cluster::Cluster;
use crate::door::{Door, Full, Place};
use crate::identity::{Identity, Shown, Standing, Unconfirmed, WhoMay};
use crate::limits::Limits;
use crate::respond::{self, Body};
use crate::tls::ApiTls;

/// When to come back with a certificate that is unknown here.
const UNKNOWN_RETRY_SECONDS: u32 = 2;

/// The longest time after which it is looked whether a certificate has expired.
const EXPIRY_LOOK_MAX: Duration = Duration::from_secs(60 * 60);

/// When to come back where there is no place for one more connection.
const FULL_RETRY_SECONDS: u32 = 1;

/// What a server is made of.
pub struct Config {
    /// The certificate and the clients' roots.
    pub tls: ApiTls,
    /// Who the clients are.
    pub who_may: Arc<dyn WhoMay>,
    /// What the API says of this cluster.
    pub settings: Settings,
    /// The bounds on clients.
    pub limits: Limits,
}

/// The API of one node. Cheap to clone; all clones are one server.
#[derive(Clone)]
pub struct Server {
    api: Arc<Api>,
    tls: ApiTls,
    who_may: Arc<dyn WhoMay>,
    limits: Limits,
    door: Door,
    running: TaskTracker,
    stopping: CancellationToken,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
struct Peer {
    identity: Identity,
    /// The certificate that said so, asked about before each request.
    shown: Option<Shown>,
    address: Option<SocketAddr>,
    /// Absent where the connection does not come by the network.
    place: Option<Arc<Place>>,
    requests: Requests,
}

/// How many requests of a connection are under way; `None` before the first one.
#[derive(Clone, Default)]
struct Requests(Arc<watch::Sender<Option<usize>>>);

/// One request under way, up to the last byte of its answer.
struct UnderWay(Requests);

impl Requests {
    fn begin(&self) -> UnderWay {
        self.0.send_modify(|count| *count = Some(count.unwrap_or(0) + 1));
        UnderWay(self.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count = count.map(|count| count - 1));
    }
}

impl Server {
    /// A server over `cluster` that stops when `stopping` is cancelled.
    pub fn new(config: Config, cluster: Arc<dyn Cluster>, stopping: CancellationToken) -> Self {
        let Config { tls, who_may, settings, limits } = config;
        Server {
            api: Arc::new(Api::new(cluster, settings, limits.clone(), stopping.clone())),
            tls,
            who_may,
            door: Door::new(&limits),
            limits,
            running: TaskTracker::new(),
            stopping,
        }
    }

    /// What answers the requests, for callers in this process.
    pub fn api(&self) -> &Arc<Api> {
        &self.api
    }

    /// Serves HTTPS on `listener` until the server stops and its requests have ended, or have had
    /// [`Limits::stop_time_max`] for it.
    pub async fn run(&self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stopping.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let server = self.clone();
                    self.running.spawn(async move { server.serve_tls(stream, address).await });
                }
                Err(error) => self.wait_after(error).await,
            }
        }
        drop(listener);
        self.running.close();
        self.running.wait().await;
    }

    /// Serves HTTP without TLS over one accepted stream, whose other end is known to be `identity`:
    /// how this machine's own command line speaks to its daemon. Returns when the stream ends.
    pub async fn serve_stream<S>(&self, stream: S, identity: Identity)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let requests = Requests::default();
        self.serve(
            stream,
            Peer { identity, shown: None, address: None, place: None, requests },
            Instant::now(),
        )
        .await;
    }

    async fn serve_tls(&self, stream: TcpStream, address: SocketAddr) {
        let accepted = Instant::now();
        let place = Arc::new(self.door.enter(address.ip()));
        // A watch event is small and waited for.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(peer = %address, %error, "connection lost before its handshake");
            return;
        }
        let acceptor = TlsAcceptor::from(self.tls.current());
        let handshake = timeout_at(accepted + self.limits.header_time_max, acceptor.accept(stream));
        let shaken = tokio::select! {
            biased;
            () = place.until_pushed_out() => return debug!(peer = %address, "made room for a newer connection"),
            shaken = handshake => shaken,
        };
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(peer = %address, %error, "TLS handshake failed"),
            Err(_) => return debug!(peer = %address, "TLS handshake took too long"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let (identity, shown) = match certificate.and_then(Identity::of_certificate) {
            Some((identity, shown)) => (identity, Some(shown)),
            None => (Identity::anonymous(), None),
        };
        let (place, requests) = (Some(place), Requests::default());
        self.serve(stream, Peer { identity, shown, address: Some(address), place, requests }, accepted).await;
    }

    async fn serve<S>(&self, stream: S, peer: Peer, accepted: Instant)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut http = auto::Builder::new(TokioExecutor::new());
        // The first header has its time from `overdue`; between two requests this one counts as well.
        http.http1().timer(TokioTimer::new()).header_read_timeout(self.limits.idle_time_max);
        http.http2()
            .timer(TokioTimer::new())
            // Clients of many controllers put all their watches on one connection.
            .max_concurrent_streams(250)
            .max_header_list_size(64 << 10)
            // A peer that lost its power says nothing more; without this its watches stay for ever.
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .keep_alive_timeout(Duration::from_secs(20));
        let server = self.clone();
        let (address, user) = (peer.address, peer.identity.user.clone());
        let (who_may, shown) = (self.who_may.clone(), peer.shown.clone());
        let expired = self.clone().expired(peer.shown.clone());
        let ended = async move {
            match &shown {
                // Revoked before it was shown: each request is told so.
                Some(shown) if who_may.standing(shown) != Standing::Revoked => {
                    who_may.until_ended(shown).await
                }
                _ => std::future::pending().await,
            }
        };
        let mut overdue = pin!(self.overdue(accepted, peer.place.clone(), peer.requests.clone()));
        let service =
            service_fn(move |request| server.clone().answer(request, peer.clone()).map(Ok::<_, Infallible>));
        let mut connection = pin!(http.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let served = tokio::select! {
            served = connection.as_mut() => served,
            overdue = overdue.as_mut() => {
                debug!(peer = address.map(display), overdue, "closing a connection");
                connection.as_mut().graceful_shutdown();
                timeout(self.limits.overdue_time_max, connection).await.unwrap_or(Ok(()))
            }
            () = self.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(self.limits.stop_time_max, connection).await.unwrap_or(Ok(()))
            }
            () = expired => {
                debug!(user, peer = address.map(display), "the certificate of an open connection has expired, closing it");
                connection.as_mut().graceful_shutdown();
                timeout(self.limits.revoked_time_max, connection).await.unwrap_or(Ok(()))
            }
            () = ended => {
                info!(user, peer = address.map(display), "the certificate of an open connection counts no more, closing it");
                connection.as_mut().graceful_shutdown();
                // An answer on its way may come to its end; a watch does not.
                timeout(self.limits.revoked_time_max, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = served {
            debug!(peer = address.map(display), %error, "connection ended");
        }
    }

    /// Ends with the certificate: a watch must not outlive it.
    async fn expired(self, shown: Option<Shown>) {
        let Some(shown) = shown else { return std::future::pending().await };
        while let Some(left) = shown.until.checked_sub(self.tls.now().unwrap_or(0)) {
            // Where it was looked at last the clock may have been set meanwhile.
            tokio::time::sleep(Duration::from_secs(left.saturating_add(1)).min(EXPIRY_LOOK_MAX)).await;
        }
    }

    /// Ends when the connection has to, and says why. One that does not come by the network never has to.
    async fn overdue(
        &self,
        accepted: Instant,
        place: Option<Arc<Place>>,
        requests: Requests,
    ) -> &'static str {
        let Some(place) = place else { return std::future::pending().await };
        let limits = &self.limits;
        let stranger_for_too_long = async {
            sleep_until(accepted + limits.stranger_time_max).await;
            if place.is_known() {
                std::future::pending::<()>().await;
            }
        };
        let mut under_way = requests.0.subscribe();
        let silent = async {
            let first = under_way.wait_for(Option::is_some);
            if timeout_at(accepted + limits.header_time_max, first).await.is_err() {
                return "it asked for nothing";
            }
            loop {
                // Neither fails: `requests` has the sender.
                let _ = under_way.wait_for(|count| *count == Some(0)).await;
                let max = if place.is_known() { limits.idle_time_max } else { limits.header_time_max };
                if timeout(max, under_way.wait_for(|count| *count != Some(0))).await.is_err() {
                    return "it was idle";
                }
            }
        };
        tokio::select! {
            () = place.until_pushed_out() => "a newer one needs its place",
            () = stranger_for_too_long => "nobody is known to be at its other end",
            why = silent => why,
        }
    }

    /// Boxed, because the compiler cannot see through the nesting that a task without is Send.
    fn answer(self, request: Request<Incoming>, peer: Peer) -> BoxFuture<'static, Response<Body>> {
        async move {
            let under_way = peer.requests.begin();
            let answer = self.answer_to(request, &peer).await;
            answer.map(|body| respond::holding(body, under_way))
        }
        .boxed()
    }

    async fn answer_to(&self, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        if let Err(refused) = self.admit(peer).await {
            return respond::status(&refused);
        }
        // Anonymous clients are many: each address counts for itself.
        let client = match peer.address {
            Some(address) if !peer.identity.may_everything() => address.ip().to_string(),
            _ => peer.identity.user.clone(),
        };
        self.api.answer(request.map(respond::body_from), &peer.identity, &client).await
    }

    /// Whether the certificate that was shown counts. One that is unknown here is asked about elsewhere first: a
    /// new one works on every node at once, however far this one is behind.
    async fn admit(&self, peer: &Peer) -> Result<(), Status> {
        let (Some(shown), Some(address)) = (&peer.shown, peer.address) else { return Ok(()) };
        let mut standing = Ok(self.who_may.standing(shown));
        if standing == Ok(Standing::Unknown) {
            standing = self.who_may.confirm(shown, address.ip()).await;
        }
        let unauthorized = |why: &str| Err(Status::new(Reason::Unauthorized, why));
        if self.tls.now().is_some_and(|now| now > shown.until) {
            return unauthorized("this certificate has expired; ask an administrator for a new one");
        }
        match standing {
            Ok(Standing::Good) => match peer.place.as_ref().map(|place| place.make_known(shown.sha256)) {
                None | Some(Ok(())) => Ok(()),
                Some(Err(Full { max })) => Err(Status::too_many_requests(
                    format!("{max} connections are open already; close some, or ask on one of them"),
                    FULL_RETRY_SECONDS,
                )),
            },
            Ok(Standing::Revoked) => {
                unauthorized("this certificate was revoked; ask an administrator for a new one")
            }
            Ok(Standing::Unknown) => unauthorized(
                "this certificate is not among those that the cluster has given out; ask an administrator for a new one",
            ),
            Err(Unconfirmed::TooOften) => Err(Status::too_many_requests(
                "too many certificates that are unknown here come from this address; try again later",
                UNKNOWN_RETRY_SECONDS,
            )),
            Err(Unconfirmed::NoMajority(error)) => Err(Status::unavailable(format!(
                "this certificate is unknown here, and nobody can confirm it: {error}"
            ))),
        }
    }

    /// Without descriptors `accept` fails at once and for a while: trying on is all that helps, slowly.
    async fn wait_after(&self, error: io::Error) {
        warn!(%error, "could not accept a connection to the API, trying on");
        tokio::select! {
            () = self.stopping.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}
