//! POST: a new object.

use http::StatusCode;
use serde_json::Value;
use skein_api::kinds::{self, Kind};
use skein_api::object::{self, Context};
use skein_api::status::Status;
use skein_api::write::{Expect, Write};

use crate::api::{Answer, Api, Call};
use crate::cluster::Snapshot;
use crate::commit::Step;
use crate::query;

/// How many suffixes are tried when a generated name is taken. Upstream's count.
const SUFFIXES: usize = 8;

impl Api {
    /// POST to a collection.
    pub(crate) async fn create(&self, call: &Call<'_>) -> Answer {
        let kind = call.kind();
        let sent = call.decoded()?;
        let dry_run = query::dry_run(call.query.all("dryRun"))?;
        let taken = Status::already_exists(kind, object::name(&sent.object));
        let committed = self
            .commit(dry_run, taken, None, |snapshot: &dyn Snapshot| {
                self.new_object(call, &sent.object, snapshot)
            })
            .await?;
        let mut warnings = sent.warnings;
        warnings.extend(object::warnings_on_create(kind, &committed.object));
        self.answer_object(call, StatusCode::CREATED, committed.object, &warnings)
    }

    fn new_object(&self, call: &Call<'_>, sent: &Value, snapshot: &dyn Snapshot) -> Result<Step, Status> {
        let kind = call.kind();
        let namespace = call.resource.key_namespace();
        let generated = object::name(sent).is_empty();
        let (uid, now) = (self.cluster.uid(), self.cluster.now());
        let (mut tries, mut object, mut key);
        tries = 0;
        loop {
            let suffix = self.cluster.suffix();
            let context = Context {
                now,
                uid: &uid,
                suffix: &suffix,
                namespace: call.resource.namespace.as_deref(),
                user: &call.caller.user,
            };
            object = sent.clone();
            object::prepare_create(kind, &mut object, &context)?;
            key = kind.key(namespace, object::name(&object)).to_string();
            if snapshot.get(&key).is_none() {
                break;
            }
            tries += 1;
            match generated {
                false => return Err(Status::already_exists(kind, object::name(&object))),
                true if tries == SUFFIXES => {
                    return Err(Status::generated_name_taken(kind, object::name(&object)));
                }
                true => {}
            }
        }
        let address = self.addresses.settle(kind, None, &mut object, snapshot, &uid)?;
        let mut writes = vec![Write::create(key, object::encode(&object))];
        writes.extend(address);
        writes.extend(living_namespace(kind, namespace, object::name(&object), snapshot)?);
        Ok(Step::Write { writes, object })
    }
}

/// The condition that the namespace is there and stays: checked as it was read, so that nothing is
/// created behind the back of its deletion.
fn living_namespace(
    kind: &Kind,
    namespace: &str,
    name: &str,
    snapshot: &dyn Snapshot,
) -> Result<Option<Write>, Status> {
    if !kind.namespaced {
        return Ok(None);
    }
    let namespaces = kinds::by_kind("", "Namespace").expect("namespaces are served");
    let key = namespaces.key("", namespace).to_string();
    let (bytes, revision) = snapshot.get(&key).ok_or_else(|| Status::not_found(namespaces, namespace))?;
    if object::is_deleting(&object::read(&bytes)?) {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(Status::forbidden(kind, name, &why));
    }
    Ok(Some(Write::check(key, Expect::Revision(revision))))
}
