//! How a data directory is called in the kernel, whoever it belongs to at the moment.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ring::digest::{Context, SHA256};

use super::{Error, Home, failed};

/// Digits of the mark: as many as tell apart what is on one machine.
const DIGITS: usize = 16;

impl Home {
    /// The mark of all that a node of this directory has in the kernel (`runtime::Config::owner`, `podnet::Config::tag`):
    /// the same one when the directory was deleted, moved away or emptied meanwhile, and another one for every other
    /// directory. So who has the directory now may end what it finds with that mark, and nothing else.
    ///
    /// It hangs on the path and on the directory above, which tells apart equal paths of containers that are machines
    /// and share cgroups.
    pub(crate) fn owner(&self) -> Result<String, Error> {
        let dir = fs::canonicalize(&self.dir).map_err(failed("find", &self.dir))?;
        let above = dir.parent().unwrap_or(Path::new("/"));
        let metadata = fs::metadata(above).map_err(failed("read", above))?;
        let mut hash = Context::new(&SHA256);
        hash.update(&metadata.dev().to_be_bytes());
        hash.update(&metadata.ino().to_be_bytes());
        hash.update(dir.as_os_str().as_bytes());
        let digits = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Ok(digits[..DIGITS].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_mark_when_it_is_made_anew_and_no_other_has_it() {
        let above = tempfile::tempdir().unwrap();
        let home = |name: &str| {
            fs::create_dir_all(above.path().join(name)).unwrap();
            Home::new(&above.path().join(name))
        };
        let mark = home("a").owner().unwrap();
        assert!(mark.len() == DIGITS && mark.chars().all(|digit| digit.is_ascii_hexdigit()), "{mark}");
        fs::rename(above.path().join("a"), above.path().join("moved")).unwrap();
        assert_eq!(home("a").owner().unwrap(), mark);
        assert_ne!(home("moved").owner().unwrap(), mark);
        assert_ne!(home("b").owner().unwrap(), mark);
        std::os::unix::fs::symlink(above.path().join("a"), above.path().join("link")).unwrap();
        assert_eq!(home("link").owner().unwrap(), mark);
    }
}
