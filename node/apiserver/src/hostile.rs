//! Whatever a client writes into a request, its parts are read or refused, and nothing panics.

use proptest::prelude::*;

use crate::logs;
use crate::negotiate::{Form, MediaType, accepted};
use crate::pages::Token;
use crate::query::{ListOptions, Query, dry_run};
use crate::{compress, path, protobuf};

/// Parts of paths and queries that mean something somewhere, among some that mean nothing.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "api",
            "apis",
            "v1",
            "apps",
            "namespaces",
            "default",
            "pods",
            "nodes",
            "deployments",
            "watch",
            "log",
            "status",
            "scale",
            "proxy",
            "exec",
            "openapi",
            "v2",
            "v3",
            "%2e%2e",
            "%",
            "%zz",
            "",
            "..",
            "%00",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,6}",
        ".{0,4}",
    ]
}

fn parameter() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "watch",
        "limit",
        "continue",
        "resourceVersion",
        "resourceVersionMatch",
        "sendInitialEvents",
        "allowWatchBookmarks",
        "timeoutSeconds",
        "labelSelector",
        "fieldSelector",
        "dryRun",
        "tailLines",
        "sinceSeconds",
        "sinceTime",
        "x",
    ]);
    let value = prop_oneof![
        prop::sample::select(vec![
            "1",
            "0",
            "true",
            "-1",
            "18446744073709551616",
            "Exact",
            "NotOlderThan",
            "a%3Db",
            "a in (b",
            "%ff",
            "All",
            "9223372036854775807",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,8}",
        ".{0,4}",
    ];
    (name, value).prop_map(|(name, value)| format!("{name}={value}"))
}

/// A body that gets past the envelope, so that messages are reached.
fn envelope() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec!["Pod", "Deployment", "Service", "ConfigMap", "Event", "Lease"]);
    (kind, prop::collection::vec(any::<u8>(), 0..100)).prop_map(|(kind, object)| {
        let mut body = b"k8s\0\x0a".to_vec();
        body.push(kind.len() as u8 + 2);
        body.extend([0x12, kind.len() as u8]);
        body.extend(kind.bytes());
        body.extend([0x12, object.len() as u8]);
        body.extend(object);
        body
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_path_leads_somewhere_or_nowhere(words in prop::collection::vec(word(), 0..8)) {
        let _ = path::route(&format!("/{}", words.join("/")));
    }

    #[test]
    fn any_query_is_read_or_refused(parameters in prop::collection::vec(parameter(), 0..6)) {
        if let Ok(query) = Query::parse(Some(&parameters.join("&"))) {
            let _ = ListOptions::parse(&query, false);
            let _ = ListOptions::parse(&query, true);
            let _ = dry_run(query.all("dryRun"));
            let _ = logs::since(&query, jiff::Timestamp::UNIX_EPOCH);
            let _ = query.get("continue").map(Token::decode);
        }
    }

    #[test]
    fn any_header_is_read_or_refused(text in "[ -~]{0,40}") {
        let _ = (accepted(Some(&text)), MediaType::parse(&text), Form::choose(Some(&text), true));
        if let Ok(value) = http::HeaderValue::from_str(&text) {
            let mut headers = http::HeaderMap::new();
            headers.insert("accept-encoding", value);
            let _ = compress::accepts_gzip(&headers);
        }
    }

    #[test]
    fn any_protobuf_is_decoded_or_refused(body in prop_oneof![envelope(), prop::collection::vec(any::<u8>(), 0..60)]) {
        let _ = protobuf::decode(&body);
    }

    #[test]
    fn any_certificate_names_somebody_or_nobody(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = crate::Identity::of_certificate(&bytes.into());
    }
}
