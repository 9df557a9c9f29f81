//! Volumes, and the files in them.

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret, Volume, VolumeProjection,
};
use std::collections::BTreeMap;
use std::path::Path;

use super::{Error, File, HostPathKind, Lookup, VolumeSource, env};
use crate::resources::units;
use crate::view::{Key, key_of};

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

/// Whether a volume of files has this file, or a directory of this name.
pub(super) fn has_part(look: &Lookup<'_>, volume: &Volume, part: &str) -> Result<bool, Error> {
    let VolumeSource::Files { files, .. } = source(look, volume)? else { return Ok(true) };
    let part = Path::new(part);
    Ok(files.iter().any(|file| Path::new(&file.path).starts_with(part)))
}

/// Whether a program may find less in it than its manifest names.
pub(super) fn is_optional(volume: &Volume) -> bool {
    let of_map = volume.config_map.as_ref().map(|map| map.optional);
    let of_secret = volume.secret.as_ref().map(|secret| secret.optional);
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let of_projected = projected.flat_map(|source| {
        let of_map = source.config_map.as_ref().map(|map| map.optional);
        of_map.into_iter().chain(source.secret.as_ref().map(|secret| secret.optional))
    });
    of_map.into_iter().chain(of_secret).chain(of_projected).any(|optional| optional == Some(true))
}

/// The objects that it is made from.
pub(super) fn sources(namespace: &str, volume: &Volume) -> Vec<Key> {
    let map = |name: &str| key_of::<ConfigMap>(namespace, name);
    let secret = |name: &str| key_of::<Secret>(namespace, name);
    let of_map = volume.config_map.iter().map(|source| map(&source.name));
    let of_secret = volume.secret.iter().filter_map(|source| source.secret_name.as_deref()).map(secret);
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let of_projected = projected.flat_map(|source| {
        let of_map = source.config_map.iter().map(|source| map(&source.name));
        of_map.chain(source.secret.iter().map(|source| secret(&source.name)))
    });
    of_map.chain(of_secret).chain(of_projected).collect()
}

/// Whether labels or annotations of the pod are in a file of it.
pub(super) fn shows_own_metadata(volume: &Volume) -> bool {
    let own = volume.downward_api.iter().filter_map(|source| source.items.as_ref());
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let projected = projected.filter_map(|source| source.downward_api.as_ref()?.items.as_ref());
    own.chain(projected).flatten().any(|item| item.field_ref.is_some())
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
