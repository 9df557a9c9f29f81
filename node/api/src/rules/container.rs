//! A pod's containers, and what they refer to.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvFromSource, EnvVar, HTTPGetAction, Lifecycle, PodSpec, Probe, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod_spec::{one_of, user_id};
use super::{resources, volume};
use crate::field::{Errors, Path};
use crate::names;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const MESSAGE_POLICIES: &[&str] = &["FallbackToLogsOnError", "File"];

/// Containers and init containers together: their names and host ports are the pod's.
pub(super) fn validate_all(spec: &PodSpec, volumes: &BTreeSet<&str>, path: &Path, errors: &mut Errors) {
    let mut names_seen = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    if spec.containers.is_empty() {
        errors.required(&path.child("containers"), "");
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let path = path.child("containers").index(index);
        name(container, &mut names_seen, &path, errors);
        validate(container, volumes, &path, errors);
        ports(container, spec.host_network == Some(true), &mut host_ports, &path.child("ports"), errors);
        // Containers may have policies of their own upstream too, but only beside rules, which are not served.
        one_of(
            container.restart_policy.as_deref(),
            &["Always", "OnFailure", "Never"],
            &path.child("restartPolicy"),
            errors,
        );
    }
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let path = path.child("initContainers").index(index);
        name(container, &mut names_seen, &path, errors);
        validate(container, volumes, &path, errors);
        let mut own_host_ports = BTreeSet::new();
        ports(container, spec.host_network == Some(true), &mut own_host_ports, &path.child("ports"), errors);
        init_only(container, &path, errors);
    }
    if spec.ephemeral_containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
        errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
}

/// An init container that ends has nothing to probe; one that goes on running is a sidecar.
fn init_only(container: &Container, path: &Path, errors: &mut Errors) {
    if container.restart_policy.as_deref() == Some("Always") {
        return;
    }
    one_of(container.restart_policy.as_deref(), &["Always"], &path.child("restartPolicy"), errors);
    for (field, present) in [
        ("lifecycle", container.lifecycle.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
    ] {
        if present {
            errors.forbidden(
                &path.child(field),
                "may not be set for init containers without restartPolicy=Always",
            );
        }
    }
}

fn name<'c>(container: &'c Container, seen: &mut BTreeSet<&'c str>, path: &Path, errors: &mut Errors) {
    let path = path.child("name");
    if container.name.is_empty() {
        errors.required(&path, "");
    } else if let Err(fault) = names::label(&container.name) {
        errors.invalid(&path, &container.name, fault);
    } else if !seen.insert(&container.name) {
        errors.duplicate(&path, &container.name);
    }
}

fn validate(container: &Container, volumes: &BTreeSet<&str>, path: &Path, errors: &mut Errors) {
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        errors.required(&path.child("image"), "");
    } else if image.trim() != image {
        errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
    one_of(container.image_pull_policy.as_deref(), PULL_POLICIES, &path.child("imagePullPolicy"), errors);
    let message_policy = container.termination_message_policy.as_deref();
    one_of(message_policy, MESSAGE_POLICIES, &path.child("terminationMessagePolicy"), errors);
    env(container.env.as_deref().unwrap_or_default(), &path.child("env"), errors);
    env_from(container.env_from.as_deref().unwrap_or_default(), &path.child("envFrom"), errors);
    mounts(
        container.volume_mounts.as_deref().unwrap_or_default(),
        volumes,
        &path.child("volumeMounts"),
        errors,
    );
    if let Some(wanted) = &container.resources {
        resources::validate(wanted, &path.child("resources"), errors);
    }
    for (field, chosen, once) in [
        ("livenessProbe", &container.liveness_probe, true),
        ("readinessProbe", &container.readiness_probe, false),
        ("startupProbe", &container.startup_probe, true),
    ] {
        if let Some(chosen) = chosen {
            probe(chosen, once, &path.child(field), errors);
        }
    }
    if let Some(hooks) = &container.lifecycle {
        lifecycle(hooks, &path.child("lifecycle"), errors);
    }
    if let Some(context) = &container.security_context {
        let path = path.child("securityContext");
        user_id(context.run_as_user, &path.child("runAsUser"), errors);
        user_id(context.run_as_group, &path.child("runAsGroup"), errors);
        if context.allow_privilege_escalation == Some(false) && context.privileged == Some(true) {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(&path, "", why);
        }
    }
}

fn ports(
    container: &Container,
    host_network: bool,
    host_ports: &mut BTreeSet<(String, String, i32)>,
    path: &Path,
    errors: &mut Errors,
) {
    let mut seen = BTreeSet::new();
    for (index, one) in container.ports.iter().flatten().enumerate() {
        let path = path.index(index);
        if let Some(name) = one.name.as_deref().filter(|name| !name.is_empty()) {
            if let Err(fault) = names::port(name) {
                errors.invalid(&path.child("name"), name, fault);
            } else if !seen.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        if one.container_port == 0 {
            errors.required(&path.child("containerPort"), "");
        } else {
            port_number(one.container_port, &path.child("containerPort"), errors);
        }
        match one.protocol.as_deref() {
            None | Some("") => errors.required(&path.child("protocol"), ""),
            protocol => one_of(protocol, PROTOCOLS, &path.child("protocol"), errors),
        }
        host_port(one, host_network, host_ports, &path.child("hostPort"), errors);
    }
}

fn host_port(
    port: &ContainerPort,
    host_network: bool,
    seen: &mut BTreeSet<(String, String, i32)>,
    path: &Path,
    errors: &mut Errors,
) {
    let Some(number) = port.host_port.filter(|number| *number != 0) else { return };
    port_number(number, path, errors);
    if host_network && number != port.container_port {
        errors.invalid(path, number, "must match `containerPort` when `hostNetwork` is true");
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    if !seen.insert((text(&port.host_ip), text(&port.protocol), number)) {
        errors.duplicate(path, number);
    }
}

/// A port's number.
pub(super) fn port_number(number: i32, path: &Path, errors: &mut Errors) {
    if !(1..=65535).contains(&number) {
        errors.invalid(path, number, "must be between 1 and 65535, inclusive");
    }
}

/// A port by number or by the name that a container gives it.
pub(super) fn port(port: &IntOrString, path: &Path, errors: &mut Errors) {
    match port {
        IntOrString::Int(number) => port_number(*number, path, errors),
        IntOrString::String(name) => {
            if let Err(fault) = names::port(name) {
                errors.invalid(path, name, fault);
            }
        }
    }
}

fn env(variables: &[EnvVar], path: &Path, errors: &mut Errors) {
    for (index, variable) in variables.iter().enumerate() {
        let path = path.index(index);
        if variable.name.is_empty() {
            errors.required(&path.child("name"), "");
        } else if let Err(fault) = names::env(&variable.name) {
            errors.invalid(&path.child("name"), &variable.name, fault);
        }
        let Some(source) = &variable.value_from else { continue };
        let path = path.child("valueFrom");
        let sources = [
            source.field_ref.is_some(),
            source.resource_field_ref.is_some(),
            source.config_map_key_ref.is_some(),
            source.secret_key_ref.is_some(),
            source.file_key_ref.is_some(),
        ];
        match sources.iter().filter(|present| **present).count() {
            0 => errors.invalid(
                &path,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            ),
            1 => {}
            _ => errors.invalid(&path, "", "may not have more than one field specified at a time"),
        }
        if variable.value.as_deref().is_some_and(|value| !value.is_empty()) {
            errors.invalid(&path, "", "may not be specified when `value` is not empty");
        }
        let references = [
            ("configMapKeyRef", source.config_map_key_ref.as_ref().map(|key| (&key.name, &key.key))),
            ("secretKeyRef", source.secret_key_ref.as_ref().map(|key| (&key.name, &key.key))),
        ];
        for (field, reference) in references {
            let Some((name, key)) = reference else { continue };
            if name.is_empty() {
                errors.required(&path.child(field).child("name"), "");
            }
            if key.is_empty() {
                errors.required(&path.child(field).child("key"), "");
            } else if let Err(fault) = names::config_key(key) {
                errors.invalid(&path.child(field).child("key"), key, fault);
            }
        }
        if let Some(field) = &source.field_ref
            && field.field_path.is_empty()
        {
            errors.required(&path.child("fieldRef").child("fieldPath"), "");
        }
        if let Some(resource) = &source.resource_field_ref
            && resource.resource.is_empty()
        {
            errors.required(&path.child("resourceFieldRef").child("resource"), "");
        }
    }
}

fn env_from(sources: &[EnvFromSource], path: &Path, errors: &mut Errors) {
    for (index, source) in sources.iter().enumerate() {
        let path = path.index(index);
        let names = [
            ("configMapRef", source.config_map_ref.as_ref().map(|reference| &reference.name)),
            ("secretRef", source.secret_ref.as_ref().map(|reference| &reference.name)),
        ];
        match names.iter().filter(|(_, name)| name.is_some()).count() {
            0 => errors.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(&path, "", "may not have more than one field specified at a time"),
        }
        for (field, name) in names {
            if name.is_some_and(String::is_empty) {
                errors.required(&path.child(field).child("name"), "");
            }
        }
    }
}

fn mounts(mounts: &[VolumeMount], volumes: &BTreeSet<&str>, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let path = path.index(index);
        if mount.name.is_empty() {
            errors.required(&path.child("name"), "");
        } else if !volumes.contains(mount.name.as_str()) {
            errors.not_found(&path.child("name"), &mount.name);
        }
        if mount.mount_path.is_empty() {
            errors.required(&path.child("mountPath"), "");
        } else if !seen.insert(mount.mount_path.as_str()) {
            errors.invalid(&path.child("mountPath"), &mount.mount_path, "must be unique");
        }
        if let Some(below) = mount.sub_path.as_deref().filter(|below| !below.is_empty()) {
            volume::local_path(below, &path.child("subPath"), errors);
        }
        if let Some(below) = mount.sub_path_expr.as_deref().filter(|below| !below.is_empty()) {
            volume::local_path(below, &path.child("subPathExpr"), errors);
            if mount.sub_path.as_deref().is_some_and(|below| !below.is_empty()) {
                errors.invalid(
                    &path.child("subPathExpr"),
                    below,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
        }
        let propagation = mount.mount_propagation.as_deref();
        let modes = &["Bidirectional", "HostToContainer", "None"];
        one_of(propagation, modes, &path.child("mountPropagation"), errors);
    }
}

/// * `once`: one success is enough and more cannot be asked for (liveness and startup).
fn probe(probe: &Probe, once: bool, path: &Path, errors: &mut Errors) {
    let handlers =
        [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
    how_many(&handlers, path, errors);
    if probe.exec.as_ref().is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        errors.required(&path.child("exec").child("command"), "");
    }
    if let Some(action) = &probe.http_get {
        http_get(action, &path.child("httpGet"), errors);
    }
    if let Some(action) = &probe.tcp_socket {
        port(&action.port, &path.child("tcpSocket").child("port"), errors);
    }
    if let Some(action) = &probe.grpc {
        port_number(action.port, &path.child("grpc").child("port"), errors);
    }
    for (field, value, least) in [
        ("initialDelaySeconds", probe.initial_delay_seconds, 0),
        ("timeoutSeconds", probe.timeout_seconds, 1),
        ("periodSeconds", probe.period_seconds, 1),
        ("successThreshold", probe.success_threshold, 1),
        ("failureThreshold", probe.failure_threshold, 1),
    ] {
        if let Some(value) = value.filter(|value| *value < least) {
            errors.invalid(&path.child(field), value, format!("must be greater than or equal to {least}"));
        }
    }
    if once && probe.success_threshold.is_some_and(|threshold| threshold > 1) {
        errors.invalid(
            &path.child("successThreshold"),
            probe.success_threshold.unwrap_or_default(),
            "must be 1",
        );
    }
    if probe.termination_grace_period_seconds.is_some_and(|seconds| seconds <= 0) {
        let path = path.child("terminationGracePeriodSeconds");
        errors.invalid(
            &path,
            probe.termination_grace_period_seconds.unwrap_or_default(),
            "must be greater than 0",
        );
    }
}

fn lifecycle(hooks: &Lifecycle, path: &Path, errors: &mut Errors) {
    for (field, hook) in [("postStart", &hooks.post_start), ("preStop", &hooks.pre_stop)] {
        let Some(hook) = hook else { continue };
        let path = path.child(field);
        let handlers =
            [hook.exec.is_some(), hook.http_get.is_some(), hook.tcp_socket.is_some(), hook.sleep.is_some()];
        how_many(&handlers, &path, errors);
        if hook.exec.as_ref().is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
            errors.required(&path.child("exec").child("command"), "");
        }
        if let Some(action) = &hook.http_get {
            http_get(action, &path.child("httpGet"), errors);
        }
    }
}

fn how_many(handlers: &[bool], path: &Path, errors: &mut Errors) {
    match handlers.iter().filter(|present| **present).count() {
        0 => errors.required(path, "must specify a handler type"),
        1 => {}
        _ => errors.forbidden(path, "may not specify more than 1 handler type"),
    }
}

fn http_get(action: &HTTPGetAction, path: &Path, errors: &mut Errors) {
    if action.path.as_deref().unwrap_or_default().is_empty() {
        errors.required(&path.child("path"), "");
    }
    port(&action.port, &path.child("port"), errors);
    one_of(action.scheme.as_deref(), &["HTTP", "HTTPS"], &path.child("scheme"), errors);
}
