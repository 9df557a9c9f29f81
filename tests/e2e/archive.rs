//! Images in archives, made here: good ones and hostile ones.

use std::io::Write;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

/// A tar archive in the making.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    /// Any entry, also one that no tool would write.
    pub(crate) fn entry(mut self, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Tar {
        let mut header = tar::Header::new_gnu();
        let fields = header.as_old_mut();
        fields.name[..path.len()].copy_from_slice(path.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).expect("it is written to memory");
        self
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Tar {
        self.entry(EntryType::Regular, path, "", content)
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Tar {
        self.entry(EntryType::Symlink, path, target, b"")
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().expect("it is written to memory")
    }
}

/// A layer with Debian's static busybox that serves `text` at port 8080, and prints it.
pub(crate) fn busybox(text: &str) -> Vec<u8> {
    let program = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    Tar::new()
        .entry(EntryType::Directory, "bin", "", b"")
        .file("bin/busybox", &program.expect("busybox is installed"))
        .link("bin/sh", "busybox")
        .file("www/index.html", format!("{text}\n").as_bytes())
        .bytes()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("it is written to memory");
    encoder.finish().expect("it is written to memory")
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "os": "linux",
        "architecture": architecture,
        "config": { "Cmd": ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes()
}

/// An OCI archive of one image; `damage` may change any blob after its digest was taken.
pub(crate) fn oci(name: &str, layers: &[Vec<u8>], damage: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let blob = |kind: &'static str, bytes: Vec<u8>| (kind, digest(&bytes), bytes);
    let describe = |(kind, digest, bytes): &(&str, String, Vec<u8>)| {
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    };
    let layers_gz: Vec<_> = layers.iter().map(|layer| blob("layer.v1.tar+gzip", gzip(layer))).collect();
    let config = blob("config.v1+json", config(layers));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe(&config),
        "layers": layers_gz.iter().map(describe).collect::<Vec<_>>(),
    });
    let manifest = blob("manifest.v1+json", manifest.to_string().into_bytes());
    let mut entry = describe(&manifest);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let mut archive = Tar::new().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    for (kind, digest, bytes) in layers_gz.into_iter().chain([config, manifest]) {
        archive = archive.file(&format!("blobs/sha256/{digest}"), &damage(kind, bytes));
    }
    archive.file("index.json", index.as_bytes()).bytes()
}

/// The image as it should be.
pub(crate) fn good_oci(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    oci(name, layers, |_, bytes| bytes)
}

/// What `docker save` writes, compressed as a whole as many people do.
pub(crate) fn docker(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config(layers);
    let id = digest(&config);
    let paths: Vec<String> = layers.iter().map(|layer| format!("{}/layer.tar", digest(layer))).collect();
    let list: Value = json!([{ "Config": format!("{id}.json"), "RepoTags": [name], "Layers": paths }]);
    let mut archive = Tar::new();
    for (path, layer) in paths.iter().zip(layers) {
        archive = archive.file(path, layer);
    }
    let archive = archive.file(&format!("{id}.json"), &config);
    gzip(&archive.file("manifest.json", list.to_string().as_bytes()).bytes())
}
