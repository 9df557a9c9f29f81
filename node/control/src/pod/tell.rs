//! What users are told of a pod's life, in kubelet's words: many know them, and tools look for them.

use k8s_openapi::api::core::v1::Pod;

use super::unit::{Role, Unit};
use super::{Effect, Hook, ImageError, ProbeKind, StartError};
use crate::event::container_path;
use crate::meta;

pub(super) fn tale(
    part: Option<String>,
    warning: bool,
    reason: &'static str,
    message: impl Into<String>,
) -> Effect {
    Effect::Tell { part, warning, reason, message: message.into() }
}

pub(super) fn no_image(unit: &Unit, error: &ImageError) -> Vec<Effect> {
    let image = unit.spec.image.as_deref().unwrap_or_default();
    match error {
        ImageError::NeverPull => {
            let text = format!("Container image {image:?} is not present with pull policy of Never");
            vec![tale(part(unit), true, "ErrImageNeverPull", text)]
        }
        ImageError::InvalidName(_) => {
            vec![tale(part(unit), true, "InspectFailed", format!("Failed to apply image {image:?}: {error}"))]
        }
        ImageError::Pull(_) => vec![
            tale(part(unit), true, "Failed", format!("Failed to pull image {image:?}: {error}")),
            tale(part(unit), true, "Failed", "Error: ErrImagePull"),
            tale(part(unit), false, "BackOff", format!("Back-off pulling image {image:?}")),
        ],
    }
}

pub(super) fn started(unit: &Unit) -> [Effect; 2] {
    let name = unit.name();
    [
        tale(part(unit), false, "Created", format!("Created container: {name}")),
        tale(part(unit), false, "Started", format!("Started container {name}")),
    ]
}

pub(super) fn not_started(unit: &Unit, error: &StartError) -> Effect {
    // Only what a volume waits for keeps a container at this reason.
    match error.reason.as_str() {
        "ContainerCreating" => tale(None, true, "FailedMount", error.message.clone()),
        _ => tale(part(unit), true, "Failed", format!("Error: {}", error.message)),
    }
}

pub(super) fn waits_to_restart(unit: &Unit, pod: &Pod) -> Effect {
    let (name, metadata) = (unit.name(), &pod.metadata);
    let (namespace, pod, uid) = (meta::namespace(metadata), meta::name(metadata), meta::uid(metadata));
    let text = format!("Back-off restarting failed container {name} in pod {pod}_{namespace}({uid})");
    tale(part(unit), true, "BackOff", text)
}

pub(super) fn probe_failed(unit: &Unit, kind: ProbeKind, reason: &str) -> Effect {
    tale(part(unit), true, "Unhealthy", format!("{kind:?} probe failed: {reason}"))
}

pub(super) fn killed_by_probe(unit: &Unit, kind: ProbeKind) -> Effect {
    let kind = format!("{kind:?}").to_lowercase();
    let text = format!("Container {} failed {kind} probe, will be restarted", unit.name());
    tale(part(unit), false, "Killing", text)
}

pub(super) fn hook_failed(unit: &Unit, hook: Hook, error: &str) -> Effect {
    let reason = match hook {
        Hook::PostStart => "FailedPostStartHook",
        Hook::PreStop => "FailedPreStopHook",
    };
    tale(part(unit), true, reason, format!("{hook:?}Hook failed: {error}"))
}

pub(super) fn stops(unit: &Unit) -> Effect {
    tale(part(unit), false, "Killing", format!("Stopping container {}", unit.name()))
}

fn part(unit: &Unit) -> Option<String> {
    Some(container_path(unit.role != Role::Main, unit.name()))
}
