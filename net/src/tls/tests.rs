//! Who is let in, with real QUIC and TLS on loopback.

use std::time::Duration;

use quinn::VarInt;
use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::ca::{ApiNames, ClusterCa};
use crate::loopback::{Clock, HOUR, Node, calling, client_config, founded, serving, start};

const REFUSED: VarInt = VarInt::from_u32(7);

/// Accepts one connection at `to` and tells the caller who it is taken for: the first server frame.
async fn accept_one(endpoint: quinn::Endpoint) -> Result<Accepted, String> {
    let incoming = endpoint.accept().await.ok_or("closed")?;
    let connection = incoming.await.map_err(|e| e.to_string())?;
    match accepted(&connection) {
        Ok(accepted) => {
            let mut tx = connection.open_uni().await.map_err(|e| e.to_string())?;
            tx.write_all(format!("{accepted:?}").as_bytes()).await.map_err(|e| e.to_string())?;
            tx.finish().map_err(|e| e.to_string())?;
            connection.closed().await;
            Ok(accepted)
        }
        Err(refused) => {
            connection.close(REFUSED, refused.to_string().as_bytes());
            Err(refused.to_string())
        }
    }
}

/// Calls `name` at `to`'s address and waits for the first server frame.
async fn call(
    from: &quinn::Endpoint,
    config: quinn::ClientConfig,
    to: &Node,
    name: &str,
) -> Result<(quinn::Connection, String), String> {
    let served = tokio::spawn(accept_one(to.endpoint.clone()));
    let connecting = from.connect_with(config, to.address, name).map_err(|e| e.to_string())?;
    let connection = match connecting.await {
        Ok(connection) => connection,
        Err(error) => {
            let _ = served.await;
            return Err(error.to_string());
        }
    };
    let answer = async {
        let mut rx = connection.accept_uni().await.map_err(|e| e.to_string())?;
        rx.read_to_end(1024).await.map_err(|e| e.to_string())
    };
    let answer = answer.await?;
    Ok((connection, String::from_utf8(answer).expect("text")))
}

/// One member calls another by its id.
async fn call_member(from: &Node, to: &Node) -> Result<(quinn::Connection, String), String> {
    call(&from.endpoint, from.client_config(), to, &server_name(to.id())).await
}

fn taken_for(node: &Node) -> String {
    format!("{:?}", Accepted::Member(node.id()))
}

#[tokio::test]
async fn nodes_of_one_cluster_know_each_other_by_key() {
    let ca = founded();
    let (a, b) = (Node::of(&ca), Node::of(&ca));
    let (connection, answer) = call_member(&a, &b).await.expect("strangers with good certificates");
    assert_eq!(answer, taken_for(&a));
    assert_eq!(peer(&connection), Some(b.id()));
    assert_eq!(peer_chain(&connection).expect("shown").len(), 3, "the root is sent along");
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_both_ways() {
    let (a, b) = (Node::of(&founded()), Node::of(&founded()));
    let error = call_member(&a, &b).await.expect_err("the caller refuses");
    assert!(error.contains("UnknownIssuer"), "{error}");
    a.trust.set(b.id(), Standing::Member);
    let error = call_member(&a, &b).await.expect_err("the called one refuses");
    assert!(error.contains("aborted by peer"), "{error}");
}

#[tokio::test]
async fn member_traffic_without_a_certificate_is_refused() {
    let ca = founded();
    let b = Node::of(&ca);
    let clock = Clock::at(Duration::ZERO).provider();
    let mut anonymous = rustls::ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(ca.public().members.store())
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![MEMBER_ALPN.to_vec()];
    let error = call(&calling(), client_config(Arc::new(anonymous)), &b, &server_name(b.id()))
        .await
        .expect_err("no certificate");
    assert!(error.contains("member traffic without a certificate"), "{error}");
}

#[tokio::test]
async fn a_removed_node_is_refused_both_ways_although_its_certificate_is_good() {
    let ca = founded();
    let (a, b) = (Node::of(&ca), Node::of(&ca));
    b.trust.set(a.id(), Standing::Removed);
    let error = call_member(&a, &b).await.expect_err("as a caller");
    assert!(error.contains("aborted by peer"), "{error}");
    let error = call_member(&b, &a).await.expect_err("as the called one");
    assert!(error.contains("Revoked"), "{error}");
}

#[tokio::test]
async fn a_removed_node_cannot_resume_an_old_session() {
    let ca = founded();
    let (a, b) = (Node::of(&ca), Node::of(&ca));
    let (connection, _) = call_member(&a, &b).await.expect("a member");
    connection.close(VarInt::from_u32(0), b"");
    b.trust.set(a.id(), Standing::Removed);
    call_member(&a, &b).await.expect_err("judged again");
}

#[tokio::test]
async fn an_expired_certificate_of_a_known_member_is_accepted() {
    let ca = founded();
    let a_year = 365 * 24 * HOUR;
    let (a, b) = (Node::at(&ca, a_year), Node::at(&ca, a_year));
    a.trust.set(b.id(), Standing::Member);
    b.trust.set(a.id(), Standing::Member);
    let (_, answer) = call_member(&a, &b).await.expect("the key decides");
    assert_eq!(answer, taken_for(&a));
}

#[tokio::test]
async fn an_expired_certificate_of_an_unknown_node_is_refused() {
    let ca = founded();
    let (a, b) = (Node::at(&ca, 25 * HOUR), Node::at(&ca, 25 * HOUR));
    let error = call_member(&a, &b).await.expect_err("the caller does not know it");
    assert!(error.contains("expired"), "{error}");
    a.trust.set(b.id(), Standing::Member);
    let error = call_member(&a, &b).await.expect_err("the called one does not know it");
    assert!(error.contains("aborted by peer"), "{error}");
}

#[tokio::test]
async fn a_member_cannot_pass_for_another_one() {
    let ca = founded();
    let (a, b, c) = (Node::of(&ca), Node::of(&ca), Node::of(&ca));
    let error = call(&a.endpoint, a.client_config(), &b, &server_name(c.id())).await.expect_err("b is not c");
    assert!(error.contains("NotValidForName"), "{error}");
}

#[tokio::test]
async fn a_stolen_certificate_without_its_key_is_refused() {
    let ca = founded();
    let (a, b) = (Node::of(&ca), Node::of(&ca));
    b.trust.set(a.id(), Standing::Member);
    let chain = Chain::new(a.tls.certificates.current().cert.clone()).expect("a chain");
    let thief = Identity::ephemeral().expect("a key");
    let key = rustls::crypto::ring::sign::any_supported_type(&thief.private_key()).expect("a key");
    let stolen = CertifiedKey::new(chain.certificates().to_vec(), key);
    let mut config = rustls::ClientConfig::clone(&a.tls.client_config());
    config.client_auth_cert_resolver = Arc::new(Certificates { current: RwLock::new(Arc::new(stolen)) });
    let error = call(&a.endpoint, client_config(Arc::new(config)), &b, &server_name(b.id()))
        .await
        .expect_err("the signature of the handshake is another key's");
    assert!(error.contains("aborted by peer"), "{error}");
}

#[tokio::test]
async fn an_api_certificate_does_not_make_a_member() {
    let ca = founded();
    let identity = Identity::ephemeral().expect("a key");
    let csr = identity.csr().expect("a request");
    let chain = ca.issue_api_server(&csr, &ApiNames::default(), start()).expect("issued");
    let (a, b) = (Node::with(identity, &chain, &ca, Duration::ZERO), Node::of(&ca));
    let error = call_member(&a, &b).await.expect_err("as a caller");
    assert!(error.contains("aborted by peer"), "{error}");
    call_member(&b, &a).await.expect_err("as the called one");
}

#[tokio::test]
async fn an_unknown_protocol_is_refused() {
    let ca = founded();
    let (a, b) = (Node::of(&ca), Node::of(&ca));
    for protocols in [vec![b"h3".to_vec()], vec![]] {
        let mut config = rustls::ClientConfig::clone(&a.tls.client_config());
        config.alpn_protocols = protocols;
        let error = call(&a.endpoint, client_config(Arc::new(config)), &b, &server_name(b.id()))
            .await
            .expect_err("not ours");
        assert!(error.contains("protocol"), "{error}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_and_leaves_open_ones_alone() {
    let ca = founded();
    let (a, b) = (Node::of(&ca), Node::of(&ca));
    let (before, _) = call_member(&a, &b).await.expect("before");
    let csr = b.identity.csr().expect("a request");
    let chain = ca.issue_member(&csr, start()).expect("issued");
    b.tls.replace_certificate(&chain).expect("for the same key");
    let (after, _) = call_member(&a, &b).await.expect("after");
    assert_eq!(peer_chain(&after).expect("shown")[0], *chain.leaf());
    assert_ne!(peer_chain(&before).expect("shown")[0], *chain.leaf());
    assert_eq!(before.close_reason(), None);

    let other = Identity::ephemeral().expect("a key").csr().expect("a request");
    let other = ca.issue_member(&other, start()).expect("issued");
    assert!(matches!(b.tls.replace_certificate(&other), Err(Error::WrongKey)));
}

#[tokio::test]
async fn a_new_bundle_decides_about_new_connections() {
    let (old, new) = (founded(), founded());
    let (a, b) = (Node::of(&old), Node::of(&new));
    a.trust.set(b.id(), Standing::Member);
    call_member(&a, &b).await.expect_err("b does not know the root of a");
    let both = [old, new].iter().flat_map(|ca| ca.public().members.roots().to_vec()).collect();
    b.tls.replace_bundle(TrustBundle::new(both).expect("two roots"));
    call_member(&a, &b).await.expect("b trusts both roots now");
}

#[tokio::test]
async fn a_joiner_comes_in_without_a_certificate_and_only_to_join() {
    let ca = founded();
    let b = Node::of(&ca);
    let config = join_config(ca.pin(), Clock::at(Duration::ZERO).provider()).expect("a config");
    let (connection, answer) =
        call(&calling(), client_config(config), &b, "join.skein").await.expect("anybody");
    assert_eq!(answer, format!("{:?}", Accepted::Joiner));
    assert_eq!(peer(&connection), Some(b.id()));
}

#[tokio::test]
async fn a_joiner_refuses_a_server_of_another_cluster_that_sends_the_genuine_root_along() {
    let genuine = founded();
    let node = Node::of(&genuine);
    let [_, issuing, root] = &node.tls.certificates.current().cert[..] else { panic!("a chain of three") };
    let forger = founded();
    let identity = Identity::ephemeral().expect("a key");
    let forged = forger.issue_member(&identity.csr().expect("a request"), start()).expect("issued");
    let chain = vec![forged.leaf().clone(), issuing.clone(), root.clone()];
    let error = join_through(&genuine, chain, identity.private_key()).await;
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn a_joiner_refuses_a_leaf_that_is_itself_the_pinned_root() {
    let genuine = founded();
    let root = genuine.public().members.roots()[0].clone();
    let identity = Identity::ephemeral().expect("a key");
    let error = join_through(&genuine, vec![root.clone(), root], identity.private_key()).await;
    assert!(error.contains("certificate"), "{error}");
}

/// The error of joining `ca`'s cluster at a server that shows `chain`.
async fn join_through(
    ca: &ClusterCa,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> String {
    let key = rustls::crypto::ring::sign::any_supported_type(&key).expect("a key");
    let shown = Certificates { current: RwLock::new(Arc::new(CertifiedKey::new(chain, key))) };
    let mut server = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    server.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    let middle = serving(Arc::new(server));
    let address = middle.local_addr().expect("bound");
    let accepting = tokio::spawn(async move {
        if let Some(incoming) = middle.accept().await {
            let _ = incoming.await;
        }
    });
    let config = join_config(ca.pin(), Clock::at(Duration::ZERO).provider()).expect("a config");
    let connecting = calling().connect_with(client_config(config), address, "join.skein").expect("loopback");
    let error = connecting.await.expect_err("a man in the middle");
    accepting.await.expect("no panic");
    error.to_string()
}
