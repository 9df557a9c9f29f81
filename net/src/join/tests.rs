//! Joining and each way of being refused, with real QUIC and TLS on loopback.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::ca::ClusterCa;
use crate::identity::Identity;
use crate::loopback::{Clock, HOUR, Node, calling, client_config, founded, start};
use crate::tls::Accepted;
use crate::token::{TTL_DEFAULT, spend};

/// A leader without a log: keeps token records in memory, signs with the cluster's authority.
struct Desk {
    ca: ClusterCa,
    incarnation: Incarnation,
    records: Mutex<BTreeMap<TokenId, TokenRecord>>,
    asked: AtomicUsize,
    now: SystemTime,
}

#[async_trait]
impl Admission for Desk {
    async fn admit(&self, claim: Claim) -> Result<Admitted, Refusal> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut records = self.records.lock().expect("not poisoned");
        let after = claim.spend(records.get(&claim.token), self.now)?;
        records.insert(after.id, after);
        let denied = |e: ca::Error| Refusal::Denied(e.to_string());
        Ok(Admitted {
            chain: self.ca.issue_member(&claim.csr, start()).map_err(denied)?,
            public: self.ca.public(),
            members: vec![Member {
                node: claim.node()?,
                name: claim.about.name.clone(),
                addresses: vec![SocketAddr::new(claim.from.ip(), claim.about.listen_port)],
            }],
            extra: Admitted::added(self.incarnation),
        })
    }
}

/// A member that answers joiners, and the desk behind it.
struct Seed {
    desk: Arc<Desk>,
    address: SocketAddr,
}

impl Seed {
    fn new() -> Seed {
        Seed::at(start())
    }

    fn at(now: SystemTime) -> Seed {
        Seed::serving(now, PATIENCE, |desk| desk)
    }

    fn serving<A: Admission + 'static>(
        now: SystemTime,
        patience: Patience,
        front: impl FnOnce(Arc<Desk>) -> A,
    ) -> Seed {
        let ca = founded();
        let node = Node::of(&ca);
        let (records, asked) = (Mutex::default(), AtomicUsize::new(0));
        let incarnation = Incarnation::first().expect("randomness");
        let desk = Arc::new(Desk { ca, incarnation, records, asked, now });
        let admission: Arc<dyn Admission> = Arc::new(front(Arc::clone(&desk)));
        let address = node.address;
        tokio::spawn(async move {
            while let Some(incoming) = node.endpoint.accept().await {
                let admission = Arc::clone(&admission);
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    assert_eq!(tls::accepted(&connection), Ok(Accepted::Joiner));
                    serve_within(patience, connection, &*admission).await;
                });
            }
        });
        Seed { desk, address }
    }

    /// A token for this cluster that names this seed.
    fn token(&self, uses: u32) -> Token {
        self.token_naming(&[self.address], uses)
    }

    fn token_naming(&self, addresses: &[SocketAddr], uses: u32) -> Token {
        let (token, record) =
            Token::mint(self.desk.ca.pin(), addresses, uses, TTL_DEFAULT, start()).expect("a token");
        self.change(record);
        token
    }

    fn record(&self, token: &Token) -> TokenRecord {
        self.desk.records.lock().expect("not poisoned")[&token.id()].clone()
    }

    fn change(&self, record: TokenRecord) {
        self.desk.records.lock().expect("not poisoned").insert(record.id, record);
    }

    fn asked(&self) -> usize {
        self.desk.asked.load(Ordering::SeqCst)
    }

    /// A connection that speaks the join protocol, to say something unusual on.
    async fn dial(&self) -> quinn::Connection {
        let config = tls::join_config(self.desk.ca.pin(), clock()).expect("a config");
        calling()
            .connect_with(client_config(config), self.address, "join.skein")
            .expect("loopback")
            .await
            .expect("a seed")
    }
}

#[async_trait]
impl Admission for Arc<Desk> {
    async fn admit(&self, claim: Claim) -> Result<Admitted, Refusal> {
        Desk::admit(self, claim).await
    }
}

fn clock() -> Arc<dyn TimeProvider> {
    Clock::at(Duration::ZERO).provider()
}

fn about() -> About {
    About {
        name: "kitchen".into(),
        store: StoreId([1; 8]),
        generation: 1,
        listen_port: 7946,
        api_port: 6443,
        extra: b"mine".to_vec(),
    }
}

fn request() -> Vec<u8> {
    Identity::ephemeral().expect("a key").csr().expect("a request").to_vec()
}

async fn join_by(token: &Token, csr: &[u8]) -> Result<Admitted, Error> {
    join(&calling(), token, csr, &about(), clock()).await
}

async fn refusal(token: &Token, csr: &[u8]) -> Refusal {
    match join_by(token, csr).await {
        Err(Error::Refused { refusal, .. }) => refusal,
        other => panic!("expected a refusal, not {other:?}"),
    }
}

async fn failure(token: &Token) -> Failure {
    match join_by(token, &request()).await {
        Err(Error::Failed(Failures(mut failures))) => failures.remove(0).1,
        other => panic!("expected a failure, not {other:?}"),
    }
}

/// The genuine chain with a leaf for `identity` that names the genuine authority and has another's signature.
fn forged(genuine: &[rustls_pki_types::CertificateDer<'static>], identity: &Identity) -> Chain {
    let forger = rcgen::KeyPair::generate().expect("a key");
    let issuer = rcgen::Issuer::from_ca_cert_der(&genuine[1], &forger).expect("an authority");
    let csr = identity.csr().expect("a request");
    let mut leaf = rcgen::CertificateSigningRequestParams::from_der(&csr).expect("a request");
    leaf.params.use_authority_key_identifier_extension = true;
    let leaf = leaf.signed_by(&issuer).expect("signed, by the wrong key");
    Chain::new([&[leaf.into()], &genuine[1..]].concat()).expect("each one parses")
}

/// Says `bytes` on a stream of `connection`; the answer, or why there is none.
async fn say(connection: &quinn::Connection, bytes: &[u8]) -> Result<Answer, Failure> {
    let (mut tx, mut rx) = connection.open_bi().await?;
    let _ = tx.write_all(bytes).await;
    let _ = tx.finish();
    match rx.read_to_end(ANSWER_BYTES_MAX).await {
        Ok(bytes) => Ok(encoding::decode(VERSION, &bytes).expect("an answer")),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(lost))) => Err(lost.into()),
        Err(error) => Err(Failure::Broken(error.to_string())),
    }
}

fn claim_on(connection: &quinn::Connection, token: &Token, csr: Vec<u8>, about: About) -> Vec<u8> {
    let exporter = exporter(connection).expect("a session");
    let proof = token.prove(&exporter, CsrHash::of(&csr));
    encoding::encode(VERSION, &Request { token: token.id(), proof, csr, about })
}

fn closed_with(failure: &Failure, code: VarInt) -> bool {
    matches!(failure, Failure::Broken(text) if text.contains(&format!("code {code}")) || text.contains(match code {
        TOO_SLOW => "too slow",
        _ => "broken claim",
    }))
}

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_member() {
    let seed = Seed::new();
    let token = seed.token(1);
    let csr = request();
    let admitted = join_by(&token, &csr).await.expect("admitted");
    let node = ca::request_node(&csr).expect("a request");
    assert_eq!(tls::peer_node(admitted.chain.certificates()), Some(node));
    assert_eq!(admitted.public, seed.desk.ca.public());
    assert_eq!(admitted.incarnation(), Some(seed.desk.incarnation));
    let of_an_older_build = Admitted { extra: Vec::new(), ..admitted.clone() };
    let unnamed = Incarnation::unnamed(admitted.public.cluster.id);
    assert_eq!(of_an_older_build.incarnation(), Some(unnamed));
    assert_eq!(admitted.members[0].addresses, ["127.0.0.1:7946".parse().expect("an address")]);
    assert_eq!(seed.record(&token).uses_left(), 0);
}

#[tokio::test]
async fn a_seed_of_another_cluster_hears_no_proof() {
    let (ours, theirs) = (Seed::new(), Seed::new());
    let token = ours.token_naming(&[theirs.address], 1);
    assert!(matches!(failure(&token).await, Failure::WrongCluster));
    assert_eq!(theirs.asked(), 0);
}

#[tokio::test]
async fn a_man_in_the_middle_with_the_genuine_root_hears_no_proof() {
    let seed = Seed::new();
    let identity = Identity::ephemeral().expect("a key");
    let genuine = seed.desk.ca.issue_member(&request(), start()).expect("issued");
    let chain = forged(genuine.certificates(), &identity);
    let middle = Node::with(identity, &chain, &seed.desk.ca, Duration::ZERO);
    let token = seed.token_naming(&[middle.address], 1);
    let accepting = tokio::spawn(async move {
        let incoming = middle.endpoint.accept().await.expect("a joiner");
        incoming.await.expect_err("the joiner hangs up in the handshake")
    });
    assert!(matches!(failure(&token).await, Failure::Impostor));
    accepting.await.expect("no panic");
    assert_eq!(seed.record(&token).uses_left(), 1);
}

#[tokio::test]
async fn a_proof_replayed_on_another_connection_is_refused() {
    let seed = Seed::new();
    let token = seed.token(5);
    let (first, second) = (seed.dial().await, seed.dial().await);
    let claim = claim_on(&first, &token, request(), about());
    assert_eq!(say(&second, &claim).await.expect("an answer"), Err(token::Refusal::Refused.into()));
    assert_eq!(seed.record(&token).uses_left(), 5);
    assert!(say(&first, &claim).await.expect("an answer").is_ok(), "it was good where it was made");
}

#[tokio::test]
async fn a_relay_cannot_put_its_own_request_under_a_proof() {
    let seed = Seed::new();
    let token = seed.token(1);
    let connection = seed.dial().await;
    let exporter = exporter(&connection).expect("a session");
    let proof = token.prove(&exporter, CsrHash::of(&request()));
    let swapped = Request { token: token.id(), proof, csr: request(), about: about() };
    let answer = say(&connection, &encoding::encode(VERSION, &swapped)).await.expect("an answer");
    assert_eq!(answer, Err(token::Refusal::Refused.into()));
}

#[tokio::test]
async fn wrong_secret_and_unknown_id_read_the_same_and_burn_nothing() {
    let seed = Seed::new();
    let token = seed.token(1);
    let (stranger, _) = Token::mint(seed.desk.ca.pin(), &[seed.address], 1, HOUR, start()).expect("a token");
    let unknown = refusal(&stranger, &request()).await;
    let mut record = seed.record(&token);
    record.public_key = [9; 32];
    seed.change(record);
    let wrong = refusal(&token, &request()).await;
    assert_eq!(wrong, Refusal::Token(token::Refusal::Refused));
    assert_eq!(wrong.to_string(), unknown.to_string());
    assert_eq!(seed.record(&token).uses_left(), 1);
}

#[tokio::test]
async fn an_expired_token_is_called_expired_only_to_who_knows_its_secret() {
    let seed = Seed::at(start() + HOUR);
    let token = seed.token(1);
    assert_eq!(refusal(&token, &request()).await, token::Refusal::Expired.into());
    let mut record = seed.record(&token);
    record.public_key = [9; 32];
    seed.change(record);
    assert_eq!(refusal(&token, &request()).await, token::Refusal::Refused.into());
}

#[tokio::test]
async fn a_revoked_token_is_refused() {
    let seed = Seed::new();
    let token = seed.token(1);
    seed.change(TokenRecord { revoked: true, ..seed.record(&token) });
    assert_eq!(refusal(&token, &request()).await, token::Refusal::Revoked.into());
}

#[tokio::test]
async fn a_used_up_token_is_refused_to_others_and_repeats_itself_to_its_user() {
    let seed = Seed::new();
    let token = seed.token(1);
    let csr = request();
    join_by(&token, &csr).await.expect("the first");
    assert_eq!(refusal(&token, &request()).await, token::Refusal::UsedUp.into());
    join_by(&token, &csr).await.expect("its answer may have been lost");
}

#[tokio::test]
async fn a_mistyped_token_makes_no_connection() {
    let seed = Seed::new();
    let mut text = seed.token(1).to_string();
    let last = text.pop().expect("not empty");
    text.push(if last == 'A' { 'E' } else { 'A' });
    assert_eq!(text.parse::<Token>(), Err(token::ParseError::Mistyped));
}

#[tokio::test]
async fn a_request_with_a_damaged_signature_never_reaches_the_leader() {
    let seed = Seed::new();
    let token = seed.token(1);
    let mut csr = request();
    *csr.last_mut().expect("not empty") ^= 1;
    assert!(matches!(refusal(&token, &csr).await, Refusal::Malformed(_)));
    assert_eq!(seed.asked(), 0);
}

#[tokio::test]
async fn a_name_that_is_no_dns_name_never_reaches_the_leader() {
    let seed = Seed::new();
    let token = seed.token(1);
    for name in ["", "Küche", "a/b", "..", &"a".repeat(300)] {
        let connection = seed.dial().await;
        let claim = claim_on(&connection, &token, request(), About { name: name.into(), ..about() });
        assert!(matches!(say(&connection, &claim).await, Ok(Err(Refusal::Malformed(_)))), "{name}");
    }
    assert_eq!(seed.asked(), 0);
}

#[tokio::test]
async fn an_oversized_claim_is_cut_off() {
    let seed = Seed::new();
    let connection = seed.dial().await;
    let failure = say(&connection, &vec![1; CLAIM_BYTES_MAX + 1]).await.expect_err("too long");
    assert!(closed_with(&failure, BROKEN_CLAIM), "{failure}");
    assert_eq!(seed.asked(), 0);
}

#[tokio::test]
async fn a_claim_of_noise_or_of_a_newer_version_is_cut_off() {
    let seed = Seed::new();
    for bytes in [b"".as_slice(), &[0], &[VERSION], &[VERSION + 1, 0, 0], &[VERSION; 500], &[0xff; 500]] {
        let failure = say(&seed.dial().await, bytes).await.expect_err("noise");
        assert!(closed_with(&failure, BROKEN_CLAIM), "{failure}");
    }
    assert_eq!(seed.asked(), 0);
}

#[tokio::test]
async fn a_claim_that_does_not_come_to_an_end_is_cut_off() {
    let hasty = Patience { step: Duration::from_millis(200), ..PATIENCE };
    let seed = Seed::serving(start(), hasty, |desk| desk);
    let token = seed.token(1);
    for said in [0, 10] {
        let connection = seed.dial().await;
        let claim = claim_on(&connection, &token, request(), about());
        let (mut tx, _rx) = connection.open_bi().await.expect("a stream");
        tx.write_all(&claim[..said]).await.expect("room");
        let failure = Failure::from(connection.closed().await);
        assert!(closed_with(&failure, TOO_SLOW), "{failure}");
    }
    assert_eq!(seed.asked(), 0);
}

#[tokio::test]
async fn a_leader_that_does_not_answer_in_time_makes_the_cluster_unavailable() {
    struct Silent;
    #[async_trait]
    impl Admission for Silent {
        async fn admit(&self, _claim: Claim) -> Result<Admitted, Refusal> {
            std::future::pending().await
        }
    }
    let hasty = Patience { admit: Duration::from_millis(50), ..PATIENCE };
    let seed = Seed::serving(start(), hasty, |_| Silent);
    assert!(matches!(failure(&seed.token(1)).await, Failure::Refused(Refusal::Unavailable(_))));
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_does_not_help() {
    let (seed, other) = (Seed::new(), Seed::new());
    let token = seed.token_naming(&[other.address, seed.address], 1);
    join_by(&token, &request()).await.expect("the second address is right");
}

#[tokio::test]
async fn a_machine_with_a_clock_of_another_day_is_told_so() {
    let seed = Seed::new();
    let token = seed.token(1);
    let wrong = Clock::at(48 * HOUR).provider();
    let error = join(&calling(), &token, &request(), &about(), wrong).await.expect_err("out of date");
    let Error::Failed(Failures(failures)) = error else { panic!("{error}") };
    assert!(matches!(failures[0].1, Failure::Clock), "{}", failures[0].1);
}

#[tokio::test]
async fn an_answer_that_does_not_fit_the_request_is_not_believed() {
    struct Confused(Arc<Desk>);
    #[async_trait]
    impl Admission for Confused {
        async fn admit(&self, mut claim: Claim) -> Result<Admitted, Refusal> {
            let admitted = self.0.admit(claim.clone()).await?;
            claim.csr = request();
            let chain = self.0.ca.issue_member(&claim.csr, start()).expect("issued");
            Ok(Admitted { chain, ..admitted })
        }
    }
    let seed = Seed::serving(start(), PATIENCE, Confused);
    assert!(matches!(join_by(&seed.token(1), &request()).await, Err(Error::BadAnswer(_))));
    struct Garbled(Arc<Desk>);
    #[async_trait]
    impl Admission for Garbled {
        async fn admit(&self, claim: Claim) -> Result<Admitted, Refusal> {
            Ok(Admitted { extra: b"no incarnation".to_vec(), ..self.0.admit(claim).await? })
        }
    }
    let seed = Seed::serving(start(), PATIENCE, Garbled);
    assert!(matches!(join_by(&seed.token(1), &request()).await, Err(Error::BadAnswer(_))));
}

#[tokio::test]
async fn too_many_claims_from_one_address_are_not_read() {
    let seed = Seed::serving(start(), PATIENCE, Limited::new);
    let (stranger, _) = Token::mint(seed.desk.ca.pin(), &[seed.address], 1, HOUR, start()).expect("a token");
    let mut refused = 0;
    // 20 at once against a refill of one in two seconds: some are turned away however slow the machine.
    let attempts = (0..20).map(|_| failure_or_refusal(&stranger));
    for outcome in futures::future::join_all(attempts).await {
        refused += usize::from(outcome == "too often");
    }
    assert!(refused > 0);
    assert!(seed.asked() < 20);
}

async fn failure_or_refusal(token: &Token) -> &'static str {
    match join_by(token, &request()).await {
        Err(Error::Refused { .. }) => "refused",
        Err(Error::Failed(Failures(failures))) if matches!(failures[0].1, Failure::TooOften) => "too often",
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn an_address_may_try_five_times_and_then_once_in_two_seconds() {
    let mut limit = RateLimit::default();
    let (start, here) = (Instant::now(), IpAddr::from([10, 0, 0, 1]));
    let allowed = |limit: &mut RateLimit, at: u64| limit.allow(here, start + Duration::from_millis(at));
    assert!((0..5).all(|_| allowed(&mut limit, 0)));
    assert!(!allowed(&mut limit, 1_999));
    assert!(allowed(&mut limit, 2_000));
    assert!(!allowed(&mut limit, 2_001));
    assert!(limit.allow([10, 0, 0, 2].into(), start), "others are not concerned");
    assert!((0..5).all(|_| allowed(&mut limit, 60_000)) && !allowed(&mut limit, 60_000));
}

#[test]
fn a_limit_remembers_a_bounded_number_of_addresses() {
    let mut limit = RateLimit::default();
    let start = Instant::now();
    for number in 0..5_000u32 {
        assert!(limit.allow(IpAddr::from(number.to_be_bytes()), start));
    }
    assert_eq!(limit.buckets.len(), RateLimit::ADDRESSES_MAX);
    let in_one_house = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
    assert!((0..5).all(|last| limit.allow(in_one_house(last), start)));
    assert!(!limit.allow(in_one_house(9), start), "one network of IPv6 counts as one address");
}

#[test]
fn long_texts_of_a_refusal_are_cut_between_characters() {
    let Refusal::Denied(text) = Refusal::Denied("ä".repeat(1_000)).shortened() else { unreachable!() };
    assert_eq!(text.len(), TEXT_BYTES_MAX);
}

#[test]
fn a_claim_for_another_record_is_refused() {
    let addresses = ["10.0.0.1:1".parse().expect("an address")];
    let mint = || Token::mint(Pin([1; 32]), &addresses, 1, HOUR, start()).expect("a token");
    let ((token, record), (_, other)) = (mint(), mint());
    let csr = request();
    let (exporter, from) = ([3; 32], addresses[0]);
    let proof = token.prove(&exporter, CsrHash::of(&csr));
    let claim = Claim { token: token.id(), proof, exporter, csr, about: about(), from };
    let node = claim.node().expect("a request");
    assert_eq!(
        claim.spend(Some(&record), start()),
        Ok(spend(&record, claim.csr_hash(), node, start()).expect("good"))
    );
    assert_eq!(claim.spend(Some(&other), start()), Err(token::Refusal::Refused.into()));
    assert_eq!(claim.spend(None, start()), Err(token::Refusal::Refused.into()));
    let forwarded = encoding::encode(1, &claim);
    assert_eq!(encoding::decode::<Claim>(1, &forwarded).expect("plain"), claim);
}

proptest! {
    #[test]
    fn no_bytes_panic_the_parsers(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = encoding::decode::<Request>(VERSION, &bytes);
        bytes.insert(0, VERSION);
        let _ = encoding::decode::<Request>(VERSION, &bytes);
        let _ = encoding::decode::<Answer>(VERSION, &bytes);
        let _ = encoding::decode::<TokenRecord>(VERSION, &bytes);
    }
}
