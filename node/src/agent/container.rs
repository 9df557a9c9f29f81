//! The plan of a container or pod in the words of the runtime: a translation, without rules of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use skein_control::container::{
    ContainerPlan, HostPathKind, Limits, SandboxPlan, Seccomp, VolumePlan, VolumeSource,
};
use skein_runtime::{
    Capabilities, ContainerId, ContainerSpec, Mount, MountSource, Network, NetworkFiles, PodUid, Resources,
    RootfsSource, SandboxSpec, Security, User, Volume, VolumeFile,
};

/// Label of a container: the image it was made from, for adoption.
pub(super) const IMAGE: &str = "image";
/// Unless a pod says otherwise; a fork bomb stops here.
const PIDS_MAX: u64 = 4096;

pub(super) fn sandbox(uid: &PodUid, pod: &Pod, plan: &SandboxPlan) -> SandboxSpec {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    SandboxSpec {
        pod: uid.clone(),
        namespace: text(&pod.metadata.namespace),
        name: text(&pod.metadata.name),
        hostname: plan.hostname.clone(),
        network: if plan.host_network { Network::Machine } else { Network::Pod },
        sysctls: plan.sysctls.clone(),
        resources: Resources { pids_max: Some(PIDS_MAX), ..resources(&plan.limits) },
        labels: BTreeMap::new(),
    }
}

/// What a container spec is made of besides the plan.
pub(super) struct Surroundings<'a> {
    pub(super) id: ContainerId,
    pub(super) image: &'a str,
    pub(super) rootfs: RootfsSource,
    pub(super) volumes: &'a BTreeMap<String, PathBuf>,
    pub(super) hostname: String,
    pub(super) pod_ip: Option<IpAddr>,
    pub(super) sandbox: &'a SandboxPlan,
}

pub(super) fn container(plan: ContainerPlan, around: Surroundings<'_>) -> ContainerSpec {
    let mounts = plan.mounts.iter().map(|mount| Mount {
        source: match around.volumes.get(&mount.volume) {
            Some(path) => MountSource::Machine { path: path.clone(), sub_path: mount.sub_path.clone() },
            None => MountSource::Volume { name: mount.volume.clone(), sub_path: mount.sub_path.clone() },
        },
        destination: mount.path.clone(),
        read_only: mount.read_only,
    });
    let own = around.pod_ip.map(|address| (address, vec![around.hostname.clone()]));
    let aliases = around
        .sandbox
        .host_aliases
        .iter()
        .filter_map(|(address, names)| Some((address.parse().ok()?, names.clone())));
    let dns = &around.sandbox.dns;
    let security = plan.security;
    ContainerSpec {
        id: around.id,
        rootfs: around.rootfs,
        command: plan.command,
        args: plan.args,
        env: plan.env,
        workdir: plan.working_dir,
        user: User {
            uid: security.run_as_user.map(id),
            gid: security.run_as_group.map(id),
            groups: security.groups.into_iter().map(id).collect(),
            only_these_groups: security.only_these_groups,
        },
        mounts: mounts.collect(),
        network_files: NetworkFiles {
            hosts: own.into_iter().collect(),
            aliases: aliases.collect(),
            nameservers: dns.nameservers.iter().filter_map(|address| address.parse().ok()).collect(),
            beside_the_machines: !dns.only,
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        },
        resources: resources(&plan.limits),
        security: Security {
            privileged: security.privileged,
            capabilities: Capabilities {
                add: security.capabilities_add.into_iter().collect(),
                drop: security.capabilities_drop.into_iter().collect(),
            },
            privilege_escalation: !security.no_new_privileges,
            read_only_root: security.read_only_root,
            seccomp: match security.seccomp {
                Seccomp::Unconfined => skein_runtime::Seccomp::Unconfined,
                Seccomp::RuntimeDefault => skein_runtime::Seccomp::RuntimeDefault,
            },
            run_as_non_root: security.must_be_non_root,
            unmasked_proc: security.unmasked_proc,
        },
        oom_score_adj: Some(plan.limits.oom_score_adj),
        stop_signal: plan.stop_signal,
        termination_message_path: Some(plan.termination_message_path),
        labels: BTreeMap::from([(IMAGE.to_owned(), around.image.to_owned())]),
    }
}

/// A user or group for the runtime, which refuses one that is none: to leave it out would mean the image's.
fn id(id: i64) -> u32 {
    u32::try_from(id).unwrap_or(u32::MAX)
}

/// A volume for the runtime; `Err` holds the machine's own path of a `hostPath`.
pub(super) fn volume(plan: VolumePlan) -> Result<Volume, (PathBuf, HostPathKind)> {
    match plan.source {
        VolumeSource::Empty { memory: false, .. } => Ok(Volume::Directory),
        VolumeSource::Empty { memory: true, size_bytes_max } => {
            Ok(Volume::Memory { size_bytes: size_bytes_max })
        }
        VolumeSource::Files { files, secret } => {
            let file = |file: skein_control::container::File| {
                (file.path, VolumeFile { content: file.bytes, mode: file.mode })
            };
            let files = files.into_iter().map(file).collect();
            Ok(Volume::Files { files, secret, group: plan.fs_group.map(id) })
        }
        VolumeSource::Host { path, kind } => Err((path.into(), kind)),
    }
}

/// Makes a `hostPath` what it must be, or says in kubelet's words why it is not.
pub(super) fn prepare_host_path(path: &std::path::Path, kind: HostPathKind) -> Result<(), String> {
    use std::os::unix::fs::FileTypeExt;
    let make = |made: std::io::Result<()>| {
        made.map_err(|error| format!("hostPath {} could not be made: {error}", path.display()))
    };
    let found = std::fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let is = |right: bool, what: &str| {
        if right {
            Ok(())
        } else {
            Err(format!("hostPath type check failed: {} is not a {what}", path.display()))
        }
    };
    match (kind, found) {
        (HostPathKind::DirectoryOrCreate, None) => make(std::fs::create_dir_all(path)),
        (HostPathKind::FileOrCreate, None) => {
            make(std::fs::File::options().create(true).append(true).open(path).map(drop))
        }
        (HostPathKind::Any, _) => Ok(()),
        (HostPathKind::DirectoryOrCreate | HostPathKind::Directory, found) => {
            is(found.is_some_and(|kind| kind.is_dir()), "directory")
        }
        (HostPathKind::FileOrCreate | HostPathKind::File, found) => {
            is(found.is_some_and(|kind| kind.is_file()), "file")
        }
        (HostPathKind::Socket, found) => is(found.is_some_and(|kind| kind.is_socket()), "socket"),
        (HostPathKind::CharDevice, found) => {
            is(found.is_some_and(|kind| kind.is_char_device()), "character device")
        }
        (HostPathKind::BlockDevice, found) => {
            is(found.is_some_and(|kind| kind.is_block_device()), "block device")
        }
    }
}

fn resources(limits: &Limits) -> Resources {
    Resources {
        // 1024 shares are one core.
        cpu_request_millis: limits.cpu_shares * 1000 / 1024,
        cpu_limit_millis: limits.cpu_quota_us.map(|quota| quota * 1000 / limits.cpu_period_us.max(1)),
        memory_limit_bytes: limits.memory_bytes_max,
        pids_max: None,
    }
}
