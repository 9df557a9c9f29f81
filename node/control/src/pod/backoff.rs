//! How long a container that keeps failing waits.
