//! `skein demo`.

use clap::Args;

use crate::daemon::Failure;

#[derive(Debug, Clone, Args)]
pub(super) struct Demo {
    /// Leave the cluster running, and print how to run kubectl against it.
    #[arg(long)]
    keep: bool,
    /// Print one JSON object for each event instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(_demo: Demo) -> Result<(), Failure> {
    Err("not yet".into())
}
