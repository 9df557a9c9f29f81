//! When probes run, and what their answers mean.
