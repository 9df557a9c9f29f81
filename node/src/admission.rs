//! Letting machines in: by a token, on the leader, as one command of the log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use skein_api::write::Write;
use skein_control::node::admission::{self, Newcomer, Place, SUBNETS, TOKENS, is_haunted};
use skein_control::node::authority::TRUST;
use skein_control::node::roster;
use skein_net::endpoint::Endpoint;
use skein_net::identity::NodeId;
use skein_net::incarnation::Incarnation;
use skein_net::join::{Admission, Admitted, Claim, Member, Refusal};
use skein_net::token::{Token, TokenRecord};
use skein_podnet::Subnet;
use skein_raft_store::{Answer, Change, Expect, Handle, Op, Options, Outcome, State, TokioRuntime};
use tracing::info;

use crate::authority::{Authority, trust_of};
use crate::backup::Recipient;
use crate::clock;
use crate::cluster::op;
use crate::members::{Members, Record};
use crate::picture::Picture;
use crate::wire::{self, Ask};

/// Pods per node: 254. Nodes in a /16: 256.
const SUBNET_PREFIX: u8 = 24;
/// Two machines that join at once may want the same subnet or name: the second looks again.
const TRIES: usize = 8;
/// How long the pods of a node of the same name that has gone are waited for. The newcomer waits for ten seconds.
const HAUNTED_MAX: Duration = Duration::from_secs(5);

/// Who judges claims. On every node; only the leader decides.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) authority: Authority,
    pub(crate) members: Members,
    pub(crate) picture: Picture,
    /// Told to whoever is let in.
    pub(crate) incarnation: Incarnation,
    pub(crate) cluster: Subnet,
    /// Set once the endpoint listens, which needs a door first.
    pub(crate) endpoint: Arc<std::sync::OnceLock<Endpoint>>,
}

#[async_trait]
impl Admission for Door {
    async fn admit(&self, claim: Claim) -> Result<Admitted, Refusal> {
        let metrics = self.store.metrics();
        if metrics.leads() {
            return self.decide(claim).await;
        }
        let unavailable = |reason: &str| Refusal::Unavailable(reason.to_owned());
        let leader = metrics.leader.ok_or_else(|| unavailable("it has no leader at the moment"))?;
        let endpoint = self.endpoint.get().ok_or_else(|| unavailable("this node is starting"))?;
        let answer: wire::Admission = wire::ask(endpoint, NodeId(leader.node), &Ask::Admit(Box::new(claim)))
            .await
            .map_err(|error| unavailable(&format!("its leader was not reached: {error}")))?;
        answer.map(|admitted| *admitted)
    }
}

impl Door {
    /// Judges a claim as the leader.
    pub(crate) async fn decide(&self, claim: Claim) -> Result<Admitted, Refusal> {
        let unavailable = |error: &dyn std::fmt::Display| Refusal::Unavailable(error.to_string());
        let authority = self
            .authority
            .held()
            .ok_or_else(|| Refusal::Unavailable("its leader does not hold the authorities yet".into()))?;
        let node = claim.node()?;
        for _ in 0..TRIES {
            // What a former claim changed must be seen before this one is judged.
            let seen = self.picture.catch_up(&self.store, Duration::from_secs(5)).await;
            seen.map_err(|error| unavailable(&error))?;
            // Decided by what is not older than the claims that are made in the same state: nothing that is in it may be missed.
            let state = self.store.state();
            self.picture.reach(state.revision()).await;
            let (ops, record) = self.plan(&state, &claim, node)?;
            let answer =
                self.store.propose(ops, Options::default()).await.map_err(|error| unavailable(&error))?;
            if !all_done(&answer) {
                continue;
            }
            // Before its certificate nothing comes from it.
            if !self.not_haunted(&record.name).await {
                return Err(Refusal::Unavailable(format!(
                    "pods of the node that was called {:?} are still being replaced",
                    record.name
                )));
            }
            let chain =
                self.authority.certify(&authority, &claim.csr).map_err(|error| unavailable(&error))?;
            info!(peer = %node, name = record.name, subnet = %record.subnet, "a node joined");
            let members = self.members.present().into_values().map(|member| Member {
                node: member.node,
                name: member.name,
                addresses: self.addresses(member.node, member.addresses),
            });
            let public = self.authority.public();
            let extra = Admitted::added(self.incarnation);
            return Ok(Admitted { chain, public, members: members.collect(), extra });
        }
        Err(Refusal::Unavailable("many machines join at once".into()))
    }

    /// The command that spends the token and writes the record.
    fn plan(&self, state: &State, claim: &Claim, node: NodeId) -> Result<(Vec<Op>, Record), Refusal> {
        let token_key = format!("{TOKENS}{}", claim.token);
        let token = state.get(&token_key);
        let spent = token.and_then(|object| serde_json::from_slice::<TokenRecord>(&object.value).ok());
        let trust = trust_of(state);
        admission::may_use_tokens(trust.as_ref().map(|(_, trust)| trust)).map_err(refusal)?;
        let now = clock::system();
        let after = claim.spend(spent.as_ref(), now)?;
        let mut ops = vec![
            Op {
                key: token_key.into(),
                expect: Expect::Revision(token.map_or(0, |object| object.mod_rev)),
                change: Change::Put(json(&after)),
            },
            Op {
                key: TRUST.into(),
                expect: trust.map_or(Expect::Absent, |(revision, _)| Expect::Revision(revision)),
                change: Change::Check,
            },
        ];
        let (about, id) = (&claim.about, node.to_string());
        let newcomer = Newcomer { node: &id, name: &about.name, replaces: after.replaces.as_deref() };
        let place = admission::place(&self.picture.view(), &newcomer).map_err(refusal)?;
        let key = Record::key(node);
        let known = state.get(&key);
        let before: Option<Record> = known.and_then(|object| serde_json::from_slice(&object.value).ok());
        let mut labels = before.as_ref().map(|record| record.labels.clone()).unwrap_or_default();
        let subnet = match place {
            Place::Of(former) => {
                let of = record_of(state, &former.node);
                let of = of.ok_or_else(|| Refusal::Unavailable("its members change".into()))?;
                ops.extend(former.writes.into_iter().map(op));
                ops.push(Op {
                    key: format!("{SUBNETS}{}", of.subnet.base()).into(),
                    expect: Expect::Any,
                    change: Change::Put(json(&node)),
                });
                labels = former.labels;
                of.subnet
            }
            Place::Again | Place::New => match &before {
                Some(record) => record.subnet,
                None => {
                    let (subnet, op) = self.free_subnet(state, node)?;
                    ops.push(op);
                    subnet
                }
            },
        };
        let from = SocketAddr::new(claim.from.ip(), about.listen_port);
        let new = Record::new(node, about.store, about.name.clone(), vec![from], subnet, clock::now_ms());
        let record = Record {
            removals_ms: before.as_ref().map(|record| record.removals_ms.clone()).unwrap_or_default(),
            // A known key on an empty disk has voted before, under another name.
            fresh: before.is_none(),
            labels,
            ..new
        };
        let expect = known.map_or(Expect::Absent, |object| Expect::Revision(object.mod_rev));
        ops.push(Op { key: key.into(), expect, change: Change::Put(record.to_bytes().into()) });
        Ok((ops, record))
    }

    /// Waits until no pods of a node of this name that has gone are left, but not for ever. Whether that came.
    pub(crate) async fn not_haunted(&self, name: &str) -> bool {
        tokio::time::timeout(HAUNTED_MAX, self.until_not_haunted(name)).await.is_ok()
    }

    async fn until_not_haunted(&self, name: &str) {
        let mut revisions = self.picture.revisions();
        // At the start of a daemon it shows nothing at first.
        let seen = self.store.state().revision();
        let _ = revisions.wait_for(|revision| *revision >= seen).await;
        while is_haunted(&self.picture.view(), name) {
            // Its end is the daemon's.
            let _ = revisions.changed().await;
        }
    }

    /// The subnet of a new member, and the claim on it.
    fn free_subnet(&self, state: &State, node: NodeId) -> Result<(Subnet, Op), Refusal> {
        let parts = (0..).map_while(|n| self.cluster.nth_part(SUBNET_PREFIX, n));
        let records = state.range(roster::PREFIX, None).filter_map(|(_, object)| {
            Some((object.mod_rev, serde_json::from_slice::<Record>(&object.value).ok()?))
        });
        let subnet = admission::range(parts, records);
        let subnet = subnet.ok_or_else(|| {
            Refusal::Denied(format!(
                "no pod subnet is left in {}; end the membership of machines that are gone first: skein remove NAME",
                self.cluster
            ))
        })?;
        let key = format!("{SUBNETS}{}", subnet.base());
        let expect = state.get(&key).map_or(Expect::Absent, |object| Expect::Revision(object.mod_rev));
        Ok((subnet, Op { key: key.into(), expect, change: Change::Put(json(&node)) }))
    }

    fn addresses(&self, node: NodeId, otherwise: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let known = self.endpoint.get().map(|endpoint| match node == endpoint.node() {
            true => endpoint.reachable_addresses(),
            false => endpoint.book().addresses(node),
        });
        let known = known.unwrap_or_default();
        if known.is_empty() { otherwise } else { known }
    }

    /// The founder's own record, which nobody let in, and what a cluster begins with.
    pub(crate) async fn found(
        &self,
        record: &Record,
        recipient: Option<&Recipient>,
        first: Vec<Write>,
    ) -> Result<(), String> {
        let mut ops = first_of(record);
        ops.extend(recipient.map(Recipient::to_op));
        ops.extend(first.into_iter().map(op));
        self.store.propose(ops, Options::default()).await.map(drop).map_err(|error| error.to_string())
    }

    /// Makes a token that lets `uses` machines in for `ttl`, or one that gives the place of the lost member `replaces`.
    pub(crate) async fn mint(
        &self,
        addresses: &[SocketAddr],
        uses: u32,
        ttl: Duration,
        replaces: Option<String>,
    ) -> Result<Token, String> {
        if let Some(name) = &replaces {
            let seen = self.picture.catch_up(&self.store, Duration::from_secs(5)).await;
            seen.map_err(|error| error.to_string())?;
            admission::may_give_place(&self.picture.view(), name).map_err(|refusal| refusal.to_string())?;
        }
        let trust = trust_of(&self.store.state());
        admission::may_use_tokens(trust.as_ref().map(|(_, trust)| trust))
            .map_err(|refusal| refusal.to_string())?;
        let public = self.authority.public();
        let root = public.members.roots().first().ok_or("the cluster has no root certificate")?;
        let pin = skein_net::ca::Pin::of(root).ok_or("the cluster's root certificate does not parse")?;
        let (token, record) =
            Token::mint(pin, addresses, uses, ttl, clock::system()).map_err(|error| error.to_string())?;
        let record = TokenRecord { replaces, ..record };
        let op = Op {
            key: format!("{TOKENS}{}", record.id).into(),
            expect: Expect::Absent,
            change: Change::Put(json(&record)),
        };
        let answer =
            self.store.propose(vec![op], Options::default()).await.map_err(|error| error.to_string())?;
        if all_done(&answer) { Ok(token) } else { Err("the token's id is taken; try again".into()) }
    }

    /// Every token that is kept, by id.
    pub(crate) fn tokens(&self) -> Vec<TokenRecord> {
        tokens(&self.store.state())
    }

    /// Withdraws a token. `false` if there is none of that id.
    pub(crate) async fn revoke(&self, id: &str) -> Result<bool, String> {
        let key = format!("{TOKENS}{id}");
        for _ in 0..TRIES {
            self.store.read_index(Duration::from_secs(5)).await.map_err(|error| error.to_string())?;
            let state = self.store.state();
            let Some(object) = state.get(&key) else { return Ok(false) };
            let mut record: TokenRecord =
                serde_json::from_slice(&object.value).map_err(|error| error.to_string())?;
            record.revoked = true;
            let op = Op {
                key: key.as_str().into(),
                expect: Expect::Revision(object.mod_rev),
                change: Change::Put(json(&record)),
            };
            let answer =
                self.store.propose(vec![op], Options::default()).await.map_err(|error| error.to_string())?;
            if all_done(&answer) {
                return Ok(true);
            }
        }
        Err("the token changes all the time; try again".into())
    }
}

/// The records of a cluster's first member.
pub(crate) fn first_of(record: &Record) -> Vec<Op> {
    let subnet = format!("{SUBNETS}{}", record.subnet.base());
    let puts = [(Record::key(record.node), record.to_bytes().into()), (subnet, json(&record.node))];
    let op = |(key, bytes): (String, bytes::Bytes)| Op {
        key: key.into(),
        expect: Expect::Absent,
        change: Change::Put(bytes),
    };
    puts.map(op).into()
}

/// Every token that is kept, by id.
pub(crate) fn tokens(state: &State) -> Vec<TokenRecord> {
    let records = state.range(TOKENS, None);
    records.filter_map(|(_, object)| serde_json::from_slice(&object.value).ok()).collect()
}

fn record_of(state: &State, node: &str) -> Option<Record> {
    let object = state.get(&format!("{}{node}", roster::PREFIX))?;
    serde_json::from_slice(&object.value).ok()
}

/// What the newcomer is told.
fn refusal(refusal: admission::Refusal) -> Refusal {
    match refusal {
        admission::Refusal::NameTaken(name) => Refusal::NameTaken(name),
        admission::Refusal::Removed => Refusal::Removed,
        other => Refusal::Denied(other.to_string()),
    }
}

/// Whether everything a command asked for happened.
pub(crate) fn all_done(answer: &Answer) -> bool {
    answer.outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done { .. } | Outcome::Unchanged { .. }))
}

pub(crate) fn json(value: &impl serde::Serialize) -> bytes::Bytes {
    serde_json::to_vec(value).expect("plain data has no key that is not a text").into()
}
