//! Whether a directory can hold containers: tried out, for the kernel alone knows what it takes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use super::{in_user_namespace, remove_all};
use crate::record::Durability;
use crate::rootfs::overlay::{Layers, mount_alone};
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
    let removed = remove_all(&trial);
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
    remove_all(trial)?;
    let (layers, merged) = layers_in(trial)?;
    fs::write(layers.lower[0].join("file"), b"below")?;
    // The thread ends with its mounts.
    let tried = std::thread::spawn(move || {
        mount_alone(&layers, &merged, Attributes::default(), Durability::UntilPowerCut)?;
        fs::write(merged.join("file"), b"above")
    });
    tried.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

/// One layer with a writable one on top, in directories below `dir`, and the directory where they are seen together.
fn layers_in(dir: &Path) -> io::Result<(Layers, PathBuf)> {
    let part = |name: &str| dir.join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(part(name))?;
    }
    let layers = Layers {
        lower: vec![part("lower")],
        upper: part("upper"),
        work: part("work"),
        links: part("links"),
        user_attributes: in_user_namespace(),
    };
    Ok((layers, part("merged")))
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
        let (layers, merged) = layers_in(dir.path()).unwrap();
        let on_top = std::thread::spawn(move || {
            mount_alone(&layers, &merged, Attributes::default(), Durability::UntilPowerCut).unwrap();
            let refused = try_directory(&merged).unwrap_err();
            assert!(refused.contains("itself an overlay") && refused.contains("--data-dir"), "{refused}");
            assert_eq!(fs::read_dir(&merged).unwrap().count(), 0);
        });
        on_top.join().unwrap();
        let refused = try_directory(Path::new("/proc")).unwrap_err();
        assert!(refused.contains("/proc (") && refused.contains("--data-dir"), "{refused}");
    }
}
