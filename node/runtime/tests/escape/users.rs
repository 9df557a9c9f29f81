//! Towards a user that the manifest or the image did not mean.

use super::{Outcome, outcome, ways};
use crate::world::World;

ways![nobody_stays_root_by_a_number_that_asks_for_no_change: IdsOutOfRange];

/// The kernel takes user 4294967295 for "as it is", which is root.
fn nobody_stays_root_by_a_number_that_asks_for_no_change(world: &World) -> Result<(), String> {
    let pod = world.pod("a");
    for (index, user) in
        ["4294967295", "4294967295:4294967295", "0:4294967295", "2147483648", "high"].into_iter().enumerate()
    {
        let top = world.dir.path().join("image/top/etc");
        std::fs::write(top.join("passwd"), "high:x:4294967295:4294967295::/:\n").expect("a file");
        let mut spec = world.container(&pod, &format!("n{index}"), &["status", "Uid"]);
        spec.rootfs.config.user = user.to_owned();
        spec.security.run_as_non_root = user != "0:4294967295";
        match outcome(world, spec) {
            Outcome::Refused(reason) => assert!(reason.contains("none of"), "{reason}"),
            Outcome::Ran(_, text) => return Err(format!("{user} ran as {text}")),
        }
    }
    Ok(())
}
