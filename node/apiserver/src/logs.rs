//! GET of a pod's `log`: what one of its containers printed, from the node that runs it.

use std::time::Duration;

use futures::StreamExt;
use jiff::SignedDuration;
use serde_json::Value;
use skein_api::object;
use skein_api::status::{Reason, Status};

use crate::api::{Answer, Api, Call};
use crate::cluster::{Freshness, LogError, LogRequest};
use crate::commit::unavailable;
use crate::query::Query;
use crate::respond;

/// Which container is meant when nothing is said. kubectl reads it too, other clients do not.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

impl Api {
    /// GET of `log`. While following, each piece is sent on as it comes.
    pub(crate) async fn log(&self, call: &Call<'_>, name: &str) -> Answer {
        let kind = call.kind();
        let key = kind.key(call.resource.key_namespace(), name).to_string();
        // The pod may have been created through another node a moment ago.
        let (snapshot, warnings) = self.picture(Freshness::Latest).await?;
        let (bytes, _) = snapshot.get(&key).ok_or_else(|| Status::not_found(kind, name))?;
        let pod = object::read(&bytes)?;
        let container = container(&pod, call.query.get("container"))?;
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() {
            return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let request = self.log_request(call.query, &pod, &container)?;
        check_started(&pod, &request)?;
        // A node that is gone must not hold the client for the time of a whole stream.
        let asked = tokio::time::timeout(ANSWER_TIME, self.cluster.logs(node, request)).await;
        let pieces = match asked {
            Ok(Ok(pieces)) => pieces,
            Ok(Err(LogError::NotFound(text))) => return Err(Status::bad_request(text)),
            Ok(Err(LogError::Unavailable(why))) => return Err(unavailable(why)),
            Err(_) => {
                return Err(Status::timeout(format!(
                    "node {node:?} did not answer; see whether it is ready"
                )));
            }
        };
        let stopping = self.stopping.clone();
        let pieces = pieces.take_until(async move { stopping.cancelled().await });
        let mut response = respond::stream("text/plain", pieces);
        respond::warn(&mut response, &warnings);
        Ok(response)
    }

    fn log_request(&self, query: &Query, pod: &Value, container: &str) -> Result<LogRequest, Status> {
        let since = since(query, self.cluster.now())?;
        Ok(LogRequest {
            namespace: object::namespace(pod).to_owned(),
            pod: object::name(pod).to_owned(),
            uid: pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
            container: container.to_owned(),
            follow: query.flag("follow")?,
            previous: query.flag("previous")?,
            timestamps: query.flag("timestamps")?,
            tail_lines: query.number("tailLines")?,
            since,
            limit_bytes: query.number("limitBytes")?,
        })
    }
}

/// From when on the client wants to see what was printed.
pub(crate) fn since(query: &Query, now: jiff::Timestamp) -> Result<Option<jiff::Timestamp>, Status> {
    match (query.get("sinceTime"), query.number("sinceSeconds")?) {
        (Some(_), Some(_)) => {
            Err(Status::new(Reason::Invalid, "at most one of sinceTime or sinceSeconds may be specified"))
        }
        (Some(text), None) => {
            let refused = |_| {
                Status::bad_request(format!(
                    "cannot read sinceTime={text:?}; it must be a time as in RFC 3339"
                ))
            };
            text.parse().map(Some).map_err(refused)
        }
        (None, Some(seconds)) => {
            let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            Ok(Some(now.checked_sub(ago).unwrap_or(jiff::Timestamp::MIN)))
        }
        (None, None) => Ok(None),
    }
}

/// The node's answer, not the stream after it.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The container that is meant, which must be one of the pod's.
pub(crate) fn container(pod: &Value, asked: Option<&str>) -> Result<String, Status> {
    let name = object::name(pod);
    let names = |field: &str| -> Vec<String> {
        let containers = pod["spec"][field].as_array().into_iter().flatten();
        containers.filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    let marked = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str();
    match (asked.or(marked.filter(|marked| main.iter().any(|known| known == marked))), main.as_slice()) {
        (Some(asked), _) if main.iter().chain(&init).any(|known| known == asked) => Ok(asked.to_owned()),
        (Some(asked), _) => {
            Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
        }
        (None, [only]) => Ok(only.clone()),
        (None, several) => Err(Status::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            several.join(" ")
        ))),
    }
}

/// A container that never ran has printed nothing; its reason for waiting says more than an empty answer.
fn check_started(pod: &Value, request: &LogRequest) -> Result<(), Status> {
    let (name, container) = (&request.pod, &request.container);
    let statuses = ["containerStatuses", "initContainerStatuses"]
        .into_iter()
        .flat_map(|field| pod["status"][field].as_array().into_iter().flatten());
    let status = statuses.into_iter().find(|status| status["name"] == container.as_str());
    let has = |state: &str, field: &str| status.is_some_and(|status| !status[state][field].is_null());
    let ended_before = has("lastState", "terminated");
    if request.previous && !ended_before {
        return Err(Status::bad_request(format!(
            "previous terminated container {container:?} in pod {name:?} not found"
        )));
    }
    if has("state", "running") || has("state", "terminated") || ended_before {
        return Ok(());
    }
    let waiting = status.and_then(|status| status["state"]["waiting"]["reason"].as_str());
    let reason = waiting.unwrap_or("ContainerCreating");
    Err(Status::bad_request(format!("container {container:?} in pod {name:?} is waiting to start: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: &[&str]) -> Value {
        let containers: Vec<Value> = containers.iter().map(|name| json!({ "name": name })).collect();
        json!({ "metadata": { "name": "web" }, "spec": { "containers": containers, "initContainers": [{ "name": "setup" }] } })
    }

    #[test]
    fn the_only_container_need_not_be_named() {
        assert_eq!(container(&pod(&["a"]), None), Ok("a".into()));
        assert_eq!(container(&pod(&["a"]), Some("setup")), Ok("setup".into()));
        assert!(container(&pod(&["a"]), Some("b")).is_err());
    }

    #[test]
    fn among_several_one_must_be_named_or_marked() {
        let mut several = pod(&["a", "b"]);
        let refused = container(&several, None).unwrap_err();
        assert_eq!(refused.message(), "a container name must be specified for pod web, choose one of: [a b]");
        several["metadata"]["annotations"] = json!({ DEFAULT_CONTAINER: "b" });
        assert_eq!(container(&several, None), Ok("b".into()));
    }

    #[test]
    fn a_container_that_waits_says_for_what() {
        let mut waiting = pod(&["a"]);
        waiting["status"] = json!({ "containerStatuses": [{ "name": "a", "state": { "waiting": { "reason": "ErrImagePull" } } }] });
        let request = LogRequest { pod: "web".into(), container: "a".into(), ..LogRequest::default() };
        let refused = check_started(&waiting, &request).unwrap_err();
        assert_eq!(refused.message(), "container \"a\" in pod \"web\" is waiting to start: ErrImagePull");
        waiting["status"]["containerStatuses"][0]["lastState"] = json!({ "terminated": { "exitCode": 1 } });
        assert_eq!(check_started(&waiting, &request), Ok(()));
    }
}
