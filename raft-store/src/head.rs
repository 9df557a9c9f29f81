//! The beginning of every pipe: both ends say who they are, and go on only if they belong together.
//!
//! ```text
//! who opens   Head ─▶   checks   ─▶ Head (or why not)   ─▶ checks, and only then sends
//! ```
//!
//! Votes, entries, snapshots, forwarded proposals and feeds all travel on pipes, so none of them reaches a
//! store of another cluster or incarnation, nor one that has another name than its sender believes. Nothing
//! is sent before the other end has shown its head: that costs a round trip for each pipe, not for each message.

use std::time::Duration;

use openraft::AsyncRuntime;
use serde::{Deserialize, Serialize};

use crate::tag::{ClusterTag, Foreign};
use crate::transport::{Broken, Lane, Pipe, Transport, Unreachable};
use crate::wire::{frame, parse};
use crate::{VoterId, seen};

/// Opening a pipe takes no longer: the caller has tried somewhere else by then.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the first frame of a pipe may take.
const BEGIN_MAX: Duration = Duration::from_secs(5);

/// Which store this is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    pub(crate) voter: VoterId,
    pub(crate) tag: ClusterTag,
}

/// The first frame in each direction. Append-only, and its parts are frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Head {
    /// This store speaks, to that one.
    Hello { tag: ClusterTag, from: VoterId, to: VoterId },
    /// In place of an answer; nothing more comes.
    Refused(Refusal),
}

/// Why two stores do not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Foreign(Foreign),
    /// The node is right, its data directory is another one: an emptied disk never answers under its old name.
    #[error("this is store {is} of its node, not {meant}")]
    OtherStore { meant: VoterId, is: VoterId },
    #[error("the store speaks in the name of {says}, its certificate is of another node")]
    OtherNode { says: VoterId },
}

/// Opens a pipe from `own` to the store `to`; for [`Lane::Follow`] to any store of that node.
pub(crate) async fn open<Rt: AsyncRuntime>(
    transport: &dyn Transport,
    own: Name,
    to: VoterId,
    lane: Lane,
) -> Result<Pipe, Unreachable> {
    let opening = async {
        let mut pipe = transport.open(to, lane).await.map_err(|error| error.reason)?;
        let hello = Head::Hello { tag: own.tag, from: own.voter, to };
        pipe.tx.send(frame(&hello)).await.map_err(|Broken(why)| why)?;
        let answer = pipe.rx.recv().await.map_err(|Broken(why)| why)?.ok_or("it closed the pipe")?;
        match parse(&answer)? {
            Head::Hello { tag, from, .. } => {
                check(own, tag, from, to, lane).map_err(|refusal| refusal.to_string())?;
                Ok(pipe)
            }
            Head::Refused(refusal) => Err(format!("it refused: {refusal}")),
        }
    };
    let opened = Rt::timeout(OPEN_TIMEOUT, opening).await;
    let opened = opened.unwrap_or_else(|_| Err(format!("no connection within {} s", OPEN_TIMEOUT.as_secs())));
    opened.map_err(|reason: String| Unreachable { to, reason })
}

/// Begins to serve a pipe that `node` opened to the store `own`.
pub(crate) async fn accept<Rt: AsyncRuntime>(
    own: Name,
    node: [u8; 16],
    lane: Lane,
    mut pipe: Pipe,
) -> Result<Pipe, String> {
    let first = Rt::timeout(BEGIN_MAX, pipe.rx.recv()).await.map_err(|_| "a pipe that says nothing")?;
    let first = first.map_err(|Broken(why)| why)?.ok_or("a pipe that went away")?;
    let Head::Hello { tag, from, to } = parse(&first)? else {
        return Err("a pipe that begins with a no".into());
    };
    let checked = match from.node == node {
        true => check(own, tag, own.voter, to, lane),
        false => Err(Refusal::OtherNode { says: from }),
    };
    if let Err(refusal) = checked {
        if matches!(refusal, Refusal::Foreign(_)) {
            seen!("a foreign store was refused");
        }
        // It may have gone away already, and knows enough then.
        let _ = pipe.tx.send(frame(&Head::Refused(refusal))).await;
        pipe.tx.finish();
        return Err(refusal.to_string());
    }
    let hello = Head::Hello { tag: own.tag, from: own.voter, to: from };
    pipe.tx.send(frame(&hello)).await.map_err(|Broken(why)| why)?;
    Ok(pipe)
}

/// Whether the other end is of `own`'s cluster, and the store `is` the one that was `meant`.
fn check(own: Name, tag: ClusterTag, is: VoterId, meant: VoterId, lane: Lane) -> Result<(), Refusal> {
    own.tag.check(tag).map_err(Refusal::Foreign)?;
    // Only who wants to follow may not know which store a node has now.
    let is_meant = is == meant || (lane == Lane::Follow && is.node == meant.node);
    if is_meant { Ok(()) } else { Err(Refusal::OtherStore { meant, is }) }
}
