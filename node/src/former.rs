//! What nodes of before have left running that nothing on disk tells of: their data directory was deleted, emptied or
//! moved away under them.
//!
//! It is found by the mark of the directory ([`Home::owner`]) that each piece in the kernel carries: cgroups and all in
//! them by [`Remains`], links by their names. Whoever has claimed the directory ends it, for nobody else can be its owner.
//! What carries another mark is another node's, whether that runs or not, and is left alone.

use std::fmt;
use std::path::Path;

use skein_net::identity::Identity;
use skein_runtime::{CGROUP_MOUNT, Machine, Remains};
use tracing::{debug, warn};

use crate::daemon::{self, Failure};
use crate::home::Home;
use crate::report::Chain;

/// What was found of them, to be ended.
pub(crate) struct Former {
    owner: String,
    groups: Vec<Remains>,
}

/// A daemon runs whose directory this was.
#[derive(Debug, thiserror::Error)]
struct Alive {
    dir: String,
    pid: Option<u32>,
}

impl fmt::Display for Alive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Alive { dir, pid } = self;
        match pid {
            Some(pid) => write!(f, "process {pid} is the daemon of a node")?,
            None => f.write_str("a daemon that is not seen from here runs a node")?,
        }
        write!(f, " whose data directory was {dir}, until that was deleted or moved away; end ")?;
        match pid {
            Some(pid) => write!(f, "it first (kill {pid})")?,
            None => f.write_str("it first")?,
        }
        f.write_str(", then try again: what it has left running ends with that")
    }
}

impl Former {
    /// Looks for all that carries the mark of `home`, which this process has claimed, but for the cgroup `own` of the
    /// node that it still is. Refuses where a daemon of it runs. Nothing is changed.
    pub(crate) fn find(home: &Home, own: Option<&Path>) -> Result<Former, Failure> {
        let owner = home.owner()?;
        let groups = Remains::find(CGROUP_MOUNT.as_ref(), &owner, own).unwrap_or_else(|error| {
            warn!(error = %Chain(&error), "could not look for what a former node has left running here");
            Vec::new()
        });
        if let Some(pid) = groups.iter().find_map(Remains::daemon) {
            return Err(Alive { dir: home.dir().display().to_string(), pid }.into());
        }
        Ok(Former { owner, groups })
    }

    /// Whether nothing was found.
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Ends all of it, and says so. What cannot be ended is told. Links of the directory's own node are left to that.
    pub(crate) fn end(self) -> Vec<String> {
        let mut said = Vec::new();
        for group in self.groups {
            let (cgroup, pods) = (group.cgroup().display().to_string(), group.pods());
            match group.end() {
                Ok(()) if pods == 0 => debug!(cgroup, "a former node had left an empty cgroup here"),
                Ok(()) => {
                    let pods = if pods == 1 { "1 pod".to_owned() } else { format!("{pods} pods") };
                    said.push(format!(
                        "Ended what a former node of this data directory had left running: {pods} in cgroup {cgroup}."
                    ));
                }
                Err(error) => {
                    warn!(error = %Chain(&error), "could not end what a former node has left running here");
                }
            }
        }
        said
    }

    /// The same where no node is in the directory: links, too.
    pub(crate) fn end_all(self) -> Vec<String> {
        let owner = self.owner.clone();
        let said = self.end();
        if let Err(error) = skein_podnet::clear(&owner) {
            warn!(error = %Chain(&error), "could not remove the links of a former node");
        }
        said
    }
}

/// Ends what still runs of the node whose files lie in `home`, and has no daemon. What cannot be ended is told.
pub(crate) async fn end_known(home: &Home, cgroup: Option<&str>) {
    let pods = home.dir().join("pods");
    if !pods.exists() {
        return;
    }
    let ending = async {
        let node = Identity::node_in(home.dir())?;
        // Without a name of its own there is no group to look in.
        let Some(cgroup) = daemon::cgroup_of(cgroup, node) else {
            return Ok(skein_runtime::unmount_below(&pods)?);
        };
        let machine = Machine::open(daemon::machine_config(home, cgroup)?).await?;
        let network = daemon::network_config(home, daemon::first_subnet())?;
        daemon::Remains { machine, network }.clear().await;
        Ok::<_, Failure>(())
    };
    if let Err(error) = ending.await {
        warn!(error = %Chain(&*error), "could not end what a former node has left running here");
    }
}
