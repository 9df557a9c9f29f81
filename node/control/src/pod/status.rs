//! What users see of a pod.
