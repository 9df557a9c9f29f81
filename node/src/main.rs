//! `skein`: one binary that every machine of the cluster runs.
//!
//! Wiring and thin shells; no rule of its own. In reading order: [`cli`] says what a user can say,
//! [`daemon`] starts a node's parts, [`planner`], [`leader`], [`watchfulness`] and [`agent`] are its loops.

mod admin;
mod admission;
mod agent;
mod authority;
mod backup;
mod certificates;
mod cli;
mod clients;
mod clock;
mod clocks;
mod cluster;
mod daemon;
mod departures;
mod disk;
mod former;
mod gateway;
mod home;
mod leader;
mod members;
mod picture;
mod pieces;
mod planner;
mod pressure;
mod prober;
mod quorum;
mod recover;
mod report;
mod secrets;
mod surroundings;
mod tiny;
mod voting;
mod watchfulness;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Other lives of this program: they need a process of one thread, and nothing of what follows.
    if let Some(code) = skein_runtime::main_if_shim() {
        return code;
    }
    if let Some(code) = skein_chaos::lab::main_if_inside() {
        return code;
    }
    if let Some(code) = tiny::main_if_tiny() {
        return code;
    }
    cli::main()
}
