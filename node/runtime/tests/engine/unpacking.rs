//! Archives that are read by a process of its own: the same images, the same refusals, and nothing left.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_runtime::images::{Config, Digest, Images, Limits};

use crate::world::World;

crate::tests![
    an_image_is_the_same_whoever_unpacks_it,
    a_refusal_is_the_same_whoever_unpacks,
    a_bomb_stops_at_its_limit_and_leaves_nothing,
    an_archive_whose_source_fails_leaves_nothing,
    an_unpacker_that_is_killed_is_an_error_and_leaves_nothing,
    the_daemon_does_not_grow_with_what_is_unpacked,
];

/// When every file was written; what the archive does not have is of now.
const WRITTEN_AT: i64 = 1_700_000_000;
const NAME: &str = "example.org/hello:1";

/// Stores whose layers are unpacked by a process of their own, and by this one.
fn stores(world: &World, limits: Limits) -> [(PathBuf, Images); 2] {
    [false, true].map(|in_place| {
        let dir = world.dir.path().join(if in_place { "here" } else { "apart" });
        let images = Images::open(&dir, Config { limits, in_place, ..Config::default() });
        (dir, images.expect("a store"))
    })
}

struct Entry<'a> {
    kind: tar::EntryType,
    path: &'a str,
    link: &'a str,
    mode: u32,
    content: &'a [u8],
}

fn entry<'a>(kind: tar::EntryType, path: &'a str, link: &'a str, mode: u32, content: &'a [u8]) -> Entry<'a> {
    Entry { kind, path, link, mode, content }
}

/// Names that the library would refuse are written as they are.
fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for Entry { kind, path, link, mode, content } in entries {
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(1234);
        header.set_gid(77);
        header.set_mtime(WRITTEN_AT as u64);
        header.set_size(content.len() as u64);
        header.set_cksum();
        layer.append(&header, *content).expect("memory");
    }
    layer.into_inner().expect("memory")
}

/// A `docker save` archive of one image.
fn archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = serde_json::json!({ "config": {}, "rootfs": { "diff_ids": diff_ids } }).to_string();
    let names: Vec<String> = (0..layers.len()).map(|layer| format!("{layer}.tar")).collect();
    let list = serde_json::json!([{ "Config": "c.json", "RepoTags": [NAME], "Layers": names }]).to_string();
    let mut entries = vec![entry(tar::EntryType::Regular, "c.json", "", 0o644, config.as_bytes())];
    for (name, layer) in names.iter().zip(layers) {
        entries.push(entry(tar::EntryType::Regular, name, "", 0o644, layer));
    }
    entries.push(entry(tar::EntryType::Regular, "manifest.json", "", 0o644, list.as_bytes()));
    layer(&entries)
}

/// What there is below a directory: kind and mode, owner, time and content of each file.
fn listing(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        let found = fs::symlink_metadata(&at).expect("a file");
        let content = match found.file_type() {
            kind if kind.is_dir() => {
                open.extend(
                    fs::read_dir(&at).expect("a directory").map(|entry| entry.expect("a file").path()),
                );
                String::new()
            }
            kind if kind.is_symlink() => fs::read_link(&at).expect("a link").display().to_string(),
            kind if kind.is_file() => String::from_utf8_lossy(&fs::read(&at).expect("a file")).into_owned(),
            _ => format!("device {}", found.rdev()),
        };
        let text = format!(
            "{:o} {}:{} {} {} {content:?}",
            found.mode(),
            found.uid(),
            found.gid(),
            found.mtime() == WRITTEN_AT,
            found.nlink()
        );
        all.insert(at.strip_prefix(dir).expect("it is below").to_owned(), text);
    }
    all
}

fn left_in(dir: &Path) -> Vec<PathBuf> {
    let parts = ["blobs/sha256", "layers", "names", "tmp"].into_iter();
    parts
        .flat_map(|part| fs::read_dir(dir.join(part)).expect("a directory"))
        .map(|entry| entry.expect("a file").path())
        .collect()
}

fn an_image_is_the_same_whoever_unpacks_it(world: &World) {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let lower = layer(&[
        entry(Directory, "usr/lib", "", 0o755, b""),
        entry(Symlink, "lib", "usr/lib", 0o777, b""),
        entry(Regular, "usr/lib/a", "", 0o4755, b"a"),
        entry(Regular, "usr/lib/b", "", 0o600, b"b"),
        entry(Directory, "old", "", 0o700, b""),
        entry(Regular, "old/file", "", 0o644, b"old"),
    ]);
    let upper = layer(&[
        entry(Regular, "lib/c", "", 0o644, b"c"),
        entry(Link, "linked", "usr/lib/a", 0o644, b""),
        entry(Regular, "usr/lib/.wh.b", "", 0o644, b""),
        entry(Regular, "old/.wh..wh..opq", "", 0o644, b""),
        entry(Regular, "old/new", "", 0o644, b"new"),
    ]);
    let archive = archive(&[lower, upper]);
    let [apart, here] = stores(world, Limits::default()).map(|(_, images)| {
        images.load(archive.as_slice()).expect("an image");
        let image = images.find(NAME).expect("a store").expect("an image");
        image.rootfs.lower.iter().map(|layer| listing(layer)).collect::<Vec<_>>()
    });
    assert_eq!(apart, here);
    assert!(here[0].contains_key(Path::new("usr/lib/c")), "{here:?}");
}

fn a_refusal_is_the_same_whoever_unpacks(world: &World) {
    use tar::EntryType::{Link, Regular, Symlink};
    let outside = world.dir.path().join("outside");
    fs::write(&outside, "mine").expect("a file");
    let target = outside.to_str().expect("plain letters");
    let up = format!("{}{target}", "../".repeat(8));
    let stores = stores(world, Limits::default());
    for bad in [
        layer(&[entry(Regular, "../outside", "", 0o644, b"theirs")]),
        layer(&[entry(Link, "a", target, 0o644, b"")]),
        layer(&[entry(Symlink, "a", "/", 0o777, b""), entry(Link, "b", &up, 0o644, b"")]),
        b"no archive at all".to_vec(),
    ] {
        let archive = archive(&[bad]);
        let [apart, here] = [0, 1].map(|store| {
            let (dir, images) = &stores[store];
            let error = images.load(archive.as_slice()).expect_err("it is refused").to_string();
            assert_eq!(left_in(dir), [] as [PathBuf; 0], "after {error}");
            error
        });
        assert_eq!(apart, here);
    }
    assert_eq!(fs::read_to_string(&outside).expect("a file"), "mine");
}

fn a_bomb_stops_at_its_limit_and_leaves_nothing(world: &World) {
    let files: Vec<String> = (0..50).map(|file| format!("file{file}")).collect();
    let many = files.iter().map(|file| entry(tar::EntryType::Regular, file, "", 0o644, b""));
    let many = layer(&many.collect::<Vec<_>>());
    let zeros = vec![0; 1 << 20];
    let large = layer(&[entry(tar::EntryType::Regular, "zeros", "", 0o644, &zeros)]);
    let limits = Limits { layer_bytes_max: 1 << 19, layer_entries_max: 20, ..Limits::default() };
    let [(dir, images), _] = stores(world, limits);
    for (bomb, says) in [(many, "more than 20 entries"), (large, "larger than 524288 bytes")] {
        let error = images.load(archive(&[bomb]).as_slice()).expect_err("it is refused").to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(left_in(&dir), [] as [PathBuf; 0], "after {error}");
    }
}

/// A connection that breaks off.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer) {
            Ok(0) => Err(io::Error::other("the line was cut")),
            other => other,
        }
    }
}

fn an_archive_whose_source_fails_leaves_nothing(world: &World) {
    let archive = archive(&[layer(&[entry(tar::EntryType::Regular, "a", "", 0o644, b"a")])]);
    let [(dir, images), _] = stores(world, Limits::default());
    let error = images.load(Broken(&archive[..archive.len() / 2])).expect_err("it fails").to_string();
    assert!(error.contains("the line was cut"), "{error}");
    assert_eq!(left_in(&dir), [] as [PathBuf; 0]);
}

/// An archive that kills who reads it, after its first piece.
struct Deadly<'a> {
    rest: &'a [u8],
    store: &'a Path,
}

impl Read for Deadly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = buffer.len().min(512);
        let count = self.rest.read(&mut buffer[..part])?;
        for process in unpackers_of(self.store) {
            kill(process, Signal::SIGKILL).expect("it was there");
        }
        Ok(count)
    }
}

/// Processes that were started for a store, by their arguments.
fn unpackers_of(store: &Path) -> Vec<Pid> {
    let named = store.to_str().expect("plain letters");
    let children = fs::read_dir("/proc").expect("proc").filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let pid: i32 = name.parse().ok()?;
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        (arguments.contains("image-unpacker") && arguments.contains(named)).then(|| Pid::from_raw(pid))
    });
    children.collect()
}

fn an_unpacker_that_is_killed_is_an_error_and_leaves_nothing(world: &World) {
    let archive = archive(&[layer(&[entry(tar::EntryType::Regular, "a", "", 0o644, b"a")])]);
    let [(dir, images), _] = stores(world, Limits::default());
    let error = images.load(Deadly { rest: &archive, store: &dir }).expect_err("it fails");
    let source = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(source.contains("killed by signal 9"), "{error}: {source}");
    assert_eq!(left_in(&dir), [] as [PathBuf; 0]);
    assert_eq!(unpackers_of(&dir), []);
    images.load(archive.as_slice()).expect("the next one is a new one");
}

/// The memory that this process has had at most, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

fn the_daemon_does_not_grow_with_what_is_unpacked(world: &World) {
    const BYTES: u64 = 48 << 20;
    const GROWTH_MAX: u64 = 8 << 20;
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").expect("a name");
    header.set_size(BYTES);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let start = header.as_bytes().to_vec();
    let content = start.as_slice().chain(io::repeat(0).take(BYTES + 1024));
    let [(_, images), _] = stores(world, Limits::default());
    let before = peak();
    let error = images.load(content).expect_err("it has no list");
    assert!(error.to_string().contains("neither index.json nor manifest.json"), "{error}");
    let grown = peak() - before;
    assert!(grown <= GROWTH_MAX, "{} KiB", grown >> 10);
}
