//! Answers: JSON, `Status`, and streams.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WARNING};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, SizeHint};
use serde_json::Value;
use skein_api::status::Status;

/// Why a body broke off.
pub type BodyError = std::io::Error;

/// The body of a request or of an answer.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Any body as ours.
pub fn body_from<B>(body: B) -> Body
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    body.map_err(BodyError::other).boxed_unsync()
}

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    body_from(Full::new(bytes.into()))
}

/// A body that breaks off with `error`.
pub(crate) fn broken(error: BodyError) -> Body {
    BodyExt::boxed_unsync(StreamBody::new(futures::stream::iter([Err::<Frame<Bytes>, _>(error)])))
}

/// A `Status` with its code.
pub(crate) fn status(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(code, &status.to_value(), false);
    if let Some(seconds) = status.retry_after_seconds() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// JSON; `pretty` for people.
pub(crate) fn value(code: StatusCode, value: &Value, pretty: bool) -> Response<Body> {
    let text = if pretty { format!("{value:#}\n") } else { format!("{value}\n") };
    bytes(code, "application/json", text)
}

/// Bytes of any type.
pub(crate) fn bytes(code: StatusCode, content_type: &str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = code;
    let content_type = HeaderValue::from_str(content_type).expect("content types are constants of ours");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Pieces as they come. Each is sent on at once; the next one is asked for when there is room.
pub(crate) fn stream<S>(content_type: &str, pieces: S) -> Response<Body>
where
    S: Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
{
    let mut response = bytes(StatusCode::OK, content_type, Bytes::new());
    *response.body_mut() = BodyExt::boxed_unsync(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))));
    response
}

/// Keeps `held` until the body has been sent or dropped.
pub(crate) fn holding<T: Send + Unpin + 'static>(body: Body, held: T) -> Body {
    BodyExt::boxed_unsync(Holding { body, _held: held })
}

/// See [`holding`].
struct Holding<T> {
    body: Body,
    _held: T,
}

impl<T: Unpin> hyper::body::Body for Holding<T> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    // Without it the answer would lose its length.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Adds what kubectl prints as `Warning: ...`.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    // A header has no line ends, and upstream too cuts what grows beyond all measure.
    for text in warnings.iter().take(WARNINGS_MAX) {
        let quoted: String = text
            .chars()
            .take(WARNING_CHARS_MAX)
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c if c.is_control() => vec![' '],
                c => vec![c],
            })
            .collect();
        if let Ok(header) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, header);
        }
    }
}

const WARNINGS_MAX: usize = 20;
const WARNING_CHARS_MAX: usize = 256;
