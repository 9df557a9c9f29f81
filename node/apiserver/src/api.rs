//! One request: where it goes, whether it may, in which form it is answered.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde_json::Value;
use skein_api::decode::{self, Decoded, Format, Parsed, Validation};
use skein_api::kinds::Kind;
use skein_api::status::{Reason, Status};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::addresses::{Addresses, ServiceRange};
use crate::cluster::Cluster;
use crate::compress;
use crate::discovery;
use crate::identity::Identity;
use crate::limits::{Class, InFlight, Limits, Ticket};
use crate::negotiate::{Form, MediaType};
use crate::pages::Pages;
use crate::path::{self, Resource, Route, Sub};
use crate::protobuf;
use crate::query::{ListOptions, Query};
use crate::respond::{self, Body};
use crate::update::Half;
use crate::view::View;

/// What the API says of this cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our own version; `/version` says it after that of the Kubernetes API.
    pub version: String,
    /// The addresses that Services get.
    pub services: ServiceRange,
}

impl Default for Settings {
    fn default() -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Settings { version, services: ServiceRange::default() }
    }
}

/// What answers requests. It keeps nothing of the cluster's state but snapshots of lists under way.
pub struct Api {
    pub(crate) cluster: Arc<dyn Cluster>,
    pub(crate) settings: Settings,
    pub(crate) addresses: Addresses,
    pub(crate) limits: Limits,
    pub(crate) pages: Pages,
    pub(crate) stopping: CancellationToken,
    in_flight: Arc<InFlight>,
}

/// An answer, or the refusal that takes its place.
pub(crate) type Answer = Result<Response<Body>, Status>;

/// A request to objects, read to its end.
pub(crate) struct Call<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) query: &'a Query,
    pub(crate) form: Form,
    pub(crate) caller: &'a Identity,
    /// What the body says it is.
    pub(crate) media: Option<MediaType>,
    pub(crate) body: Bytes,
}

impl Api {
    /// Answers over `cluster`. Its streams end when `stopping` is cancelled.
    pub fn new(
        cluster: Arc<dyn Cluster>,
        settings: Settings,
        limits: Limits,
        stopping: CancellationToken,
    ) -> Self {
        let addresses = Addresses { range: settings.services };
        let (pages, in_flight) = (Pages::default(), Arc::default());
        Api { cluster, settings, addresses, limits, pages, stopping, in_flight }
    }

    /// Answers one request of `caller`. `client` is whom its limits are counted for.
    ///
    /// Every failure is a `Status`; a panic is one too and ends nothing but its request.
    pub async fn answer(&self, request: Request<Body>, caller: &Identity, client: &str) -> Response<Body> {
        let began = Instant::now();
        let (head, mut body) = request.into_parts();
        let (method, uri) = (&head.method, &head.uri);
        let answer = AssertUnwindSafe(self.route(&head, &mut body, caller, client)).catch_unwind().await;
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => respond::status(&status),
            Err(panic) => {
                let why = panic_text(&*panic);
                error!(%method, %uri, panic = why, "a request ended in a panic");
                respond::status(&Status::internal(
                    "the server met a state it does not know; its log says more",
                ))
            }
        };
        let took_ms = began.elapsed().as_millis();
        debug!(%method, %uri, user = caller.user, code = response.status().as_u16(), took_ms, "answered");
        if body.is_end_stream() { response } else { self.after_the_rest_of(body, response).await }
    }

    /// `response`, once the client has sent what it has, within bounds: many clients take an answer that
    /// comes while they are sending for a broken connection and never show it.
    async fn after_the_rest_of(&self, mut body: Body, response: Response<Body>) -> Response<Body> {
        let mut left = self.limits.unread_bytes_max;
        let unread = async {
            while let Some(Ok(frame)) = body.frame().await {
                left = match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(left) => left,
                    None => return,
                };
            }
        };
        // Whether it came to its end or not: the answer goes out.
        let _ = timeout(self.limits.unread_time_max, unread).await;
        // Dropping the rest before the answer is sent would cancel the stream together with the answer.
        response.map(|answer| respond::holding(answer, body))
    }

    async fn route(&self, head: &Parts, body: &mut Body, caller: &Identity, client: &str) -> Answer {
        refuse_other_rights(&head.headers, caller)?;
        let route = path::route(head.uri.path()).ok_or_else(Status::no_such_resource);
        match &route {
            Ok(Route::Health) => {
                return read_only(&head.method, || respond::bytes(StatusCode::OK, "text/plain", "ok"));
            }
            Ok(Route::Version) => return read_only(&head.method, || discovery::version(&self.settings)),
            // Who somebody is and what they may is no secret to them.
            Ok(Route::Resource(resource)) if resource.kind.is_question() && caller.is_known() => {}
            _ if !caller.may_everything() => {
                return Err(forbidden(caller, &head.method, &head.uri, route.ok().as_ref()));
            }
            _ => {}
        }
        let query = Query::parse(head.uri.query())?;
        let accept = header(&head.headers, ACCEPT);
        match route? {
            Route::Discovery(segments) => {
                read_only(&head.method, || discovery::answer(&segments, accept, host(head)))?
            }
            Route::OpenApi(segments) => {
                read_only(&head.method, || discovery::openapi(segments, head, &query))?.await
            }
            Route::Resource(resource) => {
                let verb = Verb::of(&head.method, &resource, &query)?;
                let ticket = self.enter(client, verb.class(&query)?)?;
                let call = Call {
                    resource: &resource,
                    query: &query,
                    form: Form::choose(accept, has_rows(&resource))?,
                    caller,
                    media: header(&head.headers, CONTENT_TYPE).map(MediaType::parse),
                    body: self.read_body(body).await?,
                };
                // The answer of a stream begins in bounded time too; only its body goes on.
                let answer = timeout(self.limits.answer_time_max, self.perform(&call, verb)).await;
                let response = answer.map_err(|_| too_slow())??;
                let response = compress::for_client(&head.headers, response).await;
                // What is not read stays in memory: it counts until it is sent.
                Ok(response.map(|body| respond::holding(body, ticket)))
            }
            Route::Root => read_only(&head.method, discovery::root),
            Route::NotServed(asked) => {
                if asked.below == "attach" {
                    let _ticket = self.enter(client, Class::Stream)?;
                    self.let_it_end(&asked, query.get("container")).await?;
                }
                Err(Status::not_served(asked.kind.plural, asked.below, asked.instead))
            }
            Route::Health | Route::Version => Err(Status::no_such_resource()),
        }
    }

    fn enter(&self, client: &str, class: Class) -> Result<Ticket, Status> {
        let max = match class {
            Class::Short => self.limits.in_flight_max,
            Class::Stream => self.limits.streams_max,
        };
        self.in_flight.enter(client, class, max).ok_or_else(|| {
            Status::too_many_requests(
                format!("{client:?} has {max} requests under way; wait for some to end"),
                1,
            )
        })
    }

    async fn perform(&self, call: &Call<'_>, verb: Verb) -> Answer {
        let name = call.resource.name.as_deref().unwrap_or_default();
        match (verb, call.resource.subresource) {
            (Verb::Get, None | Some(Sub::Status)) => self.get(call, name).await,
            (Verb::List, None) => self.list(call, &ListOptions::parse(call.query, false)?).await,
            (Verb::Watch, None) => self.watch(call, &ListOptions::parse(call.query, true)?).await,
            (Verb::Create, None) if call.kind().is_question() => self.answer_question(call),
            (Verb::Create, None) => self.create(call).await,
            (Verb::Update, None) => self.update(call, name, Half::Main).await,
            (Verb::Update, Some(Sub::Status)) => self.update(call, name, Half::Status).await,
            (Verb::Update, Some(Sub::Finalize)) => self.update(call, name, Half::Finalizers).await,
            (Verb::Patch, None) => self.patch(call, name, Half::Main).await,
            (Verb::Patch, Some(Sub::Status)) => self.patch(call, name, Half::Status).await,
            (Verb::Delete, None) => self.delete(call, name).await,
            (Verb::DeleteCollection, None) => self.delete_collection(call).await,
            (Verb::Get, Some(Sub::Scale)) => self.get_scale(call, name).await,
            (Verb::Update, Some(Sub::Scale)) => self.update_scale(call, name).await,
            (Verb::Patch, Some(Sub::Scale)) => self.patch_scale(call, name).await,
            (Verb::Create, Some(Sub::Binding)) => self.bind(call, name).await,
            (Verb::Create, Some(Sub::Eviction)) => self.evict(call, name).await,
            (Verb::Get, Some(Sub::Log)) => self.log(call, name).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn read_body(&self, body: &mut Body) -> Result<Bytes, Status> {
        let max = self.limits.body_bytes_max;
        let read = timeout(self.limits.body_time_max, Limited::new(body, max).collect()).await;
        match read {
            Ok(Ok(whole)) => Ok(whole.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Status::too_large("the request", max)),
            Ok(Err(error)) => Err(Status::bad_request(format!("the body of the request broke off: {error}"))),
            Err(_) => Err(Status::timeout("the body of the request did not come in time; send it again")),
        }
    }

    /// Shows one object in the form the client wants.
    pub(crate) fn answer_object(
        &self,
        call: &Call<'_>,
        code: StatusCode,
        object: Value,
        warnings: &[String],
    ) -> Answer {
        let shown = call.view().object(call.kind(), object, self.cluster.now());
        let mut response = respond::value(code, &shown, call.query.flag("pretty")?);
        respond::warn(&mut response, warnings);
        Ok(response)
    }

    /// Shows a list in the form the client wants.
    pub(crate) fn answer_list(
        &self,
        call: &Call<'_>,
        objects: Vec<Value>,
        metadata: Value,
        warnings: &[String],
    ) -> Answer {
        let shown = call.view().list(call.kind(), objects, metadata, self.cluster.now());
        let mut response = respond::value(StatusCode::OK, &shown, call.query.flag("pretty")?);
        respond::warn(&mut response, warnings);
        Ok(response)
    }
}

impl Call<'_> {
    pub(crate) fn kind(&self) -> &'static Kind {
        self.resource.kind
    }

    pub(crate) fn view(&self) -> View {
        View::new(self.form, self.query)
    }

    /// What happens to fields that the kind does not have.
    pub(crate) fn validation(&self) -> Result<Validation, Status> {
        self.query.get("fieldValidation").unwrap_or_default().parse()
    }

    /// The body as an object of the path's kind.
    pub(crate) fn decoded(&self) -> Result<Decoded, Status> {
        let Parsed { value, duplicates } = self.parsed()?;
        decode::shape(self.kind(), value, duplicates, self.validation()?)
    }

    /// The body, of whatever kind.
    pub(crate) fn parsed(&self) -> Result<Parsed, Status> {
        // Nothing said is JSON, as it is upstream.
        match self.media.as_ref().map_or("application/json", |media| media.essence.as_str()) {
            "application/json" | "" => decode::parse(&self.body, Format::Json),
            "application/yaml" => decode::parse(&self.body, Format::Yaml),
            protobuf::MEDIA_TYPE => {
                Ok(Parsed { value: protobuf::decode(&self.body)?, duplicates: Vec::new() })
            }
            other => Err(Status::unsupported_media_type(
                other,
                &["application/json", "application/yaml", protobuf::MEDIA_TYPE],
            )),
        }
    }
}

/// What a request wants done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// The verb, if the resource has it.
    fn of(method: &Method, resource: &Resource, query: &Query) -> Result<Self, Status> {
        let named = resource.name.is_some();
        let verb = match *method {
            Method::GET if named && !resource.watch => Verb::Get,
            Method::GET if resource.watch || query.flag("watch")? => Verb::Watch,
            Method::GET => Verb::List,
            Method::POST if !named || resource.subresource.is_some() => Verb::Create,
            Method::PUT if named => Verb::Update,
            Method::PATCH if named => Verb::Patch,
            Method::DELETE if named => Verb::Delete,
            Method::DELETE => Verb::DeleteCollection,
            _ => return Err(Status::method_not_allowed()),
        };
        let served = match resource.subresource {
            None => resource.kind.verbs,
            Some(sub) => resource.kind.subresource(sub.name()).map_or(&[][..], |served| served.verbs),
        };
        if served.contains(&verb.name()) { Ok(verb) } else { Err(Status::method_not_allowed()) }
    }

    fn name(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }

    fn class(self, query: &Query) -> Result<Class, Status> {
        let streams = self == Verb::Watch || (self == Verb::Get && query.flag("follow")?);
        Ok(if streams { Class::Stream } else { Class::Short })
    }
}

/// Whether what travels there can be shown as a table: the answer to a question cannot.
fn has_rows(resource: &Resource) -> bool {
    !resource.kind.is_question()
}

/// The answer of `make`, to those who only look.
fn read_only<T>(method: &Method, make: impl FnOnce() -> T) -> Result<T, Status> {
    if matches!(*method, Method::GET | Method::HEAD) { Ok(make()) } else { Err(Status::method_not_allowed()) }
}

/// Where the client reached us, as it says itself.
fn host(head: &Parts) -> &str {
    let named = header(&head.headers, HOST);
    head.uri.authority().map(|authority| authority.as_str()).or(named).unwrap_or_default()
}

/// Refuses a request that wants to be taken for somebody else's: whoever asks for the rights of another must not be
/// given their own, which may be more.
fn refuse_other_rights(headers: &HeaderMap, caller: &Identity) -> Result<(), Status> {
    let other = |name: &&HeaderName| {
        let name = name.as_str();
        name.starts_with("impersonate-") || name.starts_with("x-remote-")
    };
    if let Some(name) = headers.keys().find(other) {
        let how = match name.as_str().starts_with("impersonate-") {
            true => "this cluster does not support acting as somebody else yet; leave out --as and its like",
            false => "this cluster takes nobody's word for who somebody is but a certificate's",
        };
        let user = &caller.user;
        let why = format!("forbidden: User {user:?} cannot use the header {:?}: {how}", name.as_str());
        return Err(Status::new(Reason::Forbidden, why));
    }
    if headers.contains_key(AUTHORIZATION) && !caller.is_known() {
        let why = "this cluster knows its clients by certificates only, not by tokens or passwords; \
                   `skein kubeconfig` makes one";
        return Err(Status::new(Reason::Unauthorized, why));
    }
    Ok(())
}

/// A header as text; one that is not counts as absent.
pub(crate) fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn too_slow() -> Status {
    Status::timeout(
        "the cluster did not answer in time; a write may or may not have happened, look before you repeat it",
    )
}

fn forbidden(caller: &Identity, method: &Method, uri: &Uri, route: Option<&Route>) -> Status {
    let user = &caller.user;
    match route {
        Some(Route::Resource(resource)) => {
            let kind = resource.kind;
            let place = match &resource.namespace {
                Some(namespace) => format!("in the namespace {namespace:?}"),
                None => "at the cluster scope".into(),
            };
            let why = format!(
                "User {user:?} cannot {} resource {:?} in API group {:?} {place}",
                method.as_str().to_lowercase(),
                kind.plural,
                kind.group
            );
            Status::forbidden(kind, resource.name.as_deref().unwrap_or_default(), &why)
        }
        _ => {
            let (verb, path) = (method.as_str().to_lowercase(), uri.path());
            Status::new(Reason::Forbidden, format!("forbidden: User {user:?} cannot {verb} path {path:?}"))
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
