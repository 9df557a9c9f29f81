//! Benchmarks and long runs against real nodes in a lab.

mod bench;
mod figures;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Faults and measurements on real skein nodes, in network namespaces on this machine. Needs root.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measure, and print distributions.
    Bench {
        /// What to measure.
        what: What,
        /// How often.
        #[arg(long, default_value_t = 20)]
        runs: usize,
        /// Write the figures to this file as well, as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// A machine's power cut until its pods run elsewhere: a worker's and the leader's.
    Failover,
    /// Durable writes through the store's handle on all three nodes, and one client alone.
    Writes,
    /// A Deployment applied until its pods run: one replica, then a hundred on three nodes.
    Deploy,
    /// `skein join` until the node is Ready.
    Join,
    /// What an idle node with pods costs: memory, processor, disk writes.
    Idle,
    /// What a node with 110 pods costs while others write 300 objects a second that are none of its business.
    Foreign,
    /// How long nobody can write when the leader's daemon is killed, and when it is stopped.
    Takeover,
    /// A starved worker that loses a fifth of its packets and 2 s of network a minute: what it costs its
    /// pods. A run is a minute.
    Abuse,
}

fn main() -> ExitCode {
    if let Some(code) = skein_chaos::lab::main_if_inside() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let Verb::Bench { what, runs, json } = cli.verb;
    match bench::run(what, runs, json.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skein-chaos: {error}");
            ExitCode::FAILURE
        }
    }
}
