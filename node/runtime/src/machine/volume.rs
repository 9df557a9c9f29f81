//! What the containers of a pod share on disk and in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::Doing;
use crate::engine::{Error, Volume, VolumeFile, check_name};
use crate::rootfs::destination::{self, Kind, Links};
use crate::rootfs::open_root;
use crate::rootfs::passwd::ID_MAX;
use crate::sandbox::mount_tmpfs;

/// The link of a volume of files to the directory that holds them now. What programs see are links through it, so all
/// files change in one step, and programs that watch a volume know this name from elsewhere.
const DATA: &str = "..data";
/// What becomes [`DATA`] in a moment. No name of a file begins like these.
const NEW_DATA: &str = "..data_tmp";
const NEW_LINK: &str = "..link_tmp";

/// Makes or replaces the volume `name` below `volumes`.
pub(super) fn put(volumes: &Path, name: &str, volume: &Volume) -> Result<PathBuf, Error> {
    check_name(name).map_err(|error| refused(name, &error.to_string()))?;
    let dir = volumes.join(name);
    let doing = || format!("make volume {name:?} at {}", dir.display());
    fs::create_dir_all(&dir).doing(doing)?;
    match volume {
        Volume::Directory => open_to_all(&dir).doing(doing)?,
        Volume::Memory { size_bytes } => {
            mount_memory(&dir, "mode=1777", *size_bytes).doing(doing)?;
            open_to_all(&dir).doing(doing)?;
        }
        Volume::Files { files, secret, group } => {
            files.keys().try_for_each(|path| check_path(path))?;
            if let Some(group) = group.filter(|group| *group > ID_MAX) {
                let (what, why) =
                    (format!("group {group} of volume {name:?}"), format!("groups are 0 to {ID_MAX}"));
                return Err(Error::Refused { what, why });
            }
            if *secret {
                mount_memory(&dir, "mode=755", None).doing(doing)?;
            }
            replace_files(&dir, files, *group).doing(doing)?;
        }
    }
    Ok(dir)
}

/// Makes a directory inside of a volume, as open as the volume itself, without following links that programs
/// put there. What is there already stays as it is, also a file.
pub(super) fn make_sub_path(volume: &Path, part: &Path) -> Result<PathBuf, Error> {
    let path = volume.join(part);
    let doing = || format!("make sub path {}", path.display());
    let root = File::from(open_root(volume).doing(doing)?);
    let mode = root.metadata().doing(doing)?.permissions().mode() & 0o7777;
    let mut above = PathBuf::new();
    for name in part.components().filter(|name| matches!(name, Component::Normal(_))) {
        above.push(name);
        match destination::open_without_links(root.as_fd(), &above) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = destination::open_or_make(root.as_fd(), &above, Kind::Directory, Links::Refused)
                    .doing(doing)?;
                let open = format!("/proc/self/fd/{}", made.as_raw_fd());
                fs::set_permissions(open, fs::Permissions::from_mode(mode)).doing(doing)?;
            }
            other => drop(other.doing(doing)?),
        }
    }
    Ok(path)
}

/// As everybody's directory: the programs of a pod may be different users.
fn open_to_all(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777))
}

fn mount_memory(dir: &Path, mode: &str, size_bytes: Option<u64>) -> io::Result<()> {
    if statfs(dir)?.filesystem_type() == TMPFS_MAGIC && is_mount_point(dir)? {
        return Ok(());
    }
    let size = size_bytes.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    mount_tmpfs(dir, &format!("{mode}{size}"))
}

fn is_mount_point(dir: &Path) -> io::Result<bool> {
    let above = dir.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(dir)?.dev() != fs::metadata(above)?.dev())
}

fn check_path(path: &str) -> Result<(), Error> {
    let plain =
        !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if plain && path.len() < 4096 && !path.contains('\0') && !path.starts_with("..") {
        return Ok(());
    }
    Err(refused(path, "a file of a volume is a relative path without .., and its name begins otherwise"))
}

/// Where `part` of a volume of files lies now, without any link; `None` if it is another kind of volume.
pub(super) fn file_part(volume: &Path, part: &Path) -> Option<PathBuf> {
    Some(volume.join(now(volume)?).join(part))
}

/// The directory that [`DATA`] leads to: a name in the volume itself. Programs may have written something else there,
/// in a volume of theirs.
fn now(dir: &Path) -> Option<PathBuf> {
    let name = fs::read_link(dir.join(DATA)).ok()?;
    let mut parts = name.components();
    // `..` itself is no such name.
    let is_ours = matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
    (is_ours && name.to_string_lossy().starts_with("..")).then_some(name)
}

type Files = BTreeMap<String, VolumeFile>;

/// Replaces all files in one step, if any is another than before.
fn replace_files(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    let before = now(dir);
    let present = match before.filter(|before| is_unchanged(&dir.join(before), files, group)) {
        Some(before) => before,
        None => {
            let next = write_anew(dir, files, group)?;
            link(dir, DATA, NEW_DATA, &next)?;
            next
        }
    };
    let first = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    let tops: BTreeSet<String> = files.keys().map(first).collect();
    for top in &tops {
        let target = Path::new(DATA).join(top);
        if fs::read_link(dir.join(top)).ok().as_ref() != Some(&target) {
            link(dir, top, NEW_LINK, &target)?;
        }
    }
    // What is not wanted any more goes last; also what a build before this one wrote, or a process that was killed.
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let stays = name == DATA
            || name == *present.as_os_str()
            || name.to_str().is_some_and(|name| tops.contains(name));
        if !stays {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Writes the files into a new directory of the volume, and returns its name.
fn write_anew(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<PathBuf> {
    // When it was written; what follows makes it another name than that of any directory there.
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = format!("..{}.", since.as_secs());
    let open = fs::Permissions::from_mode(0o755);
    let next = tempfile::Builder::new().prefix(&time).permissions(open.clone()).tempdir_in(dir)?;
    for (path, file) in files {
        let target = next.path().join(path);
        let mut above = next.path().to_owned();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            above.push(part);
            if !above.exists() {
                fs::create_dir(&above)?;
                fs::set_permissions(&above, open.clone())?;
            }
        }
        let mut written = File::options().write(true).create_new(true).mode(0o600).open(&target)?;
        written.write_all(&file.content)?;
        if let Some(group) = group {
            chown(&target, None, Some(group))?;
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(mode(file, group)))?;
    }
    let name = next.path().file_name().map(PathBuf::from);
    // From here on it is the volume's.
    let _ = next.keep();
    name.ok_or_else(|| io::Error::other("a directory without a name"))
}

/// Whoever is in the volume's group may read what its owner may.
fn mode(file: &VolumeFile, group: Option<u32>) -> u32 {
    file.mode & 0o777 | if group.is_some() { 0o440 } else { 0 }
}

/// Makes `name` a link to `target`, in one step whatever is there; a directory goes first.
fn link(dir: &Path, name: &str, unfinished: &str, target: &Path) -> io::Result<()> {
    let (link, unfinished) = (dir.join(name), dir.join(unfinished));
    if fs::symlink_metadata(&unfinished).is_ok() {
        remove(&unfinished)?;
    }
    if fs::symlink_metadata(&link).is_ok_and(|found| found.is_dir()) {
        remove(&link)?;
    }
    symlink(target, &unfinished)?;
    fs::rename(&unfinished, &link)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

/// Whether `dir` holds just these files, as they are to be.
fn is_unchanged(dir: &Path, files: &Files, group: Option<u32>) -> bool {
    let is_same = |(path, file): (&String, &VolumeFile)| {
        let path = dir.join(path);
        let same = fs::symlink_metadata(&path).is_ok_and(|found| {
            let same_group = group.is_none_or(|group| found.gid() == group);
            found.is_file() && found.permissions().mode() & 0o777 == mode(file, group) && same_group
        });
        same && fs::read(&path).is_ok_and(|content| content == file.content)
    };
    count_files(dir).is_ok_and(|count| count == files.len()) && files.iter().all(is_same)
}

fn count_files(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

fn refused(what: &str, why: &str) -> Error {
    Error::Refused { what: format!("volume path {what:?}"), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Volume {
        let file = |content: &str| VolumeFile { content: content.as_bytes().to_vec(), mode: 0o644 };
        let files = list
            .iter()
            .map(|(path, content)| ((*path).to_owned(), file(content)))
            .collect::<BTreeMap<_, _>>();
        Volume::Files { files, secret: false, group: None }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a directory").flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn read(dir: &Path, path: &str) -> String {
        fs::read_to_string(dir.join(path)).expect("a file")
    }

    #[test]
    fn files_are_replaced_as_a_whole() {
        let volumes = tempfile::tempdir().expect("a directory");
        let put = |list: &[(&str, &str)]| put(volumes.path(), "config", &files(list)).expect("a volume");
        let dir = put(&[("a", "1"), ("sub/b", "2")]);
        assert_eq!((read(&dir, "a"), read(&dir, "sub/b")), ("1".into(), "2".into()));
        assert_eq!(fs::read_link(dir.join("a")).expect("a link"), Path::new("..data/a"));
        let first = now(&dir).expect("a directory");
        assert_eq!(names(&dir), [first.to_str().expect("text"), "..data", "a", "sub"]);

        // The same once more: nothing moves.
        put(&[("a", "1"), ("sub/b", "2")]);
        assert_eq!(now(&dir), Some(first.clone()));

        // Who has the directory of before open goes on with what was there.
        let held = File::open(dir.join("a")).expect("a file");
        put(&[("a", "3")]);
        let second = now(&dir).expect("a directory");
        assert_ne!(first, second);
        assert_eq!(names(&dir), [second.to_str().expect("text"), "..data", "a"]);
        assert_eq!((read(&dir, "a"), io::read_to_string(held).expect("a file")), ("3".into(), "1".into()));
        put(&[]);
        assert_eq!(names(&dir).len(), 2, "no file is left");
    }

    #[test]
    fn what_an_older_build_or_a_killed_process_left_gives_way() {
        let volumes = tempfile::tempdir().expect("a directory");
        let dir = volumes.path().join("config");
        fs::create_dir_all(dir.join("sub")).expect("a directory");
        fs::create_dir_all(dir.join("..1700000000.x")).expect("a directory");
        for path in ["a", "sub/b", "gone", "..incoming"] {
            fs::write(dir.join(path), "old").expect("a file");
        }
        symlink("..nowhere", dir.join(NEW_DATA)).expect("a link");
        put(volumes.path(), "config", &files(&[("a", "1"), ("sub/b", "2")])).expect("a volume");
        assert_eq!((read(&dir, "a"), read(&dir, "sub/b")), ("1".into(), "2".into()));
        assert_eq!(names(&dir)[1..], ["..data", "a", "sub"]);
    }

    #[test]
    fn a_part_of_a_volume_of_files_lies_where_no_link_is() {
        let volumes = tempfile::tempdir().expect("a directory");
        let dir = put(volumes.path(), "config", &files(&[("sub/b", "2")])).expect("a volume");
        let part = file_part(&dir, Path::new("sub/b")).expect("a volume of files");
        assert_eq!(fs::canonicalize(&part).expect("a file"), part);
        // What a program writes into a volume of its own leads nowhere.
        let own = put(volumes.path(), "own", &Volume::Directory).expect("a volume");
        assert_eq!(file_part(&own, Path::new("x")), None);
        for target in ["/etc", "..", "../..", "..a/b", "data"] {
            let _ = fs::remove_file(own.join(DATA));
            symlink(target, own.join(DATA)).expect("a link");
            let found = file_part(&own, Path::new("x"));
            assert_eq!(found, None, "{target}");
        }
    }

    #[test]
    fn a_file_never_lies_outside_of_its_volume() {
        let volumes = tempfile::tempdir().expect("a directory");
        for path in ["../x", "/x", "a/../../x", "", "..data", "..2026/x"] {
            assert!(put(volumes.path(), "config", &files(&[(path, "1")])).is_err(), "{path:?}");
        }
        assert!(put(volumes.path(), "../up", &Volume::Directory).is_err());
    }
}
