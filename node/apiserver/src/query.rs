//! What a request's query asks for.

use skein_api::status::{Reason, Status};

use crate::path::percent_decode;

/// The parameters of a query, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what stands behind the question mark.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, Status> {
        let decode = |text: &str| {
            percent_decode(text.replace('+', " ").as_bytes()).ok_or_else(|| {
                Status::bad_request(format!("cannot read {text:?} in the query; escape it as UTF-8 in %XX"))
            })
        };
        text.unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode(name)?, decode(value)?))
            })
            .collect::<Result<_, _>>()
            .map(Query)
    }

    /// The first value of this name, unless it is empty.
    pub(crate) fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// All values of this name that are not empty.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// `true` and `1`; a parameter without value counts as set, as upstream reads it.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Status> {
        match self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()) {
            None | Some("false" | "0" | "False" | "FALSE" | "f" | "F") => Ok(false),
            Some("" | "true" | "1" | "True" | "TRUE" | "t" | "T") => Ok(true),
            Some(other) => Err(malformed(name, other, "true or false")),
        }
    }

    /// A whole number that is not negative.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|_| malformed(name, text, "a whole number that is not negative"))
            })
            .transpose()
    }
}

fn malformed(name: &str, found: &str, expected: &str) -> Status {
    Status::bad_request(format!("cannot read the query parameter {name}={found:?}; it must be {expected}"))
}

/// How a version in a query is meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Version {
    /// Not given: the newest there is.
    Unset,
    /// `0`: whatever is at hand.
    Any,
    /// This one; what that means depends on the verb and on [`Match`].
    Revision(u64),
}

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Match {
    Exact,
    NotOlderThan,
}

/// What list, watch and deletecollection have in common.
#[derive(Clone, Debug)]
pub(crate) struct ListOptions {
    pub(crate) labels: String,
    pub(crate) fields: String,
    /// 0: all.
    pub(crate) limit: usize,
    pub(crate) token: Option<String>,
    pub(crate) version: Version,
    pub(crate) version_match: Option<Match>,
    pub(crate) watch: bool,
    pub(crate) bookmarks: bool,
    pub(crate) initial_events: Option<bool>,
    pub(crate) timeout_seconds: Option<u64>,
}

impl ListOptions {
    /// Reads them, and refuses combinations that upstream refuses.
    pub(crate) fn parse(query: &Query, watch: bool) -> Result<Self, Status> {
        let options = ListOptions {
            labels: query.get("labelSelector").unwrap_or_default().to_owned(),
            fields: query.get("fieldSelector").unwrap_or_default().to_owned(),
            limit: usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(usize::MAX),
            token: query.get("continue").map(str::to_owned),
            version: version(query)?,
            version_match: match query.get("resourceVersionMatch") {
                None => None,
                Some("Exact") => Some(Match::Exact),
                Some("NotOlderThan") => Some(Match::NotOlderThan),
                Some(other) => {
                    return Err(refused(&format!(
                        "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
                    )));
                }
            },
            watch: watch || query.flag("watch")?,
            bookmarks: query.flag("allowWatchBookmarks")?,
            initial_events: match query.get("sendInitialEvents") {
                None => None,
                Some(_) => Some(query.flag("sendInitialEvents")?),
            },
            timeout_seconds: query.number("timeoutSeconds")?,
        };
        if options.watch {
            options.check_watch()?
        } else {
            options.check_list()?
        }
        Ok(options)
    }

    fn check_watch(&self) -> Result<(), Status> {
        match (self.initial_events, self.version_match) {
            (None, Some(_)) => Err(refused(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )),
            (Some(_), None) => Err(refused(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )),
            (Some(_), Some(Match::Exact)) => Err(refused(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )),
            _ => Ok(()),
        }
    }

    fn check_list(&self) -> Result<(), Status> {
        if self.initial_events.is_some() {
            return Err(refused("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"));
        }
        if self.token.is_some() && matches!(self.version, Version::Revision(_)) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        match (self.version_match, self.version) {
            (Some(_), Version::Unset) => Err(refused(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            )),
            (Some(Match::Exact), Version::Any) => Err(refused(
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            )),
            _ => Ok(()),
        }
    }
}

/// The parameter `resourceVersion`.
pub(crate) fn version(query: &Query) -> Result<Version, Status> {
    match query.get("resourceVersion") {
        None => Ok(Version::Unset),
        Some("0") => Ok(Version::Any),
        Some(text) => text.parse().map(Version::Revision).map_err(|_| {
            refused(&format!(
                "resourceVersion: Invalid value: {text:?}: it must be one that this cluster gave out"
            ))
        }),
    }
}

/// `dryRun=All`: everything but the writing.
pub(crate) fn dry_run<'a>(mut values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    values.try_fold(false, |_, value| match value {
        "All" => Ok(true),
        other => Err(refused(&format!("dryRun: Unsupported value: {other:?}: supported values: \"All\""))),
    })
}

fn refused(why: &str) -> Status {
    Status::new(Reason::Invalid, format!("the request's options are invalid: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(query: &str) -> Result<ListOptions, Status> {
        ListOptions::parse(&Query::parse(Some(query)).unwrap(), false)
    }

    #[test]
    fn parameters_are_unescaped() {
        let query = Query::parse(Some("labelSelector=app%3Dweb+x&empty=&watch")).unwrap();
        assert_eq!(query.get("labelSelector"), Some("app=web x"));
        assert_eq!(query.get("empty"), None);
        assert_eq!(query.flag("watch"), Ok(true));
        assert!(Query::parse(Some("a=%ff")).is_err());
    }

    #[test]
    fn a_number_that_is_none_is_a_bad_request() {
        assert_eq!(options("limit=-1").unwrap_err().code(), 400);
        assert_eq!(options("watch=maybe").unwrap_err().code(), 400);
    }

    #[test]
    fn combinations_without_meaning_are_refused_as_upstream_refuses_them() {
        for query in [
            "resourceVersionMatch=Exact",
            "resourceVersionMatch=Exact&resourceVersion=0",
            "resourceVersionMatch=Sometimes&resourceVersion=7",
            "sendInitialEvents=true",
            "watch=1&sendInitialEvents=true",
            "watch=1&sendInitialEvents=true&resourceVersionMatch=Exact",
            "watch=1&resourceVersionMatch=NotOlderThan",
            "resourceVersion=newest",
        ] {
            assert_eq!(options(query).unwrap_err().code(), 422, "{query}");
        }
        assert_eq!(options("continue=abc&resourceVersion=7").unwrap_err().code(), 400);
        assert!(options("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan").is_ok());
        assert!(options("resourceVersion=7&resourceVersionMatch=Exact&limit=5").is_ok());
    }

    #[test]
    fn dry_run_knows_one_word() {
        assert_eq!(dry_run(["All"].into_iter()), Ok(true));
        assert_eq!(dry_run([].into_iter()), Ok(false));
        assert_eq!(dry_run(["Some"].into_iter()).unwrap_err().code(), 422);
    }
}
