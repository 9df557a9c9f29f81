//! GET, PUT and PATCH of `scale`: the number of replicas, in a form that all kinds share.

use std::sync::Mutex;

use http::StatusCode;
use serde_json::Value;
use skein_api::decode::Parsed;
use skein_api::kinds::{Kind, SCALE_KIND};
use skein_api::status::Status;
use skein_api::{decode, object, patch, scale};

use crate::api::{Answer, Api, Call};
use crate::cluster::Freshness;
use crate::commit::unavailable;
use crate::read::stored;
use crate::respond;
use crate::update::{Half, patch_of};

impl Api {
    /// GET of `scale`.
    pub(crate) async fn get_scale(&self, call: &Call<'_>, name: &str) -> Answer {
        let kind = call.kind();
        let snapshot = self.cluster.read(Freshness::Latest).await.map_err(unavailable)?;
        let key = kind.key(call.resource.key_namespace(), name).to_string();
        let (bytes, revision) = snapshot.get(&key).ok_or_else(|| Status::not_found(kind, name))?;
        self.answer_scale(call, &stored(&bytes, revision)?, &[])
    }

    /// PUT of `scale`.
    pub(crate) async fn update_scale(&self, call: &Call<'_>, name: &str) -> Answer {
        let Parsed { value, duplicates } = call.parsed()?;
        let sent = decode::shape(&SCALE_KIND, value, duplicates, call.validation()?)?;
        let scaled = self.scale(call, name, &|_| Ok(sent.object.clone())).await?;
        self.answer_scale(call, &scaled, &sent.warnings)
    }

    /// PATCH of `scale`. No list in it merges, so the strategic form needs no kind of its own.
    pub(crate) async fn patch_scale(&self, call: &Call<'_>, name: &str) -> Answer {
        let (form, patch) = patch_of(call)?;
        let validation = call.validation()?;
        let warnings = Mutex::new(Vec::new());
        let scaled = self
            .scale(call, name, &|scale| {
                let patched = patch::apply(call.kind(), form, scale, &patch)?;
                let shaped = decode::shape(&SCALE_KIND, patched, Vec::new(), validation)?;
                *warnings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = shaped.warnings;
                Ok(shaped.object)
            })
            .await?;
        let warnings = warnings.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.answer_scale(call, &scaled, &warnings)
    }

    async fn scale(
        &self,
        call: &Call<'_>,
        name: &str,
        wish: &(dyn Fn(&Value) -> Result<Value, Status> + Sync),
    ) -> Result<Value, Status> {
        let kind = call.kind();
        let (committed, _) =
            self.change(call, name, Half::Main, &|old| take_over(kind, &wish(&scale::of(old))?, old)).await?;
        Ok(committed.object)
    }

    fn answer_scale(&self, call: &Call<'_>, object: &Value, warnings: &[String]) -> Answer {
        let shown = call.view().object(&SCALE_KIND, scale::of(object), self.cluster.now());
        let mut response = respond::value(StatusCode::OK, &shown, call.query.flag("pretty")?);
        respond::warn(&mut response, warnings);
        Ok(response)
    }
}

/// Puts what a `Scale` asks for into the object, with the version it was read at, which is checked later.
fn take_over(kind: &Kind, asked: &Value, object: &Value) -> Result<Value, Status> {
    let (name, given) = (object::name(object), object::name(asked));
    if !given.is_empty() && given != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let mut scaled = scale::set(kind, object, asked)?;
    let mut asked = asked.clone();
    object::take_resource_version(&mut scaled)?;
    if let Some(revision) = object::take_resource_version(&mut asked)? {
        object::put_resource_version(&mut scaled, revision);
    }
    Ok(scaled)
}
