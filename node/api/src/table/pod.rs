//! A pod's row: what STATUS and RESTARTS say follows from all of its containers.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, age, list, text};
use crate::kinds::Kind;
use crate::time;

const NONE: &str = "<none>";

pub(super) const COLUMNS: &[Column] = &[
    Column::narrow("Name"),
    Column::narrow("Ready"),
    Column::narrow("Status"),
    Column::narrow("Restarts"),
    Column::narrow("Age"),
    Column::wide("IP"),
    Column::wide("Node"),
    Column::wide("Nominated Node"),
    Column::wide("Readiness Gates"),
];

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts > 0 => format!("{} ({} ago)", summary.restarts, time::age(at, now)),
        _ => summary.restarts.to_string(),
    };
    let ip = text(&pod["status"]["podIPs"][0]["ip"], text(&pod["status"]["podIP"], NONE));
    vec![
        pod["metadata"]["name"].clone(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.status.into(),
        restarts.into(),
        age(pod, now),
        ip.into(),
        text(&pod["spec"]["nodeName"], NONE).into(),
        text(&pod["status"]["nominatedNodeName"], NONE).into(),
        readiness_gates(pod).into(),
    ]
}

/// What kubectl dims in its table: pods that ended.
pub(super) fn row_conditions(kind: &Kind, pod: &Value) -> Vec<Value> {
    if kind.kind != "Pod" {
        return Vec::new();
    }
    let (reason, message) = match pod["status"]["phase"].as_str() {
        Some("Succeeded") => ("Succeeded", "The pod has completed successfully."),
        Some("Failed") => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    vec![json!({ "type": "Completed", "status": "True", "reason": reason, "message": message })]
}

struct Summary {
    ready: usize,
    total: usize,
    status: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let status = &pod["status"];
        let sidecars: Vec<&str> = list(&pod["spec"]["initContainers"])
            .iter()
            .filter(|container| container["restartPolicy"] == "Always")
            .filter_map(|container| container["name"].as_str())
            .collect();
        let mut summary = Self {
            ready: 0,
            total: list(&pod["spec"]["containers"]).len() + sidecars.len(),
            status: text(&status["reason"], text(&status["phase"], "Unknown")).to_owned(),
            restarts: 0,
            last_restart: None,
        };
        let gated = list(&status["conditions"])
            .iter()
            .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated");
        if gated {
            summary.status = "SchedulingGated".into();
        }
        let initializing = summary.init_containers(pod, &sidecars);
        if !initializing {
            summary.containers(pod);
        }
        summary.deletion(pod);
        summary
    }

    /// Says whether init containers are still at work; then they alone decide the row.
    fn init_containers(&mut self, pod: &Value, sidecars: &[&str]) -> bool {
        let statuses = list(&pod["status"]["initContainerStatuses"]);
        let total = list(&pod["spec"]["initContainers"]).len();
        let mut of_sidecars = (0, None);
        for (index, status) in statuses.iter().enumerate() {
            let is_sidecar = status["name"].as_str().is_some_and(|name| sidecars.contains(&name));
            self.count_restart(status);
            if is_sidecar {
                of_sidecars.0 += status["restartCount"].as_i64().unwrap_or(0);
                of_sidecars.1 = of_sidecars.1.max(finished_before(status));
                if status["ready"] == true {
                    self.ready += 1;
                }
                if status["started"] == true {
                    continue;
                }
            }
            let state = &status["state"];
            let waiting = text(&state["waiting"]["reason"], "");
            self.status = if state["terminated"].is_object() {
                if state["terminated"]["exitCode"] == 0 {
                    continue;
                }
                format!("Init:{}", terminated(&state["terminated"]))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{total}")
            };
            return true;
        }
        // Done: of what they restarted, only the sidecars, which go on running, count further.
        (self.restarts, self.last_restart) = of_sidecars;
        let initialized = list(&pod["status"]["conditions"])
            .iter()
            .any(|condition| condition["type"] == "Initialized" && condition["status"] == "False");
        initialized && statuses.len() < total && pod["status"]["phase"] == "Pending" && {
            if !statuses.is_empty() {
                self.status = format!("Init:{}/{total}", statuses.len());
            }
            !statuses.is_empty()
        }
    }

    fn containers(&mut self, pod: &Value) {
        let mut running = false;
        let statuses = list(&pod["status"]["containerStatuses"]);
        // Backwards, so that the first container's reason is the one that stays.
        for status in statuses.iter().rev() {
            self.count_restart(status);
            let state = &status["state"];
            let waiting = text(&state["waiting"]["reason"], "");
            if !waiting.is_empty() {
                self.status = waiting.to_owned();
            } else if state["terminated"].is_object() {
                self.status = terminated(&state["terminated"]);
            } else if status["ready"] == true && state["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        // A container that ended beside one that runs does not make the pod complete.
        if self.status == "Completed" && running {
            let ready = list(&pod["status"]["conditions"])
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            self.status = if ready { "Running" } else { "NotReady" }.into();
        }
    }

    fn deletion(&mut self, pod: &Value) {
        if !pod["metadata"]["deletionTimestamp"].is_string() {
            return;
        }
        if pod["status"]["reason"] == "NodeLost" {
            self.status = "Unknown".into();
        } else if !matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded")) {
            self.status = "Terminating".into();
        }
    }

    fn count_restart(&mut self, status: &Value) {
        self.restarts = self.restarts.saturating_add(status["restartCount"].as_i64().unwrap_or(0));
        self.last_restart = self.last_restart.max(finished_before(status));
    }
}

/// When the container's last but present run ended.
fn finished_before(status: &Value) -> Option<Timestamp> {
    status["lastState"]["terminated"]["finishedAt"].as_str().and_then(time::parse)
}

/// Why a container ended: its reason, else signal or exit code.
fn terminated(state: &Value) -> String {
    let reason = text(&state["reason"], "");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match state["signal"].as_i64() {
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", state["exitCode"].as_i64().unwrap_or(0)),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(&pod["spec"]["readinessGates"]);
    if gates.is_empty() {
        return NONE.into();
    }
    let open = |gate: &&Value| {
        list(&pod["status"]["conditions"])
            .iter()
            .any(|condition| condition["type"] == gate["conditionType"] && condition["status"] == "True")
    };
    format!("{}/{}", gates.iter().filter(open).count(), gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(status: Value) -> (String, String, String) {
        let pod =
            json!({ "metadata": { "name": "web" }, "spec": { "containers": [{}, {}] }, "status": status });
        row_of(&pod)
    }

    fn row_of(pod: &Value) -> (String, String, String) {
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let cells = cells(pod, now);
        assert_eq!(cells.len(), COLUMNS.len());
        let text = |at: usize| cells[at].as_str().unwrap().to_owned();
        (text(1), text(2), text(3))
    }

    fn expect(status: Value, ready: &str, word: &str, restarts: &str) {
        assert_eq!(row(status.clone()), (ready.into(), word.into(), restarts.into()), "{status}");
    }

    #[test]
    fn the_status_word_is_that_of_upstream() {
        let running = json!({ "ready": true, "state": { "running": {} } });
        expect(json!({ "phase": "Pending" }), "0/2", "Pending", "0");
        expect(json!({ "phase": "Running", "containerStatuses": [running, running] }), "2/2", "Running", "0");
        expect(
            json!({ "phase": "Running", "containerStatuses": [running, { "restartCount": 3, "state": { "waiting": { "reason": "CrashLoopBackOff" } }, "lastState": { "terminated": { "finishedAt": "2026-01-01T00:58:00Z" } } }] }),
            "1/2",
            "CrashLoopBackOff",
            "3 (2m ago)",
        );
        expect(
            json!({ "phase": "Running", "containerStatuses": [running, { "state": { "terminated": { "reason": "Completed", "exitCode": 0 } } }] }),
            "1/2",
            "NotReady",
            "0",
        );
        expect(
            json!({ "phase": "Failed", "containerStatuses": [{ "state": { "terminated": { "exitCode": 137, "signal": 9 } } }] }),
            "0/2",
            "Signal:9",
            "0",
        );
        expect(json!({ "phase": "Failed", "reason": "Evicted" }), "0/2", "Evicted", "0");
    }

    #[test]
    fn init_containers_come_first() {
        let pod = |statuses: Value| json!({ "spec": { "containers": [{}], "initContainers": [{ "name": "a" }, { "name": "b" }] }, "status": { "phase": "Pending", "initContainerStatuses": statuses } });
        let done = json!({ "name": "a", "state": { "terminated": { "exitCode": 0 } } });
        for (statuses, word) in [
            (
                json!([{ "name": "a", "state": { "running": {} } }, { "name": "b", "state": { "waiting": { "reason": "PodInitializing" } } }]),
                "Init:0/2",
            ),
            (json!([done, { "name": "b", "state": { "running": {} } }]), "Init:1/2"),
            (
                json!([done, { "name": "b", "state": { "terminated": { "exitCode": 1, "reason": "Error" } } }]),
                "Init:Error",
            ),
            (
                json!([done, { "name": "b", "state": { "waiting": { "reason": "CrashLoopBackOff" } } }]),
                "Init:CrashLoopBackOff",
            ),
            (json!([done, { "name": "b", "state": { "terminated": { "exitCode": 0 } } }]), "Pending"),
        ] {
            assert_eq!(row_of(&pod(statuses.clone())).1, word, "{statuses}");
        }
    }

    #[test]
    fn a_pod_being_deleted_says_so() {
        let pod = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "spec": { "containers": [{}] }, "status": { "phase": "Running" } });
        assert_eq!(row_of(&pod).1, "Terminating");
    }
}
