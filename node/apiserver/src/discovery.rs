//! What the server says of itself: version, resources, and the shape of objects.

use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;
use skein_api::status::Status;
use skein_api::{discovery, openapi};

use crate::api::{Answer, Settings};
use crate::negotiate::{self, MediaType};
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
pub(crate) fn openapi(segments: &[String], accept: Option<&str>) -> Answer {
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let value = match parts.as_slice() {
        ["v2"] => return Ok(openapi_v2(accept)),
        ["v3"] => Some(openapi::v3_index()),
        ["v3", "api", version] => openapi::v3_document("", version),
        ["v3", "apis", group, version] => openapi::v3_document(group, version),
        _ => None,
    };
    value.map(|value| ok(&value)).ok_or_else(Status::no_such_resource)
}

/// kubectl before 1.27 can read nothing but protobuf here, and asks by a name with an `@` for it.
fn openapi_v2(accept: Option<&str>) -> Response<Body> {
    let protobuf = negotiate::accepted(accept).iter().any(|media| media.essence.contains("openapi.spec.v2"));
    if protobuf {
        respond::bytes(StatusCode::OK, openapi::V2_CONTENT_TYPE, openapi::V2_DOCUMENT)
    } else {
        ok(&openapi::v2_json())
    }
}

fn ok(value: &Value) -> Response<Body> {
    respond::value(StatusCode::OK, value, false)
}
