//! A pod's defaults and rules.

#[allow(dead_code, reason = "each test binary uses its part")]
mod common;

use common::{context, created, decoded, kind};
use serde_json::{Value, json};
use skein_api::object::{self, Update};

fn pod(spec: Value) -> Value {
    json!({ "metadata": { "name": "web" }, "spec": spec })
}

fn with_container(fields: Value) -> Value {
    let mut container = json!({ "name": "c", "image": "x" });
    container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    pod(json!({ "containers": [container], "volumes": [{ "name": "v" }] }))
}

/// Creating the pod is refused, and this is one of the reasons.
fn refused(body: Value, reason: &str) {
    let error = created("Pod", body.clone()).expect_err(&body.to_string());
    assert_eq!(error.code(), 422, "{error}");
    assert!(error.message().contains(reason), "expected: {reason}\nfound: {error}");
}

#[test]
fn a_two_line_pod_gets_the_defaults_clients_rely_on() {
    let object = created("Pod", pod(json!({ "containers": [{ "name": "c", "image": "nginx" }] }))).unwrap();
    assert_eq!(
        object["spec"],
        json!({
            "containers": [{
                "name": "c", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0, "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {},
            "serviceAccount": "default", "serviceAccountName": "default", "terminationGracePeriodSeconds": 30,
            "tolerations": [
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0 },
                { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0 },
            ],
        })
    );
    assert_eq!(object["status"], json!({ "phase": "Pending", "qosClass": "BestEffort" }));
}

#[test]
fn a_toleration_that_is_given_is_honoured() {
    let toleration = json!({ "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 });
    let object = created(
        "Pod",
        pod(json!({ "containers": [{ "name": "c", "image": "x" }], "tolerations": [toleration] })),
    )
    .unwrap();
    let tolerations = object["spec"]["tolerations"].as_array().unwrap();
    assert_eq!(tolerations.len(), 2);
    assert_eq!(tolerations[0], toleration);
    let all = json!({ "operator": "Exists" });
    let object =
        created("Pod", pod(json!({ "containers": [{ "name": "c", "image": "x" }], "tolerations": [all] })))
            .unwrap();
    assert_eq!(object["spec"]["tolerations"], json!([all]));
}

#[test]
fn the_parts_of_a_container_get_their_defaults() {
    let object = created(
        "Pod",
        with_container(json!({
            "ports": [{ "containerPort": 80 }],
            "livenessProbe": { "httpGet": { "port": 80 } },
            "env": [{ "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }],
            "resources": { "limits": { "cpu": "1000m", "memory": "1024Mi" }, "requests": { "cpu": 0.5 } },
        })),
    )
    .unwrap();
    let container = &object["spec"]["containers"][0];
    assert_eq!(container["ports"], json!([{ "containerPort": 80, "protocol": "TCP" }]));
    assert_eq!(
        container["livenessProbe"],
        json!({ "httpGet": { "path": "/", "port": 80, "scheme": "HTTP" }, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 })
    );
    assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(
        container["resources"],
        json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "500m", "memory": "1Gi" } })
    );
    assert_eq!(object["spec"]["volumes"], json!([{ "name": "v", "emptyDir": {} }]));
    assert_eq!(object["status"]["qosClass"], "Burstable");
}

#[test]
fn every_broken_rule_is_named_at_once() {
    let error =
        created("Pod", pod(json!({ "containers": [{ "name": "C" }, {}], "restartPolicy": "Sometimes" })))
            .unwrap_err();
    let status = error.to_value();
    let fields: Vec<&str> = status["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| cause["field"].as_str().unwrap())
        .collect();
    assert_eq!(
        fields,
        [
            "spec.containers[0].name",
            "spec.containers[0].image",
            "spec.containers[1].name",
            "spec.containers[1].image",
            "spec.restartPolicy",
        ]
    );
    assert!(error.message().starts_with(
        "Pod \"web\" is invalid: [spec.containers[0].name: Invalid value: \"C\": a lowercase RFC 1123 label"
    ));
}

#[test]
fn a_pod_that_cannot_work_is_refused() {
    refused(pod(json!({ "containers": [] })), "spec.containers: Required value");
    refused(
        pod(json!({ "containers": [{ "name": "a", "image": "x" }, { "name": "a", "image": "x" }] })),
        "spec.containers[1].name: Duplicate value: \"a\"",
    );
    refused(
        with_container(json!({ "imagePullPolicy": "Often" })),
        "spec.containers[0].imagePullPolicy: Unsupported value: \"Often\"",
    );
    refused(
        with_container(json!({ "ports": [{ "containerPort": 70000 }] })),
        "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
    );
    refused(
        with_container(json!({ "ports": [{ "containerPort": 80, "protocol": "ICMP" }] })),
        "ports[0].protocol: Unsupported value: \"ICMP\"",
    );
    refused(
        with_container(json!({ "volumeMounts": [{ "name": "w", "mountPath": "/w" }] })),
        "volumeMounts[0].name: Not found: \"w\"",
    );
    refused(
        with_container(
            json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }, { "name": "v", "mountPath": "/v" }] }),
        ),
        "volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique",
    );
    refused(
        with_container(json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v", "subPath": "../x" }] })),
        "subPath: Invalid value",
    );
    refused(with_container(json!({ "env": [{ "name": "" }] })), "env[0].name: Required value");
    refused(
        with_container(
            json!({ "env": [{ "name": "A", "value": "x", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }] }),
        ),
        "may not be specified when `value` is not empty",
    );
    refused(with_container(json!({ "envFrom": [{}] })), "envFrom[0]: Invalid value");
    refused(
        with_container(json!({ "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "2" } } })),
        "resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
    );
    refused(
        with_container(json!({ "resources": { "limits": { "cpu": "lots" } } })),
        "resources.limits[cpu]: Invalid value: \"lots\"",
    );
    refused(
        with_container(json!({ "resources": { "limits": { "memory": "-1" } } })),
        "must be greater than or equal to 0",
    );
    refused(
        with_container(json!({ "livenessProbe": {} })),
        "livenessProbe: Required value: must specify a handler type",
    );
    refused(
        with_container(json!({ "livenessProbe": { "tcpSocket": { "port": 1 }, "successThreshold": 2 } })),
        "successThreshold: Invalid value: 2: must be 1",
    );
    refused(
        with_container(json!({ "securityContext": { "runAsUser": -1 } })),
        "runAsUser: Invalid value: -1",
    );
    let container = json!([{ "name": "c", "image": "x" }]);
    refused(
        pod(json!({ "containers": container, "volumes": [{ "name": "v" }, { "name": "v" }] })),
        "spec.volumes[1].name: Duplicate value: \"v\"",
    );
    refused(
        pod(
            json!({ "containers": container, "volumes": [{ "name": "v", "emptyDir": {}, "hostPath": { "path": "/" } }] }),
        ),
        "may not specify more than 1 volume type",
    );
    refused(
        pod(json!({ "containers": container, "terminationGracePeriodSeconds": -1 })),
        "terminationGracePeriodSeconds: Invalid value: -1",
    );
    refused(
        pod(json!({ "containers": container, "tolerations": [{ "operator": "Equal" }] })),
        "operator must be Exists when `key` is empty",
    );
    refused(
        pod(json!({ "containers": container, "dnsPolicy": "None" })),
        "must provide at least one DNS nameserver",
    );
    refused(
        pod(
            json!({ "containers": container, "initContainers": [{ "name": "i", "image": "x", "readinessProbe": { "tcpSocket": { "port": 1 } } }] }),
        ),
        "spec.initContainers[0].readinessProbe: Forbidden",
    );
    refused(
        pod(
            json!({ "containers": container, "topologySpreadConstraints": [{ "maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule" }] }),
        ),
        "maxSkew: Invalid value: 0",
    );
}

#[test]
fn of_a_pod_only_little_may_change() {
    let kind = kind("Pod");
    let old = created("Pod", with_container(json!({}))).unwrap();
    let update = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        let mut new = decoded(kind, &new)?;
        object::prepare_update(kind, &old, &mut new, &context(Some("default")))
    };
    assert_eq!(update(&|pod| pod["spec"]["containers"][0]["image"] = json!("x:2")), Ok(Update::Changed));
    assert_eq!(update(&|pod| pod["spec"]["activeDeadlineSeconds"] = json!(60)), Ok(Update::Changed));
    assert_eq!(
        update(&|pod| pod["spec"]["tolerations"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "key": "a", "operator": "Exists" }))),
        Ok(Update::Changed)
    );
    // What a new pod is given, an updated one is given too: whoever replaces a pod need not know it.
    let given = |pod: &mut Value| {
        pod["spec"]["tolerations"] = json!([{ "key": "a", "operator": "Exists" }]);
        for field in ["priority", "preemptionPolicy"] {
            pod["spec"].as_object_mut().unwrap().remove(field);
        }
    };
    assert_eq!(update(&given), Ok(Update::Changed));
    assert_eq!(update(&|pod| pod["spec"]["tolerations"] = json!([])), Ok(Update::Unchanged));
    for change in [
        (&|pod: &mut Value| pod["spec"]["nodeName"] = json!("kitchen")) as &dyn Fn(&mut Value),
        &|pod| pod["spec"]["containers"][0]["command"] = json!(["sh"]),
        &|pod| pod["spec"]["tolerations"][0]["effect"] = json!("NoSchedule"),
        &|pod| pod["spec"]["restartPolicy"] = json!("Never"),
        &|pod| pod["spec"]["containers"].as_array_mut().unwrap().push(json!({ "name": "d", "image": "x" })),
    ] {
        assert_eq!(update(change).unwrap_err().code(), 422);
    }
}

#[test]
fn a_deployment_gets_its_defaults_and_its_template_those_of_a_pod() {
    let object = created(
        "Deployment",
        json!({ "metadata": { "name": "web" }, "spec": { "selector": { "matchLabels": { "app": "web" } }, "template": { "metadata": { "creationTimestamp": null, "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "x:1" }] } } } }),
    )
    .unwrap();
    let spec = &object["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(spec["revisionHistoryLimit"], 10);
    assert_eq!(spec["progressDeadlineSeconds"], 600);
    assert_eq!(
        spec["strategy"],
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } })
    );
    assert_eq!(
        spec["template"]["spec"],
        json!({
            "containers": [{
                "name": "c", "image": "x:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "securityContext": {}, "terminationGracePeriodSeconds": 30,
        })
    );
}

#[test]
fn a_deployment_that_cannot_work_is_refused() {
    let deployment = |change: &dyn Fn(&mut Value)| {
        let mut body = json!({ "metadata": { "name": "web" }, "spec": { "selector": { "matchLabels": { "app": "web" } }, "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "x" }] } } } });
        change(&mut body["spec"]);
        created("Deployment", body).map_err(|error| error.message().to_owned())
    };
    assert!(deployment(&|_| {}).is_ok());
    for (change, reason) in [
        (
            (&|spec: &mut Value| spec["selector"] = json!({})) as &dyn Fn(&mut Value),
            "spec.selector: Required value",
        ),
        (
            &|spec| spec["template"]["metadata"]["labels"]["app"] = json!("other"),
            "`selector` does not match template `labels`",
        ),
        (
            &|spec| spec["template"]["spec"]["restartPolicy"] = json!("Never"),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            &|spec| spec["replicas"] = json!(-1),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            &|spec| spec["strategy"] = json!({ "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 0 } }),
            "may not be 0 when `maxSurge` is 0",
        ),
        (
            &|spec| spec["strategy"] = json!({ "type": "Recreate", "rollingUpdate": {} }),
            "spec.strategy.rollingUpdate: Forbidden",
        ),
        (&|spec| spec["strategy"] = json!({ "type": "Never" }), "spec.strategy.type: Unsupported value"),
        (
            &|spec| spec["template"]["spec"]["containers"] = json!([]),
            "spec.template.spec.containers: Required value",
        ),
        (&|spec| spec["progressDeadlineSeconds"] = json!(0), "must be greater than minReadySeconds"),
    ] {
        let message = deployment(change).unwrap_err();
        assert!(message.contains(reason), "expected: {reason}\nfound: {message}");
        assert!(message.starts_with("Deployment.apps \"web\" is invalid: "), "{message}");
    }
}

#[test]
fn a_service_gets_its_defaults_and_keeps_its_rules() {
    let service = |spec: Value| created("Service", json!({ "metadata": { "name": "web" }, "spec": spec }));
    let object = service(json!({ "selector": { "app": "web" }, "ports": [{ "port": 80 }] })).unwrap();
    assert_eq!(
        object["spec"],
        json!({
            "selector": { "app": "web" }, "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }], "type": "ClusterIP",
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        })
    );
    assert_eq!(object["status"], json!({ "loadBalancer": {} }));
    assert_eq!(service(json!({ "clusterIP": "None" })).unwrap()["spec"]["clusterIPs"], json!(["None"]));
    for (spec, reason) in [
        (json!({}), "spec.ports: Required value"),
        (json!({ "ports": [{ "port": 0 }] }), "spec.ports[0].port: Invalid value: 0"),
        (json!({ "ports": [{ "port": 80 }, { "port": 81 }] }), "spec.ports[0].name: Required value"),
        (
            json!({ "ports": [{ "name": "a", "port": 80 }, { "name": "a", "port": 81 }] }),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({ "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 80 }] }),
            "spec.ports[1]: Duplicate value",
        ),
        (json!({ "type": "Magic", "ports": [{ "port": 80 }] }), "spec.type: Unsupported value: \"Magic\""),
        (json!({ "type": "ExternalName" }), "spec.externalName: Required value"),
        (json!({ "ports": [{ "port": 80, "nodePort": 30000 }] }), "spec.ports[0].nodePort: Forbidden"),
        (
            json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] }),
            "provided port is not in the valid range",
        ),
        (json!({ "clusterIP": "x", "ports": [{ "port": 80 }] }), "must be a valid IP address"),
    ] {
        let error = service(spec.clone()).unwrap_err();
        assert!(error.message().contains(reason), "expected: {reason}\nfound: {error}");
    }
}

/// The conformance tests of upstream name these.
#[test]
fn parameters_of_the_kernel_have_names_and_belong_to_the_pod() {
    let with = |spec: Value| {
        let mut whole = json!({ "containers": [{ "name": "c", "image": "x" }] });
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        pod(whole)
    };
    let named = |names: &[&str]| {
        let sysctls: Vec<Value> = names.iter().map(|name| json!({ "name": name, "value": "1" })).collect();
        with(json!({ "securityContext": { "sysctls": sysctls } }))
    };
    created("Pod", named(&["kernel.shmmax", "safe-and-unsafe", "net/ipv4/conf/eth0.1/rp_filter", "a_b.c"]))
        .unwrap();
    for name in ["foo-", "bar..", ".a", "a//b", "A", "net.ipv4.ip forward"] {
        let reason = format!(
            "spec.securityContext.sysctls[0].name: Invalid value: {name:?}: must have at most 253 characters and match regex ^([a-z0-9]"
        );
        refused(named(&[name]), &reason);
    }
    refused(named(&[""]), "sysctls[0].name: Required value");
    refused(named(&["a.b", "a.b"]), "sysctls[1].name: Duplicate value: \"a.b\"");
    for name in ["net.core.somaxconn", "net/core/somaxconn"] {
        let sysctls = json!({ "sysctls": [{ "name": name, "value": "1" }] });
        refused(
            with(json!({ "hostNetwork": true, "securityContext": sysctls })),
            "may not be set when 'hostNetwork' is set to true",
        );
    }
}

fn warnings(name: &str, body: Value) -> Vec<String> {
    let object = created(name, body.clone()).unwrap_or_else(|error| panic!("{body}: {error}"));
    object::warnings_on_create(kind(name), &object)
}

/// Words of upstream.
#[test]
fn what_is_likely_a_mistake_is_a_warning() {
    let warned = |spec: Value, expect: &[&str]| {
        assert_eq!(warnings("Pod", pod(spec.clone())), expect, "{spec}");
    };
    let with = |fields: Value| json!({ "containers": [with_container(fields)["spec"]["containers"][0]] });
    let port = |protocol: &str| json!({ "containerPort": 53, "protocol": protocol });
    warned(with(json!({ "ports": [port("UDP"), port("TCP")] })), &[]);
    warned(
        with(json!({ "ports": [port("TCP"), port("TCP"), { "containerPort": 53, "hostPort": 53 }] })),
        &[
            "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
            "spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[0]",
            "spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[1]",
        ],
    );
    let twice =
        |value: &str| json!({ "env": [{ "name": "A", "value": "1" }, { "name": "A", "value": value }] });
    warned(with(twice("$(A):2")), &[]);
    warned(
        with(twice("2")),
        &[
            "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
        ],
    );
    warned(
        with(
            json!({ "resources": { "limits": { "memory": "1500m", "cpu": "100m" }, "requests": { "memory": "1" } } }),
        ),
        &[
            "spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" is invalid, must be an integer",
        ],
    );
    let container = json!([{ "name": "c", "image": "x" }]);
    warned(
        json!({ "containers": container, "imagePullSecrets": [{ "name": "a" }, { "name": "a" }, { "name": "" }] }),
        &[
            "spec.imagePullSecrets[1].name: duplicate name \"a\"",
            "spec.imagePullSecrets[2].name: invalid empty name \"\"",
        ],
    );
    let term = json!({ "topologyKey": "kubernetes.io/hostname" });
    warned(
        json!({ "containers": container, "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term] } } }),
        &[
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector: a null labelSelector results in matching no pod",
        ],
    );
}

#[test]
fn of_a_template_is_warned_when_it_changes() {
    let deployment = |value: &str, replicas: i32| {
        let env = json!([{ "name": "A", "value": "1" }, { "name": "A", "value": value }]);
        json!({ "metadata": { "name": "web" }, "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "c", "image": "x", "env": env }] } },
        } })
    };
    let old = created("Deployment", deployment("2", 1)).unwrap();
    let kind = kind("Deployment");
    assert!(
        object::warnings_on_create(kind, &old)[0]
            .starts_with("spec.template.spec.containers[0].env[1]: hides")
    );
    for (body, count) in [(deployment("3", 1), 1), (deployment("2", 1), 0)] {
        let mut new = decoded(kind, &body).unwrap();
        object::prepare_update(kind, &old, &mut new, &context(Some("default"))).unwrap();
        assert_eq!(object::warnings_on_update(kind, &old, &new).len(), count, "{body}");
    }
}

#[test]
fn a_service_that_is_not_served_yet_says_so() {
    let of = |type_: &str| {
        warnings(
            "Service",
            json!({ "metadata": { "name": "a" }, "spec": { "type": type_, "ports": [{ "port": 80 }] } }),
        )
    };
    assert!(of("ClusterIP").is_empty());
    assert!(of("NodePort")[0].contains("not supported by this cluster yet"));
    assert!(of("LoadBalancer")[0].contains("gets no external address"));
}

/// `kubectl patch` that changes no more than the type was refused.
#[test]
fn what_belongs_to_the_type_of_a_service_goes_with_it() {
    let of = |type_: &str| json!({ "metadata": { "name": "a" }, "spec": { "type": type_, "ports": [{ "port": 80, "nodePort": 30080 }] } });
    let kind = kind("Service");
    let old = created("Service", of("LoadBalancer")).unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        object::prepare_update(kind, &old, &mut new, &context(Some("default"))).map(|_| new["spec"].clone())
    };
    let spec = changed(&|service| service["spec"]["type"] = json!("ClusterIP")).unwrap();
    for gone in ["externalTrafficPolicy", "allocateLoadBalancerNodePorts"] {
        assert!(spec.get(gone).is_none(), "{spec}");
    }
    assert!(spec["ports"][0].get("nodePort").is_none(), "{spec}");
    let spec = changed(&|service| service["spec"]["type"] = json!("NodePort")).unwrap();
    assert_eq!(
        (&spec["externalTrafficPolicy"], &spec["ports"][0]["nodePort"]),
        (&json!("Cluster"), &json!(30080))
    );
    let named = |service: &mut Value| {
        service["spec"]["type"] = json!("ClusterIP");
        service["spec"]["ports"][0]["nodePort"] = json!(30081);
    };
    assert_eq!(changed(&named).unwrap_err().code(), 422, "what is asked for anew is not dropped in silence");
}
