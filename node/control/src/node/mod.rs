//! What becomes of a node as a member: who is one, and what is kept of those that were.

pub mod roster;
