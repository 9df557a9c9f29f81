//! Everything HTTP of the Kubernetes API, over one trait: [`Cluster`](cluster::Cluster).
//!
//! Owns connections, TLS, who may, routes, lists and their pages, watches, and the loop that reads,
//! decides by the rules of `skein-api`, and writes on condition. Imports `skein-api` only; knows neither
//! Raft nor gossip nor containers.

// What lies below, and the server on top of it.
pub mod cluster;
pub mod identity;
pub mod limits;
pub mod server;
pub mod tls;

// One request's way.
mod api;
mod compress;
mod door;
mod negotiate;
mod path;
mod protobuf;
mod query;
mod respond;

// Reading.
mod discovery;
mod logs;
mod pages;
mod read;
mod view;
mod watch;

// Writing.
mod addresses;
mod attach;
mod binding;
mod commit;
mod create;
mod delete;
mod question;
mod scale;
mod update;

#[cfg(test)]
mod hostile;

// For tests of whoever uses this crate.
pub mod testing;

pub use addresses::{RangeError, ServiceRange};
pub use api::{Api, Settings};
pub use cluster::Cluster;
pub use identity::Identity;
pub use respond::{Body, BodyError, body_from, full};
pub use server::{Config, Server};
