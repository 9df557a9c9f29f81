//! What the server says of itself: version, resources, and the shape of objects.

use http::header::ACCEPT;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::Value;
use skein_api::openapi::Document;
use skein_api::status::Status;
use skein_api::{discovery, openapi};

use crate::api::{Answer, Settings, header};
use crate::compress::accepts_gzip;
use crate::negotiate::{self, MediaType, accepted};
use crate::query::Query;
use crate::respond::{self, Body};

/// `/version`.
pub(crate) fn version(settings: &Settings) -> Response<Body> {
    respond::value(StatusCode::OK, &discovery::version(&settings.version), true)
}

/// `/`: the paths there are.
pub(crate) fn root() -> Response<Body> {
    respond::value(StatusCode::OK, &discovery::paths(), true)
}

/// `/api`, `/apis` and below. `host` is where the client reached us.
pub(crate) fn answer(segments: &[String], accept: Option<&str>, host: &str) -> Answer {
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let value = match parts.as_slice() {
        [root @ ("api" | "apis")] => return Ok(at_root(*root == "api", accept, host)),
        ["api", version] => discovery::resources("", version),
        ["apis", group] => discovery::group(group),
        ["apis", group, version] => discovery::resources(group, version),
        _ => None,
    };
    value.map(|value| ok(&value)).ok_or_else(Status::no_such_resource)
}

/// Everything in one answer for those who ask for it, else the names only.
fn at_root(core: bool, accept: Option<&str>, host: &str) -> Response<Body> {
    let aggregated = negotiate::accepted(accept).iter().find_map(aggregated_version);
    let mut response = match aggregated {
        Some(version) => {
            let text = discovery::aggregated(core, version).to_string();
            respond::bytes(StatusCode::OK, &discovery::aggregated_media_type(version), text)
        }
        None if core => ok(&discovery::api_versions(host)),
        None => ok(&discovery::groups()),
    };
    // A cache between us and the client must not mix the two forms up.
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn aggregated_version(media: &MediaType) -> Option<&'static str> {
    let asked = media.essence == "application/json"
        && media.parameter("g") == Some("apidiscovery.k8s.io")
        && media.parameter("as") == Some("APIGroupDiscoveryList");
    ["v2", "v2beta1"].into_iter().find(|version| asked && media.parameter("v") == Some(version))
}

/// `/openapi/v2` and `/openapi/v3`.
pub(crate) async fn openapi(segments: Vec<String>, head: &Parts, query: &Query) -> Answer {
    let accept = accepted(header(&head.headers, ACCEPT));
    let json = accept.iter().any(MediaType::takes_json);
    // kubectl before 1.27 can read nothing but protobuf, and asks by a name with an `@` for it.
    let old = accept.iter().any(|media| media.essence.contains("openapi.spec.v2"));
    if !json && !old {
        return Err(Status::not_acceptable(&["application/json", openapi::V2_ACCEPT]));
    }
    // Made when it is first asked for, which takes a while.
    let made = tokio::task::spawn_blocking(move || {
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["v2"] if old => Some(OpenApi::Document(openapi::v2_protobuf(), openapi::V2_CONTENT_TYPE)),
            ["v2"] => Some(OpenApi::Document(openapi::v2_json(), JSON)),
            ["v3"] => Some(OpenApi::Index(openapi::v3_index())),
            ["v3", "api", version] => {
                openapi::v3_document("", version).map(|found| OpenApi::Document(found, JSON))
            }
            ["v3", "apis", group, version] => {
                openapi::v3_document(group, version).map(|found| OpenApi::Document(found, JSON))
            }
            _ => None,
        }
    });
    match made.await.map_err(|error| Status::internal(format!("the documents could not be made: {error}")))? {
        Some(OpenApi::Index(index)) => Ok(ok(&index)),
        Some(OpenApi::Document(found, content_type)) => Ok(document(found, content_type, head, query)),
        None => Err(Status::no_such_resource()),
    }
}

const JSON: &str = "application/json";

enum OpenApi {
    Index(Value),
    Document(&'static Document, &'static str),
}

/// A document with what lets clients keep it: under an address with its hash for good, else until it changes.
fn document(found: &'static Document, content_type: &str, head: &Parts, query: &Query) -> Response<Body> {
    let tag = format!("\"{}\"", found.hash());
    let asked = query.get("hash");
    if asked.is_some_and(|asked| asked != found.hash()) {
        let mut response = respond::bytes(StatusCode::MOVED_PERMANENTLY, content_type, Vec::new());
        let now = format!("{}?hash={}", head.uri.path(), found.hash());
        put(&mut response, header::LOCATION, &now);
        return response;
    }
    let known = header(&head.headers, header::IF_NONE_MATCH).is_some_and(|known| known.contains(&tag));
    let packed = accepts_gzip(&head.headers);
    let mut response = match (known, packed) {
        (true, _) => respond::bytes(StatusCode::NOT_MODIFIED, content_type, Vec::new()),
        (false, true) => respond::bytes(StatusCode::OK, content_type, found.gzip()),
        (false, false) => respond::bytes(StatusCode::OK, content_type, found.plain()),
    };
    if packed && !known {
        put(&mut response, header::CONTENT_ENCODING, "gzip");
    }
    put(&mut response, header::ETAG, &tag);
    put(&mut response, header::VARY, "Accept, Accept-Encoding");
    if asked.is_some() {
        put(&mut response, header::CACHE_CONTROL, "public, immutable, max-age=31536000");
    }
    response
}

fn put(response: &mut Response<Body>, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("paths and hashes are text without line ends");
    response.headers_mut().insert(name, value);
}

fn ok(value: &Value) -> Response<Body> {
    respond::value(StatusCode::OK, value, false)
}
