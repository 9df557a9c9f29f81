//! Who a pod's images are pulled as.
//!
//! Source: Kubernetes documentation, "Images" (`imagePullSecrets`, how `config.json` is read); the files'
//! format is Docker's.

use k8s_openapi::api::core::v1::{LocalObjectReference, Pod, Secret, ServiceAccount};
use serde::Deserialize;
use skein_api::base64::of_credentials;
use std::collections::{BTreeMap, BTreeSet};

use crate::meta;
use crate::view::View;

/// A user of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name at the registry.
    pub user: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.user)
    }
}

/// What the pod's secrets hold for the registry of `image`: the ones for the longest path first.
///
/// A pod that names no secret uses those of its service account. Secrets that are absent, of another type
/// or damaged are passed over, as Kubernetes does: the registry has the last word.
pub fn pull_credentials(view: &View, pod: &Pod, image: &str) -> Vec<Credentials> {
    let namespace = meta::namespace(&pod.metadata);
    let mut found: Vec<(usize, Credentials)> = Vec::new();
    for name in in_order(view, pod) {
        let Some(secret) = view.named::<Secret>(namespace, name) else { continue };
        for (place, entry) in entries(secret) {
            if let Some(credentials) = entry.credentials().filter(|_| covers(&place, image)) {
                found.push((place.len(), credentials));
            }
        }
    }
    // Stable: of two for the same path the secret named first is tried first.
    found.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    let mut credentials: Vec<Credentials> = Vec::new();
    for (_, one) in found {
        if !credentials.contains(&one) {
            credentials.push(one);
        }
    }
    credentials
}

/// The names of all secrets that are looked at for a pod's images.
pub(super) fn secrets(view: &View, pod: &Pod) -> BTreeSet<String> {
    in_order(view, pod).into_iter().map(str::to_owned).collect()
}

fn in_order<'a>(view: &'a View, pod: &'a Pod) -> Vec<&'a str> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let own = spec.image_pull_secrets.as_deref().unwrap_or_default();
    let account = spec.service_account_name.as_deref().unwrap_or("default");
    let account =
        view.named::<ServiceAccount>(meta::namespace(&pod.metadata), account).filter(|_| own.is_empty());
    let of_account = account.into_iter().flat_map(|account| account.image_pull_secrets.iter().flatten());
    own.iter().chain(of_account).map(|LocalObjectReference { name }| name.as_str()).collect()
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// `username:password` in base64.
    #[serde(default, deserialize_with = "of_credentials")]
    auth: Option<Vec<u8>>,
}

impl Entry {
    fn credentials(&self) -> Option<Credentials> {
        let both = self.auth.as_ref().and_then(|auth| std::str::from_utf8(auth).ok());
        let both = both.and_then(|both| both.split_once(':'));
        let (user, password) = both.unwrap_or((&self.username, &self.password));
        (!user.is_empty()).then(|| Credentials {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        })
    }
}

/// The entries of a secret, each with the registry and path that it is for.
fn entries(secret: &Secret) -> Vec<(String, Entry)> {
    let held =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    let auths = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => held(".dockerconfigjson")
            .and_then(|bytes| serde_json::from_slice::<Config>(bytes).ok())
            .map(|config| config.auths),
        // The older form: the same without the outer object.
        Some("kubernetes.io/dockercfg") => {
            held(".dockercfg").and_then(|bytes| serde_json::from_slice(bytes).ok())
        }
        _ => None,
    };
    auths.unwrap_or_default().into_iter().map(|(place, entry)| (plain(&place), entry)).collect()
}

/// A place as it stands in front of images: without scheme, API version and trailing slash.
fn plain(place: &str) -> String {
    let place = place.strip_prefix("https://").or(place.strip_prefix("http://")).unwrap_or(place);
    let place = place.trim_end_matches('/');
    let place = place.strip_suffix("/v1").or(place.strip_suffix("/v2")).unwrap_or(place);
    match place {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        place => place.to_owned(),
    }
}

/// Whether `image` lies at `place`: the same registry, and below its path.
fn covers(place: &str, image: &str) -> bool {
    let (first, rest) = image.split_once('/').unwrap_or(("", image));
    let named = first.contains(['.', ':']) || first == "localhost";
    let (registry, path) = if named { (first, rest) } else { ("docker.io", image) };
    let (wanted, below) = place.split_once('/').unwrap_or((place, ""));
    let matches = match wanted.strip_prefix("*.") {
        // One star is one part of the name.
        Some(domain) => registry.split_once('.').is_some_and(|(_, above)| above == domain),
        None => wanted == registry,
    };
    matches
        && path.strip_prefix(below).is_some_and(|rest| below.is_empty() || rest.starts_with(['/', ':', '@']))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use skein_api::base64;

    use super::*;

    /// A view with a secret for each of these files, in order: `s0`, `s1`, ..
    fn view(files: &[Value], account: Value) -> View {
        let mut view = View::default();
        let mut put = |key: String, object: Value| {
            view.apply(&key, Some(object.to_string().as_bytes()), 1);
        };
        for (number, file) in files.iter().enumerate() {
            let bytes = base64::encode(file.to_string().as_bytes());
            let (name, kind) = (format!("s{number}"), "kubernetes.io/dockerconfigjson");
            put(
                format!("core/secrets/default/{name}"),
                json!({ "metadata": { "name": name, "namespace": "default" }, "type": kind,
                    "data": { ".dockerconfigjson": bytes } }),
            );
        }
        let metadata = json!({ "name": "default", "namespace": "default" });
        put(
            "core/serviceaccounts/default/default".to_owned(),
            json!({ "metadata": metadata, "imagePullSecrets": account }),
        );
        view
    }

    fn users(view: &View, secrets: Value) -> Vec<String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "default" },
            "spec": { "containers": [], "imagePullSecrets": secrets },
        }))
        .expect("a pod");
        let found = pull_credentials(view, &pod, "registry.lan:5000/team/app:1");
        found.into_iter().map(|one| format!("{}/{}", one.user, one.password)).collect()
    }

    #[test]
    fn secrets_of_the_pod_come_before_those_of_its_account_and_longer_paths_before_shorter_ones() {
        let files = [
            json!({ "auths": {
                "registry.lan:5000": { "username": "all", "password": "1" },
                "registry.lan:5000/team": { "auth": "dGVhbTpwOnc=" },
                "docker.io": { "username": "other", "password": "2" },
            } }),
            json!({ "auths": { "https://registry.lan:5000": { "username": "account", "password": "3" } } }),
            json!("damaged"),
        ];
        let view = view(&files, json!([{ "name": "s1" }]));
        let named = json!([{ "name": "missing" }, { "name": "s2" }, { "name": "s0" }]);
        // The password may hold a colon.
        assert_eq!(users(&view, named), ["team/p:w", "all/1"]);
        assert_eq!(users(&view, json!([])), ["account/3"]);
    }

    /// Writers of such files leave out the padding, wrap lines, or leave bits of the last letter set.
    #[test]
    fn a_name_and_password_in_base64_are_read_however_they_were_written() {
        for auth in ["YW5uOnA=", "YW5uOnA", "YW5u\nOnA=\n", "YW5uOnB="] {
            let view = view(&[json!({ "auths": { "registry.lan:5000": { "auth": auth } } })], json!([]));
            assert_eq!(users(&view, json!([{ "name": "s0" }])), ["ann/p"], "{auth:?}");
        }
    }

    #[track_caller]
    fn check(place: &str, image: &str, expect: bool) {
        assert_eq!(covers(&plain(place), image), expect, "{place} {image}");
    }

    #[test]
    fn a_place_covers_the_images_of_its_registry_and_path() {
        check("registry.lan:5000", "registry.lan:5000/a/b:1", true);
        check("https://registry.lan:5000/", "registry.lan:5000/a", true);
        check("registry.lan:5000", "registry.lan/a", false);
        check("https://index.docker.io/v1/", "nginx", true);
        check("https://index.docker.io/v1/", "team/app:2", true);
        check("https://index.docker.io/v1/", "registry.lan/team/app", false);
        check("registry.lan/team", "registry.lan/team/app@sha256:00", true);
        check("registry.lan/team", "registry.lan/teams/app", false);
        check("*.lan", "registry.lan/a", true);
        check("*.lan", "a.registry.lan/a", false);
    }
}
