//! A running node: every part started in order, and stopped in the reverse one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use skein_apiserver as apiserver;
use skein_apiserver::tls::{ApiTls, SwappableCertificate};
use skein_control::chance::Chance;
use skein_control::plan;
use skein_net::address_book::AddressBook;
use skein_net::beacon::{self, Beacon, PeerName};
use skein_net::ca::Chain;
use skein_net::endpoint::{self, Endpoint, Service};
use skein_net::gossip;
use skein_net::gossip::core::Deposed;
use skein_net::gossip::service::{Config as GossipConfig, Gossip};
use skein_net::identity::{Identity, NodeId, StoreId};
use skein_net::incarnation::Tag;
use skein_net::join::Limited;
use skein_net::stream::Stream;
use skein_net::tls::Tls;
use skein_podnet::{Network, Subnet};
use skein_raft_store::{Change, DiskFiles, Expect, Handle, Op, Options, TokioRuntime, VoterId};
use skein_runtime::images::{self, Images};
use skein_runtime::{Engine, Machine, Probe};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::admin::Admin;
use crate::admission::{Door, all_done};
use crate::agent::{Agent, ClusterImages, Logs, Offer};
use crate::authority::Authority;
use crate::backup::Recipient;
use crate::certificates::{ApiCertificates, MemberCertificate, follow_trust};
use crate::clients::Clients;
use crate::clock::{self, ClusterTime};
use crate::clocks::{self, CLOCK_DATAGRAM};
use crate::cluster::Here;
use crate::departures::{Departures, Out, until_out};
use crate::disk;
use crate::home::{Home, Membership};
use crate::leader::{Needs, Voters};
use crate::members::{self, Members, Record};
use crate::picture::Picture;
use crate::planner::{Desk, Planner};
use crate::pressure;
use crate::quorum;
use crate::recover::{self, Recovery};
use crate::report::Chain as ErrorChain;
use crate::secrets::Vault;
use crate::surroundings::Surroundings;
use crate::voting::Voting;
use crate::watchfulness::{self, WATCH_DATAGRAM, Watch};
use crate::wire::{self, Answer, Ask};

/// All pods of the cluster. A /24 of it for each node.
pub(crate) const POD_NETWORK: &str = "10.42.0.0/16";
/// All Services of the cluster.
pub(crate) const SERVICE_NETWORK: &str = "10.43.0.0/16";
/// The address of Service `default/kubernetes`: the first of the Services' range.
const KUBERNETES_IP: &str = "10.43.0.1";
/// How long a stopping node may take to hand over its leadership and to end its requests.
const STOP_MAX: Duration = Duration::from_secs(10);
/// How long a member that was just let in waits for its own record in its replica.
const RECORD_MAX: Duration = Duration::from_secs(60);

/// How a node is run.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) home: Home,
    pub(crate) ports: Ports,
    pub(crate) listen: SocketAddr,
    /// What others are told of where this node is; empty for what is found out.
    pub(crate) advertise: Vec<SocketAddr>,
    /// Where other members may be, whatever their addresses are.
    pub(crate) peers: Vec<PeerName>,
    /// cgroup of this node's pods; `skein/<node id>` unless given.
    pub(crate) cgroup: Option<String>,
    /// Nodes that share this machine.
    pub(crate) share: u64,
    /// Whether containers have what other runtimes give.
    pub(crate) usual_capabilities: bool,
    /// What images may cost, and how registries are spoken to.
    pub(crate) images: images::Config,
    /// For whom backups are made, of a cluster that is founded now.
    pub(crate) recipient: Option<Recipient>,
}

/// Where a node listens, taken before anything is made or asked: nothing is then done for a node that cannot start.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) nodes: std::net::UdpSocket,
    pub(crate) api: std::net::TcpListener,
}

impl Ports {
    pub(crate) fn take(listen: SocketAddr, api_listen: SocketAddr) -> Result<Ports, Failure> {
        let api = skein_net::listen::tcp(api_listen).map_err(|error| {
            format!("cannot listen on {api_listen} (TCP) for the API: {error}; stop what uses the port, or choose another with --api-listen")
        })?;
        Ok(Ports { nodes: endpoint::socket(listen)?, api })
    }
}

/// Why a node did not start or go on. The text is for people.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The files of this node's store, and its name as a voter: a store that was lost and made anew has another
/// one, so that it never votes under the name of what it forgot.
///
/// `fresh` is the id of a store that is made now: never one that was used before.
pub(crate) async fn open_store(
    home: &Home,
    node: NodeId,
    tag: Tag,
    fresh: StoreId,
) -> Result<(DiskFiles, VoterId), Failure> {
    let files = recover::open(&home.part("store")?).await?;
    let voter =
        skein_raft_store::store_id::load_or_create(&files, node.0, fresh.0, wire::store_tag(tag)).await?;
    Ok((files, voter))
}

/// How a life of a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was asked to stop, or has left.
    Stopped,
    /// It lives on in another incarnation of its cluster: what was read of its directory is to be read again.
    Turned,
}

/// Runs a member until `stopping`, or until it goes over to another incarnation of its cluster; `started` is
/// called once its API answers.
pub(crate) async fn run(
    config: Config,
    identity: Identity,
    membership: Membership,
    chain: Chain,
    stopping: CancellationToken,
    started: impl FnOnce(&Node) + Send,
) -> Result<End, Failure> {
    recover::settle(&config.home, membership.tag()).await?;
    let mut node = Node::start(config, identity.clone(), membership, chain, stopping.clone()).await?;
    started(&node);
    let mut out = node.out.subscribe();
    let ended = tokio::select! {
        () = stopping.cancelled() => Ok(None),
        reason = node.gossip.deposed() => Err(reason),
        out = out.wait_for(Option::is_some) => Ok(out.ok().and_then(|out| *out)),
        Some(next) = node.moves.recv() => return node.turn(next, &identity).await,
    };
    let remains = node.remains.clone();
    let (home, me) = (node.home.clone(), node.endpoint.node());
    let cluster = node.membership.public.cluster.name.clone();
    if let Ok(Some(out)) = ended {
        info!("{out}");
    }
    node.stop().await;
    let aside = home.left()?;
    if aside.is_some() || matches!(ended, Ok(Some(_))) {
        // What it ran is made anew elsewhere.
        remains.clear().await;
    }
    if let Some(aside) = aside {
        home.set_aside(&aside)?;
        info!(aside = %aside.display(), "has left");
    }
    match ended {
        Ok(Some(Out::Removed)) => Err(Removed { cluster, dir: home.dir().display().to_string() }.into()),
        Ok(Some(Out::Left) | None) => Ok(End::Stopped),
        Err(reason) => {
            if let Deposed::RolledBack { generation } = reason {
                outlive_copy(&home, me, generation)?;
            }
            Err(reason.into())
        }
    }
}

/// This disk is a copy of what went on elsewhere: the next start comes after start `generation` of node `me`, which was
/// not from it, and under a new voter id.
///
/// Of two members each quorum has both, so what this one missed the other one has, and it may keep its vote; alone it is
/// all that there is.
pub(crate) fn outlive_copy(home: &Home, me: NodeId, generation: u64) -> Result<(), Failure> {
    Identity::outlive(home.dir(), generation)?;
    let others = home.addresses()?.0.into_keys().filter(|node| *node != me).count();
    if others >= 2 {
        let aside = home.set_store_aside("copied-store")?;
        warn!(aside = %aside.display(), "this disk is a copy; its store was moved away, and is made anew from the others'");
    }
    Ok(())
}

/// Others have ended this node's membership, as it is told each time it is started. Starting it again changes nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "this node was removed from cluster {cluster:?} and stays out; to let this machine join again, move {dir} away and run \
     `skein join TOKEN` with a new token"
)]
pub(crate) struct Removed {
    cluster: String,
    dir: String,
}

/// The parts of a running node that others speak to.
pub(crate) struct Node {
    pub(crate) store: Handle<TokioRuntime>,
    pub(crate) endpoint: Endpoint,
    pub(crate) gossip: gossip::service::Handle,
    pub(crate) members: Members,
    pub(crate) door: Door,
    pub(crate) api_address: SocketAddr,
    pub(crate) membership: Membership,
    home: Home,
    remains: Remains,
    /// That this node is no member any more.
    out: watch::Sender<Option<Out>>,
    moves: mpsc::Receiver<recover::Move>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// What of a node is in the kernel, and goes on while its daemon is away.
#[derive(Clone)]
pub(crate) struct Remains {
    pub(crate) machine: Machine,
    pub(crate) network: skein_podnet::Config,
}

impl Remains {
    /// For a node that has left its cluster: nothing of it stays but files.
    pub(crate) async fn clear(self) {
        if let Err(error) = self.machine.purge().await {
            warn!(%error, "could not remove what ran here");
        }
        let dismantled = move || Network::open(self.network)?.dismantle();
        // A panic has been reported where it happened.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(dismantled).await {
            warn!(error = %crate::report::Chain(&error), "could not remove links and routes");
        }
    }
}

/// The cgroup of the pods of `node`, below each hierarchy's root, unless another one was `given`.
pub(crate) fn cgroup_of(given: Option<&str>, node: Option<NodeId>) -> Option<PathBuf> {
    let own = || node.map(|node| format!("skein/{}", node.short()));
    given.map(str::to_owned).or_else(own).map(PathBuf::from)
}

/// Where the pods of a node live.
pub(crate) fn machine_config(home: &Home, cgroup: PathBuf) -> Result<skein_runtime::Config, Failure> {
    Ok(skein_runtime::Config {
        data_dir: home.part("pods")?,
        logs_dir: home.part("logs")?,
        cgroup,
        owner: Some(home.owner()?),
        cgroup_mount: skein_runtime::CGROUP_MOUNT.into(),
        usual_capabilities: false,
    })
}

pub(crate) fn network_config(home: &Home, subnet: Subnet) -> Result<skein_podnet::Config, Failure> {
    let cluster = POD_NETWORK.parse().expect("a network in CIDR notation");
    Ok(skein_podnet::Config { dir: home.part("network")?, tag: home.owner()?, cluster, subnet })
}

/// The pod subnet of whoever comes first.
pub(crate) fn first_subnet() -> Subnet {
    let cluster: Subnet = POD_NETWORK.parse().expect("a network in CIDR notation");
    cluster.nth_part(24, 0).expect("a /16 has a first /24")
}

impl Node {
    async fn start(
        config: Config,
        identity: Identity,
        membership: Membership,
        chain: Chain,
        stopping: CancellationToken,
    ) -> Result<Node, Failure> {
        let me = identity.node();
        let tasks = TaskTracker::new();
        let members = Members::default();
        let clients = Clients::default();
        let home = config.home.clone();

        let tls = Tls::new(
            &identity,
            &chain,
            membership.public.members.clone(),
            Arc::new(members.clone()),
            ClusterTime::provider(),
        )?;
        let book = AddressBook::new(home.addresses()?);

        let api_listener = TcpListener::from_std(config.ports.api)?;
        let api_listen = api_listener.local_addr()?;
        let api_port = api_listen.port();
        // On the loopback it is served to this machine alone; others then learn from its kernel that it lives.
        let api_follows = api_listen.ip().is_unspecified() || api_listen.ip().is_loopback();

        // The door needs the store, the store needs the endpoint, the endpoint needs the door.
        let door_of_store: Arc<OnceLock<Door>> = Arc::default();
        let admission = Arc::new(Limited::new(LateDoor(door_of_store.clone())));
        let endpoint = Endpoint::on(
            config.ports.nodes,
            endpoint::Config {
                listen: config.listen,
                tag: membership.tag(),
                tls: tls.clone(),
                trust: Arc::new(members.clone()),
                book: book.clone(),
                advertise: config.advertise.clone(),
                admission: Some(admission),
            },
        )?;
        let (files, voter) = open_store(&home, me, membership.tag(), StoreId(rand::random())).await?;
        let mut store_config =
            skein_raft_store::Config::new(voter, wire::store_tag(membership.tag()), identity.generation());
        store_config.clock = Arc::new(clock::for_stamps_ms);
        store_config.timings = measured(&files).await;
        info!(node = %me, listen = %endpoint.local_address(), api = %api_listen, election_ms = store_config.timings.election_min().as_millis() as u64, "starting");
        let store: Handle<TokioRuntime> =
            skein_raft_store::start(store_config, files, Arc::new(wire::Lanes(endpoint.clone()))).await?;
        members.load(&store.state());
        clients.load(&store.state());
        // A node that lost its power before it had kept what gossip told finds the others where they joined.
        for record in members.present().into_values().filter(|record| record.node != me) {
            if book.addresses(record.node).is_empty() {
                book.learn(record.node, &record.name, &record.addresses);
            }
        }

        let authority = Authority::load(
            home.clone(),
            identity.clone(),
            membership.public.clone(),
            members.clone(),
            store.clone(),
            endpoint.clone(),
        )?;

        let vault = Vault::new(authority.clone(), home.clone(), identity.clone());

        let picture = Picture::new();
        let door = Door {
            store: store.clone(),
            authority: authority.clone(),
            members: members.clone(),
            picture: picture.clone(),
            incarnation: membership.tag().incarnation,
            cluster: POD_NETWORK.parse().expect("a network in CIDR notation"),
            endpoint: Arc::new(OnceLock::from(endpoint.clone())),
        };
        let _ = door_of_store.set(door.clone());

        let api_address = match api_follows {
            true => SocketAddr::new(endpoint.host_address(), api_port),
            false => api_listen,
        };
        let gossip = Gossip::start(GossipConfig {
            endpoint: endpoint.clone(),
            generation: identity.generation(),
            metadata: gossip::Metadata {
                name: membership.name.clone(),
                addresses: endpoint.reachable_addresses(),
                api_address: Some(api_address),
                version: env!("CARGO_PKG_VERSION").into(),
                level: 1,
                labels: [(quorum::STORE_LABEL.to_owned(), quorum::store_label(voter))].into(),
            },
            follow_interfaces: config.listen.ip().is_unspecified(),
            api_follows,
            tuning: gossip::core::Tuning::default(),
        })?;

        let cgroup = cgroup_of(config.cgroup.as_deref(), Some(me)).expect("a node's id is a name");
        let usual_capabilities = config.usual_capabilities;
        let machine = skein_runtime::Config { usual_capabilities, ..machine_config(&home, cgroup)? };
        let machine = Machine::open(machine).await?;
        let Probe { missing, weaker, .. } = Machine::probe(machine.config());
        // A voter that can run nothing any more still votes.
        missing.iter().for_each(|missing| error!("no container can start here: {missing}"));
        weaker.iter().for_each(|weaker| warn!("{weaker}"));
        let engine: Arc<dyn Engine> = Arc::new(machine.clone());
        let local = Images::open(&home.part("images")?, config.images.clone())?;
        let images = ClusterImages {
            local,
            store: store.clone(),
            endpoint: endpoint.clone(),
            members: members.clone(),
        };

        let (needs, needs_seen) = watch::channel(Needs::default());
        let (moves, moved) = mpsc::channel(1);
        let recovery = Recovery {
            store: store.clone(),
            endpoint: endpoint.clone(),
            gossip: gossip.clone(),
            members: members.clone(),
            authority: authority.clone(),
            membership: membership.clone(),
            moves,
            stopping: stopping.clone(),
            sought: Default::default(),
        };
        let (watch, watchful, verdicts) = Watch::new(
            store.clone(),
            endpoint.clone(),
            members.clone(),
            picture.clone(),
            gossip.members(),
            book.clone(),
        );
        let voting = watch::Sender::new(None);
        let (clock_shell, clocks, time_known) =
            clocks::Shell::new(store.clone(), endpoint.clone(), members.clone());
        let departures = Departures {
            store: store.clone(),
            endpoint: endpoint.clone(),
            gossip: gossip.clone(),
            members: members.clone(),
            picture: picture.clone(),
            verdicts: verdicts.clone(),
            needs: needs_seen.clone(),
            leaves: Arc::default(),
        };
        let out = watch::Sender::new(None);
        tasks.spawn({
            let until_out = until_out(endpoint.clone(), members.clone(), departures.leaves.clone());
            let out = out.clone();
            let (stopping, home) = (stopping.clone(), home.clone());
            async move {
                let why = tokio::select! {
                    why = until_out => why,
                    () = stopping.cancelled() => return,
                };
                // Where its daemon dies before it has ended, the next one knows.
                if why == Out::Left
                    && let Err(error) = home.leave()
                {
                    error!(error = %ErrorChain(&error), "could not note that this node has left");
                }
                out.send_replace(Some(why));
            }
        });
        endpoint.serve(Arc::new(Dispatch {
            gossip: gossip.clone(),
            clocks,
            answering: Answering {
                departures: departures.clone(),
                members: members.clone(),
                store: store.clone(),
                watchful: watchful.clone(),
                door: door.clone(),
                authority: authority.clone(),
                logs: Logs(engine.clone()),
                images: images.clone(),
                voting: voting.subscribe(),
                recovery: recovery.clone(),
            },
        }));

        // Before the founding: an empty machine that asks meanwhile is to hear of this one.
        let beacon = Beacon::new(beacon::Config {
            endpoint: endpoint.clone(),
            identity: identity.clone(),
            gossip: gossip.clone(),
            peers: config.peers.clone(),
            tuning: beacon::Tuning::default(),
        });
        tasks.spawn(beacon.run(stopping.clone()));
        if membership.founding {
            found(&store, &door, &membership, &endpoint, &home, config.recipient.as_ref()).await?;
        }
        tasks.spawn(picture.clone().follow(
            store.clone(),
            members.clone(),
            clients.clone(),
            stopping.clone(),
        ));
        let known = members.present().into_keys().chain(book.nodes()).filter(|node| *node != me);
        let known: Vec<NodeId> = known.collect();
        gossip.introduce(known).await;
        tasks.spawn(watch.run(stopping.clone()));
        tasks.spawn(clock_shell.run(stopping.clone()));
        tasks.spawn(part_with_removed(
            store.clone(),
            members.clone(),
            endpoint.clone(),
            gossip.clone(),
            stopping.clone(),
        ));
        let disk = disk::watch(&tasks, store.clone(), gossip.clone(), stopping.clone());
        let pressures = pressure::watch(&tasks, home.dir().to_owned(), stopping.clone());
        tasks.spawn(introduce(store.clone(), members.clone(), book.clone(), stopping.clone()));
        tasks.spawn(keep_addresses(home.clone(), book, stopping.clone()));
        let (pem, ca_pem) = watch::channel(authority.public().members.to_pem().into());
        let desk = Desk {
            picture: picture.clone(),
            verdicts,
            needs: needs_seen,
            ca_pem,
            kubernetes_ip: KUBERNETES_IP.into(),
        };
        let planner = Planner { store: store.clone(), time_known, desk };
        tasks.spawn(planner.run(stopping.clone()));
        let voters = Voters {
            store: store.clone(),
            members: members.clone(),
            picture: picture.clone(),
            gossiped: gossip.members(),
            voting: voting.clone(),
            needs,
        };
        tasks.spawn(voters.run(stopping.clone()));
        tasks.spawn(authority.clone().run(gossip.members(), stopping.clone()));
        tasks.spawn(vault.clone().run(store.clone(), stopping.clone()));

        // What follows needs this node's own record: a machine that was just let in waits for its replica.
        let record = own_record(&members, &picture, me, &stopping).await?;
        if record.store.0 != voter.store {
            tasks.spawn(rename_voter(store.clone(), me, stopping.clone()));
        }
        if !door.not_haunted(&membership.name).await {
            warn!(
                "pods of a node of this name that has gone were not replaced in time; this one takes them over"
            );
        }
        let offer = Offer {
            name: membership.name.clone(),
            node_id: me.to_string(),
            api_port,
            subnet: record.subnet.to_string(),
            share: config.share.max(1),
            disk_kib: disk::capacity_kib(home.dir()),
        };
        let (troubles, troubled) = tokio::sync::watch::channel(Vec::new());
        let network_config = network_config(&home, record.subnet)?;
        let tag = network_config.tag.clone();
        let remains = Remains { machine, network: network_config.clone() };
        let network = tokio::task::spawn_blocking(move || Network::open(network_config)).await??;
        let agent = Agent {
            name: membership.name.clone(),
            engine: engine.clone(),
            images: images.clone(),
            network,
            picture: picture.clone(),
            store: store.clone(),
            vault: vault.clone(),
            endpoint: endpoint.clone(),
            members: members.clone(),
            gossiped: gossip.members(),
            offer,
            disk,
            pressures,
            tag,
            subnet: record.subnet,
            troubles,
        };
        tasks.spawn(agent.run(stopping.clone()));

        let certificates = ApiCertificates {
            home: home.clone(),
            authority: authority.clone(),
            endpoint: endpoint.clone(),
            name: membership.name.clone(),
        };
        let certificate = certificates.first(&stopping).await?;
        let resolver = Arc::new(SwappableCertificate::new(certificate));
        let cluster = Arc::new(Here {
            in_doubt: Default::default(),
            store: store.clone(),
            vault: vault.clone(),
            endpoint: endpoint.clone(),
            members: members.clone(),
            agent: Logs(engine.clone()),
        });
        let public = authority.public();
        let api_tls = ApiTls::new(resolver.clone(), public.clients.store(), ClusterTime::provider())?;
        let server = apiserver::Server::new(
            apiserver::Config {
                tls: api_tls.clone(),
                who_may: Arc::new(clients.asking(store.clone(), picture.clone())),
                settings: apiserver::Settings::default(),
                limits: apiserver::limits::Limits::default(),
            },
            cluster,
            stopping.clone(),
        );
        tasks.spawn({
            let server = server.clone();
            async move { server.run(api_listener).await }
        });
        tasks.spawn(certificates.renew(resolver, stopping.clone()));
        // What this node trusts from the first moment is what it knew when it stopped.
        tasks.spawn(follow_trust(
            home.clone(),
            membership.public.clone(),
            authority.clone(),
            tls.clone(),
            api_tls,
            pem,
            stopping.clone(),
        ));
        let certificate =
            MemberCertificate { home: home.clone(), identity, tls, chain, authority: authority.clone() };
        tasks.spawn(certificate.renew(stopping.clone()));

        let socket = home.socket();
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(|error| {
            format!("cannot listen at {}: {error}; choose a shorter --data-dir", socket.display())
        })?;
        std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let admin = Admin {
            home: home.clone(),
            store: store.clone(),
            endpoint: endpoint.clone(),
            gossip: gossip.clone(),
            members: members.clone(),
            picture,
            door: door.clone(),
            authority,
            images,
            engine: engine.clone(),
            clients,
            watchful,
            recovery,
            surroundings: Surroundings {
                endpoint: endpoint.clone(),
                gossip: gossip.clone(),
                members: members.clone(),
                is_advertised: !config.advertise.is_empty(),
                troubles: troubled,
            },
            voting: voting.subscribe(),
            membership: membership.clone(),
            departures,
            out: out.clone(),
            server,
            warnings: [missing, weaker].concat(),
            stopping: stopping.clone(),
        };
        tasks.spawn(admin.run(listener));

        Ok(Node {
            store,
            endpoint,
            gossip,
            members,
            door,
            api_address,
            membership,
            home,
            remains,
            out,
            moves: moved,
            stopping,
            tasks,
        })
    }

    /// Ends this life, and has the next one begin in another incarnation. Whatever cannot be done leaves the node
    /// where it was, and it goes on there.
    async fn turn(self, next: recover::Move, identity: &Identity) -> Result<End, Failure> {
        info!("{next}");
        let (store, home) = (self.store.clone(), self.home.clone());
        let legacy = store.legacy().await;
        self.stopping.cancel();
        // Nobody is there to hand anything to.
        tokio::time::timeout(STOP_MAX, store.shutdown())
            .await
            .map_err(|_| "the store did not stop in time")?;
        let ending = async {
            self.tasks.close();
            self.tasks.wait().await;
            self.endpoint.shutdown().await;
        };
        if tokio::time::timeout(STOP_MAX, ending).await.is_err() {
            warn!("some parts did not stop in time; nothing is lost by that");
        }
        let turned = match legacy.log.as_ref().map(|log| log.last.index) {
            Some(last) if store.last_log_index() != Some(last) => {
                Err("its log grew meanwhile: somebody leads again".into())
            }
            _ => recover::turn(&home, identity, &self.membership, next, legacy).await,
        };
        if let Err(error) = turned {
            error!(error = %ErrorChain(&*error), "could not go over to another incarnation; goes on in the one it was in");
        }
        Ok(End::Turned)
    }

    /// Stops everything; pods go on.
    async fn stop(self) {
        info!("stopping");
        self.stopping.cancel();
        let stopping = async {
            // A leader that hands over costs the cluster milliseconds, one that falls silent a second. Whoever is no
            // member any more is heard by nobody.
            if self.out.borrow().is_none() {
                self.store.transfer_leader(None).await;
                // The others are told that this is on purpose: 30 s instead of five.
                if let Some(leader) =
                    self.store.metrics().leader.filter(|leader| leader.node != self.endpoint.node().0)
                {
                    let _: Result<Answer<()>, String> =
                        wire::ask(&self.endpoint, NodeId(leader.node), &Ask::Restarting).await;
                }
            }
            self.tasks.close();
            self.tasks.wait().await;
            self.store.shutdown().await;
            self.endpoint.shutdown().await;
        };
        if tokio::time::timeout(STOP_MAX, stopping).await.is_err() {
            warn!("some parts did not stop in time; nothing is lost by that");
        }
    }
}

/// Founds the cluster in the empty store, and notes that this is done before anything else.
async fn found(
    store: &Handle<TokioRuntime>,
    door: &Door,
    membership: &Membership,
    endpoint: &Endpoint,
    home: &Home,
    recipient: Option<&Recipient>,
) -> Result<(), Failure> {
    if store.metrics().voters.is_empty() {
        store.bootstrap().await?;
    }
    let (own, name) = (StoreId(store.voter().store), membership.name.clone());
    let addresses = endpoint.reachable_addresses();
    let record =
        Record::new(endpoint.node(), own, name, addresses, first_subnet(), clock::now_ms()).founder();
    let now = Timestamp::from_millisecond(store.stamp_ms() as i64).unwrap_or_default();
    let ca_pem = membership.public.members.to_pem();
    let first = plan::first(now, Chance(rand::random()), &ca_pem, KUBERNETES_IP);
    door.found(&record, recipient, first).await?;
    home.set_membership(&Membership { founding: false, ..membership.clone() })?;
    Ok(())
}

/// How long a small sync takes on this disk, which decides how patient elections are.
async fn measured(files: &DiskFiles) -> skein_raft_store::Timings {
    match skein_raft_store::measure::<TokioRuntime, _>(files).await {
        Ok(sync) => skein_raft_store::Timings { sync_p99: sync.p99, ..Default::default() },
        Err(error) => {
            warn!(%error, "could not time the disk");
            skein_raft_store::Timings::default()
        }
    }
}

async fn own_record(
    members: &Members,
    picture: &Picture,
    me: NodeId,
    stopping: &CancellationToken,
) -> Result<Record, Failure> {
    let mut revisions = picture.revisions();
    let arrived = async {
        loop {
            if let Some(record) = members.get(me) {
                return record;
            }
            if revisions.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        record = arrived => Ok(record),
        () = stopping.cancelled() => Err("stopped before this node knew its own record".into()),
        () = tokio::time::sleep(RECORD_MAX) => Err(
            "no member sent this node the cluster's state within a minute; check that UDP gets through in both directions".into()
        ),
    }
}

/// Ends what ties this node to members that were removed, as soon as the map says so: a handshake refuses
/// them by itself, but a connection that stands would stand on.
async fn part_with_removed(
    store: Handle<TokioRuntime>,
    members: Members,
    endpoint: Endpoint,
    gossip: gossip::service::Handle,
    stopping: CancellationToken,
) {
    let mut editions = members.editions();
    let mut parted = BTreeSet::new();
    loop {
        for node in members.removed().into_keys() {
            if !parted.insert(node) {
                continue;
            }
            info!(peer = %node, "a node was removed from the cluster");
            endpoint.close(node);
            gossip.forget(node).await;
            if store.metrics().leads()
                && let Err(error) = store.end_session(node.0).await
            {
                debug!(peer = %node, %error, "its session is kept a little longer");
            }
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = editions.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells the cluster that this node's store was lost and made anew. Its old one keeps its place among the voters until
/// the new one has copied the log and takes it.
async fn rename_voter(store: Handle<TokioRuntime>, node: NodeId, stopping: CancellationToken) {
    let (key, own) = (Record::key(node), StoreId(store.voter().store));
    warn!(voter = %store.voter(), "the store of this node is new; it votes under a new name from now on");
    while !stopping.is_cancelled() {
        let state = store.state();
        // As it is now: what else is written into it meanwhile stays.
        let Some(object) = state.get(&key) else { return };
        let Ok(record) = serde_json::from_slice::<Record>(&object.value) else { return };
        if record.removed || record.store == own {
            return;
        }
        let op = Op {
            key: key.as_str().into(),
            expect: Expect::Revision(object.mod_rev),
            change: Change::Put(Record { store: own, ..record }.to_bytes().into()),
        };
        match store.propose(vec![op], Options::default()).await {
            Ok(answer) if all_done(&answer) => return,
            Ok(answer) => drop(store.wait_revision(answer.revision, RECORD_MAX).await),
            Err(error) => debug!(%error, "could not tell of the new store yet"),
        }
    }
}

/// Lets the store follow whomever this node knows, also by finding them since it started: a store that was lost may have
/// been told only of members that have gone since.
async fn introduce(
    store: Handle<TokioRuntime>,
    members: Members,
    book: AddressBook,
    stopping: CancellationToken,
) {
    let (mut editions, me) = (book.editions(), store.voter().node);
    loop {
        let known = members.present().into_keys().chain(book.nodes()).map(|node| node.0);
        let known: BTreeSet<[u8; 16]> = known.filter(|node| *node != me).collect();
        store.introduce(known.into_iter().collect());
        tokio::select! {
            () = stopping.cancelled() => return,
            changed = editions.changed() => if changed.is_err() { return },
        }
    }
}

/// Writes the address book whenever it changed, at most every few seconds.
async fn keep_addresses(home: Home, book: AddressBook, stopping: CancellationToken) {
    let mut editions = book.editions();
    loop {
        editions.mark_unchanged();
        let (home, pages) = (home.clone(), book.pages());
        let saved = tokio::task::spawn_blocking(move || home.set_addresses(&pages)).await;
        if let Ok(Err(error)) = saved {
            warn!(error = %ErrorChain(&error), "could not keep the addresses of other nodes");
        }
        // At most one write in a few seconds, however restless the network is.
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
            () = stopping.cancelled() => {}
        }
        tokio::select! {
            changed = editions.changed() => if changed.is_err() { return },
            () = stopping.cancelled() => return,
        }
    }
}

/// A door that is put in later.
struct LateDoor(Arc<OnceLock<Door>>);

#[async_trait]
impl skein_net::join::Admission for LateDoor {
    async fn admit(
        &self,
        claim: skein_net::join::Claim,
    ) -> Result<skein_net::join::Admitted, skein_net::join::Refusal> {
        match self.0.get() {
            Some(door) => door.admit(claim).await,
            None => Err(skein_net::join::Refusal::Unavailable("this node is starting".into())),
        }
    }
}

/// What other nodes send ends here.
struct Dispatch {
    gossip: gossip::service::Handle,
    clocks: clocks::Inbox,
    answering: Answering,
}

impl Service for Dispatch {
    fn stream(&self, peer: NodeId, kind: u8, stream: Stream) {
        if kind == gossip::service::STREAM_KIND {
            return self.gossip.stream(peer, stream);
        }
        if let Some(lane) = wire::lane(kind) {
            let store = self.answering.store.clone();
            tokio::spawn(async move { store.serve(peer.0, lane, wire::pipe(stream)).await });
            return;
        }
        if kind == wire::ASK {
            // Not tracked: a log that is followed must not hold up the end of the daemon.
            tokio::spawn(self.answering.clone().serve(peer, stream));
            return;
        }
        debug!(%peer, kind, "a stream of an unknown kind");
    }

    fn datagram(&self, peer: NodeId, kind: u8, data: Bytes) {
        match kind {
            gossip::service::DATAGRAM_KIND => self.gossip.datagram(peer, data),
            WATCH_DATAGRAM => self.answering.watchful.datagram(peer, &data),
            CLOCK_DATAGRAM => self.clocks.datagram(peer, &data),
            _ => debug!(%peer, kind, "a datagram of an unknown kind"),
        }
    }
}

/// What answers the questions of other nodes. Cheap to clone.
#[derive(Clone)]
struct Answering {
    departures: Departures,
    members: Members,
    store: Handle<TokioRuntime>,
    watchful: watchfulness::Inbox,
    door: Door,
    authority: Authority,
    logs: Logs,
    images: ClusterImages,
    voting: watch::Receiver<Option<Voting>>,
    recovery: Recovery,
}

impl Answering {
    async fn serve(self, peer: NodeId, mut stream: Stream) {
        let asked = tokio::time::timeout(Duration::from_secs(10), stream.rx.recv()).await;
        let Ok(Ok(Some(frame))) = asked else { return };
        let ask: Ask = match wire::decode(&frame) {
            Ok(ask) => ask,
            Err(error) => return debug!(%peer, error, "a question that does not parse"),
        };
        let answer = match ask {
            Ask::Logs(question) => return self.logs.serve(question, stream).await,
            Ask::Blob(digest) => return self.images.serve_blob(&digest, stream).await,
            Ask::Admit(claim) => {
                let admitted: wire::Admission = match self.store.metrics().leads() {
                    true => self.door.decide(*claim).await.map(Box::new),
                    false => Err(skein_net::join::Refusal::Unavailable("its leader has just changed".into())),
                };
                wire::encode(&admitted)
            }
            Ask::Renew(csr) => wire::encode(&self.authority.answer_renew(peer, &csr)),
            Ask::CertifyApi { csr, names } => wire::encode(&self.authority.answer_api(peer, &csr, &names)),
            Ask::CertifyClient(user) => wire::encode(&self.authority.answer_client(peer, &user)),
            Ask::Authority => wire::encode(&self.authority.answer_edition(peer, None)),
            Ask::SealedAuthorities => wire::encode(&self.authority.answer_sealed(peer)),
            Ask::OpenKeys(wrapped) => wire::encode(&self.authority.answer_open(peer, &wrapped)),
            Ask::NewKeys(places) => wire::encode(&self.authority.answer_new_keys(peer, &places)),
            Ask::Edition(edition) => wire::encode(&self.authority.answer_edition(peer, Some(&edition))),
            Ask::Blobs(digest) => wire::encode(&self.images.answer_blobs(&digest).await),
            Ask::Survivor => wire::encode(&self.recovery.answer_report(peer).await),
            Ask::Recover(word) => wire::encode(&self.recovery.answer(peer, *word).await),
            Ask::HaveLeft => {
                let metrics = self.store.metrics();
                // Who follows others may know the record and not yet the membership.
                let has_log = metrics.has_log(metrics.voter);
                let out = self.members.get(peer).is_some_and(|record| {
                    has_log && record.leaving && !metrics.has_log(members::voter(&record)) && !metrics.joint
                });
                let out: Answer<bool> = Ok(out);
                wire::encode(&out)
            }
            Ask::Voting => {
                let voting: Answer<Voting> = self.voting.borrow().clone().ok_or("it does not lead".into());
                wire::encode(&voting)
            }
            Ask::Depart { name, cause } => wire::encode(&self.departures.decide(&name, cause).await),
            Ask::Restarting => {
                self.watchful.announced(peer);
                let done: Answer<()> = Ok(());
                wire::encode(&done)
            }
        };
        if stream.tx.send(answer).await.is_ok() {
            let _ = stream.tx.finish();
            // The stream lives until the answer has arrived.
            let _ = stream.tx.delivered().await;
        }
    }
}
