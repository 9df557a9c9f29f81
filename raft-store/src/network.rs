//! Openraft's way to the other voters and learners, over the lanes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, future::BoxFuture};
use openraft::async_runtime::Select2;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use openraft::{AsyncRuntime, OptionalSend};

use crate::calls::{CallError, Links, frames};
use crate::state::State;
use crate::transport::{Broken, Lane, Pipe, PipeTx};
use crate::wire::{Meta, Offer, Request, Response, check_run, frame, parse};
use crate::{CommittedLeaderId, TypeConfig, Vote, VoterId};

/// Appends sent and not yet answered on one pipe. Each is at most about 1 MiB.
const PIPELINED_MAX: usize = 32;

type C<Rt> = TypeConfig<Rt>;
type Result<T, Rt> = std::result::Result<T, RPCError<C<Rt>>>;
type Appended<Rt> = Result<StreamAppendResult<C<Rt>>, Rt>;

/// Makes the clients of one store.
pub(crate) struct Network<Rt: AsyncRuntime> {
    links: Arc<Links<Rt>>,
}

impl<Rt: AsyncRuntime> Network<Rt> {
    pub(crate) fn new(links: Arc<Links<Rt>>) -> Self {
        Network { links }
    }

    fn client(&self, to: VoterId, appends: Lane) -> Client<Rt> {
        Client { links: self.links.clone(), to, appends, idle: Mutex::new(None) }
    }
}

impl<Rt: AsyncRuntime> RaftNetworkFactory<C<Rt>> for Network<Rt> {
    type Network = Client<Rt>;

    async fn new_client(&mut self, to: VoterId, _: &EmptyNode) -> Client<Rt> {
        self.client(to, Lane::Append)
    }

    async fn new_heartbeat_client(&mut self, to: VoterId, _: &EmptyNode) -> Client<Rt> {
        self.client(to, Lane::Control)
    }
}

/// One user of the way to one peer.
pub(crate) struct Client<Rt: AsyncRuntime> {
    links: Arc<Links<Rt>>,
    to: VoterId,
    /// Heartbeats are appends without entries and take the lane of the votes.
    appends: Lane,
    /// The pipe of the last append stream, if that ended with nothing under way. The lock is for
    /// openraft, which asks for `Sync`; nobody contends for it.
    idle: Mutex<Option<Appending>>,
}

/// An open pipe on the append lane.
struct Appending {
    tx: Box<dyn PipeTx>,
    results: BoxStream<'static, std::result::Result<Bytes, Broken>>,
}

impl<Rt: AsyncRuntime> Client<Rt> {
    async fn ask(&self, request: Request<Rt>) -> Result<Response<Rt>, Rt> {
        self.links.call(self.to, Lane::Control, request).await.map_err(|error| match error {
            CallError::Unreachable(why) => unreachable(why),
            CallError::Broken(why) => broken(why),
        })
    }

    async fn heartbeat(&self, request: AppendEntriesRequest<C<Rt>>) -> Appended<Rt> {
        match self.ask(Request::Heartbeat(request)).await? {
            Response::Heartbeat(result) => Ok(result),
            _ => Err(refused("a heartbeat")),
        }
    }

    async fn open(&self, lane: Lane) -> Result<Pipe, Rt> {
        self.links.open(self.to, lane).await.map_err(|error| unreachable(error.reason))
    }
}

impl<Rt: AsyncRuntime> RaftNetworkV2<C<Rt>> for Client<Rt> {
    type SnapshotData = State;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<C<Rt>>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<C<Rt>>, Rt> {
        self.heartbeat(request).await.map(AppendEntriesResponse::from)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        requests: S,
        _: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Appended<Rt>>, Rt>>
    where
        S: Stream<Item = AppendEntriesRequest<C<Rt>>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            if self.appends == Lane::Control {
                let client = &*self;
                return Ok(requests.then(move |request| client.heartbeat(request)).boxed());
            }
            let kept = self.idle.get_mut().unwrap_or_else(PoisonError::into_inner).take();
            let pipe = match kept {
                Some(pipe) => pipe,
                None => {
                    let Pipe { tx, rx } = self.open(Lane::Append).await?;
                    Appending { tx, results: frames(rx) }
                }
            };
            let idle = self.idle.get_mut().unwrap_or_else(PoisonError::into_inner);
            Ok(pipelined(pipe, requests, idle).boxed())
        })
    }

    async fn vote(&mut self, request: VoteRequest<C<Rt>>, _: RPCOption) -> Result<VoteResponse<C<Rt>>, Rt> {
        match self.ask(Request::Vote(request)).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(refused("a vote")),
        }
    }

    // The default grants by itself, which would let a cut-off node raise its term without end.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<C<Rt>>,
        _: RPCOption,
    ) -> Result<VoteResponse<C<Rt>>, Rt> {
        match self.ask(Request::PreVote(request)).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(refused("a pre-vote")),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<CommittedLeaderId, VoterId, EmptyNode, State>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> std::result::Result<SnapshotResponse<C<Rt>>, StreamingError<C<Rt>>> {
        let sending = async {
            let pipe = self.open(Lane::Snapshot).await?;
            send_snapshot(pipe, vote, snapshot.meta, &snapshot.snapshot).await.map_err(broken::<Rt>)
        };
        match Rt::select2(std::pin::pin!(sending), std::pin::pin!(cancel)).await {
            Select2::First(sent) => Ok(SnapshotResponse::new(sent?)),
            Select2::Second(closed) => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<C<Rt>>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<C<Rt>>, Rt> {
        match self.ask(Request::TransferLeader(request)).await? {
            Response::TransferLeader(response) => Ok(response),
            _ => Err(refused("a hand-over")),
        }
    }
}

/// Sends requests without waiting for results, and yields the results in order.
///
/// The stream ends without an error when the requests end, and only then: openraft takes an error there
/// for an unreachable peer, and a follower that had just restarted then got neither entries nor an election
/// (the livelock of the prototype). A peer that ends it earlier has answered nothing, which is an error.
/// Openraft would go on where a stream without one began, and where that was nothing but a new commit
/// index, it would repeat its last order, whatever became of that: it read entries that were purged by then.
/// A pipe with nothing under way is kept in `idle` for the next stream.
fn pipelined<'s, Rt, S>(
    pipe: Appending,
    requests: S,
    idle: &'s mut Option<Appending>,
) -> impl Stream<Item = Appended<Rt>> + 's
where
    Rt: AsyncRuntime,
    S: Stream<Item = AppendEntriesRequest<C<Rt>>> + OptionalSend + Unpin + 'static,
{
    let Appending { tx, mut results } = pipe;
    let under_way = Arc::new(AtomicUsize::new(0));
    let mut sending = Some(Box::pin(send_requests::<Rt, S>(tx, requests, under_way.clone())));
    let mut done: Option<Box<dyn PipeTx>> = None;
    let mut pending_error: VecDeque<Appended<Rt>> = VecDeque::new();
    let mut over = false;
    futures::stream::poll_fn(move |cx| {
        if over {
            return Poll::Ready(None);
        }
        if let Some(Poll::Ready(sent)) = sending.as_mut().map(|sending| sending.as_mut().poll(cx)) {
            sending = None;
            match sent {
                Ok(tx) => done = Some(tx),
                Err(Broken(why)) => pending_error.push_back(Err(broken(why))),
            }
        }
        if under_way.load(Ordering::Relaxed) > 0 || done.is_none() {
            match results.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(_))) if under_way.load(Ordering::Relaxed) == 0 => {
                    over = true;
                    return Poll::Ready(Some(Err(broken("the peer answered what nobody asked".to_owned()))));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    under_way.fetch_sub(1, Ordering::Relaxed);
                    let result: Appended<Rt> = parse(&frame).map_err(broken);
                    // After a refusal the peer closes; so must we, without keeping the pipe.
                    over = !matches!(result, Ok(Ok(_)));
                    return Poll::Ready(Some(result));
                }
                Poll::Ready(Some(Err(Broken(why)))) => {
                    over = true;
                    return Poll::Ready(Some(Err(broken(why))));
                }
                Poll::Ready(None) => {
                    over = true;
                    return Poll::Ready(Some(Err(broken("the peer ended the stream".to_owned()))));
                }
                Poll::Pending => {}
            }
        }
        if let Some(error) = pending_error.pop_front() {
            over = true;
            return Poll::Ready(Some(error));
        }
        if under_way.load(Ordering::Relaxed) > 0 || done.is_none() {
            return Poll::Pending;
        }
        over = true;
        if let Some(tx) = done.take() {
            let results = std::mem::replace(&mut results, futures::stream::empty().boxed());
            *idle = Some(Appending { tx, results });
        }
        Poll::Ready(None)
    })
}

async fn send_requests<Rt, S>(
    mut tx: Box<dyn PipeTx>,
    mut requests: S,
    under_way: Arc<AtomicUsize>,
) -> std::result::Result<Box<dyn PipeTx>, Broken>
where
    Rt: AsyncRuntime,
    S: Stream<Item = AppendEntriesRequest<C<Rt>>> + OptionalSend + Unpin + 'static,
{
    while let Some(request) = requests.next().await {
        let room = |_: &mut std::task::Context<'_>| match under_way.load(Ordering::Relaxed) {
            PIPELINED_MAX.. => Poll::Pending,
            _ => Poll::Ready(()),
        };
        std::future::poll_fn(room).await;
        check_run(&request).map_err(Broken)?;
        under_way.fetch_add(1, Ordering::Relaxed);
        tx.send(frame(&request)).await?;
    }
    Ok(tx)
}

/// Streams the records of `state` and waits for the peer's vote after installing them.
async fn send_snapshot(
    pipe: Pipe,
    vote: Vote,
    meta: Meta,
    state: &State,
) -> std::result::Result<Vote, String> {
    let Pipe { mut tx, mut rx } = pipe;
    let why = |Broken(why)| why;
    tx.send(frame(&Offer { vote, meta })).await.map_err(why)?;
    for record in state.records() {
        tx.send(record.into()).await.map_err(why)?;
    }
    tx.finish();
    let answer = rx.recv().await.map_err(why)?.ok_or("the snapshot was refused")?;
    parse(&answer)
}

fn unreachable<Rt: AsyncRuntime>(why: String) -> RPCError<C<Rt>> {
    RPCError::Unreachable(Unreachable::from_string(why))
}

fn broken<Rt: AsyncRuntime>(why: String) -> RPCError<C<Rt>> {
    RPCError::Network(NetworkError::from_string(why))
}

fn refused<Rt: AsyncRuntime>(what: &str) -> RPCError<C<Rt>> {
    broken(format!("the peer refused {what}"))
}

/// How long an install may take end to end before openraft gives up on it.
pub(crate) const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures::FutureExt;
    use openraft::EntryPayload;
    use openraft_rt_tokio::TokioRuntime;

    use super::*;
    use crate::{Entry, LogId};

    type Requests = Vec<AppendEntriesRequest<C<TokioRuntime>>>;

    struct Sink;

    #[async_trait]
    impl PipeTx for Sink {
        async fn send(&mut self, _: Bytes) -> std::result::Result<(), Broken> {
            Ok(())
        }

        fn finish(&mut self) {}
    }

    fn log_id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(3), index)
    }

    fn blank(index: &u64) -> Entry {
        Entry { log_id: log_id(*index), payload: EntryPayload::Blank }
    }

    fn request(prev: u64, indices: &[u64]) -> AppendEntriesRequest<C<TokioRuntime>> {
        let voter = VoterId { node: [1; 16], store: [1; 8] };
        AppendEntriesRequest {
            vote: Vote::new_committed(3, voter),
            prev_log_id: Some(log_id(prev)),
            leader_commit: None,
            entries: indices.iter().map(blank).collect(),
        }
    }

    /// What comes of `requests` to a peer that says this; whether the pipe is kept.
    fn outcome(
        requests: Requests,
        says: impl Stream<Item = Bytes> + Send + 'static,
    ) -> (Vec<std::result::Result<(), String>>, bool) {
        let pipe = Appending { tx: Box::new(Sink), results: says.map(Ok).boxed() };
        let mut idle = None;
        let results = pipelined::<TokioRuntime, _>(pipe, futures::stream::iter(requests), &mut idle);
        let told = results.map(|result| result.map(drop).map_err(|error| error.to_string()));
        let told = told.collect::<Vec<_>>().now_or_never().expect("nothing here is waited for");
        (told, idle.is_some())
    }

    fn answers(indices: impl IntoIterator<Item = u64>) -> impl Stream<Item = Bytes> + Send + 'static {
        futures::stream::iter(indices.into_iter().map(accepted).collect::<Vec<_>>())
    }

    fn accepted(index: u64) -> Bytes {
        frame::<StreamAppendResult<C<TokioRuntime>>>(&Ok(Some(log_id(index))))
    }

    #[test]
    fn a_stream_whose_requests_are_answered_ends_well_and_its_pipe_is_kept() {
        let told = outcome(vec![request(4, &[5, 6]), request(6, &[])], answers([6, 6]));
        assert_eq!(told, (vec![Ok(()), Ok(())], true));
    }

    #[test]
    fn a_peer_that_ends_the_stream_before_its_answers_is_an_error() {
        let (told, kept) = outcome(vec![request(4, &[5]), request(5, &[])], answers([5]));
        assert!(told[0].is_ok(), "{told:?}");
        assert!(told[1].as_ref().is_err_and(|why| why.contains("ended the stream")), "{told:?}");
        assert!(!kept);
    }

    #[test]
    fn an_answer_that_nobody_asked_for_is_an_error() {
        let requests = futures::stream::pending::<AppendEntriesRequest<C<TokioRuntime>>>();
        let pipe = Appending { tx: Box::new(Sink), results: answers([5]).map(Ok).boxed() };
        let mut idle = None;
        let mut results = std::pin::pin!(pipelined::<TokioRuntime, _>(pipe, requests, &mut idle));
        let told = results.next().now_or_never().expect("nothing here is waited for");
        assert!(told.is_some_and(|told| told.is_err_and(|why| why.to_string().contains("nobody asked"))));
    }

    #[test]
    fn entries_that_do_not_follow_each_other_are_not_sent() {
        for hole in [request(4, &[6, 7]), request(4, &[5, 7])] {
            let (told, kept) = outcome(vec![hole], futures::stream::pending());
            assert!(told[0].as_ref().is_err_and(|why| why.contains("does not follow")), "{told:?}");
            assert!(!kept);
        }
    }
}
