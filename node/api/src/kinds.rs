//! Every kind the cluster serves. A kind is one entry of [`KINDS`] and its rules
//! ([`defaults`](crate::defaults), [`validate`](crate::validate)); all else follows from these.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{SelfSubjectAccessReview, SelfSubjectRulesReview};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::key::{self, ObjectKey};
use crate::names;
use crate::rules::{Definition, Rules, rules};

/// One served kind.
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version it is served in; the stored objects say the same.
    pub version: &'static str,
    /// `Pod`.
    pub kind: &'static str,
    /// `pods`: the resource's name in paths and keys.
    pub plural: &'static str,
    /// `pod`.
    pub singular: &'static str,
    /// `po`.
    pub short_names: &'static [&'static str],
    /// Groups of resources that kubectl knows: `all`.
    pub categories: &'static [&'static str],
    /// Its objects live in namespaces.
    pub namespaced: bool,
    /// What may be done with the main resource.
    pub verbs: &'static [&'static str],
    /// What else lies below an object's path.
    pub subresources: &'static [Subresource],
    /// Its `spec` is counted by `metadata.generation`.
    pub counts_generations: bool,
    /// Fields its objects can be selected by, apart from name and namespace, and what an absent one counts as.
    pub fields: &'static [(&'static str, &'static str)],
    /// What its objects may be called.
    pub(crate) name: names::Rule,
    /// Its defaults and validation.
    pub(crate) rules: Rules,
}

/// A path below an object, with a meaning of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Subresource {
    /// `status`.
    pub name: &'static str,
    /// The group of what travels there, which may differ from the object's: `autoscaling`.
    pub group: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Its kind: `Scale`.
    pub kind: &'static str,
    /// What may be done with it.
    pub verbs: &'static [&'static str],
}

/// Verbs of an ordinary resource, in the order discovery lists them.
pub const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

const READ_WRITE: &[&str] = &["get", "patch", "update"];

const fn status(group: &'static str, kind: &'static str) -> Subresource {
    Subresource { name: "status", group, version: "v1", kind, verbs: READ_WRITE }
}

const SCALE: Subresource =
    Subresource { name: "scale", group: "autoscaling", version: "v1", kind: "Scale", verbs: READ_WRITE };

/// All kinds, core group first.
pub static KINDS: &[Kind] = &[
    Kind {
        short_names: &["cm"],
        ..core::<ConfigMap>("ConfigMap", "configmaps", "configmap", names::Rule::Subdomain)
    },
    Kind {
        short_names: &["ep"],
        ..core::<Endpoints>("Endpoints", "endpoints", "endpoints", names::Rule::Subdomain)
    },
    Kind {
        short_names: &["ev"],
        fields: &[
            ("involvedObject.apiVersion", ""),
            ("involvedObject.fieldPath", ""),
            ("involvedObject.kind", ""),
            ("involvedObject.name", ""),
            ("involvedObject.namespace", ""),
            ("involvedObject.resourceVersion", ""),
            ("involvedObject.uid", ""),
            ("reason", ""),
            ("reportingComponent", ""),
            ("source", ""),
            ("type", ""),
        ],
        ..core::<Event>("Event", "events", "event", names::Rule::Subdomain)
    },
    Kind {
        short_names: &["ns"],
        namespaced: false,
        // No deletecollection: upstream has none either, and nobody should empty a cluster by one word.
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &[
            Subresource { name: "finalize", group: "", version: "v1", kind: "Namespace", verbs: &["update"] },
            status("", "Namespace"),
        ],
        fields: &[("status.phase", "")],
        ..core::<Namespace>("Namespace", "namespaces", "namespace", names::Rule::Label)
    },
    Kind {
        short_names: &["no"],
        namespaced: false,
        subresources: &[status("", "Node")],
        fields: &[("spec.unschedulable", "false")],
        ..core::<Node>("Node", "nodes", "node", names::Rule::Subdomain)
    },
    Kind {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            Subresource { name: "binding", group: "", version: "v1", kind: "Binding", verbs: &["create"] },
            Subresource {
                name: "eviction",
                group: "policy",
                version: "v1",
                kind: "Eviction",
                verbs: &["create"],
            },
            Subresource { name: "log", group: "", version: "v1", kind: "Pod", verbs: &["get"] },
            status("", "Pod"),
        ],
        counts_generations: true,
        fields: &[
            ("spec.hostNetwork", "false"),
            ("spec.nodeName", ""),
            ("spec.restartPolicy", ""),
            ("spec.schedulerName", ""),
            ("spec.serviceAccountName", ""),
            ("status.nominatedNodeName", ""),
            ("status.phase", ""),
            ("status.podIP", ""),
        ],
        ..core::<Pod>("Pod", "pods", "pod", names::Rule::Subdomain)
    },
    Kind { fields: &[("type", "")], ..core::<Secret>("Secret", "secrets", "secret", names::Rule::Subdomain) },
    Kind {
        short_names: &["sa"],
        ..core::<ServiceAccount>(
            "ServiceAccount",
            "serviceaccounts",
            "serviceaccount",
            names::Rule::Subdomain,
        )
    },
    Kind {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[status("", "Service")],
        fields: &[("spec.clusterIP", ""), ("spec.type", "")],
        ..core::<Service>("Service", "services", "service", names::Rule::ServiceLabel)
    },
    Kind {
        group: "apps",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, status("apps", "Deployment")],
        counts_generations: true,
        ..core::<Deployment>("Deployment", "deployments", "deployment", names::Rule::Subdomain)
    },
    Kind {
        group: "apps",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, status("apps", "ReplicaSet")],
        counts_generations: true,
        fields: &[("status.replicas", "0")],
        ..core::<ReplicaSet>("ReplicaSet", "replicasets", "replicaset", names::Rule::Subdomain)
    },
    Kind {
        group: "coordination.k8s.io",
        ..core::<Lease>("Lease", "leases", "lease", names::Rule::Subdomain)
    },
    Kind {
        group: "discovery.k8s.io",
        ..core::<EndpointSlice>("EndpointSlice", "endpointslices", "endpointslice", names::Rule::Subdomain)
    },
    // Custom kinds cannot be defined here, so none is: clients that meet a kind they do not know look for it
    // here, and explain a missing list worse than an empty one.
    Kind {
        group: "apiextensions.k8s.io",
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        namespaced: false,
        verbs: &["get", "list", "watch"],
        ..core::<Definition>(
            "CustomResourceDefinition",
            "customresourcedefinitions",
            "customresourcedefinition",
            names::Rule::Subdomain,
        )
    },
    Kind {
        group: "authentication.k8s.io",
        ..question::<SelfSubjectReview>("SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview")
    },
    Kind {
        group: "authorization.k8s.io",
        ..question::<SelfSubjectAccessReview>(
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            "selfsubjectaccessreview",
        )
    },
    Kind {
        group: "authorization.k8s.io",
        ..question::<SelfSubjectRulesReview>(
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
            "selfsubjectrulesreview",
        )
    },
];

/// What travels at the sub-resource `scale`. Its objects are views of others, so it is not among [`KINDS`].
pub static SCALE_KIND: Kind =
    Kind { group: "autoscaling", ..core::<Scale>("Scale", "scales", "scale", names::Rule::Subdomain) };

/// A kind that is answered and not kept.
const fn question<T: crate::rules::KindRules>(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Kind {
    Kind {
        namespaced: false,
        verbs: &["create"],
        ..core::<T>(kind, plural, singular, names::Rule::Subdomain)
    }
}

/// What most kinds have in common: an entry names what differs.
const fn core<T: crate::rules::KindRules>(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    name: names::Rule,
) -> Kind {
    Kind {
        group: "",
        version: "v1",
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: VERBS,
        subresources: &[],
        counts_generations: false,
        fields: &[],
        name,
        rules: rules::<T>(),
    }
}

/// The kind served at `/apis/<group>/<version>/.../<plural>`.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
}

/// The kind that objects of this group call themselves.
pub fn by_kind(group: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|known| known.group == group && known.kind == kind)
}

/// The kind whose objects lie under this key.
pub fn by_key(key: &ObjectKey) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == key.group && kind.plural == key.resource)
}

impl Kind {
    /// `v1`, `apps/v1`: what its objects say in `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods`, `deployments.apps`: the resource as messages name it.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Where the object of this name is stored. `namespace` is empty for kinds without.
    pub fn key(&self, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new(self.group, self.plural, namespace, name)
    }

    /// What the keys of its objects begin with: all, or those of a namespace.
    pub fn prefix(&self, namespace: Option<&str>) -> String {
        key::prefix(self.group, self.plural, namespace)
    }

    /// The path of this name below its objects.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// Creating one asks the server something; nothing of it is kept.
    pub fn is_question(&self) -> bool {
        matches!(self.group, "authentication.k8s.io" | "authorization.k8s.io")
    }

    /// A write to the object leaves `status` alone, and a write to `status` the rest.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.api_version(), self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_path_by_name_and_by_key() {
        let deployments = by_resource("apps", "v1", "deployments").unwrap();
        assert_eq!(deployments.kind, by_kind("apps", "Deployment").unwrap().kind);
        assert_eq!(deployments.kind, by_key(&deployments.key("default", "web")).unwrap().kind);
        assert!(by_resource("apps", "v1beta1", "deployments").is_none());
        assert!(by_kind("", "Deployment").is_none());
    }

    #[test]
    fn what_is_asked_can_be_created_only() {
        for kind in KINDS {
            assert_eq!(kind.is_question(), kind.verbs == ["create"], "{kind:?}");
        }
    }

    #[test]
    fn no_two_kinds_share_a_name() {
        let mut seen = std::collections::BTreeSet::new();
        for kind in KINDS {
            assert!(seen.insert((kind.group, kind.plural)), "{kind:?}");
            for name in kind.short_names {
                assert!(seen.insert(("", name)), "{kind:?}");
            }
        }
    }
}
