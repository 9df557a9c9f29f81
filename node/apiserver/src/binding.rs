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
        self.commit(dry_run, Status::modified(kind, name), None, |snapshot: &dyn Snapshot| {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skein_api::kinds;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::Identity;
    use crate::api::Settings;
    use crate::limits::Limits;
    use crate::negotiate::Form;
    use crate::path::{Resource, Sub};
    use crate::query::Query;
    use crate::testing::MemoryCluster;

    #[tokio::test]
    async fn an_eviction_deletes_its_pod_with_the_options_it_carries() {
        let cluster = MemoryCluster::with_default_namespace();
        let pod = json!({ "metadata": { "name": "web", "uid": "u" }, "spec": { "nodeName": "n1" } });
        cluster.put("core/pods/default/web", &pod.to_string());
        let api = Api::new(
            Arc::new(cluster.clone()),
            Settings::default(),
            Limits::default(),
            CancellationToken::new(),
        );
        let resource = Resource {
            kind: kinds::by_kind("", "Pod").unwrap(),
            namespace: Some("default".into()),
            name: Some("web".into()),
            subresource: Some(Sub::Eviction),
            watch: false,
        };
        let (query, caller) = (Query::default(), Identity::administrator("admin"));
        let call = |name: &str| {
            let eviction =
                json!({ "metadata": { "name": name }, "deleteOptions": { "gracePeriodSeconds": 3 } });
            Call {
                resource: &resource,
                query: &query,
                form: Form::Object,
                caller: &caller,
                media: None,
                body: eviction.to_string().into(),
            }
        };
        assert_eq!(api.evict(&call("other"), "web").await.unwrap_err().code(), 400);
        assert_eq!(api.evict(&call("web"), "web").await.unwrap().status(), StatusCode::CREATED);
        let going = cluster.value("core/pods/default/web").unwrap();
        assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 3);
    }
}
