//! What the containers of a pod share on disk and in memory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::Doing;
use crate::engine::{Error, Volume, VolumeFile, check_name};
use crate::rootfs::destination::{self, Kind, Links};
use crate::rootfs::open_root;
use crate::rootfs::passwd::ID_MAX;
use crate::sandbox::mount_tmpfs;

/// A name that a volume's own files cannot have: new content is written below it, then moved in place.
const INCOMING: &str = "..incoming";

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
    if plain && path.len() < 4096 && !path.contains('\0') && !path.starts_with(INCOMING) {
        return Ok(());
    }
    Err(refused(path, "a file of a volume is a relative path without .."))
}

/// Each file is replaced in one step; those that are not wanted any more go last.
fn replace_files(
    dir: &Path,
    files: &std::collections::BTreeMap<String, VolumeFile>,
    group: Option<u32>,
) -> io::Result<()> {
    let incoming = dir.join(INCOMING);
    for (path, file) in files {
        let target = dir.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        // Whoever is in the volume's group may read what its owner may.
        let mode = file.mode & 0o777 | if group.is_some() { 0o440 } else { 0 };
        if is_unchanged(&target, file, mode, group) {
            continue;
        }
        let mut written =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&incoming)?;
        written.write_all(&file.content)?;
        if let Some(group) = group {
            chown(&incoming, None, Some(group))?;
        }
        fs::set_permissions(&incoming, fs::Permissions::from_mode(mode))?;
        fs::rename(&incoming, target)?;
    }
    remove_others(dir, dir, files)
}

fn is_unchanged(path: &Path, file: &VolumeFile, mode: u32, group: Option<u32>) -> bool {
    let same = fs::symlink_metadata(path).is_ok_and(|found| {
        let same_group = group.is_none_or(|group| found.gid() == group);
        found.is_file() && found.permissions().mode() & 0o777 == mode && same_group
    });
    same && fs::read(path).is_ok_and(|content| content == file.content)
}

fn remove_others(
    root: &Path,
    dir: &Path,
    files: &std::collections::BTreeMap<String, VolumeFile>,
) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(root, &path, files)?;
            continue;
        }
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
        if !files.contains_key(relative.as_ref()) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn refused(what: &str, why: &str) -> Error {
    Error::Refused { what: format!("volume path {what:?}"), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn files(list: &[(&str, &str)]) -> Volume {
        let file = |content: &str| VolumeFile { content: content.as_bytes().to_vec(), mode: 0o644 };
        let files = list
            .iter()
            .map(|(path, content)| ((*path).to_owned(), file(content)))
            .collect::<BTreeMap<_, _>>();
        Volume::Files { files, secret: false, group: None }
    }

    #[test]
    fn files_are_replaced_as_a_whole() {
        let volumes = tempfile::tempdir().expect("a directory");
        let dir = put(volumes.path(), "config", &files(&[("a", "1"), ("sub/b", "2")])).expect("a volume");
        put(volumes.path(), "config", &files(&[("a", "3")])).expect("a volume");
        assert_eq!(fs::read_to_string(dir.join("a")).expect("a file"), "3");
        assert!(!dir.join("sub/b").exists() && !dir.join(INCOMING).exists());
    }

    #[test]
    fn a_file_never_lies_outside_of_its_volume() {
        let volumes = tempfile::tempdir().expect("a directory");
        for path in ["../x", "/x", "a/../../x", "", "..incoming"] {
            assert!(put(volumes.path(), "config", &files(&[(path, "1")])).is_err(), "{path:?}");
        }
        assert!(put(volumes.path(), "../up", &Volume::Directory).is_err());
    }
}
