//! Registries, by the OCI distribution protocol.

use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio::io::AsyncWriteExt;

use super::manifest::{Document, INDEX_DEPTH_MAX};
use super::{Digest, Error, Images, Unfinished};

/// Who pulls.
#[derive(Clone)]
pub struct Credentials {
    /// The user's name at the registry.
    pub user: String,
    /// Password or token.
    pub password: String,
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
    let name = |reason: String| Error::Name { reference: reference.chars().take(256).collect(), reason };
    reference.parse().map_err(|error: oci_client::ParseError| name(error.to_string()))
}

/// Fetches every blob of an image that is not here yet, and returns what the name means at the registry.
pub(super) async fn pull(
    images: &Images,
    reference: &str,
    credentials: Option<Credentials>,
) -> Result<Digest, Error> {
    let parsed = parse(reference)?;
    let failed = |error: &dyn std::fmt::Display| Error::Pull {
        reference: reference.to_owned(),
        reason: error.to_string(),
    };
    let auth = match credentials {
        Some(Credentials { user, password }) => RegistryAuth::Basic(user, password),
        None => RegistryAuth::Anonymous,
    };
    let client = Client::new(ClientConfig {
        protocol: if is_on_this_machine(parsed.registry()) {
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
        let (bytes, _) =
            client.pull_manifest_raw(&at, &auth, &MANIFESTS).await.map_err(|error| failed(&error))?;
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
    Err(failed(&"its index leads to no image"))
}

async fn fetch(images: &Images, client: &Client, reference: &Reference, digest: Digest) -> Result<(), Error> {
    if images.has_blob(&digest) {
        return Ok(());
    }
    let failed = |error: &dyn std::fmt::Display| Error::Pull {
        reference: reference.whole(),
        reason: format!("blob {digest}: {error}"),
    };
    let tmp = Unfinished(Some(images.tmp()));
    let mut file = tokio::fs::File::create(tmp.path()).await.map_err(Error::io("write a blob"))?;
    // It checks the digest as the bytes come, and the length the manifest promised.
    client
        .pull_blob(reference, digest.to_string().as_str(), &mut file)
        .await
        .map_err(|error| failed(&error))?;
    file.flush().await.map_err(Error::io("write a blob"))?;
    let here = images.clone();
    // Read again all the same: what counts is what lies on this disk.
    tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(tmp.path()).map_err(Error::io("read a blob"))?;
        here.put_blob(&digest, file)
    })
    .await
    .unwrap_or_else(|error| Err(failed(&error)))
}

/// Registries on this machine speak plain HTTP, as Docker has it.
fn is_on_this_machine(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
