//! What goes because its owner or its time has gone.
use crate::draft::Draft;
pub(crate) fn plan(_draft: &mut Draft<'_>) {}
