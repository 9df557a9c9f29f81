//! Which paths can be a data directory's.

use super::{Error, Home};

/// What fits into the kernel's name of a socket, without the zero that ends it.
const SOCKET_BYTES_MAX: usize = 107;

impl Home {
    /// Whether all that will lie here can be named wherever that is needed: as a socket, in mounts, in lists of lines.
    /// Looks at the text alone.
    pub(crate) fn check_path(&self) -> Result<(), Error> {
        let unfit = |reason: String| Err(Error::Unfit { dir: self.dir.clone(), reason });
        let Some(text) = self.dir.to_str() else { return unfit("it is no UTF-8 text".into()) };
        match text.chars().find(|c| c.is_control() || *c == '\\') {
            Some('\\') => return unfit("the layers of containers cannot be below a backslash".into()),
            Some(_) => return unfit("it holds a control character".into()),
            None => {}
        }
        let socket_bytes = self.socket().as_os_str().len();
        match socket_bytes.saturating_sub(SOCKET_BYTES_MAX) {
            0 => Ok(()),
            over => unfit(format!("it is {over} bytes too long for the socket in it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_path_that_something_takes_for_something_else_is_refused_with_the_reason() {
        let refused = |bytes: &[u8]| {
            Home::new(Path::new(OsStr::from_bytes(bytes))).check_path().err().map(|error| error.to_string())
        };
        for good in ["/var/lib/skein", "/a b", "/a:b,c=d", "/ä/%/#"] {
            assert_eq!(refused(good.as_bytes()), None);
        }
        for (bad, word) in [
            (&b"/a\\b"[..], "backslash"),
            (b"/a\nb", "control character"),
            (b"/a\x7f", "control character"),
            (b"/a\xff", "UTF-8"),
        ] {
            let reason = refused(bad).expect("it is refused");
            assert!(reason.contains(word) && reason.contains("--data-dir"), "{reason}");
        }
    }

    #[test]
    fn a_directory_may_be_as_long_as_its_socket_can_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = |bytes: usize| {
            let name = "x".repeat(bytes - dir.path().as_os_str().len() - 1 - "/skein.sock".len());
            Home::new(&dir.path().join(name))
        };
        let (longest, longer) = (home(SOCKET_BYTES_MAX), home(SOCKET_BYTES_MAX + 1));
        longest.check_path().unwrap();
        let reason = longer.check_path().unwrap_err().to_string();
        assert!(reason.contains("1 bytes too long"), "{reason}");
        for home in [&longest, &longer] {
            std::fs::create_dir(home.dir()).unwrap();
        }
        UnixListener::bind(longest.socket()).unwrap();
        assert!(UnixListener::bind(longer.socket()).is_err());
    }
}
