//! What containers of this node printed, for this node's API and for other nodes'.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use skein_net::stream::Stream;
use skein_runtime::{Engine, LogOptions, LogStream, PodUid};

use crate::wire::{self, Answer, LogQuestion};

/// Opens logs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Logs(pub(crate) Arc<dyn Engine>);

impl Logs {
    /// The output asked for; the error says what there is not.
    pub(crate) async fn open(&self, question: LogQuestion) -> Answer<LogStream> {
        let uid: PodUid =
            question.uid.parse().map_err(|error: skein_runtime::InvalidName| error.to_string())?;
        let options = LogOptions {
            follow: question.follow,
            previous: question.previous,
            tail_lines: question.tail_lines,
            tail_bytes: None,
            since: None,
            since_time: question
                .since_ms
                .map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms.max(0) as u64)),
            limit_bytes: question.limit_bytes,
            timestamps: question.timestamps,
        };
        self.0.logs(&uid, &question.container, options).await.map_err(|error| error.to_string())
    }

    /// Answers another node: first whether there is such output, then the output in pieces.
    pub(crate) async fn serve(&self, question: LogQuestion, mut stream: Stream) {
        let opened = self.open(question).await;
        let said: Answer<()> = opened.as_ref().map(drop).map_err(String::clone);
        if stream.tx.send(wire::encode(&said)).await.is_err() {
            return;
        }
        let Ok(mut log) = opened else {
            let _ = stream.tx.finish();
            return;
        };
        loop {
            let piece = tokio::select! {
                piece = log.next() => piece,
                // The other end sends nothing more; when it goes, nobody follows any longer.
                _ = stream.rx.recv() => match log.next().await {
                    piece @ Some(_) => piece,
                    None => None,
                },
            };
            match piece {
                Some(Ok(bytes)) => {
                    if stream.tx.send(bytes).await.is_err() {
                        return;
                    }
                }
                // Dropping the stream tells the other end that this is not the whole.
                Some(Err(_)) => return,
                None => break,
            }
        }
        let _ = stream.tx.finish();
    }
}
