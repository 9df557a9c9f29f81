//! What lies in a data directory, and moving it out of the way.
//!
//! The rules are `control::node::directory`'s; this only looks and moves.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use skein_control::node::directory::{self, Found, Stage};

use super::{Error, Home, Membership, failed, sync};

/// Where the past lies: one directory for each time it was set aside.
const FORMER: &str = "former";

/// The parts of a directory that say where it belongs, each by itself.
const BELONGING: [&str; 6] =
    ["authority.next.sealed", "authority.sealed", "cluster.json", "joining.json", "member.json", "store"];
/// Who the node is.
const IDENTITY: [&str; 2] = ["node.key", "node.json"];
/// What a running node makes beside them.
const TRACES: [&str; 7] = ["addresses.json", "api.json", "client.json", "images", "logs", "network", "pods"];
/// What decides nothing: a setting of the machine, the daemon's socket, the past, and what makers of file systems
/// and what was cut off (a trial, a recovery) leave.
const NOTHING: [&str; 6] = ["advertise.json", "skein.sock", "store.next", "trial.tmp", FORMER, "lost+found"];

impl Home {
    /// Looks at everything that lies here. Nothing is changed.
    pub(crate) fn look(&self) -> Result<Found, Error> {
        let mut found = Found { dir: self.dir.display().to_string(), ..Found::default() };
        for name in self.entries()? {
            let path = self.dir.join(&name);
            match name.as_str() {
                "cluster.json" => found.membership = self.membership()?.map(described),
                "member.json" => found.certificate = true,
                "authority.sealed" | "authority.next.sealed" => found.authority = true,
                "joining.json" => found.joining = true,
                "store" => found.store = self.holds_store(&path)?,
                known if IDENTITY.contains(&known) => found.identity = true,
                known if TRACES.contains(&known) => found.traces |= !is_empty_directory(&path),
                known if is_ours(known) => {}
                strange => drop(found.strange.get_or_insert_with(|| strange.to_owned())),
            }
        }
        Ok(found)
    }

    /// Where [`Home::set_aside`] will put what is moved now under this label.
    pub(crate) fn aside(&self, label: &str) -> PathBuf {
        // To the second, in the order of time, and without what a path or a shell takes for something else.
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ");
        let mut names = std::iter::once(format!("{now}-{label}"))
            .chain((2..=u32::MAX).map(|number| format!("{now}-{label}-{number}")))
            .map(|name| self.former(&name));
        names.find(|path| !path.exists()).expect("nobody does this four billion times a second")
    }

    /// Where the part of the past with this name lies.
    pub(super) fn former(&self, name: &str) -> PathBuf {
        self.dir.join(FORMER).join(name)
    }

    /// Moves everything that lies here into `aside`, below this directory: store, key and all. What says where it
    /// belongs goes last, so that whoever is cut off in between finds that, and goes on.
    pub(crate) fn set_aside(&self, aside: &Path) -> Result<(), Error> {
        make_private(aside)?;
        let stays = |name: &String| name != FORMER && name != "lost+found";
        let mut names: Vec<String> = self.entries()?.into_iter().filter(stays).collect();
        names.sort_by_key(|name| name == "cluster.json");
        for name in names {
            let from = self.dir.join(&name);
            if name == "skein.sock" {
                fs::remove_file(&from).map_err(failed("remove", &from))?;
                continue;
            }
            fs::rename(&from, aside.join(&name)).map_err(failed("move away", &from))?;
        }
        [aside, &self.dir.join(FORMER), &self.dir].into_iter().try_for_each(sync)
    }

    /// Moves the store alone away, for a node that goes on with another one, and returns where. The next start makes one,
    /// under another id, where none is put in its place.
    pub(crate) fn set_store_aside(&self, label: &str) -> Result<PathBuf, Error> {
        let (store, aside) = (self.dir.join("store"), self.aside(label));
        make_private(&aside)?;
        match fs::rename(&store, aside.join("store")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("move away", &store)(error));
            }
            _ => {}
        }
        sync(&aside)?;
        sync(&self.dir)?;
        Ok(aside)
    }

    /// The names of everything here, in order; none where there is no directory.
    fn entries(&self) -> Result<BTreeSet<String>, Error> {
        let unreadable = failed("read", &self.dir);
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries.map_err(&unreadable)?,
        };
        entries
            .map(|entry| Ok(entry.map_err(&unreadable)?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Whether a store has ever been here: a directory that was made for one and holds but its lock does not count.
    fn holds_store(&self, dir: &Path) -> Result<bool, Error> {
        let unreadable = failed("read", dir);
        for entry in fs::read_dir(dir).map_err(&unreadable)? {
            let entry = entry.map_err(&unreadable)?;
            if entry.file_name() != OsStr::new("LOCK") && !is_empty_directory(&entry.path()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn described(membership: Membership) -> directory::Membership {
    let stage = match () {
        () if membership.left.is_some() => Stage::Left,
        () if membership.founding => Stage::Founding,
        () => Stage::Member,
    };
    let cluster = membership.public.cluster;
    let fingerprint = cluster.id.fingerprint();
    directory::Membership { cluster: cluster.name, fingerprint, name: membership.name, stage }
}

fn make_private(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make", dir))
}

fn is_empty_directory(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether skein itself makes something of this name in a data directory, or what makes file systems does.
pub(super) fn is_ours(name: &str) -> bool {
    let known = [&BELONGING[..], &IDENTITY, &TRACES, &NOTHING];
    known.iter().any(|names| names.contains(&name)) || is_unfinished(name)
}

/// A file of ours that a crash left half written.
fn is_unfinished(name: &str) -> bool {
    let whole = name.strip_suffix(".tmp");
    whole.is_some_and(|whole| whole.ends_with(".json") || whole == "node.key" || whole.ends_with(".sealed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home_with(names: &[&str]) -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if name.ends_with('/') {
                fs::create_dir_all(path).unwrap()
            } else {
                fs::write(path, b"x").unwrap()
            }
        }
        let home = Home::new(dir.path());
        (dir, home)
    }

    #[test]
    fn a_directory_that_is_not_there_or_empty_holds_nothing() {
        let (dir, home) =
            home_with(&["lost+found/", "former/x/node.key", "node.json.tmp", "pods/", "store/LOCK"]);
        let nothing = Found { dir: dir.path().display().to_string(), ..Found::default() };
        assert_eq!(home.look().unwrap(), nothing);
        let absent = Home::new(&dir.path().join("absent"));
        assert_eq!(Found { dir: String::new(), ..absent.look().unwrap() }, Found::default());
    }

    #[test]
    fn each_part_is_seen_by_itself() {
        for (name, is_seen) in [
            ("node.key", (|found| found.identity) as fn(&Found) -> bool),
            ("node.json", |found| found.identity),
            ("member.json", |found| found.certificate),
            ("authority.sealed", |found| found.authority),
            ("authority.next.sealed", |found| found.authority),
            ("joining.json", |found| found.joining),
            ("store/store", |found| found.store),
            ("store/log/0000000001.seg", |found| found.store),
            ("store/follow/x.snap", |found| found.store),
            ("images/names.json", |found| found.traces),
            ("pods/pods/x", |found| found.traces),
            ("addresses.json", |found| found.traces),
            ("notes.txt", |found| found.strange.as_deref() == Some("notes.txt")),
            (".profile", |found| found.strange.is_some()),
        ] {
            let (_dir, home) = home_with(&[name]);
            let found = home.look().unwrap();
            assert!(is_seen(&found), "{name}: {found:?}");
            let alone = Found { dir: found.dir.clone(), ..Found::default() };
            assert_ne!(found, alone);
        }
    }

    #[test]
    fn a_damaged_file_is_named_rather_than_taken_for_absent() {
        let (_dir, home) = home_with(&["cluster.json"]);
        assert!(home.look().unwrap_err().to_string().contains("cluster.json is damaged"));
    }

    #[test]
    fn the_past_is_moved_away_whole_and_the_directory_is_an_empty_one_then() {
        let parts =
            ["node.key", "node.json", "cluster.json", "store/store", "images/names.json", "authority.sealed"];
        let (dir, home) = home_with(&parts);
        let aside = home.aside("home");
        home.set_aside(&aside).unwrap();
        for part in parts {
            assert!(aside.join(part).exists(), "{part}");
        }
        assert_eq!(Found { dir: String::new(), ..home.look().unwrap() }, Found::default());
        // Twice within a second.
        fs::write(dir.path().join("node.key"), b"y").unwrap();
        let again = home.aside("home");
        assert_ne!(again, aside);
        home.set_aside(&again).unwrap();
        assert_eq!(fs::read(aside.join("node.key")).unwrap(), b"x");
        assert_eq!(fs::read(again.join("node.key")).unwrap(), b"y");
    }
}
