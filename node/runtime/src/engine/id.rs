//! Names that become file names: checked once, at the door.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The uid of a pod, safe to use as a file name: 1 to 64 letters, digits, `-`, `_` or `.`, not beginning with `.`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(Arc<str>);

/// The text cannot be used as a file name, so it names no pod or container.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {0:?} as a name; it needs 1 to 64 letters, digits, '-', '_' or '.', and no '.' in front")]
pub struct InvalidName(String);

impl PodUid {
    /// The uid as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PodUid {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        check_name(text)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for PodUid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PodUid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One start of one container of a pod. Attempt 0 is the first; a restart is the next attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId {
    /// The pod it belongs to.
    pub pod: PodUid,
    /// The name of the container within the pod, under the same rule as [`PodUid`].
    pub name: String,
    /// Counts the starts of this name.
    pub attempt: u32,
}

impl ContainerId {
    /// The id, if `name` is one.
    pub fn new(pod: PodUid, name: &str, attempt: u32) -> Result<Self, InvalidName> {
        check_name(name)?;
        Ok(Self { pod, name: name.to_owned(), attempt })
    }

    /// The name of the container's own directory and cgroup.
    pub(crate) fn dir_name(&self) -> String {
        format!("{}-{}", self.name, self.attempt)
    }

    /// The inverse of [`dir_name`](Self::dir_name).
    pub(crate) fn from_dir_name(pod: &PodUid, dir_name: &str) -> Option<Self> {
        let (name, attempt) = dir_name.rsplit_once('-')?;
        Self::new(pod.clone(), name, attempt.parse().ok()?).ok()
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.pod, self.name, self.attempt)
    }
}

/// Whether `text` may be a file name below a directory of ours.
pub(crate) fn check_name(text: &str) -> Result<(), InvalidName> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = (1..=64).contains(&text.len()) && !text.starts_with('.') && text.chars().all(allowed);
    if good { Ok(()) } else { Err(InvalidName(text.chars().take(80).collect())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_leave_its_directory_is_refused() {
        for bad in ["", ".", "..", "a/b", "../x", ".hidden", "a b", "a\0b", &"x".repeat(65)] {
            assert!(bad.parse::<PodUid>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_container_id_survives_its_directory_name() {
        let pod: PodUid = "6f1c".parse().expect("a good uid");
        let id = ContainerId::new(pod.clone(), "web-1", 12).expect("a good name");
        assert_eq!(ContainerId::from_dir_name(&pod, &id.dir_name()), Some(id));
        assert_eq!(ContainerId::from_dir_name(&pod, "web"), None);
        assert_eq!(ContainerId::from_dir_name(&pod, "web-x"), None);
    }
}
