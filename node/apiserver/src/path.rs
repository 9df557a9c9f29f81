//! What a request's path names.

use skein_api::kinds::{self, Kind};

/// Where a request goes.
#[derive(Debug)]
pub(crate) enum Route {
    /// How the server is: open to everybody.
    Health,
    /// Its version: open to everybody.
    Version,
    /// `/api`, `/apis`, `/apis/apps`, `/apis/apps/v1`: what is served. Segments without the slash.
    Discovery(Vec<String>),
    /// `/openapi/v2` or `/openapi/v3[/<path>]`.
    OpenApi(Vec<String>),
    /// Objects.
    Resource(Resource),
    /// What every client knows and is not here.
    NotServed(NotServed),
    /// `/`: the other paths.
    Root,
}

/// Sub-resources that every client knows and that are not here.
const NOT_SERVED: &[(&str, &str, &str)] = &[
    ("pods", "attach", "kubectl logs -f shows what a container prints"),
    ("pods", "ephemeralcontainers", "start a pod of its own on the same node instead: kubectl run"),
    ("pods", "exec", "start a pod of its own for the command: kubectl run"),
    ("pods", "portforward", "reach the pod at its address from any node: kubectl get pods -o wide"),
    ("pods", "proxy", "reach the pod at its address from any node: kubectl get pods -o wide"),
    ("pods", "resize", "change the resources where the pod comes from, and it is replaced"),
    ("services", "proxy", "reach a pod of the service at its address from any node"),
    ("nodes", "proxy", "ask the node's own API at its address, port 6443"),
    ("serviceaccounts", "token", "use a client certificate: skein kubeconfig"),
];

/// The objects a path names.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) kind: &'static Kind,
    /// `None` means all namespaces, or a kind without namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<Sub>,
    /// The deprecated form `/api/v1/watch/...`.
    pub(crate) watch: bool,
}

/// A path below an object that is not served.
#[derive(Debug)]
pub(crate) struct NotServed {
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    /// `attach`.
    pub(crate) below: &'static str,
    /// What to do instead.
    pub(crate) instead: &'static str,
}

/// What lies below an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sub {
    Status,
    Scale,
    Binding,
    Log,
    Eviction,
    Finalize,
}

impl Resource {
    /// The namespace as keys have it: empty for kinds without.
    pub(crate) fn key_namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }
}

impl Sub {
    /// As it stands in paths.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Sub::Status => "status",
            Sub::Scale => "scale",
            Sub::Binding => "binding",
            Sub::Log => "log",
            Sub::Eviction => "eviction",
            Sub::Finalize => "finalize",
        }
    }

    fn of(kind: &Kind, name: &str) -> Option<Self> {
        let all = [Sub::Status, Sub::Scale, Sub::Binding, Sub::Log, Sub::Eviction, Sub::Finalize];
        let served = kind.subresource(name)?;
        all.into_iter().find(|sub| sub.name() == served.name)
    }
}

/// Reads a path. `None`: nothing is served there.
pub(crate) fn route(path: &str) -> Option<Route> {
    let segments: Vec<String> = path.trim_matches('/').split('/').map(unescape).collect::<Option<_>>()?;
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => Some(Route::Health),
        ["version"] => Some(Route::Version),
        ["openapi", rest @ ..] => Some(Route::OpenApi(owned(rest))),
        ["api"] | ["api", _] | ["apis"] | ["apis", _] | ["apis", _, _] => Some(Route::Discovery(segments)),
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        [""] => Some(Route::Root),
        _ => None,
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Option<Route> {
    let (watch, rest) = match rest {
        ["watch", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (namespace, rest) = match rest {
        // `/namespaces/x`, `/namespaces/x/status` and `/namespaces/x/finalize` are the namespace itself.
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => (None, rest),
        ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
        rest => (None, rest),
    };
    let (plural, name, below) = match rest {
        [plural] => (plural, None, None),
        [plural, name] => (plural, Some(*name), None),
        [plural, name, below] => (plural, Some(*name), Some(*below)),
        [plural, name, "proxy", ..] => (plural, Some(*name), Some("proxy")),
        _ => return None,
    };
    let kind = kinds::by_resource(group, version, plural)?;
    // An object of a namespace is reached through its namespace only; a node is never in one.
    if kind.namespaced != namespace.is_some() && (!kind.namespaced || name.is_some()) {
        return None;
    }
    let subresource = match below.map(|below| (below, Sub::of(kind, below))) {
        Some((below, None)) => return not_served(kind, namespace, name.unwrap_or_default(), below),
        Some((_, served)) => served,
        None => None,
    };
    Some(Route::Resource(Resource { kind, namespace, name: name.map(str::to_owned), subresource, watch }))
}

fn not_served(kind: &'static Kind, namespace: Option<String>, name: &str, below: &str) -> Option<Route> {
    let known = |(plural, name, _): &&(&str, &str, &str)| *plural == kind.plural && *name == below;
    let (_, below, instead) = NOT_SERVED.iter().find(known)?;
    Some(Route::NotServed(NotServed { kind, namespace, name: name.to_owned(), below, instead }))
}

fn owned(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

/// Undoes `%41` in one segment. `None` if that is malformed, or gives a segment no name may be.
fn unescape(segment: &str) -> Option<String> {
    let text = percent_decode(segment.as_bytes())?;
    let harmless = text != "." && text != ".." && !text.contains('/') && !text.contains('\0');
    harmless.then_some(text)
}

/// Undoes `%41`. `None` if it is malformed or not UTF-8.
pub(crate) fn percent_decode(escaped: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.iter();
    while let Some(&byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
            bytes.push((digit(rest.next())? * 16 + digit(rest.next())?) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Named = (&'static str, Option<String>, Option<String>, Option<Sub>);

    fn parsed(path: &str) -> Option<Named> {
        match route(path)? {
            Route::Resource(found) => Some((found.kind.kind, found.namespace, found.name, found.subresource)),
            _ => None,
        }
    }

    #[test]
    fn a_path_names_kind_namespace_name_and_what_lies_below() {
        let some = |text: &str| Some(text.to_owned());
        for (path, expect) in [
            ("/api/v1/pods", ("Pod", None, None, None)),
            ("/api/v1/namespaces/a/pods", ("Pod", some("a"), None, None)),
            ("/api/v1/namespaces/a/pods/b", ("Pod", some("a"), some("b"), None)),
            ("/api/v1/namespaces/a/pods/b/log", ("Pod", some("a"), some("b"), Some(Sub::Log))),
            ("/api/v1/namespaces", ("Namespace", None, None, None)),
            ("/api/v1/namespaces/a", ("Namespace", None, some("a"), None)),
            ("/api/v1/namespaces/a/status", ("Namespace", None, some("a"), Some(Sub::Status))),
            ("/api/v1/nodes/n%2e1", ("Node", None, some("n.1"), None)),
            (
                "/apis/apps/v1/namespaces/a/deployments/b/scale",
                ("Deployment", some("a"), some("b"), Some(Sub::Scale)),
            ),
            ("/api/v1/watch/namespaces/a/pods", ("Pod", some("a"), None, None)),
        ] {
            assert_eq!(parsed(path), Some(expect), "{path}");
        }
    }

    #[test]
    fn what_every_client_knows_and_is_not_here_is_told_from_what_nobody_knows() {
        for path in ["pods/a/exec", "pods/a/portforward", "pods/a/proxy/index.html", "services/a/proxy"] {
            let found = route(&format!("/api/v1/namespaces/default/{path}"));
            assert!(matches!(found, Some(Route::NotServed(..))), "{path}");
        }
        assert!(route("/api/v1/namespaces/default/configmaps/a/exec").is_none());
    }

    #[test]
    fn a_path_that_names_nothing_is_refused() {
        for path in [
            "/api/v2/pods",
            "/api/v1/unicorns",
            "/api/v1/pods/b",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/namespaces/a/nodes/n",
            "/api/v1/namespaces/a/pods/b/log/c",
            "/api/v1/namespaces/a/pods/b/fly",
            "/api/v1/namespaces/a%2fb/pods",
            "/api/v1/namespaces/../pods",
            "/api/v1/namespaces/%zz/pods",
            "/apis/apps/v1/namespaces/a/pods",
        ] {
            assert!(parsed(path).is_none(), "{path}");
        }
    }
}
