//! Every dialect, by hand and by the tools that write it, and archives that nobody should believe.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// A block of an archive: these fields, and a checksum that fits.
fn header(kind: u8, name: &str, fields: &[(Range<usize>, &[u8])]) -> Vec<u8> {
    let mut block = [0; BLOCK_BYTES];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[156] = kind;
    block[Header::MAGIC].copy_from_slice(b"ustar\0");
    for (place, value) in fields {
        block[place.start..][..value.len()].copy_from_slice(value);
    }
    block[Header::CHECKSUM].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[Header::CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

fn blocks(content: &[u8]) -> Vec<u8> {
    let mut content = content.to_vec();
    content.resize(content.len().next_multiple_of(BLOCK_BYTES), 0);
    content
}

fn octal(number: usize) -> Vec<u8> {
    format!("{number:011o}\0").into_bytes()
}

fn sized(kind: u8, name: &str, content: &[u8]) -> Vec<u8> {
    [header(kind, name, &[(Header::SIZE, &octal(content.len()))]), blocks(content)].concat()
}

/// A pax header of these `key=value`.
fn pax(records: &[&str]) -> Vec<u8> {
    let record = |text: &&str| {
        let len = (1..).map(|digits| digits + text.len() + 2);
        let len = len.into_iter().find(|len| len.to_string().len() + text.len() + 2 == *len);
        format!("{} {text}\n", len.expect("a length"))
    };
    sized(b'x', "pax", records.iter().map(record).collect::<String>().as_bytes())
}

/// Every entry with its content.
fn read(archive: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        // Files of hostile archives may be long.
        reader.by_ref().take(1 << 20).read_to_end(&mut content)?;
        entries.push((entry, content));
    }
    Ok(entries)
}

#[track_caller]
fn read_one(parts: &[Vec<u8>]) -> (Entry, Vec<u8>) {
    let entries = read(&parts.concat()).expect("an archive");
    assert_eq!(entries.len(), 1);
    entries.into_iter().next().expect("an entry")
}

#[track_caller]
fn refused(parts: &[Vec<u8>], why: &str) {
    let error = read(&parts.concat()).expect_err("no archive").to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn blank_numbers_are_zero_and_binary_ones_may_be_negative() {
    let blank = header(
        b'0',
        "a",
        &[
            (Header::MODE, b"       \0"),
            (Header::UID, b"        "),
            (Header::SIZE, b"            "),
            (Header::MAJOR, b"        "),
        ],
    );
    let (entry, content) = read_one(&[blank]);
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.size, content.len()), (0, 0, 0, 0, 0));

    let before_1970 = [&[0xff; 4][..], &(-2i64).to_be_bytes()].concat();
    let large = [&[0x80, 0, 0, 0][..], &3_000_000_000u32.to_be_bytes()].concat();
    let (entry, _) =
        read_one(&[header(b'0', "a", &[(Header::MODIFIED, &before_1970), (Header::UID, &large)])]);
    assert_eq!(entry.modified, Time { seconds: -2, nanoseconds: 0 });
    assert_eq!(entry.uid, 3_000_000_000);

    refused(&[header(b'0', "a", &[(Header::SIZE, &before_1970)])], "negative");
    refused(&[header(b'0', "a", &[(Header::UID, b"0x12")])], "none");
    refused(
        &[header(b'0', "a", &[(Header::SIZE, &[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255])])],
        "size",
    );
}

#[test]
fn times_of_pax_have_fractions_and_may_lie_before_1970() {
    for (text, seconds, nanoseconds) in [
        ("1700000000", 1_700_000_000, 0),
        ("1700000000.5", 1_700_000_000, 500_000_000),
        ("0.1234567899", 0, 123_456_789),
        ("-1", -1, 0),
        ("-1.25", -2, 750_000_000),
        ("99999999999999999999999", SECONDS_MAX, 0),
    ] {
        let (entry, _) = read_one(&[pax(&[&format!("mtime={text}")]), header(b'0', "a", &[])]);
        assert_eq!(entry.modified, Time { seconds, nanoseconds }, "{text}");
    }
    for wrong in ["x", "1.2.3", "1e5", ".5", "+1"] {
        refused(&[pax(&[&format!("mtime={wrong}")]), header(b'0', "a", &[])], "\"mtime\"");
    }
}

#[test]
fn names_come_from_the_header_its_prefix_or_what_extends_it() {
    let (entry, _) = read_one(&[header(b'0', "file", &[(Header::PREFIX, b"some/where")])]);
    assert_eq!(entry.path, b"some/where/file");
    let (entry, _) = read_one(&[header(b'0', "file", &[(Header::PREFIX, b"x"), (Header::MAGIC, b"ustar ")])]);
    assert_eq!(entry.path, b"file", "old GNU archives keep something else there");
    let long = "d/".repeat(200);
    let (entry, _) = read_one(&[sized(b'L', "l", format!("{long}\0").as_bytes()), header(b'5', "cut", &[])]);
    assert_eq!(entry.path, long.as_bytes());
    let (entry, _) = read_one(&[pax(&["path=right", "linkpath=there"]), header(b'2', "cut", &[])]);
    assert_eq!((entry.path.as_slice(), entry.link.as_slice()), (&b"right"[..], &b"there"[..]));
    let (entry, _) = read_one(&[header(b'\0', "old/", &[])]);
    assert_eq!(entry.kind, Kind::Directory);
}

#[test]
fn what_has_no_content_has_none_whatever_its_size_says() {
    let link = header(b'1', "twin", &[(Header::LINK, b"a"), (Header::SIZE, &octal(700))]);
    let entries = read(&[link, sized(b'0', "a", b"abc")].concat()).expect("an archive");
    assert_eq!(entries[0].0.size, 0);
    assert_eq!(entries[1].1, b"abc");
}

/// `a` at 2, `bc` at 700, and nothing more up to 1000.
fn sparse_content() -> Vec<u8> {
    let mut content = vec![0; 1000];
    content[2] = b'a';
    content[700..702].copy_from_slice(b"bc");
    content
}

#[test]
fn sparse_files_of_every_kind_have_their_holes() {
    let gnu = |name: &str| {
        let map = [2, 1, 700, 2, 1000, 0].map(octal);
        header(
            b'S',
            name,
            &[
                (386..482, &map.map(|field| field[..12].to_vec()).concat()),
                (Header::REAL_SIZE, &octal(1000)),
                (Header::SIZE, &octal(3)),
            ],
        )
    };
    let pax_0_0 = pax(&[
        "GNU.sparse.size=1000",
        "GNU.sparse.numblocks=2",
        "GNU.sparse.offset=2",
        "GNU.sparse.numbytes=1",
        "GNU.sparse.offset=700",
        "GNU.sparse.numbytes=2",
    ]);
    let pax_0_1 = pax(&["GNU.sparse.size=1000", "GNU.sparse.map=2,1,700,2", "GNU.sparse.name=a"]);
    let pax_1_0 =
        pax(&["GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=a", "GNU.sparse.realsize=1000"]);
    let with_map = [blocks(b"3\n2\n1\n700\n2\n1000\n0\n"), b"abc".to_vec()].concat();
    for archive in [
        [gnu("a"), blocks(b"abc")].concat(),
        [pax_0_0, sized(b'0', "a", b"abc")].concat(),
        [pax_0_1, sized(b'0', "GNUSparseFile.1/a", b"abc")].concat(),
        [pax_1_0, sized(b'0', "GNUSparseFile.1/a", &with_map)].concat(),
    ] {
        let archive = [archive, sized(b'0', "next", b"n")].concat();
        let entries = read(&archive).expect("an archive");
        assert_eq!((entries[0].0.path.as_slice(), entries[0].0.size), (&b"a"[..], 1000));
        assert_eq!(entries[0].1, sparse_content());
        assert_eq!(entries[1].1, b"n");

        let mut reader = Reader::new(archive.as_slice());
        reader.next().expect("an archive");
        assert_eq!(reader.skip_hole(), 2);
        reader.read_exact(&mut [0]).expect("a byte");
        assert_eq!(reader.skip_hole(), 697);
        reader.read_exact(&mut [0, 0]).expect("two bytes");
        assert_eq!((reader.skip_hole(), reader.skip_hole()), (298, 0));
    }
}

#[test]
fn a_map_that_does_not_fit_its_file_is_refused() {
    let file = |map: &str| {
        vec![pax(&["GNU.sparse.size=10", &format!("GNU.sparse.map={map}")]), sized(b'0', "a", b"abc")]
    };
    read(&file("0,3").concat()).expect("an archive");
    for (map, why) in [
        ("0,4", "fit its content"),
        ("0,2", "fit its content"),
        ("0", "fit its content"),
        ("8,3", "leaves the file"),
        ("5,2,4,1", "leaves the file"),
        ("18446744073709551615,3", "leaves the file"),
        ("a", "\"GNU.sparse.map\""),
    ] {
        refused(&file(map), why);
    }
    let many = format!("GNU.sparse.map={}", "0,0,".repeat(RUNS_MAX + 1));
    refused(&[pax(&["GNU.sparse.size=10", &many]), sized(b'0', "a", b"abc")], "pieces");
    let lines = |text: &str| {
        vec![
            pax(&["GNU.sparse.major=1", "GNU.sparse.realsize=10"]),
            sized(b'0', "a", &blocks(text.as_bytes())),
        ]
    };
    refused(&lines("99999999\n"), "pieces");
    refused(&lines("x\n"), "that is none");
    refused(&lines("99999999999999999999999\n"), "that is none");
    refused(&lines("1\n0\n"), "that is none");
}

#[test]
fn headers_without_a_file_come_to_an_end() {
    refused(&vec![pax(&["path=a"]); EXTENSIONS_MAX + 1], "more headers for one file");
    refused(&[header(b'x', "pax", &[(Header::SIZE, &octal(2 << 20))])], "of more than 1048576 bytes");
    refused(&[sized(b'x', "pax", b"30 path=a\n")], "damaged");
    refused(&[sized(b'x', "pax", b"9 path=a")], "damaged");
    refused(&[sized(b'x', "pax", b"0 \n")], "damaged");
}

/// A tree with what the formats tell apart, and the archive of it that GNU tar makes.
#[test]
fn what_gnu_tar_writes_in_any_of_its_formats_is_what_it_read() {
    if Command::new("tar").arg("--version").output().is_err() {
        eprintln!("skipped: there is no tar program here");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let long = "d".repeat(60);
    let deep = dir.path().join(&long).join(&long);
    fs::create_dir_all(&deep).expect("a directory");
    fs::write(deep.join("file"), "content").expect("a file");
    fs::hard_link(deep.join("file"), dir.path().join("twin")).expect("a link");
    std::os::unix::fs::symlink("x".repeat(90), dir.path().join("link")).expect("a link");
    let holes = fs::File::create(dir.path().join("holes")).expect("a file");
    for piece in 0..40 {
        holes.write_all_at(b"data", piece << 17).expect("a piece");
    }
    holes.set_len(6 << 20).expect("a hole");
    let old = fs::File::open(deep.join("file")).expect("a file");
    let before_1970 = std::time::UNIX_EPOCH - std::time::Duration::from_millis(86_400_500);
    old.set_modified(before_1970).expect("a time");
    for options in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ] {
        let made =
            Command::new("tar").args(options).arg("-C").arg(dir.path()).args(["-cf", "-", "."]).output();
        let made = made.expect("an archive");
        assert!(made.status.success(), "{options:?}: {}", String::from_utf8_lossy(&made.stderr));
        check_against_disk(&made.stdout, dir.path(), options);
    }
}

fn check_against_disk(archive: &[u8], dir: &Path, options: &[&str]) {
    let mut reader = Reader::new(archive);
    let mut seen = 0;
    while let Some(entry) = reader.next().expect("an entry") {
        seen += 1;
        let path = dir.join(String::from_utf8(entry.path.clone()).expect("a name"));
        let found = fs::symlink_metadata(&path).expect("a file of that name");
        let mut content = Vec::new();
        reader.read_to_end(&mut content).expect("content");
        match entry.kind {
            Kind::File => {
                assert!(content == fs::read(&path).expect("a file"), "{options:?}: {path:?} differs")
            }
            Kind::Link => {
                assert_eq!(entry.link, fs::read_link(&path).expect("a link").as_os_str().as_encoded_bytes());
            }
            Kind::HardLink => {
                let other = fs::metadata(dir.join(String::from_utf8(entry.link).expect("a name")));
                assert_eq!(other.expect("the other name").ino(), found.ino());
            }
            _ => assert_eq!(entry.kind, Kind::Directory),
        }
        assert_eq!(
            (entry.uid, entry.gid, entry.mode),
            (found.uid().into(), found.gid().into(), found.mode() & 0o7777)
        );
        assert_eq!(entry.modified.seconds, found.mtime(), "{options:?}: {path:?}");
        if options.contains(&"--format=posix") {
            assert_eq!(i64::from(entry.modified.nanoseconds), found.mtime_nsec(), "{path:?}");
        }
    }
    assert_eq!(seen, 7, "{options:?}");
}

/// Parts of archives, good ones and such that only look so.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(b"\x0001234567LKxgSX".to_vec());
    let field = (0usize..500, prop::collection::vec(any::<u8>(), 0..12));
    let attribute = prop::sample::select(vec![
        "path",
        "linkpath",
        "size",
        "uid",
        "mtime",
        "GNU.sparse.major",
        "GNU.sparse.map",
        "GNU.sparse.size",
        "GNU.sparse.realsize",
        "GNU.sparse.offset",
        "SCHILY.xattr.user.a",
    ]);
    let value = prop::string::string_regex("-?[0-9]{0,20}[.,]?[0-9]{0,3}").expect("an expression");
    prop_oneof![
        (kind.clone(), prop::collection::vec(any::<u8>(), 0..1500))
            .prop_map(|(kind, content)| sized(kind, "a", &content)),
        (kind, prop::collection::vec(field, 0..4)).prop_map(|(kind, fields)| {
            let fields: Vec<_> = fields.iter().map(|(at, bytes)| (*at..*at, bytes.as_slice())).collect();
            header(kind, "a", &fields)
        }),
        prop::collection::vec((attribute, value), 0..4).prop_map(|records| {
            let records: Vec<_> = records.iter().map(|(key, value)| format!("{key}={value}")).collect();
            pax(&records.iter().map(String::as_str).collect::<Vec<_>>())
        }),
        prop::collection::vec(prop::sample::select(b"0123456789\n\0".to_vec()), 0..600)
            .prop_map(|map| blocks(&map)),
        prop::collection::vec(any::<u8>(), 0..600),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever it is, it is read or refused: in bounded time and memory, and never with a panic.
    #[test]
    fn no_archive_leads_the_reader_astray(pieces in prop::collection::vec(piece(), 0..8)) {
        let archive = pieces.concat();
        let mut reader = Reader::new(archive.as_slice());
        let mut count = 0;
        while let Ok(Some(entry)) = reader.next() {
            count += 1;
            prop_assert!(count <= archive.len() / BLOCK_BYTES + 1);
            let (mut buffer, mut length) = ([0; 700], 0);
            // Holes cost nothing; data is no longer than the archive.
            let whole = loop {
                length += reader.skip_hole();
                match reader.read(&mut buffer) {
                    Ok(0) => break true,
                    Ok(count) => length += count as u64,
                    Err(_) => break false,
                }
            };
            prop_assert!(!whole || length == entry.size, "{entry:?} has {length} bytes");
        }
    }
}
