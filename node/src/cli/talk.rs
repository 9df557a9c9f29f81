//! Talking to this machine's daemon over its socket.

use std::path::Path;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
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
        let answer = ask(dir, method, verb, body).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        understood(status, &bytes)
    })
}

/// The same where the daemon answers in lines: calls `told` with each that says how far it has come, and returns the
/// one that says what came of it. `None` if Ctrl-C was pressed meanwhile.
pub(super) fn talk_in_lines(
    dir: &Path,
    method: Method,
    verb: &str,
    told: impl Fn(&str),
) -> Result<Option<Value>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let talking = async {
        let answer = ask(dir, method, verb, Full::new(Bytes::new())).await?;
        let status = answer.status();
        let mut body = answer.into_body();
        let (mut unread, mut last) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            // A daemon that ends with its membership may end in the middle of saying so.
            let Ok(frame) = frame else { break };
            unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = unread.drain(..=end).collect();
                let line: Value = serde_json::from_slice(&line)?;
                match line["progress"].as_str() {
                    Some(progress) => told(progress),
                    None => last = Some(line),
                }
            }
        }
        if !status.is_success() {
            return understood(status, &unread).map(Some);
        }
        last.map(Some).ok_or_else(|| {
            "the daemon went away before it had said what came of it; see: skein status".into()
        })
    };
    runtime.block_on(async {
        tokio::select! {
            talked = talking => talked,
            interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| None).map_err(Into::into),
        }
    })
}

/// The same where the answer is of any length: hands `take` each piece of it.
pub(super) fn talk_in_pieces(
    dir: &Path,
    method: Method,
    verb: &str,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let answer = ask(dir, method, verb, Full::new(Bytes::new())).await?;
        let status = answer.status();
        let mut body = answer.into_body();
        if !status.is_success() {
            return understood(status, &body.collect().await?.to_bytes()).map(drop);
        }
        while let Some(frame) = body.frame().await {
            let cut = |_| "the daemon went away before it had given everything; nothing was made";
            if let Ok(piece) = frame.map_err(cut)?.into_data() {
                take(&piece)?;
            }
        }
        Ok(())
    })
}

async fn ask<B>(dir: &Path, method: Method, verb: &str, body: B) -> Result<Response<Incoming>, Failure>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let socket = Home::new(dir).socket();
    let stream = UnixStream::connect(&socket).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            format!("may not talk to the daemon at {}; use the user that started it (root)", socket.display())
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
    Ok(sender.send_request(request).await?)
}

fn understood(status: StatusCode, bytes: &[u8]) -> Result<Value, Failure> {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    match status.is_success() {
        true => Ok(value),
        false => {
            let message = value["message"]
                .as_str()
                .map_or_else(|| format!("the daemon answered {status}"), str::to_owned);
            Err(message.into())
        }
    }
}
