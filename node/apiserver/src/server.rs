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
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::api::{Api, Settings};
use crate::cluster::Cluster;
use crate::identity::{Identity, Shown, Standing, Unconfirmed, WhoMay};
use crate::limits::Limits;
use crate::respond::{self, Body};
use crate::tls::ApiTls;

/// When to come back with a certificate that is unknown here.
const UNKNOWN_RETRY_SECONDS: u32 = 2;

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
    connections: Arc<Semaphore>,
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
}

impl Server {
    /// A server over `cluster` that stops when `stopping` is cancelled.
    pub fn new(config: Config, cluster: Arc<dyn Cluster>, stopping: CancellationToken) -> Self {
        let Config { tls, who_may, settings, limits } = config;
        Server {
            api: Arc::new(Api::new(cluster, settings, limits.clone(), stopping.clone())),
            tls,
            who_may,
            connections: Arc::new(Semaphore::new(limits.connections_max)),
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
            // A connection beyond the limit is not accepted, so that it costs no descriptor.
            let permit = tokio::select! {
                biased;
                () = self.stopping.cancelled() => break,
                permit = self.connections.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            };
            let accepted = tokio::select! {
                biased;
                () = self.stopping.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let server = self.clone();
                    self.running.spawn(async move {
                        server.serve_tls(stream, address).await;
                        drop(permit);
                    });
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
        self.serve(stream, Peer { identity, shown: None, address: None }).await;
    }

    async fn serve_tls(&self, stream: TcpStream, address: SocketAddr) {
        // A watch event is small and waited for.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(peer = %address, %error, "connection lost before its handshake");
            return;
        }
        let acceptor = TlsAcceptor::from(self.tls.current());
        let stream = match timeout(self.limits.header_time_max, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(peer = %address, %error, "TLS handshake failed"),
            Err(_) => return debug!(peer = %address, "TLS handshake took too long"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let (identity, shown) = match certificate.and_then(Identity::of_certificate) {
            Some((identity, shown)) => (identity, Some(shown)),
            None => (Identity::anonymous(), None),
        };
        self.serve(stream, Peer { identity, shown, address: Some(address) }).await;
    }

    async fn serve<S>(&self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(self.limits.header_time_max);
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
        let ended = async move {
            match &shown {
                // Revoked before it was shown: each request is told so.
                Some(shown) if who_may.standing(shown) != Standing::Revoked => {
                    who_may.until_ended(shown).await
                }
                _ => std::future::pending().await,
            }
        };
        let service =
            service_fn(move |request| server.clone().answer(request, peer.clone()).map(Ok::<_, Infallible>));
        let mut connection = pin!(http.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(self.limits.stop_time_max, connection).await.unwrap_or(Ok(()))
            }
            () = ended => {
                info!(user, peer = ?address, "the certificate of an open connection counts no more, closing it");
                connection.as_mut().graceful_shutdown();
                // An answer on its way may come to its end; a watch does not.
                timeout(self.limits.revoked_time_max, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = served {
            debug!(peer = ?address, %error, "connection ended");
        }
    }

    /// Boxed, because the compiler cannot see through the nesting that a task without is Send.
    fn answer(self, request: Request<Incoming>, peer: Peer) -> BoxFuture<'static, Response<Body>> {
        async move {
            if let Err(refused) = self.admit(&peer).await {
                return respond::status(&refused);
            }
            // Anonymous clients are many: each address counts for itself.
            let client = match peer.address {
                Some(address) if !peer.identity.may_everything() => address.ip().to_string(),
                _ => peer.identity.user.clone(),
            };
            self.api.answer(request.map(respond::body_from), &peer.identity, &client).await
        }
        .boxed()
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
        match standing {
            Ok(Standing::Good) => Ok(()),
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
