//! Images as the whole cluster has them: loaded on one node, usable on every node.
//!
//! `load` writes name, digest and holder into the map (`skein/images//<digest of the name>`). Every other
//! node fetches its blobs from a holder and becomes one: at once ([`ClusterImages::follow`]), so that the
//! image outlives the node it was loaded on, and at the latest when a pod needs it. A name that was loaded
//! means what was loaded; names that the map does not know go to their registry.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skein_control::node::admission::IMAGES as PREFIX;
use skein_control::view::View;
use skein_net::endpoint::{Class, Endpoint};
use skein_net::identity::NodeId;
use skein_net::stream::Stream;
use skein_raft_store::{Change, Expect, Handle, Op, Options, TokioRuntime};
use skein_runtime::Engine;
use skein_runtime::images::{Credentials, Digest, Error, Image, Images, Loaded, Removed, is_built_in};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::container::IMAGE;
use crate::admission::all_done;
use crate::members::Members;
use crate::pieces;
use crate::wire::{self, Answer, Ask};

/// Pieces of a blob on its way to another node.
const PIECE_BYTES: usize = 1 << 20;
const TRIES: usize = 8;
/// Between two tries to fetch what was loaded elsewhere: a holder that was away may be back.
const FETCH_AGAIN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    name: String,
    digest: Digest,
    holders: Vec<NodeId>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ClusterImages {
    pub(crate) local: Images,
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) endpoint: Endpoint,
    pub(crate) members: Members,
}

impl ClusterImages {
    /// Has the image here: as it was loaded into the cluster, else by [`Images::ensure`].
    pub(crate) async fn ensure(
        &self,
        reference: &str,
        ask_registry: bool,
        credentials: &[Credentials],
    ) -> Result<Image, Error> {
        if !is_built_in(reference)
            && let Some(record) = self.record(&Images::full_name(reference)?)
        {
            match self.fetch(&record).await {
                Ok(image) => return Ok(image),
                Err(error) => debug!(image = record.name, %error, "no holder gave the image"),
            }
        }
        self.local.ensure(reference, ask_registry, credentials).await
    }

    /// Whether the image is on this machine.
    pub(crate) async fn is_here(&self, reference: &str) -> bool {
        let (here, wanted) = (self.local.clone(), reference.to_owned());
        blocking(move || here.find(&wanted)).await.is_ok_and(|found| found.is_some())
    }

    /// The image if it is on this machine or on another one, without any registry.
    pub(crate) async fn present(&self, reference: &str) -> Result<Option<Image>, Error> {
        if !is_built_in(reference)
            && let Some(record) = self.record(&Images::full_name(reference)?)
        {
            match self.fetch(&record).await {
                Ok(image) => return Ok(Some(image)),
                Err(error) => debug!(image = record.name, %error, "no holder gave the image"),
            }
        }
        let (here, wanted) = (self.local.clone(), reference.to_owned());
        blocking(move || here.find(&wanted)).await
    }

    /// The image that [`ensure`](Self::ensure) or [`present`](Self::present) gave for `reference`, if it is
    /// still here: its name may mean another one by now.
    pub(crate) async fn unpacked(&self, reference: &str, digest: &str) -> Result<Option<Image>, Error> {
        let (here, wanted) = (self.local.clone(), reference.to_owned());
        let digest = digest.parse::<Digest>().ok().filter(|_| !is_built_in(reference));
        blocking(move || match digest {
            Some(digest) => here.find_digest(&digest),
            None => here.find(&wanted),
        })
        .await
    }

    /// Fetches what is loaded on other nodes, now and from now on, until `stopping`.
    pub(crate) async fn follow(self, stopping: CancellationToken) {
        // What could not be had, so that a holder who is away for a week fills no log.
        let mut refused: BTreeSet<Digest> = BTreeSet::new();
        while !stopping.is_cancelled() {
            let state = self.store.state();
            let records = state.range(PREFIX, None).filter_map(|(_, object)| {
                serde_json::from_slice::<Record>(&object.value).ok().filter(|record| !self.is_held(record))
            });
            let mut missing = false;
            for record in records.collect::<Vec<_>>() {
                match self.fetch(&record).await {
                    Ok(image) => info!(image = record.name, digest = %image.digest, "fetched"),
                    Err(error) => {
                        missing = true;
                        if refused.insert(record.digest) {
                            warn!(image = record.name, %error, "could not fetch a loaded image, trying on");
                        }
                    }
                }
                if stopping.is_cancelled() {
                    return;
                }
            }
            let Ok(mut watcher) = self.store.watch(PREFIX, state.revision()) else {
                // The ring has moved on, as after a snapshot: what there is now says all.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let again = async {
                if missing { tokio::time::sleep(FETCH_AGAIN).await } else { std::future::pending().await }
            };
            tokio::select! {
                _ = watcher.next() => {}
                () = again => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Whether this node holds the image, and is known to.
    fn is_held(&self, record: &Record) -> bool {
        record.holders.contains(&self.endpoint.node()) && self.local.has(&record.digest)
    }

    /// Takes an archive and, unless `here_only`, tells the cluster.
    pub(crate) async fn load(
        &self,
        archive: impl Read + Send + 'static,
        here_only: bool,
    ) -> Result<Vec<Loaded>, String> {
        let local = self.local.clone();
        let loaded = blocking(move || local.load(archive))
            .await
            .map_err(|error| crate::report::Chain(&error).to_string())?;
        for image in loaded.iter().filter(|_| !here_only) {
            self.announce(image, true).await?;
            info!(image = image.name, digest = %image.digest, "loaded");
        }
        Ok(loaded)
    }

    /// Writes this node among the holders; with `replace` the name means this digest from now on.
    async fn announce(&self, image: &Loaded, replace: bool) -> Result<(), String> {
        let key = key(&image.name);
        for _ in 0..TRIES {
            let state = self.store.state();
            let object = state.get(&key);
            let before: Option<Record> = object.and_then(|object| serde_json::from_slice(&object.value).ok());
            let mut holders = match &before {
                Some(record) if record.digest == image.digest => record.holders.clone(),
                Some(_) if !replace => return Ok(()),
                _ => Vec::new(),
            };
            if holders.contains(&self.endpoint.node()) {
                return Ok(());
            }
            holders.push(self.endpoint.node());
            let record = Record { name: image.name.clone(), digest: image.digest, holders };
            let op = Op {
                key: key.as_str().into(),
                expect: object.map_or(Expect::Absent, |object| Expect::Revision(object.mod_rev)),
                change: Change::Put(serde_json::to_vec(&record).expect("plain data").into()),
            };
            let answer =
                self.store.propose(vec![op], Options::default()).await.map_err(|error| error.to_string())?;
            if all_done(&answer) {
                return Ok(());
            }
            self.store.wait_revision(answer.revision, std::time::Duration::from_secs(3)).await;
        }
        Err("the image's record changes all the time; try again".into())
    }

    /// Images that this machine's pods need, by digest, each with one of those pods: what their containers are made
    /// of, and what the pods that are bound here name.
    pub(crate) async fn in_use(
        &self,
        engine: &dyn Engine,
        view: &View,
        node: &str,
    ) -> Result<BTreeMap<Digest, String>, String> {
        let mut in_use = BTreeMap::new();
        for sandbox in engine.list().await.map_err(|error| error.to_string())? {
            let images = sandbox.containers.iter().filter_map(|container| container.labels.get(IMAGE));
            for digest in images.filter_map(|digest| digest.parse::<Digest>().ok()) {
                in_use.insert(digest, format!("{}/{}", sandbox.spec.namespace, sandbox.spec.name));
            }
        }
        let mut named = BTreeMap::new();
        for (_, pod) in view.pods_on(node) {
            let Some(spec) = &pod.spec else { continue };
            let part = |part: &Option<String>| part.clone().unwrap_or_default();
            let whose = format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name));
            let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
            for image in containers.filter_map(|container| container.image.as_deref()) {
                if let Ok(name) = Images::full_name(image) {
                    named.insert(name, whose.clone());
                }
            }
        }
        let local = self.local.clone();
        let found = blocking(move || {
            let digest =
                |(name, pod): (String, String)| Ok(local.digest_of(&name)?.map(|digest| (digest, pod)));
            named.into_iter().filter_map(|entry| digest(entry).transpose()).collect::<Result<Vec<_>, Error>>()
        })
        .await
        .map_err(|error| error.to_string())?;
        in_use.extend(found);
        Ok(in_use)
    }

    /// Takes a name from the cluster, if it was loaded into that, and from this machine. `false` if nobody had it.
    pub(crate) async fn remove(
        &self,
        reference: &str,
        in_use: &BTreeMap<Digest, String>,
    ) -> Result<bool, String> {
        let name = Images::full_name(reference).map_err(|error| error.to_string())?;
        // First: a name that the cluster knows is fetched again at once.
        let was_known = self.forget(&name).await?;
        let (local, in_use) = (self.local.clone(), in_use.keys().copied().collect());
        let removed =
            blocking(move || local.remove(&name, &in_use)).await.map_err(|error| error.to_string())?;
        Ok(was_known || removed.is_some())
    }

    /// Removes what neither this machine's pods need nor the cluster was given to keep.
    pub(crate) async fn prune(&self, in_use: &BTreeMap<Digest, String>) -> Result<Removed, String> {
        let mut kept: BTreeSet<Digest> = in_use.keys().copied().collect();
        let state = self.store.state();
        let records = state.range(PREFIX, None);
        kept.extend(records.filter_map(|(_, object)| {
            serde_json::from_slice::<Record>(&object.value).ok().map(|record| record.digest)
        }));
        let local = self.local.clone();
        blocking(move || local.remove_unused(&kept, true)).await.map_err(|error| error.to_string())
    }

    /// Removes the record of a name; `false` if there is none.
    async fn forget(&self, name: &str) -> Result<bool, String> {
        let key = key(name);
        for _ in 0..TRIES {
            let Some(revision) = self.store.state().get(&key).map(|object| object.mod_rev) else {
                return Ok(false);
            };
            let expect = Expect::Revision(revision);
            let op = Op { key: key.as_str().into(), expect, change: Change::Delete };
            let answer = self.store.propose(vec![op], Options::default()).await;
            let answer = answer.map_err(|error| error.to_string())?;
            if all_done(&answer) {
                return Ok(true);
            }
            self.store.wait_revision(answer.revision, Duration::from_secs(3)).await;
        }
        Err("the image's record changes all the time; try again".into())
    }

    fn record(&self, name: &str) -> Option<Record> {
        self.store.state().get(&key(name)).and_then(|object| serde_json::from_slice(&object.value).ok())
    }

    /// Fetches what is missing of the image from its holders, one after another.
    async fn fetch(&self, record: &Record) -> Result<Image, Error> {
        let local = self.local.clone();
        let digest = record.digest;
        if !self.local.has(&digest) {
            let me = self.endpoint.node();
            let mut refusal = Error::Absent(record.name.clone());
            for holder in
                record.holders.iter().filter(|holder| **holder != me && self.members.get(**holder).is_some())
            {
                match self.fetch_from(*holder, &digest).await {
                    Ok(()) => break,
                    Err(error) => refusal = error,
                }
            }
            if !self.local.has(&digest) {
                return Err(refusal);
            }
        }
        let loaded = Loaded { name: record.name.clone(), digest };
        let name = loaded.name.clone();
        let image = blocking(move || {
            local.set_name(&name, &digest)?;
            local.find(&name)
        })
        .await?
        .ok_or_else(|| Error::Absent(record.name.clone()))?;
        if !record.holders.contains(&self.endpoint.node()) {
            // One more holder: a convenience, so no reason to fail.
            if let Err(error) = self.announce(&loaded, false).await {
                warn!(image = loaded.name, error, "could not tell that this node holds an image");
            }
        }
        Ok(image)
    }

    async fn fetch_from(&self, holder: NodeId, digest: &Digest) -> Result<(), Error> {
        let failed = |reason: String| Error::Pull { reference: digest.to_string(), reason };
        let blobs: Answer<Vec<String>> =
            wire::ask(&self.endpoint, holder, &Ask::Blobs(digest.to_string())).await.map_err(failed)?;
        for blob in blobs.map_err(failed)? {
            let blob: Digest = blob
                .parse()
                .map_err(|error: skein_runtime::images::InvalidDigest| failed(error.to_string()))?;
            if self.local.has_blob(&blob) {
                continue;
            }
            let ask = Ask::Blob(blob.to_string());
            let mut stream = wire::open(&self.endpoint, holder, &ask, Class::Bulk).await.map_err(failed)?;
            let first = stream.rx.recv().await.map_err(|error| failed(error.to_string()))?;
            let first = first.ok_or_else(|| failed("the holder did not answer".into()))?;
            wire::decode::<Answer<()>>(&first).map_err(failed)?.map_err(failed)?;
            let (feeder, pieces) = pieces::channel();
            let local = self.local.clone();
            let writing = tokio::task::spawn_blocking(move || local.put_blob(&blob, pieces));
            let read = async {
                while let Some(piece) = stream.rx.recv().await.map_err(|error| failed(error.to_string()))? {
                    if !feeder.feed(piece).await {
                        break;
                    }
                }
                Ok::<(), Error>(())
            }
            .await;
            drop(feeder);
            writing.await.map_err(|error| failed(error.to_string()))??;
            read?;
        }
        Ok(())
    }

    /// Answers [`Ask::Blobs`].
    pub(crate) async fn answer_blobs(&self, digest: &str) -> Answer<Vec<String>> {
        let digest: Digest =
            digest.parse().map_err(|error: skein_runtime::images::InvalidDigest| error.to_string())?;
        let local = self.local.clone();
        let blobs = blocking(move || local.blobs(&digest)).await.map_err(|error| error.to_string())?;
        Ok(blobs.iter().map(ToString::to_string).collect())
    }

    /// Answers [`Ask::Blob`]: whether it is here, then its bytes in pieces.
    pub(crate) async fn serve_blob(&self, digest: &str, mut stream: Stream) {
        let opened = digest
            .parse::<Digest>()
            .map_err(|error| error.to_string())
            .and_then(|digest| self.local.open_blob(&digest).map_err(|error| error.to_string()));
        let said: Answer<()> = opened.as_ref().map(drop).map_err(String::clone);
        if stream.tx.send(wire::encode(&said)).await.is_err() {
            return;
        }
        if let Ok(file) = opened {
            let mut file = tokio::fs::File::from_std(file);
            loop {
                let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
                match tokio::io::AsyncReadExt::read_buf(&mut file, &mut piece).await {
                    Ok(0) => break,
                    Ok(_) => {
                        if stream.tx.send(piece.freeze()).await.is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        }
        let _ = stream.tx.finish();
    }
}

fn key(name: &str) -> String {
    format!("{PREFIX}{}", Digest::of(name.as_bytes()).hex())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(Error::Io { doing: "finish a task on images".into(), source: std::io::Error::other(error) })
    })
}
