//! Deleting one object, or all that a selector names.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use skein_api::kinds::Kind;
use skein_api::object::{self, DeleteOptions, Deletion, Propagation};
use skein_api::sealed;
use skein_api::status::{self, Status};
use skein_api::write::{NodeDeletion, Write};

use crate::api::{Answer, Api, Call};
use crate::cluster::{Freshness, Snapshot};
use crate::commit::{Step, unavailable};
use crate::query::{self, ListOptions, Query};
use crate::read::{self, Filter};
use crate::respond::{self, Body};

/// Namespaces that the cluster itself lives in.
const KEPT_NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Objects that one page of a deletecollection looks at.
const PAGE: usize = 500;

impl Api {
    /// DELETE of one object.
    pub(crate) async fn delete(&self, call: &Call<'_>, name: &str) -> Answer {
        let options = delete_options(call)?;
        let removed = self.delete_object(call.kind(), call.resource.key_namespace(), name, &options).await?;
        match removed {
            Removal::Under(object) => {
                let mut object = [object];
                self.open_or_empty(call.kind(), &mut object).await;
                let [object] = object;
                self.answer_object(call, StatusCode::OK, object, &[])
            }
            Removal::Done { uid } => Ok(removed_answer(call.kind(), name, &uid)),
        }
    }

    /// DELETE of a collection. Objects that others delete at the same time are no error.
    pub(crate) async fn delete_collection(&self, call: &Call<'_>) -> Answer {
        let kind = call.kind();
        let options = delete_options(call)?;
        let list = ListOptions::parse(call.query, false)?;
        let filter = Filter::parse(kind, &list)?;
        let snapshot = self.cluster.read(Freshness::Latest).await.map_err(unavailable)?;
        let prefix = kind.prefix(call.resource.namespace.as_deref());
        let (mut after, mut shown) = (None, Vec::new());
        loop {
            let page = snapshot.range(&prefix, after.as_deref(), PAGE);
            for (_, bytes, revision) in &page {
                let object = read::stored(bytes, *revision)?;
                if !filter.matches(&object) {
                    continue;
                }
                let (namespace, name) = (object::namespace(&object), object::name(&object));
                match self.delete_object(kind, namespace, name, &options).await {
                    Ok(_) => shown.push(object),
                    Err(status) if status.code() == 404 => {}
                    Err(status) => return Err(status),
                }
            }
            match page.last() {
                Some((key, ..)) if page.len() == PAGE => after = Some(key.to_string()),
                _ => break,
            }
        }
        self.open_or_empty(kind, &mut shown).await;
        let metadata = json!({ "resourceVersion": snapshot.revision().to_string() });
        self.answer_list(call, shown, metadata, &[])
    }

    /// Opens objects that are sealed; what is deleted needs nobody who can, and is shown without its values then.
    async fn open_or_empty(&self, kind: &Kind, objects: &mut [Value]) {
        if self.open(kind, objects).await.is_err() {
            objects.iter_mut().for_each(sealed::remove_data);
        }
    }

    /// Deletes one object as `options` say.
    pub(crate) async fn delete_object(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Removal, Status> {
        if kind.kind == "Namespace" && KEPT_NAMESPACES.contains(&name) {
            return Err(Status::forbidden(kind, name, "this namespace may not be deleted"));
        }
        let key = kind.key(namespace, name).to_string();
        let mut gone = None;
        let now = self.cluster.now();
        let committed = self
            .commit(options.dry_run, Status::modified(kind, name), None, |snapshot: &dyn Snapshot| {
                let (bytes, revision) = snapshot.get(&key).ok_or_else(|| Status::not_found(kind, name))?;
                let old = object::read(&bytes)?;
                if options.resource_version.as_deref().is_some_and(|asked| asked != revision.to_string()) {
                    return Err(Status::conflict(kind, name, &precondition_failed(options, revision)));
                }
                gone = None;
                if kind.kind == "Node" {
                    let meant = self.cluster.node_deletion(snapshot, name);
                    match meant.map_err(|why| Status::forbidden(kind, name, &why))? {
                        NodeDeletion::Object => {}
                        NodeDeletion::Membership(writes) if writes.is_empty() => {
                            return Ok(Step::Unchanged { object: old, revision });
                        }
                        NodeDeletion::Membership(writes) => return Ok(Step::Write { writes, object: old }),
                    }
                }
                Ok(match object::prepare_delete(kind, &old, options, now)? {
                    Deletion::Remove => {
                        gone = Some(old["metadata"]["uid"].as_str().unwrap_or_default().to_owned());
                        Step::Write { writes: vec![Write::delete(&key, revision)], object: old }
                    }
                    Deletion::Mark(marked) => {
                        let write = Write::replace(&key, revision, object::encode(&marked));
                        Step::Write { writes: vec![write], object: marked }
                    }
                    Deletion::Underway => Step::Unchanged { object: old, revision },
                })
            })
            .await?;
        Ok(match gone {
            Some(uid) => Removal::Done { uid },
            None => Removal::Under(committed.object),
        })
    }
}

/// How far a deletion has come.
pub(crate) enum Removal {
    /// The object is gone.
    Done { uid: String },
    /// It goes when its node or its finalizers let it go.
    Under(Value),
}

fn removed_answer(kind: &Kind, name: &str, uid: &str) -> Response<Body> {
    respond::value(StatusCode::OK, &status::success(kind, name, uid), false)
}

fn precondition_failed(options: &DeleteOptions, revision: u64) -> String {
    let asked = options.resource_version.as_deref().unwrap_or_default();
    format!(
        "Precondition failed: ResourceVersion in precondition: {asked}, ResourceVersion in object meta: {revision}"
    )
}

/// From the body, or from the query where the body says nothing.
fn delete_options(call: &Call<'_>) -> Result<DeleteOptions, Status> {
    let body = if call.body == Bytes::new() { None } else { Some(call.parsed()?.value) };
    let mut options = DeleteOptions::from_body(body.as_ref())?;
    let query: &Query = call.query;
    if options.grace_period_seconds.is_none() {
        options.grace_period_seconds =
            query.number("gracePeriodSeconds")?.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX));
    }
    if options.propagation.is_none() {
        options.propagation = match query.get("propagationPolicy") {
            Some(policy) => Some(Propagation::parse(policy)?),
            None if query.flag("orphanDependents")? => Some(Propagation::Orphan),
            None => None,
        };
    }
    options.dry_run |= query::dry_run(query.all("dryRun"))?;
    Ok(options)
}
