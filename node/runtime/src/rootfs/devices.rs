//! What lies in `/dev` of a container.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fchmodat, makedev, mknodat};

use super::destination::{self, Kind, Links};
use super::{Failure, Step};
use crate::broken;
use crate::cgroup::{DEFAULT_DEVICES, Device};
use crate::sys::mount::{Attributes, add_attributes, attach, clone_tree};

/// What programs expect beside the devices; `core` where the machine has what it leads to, as other runtimes do.
const LINKS: [(&str, &str); 6] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

/// Fills the fresh `/dev` that `dev` is open on; returns its null device, opened.
pub(super) fn fill(dev: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    for device in &DEFAULT_DEVICES {
        add(dev, device).step(|| format!("make /dev/{}", device.name))?;
    }
    for (name, target) in LINKS {
        if name == "core" && !Path::new(target).exists() {
            continue;
        }
        nix::unistd::symlinkat(target, dev, name).step(|| format!("link /dev/{name}"))?;
    }
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let null = if broken!(InputOfTheMachine) { "/dev/null" } else { "null" };
    nix::fcntl::openat(dev, null, flags, Mode::empty()).step(|| "open /dev/null".to_owned())
}

fn add(dev: BorrowedFd<'_>, device: &Device) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(0o666);
    let number = makedev(device.major.into(), device.minor.into());
    match mknodat(dev, device.name, SFlag::S_IFCHR, mode, number) {
        Ok(()) => {
            // Again, because the first mode was cut by the umask.
            let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
            Ok(fchmodat(dev, device.name, mode, follow)?)
        }
        // A user namespace may not make devices; it may show those of the machine.
        Err(nix::Error::EPERM) => {
            let source = clone_tree(&Path::new("/dev").join(device.name), false)?;
            // What is done with a device does not change its file; what is done to the file is refused.
            add_attributes(source.as_fd(), Attributes::READ_ONLY, false)?;
            let target = destination::open_or_make(dev, Path::new(device.name), Kind::File, Links::Refused)?;
            attach(source.as_fd(), target.as_fd())
        }
        Err(error) => Err(error.into()),
    }
}
