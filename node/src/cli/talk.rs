//! Talking to this machine's daemon over its socket.

use std::path::Path;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::daemon::Failure;
use crate::home::Home;

/// Asks the daemon of `dir` one thing.
pub(super) fn talk(dir: &Path, method: Method, verb: &str, body: Option<Value>) -> Result<Value, Failure> {
    let bytes = body.map(|body| body.to_string()).unwrap_or_default();
    talk_with(dir, method, verb, Full::new(Bytes::from(bytes)))
}

/// The same with any body.
pub(super) fn talk_with<B>(dir: &Path, method: Method, verb: &str, body: B) -> Result<Value, Failure>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = Home::new(dir).socket();
        let stream = UnixStream::connect(&socket).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                format!(
                    "may not talk to the daemon at {}; use the user that started it (root)",
                    socket.display()
                )
            }
            _ => format!(
                "no daemon answers at {}; start it with: skein up, or name its directory with --data-dir",
                socket.display()
            ),
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("/skein/v1/{verb}"))
            .header("host", "skein")
            .body(body)?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        match status.is_success() {
            true => Ok(value),
            false => {
                let message = value["message"]
                    .as_str()
                    .map_or_else(|| format!("the daemon answered {status}"), str::to_owned);
                Err(message.into())
            }
        }
    })
}
