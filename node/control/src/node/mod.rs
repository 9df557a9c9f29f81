//! What becomes of a node as a member: who is one, how it becomes one, how that ends, and what it keeps for the
//! cluster; and what a machine's data directory allows it to become.

pub mod admission;
pub mod authority;
pub mod departure;
pub mod directory;
pub mod recovery;
pub mod restoration;
pub mod roster;

mod drain;
