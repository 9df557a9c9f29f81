//! What a cluster begins with that is restored from a backup onto a bare machine.
//!
//! The objects are as they were. What gave anybody a place or a right then does not come back: nobody knows what was
//! taken back, spent or removed after the backup was made, so all of it ends, and the operator gives it out anew. That
//! is members and their Nodes, tokens, kubeconfigs, who keeps the authorities, the pods' ranges of addresses, and which
//! node has which loaded image. The authorities themselves stay, so a kubeconfig's CA and what a token pins are the same.
//!
//! Pods of nodes that are gone are replaced by the planner, as after any removal.

use skein_api::write::{Change, Expect, Write};

use super::departure::{self, Cause};
use super::{admission, authority, roster};
use crate::view::Kind;
use k8s_openapi::api::core::v1::Node;

/// By how much the number of the incarnation grows. The cluster may have been recovered since the backup was made, each
/// time to the next number: the one restored is newer than all of those.
pub const INCARNATIONS: u64 = 1_000;

/// What goes before anything runs, in the order of `objects`: all keys of the backup with their values.
///
/// An error says which record cannot be read: the backup was made by a newer build then.
pub fn ends<'a>(objects: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Vec<Write>, String> {
    const GONE: [&str; 5] =
        [Node::PREFIX, admission::TOKENS, admission::SUBNETS, admission::IMAGES, authority::HOLDERS];
    let mut writes = Vec::new();
    for (key, value) in objects {
        let unreadable = |error: serde_json::Error| format!("{key} of the backup is not readable: {error}");
        let change = match () {
            () if GONE.iter().any(|prefix| key.starts_with(prefix)) => Change::Delete,
            () if key.starts_with(roster::PREFIX) => {
                let record: roster::Record = serde_json::from_slice(value).map_err(unreadable)?;
                if record.removed {
                    continue;
                }
                Change::Put(departure::ended(&record, Cause::RemovalNow).to_bytes())
            }
            () if key.starts_with(authority::CLIENTS) => {
                // Of the record only this matters here.
                let mut record: serde_json::Value = serde_json::from_slice(value).map_err(unreadable)?;
                record["revoked"] = true.into();
                Change::Put(record.to_string().into_bytes())
            }
            () => continue,
        };
        writes.push(Write { key: key.to_owned(), expect: Expect::Any, change });
    }
    Ok(writes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(objects: &[(&str, &str)]) -> Vec<(String, Option<serde_json::Value>)> {
        let objects = objects.iter().map(|(key, value)| (*key, value.as_bytes()));
        let read = |write: Write| match write.change {
            Change::Put(bytes) => (write.key, Some(serde_json::from_slice(&bytes).unwrap())),
            Change::Delete => (write.key, None),
            Change::Check => panic!("nothing is only looked at"),
        };
        ends(objects).unwrap().into_iter().map(read).collect()
    }

    fn member(removed: bool) -> String {
        serde_json::json!({
            "node": "ab", "store": "cd", "name": "one", "addresses": [], "subnet": "10.42.0.0/24", "joined_ms": 1,
            "removals_ms": [], "fresh": false, "leaving": false, "removed": removed, "expelled": false, "labels": {"a": "b"},
        })
        .to_string()
    }

    #[test]
    fn what_gave_a_place_or_a_right_ends_and_what_people_wrote_stays() {
        let (present, removed) = (member(false), member(true));
        let kept = [
            ("core/configmaps/default/a", "{}"),
            ("core/nodes-like/x", "{}"),
            ("core/pods/default/a", "{}"),
            ("skein/authorities//trust", "{}"),
            ("skein/members//dead", removed.as_str()),
            ("skein/recoveries//2", "{}"),
        ];
        assert_eq!(changes(&kept), []);
        for key in [
            "core/nodes//one",
            "skein/authorities/holders/ab",
            "skein/images//12",
            "skein/subnets//10.42.0.0",
            "skein/tokens//ab",
        ] {
            assert_eq!(changes(&[(key, "whatever")]), [(key.to_owned(), None)], "{key}");
        }
        let [(_, Some(client))] =
            &changes(&[("skein/clients//ab", r#"{"serial":"ab","revoked":false}"#)])[..]
        else {
            panic!("its record is kept, so that its holder is told why")
        };
        assert_eq!(*client, serde_json::json!({ "serial": "ab", "revoked": true }));
        let [(_, Some(record))] = &changes(&[("skein/members//ab", &present)])[..] else {
            panic!("its record is kept, so that its key never comes back")
        };
        assert_eq!((&record["removed"], &record["expelled"]), (&true.into(), &true.into()));
    }

    #[test]
    fn a_record_that_cannot_be_read_restores_nothing() {
        for key in ["skein/members//ab", "skein/clients//ab"] {
            let error = ends([(key, b"{".as_slice())]).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }
}
