//! Large answers as gzip, for clients that take it: kubectl and client-go always do.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::BodyExt;
use hyper::body::Body as _;

use crate::respond::{self, Body};

/// Smaller answers are sent faster than they are compressed on a local network. Upstream's threshold.
pub(crate) const BYTES_MIN: u64 = 128 << 10;

/// The answer as the client's `Accept-Encoding` has it. Streams stay as they are: each line of them is
/// waited for.
pub(crate) async fn for_client(headers: &HeaderMap, response: Response<Body>) -> Response<Body> {
    let large = response.body().size_hint().exact().is_some_and(|bytes| bytes >= BYTES_MIN);
    if !large || response.headers().contains_key(CONTENT_ENCODING) || !accepts_gzip(headers) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let plain = match body.collect().await {
        Ok(whole) => whole.to_bytes(),
        Err(error) => return Response::from_parts(head, respond::broken(error)),
    };
    // Some megabytes take a while, in which this thread has others to serve.
    let shared = plain.clone();
    let body = match tokio::task::spawn_blocking(move || gzip(&shared)).await {
        Ok(compressed) => {
            head.headers.remove(CONTENT_LENGTH);
            head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            head.headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
            compressed
        }
        Err(_) => plain,
    };
    Response::from_parts(head, respond::full(body))
}

/// Whether gzip is among the encodings, and not with a quality of zero.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let offered = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    offered.flat_map(|text| text.split(',')).any(|encoding| {
        let (name, quality) = encoding.split_once(';').unwrap_or((encoding, "q=1"));
        let quality = quality.trim().trim_start_matches("q=").parse().unwrap_or(1.0_f32);
        name.trim().eq_ignore_ascii_case("gzip") && quality > 0.0
    })
}

fn gzip(plain: &[u8]) -> Bytes {
    // The fastest level already takes nine tenths of a list away. Upstream's choice too.
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 8), Compression::fast());
    encoder.write_all(plain).expect("memory can be written to");
    encoder.finish().expect("memory can be written to").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_taken_by_those_who_say_so() {
        for (header, expect) in [
            ("gzip", true),
            ("br, gzip;q=0.5", true),
            ("deflate,GZIP", true),
            ("gzip;q=0", false),
            ("identity", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(header));
            assert_eq!(accepts_gzip(&headers), expect, "{header}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
