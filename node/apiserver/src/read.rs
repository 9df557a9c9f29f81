//! GET: one object, or a list of them.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value};
use skein_api::kinds::Kind;
use skein_api::object;
use skein_api::sealed;
use skein_api::selector::{FieldSelector, Selector};
use skein_api::status::Status;
use tokio::time::Instant;

use crate::api::{Answer, Api, Call};
use crate::cluster::{Cluster, Freshness, Snapshot, Unavailable};
use crate::commit::unavailable;
use crate::pages::{self, Token};
use crate::query::{self, ListOptions, Match, Version};

/// Entries taken from a snapshot at a time.
const CHUNK: usize = 500;

impl Api {
    /// GET of one object.
    pub(crate) async fn get(&self, call: &Call<'_>, name: &str) -> Answer {
        let kind = call.kind();
        let at = freshness(query::version(call.query)?);
        let (snapshot, warnings) = self.picture(at).await?;
        let key = kind.key(call.resource.key_namespace(), name).to_string();
        let (bytes, revision) = snapshot.get(&key).ok_or_else(|| Status::not_found(kind, name))?;
        let mut object = [stored(&bytes, revision)?];
        self.open(kind, &mut object).await?;
        let [object] = object;
        self.answer_object(call, StatusCode::OK, object, &warnings)
    }

    /// GET of a collection.
    pub(crate) async fn list(&self, call: &Call<'_>, options: &ListOptions) -> Answer {
        let filter = Filter::parse(call.kind(), options)?;
        let prefix = call.kind().prefix(call.resource.namespace.as_deref());
        let begin = self.beginning(&prefix, options).await?;
        let mut page = page(&*begin.snapshot, &prefix, begin.after, options.limit, &filter)?;
        self.open(call.kind(), &mut page.objects).await?;

        let mut metadata = Map::new();
        metadata.insert("resourceVersion".into(), begin.revision.to_string().into());
        if let Some(last) = page.last {
            self.pages.hold(&begin.snapshot, Instant::now());
            let token = Token::new(begin.revision, last.strip_prefix(&prefix).unwrap_or_default());
            metadata.insert("continue".into(), token.encode().into());
            if filter.is_everything() {
                let rest = begin.snapshot.range(&prefix, Some(&last), usize::MAX).len();
                metadata.insert("remainingItemCount".into(), rest.into());
            }
        }
        self.answer_list(call, page.objects, Value::Object(metadata), &begin.warnings)
    }

    /// Opens objects that are sealed.
    pub(crate) async fn open(&self, kind: &Kind, objects: &mut [Value]) -> Result<(), Status> {
        open(&*self.cluster, kind, objects).await
    }

    /// A picture as fresh as asked for. Where no majority confirms that this node's own is the latest, it is that
    /// one all the same, with a warning for whoever looks at it: in an outage people look first.
    pub(crate) async fn picture(&self, at: Freshness) -> Result<(Arc<dyn Snapshot>, Vec<String>), Status> {
        match self.cluster.read(at).await {
            Ok(snapshot) => Ok((snapshot, Vec::new())),
            Err(Unavailable::NoQuorum(why)) if at == Freshness::Latest => {
                let snapshot = self.cluster.read(Freshness::Any).await.map_err(unavailable)?;
                Ok((snapshot, vec![format!("this may be out of date: {why}")]))
            }
            Err(why) => Err(unavailable(why)),
        }
    }

    /// The picture that a list is read from, and where in it.
    async fn beginning(&self, prefix: &str, options: &ListOptions) -> Result<Beginning, Status> {
        if let Some(token) = &options.token {
            let token = Token::decode(token)?;
            let snapshot = self.exactly(prefix, token.rv).await?.ok_or_else(pages::expired)?;
            let after = Some(format!("{prefix}{}", token.after));
            return Ok(Beginning { snapshot, revision: token.rv, after, warnings: Vec::new() });
        }
        // Upstream's rule: a limit makes a version exact unless the client says otherwise.
        let exact = match options.version_match {
            Some(wanted) => wanted == Match::Exact,
            None => options.limit > 0,
        };
        if let (Version::Revision(revision), true) = (options.version, exact) {
            let snapshot = self
                .exactly(prefix, revision)
                .await?
                .ok_or_else(|| Status::expired("The resourceVersion for the provided list is too old."))?;
            return Ok(Beginning { snapshot, revision, after: None, warnings: Vec::new() });
        }
        let (snapshot, warnings) = self.picture(freshness(options.version)).await?;
        Ok(Beginning { revision: snapshot.revision(), snapshot, after: None, warnings })
    }

    /// What lies under `prefix`, as it was at `revision`: from a snapshot that is held, or from the
    /// newest one if nothing under `prefix` has changed in between. `None` if that is not known any more.
    async fn exactly(&self, prefix: &str, revision: u64) -> Result<Option<Arc<dyn Snapshot>>, Status> {
        if let Some(held) = self.pages.at(revision, Instant::now()) {
            return Ok(Some(held));
        }
        let newest = self.cluster.read(Freshness::AtLeast(revision)).await.map_err(unavailable)?;
        if newest.revision() == revision {
            return Ok(Some(newest));
        }
        let Ok(since) = self.cluster.watch(prefix, revision).await else { return Ok(None) };
        Ok((since.revision() >= newest.revision()).then_some(newest))
    }
}

/// Where a list is read from.
struct Beginning {
    snapshot: Arc<dyn Snapshot>,
    /// The version that the list says: that of its first page.
    revision: u64,
    after: Option<String>,
    /// What whoever reads it has to know.
    warnings: Vec<String>,
}

/// Some objects of a list.
struct Page {
    objects: Vec<Value>,
    /// The last key looked at, if there are more.
    last: Option<String>,
}

fn page(
    snapshot: &dyn Snapshot,
    prefix: &str,
    mut after: Option<String>,
    limit: usize,
    filter: &Filter,
) -> Result<Page, Status> {
    let mut objects = Vec::new();
    let limit = if limit == 0 { usize::MAX } else { limit };
    loop {
        let chunk = snapshot.range(prefix, after.as_deref(), CHUNK);
        for (index, (key, bytes, revision)) in chunk.iter().enumerate() {
            let object = stored(bytes, *revision)?;
            if filter.matches(&object) {
                objects.push(object);
            }
            if objects.len() == limit {
                let more = index + 1 < chunk.len() || !snapshot.range(prefix, Some(key), 1).is_empty();
                return Ok(Page { objects, last: more.then(|| key.to_string()) });
            }
        }
        match chunk.last() {
            Some((key, ..)) if chunk.len() == CHUNK => after = Some(key.to_string()),
            _ => return Ok(Page { objects, last: None }),
        }
    }
}

/// Opens objects of one kind, if they are sealed.
pub(crate) async fn open(cluster: &dyn Cluster, kind: &Kind, objects: &mut [Value]) -> Result<(), Status> {
    match sealed::is_due(&kind.prefix(None)) && !objects.is_empty() {
        true => cluster.open(objects).await.map_err(unavailable),
        false => Ok(()),
    }
}

/// A stored object as clients see it, sealed if it is.
pub(crate) fn stored(bytes: &[u8], revision: u64) -> Result<Value, Status> {
    let mut object = object::read(bytes)?;
    object::put_resource_version(&mut object, revision);
    Ok(object)
}

fn freshness(version: Version) -> Freshness {
    match version {
        Version::Unset => Freshness::Latest,
        Version::Any => Freshness::Any,
        Version::Revision(revision) => Freshness::AtLeast(revision),
    }
}

/// Which objects of a collection are meant.
pub(crate) struct Filter {
    labels: Selector,
    fields: FieldSelector,
}

impl Filter {
    /// Reads the selectors of a request.
    pub(crate) fn parse(kind: &Kind, options: &ListOptions) -> Result<Self, Status> {
        let labels =
            Selector::parse(&options.labels).map_err(|error| Status::bad_request(error.to_string()))?;
        Ok(Filter { labels, fields: FieldSelector::parse(kind, &options.fields)? })
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.matches_object(object) && self.fields.matches(object)
    }

    /// The only name that can match, where the fields say one.
    pub(crate) fn name(&self) -> Option<&str> {
        self.fields.name()
    }

    fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }
}
