//! A container's environment.

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapEnvSource, Container, EnvVarSource, ObjectFieldSelector, ResourceFieldSelector,
    Secret, SecretEnvSource, Service,
};
use std::collections::BTreeMap;

use super::{Error, Lookup, find};
use crate::meta;
use crate::resources;

/// The variables in the order in which they were first named; a later definition wins.
pub(super) fn plan(look: &Lookup<'_>, container: &Container) -> Result<Vec<(String, String)>, Error> {
    let mut env = api_server(look);
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let mut values = BTreeMap::new();
        if let Some(wanted) = &source.config_map_ref {
            values.extend(from_config_map(look, wanted)?);
        }
        if let Some(wanted) = &source.secret_ref {
            values.extend(from_secret(look, wanted)?);
        }
        for (key, value) in values {
            set(&mut env, format!("{prefix}{key}"), value);
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => match value(look, container, source)? {
                Some(value) => value,
                // Optional, and not there.
                None => continue,
            },
            None => expand(variable.value.as_deref().unwrap_or_default(), &env),
        };
        set(&mut env, variable.name.clone(), value);
    }
    Ok(env)
}

/// `text` with each `$(NAME)` replaced by that variable; unknown ones stay, `$$` is a dollar sign.
pub(super) fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match env.iter().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The first variable that `text` names and `env` does not have.
pub(super) fn missing(text: &str, env: &[(String, String)]) -> Option<String> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('$') {
        rest = after.strip_prefix('$').unwrap_or(after);
        if let Some((name, behind)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            if !env.iter().any(|(known, _)| known == name) {
                return Some(name.to_owned());
            }
            rest = behind;
        }
    }
    None
}

/// Where programs of every Kubernetes client library look for the API server.
fn api_server(look: &Lookup<'_>) -> Vec<(String, String)> {
    let service =
        look.view.named::<Service>("default", "kubernetes").and_then(|service| service.spec.as_ref());
    let Some(host) =
        service.and_then(|spec| spec.cluster_ip.clone()).filter(|ip| !ip.is_empty() && ip != "None")
    else {
        return Vec::new();
    };
    let port = service.and_then(|spec| spec.ports.as_ref()?.first()).map_or(443, |port| port.port);
    vec![
        ("KUBERNETES_SERVICE_HOST".to_owned(), host),
        ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string()),
        ("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), port.to_string()),
    ]
}

fn from_config_map(
    look: &Lookup<'_>,
    wanted: &ConfigMapEnvSource,
) -> Result<BTreeMap<String, String>, Error> {
    match look.view.named::<ConfigMap>(look.namespace(), &wanted.name) {
        Some(map) => Ok(map.data.clone().unwrap_or_default()),
        None if wanted.optional == Some(true) => Ok(BTreeMap::new()),
        None => Err(Error::NoConfigMap(wanted.name.clone())),
    }
}

fn from_secret(look: &Lookup<'_>, wanted: &SecretEnvSource) -> Result<BTreeMap<String, String>, Error> {
    let secret = match look.view.named::<Secret>(look.namespace(), &wanted.name) {
        Some(secret) => secret,
        None if wanted.optional == Some(true) => return Ok(BTreeMap::new()),
        None => return Err(Error::NoSecret(wanted.name.clone())),
    };
    let text = |(key, value): (&String, &k8s_openapi::ByteString)| {
        let text = String::from_utf8(value.0.clone());
        let text = text.map_err(|_| Error::NotText { name: wanted.name.clone(), key: key.clone() })?;
        Ok((key.clone(), text))
    };
    secret.data.iter().flatten().map(text).collect()
}

/// The value behind a reference; `None` if it is optional and not there.
fn value(look: &Lookup<'_>, container: &Container, source: &EnvVarSource) -> Result<Option<String>, Error> {
    if let Some(wanted) = &source.config_map_key_ref {
        let optional = wanted.optional == Some(true);
        let Some(map) = look.view.named::<ConfigMap>(look.namespace(), &wanted.name) else {
            return if optional { Ok(None) } else { Err(Error::NoConfigMap(wanted.name.clone())) };
        };
        return match map.data.as_ref().and_then(|values| values.get(&wanted.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(no_key(look, "ConfigMap", &wanted.name, &wanted.key)),
        };
    }
    if let Some(wanted) = &source.secret_key_ref {
        let optional = wanted.optional == Some(true);
        let Some(secret) = look.view.named::<Secret>(look.namespace(), &wanted.name) else {
            return if optional { Ok(None) } else { Err(Error::NoSecret(wanted.name.clone())) };
        };
        return match secret.data.as_ref().and_then(|values| values.get(&wanted.key)) {
            Some(value) => String::from_utf8(value.0.clone())
                .map(Some)
                .map_err(|_| Error::NotText { name: wanted.name.clone(), key: wanted.key.clone() }),
            None if optional => Ok(None),
            None => Err(no_key(look, "Secret", &wanted.name, &wanted.key)),
        };
    }
    if let Some(wanted) = &source.field_ref {
        return field(look, wanted).map(Some);
    }
    if let Some(wanted) = &source.resource_field_ref {
        return resource(look, Some(container), wanted).map(Some);
    }
    Ok(None)
}

/// A field of the pod, as text.
pub(super) fn field(look: &Lookup<'_>, wanted: &ObjectFieldSelector) -> Result<String, Error> {
    let metadata = &look.pod.metadata;
    let path = wanted.field_path.as_str();
    let joined = |addresses: &[String]| addresses.join(",");
    Ok(match path {
        "metadata.name" => meta::name(metadata).to_owned(),
        "metadata.namespace" => meta::namespace(metadata).to_owned(),
        "metadata.uid" => meta::uid(metadata).to_owned(),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => meta::node_of(look.pod).unwrap_or_default().to_owned(),
        "spec.serviceAccountName" => {
            look.spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned())
        }
        "status.hostIP" => look.facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => joined(&look.facts.host_ips),
        "status.podIP" => look.facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => joined(&look.facts.pod_ips),
        _ => {
            let entry = |start: &str, held: Option<&BTreeMap<String, String>>| {
                let key = path.strip_prefix(start)?.strip_prefix("['")?.strip_suffix("']")?;
                Some(held.and_then(|held| held.get(key)).cloned().unwrap_or_default())
            };
            entry("metadata.labels", metadata.labels.as_ref())
                .or_else(|| entry("metadata.annotations", metadata.annotations.as_ref()))
                .ok_or_else(|| Error::NoField(path.to_owned()))?
        }
    })
}

/// A request or limit of a container, in units of the divisor, rounded up. A limit that is not set is
/// what the node has.
pub(super) fn resource(
    look: &Lookup<'_>,
    container: Option<&Container>,
    wanted: &ResourceFieldSelector,
) -> Result<String, Error> {
    let container = match wanted.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => find(look.spec, name).ok_or_else(|| Error::NoContainer(name.to_owned()))?,
        None => container.ok_or_else(|| Error::NoResource(wanted.resource.clone()))?,
    };
    let unknown = || Error::NoResource(wanted.resource.clone());
    let (side, name) = wanted.resource.split_once('.').ok_or_else(unknown)?;
    if !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
        return Err(unknown());
    }
    let held = container.resources.as_ref();
    let amount = match side {
        "requests" => held.and_then(|held| resources::request(held, name)).unwrap_or(0),
        "limits" => held.and_then(|held| resources::limit(held, name)).unwrap_or_else(|| {
            let offered = look.node().map(resources::offered_by).unwrap_or_default();
            match name {
                "cpu" => offered.cpu_millis,
                "memory" => offered.memory_bytes,
                _ => offered.storage_bytes,
            }
        }),
        _ => return Err(unknown()),
    };
    // cpu is held in thousandths, and so is its divisor then.
    let divisor = match (&wanted.divisor, name) {
        (Some(divisor), "cpu") => resources::thousandths(divisor),
        (Some(divisor), _) => resources::units(divisor),
        (None, _) => 0,
    };
    let divisor = match (divisor, name) {
        (1.., _) => divisor,
        (_, "cpu") => 1000,
        _ => 1,
    };
    Ok(((amount + divisor - 1) / divisor).to_string())
}

/// Labels or annotations as a downward volume shows them: `key="value"`, one a line, in order.
fn lines(held: Option<&BTreeMap<String, String>>) -> String {
    let line = |(key, value): (&String, &String)| format!("{key}={}\n", quoted(value));
    held.into_iter().flatten().map(line).collect()
}

fn quoted(value: &str) -> String {
    serde_json::to_string(value).expect("any string has a JSON form")
}

fn no_key(look: &Lookup<'_>, kind: &'static str, name: &str, key: &str) -> Error {
    Error::NoKey { kind, namespace: look.namespace().to_owned(), name: name.to_owned(), key: key.to_owned() }
}

fn set(env: &mut Vec<(String, String)>, name: String, value: String) {
    match env.iter_mut().find(|(known, _)| *known == name) {
        Some((_, held)) => *held = value,
        None => env.push((name, value)),
    }
}
