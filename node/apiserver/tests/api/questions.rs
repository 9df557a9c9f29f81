//! What `kubectl auth` asks: who am I, may I, what may I.

use http::Method;
use serde_json::{Value, json};
use skein_apiserver::Identity;

use crate::harness::{Client, Reply, request};

const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const MAY_I: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const WHAT_MAY_I: &str = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";

async fn ask(client: &Client, caller: &Identity, path: &str, body: &Value) -> Reply {
    client.send_as(caller, request(Method::POST, path, "application/json", &body.to_string())).await
}

fn eve() -> Identity {
    Identity { user: "eve".into(), groups: vec!["developers".into()] }
}

#[tokio::test]
async fn everybody_who_is_known_learns_who_they_are() {
    let client = Client::new();
    let answer = ask(&client, &eve(), WHO, &json!({})).await;
    assert_eq!(answer.code, 201);
    let info = &answer.value["status"]["userInfo"];
    assert_eq!(*info, json!({ "username": "eve", "groups": ["developers", "system:authenticated"] }));
    assert_eq!(ask(&client, &Identity::anonymous(), WHO, &json!({})).await.code, 403);
}

#[tokio::test]
async fn the_answer_to_may_i_is_what_the_api_then_does() {
    let client = Client::new();
    let admin = Identity::administrator("admin");
    let resource = |verb: &str, resource: &str| json!({ "spec": { "resourceAttributes": { "verb": verb, "resource": resource, "namespace": "default" } } });
    let path = |path: &str| json!({ "spec": { "nonResourceAttributes": { "verb": "get", "path": path } } });
    for (caller, asked, allowed) in [
        (&admin, resource("create", "pods"), true),
        (&admin, path("/openapi/v3"), true),
        (&eve(), resource("create", "pods"), false),
        (&eve(), resource("create", "selfsubjectreviews"), true),
        (&eve(), path("/healthz"), true),
        (&eve(), path("/openapi/v3"), false),
    ] {
        let answer = ask(&client, caller, MAY_I, &asked).await.ok();
        assert_eq!(answer["status"]["allowed"], allowed, "{} {asked}", caller.user);
        assert_eq!(answer["spec"], asked["spec"]);
    }
    let rules = ask(&client, &admin, WHAT_MAY_I, &json!({ "spec": { "namespace": "default" } })).await.ok();
    assert_eq!(rules["status"]["resourceRules"][0]["verbs"], json!(["*"]));
}

#[tokio::test]
async fn a_question_is_not_kept_and_can_only_be_asked() {
    let client = Client::new();
    let before = client.cluster.snapshot().revision();
    ask(&client, &eve(), WHO, &json!({})).await.ok();
    assert_eq!(client.cluster.snapshot().revision(), before);
    assert_eq!(client.get(WHO).await.code, 405);
}

/// The conformance tests of upstream ask for this.
#[tokio::test]
async fn an_answer_is_no_table() {
    let client = Client::new();
    let ask = async |accept: &str| {
        let mut request = request(Method::POST, WHO, "application/json", "{}");
        request.headers_mut().insert("accept", accept.parse().unwrap());
        client.send_as(&eve(), request).await
    };
    let reply =
        client.get_as("/api/v1/namespaces", "application/json;as=Table;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(reply["kind"], "Table");
    let reply = ask("application/json;as=Table;v=v1;g=meta.k8s.io").await;
    assert_eq!((reply.code, reply.reason()), (406, "NotAcceptable"));
    let reply = ask("application/json;as=Table;v=v1;g=meta.k8s.io, application/json").await.ok();
    assert_eq!(reply["kind"], "SelfSubjectReview");
}
