//! The daemon's own socket: the Kubernetes API without TLS for this machine's root, and skein's verbs
//! below `/skein/v1/`, which `kubectl` does not have.

mod backup;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use skein_apiserver::{Body, BodyError, Identity, Server, body_from, full};
use skein_control::node::authority::OVERLAP;
use skein_control::node::departure::{self, Cause, DRAIN_MAX, Progress};
use skein_net::endpoint::Endpoint;
use skein_net::gossip;
use skein_net::identity::NodeId;
use skein_raft_store::{Change, Expect, Handle, Op, Options, TokioRuntime, VoterId};
use skein_runtime::images::Digest;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::admission::{Door, all_done};
use crate::agent::ClusterImages;
use crate::authority::Authority;
use crate::authority::rotation::{self, BeforeTheft};
use crate::clients::{Clients, Which};
use crate::clock;
use crate::clocks;
use crate::departures::{Departures, Out};
use crate::disk;
use crate::home::{Home, Membership};
use crate::members::{self, Members, Record};
use crate::picture::Picture;
use crate::pieces;
use crate::quorum;
use crate::recover::Recovery;
use crate::surroundings::Surroundings;
use crate::voting::Voting;
use crate::watchfulness;
use crate::wire::{self, Answer, Ask, Client};

/// How often a departure is looked at where nothing says that it moves.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For how long `status` says that a member was to go and stays.
const KEPT_SHOWN_MS: u64 = 10 * 60 * 1000;
/// A leader that changes is no lost majority.
const MAJORITY_DOUBT: Duration = Duration::from_secs(5);
/// How long whoever waits for a departure waits for a majority.
const MAJORITY_MAX: Duration = Duration::from_secs(60);
/// How long a majority is waited for before anything is issued.
const READ_MAX: Duration = Duration::from_secs(10);
/// Tokens live at most this long.
const DEFAULT_TTL: Duration = Duration::from_secs(15 * 60);
/// Bodies of our own verbs but for images, which are bounded by the image store.
const BODY_BYTES_MAX: usize = 64 << 10;
/// What is read at once of a connection, such as of an archive that is loaded.
const PIECE_BYTES: usize = 64 << 10;
/// How long `status` waits for the leader's word.
const VOTING_MAX: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) home: Home,
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) endpoint: Endpoint,
    pub(crate) gossip: gossip::service::Handle,
    pub(crate) members: Members,
    pub(crate) picture: Picture,
    pub(crate) door: Door,
    pub(crate) authority: Authority,
    pub(crate) images: ClusterImages,
    pub(crate) engine: Arc<dyn skein_runtime::Engine>,
    pub(crate) clients: Clients,
    pub(crate) watchful: watchfulness::Inbox,
    pub(crate) recovery: Recovery,
    pub(crate) surroundings: Surroundings,
    pub(crate) voting: watch::Receiver<Option<Voting>>,
    pub(crate) membership: Membership,
    pub(crate) departures: Departures,
    /// Where it is said that this node is no member any more: the daemon ends then.
    pub(crate) out: watch::Sender<Option<Out>>,
    pub(crate) server: Server,
    /// What this machine lacks for containers, a sentence each.
    pub(crate) warnings: Vec<String>,
    pub(crate) stopping: CancellationToken,
}

/// Names that need no quoting in a certificate, in a path or in YAML.
fn is_user_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || ".@_-".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(letter)
}

/// Bounds of a load that somebody asks for.
const LOAD_SECONDS_MAX: u64 = 600;
const LOAD_BYTES_MAX: usize = 1 << 20;
const LOAD_CLIENTS_MAX: usize = 4096;

/// What a verb answers.
type Reply = Result<Value, (StatusCode, String)>;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NewToken {
    uses: Option<u32>,
    ttl_seconds: Option<u64>,
    replaces: Option<String>,
}

/// How the authorities are made anew.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rotation {
    /// Kubeconfigs of before end at once.
    now: bool,
    /// Otherwise after this long.
    overlap_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
struct Load {
    clients: usize,
    bytes: usize,
    seconds: u64,
}

impl Admin {
    /// Serves until the daemon stops.
    pub(crate) async fn run(self, listener: UnixListener) {
        let admin = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                () = admin.stopping.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let admin = admin.clone();
            tokio::spawn(async move {
                let stopping = admin.stopping.clone();
                let service = service_fn(move |request| {
                    let admin = admin.clone();
                    async move { Ok::<_, std::convert::Infallible>(admin.answer(request).await) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    // Larger ones stay with the allocator afterwards.
                    .max_buf_size(PIECE_BYTES)
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                tokio::select! {
                    served = serving => if let Err(error) = served {
                        debug!(%error, "a client of the socket went away");
                    },
                    // The last answer (to `leave`) is on its way when the daemon stops.
                    () = async { stopping.cancelled().await; tokio::time::sleep(Duration::from_millis(200)).await } => {}
                }
            });
        }
        let _ = std::fs::remove_file(admin.home.socket());
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let Some(verb) = path.strip_prefix("/skein/v1/") else {
            let caller = Identity::administrator("root");
            return self.server.api().answer(request.map(body_from), &caller, "socket").await;
        };
        let end = request.method() == Method::POST;
        let asked = match verb.split_once('/').unwrap_or((verb, "")) {
            ("leave", "") if end && request.uri().query().is_none() => {
                Some((self.membership.name.clone(), Cause::Leave))
            }
            ("members", name) if end => {
                let cause = match request.uri().query() {
                    Some("stolen=true") => Cause::Stolen,
                    Some("now=true") => Cause::RemovalNow,
                    _ => Cause::Removal,
                };
                Some((name.to_owned(), cause))
            }
            _ => None,
        };
        let reply = match asked {
            Some((name, cause)) => self.depart(name, cause).await,
            None if end && verb == "backup" => {
                self.backup(request.uri().query() != Some("passphrase=true")).await
            }
            None => self.verb(verb, request).await.map(|value| full(value.to_string())),
        };
        match reply {
            Ok(body) => answer(StatusCode::OK, body),
            Err((status, message)) => answer(status, full(json!({ "message": message }).to_string())),
        }
    }

    async fn verb(&self, verb: &str, request: Request<Incoming>) -> Reply {
        let method = request.method().clone();
        match (method, verb.split_once('/').unwrap_or((verb, ""))) {
            (Method::GET, ("status", "")) => Ok(self.status().await),
            (Method::POST, ("tokens", "")) => self.create_token(body(request).await?).await,
            (Method::GET, ("tokens", "")) => Ok(self.tokens()),
            (Method::DELETE, ("tokens", id)) => self.revoke(id).await,
            (Method::GET, ("kubeconfig", "")) => self.kubeconfig(request.uri().query()).await,
            (Method::GET, ("clients", "")) => Ok(self.list_clients()),
            (Method::DELETE, ("clients", serial)) => self.revoke_client(Which::serial(serial)).await,
            (Method::DELETE, ("users", user)) => self.revoke_client(Which::User(user.into())).await,
            (Method::POST, ("ca", "recovery-key")) => self.make_recovery_key().await,
            (Method::POST, ("ca", "rotate")) => self.rotate(body(request).await?).await,
            (Method::POST, ("images", "")) => self.load_image(request).await,
            (Method::GET, ("images", "")) => self.list_images().await,
            (Method::DELETE, ("images", "")) => self.prune_images().await,
            (Method::DELETE, ("images", name)) => self.remove_image(name).await,
            (Method::POST, ("leave", "")) => {
                self.end(request.uri().query() == Some("end-cluster=true&force=true")).await
            }
            (Method::DELETE, ("leave", "")) => self.stay(&self.membership.name).await,
            (Method::DELETE, ("members", name)) => self.stay(name).await,
            (Method::POST, ("recovery", "")) => self.recovery.verb(body(request).await?).await,
            (Method::POST, ("load", "")) => self.load(body(request).await?).await,
            _ => Err((
                StatusCode::NOT_FOUND,
                format!("the daemon has no verb {verb:?}; it may be of another version"),
            )),
        }
    }

    /// How the voters stand: by the leader's word, else by what this node sees.
    async fn voting(&self) -> Voting {
        if let Some(voting) = self.voting.borrow().clone() {
            return voting;
        }
        let asked = async {
            let leader =
                self.store.metrics().leader.filter(|leader| leader.node != self.endpoint.node().0)?;
            let asking = wire::ask::<Answer<Voting>>(&self.endpoint, NodeId(leader.node), &Ask::Voting);
            tokio::time::timeout(VOTING_MAX, asking).await.ok()?.ok()?.ok()
        };
        asked.await.unwrap_or_else(|| quorum::voting(&self.store, &self.gossip))
    }

    /// From this node's own memory, all but how the voters stand: it answers without a quorum too.
    pub(crate) async fn status(&self) -> Value {
        let voting = self.voting().await;
        let metrics = self.store.metrics();
        let view = self.picture.view();
        let gossiped = self.gossip.members().borrow().clone();
        let me = self.endpoint.node();
        let name_of = |node: [u8; 16]| self.members.get(NodeId(node)).map(|record| record.name);
        // The log knows a leader until another one is elected.
        let is_down = |node: [u8; 16]| {
            NodeId(node) != me && gossiped.get(&NodeId(node)).is_some_and(|member| !member.state.is_active())
        };
        // Whose membership has ended is there until its vote is another's.
        let votes = |record: &Record| metrics.voters.iter().any(|voter| voter.node == record.node.0);
        let removed = self.members.removed().into_values().filter(votes);
        let mut records: Vec<Record> = self.members.present().into_values().chain(removed).collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        let now_ms = self.store.stamp_ms();
        let kept = records.iter().filter_map(|record| Some((&record.name, record.kept.as_ref()?)));
        let kept = kept.filter(|(_, kept)| kept.at_ms + KEPT_SHOWN_MS > now_ms);
        let kept =
            kept.map(|(name, kept)| format!("{name:?} was to go, and stays a member: {}", kept.obstacle));
        let warnings: Vec<String> =
            self.warnings.iter().cloned().chain(clocks::complaint()).chain(kept).collect();
        let nodes: Vec<Value> = records
            .into_iter()
            .map(|record| {
                let member = gossiped.get(&record.node);
                let state = match member.map(|member| member.state) {
                    _ if record.node == me => "alive",
                    Some(gossip::State::Alive) => "alive",
                    Some(gossip::State::Suspect) => "suspect",
                    Some(gossip::State::Left) => "left",
                    Some(gossip::State::Down) | None => "down",
                };
                let addresses = member.map(|member| member.addresses().to_vec()).filter(|known| !known.is_empty());
                let addresses = addresses.unwrap_or(record.addresses.clone());
                let node = view.named::<k8s_openapi::api::core::v1::Node>("", &record.name);
                let ready = node.and_then(|node| node.status.as_ref()).and_then(|status| status.conditions.as_ref());
                // What is down is not ready, also while nobody has replaced it yet.
                let ready = state != "down" && ready.is_some_and(|conditions| {
                    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
                });
                let running = view.pods_on(&record.name).count();
                let voter = members::voter(&record);
                let of_node = |store: &&VoterId| store.node == record.node.0;
                let store_lost = metrics.voters.iter().filter(of_node).any(|store| {
                    *store != voter || quorum::is_lost(*store, metrics.voter, &self.gossip)
                });
                // Of a log in entries; of a node without one in revisions, by its own word.
                let behind = |shown: u64| metrics.revision.saturating_sub(shown);
                let lag = match metrics.matched.get(&voter) {
                    Some(at) => Some(metrics.last_log.saturating_sub(*at)),
                    None => self.watchful.shown(record.node).map(behind),
                };
                let said = member.and_then(|member| member.metadata.as_deref());
                let disk = if record.node == me { disk::word(&metrics.disk) } else { disk::word_of(said) };
                json!({
                    "name": record.name,
                    "id": record.node.to_string(),
                    "address": addresses.first().map(ToString::to_string),
                    "addresses": addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "api": member.and_then(|member| member.metadata.as_ref()).and_then(|data| data.api_address),
                    "state": state,
                    "departure": departure::word(&record),
                    "voter": metrics.voters.contains(&voter) && !store_lost,
                    "learner": metrics.learners.contains(&voter),
                    "storeLost": store_lost,
                    "ready": ready,
                    "disk": disk,
                    "pods": running,
                    "podNetwork": record.subnet.to_string(),
                    "lag": lag,
                })
            })
            .collect();
        let left_alone: Vec<Value> = self.endpoint.estranged().into_iter().map(|(node, reason)| {
            json!({ "id": node.to_string(), "name": name_of(node.0), "reason": reason.to_string() })
        }).collect();
        // While one set takes the place of another both decide, and a node may have a store in each.
        let voters = self.store.voter_sets().iter().map(BTreeSet::len).max().unwrap_or(0);
        let name = |node: NodeId| name_of(node.0).unwrap_or_else(|| node.short());
        let waiting: Vec<Value> = voting.waits.iter().map(|wait| wait.shown(clock::system(), name)).collect();
        json!({
            "cluster": self.membership.public.cluster.name,
            "fingerprint": self.membership.public.cluster.id.fingerprint(),
            "incarnation": self.membership.tag().incarnation,
            "node": self.membership.name,
            "id": me.to_string(),
            "version": env!("CARGO_PKG_VERSION"),
            "quorum": quorum::is_there(&self.store, &self.gossip),
            "leader": metrics.leader.filter(|leader| !is_down(leader.node)).and_then(|leader| name_of(leader.node)),
            "term": metrics.term,
            "revision": metrics.revision,
            "voters": voters,
            "failuresSurvived": voting.failures_survived,
            "waiting": waiting,
            "failed": metrics.failed,
            "certificateUntil": self.home.certificate().ok().flatten().map(|chain| seconds(chain.validity().until)),
            "authorities": self.authority.status(),
            "podTrafficEncrypted": false,
            "warnings": warnings,
            "network": self.surroundings.complaints(),
            "leftAlone": left_alone,
            "nodes": nodes,
        })
    }

    async fn create_token(&self, new: NewToken) -> Reply {
        let ttl = new.ttl_seconds.map_or(DEFAULT_TTL, Duration::from_secs);
        // This node first, then others: a joiner tries one after another.
        let mut addresses: Vec<SocketAddr> = self.endpoint.reachable_addresses();
        addresses.truncate(2);
        let gossiped = self.gossip.members().borrow().clone();
        for member in gossiped
            .values()
            .filter(|member| member.node() != self.endpoint.node() && member.state.is_active())
        {
            addresses.extend(member.addresses().first());
        }
        let minted = self.door.mint(&addresses, new.uses.unwrap_or(1), ttl, new.replaces).await;
        let token = minted.map_err(unavailable)?;
        Ok(json!({ "token": token.to_string(), "id": token.id().to_string() }))
    }

    fn tokens(&self) -> Value {
        let tokens = self.door.tokens().into_iter().map(|token| {
            json!({
                "id": token.id.to_string(),
                "state": token.ended(clock::system()).unwrap_or("good"),
                "usesLeft": token.uses_left(),
                "replaces": token.replaces,
                "expires": seconds(token.expires),
            })
        });
        json!({ "tokens": tokens.collect::<Vec<_>>() })
    }

    async fn revoke(&self, id: &str) -> Reply {
        match self.door.revoke(id).await.map_err(unavailable)? {
            true => Ok(json!({})),
            false => Err((StatusCode::NOT_FOUND, format!("there is no token {id:?}; see: skein token list"))),
        }
    }

    fn list_clients(&self) -> Value {
        let now = clock::now_ms() / 1000;
        let clients = self.clients.list().into_iter().map(|client| {
            let state = match () {
                () if client.revoked => "revoked",
                () if client.expires <= now => "expired",
                () => "good",
            };
            let moment = |at: u64| seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(at));
            json!({
                "serial": client.serial,
                "user": client.user,
                "state": state,
                "node": client.node,
                "issued": moment(client.issued),
                "expires": moment(client.expires),
            })
        });
        json!({ "clients": clients.collect::<Vec<_>>() })
    }

    async fn revoke_client(&self, which: Which) -> Reply {
        let revoked = self.clients.revoke(&self.store, &which).await;
        let revoked = revoked.map_err(|error| (StatusCode::CONFLICT, error))?;
        Ok(json!({
            "revoked": revoked
                .iter()
                .map(|client| json!({ "serial": client.serial, "user": client.user }))
                .collect::<Vec<_>>(),
        }))
    }

    /// New authorities for everything.
    async fn rotate(&self, Rotation { now, overlap_seconds }: Rotation) -> Reply {
        let overlap = overlap_seconds.map_or(Duration::from_millis(OVERLAP), Duration::from_secs);
        let rotated =
            self.authority.rotate((!now).then_some(overlap)).await.map_err(|error| match error {
                rotation::Error::Refused(_) => (StatusCode::CONFLICT, error.to_string()),
                rotation::Error::Unavailable(_) | rotation::Error::GoesOn => unavailable(error.to_string()),
            })?;
        Ok(json!({
            "edition": rotated.edition,
            "tokensEnded": rotated.tokens_ended,
            "oldUntil": rotated.old_until,
        }))
    }

    /// A new certificate for `user`, on record.
    async fn certify(&self, user: String) -> Result<Client, String> {
        // By the authorities that are in force now: what ended with a change of them must not be given out after it.
        self.store.read_index(READ_MAX).await.map_err(|error| error.to_string())?;
        let here = |authority: &Authority, me: NodeId| authority.answer_client(me, &user);
        let client: Client = self.authority.ask(&Ask::CertifyClient(user.clone()), here).await?;
        // Known before it is given out, so that it can be taken back.
        self.clients.note(&self.store, &client.chain, &self.membership.name, self.endpoint.node()).await?;
        Ok(client)
    }

    /// A kubeconfig with a certificate of its own, and one context per node. `query` may name the user.
    async fn kubeconfig(&self, query: Option<&str>) -> Reply {
        let named = query.and_then(|query| query.strip_prefix("user="));
        if let Some(name) = named.filter(|name| !is_user_name(name)) {
            let message = format!(
                "{name:?} cannot be a user's name; use up to 64 letters, digits and .@_- and no other"
            );
            return Err((StatusCode::UNPROCESSABLE_ENTITY, message));
        }
        let user = named.map_or_else(|| format!("admin@{}", self.membership.name), str::to_owned);
        // Whoever reads this node's disk is administrator anyway; of others nothing is kept.
        let kept = named.is_none().then(|| self.home.client().ok().flatten()).flatten();
        let kept = kept.filter(|client| self.clients.is_good(&client.chain));
        let made = match kept.is_some() && !quorum::is_there(&self.store, &self.gossip) {
            true => Err("no majority of the voters is up".to_owned()),
            false => self.certify(user).await,
        };
        let (client, warning) = match (made, kept) {
            (Ok(client), _) => {
                if named.is_none()
                    && let Err(error) = self.home.set_client(&client)
                {
                    warn!(error = %crate::report::Chain(&error), "could not keep the administrator's certificate");
                }
                (client, None)
            }
            (Err(error), Some(kept)) => {
                let until = seconds(kept.chain.validity().until);
                (
                    kept,
                    Some(format!(
                        "no new certificate can be made ({error}); this is the one of before, good until {until}"
                    )),
                )
            }
            (Err(error), None) => return Err(unavailable(error)),
        };
        let cluster = &self.membership.public.cluster.name;
        let entry = format!("{cluster}-{}", named.unwrap_or("admin"));
        let encode = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        let authority = encode(self.authority.public().members.to_pem());
        let gossiped = self.gossip.members().borrow().clone();
        let me = self.endpoint.node();
        let servers: BTreeMap<String, String> = self
            .members
            .present()
            .into_values()
            .filter_map(|record| {
                let api =
                    gossiped.get(&record.node).and_then(|member| member.metadata.as_ref()?.api_address)?;
                Some((record.name, format!("https://{api}")))
            })
            .collect();
        let context =
            |name: &String| if servers.len() == 1 { cluster.clone() } else { format!("{cluster}-{name}") };
        let current = self.members.get(me).map(|record| context(&record.name));
        let fingerprint = self.membership.public.cluster.id.fingerprint();
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": servers.iter().map(|(name, server)| json!({
                "name": context(name),
                "cluster": {
                    "server": server,
                    "certificate-authority-data": authority,
                    "tls-server-name": format!("{cluster}.skein"),
                    // Which cluster of this name it is, for whoever merges this with others.
                    "extensions": [{ "name": "skein.dev", "extension": { "fingerprint": fingerprint } }],
                },
            })).collect::<Vec<_>>(),
            "users": [{
                "name": entry,
                "user": {
                    "client-certificate-data": encode(client.chain.to_pem()),
                    "client-key-data": encode(client.key_pem),
                },
            }],
            "contexts": servers.keys().map(|name| json!({
                "name": context(name),
                "context": { "cluster": context(name), "user": entry },
            })).collect::<Vec<_>>(),
            "current-context": current,
        });
        Ok(json!({ "kubeconfig": kubeconfig, "warning": warning }))
    }

    async fn load_image(&self, request: Request<Incoming>) -> Reply {
        let here_only = request.uri().query().is_some_and(|query| query.contains("here=true"));
        let (feeder, pieces) = pieces::channel();
        let images = self.images.clone();
        let loading = tokio::spawn(async move { images.load(pieces, here_only).await });
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            if !feeder.feed(data).await {
                break;
            }
        }
        drop(feeder);
        let loaded = loading.await.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        let loaded = loaded.map_err(|error| (StatusCode::UNPROCESSABLE_ENTITY, error))?;
        Ok(
            json!({ "images": loaded.iter().map(|image| json!({ "name": image.name, "digest": image.digest })).collect::<Vec<_>>() }),
        )
    }

    /// Writes through this node's handle as fast as the cluster takes it: what `skein-chaos bench writes`
    /// measures. Each client overwrites one key of its own, which is removed in the end.
    async fn load(&self, load: Load) -> Reply {
        let until = tokio::time::Instant::now() + Duration::from_secs(load.seconds.min(LOAD_SECONDS_MAX));
        let value: Bytes = vec![b'x'; load.bytes.min(LOAD_BYTES_MAX)].into();
        let clients = (0..load.clients.min(LOAD_CLIENTS_MAX)).map(|client| {
            let (store, value) = (self.store.clone(), value.clone());
            let key: Arc<str> = format!("skein/load//{}-{client}", self.endpoint.node()).into();
            tokio::spawn(async move {
                let mut times = Vec::new();
                for serial in 0u64.. {
                    let began = tokio::time::Instant::now();
                    if began >= until {
                        break;
                    }
                    // Another value each time: an equal one would cost the log nothing.
                    let change = Change::Put([serial.to_be_bytes().as_slice(), &value].concat().into());
                    let op = Op { key: key.clone(), expect: Expect::Any, change };
                    if store.propose(vec![op], Options::default()).await.is_ok() {
                        times.push(began.elapsed());
                    }
                }
                let op = Op { key, expect: Expect::Any, change: Change::Delete };
                // What is left behind by a failure is overwritten by the next run.
                let _ = store.propose(vec![op], Options::default()).await;
                times
            })
        });
        let mut times = Vec::new();
        for client in futures::future::join_all(clients).await {
            times.extend(client.map_err(|error| unavailable(error.to_string()))?);
        }
        times.sort_unstable();
        let at = |share: f64| {
            let rank = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
            times.get(rank).map(|time| time.as_secs_f64() * 1000.0)
        };
        Ok(json!({ "writes": times.len(), "p50_ms": at(0.5), "p99_ms": at(0.99) }))
    }

    async fn images_in_use(&self) -> Result<BTreeMap<Digest, String>, (StatusCode, String)> {
        let view = self.picture.view();
        self.images.in_use(&*self.engine, &view, &self.membership.name).await.map_err(unavailable)
    }

    async fn remove_image(&self, name: &str) -> Reply {
        let in_use = self.images_in_use().await?;
        let (local, reference) = (self.images.local.clone(), name.to_owned());
        let digest = tokio::task::spawn_blocking(move || local.digest_of(&reference)).await;
        let digest = digest.map_err(|error| unavailable(error.to_string()))?;
        let digest = digest.map_err(|error| (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
        if let Some(pod) = digest.and_then(|digest| in_use.get(&digest)) {
            let message = format!("image {name} is in use by pod {pod} on this node; delete that first");
            return Err((StatusCode::CONFLICT, message));
        }
        match self.images.remove(name, &in_use).await.map_err(unavailable)? {
            true => Ok(json!({})),
            false => {
                let message = format!("there is no image {name} on this node; see: skein image list");
                Err((StatusCode::NOT_FOUND, message))
            }
        }
    }

    async fn prune_images(&self) -> Reply {
        let removed = self.images.prune(&self.images_in_use().await?).await.map_err(unavailable)?;
        Ok(json!({ "names": removed.names, "blobBytes": removed.blob_bytes }))
    }

    async fn list_images(&self) -> Reply {
        let local = self.images.local.clone();
        let names = tokio::task::spawn_blocking(move || local.names()).await;
        let names = names
            .map_err(|error| unavailable(error.to_string()))?
            .map_err(|error| unavailable(error.to_string()))?;
        Ok(
            json!({ "images": names.iter().map(|image| json!({ "name": image.name, "digest": image.digest })).collect::<Vec<_>>() }),
        )
    }

    /// Lets the member `name` go: lines of JSON that say how far it has come, and in the last one what came of it.
    /// Whoever stops reading changes nothing.
    async fn depart(&self, name: String, cause: Cause) -> Result<Body, (StatusCode, String)> {
        let record = self.members.by_name(&name);
        let is_own = record.as_ref().is_some_and(|record| record.node == self.endpoint.node());
        if is_own && cause == Cause::Stolen {
            let message =
                format!("this node is {name:?} itself; say it on another one: skein remove --stolen {name}");
            return Err((StatusCode::CONFLICT, message));
        }
        // A node that takes itself out leaves.
        let cause = if is_own { Cause::Leave } else { cause };
        let stolen = (cause == Cause::Stolen).then(|| self.authority.before_theft());
        self.departures.ask(&name, cause).await.map_err(|refusal| {
            let refusal = match is_own && !quorum::is_there(&self.store, &self.gossip) {
                true => {
                    format!("{refusal}; to give this node up without them: skein leave --end-cluster --force")
                }
                false if stolen.is_some() && record.is_none() => {
                    format!("{refusal}; if it is no member any more, all that it knew ends with: skein ca rotate --now")
                }
                false => refusal,
            };
            (StatusCode::CONFLICT, refusal)
        })?;
        info!(name, %cause, "a node is to go");
        let record = record.or_else(|| self.members.by_name(&name));
        let node =
            record.map(|record| record.node).ok_or_else(|| unavailable(format!("{name:?} has just gone")))?;
        let waiting = Waiting {
            departures: self.departures.clone(),
            out: is_own.then(|| self.out.subscribe()),
            home: self.home.clone(),
            revisions: self.picture.revisions(),
            clients: self.clients.clone(),
            authority: self.authority.clone(),
            stolen,
            gone_since: None,
            name,
            node,
            told: String::new(),
            draining: None,
            without_majority_since: None,
        };
        let lines = futures::stream::unfold(Some(waiting), |waiting| async move {
            let mut waiting = waiting?;
            let (line, is_last) = waiting.next().await;
            let line = Bytes::from(format!("{line}\n"));
            Some((Ok::<_, BodyError>(Frame::data(line)), (!is_last).then_some(waiting)))
        });
        Ok(body_from(StreamBody::new(lines)))
    }

    /// Takes a wish to go back.
    async fn stay(&self, name: &str) -> Reply {
        self.departures.cancel(name).await.map_err(|refusal| (StatusCode::CONFLICT, refusal))?;
        info!(name, "a node stays");
        Ok(json!({}))
    }

    /// Ends the cluster with its only node; with `force` also where others cannot be asked.
    async fn end(&self, force: bool) -> Reply {
        let me = self.endpoint.node();
        let gossiped = self.gossip.members().borrow().clone();
        let others: Vec<Record> =
            self.members.present().into_values().filter(|record| record.node != me).collect();
        let answers =
            |record: &&Record| gossiped.get(&record.node).is_some_and(|member| member.state.is_active());
        let quorum = quorum::is_there(&self.store, &self.gossip);
        let alive =
            others.iter().filter(answers).map(|record| format!("{:?}", record.name)).collect::<Vec<_>>();
        let refused = |message: String| Err((StatusCode::CONFLICT, message));
        if quorum && !alive.is_empty() {
            return refused(format!(
                "there are other nodes ({}); let this one leave with: skein leave",
                alive.join(", ")
            ));
        }
        if !others.is_empty() && !force {
            return refused(format!(
                "{} cannot be asked; take out those that are gone for good with: skein remove NAME (that needs a \
                 majority of the voters), or give this node up without asking: skein leave --end-cluster --force",
                others.iter().map(|record| format!("{:?}", record.name)).collect::<Vec<_>>().join(" and ")
            ));
        }
        info!(force, "ends the cluster on this node");
        let mut drained = true;
        if others.is_empty() {
            self.cordon().await.map_err(unavailable)?;
            drained = self.drain().await?;
        }
        let aside = self.home.leave().map_err(|error| unavailable(error.to_string()))?;
        self.out.send_replace(Some(Out::Left));
        let left: Vec<&str> = others.iter().map(|record| record.name.as_str()).collect();
        Ok(json!({ "drained": drained, "leftBehind": left, "aside": aside }))
    }

    /// Deletes the pods of this node. Whether all have ended in time.
    async fn drain(&self) -> Result<bool, (StatusCode, String)> {
        self.delete_pods_here().await.map_err(unavailable)?;
        let ended = async {
            let mut revisions = self.picture.revisions();
            while self.picture.view().pods_on(&self.membership.name).next().is_some() {
                if revisions.changed().await.is_err() {
                    return;
                }
            }
        };
        Ok(tokio::time::timeout(DRAIN_MAX, ended).await.is_ok())
    }

    async fn cordon(&self) -> Result<(), String> {
        let key = format!("core/nodes//{}", self.membership.name);
        self.edit(&key, |bytes| {
            let mut node: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            node["spec"]["unschedulable"] = true.into();
            serde_json::to_vec(&node).map_err(|error| error.to_string())
        })
        .await
    }

    /// Reads, changes and writes one value until nobody else did so meanwhile.
    async fn edit(&self, key: &str, change: impl Fn(&[u8]) -> Result<Vec<u8>, String>) -> Result<(), String> {
        for _ in 0..10 {
            self.store.read_index(Duration::from_secs(5)).await.map_err(|error| error.to_string())?;
            let state = self.store.state();
            let object = state.get(key).ok_or_else(|| format!("{key} is not there"))?;
            let op = Op {
                key: key.into(),
                expect: Expect::Revision(object.mod_rev),
                change: Change::Put(change(&object.value)?.into()),
            };
            let answer =
                self.store.propose(vec![op], Options::default()).await.map_err(|error| error.to_string())?;
            if all_done(&answer) {
                self.store.wait_revision(answer.revision, Duration::from_secs(3)).await;
                return Ok(());
            }
        }
        Err(format!("{key} changes all the time; try again"))
    }

    /// Asks for the deletion of every pod here, with its own grace, through the API's own rules.
    async fn delete_pods_here(&self) -> Result<(), String> {
        let view = self.picture.view();
        let pods: Vec<(String, String)> = view
            .pods_on(&self.membership.name)
            .filter_map(|(_, pod)| Some((pod.metadata.namespace.clone()?, pod.metadata.name.clone()?)))
            .collect();
        let caller = Identity::administrator("system:node-drain");
        for (namespace, name) in pods {
            let uri = format!("/api/v1/namespaces/{namespace}/pods/{name}");
            let request = Request::delete(uri).body(full(Bytes::new())).map_err(|error| error.to_string())?;
            self.server.api().answer(request, &caller, "drain").await;
        }
        Ok(())
    }
}

/// Somebody who waits until a member has gone.
struct Waiting {
    departures: Departures,
    /// Of this node itself: it stops reading its replica when it is out.
    out: Option<watch::Receiver<Option<Out>>>,
    home: Home,
    revisions: watch::Receiver<u64>,
    clients: Clients,
    authority: Authority,
    /// It was stolen: all that was made before is to end with it.
    stolen: Option<BeforeTheft>,
    gone_since: Option<Instant>,
    name: String,
    node: NodeId,
    told: String,
    /// When it was first and last seen to be emptied.
    draining: Option<(Instant, Instant)>,
    without_majority_since: Option<Instant>,
}

impl Waiting {
    /// The next line, once there is something new to say, and whether it is the last.
    async fn next(&mut self) -> (Value, bool) {
        loop {
            let mut progress = self.departures.progress(self.node);
            if self.out.as_ref().is_some_and(|out| out.borrow().is_some()) {
                progress = Progress::Gone;
            }
            let mut text = progress.to_string();
            let rotated = self.stolen.as_ref().map(|before| self.authority.rotated_since(before));
            match progress {
                Progress::Gone if rotated == Some(None) => {
                    let since = *self.gone_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= rotation::CHANGE_MAX {
                        let message =
                            format!("{:?} is no member any more, but {}", self.name, rotation::Error::GoesOn);
                        return (json!({ "message": message }), true);
                    }
                    text = "no member any more; all authorities are being made anew".to_owned();
                }
                Progress::Gone => {
                    let ended = self.clients.of_node(self.node);
                    let users: BTreeSet<String> = ended.into_iter().map(|client| client.user).collect();
                    // What takes all of its time is not waited for any longer.
                    let drained =
                        self.draining.is_none_or(|(first, last)| last - first + LOOK_AGAIN < DRAIN_MAX);
                    let aside = self.out.as_ref().and_then(|_| self.home.left().ok().flatten());
                    let rotated = rotated.flatten().map(
                        |rotated| json!({ "edition": rotated.edition, "tokensEnded": rotated.tokens_ended }),
                    );
                    let done = json!({ "drained": drained, "usersEnded": users, "aside": aside, "rotated": rotated });
                    return (json!({ "done": done }), true);
                }
                Progress::Kept(_) => return (json!({ "message": format!("{:?} {text}", self.name) }), true),
                Progress::Member => {
                    let message = format!("{:?} stays a member: somebody has taken the wish back", self.name);
                    return (json!({ "message": message }), true);
                }
                Progress::Draining { .. } => {
                    let now = Instant::now();
                    self.draining.get_or_insert((now, now)).1 = now;
                }
                Progress::Leaving { .. } | Progress::Waiting { .. } => {}
            }
            match self.without_majority() {
                Some(since) if since >= MAJORITY_MAX => {
                    let message = format!(
                        "no majority of the voters is up: {}. That {:?} is to go stays on record, and goes on when \
                         there is one; to take it back then: skein leave --cancel, or skein remove --cancel {}",
                        self.departures.who_is_missed(),
                        self.name,
                        self.name,
                    );
                    return (json!({ "message": message }), true);
                }
                Some(since) if since >= MAJORITY_DOUBT => {
                    text = format!("waits for a majority of the voters; {}", self.departures.who_is_missed());
                }
                _ => {}
            }
            if text != self.told {
                self.told.clone_from(&text);
                return (json!({ "progress": text }), false);
            }
            let out = async {
                match &mut self.out {
                    Some(out) => drop(out.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Its end is the daemon's.
                _ = self.revisions.changed() => {}
                () = out => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// For how long there has been none.
    fn without_majority(&mut self) -> Option<Duration> {
        let now = Instant::now();
        match quorum::is_there(&self.departures.store, &self.departures.gossip) {
            true => self.without_majority_since = None,
            false => drop(self.without_majority_since.get_or_insert(now)),
        }
        self.without_majority_since.map(|since| now - since)
    }
}

fn answer(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn body<T: serde::de::DeserializeOwned + Default>(
    request: Request<Incoming>,
) -> Result<T, (StatusCode, String)> {
    let limited = http_body_util::Limited::new(request.into_body(), BODY_BYTES_MAX);
    let bytes =
        limited.collect().await.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?.to_bytes();
    if bytes.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&bytes).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
}

fn unavailable(message: String) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, message)
}

fn seconds(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    jiff::Timestamp::from_second(time.as_second()).unwrap_or_default().to_string()
}
