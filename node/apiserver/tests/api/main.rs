//! The API over a map in memory: each rule in this process, connections over loopback, and real kubectl.

mod harness;
mod served;

mod connections;
mod deletions;
mod discovery;
mod kubectl;
mod lists;
mod logs;
mod objects;
mod patches;
mod questions;
mod recorded;
mod refusals;
mod secrets;
mod services;
mod watches;
