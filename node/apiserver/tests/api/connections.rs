//! Connections over loopback: TLS, who is at the other end, both versions of HTTP, stopping.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};
use skein_apiserver::identity::{Identity, Standing, Unconfirmed};
use skein_apiserver::limits::Limits;
use skein_apiserver::testing::MemoryCluster;
use skein_apiserver::{Body, full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{PATIENCE, PODS};
use crate::served::{Issued, Served};

async fn served() -> Served {
    Served::new(MemoryCluster::with_default_namespace(), Limits::default()).await
}

async fn connect(
    served: &Served,
    client: Option<Issued>,
    alpn: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(served.ca()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match client {
        Some(issued) => config.with_client_auth_cert(vec![issued.certificate], issued.key).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(served.address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream))
        .await
        .expect("a handshake ends in time")
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "127.0.0.1").body(full("")).unwrap()
}

/// One request over HTTP/1.1 on a connection of its own.
async fn ask<S>(stream: S, path: &str) -> Result<Response<Incoming>, hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    timeout(PATIENCE, sender.send_request(get(path))).await.expect("an answer comes in time")
}

async fn code(served: &Served, client: Option<Issued>, path: &str) -> u16 {
    let stream = connect(served, client, b"http/1.1").await.unwrap();
    ask(stream, path).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_certificate_says_who_may() {
    let served = served().await;
    assert_eq!(code(&served, Some(served.issue_client("ann", "system:masters")), PODS).await, 200);
    assert_eq!(code(&served, Some(served.issue_client("n1", "system:nodes")), PODS).await, 200);
    assert_eq!(code(&served, Some(served.issue_client("eve", "developers")), PODS).await, 403);
    assert_eq!(code(&served, None, PODS).await, 403);
    assert_eq!(code(&served, None, "/healthz").await, 200);
}

#[tokio::test]
async fn a_certificate_of_another_authority_ends_the_handshake() {
    let (served, other) = (served().await, served().await);
    let foreign = other.issue_client("ann", "system:masters");
    let refused = match connect(&served, Some(foreign), b"http/1.1").await {
        Err(_) => true,
        // In TLS 1.3 the client learns of it with the first answer.
        Ok(stream) => ask(stream, "/healthz").await.is_err(),
    };
    assert!(refused);
}

#[tokio::test]
async fn a_revoked_certificate_is_out_on_connections_that_are_open_already() {
    let served = served().await;
    let client = served.issue_client("ann", "system:masters");
    let certificate = client.certificate.clone();
    let stream = connect(&served, Some(client), b"http/1.1").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let first = sender.send_request(get(PODS)).await.unwrap();
    assert_eq!(first.status(), 200);
    first.into_body().collect().await.unwrap();
    served.record.say(&certificate, Standing::Revoked);
    // The connection ends, or answers this one with a refusal if it comes in between.
    if sender.ready().await.is_ok()
        && let Ok(refused) = sender.send_request(get(PODS)).await
    {
        assert_eq!(refused.status(), 401);
    }
    // A new connection is refused likewise.
    let client = served.issue_client("bob", "system:masters");
    served.record.say(&client.certificate, Standing::Revoked);
    assert_eq!(code(&served, Some(client), PODS).await, 401);
}

#[tokio::test]
async fn a_certificate_that_is_unknown_here_is_asked_about_before_it_is_refused() {
    let served = served().await;
    let ask = async |elsewhere| {
        let client = served.issue_client("ann", "system:masters");
        served.record.say(&client.certificate, Standing::Unknown);
        served.record.elsewhere.lock().unwrap().0 = Some(elsewhere);
        code(&served, Some(client), PODS).await
    };
    assert_eq!(ask(Ok(Standing::Good)).await, 200);
    assert_eq!(ask(Ok(Standing::Revoked)).await, 401);
    assert_eq!(ask(Ok(Standing::Unknown)).await, 401);
    assert_eq!(ask(Err(Unconfirmed::TooOften)).await, 429);
    assert_eq!(ask(Err(Unconfirmed::NoMajority("two of three are gone".into()))).await, 503);
    assert_eq!(served.record.elsewhere.lock().unwrap().1, 5);
    // One that is known is not asked about.
    assert_eq!(code(&served, Some(served.issue_client("bob", "system:masters")), PODS).await, 200);
    assert_eq!(served.record.elsewhere.lock().unwrap().1, 5);
}

#[tokio::test]
async fn a_watch_ends_when_its_certificate_is_revoked_and_those_of_others_go_on() {
    let served = served().await;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let (ann, bob) =
            (served.issue_client("ann", "system:masters"), served.issue_client("bob", "system:masters"));
        let certificate = ann.certificate.clone();
        let path = format!("{PODS}?watch=1&resourceVersion=1");
        let ended = watched(&served, ann, alpn, &path).await;
        let goes_on = watched(&served, bob, alpn, &path).await;
        served.record.say(&certificate, Standing::Revoked);
        timeout(PATIENCE, ended.into_body().collect()).await.expect("the watch ends").ok();
        let goes_on = timeout(Duration::from_millis(200), goes_on.into_body().collect()).await;
        assert!(goes_on.is_err(), "nobody took that one back");
    }
}

/// The answer to a watch on a connection of its own.
async fn watched(served: &Served, client: Issued, alpn: &[u8], path: &str) -> Response<Incoming> {
    let stream = connect(served, Some(client), alpn).await.unwrap();
    if alpn != b"h2" {
        return ask(stream, path).await.unwrap();
    }
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(get(&format!("https://127.0.0.1{path}"))).await.unwrap()
}

#[tokio::test]
async fn the_servers_certificate_can_be_replaced_while_it_runs() {
    let served = served().await;
    let shown = |stream: &TlsStream<TcpStream>| -> CertificateDer<'static> {
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let before = shown(&connect(&served, None, b"h2").await.unwrap());
    let (certificate, expect) = served.new_server_certificate();
    served.certificate.replace(certificate);
    let after = shown(&connect(&served, None, b"h2").await.unwrap());
    assert_ne!(before, after);
    assert_eq!(after, expect);
}

#[tokio::test]
async fn the_clients_roots_can_be_replaced_while_it_runs() {
    let (served, other) = (served().await, self::served().await);
    let clients =
        || (served.issue_client("ann", "system:masters"), other.issue_client("bob", "system:masters"));
    let may = async |client| match connect(&served, Some(client), b"http/1.1").await {
        Ok(stream) => ask(stream, PODS).await.is_ok(),
        Err(_) => false,
    };
    let (ours, theirs) = clients();
    assert_eq!((may(ours).await, may(theirs).await), (true, false));
    for (roots, expected) in
        [(vec![served.ca(), other.ca()], (true, true)), (vec![other.ca()], (false, true))]
    {
        let mut store = rustls::RootCertStore::empty();
        store.add_parsable_certificates(roots);
        served.tls.replace_clients(store).unwrap();
        let (ours, theirs) = clients();
        assert_eq!((may(ours).await, may(theirs).await), expected);
    }
}

/// What is refused before its body was read broke off the connection or the stream instead: whoever was
/// still sending never saw why.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_those_who_are_still_sending() {
    let served = served().await;
    let config_maps = "/api/v1/namespaces/default/configmaps";
    for alpn in [&b"http/1.1"[..], b"h2"] {
        for (method, path, bytes, code) in [
            ("PUT", config_maps, 20, 405),
            ("POST", "/api/v1/unicorns", 1 << 20, 404),
            ("POST", "/version", 1 << 20, 405),
            ("POST", config_maps, 4 << 20, 413),
        ] {
            let client = served.issue_client("ann", "system:masters");
            let stream = connect(&served, Some(client), alpn).await.unwrap();
            let request = Request::builder().method(method).uri(format!("https://127.0.0.1{path}"));
            let request = request.body(full("x".repeat(bytes))).unwrap();
            let io = TokioIo::new(stream);
            let answer = if alpn == b"h2" {
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                timeout(PATIENCE, sender.send_request(request)).await
            } else {
                let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                timeout(PATIENCE, sender.send_request(request)).await
            };
            let answer = answer.expect("an answer comes in time").unwrap();
            assert_eq!(answer.status(), code, "{method} {path}");
            let body = timeout(PATIENCE, answer.into_body().collect()).await.expect("a body comes in time");
            let body = body.unwrap_or_else(|error| panic!("{method} {path}: {error}")).to_bytes();
            let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(status["code"], code, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn many_watches_share_one_connection_of_http_2() {
    let served = served().await;
    let stream = connect(&served, Some(served.issue_client("ann", "system:masters")), b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let watch = |number: usize| {
        let mut sender = sender.clone();
        let path = format!("https://127.0.0.1{PODS}?watch=1&timeoutSeconds=600&labelSelector=n%3D{number}");
        async move { sender.send_request(Request::get(path).body(full("")).unwrap()).await.unwrap() }
    };
    let open = timeout(PATIENCE, futures::future::join_all((0..100).map(watch))).await.unwrap();
    assert!(open.iter().all(|response| response.status() == 200));
}

#[tokio::test]
async fn a_stream_of_this_machine_needs_no_certificate() {
    let served = served().await;
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let server = served.server.clone();
    tokio::spawn(async move { server.serve_stream(theirs, Identity::administrator("cli")).await });
    assert_eq!(ask(ours, PODS).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_stopping_server_ends_its_watches_and_returns() {
    let mut served = served().await;
    let stream =
        connect(&served, Some(served.issue_client("ann", "system:masters")), b"http/1.1").await.unwrap();
    let watch = ask(stream, &format!("{PODS}?watch=1&resourceVersion=1")).await.unwrap();
    served.stop.cancel();
    let body = timeout(PATIENCE, watch.into_body().collect()).await.expect("the watch ends");
    assert_eq!(body.unwrap().to_bytes().len(), 0);
    timeout(PATIENCE, served.running.take().unwrap()).await.expect("the server ends").unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn a_client_that_sends_no_header_is_let_go() {
    let limits = Limits { header_time_max: Duration::from_millis(300), ..Limits::default() };
    let served = Served::new(MemoryCluster::with_default_namespace(), limits).await;
    // Says nothing at all, not even TLS.
    let mut mute = TcpStream::connect(served.address).await.unwrap();
    assert_eq!(timeout(PATIENCE, mute.read(&mut [0; 16])).await.expect("the server closes").unwrap_or(0), 0);
    // Says half a header.
    let mut slow = connect(&served, None, b"http/1.1").await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, slow.read_to_end(&mut rest)).await.expect("the server closes").ok();
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{:?}", String::from_utf8_lossy(&rest));
}

/// A connection that had ended its handshake and then said nothing had its place for good.
#[tokio::test]
async fn a_client_that_asks_for_nothing_is_let_go_whatever_it_speaks() {
    let limits = Limits { header_time_max: Duration::from_millis(300), ..Limits::default() };
    let served = Served::new(MemoryCluster::with_default_namespace(), limits).await;
    for known in [false, true] {
        for alpn in [&b"http/1.1"[..], b"h2"] {
            let client = known.then(|| served.issue_client("ann", "system:masters"));
            let mut mute = connect(&served, client.clone(), alpn).await.unwrap();
            let closed = timeout(PATIENCE, mute.read_to_end(&mut Vec::new())).await;
            closed.expect("the server closes").ok();
        }
        // Answers pings, as HTTP/2 wants it, and asks for nothing.
        let client = known.then(|| served.issue_client("ann", "system:masters"));
        let stream = connect(&served, client, b"h2").await.unwrap();
        let (_sender, connection) =
            hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        timeout(PATIENCE, connection).await.expect("the server closes").ok();
    }
}

#[tokio::test]
async fn an_idle_connection_is_let_go_and_one_with_a_watch_stays() {
    let (short, long) = (Duration::from_millis(300), PATIENCE * 10);
    for (known, alpn) in [(false, &b"http/1.1"[..]), (false, b"h2"), (true, b"http/1.1"), (true, b"h2")] {
        let (header_time_max, idle_time_max) = if known { (long, short) } else { (short, long) };
        let limits = Limits { header_time_max, idle_time_max, ..Limits::default() };
        let served = Served::new(MemoryCluster::with_default_namespace(), limits).await;
        let client = || known.then(|| served.issue_client("ann", "system:masters"));
        if known {
            let path = format!("{PODS}?watch=1&resourceVersion=1");
            let watch = watched(&served, client().unwrap(), alpn, &path).await;
            assert!(timeout(short * 3, watch.into_body().collect()).await.is_err(), "the watch goes on");
        }
        let io = TokioIo::new(connect(&served, client(), alpn).await.unwrap());
        let health = get("https://127.0.0.1/healthz");
        // The sender is kept: a client whose sender is gone closes by itself.
        if alpn == b"h2" {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            let ended = tokio::spawn(connection);
            sender.send_request(health).await.unwrap().into_body().collect().await.unwrap();
            timeout(PATIENCE, ended).await.expect("the server closes").unwrap().ok();
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            let ended = tokio::spawn(connection);
            sender.send_request(health).await.unwrap().into_body().collect().await.unwrap();
            timeout(PATIENCE, ended).await.expect("the server closes").unwrap().ok();
        }
    }
}

#[tokio::test]
async fn a_stranger_stays_for_a_while_only_whatever_it_asks() {
    let limits = Limits { stranger_time_max: Duration::from_millis(500), ..Limits::default() };
    let served = Served::new(MemoryCluster::with_default_namespace(), limits).await;
    let asks_on = async |client: Option<Issued>| {
        let stream = connect(&served, client, b"http/1.1").await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        while sender.ready().await.is_ok() {
            match sender.send_request(get("/healthz")).await {
                Ok(answer) => drop(answer.into_body().collect().await),
                Err(_) => return,
            }
        }
    };
    timeout(PATIENCE, asks_on(None)).await.expect("the server closes");
    let known = asks_on(Some(served.issue_client("ann", "system:masters")));
    assert!(timeout(Duration::from_millis(1500), known).await.is_err(), "whoever is known stays");
}

/// Connections without a certificate took all places there were, and nobody else got in.
#[tokio::test]
async fn strangers_keep_nobody_out_and_push_out_nobody_who_is_known() {
    let limits = Limits {
        strangers_max: 8,
        strangers_per_address_max: 4,
        header_time_max: PATIENCE * 10,
        ..Limits::default()
    };
    let served = Served::new(MemoryCluster::with_default_namespace(), limits).await;
    let path = format!("{PODS}?watch=1&resourceVersion=1");
    let watch = watched(&served, served.issue_client("ann", "system:masters"), b"h2", &path).await;
    let mut strangers = Vec::new();
    for number in 0..40 {
        strangers.push(TcpStream::connect(served.address).await.unwrap());
        if number % 2 == 0 {
            strangers.push(connect(&served, None, b"h2").await.unwrap().into_inner().0);
        }
    }
    assert_eq!(code(&served, Some(served.issue_client("bob", "system:masters")), PODS).await, 200);
    assert_eq!(code(&served, None, "/healthz").await, 200);
    let watch = timeout(Duration::from_millis(200), watch.into_body().collect()).await;
    assert!(watch.is_err(), "the watch goes on");
    let ends = strangers.iter_mut().map(async |stranger| stranger.read_to_end(&mut Vec::new()).await);
    let ends = ends.collect::<FuturesUnordered<_>>().take(56).count();
    assert_eq!(timeout(PATIENCE, ends).await, Ok(56), "of 60 strangers 4 may stay");
}

#[tokio::test]
async fn a_certificate_with_all_its_connections_is_told_so_on_one_more() {
    let limits = Limits { connections_per_certificate_max: 1, ..Limits::default() };
    let served = Served::new(MemoryCluster::with_default_namespace(), limits).await;
    let ann = served.issue_client("ann", "system:masters");
    let path = format!("{PODS}?watch=1&resourceVersion=1");
    let watch = watched(&served, ann.clone(), b"http/1.1", &path).await;
    assert_eq!(code(&served, Some(ann.clone()), PODS).await, 429);
    assert_eq!(code(&served, Some(served.issue_client("bob", "system:masters")), PODS).await, 200);
    drop(watch);
    let until_free = async { while code(&served, Some(ann.clone()), PODS).await != 200 {} };
    timeout(PATIENCE, until_free).await.expect("the place is free again");
}

/// A session that was resumed let a certificate in that had expired since.
#[tokio::test]
async fn every_handshake_is_a_full_one() {
    let served = served().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut roots = RootCertStore::empty();
        roots.add(served.ca()).unwrap();
        let client = served.issue_client("ann", "system:masters");
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(vec![client.certificate], client.key)
                .unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        for _ in 0..2 {
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let stream = TcpStream::connect(served.address).await.unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            // Tickets come with the first answer.
            timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("an answer comes").unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full), "{version:?}");
        }
    }
}

#[tokio::test]
async fn a_certificate_that_expires_is_out_on_connections_that_are_open_already() {
    let served = served().await;
    let (client, until) = served.issue_client_until_2200();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let left = |seconds: u64| served.time.ahead_seconds.store(until - now - seconds, Ordering::Relaxed);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(
        connect(&served, Some(client.clone()), b"http/1.1").await.unwrap(),
    ))
    .await
    .unwrap();
    tokio::spawn(connection);
    let answer = sender.send_request(get(PODS)).await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.unwrap();
    left(2);
    let watch = watched(&served, client, b"h2", &format!("{PODS}?watch=1&resourceVersion=1")).await;
    assert_eq!(watch.status(), 200);
    timeout(PATIENCE, watch.into_body().collect()).await.expect("the watch ends").ok();
    let refused = sender.send_request(get(PODS)).await.unwrap();
    assert_eq!(refused.status(), 401);
}
