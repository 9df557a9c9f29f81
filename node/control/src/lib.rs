//! All deciding: what should run where, who replaces whom, and how a pod lives on its node.
//!
//! Planners are functions of a [`view::View`] of the map; a pod's life is a state machine. None of it reads
//! a clock, draws a random number, opens a file or a socket, or starts a task: time and chance come in as
//! arguments, what to do goes out as values. It may import `skein-api` and nothing else of ours.

// What deciding looks at, and what it is given.
pub mod chance;
pub mod event;
pub mod resources;
pub mod size;
pub mod time;
pub mod view;

// The planners: all of them in order, then each.
pub mod plan;

pub mod node_health;

mod deployment;
mod endpoints;
mod evictions;
mod garbage;
mod namespace;
mod node_lease;
mod replicaset;
mod scheduler;

// What planners share.
mod draft;
mod meta;

// A pod on its node.
pub mod container;
pub mod homecoming;
pub mod pod;
pub mod pod_network;
pub mod pressure;

// Who is there, who votes, what each keeps for the cluster, and what time it is for all.
pub mod clocks;
pub mod judge;
pub mod node;
pub mod own_link;
pub mod places;
pub mod probe;
pub mod reachability;
pub mod succession;
pub mod vigil;
pub mod voters;

#[cfg(test)]
mod world;
