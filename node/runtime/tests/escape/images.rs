//! From an image at the daemon itself.

use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::Mode;

use super::{ensure, outcome, printed, ways};
use crate::world::World;

ways![
    what_is_no_file_is_not_opened_as_one: DevicesOfImages,
    a_device_in_an_image_is_none: DevicesInImages,
];

fn a_device_in_an_image_is_none(world: &World) -> Result<(), String> {
    // The one that every container may open, in its own `/dev`.
    let (kind, null) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::makedev(1, 3));
    let node = world.dir.path().join("image/top/null");
    nix::sys::stat::mknod(&node, kind, Mode::from_bits_truncate(0o666), null).expect("a device");
    let pod = world.pod("a");
    let text = printed(outcome(world, world.container(&pod, "own", &["open", "/dev/null"])));
    assert_eq!(text, "opened\n");
    let text = printed(outcome(world, world.container(&pod, "images", &["open", "/null"])));
    ensure(text == "permission denied\n", || text)
}

/// To open a device does something to the machine, and to open a FIFO waits for whoever opens its other end, which
/// nobody can before.
fn what_is_no_file_is_not_opened_as_one(world: &World) -> Result<(), String> {
    let base = world.dir.path().join("image/base");
    let fifos = ["passwd", "group"].map(|name| base.join("etc").join(name));
    for fifo in &fifos {
        std::fs::remove_file(fifo).expect("a file");
        nix::unistd::mkfifo(fifo, Mode::S_IRWXU).expect("a fifo");
    }
    let pod = world.pod("a");
    let mut spec = world.container(&pod, "main", &["print", "ran"]);
    // An image of one layer is read as it lies there; a FIFO in a stack of several has ends of its own.
    spec.rootfs.lower = vec![base];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| {
            let mut heard = false;
            while !over.load(Ordering::Relaxed) {
                for fifo in &fifos {
                    let mut options = std::fs::File::options();
                    heard |= options.write(true).custom_flags(libc::O_NONBLOCK).open(fifo).is_ok();
                }
            }
            heard
        });
        let text = printed(outcome(world, spec));
        over.store(true, Ordering::Relaxed);
        assert_eq!(text, "ran\n");
        ensure(!listener.join().expect("it listens"), || "the daemon has opened a FIFO".to_owned())
    })
}
