//! What a pod may ask for and would not get: refused by name, where silence would mean less protection, or
//! a program that waits for what never comes.
//!
//! What only makes a pod weaker where the machine has it (SELinux, Windows) is passed over, as kubelet does.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::Error;

pub(super) fn check(spec: &PodSpec, container: &Container) -> Result<(), Error> {
    match of_pod(spec).or_else(|| of_container(spec, container)) {
        Some((field, instead)) => Err(Error::Unsupported { field, instead }),
        None => Ok(()),
    }
}

type Found = Option<(String, &'static str)>;

fn of_pod(spec: &PodSpec) -> Found {
    let field = |name: &str| name.to_owned();
    if spec.host_pid == Some(true) {
        return Some((field("hostPID"), "mount what is needed of the machine's /proc by hostPath"));
    }
    if spec.host_ipc == Some(true) {
        return Some((field("hostIPC"), "share memory by an emptyDir of medium Memory"));
    }
    if spec.share_process_namespace == Some(true) {
        return Some((field("shareProcessNamespace"), "let the containers talk over localhost or a volume"));
    }
    if spec.host_users == Some(false) {
        return Some((field("hostUsers: false"), "leave it out, and set runAsUser and runAsNonRoot"));
    }
    if spec.runtime_class_name.as_ref().is_some_and(|name| !name.is_empty()) {
        return Some((field("runtimeClassName"), "leave it out to use the cluster's own runtime"));
    }
    let context = spec.security_context.as_ref()?;
    profile(context.seccomp_profile.as_ref().map(|profile| profile.type_.as_str()), "seccompProfile").or_else(
        || profile(context.app_armor_profile.as_ref().map(|held| held.type_.as_str()), "appArmorProfile"),
    )
}

fn of_container(spec: &PodSpec, container: &Container) -> Found {
    let mounts = container.volume_mounts.iter().flatten();
    if let Some(mode) =
        mounts.filter_map(|mount| mount.mount_propagation.as_deref()).find(|mode| *mode != "None")
    {
        return Some((format!("mountPropagation: {mode}"), "leave it out; mounts are private"));
    }
    if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Some(("volumeDevices".to_owned(), "mount a file system instead"));
    }
    let mut ports = container.ports.iter().flatten();
    if spec.host_network != Some(true)
        && let Some(port) = ports.find_map(|port| port.host_port.filter(|port| *port != 0))
    {
        return Some((format!("hostPort: {port}"), "use hostNetwork, or reach the pod by its own address"));
    }
    let mut sources = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
    if sources.any(|source| source.file_key_ref.is_some()) {
        return Some(("env valueFrom fileKeyRef".to_owned(), "use a configMapKeyRef or secretKeyRef"));
    }
    let context = container.security_context.as_ref()?;
    profile(context.seccomp_profile.as_ref().map(|profile| profile.type_.as_str()), "seccompProfile").or_else(
        || profile(context.app_armor_profile.as_ref().map(|held| held.type_.as_str()), "appArmorProfile"),
    )
}

/// A profile that lies on some node; the others are ours, or none.
fn profile(kind: Option<&str>, field: &str) -> Found {
    let local = kind == Some("Localhost");
    local.then(|| (format!("{field} of type Localhost"), "use RuntimeDefault, which is the default here"))
}
