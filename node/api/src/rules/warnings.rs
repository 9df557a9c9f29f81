//! What is taken of pods, though it is likely not what was meant. Wording: upstream's.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvVar, PodAffinityTerm, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::field::Path;
use crate::quantity::Quantity;

/// Resources that are counted in bytes.
const OF_BYTES: &[&str] = &["memory", "ephemeral-storage"];

/// Of a pod's spec at `path`, in a pod or in a template.
pub(super) fn of_pod(spec: &PodSpec, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, constraint) in spec.topology_spread_constraints.iter().flatten().enumerate() {
        if constraint.label_selector.is_none() {
            warnings.push(no_selector(&path.child("topologySpreadConstraints").index(index)));
        }
    }
    let ips = spec.host_aliases.iter().flatten().map(|alias| alias.ip.as_str());
    duplicates(ips, &path.child("hostAliases"), "ip", &mut warnings);
    let secrets = || spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.as_str());
    duplicates(secrets(), &path.child("imagePullSecrets"), "name", &mut warnings);
    for (index, _) in secrets().enumerate().filter(|(_, name)| name.is_empty()) {
        let path = path.child("imagePullSecrets").index(index).child("name");
        warnings.push(format!("{path}: invalid empty name \"\""));
    }
    fractions(spec.overhead.as_ref(), &path.child("overhead"), &mut warnings);
    let containers: Vec<(&Container, Path)> = [("initContainers", spec.init_containers.as_deref())]
        .into_iter()
        .chain([("containers", Some(spec.containers.as_slice()))])
        .flat_map(|(field, list)| {
            let indexed = list.unwrap_or_default().iter().enumerate();
            indexed.map(move |(index, container)| (container, path.child(field).index(index)))
        })
        .collect();
    for (container, path) in &containers {
        if let Some(resources) = &container.resources {
            let path = path.child("resources");
            fractions(resources.limits.as_ref(), &path.child("limits"), &mut warnings);
            fractions(resources.requests.as_ref(), &path.child("requests"), &mut warnings);
        }
        variables(container.env.as_deref().unwrap_or_default(), &path.child("env"), &mut warnings);
    }
    ports(&containers, &mut warnings);
    affinity(spec, &path.child("affinity"), &mut warnings);
    warnings
}

fn duplicates<'v>(
    values: impl Iterator<Item = &'v str>,
    path: &Path,
    field: &str,
    warnings: &mut Vec<String>,
) {
    let mut seen = BTreeSet::new();
    for (index, value) in values.enumerate() {
        if !seen.insert(value) {
            warnings.push(format!("{}: duplicate {field} {value:?}", path.index(index).child(field)));
        }
    }
}

fn fractions(amounts: Option<&BTreeMap<String, Text>>, path: &Path, warnings: &mut Vec<String>) {
    for name in OF_BYTES {
        let Some(text) = amounts.and_then(|amounts| amounts.get(*name)) else { continue };
        if Quantity::try_from(text).is_ok_and(|amount| !amount.is_whole()) {
            let (path, text) = (path.key(name), &text.0);
            warnings.push(format!("{path}: fractional byte value {text:?} is invalid, must be an integer"));
        }
    }
}

/// A variable may build on an earlier one of its name; one that only hides it is lost by the next `apply`.
fn variables(env: &[EnvVar], path: &Path, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (index, variable) in env.iter().enumerate() {
        let (name, value) = (&variable.name, variable.value.as_deref().unwrap_or_default());
        let earlier = format!("$({name})");
        let hides = variable.value_from.is_some() || value == earlier || !value.contains(&earlier);
        if !seen.insert(name) && hides {
            let path = path.index(index);
            warnings.push(format!(
                "{path}: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
}

fn ports(containers: &[(&Container, Path)], warnings: &mut Vec<String>) {
    let host = |port: &ContainerPort| (port.host_ip.clone().unwrap_or_default(), port.host_port.unwrap_or(0));
    let mut known: BTreeMap<(i32, &str), Vec<(&ContainerPort, Path)>> = BTreeMap::new();
    for (container, path) in containers {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let path = path.child("ports").index(index);
            let (ip, host_port) = host(port);
            if !ip.is_empty() && host_port == 0 {
                warnings.push(format!("{path}: hostIP set without hostPort"));
            }
            let others =
                known.entry((port.container_port, port.protocol.as_deref().unwrap_or("TCP"))).or_default();
            for (other, other_path) in others.iter() {
                let (other_ip, other_port) = host(other);
                let how = if (&ip, host_port) == (&other_ip, other_port) {
                    "duplicate"
                } else if host_port == 0 || other_port == 0 {
                    "overlapping"
                } else if host_port == other_port && ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                warnings.push(format!("{path}: {how} port definition with {other_path}"));
            }
            others.push((port, path));
        }
    }
}

fn affinity(spec: &PodSpec, path: &Path, warnings: &mut Vec<String>) {
    type Terms<'a> = (&'a str, Vec<&'a PodAffinityTerm>, Vec<&'a PodAffinityTerm>);
    let Some(affinity) = &spec.affinity else { return };
    let near = affinity.pod_affinity.iter().map(|near| -> Terms<'_> {
        let preferred = near.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        let required = near.required_during_scheduling_ignored_during_execution.iter().flatten();
        ("podAffinity", required.collect(), preferred.map(|term| &term.pod_affinity_term).collect())
    });
    let apart = affinity.pod_anti_affinity.iter().map(|apart| -> Terms<'_> {
        let preferred = apart.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        let required = apart.required_during_scheduling_ignored_during_execution.iter().flatten();
        ("podAntiAffinity", required.collect(), preferred.map(|term| &term.pod_affinity_term).collect())
    });
    for (field, required, preferred) in near.chain(apart) {
        let path = path.child(field);
        for (index, _) in required.iter().enumerate().filter(|(_, term)| term.label_selector.is_none()) {
            let path = path.child("requiredDuringSchedulingIgnoredDuringExecution").index(index);
            warnings.push(no_selector(&path));
        }
        for (index, _) in preferred.iter().enumerate().filter(|(_, term)| term.label_selector.is_none()) {
            let path = path.child("preferredDuringSchedulingIgnoredDuringExecution").index(index);
            warnings.push(no_selector(&path.child("podAffinityTerm")));
        }
    }
}

fn no_selector(path: &Path) -> String {
    format!("{}: a null labelSelector results in matching no pod", path.child("labelSelector"))
}
