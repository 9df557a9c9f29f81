//! What a user can say to the cluster: the kinds it serves, and every rule about one object.
//!
//! Objects travel as [`serde_json::Value`] on the generic path; a kind's own rules work on the typed
//! structs of `k8s-openapi`. The specification is the upstream Kubernetes API reference.
//!
//! Pure: no clock, no chance, no I/O. Time, uids and random suffixes are arguments. Imports nothing of ours.
//! What comes from a user is bounded here and never panics.

// Where objects live and how they change.
pub mod key;
pub mod write;

// What is served.
pub mod discovery;
pub mod kinds;
pub mod limits;
pub mod openapi;

// One object's way through a request.
pub mod binding;
pub mod decode;
pub mod object;
pub mod patch;
pub mod scale;
pub mod sealed;
pub mod selector;
pub mod table;

// The words of an answer.
pub mod field;
pub mod status;
pub mod time;

// The rules of each kind.
mod rules;

// Values and helpers that deciding crates share.
pub mod base64;
pub mod names;
pub mod owner;
pub mod pod;
pub mod quantity;
pub mod scheduling;
