//! A node's API as a client on the same machine sees it: HTTP over the socket in its data directory.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// More than any answer the lab asks for.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// One event of a watch: an object is at most 1.5 MiB.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// A client of one node. Each request is a connection of its own, so that a dead node costs nothing later.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

/// Why a request had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon does not listen or went away.
    #[error("could not talk to the node at {socket}")]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The node said no.
    #[error("{status}: {message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The message of its `Status` object, or its body.
        message: String,
    },
}

impl Api {
    /// A client of the node whose data directory is `disk`.
    pub fn of(disk: &Path) -> Api {
        Api { socket: disk.join("skein.sock") }
    }

    /// Fetches an object or a list.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.request(Method::GET, path, None).await
    }

    /// Creates an object, or calls one of the daemon's own verbs.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.request(Method::POST, path, Some(("application/json", body))).await
    }

    /// Changes an object by merge patch.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, Error> {
        self.request(Method::PATCH, path, Some(("application/merge-patch+json", patch))).await
    }

    /// Deletes an object.
    pub async fn delete(&self, path: &str) -> Result<Value, Error> {
        self.request(Method::DELETE, path, None).await
    }

    /// Opens a watch: `path` carries `watch=true` and the rest.
    pub async fn watch(&self, path: &str) -> Result<Watch, Error> {
        let body = self.send(Method::GET, path, None).await?;
        Ok(Watch { body, line: BytesMut::new(), socket: self.socket.clone() })
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, Error> {
        let answer = Limited::new(self.send(method, path, body).await?, ANSWER_BYTES_MAX);
        let bytes =
            answer.collect().await.map_err(|error| self.unreachable(io::Error::other(error)))?.to_bytes();
        Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Incoming, Error> {
        let stream =
            tokio::net::UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(error))?;
        let broken = |error: hyper::Error| self.unreachable(io::Error::other(error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "skein");
        let mut bytes = Bytes::new();
        if let Some((kind, value)) = body {
            request = request.header("content-type", kind);
            bytes = serde_json::to_vec(value).expect("a JSON value is written without error").into();
        }
        let request = request.body(Full::new(bytes)).expect("the lab's paths are valid");
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let text = body.map(|body| body.to_bytes()).unwrap_or_default();
        let message = serde_json::from_slice::<Value>(&text)
            .ok()
            .and_then(|status| status["message"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned());
        Err(Error::Refused { status, message })
    }

    fn unreachable(&self, source: io::Error) -> Error {
        Error::Unreachable { socket: self.socket.clone(), source }
    }
}

/// The events of one watch, in order.
pub struct Watch {
    body: Incoming,
    line: BytesMut,
    socket: PathBuf,
}

impl Watch {
    /// The next event, `{"type": .., "object": ..}`; `None` when the node ended the watch.
    pub async fn next(&mut self) -> Result<Option<Value>, Error> {
        let broken = |source| Error::Unreachable { socket: self.socket.clone(), source };
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let event = serde_json::from_slice(&self.line[..end]);
                self.line.advance(end + 1);
                return event.map(Some).map_err(|error| broken(error.into()));
            }
            if self.line.len() > EVENT_BYTES_MAX {
                return Err(broken(io::ErrorKind::FileTooLarge.into()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame.map_err(|error| broken(io::Error::other(error)))?;
                    self.line.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
                }
            }
        }
    }
}
