//! Who a container runs as, and what it may.

use k8s_openapi::api::core::v1::{Container, PodSpec, SeccompProfile};

use super::Error;

/// Who a container runs as, and what it may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Everything the machine may.
    pub privileged: bool,
    /// Instead of the image's user.
    pub run_as_user: Option<i64>,
    /// Instead of the image's group.
    pub run_as_group: Option<i64>,
    /// The image must not run as root: the runtime checks the user it ends up with.
    pub must_be_non_root: bool,
    /// Further groups, the volumes' group among them.
    pub groups: Vec<i64>,
    /// Those that the image gives its user do not count.
    pub only_these_groups: bool,
    /// Capabilities beyond the default set; `ALL` for every one.
    pub capabilities_add: Vec<String>,
    /// Capabilities taken away; `ALL` for every one.
    pub capabilities_drop: Vec<String>,
    /// Its root file system cannot be written to.
    pub read_only_root: bool,
    /// It can never gain more rights than it starts with.
    pub no_new_privileges: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// It sees all of `/proc`.
    pub unmasked_proc: bool,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// Our default list.
    #[default]
    RuntimeDefault,
    /// All.
    Unconfined,
}

pub(super) fn plan(spec: &PodSpec, container: &Container) -> Result<Security, Error> {
    let of_pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let privileged = own.and_then(|own| own.privileged).unwrap_or(false);
    let run_as_user = own.and_then(|own| own.run_as_user).or(of_pod.and_then(|pod| pod.run_as_user));
    let run_as_group = own.and_then(|own| own.run_as_group).or(of_pod.and_then(|pod| pod.run_as_group));
    let non_root = own.and_then(|own| own.run_as_non_root).or(of_pod.and_then(|pod| pod.run_as_non_root));
    let must_be_non_root = non_root.unwrap_or(false);
    if must_be_non_root && run_as_user == Some(0) {
        return Err(Error::RootForbidden(container.name.clone()));
    }
    let mut groups: Vec<i64> = of_pod.and_then(|pod| pod.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(of_pod.and_then(|pod| pod.fs_group));
    groups.sort_unstable();
    groups.dedup();
    let capabilities = own.and_then(|own| own.capabilities.as_ref());
    let names = |held: Option<&Vec<String>>| -> Vec<String> {
        let plain = |name: &String| name.strip_prefix("CAP_").unwrap_or(name).to_ascii_uppercase();
        held.into_iter().flatten().map(plain).collect()
    };
    let profile = own
        .and_then(|own| own.seccomp_profile.as_ref())
        .or(of_pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    Ok(Security {
        privileged,
        run_as_user,
        run_as_group,
        must_be_non_root,
        groups,
        only_these_groups: of_pod.and_then(|pod| pod.supplemental_groups_policy.as_deref()) == Some("Strict"),
        capabilities_add: names(capabilities.and_then(|held| held.add.as_ref())),
        capabilities_drop: names(capabilities.and_then(|held| held.drop.as_ref())),
        read_only_root: own.and_then(|own| own.read_only_root_filesystem).unwrap_or(false),
        no_new_privileges: own.and_then(|own| own.allow_privilege_escalation) == Some(false) && !privileged,
        seccomp: if privileged { Seccomp::Unconfined } else { seccomp(profile) },
        unmasked_proc: privileged || own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked"),
    })
}

fn seccomp(profile: Option<&SeccompProfile>) -> Seccomp {
    match profile.map(|profile| profile.type_.as_str()) {
        Some("Unconfined") => Seccomp::Unconfined,
        // Profiles of the node were refused before.
        _ => Seccomp::RuntimeDefault,
    }
}
