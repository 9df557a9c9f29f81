//! `skein up` and `skein join`: found, join, run.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use age::secrecy::{ExposeSecret as _, SecretString};
use skein_control::node::directory::{self, As, Asked, Past, Step, Up};
use skein_net::beacon::{self, Around, PEERS_MAX, Twin};
use skein_net::ca::ClusterCa;
use skein_net::identity::{Identity, StoreId};
use skein_net::incarnation::Incarnation;
use skein_net::join::{self, About};
use skein_net::token::Token;
use skein_raft_store::VoterId;
use skein_runtime::images;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::verbs::{confirm, lines};
use super::{NodeArgs, advertise, networks};
use crate::backup::{self, Recipient, restoration};
use crate::clock::{self, ClusterTime};
use crate::daemon::{self, Config, End, Failure, Node, Ports};
use crate::former::{self, Former};
use crate::home::{Claim, Home, Joining, Membership, Slot};
use crate::quorum;

/// The word by which a process tells its next life that it is a member, whatever it was started for.
pub(super) const AGAIN: &str = "--again";
/// What a cluster is called unless told otherwise.
const CLUSTER: &str = "home";
/// How often it is asked whether another process that runs as this node has ended.
const TWIN_EVERY: Duration = Duration::from_secs(1);
/// How long a joiner waits for its vote before it says how many failures the cluster survives.
const VOTE_WAIT: Duration = Duration::from_secs(5);

pub(super) fn up(
    dir: &Path,
    args: NodeArgs,
    cluster: Option<&str>,
    new_cluster: bool,
) -> Result<(), Failure> {
    let (home, claim) = take(dir, &args)?;
    let asked = Asked { new_cluster, name: args.name.as_deref(), cluster };
    let Step { set_aside, then } = directory::up(&home.look()?, asked)?;
    match then {
        Up::Run => {
            let (Some(membership), Some(chain)) = (home.membership()?, home.certificate()?) else {
                return Err("the data directory changed while it was looked at; try again".into());
            };
            let own = daemon::cgroup_of(args.cgroup.as_deref(), Identity::node_in(dir)?);
            let former = Former::find(&home, own.as_deref())?;
            let ports = Ports::take(args.listen, args.api_listen)?;
            be_alone(&home, &membership, &args)?;
            lines(former.end())?;
            let identity = Identity::load_or_create(dir)?;
            run(Place { home, ports, _claim: claim }, identity, membership, chain, args, Greeting::Back)
        }
        Up::Found { look_around } => {
            let name = node_name(args.name.as_deref())?;
            let authority = ClusterCa::create(cluster.unwrap_or(CLUSTER), clock::system())?;
            let former = Former::find(&home, None)?;
            let mut ports = check_machine(&home, &args)?;
            if look_around {
                // Answers come to the port where a node would be.
                drop(ports);
                // Before anything is made: a machine that lost its disk must not found a second cluster by accident.
                look(&args)?;
                ports = Ports::take(args.listen, args.api_listen)?;
            }
            clear(&home, former, set_aside, &args)?;
            let identity = Identity::load_or_create(dir)?;
            let chain = authority.issue_member(&identity.csr()?, clock::system())?;
            let incarnation = Some(Incarnation::first()?);
            let public = authority.public();
            let membership = Membership { public, incarnation, name, founding: true, left: None };
            // First: whoever finds this knows that nobody can have joined what never ran.
            home.set_membership(&membership)?;
            home.set_authority(&identity, Slot::Current, &authority)?;
            home.set_certificate(&chain)?;
            let (secret, recipient) = Recipient::draw(clock::now_ms());
            let greeting = Greeting::Founded { secret, recipient };
            run(Place { home, ports, _claim: claim }, identity, membership, chain, args, greeting)
        }
    }
}

/// Begins the cluster of a backup anew here: another incarnation of it, with this machine as its only member.
pub(super) fn restore(
    dir: &Path,
    args: NodeArgs,
    file: &Path,
    key_file: Option<&Path>,
    beside: bool,
    yes: bool,
) -> Result<(), Failure> {
    let (home, claim) = take(dir, &args)?;
    let set_aside = directory::restore(&home.look()?)?;
    let former = Former::find(&home, None)?;
    let name = node_name(args.name.as_deref())?;
    let backup = backup::read(file, &super::backup::secret(key_file)?)?;
    drop(check_machine(&home, &args)?);
    if !beside {
        // The cluster itself may live, and two of it would be one too many.
        look(&args).map_err(|error| format!("{error}; to restore beside it: --beside"))?;
    }
    println!("{}", restoration::told(&backup));
    confirm(
        "This cannot be undone where nodes of that cluster still run: they are another one from then on.",
        yes,
    )?;
    let ports = Ports::take(args.listen, args.api_listen)?;
    clear(&home, former, set_aside, &args)?;
    let identity = Identity::load_or_create(dir)?;
    let (membership, chain) = runtime()?.block_on(restoration::begin_anew(&home, &identity, name, backup))?;
    run(Place { home, ports, _claim: claim }, identity, membership, chain, args, Greeting::Restored)
}

pub(super) fn join(dir: &Path, args: NodeArgs, token: &str) -> Result<(), Failure> {
    // A typing error is told before anything is made or asked.
    let token: Token = token.trim().parse()?;
    let (home, claim) = take(dir, &args)?;
    let (membership, joining) = (home.membership()?, home.joining()?);
    let own_cluster = match (&membership, &joining) {
        (Some(membership), _) => membership.public.members.contains(token.pin()),
        (None, joining) => joining.as_ref().is_some_and(|joining| joining.pin == token.pin()),
    };
    let Step { set_aside, then } = directory::join(&home.look()?, own_cluster)?;
    let name = match membership.filter(|_| then == As::Member) {
        Some(membership) => membership.name,
        None => node_name(args.name.as_deref())?,
    };
    let own = daemon::cgroup_of(args.cgroup.as_deref(), Identity::node_in(dir)?);
    let former = Former::find(&home, own.filter(|_| then == As::Member).as_deref())?;
    let ports = check_machine(&home, &args)?;
    match then {
        As::Member => lines(former.end())?,
        As::Newcomer | As::Again => clear(&home, former, set_aside, &args)?,
    }
    let runtime = runtime()?;
    let identity = Identity::load_or_create(dir)?;
    let joining = match (then, joining) {
        (As::Again, Some(joining)) => joining,
        // Part of the claim; a store that is not there yet is made when there is an answer.
        (As::Newcomer | As::Again, _) => Joining::new(&token, &identity, StoreId(rand::random()))?,
        (As::Member, _) => {
            let tag = home.membership()?.ok_or("the data directory changed while it was looked at")?.tag();
            let opened = daemon::open_store(&home, identity.node(), tag, StoreId(rand::random()));
            Joining::new(&token, &identity, StoreId(runtime.block_on(opened)?.1.store))?
        }
    };
    home.set_joining(&joining)?;
    let about = About {
        name: name.clone(),
        store: joining.store,
        generation: identity.generation(),
        listen_port: ports.nodes.local_addr()?.port(),
        api_port: ports.api.local_addr()?.port(),
        extra: Vec::new(),
    };
    let admitted = runtime.block_on(async {
        let endpoint = join::caller()?;
        let admitted = join::join(&endpoint, &token, &joining.csr, &about, ClusterTime::provider()).await;
        endpoint.close(0u32.into(), b"");
        endpoint.wait_idle().await;
        Ok::<_, Failure>(admitted)
    })?;
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            match then {
                As::Newcomer if !error.may_have_been_granted() => home.not_joined()?,
                As::Newcomer | As::Again => {}
                As::Member => home.joined()?,
            }
            return Err(error.into());
        }
    };
    let mut pages = skein_net::address_book::Pages::default();
    for member in &admitted.members {
        let page = pages.0.entry(member.node).or_default();
        page.name.clone_from(&member.name);
        page.addresses.clone_from(&member.addresses);
    }
    home.set_addresses(&pages)?;
    home.set_certificate(&admitted.chain)?;
    let incarnation = admitted.incarnation();
    let membership = Membership { public: admitted.public, incarnation, name, founding: false, left: None };
    let made = daemon::open_store(&home, identity.node(), membership.tag(), joining.store);
    drop(runtime.block_on(made)?);
    drop(runtime);
    // With this file the machine is a member.
    home.set_membership(&membership)?;
    home.joined()?;
    run(Place { home, ports, _claim: claim }, identity, membership, admitted.chain, args, Greeting::Joined)
}

/// Another process runs with this node's key, and goes on.
#[derive(Debug, thiserror::Error)]
#[error(
    "a process at {at} runs as this node, and goes on; if this disk is a copy, give this machine an empty --data-dir and join with a new token; if it has moved here, stop the other one first"
)]
pub(super) struct InUse {
    at: SocketAddr,
}

/// Waits until no other process runs with this node's key. Before anything is counted, opened or said: the one that
/// runs must not notice. If it ends, the node goes on here, as one whose disk is a copy ([`daemon::outlive_copy`]).
fn be_alone(home: &Home, membership: &Membership, args: &NodeArgs) -> Result<(), Failure> {
    let Some(identity) = Identity::kept(home.dir())? else { return Ok(()) };
    let pages = home.addresses()?;
    let places: Vec<SocketAddr> = pages.0.into_values().flat_map(|page| page.addresses).collect();
    runtime()?.block_on(async {
        let began = Instant::now();
        let mut seen = None;
        loop {
            let twin = beacon::find_twin(&identity, &membership.tag(), args.listen, &places).await;
            let twin = twin.unwrap_or_else(|error| {
                debug!(%error, "could not ask whether another process runs as this node");
                None
            });
            let Some(Twin { at, generation }) = twin else {
                return seen
                    .map_or(Ok(()), |generation| daemon::outlive_copy(home, identity.node(), generation));
            };
            if began.elapsed() >= args.twin_wait {
                return Err(InUse { at }.into());
            }
            if seen.replace(generation).is_none() {
                warn!(%at, wait_s = args.twin_wait.as_secs(), "another process runs as this node; waiting for its end");
            }
            tokio::time::sleep(TWIN_EVERY).await;
        }
    })
}

/// Asks this network for a cluster: an error if one answers.
fn look(args: &NodeArgs) -> Result<(), Failure> {
    let around = runtime()?.block_on(beacon::look_around(args.listen));
    match around {
        Ok(None) => Ok(()),
        Ok(Some(around)) => Err(refusal(&around).into()),
        Err(error) => {
            debug!(%error, "could not ask the network for a cluster");
            Ok(())
        }
    }
}

/// Ends what still runs of whoever was here before, and moves everything of it away.
fn clear(home: &Home, former: Former, past: Option<Past>, args: &NodeArgs) -> Result<(), Failure> {
    lines(former.end_all())?;
    let Some(past) = past else { return Ok(()) };
    runtime()?.block_on(former::end_known(home, args.cgroup.as_deref()));
    let (aside, what) = match past {
        Past::Membership => (home.left()?.unwrap_or_else(|| home.aside("left")), "the cluster that it left"),
        Past::Founding => (home.aside("founding"), "a founding that was cut off"),
        Past::Joining => (home.aside("joining"), "a join that another cluster did not answer"),
        Past::Identity => (home.aside("identity"), "a former node"),
        Past::Traces => (home.aside("traces"), "a former node"),
    };
    home.set_aside(&aside)?;
    println!("What this machine had of {what} is in {} now; it gets a new key.", aside.display());
    Ok(())
}

/// Takes the data directory for a node, after all that can be known of the words alone.
fn take(dir: &Path, args: &NodeArgs) -> Result<(Home, Claim), Failure> {
    log_to_stderr(args.log_level.as_deref());
    clock::set_machine_off(args.clock_offset.saturating_mul(1000));
    let home = Home::new(dir);
    check_words(&home, args)?;
    let claim = home.claim()?;
    advertise::chosen(&home, &args.advertise, args.listen)?;
    Ok((home, claim))
}

/// What can be known of the words alone.
fn check_words(home: &Home, args: &NodeArgs) -> Result<(), Failure> {
    home.check_path()?;
    let names = args.peers.len();
    if names > PEERS_MAX {
        return Err(format!(
            "{names} names are given with --peer, the limit is {PEERS_MAX}; one that answers is enough"
        )
        .into());
    }
    Ok(())
}

/// Whether a node can be made on this machine and in this directory: asked before it becomes anybody's. Takes the ports.
fn check_machine(home: &Home, args: &NodeArgs) -> Result<Ports, Failure> {
    networks::check()?;
    let missing = skein_runtime::missing();
    if !missing.is_empty() {
        return Err(format!("no container can start on this machine. {}", missing.join(" ")).into());
    }
    skein_runtime::try_directory(home.dir())?;
    Ports::take(args.listen, args.api_listen)
}

/// Why a machine that belongs to no cluster founds none here.
fn refusal(around: &Around) -> String {
    match around {
        Around::Cluster(heard) => {
            let heard: Vec<String> = heard.iter().map(ToString::to_string).collect();
            format!(
                "a skein cluster answers on this network (from {}) and this machine belongs to none; to join it, run `skein token create` there and `skein join TOKEN` here; to found another one beside it: skein up --new-cluster",
                heard.join(", ")
            )
        }
        Around::Founder(other) => format!(
            "another machine that belongs to no cluster ({other}) is being started on this network at the same moment, and goes first; join it with a token that `skein token create` prints there; to found another cluster beside it: skein up --new-cluster"
        ),
    }
}

/// What the operator is told once the node runs.
enum Greeting {
    /// With the recovery key, and its public half.
    Founded {
        secret: SecretString,
        recipient: Recipient,
    },
    Restored,
    Joined,
    Back,
}

/// What a node needs of its machine for itself.
struct Place {
    home: Home,
    ports: Ports,
    _claim: Claim,
}

fn run(
    place: Place,
    identity: Identity,
    membership: Membership,
    chain: skein_net::ca::Chain,
    args: NodeArgs,
    greeting: Greeting,
) -> Result<(), Failure> {
    let Place { home, ports, _claim } = place;
    let advertise = advertise::chosen(&home, &args.advertise, args.listen)?;
    advertise::keep(&home, &args.advertise)?;
    let config = Config {
        home: home.clone(),
        ports,
        listen: args.listen,
        advertise,
        peers: args.peers,
        cgroup: args.cgroup,
        share: args.share,
        usual_capabilities: args.usual_capabilities,
        images: images::Config {
            limits: images::Limits { layer_bytes_max: args.image_layer_max, ..Default::default() },
            plain_http: images::PlainHttp(args.insecure_registry),
            in_place: false,
        },
        recipient: match &greeting {
            Greeting::Founded { recipient, .. } => Some(recipient.clone()),
            Greeting::Restored | Greeting::Joined | Greeting::Back => None,
        },
    };
    let runtime = runtime()?;
    // By a signal; `stopping` has other reasons as well.
    let interrupted = CancellationToken::new();
    let signalled = interrupted.clone();
    let done = runtime.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stopping = CancellationToken::new();
        let asked = stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            signalled.cancel();
            asked.cancel();
        });
        let greet = |node: &Node| {
            let greeting = Greet::new(node, &home, greeting);
            tokio::spawn(greeting.say());
        };
        daemon::run(config, identity, membership, chain, stopping, greet).await
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    match done? {
        End::Stopped if interrupted.is_cancelled() => lines([
            "Stopped. The pods of this node go on; where there are other nodes these replace them after 30 s, unless `skein up` \
             is back by then. To take this machine out instead: skein leave",
        ]),
        End::Stopped => Ok(()),
        End::Turned => Err(live_again().into()),
    }
}

/// Begins the next life in the place of this one: the same process, and nothing of what it held, no port and no
/// file. Returns only if the system refuses.
fn live_again() -> String {
    let mut words = std::env::args_os();
    let mut next = Command::new("/proc/self/exe");
    if let Some(name) = words.next() {
        next.arg0(name);
    }
    next.args(words.filter(|word| word != AGAIN)).arg(AGAIN);
    format!("cannot begin anew: {}; start it again with: skein up", next.exec())
}

/// What is said on standard output; the log goes to standard error.
struct Greet {
    greeting: Greeting,
    store: skein_raft_store::Handle<skein_raft_store::TokioRuntime>,
    gossip: skein_net::gossip::service::Handle,
    members: crate::members::Members,
    door: crate::admission::Door,
    addresses: Vec<SocketAddr>,
    api: SocketAddr,
    name: String,
    cluster: skein_net::ca::Cluster,
    home: Home,
}

impl Greet {
    fn new(node: &Node, home: &Home, greeting: Greeting) -> Greet {
        Greet {
            greeting,
            store: node.store.clone(),
            gossip: node.gossip.clone(),
            members: node.members.clone(),
            door: node.door.clone(),
            addresses: node.endpoint.reachable_addresses(),
            api: node.api_address,
            name: node.membership.name.clone(),
            cluster: node.membership.public.cluster.clone(),
            home: home.clone(),
        }
    }

    async fn say(self) {
        let dir = match self.home.dir() {
            dir if dir == Path::new(crate::home::DEFAULT) => String::new(),
            dir => format!(" --data-dir {}", dir.display()),
        };
        match self.greeting {
            Greeting::Founded { ref secret, .. } => {
                self.say_new("Founded", &dir).await;
                println!("Recovery key:          {}", secret.expose_secret());
                println!(
                    "It opens every backup (skein backup{dir} FILE). It is shown this once and kept nowhere: write it down."
                );
            }
            Greeting::Restored => self.say_new("Restored", &dir).await,
            Greeting::Joined => {
                let me = self.store.voter();
                let mut changes = self.store.on_change();
                let votes = async {
                    // Until the change is committed the voters before it are needed as well.
                    let settled = |sets: &[BTreeSet<VoterId>]| matches!(sets, [only] if only.contains(&me));
                    while !settled(&self.store.voter_sets()) {
                        if !changes.changed().await {
                            return;
                        }
                    }
                };
                // A fourth node, say, gets no vote: the cluster survives what it survived before.
                let _ = tokio::time::timeout(VOTE_WAIT, votes).await;
                let survived = quorum::failures_survived(&self.store, &self.gossip);
                let failures =
                    if survived == 1 { "1 failure".to_owned() } else { format!("{survived} failures") };
                println!(
                    "Joined {:?} as {}, one of {} nodes. The cluster now survives {failures}.",
                    self.cluster.name,
                    self.name,
                    self.members.present().len(),
                );
            }
            Greeting::Back => println!(
                "{} is back in cluster {:?}; the Kubernetes API is at https://{}",
                self.name, self.cluster.name, self.api
            ),
        }
        if std::io::stdout().is_terminal() {
            println!("It runs here in the foreground: Ctrl-C stops this program, not the pods.");
        }
        info!("up");
    }

    /// For whoever has a cluster of one node now, and what comes next.
    async fn say_new(&self, done: &str, dir: &str) {
        println!("{done} cluster {:?}, fingerprint {}", self.cluster.name, self.cluster.id.fingerprint());
        println!("This node is {}; the Kubernetes API is at https://{}", self.name, self.api);
        println!("For kubectl:           skein kubeconfig{dir} --merge");
        match self.door.mint(&self.addresses, 1, Duration::from_secs(15 * 60), None).await {
            Ok(token) => println!("On the next machine:   skein join {token}"),
            Err(error) => println!("For the next machine:  skein token create{dir}   ({error})"),
        }
        println!("One node survives no failure. Add two more to survive one.");
    }
}

/// The name given, or the machine's own, made a DNS label.
fn node_name(given: Option<&str>) -> Result<String, Failure> {
    let machine = || nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    let name = match given {
        Some(name) => name.to_owned(),
        // What a machine calls itself may hold capitals and dots.
        None => machine()?.split('.').next().unwrap_or_default().to_lowercase().replace('_', "-"),
    };
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = (1..=63).contains(&name.len()) && name.chars().all(allowed);
    let good = good && !name.starts_with('-') && !name.ends_with('-');
    match good {
        true => Ok(name),
        false => Err(format!(
            "cannot call a node {name:?}; give --name with up to 63 lower-case letters, digits and dashes"
        )
        .into()),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        // More threads cost memory and help nobody here: the work is small and many-sided.
        .worker_threads(cores.clamp(2, 4))
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
}

/// What `--log-level` may be: a level, or more exactly what of which part.
pub(super) fn log_filter(text: &str) -> Result<String, String> {
    let words: Vec<&str> = text.split(',').map(str::trim).collect();
    let filter = words.join(",");
    let parsed = tracing_subscriber::EnvFilter::builder().parse(&filter).map_err(|error| error.to_string());
    // A word that is no level would mean a part of the program, and all else would be silent.
    let of_part =
        |word: &str| word.contains(['=', '[']) || word == "off" || word.parse::<tracing::Level>().is_ok();
    let strange = words.into_iter().find(|word| !of_part(word)).map(|word| format!("{word:?} is no level"));
    match parsed.err().or(strange) {
        Some(why) => Err(format!(
            "{why}; give one of error, warn, info, debug, trace, or say more exactly what of which part: info,skein_net=debug"
        )),
        None => Ok(filter),
    }
}

fn log_to_stderr(level: Option<&str>) {
    let on_terminal = std::io::stderr().is_terminal();
    let level = level.unwrap_or(if on_terminal { "warn" } else { "info" });
    let filter = match level.parse::<tracing::Level>() {
        // Openraft warns of each heartbeat that a dead node misses, ten a second; that it is dead is told once.
        Ok(level) => format!("{level},openraft=error,quinn=warn,foca=warn"),
        Err(_) => level.to_owned(),
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(on_terminal)
        .with_target(false)
        .init();
    // Both TLS stacks use this one; a second provider in the tree would make the default ambiguous.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_are_dns_labels() {
        assert_eq!(node_name(Some("kitchen-pi")).unwrap(), "kitchen-pi");
        for wrong in ["", "Kitchen", "-pi", "pi-", "a.b", "ä", &"x".repeat(64)] {
            assert!(node_name(Some(wrong)).is_err(), "{wrong}");
        }
        assert!(node_name(None).is_ok());
    }
}
