//! The columns of each kind but pods.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use super::{Column, age, list, pod, text};
use crate::kinds::Kind;
use crate::selector::Selector;
use crate::time;

const NONE: &str = "<none>";

/// Labels by which a node says what it is for.
const ROLE: &str = "node-role.kubernetes.io/";
const OLD_ROLE: &str = "kubernetes.io/role";

/// A kind's columns and how an object fills them.
pub(super) struct Sheet {
    pub(super) columns: &'static [Column],
    pub(super) cells: fn(&Value, Timestamp) -> Vec<Value>,
}

pub(super) fn of(kind: &Kind) -> Sheet {
    match (kind.group, kind.kind) {
        ("", "Pod") => Sheet { columns: pod::COLUMNS, cells: pod::cells },
        ("", "Node") => Sheet { columns: NODE, cells: node },
        ("", "Namespace") => Sheet { columns: NAMESPACE, cells: namespace },
        ("", "Service") => Sheet { columns: SERVICE, cells: service },
        ("", "ConfigMap") => Sheet { columns: CONFIG_MAP, cells: config_map },
        ("", "Secret") => Sheet { columns: SECRET, cells: secret },
        ("", "ServiceAccount") => Sheet { columns: SERVICE_ACCOUNT, cells: service_account },
        ("", "Endpoints") => Sheet { columns: ENDPOINTS, cells: endpoints },
        ("discovery.k8s.io", "EndpointSlice") => Sheet { columns: ENDPOINT_SLICE, cells: endpoint_slice },
        ("", "Event") => Sheet { columns: EVENT, cells: event },
        ("apps", "Deployment") => Sheet { columns: DEPLOYMENT, cells: deployment },
        ("apps", "ReplicaSet") => Sheet { columns: REPLICA_SET, cells: replica_set },
        ("autoscaling", "Scale") => Sheet { columns: SCALE, cells: scale },
        ("coordination.k8s.io", "Lease") => Sheet { columns: LEASE, cells: lease },
        _ => Sheet { columns: PLAIN, cells: plain },
    }
}

const PLAIN: &[Column] = &[Column::narrow("Name"), Column { name: "Created At", type_: "date", wide: false }];

fn plain(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].clone()]
}

const NODE: &[Column] = &[
    Column::narrow("Name"),
    Column::narrow("Status"),
    Column::narrow("Roles"),
    Column::narrow("Age"),
    Column::narrow("Version"),
    Column::wide("Internal-IP"),
    Column::wide("External-IP"),
    Column::wide("OS-Image"),
    Column::wide("Kernel-Version"),
    Column::wide("Container-Runtime"),
];

fn node(node: &Value, now: Timestamp) -> Vec<Value> {
    let ready = list(&node["status"]["conditions"]).iter().find(|condition| condition["type"] == "Ready");
    let mut status = match ready.and_then(|condition| condition["status"].as_str()) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let address = |type_: &str| {
        let addresses = list(&node["status"]["addresses"]).iter();
        let found = addresses
            .filter(|address| address["type"] == type_)
            .find_map(|address| address["address"].as_str());
        json!(found.unwrap_or(NONE))
    };
    let info = &node["status"]["nodeInfo"];
    vec![
        name(node),
        status.into(),
        roles(node).into(),
        age(node, now),
        text(&info["kubeletVersion"], "").into(),
        address("InternalIP"),
        address("ExternalIP"),
        text(&info["osImage"], "<unknown>").into(),
        text(&info["kernelVersion"], "<unknown>").into(),
        text(&info["containerRuntimeVersion"], "<unknown>").into(),
    ]
}

fn roles(node: &Value) -> String {
    let mut roles = std::collections::BTreeSet::new();
    for (key, value) in node["metadata"]["labels"].as_object().into_iter().flatten() {
        match key.strip_prefix(ROLE) {
            Some(role) if !role.is_empty() => roles.insert(role),
            _ if key == OLD_ROLE => value.as_str().is_some_and(|role| !role.is_empty() && roles.insert(role)),
            _ => false,
        };
    }
    if roles.is_empty() { NONE.into() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

const NAMESPACE: &[Column] = &[Column::narrow("Name"), Column::narrow("Status"), Column::narrow("Age")];

fn namespace(namespace: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(namespace), text(&namespace["status"]["phase"], "").into(), age(namespace, now)]
}

const SERVICE: &[Column] = &[
    Column::narrow("Name"),
    Column::narrow("Type"),
    Column::narrow("Cluster-IP"),
    Column::narrow("External-IP"),
    Column::narrow("Port(s)"),
    Column::narrow("Age"),
    Column::wide("Selector"),
];

fn service(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    let type_ = text(&spec["type"], "ClusterIP");
    vec![
        name(service),
        type_.into(),
        text(&spec["clusterIP"], NONE).into(),
        external_addresses(service, type_).into(),
        service_ports(spec).into(),
        age(service, now),
        pairs(&spec["selector"]).into(),
    ]
}

fn external_addresses(service: &Value, type_: &str) -> String {
    let mut addresses: Vec<&str> = match type_ {
        "ExternalName" => return text(&service["spec"]["externalName"], NONE).to_owned(),
        "LoadBalancer" => list(&service["status"]["loadBalancer"]["ingress"])
            .iter()
            .filter_map(|ingress| ingress["ip"].as_str().or(ingress["hostname"].as_str()))
            .collect(),
        _ => Vec::new(),
    };
    addresses.extend(list(&service["spec"]["externalIPs"]).iter().filter_map(Value::as_str));
    match (addresses.is_empty(), type_) {
        (true, "LoadBalancer") => "<pending>".into(),
        (true, _) => NONE.into(),
        (false, _) => addresses.join(","),
    }
}

fn service_ports(spec: &Value) -> String {
    let ports: Vec<String> = list(&spec["ports"])
        .iter()
        .map(|port| {
            let protocol = text(&port["protocol"], "TCP");
            match port["nodePort"].as_i64() {
                Some(node_port) if node_port > 0 => format!("{}:{node_port}/{protocol}", port["port"]),
                _ => format!("{}/{protocol}", port["port"]),
            }
        })
        .collect();
    if ports.is_empty() { NONE.into() } else { ports.join(",") }
}

const CONFIG_MAP: &[Column] = &[Column::narrow("Name"), Column::narrow("Data"), Column::narrow("Age")];

fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), (length(&object["data"]) + length(&object["binaryData"])).into(), age(object, now)]
}

const SECRET: &[Column] =
    &[Column::narrow("Name"), Column::narrow("Type"), Column::narrow("Data"), Column::narrow("Age")];

fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(&object["type"], "Opaque").into(),
        length(&object["data"]).into(),
        age(object, now),
    ]
}

const SERVICE_ACCOUNT: &[Column] =
    &[Column::narrow("Name"), Column::number("Secrets"), Column::narrow("Age")];

fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), list(&object["secrets"]).len().into(), age(object, now)]
}

const ENDPOINTS: &[Column] = &[Column::narrow("Name"), Column::narrow("Endpoints"), Column::narrow("Age")];

fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let all: Vec<String> = list(&object["subsets"])
        .iter()
        .flat_map(|subset| {
            let ports = list(&subset["ports"]);
            list(&subset["addresses"]).iter().flat_map(move |address| {
                let ip = text(&address["ip"], "");
                let with_port = |port: &Value| match ip.contains(':') {
                    true => format!("[{ip}]:{}", port["port"]),
                    false => format!("{ip}:{}", port["port"]),
                };
                if ports.is_empty() { vec![ip.to_owned()] } else { ports.iter().map(with_port).collect() }
            })
        })
        .collect();
    vec![name(object), some_of(all, NONE).into(), age(object, now)]
}

const ENDPOINT_SLICE: &[Column] = &[
    Column::narrow("Name"),
    Column::narrow("AddressType"),
    Column::narrow("Ports"),
    Column::narrow("Endpoints"),
    Column::narrow("Age"),
];

fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports = list(&object["ports"]).iter().map(|port| match port["port"].as_i64() {
        Some(number) => number.to_string(),
        None => "*".to_owned(),
    });
    let addresses = list(&object["endpoints"]).iter().flat_map(|endpoint| list(&endpoint["addresses"]));
    let addresses = addresses.filter_map(|address| address.as_str().map(str::to_owned));
    vec![
        name(object),
        text(&object["addressType"], "").into(),
        some_of(ports.collect(), "<unset>").into(),
        some_of(addresses.collect(), "<unset>").into(),
        age(object, now),
    ]
}

/// The first three, and how many more there are.
fn some_of(all: Vec<String>, none: &str) -> String {
    const SHOWN: usize = 3;
    match all.len() {
        0 => none.to_owned(),
        many if many > SHOWN => format!("{} + {} more...", all[..SHOWN].join(","), many - SHOWN),
        _ => all.join(","),
    }
}

const EVENT: &[Column] = &[
    Column::narrow("Last Seen"),
    Column::narrow("Type"),
    Column::narrow("Reason"),
    Column::narrow("Object"),
    Column::wide("Subobject"),
    Column::wide("Source"),
    Column::narrow("Message"),
    Column::wide("First Seen"),
    Column::wide("Count"),
    Column::wide("Name"),
];

fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let first_known = |fields: &[&Value]| {
        let known = fields.iter().find_map(|field| field.as_str().and_then(time::parse));
        known.map_or_else(|| "<unknown>".to_owned(), |at| time::age(at, now))
    };
    let created = &event["metadata"]["creationTimestamp"];
    let (first, last) = (
        first_known(&[&event["firstTimestamp"], &event["eventTime"], created]),
        first_known(&[
            &event["series"]["lastObservedTime"],
            &event["lastTimestamp"],
            &event["eventTime"],
            created,
        ]),
    );
    let target = &event["involvedObject"];
    let kind = text(&target["kind"], "").to_lowercase();
    let object = match target["name"].as_str() {
        Some(name) if !name.is_empty() => format!("{kind}/{name}"),
        _ => kind,
    };
    let component = text(&event["source"]["component"], text(&event["reportingComponent"], ""));
    let source = match event["source"]["host"].as_str() {
        Some(host) if !host.is_empty() => format!("{component}, {host}"),
        _ => component.to_owned(),
    };
    let count = event["series"]["count"].as_i64().or(event["count"].as_i64()).unwrap_or(1).max(1);
    vec![
        last.into(),
        text(&event["type"], "").into(),
        text(&event["reason"], "").into(),
        object.into(),
        text(&target["fieldPath"], "").into(),
        source.into(),
        text(&event["message"], "").trim().into(),
        first.into(),
        count.into(),
        name(event),
    ]
}

const DEPLOYMENT: &[Column] = &[
    Column::narrow("Name"),
    Column::narrow("Ready"),
    Column::number("Up-to-date"),
    Column::number("Available"),
    Column::narrow("Age"),
    Column::wide("Containers"),
    Column::wide("Images"),
    Column::wide("Selector"),
];

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let ready = format!("{}/{}", count(&status["readyReplicas"]), count(&object["spec"]["replicas"]));
    let mut cells = vec![
        name(object),
        ready.into(),
        count(&status["updatedReplicas"]).into(),
        count(&status["availableReplicas"]).into(),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}

const REPLICA_SET: &[Column] = &[
    Column::narrow("Name"),
    Column::number("Desired"),
    Column::number("Current"),
    Column::number("Ready"),
    Column::narrow("Age"),
    Column::wide("Containers"),
    Column::wide("Images"),
    Column::wide("Selector"),
];

fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let mut cells = vec![
        name(object),
        count(&object["spec"]["replicas"]).into(),
        count(&status["replicas"]).into(),
        count(&status["readyReplicas"]).into(),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}

const SCALE: &[Column] =
    &[Column::narrow("Name"), Column::number("Desired"), Column::number("Available"), Column::narrow("Age")];

fn scale(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        count(&object["spec"]["replicas"]).into(),
        count(&object["status"]["replicas"]).into(),
        age(object, now),
    ]
}

const LEASE: &[Column] = &[Column::narrow("Name"), Column::narrow("Holder"), Column::narrow("Age")];

fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(&object["spec"]["holderIdentity"], "").into(), age(object, now)]
}

/// Containers, images and selector of what makes pods.
fn template(object: &Value) -> [Value; 3] {
    let containers = list(&object["spec"]["template"]["spec"]["containers"]);
    let all = |field: &str| {
        let texts: Vec<&str> = containers.iter().map(|container| text(&container[field], "")).collect();
        texts.join(",")
    };
    let selector: Option<LabelSelector> = serde_json::from_value(object["spec"]["selector"].clone()).ok();
    let selector = selector.and_then(|selector| Selector::from_object(&selector).ok());
    let selector = selector.map_or_else(|| NONE.to_owned(), |selector| selector.to_string());
    [all("name").into(), all("image").into(), selector.into()]
}

/// `a=b,c=d`, in order.
fn pairs(map: &Value) -> String {
    let pairs: BTreeMap<&str, &str> = map
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
        .collect();
    if pairs.is_empty() {
        return NONE.into();
    }
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn name(object: &Value) -> Value {
    text(&object["metadata"]["name"], "").into()
}

fn count(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn length(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{KINDS, SCALE_KIND};

    #[test]
    fn every_kind_fills_all_of_its_columns_whatever_the_object() {
        for kind in KINDS.iter().chain([&SCALE_KIND]) {
            let sheet = of(kind);
            for object in [json!({}), json!(null), json!({ "metadata": 1, "spec": [], "status": "x" })] {
                assert_eq!(
                    (sheet.cells)(&object, Timestamp::UNIX_EPOCH).len(),
                    sheet.columns.len(),
                    "{kind:?}"
                );
            }
        }
    }

    #[test]
    fn a_node_tells_its_state_roles_and_addresses() {
        let cells = node(
            &json!({
                "metadata": { "name": "kitchen", "labels": { "node-role.kubernetes.io/voter": "" } },
                "spec": { "unschedulable": true },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }], "addresses": [{ "type": "InternalIP", "address": "10.0.0.5" }], "nodeInfo": { "kubeletVersion": "v1" } },
            }),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(cells[..3], [json!("kitchen"), json!("Ready,SchedulingDisabled"), json!("voter")]);
        assert_eq!(cells[5..7], [json!("10.0.0.5"), json!(NONE)]);
    }

    #[test]
    fn a_service_tells_its_addresses_and_ports() {
        let now = Timestamp::UNIX_EPOCH;
        let cells = service(
            &json!({ "spec": { "type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{ "port": 80, "nodePort": 30080 }, { "port": 53, "protocol": "UDP" }], "selector": { "app": "web" } } }),
            now,
        );
        assert_eq!(
            cells[1..5],
            [json!("NodePort"), json!("10.96.0.1"), json!(NONE), json!("80:30080/TCP,53/UDP")]
        );
        assert_eq!(cells[6], "app=web");
        assert_eq!(service(&json!({ "spec": { "type": "LoadBalancer" } }), now)[3], "<pending>");
    }

    #[test]
    fn endpoints_tell_the_first_three() {
        let now = Timestamp::UNIX_EPOCH;
        let address = |n: u8| json!({ "ip": format!("10.0.0.{n}") });
        let object = |count: u8| json!({ "subsets": [{ "addresses": (1..=count).map(address).collect::<Vec<_>>(), "ports": [{ "port": 80 }] }] });
        assert_eq!(endpoints(&object(0), now)[1], NONE);
        assert_eq!(endpoints(&object(2), now)[1], "10.0.0.1:80,10.0.0.2:80");
        assert_eq!(endpoints(&object(5), now)[1], "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
        let slice = json!({ "addressType": "IPv4", "ports": [{ "port": 80 }], "endpoints": [{ "addresses": ["10.0.0.1"] }] });
        assert_eq!(endpoint_slice(&slice, now)[1..4], [json!("IPv4"), json!("80"), json!("10.0.0.1")]);
    }

    #[test]
    fn a_deployment_tells_ready_of_wanted() {
        let cells = deployment(
            &json!({
                "metadata": { "name": "web" }, "status": { "readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2 },
                "spec": { "replicas": 3, "selector": { "matchLabels": { "app": "web" } }, "template": { "spec": { "containers": [{ "name": "a", "image": "x" }, { "name": "b", "image": "y" }] } } },
            }),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(cells[1..4], [json!("2/3"), json!(3), json!(2)]);
        assert_eq!(cells[5..], [json!("a,b"), json!("x,y"), json!("app=web")]);
    }

    #[test]
    fn an_event_tells_when_what_and_about_whom() {
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        let cells = event(
            &json!({ "lastTimestamp": "2026-01-01T00:04:00Z", "firstTimestamp": "2026-01-01T00:00:00Z", "type": "Normal", "reason": "Pulled", "involvedObject": { "kind": "Pod", "name": "web" }, "message": "done\n", "count": 4 }),
            now,
        );
        assert_eq!(cells[..4], [json!("60s"), json!("Normal"), json!("Pulled"), json!("pod/web")]);
        assert_eq!(cells[6..9], [json!("done"), json!("5m"), json!(4)]);
    }
}
