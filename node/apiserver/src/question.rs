//! POST of what asks about the caller: who am I, may I, what may I. Nothing of it is kept.

use http::StatusCode;
use serde_json::{Value, json};

use crate::api::{Answer, Api, Call};
use crate::identity::Identity;

/// Everybody who is known is in this group too.
const AUTHENTICATED: &str = "system:authenticated";

impl Api {
    /// POST of a kind that is a question: the same object with its status filled in.
    pub(crate) fn answer_question(&self, call: &Call<'_>) -> Answer {
        let sent = call.decoded()?;
        let mut answer = sent.object;
        answer["status"] = match call.kind().kind {
            "SelfSubjectReview" => json!({ "userInfo": user_info(call.caller) }),
            "SelfSubjectAccessReview" => access(call.caller, &answer["spec"]),
            _ => rules(call.caller),
        };
        self.answer_object(call, StatusCode::CREATED, answer, &sent.warnings)
    }
}

fn user_info(caller: &Identity) -> Value {
    let mut groups = caller.groups.clone();
    groups.push(AUTHENTICATED.to_owned());
    json!({ "username": caller.user, "groups": groups })
}

/// Administrators and nodes may everything, everybody else may ask how the server is, and this.
fn access(caller: &Identity, asked: &Value) -> Value {
    if caller.may_everything() {
        return json!({ "allowed": true, "reason": "cluster administrators and nodes may everything" });
    }
    let path = asked["nonResourceAttributes"]["path"].as_str().unwrap_or_default();
    let open = ["/healthz", "/livez", "/readyz", "/version"].iter().any(|open| path.starts_with(open));
    let question = asked["resourceAttributes"]["resource"]
        .as_str()
        .is_some_and(|resource| resource.starts_with("selfsubject"));
    if open || question {
        json!({ "allowed": true })
    } else {
        json!({ "allowed": false, "reason": "only cluster administrators and nodes may" })
    }
}

fn rules(caller: &Identity) -> Value {
    let all = ["*"];
    let (resources, paths) = if caller.may_everything() {
        (
            vec![json!({ "verbs": all, "apiGroups": all, "resources": all })],
            vec![json!({ "verbs": all, "nonResourceURLs": all })],
        )
    } else {
        let create = |group: &str, resources: &[&str]| json!({ "verbs": ["create"], "apiGroups": [group], "resources": resources });
        (
            vec![
                create("authentication.k8s.io", &["selfsubjectreviews"]),
                create("authorization.k8s.io", &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
            ],
            vec![
                json!({ "verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version"] }),
            ],
        )
    };
    json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": false })
}
