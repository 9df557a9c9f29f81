//! Endpoints of Services, in both forms.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{EndpointPort, Endpoints};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::KindRules;
use super::pod_defaults::set;
use super::pod_spec::one_of;
use crate::field::{Errors, Path};
use crate::names;

/// Upstream's bounds of one slice.
const ENDPOINTS_MAX: usize = 1_000;
const PORTS_MAX: usize = 20_000;
const ADDRESSES_MAX: usize = 100;

const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];

impl KindRules for EndpointSlice {
    fn default(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            set(&mut port.protocol, "TCP");
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let types = &["IPv4", "IPv6", "FQDN"];
        if self.address_type.is_empty() {
            errors.required(&Path::new("addressType"), "");
        } else {
            one_of(Some(&self.address_type), types, &Path::new("addressType"), errors);
        }
        let endpoints = self.endpoints.as_deref().unwrap_or_default();
        if endpoints.len() > ENDPOINTS_MAX {
            errors.too_many(&Path::new("endpoints"), endpoints.len(), ENDPOINTS_MAX);
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            let path = Path::new("endpoints").index(index).child("addresses");
            match endpoint.addresses.len() {
                0 => errors.required(&path, "must contain at least 1 address"),
                many if many > ADDRESSES_MAX => errors.too_many(&path, many, ADDRESSES_MAX),
                _ => {}
            }
            for (index, address) in endpoint.addresses.iter().enumerate() {
                let fits = match (self.address_type.as_str(), address.parse::<IpAddr>()) {
                    ("IPv4", found) => found.is_ok_and(|found| found.is_ipv4()),
                    ("IPv6", found) => found.is_ok_and(|found| found.is_ipv6()),
                    _ => names::subdomain(address).is_ok(),
                };
                if !fits {
                    let why = format!("must be a valid address of type {}", self.address_type);
                    errors.invalid(&path.index(index), address, why);
                }
            }
        }
        let ports = self.ports.as_deref().unwrap_or_default();
        if ports.len() > PORTS_MAX {
            errors.too_many(&Path::new("ports"), ports.len(), PORTS_MAX);
        }
        for (index, port) in ports.iter().enumerate() {
            let path = Path::new("ports").index(index);
            one_of(port.protocol.as_deref(), PROTOCOLS, &path.child("protocol"), errors);
            number(port.port, &path.child("port"), errors);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        if self.address_type != old.address_type {
            errors.invalid(&Path::new("addressType"), &self.address_type, "field is immutable");
        }
    }
}

impl KindRules for Endpoints {
    fn default(&mut self) {
        for port in self.subsets.iter_mut().flatten().flat_map(|subset| subset.ports.iter_mut().flatten()) {
            set(&mut port.protocol, "TCP");
        }
    }

    fn validate(&self, errors: &mut Errors) {
        for (index, subset) in self.subsets.iter().flatten().enumerate() {
            let path = Path::new("subsets").index(index);
            for (field, addresses) in
                [("addresses", &subset.addresses), ("notReadyAddresses", &subset.not_ready_addresses)]
            {
                for (index, address) in addresses.iter().flatten().enumerate() {
                    if address.ip.parse::<IpAddr>().is_err() {
                        let path = path.child(field).index(index).child("ip");
                        errors.invalid(&path, &address.ip, "must be a valid IP address");
                    }
                }
            }
            for (index, port) in subset.ports.iter().flatten().enumerate() {
                let EndpointPort { port, protocol, .. } = port;
                let path = path.child("ports").index(index);
                one_of(protocol.as_deref(), PROTOCOLS, &path.child("protocol"), errors);
                number(Some(*port), &path.child("port"), errors);
            }
        }
    }
}

fn number(port: Option<i32>, path: &Path, errors: &mut Errors) {
    if let Some(port) = port.filter(|port| !(1..=65_535).contains(port)) {
        errors.invalid(path, port, "must be between 1 and 65535, inclusive");
    }
}
