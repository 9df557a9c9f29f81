//! What a caller asks for: plain values, already resolved from the pod's manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ContainerId, PodUid};

/// A pod's surroundings, shared by its containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The pod's uid; names its directory and cgroup.
    pub pod: PodUid,
    /// The pod's namespace; only for the path of its logs.
    pub namespace: String,
    /// The pod's name; only for the path of its logs.
    pub name: String,
    /// What the pod calls itself; at most 64 bytes. Not used with the machine's own network.
    pub hostname: String,
    /// Whose network the pod sees.
    pub network: Network,
    /// Kernel settings of the pod's own namespaces (`net.*`, `kernel.shm*`, `kernel.msg*`, `kernel.sem`, `fs.mqueue.*`).
    pub sysctls: BTreeMap<String, String>,
    /// What all containers together may use.
    pub resources: Resources,
    /// The caller's own notes; come back from `list`.
    pub labels: BTreeMap<String, String>,
}

/// Whose network interfaces, hostname and ports a pod sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Its own: only the loopback until somebody attaches an address.
    Pod,
    /// The machine's (`hostNetwork: true`).
    Machine,
}

/// What a pod or container may use. `None` is "no limit".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// The share of the processor when it is short, in thousandths of a core.
    pub cpu_request_millis: u64,
    /// The most processor time per 100 ms, in thousandths of a core.
    pub cpu_limit_millis: Option<u64>,
    /// Memory including page cache; beyond it the kernel reclaims, then kills. Swap is not allowed on top.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids_max: Option<u64>,
}

/// The layers and settings of an image that lies unpacked on this machine: the seam to the image store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootfsSource {
    /// Unpacked layers, the topmost first; at least one. They are never written to.
    pub lower: Vec<PathBuf>,
    /// What the image says about how it wants to be run.
    pub config: ImageConfig,
}

/// The part of an image's configuration that matters to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or program and arguments where there is no entry point.
    pub cmd: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty is root.
    pub user: String,
    /// Where the program starts; empty is `/`.
    pub workdir: String,
    /// The name or number of the signal that asks it to end; `None` is SIGTERM.
    pub stop_signal: Option<String>,
}

/// One start of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Which; must be new.
    pub id: ContainerId,
    /// What its root file system is made of.
    pub rootfs: RootfsSource,
    /// Replaces the image's entry point *and* its arguments (`command` of the manifest).
    pub command: Option<Vec<String>>,
    /// Replaces the image's arguments (`args` of the manifest).
    pub args: Option<Vec<String>>,
    /// Added to the image's environment; a later entry wins.
    pub env: Vec<(String, String)>,
    /// Replaces the image's directory.
    pub workdir: Option<String>,
    /// Replaces the image's user, field by field.
    pub user: User,
    /// Volumes and files of the machine, mounted in this order.
    pub mounts: Vec<Mount>,
    /// Contents of `/etc/hosts` and `/etc/resolv.conf`.
    pub network_files: NetworkFiles,
    /// What this container may use, within what the pod may use.
    pub resources: Resources,
    /// What its processes may do.
    pub security: Security,
    /// -1000 to 1000, who is killed first when the machine is out of memory; done as far as allowed.
    pub oom_score_adj: Option<i32>,
    /// Replaces the image's signal, by name or number.
    pub stop_signal: Option<String>,
    /// File in the container whose content becomes [`Exit::message`](super::Exit::message).
    pub termination_message_path: Option<String>,
    /// The caller's own notes; come back from `list`.
    pub labels: BTreeMap<String, String>,
}

/// Who the processes are. `None` leaves it to the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// `runAsUser`.
    pub uid: Option<u32>,
    /// `runAsGroup`.
    pub gid: Option<u32>,
    /// `supplementalGroups` and `fsGroup`, on top of those in the image's `/etc/group`.
    pub groups: BTreeSet<u32>,
    /// Those of the image's `/etc/group` do not count (`supplementalGroupsPolicy: Strict`).
    pub only_these_groups: bool,
}

/// Something of this machine seen inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it comes from.
    pub source: MountSource,
    /// Where it is seen: absolute, without `..`. Links in the image never lead it out of the image.
    pub destination: String,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// Where a mount comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A volume made by `put_volume`, or a path below it.
    Volume {
        /// Its name.
        name: String,
        /// Relative, without `..`; made as a directory if absent. Links in the volume never lead out of it.
        sub_path: Option<String>,
    },
    /// A file or directory of the machine (`hostPath`), which must exist.
    Machine {
        /// Where it lies.
        path: PathBuf,
        /// As for a volume.
        sub_path: Option<String>,
    },
}

/// What a volume of a pod consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    /// An empty directory on disk that everybody may write (`emptyDir`).
    Directory,
    /// An empty directory in memory, at most this large (`emptyDir` with medium `Memory`).
    Memory {
        /// `None` is half of the machine's memory, the kernel's own default.
        size_bytes: Option<u64>,
    },
    /// These files and no others (ConfigMaps, Secrets, downward API); kept in memory if `secret`.
    Files {
        /// Relative path, without `..`, to content.
        files: BTreeMap<String, VolumeFile>,
        /// Whether the content must never reach a disk.
        secret: bool,
        /// The group that may read all of them (`fsGroup`), whatever their permissions say.
        group: Option<u32>,
    },
}

/// One file of a [`Volume::Files`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFile {
    /// What is in it.
    pub content: Vec<u8>,
    /// Its permissions, such as `0o644`.
    pub mode: u32,
}

/// What the pod's programs read to find others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkFiles {
    /// Lines of `/etc/hosts` after those of the loopback: the pod's own addresses, if its network is its own.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// Further lines: its `hostAliases`.
    pub aliases: Vec<(IpAddr, Vec<String>)>,
    /// Name servers; with none, those of the machine.
    pub nameservers: Vec<IpAddr>,
    /// What the machine's `/etc/resolv.conf` says comes first.
    pub beside_the_machines: bool,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options, such as `ndots:5`.
    pub options: Vec<String>,
}

/// What the processes of a container may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    /// All capabilities and devices, no filter, nothing hidden: root of the machine.
    pub privileged: bool,
    /// Changes to the default set.
    pub capabilities: Capabilities,
    /// Whether programs with set-uid bits gain anything (`allowPrivilegeEscalation`).
    pub privilege_escalation: bool,
    /// Whether the root file system refuses writing.
    pub read_only_root: bool,
    /// Which system calls are let through.
    pub seccomp: Seccomp,
    /// Refuse to start as uid 0.
    pub run_as_non_root: bool,
    /// Nothing of `/proc` and `/sys` is hidden or made read-only (`procMount: Unmasked`).
    pub unmasked_proc: bool,
}

impl Default for Security {
    /// What Kubernetes gives a container that says nothing, but with the default system call filter on.
    fn default() -> Self {
        Self {
            privileged: false,
            capabilities: Capabilities::default(),
            privilege_escalation: true,
            read_only_root: false,
            seccomp: Seccomp::RuntimeDefault,
            run_as_non_root: false,
            unmasked_proc: false,
        }
    }
}

/// Changes to the default capabilities. Names as in manifests (`NET_ADMIN`), with or without `CAP_`, or `ALL`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Given on top; wins over `drop` unless that is by name.
    pub add: BTreeSet<String>,
    /// Taken away.
    pub drop: BTreeSet<String>,
}

/// Which system calls a container may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Our own table: what ordinary programs need.
    RuntimeDefault,
    /// All of them.
    Unconfined,
}
