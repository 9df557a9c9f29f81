//! Questions to one other store, many at a time over one pipe.
//!
//! A link opens its pipe when it is first needed and again after it broke. Questions that wait at
//! that moment are sent as one frame, so a busy forwarder costs one write per round trip rather than
//! one per proposal.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use openraft::AsyncRuntime;
use openraft::async_runtime::{Mpsc, MpscReceiver, MpscSender, Select2};

use crate::VoterId;
use crate::head::{self, Name};
use crate::transport::{Broken, Lane, Pipe, PipeRx, Transport, Unreachable};
use crate::wire::{Request, Response, frame, parse};

/// A batch is closed at this size; with one command of 3 MiB more it still fits a frame.
const BATCH_BYTES: usize = 1 << 20;

/// Questions waiting for the link's task. More callers wait in line.
const QUEUE: usize = 1024;

/// Why a question has no answer. Whether it arrived is not known, except with `Unreachable`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// It never left.
    #[error("{0}")]
    Unreachable(String),
    /// It may have arrived.
    #[error("{0}")]
    Broken(String),
}

type Asked<Rt> = oneshot::Sender<Result<Response<Rt>, CallError>>;
type Queue<Rt> = <<Rt as AsyncRuntime>::Mpsc as Mpsc>::Sender<(Request<Rt>, Asked<Rt>)>;
type Queued<Rt> = <<Rt as AsyncRuntime>::Mpsc as Mpsc>::Receiver<(Request<Rt>, Asked<Rt>)>;

/// All links of one store, made when first used.
pub(crate) struct Links<Rt: AsyncRuntime> {
    own: Name,
    transport: Arc<dyn Transport>,
    open: Mutex<BTreeMap<(VoterId, Lane), Queue<Rt>>>,
}

impl<Rt: AsyncRuntime> Links<Rt> {
    pub(crate) fn new(own: Name, transport: Arc<dyn Transport>) -> Arc<Self> {
        Arc::new(Links { own, transport, open: Mutex::default() })
    }

    /// Opens a pipe of the caller's own; both ends have shown who they are.
    pub(crate) async fn open(&self, to: VoterId, lane: Lane) -> Result<Pipe, Unreachable> {
        head::open::<Rt>(&*self.transport, self.own, to, lane).await
    }

    /// Asks `to` over `lane`. The caller bounds the time; a dropped question is forgotten.
    pub(crate) async fn call(
        &self,
        to: VoterId,
        lane: Lane,
        request: Request<Rt>,
    ) -> Result<Response<Rt>, CallError> {
        let (asked, answer) = oneshot::channel();
        let queue = self.link(to, lane);
        if queue.send((request, asked)).await.is_err() {
            return Err(CallError::Unreachable("the link is closed".into()));
        }
        answer.await.unwrap_or_else(|_| Err(CallError::Broken("the link was closed".into())))
    }

    fn link(&self, to: VoterId, lane: Lane) -> Queue<Rt> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let (queue, queued) = Rt::Mpsc::channel(QUEUE);
            drop(Rt::spawn(run::<Rt>(self.own, self.transport.clone(), to, lane, queued)));
            queue
        };
        open.entry((to, lane)).or_insert_with(start).clone()
    }

    /// Ends every link once its callers are gone.
    pub(crate) fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

async fn run<Rt: AsyncRuntime>(
    own: Name,
    transport: Arc<dyn Transport>,
    to: VoterId,
    lane: Lane,
    mut queued: Queued<Rt>,
) {
    while let Some(first) = queued.recv().await {
        let why = match head::open::<Rt>(&*transport, own, to, lane).await {
            Ok(pipe) => {
                converse(pipe, first, &mut queued).await;
                continue;
            }
            Err(unreachable) => unreachable.reason,
        };
        let mut failed = Some(first);
        while let Some((_, asked)) = failed {
            // A caller that no longer waits is no error.
            let _ = asked.send(Err(CallError::Unreachable(why.clone())));
            failed = queued.try_recv().ok();
        }
    }
}

/// Sends questions and hands out answers until the pipe breaks or nobody can ask any more.
async fn converse<Rt: AsyncRuntime>(pipe: Pipe, first: (Request<Rt>, Asked<Rt>), queued: &mut Queued<Rt>) {
    let Pipe { mut tx, rx } = pipe;
    let mut frames = frames(rx);
    let mut waiting = BTreeMap::new();
    let mut last_id = 0_u64;
    let mut next = Some(first);
    let why = 'broken: loop {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some((request, asked)) = next.take() {
            last_id += 1;
            bytes += request.size();
            batch.push((last_id, request));
            waiting.insert(last_id, asked);
            if bytes < BATCH_BYTES {
                next = queued.try_recv().ok();
            }
        }
        if !batch.is_empty() {
            // Reading goes on while the other end is slow to take what is sent: two stores that
            // ask each other must not wait for each other.
            let mut sending = tx.send(frame(&batch)).fuse();
            loop {
                match Rt::select2(&mut sending, frames.next()).await {
                    Select2::First(Ok(())) => break,
                    Select2::First(Err(Broken(why))) => break 'broken why,
                    Select2::Second(frame) => {
                        if let Err(why) = deliver(frame, &mut waiting) {
                            break 'broken why;
                        }
                    }
                }
            }
        }
        match Rt::select2(frames.next(), queued.recv()).await {
            Select2::First(frame) => {
                if let Err(why) = deliver(frame, &mut waiting) {
                    break why;
                }
            }
            Select2::Second(Some(question)) => next = Some(question),
            Select2::Second(None) => {
                tx.finish();
                break "the store has stopped".into();
            }
        }
    };
    for asked in waiting.into_values() {
        let _ = asked.send(Err(CallError::Broken(why.clone())));
    }
    if let Some((_, asked)) = next {
        let _ = asked.send(Err(CallError::Unreachable(why)));
    }
}

fn deliver<Rt: AsyncRuntime>(
    frame: Option<Result<Bytes, Broken>>,
    waiting: &mut BTreeMap<u64, Asked<Rt>>,
) -> Result<(), String> {
    let frame = frame.ok_or("the other end closed the pipe")?.map_err(|Broken(why)| why)?;
    for (id, response) in parse::<Vec<(u64, Response<Rt>)>>(&frame)? {
        if let Some(asked) = waiting.remove(&id) {
            let _ = asked.send(Ok(response));
        }
    }
    // Answers to abandoned questions may never come.
    waiting.retain(|_, asked| !asked.is_canceled());
    Ok(())
}

/// The frames of a pipe as a stream, which may be polled and left at any moment without losing one.
pub(crate) fn frames(rx: Box<dyn PipeRx>) -> BoxStream<'static, Result<Bytes, Broken>> {
    let next = |rx: Option<Box<dyn PipeRx>>| async move {
        let mut rx = rx?;
        match rx.recv().await {
            Ok(Some(frame)) => Some((Ok(frame), Some(rx))),
            Ok(None) => None,
            Err(broken) => Some((Err(broken), None)),
        }
    };
    // Fused, because it is asked again after its end when both directions end at once.
    futures::stream::unfold(Some(rx), next).fuse().boxed()
}
