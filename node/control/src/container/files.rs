//! Volumes, and the files in them.

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret, Volume, VolumeProjection,
};
use std::collections::BTreeMap;

use super::{Error, File, HostPathKind, Lookup, VolumeSource, env};
use crate::resources::units;

/// What `volume` is made from.
pub(super) fn source(look: &Lookup<'_>, volume: &Volume) -> Result<VolumeSource, Error> {
    if let Some(empty) = &volume.empty_dir {
        let limit = empty.size_limit.as_ref().map(units);
        return Ok(VolumeSource::Empty {
            memory: empty.medium.as_deref() == Some("Memory"),
            size_bytes_max: limit.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0),
        });
    }
    if let Some(map) = &volume.config_map {
        let optional = map.optional == Some(true);
        let files = config_map(look, &map.name, map.items.as_deref(), optional, map.default_mode)?;
        return Ok(VolumeSource::Files { files: sorted(files), secret: false });
    }
    if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let optional = secret.optional == Some(true);
        let files = self::secret(look, name, secret.items.as_deref(), optional, secret.default_mode)?;
        return Ok(VolumeSource::Files { files: sorted(files), secret: true });
    }
    if let Some(downward) = &volume.downward_api {
        let files = self::downward(look, downward.items.as_deref(), downward.default_mode)?;
        return Ok(VolumeSource::Files { files: sorted(files), secret: false });
    }
    if let Some(projected) = &volume.projected {
        let mut files = BTreeMap::new();
        for source in projected.sources.iter().flatten() {
            files.extend(projection(look, &volume.name, source, projected.default_mode)?);
        }
        let secret = projected.sources.iter().flatten().any(|source| source.secret.is_some());
        return Ok(VolumeSource::Files { files: sorted(files), secret });
    }
    if let Some(host) = &volume.host_path {
        let kind = match host.type_.as_deref().unwrap_or_default() {
            "DirectoryOrCreate" => HostPathKind::DirectoryOrCreate,
            "Directory" => HostPathKind::Directory,
            "FileOrCreate" => HostPathKind::FileOrCreate,
            "File" => HostPathKind::File,
            "Socket" => HostPathKind::Socket,
            "CharDevice" => HostPathKind::CharDevice,
            "BlockDevice" => HostPathKind::BlockDevice,
            _ => HostPathKind::Any,
        };
        return Ok(VolumeSource::Host { path: host.path.clone(), kind });
    }
    match kind_of(volume) {
        // A volume without any source is an empty directory, by the API's defaults.
        None => Ok(VolumeSource::Empty { memory: false, size_bytes_max: None }),
        Some(kind) => Err(Error::VolumeKind { name: volume.name.clone(), kind }),
    }
}

type Files = BTreeMap<String, File>;

fn projection(
    look: &Lookup<'_>,
    volume: &str,
    source: &VolumeProjection,
    mode: Option<i32>,
) -> Result<Files, Error> {
    if let Some(map) = &source.config_map {
        return config_map(look, &map.name, map.items.as_deref(), map.optional == Some(true), mode);
    }
    if let Some(held) = &source.secret {
        return secret(look, &held.name, held.items.as_deref(), held.optional == Some(true), mode);
    }
    if let Some(held) = &source.downward_api {
        return downward(look, held.items.as_deref(), mode);
    }
    let kind = if source.service_account_token.is_some() { "serviceAccountToken" } else { "projected" };
    Err(Error::VolumeKind { name: volume.to_owned(), kind: kind.to_owned() })
}

fn config_map(
    look: &Lookup<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: Option<i32>,
) -> Result<Files, Error> {
    let Some(map) = look.view.named::<ConfigMap>(look.namespace(), name) else {
        return if optional { Ok(Files::new()) } else { Err(Error::NoConfigMap(name.to_owned())) };
    };
    let mut values: BTreeMap<&str, &[u8]> = BTreeMap::new();
    values.extend(map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes())));
    values.extend(map.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice())));
    let missing = |key: &str| no_key(look, "ConfigMap", name, key);
    chosen(&values, items, optional, mode, missing)
}

fn secret(
    look: &Lookup<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: Option<i32>,
) -> Result<Files, Error> {
    let Some(secret) = look.view.named::<Secret>(look.namespace(), name) else {
        return if optional { Ok(Files::new()) } else { Err(Error::NoSecret(name.to_owned())) };
    };
    let data = secret.data.iter().flatten();
    let values = data.map(|(key, value)| (key.as_str(), value.0.as_slice())).collect();
    let missing = |key: &str| no_key(look, "Secret", name, key);
    chosen(&values, items, optional, mode, missing)
}

/// All values, each under its key, or the listed ones, each under its path.
fn chosen(
    values: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: Option<i32>,
    missing: impl Fn(&str) -> Error,
) -> Result<Files, Error> {
    let mut files = Files::new();
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, bytes) in values {
            insert(&mut files, key, bits(None, mode), bytes.to_vec())?;
        }
        return Ok(files);
    };
    for item in items {
        match values.get(item.key.as_str()) {
            Some(bytes) => insert(&mut files, &item.path, bits(item.mode, mode), bytes.to_vec())?,
            None if optional => {}
            None => return Err(missing(&item.key)),
        }
    }
    Ok(files)
}

fn downward(
    look: &Lookup<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: Option<i32>,
) -> Result<Files, Error> {
    let mut files = Files::new();
    for item in items.into_iter().flatten() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => env::field(look, field)?,
            (None, Some(resource)) => env::resource(look, None, resource)?,
            (None, None) => String::new(),
        };
        insert(&mut files, &item.path, bits(item.mode, mode), text.into_bytes())?;
    }
    Ok(files)
}

fn insert(files: &mut Files, path: &str, mode: u32, bytes: Vec<u8>) -> Result<(), Error> {
    let leaves =
        path.starts_with('/') || path.split('/').any(|part| part.is_empty() || part == ".." || part == ".");
    if leaves || path.contains('\0') {
        return Err(Error::PathEscapes(path.to_owned()));
    }
    files.insert(path.to_owned(), File { path: path.to_owned(), mode, bytes });
    Ok(())
}

/// 0644 unless the volume or the item says otherwise.
fn bits(own: Option<i32>, default: Option<i32>) -> u32 {
    own.or(default).and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644) & 0o777
}

fn sorted(files: Files) -> Vec<File> {
    files.into_values().collect()
}

fn no_key(look: &Lookup<'_>, kind: &'static str, name: &str, key: &str) -> Error {
    Error::NoKey { kind, namespace: look.namespace().to_owned(), name: name.to_owned(), key: key.to_owned() }
}

/// The field that says what the volume is, as the manifest spells it.
fn kind_of(volume: &Volume) -> Option<String> {
    let json = serde_json::to_value(volume).ok()?;
    json.as_object()?.keys().find(|key| *key != "name").cloned()
}
