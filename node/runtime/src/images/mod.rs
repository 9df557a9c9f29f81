//! Images on this machine: content by digest, names, unpacked layers.
//!
//! [`Images`] fetches from a registry, reads OCI and `docker save` archives, shares blobs with other
//! nodes by digest, and hands out what a container needs ([`Image::rootfs`]). Nothing it is given is
//! believed: each blob is checked against its digest and each layer against its diff id, archives and
//! layers are bounded in size and number, and no path or link of an image leads out of its layer.
//!
//! On disk, below the directory it is opened with:
//!
//! ```text
//! blobs/sha256/<hex>   manifests, configurations, compressed layers, as they came
//! layers/<chain>       unpacked layers, one directory each, complete or absent
//! names/<hash>         one small file per name
//! tmp/                 what is being written; emptied at start
//! ```

mod apart;
mod archive;
mod built_in;
mod digest;
mod manifest;
mod name;
mod registry;
mod room;
mod store;
mod tar_reader;
mod unpack;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

#[cfg(feature = "mutations")]
pub use apart::reached_by_an_unpacker;
pub use built_in::{BUILT_IN, is_built_in};
pub use digest::{Digest, InvalidDigest};
pub use registry::{Credentials, InvalidRegistry, PlainHttp, PlainHttpRegistry};
pub use store::{Config, Image, Images, Limits, Loaded, Removed};

/// Why an image cannot be used or could not be fetched. Nothing is half done: what was written so far
/// is dropped, or is a whole blob that the next try finds.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference is no image name.
    #[error("cannot read {reference:?} as an image name: {reason}")]
    Name {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is not here, and looking elsewhere was not wanted.
    #[error("image {0:?} is not on this machine")]
    Absent(String),
    /// The registry said no.
    #[error("could not pull {reference:?}: {reason}")]
    Pull {
        /// The image.
        reference: String,
        /// The registry's words.
        reason: String,
    },
    /// There was no answer, or one that speaks for no registry.
    #[error("could not reach the registry of {reference:?}: {reason}")]
    Unreachable {
        /// The image.
        reference: String,
        /// How far it went.
        reason: String,
    },
    /// The content is not what its digest says.
    #[error("{what} is damaged: its content has digest {found}, not {wanted}; fetch or save the image again")]
    Digest {
        /// Which blob or layer.
        what: String,
        /// The digest it was asked for by.
        wanted: Digest,
        /// The digest it has.
        found: Digest,
    },
    /// The bytes are no image, or one that must not be unpacked.
    #[error("cannot use {what}: {reason}")]
    Invalid {
        /// The archive, blob or entry.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A bound was passed.
    #[error(
        "{what} is larger than {limit} bytes; if you trust where it is from, start the node with a larger --image-layer-max"
    )]
    TooLarge {
        /// The archive, blob or layer.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// This machine's disk or kernel refused.
    #[error("could not {doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// The kernel's words.
        #[source]
        source: io::Error,
    },
}

impl Error {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Io { doing, source }
    }

    fn invalid(what: impl Into<String>, reason: impl ToString) -> Error {
        Error::Invalid { what: what.into(), reason: reason.to_string() }
    }
}

/// Digests that must stay: what [`Images::remove_unused`] is told by whoever knows the pods.
pub type InUse = BTreeSet<Digest>;

pub(crate) use apart::{ARGUMENT as UNPACKER_ARGUMENT, main as main_of_unpacker};

/// A directory that is being filled, removed unless it is kept.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn path(&self) -> &std::path::Path {
        self.0.as_deref().expect("it is there until it is kept")
    }

    /// Moves it to `place`; if another one was quicker, that one stays.
    fn keep(mut self, place: &std::path::Path) -> io::Result<()> {
        let path = self.0.take().expect("it is there until it is kept");
        match std::fs::rename(&path, place) {
            Err(_) if place.exists() => remove_all(&path),
            other => other,
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = remove_all(path);
        }
    }
}

fn remove_all(path: &std::path::Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
