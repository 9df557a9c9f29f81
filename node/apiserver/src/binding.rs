//! POST below a pod: giving it its node, and asking it to leave.

use http::StatusCode;
use serde_json::{Value, json};
use skein_api::binding;
use skein_api::object::{self, DeleteOptions};
use skein_api::status::Status;
use skein_api::write::Write;

use crate::api::{Answer, Api, Call};
use crate::cluster::Snapshot;
use crate::commit::Step;
use crate::query;
use crate::respond;

impl Api {
    /// POST to `binding`: a pod gets its node, once.
    pub(crate) async fn bind(&self, call: &Call<'_>, name: &str) -> Answer {
        let kind = call.kind();
        let asked = call.parsed()?.value;
        let key = kind.key(call.resource.key_namespace(), name).to_string();
        let now = self.cluster.now();
        let dry_run = query::dry_run(call.query.all("dryRun"))?;
        self.commit(dry_run, Status::modified(kind, name), |snapshot: &dyn Snapshot| {
            let (bytes, revision) = snapshot.get(&key).ok_or_else(|| Status::not_found(kind, name))?;
            let bound = binding::bind(&object::read(&bytes)?, &asked, now)?;
            let write = Write::replace(&key, revision, object::encode(&bound));
            Ok(Step::Write { writes: vec![write], object: bound })
        })
        .await?;
        Ok(respond::value(StatusCode::CREATED, &success(StatusCode::CREATED), false))
    }

    /// POST to `eviction`: deletes the pod as its own options say. There are no disruption budgets to ask.
    pub(crate) async fn evict(&self, call: &Call<'_>, name: &str) -> Answer {
        let eviction = call.parsed()?.value;
        let named = object::name(&eviction);
        if !named.is_empty() && named != name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let mut options = DeleteOptions::from_body(eviction.get("deleteOptions"))?;
        options.dry_run |= query::dry_run(call.query.all("dryRun"))?;
        self.delete_object(call.kind(), call.resource.key_namespace(), name, &options).await?;
        Ok(respond::value(StatusCode::CREATED, &success(StatusCode::CREATED), false))
    }
}

fn success(code: StatusCode) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16() })
}
