//! From a pod's spec to what the runtime is to do: environment, command, mounts, limits, security.
//!
//! Everything the API left to look up is looked up here: config maps, secrets, the pod's own fields. What
//! depends on the image (its entrypoint, user and environment) stays for the runtime to merge below this.
//! Services' addresses are not put into the environment, except those of the API server itself.

mod env;
mod files;
mod limits;
mod pull;
mod security;
mod unsupported;

#[cfg(test)]
mod tests;

pub use limits::{Limits, limits};
pub use pull::{Credentials, pull_credentials};
pub use security::{Seccomp, Security};

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, Volume, VolumeMount};
use skein_api::pod::sysctl_name;
use std::collections::{BTreeMap, BTreeSet};

use crate::meta;
use crate::pod::StartError;
use crate::resources::QosClass;
use crate::view::{Key, View};

/// What the node knows and the map does not, or not yet.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The pod's addresses, the primary one first.
    pub pod_ips: Vec<String>,
    /// The node's addresses, the primary one first.
    pub host_ips: Vec<String>,
}

/// What one container runs with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerPlan {
    /// Replaces the image's entrypoint; where it does, the image's arguments fall away too.
    pub command: Option<Vec<String>>,
    /// Replaces the image's arguments.
    pub args: Option<Vec<String>>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Added to the image's environment, overriding it; each name once.
    pub env: Vec<(String, String)>,
    /// Volumes, shallow paths first.
    pub mounts: Vec<Mount>,
    /// cgroup numbers.
    pub limits: Limits,
    /// Who it runs as and what it may.
    pub security: Security,
    /// Has a terminal.
    pub tty: bool,
    /// Keeps its standard input open.
    pub stdin: bool,
    /// The standard input ends with the first client that was attached.
    pub stdin_once: bool,
    /// Where the container may leave its last words.
    pub termination_message_path: String,
    /// Replaces the signal by which the image wants to be stopped.
    pub stop_signal: Option<String>,
}

/// One volume inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The volume's name in the pod.
    pub volume: String,
    /// Where it appears.
    pub path: String,
    /// It may not be written to.
    pub read_only: bool,
    /// What of the volume is seen; all of it unless given. Relative, and never out of it.
    pub sub_path: Option<String>,
}

/// One volume of a pod, to be made before its first container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePlan {
    /// Its name in the pod.
    pub name: String,
    /// What it is.
    pub source: VolumeSource,
    /// The group that owns it.
    pub fs_group: Option<i64>,
}

/// What a volume is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// An empty directory that lives as long as the pod.
    Empty {
        /// In memory instead of on disk.
        memory: bool,
        /// The most it may hold.
        size_bytes_max: Option<u64>,
    },
    /// These files, read-only to containers.
    Files {
        /// The files, in the order of their paths.
        files: Vec<File>,
        /// They are secret: keep them in memory.
        secret: bool,
    },
    /// A path of the machine.
    Host {
        /// The path.
        path: String,
        /// What it must be, or is made to be.
        kind: HostPathKind,
    },
}

/// One file of a volume.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Relative to the volume; never leaves it.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for File {
    /// Without the content, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File({}, {:o}, {} bytes)", self.path, self.mode, self.bytes.len())
    }
}

/// What a `hostPath` must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPathKind {
    /// Anything, also nothing.
    Any,
    /// A directory, made if there is nothing.
    DirectoryOrCreate,
    /// A directory.
    Directory,
    /// A file, made if there is nothing.
    FileOrCreate,
    /// A file.
    File,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// What a pod's sandbox is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxPlan {
    /// Its host name.
    pub hostname: String,
    /// Shares the machine's network.
    pub host_network: bool,
    /// Shares the machine's process ids.
    pub host_pid: bool,
    /// Shares the machine's IPC objects.
    pub host_ipc: bool,
    /// Its containers see each other's processes.
    pub share_process_namespace: bool,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Names the parent of its cgroup.
    pub qos_class: QosClass,
    /// Numbers of the cgroup around all its containers.
    pub limits: Limits,
    /// Lines for its hosts file: address, names.
    pub host_aliases: Vec<(String, Vec<String>)>,
    /// How its programs find others by name.
    pub dns: Dns,
}

impl SandboxPlan {
    /// Whether its programs find others by the machine's name servers only.
    pub fn needs_resolver(&self) -> bool {
        !self.host_network && !self.dns.only && self.dns.nameservers.is_empty()
    }
}

/// What a pod says about its resolver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, such as `ndots:5`.
    pub options: Vec<String>,
    /// Nothing but these: the node's own do not count.
    pub only: bool,
}

/// Why a plan cannot be made (yet). The text is kubelet's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A config map that must exist does not.
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    /// A secret that must exist does not.
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    /// The config map or secret has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Where it is.
        namespace: String,
        /// Its name.
        name: String,
        /// What was looked for.
        key: String,
    },
    /// A value is no text.
    #[error("the value of key {key} in secret {name} is not UTF-8; mount the secret as a volume instead")]
    NotText {
        /// The secret.
        name: String,
        /// The key.
        key: String,
    },
    /// A field reference that leads nowhere.
    #[error("fieldPath \"{0}\" not supported")]
    NoField(String),
    /// A resource reference that leads nowhere.
    #[error("resource \"{0}\" not supported; use limits or requests of cpu, memory or ephemeral-storage")]
    NoResource(String),
    /// Root is asked for and forbidden at once.
    #[error("container's runAsUser breaks non-root policy (container: {0})")]
    RootForbidden(String),
    /// A volume of a kind that this cluster does not have.
    #[error(
        "volume \"{name}\" is of kind {kind}, which this cluster cannot mount; \
         use emptyDir, configMap, secret, downwardAPI, projected or hostPath"
    )]
    VolumeKind {
        /// The volume.
        name: String,
        /// The field that was set.
        kind: String,
    },
    /// A `subPathExpr` that names what the environment does not hold.
    #[error("subPathExpr of volumeMount {path} names variable {variable}, which the container does not have")]
    NoVariable {
        /// Where it would appear.
        path: String,
        /// The name.
        variable: String,
    },
    /// Something that would otherwise be passed over in silence.
    #[error("{field} is not supported on this cluster yet; {instead}")]
    Unsupported {
        /// The field, with the value that matters.
        field: String,
        /// What to do.
        instead: &'static str,
    },
    /// A mount of a volume that the pod does not have.
    #[error("volumeMount names volume \"{0}\", which the pod does not have")]
    NoVolume(String),
    /// A part of a volume of files that is not there.
    #[error(
        "subPath \"{part}\" of volume \"{volume}\" is not there; add that key, or mark the volume's source optional"
    )]
    NoPart {
        /// The volume.
        volume: String,
        /// What was looked for.
        part: String,
    },
    /// A file that would leave its volume.
    #[error("path \"{0}\" leads out of its volume")]
    PathEscapes(String),
    /// The container is not in the pod.
    #[error("container \"{0}\" not found in the pod")]
    NoContainer(String),
}

impl Error {
    /// The answer to [`crate::pod::Effect::StartContainer`] that says this.
    pub fn into_start_error(self) -> StartError {
        StartError { reason: "CreateContainerConfigError".to_owned(), message: self.to_string() }
    }

    /// The same while the pod's volumes are being made, when kubelet still says `ContainerCreating`.
    pub fn into_volume_error(self) -> StartError {
        StartError {
            reason: "ContainerCreating".to_owned(),
            message: format!("MountVolume.SetUp failed: {self}"),
        }
    }
}

/// What container `name` of `pod` runs with.
pub fn plan(view: &View, pod: &Pod, name: &str, facts: &Facts) -> Result<ContainerPlan, Error> {
    let spec = pod.spec.as_ref().ok_or_else(|| Error::NoContainer(name.to_owned()))?;
    let container = find(spec, name).ok_or_else(|| Error::NoContainer(name.to_owned()))?;
    unsupported::check(spec, container)?;
    let look = Lookup { view, pod, spec, facts };
    let env = env::plan(&look, container)?;
    let expand = |words: &Option<Vec<String>>| {
        words.as_ref().map(|words| words.iter().map(|word| env::expand(word, &env)).collect::<Vec<_>>())
    };
    Ok(ContainerPlan {
        command: expand(&container.command).filter(|words| !words.is_empty()),
        args: expand(&container.args).filter(|words| !words.is_empty()),
        working_dir: container.working_dir.clone().filter(|path| !path.is_empty()),
        mounts: mounts(&look, container, &env)?,
        limits: limits::of_container(spec, container, look.node()),
        security: security::plan(spec, container)?,
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        termination_message_path: container
            .termination_message_path
            .clone()
            .unwrap_or_else(|| "/dev/termination-log".to_owned()),
        stop_signal: container.lifecycle.as_ref().and_then(|hooks| hooks.stop_signal.clone()),
        env,
    })
}

/// Whether the end of the log of container `name` stands in for its last words if it failed without any.
pub fn takes_last_words_from_log(pod: &Pod, name: &str) -> bool {
    let container = pod.spec.as_ref().and_then(|spec| find(spec, name));
    container.is_some_and(|container| {
        container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
    })
}

/// The names of the Secrets that running `pod` takes: for its images, its volumes, its containers' environment.
pub fn secrets(view: &View, pod: &Pod) -> BTreeSet<String> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let mut names = pull::secrets(view, pod);
    for volume in spec.volumes.iter().flatten() {
        names.extend(volume.secret.iter().filter_map(|secret| secret.secret_name.clone()));
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        names.extend(sources.filter_map(|source| Some(source.secret.as_ref()?.name.clone())));
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let all = container.env_from.iter().flatten();
        names.extend(all.filter_map(|source| Some(source.secret_ref.as_ref()?.name.clone())));
        let single = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
        names.extend(single.filter_map(|source| Some(source.secret_key_ref.as_ref()?.name.clone())));
    }
    names
}

/// The volumes of `pod`. Make all of them before the first container starts.
pub fn volumes(view: &View, pod: &Pod, facts: &Facts) -> Result<Vec<VolumePlan>, Error> {
    let Some(spec) = &pod.spec else { return Ok(Vec::new()) };
    let look = Lookup { view, pod, spec, facts };
    let fs_group = spec.security_context.as_ref().and_then(|context| context.fs_group);
    let plan = |volume: &Volume| {
        Ok(VolumePlan { name: volume.name.clone(), source: files::source(&look, volume)?, fs_group })
    };
    spec.volumes.iter().flatten().map(plan).collect()
}

/// The objects that files in the volumes of `pod` are made from, whether they are there or not.
pub fn sources(pod: &Pod) -> BTreeSet<Key> {
    let namespace = meta::namespace(&pod.metadata);
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.flat_map(|volume| files::sources(namespace, volume)).collect()
}

/// Whether a file in its volumes says what its labels or annotations are.
pub fn shows_own_metadata(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(files::shows_own_metadata)
}

/// What the sandbox of `pod` is made with.
pub fn sandbox(pod: &Pod) -> SandboxPlan {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let name = spec.hostname.as_deref().filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| meta::name(&pod.metadata));
    let sysctls = spec.security_context.iter().filter_map(|context| context.sysctls.as_ref()).flatten();
    SandboxPlan {
        // The kernel takes 64 bytes, Kubernetes cuts at 63; a name never ends in a dash or dot.
        hostname: name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned(),
        host_network: spec.host_network.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        share_process_namespace: spec.share_process_namespace.unwrap_or(false),
        sysctls: sysctls.map(|sysctl| (sysctl_name(&sysctl.name), sysctl.value.clone())).collect(),
        qos_class: QosClass::of(spec),
        limits: limits(pod),
        host_aliases: spec
            .host_aliases
            .iter()
            .flatten()
            .map(|alias| (alias.ip.clone(), alias.hostnames.clone().unwrap_or_default()))
            .collect(),
        dns: dns(spec),
    }
}

fn dns(spec: &PodSpec) -> Dns {
    let only = spec.dns_policy.as_deref() == Some("None");
    let Some(config) = &spec.dns_config else { return Dns { only, ..Dns::default() } };
    let option = |option: &k8s_openapi::api::core::v1::PodDNSConfigOption| {
        let name = option.name.clone()?;
        Some(match &option.value {
            Some(value) => format!("{name}:{value}"),
            None => name,
        })
    };
    Dns {
        nameservers: config.nameservers.clone().unwrap_or_default(),
        searches: config.searches.clone().unwrap_or_default(),
        options: config.options.iter().flatten().filter_map(option).collect(),
        only,
    }
}

/// Where references lead.
struct Lookup<'a> {
    view: &'a View,
    pod: &'a Pod,
    spec: &'a PodSpec,
    facts: &'a Facts,
}

impl Lookup<'_> {
    fn namespace(&self) -> &str {
        meta::namespace(&self.pod.metadata)
    }

    fn node(&self) -> Option<&Node> {
        let name = meta::node_of(self.pod)?;
        self.view.named::<Node>("", name).map(|node| &**node)
    }
}

fn find<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|container| container.name == name)
}

fn mounts(look: &Lookup<'_>, container: &Container, env: &[(String, String)]) -> Result<Vec<Mount>, Error> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = look.spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| Error::NoVolume(mount.name.clone()))?;
        // Files that the cluster writes belong to the cluster: a container's changes would be lost anyway.
        let ours = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some();
        let sub_path = sub_path(mount, env)?;
        if ours && let Some(part) = &sub_path {
            match files::has_part(look, volume, part)? {
                true => {}
                // The program finds what its image has there.
                false if files::is_optional(volume) => continue,
                false => return Err(Error::NoPart { volume: mount.name.clone(), part: part.clone() }),
            }
        }
        mounts.push(Mount {
            volume: mount.name.clone(),
            path: mount.mount_path.clone(),
            read_only: ours || mount.read_only.unwrap_or(false),
            sub_path,
        });
    }
    // A mount inside another one must come after it.
    mounts.sort_by_key(|mount| mount.path.matches('/').count());
    Ok(mounts)
}

fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<String>, Error> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let path = match (given(&mount.sub_path), given(&mount.sub_path_expr)) {
        (Some(path), _) => path,
        (None, Some(expression)) => {
            if let Some(variable) = env::missing(&expression, env) {
                return Err(Error::NoVariable { path: mount.mount_path.clone(), variable });
            }
            env::expand(&expression, env)
        }
        (None, None) => return Ok(None),
    };
    // Also what a variable made of it.
    if path.starts_with('/') || path.split('/').any(|part| part == "..") || path.contains('\0') {
        return Err(Error::PathEscapes(path));
    }
    Ok(Some(path))
}
