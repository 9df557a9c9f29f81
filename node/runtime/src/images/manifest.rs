//! The JSON documents of an image, as far as they matter to run it.
//!
//! Source: OCI image specification 1.1 (index, manifest, configuration); Docker image specification 1.2
//! (`manifest.json` of `docker save`), whose configuration has the same shape.

use serde::Deserialize;

use super::{Digest, Error};
use crate::engine::ImageConfig;

/// Documents are read into memory: the largest known index has some 30 KiB.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// More layers than overlayfs mounts (500) are of no use.
const LAYERS_MAX: usize = 250;
/// An index inside an index inside an index.
pub(super) const INDEX_DEPTH_MAX: usize = 4;

/// A manifest, or a list of them for several platforms.
#[derive(Debug, Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
    pub(super) config: Option<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
}

/// A reference to a blob.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Descriptor {
    pub(super) digest: Digest,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    pub(super) annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Platform {
    os: String,
    architecture: String,
}

/// One image of a `docker save` archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    pub(super) config: String,
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    pub(super) layers: Vec<String>,
}

/// An image's configuration document.
#[derive(Debug, Deserialize)]
pub(super) struct Configuration {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<Wishes>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wishes {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

impl Document {
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Document, Error> {
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| Error::invalid(what, error))?;
        if document.layers.len() > LAYERS_MAX {
            return Err(Error::invalid(what, format!("it has more than {LAYERS_MAX} layers")));
        }
        Ok(document)
    }

    /// The entry of an index for this machine: its own platform, else the only one that names none.
    pub(super) fn for_this_machine(&self, what: &str) -> Result<&Descriptor, Error> {
        let fits = |entry: &&Descriptor| {
            entry
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture())
        };
        let unnamed = || self.manifests.iter().find(|entry| entry.platform.is_none());
        self.manifests
            .iter()
            .find(fits)
            .or_else(unnamed)
            .ok_or_else(|| Error::invalid(what, format!("it has no image for linux/{}", architecture())))
    }
}

impl Configuration {
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Configuration, Error> {
        let parsed: Configuration =
            serde_json::from_slice(bytes).map_err(|error| Error::invalid(what, error))?;
        let other = !parsed.architecture.is_empty() && parsed.architecture != architecture();
        if other || (!parsed.os.is_empty() && parsed.os != "linux") {
            let reason = format!(
                "it is for {}/{}, this machine is linux/{}",
                parsed.os,
                parsed.architecture,
                architecture()
            );
            return Err(Error::invalid(what, reason));
        }
        if parsed.rootfs.diff_ids.is_empty() || parsed.rootfs.diff_ids.len() > LAYERS_MAX {
            return Err(Error::invalid(what, format!("it needs 1 to {LAYERS_MAX} layers")));
        }
        Ok(parsed)
    }

    /// The digests of the unpacked layers, the lowest first.
    pub(super) fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }

    pub(super) fn into_config(self) -> ImageConfig {
        let wishes = self.config.unwrap_or_default();
        ImageConfig {
            entrypoint: wishes.entrypoint.unwrap_or_default(),
            cmd: wishes.cmd.unwrap_or_default(),
            env: wishes.env.unwrap_or_default(),
            user: wishes.user.unwrap_or_default(),
            workdir: wishes.working_dir.unwrap_or_default(),
            stop_signal: wishes.stop_signal.filter(|signal| !signal.is_empty()),
        }
    }
}

/// This machine's name in the world of images.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
