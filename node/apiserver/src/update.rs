//! PUT and PATCH: an object, or its status.

use http::StatusCode;
use serde_json::Value;
use skein_api::decode::{self, Format};
use skein_api::kinds::Kind;
use skein_api::object::{self, Context, Update};
use skein_api::patch;
use skein_api::status::Status;
use skein_api::write::Write;

use crate::api::{Answer, Api, Call};
use crate::cluster::Snapshot;
use crate::commit::{Committed, Step};
use crate::query;

/// Which half of an object a request writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Half {
    /// All but the status.
    Main,
    /// The status.
    Status,
    /// Of a namespace: the finalizers in its `spec`.
    Finalizers,
}

/// An object as it should become, computed from the one that is there (with its resource version).
type Wish<'a> = &'a (dyn Fn(&Value) -> Result<Value, Status> + Sync);

impl Api {
    /// PUT.
    pub(crate) async fn update(&self, call: &Call<'_>, name: &str, half: Half) -> Answer {
        let sent = call.decoded()?;
        let (committed, own) = self.change(call, name, half, &|_| Ok(sent.object.clone())).await?;
        let warnings: Vec<String> = sent.warnings.into_iter().chain(own).collect();
        self.answer_object(call, StatusCode::OK, committed.object, &warnings)
    }

    /// PATCH. The patch is applied here to the object as this node reads it, and committed only if it
    /// has not changed since.
    pub(crate) async fn patch(&self, call: &Call<'_>, name: &str, half: Half) -> Answer {
        let kind = call.kind();
        let (form, patch) = patch_of(call)?;
        let validation = call.validation()?;
        let warnings = std::sync::Mutex::new(Vec::new());
        let (committed, own) = self
            .change(call, name, half, &|old| {
                let patched = patch::apply(kind, form, old, &patch)?;
                let shaped = decode::shape(kind, patched, Vec::new(), validation)?;
                *warnings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = shaped.warnings;
                Ok(shaped.object)
            })
            .await?;
        let mut warnings = warnings.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        warnings.extend(own);
        self.answer_object(call, StatusCode::OK, committed.object, &warnings)
    }

    /// Brings the object to what `wish` makes of it. Says as well what whoever wished it should know of it.
    pub(crate) async fn change(
        &self,
        call: &Call<'_>,
        name: &str,
        half: Half,
        wish: Wish<'_>,
    ) -> Result<(Committed, Vec<String>), Status> {
        let kind = call.kind();
        let mut warnings = Vec::new();
        let key = kind.key(call.resource.key_namespace(), name).to_string();
        let dry_run = query::dry_run(call.query.all("dryRun"))?;
        let uid = self.cluster.uid();
        let context = Context {
            now: self.cluster.now(),
            uid: &uid,
            suffix: "",
            namespace: call.resource.namespace.as_deref(),
            user: &call.caller.user,
        };
        let taken = Status::modified(kind, name);
        let committed = self.commit(dry_run, taken, Some(&key), |snapshot: &dyn Snapshot| {
            warnings.clear();
            let (bytes, revision) = snapshot.get(&key).ok_or_else(|| Status::not_found(kind, name))?;
            let old = object::read(&bytes)?;
            let mut seen = old.clone();
            object::put_resource_version(&mut seen, revision);
            let mut new = wish(&seen)?;
            if object::take_resource_version(&mut new)?.is_some_and(|asked| asked != revision) {
                return Err(Status::modified(kind, name));
            }
            let mut writes = Vec::new();
            let update = match half {
                Half::Main => {
                    self.addresses.keep(kind, &old, &mut new);
                    let update = object::prepare_update(kind, &old, &mut new, &context)?;
                    writes.extend(self.addresses.settle(kind, Some(&old), &mut new, snapshot, &uid)?);
                    warnings = object::warnings_on_update(kind, &old, &new);
                    update
                }
                Half::Status => object::prepare_status_update(kind, &old, &mut new, &context)?,
                Half::Finalizers => finalizers(kind, &old, &mut new),
            };
            match update {
                Update::Unchanged => return Ok(Step::Unchanged { object: old, revision }),
                Update::Changed => writes.insert(0, Write::replace(&key, revision, object::encode(&new))),
                Update::Removed => writes.insert(0, Write::delete(&key, revision)),
            }
            Ok(Step::Write { writes, object: new })
        });
        Ok((committed.await?, warnings))
    }
}

/// Takes over nothing but the finalizers of a namespace's `spec`, which say who still has to clean up in it.
fn finalizers(kind: &Kind, old: &Value, new: &mut Value) -> Update {
    let mut merged = old.clone();
    if let Some(spec) = merged.get_mut("spec").and_then(Value::as_object_mut) {
        match new["spec"].get("finalizers") {
            Some(finalizers) => spec.insert("finalizers".into(), finalizers.clone()),
            None => spec.remove("finalizers"),
        };
    }
    *new = merged;
    if new == old {
        Update::Unchanged
    } else if object::is_deleting(new) && object::may_vanish(kind, new) {
        Update::Removed
    } else {
        Update::Changed
    }
}

/// Reads the body of a PATCH by its media type.
pub(crate) fn patch_of(call: &Call<'_>) -> Result<(patch::Type, Value), Status> {
    let media = call.media.as_ref().map_or("", |media| media.essence.as_str());
    if media.starts_with("application/apply-patch") {
        // Without managed fields an apply could not tell whose field is whose, and would drop those of others.
        let found = format!("{media} (server-side apply is not served; apply without --server-side)");
        return Err(Status::unsupported_media_type(&found, patch::MEDIA_TYPES));
    }
    let form = patch::Type::from_media_type(media)?;
    Ok((form, decode::parse(&call.body, Format::Json)?.value))
}
