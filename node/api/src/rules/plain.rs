//! Kinds with few rules: events, leases, service accounts; and those that are never kept.

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{SelfSubjectAccessReview, SelfSubjectRulesReview};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, ServiceAccount};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::KindRules;
use crate::field::{Errors, Path};
use crate::names;

impl KindRules for Event {
    fn validate(&self, errors: &mut Errors) {
        let of_event = self.metadata.namespace.as_deref().unwrap_or_default();
        let of_object = self.involved_object.namespace.as_deref().unwrap_or_default();
        // What happened to an object without namespace is told in `default`.
        let expected = if of_object.is_empty() { "default" } else { of_object };
        if of_event != expected {
            let path = Path::new("involvedObject").child("namespace");
            errors.invalid(&path, of_object, "does not match event.namespace");
        }
    }
}

impl KindRules for Lease {
    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else { return };
        if let Some(seconds) = spec.lease_duration_seconds.filter(|seconds| *seconds <= 0) {
            errors.invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        if let Some(count) = spec.lease_transitions.filter(|count| *count < 0) {
            errors.invalid(&path.child("leaseTransitions"), count, "must be greater than or equal to 0");
        }
        if spec.holder_identity.as_deref() == Some("") && spec.preferred_holder.is_some() {
            errors.invalid(&path.child("holderIdentity"), "", "must not be empty");
        }
    }
}

impl KindRules for ServiceAccount {
    fn validate(&self, errors: &mut Errors) {
        for (index, reference) in self.secrets.iter().flatten().enumerate() {
            let name = reference.name.as_deref().unwrap_or_default();
            if let Err(fault) = names::subdomain(name) {
                errors.invalid(&Path::new("secrets").index(index).child("name"), name, fault);
            }
        }
    }
}

/// The definition of a custom kind. There is none, so nothing needs to know its fields.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Definition(BTreeMap<String, Value>);

impl KindRules for Definition {}

impl KindRules for SelfSubjectReview {}

impl KindRules for SelfSubjectAccessReview {}

impl KindRules for SelfSubjectRulesReview {}

impl KindRules for Scale {}
