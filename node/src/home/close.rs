//! A data directory that nobody else looks into.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::look::is_ours;
use super::{Error, Home, failed};

impl Home {
    /// Closes the directory to every other user, whoever made it and however: secrets, keys and set-uid programs of
    /// images lie in it. Changes nothing where it is absent or closed.
    pub(super) fn close(&self) -> Result<(), Error> {
        let dir = &self.dir;
        let io = |doing| failed(doing, dir);
        let metadata = match fs::metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(io("read"))?,
        };
        if metadata.permissions().mode() & 0o077 == 0 {
            return Ok(());
        }
        let mut records = Vec::new();
        for entry in fs::read_dir(dir).map_err(io("read"))? {
            let entry = entry.map_err(io("read"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // `/var/lib` by mistake would close the machine to its users.
            if !is_ours(&name) {
                return Err(Error::Shared { dir: dir.clone(), foreign: name });
            }
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                records.push(entry.path());
            }
        }
        let close = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        close(dir, 0o700).map_err(io("close"))?;
        records.iter().try_for_each(|path| close(path, 0o600)).map_err(io("close the files of"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_closed_to_other_users_whoever_made_it() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("data");
        let home = Home::new(&dir);
        home.close().unwrap();
        assert!(!dir.exists(), "nothing is made");
        fs::create_dir(&dir).unwrap();
        for (name, mode) in [("cluster.json", 0o644), ("node.key", 0o644), ("member.json.tmp", 0o666)] {
            fs::write(dir.join(name), b"{}").unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        for open in [0o755, 0o711, 0o777] {
            fs::set_permissions(&dir, fs::Permissions::from_mode(open)).unwrap();
            home.close().unwrap();
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode(&dir), 0o700);
            assert_eq!((mode(&dir.join("cluster.json")), mode(&dir.join("member.json.tmp"))), (0o600, 0o600));
        }
    }

    #[test]
    fn a_directory_that_others_use_is_not_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("apt")).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let error = Home::new(dir.path()).close().unwrap_err().to_string();
        assert!(error.contains("\"apt\"") && error.contains("a directory of its own"), "{error}");
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o7777, 0o755);
    }
}
