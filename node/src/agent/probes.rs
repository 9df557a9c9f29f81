//! Probes and hooks of a container: programs inside of it, and requests from the node to the pod's address.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, HTTPHeader, LifecycleHandler, Probe,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use skein_runtime::{ContainerId, Engine};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// As many as upstream follows, of these kinds.
const REDIRECTS_MAX: usize = 10;
const FOLLOWED: [u16; 5] = [301, 302, 303, 307, 308];
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A container that is asked or told something.
pub(super) struct Target {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) id: ContainerId,
    pub(super) container: Container,
    /// The pod's.
    pub(super) address: Option<String>,
}

/// Why a probe or hook failed.
type Done = Result<(), String>;

/// Whether the probe succeeds within `limit`; with a warning, if somebody should look at what it asks.
pub(super) async fn probe(target: &Target, probe: &Probe, limit: Duration) -> Result<Option<String>, String> {
    let probing = async {
        if let Some(action) = &probe.exec {
            return exec(target, action, limit).await.map(|()| None);
        }
        if let Some(action) = &probe.http_get {
            let (status, leads_away) = http_get(target, action).await?;
            // 200 to 399, as the API reference has it.
            let good = status.is_success() || status.is_redirection();
            return if good {
                Ok(leads_away)
            } else {
                Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
            };
        }
        if let Some(action) = &probe.tcp_socket {
            connect(target, action.host.as_deref(), &action.port).await?;
            return Ok(None);
        }
        match &probe.grpc {
            Some(action) => grpc(target, action).await.map(|()| None),
            None => Err("it says nothing that could be done".to_owned()),
        }
    };
    within(limit, probing).await
}

/// Does what a hook says within `limit`.
pub(super) async fn hook(target: &Target, handler: &LifecycleHandler, limit: Duration) -> Done {
    let doing = async {
        if let Some(action) = &handler.exec {
            return exec(target, action, limit).await;
        }
        if let Some(action) = &handler.http_get {
            // Any answer will do, as upstream has it: the request is the message.
            return http_get(target, action).await.map(drop);
        }
        match &handler.sleep {
            Some(action) => {
                let seconds = u64::try_from(action.seconds).unwrap_or(0);
                // Being told to sleep longer than there is time for is no failure.
                let rest = Duration::from_secs(seconds).min(limit.saturating_sub(Duration::from_millis(1)));
                tokio::time::sleep(rest).await;
                Ok(())
            }
            None => Err("hooks are exec, httpGet or sleep; tcpSocket never did anything".to_owned()),
        }
    };
    within(limit, doing).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(format!("it took longer than {limit:?}")))
}

async fn exec(target: &Target, action: &ExecAction, limit: Duration) -> Done {
    let command = action.command.as_deref().unwrap_or_default();
    let ran = target.engine.exec(&target.id, command, limit).await.map_err(|error| error.to_string())?;
    if ran.code == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.output);
    let said = said.trim().chars().take(200).collect::<String>();
    Err(format!("{command:?} ended with {}: {said}", ran.code))
}

async fn connect(target: &Target, host: Option<&str>, port: &IntOrString) -> Result<TcpStream, String> {
    let host = host.filter(|host| !host.is_empty()).or(target.address.as_deref());
    let host = host.ok_or("the pod has no address")?;
    let port = number(port, &target.container).ok_or("the container has no such port")?;
    TcpStream::connect((host, port)).await.map_err(|error| format!("{host} port {port}: {error}"))
}

/// What is answered in the end, and a warning if that leads to another host: nobody follows there.
async fn http_get(target: &Target, get: &HTTPGetAction) -> Result<(StatusCode, Option<String>), String> {
    let host = get.host.as_deref().filter(|host| !host.is_empty()).or(target.address.as_deref());
    let host = host.ok_or("the pod has no address")?.to_owned();
    let port = number(&get.port, &target.container).ok_or("the container has no such port")?;
    let path = get.path.as_deref().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut place = Place { secure: get.scheme.as_deref() == Some("HTTPS"), host, port, path };
    for _ in 0..=REDIRECTS_MAX {
        let stream = TcpStream::connect((place.host.as_str(), place.port)).await;
        let stream = stream.map_err(|error| format!("{} port {}: {error}", place.host, place.port))?;
        let (status, location) = match place.secure {
            true => ask(secured(stream, &[]).await?, get, &place).await?,
            false => ask(stream, get, &place).await?,
        };
        let Some(location) = location.filter(|_| FOLLOWED.contains(&status.as_u16())) else {
            return Ok((status, None));
        };
        match place.follow(&location) {
            Some(next) if next.host == place.host => place = next,
            _ => return Ok((status, Some(format!("it is redirected to {location:?}, which is not asked")))),
        }
    }
    Err(format!("stopped after {REDIRECTS_MAX} redirects"))
}

/// What is asked by HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    secure: bool,
    host: String,
    port: u16,
    /// With a query, if it has one.
    path: String,
}

impl Place {
    /// Where a `Location` leads from here; `None` if nobody can say.
    fn follow(&self, location: &str) -> Option<Place> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(Place { path: location.to_owned(), ..self.clone() });
        }
        let absolute = match location.strip_prefix("//") {
            Some(rest) => format!("{}://{rest}", if self.secure { "https" } else { "http" }),
            None => location.to_owned(),
        };
        let uri: http::Uri = absolute.parse().ok()?;
        let Some(host) = uri.host().filter(|_| uri.scheme().is_some()) else {
            // Beside what was asked.
            let within = self.path.split('?').next()?.rsplit_once('/')?.0;
            return Some(Place { path: format!("{within}/{location}"), ..self.clone() });
        };
        let secure = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        Some(Place {
            secure,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }

    /// As a `Host` names it.
    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// TLS with whoever answers; `protocols` are offered, the best one first.
async fn secured(stream: TcpStream, protocols: &[&[u8]]) -> Result<TlsStream<TcpStream>, String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let peer = stream.peer_addr().map_err(|error| told(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| told(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let connecting = TlsConnector::from(Arc::new(config)).connect(ServerName::from(peer.ip()), stream);
    connecting.await.map_err(|error| told(&error))
}

/// The answer's status, and where it leads.
async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    get: &HTTPGetAction,
    place: &Place,
) -> Result<(StatusCode, Option<String>), String> {
    let told = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
    tokio::spawn(connection);
    let (mut request, host) = (http::Request::get(&place.path), place.authority());
    let named = |name: &str| {
        let same = |header: &&HTTPHeader| header.name.eq_ignore_ascii_case(name);
        get.http_headers.iter().flatten().find(same).is_some()
    };
    for (name, value) in [("host", &*host), ("user-agent", "kube-probe/skein"), ("accept", "*/*")] {
        if !named(name) {
            request = request.header(name, value);
        }
    }
    for header in get.http_headers.iter().flatten() {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(told)?;
    let location = answer.headers().get(http::header::LOCATION).and_then(|location| location.to_str().ok());
    Ok((answer.status(), location.map(str::to_owned)))
}

/// Certificates of pods are their own matter: a probe asks whether somebody answers.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Whose key it is does not count, so neither does what it signs: some keys (P-521, RSA of 1024 bits) could not be
        // read here.
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        use rustls::SignatureScheme::*;
        vec![
            ECDSA_NISTP256_SHA256,
            ECDSA_NISTP384_SHA384,
            ECDSA_NISTP521_SHA512,
            ED25519,
            RSA_PSS_SHA256,
            RSA_PSS_SHA384,
            RSA_PSS_SHA512,
            RSA_PKCS1_SHA256,
            RSA_PKCS1_SHA384,
            RSA_PKCS1_SHA512,
            RSA_PKCS1_SHA1,
            ECDSA_SHA1_Legacy,
        ]
    }
}

/// Asks `grpc.health.v1.Health/Check`.
///
/// Source: gRPC over HTTP/2; the health checking protocol. Both messages are short enough to write by hand.
async fn grpc(target: &Target, action: &GRPCAction) -> Done {
    let stream = connect(target, None, &IntOrString::Int(action.port)).await?;
    let peer = stream.peer_addr().map_err(|error| error.to_string())?.to_string();
    if action.mode.as_deref() == Some("TLS") {
        return check(secured(stream, &[b"h2"]).await?, action, &peer).await;
    }
    check(stream, action, &peer).await
}

async fn check(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    action: &GRPCAction,
    host: &str,
) -> Done {
    let told = |error: hyper::Error| error.to_string();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(told)?;
    tokio::spawn(connection);
    let message = health_request(action.service.as_deref().unwrap_or_default());
    let request = http::Request::post(format!("http://{host}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(message)))
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(told)?;
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    if is_serving(&body) { Ok(()) } else { Err("it does not say SERVING".to_owned()) }
}

/// A message behind its length: field 1, the service's name.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut len = service.len();
        while len >= 0x80 {
            message.push(len as u8 | 0x80);
            len >>= 7;
        }
        message.push(len as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

/// The only field of the answer, 1, holds 1.
fn is_serving(body: &[u8]) -> bool {
    body.get(5..7) == Some(&[0x08, 0x01])
}

fn number(port: &IntOrString, container: &Container) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name));
            u16::try_from(named?.container_port).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::SystemTime;

    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use skein_runtime::{Behaviour, Fake, PodUid};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    fn target() -> Target {
        let pod: PodUid = "a".parse().unwrap();
        Target {
            engine: Arc::new(Fake::new(|| SystemTime::UNIX_EPOCH, |_| Behaviour::Run)),
            id: ContainerId::new(pod, "main", 0).unwrap(),
            container: Container::default(),
            address: Some("127.0.0.1".to_owned()),
        }
    }

    async fn listener() -> (TcpListener, i32) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().into();
        (listener, port)
    }

    fn asking(change: impl FnOnce(&mut Probe)) -> Probe {
        let mut probe = Probe::default();
        change(&mut probe);
        probe
    }

    #[tokio::test]
    async fn a_probe_by_https_asks_whoever_answers() {
        let (listener, port) = listener().await;
        let key = rcgen::KeyPair::generate().unwrap();
        // Of nobody the node knows, for a name that nobody asks for.
        let certificate =
            rcgen::CertificateParams::new(vec!["pod.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let service = service_fn(async |request: http::Request<Incoming>| {
                    let code = if request.uri().path() == "/healthy" { 204 } else { 503 };
                    Ok::<_, Infallible>(
                        http::Response::builder().status(code).body(Empty::<Bytes>::new()).unwrap(),
                    )
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = serving.await;
            }
        });
        let get = |scheme: &str, path: &str| {
            let action = HTTPGetAction {
                scheme: Some(scheme.to_owned()),
                path: Some(path.to_owned()),
                port: IntOrString::Int(port),
                ..HTTPGetAction::default()
            };
            asking(|probe| probe.http_get = Some(action))
        };
        let limit = Duration::from_secs(20);
        assert_eq!(probe(&target(), &get("HTTPS", "/healthy"), limit).await, Ok(None));
        let sick = probe(&target(), &get("HTTPS", "/sick"), limit).await;
        assert!(sick.is_err_and(|reason| reason.contains("503")));
        assert!(probe(&target(), &get("HTTP", "/healthy"), limit).await.is_err());
    }

    #[test]
    fn redirects_lead_where_browsers_would_go() {
        let from =
            |path: &str| Place { secure: false, host: "10.0.0.1".into(), port: 8080, path: path.into() };
        let here = |path: &str| Some(from(path));
        let follow = |location: &str| from("/a/b?c").follow(location);
        assert_eq!(follow("/login?next=x"), here("/login?next=x"));
        assert_eq!(follow("other"), here("/a/other"));
        assert_eq!(follow("http://10.0.0.1:8080/x"), here("/x"));
        let elsewhere =
            |secure, host: &str, port| Some(Place { secure, host: host.into(), port, path: "/".into() });
        assert_eq!(follow("https://10.0.0.1"), elsewhere(true, "10.0.0.1", 443));
        assert_eq!(follow("http://example.com"), elsewhere(false, "example.com", 80));
        assert_eq!(follow("//example.com:81/"), elsewhere(false, "example.com", 81));
        assert_eq!(follow("https://[fd00::1]:8443/"), elsewhere(true, "fd00::1", 8443));
        assert_eq!(elsewhere(true, "fd00::1", 8443).unwrap().authority(), "[fd00::1]:8443");
        assert_eq!(follow("ftp://10.0.0.1/"), None);
    }

    #[tokio::test]
    async fn a_probe_follows_redirects_on_its_host_and_warns_of_others() {
        let (listener, port) = listener().await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(async |request: http::Request<Incoming>| {
                    let answer = http::Response::builder();
                    let answer = match request.uri().path() {
                        "/" | "/start" => answer.status(302).header("location", "/end"),
                        "/sick" => answer.status(302).header("location", "gone"),
                        "/away" => answer.status(301).header("location", "http://192.0.2.1/"),
                        "/round" => answer.status(307).header("location", "/round"),
                        "/end" => answer.status(200),
                        _ => answer.status(404),
                    };
                    Ok::<_, Infallible>(answer.body(Empty::<Bytes>::new()).unwrap())
                });
                let builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        let asked = async |path: Option<&str>| {
            let path = path.map(str::to_owned);
            let action = HTTPGetAction { path, port: IntOrString::Int(port), ..HTTPGetAction::default() };
            let asked = asking(|probe| probe.http_get = Some(action));
            probe(&target(), &asked, Duration::from_secs(20)).await
        };
        // Without a slash it is below the root, as upstream has it.
        for path in [None, Some(""), Some("/start"), Some("start"), Some("end")] {
            assert_eq!(asked(path).await, Ok(None), "{path:?}");
        }
        assert_eq!(asked(Some("/sick")).await, Err("HTTP probe failed with statuscode: 404".to_owned()));
        assert!(asked(Some("/away")).await.unwrap().unwrap().contains("http://192.0.2.1/"));
        assert_eq!(asked(Some("/round")).await, Err("stopped after 10 redirects".to_owned()));
    }

    #[tokio::test]
    async fn a_probe_by_grpc_believes_serving_alone() {
        let (listener, port) = listener().await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(async |request: http::Request<Incoming>| {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    let state = if asked == health_request("well") { 1 } else { 2 };
                    Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(vec![
                        0, 0, 0, 0, 2, 8, state,
                    ]))))
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        let ask = |service: &str| {
            let action = GRPCAction { port, service: Some(service.to_owned()), mode: None };
            asking(|probe| probe.grpc = Some(action))
        };
        let limit = Duration::from_secs(20);
        assert_eq!(probe(&target(), &ask("well"), limit).await, Ok(None));
        assert!(probe(&target(), &ask("sick"), limit).await.is_err());
    }

    #[test]
    fn a_health_request_is_framed_as_grpc_has_it() {
        assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(&health_request(&"x".repeat(200))[5..8], [0x0a, 0xc8, 0x01]);
        assert!(is_serving(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!is_serving(&[0, 0, 0, 0, 2, 8, 2]) && !is_serving(&[0, 0, 0, 0, 0]) && !is_serving(b""));
    }
}
