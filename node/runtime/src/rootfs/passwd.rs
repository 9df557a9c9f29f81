//! Who `user:group` of an image is, by the image's own `/etc/passwd` and `/etc/group`.
//!
//! Read by the daemon from a mount of the layers that is attached nowhere: what hides a file of a lower layer, and
//! where a link leads, is for the kernel to say.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::overlay;
use crate::broken;
use crate::opening;

/// The largest such file that is read; beyond it names are unknown.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The highest user and group there is, as in manifests. Beyond it lies the number that asks the kernel to change
/// nothing, which is root's way of staying root.
pub(crate) const ID_MAX: u32 = i32::MAX.cast_unsigned();

/// A user of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Groups of `/etc/group` that list the user.
    pub(crate) groups: BTreeSet<u32>,
    /// Where its files lie; `/` if nobody says.
    pub(crate) home: String,
}

/// The two files of an image, empty where there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads them from the layers, the topmost first.
    ///
    /// * `user_attributes`: as in [`overlay::Layers`].
    pub(crate) fn read(lower: &[PathBuf], user_attributes: bool) -> io::Result<Self> {
        let root = overlay::union(lower, user_attributes)?;
        let read = |path| read_inside(root.as_fd(), Path::new(path));
        Ok(Self { passwd: read("etc/passwd")?, group: read("etc/group")? })
    }

    /// Who `user` (the image's `name`, `uid`, `name:group`, `uid:gid`) is, with the manifest's numbers on top.
    /// As Docker has it, each half may be empty (root, and the user's own group), and a number is never a name.
    ///
    /// The error names what is unknown.
    pub(crate) fn resolve(&self, user: &str, uid: Option<u32>, gid: Option<u32>) -> Result<Identity, String> {
        let (user, group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
        let group = group.filter(|group| !group.is_empty());
        let user = if user.is_empty() { "0" } else { user };
        let uid_text = uid.map(|uid| uid.to_string());
        let wanted = uid_text.as_deref().unwrap_or(user);

        let entry = self.user(wanted);
        let uid = match (&entry, wanted.parse()) {
            (Some(entry), _) => entry.uid,
            (None, Ok(uid)) => uid,
            (None, Err(_)) if is_number(wanted) => return Err(out_of_range("user", wanted)),
            (None, Err(_)) => return Err(format!("user {wanted:?} is not in the image's /etc/passwd")),
        };
        let entry_gid = entry.as_ref().map_or(0, |entry| entry.gid);
        let gid = match (gid, group.filter(|_| uid_text.is_none())) {
            (Some(gid), _) => gid,
            (None, Some(group)) => {
                let found = group.parse().ok().or_else(|| self.group(group));
                found.ok_or_else(|| match is_number(group) {
                    true => out_of_range("group", group),
                    false => format!("group {group:?} is not in the image's /etc/group"),
                })?
            }
            (None, None) => entry_gid,
        };
        let groups = entry.as_ref().map_or_else(BTreeSet::new, |entry| self.groups_of(&entry.name));
        for (what, id) in
            [("user", uid), ("group", gid)].into_iter().chain(groups.iter().map(|id| ("group", *id)))
        {
            if id > ID_MAX && !broken!(IdsOutOfRange) {
                return Err(out_of_range(what, &id.to_string()));
            }
        }
        let home = entry.map(|entry| entry.home).filter(|home| home.starts_with('/'));
        Ok(Identity { uid, gid, groups, home: home.unwrap_or_else(|| "/".to_owned()) })
    }

    /// The first of that number, or of that name if it is none.
    fn user(&self, wanted: &str) -> Option<User> {
        let mut users = self.passwd.lines().filter_map(User::parse);
        match wanted.parse::<u32>() {
            Ok(uid) => users.find(|user| user.uid == uid),
            Err(_) => users.find(|user| user.name == wanted),
        }
    }

    fn group(&self, name: &str) -> Option<u32> {
        self.group.lines().filter_map(parse_group).find(|(found, ..)| *found == name).map(|(_, gid, _)| gid)
    }

    fn groups_of(&self, user: &str) -> BTreeSet<u32> {
        let groups = self.group.lines().filter_map(parse_group);
        groups
            .filter(|(.., members)| members.split(',').any(|member| member == user))
            .map(|(_, gid, _)| gid)
            .collect()
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn out_of_range(what: &str, id: &str) -> String {
    format!("{what} {id} is none of 0 to {ID_MAX}; use another image, or set runAsUser and runAsGroup")
}

struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

impl User {
    /// `name:password:uid:gid:comment:home:shell`
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default().to_owned();
        Some(Self { name, uid, gid, home })
    }
}

/// `name:password:gid:members`
fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

/// What is in a plain file; nothing if it is absent or anything else. No link leads out of `root`.
fn read_inside(root: BorrowedFd<'_>, path: &Path) -> io::Result<String> {
    let resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    match opening::plain_file(root, path, resolve) {
        Ok(Some(file)) => read_text(file),
        Ok(None) => Ok(String::new()),
        // Also a loop of links: whoever it was to name is unknown.
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => Ok(String::new()),
            _ => Err(error),
        },
    }
}

fn read_text(file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::{Mode, SFlag, mknod};

    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:Web:/srv:/bin/false\nbroken:x:y\n".to_owned(),
            group: "root:x:0:\nlogs:x:4:web,other\nweb:x:34:\nstaff:x:50:\n".to_owned(),
        }
    }

    #[track_caller]
    fn check(user: &str, uid: Option<u32>, gid: Option<u32>, expect: Result<(u32, u32, &[u32], &str), &str>) {
        let resolved = accounts().resolve(user, uid, gid);
        let expect = expect.map(|(uid, gid, groups, home)| Identity {
            uid,
            gid,
            groups: groups.iter().copied().collect(),
            home: home.to_owned(),
        });
        assert_eq!(
            resolved.map_err(|error| error.contains("not in") || error.contains("none of")),
            expect.map_err(|_| true),
            "{user:?} {uid:?} {gid:?}"
        );
    }

    #[test]
    fn a_user_is_found_by_name_or_number_and_the_manifest_wins() {
        check("", None, None, Ok((0, 0, &[], "/root")));
        check("web", None, None, Ok((33, 34, &[4], "/srv")));
        check("33", None, None, Ok((33, 34, &[4], "/srv")));
        check("web:staff", None, None, Ok((33, 50, &[4], "/srv")));
        check("1000:1001", None, None, Ok((1000, 1001, &[], "/")));
        check("web", Some(0), None, Ok((0, 0, &[], "/root")));
        check("web", Some(5000), Some(7), Ok((5000, 7, &[], "/")));
        check("nobody", None, None, Err(""));
        check("web:nogroup", None, None, Err(""));
        check("broken", None, None, Err(""));
    }

    #[test]
    fn half_a_user_and_a_number_mean_what_docker_means_by_them() {
        check("1000:", None, None, Ok((1000, 0, &[], "/")));
        check("web:", None, None, Ok((33, 34, &[4], "/srv")));
        check(":staff", None, None, Ok((0, 50, &[], "/root")));
        check(":", None, None, Ok((0, 0, &[], "/root")));
        let accounts = Accounts {
            passwd: "33:x:7:7::/seven:\nweb:x:33:34::/srv:\n".to_owned(),
            group: "34:x:8:\n".to_owned(),
        };
        let user = accounts.resolve("33:34", None, None).expect("a user");
        assert_eq!((user.uid, user.gid, user.home.as_str()), (33, 34, "/srv"));
    }

    #[test]
    fn no_number_means_that_nothing_is_changed() {
        for user in
            ["2147483648", "4294967295", "4294967296", "1000:4294967295", "1000:99999999999", "0:4294967295"]
        {
            check(user, None, None, Err(""));
        }
        check(
            "2147483647:2147483647",
            None,
            None,
            Ok((i32::MAX.cast_unsigned(), i32::MAX.cast_unsigned(), &[], "/")),
        );
        check("web", Some(u32::MAX), None, Err(""));
        check("web", None, Some(u32::MAX), Err(""));
        let accounts = Accounts {
            passwd: "high:x:4294967295:0::/:\nfine:x:1:1::/:\n".to_owned(),
            group: "all:x:4294967295:fine\n".to_owned(),
        };
        for user in ["high", "fine", "1:all"] {
            assert!(
                accounts.resolve(user, None, None).is_err_and(|error| error.contains("none of")),
                "{user}"
            );
        }
    }

    /// Who `web` is in two layers, of which the lower one says 1 and the upper one has no `/etc` yet, after `lower` and
    /// `upper` were at them; `None` if nothing may be mounted here.
    fn uid(lower: impl FnOnce(&Path), upper: impl FnOnce(&Path)) -> Option<Result<u32, ()>> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: stacking layers needs rights to mount");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let layers = ["upper", "lower"].map(|name| dir.path().join(name));
        layers.iter().for_each(|layer| fs::create_dir(layer).expect("a directory"));
        fs::create_dir(layers[1].join("etc")).expect("a directory");
        fs::write(layers[1].join("etc/passwd"), "web:x:1:1::/:\n").expect("a write");
        lower(&layers[1]);
        upper(&layers[0]);
        let accounts = Accounts::read(&layers, false).expect("readable");
        Some(accounts.resolve("web", None, None).map(|user| user.uid).map_err(drop))
    }

    #[track_caller]
    fn check_uid(found: Option<Result<u32, ()>>, expect: Result<u32, ()>) {
        assert_eq!(found.unwrap_or(expect), expect);
    }

    fn passwd_at(path: &Path) {
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, "web:x:2:2::/:\n").expect("a write");
    }

    fn whiteout(path: &Path) {
        mknod(path, SFlag::S_IFCHR, Mode::empty(), 0).expect("a whiteout");
    }

    #[test]
    fn the_topmost_layer_decides_who_a_user_is() {
        check_uid(uid(|_| {}, |_| {}), Ok(1));
        check_uid(uid(|_| {}, |upper| passwd_at(&upper.join("etc/passwd"))), Ok(2));
    }

    #[test]
    fn a_user_that_an_upper_layer_hides_is_unknown() {
        check_uid(uid(|_| {}, |upper| whiteout(&upper.join("etc"))), Err(()));
        let whiteout_of_file = |upper: &Path| {
            fs::create_dir(upper.join("etc")).expect("a directory");
            whiteout(&upper.join("etc/passwd"));
        };
        check_uid(uid(|_| {}, whiteout_of_file), Err(()));
        let opaque = |upper: &Path| {
            fs::create_dir(upper.join("etc")).expect("a directory");
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(upper.join("etc"), "trusted.overlay.opaque", b"y", flags).expect("opaque");
        };
        check_uid(uid(|_| {}, opaque), Err(()));
    }

    #[test]
    fn links_on_the_way_to_the_users_lead_within_all_layers() {
        // `/etc` became a link to a directory of the other layer.
        let linked_etc = |upper: &Path| symlink("/usr/etc", upper.join("etc")).expect("a link");
        check_uid(uid(|lower| passwd_at(&lower.join("usr/etc/passwd")), linked_etc), Ok(2));
        let linked_file = |upper: &Path| {
            passwd_at(&upper.join("usr/share/passwd"));
            fs::create_dir(upper.join("etc")).expect("a directory");
            symlink("../../../usr/share/passwd", upper.join("etc/passwd")).expect("a link");
        };
        check_uid(uid(|_| {}, linked_file), Ok(2));
        // Nothing of the machine: it has the first one of these, and this process the second one.
        for outside in ["/etc/hostname", "/proc/self/environ", "passwd"] {
            let upper = |upper: &Path| {
                fs::create_dir(upper.join("etc")).expect("a directory");
                symlink(outside, upper.join("etc/passwd")).expect("a link");
            };
            check_uid(uid(|_| {}, upper), Err(()));
        }
    }
}
