//! A pod's volumes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{KeyToPath, Volume};

use super::resources;
use crate::field::{Errors, Path};
use crate::names;

/// Checks all volumes, and says their names.
pub(super) fn validate<'v>(volumes: &'v [Volume], path: &Path, errors: &mut Errors) -> BTreeSet<&'v str> {
    let mut seen = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        if volume.name.is_empty() {
            errors.required(&path.child("name"), "");
        } else if let Err(fault) = names::label(&volume.name) {
            errors.invalid(&path.child("name"), &volume.name, fault);
        } else if !seen.insert(volume.name.as_str()) {
            errors.duplicate(&path.child("name"), &volume.name);
        }
        source(volume, &path, errors);
    }
    seen
}

fn source(volume: &Volume, path: &Path, errors: &mut Errors) {
    // Counted in its JSON, so that a source this file does not know is counted too.
    let sources = serde_json::to_value(volume)
        .ok()
        .and_then(|value| {
            value.as_object().map(|fields| fields.keys().filter(|field| *field != "name").count())
        })
        .unwrap_or(0);
    match sources {
        0 => errors.required(path, "must specify a volume type"),
        1 => {}
        _ => errors.forbidden(path, "may not specify more than 1 volume type"),
    }
    if let Some(source) = &volume.empty_dir
        && let Some(limit) = &source.size_limit
    {
        resources::amount(limit, &path.child("emptyDir").child("sizeLimit"), errors);
    }
    if let Some(source) = &volume.config_map {
        let path = path.child("configMap");
        if source.name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        mode(source.default_mode, &path.child("defaultMode"), errors);
        items(source.items.as_deref().unwrap_or_default(), &path.child("items"), errors);
    }
    if let Some(source) = &volume.secret {
        let path = path.child("secret");
        if source.secret_name.as_deref().unwrap_or_default().is_empty() {
            errors.required(&path.child("secretName"), "");
        }
        mode(source.default_mode, &path.child("defaultMode"), errors);
        items(source.items.as_deref().unwrap_or_default(), &path.child("items"), errors);
    }
    if let Some(source) = &volume.host_path {
        let path = path.child("hostPath").child("path");
        if source.path.is_empty() {
            errors.required(&path, "");
        } else if has_back_step(&source.path) {
            errors.invalid(&path, &source.path, "must not contain '..'");
        }
    }
    if let Some(source) = &volume.persistent_volume_claim
        && source.claim_name.is_empty()
    {
        errors.required(&path.child("persistentVolumeClaim").child("claimName"), "");
    }
    if let Some(source) = &volume.projected {
        mode(source.default_mode, &path.child("projected").child("defaultMode"), errors);
    }
    if let Some(source) = &volume.downward_api {
        for (index, file) in source.items.iter().flatten().enumerate() {
            let path = path.child("downwardAPI").child("items").index(index);
            local_path(&file.path, &path.child("path"), errors);
            if file.field_ref.is_some() == file.resource_field_ref.is_some() {
                errors.required(&path, "exactly one of fieldRef and resourceFieldRef is required");
            }
        }
    }
}

fn items(items: &[KeyToPath], path: &Path, errors: &mut Errors) {
    for (index, item) in items.iter().enumerate() {
        let path = path.index(index);
        if item.key.is_empty() {
            errors.required(&path.child("key"), "");
        }
        local_path(&item.path, &path.child("path"), errors);
        mode(item.mode, &path.child("mode"), errors);
    }
}

fn mode(mode: Option<i32>, path: &Path, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// A path inside a volume: relative, and never out of it.
pub(super) fn local_path(text: &str, path: &Path, errors: &mut Errors) {
    if text.is_empty() {
        errors.required(path, "");
    } else if text.starts_with('/') {
        errors.invalid(path, text, "must be a relative path");
    } else if has_back_step(text) {
        errors.invalid(path, text, "must not contain '..'");
    }
}

fn has_back_step(path: &str) -> bool {
    path.split('/').any(|step| step == "..")
}
