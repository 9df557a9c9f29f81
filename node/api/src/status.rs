//! What went wrong with a request, as the Kubernetes `Status` that clients act on.

use std::fmt;

use serde_json::{Value, json};

use crate::field::FieldError;
use crate::kinds::Kind;

/// A refused request. It is the answer's body and its HTTP code in one.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    reason: Reason,
    message: String,
    details: Option<Box<Details>>,
}

/// The machine's word for why; it fixes the HTTP code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// 400: the request itself is malformed.
    BadRequest,
    /// 401: who asks is unknown.
    Unauthorized,
    /// 403: who asks may not.
    Forbidden,
    /// 404: there is no such object, or no such resource.
    NotFound,
    /// 405: the resource does not have this verb.
    MethodNotAllowed,
    /// 406: none of the accepted media types can be served.
    NotAcceptable,
    /// 409: an object of this name is there.
    AlreadyExists,
    /// 409: the object has changed since it was read.
    Conflict,
    /// 410: it is gone for good.
    Gone,
    /// 410: the version asked for is no longer kept; list again.
    Expired,
    /// 413: the body or the object is too large.
    RequestEntityTooLarge,
    /// 415: a body of this media type is not understood.
    UnsupportedMediaType,
    /// 422: the object breaks rules; the causes name the fields.
    Invalid,
    /// 429: ask again later.
    TooManyRequests,
    /// 500: our fault.
    InternalError,
    /// 503: the cluster cannot answer now, for example without a quorum.
    ServiceUnavailable,
    /// 504: the answer did not come in time; a write may or may not have happened.
    Timeout,
    /// 507: the cluster's store is full.
    InsufficientStorage,
}

/// What the answer is about.
#[derive(Clone, Debug, Default, PartialEq)]
struct Details {
    name: String,
    group: String,
    kind: String,
    uid: String,
    causes: Vec<Cause>,
    retry_after_seconds: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
struct Cause {
    reason: &'static str,
    message: String,
    field: String,
}

impl Reason {
    /// The HTTP code of an answer with this reason.
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
            Self::InsufficientStorage => 507,
        }
    }
}

impl Status {
    /// Any reason, in own words.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), details: None }
    }

    /// There is no object of this name.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", kind.resource());
        Self::about_resource(Reason::NotFound, kind, name, message)
    }

    /// There is nothing at this path.
    pub fn no_such_resource() -> Self {
        let mut status = Self::new(Reason::NotFound, "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    /// An object of this name is there.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", kind.resource());
        Self::about_resource(Reason::AlreadyExists, kind, name, message)
    }

    /// A name made by the server was taken, after several tries.
    pub fn generated_name_taken(kind: &Kind, name: &str) -> Self {
        let message = format!(
            "{} {name:?} already exists, the server was not able to generate a unique name for the object",
            kind.resource()
        );
        Self::about_resource(Reason::AlreadyExists, kind, name, message)
    }

    /// The object has changed since the client read it, or is not in the needed state.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.resource());
        Self::about_resource(Reason::Conflict, kind, name, message)
    }

    /// The object has changed since the client read it.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    /// The object breaks rules; every broken one is in the message and in the causes.
    pub fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(FieldError::to_string).collect();
        let all = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = if kind.group.is_empty() {
            kind.kind.to_owned()
        } else {
            format!("{}.{}", kind.kind, kind.group)
        };
        let causes = errors
            .iter()
            .map(|error| Cause {
                reason: error.fault.reason(),
                message: error.body(),
                field: error.path.clone(),
            })
            .collect();
        Self {
            reason: Reason::Invalid,
            message: format!("{qualified} {name:?} is invalid: {all}"),
            details: Some(Box::new(Details {
                name: name.into(),
                group: kind.group.into(),
                kind: kind.kind.into(),
                causes,
                ..Details::default()
            })),
        }
    }

    /// Who asks may not do this to this object.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let name_part = if name.is_empty() { String::new() } else { format!(" {name:?}") };
        let message = format!("{}{name_part} is forbidden: {why}", kind.resource());
        Self::about_resource(Reason::Forbidden, kind, name, message)
    }

    /// The request is malformed.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// The resource does not have this verb.
    pub fn method_not_allowed() -> Self {
        Self::new(Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
    }

    /// Every client knows this sub-resource and this cluster does not have it.
    pub fn not_served(resource: &str, below: &str, instead: &str) -> Self {
        let message = format!("{resource}/{below} is not served by this cluster; {instead}");
        Self::new(Reason::MethodNotAllowed, message)
    }

    /// The version asked for is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// `limit` bytes may not be passed.
    pub fn too_large(what: &str, limit: usize) -> Self {
        let message = format!("{what} is too large; at most {limit} bytes are accepted");
        Self::new(Reason::RequestEntityTooLarge, message)
    }

    /// A body of this media type is not understood.
    pub fn unsupported_media_type(found: &str, supported: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format {found:?} - accepted media types include: {}",
            supported.join(", ")
        );
        Self::new(Reason::UnsupportedMediaType, message)
    }

    /// None of the accepted media types can be served.
    pub fn not_acceptable(supported: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", supported.join(", "));
        Self::new(Reason::NotAcceptable, message)
    }

    /// Ask again in `seconds`.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        Self::new(Reason::TooManyRequests, message).retry_after(seconds)
    }

    /// The cluster cannot answer now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    /// The answer did not come in time.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(Reason::Timeout, message)
    }

    /// A revision was asked for that this node did not reach in time.
    pub fn version_too_large(asked: u64, current: u64) -> Self {
        let mut status =
            Self::new(Reason::Timeout, format!("Too large resource version: {asked}, current: {current}"));
        status.details = Some(Box::new(Details {
            causes: vec![Cause {
                reason: "ResourceVersionTooLarge",
                message: "Too large resource version".into(),
                field: String::new(),
            }],
            retry_after_seconds: Some(1),
            ..Details::default()
        }));
        status
    }

    /// Our fault.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {message}"))
    }

    /// Says in the answer when to ask again.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = Some(seconds);
        self
    }

    /// The HTTP code.
    pub fn code(&self) -> u16 {
        self.reason.code()
    }

    /// The machine's word.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the header `Retry-After` should say.
    pub fn retry_after_seconds(&self) -> Option<u32> {
        self.details.as_ref().and_then(|details| details.retry_after_seconds)
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": format!("{:?}", self.reason), "code": self.code(),
        });
        if let Some(details) = &self.details {
            status["details"] = details.to_value();
        }
        status
    }

    fn about_resource(reason: Reason, kind: &Kind, name: &str, message: String) -> Self {
        let details = Details {
            name: name.into(),
            group: kind.group.into(),
            kind: kind.plural.into(),
            ..Details::default()
        };
        Self { reason, message, details: Some(Box::new(details)) }
    }
}

/// The answer to a deletion that left nothing: clients wait until no object has this uid.
pub fn success(kind: &Kind, name: &str, uid: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": Details { name: name.into(), group: kind.group.into(), kind: kind.plural.into(), uid: uid.into(), ..Details::default() }.to_value(),
    })
}

impl Details {
    fn to_value(&self) -> Value {
        let mut value = json!({});
        for (field, text) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !text.is_empty() {
                value[field] = json!(text);
            }
        }
        if !self.causes.is_empty() {
            value["causes"] = self
                .causes
                .iter()
                .map(
                    |cause| json!({ "reason": cause.reason, "message": cause.message, "field": cause.field }),
                )
                .collect();
        }
        if let Some(seconds) = self.retry_after_seconds {
            value["retryAfterSeconds"] = json!(seconds);
        }
        value
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{Errors, Path};
    use crate::kinds;

    #[test]
    fn every_broken_rule_is_in_the_message_and_in_the_causes() {
        let mut errors = Errors::default();
        errors.required(&Path::new("spec").child("containers").index(0).child("name"), "");
        errors.invalid(&Path::new("metadata").child("name"), "Web", "must be lower case");
        let status =
            Status::invalid(kinds::by_kind("apps", "Deployment").unwrap(), "Web", &errors.into_inner());
        assert_eq!(status.code(), 422);
        assert_eq!(
            status.message(),
            "Deployment.apps \"Web\" is invalid: [spec.containers[0].name: Required value, \
             metadata.name: Invalid value: \"Web\": must be lower case]"
        );
        let value = status.to_value();
        assert_eq!(value["details"]["causes"][0]["reason"], "FieldValueRequired");
        assert_eq!(value["details"]["causes"][1]["field"], "metadata.name");
        assert_eq!(value["details"]["kind"], "Deployment");
    }

    #[test]
    fn conflict_and_exists_differ_in_reason_only() {
        let pods = kinds::by_kind("", "Pod").unwrap();
        let (exists, conflict) = (Status::already_exists(pods, "web"), Status::modified(pods, "web"));
        assert_eq!((exists.code(), conflict.code()), (409, 409));
        assert_eq!(exists.to_value()["reason"], "AlreadyExists");
        assert_eq!(conflict.to_value()["reason"], "Conflict");
        assert_eq!(exists.message(), "pods \"web\" already exists");
    }

    #[test]
    fn a_deletion_names_the_uid_that_clients_wait_for() {
        let answer = success(kinds::by_kind("", "ConfigMap").unwrap(), "settings", "u-1");
        assert_eq!(answer["details"]["uid"], "u-1");
        assert_eq!(answer["status"], "Success");
    }
}
