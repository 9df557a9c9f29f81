//! Config maps and secrets.

use std::collections::BTreeSet;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::KindRules;
use super::pod_defaults::set;
use crate::field::{Errors, Path};
use crate::limits::DATA_BYTES_MAX;
use crate::names;

const IMMUTABLE: &str = "field is immutable when `immutable` is set";

/// Types of secrets, and the keys that each must have.
const NEEDED: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

impl KindRules for ConfigMap {
    const BYTES: &'static [&'static str] = &["binaryData"];

    fn validate(&self, errors: &mut Errors) {
        let text: BTreeSet<&String> = self.data.iter().flat_map(|data| data.keys()).collect();
        for key in &text {
            config_key(key, &Path::new("data"), errors);
        }
        for key in self.binary_data.iter().flat_map(|data| data.keys()) {
            let path = Path::new("binaryData");
            config_key(key, &path, errors);
            if text.contains(key) {
                errors.invalid(&path.key(key), key, "duplicate of key present in data");
            }
        }
        let bytes: usize = self.data.iter().flatten().map(|(_, value)| value.len()).sum::<usize>()
            + self.binary_data.iter().flatten().map(|(_, value)| value.0.len()).sum::<usize>();
        if bytes > DATA_BYTES_MAX {
            errors.too_long(&Path::new("data"), DATA_BYTES_MAX);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        if old.immutable != Some(true) {
            return;
        }
        if self.immutable != Some(true) {
            errors.forbidden(&Path::new("immutable"), IMMUTABLE);
        }
        if self.data != old.data {
            errors.forbidden(&Path::new("data"), IMMUTABLE);
        }
        if self.binary_data != old.binary_data {
            errors.forbidden(&Path::new("binaryData"), IMMUTABLE);
        }
    }
}

impl KindRules for Secret {
    const BYTES: &'static [&'static str] = &["data"];

    fn default(&mut self) {
        set(&mut self.type_, "Opaque");
        // Written for convenience, never kept: it would be a second copy that can differ.
        if let Some(texts) = self.string_data.take() {
            let data = self.data.get_or_insert_default();
            data.extend(texts.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes()))));
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("data");
        let mut bytes = 0;
        for (key, value) in self.data.iter().flatten() {
            config_key(key, &path, errors);
            bytes += value.0.len();
        }
        if bytes > DATA_BYTES_MAX {
            errors.too_long(&path, DATA_BYTES_MAX);
        }
        let type_ = self.type_.as_deref().unwrap_or_default();
        let needed = NEEDED.iter().find(|(known, _)| *known == type_).map_or(&[][..], |(_, keys)| keys);
        for key in needed {
            let value = self.data.as_ref().and_then(|data| data.get(*key));
            match value {
                None => errors.required(&path.key(key), ""),
                Some(value)
                    if key.contains("docker")
                        && serde_json::from_slice::<serde::de::IgnoredAny>(&value.0).is_err() =>
                {
                    errors.push(
                        &path.key(key),
                        crate::field::Fault::Invalid("\"<secret contents redacted>\"".into()),
                        "must be JSON",
                    );
                }
                Some(_) => {}
            }
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        if self.type_ != old.type_ {
            let type_ = self.type_.as_deref().unwrap_or_default();
            errors.invalid(&Path::new("type"), type_, "field is immutable");
        }
        if old.immutable != Some(true) {
            return;
        }
        if self.immutable != Some(true) {
            errors.forbidden(&Path::new("immutable"), IMMUTABLE);
        }
        if self.data != old.data {
            errors.forbidden(&Path::new("data"), IMMUTABLE);
        }
    }
}

fn config_key(key: &str, path: &Path, errors: &mut Errors) {
    if let Err(fault) = names::config_key(key) {
        errors.invalid(&path.key(key), key, fault);
    }
}
