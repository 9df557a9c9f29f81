//! Beside whom a pod can run: required affinity and anti-affinity between pods.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodAffinityTerm, PodSpec};
use std::collections::BTreeSet;

use crate::meta;
use crate::view::View;

/// The terms by which a pod keeps others away.
pub(crate) fn apart(spec: &PodSpec) -> impl Iterator<Item = &PodAffinityTerm> {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .flatten()
}

/// What a pod demands of the company it keeps, and what its neighbours-to-be demand of it, found out once for all nodes.
#[derive(Default)]
pub(super) struct Company {
    /// In each of these there is a pod that this one must be with.
    together: Vec<Domains>,
    /// In each of these there is one that it must not be with.
    apart: Vec<Domains>,
    /// In each of these there is one that must not be with it.
    shunned: Vec<Domains>,
}

/// Nodes that share the value of a label.
struct Domains {
    label: String,
    values: BTreeSet<String>,
}

impl Company {
    /// Cost: the pods that its terms name, and the different terms of bound pods.
    pub(super) fn of(view: &View, pod: &Pod, spec: &PodSpec) -> Company {
        let namespace = meta::namespace(&pod.metadata);
        let nodes = |term: &PodAffinityTerm| -> BTreeSet<String> {
            pods(view, term, namespace).filter_map(meta::node_of).map(str::to_owned).collect()
        };
        let domains = |term: &PodAffinityTerm, nodes: &BTreeSet<String>| {
            Domains::of(view, &term.topology_key, nodes.iter().map(String::as_str))
        };
        let mut company = Company::default();
        for term in together(spec) {
            let named = nodes(term);
            // The first of a group that wants to be together has nobody to join yet.
            if !named.is_empty() || !picks(view, term, namespace, pod) {
                company.together.push(domains(term, &named));
            }
        }
        for term in apart(spec) {
            company.apart.push(domains(term, &nodes(term)));
        }
        for held in view.apart().filter(|held| picks(view, &held.term, &held.namespace, pod)) {
            company.shunned.push(Domains::of(view, &held.term.topology_key, held.nodes()));
        }
        company
    }

    /// Why the pod cannot run on this node, if it cannot.
    pub(super) fn refusal(&self, node: &Node) -> Option<&'static str> {
        let within = |domains: &Domains| domains.hold(node);
        if !self.together.iter().all(within) {
            Some("node(s) didn't match pod affinity rules")
        } else if self.apart.iter().any(within) {
            Some("node(s) didn't match pod anti-affinity rules")
        } else if self.shunned.iter().any(within) {
            Some("node(s) didn't satisfy existing pods anti-affinity rules")
        } else {
            None
        }
    }
}

impl Domains {
    /// Those of these nodes, as far as they exist and have the label.
    fn of<'n>(view: &View, label: &str, nodes: impl Iterator<Item = &'n str>) -> Domains {
        let value = |name: &str| Some(value(view.named::<Node>("", name)?, label)?.clone());
        Domains { label: label.to_owned(), values: nodes.filter_map(value).collect() }
    }

    fn hold(&self, node: &Node) -> bool {
        value(node, &self.label).is_some_and(|value| self.values.contains(value))
    }
}

fn value<'n>(node: &'n Node, label: &str) -> Option<&'n String> {
    node.metadata.labels.as_ref()?.get(label)
}

/// The terms by which a pod wants to be with others.
fn together(spec: &PodSpec) -> impl Iterator<Item = &PodAffinityTerm> {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.pod_affinity.as_ref());
    affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .flatten()
}

/// The bound pods that have not ended and that `term`, written in a pod of this namespace, means.
fn pods<'v>(view: &'v View, term: &'v PodAffinityTerm, namespace: &str) -> impl Iterator<Item = &'v Pod> {
    let named = term.label_selector.as_ref().map(|selector| {
        let namespaces = namespaces(view, term, namespace);
        let all = namespaces.into_iter().flat_map(|namespace| view.pods_like(&namespace, selector));
        all.map(|(_, pod)| &**pod).filter(|pod| meta::node_of(pod).is_some() && !meta::has_ended(pod))
    });
    named.into_iter().flatten()
}

/// The namespaces whose pods `term` may mean, written in a pod of `own`.
fn namespaces(view: &View, term: &PodAffinityTerm, own: &str) -> BTreeSet<String> {
    let listed = term.namespaces.iter().flatten();
    if term.namespace_selector.is_some() {
        let known = view.all::<Namespace>().map(|(_, namespace)| meta::name(&namespace.metadata));
        return known
            .chain(listed.map(String::as_str))
            .filter(|name| reaches(view, term, own, name))
            .map(str::to_owned)
            .collect();
    }
    let listed: BTreeSet<String> = listed.cloned().collect();
    if listed.is_empty() { BTreeSet::from([own.to_owned()]) } else { listed }
}

/// Whether `term`, written in a pod of `own`, means pods of `namespace`.
fn reaches(view: &View, term: &PodAffinityTerm, own: &str, namespace: &str) -> bool {
    let is_listed = term.namespaces.iter().flatten().any(|name| name == namespace);
    let is_selected = term.namespace_selector.as_ref().is_some_and(|selector| {
        let everything = selector.match_labels.is_none() && selector.match_expressions.is_none();
        let labels = view.named::<Namespace>("", namespace).and_then(|held| held.metadata.labels.as_ref());
        everything || meta::selects(selector, labels)
    });
    let says_nothing = term.namespaces.iter().flatten().next().is_none() && term.namespace_selector.is_none();
    is_listed || is_selected || says_nothing && namespace == own
}

/// True if `term`, written in a pod of `own`, means `pod`.
fn picks(view: &View, term: &PodAffinityTerm, own: &str, pod: &Pod) -> bool {
    let selector = term.label_selector.as_ref();
    selector.is_some_and(|selector| meta::selects(selector, pod.metadata.labels.as_ref()))
        && reaches(view, term, own, meta::namespace(&pod.metadata))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::view::Kind;

    /// What [`Company`] finds out, by looking at each pod for each node.
    fn looked_up(view: &View, node: &Node, pod: &Pod) -> Option<&'static str> {
        let spec = pod.spec.as_ref()?;
        let namespace = meta::namespace(&pod.metadata);
        let bound = || {
            let bound = view.all::<Pod>().map(|(_, other)| &**other);
            bound.filter(|other| meta::node_of(other).is_some() && !meta::has_ended(other))
        };
        let beside = |other: &Pod, label: &str| {
            let there = view.named::<Node>("", meta::node_of(other).unwrap_or_default());
            let there = there.and_then(|there| value(there, label));
            there.is_some() && there == value(node, label)
        };
        let means = |term: &PodAffinityTerm, other: &Pod| picks(view, term, namespace, other);
        for term in together(spec) {
            let is_first = means(term, pod) && !bound().any(|other| means(term, other));
            if !is_first && !bound().any(|other| means(term, other) && beside(other, &term.topology_key)) {
                return Some("node(s) didn't match pod affinity rules");
            }
        }
        let near = |term: &PodAffinityTerm| {
            bound().any(|other| means(term, other) && beside(other, &term.topology_key))
        };
        if apart(spec).any(near) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        let shuns = |other: &Pod| {
            let own = meta::namespace(&other.metadata);
            let terms = other.spec.iter().flat_map(apart);
            terms.into_iter().any(|term| picks(view, term, own, pod) && beside(other, &term.topology_key))
        };
        bound().any(shuns).then_some("node(s) didn't satisfy existing pods anti-affinity rules")
    }

    fn selector() -> impl Strategy<Value = Value> {
        let word = || prop::sample::select(vec!["a", "b", "c"]);
        prop_oneof![
            4 => word().prop_map(|app| json!({"matchLabels": {"app": app}})),
            2 => word().prop_map(|app| json!({"matchLabels": {"app": app, "tier": "x"}})),
            1 => (word(), word()).prop_map(|(one, other)| {
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": [one, other]}]})
            }),
            1 => Just(json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]})),
            1 => word().prop_map(|app| {
                json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": [app]}]})
            }),
            1 => Just(json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]})),
            1 => Just(json!({})),
        ]
    }

    fn term() -> impl Strategy<Value = Value> {
        let label = prop::sample::select(vec!["host", "zone"]);
        let namespaces = prop_oneof![
            4 => Just(json!({})),
            1 => Just(json!({"namespaces": ["n1"]})),
            1 => Just(json!({"namespaceSelector": {}})),
            1 => Just(json!({"namespaceSelector": {"matchLabels": {"name": "n2"}}})),
        ];
        (label, selector(), namespaces).prop_map(|(label, selector, mut term)| {
            term["topologyKey"] = label.into();
            term["labelSelector"] = selector;
            term
        })
    }

    /// A pod without a name; with a node or without.
    fn pod() -> impl Strategy<Value = Value> {
        let terms = || prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(term(), 1..3)];
        let labels = (prop::sample::select(vec!["a", "b", "c"]), any::<bool>());
        let place = (prop::sample::select(vec!["n1", "n2"]), 0..5_usize, prop::bool::weighted(0.2));
        (labels, place, terms(), terms()).prop_map(
            |((app, tier), (namespace, node, ended), with, without)| {
                let mut pod = json!({
                    "metadata": {"namespace": namespace, "labels": {"app": app}},
                    "spec": {
                        "containers": [],
                        "affinity": {
                            "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": with},
                            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": without},
                        },
                    },
                    "status": {"phase": if ended { "Failed" } else { "Running" }},
                });
                if tier {
                    pod["metadata"]["labels"]["tier"] = "x".into();
                }
                // One of these nodes does not exist.
                pod["spec"]["nodeName"] = format!("node{node}").into();
                pod
            },
        )
    }

    fn put(view: &mut View, key: &str, object: &Value) {
        view.apply(key, Some(object.to_string().as_bytes()), 1);
    }

    fn key(pod: &Value, at: usize) -> String {
        format!("{}{}/p{at}", Pod::PREFIX, pod["metadata"]["namespace"].as_str().unwrap_or_default())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Pods come, change and go before a new one looks at what is left: no index may keep what has gone.
        #[test]
        fn the_company_found_by_indices_is_what_a_look_at_every_pod_finds(
            pods in prop::collection::vec((pod(), pod(), 0..3_u8), 0..12),
            mut new in pod(),
        ) {
            let mut view = View::default();
            for namespace in ["n1", "n2"] {
                let labels = json!({"name": namespace});
                let object = json!({"metadata": {"name": namespace, "labels": labels}});
                put(&mut view, &format!("core/namespaces//{namespace}"), &object);
            }
            for at in 0..4 {
                let name = format!("node{at}");
                let mut labels = json!({"host": name});
                if at < 3 {
                    labels["zone"] = format!("zone{}", at % 2).into();
                }
                put(&mut view, &format!("core/nodes//{name}"), &json!({"metadata": {"name": name, "labels": labels}}));
            }
            for (at, (first, then, fate)) in pods.iter().enumerate() {
                put(&mut view, &key(first, at), first);
                match fate {
                    0 => {}
                    1 => drop(view.apply(&key(first, at), None, 2)),
                    _ => {
                        let mut then = then.clone();
                        then["metadata"]["namespace"] = first["metadata"]["namespace"].clone();
                        put(&mut view, &key(first, at), &then);
                    }
                }
            }
            new["spec"]["nodeName"] = Value::Null;
            let new: Pod = serde_json::from_value(new).expect("a pod");
            let company = Company::of(&view, &new, new.spec.as_ref().expect("a spec"));
            for (_, node) in view.all::<Node>() {
                prop_assert_eq!(company.refusal(node), looked_up(&view, node, &new), "on {:?}", node.metadata.name);
            }
        }
    }
}
