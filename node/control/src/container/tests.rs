use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::view::View;

fn view() -> View {
    let mut view = View::default();
    let mut put = |key: &str, object: Value| {
        view.apply(key, Some(object.to_string().as_bytes()), 1);
    };
    put(
        "core/configmaps/default/settings",
        json!({"metadata": {"name": "settings", "namespace": "default"}, "data": {"A": "1", "B": "2"}}),
    );
    put(
        "core/secrets/default/keys",
        json!({"metadata": {"name": "keys", "namespace": "default"},
            "data": {"PASSWORD": "c2VjcmV0", "RAW": "/w=="}}),
    );
    put(
        "core/nodes//kitchen",
        json!({"metadata": {"name": "kitchen"},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}}),
    );
    put(
        "core/services/default/kubernetes",
        json!({"metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.43.0.1", "ports": [{"port": 443}]}}),
    );
    view
}

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    spec["nodeName"] = json!("kitchen");
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1", "labels": {"app": "web"}},
        "spec": spec,
    }))
    .expect("a pod")
}

fn facts() -> Facts {
    Facts { pod_ips: vec!["10.42.0.7".to_owned()], host_ips: vec!["192.0.2.1".to_owned()] }
}

fn planned(container: Value) -> Result<ContainerPlan, Error> {
    let mut container = container;
    container["name"] = json!("c");
    plan(&view(), &pod(json!({"containers": [container]})), "c", &facts())
}

/// One variable `X` made this way has this value; `Err` is kubelet's message.
fn check_env(variable: Value, expect: Result<&str, &str>) {
    let mut variable = variable;
    variable["name"] = json!("X");
    let got = planned(json!({
        "env": [{"name": "FIRST", "value": "one"}, variable],
        "resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "64Mi"}},
    }));
    let value = got.map(|plan| {
        plan.env.into_iter().find(|(name, _)| name == "X").map_or(String::new(), |(_, value)| value)
    });
    assert_eq!(value.map_err(|error| error.to_string()), expect.map(str::to_owned).map_err(str::to_owned));
}

#[test]
fn variables_come_from_values_and_references() {
    check_env(json!({"value": "plain"}), Ok("plain"));
    check_env(json!({"value": "$(FIRST)-$(NONE)-$$(FIRST)-$"}), Ok("one-$(NONE)-$(FIRST)-$"));
    check_env(json!({"valueFrom": {"configMapKeyRef": {"name": "settings", "key": "B"}}}), Ok("2"));
    check_env(json!({"valueFrom": {"secretKeyRef": {"name": "keys", "key": "PASSWORD"}}}), Ok("secret"));
    check_env(json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}), Ok("web"));
    check_env(json!({"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}), Ok("10.42.0.7"));
    check_env(json!({"valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}), Ok("192.0.2.1"));
    check_env(json!({"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}), Ok("kitchen"));
    check_env(json!({"valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}}), Ok("default"));
    check_env(
        json!({"valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}),
        Ok("64"),
    );
    check_env(json!({"valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}}), Ok("1"));
    check_env(
        json!({"valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}}),
        Ok("250"),
    );
    check_env(json!({"valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}), Ok("4"));
}

#[test]
fn a_missing_reference_is_an_error_in_kubelet_s_words_unless_it_is_optional() {
    let config_map = |name: &str, key: &str, optional: bool| {
        let reference = json!({"name": name, "key": key, "optional": optional});
        json!({"valueFrom": {"configMapKeyRef": reference}})
    };
    check_env(config_map("none", "A", false), Err("configmap \"none\" not found"));
    check_env(config_map("settings", "Z", false), Err("couldn't find key Z in ConfigMap default/settings"));
    check_env(config_map("none", "A", true), Ok(""));
    check_env(config_map("settings", "Z", true), Ok(""));
    let secret = json!({"valueFrom": {"secretKeyRef": {"name": "none", "key": "A"}}});
    check_env(secret, Err("secret \"none\" not found"));
    let raw = json!({"valueFrom": {"secretKeyRef": {"name": "keys", "key": "RAW"}}});
    check_env(
        raw,
        Err("the value of key RAW in secret keys is not UTF-8; mount the secret as a volume instead"),
    );
    let field = json!({"valueFrom": {"fieldRef": {"fieldPath": "spec.nonsense"}}});
    check_env(field, Err("fieldPath \"spec.nonsense\" not supported"));
}

#[test]
fn whole_maps_become_variables_and_single_ones_override_them() {
    let plan = planned(json!({
        "envFrom": [{"prefix": "S_", "configMapRef": {"name": "settings"}}],
        "env": [{"name": "S_A", "value": "mine"}],
    }))
    .expect("all is there");
    let value =
        |name: &str| plan.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!((value("S_A"), value("S_B")), (Some("mine"), Some("2")));
    assert_eq!(value("KUBERNETES_SERVICE_HOST"), Some("10.43.0.1"));
    assert_eq!(plan.env.iter().filter(|(name, _)| name == "S_A").count(), 1);
}

#[test]
fn command_and_arguments_see_the_variables() {
    let plan = planned(json!({
        "env": [{"name": "WHO", "value": "world"}], "command": ["echo"], "args": ["hello $(WHO)"],
    }))
    .expect("all is there");
    assert_eq!(plan.command, Some(vec!["echo".to_owned()]));
    assert_eq!(plan.args, Some(vec!["hello world".to_owned()]));
}

#[test]
fn requests_and_limits_become_cgroup_numbers() {
    let plan = planned(json!({"resources": {
        "requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1500m", "memory": "2Gi"},
    }}))
    .expect("all is there");
    assert_eq!(plan.limits.cpu_shares, 512);
    assert_eq!(plan.limits.cpu_weight, 20);
    assert_eq!(plan.limits.cpu_quota_us, Some(150_000));
    assert_eq!(plan.limits.memory_bytes_max, Some(2 << 30));
    // An eighth of the machine's memory is asked for.
    assert_eq!(plan.limits.oom_score_adj, 875);
    let nothing = planned(json!({})).expect("all is there").limits;
    assert_eq!((nothing.cpu_shares, nothing.cpu_weight, nothing.cpu_quota_us), (2, 1, None));
    assert_eq!((nothing.memory_bytes_max, nothing.oom_score_adj), (None, 1000));
}

#[test]
fn the_class_follows_from_requests_and_limits() {
    fn check(resources: Value, expect: &str) {
        let pod = pod(json!({"containers": [{"name": "c", "resources": resources}]}));
        assert_eq!(sandbox(&pod).qos_class.name(), expect);
    }
    check(json!({}), "BestEffort");
    check(json!({"requests": {"cpu": "1"}}), "Burstable");
    check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
    check(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}}), "Guaranteed");
    check(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable");
}

#[test]
fn a_pod_is_limited_as_a_whole_only_if_every_container_is() {
    let limited = json!({"name": "a", "resources": {"limits": {"memory": "1Gi"}}});
    let whole = |containers: Value| limits(&pod(json!({"containers": containers}))).memory_bytes_max;
    assert_eq!(
        whole(json!([limited, {"name": "b", "resources": {"limits": {"memory": "2Gi"}}}])),
        Some(3 << 30)
    );
    assert_eq!(whole(json!([limited, {"name": "b"}])), None);
}

#[test]
fn security_is_the_container_s_word_and_else_the_pod_s() {
    let pod = pod(json!({
        "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "supplementalGroups": [5]},
        "containers": [{"name": "c", "securityContext": {
            "runAsUser": 7, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["all"]},
        }}],
    }));
    let security = plan(&view(), &pod, "c", &facts()).expect("all is there").security;
    assert_eq!((security.run_as_user, security.run_as_group), (Some(7), Some(3000)));
    assert_eq!(security.groups, [5, 2000]);
    assert!(security.read_only_root && security.no_new_privileges);
    assert_eq!(
        (security.capabilities_add, security.capabilities_drop),
        (vec!["NET_ADMIN".to_owned()], vec!["ALL".to_owned()])
    );
    assert_eq!(security.seccomp, Seccomp::RuntimeDefault);
    let root = planned(json!({"securityContext": {"runAsNonRoot": true, "runAsUser": 0}}));
    assert_eq!(root.expect_err("refused"), Error::RootForbidden("c".to_owned()));
}

fn volume(volume: Value) -> Result<VolumeSource, String> {
    let mut volume = volume;
    volume["name"] = json!("v");
    let pod = pod(json!({"containers": [{"name": "c"}], "volumes": [volume]}));
    let volumes = volumes(&view(), &pod, &facts()).map_err(|error| error.to_string())?;
    Ok(volumes.into_iter().next().expect("one volume").source)
}

/// The files of a volume: path, mode and text.
fn check_files(source: Value, expect: Result<&[(&str, u32, &str)], &str>) {
    let got = volume(source).map(|source| match source {
        VolumeSource::Files { files, .. } => files
            .into_iter()
            .map(|file| (file.path, file.mode, String::from_utf8_lossy(&file.bytes).into_owned()))
            .collect::<Vec<_>>(),
        other => panic!("no files: {other:?}"),
    });
    let expect = expect.map(|files| {
        files.iter().map(|(path, mode, text)| ((*path).to_owned(), *mode, (*text).to_owned())).collect()
    });
    assert_eq!(got, expect.map_err(str::to_owned));
}

#[test]
fn config_maps_secrets_and_fields_become_files() {
    check_files(json!({"configMap": {"name": "settings"}}), Ok(&[("A", 0o644, "1"), ("B", 0o644, "2")]));
    check_files(
        json!({"configMap": {
            "name": "settings", "defaultMode": 0o600, "items": [{"key": "B", "path": "deep/b"}],
        }}),
        Ok(&[("deep/b", 0o600, "2")]),
    );
    check_files(
        json!({"secret": {"secretName": "keys", "items": [{"key": "PASSWORD", "path": "p", "mode": 0o400}]}}),
        Ok(&[("p", 0o400, "secret")]),
    );
    check_files(
        json!({"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}),
        Ok(&[("labels", 0o644, "app=\"web\"\n")]),
    );
    check_files(
        json!({"projected": {"sources": [
            {"configMap": {"name": "settings", "items": [{"key": "A", "path": "a"}]}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        ]}}),
        Ok(&[("a", 0o644, "1"), ("name", 0o644, "web")]),
    );
    check_files(json!({"configMap": {"name": "none"}}), Err("configmap \"none\" not found"));
    check_files(json!({"configMap": {"name": "none", "optional": true}}), Ok(&[]));
    check_files(
        json!({"configMap": {"name": "settings", "items": [{"key": "A", "path": "../../etc/passwd"}]}}),
        Err("path \"../../etc/passwd\" leads out of its volume"),
    );
}

#[test]
fn directories_and_paths_of_the_machine_are_volumes() {
    let empty = |memory, size_bytes_max| Ok(VolumeSource::Empty { memory, size_bytes_max });
    assert_eq!(volume(json!({"emptyDir": {}})), empty(false, None));
    assert_eq!(
        volume(json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})),
        empty(true, Some(1 << 20))
    );
    assert_eq!(volume(json!({})), empty(false, None));
    let host = VolumeSource::Host { path: "/data".to_owned(), kind: HostPathKind::Directory };
    assert_eq!(volume(json!({"hostPath": {"path": "/data", "type": "Directory"}})), Ok(host));
    let claim = volume(json!({"persistentVolumeClaim": {"claimName": "x"}})).expect_err("refused");
    assert!(claim.contains("persistentVolumeClaim"), "{claim}");
}

/// A directory was made in the place of a key that was not there, and the key could never come.
#[test]
fn a_key_that_is_not_there_is_waited_for_and_an_optional_one_is_left_out() {
    let mounts = |source: Value, part: &str| {
        let mut volume = source;
        volume["name"] = json!("v");
        let mount = json!({"name": "v", "mountPath": "/x", "subPath": part});
        let pod = pod(json!({"containers": [{"name": "c", "volumeMounts": [mount]}], "volumes": [volume]}));
        let plan = plan(&view(), &pod, "c", &facts()).map_err(|error| error.to_string());
        plan.map(|plan| {
            plan.mounts.into_iter().map(|mount| mount.sub_path.expect("a part")).collect::<Vec<_>>()
        })
    };
    let settings = json!({"configMap": {"name": "settings"}});
    assert_eq!(mounts(settings.clone(), "A"), Ok(vec!["A".to_owned()]));
    let missing = mounts(settings, "Z").unwrap_err();
    assert!(missing.contains("subPath \"Z\" of volume \"v\"") && missing.contains("optional"), "{missing}");
    let deep = json!({"configMap": {"name": "settings", "items": [{"key": "A", "path": "deep/a"}]}});
    assert_eq!(mounts(deep.clone(), "deep"), Ok(vec!["deep".to_owned()]));
    assert_eq!(mounts(deep.clone(), "deep/a"), Ok(vec!["deep/a".to_owned()]));
    assert!(mounts(deep, "dee").is_err());
    let optional = [
        json!({"configMap": {"name": "none", "optional": true}}),
        json!({"secret": {"secretName": "none", "optional": true}}),
        json!({"projected": {"sources": [{"secret": {"name": "none", "optional": true}}]}}),
    ];
    for source in optional {
        assert_eq!(mounts(source, "Z"), Ok(vec![]));
    }
}

#[test]
fn what_a_pods_files_are_made_from_is_known() {
    let pod = pod(json!({"containers": [{"name": "c"}], "volumes": [
        {"name": "a", "configMap": {"name": "one"}}, {"name": "b", "secret": {"secretName": "two"}},
        {"name": "c", "emptyDir": {}},
        {"name": "d", "projected": {"sources": [{"configMap": {"name": "three"}}, {"secret": {"name": "four"}}]}},
    ]}));
    let keys: Vec<String> = sources(&pod).iter().map(ToString::to_string).collect();
    let expect =
        ["configmaps/default/one", "configmaps/default/three", "secrets/default/four", "secrets/default/two"];
    assert_eq!(keys, expect.map(|key| format!("core/{key}")));
}

#[test]
fn mounts_are_shallow_first_and_refuse_what_cannot_be_mounted() {
    let mounts = |mounts: Value| {
        let pod = pod(json!({
            "containers": [{"name": "c", "volumeMounts": mounts}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "keys"}}],
        }));
        plan(&view(), &pod, "c", &facts()).map(|plan| plan.mounts).map_err(|error| error.to_string())
    };
    let got = mounts(json!([{"name": "s", "mountPath": "/data/keys"}, {"name": "v", "mountPath": "/data"}]));
    let mount = |volume: &str, path: &str, read_only| Mount {
        volume: volume.to_owned(),
        path: path.to_owned(),
        read_only,
        sub_path: None,
    };
    assert_eq!(got, Ok(vec![mount("v", "/data", false), mount("s", "/data/keys", true)]));
    let missing = mounts(json!([{"name": "none", "mountPath": "/x"}]));
    assert_eq!(missing, Err("volumeMount names volume \"none\", which the pod does not have".to_owned()));
}

#[test]
fn a_part_of_a_volume_is_named_by_words_or_by_variables_and_never_leaves_it() {
    let seen = |mount: Value| {
        let mut mount = mount;
        mount["name"] = json!("v");
        mount["mountPath"] = json!("/x");
        let pod = pod(json!({
            "containers": [{"name": "c", "volumeMounts": [mount], "env": [
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "UP", "value": "../up"},
            ]}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }));
        let plan = plan(&view(), &pod, "c", &facts());
        plan.map(|plan| plan.mounts[0].sub_path.clone()).map_err(|error| error.to_string())
    };
    assert_eq!(seen(json!({})), Ok(None));
    assert_eq!(seen(json!({"subPath": "a/b"})), Ok(Some("a/b".to_owned())));
    assert_eq!(seen(json!({"subPath": "$(POD)"})), Ok(Some("$(POD)".to_owned())));
    assert_eq!(seen(json!({"subPathExpr": "logs/$(POD)"})), Ok(Some("logs/web".to_owned())));
    assert_eq!(seen(json!({"subPathExpr": "$$(POD)"})), Ok(Some("$(POD)".to_owned())));
    assert!(seen(json!({"subPathExpr": "$(NONE)"})).is_err_and(|error| error.contains("NONE")));
    assert!(seen(json!({"subPathExpr": "$(UP)"})).is_err_and(|error| error.contains("leads out")));
}

#[test]
fn what_would_be_passed_over_in_silence_is_refused_by_name() {
    let refusal = |spec: Value, container: Value| {
        let mut container = container;
        container["name"] = json!("c");
        let mut spec = spec;
        spec["containers"] = json!([container]);
        plan(&view(), &pod(spec), "c", &facts()).map(drop).map_err(|error| error.to_string())
    };
    let local = json!({"type": "Localhost", "localhostProfile": "p.json"});
    for (spec, container, word) in [
        (json!({"hostPID": true}), json!({}), "hostPID"),
        (json!({"hostIPC": true}), json!({}), "hostIPC"),
        (json!({"shareProcessNamespace": true}), json!({}), "shareProcessNamespace"),
        (json!({"hostUsers": false}), json!({}), "hostUsers"),
        (json!({"runtimeClassName": "gvisor"}), json!({}), "runtimeClassName"),
        (json!({"securityContext": {"seccompProfile": local}}), json!({}), "seccompProfile"),
        (json!({}), json!({"securityContext": {"appArmorProfile": local}}), "appArmorProfile"),
        (json!({}), json!({"ports": [{"containerPort": 80, "hostPort": 80}]}), "hostPort: 80"),
        (json!({}), json!({"volumeDevices": [{"name": "d", "devicePath": "/dev/d"}]}), "volumeDevices"),
    ] {
        let refused = refusal(spec, container).expect_err(word);
        assert!(refused.starts_with(word) && refused.contains("; "), "{refused}");
    }
    let usual = json!({"hostNetwork": true, "hostPID": false, "hostUsers": true,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}});
    assert_eq!(refusal(usual, json!({"ports": [{"containerPort": 80, "hostPort": 80}]})), Ok(()));
}

#[test]
fn the_host_name_is_the_pod_s_name_unless_it_says_otherwise() {
    assert_eq!(sandbox(&pod(json!({"containers": []}))).hostname, "web");
    assert_eq!(sandbox(&pod(json!({"containers": [], "hostname": "other"}))).hostname, "other");
}

#[test]
fn a_pod_finds_others_as_its_node_does_and_as_it_says_itself() {
    let dns = |spec: Value| {
        let mut spec = spec;
        spec["containers"] = json!([]);
        sandbox(&pod(spec)).dns
    };
    assert_eq!(dns(json!({})), Dns::default());
    let config = json!({"nameservers": ["192.0.2.53"], "searches": ["lan"],
        "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
    let told = dns(json!({"dnsPolicy": "None", "dnsConfig": config}));
    assert!(told.only);
    assert_eq!(told.nameservers, ["192.0.2.53"]);
    assert_eq!(
        (told.searches, told.options),
        (vec!["lan".to_owned()], vec!["ndots:2".into(), "edns0".into()])
    );
    assert!(!dns(json!({"dnsPolicy": "Default", "dnsConfig": config})).only);
}

#[test]
fn all_secrets_that_a_pod_takes_are_named_once() {
    let mut view = view();
    let account = json!({"metadata": {"name": "default", "namespace": "default"}, "imagePullSecrets": [{"name": "of-account"}]});
    view.apply("core/serviceaccounts/default/default", Some(account.to_string().as_bytes()), 2);
    let main = json!({
        "name": "c",
        "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "B"}}}],
        "envFrom": [{"secretRef": {"name": "all"}}, {"configMapRef": {"name": "settings"}}],
    });
    let first = json!({"name": "i", "envFrom": [{"secretRef": {"name": "early"}}]});
    let volumes = json!([
        {"name": "a", "secret": {"secretName": "files"}}, {"name": "b", "secret": {"secretName": "keys"}},
        {"name": "c", "projected": {"sources": [{"secret": {"name": "part"}}, {"configMap": {"name": "settings"}}]}},
    ]);
    let mut spec = json!({"containers": [main], "initContainers": [first], "volumes": volumes});
    let names = |view: &View, spec: &Value| secrets(view, &pod(spec.clone())).into_iter().collect::<Vec<_>>();
    assert_eq!(names(&view, &spec), ["all", "early", "files", "keys", "of-account", "part"]);
    spec["imagePullSecrets"] = json!([{"name": "own"}]);
    assert_eq!(names(&view, &spec), ["all", "early", "files", "keys", "own", "part"]);
}
