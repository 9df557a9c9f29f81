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
use crate::identity::{Identity, Serial, WhoMay};
use crate::limits::Limits;
use crate::respond::{self, Body};
use crate::tls::ApiTls;

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
    /// The serial of the certificate that said so, asked about before each request.
    serial: Option<Serial>,
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
        self.serve(stream, Peer { identity, serial: None, address: None }).await;
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
        let (identity, serial) = match certificate.and_then(|der| self.who_may.identify(der)) {
            Some((identity, serial)) => (identity, Some(serial)),
            None => (Identity::anonymous(), None),
        };
        self.serve(stream, Peer { identity, serial, address: Some(address) }).await;
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
        let (who_may, serial) = (self.who_may.clone(), peer.serial.clone());
        let revoked = async move {
            match &serial {
                // Revoked before it was shown: each request is told so.
                Some(serial) if !who_may.is_revoked(serial) => who_may.until_revoked(serial).await,
                _ => std::future::pending().await,
            }
        };
        let service =
            service_fn(move |request| server.clone().answer(request, peer.clone()).map(Ok::<_, Infallible>));
        let mut connection = pin!(http.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(self.limits.stop_time_max, connection).await.unwrap_or(Ok(()))
            }
            () = revoked => {
                info!(user, peer = ?address, "the certificate of an open connection was revoked, closing it");
                connection.as_mut().graceful_shutdown();
                // An answer on its way may come to its end; a watch does not.
                timeout(self.limits.revoked_time_max, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            debug!(peer = ?address, %error, "connection ended");
        }
    }

    /// Boxed, because the compiler cannot see through the nesting that a task without is Send.
    fn answer(self, request: Request<Incoming>, peer: Peer) -> BoxFuture<'static, Response<Body>> {
        async move {
            if peer.serial.as_ref().is_some_and(|serial| self.who_may.is_revoked(serial)) {
                return respond::unauthorized(
                    "this certificate was revoked; ask an administrator for a new one",
                );
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

    /// Without descriptors `accept` fails at once and for a while: trying on is all that helps, slowly.
    async fn wait_after(&self, error: io::Error) {
        warn!(%error, "could not accept a connection to the API, trying on");
        tokio::select! {
            () = self.stopping.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}
