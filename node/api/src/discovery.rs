//! What the cluster serves, told to clients: `/version`, `/api`, `/apis`, `/apis/<group>/<version>`, and
//! both at once as aggregated discovery. All of it follows from the registry.

use serde_json::{Value, json};

use crate::kinds::{KINDS, Kind};

/// The minor version of Kubernetes whose API this says it is: one before that of the types it is built with. Clients
/// warn of a server that is more than one minor version away, and those of the last three are in use.
pub const KUBERNETES_MINOR: &str = "36";

/// The media type of an aggregated answer of a version, which `Accept` must name and `Content-Type` repeats.
pub fn aggregated_media_type(version: &str) -> String {
    format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
}

/// The answer at `/version`. Clients parse `gitVersion` as a version of Kubernetes and switch behaviour on it.
pub fn version(skein_version: &str) -> Value {
    json!({
        "major": "1",
        "minor": KUBERNETES_MINOR,
        "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+skein.{skein_version}"),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    })
}

/// This build's architecture, by the name that images and clients use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Every group and its version, core first.
pub fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<_> = KINDS.iter().map(|kind| (kind.group, kind.version)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The answer at `/`.
pub fn paths() -> Value {
    const OTHERS: [&str; 8] =
        ["/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];
    let mut paths: Vec<String> = OTHERS.map(str::to_owned).into();
    for (group, version) in group_versions() {
        let root = crate::openapi::root(group, version);
        paths.extend([format!("/openapi/v3/{root}"), format!("/{root}")]);
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
        }
    }
    paths.sort_unstable();
    json!({ "paths": paths })
}

/// The answer at `/api`. `address` is where this node serves: `10.0.0.5:6443`.
pub fn api_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": address }],
    })
}

/// The answer at `/apis`.
pub fn groups() -> Value {
    let groups: Vec<Value> = named_groups().map(|(group, version)| group_fields(group, version)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// The answer at `/apis/<group>`.
pub fn group(name: &str) -> Option<Value> {
    let (group, version) = named_groups().find(|(group, _)| *group == name)?;
    let mut fields = group_fields(group, version);
    fields["kind"] = json!("APIGroup");
    fields["apiVersion"] = json!("v1");
    Some(fields)
}

/// The answer at `/api/v1` and `/apis/<group>/<version>`.
pub fn resources(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in of_group(group, version) {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs,
        });
        put_lists(&mut resource, kind);
        resources.push(resource);
        for below in kind.subresources {
            let mut resource = json!({
                "name": format!("{}/{}", kind.plural, below.name), "singularName": "",
                "namespaced": kind.namespaced, "kind": below.kind, "verbs": below.verbs,
            });
            if below.group != kind.group {
                resource["group"] = json!(below.group);
                resource["version"] = json!(below.version);
            }
            resources.push(resource);
        }
    }
    if resources.is_empty() {
        return None;
    }
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": group_version(group, version), "resources": resources,
    }))
}

/// The aggregated answer at `/api` (`core`) or `/apis`, in version `v2` or `v2beta1` of its form.
pub fn aggregated(core: bool, version: &str) -> Value {
    let of_path = group_versions().into_iter().filter(|(group, _)| group.is_empty() == core);
    let items: Vec<Value> = of_path
        .map(|(group, version)| {
            let resources: Vec<Value> = of_group(group, version).map(aggregated_resource).collect();
            json!({
                "metadata": if core { json!({ "creationTimestamp": null }) } else { json!({ "name": group, "creationTimestamp": null }) },
                "versions": [{ "version": version, "resources": resources, "freshness": "Current" }],
            })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    })
}

fn aggregated_resource(kind: &'static Kind) -> Value {
    let response =
        |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": response(kind.group, kind.version, kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    put_lists(&mut resource, kind);
    if !kind.subresources.is_empty() {
        resource["subresources"] = kind
            .subresources
            .iter()
            .map(|below| {
                json!({
                    "subresource": below.name,
                    "responseKind": response(below.group, below.version, below.kind),
                    "verbs": below.verbs,
                })
            })
            .collect();
    }
    resource
}

fn put_lists(resource: &mut Value, kind: &Kind) {
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
}

fn of_group(group: &str, version: &str) -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(move |kind| kind.group == group && kind.version == version)
}

fn named_groups() -> impl Iterator<Item = (&'static str, &'static str)> {
    group_versions().into_iter().filter(|(group, _)| !group.is_empty())
}

fn group_fields(group: &str, version: &str) -> Value {
    let version = json!({ "groupVersion": group_version(group, version), "version": version });
    json!({ "name": group, "versions": [version.clone()], "preferredVersion": version })
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_from_the_root_finds_every_kind() {
        let mut found = 0;
        let apis = groups();
        let named = apis["groups"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap());
        for group in named.chain([""]) {
            let list = resources(group, "v1").unwrap();
            let plain = list["resources"].as_array().unwrap().iter();
            found += plain.filter(|resource| !resource["name"].as_str().unwrap().contains('/')).count();
        }
        assert_eq!(found, KINDS.len());
        assert!(resources("", "v2").is_none());
        assert!(group("apps").is_some() && group("").is_none());
    }

    #[test]
    fn aggregated_discovery_has_the_same_kinds_and_subresources() {
        let (core, named) = (aggregated(true, "v2"), aggregated(false, "v2"));
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2");
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        let mut groups = named["items"].as_array().unwrap().iter();
        let apps = groups.find(|group| group["metadata"]["name"] == "apps").unwrap();
        let deployments = &apps["versions"][0]["resources"][0];
        assert_eq!(deployments["resource"], "deployments");
        assert_eq!(deployments["subresources"][0]["responseKind"]["group"], "autoscaling");
    }
}
