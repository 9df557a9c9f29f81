//! What becomes of a node as a member: who is one, what is kept of those that were, and what it keeps for the
//! cluster; and what a machine's data directory allows it to become.

pub mod authority;
pub mod directory;
pub mod roster;
