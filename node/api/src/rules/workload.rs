//! Deployments and ReplicaSets.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetStatus, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{KindRules, metadata, pod_defaults, pod_spec, warnings};
use crate::field::{Errors, Path};
use crate::selector::Selector;

const ROLLING: &str = "RollingUpdate";
const QUARTER: &str = "25%";

impl KindRules for Deployment {
    fn default(&mut self) {
        let spec = &mut self.spec;
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        let strategy = spec.strategy.get_or_insert_default();
        pod_defaults::set(&mut strategy.type_, ROLLING);
        if strategy.type_.as_deref() == Some(ROLLING) {
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert_with(|| IntOrString::String(QUARTER.into()));
            rolling.max_surge.get_or_insert_with(|| IntOrString::String(QUARTER.into()));
        }
        pod_defaults::spec(spec.template.spec.get_or_insert_default());
    }

    fn warnings(&self) -> Vec<String> {
        of_template(Some(&self.spec.template))
    }

    fn begin(&mut self) {
        self.status = Some(DeploymentStatus::default());
    }

    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = &self.spec;
        at_least_zero(
            &[
                ("replicas", spec.replicas),
                ("minReadySeconds", spec.min_ready_seconds),
                ("revisionHistoryLimit", spec.revision_history_limit),
                ("progressDeadlineSeconds", spec.progress_deadline_seconds),
            ],
            &path,
            errors,
        );
        let deadline = spec.progress_deadline_seconds.unwrap_or(600);
        if deadline <= spec.min_ready_seconds.unwrap_or(0) {
            let why = "must be greater than minReadySeconds";
            errors.invalid(&path.child("progressDeadlineSeconds"), deadline, why);
        }
        strategy(spec, &path.child("strategy"), errors);
        selector(&spec.selector, &spec.template, &path, errors);
        template(&spec.template, &path.child("template"), errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        same_selector(&self.spec.selector, &old.spec.selector, errors);
    }
}

impl KindRules for ReplicaSet {
    fn default(&mut self) {
        let spec = &mut self.spec;
        spec.replicas.get_or_insert(1);
        if let Some(template) = &mut spec.template {
            pod_defaults::spec(template.spec.get_or_insert_default());
        }
    }

    fn warnings(&self) -> Vec<String> {
        of_template(self.spec.template.as_ref())
    }

    fn begin(&mut self) {
        self.status = Some(ReplicaSetStatus::default());
    }

    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = &self.spec;
        at_least_zero(
            &[("replicas", spec.replicas), ("minReadySeconds", spec.min_ready_seconds)],
            &path,
            errors,
        );
        let Some(own) = &spec.template else { return errors.required(&path.child("template"), "") };
        selector(&spec.selector, own, &path, errors);
        template(own, &path.child("template"), errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        same_selector(&self.spec.selector, &old.spec.selector, errors);
    }
}

fn of_template(template: Option<&PodTemplateSpec>) -> Vec<String> {
    let spec = template.and_then(|template| template.spec.as_ref());
    let path = Path::new("spec").child("template").child("spec");
    spec.map_or_else(Vec::new, |spec| warnings::of_pod(spec, &path))
}

fn at_least_zero(fields: &[(&str, Option<i32>)], path: &Path, errors: &mut Errors) {
    for (field, value) in fields {
        if let Some(value) = value.filter(|value| *value < 0) {
            errors.invalid(&path.child(field), value, "must be greater than or equal to 0");
        }
    }
}

fn strategy(spec: &DeploymentSpec, path: &Path, errors: &mut Errors) {
    let Some(strategy) = &spec.strategy else { return };
    match strategy.type_.as_deref() {
        Some("Recreate") => {
            if strategy.rolling_update.is_some() {
                let why = "may not be specified when strategy `type` is 'Recreate'";
                errors.forbidden(&path.child("rollingUpdate"), why);
            }
        }
        Some(ROLLING) => match &strategy.rolling_update {
            Some(rolling) => rolling_update(rolling, &path.child("rollingUpdate"), errors),
            None => {
                errors.required(&path.child("rollingUpdate"), "this should be defaulted and never be nil")
            }
        },
        other => errors.not_supported(&path.child("type"), other.unwrap_or_default(), &["Recreate", ROLLING]),
    }
}

fn rolling_update(rolling: &RollingUpdateDeployment, path: &Path, errors: &mut Errors) {
    let mut amounts = [None, None];
    let fields = [("maxUnavailable", &rolling.max_unavailable), ("maxSurge", &rolling.max_surge)];
    for ((field, value), amount) in fields.into_iter().zip(&mut amounts) {
        let path = path.child(field);
        match value {
            None => {}
            Some(IntOrString::Int(count)) if *count < 0 => {
                errors.invalid(&path, count, "must be greater than or equal to 0");
            }
            Some(IntOrString::Int(count)) => *amount = Some(*count),
            Some(IntOrString::String(text)) => match percent(text) {
                None => errors.invalid(&path, text, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"),
                Some(percent) if percent > 100 && field == "maxUnavailable" => {
                    errors.invalid(&path, text, "must not be greater than 100%");
                }
                Some(percent) => *amount = Some(percent),
            },
        }
    }
    if amounts == [Some(0), Some(0)] {
        let why = "may not be 0 when `maxSurge` is 0";
        errors.invalid(&path.child("maxUnavailable"), 0, why);
    }
}

fn percent(text: &str) -> Option<i32> {
    let digits = text.strip_suffix('%')?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn selector(selector: &LabelSelector, template: &PodTemplateSpec, path: &Path, errors: &mut Errors) {
    let own_path = path.child("selector");
    let asks_nothing = selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty);
    if asks_nothing {
        return errors.required(&own_path, "");
    }
    pod_spec::label_selector(Some(selector), &own_path, errors);
    let Ok(parsed) = Selector::from_object(selector) else { return };
    let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    if !parsed.matches(labels) {
        let path = path.child("template").child("metadata").child("labels");
        errors.invalid(
            &path,
            labels.cloned().unwrap_or_default(),
            "`selector` does not match template `labels`",
        );
    }
}

fn template(template: &PodTemplateSpec, path: &Path, errors: &mut Errors) {
    let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    metadata::labels(labels, &path.child("metadata").child("labels"), errors);
    let path = path.child("spec");
    let Some(spec) = &template.spec else { return errors.required(&path, "") };
    pod_spec::validate(spec, &path, errors);
    // Only what is always running again can be counted as a replica.
    if let Some(policy @ ("OnFailure" | "Never")) = spec.restart_policy.as_deref() {
        errors.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if spec.active_deadline_seconds.is_some() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.forbidden(&path.child("activeDeadlineSeconds"), why);
    }
}

fn same_selector(new: &LabelSelector, old: &LabelSelector, errors: &mut Errors) {
    if new != old {
        let shown = Selector::from_object(new).unwrap_or_default();
        errors.invalid(&Path::new("spec").child("selector"), shown.to_string(), "field is immutable");
    }
}
