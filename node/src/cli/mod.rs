//! What a user can say. Exit codes: see [`EXIT_CODES`].

mod advertise;
mod backup;
mod demo;
mod kubeconfig;
mod networks;
mod recover;
mod run;
mod secret;
mod talk;
mod verbs;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use skein_net::beacon::PeerName;

use crate::daemon;
use crate::report::Chain;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 another process runs as this node, 4 this node was \
                          removed from its cluster (a service manager should not restart it after these two: \
                          RestartPreventExitStatus=3 4).";
/// A node that ended because another one runs with its key.
const IN_USE: u8 = 3;
/// A node that ended because others have ended its membership.
const REMOVED: u8 = 4;

/// A Kubernetes-shaped cluster without a master: every machine runs this program, any node answers kubectl.
#[derive(Debug, Parser)]
#[command(name = "skein", version, propagate_version = true, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Args)]
struct Global {
    /// Where this node keeps everything.
    #[arg(long, global = true, env = "SKEIN_DATA_DIR", default_value = crate::home::DEFAULT, value_name = "DIR")]
    data_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start this machine's node; on an empty data directory it founds a new cluster, unless one is heard here.
    Up {
        #[command(flatten)]
        node: NodeArgs,
        /// Name of the cluster, when a new one is founded; `home` unless given.
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
        /// Found a new cluster here at once, whatever is heard on this network.
        #[arg(long)]
        new_cluster: bool,
    },
    /// Join the cluster that made TOKEN, and run. Afterwards `skein up` is enough.
    Join {
        /// The word that `skein token create` printed; `-` for standard input.
        #[arg(required_unless_present_any = ["token_file", "again"])]
        token: Option<String>,
        /// A file that holds it.
        #[arg(long, value_name = "FILE", conflicts_with = "token")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Who is there: members, voters, leader, pods. Works without a quorum too.
    Status {
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Tokens that let machines join.
    #[command(subcommand)]
    Token(TokenVerb),
    /// Images of this node and of the cluster.
    #[command(subcommand)]
    Image(ImageVerb),
    /// Print a kubeconfig that works from other machines, with one context per node.
    #[command(args_conflicts_with_subcommands = true)]
    Kubeconfig {
        /// For whom it is; the name stands in the certificate and in the cluster's logs.
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// Put it into FILE instead, beside the clusters that are there; the file that kubectl reads unless given.
        #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
        merge: Option<Option<PathBuf>>,
        #[command(subcommand)]
        verb: Option<KubeconfigVerb>,
    },
    /// The cluster's authorities: what every certificate and token of it hangs on.
    #[command(subcommand)]
    Ca(CaVerb),
    /// Drain this node, hand over its vote and leadership, and take it out of the cluster. Several leave one by one.
    Leave {
        /// On the only node: end the cluster with it, and all that runs.
        #[arg(long)]
        end_cluster: bool,
        /// Without asking nodes that do not answer: where they come back, this one is a member to them still.
        #[arg(long, requires = "end_cluster")]
        force: bool,
        /// Take the wish to leave back: the node takes pods again.
        #[arg(long, conflicts_with = "end_cluster")]
        cancel: bool,
    },
    /// End another node's membership for good: drained first if it lives, at once if it is lost. Its key, its
    /// certificates and the kubeconfigs made on it count no more, and its name is free.
    Remove {
        /// The node's name.
        name: String,
        /// Do not drain it: what runs there is made anew elsewhere at once.
        #[arg(long)]
        now: bool,
        /// The same, for a machine that is in strange hands: all that it knew ends with it. The cluster's authorities are
        /// made anew, so all join tokens and all kubeconfigs end at once, wherever they were made.
        #[arg(long)]
        stolen: bool,
        /// With --stolen: do not ask.
        #[arg(long, requires = "stolen")]
        yes: bool,
        /// Take the wish back, while it is still a member.
        #[arg(long, conflicts_with_all = ["now", "stolen"])]
        cancel: bool,
    },
    /// Go on without the majority, when it is gone for good: on any node that is left, while its daemon runs.
    Recover {
        /// Do not ask; what may be lost is said all the same.
        #[arg(long)]
        yes: bool,
        /// A member whose machine is off, as somebody has seen. May be given again.
        #[arg(long, value_name = "NAME")]
        off: Vec<String>,
    },
    /// Write everything that the cluster knows, and its authorities, into one encrypted file: on any node, while it runs.
    Backup {
        /// Where to; replaced whole if it is there. `-` for standard output.
        file: PathBuf,
        #[command(flatten)]
        passphrase: backup::Passphrase,
    },
    /// Begin the cluster of a backup anew on this machine, which belongs to none, and run. Others join it afterwards.
    Restore {
        /// What `skein backup` wrote.
        file: PathBuf,
        /// The recovery key or the passphrase, in a file; `-` for standard input. Asked for unless given.
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// Beside another cluster that answers on this network.
        #[arg(long)]
        beside: bool,
        /// Do not ask; what ends is said all the same.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Not there yet; says what to do instead.
    #[command(hide = true)]
    Upgrade {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Three real nodes on this one machine: a Deployment, a killed node, the pods back elsewhere.
    Demo(demo::Demo),
}

#[derive(Debug, Clone, Args)]
struct NodeArgs {
    /// This node's name in the cluster; the host name unless given.
    #[arg(long)]
    name: Option<String>,
    /// Where other nodes reach this one, UDP.
    #[arg(long, default_value = "[::]:7946", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Where the Kubernetes API is served, TCP.
    #[arg(long, default_value = "[::]:6443", value_name = "IP:PORT")]
    api_listen: SocketAddr,
    /// Where others are told that this node is, where what it finds out itself is not right: behind a router that
    /// forwards the port, say. May be given up to four times; it is kept for later starts, until `auto` is given.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    advertise: Vec<advertise::Advertise>,
    /// A registry without TLS, as HOST, HOST:PORT or a network like 10.1.0.0/16; may be given again. Those on
    /// this machine (localhost, 127.0.0.0/8) need not be named.
    #[arg(long, env = "SKEIN_INSECURE_REGISTRY", value_delimiter = ',', value_name = "HOST[:PORT]")]
    insecure_registry: Vec<skein_runtime::images::PlainHttpRegistry>,
    /// The most that one layer of an image may hold, unpacked: 500Mi, 32Gi.
    #[arg(long, env = "SKEIN_IMAGE_LAYER_MAX", default_value = "32Gi", value_parser = bytes, value_name = "SIZE")]
    image_layer_max: u64,
    /// Where another member may be, by name or address: asked while members are missing, for networks that
    /// carry no multicast. May be given up to 16 times; who answers proves to be a member.
    #[arg(long = "peer", value_name = "HOST[:PORT]")]
    peers: Vec<PeerName>,
    /// Give containers the capabilities NET_RAW and MKNOD too, unless their manifest drops them: as under other runtimes.
    #[arg(long, env = "SKEIN_USUAL_CAPABILITIES")]
    usual_capabilities: bool,
    /// How much the log on standard error tells: error, warn, info, debug, trace; or more exactly, as
    /// info,skein_net=debug. Unless given: warn on a terminal, info elsewhere.
    #[arg(long, env = "SKEIN_LOG", value_parser = run::log_filter, value_name = "LEVEL")]
    log_level: Option<String>,
    /// For labs: the cgroup of this node's pods, below each hierarchy's root.
    #[arg(long, hide = true, env = "SKEIN_CGROUP")]
    cgroup: Option<String>,
    /// For labs: how many seconds this machine's clock is ahead.
    #[arg(long, hide = true, env = "SKEIN_CLOCK_OFFSET", default_value_t = 0, allow_negative_numbers = true)]
    clock_offset: i64,
    /// How long to wait for another process with this node's key to end, before giving up.
    #[arg(long, hide = true, default_value = "60s", value_parser = duration, value_name = "TIME")]
    twin_wait: Duration,
    /// For a process that begins its next life: it is a member already.
    #[arg(long, hide = true)]
    again: bool,
    /// For labs: how many nodes share this machine; each offers its part.
    #[arg(long, hide = true, env = "SKEIN_SHARE", default_value_t = 1)]
    share: u64,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Print a new token, and nothing else.
    Create {
        /// How many machines may join by it.
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// How long it is good: 90s, 15m, 24h, 7d.
        #[arg(long, default_value = "15m", value_parser = duration)]
        ttl: Duration,
        /// Give the machine that joins the place of the lost node of this name: its name, pods' addresses and labels.
        /// What is left of the lost one counts no more from then on.
        #[arg(long, value_name = "NAME", conflicts_with = "uses")]
        replace: Option<String>,
    },
    /// The tokens that are kept.
    List {
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Withdraw a token by its id.
    Revoke { id: String },
}

#[derive(Debug, Subcommand)]
enum KubeconfigVerb {
    /// The certificates that were given out and have not expired.
    List {
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Take certificates back: effective at once on every node, on open connections too.
    #[command(group(ArgGroup::new("which").required(true)))]
    Revoke {
        /// The serial of one, or its beginning; the whole serial of one that is not on record.
        #[arg(group = "which")]
        serial: Option<String>,
        /// All of one user.
        #[arg(long, value_name = "NAME", group = "which")]
        user: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum CaVerb {
    /// Make all authorities anew while the cluster runs. Nodes change over by themselves, also those that are off
    /// now. Tokens end; kubeconfigs end after a while, or at once.
    Rotate {
        /// End all kubeconfigs at once: for when one of the authorities may have been stolen.
        #[arg(long)]
        now: bool,
        /// For how long kubeconfigs of before stay good: 12h, 30d.
        #[arg(long, default_value = "30d", value_parser = duration, conflicts_with = "now", value_name = "TIME")]
        overlap: Duration,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Make and print a new recovery key, which opens backups: for when the one of the founding was lost.
    RecoveryKey {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ImageVerb {
    /// Make the images of an OCI or `docker save` archive usable on every node.
    Load {
        /// The archive; `-` for standard input.
        file: PathBuf,
        /// On this node only.
        #[arg(long)]
        here: bool,
    },
    /// Remove images from this node, and from what the cluster keeps. Other nodes keep their copy until they prune.
    Rm {
        /// As in `skein image list`, or in a manifest.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove from this node the images that none of its pods needs and that were not loaded into the cluster.
    Prune,
    /// The images of this node.
    List {
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
}

/// How answers look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
    Name,
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // Shims and mounts outlive the directory that this was started from.
    let dir = match std::path::absolute(&cli.global.data_dir) {
        Ok(dir) => dir,
        Err(error) => {
            eprintln!("skein: cannot use {:?} as a data directory: {error}", cli.global.data_dir);
            return ExitCode::FAILURE;
        }
    };
    let done = match cli.verb {
        Verb::Up { node, .. } | Verb::Join { node, .. } | Verb::Restore { node, .. } if node.again => {
            run::up(&dir, node, None, false)
        }
        Verb::Up { node, cluster, new_cluster } => run::up(&dir, node, cluster.as_deref(), new_cluster),
        Verb::Join { token, token_file, node } => {
            let source = secret::Source::of(token.as_deref(), token_file.as_deref());
            source
                .map_or_else(|| Err("no token".into()), secret::Source::read)
                .and_then(|token| run::join(&dir, node, &token))
        }
        Verb::Status { output } => verbs::status(&dir, output),
        Verb::Token(TokenVerb::Create { uses, ttl, replace }) => {
            verbs::create_token(&dir, uses, ttl, replace.as_deref())
        }
        Verb::Token(TokenVerb::List { output }) => verbs::list_tokens(&dir, output),
        Verb::Token(TokenVerb::Revoke { id }) => verbs::revoke_token(&dir, &id),
        Verb::Image(ImageVerb::Load { file, here }) => verbs::load_image(&dir, &file, here),
        Verb::Image(ImageVerb::Rm { names }) => verbs::remove_images(&dir, &names),
        Verb::Image(ImageVerb::Prune) => verbs::prune_images(&dir),
        Verb::Image(ImageVerb::List { output }) => verbs::list_images(&dir, output),
        Verb::Kubeconfig { verb: Some(KubeconfigVerb::List { output }), .. } => {
            verbs::list_clients(&dir, output)
        }
        Verb::Kubeconfig { verb: Some(KubeconfigVerb::Revoke { serial, user }), .. } => {
            verbs::revoke_clients(&dir, serial.as_deref(), user.as_deref())
        }
        Verb::Kubeconfig { user, merge: None, verb: None } => kubeconfig::print(&dir, user.as_deref()),
        Verb::Kubeconfig { user, merge: Some(file), verb: None } => {
            kubeconfig::merge_into(&dir, user.as_deref(), file.as_deref())
        }
        Verb::Ca(CaVerb::Rotate { now, overlap, yes }) => verbs::rotate(&dir, now, overlap, yes),
        Verb::Ca(CaVerb::RecoveryKey { yes }) => backup::recovery_key(&dir, yes),
        Verb::Leave { cancel: true, .. } => verbs::stay(&dir, None),
        Verb::Leave { end_cluster: true, force, .. } => verbs::end_cluster(&dir, force),
        Verb::Leave { .. } => verbs::leave(&dir),
        Verb::Remove { name, cancel: true, .. } => verbs::stay(&dir, Some(&name)),
        Verb::Remove { name, stolen: true, yes, .. } => verbs::remove_stolen(&dir, &name, yes),
        Verb::Remove { name, now, .. } => verbs::remove(&dir, &name, now),
        Verb::Recover { yes, off } => recover::recover(&dir, yes, &off),
        Verb::Backup { file, passphrase } => backup::backup(&dir, &file, &passphrase),
        Verb::Restore { file, key_file, beside, yes, node } => {
            run::restore(&dir, node, &file, key_file.as_deref(), beside, yes)
        }
        Verb::Upgrade { .. } => Err("skein cannot upgrade a node by itself yet: put the new program in the old one's place, then \
                                     stop `skein up` and start it again, on one node after another; pods go on meanwhile"
            .into()),
        Verb::Demo(demo) => demo::run(demo),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skein: {}", Chain(&*error));
            match () {
                () if error.is::<run::InUse>() => ExitCode::from(IN_USE),
                () if error.is::<daemon::Removed>() => ExitCode::from(REMOVED),
                () => ExitCode::FAILURE,
            }
        }
    }
}

/// A number and a unit; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("cannot read {text:?} as a time; write it like 90s, 15m, 24h or 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// A number and a unit of 1024: Ki, Mi, Gi, Ti; a bare number is bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("cannot read {text:?} as a size; write it like 500Mi or 32Gi");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = ["", "Ki", "Mi", "Gi", "Ti"].iter().position(|known| *known == unit).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << (10 * shift)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_verb() {
        for line in ["skein --data-dir /x status", "skein status --data-dir /x"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.global.data_dir, PathBuf::from("/x"));
        }
    }

    #[test]
    fn a_log_level_is_a_level_or_says_of_which_part() {
        for good in ["warn", "off", "info,skein_net=debug", "trace, openraft=error"] {
            assert_eq!(run::log_filter(good), Ok(good.replace(' ', "")));
        }
        for wrong in ["", "loud", "skein_net", "skein_net=loud", "info,,warn"] {
            let said = run::log_filter(wrong).unwrap_err();
            assert!(said.contains("debug, trace"), "{wrong:?}: {said}");
        }
    }

    #[test]
    fn wrong_usage_is_exit_code_2() {
        for line in ["skein status --nonsense", "skein up --peer", "skein up --peer a:b:c"] {
            assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_token_is_given_in_one_way() {
        for line in ["skein join TOKEN", "skein join -", "skein join --token-file t", "skein join --name a -"]
        {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in ["skein join", "skein join TOKEN --token-file t"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn what_a_node_was_started_with_starts_its_next_life_too() {
        for line in [
            "skein --data-dir /x join TOKEN --name a",
            "skein join --token-file t",
            "skein up --new-cluster",
            "skein restore F",
        ] {
            let words = line.split(' ').chain([run::AGAIN]);
            let (Verb::Up { node, .. } | Verb::Join { node, .. } | Verb::Restore { node, .. }) =
                Cli::try_parse_from(words).unwrap().verb
            else {
                panic!("it starts a node")
            };
            assert!(node.again, "{line}");
        }
    }

    #[test]
    fn peers_are_given_one_by_one() {
        let cli = Cli::try_parse_from("skein up --peer kitchen.lan --peer 192.0.2.7:99".split(' ')).unwrap();
        let Verb::Up { node, .. } = cli.verb else { panic!("up") };
        let shown: Vec<String> = node.peers.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["kitchen.lan:7946", "192.0.2.7:99"]);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("500"), Ok(500));
        assert_eq!(bytes("32Gi"), Ok(32 << 30));
        for wrong in ["", "Gi", "1G", "1 Mi", "-1", "99999999999Ti"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn registries_without_tls_are_named_one_by_one_or_in_a_list() {
        for words in [
            &["--insecure-registry", "a:5000,10.0.0.0/8"][..],
            &["--insecure-registry", "a:5000", "--insecure-registry", "10.0.0.0/8"],
        ] {
            let cli = Cli::try_parse_from([&["skein", "up"], words].concat()).unwrap();
            let Verb::Up { node, .. } = cli.verb else { unreachable!("it is `up`") };
            assert_eq!(node.insecure_registry.len(), 2);
        }
        assert!(Cli::try_parse_from(["skein", "up", "--insecure-registry", "http://a"]).is_err());
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in ["", "m", "15 m", "1y", "-1s", "99999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
