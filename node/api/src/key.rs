//! The name of an object in the cluster's ordered map.
//!
//! `<group or "core">/<resource>/<namespace or "">/<name>`: `core/pods/default/web-1`, `core/nodes//kitchen`,
//! `apps/deployments/default/web`. Objects of a kind lie together, within it those of a namespace, in
//! the order of their names: a list is one range, a watch one prefix.

use std::fmt;
use std::str::FromStr;

/// What stands for the core group, whose name is empty, so that no key begins with a slash.
const CORE: &str = "core";

/// Where an object is stored.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectKey {
    /// The API group; empty for the core group.
    pub group: String,
    /// The plural name of the kind: `pods`.
    pub resource: String,
    /// Empty for an object without namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

/// The text is no key: it has not four parts, or its resource or name is empty.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("cannot read {text:?} as an object key; it must be group/resource/namespace/name")]
pub struct ParseError {
    text: String,
}

impl ObjectKey {
    /// The key of `name`; `namespace` is empty for kinds without namespace.
    pub fn new(group: &str, resource: &str, namespace: &str, name: &str) -> Self {
        Self {
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// What the keys of a kind begin with: all of them, or those of one namespace.
pub fn prefix(group: &str, resource: &str, namespace: Option<&str>) -> String {
    let group = if group.is_empty() { CORE } else { group };
    match namespace {
        None => format!("{group}/{resource}/"),
        Some(namespace) => format!("{group}/{resource}/{namespace}/"),
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = if self.group.is_empty() { CORE } else { &self.group };
        write!(f, "{group}/{}/{}/{}", self.resource, self.namespace, self.name)
    }
}

impl FromStr for ObjectKey {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut parts = text.split('/');
        let mut next = || parts.next();
        match (next(), next(), next(), next(), next()) {
            (Some(group), Some(resource), Some(namespace), Some(name), None)
                if !group.is_empty() && !resource.is_empty() && !name.is_empty() =>
            {
                Ok(Self::new(if group == CORE { "" } else { group }, resource, namespace, name))
            }
            _ => Err(ParseError { text: text.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_as_it_was_printed() {
        for text in ["core/pods/default/web-1", "core/nodes//kitchen", "apps/deployments/default/web"] {
            let key: ObjectKey = text.parse().unwrap();
            assert_eq!(key.to_string(), text);
        }
        assert_eq!(
            "core/nodes//kitchen".parse::<ObjectKey>().unwrap(),
            ObjectKey::new("", "nodes", "", "kitchen")
        );
    }

    #[test]
    fn a_text_that_is_no_key_is_refused() {
        for text in [
            "",
            "pods",
            "core/pods/web",
            "core/pods/default/web/log",
            "core//default/web",
            "core/pods/default/",
        ] {
            assert!(text.parse::<ObjectKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_prefix_covers_its_namespace_and_no_other() {
        let key = ObjectKey::new("", "pods", "default", "web").to_string();
        assert!(key.starts_with(&prefix("", "pods", None)));
        assert!(key.starts_with(&prefix("", "pods", Some("default"))));
        assert!(!key.starts_with(&prefix("", "pods", Some("def"))));
    }
}
