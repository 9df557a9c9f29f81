//! Registries, by the OCI distribution protocol.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio::io::AsyncWriteExt;

use super::manifest::{Document, INDEX_DEPTH_MAX};
use super::{Digest, Error, Images, Unfinished, name};

/// Who pulls.
#[derive(Clone)]
pub struct Credentials {
    /// The user's name at the registry.
    pub user: String,
    /// Password or token.
    pub password: String,
}

/// Registries that are spoken to by plain HTTP: whoever is on the way there may change an image by its tag.
///
/// Those on this machine are, as Docker has it; every other one must be named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlainHttp(pub Vec<PlainHttpRegistry>);

/// A registry, or a network of them, in the words of Docker's `--insecure-registry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlainHttpRegistry {
    /// `host` at any port, or `host:port`.
    Host(String),
    /// `10.1.0.0/16`: registries that are named by an address in it.
    Network(IpAddr, u8),
}

/// The text names no registry.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use {0:?} as a registry; write HOST, HOST:PORT or a network like 10.1.0.0/16, without http://"
)]
pub struct InvalidRegistry(String);

impl FromStr for PlainHttpRegistry {
    type Err = InvalidRegistry;

    fn from_str(text: &str) -> Result<Self, InvalidRegistry> {
        let invalid = || InvalidRegistry(text.chars().take(80).collect());
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| invalid())?;
            let bits = bits.parse().ok().filter(|bits| *bits <= if address.is_ipv4() { 32 } else { 128 });
            return Ok(Self::Network(address, bits.ok_or_else(invalid)?));
        }
        // What can stand in front of an image's name can stand here.
        match name::parse(&format!("{text}/x")) {
            Ok(reference) if reference.registry() == text => Ok(Self::Host(text.to_owned())),
            _ if !text.contains(['/', ':', '@', ' ']) && !text.is_empty() => Ok(Self::Host(text.to_owned())),
            _ => Err(invalid()),
        }
    }
}

impl PlainHttp {
    fn includes(&self, registry: &str) -> bool {
        let host = host_of(registry);
        let address = host.parse::<IpAddr>().ok();
        let on_this_machine = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        on_this_machine
            || self.0.iter().any(|named| match named {
                PlainHttpRegistry::Host(named) => named == registry || named == host,
                PlainHttpRegistry::Network(network, bits) => {
                    address.is_some_and(|address| is_within(address, *network, *bits))
                }
            })
    }
}

/// `registry` without its port.
fn host_of(registry: &str) -> &str {
    let port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let host = registry.rsplit_once(':').filter(|(_, text)| port(text)).map_or(registry, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let (address, network, width) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (u128::from(address.to_bits()), u128::from(network.to_bits()), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    let differ = address ^ network;
    differ.checked_shr(width - u32::from(bits)).unwrap_or(0) == 0
}

/// Layers fetched side by side; more only makes each one slower at home.
const PARALLEL: usize = 3;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer.
const READ_LIMIT: Duration = Duration::from_secs(30);
const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

pub(super) fn parse(reference: &str) -> Result<Reference, Error> {
    name::parse(reference).map_err(|reason| Error::Name {
        reference: reference.chars().take(256).collect(),
        reason: reason.to_owned(),
    })
}

/// Fetches every blob of an image that is not here yet, and returns what the name means at the registry.
pub(super) async fn pull(
    images: &Images,
    reference: &str,
    credentials: Option<Credentials>,
) -> Result<Digest, Error> {
    let parsed = parse(reference)?;
    let auth = match credentials {
        Some(Credentials { user, password }) => RegistryAuth::Basic(user, password),
        None => RegistryAuth::Anonymous,
    };
    let client = Client::new(ClientConfig {
        protocol: if images.plain_http().includes(parsed.registry()) {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        },
        connect_timeout: Some(CONNECT_LIMIT),
        read_timeout: Some(READ_LIMIT),
        user_agent: concat!("skein/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    });
    let mut at = parsed.clone();
    let mut named = None;
    for _ in 0..INDEX_DEPTH_MAX {
        let (bytes, _) = client
            .pull_manifest_raw(&at, &auth, &MANIFESTS)
            .await
            .map_err(|error| refused(reference, "", &error))?;
        let digest = Digest::of(&bytes);
        if let Some(wanted) = at.digest() {
            let wanted: Digest = wanted.parse().map_err(|error| Error::invalid(at.whole(), error))?;
            if wanted != digest {
                return Err(Error::Digest {
                    what: format!("the manifest of {reference:?}"),
                    wanted,
                    found: digest,
                });
            }
        }
        images.put_blob(&digest, bytes.as_ref())?;
        let named = *named.get_or_insert(digest);
        let document = Document::parse(&format!("the manifest of {reference:?}"), &bytes)?;
        let Some(config) = document.config else {
            let next = document.for_this_machine(reference)?.digest;
            at = parsed.clone_with_digest(next.to_string());
            continue;
        };
        let mut blobs: Vec<Digest> = document.layers.iter().map(|layer| layer.digest).collect();
        blobs.push(config.digest);
        let fetches = blobs.into_iter().map(|blob| fetch(images, &client, &parsed, blob));
        stream::iter(fetches).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
        return Ok(named);
    }
    Err(Error::Pull { reference: reference.to_owned(), reason: "its index leads to no image".to_owned() })
}

async fn fetch(images: &Images, client: &Client, reference: &Reference, digest: Digest) -> Result<(), Error> {
    if images.has_blob(&digest) {
        return Ok(());
    }
    let blob = format!("blob {digest}: ");
    let failed = |error: &OciDistributionError| refused(&reference.whole(), &blob, error);
    let tmp = Unfinished(Some(images.tmp()));
    let write = || Error::io(format!("write blob {digest}"));
    let mut file = tokio::fs::File::create(tmp.path()).await.map_err(write())?;
    // It checks the digest as the bytes come; how many come is for us to bound.
    let answer = client.pull_blob_stream(reference, digest.to_string().as_str()).await;
    let mut pieces = answer.map_err(|error| failed(&error))?.stream;
    let limit = images.limits().blob_bytes_max;
    let mut count = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| failed(&OciDistributionError::IoError(error)))?;
        count += piece.len() as u64;
        if count > limit {
            return Err(Error::TooLarge { what: format!("blob {digest}"), limit });
        }
        images.room().take(piece.len() as u64).map_err(write())?;
        file.write_all(&piece).await.map_err(write())?;
    }
    file.flush().await.map_err(write())?;
    let here = images.clone();
    // Read again all the same: what counts is what lies on this disk.
    let kept = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(tmp.path()).map_err(Error::io("read a blob"))?;
        here.put_blob(&digest, file)
    });
    kept.await.unwrap_or_else(|error| {
        Err(Error::Io { doing: "keep a blob".into(), source: std::io::Error::other(error) })
    })
}

/// What a registry's answer, or that there was none, means.
fn refused(reference: &str, what: &str, error: &OciDistributionError) -> Error {
    use OciDistributionError::{IoError, RequestError, ServerError};
    let mut reason = format!("{what}{}", with_causes(error));
    // The first bytes of an answer without TLS, in the words of the TLS library.
    if reason.contains("InvalidContentType") {
        reason
            .push_str("; if this registry speaks plain HTTP, name it with --insecure-registry on every node");
    }
    let reference = reference.to_owned();
    match error {
        IoError(error) if error.get_ref().is_some_and(|inner| inner.is::<DigestError>()) => {
            Error::Pull { reference, reason }
        }
        // Also a gateway that says for it that it is not there.
        RequestError(_) | IoError(_) => Error::Unreachable { reference, reason },
        ServerError { code: 500.., .. } => Error::Unreachable { reference, reason },
        _ => Error::Pull { reference, reason },
    }
}

/// The HTTP client's own words say only that it did not work; why stands further down.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(named: &[&str], registry: &str, expect: bool) {
        let named = named.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(PlainHttp(named).includes(registry), expect, "{registry}");
    }

    #[test]
    fn plain_http_is_for_this_machine_and_for_what_is_named() {
        for registry in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.9.10", "[::1]:5000"] {
            check(&[], registry, true);
        }
        for registry in ["docker.io", "registry.lan:5000", "192.168.1.10:5000", "localhost.example.org"] {
            check(&[], registry, false);
        }
        check(&["registry.lan:5000"], "registry.lan:5000", true);
        check(&["registry.lan:5000"], "registry.lan:5001", false);
        check(&["registry.lan"], "registry.lan:5001", true);
        check(&["192.168.0.0/16"], "192.168.1.10:5000", true);
        check(&["192.168.0.0/16"], "192.169.1.10:5000", false);
        check(&["0.0.0.0/0"], "192.169.1.10", true);
        check(&["0.0.0.0/0"], "registry.lan", false);
    }

    #[test]
    fn what_names_no_registry_is_refused() {
        for text in
            ["", "http://registry.lan", "registry.lan/team", "10.0.0.0/33", "a b", "x/16", "host:port"]
        {
            assert!(text.parse::<PlainHttpRegistry>().is_err(), "{text:?}");
        }
    }
}
