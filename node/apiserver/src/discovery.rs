//! What the server says of itself: version, resources, and the shape of objects.

use http::{Response, StatusCode, Uri};
use serde_json::json;
use skein_api::status::Status;

use crate::api::{Answer, Settings};
use crate::respond::{self, Body};

/// `/version`.
pub(crate) fn version(settings: &Settings) -> Response<Body> {
    let numbers = settings.version.trim_start_matches('v');
    let mut numbers = numbers.split('.');
    let version = json!({
        "major": numbers.next().unwrap_or_default(),
        "minor": numbers.next().unwrap_or_default(),
        "gitVersion": settings.version,
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    });
    respond::value(StatusCode::OK, &version, true)
}

/// `/api`, `/apis` and below.
pub(crate) fn answer(_segments: &[String], _accept: Option<&str>) -> Answer {
    Err(Status::no_such_resource())
}

/// `/openapi/v2` and `/openapi/v3`.
pub(crate) fn openapi(_segments: &[String], _accept: Option<&str>, _uri: &Uri) -> Answer {
    Err(Status::no_such_resource())
}
