//! Control groups: who uses how much, who may touch which device, and killing all of somebody.
//!
//! Our part of each hierarchy, with `ours` from the configuration such as `skein/<node id>`:
//!
//! ```text
//! <mount>/<ours>/of-<owner>                   whose all this is, and whether that one is alive: see `owner`
//! <mount>/<ours>/shims                        the shims: outside the daemon's own cgroup
//! <mount>/<ours>/pod<uid>                     limits of the pod
//! <mount>/<ours>/pod<uid>/<name>-<attempt>    limits of the container, and its processes
//! ```
//!
//! Both versions, also side by side: on a hybrid machine some controllers lie on version 1 and version 2
//! only counts processes. Every hierarchy found is used, so that no service manager that tracks
//! processes by cgroup takes shims or containers for the daemon's.

mod detect;
mod devices;
mod limits;
mod owner;
mod processes;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::broken;
use crate::engine::{ContainerId, PodUid, Resources, Usage};

pub(crate) use devices::{DEFAULT_DEVICES, Device, oci_rules};
pub(crate) use limits::{CPU_PERIOD_US, cpu_quota_us, cpu_shares};
pub(crate) use owner::{Holder, groups_of, holder};
pub(crate) use processes::{join, kill, oom_kills, remove};

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub(crate) mount: PathBuf,
    pub(crate) version: Version,
    /// What is controlled there: `cpu`, `memory`, ..
    pub(crate) controllers: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// Our part of every hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// The one in which devices are denied: by the controller of version 1, else by a program on version 2.
    device_filter: Option<Hierarchy>,
    ours: PathBuf,
}

/// Whether devices could be denied by the hierarchies below `mount`; makes no groups there.
pub(crate) fn could_filter_devices(mount: &Path) -> bool {
    let is_writable = |hierarchy: &Hierarchy| access(&hierarchy.mount, AccessFlags::W_OK).is_ok();
    let hierarchies = detect::hierarchies(mount).unwrap_or_default();
    let writable: Vec<_> = hierarchies.into_iter().filter(is_writable).collect();
    devices::filter(&writable).is_some()
}

/// What a container without a limit of its own on processes may have, so that no fork bomb takes the machine.
const PIDS_MAX_DEFAULT: u64 = 4096;

impl Cgroups {
    /// Takes the hierarchies below `mount` in which we may make groups. None at all is possible.
    pub(crate) fn open(mount: &Path, ours: &Path) -> io::Result<Self> {
        let hierarchies = detect::hierarchies(mount)?;
        Ok(Self::with(hierarchies, ours))
    }

    fn with(mut hierarchies: Vec<Hierarchy>, ours: &Path) -> Self {
        hierarchies.retain_mut(|hierarchy| {
            let usable =
                make_group(hierarchy, ours).is_ok() && make_group(hierarchy, &ours.join("shims")).is_ok();
            if usable && hierarchy.version == Version::V2 {
                // What could not be passed down to us is not ours to limit.
                hierarchy.controllers = detect::v2_controllers(&hierarchy.mount.join(ours));
            }
            usable
        });
        Self { device_filter: devices::filter(&hierarchies).cloned(), hierarchies, ours: ours.to_owned() }
    }

    /// The groups of another engine, as they are: nothing is made.
    pub(crate) fn present(mount: &Path, group: &Path) -> io::Result<Self> {
        let mut hierarchies = detect::hierarchies(mount)?;
        hierarchies.retain(|hierarchy| hierarchy.mount.join(group).is_dir());
        Ok(Self { device_filter: None, hierarchies, ours: group.to_owned() })
    }

    /// Marks our groups as `owner`'s, who lives for as long as what this returns is kept.
    pub(crate) fn claim(&self, owner: &str) -> io::Result<Vec<File>> {
        owner::claim(&self.hierarchies, &self.ours, owner)
    }

    /// Our part of each hierarchy.
    pub(crate) fn groups(&self) -> Vec<PathBuf> {
        self.at(&self.ours)
    }

    /// Whether `controller` works.
    pub(crate) fn controls(&self, controller: &str) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.controls(controller))
    }

    /// Whether devices can be denied.
    pub(crate) fn filters_devices(&self) -> bool {
        self.device_filter.is_some()
    }

    /// Whether version 2 is all there is, so that one mount shows a container its own limits.
    pub(crate) fn is_unified(&self) -> bool {
        !self.hierarchies.is_empty()
            && self.hierarchies.iter().all(|hierarchy| hierarchy.version == Version::V2)
    }

    /// The path that `config.json` names.
    pub(crate) fn container_path(&self, id: &ContainerId) -> PathBuf {
        self.ours.join(pod_dir(&id.pod)).join(id.dir_name())
    }

    /// The groups the shims are in.
    pub(crate) fn shims(&self) -> Vec<PathBuf> {
        self.at(&self.ours.join("shims"))
    }

    /// The groups of a pod.
    pub(crate) fn pod(&self, pod: &PodUid) -> Vec<PathBuf> {
        self.at(&self.ours.join(pod_dir(pod)))
    }

    /// The groups of a container.
    pub(crate) fn container(&self, id: &ContainerId) -> Vec<PathBuf> {
        self.at(&self.container_path(id))
    }

    /// Makes the groups of a pod and sets its limits; does no harm to those that exist.
    pub(crate) fn create_pod(&self, pod: &PodUid, resources: &Resources) -> io::Result<()> {
        let resources = Resources { pids_max: resources.pids_max.or(Some(PIDS_MAX_DEFAULT)), ..*resources };
        self.create(&self.ours.join(pod_dir(pod)), &resources, limits::Level::Pod)
    }

    /// Makes the groups of a container, with its limits and, unless `all_devices`, the device filter if there is one.
    pub(crate) fn create_container(
        &self,
        id: &ContainerId,
        resources: &Resources,
        all_devices: bool,
    ) -> io::Result<()> {
        let path = self.container_path(id);
        self.create(&path, resources, limits::Level::Container)?;
        match &self.device_filter {
            Some(hierarchy) if !all_devices && !broken!(AllDevices) => devices::restrict(hierarchy, &path),
            _ => Ok(()),
        }
    }

    /// Pods that have groups, whether or not anybody remembers them.
    pub(crate) fn pods(&self) -> Vec<PodUid> {
        let mut pods = Vec::new();
        for dir in self.at(&self.ours) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let uid = name.to_str().and_then(|name| name.strip_prefix("pod"));
                pods.extend(uid.and_then(|uid| uid.parse().ok()));
            }
        }
        pods.sort();
        pods.dedup();
        pods
    }

    /// Containers of a pod that have groups, whether or not anybody remembers them.
    pub(crate) fn containers(&self, pod: &PodUid) -> Vec<ContainerId> {
        let mut ids = Vec::new();
        for dir in self.pod(pod) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name();
                ids.extend(name.to_str().and_then(|name| ContainerId::from_dir_name(pod, name)));
            }
        }
        ids.sort();
        ids.dedup();
        ids
    }

    /// Kills whatever is left in the groups of a pod and removes them.
    pub(crate) fn remove_pod(&self, pod: &PodUid) -> io::Result<()> {
        let dirs = self.pod(pod);
        kill(&dirs)?;
        remove(&dirs)
    }

    /// Removes all our groups. Their parents, which others may share, stay as long as they hold anybody.
    pub(crate) fn remove_ours(&self) -> io::Result<()> {
        let dirs = self.at(&self.ours);
        kill(&dirs)?;
        remove(&dirs)?;
        for above in self.ours.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()) {
            self.at(above).iter().for_each(|dir| drop(fs::remove_dir(dir)));
        }
        Ok(())
    }

    /// What the processes below a group have used.
    pub(crate) fn usage(&self, dirs: &[PathBuf]) -> Usage {
        limits::usage(&self.hierarchies, dirs)
    }

    fn create(&self, path: &Path, resources: &Resources, level: limits::Level) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            make_group(hierarchy, path)?;
            limits::apply(hierarchy, &hierarchy.mount.join(path), resources, level)?;
        }
        Ok(())
    }

    fn at(&self, path: &Path) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(path)).collect()
    }
}

impl Hierarchy {
    fn controls(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

fn pod_dir(pod: &PodUid) -> String {
    format!("pod{pod}")
}

/// Makes each directory of `path` and, on version 2, passes the controllers down to it.
fn make_group(hierarchy: &Hierarchy, path: &Path) -> io::Result<()> {
    let mut dir = hierarchy.mount.clone();
    for part in path {
        if hierarchy.version == Version::V2 {
            // One by one: a controller that the machine keeps for itself must not cost us the others.
            for controller in &hierarchy.controllers {
                let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
