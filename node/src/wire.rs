//! What nodes say to each other beyond gossip and Raft: kinds of streams and datagrams, and their words.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skein_control::node::departure::Cause;
use skein_net::ca::{ApiNames, Chain};
use skein_net::endpoint::{Class, Endpoint};
use skein_net::identity::NodeId;
use skein_net::incarnation::{Incarnation, Tag};
use skein_net::join::{Admitted, Claim, Refusal};
use skein_net::stream::{self, Receiver, Sender, Stream};
use skein_raft_store::{Broken, ClusterTag, Lane, Pipe, PipeRx, PipeTx, Transport, Unreachable, VoterId};
use tokio::time::timeout;

/// Streams of the store: this and the lane.
const LANES: u8 = 16;
/// Streams with one [`Ask`].
pub(crate) const ASK: u8 = 32;

/// Longer than a snapshot chunk, an append or an answer of ours ever is.
const FRAME_BYTES_MAX: usize = skein_raft_store::FRAME_BYTES_MAX;
/// How long a question may wait for the first frame of its answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// One question on a stream of its own.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Judge a machine that wants to join. To the leader.
    Admit(Box<Claim>),
    /// A new member certificate for the asker's key. To a voter.
    Renew(Vec<u8>),
    /// A certificate for the asker's API server. To a voter.
    CertifyApi { csr: Vec<u8>, names: ApiNames },
    /// A client certificate for an administrator. To a voter.
    CertifyClient(String),
    /// The authorities themselves; only voters get them, from voters.
    Authority,
    /// What a container printed.
    Logs(LogQuestion),
    /// A blob of an image.
    Blob(String),
    /// Which blobs an image consists of.
    Blobs(String),
    /// The asker restarts on purpose and will be back.
    Restarting,
    /// Whether the asker, which wants to leave, is out: no vote and no log any more. It learns that from
    /// others only, because nothing is sent to it any more. Asked by older builds.
    HaveLeft,
    /// How the voters stand, as the leader sees them. To the leader.
    Voting,
    /// One edition of the authorities, by its fingerprint; only voters get it, from whoever keeps it.
    Edition(String),
    /// Let this member go. To the leader.
    Depart { name: String, cause: Cause },
    /// What the asked node has, for a cluster that may have to go on without a majority.
    Survivor,
    /// The asker recovers the cluster: what the asked node does then.
    Recover(Box<crate::recover::Word>),
    /// The authorities in force, sealed to the cluster's recovery key: for a backup. To a voter.
    SealedAuthorities,
    /// The keys of sealed objects. To a voter, by a member.
    OpenKeys(Vec<crate::secrets::Wrapped>),
    /// A new key for each of these places in the map, to seal what is written there. To a voter, by a member.
    NewKeys(Vec<String>),
}

/// Which output of which container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct LogQuestion {
    pub(crate) uid: String,
    pub(crate) container: String,
    pub(crate) follow: bool,
    pub(crate) previous: bool,
    pub(crate) timestamps: bool,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) since_ms: Option<i64>,
    pub(crate) limit_bytes: Option<u64>,
}

/// An answer of one frame.
pub(crate) type Answer<T> = Result<T, String>;

/// What [`Ask::Admit`] is answered with.
pub(crate) type Admission = Result<Box<Admitted>, Refusal>;

/// What [`Ask::CertifyClient`] is answered with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Client {
    pub(crate) chain: Chain,
    pub(crate) key_pem: String,
}

/// What [`Ask::SealedAuthorities`] is answered with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sealed {
    /// Which edition it is.
    pub(crate) fingerprint: String,
    /// Opened by the recovery key only.
    pub(crate) bytes: Vec<u8>,
}

/// Between a node and the leader that watches it. Small, and a lost one is repaired by the next.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Watchfulness {
    /// "I am here." `tick` is the newest one heard of this leader; another member may pass it on.
    Renewal {
        origin: NodeId,
        term: u64,
        tick: Option<u64>,
        word: NodeWord,
    },
    /// The leader's answer: its present moment. In a `survey` every node greets all voters.
    Grant {
        origin: NodeId,
        term: u64,
        tick: u64,
        survey: bool,
    },
    /// "Probe that node and tell me", from the leader.
    Probe {
        term: u64,
        about: NodeId,
    },
    /// An observer's report.
    Report {
        term: u64,
        about: NodeId,
        report: Report,
    },
    /// To a voter, which answers with `Greeted`: the two reach each other.
    Greeting,
    Greeted,
    /// To the voter that is to lead instead of the sender.
    Chosen,
}

/// `skein_control::vigil::Word` on the wire.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct NodeWord {
    pub(crate) revision: u64,
    pub(crate) writable: bool,
    pub(crate) reaches: Vec<NodeId>,
}

/// `skein_control::judge::Report` on the wire; milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) unanswered: u32,
    pub(crate) unanswered_for: u64,
    pub(crate) answer: Option<(u8, u64)>,
    pub(crate) gossip_down: bool,
}

/// Led by a version: bincode does not describe itself.
const VERSION: u8 = 1;

pub(crate) fn encode(value: &impl Serialize) -> Bytes {
    let mut bytes = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .expect("plain data is written to memory without error");
    bytes.into()
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let (version, rest) = bytes.split_first().ok_or("an empty message")?;
    if *version != VERSION {
        return Err(format!("a message of version {version}, this build speaks {VERSION}"));
    }
    let limited = bincode::config::standard().with_limit::<FRAME_BYTES_MAX>();
    let (value, read) =
        bincode::serde::decode_from_slice(rest, limited).map_err(|error| error.to_string())?;
    if read == rest.len() { Ok(value) } else { Err("a message with something behind its end".into()) }
}

/// Opens a stream to `peer` with one question; the answer is for the caller to read.
pub(crate) async fn open(
    endpoint: &Endpoint,
    peer: NodeId,
    ask: &Ask,
    class: Class,
) -> Result<Stream, String> {
    let asking = async {
        let mut stream = endpoint.open_class(peer, ASK, class).await.map_err(|error| error.to_string())?;
        stream.rx.limit(FRAME_BYTES_MAX);
        stream.tx.send(encode(ask)).await.map_err(|error| error.to_string())?;
        let _ = stream.tx.finish();
        Ok(stream)
    };
    timeout(ANSWER_MAX, asking).await.unwrap_or_else(|_| Err(format!("node {peer} did not answer in time")))
}

/// Asks `peer` one question with an answer of one frame.
pub(crate) async fn ask<T: DeserializeOwned>(
    endpoint: &Endpoint,
    peer: NodeId,
    ask: &Ask,
) -> Result<T, String> {
    let mut stream = open(endpoint, peer, ask, Class::Prompt).await?;
    let answer = timeout(ANSWER_MAX, stream.rx.recv()).await;
    match answer {
        Ok(Ok(Some(frame))) => decode(&frame),
        Ok(Ok(None)) => Err(format!("node {peer} did not answer")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("node {peer} did not answer in time")),
    }
}

/// The lane a stream of this kind belongs to.
pub(crate) fn lane(kind: u8) -> Option<Lane> {
    kind.checked_sub(LANES).and_then(|lane| Lane::try_from(lane).ok())
}

/// The store's way to other nodes: each pipe is a stream of its own. Who may speak on it to whom, the stores
/// find out themselves, at its head.
pub(crate) struct Lanes(pub(crate) Endpoint);

#[async_trait]
impl Transport for Lanes {
    async fn open(&self, to: VoterId, lane: Lane) -> Result<Pipe, Unreachable> {
        // A follower may need everything at once, and what it follows is never urgent.
        let class = if matches!(lane, Lane::Snapshot | Lane::Follow) { Class::Bulk } else { Class::Prompt };
        let opened = self.0.open_class(NodeId(to.node), LANES + lane as u8, class).await;
        let mut stream = opened.map_err(|error| Unreachable { to, reason: error.to_string() })?;
        if lane == Lane::Control {
            stream.tx.set_priority(1);
        }
        Ok(pipe(stream))
    }
}

/// The store's tag of a node that belongs there.
pub(crate) fn store_tag(tag: Tag) -> ClusterTag {
    let Incarnation { number, id } = tag.incarnation;
    ClusterTag { cluster: tag.cluster.0, number, incarnation: id.0 }
}

/// A stream for the store.
pub(crate) fn pipe(mut stream: Stream) -> Pipe {
    stream.rx.limit(FRAME_BYTES_MAX);
    Pipe { tx: Box::new(Out(stream.tx)), rx: Box::new(In(stream.rx)) }
}

struct Out(Sender);
struct In(Receiver);

#[async_trait]
impl PipeTx for Out {
    async fn send(&mut self, frame: Bytes) -> Result<(), Broken> {
        self.0.send(frame).await.map_err(broken)
    }

    fn finish(&mut self) {
        // A stream that is broken already has told its reader in its own way.
        let _ = self.0.finish();
    }
}

#[async_trait]
impl PipeRx for In {
    async fn recv(&mut self) -> Result<Option<Bytes>, Broken> {
        self.0.recv().await.map_err(broken)
    }
}

fn broken(error: stream::Error) -> Broken {
    Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_anything_behind_its_end_is_refused() {
        let message = Watchfulness::Probe { term: 3, about: NodeId([7; 16]) };
        let mut bytes = encode(&message).to_vec();
        assert!(decode::<Watchfulness>(&bytes).is_ok());
        bytes.push(0);
        assert!(decode::<Watchfulness>(&bytes).is_err());
        assert!(decode::<Watchfulness>(&[]).is_err());
        assert!(decode::<Watchfulness>(&[9, 0]).is_err());
    }
}
