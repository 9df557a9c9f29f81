//! What every namespace has, and how one ends.

use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, NamespaceSpec, NamespaceStatus, Pod, Service, ServiceAccount, ServicePort,
    ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::draft::Draft;
use crate::meta;
use crate::view::{Changed, Key, Kind, Object, View, key_of};

/// The namespaces that clients expect in any cluster.
const STANDING: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];
/// What keeps a namespace until everything in it is gone.
const FINALIZER: &str = "kubernetes";
const CA_MAP: &str = "kube-root-ca.crt";

/// Sees to it that the standing namespaces and the API server's service exist, that each namespace has
/// what clients wait for, and that an ending one ends.
pub(crate) fn plan(draft: &mut Draft<'_>, ca_pem: &str, kubernetes_ip: &str) {
    for name in STANDING {
        if draft.view().named::<Namespace>("", name).is_none() {
            create_namespace(draft, name);
        }
    }
    for (name, inside) in touched(draft.view(), draft.changed()) {
        if draft.is_full() {
            return;
        }
        let Some(namespace) = draft.view().named::<Namespace>("", &name).cloned() else { continue };
        if meta::is_ending(&namespace.metadata) {
            end(draft, &name, inside);
        } else {
            furnish(draft, &name, ca_pem);
        }
    }
    // Standing namespaces of this pass are furnished in the next one, when they are touched.
    if draft.view().named::<Service>("default", "kubernetes").is_none()
        && draft.view().named::<Namespace>("", "default").is_some()
    {
        create_service(draft, kubernetes_ip);
    }
}

/// What to look at in a namespace.
enum Inside {
    Everything,
    These(Vec<Key>),
}

/// Namespaces that changed, or in which something did.
fn touched(view: &View, changed: &Changed) -> BTreeMap<String, Inside> {
    let mut found = BTreeMap::new();
    let keys = match changed {
        Changed::All => {
            let all = view.all::<Namespace>();
            return all
                .map(|(_, held)| (meta::name(&held.metadata).to_owned(), Inside::Everything))
                .collect();
        }
        Changed::Some { keys, .. } => keys,
    };
    for key in keys {
        let mut parts = key.rsplitn(3, '/');
        let (Some(name), Some(namespace)) = (parts.next(), parts.next()) else { continue };
        if key.starts_with(Namespace::PREFIX) {
            found.insert(name.to_owned(), Inside::Everything);
        } else if !namespace.is_empty() {
            let inside = found.entry(namespace.to_owned()).or_insert_with(|| Inside::These(Vec::new()));
            if let Inside::These(keys) = inside {
                keys.push(key.clone());
            }
        }
    }
    found
}

fn create_namespace(draft: &mut Draft<'_>, name: &str) {
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())])),
            ..ObjectMeta::default()
        },
        spec: Some(NamespaceSpec { finalizers: Some(vec![FINALIZER.to_owned()]) }),
        status: Some(NamespaceStatus { phase: Some("Active".to_owned()), conditions: None }),
    };
    let uid = draft.chance.of(&format!("namespace {name}")).uid();
    draft.create(namespace, uid);
}

fn create_service(draft: &mut Draft<'_>, ip: &str) {
    let service = Service {
        metadata: ObjectMeta {
            name: Some("kubernetes".to_owned()),
            namespace: Some("default".to_owned()),
            labels: Some(BTreeMap::from([
                ("component".to_owned(), "apiserver".to_owned()),
                ("provider".to_owned(), "kubernetes".to_owned()),
            ])),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some(ip.to_owned()),
            cluster_ips: Some(vec![ip.to_owned()]),
            ip_families: Some(vec![if ip.contains(':') { "IPv6" } else { "IPv4" }.to_owned()]),
            ip_family_policy: Some("SingleStack".to_owned()),
            internal_traffic_policy: Some("Cluster".to_owned()),
            session_affinity: Some("None".to_owned()),
            ports: Some(vec![ServicePort {
                name: Some("https".to_owned()),
                port: 443,
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::Int(6443)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: Some(Default::default()),
    };
    let uid = draft.chance.of("service default/kubernetes").uid();
    draft.create(service, uid);
}

/// Gives a namespace what clients wait for after they have made it.
fn furnish(draft: &mut Draft<'_>, namespace: &str, ca_pem: &str) {
    let account: Key = format!("core/serviceaccounts/{namespace}/default").into();
    if draft.view().stored(&account).is_none() {
        let metadata = ObjectMeta {
            name: Some("default".to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: Some(draft.chance.of(&account).uid()),
            creation_timestamp: Some(Time(draft.now)),
            ..ObjectMeta::default()
        };
        let object = ServiceAccount { metadata, ..ServiceAccount::default() };
        draft.put(account, Object::ServiceAccount(Arc::new(object)));
    }
    let data = BTreeMap::from([("ca.crt".to_owned(), ca_pem.to_owned())]);
    let key = key_of::<ConfigMap>(namespace, CA_MAP);
    if draft.view().get::<ConfigMap>(&key).is_some() {
        draft.edit::<ConfigMap>(&key, |map| map.data = Some(data));
    } else {
        let metadata = ObjectMeta {
            name: Some(CA_MAP.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        let uid = draft.chance.of(&key).uid();
        draft.create(ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }, uid);
    }
}

/// Deletes what is in an ending namespace, and the namespace once nothing is left. Pods go first: what they live by, a
/// Secret, an account, what lets them talk, stays until the last one has ended.
///
/// Cost: what there is to look at, and everything that is left once there are no pods.
fn end(draft: &mut Draft<'_>, name: &str, inside: Inside) {
    let key = key_of::<Namespace>("", name);
    draft.edit::<Namespace>(&key, |namespace| {
        namespace.status.get_or_insert_default().phase = Some("Terminating".to_owned());
    });
    let pods: Vec<Key> = match inside {
        Inside::Everything => draft.view().in_namespace::<Pod>(name).map(|(key, _)| key.clone()).collect(),
        Inside::These(keys) => keys.into_iter().filter(|key| key.starts_with(Pod::PREFIX)).collect(),
    };
    for key in &pods {
        if draft.is_full() {
            return;
        }
        draft.delete_pod(key);
    }
    if draft.view().in_namespace::<Pod>(name).next().is_some() {
        return;
    }
    let rest: Vec<Key> = draft.view().keys_in_namespace(name).cloned().collect();
    for key in &rest {
        if draft.is_full() {
            return;
        }
        draft.remove(key);
    }
    if draft.view().keys_in_namespace(name).next().is_some() {
        return;
    }
    draft.edit::<Namespace>(&key, |namespace| {
        if let Some(finalizers) = namespace.spec.get_or_insert_default().finalizers.as_mut() {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
    });
    let none = |held: Option<&Vec<String>>| held.is_none_or(Vec::is_empty);
    let free = draft.view().get::<Namespace>(&key).is_some_and(|namespace| {
        none(namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref()))
            && none(namespace.metadata.finalizers.as_ref())
    });
    if free {
        draft.delete(&key);
    }
}
