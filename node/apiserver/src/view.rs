//! Objects as a client wants to see them: whole, as rows of a table, or their metadata only.

use jiff::Timestamp;
use serde_json::{Value, json};
use skein_api::kinds::Kind;
use skein_api::table::{self, Include};

use crate::negotiate::Form;
use crate::query::Query;

/// How the objects of one request are shown.
pub(crate) struct View {
    form: Form,
    include: Include,
    /// Whether the next table says its columns: on a watch only the first does.
    headers: bool,
}

impl View {
    pub(crate) fn new(form: Form, query: &Query) -> Self {
        View { form, include: Include::parse(query.get("includeObject").unwrap_or_default()), headers: true }
    }

    /// One object.
    pub(crate) fn object(&self, kind: &Kind, object: Value, now: Timestamp) -> Value {
        match self.form {
            Form::Object => object,
            Form::Table(version) => {
                let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                table::table(kind, &[object], metadata, version, self.include, self.headers, now)
            }
            Form::Metadata(version) => table::partial_metadata(&object, version),
        }
    }

    /// A list; `metadata` is the list's own.
    pub(crate) fn list(&self, kind: &Kind, objects: Vec<Value>, metadata: Value, now: Timestamp) -> Value {
        match self.form {
            Form::Object => json!({
                "kind": kind.list_kind(), "apiVersion": kind.api_version(), "metadata": metadata, "items": objects,
            }),
            Form::Table(version) => {
                table::table(kind, &objects, metadata, version, self.include, self.headers, now)
            }
            Form::Metadata(version) => table::partial_metadata_list(&objects, metadata, version),
        }
    }

    /// One object of a watch.
    pub(crate) fn event(&mut self, kind: &Kind, object: Value, now: Timestamp) -> Value {
        let shown = self.object(kind, object, now);
        self.headers = false;
        shown
    }

    /// The object of a bookmark, which has nothing but a version: a table of it has no rows.
    pub(crate) fn bookmark(&self, kind: &Kind, object: Value, now: Timestamp) -> Value {
        match self.form {
            Form::Table(version) => {
                let metadata = object["metadata"].clone();
                table::table(kind, &[], metadata, version, self.include, false, now)
            }
            Form::Object | Form::Metadata(_) => self.object(kind, object, now),
        }
    }
}
