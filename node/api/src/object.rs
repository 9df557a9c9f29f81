//! What happens to an object on its way into the store: create, update, status, deletion.
//!
//! Every function here takes objects as they are stored or as [`decode`](crate::decode) made them, and
//! leaves an object ready to be stored: defaulted, validated, without `metadata.resourceVersion`.
//! An error leaves the object in no particular state; nothing of it may be stored.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::decode::{normalise, prune, unreadable};
use crate::field::Errors;
use crate::kinds::Kind;
use crate::limits::OBJECT_BYTES_MAX;
use crate::rules::{WrongType, metadata};
use crate::status::{Reason, Status};
use crate::time;

/// Who asks, when, and the chance a new object needs.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The moment that stamps the object.
    pub now: Timestamp,
    /// A fresh uid.
    pub uid: &'a str,
    /// Five random characters for a generated name.
    pub suffix: &'a str,
    /// The namespace of the request's path, if it has one.
    pub namespace: Option<&'a str>,
    /// The user's name.
    pub user: &'a str,
}

/// What an update comes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Update {
    /// Nothing differs: keep the stored object, make no event.
    Unchanged,
    /// Store the new object.
    Changed,
    /// The last finalizer of an object under deletion went: remove it. The new object is what clients see last.
    Removed,
}

/// What a deletion comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Deletion {
    /// The object goes at once.
    Remove,
    /// It is being deleted: store this, and somebody (the pod's node, a finalizer's owner) finishes it.
    Mark(Value),
    /// It was being deleted before, and nothing changes.
    Underway,
}

/// Makes `object` ready to be created.
pub fn prepare_create(kind: &Kind, object: &mut Value, context: &Context<'_>) -> Result<(), Status> {
    normalise(object);
    prune(object);
    settle_namespace(kind, object, context.namespace)?;
    let metadata = metadata_mut(object)?;
    if text(metadata, "resourceVersion").is_some_and(|version| !version.is_empty()) {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    for field in [
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
        "generation",
    ] {
        metadata.remove(field);
    }
    if text(metadata, "name").is_none_or(str::is_empty)
        && let Some(prefix) = text(metadata, "generateName").filter(|prefix| !prefix.is_empty())
    {
        let name = kind.name.generate(prefix, context.suffix);
        metadata.insert("name".into(), name.into());
    }
    metadata.insert("uid".into(), context.uid.into());
    metadata.insert("creationTimestamp".into(), time::rfc3339(context.now).into());
    if kind.counts_generations {
        metadata.insert("generation".into(), 1.into());
    }
    let name = text(metadata, "name").unwrap_or_default().to_owned();
    // A node announces itself together with its status; any other status is observed, never said by a user.
    if kind.has_status() && kind.kind != "Node" {
        fields_mut(object)?.remove("status");
    }
    apply(kind, object, kind.rules.default)?;
    apply(kind, object, kind.rules.begin)?;

    let mut errors = Errors::default();
    metadata::validate(kind, object, &mut errors);
    (kind.rules.validate)(object, &mut errors).map_err(|error| unreadable(kind, &error))?;
    finish(kind, &name, object, errors)
}

/// What whoever made `object` should know of it, apart from fields that its kind does not have.
pub fn warnings_on_create(kind: &Kind, object: &Value) -> Vec<String> {
    // What is stored is of its type; if it were not, there would be worse to tell.
    (kind.rules.warnings)(object).unwrap_or_default()
}

/// The same of whoever made `new` of `old`. As upstream: nobody who changes a pod wrote it, and what has a generation is
/// warned of when that moves.
pub fn warnings_on_update(kind: &Kind, old: &Value, new: &Value) -> Vec<String> {
    let generation = |object: &'_ Value| object["metadata"]["generation"].clone();
    let is_new = !kind.counts_generations || generation(old) != generation(new);
    if kind.kind == "Pod" || !is_new { Vec::new() } else { warnings_on_create(kind, new) }
}

/// Makes `new` ready to replace `old` at the main resource: `status` and what the server owns stay as they are.
///
/// A `resourceVersion` in `new` is dropped: take it out before with [`take_resource_version`] and compare.
pub fn prepare_update(
    kind: &Kind,
    old: &Value,
    new: &mut Value,
    context: &Context<'_>,
) -> Result<Update, Status> {
    normalise(new);
    prune(new);
    settle_namespace(kind, new, context.namespace)?;
    keep_identity(kind, old, new)?;
    if kind.has_status() {
        keep(fields_mut(new)?, old, "status");
    }
    apply(kind, new, kind.rules.default)?;
    *new = (kind.rules.begin_update)(old, new.take()).map_err(|error| unreadable(kind, &error))?;
    if kind.has_status() {
        // The typed round trip may have rewritten it; what is stored stays as it is, byte for byte.
        keep(fields_mut(new)?, old, "status");
    }
    settle(kind, old, new)
}

/// Makes `new` ready to replace `old` at the sub-resource `status`: all but the status (and labels and
/// annotations, which kinds but Deployment let through) stays as it is.
pub fn prepare_status_update(
    kind: &Kind,
    old: &Value,
    new: &mut Value,
    context: &Context<'_>,
) -> Result<Update, Status> {
    normalise(new);
    prune(new);
    settle_namespace(kind, new, context.namespace)?;
    keep_identity(kind, old, new)?;
    let mut merged = old.clone();
    let fields = fields_mut(&mut merged)?;
    keep(fields, new, "status");
    let metadata = metadata_mut(&mut merged)?;
    let passing: &[&str] =
        if kind.kind == "Deployment" { &["annotations"] } else { &["labels", "annotations", "finalizers"] };
    for field in passing {
        keep(metadata, &new["metadata"], field);
    }
    *new = merged;
    apply(kind, new, kind.rules.default)?;
    settle(kind, old, new)
}

/// Says what deleting `old` comes to.
pub fn prepare_delete(
    kind: &Kind,
    old: &Value,
    options: &DeleteOptions,
    now: Timestamp,
) -> Result<Deletion, Status> {
    let name = name(old);
    let uid = old["metadata"]["uid"].as_str().unwrap_or_default();
    if let Some(expected) = options.uid.as_deref().filter(|expected| *expected != uid) {
        let why = format!("Precondition failed: UID in precondition: {expected}, UID in object meta: {uid}");
        return Err(Status::conflict(kind, name, &why));
    }
    let mut marked = old.clone();
    let finalizers = settle_finalizers(metadata_mut(&mut marked)?, options.propagation);
    let holds = finalizers || holds_namespace(kind, old);
    let grace = grace_period(kind, old, options);

    let metadata = metadata_mut(&mut marked)?;
    match (metadata.get("deletionTimestamp").and_then(Value::as_str).and_then(time::parse), grace) {
        (None, 0) if !holds => return Ok(Deletion::Remove),
        (None, grace) => {
            metadata.insert("deletionTimestamp".into(), time::rfc3339(time::after(now, grace)).into());
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
            if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
                metadata.insert("generation".into(), generation.saturating_add(1).into());
            }
        }
        (Some(at), grace) => {
            let before = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
            // A second deletion may only hurry the first.
            let grace = grace.min(before).max(0);
            if grace == 0 && !holds {
                return Ok(Deletion::Remove);
            }
            if grace < before {
                let sooner = time::after(at, grace.saturating_sub(before));
                metadata.insert("deletionTimestamp".into(), time::rfc3339(sooner).into());
                metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
            }
        }
    }
    if kind.kind == "Namespace" {
        marked["status"]["phase"] = json!("Terminating");
    }
    if marked == *old { Ok(Deletion::Underway) } else { Ok(Deletion::Mark(marked)) }
}

/// What a deletion asks for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DeleteOptions {
    /// Seconds until it is enforced; the kind decides when nothing is said.
    pub grace_period_seconds: Option<i64>,
    /// Only the object of this uid.
    pub uid: Option<String>,
    /// Only the object as it was at this version.
    pub resource_version: Option<String>,
    /// What becomes of the objects it owns.
    pub propagation: Option<Propagation>,
    /// Only say what would happen.
    pub dry_run: bool,
}

/// What becomes of the objects that a deleted one owns.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Propagation {
    /// They stay, without owner.
    Orphan,
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
}

impl DeleteOptions {
    /// Reads a body; an absent one is `None`.
    pub fn from_body(body: Option<&Value>) -> Result<Self, Status> {
        let Some(body) = body.filter(|body| !body.is_null()) else { return Ok(Self::default()) };
        let malformed =
            |field: &str| Status::bad_request(format!("DeleteOptions: {field} has the wrong type"));
        if !body.is_object() {
            return Err(malformed("the body"));
        }
        let string = |value: &Value, field: &str| match value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            _ => Err(malformed(field)),
        };
        let grace_period_seconds = match &body["gracePeriodSeconds"] {
            Value::Null => None,
            value => Some(value.as_i64().ok_or_else(|| malformed("gracePeriodSeconds"))?),
        };
        let mut propagation = match string(&body["propagationPolicy"], "propagationPolicy")? {
            None => None,
            Some(policy) => Some(Propagation::parse(&policy)?),
        };
        if let Some(orphan) = body["orphanDependents"].as_bool() {
            propagation = Some(if orphan { Propagation::Orphan } else { Propagation::Background });
        }
        Ok(Self {
            grace_period_seconds,
            uid: string(&body["preconditions"]["uid"], "preconditions.uid")?,
            resource_version: string(
                &body["preconditions"]["resourceVersion"],
                "preconditions.resourceVersion",
            )?,
            propagation,
            dry_run: dry_run(&body["dryRun"])?,
        })
    }
}

/// The field `dryRun`: what is misspelled must not become a deletion.
fn dry_run(value: &Value) -> Result<bool, Status> {
    let values = match value {
        Value::Null => return Ok(false),
        Value::Array(values) => values,
        _ => return Err(Status::bad_request("DeleteOptions: dryRun has the wrong type")),
    };
    match values.iter().find(|value| *value != "All") {
        None => Ok(!values.is_empty()),
        Some(other) => Err(Status::new(
            Reason::Invalid,
            format!("DeleteOptions: dryRun: Unsupported value: {other}: supported values: \"All\""),
        )),
    }
}

impl Propagation {
    /// Reads `propagationPolicy`.
    pub fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "Orphan" => Ok(Self::Orphan),
            "Background" => Ok(Self::Background),
            "Foreground" => Ok(Self::Foreground),
            other => Err(Status::bad_request(format!(
                "propagationPolicy: Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
            ))),
        }
    }
}

/// The object's name, or an empty text.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The object's namespace, or an empty text.
pub fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

/// Whether the object's deletion has begun.
pub fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Takes `metadata.resourceVersion` out of an object that a client sent, as the revision it was read at.
pub fn take_resource_version(object: &mut Value) -> Result<Option<u64>, Status> {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return Ok(None) };
    match metadata.remove("resourceVersion") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => match text.parse() {
            // Zero says "any version", as no object ever has it.
            Ok(0) => Ok(None),
            Ok(revision) => Ok(Some(revision)),
            Err(_) => Err(Status::bad_request(format!(
                "metadata.resourceVersion: Invalid value: {text:?}: must be a version this cluster gave"
            ))),
        },
        Some(_) => Err(Status::bad_request("metadata.resourceVersion must be a text")),
    }
}

/// Puts the revision into an object that was read from the store, as clients see it.
pub fn put_resource_version(object: &mut Value, revision: u64) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
}

/// The bytes that are stored.
pub fn encode(object: &Value) -> Vec<u8> {
    serde_json::to_vec(object).expect("a value of JSON has text keys only, so it can be written")
}

/// Reads stored bytes. They were written by [`encode`], so anything else is a damaged store.
pub fn read(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes)
        .map_err(|error| Status::internal(format!("a stored object is damaged: {error}")))
}

/// Whether nothing but time holds an object under deletion.
pub fn may_vanish(kind: &Kind, object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty) && !holds_namespace(kind, object)
}

/// The common end of both updates: defaults are in, `new` is whole.
fn settle(kind: &Kind, old: &Value, new: &mut Value) -> Result<Update, Status> {
    if kind.counts_generations && differ_in_spec(old, new) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0).saturating_add(1);
        metadata_mut(new)?.insert("generation".into(), generation.into());
    }
    let mut errors = Errors::default();
    metadata::validate(kind, new, &mut errors);
    metadata::validate_update(old, new, &mut errors);
    (kind.rules.validate)(new, &mut errors).map_err(|error| unreadable(kind, &error))?;
    (kind.rules.validate_update)(old, new, &mut errors).map_err(|error| unreadable(kind, &error))?;
    finish(kind, name(old), new, errors)?;
    if *new == *old {
        return Ok(Update::Unchanged);
    }
    let grace = new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if is_deleting(new) && grace == 0 && may_vanish(kind, new) {
        return Ok(Update::Removed);
    }
    Ok(Update::Changed)
}

fn finish(kind: &Kind, name: &str, object: &Value, errors: Errors) -> Result<(), Status> {
    if !errors.is_empty() {
        return Err(Status::invalid(kind, name, &errors.into_inner()));
    }
    if encode(object).len() > OBJECT_BYTES_MAX {
        return Err(Status::too_large(&format!("{} {name:?}", kind.resource()), OBJECT_BYTES_MAX));
    }
    Ok(())
}

/// A namespaced object takes the namespace of the path; another one has none.
fn settle_namespace(kind: &Kind, object: &mut Value, of_path: Option<&str>) -> Result<(), Status> {
    let metadata = metadata_mut(object)?;
    if !kind.namespaced {
        metadata.remove("namespace");
        return Ok(());
    }
    let Some(of_path) = of_path else { return Ok(()) };
    match text(metadata, "namespace") {
        None | Some("") => {
            metadata.insert("namespace".into(), of_path.into());
            Ok(())
        }
        Some(found) if found == of_path => Ok(()),
        Some(_) => Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}

/// What the server owns in the metadata comes from the stored object; a client may repeat it, not change it.
fn keep_identity(kind: &Kind, old: &Value, new: &mut Value) -> Result<(), Status> {
    let metadata = metadata_mut(new)?;
    let given = text(metadata, "name").unwrap_or_default();
    if !given.is_empty() && given != name(old) {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({})",
            name(old)
        )));
    }
    if let Some(uid) = text(metadata, "uid").filter(|uid| !uid.is_empty())
        && old["metadata"]["uid"] != uid
    {
        let have = old["metadata"]["uid"].as_str().unwrap_or_default();
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {have}");
        return Err(Status::conflict(kind, name(old), &why));
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ] {
        keep(metadata, &old["metadata"], field);
    }
    for field in ["resourceVersion", "selfLink", "managedFields"] {
        metadata.remove(field);
    }
    Ok(())
}

/// Whether anything but metadata and status differs.
fn differ_in_spec(old: &Value, new: &Value) -> bool {
    const ASIDE: [&str; 2] = ["metadata", "status"];
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return true };
    let spec = |object: &'_ Map<String, Value>| -> Vec<(String, Value)> {
        let kept = object.iter().filter(|(field, _)| !ASIDE.contains(&field.as_str()));
        kept.map(|(field, value)| (field.clone(), value.clone())).collect()
    };
    spec(old) != spec(new)
}

/// Sets the finalizers that the policy asks for. Says whether any are left.
fn settle_finalizers(metadata: &mut Map<String, Value>, propagation: Option<Propagation>) -> bool {
    const FOREGROUND: &str = "foregroundDeletion";
    const ORPHAN: &str = "orphan";
    let mut finalizers = match metadata.remove("finalizers") {
        Some(Value::Array(finalizers)) => finalizers,
        _ => Vec::new(),
    };
    if let Some(propagation) = propagation {
        finalizers.retain(|finalizer| finalizer != FOREGROUND && finalizer != ORPHAN);
        match propagation {
            Propagation::Background => {}
            Propagation::Foreground => finalizers.push(FOREGROUND.into()),
            Propagation::Orphan => finalizers.push(ORPHAN.into()),
        }
    }
    let any = !finalizers.is_empty();
    if any {
        metadata.insert("finalizers".into(), finalizers.into());
    }
    any
}

/// A namespace stays until its content is gone: `spec.finalizers` holds it.
fn holds_namespace(kind: &Kind, object: &Value) -> bool {
    kind.kind == "Namespace"
        && object["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

/// Seconds a deletion waits: only a pod on a node has something to finish.
fn grace_period(kind: &Kind, object: &Value, options: &DeleteOptions) -> i64 {
    if kind.kind != "Pod" {
        return 0;
    }
    let bound = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !bound || ended {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    match options.grace_period_seconds.unwrap_or(own) {
        // Upstream reads a negative period as the shortest one.
        negative if negative < 0 => 1,
        grace => grace,
    }
}

fn apply(kind: &Kind, object: &mut Value, step: fn(Value) -> Result<Value, WrongType>) -> Result<(), Status> {
    *object = step(object.clone()).map_err(|error| unreadable(kind, &error))?;
    Ok(())
}

/// Takes over `field` as it is in `from`, also when it is absent there.
fn keep(fields: &mut Map<String, Value>, from: &Value, field: &str) {
    match from.get(field) {
        Some(value) => fields.insert(field.into(), value.clone()),
        None => fields.remove(field),
    };
}

fn text<'a>(fields: &'a Map<String, Value>, field: &str) -> Option<&'a str> {
    fields.get(field).and_then(Value::as_str)
}

fn fields_mut(object: &mut Value) -> Result<&mut Map<String, Value>, Status> {
    object.as_object_mut().ok_or_else(|| Status::bad_request("the body of the request is no object"))
}

fn metadata_mut(object: &mut Value) -> Result<&mut Map<String, Value>, Status> {
    let metadata = fields_mut(object)?.entry("metadata").or_insert_with(|| json!({}));
    metadata.as_object_mut().ok_or_else(|| Status::bad_request("metadata: must be an object"))
}
