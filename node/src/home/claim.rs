//! One process for each data directory.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{Error, Home, failed};

/// A data directory that no other process of this program has, until this is dropped.
///
/// Whatever had to be made for it goes then too, unless something lies in it: a try that is refused leaves nothing.
pub(crate) struct Claim {
    /// Locked itself: no file has to be made for that.
    _dir: File,
    /// The directories that were made, the innermost first.
    made: Vec<PathBuf>,
}

impl Home {
    /// Takes the directory for this process, making it where there is none, and for this user only.
    pub(crate) fn claim(&self) -> Result<Claim, Error> {
        let made: Vec<PathBuf> =
            self.dir.ancestors().take_while(|dir| !dir.exists()).map(Path::to_owned).collect();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(failed("make", &self.dir))?;
        let dir = File::open(&self.dir).map_err(failed("open", &self.dir))?;
        match dir.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::InUse { dir: self.dir.clone() }),
            // Some network file systems lock no directories; the store's own lock still does.
            Ok(()) | Err(TryLockError::Error(_)) => {
                let claim = Claim { _dir: dir, made };
                self.close()?;
                Ok(claim)
            }
        }
    }

    /// Whether a process has claimed the directory.
    pub(crate) fn is_claimed(&self) -> bool {
        let locked = |dir: File| matches!(dir.try_lock_shared(), Err(TryLockError::WouldBlock));
        File::open(&self.dir).is_ok_and(locked)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Fails where something lies in it, and what is above it is left alone then.
        let _ = self.made.iter().try_for_each(fs::remove_dir) as io::Result<()>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_process_and_is_free_when_that_ends() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        assert!(!home.is_claimed());
        let claim = home.claim().unwrap();
        assert!(home.is_claimed());
        let refused = home.claim().err().expect("it is taken").to_string();
        assert!(refused.contains("runs already"), "{refused}");
        drop(claim);
        assert!(!home.is_claimed());
        home.claim().unwrap();
        assert!(dir.path().exists(), "it was there before");
    }

    #[test]
    fn what_was_made_for_nothing_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(&dir.path().join("a/b"));
        drop(home.claim().unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let claim = home.claim().unwrap();
        home.write("node.json", b"{}").unwrap();
        drop(claim);
        assert!(dir.path().join("a/b/node.json").exists());
    }
}
