//! How many replicas: `autoscaling/v1 Scale`, the sub-resource `scale` of Deployments and ReplicaSets.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use crate::field::{Errors, Path};
use crate::kinds::Kind;
use crate::object::name;
use crate::selector::Selector;
use crate::status::Status;

/// The Scale of an object. Its metadata is the object's: a client may send the version back.
pub fn of(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let selector: Option<LabelSelector> = serde_json::from_value(object["spec"]["selector"].clone()).ok();
    let selector = selector.and_then(|selector| Selector::from_object(&selector).ok()).unwrap_or_default();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": { "replicas": object["spec"]["replicas"].as_i64().unwrap_or(0) },
        "status": { "replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector.to_string() },
    })
}

/// The object with as many replicas as the Scale asks for. The rest of the Scale changes nothing;
/// [`prepare_update`](crate::object::prepare_update) follows.
pub fn set(kind: &Kind, object: &Value, scale: &Value) -> Result<Value, Status> {
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        value => value
            .as_i64()
            .filter(|replicas| i32::try_from(*replicas).is_ok())
            .ok_or_else(|| Status::bad_request("spec.replicas must be a number of 32 bits"))?,
    };
    if replicas < 0 {
        let mut errors = Errors::default();
        let path = Path::new("spec").child("replicas");
        errors.invalid(&path, replicas, "must be greater than or equal to 0");
        return Err(Status::invalid(kind, name(object), &errors.into_inner()));
    }
    let mut scaled = object.clone();
    scaled["spec"]["replicas"] = json!(replicas);
    Ok(scaled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn a_scale_shows_and_sets_the_replicas() {
        let kind = kinds::by_kind("apps", "Deployment").unwrap();
        let object = json!({
            "metadata": { "name": "web", "resourceVersion": "7", "labels": { "a": "b" } },
            "spec": { "replicas": 3, "selector": { "matchLabels": { "app": "web" } } }, "status": { "replicas": 2 },
        });
        let mut scale = of(&object);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"], json!({ "replicas": 2, "selector": "app=web" }));
        assert_eq!(scale["metadata"]["resourceVersion"], "7");
        scale["spec"]["replicas"] = json!(5);
        assert_eq!(set(kind, &object, &scale).unwrap()["spec"]["replicas"], 5);
        for (replicas, code) in [(json!(-1), 422), (json!("x"), 400), (json!(1_i64 << 40), 400)] {
            scale["spec"]["replicas"] = replicas;
            assert_eq!(set(kind, &object, &scale).unwrap_err().code(), code);
        }
    }
}
