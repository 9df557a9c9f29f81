//! Images made in code, good ones and hostile ones.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::store::only_blobs;
use super::*;

struct Store {
    images: Images,
    _dir: tempfile::TempDir,
}

fn store() -> Store {
    store_with(Limits::default())
}

fn store_with(limits: Limits) -> Store {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { limits, in_place: true, ..Config::default() };
    Store { images: Images::open(dir.path(), config).unwrap(), _dir: dir }
}

/// A layer in the making.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    /// An entry whose header gives another size than it has.
    fn entry_of_size(mut self, kind: tar::EntryType, path: &str, size: u64, content: &[u8]) -> Tar {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// Any entry: the header's own checks would refuse the names a hostile archive has.
    fn entry(mut self, kind: tar::EntryType, path: &str, link: &str, mode: u32, content: &[u8]) -> Tar {
        let mut header = tar::Header::new_gnu();
        let bytes = header.as_old_mut();
        bytes.name[..path.len()].copy_from_slice(path.as_bytes());
        bytes.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Tar {
        self.entry(tar::EntryType::Regular, path, "", 0o644, content)
    }

    fn dir(self, path: &str, mode: u32) -> Tar {
        self.entry(tar::EntryType::Directory, path, "", mode, b"")
    }

    fn link(self, path: &str, target: &str) -> Tar {
        self.entry(tar::EntryType::Symlink, path, target, 0o777, b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Tar {
        self.entry(tar::EntryType::Link, path, target, 0o644, b"")
    }

    /// What a pax header says about the entry that follows.
    fn attributes(self, records: &[u8]) -> Tar {
        self.entry(tar::EntryType::XHeader, "pax", "", 0o644, records)
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A record of a pax header.
fn record(key: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    // It begins with its own length.
    let rest = [b" ", key.as_bytes(), b"=", value.as_ref(), b"\n"].concat();
    let len = (1..).map(|digits| digits + rest.len()).find(|len| len.to_string().len() + rest.len() == *len);
    [len.unwrap().to_string().as_bytes(), &rest].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    serde_json::to_vec(&serde_json::json!({
        "os": "linux",
        "architecture": manifest::architecture(),
        "config": { "Cmd": ["/bin/hello"], "Env": ["A=1"], "WorkingDir": "/srv", "User": "7:8" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    }))
    .unwrap()
}

/// An OCI archive of one image named `example.org/hello:1`; `damage` may change any blob.
fn oci_archive(layers: &[Vec<u8>], damage: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let config = config(layers);
    let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "config": { "digest": Digest::of(&config), "size": config.len() },
        "layers": blobs.iter().map(|blob| serde_json::json!({ "digest": Digest::of(blob), "size": blob.len() })).collect::<Vec<_>>(),
    }))
    .unwrap();
    let index = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "digest": Digest::of(&manifest), "size": manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": "example.org/hello:1" },
        }],
    }))
    .unwrap();
    let mut archive = Tar::new().file("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}");
    for (kind, blob) in [("config", config), ("manifest", manifest)]
        .into_iter()
        .chain(blobs.into_iter().map(|blob| ("layer", blob)))
    {
        let name = long_name(&Digest::of(&blob));
        archive = archive.file(&name, &damage(kind, blob));
    }
    archive.file("index.json", &index).bytes()
}

fn long_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Loads an image of these layers and returns its directories, the topmost first.
fn unpacked(store: &Store, layers: &[Vec<u8>]) -> Vec<PathBuf> {
    store.images.load(oci_archive(layers, |_, blob| blob).as_slice()).unwrap();
    store.images.find("example.org/hello:1").unwrap().unwrap().rootfs.lower
}

/// What is wrong with an image of this one layer.
fn refusal(layer: Vec<u8>) -> String {
    refuses(&store(), &oci_archive(&[layer], |_, blob| blob)).to_string()
}

/// Why the archive is refused; nothing of it may be left.
#[track_caller]
fn refuses(store: &Store, archive: &[u8]) -> Error {
    let error = store.images.load(archive).unwrap_err();
    for part in ["blobs/sha256", "layers", "names", "tmp"] {
        let left = fs::read_dir(store._dir.path().join(part)).unwrap().count();
        assert_eq!(left, 0, "{left} of {part} are left after {error}");
    }
    error
}

#[test]
fn an_oci_archive_becomes_an_image_with_its_settings_and_files() {
    let store = store();
    let layer = Tar::new().dir("bin", 0o750).file("bin/hello", b"hi").link("greet", "bin/hello").bytes();
    let lower = unpacked(&store, &[layer]);
    assert_eq!(fs::read(lower[0].join("bin/hello")).unwrap(), b"hi");
    assert_eq!(fs::metadata(lower[0].join("bin")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::metadata(lower[0].join("bin")).unwrap().mtime(), 1_700_000_000);
    assert_eq!(fs::read_link(lower[0].join("greet")).unwrap(), PathBuf::from("bin/hello"));
    let config = store.images.find("example.org/hello:1").unwrap().unwrap().rootfs.config;
    assert_eq!((config.cmd, config.env), (vec!["/bin/hello".into()], vec!["A=1".into()]));
    assert_eq!((config.workdir.as_str(), config.user.as_str()), ("/srv", "7:8"));
}

#[test]
fn a_docker_archive_gives_the_same_layers_as_an_oci_archive() {
    let layer = Tar::new().file("bin/hello", b"hi").bytes();
    let config = config(std::slice::from_ref(&layer));
    let list = serde_json::to_vec(&serde_json::json!([
        { "Config": "c.json", "RepoTags": ["example.org/hello:1"], "Layers": ["a/layer.tar"] }
    ]))
    .unwrap();
    let archive = Tar::new()
        .file("c.json", &config)
        .file("b/layer.tar", &layer)
        .link("a/layer.tar", "../b/layer.tar")
        .file("manifest.json", &list)
        .bytes();
    let (docker, oci) = (store(), store());
    docker.images.load(archive.as_slice()).unwrap();
    let names = |lower: Vec<PathBuf>| {
        lower.iter().map(|path| path.file_name().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let from_docker = docker.images.find("example.org/hello:1").unwrap().unwrap().rootfs.lower;
    assert_eq!(names(from_docker), names(unpacked(&oci, &[layer])));
}

#[test]
fn an_upper_layer_hides_files_and_follows_links_of_the_lower_one() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: stacking layers needs rights to mount");
        return;
    }
    let store = store();
    let below = Tar::new()
        .dir("usr/lib", 0o755)
        .link("lib", "usr/lib")
        .dir("private", 0o700)
        .file("private/old", b"x")
        .file("gone", b"x")
        .bytes();
    let above = Tar::new()
        .file("lib/new", b"n")
        .file("private/new", b"n")
        .file(".wh.gone", b"")
        .hard_link("twin", "private/old")
        .bytes();
    let lower = unpacked(&store, &[below, above]);
    assert_eq!(fs::read(lower[0].join("usr/lib/new")).unwrap(), b"n");
    assert!(!lower[0].join("lib").exists(), "the link itself belongs to the lower layer");
    assert_eq!(fs::metadata(lower[0].join("private")).unwrap().permissions().mode() & 0o7777, 0o700);
    assert!(fs::symlink_metadata(lower[0].join("gone")).unwrap().file_type().is_char_device());
    assert_eq!(fs::read(lower[0].join("twin")).unwrap(), b"x");
}

/// The names in `path` of an image of these layers, as a container sees them.
fn listing(layers: &[Vec<u8>], path: &str) -> Vec<String> {
    let store = store();
    let lower = unpacked(&store, layers);
    let root = crate::rootfs::overlay::union(&lower, false).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())).join(path);
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn check_listing(below: Tar, above: Tar, path: &str, expect: &[&str]) {
    if nix::unistd::geteuid().is_root() {
        assert_eq!(listing(&[below.bytes(), above.bytes()], path), expect);
    } else {
        eprintln!("skipped: stacking layers needs rights to mount");
    }
}

#[test]
fn a_whiteout_hides_lower_layers_and_never_its_own() {
    let below =
        || Tar::new().file("d/old", b"x").file("d/sub/old", b"x").file("d/both", b"x").file("other", b"x");
    // An opaque mark, before, between and after what its own layer puts there.
    let mark = |tar: Tar| tar.file("d/.wh..wh..opq", b"");
    let files = |tar: Tar| tar.file("d/both", b"y").file("d/new", b"y").file("d/sub/new", b"y");
    for above in [
        mark(files(Tar::new())),
        files(mark(Tar::new())),
        mark(Tar::new().file("d/both", b"y").file("d/new", b"y")).file("d/sub/new", b"y"),
        mark(mark(files(Tar::new()))),
    ] {
        let bytes = above.bytes();
        let above = || Tar(tar::Builder::new(bytes[..bytes.len() - 1024].to_vec()));
        check_listing(below(), above(), "d", &["both", "new", "sub"]);
        check_listing(below(), above(), "d/sub", &["new"]);
        check_listing(below(), above(), "", &["d", "other"]);
    }
    // A single whiteout of what its own layer has, too.
    check_listing(
        below(),
        Tar::new().file("d/both", b"y").file("d/.wh.both", b""),
        "d",
        &["both", "old", "sub"],
    );
    check_listing(below(), Tar::new().file("d/sub/new", b"y").file("d/.wh.sub", b""), "d/sub", &["new"]);
    check_listing(below(), Tar::new().file("d/.wh.sub", b"").file("d/sub/new", b"y"), "d/sub", &["new"]);
    check_listing(
        below(),
        Tar::new().file("d/sub/.wh.old", b"").file("d/.wh.sub", b""),
        "d",
        &["both", "old"],
    );
    check_listing(below(), Tar::new().dir("d", 0o755).file(".wh.d", b""), "d", &[]);
    // What a hard link made the kernel copy up is still the lower layer's.
    let linked = Tar::new().hard_link("kept", "d/old").file("d/.wh..wh..opq", b"").file("d/new", b"y");
    check_listing(below(), linked, "d", &["new"]);
    let linked = Tar::new().hard_link("kept", "d/old").file("d/.wh.old", b"");
    check_listing(below(), linked, "d", &["both", "sub"]);
}

#[test]
fn a_whiteout_in_the_lowest_layer_hides_nothing() {
    let store = store();
    let layer = Tar::new().file("d/a", b"x").file("d/.wh..wh..opq", b"").file("d/.wh.a", b"").bytes();
    assert_eq!(fs::read(unpacked(&store, &[layer])[0].join("d/a")).unwrap(), b"x");
}

#[test]
fn a_hard_link_may_come_before_its_file() {
    let store = store();
    let layer = Tar::new().hard_link("b/twin", "a/file").dir("a", 0o755).file("a/file", b"x").bytes();
    let lower = unpacked(&store, &[layer]);
    assert_eq!(fs::read(lower[0].join("b/twin")).unwrap(), b"x");
    assert_eq!(fs::metadata(lower[0].join("a/file")).unwrap().nlink(), 2);
    let replaced = Tar::new().hard_link("twin", "file").file("twin", b"own").file("file", b"x").bytes();
    assert_eq!(fs::read(unpacked(&store, &[replaced])[0].join("twin")).unwrap(), b"own");
    let error = refusal(Tar::new().hard_link("twin", "nowhere").bytes());
    assert!(
        error.contains("entry \"twin\"") && error.contains("\"nowhere\", which is in no layer"),
        "{error}"
    );
}

#[test]
fn what_overlayfs_says_to_itself_and_devices_are_left_out_of_an_image() {
    let store = store();
    let attributes = [
        record("SCHILY.xattr.user.overlay.opaque", "y"),
        record("SCHILY.xattr.trusted.overlay.opaque", "y"),
        record("SCHILY.xattr.user.mine", "mine"),
    ];
    let layer = Tar::new()
        .attributes(&attributes.concat())
        .file("a", b"x")
        .entry(tar::EntryType::Char, "null", "", 0o666, b"")
        .entry(tar::EntryType::Block, "disk", "", 0o666, b"")
        .bytes();
    let lower = unpacked(&store, &[layer]);
    assert_eq!(fs::read_dir(&lower[0]).unwrap().count(), 1);
    let attribute = |name: &str| {
        let mut value = [0; 16];
        rustix::fs::getxattr(lower[0].join("a"), name, &mut value).map(|len| value[..len].to_vec())
    };
    assert!(attribute("user.overlay.opaque").is_err() && attribute("trusted.overlay.opaque").is_err());
    // Not every disk that tests run on keeps any.
    let mine = attribute("user.mine");
    assert!(mine == Ok(b"mine".to_vec()) || mine == Err(rustix::io::Errno::OPNOTSUPP), "{mine:?}");
}

#[test]
fn an_entry_that_cannot_be_read_is_named_with_the_reason() {
    let error =
        refusal(Tar::new().file("good", b"x").entry(tar::EntryType::new(b'M'), "half", "", 0, b"").bytes());
    assert!(error.contains("after entry \"good\"") && error.contains("\"half\" is of kind 'M'"), "{error}");
    let wrong_time = Tar::new().file("good", b"x").attributes(&record("mtime", "yesterday")).file("a", b"");
    let error = refusal(wrong_time.bytes());
    assert!(error.contains("after entry \"good\"") && error.contains("attribute \"mtime\""), "{error}");
    let mut cut = Tar::new().file("good", b"x").file("long", &[7; 2000]).bytes();
    cut.truncate(3 * 512 + 700);
    let error = refusal(cut);
    assert!(error.contains("entry \"long\"") && error.contains("cut off"), "{error}");
}

/// `skein`, compressed.
const XZ_OF_SKEIN: [u8; 64] = [
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x1c,
    0x00, 0x00, 0x00, 0x10, 0xcf, 0x58, 0xcc, 0x01, 0x00, 0x04, 0x73, 0x6b, 0x65, 0x69, 0x6e, 0x00, 0x00,
    0x00, 0x00, 0x3f, 0x97, 0x23, 0xd5, 0x8c, 0xca, 0x4a, 0x55, 0x00, 0x01, 0x1d, 0x05, 0xb8, 0x2d, 0x80,
    0xaf, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
];
const BZIP2_OF_SKEIN: [u8; 42] = [
    0x42, 0x5a, 0x68, 0x39, 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, 0xa5, 0xf9, 0x0d, 0x0b, 0x00, 0x00, 0x02,
    0x01, 0x80, 0x02, 0x29, 0x08, 0x00, 0x20, 0x00, 0x21, 0x83, 0x41, 0x9a, 0x0b, 0x0c, 0x71, 0x77, 0x24,
    0x53, 0x85, 0x09, 0x0a, 0x5f, 0x90, 0xd0, 0xb0,
];

#[test]
fn every_compression_that_tools_write_is_read_in_one_piece_or_many() {
    let expand = |bytes: &[u8]| {
        let mut content = Vec::new();
        unpack::decompress(bytes).unwrap().read_to_end(&mut content).map(|_| content)
    };
    let xz: &[u8] = &XZ_OF_SKEIN;
    let bzip2: &[u8] = &BZIP2_OF_SKEIN;
    let zstd = zstd::encode_all(b"skein".as_slice(), 1).unwrap();
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    for (compressed, pieces) in [
        (gzip(b"skein"), 1),
        ([gzip(b"skein"), gzip(b"skein")].concat(), 2),
        (xz.to_vec(), 1),
        ([xz, xz].concat(), 2),
        (bzip2.to_vec(), 1),
        ([bzip2, bzip2].concat(), 2),
        (zstd.clone(), 1),
        // As parallel writers have it: each frame behind one that says how long it is.
        ([&skipped, zstd.as_slice(), &skipped, &zstd].concat(), 2),
    ] {
        assert_eq!(expand(&compressed).unwrap(), b"skein".repeat(pieces), "{:02x?}", &compressed[..6]);
        assert!(expand(&compressed[..compressed.len() - 3]).is_err(), "{:02x?}", &compressed[..6]);
    }
    assert_eq!(expand(b"skein").unwrap(), b"skein");
}

#[test]
fn paths_and_links_never_leave_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap().to_owned();
    assert!(refusal(Tar::new().file("../evil", b"x").bytes()).contains("\"..\""));
    assert!(refusal(Tar::new().hard_link("evil", "../../etc/passwd").bytes()).contains("\"..\""));
    assert!(refusal(Tar::new().file("sub/.wh...", b"").bytes()).contains("whiteout"));
    // A link to the outside is only text: below it there is nothing, inside or outside.
    refusal(Tar::new().link("out", &target).file("out/evil", b"x").bytes());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let store = store();
    let lower = unpacked(
        &store,
        &[Tar::new().dir("etc", 0o755).link("in", "/etc").file("in/a", b"x").file("/abs", b"y").bytes()],
    );
    assert_eq!(fs::read(lower[0].join("etc/a")).unwrap(), b"x");
    assert_eq!(fs::read(lower[0].join("abs")).unwrap(), b"y");
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let limits = Limits { layer_bytes_max: 1 << 20, ..Limits::default() };
    let layer = Tar::new().file("zeros", &vec![0; 4 << 20]).bytes();
    let archive = oci_archive(&[layer], |_, blob| blob);
    assert!(archive.len() < 1 << 20, "it is small as it comes");
    let error = refuses(&store_with(limits), &archive);
    assert!(matches!(error, Error::TooLarge { limit: 1_048_576, .. }), "{error}");
    let hole = [record("GNU.sparse.size", "9223372036854775807"), record("GNU.sparse.map", "0,0")].concat();
    let limits = Limits { layer_bytes_max: 1 << 20, ..Limits::default() };
    let layer = Tar::new().attributes(&hole).file("hole", b"").bytes();
    let error = refuses(&store_with(limits), &oci_archive(&[layer], |_, blob| blob));
    assert!(matches!(error, Error::TooLarge { limit: 1_048_576, .. }), "{error}");
    let many = (0..200).fold(Tar::new(), |tar, number| tar.file(&number.to_string(), b""));
    let store = store_with(Limits { layer_entries_max: 100, ..Limits::default() });
    let error = refuses(&store, &oci_archive(&[many.bytes()], |_, blob| blob));
    assert!(error.to_string().contains("more than 100 entries"), "{error}");
}

/// A reader of archives takes a name as a whole into memory: 4 GiB of it fit into 4 MiB of gzip.
#[test]
fn a_name_without_end_costs_no_memory() {
    use tar::EntryType::{GNULongName, XHeader};
    for kind in [GNULongName, XHeader] {
        let long = |tar: Tar| tar.entry(kind, "long", "", 0o644, &vec![b'a'; 2 << 20]).file("a", b"");
        assert!(refusal(long(Tar::new()).bytes()).contains("of more than 1048576 bytes"), "{kind:?}");
        let error = refuses(&store(), &gzip(&long(Tar::new()).bytes()));
        assert!(error.to_string().contains("of more than 1048576 bytes"), "{error}");
    }
}

#[test]
fn long_names_and_sizes_among_the_attributes_are_read_as_they_stand() {
    let name = format!("{}/file", "d".repeat(150));
    let attributes = [record("path", &name), record("size", "3")].concat();
    // The file's own header says that it is empty: the attributes count.
    let layer = Tar::new()
        .attributes(&attributes)
        .entry_of_size(tar::EntryType::Regular, "short", 0, b"abc")
        .entry(
            tar::EntryType::GNULongName,
            "././@LongLink",
            "",
            0o644,
            name.replace("file", "twin").as_bytes(),
        )
        .file("short", b"de")
        .bytes();
    let store = store();
    let lower = unpacked(&store, &[layer]);
    assert_eq!(fs::read(lower[0].join(&name)).unwrap(), b"abc");
    assert_eq!(fs::read(lower[0].join(name.replace("file", "twin"))).unwrap(), b"de");
}

#[test]
fn a_full_disk_stops_before_it_is_full() {
    let store = store_with(Limits { free_bytes_min: 1 << 60, ..Limits::default() });
    let error = refuses(&store, &oci_archive(&[Tar::new().file("a", b"x").bytes()], |_, blob| blob));
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("would have less than"), "{cause}");
}

#[test]
fn a_flipped_bit_in_any_blob_is_noticed_and_named() {
    for damaged in ["config", "manifest", "layer"] {
        let layer = Tar::new().file("a", b"x").bytes();
        let flip = |kind: &str, mut blob: Vec<u8>| {
            if kind == damaged {
                blob[10] ^= 1;
            }
            blob
        };
        let error = refuses(&store(), &oci_archive(&[layer], flip));
        assert!(matches!(error, Error::Digest { .. }), "{damaged}: {error}");
    }
}

#[test]
fn an_archive_that_is_none_says_what_it_should_be() {
    let error = refuses(&store(), &Tar::new().file("readme", b"x").bytes());
    assert!(error.to_string().contains("docker save"), "{error}");
    refuses(&store(), b"not an archive at all");
    refuses(&store(), b"");
}

/// Whatever it is, it is not quoted: it may be long, or a secret.
#[test]
fn a_file_that_is_no_archive_is_called_so() {
    let secret = "root:secret:0:0\n".repeat(64);
    let mut damaged = Tar::new().file("index.json", b"{}").bytes();
    damaged[0] ^= 1;
    for bytes in [secret.as_bytes(), b"short", &damaged] {
        let error = refuses(&store(), bytes).to_string();
        assert!(error.contains("no tar archive") && !error.contains("secret"), "{error}");
    }
}

#[test]
fn an_archive_cut_anywhere_leaves_nothing() {
    let whole = oci_archive(&[Tar::new().file("a", b"x").bytes()], |_, blob| blob);
    let end = whole.len() - 1024;
    for cut in (0..end).step_by(512).chain([1, 700, end - 1]) {
        refuses(&store(), &whole[..cut]);
    }
}

#[test]
fn a_refused_archive_takes_nothing_away() {
    let store = store();
    let layer = Tar::new().file("a", b"1").bytes();
    let lower = unpacked(&store, std::slice::from_ref(&layer));
    let flip = |kind: &str, mut blob: Vec<u8>| {
        if kind == "manifest" {
            blob[10] ^= 1;
        }
        blob
    };
    assert!(store.images.load(oci_archive(&[layer], flip).as_slice()).is_err());
    assert_eq!(store.images.find("example.org/hello:1").unwrap().unwrap().rootfs.lower, lower);
    assert!(lower[0].join("a").exists());
}

#[test]
fn an_image_for_another_machine_is_refused_by_name() {
    let text = br#"{"os":"linux","architecture":"z80","rootfs":{"diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#;
    let error = manifest::Configuration::parse("configuration", text).unwrap_err();
    assert!(error.to_string().contains("z80"), "{error}");
}

#[test]
fn blobs_travel_between_stores_by_digest() {
    let (here, there) = (store(), store());
    let layer = Tar::new().file("bin/hello", b"hi").bytes();
    unpacked(&here, &[layer]);
    let digest = here.images.digest_of("example.org/hello:1").unwrap().unwrap();
    for blob in here.images.blobs(&digest).unwrap() {
        there.images.put_blob(&blob, here.images.open_blob(&blob).unwrap()).unwrap();
    }
    assert!(there.images.has(&digest));
    there.images.set_name("hello:1", &digest).unwrap();
    assert!(there.images.find("docker.io/library/hello:1").unwrap().is_some());
    assert!(there.images.put_blob(&Digest::of(b"a"), b"b".as_slice()).is_err());
}

#[test]
fn what_is_in_no_use_goes_and_what_is_in_use_stays() {
    let store = store();
    let keep = store
        .images
        .load(oci_archive(&[Tar::new().file("a", b"1").bytes()], |_, blob| blob).as_slice())
        .unwrap();
    let in_use: InUse = keep.iter().map(|loaded| loaded.digest).collect();
    store.images.remove_unused(&in_use, true).unwrap();
    assert!(store.images.find("example.org/hello:1").unwrap().is_some());
    let removed = store.images.remove_unused(&InUse::new(), true).unwrap();
    assert_eq!(removed.names, ["example.org/hello:1"]);
    assert!(removed.blob_bytes > 0);
    assert_eq!(store.images.find("example.org/hello:1").unwrap(), None);
    assert_eq!(fs::read_dir(store._dir.path().join("layers")).unwrap().count(), 0);
}

#[test]
fn a_name_goes_with_what_only_its_image_needed() {
    let store = store();
    let shared = Tar::new().file("shared", b"x").bytes();
    let lower = unpacked(&store, std::slice::from_ref(&shared));
    let blobs = || fs::read_dir(store._dir.path().join("blobs/sha256")).unwrap().count();
    assert_eq!(blobs(), 3, "manifest, configuration and layer, and nothing else of the archive");
    let digest = store.images.digest_of("example.org/hello:1").unwrap().unwrap();
    store.images.set_name("example.org/twin:1", &digest).unwrap();
    assert_eq!(store.images.remove("example.org/none:1", &InUse::new()).unwrap(), None);
    // Another name, then a container, still needs it.
    let removed = store.images.remove("example.org/hello:1", &InUse::new()).unwrap().unwrap();
    assert_eq!((removed.names.len(), removed.blob_bytes), (1, 0));
    let removed = store.images.remove("example.org/twin:1", &InUse::from([digest])).unwrap().unwrap();
    assert_eq!((removed.names.len(), removed.blob_bytes), (1, 0));
    assert!(lower[0].join("shared").exists() && store.images.names().unwrap().is_empty());
    store.images.set_name("example.org/hello:1", &digest).unwrap();
    let removed = store.images.remove("example.org/hello:1", &InUse::new()).unwrap().unwrap();
    assert!(removed.blob_bytes > 0 && !lower[0].exists());
    assert_eq!(blobs(), 0);
}

#[test]
fn the_blobs_of_a_pull_that_goes_on_stay() {
    let store = store();
    let digest = Digest::of(b"half an image");
    store.images.put_blob(&digest, b"half an image".as_slice()).unwrap();
    store.images.remove_unused(&InUse::new(), true).unwrap();
    let blob = store.images.open_blob(&digest).unwrap();
    blob.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(86_400)).unwrap();
    store.images.remove_unused(&InUse::new(), true).unwrap();
    assert!(!store.images.has_blob(&digest));
}

#[test]
fn the_built_in_image_is_this_program() {
    let store = store();
    let image = store.images.find(BUILT_IN).unwrap().unwrap();
    let program = fs::metadata("/proc/self/exe").unwrap().len();
    assert_eq!(fs::metadata(image.rootfs.lower[0].join("skein")).unwrap().len(), program);
    for again in [BUILT_IN, "skein.dev/tiny:latest"] {
        assert_eq!(store.images.find(again).unwrap().unwrap(), image);
    }
}

#[test]
fn names_mean_what_docker_means_by_them() {
    assert_eq!(Images::full_name("nginx").unwrap(), "docker.io/library/nginx:latest");
    assert_eq!(Images::full_name("example.org:5000/a/b:1").unwrap(), "example.org:5000/a/b:1");
    for wrong in ["Not A Name", "UPPER/case", "example.org/App", "", "a@sha256:1"] {
        assert!(Images::full_name(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_another_process_left_behind_is_looked_through() {
    let outside = tempfile::tempdir().unwrap();
    let content = b"of another one".as_slice();
    let digest = Digest::of(content);
    fs::write(outside.path().join(digest.hex()), content).unwrap();

    // Whole, damaged, and a link to what has the digest elsewhere on the machine.
    let store = store();
    let blob = store.images.blob_path(&digest);
    fs::write(&blob, content).unwrap();
    store.images.check_blob(&digest).unwrap();
    fs::write(&blob, b"damaged").unwrap();
    assert!(matches!(store.images.check_blob(&digest), Err(Error::Digest { .. })));
    fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink(outside.path().join(digest.hex()), &blob).unwrap();
    assert!(store.images.check_blob(&digest).is_err());

    // Layers that nobody unpacked, and the machine's own files as blobs.
    let dir = store._dir.path();
    fs::create_dir(dir.join("layers/planted")).unwrap();
    only_blobs(dir).unwrap();
    assert!(!dir.join("layers/planted").exists());
    fs::remove_dir_all(dir.join("blobs/sha256")).unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.join("blobs/sha256")).unwrap();
    assert!(only_blobs(dir).is_err());
}
