//! Giving a pod its node: the sub-resource `binding`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds;
use crate::object::{is_deleting, name};
use crate::status::Status;
use crate::time;

/// The pod bound to the node that `binding` names. A pod is bound once, ever.
///
/// * `binding`: a `v1 Binding`: `target` is a Node; labels and annotations go over to the pod.
/// * `now` stamps the condition `PodScheduled`.
///
/// A pod that is bound, or being deleted, is 409.
pub fn bind(pod: &Value, binding: &Value, now: Timestamp) -> Result<Value, Status> {
    let target = &binding["target"];
    let kind = target["kind"].as_str().unwrap_or_default();
    if !kind.is_empty() && kind != "Node" {
        return Err(Status::bad_request(format!(
            "target.kind: Unsupported value: {kind:?}: supported values: \"Node\", \"\""
        )));
    }
    let node = target["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request("target.name: Required value"));
    }
    let named = name(binding);
    if !named.is_empty() && named != name(pod) {
        return Err(Status::bad_request("metadata.name of the binding does not match the pod"));
    }
    let uid = binding["metadata"]["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && pod["metadata"]["uid"] != uid {
        return Err(conflict(pod, "the binding was made for an older pod of this name"));
    }
    if is_deleting(pod) {
        return Err(conflict(
            pod,
            &format!("pod {} is being deleted, cannot be assigned to a host", name(pod)),
        ));
    }
    if let Some(bound) = pod["spec"]["nodeName"].as_str().filter(|bound| !bound.is_empty()) {
        return Err(conflict(pod, &format!("pod {} is already assigned to node {bound:?}", name(pod))));
    }
    let mut bound = pod.clone();
    bound["spec"]["nodeName"] = json!(node);
    for field in ["labels", "annotations"] {
        if let Some(given) = binding["metadata"][field].as_object() {
            for (key, value) in given.iter().filter(|(_, value)| value.is_string()) {
                bound["metadata"][field][key] = value.clone();
            }
        }
    }
    set_scheduled(&mut bound, now);
    Ok(bound)
}

fn conflict(pod: &Value, why: &str) -> Status {
    let pods = kinds::by_kind("", "Pod").expect("pods are in the registry");
    Status::conflict(pods, name(pod), why)
}

fn set_scheduled(pod: &mut Value, now: Timestamp) {
    let scheduled =
        json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": time::rfc3339(now) });
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    match pod["status"]["conditions"].as_array_mut() {
        Some(conditions) => {
            conditions.retain(|condition| condition["type"] != "PodScheduled");
            conditions.push(scheduled);
        }
        None => pod["status"]["conditions"] = json!([scheduled]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Reason;

    fn bound_to(node: &str, pod: &Value) -> Result<Value, Status> {
        bind(pod, &json!({ "target": { "kind": "Node", "name": node } }), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_pod_is_bound_once() {
        let pod = json!({ "metadata": { "name": "web" }, "spec": {} });
        let bound = bound_to("kitchen", &pod).unwrap();
        assert_eq!(bound["spec"]["nodeName"], "kitchen");
        assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
        assert_eq!(bound_to("cellar", &bound).unwrap_err().reason(), Reason::Conflict);
    }

    #[test]
    fn a_pod_being_deleted_gets_no_node() {
        let pod =
            json!({ "metadata": { "name": "web", "deletionTimestamp": "2026-01-01T00:00:00Z" }, "spec": {} });
        assert_eq!(bound_to("kitchen", &pod).unwrap_err().reason(), Reason::Conflict);
        assert_eq!(bound_to("", &json!({})).unwrap_err().reason(), Reason::BadRequest);
    }
}
