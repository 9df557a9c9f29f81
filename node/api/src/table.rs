//! Objects as kubectl prints them: `Table` with the same columns and words as upstream, and
//! `PartialObjectMetadata` for those who want no more than that.

mod columns;
mod pod;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::time;

/// What of the object sits in each row: the query parameter `includeObject`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Include {
    /// Its metadata: what upstream does when nothing is said.
    #[default]
    Metadata,
    /// All of it.
    Object,
    /// Nothing.
    None,
}

impl Include {
    /// Reads the query parameter; what is unknown is what is not said.
    pub fn parse(text: &str) -> Self {
        match text {
            "Object" => Self::Object,
            "None" => Self::None,
            _ => Self::Metadata,
        }
    }
}

/// One column of a kind's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    name: &'static str,
    /// `string`, `integer`, `date`.
    type_: &'static str,
    /// Shown with `-o wide` only.
    wide: bool,
}

impl Column {
    const fn narrow(name: &'static str) -> Self {
        Self { name, type_: "string", wide: false }
    }

    const fn number(name: &'static str) -> Self {
        Self { name, type_: "integer", wide: false }
    }

    const fn wide(name: &'static str) -> Self {
        Self { name, type_: "string", wide: true }
    }

    fn definition(&self) -> Value {
        json!({
            "name": self.name, "type": self.type_,
            "format": if self.name == "Name" { "name" } else { "" },
            "description": "", "priority": i32::from(self.wide),
        })
    }
}

/// The table of these objects.
///
/// * `version` is that of `meta.k8s.io` as the client asked for it: `v1` or `v1beta1`.
/// * `list_metadata` is the `metadata` of the list (its version, its token to continue); for a single
///   object, and each event of a watch, `{"resourceVersion": ..}`.
/// * `headers` is false for all but the first event of a watch.
pub fn table(
    kind: &Kind,
    objects: &[Value],
    list_metadata: Value,
    version: &str,
    include: Include,
    headers: bool,
    now: Timestamp,
) -> Value {
    let sheet = columns::of(kind);
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row = json!({ "cells": (sheet.cells)(object, now) });
            match include {
                Include::None => {}
                Include::Object => row["object"] = object.clone(),
                Include::Metadata => row["object"] = partial_metadata(object, version),
            }
            let conditions = pod::row_conditions(kind, object);
            if !conditions.is_empty() {
                row["conditions"] = conditions.into();
            }
            row
        })
        .collect();
    let definitions: Vec<Value> =
        if headers { sheet.columns.iter().map(Column::definition).collect() } else { Vec::new() };
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_metadata, "columnDefinitions": definitions, "rows": rows,
    })
}

/// The object's metadata alone.
pub fn partial_metadata(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object["metadata"],
    })
}

/// A list of metadata alone.
pub fn partial_metadata_list(objects: &[Value], list_metadata: Value, version: &str) -> Value {
    let items: Vec<Value> = objects.iter().map(|object| partial_metadata(object, version)).collect();
    json!({
        "kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_metadata, "items": items,
    })
}

/// How long ago the moment at this field was.
fn since(moment: &Value, now: Timestamp) -> String {
    match moment.as_str().and_then(time::parse) {
        Some(moment) => time::age(moment, now),
        None => "<unknown>".into(),
    }
}

fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now).into()
}

fn text<'v>(value: &'v Value, absent: &'v str) -> &'v str {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or(absent)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
