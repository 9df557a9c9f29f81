//! Namespaces and nodes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus, Node};

use super::pod_spec::one_of;
use super::{KindRules, resources};
use crate::field::{Errors, Path};
use crate::names;

/// What keeps a namespace until its content is gone.
const FINALIZER: &str = "kubernetes";

/// By which label selectors can name a namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl KindRules for Namespace {
    fn default(&mut self) {
        if let Some(name) = &self.metadata.name {
            self.metadata.labels.get_or_insert_default().insert(NAME_LABEL.into(), name.clone());
        }
        self.spec.get_or_insert_default();
    }

    fn begin(&mut self) {
        self.spec.get_or_insert_default().finalizers = Some(vec![FINALIZER.into()]);
        self.status = Some(NamespaceStatus { phase: Some("Active".into()), conditions: None });
    }

    fn validate(&self, errors: &mut Errors) {
        let finalizers = self.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten());
        for (index, finalizer) in finalizers.enumerate() {
            if let Err(fault) = names::qualified(finalizer) {
                errors.invalid(&Path::new("spec").child("finalizers").index(index), finalizer, fault);
            }
        }
    }
}

impl KindRules for Node {
    fn default(&mut self) {
        self.spec.get_or_insert_default();
        if let Some(status) = &mut self.status {
            resources::canonical(&mut status.capacity);
            resources::canonical(&mut status.allocatable);
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let mut seen = BTreeSet::new();
        let taints = self.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        for (index, taint) in taints.enumerate() {
            let path = Path::new("spec").child("taints").index(index);
            if let Err(fault) = names::qualified(&taint.key) {
                errors.invalid(&path.child("key"), &taint.key, fault);
            }
            if let Err(fault) = names::label_value(taint.value.as_deref().unwrap_or_default()) {
                errors.invalid(&path.child("value"), &taint.value, fault);
            }
            if taint.effect.is_empty() {
                errors.required(&path.child("effect"), "");
            } else {
                let effects = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
                one_of(Some(&taint.effect), effects, &path.child("effect"), errors);
            }
            if !seen.insert((&taint.key, &taint.effect)) {
                errors.duplicate(&path, format!("{}:{}", taint.key, taint.effect));
            }
        }
        if let Some(status) = &self.status {
            let path = Path::new("status");
            for (field, amounts) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
                for (name, amount) in amounts.iter().flatten() {
                    resources::amount(amount, &path.child(field).key(name), errors);
                }
            }
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let subnet = |node: &Self| node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone());
        if subnet(old).is_some() && subnet(self) != subnet(old) {
            errors.forbidden(&Path::new("spec").child("podCIDR"), "may not change once set");
        }
    }
}
