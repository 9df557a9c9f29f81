//! What must hold of a pod's spec, in a pod or in a template.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorTerm, PodAffinityTerm, PodSecurityContext, PodSpec, Toleration,
    TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{container, metadata, resources, volume};
use crate::field::{Errors, Path};
use crate::names;
use crate::pod::sysctl_name;
use crate::selector::Selector;

const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const MAX_NAMESERVERS: usize = 3;

pub(super) fn validate(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let volumes =
        volume::validate(spec.volumes.as_deref().unwrap_or_default(), &path.child("volumes"), errors);
    container::validate_all(spec, &volumes, path, errors);
    one_of(spec.restart_policy.as_deref(), RESTART_POLICIES, &path.child("restartPolicy"), errors);
    dns(spec, path, errors);
    if let Some(seconds) = spec.termination_grace_period_seconds.filter(|seconds| *seconds < 0) {
        let path = path.child("terminationGracePeriodSeconds");
        errors.invalid(&path, seconds, "must be greater than or equal to 0");
    }
    if let Some(seconds) =
        spec.active_deadline_seconds.filter(|seconds| !(1..=i64::from(i32::MAX)).contains(seconds))
    {
        let path = path.child("activeDeadlineSeconds");
        errors.invalid(&path, seconds, "must be between 1 and 2147483647, inclusive");
    }
    for (field, name, rule) in [
        ("hostname", &spec.hostname, names::label as fn(&str) -> Result<(), String>),
        ("subdomain", &spec.subdomain, names::label),
        ("nodeName", &spec.node_name, names::subdomain),
        ("serviceAccountName", &spec.service_account_name, names::subdomain),
        ("priorityClassName", &spec.priority_class_name, names::subdomain),
        ("runtimeClassName", &spec.runtime_class_name, names::subdomain),
        ("schedulerName", &spec.scheduler_name, names::subdomain),
    ] {
        if let Some(name) = name.as_deref().filter(|name| !name.is_empty())
            && let Err(fault) = rule(name)
        {
            errors.invalid(&path.child(field), name, fault);
        }
    }
    metadata::labels(spec.node_selector.as_ref(), &path.child("nodeSelector"), errors);
    tolerations(spec.tolerations.as_deref().unwrap_or_default(), &path.child("tolerations"), errors);
    let spread = spec.topology_spread_constraints.as_deref().unwrap_or_default();
    topology_spread(spread, &path.child("topologySpreadConstraints"), errors);
    if let Some(chosen) = &spec.affinity {
        affinity(chosen, &path.child("affinity"), errors);
    }
    security(spec, &path.child("securityContext"), errors);
    resources::amounts(&spec.overhead, &path.child("overhead"), errors);
    if let Some(whole) = &spec.resources {
        resources::validate(whole, &path.child("resources"), errors);
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = path.child("hostAliases").index(index);
        if alias.ip.parse::<std::net::IpAddr>().is_err() {
            errors.invalid(&path.child("ip"), &alias.ip, "must be a valid IP address");
        }
        for (index, name) in alias.hostnames.iter().flatten().enumerate() {
            if let Err(fault) = names::subdomain(name) {
                errors.invalid(&path.child("hostnames").index(index), name, fault);
            }
        }
    }
}

/// The value, where there is one, is one of these.
pub(super) fn one_of(value: Option<&str>, supported: &[&str], path: &Path, errors: &mut Errors) {
    match value {
        Some(value) if !supported.contains(&value) => errors.not_supported(path, value, supported),
        _ => {}
    }
}

fn dns(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    one_of(spec.dns_policy.as_deref(), DNS_POLICIES, &path.child("dnsPolicy"), errors);
    let servers: Vec<&String> =
        spec.dns_config.iter().flat_map(|config| config.nameservers.iter().flatten()).collect();
    let path = path.child("dnsConfig").child("nameservers");
    if spec.dns_policy.as_deref() == Some("None") && servers.is_empty() {
        errors.required(&path, "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    if servers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.invalid(&path, &servers, detail);
    }
    for (index, server) in servers.iter().enumerate() {
        if server.parse::<std::net::IpAddr>().is_err() {
            errors.invalid(&path.index(index), server, "must be a valid IP address");
        }
    }
}

fn tolerations(tolerations: &[Toleration], path: &Path, errors: &mut Errors) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let key = toleration.key.as_deref().unwrap_or_default();
        let operator = toleration.operator.as_deref().unwrap_or_default();
        if !key.is_empty() {
            if let Err(fault) = names::qualified(key) {
                errors.invalid(&path.child("key"), key, fault);
            }
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&path.child("operator"), operator, why);
        }
        let value = toleration.value.as_deref().unwrap_or_default();
        match operator {
            "" | "Equal" => {
                if let Err(fault) = names::label_value(value) {
                    errors.invalid(&path.child("value"), value, fault);
                }
            }
            "Exists" if !value.is_empty() => {
                errors.invalid(
                    &path.child("value"),
                    value,
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            "Exists" => {}
            "Gt" | "Lt" if value.parse::<i64>().is_ok() => {}
            "Gt" | "Lt" => errors.invalid(&path.child("value"), value, "value must be a number"),
            other => errors.not_supported(&path.child("operator"), other, &["Equal", "Exists", "Gt", "Lt"]),
        }
        let effect = toleration.effect.as_deref().filter(|effect| !effect.is_empty());
        one_of(effect, TAINT_EFFECTS, &path.child("effect"), errors);
        if toleration.toleration_seconds.is_some() && effect != Some("NoExecute") {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&path.child("effect"), effect.unwrap_or_default(), why);
        }
    }
}

fn topology_spread(constraints: &[TopologySpreadConstraint], path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        if constraint.max_skew <= 0 {
            errors.invalid(&path.child("maxSkew"), constraint.max_skew, "must be greater than zero");
        }
        if constraint.topology_key.is_empty() {
            errors.required(&path.child("topologyKey"), "can not be empty");
        } else if let Err(fault) = names::qualified(&constraint.topology_key) {
            errors.invalid(&path.child("topologyKey"), &constraint.topology_key, fault);
        }
        let action = constraint.when_unsatisfiable.as_str();
        let actions = &["DoNotSchedule", "ScheduleAnyway"];
        one_of(Some(action), actions, &path.child("whenUnsatisfiable"), errors);
        if constraint.min_domains.is_some_and(|domains| domains <= 0) {
            errors.invalid(&path.child("minDomains"), constraint.min_domains, "must be greater than zero");
        }
        if !seen.insert((constraint.topology_key.as_str(), action)) {
            errors.duplicate(&path, format!("{{{}, {action}}}", constraint.topology_key));
        }
        label_selector(constraint.label_selector.as_ref(), &path.child("labelSelector"), errors);
    }
}

fn affinity(affinity: &Affinity, path: &Path, errors: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = &affinity.node_affinity {
        let path = path.child("nodeAffinity");
        if let Some(required) = &node.required_during_scheduling_ignored_during_execution {
            let path = path.child(REQUIRED).child("nodeSelectorTerms");
            if required.node_selector_terms.is_empty() {
                errors.required(&path, "must have at least one node selector term");
            }
            for (index, term) in required.node_selector_terms.iter().enumerate() {
                node_selector_term(term, &path.index(index), errors);
            }
        }
        let preferred = node.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        for (index, term) in preferred.enumerate() {
            let path = path.child(PREFERRED).index(index);
            weight(term.weight, &path, errors);
            node_selector_term(&term.preference, &path.child("preference"), errors);
        }
    }
    let mut pods = |field: &str, required: &[PodAffinityTerm], preferred: Vec<(i32, &PodAffinityTerm)>| {
        let path = path.child(field);
        for (index, term) in required.iter().enumerate() {
            pod_affinity_term(term, &path.child(REQUIRED).index(index), errors);
        }
        for (index, (points, term)) in preferred.into_iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            weight(points, &path, errors);
            pod_affinity_term(term, &path.child("podAffinityTerm"), errors);
        }
    };
    if let Some(chosen) = &affinity.pod_affinity {
        let preferred = chosen.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        pods(
            "podAffinity",
            chosen.required_during_scheduling_ignored_during_execution.as_deref().unwrap_or_default(),
            preferred.map(|term| (term.weight, &term.pod_affinity_term)).collect(),
        );
    }
    if let Some(chosen) = &affinity.pod_anti_affinity {
        let preferred = chosen.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        pods(
            "podAntiAffinity",
            chosen.required_during_scheduling_ignored_during_execution.as_deref().unwrap_or_default(),
            preferred.map(|term| (term.weight, &term.pod_affinity_term)).collect(),
        );
    }
}

fn weight(weight: i32, path: &Path, errors: &mut Errors) {
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn pod_affinity_term(term: &PodAffinityTerm, path: &Path, errors: &mut Errors) {
    if term.topology_key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    } else if let Err(fault) = names::qualified(&term.topology_key) {
        errors.invalid(&path.child("topologyKey"), &term.topology_key, fault);
    }
    label_selector(term.label_selector.as_ref(), &path.child("labelSelector"), errors);
    label_selector(term.namespace_selector.as_ref(), &path.child("namespaceSelector"), errors);
}

fn node_selector_term(term: &NodeSelectorTerm, path: &Path, errors: &mut Errors) {
    let operators = &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
    for (index, expression) in term.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = expression.values.as_deref().unwrap_or_default();
        match expression.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errors
                    .required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&path.child("values"), why);
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.required(&path.child("values"), why);
            }
            operator => one_of(Some(operator), operators, &path.child("operator"), errors),
        }
        if let Err(fault) = names::qualified(&expression.key) {
            errors.invalid(&path.child("key"), &expression.key, fault);
        }
    }
    for (index, field) in term.match_fields.iter().flatten().enumerate() {
        let path = path.child("matchFields").index(index);
        one_of(Some(&field.key), &["metadata.name"], &path.child("key"), errors);
        one_of(Some(&field.operator), &["In", "NotIn"], &path.child("operator"), errors);
        if field.values.as_ref().is_none_or(|values| values.len() != 1) {
            errors.required(
                &path.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            );
        }
    }
}

/// A selector's syntax; an absent one is well.
pub(super) fn label_selector(selector: Option<&LabelSelector>, path: &Path, errors: &mut Errors) {
    let Some(selector) = selector else { return };
    if let Err(error) = Selector::from_object(selector) {
        errors.invalid(
            path,
            Selector::from_labels(selector.match_labels.as_ref().unwrap_or(&Default::default())).to_string(),
            error.to_string(),
        );
    }
}

fn security(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let Some(context) = &spec.security_context else { return };
    for (field, id) in [
        ("runAsUser", context.run_as_user),
        ("runAsGroup", context.run_as_group),
        ("fsGroup", context.fs_group),
    ] {
        user_id(id, &path.child(field), errors);
    }
    for (index, id) in context.supplemental_groups.iter().flatten().enumerate() {
        user_id(Some(*id), &path.child("supplementalGroups").index(index), errors);
    }
    sysctls(spec, context, path, errors);
}

const SYSCTL_CHARS_MAX: usize = 253;
const SYSCTL_NAME: &str = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn sysctls(spec: &PodSpec, context: &PodSecurityContext, path: &Path, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (index, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let path = path.child("sysctls").index(index).child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            errors.required(&path, "");
        } else if name.len() > SYSCTL_CHARS_MAX || !name.split(['.', '/']).all(is_sysctl_part) {
            errors.invalid(&path, name, SYSCTL_NAME);
        } else if !names.insert(name) {
            errors.duplicate(&path, name);
        }
        let name = sysctl_name(name);
        if spec.host_network == Some(true) && name.starts_with("net.") {
            errors.invalid(&path, &sysctl.name, "may not be set when 'hostNetwork' is set to true");
        }
        if spec.host_ipc == Some(true) && is_of_ipc(&name) {
            errors.invalid(&path, &sysctl.name, "may not be set when 'hostIPC' is set to true");
        }
    }
}

fn is_sysctl_part(part: &str) -> bool {
    let is_end =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = part.as_bytes();
    is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| is_end(Some(byte)) || matches!(byte, b'-' | b'_'))
}

fn is_of_ipc(sysctl: &str) -> bool {
    sysctl == "kernel.sem"
        || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| sysctl.starts_with(prefix))
}

/// A numeric user or group.
pub(super) fn user_id(id: Option<i64>, path: &Path, errors: &mut Errors) {
    if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        errors.invalid(path, id, "must be between 0 and 2147483647, inclusive");
    }
}
