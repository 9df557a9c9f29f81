//! The word an operator pastes on the next machine, and what the store keeps of it.
//!
//! `skein1-` and base64url of: version (1), hash of the root's key (32), id (6), secret (16), up to four
//! addresses of members (family, IP, port), crc32c (4). 95 characters with one IPv4 address.
//!
//! The secret is the seed of an Ed25519 key. The store keeps the public half, so neither a leaked
//! snapshot nor a curious follower can let anybody in.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ca::Pin;
use crate::identity::{self, NodeId};
use crate::ids::hex_id;

/// How long a token is good if nothing else is asked for.
pub const TTL_DEFAULT: Duration = Duration::from_secs(15 * 60);

/// A token that must last longer is a password; a year is the end of it.
pub const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Bounds the record, which remembers each use.
pub const USES_MAX: u32 = 1_000;

/// Addresses in a token beyond these are dropped: the word must stay paste-able.
pub const ADDRESSES_MAX: usize = 4;

const PREFIX: &str = "skein1-";
const VERSION: u8 = 1;
const CRC_BYTES: usize = 4;

/// Four IPv6 addresses and all else make 187 characters; whatever is much longer is something else.
const TEXT_BYTES_MAX: usize = 512;

/// Why a text is no token. Nothing was sent anywhere.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It does not begin like a token.
    #[error("this is not a join token (those begin with \"skein1-\"); make one with: skein token create")]
    NotAToken,
    /// A character was mistyped or lost; no connection was tried.
    #[error("the join token was mistyped or cut off (its checksum does not match); paste it again")]
    Mistyped,
    /// A later build made it.
    #[error("this join token has version {0}, this build reads version 1; join with the build that made it")]
    NewerVersion(u8),
}

/// Why a token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// A token that nobody could use.
    #[error("a token needs at least one address of a member; say where this node listens with --listen")]
    NoAddress,
    /// More than a token may be used, or none.
    #[error("a token has 1 to {USES_MAX} uses, not {0}")]
    Uses(u32),
    /// Too short or too long a life.
    #[error("a token lives for at least a second and at most 366 days")]
    Ttl,
    /// The system has no randomness to give.
    #[error("could not make a secret: {0}; try again")]
    Chance(String),
}

hex_id!(
    /// By which a token is listed and revoked. Not secret.
    TokenId,
    6
);

/// SHA-256 of a certificate request: one attempt of one node to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CsrHash(pub [u8; 32]);

impl CsrHash {
    /// The hash of a request in DER.
    pub fn of(csr: &[u8]) -> CsrHash {
        CsrHash(Sha256::digest(csr).into())
    }
}

/// A join token, secret included. Shown once, to whoever created it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pin: Pin,
    id: TokenId,
    secret: [u8; 16],
    addresses: Vec<SocketAddr>,
}

impl Token {
    /// Makes a token and the record that the store keeps of it.
    ///
    /// * `pin`: the root's key, so that the joiner knows the cluster before it says anything.
    /// * `addresses`: where members listen, best first; those after the fourth, and those that nobody can
    ///   call (`0.0.0.0`, port 0), are dropped.
    pub fn mint(
        pin: Pin,
        addresses: &[SocketAddr],
        uses: u32,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Token, TokenRecord), MintError> {
        let reachable = |address: &&SocketAddr| !address.ip().is_unspecified() && address.port() != 0;
        let addresses: Vec<SocketAddr> =
            addresses.iter().filter(reachable).take(ADDRESSES_MAX).map(plain).collect();
        if addresses.is_empty() {
            return Err(MintError::NoAddress);
        }
        if uses == 0 || uses > USES_MAX {
            return Err(MintError::Uses(uses));
        }
        if ttl < Duration::from_secs(1) || ttl > TTL_MAX {
            return Err(MintError::Ttl);
        }
        let chance = |e: identity::Error| MintError::Chance(e.to_string());
        let token = Token {
            pin,
            id: TokenId(identity::random().map_err(chance)?),
            secret: identity::random().map_err(chance)?,
            addresses,
        };
        let record = TokenRecord {
            id: token.id,
            public_key: token.public_key(),
            expires: now.checked_add(ttl).ok_or(MintError::Ttl)?,
            uses,
            revoked: false,
            spent: Vec::new(),
            replaces: None,
        };
        Ok((token, record))
    }

    /// By which the token is listed and revoked.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// The key that the cluster's root must have.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Where members listened when the token was made.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Shows that the secret is known, for this TLS session and this request only.
    pub fn prove(&self, exporter: &[u8; 32], csr: CsrHash) -> Proof {
        Proof(self.key().sign(&proven(self.id, exporter, csr)).as_ref().to_vec())
    }

    fn public_key(&self) -> [u8; 32] {
        self.key().public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes")
    }

    /// The secret has 128 random bits, so one hash is stretching enough.
    fn key(&self) -> Ed25519KeyPair {
        let mut hash = Sha256::new();
        hash.update(b"skein join token v1\0");
        hash.update(self.id.0);
        hash.update(self.secret);
        Ed25519KeyPair::from_seed_unchecked(&hash.finalize()).expect("32 bytes are a seed")
    }

    fn payload(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.pin.0);
        bytes.extend(self.id.0);
        bytes.extend(self.secret);
        for address in &self.addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(address.port().to_be_bytes());
        }
        bytes
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.payload();
        bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// Without the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = ParseError;

    /// Reads a token. White space anywhere is skipped: terminals wrap long words.
    fn from_str(text: &str) -> Result<Token, ParseError> {
        let word: String = text.chars().filter(|c| !c.is_whitespace()).take(TEXT_BYTES_MAX).collect();
        let body = word.strip_prefix(PREFIX).ok_or(ParseError::NotAToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| ParseError::Mistyped)?;
        let at = bytes.len().checked_sub(CRC_BYTES).ok_or(ParseError::Mistyped)?;
        let (payload, crc) = bytes.split_at(at);
        // A CRC of 32 bits finds every damage within 32 bits in a row: each wrong character, each
        // swapped pair, for certain.
        if crc != crc32c::crc32c(payload).to_be_bytes() {
            return Err(ParseError::Mistyped);
        }
        parse_payload(payload)
    }
}

/// Shows that a token's secret is known: an Ed25519 signature over the TLS session's exporter and the hash
/// of the certificate request. Worth nothing on another connection or with another request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof(Vec<u8>);

/// A use of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// The request it was spent on.
    pub csr: CsrHash,
    /// The node that joined.
    pub node: NodeId,
    /// When.
    pub at: SystemTime,
}

/// What the store keeps of a token: enough to judge a proof, not enough to make one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// By which it is listed and revoked.
    pub id: TokenId,
    /// The public half of the key that the secret gives.
    pub public_key: [u8; 32],
    /// Good until this moment.
    pub expires: SystemTime,
    /// How many nodes may join by it.
    pub uses: u32,
    /// Withdrawn by an operator.
    pub revoked: bool,
    /// The uses so far, oldest first; never more than `uses`.
    pub spent: Vec<Spent>,
    /// Of the member whose place it gives, if it gives one.
    #[serde(default)]
    pub replaces: Option<String>,
}

/// Why a token does not let a node in. Only the first says nothing about the token: it is the answer to
/// everybody who does not know the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Wrong secret, unknown id, a proof of another connection: one text for all.
    #[error("the token was refused; make a new one on a member with: skein token create")]
    Refused,
    /// Its time is over.
    #[error("the token expired; make a new one on a member with: skein token create")]
    Expired,
    /// An operator withdrew it.
    #[error("the token was revoked; make a new one on a member with: skein token create")]
    Revoked,
    /// As many nodes as it was made for have joined by it.
    #[error("the token is used up; make a new one on a member with: skein token create --uses N")]
    UsedUp,
}

impl TokenRecord {
    /// Whether `proof` shows, for this session and this request, that the secret is known.
    pub fn verify(&self, exporter: &[u8; 32], csr: CsrHash, proof: &Proof) -> Result<(), Refusal> {
        UnparsedPublicKey::new(&ED25519, &self.public_key)
            .verify(&proven(self.id, exporter, csr), &proof.0)
            .map_err(|_| Refusal::Refused)
    }

    /// Why it lets nobody in any more, in a word; `None` while it does.
    pub fn ended(&self, now: SystemTime) -> Option<&'static str> {
        match () {
            () if self.revoked => Some("revoked"),
            () if self.expires <= now => Some("expired"),
            () if self.uses_left() == 0 => Some("used up"),
            () => None,
        }
    }

    /// How many more nodes may join.
    pub fn uses_left(&self) -> u32 {
        self.uses.saturating_sub(u32::try_from(self.spent.len()).unwrap_or(u32::MAX))
    }
}

/// The record after `node` joined by it; the given one is unchanged. Call it for verified proofs only.
///
/// A request, or a node, that was let in before is let in again and burns nothing: its answer was lost.
/// That the node holds its key is the request's own signature. Deterministic: `now` is the leader's stamp.
pub fn spend(
    record: &TokenRecord,
    csr: CsrHash,
    node: NodeId,
    now: SystemTime,
) -> Result<TokenRecord, Refusal> {
    if record.revoked {
        return Err(Refusal::Revoked);
    }
    if now >= record.expires {
        return Err(Refusal::Expired);
    }
    let mut after = record.clone();
    if record.spent.iter().any(|spent| spent.csr == csr || spent.node == node) {
        return Ok(after);
    }
    if record.uses_left() == 0 {
        return Err(Refusal::UsedUp);
    }
    after.spent.push(Spent { csr, node, at: now });
    Ok(after)
}

/// What a proof signs.
fn proven(id: TokenId, exporter: &[u8; 32], csr: CsrHash) -> Vec<u8> {
    [b"skein join proof v1\0".as_slice(), &id.0, exporter, &csr.0].concat()
}

fn parse_payload(payload: &[u8]) -> Result<Token, ParseError> {
    let mut rest = payload;
    match take::<1>(&mut rest)? {
        [VERSION] => {}
        [newer] => return Err(ParseError::NewerVersion(newer)),
    }
    let (pin, id, secret) = (Pin(take(&mut rest)?), TokenId(take(&mut rest)?), take(&mut rest)?);
    let mut addresses = Vec::new();
    while !rest.is_empty() {
        let ip = match take(&mut rest)? {
            [4] => IpAddr::from(take::<4>(&mut rest)?),
            [6] => IpAddr::from(take::<16>(&mut rest)?),
            _ => return Err(ParseError::Mistyped),
        };
        addresses.push(SocketAddr::new(ip, u16::from_be_bytes(take(&mut rest)?)));
    }
    if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
        return Err(ParseError::Mistyped);
    }
    Ok(Token { pin, id, secret, addresses })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], ParseError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(ParseError::Mistyped)?;
    *rest = tail;
    Ok(*head)
}

/// Without the scope and flow of IPv6, which mean something on one machine only.
fn plain(address: &SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::loopback::{HOUR, start};

    const EXPORTER: [u8; 32] = [7; 32];

    fn minted(uses: u32) -> (Token, TokenRecord) {
        let addresses = ["192.168.1.10:7946".parse().expect("an address")];
        Token::mint(Pin([1; 32]), &addresses, uses, TTL_DEFAULT, start()).expect("a token")
    }

    /// The same in every run: a lost or swapped character is found by chance, if only just (1 - 2^-32).
    fn fixed() -> String {
        let addresses = vec!["192.168.1.10:7946".parse().expect("an address")];
        let secret = std::array::from_fn(|at| (at * 17) as u8);
        Token { pin: Pin([0xa5; 32]), id: TokenId([1, 2, 3, 4, 5, 6]), secret, addresses }.to_string()
    }

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    fn csr(number: u8) -> CsrHash {
        CsrHash([number; 32])
    }

    #[test]
    fn a_token_is_one_word_of_95_characters() {
        let (token, _) = minted(1);
        let text = token.to_string();
        assert_eq!(text.len(), 95);
        assert!(text.starts_with("skein1-"));
        assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'));
        assert_eq!(text.parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&format!("{:?}", token.secret)), "the secret stays inside");
    }

    #[test]
    fn a_token_that_a_terminal_wrapped_still_reads() {
        let (token, _) = minted(1);
        let text = token.to_string();
        assert_eq!(format!("  {}\n  {}\r\n", &text[..40], &text[40..]).parse(), Ok(token));
    }

    #[test]
    fn every_single_character_typo_is_caught() {
        let text = fixed();
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=+/.ä";
        for (at, right) in text.char_indices() {
            for wrong in alphabet.chars().filter(|wrong| *wrong != right) {
                let typo: String = [&text[..at], &wrong.to_string(), &text[at + 1..]].concat();
                assert!(typo.parse::<Token>().is_err(), "{typo}");
            }
            let lost = [&text[..at], &text[at + 1..]].concat();
            assert!(lost.parse::<Token>().is_err(), "{lost}");
        }
    }

    #[test]
    fn swapped_neighbours_are_caught() {
        let text = fixed().into_bytes();
        for at in 0..text.len() - 1 {
            let mut swapped = text.clone();
            swapped.swap(at, at + 1);
            if swapped != text {
                let swapped = String::from_utf8(swapped).expect("ASCII");
                assert!(swapped.parse::<Token>().is_err(), "{swapped}");
            }
        }
    }

    #[test]
    fn what_is_not_a_token_is_said_to_be_none() {
        for text in ["", "skein", "hello", "skein2-AAAA", "https://example.org"] {
            assert_eq!(text.parse::<Token>(), Err(ParseError::NotAToken), "{text}");
        }
        let newer = [2u8; 64];
        let mut bytes = newer.to_vec();
        bytes.extend(crc32c::crc32c(&newer).to_be_bytes());
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(text.parse::<Token>(), Err(ParseError::NewerVersion(2)));
    }

    #[test]
    fn a_proof_is_for_one_session_one_request_and_one_secret() {
        let (token, record) = minted(1);
        let proof = token.prove(&EXPORTER, csr(1));
        assert_eq!(record.verify(&EXPORTER, csr(1), &proof), Ok(()));
        assert_eq!(record.verify(&[8; 32], csr(1), &proof), Err(Refusal::Refused), "another session");
        assert_eq!(record.verify(&EXPORTER, csr(2), &proof), Err(Refusal::Refused), "another request");
        let guess = Token { secret: [0; 16], ..token };
        let guess = guess.prove(&EXPORTER, csr(1));
        assert_eq!(record.verify(&EXPORTER, csr(1), &guess), Err(Refusal::Refused), "another secret");
        assert_eq!(record.verify(&EXPORTER, csr(1), &Proof(vec![])), Err(Refusal::Refused));
    }

    #[test]
    fn the_record_does_not_hold_the_secret() {
        let (token, record) = minted(1);
        let stored = serde_json::to_vec(&record).expect("plain");
        let bytes = crate::encoding::encode(1, &record);
        assert!(!bytes.windows(16).any(|window| window == token.secret));
        assert_eq!(serde_json::from_slice::<TokenRecord>(&stored).expect("plain"), record);
        assert_eq!(crate::encoding::decode::<TokenRecord>(1, &bytes).expect("plain"), record);
    }

    #[test]
    fn a_token_lets_in_as_many_nodes_as_it_was_made_for() {
        let (_, record) = minted(2);
        let record = spend(&record, csr(1), node(1), start()).expect("the first");
        let record = spend(&record, csr(2), node(2), start()).expect("the second");
        assert_eq!(record.uses_left(), 0);
        assert_eq!(spend(&record, csr(3), node(3), start()), Err(Refusal::UsedUp));
    }

    #[test]
    fn a_repeated_request_succeeds_again_and_burns_nothing() {
        let (_, record) = minted(1);
        let spent = spend(&record, csr(1), node(1), start()).expect("the first");
        assert_eq!(spend(&spent, csr(1), node(1), start()), Ok(spent.clone()), "its answer was lost");
        assert_eq!(spend(&spent, csr(9), node(1), start()), Ok(spent), "it crashed and asks anew");
    }

    #[test]
    fn an_expired_or_revoked_token_lets_nobody_in() {
        let (_, record) = minted(1);
        assert!(spend(&record, csr(1), node(1), record.expires - Duration::from_secs(1)).is_ok());
        assert_eq!(spend(&record, csr(1), node(1), record.expires), Err(Refusal::Expired));
        assert_eq!(spend(&record, csr(1), node(1), start() + HOUR), Err(Refusal::Expired));
        let revoked = TokenRecord { revoked: true, ..record };
        assert_eq!(spend(&revoked, csr(1), node(1), start()), Err(Refusal::Revoked));
    }

    #[test]
    fn a_token_has_bounds() {
        let address = ["10.0.0.1:1".parse().expect("an address")];
        let mint = |addresses: &[SocketAddr], uses, ttl| {
            Token::mint(Pin([1; 32]), addresses, uses, ttl, start()).map(|(token, _)| token)
        };
        assert!(matches!(mint(&[], 1, HOUR), Err(MintError::NoAddress)));
        let nowhere =
            ["0.0.0.0:7946", "[::]:7946", "10.0.0.1:0"].map(|text| text.parse().expect("an address"));
        assert!(matches!(mint(&nowhere, 1, HOUR), Err(MintError::NoAddress)));
        assert!(matches!(mint(&address, 0, HOUR), Err(MintError::Uses(0))));
        assert!(matches!(mint(&address, USES_MAX + 1, HOUR), Err(MintError::Uses(_))));
        assert!(matches!(mint(&address, 1, Duration::ZERO), Err(MintError::Ttl)));
        assert!(matches!(mint(&address, 1, Duration::MAX), Err(MintError::Ttl)));
        let many = [address[0]; 9];
        assert_eq!(mint(&many, 1, HOUR).expect("cut").addresses().len(), ADDRESSES_MAX);
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    proptest! {
        #[test]
        fn a_token_reads_back_as_it_was_written(
            pin in any::<[u8; 32]>(), id in any::<[u8; 6]>(), secret in any::<[u8; 16]>(),
            addresses in proptest::collection::vec(any_address(), 1..=ADDRESSES_MAX),
        ) {
            let token = Token { pin: Pin(pin), id: TokenId(id), secret, addresses };
            prop_assert_eq!(token.to_string().parse(), Ok(token.clone()));
        }

        #[test]
        fn every_typo_in_any_token_is_caught(
            id in any::<[u8; 6]>(), secret in any::<[u8; 16]>(),
            addresses in proptest::collection::vec(any_address(), 1..=ADDRESSES_MAX),
            at in any::<prop::sample::Index>(), wrong in "[A-Za-z0-9_-]",
        ) {
            let token = Token { pin: Pin([3; 32]), id: TokenId(id), secret, addresses };
            let text = token.to_string();
            let at = at.index(text.len());
            let typo = [&text[..at], &wrong, &text[at + 1..]].concat();
            prop_assert!(typo == text || typo.parse::<Token>().is_err());
        }

        #[test]
        fn no_text_panics_the_parser(text in ".*", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = text.parse::<Token>();
            let _ = format!("{PREFIX}{text}").parse::<Token>();
            let mut sealed = bytes.clone();
            sealed.extend(crc32c::crc32c(&bytes).to_be_bytes());
            let _ = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed)).parse::<Token>();
            let mut versioned = vec![VERSION];
            versioned.extend(bytes);
            let _ = parse_payload(&versioned);
        }
    }
}
