//! Patches: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.
//!
//! A patch works on the object as clients see it and knows nothing of kinds, but for the merge keys of
//! the strategic one. What comes out is not yet an object of its kind: [`decode::shape`](crate::decode::shape)
//! and [`object::prepare_update`](crate::object::prepare_update) follow.
//!
//! Server-side apply is not here.

mod json;
mod merge;
mod strategic;

use serde_json::Value;

pub(crate) use self::strategic::{List, list_strategy};
use crate::kinds::Kind;
use crate::limits::PATCH_NODES_MAX;
use crate::status::{Reason, Status};

/// The media types of the patches, for the answer to another one.
pub const MEDIA_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// How a patch is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Type {
    /// `application/json-patch+json`: a list of operations.
    Json,
    /// `application/merge-patch+json`: the fields that change; `null` removes, lists are replaced.
    Merge,
    /// `application/strategic-merge-patch+json`: the same, but lists merge by their keys.
    Strategic,
}

impl Type {
    /// The type of a patch with this `Content-Type`, parameters such as `charset` aside.
    pub fn from_media_type(text: &str) -> Result<Self, Status> {
        match text.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            other => Err(Status::unsupported_media_type(other, MEDIA_TYPES)),
        }
    }
}

/// The object with the patch applied.
///
/// A malformed patch is 400, one that does not fit the object (a failed `test`, a path that is not
/// there) 422. Time and memory are bounded by [`PATCH_NODES_MAX`].
pub fn apply(kind: &Kind, type_: Type, object: &Value, patch: &Value) -> Result<Value, Status> {
    let mut budget = Budget::default();
    let mut patched = object.clone();
    budget.spend_on(object)?;
    match type_ {
        Type::Json => json::apply(&mut patched, patch, &mut budget)?,
        Type::Merge => merge::apply(&mut patched, patch, &mut budget)?,
        Type::Strategic => strategic::apply(kind, &mut patched, patch, &mut budget)?,
    }
    if !patched.is_object() {
        return Err(Error::Unfit("the patch leaves no object".into()).into());
    }
    Ok(patched)
}

/// Why a patch could not be applied. The object is untouched.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
enum Error {
    /// It is no patch of its type.
    #[error("{0}")]
    Malformed(String),
    /// It asks for something that this object does not have.
    #[error("the server rejected our request due to an error in our request: {0}")]
    Unfit(String),
    /// Following it would take too long.
    #[error("the patch is too large; at most {PATCH_NODES_MAX} values may be visited or copied")]
    TooMuch,
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let reason = match error {
            Error::Malformed(_) => Reason::BadRequest,
            Error::Unfit(_) => Reason::Invalid,
            Error::TooMuch => Reason::RequestEntityTooLarge,
        };
        Status::new(reason, error.to_string())
    }
}

/// What a patch may still cost: a count of values.
struct Budget {
    left: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: PATCH_NODES_MAX }
    }
}

impl Budget {
    fn spend(&mut self, values: usize) -> Result<(), Error> {
        self.left = self.left.checked_sub(values).ok_or(Error::TooMuch)?;
        Ok(())
    }

    /// Pays for a value and everything below it.
    fn spend_on(&mut self, value: &Value) -> Result<(), Error> {
        self.spend(1)?;
        match value {
            Value::Array(elements) => elements.iter().try_for_each(|element| self.spend_on(element)),
            Value::Object(fields) => fields.values().try_for_each(|value| self.spend_on(value)),
            _ => Ok(()),
        }
    }
}
