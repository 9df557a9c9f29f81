//! Metadata, the same for every kind.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::field::{Errors, Path};
use crate::kinds::Kind;
use crate::limits::ANNOTATIONS_BYTES_MAX;
use crate::names;

/// Names, labels, annotations, finalizers and owners of an object.
pub(crate) fn validate(kind: &Kind, object: &Value, errors: &mut Errors) {
    let path = Path::new("metadata");
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else if let Err(fault) = kind.name.check(name) {
        errors.invalid(&path.child("name"), name, fault);
    }
    if kind.namespaced {
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        if namespace.is_empty() {
            errors.required(&path.child("namespace"), "");
        } else if let Err(fault) = names::label(namespace) {
            errors.invalid(&path.child("namespace"), namespace, fault);
        }
    }
    labels_of(&metadata["labels"], &path.child("labels"), errors);
    annotations(&metadata["annotations"], &path.child("annotations"), errors);
    let finalizers = metadata["finalizers"].as_array().into_iter().flatten();
    for (index, finalizer) in finalizers.enumerate() {
        let text = finalizer.as_str().unwrap_or_default();
        if let Err(fault) = names::qualified(text) {
            errors.invalid(&path.child("finalizers").index(index), text, fault);
        }
    }
    owners(&metadata["ownerReferences"], &path.child("ownerReferences"), errors);
}

/// What may not change: an object under deletion gets no new finalizers.
pub(crate) fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    if !new["metadata"]["deletionTimestamp"].is_string() {
        return;
    }
    let before = old["metadata"]["finalizers"].as_array().map_or(&[][..], Vec::as_slice);
    let after = new["metadata"]["finalizers"].as_array().map_or(&[][..], Vec::as_slice);
    if after.iter().any(|finalizer| !before.contains(finalizer)) {
        errors.forbidden(
            &Path::new("metadata").child("finalizers"),
            "no new finalizers can be added if the object is being deleted",
        );
    }
}

/// Labels of a typed template or selector.
pub(crate) fn labels(labels: Option<&BTreeMap<String, String>>, path: &Path, errors: &mut Errors) {
    for (key, value) in labels.into_iter().flatten() {
        label(key, value, path, errors);
    }
}

fn labels_of(labels: &Value, path: &Path, errors: &mut Errors) {
    for (key, value) in entries(labels) {
        label(key, value.as_str().unwrap_or_default(), path, errors);
    }
}

fn label(key: &str, value: &str, path: &Path, errors: &mut Errors) {
    if let Err(fault) = names::qualified(key) {
        errors.invalid(path, key, fault);
    }
    if let Err(fault) = names::label_value(value) {
        errors.invalid(path, value, fault);
    }
}

fn annotations(annotations: &Value, path: &Path, errors: &mut Errors) {
    let mut bytes = 0;
    for (key, value) in entries(annotations) {
        // Unlike a label's, an annotation's key may have capitals in it.
        if let Err(fault) = names::qualified(&key.to_ascii_lowercase()) {
            errors.invalid(path, key, fault);
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.too_long(path, ANNOTATIONS_BYTES_MAX);
    }
}

fn owners(owners: &Value, path: &Path, errors: &mut Errors) {
    let mut controllers = 0;
    for (index, owner) in owners.as_array().into_iter().flatten().enumerate() {
        let path = path.index(index);
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                errors.invalid(&path.child(field), "", format!("{field} must not be empty"));
            }
        }
        if owner["controller"] == true {
            controllers += 1;
        }
    }
    if controllers > 1 {
        errors.invalid(path, controllers, "Only one reference can have Controller set to true");
    }
}

fn entries(map: &Value) -> impl Iterator<Item = (&String, &Value)> {
    map.as_object().into_iter().flat_map(Map::iter)
}
