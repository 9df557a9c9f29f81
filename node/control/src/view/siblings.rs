//! The pods of one controller, counted while they come and go: one of thousands must not have all of them counted
//! anew.

use imbl::{OrdMap, OrdSet};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::Key;
use crate::meta;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Siblings {
    kinds: OrdMap<Like, OrdSet<Since>>,
    /// How many replicas each node has.
    on: OrdMap<Arc<str>, usize>,
}

/// Since when a pod is ready, and its key.
type Since = (Timestamp, Key);

/// What is counted of pods: replicas differ in little else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Like {
    standing: Standing,
    labels: Option<BTreeMap<String, String>>,
}

/// How far a pod counts as a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Its last container has ended for good.
    Ended,
    /// It is on its way out.
    Ending,
    /// It does not serve yet, or not any more.
    Unready,
    /// It serves, and nothing says since when.
    Ready,
    /// It serves, and it is known since when.
    ReadySince,
}

impl Standing {
    /// And the moment since when it is ready, if it is known.
    fn of(pod: &Pod) -> (Standing, Timestamp) {
        let ready = meta::condition(pod.status.as_ref(), "Ready").filter(|ready| ready.status == "True");
        let since = ready.and_then(|ready| ready.last_transition_time.as_ref()).map(|since| since.0);
        let standing = match since {
            _ if meta::has_ended(pod) => Standing::Ended,
            _ if meta::is_ending(&pod.metadata) => Standing::Ending,
            _ if ready.is_none() => Standing::Unready,
            None => Standing::Ready,
            Some(_) => Standing::ReadySince,
        };
        (standing, since.unwrap_or(Timestamp::MIN))
    }

    pub(crate) fn is_active(self) -> bool {
        !matches!(self, Standing::Ended | Standing::Ending)
    }

    pub(crate) fn is_ready(self) -> bool {
        matches!(self, Standing::Ready | Standing::ReadySince)
    }
}

/// Whether two states of one pod, with the same node and labels, count alike.
pub(super) fn count_alike(one: &Pod, other: &Pod) -> bool {
    Standing::of(one) == Standing::of(other)
}

impl Siblings {
    pub(super) fn add(&mut self, key: &Key, pod: &Pod) {
        let (like, since) = Like::of(pod);
        if like.standing.is_active()
            && let Some(node) = meta::node_of(pod)
        {
            *self.on.entry(node.into()).or_insert(0) += 1;
        }
        self.kinds.entry(like).or_default().insert((since, key.clone()));
    }

    pub(super) fn remove(&mut self, key: &Key, pod: &Pod) {
        let (like, since) = Like::of(pod);
        if like.standing.is_active()
            && let Some(node) = meta::node_of(pod)
        {
            match self.on.get_mut(node) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.on.remove(node)),
            }
        }
        if let Some(pods) = self.kinds.get_mut(&like) {
            pods.remove(&(since, key.clone()));
            if pods.is_empty() {
                self.kinds.remove(&like);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// How many replicas each node has.
    pub(crate) fn on(&self) -> impl Iterator<Item = (&Arc<str>, usize)> {
        self.on.iter().map(|(node, count)| (node, *count))
    }

    /// Those that count alike, together.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = Counted<'_>> {
        self.kinds.iter().map(|(Like { standing, labels }, pods)| Counted {
            standing: *standing,
            labels: labels.as_ref(),
            pods,
        })
    }
}

impl Like {
    fn of(pod: &Pod) -> (Like, Timestamp) {
        let (standing, since) = Standing::of(pod);
        (Like { standing, labels: pod.metadata.labels.clone() }, since)
    }
}

/// Pods that count alike.
pub(crate) struct Counted<'v> {
    pub(crate) standing: Standing,
    pub(crate) labels: Option<&'v BTreeMap<String, String>>,
    pods: &'v OrdSet<Since>,
}

impl<'v> Counted<'v> {
    /// How many they are. O(1).
    pub(crate) fn count(&self) -> i32 {
        i32::try_from(self.pods.len()).unwrap_or(i32::MAX)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &'v Key> {
        self.pods.iter().map(|(_, key)| key)
    }

    /// How many are ready since later than `then`, and since when the first of them is.
    ///
    /// Cost: these.
    pub(crate) fn ready_after(&self, then: Timestamp) -> (i32, Option<Timestamp>) {
        // Behind all keys, which begin with a letter.
        let begin = (then, Key::from("\u{10ffff}"));
        let later: (Bound<&Since>, Bound<&Since>) = (Bound::Excluded(&begin), Bound::Unbounded);
        let mut pods = self.pods.range::<_, Since>(later);
        let first = pods.next().map(|(since, _)| *since);
        (first.map_or(0, |_| 1 + pods.count() as i32), first)
    }
}
