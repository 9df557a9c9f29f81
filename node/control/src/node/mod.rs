//! What becomes of a node as a member: who is one, and what is kept of those that were; and what a machine's data
//! directory allows it to become.

pub mod directory;
pub mod roster;
