//! The store: blobs, names and layers, and how an image gets in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::digest::Hashing;
use super::manifest::{Configuration, DOCUMENT_BYTES_MAX, Document, INDEX_DEPTH_MAX};
use super::room::Room;
use super::{
    Credentials, Digest, Error, InUse, PlainHttp, Unfinished, apart, archive, built_in, registry, remove_all,
    unpack,
};
use crate::engine::RootfsSource;
use crate::opening;
use crate::rootfs::open_root;

/// How a store is used.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Bounds on what an image may cost.
    pub limits: Limits,
    /// Registries that are asked without TLS.
    pub plain_http: PlainHttp,
    /// Archives and layers are read by this very process, as in tests whose executable cannot be started as a
    /// process that does nothing else ([`main_if_shim`](crate::main_if_shim)).
    pub in_place: bool,
}

/// Bounds on what an image may cost this machine.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    /// One blob as it comes, compressed.
    pub blob_bytes_max: u64,
    /// One layer unpacked: what a compression bomb runs into.
    pub layer_bytes_max: u64,
    /// Files, links and directories of one layer.
    pub layer_entries_max: u64,
    /// What is left free on the disk whatever comes: the node's own files lie there too.
    pub free_bytes_min: u64,
}

impl Default for Limits {
    /// Room for the largest images in use (machine learning, some 20 GB in few layers). On a disk that is
    /// smaller a bomb stops at the last half gigabyte: some segments of the log, and time to look after it.
    fn default() -> Limits {
        Limits {
            blob_bytes_max: 16 << 30,
            layer_bytes_max: 32 << 30,
            layer_entries_max: 2_000_000,
            free_bytes_min: 512 << 20,
        }
    }
}

/// An image whose layers lie unpacked on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of its manifest: what `imageID` shows.
    pub digest: Digest,
    /// Layers and settings.
    pub rootfs: RootfsSource,
}

/// What an archive brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// The name, with registry and tag.
    pub name: String,
    /// The digest of its manifest.
    pub digest: Digest,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that stand for nothing any more, in order.
    pub names: Vec<String>,
    /// The size of the blobs that went; unpacked layers come on top.
    pub blob_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Name {
    name: String,
    digest: Digest,
}

/// The images of one node. Cheap to clone; calls that touch the disk block, except [`Images::ensure`].
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    config: Config,
    room: Room,
    /// The store that this one fills for; what is unpacked there is not unpacked again.
    base: Option<Images>,
    /// One pull per name at a time: the second one finds what the first one brought.
    pulls: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    unpacking: Arc<Mutex<()>>,
    next_tmp: AtomicU64,
}

/// Read and written at once.
const PIECE_BYTES: usize = 64 << 10;
/// How long a registry may take to say whether a name means something newer than what is here.
const NEWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a blob may wait for the rest of its image.
const FRESH: Duration = Duration::from_secs(3600);

impl Images {
    /// Opens the store in `dir`, which is made if absent; what a crash left half written goes.
    pub fn open(dir: &Path, config: Config) -> Result<Images, Error> {
        Self::open_for(dir, config, None)
    }

    fn open_for(dir: &Path, config: Config, base: Option<Images>) -> Result<Images, Error> {
        let open = |source| Error::Io { doing: format!("open the image store {}", dir.display()), source };
        remove_all(&dir.join("tmp")).map_err(open)?;
        for part in ["blobs/sha256", "layers", "names", "tmp"] {
            fs::create_dir_all(dir.join(part)).map_err(open)?;
        }
        let unpacking = base.as_ref().map(|base| base.inner.unpacking.clone());
        let inner = Inner {
            dir: dir.to_owned(),
            room: Room::new(dir, config.limits.free_bytes_min),
            config,
            base,
            pulls: Mutex::default(),
            unpacking: unpacking.unwrap_or_default(),
            next_tmp: AtomicU64::new(0),
        };
        Ok(Images { inner: Arc::new(inner) })
    }

    /// `reference` with registry, repository and tag or digest: `nginx` is `docker.io/library/nginx:latest`.
    pub fn full_name(reference: &str) -> Result<String, Error> {
        registry::parse(reference).map(|reference| reference.whole())
    }

    /// The image of that name if it is complete on this machine. Unpacks what is not unpacked yet.
    pub fn find(&self, reference: &str) -> Result<Option<Image>, Error> {
        if built_in::is_built_in(reference) {
            return built_in::image(self).map(Some);
        }
        match self.digest_of(reference)? {
            Some(digest) => self.find_digest(&digest),
            None => Ok(None),
        }
    }

    /// The manifest digest a name stands for here; a name that carries a digest stands for that.
    pub fn digest_of(&self, reference: &str) -> Result<Option<Digest>, Error> {
        let reference = registry::parse(reference)?;
        if let Some(digest) = reference.digest() {
            return digest.parse().map(Some).map_err(|error| Error::invalid(reference.whole(), error));
        }
        let path = self.name_path(&reference.whole());
        match fs::read(&path) {
            Ok(bytes) => {
                let name: Name = serde_json::from_slice(&bytes)
                    .map_err(|error| Error::invalid(path.display().to_string(), error))?;
                Ok(Some(name.digest))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { doing: format!("read {}", path.display()), source }),
        }
    }

    /// The image of that name, fetched from its registry unless it is here. With `always`, the registry is
    /// asked first whether the name means something newer; while it is out of reach, what is here is good.
    ///
    /// * `credentials`: each is tried until the registry says yes; with none it is asked as anybody.
    pub async fn ensure(
        &self,
        reference: &str,
        always: bool,
        credentials: &[Credentials],
    ) -> Result<Image, Error> {
        let name = registry::parse(reference)?.whole();
        let lock = self
            .inner
            .pulls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name.clone())
            .or_default()
            .clone();
        let turn = lock.lock().await;
        let image = self.ensure_alone(reference, &name, always, credentials).await;
        drop(turn);
        self.inner
            .pulls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, lock| Arc::strong_count(lock) > 2);
        image
    }

    async fn ensure_alone(
        &self,
        reference: &str,
        name: &str,
        always: bool,
        credentials: &[Credentials],
    ) -> Result<Image, Error> {
        let here = self.clone();
        let wanted = reference.to_owned();
        let found = blocking(move || here.find(&wanted)).await?;
        let pulling = self.pull(reference, credentials);
        let pulled = match found {
            // A digest means the same for ever, whatever the registry says.
            Some(image) if !always || built_in::is_built_in(reference) || reference.contains('@') => {
                return Ok(image);
            }
            Some(image) => match tokio::time::timeout(NEWER_LIMIT, pulling).await {
                Ok(Err(error @ Error::Unreachable { .. })) => {
                    tracing::warn!(image = name, %error, "starts what is here");
                    return Ok(image);
                }
                // What takes longer is on its way, and each try brings some more of it.
                Err(_) => {
                    tracing::warn!(image = name, "its registry is slow; starts what is here");
                    return Ok(image);
                }
                Ok(pulled) => pulled,
            },
            None => pulling.await,
        };
        let (here, digest, name) = (self.clone(), pulled?, name.to_owned());
        blocking(move || {
            here.set_name(&name, &digest)?;
            here.image(&digest)
        })
        .await
    }

    async fn pull(&self, reference: &str, credentials: &[Credentials]) -> Result<Digest, Error> {
        let Some((last, others)) = credentials.split_last() else {
            return registry::pull(self, reference, None).await;
        };
        for tried in others {
            match registry::pull(self, reference, Some(tried.clone())).await {
                Err(error @ Error::Pull { .. }) => tracing::debug!(image = reference, %error, "tries on"),
                other => return other,
            }
        }
        registry::pull(self, reference, Some(last.clone())).await
    }

    /// Reads an OCI archive or one of `docker save`, compressed or not, and returns its images.
    ///
    /// All of them are usable afterwards, or nothing of the archive is left: it is read and unpacked apart,
    /// then moved in.
    pub fn load(&self, mut archive: impl Read + Send) -> Result<Vec<Loaded>, Error> {
        let place = Unfinished(Some(self.tmp()));
        let open = || Images::open_for(place.path(), self.inner.config.clone(), Some(self.clone()));
        let mut apart = open()?;
        let loaded = if self.inner.config.in_place {
            archive::read(&apart, archive)?
        } else {
            let loaded = apart::read_archive(place.path(), *self.limits(), &mut archive)?;
            only_blobs(place.path())?;
            apart = open()?;
            loaded
        };
        // An archive has files that no image needs, such as its own lists and images for other machines.
        let mut needed = BTreeSet::new();
        for Loaded { digest, .. } in &loaded {
            for blob in apart.blobs(digest)? {
                if needed.insert(blob.hex()) {
                    apart.check_blob(&blob)?;
                }
            }
        }
        // Unpacking now shows what is wrong with an image to the person who loads it.
        for Loaded { digest, .. } in &loaded {
            apart.image(digest)?;
        }
        let _quiet = self.inner.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        for part in ["blobs/sha256", "layers"] {
            for entry in apart.entries(part)? {
                let name = entry.file_name();
                if part != "layers" && !needed.contains(&*name.to_string_lossy()) {
                    continue;
                }
                let target = self.inner.dir.join(part).join(name);
                Unfinished(Some(entry.path())).keep(&target).map_err(Error::io("keep a loaded image"))?;
            }
        }
        for Loaded { name, digest } in &loaded {
            self.set_name(name, digest)?;
        }
        Ok(loaded)
    }

    /// The image with that manifest (or index) if it is complete on this machine.
    pub fn find_digest(&self, digest: &Digest) -> Result<Option<Image>, Error> {
        if self.has(digest) { self.image(digest).map(Some) } else { Ok(None) }
    }

    /// Lets `name` stand for the image with that manifest, which must be here.
    pub fn set_name(&self, name: &str, digest: &Digest) -> Result<(), Error> {
        let name = Self::full_name(name)?;
        let bytes = serde_json::to_vec(&Name { name: name.clone(), digest: *digest })
            .map_err(|error| Error::invalid(&name, error))?;
        let tmp = self.tmp();
        let path = self.name_path(&name);
        fs::write(&tmp, bytes)
            .and_then(|()| fs::rename(&tmp, &path))
            .map_err(Error::io(format!("write {}", path.display())))
    }

    /// Every name with the digest it stands for, in order.
    pub fn names(&self) -> Result<Vec<Loaded>, Error> {
        let dir = self.inner.dir.join("names");
        let read = |source| Error::Io { doing: format!("read {}", dir.display()), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(read)? {
            let bytes = fs::read(entry.map_err(read)?.path()).map_err(read)?;
            if let Ok(Name { name, digest }) = serde_json::from_slice(&bytes) {
                names.push(Loaded { name, digest });
            }
        }
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(names)
    }

    /// The blobs an image consists of: its manifest first, then configuration and layers. What a node
    /// asks another one for, by digest. Fails if the manifest is not here.
    pub fn blobs(&self, digest: &Digest) -> Result<Vec<Digest>, Error> {
        let (manifest, document) = self.resolve(digest)?;
        let config = document
            .config
            .ok_or_else(|| Error::invalid(manifest.to_string(), "it names no configuration"))?;
        let mut blobs = vec![*digest];
        if manifest != *digest {
            blobs.push(manifest);
        }
        blobs.push(config.digest);
        blobs.extend(document.layers.iter().map(|layer| layer.digest));
        Ok(blobs)
    }

    /// Whether every blob of the image is here.
    pub fn has(&self, digest: &Digest) -> bool {
        self.blobs(digest).is_ok_and(|blobs| blobs.iter().all(|blob| self.blob_path(blob).exists()))
    }

    /// Opens a blob.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        match File::open(self.blob_path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Absent(digest.to_string())),
            other => other.map_err(Error::io(format!("open blob {digest}"))),
        }
    }

    /// Whether a blob is here.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Takes a blob from `content` if it is what `digest` says; one that is here already is not read.
    pub fn put_blob(&self, digest: &Digest, content: impl Read) -> Result<(), Error> {
        if self.has_blob(digest) {
            return Ok(());
        }
        let (found, tmp) = self.receive(content, &format!("blob {digest}"))?;
        if found != *digest {
            return Err(Error::Digest { what: "a blob".into(), wanted: *digest, found });
        }
        tmp.keep(&self.blob_path(digest)).map_err(Error::io("keep a blob"))
    }

    /// Removes names, blobs and layers of images that are in no use: not in `in_use` (manifest digests)
    /// and, unless `named_too`, not named either.
    pub fn remove_unused(&self, in_use: &InUse, named_too: bool) -> Result<Removed, Error> {
        self.sweep(in_use, |image| named_too && !in_use.contains(&image.digest))
    }

    /// Removes a name, and what its image alone needed unless that is in use. `None` if there is no such name.
    pub fn remove(&self, reference: &str, in_use: &InUse) -> Result<Option<Removed>, Error> {
        let name = Self::full_name(reference)?;
        if !self.name_path(&name).exists() {
            return Ok(None);
        }
        self.sweep(in_use, |image| image.name == name).map(Some)
    }

    /// Removes the names that `goes` names, then whatever neither a name nor `in_use` needs.
    fn sweep(&self, in_use: &InUse, goes: impl Fn(&Loaded) -> bool) -> Result<Removed, Error> {
        let _quiet = self.inner.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let (going, staying): (Vec<Loaded>, Vec<Loaded>) = self.names()?.into_iter().partition(goes);
        let mut removed = Removed::default();
        let mut unneeded: BTreeSet<Digest> = BTreeSet::new();
        for Loaded { name, digest } in going {
            unneeded.extend(self.blobs(&digest).unwrap_or_default());
            remove_all(&self.name_path(&name)).map_err(Error::io("remove a name"))?;
            removed.names.push(name);
        }
        let mut kept: BTreeSet<Digest> = BTreeSet::new();
        let mut chains: BTreeSet<String> = BTreeSet::new();
        for digest in staying.iter().map(|image| image.digest).chain(in_use.iter().copied()) {
            // An image of which something is missing keeps what it has: a pull may be on its way.
            kept.extend(self.blobs(&digest).unwrap_or(vec![digest]));
            if let Ok(configuration) = self.configuration(&digest) {
                chains.extend(chain_ids(configuration.diff_ids()));
            }
        }
        for entry in self.entries("blobs/sha256")? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else { continue };
            let metadata = entry.metadata().ok();
            // What came a moment ago and has no name yet is of a pull that goes on.
            let goes = unneeded.contains(&digest) || !metadata.as_ref().is_some_and(is_fresh);
            if goes && !kept.contains(&digest) {
                removed.blob_bytes += metadata.map_or(0, |metadata| metadata.len());
                remove_all(&entry.path()).map_err(Error::io("remove a blob"))?;
            }
        }
        for entry in self.entries("layers")? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !chains.contains(&name) && !name.starts_with(built_in::LAYER_PREFIX) {
                remove_all(&entry.path()).map_err(Error::io("remove a layer"))?;
            }
        }
        Ok(removed)
    }

    /// The image with that manifest (or index), its layers unpacked.
    fn image(&self, digest: &Digest) -> Result<Image, Error> {
        let (manifest, document) = self.resolve(digest)?;
        let configuration = self.configuration(digest)?;
        let diff_ids = configuration.diff_ids();
        if diff_ids.len() != document.layers.len() {
            return Err(Error::invalid(
                manifest.to_string(),
                "manifest and configuration differ in their layers",
            ));
        }
        // One layer at a time on the whole node: two pulls that share layers must not unpack them twice.
        let _turn = self.inner.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lower: Vec<PathBuf> = Vec::new();
        for ((chain, layer), diff_id) in chain_ids(diff_ids).into_iter().zip(&document.layers).zip(diff_ids) {
            let mut place = self.layer_path(&chain);
            if let Some(base) = self.inner.base.as_ref().map(|base| base.layer_path(&chain))
                && base.exists()
            {
                place = base;
            }
            if !place.exists() {
                let tmp = Unfinished(Some(self.tmp()));
                let blob = self.blob_path(&layer.digest);
                let room = self.inner.config.in_place.then_some(&self.inner.room);
                unpack::layer(&blob, diff_id, &lower, tmp.path(), self.limits(), room)?;
                tmp.keep(&place).map_err(Error::io("keep a layer"))?;
            }
            lower.insert(0, place);
        }
        Ok(Image { digest: *digest, rootfs: RootfsSource { lower, config: configuration.into_config() } })
    }

    /// The manifest for this machine that `digest` names, itself or through an index.
    fn resolve(&self, digest: &Digest) -> Result<(Digest, Document), Error> {
        let mut at = *digest;
        for _ in 0..INDEX_DEPTH_MAX {
            let document = Document::parse(&format!("manifest {at}"), &self.document(&at)?)?;
            if document.config.is_some() {
                return Ok((at, document));
            }
            at = document.for_this_machine(&format!("index {at}"))?.digest;
        }
        Err(Error::invalid(format!("index {digest}"), "it leads to no manifest"))
    }

    fn configuration(&self, digest: &Digest) -> Result<Configuration, Error> {
        let (manifest, document) = self.resolve(digest)?;
        let config = document
            .config
            .ok_or_else(|| Error::invalid(manifest.to_string(), "it names no configuration"))?;
        Configuration::parse(&format!("configuration {}", config.digest), &self.document(&config.digest)?)
    }

    /// A small blob as a whole.
    fn document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let read = Error::io(format!("read blob {digest}"));
        self.open_blob(digest)?.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(Error::TooLarge { what: format!("document {digest}"), limit: DOCUMENT_BYTES_MAX });
        }
        Ok(bytes)
    }

    /// Takes the digest of a blob again: another process has written it.
    pub(super) fn check_blob(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.blob_path(digest);
        let read = || Error::io(format!("read blob {digest}"));
        let root = open_root(&self.inner.dir.join("blobs/sha256")).map_err(read())?;
        let file = opening::plain_file(root.as_fd(), Path::new(&digest.hex()), libc::RESOLVE_NO_SYMLINKS);
        let Some(mut file) = file.map_err(read())? else {
            return Err(Error::invalid(path.display().to_string(), "it is no file"));
        };
        let mut hashing = Hashing::new(io::sink());
        io::copy(&mut file, &mut hashing).map_err(read())?;
        match hashing.finish().0 {
            found if found == *digest => Ok(()),
            found => {
                Err(Error::Digest { what: "a blob of the image archive".into(), wanted: *digest, found })
            }
        }
    }

    /// Writes `content` to a file of its own and says what it was.
    pub(super) fn receive(&self, mut content: impl Read, what: &str) -> Result<(Digest, Unfinished), Error> {
        let tmp = Unfinished(Some(self.tmp()));
        let write = |source| Error::Io { doing: format!("write {what}"), source };
        let file = File::create(tmp.path()).map_err(write)?;
        let mut file = Hashing::new(self.inner.room.guard(file));
        let limit = self.inner.config.limits.blob_bytes_max;
        let (mut piece, mut count) = (vec![0; PIECE_BYTES], 0);
        loop {
            match content.read(&mut piece) {
                Ok(0) => break,
                Ok(more) => {
                    count += more as u64;
                    if count > limit {
                        return Err(Error::TooLarge { what: what.to_owned(), limit });
                    }
                    file.write_all(&piece[..more]).map_err(write)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Not this machine's fault, as a failed write would be.
                Err(error) => return Err(Error::invalid(what, error)),
            }
        }
        Ok((file.finish().0, tmp))
    }

    /// Keeps a received blob under its digest.
    pub(super) fn keep(&self, digest: &Digest, blob: Unfinished) -> Result<(), Error> {
        blob.keep(&self.blob_path(digest)).map_err(Error::io("keep a blob"))
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn layer_path(&self, chain: &str) -> PathBuf {
        self.inner.dir.join("layers").join(chain)
    }

    /// A path for something unfinished; nobody else gets it.
    pub(super) fn tmp(&self) -> PathBuf {
        let number = self.inner.next_tmp.fetch_add(1, Ordering::Relaxed);
        self.inner.dir.join("tmp").join(number.to_string())
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.inner.config.limits
    }

    pub(super) fn plain_http(&self) -> &PlainHttp {
        &self.inner.config.plain_http
    }

    pub(super) fn room(&self) -> &Room {
        &self.inner.room
    }

    fn name_path(&self, name: &str) -> PathBuf {
        self.inner.dir.join("names").join(Digest::of(name.as_bytes()).hex())
    }

    fn entries(&self, part: &str) -> Result<Vec<fs::DirEntry>, Error> {
        let dir = self.inner.dir.join(part);
        let list = |source| Error::Io { doing: format!("list {}", dir.display()), source };
        fs::read_dir(&dir).map_err(list)?.collect::<io::Result<_>>().map_err(list)
    }
}

/// The names of a stack's directories, the lowest layer first: a layer is unpacked on top of those below
/// it (whiteouts, links and missing parents refer to them), so its name depends on them as well.
/// Source: OCI image specification, "Layer ChainID".
fn chain_ids(diff_ids: &[Digest]) -> Vec<String> {
    let mut chain: Option<Digest> = None;
    let mut names = Vec::new();
    for diff_id in diff_ids {
        let next = match chain {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain = Some(next);
        names.push(next.hex());
    }
    names
}

/// Takes everything but blobs from a store that another process has filled, and refuses one that leads elsewhere.
pub(super) fn only_blobs(store: &Path) -> Result<(), Error> {
    for part in ["layers", "names", "tmp"] {
        remove_all(&store.join(part)).map_err(Error::io("look through a loaded archive"))?;
    }
    for part in ["blobs", "blobs/sha256"] {
        if !fs::symlink_metadata(store.join(part)).is_ok_and(|found| found.is_dir()) {
            return Err(Error::invalid("the image archive", "what it left behind is no store of images"));
        }
    }
    Ok(())
}

fn is_fresh(metadata: &fs::Metadata) -> bool {
    metadata.modified().is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age < FRESH))
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(Error::Io { doing: "finish a task on images".into(), source: io::Error::other(error) })
    })
}
