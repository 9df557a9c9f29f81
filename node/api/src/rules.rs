//! What a kind's typed rules look like, and how the generic path calls them.

mod cluster;
mod config;
mod container;
mod endpoints;
pub(crate) mod metadata;
mod plain;
mod pod;
mod pod_defaults;
mod pod_spec;
mod resources;
mod service;
mod volume;
mod warnings;
mod workload;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) use self::plain::Definition;
use crate::base64;
use crate::field::Errors;

/// The rules of one kind, over its typed struct.
pub(crate) trait KindRules: Serialize + DeserializeOwned {
    /// Maps of bytes at the top of the object.
    const BYTES: &'static [&'static str] = &[];

    /// Fills what the user left out. Applying it twice changes nothing more.
    fn default(&mut self) {}

    /// Says everything that is wrong with the object, apart from its metadata.
    fn validate(&self, _errors: &mut Errors) {}

    /// Says what may not change between `old` and this.
    fn validate_update(&self, _old: &Self, _errors: &mut Errors) {}

    /// What is taken, but is likely not what was meant. Called on what is stored.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Adds to an update what upstream's admission adds. Called after `default`.
    fn begin_update(&mut self, _old: &Self) {}

    /// Sets what a new object begins with. Called after `default`; what a user sent as status is gone.
    fn begin(&mut self) {}
}

/// A value is not of the type that its field has.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WrongType {
    #[error("{path}: {error}")]
    At { path: String, error: serde_json::Error },
    #[error("{path}: {error}")]
    Bytes { path: String, error: base64::Illegal },
    #[error("{0}")]
    Somewhere(#[from] serde_json::Error),
}

/// Takes the object and what to tell of each unknown field's path.
type Shape = fn(Value, &mut dyn FnMut(String)) -> Result<Value, WrongType>;

/// The same without the type, one set per kind.
pub(crate) struct Rules {
    /// Reads the object into its type and back: unknown fields are dropped and their paths collected.
    pub(crate) shape: Shape,
    pub(crate) default: fn(Value) -> Result<Value, WrongType>,
    pub(crate) begin: fn(Value) -> Result<Value, WrongType>,
    pub(crate) warnings: fn(&Value) -> Result<Vec<String>, WrongType>,
    pub(crate) begin_update: fn(&Value, Value) -> Result<Value, WrongType>,
    pub(crate) validate: fn(&Value, &mut Errors) -> Result<(), WrongType>,
    pub(crate) validate_update: fn(&Value, &Value, &mut Errors) -> Result<(), WrongType>,
}

pub(crate) const fn rules<T: KindRules>() -> Rules {
    Rules {
        shape: |mut value, unknown| {
            for field in T::BYTES {
                canonical_bytes(&mut value, field)?;
            }
            let typed: Result<T, _> =
                serde_ignored::deserialize(&value, |path| unknown(crate::decode::dotted(&path)));
            match typed {
                Ok(typed) => Ok(serde_json::to_value(typed)?),
                Err(error) => Err(locate::<T>(&value, error)),
            }
        },
        default: |value| {
            let mut typed: T = read(&value)?;
            typed.default();
            Ok(serde_json::to_value(typed)?)
        },
        begin: |value| {
            let mut typed: T = read(&value)?;
            typed.begin();
            Ok(serde_json::to_value(typed)?)
        },
        warnings: |value| Ok(read::<T>(value)?.warnings()),
        begin_update: |old, value| {
            let mut typed: T = read(&value)?;
            typed.begin_update(&read(old)?);
            Ok(serde_json::to_value(typed)?)
        },
        validate: |value, errors| {
            read::<T>(value)?.validate(errors);
            Ok(())
        },
        validate_update: |old, new, errors| {
            read::<T>(new)?.validate_update(&read(old)?, errors);
            Ok(())
        },
    }
}

/// Brings the bytes of the map `field` into the form that our types read.
fn canonical_bytes(object: &mut Value, field: &str) -> Result<(), WrongType> {
    let Some(bytes) = object.get_mut(field).and_then(Value::as_object_mut) else { return Ok(()) };
    for (key, value) in bytes {
        // What is no text is told by the type.
        let Some(text) = value.as_str() else { continue };
        let bytes = base64::decode(text)
            .map_err(|error| WrongType::Bytes { path: format!("{field}.{key}"), error })?;
        *value = base64::encode(&bytes).into();
    }
    Ok(())
}

fn read<T: KindRules>(value: &Value) -> Result<T, WrongType> {
    T::deserialize(value).map_err(|error| locate::<T>(value, error))
}

/// Finds where the type is wrong, by reading once more and noting the way. Only errors pay for it.
fn locate<T: KindRules>(value: &Value, error: serde_json::Error) -> WrongType {
    match serde_path_to_error::deserialize::<_, T>(value) {
        Err(located) => WrongType::At { path: located.path().to_string(), error: located.into_inner() },
        Ok(_) => WrongType::Somewhere(error),
    }
}
