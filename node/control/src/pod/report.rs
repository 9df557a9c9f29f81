//! Reports of pods' status: gathered while one batch is under way, written as the next one.
//!
//! Only the latest status of a pod counts. Each write of a batch may be refused alone (somebody else wrote
//! the pod meanwhile); it is then computed anew from the pod as it is.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::Value;
use skein_api::key::ObjectKey;
use skein_api::write::{Change, Expect, Write};

use crate::plan::Bounds;
use crate::size::Size;

/// Pods in one batch; the rest waits for the next.
const BATCH_MAX: usize = 500;

/// What to do to one pod's object.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// This is what it does.
    Status(Box<PodStatus>),
    /// Its deletion waited for the end of its processes.
    Delete,
}

/// A pod, whose uid must still be this when something is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What is still to be written. At most one report per pod.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    pending: BTreeMap<Name, Report>,
}

/// Writes that are to be proposed as one command of which each may be refused alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// One for each of `reports`, in the same order.
    pub writes: Vec<Write>,
    /// What the writes say.
    pub reports: Vec<(Name, Report)>,
}

impl Reports {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes a new report. After the order to delete there is nothing more to say.
    pub fn note(&mut self, pod: Name, report: Report) {
        if self.pending.get(&pod) != Some(&Report::Delete) {
            self.pending.insert(pod, report);
        }
    }

    /// Gives back what was not written; whatever came meanwhile is newer.
    pub fn give_back(&mut self, reports: impl IntoIterator<Item = (Name, Report)>) {
        for (pod, report) in reports {
            match report {
                Report::Delete => drop(self.pending.insert(pod, report)),
                Report::Status(_) => drop(self.pending.entry(pod).or_insert(report)),
            }
        }
    }

    /// The next batch, no larger than one command is filled with, made from the objects as `stored` has them: revision and bytes by key. A pod that is
    /// gone, or another one by now, needs no report.
    pub fn batch<'a>(&mut self, stored: impl Fn(&str) -> Option<(u64, &'a [u8])>) -> Batch {
        let mut batch = Batch::default();
        let mut size = Size::default();
        while batch.writes.len() < BATCH_MAX {
            let Some((pod, report)) = self.pending.pop_first() else { break };
            let key = ObjectKey::new("", "pods", &pod.namespace, &pod.name).to_string();
            let Some((revision, bytes)) = stored(&key) else { continue };
            let Some(change) = change(bytes, &pod, &report) else { continue };
            let write = Write { key, expect: Expect::Revision(revision), change };
            size = size.plus(Size::of(&write));
            if !batch.writes.is_empty() && !size.fits(Bounds::LIMIT) {
                self.pending.insert(pod, report);
                break;
            }
            batch.writes.push(write);
            batch.reports.push((pod, report));
        }
        batch
    }

    /// Takes back what was taken out to make a batch of, and is not in it.
    pub fn add_older(&mut self, older: Reports) {
        self.give_back(older.pending);
    }
}

fn change(object: &[u8], pod: &Name, report: &Report) -> Option<Change> {
    let mut json: Value = serde_json::from_slice(object).ok()?;
    if json["metadata"]["uid"] != pod.uid.as_str() {
        return None;
    }
    Some(match report {
        Report::Delete if is_held(&json) => {
            // The node is done with it; who holds it sees that by this.
            let grace = &mut json["metadata"]["deletionGracePeriodSeconds"];
            if std::mem::replace(grace, 0.into()) == 0 {
                return None;
            }
            Change::Put(serde_json::to_vec(&json).expect("JSON is written without error"))
        }
        Report::Delete => Change::Delete,
        Report::Status(status) => {
            let mut status = serde_json::to_value(status).expect("a status is plain data");
            keep_what_others_say(&json["status"], &mut status);
            json["status"] = status;
            Change::Put(serde_json::to_vec(&json).expect("JSON is written without error"))
        }
    })
}

/// Whether a finalizer keeps the object of a pod that has ended.
fn is_held(pod: &Value) -> bool {
    pod["metadata"]["finalizers"].as_array().is_some_and(|held| !held.is_empty())
}

/// Conditions that this node does not know of (readiness gates, the scheduler's) and the start time stay.
fn keep_what_others_say(old: &Value, new: &mut Value) {
    for field in ["startTime", "qosClass"] {
        if new[field].is_null() && !old[field].is_null() {
            new[field] = old[field].clone();
        }
    }
    let known: Vec<Value> = new["conditions"].as_array().cloned().unwrap_or_default();
    let said = |kind: &Value| known.iter().any(|condition| condition["type"] == *kind);
    let others = old["conditions"].as_array().into_iter().flatten();
    let others: Vec<Value> = others.filter(|condition| !said(&condition["type"])).cloned().collect();
    if !others.is_empty() {
        new["conditions"] = others.into_iter().chain(known).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name(uid: &str) -> Name {
        Name { namespace: "default".into(), name: "web".into(), uid: uid.into() }
    }

    fn status(phase: &str) -> Report {
        Report::Status(Box::new(PodStatus { phase: Some(phase.into()), ..PodStatus::default() }))
    }

    fn stored() -> Vec<u8> {
        let pod = json!({
            "metadata": {"namespace": "default", "name": "web", "uid": "a"},
            "status": {
                "phase": "Pending",
                "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "PodScheduled", "status": "True"}],
            },
        });
        serde_json::to_vec(&pod).unwrap()
    }

    #[test]
    fn the_latest_status_is_written_and_what_others_say_stays() {
        let (mut reports, pod) = (Reports::default(), stored());
        reports.note(name("a"), status("Pending"));
        reports.note(name("a"), status("Running"));
        let batch = reports.batch(|key| (key == "core/pods/default/web").then_some((7, &pod)));
        assert!(reports.is_empty());
        let [Write { expect: Expect::Revision(7), change: Change::Put(bytes), .. }] = &batch.writes[..]
        else {
            panic!("{batch:?}")
        };
        let json: Value = serde_json::from_slice(bytes).unwrap();
        assert_eq!(json["status"]["phase"], "Running");
        assert_eq!(json["status"]["startTime"], "2026-01-01T00:00:00Z");
        assert_eq!(json["status"]["conditions"][0]["type"], "PodScheduled");
    }

    /// A hundred pods of 50 KB that all say something at once were one command that the store does not take, again and
    /// again.
    #[test]
    fn what_is_too_much_for_one_command_comes_in_the_next() {
        let mut reports = Reports::default();
        let mut pod: Value = serde_json::from_slice(&stored()).unwrap();
        pod["metadata"]["annotations"] = json!({"fat": "x".repeat(50_000)});
        let pod = serde_json::to_vec(&pod).unwrap();
        for at in 0..100 {
            reports.note(Name { name: format!("web-{at}"), ..name("a") }, status("Running"));
        }
        let (mut written, mut batches) = (0, 0);
        while !reports.is_empty() {
            let batch = reports.batch(|_| Some((7, &pod)));
            let size = batch.writes.iter().map(Size::of).fold(Size::default(), Size::plus);
            assert!(size.fits(Bounds::LIMIT) && !batch.writes.is_empty());
            assert_eq!(batch.writes.len(), batch.reports.len());
            written += batch.writes.len();
            batches += 1;
        }
        assert_eq!((written, batches), (100, 3));
    }

    #[test]
    fn what_was_taken_out_for_a_batch_and_is_not_in_it_comes_back_unless_there_is_newer() {
        let mut reports = Reports::default();
        reports.note(name("a"), status("Pending"));
        reports.note(name("b"), status("Pending"));
        let older = std::mem::take(&mut reports);
        reports.note(name("a"), status("Running"));
        reports.add_older(older);
        assert_eq!(reports.pending[&name("a")], status("Running"));
        assert_eq!(reports.pending[&name("b")], status("Pending"));
    }

    #[test]
    fn a_pod_that_is_gone_or_another_one_by_now_needs_no_report() {
        let (mut reports, pod) = (Reports::default(), stored());
        reports.note(name("b"), status("Running"));
        assert_eq!(reports.batch(|_| Some((7, &pod))), Batch::default());
        reports.note(name("a"), status("Running"));
        assert_eq!(reports.batch(|_| None), Batch::default());
    }

    #[test]
    fn a_pod_that_somebody_holds_is_given_up_and_not_deleted() {
        let mut held: Value = serde_json::from_slice(&stored()).unwrap();
        held["metadata"]["finalizers"] = json!(["example.com/account"]);
        held["metadata"]["deletionGracePeriodSeconds"] = 30.into();
        let mut reports = Reports::default();
        reports.note(name("a"), Report::Delete);
        let bytes = serde_json::to_vec(&held).unwrap();
        let batch = reports.batch(|_| Some((7, &bytes)));
        let [Write { change: Change::Put(bytes), .. }] = &batch.writes[..] else { panic!("{batch:?}") };
        held["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        assert_eq!(serde_json::from_slice::<Value>(bytes).unwrap(), held);
        reports.note(name("a"), Report::Delete);
        assert_eq!(reports.batch(|_| Some((8, bytes))), Batch::default(), "said once");
    }

    #[test]
    fn what_comes_while_a_batch_is_under_way_is_newer_and_a_deletion_is_the_last_word() {
        let (mut reports, pod) = (Reports::default(), stored());
        reports.note(name("a"), status("Pending"));
        let refused = reports.batch(|_| Some((7, &pod)));
        reports.note(name("a"), status("Running"));
        reports.give_back(refused.reports);
        assert_eq!(reports.pending[&name("a")], status("Running"));
        reports.note(name("a"), Report::Delete);
        reports.note(name("a"), status("Failed"));
        let refused = reports.batch(|_| Some((7, &pod)));
        assert_eq!(refused.writes[0].change, Change::Delete);
        reports.note(name("a"), status("Failed"));
        reports.give_back(refused.reports);
        assert_eq!(reports.pending[&name("a")], Report::Delete);
    }
}
