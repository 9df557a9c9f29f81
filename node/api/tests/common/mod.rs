//! What the tests of a request's way through the crate share.

use serde_json::Value;
use skein_api::decode::{self, Format, Validation};
use skein_api::kinds::{self, Kind};
use skein_api::object::{self, Context};
use skein_api::status::Status;

pub(crate) const UID: &str = "0b2d3c4e-0000-4000-8000-000000000001";

pub(crate) fn kind(name: &str) -> &'static Kind {
    kinds::KINDS.iter().find(|kind| kind.kind == name).unwrap_or_else(|| panic!("no kind {name}"))
}

pub(crate) fn context<'a>(namespace: Option<&'a str>) -> Context<'a> {
    Context {
        now: "2026-01-02T03:04:05.678Z".parse().unwrap(),
        uid: UID,
        suffix: "x7k2p",
        namespace,
        user: "admin",
    }
}

pub(crate) fn decoded(kind: &Kind, body: &Value) -> Result<Value, Status> {
    decode::decode(kind, body.to_string().as_bytes(), Format::Json, Validation::Strict)
        .map(|decoded| decoded.object)
}

/// The object as it is stored after a create in namespace `default`.
pub(crate) fn created(name: &str, body: Value) -> Result<Value, Status> {
    let kind = kind(name);
    let mut object = decoded(kind, &body)?;
    object::prepare_create(kind, &mut object, &context(kind.namespaced.then_some("default")))?;
    Ok(object)
}
