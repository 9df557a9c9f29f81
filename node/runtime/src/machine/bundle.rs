//! The directory of a container: from a specification to `config.json` and the shim's own orders.
//!
//! ```text
//! config.json  shim.json  seccomp.bpf          written here, read by the shim
//! state.json   exit.json  shim.err             written by the shim
//! etc/{hosts,hostname,resolv.conf}             seen in the container
//! termination-message                          seen in the container
//! rootfs  upper  work  links                   the writable layer and where it is mounted
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::Inner;
use crate::broken;
use crate::capability;
use crate::cgroup::{self, CPU_PERIOD_US};
use crate::engine::{
    ContainerSpec, Error, Mount, MountSource, Network, NetworkFiles, Resources, SandboxSpec, Seccomp,
};
use crate::oci;
use crate::record::{self, Durability};
use crate::resolver;
use crate::rootfs::overlay::Layers;
use crate::rootfs::passwd::{Accounts, ID_MAX, Identity};
use crate::sandbox;
use crate::seccomp::{self, Filters};
use crate::shim;

/// Where images put programs, for those that do not say.
const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The key under which `config.json` keeps how the container is asked to end.
const STOP_SIGNAL_KEY: &str = "org.opencontainers.image.stopSignal";

/// Before each of the caller's own labels, so that they cannot be taken for anything else.
const LABEL_PREFIX: &str = "dev.skein.label/";

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Files below `/proc` in which LXCFS shows a container its own share of the machine.
const REPLACED: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
];

/// Everything that is written before a shim starts.
pub(super) struct Bundle {
    config: oci::Spec,
    shim: shim::Config,
    filters: Option<Filters>,
    hosts: String,
    hostname: String,
    resolv_conf: String,
    pub(super) stop_signal: i32,
}

impl Bundle {
    /// Checks the specification and turns it into the words of OCI. Touches nothing.
    pub(super) fn new(
        inner: &Inner,
        sandbox: &SandboxSpec,
        spec: &ContainerSpec,
        accounts: &Accounts,
    ) -> Result<Self, Error> {
        check(spec)?;
        let image = &spec.rootfs.config;
        let identity = accounts.resolve(&image.user, spec.user.uid, spec.user.gid);
        let identity = identity.map_err(|why| refused(format!("the user of container {}", spec.id), &why))?;
        if spec.security.run_as_non_root && identity.uid == 0 {
            let why = "runAsNonRoot is set and this is uid 0; set runAsUser or use another image";
            return Err(refused(format!("user {:?}", image.user), why));
        }
        let named = spec.stop_signal.as_deref().or(image.stop_signal.as_deref());
        let stop_signal = named
            .map_or(Some(libc::SIGTERM), parse_signal)
            .ok_or_else(|| refused(format!("stop signal {named:?}"), "Linux has no signal of that name"))?;
        let capabilities = if spec.security.privileged {
            capability::all()
        } else {
            capability::resolve(&spec.security.capabilities, inner.config.usual_capabilities)?
        };
        let mask = capability::mask(capabilities.iter().copied());
        let confined = spec.security.seccomp == Seccomp::RuntimeDefault && !spec.security.privileged;

        let places = Places::new(inner, spec);
        let hostname = hostname(sandbox);
        let process = process(
            spec,
            &identity,
            capabilities.into_iter().map(capability::oci_name).collect(),
            &hostname,
        )?;
        let mut annotations: BTreeMap<String, String> =
            spec.labels.iter().map(|(key, value)| (format!("{LABEL_PREFIX}{key}"), value.clone())).collect();
        annotations.insert(STOP_SIGNAL_KEY.to_owned(), stop_signal.to_string());
        let config = oci::Spec {
            oci_version: "1.0.2".to_owned(),
            root: oci::Root { path: places.dir.join("rootfs"), readonly: spec.security.read_only_root },
            process,
            mounts: mounts(inner, sandbox, spec, &places)?,
            linux: oci::Linux {
                namespaces: namespaces(sandbox.network, &places.pod),
                cgroups_path: Path::new("/").join(inner.cgroups.container_path(&spec.id)),
                masked_paths: hidden(spec, &MASKED),
                readonly_paths: hidden(spec, &READ_ONLY),
                resources: resources(&spec.resources, spec.security.privileged),
                seccomp: confined.then(|| seccomp::oci_profile(mask)),
            },
            annotations,
        };
        Ok(Self {
            config,
            shim: places.shim_config(inner, sandbox, spec),
            filters: confined.then(|| Filters::runtime_default(mask)),
            hosts: match sandbox.network {
                Network::Pod => hosts(&spec.network_files),
                Network::Machine => hosts_of_machine(
                    &spec.network_files,
                    &fs::read_to_string("/etc/hosts").unwrap_or_default(),
                ),
            },
            hostname: format!("{hostname}\n"),
            resolv_conf: {
                let machine = match sandbox.network {
                    Network::Pod => resolver::resolver().text,
                    Network::Machine => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
                };
                resolv_conf(&spec.network_files, &machine)
            },
            stop_signal,
        })
    }

    /// Fills the container's directory.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        for part in ["etc", "rootfs", "upper", "work"] {
            fs::create_dir(dir.join(part))?;
        }
        fs::write(dir.join("etc/hosts"), &self.hosts)?;
        fs::write(dir.join("etc/hostname"), &self.hostname)?;
        fs::write(dir.join("etc/resolv.conf"), &self.resolv_conf)?;
        if let Some(path) = &self.shim.termination_message {
            fs::write(path, "")?;
            // Whoever the program is, it may leave its last words.
            set_mode(path, 0o666)?;
        }
        if let Some(filters) = &self.filters {
            record::write_bytes(dir, record::SECCOMP_FILE, &filters.to_bytes(), Durability::UntilPowerCut)?;
        }
        record::write(dir, record::SHIM_FILE, &self.shim, Durability::UntilPowerCut)?;
        record::write(dir, record::CONFIG_FILE, &self.config, Durability::UntilPowerCut)
    }
}

/// The caller's labels of a container that an earlier daemon started.
pub(super) fn read_labels(dir: &Path) -> BTreeMap<String, String> {
    let annotations = read_annotations(dir).into_iter();
    annotations.filter_map(|(key, value)| Some((key.strip_prefix(LABEL_PREFIX)?.to_owned(), value))).collect()
}

/// How it is asked to end.
pub(super) fn read_stop_signal(dir: &Path) -> i32 {
    let signal = read_annotations(dir).remove(STOP_SIGNAL_KEY);
    signal.as_deref().and_then(parse_signal).unwrap_or(libc::SIGTERM)
}

fn read_annotations(dir: &Path) -> BTreeMap<String, String> {
    let config = record::read::<oci::Spec>(dir, record::CONFIG_FILE).ok().flatten();
    config.map(|config| config.annotations).unwrap_or_default()
}

/// Directories of one container.
struct Places {
    pod: PathBuf,
    dir: PathBuf,
    volumes: PathBuf,
}

impl Places {
    fn new(inner: &Inner, spec: &ContainerSpec) -> Self {
        let pod = inner.pod_dir(&spec.id.pod);
        Self { dir: inner.container_dir(&spec.id), volumes: pod.join("volumes"), pod }
    }

    fn termination_message(&self, spec: &ContainerSpec) -> Option<PathBuf> {
        spec.termination_message_path.as_ref().map(|_| self.dir.join("termination-message"))
    }

    fn shim_config(&self, inner: &Inner, sandbox: &SandboxSpec, spec: &ContainerSpec) -> shim::Config {
        shim::Config {
            version: record::VERSION,
            layers: Layers {
                lower: spec.rootfs.lower.clone(),
                upper: self.dir.join("upper"),
                work: self.dir.join("work"),
                links: self.dir.join("links"),
                user_attributes: inner.user_namespace,
            },
            log: inner.log(sandbox, &spec.id.name, spec.id.attempt),
            cgroups: inner.cgroups.container(&spec.id),
            shim_cgroups: inner.cgroups.shims(),
            termination_message: self.termination_message(spec),
        }
    }
}

/// Whether the kernel can stack the layers of the image.
pub(super) fn check_layers(lower: &[PathBuf]) -> Result<(), Error> {
    if (1..=500).contains(&lower.len()) {
        return Ok(());
    }
    Err(refused(format!("an image of {} layers", lower.len()), "the kernel stacks 1 to 500"))
}

/// What can be wrong with a specification apart from names that are looked up later.
fn check(spec: &ContainerSpec) -> Result<(), Error> {
    crate::engine::check_name(&spec.id.name)
        .map_err(|error| refused(format!("container name {:?}", spec.id.name), &error.to_string()))?;
    let paths = spec.mounts.iter().map(|mount| &mount.destination).chain(&spec.termination_message_path);
    for path in paths {
        let plain = path.starts_with('/') && Path::new(path).components().count() > 1;
        if !plain || path.contains('\0') || path.len() > 4095 || leads_up(path) {
            return Err(refused(
                format!("mount path {path:?}"),
                "it must be absolute, below /, and without ..",
            ));
        }
        if is_at_proc(path) && !broken!(VolumesAtProc) {
            let why = "nothing may lie over the kernel's own files there; mount it elsewhere, below /host for instance";
            return Err(refused(format!("mount path {path:?}"), why));
        }
    }
    if let Some(group) = spec.user.groups.iter().find(|group| **group > ID_MAX) {
        return Err(refused(format!("group {group}"), &format!("groups are numbered 0 to {ID_MAX}")));
    }
    for (name, value) in &spec.env {
        let why = match () {
            () if name.is_empty() || name.contains(['=', '\0']) => {
                "its name may not be empty or hold = or zero bytes"
            }
            () if value.contains('\0') => {
                "its value holds a zero byte, which no program can be given; mount it as a file"
            }
            () => continue,
        };
        return Err(refused(format!("environment variable {name:?}"), why));
    }
    Ok(())
}

/// Whether a mount there would lie over the files by which the kernel speaks of processes and of itself.
fn is_at_proc(path: &str) -> bool {
    Path::new(path).starts_with("/proc") && !REPLACED.iter().any(|known| Path::new(path) == Path::new(known))
}

fn leads_up(path: &str) -> bool {
    Path::new(path).components().any(|part| part == Component::ParentDir)
}

fn process(
    spec: &ContainerSpec,
    identity: &Identity,
    capabilities: Vec<String>,
    hostname: &str,
) -> Result<oci::Process, Error> {
    let image = &spec.rootfs.config;
    let mut args = match (&spec.command, &spec.args) {
        (Some(command), args) => [command.as_slice(), args.as_deref().unwrap_or_default()].concat(),
        (None, Some(args)) => [&image.entrypoint, args.as_slice()].concat(),
        (None, None) => [image.entrypoint.as_slice(), &image.cmd].concat(),
    };
    args.iter_mut().for_each(|arg| arg.retain(|c| c != '\0'));
    if args.is_empty() {
        return Err(refused(
            format!("the image of container {}", spec.id),
            "it names no program; set command in the manifest",
        ));
    }
    let workdir = spec.workdir.as_ref().unwrap_or(&image.workdir);
    let cwd = if workdir.starts_with('/') { workdir.clone() } else { format!("/{workdir}") };
    let mut groups = spec.user.groups.clone();
    if !spec.user.only_these_groups {
        groups.extend(&identity.groups);
    }
    groups.remove(&identity.gid);
    Ok(oci::Process {
        terminal: false,
        user: oci::User {
            uid: identity.uid,
            gid: identity.gid,
            additional_gids: groups.into_iter().collect(),
        },
        args,
        env: environment(spec, identity, hostname),
        cwd,
        capabilities: oci::Capabilities {
            bounding: capabilities.clone(),
            effective: capabilities.clone(),
            permitted: capabilities,
        },
        // Programs that close every possible descriptor at start take minutes with a larger one.
        rlimits: vec![oci::Rlimit { kind: "RLIMIT_NOFILE".to_owned(), soft: 1 << 16, hard: 1 << 20 }],
        no_new_privileges: !spec.security.privilege_escalation && !spec.security.privileged,
        oom_score_adj: spec.oom_score_adj,
    })
}

/// Defaults, then the image's, then the manifest's; of two with one name the later one is left.
fn environment(spec: &ContainerSpec, identity: &Identity, hostname: &str) -> Vec<String> {
    let defaults =
        [PATH_DEFAULT.to_owned(), format!("HOSTNAME={hostname}"), format!("HOME={}", identity.home)];
    let own = spec.env.iter().map(|(name, value)| format!("{name}={value}"));
    let image =
        spec.rootfs.config.env.iter().filter(|entry| entry.contains('=') && !entry.contains('\0')).cloned();
    let mut env: Vec<String> = Vec::new();
    for entry in defaults.into_iter().chain(image).chain(own) {
        let name_len = entry.find('=').map_or(entry.len(), |at| at + 1);
        match env.iter_mut().find(|known| known.as_bytes().starts_with(&entry.as_bytes()[..name_len])) {
            Some(known) => *known = entry,
            None => env.push(entry),
        }
    }
    env
}

fn namespaces(network: Network, pod: &Path) -> Vec<oci::Namespace> {
    let new = ["pid", "mount", "cgroup"].map(|kind| oci::Namespace { kind: kind.to_owned(), path: None });
    let pinned = sandbox::kinds(network).iter().map(|kind| oci::Namespace {
        kind: if *kind == "net" { "network" } else { kind }.to_owned(),
        path: Some(sandbox::pin(pod, kind)),
    });
    new.into_iter().chain(pinned).collect()
}

fn mounts(
    inner: &Inner,
    sandbox: &SandboxSpec,
    spec: &ContainerSpec,
    places: &Places,
) -> Result<Vec<oci::Mount>, Error> {
    let system = |destination: &str, kind: &str, options: &[&str]| oci::Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: PathBuf::from(kind),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        beneath: None,
    };
    let sys_access = if spec.security.privileged { "rw" } else { "ro" };
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if !inner.user_namespace {
        // The group `tty`, which a user namespace of one user does not know.
        terminals.push("gid=5");
    }
    let mut mounts = vec![
        system("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        system("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
        system("/dev/pts", "devpts", &terminals),
        system("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        system("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys_access]),
    ];
    if inner.cgroups.is_unified() {
        mounts.push(system("/sys/fs/cgroup", "cgroup2", &["nosuid", "noexec", "nodev", sys_access]));
    }
    mounts.push(bind(sandbox::shm(&places.pod), "/dev/shm", &["nosuid", "noexec", "nodev"]));
    let etc = places.dir.join("etc");
    if sandbox.network == Network::Pod {
        mounts.push(bind(etc.join("hostname"), "/etc/hostname", &[]));
    }
    mounts.push(bind(etc.join("hosts"), "/etc/hosts", &[]));
    mounts.push(bind(etc.join("resolv.conf"), "/etc/resolv.conf", &[]));
    for mount in &spec.mounts {
        let access = if mount.read_only { "ro" } else { "rw" };
        let (source, beneath) = source(mount, places)?;
        mounts.push(oci::Mount { beneath, ..bind(source, &mount.destination, &[access]) });
    }
    if let (Some(path), Some(source)) = (&spec.termination_message_path, places.termination_message(spec)) {
        mounts.push(bind(source, path, &[]));
    }
    Ok(mounts)
}

fn bind(source: PathBuf, destination: &str, options: &[&str]) -> oci::Mount {
    let options = ["rbind", "rprivate"].iter().chain(options).map(|option| (*option).to_owned()).collect();
    oci::Mount {
        destination: destination.to_owned(),
        kind: "bind".to_owned(),
        source,
        options,
        beneath: None,
    }
}

/// Where the mount comes from, and the directory from which no link may be followed on the way there.
fn source(mount: &Mount, places: &Places) -> Result<(PathBuf, Option<PathBuf>), Error> {
    match &mount.source {
        MountSource::Machine { path, .. } if !path.is_absolute() => {
            Err(refused(format!("host path {path:?}"), "it must be absolute"))
        }
        MountSource::Machine { path, sub_path: None } => Ok((path.clone(), None)),
        MountSource::Machine { path, sub_path: Some(part) } => {
            check_sub_path(part)?;
            Ok((super::volume::make_sub_path(path, Path::new(part))?, Some(path.clone())))
        }
        MountSource::Volume { name, sub_path } => {
            crate::engine::check_name(name)
                .map_err(|error| refused(format!("volume {name:?}"), &error.to_string()))?;
            let volume = places.volumes.join(name);
            match sub_path {
                None => Ok((volume, Some(places.volumes.clone()))),
                Some(part) => {
                    check_sub_path(part)?;
                    let path = match super::volume::file_part(&volume, Path::new(part)) {
                        // The cluster's own files are there or not: nothing is made among them.
                        Some(path) if path.exists() => path,
                        Some(_) => {
                            return Err(refused(format!("sub path {part:?}"), "the volume has no such file"));
                        }
                        None => super::volume::make_sub_path(&volume, Path::new(part))?,
                    };
                    Ok((path, Some(volume)))
                }
            }
        }
    }
}

fn check_sub_path(path: &str) -> Result<(), Error> {
    if path.starts_with('/') || leads_up(path) || path.contains('\0') {
        return Err(refused(format!("sub path {path:?}"), "it must be relative and without .."));
    }
    Ok(())
}

fn hidden(spec: &ContainerSpec, paths: &[&str]) -> Vec<String> {
    let shown = spec.security.privileged || spec.security.unmasked_proc;
    paths.iter().filter(|_| !shown).map(|path| (*path).to_owned()).collect()
}

fn resources(resources: &Resources, all_devices: bool) -> oci::Resources {
    oci::Resources {
        devices: cgroup::oci_rules(all_devices),
        memory: resources.memory_limit_bytes.map(|limit| oci::Memory { limit, swap: limit }),
        cpu: oci::Cpu {
            shares: cgroup::cpu_shares(resources.cpu_request_millis),
            quota: resources.cpu_limit_millis.map(cgroup::cpu_quota_us),
            period: CPU_PERIOD_US,
        },
        pids: resources.pids_max.map(|limit| oci::Pids { limit }),
    }
}

fn hostname(sandbox: &SandboxSpec) -> String {
    if sandbox.network == Network::Pod {
        return sandbox.hostname.clone();
    }
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// What comes first, in kubelet's words: programs look for them.
const HOSTS: &str = "\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
";

fn hosts(files: &NetworkFiles) -> String {
    let own = files.hosts.iter().map(|(address, names)| format!("{address}\t{}\n", names.join("\t")));
    own.fold(HOSTS.to_owned(), |text, line| text + &line) + &aliases(files)
}

/// The same for who shares the machine's network, and so what it finds by name there.
fn hosts_of_machine(files: &NetworkFiles, machine: &str) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{machine}{}", aliases(files))
}

fn aliases(files: &NetworkFiles) -> String {
    if files.aliases.is_empty() {
        return String::new();
    }
    let lines = files.aliases.iter().map(|(address, names)| format!("{address}\t{}\n", names.join("\t")));
    lines.fold("\n# Entries added by HostAliases.\n".to_owned(), |text, line| text + &line)
}

/// The resolver's file of a pod on a machine whose own says `machine`. Of two lines `search` only the last would
/// count (resolv.conf(5)), so what both say becomes one.
fn resolv_conf(files: &NetworkFiles, machine: &str) -> String {
    let machine = if files.beside_the_machines || files.nameservers.is_empty() { machine } else { "" };
    if files.nameservers.is_empty() && files.searches.is_empty() && files.options.is_empty() {
        return machine.to_owned();
    }
    let of_machine = |word: &str| -> Vec<String> {
        let lines = machine.lines().map(str::split_whitespace);
        let values = lines.filter_map(|mut words| (words.next() == Some(word)).then_some(words));
        values.flatten().map(str::to_owned).collect()
    };
    let servers: Vec<String> = files.nameservers.iter().map(ToString::to_string).collect();
    let mut text = String::new();
    for server in distinct(of_machine("nameserver"), &servers) {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (word, own) in [("search", &files.searches), ("options", &files.options)] {
        let all = distinct(of_machine(word), own);
        if !all.is_empty() {
            let _ = writeln!(text, "{word} {}", all.join(" "));
        }
    }
    text
}

fn distinct(mut all: Vec<String>, more: &[String]) -> Vec<String> {
    for value in more {
        if !all.contains(value) {
            all.push(value.clone());
        }
    }
    all
}

/// `SIGQUIT`, `QUIT`, `3`, `RTMIN+3`.
fn parse_signal(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.strip_prefix("RTMIN+") {
        Some(offset) => libc::SIGRTMIN().checked_add(offset.parse().ok()?)?,
        None => name.parse().ok().or_else(|| {
            format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
        })?,
    };
    (1..=libc::SIGRTMAX()).contains(&number).then_some(number)
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn refused(what: String, why: &str) -> Error {
    Error::Refused { what, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, signal) in [("SIGQUIT", 3), ("quit", 3), ("9", 9), ("RTMIN+3", libc::SIGRTMIN() + 3)] {
            assert_eq!(parse_signal(text), Some(signal), "{text}");
        }
        for text in ["", "SIGNOTHING", "0", "900", "RTMIN+99"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }

    #[test]
    fn a_path_with_two_dots_between_slashes_leads_up_and_one_in_a_name_does_not() {
        assert!(leads_up("/a/../b") && leads_up(".."));
        assert!(!leads_up("/a..b/..c"));
    }

    #[test]
    fn files_for_the_network_say_what_was_given() {
        let address = "10.1.2.3".parse().expect("an address");
        let files = NetworkFiles {
            hosts: vec![(address, vec!["web-0".to_owned(), "web".to_owned()])],
            nameservers: vec![address],
            searches: vec!["default.svc.cluster.local".to_owned()],
            options: vec!["ndots:5".to_owned()],
            ..NetworkFiles::default()
        };
        assert_eq!(hosts(&files), format!("{HOSTS}10.1.2.3\tweb-0\tweb\n"));
        let aliased =
            NetworkFiles { aliases: vec![(address, vec!["a".to_owned(), "b".to_owned()])], ..files.clone() };
        let block = "\n# Entries added by HostAliases.\n10.1.2.3\ta\tb\n";
        assert_eq!(hosts(&aliased), hosts(&files) + block);
        let machine = "127.0.0.1 localhost\n192.0.2.9 printer\n";
        let expect = format!("# Kubernetes-managed hosts file (host network).\n{machine}{block}");
        assert_eq!(hosts_of_machine(&aliased, machine), expect);
        let expect = "nameserver 10.1.2.3\nsearch default.svc.cluster.local\noptions ndots:5\n";
        let machine = "# by hand\nnameserver 192.0.2.1\nsearch lan\noptions edns0";
        assert_eq!(resolv_conf(&files, machine), expect);
        let beside = NetworkFiles { beside_the_machines: true, ..files };
        let both = "nameserver 192.0.2.1\nnameserver 10.1.2.3\nsearch lan default.svc.cluster.local\noptions edns0 ndots:5\n";
        assert_eq!(resolv_conf(&beside, machine), both);
        assert_eq!(resolv_conf(&NetworkFiles::default(), machine), machine);
    }
}
