//! Objects as a client wants to see them: whole, as rows of a table, or their metadata only.

use jiff::Timestamp;
use serde_json::{Value, json};
use skein_api::kinds::Kind;
use skein_api::status::Status;

use crate::api::Call;
use crate::negotiate::Form;

/// How the objects of one request are shown. On a watch it remembers that the columns were sent.
pub(crate) struct View {
    form: Form,
}

impl View {
    pub(crate) fn of(call: &Call<'_>) -> Result<Self, Status> {
        Ok(View { form: call.form })
    }

    /// One object.
    pub(crate) fn object(&self, _kind: &Kind, object: &Value, _now: Timestamp) -> Value {
        match self.form {
            Form::Object | Form::Table(_) => object.clone(),
            Form::Metadata(version) => metadata_only(object, version),
        }
    }

    /// A list; `metadata` is the list's own.
    pub(crate) fn list(&self, kind: &Kind, objects: Vec<Value>, metadata: Value, _now: Timestamp) -> Value {
        match self.form {
            Form::Object | Form::Table(_) => json!({
                "kind": kind.list_kind(), "apiVersion": kind.api_version(), "metadata": metadata, "items": objects,
            }),
            Form::Metadata(version) => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
                "items": objects.iter().map(|object| metadata_only(object, version)).collect::<Vec<_>>(),
            }),
        }
    }

    /// One object of a watch.
    pub(crate) fn event(&mut self, kind: &Kind, object: Value, now: Timestamp) -> Value {
        self.object(kind, &object, now)
    }

    /// The object of a bookmark, which has nothing but a version.
    pub(crate) fn bookmark(&self, object: Value) -> Value {
        match self.form {
            Form::Object | Form::Table(_) => object,
            Form::Metadata(version) => metadata_only(&object, version),
        }
    }
}

fn metadata_only(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": object["metadata"],
    })
}
