//! Pods: what a new one begins with, and what may change in one.

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus, Toleration};

use super::{KindRules, pod_defaults, pod_spec, warnings};
use crate::field::{Errors, Path};
use crate::pod::qos_class;
use crate::scheduling::{NOT_READY, UNREACHABLE};

/// How long a pod stays on a node that is lost, if it does not say. Upstream: 300 s. Here a lost node is
/// a verdict with care behind it, so its pods are replaced at once.
const TOLERATION_SECONDS: i64 = 0;

const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

impl KindRules for Pod {
    fn default(&mut self) {
        let spec = self.spec.get_or_insert_default();
        pod_defaults::spec(spec);
        spec.enable_service_links.get_or_insert(true);
    }

    /// What upstream's admission adds: account, priority, tolerations. Templates do not have these.
    fn begin(&mut self) {
        let spec = self.spec.get_or_insert_default();
        pod_defaults::set(&mut spec.service_account_name, "default");
        spec.service_account.clone_from(&spec.service_account_name);
        spec.priority.get_or_insert(0);
        pod_defaults::set(&mut spec.preemption_policy, "PreemptLowerPriority");
        tolerate_lost_nodes(spec);
        self.status = Some(PodStatus {
            phase: Some("Pending".into()),
            qos_class: Some(qos_class(spec).into()),
            ..PodStatus::default()
        });
    }

    fn warnings(&self) -> Vec<String> {
        self.spec.as_ref().map_or_else(Vec::new, |spec| warnings::of_pod(spec, &Path::new("spec")))
    }

    fn begin_update(&mut self, old: &Self) {
        let Some(old) = &old.spec else { return };
        let spec = self.spec.get_or_insert_default();
        spec.priority = spec.priority.or(old.priority);
        if spec.preemption_policy.is_none() {
            spec.preemption_policy.clone_from(&old.preemption_policy);
        }
        tolerate_lost_nodes(spec);
    }

    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("spec");
        match &self.spec {
            Some(spec) => pod_spec::validate(spec, &path, errors),
            None => errors.required(&path, ""),
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let (Some(new), Some(old)) = (&self.spec, &old.spec) else { return };
        let path = Path::new("spec");
        if new.containers.len() != old.containers.len() {
            errors.forbidden(&path.child("containers"), "pod updates may not add or remove containers");
            return;
        }
        let lost = old.tolerations.iter().flatten().any(|toleration| {
            !new.tolerations.iter().flatten().any(|kept| same_but_for_seconds(kept, toleration))
        });
        if lost {
            let why = "existing toleration can not be modified except its tolerationSeconds";
            errors.forbidden(&path.child("tolerations"), why);
        }
        if let Some(deadline) = old.active_deadline_seconds
            && new.active_deadline_seconds.is_none_or(|new| new > deadline)
        {
            let why = "must be less than or equal to previous value";
            errors.invalid(&path.child("activeDeadlineSeconds"), new.active_deadline_seconds, why);
        }
        if fixed(new, old) != *old {
            errors.forbidden(&path, CHANGEABLE);
        }
    }
}

/// The new spec with all that may change set back.
fn fixed(new: &PodSpec, old: &PodSpec) -> PodSpec {
    let mut fixed = new.clone();
    fixed.tolerations.clone_from(&old.tolerations);
    fixed.active_deadline_seconds = old.active_deadline_seconds;
    if old.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0)
        && new.termination_grace_period_seconds == Some(1)
    {
        fixed.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    let pairs = fixed.containers.iter_mut().zip(&old.containers);
    let init_pairs = fixed.init_containers.iter_mut().flatten().zip(old.init_containers.iter().flatten());
    for (new, old) in pairs.chain(init_pairs) {
        new.image.clone_from(&old.image);
    }
    // A gate may be taken away, never added.
    let gates = |spec: &PodSpec| spec.scheduling_gates.clone().unwrap_or_default();
    if gates(new).iter().all(|gate| gates(old).contains(gate)) {
        fixed.scheduling_gates.clone_from(&old.scheduling_gates);
    }
    fixed
}

fn same_but_for_seconds(left: &Toleration, right: &Toleration) -> bool {
    let plain = |toleration: &Toleration| Toleration { toleration_seconds: None, ..toleration.clone() };
    plain(left) == plain(right)
}

/// Without a word of its own on a lost node a pod gets ours.
fn tolerate_lost_nodes(spec: &mut PodSpec) {
    for taint in [NOT_READY, UNREACHABLE] {
        tolerate(spec, taint);
    }
}

fn tolerate(spec: &mut PodSpec, taint: &str) {
    let says = |toleration: &Toleration| {
        toleration.key.as_deref().is_none_or(|key| key.is_empty() || key == taint)
            && toleration.effect.as_deref().is_none_or(|effect| effect.is_empty() || effect == "NoExecute")
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.iter().any(says) {
        tolerations.push(Toleration {
            key: Some(taint.into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: Some(TOLERATION_SECONDS),
            value: None,
        });
    }
}
