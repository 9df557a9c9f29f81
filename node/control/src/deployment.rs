//! Deployment -> ReplicaSet.
use crate::draft::Draft;
pub(crate) fn plan(_draft: &mut Draft<'_>) {}
