//! Gives each waiting pod a node.
use crate::draft::Draft;
pub(crate) fn plan(_draft: &mut Draft<'_>) {}
