//! What a kind's typed rules look like, and how the generic path calls them.

mod cluster;
mod config;
mod container;
pub(crate) mod metadata;
mod plain;
mod pod;
mod pod_defaults;
mod pod_spec;
mod resources;
mod service;
mod volume;
mod workload;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::field::Errors;

/// The rules of one kind, over its typed struct.
pub(crate) trait KindRules: Serialize + DeserializeOwned {
    /// Fills what the user left out. Applying it twice changes nothing more.
    fn default(&mut self) {}

    /// Says everything that is wrong with the object, apart from its metadata.
    fn validate(&self, _errors: &mut Errors) {}

    /// Says what may not change between `old` and this.
    fn validate_update(&self, _old: &Self, _errors: &mut Errors) {}

    /// Sets what a new object begins with. Called after `default`; what a user sent as status is gone.
    fn begin(&mut self) {}
}

/// The same without the type, one set per kind.
pub(crate) struct Rules {
    /// Reads the object into its type and back: unknown fields are dropped and their paths collected.
    pub(crate) shape: fn(Value, &mut dyn FnMut(String)) -> Result<Value, serde_json::Error>,
    pub(crate) default: fn(Value) -> Result<Value, serde_json::Error>,
    pub(crate) begin: fn(Value) -> Result<Value, serde_json::Error>,
    pub(crate) validate: fn(&Value, &mut Errors) -> Result<(), serde_json::Error>,
    pub(crate) validate_update: fn(&Value, &Value, &mut Errors) -> Result<(), serde_json::Error>,
}

pub(crate) const fn rules<T: KindRules>() -> Rules {
    Rules {
        shape: |value, unknown| {
            let typed: T = serde_ignored::deserialize(value, |path| unknown(crate::decode::dotted(&path)))?;
            serde_json::to_value(typed)
        },
        default: |value| {
            let mut typed: T = serde_json::from_value(value)?;
            typed.default();
            serde_json::to_value(typed)
        },
        begin: |value| {
            let mut typed: T = serde_json::from_value(value)?;
            typed.begin();
            serde_json::to_value(typed)
        },
        validate: |value, errors| {
            T::deserialize(value)?.validate(errors);
            Ok(())
        },
        validate_update: |old, new, errors| {
            T::deserialize(new)?.validate_update(&T::deserialize(old)?, errors);
            Ok(())
        },
    }
}
