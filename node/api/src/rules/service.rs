//! Services. Cluster addresses and node ports are unique in the cluster, so whoever writes the objects gives them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerStatus, Service, ServicePort, ServiceSpec, ServiceStatus,
    SessionAffinityConfig,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod_defaults::set;
use super::pod_spec::one_of;
use super::{KindRules, container, metadata};
use crate::field::{Errors, Path};
use crate::names;

/// What `clusterIP` says of a Service that has none on purpose.
const HEADLESS: &str = "None";

/// Ports that a Service may take on every node.
const NODE_PORTS: RangeInclusive<i32> = 30_000..=32_767;

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

impl KindRules for Service {
    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set(&mut spec.session_affinity, "None");
        set(&mut spec.type_, "ClusterIP");
        if spec.session_affinity.as_deref() == Some("ClientIP") {
            let config = spec.session_affinity_config.get_or_insert_with(SessionAffinityConfig::default);
            let client = config.client_ip.get_or_insert_with(ClientIPConfig::default);
            client.timeout_seconds.get_or_insert(10_800);
        }
        for port in spec.ports.iter_mut().flatten() {
            set(&mut port.protocol, "TCP");
            match &port.target_port {
                None | Some(IntOrString::Int(0)) => port.target_port = Some(IntOrString::Int(port.port)),
                Some(IntOrString::String(name)) if name.is_empty() => {
                    port.target_port = Some(IntOrString::Int(port.port));
                }
                Some(_) => {}
            }
        }
        let type_ = spec.type_.as_deref().unwrap_or_default();
        if type_ == "ExternalName" {
            return;
        }
        if matches!(type_, "NodePort" | "LoadBalancer") {
            set(&mut spec.external_traffic_policy, "Cluster");
        }
        if type_ == "LoadBalancer" {
            spec.allocate_load_balancer_node_ports.get_or_insert(true);
        }
        set(&mut spec.internal_traffic_policy, "Cluster");
        set(&mut spec.ip_family_policy, "SingleStack");
        spec.ip_families.get_or_insert_with(|| vec!["IPv4".into()]);
        if let Some(ip) = spec.cluster_ip.clone().filter(|ip| !ip.is_empty()) {
            spec.cluster_ips.get_or_insert_with(|| vec![ip]);
        }
    }

    fn begin(&mut self) {
        self.status =
            Some(ServiceStatus { load_balancer: Some(LoadBalancerStatus::default()), conditions: None });
    }

    /// What is kept, and of which nothing comes of yet.
    fn warnings(&self) -> Vec<String> {
        let Some(spec) = &self.spec else { return Vec::new() };
        let type_ = spec.type_.as_deref().unwrap_or_default();
        let mut warnings = Vec::new();
        if matches!(type_, "NodePort" | "LoadBalancer") {
            let no_address = if type_ == "LoadBalancer" { ", and it gets no external address" } else { "" };
            warnings.push(format!(
                "spec.type: {type_:?} is not supported by this cluster yet: the Service is kept, but no node listens on its node ports{no_address}"
            ));
        }
        if spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()) {
            warnings.push(
                "spec.externalIPs: not supported by this cluster yet: the Service is kept, but nothing leads from there to it"
                    .into(),
            );
        }
        warnings
    }

    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else { return errors.required(&path, "") };
        one_of(spec.type_.as_deref(), TYPES, &path.child("type"), errors);
        one_of(
            spec.session_affinity.as_deref(),
            &["ClientIP", "None"],
            &path.child("sessionAffinity"),
            errors,
        );
        let policies = &["Cluster", "Local"];
        one_of(
            spec.external_traffic_policy.as_deref(),
            policies,
            &path.child("externalTrafficPolicy"),
            errors,
        );
        one_of(
            spec.internal_traffic_policy.as_deref(),
            policies,
            &path.child("internalTrafficPolicy"),
            errors,
        );
        metadata::labels(spec.selector.as_ref(), &path.child("selector"), errors);
        address(spec, &path, errors);
        ports(spec, &path.child("ports"), errors);
        for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
            if ip.parse::<IpAddr>().is_err() {
                let path = path.child("externalIPs").index(index);
                errors.invalid(&path, ip, "must be a valid IP address");
            }
        }
    }

    /// What belongs to the type of before goes with it, unless the user says something else of it.
    fn begin_update(&mut self, old: &Self) {
        let (Some(new), Some(old)) = (&mut self.spec, &old.spec) else { return };
        let is =
            |spec: &ServiceSpec, types: &[&str]| types.contains(&spec.type_.as_deref().unwrap_or_default());
        let on_nodes = ["NodePort", "LoadBalancer"];
        if is(old, &on_nodes) && !is(new, &on_nodes) {
            let node_ports = |spec: &ServiceSpec| {
                spec.ports.iter().flatten().map(|port| port.node_port).collect::<Vec<_>>()
            };
            if node_ports(new) == node_ports(old) {
                new.ports.iter_mut().flatten().for_each(|port| port.node_port = None);
            }
            if new.external_traffic_policy == old.external_traffic_policy {
                new.external_traffic_policy = None;
            }
            if new.health_check_node_port == old.health_check_node_port {
                new.health_check_node_port = None;
            }
        }
        if is(old, &["LoadBalancer"]) && !is(new, &["LoadBalancer"]) {
            if new.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports {
                new.allocate_load_balancer_node_ports = None;
            }
            if new.load_balancer_class == old.load_balancer_class {
                new.load_balancer_class = None;
            }
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let (Some(new), Some(old)) = (&self.spec, &old.spec) else { return };
        let external = |spec: &ServiceSpec| spec.type_.as_deref() == Some("ExternalName");
        let given = |spec: &ServiceSpec| spec.cluster_ip.clone().unwrap_or_default();
        if !external(new) && !external(old) && !given(old).is_empty() && given(new) != given(old) {
            let path = Path::new("spec").child("clusterIPs").index(0);
            errors.invalid(&path, given(new), "may not change once set");
        }
    }
}

fn address(spec: &ServiceSpec, path: &Path, errors: &mut Errors) {
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        let name = spec.external_name.as_deref().unwrap_or_default();
        if name.is_empty() {
            errors.required(&path.child("externalName"), "");
        } else if let Err(fault) = names::subdomain(name.trim_end_matches('.')) {
            errors.invalid(&path.child("externalName"), name, fault);
        }
        if !ip.is_empty() {
            errors.forbidden(&path.child("clusterIPs"), "may not be set for ExternalName services");
        }
        return;
    }
    let path = path.child("clusterIPs").index(0);
    match ip {
        "" => {}
        HEADLESS if matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer")) => {
            let why = format!(
                "may not be set to 'None' for {} services",
                spec.type_.as_deref().unwrap_or_default()
            );
            errors.invalid(&path, ip, why);
        }
        HEADLESS => {}
        ip if ip.parse::<IpAddr>().is_err() => errors.invalid(&path, ip, "must be a valid IP address"),
        _ => {}
    }
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    if all.first().is_some_and(|first| first != ip) {
        errors.invalid(&path, all, "first value must match `clusterIP`");
    }
}

fn ports(spec: &ServiceSpec, path: &Path, errors: &mut Errors) {
    let all: &[ServicePort] = spec.ports.as_deref().unwrap_or_default();
    let may_be_none =
        spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some(HEADLESS);
    if all.is_empty() && !may_be_none {
        errors.required(path, "");
    }
    let (mut names_seen, mut ports_seen, mut node_ports_seen) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in all.iter().enumerate() {
        let path = path.index(index);
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            if all.len() > 1 {
                errors.required(&path.child("name"), "");
            }
        } else if let Err(fault) = names::label(name) {
            errors.invalid(&path.child("name"), name, fault);
        } else if !names_seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        container::port_number(port.port, &path.child("port"), errors);
        let protocol = port.protocol.as_deref().unwrap_or_default();
        one_of(Some(protocol), &["SCTP", "TCP", "UDP"], &path.child("protocol"), errors);
        if let Some(target) = &port.target_port {
            container::port(target, &path.child("targetPort"), errors);
        }
        if !ports_seen.insert((protocol, port.port)) {
            errors.duplicate(&path, format!("{protocol} {}", port.port));
        }
        if let Some(number) = port.node_port.filter(|number| *number != 0) {
            let path = path.child("nodePort");
            if spec.type_.as_deref() == Some("ClusterIP") {
                errors.forbidden(&path, "may not be used when `type` is 'ClusterIP'");
            } else if !NODE_PORTS.contains(&number) {
                let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
                errors.invalid(&path, number, why);
            } else if !node_ports_seen.insert((protocol, number)) {
                errors.duplicate(&path, number);
            }
        }
    }
}
