//! All deciding: what should run where, who replaces whom, and how a pod lives on its node.
//!
//! Planners are functions of a [`view::View`] of the map; a pod's life is a state machine. None of it reads
//! a clock, draws a random number, opens a file or a socket, or starts a task: time and chance come in as
//! arguments, what to do goes out as values. It may import `skein-api` and nothing else of ours.

pub mod time;
pub mod chance;
pub mod view;
pub mod resources;

pub mod plan;
pub mod node_health;
mod namespace;
mod garbage;
mod deployment;
mod replicaset;
mod scheduler;
mod draft;
mod meta;

pub mod pod;
pub mod container;

pub mod judge;
pub mod probe;
pub mod voters;

#[cfg(test)]
mod world;
