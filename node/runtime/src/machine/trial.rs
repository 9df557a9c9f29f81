//! Whether a directory can hold containers: tried out, for the kernel alone knows what it takes.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use super::in_user_namespace;
use crate::record::Durability;
use crate::rootfs::overlay::{Layers, mount_at};
use crate::sys::mount::Attributes;

/// Where it is tried, in the directory. What a crash left of it is removed by the next try.
const TRIAL: &str = "trial.tmp";

/// Mounts layers that lie in `dir`, as a container's do, where nobody else sees it, and writes on top of them.
///
/// Nothing of it stays. The error is one sentence that says what to do. Needs a directory that exists, and what
/// [`missing`](super::missing) asks for.
pub fn try_directory(dir: &Path) -> Result<(), String> {
    let trial = dir.join(TRIAL);
    let tried = try_in(&trial);
    let removed = remove(&trial);
    tried.and(removed).map_err(|error| {
        let place = dir.display();
        match statfs(dir).is_ok_and(|found| found.filesystem_type() == OVERLAYFS_SUPER_MAGIC) {
            true => format!(
                "containers cannot have their files in {place}, which is itself an overlay, as the files of a container \
                 are ({error}); put a volume, a disk or a tmpfs there, or name one with --data-dir"
            ),
            false => format!(
                "containers cannot have their files in {place} ({error}); name a directory on a file system of this \
                 machine with --data-dir (ext4, xfs, btrfs, tmpfs)"
            ),
        }
    })
}

fn try_in(trial: &Path) -> io::Result<()> {
    remove(trial)?;
    let part = |name: &str| trial.join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(part(name))?;
    }
    fs::write(part("lower").join("file"), b"below")?;
    let layers = Layers {
        lower: vec![part("lower")],
        upper: part("upper"),
        work: part("work"),
        links: part("links"),
        user_attributes: in_user_namespace(),
    };
    let merged = part("merged");
    // The thread ends with its mounts.
    let tried = std::thread::spawn(move || {
        mount_unseen(&layers, &merged)?;
        fs::write(merged.join("file"), b"above")
    });
    tried.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

/// For the calling thread alone, from now on in a mount namespace of its own.
fn mount_unseen(layers: &Layers, merged: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount_at(layers, merged, Attributes::default(), Durability::UntilPowerCut)
        .map_err(|failure| io::Error::other(failure.0))?;
    Ok(())
}

fn remove(trial: &Path) -> io::Result<()> {
    match fs::remove_dir_all(trial) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_mount() -> bool {
        let may = nix::unistd::geteuid().is_root();
        if !may {
            eprintln!("skipped: stacking layers needs rights to mount");
        }
        may
    }

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        if !may_mount() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        // What a try that was cut off left there.
        fs::create_dir_all(dir.path().join(TRIAL).join("upper")).unwrap();
        fs::write(dir.path().join(TRIAL).join("upper/file"), b"x").unwrap();
        assert_eq!(try_directory(dir.path()), Ok(()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        for harmless in ["with blank", "a,b", "a:b", "ä", "a=b", "\"a\"", "a'b", "$HOME", "100%", "a#b"] {
            let dir = dir.path().join(harmless);
            fs::create_dir(&dir).unwrap();
            assert_eq!(try_directory(&dir), Ok(()), "{harmless}");
        }
    }

    /// The disk of a container is an overlay, and each pod failed there with "Invalid argument".
    #[test]
    fn an_overlay_takes_no_containers_and_is_told_from_other_file_systems() {
        if !may_mount() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let part = |name: &str| dir.path().join(name);
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(part(name)).unwrap();
        }
        let layers = Layers {
            lower: vec![part("lower")],
            upper: part("upper"),
            work: part("work"),
            links: part("links"),
            user_attributes: in_user_namespace(),
        };
        let merged = part("merged");
        let on_top = std::thread::spawn(move || {
            mount_unseen(&layers, &merged).unwrap();
            let refused = try_directory(&merged).unwrap_err();
            assert!(refused.contains("itself an overlay") && refused.contains("--data-dir"), "{refused}");
            assert_eq!(fs::read_dir(&merged).unwrap().count(), 0);
        });
        on_top.join().unwrap();
        let refused = try_directory(Path::new("/proc")).unwrap_err();
        assert!(refused.contains("/proc (") && refused.contains("--data-dir"), "{refused}");
    }
}
