//! What other stores ask of this one.
//!
//! The sender of a pipe is known by its certificate, and everything it sends must be in its own name:
//! a member cannot vote, lead or propose for another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use openraft::AsyncRuntime;
use openraft::async_runtime::{Mpsc, MpscReceiver, MpscSender, WatchReceiver};
use openraft::raft::AppendEntriesRequest;
use openraft::storage::Snapshot;

use crate::calls::frames;
use crate::handle::Handle;
use crate::head;
use crate::standing;
use crate::state::{STORE_BYTES_MAX, State};
use crate::transport::{Broken, Lane, Pipe, PipeTx};
use crate::wire::{Offer, Request, Response, check_run, frame, parse};
use crate::{TypeConfig, Vote};

/// Questions of one pipe that are being answered; beyond that the answer is `Busy`.
const UNDER_WAY_MAX: usize = 4096;

/// Answers gathered into one frame.
const BATCH_MAX: usize = 256;

impl<Rt: AsyncRuntime> Handle<Rt> {
    /// Serves one pipe that the node `from` opened for `lane`, until it ends.
    ///
    /// The caller has authenticated `from` and knows that it is a member. What a store of another cluster or
    /// incarnation opened, and what was meant for another store of this node, is refused here.
    pub async fn serve(&self, from: [u8; 16], lane: Lane, pipe: Pipe) {
        let served = match head::accept::<Rt>(self.shared.name, from, lane, pipe).await {
            Ok(pipe) => self.serve_lane(from, lane, pipe).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::debug!(?lane, error, "a pipe of another store ended");
        }
    }

    async fn serve_lane(&self, from: [u8; 16], lane: Lane, pipe: Pipe) -> Result<(), String> {
        match lane {
            // Openraft would call each of them an error, ten times a second.
            Lane::Append | Lane::Snapshot if self.raft_failed() => Err("consensus has stopped here".into()),
            Lane::Control | Lane::Forward => self.serve_calls(from, lane, pipe).await,
            Lane::Append => self.serve_appends(from, pipe).await,
            Lane::Snapshot => self.serve_snapshot(from, pipe).await,
            Lane::Follow => self.serve_follower(pipe).await,
        }
    }

    async fn serve_calls(&self, from: [u8; 16], lane: Lane, pipe: Pipe) -> Result<(), String> {
        let (answers, answered) = Rt::Mpsc::channel::<(u64, Response<Rt>)>(BATCH_MAX);
        drop(Rt::spawn(send_answers::<Rt>(pipe.tx, answered)));
        let under_way = Arc::new(AtomicUsize::new(0));
        let mut frames = frames(pipe.rx);
        while let Some(frame) = frames.next().await {
            let frame = frame.map_err(|Broken(why)| why)?;
            for (id, request) in parse::<Vec<(u64, Request<Rt>)>>(&frame)? {
                if under_way.load(Ordering::Relaxed) >= UNDER_WAY_MAX {
                    let _ = answers.send((id, Response::Busy)).await;
                    continue;
                }
                under_way.fetch_add(1, Ordering::Relaxed);
                let (handle, answers, under_way) = (self.clone(), answers.clone(), under_way.clone());
                drop(Rt::spawn(async move {
                    let response = handle.answer(from, lane, request).await;
                    // The asker may be gone.
                    let _ = answers.send((id, response)).await;
                    under_way.fetch_sub(1, Ordering::Relaxed);
                }));
            }
        }
        Ok(())
    }

    async fn answer(&self, from: [u8; 16], lane: Lane, request: Request<Rt>) -> Response<Rt> {
        let raft = self.raft();
        let own = |vote: &Vote| vote.leader_id.voted_for.node == from && !self.raft_failed();
        let response = match (lane, request) {
            (Lane::Control, Request::Vote(request)) if own(&request.vote) => {
                raft.vote(request).await.map(Response::Vote).ok()
            }
            (Lane::Control, Request::PreVote(request)) if own(&request.vote) => {
                raft.pre_vote(request).await.map(Response::Vote).ok()
            }
            (Lane::Control, Request::Heartbeat(request)) if own(&request.vote) => {
                let mut results = Box::pin(raft.stream_append(futures::stream::once(async { request })));
                let result = results.next().await.and_then(|result| result.ok());
                if matches!(result, Some(Ok(_))) {
                    self.heard();
                }
                result.map(Response::Heartbeat)
            }
            (Lane::Control, Request::TransferLeader(request)) if own(request.from_leader()) => {
                raft.handle_transfer_leader(request).await.map(Response::TransferLeader).ok()
            }
            (Lane::Forward, Request::Propose(command))
                if command.session.node == from && !command.ops.is_empty() =>
            {
                Some(self.propose_here(command).await.answer(Response::Proposed))
            }
            (Lane::Forward, Request::ReadIndex) => {
                Some(self.read_index_here().await.answer(Response::ReadIndex))
            }
            (Lane::Forward, Request::Confirm { term }) => {
                let raft = raft.server_metrics().borrow_watched().clone();
                let leads =
                    standing::leader::<Rt>(&raft) == Some(self.voter()) && raft.vote.leader_id.term == term;
                Some(Response::Confirmed(leads && self.has_quorum()))
            }
            _ => None,
        };
        response.unwrap_or(Response::Refused)
    }

    async fn serve_appends(&self, from: [u8; 16], pipe: Pipe) -> Result<(), String> {
        let Pipe { mut tx, rx } = pipe;
        let requests = frames(rx).map(move |frame| {
            let request: AppendEntriesRequest<TypeConfig<Rt>> = parse(&frame.map_err(|Broken(why)| why)?)?;
            check_run(&request)?;
            match request.vote.leader_id.voted_for.node == from {
                true => Ok(request),
                false => Err(String::from("an append in another node's name")),
            }
        });
        // Ends at the first frame that is no request; what came before it is still answered.
        let requests = requests
            .take_while(|request| std::future::ready(request.is_ok()))
            .filter_map(|request| std::future::ready(request.ok()));
        let mut results = Box::pin(self.raft().stream_append(requests));
        while let Some(result) = results.next().await {
            let result = result.map_err(|fatal| fatal.to_string())?;
            if result.is_ok() {
                self.heard();
            }
            tx.send(frame(&result)).await.map_err(|Broken(why)| why)?;
        }
        tx.finish();
        Ok(())
    }

    async fn serve_snapshot(&self, from: [u8; 16], pipe: Pipe) -> Result<(), String> {
        let Pipe { mut tx, rx } = pipe;
        let mut frames = frames(rx);
        let first = frames.next().await.ok_or("the snapshot has no head")?.map_err(|Broken(why)| why)?;
        let Offer { vote, meta } = parse(&first)?;
        if vote.leader_id.voted_for.node != from {
            return Err("a snapshot in another node's name".into());
        }
        let (mut state, mut bytes) = (State::default(), 0);
        while let Some(record) = frames.next().await {
            let record = record.map_err(|Broken(why)| why)?;
            bytes += record.len() as u64;
            // Encoding adds a little to what the limit counts; sessions are small.
            if bytes > 2 * STORE_BYTES_MAX {
                return Err("a snapshot larger than any store".into());
            }
            state.add_record(&record).map_err(|error| error.to_string())?;
        }
        if state.applied() != meta.last_log_id {
            return Err("a snapshot cut short".into());
        }
        let snapshot = Snapshot { meta, snapshot: state };
        let response =
            self.raft().install_full_snapshot(vote, snapshot).await.map_err(|error| error.to_string())?;
        tx.send(frame(&response.vote)).await.map_err(|Broken(why)| why)?;
        tx.finish();
        Ok(())
    }
}

/// Sends answers in the order they come, all that wait in one frame.
async fn send_answers<Rt: AsyncRuntime>(
    mut tx: Box<dyn PipeTx>,
    mut answered: <Rt::Mpsc as Mpsc>::Receiver<(u64, Response<Rt>)>,
) {
    while let Some(first) = answered.recv().await {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX {
            match answered.recv().now_or_never() {
                Some(Some(answer)) => batch.push(answer),
                _ => break,
            }
        }
        let bytes: Bytes = frame(&batch);
        if tx.send(bytes).await.is_err() {
            return;
        }
    }
    tx.finish();
}
