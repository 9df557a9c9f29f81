//! OCI archives and those of `docker save`.

use std::collections::BTreeMap;
use std::io::Read;

use super::manifest::{DOCUMENT_BYTES_MAX, Document, INDEX_DEPTH_MAX, Saved};
use super::tar_reader::{Kind, Reader};
use super::unpack::decompress;
use super::{Digest, Error, Images, Loaded};

/// Files of one archive; the largest image has some hundred.
const FILES_MAX: usize = 10_000;
/// Names of one archive.
const NAMES_MAX: usize = 1_000;
/// Where tools write the name of an image in an OCI index, the better ones first.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// Reads the archive once, from front to back (it may come from a pipe): every file becomes a blob under
/// the digest it has, then the archive's own lists say what the files mean.
pub(super) fn read(images: &Images, archive: impl Read + Send) -> Result<Vec<Loaded>, Error> {
    let damaged = |error: std::io::Error| Error::invalid("the image archive", error);
    let mut files: BTreeMap<String, Digest> = BTreeMap::new();
    let mut links: BTreeMap<String, String> = BTreeMap::new();
    let mut lists: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let reader = decompress(archive).map_err(damaged)?;
    let mut archive = Reader::new(reader);
    while let Some(entry) = archive.next().map_err(damaged)? {
        let name = normal(&String::from_utf8_lossy(&entry.path));
        if files.len() + links.len() > FILES_MAX {
            return Err(Error::invalid("the image archive", format!("it has more than {FILES_MAX} files")));
        }
        if matches!(entry.kind, Kind::Link | Kind::HardLink) {
            let target = String::from_utf8_lossy(&entry.link).into_owned();
            // A hard link names the other file as the archive does, a link as it is seen from there.
            let target = if entry.kind == Kind::Link { beside(&name, &target) } else { normal(&target) };
            links.insert(name, target);
        } else if matches!(name.as_str(), "index.json" | "manifest.json") {
            let mut bytes = Vec::new();
            let content = archive.by_ref().take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes);
            content.map_err(|error| Error::invalid(&name, error))?;
            lists.insert(name, bytes);
        } else if entry.kind == Kind::File {
            let (digest, blob) =
                images.receive(&mut archive, &format!("file {name:?} of the image archive"))?;
            if let Some(wanted) = name.strip_prefix("blobs/sha256/") {
                let wanted: Digest =
                    format!("sha256:{wanted}").parse().map_err(|error| Error::invalid(&name, error))?;
                if wanted != digest {
                    return Err(Error::Digest {
                        what: format!("file {name:?} of the archive"),
                        wanted,
                        found: digest,
                    });
                }
            }
            images.keep(&digest, blob)?;
            files.insert(name, digest);
        }
    }
    for (name, target) in links {
        if let Some(digest) = files.get(&target) {
            files.insert(name, *digest);
        }
    }
    match (lists.get("manifest.json"), lists.get("index.json")) {
        // What `docker save` means by its names is in its own list, also where an OCI index stands beside it.
        (Some(list), _) => docker(images, list, &files),
        (None, Some(index)) => oci(images, index),
        (None, None) => {
            let reason = "it has neither index.json nor manifest.json; make it with `docker save` or `skopeo copy .. oci-archive:`";
            Err(Error::invalid("the image archive", reason))
        }
    }
}

/// Images of an OCI index, by the names in its annotations.
fn oci(images: &Images, index: &[u8]) -> Result<Vec<Loaded>, Error> {
    let index = Document::parse("index.json", index)?;
    let mut loaded = Vec::new();
    for entry in index.manifests.iter().take(NAMES_MAX) {
        let name = NAME_ANNOTATIONS.iter().find_map(|key| entry.annotations.get(*key));
        let Some(name) = name else { continue };
        // `skopeo` writes a bare tag where it was given no name.
        let name = if name.contains(['/', ':']) { name.clone() } else { format!("localhost/image:{name}") };
        check_depth(images, &entry.digest)?;
        loaded.push(Loaded { name: Images::full_name(&name)?, digest: entry.digest });
    }
    if loaded.is_empty() {
        let reason = "no image in it has a name; give one, as in `skopeo copy .. oci-archive:FILE:NAME:TAG`";
        return Err(Error::invalid("index.json", reason));
    }
    Ok(loaded)
}

fn check_depth(images: &Images, digest: &Digest) -> Result<(), Error> {
    images.blobs(digest).map(drop).map_err(|error| match error {
        Error::Absent(missing) => Error::invalid(
            "the image archive",
            format!("blob {missing} is missing (at most {INDEX_DEPTH_MAX} indices deep)"),
        ),
        other => other,
    })
}

/// Images of a `docker save` list. They have no manifest: one is written, so that an image has the same
/// shape wherever it came from.
fn docker(images: &Images, list: &[u8], files: &BTreeMap<String, Digest>) -> Result<Vec<Loaded>, Error> {
    let list: Vec<Saved> =
        serde_json::from_slice(list).map_err(|error| Error::invalid("manifest.json", error))?;
    let find = |name: &str| {
        files
            .get(&normal(name))
            .copied()
            .ok_or_else(|| Error::invalid("manifest.json", format!("file {name:?} is missing")))
    };
    let mut loaded = Vec::new();
    for saved in list.into_iter().take(NAMES_MAX) {
        let descriptor = |kind: &str, digest: Digest| {
            let size = std::fs::metadata(images.blob_path(&digest)).map_or(0, |metadata| metadata.len());
            serde_json::json!({ "mediaType": kind, "digest": digest, "size": size })
        };
        let layers = saved.layers.iter().map(|layer| find(layer)).collect::<Result<Vec<_>, _>>()?;
        let layer = |digest| descriptor("application/vnd.oci.image.layer.v1.tar", digest);
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", find(&saved.config)?),
            "layers": layers.into_iter().map(layer).collect::<Vec<_>>(),
        });
        let bytes = serde_json::to_vec(&manifest).map_err(|error| Error::invalid("manifest.json", error))?;
        let digest = Digest::of(&bytes);
        images.put_blob(&digest, bytes.as_slice())?;
        for tag in saved.repo_tags.unwrap_or_default().iter().take(NAMES_MAX) {
            loaded.push(Loaded { name: Images::full_name(tag)?, digest });
        }
    }
    if loaded.is_empty() {
        return Err(Error::invalid("manifest.json", "no image in it has a name; save it by NAME:TAG"));
    }
    Ok(loaded)
}

fn normal(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

/// Where a link in the file `name` leads: `docker save` writes `../<id>/layer.tar`.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "" | "." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}
